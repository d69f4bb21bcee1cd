//! What applied entries changed, for whoever would otherwise look through whole tables again and again.
//!
//! Only keys: whoever follows reads the rows that matter to it from a view taken afterwards, and so sees at least that
//! change. Those who fall too far behind, and everybody after a snapshot, are told to look at everything.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quire_coordinator::tables::Table;
use tokio::sync::watch;

/// Keys kept for all followers together: at about 100 octets each 6.5 MB at the most, and at 50,000 devices a second
/// more than a second's worth. At the bound the oldest go, and who had not seen them looks at everything.
const KEPT: usize = 65_536;

/// Tables whose keys are kept: those that are large and that somebody follows. Of all others one learns only that
/// something was applied.
const FOLLOWED: [Table; 5] = [Table::Units, Table::Devices, Table::Members, Table::Scripts, Table::Alerts];

/// A row that was put or removed.
pub type Touched = (Table, Bytes);

/// What changed since the last look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// More than is known: look at everything. `rows` is then empty.
    pub everything: bool,
    /// Rows of units, devices, members, scripts and alerts, in the order of their changes, each once. Other tables may have
    /// changed too.
    pub rows: Vec<Touched>,
}

/// Where the state machine tells of changes; clones share it.
#[derive(Clone)]
pub struct Feed {
    ring: Arc<Mutex<Ring>>,
    /// Counts what was told.
    told: watch::Sender<u64>,
    /// Counts the batches that changed measured ways.
    ways: Arc<AtomicU64>,
}

struct Ring {
    /// Number of the first key that is kept.
    first: u64,
    kept: VecDeque<Touched>,
    most: usize,
}

impl Ring {
    fn end(&self) -> u64 {
        self.first + self.kept.len() as u64
    }
}

impl Feed {
    /// Nobody follows yet.
    #[allow(clippy::new_without_default, reason = "a feed belongs to one state machine")]
    pub fn new() -> Self {
        Feed::holding(KEPT)
    }

    fn holding(most: usize) -> Self {
        let ring = Ring { first: 0, kept: VecDeque::new(), most };
        Feed { ring: Arc::new(Mutex::new(ring)), told: watch::Sender::new(0), ways: Arc::default() }
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True for the keys that [`Feed::tell`] wants.
    pub fn wants(table: Table) -> bool {
        FOLLOWED.contains(&table)
    }

    /// Measured ways have changed, in a batch that readers see by now: nobody wants their keys, only that it is so.
    pub(crate) fn tell_ways(&self) {
        self.ways.fetch_add(1, Ordering::Release);
    }

    /// Another number whenever measured ways may be others. Take a view afterwards, not before.
    pub(crate) fn ways(&self) -> u64 {
        self.ways.load(Ordering::Acquire)
    }

    /// Tells of a batch that readers see by now.
    pub fn tell(&self, touched: Vec<Touched>) {
        {
            let mut ring = self.ring();
            ring.kept.extend(touched);
            let excess = ring.kept.len().saturating_sub(ring.most);
            ring.kept.drain(..excess);
            ring.first += excess as u64;
        }
        self.told.send_modify(|count| *count += 1);
    }

    /// Tells that everything may be another: a snapshot was installed.
    pub fn tell_everything(&self) {
        {
            let mut ring = self.ring();
            // A jump that no follower has seen.
            ring.first = ring.end() + 1;
            ring.kept.clear();
        }
        self.tell_ways();
        self.told.send_modify(|count| *count += 1);
    }

    /// One that has seen nothing yet.
    pub fn follow(&self) -> Changes {
        let told = self.told.subscribe();
        Changes { feed: self.clone(), told, next: None }
    }
}

/// One follower. The first look is at everything.
pub struct Changes {
    feed: Feed,
    told: watch::Receiver<u64>,
    next: Option<u64>,
}

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Changes(next {:?})", self.next)
    }
}

impl Changes {
    /// Waits until something was applied since the last [`Changes::take`]; at once if something was. May be dropped
    /// and called again: nothing is lost.
    pub async fn changed(&self) {
        let mut told = self.told.clone();
        // The sender lives in this very struct.
        let _ = told.changed().await;
    }

    /// What changed since the last call. Take a view afterwards, not before.
    pub fn take(&mut self) -> Seen {
        self.told.mark_unchanged();
        let ring = self.feed.ring();
        let Some(next) = self.next.replace(ring.end()) else {
            return Seen { everything: true, rows: Vec::new() };
        };
        let Some(skip) = next.checked_sub(ring.first) else {
            return Seen { everything: true, rows: Vec::new() };
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let mut once = std::collections::HashSet::new();
        let rows = ring.kept.iter().skip(skip).filter(|touched| once.insert((*touched).clone()));
        Seen { everything: false, rows: rows.cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(numbers: std::ops::Range<u8>) -> Vec<Touched> {
        numbers.map(|n| (Table::Devices, Bytes::from(vec![n]))).collect()
    }

    #[test]
    fn a_follower_sees_each_change_once_and_in_order() {
        let feed = Feed::holding(100);
        feed.tell(keys(0..3));
        let mut changes = feed.follow();
        assert!(changes.take().everything, "who comes new has seen nothing");
        assert_eq!(changes.take(), Seen::default());
        feed.tell(keys(3..5));
        feed.tell(keys(4..6));
        assert_eq!(changes.take(), Seen { everything: false, rows: keys(3..6) });
        assert_eq!(changes.take(), Seen::default());
    }

    #[test]
    fn who_falls_behind_looks_at_everything_and_then_goes_on() {
        let feed = Feed::holding(4);
        let (mut slow, mut fast) = (feed.follow(), feed.follow());
        let _ = (slow.take(), fast.take());
        for n in 0..3 {
            feed.tell(keys(n * 3..n * 3 + 3));
            assert_eq!(fast.take().rows, keys(n * 3..n * 3 + 3));
        }
        assert_eq!(slow.take(), Seen { everything: true, rows: Vec::new() });
        feed.tell(keys(9..10));
        assert_eq!(slow.take().rows, keys(9..10));
        assert!(feed.ring().kept.len() <= 4);
    }

    #[test]
    fn a_snapshot_is_everything_even_for_who_was_up_to_date() {
        let feed = Feed::holding(4);
        let mut changes = feed.follow();
        let _ = changes.take();
        feed.tell_everything();
        assert!(changes.take().everything);
        feed.tell(keys(0..2));
        assert_eq!(changes.take().rows, keys(0..2));
    }

    #[tokio::test]
    async fn waiting_loses_nothing() {
        let feed = Feed::holding(4);
        let mut changes = feed.follow();
        let _ = changes.take();
        feed.tell(Vec::new());
        changes.changed().await;
        // Dropped and asked again before anything was taken.
        changes.changed().await;
        let _ = changes.take();
        let waiting = changes.changed();
        tokio::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        feed.tell(keys(0..1));
        waiting.await;
    }
}
