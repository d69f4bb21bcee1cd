//! A simulated disk: everything that a node keeps in RocksDB, with one write-ahead log under all of it.
//!
//! What is written is seen at once and on disk only once synced. A process that is killed loses nothing, for the
//! kernel has it; a machine that loses power loses a suffix of the batches, never a part of one, for the real log's
//! records are checksummed and its torn tail is dropped.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use quire_coordinator::tables::{MemoryTables, Read as _, Table};
use quire_proto::cluster::Seen;
use tokio::sync::Notify;

use super::raft::{Entry, LogId, StoredMembership, Vote, digest};
use super::runtime::{lock, pick, sleep_ms};

/// All that a node keeps.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Raft's vote.
    pub vote: Option<Vote>,
    /// The last entry that was purged.
    pub purged: Option<LogId>,
    /// The log.
    pub log: BTreeMap<u64, Entry>,
    /// The last entry in the tables.
    pub applied: Option<LogId>,
    /// The membership that it reaches.
    pub membership: StoredMembership,
    /// The replicated tables.
    pub tables: MemoryTables,
    /// Of the tables' contents, in whichever order they were written.
    pub digest: u64,
    /// Observations by their numbers.
    pub spool: BTreeMap<u64, Bytes>,
    /// Numbers below are reserved.
    pub reserved: u64,
    /// How often it was started.
    pub boot: u64,
    /// Who others were when seen last.
    pub seen: BTreeMap<u64, Seen>,
}

/// What takes a write back.
#[derive(Debug)]
enum Undo {
    Vote(Option<Vote>),
    Purged(Option<LogId>),
    Log(u64, Option<Entry>),
    Marks(Option<LogId>, StoredMembership),
    Row(Table, Bytes, Option<Bytes>),
    Tables(Box<MemoryTables>, u64),
    Spool(u64, Option<Bytes>),
    Reserved(u64),
    Boot(u64),
    Seen(u64, Option<Seen>),
}

/// A batch that is being written: all of it counts, or nothing.
pub struct Batch<'a> {
    image: &'a mut Image,
    undo: Vec<Undo>,
}

fn row_digest(table: Table, key: &[u8], value: &[u8]) -> u64 {
    digest(&(table as u8, key, value))
}

impl Batch<'_> {
    /// Puts the vote.
    pub fn vote(&mut self, vote: Vote) {
        self.undo.push(Undo::Vote(self.image.vote.replace(vote)));
    }

    /// Puts an entry of the log.
    pub fn append(&mut self, entry: Entry) {
        let index = entry.log_id.index;
        self.undo.push(Undo::Log(index, self.image.log.insert(index, entry)));
    }

    /// Removes entries of the log.
    pub fn remove(&mut self, range: impl std::ops::RangeBounds<u64>) {
        let gone: Vec<u64> = self.image.log.range(range).map(|(index, _)| *index).collect();
        for index in gone {
            self.undo.push(Undo::Log(index, self.image.log.remove(&index)));
        }
    }

    /// Puts the purge mark.
    pub fn purged(&mut self, upto: LogId) {
        self.undo.push(Undo::Purged(self.image.purged.replace(upto)));
    }

    /// Puts how far the tables are.
    pub fn marks(&mut self, applied: Option<LogId>, membership: StoredMembership) {
        let before = std::mem::replace(&mut self.image.membership, membership);
        self.undo.push(Undo::Marks(std::mem::replace(&mut self.image.applied, applied), before));
    }

    /// Writes rows of the tables.
    pub fn rows(&mut self, writes: impl Iterator<Item = (Table, Bytes, Option<Bytes>)>) {
        for (table, key, value) in writes {
            let before = self.image.row(table, key.clone(), value);
            self.undo.push(Undo::Row(table, key, before));
        }
    }

    /// Puts other tables in place of these.
    pub fn tables(&mut self, tables: MemoryTables, digest: u64) {
        let before = std::mem::replace(&mut self.image.tables, tables);
        self.undo.push(Undo::Tables(Box::new(before), std::mem::replace(&mut self.image.digest, digest)));
    }

    /// Puts or removes an observation.
    pub fn spool(&mut self, seq: u64, observation: Option<Bytes>) {
        let before = match observation {
            Some(observation) => self.image.spool.insert(seq, observation),
            None => self.image.spool.remove(&seq),
        };
        self.undo.push(Undo::Spool(seq, before));
    }

    /// Reserves numbers.
    pub fn reserve(&mut self, below: u64) {
        self.undo.push(Undo::Reserved(std::mem::replace(&mut self.image.reserved, below)));
    }

    /// Counts a start.
    pub fn boot(&mut self, boot: u64) {
        self.undo.push(Undo::Boot(std::mem::replace(&mut self.image.boot, boot)));
    }

    /// Notes who another was.
    pub fn seen(&mut self, node: u64, seen: Seen) {
        self.undo.push(Undo::Seen(node, self.image.seen.insert(node, seen)));
    }
}

impl Image {
    /// Writes a row, follows the digest, and answers what was there.
    fn row(&mut self, table: Table, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
        let before = self.tables.get(table, &key).unwrap_or(None);
        if let Some(before) = &before {
            self.digest = self.digest.wrapping_sub(row_digest(table, &key, before));
        }
        if let Some(value) = &value {
            self.digest = self.digest.wrapping_add(row_digest(table, &key, value));
        }
        self.tables.commit(std::iter::once((table, key, value)));
        before
    }

    fn take_back(&mut self, undo: Undo) {
        fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
            match value {
                Some(value) => map.insert(key, value),
                None => map.remove(&key),
            };
        }
        match undo {
            Undo::Vote(vote) => self.vote = vote,
            Undo::Purged(purged) => self.purged = purged,
            Undo::Log(index, entry) => put(&mut self.log, index, entry),
            Undo::Marks(applied, membership) => (self.applied, self.membership) = (applied, membership),
            Undo::Row(table, key, value) => drop(self.row(table, key, value)),
            Undo::Tables(tables, digest) => (self.tables, self.digest) = (*tables, digest),
            Undo::Spool(seq, observation) => put(&mut self.spool, seq, observation),
            Undo::Reserved(below) => self.reserved = below,
            Undo::Boot(boot) => self.boot = boot,
            Undo::Seen(node, seen) => put(&mut self.seen, node, seen),
        }
    }

    /// The last entry of the log, or the last one purged.
    #[must_use]
    pub fn last(&self) -> Option<LogId> {
        self.log.values().next_back().map(|entry| entry.log_id).or(self.purged)
    }
}

/// Told when a write is on disk, or why it is not.
type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Inner {
    image: Image,
    /// Batches that are not on disk, oldest first, the number of the first being `synced + 1`.
    pending: VecDeque<Vec<Undo>>,
    written: u64,
    synced: u64,
    waiting: Vec<(u64, Flushed)>,
    full: bool,
    /// What a sync takes at least and at most, milliseconds.
    sync_ms: (u64, u64),
}

/// A disk; clones share it.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
    work: Arc<Notify>,
}

/// What a sync takes on a healthy disk, milliseconds.
const HEALTHY: (u64, u64) = (1, 6);

impl Disk {
    /// With what a data directory holds.
    #[must_use]
    pub fn new(image: Image) -> Disk {
        let inner = Inner {
            image,
            pending: VecDeque::new(),
            written: 0,
            synced: 0,
            waiting: Vec::new(),
            full: false,
            sync_ms: HEALTHY,
        };
        Disk { inner: Arc::new(Mutex::new(inner)), work: Arc::new(Notify::new()) }
    }

    /// Looks at what is there.
    pub fn look<T>(&self, at: impl FnOnce(&Image) -> T) -> T {
        at(&lock(&self.inner).image)
    }

    /// Writes a batch; answers its number.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write(&self, fill: impl FnOnce(&mut Batch<'_>)) -> io::Result<u64> {
        let mut inner = lock(&self.inner);
        if inner.full {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on the simulated disk"));
        }
        let mut batch = Batch { image: &mut inner.image, undo: Vec::new() };
        fill(&mut batch);
        let undo = batch.undo;
        inner.pending.push_back(undo);
        inner.written += 1;
        Ok(inner.written)
    }

    /// Writes a batch, and everything before it, to disk at once.
    ///
    /// # Errors
    /// When the disk is full.
    pub fn write_synced(&self, fill: impl FnOnce(&mut Batch<'_>)) -> io::Result<()> {
        let number = self.write(fill)?;
        self.synced(number);
        Ok(())
    }

    /// Tells `flushed` when the batch is on disk.
    pub fn when_synced(&self, number: u64, flushed: Flushed) {
        lock(&self.inner).waiting.push((number, flushed));
        self.work.notify_one();
    }

    fn synced(&self, through: u64) {
        let mut inner = lock(&self.inner);
        while inner.synced < through && inner.pending.pop_front().is_some() {
            inner.synced += 1;
        }
    }

    /// Syncs for whoever waits, as the log's own thread does: what gathers during one sync shares the next.
    pub async fn sync_for_ever(self) {
        loop {
            let (waiting, through, (least, most)) = {
                let mut inner = lock(&self.inner);
                (std::mem::take(&mut inner.waiting), inner.written, inner.sync_ms)
            };
            if waiting.is_empty() {
                self.work.notified().await;
                continue;
            }
            sleep_ms(pick(least..most)).await;
            self.synced(through);
            waiting.into_iter().for_each(|(_, flushed)| flushed(Ok(())));
        }
    }

    /// Everything written so far is on disk: the kernel outlives a process.
    pub fn outlive_process(&self) {
        let mut inner = lock(&self.inner);
        let written = inner.written;
        inner.pending.clear();
        inner.synced = written;
        inner.waiting.clear();
    }

    /// Power is lost: of what was not synced a part is there, in order; answers how many batches are lost.
    pub fn lose_power(&self, keep: impl FnOnce(usize) -> usize) -> usize {
        let mut inner = lock(&self.inner);
        let kept = keep(inner.pending.len());
        let mut lost = 0;
        while inner.pending.len() > kept {
            let batch = inner.pending.pop_back().unwrap_or_default();
            batch.into_iter().rev().for_each(|undo| inner.image.take_back(undo));
            lost += 1;
        }
        inner.pending.clear();
        inner.written = inner.synced + kept as u64;
        inner.synced = inner.written;
        inner.waiting.clear();
        lost
    }

    /// Whether it takes writes.
    pub fn set_full(&self, full: bool) {
        lock(&self.inner).full = full;
    }

    /// A sync takes so long from now on; `None`: as on a healthy disk.
    pub fn set_slow(&self, sync_ms: Option<(u64, u64)>) {
        lock(&self.inner).sync_ms = sync_ms.unwrap_or(HEALTHY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_takes_a_suffix_of_whole_batches_and_the_digest_follows() {
        let disk = Disk::new(Image::default());
        let row = |n: u8| (Table::Units, Bytes::from(vec![n]), Some(Bytes::from(vec![n, n])));
        disk.write_synced(|batch| batch.rows([row(1)].into_iter())).unwrap();
        let synced = disk.look(|image| (image.digest, image.tables.clone()));
        disk.write(|batch| {
            batch.rows([row(2), (Table::Units, Bytes::from(vec![1]), None)].into_iter());
            batch.spool(7, Some(Bytes::new()));
        })
        .unwrap();
        let second = disk.look(|image| image.digest);
        disk.write(|batch| batch.spool(8, Some(Bytes::new()))).unwrap();
        assert_eq!(disk.lose_power(|pending| pending - 1), 1);
        assert_eq!(disk.look(|image| (image.digest, image.spool.len())), (second, 1));
        disk.write(|batch| batch.spool(9, Some(Bytes::new()))).unwrap();
        disk.outlive_process();
        assert_eq!(disk.lose_power(|_| 0), 0);
        let again = Disk::new(Image { digest: synced.0, tables: synced.1.clone(), ..Image::default() });
        again.write(|batch| batch.rows([row(3), row(1)].into_iter())).unwrap();
        assert_eq!(again.lose_power(|_| 0), 1);
        assert_eq!(again.look(|image| (image.digest, image.tables.clone())), synced);
        again.set_full(true);
        assert!(again.write(|_| ()).is_err());
    }
}
