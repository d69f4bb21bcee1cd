//! Whose process is there: one open stream from every node to every voter, from the leader to all.
//!
//! A stream that breaks, and an address that then refuses a connection, mean that the process is gone: the
//! kernel of a living host says so at once, where silence would have to be waited out. A host that is gone
//! says nothing, so the timers of Raft stay as they are. When the leader is gone, its followers drop the
//! lease they hold for it and ask for votes, one after the other.
//!
//! Never: takes silence for absence, or campaigns against a leader that spoke after its stream broke.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use quire_coordinator::rows;
use quire_coordinator::tables::{ReadExt, Table};
use quire_proto::cluster::AttendReply;
use quire_proto::cluster::attend_reply::Verdict;
use quire_proto::id::NodeId;
use quire_proto::store::Member;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::admission::{Admission, Answers};
use super::network::{Net, known_peer};
use super::raft::{Raft, Vote, last_index};
use super::register::Register;
use super::server::LastWord;
use super::standing::{self, Role, Standing};
use super::store::Store;
use super::timing::Timing;
use crate::clock;

/// Between two dials after a stream broke; doubled up to [`SELDOM`]. A dying process may accept once more.
const OFTEN: Duration = Duration::from_millis(5);
/// Between two dials of a node that stays away: how late it is seen again.
const SELDOM: Duration = Duration::from_millis(500);
/// Turns of candidates, which survivors take so that votes don't split, after which Raft's own timers are left to do it.
const ROUNDS: u64 = 6;

/// For others to say that they know this process.
const INTRODUCTION: Duration = Duration::from_secs(3);
/// For them to make up their mind where one of them sees it twice.
const DOUBT: Duration = Duration::from_secs(10);
/// Between two notes of what others acknowledged; a directory rolled back by less goes unnoticed.
const LOOK: Duration = Duration::from_secs(1);

/// Whoever was removed before the CA was changed cannot be told so: it trusts nobody who could.
const STRANGE: &str = "it shows a certificate of a CA that this node does not know. If this node was removed from the \
    cluster, whose CA was changed since, let this machine join anew with an empty directory and a new token; else \
    something of another cluster has that node's address";

/// Whose process is known to be gone, and since when.
pub(crate) type Gone = BTreeMap<NodeId, Instant>;

/// What attending needs.
#[derive(Clone)]
pub(crate) struct Presence {
    pub(crate) me: u64,
    pub(crate) raft: Raft,
    pub(crate) net: Net,
    pub(crate) store: Store,
    pub(crate) last_word: LastWord,
    pub(crate) gone: watch::Sender<Gone>,
    pub(crate) register: Register,
    pub(crate) start: Arc<Start>,
    pub(crate) timing: Timing,
}

/// What this process was when it started, and what others said of it since.
pub(crate) struct Start {
    /// Who votes, by this node's own log.
    pub(crate) voters: BTreeSet<u64>,
    /// All others it knows.
    pub(crate) others: BTreeSet<u64>,
    pub(crate) at: Instant,
    pub(crate) answers: Mutex<Answers>,
    pub(crate) admission: watch::Sender<Admission>,
}

impl Start {
    /// Whom a process that begins with `admission` has to be known to.
    pub(crate) async fn new(raft: &Raft, store: &Store, admission: Admission) -> Result<Self, String> {
        let voters = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect());
        let voters: BTreeSet<u64> = voters.await.map_err(|fatal| fatal.to_string())?;
        let view = store.view().map_err(|error| error.to_string())?;
        let members: Vec<Member> = view.all(Table::Members, &[]).map_err(|fault| fault.to_string())?;
        let mut others: BTreeSet<u64> =
            members.iter().map(|member| member.id).chain(voters.clone()).collect();
        others.remove(raft.node_id());
        let (answers, admission) = (Mutex::default(), watch::Sender::new(admission));
        Ok(Start { voters, others, at: clock::steady(), answers, admission })
    }

    /// Waits until others know this process, but not for ever: without them it can only show what it has.
    ///
    /// # Errors
    /// When they know it to be none of theirs.
    pub(crate) async fn introduced(&self) -> Result<(), String> {
        let mut admission = self.admission.subscribe();
        for patience in [INTRODUCTION, DOUBT] {
            let known = tokio::time::timeout(
                patience,
                admission.wait_for(|admission| *admission != Admission::Waiting),
            )
            .await;
            if let Ok(Ok(known)) = known {
                return match &*known {
                    Admission::Shut(why) => Err(why.clone()),
                    Admission::Waiting | Admission::Open => Ok(()),
                };
            }
            if !self.answers.lock().unwrap_or_else(PoisonError::into_inner).doubted() {
                break;
            }
        }
        Ok(())
    }

    /// Waits until others have refused this process for good.
    pub(crate) async fn fenced(&self) -> String {
        let mut admission = self.admission.subscribe();
        loop {
            if let Admission::Shut(why) = &*admission.borrow_and_update() {
                return why.clone();
            }
            if admission.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }
}

/// Streams and the campaign; all end with it.
#[derive(Default)]
struct Tasks {
    streams: BTreeMap<u64, JoinHandle<()>>,
    campaign: Option<(Vote, JoinHandle<()>)>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let campaign = self.campaign.iter().map(|(_, task)| task);
        self.streams.values().chain(campaign).for_each(JoinHandle::abort);
    }
}

impl Presence {
    /// Attends whom this node should, until aborted.
    pub(crate) async fn run(self, mut standing: watch::Receiver<Standing>) {
        let mut gone = self.gone.subscribe();
        let mut look = tokio::time::interval(LOOK);
        let mut tasks = Tasks::default();
        loop {
            self.judge();
            let now = standing.borrow_and_update().clone();
            self.attend_those(self.wanted(&now), &mut tasks);
            self.campaign_where_due(&now, &gone.borrow_and_update().clone(), &mut tasks);
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return },
                _ = gone.changed() => {}
                _ = look.tick() => self.note(),
            }
        }
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.start.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waits(&self) -> bool {
        *self.start.admission.borrow() == Admission::Waiting
    }

    /// Draws the conclusion from what others said of this process.
    fn judge(&self) {
        let Start { voters, others, at, admission, .. } = &*self.start;
        if matches!(*admission.borrow(), Admission::Shut(_)) {
            return;
        }
        let conclusion = self.answers().admission(self.me, voters, others, *at, clock::steady());
        let changed = admission.send_if_modified(|before| {
            // Once open, missing answers don't close it.
            let change = *before != conclusion && conclusion != Admission::Waiting;
            if change {
                *before = conclusion;
            }
            change
        });
        if changed {
            self.raft.runtime_config().elect(*admission.borrow() == Admission::Open);
        }
    }

    /// Remembers what others acknowledged, by the leader's word or as the leader.
    fn note(&self) {
        let meta = self.store.view().ok().and_then(|view| rows::meta(&view).ok()).unwrap_or_default();
        let heard = meta.heard.into_iter().map(|heard| (heard.node, heard.acked));
        let known = standing::acked(&self.raft).into_iter().map(|(id, acked)| (id.0, acked));
        let others = heard.chain(known).filter(|(node, acked)| *node != self.me && *acked > 0);
        if let Err(error) = self.register.note(others) {
            tracing::warn!(%error, "note what others acknowledged");
        }
    }

    /// All voters; for the leader, all members.
    fn wanted(&self, now: &Standing) -> BTreeSet<u64> {
        let mut wanted: BTreeSet<u64> = now.voters.iter().map(|id| id.0).collect();
        if now.role == Role::Leader {
            let members = self.store.view().ok().and_then(|view| view.all(Table::Members, &[]).ok());
            wanted.extend(members.into_iter().flatten().map(|member: Member| member.id));
        }
        if self.waits() {
            wanted.extend(&self.start.others);
        }
        wanted.remove(&self.me);
        wanted
    }

    fn attend_those(&self, wanted: BTreeSet<u64>, tasks: &mut Tasks) {
        tasks.streams.retain(|node, task| {
            let keep = wanted.contains(node);
            if !keep {
                task.abort();
                self.back(*node);
            }
            keep
        });
        for node in wanted {
            let presence = self.clone();
            tasks.streams.entry(node).or_insert_with(|| tokio::spawn(presence.attend(node)));
        }
    }

    /// Keeps a stream to one node, for as long as it is wanted.
    async fn attend(self, node: u64) {
        let (mut pause, mut strange) = (OFTEN, false);
        loop {
            // Once this process takes part its log grows, and so does what others know of it: no comparison
            // would be fair.
            let waiting = self.waits();
            let last = if waiting { last_index(&self.store).unwrap_or_default() } else { u64::MAX };
            match self.net.attend(node, known_peer(&self.raft, node), last).await {
                Ok(mut stream) => {
                    // Admitted or not, the answer shows a process that lives.
                    while let Ok(Some(AttendReply { verdict, .. })) = stream.message().await {
                        let Ok(verdict) = Verdict::try_from(verdict) else { continue };
                        if verdict == Verdict::Older && waiting && !self.waits() {
                            break;
                        }
                        self.answers().handle(node, verdict, clock::steady());
                        self.judge();
                        match verdict {
                            Verdict::Leaving => self.leave(node),
                            Verdict::Welcome => {
                                pause = OFTEN;
                                self.back(node);
                            }
                            Verdict::Older | Verdict::Duplicate | Verdict::Removed => {}
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.leave(node),
                Err(error) if error.to_string().contains("UnknownIssuer") => {
                    if !std::mem::replace(&mut strange, true) {
                        tracing::warn!(node, "{STRANGE}");
                    }
                }
                Err(error) => tracing::debug!(node, %error, "attend"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SELDOM);
        }
    }

    fn leave(&self, node: u64) {
        self.answers().handle_unreachable(node);
        self.judge();
        self.gone.send_if_modified(|gone| {
            let new = !gone.contains_key(&NodeId(node));
            if new {
                tracing::info!(node, "its process is gone");
                gone.insert(NodeId(node), clock::steady());
            }
            new
        });
    }

    fn back(&self, node: u64) {
        self.gone.send_if_modified(|gone| gone.remove(&NodeId(node)).is_some());
    }

    /// Starts at most one campaign against each leadership.
    fn campaign_where_due(&self, now: &Standing, gone: &Gone, tasks: &mut Tasks) {
        let Some(since) = now.leader.and_then(|leader| gone.get(&leader).copied()) else { return };
        if *self.start.admission.borrow() != Admission::Open {
            return;
        }
        if !now.voters.contains(&NodeId(self.me)) || now.leader == Some(NodeId(self.me)) {
            return;
        }
        let vote = self.vote();
        if tasks.campaign.as_ref().is_some_and(|(against, _)| *against == vote) {
            return;
        }
        let living: Vec<NodeId> = now.voters.iter().filter(|id| !gone.contains_key(id)).copied().collect();
        let rank = living.iter().position(|id| id.0 == self.me).unwrap_or(0) as u64;
        let campaign = self.clone().campaign(vote, since, rank, living.len().max(1) as u64);
        if let Some((_, before)) = tasks.campaign.replace((vote, tokio::spawn(campaign))) {
            before.abort();
        }
    }

    fn vote(&self) -> Vote {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.vote
    }

    /// Asks for votes in turn with the other survivors, until somebody leads or the leader speaks again.
    async fn campaign(self, vote: Vote, since: Instant, rank: u64, of: u64) {
        // Nobody's transfer: only the lease goes, here as on every other survivor that saw the same.
        let release = TransferLeaderRequest::new(vote, NodeId::NOBODY.0, None);
        if self.raft.handle_transfer_leader(release).await.is_err() {
            return;
        }
        for round in 0..ROUNDS {
            // Longer each time: on a busy host a vote may take more than a turn.
            let turns = if round == 0 { rank } else { of << (round - 1) };
            // The first gives the others a moment to see the same.
            let jitter = 10 + rand::random::<u64>() % 10;
            let turns = self.timing.turn() * u32::try_from(turns).unwrap_or(u32::MAX);
            tokio::time::sleep(turns + Duration::from_millis(jitter)).await;
            let spoke = self.last_word.at().is_some_and(|at| at > since);
            let now = self.vote();
            if spoke || (now != vote && now.committed) {
                return;
            }
            tracing::info!(round, "the leader is gone: asking for votes");
            if self.raft.trigger().elect(true).await.is_err() {
                return;
            }
        }
    }
}
