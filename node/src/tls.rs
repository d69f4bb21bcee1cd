//! Certificates and TLS: a private CA, requests, pins, and TLS 1.3 ends whose identity can be replaced.
//!
//! The lowest floor of the node: it knows nothing of clusters. The `ring` provider and TLS 1.3 are the
//! only choices. A private key leaves this module only as PKCS#8 octets for its own file.
//!
//! What it must never do: accept a peer that no configured CA vouches for, sign what a request asks
//! for beyond its public key, or print a key.

mod trust;

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use quire_proto::id::Millis;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime,
};
use tokio::io::{AsyncRead, AsyncWrite};
use zeroize::Zeroizing;

pub use trust::Trust;

/// The only protocol inside: gRPC (RFC 9113).
const ALPN_H2: &[u8] = b"h2";

/// What a caller can do nothing about but report.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Octets that are no certificate, key or request, or that do not fit together.
    #[error("{what}: {reason}")]
    Material {
        /// Which piece.
        what: &'static str,
        /// What the parser or signer said.
        reason: String,
    },
    /// The other end could not be agreed with.
    #[error("TLS handshake: {0}")]
    Handshake(#[from] std::io::Error),
}

fn material(what: &'static str) -> impl FnOnce(rcgen::Error) -> TlsError {
    move |reason| TlsError::Material { what, reason: reason.to_string() }
}

fn refused(what: &'static str, reason: impl fmt::Display) -> TlsError {
    TlsError::Material { what, reason: reason.to_string() }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// SHA-256 of a certificate's DER: what a token carries and a human compares.
pub fn pin(certificate_der: &[u8]) -> [u8; 32] {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate_der);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// A P-256 key pair. Its `Debug` shows nothing.
pub struct Key(KeyPair);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    /// When the system has none.
    pub fn generate() -> Result<Self, TlsError> {
        KeyPair::generate().map(Key).map_err(material("generate a key"))
    }

    /// Reads PKCS#8.
    ///
    /// # Errors
    /// When the octets are no P-256 key.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, TlsError> {
        KeyPair::try_from(der).map(Key).map_err(material("read a private key"))
    }

    /// PKCS#8, for the key's own file.
    pub fn to_pkcs8(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.0.serialize_der())
    }

    /// A PKCS#10 request for this key. The signer ignores its subject.
    ///
    /// # Errors
    /// When signing fails.
    pub fn request(&self, common_name: &str) -> Result<Vec<u8>, TlsError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = named(common_name);
        let request = params.serialize_request(&self.0).map_err(material("write a certificate request"))?;
        Ok(request.der().to_vec())
    }
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// The names that a certificate will carry; nothing of the request's own wishes survives.
#[derive(Clone, Debug)]
pub struct Names {
    /// Subject common name.
    pub common_name: String,
    /// Subject alternative DNS name: what a client checks.
    pub dns: String,
    /// Subject alternative URI: what a server reads the peer's identity from.
    pub uri: String,
}

/// A certificate authority with its key.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", data_encoding::HEXLOWER.encode(&pin(&self.certificate)[..8]))
    }
}

impl Authority {
    /// A new self-signed P-256 authority that may sign leaves only.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn generate(common_name: &str) -> Result<Self, TlsError> {
        let key = Key::generate()?.0;
        let params = of_authority(named(common_name));
        let certificate = params.self_signed(&key).map_err(material("sign the CA certificate"))?;
        Ok(Authority { certificate: certificate.into(), issuer: Issuer::new(params, key) })
    }

    /// Restores an authority from its certificate and PKCS#8 key.
    ///
    /// # Errors
    /// When either does not parse.
    pub fn restore(certificate_der: &[u8], pkcs8: &[u8]) -> Result<Self, TlsError> {
        let certificate = CertificateDer::from(certificate_der.to_vec());
        let key = Key::from_pkcs8(pkcs8)?.0;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).map_err(material("read the CA certificate"))?;
        Ok(Authority { certificate, issuer })
    }

    /// The CA certificate, DER.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The CA's key as PKCS#8: seal it before it goes anywhere.
    pub fn private_key(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.issuer.key().serialize_der())
    }

    /// Certifies another authority's key under its name: whoever knows only this one can then verify what that one signs.
    ///
    /// # Errors
    /// When signing fails.
    pub fn vouch_for(&self, other: &Authority, common_name: &str) -> Result<Vec<u8>, TlsError> {
        let params = of_authority(named(common_name));
        let certificate = params.signed_by(other.issuer.key(), &self.issuer);
        Ok(certificate.map_err(material("sign the new CA's key"))?.der().to_vec())
    }

    /// Certifies the public key of a PKCS#10 request under `names`, for both ends of TLS, until a moment.
    ///
    /// # Errors
    /// When the request is malformed or not signed by its own key.
    pub fn sign(&self, request_der: &[u8], names: &Names, until: Millis) -> Result<Vec<u8>, TlsError> {
        let request = CertificateSigningRequestDer::from(request_der);
        let request = CertificateSigningRequestParams::from_der(&request)
            .map_err(material("read a certificate request"))?;
        let mut params = lasting();
        params.not_after = rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(until.0 / 1_000);
        params.distinguished_name = named(&names.common_name);
        let text = |name: &str| name.try_into().map_err(material("write a certificate name"));
        params.subject_alt_names = vec![SanType::DnsName(text(&names.dns)?), SanType::URI(text(&names.uri)?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate =
            params.signed_by(&request.public_key, &self.issuer).map_err(material("sign a certificate"))?;
        Ok(certificate.der().to_vec())
    }
}

fn of_authority(name: DistinguishedName) -> CertificateParams {
    let mut params = lasting();
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Of a CA, which is replaced by command: an expiry date would only stop sites that nobody visits. It begins long ago,
/// also for leaves: a clock that was set back by an empty battery must not lock a node out.
fn lasting() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params
}

/// A certificate with its key, replaceable while in use: new connections present the new one.
pub struct Identity {
    current: RwLock<Arc<CertifiedKey>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity(..)")
    }
}

impl Identity {
    /// Leaf first, then the CA, so that a peer that only has a pin can find it.
    ///
    /// # Errors
    /// When the key does not parse or does not belong to the leaf.
    pub fn new(chain: &[&[u8]], key: &Key) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Identity { current: RwLock::new(certified(chain, key)?) }))
    }

    /// Presents another certificate from the next connection on.
    ///
    /// # Errors
    /// As [`Identity::new`]; the old identity then stays.
    pub fn replace(&self, chain: &[&[u8]], key: &Key) -> Result<(), TlsError> {
        let next = certified(chain, key)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn now(&self) -> Arc<CertifiedKey> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn certified(chain: &[&[u8]], key: &Key) -> Result<Arc<CertifiedKey>, TlsError> {
    let chain = chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_pkcs8().to_vec()));
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|reason| refused("use a private key", reason))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(Arc::new(certified))
        }
        Err(reason) => Err(refused("use a certificate with its key", reason)),
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.now())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The accepting end: a peer's certificate must come from the CA; whether one is needed, the
/// application decides, because joining has none yet.
#[derive(Clone)]
pub struct Acceptor(tokio_rustls::TlsAcceptor);

impl Acceptor {
    /// Accepts with `identity` clients that `trust` vouches for at that moment.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn new(identity: Arc<Identity>, trust: Arc<Trust>) -> Result<Self, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|reason| refused("configure TLS", reason))?
            .with_client_cert_verifier(trust)
            .with_cert_resolver(identity);
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        // No tickets: every connection presents the identity of its moment.
        config.send_tls13_tickets = 0;
        Ok(Acceptor(tokio_rustls::TlsAcceptor::from(Arc::new(config))))
    }

    /// Shakes hands with one connection.
    ///
    /// # Errors
    /// When the peer and we cannot agree.
    pub async fn accept<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
    ) -> Result<tokio_rustls::server::TlsStream<S>, TlsError> {
        Ok(self.0.accept(stream).await?)
    }
}

/// The connecting end.
#[derive(Clone)]
pub struct Connector(tokio_rustls::TlsConnector);

impl Connector {
    /// Presents `identity` (if any) to servers that `trust` vouches for at that moment.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn new(identity: Option<Arc<Identity>>, trust: Arc<Trust>) -> Result<Self, TlsError> {
        Self::build(identity, trust)
    }

    /// Trusts a server whose chain ends in the CA with this [`pin`]; the name is not looked at,
    /// because who holds nothing but a pin cannot know it. Presents no certificate.
    ///
    /// # Errors
    /// When TLS cannot be set up at all.
    pub fn pinned(ca_pin: [u8; 32]) -> Result<Self, TlsError> {
        Self::build(None, Arc::new(PinnedCa { pin: ca_pin, provider: provider() }))
    }

    fn build(
        identity: Option<Arc<Identity>>,
        verifier: Arc<dyn ServerCertVerifier>,
    ) -> Result<Self, TlsError> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|reason| refused("configure TLS", reason))?
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let mut config = match identity {
            Some(identity) => builder.with_client_cert_resolver(identity),
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![ALPN_H2.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Connector(tokio_rustls::TlsConnector::from(Arc::new(config))))
    }

    /// Shakes hands, expecting the certificate to carry `server_name`.
    ///
    /// # Errors
    /// When the name is no DNS name or the server is not who it should be.
    pub async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        server_name: &str,
        stream: S,
    ) -> Result<tokio_rustls::client::TlsStream<S>, TlsError> {
        let name = ServerName::try_from(server_name.to_owned())
            .map_err(|reason| refused("check the server's name", reason))?;
        Ok(self.0.connect(name, stream).await?)
    }
}

/// Verifies a chain against the CA that it brings itself, if that CA is the pinned one.
#[derive(Debug)]
struct PinnedCa {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        // While a CA is replaced there may be another one between it and the server.
        let ca = intermediates.iter().find(|der| pin(der) == self.pin).ok_or(unknown)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// What a certificate says that others judge it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Its first moment.
    pub from: Millis,
    /// Its last moment.
    pub until: Millis,
    /// DER of the name of who signed it; a root's own.
    pub issuer: Vec<u8>,
    /// DER of its own name.
    pub subject: Vec<u8>,
    /// DER of its public key.
    pub public_key: Vec<u8>,
}

/// Reads the first certificate of `der`, and what is behind it; `None` where there is none.
pub fn said_of(der: &[u8]) -> Option<(Said, &[u8])> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (rest, certificate) = X509Certificate::from_der(der).ok()?;
    let millis = |seconds: i64| Millis(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000));
    let said = Said {
        from: millis(certificate.validity().not_before.timestamp()),
        until: millis(certificate.validity().not_after.timestamp()),
        issuer: certificate.issuer().as_raw().to_vec(),
        subject: certificate.subject().as_raw().to_vec(),
        public_key: certificate.public_key().raw.to_vec(),
    };
    Some((said, rest))
}

/// The first URI among a certificate's subject alternative names.
pub fn uri_of(certificate_der: &[u8]) -> Option<String> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(certificate_der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
