//! Silence: how long an answer is waited for, how often a question is repeated, and what loss makes of both.

use std::time::Duration;

use super::Patience;
use super::aimd::Complaint;
use super::engine::Core;
use super::exchange::Owner;
use super::sweep::Run;
use super::table::{MOST_SENDS, Work};
use super::turns::is_timely;
use super::wheel::Alarm;

/// RFC 6298 section 2.1: the timeout before anything was measured, microseconds.
const FIRST_TIMEOUT: u64 = 1_000_000;
/// The least that is waited: a printer's SNMP may take so long over a long request after a short one.
const LEAST_TIMEOUT: u64 = 200_000;
/// The same in a sweep in haste, microseconds: its question is short, and each address has several.
const LEAST_SWEEP: u64 = 100_000;
/// How long a sweep in haste waits before it has measured anything, unless it is the last transmission.
const FIRST_SWEEP: u64 = 300_000;
/// The least that a sweep under a ceiling waits before it repeats itself, microseconds.
const GENTLE_SWEEP: u64 = 500_000;
/// When a patient request is sent for the last time, after the first: waking takes a LaserJet 2 to 5 s.
const PATIENT: u64 = 6_000_000;

impl Core {
    /// How many times the slot's present question is sent at most. In haste loss that is known to be small spares
    /// transmissions; after a slowing down loss that is still there adds some, and what went out before does not count.
    pub(super) fn tries(&mut self, index: u32) -> u8 {
        let retries = self.options.retries;
        let slot = self.table.slot(index);
        match &slot.work {
            Work::Vacant => 0,
            Work::Exchange(exchange) => exchange.tries(retries),
            Work::Probe { sweep, stage } => {
                let Some(run) = self.sweeps.get(sweep) else { return 0 };
                let planned = run.stages[usize::from(*stage)].tries;
                let needed = match run.pace.needed() {
                    Some(needed) if run.pace.has_fallen() => needed.max(planned),
                    Some(needed) if self.ceiling.is_none() => needed.min(planned),
                    Some(_) | None => planned,
                };
                (slot.void + needed).min(MOST_SENDS - 1)
            }
        }
    }

    /// How long the transmission that goes out now waits for its answer, microseconds.
    pub(super) fn wait(&mut self, index: u32, now: u64) -> u64 {
        let timeout = self.options.timeout.as_micros() as u64;
        let tries = self.tries(index);
        let slot = self.table.slot(index);
        let (peer, sends, first_sent) = (slot.peer, slot.sends, slot.first_sent);
        let last = sends + 1 >= tries;
        let (measured, patient) = match &slot.work {
            Work::Probe { sweep, .. } => {
                let measured = self.sweeps.get(sweep).and_then(Run::patience);
                return sweep_wait(measured, last, self.ceiling.is_none(), self.options.timeout);
            }
            Work::Exchange(exchange) => {
                let patient = exchange.patience == Patience::Patient;
                (self.peers.get(peer).and_then(|known| known.rtt.patience()), patient)
            }
            Work::Vacant => return 0,
        };
        if last {
            return timeout;
        }
        let base = measured.unwrap_or(FIRST_TIMEOUT).max(LEAST_TIMEOUT) << sends.min(6);
        let jitter = self.random.below(base / 4);
        let wait = (base + jitter).min(timeout);
        if patient && sends + 2 == tries {
            let first_sent = if sends == 0 { now } else { first_sent };
            return wait.max((first_sent + PATIENT).saturating_sub(now));
        }
        wait
    }

    /// Takes note where what was sent so far went out at a rate that proved too high.
    fn note_void(&mut self, index: u32) {
        let slot = self.table.slot(index);
        if let Work::Probe { sweep, .. } = &slot.work
            && self.sweeps.get(sweep).is_some_and(|run| run.pace.is_void(slot.last_sent))
        {
            slot.void = slot.sends;
        }
    }

    pub(super) fn expire(&mut self, index: u32, now: u64) {
        self.note_void(index);
        let slot = self.table.slot(index);
        if let Work::Probe { sweep, .. } = &slot.work
            && let Some(run) = self.sweeps.get(sweep)
        {
            let full = sweep_wait(run.patience(), true, self.ceiling.is_none(), self.options.timeout);
            let until = slot.last_sent + full;
            if slot.sends >= self.tries(index) && until > now {
                // It was to be repeated, and the loss turned out to be small: the last wait is the long one.
                let slot = self.table.slot(index);
                slot.deadline = until;
                let alarm = Alarm { slot: index, id: slot.last_id() };
                return self.wheel.set(until, alarm);
            }
        }
        if self.table.slot(index).sends < self.tries(index) {
            return self.schedule(index);
        }
        self.counters.timeouts.add(1);
        match &self.table.slot(index).work {
            Work::Vacant => {}
            Work::Exchange(exchange) => {
                let failure = exchange.when_silent();
                self.fail(index, failure, now);
            }
            Work::Probe { sweep, stage } => {
                let (sweep, stage) = (*sweep, *stage + 1);
                if self.sweeps.get(&sweep).is_some_and(|run| usize::from(stage) < run.stages.len()) {
                    self.table.slot(index).work = Work::Probe { sweep, stage };
                    self.turn_page(index);
                } else {
                    self.finish_probe(index, now);
                }
            }
        }
    }

    /// True for a probe whose turn to be repeated comes when it has been sent often enough by now; it is done then.
    pub(super) fn is_enough(&mut self, index: u32, now: u64) -> bool {
        self.note_void(index);
        let sends = self.table.slot(index).sends;
        let probe = matches!(self.table.slot(index).work, Work::Probe { .. });
        let enough = probe && sends > 0 && sends >= self.tries(index);
        if enough {
            self.expire(index, now);
        }
        enough
    }

    /// Tells a sweep's pace how many transmissions before the one that was answered came to nothing.
    pub(super) fn note_loss(&mut self, index: u32, transmission: u8, now: u64) {
        let haste = self.ceiling.is_none();
        let slot = self.table.slot(index);
        let (last_sent, lost) = (slot.last_sent, transmission.checked_sub(slot.void));
        if let (Work::Probe { sweep, .. }, Some(lost)) = (&slot.work, lost)
            && let Some(run) = self.sweeps.get_mut(sweep)
        {
            let timely = !haste || is_timely(index) || !run.has_more() || run.pace.has_fallen();
            run.pace.heard(last_sent, lost, timely, now);
        }
    }

    pub(super) fn complain(&mut self, index: u32, complaint: Complaint, now: u64) {
        let sweep = match &self.table.slot(index).work {
            Work::Probe { sweep, .. } => *sweep,
            Work::Exchange(exchange) => match exchange.owner {
                Owner::Sweep { sweep, .. } => sweep,
                Owner::Ticket(_) => return,
            },
            Work::Vacant => return,
        };
        if let Some(run) = self.sweeps.get_mut(&sweep) {
            run.pace.complain(complaint, now);
        }
    }
}

/// How long a probe waits for its answer. Without a ceiling haste is wanted, and the round trips of those who answered
/// say how long; under one, the last transmission of a question always waits in full: others are asked meanwhile.
fn sweep_wait(measured: Option<u64>, last: bool, haste: bool, timeout: Duration) -> u64 {
    let timeout = timeout.as_micros() as u64;
    let wait = match (haste, measured) {
        (true, Some(measured)) if last => (4 * measured).max(2 * LEAST_SWEEP),
        (_, _) if last => timeout,
        (true, Some(measured)) => (2 * measured).max(LEAST_SWEEP),
        (true, None) => FIRST_SWEEP,
        (false, Some(measured)) => (4 * measured).max(GENTLE_SWEEP),
        (false, None) => FIRST_TIMEOUT,
    };
    wait.min(timeout)
}

#[cfg(test)]
#[path = "silence_tests.rs"]
mod tests;
