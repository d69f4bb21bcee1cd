//! Writes that are put aside: what is over them reads as if the store below had them already.
//!
//! The store may take them while they are read; a row that is in both is the same row.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

use crate::tables::{Fault, Key, Read, Row, Table, after};

/// Rows of one table that were written, by key; `None`: removed.
pub(crate) type Written = BTreeMap<Bytes, Option<Bytes>>;

/// What one overlay wrote.
#[derive(Debug, Default)]
pub struct Layer(pub(crate) BTreeMap<Table, Written>);

impl Layer {
    /// What was written, in table and key order; `None` deletes.
    pub fn rows(&self) -> impl Iterator<Item = (Table, &Bytes, Option<&Bytes>)> {
        self.0
            .iter()
            .flat_map(|(table, rows)| rows.iter().map(move |(key, value)| (*table, key, value.as_ref())))
    }

    /// These writes over a base that may or may not have them.
    pub fn over<'a>(&'a self, base: &'a dyn Read) -> Layered<'a> {
        Layered { layer: self, base }
    }

    fn row(&self, table: Table, key: &[u8]) -> Option<&Option<Bytes>> {
        self.0.get(&table)?.get(key)
    }
}

/// A [`Layer`] over a base.
pub struct Layered<'a> {
    layer: &'a Layer,
    base: &'a dyn Read,
}

impl Read for Layered<'_> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        match self.layer.row(table, key) {
            Some(written) => Ok(written.clone()),
            None => self.base.get(table, key),
        }
    }

    fn range(&self, table: Table, from: &[u8], limit: usize) -> Result<Vec<Row>, Fault> {
        match self.layer.0.get(&table) {
            Some(written) => merged(written, from, limit, |from| self.base.range(table, from, limit)),
            None => self.base.range(table, from, limit),
        }
    }

    fn get_many(&self, keys: &[Key]) -> Result<Vec<Option<Bytes>>, Fault> {
        let written: Vec<_> = keys.iter().map(|(table, key)| self.layer.row(*table, key)).collect();
        let asked = keys.iter().zip(&written).filter(|(_, written)| written.is_none());
        let asked: Vec<Key> = asked.map(|(key, _)| key.clone()).collect();
        let mut found = self.base.get_many(&asked)?.into_iter();
        Ok(written.into_iter().map(|written| written.cloned().or_else(|| found.next()).flatten()).collect())
    }
}

/// Rows from `from` on, at most `limit`, as `written` over what `base` answers for at most `limit` rows from a key on.
pub(crate) fn merged(
    written: &Written,
    from: &[u8],
    limit: usize,
    base: impl Fn(&[u8]) -> Result<Vec<Row>, Fault>,
) -> Result<Vec<Row>, Fault> {
    let mut written = written.range::<[u8], _>((Bound::Included(from), Bound::Unbounded)).peekable();
    let mut rows = Vec::new();
    let mut from = from.to_vec();
    loop {
        let page = base(&from)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::{MemoryTables, Overlay};
    use proptest::prelude::*;

    type Write = (bool, u8, Option<u8>);

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        proptest::collection::vec((any::<bool>(), 0u8..40, any::<Option<u8>>()), 0..40)
    }

    /// One table that is walked in pages and one that overlays know whole.
    fn table(small: bool) -> Table {
        if small { Table::Review } else { Table::Units }
    }

    fn write(overlay: &mut Overlay<'_>, writes: &[Write]) {
        for (small, key, value) in writes {
            match value {
                Some(value) => overlay.put_bytes(table(*small), &[*key], Bytes::from(vec![*value])),
                None => overlay.delete(table(*small), &[*key]),
            }
        }
    }

    fn committed(base: &MemoryTables, writes: &[Write]) -> MemoryTables {
        let mut overlay = Overlay::new(base);
        write(&mut overlay, writes);
        let mut tables = base.clone();
        tables.commit(overlay.into_writes());
        tables
    }

    proptest! {
        /// Over a layer, whether the store below has its rows already or not, all reads are those of tables that have
        /// them; and so are those of an overlay that was told beforehand what will be asked.
        #[test]
        fn what_is_put_aside_reads_as_if_committed(
            (base, under, over) in (writes(), writes(), writes()),
            taken in any::<bool>(),
            (from, limit) in (0u8..40, 1usize..20),
        ) {
            let base = committed(&MemoryTables::default(), &base);
            let after = committed(&base, &under);
            let mut overlay = Overlay::new(&base);
            write(&mut overlay, &under);
            let layer = overlay.into_layer();
            let layered = layer.over(if taken { &after } else { &base });
            let keys: Vec<Key> = [Table::Units, Table::Review]
                .into_iter()
                .flat_map(|table| (0u8..40).map(move |key| (table, Bytes::from(vec![key]))))
                .collect();
            prop_assert_eq!(layered.get_many(&keys).unwrap(), after.get_many(&keys).unwrap());
            let expected = committed(&after, &over);
            for told in [false, true] {
                let mut overlay = Overlay::new(&layered);
                if told {
                    overlay.fetch(keys.clone()).unwrap();
                }
                write(&mut overlay, &over);
                for small in [false, true] {
                    let rows = |tables: &dyn Read| tables.range(table(small), &[from], limit).unwrap();
                    prop_assert_eq!(rows(&overlay), rows(&expected));
                }
                prop_assert_eq!(overlay.get_many(&keys).unwrap(), expected.get_many(&keys).unwrap());
                let mut tables = after.clone();
                tables.commit(overlay.into_writes());
                prop_assert_eq!(&tables, &expected);
            }
        }
    }
}
