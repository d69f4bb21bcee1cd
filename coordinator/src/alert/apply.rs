//! What the log does to the table of alerts.
//!
//! Bounds: [`MOST`] rows; cleared ones go after [`KEEP_MS`], earlier where room is short. Without room a new alert is not
//! kept, and its proposer is told.

use ipnet::IpNet;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{
    Alert, AlertChange, AlertDelivery, AlertNews, AlertRow, AlertsTold, DeviceRow, EventRow, Meta, UnitRow,
};

use super::{CLEARED, OPEN, SAME_EPISODE_MS, key, row};
use crate::news::Clerk;
use crate::state::refuse;
use crate::tables::{Fault, Overlay, Read as _, ReadExt as _, Table, after};
use crate::{backlog, record, rows, upgrade};

/// Rows at most, of some 500 octets: 10 MB.
pub(crate) const MOST: u64 = 20_000;
/// Cleared ones are shown for a week.
const KEEP_MS: u64 = 7 * rows::DAY_MS;
/// Cleared ones looked at with each command.
const LOOK_AT: usize = 64;
/// Targets of one alert: more than any rule names.
const TARGETS: usize = 16;

pub(crate) fn apply(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    alert: &Alert,
) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    if alert.claim != meta.claim_epoch {
        return Ok(refuse(format!("the claim {} is not in force", alert.claim)));
    }
    if alert.settings_index != meta.settings_index {
        return Ok(refuse("other settings are in force"));
    }
    let mut clerk = Clerk::new(index, at_ms);
    prune(tables, &mut meta, at_ms)?;
    let mut left_out = 0u64;
    for change in &alert.changes {
        let Some(mut row) = next_row(tables, &meta, &clerk, change)? else { continue };
        if row.open && meta.alerts >= MOST && row.raises == 1 {
            left_out += 1;
            continue;
        }
        remove(tables, &mut meta, change)?;
        tell_upstream(tables, &mut meta, &mut row)?;
        tell_events(tables, &mut clerk, &row);
        put(tables, &mut meta, &row);
    }
    rows::put_meta(tables, &meta);
    Ok(match left_out {
        0 => Answer::Done(true),
        n => Answer::Changes(format!("no room for {n} more alerts than {MOST}")),
    })
}

/// The row after a change; `None` where it changes nothing, or was judged by what is not there any more.
fn next_row(
    tables: &Overlay<'_>,
    meta: &Meta,
    clerk: &Clerk,
    change: &AlertChange,
) -> Result<Option<AlertRow>, Fault> {
    let before = row(tables, &change.subject, &change.rule)?;
    if before.as_ref().is_some_and(|row| row.open) == change.raised {
        return Ok(None);
    }
    if !change.device.is_empty() {
        let device: Option<DeviceRow> = tables.row(Table::Devices, change.device.as_bytes())?;
        let same = |row: &DeviceRow| {
            row.expired_at_ms == 0 && (row.metered_at_ms, row.misses) == (change.metered_at_ms, change.misses)
        };
        if !device.as_ref().is_some_and(same) {
            return Ok(None);
        }
    }
    let (index, now) = (clerk.index, clerk.at_ms);
    let goes_on = |row: &AlertRow| row.open || now.saturating_sub(row.cleared_at_ms) < SAME_EPISODE_MS;
    let mut row = match before.filter(goes_on) {
        Some(before) => {
            let soon = now.saturating_sub(before.changed_at_ms) < SAME_EPISODE_MS;
            let changes = if soon { before.changes.saturating_add(1) } else { 1 };
            AlertRow { changes, upstream: before.upstream || change.upstream, ..before }
        }
        None => AlertRow {
            id: id(meta, index, change),
            rule: change.rule.clone(),
            subject: change.subject.clone(),
            device: change.device.clone(),
            raised_at_ms: now,
            upstream: change.upstream,
            changes: 1,
            ..AlertRow::default()
        },
    };
    (row.open, row.serial, row.changed_at_ms) = (change.raised, index, now);
    if change.raised {
        row.raises = row.raises.saturating_add(1);
        (row.cleared_at_ms, row.why) = (0, String::new());
        row.what.clone_from(&change.what);
        owe(&mut row, &change.targets, meta.cluster_version);
    } else {
        (row.cleared_at_ms, row.why) = (now, change.what.clone());
    }
    row.hidden = hidden(tables, meta, &row)?;
    Ok(Some(row))
}

/// Unique for ever: the cluster, the entry that raised it, and its place among those of that entry.
fn id(meta: &Meta, index: u64, change: &AlertChange) -> String {
    let cluster: String = meta.cluster_id.iter().take(4).map(|octet| format!("{octet:02x}")).collect();
    // FNV-1a: a name, not a secret; two alerts of one entry differ in rule or subject.
    let name = [change.subject.as_bytes(), &[0], change.rule.as_bytes()].concat();
    let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{cluster}-{index}-{hash:016x}")
}

/// Targets that are not told yet; what others were told stays, while there is room for it.
fn owe(row: &mut AlertRow, targets: &[String], version: u32) {
    let targets = &targets[..targets.len().min(TARGETS)];
    let known = |row: &AlertRow, target: &String| row.deliveries.iter().any(|known| known.target == *target);
    let new = targets.iter().filter(|target| !known(row, target)).count();
    if version >= upgrade::OLD_TARGETS && row.deliveries.len() + new > TARGETS {
        row.deliveries.retain(|delivery| targets.contains(&delivery.target));
    }
    for target in targets {
        if !known(row, target) {
            row.deliveries.push(AlertDelivery { target: target.clone(), ..AlertDelivery::default() });
        }
    }
}

/// True for what is of a hidden segment.
fn hidden(tables: &Overlay<'_>, meta: &Meta, alert: &AlertRow) -> Result<bool, Fault> {
    if !alert.device.is_empty() {
        let device: Option<DeviceRow> = tables.row(Table::Devices, alert.device.as_bytes())?;
        // Who is gone stays as hidden as it was.
        // The row's own mark is of its last reading; `hide` may have come since.
        let is = |row: DeviceRow| row.hidden || record::hidden(meta, &row.address);
        return Ok(device.map_or(alert.hidden, is));
    }
    let Some(unit) = alert.subject.strip_prefix("unit/") else { return Ok(false) };
    let row: Option<UnitRow> = tables.row(Table::Units, unit.as_bytes())?;
    let prefix = row.and_then(|row| row.prefix.parse::<IpNet>().ok());
    let within = |hide: &String| {
        let hide: Option<IpNet> = hide.parse().ok();
        prefix.zip(hide).is_some_and(|(prefix, hide)| hide.contains(&prefix) || prefix.contains(&hide))
    };
    Ok(if prefix.is_some() { meta.hide.iter().any(within) } else { alert.hidden })
}

fn tell_upstream(tables: &mut Overlay<'_>, meta: &mut Meta, row: &mut AlertRow) -> Result<(), Fault> {
    if !row.upstream || row.hidden {
        return Ok(());
    }
    let news = AlertNews {
        id: row.id.clone(),
        rule: row.rule.clone(),
        subject: row.subject.clone(),
        device: row.device.clone(),
        open: row.open,
        raised_at_ms: row.raised_at_ms,
        cleared_at_ms: row.cleared_at_ms,
        what: row.what.clone(),
        serial: row.serial,
        raises: row.raises,
        why: row.why.clone(),
    };
    // The news hold all of the alert, so that of one that comes and goes a single entry waits.
    row.outbox_seq = backlog::tell_alert(tables, meta, news, row.outbox_seq)?;
    Ok(())
}

/// A Web Admin that is new is told of what is open.
pub(crate) fn tell_all(tables: &mut Overlay<'_>, meta: &mut Meta) -> Result<(), Fault> {
    let open: Vec<AlertRow> = tables.all(Table::Alerts, OPEN)?;
    for mut row in open {
        row.hidden = hidden(tables, meta, &row)?;
        tell_upstream(tables, meta, &mut row)?;
        tables.put(Table::Alerts, &key(true, &row.subject, &row.rule), &row);
    }
    Ok(())
}

fn tell_events(tables: &mut Overlay<'_>, clerk: &mut Clerk, row: &AlertRow) {
    if row.device.is_empty() {
        return;
    }
    let (kind, what) = match row.open {
        true => ("alert-raised", &row.what),
        false => ("alert-cleared", &row.why),
    };
    let event = EventRow {
        at_ms: clerk.at_ms,
        device: row.device.clone(),
        kind: kind.to_owned(),
        field: row.rule.clone(),
        what: what.clone(),
        ..EventRow::default()
    };
    clerk.event(tables, &event);
}

fn put(tables: &mut Overlay<'_>, meta: &mut Meta, row: &AlertRow) {
    tables.put(Table::Alerts, &key(row.open, &row.subject, &row.rule), row);
    meta.alerts += 1;
    meta.alerts_open += u64::from(row.open);
}

/// Removes the alert in either state.
fn remove(tables: &mut Overlay<'_>, meta: &mut Meta, change: &AlertChange) -> Result<(), Fault> {
    for open in [true, false] {
        let key = key(open, &change.subject, &change.rule);
        if tables.get(Table::Alerts, &key)?.is_some() {
            tables.delete(Table::Alerts, &key);
            meta.alerts = meta.alerts.saturating_sub(1);
            meta.alerts_open = meta.alerts_open.saturating_sub(u64::from(open));
        }
    }
    Ok(())
}

/// Drops cleared alerts that are old or, where room is short, that will not go on as the same episode.
fn prune(tables: &mut Overlay<'_>, meta: &mut Meta, at_ms: u64) -> Result<(), Fault> {
    let keep_ms = if meta.alerts > MOST / 10 * 9 { SAME_EPISODE_MS } else { KEEP_MS };
    let from = if meta.alerts_cursor.is_empty() { CLEARED.to_vec() } else { meta.alerts_cursor.to_vec() };
    let page = tables.range(Table::Alerts, &from, LOOK_AT)?;
    let whole = page.len() == LOOK_AT;
    meta.alerts_cursor = page.last().filter(|_| whole).map(|(key, _)| after(key).into()).unwrap_or_default();
    for (key, stored) in page {
        let row = <AlertRow as prost::Message>::decode(stored)
            .map_err(|reason| Fault::Damaged { table: Table::Alerts, reason })?;
        if !row.open && at_ms.saturating_sub(row.cleared_at_ms) > keep_ms {
            tables.delete(Table::Alerts, &key);
            meta.alerts = meta.alerts.saturating_sub(1);
        }
    }
    Ok(())
}

/// Notes whom the leader has told, or given up to tell.
pub(crate) fn told(tables: &mut Overlay<'_>, at_ms: u64, told: &AlertsTold) -> Result<Answer, Fault> {
    let meta = rows::meta(tables)?;
    if told.claim != meta.claim_epoch {
        return Ok(refuse(format!("the claim {} is not in force", told.claim)));
    }
    for one in &told.told {
        let (Some(mut alert), Some(delivery)) = (row(tables, &one.subject, &one.rule)?, &one.delivery) else {
            continue;
        };
        let now = AlertDelivery { at_ms, ..delivery.clone() };
        if alert.deliveries.iter().any(|known| known.target == now.target && known.serial > now.serial) {
            continue;
        }
        match meta.cluster_version < upgrade::OLD_TARGETS {
            true => note_in_place(&mut alert.deliveries, now),
            false => note(&mut alert.deliveries, now),
        }
        tables.put(Table::Alerts, &key(alert.open, &alert.subject, &alert.rule), &alert);
    }
    Ok(Answer::Done(true))
}

/// Keeps who was told in the order in which they were told, whatever calendars say, so that the first makes room:
/// settings that come and go must not make a row grow for ever, and who is told now must not be forgotten for the next.
fn note(deliveries: &mut Vec<AlertDelivery>, now: AlertDelivery) {
    deliveries.retain(|known| known.target != now.target);
    if deliveries.len() >= TARGETS {
        deliveries.drain(..=deliveries.len() - TARGETS);
    }
    deliveries.push(now);
}

/// The same as clusters before [`upgrade::OLD_TARGETS`] have it.
fn note_in_place(deliveries: &mut Vec<AlertDelivery>, now: AlertDelivery) {
    match deliveries.iter().position(|known| known.target == now.target) {
        Some(at) => deliveries[at] = now,
        None if deliveries.len() >= TARGETS => deliveries[0] = now,
        None => deliveries.push(now),
    }
}
