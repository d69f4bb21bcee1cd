//! The outbox table: what the Web Admin does not have yet, numbered without gaps, and what is left of it when the Web
//! Admin stays away for long.
//!
//! The newest entries are all kept. Of older ones the last of each device and day is: meters are lifetime totals, so it
//! says what the day came to. A number without an entry is superseded; the sender says so in its place, and the
//! numbers go on without gaps.
//!
//! Architecture Invariant: once enrolled, the last entry of a device's day leaves the table only by an
//! acknowledgement. Days are UTC and by the reading's own time.

use bytes::Bytes;
use prost::Message as _;
use quire_proto::store::{AlertNews, DeviceNews, Meta, OutboxDay, OutboxEntry, ReadingRow};

use crate::glimpse::{Dated, Waiting};
use crate::rows::{self, number_key};
use crate::tables::{Fault, Overlay, Read as _, ReadExt as _, Table};

/// What waits for a Web Admin that nobody enrolled at yet, in entries of about 1 KB: the oldest go first,
/// and a Web Admin takes a cluster that it never saw from whichever number it starts with.
const WAITING_FOR_ENROLMENT: u64 = 50_000;

/// Newest entries that are kept whole: five hours of 10,000 devices read every hour, 50 MB. While the Web Admin is
/// away for longer, each device adds one entry a day: 10,000 devices and 30 days are 300 MB, not 7.2 GB.
pub(crate) const WHOLE: u64 = 50_000;

/// The key of a device's day in [`Table::OutboxDays`].
pub(crate) fn day_key(device: &[u8], at_ms: u64) -> Vec<u8> {
    // Days of 4 octets last until the year 11,000,000.
    let day = u32::try_from(rows::day(at_ms)).unwrap_or(u32::MAX);
    [device, &[0], &day.to_be_bytes()].concat()
}

/// Appends a reading.
pub(crate) fn put(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    row: ReadingRow,
    zone: &str,
    first_seen_ms: u64,
) -> Result<(), Fault> {
    let seq = meta.outbox_next.max(1);
    let (day, at_ms) = (day_key(row.device.as_bytes(), row.at_ms), row.at_ms);
    let (row, zone) = (Some(row), zone.to_owned());
    append(tables, meta, OutboxEntry { seq, row, zone, first_seen_ms, ..OutboxEntry::default() })?;
    let last: Option<OutboxDay> = tables.row(Table::OutboxDays, &day)?;
    if last.is_none_or(|last| last.at_ms <= at_ms) {
        tables.put(Table::OutboxDays, &day, &OutboxDay { seq, at_ms });
    }
    Ok(())
}

/// Appends what the Web Admin is to learn of a device's identity; no later entry stands for it.
pub(crate) fn tell(tables: &mut Overlay<'_>, meta: &mut Meta, news: DeviceNews) -> Result<(), Fault> {
    let seq = meta.outbox_next.max(1);
    append(tables, meta, OutboxEntry { seq, news: Some(news), ..OutboxEntry::default() })
}

/// Appends what the Web Admin is to learn of an alert, in place of the entry `before` of the same one where that still
/// waits; answers its number.
pub(crate) fn tell_alert(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    alert: AlertNews,
    before: u64,
) -> Result<u64, Fault> {
    if let Some(stored) = tables.get(Table::Outbox, &number_key(before))?
        && decode(stored)?.alert.is_some_and(|other| other.id == alert.id)
    {
        tables.delete(Table::Outbox, &number_key(before));
    }
    let seq = meta.outbox_next.max(1);
    append(tables, meta, OutboxEntry { seq, alert: Some(alert), ..OutboxEntry::default() })?;
    Ok(seq)
}

fn append(tables: &mut Overlay<'_>, meta: &mut Meta, entry: OutboxEntry) -> Result<(), Fault> {
    tables.put(Table::Outbox, &number_key(entry.seq), &entry);
    meta.outbox_next = entry.seq + 1;
    if meta.upstream.is_none() && entry.seq - meta.outbox_acked > WAITING_FOR_ENROLMENT {
        trim(tables, meta, meta.outbox_acked + 1)?;
    }
    Ok(())
}

/// Forgets everything through a number.
pub(crate) fn trim(tables: &mut Overlay<'_>, meta: &mut Meta, through: u64) -> Result<(), Fault> {
    /// Entries looked at together.
    const PAGE: usize = 512;
    // No more of them than numbers: while nobody enrols, each reading trims one.
    let numbers = usize::try_from(through.saturating_sub(meta.outbox_acked)).unwrap_or(PAGE);
    let most = numbers.clamp(1, PAGE);
    let mut from = number_key(meta.outbox_acked + 1).to_vec();
    loop {
        let page = tables.range(Table::Outbox, &from, most)?;
        let more = page.len() == most && page.last().is_some_and(|(key, _)| number(key) < through);
        let mut going = Vec::new();
        for (key, stored) in page.into_iter().take_while(|(key, _)| number(key) <= through) {
            going.push((key, glimpse(stored)?));
        }
        let days = going.iter().filter_map(|(_, entry)| entry.row.as_ref().map(day_of));
        tables.fetch(days.map(|day| (Table::OutboxDays, Bytes::from(day))).collect())?;
        for (key, entry) in going {
            remove(tables, &key, &entry)?;
            from = crate::tables::after(&key);
        }
        if !more {
            meta.outbox_acked = meta.outbox_acked.max(through);
            return Ok(());
        }
    }
}

fn day_of(row: &Dated) -> Vec<u8> {
    day_key(row.device.as_bytes(), row.at_ms)
}

/// Numbers what waits from `base` on, in its order and without gaps. All of it is in one entry's writes: at 1 KB each,
/// a million waiting entries are 1 GB for a moment that comes once in a cluster's life.
pub(crate) fn renumber(tables: &mut Overlay<'_>, meta: &mut Meta, base: u64) -> Result<(), Fault> {
    let mut next = base;
    for (key, stored) in tables.range(Table::Outbox, &[], usize::MAX)? {
        let entry = decode(stored.clone())?;
        let day = entry.row.as_ref().map(|row| (day_key(row.device.as_bytes(), row.at_ms), row.at_ms));
        let last = match &day {
            Some((day, _)) => tables.row::<OutboxDay>(Table::OutboxDays, day)?,
            None => None,
        };
        let was_last = last.is_some_and(|last| last.seq == entry.seq);
        remove(tables, &key, &glimpse(stored)?)?;
        if let Some((day, at_ms)) = day.filter(|_| was_last) {
            tables.put(Table::OutboxDays, &day, &OutboxDay { seq: next, at_ms });
        }
        tables.put(Table::Outbox, &number_key(next), &OutboxEntry { seq: next, ..entry });
        next += 1;
    }
    (meta.outbox_acked, meta.outbox_next) = (base - 1, next);
    meta.outbox_compacted = base - 1;
    Ok(())
}

fn number(key: &[u8]) -> u64 {
    key.try_into().map_or(0, u64::from_be_bytes)
}

fn decode(stored: Bytes) -> Result<OutboxEntry, Fault> {
    OutboxEntry::decode(stored).map_err(|reason| Fault::Damaged { table: Table::Outbox, reason })
}

fn glimpse(stored: Bytes) -> Result<Waiting, Fault> {
    Waiting::decode(stored).map_err(|reason| Fault::Damaged { table: Table::Outbox, reason })
}

/// Removes an entry, and what says that it is its day's last.
fn remove(tables: &mut Overlay<'_>, key: &[u8], entry: &Waiting) -> Result<(), Fault> {
    tables.delete(Table::Outbox, key);
    let Some(day) = entry.row.as_ref().map(day_of) else { return Ok(()) };
    let last: Option<OutboxDay> = tables.row(Table::OutboxDays, &day)?;
    if last.is_some_and(|last| last.seq == entry.seq) {
        tables.delete(Table::OutboxDays, &day);
    }
    Ok(())
}

/// Thins out what lies behind the newest `whole` entries: twice what came in and a few more, so that it keeps up and
/// no entry of the log takes long.
pub(crate) fn compact(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    came_in: usize,
    whole: u64,
) -> Result<(), Fault> {
    let mut through = meta.outbox_compacted.max(meta.outbox_acked);
    let newest = meta.outbox_next.saturating_sub(1);
    if newest.saturating_sub(through) <= whole {
        return Ok(());
    }
    for (key, stored) in tables.range(Table::Outbox, &number_key(through + 1), 2 * came_in + 8)? {
        let seq = number(&key);
        if newest - seq < whole {
            break;
        }
        through = seq;
        let Some(row) = glimpse(stored)?.row else { continue };
        let last: Option<OutboxDay> = tables.row(Table::OutboxDays, &day_of(&row))?;
        if last.is_some_and(|last| last.seq != seq) {
            tables.delete(Table::Outbox, &key);
        }
    }
    meta.outbox_compacted = through;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::tables::MemoryTables;
    use proptest::prelude::*;
    use quire_proto::store::Enroll;

    fn reading(n: u64, device: u8, at_ms: u64) -> ReadingRow {
        ReadingRow { id: format!("r-{n}"), device: format!("device{device}"), at_ms, ..ReadingRow::default() }
    }

    fn change(tables: &mut MemoryTables, what: impl FnOnce(&mut Overlay<'_>)) {
        let mut overlay = Overlay::new(tables);
        what(&mut overlay);
        let writes: Vec<_> = overlay.into_writes().collect();
        tables.commit(writes.into_iter());
    }

    fn entries(tables: &MemoryTables) -> Vec<OutboxEntry> {
        tables.all(Table::Outbox, &[]).unwrap()
    }

    #[test]
    fn a_month_away_costs_a_device_one_entry_a_day() {
        let mut tables = MemoryTables::default();
        let mut meta = Meta { upstream: Some(Enroll::default()), ..Meta::default() };
        for hour in 0..30 * 24 {
            change(&mut tables, |tables| {
                for device in 0..10 {
                    let row = reading(hour * 10 + u64::from(device), device, hour * 3_600_000);
                    put(tables, &mut meta, row, "hq", 1).unwrap();
                }
                compact(tables, &mut meta, 10, 100).unwrap();
            });
        }
        let left = entries(&tables);
        assert!(left.len() <= 30 * 10 + 100 + 28, "{}", left.len());
        assert_eq!(left.last().unwrap().seq, 30 * 24 * 10);
        change(&mut tables, |tables| trim(tables, &mut meta, 7_200).unwrap());
        assert_eq!((entries(&tables).len(), meta.outbox_acked), (0, 7_200));
        assert!(tables.range(Table::OutboxDays, &[], 10).unwrap().is_empty());
    }

    proptest! {
        /// Whatever is acknowledged when, and however late readings come: the last reading of each device and day is
        /// either with the Web Admin or waits for it.
        #[test]
        fn nothing_billable_is_lost(
            steps in proptest::collection::vec((0u8..3, 0u64..120, 0u64..30, 0u8..20), 1..200),
            whole in 1u64..20,
        ) {
            let mut tables = MemoryTables::default();
            let mut meta = Meta { upstream: Some(Enroll::default()), ..Meta::default() };
            let (mut now, mut last, mut there) = (0, BTreeMap::new(), Vec::new());
            for (n, (device, age, pass, act)) in steps.into_iter().enumerate() {
                now += pass * 3_600_000;
                let row = reading(n as u64, device, now.saturating_sub(age * 3_600_000));
                let best = last.entry((row.device.clone(), rows::day(row.at_ms))).or_insert((0, String::new()));
                if row.at_ms >= best.0 {
                    *best = (row.at_ms, row.id.clone());
                }
                change(&mut tables, |tables| {
                    put(tables, &mut meta, row, "hq", 1).unwrap();
                    compact(tables, &mut meta, 1, whole).unwrap();
                });
                if act < 3 {
                    let through = meta.outbox_acked + u64::from(act) * 7;
                    let through = through.min(meta.outbox_next - 1);
                    there.extend(entries(&tables).into_iter().filter(|entry| entry.seq <= through));
                    change(&mut tables, |tables| trim(tables, &mut meta, through).unwrap());
                    prop_assert!(entries(&tables).iter().all(|entry| entry.seq > through));
                }
                let waiting = entries(&tables);
                prop_assert_eq!(waiting.last().map_or(meta.outbox_acked, |e| e.seq.max(meta.outbox_acked)), meta.outbox_next - 1);
                for (at_ms, id) in last.values() {
                    let has = |entry: &OutboxEntry| entry.row.as_ref().is_some_and(|row| row.id == *id);
                    prop_assert!(waiting.iter().chain(&there).any(has), "{id} of {at_ms}");
                }
            }
        }
    }
}
