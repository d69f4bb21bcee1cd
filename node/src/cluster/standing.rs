//! Where this node stands in the cluster, as a watched value.
//!
//! Not a licence to act: openraft keeps `Leader` when cut off. Duties need a committed claim.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::{RaftMetrics, ServerState};
use quire_proto::id::NodeId;
use tokio::sync::watch;

use super::presence::Gone;
use super::raft::{Raft, Types};
use super::server::LastWord;
use super::timing::Timing;
use crate::clock;

/// What a node does in Raft.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Leads, as far as it knows.
    Leader,
    /// Votes and follows.
    Follower,
    /// Receives the log without a vote.
    #[default]
    Learner,
    /// Asks for votes.
    Candidate,
}

/// A moment of this node's view of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// This node's part.
    pub role: Role,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: u64,
    /// Index of the last log entry here.
    pub last_log: u64,
    /// Index of the last entry in the tables here.
    pub applied: u64,
    /// A leader: a majority acknowledged it lately. Others: the leader spoke to this node lately.
    pub quorum: bool,
    /// Who votes; while the membership changes, the old and the new voters.
    pub voters: BTreeSet<NodeId>,
    /// Who receives the log without a vote.
    pub learners: BTreeSet<NodeId>,
    /// A membership change is under way.
    pub changing: bool,
    /// Whose process is known to be gone: its address refuses connections, or it took its leave.
    pub gone: BTreeSet<NodeId>,
    /// Why this node's Raft has stopped for good, if it has.
    pub failed: Option<String>,
}

fn standing(metrics: &RaftMetrics<Types>, last_word: &LastWord, gone: &Gone, lately: Duration) -> Standing {
    let membership = metrics.membership_config.membership();
    let role = match metrics.state {
        ServerState::Leader => Role::Leader,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Learner | ServerState::Shutdown => Role::Learner,
    };
    let voters: BTreeSet<NodeId> = membership.voter_ids().map(NodeId).collect();
    let failed = metrics.running_state.as_ref().err().map(ToString::to_string);
    let alone = voters.len() == 1 && voters.contains(&NodeId(metrics.id));
    let acknowledged = metrics.last_quorum_acked.as_ref().is_some_and(|at| at.ago() < lately);
    let quorum = failed.is_none()
        && match role {
            Role::Leader => alone || acknowledged,
            Role::Follower | Role::Learner => {
                metrics.current_leader.is_some() && last_word.elapsed().is_some_and(|ago| ago < lately)
            }
            Role::Candidate => false,
        };
    Standing {
        role,
        leader: metrics.current_leader.map(NodeId),
        term: metrics.current_term,
        last_log: metrics.last_log_index.unwrap_or(0),
        applied: metrics.last_applied.map_or(0, |id| id.index),
        quorum,
        voters,
        learners: membership.learner_ids().map(NodeId).collect(),
        changing: membership.get_joint_config().len() > 1
            || metrics.membership_config != metrics.committed_membership_config,
        gone: gone.keys().copied().collect(),
        failed,
    }
}

/// Keeps the watched value current until `raft` is gone or nobody can watch any more.
pub(crate) async fn observe(
    raft: Raft,
    last_word: LastWord,
    mut gone: watch::Receiver<Gone>,
    timing: Timing,
    to: watch::Sender<Standing>,
) {
    let mut metrics = raft.metrics();
    drop(raft);
    // Silence changes the quorum without any event, so it is looked for.
    loop {
        // Twice the longest election.
        let lately = timing.silence();
        let now = standing(&metrics.borrow_watched(), &last_word, &gone.borrow_and_update(), lately);
        to.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            changed = gone.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(lately / 8) => {}
        }
    }
}

/// How long ago each peer acknowledged, the former leader at least spoke; empty unless this node leads.
pub(crate) fn heard(raft: &Raft, last_word: &LastWord) -> BTreeMap<NodeId, Duration> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let Some(beats) = &metrics.heartbeat else { return BTreeMap::new() };
    let spoke = last_word.by();
    let peers = beats.iter().filter(|(id, _)| **id != metrics.id);
    let heard = peers.filter_map(|(id, at)| {
        let acknowledged = at.as_ref().map(|at| at.ago());
        let spoke = spoke.filter(|(_, by)| by == id);
        let spoke = spoke.map(|(at, _)| clock::steady().saturating_duration_since(at));
        Some((NodeId(*id), acknowledged.into_iter().chain(spoke).min()?))
    });
    heard.collect()
}

/// The last committed entry that each node acknowledged, this one included, for it counts among the majority that
/// committed it; empty unless this node leads.
pub(crate) fn acked(raft: &Raft) -> BTreeMap<NodeId, u64> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let Some(replication) = &metrics.replication else { return BTreeMap::new() };
    let committed = metrics.last_applied.map_or(0, |id| id.index);
    // Of itself it knows what is on its disk, as of the others.
    let nodes = replication.iter();
    nodes.map(|(id, at)| (NodeId(*id), at.map_or(0, |id| id.index).min(committed))).collect()
}

/// How many log entries each peer lacks; empty unless this node leads.
pub(crate) fn lag(raft: &Raft) -> BTreeMap<NodeId, u64> {
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let Some(replication) = &metrics.replication else { return BTreeMap::new() };
    let last = metrics.last_log_index.unwrap_or(0);
    let behind = |at: Option<u64>| last.saturating_sub(at.unwrap_or(0));
    let peers = replication.iter().filter(|(id, _)| **id != metrics.id);
    peers.map(|(id, at)| (NodeId(*id), behind(at.map(|id| id.index)))).collect()
}
