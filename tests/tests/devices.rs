//! Who is who, end to end: what an operator merges, types and takes back on site is what the Web Admin shows, and
//! every reading is there exactly once.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, wait};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

/// For a sweep of 16 addresses with its retries, on a busy machine.
const SWEEP: Duration = Duration::from_secs(120);

/// Of a unit of 16 addresses that nobody measured, milliseconds a day.
const ESTIMATE: u64 = 16 * 9;

#[test]
fn what_an_operator_decides_holds_on_site_and_upstream() {
    scenario().unwrap();
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 27, 0, 1);
    let port = free_udp_port(base.into())?;
    let fleet = Fleet::start(&Spec { base, port, printers: 3, others: 0, ..Spec::default() })?;
    let mut cluster = Cluster::start(&["n1"])?;
    cluster.start_admin()?;
    cluster.enroll("demo site")?;
    cluster.apply(&settings(&["127.27.0.0/28", "127.27.1.0/28"], port, 500))?;
    wait("three printers on site and upstream", SWEEP, || both_show(&cluster, 3).map(drop))?;
    let before = both_show(&cluster, 3)?;
    wait("the plan to say what the empty unit was measured to cost", TRANSITION, || {
        let costs = cluster.list(&["units"])?.iter().map(|unit| unit["cost"].as_u64()).collect::<Vec<_>>();
        ensure!(costs.iter().flatten().any(|cost| *cost != ESTIMATE), "still the estimates: {costs:?}");
        Ok(())
    })?;

    typed_values_stand(&cluster, &before[0])?;
    merges_are_taken_back(&cluster, &before)?;
    ensure!(fleet.counts().iter().all(|count| count.sets == 0), "a device was sent a SET");
    cluster.finish()
}

fn text<'a>(row: &'a Value, key: &str) -> &'a str {
    row.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The ids of so many devices, the same on site and upstream, where no reading belongs to anybody else.
fn both_show(cluster: &Cluster, count: usize) -> Result<Vec<String>> {
    let ids = |rows: Vec<Value>| rows.iter().map(|row| text(row, "id").to_owned()).collect::<BTreeSet<_>>();
    let (site, upstream) = (ids(cluster.list(&["devices"])?), ids(cluster.admin_list("devices")?));
    ensure!(site == upstream && site.len() == count, "{site:?} on site, {upstream:?} upstream");
    for readings in [cluster.list(&["readings"])?, cluster.admin_list("readings")?] {
        let all = readings.len();
        let strange = readings.iter().find(|reading| !site.contains(text(reading, "device")));
        ensure!(strange.is_none(), "a reading of {strange:?}");
        ensure!(ids(readings).len() == all, "a reading is there twice");
    }
    Ok(site.into_iter().collect())
}

fn typed_values_stand(cluster: &Cluster, device: &str) -> Result<()> {
    cluster.any(&["device", "set", device, "location=Room 7"])?.ok()?;
    let shown = |rows: &[Value]| -> Result<()> {
        let row = rows.iter().find(|row| text(row, "id") == device).context("the device is gone")?;
        ensure!(text(row, "location") == "Room 7", "{row}");
        ensure!(row["sources"]["location"] == "operator", "{row}");
        Ok(())
    };
    shown(&cluster.list(&["devices"])?)?;
    wait("the Web Admin to show it", TRANSITION, || shown(&cluster.admin_list("devices")?))?;
    let wrong = cluster.any(&["device", "set", device, "serial=X"])?;
    ensure!(wrong.code == 1 && wrong.stderr.contains("name, location, asset"), "{}", wrong.stderr);
    let details = cluster.list(&["device", "show", device])?;
    ensure!(details[0]["evidence"][0]["serial_from"].is_string(), "{}", details[0]);
    Ok(())
}

fn merges_are_taken_back(cluster: &Cluster, before: &[String]) -> Result<()> {
    let said = cluster.any(&["merge", &before[0], &before[1]])?.ok()?;
    wait("two devices on site and upstream", TRANSITION, || both_show(cluster, 2).map(drop))?;
    let decided = cluster.list(&["decisions"])?;
    ensure!(decided.len() == 1, "{decided:?}");
    let number = decided[0]["id"].as_u64().context("no number")?.to_string();
    ensure!(said.contains(&format!("quire undo {number}")), "it says: {said}");
    cluster.any(&["undo", &number])?.ok()?;
    wait("three devices again", TRANSITION, || {
        ensure!(both_show(cluster, 3)? == before, "other ids than before");
        Ok(())
    })?;
    let again = cluster.any(&["undo", &number])?;
    ensure!(again.code == 1 && again.stderr.contains("no decision"), "{}", again.stderr);
    let audit = cluster.list(&["audit"])?;
    let told = |start: &str| audit.iter().any(|row| text(row, "what").starts_with(start));
    ensure!(told("merged devices") && told("took back"), "{audit:?}");
    ensure!(cluster.list(&["review"])?.is_empty(), "nothing is doubtful");
    let events = cluster.list(&["events"])?;
    ensure!(events.is_empty(), "what was decided and taken back happened to no device: {events:?}");
    Ok(())
}
