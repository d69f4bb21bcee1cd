//! Devices by where they live: follows whatever a command did to the devices table.
//!
//! Kept here and not where devices are written, so that no new command can forget it.

use bytes::Bytes;
use prost::Message as _;

use crate::glimpse::Home;
use crate::rows::place_key;
use crate::tables::{Fault, Overlay, Read as _, Table};

/// Brings [`Table::Places`] up to date with the devices written since the last call.
pub(crate) fn follow(tables: &mut Overlay<'_>) -> Result<(), Fault> {
    for (id, before) in tables.take_devices()? {
        let after = tables.get(Table::Devices, &id)?;
        let (before, after) = (place(before)?, place(after)?);
        if before == after {
            continue;
        }
        if let Some(key) = before {
            tables.delete(Table::Places, &key);
        }
        if let Some(key) = after {
            tables.put_bytes(Table::Places, &key, id);
        }
    }
    Ok(())
}

fn place(stored: Option<Bytes>) -> Result<Option<Vec<u8>>, Fault> {
    let Some(stored) = stored else { return Ok(None) };
    let row = Home::decode(stored).map_err(|reason| Fault::Damaged { table: Table::Devices, reason })?;
    Ok(Some(place_key(&row.zone, &row.address, &row.id)))
}
