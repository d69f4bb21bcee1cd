//! Keys and typed rows of the tables: what everybody reads, and what `state` and `record` write.

use bytes::Bytes;
use quire_proto::id::{DeviceId, NodeId, UnitId};
use quire_proto::store::{DeviceRow, Member, Meta, ReachRow, ScriptRow, UnitRow};

use crate::tables::{Fault, Overlay, Read, ReadExt, Table};

/// The one key of [`Table::Meta`].
const META: &[u8] = b"meta";

/// The key of a node in [`Table::Members`] and [`Table::Recorded`], and of a number in
/// [`Table::Outbox`] and [`Table::Audit`].
pub fn number_key(number: u64) -> [u8; 8] {
    number.to_be_bytes()
}

/// The key of a reading: by time, then by name.
pub fn reading_key(at_ms: u64, id: &str) -> Vec<u8> {
    [&at_ms.to_be_bytes(), id.as_bytes()].concat()
}

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
