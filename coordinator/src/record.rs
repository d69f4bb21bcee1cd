//! Applies what nodes learnt: observations become device rows, readings and outbox entries.
//!
//! A fact is kept whoever brings it and however late; a duty (a sweep's progress) counts only under
//! the grant that is in force.

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;
use quire_proto::convert;
use quire_proto::id::{DeviceId, NodeId, UnitId, reading_id};
use quire_proto::store::observation::What;
use quire_proto::store::{DeviceRow, Meta, Observation, OutboxEntry, ReadingRow, Record, SweepMark, UnitRow};

use crate::identity::{self, Evidence};
use crate::rows;
use crate::tables::{Fault, Overlay, Read, ReadExt, Table};

/// Readings older than this leave the replicated history.
const HISTORY_MS: u64 = 7 * 24 * 3_600_000;

/// Addresses that a device row remembers, newest first.
const MAX_ADDRESSES: usize = 8;

/// Applies a record; returns the node's highest kept observation number.
pub(crate) fn apply(tables: &mut Overlay<'_>, index: u64, at_ms: u64, record: &Record) -> Result<u64, Fault> {
    let node = NodeId(record.node);
    let mut through = rows::recorded_through(tables, node)?;
    let mut meta = rows::meta(tables)?;
    for (ordinal, stored) in record.observations.iter().enumerate() {
        // A damaged observation was refused when it was spooled; one of a newer version is skipped.
        let Ok(observation) = Observation::decode(stored.clone()) else { continue };
        if observation.seq <= through {
            continue;
        }
        through = observation.seq;
        let mint = (index, u16::try_from(ordinal).unwrap_or(u16::MAX));
        one(tables, &mut meta, node, mint, &observation)?;
    }
    rows::put_recorded_through(tables, node, through);
    forget_history(tables, at_ms, record.observations.len())?;
    rows::put_meta(tables, &meta);
    Ok(through)
}

fn one(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    node: NodeId,
    mint: (u64, u16),
    observation: &Observation,
) -> Result<(), Fault> {
    let unit = match observation.unit.parse::<UnitId>() {
        Ok(id) => rows::unit(tables, &id)?,
        Err(_) => None,
    };
    let in_force = unit.as_ref().is_some_and(|unit| unit.node == node.0 && unit.epoch == observation.epoch);
    match &observation.what {
        Some(What::Reading(reading)) => {
            keep_reading(tables, meta, node, mint, observation, reading, !in_force)
        }
        Some(What::Silence(silence)) if in_force => note_silence(tables, observation, &silence.device),
        Some(What::Sweep(mark)) => match unit {
            Some(unit) if in_force => {
                note_sweep(tables, unit, mark, observation.at_ms);
                Ok(())
            }
            _ => Ok(()),
        },
        Some(What::Silence(_) | What::Refusal(_)) | None => Ok(()),
    }
}

fn keep_reading(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    node: NodeId,
    mint: (u64, u16),
    observation: &Observation,
    stored: &Bytes,
    late: bool,
) -> Result<(), Fault> {
    let Ok(reading) = convert::decode(stored) else { return Ok(()) };
    let zone =
        observation.unit.parse::<UnitId>().map_or_else(|_| String::new(), |unit| unit.zone().to_owned());
    let evidence = Evidence::new(&reading.facts, &zone, &observation.address);
    let known = identity::find(tables, &evidence, &reading.facts)?;
    let newest = known.as_ref().is_none_or(|device| observation.at_ms >= device.metered_at_ms);
    let mut device = match known {
        Some(device) => device,
        None => {
            meta.devices += 1;
            new_device(meta, mint, observation.at_ms)
        }
    };
    if newest {
        settle(tables, &mut device, &evidence, observation, &zone)?;
        device.node = node.0;
        device.hops = observation.hops;
        device.reading = stored.clone();
        device.metered_at_ms = observation.at_ms;
        device.misses = 0;
    }
    device.first_seen_ms = device.first_seen_ms.min(observation.at_ms);
    device.last_seen_ms = device.last_seen_ms.max(observation.at_ms);
    device.hidden = hidden(meta, &device.address);
    tables.put(Table::Devices, device.id.as_bytes(), &device);
    // A late reading may come from where the device no longer is.
    let secret = device.hidden || hidden(meta, &observation.address);
    publish(tables, meta, node, observation, stored, (late, secret), &device);
    Ok(())
}

fn new_device(meta: &Meta, (index, ordinal): (u64, u16), at_ms: u64) -> DeviceRow {
    let salt = meta.cluster_id.first_chunk::<8>().map_or(0, |octets| u64::from_be_bytes(*octets));
    DeviceRow {
        id: DeviceId::mint(salt, index, ordinal).to_string(),
        first_seen_ms: at_ms,
        ..DeviceRow::default()
    }
}

/// Moves the device to where it was seen: its evidence, its address, its unit.
fn settle(
    tables: &mut Overlay<'_>,
    device: &mut DeviceRow,
    evidence: &Evidence,
    observation: &Observation,
    zone: &str,
) -> Result<(), Fault> {
    for key in evidence.keys() {
        let before = tables.get(Table::Evidence, key.as_bytes())?;
        if before.as_deref() != Some(device.id.as_bytes()) {
            if let Some(other) = before {
                dislodge(tables, &other, key, &observation.address)?;
            }
            tables.put_bytes(Table::Evidence, key.as_bytes(), Bytes::copy_from_slice(device.id.as_bytes()));
        }
        if !device.evidence.iter().any(|known| known == key) {
            device.evidence.push(key.to_owned());
        }
    }
    if device.unit != observation.unit {
        count_in_unit(tables, &device.unit, -1)?;
        count_in_unit(tables, &observation.unit, 1)?;
        device.unit.clone_from(&observation.unit);
    }
    leave_old_addresses(tables, device, evidence)?;
    zone.clone_into(&mut device.zone);
    device.address.clone_from(&observation.address);
    device.addresses.retain(|address| *address != observation.address);
    device.addresses.insert(0, observation.address.clone());
    device.addresses.truncate(MAX_ADDRESSES);
    Ok(())
}

/// An address says who lives there now: where the device was before, whoever moves in is somebody else.
fn leave_old_addresses(
    tables: &mut Overlay<'_>,
    device: &mut DeviceRow,
    evidence: &Evidence,
) -> Result<(), Fault> {
    let (left, kept): (Vec<String>, Vec<String>) = std::mem::take(&mut device.evidence)
        .into_iter()
        .partition(|key| key.starts_with("a:") && *key != evidence.address);
    device.evidence = kept;
    for key in left {
        if tables.get(Table::Evidence, key.as_bytes())?.as_deref() == Some(device.id.as_bytes()) {
            tables.delete(Table::Evidence, key.as_bytes());
        }
    }
    Ok(())
}

/// Another device had this evidence: it keeps its id and history and is found again elsewhere.
fn dislodge(tables: &mut Overlay<'_>, other: &[u8], key: &str, address: &str) -> Result<(), Fault> {
    let Some(mut device) = tables.row::<DeviceRow>(Table::Devices, other)? else { return Ok(()) };
    device.evidence.retain(|known| known != key);
    if key.starts_with("a:") && device.address == address {
        device.address.clear();
        count_in_unit(tables, &device.unit, -1)?;
        device.unit.clear();
    }
    tables.put(Table::Devices, other, &device);
    Ok(())
}

fn count_in_unit(tables: &mut Overlay<'_>, unit: &str, by: i32) -> Result<(), Fault> {
    if let Some(mut row) = tables.row::<UnitRow>(Table::Units, unit.as_bytes())? {
        row.devices = row.devices.saturating_add_signed(by);
        tables.put(Table::Units, unit.as_bytes(), &row);
    }
    Ok(())
}

fn hidden(meta: &Meta, address: &str) -> bool {
    let Ok(at) = address.parse::<std::net::SocketAddr>() else { return false };
    meta.hide.iter().filter_map(|prefix| prefix.parse::<IpNet>().ok()).any(|prefix| prefix.contains(&at.ip()))
}

/// Writes the reading's own row, and its outbox entry unless the operator hides it (`secret`).
fn publish(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    node: NodeId,
    observation: &Observation,
    stored: &Bytes,
    (late, secret): (bool, bool),
    device: &DeviceRow,
) {
    let row = ReadingRow {
        id: reading_id(&meta.cluster_id, node, observation.seq),
        device: device.id.clone(),
        unit: observation.unit.clone(),
        at_ms: observation.at_ms,
        node: node.0,
        epoch: observation.epoch,
        reading: stored.clone(),
        late,
        address: observation.address.clone(),
    };
    tables.put(Table::Readings, &rows::reading_key(row.at_ms, &row.id), &row);
    if secret {
        return;
    }
    meta.outbox_next = meta.outbox_next.max(1);
    let entry = OutboxEntry {
        seq: meta.outbox_next,
        row: Some(row),
        zone: device.zone.clone(),
        first_seen_ms: device.first_seen_ms,
    };
    tables.put(Table::Outbox, &rows::number_key(entry.seq), &entry);
    meta.outbox_next += 1;
}

fn note_silence(tables: &mut Overlay<'_>, observation: &Observation, device: &str) -> Result<(), Fault> {
    if let Some(mut row) = tables.row::<DeviceRow>(Table::Devices, device.as_bytes())?
        && row.address == observation.address
        && observation.at_ms > row.metered_at_ms
    {
        row.misses = row.misses.saturating_add(1);
        tables.put(Table::Devices, device.as_bytes(), &row);
    }
    Ok(())
}

fn note_sweep(tables: &mut Overlay<'_>, mut unit: UnitRow, mark: &SweepMark, at_ms: u64) {
    if mark.finished {
        unit.swept_at_ms = at_ms;
    }
    unit.sweep = Some(*mark);
    tables.put(Table::Units, unit.unit.as_bytes(), &unit);
}

/// Drops what is too old, a few rows more than came in, so that the table shrinks steadily. What
/// upstream still lacks lives on in the outbox.
fn forget_history(tables: &mut Overlay<'_>, at_ms: u64, came_in: usize) -> Result<(), Fault> {
    let horizon = at_ms.saturating_sub(HISTORY_MS);
    for (key, stored) in tables.range(Table::Readings, &[], came_in + 8)? {
        let row =
            ReadingRow::decode(stored).map_err(|reason| Fault::Damaged { table: Table::Readings, reason })?;
        if row.at_ms >= horizon {
            break;
        }
        tables.delete(Table::Readings, &key);
    }
    Ok(())
}
