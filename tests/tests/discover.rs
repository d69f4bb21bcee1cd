//! `quire discover` with no cluster at all, against simulated devices whose truth is known.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::Programs;
use quire_tests::fleet::{Faults, Fleet, Spec};
use quire_tests::printer::Truth;
use quire_tests::process::free_udp_port;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

#[test]
fn discover_finds_every_printer_and_nothing_else() {
    scenario().unwrap();
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 21, 0, 1);
    let port = free_udp_port(base.into())?;
    let faults = Faults { silent: 2, v1_only: 3, bulk_broken: 3, slow: 3, ..Faults::default() };
    let fleet = Fleet::start(&Spec { base, port, printers: 45, others: 15, faults, ..Spec::default() })?;
    let dir = tempfile::tempdir()?;
    let summary = dir.path().join("summary.json");
    let (port, file) = (port.to_string(), summary.display().to_string());
    let args = [
        "discover",
        "127.21.0.0/24",
        "--port",
        &port,
        "--rate",
        "1000",
        "--format",
        "json",
        "--summary",
        &file,
    ];
    let found = Programs::find()?.quire(&args)?.json()?;

    let mut by_address: BTreeMap<&str, &Value> = BTreeMap::new();
    for device in &found {
        let address = device["address"].as_str().with_context(|| format!("no address in {device}"))?;
        ensure!(by_address.insert(address, device).is_none(), "{address} is there twice");
    }
    for printer in fleet.printers() {
        let device = by_address.remove(printer.address.to_string().as_str());
        agrees(printer, device.with_context(|| format!("{printer:?} was not found"))?)?;
    }
    ensure!(by_address.is_empty(), "these are no printers: {by_address:?}");

    let summary: Value = serde_json::from_slice(&std::fs::read(summary).context("read the summary")?)?;
    ensure!(summary["devices"] == 43, "{summary}");
    ensure!(summary["responders"] == 58, "{summary}");
    let heard: u64 = fleet.counts().iter().map(|count| count.received).sum();
    ensure!(summary["packets_sent"].as_u64() >= Some(heard), "{heard} packets were heard, {summary}");
    ensure!(fleet.counts().iter().all(|count| count.sets == 0), "a device was sent a SET");
    Ok(())
}

fn agrees(printer: &Truth, device: &Value) -> Result<()> {
    let same = |key: &str, expected: &str| {
        let got = device[key].as_str();
        ensure!(got == Some(expected), "{}: {key} is {got:?}, not {expected:?}", printer.address);
        Ok(())
    };
    same("vendor", &printer.vendor)?;
    same("mac", &printer.mac)?;
    same("serial", printer.serial.as_deref().unwrap_or_default())?;
    let model = device["model"].as_str().unwrap_or_default();
    ensure!(bare(model, "") == bare(&printer.model, &printer.vendor), "{printer:?} is a {model:?}");
    let total = device["counters"]["total"].as_u64();
    ensure!(total >= printer.total && total.is_some(), "{printer:?} has a total of {total:?}");
    let supplies = device["supplies"].as_array().map_or(0, Vec::len);
    ensure!(supplies == printer.supplies, "{printer:?} has {supplies} supplies: {device}");
    let low = device["supplies"].as_array().into_iter().flatten().any(|supply| supply["state"] == "low");
    let conditions = device["conditions"].as_array().is_some_and(|list| list.contains(&"low-toner".into()));
    ensure!(conditions == printer.low, "{printer:?} says {} {low}", device["conditions"]);
    Ok(())
}

/// Models are compared without maker, case and the word series.
fn bare(model: &str, maker: &str) -> String {
    let model = model.to_lowercase();
    let makers = [
        "hp",
        "brother",
        "canon",
        "ricoh",
        "konica minolta",
        "sharp",
        "xerox",
        "lexmark",
        "epson",
        "samsung",
    ];
    let model = makers.iter().find_map(|maker| model.strip_prefix(&format!("{maker} "))).unwrap_or(&model);
    let model = model.strip_prefix(&maker.to_lowercase()).unwrap_or(model);
    model.replace("series", "").split_whitespace().collect::<Vec<_>>().join(" ")
}
