//! Whose turn it is: one request in flight to a peer, one sweep after another, requests before probes.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;
use std::ops::Bound;

use super::engine::Core;
use super::exchange::Owner;
use super::table::Work;
use super::wheel::Alarm;

impl Core {
    /// The next slot to be sent: requests before probes, one sweep after another.
    pub(super) fn next_to_send(&mut self, now: u64) -> Option<Alarm> {
        if let Some(alarm) = self.requests.pop_front() {
            return Some(alarm);
        }
        let mut id = self.last_served;
        for _ in 0..self.sweeps.len() {
            let after = (Bound::Excluded(id), Bound::Unbounded);
            id = *self.sweeps.range(after).next().or_else(|| self.sweeps.first_key_value())?.0;
            if let Some(alarm) = self.next_of(id, now) {
                self.last_served = id;
                return Some(alarm);
            }
        }
        None
    }

    /// The next slot of one sweep, opened for its next address where that is best.
    fn next_of(&mut self, id: u32, now: u64) -> Option<Alarm> {
        loop {
            let (haste, window_open) = (self.ceiling.is_none(), self.window_open());
            let run = self.sweeps.get_mut(&id)?;
            if !run.pace.is_open(now) {
                return None;
            }
            if let Some(alarm) = run.next_queued(haste, window_open) {
                return Some(alarm);
            }
            if run.stages.is_empty() {
                while let Some(peer) = run.pull() {
                    run.finish_one(peer, 0);
                }
                return None;
            }
            if !window_open {
                return None;
            }
            let peer = run.pull()?;
            // Where the peer is busy the slot waits, and another address is pulled: at most `Options::window` times.
            self.enter(peer, Work::Probe { sweep: id, stage: 0 });
        }
    }

    pub(super) fn window_open(&self) -> bool {
        self.table.len() - self.asked < self.options.window
    }

    /// Opens a slot and gives it its turn, or lets it wait for it.
    pub(super) fn enter(&mut self, peer: SocketAddr, work: Work) {
        let index = self.table.open(peer, work, &mut self.random);
        match self.turns.entry(peer) {
            Entry::Occupied(_) => self.waiting.entry(peer).or_default().push_back(index),
            Entry::Vacant(turn) => {
                turn.insert(index);
                self.begin(index);
            }
        }
    }

    fn begin(&mut self, index: u32) {
        self.choose_phase(index);
        self.schedule(index);
    }

    /// Sends the slot's question as soon as may be.
    pub(super) fn schedule(&mut self, index: u32) {
        let slot = self.table.slot(index);
        let alarm = Alarm { slot: index, id: slot.next_id() };
        let (first, begun) = (slot.sends == 0, slot.sends > slot.void);
        let (sweep, stage) = match &slot.work {
            Work::Vacant => return,
            Work::Probe { sweep, stage } => (*sweep, Some(*stage)),
            Work::Exchange(exchange) => match exchange.owner {
                Owner::Ticket(_) => return self.requests.push_back(alarm),
                Owner::Sweep { sweep, .. } => (sweep, None),
            },
        };
        let Some(run) = self.sweeps.get_mut(&sweep) else {
            self.leave(index);
            return;
        };
        match stage {
            Some(0) if first || is_timely(index) || begun && run.pace.has_fallen() => {
                run.fresh.push_back(alarm)
            }
            Some(_) | None => run.again.push_back(alarm),
        }
    }

    /// Sends a new question from the slot: no answer to an earlier one fits any more.
    pub(super) fn turn_page(&mut self, index: u32) {
        self.table.renumber(index, &mut self.random);
        self.schedule(index);
    }

    /// Closes the slot; the next one that waits for the peer has its turn.
    pub(super) fn leave(&mut self, index: u32) -> Work {
        let peer = self.table.slot(index).peer;
        let work = self.table.close(index);
        if let Work::Exchange(exchange) = &work
            && let Owner::Ticket(_) = exchange.owner
        {
            self.asked -= 1;
        }
        self.turns.remove(&peer);
        if let Some(queue) = self.waiting.get_mut(&peer) {
            let next = queue.pop_front();
            if queue.is_empty() {
                self.waiting.remove(&peer);
            }
            if let Some(next) = next {
                self.turns.insert(peer, next);
                self.begin(next);
            }
        }
        work
    }
}

/// Slots whose probes are repeated as soon as their time has come, even in haste: an eighth, evenly spread, so that
/// loss shows long before the last address was asked.
pub(super) fn is_timely(slot: u32) -> bool {
    slot.is_multiple_of(8)
}
