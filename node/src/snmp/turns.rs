//! Whose turn it is: one request in flight to a peer, one sweep after another, requests before probes.

use std::collections::hash_map::Entry;
use std::net::SocketAddr;

use super::engine::Core;
use super::exchange::Owner;
use super::table::Work;
use super::wheel::Alarm;

impl Core {
    /// Pulls an address when there is no better thing to send. In haste (without a ceiling) new addresses go first:
    /// the sooner the last one was asked, the sooner all waits are over. Under a ceiling a retransmission goes first,
    /// or it would come after all the addresses that the window takes.
    pub(super) fn fill(&mut self) {
        let idle = self.ceiling.is_none() || self.probes.is_empty();
        // An address whose peer is busy waits, and another may be pulled: at most `Options::window` times.
        while idle && self.requests.is_empty() && self.fresh.is_empty() && self.pull() {}
    }

    pub(super) fn nothing_to_send(&self) -> bool {
        self.requests.is_empty() && self.fresh.is_empty() && self.probes.is_empty()
    }

    /// Takes the next slot to be sent off its queue.
    pub(super) fn next_to_send(&mut self) -> Option<Alarm> {
        let (first, second) = match self.ceiling.is_none() {
            true => (&mut self.fresh, &mut self.probes),
            false => (&mut self.probes, &mut self.fresh),
        };
        self.requests.pop_front().or_else(|| first.pop_front()).or_else(|| second.pop_front())
    }

    pub(super) fn window_open(&self) -> bool {
        self.table.len() - self.asked < self.options.window
    }

    /// Opens a slot for the next address of the sweep whose turn it is.
    fn pull(&mut self) -> bool {
        if !self.window_open() || self.sweeps.is_empty() {
            return false;
        }
        let last = self.last_pulled;
        let (before, after): (Vec<u32>, Vec<u32>) = self.sweeps.keys().partition(|id| **id <= last);
        for id in after.into_iter().chain(before) {
            let Some(run) = self.sweeps.get_mut(&id) else { continue };
            if run.stages.is_empty() {
                while run.pull().is_some() {
                    run.finish_one(0);
                }
                continue;
            }
            if let Some(peer) = run.pull() {
                self.last_pulled = id;
                self.enter(peer, Work::Probe { sweep: id, stage: 0 });
                return true;
            }
        }
        false
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
        match &slot.work {
            Work::Exchange(exchange) if matches!(exchange.owner, Owner::Ticket(_)) => {
                self.requests.push_back(alarm);
            }
            Work::Probe { stage: 0, .. } if slot.sends == 0 => self.fresh.push_back(alarm),
            Work::Exchange(_) | Work::Probe { .. } | Work::Vacant => self.probes.push_back(alarm),
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
