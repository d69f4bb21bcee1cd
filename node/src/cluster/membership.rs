//! Joining: what the door answers, and what a new node asks for.
//!
//! The private key stays on the new node; the cluster key travels only in the answer, inside the TLS
//! session whose CA the token pins. The CA's key is opened for one signature and wiped.

use std::time::Duration;

use bytes::Bytes;
use quire_coordinator::tables::{ReadExt, Table};
use quire_coordinator::{rotation, upgrade};
use quire_proto::cluster::door_client::DoorClient;
use quire_proto::cluster::door_server::Door;
use quire_proto::cluster::{JoinReply, JoinRequest};
use quire_proto::store::{Join, Member, Meta, Outcome, RotationRow, TokenRow, command, outcome};
use tokio::sync::Semaphore;
use tonic::{Code, Request, Response, Status};

use super::OpenError;
use super::authorities::Authorities;
use super::keeper::{authority, until};
use super::keys::Keys;
use super::network::{dial, endpoint, node_uri, server_name};
use super::propose::{ProposeError, Proposer};
use super::token::Token;
use crate::clock;
use crate::tls::{self, Connector, Names};

/// Joins worked on at once; a third waits. Each costs a proposal and two signatures.
const JOINS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(10);

/// What the CA's key is sealed for.
pub(crate) fn ca_purpose(cluster_id: &[u8]) -> Vec<u8> {
    [b"quire ca key ".as_slice(), cluster_id].concat()
}

/// The names of a node's certificate.
pub(crate) fn names(cluster_id: &[u8], node: u64) -> Names {
    Names {
        common_name: format!("quire node {node}"),
        dns: server_name(node),
        uri: node_uri(cluster_id, node),
    }
}

/// Says what is wrong with a name or zone that listings, certificates and files will carry.
pub(crate) fn check_name(what: &str, name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 63 || !name.chars().all(fine) {
        return Err(format!("{what} `{name}` must be 1 to 63 letters, digits, `-`, `_` or `.`"));
    }
    Ok(())
}

/// Says what is wrong with an address that other nodes will dial.
pub(crate) fn check_address(address: &str) -> Result<(), String> {
    match address.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => Ok(()),
        _ => Err(format!("`{address}` is not HOST:PORT")),
    }
}

/// Answers those who want to join.
pub(crate) struct Doorkeeper {
    proposer: Proposer,
    keys: Keys,
    /// Of the certificates that it signs.
    life: Duration,
    places: Semaphore,
}

impl Doorkeeper {
    pub(crate) fn new(proposer: Proposer, keys: Keys, life: Duration) -> Self {
        Doorkeeper { proposer, keys, life, places: Semaphore::new(JOINS) }
    }

    fn tables(&self) -> Result<(Meta, RotationRow), Status> {
        let view = self.proposer.store.view().map_err(|error| Status::internal(error.to_string()))?;
        let meta: Option<Meta> =
            view.row(Table::Meta, b"meta").map_err(|fault| Status::internal(fault.to_string()))?;
        let meta = meta.filter(|meta| !meta.cluster_id.is_empty()).ok_or_else(|| {
            Status::unavailable("this node is still catching up: ask another member, or wait")
        })?;
        Ok((meta, rotation::row(&view).map_err(|fault| Status::internal(fault.to_string()))?))
    }

    /// Members know each other by their keys from the entry on that makes them members; what the certificate says besides,
    /// the member corrects itself. Older programs would lose it from the row.
    fn known_by(&self, certificate: Vec<u8>) -> Result<Bytes, Status> {
        let (meta, _) = self.tables()?;
        Ok(if meta.cluster_version < upgrade::ROTATION { Bytes::new() } else { certificate.into() })
    }

    /// The member that an earlier try of the same join made, if its answer was lost: while the token counts, and for the
    /// same key. A used token opens nothing to anybody else.
    fn made_before(&self, request: &JoinRequest, public_key: &[u8]) -> Option<u64> {
        let view = self.proposer.store.view().ok()?;
        let token: TokenRow = view.row(Table::Tokens, request.token_id.as_bytes()).ok()??;
        let member: Member = view.row(Table::Members, &token.used_by.to_be_bytes()).ok()??;
        let known = tls::said_of(&member.certificate_der).map(|(said, _)| said.public_key);
        let same = token.secret_sha256.as_ref() == tls::pin(&request.token_secret)
            && member.incarnation == request.incarnation
            && known.is_none_or(|known| known == public_key);
        (same && clock::now().0 < token.expires_at_ms).then_some(member.id)
    }

    async fn admit(&self, request: &JoinRequest, certificate: Vec<u8>) -> Result<u64, Status> {
        let public_key = tls::said_of(&certificate).map(|(said, _)| said.public_key).unwrap_or_default();
        let join = Join {
            token_id: request.token_id.clone(),
            token_secret_sha256: Bytes::copy_from_slice(&tls::pin(&request.token_secret)),
            member: Some(Member {
                name: request.name.clone(),
                zone: request.zone.clone(),
                address: request.address.clone(),
                version: request.version.clone(),
                cluster_version: request.cluster_version,
                witness: request.witness,
                incarnation: request.incarnation.clone(),
                upstream_csr_der: request.upstream_csr_der.clone(),
                certificate_der: self.known_by(certificate)?,
                ..Member::default()
            }),
        };
        match self.proposer.propose(command::Kind::Join(join), PATIENCE).await {
            Ok(Outcome { result: Some(outcome::Result::Node(node)), .. }) => Ok(node),
            Ok(_) => Err(Status::internal("the join has an outcome that is no node id")),
            Err(ProposeError::Rejected(why)) => {
                self.made_before(request, &public_key).ok_or_else(|| Status::permission_denied(why))
            }
            Err(error) => Err(Status::unavailable(error.to_string())),
        }
    }

    fn certify(
        &self,
        (meta, row): (&Meta, &RotationRow),
        node: u64,
        csr_der: &[u8],
    ) -> Result<Vec<u8>, Status> {
        let authority = authority(&self.keys, meta, row).map_err(Status::internal)?;
        authority
            .sign(csr_der, &names(&meta.cluster_id, node), until(meta, self.life))
            .map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

fn check(request: &JoinRequest) -> Result<(), String> {
    check_name("the name", &request.name)?;
    check_name("the zone", &request.zone)?;
    check_address(&request.address)?;
    if request.incarnation.len() != 16 {
        return Err("an incarnation has 16 octets".into());
    }
    if request.wire_version != quire_proto::WIRE_VERSION {
        return Err(format!(
            "wire version {} cannot join a cluster of version {}: install the same release",
            request.wire_version,
            quire_proto::WIRE_VERSION
        ));
    }
    Ok(())
}

#[tonic::async_trait]
impl Door for Doorkeeper {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let _place = self.places.acquire().await.map_err(|_| Status::unavailable("closing"))?;
        let request = request.into_inner();
        check(&request).map_err(Status::invalid_argument)?;
        let (meta, row) = self.tables()?;
        // Tried before the token is spent: a malformed request must not cost the operator a token.
        let tried = self.certify((&meta, &row), 0, &request.csr_der)?;
        let node = self.admit(&request, tried).await?;
        tracing::info!(node, name = request.name, "a node joined");
        // A change of the CA may have come before it, and the old one may count no longer.
        let (meta, row) = self.tables()?;
        let authorities = Authorities::of_tables(&meta, &row).unwrap_or_default();
        Ok(Response::new(JoinReply {
            node,
            cluster_id: meta.cluster_id.clone(),
            cluster_name: meta.cluster_name.clone(),
            certificate_der: self.certify((&meta, &row), node, &request.csr_der)?.into(),
            ca_certificate_der: meta.ca_certificate_der.clone(),
            cluster_key: Bytes::copy_from_slice(&self.keys.octets()),
            authorities_der: authorities.each().iter().map(|der| Bytes::copy_from_slice(der)).collect(),
        }))
    }
}

/// Asks `seed` to let this node in.
pub(crate) async fn ask(seed: &str, token: &Token, request: JoinRequest) -> Result<JoinReply, OpenError> {
    check_address(seed).map_err(OpenError::Address)?;
    let connector = Connector::pinned(token.ca_pin)
        .map_err(|error| OpenError::Start { what: "prepare TLS", reason: error.to_string() })?;
    let silent = |reason: String| OpenError::NoMember { seed: seed.to_owned(), reason };
    let deadline = tokio::time::Instant::now() + 3 * PATIENCE;
    loop {
        let stream = dial(seed, &connector, "node.quire").await.map_err(|reason| {
            let text = reason.to_string();
            if text.contains("UnknownIssuer") {
                OpenError::WrongAuthority { seed: seed.to_owned() }
            } else {
                silent(text)
            }
        })?;
        let mut stream = Some(stream);
        let channel = endpoint()
            .connect_with_connector(tower::service_fn(move |_| {
                let stream = stream.take();
                async move { stream.ok_or_else(|| std::io::Error::other("the connection was used")) }
            }))
            .await
            .map_err(|reason| silent(reason.to_string()))?;
        let answer = tokio::time::timeout(2 * PATIENCE, DoorClient::new(channel).join(request.clone())).await;
        let status = match answer {
            Ok(Ok(reply)) => return Ok(reply.into_inner()),
            Ok(Err(status)) => status,
            Err(_) => Status::deadline_exceeded("no answer in time"),
        };
        match status.code() {
            Code::PermissionDenied | Code::InvalidArgument => {
                return Err(OpenError::Refused(status.message().to_owned()));
            }
            // Electing or catching up: worth waiting for. The same incarnation makes it the same join.
            _ if tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(500)).await
            }
            _ => return Err(silent(status.message().to_owned())),
        }
    }
}

/// Checks that an answer is what the token promised; answers whom to trust.
pub(crate) fn verify(token: &Token, reply: &JoinReply) -> Result<Authorities, OpenError> {
    let wrong = |what: &str| OpenError::Refused(format!("the answer to the join {what}"));
    // Older programs send their only one.
    let authorities = match reply.authorities_der.as_slice() {
        [] => Authorities::of(&[&reply.ca_certificate_der]),
        several => Authorities::of(several),
    };
    let authorities = authorities.ok_or_else(|| wrong("brings no CA"))?;
    if !authorities.roots().iter().any(|root| tls::pin(root) == token.ca_pin) {
        return Err(wrong("brings another CA than the token names"));
    }
    let uri = tls::uri_of(&reply.certificate_der);
    if uri.as_deref() != Some(node_uri(&reply.cluster_id, reply.node).as_str()) {
        return Err(wrong("brings a certificate for somebody else"));
    }
    Ok(authorities)
}
