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
use std::time::{Duration, Instant};

use openraft::async_runtime::watch::WatchReceiver;
use openraft::raft::TransferLeaderRequest;
use quire_coordinator::tables::{ReadExt, Table};
use quire_proto::cluster::AttendReply;
use quire_proto::cluster::attend_reply::Verdict;
use quire_proto::id::NodeId;
use quire_proto::store::Member;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::network::{Net, known_peer};
use super::raft::{Raft, Vote};
use super::server::LastWord;
use super::standing::{Role, Standing};
use super::store::Store;
use crate::clock;

/// Between two dials after a stream broke; doubled up to [`SELDOM`]. A dying process may accept once more.
const OFTEN: Duration = Duration::from_millis(5);
/// Between two dials of a node that stays away: how late it is seen again.
const SELDOM: Duration = Duration::from_millis(500);
/// One candidate's turn: two round trips and two fsyncs. Survivors take turns, so that votes don't split.
const TURN_MS: u64 = 60;
/// Turns after which Raft's own timers are left to do it.
const ROUNDS: u64 = 20;

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
        let mut tasks = Tasks::default();
        loop {
            let now = standing.borrow_and_update().clone();
            self.attend_those(self.wanted(&now), &mut tasks);
            self.campaign_where_due(&now, &gone.borrow_and_update().clone(), &mut tasks);
            tokio::select! {
                changed = standing.changed() => if changed.is_err() { return },
                _ = gone.changed() => {}
            }
        }
    }

    /// All voters; for the leader, all members.
    fn wanted(&self, now: &Standing) -> BTreeSet<u64> {
        let mut wanted: BTreeSet<u64> = now.voters.iter().map(|id| id.0).collect();
        if now.role == Role::Leader {
            let members = self.store.view().ok().and_then(|view| view.all(Table::Members, &[]).ok());
            wanted.extend(members.into_iter().flatten().map(|member: Member| member.id));
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
        let mut pause = OFTEN;
        loop {
            match self.net.attend(node, known_peer(&self.raft, node)).await {
                Ok(mut stream) => {
                    // Admitted or not, the answer shows a process that lives.
                    while let Ok(Some(AttendReply { verdict, .. })) = stream.message().await {
                        match Verdict::try_from(verdict) {
                            Ok(Verdict::Leaving) => self.leave(node),
                            Ok(Verdict::Welcome) => {
                                pause = OFTEN;
                                self.back(node);
                            }
                            _ => {}
                        }
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => self.leave(node),
                Err(error) => tracing::debug!(node, %error, "attend"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(SELDOM);
        }
    }

    fn leave(&self, node: u64) {
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
            let turns = if round == 0 { rank } else { of };
            // The first gives the others a moment to see the same.
            let jitter = 10 + rand::random::<u64>() % 10;
            tokio::time::sleep(Duration::from_millis(turns * TURN_MS + jitter)).await;
            let spoke = self.last_word.at().is_some_and(|at| at > since);
            if spoke || self.vote() != vote {
                return;
            }
            tracing::info!(round, "the leader is gone: asking for votes");
            if self.raft.trigger().elect(true).await.is_err() {
                return;
            }
        }
    }
}
