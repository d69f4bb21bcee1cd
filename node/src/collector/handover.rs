//! Planned moves of units, in two phases: whoever had a unit lets go of it and says so; whoever gets it waits for that
//! word. So a device never has two nodes asking, and the move of a unit costs no packet twice.
//!
//! A node that died says nothing; the leader knows, and the grant then has nobody to wait for. One that dies after the
//! grant is waited for no longer than [`AT_MOST`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quire_proto::id::{Epoch, UnitId};
use quire_proto::store::command::Kind;
use quire_proto::store::{Release, Releases, UnitRow};
use tokio::task::JoinSet;

use crate::cluster::Cluster;

/// A read of a large device takes some 2 s, and a node that looks a second late is no reason for two askers.
const AT_MOST: Duration = Duration::from_secs(10);
/// What was sent may still be worked on: nearly all devices answer in less.
const QUIET: Duration = Duration::from_millis(500);
/// How long a commit may take; it is tried again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Units in one entry of the log.
const UNITS: usize = 1_000;

/// What one node gives and gets.
#[derive(Default)]
pub(super) struct Handover {
    /// Units that this node had, with their new epoch, and since when nothing of them runs here.
    leaving: BTreeMap<UnitId, (Epoch, Option<Instant>)>,
    /// Units that this node gets, and since when it waits for them.
    coming: BTreeMap<UnitId, (Epoch, Instant)>,
    saying: JoinSet<()>,
}

impl Handover {
    /// Takes in a unit's row; true when the unit is this node's to work on.
    pub(super) fn is_ours(&mut self, me: u64, id: &UnitId, row: &UnitRow, now: Instant) -> bool {
        let epoch = Epoch(row.epoch);
        if row.from == me && row.node != me {
            let (known, _) = self.leaving.entry(id.clone()).or_insert((epoch, None));
            *known = epoch;
        } else {
            self.leaving.remove(id);
        }
        if row.node != me || row.from == 0 || row.from == me {
            self.coming.remove(id);
            return row.node == me;
        }
        let (awaited, since) = self.coming.entry(id.clone()).or_insert((epoch, now));
        if *awaited != epoch {
            (*awaited, *since) = (epoch, now);
        }
        now >= *since + AT_MOST
    }

    /// A unit that is in no plan any more.
    pub(super) fn forget(&mut self, id: &UnitId) {
        self.leaving.remove(id);
        self.coming.remove(id);
    }

    /// Forgets what leaves, before all rows are taken in again; what is waited for is waited for no longer by that.
    pub(super) fn forget_leaving(&mut self) {
        self.leaving.clear();
    }

    /// Units whose former owner was waited for long enough.
    pub(super) fn overdue(&self, now: Instant) -> Vec<UnitId> {
        let overdue = self.coming.iter().filter(|(_, (_, since))| now >= *since + AT_MOST);
        overdue.map(|(id, _)| id.clone()).collect()
    }

    /// Says which units are let go of: those of which nothing ran here for a while. `runs` tells whether something does.
    pub(super) fn let_go(&mut self, cluster: &Cluster, runs: impl Fn(&UnitId) -> bool, now: Instant) {
        for (id, (_, quiet)) in &mut self.leaving {
            *quiet = (!runs(id)).then(|| quiet.unwrap_or(now));
        }
        while self.saying.try_join_next().is_some() {}
        let free = |quiet: &Option<Instant>| quiet.is_some_and(|since| now >= since + QUIET);
        let free = self.leaving.iter().filter(|(_, (_, quiet))| free(quiet));
        let mut free: Vec<(&UnitId, Epoch)> = free.map(|(id, (epoch, _))| (id, *epoch)).collect();
        // Those that were waited for in vain are this node's own word.
        free.extend(
            self.overdue(now).iter().filter_map(|id| self.coming.get_key_value(id)).map(|(id, c)| (id, c.0)),
        );
        free.truncate(UNITS);
        if free.is_empty() || !self.saying.is_empty() {
            return;
        }
        let releases = free.iter().map(|(id, epoch)| release(id, *epoch)).collect();
        let cluster = cluster.clone();
        self.saying.spawn(async move {
            let said = Kind::Release(Releases { releases });
            if let Err(error) = cluster.propose(said, PATIENCE).await {
                tracing::debug!(%error, "units not let go of yet; said again");
            }
        });
    }

    /// True while something has to be looked at without a change of the tables.
    pub(super) fn is_pending(&self) -> bool {
        !self.leaving.is_empty() || !self.coming.is_empty()
    }
}

fn release(id: &UnitId, epoch: Epoch) -> Release {
    Release { unit: id.to_string(), epoch: epoch.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u64 = 3;

    fn unit() -> UnitId {
        UnitId::new("any", "10.0.0.0/24".parse().unwrap())
    }

    fn row(node: u64, from: u64, epoch: u64) -> UnitRow {
        UnitRow { unit: unit().to_string(), node, from, epoch, ..UnitRow::default() }
    }

    #[test]
    fn a_unit_is_worked_on_when_its_last_owner_has_let_go() {
        let (mut handover, now) = (Handover::default(), Instant::now());
        assert!(!handover.is_ours(ME, &unit(), &row(ME, 2, 7), now));
        assert!(handover.is_pending() && handover.overdue(now).is_empty());
        assert!(handover.is_ours(ME, &unit(), &row(ME, 0, 7), now));
        assert!(!handover.is_pending());
    }

    #[test]
    fn silence_is_waited_for_no_longer_than_bounded() {
        let (mut handover, now) = (Handover::default(), Instant::now());
        assert!(!handover.is_ours(ME, &unit(), &row(ME, 2, 7), now));
        let later = now + AT_MOST;
        assert_eq!(handover.overdue(later), [unit()]);
        assert!(handover.is_ours(ME, &unit(), &row(ME, 2, 7), later));
        assert!(!handover.is_ours(ME, &unit(), &row(ME, 2, 8), later), "another grant, another wait");
    }

    #[test]
    fn a_unit_that_comes_back_is_ours_at_once() {
        let (mut handover, now) = (Handover::default(), Instant::now());
        assert!(!handover.is_ours(ME, &unit(), &row(4, ME, 7), now));
        assert!(handover.is_pending());
        assert!(handover.is_ours(ME, &unit(), &row(ME, ME, 8), now));
        assert!(!handover.is_pending());
    }
}
