//! The simulated network: calls between machines, with delay, loss, and links that are down in one direction or both.
//!
//! It behaves as the node's connections do: a call to a machine whose process is gone is refused at once, one into a
//! hole is given up after the keep-alives, an answer may be lost when the call was obeyed, and a call may arrive long
//! after its caller gave up. Nothing arrives twice, for the transport is TCP; a command does when its fate is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use quire_proto::cluster::AttendRequest;
use quire_proto::cluster::attend_reply::Verdict;
use quire_proto::store::Outcome;

use super::checks::Checks;
use super::machine::Copy;
use super::raft::{SnapshotMeta, Types, Vote};
use super::runtime::{Process, chance, lock, pick, sleep_ms, spawn_in};
use super::watch;

/// The machine that the Web Admin runs on.
pub const ADMIN: usize = 1_000;

/// After so long without an answer a connection is closed (`network::endpoint` of the node).
const KEEP_ALIVE_MS: u64 = 6_000;

/// What is asked of a node.
pub enum Ask {
    /// Raft's entries, and the leader's beat.
    Append(openraft::raft::AppendEntriesRequest<Types>, u64),
    /// A vote.
    Vote(openraft::raft::VoteRequest<Types>),
    /// Whether a vote would be given.
    PreVote(openraft::raft::VoteRequest<Types>),
    /// A snapshot, whole.
    Snapshot(Vote, SnapshotMeta, Copy),
    /// To lead.
    Transfer(openraft::raft::TransferLeaderRequest<Types>),
    /// A command for the log.
    Propose(Bytes),
    /// An introduction, from which machine.
    Attend(AttendRequest, Arc<Process>),
}

/// What a node answers.
pub enum Reply {
    /// To entries, and how long its own writes take.
    Append(openraft::raft::AppendEntriesResponse<Types>, u64),
    /// To an asked vote.
    Vote(openraft::raft::VoteResponse<Types>),
    /// To a snapshot.
    Snapshot(Vote),
    /// To a transfer or a message that has no other answer.
    Done,
    /// What became of a command.
    Outcome(Outcome),
    /// Somebody else leads, or nobody.
    Elsewhere(Option<u64>),
    /// To an introduction.
    Verdict(Verdict),
    /// It does not want this.
    Refused(String),
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// Nobody listens there, and the machine says so.
    Refused,
    /// The connection broke: it may have been obeyed or not.
    Lost,
}

/// Who is meant, and who speaks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Envelope {
    /// The speaker.
    pub from: u64,
    /// The listener.
    pub to: u64,
    /// Of the listener's data directory, as the speaker knows it.
    pub incarnation: u64,
}

/// Answers calls.
pub type Handler = Arc<dyn Fn(Envelope, Ask) -> BoxFuture<'static, Reply> + Send + Sync>;

struct Host {
    process: Arc<Process>,
    handler: Handler,
}

#[derive(Default)]
struct State {
    hosts: BTreeMap<usize, Host>,
    /// Machines without power: they refuse nothing.
    dark: BTreeSet<usize>,
    /// Directions that are down.
    cut: BTreeSet<(usize, usize)>,
    /// Of a thousand calls, those that are lost or late.
    loss: u64,
    /// One way, milliseconds.
    slow: u64,
}

/// The network; clones share it.
#[derive(Clone)]
pub struct Net {
    state: Arc<Mutex<State>>,
    /// Counts changes, for those who wait for one.
    changed: Arc<watch::Sender<u64>>,
    checks: Checks,
}

impl Net {
    /// Nobody is there yet.
    #[must_use]
    pub fn new(checks: Checks) -> Net {
        Net { state: Arc::default(), changed: Arc::new(watch::channel(0)), checks }
    }

    fn change(&self, how: impl FnOnce(&mut State)) {
        how(&mut lock(&self.state));
        self.changed.modify(|count| {
            *count += 1;
            true
        });
    }

    /// A process listens on a machine.
    pub fn listen(&self, machine: usize, process: Arc<Process>, handler: Handler) {
        self.change(|state| {
            state.dark.remove(&machine);
            state.hosts.insert(machine, Host { process, handler });
        });
    }

    /// Its process is gone; `dark` when the machine is, too.
    pub fn gone(&self, machine: usize, dark: bool) {
        self.change(|state| {
            state.hosts.remove(&machine);
            if dark {
                state.dark.insert(machine);
            }
        });
    }

    /// Cuts or mends one direction.
    pub fn cut(&self, from: usize, to: usize, cut: bool) {
        self.change(|state| {
            if cut {
                state.cut.insert((from, to));
            } else {
                state.cut.remove(&(from, to));
            }
        });
    }

    /// Mends everything.
    pub fn mend(&self) {
        self.change(|state| {
            state.cut.clear();
            (state.loss, state.slow) = (0, 0);
        });
    }

    /// Of a thousand calls so many are lost or late from now on.
    pub fn set_loss(&self, parts: u64) {
        lock(&self.state).loss = parts;
    }

    /// Every message takes so many milliseconds longer.
    pub fn set_slow(&self, slow: u64) {
        lock(&self.state).slow = slow;
    }

    /// Whether messages pass in this direction.
    #[must_use]
    pub fn passes(&self, from: usize, to: usize) -> bool {
        !lock(&self.state).cut.contains(&(from, to))
    }

    /// Whether anything of the network is broken now.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let state = lock(&self.state);
        state.cut.is_empty() && state.loss == 0 && state.slow == 0
    }

    /// Whether what passes passes at once: nothing is lost or late.
    #[must_use]
    pub fn is_calm(&self) -> bool {
        let state = lock(&self.state);
        state.loss == 0 && state.slow == 0
    }

    /// Whether a machine has power.
    #[must_use]
    pub fn is_dark(&self, machine: usize) -> bool {
        lock(&self.state).dark.contains(&machine)
    }

    /// Follows changes of the network.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.follow()
    }

    fn host(&self, machine: usize) -> Option<(Arc<Process>, Handler)> {
        let state = lock(&self.state);
        state.hosts.get(&machine).map(|host| (Arc::clone(&host.process), Arc::clone(&host.handler)))
    }

    /// One way.
    pub async fn travel(&self) {
        let slow = lock(&self.state).slow;
        // A LAN: below a millisecond mostly, which the clock cannot show, and sometimes a few.
        let by = if chance(300) { pick(1..4) } else { 0 };
        if by + slow > 0 {
            sleep_ms(by + slow).await;
        }
    }

    /// Calls a machine. Whoever waits for it may give up; the call goes on.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn call(&self, from: usize, to: usize, envelope: Envelope, ask: Ask) -> Result<Reply, NoReply> {
        let (answer, reply) = tokio::sync::oneshot::channel();
        let net = self.clone();
        spawn_in(None, async move {
            let outcome = net.carry(from, to, envelope, ask).await;
            let _ = answer.send(outcome);
        });
        reply.await.unwrap_or(Err(NoReply::Lost))
    }

    async fn carry(&self, from: usize, to: usize, envelope: Envelope, ask: Ask) -> Result<Reply, NoReply> {
        self.travel().await;
        let loss = lock(&self.state).loss;
        if chance(loss) {
            self.checks.count("messages lost");
            if chance(500) {
                sleep_ms(pick(1..200)).await;
                return Err(NoReply::Lost);
            }
            // Sent again by TCP, after a while.
            sleep_ms(pick(200..4_000)).await;
        }
        if !self.passes(from, to) || self.is_dark(to) {
            self.checks.count("messages into a hole");
            sleep_ms(KEEP_ALIVE_MS).await;
            return Err(NoReply::Lost);
        }
        let Some((process, handler)) = self.host(to) else {
            self.travel().await;
            return Err(if self.passes(to, from) { NoReply::Refused } else { NoReply::Lost });
        };
        self.checks.trace(&(from, to, process.serial));
        let (done, mut reply) = tokio::sync::oneshot::channel();
        spawn_in(Some(Arc::clone(&process)), async move {
            let _ = done.send(handler(envelope, ask).await);
        });
        let reply = tokio::select! {
            biased;
            reply = &mut reply => reply.ok(),
            () = process.end() => reply.try_recv().ok(),
        };
        self.travel().await;
        let lost = chance(loss / 2);
        if !self.passes(to, from) || lost {
            self.checks.count("answers lost");
            sleep_ms(if lost { pick(1..200) } else { KEEP_ALIVE_MS }).await;
            return Err(NoReply::Lost);
        }
        reply.ok_or(NoReply::Lost)
    }

    /// Returns when a connection between two machines breaks: the other process ended, or nothing passes for as long as
    /// keep-alives last.
    pub async fn broken(&self, here: usize, there: usize, process: &Arc<Process>) {
        let mut changes = self.changes();
        loop {
            let open = self.passes(here, there) && self.passes(there, here);
            let stands = process.is_still();
            if process.is_dead() && open && !self.is_dark(there) {
                return;
            }
            if !open || stands || process.is_dead() {
                sleep_ms(KEEP_ALIVE_MS).await;
                let open = self.passes(here, there) && self.passes(there, here);
                if !open || process.is_still() || process.is_dead() {
                    return;
                }
                continue;
            }
            tokio::select! {
                biased;
                () = process.end() => {}
                _ = changes.next() => {}
            }
        }
    }

    /// Tells those who wait that something is other than it was.
    pub fn nudge(&self) {
        self.change(|_| ());
    }
}

/// How long a caller waits.
pub async fn within<T>(
    patience: Duration,
    call: impl Future<Output = Result<T, NoReply>>,
) -> Result<T, NoReply> {
    super::runtime::timeout(patience, call).await.unwrap_or(Err(NoReply::Lost))
}
