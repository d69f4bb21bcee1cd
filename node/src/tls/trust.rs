//! Whose certificates count: replaceable while in use, and asked again about connections that stand.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use quire_proto::id::Millis;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::{TlsError, pin, provider, refused, said_of};

/// Certificates remembered as good: more than a cluster has members; forgotten together at the bound.
const REMEMBERED: usize = 1024;

/// The CAs that vouch for peers. Connections made before a change are looked at again by [`Trust::vouches`].
pub struct Trust {
    current: RwLock<Arc<Trusted>>,
}

struct Trusted {
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    /// Hashes of leaves that were found good since the last change, and when they end.
    good: Mutex<HashMap<[u8; 32], Millis>>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust(..)")
    }
}

impl Trusted {
    fn of(authorities: &[&[u8]]) -> Result<Arc<Self>, TlsError> {
        let mut roots = RootCertStore::empty();
        for der in authorities {
            roots
                .add(CertificateDer::from(der.to_vec()))
                .map_err(|reason| refused("read the CA certificate", reason))?;
        }
        let roots = Arc::new(roots);
        let servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider())
            .build()
            .map_err(|reason| refused("verify servers", reason))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|reason| refused("verify clients", reason))?;
        Ok(Arc::new(Trusted { servers, clients, good: Mutex::default() }))
    }
}

impl Trust {
    /// Trusts these CAs alone.
    ///
    /// # Errors
    /// When one of them does not parse.
    pub fn new(authorities: &[&[u8]]) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Trust { current: RwLock::new(Trusted::of(authorities)?) }))
    }

    /// Trusts these CAs alone from now on.
    ///
    /// # Errors
    /// As [`Trust::new`]; who was trusted before then still is.
    pub fn replace(&self, authorities: &[&[u8]]) -> Result<(), TlsError> {
        let next = Trusted::of(authorities)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(())
    }

    fn now(&self) -> Arc<Trusted> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the chain that a client showed when it connected would be accepted at `now`. Once found good it is until
    /// the leaf's end or the next change.
    pub fn vouches(&self, chain: &[CertificateDer<'_>], now: Millis) -> bool {
        let Some((leaf, rest)) = chain.split_first() else { return false };
        let trusted = self.now();
        let mut good = trusted.good.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = pin(leaf);
        if good.get(&hash).is_some_and(|until| now <= *until) {
            return true;
        }
        let at = UnixTime::since_unix_epoch(Duration::from_millis(now.0));
        if trusted.clients.verify_client_cert(leaf, rest, at).is_err() {
            return false;
        }
        if good.len() >= REMEMBERED {
            good.clear();
        }
        let until = said_of(leaf).map_or(now, |(said, _)| said.until);
        good.insert(hash, until);
        true
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.now().servers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().servers.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().servers.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Trust {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    /// None: they may change, and our clients have one certificate to show.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.now().clients.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().clients.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.now().clients.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.now().clients.supported_verify_schemes()
    }
}
