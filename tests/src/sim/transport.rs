//! Openraft's network over the simulated one, with the patience of the node's.

use std::future::Future;
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use quire_coordinator::rows;
use quire_proto::id::NodeId;

use super::disk::Disk;
use super::machine::Copy;
use super::net::{Ask, Envelope, Net, NoReply, Reply};
use super::node::peer_of;
use super::raft::{Peer, Types, Vote};
use super::runtime::{beat_ms, spawn, steady, stretch, timeout};
use super::timing::Timing;

/// A batch of entries waits for the peer's disk, as in the node.
const APPEND: Duration = Duration::from_secs(5);

type RpcResult<T> = Result<T, RPCError<Types>>;

/// Makes links to peers.
#[derive(Clone)]
pub struct Links {
    /// From where.
    pub machine: usize,
    /// By whom.
    pub me: u64,
    /// Over what.
    pub net: Net,
    /// Where members' addresses stand.
    pub disk: Disk,
    /// What learns how long answers take.
    pub timing: Timing,
}

impl Links {
    /// Where a node is: by the members table, else by what Raft knows.
    #[must_use]
    pub fn peer(&self, node: u64, known: Option<Peer>) -> Option<Peer> {
        let row = self.disk.look(|image| rows::member(&image.tables, NodeId(node)).ok().flatten());
        row.as_ref().and_then(peer_of).or(known)
    }

    /// Asks a node.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn ask(&self, node: u64, known: Option<Peer>, ask: Ask) -> Result<Reply, NoReply> {
        let Some(peer) = self.peer(node, known) else { return Err(NoReply::Refused) };
        let envelope = Envelope { from: self.me, to: node, incarnation: peer.incarnation };
        self.net.call(self.machine, peer.machine, envelope, ask).await
    }
}

impl RaftNetworkFactory<Types> for Links {
    type Network = Link;

    async fn new_client(&mut self, target: u64, peer: &Peer) -> Link {
        Link { links: self.clone(), target, peer: peer.clone() }
    }
}

/// The way to one peer.
pub struct Link {
    links: Links,
    target: u64,
    peer: Peer,
}

fn strange(reply: &Reply) -> RPCError<Types> {
    match reply {
        // Somebody who does not want us: wait before asking again.
        Reply::Refused(why) => RPCError::Unreachable(Unreachable::from_string(why.clone())),
        _ => RPCError::Network(NetworkError::from_string("an answer to another question")),
    }
}

impl Link {
    /// With `measured`, an answer that comes too late for Raft counts for the pace all the same.
    async fn within(
        &self,
        action: RPCTypes,
        patience: Duration,
        ask: Ask,
        measured: bool,
    ) -> RpcResult<Reply> {
        let (links, target, peer, asked) = (self.links.clone(), self.target, self.peer.clone(), steady());
        let asking = async move {
            let reply = links.ask(target, Some(peer), ask).await;
            match &reply {
                Ok(Reply::Append(_, fsync_us)) if measured => {
                    links.timing.answered(target, asked, Some(*fsync_us));
                }
                Ok(Reply::Vote(_)) if measured => links.timing.answered(target, asked, None),
                Ok(_) | Err(_) => {}
            }
            reply
        };
        let asking: BoxFuture<'static, Result<Reply, NoReply>> = match measured {
            true => spawn(asking).map(|reply| reply.unwrap_or(Err(NoReply::Lost))).boxed(),
            false => asking.boxed(),
        };
        match timeout(patience, asking).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(NoReply::Refused)) => Err(RPCError::Unreachable(Unreachable::from_string("refused"))),
            Ok(Err(NoReply::Lost)) => Err(RPCError::Unreachable(Unreachable::from_string("lost"))),
            Err(_) => Err(RPCError::Timeout(Timeout {
                action,
                id: self.links.me,
                target: self.target,
                timeout: patience,
            })),
        }
    }
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Copy;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<Types>> {
        let heartbeat = rpc.entries.is_empty();
        let patience = if heartbeat { stretch(option.hard_ttl()) } else { APPEND };
        match self.within(RPCTypes::AppendEntries, patience, Ask::Append(rpc, beat_ms()), heartbeat).await? {
            Reply::Append(reply, _) => Ok(reply),
            other => Err(strange(&other)),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<Types>, option: RPCOption) -> RpcResult<VoteResponse<Types>> {
        match self.within(RPCTypes::Vote, stretch(option.soft_ttl()), Ask::Vote(rpc), true).await? {
            Reply::Vote(reply) => Ok(reply),
            other => Err(strange(&other)),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<Types>> {
        match self.within(RPCTypes::Vote, stretch(option.soft_ttl()), Ask::PreVote(rpc), true).await? {
            Reply::Vote(reply) => Ok(reply),
            other => Err(strange(&other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<Types, Copy>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let ask = Ask::Snapshot(vote, snapshot.meta, snapshot.snapshot);
        let call = self.links.ask(self.target, Some(self.peer.clone()), ask);
        let reply = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            reply = call => reply,
        };
        match reply {
            Ok(Reply::Snapshot(vote)) => Ok(SnapshotResponse::new(vote)),
            Ok(other) => Err(strange(&other).into()),
            Err(_) => Err(StreamingError::Unreachable(Unreachable::from_string("lost"))),
        }
    }

    async fn transfer_leader(
        &mut self,
        rpc: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> RpcResult<TransferLeaderResponse<Types>> {
        match self
            .within(RPCTypes::TransferLeader, stretch(option.soft_ttl()), Ask::Transfer(rpc), false)
            .await?
        {
            Reply::Done => Ok(Ok(())),
            other => Err(strange(&other)),
        }
    }
}
