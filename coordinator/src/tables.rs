//! The replicated tables, as a trait that the shell backs with RocksDB and tests back with a map.
//!
//! Architecture Invariant: only [`crate::state::apply`] writes tables, and it writes into an
//! [`Overlay`] that the shell commits in one batch together with `last_applied`.

use std::cell::{Ref, RefCell};
use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use prost::Message;

use crate::layer::{Layer, Written, merged};

/// One table each; the number is the stored name and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Table {
    /// Singletons: key `meta` holds a `store::Meta`.
    Meta = 1,
    /// Node id, 8 octets big-endian: `store::Member`.
    Members = 2,
    /// Join token id: `store::TokenRow`.
    Tokens = 3,
    /// API token id: `store::ApiTokenRow`.
    ApiTokens = 4,
    /// Unit id: `store::UnitRow`.
    Units = 5,
    /// Device id: `store::DeviceRow`.
    Devices = 6,
    /// Where somebody lives (`address:ZONE/ADDRESS`): a device id.
    Evidence = 7,
    /// Time of reading, 8 octets big-endian, then its id: `store::ReadingRow`.
    Readings = 8,
    /// Sequence number, 8 octets big-endian: `store::OutboxEntry`.
    Outbox = 9,
    /// Node id, 8 octets, then the segment: `store::ReachRow`.
    Reach = 10,
    /// Log index, 8 octets big-endian: `store::AuditRow`.
    Audit = 12,
    /// Node id, 8 octets: that node's highest recorded observation, 8 octets big-endian.
    Recorded = 13,
    /// Name of a profile: `store::ScriptRow`.
    Scripts = 14,
    /// `n` and a node id, 8 octets big-endian, or `r`, zone, a zero octet and an address: `store::RouterRow`.
    Routers = 20,
    /// Zone, a zero octet and a prefix: `store::SegmentRow`.
    Segments = 21,
    /// Face (see `identity`): `store::FaceRow`.
    Faces = 30,
    /// Evidence, or an address that a device left: `store::KeyRow`.
    Keys = 31,
    /// Log index, 8 octets big-endian: `store::DecisionRow`.
    Decisions = 32,
    /// Kind and key of a doubtful case: `store::ReviewRow`.
    Review = 33,
    /// Time, 8 octets big-endian, then device and what: `store::EventRow`.
    Events = 34,
    /// Unit id: `store::ServiceRow`.
    Service = 35,
    /// The device id for which they were typed: `store::SetDevice`.
    Typed = 36,
    /// Where a device lives (see [`crate::rows::place_key`]): its id.
    Places = 60,
    /// Device id, 0, the time of a reading counted backwards, its id: nothing.
    DeviceReadings = 61,
    /// Device id, 0, day in 4 octets: `store::OutboxDay`.
    OutboxDays = 62,
    /// Id of a job of the Web Admin: `store::JobRow`.
    Jobs = 63,
    /// Singleton: key `rotation` holds a `store::RotationRow`.
    Rotation = 91,
    /// `0` while open, else `1`, then the subject, a zero octet and the rule: `store::AlertRow`.
    Alerts = 100,
}

impl Table {
    /// Every table, for shells that open them.
    pub const ALL: [Table; 28] = [
        Table::Meta,
        Table::Members,
        Table::Tokens,
        Table::ApiTokens,
        Table::Units,
        Table::Devices,
        Table::Evidence,
        Table::Readings,
        Table::Outbox,
        Table::Reach,
        Table::Audit,
        Table::Recorded,
        Table::Scripts,
        Table::Routers,
        Table::Segments,
        Table::Faces,
        Table::Keys,
        Table::Decisions,
        Table::Review,
        Table::Events,
        Table::Service,
        Table::Typed,
        Table::Places,
        Table::DeviceReadings,
        Table::OutboxDays,
        Table::Jobs,
        Table::Rotation,
        Table::Alerts,
    ];
}

/// The store below failed or holds what nobody wrote: the node must stop, not guess.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The disk or the store answered with an error.
    #[error("read table {table:?}: {reason}")]
    Store {
        /// Where.
        table: Table,
        /// In the store's words.
        reason: String,
    },
    /// A row that does not decode.
    #[error("table {table:?} holds a damaged row: {reason}")]
    Damaged {
        /// Where.
        table: Table,
        /// What the decoder said.
        reason: prost::DecodeError,
    },
}

/// A key with its value.
pub type Row = (Bytes, Bytes);

/// A row's place.
pub type Key = (Table, Bytes);

/// Reads tables. Implementations show one consistent moment.
pub trait Read {
    /// The value under a key.
    ///
    /// # Errors
    /// When the store below fails.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault>;

    /// Rows from `from` (included) in key order, at most `limit`; the caller goes on behind the last key.
    ///
    /// # Errors
    /// When the store below fails.
    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault>;

    /// As [`Read::get`] for many keys, which come in order and each once; what a store can find together costs less.
    ///
    /// # Errors
    /// When the store below fails.
    fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>, Fault> {
        keys.iter().map(|(table, key)| self.get(*table, key)).collect()
    }
}

/// Typed reading on top of [`Read`].
pub trait ReadExt: Read {
    /// Decodes the row under a key.
    ///
    /// # Errors
    /// When the store fails or the row is damaged.
    fn row<M: Message + Default>(&self, table: Table, key: &[u8]) -> Result<Option<M>, Fault> {
        self.get(table, key)?
            .map(|stored| M::decode(stored).map_err(|reason| Fault::Damaged { table, reason }))
            .transpose()
    }

    /// Visits all rows whose keys start with `prefix`, in key order; `visit` returns false to stop.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    fn each<M: Message + Default>(
        &self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], M) -> bool,
    ) -> Result<(), Fault> {
        /// Rows fetched at a time: bounds memory at about a megabyte of device rows.
        const PAGE: usize = 512;
        let mut from = prefix.to_vec();
        loop {
            let page = self.range(table, &from, PAGE)?;
            let full = page.len() == PAGE;
            for (key, stored) in page {
                if !key.starts_with(prefix) {
                    return Ok(());
                }
                let row = M::decode(stored).map_err(|reason| Fault::Damaged { table, reason })?;
                if !visit(&key, row) {
                    return Ok(());
                }
                from = after(&key);
            }
            if !full {
                return Ok(());
            }
        }
    }

    /// All rows whose keys start with `prefix`; for tables that are small by nature.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    fn all<M: Message + Default>(&self, table: Table, prefix: &[u8]) -> Result<Vec<M>, Fault> {
        let mut rows = Vec::new();
        self.each(table, prefix, |_, row| {
            rows.push(row);
            true
        })?;
        Ok(rows)
    }
}

impl<T: Read + ?Sized> ReadExt for T {}

/// The smallest key behind `key`.
pub fn after(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

/// Octets of rows that the base answered and an overlay remembers, keys included: an entry of 500 observations asks for
/// some 3 MB. Beyond, the base is asked again.
const REMEMBERED: usize = 16 << 20;

/// Tables that nearly always have next to no rows, and that every new device asks several times: known whole while they
/// have fewer than [`SMALL`].
const SMALL_ONES: [Table; 3] = [Table::Decisions, Table::Review, Table::Typed];
const SMALL: usize = 64;

/// Uncommitted writes over a base: reads see them, the shell commits them as one batch.
pub struct Overlay<'a> {
    base: &'a dyn Read,
    writes: BTreeMap<Table, Written>,
    known: RefCell<Known>,
    /// Devices written since [`Overlay::take_devices`], with what was written before; `None`: the base has it.
    devices: BTreeMap<Bytes, Option<Option<Bytes>>>,
}

/// What the base answered: it does not change under an overlay. Asked by key alone, so the order in the maps is nobody's.
#[derive(Default)]
struct Known {
    rows: BTreeMap<Table, HashMap<Bytes, Option<Bytes>>>,
    /// Tables of [`SMALL_ONES`] that were looked at, all rows; `None` where there are more.
    whole: BTreeMap<Table, Option<Vec<Row>>>,
    octets: usize,
}

impl Known {
    fn row(&self, table: Table, key: &[u8]) -> Option<&Option<Bytes>> {
        self.rows.get(&table)?.get(key)
    }

    fn remember(&mut self, table: Table, key: Bytes, row: Option<Bytes>) {
        let octets = key.len() + row.as_ref().map_or(0, Bytes::len);
        if self.octets + octets <= REMEMBERED {
            self.octets += octets;
            self.rows.entry(table).or_default().insert(key, row);
        }
    }
}

/// A row's key with what was under it before.
pub(crate) type Before = (Bytes, Option<Bytes>);

impl<'a> Overlay<'a> {
    /// Nothing written yet.
    pub fn new(base: &'a dyn Read) -> Self {
        Overlay { base, writes: BTreeMap::new(), known: RefCell::default(), devices: BTreeMap::new() }
    }

    /// Puts a row.
    pub fn put<M: Message>(&mut self, table: Table, key: &[u8], row: &M) {
        self.put_bytes(table, key, row.encode_to_vec().into());
    }

    /// Puts octets that are not a message.
    pub fn put_bytes(&mut self, table: Table, key: &[u8], value: Bytes) {
        self.write(table, key, Some(value));
    }

    /// Removes a row, if there.
    pub fn delete(&mut self, table: Table, key: &[u8]) {
        self.write(table, key, None);
    }

    fn write(&mut self, table: Table, key: &[u8], value: Option<Bytes>) {
        let key = Bytes::copy_from_slice(key);
        let before = self.writes.entry(table).or_default().insert(key.clone(), value);
        if table == Table::Devices {
            self.devices.entry(key).or_insert(before);
        }
    }

    /// Asks the base for rows that will be read, all together. Nothing but time depends on it.
    pub(crate) fn fetch(&self, mut keys: Vec<Key>) -> Result<(), Fault> {
        {
            let known = self.known.borrow();
            keys.retain(|(table, key)| {
                self.written(*table, key).is_none() && known.row(*table, key).is_none()
            });
        }
        keys.sort_unstable();
        keys.dedup();
        let rows = self.base.get_many(&keys)?;
        let mut known = self.known.borrow_mut();
        for ((table, key), row) in keys.into_iter().zip(rows) {
            known.remember(table, key, row);
        }
        Ok(())
    }

    /// The devices written since the last call, with their rows before that.
    pub(crate) fn take_devices(&mut self) -> Result<Vec<Before>, Fault> {
        let written = std::mem::take(&mut self.devices).into_iter();
        written
            .map(|(key, before)| match before {
                Some(before) => Ok((key, before)),
                None => self.base_row(Table::Devices, &key).map(|before| (key, before)),
            })
            .collect()
    }

    /// What was written, in table and key order; `None` deletes.
    pub fn into_writes(self) -> impl Iterator<Item = (Table, Bytes, Option<Bytes>)> {
        let of =
            |(table, rows): (Table, Written)| rows.into_iter().map(move |(key, value)| (table, key, value));
        self.writes.into_iter().flat_map(of)
    }

    /// The same, to be read while the store takes it.
    pub fn into_layer(self) -> Layer {
        Layer(self.writes)
    }

    fn written(&self, table: Table, key: &[u8]) -> Option<&Option<Bytes>> {
        self.writes.get(&table)?.get(key)
    }

    fn base_row(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        if let Some(known) = self.known.borrow().row(table, key) {
            return Ok(known.clone());
        }
        if let Some(rows) = self.small(table)? {
            let place = rows.binary_search_by(|(other, _)| (**other).cmp(key));
            return Ok(place.ok().map(|n| rows[n].1.clone()));
        }
        let row = self.base.get(table, key)?;
        self.known.borrow_mut().remember(table, Bytes::copy_from_slice(key), row.clone());
        Ok(row)
    }

    fn base_rows(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        if let Some(rows) = self.small(table)? {
            let first = rows.partition_point(|(key, _)| **key < *from);
            return Ok(rows.iter().skip(first).take(limit).cloned().collect());
        }
        self.base.range(table, from, limit)
    }

    /// All rows of a small table.
    fn small(&self, table: Table) -> Result<Option<Ref<'_, Vec<Row>>>, Fault> {
        if !SMALL_ONES.contains(&table) {
            return Ok(None);
        }
        if !self.known.borrow().whole.contains_key(&table) {
            let rows = self.base.range(table, &[], SMALL)?;
            let whole = (rows.len() < SMALL).then_some(rows);
            self.known.borrow_mut().whole.insert(table, whole);
        }
        Ok(Ref::filter_map(self.known.borrow(), |known| known.whole.get(&table)?.as_ref()).ok())
    }

    /// How many rows it touches.
    pub fn len(&self) -> usize {
        self.writes.values().map(BTreeMap::len).sum()
    }

    /// True when nothing was written.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }
}

impl Read for Overlay<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.written(table, key) {
            Some(written) => Ok(written.clone()),
            None => self.base_row(table, key),
        }
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        let Some(written) = self.writes.get(&table) else {
            return self.base_rows(table, from, limit);
        };
        merged(written, from, limit, |from| self.base_rows(table, from, limit))
    }
}

/// Tables in memory, for tests and simulation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryTables(BTreeMap<(Table, Bytes), Bytes>);

impl MemoryTables {
    /// Commits a batch.
    pub fn commit(&mut self, writes: impl Iterator<Item = (Table, Bytes, Option<Bytes>)>) {
        for (table, key, value) in writes {
            match value {
                Some(value) => self.0.insert((table, key), value),
                None => self.0.remove(&(table, key)),
            };
        }
    }
}

impl Read for MemoryTables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        Ok(self.0.get(&(table, Bytes::copy_from_slice(key))).cloned())
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        let start = (table, Bytes::copy_from_slice(from));
        let rows = self.0.range(start..).take_while(|((other, _), _)| *other == table).take(limit);
        Ok(rows.map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn writes() -> impl Strategy<Value = Vec<(u8, Option<u8>)>> {
        proptest::collection::vec((any::<u8>(), any::<Option<u8>>()), 0..40)
    }

    proptest! {
        #[test]
        fn an_overlay_reads_as_if_committed(base in writes(), over in writes(), from in any::<u8>(), limit in 1usize..20) {
            let batch = |writes: &[(u8, Option<u8>)]| {
                writes
                    .iter()
                    .map(|(key, value)| (Table::Units, Bytes::from(vec![*key]), value.map(|v| Bytes::from(vec![v]))))
                    .collect::<Vec<_>>()
            };
            let mut tables = MemoryTables::default();
            tables.commit(batch(&base).into_iter());
            let mut overlay = Overlay::new(&tables);
            for (table, key, value) in batch(&over) {
                match value {
                    Some(value) => overlay.put_bytes(table, &key, value),
                    None => overlay.delete(table, &key),
                }
            }
            let seen = overlay.range(Table::Units, &[from], limit).unwrap();
            let mut committed = tables.clone();
            committed.commit(overlay.into_writes());
            prop_assert_eq!(seen, committed.range(Table::Units, &[from], limit).unwrap());
        }
    }
}
