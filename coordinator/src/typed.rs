//! Values that a human typed: name, location and asset of a device. No reading overwrites them.
//!
//! They are kept under the id for which they were typed, so that they come back when a merge is undone.

use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{DeviceRow, FaceRow, Meta, SetDevice, Typed};

use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, Read, ReadExt, Table};
use crate::{backlog, history, news, record, rows, upgrade};

/// What may be typed.
pub const FIELDS: [&str; 3] = ["name", "location", "asset"];

/// What may be taken away beside, by an empty value: the pinned certificate, so that the next one that is met counts.
const CERTIFICATE: &str = "certificate";

/// Longest value, in octets, as of sysLocation (RFC 3418).
const LONGEST: usize = 255;

pub(crate) fn set(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    set: &SetDevice,
) -> Result<Answer, Fault> {
    let Some(mut device) = tables.row::<DeviceRow>(Table::Devices, set.device.as_bytes())? else {
        return Ok(refuse(format!("no device `{}`", set.device)));
    };
    if set.values.is_empty() {
        return Ok(refuse("nothing to set: write location=\"Room 7\""));
    }
    for value in &set.values {
        if value.field == CERTIFICATE && value.value.is_empty() {
            continue;
        }
        if value.field == CERTIFICATE {
            return Ok(refuse(
                "a certificate is pinned when it is met first: write certificate= to forget it",
            ));
        }
        if !FIELDS.contains(&value.field.as_str()) {
            return Ok(refuse(format!("`{}` cannot be typed: use {}", value.field, FIELDS.join(", "))));
        }
        if value.value.len() > LONGEST || value.value.chars().any(char::is_control) {
            return Ok(refuse(format!("{} is longer than {LONGEST} octets or not plain text", value.field)));
        }
    }
    let mut own: SetDevice = tables.row(Table::Typed, set.device.as_bytes())?.unwrap_or_default();
    own.device.clone_from(&set.device);
    let mut said = Vec::new();
    let forgets = set.values.iter().any(|value| value.field == CERTIFICATE);
    if forgets {
        device.certificate.clear();
        said.push("forgot the pinned certificate".to_owned());
    }
    for value in set.values.iter().filter(|value| value.field != CERTIFICATE) {
        let text = value.value.trim();
        // What is cleared stays as an empty value, so that it also covers what a merged device brought along.
        own.values.retain(|known| known.field != value.field);
        own.values.push(Typed { value: text.to_owned(), by: set.by.clone(), at_ms, ..value.clone() });
        said.push(match text {
            "" => format!("cleared {}", value.field),
            text => format!("set {} to `{text}`", value.field),
        });
    }
    tables.put(Table::Typed, set.device.as_bytes(), &own);
    let mut group = Vec::new();
    for face in &device.faces {
        let Some(mut row) = tables.row::<FaceRow>(Table::Faces, face.as_bytes())? else { continue };
        // A face remembers the device's row, with what was pinned then.
        if let Some(latest) = row.latest.as_mut().filter(|_| forgets) {
            latest.certificate.clear();
            tables.put(Table::Faces, face.as_bytes(), &row);
        }
        group.push(row);
    }
    device.typed = of_group(tables, &device.id, &group)?;
    tables.put(Table::Devices, device.id.as_bytes(), &device);
    let mut meta = rows::meta(tables)?;
    news::of_device(tables, &mut meta, &device.id, None)?;
    rows::put_meta(tables, &meta);
    let what = format!("device {}: {}", device.id, said.join(", "));
    audit(tables, index, at_ms, &set.by, what.clone());
    Ok(Answer::Changes(what))
}

/// A Web Admin that is new is told of what was typed, behind the device's last reading: it keeps nothing about devices
/// that it never heard of, and a reading that it has it knows by its id. Some 2 KB for each device with typed values.
pub(crate) fn tell_all(tables: &mut Overlay<'_>, meta: &mut Meta) -> Result<(), Fault> {
    if meta.cluster_version < upgrade::TYPED_TOLD {
        return Ok(());
    }
    let all: Vec<SetDevice> = tables.all(Table::Typed, &[])?;
    for own in all {
        let device: Option<DeviceRow> = tables.row(Table::Devices, own.device.as_bytes())?;
        let shown = |row: &DeviceRow| !row.hidden && !record::hidden(meta, &row.address);
        let Some(device) = device.filter(|row| !row.typed.is_empty() && shown(row)) else { continue };
        for reading in history::of_device(tables, &device.id, 1)? {
            if !record::hidden(meta, &reading.address) {
                backlog::put(tables, meta, reading, &device.zone, device.first_seen_ms)?;
            }
        }
        news::of_device(tables, meta, &device.id, None)?;
    }
    Ok(())
}

/// A device that got typed values by a merge alone has a row of its own, too, so that [`tell_all`] finds it without
/// looking through all devices.
pub(crate) fn inherits(tables: &mut Overlay<'_>, meta: &Meta, device: &DeviceRow) -> Result<(), Fault> {
    if meta.cluster_version >= upgrade::TYPED_TOLD
        && !device.typed.is_empty()
        && tables.get(Table::Typed, device.id.as_bytes())?.is_none()
    {
        let own = SetDevice { device: device.id.clone(), ..SetDevice::default() };
        tables.put(Table::Typed, device.id.as_bytes(), &own);
    }
    Ok(())
}

/// What was typed for a device: its own first, then what was typed for devices that are merged into it.
pub(crate) fn of_group(
    tables: &(impl Read + ?Sized),
    id: &str,
    group: &[FaceRow],
) -> Result<Vec<Typed>, Fault> {
    let mut born: Vec<&FaceRow> = group.iter().filter(|face| !face.born.is_empty()).collect();
    born.sort_by_key(|face| (face.born != id, face.born_index, face.born_ordinal));
    let mut typed: Vec<Typed> = Vec::new();
    for face in born {
        let own: SetDevice = tables.row(Table::Typed, face.born.as_bytes())?.unwrap_or_default();
        for value in own.values {
            if !typed.iter().any(|known| known.field == value.field) {
                typed.push(value);
            }
        }
    }
    typed.retain(|value| !value.value.is_empty());
    typed.sort_by(|a, b| a.field.cmp(&b.field));
    Ok(typed)
}
