//! The admin's certificate authority and the certificates it issues.
//!
//! Private keys are made here and leave this file only into rustls; they are never printed. Whether a
//! site is still welcome is not decided here: a certificate says who, the store says whether.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use quire_proto::id::Millis;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::secret;

/// The name in the server's certificate: clients ask for this one whatever address they dial.
pub const SERVER_NAME: &str = "quire-admin";

/// A request of a P-256 key is about 300 octets, of a 4096-bit RSA key about 1,200.
const CSR_OCTETS_MAX: usize = 4096;

/// Who a client certificate says that the caller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The site's id, not its name.
    pub site: String,
    /// The node within the site's cluster.
    pub node: u64,
}

/// Why a certificate request was not answered with a certificate.
#[derive(Debug, thiserror::Error)]
pub enum BadRequest {
    /// Longer than any request of a sane key.
    #[error("the certificate request of node {0} is longer than {CSR_OCTETS_MAX} octets")]
    TooLong(u64),
    /// Not PKCS#10, an unknown key type, or not signed by its own key.
    #[error("the certificate request of node {0} is not valid: {1}")]
    Invalid(u64, rcgen::Error),
    /// 0 is nobody.
    #[error("a certificate request names no node")]
    Nobody,
}

/// The certificate authority of this Web Admin and its own server certificate.
pub struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("pin", &self.pin()).finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads `ca.pem` of a data directory, making both on first use.
    ///
    /// # Errors
    /// When the directory or the file cannot be made or read, or the file holds something else.
    pub fn open(dir: &Path, now: Millis) -> anyhow::Result<Self> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("create the data directory {}", dir.display()))?;
        let path = dir.join("ca.pem");
        // Two first starts at once must end with one authority.
        let lock = open_private(&dir.join("setup.lock"))?;
        lock.lock().context("lock setup.lock")?;
        if !path.try_exists().with_context(|| format!("look for {}", path.display()))? {
            write_private(&path, &new_authority(now).context("make a certificate authority")?)?;
        }
        let pem = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        Self::from_pem(&pem).with_context(|| format!("{} is damaged", path.display()))
    }

    fn from_pem(pem: &[u8]) -> anyhow::Result<Self> {
        let certificate = CertificateDer::from_pem_slice(pem).context("read the certificate")?;
        let key = PrivateKeyDer::from_pem_slice(pem).context("read the private key")?;
        let key = KeyPair::try_from(&key).context("use the private key")?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).context("use the certificate")?;
        Ok(Authority { certificate, issuer })
    }

    /// SHA-256 of the CA certificate in DER, as `sha256:<hex>`: what a site pins before its first call.
    pub fn pin(&self) -> String {
        format!("sha256:{}", data_encoding::HEXLOWER.encode(&secret::sha256(&self.certificate)))
    }

    /// The CA certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Checks that a request is signed by the key that it carries. Its subject and extensions are ignored:
    /// what goes into a certificate is this side's word alone.
    ///
    /// # Errors
    /// [`BadRequest`] names the node.
    pub fn check(&self, node: u64, csr: &[u8]) -> Result<Request, BadRequest> {
        if node == 0 {
            return Err(BadRequest::Nobody);
        }
        if csr.len() > CSR_OCTETS_MAX {
            return Err(BadRequest::TooLong(node));
        }
        let csr = CertificateSigningRequestDer::from(csr.to_vec());
        let parsed = CertificateSigningRequestParams::from_der(&csr)
            .map_err(|error| BadRequest::Invalid(node, error))?;
        Ok(Request { node, key: parsed.public_key })
    }

    /// A client certificate for one node of a site.
    ///
    /// # Errors
    /// When signing fails, which means that this authority is broken.
    pub fn sign(&self, request: &Request, site: &str, now: Millis) -> anyhow::Result<Vec<u8>> {
        let node = request.node;
        let mut params = leaf(now, &format!("site={site} node={node}"), ExtendedKeyUsagePurpose::ClientAuth);
        let uri = format!("quire://site/{site}/node/{node}");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().context("write the site's URI")?)];
        let certificate = params.signed_by(&request.key, &self.issuer).context("sign a certificate")?;
        Ok(certificate.der().to_vec())
    }

    /// TLS 1.3, `h2`, client certificates of this authority asked for but not demanded: enrolment has none yet.
    ///
    /// # Errors
    /// When `server.pem` cannot be read or written, or rustls refuses what is in it.
    pub fn server_config(&self, dir: &Path, now: Millis) -> anyhow::Result<Arc<ServerConfig>> {
        let (chain, key) = self.server_certificate(dir, now).context("make the server certificate")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).context("trust the own authority")?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .context("build the verifier of client certificates")?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("choose TLS 1.3")?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .context("use the server certificate")?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A resumed session would carry the certificate of an earlier one.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Arc::new(config))
    }

    /// The key stays, the certificate is new at every start, so that it never runs out while clients pin the CA.
    fn server_certificate(
        &self,
        dir: &Path,
        now: Millis,
    ) -> anyhow::Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let path = dir.join("server.key");
        if !path.try_exists().with_context(|| format!("look for {}", path.display()))? {
            write_private(&path, &KeyPair::generate()?.serialize_pem())?;
        }
        let pem = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let key = KeyPair::from_pem(&pem).with_context(|| format!("{} is damaged", path.display()))?;
        let mut params = leaf(now, SERVER_NAME, ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = vec![SanType::DnsName(SERVER_NAME.try_into()?)];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let chain = vec![certificate.der().clone(), self.certificate.clone()];
        Ok((chain, PrivatePkcs8KeyDer::from(key.serialize_der()).into()))
    }
}

/// A certificate request whose signature held.
#[derive(Debug)]
pub struct Request {
    /// For which node.
    pub node: u64,
    key: rcgen::PublicKey,
}

/// The site and node in the certificate that a caller proved to hold; rustls has checked its chain and dates.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => {
            let (site, node) = uri.strip_prefix("quire://site/")?.split_once("/node/")?;
            Some(Identity { site: site.to_owned(), node: node.parse().ok()? })
        }
        _ => None,
    })
}

fn new_authority(now: Millis) -> anyhow::Result<String> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "Quire Web Admin");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    set_validity(&mut params, now, 30 * 365);
    let certificate = params.self_signed(&key)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()))
}

fn leaf(now: Millis, name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    // A leader renews with a SignRequest long before the end.
    set_validity(&mut params, now, 5 * 365);
    params
}

/// From yesterday, for clocks that run behind, until `days` from now.
fn set_validity(params: &mut CertificateParams, now: Millis, days: i64) {
    let today = i64::try_from(now.0 / 1000).unwrap_or(0);
    let date = |days: i64| {
        let at = jiff::Timestamp::from_second(today.saturating_add(days * 86_400));
        let date = at.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_zoned(jiff::tz::TimeZone::UTC).date();
        let part = |n: i8| u8::try_from(n).unwrap_or(1);
        rcgen::date_time_ymd(i32::from(date.year()), part(date.month()), part(date.day()))
    };
    (params.not_before, params.not_after) = (date(-1), date(days));
}

fn open_private(path: &Path) -> anyhow::Result<fs::File> {
    fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("open {}", path.display()))
}

/// Whole or not at all, readable by the owner alone.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let draft = path.with_extension("draft");
    let write = || -> io::Result<()> {
        let _ = fs::remove_file(&draft);
        let mut file = fs::OpenOptions::new().create_new(true).write(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().with_context(|| format!("write {}", path.display()))
}
