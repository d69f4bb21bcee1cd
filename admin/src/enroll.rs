//! Enrolment: a one-time code becomes certificates for the nodes of a cluster.
//!
//! The only call that is answered without a certificate; therefore it trusts nothing but the code.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message as _;
use quire_proto::id::Millis;
use quire_proto::upstream::enrollment_server::Enrollment;
use quire_proto::upstream::{CertificateRequest, IssuedCertificate, RegisterReply, RegisterRequest};
use tonic::{Request, Response, Status};

use crate::clock;
use crate::secret;
use crate::store::{RegisterError, Registration, Store};
use crate::tls::{Authority, BadRequest};

/// A cluster has at most a few hundred nodes; those that may lead and are not in it ask over the link later.
pub(crate) const REQUESTS_MAX: usize = 512;
/// Of node and cluster names.
const NAME_MAX: usize = 256;
/// What a person who mistypes needs, and what leaves a guesser nothing of 120 bits.
const WRONG_PER_MINUTE: u32 = 5;
/// Peers remembered, 64 octets each; beyond it all are forgotten, which helps only a guesser with as many
/// addresses, and he guesses at 120 bits.
const PEERS_MAX: usize = 4096;

/// The service that answers `Register`.
#[derive(Debug)]
pub(crate) struct EnrollmentService {
    pub(crate) authority: Arc<Authority>,
    pub(crate) store: Store,
    pub(crate) wrong: WrongCodes,
}

#[tonic::async_trait]
impl Enrollment for EnrollmentService {
    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterReply>, Status> {
        let peer = request.remote_addr().map(|address| address.ip());
        let now = clock::now();
        if self.wrong.blocked(peer, now) {
            return Err(Status::resource_exhausted("too many wrong codes: wait a minute"));
        }
        let reply = self.answer(&request.into_inner(), now).await;
        if reply.as_ref().is_err_and(|status| status.code() == tonic::Code::PermissionDenied) {
            self.wrong.note(peer, now);
            tracing::warn!(?peer, "enrolment with a code that is not valid");
        }
        reply.map(Response::new)
    }
}

impl EnrollmentService {
    async fn answer(&self, request: &RegisterRequest, now: Millis) -> Result<RegisterReply, Status> {
        if request.cluster_id.len() != 16 {
            return Err(Status::invalid_argument("a cluster id is 16 octets"));
        }
        if request.cluster_name.len() > NAME_MAX || request.code.len() > NAME_MAX {
            return Err(Status::invalid_argument("the cluster name or the code is too long"));
        }
        if request.requests.is_empty() {
            return Err(Status::invalid_argument("no certificate request"));
        }
        // Checked before the code is spent.
        let checked = check_all(&self.authority, &request.requests).map_err(Status::invalid_argument)?;
        let hashed = RegisterRequest { code: String::new(), ..request.clone() }.encode_to_vec();
        let registration = Registration {
            code: &request.code,
            cluster_id: &request.cluster_id,
            cluster_name: &request.cluster_name,
            request_sha256: &secret::sha256(&hashed),
            nodes: &names(&request.requests),
        };
        let (site_id, site) = self.store.register(&registration, now).await.map_err(refuse)?;
        let mut certificates = Vec::with_capacity(checked.len());
        for request in &checked {
            let certificate_der = self.authority.sign(request, &site_id, now).map_err(|error| {
                tracing::error!(error = format!("{error:#}"), "sign a certificate");
                Status::internal("signing failed")
            })?;
            certificates
                .push(IssuedCertificate { node: request.node, certificate_der: certificate_der.into() });
        }
        tracing::info!(site, cluster = request.cluster_name, nodes = certificates.len(), "site enrolled");
        let ca_certificate_der = self.authority.certificate().to_vec().into();
        Ok(RegisterReply { site, ca_certificate_der, certificates })
    }
}

/// Checks the requests of a call; says in words what is wrong with the first that is.
fn check_all(
    authority: &Authority,
    requests: &[CertificateRequest],
) -> Result<Vec<crate::tls::Request>, String> {
    if requests.len() > REQUESTS_MAX {
        return Err(format!("more than {REQUESTS_MAX} certificate requests"));
    }
    if requests.iter().any(|request| request.name.len() > NAME_MAX || i64::try_from(request.node).is_err()) {
        return Err("a node's name is too long or its number out of range".to_owned());
    }
    let check = |request: &CertificateRequest| authority.check(request.node, &request.csr_der);
    requests.iter().map(check).collect::<Result<_, BadRequest>>().map_err(|error| error.to_string())
}

/// The numbers and names of the nodes that ask for certificates.
pub(crate) fn names(requests: &[CertificateRequest]) -> Vec<(u64, String)> {
    requests.iter().map(|request| (request.node, request.name.clone())).collect()
}

fn refuse(error: RegisterError) -> Status {
    match error {
        RegisterError::Wrong | RegisterError::Expired | RegisterError::Used => {
            Status::permission_denied(error.to_string())
        }
        RegisterError::Enrolled(_) => Status::already_exists(error.to_string()),
        RegisterError::Store(error) => {
            tracing::error!(%error, "register a site");
            Status::unavailable("the database failed")
        }
    }
}

/// Who gave how many wrong codes in the running minute.
#[derive(Debug, Default)]
pub(crate) struct WrongCodes {
    peers: Mutex<HashMap<IpAddr, (u32, u64)>>,
}

impl WrongCodes {
    fn blocked(&self, peer: Option<IpAddr>, now: Millis) -> bool {
        let peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peer.and_then(|peer| peers.get(&network(peer)))
            .is_some_and(|(count, minute)| *count >= WRONG_PER_MINUTE && *minute == now.0 / 60_000)
    }

    fn note(&self, peer: Option<IpAddr>, now: Millis) {
        let Some(peer) = peer else { return };
        let minute = now.0 / 60_000;
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if peers.len() >= PEERS_MAX {
            peers.retain(|_, (_, seen)| *seen == minute);
        }
        if peers.len() >= PEERS_MAX {
            peers.clear();
        }
        let entry = peers.entry(network(peer)).or_insert((0, minute));
        *entry = if entry.1 == minute { (entry.0 + 1, minute) } else { (1, minute) };
    }
}

/// One subscriber is one IPv4 address or one IPv6 /64.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_wrong_codes_close_the_door_for_the_rest_of_the_minute() {
        let (codes, peer) = (WrongCodes::default(), Some(IpAddr::from([192, 0, 2, 7])));
        let now = Millis(600_000);
        for _ in 0..5 {
            assert!(!codes.blocked(peer, now));
            codes.note(peer, now);
        }
        assert!(codes.blocked(peer, now));
        assert!(!codes.blocked(Some(IpAddr::from([192, 0, 2, 8])), now));
        assert!(!codes.blocked(peer, Millis(660_000)));
        codes.note(peer, Millis(660_000));
        assert!(!codes.blocked(peer, Millis(660_000)));
    }

    #[test]
    fn the_memory_of_peers_is_bounded() {
        let codes = WrongCodes::default();
        for n in 0..3 * PEERS_MAX {
            codes.note(Some(IpAddr::from((n as u32).to_be_bytes())), Millis(0));
        }
        assert!(codes.peers.lock().unwrap().len() <= PEERS_MAX);
    }
}
