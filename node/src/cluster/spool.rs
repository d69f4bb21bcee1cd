//! This node's own observations that the cluster has not committed yet; they survive restarts.
//!
//! Numbers rise strictly and are never used twice, even after a power cut: they are reserved on disk
//! ahead of use. A jump is allowed, a repetition would be taken for a duplicate and lost.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use prost::Message;
use quire_coordinator::tables::{Read, Table};
use quire_proto::id::NodeId;
use quire_proto::store::Observation;
use rocksdb::WriteBatch;

use super::store::{META, SPOOL, Store, StoreError, key};

/// Kept at most: 1,000,000 observations of about 600 octets are 600 MB, four days of 10,000 devices
/// read every hour without quorum. At the bound the oldest is given up for the newest, because meters
/// are lifetime totals, and counted in [`Spool::dropped`].
pub const SPOOL_LIMIT: u64 = 1_000_000;

/// Numbers reserved by one synced write: a fifth of a second at 50,000 observations a second.
const RESERVE: u64 = 10_000;

/// The disk failed; the node cannot keep observations.
#[derive(Debug, thiserror::Error)]
#[error("spool: {0}")]
pub struct SpoolError(String);

impl From<StoreError> for SpoolError {
    fn from(error: StoreError) -> Self {
        SpoolError(error.to_string())
    }
}

/// The node's spool; clones share it. Its calls take microseconds, but for one synced write in
/// every 10,000 appends.
#[derive(Clone)]
pub struct Spool {
    store: Store,
    state: Arc<Mutex<State>>,
}

impl std::fmt::Debug for Spool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spool({} waiting)", self.len())
    }
}

struct State {
    /// The next number to give.
    next: u64,
    /// Numbers below this are reserved on disk.
    reserved: u64,
    /// The oldest kept; everything from here to `next` may be there.
    first: u64,
    kept: u64,
    dropped: u64,
    limit: u64,
}

impl Spool {
    /// Opens the spool of `node`; numbering goes on above everything used or committed before.
    pub(crate) fn open(store: &Store, node: NodeId, limit: u64) -> Result<Self, SpoolError> {
        let number = |octets: &[u8]| octets.try_into().map(u64::from_be_bytes).unwrap_or(0);
        let reserved = store.meta(key::SPOOL_RESERVED)?.map_or(0, |octets| number(&octets));
        let committed = store
            .view()?
            .get(Table::Recorded, &node.0.to_be_bytes())
            .map_err(|fault| SpoolError(fault.to_string()))?
            .map_or(0, |octets| number(&octets));
        let mut walk = store.db().raw_iterator_cf(store.family(SPOOL)?);
        let (mut first, mut kept) = (None, 0);
        walk.seek_to_first();
        while let Some(octets) = walk.key() {
            first = first.or_else(|| Some(number(octets)));
            kept += 1;
            walk.next();
        }
        walk.status().map_err(|reason| StoreError::new("walk the spool", reason))?;
        // A mark of the last number there is leaves none: `append_all` then says so.
        let next = reserved.max(committed.saturating_add(1)).max(1);
        let state = State { next, reserved: 0, first: first.unwrap_or(next), kept, dropped: 0, limit };
        Ok(Spool { store: store.clone(), state: Arc::new(Mutex::new(state)) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an observation and returns its number, which it also carries from now on.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn append(&self, observation: Observation) -> Result<u64, SpoolError> {
        self.append_all(vec![observation])
    }

    /// Keeps observations in one write; returns the number of the last, 0 for none.
    ///
    /// # Errors
    /// When the disk fails; then none is kept.
    pub fn append_all(&self, observations: Vec<Observation>) -> Result<u64, SpoolError> {
        let Some(count) = u64::try_from(observations.len()).ok().filter(|count| *count > 0) else {
            return Ok(0);
        };
        let mut state = self.state();
        let next =
            state.next.checked_add(count).ok_or_else(|| SpoolError("all numbers are used up".to_owned()))?;
        if next > state.reserved {
            let reserved = next.saturating_add(RESERVE);
            let mut batch = WriteBatch::default();
            batch.put_cf(self.store.family(META)?, key::SPOOL_RESERVED, reserved.to_be_bytes());
            self.store.write_synced(batch)?;
            state.reserved = reserved;
        }
        let mut batch = WriteBatch::default();
        let family = self.store.family(SPOOL)?;
        let first = state.next;
        for (seq, observation) in (first..next).zip(observations) {
            let observation = Observation { seq, ..observation };
            batch.put_cf(family, seq.to_be_bytes(), observation.encode_to_vec());
        }
        self.store.write(batch)?;
        state.next = next;
        if state.kept == 0 {
            state.first = first;
        }
        state.kept += count;
        self.give_up_oldest(&mut state)?;
        Ok(state.next - 1)
    }

    fn give_up_oldest(&self, state: &mut State) -> Result<(), SpoolError> {
        let excess = state.kept.saturating_sub(state.limit);
        if excess == 0 {
            return Ok(());
        }
        let family = self.store.family(SPOOL)?;
        let mut batch = WriteBatch::default();
        let mut walk = self.store.db().raw_iterator_cf(family);
        walk.seek(state.first.to_be_bytes());
        for _ in 0..excess {
            let Some(octets) = walk.key() else { break };
            batch.delete_cf(family, octets);
            let number = octets.try_into().map_or(state.first, u64::from_be_bytes);
            state.first = number.saturating_add(1);
            walk.next();
        }
        self.store.write(batch)?;
        state.kept -= excess;
        state.dropped += excess;
        Ok(())
    }

    /// The oldest observations, encoded, at most `limit`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn page(&self, limit: usize) -> Result<Vec<Bytes>, SpoolError> {
        let first = self.state().first;
        let mut walk = self.store.db().raw_iterator_cf(self.store.family(SPOOL)?);
        // Starting at the first kept one spares a walk over what was trimmed.
        walk.seek(first.to_be_bytes());
        let mut page = Vec::new();
        while page.len() < limit {
            let Some(octets) = walk.value() else { break };
            page.push(Bytes::copy_from_slice(octets));
            walk.next();
        }
        walk.status().map_err(|reason| StoreError::new("walk the spool", reason))?;
        Ok(page)
    }

    /// Forgets everything up to and with this number.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn trim(&self, through: u64) -> Result<(), SpoolError> {
        let mut state = self.state();
        let through = through.min(state.next.saturating_sub(1));
        if state.kept == 0 || through < state.first {
            return Ok(());
        }
        let family = self.store.family(SPOOL)?;
        let mut walk = self.store.db().raw_iterator_cf(family);
        walk.seek(state.first.to_be_bytes());
        let mut gone = 0;
        while walk.key().is_some_and(|octets| *octets <= through.to_be_bytes()[..]) {
            gone += 1;
            walk.next();
        }
        let mut batch = WriteBatch::default();
        let after = through.saturating_add(1);
        batch.delete_range_cf(family, 0u64.to_be_bytes(), after.to_be_bytes());
        self.store.write(batch)?;
        state.first = after;
        state.kept -= gone.min(state.kept);
        Ok(())
    }

    /// How many wait.
    pub fn len(&self) -> u64 {
        self.state().kept
    }

    /// True when nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many were given up at the bound since this start.
    pub fn dropped(&self) -> u64 {
        self.state().dropped
    }
}
