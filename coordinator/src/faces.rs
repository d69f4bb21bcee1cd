//! The table of faces: notes what was seen, works out the devices around it, and moves the rows there.
//!
//! Architecture Invariant: which faces are one device is [`identity::resolve`]'s word alone; here it is
//! only carried out, on the faces that can matter.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use quire_proto::id::DeviceId;
use quire_proto::reading::Reading;
use quire_proto::store::{DecisionRow, DeviceRow, FaceRow, KeyRow, Meta, Provenance, ReviewRow};

use crate::ahead::Seen;
use crate::evidence::{Evidence, address_key, but_for_engine, models_agree, plain_model};
use crate::expiry;
use crate::history;
use crate::homes::{Place, count_in_unit, left_at, tenant, vacate};
use crate::identity::{self, Decision, Doubt, Face};
use crate::news::{self, Clerk};
use crate::tables::{Fault, Overlay, ReadExt, Table};
use crate::upgrade;

/// Faces under one key before it tells nothing. A device shows a handful: its card may be left out of one
/// answer and its engine of another, and boards are swapped.
/// Those that differ by their engines alone count once.
const MOST_FACES: usize = 16;

/// Engines under which a serial and a card are kept as faces of their own. A board brings its own engine, and firmware may
/// come to make it otherwise; what shows more makes it up at each boot, and what it shows then tells nothing.
const MOST_ENGINES: usize = 4;

/// Faces that are looked at together. Beyond it a chain of shared keys is no longer followed: at 16 faces a
/// key only a fleet that shares serials, cards and engines crosswise gets there.
const MOST_TOGETHER: usize = 512;

/// Finds the face of a reading and the device that it belongs to, which may be new.
pub(crate) fn place(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    clerk: &mut Clerk,
    (node, place): (u64, &Place<'_>),
    Seen { reading, evidence, face }: &Seen,
) -> Result<(DeviceRow, String), Fault> {
    let face = match face {
        Some(key) => {
            let (face, device) = strong(tables, meta, clerk, (node, place), (evidence, key), reading)?;
            if let Some(device) = device {
                // Nothing moved: the row in hand says whose face it is.
                return Ok((tables.row(Table::Devices, device.as_bytes())?.unwrap_or_default(), face));
            }
            face
        }
        None => match neighbour(tables, &evidence.address, reading)? {
            Some(found) => return Ok(found),
            None => weak(tables, meta, clerk, (node, place), reading)?,
        },
    };
    let row: FaceRow = tables.row(Table::Faces, face.as_bytes())?.unwrap_or_default();
    let device = tables.row(Table::Devices, row.device.as_bytes())?.unwrap_or_default();
    Ok((device, face))
}

/// Notes a sighting of a face with strong evidence; what depends on it is worked out again. Answers the face, and its
/// device where nothing had to be worked out.
fn strong(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    clerk: &mut Clerk,
    (node, place): (u64, &Place<'_>),
    (evidence, key): (&Evidence, &str),
    reading: &Reading,
) -> Result<(String, Option<String>), Fault> {
    let mut known: Option<FaceRow> = tables.row(Table::Faces, key.as_bytes())?;
    let (mut evidence, mut key) = (Cow::Borrowed(evidence), Cow::Borrowed(key));
    if known.is_none()
        && meta.cluster_version >= upgrade::ENGINES
        && has_many_engines(tables, &evidence, &key)?
    {
        evidence.to_mut().engine = None;
        key = evidence.face().map_or(key, Cow::Owned);
        known = tables.row(Table::Faces, key.as_bytes())?;
    }
    let is_new = known.is_none();
    let mut face = known.unwrap_or_else(|| FaceRow {
        key: key.to_string(),
        serial: evidence.serial.clone(),
        vendor: evidence.vendor.clone(),
        mac: evidence.mac.clone(),
        engine: evidence.engine.clone(),
        first_ms: place.at_ms,
        ..FaceRow::default()
    });
    see(&mut face, node, place, reading);
    tables.put(Table::Faces, key.as_bytes(), &face);
    let mut around = vec![key.to_string()];
    let mut alone = true;
    for evidence in evidence.strong() {
        let mut row: KeyRow = tables.row(Table::Keys, evidence.as_bytes())?.unwrap_or_default();
        let was_common = row.common;
        if meta.cluster_version >= upgrade::ENGINES {
            // It may have become so where each engine counted.
            row.common &= is_common(meta, &row);
        }
        let joins = !row.common && !row.faces.iter().any(|face| *face == key);
        if joins {
            row.faces.push(key.to_string());
            row.common = is_common(meta, &row);
            if row.common {
                around.extend(row.faces.iter().cloned());
            }
        }
        if joins || row.common != was_common {
            tables.put(Table::Keys, evidence.as_bytes(), &row);
        }
        alone &= row.common || row.faces.len() == 1;
    }
    if !is_new && alone {
        return Ok((key.into_owned(), Some(face.device)));
    }
    work_out(tables, meta, clerk, &around)?;
    if is_new && adopt(tables, &key, &evidence.address)? {
        work_out(tables, meta, clerk, &around)?;
    }
    Ok((key.into_owned(), None))
}

fn is_common(meta: &Meta, key: &KeyRow) -> bool {
    if meta.cluster_version < upgrade::ENGINES {
        return key.faces.len() > MOST_FACES;
    }
    // Nearly always there are few.
    key.faces.len() > MOST_FACES
        && key.faces.iter().map(|face| but_for_engine(face)).collect::<BTreeSet<_>>().len() > MOST_FACES
}

/// Whether what this face shows beside its engine was seen with so many engines that one more tells nothing.
fn has_many_engines(tables: &Overlay<'_>, evidence: &Evidence, key: &str) -> Result<bool, Fault> {
    if evidence.engine.is_none() {
        return Ok(false);
    }
    let own = but_for_engine(key);
    for shown in evidence.serial.iter().chain(&evidence.mac) {
        let row: KeyRow = tables.row(Table::Keys, shown.as_bytes())?.unwrap_or_default();
        if row.faces.iter().filter(|face| but_for_engine(face) == own).count() >= MOST_ENGINES {
            return Ok(true);
        }
    }
    Ok(false)
}

fn see(face: &mut FaceRow, node: u64, place: &Place<'_>, reading: &Reading) {
    if place.at_ms >= face.last_ms {
        face.model = reading.facts.model.as_deref().map(plain_model).unwrap_or_default();
        face.name = reading.facts.name.clone().unwrap_or_default();
        place.zone.clone_into(&mut face.zone);
        place.address.clone_into(&mut face.address);
        face.node = node;
        let from = |field: &str| {
            let from = reading.sources.get(field)?.clone();
            Some(Provenance { field: field.to_owned(), from })
        };
        face.provenance = ["serial", "mac"].into_iter().filter_map(from).collect();
    }
    face.first_ms = face.first_ms.min(place.at_ms);
    face.last_ms = face.last_ms.max(place.at_ms);
    if let Some(total) = reading.counters.total {
        face.low = Some(face.low.map_or(total, |low| low.min(total)));
        face.high = Some(face.high.map_or(total, |high| high.max(total)));
    }
}

/// Who lived at the address without ever telling who it is now tells it, where that is nobody who is known
/// already. True when it does.
fn adopt(tables: &mut Overlay<'_>, key: &str, address: &str) -> Result<bool, Fault> {
    let face: FaceRow = tables.row(Table::Faces, key.as_bytes())?.unwrap_or_default();
    let own: Option<DeviceRow> = tables.row(Table::Devices, face.device.as_bytes())?;
    let Some(id) = tenant(tables, address)?.filter(|_| own.is_some_and(|own| own.faces.len() == 1)) else {
        return Ok(false);
    };
    let Some(device) = tables.row::<DeviceRow>(Table::Devices, id.as_bytes())? else { return Ok(false) };
    let [only] = &device.faces[..] else { return Ok(false) };
    let Some(mut weak) = tables.row::<FaceRow>(Table::Faces, only.as_bytes())? else { return Ok(false) };
    let told = weak.serial.is_some() || weak.mac.is_some() || weak.engine.is_some();
    if told || !models_agree(&weak.model, &face.model) {
        return Ok(false);
    }
    weak.attached = Some(key.to_owned());
    tables.put(Table::Faces, only.as_bytes(), &weak);
    let became = became(key);
    let mut row: KeyRow = tables.row(Table::Keys, became.as_bytes())?.unwrap_or_default();
    row.faces.push(only.clone());
    tables.put(Table::Keys, became.as_bytes(), &row);
    Ok(true)
}

pub(crate) fn became(face: &str) -> String {
    format!("became:{face}")
}

/// Whoever lives at the address, where the model does not speak against it; its reading counts as one of
/// the face that was seen there last.
fn neighbour(
    tables: &Overlay<'_>,
    address: &str,
    reading: &Reading,
) -> Result<Option<(DeviceRow, String)>, Fault> {
    let Some(id) = tenant(tables, address)? else { return Ok(None) };
    let Some(device) = tables.row::<DeviceRow>(Table::Devices, id.as_bytes())? else { return Ok(None) };
    let Some(home) = device.faces.first().cloned() else { return Ok(None) };
    let face: FaceRow = tables.row(Table::Faces, home.as_bytes())?.unwrap_or_default();
    let model = reading.facts.model.as_deref().map(plain_model).unwrap_or_default();
    Ok(models_agree(&face.model, &model).then_some((device, home)))
}

/// A device of which nothing is known but where it lives and what it looks like.
fn weak(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    clerk: &mut Clerk,
    (node, place): (u64, &Place<'_>),
    reading: &Reading,
) -> Result<String, Fault> {
    let (index, ordinal) = clerk.next();
    let mut face = FaceRow {
        key: format!("{}#{index}.{ordinal}", address_key(place.zone, place.address)),
        first_ms: place.at_ms,
        ..FaceRow::default()
    };
    see(&mut face, node, place, reading);
    let key = face.key.clone();
    tables.put(Table::Faces, key.as_bytes(), &face);
    work_out(tables, meta, clerk, std::slice::from_ref(&key))?;
    Ok(key)
}

/// Works out the devices around some faces and moves rows, counts and the review list to the result.
pub(crate) fn work_out(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    clerk: &mut Clerk,
    around: &[String],
) -> Result<(), Fault> {
    let decisions: Vec<DecisionRow> = tables.all(Table::Decisions, &[])?;
    let closure = Closure::around(tables, around, &decisions)?;
    let faces: Vec<Face> = closure.faces.values().map(|row| closure.face(row)).collect();
    let decisions: Vec<Decision> = decisions.iter().map(decision).collect();
    let resolution = identity::resolve(&faces, &decisions);
    let rows: Vec<FaceRow> = closure.faces.into_values().collect();
    let groups: Vec<Vec<FaceRow>> =
        resolution.devices.iter().map(|members| members.iter().map(|n| rows[*n].clone()).collect()).collect();
    let moved = carry_out(tables, meta, clerk, groups)?;
    review(tables, clerk, &closure.keys, &resolution.doubts, &rows, &moved)
}

fn decision(row: &DecisionRow) -> Decision {
    match row {
        DecisionRow { settled, .. } if !settled.is_empty() => Decision::Settled(settled.clone()),
        DecisionRow { apart, one, .. } if !apart.is_empty() => Decision::Apart(one.clone(), apart.clone()),
        DecisionRow { one, other, .. } => Decision::Same(one.clone(), other.clone()),
    }
}

/// Every face that may matter for some of them.
#[derive(Default)]
struct Closure {
    faces: BTreeMap<String, FaceRow>,
    common: BTreeSet<String>,
    keys: BTreeSet<String>,
}

impl Closure {
    fn around(tables: &Overlay<'_>, around: &[String], decisions: &[DecisionRow]) -> Result<Self, Fault> {
        let mut closure = Closure::default();
        let mut queue: Vec<String> = around.to_vec();
        while let Some(key) = queue.pop() {
            if closure.faces.contains_key(&key) || closure.faces.len() >= MOST_TOGETHER {
                continue;
            }
            let Some(face) = tables.row::<FaceRow>(Table::Faces, key.as_bytes())? else { continue };
            let own = [&face.serial, &face.mac, &face.engine].into_iter().flatten().cloned();
            for evidence in own.chain([became(&key)]) {
                if !closure.keys.insert(evidence.clone()) {
                    continue;
                }
                let row: KeyRow = tables.row(Table::Keys, evidence.as_bytes())?.unwrap_or_default();
                match row.common {
                    true => drop(closure.common.insert(evidence)),
                    false => queue.extend(row.faces),
                }
            }
            queue.extend(face.attached.clone());
            for decision in decisions {
                let other = [(&decision.one, &decision.other), (&decision.other, &decision.one)];
                queue.extend(other.into_iter().filter(|(one, _)| **one == key).map(|(_, it)| it.clone()));
            }
            // Devices as they are now come whole.
            if !face.device.is_empty() {
                let device: Option<DeviceRow> = tables.row(Table::Devices, face.device.as_bytes())?;
                queue.extend(device.into_iter().flat_map(|device| device.faces));
            }
            closure.faces.insert(key, face);
        }
        Ok(closure)
    }

    fn face(&self, row: &FaceRow) -> Face {
        let common = [&row.serial, &row.mac, &row.engine];
        Face {
            key: row.key.clone(),
            serial: row.serial.clone(),
            vendor: row.vendor.clone(),
            mac: row.mac.clone(),
            engine: row.engine.clone(),
            model: row.model.clone(),
            seen: (row.first_ms, row.last_ms),
            total: row.low.zip(row.high),
            common: common.into_iter().flatten().filter(|key| self.common.contains(*key)).cloned().collect(),
            attached: row.attached.clone(),
        }
    }
}

/// Gives each group its id and its row; answers the device of every face that moved or was new.
fn carry_out(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    clerk: &mut Clerk,
    mut groups: Vec<Vec<FaceRow>>,
) -> Result<BTreeMap<String, String>, Fault> {
    let mut ids: Vec<String> = Vec::new();
    for group in &mut groups {
        ids.push(id_of(meta, clerk, group));
    }
    let mut devices = BTreeMap::new();
    for (group, id) in groups.iter().zip(&ids) {
        devices.extend(group.iter().map(|face| (face.key.clone(), id.clone())));
    }
    let changes = |(group, id): &(&Vec<FaceRow>, &String)| group.iter().any(|face| face.device != **id);
    let changed: Vec<(&Vec<FaceRow>, &String)> = groups.iter().zip(&ids).filter(changes).collect();
    if changed.is_empty() {
        return Ok(devices);
    }
    // Whose rows change: the devices that gain faces, and those that lose some.
    let mut touched: BTreeSet<String> = changed.iter().map(|(_, id)| (*id).clone()).collect();
    for (group, _) in &changed {
        touched.extend(group.iter().map(|face| face.device.clone()).filter(|id| !id.is_empty()));
    }
    let mut before: BTreeMap<String, DeviceRow> = BTreeMap::new();
    for id in &touched {
        if let Some(row) = tables.row::<DeviceRow>(Table::Devices, id.as_bytes())? {
            before.insert(id.clone(), row);
        }
    }
    let mut after = Vec::new();
    let mut told = Vec::new();
    for (group, id) in groups.iter_mut().zip(&ids).filter(|(_, id)| touched.contains(id.as_str())) {
        for face in group.iter_mut() {
            // The row of a device is that of its latest reading: that face takes it along.
            let home = before.get(&face.device).filter(|row| row.faces.first() == Some(&face.key));
            if let Some(row) = home {
                face.latest = Some(bare(row));
            }
        }
        let gained = group.iter().any(|face| !face.device.is_empty() && face.device != *id);
        for face in group.iter_mut() {
            if !face.device.is_empty() && face.device != *id {
                history::rehome(tables, &face.device, id, &face.key)?;
            }
            face.device.clone_from(id);
            tables.put(Table::Faces, face.key.as_bytes(), face);
        }
        let row = derive(tables, id, group)?;
        crate::typed::inherits(tables, meta, &row)?;
        if gained {
            told.push(row.id.clone());
        }
        after.push(row);
    }
    exchange(tables, meta, &before, after)?;
    let gone = before.keys().filter(|id| !ids.contains(id)).cloned();
    for (id, gone) in told.into_iter().map(|id| (id, false)).chain(gone.map(|id| (id, true))) {
        news::of_device(tables, meta, &id, gone.then(|| before.get(&id)).flatten())?;
    }
    Ok(devices)
}

/// The oldest id that was minted for a face of it, else a new one.
fn id_of(meta: &Meta, clerk: &mut Clerk, group: &mut [FaceRow]) -> String {
    let oldest = group.iter().filter(|face| !face.born.is_empty());
    if let Some(face) = oldest.min_by_key(|face| (face.born_index, face.born_ordinal)) {
        return face.born.clone();
    }
    let salt = meta.cluster_id.first_chunk::<8>().map_or(0, |octets| u64::from_be_bytes(*octets));
    let (index, ordinal) = clerk.next();
    let id = DeviceId::mint(salt, index, ordinal).to_string();
    if let Some(founder) = group.iter_mut().min_by_key(|face| face.first_ms) {
        (founder.born, founder.born_index, founder.born_ordinal) = (id.clone(), index, u32::from(ordinal));
    }
    id
}

/// A row without what the faces of its device give it.
pub(crate) fn bare(row: &DeviceRow) -> DeviceRow {
    DeviceRow { id: String::new(), faces: Vec::new(), evidence: Vec::new(), typed: Vec::new(), ..row.clone() }
}

/// Keeps the device's row as of this face's latest reading; one that is not the device's latest counts only
/// where it is the face's.
pub(crate) fn remember(
    tables: &mut Overlay<'_>,
    face: &str,
    latest: DeviceRow,
    newest: bool,
) -> Result<(), Fault> {
    let Some(mut row) = tables.row::<FaceRow>(Table::Faces, face.as_bytes())? else { return Ok(()) };
    if newest || row.latest.as_ref().is_none_or(|before| before.metered_at_ms <= latest.metered_at_ms) {
        row.latest = Some(latest);
        tables.put(Table::Faces, face.as_bytes(), &row);
    }
    Ok(())
}

fn derive(tables: &Overlay<'_>, id: &str, group: &[FaceRow]) -> Result<DeviceRow, Fault> {
    let metered = |face: &FaceRow| face.latest.as_ref().map_or(0, |row| row.metered_at_ms);
    let mut order: Vec<&FaceRow> = group.iter().collect();
    order.sort_by(|a, b| (metered(b), &a.key).cmp(&(metered(a), &b.key)));
    let mut row = order.first().and_then(|face| face.latest.clone()).unwrap_or_default();
    id.clone_into(&mut row.id);
    row.faces = order.iter().map(|face| face.key.clone()).collect();
    row.first_seen_ms = group.iter().map(|face| face.first_ms).min().unwrap_or(0);
    row.last_seen_ms = group.iter().map(|face| face.last_ms).max().unwrap_or(0).max(row.last_seen_ms);
    row.typed = crate::typed::of_group(tables, id, group)?;
    for key in group.iter().flat_map(|face| [&face.serial, &face.mac, &face.engine]).flatten() {
        if !row.evidence.contains(key) {
            row.evidence.push(key.clone());
        }
    }
    row.evidence.sort();
    Ok(row)
}

/// Puts the new rows in the place of the old ones, with their homes and the counts that follow.
fn exchange(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    before: &BTreeMap<String, DeviceRow>,
    mut after: Vec<DeviceRow>,
) -> Result<(), Fault> {
    for (id, row) in before {
        for key in row.evidence.iter().filter(|key| key.starts_with("address:")) {
            if tenant(tables, key)?.as_deref() == Some(id.as_str()) {
                vacate(tables, key, row.metered_at_ms)?;
            }
        }
        count_in_unit(tables, &row.unit, -1)?;
        tables.delete(Table::Devices, id.as_bytes());
        meta.expired -= u64::from(row.expired_at_ms > 0 && meta.expired > 0);
    }
    meta.devices = (meta.devices + after.len() as u64).saturating_sub(before.len() as u64);
    // Whoever was seen last at an address lives there.
    after.sort_by(|a, b| (b.metered_at_ms, &a.id).cmp(&(a.metered_at_ms, &b.id)));
    for mut row in after {
        let key = address_key(&row.zone, &row.address);
        if !row.address.is_empty() {
            if tenant(tables, &key)?.is_none() && left_at(tables, &key)? <= row.metered_at_ms {
                let id = Bytes::copy_from_slice(row.id.as_bytes());
                tables.put_bytes(Table::Evidence, key.as_bytes(), id);
                tables.delete(Table::Keys, key.as_bytes());
                row.evidence.push(key);
                row.evidence.sort();
            } else {
                row.address.clear();
                expiry::loses_unit(tables, meta, &mut row)?;
                row.unit.clear();
            }
        }
        count_in_unit(tables, &row.unit, 1)?;
        meta.expired += u64::from(row.expired_at_ms > 0);
        tables.put(Table::Devices, row.id.as_bytes(), &row);
    }
    Ok(())
}

/// Brings the review list to what is doubtful now about these keys.
fn review(
    tables: &mut Overlay<'_>,
    clerk: &Clerk,
    keys: &BTreeSet<String>,
    doubts: &[Doubt],
    faces: &[FaceRow],
    devices: &BTreeMap<String, String>,
) -> Result<(), Fault> {
    for id in keys.iter().flat_map(|key| identity::doubt_ids(key)) {
        let before: Option<ReviewRow> = tables.row(Table::Review, id.as_bytes())?;
        let Some(doubt) = doubts.iter().find(|doubt| doubt.id == id) else {
            if before.is_some() {
                tables.delete(Table::Review, id.as_bytes());
            }
            continue;
        };
        let about: Vec<&FaceRow> = doubt.faces.iter().map(|n| &faces[*n]).collect();
        let candidates: BTreeSet<&String> = about.iter().filter_map(|face| devices.get(&face.key)).collect();
        let shown = about.iter().flat_map(|face| [&face.serial, &face.mac, &face.engine]).flatten();
        let row = ReviewRow {
            id: id.clone(),
            what: doubt.what.clone(),
            why: doubt.why.clone(),
            devices: candidates.into_iter().cloned().collect(),
            evidence: shown.cloned().collect::<BTreeSet<_>>().into_iter().collect(),
            since_ms: before.as_ref().map_or(clerk.at_ms, |row| row.since_ms),
        };
        if before.as_ref() != Some(&row) {
            tables.put(Table::Review, id.as_bytes(), &row);
        }
    }
    Ok(())
}
