//! This room's part of [`crate::sim`].

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use bytes::Bytes;
use openraft::EntryPayload;
use quire_coordinator::tables::{MemoryTables, Table};

pub use super::admission::{Admission, Answers};
pub use super::changes::Feed;
pub use super::register::judge;

use super::directory::DB;
use super::store::{LOG, Store, key};
use super::wire;

/// What a node that does not run left in its database.
#[derive(Clone, Debug, Default)]
pub struct Left {
    /// The entry of the log that its tables have come to.
    pub applied: u64,
    /// Its tables.
    pub tables: MemoryTables,
    /// Its log as far as it is kept: encoded commands by index, nothing where Raft itself spoke.
    pub log: BTreeMap<u64, Option<Bytes>>,
}

/// Reads the database in data directory `dir`; changes and locks nothing. All of it goes into memory.
///
/// # Errors
/// When it cannot be opened, or holds what this version does not understand.
pub fn left(dir: &Path) -> io::Result<Left> {
    let store = Store::open_to_read(&dir.join(DB))?;
    let applied = match store.meta(key::APPLIED)? {
        Some(stored) => wire::to_log_id(&wire::decode("the applied mark", &stored)?).index,
        None => 0,
    };
    let rows = store.view()?.raw(&[], usize::MAX, usize::MAX)?;
    let mut tables = MemoryTables::default();
    for (mut stored, value) in rows {
        let number = stored.split_to(1);
        let table = Table::ALL.into_iter().find(|table| number[..] == [*table as u8]);
        let table = table.ok_or_else(|| wire::damaged("a table", format!("{number:?} is none")))?;
        tables.commit(std::iter::once((table, stored, Some(value))));
    }
    let mut log = BTreeMap::new();
    let mut walk = store.db().raw_iterator_cf(store.family(LOG)?);
    walk.seek_to_first();
    while let Some(stored) = walk.value() {
        let entry = wire::stored_entry(stored)?;
        let command = match entry.payload {
            EntryPayload::Normal(proposal) => Some(proposal.0),
            EntryPayload::Blank | EntryPayload::Membership(_) => None,
        };
        log.insert(entry.log_id.index, command);
        walk.next();
    }
    walk.status().map_err(io::Error::other)?;
    Ok(Left { applied, tables, log })
}

/// Raft's timing and sizes as a node has them, but for how many entries lie between two snapshots and behind the last.
///
/// # Panics
/// When openraft refuses the node's own configuration.
pub fn raft_config(cluster_name: &str, snapshot_entries: u64, keep_entries: u64) -> openraft::Config {
    let tuning = super::raft::Tuning { snapshot_entries, keep_entries, ..super::raft::Tuning::default() };
    match tuning.config(cluster_name).validate() {
        Ok(config) => config,
        Err(error) => panic!("the node's configuration of Raft is refused: {error}"),
    }
}
