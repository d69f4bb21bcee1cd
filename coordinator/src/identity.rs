//! Which device is this? Evidence links observations to an opaque id that was minted once.
//!
//! A serial number or a hardware address is strong evidence, a socket address in its zone is weak: it
//! says who lives there now. Strong evidence links, contradicting strong evidence splits, junk never
//! counts. Every key that points to a device is kept in its row, so that a merge can be taken back.

use quire_proto::address::Mac;
use quire_proto::id::DeviceId;
use quire_proto::reading::Facts;
use quire_proto::store::DeviceRow;

use crate::tables::{Fault, Read, ReadExt, Table};

/// What an observation says about who was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// `s:VENDOR:SERIAL`.
    pub serial: Option<String>,
    /// `m:MAC`.
    pub mac: Option<String>,
    /// `a:ZONE/ADDRESS:PORT`.
    pub address: String,
}

impl Evidence {
    /// From what a device says about itself and where it was seen.
    pub fn new(facts: &Facts, zone: &str, address: &str) -> Self {
        let vendor = facts.vendor.as_deref().unwrap_or("?");
        Evidence {
            serial: facts.serial.as_deref().and_then(serial).map(|serial| {
                format!("s:{}:{serial}", vendor.split_whitespace().next().unwrap_or("?").to_ascii_lowercase())
            }),
            mac: facts.mac.and_then(mac).map(|mac| format!("m:{mac}")),
            address: format!("a:{zone}/{address}"),
        }
    }

    /// All keys, strongest first.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.serial.iter().chain(&self.mac).map(String::as_str).chain(Some(self.address.as_str()))
    }
}

/// A serial number that can tell devices apart: trimmed and in capitals; `None` for the fillers that
/// devices send instead.
pub fn serial(text: &str) -> Option<String> {
    const FILLERS: [&str; 12] = [
        "N/A",
        "NA",
        "NONE",
        "NULL",
        "UNKNOWN",
        "UNDEFINED",
        "NOT AVAILABLE",
        "NOT SET",
        "SERIAL_NUMBER",
        "SERIALNUMBER",
        "DEFAULT",
        "0123456789",
    ];
    let serial = text.trim_matches(|c: char| c.is_whitespace() || c.is_control()).to_uppercase();
    let mut letters = serial.chars().filter(|c| c.is_alphanumeric());
    let first = letters.next()?;
    let all_same = letters.clone().all(|c| c == first);
    let short = letters.count() < 3;
    (!short && !all_same && !FILLERS.contains(&serial.as_str())).then_some(serial)
}

/// A hardware address that belongs to one card: not VRRP's, not HSRP's, not locally made up for all.
fn mac(mac: Mac) -> Option<Mac> {
    let octets = mac.octets();
    // RFC 5798 section 7.3 (VRRP) and the address block of HSRP.
    let shared =
        octets.starts_with(&[0x00, 0x00, 0x5e, 0x00, 0x01]) || octets.starts_with(&[0, 0, 0x0c, 7, 0xac]);
    (!shared).then_some(mac)
}

/// The device that the evidence points to, if one is known.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn find(
    tables: &(impl Read + ?Sized),
    evidence: &Evidence,
    facts: &Facts,
) -> Result<Option<DeviceRow>, Fault> {
    if let Some(key) = &evidence.serial
        && let Some(device) = pointed(tables, key)?
    {
        return Ok(Some(device));
    }
    if let Some(key) = &evidence.mac
        && let Some(device) = pointed(tables, key)?
        && !contradicts(&device, "s:", evidence.serial.as_deref())
    {
        return Ok(Some(device));
    }
    let Some(neighbour) = pointed(tables, &evidence.address)? else { return Ok(None) };
    let other_serial = contradicts(&neighbour, "s:", evidence.serial.as_deref());
    let other_mac = contradicts(&neighbour, "m:", evidence.mac.as_deref());
    let nothing_strong = evidence.serial.is_none() && evidence.mac.is_none();
    let other_model = nothing_strong && !same_model(&neighbour, facts);
    Ok((!other_serial && !other_mac && !other_model).then_some(neighbour))
}

fn pointed(tables: &(impl Read + ?Sized), key: &str) -> Result<Option<DeviceRow>, Fault> {
    match tables.get(Table::Evidence, key.as_bytes())? {
        Some(id) => tables.row(Table::Devices, &id),
        None => Ok(None),
    }
}

/// True when both sides have evidence of this kind and none of it agrees.
fn contradicts(device: &DeviceRow, kind: &str, seen: Option<&str>) -> bool {
    let Some(seen) = seen else { return false };
    let mut known = device.evidence.iter().filter(|key| key.starts_with(kind)).peekable();
    known.peek().is_some() && known.all(|key| key != seen)
}

fn same_model(device: &DeviceRow, facts: &Facts) -> bool {
    let Ok(known) = quire_proto::convert::decode(&device.reading) else { return false };
    match (&known.facts.model, &facts.model) {
        (Some(known), Some(seen)) => known == seen,
        _ => true,
    }
}

/// An id for a device outside any cluster: the same evidence gives the same id.
pub fn standalone_id(facts: &Facts, address: &str) -> DeviceId {
    let evidence = Evidence::new(facts, "", address);
    let strongest = evidence.keys().next().unwrap_or_default().to_owned();
    DeviceId::from_evidence(&strongest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fillers_are_no_serials() {
        for junk in ["", " ", "0000000000", "XXXXXXXX", "N/A", "unknown", "12", "----", "serial_number"] {
            assert_eq!(serial(junk), None, "{junk}");
        }
        assert_eq!(serial(" phb1q00123\0").as_deref(), Some("PHB1Q00123"));
    }

    #[test]
    fn shared_hardware_addresses_are_no_evidence() {
        let facts = |mac: &str| Facts { mac: mac.parse().ok(), ..Facts::default() };
        assert_eq!(Evidence::new(&facts("00:00:5e:00:01:07"), "hq", "10.0.0.1:161").mac, None);
        assert!(Evidence::new(&facts("00:20:6b:00:01:07"), "hq", "10.0.0.1:161").mac.is_some());
    }
}
