//! Whole clusters under virtual time, from one seed: real openraft over a simulated network and disks that tear, the real
//! state machine, planner, roster, claim, outbox and fencing, and everything that can break.
//!
//! What is real: openraft with the node's own timing; everything that the coordinator decides; who may take part
//! (`admission`, `register`), the feed of changes and the outbox's entries of the node. What stands in for the node's
//! shell, because it needs sockets and RocksDB: the tasks that call these (`duties`, `collect`, `site`, `presence`,
//! `propose`), the disk, the network and the Web Admin's database. Each names the file that it follows.
//!
//! A seed is a run: the same seed gives the same trace, which a test holds. A run in which too little happened counts
//! as not run.

pub mod checks;
pub mod collect;
pub mod disk;
pub mod duties;
pub mod faults;
pub mod machine;
pub mod net;
pub mod node;
pub mod paces;
pub mod plan;
pub mod presence;
pub mod propose;
pub mod raft;
pub mod runtime;
pub mod scenario;
pub mod site;
pub mod spool;
pub mod timing;
pub mod transport;
pub mod watch;
pub mod world;

use std::collections::BTreeMap;

use checks::Checks;
use plan::Plan;
use world::World;

/// What a run came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// Of everything that happened.
    pub trace: u64,
    /// How often what happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// What did not hold, first.
    pub violation: Option<String>,
    /// The trace, where it was wanted.
    pub lines: Vec<String>,
    /// How long the world turned, seconds.
    pub seconds: u64,
}

impl Report {
    /// How often something happened.
    #[must_use]
    pub fn counted(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Why the run counts as not run, if it does: too little traffic or too few faults.
    #[must_use]
    pub fn idle(&self) -> Option<String> {
        let minutes = self.seconds / 60;
        let least = [
            ("faults", minutes),
            ("entries applied", 100 * minutes),
            ("readings upstream", 5 * minutes),
            ("states compared", 50 * minutes),
            ("ownership checked", minutes / 2),
            ("runs that ended whole", 1),
        ];
        let low = least.iter().find(|(what, least)| self.counted(what) < *least);
        low.map(|(what, least)| format!("only {} {what}, {least} are the least", self.counted(what)))
    }
}

/// Raft's pace on slow and on quick disks.
#[must_use]
pub fn paces(seed: u64) -> paces::Paces {
    let world = World::new(Checks::default(), Plan::new(seed, 0));
    runtime::block_on(seed, async move {
        let seen = paces::run(world.clone()).await;
        world.close();
        seen
    })
}

/// Runs a seed for so many seconds of faults; with `told`, its trace can be read.
#[must_use]
pub fn run(seed: u64, seconds: u64, told: bool) -> Report {
    let checks = if told { Checks::told() } else { Checks::default() };
    let world = World::new(checks.clone(), Plan::new(seed, seconds));
    let whole = world.clone();
    let seconds = runtime::block_on(seed, async move {
        scenario::run(whole.clone()).await;
        let seconds = runtime::elapsed().as_secs();
        whole.close();
        seconds
    });
    drop(world);
    Report {
        seed,
        trace: checks.trace_hash(),
        counts: checks.counts(),
        violation: checks.violation(),
        lines: checks.lines(),
        seconds,
    }
}
