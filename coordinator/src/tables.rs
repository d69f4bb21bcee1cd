//! The replicated tables, as a trait that the shell backs with RocksDB and tests back with a map.
//!
//! Architecture Invariant: only [`crate::state::apply`] writes tables, and it writes into an
//! [`Overlay`] that the shell commits in one batch together with `last_applied`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use prost::Message;

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

/// Uncommitted writes over a base: reads see them, the shell commits them as one batch.
pub struct Overlay<'a> {
    base: &'a dyn Read,
    writes: BTreeMap<Table, BTreeMap<Bytes, Option<Bytes>>>,
    /// What the base answered for rows that every reading of a unit asks for, and for all decisions: the base does not
    /// change under an overlay.
    asked: RefCell<BTreeMap<(Table, Bytes), Option<Bytes>>>,
    decisions: RefCell<Option<Vec<Row>>>,
    /// Devices written since [`Overlay::take_devices`], with what was written before; `None`: the base has it.
    devices: BTreeMap<Bytes, Option<Option<Bytes>>>,
}

/// A row's key with what was under it before.
pub(crate) type Before = (Bytes, Option<Bytes>);

impl<'a> Overlay<'a> {
    /// Nothing written yet.
    pub fn new(base: &'a dyn Read) -> Self {
        Overlay {
            base,
            writes: BTreeMap::new(),
            asked: RefCell::default(),
            decisions: RefCell::default(),
            devices: BTreeMap::new(),
        }
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

    /// The devices written since the last call, with their rows before that.
    pub(crate) fn take_devices(&mut self) -> Result<Vec<Before>, Fault> {
        let written = std::mem::take(&mut self.devices).into_iter();
        written
            .map(|(key, before)| match before {
                Some(before) => Ok((key, before)),
                None => self.base.get(Table::Devices, &key).map(|before| (key, before)),
            })
            .collect()
    }

    /// What was written, in table and key order; `None` deletes.
    pub fn into_writes(self) -> impl Iterator<Item = (Table, Bytes, Option<Bytes>)> {
        let of = |(table, rows): (Table, BTreeMap<Bytes, Option<Bytes>>)| {
            rows.into_iter().map(move |(key, value)| (table, key, value))
        };
        self.writes.into_iter().flat_map(of)
    }

    fn ask_once(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        let key = (table, Bytes::copy_from_slice(key));
        if let Some(known) = self.asked.borrow().get(&key) {
            return Ok(known.clone());
        }
        let answer = self.base.get(table, &key.1)?;
        self.asked.borrow_mut().insert(key, answer.clone());
        Ok(answer)
    }

    /// Nearly always there are none, and every new device asks.
    fn decisions(&self, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        if !from.is_empty() {
            return self.base.range(Table::Decisions, from, limit);
        }
        if let Some(known) = self.decisions.borrow().as_ref().filter(|known| known.len() < limit) {
            return Ok(known.clone());
        }
        let rows = self.base.range(Table::Decisions, from, limit)?;
        if rows.len() < limit {
            *self.decisions.borrow_mut() = Some(rows.clone());
        }
        Ok(rows)
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
        match self.writes.get(&table).and_then(|rows| rows.get(key)) {
            Some(written) => Ok(written.clone()),
            None if matches!(table, Table::Units | Table::Service) => self.ask_once(table, key),
            None => self.base.get(table, key),
        }
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        let Some(written) = self.writes.get(&table) else {
            return if table == Table::Decisions {
                self.decisions(from, limit)
            } else {
                self.base.range(table, from, limit)
            };
        };
        let mut written = written.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).peekable();
        let mut rows = Vec::new();
        let mut from = from.to_vec();
        loop {
            let page = self.base.range(table, &from, limit)?;
            let exhausted = page.len() < limit;
            for (key, value) in page {
                from = after(&key);
                while let Some((earlier, value)) = written.next_if(|(k, _)| **k < key) {
                    rows.extend(value.clone().map(|value| (earlier.clone(), value)));
                }
                match written.next_if(|(k, _)| **k == key) {
                    Some((_, over)) => rows.extend(over.clone().map(|value| (key, value))),
                    None => rows.push((key, value)),
                }
                if rows.len() >= limit {
                    rows.truncate(limit);
                    return Ok(rows);
                }
            }
            if exhausted {
                break;
            }
        }
        rows.extend(written.filter_map(|(key, value)| value.clone().map(|value| (key.clone(), value))));
        rows.truncate(limit);
        Ok(rows)
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
