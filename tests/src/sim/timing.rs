//! Measures and keeps a process's pace, as the node's `timing`; the process's clock for Raft is in
//! [`super::runtime::Moment`].

use std::sync::{Arc, Mutex};
use std::time::Duration;

use quire_coordinator::timing::{self, Measures, Pacemaker, silent_ms};
use quire_proto::id::{Millis, NodeId};

use super::node::Node;
use super::runtime::{beat_ms, lock, sleep_ms, steady};

const LOOK_MS: u64 = 1_000;

/// What one process measured; clones share it.
#[derive(Clone, Default)]
pub struct Timing(Arc<Mutex<Measures>>);

fn now() -> Millis {
    Millis(u64::try_from(steady().as_millis()).unwrap_or(0))
}

/// The longest silence of a dead host.
pub fn silence() -> Duration {
    Duration::from_millis(silent_ms(beat_ms()))
}

/// One candidate's turn, milliseconds.
pub fn turn_ms() -> u64 {
    timing::turn_ms(beat_ms())
}

/// How lately who takes the leadership over must have been heard.
pub fn succession() -> Duration {
    Duration::from_millis(timing::succession_ms(beat_ms()))
}

/// How long a peer may acknowledge nothing before it counts as dead.
pub fn patience() -> Duration {
    Duration::from_millis(timing::absent_ms(beat_ms()))
}

impl Timing {
    /// A write, begun then, is on disk.
    pub fn synced(&self, begun: Duration) {
        lock(&self.0).handle_fsync(steady().saturating_sub(begun), now());
    }

    /// A peer answered what was asked then, and says how long its own writes take, where it is asked.
    pub fn answered(&self, peer: u64, asked: Duration, fsync_us: Option<u64>) {
        let mut measures = lock(&self.0);
        measures.handle_answer(NodeId(peer), steady().saturating_sub(asked), now());
        if let Some(fsync_us) = fsync_us {
            measures.handle_report(NodeId(peer), fsync_us);
        }
    }

    /// How long this process's own writes take.
    pub fn fsync_us(&self) -> u64 {
        lock(&self.0).own(now()).fsync_us
    }
}

/// Keeps the pace of a process.
pub async fn keep(node: Arc<Node>) {
    let mut pacemaker = Pacemaker::new(beat_ms());
    loop {
        sleep_ms(LOOK_MS).await;
        let standing = node.standing();
        let wanted = {
            let mut measures = lock(&node.timing.0);
            measures.retain(|peer| standing.voters.contains(&peer.0) || standing.learners.contains(&peer.0));
            measures.wanted_ms(standing.voters.iter().map(|id| NodeId(*id)), now())
        };
        let before = beat_ms();
        match (standing.quorum, standing.leads) {
            (true, true) => pacemaker.handle_wanted(wanted, now()),
            (true, false) => pacemaker.handle_leader(before),
            (false, _) => pacemaker.handle_alone(wanted),
        }
        let beat = pacemaker.beat_ms();
        node.process.set_beat(beat);
        match beat.cmp(&before) {
            std::cmp::Ordering::Less => node.checks.count("paces quickened"),
            std::cmp::Ordering::Greater => node.checks.count("paces slowed"),
            std::cmp::Ordering::Equal => {}
        }
    }
}
