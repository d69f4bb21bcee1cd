//! One node's scheduler: which of its units to sweep next and which of its devices to read.
//!
//! The shell tells it what the tables say (`set_units`, `set_unit`, `set_device`, `remove_device`), starts each
//! [`Task`] that `poll` answers, reports it with `handle_done`, `handle_failed` or `handle_stopped`, and polls again at
//! `poll_timeout`. At most so many sweeps and so many reads at a time as it was made for: neither takes the other's
//! places, and on the wire requests go before probes.
//!
//! Reads are spread over the period by a hash of the device's id, the same on every node, so neither a
//! start nor a take-over makes a herd: what is overdue goes first, oldest first, and after that every
//! device keeps its own moment in the period. Devices that don't answer are tried less often, but never
//! more rarely than once a period.
//!
//! Memory: about 250 octets a device (25 MB for 100,000). Never: two tasks for one device or unit at
//! once, a task for a unit that is not this node's.

use std::collections::{BTreeMap, BTreeSet};

use quire_proto::id::{DeviceId, Epoch, Millis, UnitId};

use crate::schedule::Schedule;

/// Milliseconds until a device that missed once is tried again; doubles with every further miss.
pub const RETRY_AFTER_MS: u64 = 60_000;
/// Milliseconds until a sweep that failed is tried again.
pub const SWEEP_RETRY_AFTER_MS: u64 = 60_000;
/// How far other nodes' clocks may be ahead of this one's (see `record`): no reason to doubt a time.
const AHEAD_MS: u64 = 60_000;
/// The order of sweeps that don't wait for a slot: what people asked for, what was begun, what is new.
const ASKED: Millis = Millis(0);
const BEGUN: Millis = Millis(1);
const NEW: Millis = Millis(2);

/// A unit of this node as the tables have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnUnit {
    /// Which.
    pub unit: UnitId,
    /// Of the grant.
    pub epoch: Epoch,
    /// End of the last whole sweep; 0 for never.
    pub swept_at: Millis,
    /// The latest sweep, begun by whichever node.
    pub sweep: Option<Progress>,
    /// When somebody asked for a sweep; 0 for never.
    pub asked_at: Millis,
}

/// How far a sweep has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// When it began.
    pub started_at: Millis,
    /// Whether it is complete.
    pub finished: bool,
}

/// A device of one of this node's units as the tables have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceDue {
    /// Which.
    pub id: DeviceId,
    /// Where it was last seen.
    pub unit: UnitId,
    /// Its last reading; 0 for never.
    pub metered_at: Millis,
    /// Reads since then that it did not answer.
    pub misses: u32,
    /// When somebody asked for a read; 0 for never.
    pub asked_at: Millis,
}

/// Something to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// Ask every address of a unit.
    Sweep {
        /// Which.
        unit: UnitId,
        /// Of the grant, for the observations.
        epoch: Epoch,
        /// When the sweep began; `now` unless it was begun before and not finished. What of it is done stands in the
        /// unit's mark (see [`crate::coverage`]).
        started_at: Millis,
    },
    /// Read a known device.
    Read {
        /// Which.
        device: DeviceId,
    },
}

/// How much at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Units swept.
    pub sweeps: usize,
    /// Devices read.
    pub reads: usize,
}

/// The scheduler of one node.
#[derive(Clone, Debug)]
pub struct Roster {
    schedule: Schedule,
    every_ms: u64,
    limits: Limits,
    sweeping: bool,
    units: BTreeMap<UnitId, Unit>,
    sweeps: BTreeSet<(Millis, UnitId)>,
    running_sweeps: BTreeSet<UnitId>,
    /// Short numbers for unit ids, because every device names one.
    unit_numbers: BTreeMap<UnitId, u32>,
    owned: BTreeSet<u32>,
    devices: Vec<Option<Device>>,
    free: Vec<u32>,
    places: BTreeMap<DeviceId, u32>,
    reads: BTreeSet<(Millis, u32)>,
    running_reads: BTreeSet<DeviceId>,
    /// When it was polled last.
    polled: Millis,
}

#[derive(Clone, Debug)]
struct Unit {
    row: OwnUnit,
    /// What this node finished itself, which the rows may not show yet.
    finished: Option<Millis>,
    /// When that sweep began, by whichever calendar: its name.
    ended: Option<Millis>,
    /// The request that the last sweep handed out was for, by the proposer's clock: however far that is ahead, it is
    /// answered once.
    answered: Millis,
    /// After a failure.
    not_before: Millis,
    due: Millis,
}

#[derive(Clone, Debug)]
struct Device {
    id: DeviceId,
    unit: u32,
    misses: u32,
    metered_at: Millis,
    asked_at: Millis,
    /// The request that the last read handed out was for, as with units.
    answered: Millis,
    /// The last read by this node, however it ended.
    attempted_at: Millis,
    /// Its key in `reads`, if it is there.
    due: Option<Millis>,
    phase: u64,
}

impl Roster {
    /// Nothing to do yet. Every device is read once in `every_ms`.
    pub fn new(schedule: Schedule, every_ms: u64, limits: Limits) -> Self {
        Roster {
            schedule,
            every_ms: every_ms.max(1),
            limits,
            sweeping: true,
            units: BTreeMap::new(),
            sweeps: BTreeSet::new(),
            running_sweeps: BTreeSet::new(),
            unit_numbers: BTreeMap::new(),
            owned: BTreeSet::new(),
            devices: Vec::new(),
            free: Vec::new(),
            places: BTreeMap::new(),
            reads: BTreeSet::new(),
            running_reads: BTreeSet::new(),
            polled: Millis(0),
        }
    }

    /// The settings changed.
    pub fn set_settings(&mut self, schedule: Schedule, every_ms: u64) {
        let every_ms = every_ms.max(1);
        if self.schedule == schedule && self.every_ms == every_ms {
            return;
        }
        self.schedule = schedule;
        self.every_ms = every_ms;
        let units: Vec<UnitId> = self.units.keys().cloned().collect();
        units.iter().for_each(|unit| self.queue_sweep(unit));
        for device in self.devices.iter_mut().flatten() {
            device.phase = phase(&device.id, every_ms);
        }
        self.queue_all_reads();
    }

    /// Without quorum a node reads what it owned but begins no sweep.
    pub fn set_sweeping(&mut self, allowed: bool) {
        self.sweeping = allowed;
    }

    /// One unit of this node changed, and which units it has did not.
    pub fn set_unit(&mut self, row: &OwnUnit) {
        if let Some(known) = self.units.get_mut(&row.unit)
            && known.row != *row
        {
            known.row = row.clone();
            self.queue_sweep(&row.unit);
        }
    }

    /// All units of this node, as the tables have them now. A running sweep of a unit that is not among
    /// them goes on until the shell reports it: compare [`Roster::epoch`].
    pub fn set_units(&mut self, rows: &[OwnUnit]) {
        let mut before = std::mem::take(&mut self.units);
        self.sweeps.clear();
        for row in rows {
            let unit = match before.remove(&row.unit) {
                Some(known) => Unit { row: row.clone(), due: NEW, ..known },
                None => Unit::new(row.clone()),
            };
            self.units.insert(row.unit.clone(), unit);
            self.queue_sweep(&row.unit);
        }
        let owned: BTreeSet<u32> = rows.iter().map(|row| self.number(&row.unit)).collect();
        if owned != self.owned {
            self.owned = owned;
            self.queue_all_reads();
        }
    }

    /// A device as the tables have it now: new, moved, read or missed.
    pub fn set_device(&mut self, row: &DeviceDue, now: Millis) {
        let unit = self.number(&row.unit);
        let place = match self.places.get(&row.id) {
            Some(place) => *place,
            None => self.add_device(row, now),
        };
        if let Some(device) = &mut self.devices[place as usize] {
            (device.unit, device.misses) = (unit, row.misses);
            (device.metered_at, device.asked_at) = (row.metered_at, row.asked_at);
        }
        self.queue_read(place);
    }

    /// A device is gone, or belongs to another node's unit.
    pub fn remove_device(&mut self, id: &DeviceId) {
        let Some(place) = self.places.remove(id) else { return };
        let device = self.devices[place as usize].take();
        if let Some(due) = device.and_then(|device| device.due) {
            self.reads.remove(&(due, place));
        }
        self.free.push(place);
    }

    /// Forgets the devices of every unit that is not this node's.
    pub fn forget_foreign(&mut self) {
        let foreign = |device: &&Device| !self.owned.contains(&device.unit);
        let gone: Vec<DeviceId> =
            self.devices.iter().flatten().filter(foreign).map(|device| device.id.clone()).collect();
        gone.iter().for_each(|id| self.remove_device(id));
    }

    /// Forgets all devices but those that `keep` names.
    pub fn retain_devices(&mut self, keep: impl Fn(&DeviceId) -> bool) {
        let gone: Vec<DeviceId> = self.places.keys().filter(|id| !keep(id)).cloned().collect();
        gone.iter().for_each(|id| self.remove_device(id));
    }

    /// The epoch under which a unit is this node's; `None` when it is not.
    pub fn epoch(&self, unit: &UnitId) -> Option<Epoch> {
        self.units.get(unit).map(|unit| unit.row.epoch)
    }

    /// Devices known.
    pub fn devices(&self) -> usize {
        self.places.len()
    }

    /// Devices known in each unit that has any.
    pub fn devices_by_unit(&self) -> BTreeMap<&UnitId, usize> {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        self.devices.iter().flatten().for_each(|device| *counts.entry(device.unit).or_default() += 1);
        self.unit_numbers.iter().filter_map(|(unit, number)| Some((unit, *counts.get(number)?))).collect()
    }

    /// The next task that is due. Call until it answers `None`.
    pub fn poll(&mut self, now: Millis) -> Option<Task> {
        self.bring_back(now);
        self.poll_sweep(now).or_else(|| self.poll_read(now))
    }

    /// Nothing waits longer than until its next turn. What would was stamped by a calendar that was ahead, this
    /// node's or that of whoever led then, and is taken as of now: else nothing would be read until that time has come.
    fn bring_back(&mut self, now: Millis) {
        if now < self.polled {
            self.set_back(now);
        }
        self.polled = now;
        let ahead = now.0.saturating_add(AHEAD_MS);
        let turn = Millis(ahead.saturating_add(self.every_ms).saturating_add(self.every_ms / 10));
        while let Some((due, place)) = self.reads.last().copied().filter(|(due, _)| *due > turn) {
            self.reads.remove(&(due, place));
            let Some(device) = self.devices[place as usize].as_mut() else { continue };
            device.due = None;
            for time in [&mut device.metered_at, &mut device.attempted_at, &mut device.asked_at] {
                *time = now.min(*time);
            }
            self.queue_read(place);
        }
        let slot =
            self.schedule.next_slot(Millis(ahead)).max(Millis(now.0.saturating_add(SWEEP_RETRY_AFTER_MS)));
        while let Some((_, unit)) = self.sweeps.last().filter(|(due, _)| *due > slot).cloned() {
            self.sweeps.pop_last();
            let Some(known) = self.units.get_mut(&unit) else { continue };
            known.due = self.schedule.next_slot(now);
            self.sweeps.insert((known.due, unit));
        }
    }

    /// This node's calendar was ahead, and was set right: what it did meanwhile it did by now, so that what is asked
    /// for from now on is newer.
    fn set_back(&mut self, now: Millis) {
        for known in self.units.values_mut() {
            known.finished = known.finished.map(|at| at.min(now));
            known.not_before = known.not_before.min(Millis(now.0.saturating_add(SWEEP_RETRY_AFTER_MS)));
        }
        let units: Vec<UnitId> = self.units.keys().cloned().collect();
        units.iter().for_each(|unit| self.queue_sweep(unit));
        for device in self.devices.iter_mut().flatten() {
            device.attempted_at = device.attempted_at.min(now);
        }
        self.queue_all_reads();
    }

    fn poll_sweep(&mut self, now: Millis) -> Option<Task> {
        if !self.may_sweep() {
            return None;
        }
        let (due, _) = self.sweeps.first()?;
        if *due > now {
            return None;
        }
        let (_, unit) = self.sweeps.pop_first()?;
        let begun = self.is_begun(&unit);
        let known = self.units.get_mut(&unit)?;
        // A sweep that was asked for begins no earlier than that, or the rows would show the request as still open.
        let asked = Some(known.row.asked_at).filter(|asked| asked.0 <= now.0.saturating_add(AHEAD_MS));
        let anew = now.max(asked.unwrap_or_default());
        let started_at = known.row.sweep.filter(|_| begun).map_or(anew, |sweep| sweep.started_at);
        known.answered = known.row.asked_at;
        let task = Task::Sweep { unit: unit.clone(), epoch: known.row.epoch, started_at };
        self.running_sweeps.insert(unit);
        Some(task)
    }

    fn may_sweep(&self) -> bool {
        self.sweeping && self.running_sweeps.len() < self.limits.sweeps
    }

    fn poll_read(&mut self, now: Millis) -> Option<Task> {
        if self.running_reads.len() >= self.limits.reads {
            return None;
        }
        let (due, place) = self.reads.first().copied().filter(|(due, _)| *due <= now)?;
        self.reads.remove(&(due, place));
        let device = self.devices[place as usize].as_mut()?;
        device.due = None;
        device.answered = device.asked_at;
        let id = device.id.clone();
        self.running_reads.insert(id.clone());
        Some(Task::Read { device: id })
    }

    /// A task ended; for a sweep: it is complete.
    pub fn handle_done(&mut self, task: &Task, now: Millis) {
        match task {
            Task::Read { device } => self.end_read(device, now),
            Task::Sweep { unit, epoch, started_at, .. } => {
                self.running_sweeps.remove(unit);
                match self.units.get_mut(unit) {
                    Some(known) if known.row.epoch == *epoch => {
                        known.finished = known.finished.max(Some(now.min(*started_at)));
                        known.ended = Some(*started_at);
                    }
                    Some(known) => known.answered = Millis(0),
                    None => {}
                }
                self.queue_sweep(unit);
            }
        }
    }

    /// A task broke off. A sweep is tried again after [`SWEEP_RETRY_AFTER_MS`], a read in its next turn.
    pub fn handle_failed(&mut self, task: &Task, now: Millis) {
        match task {
            Task::Read { device } => self.end_read(device, now),
            Task::Sweep { unit, .. } => {
                self.running_sweeps.remove(unit);
                if let Some(known) = self.units.get_mut(unit) {
                    known.not_before = Millis(now.0.saturating_add(SWEEP_RETRY_AFTER_MS));
                    known.answered = Millis(0);
                }
                self.queue_sweep(unit);
            }
        }
    }

    /// The shell stopped a task, because what it was based on changed: it is due again at once, if it still is this
    /// node's.
    pub fn handle_stopped(&mut self, task: &Task) {
        match task {
            Task::Read { device } => {
                self.running_reads.remove(device);
                let Some(place) = self.places.get(device).copied() else { return };
                if let Some(device) = &mut self.devices[place as usize] {
                    device.answered = Millis(0);
                }
                self.queue_read(place);
            }
            Task::Sweep { unit, .. } => {
                self.running_sweeps.remove(unit);
                if let Some(known) = self.units.get_mut(unit) {
                    known.answered = Millis(0);
                }
                self.queue_sweep(unit);
            }
        }
    }

    /// When `poll` may have something; a time that has passed means now.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let sweep = self.sweeps.first().filter(|_| self.may_sweep());
        let read = self.reads.first().filter(|_| self.running_reads.len() < self.limits.reads);
        let (sweep, read) = (sweep.map(|(due, _)| *due), read.map(|(due, _)| *due));
        sweep.into_iter().chain(read).min()
    }

    fn end_read(&mut self, id: &DeviceId, now: Millis) {
        self.running_reads.remove(id);
        let Some(place) = self.places.get(id).copied() else { return };
        if let Some(device) = &mut self.devices[place as usize] {
            device.attempted_at = now;
        }
        self.queue_read(place);
    }

    /// A sweep that somebody began and nobody finished, and that no one asked to begin anew.
    fn is_begun(&self, unit: &UnitId) -> bool {
        let Some(Unit { row, finished, ended, .. }) = self.units.get(unit) else { return false };
        row.sweep.is_some_and(|sweep| {
            !sweep.finished
                && *ended != Some(sweep.started_at)
                && finished.is_none_or(|at| at < sweep.started_at)
                && row.asked_at <= sweep.started_at
        })
    }

    fn queue_sweep(&mut self, unit: &UnitId) {
        let begun = self.is_begun(unit);
        let Some(known) = self.units.get_mut(unit) else { return };
        let row = &known.row;
        // When the last whole sweep began, as far as rows and this node know.
        let in_row =
            row.sweep.filter(|sweep| sweep.finished).map(|sweep| sweep.started_at).unwrap_or(row.swept_at);
        let last = known.finished.unwrap_or_default().max(in_row);
        let due = match () {
            () if row.asked_at > last && row.asked_at != known.answered => ASKED,
            () if begun => BEGUN,
            () if last == Millis(0) => NEW,
            // Done for a clock that is further ahead: once more when that time has come, for then the rows show it.
            () if row.asked_at > last => row.asked_at.min(self.schedule.next_slot(last)),
            () => self.schedule.next_slot(last),
        };
        let due = due.max(known.not_before);
        self.sweeps.remove(&(known.due, unit.clone()));
        known.due = due;
        if !self.running_sweeps.contains(unit) {
            self.sweeps.insert((due, unit.clone()));
        }
    }

    fn number(&mut self, unit: &UnitId) -> u32 {
        if let Some(number) = self.unit_numbers.get(unit) {
            return *number;
        }
        let number = u32::try_from(self.unit_numbers.len()).unwrap_or(u32::MAX);
        self.unit_numbers.insert(unit.clone(), number);
        number
    }
    fn add_device(&mut self, row: &DeviceDue, now: Millis) -> u32 {
        let device = Device {
            id: row.id.clone(),
            unit: 0,
            misses: 0,
            metered_at: Millis(0),
            asked_at: Millis(0),
            answered: Millis(0),
            // The dead devices of a dead node must not go before its living ones: their wait starts now.
            attempted_at: if row.misses > 0 { now } else { Millis(0) },
            due: None,
            phase: phase(&row.id, self.every_ms),
        };
        let place = match self.free.pop() {
            Some(place) => place,
            None => {
                self.devices.push(None);
                u32::try_from(self.devices.len() - 1).unwrap_or(u32::MAX)
            }
        };
        self.devices[place as usize] = Some(device);
        self.places.insert(row.id.clone(), place);
        place
    }

    fn queue_all_reads(&mut self) {
        for place in 0..u32::try_from(self.devices.len()).unwrap_or(u32::MAX) {
            self.queue_read(place);
        }
    }

    fn queue_read(&mut self, place: u32) {
        let Some(device) = &mut self.devices[place as usize] else { return };
        if let Some(due) = device.due.take() {
            self.reads.remove(&(due, place));
        }
        if self.owned.contains(&device.unit) && !self.running_reads.contains(&device.id) {
            let due = device.next_read(self.every_ms);
            device.due = Some(due);
            self.reads.insert((due, place));
        }
    }
}

impl Unit {
    fn new(row: OwnUnit) -> Unit {
        Unit { row, finished: None, ended: None, answered: Millis(0), not_before: Millis(0), due: NEW }
    }
}

impl Device {
    fn next_read(&self, every_ms: u64) -> Millis {
        let last = self.metered_at.max(self.attempted_at);
        if self.asked_at > last && self.asked_at != self.answered {
            return ASKED;
        }
        if last == Millis(0) {
            return NEW;
        }
        if self.misses > 0 && self.attempted_at > Millis(0) {
            let doubled = RETRY_AFTER_MS.saturating_mul(1 << (self.misses - 1).min(32));
            return Millis(self.attempted_at.0.saturating_add(doubled.min(every_ms)));
        }
        // A device read a moment before its turn (by a sweep, or by its last owner) skips that turn.
        next_turn(last.0.saturating_add(every_ms / 10), self.phase, every_ms)
    }
}

/// The first moment after `at` that is `phase` behind a multiple of the period.
fn next_turn(at: u64, phase: u64, every_ms: u64) -> Millis {
    match at.checked_sub(phase) {
        None => Millis(phase),
        Some(since) => Millis(at.saturating_add(every_ms - since % every_ms)),
    }
}

/// A device's own moment in the period: FNV-1a of its id, so that every node knows it.
fn phase(id: &DeviceId, every_ms: u64) -> u64 {
    let hash = id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
    });
    // The low bits of FNV alone spread badly over periods that are multiples of powers of two.
    (hash ^ (hash >> 32)) % every_ms
}

#[cfg(test)]
mod tests;
