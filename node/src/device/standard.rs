//! Makes a [`Reading`] of what a device answered: RFC 3805, RFC 2790 and RFC 1213 first, then the vendor's table.
//!
//! Pure and total: any answers give a reading or none. A value that is not known stays absent, and every value that is
//! given names the OID it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use quire_proto::address::Mac;
use quire_proto::oid::Oid;
use quire_proto::reading::{Condition, Counters, Facts, Other, Reading, Status, Via};

use super::alert::Alerts;
use super::answers::{Answers, number, object_id, octets, total};
use super::brand;
use super::family::Family;
use super::judge::{Verdict, judge_answers};
use super::supply::{self, unit_word};
use super::vendor::{self, Private, Sourced};
use super::{mib, text};

/// prtMarkerCounterUnit impressions: what a total counts unless something else is said.
const IMPRESSIONS: i64 = 7;

/// The reading, or `None` where nothing shows that this is a printer.
pub(crate) fn reading(answers: &Answers, via: Via) -> Option<Reading> {
    if judge_answers(answers) != Verdict::Printer {
        return None;
    }
    let families = brand::families(answers);
    let mut reading = Reading { via: vec![via], ..Reading::default() };
    read_facts(answers, &families, &mut reading);
    read_counters(answers, &families, &mut reading);
    read_supplies(answers, &mut reading);
    read_condition(answers, &mut reading);
    Alerts::of(answers, &reading.supplies, None).join(&mut reading);
    let display = read_display(answers, &families);
    reading.display = keep(&mut reading.sources, "display", display);
    Some(reading)
}

fn keep<T>(sources: &mut BTreeMap<String, String>, field: &str, found: Option<Sourced<T>>) -> Option<T> {
    let (value, source) = found?;
    sources.insert(field.to_owned(), source);
    Some(value)
}

/// prtLocalizationCharacterSet of the first localisation.
pub(crate) fn charset(answers: &Answers) -> Option<i64> {
    answers.first(mib::PRT_CHARSET).and_then(|(_, value)| number(value))
}

fn scalar_text(answers: &Answers, root: &[u32]) -> Option<Sourced<String>> {
    let oid = mib::scalar(root);
    Some((text::clean(octets(answers.get(&oid)?)?, None)?, oid.to_string()))
}

fn read_facts(answers: &Answers, families: &[Arc<Family>], reading: &mut Reading) {
    let sources = &mut reading.sources;
    let serial = read_serial(answers, families);
    let model = brand::model(answers, families, serial.as_ref().map(|(serial, _)| serial.as_str()));
    let vendor = brand::brand(answers).map(|(brand, source)| (brand.name.clone(), source));
    let name =
        scalar_text(answers, mib::SYS_NAME).or_else(|| field(answers, families, |family| &family.name));
    let firmware = field(answers, families, |family| &family.firmware)
        .or_else(|| brand::sys_descr(answers).and_then(firmware_in));
    *reading.facts = Facts {
        vendor: keep(sources, "vendor", vendor),
        model: keep(sources, "model", model),
        serial: keep(sources, "serial", serial),
        mac: keep(sources, "mac", read_mac(answers)),
        name: keep(sources, "name", name),
        location: keep(sources, "location", scalar_text(answers, mib::SYS_LOCATION)),
        firmware: keep(sources, "firmware", firmware),
        asset: keep(sources, "asset", field(answers, families, |family| &family.asset)),
        sys_object_id: brand::sys_object_id(answers),
        sys_descr: brand::sys_descr(answers).map(|(text, _)| text),
        engine_id: None,
    };
}

fn field(
    answers: &Answers,
    families: &[Arc<Family>],
    of: impl Fn(&Family) -> &[Private],
) -> Option<Sourced<String>> {
    families.iter().find_map(|family| vendor::field_text(answers, of(family), None))
}

/// True when prtGeneralSerialNumber is one, so that no other need be looked for.
pub(crate) fn has_standard_serial(answers: &Answers) -> bool {
    let text = answers.first(mib::PRT_SERIAL).and_then(|(_, value)| text::clean(octets(value)?, None));
    text.is_some_and(|text| text::serial(&text).is_some())
}

/// True when any serial number is known.
pub(crate) fn has_serial(answers: &Answers, families: &[Arc<Family>]) -> bool {
    read_serial(answers, families).is_some()
}

/// The row of hrDeviceTable that says that it is a printer.
pub(crate) fn printer_row(answers: &Answers) -> Option<u32> {
    let printer = mib::oid(mib::HR_DEVICE_PRINTER);
    let mut rows = answers.rows(mib::HR_DEVICE_TYPE);
    rows.find(|(_, _, value)| object_id(value).as_ref() == Some(&printer))
        .and_then(|(row, _, _)| row.first().copied())
}

/// The hrDeviceIndex of the printer that is read, where one responder speaks for several, as a print server with many
/// ports may: the first that has a row in hrPrinterTable. `None` where there is one printer, whatever its tables call it.
pub(crate) fn own_device(answers: &Answers) -> Option<u32> {
    let first = |(row, _, _): (&[u32], _, _)| row.first().copied();
    let printer = mib::oid(mib::HR_DEVICE_PRINTER);
    let types = answers.rows(mib::HR_DEVICE_TYPE);
    let typed = types.filter(|(_, _, value)| object_id(value).as_ref() == Some(&printer)).filter_map(first);
    let states = answers.rows(mib::HR_PRINTER_STATUS).filter_map(first);
    // Some devices with one printer call it 0 in one table and 1 in the others.
    let supplies = supply::rows(answers).into_iter().filter(|row| row.len() > 1).map(|row| row[0]);
    let supplies: BTreeSet<u32> = supplies.filter(|index| *index > 0).collect();
    let (typed, states): (BTreeSet<u32>, BTreeSet<u32>) = (typed.collect(), states.collect());
    let several = [&typed, &states, &supplies].into_iter().any(|indices| indices.len() > 1);
    let own = [&states, &typed, &supplies].into_iter().find_map(|indices| indices.first().copied());
    own.filter(|_| several)
}

/// Drops what other printers behind the same responder said: their rows of RFC 3805 and RFC 2790, and a vendor's objects,
/// of which nobody can say whose they are.
pub(crate) fn keep_own(answers: &mut Answers, own: u32) {
    const HR_DEVICE: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3];
    /// Arcs of a column's name in both MIBs; behind it stands the hrDeviceIndex.
    const COLUMN: usize = 11;
    answers.keep(|oid| {
        let arcs = oid.arcs();
        match arcs.starts_with(mib::PRINT_MIB) || arcs.starts_with(HR_DEVICE) {
            true => arcs.get(COLUMN).is_none_or(|index| *index == own),
            false => !arcs.starts_with(mib::ENTERPRISES),
        }
    });
}

/// True when the console has text.
pub(crate) fn has_console_text(answers: &Answers) -> bool {
    let mut lines = answers.rows(mib::CONSOLE_TEXT);
    lines.any(|(_, _, value)| octets(value).is_some_and(|octets| text::clean(octets, None).is_some()))
}

/// True when a text that prtLocalizationCharacterSet speaks of is more than ASCII.
pub(crate) fn needs_charset(answers: &Answers) -> bool {
    let roots = [mib::SUPPLY_DESCR, mib::CONSOLE_TEXT, mib::ENTERPRISES];
    let mut texts =
        roots.iter().flat_map(|root| answers.rows(root)).filter_map(|(_, _, value)| octets(value));
    texts.any(|octets| !octets.is_ascii())
}

/// prtGeneralSerialNumber, else the vendor's, else the one in an IEEE 1284 id; junk in one is no reason to skip the next.
fn read_serial(answers: &Answers, families: &[Arc<Family>]) -> Option<Sourced<String>> {
    let clean = |(text, source): Sourced<String>| Some((text::serial(&text)?, source));
    let standard = answers.first(mib::PRT_SERIAL).and_then(|(oid, value)| {
        let text = text::clean(octets(value)?, None)?;
        clean((text, oid.to_string()))
    });
    let private = || {
        let entries = families.iter().flat_map(|family| &family.serial);
        entries.filter_map(|e| vendor::field_text(answers, std::slice::from_ref(e), None)).find_map(clean)
    };
    let hex = families.iter().any(|family| family.hex_serial);
    let by_id = || {
        brand::device_ids(answers).into_iter().find_map(|(id, source)| {
            let serial = text::device_id(&id, &["SN", "SERN", "SERIALNUMBER"])?;
            let plain = hex.then(|| text::unhex(serial)).flatten();
            clean((plain.unwrap_or_else(|| serial.to_owned()), source))
        })
    };
    standard.or_else(private).or_else(by_id)
}

/// The first interface that is up and has an address, else the first that has one; loopbacks and tunnels have none.
fn read_mac(answers: &Answers) -> Option<Sourced<Mac>> {
    /// IANAifType: softwareLoopback and tunnel.
    const NO_HARDWARE: [i64; 2] = [24, 131];
    let cell = |root: &[u32], row: &[u32]| answers.get(&mib::oid(root).child(row)).and_then(number);
    let faces: Vec<(Mac, &Oid, bool)> = answers
        .rows(mib::IF_PHYS_ADDRESS)
        .filter(|(row, _, _)| cell(mib::IF_TYPE, row).is_none_or(|kind| !NO_HARDWARE.contains(&kind)))
        .filter_map(|(row, oid, value)| {
            Some((mac(octets(value)?)?, oid, cell(mib::IF_OPER_STATUS, row) == Some(1)))
        })
        .collect();
    let face = faces.iter().find(|(_, _, up)| *up).or_else(|| faces.first())?;
    Some((face.0, face.1.to_string()))
}

/// Six octets, or their text.
pub(crate) fn mac(octets: &[u8]) -> Option<Mac> {
    Mac::new(octets).or_else(|| std::str::from_utf8(octets).ok()?.trim_matches('\0').trim().parse().ok())
}

/// True once an interface that is up has given an address.
pub(crate) fn mac_is_known(answers: &Answers) -> bool {
    let up = |(_, source): Sourced<Mac>| {
        let row = source.rsplit('.').next().and_then(|arc| arc.parse().ok()).unwrap_or(0);
        answers.get(&mib::oid(mib::IF_OPER_STATUS).child(&[row])).and_then(number) == Some(1)
    };
    read_mac(answers).is_some_and(up)
}

/// A firmware version that sysDescr spells out: between two marks that only stand around one.
fn firmware_in((descr, source): Sourced<String>) -> Option<Sourced<String>> {
    let between = |start: &str, end: &[char]| {
        let rest = descr.split_once(start)?.1;
        let word = rest.split(end).next()?.trim();
        (word.contains('.') && word.len() <= 40 && word.chars().any(|c| c.is_ascii_digit()))
            .then(|| word.to_owned())
    };
    let attached = || {
        between("Attached to ", &[':']).and_then(|card| Some(card.split_once(" Rev.")?.1.trim().to_owned()))
    };
    let kernel = || descr.contains(" kernel ").then(|| between(" version ", &[' ']))?;
    let version = attached()
        .filter(|v| !v.is_empty())
        .or_else(kernel)
        .or_else(|| between("Firmware Ver.", &[' ', ',']))?;
    Some((version, source))
}

fn read_counters(answers: &Answers, families: &[Arc<Family>], reading: &mut Reading) {
    let standard = read_total(answers, families);
    let mut counters = Counters::default();
    for family in families {
        let (found, from) = family.read(answers);
        merge(&mut counters, found);
        for (field, source) in from {
            reading.sources.entry(field).or_insert(source);
        }
    }
    if let Some((total, unit, source)) = standard {
        if let (Some(other), Some(from)) = (counters.total, reading.sources.get("counters.total"))
            && other != total
        {
            reading.others.push(Other {
                field: "counters.total".to_owned(),
                value: other,
                source: from.clone(),
                why: "prtMarkerLifeCount stands: it counts what the marker made, jobs or not (RFC 3805)"
                    .to_owned(),
            });
        }
        counters.total = Some(total);
        counters.unit = unit;
        reading.sources.insert("counters.total".to_owned(), source);
    }
    reading.counters = counters;
}

/// Keeps what the first family said.
fn merge(into: &mut Counters, more: Counters) {
    let Counters { total, mono, color, prints, copies, faxes, scans, duplex, large, unit } = more;
    into.total = into.total.or(total);
    into.mono = into.mono.or(mono);
    into.color = into.color.or(color);
    into.prints = into.prints.or(prints);
    into.copies = into.copies.or(copies);
    into.faxes = into.faxes.or(faxes);
    into.scans = into.scans.or(scans);
    into.duplex = into.duplex.or(duplex);
    into.large = into.large.or(large);
    into.unit = into.unit.take().or(unit);
}

/// prtMarkerLifeCount of the first marker with its unit; -2 is unknown, and 0 where the vendor's devices never count.
fn read_total(answers: &Answers, families: &[Arc<Family>]) -> Option<(u64, Option<String>, String)> {
    let (oid, value) = answers.first(mib::PRT_LIFE_COUNT)?;
    let total = total(value)?;
    if total == 0 && families.iter().any(|family| family.zero_is_no_total) {
        return None;
    }
    let row = oid.arcs().get(mib::PRT_LIFE_COUNT.len()..)?;
    let unit = answers.get(&mib::oid(mib::PRT_COUNTER_UNIT).child(row)).and_then(number);
    let unit = unit.filter(|unit| *unit != IMPRESSIONS).and_then(unit_word).map(str::to_owned);
    Some((total, unit, oid.to_string()))
}

fn read_supplies(answers: &Answers, reading: &mut Reading) {
    for found in supply::read(answers, charset(answers)) {
        let index = found.supply.index;
        let source = found.level_from.unwrap_or(found.name_from);
        reading.sources.insert(format!("supplies.{index}.level"), source);
        reading.supplies.push(found.supply);
    }
}

/// hrPrinterStatus with hrDeviceStatus as RFC 3805 appendix E joins them, and hrPrinterDetectedErrorState.
fn read_condition(answers: &Answers, reading: &mut Reading) {
    let device = brand::device_index(answers)
        .map(|index| mib::oid(mib::HR_DEVICE_STATUS).child(&[index]))
        .and_then(|oid| Some((answers.get(&oid).and_then(number)?, oid)));
    let printer = answers.first(mib::HR_PRINTER_STATUS).and_then(|(oid, value)| Some((number(value)?, oid)));
    let joined = status(printer.as_ref().map(|(n, _)| *n), device.as_ref().map(|(n, _)| *n));
    if let Some(status) = joined {
        let sources: Vec<String> =
            [printer, device].into_iter().flatten().map(|(_, oid)| oid.to_string()).collect();
        reading.status = Some(status);
        reading.sources.insert("status".to_owned(), sources.join("+"));
    }
    if let Some((oid, value)) = answers.first(mib::HR_PRINTER_ERRORS) {
        reading.conditions = octets(value).map(conditions).unwrap_or_default();
        if !reading.conditions.is_empty() {
            reading.sources.insert("conditions".to_owned(), oid.to_string());
        }
    }
}

/// hrPrinterStatus and hrDeviceStatus joined (RFC 3805 appendix E).
pub(crate) fn status(printer: Option<i64>, device: Option<i64>) -> Option<Status> {
    const RUNNING: i64 = 2;
    const DOWN: i64 = 5;
    match (printer, device) {
        (Some(5), _) => Some(Status::Warmup),
        (_, Some(DOWN)) => Some(Status::Stopped),
        (Some(3), _) => Some(Status::Idle),
        (Some(4), _) => Some(Status::Printing),
        // Appendix E: other beside running is standby, which takes jobs as idle does.
        (Some(1), Some(RUNNING)) => Some(Status::Idle),
        (Some(_), _) => Some(Status::Unknown),
        (None, _) => None,
    }
}

/// The set bits, the highest bit of the first octet being bit 0 (RFC 2790).
pub(crate) fn conditions(octets: &[u8]) -> Vec<Condition> {
    /// Bits that have a meaning; the conditions behind them are prtAlertTable's alone.
    const BITS: usize = 15;
    let is_set = |bit: usize| octets.get(bit / 8).is_some_and(|octet| octet & (0x80 >> (bit % 8)) != 0);
    Condition::ALL[..BITS]
        .iter()
        .enumerate()
        .filter(|(bit, _)| is_set(*bit))
        .map(|(_, condition)| *condition)
        .collect()
}

/// prtConsoleDisplayBufferText, its lines joined; else the vendor's panel text.
fn read_display(answers: &Answers, families: &[Arc<Family>]) -> Option<Sourced<String>> {
    let charset = charset(answers);
    let lines: Vec<(String, String)> = answers
        .rows(mib::CONSOLE_TEXT)
        .filter_map(|(_, oid, value)| Some((text::clean(octets(value)?, charset)?, oid.to_string())))
        .collect();
    if lines.is_empty() {
        return families.iter().find_map(|family| vendor::field_text(answers, &family.display, charset));
    }
    let (texts, sources): (Vec<String>, Vec<String>) = lines.into_iter().unzip();
    Some((texts.join(" "), sources.join("+")))
}

/// True when the row of the printer in hrDeviceTable is found, so that no further rows need be asked.
pub(crate) fn device_row_is_known(answers: &Answers) -> bool {
    let described = |index: u32| answers.get(&mib::oid(mib::HR_DEVICE_DESCR).child(&[index])).is_some();
    match printer_row(answers) {
        // A row whose type a probe has told has its other cells to come.
        Some(index) => {
            described(index) || answers.rows(mib::HR_DEVICE_DESCR).any(|(row, _, _)| row > &[index][..])
        }
        None => brand::device_index(answers).is_some_and(described),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_bits_are_counted_from_the_highest() {
        assert_eq!(conditions(&[0x80]), [Condition::LowPaper]);
        assert_eq!(conditions(&[0x01, 0x80]), [Condition::ServiceRequested, Condition::InputTrayMissing]);
        assert!(conditions(&[]).is_empty());
        assert!(conditions(&[0, 1, 0xff, 0xff]).is_empty(), "bits without a meaning");
    }

    #[test]
    fn status_joins_the_two_tables() {
        assert_eq!(status(Some(3), Some(2)), Some(Status::Idle));
        assert_eq!(status(Some(4), Some(3)), Some(Status::Printing));
        assert_eq!(status(Some(1), Some(5)), Some(Status::Stopped));
        assert_eq!(status(Some(1), Some(2)), Some(Status::Idle));
        assert_eq!(status(Some(2), None), Some(Status::Unknown));
        assert_eq!(status(None, Some(2)), None);
    }

    #[test]
    fn macs_come_as_octets_or_text() {
        let wanted = "00:1b:a9:0b:a7:52";
        assert_eq!(mac(&[0, 0x1b, 0xa9, 0x0b, 0xa7, 0x52]).unwrap().to_string(), wanted);
        assert_eq!(mac(b"00-1B-A9-0B-A7-52\0").unwrap().to_string(), wanted);
        assert_eq!(mac(b"001BA90BA752").unwrap().to_string(), wanted);
        assert_eq!(mac(&[0; 6]), None);
        assert_eq!(mac(b""), None);
    }

    #[test]
    fn firmware_stands_between_marks() {
        let firmware =
            |descr: &str| firmware_in((descr.to_owned(), String::new())).map(|(version, _)| version);
        assert_eq!(firmware("Lexmark T640 version NS.NP.N219 kernel 2.6.6 All-N-1").unwrap(), "NS.NP.N219");
        assert_eq!(firmware("Brother NC-6800h, Firmware Ver.1.01  (08.12.12),MID").unwrap(), "1.01");
        assert_eq!(
            firmware("OKI OkiLAN Rev.00.69 PrintServer: Attached to MC873 Rev.07.87 : C").unwrap(),
            "07.87"
        );
        assert_eq!(firmware("Brother NC-8700w, Firmware Ver.Y  ,MID 84E-822"), None);
        assert_eq!(firmware("Canon LBP"), None);
    }
}
