//! IPP's Get-Printer-Attributes: the question, and from the answer to a [`Reading`] (RFC 8011 section 4.2.5, PWG
//! 5107.2 for printer-device-id, PWG 5100.13 for printer-supply, CUPS' marker attributes).
//!
//! Sans-IO: [`question`] makes the only request that there is, [`read`] takes what came. No captured device answers
//! a page counter, so none is claimed. The codec is the `ipp` crate's; because devices send values that it rejects
//! as a whole, or that make it panic, only the attributes that are wanted and sound are handed to it.

use std::io::Cursor;

use ipp::attribute::IppAttributeGroup;
use ipp::model::{DelimiterTag, IppVersion, Operation};
use ipp::parser::IppParser;
use ipp::prelude::{IppAttribute, IppRequestResponse, IppValue};
use quire_proto::reading::{Condition, Reading, Status, Supply, SupplyKind, SupplyState, Via, percent};
use quire_proto::shared::Text;

use super::vendor::TABLE;
use super::{supply, text};

/// What is asked for; the rest of a device's answer is capabilities, 10 to 100 times as long.
const WANTED: [&str; 22] = [
    "printer-make-and-model",
    "printer-device-id",
    "printer-serial-number",
    "printer-location",
    "printer-name",
    "printer-state",
    "printer-state-reasons",
    "printer-state-message",
    "printer-firmware-string-version",
    "printer-alert",
    "printer-uri-supported",
    "printer-type",
    "member-names",
    "marker-names",
    "marker-types",
    "marker-colors",
    "marker-levels",
    "marker-low-levels",
    "marker-high-levels",
    "printer-supply",
    "printer-supply-description",
    "device-uri",
];

/// The most markers of one device; more are left out.
const MAX_MARKERS: usize = 64;

/// The request, encoded; `None` where `uri` is none.
pub(crate) fn question(uri: &str) -> Option<Vec<u8>> {
    let uri = uri.parse().ok()?;
    // IPP/1.1: every device speaks it, and some answer 2.0 with server-error-version-not-supported.
    let mut request =
        IppRequestResponse::new(IppVersion::v1_1(), Operation::GetPrinterAttributes, Some(uri)).ok()?;
    let names: Result<Vec<_>, _> =
        WANTED.iter().map(|name| (*name).try_into().map(IppValue::Keyword)).collect();
    let requested = IppAttribute::with_name("requested-attributes", IppValue::Array(names.ok()?)).ok()?;
    request.attributes_mut().add(DelimiterTag::OperationAttributes, requested);
    Some(request.to_bytes().to_vec())
}

/// CUPS-Get-Printers: the queues of a print server, and where each prints to.
pub(crate) fn queues_question() -> Option<Vec<u8>> {
    let uri = "ipp://localhost/".parse().ok()?;
    let mut request =
        IppRequestResponse::new(IppVersion::v1_1(), Operation::CupsGetPrinters, Some(uri)).ok()?;
    let names: Result<Vec<_>, _> =
        ["printer-name", "device-uri"].iter().map(|name| (*name).try_into().map(IppValue::Keyword)).collect();
    let requested = IppAttribute::with_name("requested-attributes", IppValue::Array(names.ok()?)).ok()?;
    request.attributes_mut().add(DelimiterTag::OperationAttributes, requested);
    Some(request.to_bytes().to_vec())
}

/// The queues that a print server lists: their names and device URIs.
pub(crate) fn queues(octets: &[u8]) -> Vec<(String, String)> {
    let Some(answer) = answer(octets) else { return Vec::new() };
    let printers = answer.attributes().groups_of(DelimiterTag::PrinterAttributes);
    let named = printers.filter_map(|printer| {
        let says = Says { printer, source: "" };
        let name = says.text("printer-name")?;
        // It becomes part of a path.
        let plain = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | '.'));
        Some((name, says.text("device-uri")?)).filter(|_| plain)
    });
    named.collect()
}

/// What a queue of a print server says of its printer.
pub(crate) fn read_queue(octets: &[u8], source: &str) -> Option<Reading> {
    let answer = answer(octets)?;
    let mut printers = answer.attributes().groups_of(DelimiterTag::PrinterAttributes);
    Some(Says { printer: printers.next()?, source }.reading())
}

/// The sound part of an answer that is a success.
fn answer(octets: &[u8]) -> Option<IppRequestResponse> {
    let sound = only_wanted(octets)?;
    let answer = IppParser::new(ipp::reader::IppReader::new(Cursor::new(sound))).parse().ok()?;
    // RFC 8011 section 4.1.6: 0x0000 to 0x00ff is success, ignored attributes included.
    (0..=0xff).contains(&answer.header().operation_or_status).then_some(answer)
}

/// What the answer says; `None` where it is no answer of one printer: an error, a spooler's list of queues, noise.
pub(crate) fn read(octets: &[u8], source: &str) -> Option<Reading> {
    let answer = answer(octets)?;
    let mut printers = answer.attributes().groups_of(DelimiterTag::PrinterAttributes);
    let (printer, None) = (printers.next()?, printers.next()) else { return None };
    let says = Says { printer, source };
    if says.is_queue() {
        return None;
    }
    let reading = says.reading();
    (reading.facts.model.is_some() || !reading.supplies.is_empty()).then_some(reading)
}

/// Tags of RFC 8010 section 3.5.
const END: u8 = 0x03;
const PRINTER: u8 = 0x04;
const FIRST_VALUE: u8 = 0x10;
/// The longest value of text, name, keyword and URI (RFC 8011 section 5.1).
const LONGEST: usize = 1023;
const LONGEST_NAME: usize = 255;

/// The header and the wanted attributes of printers whose encoding is sound. What ends early ends there.
fn only_wanted(octets: &[u8]) -> Option<Vec<u8>> {
    const HEADER: usize = 8;
    let (header, mut rest) = octets.split_at_checked(HEADER)?;
    let mut kept = header.to_vec();
    let (mut printer, mut wanted) = (false, false);
    while let Some((tag, after)) = rest.split_first() {
        if *tag == END {
            break;
        }
        if *tag < FIRST_VALUE {
            printer = *tag == PRINTER;
            wanted = false;
            if printer {
                kept.push(*tag);
            }
            rest = after;
            continue;
        }
        let Some((name, after)) = counted(after) else { break };
        let Some((value, after)) = counted(after) else { break };
        // An empty name continues the attribute before; a value of it that is left out is only one value less.
        if !name.is_empty() {
            wanted = std::str::from_utf8(name).is_ok_and(|name| WANTED.contains(&name));
        }
        let plain = without_language(*tag, value).filter(|(tag, value)| sound(*tag, value));
        if let Some((tag, value)) = plain.filter(|_| printer && wanted) {
            kept.push(tag);
            for part in [name, value] {
                // Both came behind a length of two octets.
                kept.extend(u16::try_from(part.len()).ok()?.to_be_bytes());
                kept.extend_from_slice(part);
            }
        } else if !name.is_empty() {
            wanted = false;
        }
        rest = after;
    }
    kept.push(END);
    Some(kept)
}

/// Octets behind a two-octet length.
fn counted(octets: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = octets.split_first_chunk::<2>()?;
    rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
}

/// A text or name that says its language, as one that does not (RFC 8010 section 3.9); others as they are.
fn without_language(tag: u8, value: &[u8]) -> Option<(u8, &[u8])> {
    let plain = match tag {
        0x35 => 0x41,
        0x36 => 0x42,
        _ => return Some((tag, value)),
    };
    let (_, rest) = counted(value)?;
    let (text, _) = counted(rest)?;
    Some((plain, text))
}

/// True for values that the codec takes: no collections, lengths as the standard has them.
fn sound(tag: u8, value: &[u8]) -> bool {
    match tag {
        // integer, enum
        0x21 | 0x23 => value.len() == 4,
        0x30 | 0x41 | 0x45 => value.len() <= LONGEST,
        0x42 | 0x44 => value.len() <= LONGEST_NAME,
        _ => false,
    }
}

/// One printer's attributes.
struct Says<'a> {
    printer: &'a IppAttributeGroup,
    source: &'a str,
}

impl Says<'_> {
    fn values(&self, name: &str) -> Vec<IppValue> {
        match self.printer.get(name).map(IppAttribute::value) {
            None => Vec::new(),
            Some(IppValue::Array(values)) => values.clone(),
            Some(value) => vec![value.clone()],
        }
    }

    fn texts(&self, name: &str) -> Vec<String> {
        let octets = |value: &IppValue| match value {
            IppValue::OctetString(octets) => Some(octets.to_vec()),
            IppValue::NonUtf8 { data, .. } => Some(data.to_vec()),
            IppValue::TextWithoutLanguage(text) => Some(text.as_ref().as_bytes().to_vec()),
            IppValue::NameWithoutLanguage(name) => Some(name.as_str().as_bytes().to_vec()),
            IppValue::Keyword(word) => Some(word.as_str().as_bytes().to_vec()),
            IppValue::Uri(uri) => Some(uri.as_str().as_bytes().to_vec()),
            _ => None,
        };
        let values = self.values(name);
        values
            .iter()
            .map(|value| octets(value).and_then(|o| text::clean(&o, None)).unwrap_or_default())
            .collect()
    }

    fn text(&self, name: &str) -> Option<String> {
        self.texts(name).into_iter().next().filter(|text| !text.is_empty())
    }

    fn integers(&self, name: &str) -> Vec<i32> {
        let values = self.values(name);
        let integer = |value: &IppValue| match value {
            IppValue::Integer(n) | IppValue::Enum(n) => Some(*n),
            _ => None,
        };
        values.iter().filter_map(integer).collect()
    }

    /// A queue of a print server is no device: CUPS says what kind of queue it is, and where it prints to.
    fn is_queue(&self) -> bool {
        let named = |name: &str| self.printer.get(name).is_some();
        let uris = self.texts("printer-uri-supported");
        named("printer-type")
            || named("member-names")
            || named("device-uri")
            || uris.iter().any(|uri| uri.contains("/printers/") || uri.contains("/classes/"))
    }

    fn reading(&self) -> Reading {
        let mut reading = Reading { via: vec![Via::Ipp], ..Reading::default() };
        let id = self.text("printer-device-id").unwrap_or_default();
        let make_and_model = self.text("printer-make-and-model").map(|text| text.replace(['®', '™'], ""));
        let maker = text::device_id(&id, &["MFG", "MANUFACTURER"]);
        let named = make_and_model.as_deref().and_then(|text| TABLE.brand_at(text));
        let brand = maker.and_then(|maker| TABLE.brand_at(maker)).or(named);
        let facts = &mut reading.facts;
        facts.vendor = brand.map(|brand| brand.name.clone());
        facts.model = make_and_model.or_else(|| text::device_id(&id, &["MDL", "MODEL"]).map(str::to_owned));
        facts.serial = self.text("printer-serial-number").and_then(|text| text::serial(&text));
        let in_id = facts.serial.is_none();
        facts.serial = facts.serial.take().or_else(|| serial_in(&id));
        facts.location = self.text("printer-location");
        facts.name = self.text("printer-name").filter(|name| !name.contains('/'));
        facts.firmware = self.text("printer-firmware-string-version");
        let serial_from = if in_id { "printer-device-id" } else { "printer-serial-number" };
        let from = [
            (
                "vendor",
                facts.vendor.is_some(),
                if maker.is_some() { "printer-device-id" } else { "printer-make-and-model" },
            ),
            ("model", facts.model.is_some(), "printer-make-and-model"),
            ("serial", facts.serial.is_some(), serial_from),
            ("location", facts.location.is_some(), "printer-location"),
            ("name", facts.name.is_some(), "printer-name"),
            ("firmware", facts.firmware.is_some(), "printer-firmware-string-version"),
        ];
        for (field, known, attribute) in from {
            if known {
                self.note(&mut reading, field, attribute);
            }
        }
        self.state(&mut reading);
        self.markers(&mut reading);
        if reading.supplies.is_empty() {
            self.supplies(&mut reading);
        }
        reading
    }

    fn note(&self, reading: &mut Reading, field: &str, attribute: &str) {
        reading.sources.insert(field.to_owned(), format!("{}#{attribute}", self.source));
    }

    /// RFC 8011 sections 5.4.11 and 5.4.12.
    fn state(&self, reading: &mut Reading) {
        reading.status = self.integers("printer-state").first().and_then(|state| match state {
            3 => Some(Status::Idle),
            4 => Some(Status::Printing),
            5 => Some(Status::Stopped),
            _ => None,
        });
        if reading.status.is_some() {
            self.note(reading, "status", "printer-state");
        }
        let mut conditions: Vec<Condition> =
            self.texts("printer-state-reasons").iter().filter_map(|reason| condition(reason)).collect();
        conditions.sort_unstable();
        conditions.dedup();
        if !conditions.is_empty() {
            self.note(reading, "conditions", "printer-state-reasons");
            reading.conditions = conditions;
        }
        reading.display = self.text("printer-state-message");
        if reading.display.is_some() {
            self.note(reading, "display", "printer-state-message");
        }
    }

    /// CUPS' parallel lists; where they are not equally long nothing says which belongs to which.
    fn markers(&self, reading: &mut Reading) {
        let (names, types) = (self.texts("marker-names"), self.texts("marker-types"));
        let (colors, levels) = (self.texts("marker-colors"), self.integers("marker-levels"));
        let (lows, highs) = (self.integers("marker-low-levels"), self.integers("marker-high-levels"));
        if names.is_empty() || levels.len() != names.len() {
            return;
        }
        let same = |length: usize| length == names.len();
        for (n, name) in names.iter().enumerate().take(MAX_MARKERS) {
            let kind = kind(types.get(n).filter(|_| same(types.len())).map_or("", String::as_str), name);
            let color = colors.get(n).filter(|_| same(colors.len())).map_or("", String::as_str);
            let low = lows.get(n).filter(|_| same(lows.len())).copied();
            let high = highs.get(n).filter(|_| same(highs.len())).copied();
            let percent = u8::try_from(levels[n]).ok().filter(|level| *level <= 100);
            let state = state(i64::from(levels[n]), percent, low, high, kind);
            let index = u32::try_from(n + 1).unwrap_or(u32::MAX);
            self.note(reading, &format!("supplies.{index}.percent"), "marker-levels");
            // The fill level of a waste box is not what is left of it.
            let percent = percent.filter(|_| kind != SupplyKind::WasteToner);
            let color = color_of(name, color).map(Text::from);
            let blank = Supply { index, name: name.as_str().into(), kind, color, state, percent, ..bare() };
            reading.supplies.push(blank);
        }
    }

    /// PWG 5100.13 section 5.6.39, for those that have no markers.
    fn supplies(&self, reading: &mut Reading) {
        let names = self.texts("printer-supply-description");
        for (n, row) in self.texts("printer-supply").iter().enumerate().take(MAX_MARKERS) {
            let value = |key: &str| {
                let pairs = row.split(';').filter_map(|pair| pair.split_once('='));
                pairs.filter(|(known, _)| *known == key).map(|(_, value)| value.trim()).next()
            };
            let number = |key: &str| value(key).and_then(|text| text.parse::<i64>().ok());
            let Some(level) = number("level") else { continue };
            let max = number("maxcapacity").and_then(|max| u64::try_from(max).ok()).filter(|max| *max > 0);
            let known = u64::try_from(level).ok();
            let percent = known.and_then(|level| percent(level, max?));
            let color = value("colorantname").unwrap_or_default();
            let name = names.get(n).filter(|name| !name.is_empty()).map_or(color, String::as_str);
            let kind = kind(value("type").unwrap_or_default(), name);
            let index = u32::try_from(n + 1).unwrap_or(u32::MAX);
            self.note(reading, &format!("supplies.{index}.level"), "printer-supply");
            reading.supplies.push(Supply {
                index,
                name: name.into(),
                kind,
                color: supply::color_word(name).or(supply::color_word(color)).map(Text::from),
                level: known,
                max,
                unit: value("unit").filter(|unit| *unit != "unknown").map(Text::from),
                percent,
                state: state(level, percent, None, None, kind),
            });
        }
    }
}

fn bare() -> Supply {
    Supply {
        index: 0,
        name: Text::default(),
        kind: SupplyKind::Other,
        color: None,
        level: None,
        max: None,
        unit: None,
        percent: None,
        state: SupplyState::Unknown,
    }
}

/// The serial in an IEEE 1284 id. Epson writes its letters as hexadecimal digits.
pub(crate) fn serial_in(id: &str) -> Option<String> {
    let serial = text::device_id(id, &["SN", "SER", "SERN", "SERIALNUMBER"])?;
    let epson = text::device_id(id, &["MFG", "MANUFACTURER"])
        .is_some_and(|maker| maker.eq_ignore_ascii_case("epson"));
    let plain = epson.then(|| text::unhex(serial)).flatten();
    text::serial(plain.as_deref().unwrap_or(serial))
}

/// A level and what the device calls low (consumed) or high (a waste box); the sentinels are the Printer MIB's.
fn state(
    level: i64,
    percent: Option<u8>,
    low: Option<i32>,
    high: Option<i32>,
    kind: SupplyKind,
) -> SupplyState {
    let within = |bound: Option<i32>| bound.filter(|bound| (1..100).contains(bound)).map(i64::from);
    match (level, percent) {
        (-1, _) => SupplyState::Unlimited,
        (-3, _) => SupplyState::Some,
        (..0, _) => SupplyState::Unknown,
        (_, Some(_)) if kind == SupplyKind::WasteToner => match within(high) {
            Some(high) if level >= high => SupplyState::Low,
            Some(_) => SupplyState::Ok,
            None => SupplyState::Unknown,
        },
        (0, _) => SupplyState::Empty,
        (_, Some(_)) if within(low).is_some_and(|low| level <= low) => SupplyState::Low,
        (_, Some(percent)) => supply::state_of_percent(percent),
        (_, None) => SupplyState::Ok,
    }
}

/// marker-types and the types of printer-supply, whose spelling differs by maker; else the name tells.
fn kind(word: &str, name: &str) -> SupplyKind {
    let word: String = word.chars().filter(char::is_ascii_alphabetic).collect::<String>().to_lowercase();
    match word.as_str() {
        "toner" | "tonercartridge" => SupplyKind::Toner,
        "ink" | "inkcartridge" | "inkribbon" | "solidwax" | "ribbonwax" => SupplyKind::Ink,
        "wastetoner" | "wasteink" | "wastewax" => SupplyKind::WasteToner,
        "opc" => SupplyKind::Drum,
        "fuser" | "fuseroil" | "fuseroilwick" | "fusercleaningpad" | "fuseroiler" => SupplyKind::Fuser,
        "transferunit" => SupplyKind::Transfer,
        "maintenancekit" => SupplyKind::MaintenanceKit,
        "staples" | "stitchingwire" => SupplyKind::Staples,
        _ => supply::kind_of_name(None, None, &name.to_lowercase()),
    }
}

/// The name before marker-colors: a captured device calls its black toner white.
fn color_of(name: &str, hex: &str) -> Option<String> {
    let letters = || {
        let code = name.split(|c: char| !c.is_ascii_alphanumeric()).next()?;
        Some(match code {
            "BK" | "K" => "black",
            "C" => "cyan",
            "M" => "magenta",
            "Y" => "yellow",
            _ => return None,
        })
    };
    let by_hex = || match hex.to_ascii_uppercase().as_str() {
        "#000000" => Some("black"),
        "#00FFFF" => Some("cyan"),
        "#FF00FF" => Some("magenta"),
        "#FFFF00" => Some("yellow"),
        _ => None,
    };
    supply::color_word(name).or_else(letters).or_else(by_hex).map(str::to_owned)
}

/// RFC 8011 section 5.4.12: a keyword with `-report`, `-warning` or `-error` behind it.
fn condition(reason: &str) -> Option<Condition> {
    let ends = ["-report", "-warning", "-error"];
    let word = ends.iter().find_map(|end| reason.strip_suffix(end)).unwrap_or(reason);
    Some(match word {
        "media-low" => Condition::LowPaper,
        "media-empty" => Condition::NoPaper,
        "media-needed" => Condition::InputTrayEmpty,
        "toner-low" | "marker-supply-low" => Condition::LowToner,
        "toner-empty" | "marker-supply-empty" => Condition::NoToner,
        "cover-open" | "door-open" | "interlock-open" => Condition::DoorOpen,
        "media-jam" => Condition::Jammed,
        "input-tray-missing" => Condition::InputTrayMissing,
        "output-tray-missing" => Condition::OutputTrayMissing,
        "marker-supply-missing" => Condition::MarkerSupplyMissing,
        "output-area-almost-full" => Condition::OutputNearFull,
        "output-area-full" => Condition::OutputFull,
        "marker-waste-almost-full" => Condition::WasteNearFull,
        "marker-waste-full" => Condition::WasteFull,
        "opc-near-eol" => Condition::DrumNearEnd,
        "opc-life-over" => Condition::DrumEnd,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
