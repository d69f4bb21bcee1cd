//! A snapshot: a RocksDB view on the sending side, the other state family on the receiving side.
//!
//! It is sent as a stream of row batches in key order (not as checkpoint files), each written to the
//! family that is not in force; a single write then switches families. Neither side holds more than one
//! batch in memory. A stream that breaks leaves rows that the next one clears; it is sent again whole.

use std::io;
use std::sync::Arc;

use prost::Message;
use quire_coordinator::tables::after;
use quire_proto::cluster::{SnapshotEnd, SnapshotRows, StateRow};
use rocksdb::WriteBatch;
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::store::{STATE, Store, View};

/// Rows and octets of a batch: whichever comes first. A row is at most a proposal, 4 MiB.
const BATCH_ROWS: usize = 4096;
const BATCH_OCTETS: usize = 1 << 20;

/// What openraft carries between its parts as snapshot data.
pub(crate) enum Copy {
    /// This node's tables at one moment, to be sent.
    View(View),
    /// Received rows, complete and verified, to be switched to.
    Staged(Staged),
}

/// Walks a view in batches and keeps the digest of what it gave out.
pub(crate) struct Reading {
    view: View,
    from: Vec<u8>,
    digest: ring::digest::Context,
    rows: u64,
}

impl Reading {
    pub(crate) fn new(view: View) -> Self {
        Reading { view, from: Vec::new(), digest: ring::digest::Context::new(&ring::digest::SHA256), rows: 0 }
    }

    /// The next batch; `None` when all is given out. Blocks on the disk.
    pub(crate) fn next(&mut self) -> io::Result<Option<SnapshotRows>> {
        let page = self.view.raw(&self.from, BATCH_ROWS, BATCH_OCTETS)?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        self.from = after(last);
        let rows: Vec<StateRow> = page.into_iter().map(|(key, value)| StateRow { key, value }).collect();
        self.rows += rows.len() as u64;
        let batch = SnapshotRows { rows };
        self.digest.update(&batch.encode_to_vec());
        Ok(Some(batch))
    }

    /// What the receiver must arrive at.
    pub(crate) fn end(self) -> SnapshotEnd {
        SnapshotEnd { rows: self.rows, sha256: self.digest.finish().as_ref().to_vec().into() }
    }
}

/// Only one snapshot is received at a time, until it is in force or dropped.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Mutex<()>>);

/// Rows being received into the family that is not in force.
pub(crate) struct Staging {
    store: Store,
    family: usize,
    digest: ring::digest::Context,
    rows: u64,
    turn: OwnedMutexGuard<()>,
}

/// A complete staging.
pub(crate) struct Staged {
    family: usize,
    _turn: OwnedMutexGuard<()>,
}

impl Staged {
    /// What [`super::store::key::ACTIVE`] says once it is in force.
    pub(crate) fn family_number(&self) -> u8 {
        u8::from(self.family == 1)
    }
}

impl Staging {
    /// Clears the idle family and starts to fill it. Blocks on the disk.
    pub(crate) fn begin(store: &Store, gate: &Gate) -> io::Result<Self> {
        let turn = gate.0.clone().try_lock_owned();
        let turn = turn.map_err(|_| io::Error::other("another snapshot is being received"))?;
        let family = 1 - store.active()?;
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(store.family(STATE[family])?, [0u8].as_slice(), [0xff].as_slice());
        store.write(batch)?;
        let digest = ring::digest::Context::new(&ring::digest::SHA256);
        Ok(Staging { store: store.clone(), family, digest, rows: 0, turn })
    }

    /// Adds a batch. Blocks on the disk.
    pub(crate) fn add(&mut self, rows: &SnapshotRows) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let family = self.store.family(STATE[self.family])?;
        for row in &rows.rows {
            batch.put_cf(family, &row.key, &row.value);
        }
        self.digest.update(&rows.encode_to_vec());
        self.rows += rows.rows.len() as u64;
        self.store.write(batch)?;
        Ok(())
    }

    /// Compares with what the sender gave out.
    pub(crate) fn finish(self, end: &SnapshotEnd) -> io::Result<Staged> {
        if self.rows != end.rows || self.digest.finish().as_ref() != end.sha256.as_ref() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the snapshot arrived damaged"));
        }
        Ok(Staged { family: self.family, _turn: self.turn })
    }

    /// Stages a whole view of another store, batch by batch.
    pub(crate) fn copy(store: &Store, view: &View) -> io::Result<Staged> {
        let mut staging = Staging::begin(store, &Gate::default())?;
        let mut reading = Reading::new(view.clone());
        while let Some(rows) = reading.next()? {
            staging.add(&rows)?;
        }
        staging.finish(&reading.end())
    }
}
