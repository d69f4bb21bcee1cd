//! The readings that every node keeps: all of the last days, then the last of each device and day.
//!
//! Meters are lifetime totals, so the last reading of a day says what the day came to. A reading that comes late is
//! put where it belongs; if a later one of its day is there already, and the day is behind, it adds nothing and goes.
//!
//! Architecture Invariant: the last reading of a device's day is never dropped before its time, and only here are
//! readings written or dropped. Days are UTC.

use bytes::Bytes;
use prost::Message as _;
use quire_proto::store::{Meta, ReadingRow};

use crate::rows::{self, reading_key};
use crate::tables::{Fault, Overlay, Read, ReadExt as _, Row, Table};

/// What the history may grow to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    /// Milliseconds for which every reading is kept.
    pub(crate) detail_ms: u64,
    /// The same as rows: beyond, the oldest are thinned out sooner.
    pub(crate) detail_rows: u64,
    /// Milliseconds for which the last one of a day is kept.
    pub(crate) daily_ms: u64,
    /// The same as rows: beyond, the oldest go. Upstream has them.
    pub(crate) daily_rows: u64,
}

/// At 1 KB a reading: two days of 10,000 devices read every hour are 480 MB, and no fleet more than 1 GB; 400 days of
/// 2,500 devices are 1 GB, and a fleet of 10,000 keeps 100 days in as much.
pub(crate) const BOUNDS: Bounds = Bounds {
    detail_ms: 2 * rows::DAY_MS,
    detail_rows: 1_000_000,
    daily_ms: 400 * rows::DAY_MS,
    daily_rows: 1_000_000,
};

/// The key of a reading among those of its device, latest first.
pub fn device_reading_key(device: &str, at_ms: u64, id: &str) -> Vec<u8> {
    [device.as_bytes(), &[0], &(u64::MAX - at_ms).to_be_bytes(), id.as_bytes()].concat()
}

/// The readings of a device, latest first; at most `limit`.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn of_device(
    tables: &(impl Read + ?Sized),
    device: &str,
    limit: usize,
) -> Result<Vec<ReadingRow>, Fault> {
    let prefix = [device.as_bytes(), &[0]].concat();
    let keys = tables.range(Table::DeviceReadings, &prefix, limit)?;
    let mut readings = Vec::new();
    for (key, _) in keys.iter().filter(|(key, _)| key.starts_with(&prefix)) {
        let Some((at_ms, id)) = parts(&key[prefix.len()..]) else { continue };
        readings.extend(tables.row::<ReadingRow>(Table::Readings, &reading_key(at_ms, id))?);
    }
    Ok(readings)
}

/// Time and id out of the part of a key behind the device.
fn parts(key: &[u8]) -> Option<(u64, &str)> {
    let (time, id) = key.split_first_chunk::<8>()?;
    Some((u64::MAX - u64::from_be_bytes(*time), std::str::from_utf8(id).ok()?))
}

/// Keeps a reading.
pub(crate) fn put(tables: &mut Overlay<'_>, meta: &mut Meta, row: &ReadingRow) -> Result<(), Fault> {
    let key = reading_key(row.at_ms, &row.id);
    tables.put(Table::Readings, &key, row);
    let by_device = device_reading_key(&row.device, row.at_ms, &row.id);
    tables.put_bytes(Table::DeviceReadings, &by_device, Bytes::new());
    if key[..] > meta.compacted_through[..] {
        meta.detailed_readings += 1;
        return Ok(());
    }
    meta.daily_readings += 1;
    thin_day(tables, meta, &row.device, rows::day(row.at_ms))
}

/// Readings of one device that are given to another together. More are left behind, oldest first: at one an hour
/// there are some 450 in the table.
const REHOMED: usize = 5_000;

/// Gives the readings that a face made as one device to another.
pub(crate) fn rehome(tables: &mut Overlay<'_>, from: &str, to: &str, face: &str) -> Result<(), Fault> {
    for row in of_device(tables, from, REHOMED)? {
        if row.face != face {
            continue;
        }
        tables.delete(Table::DeviceReadings, &device_reading_key(from, row.at_ms, &row.id));
        tables.put_bytes(Table::DeviceReadings, &device_reading_key(to, row.at_ms, &row.id), Bytes::new());
        let key = reading_key(row.at_ms, &row.id);
        tables.put(Table::Readings, &key, &ReadingRow { device: to.to_owned(), ..row });
    }
    Ok(())
}

/// Of a day that a late reading came to: all but its last one go, as far as they are behind the mark.
fn thin_day(tables: &mut Overlay<'_>, meta: &mut Meta, device: &str, day: u64) -> Result<(), Fault> {
    /// Behind the mark there are two at the most: the one that was kept and the one that came.
    const FEW: usize = 8;
    let Some(last) = last_of_day(tables, device, day)? else { return Ok(()) };
    let mark = meta.compacted_through.first_chunk::<8>().map_or(0, |at| u64::from_be_bytes(*at));
    let latest = mark.min(rows::day_end(day));
    let from = [device.as_bytes(), &[0], &(u64::MAX - latest).to_be_bytes()].concat();
    let prefix = device.len() + 1;
    for (key, _) in tables.range(Table::DeviceReadings, &from, FEW)? {
        let same = key.len() > prefix && key[..prefix] == from[..prefix];
        let Some((at_ms, id)) = parts(&key[prefix.min(key.len())..]).filter(|_| same) else { break };
        if rows::day(at_ms) != day {
            break;
        }
        let behind = reading_key(at_ms, id);
        if key != last && behind[..] <= meta.compacted_through[..] {
            tables.delete(Table::Readings, &behind);
            tables.delete(Table::DeviceReadings, &key);
            meta.daily_readings = meta.daily_readings.saturating_sub(1);
        }
    }
    Ok(())
}

/// The key, in the device's own order, of the last reading of a day.
fn last_of_day(tables: &Overlay<'_>, device: &str, day: u64) -> Result<Option<Bytes>, Fault> {
    let from = [device.as_bytes(), &[0], &(u64::MAX - rows::day_end(day)).to_be_bytes()].concat();
    let first = tables.range(Table::DeviceReadings, &from, 1)?.into_iter().next();
    Ok(first.map(|(key, _)| key).filter(|key| key.starts_with(&from[..=device.len()])))
}

/// Thins out what is old and drops what is too old: a few rows more than came in, so that the table shrinks
/// steadily and no entry takes long.
pub(crate) fn compact(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    now_ms: u64,
    came_in: usize,
    bounds: &Bounds,
) -> Result<(), Fault> {
    let horizon = now_ms.saturating_sub(bounds.detail_ms);
    let from = match meta.compacted_through.is_empty() {
        true => Vec::new(),
        false => crate::tables::after(&meta.compacted_through),
    };
    let most = 2 * came_in + 8;
    for (key, stored) in oldest(tables, &from, most, |at_ms, _| {
        at_ms < horizon || meta.detailed_readings > bounds.detail_rows
    })? {
        let row = decode(stored)?;
        if row.at_ms >= horizon && meta.detailed_readings <= bounds.detail_rows {
            break;
        }
        let own = device_reading_key(&row.device, row.at_ms, &row.id);
        meta.detailed_readings = meta.detailed_readings.saturating_sub(1);
        if last_of_day(tables, &row.device, rows::day(row.at_ms))?.is_some_and(|last| last[..] != own[..]) {
            tables.delete(Table::Readings, &key);
            tables.delete(Table::DeviceReadings, &own);
            meta.compacted_through = key;
        } else {
            meta.daily_readings += 1;
            meta.compacted_through = key;
            // An earlier one of the day was the last when the mark passed it.
            thin_day(tables, meta, &row.device, rows::day(row.at_ms))?;
        }
    }
    drop_oldest(tables, meta, now_ms.saturating_sub(bounds.daily_ms), most, bounds.daily_rows)
}

/// The readings from a key on, at most so many; none where the first is not wanted, which its key tells: that is so for
/// most entries of the log.
fn oldest(
    tables: &Overlay<'_>,
    from: &[u8],
    most: usize,
    wanted: impl Fn(u64, &[u8]) -> bool,
) -> Result<Vec<Row>, Fault> {
    let first = tables.range(Table::Readings, from, 1)?.into_iter().next();
    let at_ms = |key: &Bytes| key.first_chunk::<8>().map_or(0, |at| u64::from_be_bytes(*at));
    match first.is_some_and(|(key, _)| wanted(at_ms(&key), &key)) {
        true => tables.range(Table::Readings, from, most),
        false => Ok(Vec::new()),
    }
}

fn drop_oldest(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    horizon: u64,
    most: usize,
    rows: u64,
) -> Result<(), Fault> {
    for (key, stored) in oldest(tables, &[], most, |at_ms, key| {
        (at_ms < horizon || meta.daily_readings > rows) && key <= &meta.compacted_through[..]
    })? {
        let row = decode(stored)?;
        let old = row.at_ms < horizon || meta.daily_readings > rows;
        if !old || key > meta.compacted_through {
            break;
        }
        tables.delete(Table::Readings, &key);
        tables.delete(Table::DeviceReadings, &device_reading_key(&row.device, row.at_ms, &row.id));
        meta.daily_readings = meta.daily_readings.saturating_sub(1);
    }
    Ok(())
}

fn decode(stored: Bytes) -> Result<ReadingRow, Fault> {
    ReadingRow::decode(stored).map_err(|reason| Fault::Damaged { table: Table::Readings, reason })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tables::MemoryTables;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;

    fn row(n: u64, device: u8, at_ms: u64) -> ReadingRow {
        ReadingRow { id: format!("r-{n}"), device: format!("device{device}"), at_ms, ..ReadingRow::default() }
    }

    fn apply(tables: &mut MemoryTables, meta: &mut Meta, row: &ReadingRow, now: u64, bounds: &Bounds) {
        let mut overlay = Overlay::new(tables);
        put(&mut overlay, meta, row).unwrap();
        compact(&mut overlay, meta, now, 1, bounds).unwrap();
        let writes: Vec<_> = overlay.into_writes().collect();
        tables.commit(writes.into_iter());
    }

    fn kept(tables: &MemoryTables) -> Vec<ReadingRow> {
        tables.all(Table::Readings, &[]).unwrap()
    }

    #[test]
    fn a_month_of_hours_becomes_a_month_of_days_and_two_days_of_hours() {
        let (mut tables, mut meta) = (MemoryTables::default(), Meta::default());
        for hour in 0..30 * 24 {
            apply(&mut tables, &mut meta, &row(hour, 1, hour * HOUR), hour * HOUR, &BOUNDS);
        }
        let readings = kept(&tables);
        let (now, detail) = ((30 * 24 - 1) * HOUR, 2 * rows::DAY_MS);
        let recent = readings.iter().filter(|row| row.at_ms >= now - detail).count();
        assert_eq!(recent, 49);
        let old: Vec<u64> = readings.iter().filter(|r| r.at_ms < now - detail).map(|r| r.at_ms).collect();
        assert!(old.iter().all(|at| at % rows::DAY_MS == 23 * HOUR), "{old:?}");
        assert_eq!(old.len(), 27, "every day that is behind");
        assert_eq!(meta.detailed_readings + meta.daily_readings, readings.len() as u64);
        let last = of_device(&tables, "device1", 3).unwrap();
        assert_eq!(last.iter().map(|row| row.at_ms).collect::<Vec<_>>(), [now, now - HOUR, now - 2 * HOUR]);
    }

    #[test]
    fn what_is_too_old_or_too_much_goes_oldest_first() {
        let (mut tables, mut meta) = (MemoryTables::default(), Meta::default());
        let bounds = Bounds { daily_rows: 5, daily_ms: 100 * rows::DAY_MS, ..BOUNDS };
        for day in 0..40 {
            apply(&mut tables, &mut meta, &row(day, 1, day * rows::DAY_MS), day * rows::DAY_MS, &bounds);
        }
        let days: Vec<u64> = kept(&tables).iter().map(|row| rows::day(row.at_ms)).collect();
        assert_eq!(days, (32..40).collect::<Vec<_>>(), "five days, and all of the last two");
        for n in 0..3 {
            // Nothing comes in for long, then something does.
            apply(&mut tables, &mut meta, &row(90 + n, 2, 200 * rows::DAY_MS), 200 * rows::DAY_MS, &bounds);
        }
        assert!(kept(&tables).iter().all(|row| row.device == "device2"), "{:?}", kept(&tables));
        assert_eq!(tables.range(Table::DeviceReadings, &[], 100).unwrap().len(), kept(&tables).len());
    }

    proptest! {
        /// In whichever order readings come in, however late: the last one of every device's day is there, the index
        /// agrees with the table, and a day that is behind has one reading a device.
        #[test]
        fn the_last_of_a_day_is_never_lost(
            steps in proptest::collection::vec((0u8..3, 0u64..240, 0u64..120), 1..150),
            detail_rows in 1u64..40,
        ) {
            let bounds = Bounds { detail_rows, ..BOUNDS };
            let (mut tables, mut meta) = (MemoryTables::default(), Meta::default());
            let (mut now, mut last) = (0, BTreeMap::new());
            for (n, (device, age, pass)) in steps.into_iter().enumerate() {
                now += pass * HOUR / 10;
                let row = row(n as u64, device, now.saturating_sub(age * HOUR));
                let this = (row.at_ms, row.id.clone());
                let best = last.entry((row.device.clone(), rows::day(row.at_ms))).or_insert_with(|| this.clone());
                // Of two in one millisecond the device's own order decides: the lower id stands first.
                let first = |(at, id): &(u64, String)| (u64::MAX - at, id.clone());
                if first(&this) < first(best) {
                    *best = this;
                }
                apply(&mut tables, &mut meta, &row, now, &bounds);
                let readings = kept(&tables);
                for best in last.values() {
                    prop_assert!(readings.iter().any(|row| (row.at_ms, &row.id) == (best.0, &best.1)), "{best:?}");
                }
                prop_assert_eq!(meta.detailed_readings + meta.daily_readings, readings.len() as u64);
                prop_assert_eq!(tables.range(Table::DeviceReadings, &[], 1_000).unwrap().len(), readings.len());
                let mut behind = BTreeMap::new();
                for row in readings.iter().filter(|r| reading_key(r.at_ms, &r.id)[..] <= meta.compacted_through[..]) {
                    *behind.entry((row.device.clone(), rows::day(row.at_ms))).or_insert(0) += 1;
                }
                prop_assert!(behind.values().all(|count| *count == 1), "{behind:?}");
            }
        }
    }
}
