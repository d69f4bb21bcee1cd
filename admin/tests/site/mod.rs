//! A site as the Web Admin sees it: real TLS, real gRPC, keys of its own. Written against the schema alone,
//! so that it shares no mistake with the node.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part of this module")]
#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use prost::Message as _;
use quire_admin::{Options, Server};
use quire_proto::reading::{Counters, Facts, Reading, Status, Supply, SupplyKind, SupplyState, Via};
use quire_proto::upstream::enrollment_client::EnrollmentClient;
use quire_proto::upstream::link_client::LinkClient;
use quire_proto::upstream::{
    Batch, CertificateRequest, CheckIn, FromSite, Hello, RegisterReply, RegisterRequest, ToSite, from_site,
    to_site,
};
use quire_proto::{convert, store as wire};
use rcgen::{CertificateParams, KeyPair};
use ring::digest::{SHA256, digest};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Streaming};

/// A server of this test.
pub struct Admin {
    pub listen: SocketAddr,
    pub console: SocketAddr,
    pub pin: String,
    pub store: quire_admin::store::Store,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<anyhow::Result<()>>,
}

impl Admin {
    pub async fn start(dir: &Path) -> Admin {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let options = Options { data_dir: dir.to_owned(), listen: free, console: free };
        let stop = CancellationToken::new();
        let server = Server::start(&options, stop.clone()).await.unwrap();
        let (listen, console, pin) = (server.listen(), server.console(), server.pin().to_owned());
        let store = server.store().clone();
        Admin { listen, console, pin, store, stop, task: tokio::spawn(server.wait()) }
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }

    pub async fn add_site(&self, name: &str) -> String {
        self.store.add_site(name, now()).await.unwrap()
    }
}

pub fn now() -> quire_proto::id::Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    quire_proto::id::Millis(since.as_millis() as u64)
}

/// Believes the server when the last certificate of its chain has the pinned hash; then checks the chain.
#[derive(Debug)]
struct Pinned(String);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let ca = chain.last().ok_or(rustls::Error::NoCertificatesPresented)?;
        let pin = format!("sha256:{}", data_encoding::HEXLOWER.encode(digest(&SHA256, ca).as_ref()));
        if pin != self.0 {
            return Err(rustls::Error::General("the pin does not match".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::new(rustls::crypto::ring::default_provider()),
        );
        let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, chain, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn client(pin: &str) -> rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned(pin.to_owned())))
}

pub async fn connect(
    address: SocketAddr,
    mut config: ClientConfig,
) -> Result<Channel, tonic::transport::Error> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let dial = tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let tcp = TcpStream::connect(address).await?;
            let name = ServerName::try_from("quire-admin").unwrap();
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, tcp).await?))
        }
    });
    Endpoint::from_static("http://quire-admin").connect_with_connector(dial).await
}

/// A channel without a certificate.
pub async fn anonymous(address: SocketAddr, pin: &str) -> Result<Channel, tonic::transport::Error> {
    connect(address, client(pin).with_no_client_auth()).await
}

/// A cluster with the keys of its nodes, which are numbered from 1.
pub struct Cluster {
    pub id: Vec<u8>,
    keys: Vec<KeyPair>,
    certificates: Vec<Vec<u8>>,
    pin: String,
    pub site: String,
}

impl Cluster {
    pub fn new(id: u8, nodes: usize) -> Cluster {
        let keys = (0..nodes).map(|_| KeyPair::generate().unwrap()).collect();
        Cluster { id: vec![id; 16], keys, certificates: Vec::new(), pin: String::new(), site: String::new() }
    }

    pub fn request(&self, code: &str) -> RegisterRequest {
        let requests = (1..).zip(&self.keys).map(|(node, key)| csr(node, key)).collect();
        RegisterRequest {
            code: code.to_owned(),
            cluster_id: self.id.clone().into(),
            cluster_name: "acme".to_owned(),
            requests,
        }
    }

    pub async fn try_enroll(&mut self, admin: &Admin, code: &str) -> Result<RegisterReply, tonic::Status> {
        self.enroll_at(admin.listen, &admin.pin, code).await
    }

    pub async fn enroll_at(
        &mut self,
        address: SocketAddr,
        pin: &str,
        code: &str,
    ) -> Result<RegisterReply, tonic::Status> {
        let channel = anonymous(address, pin).await.unwrap();
        let reply = EnrollmentClient::new(channel).register(self.request(code)).await?.into_inner();
        self.certificates = reply.certificates.iter().map(|one| one.certificate_der.to_vec()).collect();
        pin.clone_into(&mut self.pin);
        self.site.clone_from(&reply.site);
        Ok(reply)
    }

    pub async fn enroll(&mut self, admin: &Admin, code: &str) {
        self.try_enroll(admin, code).await.unwrap();
    }

    /// A channel with the certificate of a node.
    pub async fn channel(&self, address: SocketAddr, node: usize) -> Channel {
        let certificate = CertificateDer::from(self.certificates[node - 1].clone());
        let key = PrivatePkcs8KeyDer::from(self.keys[node - 1].serialize_der());
        let config = client(&self.pin).with_client_auth_cert(vec![certificate], key.into()).unwrap();
        connect(address, config).await.unwrap()
    }

    pub async fn link(&self, address: SocketAddr, node: usize) -> Link {
        Link::open(self.channel(address, node).await).await.unwrap()
    }

    pub fn hello(&self, node: u64) -> from_site::What {
        from_site::What::Hello(Hello {
            cluster_id: self.id.clone().into(),
            node,
            node_name: format!("n{node}"),
            mode: "service".to_owned(),
            wire_version: quire_proto::WIRE_VERSION,
            version: "0.1.0".to_owned(),
            outbox_base: 0,
        })
    }

    /// The Hello of a cluster that was recovered and numbers from `base` on.
    pub fn recovered(&self, node: u64, base: u64) -> from_site::What {
        match self.hello(node) {
            from_site::What::Hello(hello) => from_site::What::Hello(Hello { outbox_base: base, ..hello }),
            other => other,
        }
    }

    /// A link that was welcomed, and the mark.
    pub async fn welcomed(&self, address: SocketAddr, node: usize, epoch: u64) -> (Link, u64) {
        let mut link = self.link(address, node).await;
        link.send(epoch, self.hello(node as u64)).await;
        match link.next().await {
            Some(to_site::What::Welcome(welcome)) => (link, welcome.through),
            other => panic!("no welcome but {other:?}"),
        }
    }
}

pub fn csr(node: u64, key: &KeyPair) -> CertificateRequest {
    // A subject that the server must ignore.
    let mut params = CertificateParams::new(vec!["quire-admin".to_owned()]).unwrap();
    params.distinguished_name.push(rcgen::DnType::CommonName, "site=another node=99");
    let csr_der = params.serialize_request(key).unwrap().der().to_vec().into();
    CertificateRequest { node, name: format!("n{node}"), csr_der }
}

/// One stream.
pub struct Link {
    to: mpsc::Sender<FromSite>,
    from: Streaming<ToSite>,
}

impl Link {
    pub async fn open(channel: Channel) -> Result<Link, tonic::Status> {
        let (to, outbound) = mpsc::channel(16);
        let from = LinkClient::new(channel).stream(ReceiverStream::new(outbound)).await?.into_inner();
        Ok(Link { to, from })
    }

    pub async fn send(&self, epoch: u64, what: from_site::What) {
        let _ = self.to.send(FromSite { epoch, what: Some(what) }).await;
    }

    /// The next answer; `None` at the end of the stream, however it ended.
    pub async fn next(&mut self) -> Option<to_site::What> {
        self.answer().await.ok().flatten()
    }

    pub async fn answer(&mut self) -> Result<Option<to_site::What>, Code> {
        let answer = tokio::time::timeout(std::time::Duration::from_secs(30), self.from.message());
        let answer = answer.await.expect("an answer or the end within 30 s");
        answer.map(|answer| answer.and_then(|answer| answer.what)).map_err(|status| status.code())
    }

    pub async fn batch(
        &mut self,
        epoch: u64,
        first_seq: u64,
        entries: Vec<Vec<u8>>,
    ) -> Option<to_site::What> {
        let entries = entries.into_iter().map(Into::into).collect();
        self.send(epoch, from_site::What::Batch(Batch { first_seq, entries })).await;
        self.next().await
    }

    /// Waits until the server says why it refuses, then for the end.
    pub async fn refused(&mut self) -> (String, u64) {
        match self.next().await {
            Some(to_site::What::Refused(refused)) => {
                assert!(self.next().await.is_none(), "the stream ends after a refusal");
                (refused.reason, refused.epoch)
            }
            other => panic!("not refused but {other:?}"),
        }
    }

    pub async fn check_in(&self, epoch: u64) {
        self.check_in_of(epoch, Vec::new()).await;
    }

    /// With these members; none, as older versions say it.
    pub async fn check_in_of(&self, epoch: u64, nodes: Vec<u64>) {
        let check_in =
            CheckIn { at_ms: now().0, members: 3, alive: 3, devices: 340, units: 12, pending: 7, nodes };
        self.send(epoch, from_site::What::CheckIn(check_in)).await;
    }
}

pub fn received(answer: Option<to_site::What>) -> u64 {
    match answer {
        Some(to_site::What::Received(received)) => received.through,
        other => panic!("not received but {other:?}"),
    }
}

/// A Web Admin at which a cluster of three nodes is enrolled as `acme-berlin`.
pub async fn enrolled() -> (tempfile::TempDir, Admin, Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::start(dir.path()).await;
    let code = admin.add_site("acme-berlin").await;
    let mut cluster = Cluster::new(7, 3);
    cluster.enroll(&admin, &code).await;
    (dir, admin, cluster)
}

/// An outbox entry with a reading of the device `d<seq % 3>`.
pub fn entry(seq: u64) -> Vec<u8> {
    let row = wire::ReadingRow {
        id: format!("07070707-1-{seq}"),
        device: format!("d{}", seq % 3),
        unit: "hq:127.2.0.0/24".to_owned(),
        at_ms: seq.wrapping_mul(1000).wrapping_add(1_700_000_000_000),
        node: 1,
        epoch: 5,
        reading: convert::encode(&reading(seq)),
        late: false,
        address: format!("127.2.0.{}", seq % 3),
        ..Default::default()
    };
    let first_seen_ms = 1_600_000_000_000;
    let zone = "hq".to_owned();
    wire::OutboxEntry { seq, row: Some(row), zone, first_seen_ms, ..Default::default() }.encode_to_vec()
}

pub fn entries(from: u64, to: u64) -> Vec<Vec<u8>> {
    (from..=to).map(entry).collect()
}

pub fn reading(seq: u64) -> Reading {
    let supply = Supply {
        index: 1,
        name: "Black Cartridge".into(),
        kind: SupplyKind::Toner,
        color: Some("black".into()),
        level: Some(870),
        max: Some(1000),
        unit: None,
        percent: Some(87),
        state: SupplyState::Ok,
    };
    Reading {
        facts: Facts {
            vendor: Some("HP".to_owned()),
            model: Some("HP LaserJet M605".to_owned()),
            serial: Some(format!("SN{}", seq % 3)),
            ..Facts::default()
        }
        .into(),
        counters: Counters { total: Some(seq.wrapping_add(1000)), ..Counters::default() },
        supplies: vec![supply],
        status: Some(Status::Idle),
        via: vec![Via::SnmpV2c],
        ..Reading::default()
    }
}
