//! The listener between nodes: Raft's service for members, the door for those who want to join.
//!
//! Every message of Raft's service is admitted before Raft sees it: the right cluster, meant for this
//! node in this incarnation, from the node that the certificate names, which is still a member.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openraft::errors::{ClientWriteError, RaftError};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use quire_coordinator::tables::{Read, Table};
use quire_coordinator::{rotation, rows};
use quire_proto::cluster as proto;
use quire_proto::cluster::attend_reply::Verdict;
use quire_proto::cluster::raft_server::{Raft as Service, RaftServer};
use quire_proto::cluster::{door_server::DoorServer, propose_reply, snapshot_part::Part};
use quire_proto::id::NodeId;
use quire_proto::store::Member;
use rustls_pki_types::CertificateDer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::admission::Admission;
use super::keys::Keys;
use super::lend::Door;
use super::membership::Doorkeeper;
use super::network::{MESSAGE_OCTETS, node_uri};
use super::propose::led;
use super::raft::{Proposal, Raft, SnapshotMeta, Types, away};
use super::register::{Place, Register};
use super::snapshot::{Copy, Gate, Staging};
use super::store::Store;
use super::timing::Timing;
use super::wire;
use crate::clock;
use crate::tls::{self, Acceptor, Trust};

/// Handshakes at once: 256 of about 30 KiB each. More wait in the kernel's accept queue.
const HANDSHAKES: usize = 256;
/// Nobody may hold a handshake longer.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A snapshot stream that brings nothing for this long is given up, and its place is free.
const SNAPSHOT_PART: Duration = Duration::from_secs(10);
/// Between two looks whether a node that attends is still a member: one row of the tables each.
const REMOVAL: Duration = Duration::from_secs(1);

/// When the leader last spoke to us; what a follower knows of the quorum.
#[derive(Clone, Default)]
pub(crate) struct LastWord(Arc<Mutex<Option<(Instant, u64)>>>);

impl LastWord {
    fn now(&self, from: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((clock::steady(), from));
    }

    /// When, if ever.
    pub(crate) fn at(&self) -> Option<Instant> {
        self.by().map(|(at, _)| at)
    }

    /// When and by whom, if ever.
    pub(crate) fn by(&self) -> Option<(Instant, u64)> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long ago, if ever.
    pub(crate) fn elapsed(&self) -> Option<Duration> {
        self.at().map(|at| clock::steady().saturating_duration_since(at))
    }
}

/// Answers members.
pub(crate) struct Members {
    pub(crate) me: u64,
    pub(crate) cluster_id: Bytes,
    pub(crate) incarnation: Bytes,
    pub(crate) store: Store,
    pub(crate) roll: Roll,
    pub(crate) raft: Raft,
    pub(crate) gate: Gate,
    pub(crate) last_word: LastWord,
    /// True from when this process stops.
    pub(crate) leaving: watch::Receiver<bool>,
    /// Whether this process may take part itself.
    pub(crate) admission: watch::Receiver<Admission>,
    /// Who others are.
    pub(crate) register: Register,
    /// Where pages that they want shown are taken.
    pub(crate) door: Door,
    /// The pace that the leader sets, and what is measured here.
    pub(crate) timing: Timing,
    /// For members that lack one.
    pub(crate) keys: Keys,
    /// Whose certificates count now; that of a connection may be of before.
    pub(crate) trust: Arc<Trust>,
}

fn says(verdict: Verdict) -> Result<proto::AttendReply, Status> {
    Ok(proto::AttendReply { verdict: verdict.into(), detail: String::new() })
}

/// Keeps a stream open until this process stops, or the other is gone or no member any more, or `counts` says that what
/// it showed does not count any more: it comes back with something that does.
async fn accompany(
    _place: Place,
    node: u64,
    to: mpsc::Sender<Result<proto::AttendReply, Status>>,
    members: Roll,
    mut leaving: watch::Receiver<bool>,
    counts: impl Fn() -> bool,
) {
    if to.send(says(Verdict::Welcome)).await.is_err() {
        return;
    }
    let ended = async {
        let mut look = tokio::time::interval(REMOVAL);
        loop {
            look.tick().await;
            if members.lacks(node).unwrap_or(false) {
                return Some(Verdict::Removed);
            }
            if !counts() {
                return None;
            }
        }
    };
    let last = tokio::select! {
        () = to.closed() => None,
        left = leaving.wait_for(|leaving| *leaving) => left.ok().map(|_| Verdict::Leaving),
        verdict = ended => verdict,
    };
    if let Some(verdict) = last {
        let _ = to.send(says(verdict)).await;
    }
}

/// Who is a member, by this node's tables.
#[derive(Clone)]
pub(crate) struct Roll(pub(crate) Store);

impl Roll {
    /// A node's id is the index of the entry that admitted it. So one that our tables lack although
    /// they are past that entry was removed; one they have not reached yet is simply new.
    fn lacks(&self, node: u64) -> Result<bool, Status> {
        let view = self.0.view().map_err(broken)?;
        if view.get(Table::Members, &node.to_be_bytes()).map_err(broken)?.is_some() {
            return Ok(false);
        }
        let applied = view.meta(super::store::key::APPLIED).map_err(broken)?;
        let Some(applied) = applied else { return Ok(false) };
        let applied: proto::LogId = wire::decode("the applied mark", &applied).map_err(broken)?;
        // The first node is in the tables from the bootstrap entry on, which is not entry 1.
        let bootstrapped = view.get(Table::Meta, b"meta").map_err(broken)?.is_some();
        Ok(bootstrapped && applied.index >= node)
    }
}

fn broken(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

fn absent(what: &str) -> Status {
    Status::invalid_argument(format!("the request lacks {what}"))
}

/// Whether the certificate shown is for the public key that the member is known by.
fn shows_its_key(certificates: &[CertificateDer<'_>], member: &Member) -> bool {
    let shown = certificates.first().and_then(|leaf| tls::said_of(leaf)).map(|(said, _)| said.public_key);
    let same = |der: &[u8]| tls::said_of(der).map(|(said, _)| said.public_key) == shown;
    shown.is_some() && rotation::is_known(member, same)
}

impl Members {
    /// Lets through who may speak, else says why not.
    fn admit<T>(&self, request: &Request<T>, envelope: Option<&proto::Envelope>) -> Result<(), Status> {
        let from = self.identify(request, envelope)?;
        if self.roll.lacks(from)? {
            return Err(Status::permission_denied(format!("node {from} is not a member any more")));
        }
        Ok(())
    }

    /// Who speaks, member or not.
    fn identify<T>(&self, request: &Request<T>, envelope: Option<&proto::Envelope>) -> Result<u64, Status> {
        let certificates = request.peer_certs().ok_or_else(|| Status::unauthenticated("no certificate"))?;
        let leaf = certificates.first().ok_or_else(|| Status::unauthenticated("no certificate"))?;
        if !self.trust.vouches(&certificates, clock::now()) {
            return Err(Status::unauthenticated("the certificate is of a CA that counts no longer"));
        }
        let uri = tls::uri_of(leaf).ok_or_else(|| Status::unauthenticated("a certificate without a node"))?;
        self.check(&uri, envelope)
    }

    /// As [`Members::admit`], and it shows the public key that the others know it by: with the CA's key alone nobody can
    /// say that he is another member.
    fn admit_known<T>(
        &self,
        request: &Request<T>,
        envelope: Option<&proto::Envelope>,
    ) -> Result<Member, Status> {
        self.admit(request, envelope)?;
        let from = envelope.map_or(0, |envelope| envelope.from);
        let view = self.store.view().map_err(broken)?;
        // Of one that our tables have not reached yet nobody here can say whether it is he; another member can, or this
        // one soon. A number above ours costs a thief of the CA's key nothing to write into a certificate.
        let member = rows::member(&view, NodeId(from)).map_err(broken)?;
        let member = member.ok_or_else(|| Status::unavailable("this node does not know you yet"))?;
        if !shows_its_key(&request.peer_certs().unwrap_or_default(), &member) {
            return Err(Status::permission_denied(format!("node {from} is known by another certificate")));
        }
        Ok(member)
    }

    /// A generation of the cluster key that the tables name: who was removed before it was begun is no member there.
    fn key_for(&self, member: &Member, generation: u64) -> Result<proto::ClusterKeyReply, Status> {
        if member.certificate_der.is_empty() {
            return Err(Status::unavailable("your certificate is not known here yet"));
        }
        let row = rotation::row(&self.store.view().map_err(broken)?).map_err(broken)?;
        let wanted = rotation::wanted(&row).into_iter().find(|(number, _)| *number == generation);
        let here = wanted.filter(|(_, hash)| self.keys.has(generation, hash));
        match here.and_then(|_| self.keys.key(generation)) {
            Some(key) => Ok(proto::ClusterKeyReply { key: Bytes::copy_from_slice(key.as_slice()) }),
            None => Err(Status::unavailable("it does not have that key")),
        }
    }

    /// As [`Members::admit`], for what changes Raft's state: not before this process may take part.
    fn admit_to_raft<T>(
        &self,
        request: &Request<T>,
        envelope: Option<&proto::Envelope>,
    ) -> Result<(), Status> {
        self.admit(request, envelope)?;
        match *self.admission.borrow() {
            Admission::Open => Ok(()),
            Admission::Waiting | Admission::Shut(_) => {
                Err(Status::unavailable("this process is not yet known to other members"))
            }
        }
    }

    fn check(&self, uri: &str, envelope: Option<&proto::Envelope>) -> Result<u64, Status> {
        let envelope = envelope.ok_or_else(|| absent("an envelope"))?;
        if uri != node_uri(&self.cluster_id, envelope.from) {
            return Err(Status::permission_denied(format!(
                "the certificate is not of node {}",
                envelope.from
            )));
        }
        if envelope.cluster_id != self.cluster_id {
            return Err(Status::failed_precondition("the message is for another cluster"));
        }
        if envelope.to != self.me {
            return Err(Status::failed_precondition(format!(
                "this is node {}, not {}",
                self.me, envelope.to
            )));
        }
        if envelope.incarnation != self.incarnation {
            return Err(Status::failed_precondition(format!("node {} has another incarnation", self.me)));
        }
        if envelope.wire_version > quire_proto::WIRE_VERSION {
            return Err(Status::failed_precondition("the sender speaks a later version: upgrade this node"));
        }
        Ok(envelope.from)
    }

    async fn receive(
        &self,
        mut parts: Streaming<proto::SnapshotPart>,
        staging: Staging,
    ) -> Result<Copy, Status> {
        let mut staging = staging;
        loop {
            let part = tokio::time::timeout(SNAPSHOT_PART, parts.message())
                .await
                .map_err(|_| Status::deadline_exceeded("the snapshot stands still"))??;
            match part.and_then(|part| part.part) {
                Some(Part::Rows(rows)) => {
                    staging = away(move || {
                        staging.add(&rows)?;
                        Ok(staging)
                    })
                    .await
                    .map_err(broken)?;
                }
                Some(Part::End(end)) => {
                    return away(move || staging.finish(&end)).await.map(Copy::Staged).map_err(broken);
                }
                Some(Part::Head(_) | Part::File(_) | Part::Data(_)) => {
                    return Err(Status::invalid_argument("a snapshot part that does not belong here"));
                }
                None => return Err(Status::data_loss("the snapshot ends before its end")),
            }
        }
    }
}

#[tonic::async_trait]
impl Service for Members {
    type AttendStream = ReceiverStream<Result<proto::AttendReply, Status>>;

    async fn attend(
        &self,
        request: Request<proto::AttendRequest>,
    ) -> Result<Response<Self::AttendStream>, Status> {
        let node = self.identify(&request, request.get_ref().envelope.as_ref())?;
        if *self.leaving.borrow() {
            return Err(Status::unavailable("this node is stopping"));
        }
        let (to, stream) = mpsc::channel(2);
        if self.roll.lacks(node)? {
            to.send(says(Verdict::Removed)).await.map_err(broken)?;
            return Ok(Response::new(ReceiverStream::new(stream)));
        }
        let certificates = request.peer_certs().unwrap_or_default();
        let request = request.into_inner();
        let known = rows::member(&self.store.view().map_err(broken)?, NodeId(node)).map_err(broken)?;
        // Or its new key is not in these tables yet: it tries again, and what it says of its starts is remembered for good.
        if known.is_some_and(|member| !shows_its_key(&certificates, &member)) {
            return Err(Status::unavailable(format!("node {node} is known by another certificate here")));
        }
        let register = self.register.clone();
        match away(move || register.admit(node, &request)).await.map_err(broken)? {
            Ok(place) => {
                let (members, leaving, trust) = (self.roll.clone(), self.leaving.clone(), self.trust.clone());
                let counts = move || trust.vouches(&certificates, clock::now());
                drop(tokio::spawn(accompany(place, node, to, members, leaving, counts)));
            }
            Err(verdict) => {
                tracing::warn!(node, ?verdict, "a process of this node is not admitted");
                to.send(says(verdict)).await.map_err(broken)?;
            }
        }
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn look(&self, request: Request<proto::LookRequest>) -> Result<Response<proto::LookReply>, Status> {
        self.admit(&request, request.get_ref().envelope.as_ref())?;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Ok(Response::new(proto::LookReply { at_ms: clock::now().0, version }))
    }

    async fn append(
        &self,
        request: Request<proto::AppendRequest>,
    ) -> Result<Response<proto::AppendReply>, Status> {
        self.admit_to_raft(&request, request.get_ref().envelope.as_ref())?;
        let request = request.into_inner();
        let beat_ms = request.beat_ms;
        let from = request.envelope.as_ref().map_or(0, |envelope| envelope.from);
        let entries = request.entries.into_iter().map(wire::to_entry).collect::<Result<Vec<_>, _>>();
        let rpc = AppendEntriesRequest::<Types> {
            vote: request.vote.as_ref().map(wire::to_vote).ok_or_else(|| absent("a vote"))?,
            prev_log_id: request.previous.as_ref().map(wire::to_log_id),
            entries: entries.map_err(|reason| Status::invalid_argument(reason.to_string()))?,
            leader_commit: request.committed.as_ref().map(wire::to_log_id),
        };
        use proto::append_reply::Result as Kind;
        let (kind, matching, vote) = match self.raft.append_entries(rpc).await.map_err(broken)? {
            AppendEntriesResponse::Success => (Kind::Success, None, None),
            AppendEntriesResponse::PartialSuccess(matching) => (Kind::Partial, matching, None),
            AppendEntriesResponse::Conflict => (Kind::Conflict, None, None),
            AppendEntriesResponse::HigherVote(vote) => (Kind::HigherVote, None, Some(vote)),
        };
        if kind != Kind::HigherVote {
            self.last_word.now(from);
            self.timing.pace.set(beat_ms);
        }
        Ok(Response::new(proto::AppendReply {
            result: kind.into(),
            matching: matching.as_ref().map(wire::log_id),
            vote: vote.as_ref().map(wire::vote),
            fsync_us: self.timing.own().fsync_us,
        }))
    }

    async fn vote(&self, request: Request<proto::VoteRequest>) -> Result<Response<proto::VoteReply>, Status> {
        self.admit_to_raft(&request, request.get_ref().envelope.as_ref())?;
        let reply = self.raft.vote(ballot(request.get_ref())?).await.map_err(broken)?;
        Ok(Response::new(verdict(&reply)))
    }

    async fn pre_vote(
        &self,
        request: Request<proto::VoteRequest>,
    ) -> Result<Response<proto::VoteReply>, Status> {
        self.admit_to_raft(&request, request.get_ref().envelope.as_ref())?;
        let reply = self.raft.pre_vote(ballot(request.get_ref())?).await.map_err(broken)?;
        Ok(Response::new(verdict(&reply)))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<proto::SnapshotPart>>,
    ) -> Result<Response<proto::SnapshotReply>, Status> {
        let (metadata, extensions, mut parts) = request.into_parts();
        let first = parts.message().await?.and_then(|part| part.part);
        let Some(Part::Head(head)) = first else { return Err(absent("a head")) };
        self.admit_to_raft(&Request::from_parts(metadata, extensions, ()), head.envelope.as_ref())?;
        let vote = head.vote.as_ref().map(wire::to_vote).ok_or_else(|| absent("a vote"))?;
        let meta = SnapshotMeta {
            last_log_id: head.last.as_ref().map(wire::to_log_id),
            last_membership: wire::to_stored_membership(head.membership.unwrap_or_default())
                .map_err(broken)?,
        };
        let (store, gate) = (self.store.clone(), self.gate.clone());
        let staging =
            away(move || Staging::go_on(&store, &gate, &head.id, head.rows)).await.map_err(broken)?;
        let snapshot = self.receive(parts, staging).await?;
        let snapshot = openraft::Snapshot { meta, snapshot };
        let reply = self.raft.install_full_snapshot(vote, snapshot).await.map_err(broken)?;
        Ok(Response::new(proto::SnapshotReply { vote: Some(wire::vote(&reply.vote)) }))
    }

    async fn staged(
        &self,
        request: Request<proto::StagedRequest>,
    ) -> Result<Response<proto::StagedReply>, Status> {
        self.admit_to_raft(&request, request.get_ref().envelope.as_ref())?;
        let rows = self.gate.staged(&request.get_ref().id).map_err(broken)?;
        Ok(Response::new(proto::StagedReply { rows }))
    }

    async fn transfer_leader(
        &self,
        request: Request<proto::TransferRequest>,
    ) -> Result<Response<proto::TransferReply>, Status> {
        self.admit_to_raft(&request, request.get_ref().envelope.as_ref())?;
        let request = request.into_inner();
        let from = request.from.as_ref().map(wire::to_vote).ok_or_else(|| absent("a vote"))?;
        let last = request.last.as_ref().map(wire::to_log_id);
        let rpc = TransferLeaderRequest::<Types>::new(from, request.to, last);
        // It waits for the log here, by Raft's clock.
        let taken = self.timing.pace.keep(self.raft.handle_transfer_leader(rpc)).await;
        match taken.map_err(broken)? {
            Ok(()) => Ok(Response::new(proto::TransferReply {})),
            Err(refused) => Err(Status::aborted(refused.to_string())),
        }
    }

    async fn cluster_key(
        &self,
        request: Request<proto::ClusterKeyRequest>,
    ) -> Result<Response<proto::ClusterKeyReply>, Status> {
        let member = self.admit_known(&request, request.get_ref().envelope.as_ref())?;
        self.key_for(&member, request.get_ref().generation).map(Response::new)
    }

    async fn show(&self, request: Request<proto::ShowRequest>) -> Result<Response<proto::ShowReply>, Status> {
        self.admit(&request, request.get_ref().envelope.as_ref())?;
        self.door.show(request.into_inner()).await.map(Response::new)
    }

    async fn propose(
        &self,
        request: Request<proto::ProposeRequest>,
    ) -> Result<Response<proto::ProposeReply>, Status> {
        self.admit_to_raft(&request, request.get_ref().envelope.as_ref())?;
        self.admit_known(&request, request.get_ref().envelope.as_ref())?;
        let result = match self.raft.client_write(Proposal(led(&request.into_inner().command))).await {
            Ok(written) => {
                let outcome = prost::Message::encode_to_vec(&written.data.0);
                propose_reply::Result::Outcome(outcome.into())
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                propose_reply::Result::Leader(to.leader_id.filter(|leader| *leader != self.me).unwrap_or(0))
            }
            Err(RaftError::APIError(unknown)) => return Err(Status::aborted(unknown.to_string())),
            Err(RaftError::Fatal(fatal)) => return Err(broken(fatal)),
        };
        Ok(Response::new(proto::ProposeReply { result: Some(result) }))
    }
}

fn ballot(request: &proto::VoteRequest) -> Result<VoteRequest<Types>, Status> {
    let vote = request.vote.as_ref().map(wire::to_vote).ok_or_else(|| absent("a vote"))?;
    let mut rpc = VoteRequest::new(vote, request.last.as_ref().map(wire::to_log_id));
    rpc.leadership_transfer = request.leader_transfer;
    Ok(rpc)
}

fn verdict(reply: &openraft::raft::VoteResponse<Types>) -> proto::VoteReply {
    proto::VoteReply {
        vote: Some(wire::vote(&reply.vote)),
        granted: reply.vote_granted,
        last: reply.last_log_id.as_ref().map(wire::log_id),
    }
}

/// Serves both services on `listener` until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    acceptor: Acceptor,
    members: Members,
    doorkeeper: Doorkeeper,
    stop: oneshot::Receiver<()>,
) {
    let (ready, streams) = mpsc::channel(64);
    let accepting = tokio::spawn(accept(listener, acceptor, ready));
    let members = RaftServer::new(members)
        .max_decoding_message_size(MESSAGE_OCTETS)
        .max_encoding_message_size(MESSAGE_OCTETS);
    let served = tonic::transport::Server::builder()
        .initial_stream_window_size(Some(4 << 20))
        .initial_connection_window_size(Some(8 << 20))
        .http2_keepalive_interval(Some(Duration::from_secs(2)))
        .http2_keepalive_timeout(Some(Duration::from_secs(4)))
        .add_service(members)
        .add_service(DoorServer::new(doorkeeper))
        .serve_with_incoming_shutdown(ReceiverStream::new(streams), async {
            let _ = stop.await;
        })
        .await;
    accepting.abort();
    if let Err(reason) = served {
        tracing::error!(%reason, "serve other nodes");
    }
}

type Accepted = std::io::Result<tokio_rustls::server::TlsStream<TcpStream>>;

async fn accept(listener: TcpListener, acceptor: Acceptor, ready: mpsc::Sender<Accepted>) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(reason) => {
                tracing::warn!(%reason, "accept a connection from another node");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (acceptor, ready) = (acceptor.clone(), ready.clone());
        tokio::spawn(async move {
            let _place = place;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let _ = ready.send(Ok(stream)).await;
                }
                Ok(Err(reason)) => tracing::info!(%peer, %reason, "refused a connection"),
                Err(_) => tracing::info!(%peer, "a handshake took too long"),
            }
        });
    }
}
