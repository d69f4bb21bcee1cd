//! The whole engine against a foreign responder: net-snmp's snmpd on 127.0.0.1, in a directory of its own.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use super::*;

/// A running snmpd; killed when dropped.
struct Snmpd {
    child: Child,
    at: SocketAddr,
    _home: tempfile::TempDir,
}

impl Drop for Snmpd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const USERS: &str = "
rocommunity public
sysDescr engine under test
createUser md5des MD5 md5-password DES des-password
createUser shaaes SHA sha-password AES aes-password
createUser sha224 SHA-224 sha-password AES aes-password
createUser sha256 SHA-256 sha-password AES aes-password
createUser sha384 SHA-384 sha-password AES-192 aes-password
createUser sha512 SHA-512 sha-password AES-256 aes-password
createUser sha1aes256 SHA sha-password AES-256 aes-password
createUser signed SHA-256 sha-password
createUser nobody
rouser md5des priv
rouser shaaes priv
rouser sha224 priv
rouser sha256 priv
rouser sha384 priv
rouser sha512 priv
rouser sha1aes256 priv
rouser signed auth
rouser nobody noauth
";

impl Snmpd {
    /// Starts one, or says visibly that there is none.
    #[allow(clippy::print_stderr)]
    async fn start() -> Option<Snmpd> {
        let program =
            ["/usr/sbin/snmpd", "/usr/local/sbin/snmpd"].into_iter().find(|path| Path::new(path).exists());
        let Some(program) = program else {
            eprintln!("LEFT OUT: there is no snmpd here; install it to test against a foreign responder");
            return None;
        };
        let home = tempfile::tempdir().unwrap();
        let config = home.path().join("snmpd.conf");
        std::fs::write(&config, USERS).unwrap();
        // Taken and let go, so another process might get it in between: then readiness never comes and we say so.
        let at = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let child = Command::new(program)
            .args(["-f", "-C", "-LE", "d", "-p"])
            .arg(home.path().join("pid"))
            .arg("-c")
            .arg(&config)
            .arg(format!("udp:{at}"))
            .env("SNMP_PERSISTENT_DIR", home.path())
            .env("SNMPCONFPATH", home.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let snmpd = Snmpd { child, at, _home: home };
        let snmp =
            Snmp::bind(Options { retries: 14, timeout: Duration::from_secs(1), ..quick() }).await.unwrap();
        let public = Arc::new(Credential::v2c("public").unwrap());
        for _ in 0..100 {
            if snmp.ask(at, &public, Request::Get(vec![sys_descr()]), Patience::Patient).await.is_ok() {
                return Some(snmpd);
            }
        }
        panic!("snmpd did not answer");
    }
}

fn quick() -> Options {
    Options { rate: 0, timeout: Duration::from_millis(500), retries: 2, seed: 7, ..Options::default() }
}

fn oid(text: &str) -> Oid {
    text.parse().unwrap()
}

fn sys_descr() -> Oid {
    oid("1.3.6.1.2.1.1.1.0")
}

fn user<'a>(
    user: &'a str,
    auth: Option<(AuthProtocol, &'a str)>,
    privacy: Option<(PrivProtocol, &'a str)>,
) -> Arc<Credential> {
    Arc::new(Credential::v3(V3 { user, auth, privacy, ..V3::default() }).unwrap())
}

fn text(answer: &Answer) -> String {
    match &answer.response.varbinds[0].value {
        Value::OctetString(octets) => String::from_utf8_lossy(octets).into_owned(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn communities_ask_in_every_way() {
    let Some(snmpd) = Snmpd::start().await else { return };
    let snmp = Snmp::bind(quick()).await.unwrap();
    let v1 = Arc::new(Credential::v1("public").unwrap());
    let v2c = Arc::new(Credential::v2c("public").unwrap());
    for credential in [&v1, &v2c] {
        let answer =
            snmp.ask(snmpd.at, credential, Request::Get(vec![sys_descr()]), Patience::Normal).await.unwrap();
        assert_eq!(text(&answer), "engine under test");
        assert_eq!(answer.from, snmpd.at);
        assert_eq!(answer.engine_id, None);
    }
    let next = Request::GetNext(vec![oid("1.3.6.1.2.1.1")]);
    assert_eq!(text(&snmp.ask(snmpd.at, &v2c, next, Patience::Once).await.unwrap()), "engine under test");
    let bulk =
        || Request::GetBulk { non_repeaters: 0, max_repetitions: 10, oids: vec![oid("1.3.6.1.2.1.1")] };
    assert_eq!(snmp.ask(snmpd.at, &v2c, bulk(), Patience::Normal).await.unwrap().response.varbinds.len(), 10);
    assert_eq!(snmp.ask(snmpd.at, &v1, bulk(), Patience::Normal).await.unwrap().response.varbinds.len(), 1);
    let nothing = || Request::Get(vec![sys_descr(), oid("1.3.6.1.2.1.43.1.1")]);
    let answer = snmp.ask(snmpd.at, &v2c, nothing(), Patience::Normal).await.unwrap();
    assert_eq!(answer.response.varbinds[1].value, Value::NoSuchObject);
    let answer = snmp.ask(snmpd.at, &v1, nothing(), Patience::Normal).await.unwrap();
    assert_eq!((answer.response.error_status, answer.response.error_index), (2, 2));
    let wrong = Arc::new(Credential::v2c("private").unwrap());
    let silent = snmp.ask(snmpd.at, &wrong, Request::Get(vec![sys_descr()]), Patience::Once).await;
    assert_eq!(silent.unwrap_err(), Failure::Timeout);
}

#[tokio::test]
async fn users_of_every_protocol_are_let_in() {
    use {AuthProtocol as A, PrivProtocol as P};
    let Some(snmpd) = Snmpd::start().await else { return };
    let snmp = Snmp::bind(quick()).await.unwrap();
    for (name, auth, privacy) in [
        ("nobody", None, None),
        ("signed", Some((A::Sha256, "sha-password")), None),
        ("md5des", Some((A::Md5, "md5-password")), Some((P::Des, "des-password"))),
        ("shaaes", Some((A::Sha1, "sha-password")), Some((P::Aes128, "aes-password"))),
        ("sha224", Some((A::Sha224, "sha-password")), Some((P::Aes128, "aes-password"))),
        ("sha256", Some((A::Sha256, "sha-password")), Some((P::Aes128, "aes-password"))),
        ("sha384", Some((A::Sha384, "sha-password")), Some((P::Aes192, "aes-password"))),
        ("sha512", Some((A::Sha512, "sha-password")), Some((P::Aes256, "aes-password"))),
        ("sha1aes256", Some((A::Sha1, "sha-password")), Some((P::Aes256, "aes-password"))),
    ] {
        let user = user(name, auth, privacy);
        for _ in 0..2 {
            let asked = snmp.ask(snmpd.at, &user, Request::Get(vec![sys_descr()]), Patience::Normal).await;
            let answer = asked.unwrap_or_else(|failure| panic!("{name}: {failure}"));
            assert_eq!(text(&answer), "engine under test", "{name}");
            assert!(answer.engine_id.is_some());
        }
        let bulk = Request::GetBulk { non_repeaters: 0, max_repetitions: 50, oids: vec![oid("1.3.6.1.2.1")] };
        let answer = snmp.ask(snmpd.at, &user, bulk, Patience::Normal).await.unwrap();
        assert_eq!(answer.response.varbinds.len(), 50, "{name}");
    }
}

#[tokio::test]
async fn refusals_are_told_apart() {
    use {AuthProtocol as A, PrivProtocol as P};
    let Some(snmpd) = Snmpd::start().await else { return };
    let right = Some((A::Sha256, "sha-password"));
    for (credential, failure) in [
        (user("stranger", right, None), Failure::UnknownUser),
        (user("sha256", Some((A::Sha256, "wrong-password")), None), Failure::WrongDigest),
        (user("sha256", Some((A::Md5, "sha-password")), None), Failure::WrongDigest),
        (user("sha256", right, Some((P::Aes128, "wrong-password"))), Failure::Decryption),
        (user("signed", right, Some((P::Aes128, "aes-password"))), Failure::UnsupportedLevel),
    ] {
        let snmp = Snmp::bind(quick()).await.unwrap();
        let asked = snmp.ask(snmpd.at, &credential, Request::Get(vec![sys_descr()]), Patience::Normal).await;
        assert_eq!(asked.unwrap_err(), failure, "{credential:?}");
    }
}

#[tokio::test]
async fn a_sweep_finds_by_community_and_by_user() {
    use {AuthProtocol as A, PrivProtocol as P};
    let Some(snmpd) = Snmpd::start().await else { return };
    let snmp = Snmp::bind(quick()).await.unwrap();
    let found = |credentials: Vec<Arc<Credential>>| {
        let sweep = Sweep { peers: Box::new([snmpd.at].into_iter()), credentials, oids: vec![sys_descr()] };
        let mut events = snmp.sweep(sweep);
        async move {
            let mut seen = Vec::new();
            while let Some(event) = events.recv().await {
                match event {
                    SweepEvent::Answered { credential, .. } => {
                        seen.push(format!("answered to {}", credential.version()));
                    }
                    SweepEvent::Refused { user, reason, .. } => seen.push(format!("user {user}: {reason}")),
                    SweepEvent::NeedsCredentials { engine_id, .. } => {
                        assert!(!engine_id.is_empty());
                        seen.push("needs credentials".to_owned());
                    }
                    SweepEvent::Progress { .. } => {}
                    SweepEvent::Done(counts) => {
                        assert_eq!(counts.addresses, 1);
                        seen.push("done".to_owned());
                    }
                }
            }
            seen
        }
    };
    let v2c = |community: &str| Arc::new(Credential::v2c(community).unwrap());
    assert_eq!(found(vec![v2c("wrong"), v2c("public")]).await, ["answered to 2c", "done"]);
    let v1 = Arc::new(Credential::v1("public").unwrap());
    assert_eq!(found(vec![v1, v2c("wrong")]).await, ["answered to 1", "done"]);
    assert_eq!(found(vec![v2c("wrong")]).await, ["needs credentials", "done"]);
    let bad_auth = user("sha256", Some((A::Sha256, "wrong-password")), None);
    let bad_priv = user("sha256", Some((A::Sha256, "sha-password")), Some((P::Aes128, "wrong-password")));
    let good = user("sha256", Some((A::Sha256, "sha-password")), Some((P::Aes128, "aes-password")));
    assert_eq!(
        found(vec![v2c("wrong"), bad_auth, bad_priv, user("stranger", None, None), good]).await,
        [
            "user sha256: wrong authentication password",
            "user sha256: wrong privacy password",
            "user stranger: unknown user",
            "answered to 3",
            "done"
        ]
    );
}

/// A port of this machine that nobody listens on.
fn closed_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn a_closed_port_is_told_from_silence() {
    let port = closed_port();
    let snmp = Snmp::bind(Options { timeout: Duration::from_secs(20), ..quick() }).await.unwrap();
    let public = Arc::new(Credential::v2c("public").unwrap());
    for host in ["127.0.0.1", "::1"] {
        if host == "::1" && UdpSocket::bind("[::1]:0").is_err() {
            continue;
        }
        let peer = SocketAddr::new(host.parse().unwrap(), port);
        let asked = snmp.ask(peer, &public, Request::Get(vec![sys_descr()]), Patience::Normal).await;
        assert_eq!(asked.unwrap_err(), Failure::Unreachable, "{host}");
    }
    let peers = (0..1000u16).map(move |n| SocketAddr::from(([127, 5, (n >> 8) as u8, n as u8], port)));
    let sweep = Sweep { peers: Box::new(peers), credentials: vec![public], oids: vec![sys_descr()] };
    let mut events = snmp.sweep(sweep);
    let mut counts = None;
    while let Some(event) = events.recv().await {
        if let SweepEvent::Done(done) = event {
            counts = Some(done);
        }
    }
    let counts = counts.unwrap();
    assert_eq!((counts.addresses, counts.answered), (1000, 0));
    // The kernel may throttle some of its ICMP errors; most it tells.
    assert!(counts.unreachable > 500, "{counts:?}");
}

#[tokio::test]
async fn the_engine_ends_with_its_last_clone() {
    let snmp = Snmp::bind(quick()).await.unwrap();
    let other = snmp.clone();
    let at = SocketAddr::from(([127, 0, 0, 1], closed_port()));
    let peers = Box::new(std::iter::repeat(at));
    let credentials = vec![Arc::new(Credential::v2c("public").unwrap())];
    let mut events = snmp.sweep(Sweep { peers, credentials, oids: vec![sys_descr()] });
    assert!(events.recv().await.is_some());
    drop(snmp);
    assert!(events.recv().await.is_some());
    drop(other);
    // An endless sweep, and yet its channel closes.
    while events.recv().await.is_some() {}
}

/// One socket that answers for all of loopback, until it hears something empty.
fn responder() -> (u16, std::thread::JoinHandle<()>) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let answer = move || {
        let mut device = super::sim::Device::new(super::sim::Speaks::V2c);
        let mut buffer = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            if len == 0 {
                return;
            }
            let answer = device.receive(&buffer[..len], Duration::ZERO).unwrap();
            socket.send_to(&answer, from).unwrap();
        }
    };
    (port, std::thread::spawn(answer))
}

/// The engine stops being woken by packets in between, and must begin to be again.
#[tokio::test]
async fn a_crowd_is_answered_and_whoever_asks_behind_it_is_too() {
    let (port, thread) = responder();
    let patient = Options { retries: 14, timeout: Duration::from_secs(1), ..quick() };
    let snmp = Snmp::bind(patient).await.unwrap();
    let public = Arc::new(Credential::v2c("public").unwrap());
    let peer = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(0x7f01_0000 + n), port));
    let ask = |n| snmp.ask(peer(n), &public, Request::Get(vec![sys_descr()]), Patience::Normal);
    for _ in 0..3 {
        let crowd = futures::future::join_all((1..2_000).map(ask)).await;
        assert!(crowd.iter().all(|answer| answer.as_ref().is_ok_and(|answer| text(answer) == "sim")));
        for n in 1..10 {
            assert_eq!(text(&ask(n).await.unwrap()), "sim");
        }
    }
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[], ("127.0.0.1", port)).unwrap();
    thread.join().unwrap();
}

/// Beyond as many questions as the engine takes up, one is told so at once; no other one is lost.
#[tokio::test]
async fn more_questions_than_there_is_room_for_are_busy() {
    let (port, thread) = responder();
    let narrow = Options { window: 100, retries: 14, timeout: Duration::from_secs(1), ..quick() };
    let snmp = Snmp::bind(narrow).await.unwrap();
    let public = Arc::new(Credential::v2c("public").unwrap());
    let peer = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(0x7f01_0000 + n), port));
    let ask = |n| snmp.ask(peer(n), &public, Request::Get(vec![sys_descr()]), Patience::Normal);
    let all = futures::future::join_all((1..=3_000).map(ask)).await;
    let busy = all.iter().filter(|answer| matches!(answer, Err(Failure::Busy))).count();
    assert_eq!((busy, all.iter().filter(|answer| answer.is_ok()).count()), (2_900, 100));
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(&[], ("127.0.0.1", port)).unwrap();
    thread.join().unwrap();
}
