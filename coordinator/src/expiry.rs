//! Devices that were not read for `expire_after` leave the reports, counting only the time in which a node
//! could have read them.
//!
//! That time is worked out from committed facts. A majority stood as long as the leader's claim was renewed:
//! the cluster's *served* time goes on with every renewal that follows the one before closely, and stands
//! still across a gap. A unit is served while it has an owner whom the leader hears and who reported that it
//! reaches the segment. A device is idle for as long as its unit was served since its latest reading. One without a unit,
//! or in one that no plan has, as printers on a node's own cable, is idle for as long as the cluster was.

use std::collections::BTreeSet;

use quire_proto::id::NodeId;
use quire_proto::store::{DeviceRow, EventRow, Heard, Meta, ReachRow, ServiceRow, UnitRow};

use crate::news::{self, Clerk};
use crate::rows;
use crate::tables::{Fault, Overlay, Read, ReadExt, Table};
use crate::upgrade;

/// Claims are renewed every second; a majority was lost where two of them lie further apart.
const CLOSE_MS: u64 = 10_000;

/// Six weeks, where the settings are of an older version.
const DEFAULT_MS: u64 = 42 * 24 * 3_600_000;

/// Devices looked at with each renewal: 100,000 within half an hour, at some 60 KB a second.
const LOOK_AT: usize = 64;

/// A claim was renewed or made. Call before the row of the claim in `meta` is changed.
pub(crate) fn renewed(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    clerk: &mut Clerk,
    heard: &[Heard],
) -> Result<(), Fault> {
    let passed = clerk.at_ms.saturating_sub(meta.claim_renewed_at_ms);
    if meta.claim_renewed_at_ms > 0 && passed <= CLOSE_MS {
        meta.served_ms += passed;
    }
    let ids = |heard: &[Heard]| heard.iter().map(|heard| heard.node).collect::<BTreeSet<u64>>();
    if ids(heard) != ids(&meta.heard) {
        meta.heard = heard.to_vec();
        for unit in rows::units(tables)? {
            follow_unit(tables, meta, &unit)?;
        }
    }
    search(tables, meta, clerk)
}

/// A unit was granted, taken away or dropped, or its owner's way to it changed.
pub(crate) fn follow_unit(tables: &mut Overlay<'_>, meta: &Meta, unit: &UnitRow) -> Result<(), Fault> {
    let lives = unit.node != 0 && meta.heard.iter().any(|heard| heard.node == unit.node);
    let serves = lives && {
        let way: Option<ReachRow> =
            tables.row(Table::Reach, &rows::reach_key(NodeId(unit.node), &unit.segment))?;
        way.and_then(|row| row.reach).is_some_and(|reach| reach.reachable)
    };
    serve(tables, meta, &unit.unit, serves)
}

/// Nobody has the unit any more.
pub(crate) fn drop_unit(tables: &mut Overlay<'_>, meta: &Meta, unit: &str) -> Result<(), Fault> {
    serve(tables, meta, unit, false)
}

fn serve(tables: &mut Overlay<'_>, meta: &Meta, unit: &str, serves: bool) -> Result<(), Fault> {
    let before: ServiceRow = tables.row(Table::Service, unit.as_bytes())?.unwrap_or_default();
    let after = match (before.since_ms, serves) {
        (None, true) => ServiceRow { since_ms: Some(meta.served_ms), ..before },
        (Some(_), false) => ServiceRow { served_ms: so_far(meta, &before), since_ms: None },
        _ => return Ok(()),
    };
    tables.put(Table::Service, unit.as_bytes(), &after);
    Ok(())
}

fn so_far(meta: &Meta, row: &ServiceRow) -> u64 {
    row.served_ms + row.since_ms.map_or(0, |since| meta.served_ms.saturating_sub(since))
}

/// The clock by which a device in this unit, or in none, grows old, and whether that is the cluster's because no plan has
/// the unit.
fn clock(tables: &(impl Read + ?Sized), meta: &Meta, unit: &str) -> Result<(u64, bool), Fault> {
    if unit.is_empty() {
        return Ok((meta.served_ms, false));
    }
    if let Some(row) = tables.row::<ServiceRow>(Table::Service, unit.as_bytes())? {
        return Ok((so_far(meta, &row), false));
    }
    let planned = tables.get(Table::Units, unit.as_bytes())?.is_some();
    match planned || meta.cluster_version < upgrade::UNPLANNED_AGE {
        true => Ok((0, false)),
        false => Ok((meta.served_ms, true)),
    }
}

/// Milliseconds for which the device could have been read since it was.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn idle_ms(tables: &(impl Read + ?Sized), meta: &Meta, device: &DeviceRow) -> Result<u64, Fault> {
    let (now, unplanned) = clock(tables, meta, &device.unit)?;
    let mark = device.served_mark_ms;
    Ok(device.served_before_ms + if unplanned && mark == 0 { 0 } else { now.saturating_sub(mark) })
}

/// Begins to count for a device that was read when its unit had another clock, or none.
fn begin(tables: &mut Overlay<'_>, meta: &Meta, device: &mut DeviceRow) -> Result<(), Fault> {
    if meta.cluster_version < upgrade::UNPLANNED_AGE {
        return Ok(());
    }
    let (now, unplanned) = clock(tables, meta, &device.unit)?;
    let mark = device.served_mark_ms;
    if mark > now || (unplanned && mark == 0 && now > 0) {
        device.served_mark_ms = now;
        tables.put(Table::Devices, device.id.as_bytes(), device);
    }
    Ok(())
}

/// The device was read just now, in the unit that its row names: it is reported again, if it was not.
pub(crate) fn was_read(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    clerk: &mut Clerk,
    device: &mut DeviceRow,
) -> Result<(), Fault> {
    device.served_mark_ms = clock(tables, meta, &device.unit)?.0;
    device.served_before_ms = 0;
    if std::mem::take(&mut device.expired_at_ms) > 0 {
        meta.expired = meta.expired.saturating_sub(1);
        clerk.event(
            tables,
            &event(clerk.at_ms, device, "came-back", "answers again: it is back in the reports"),
        );
    }
    Ok(())
}

/// The device is about to leave its unit without having been read.
pub(crate) fn loses_unit(tables: &Overlay<'_>, meta: &Meta, device: &mut DeviceRow) -> Result<(), Fault> {
    device.served_before_ms = idle_ms(tables, meta, device)?;
    device.served_mark_ms = meta.served_ms;
    Ok(())
}

fn event(at_ms: u64, device: &DeviceRow, kind: &str, what: &str) -> EventRow {
    EventRow {
        at_ms,
        device: device.id.clone(),
        kind: kind.to_owned(),
        what: what.to_owned(),
        node: device.node,
        ..EventRow::default()
    }
}

/// Looks at the next devices for those that have been idle too long.
fn search(tables: &mut Overlay<'_>, meta: &mut Meta, clerk: &mut Clerk) -> Result<(), Fault> {
    let limit = if meta.expire_after_ms == 0 { DEFAULT_MS } else { meta.expire_after_ms };
    let page = tables.range(Table::Devices, meta.expiry_cursor.as_bytes(), LOOK_AT)?;
    meta.expiry_cursor = match page.last() {
        Some((key, _)) if page.len() == LOOK_AT => format!("{}\0", String::from_utf8_lossy(key)),
        _ => String::new(),
    };
    for (key, stored) in page {
        let mut device = <DeviceRow as prost::Message>::decode(stored)
            .map_err(|reason| Fault::Damaged { table: Table::Devices, reason })?;
        if device.expired_at_ms > 0 {
            continue;
        }
        begin(tables, meta, &mut device)?;
        if idle_ms(tables, meta, &device)? <= limit {
            continue;
        }
        device.expired_at_ms = clerk.at_ms;
        meta.expired += 1;
        tables.put(Table::Devices, &key, &device);
        clerk.event(
            tables,
            &event(clerk.at_ms, &device, "expired", "was not read for too long: it leaves the reports"),
        );
        let id = device.id.clone();
        news::of_device(tables, meta, &id, None)?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "expiry_tests.rs"]
mod tests;
