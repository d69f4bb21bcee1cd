//! The main job, end to end: three real nodes find a simulated fleet, lose their leader to `kill -9` in the
//! middle of a sweep, and the Web Admin still has every reading exactly once.

use anyhow::{Context, Result, bail, ensure};
use quire_tests::cluster::{Cluster, Status, TRANSITION, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, wait};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// For a sweep of 2,048 addresses at 500 packets a second with its retries, on a busy machine.
const SWEEP: Duration = Duration::from_secs(120);

#[test]
fn three_nodes_lose_their_leader_and_no_reading() {
    scenario().unwrap();
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 20, 0, 1);
    let port = free_udp_port(base.into())?;
    let fleet = Fleet::start(&Spec { base, port, printers: 60, others: 20, per_net: 10, ..Spec::default() })?;
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    cluster.start_admin()?;
    cluster.enroll("demo site")?;
    cluster.apply(&settings(&["127.20.0.0/21"], port, 500))?;

    everything_is_found_once(&cluster, &fleet)?;
    every_unit_has_an_owner(&cluster, 3)?;
    let before = upstream_has_every_reading_once(&cluster)?;

    let dead = kill_the_leader_in_a_sweep(&mut cluster, &fleet)?;
    let leader = cluster.leader()?;
    ensure!(leader != dead, "the dead node {dead} still leads");
    every_unit_has_an_owner(&cluster, 2)?;
    wait("the link to move", TRANSITION, || {
        let upstream = cluster.await_upstream()?.upstream;
        ensure!(upstream.holder.as_deref().is_some_and(|holder| holder != dead), "it is {upstream:?}");
        Ok(())
    })?;

    every_device_is_read_again(&cluster, &before)?;
    upstream_has_every_reading_once(&cluster)?;
    everything_is_found_once(&cluster, &fleet)?;
    the_web_admin_knows_each_device(&cluster, &fleet)?;

    cluster.restart(&dead)?;
    cluster.await_whole()?;
    ensure!(fleet.counts().iter().all(|count| count.sets == 0), "a device was sent a SET");
    cluster.finish()
}

fn text<'a>(row: &'a Value, key: &str) -> Option<&'a str> {
    row.get(key).and_then(Value::as_str)
}

fn ids(rows: &[Value]) -> Result<BTreeSet<String>> {
    let mut ids = BTreeSet::new();
    for row in rows {
        let id = text(row, "id").with_context(|| format!("no id in {row}"))?;
        ensure!(ids.insert(id.to_owned()), "{id} is there twice");
    }
    Ok(ids)
}

/// Every printer by its serial, once, with its MAC and a total that is not behind the truth; nothing else.
fn everything_is_found_once(cluster: &Cluster, fleet: &Fleet) -> Result<()> {
    wait("every printer", SWEEP, || {
        let devices = cluster.list(&["devices"])?;
        ids(&devices)?;
        let mut by_serial: BTreeMap<&str, &Value> = BTreeMap::new();
        for device in &devices {
            let serial = text(device, "serial").with_context(|| format!("no serial in {device}"))?;
            ensure!(by_serial.insert(serial, device).is_none(), "{serial} is there twice");
        }
        for printer in fleet.printers() {
            let serial = printer.serial.as_deref().context("a printer without a serial")?;
            let device = by_serial.remove(serial).with_context(|| format!("{printer:?} was not found"))?;
            ensure!(text(device, "mac") == Some(&printer.mac), "{printer:?} is {device}");
            ensure!(device["counters"]["total"].as_u64() >= printer.total, "{printer:?} is {device}");
        }
        ensure!(by_serial.is_empty(), "these are no printers of the fleet: {by_serial:?}");
        Ok(())
    })
}

/// No unit is unassigned, and `owners` nodes, all alive, own some.
fn every_unit_has_an_owner(cluster: &Cluster, owners: usize) -> Result<Status> {
    wait("every unit to have an owner", TRANSITION, || {
        let status = cluster.status()?;
        ensure!(status.units >= 8 && status.unassigned == 0, "{status:?}");
        let own: Vec<_> = status.members.iter().filter(|member| member.units > 0).collect();
        ensure!(own.len() == owners && own.iter().all(|member| member.alive), "{status:?}");
        ensure!(own.iter().map(|member| member.units).sum::<u64>() == status.units, "{status:?}");
        let units = cluster.list(&["units"])?;
        ensure!(units.len() as u64 == status.units, "{} rows of {}", units.len(), status.units);
        let names: BTreeSet<_> = own.iter().map(|member| member.name.as_str()).collect();
        match units.iter().find(|unit| !text(unit, "node").is_some_and(|node| names.contains(node))) {
            Some(unit) => bail!("{unit} is owned by none of {names:?}"),
            None => Ok(status),
        }
    })
}

/// Everything that the site has now arrives upstream, and nothing there is double or unknown to the site.
fn upstream_has_every_reading_once(cluster: &Cluster) -> Result<BTreeMap<String, usize>> {
    let readings = cluster.list(&["readings"])?;
    let here = ids(&readings)?;
    ensure!(!here.is_empty(), "there is no reading");
    wait("the Web Admin to have every reading", TRANSITION, || {
        let there = ids(&cluster.admin_list("readings")?)?;
        let missing: Vec<_> = here.difference(&there).take(3).collect();
        ensure!(missing.is_empty(), "{missing:?} are missing");
        let known = ids(&cluster.list(&["readings"])?)?;
        let unknown: Vec<_> = there.difference(&known).take(3).collect();
        ensure!(unknown.is_empty(), "{unknown:?} are unknown to the site");
        Ok(())
    })?;
    let mut count = BTreeMap::new();
    for reading in &readings {
        *count.entry(text(reading, "device").context("a reading of no device")?.to_owned()).or_default() += 1;
    }
    Ok(count)
}

/// The sweep takes 4 s at the least, so the leader dies while addresses are still being asked. What is no printer
/// is only ever asked by a sweep, so a packet there shows that it has begun.
fn kill_the_leader_in_a_sweep(cluster: &mut Cluster, fleet: &Fleet) -> Result<String> {
    let leader = cluster.leader()?;
    let heard = || {
        let rows = fleet.truth().iter().zip(fleet.counts());
        rows.filter(|(truth, _)| !truth.printer).map(|(_, count)| count.received).sum::<u64>()
    };
    let before = heard();
    cluster.any(&["sweep"])?.ok()?;
    wait("the sweep to begin", TRANSITION, || {
        ensure!(heard() > before, "no packet so far");
        Ok(())
    })?;
    cluster.kill(&leader)?;
    Ok(leader)
}

/// Meters come every 10 s: each device gets at least one more reading than it had before.
fn every_device_is_read_again(cluster: &Cluster, before: &BTreeMap<String, usize>) -> Result<()> {
    wait("another reading of every device", SWEEP, || {
        let mut count: BTreeMap<String, usize> = BTreeMap::new();
        for reading in cluster.list(&["readings"])? {
            *count
                .entry(text(&reading, "device").context("a reading of no device")?.to_owned())
                .or_default() += 1;
        }
        let behind = before.iter().find(|(device, had)| count.get(*device).is_none_or(|has| has <= had));
        ensure!(behind.is_none(), "{behind:?} has no new reading");
        Ok(())
    })
}

fn the_web_admin_knows_each_device(cluster: &Cluster, fleet: &Fleet) -> Result<()> {
    wait("the Web Admin to know each device", TRANSITION, || {
        let devices = cluster.admin_list("devices")?;
        let there: BTreeSet<_> = devices.iter().filter_map(|device| text(device, "serial")).collect();
        let truth: BTreeSet<_> = fleet.printers().filter_map(|printer| printer.serial.as_deref()).collect();
        ensure!(there == truth && devices.len() == truth.len(), "{} of {}", there.len(), truth.len());
        Ok(())
    })
}
