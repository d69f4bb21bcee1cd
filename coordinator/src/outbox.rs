//! The sending window of the upstream link: which outbox entries go out, and what may be acked.
//!
//! One [`Window`] per stream. The shell tells it what the log has assigned (`handle_appended`) and what
//! the server says (`handle_welcome` once, then `handle_received`), fetches the ranges that `wants`
//! answers, reports each batch with `handle_sent`, and commits what `take_ack` answers as
//! `Command::Ack`. Holds numbers only; the entries stay in the table until the ack is applied.
//!
//! Never: sends an entry twice on one stream, acks what the server did not confirm, goes on with a
//! server that lost confirmed entries or has entries that this cluster never made.

use std::collections::VecDeque;

use quire_proto::id::Millis;

/// Entries in one batch. With a row of about 1 KB that is [`MAX_BATCH_OCTETS`].
pub const MAX_BATCH_ENTRIES: u64 = 500;
/// Octets in one batch: an eighth of gRPC's usual limit of 4 MiB for a message.
pub const MAX_BATCH_OCTETS: usize = 512 * 1024;
/// Batches without a receipt: 4 x 512 KiB = 2 MiB in memory at the most, and at 100 ms round trip
/// 4 x 500 / 0.1 s = 20,000 entries a second. At the bound nothing is fetched until a receipt comes.
pub const MAX_IN_FLIGHT: usize = 4;
/// Milliseconds without a receipt after which the link counts as dead: the server stores a batch within
/// a second, and a suspended VM holds its TCP connections.
pub const RECEIPT_WITHIN_MS: u64 = 30_000;

/// What the server said cannot be: the link must close and a human must look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadServer {
    /// It lost entries whose storing it had confirmed (restored from a backup?); they are trimmed here.
    #[error("the server has entries through {through} only, but confirmed them through {acked} earlier")]
    Behind {
        /// What it has.
        through: u64,
        /// What was confirmed.
        acked: u64,
    },
    /// It has entries that were never sent (another cluster's, or ours before a restore).
    #[error("the server has entries through {through}, but only {sent} exist")]
    Ahead {
        /// What it has.
        through: u64,
        /// What could be there.
        sent: u64,
    },
    /// It spoke of entries before it said what it has.
    #[error("the server confirmed entries before its welcome")]
    NoWelcome,
}

/// A range of the outbox to fetch and send as one batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetch {
    /// The first entry.
    pub from: u64,
    /// The last entry; fewer where [`MAX_BATCH_OCTETS`] is reached, but always one.
    pub through: u64,
}

/// The state of one stream.
#[derive(Clone, Debug)]
pub struct Window {
    /// The last entry that exists.
    appended: u64,
    /// The last entry whose ack is committed or was handed out by `take_ack`.
    acked: u64,
    /// The last entry that the server has.
    received: u64,
    /// The next entry to send.
    next: u64,
    welcomed: bool,
    /// Last entry and sending time of each batch without a receipt; at most [`MAX_IN_FLIGHT`].
    in_flight: VecDeque<(u64, Millis)>,
}

impl Window {
    /// A stream whose first entry without a committed ack is `next_after_acked` (the first one is 1).
    pub fn new(next_after_acked: u64) -> Self {
        let acked = next_after_acked.saturating_sub(1);
        Window {
            appended: acked,
            acked,
            received: acked,
            next: acked + 1,
            welcomed: false,
            in_flight: VecDeque::new(),
        }
    }

    /// The log has assigned numbers through `last`.
    pub fn handle_appended(&mut self, last: u64) {
        self.appended = self.appended.max(last);
    }

    /// The server has everything through `through`: sending starts behind it. Call
    /// [`Window::handle_appended`] first, else entries of the last leader look foreign.
    ///
    /// # Errors
    /// When that cannot be.
    pub fn handle_welcome(&mut self, through: u64) -> Result<(), BadServer> {
        if through < self.acked {
            return Err(BadServer::Behind { through, acked: self.acked });
        }
        if through > self.appended {
            return Err(BadServer::Ahead { through, sent: self.appended });
        }
        self.welcomed = true;
        self.received = through;
        self.next = through + 1;
        self.in_flight.clear();
        Ok(())
    }

    /// What to fetch and send now, if anything; the same answer until `handle_sent`.
    pub fn wants(&self) -> Option<Fetch> {
        let room = self.welcomed && self.in_flight.len() < MAX_IN_FLIGHT && self.next <= self.appended;
        room.then(|| Fetch { from: self.next, through: self.appended.min(self.next + MAX_BATCH_ENTRIES - 1) })
    }

    /// A batch through `through` went out, from where [`Window::wants`] said.
    pub fn handle_sent(&mut self, through: u64, now: Millis) {
        if through >= self.next {
            self.next = through + 1;
            self.in_flight.push_back((through, now));
        }
    }

    /// The server has stored everything through `through`.
    ///
    /// # Errors
    /// When it went back, or names what was not sent.
    pub fn handle_received(&mut self, through: u64) -> Result<(), BadServer> {
        if !self.welcomed {
            return Err(BadServer::NoWelcome);
        }
        if through < self.received {
            return Err(BadServer::Behind { through, acked: self.received });
        }
        if through >= self.next {
            return Err(BadServer::Ahead { through, sent: self.next - 1 });
        }
        self.received = through;
        while self.in_flight.front().is_some_and(|(last, _)| *last <= through) {
            self.in_flight.pop_front();
        }
        Ok(())
    }

    /// What to commit as acked: everything received since the last call, as one number.
    pub fn take_ack(&mut self) -> Option<u64> {
        (self.received > self.acked).then(|| {
            self.acked = self.received;
            self.acked
        })
    }

    /// The ack that `take_ack` gave was not committed: it is given again. Acks are cumulative, so one
    /// that was committed after all does no harm.
    pub fn handle_ack_failed(&mut self, acked_so_far: u64) {
        self.acked = self.acked.min(acked_so_far);
    }

    /// Entries that exist and that the server does not have.
    pub fn pending(&self) -> u64 {
        self.appended.saturating_sub(self.received)
    }

    /// When the link counts as dead if no receipt comes; `None` while nothing is in flight.
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.in_flight.front().map(|(_, sent_at)| Millis(sent_at.0.saturating_add(RECEIPT_WITHIN_MS)))
    }

    /// True when a receipt is overdue: close the link and dial again.
    pub fn is_stalled(&self, now: Millis) -> bool {
        self.poll_timeout().is_some_and(|at| at <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const NOW: Millis = Millis(1_000);

    fn window(next: u64, appended: u64, has: u64) -> Window {
        let mut window = Window::new(next);
        window.handle_appended(appended);
        window.handle_welcome(has).unwrap();
        window
    }

    #[test]
    fn a_new_leader_goes_on_where_the_server_is() {
        let mut window = window(11, 30, 25);
        assert_eq!(window.wants(), Some(Fetch { from: 26, through: 30 }));
        assert_eq!(window.take_ack(), Some(25), "the last leader did not live to commit this");
        assert_eq!((window.take_ack(), window.pending()), (None, 5));
    }

    #[test]
    fn at_most_four_batches_wait_for_receipts() {
        let mut window = window(1, 10_000, 0);
        for _ in 0..MAX_IN_FLIGHT {
            let fetch = window.wants().unwrap();
            window.handle_sent(fetch.through, NOW);
        }
        assert_eq!(window.wants(), None);
        window.handle_received(500).unwrap();
        assert_eq!(window.wants(), Some(Fetch { from: 2_001, through: 2_500 }));
        window.handle_received(1_750).unwrap();
        assert_eq!(window.take_ack(), Some(1_750), "receipts are coalesced");
        window.handle_ack_failed(0);
        assert_eq!(window.take_ack(), Some(1_750));
    }

    #[test]
    fn a_server_that_cannot_be_right_is_refused() {
        let mut fresh = Window::new(11);
        fresh.handle_appended(20);
        assert_eq!(fresh.handle_received(10), Err(BadServer::NoWelcome));
        assert_eq!(fresh.wants(), None, "nothing goes out before the welcome");
        assert_eq!(fresh.handle_welcome(9), Err(BadServer::Behind { through: 9, acked: 10 }));
        assert_eq!(fresh.handle_welcome(21), Err(BadServer::Ahead { through: 21, sent: 20 }));
        let mut window = window(11, 20, 15);
        assert_eq!(window.handle_received(16), Err(BadServer::Ahead { through: 16, sent: 15 }));
        assert_eq!(window.handle_received(14), Err(BadServer::Behind { through: 14, acked: 15 }));
    }

    #[test]
    fn a_silent_server_is_noticed() {
        let mut window = window(1, 10, 0);
        assert_eq!(window.poll_timeout(), None);
        window.handle_sent(10, NOW);
        assert!(!window.is_stalled(NOW));
        assert!(window.is_stalled(Millis(NOW.0 + RECEIPT_WITHIN_MS)));
        window.handle_received(10).unwrap();
        assert_eq!(window.poll_timeout(), None);
    }

    proptest! {
        /// Leaders come and go, streams break, acks get lost: the server stores each entry once, in order,
        /// and nothing is acked that it does not have.
        #[test]
        fn every_entry_arrives_once(steps in prop::collection::vec((0..6, 1u64..700), 0..120)) {
            let (mut appended, mut acked, mut stored) = (0u64, 0u64, BTreeSet::new());
            let mut stream = Window::new(1);
            let mut wire: VecDeque<Fetch> = VecDeque::new();
            let mut welcome = true;
            for (step, amount) in steps {
                if std::mem::take(&mut welcome) {
                    stream = Window::new(acked + 1);
                    stream.handle_appended(appended);
                    wire.clear();
                    prop_assert_eq!(stream.handle_welcome(stored.len() as u64), Ok(()));
                }
                match step {
                    0 => { appended += amount; stream.handle_appended(appended); }
                    1 | 2 => if let Some(fetch) = stream.wants() {
                        let sent = Fetch { through: fetch.through.min(fetch.from + amount), ..fetch };
                        wire.push_back(sent);
                        stream.handle_sent(sent.through, NOW);
                    },
                    3 => if let Some(batch) = wire.pop_front() {
                        for seq in batch.from..=batch.through {
                            prop_assert_eq!(seq, stored.len() as u64 + 1);
                            stored.insert(seq);
                        }
                        prop_assert_eq!(stream.handle_received(batch.through), Ok(()));
                    },
                    4 => if let Some(through) = stream.take_ack() {
                        if amount % 3 == 0 { stream.handle_ack_failed(acked) } else { acked = through }
                    },
                    _ => welcome = amount % 4 == 0,
                }
                prop_assert!(acked <= stored.len() as u64 && wire.len() <= MAX_IN_FLIGHT);
            }
        }
    }
}
