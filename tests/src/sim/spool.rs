//! A node's own observations over a simulated disk, as the node's `spool` keeps them: numbers are reserved on disk ahead
//! of use and never used twice.

use std::sync::Mutex;

use bytes::Bytes;
use prost::Message as _;
use quire_coordinator::rows;
use quire_proto::id::NodeId;
use quire_proto::store::Observation;

use super::checks::Checks;
use super::disk::Disk;
use super::runtime::lock;

/// Numbers reserved by one synced write: few, so that runs use many reservations.
const RESERVE: u64 = 20;

/// The spool of one process.
pub struct Spool {
    disk: Disk,
    me: u64,
    state: Mutex<State>,
}

struct State {
    next: u64,
    reserved: u64,
}

impl Spool {
    /// Numbering goes on above everything used or committed before.
    #[must_use]
    pub fn open(disk: &Disk, me: u64) -> Spool {
        let (reserved, committed) = disk.look(|image| {
            (image.reserved, rows::recorded_through(&image.tables, NodeId(me)).unwrap_or_default())
        });
        let next = reserved.max(committed + 1).max(1);
        Spool { disk: disk.clone(), me, state: Mutex::new(State { next, reserved: 0 }) }
    }

    /// Keeps an observation; false when the disk is full, and it is lost.
    pub fn append(&self, observation: Observation) -> bool {
        let mut state = lock(&self.state);
        let seq = state.next;
        if seq + 1 > state.reserved {
            let reserved = seq + 1 + RESERVE;
            if self.disk.write_synced(|batch| batch.reserve(reserved)).is_err() {
                return false;
            }
            state.reserved = reserved;
        }
        let stored = Bytes::from(Observation { seq, ..observation }.encode_to_vec());
        let written = self.disk.write(|batch| batch.spool(seq, Some(stored)));
        if written.is_ok() {
            state.next += 1;
        }
        written.is_ok()
    }

    /// The oldest, encoded.
    #[must_use]
    pub fn page(&self, limit: usize) -> Vec<Bytes> {
        self.disk.look(|image| image.spool.values().take(limit).cloned().collect())
    }

    /// Forgets everything through a number; with `checks`, all of it must be committed.
    pub fn trim(&self, through: u64, checks: Option<&Checks>) {
        let through = through.min(lock(&self.state).next - 1);
        let gone: Vec<(u64, Bytes)> = self.disk.look(|image| {
            image.spool.range(..=through).map(|(seq, stored)| (*seq, stored.clone())).collect()
        });
        if let Some(checks) = checks {
            gone.iter().for_each(|(seq, stored)| checks.forgotten_is_committed(self.me, *seq, stored));
        }
        let _ = self.disk.write(|batch| gone.iter().for_each(|(seq, _)| batch.spool(*seq, None)));
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.disk.look(|image| image.spool.len())
    }
}
