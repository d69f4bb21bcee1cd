//! What an observation says about who was seen, and which of that can tell devices apart.
//!
//! A serial number, a hardware address and an SNMP engine's id are strong evidence; a socket address in its
//! zone is weak: it says who lives there now. Fillers, addresses that several machines share and ids that
//! firmware ships with never count. One combination of strong evidence is a *face* of a device.

use quire_proto::address::Mac;
use quire_proto::id::DeviceId;
use quire_proto::reading::Facts;

/// What an observation says about who was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// `serial:TEXT`, in capitals and without blanks.
    pub serial: Option<String>,
    /// Who the maker is, in small letters; a serial number is one among its maker's.
    pub vendor: Option<String>,
    /// `mac:ADDRESS`, with `@ZONE` where the address was made up locally.
    pub mac: Option<String>,
    /// `engine:HEX` (RFC 3411 section 5).
    pub engine: Option<String>,
    /// See [`plain_model`]; empty where it is not known.
    pub model: String,
    /// `address:ZONE/ADDRESS:PORT`.
    pub address: String,
}

impl Evidence {
    /// From what a device says about itself and where it was seen.
    pub fn new(facts: &Facts, zone: &str, address: &str) -> Self {
        let vendor = facts.vendor.as_deref().and_then(|vendor| vendor.split_whitespace().next());
        let vendor = vendor.map(str::to_ascii_lowercase);
        let serial = facts.serial.as_deref().and_then(|text| serial(text, vendor.as_deref()));
        Evidence {
            serial: serial.map(|serial| format!("serial:{serial}")),
            mac: facts.mac.filter(|mac| is_one_card(*mac)).map(|mac| mac_key(mac, zone)),
            engine: facts.engine_id.as_deref().and_then(engine).map(|hex| format!("engine:{hex}")),
            vendor,
            model: facts.model.as_deref().map(plain_model).unwrap_or_default(),
            address: address_key(zone, address),
        }
    }

    /// Strong keys, strongest first.
    pub fn strong(&self) -> impl Iterator<Item = &str> {
        self.serial.iter().chain(&self.mac).chain(&self.engine).map(String::as_str)
    }

    /// The name of this combination; `None` where there is no strong evidence.
    pub fn face(&self) -> Option<String> {
        let mut strong = self.strong().peekable();
        strong.peek()?;
        let mut face = strong.collect::<Vec<_>>().join("|");
        if let (Some(_), Some(vendor)) = (&self.serial, &self.vendor) {
            face = format!("{vendor}|{face}");
        }
        if self.serial.is_none() && self.mac.is_none() {
            // Firmware that ships with an engine's id ships with it in every device of its models.
            face = format!("{face}|{}", self.model);
        }
        Some(face)
    }
}

/// What a face shows beside its engine.
pub(crate) fn but_for_engine(face: &str) -> Vec<&str> {
    face.split('|').filter(|part| !part.starts_with("engine:")).collect()
}

/// The key of an address in its zone.
pub fn address_key(zone: &str, address: &str) -> String {
    format!("address:{zone}/{address}")
}

/// A serial number that can tell devices apart: without blanks, in capitals; `None` for the fillers that
/// devices send instead. HP devices write theirs with and without two zeros in front.
pub fn serial(text: &str, vendor: Option<&str>) -> Option<String> {
    const FILLERS: [&str; 22] = [
        "N/A",
        "NA",
        "NONE",
        "NULL",
        "NIL",
        "UNKNOWN",
        "UNDEFINED",
        "UNSPECIFIED",
        "INVALID",
        "EMPTY",
        "BLANK",
        "NOTAVAILABLE",
        "NOTSET",
        "NOSERIAL",
        "NOSERIALNUMBER",
        "SERIAL",
        "SERIALNUMBER",
        "SERIAL_NUMBER",
        "SERIALNO",
        "DEFAULT",
        "TEST",
        "TOBEFILLEDBYO.E.M.",
    ];
    let serial: String = text.chars().filter(|c| !c.is_whitespace() && !c.is_control()).collect();
    let mut serial = serial.to_uppercase();
    let mut letters = serial.chars().filter(|c| c.is_alphanumeric());
    let first = letters.next()?;
    let all_same = letters.clone().all(|c| c == first);
    let short = letters.count() < 3;
    if short || all_same || counts_up(&serial) || FILLERS.contains(&serial.as_str()) {
        return None;
    }
    let hp = vendor.is_none_or(|vendor| vendor == "hp" || vendor.starts_with("hewlett"));
    if let Some(rest) = serial.strip_prefix("00")
        && hp
        && rest.len() >= 8
        && rest.starts_with(|c: char| c.is_ascii_uppercase())
    {
        serial = rest.to_owned();
    }
    Some(serial)
}

/// 123456, 0123456789, 12345678901234...
fn counts_up(serial: &str) -> bool {
    let digits = serial.as_bytes();
    let next = |pair: &[u8]| pair[0].is_ascii_digit() && pair[1] == b'0' + (pair[0] - b'0' + 1) % 10;
    matches!(digits.first(), Some(b'0' | b'1')) && digits.windows(2).all(next)
}

/// False for addresses that move from machine to machine or stand for several.
fn is_one_card(mac: Mac) -> bool {
    let octets = mac.octets();
    let shared: [&[u8]; 7] = [
        // RFC 9568 section 7.3: VRRP for IPv4 and IPv6.
        &[0x00, 0x00, 0x5e, 0x00, 0x01],
        &[0x00, 0x00, 0x5e, 0x00, 0x02],
        // HSRP, its second version, GLBP.
        &[0x00, 0x00, 0x0c, 0x07, 0xac],
        &[0x00, 0x00, 0x0c, 0x9f, 0xf0],
        &[0x00, 0x07, 0xb4, 0x00],
        // Boxes that printers are plugged into: Axis and SEH print servers.
        &[0x00, 0x40, 0x8c],
        &[0x00, 0xc0, 0xeb],
    ];
    let one_octet = octets.iter().all(|octet| *octet == octets[0]);
    !one_octet && !shared.iter().any(|start| octets.starts_with(start))
}

/// What was made up locally (bit 2 of the first octet) is unique on its own network alone.
fn mac_key(mac: Mac, zone: &str) -> String {
    if mac.octets()[0] & 2 == 2 { format!("mac:{mac}@{zone}") } else { format!("mac:{mac}") }
}

/// An engine's id in hex, where it can be one of a kind: those made of an IP address move with it, and
/// fillers are the same in every device of a firmware.
fn engine(id: &[u8]) -> Option<String> {
    // RFC 3411 section 5, SnmpEngineID: 5 to 32 octets; format octet 1 is IPv4, 2 IPv6, 3 a MAC.
    let (enterprise, rest) = id.split_at_checked(4)?;
    if !(5..=32).contains(&id.len()) || rest.iter().all(|octet| *octet == rest[0]) {
        return None;
    }
    if enterprise[0] & 0x80 != 0 {
        let (format, body) = rest.split_first()?;
        let good = match format {
            1 | 2 => false,
            3 => Mac::new(body).is_some_and(is_one_card),
            _ => body.len() >= 4 && body.iter().any(|octet| *octet != body[0]),
        };
        if !good {
            return None;
        }
    }
    Some(id.iter().map(|octet| format!("{octet:02x}")).collect())
}

/// How a model is compared: letters and digits alone, in small letters.
pub fn plain_model(model: &str) -> String {
    model.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

/// False where both models are known and neither is a longer way to write the other.
pub fn models_agree(one: &str, other: &str) -> bool {
    one.is_empty() || other.is_empty() || one.contains(other) || other.contains(one)
}

/// An id for a device outside any cluster: the same evidence gives the same id.
pub fn standalone_id(facts: &Facts, address: &str) -> DeviceId {
    let evidence = Evidence::new(facts, "", address);
    let strongest = evidence.strong().next().unwrap_or(&evidence.address).to_owned();
    DeviceId::from_evidence(&strongest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(vendor: &str, text: &str, mac: &str) -> Facts {
        let vendor = (!vendor.is_empty()).then(|| vendor.to_owned());
        Facts { vendor, serial: Some(text.to_owned()), mac: mac.parse().ok(), ..Facts::default() }
    }

    #[test]
    fn fillers_are_no_serials() {
        let junk = [
            "",
            " ",
            "0000000000",
            "00000",
            "XXXXXXXX",
            "N/A",
            "unknown",
            "12",
            "----",
            "serial_number",
            "123456",
            "1234567890",
            "0123456789",
            "Not Set",
            "\0\0",
        ];
        for junk in junk {
            assert_eq!(serial(junk, Some("hp")), None, "{junk}");
        }
        assert_eq!(serial(" phb1q00123\0", None).as_deref(), Some("PHB1Q00123"));
    }

    #[test]
    fn a_face_is_told_apart_by_more_than_its_engine() {
        let face = |serial: &str, engine: u8| {
            let engine_id = Some(vec![0x80, 0, 0, 9, 4, b'p', b'r', b'n', b't', engine]);
            let facts = Facts { engine_id, ..facts("HP", serial, "00:20:6b:00:01:07") };
            Evidence::new(&facts, "hq", "10.0.0.1:161").face().unwrap()
        };
        assert_ne!(face("CNB1001", 1), face("CNB1001", 2));
        assert_eq!(but_for_engine(&face("CNB1001", 1)), but_for_engine(&face("CNB1001", 2)));
        assert_ne!(but_for_engine(&face("CNB1001", 1)), but_for_engine(&face("CNB1002", 1)));
    }

    #[test]
    fn hp_writes_a_serial_in_several_ways() {
        for text in ["CNB1234567", "00CNB1234567", " cnb 1234567 ", "00 cnb1234567"] {
            assert_eq!(serial(text, Some("hp")).as_deref(), Some("CNB1234567"), "{text}");
        }
        assert_eq!(serial("00CNB1234567", Some("kyocera")).as_deref(), Some("00CNB1234567"), "another maker");
        assert_eq!(
            serial("0012345698", Some("hp")).as_deref(),
            Some("0012345698"),
            "zeros before digits stay"
        );
    }

    #[test]
    fn shared_hardware_addresses_are_no_evidence() {
        let mac = |mac: &str, zone: &str| Evidence::new(&facts("", "", mac), zone, "10.0.0.1:161").mac;
        for shared in ["00:00:5e:00:01:07", "00:00:0c:07:ac:01", "00:40:8c:12:34:56", "ff:ff:ff:ff:ff:ff"] {
            assert_eq!(mac(shared, "hq"), None, "{shared}");
        }
        assert_eq!(mac("00:20:6b:00:01:07", "hq"), mac("00:20:6b:00:01:07", "lab"));
        assert_ne!(
            mac("02:42:ac:11:00:02", "hq"),
            mac("02:42:ac:11:00:02", "lab"),
            "made up on each host alike"
        );
    }

    #[test]
    fn engine_ids_made_of_addresses_or_fillers_are_no_evidence() {
        assert_eq!(engine(&[0x80, 0, 0, 9, 1, 10, 0, 0, 5]), None, "IPv4");
        assert_eq!(engine(&[0x80, 0, 0, 9, 5, 0, 0, 0, 0]), None, "zeros");
        assert_eq!(engine(&[0x80, 0, 0, 9, 3, 0, 0, 0x5e, 0, 1, 7]), None, "a card that moves");
        assert_eq!(engine(&[0; 12]), None);
        assert_eq!(engine(&[1, 2, 3]), None);
        assert!(engine(&[0x80, 0, 0, 9, 3, 0, 0x20, 0x6b, 0, 1, 7]).is_some());
    }

    #[test]
    fn models_are_compared_by_what_matters() {
        let agree = |one: &str, other: &str| models_agree(&plain_model(one), &plain_model(other));
        assert!(agree("HP LaserJet M605", "LaserJet-M605") && agree("", "X"));
        assert!(!agree("LaserJet M605", "LaserJet M606"));
    }
}
