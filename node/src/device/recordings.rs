//! Reads every recorded device through an in-memory responder and compares field by field with what is expected.
//!
//! The recordings stand outside the repository (`QUIRE_DEVICES`, else `../shared/devices` beside the workspace); where
//! they are missing the tests say so and pass. Nothing here may know a recording by its name.

#![expect(clippy::print_stderr, reason = "the tables are read by people, with --nocapture")]

use std::path::{Path, PathBuf};

use quire_proto::reading::{Reading, Supply, SupplyKind, SupplyState, Via};
use serde_json::Value as Json;

use super::responder::{Manner, Responder};
use super::{Verdict, judge, probe_oids};
use crate::snmp::{Value, VarBind};

/// Share of expected fields that must come out right, in tenths of a percent.
const FLOOR_PER_MILLE: usize = 995;

pub(super) fn devices() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/devices");
    let folder = std::env::var_os("QUIRE_DEVICES").map_or(beside, PathBuf::from);
    if folder.join("expected.json").is_file() {
        return Some(folder);
    }
    eprintln!("no recorded devices at {}: left out", folder.display());
    None
}

pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|ext| ext == "snmprec"));
    files.sort();
    files
}

#[derive(Default)]
struct Tally {
    right: usize,
    wrong: Vec<String>,
    missing: Vec<String>,
    invented: Vec<String>,
}

impl Tally {
    fn compare(&mut self, field: &str, wanted: Option<String>, found: Option<String>) {
        match (wanted, found) {
            (Some(wanted), Some(found)) if wanted == found => self.right += 1,
            (Some(wanted), Some(found)) => self.wrong.push(format!("{field}: {found:?}, not {wanted:?}")),
            (Some(wanted), None) => self.missing.push(format!("{field}: {wanted:?}")),
            (None, Some(found)) => self.invented.push(format!("{field}: {found:?}")),
            (None, None) => {}
        }
    }
}

/// Models without brand, case and the word «series», as the recordings' own rules say.
fn bare_model(model: &str, vendor: &str) -> String {
    let brands = [vendor, "HP", "Hewlett-Packard", "Develop", "KONICA MINOLTA"];
    let mut model = model.to_lowercase();
    for brand in brands {
        model = model.strip_prefix(&brand.to_lowercase()).unwrap_or(&model).trim().to_owned();
    }
    model.split_whitespace().filter(|word| *word != "series").collect::<Vec<_>>().join(" ")
}

fn text(row: &Json, key: &str) -> Option<String> {
    row.get(key)
        .and_then(|value| value.as_str().map(str::to_owned).or_else(|| value.as_u64().map(|n| n.to_string())))
}

fn compare(row: &Json, reading: &Reading) -> Tally {
    let mut tally = Tally::default();
    let scrubbed: Vec<&str> = row["scrubbed"]
        .as_array()
        .map(|list| list.iter().filter_map(Json::as_str).collect())
        .unwrap_or_default();
    let facts = &reading.facts;
    let vendor = text(row, "vendor").unwrap_or_default();
    tally.compare("vendor", Some(vendor.clone()), facts.vendor.clone());
    compare_model(row, &vendor, facts.model.as_deref(), &mut tally);
    for (key, found) in [
        ("serial", facts.serial.clone()),
        ("mac", facts.mac.map(|mac| mac.to_string())),
        ("sysname", facts.name.clone()),
        ("location", facts.location.clone()),
        ("sysobjectid", facts.sys_object_id.as_ref().map(|oid| oid.to_string())),
        ("sysdescr", facts.sys_descr.clone()),
    ] {
        if !scrubbed.contains(&key) && found.as_deref() != Some("<private>") {
            tally.compare(key, text(row, key), found);
        }
    }
    // Rows of another project name no firmware though the device says it: only what is expected is compared.
    if row.get("firmware").is_some() {
        tally.compare("firmware", text(row, "firmware"), facts.firmware.clone());
    }
    compare_counters(row, reading, &mut tally);
    let words = |key: &str| text(row, key).map(|word| word.to_lowercase());
    tally.compare("status", words("status"), reading.status.map(|status| status.word().to_owned()));
    tally.compare("display", words("display"), reading.display.as_ref().map(|text| text.to_lowercase()));
    compare_conditions(row, reading, &mut tally);
    compare_supplies(row, &reading.supplies, &mut tally);
    tally
}

fn compare_model(row: &Json, vendor: &str, found: Option<&str>, tally: &mut Tally) {
    let found = found.map(|model| bare_model(model, vendor));
    let wanted: Vec<String> = ["model", "model_derived"]
        .iter()
        .filter_map(|key| text(row, key))
        .map(|m| bare_model(&m, vendor))
        .collect();
    let hit = found.as_ref().filter(|found| wanted.contains(found)).cloned();
    tally.compare("model", hit.clone().or_else(|| wanted.first().cloned()), hit.or(found));
}

fn compare_counters(row: &Json, reading: &Reading, tally: &mut Tally) {
    let counters = &reading.counters;
    for (key, found) in [
        ("total_pages", counters.total),
        ("mono_pages", counters.mono),
        ("color_pages", counters.color),
        ("prints", counters.prints),
        ("copies", counters.copies),
        ("faxes", counters.faxes),
        ("scans", counters.scans),
        ("duplex_pages", counters.duplex),
    ] {
        tally.compare(key, text(row, key), found.map(|n| n.to_string()));
    }
}

fn compare_conditions(row: &Json, reading: &Reading, tally: &mut Tally) {
    let Some(bits) = row.get("error_bits").and_then(Json::as_array) else { return };
    let plain = |word: &str| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase();
    let wanted: Vec<String> = bits.iter().filter_map(Json::as_str).map(plain).collect();
    let found: Vec<String> = reading.conditions.iter().map(|condition| plain(condition.word())).collect();
    tally.compare("conditions", Some(wanted.join(" ")), Some(found.join(" ")));
}

fn compare_supplies(row: &Json, found: &[Supply], tally: &mut Tally) {
    let wanted = row["supplies"].as_array().cloned().unwrap_or_default();
    let mut left: Vec<&Supply> = found.iter().collect();
    for supply in &wanted {
        let name = supply["name"].as_str().unwrap_or_default();
        let index: Option<u32> =
            supply["index"].as_str().and_then(|index| index.rsplit('.').next()?.parse().ok());
        let at = left.iter().position(|found| match index {
            Some(index) => found.index == index,
            None => found.name.eq_ignore_ascii_case(name),
        });
        match at {
            Some(at) => compare_supply(supply, left.remove(at), tally),
            None => tally.missing.push(format!("supply {name}")),
        }
    }
    tally.invented.extend(left.iter().map(|supply| format!("supply {} {}", supply.index, supply.name)));
}

fn compare_supply(wanted: &Json, found: &Supply, tally: &mut Tally) {
    let name = wanted["name"].as_str().unwrap_or_default();
    let field = |key: &str| format!("{name} {key}");
    tally.compare(&field("name"), Some(name.to_lowercase()), Some(found.name.to_lowercase()));
    let number = |key: &str| wanted[key].as_i64().filter(|n| *n >= 0).map(|n| n.to_string());
    let percent = number("percent");
    tally.compare(&field("percent"), percent, found.percent.map(|p| p.to_string()));
    if wanted.get("level").is_some() || found.level.is_some() {
        tally.compare(&field("level"), number("level"), found.level.map(|n| n.to_string()));
    }
    tally.compare(&field("max"), number("max"), found.max.map(|n| n.to_string()));
    // A part number or a foreign word tells more than the rows expect: only a contradiction is wrong.
    if wanted.get("color").is_some() {
        tally.compare(&field("color"), text(wanted, "color"), found.color.clone().map(String::from));
    }
    let state = match wanted["level"].as_i64() {
        Some(-1) => Some(SupplyState::Unlimited),
        Some(-2) => Some(SupplyState::Unknown),
        Some(-3) => Some(SupplyState::Some),
        _ => None,
    };
    if let Some(state) = state {
        tally.compare(&field("state"), Some(state.word().to_owned()), Some(found.state.word().to_owned()));
    }
    let kind = match wanted["type"].as_str() {
        Some("toner") => Some(SupplyKind::Toner),
        Some("ink") => Some(SupplyKind::Ink),
        Some("drum") => Some(SupplyKind::Drum),
        Some("waste") => Some(SupplyKind::WasteToner),
        Some("fuser") => Some(SupplyKind::Fuser),
        Some("transferUnit") => Some(SupplyKind::Transfer),
        // `other` is the standard's word for what only the name tells.
        _ => None,
    };
    if let Some(kind) = kind {
        tally.compare(&field("kind"), Some(kind.word().to_owned()), Some(found.kind.word().to_owned()));
    }
}

#[test]
fn every_recorded_printer_is_read_right() {
    let Some(folder) = devices() else { return };
    let expected: Json =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut all = Tally::default();
    for path in files(&folder.join("recordings")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let (finished, cost) = Responder::load(&path).read(Via::SnmpV2c, None);
        assert!(finished.complete, "{name}");
        let tally = match &finished.reading {
            Some(reading) => compare(&expected[&name], reading),
            None => Tally { missing: vec!["everything".to_owned(); 5], ..Tally::default() },
        };
        let (right, wrong) = (tally.right, tally.wrong.len());
        let (missing, invented) = (tally.missing.len(), tally.invented.len());
        let (packets, octets) = (cost.packets, cost.octets);
        eprintln!(
            "{right:4} right {wrong:2} wrong {missing:2} missing {invented:2} invented {packets:3} packets {octets:6} octets  {name}"
        );
        for (what, list) in
            [("wrong", &tally.wrong), ("missing", &tally.missing), ("invented", &tally.invented)]
        {
            list.iter().for_each(|line| eprintln!("        {what:8} {line}"));
        }
        all.right += tally.right;
        all.wrong.extend(tally.wrong);
        all.missing.extend(tally.missing);
        all.invented.extend(tally.invented);
    }
    let fields = all.right + all.wrong.len() + all.missing.len();
    let (wrong, missing, invented) = (all.wrong.len(), all.missing.len(), all.invented.len());
    eprintln!("{} of {fields} right, {wrong} wrong, {missing} missing, {invented} invented", all.right);
    assert!(all.wrong.is_empty() && all.invented.is_empty());
    assert!(all.right * 1000 >= fields * FLOOR_PER_MILLE);
}

#[test]
fn nothing_else_is_taken_for_a_printer() {
    let Some(folder) = devices() else { return };
    for path in files(&folder.join("not-printers")).into_iter().chain(files(&folder.join("routers"))) {
        let responder = Responder::load(&path);
        let probe: Vec<VarBind> = probe_oids().iter().map(|oid| responder.get(oid)).collect();
        let verdict = judge(&probe);
        let (finished, cost) = responder.read(Via::SnmpV2c, None);
        eprintln!("{verdict:?} after the probe, {} packets more: {}", cost.packets, path.display());
        assert_ne!(verdict, Verdict::Printer, "{}", path.display());
        assert!(finished.reading.is_none(), "{}", path.display());
        assert!(cost.packets <= 3);
    }
}

#[test]
fn a_repeated_read_is_short_and_says_the_same() {
    let Some(folder) = devices() else { return };
    for path in files(&folder.join("recordings")) {
        let responder = Responder::load(&path);
        let (first, _) = responder.read(Via::SnmpV2c, None);
        let (second, cost) = responder.read(Via::SnmpV2c, Some(first.plan));
        assert_eq!(first.reading, second.reading, "{}", path.display());
        eprintln!("{} packets, {} octets again: {}", cost.packets, cost.octets, path.display());
        assert!(cost.packets <= 3, "{}", path.display());
    }
}

#[test]
fn a_poor_responder_gives_the_same_reading() {
    let Some(folder) = devices() else { return };
    for path in files(&folder.join("recordings")) {
        let mut responder = Responder::load(&path);
        let (good, _) = responder.read(Via::SnmpV2c, None);
        for (manner, via) in
            [(Manner::V1, Via::SnmpV1), (Manner::NoBulk, Via::SnmpV2c), (Manner::Small(9), Via::SnmpV2c)]
        {
            responder.manner = manner;
            let (poor, cost) = responder.read(via, None);
            let name = path.display();
            assert!(poor.complete, "{name}: {} packets", cost.packets);
            let same = poor.reading.map(|reading| Reading { via: vec![Via::SnmpV2c], ..reading });
            assert_eq!(good.reading, same, "{name}");
        }
    }
}

#[test]
fn system_descriptions_are_judged() {
    let Some(folder) = devices() else { return };
    let mut rows = csv::Reader::from_path(folder.join("fingerprints.csv")).unwrap();
    let (mut right, mut all, mut taken) = (0, 0, 0);
    for row in rows.records().map(|row| row.unwrap()).filter(|row| &row[0] == "sysDescr") {
        let value = Value::OctetString(bytes::Bytes::copy_from_slice(row[1].as_bytes()));
        let verdict = judge(&[VarBind { oid: "1.3.6.1.2.1.1.1.0".parse().unwrap(), value }]);
        let printer = &row[5] == "true";
        all += 1;
        if (verdict == Verdict::Printer) == printer {
            right += 1;
        } else {
            eprintln!("{verdict:?} but printer {printer}: {}", &row[1]);
            taken += usize::from(!printer);
        }
    }
    eprintln!("{right} of {all} system descriptions right, {taken} taken for printers");
    assert!(right * 100 >= all * 97);
    assert_eq!(taken, 0);
}

/// Parts that a device may lack; what is left must not turn into something wrong.
const PARTS: [&str; 12] = [
    "1.3.6.1.2.1.1.1.",
    "1.3.6.1.2.1.1.2.",
    "1.3.6.1.2.1.1.",
    "1.3.6.1.2.1.2.2.1.3.",
    "1.3.6.1.2.1.25.3.2.1.2.",
    "1.3.6.1.2.1.25.",
    "1.3.6.1.2.1.43.5.",
    "1.3.6.1.2.1.43.10.",
    "1.3.6.1.2.1.43.11.1.1.3.",
    "1.3.6.1.2.1.43.12.",
    "1.3.6.1.2.1.43.",
    "1.3.6.1.4.1.",
];

#[test]
fn a_device_that_lacks_a_part_is_never_read_wrong() {
    let Some(folder) = devices() else { return };
    let expected: Json =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    for path in files(&folder.join("recordings")) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = String::from_utf8_lossy(&std::fs::read(&path).unwrap()).into_owned();
        for part in PARTS {
            let rest: Vec<&str> = text.lines().filter(|line| !line.starts_with(part)).collect();
            let (finished, _) = Responder::of(&rest.join("\n")).read(Via::SnmpV2c, None);
            let Some(reading) = finished.reading else { continue };
            let tally = compare(&expected[&name], &reading);
            // Brand, model and total have second sources that may say it otherwise; nothing else has.
            let open = ["vendor:", "model:", "total_pages:", "conditions:"];
            let mut wrong = tally.wrong.iter().chain(&tally.invented);
            let wrong = wrong.find(|line| !open.iter().any(|field| line.starts_with(field)));
            assert_eq!(wrong, None, "{name} without {part}");
        }
    }
}
