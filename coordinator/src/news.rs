//! What the others are told: events of devices for the site's people, identity for the Web Admin.

use quire_proto::store::{DeviceNews, DeviceRow, EventRow, Meta};

use crate::tables::{Fault, Overlay, Read as _, ReadExt as _, Table};
use crate::{backlog, record};

/// Events older than this go: a quarter, so that a billing period can be looked into.
const KEEP_MS: u64 = 92 * 24 * 3_600_000;

/// Old events dropped with one entry of the log.
const DROP_AT_ONCE: usize = 8;

/// Numbers what one entry of the log makes.
pub(crate) struct Clerk {
    pub(crate) index: u64,
    pub(crate) at_ms: u64,
    minted: u16,
    events: u16,
}

impl Clerk {
    pub(crate) fn new(index: u64, at_ms: u64) -> Self {
        Clerk { index, at_ms, minted: 0, events: 0 }
    }

    /// Index and ordinal of the next thing that is minted.
    pub(crate) fn next(&mut self) -> (u64, u16) {
        self.minted = self.minted.saturating_add(1);
        (self.index, self.minted - 1)
    }

    /// Keeps an event.
    pub(crate) fn event(&mut self, tables: &mut Overlay<'_>, event: &EventRow) {
        let key =
            [&event.at_ms.to_be_bytes()[..], &self.index.to_be_bytes(), &self.events.to_be_bytes()].concat();
        self.events = self.events.saturating_add(1);
        tables.put(Table::Events, &key, event);
    }
}

/// Drops a few events that are too old.
pub(crate) fn forget(tables: &mut Overlay<'_>, at_ms: u64) -> Result<(), Fault> {
    let horizon = at_ms.saturating_sub(KEEP_MS).to_be_bytes();
    for (key, _) in tables.range(Table::Events, &[], DROP_AT_ONCE)? {
        if key.as_ref() >= &horizon[..] {
            break;
        }
        tables.delete(Table::Events, &key);
    }
    Ok(())
}

/// Tells the Web Admin all about a device's identity, or that the id of `gone` is nobody's any more.
pub(crate) fn of_device(
    tables: &mut Overlay<'_>,
    meta: &mut Meta,
    id: &str,
    gone: Option<&DeviceRow>,
) -> Result<(), Fault> {
    let row = match gone {
        Some(row) => Some(row.clone()),
        None => tables.row::<DeviceRow>(Table::Devices, id.as_bytes())?,
    };
    let Some(row) = row.filter(|row| !row.hidden && !record::hidden(meta, &row.address)) else {
        return Ok(());
    };
    let news = match gone {
        Some(_) => DeviceNews { device: id.to_owned(), gone: true, ..DeviceNews::default() },
        None => DeviceNews {
            device: id.to_owned(),
            faces: row.faces,
            typed: row.typed,
            expired_at_ms: row.expired_at_ms,
            gone: false,
        },
    };
    backlog::tell(tables, meta, news)
}
