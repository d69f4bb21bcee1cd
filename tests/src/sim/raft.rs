//! Openraft as the simulation instantiates it: the node's types and timing, the simulation's runtime.

use std::collections::hash_map::DefaultHasher;
use std::fmt::{self, Debug};
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::AsyncRuntime;
use openraft::{OptionalSend, TokioRuntime};
use quire_proto::store;
use rand::rngs::SmallRng;

use super::machine::Machine;
use super::runtime::{
    Aborted, Elapsed, JoinHandle, Moment, Sleep, Timeout, dice, sleep, spawn, stretch, timeout,
};

openraft::declare_raft_types!(
    /// The node's instance of openraft's types, on the simulation's runtime.
    pub Types:
        D = Proposal,
        R = Answer,
        Node = Peer,
        AsyncRuntime = SimRuntime,
);

/// One node's Raft.
pub type Raft = openraft::Raft<Types, Machine>;
/// A log id.
pub type LogId = openraft::type_config::alias::LogIdOf<Types>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<Types>;
/// An entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<Types>;
/// A membership with the entry that made it.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
/// What a snapshot covers.
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// An encoded `store::Command`.
#[derive(Clone, PartialEq, Eq)]
pub struct Proposal(pub Bytes);

impl Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} octets)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(self, f)
    }
}

/// What `state::apply` answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer(pub store::Outcome);

/// What the membership says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// The machine that it runs on.
    pub machine: usize,
    /// Of its data directory.
    pub incarnation: u64,
}

/// A hash that is the same in every run.
pub fn digest(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// What an entry says, for comparison.
pub fn entry_digest(entry: &Entry) -> u64 {
    let id = (entry.log_id.leader_id.term, entry.log_id.leader_id.node_id, entry.log_id.index);
    match &entry.payload {
        openraft::EntryPayload::Blank => digest(&(id, 0u8)),
        openraft::EntryPayload::Normal(proposal) => digest(&(id, 1u8, &proposal.0)),
        openraft::EntryPayload::Membership(membership) => digest(&(id, 2u8, format!("{membership:?}"))),
    }
}

/// The runtime that openraft is given.
#[derive(Debug)]
pub struct SimRuntime;

impl AsyncRuntime for SimRuntime {
    type JoinError = Aborted;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = Moment;
    type TimeoutError = Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = Timeout<T>;
    type ThreadLocalRng = SmallRng;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Sleep {
        sleep(stretch(duration))
    }

    fn sleep_until(deadline: Moment) -> Sleep {
        Sleep::until(deadline)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(duration: Duration, future: F) -> Timeout<F> {
        timeout(stretch(duration), future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(deadline: Moment, future: F) -> Timeout<F> {
        Timeout { sleep: Sleep::until(deadline), inner: Box::pin(future) }
    }

    fn is_panic(_join_error: &Self::JoinError) -> bool {
        // A panic ends the whole run.
        false
    }

    fn thread_rng() -> SmallRng {
        dice()
    }

    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = super::watch::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn new(_threads: usize) -> Self {
        SimRuntime
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        // For openraft's own tests alone, which have no world.
        futures::executor::block_on(future)
    }
}
