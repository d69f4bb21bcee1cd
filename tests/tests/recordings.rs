//! Real devices, as far as their answers were recorded: snmpsim serves each recording on its own address,
//! `quire discover` reads them, and `expected.json` says what should have been found.

use anyhow::{Context, Result};
use quire_tests::cluster::Programs;
use quire_tests::process::{complain, run};
use quire_tests::world::{Recordings, Served};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

/// snmpsim answers some hundred questions a second in all.
const PATIENCE: Duration = Duration::from_secs(300);

/// (recording, field, why): differences that are known and meant. A row that no longer differs fails too.
const KNOWN: &[(&str, &str, &str)] = &[];

#[test]
fn recorded_printers_are_read_as_expected() {
    let (Some(recordings), Some(_)) = (Recordings::find(), Recordings::responder()) else {
        complain("left out: recordings of real devices (QUIRE_DEVICES or snmpsim is not there)");
        return;
    };
    let differences = scenario(&recordings).unwrap();
    let known = |row: &(String, String, String)| {
        KNOWN.iter().any(|(file, field, _)| row.0 == *file && row.1 == *field)
    };
    let new: Vec<String> = differences
        .iter()
        .filter(|row| !known(row))
        .map(|(file, field, how)| format!("{file}: {field}: {how}"))
        .collect();
    let gone = |(file, field, _): &&(&str, &str, &str)| {
        !differences.iter().any(|row| row.0 == *file && row.1 == *field)
    };
    let gone: Vec<_> = KNOWN.iter().filter(gone).collect();
    assert!(new.is_empty(), "{} differences:\n{}", new.len(), new.join("\n"));
    assert!(gone.is_empty(), "no longer different, take them off the list: {gone:?}");
}

type Difference = (String, String, String);

fn scenario(recordings: &Recordings) -> Result<Vec<Difference>> {
    let base = Ipv4Addr::new(127, 23, 0, 1);
    let simulation = recordings.serve(base)?;
    let last = simulation.served.last().context("nothing is served")?.address;
    let (targets, port) = (format!("{base}-{last}"), simulation.port.to_string());
    let args =
        ["discover", &targets, "--port", &port, "--rate", "200", "--timeout", "5s", "--format", "json"];
    let found = run(&Programs::find()?.path("quire"), &args, PATIENCE)?.json()?;
    let by_address: BTreeMap<String, &Value> = found
        .iter()
        .map(|device| (device["address"].as_str().unwrap_or_default().to_owned(), device))
        .collect();
    let mut differences = Vec::new();
    for served in &simulation.served {
        let device = by_address.get(&served.address.to_string()).copied();
        let mut differ =
            |field: &str, how: String| differences.push((served.file.clone(), field.to_owned(), how));
        match (device, recordings.expected.get(&served.file)) {
            (Some(device), Some(expected)) if served.printer => compare(expected, device, &mut differ),
            (None, _) if served.printer => differ("found", "was not found".to_owned()),
            (Some(device), _) => differ("found", format!("is no printer, but reported: {device}")),
            (None, _) => {}
        }
    }
    complain(&summary(&simulation.served, &differences));
    Ok(differences)
}

fn summary(served: &[Served], differences: &[Difference]) -> String {
    let whole = served.iter().filter(|s| !differences.iter().any(|(file, ..)| *file == s.file)).count();
    format!("recordings: {whole} of {} as expected, {} differences", served.len(), differences.len())
}

/// Compares what `expected.json` knows; what it leaves out, the recording cannot answer.
fn compare(expected: &Value, device: &Value, differ: &mut impl FnMut(&str, String)) {
    let scrubbed: Vec<&str> =
        expected["scrubbed"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let wanted = |key: &str| expected[key].as_str().filter(|_| !scrubbed.contains(&key));
    if let Some(model) = wanted("model") {
        let models = [Some(model), wanted("model_derived"), wanted("model_peer")];
        let got = device["model"].as_str().unwrap_or_default();
        let vendor = expected["vendor"].as_str().unwrap_or_default();
        if !models.iter().flatten().any(|model| bare(model, vendor) == bare(got, vendor)) {
            differ("model", format!("{got:?}, not {model:?}"));
        }
    }
    if let Some(serial) = wanted("serial") {
        let serials = [Some(serial), wanted("serial_derived"), wanted("serial_peer")];
        let got = device["serial"].as_str();
        if !serials.contains(&got) {
            differ("serial", format!("{got:?}, not {serial:?}"));
        }
    }
    if let Some(mac) = wanted("mac") {
        let got = device["mac"].as_str();
        if got.map(str::to_lowercase) != Some(mac.to_lowercase()) {
            differ("mac", format!("{got:?}, not {mac:?}"));
        }
    }
    let totals: Vec<u64> = ["total_pages", "vendor_total"]
        .iter()
        .filter_map(|key| expected[*key].as_u64())
        .filter(|n| *n > 0)
        .collect();
    let got = device["counters"]["total"].as_u64();
    if !totals.is_empty() && !got.is_some_and(|got| totals.contains(&got)) {
        differ("total", format!("{got:?}, not one of {totals:?}"));
    }
    compare_supplies(expected, device, differ);
}

fn compare_supplies(expected: &Value, device: &Value, differ: &mut impl FnMut(&str, String)) {
    let list = |value: &Value| value["supplies"].as_array().cloned().unwrap_or_default();
    let got = list(device);
    for supply in list(expected) {
        let name = supply["name"].as_str().unwrap_or_default();
        let same_name = |row: &&Value| row["name"].as_str().is_some_and(|got| got.eq_ignore_ascii_case(name));
        let Some(row) = got.iter().find(same_name) else {
            differ("supplies", format!("{name:?} is missing"));
            continue;
        };
        let state = match supply["level"].as_i64() {
            Some(-3) => Some("some"),
            Some(-2) => Some("unknown"),
            Some(-1) => Some("unlimited"),
            _ => None,
        };
        // A percentage that the device reports elsewhere is better than its "some".
        if let Some(state) = state.filter(|state| row["state"] != *state && row["percent"].is_null()) {
            differ("supplies", format!("{name:?} is {}, not {state}", row["state"]));
        }
        if let Some(percent) = supply["percent"].as_i64()
            && !row["percent"].as_i64().is_some_and(|got| (got - percent).abs() <= 1)
        {
            differ("supplies", format!("{name:?} has {} %, not {percent}", row["percent"]));
        }
    }
}

/// Models are compared without maker, case and the word series.
fn bare(model: &str, vendor: &str) -> String {
    let model = model.to_lowercase().replace("series", "");
    let words = vendor.to_lowercase();
    model.replace(&words, "").split_whitespace().collect::<Vec<_>>().join(" ")
}
