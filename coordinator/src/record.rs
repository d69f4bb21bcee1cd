//! Applies what nodes learnt: observations become device rows, readings and outbox entries.
//!
//! A fact is kept whoever brings it and however late; a duty (a sweep's progress) counts only under
//! the grant that is in force.

use bytes::Bytes;
use ipnet::IpNet;
use prost::Message;
use quire_proto::id::{NodeId, UnitId, reading_id};
use quire_proto::reading::Reading;
use quire_proto::store::observation::What;
use quire_proto::store::{DeviceRow, EventRow, Meta, Observation, ReadingRow, Record, SweepMark, UnitRow};

use crate::ahead::{self, Seen, Sighting};
use crate::glimpse::Granted;
use crate::homes::{self, Place};
use crate::news::{self, Clerk};
use crate::tables::{Fault, Overlay, ReadExt, Table};
use crate::{backlog, expiry, faces, history, meters, rows, supplies, upgrade};

/// A node's clock may be so far ahead of the leader's, milliseconds; what it says beyond is not believed.
pub(crate) const AHEAD_MS: u64 = 60_000;

/// Applies a record at the leader's time `now_ms`; returns the node's highest kept observation number.
pub(crate) fn apply(
    tables: &mut Overlay<'_>,
    index: u64,
    now_ms: u64,
    record: &Record,
) -> Result<u64, Fault> {
    let node = NodeId(record.node);
    let mut through = rows::recorded_through(tables, node)?;
    let mut meta = rows::meta(tables)?;
    let mut clerk = Clerk::new(index, now_ms);
    for some in record.observations.chunks(ahead::TOGETHER) {
        let mut sightings = Vec::new();
        for stored in some {
            // A damaged observation was refused when it was spooled; one of a newer version is skipped.
            let Ok(observation) = Observation::decode(stored.clone()) else { continue };
            if observation.seq <= through {
                continue;
            }
            through = observation.seq;
            sightings.push(Sighting::of(believed(observation, now_ms)));
        }
        ahead::fetch(tables, &sightings)?;
        for sighting in &sightings {
            one(tables, &mut meta, (node, &mut clerk), sighting)?;
        }
    }
    rows::put_recorded_through(tables, node, through);
    history::compact(tables, &mut meta, now_ms, record.observations.len(), &history::BOUNDS)?;
    backlog::compact(tables, &mut meta, record.observations.len(), backlog::WHOLE)?;
    news::forget(tables, now_ms)?;
    rows::put_meta(tables, &meta);
    Ok(through)
}

/// Nobody reads a device in the future: a clock that is ahead gets the leader's time, and what it said is kept beside
/// it. Clocks behind are left alone, because what waited in a spool is as old.
fn believed(observation: Observation, now_ms: u64) -> Observation {
    match observation.at_ms > now_ms.saturating_add(AHEAD_MS) {
        true => Observation { at_ms: now_ms, said_at_ms: observation.at_ms, ..observation },
        false => observation,
    }
}

fn one(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    (node, clerk): (NodeId, &mut Clerk),
    sighting: &Sighting,
) -> Result<(), Fault> {
    let (observation, id) = (&sighting.observation, sighting.unit.as_ref());
    let unit: Option<Granted> = match id {
        Some(id) => tables.row(Table::Units, id.as_str().as_bytes())?,
        None => None,
    };
    let granted = unit.is_some_and(|unit| unit.node == node.0 && unit.epoch == observation.epoch);
    let in_force = granted || observation.local;
    match &observation.what {
        Some(What::Reading(reading)) => {
            // What cannot be read was refused when it was spooled.
            let Some(seen) = &sighting.seen else { return Ok(()) };
            let unit = (id, unit.and_then(|unit| unit.hops));
            keep_reading(tables, meta, (node, clerk), (observation, unit), (seen, reading), !in_force)
        }
        Some(What::Silence(silence)) if in_force => note_silence(tables, observation, &silence.device),
        Some(What::Sweep(mark)) => {
            if let Some(id) = id.filter(|_| in_force)
                && let Some(unit) = rows::unit(tables, id)?
            {
                note_sweep(tables, unit, mark, observation.at_ms);
            }
            Ok(())
        }
        Some(What::Silence(_) | What::Refusal(_)) | None => Ok(()),
    }
}

fn keep_reading(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    (node, clerk): (NodeId, &mut Clerk),
    (observation, (unit, unit_hops)): (&Observation, (Option<&UnitId>, Option<u32>)),
    (seen, stored): (&Seen, &Bytes),
    late: bool,
) -> Result<(), Fault> {
    let place = Place {
        zone: unit.map_or("", UnitId::zone),
        unit: &observation.unit,
        address: &observation.address,
        at_ms: observation.at_ms,
        led_ms: if meta.cluster_version < upgrade::BOUND_HOMES { u64::MAX } else { clerk.at_ms },
    };
    let (mut device, face) = faces::place(tables, meta, clerk, (node.0, &place), seen)?;
    if observation.facts_only {
        return keep_facts(tables, meta, (node, clerk), (observation, &place), stored, device);
    }
    // Whoever owns the unit hands in its readings in their order, whatever its clock says; for others the time decides.
    let in_order = !late && device.unit == observation.unit;
    let newest = in_order || observation.at_ms >= homes::bounded(device.metered_at_ms, place.led_ms);
    if newest {
        homes::settle(tables, &mut device, &place)?;
        follow(tables, clerk, (node, observation.at_ms, meta.cluster_version), &mut device, &seen.reading);
        expiry::was_read(tables, meta, clerk, &mut device)?;
        device.node = node.0;
        // Read before the way was measured, or by a node that did not know it yet: as far as the unit.
        device.hops = observation.hops.or(unit_hops);
        device.user.clone_from(&observation.user);
        pin(&mut device, &observation.certificate);
        device.reading = stored.clone();
        device.metered_at_ms = observation.at_ms;
        device.misses = 0;
        device.faces.retain(|other| *other != face);
        device.faces.insert(0, face.clone());
    } else {
        homes::visited(tables, &device, &place)?;
    }
    device.first_seen_ms = device.first_seen_ms.min(observation.at_ms);
    device.last_seen_ms = device.last_seen_ms.max(observation.at_ms);
    device.hidden = hidden(meta, &device.address);
    tables.put(Table::Devices, device.id.as_bytes(), &device);
    if device.faces.len() > 1 {
        let latest = if newest { faces::bare(&device) } else { as_of(&place, node, observation, stored) };
        faces::remember(tables, &face, latest, newest)?;
    }
    // A late reading may come from where the device no longer is.
    let secret = device.hidden || hidden(meta, &observation.address);
    publish(tables, meta, (node, observation, stored), (late, secret), (&device, face))
}

/// A read that broke off says who is there and nothing of meters: a device that is not known yet is known from now
/// on, to be read soon; one that is known is not touched, for its last whole reading is worth more.
fn keep_facts(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    (node, clerk): (NodeId, &mut Clerk),
    (observation, place): (&Observation, &Place<'_>),
    stored: &Bytes,
    mut device: DeviceRow,
) -> Result<(), Fault> {
    if !device.reading.is_empty() {
        return Ok(());
    }
    homes::settle(tables, &mut device, place)?;
    expiry::was_read(tables, meta, clerk, &mut device)?;
    device.node = node.0;
    device.hops = observation.hops;
    device.user.clone_from(&observation.user);
    device.reading = stored.clone();
    device.last_seen_ms = observation.at_ms;
    device.hidden = hidden(meta, &device.address);
    tables.put(Table::Devices, device.id.as_bytes(), &device);
    Ok(())
}

/// The first certificate stays until the operator takes it away (`typed`); what is no SHA-256 is none.
fn pin(device: &mut DeviceRow, certificate: &Bytes) {
    const SHA256: usize = 32;
    if device.certificate.is_empty() && certificate.len() == SHA256 {
        device.certificate.clone_from(certificate);
    }
}

/// Brings what lasts longer than a reading to a later one, and keeps what happened.
fn follow(
    tables: &mut Overlay<'_>,
    clerk: &mut Clerk,
    (node, at_ms, version): (NodeId, u64, u32),
    device: &mut DeviceRow,
    reading: &Reading,
) {
    let (counters, sources) = (&reading.counters, &reading.sources);
    let mut events = meters::follow(&mut device.meters, counters, sources, at_ms, version);
    events.extend(supplies::follow(&mut device.parts, &reading.supplies, at_ms, version));
    for event in events {
        clerk.event(tables, &EventRow { device: device.id.clone(), node: node.0, ..event });
    }
}

/// The row of a device of which only this reading is known.
fn as_of(place: &Place<'_>, node: NodeId, observation: &Observation, stored: &Bytes) -> DeviceRow {
    DeviceRow {
        unit: place.unit.to_owned(),
        zone: place.zone.to_owned(),
        address: place.address.to_owned(),
        addresses: vec![place.address.to_owned()],
        node: node.0,
        hops: observation.hops,
        reading: stored.clone(),
        metered_at_ms: observation.at_ms,
        ..DeviceRow::default()
    }
}

/// True for an address that the operator hides from the Web Admin.
pub(crate) fn hidden(meta: &Meta, address: &str) -> bool {
    if meta.hide.is_empty() {
        return false;
    }
    let Ok(at) = address.parse::<std::net::SocketAddr>() else { return false };
    meta.hide.iter().filter_map(|prefix| prefix.parse::<IpNet>().ok()).any(|prefix| prefix.contains(&at.ip()))
}

/// Writes the reading's own row, and its outbox entry unless the operator hides it (`secret`).
fn publish(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    (node, observation, stored): (NodeId, &Observation, &Bytes),
    (late, secret): (bool, bool),
    (device, face): (&DeviceRow, String),
) -> Result<(), Fault> {
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
        face,
        said_at_ms: observation.said_at_ms,
    };
    history::put(tables, meta, &row)?;
    if secret {
        return Ok(());
    }
    backlog::put(tables, meta, row, &device.zone, device.first_seen_ms)
}

fn note_silence(tables: &mut Overlay<'_>, observation: &Observation, device: &str) -> Result<(), Fault> {
    if let Some(mut row) = tables.row::<DeviceRow>(Table::Devices, device.as_bytes())?
        && row.address == observation.address
        && (row.unit == observation.unit || observation.at_ms > row.metered_at_ms)
    {
        row.misses = row.misses.saturating_add(1);
        tables.put(Table::Devices, device.as_bytes(), &row);
    }
    Ok(())
}

fn note_sweep(tables: &mut Overlay<'_>, mut unit: UnitRow, mark: &SweepMark, at_ms: u64) {
    let mut mark = mark.clone();
    if mark.finished {
        unit.swept_at_ms = at_ms;
        // Begun by a clock that is ahead, it would stand in the way of every slot until then.
        mark.started_at_ms = mark.started_at_ms.min(at_ms);
    }
    unit.sweep = Some(mark);
    unit.marked_at_ms = at_ms;
    tables.put(Table::Units, unit.unit.as_bytes(), &unit);
}
