//! One node that leads, with a webhook that says no before it says yes; and servers that prove nothing.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use quire_coordinator::tables::ReadExt as _;
use quire_proto::store::{AlertRow, Claim};
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::net::TcpListener;

use super::*;
use crate::cluster::Start;

/// Idempotency keys, as they came.
type Keys = Arc<Mutex<Vec<String>>>;

/// A webhook that refuses the first `refusals` requests.
async fn hook(refusals: usize) -> (SocketAddr, Keys) {
    let keys = Keys::default();
    let keep = Arc::clone(&keys);
    let take = move |headers: HeaderMap| async move {
        let mut keys = keep.lock().unwrap();
        keys.push(headers.get("idempotency-key").unwrap().to_str().unwrap().to_owned());
        if keys.len() > refusals { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/secret", post(take))).await });
    (at, keys)
}

async fn apply(cluster: &Cluster, at: SocketAddr, when: &str) {
    let text =
        format!("[[alert]]\nname = \"link\"\nwhen = '{when}'\nnotify = [\"webhook:http://{at}/secret\"]\n");
    let (settings, _) = cluster.seal_settings(&text, "test").unwrap();
    assert!(!settings.toml.contains("secret\""), "{}", settings.toml);
    cluster.propose(Kind::PutSettings(settings), Duration::from_secs(20)).await.unwrap();
}

async fn claim(cluster: &Cluster) -> Epoch {
    let claim = Claim { node: cluster.me().id.0, ..Claim::default() };
    let outcome = cluster.propose(Kind::Claim(claim), Duration::from_secs(20)).await.unwrap();
    match outcome.result {
        Some(Answer::Epoch(epoch)) => Epoch(epoch),
        other => panic!("{other:?}"),
    }
}

/// Waits until the one alert is in this state, and its webhook was told so.
async fn told(cluster: &Cluster, open: bool) -> AlertRow {
    let look = async {
        loop {
            let rows: Vec<AlertRow> = cluster.view().all(Table::Alerts, &[]).unwrap();
            let is =
                |row: &&AlertRow| row.open == open && row.deliveries.iter().any(|d| d.serial == row.serial);
            if let Some(row) = rows.iter().find(is) {
                assert_eq!(rows.len(), 1);
                return row.clone();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), look).await.expect("told within a minute")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_said_again_under_one_id_and_what_is_taken_is_not() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let dir = tempfile::TempDir::new().unwrap();
    let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let start =
        Start { data_dir: dir.path().join("n1"), name: Some("n1".into()), listen, ..Start::default() };
    let cluster = Cluster::init(start, "site").await.unwrap();
    let (at, keys) = hook(1).await;
    apply(&cluster, at, "cluster.upstream == \"disabled\"").await;
    let (held, claims) = watch::channel(Some(claim(&cluster).await));
    let stop = CancellationToken::new();
    let alerter = tokio::spawn(Alerter::new(cluster.clone(), claims.clone()).run(stop.clone()));
    let notifier = tokio::spawn(Notifier::new(cluster.clone(), claims).run(stop.clone()));

    let raised = told(&cluster, true).await;
    assert_eq!(
        *keys.lock().unwrap(),
        [format!("{}-{}", raised.id, raised.serial), format!("{}-{}", raised.id, raised.serial)]
    );
    assert!(!raised.deliveries[0].target.contains("secret"), "{raised:?}");
    // Another leader has nothing to add, until the rule stops holding.
    held.send_replace(Some(claim(&cluster).await));
    apply(&cluster, at, "cluster.upstream == \"connected\"").await;
    let cleared = told(&cluster, false).await;
    assert_eq!(cleared.id, raised.id);
    let keys = keys.lock().unwrap().clone();
    assert_eq!(keys[2..], [format!("{}-{}", cleared.id, cleared.serial)]);
    stop.cancel();
    alerter.await.unwrap().unwrap();
    notifier.await.unwrap().unwrap();
    cluster.shutdown().await;
}

/// A server with a certificate that nobody vouches for; answers whether anybody finished a handshake with it.
pub(super) async fn impostor() -> (SocketAddr, tokio::task::JoinHandle<bool>) {
    drop(rustls::crypto::ring::default_provider().install_default());
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der());
    let config = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key.into())
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let accepting = async move {
        let (stream, _) = listener.accept().await.unwrap();
        match acceptor.accept(stream).await {
            Err(_) => false,
            // TLS 1.3 lets a server finish before the client has judged it; no request may follow.
            Ok(mut stream) => {
                let mut first = [0; 1];
                matches!(tokio::io::AsyncReadExt::read(&mut stream, &mut first).await, Ok(1))
            }
        }
    };
    (at, tokio::spawn(accepting))
}
