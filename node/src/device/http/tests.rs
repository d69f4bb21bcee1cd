//! The client against real servers on loopback: what it must do, and what it must not.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;

use super::*;

/// Serves `answer` on a port of loopback for as long as the test runs.
pub(in crate::device) async fn serve(
    answer: impl Fn(Request) -> Response + Clone + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().fallback(move |request: Request| {
        let answer = answer.clone();
        async move { answer(request) }
    });
    tokio::spawn(async move { axum::serve(listener, router).await });
    port
}

fn visit(ports: &[u16]) -> Visit {
    let access = Access { ip: "127.0.0.1".parse().unwrap(), ports: ports.to_vec(), login: None, pin: None };
    Visit::new(access, ports[0]).unwrap()
}

fn with_login(port: u16) -> Visit {
    let login = Some(Arc::new(Login::new("viewer", "top secret")));
    Visit::new(Access { ip: "127.0.0.1".parse().unwrap(), ports: vec![port], login, pin: None }, port)
        .unwrap()
}

fn redirect(to: String) -> Response {
    (StatusCode::FOUND, [(header::LOCATION, to)]).into_response()
}

#[tokio::test]
async fn redirects_stay_on_the_device() {
    let inside = serve(|_| "inside".into_response()).await;
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&hits);
    let outside = serve(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        "outside".into_response()
    })
    .await;
    let door = serve(move |request| match request.uri().path() {
        "/same" => redirect(format!("http://127.0.0.1:{inside}/page?x=1")),
        "/port" => redirect(format!("http://127.0.0.1:{outside}/")),
        "/host" => redirect(format!("http://127.0.0.2:{outside}/")),
        "/name" => redirect(format!("http://localhost:{inside}/")),
        "/file" => redirect("file:///etc/passwd".into()),
        "/login" => redirect(format!("http://u:p@127.0.0.1:{inside}/")),
        _ => redirect("/round".into()),
    })
    .await;
    let page = visit(&[door, inside]).get("/same", None).await.unwrap();
    assert_eq!((page.path.as_str(), page.text.as_str()), ("/page?x=1", "inside"));
    for path in ["/port", "/host", "/name", "/file", "/login"] {
        assert_eq!(visit(&[door, inside]).get(path, None).await.unwrap_err(), WebError::Elsewhere, "{path}");
    }
    assert_eq!(visit(&[door]).get("/round", None).await.unwrap_err(), WebError::TooMuch);
    assert_eq!(visit(&[door]).get("@127.0.0.2/", None).await.unwrap_err(), WebError::Elsewhere);
    assert_eq!(hits.load(Ordering::SeqCst), 0);
}

#[test]
fn ports_that_print_are_never_opened() {
    for port in [9100, 515] {
        let access = Access { ip: "127.0.0.1".parse().unwrap(), ports: vec![port], login: None, pin: None };
        assert_eq!(Visit::new(access, port).err(), Some(WebError::Elsewhere));
    }
}

#[tokio::test]
async fn sizes_and_requests_are_bounded() {
    let port = serve(|request| match request.uri().path() {
        "/huge" => vec![b'x'; MAX_PAGE + 1].into_response(),
        _ => "page".into_response(),
    })
    .await;
    let mut visit = visit(&[port]);
    assert_eq!(visit.get("/huge", None).await.unwrap_err(), WebError::TooMuch);
    let mut answered = 0;
    while visit.get("/", None).await.is_ok() {
        answered += 1;
        assert!(answered < MAX_REQUESTS);
    }
    assert_eq!(answered, MAX_REQUESTS - 1);
}

#[tokio::test]
async fn only_reads_are_sent_with_cookies_and_referer() {
    let port = serve(|request| {
        let said = |name| request.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let text = format!("{} {} {}", request.method(), said(header::COOKIE), said(header::REFERER));
        ([(header::SET_COOKIE, "id=7; Path=/; HttpOnly")], text).into_response()
    })
    .await;
    let mut visit = visit(&[port]);
    visit.set_cookie("rtl", "0");
    assert_eq!(visit.get("/", None).await.unwrap().text, "GET rtl=0 ");
    let second = visit.get("/", Some("/start.htm")).await.unwrap().text;
    assert_eq!(second, format!("GET rtl=0; id=7 http://127.0.0.1:{port}/start.htm"));
}

/// A server that wants `challenge` answered by what `right` accepts, and counts the logins that it was offered.
async fn guarded(challenge: &'static str, right: fn(&str) -> bool) -> (u16, Arc<AtomicUsize>) {
    let offers = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&offers);
    let port = serve(move |request| {
        let offered = request.headers().get(header::AUTHORIZATION).map(|v| v.to_str().unwrap().to_owned());
        counted.fetch_add(usize::from(offered.is_some()), Ordering::SeqCst);
        match offered {
            Some(offered) if right(&offered) => "welcome".into_response(),
            _ => (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, challenge)]).into_response(),
        }
    })
    .await;
    (port, offers)
}

#[tokio::test]
async fn a_login_is_offered_where_it_is_asked_for() {
    let (basic, _) = guarded("Basic realm=\"x\"", |offer| offer == "Basic dmlld2VyOnRvcCBzZWNyZXQ=").await;
    assert_eq!(visit(&[basic]).get("/", None).await.unwrap_err(), WebError::WantsLogin);
    assert_eq!(with_login(basic).get("/", None).await.unwrap().text, "welcome");
    let digest = "Digest realm=\"x\", nonce=\"abc\", qop=\"auth\", algorithm=SHA-256";
    let (digest, offers) =
        guarded(digest, |offer| offer.contains("uri=\"/a?b=c\"") && !offer.contains("secret")).await;
    let mut visit = with_login(digest);
    assert_eq!(visit.get("/a?b=c", None).await.unwrap().text, "welcome");
    assert_eq!(visit.get("/a?b=c", None).await.unwrap().text, "welcome");
    assert_eq!(offers.load(Ordering::SeqCst), 2, "the second page needs no second challenge");
}

#[tokio::test]
async fn a_wrong_login_is_offered_once() {
    let (port, offers) = guarded("Basic realm=\"x\"", |_| false).await;
    let mut visit = with_login(port);
    for _ in 0..3 {
        assert_eq!(visit.get("/", None).await.unwrap_err(), WebError::LoginRefused);
    }
    assert!(visit.login_refused());
    assert_eq!(offers.load(Ordering::SeqCst), 1);
}

/// A server of one certificate, and that certificate's fingerprint.
async fn secure(want_login: bool) -> (u16, Fingerprint) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let own = rcgen::generate_simple_self_signed(vec!["printer".to_owned()]).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, own.cert.der());
    let fingerprint = Fingerprint(digest.as_ref().try_into().unwrap());
    let key = rustls_pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let config =
        rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = vec![0; 4096];
            let Ok(length) = stream.read(&mut request).await else { continue };
            let offered =
                String::from_utf8_lossy(&request[..length]).to_lowercase().contains("authorization:");
            let answer = match want_login && !offered {
                true => {
                    "HTTP/1.1 401 No\r\nWWW-Authenticate: Basic realm=x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                }
                false => "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nsecret",
            };
            drop(stream.write_all(answer.as_bytes()).await);
            drop(stream.shutdown().await);
        }
    });
    (port, fingerprint)
}

#[tokio::test]
async fn a_self_signed_certificate_is_accepted_and_told() {
    let (port, fingerprint) = secure(false).await;
    let mut visit = visit(&[port]);
    assert_eq!(visit.get("/", None).await.unwrap().text, "secret");
    assert_eq!((visit.fingerprint(), visit.secure()), (Some(fingerprint), true));
}

#[tokio::test]
async fn another_certificate_than_the_pinned_one_gets_no_login() {
    let (port, fingerprint) = secure(true).await;
    let open = |pin| {
        let login = Some(Arc::new(Login::new("viewer", "top secret")));
        Visit::new(Access { ip: "127.0.0.1".parse().unwrap(), ports: vec![port], login, pin }, port).unwrap()
    };
    assert_eq!(open(Some(fingerprint)).get("/", None).await.unwrap().text, "secret");
    let other = Some(Fingerprint([7; 32]));
    assert_eq!(open(other).get("/", None).await.unwrap_err(), WebError::WantsLogin);
}

#[tokio::test]
async fn silence_and_noise_are_told_apart() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    assert_eq!(visit(&[closed]).get("/", None).await.unwrap_err(), WebError::Silent);
    let noisy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = noisy.local_addr().unwrap().port();
    tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        while let Ok((mut stream, _)) = noisy.accept().await {
            drop(stream.write_all(b"\x00\x01 no HTTP\r\n\r\n").await);
        }
    });
    assert_eq!(visit(&[port]).get("/", None).await.unwrap_err(), WebError::Garbled);
}

#[test]
fn passwords_stay_out_of_debug_output() {
    let access = Access {
        ip: "127.0.0.1".parse().unwrap(),
        ports: vec![80],
        login: Some(Arc::new(Login::new("viewer", "top secret"))),
        pin: None,
    };
    assert!(!format!("{access:?}").contains("secret"));
}

#[tokio::test]
async fn any_status_is_fetched_and_a_redirect_may_be_left_alone() {
    let port = serve(|request| match request.uri().path() {
        "/there" => ([(header::SET_COOKIE, "id=7; Path=/")], "there").into_response(),
        "/away" => redirect("/there".into()),
        _ => (StatusCode::NOT_FOUND, "no such page").into_response(),
    })
    .await;
    let mut visit = visit(&[port]);
    let followed = visit.fetch("/away").await.unwrap();
    assert_eq!((followed.status, followed.text().as_str()), (200, "there"));
    assert_eq!(
        (followed.url.path(), followed.cookies.as_slice()),
        ("/there", &["id=7; Path=/".to_owned()][..])
    );
    let missing = visit.fetch("/nowhere").await.unwrap();
    assert_eq!((missing.status, missing.text().as_str()), (404, "no such page"));
    let url = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let left = visit.load(&url("/away"), None).await.unwrap();
    assert_eq!((left.status, left.location.as_deref()), (302, Some("/there")));
    for elsewhere in ["http://127.0.0.2/", "file:///etc/passwd", "ftp://127.0.0.1/", "nonsense"] {
        assert_eq!(visit.load(elsewhere, None).await.unwrap_err(), WebError::Elsewhere, "{elsewhere}");
    }
    visit.limit_page(3);
    assert_eq!(visit.fetch("/there").await.unwrap_err(), WebError::TooMuch);
}
