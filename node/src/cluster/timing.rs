//! Measures this node's synced writes and the answers of others, and keeps Raft's pace by it: the leader sets the beat,
//! its heartbeats carry it, whoever hears one follows. What it comes to is decided by `coordinator::timing`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quire_coordinator::timing::{self, Measured, Measures, Pacemaker};
use quire_proto::id::{Millis, NodeId};
use rocksdb::WriteBatch;
use tokio::sync::watch;

use super::pace::Pace;
use super::raft::away;
use super::standing::{Role, Standing};
use super::store::{META, Store, StoreError, key};
use crate::clock;

/// Between two looks; the beat at most doubles with each.
const LOOK: Duration = Duration::from_secs(1);

/// What is measured on one node, and the pace that follows; clones share it.
#[derive(Clone)]
pub(crate) struct Timing {
    pub(crate) pace: Pace,
    measures: Arc<Mutex<Measures>>,
    began: Instant,
}

impl Timing {
    /// Goes on with the beat that was in force when `store` was closed.
    pub(crate) fn open(store: &Store) -> Result<Self, StoreError> {
        let pace = Pace::default();
        let stored = store.meta(key::BEAT)?.and_then(|octets| octets.try_into().ok());
        if let Some(beat) = stored.map(u64::from_be_bytes) {
            pace.set(beat);
        }
        Ok(Timing { pace, measures: Arc::default(), began: clock::steady() })
    }

    fn now(&self) -> Millis {
        let since = clock::steady().saturating_duration_since(self.began);
        Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn measures(&self) -> MutexGuard<'_, Measures> {
        self.measures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A write, begun then, is on disk.
    pub(crate) fn synced(&self, begun: Instant) {
        let took = clock::steady().saturating_duration_since(begun);
        self.measures().handle_fsync(took, self.now());
    }

    /// A peer answered what was asked then, and says how long its own writes take, where it is asked.
    pub(crate) fn answered(&self, peer: u64, asked: Instant, fsync_us: Option<u64>) {
        let took = clock::steady().saturating_duration_since(asked);
        let (mut measures, now) = (self.measures(), self.now());
        measures.handle_answer(NodeId(peer), took, now);
        if let Some(fsync_us) = fsync_us {
            measures.handle_report(NodeId(peer), fsync_us);
        }
    }

    /// This node's own.
    pub(crate) fn own(&self) -> Measured {
        let now = self.now();
        self.measures().own(now)
    }

    /// Of a node, as far as this one, `me`, asks it.
    pub(crate) fn of(&self, node: NodeId, me: NodeId) -> Measured {
        let now = self.now();
        if node == me { self.measures().own(now) } else { self.measures().of(node, now) }
    }

    /// One candidate's turn.
    pub(crate) fn turn(&self) -> Duration {
        Duration::from_millis(timing::turn_ms(self.pace.beat_ms()))
    }

    /// How lately who takes the leadership over must have been heard, and how long that takes at most.
    pub(crate) fn succession(&self) -> Duration {
        Duration::from_millis(timing::succession_ms(self.pace.beat_ms()))
    }

    /// Keeps the pace until aborted, and keeps it in mind for the next start.
    pub(super) async fn keep(self, store: Store, standing: watch::Receiver<Standing>) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pacemaker = Pacemaker::new(self.pace.beat_ms());
        let mut noted = self.pace.beat_ms();
        loop {
            look.tick().await;
            let now = standing.borrow().clone();
            self.look(&mut pacemaker, &now);
            let beat = self.pace.beat_ms();
            if beat != noted {
                tracing::info!(beat_ms = beat, was_ms = noted, "another pace");
                let store = store.clone();
                match away(move || Ok(note(&store, beat)?)).await {
                    Ok(()) => noted = beat,
                    Err(error) => tracing::debug!(%error, "the pace is not kept for the next start"),
                }
            }
        }
    }

    fn look(&self, pacemaker: &mut Pacemaker, standing: &Standing) {
        let now = self.now();
        let members = || standing.voters.iter().chain(&standing.learners);
        let wanted = {
            let mut measures = self.measures();
            measures.retain(|peer| members().any(|member| *member == peer));
            measures.wanted_ms(standing.voters.iter().copied(), now)
        };
        match standing.role {
            Role::Leader if standing.quorum => pacemaker.handle_wanted(wanted, now),
            _ if standing.quorum => return pacemaker.handle_leader(self.pace.beat_ms()),
            _ => pacemaker.handle_alone(wanted),
        }
        self.pace.set(pacemaker.beat_ms());
    }

    /// The longest that a dead host's silence lasts before votes are asked for.
    pub(crate) fn silence(&self) -> Duration {
        Duration::from_millis(timing::silent_ms(self.pace.beat_ms()))
    }
}

fn note(store: &Store, beat: u64) -> Result<(), StoreError> {
    let mut batch = WriteBatch::default();
    batch.put_cf(store.family(META)?, key::BEAT, beat.to_be_bytes());
    store.write(batch)
}
