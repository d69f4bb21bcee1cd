//! Who lives at which address: whoever was seen there last, as far as the times of the readings say.
//!
//! An address in its zone is weak evidence. Where a device was before, whoever moves in is somebody else; a
//! reading that comes late moves nobody who was seen there later. Where several devices answer at one address in turn, as
//! behind a print server, the one that answered last lives there and the others keep the address in their lists.

use bytes::Bytes;
use quire_proto::store::{DeviceRow, KeyRow, UnitRow};

use crate::evidence::address_key;
use crate::expiry;
use crate::record::AHEAD_MS;
use crate::rows;
use crate::tables::{Fault, Overlay, Read, ReadExt, Table};

/// Addresses that a device row remembers, newest first.
const MAX_ADDRESSES: usize = 8;

/// Where a reading was made.
pub(crate) struct Place<'p> {
    pub(crate) zone: &'p str,
    pub(crate) unit: &'p str,
    pub(crate) address: &'p str,
    pub(crate) at_ms: u64,
    /// The leader's time, by which times of rows are bounded; the end of time where they are not.
    pub(crate) led_ms: u64,
}

/// A row's time as far as it can be so: what lies in the leader's future was written while a calendar was ahead. It counts
/// as of shortly ago, so that whatever is read now comes after it.
pub(crate) fn bounded(ms: u64, led_ms: u64) -> u64 {
    if ms > led_ms.saturating_add(AHEAD_MS) { led_ms.saturating_sub(AHEAD_MS) } else { ms }
}

/// The id of whoever lives under a key.
pub(crate) fn tenant(tables: &(impl Read + ?Sized), key: &str) -> Result<Option<String>, Fault> {
    let stored = tables.get(Table::Evidence, key.as_bytes())?;
    Ok(stored.map(|id| String::from_utf8_lossy(&id).into_owned()))
}

/// Moves a device to where its latest reading was made. Call before the row's time is set to it.
pub(crate) fn settle(
    tables: &mut Overlay<'_>,
    device: &mut DeviceRow,
    place: &Place<'_>,
) -> Result<(), Fault> {
    let key = address_key(place.zone, place.address);
    leave(tables, device, &key)?;
    place.zone.clone_into(&mut device.zone);
    device.addresses.retain(|address| address != place.address);
    device.addresses.insert(0, place.address.to_owned());
    device.addresses.truncate(MAX_ADDRESSES);
    let lives = moves_in(tables, device, &key, place)?;
    let unit = if lives { place.unit } else { "" };
    if device.unit != unit {
        count_in_unit(tables, &device.unit, -1)?;
        count_in_unit(tables, unit, 1)?;
        unit.clone_into(&mut device.unit);
    }
    if lives {
        place.address.clone_into(&mut device.address);
        if !device.evidence.contains(&key) {
            device.evidence.push(key);
            device.evidence.sort();
        }
    } else {
        device.address.clear();
        device.evidence.retain(|known| *known != key);
    }
    Ok(())
}

/// A reading that is not the device's latest: it no longer lives there, and neither does whoever was seen
/// there before it.
pub(crate) fn visited(tables: &mut Overlay<'_>, device: &DeviceRow, place: &Place<'_>) -> Result<(), Fault> {
    let key = address_key(place.zone, place.address);
    match tenant(tables, &key)? {
        Some(other) if other != device.id => {
            if let Some(row) = tables.row::<DeviceRow>(Table::Devices, other.as_bytes())?
                && bounded(row.metered_at_ms, place.led_ms) < place.at_ms
            {
                dislodge(tables, row, &key)?;
                vacate(tables, &key, place.at_ms)?;
            }
            Ok(())
        }
        Some(_) => Ok(()),
        None => vacate(tables, &key, place.at_ms),
    }
}

/// True when the device now lives under `key`; whoever did before is moved out.
fn moves_in(
    tables: &mut Overlay<'_>,
    device: &DeviceRow,
    key: &str,
    place: &Place<'_>,
) -> Result<bool, Fault> {
    match tenant(tables, key)? {
        Some(id) if id == device.id => return Ok(true),
        Some(other) => {
            let row: Option<DeviceRow> = tables.row(Table::Devices, other.as_bytes())?;
            if let Some(row) = row {
                if bounded(row.metered_at_ms, place.led_ms) > place.at_ms {
                    return Ok(false);
                }
                dislodge(tables, row, key)?;
            }
        }
        None => {
            if bounded(left_at(tables, key)?, place.led_ms) > place.at_ms {
                return Ok(false);
            }
            tables.delete(Table::Keys, key.as_bytes());
        }
    }
    tables.put_bytes(Table::Evidence, key.as_bytes(), Bytes::copy_from_slice(device.id.as_bytes()));
    Ok(true)
}

/// When a device was last seen under a key where nobody lives now; 0 for never.
pub(crate) fn left_at(tables: &Overlay<'_>, key: &str) -> Result<u64, Fault> {
    Ok(tables.row::<KeyRow>(Table::Keys, key.as_bytes())?.map_or(0, |row| row.left_ms))
}

/// Leaves every address but the one under `stays`.
fn leave(tables: &mut Overlay<'_>, device: &mut DeviceRow, stays: &str) -> Result<(), Fault> {
    let (left, kept): (Vec<String>, Vec<String>) = std::mem::take(&mut device.evidence)
        .into_iter()
        .partition(|key| key.starts_with("address:") && key != stays);
    device.evidence = kept;
    for key in left {
        if tenant(tables, &key)?.as_deref() == Some(device.id.as_str()) {
            vacate(tables, &key, device.metered_at_ms)?;
        }
    }
    Ok(())
}

/// Nobody lives there now, and nobody who was seen there before this time does.
pub(crate) fn vacate(tables: &mut Overlay<'_>, key: &str, at_ms: u64) -> Result<(), Fault> {
    tables.delete(Table::Evidence, key.as_bytes());
    if at_ms > left_at(tables, key)? {
        tables.put(Table::Keys, key.as_bytes(), &KeyRow { left_ms: at_ms, ..KeyRow::default() });
    }
    Ok(())
}

/// Another device was seen at its address: it keeps its id and history and is found again elsewhere.
fn dislodge(tables: &mut Overlay<'_>, mut device: DeviceRow, key: &str) -> Result<(), Fault> {
    device.evidence.retain(|known| known != key);
    device.address.clear();
    expiry::loses_unit(tables, &rows::meta(tables)?, &mut device)?;
    count_in_unit(tables, &device.unit, -1)?;
    device.unit.clear();
    tables.put(Table::Devices, device.id.as_bytes(), &device);
    Ok(())
}

pub(crate) fn count_in_unit(tables: &mut Overlay<'_>, unit: &str, by: i32) -> Result<(), Fault> {
    if unit.is_empty() {
        return Ok(());
    }
    if let Some(mut row) = tables.row::<UnitRow>(Table::Units, unit.as_bytes())? {
        row.devices = row.devices.saturating_add_signed(by);
        tables.put(Table::Units, unit.as_bytes(), &row);
    }
    Ok(())
}
