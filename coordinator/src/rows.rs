//! Keys and typed rows of the tables: what everybody reads, and what `state` and `record` write.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use ipnet::IpNet;
use quire_proto::id::{DeviceId, NodeId, UnitId};
use quire_proto::store::{DeviceRow, Member, Meta, ReachRow, RouterRow, ScriptRow, SegmentRow, UnitRow};

use crate::tables::{Fault, Overlay, Read, ReadExt, Table, after};

/// The one key of [`Table::Meta`].
const META: &[u8] = b"meta";

/// Misses in a row before a device counts as offline; one miss never does.
pub const OFFLINE_AFTER: u32 = 2;

/// Milliseconds of a day.
pub const DAY_MS: u64 = 24 * 3_600_000;

/// The day of a moment, counted from 1 January 1970, UTC.
pub fn day(at_ms: u64) -> u64 {
    at_ms / DAY_MS
}

/// The last millisecond of a day.
pub(crate) fn day_end(day: u64) -> u64 {
    day.saturating_mul(DAY_MS).saturating_add(DAY_MS - 1)
}

/// The key of a node in [`Table::Members`] and [`Table::Recorded`], and of a number in
/// [`Table::Outbox`] and [`Table::Audit`].
pub fn number_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The key of a reading: by time, then by name.
pub fn reading_key(at_ms: u64, id: &str) -> Vec<u8> {
    [&at_ms.to_be_bytes(), id.as_bytes()].concat()
}

/// The key of a device in [`Table::Places`]: devices of a zone stand in the order of their addresses, those that
/// live nowhere behind them.
pub fn place_key(zone: &str, address: &str, id: &str) -> Vec<u8> {
    let mut key = zone_key(zone);
    match address.parse::<SocketAddr>() {
        Ok(at) => {
            key.extend(ip_key(at.ip()));
            key.extend(at.port().to_be_bytes());
        }
        Err(_) => key.push(u8::MAX),
    }
    key.extend(id.as_bytes());
    key
}

fn zone_key(zone: &str) -> Vec<u8> {
    [zone.as_bytes(), &[0]].concat()
}

fn ip_key(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => [&[4], &ip.octets()[..]].concat(),
        IpAddr::V6(ip) => [&[6], &ip.octets()[..]].concat(),
    }
}

/// The devices that live in a prefix of a zone, by address: reads these alone. `visit` returns false to stop.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn devices_in(
    tables: &(impl Read + ?Sized),
    zone: &str,
    prefix: IpNet,
    mut visit: impl FnMut(DeviceRow) -> bool,
) -> Result<(), Fault> {
    let bound = |ip: IpAddr| [zone_key(zone), ip_key(ip)].concat();
    let (mut from, last) = (bound(prefix.network()), bound(prefix.broadcast()));
    loop {
        let page = tables.range(Table::Places, &from, PAGE)?;
        let full = page.len() == PAGE;
        for (key, id) in page {
            if key[..] > last[..] && !key.starts_with(&last) {
                return Ok(());
            }
            if let Some(row) = tables.row(Table::Devices, &id)?
                && !visit(row)
            {
                return Ok(());
            }
            from = after(&key);
        }
        if !full {
            return Ok(());
        }
    }
}

/// Keys fetched at a time.
const PAGE: usize = 256;

/// The key of one node's way to one segment.
pub fn reach_key(node: NodeId, segment: &str) -> Vec<u8> {
    [&node.0.to_be_bytes(), segment.as_bytes()].concat()
}

/// Singletons; all empty before the first entry.
///
/// # Errors
/// When the store fails or the row is damaged.
pub fn meta(tables: &(impl Read + ?Sized)) -> Result<Meta, Fault> {
    Ok(tables.row(Table::Meta, META)?.unwrap_or_default())
}

pub(crate) fn put_meta(tables: &mut Overlay<'_>, meta: &Meta) {
    tables.put(Table::Meta, META, meta);
}

/// All members, by id.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn members(tables: &(impl Read + ?Sized)) -> Result<Vec<Member>, Fault> {
    tables.all(Table::Members, &[])
}

/// One member.
///
/// # Errors
/// When the store fails or the row is damaged.
pub fn member(tables: &(impl Read + ?Sized), id: NodeId) -> Result<Option<Member>, Fault> {
    tables.row(Table::Members, &number_key(id.0))
}

/// All units, by id.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn units(tables: &(impl Read + ?Sized)) -> Result<Vec<UnitRow>, Fault> {
    tables.all(Table::Units, &[])
}

/// One unit.
///
/// # Errors
/// When the store fails or the row is damaged.
pub fn unit(tables: &(impl Read + ?Sized), id: &UnitId) -> Result<Option<UnitRow>, Fault> {
    tables.row(Table::Units, id.as_str().as_bytes())
}

/// One device.
///
/// # Errors
/// When the store fails or the row is damaged.
pub fn device(tables: &(impl Read + ?Sized), id: &DeviceId) -> Result<Option<DeviceRow>, Fault> {
    tables.row(Table::Devices, id.as_str().as_bytes())
}

/// Every node's measured ways.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn reaches(tables: &(impl Read + ?Sized)) -> Result<Vec<ReachRow>, Fault> {
    tables.all(Table::Reach, &[])
}

/// The key of a node's own surroundings in [`Table::Routers`].
pub fn surroundings_key(node: NodeId) -> Vec<u8> {
    [b"n", &node.0.to_be_bytes()[..]].concat()
}

/// The key of a router in [`Table::Routers`].
pub fn router_key(zone: &str, address: &str) -> Vec<u8> {
    [b"r", zone.as_bytes(), &[0], address.as_bytes()].concat()
}

/// The key of a found segment in [`Table::Segments`].
pub fn segment_key(zone: &str, prefix: &str) -> Vec<u8> {
    [zone.as_bytes(), &[0], prefix.as_bytes()].concat()
}

/// Every node's surroundings and every router that was asked.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn routers(tables: &(impl Read + ?Sized)) -> Result<Vec<RouterRow>, Fault> {
    tables.all(Table::Routers, &[])
}

/// Every segment that nodes found, by zone.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn segments(tables: &(impl Read + ?Sized)) -> Result<Vec<SegmentRow>, Fault> {
    tables.all(Table::Segments, &[])
}

/// The profiles that were put, by name.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn scripts(tables: &(impl Read + ?Sized)) -> Result<Vec<ScriptRow>, Fault> {
    tables.all(Table::Scripts, &[])
}

/// The highest observation number of a node that is kept; 0 before the first.
///
/// # Errors
/// When the store fails.
pub fn recorded_through(tables: &(impl Read + ?Sized), node: NodeId) -> Result<u64, Fault> {
    let stored = tables.get(Table::Recorded, &number_key(node.0))?;
    Ok(stored.and_then(|octets| octets.as_ref().try_into().ok()).map_or(0, u64::from_be_bytes))
}

pub(crate) fn put_recorded_through(tables: &mut Overlay<'_>, node: NodeId, seq: u64) {
    tables.put_bytes(Table::Recorded, &number_key(node.0), Bytes::copy_from_slice(&seq.to_be_bytes()));
}
