//! Real Chromium and real servers on loopback: what a page may, and what none may.

#![allow(clippy::print_stderr)] // A machine without Chromium says so.

use std::net::{Ipv4Addr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Request;
use axum::http::{Method, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use quire_proto::reading::Via;
use tokio::net::TcpListener;

use super::super::http::tests::serve;
use super::super::http::{Access, Visit};
use super::super::responder::Responder;
use super::super::script::{Profile, Scripts, improve};
use super::super::web::Asking;
use super::*;
use crate::snmp::{Credential, Options, Snmp};

/// Long enough for the first start of a busy machine, and for whatever has to go away.
const PATIENCE: Duration = Duration::from_secs(60);
const MOST: usize = 256 << 10;

/// A browser with smaller bounds and its directory; `None` where this machine has no Chromium.
fn browser(memory: u64, page: Duration) -> Option<(Browser, tempfile::TempDir)> {
    if !Browser::found() {
        eprintln!("left out: Chromium is not installed here");
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    Some((Browser::with(dir.path(), Bounds { memory, page, idle: IDLE }), dir))
}

fn visit(port: u16) -> Visit {
    let access = Access { ip: Ipv4Addr::LOCALHOST.into(), ports: vec![port], login: None, pin: None };
    Visit::new(access, port).unwrap()
}

async fn show(browser: &Browser, port: u16, path: &str) -> Result<Shown, BrowserMiss> {
    let mut visit = visit(port);
    let page = visit.fetch(path).await.unwrap();
    browser.show(&mut visit, &page, MOST).await
}

fn page(body: &str) -> Response {
    Html(format!("<!DOCTYPE html><title>x</title><body>{body}")).into_response()
}

/// A device whose counters are nowhere but in what its scripts make of its own XML and JSON.
async fn device() -> u16 {
    serve(|request: Request| match request.uri().path() {
        "/" => Redirect::to("/ui/start").into_response(),
        "/ui/start" => {
            let page = page("<div id=total>loading</div><iframe src=supplies></iframe><script src=app.js></script>");
            ([(header::SET_COOKIE, "session=7; Path=/")], page).into_response()
        }
        "/ui/app.js" => "
            alert('welcome');
            document.cookie = 'lang=en; path=/';
            const ask = new XMLHttpRequest();
            ask.onload = async () => {
                const more = await (await fetch('/api/more.json')).json();
                setTimeout(() => {
                    document.getElementById('total').textContent = 'Total ' + (ask.response.total + more.more);
                }, 200);
            };
            ask.responseType = 'json';
            ask.open('GET', '../api/counters.json');
            ask.send();
        "
        .into_response(),
        "/api/counters.json" => {
            let cookie = request.headers().get(header::COOKIE).map_or("", |value| value.to_str().unwrap());
            let known = cookie.contains("session=7") && cookie.contains("lang=en");
            if known { "{\"total\":1200}" } else { "{\"total\":0}" }.into_response()
        }
        "/api/more.json" => "{\"more\":34}".into_response(),
        "/ui/supplies" => page("<p>Black <b>80 %</b>"),
        _ => axum::http::StatusCode::NOT_FOUND.into_response(),
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn counters_that_scripts_build_are_read() {
    let Some((browser, _dir)) = browser(MEMORY, PATIENCE) else { return };
    let port = device().await;
    let shown = show(&browser, port, "/").await.unwrap();
    assert!(shown.html.contains("<div id=\"total\">Total 1234</div>"), "{}", shown.html);
    assert!(shown.text.contains("Total 1234") && shown.text.contains("Black 80 %"), "{}", shown.text);
    assert_eq!(shown.refused, 0, "{shown:?}");

    // The same through a profile, as the collector runs it.
    let source = "//! name: shown\n//! version: 1\n//! match: family brother\n\
        let p = page(`/`); if p.status != 200 { throw p.status; }\n\
        let cell = html(p.html).select(`#total`)[0].text; cell.replace(`Total `, ``);\n\
        meter(`total`, parse_int(cell), `/#total`);";
    let scripts = Scripts::built_in();
    scripts.put_over(vec![Profile::parse(source).unwrap()]);
    let printer = "1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.2435.2.3.9.1\n1.3.6.1.2.1.25.3.2.1.2.1|6|1.3.6.1.2.1.25.3.1.5\n\
        1.3.6.1.2.1.43.10.2.1.4.1.1|65|900\n";
    let (mut finished, _) = Responder::of(printer).read(Via::SnmpV2c, None);
    let snmp = Snmp::bind(Options::default()).await.unwrap();
    let public = Arc::new(Credential::v2c("public").unwrap());
    let asking = Asking { ports: vec![port], browser: Some(browser.clone()), ..Asking::default() };
    // Nobody answers SNMP there: the built-in profiles have all that they need, or fail without harm.
    let peer = "127.0.0.1:9".parse().unwrap();
    improve(&scripts, &snmp, peer, &public, &asking, &mut finished).await;
    let reading = finished.reading.unwrap();
    assert_eq!(reading.counters.total, Some(1234));
    let source = format!("http://127.0.0.1:{port}/ui/start#total");
    assert_eq!(reading.sources["counters.total"], source);
    assert_eq!(reading.via, [Via::SnmpV2c, Via::Http]);
    browser.close().await;
}

/// Counts who comes to a port of `ip`.
async fn stranger(ip: Ipv4Addr) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, hits)
}

/// All that a page may try to reach somebody else, or to write.
const ATTEMPTS: &str = "
        const others = ['http://127.0.0.1:NEAR', 'http://127.0.0.2:FAR', 'https://127.0.0.2:FAR', 'http://localhost:NEAR'];
        const make = (name, fields) => document.body.append(Object.assign(document.createElement(name), fields));
        let tried = 0;
        const attempt = what => { tried++; try { const r = what(); if (r && r.catch) r.catch(() => 0); } catch (e) { } };
        for (const other of others) {
            attempt(() => fetch(other + '/fetch', { mode: 'no-cors' }));
            attempt(() => { const x = new XMLHttpRequest(); x.open('GET', other + '/xhr'); x.send(); });
            attempt(() => make('img', { src: other + '/img' }));
            attempt(() => make('script', { src: other + '/script' }));
            attempt(() => make('iframe', { src: other + '/frame' }));
            attempt(() => make('video', { src: other + '/video', preload: 'auto' }));
            attempt(() => make('link', { rel: 'stylesheet', href: other + '/css' }));
            attempt(() => make('link', { rel: 'preconnect', href: other }));
            attempt(() => make('link', { rel: 'dns-prefetch', href: other }));
            attempt(() => new WebSocket(other.replace('http', 'ws') + '/socket'));
            attempt(() => new EventSource(other + '/events'));
            attempt(() => navigator.sendBeacon(other + '/beacon', 'x'));
            attempt(() => window.open(other + '/popup'));
            attempt(() => new Worker(URL.createObjectURL(new Blob([`fetch('${other}/worker', { mode: 'no-cors' })`]))));
        }
        attempt(() => fetch('file:///etc/passwd').then(r => r.text()).then(t => document.title = t));
        attempt(() => make('iframe', { src: 'file:///etc/passwd' }));
        attempt(() => fetch('/set', { method: 'POST', body: 'x' }));
        attempt(() => fetch('/set', { method: 'DELETE' }));
        attempt(() => navigator.sendBeacon('/set', 'x'));
        attempt(() => {
            const frame = document.createElement('iframe');
            document.body.append(frame);
            for (const where of [window, frame.contentWindow]) {
                const Peer = where.RTCPeerConnection;
                if (!Peer) continue;
                const peer = new Peer({ iceServers: [{ urls: 'stun:STUN' }] });
                peer.createDataChannel('x');
                peer.createOffer().then(offer => peer.setLocalDescription(offer));
            }
        });
        attempt(() => new WebTransport('https://127.0.0.2:FAR/transport'));
        setTimeout(() => make('p', { textContent: 'tried ' + tried }), 300);
    ";

#[tokio::test(flavor = "multi_thread")]
async fn a_page_reaches_nobody_else_and_writes_nothing() {
    let Some((browser, _dir)) = browser(MEMORY, PATIENCE) else { return };
    let (near, near_hits) = stranger(Ipv4Addr::LOCALHOST).await;
    let (far, far_hits) = stranger(Ipv4Addr::new(127, 0, 0, 2)).await;
    let udp = UdpSocket::bind("127.0.0.2:0").unwrap();
    udp.set_nonblocking(true).unwrap();
    let stun = udp.local_addr().unwrap();
    let writes = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&writes);
    let attempts = ATTEMPTS.replace("NEAR", &near.to_string()).replace("FAR", &far.to_string());
    let attempts = attempts.replace("STUN", &stun.to_string());
    let port = serve(move |request: Request| {
        if request.method() != Method::GET {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        match request.uri().path() {
            "/" => page(&format!("<p>here</p><script>{attempts}</script>")),
            // A page that leads away as a whole, by itself and by the server.
            "/meta" => {
                page(&format!("<meta http-equiv=refresh content='0;url=http://127.0.0.2:{far}/'>here"))
            }
            "/away" => Redirect::to(&format!("http://127.0.0.2:{far}/")).into_response(),
            "/frame" => page("<iframe src=/away></iframe>here"),
            _ => axum::http::StatusCode::NOT_FOUND.into_response(),
        }
    })
    .await;
    let shown = show(&browser, port, "/").await.unwrap();
    assert!(shown.text.contains("here") && shown.text.contains("tried 63"), "{}", shown.text);
    assert!(!shown.html.contains("root:"), "a file was read");
    assert!(shown.refused >= 40, "{} refused", shown.refused);
    // A page that goes away as a whole is none; where a frame does, the rest is left.
    assert_eq!(show(&browser, port, "/meta").await, Err(BrowserMiss::Elsewhere));
    let framed = show(&browser, port, "/frame").await.unwrap();
    assert!(framed.text.contains("here") && framed.refused == 1, "{framed:?}");
    assert!(visit(port).fetch("/away").await.is_err());
    browser.close().await;
    assert_eq!((near_hits.load(Ordering::SeqCst), far_hits.load(Ordering::SeqCst)), (0, 0));
    assert_eq!(writes.load(Ordering::SeqCst), 0, "something was written");
    let mut datagram = [0; 64];
    assert!(udp.recv(&mut datagram).is_err(), "a datagram came: {datagram:?}");
}

/// Waits until `done`, and fails where that never happens.
async fn eventually(what: &str, done: impl Fn() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endless_and_huge_pages_are_ended_and_others_go_on() {
    let Some((browser, dir)) = browser(MEMORY, Duration::from_secs(6)) else { return };
    let port = serve(|request: Request| match request.uri().path() {
        "/good" => page("<p>good"),
        "/loop" => page("<p>x<script>while (true) { }</script>"),
        "/later" => page("<p>x<script>setTimeout(() => { while (true) { } }, 50)</script>"),
        "/dialogs" => page("<p>x<script>while (true) { alert(1); }</script>"),
        "/asks" => page("<p>settled<script>setInterval(() => fetch('/good'), 100)</script>"),
        "/long" => page("<script>document.body.append('x'.repeat(1 << 20))</script>"),
        "/heap" => page("<script>const a = []; for (;;) a.push(new Array(1e5).fill(0.5));</script>"),
        // It never rests: a page that pauses may be taken for finished before it is heavy.
        _ => page(
            "<script>const a = []; while (a.length < 32) a.push(new Uint8Array(1 << 25).fill(7)); while (true) { }\
             </script>",
        ),
    })
    .await;
    assert_eq!(show(&browser, port, "/good").await.unwrap().text.trim(), "good");
    let running = browser.0.as_ref().unwrap().running.lock().await.clone().unwrap();
    let before = running.processes();
    for path in ["/loop", "/later", "/dialogs"] {
        assert_eq!(show(&browser, port, path).await, Err(BrowserMiss::TooSlow), "{path}");
    }
    // Its process is ended, not left to turn in circles.
    eventually("a renderer is left", || running.processes() <= before).await;
    assert_eq!(show(&browser, port, "/asks").await.unwrap().text.trim(), "settled");
    assert_eq!(show(&browser, port, "/long").await, Err(BrowserMiss::TooBig));
    let heap = show(&browser, port, "/heap").await;
    assert!(matches!(heap, Err(BrowserMiss::TooBig | BrowserMiss::TooHeavy)), "{heap:?}");
    assert_eq!(show(&browser, port, "/good").await.unwrap().text.trim(), "good");
    browser.close().await;
    drop((running, dir));

    // Memory that no heap counts.
    let Some((browser, _dir)) = self::browser(600 << 20, PATIENCE) else { return };
    assert_eq!(show(&browser, port, "/buffers").await, Err(BrowserMiss::TooHeavy));
    assert_eq!(show(&browser, port, "/good").await.unwrap().text.trim(), "good");
    browser.close().await;
}

#[tokio::test]
async fn without_a_browser_a_page_says_so() {
    let port = serve(|_| page("x")).await;
    assert_eq!(show(&Browser::off(), port, "/").await, Err(BrowserMiss::Off));
}

/// Processes of a group that still run.
fn alive(group: i32) -> usize {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter(|entry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        fields.first().is_some_and(|state| *state != "Z")
            && fields.get(2) == Some(&group.to_string().as_str())
    })
    .count()
}

/// This test starts itself again as a node that is then killed without a chance to clean up.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_node_leaves_no_browser() {
    const NODE: &str = "QUIRE_TEST_BROWSER_NODE";
    let Some((browser, dir)) = browser(MEMORY, PATIENCE) else { return };
    let port =
        serve(|_| page("<p>x<script>setInterval(() => { for (let n = 0; n < 1e8; n++) { } }, 0)</script>"))
            .await;
    if let Some(file) = std::env::var_os(NODE) {
        let data_dir = Path::new(&file).parent().unwrap();
        let browser = Browser::with(data_dir, Bounds { memory: MEMORY, page: PATIENCE, idle: IDLE });
        let mut visit = visit(port);
        let page = visit.fetch("/").await.unwrap();
        let inner = browser.0.clone().unwrap();
        let running = inner.running().await.unwrap();
        let profile = running.profile();
        std::fs::write(&file, format!("{}\n{}", running.group(), profile.display())).unwrap();
        std::fs::rename(&file, Path::new(&file).with_extension("done")).unwrap();
        drop(browser.show(&mut visit, &page, MOST).await);
        std::future::pending::<()>().await;
    }
    let file = dir.path().join("node");
    let mut node = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "device::browser::tests::a_killed_node_leaves_no_browser"])
        .env(NODE, &file)
        .spawn()
        .unwrap();
    let told = file.with_extension("done");
    eventually("the node does not start a browser", || told.exists()).await;
    let text = std::fs::read_to_string(&told).unwrap();
    let (group, profile) = text.split_once('\n').unwrap();
    let group = group.parse().unwrap();
    assert!(alive(group) > 1);
    node.kill().unwrap();
    node.wait().unwrap();
    eventually("Chromium outlives its node", || alive(group) == 0).await;
    // What it wrote is removed by the next node that starts one.
    assert!(Path::new(profile).exists());
    let port = serve(|_| page("good")).await;
    assert_eq!(show(&browser, port, "/").await.unwrap().text.trim(), "good");
    let own = browser.0.as_ref().unwrap().running().await.unwrap().profile();
    browser.close().await;
    assert!(!own.exists() && !Path::new(profile).exists(), "a profile is left");
}
