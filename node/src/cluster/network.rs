//! Raft's messages to peers: gRPC over TLS that both ends authenticate.
//!
//! What it must never do: send to a node whose certificate does not carry the expected node id.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use quire_coordinator::tables::{ReadExt, Table};
use quire_proto::cluster as proto;
use quire_proto::cluster::raft_client::RaftClient;
use quire_proto::store::Member;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use zeroize::Zeroizing;

use super::keys::Octets;
use super::lend;
use super::pace::stretch;
use super::raft::{Peer, Raft, Types, Vote, away};
use super::snapshot::{Copy, Reading, Shelf};
use super::store::Store;
use super::timing::Timing;
use super::wire;
use crate::clock;
use crate::tls::Connector;

/// A proposal is at most [`super::PROPOSAL_OCTETS`]; a message carries 1 MiB of entries or one larger.
pub(crate) const MESSAGE_OCTETS: usize = 16 << 20;
/// A host that is gone must not hold a connection attempt longer than an election takes.
const CONNECT: Duration = Duration::from_secs(2);
/// A batch of entries waits for the peer's disk, not only for its processor.
const APPEND: Duration = Duration::from_secs(5);
/// How late an answer may be and still be measured: at 10 heartbeats a second, 50 wait for a silent host at most.
const LATE: Duration = Duration::from_secs(5);

type RpcResult<T> = Result<T, RPCError<Types>>;

/// Separate connections, so that a large batch never delays a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    Log,
    Pulse,
    Bulk,
    Proposals,
    Pages,
}

/// What a process says of itself to other members.
#[derive(Clone, Debug, Default)]
pub(crate) struct Introduction {
    /// 16 random octets of this process.
    pub(crate) session: Bytes,
    /// How often the data directory was started.
    pub(crate) boot: u64,
}

/// Connections to peers; clones share them. At most five a peer, besides the stream that attends it.
#[derive(Clone)]
pub(crate) struct Net(Arc<Inner>);

struct Inner {
    me: u64,
    cluster_id: Bytes,
    connector: Connector,
    store: Store,
    shelf: Shelf,
    introduction: Introduction,
    timing: Timing,
    channels: Mutex<HashMap<(u64, Lane), Channel>>,
}

/// The name that a node's certificate carries for TLS.
pub(crate) fn server_name(node: u64) -> String {
    format!("node-{node}.quire")
}

/// What a node's certificate says about its holder.
pub(crate) fn node_uri(cluster_id: &[u8], node: u64) -> String {
    format!("quire://{}/node/{node}", data_encoding::HEXLOWER.encode(cluster_id))
}

/// Connects over TCP and TLS; `name` is what the certificate must carry.
pub(crate) async fn dial(
    address: &str,
    connector: &Connector,
    name: &str,
) -> io::Result<TokioIo<tokio_rustls::client::TlsStream<TcpStream>>> {
    let tcp = tokio::time::timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer from {address}")))??;
    tcp.set_nodelay(true)?;
    let tls = tokio::time::timeout(CONNECT, connector.connect(name, tcp)).await;
    let tls = tls.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake took too long"))?;
    tls.map(TokioIo::new).map_err(io::Error::other)
}

/// How every connection between nodes behaves.
pub(crate) fn endpoint() -> Endpoint {
    Endpoint::from_static("http://quire")
        .http2_keep_alive_interval(Duration::from_secs(2))
        .keep_alive_timeout(Duration::from_secs(4))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(Some(4 << 20))
        .initial_connection_window_size(Some(8 << 20))
}

impl Net {
    /// Sends by the pace of `timing`, and measures for it.
    pub(crate) fn new(
        me: u64,
        cluster_id: Bytes,
        connector: Connector,
        (store, shelf): (Store, Shelf),
        introduction: Introduction,
        timing: Timing,
    ) -> Self {
        let channels = Mutex::default();
        Net(Arc::new(Inner { me, cluster_id, connector, store, shelf, introduction, timing, channels }))
    }

    /// The member as our tables know it.
    fn member(&self, node: u64) -> Option<Member> {
        self.0.store.view().ok()?.row(Table::Members, &node.to_be_bytes()).ok()?
    }

    fn channel(&self, node: u64, lane: Lane, known: &str) -> Channel {
        let mut channels = self.0.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = channels.entry((node, lane)).or_insert_with(|| {
            // Weak, because the channel lives in `self`: a cycle would keep the database open for ever.
            let (weak, known) = (Arc::downgrade(&self.0), known.to_owned());
            endpoint().connect_with_connector_lazy(tower::service_fn(move |_| {
                let (weak, known) = (weak.clone(), known.clone());
                async move {
                    let net =
                        weak.upgrade().map(Net).ok_or_else(|| io::Error::other("this node is stopping"))?;
                    // Asked anew for every connection: a member may have moved.
                    let address = net.member(node).map_or(known, |member| member.address);
                    dial(&address, &net.0.connector, &server_name(node)).await
                }
            }))
        });
        opened.clone()
    }

    fn envelope(&self, to: u64, incarnation: &Bytes) -> proto::Envelope {
        proto::Envelope {
            cluster_id: self.0.cluster_id.clone(),
            from: self.0.me,
            to,
            incarnation: incarnation.clone(),
            wire_version: quire_proto::WIRE_VERSION,
        }
    }

    fn link(&self, target: u64, peer: &Peer, lane: Lane) -> Link {
        Link { net: self.clone(), target, peer: peer.clone(), lane, measuring: Arc::default() }
    }

    /// Whatever is asked from now on goes over new connections: certificates or CAs have changed. Calls under way end on
    /// the old ones.
    pub(crate) fn reconnect(&self) {
        self.0.channels.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Asks `target`, a member, for a generation of the cluster key.
    pub(crate) async fn cluster_key(&self, target: u64, generation: u64) -> Result<Octets, Status> {
        let peer = self.peer(target, None);
        let peer = peer.ok_or_else(|| Status::unavailable(format!("node {target} is not known here")))?;
        let link = self.link(target, &peer, Lane::Proposals);
        let request = proto::ClusterKeyRequest { envelope: link.envelope(), generation };
        let reply = link.client().cluster_key(request).await?.into_inner();
        let octets = Zeroizing::new(
            <[u8; 32]>::try_from(reply.key.as_ref())
                .map_err(|_| Status::internal("a key of another length"))?,
        );
        Ok(octets)
    }

    /// Hands an encoded command to `target`, which should be the leader.
    pub(crate) async fn propose(
        &self,
        target: u64,
        known: Option<Peer>,
        command: Bytes,
    ) -> Result<proto::propose_reply::Result, Status> {
        let peer = self.peer(target, known);
        let peer = peer.ok_or_else(|| Status::unavailable(format!("node {target} is not known here")))?;
        let link = self.link(target, &peer, Lane::Proposals);
        let envelope = Some(self.envelope(target, &peer.incarnation));
        let reply = link.client().propose(proto::ProposeRequest { envelope, command }).await?.into_inner();
        reply.result.ok_or_else(|| Status::internal("an empty answer to a proposal"))
    }
}

impl Net {
    /// Asks `target`, a member, to show a device's page.
    pub(crate) async fn show(
        &self,
        target: u64,
        page: proto::ShowRequest,
    ) -> Result<proto::ShowReply, Status> {
        let peer = self.peer(target, None);
        let peer = peer.ok_or_else(|| Status::unavailable(format!("node {target} is not known here")))?;
        let link = self.link(target, &peer, Lane::Pages);
        let mut client = link.client();
        let envelope = Some(self.envelope(target, &peer.incarnation));
        let asked = client.show(proto::ShowRequest { envelope, ..page });
        let reply = tokio::time::timeout(lend::PATIENCE, asked).await;
        Ok(reply.map_err(|_| Status::deadline_exceeded("the page took too long"))??.into_inner())
    }

    fn peer(&self, target: u64, known: Option<Peer>) -> Option<Peer> {
        let member = self.member(target);
        member.map(|member| Peer { address: member.address, incarnation: member.incarnation }).or(known)
    }

    /// Introduces this process, whose log ends with entry `last`, to `target` over a connection of its own, whose end is the other's end.
    /// Refused connections keep their [`io::ErrorKind`].
    pub(crate) async fn attend(
        &self,
        target: u64,
        known: Option<Peer>,
        last: u64,
    ) -> io::Result<Streaming<proto::AttendReply>> {
        let peer = self.peer(target, known).ok_or_else(|| io::Error::other("a node not known here"))?;
        let stream = dial(&peer.address, &self.0.connector, &server_name(target)).await?;
        let channel = over(stream).await?;
        let introduction = &self.0.introduction;
        let request = proto::AttendRequest {
            envelope: Some(self.envelope(target, &peer.incarnation)),
            session: introduction.session.clone(),
            boot: introduction.boot,
            last,
        };
        let opened =
            tokio::time::timeout(CONNECT, async move { RaftClient::new(channel).attend(request).await });
        let opened = opened.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        Ok(opened.map_err(io::Error::other)?.into_inner())
    }

    /// Connects to `member` at its own address, over a connection of its own.
    pub(crate) async fn reach(&self, member: &Member) -> io::Result<Channel> {
        over(dial(&member.address, &self.0.connector, &server_name(member.id)).await?).await
    }

    /// Asks `member` over a channel of [`Net::reach`] whether it is there.
    pub(crate) async fn look(&self, channel: Channel, member: &Member) -> io::Result<proto::LookReply> {
        let request = proto::LookRequest { envelope: Some(self.envelope(member.id, &member.incarnation)) };
        let looked =
            tokio::time::timeout(CONNECT, async move { RaftClient::new(channel).look(request).await });
        match looked.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? {
            Ok(reply) => Ok(reply.into_inner()),
            // A version before this question: it is there, and that is all it can say.
            Err(status) if status.code() == Code::Unimplemented => Ok(proto::LookReply::default()),
            Err(status) => Err(io::Error::other(status.message().to_owned())),
        }
    }
}

/// A channel over one connection that stands; it is never dialled again.
async fn over(stream: TokioIo<tokio_rustls::client::TlsStream<TcpStream>>) -> io::Result<Channel> {
    let mut once = Some(stream);
    let connect = tower::service_fn(move |_| {
        let stream = once.take().ok_or_else(|| io::Error::other("dialled once"));
        std::future::ready(stream)
    });
    endpoint().connect_with_connector(connect).await.map_err(io::Error::other)
}

impl RaftNetworkFactory<Types> for Net {
    type Network = Link;

    async fn new_client(&mut self, target: u64, peer: &Peer) -> Link {
        self.link(target, peer, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, peer: &Peer) -> Link {
        self.link(target, peer, Lane::Pulse)
    }

    async fn new_snapshot_client(&mut self, target: u64, peer: &Peer) -> Link {
        self.link(target, peer, Lane::Bulk)
    }
}

/// One peer on one lane.
pub(crate) struct Link {
    net: Net,
    target: u64,
    peer: Peer,
    lane: Lane,
    /// An answer that is measured has not come yet.
    measuring: Arc<AtomicBool>,
}

impl Link {
    /// Over the connection of the moment.
    fn client(&self) -> RaftClient<Channel> {
        RaftClient::new(self.net.channel(self.target, self.lane, &self.peer.address))
            .max_decoding_message_size(MESSAGE_OCTETS)
            .max_encoding_message_size(MESSAGE_OCTETS)
    }

    fn envelope(&self) -> Option<proto::Envelope> {
        Some(self.net.envelope(self.target, &self.peer.incarnation))
    }

    fn failed(status: &Status) -> RPCError<Types> {
        let reason = format!("{}: {}", status.code(), status.message());
        match status.code() {
            // Nobody there, or somebody who does not want us: wait before asking again.
            Code::Unavailable | Code::PermissionDenied | Code::FailedPrecondition | Code::Unauthenticated => {
                RPCError::Unreachable(Unreachable::from_string(reason))
            }
            _ => RPCError::Network(NetworkError::from_string(reason)),
        }
    }

    /// Runs a call within `patience`.
    async fn within<T>(
        &self,
        action: RPCTypes,
        patience: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    ) -> RpcResult<T> {
        match tokio::time::timeout(patience, call).await {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(Self::failed(&status)),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.net.0.me,
                target: self.target,
                timeout: patience,
            })),
        }
    }

    /// Asks in a task of its own, so that an answer that comes too late for Raft is measured all the same; `fsync` is
    /// what the answer says of the peer's disk.
    fn measured<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<tonic::Response<T>, Status>> + Send + 'static,
        fsync: fn(&T) -> Option<u64>,
    ) -> impl Future<Output = Result<tonic::Response<T>, Status>> + Send + 'static {
        let (timing, target, asked) = (self.net.0.timing.clone(), self.target, clock::steady());
        // One at a time: a pause of the peer is one slow answer, not one for each question that waited.
        let measuring = self.measuring.clone();
        let counts = !measuring.swap(true, Ordering::Relaxed);
        let asking = tokio::spawn(async move {
            let reply = tokio::time::timeout(LATE, call).await;
            if counts {
                measuring.store(false, Ordering::Relaxed);
            }
            let reply = reply.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))?;
            if counts {
                timing.answered(target, asked, fsync(reply.get_ref()));
            }
            Ok(reply)
        });
        async move { asking.await.map_err(|_| Status::cancelled("this node is stopping"))? }
    }

    /// How many rows of a view the peer has already.
    async fn staged(&self, id: &str) -> RpcResult<u64> {
        let mut client = self.client();
        let request = proto::StagedRequest { envelope: self.envelope(), id: id.to_owned() };
        match tokio::time::timeout(APPEND, client.staged(request)).await {
            Ok(Ok(reply)) => Ok(reply.into_inner().rows),
            // A release that always begins.
            Ok(Err(status)) if status.code() == Code::Unimplemented => Ok(0),
            Ok(Err(status)) => Err(Self::failed(&status)),
            Err(_) => Err(RPCError::Unreachable(Unreachable::from_string("no answer about a snapshot"))),
        }
    }

    fn ballot(&self, rpc: &VoteRequest<Types>) -> proto::VoteRequest {
        proto::VoteRequest {
            envelope: self.envelope(),
            vote: Some(wire::vote(&rpc.vote)),
            last: rpc.last_log_id.as_ref().map(wire::log_id),
            leader_transfer: rpc.leadership_transfer,
        }
    }
}

fn missing(what: &str) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(format!("the answer lacks {what}")))
}

fn vote_of(vote: Option<proto::RaftVote>) -> RpcResult<Vote> {
    vote.as_ref().map(wire::to_vote).ok_or_else(|| missing("a vote"))
}

fn verdict(reply: &proto::VoteReply) -> RpcResult<VoteResponse<Types>> {
    let vote = vote_of(reply.vote)?;
    Ok(VoteResponse::new(vote, reply.last.as_ref().map(wire::to_log_id), reply.granted))
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Copy;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<Types>> {
        let heartbeat = rpc.entries.is_empty();
        let request = proto::AppendRequest {
            envelope: self.envelope(),
            vote: Some(wire::vote(&rpc.vote)),
            previous: rpc.prev_log_id.as_ref().map(wire::log_id),
            entries: rpc.entries.iter().map(wire::entry).collect(),
            committed: rpc.leader_commit.as_ref().map(wire::log_id),
            beat_ms: self.net.0.timing.pace.beat_ms(),
        };
        let mut client = self.client();
        let call = async move { client.append(request).await };
        let reply = match heartbeat {
            true => {
                let call = self.measured(call, |reply: &proto::AppendReply| Some(reply.fsync_us));
                self.within(RPCTypes::AppendEntries, stretch(option.hard_ttl()), call).await?
            }
            false => self.within(RPCTypes::AppendEntries, APPEND, call).await?,
        };
        use proto::append_reply::Result as Kind;
        Ok(match reply.result() {
            Kind::Success => AppendEntriesResponse::Success,
            Kind::Partial => {
                AppendEntriesResponse::PartialSuccess(reply.matching.as_ref().map(wire::to_log_id))
            }
            Kind::Conflict => AppendEntriesResponse::Conflict,
            Kind::HigherVote => AppendEntriesResponse::HigherVote(vote_of(reply.vote)?),
        })
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> RpcResult<VoteResponse<Types>> {
        let (mut client, ballot) = (self.client(), self.ballot(&rpc));
        let call = self.measured(async move { client.vote(ballot).await }, |_| None);
        verdict(&self.within(RPCTypes::Vote, stretch(option.soft_ttl()), call).await?)
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<Types>> {
        let (mut client, ballot) = (self.client(), self.ballot(&rpc));
        let call = self.measured(async move { client.pre_vote(ballot).await }, |_| None);
        verdict(&self.within(RPCTypes::Vote, stretch(option.soft_ttl()), call).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<Types, Copy>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let Copy::View(outgoing) = snapshot.snapshot else {
            let reason = "a received snapshot is not there to be sent";
            return Err(StreamingError::Network(NetworkError::from_string(reason)));
        };
        let shelf = self.net.0.shelf.clone();
        let reading = shelf.read(&outgoing, self.staged(&outgoing.id).await?);
        let head = proto::SnapshotHead {
            envelope: self.envelope(),
            vote: Some(wire::vote(&vote)),
            last: snapshot.meta.last_log_id.as_ref().map(wire::log_id),
            membership: Some(wire::stored_membership(&snapshot.meta.last_membership)),
            id: outgoing.id.clone(),
            rows: reading.rows(),
        };
        let (parts, stream) = tokio::sync::mpsc::channel(4);
        let sending = tokio::spawn(send(head, reading, parts));
        let mut client = self.client();
        let call = client.snapshot(tokio_stream::wrappers::ReceiverStream::new(stream));
        let reply = tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            reply = call => reply.map_err(|status| Self::failed(&status).into()),
        };
        sending.abort();
        if reply.is_ok() {
            shelf.done(&outgoing.id);
        }
        let vote = vote_of(reply?.into_inner().vote).map_err(StreamingError::from)?;
        Ok(SnapshotResponse::new(vote))
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<Types>> {
        let request = proto::TransferRequest {
            envelope: self.envelope(),
            from: Some(wire::vote(rpc.from_leader())),
            to: *rpc.to_node_id(),
            last: rpc.last_log_id().map(wire::log_id),
        };
        let mut client = self.client();
        let call = client.transfer_leader(request);
        self.within(RPCTypes::TransferLeader, stretch(option.soft_ttl()), call).await?;
        Ok(Ok(()))
    }
}

/// Feeds a snapshot into its stream; four batches of 1 MiB wait at most. Stops when nobody receives.
async fn send(
    head: proto::SnapshotHead,
    mut reading: Reading,
    parts: tokio::sync::mpsc::Sender<proto::SnapshotPart>,
) {
    use proto::snapshot_part::Part;
    let part = |part| proto::SnapshotPart { part: Some(part) };
    if parts.send(part(Part::Head(head))).await.is_err() {
        return;
    }
    loop {
        let page = away(move || Ok((reading.next()?, reading))).await;
        match page {
            Ok((Some(rows), rest)) => {
                reading = rest;
                if parts.send(part(Part::Rows(rows))).await.is_err() {
                    return;
                }
            }
            Ok((None, rest)) => {
                let _ = parts.send(part(Part::End(rest.end()))).await;
                return;
            }
            Err(reason) => {
                // The stream ends without its end, so the receiver refuses it.
                tracing::warn!(%reason, "read a snapshot to send");
                return;
            }
        }
    }
}

/// What a peer is in the membership that Raft uses.
pub(crate) fn known_peer(raft: &Raft, node: u64) -> Option<Peer> {
    use openraft::async_runtime::watch::WatchReceiver;
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.membership().get_node(&node).cloned()
}
