//! The node's one RocksDB: column families for Raft's own marks, the log, the state tables and the spool.
//!
//! All families share one write-ahead log, so a crash loses a suffix of everything together: a purge
//! never survives the state that made it allowed. The state lives in one of two families; which one is
//! a row of `meta`, so installing a snapshot is a single write.
//!
//! What it must never do: write a state row outside the batch that also moves `applied`.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use quire_coordinator::tables::{Fault, Key, Read, Row, Table};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBPinnableSlice,
    DBRawIterator, Options, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};

/// Vote, purge mark, applied mark, membership, the active state family, the spool's marks, who we are.
pub(crate) const META: &str = "meta";
/// Log index, 8 octets big-endian: an encoded `cluster::Entry`.
pub(crate) const LOG: &str = "log";
/// Table number in one octet, then the table's key.
pub(crate) const STATE: [&str; 2] = ["state-a", "state-b"];
/// Observation number, 8 octets big-endian: an encoded `store::Observation`.
pub(crate) const SPOOL: &str = "spool";

/// Keys in [`META`].
pub(crate) mod key {
    pub(crate) const VOTE: &[u8] = b"vote";
    pub(crate) const PURGED: &[u8] = b"purged";
    pub(crate) const APPLIED: &[u8] = b"applied";
    pub(crate) const MEMBERSHIP: &[u8] = b"membership";
    pub(crate) const ACTIVE: &[u8] = b"active";
    pub(crate) const SPOOL_RESERVED: &[u8] = b"spool-reserved";
    pub(crate) const BOOT: &[u8] = b"boot";
    /// Then 8 octets of a node's id.
    pub(crate) const SEEN: &[u8] = b"seen/";
    pub(crate) const OWNER: &[u8] = b"owner";
    /// The heartbeat in force, milliseconds.
    pub(crate) const BEAT: &[u8] = b"beat";
}

/// What RocksDB said; the node can only stop and report it.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub(crate) struct StoreError {
    pub(crate) what: &'static str,
    pub(crate) reason: String,
}

impl StoreError {
    pub(crate) fn new(what: &'static str, reason: impl std::fmt::Display) -> Self {
        StoreError { what, reason: reason.to_string() }
    }
}

impl From<StoreError> for std::io::Error {
    fn from(error: StoreError) -> Self {
        std::io::Error::other(error.to_string())
    }
}

/// All families' memtables together: at one of them a family is flushed.
const MEMTABLES: usize = 64 << 20;
/// One family's: a flush makes a file of about half of it.
const MEMTABLE: usize = 16 << 20;
/// Of a memtable, for its filter: 160 KB each, some 40 bits a row at 500 octets.
const MEMTABLE_FILTER: f64 = 0.01;
/// New files of a state family that are compacted together, each of 8 MB and less.
const NEW_FILES: i32 = 12;
/// Blocks of all families. Indices and filters stand beside it, some 2 octets a row, 20 MB for the rows of a million
/// devices: in a cache that is smaller than a fleet they would drive each other out, and a filter is read whole.
const CACHE: usize = 64 << 20;
/// Bounds the replay at a start, and the disk that it takes.
const WAL: u64 = 96 << 20;

fn family_options(name: &'static str, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    let mut options = Options::default();
    options.set_write_buffer_size(MEMTABLE);
    options.set_compression_type(DBCompressionType::Lz4);
    if STATE.contains(&name) {
        // Rows of one table are alike: larger blocks and a slower compression where most of the rows are. Most keys that
        // are looked for are new or known, and filters tell which without a read.
        blocks.set_block_size(8 << 10);
        blocks.set_bloom_filter(10.0, false);
        options.set_bottommost_compression_type(DBCompressionType::Zstd);
        // Readings touch rows all over the tables, so each compaction of new files writes most of the next level anew:
        // with 12 files instead of 4 that is a third as often. At 20, writes are slowed.
        options.set_level_zero_file_num_compaction_trigger(NEW_FILES);
        // Of a new device nearly all keys are new, and of a known one most are not in the newest memtable.
        options.set_memtable_whole_key_filtering(true);
        options.set_memtable_prefix_bloom_ratio(MEMTABLE_FILTER);
    }
    options.set_block_based_table_factory(&blocks);
    options
}

/// A handle on the open database; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    db: Arc<DB>,
}

impl Store {
    /// Opens or creates the database in `path`.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_paranoid_checks(true);
        options.set_max_open_files(256);
        options.set_keep_log_file_num(4);
        options.set_max_total_wal_size(WAL);
        options.set_db_write_buffer_size(MEMTABLES);
        // A background file reaches the disk as it is written, so that a sync of the log finds little to wait for.
        options.set_bytes_per_sync(1 << 20);
        let cache = Cache::new_lru_cache(CACHE);
        let families = [META, LOG, STATE[0], STATE[1], SPOOL]
            .map(|name| ColumnFamilyDescriptor::new(name, family_options(name, &cache)));
        let db = DB::open_cf_descriptors(&options, path, families)
            .map_err(|reason| StoreError::new("open the database", reason))?;
        Ok(Store { db: Arc::new(db) })
    }

    /// Opens the database of a node that does not run, for reading alone: nothing is locked, made or written.
    pub(crate) fn open_to_read(path: &Path) -> Result<Self, StoreError> {
        let mut options = Options::default();
        options.set_paranoid_checks(true);
        options.set_max_open_files(256);
        let families = [META, LOG, STATE[0], STATE[1], SPOOL]
            .map(|name| ColumnFamilyDescriptor::new(name, Options::default()));
        let db = DB::open_cf_descriptors_read_only(&options, path, families, false)
            .map_err(|reason| StoreError::new("open the database to read it", reason))?;
        Ok(Store { db: Arc::new(db) })
    }

    pub(crate) fn db(&self) -> &DB {
        &self.db
    }

    /// Of a name that [`Store::open`] opened.
    pub(crate) fn family(&self, name: &'static str) -> Result<&ColumnFamily, StoreError> {
        family(&self.db, name)
    }

    pub(crate) fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let family = self.family(META)?;
        self.db.get_cf(family, key).map_err(|reason| StoreError::new("read the meta family", reason))
    }

    /// Counts this start of the directory; on disk before anybody hears of it.
    pub(crate) fn count_start(&self) -> Result<u64, StoreError> {
        let before = self.meta(key::BOOT)?.and_then(|octets| octets.try_into().ok());
        let now = before.map_or(0, u64::from_be_bytes) + 1;
        let mut batch = WriteBatch::default();
        batch.put_cf(self.family(META)?, key::BOOT, now.to_be_bytes());
        self.write_synced(batch)?;
        Ok(now)
    }

    /// Writes without waiting for the disk; ordered before every later synced write.
    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), StoreError> {
        self.db.write(batch).map_err(|reason| StoreError::new("write a batch", reason))
    }

    /// Writes and waits until it, and everything before it, is on disk.
    pub(crate) fn write_synced(&self, batch: WriteBatch) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(batch, &options).map_err(|reason| StoreError::new("write a synced batch", reason))
    }

    /// Waits until everything written is on disk.
    pub(crate) fn sync(&self) -> Result<(), StoreError> {
        self.db.flush_wal(true).map_err(|reason| StoreError::new("sync the write-ahead log", reason))
    }

    /// The state family in force: 0 or 1.
    pub(crate) fn active(&self) -> Result<usize, StoreError> {
        Ok(active_of(self.meta(key::ACTIVE)?.as_deref()))
    }

    /// One consistent moment of everything.
    pub(crate) fn view(&self) -> Result<View, StoreError> {
        let cell = Moment::new(self.db.clone(), |db| db.snapshot());
        let marked = cell.with_dependent(|db, snapshot| {
            let family = family(db, META)?;
            snapshot
                .get_cf(family, key::ACTIVE)
                .map_err(|reason| StoreError::new("read the meta family", reason))
        })?;
        Ok(View { active: active_of(marked.as_deref()), moment: Arc::new(cell) })
    }

    /// How many handles and views are alive, this one included.
    pub(crate) fn holders(&self) -> usize {
        Arc::strong_count(&self.db)
    }
}

fn active_of(marked: Option<&[u8]>) -> usize {
    usize::from(marked.and_then(|octets| octets.first().copied()) == Some(1))
}

fn family<'a>(db: &'a DB, name: &'static str) -> Result<&'a ColumnFamily, StoreError> {
    db.cf_handle(name).ok_or_else(|| StoreError::new("find a column family", name))
}

self_cell::self_cell!(
    struct Moment {
        owner: Arc<DB>,
        #[covariant]
        dependent: Snapshot,
    }
);

/// The tables and marks at one moment. Keep it short: it holds back the space of whatever changes after.
#[derive(Clone)]
pub struct View {
    moment: Arc<Moment>,
    active: usize,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("View(..)")
    }
}

impl View {
    /// A mark of this moment.
    pub(crate) fn meta(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.moment.with_dependent(|db, snapshot| {
            let family = family(db, META)?;
            snapshot.get_cf(family, key).map_err(|reason| StoreError::new("read the meta family", reason))
        })
    }

    /// Raw state rows from `from` (included) in key order: the stored form, for snapshots. Stops after
    /// `limit` rows or once `octets` are gathered.
    pub(crate) fn raw(&self, from: &[u8], limit: usize, octets: usize) -> Result<Vec<Row>, StoreError> {
        self.moment.with_dependent(|db, snapshot| {
            let family = family(db, STATE[self.active])?;
            let mut options = ReadOptions::default();
            // All is read once: it must not drive out what is read again and again.
            options.fill_cache(false);
            page(&SnapshotSource(snapshot), family, from, options, (limit, octets))
        })
    }
}

impl Read for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.moment.with_dependent(|db, snapshot| get(&SnapshotSource(snapshot), db, self.active, table, key))
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        self.moment.with_dependent(|db, snapshot| {
            range(&SnapshotSource(snapshot), db, self.active, table, from, limit)
        })
    }
}

/// The tables as they are now, for the one thread that applies.
pub(crate) struct Tables<'a> {
    pub(crate) store: &'a Store,
    pub(crate) active: usize,
}

impl Read for Tables<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        get(self.store.db(), self.store.db(), self.active, table, key)
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        range(self.store.db(), self.store.db(), self.active, table, from, limit)
    }

    fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>, Fault> {
        let Some((table, _)) = keys.first() else { return Ok(Vec::new()) };
        let db = self.store.db();
        let family = family(db, STATE[self.active]).map_err(fault(*table))?;
        // Tables stand in the order of their numbers, so these are in order, too.
        let stored = keys.iter().map(|(table, key)| state_key(*table, key));
        let found = db.batched_multi_get_cf(family, stored, true);
        let row = |((table, _), found): (&Key, Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>)| {
            let found = found.map_err(|reason| Fault::Store { table: *table, reason: reason.to_string() })?;
            Ok(found.map(|slice| Bytes::copy_from_slice(&slice)))
        };
        keys.iter().zip(found).map(row).collect()
    }
}

/// The stored key of a table's row.
pub(crate) fn state_key(table: Table, key: &[u8]) -> Vec<u8> {
    let mut stored = Vec::with_capacity(key.len() + 1);
    stored.push(table as u8);
    stored.extend_from_slice(key);
    stored
}

/// What the database and its snapshots can both do.
trait Source {
    fn fetch(&self, family: &ColumnFamily, key: &[u8])
    -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error>;
    fn walk(&self, family: &ColumnFamily, options: ReadOptions) -> DBRawIterator<'_>;
}

impl Source for DB {
    fn fetch(
        &self,
        family: &ColumnFamily,
        key: &[u8],
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        self.get_pinned_cf(family, key)
    }

    fn walk(&self, family: &ColumnFamily, options: ReadOptions) -> DBRawIterator<'_> {
        self.raw_iterator_cf_opt(family, options)
    }
}

struct SnapshotSource<'a, 'b>(&'a Snapshot<'b>);

impl Source for SnapshotSource<'_, '_> {
    fn fetch(
        &self,
        family: &ColumnFamily,
        key: &[u8],
    ) -> Result<Option<DBPinnableSlice<'_>>, rocksdb::Error> {
        self.0.get_pinned_cf(family, key)
    }

    fn walk(&self, family: &ColumnFamily, options: ReadOptions) -> DBRawIterator<'_> {
        self.0.raw_iterator_cf_opt(family, options)
    }
}

fn fault(table: Table) -> impl FnOnce(StoreError) -> Fault {
    move |error| Fault::Store { table, reason: error.to_string() }
}

fn get(
    source: &impl Source,
    db: &DB,
    active: usize,
    table: Table,
    key: &[u8],
) -> Result<Option<Bytes>, Fault> {
    let family = family(db, STATE[active]).map_err(fault(table))?;
    let stored = source
        .fetch(family, &state_key(table, key))
        .map_err(|reason| Fault::Store { table, reason: reason.to_string() })?;
    Ok(stored.map(|slice| Bytes::copy_from_slice(&slice)))
}

fn range(
    source: &impl Source,
    db: &DB,
    active: usize,
    table: Table,
    from: &[u8],
    limit: usize,
) -> Result<Vec<Row>, Fault> {
    let family = family(db, STATE[active]).map_err(fault(table))?;
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(vec![table as u8 + 1]);
    let (from, most) = (state_key(table, from), (limit, usize::MAX));
    let mut rows = page(source, family, &from, options, most).map_err(fault(table))?;
    for (key, _) in &mut rows {
        let _ = key.split_to(1);
    }
    Ok(rows)
}

fn page(
    source: &impl Source,
    family: &ColumnFamily,
    from: &[u8],
    options: ReadOptions,
    (limit, octets): (usize, usize),
) -> Result<Vec<Row>, StoreError> {
    let mut walk = source.walk(family, options);
    walk.seek(from);
    let (mut rows, mut gathered) = (Vec::new(), 0);
    while rows.len() < limit && gathered < octets {
        let Some((key, value)) = walk.item() else { break };
        gathered += key.len() + value.len();
        rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
        walk.next();
    }
    walk.status().map_err(|reason| StoreError::new("walk the state", reason))?;
    Ok(rows)
}
