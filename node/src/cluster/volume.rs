//! How much the log holds: openraft bounds it in entries, and an entry may be four octets or four million.
//!
//! What it must never do: purge what no snapshot covers; openraft sees to that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::raft::Raft;
use super::snapshot::Shelf;

/// The log's newest entries that are kept: a follower that was away for longer gets a snapshot. Four minutes of a million
/// devices read every hour (280 readings of 1 KB a second), and as much again until it is looked at.
const KEPT_OCTETS: u64 = 64 << 20;
/// So many are kept for a follower that is being sent a snapshot, which it would need once more if what follows were gone:
/// ten minutes at 1 MB a second.
const KEPT_FOR_A_SNAPSHOT: u64 = 640 << 20;
/// Octets between two marks.
const STEP: u64 = 1 << 20;
/// Between two looks: at 50 MB a second, the log is 100 MB larger by then.
const LOOK: Duration = Duration::from_secs(2);

/// Octets that were appended, by index; clones share it. What was there at the start is left to the bound in entries.
#[derive(Clone, Default)]
pub(crate) struct Volume(Arc<Mutex<Marks>>);

#[derive(Default)]
struct Marks {
    appended: u64,
    /// Index of an entry, and what was appended through it: one each [`STEP`].
    marks: VecDeque<(u64, u64)>,
}

impl Volume {
    /// Entries through `index` were appended.
    pub(crate) fn appended(&self, index: u64, octets: u64) {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        marks.appended += octets;
        // Entries that were taken back are written again under lower numbers.
        while marks.marks.back().is_some_and(|(last, _)| *last >= index) {
            marks.marks.pop_back();
        }
        let appended = marks.appended;
        if marks.marks.back().is_none_or(|(_, before)| appended - before >= STEP) {
            marks.marks.push_back((index, appended));
        }
    }

    /// Through which entry the log may go, once it holds twice what is kept. Behind `sending`, where a snapshot that is
    /// being sent ends, more is kept.
    fn excess(&self, sending: Option<u64>) -> Option<u64> {
        let mut marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let appended = marks.appended;
        let (_, oldest) = *marks.marks.front()?;
        if appended - oldest < 2 * KEPT_OCTETS {
            return None;
        }
        let goes = |(index, then): &(u64, u64)| {
            let wanted = sending.is_some_and(|sending| *index > sending);
            appended - then >= if wanted { KEPT_FOR_A_SNAPSHOT } else { KEPT_OCTETS }
        };
        let mut through = None;
        while marks.marks.front().is_some_and(goes) {
            through = marks.marks.pop_front();
        }
        through.map(|(index, _)| index)
    }

    /// Keeps the log small until aborted.
    pub(super) async fn keep(self, raft: Raft, shelf: Shelf) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let Some(through) = self.excess(shelf.sending()) else { continue };
            // A snapshot is a view: it costs nothing, and without one nothing is purged.
            let purged = match raft.trigger().snapshot().await {
                Ok(()) => {
                    look.tick().await;
                    raft.trigger().purge_log(through).await
                }
                Err(fatal) => Err(fatal),
            };
            if let Err(fatal) = purged {
                tracing::debug!(%fatal, "the log is not purged");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_half_goes_when_it_holds_twice_what_is_kept() {
        let volume = Volume::default();
        let entry = KEPT_OCTETS / 100 + 100;
        (1..=200).for_each(|index| volume.appended(index, entry));
        assert_eq!(volume.excess(None), None, "the first mark lies behind the first entry");
        volume.appended(201, entry);
        let through = volume.excess(None).unwrap();
        assert!((99..=102).contains(&through), "{through}");
        assert_eq!(volume.excess(None), None);
        // A new leader takes entries back.
        volume.appended(150, entry);
        (151..=220).for_each(|index| volume.appended(index, entry));
        assert!(volume.excess(None).is_none_or(|through| through < 220));
    }

    #[test]
    fn what_follows_a_snapshot_under_way_stays_for_a_while() {
        let volume = Volume::default();
        let entry = KEPT_OCTETS / 100 + 100;
        (1..=500).for_each(|index| volume.appended(index, entry));
        assert!(volume.excess(Some(50)).unwrap() <= 50);
        (501..=900).for_each(|index| volume.appended(index, entry));
        assert_eq!(volume.excess(Some(50)), None);
        (901..=1_100).for_each(|index| volume.appended(index, entry));
        let through = volume.excess(Some(50)).unwrap();
        assert!((99..=102).contains(&through), "nobody takes so long: {through}");
        assert!(volume.excess(None).unwrap() >= 999, "it was sent");
    }
}
