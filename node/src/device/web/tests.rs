//! Captured pages and IPP answers, served by a real server and read over the wire.

#![allow(clippy::print_stdout, clippy::print_stderr)] // The tally is what a human wants to see.

use std::path::{Path, PathBuf};

use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use quire_proto::reading::{SupplyKind, SupplyState};
use serde_json::Value;

use super::super::http::tests::serve;
use super::*;

/// The captured devices, where this machine has them.
fn devices() -> Option<PathBuf> {
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/devices");
    let path = std::env::var_os("QUIRE_DEVICES").map_or(default, PathBuf::from);
    if !path.join("web").is_dir() {
        eprintln!("no captured devices at {}: nothing to compare", path.display());
        return None;
    }
    Some(path)
}

fn asking(port: u16) -> Asking {
    Asking { ports: vec![port], unknown: true, ..Asking::default() }
}

const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

/// Serves a captured device as it was: the paths of its meta.json and nothing else.
async fn device(folder: &Path, meta: &Value) -> u16 {
    let files: Vec<(String, String, Vec<u8>)> = meta["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, what)| {
            let file = folder.join(what["file"].as_str().unwrap());
            let path = path.split('?').next().unwrap().to_owned();
            (path, what["content_type"].as_str().unwrap().to_owned(), std::fs::read(file).unwrap())
        })
        .collect();
    let kyocera = meta["vendor"] == "Kyocera";
    serve(move |request: Request| {
        let said = |name| request.headers().get(name).map_or("", |v| v.to_str().unwrap()).to_owned();
        let model_page = request.uri().path().starts_with("/js/");
        let from_start = said(header::REFERER).ends_with("/startwlm/Start_Wlm.htm");
        if kyocera && model_page && !(from_start && said(header::COOKIE).contains("rtl=0")) {
            return StatusCode::FORBIDDEN.into_response();
        }
        match files.iter().find(|(path, _, _)| path == request.uri().path()) {
            Some((_, kind, text)) => ([(header::CONTENT_TYPE, kind.clone())], text.clone()).into_response(),
            None => StatusCode::NOT_FOUND.into_response(),
        }
    })
    .await
}

/// Compares, and counts what was right, wrong or missing.
#[derive(Debug, Default)]
struct Tally {
    right: usize,
    missing: Vec<String>,
    wrong: Vec<String>,
}

impl Tally {
    fn field(&mut self, what: String, wanted: Option<String>, found: Option<String>) {
        match (wanted, found) {
            (None, None) => {}
            (Some(wanted), Some(found)) if wanted.eq_ignore_ascii_case(&found) => self.right += 1,
            (Some(wanted), None) => self.missing.push(format!("{what}: {wanted}")),
            (wanted, found) => self.wrong.push(format!("{what}: {found:?} instead of {wanted:?}")),
        }
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn compare(name: &str, meta: &Value, reading: &Reading, tally: &mut Tally) {
    let expected = &meta["expected"];
    let facts = &reading.facts;
    let mut check = |field: &str, wanted: Option<String>, found: Option<String>| {
        tally.field(format!("{name} {field}"), wanted, found);
    };
    // Where the page has no model, meta.json names the device all the same.
    let model = text(&expected["model"]).or(text(&meta["model"]).filter(|_| facts.model.is_some()));
    check("model", model, facts.model.clone());
    check("serial", text(&meta["serial"]).filter(|_| facts.serial.is_some()), facts.serial.clone());
    check("firmware", text(&expected["firmware"]), facts.firmware.clone());
    let vendor = facts.vendor.is_some().then(|| text(&meta["vendor"])).flatten();
    check("vendor", vendor, facts.vendor.clone());
    let mac = text(&expected["mac"]).filter(|mac| mac != "00:00:00:00:00:00");
    check("mac", mac, facts.mac.map(|mac| mac.to_string()));
    let host = ["hostname", "network_name", "node_name"].iter().find_map(|key| text(&expected[*key]));
    check("name", host, facts.name.clone());
    let counters = serde_json::to_value(&reading.counters).unwrap();
    for key in ["total", "mono", "color", "prints", "copies", "faxes", "scans", "duplex", "large"] {
        let number = |value: &Value| value.as_u64().map(|n| n.to_string());
        check(&format!("counters.{key}"), number(&expected["counters"][key]), number(&counters[key]));
    }
    compare_supplies(name, expected, reading, tally);
}

fn compare_supplies(name: &str, expected: &Value, reading: &Reading, tally: &mut Tally) {
    let mut wanted: Vec<(String, Option<u64>)> = Vec::new();
    for supply in expected["supplies"].as_array().into_iter().flatten() {
        let key = supply["color"].as_str().unwrap_or("none");
        wanted.push((key.to_owned(), supply["level_pct"].as_u64()));
    }
    for (key, level) in expected["toner_pct"].as_object().into_iter().flatten() {
        wanted.push((key.clone(), level.as_u64()));
    }
    for (code, level) in expected["ink_pct"].as_object().into_iter().flatten() {
        let color = super::super::ews::color_of_code(code).unwrap_or("none");
        wanted.push((color.to_owned(), level.as_u64()));
    }
    for (key, color) in [("toner_life_pct", "black"), ("drum_life_pct", "none")] {
        wanted.extend(expected[key].as_f64().map(|level| (color.to_owned(), Some(level as u64))));
    }
    // A box of which nobody knows whether its bar says used or left has no level.
    let found = reading.supplies.iter().filter(|s| s.kind != SupplyKind::WasteToner || s.percent.is_some());
    let mut found: Vec<(String, Option<u64>)> =
        found.map(|s| (s.color.as_deref().unwrap_or("none").to_owned(), s.percent.map(u64::from))).collect();
    wanted.sort();
    found.sort();
    for n in 0..wanted.len().max(found.len()) {
        let show = |pair: Option<&(String, Option<u64>)>| pair.map(|pair| format!("{pair:?}"));
        tally.field(format!("{name} supply {n}"), show(wanted.get(n)), show(found.get(n)));
    }
}

/// Every captured device, once as SNMP knows its brand and once as nobody does.
#[tokio::test]
async fn captured_pages_are_read_as_they_were_meant() {
    let Some(devices) = devices() else { return };
    let mut tally = Tally::default();
    let mut folders: Vec<PathBuf> =
        std::fs::read_dir(devices.join("web")).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    for folder in folders.iter().filter(|folder| folder.join("meta.json").is_file()) {
        let name = folder.file_name().unwrap().to_string_lossy();
        let meta: Value = serde_json::from_slice(&std::fs::read(folder.join("meta.json")).unwrap()).unwrap();
        let port = device(folder, &meta).await;
        let (reading, learnt) = complete(Reading::default(), HOST, &asking(port)).await;
        assert!(learnt.found, "{name}: nothing found");
        assert_eq!(reading.via, [Via::Http], "{name}");
        assert!(reading.sources.values().all(|path| path.starts_with('/')), "{name}: {:?}", reading.sources);
        compare(&name, &meta, &reading, &mut tally);
        let mut branded = Reading::default();
        branded.facts.vendor = text(&meta["vendor"]);
        let known = Asking { unknown: false, ..asking(port) };
        let (again, _) = complete(branded, HOST, &known).await;
        assert_eq!((&again.counters, &again.supplies), (&reading.counters, &reading.supplies), "{name}");
    }
    println!("pages: {} right, missing {:#?}, wrong {:#?}", tally.right, tally.missing, tally.wrong);
    assert!(tally.wrong.is_empty(), "{:#?}", tally.wrong);
    assert!(tally.missing.is_empty(), "{:#?}", tally.missing);
    assert!(tally.right >= 100, "{}", tally.right);
}

/// Serves one IPP answer at one path; the question must be the one that may be asked.
async fn printer(path: &'static str, octets: Vec<u8>) -> u16 {
    serve(move |request: Request| -> Response {
        let ipp = request.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/ipp");
        if request.method() != "POST" || !ipp || request.uri().path() != path {
            return StatusCode::NOT_FOUND.into_response();
        }
        ([(header::CONTENT_TYPE, "application/ipp")], octets.clone()).into_response()
    })
    .await
}

async fn attributes(octets: Vec<u8>) -> Option<Reading> {
    let port = printer("/ipp/print", octets).await;
    let mut learnt = Learnt::default();
    // Straight to the port: the own port of IPP may be anybody's on the machine of the test.
    let mut visit = visit(HOST, &asking(port), &[port], port).unwrap();
    note(&visit, &mut learnt);
    let octets = visit.get_printer_attributes("/ipp/print").await.ok()?;
    ipp::read(&octets, "ipp:/ipp/print")
}

fn compare_printer(name: &str, expected: &Value, reading: Option<&Reading>, tally: &mut Tally) {
    let derived = &expected["derived"];
    // ippeveprinter is a printer to everybody who asks it.
    // A simulator built like a spooler's queue cannot be told from one.
    let queue = derived["is_device"] == false || name.starts_with("simulated");
    if queue && !name.starts_with("ippeveprinter") {
        assert!(reading.is_none(), "{name}: a queue was taken for a device");
        return;
    }
    let Some(reading) = reading else { panic!("{name}: not read") };
    let model = text(&derived["make_and_model"]);
    tally.field(format!("{name} model"), model, reading.facts.model.clone());
    let serial = text(&derived["serial_in_device_id"]);
    let serial = serial.map(|serial| super::super::text::unhex(&serial).unwrap_or(serial));
    tally.field(format!("{name} serial"), serial, reading.facts.serial.clone());
    assert!(reading.counters.is_empty(), "{name}: {:?}", reading.counters);
    let Some(wanted) = derived["supplies"].as_array() else { return };
    assert_eq!(wanted.len(), reading.supplies.len(), "{name}: {:?}", reading.supplies);
    for (wanted, found) in wanted.iter().zip(&reading.supplies) {
        let what = format!("{name} {}", found.name);
        tally.field(format!("{what} name"), text(&wanted["name"]), Some(found.name.to_string()));
        let level = wanted["level"].as_u64().filter(|_| found.kind != SupplyKind::WasteToner);
        tally.field(what.clone(), level.map(|n| n.to_string()), found.percent.map(|n| n.to_string()));
        assert_eq!(
            wanted["level"] == -2,
            found.state == SupplyState::Unknown && found.percent.is_none(),
            "{what}"
        );
    }
}

#[tokio::test]
async fn captured_ipp_answers_are_read_and_broken_ones_survived() {
    let Some(devices) = devices() else { return };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(devices.join("ipp/expected.json")).unwrap()).unwrap();
    let mut tally = Tally::default();
    for (name, expected) in expected.as_object().unwrap() {
        let octets = std::fs::read(devices.join("ipp").join(name)).unwrap();
        let reading = attributes(octets).await;
        if !name.starts_with("malformed/") {
            compare_printer(name, expected, reading.as_ref(), &mut tally);
        }
    }
    println!("ipp: {} right, missing {:#?}, wrong {:#?}", tally.right, tally.missing, tally.wrong);
    assert!(tally.wrong.is_empty() && tally.missing.is_empty(), "{:#?} {:#?}", tally.wrong, tally.missing);
    assert!(tally.right >= 200, "{}", tally.right);
}

/// A device that answers slowly in the middle, and one whose login is refused, cost themselves only.
#[tokio::test]
async fn pages_behind_a_login_stay_unknown() {
    let port =
        serve(|_| (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Basic realm=x")]).into_response())
            .await;
    let login = Some(Arc::new(Login::new("viewer", "top secret")));
    let (reading, learnt) = complete(Reading::default(), HOST, &Asking { login, ..asking(port) }).await;
    assert_eq!(reading, Reading::default());
    assert!(learnt.login_refused && !learnt.found);
}

#[tokio::test]
async fn a_reading_that_lacks_nothing_asks_nothing() {
    let mut whole = Reading::default();
    whole.facts.serial = Some("S1".into());
    whole.facts.vendor = Some("HP".into());
    whole.counters.total = Some(1);
    whole.supplies = vec![quire_proto::reading::Supply {
        index: 1,
        name: "Black".into(),
        kind: SupplyKind::Toner,
        color: None,
        level: None,
        max: None,
        unit: None,
        percent: Some(5),
        state: SupplyState::Low,
    }];
    let port = serve(|_| panic!("asked")).await;
    let (reading, learnt) = complete(whole.clone(), HOST, &Asking { ipp: true, ..asking(port) }).await;
    assert_eq!((reading, learnt), (whole, Learnt::default()));
}
