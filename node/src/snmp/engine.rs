//! The engine's core: who is asked what, when again, and what came of it. It owns no socket and no clock.
//!
//! Bounds: `Options::window` requests and as many probes (slots); `QUEUE` requests waiting for one peer; one in
//! flight to one peer. Beyond a bound a request is `Busy` and a sweep pulls no further address.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::aimd::Complaint;
use super::exchange::{Asked, Exchange, Owner};
use super::message::{self, Answered, Opened};
use super::pace::{Ceiling, Random};
use super::peers::Peers;
use super::stats::Counters;
use super::sweep::{Ask, Run};
use super::table::{Keyed, MOST_RETRIES, Table, Work};
use super::wheel::{Alarm, Wheel};
use super::{Answer, Credential, Failure, Options, Patience, Question, Sweep, SweepEvent};

/// Requests that may wait for one peer: a device answers tens a second, so that is about a second's worth.
const QUEUE: usize = 32;
/// What ICMP says of a peer that did not get our packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    /// The host is there and nobody listens.
    ClosedPort,
    /// There is no such host or network, as far as a router or this machine knows.
    NoHost,
    /// A router or firewall does not let it through (RFC 1812 section 5.2.7.1 codes 9, 10 and 13; RFC 4443 code 1).
    Prohibited,
}

/// The result of one request, for whoever has its ticket.
pub(crate) type Told = (u64, Result<Box<Answer>, Failure>);

pub(crate) struct Core {
    began: Instant,
    pub(super) options: Options,
    pub(super) counters: Arc<Counters>,
    pub(super) random: Random,
    pub(super) ceiling: Ceiling,
    pub(super) wheel: Wheel,
    pub(super) table: Table,
    pub(super) peers: Peers,
    /// The slot whose turn it is at a peer; the others of that peer wait.
    pub(super) turns: HashMap<SocketAddr, u32, Keyed>,
    pub(super) waiting: HashMap<SocketAddr, VecDeque<u32>, Keyed>,
    /// Slots of requests to be sent now, with the id that they had; those of sweeps wait in their `Run`.
    pub(super) requests: VecDeque<Alarm>,
    pub(super) sweeps: BTreeMap<u32, Run>,
    next_sweep: u32,
    /// The sweep that was last served; they take turns.
    pub(super) last_served: u32,
    /// Slots that belong to requests, not sweeps.
    pub(super) asked: usize,
    events: VecDeque<Told>,
    excluded: Vec<IpNet>,
    pub(super) salt: u64,
}

impl Core {
    /// An engine that begins at `now`; `options.seed` fixes everything that is left to chance.
    pub(crate) fn new(mut options: Options, counters: Arc<Counters>, now: Instant) -> Core {
        let mut random = Random::new(options.seed);
        options.retries = options.retries.min(MOST_RETRIES);
        Core {
            began: now,
            ceiling: Ceiling::new(options.rate),
            counters,
            wheel: Wheel::new(),
            table: Table::default(),
            peers: Peers::default(),
            turns: HashMap::default(),
            waiting: HashMap::default(),
            requests: VecDeque::new(),
            sweeps: BTreeMap::new(),
            next_sweep: 0,
            last_served: 0,
            asked: 0,
            events: VecDeque::new(),
            excluded: Vec::new(),
            salt: random.next(),
            random,
            options,
        }
    }

    pub(super) fn micros(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_micros() as u64
    }

    /// Puts a question to a peer; its result comes as an event with `ticket`.
    pub(crate) fn ask(
        &mut self,
        ticket: u64,
        peer: SocketAddr,
        credential: Arc<Credential>,
        question: &Question,
        patience: Patience,
    ) {
        let asked = Asked::of(question, &credential);
        self.ask_encoded(ticket, peer, credential, asked, patience);
    }

    /// The same of a question that is encoded; without one it was not to be said.
    pub(super) fn ask_encoded(
        &mut self,
        ticket: u64,
        peer: SocketAddr,
        credential: Arc<Credential>,
        question: Option<Asked>,
        patience: Patience,
    ) {
        let queued = self.waiting.get(&peer).map_or(0, VecDeque::len);
        if self.asked >= self.options.window || queued >= QUEUE {
            self.events.push_back((ticket, Err(Failure::Busy)));
            return;
        }
        let Some(question) = question else {
            self.events.push_back((ticket, Err(Failure::Malformed)));
            return;
        };
        self.asked += 1;
        let exchange = Exchange::new(Owner::Ticket(ticket), credential, question, patience);
        self.enter(peer, Work::Exchange(Box::new(exchange)));
    }

    /// Begins a sweep; its events are taken with `poll_sweep_event`.
    pub(crate) fn sweep(&mut self, sweep: Sweep) -> u32 {
        self.next_sweep += 1;
        self.sweeps.insert(self.next_sweep, Run::new(sweep, &self.options));
        self.next_sweep
    }

    /// Begins a sweep that finds SNMPv3 engines and tries no user there: it says [`SweepEvent::NeedsCredentials`].
    pub(crate) fn survey(&mut self, sweep: Sweep) -> u32 {
        let id = self.sweep(sweep);
        if let Some(run) = self.sweeps.get_mut(&id) {
            run.users.clear();
        }
        id
    }

    /// Sends these prefixes nothing from now on, whatever was begun: it ends as if nobody were there.
    pub(crate) fn exclude(&mut self, prefixes: Vec<IpNet>) {
        self.excluded = prefixes;
    }

    /// Ends a slot whose peer may not be sent anything.
    fn give_up(&mut self, index: u32, now: u64) -> bool {
        let peer = self.table.slot(index).peer.ip();
        if !self.excluded.iter().any(|prefix| prefix.contains(&peer)) {
            return false;
        }
        match &self.table.slot(index).work {
            Work::Vacant => {}
            Work::Exchange(exchange) if matches!(exchange.owner, Owner::Ticket(_)) => {
                self.fail(index, Failure::Unreachable, now);
            }
            Work::Exchange(_) | Work::Probe { .. } => self.finish_probe(index, now),
        }
        true
    }

    /// Forgets a sweep. Its probes in flight are dropped as their deadlines come.
    pub(crate) fn end_sweep(&mut self, sweep: u32) {
        let Some(run) = self.sweeps.remove(&sweep) else { return };
        for alarm in run.fresh.into_iter().chain(run.again) {
            if self.table.is_current(alarm.slot, alarm.id) {
                self.leave(alarm.slot);
            }
        }
    }

    /// Questions and probes that were begun and not ended.
    pub(crate) fn in_flight(&self) -> usize {
        self.table.len()
    }

    /// True when a deadline has passed that `handle_timeout` was not told of.
    pub(crate) fn is_overdue(&self, now: Instant) -> bool {
        self.wheel.next().is_some_and(|at| at <= self.micros(now))
    }

    /// True while a sweep goes as fast as this machine can.
    pub(crate) fn in_haste(&self) -> bool {
        self.ceiling.is_none() && !self.sweeps.is_empty()
    }

    pub(crate) fn set_rate(&mut self, rate: u32) {
        self.ceiling.set(rate);
    }

    /// Takes in a datagram. Never fails: what is not an answer to something in flight is counted and ignored.
    pub(crate) fn handle_datagram(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) {
        let now = self.micros(now);
        self.counters.packets_received.add(1);
        self.counters.bytes_received.add(datagram.len() as u64);
        match message::open(datagram) {
            Err(message::Malformed) => self.counters.malformed.add(1),
            Ok(Opened::V3(sealed)) => self.hear_v3(from, &sealed, now),
            Ok(Opened::Community { v1, community, pdu }) => {
                self.hear_community(from, v1, community, &pdu, now)
            }
        }
    }

    /// Takes in what ICMP says from or about a peer.
    pub(crate) fn handle_icmp(&mut self, peer: SocketAddr, icmp: Icmp, now: Instant) {
        let now = self.micros(now);
        self.counters.unreachable.add(1);
        let Some(index) = self.turns.get(&peer).copied() else { return };
        if self.table.slot(index).sends == 0 {
            return;
        }
        match icmp {
            Icmp::ClosedPort => {}
            Icmp::NoHost => self.complain(index, Complaint::NoHost, now),
            Icmp::Prohibited => self.complain(index, Complaint::Prohibited, now),
        }
        match &self.table.slot(index).work {
            Work::Vacant => {}
            Work::Exchange(exchange) if exchange.patience == Patience::Patient => {}
            Work::Exchange(_) => self.fail(index, Failure::Unreachable, now),
            Work::Probe { sweep, .. } => {
                if let Some(run) = self.sweeps.get_mut(sweep) {
                    run.counts.unreachable += 1;
                }
                self.finish_probe(index, now);
            }
        }
    }

    /// Takes in that this machine had no room for the packet to a peer: it counts as not sent, and its sweep slows
    /// down. The repetition comes in its time.
    pub(crate) fn handle_full(&mut self, peer: SocketAddr, now: Instant) {
        let now = self.micros(now);
        let Some(index) = self.turns.get(&peer).copied() else { return };
        self.complain(index, Complaint::Full, now);
        let slot = self.table.slot(index);
        slot.void = slot.sends;
    }

    /// Takes in the passing of time.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        let now = self.micros(now);
        let mut alarms = Vec::new();
        while self.wheel.due(now, &mut alarms) {
            for alarm in alarms.drain(..) {
                if !self.table.is_current(alarm.slot, alarm.id) {
                    continue;
                }
                let slot = self.table.slot(alarm.slot);
                if slot.last_id() != alarm.id {
                    continue;
                }
                if slot.deadline > now {
                    self.wheel.set(slot.deadline, alarm);
                } else {
                    self.expire(alarm.slot, now);
                }
            }
        }
    }

    /// The next packet to send, written into `out`, or `None`: nothing to send, or not yet.
    pub(crate) fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr> {
        let now = self.micros(now);
        if self.ceiling.open_at() > now {
            return None;
        }
        loop {
            let next = self.next_to_send(now)?;
            if !self.table.is_current(next.slot, next.id) || self.give_up(next.slot, now) {
                continue;
            }
            if self.is_enough(next.slot, now) || !self.write(next.slot, now, out) {
                continue;
            }
            self.ceiling.take(now);
            self.sent(next.slot, now);
            self.counters.packets_sent.add(1);
            self.counters.bytes_sent.add(out.len() as u64);
            return Some(self.table.slot(next.slot).peer);
        }
    }

    /// When to call `handle_timeout` and `poll_transmit` again.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.wheel.next();
        let window = self.window_open();
        let sweeps = self.sweeps.values().filter(|run| run.wants_to_send(window));
        let paced = sweeps.map(|run| run.pace.open_at());
        let to_send = paced.chain((!self.requests.is_empty()).then_some(0)).min();
        let send = to_send.map(|at| at.max(self.ceiling.open_at()));
        let at = deadline.into_iter().chain(send).min()?;
        Some(self.began + Duration::from_micros(at))
    }

    /// The next result of a request.
    pub(crate) fn poll_event(&mut self) -> Option<Told> {
        self.events.pop_front()
    }

    /// The next event of a sweep.
    pub(crate) fn poll_sweep_event(&mut self, sweep: u32) -> Option<SweepEvent> {
        let run = self.sweeps.get_mut(&sweep)?;
        let event = run.next_event();
        if run.is_over() {
            self.sweeps.remove(&sweep);
        }
        event
    }

    /// True when `poll_sweep_event` would give one.
    pub(crate) fn has_sweep_event(&self, sweep: u32) -> bool {
        self.sweeps.get(&sweep).is_some_and(Run::has_events)
    }

    pub(super) fn answered(&mut self, ticket: u64, result: Result<Box<Answer>, Failure>) {
        self.events.push_back((ticket, result));
    }

    /// Writes the slot's next transmission; `false` when its sweep is gone, and the slot with it.
    fn write(&mut self, index: u32, now: u64, out: &mut Vec<u8>) -> bool {
        let slot = self.table.slot(index);
        let id = slot.next_id();
        match &slot.work {
            Work::Vacant => false,
            Work::Exchange(_) => {
                self.write_exchange(index, id, now, out);
                true
            }
            Work::Probe { sweep, stage } => {
                let Some(stage) = self.sweeps.get(sweep).map(|run| &run.stages[usize::from(*stage)]) else {
                    self.leave(index);
                    return false;
                };
                match &stage.ask {
                    Ask::Community { message, id_at, .. } => {
                        out.clear();
                        out.extend_from_slice(message);
                        out[*id_at..*id_at + 4].copy_from_slice(&id.to_be_bytes());
                    }
                    Ask::Discover => message::write_discovery(out, id),
                }
                true
            }
        }
    }

    /// Notes a transmission and sets its deadline.
    fn sent(&mut self, index: u32, now: u64) {
        let wait = self.wait(index, now);
        let slot = self.table.slot(index);
        if slot.sends == 0 {
            slot.first_sent = now;
        } else {
            self.counters.retransmissions.add(1);
        }
        let slot = self.table.slot(index);
        slot.sends += 1;
        slot.last_sent = now;
        slot.deadline = now + wait;
        if let Work::Probe { sweep, .. } = &slot.work
            && let Some(run) = self.sweeps.get_mut(sweep)
        {
            run.pace.sent(now);
        }
        let alarm = Alarm { slot: index, id: slot.last_id() };
        self.wheel.set(now + wait, alarm);
    }

    fn hear_community(&mut self, from: SocketAddr, v1: bool, community: &[u8], pdu: &Answered<'_>, now: u64) {
        let Some((index, transmission)) = self.table.find(pdu.id) else {
            return self.counters.unmatched.add(1);
        };
        let slot = self.table.slot(index);
        let credential = match &slot.work {
            Work::Exchange(exchange) => Some(exchange.credential.clone()),
            Work::Probe { sweep, stage } => {
                self.sweeps.get(sweep).and_then(|run| match &run.stages[usize::from(*stage)].ask {
                    Ask::Community { credential, .. } => Some(credential.clone()),
                    Ask::Discover => None,
                })
            }
            Work::Vacant => None,
        };
        let Some(credential) = credential.filter(|credential| message::answers(credential, v1, community))
        else {
            return self.counters.mismatched.add(1);
        };
        if pdu.report {
            return self.counters.malformed.add(1);
        }
        self.conclude(index, transmission, from, &credential, pdu, now);
    }

    /// An answer that is beyond doubt: decodes it and closes the slot.
    pub(super) fn conclude(
        &mut self,
        index: u32,
        transmission: u8,
        from: SocketAddr,
        credential: &Arc<Credential>,
        pdu: &Answered<'_>,
        now: u64,
    ) {
        let rtt = self.measure(index, transmission, now);
        let expected = match &self.table.slot(index).work {
            Work::Exchange(exchange) => exchange.expected(pdu),
            Work::Probe { .. } | Work::Vacant => None,
        };
        let decoded = if expected.is_some() { Ok(Default::default()) } else { pdu.response() };
        let Ok((response, undecodable)) = decoded else {
            self.counters.malformed.add(1);
            if let Work::Exchange(_) = self.table.slot(index).work {
                self.fail(index, Failure::Malformed, now);
            }
            return;
        };
        self.counters.undecodable.add(u64::from(undecodable));
        let peer = self.table.slot(index).peer;
        let engine_id = match **credential {
            Credential::V3(_) => {
                self.peers.get(peer).and_then(|known| known.engine.as_ref()).map(|engine| engine.id.clone())
            }
            Credential::V1(_) | Credential::V2c(_) => None,
        };
        let answer = Answer { response, expected, rtt: Duration::from_micros(rtt), from, engine_id };
        let sweep = match self.leave(index) {
            Work::Vacant => return,
            Work::Probe { sweep, .. } => sweep,
            Work::Exchange(exchange) => match exchange.owner {
                Owner::Ticket(ticket) => return self.answered(ticket, Ok(Box::new(answer))),
                Owner::Sweep { sweep, .. } => sweep,
            },
        };
        if let Some(run) = self.sweeps.get_mut(&sweep) {
            run.counts.answered += 1;
            run.tell(SweepEvent::Answered { peer, credential: credential.clone(), answer });
            run.finish_one(peer, now);
        }
    }

    /// Takes the round trip into the estimates.
    pub(super) fn measure(&mut self, index: u32, transmission: u8, now: u64) -> u64 {
        self.note_loss(index, transmission, now);
        let slot = self.table.slot(index);
        let peer = slot.peer;
        let Some(rtt) = slot.round_trip(transmission, now) else {
            return now.saturating_sub(slot.first_sent);
        };
        if let Work::Probe { sweep, .. } = &slot.work
            && let Some(run) = self.sweeps.get_mut(sweep)
        {
            run.measure(rtt);
        }
        self.peers.meet(peer).rtt.sample(rtt);
        rtt
    }

    /// Closes a probe that found nothing.
    pub(super) fn finish_probe(&mut self, index: u32, now: u64) {
        let peer = self.table.slot(index).peer;
        let sweep = match self.leave(index) {
            Work::Probe { sweep, .. } => sweep,
            Work::Exchange(exchange) => match exchange.owner {
                Owner::Sweep { sweep, .. } => sweep,
                Owner::Ticket(_) => return,
            },
            Work::Vacant => return,
        };
        if let Some(run) = self.sweeps.get_mut(&sweep) {
            run.finish_one(peer, now);
        }
    }
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
