//! A snapshot: a RocksDB view on the sending side, the other state family on the receiving side.
//!
//! It is sent as a stream of row batches in key order (not as checkpoint files), each written to the
//! family that is not in force; a single write then switches families. Neither side holds more than one
//! batch in memory. A stream that breaks is gone on with: the sender keeps the view and what it had digested after each
//! batch ([`Shelf`]), the receiver its rows ([`Gate`]). One digest covers all of it, whatever the number of streams.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prost::Message;
use quire_coordinator::tables::after;
use quire_proto::cluster::{SnapshotEnd, SnapshotRows, StateRow};
use ring::digest::{Context, SHA256};
use rocksdb::WriteBatch;
use tokio::sync::{Mutex as Turns, OwnedMutexGuard};

use super::raft::SnapshotMeta;
use super::store::{STATE, Store, View};
use crate::clock;

/// Rows and octets of a batch: whichever comes first. A row is at most a proposal, 4 MiB.
const BATCH_ROWS: usize = 4096;
const BATCH_OCTETS: usize = 1 << 20;

/// A view that nobody reads is kept so long: openraft tries again within a second, a host restarts in a minute.
const IDLE: Duration = Duration::from_secs(120);
/// And no longer than this altogether, for it holds back the space of what changes: 3 GB at 1 MB a second.
const LONGEST: Duration = Duration::from_secs(3_600);
/// Batches that a stream can go on behind, the newest: about 4 GiB of rows, 1 MiB of marks.
const MARKS: usize = 4096;

/// What openraft carries between its parts as snapshot data.
pub(crate) enum Copy {
    /// This node's tables at one moment, to be sent.
    View(Outgoing),
    /// Received rows, complete and verified, to be switched to.
    Staged(Staged),
}

/// Where the one view is kept that is being sent; clones share it.
#[derive(Clone, Default)]
pub(crate) struct Shelf(Arc<Mutex<Option<Held>>>);

struct Held {
    outgoing: Outgoing,
    meta: SnapshotMeta,
    taken: Instant,
    read: Instant,
    marks: BTreeMap<u64, Mark>,
}

/// How far a reading is.
#[derive(Clone)]
struct Mark {
    from: Vec<u8>,
    digest: Context,
    rows: u64,
}

impl Mark {
    fn start() -> Self {
        Mark { from: Vec::new(), digest: Context::new(&SHA256), rows: 0 }
    }
}

/// A view to be sent, under a name of its own.
#[derive(Clone)]
pub(crate) struct Outgoing {
    pub(crate) id: String,
    pub(crate) view: View,
}

impl Shelf {
    fn held(&self) -> MutexGuard<'_, Option<Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view whose sending is not done, else a new one with its `meta`, under the name `id`.
    pub(crate) fn take(
        &self,
        id: impl FnOnce() -> io::Result<String>,
        new: impl FnOnce() -> io::Result<(SnapshotMeta, View)>,
    ) -> io::Result<(SnapshotMeta, Outgoing)> {
        self.clear();
        let mut held = self.held();
        if let Some(held) = &*held {
            return Ok((held.meta.clone(), held.outgoing.clone()));
        }
        let (meta, view) = new()?;
        let (outgoing, now) = (Outgoing { id: id()?, view }, clock::steady());
        let (taken, read, marks) = (now, now, BTreeMap::new());
        *held = Some(Held { outgoing: outgoing.clone(), meta: meta.clone(), taken, read, marks });
        Ok((meta, outgoing))
    }

    /// Through which entry the view reaches that is being sent.
    pub(crate) fn sending(&self) -> Option<u64> {
        self.clear();
        self.held().as_ref().map(|held| held.meta.last_log_id.map_or(0, |last| last.index))
    }

    /// Lets go of a view that nobody came back for.
    pub(crate) fn clear(&self) {
        let now = clock::steady();
        let over = |since: Instant, most| now.saturating_duration_since(since) > most;
        self.held().take_if(|held| over(held.read, IDLE) || over(held.taken, LONGEST));
    }

    /// It arrived, or cannot be gone on with.
    pub(crate) fn done(&self, id: &str) {
        self.held().take_if(|held| held.outgoing.id == id);
    }

    /// Reads on behind so many rows; from the beginning where that place is not known.
    pub(crate) fn read(&self, outgoing: &Outgoing, rows: u64) -> Reading {
        let held = self.held();
        let own = held.as_ref().filter(|held| held.outgoing.id == outgoing.id);
        let mark = own.and_then(|held| held.marks.get(&rows).cloned());
        let view = outgoing.view.clone();
        Reading {
            view,
            at: mark.unwrap_or_else(Mark::start),
            shelf: Some((self.clone(), outgoing.id.clone())),
        }
    }

    fn note(&self, id: &str, at: &Mark) {
        let mut held = self.held();
        let Some(held) = held.as_mut().filter(|held| held.outgoing.id == id) else { return };
        held.read = clock::steady();
        held.marks.insert(at.rows, at.clone());
        if held.marks.len() > MARKS {
            held.marks.pop_first();
        }
    }
}

/// Walks a view in batches and keeps the digest of what it gave out.
pub(crate) struct Reading {
    view: View,
    at: Mark,
    shelf: Option<(Shelf, String)>,
}

impl Reading {
    pub(crate) fn new(view: View) -> Self {
        Reading { view, at: Mark::start(), shelf: None }
    }

    /// How many rows were given out, here and in the streams before.
    pub(crate) fn rows(&self) -> u64 {
        self.at.rows
    }

    /// The next batch; `None` when all is given out. Blocks on the disk.
    pub(crate) fn next(&mut self) -> io::Result<Option<SnapshotRows>> {
        let page = self.view.raw(&self.at.from, BATCH_ROWS, BATCH_OCTETS)?;
        let Some((last, _)) = page.last() else { return Ok(None) };
        self.at.from = after(last);
        let rows: Vec<StateRow> = page.into_iter().map(|(key, value)| StateRow { key, value }).collect();
        self.at.rows += rows.len() as u64;
        let batch = SnapshotRows { rows };
        self.at.digest.update(&batch.encode_to_vec());
        if let Some((shelf, id)) = &self.shelf {
            shelf.note(id, &self.at);
        }
        Ok(Some(batch))
    }

    /// What the receiver must arrive at.
    pub(crate) fn end(self) -> SnapshotEnd {
        SnapshotEnd { rows: self.at.rows, sha256: self.at.digest.finish().as_ref().to_vec().into() }
    }
}

/// Only one snapshot is received at a time, until it is in force or dropped; what came of one whose stream broke is kept
/// until the next begins. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<Turns<Option<Kept>>>);

/// Rows of a view that are in the family that is not in force.
struct Kept {
    id: String,
    family: usize,
    digest: Context,
    rows: u64,
}

impl Gate {
    fn turn(&self) -> io::Result<OwnedMutexGuard<Option<Kept>>> {
        let turn = self.0.clone().try_lock_owned();
        turn.map_err(|_| io::Error::other("another snapshot is being received"))
    }

    /// How many rows of the view `id` are here.
    pub(crate) fn staged(&self, id: &str) -> io::Result<u64> {
        Ok(self.turn()?.as_ref().filter(|kept| kept.id == id).map_or(0, |kept| kept.rows))
    }
}

/// Rows being received into the family that is not in force. Dropped before its end, it can be gone on with.
pub(crate) struct Staging {
    store: Store,
    /// `None` once nothing more may be added.
    open: Option<(Kept, OwnedMutexGuard<Option<Kept>>)>,
}

/// A complete staging.
pub(crate) struct Staged {
    family: usize,
    _turn: OwnedMutexGuard<Option<Kept>>,
}

impl Staged {
    /// What [`super::store::key::ACTIVE`] says once it is in force.
    pub(crate) fn family_number(&self) -> u8 {
        u8::from(self.family == 1)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Some((kept, mut turn)) = self.open.take() {
            *turn = Some(kept);
        }
    }
}

impl Staging {
    /// Clears the idle family and starts to fill it. Blocks on the disk.
    pub(crate) fn begin(store: &Store, gate: &Gate, id: &str) -> io::Result<Self> {
        let mut turn = gate.turn()?;
        *turn = None;
        let family = 1 - store.active()?;
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(store.family(STATE[family])?, [0u8].as_slice(), [0xff].as_slice());
        store.write(batch)?;
        let kept = Kept { id: id.to_owned(), family, digest: Context::new(&SHA256), rows: 0 };
        Ok(Staging { store: store.clone(), open: Some((kept, turn)) })
    }

    /// Goes on behind so many rows of the view `id`; with 0 as [`Staging::begin`].
    ///
    /// # Errors
    /// When another one is being received, or they are not here: then it has to begin.
    pub(crate) fn go_on(store: &Store, gate: &Gate, id: &str, rows: u64) -> io::Result<Self> {
        if rows == 0 {
            return Staging::begin(store, gate, id);
        }
        let mut turn = gate.turn()?;
        let idle = 1 - store.active()?;
        let kept = turn.take_if(|kept| kept.id == id && kept.rows == rows && kept.family == idle);
        let kept = kept.ok_or_else(|| io::Error::other("the first part of this snapshot is not here"))?;
        Ok(Staging { store: store.clone(), open: Some((kept, turn)) })
    }

    /// Adds a batch. Blocks on the disk. After an error nothing of it can be gone on with.
    pub(crate) fn add(&mut self, rows: &SnapshotRows) -> io::Result<()> {
        let (mut kept, turn) =
            self.open.take().ok_or_else(|| io::Error::other("this snapshot has failed"))?;
        let mut batch = WriteBatch::default();
        let family = self.store.family(STATE[kept.family])?;
        for row in &rows.rows {
            batch.put_cf(family, &row.key, &row.value);
        }
        kept.digest.update(&rows.encode_to_vec());
        kept.rows += rows.rows.len() as u64;
        self.store.write(batch)?;
        self.open = Some((kept, turn));
        Ok(())
    }

    /// Compares with what the sender gave out. What arrived damaged is not gone on with.
    pub(crate) fn finish(mut self, end: &SnapshotEnd) -> io::Result<Staged> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the snapshot arrived damaged");
        let (kept, turn) = self.open.take().ok_or_else(damaged)?;
        if kept.rows != end.rows || kept.digest.finish().as_ref() != end.sha256.as_ref() {
            return Err(damaged());
        }
        Ok(Staged { family: kept.family, _turn: turn })
    }

    /// Stages a whole view of another store, batch by batch.
    pub(crate) fn copy(store: &Store, view: &View) -> io::Result<Staged> {
        let mut staging = Staging::begin(store, &Gate::default(), "")?;
        let mut reading = Reading::new(view.clone());
        while let Some(rows) = reading.next()? {
            staging.add(&rows)?;
        }
        staging.finish(&reading.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_coordinator::tables::{Read as _, Table};
    use tempfile::TempDir;

    use crate::cluster::store::state_key;

    /// Some 3 MiB of units: a handful of batches.
    fn filled(dir: &TempDir) -> Store {
        let store = Store::open(&dir.path().join("one")).unwrap();
        let mut batch = WriteBatch::default();
        for n in 0..3_000_u32 {
            let value = vec![n as u8; 1_000];
            batch.put_cf(store.family(STATE[0]).unwrap(), state_key(Table::Units, &n.to_be_bytes()), value);
        }
        store.write(batch).unwrap();
        store
    }

    fn shelved(shelf: &Shelf, store: &Store, id: &str) -> Outgoing {
        let new = || Ok((SnapshotMeta::default(), store.view()?));
        shelf.take(|| Ok(id.to_owned()), new).unwrap().1
    }

    /// Streams until the end, or for so many batches; answers what was staged, and the rows that were sent.
    fn stream(
        (shelf, outgoing): (&Shelf, &Outgoing),
        (store, gate): (&Store, &Gate),
        batches: usize,
    ) -> (Option<io::Result<Staged>>, u64) {
        let behind = gate.staged(&outgoing.id).unwrap();
        let mut reading = shelf.read(outgoing, behind);
        let first = reading.rows();
        let mut staging = Staging::go_on(store, gate, &outgoing.id, first).unwrap();
        for _ in 0..batches {
            match reading.next().unwrap() {
                Some(rows) => staging.add(&rows).unwrap(),
                None => {
                    let sent = reading.rows() - first;
                    return (Some(staging.finish(&reading.end())), sent);
                }
            }
        }
        // What was read ahead never arrives.
        reading.next().unwrap();
        (None, reading.rows() - first)
    }

    fn copied(store: &Store) -> usize {
        let mut batch = WriteBatch::default();
        batch.put_cf(store.family(super::super::store::META).unwrap(), super::super::store::key::ACTIVE, [1]);
        store.write(batch).unwrap();
        store.view().unwrap().range(Table::Units, &[], 10_000).unwrap().len()
    }

    #[test]
    fn a_stream_that_broke_goes_on_where_it_ended() {
        let dir = TempDir::new().unwrap();
        let (from, to) = (filled(&dir), Store::open(&dir.path().join("two")).unwrap());
        let (shelf, gate) = (Shelf::default(), Gate::default());
        let outgoing = shelved(&shelf, &from, "first");
        let whole = stream((&shelf, &outgoing), (&to, &gate), usize::MAX).1;
        assert_eq!(whole, 3_000);
        let outgoing = shelved(&shelf, &from, "another");
        assert_eq!(outgoing.id, "first", "it is not done yet");
        assert!(stream((&shelf, &outgoing), (&to, &gate), 1).0.is_none());
        let came = gate.staged("first").unwrap();
        assert!(came > 0 && came < whole, "{came}");
        let (staged, sent) = stream((&shelf, &outgoing), (&to, &gate), usize::MAX);
        assert_eq!(sent, whole - came, "only the rest");
        drop(staged.unwrap().unwrap());
        assert_eq!(copied(&to), 3_000);
        shelf.done("first");
        assert_eq!(shelved(&shelf, &from, "second").id, "second");
    }

    #[test]
    fn what_arrived_damaged_is_begun_again() {
        let dir = TempDir::new().unwrap();
        let (from, to) = (filled(&dir), Store::open(&dir.path().join("two")).unwrap());
        let (shelf, gate) = (Shelf::default(), Gate::default());
        let outgoing = shelved(&shelf, &from, "one");
        let mut reading = shelf.read(&outgoing, 0);
        let mut staging = Staging::go_on(&to, &gate, "one", 0).unwrap();
        let mut rows = reading.next().unwrap().unwrap();
        rows.rows[7].value = vec![0xff; 1_000].into();
        staging.add(&rows).unwrap();
        drop(staging);
        let (staged, _) = stream((&shelf, &outgoing), (&to, &gate), usize::MAX);
        assert_eq!(staged.unwrap().err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
        assert_eq!(gate.staged("one").unwrap(), 0, "nothing of it is gone on with");
        let (staged, sent) = stream((&shelf, &outgoing), (&to, &gate), usize::MAX);
        assert_eq!((staged.unwrap().is_ok(), sent), (true, 3_000));
    }

    #[test]
    fn a_sender_or_receiver_that_started_anew_begins_anew() {
        let dir = TempDir::new().unwrap();
        let (from, to) = (filled(&dir), Store::open(&dir.path().join("two")).unwrap());
        let (shelf, gate) = (Shelf::default(), Gate::default());
        let outgoing = shelved(&shelf, &from, "before");
        assert!(stream((&shelf, &outgoing), (&to, &gate), 1).0.is_none());
        let restarted = Shelf::default();
        let outgoing = shelved(&restarted, &from, "after");
        assert_eq!(gate.staged("after").unwrap(), 0, "these rows are of another view");
        assert!(stream((&restarted, &outgoing), (&to, &gate), 1).0.is_none());
        assert!(gate.staged("after").unwrap() > 0);
        assert!(Staging::go_on(&to, &gate, "before", 7).is_err());
        // The receiver forgets what it had, and the sender's marks are of no use then.
        let fresh = Gate::default();
        let (staged, sent) = stream((&restarted, &outgoing), (&to, &fresh), usize::MAX);
        assert_eq!((staged.unwrap().is_ok(), sent), (true, 3_000));
        let busy = Staging::begin(&to, &fresh, "x").unwrap();
        assert!(fresh.staged("x").is_err() && Staging::begin(&to, &fresh, "y").is_err());
        drop(busy);
    }
}
