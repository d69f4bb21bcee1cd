//! Devices that fall silent in a running cluster leave the reports, on site and upstream, and come back with their ids
//! when they answer again.

use anyhow::{Result, ensure};
use quire_tests::cluster::{Cluster, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, wait};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

/// How long a device may be silent here: the shortest that settings take. Read every 10 s, so a few reads may be late.
const EXPIRE_AFTER: &str = "60s";

/// For a sweep, and for a device to expire, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn silent_devices_leave_the_reports_and_come_back() {
    scenario().unwrap();
}

fn ids(rows: &[Value]) -> BTreeSet<String> {
    rows.iter().filter_map(|row| row["id"].as_str()).map(str::to_owned).collect()
}

/// Waits until site and Web Admin list these devices; gives what they list where none are named.
fn both_list(cluster: &Cluster, what: &str, count: usize) -> Result<BTreeSet<String>> {
    wait(what, PATIENCE, || {
        let (site, upstream) = (ids(&cluster.list(&["devices"])?), ids(&cluster.admin_list("devices")?));
        ensure!(site == upstream && site.len() == count, "{site:?} on site, {upstream:?} upstream");
        Ok(site)
    })
}

fn happened(cluster: &Cluster, kind: &str) -> Result<BTreeSet<String>> {
    let events = cluster.list(&["events"])?;
    let of_kind = events.iter().filter(|event| event["kind"] == kind);
    Ok(of_kind.filter_map(|event| event["device"].as_str()).map(str::to_owned).collect())
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 48, 0, 1);
    let port = free_udp_port(base.into())?;
    let spec = Spec { base, port, printers: 2, others: 0, ..Spec::default() };
    let fleet = Fleet::start(&spec)?;
    let mut cluster = Cluster::start(&["n1", "n2"])?;
    cluster.start_admin()?;
    cluster.enroll("demo site")?;
    let often = format!("every = \"10s\"\nexpire_after = \"{EXPIRE_AFTER}\"");
    cluster.apply(&settings(&["127.48.0.0/29"], port, 500).replace("every = \"10s\"", &often))?;
    let before = both_list(&cluster, "both printers on site and upstream", 2)?;

    drop(fleet);
    both_list(&cluster, "silent printers to leave the reports", 0)?;
    ensure!(happened(&cluster, "expired")?.is_superset(&before), "no event says that they left");
    let all = ids(&cluster.list(&["devices", "--all"])?);
    ensure!(all == before, "{all:?} with those that left, not {before:?}");
    let kept = cluster.list(&["readings"])?;
    ensure!(!kept.is_empty(), "their readings are history, and kept");

    let _fleet = Fleet::start(&spec)?;
    let after = both_list(&cluster, "the printers to come back", 2)?;
    ensure!(after == before, "they came back as others: {after:?}, not {before:?}");
    ensure!(happened(&cluster, "came-back")?.is_superset(&before), "no event says that they came back");
    cluster.finish()
}
