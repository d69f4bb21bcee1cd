//! When Raft has no way back: a quorum that is gone for good, and a cluster that exists in a backup alone. Either
//! goes on with what one node knows, and the Web Admin still has every reading exactly once.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, wait};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

const PRINTERS: usize = 12;

fn fleet(third: u8) -> Result<(Fleet, String)> {
    let base = Ipv4Addr::new(127, 21, third, 1);
    let port = free_udp_port(base.into())?;
    let spec = Spec { base, port, printers: PRINTERS, others: 0, per_net: 20, ..Spec::default() };
    let segment = format!("127.21.{third}.0/24");
    Ok((Fleet::start(&spec)?, settings(&[&segment], port, 1000)))
}

fn ids(rows: &[Value]) -> Result<BTreeSet<String>> {
    let ids: BTreeSet<String> =
        rows.iter().filter_map(|row| row["id"].as_str()).map(ToOwned::to_owned).collect();
    ensure!(ids.len() == rows.len(), "{} readings under {} ids", rows.len(), ids.len());
    Ok(ids)
}

/// What the Web Admin has once it has more than `before`, each once.
fn upstream_goes_on(cluster: &Cluster, before: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    wait("readings at the Web Admin", TRANSITION, || {
        let now = ids(&cluster.admin_list("readings")?)?;
        ensure!(now.is_superset(before), "some of {} readings are gone", before.len());
        ensure!(now.len() >= before.len() + PRINTERS, "{} readings, {} before", now.len(), before.len());
        Ok(now)
    })
}

fn one_device_each(cluster: &Cluster) -> Result<()> {
    let devices = cluster.list(&["devices"])?;
    ensure!(devices.len() == PRINTERS, "{} devices", devices.len());
    Ok(())
}

fn alone() -> Result<()> {
    let (_fleet, settings) = fleet(1)?;
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    cluster.start_admin()?;
    cluster.enroll("site")?;
    cluster.apply(&settings)?;
    let before = upstream_goes_on(&cluster, &BTreeSet::new())?;
    let epoch = cluster.await_upstream()?.upstream.epoch;
    let told = cluster.quire("n1", &["recover", "--i-have-lost-quorum"])?;
    ensure!(told.code == 1 && told.stderr.contains("has quorum"), "{}", told.stderr);
    ensure!(cluster.quire("n1", &["recover"])?.code == 2, "it asks for no word");

    cluster.kill("n2")?;
    cluster.kill("n3")?;
    wait("n1 to be without a quorum", TRANSITION, || {
        ensure!(!cluster.status_of("n1")?.quorum, "it has one");
        Ok(())
    })?;
    let said = cluster.quire("n1", &["recover", "--i-have-lost-quorum"])?.ok()?;
    ensure!(said.contains("only member"), "it says: {said}");
    let status = cluster.status_of("n1")?;
    ensure!(status.quorum && status.members.len() == 1, "{status:?}");
    one_device_each(&cluster)?;
    let after = upstream_goes_on(&cluster, &before)?;
    let upstream = cluster.await_upstream()?.upstream;
    ensure!(upstream.epoch > epoch, "{upstream:?} after {epoch:?}");

    // Those of before are told, and a new one joins.
    let why = "this node was removed from the cluster";
    cluster.announce(why);
    cluster.restart("n2")?;
    let (code, log) = cluster.await_end("n2")?;
    ensure!(code == Some(1) && log.contains(why), "n2 ended with {code:?}:\n{log}");
    cluster.join("n4")?;
    upstream_goes_on(&cluster, &after)?;
    one_device_each(&cluster)?;

    // The same with the node stopped.
    cluster.kill("n4")?;
    cluster.kill("n1")?;
    cluster.quire("n1", &["recover", "--i-have-lost-quorum"])?.ok()?;
    cluster.restart("n1")?;
    wait("n1 to lead again", TRANSITION, || {
        let status = cluster.status_of("n1")?;
        ensure!(status.quorum && status.members.len() == 1, "{status:?}");
        Ok(())
    })?;
    one_device_each(&cluster)?;
    cluster.finish()
}

#[test]
fn one_node_of_three_goes_on_alone() {
    alone().unwrap();
}

fn from_a_backup() -> Result<()> {
    let (_fleet, settings) = fleet(2)?;
    let mut cluster = Cluster::start(&["n1"])?;
    cluster.start_admin()?;
    cluster.enroll("first life")?;
    cluster.apply(&settings)?;
    let before = upstream_goes_on(&cluster, &BTreeSet::new())?;

    let secret = cluster.scratch("passphrase");
    std::fs::write(&secret, "correct horse\n").context("write a passphrase")?;
    let passphrase = format!("@{}", secret.display());
    let file = cluster.scratch("quire.backup").display().to_string();
    cluster.quire("n1", &["backup", &file, "--passphrase", &passphrase])?.ok()?;
    let before = upstream_goes_on(&cluster, &before)?;
    let key = std::fs::read(cluster.node("n1")?.data.join("cluster.key")).context("read the cluster key")?;
    cluster.kill("n1")?;

    refusals(&cluster, &file, &passphrase)?;
    cluster.restore("r1", &file, &["--passphrase", &passphrase])?;
    let restored = std::fs::read(cluster.node("r1")?.data.join("cluster.key")).context("read its key")?;
    ensure!(key == restored, "another cluster key");
    wait("the cluster of before", TRANSITION, || {
        let status = cluster.status_of("r1")?;
        ensure!(status.cluster == "demo" && status.members.len() == 1, "{status:?}");
        Ok(())
    })?;
    ensure!(cluster.quire("r1", &["settings", "show"])?.ok()?.contains("127.21.2.0/24"), "other settings");
    let devices = cluster.quire("r1", &["devices", "--format", "json"])?.json()?;
    ensure!(devices.len() == PRINTERS, "{} devices", devices.len());
    // The Web Admin knows the cluster, and what it has of it.
    cluster.quire_admin(&["site", "revoke", "first life"])?.ok()?;
    cluster.enroll("second life")?;
    upstream_goes_on(&cluster, &before)?;
    cluster.finish()
}

/// What nothing can be restored from, or into.
fn refusals(cluster: &Cluster, file: &str, passphrase: &str) -> Result<()> {
    let place = cluster.scratch("nowhere").display().to_string();
    let refused = |data: &str, more: &[&str], why: &str| -> Result<()> {
        let plain = ["--data-dir", data, "restore"];
        let said = cluster.programs().quire(&[&plain, more].concat())?;
        ensure!(said.code == 1 && said.stderr.contains(why), "{more:?}: {} {}", said.code, said.stderr);
        Ok(())
    };
    let other = cluster.scratch("other");
    std::fs::write(&other, "incorrect horse").context("write a passphrase")?;
    let other = format!("@{}", other.display());
    refused(&place, &[file], "it is protected")?;
    refused(&place, &[file, "--passphrase", &other], "is not the one it was written with")?;
    let whole = std::fs::read(file).context("read the backup")?;
    let cut = cluster.scratch("cut").display().to_string();
    std::fs::write(&cut, &whole[..whole.len() - 40]).context("cut the backup short")?;
    refused(&place, &[&cut, "--passphrase", passphrase, "--listen", "127.0.0.1:0"], "cut: ")?;
    std::fs::write(&cut, "no backup at all").context("write another file")?;
    refused(&place, &[&cut], "no backup that this version")?;
    let occupied = cluster.node("n1")?.data.display().to_string();
    refused(&occupied, &[file, "--passphrase", passphrase], "holds a node already")
}

#[test]
fn a_cluster_comes_back_from_a_backup() {
    from_a_backup().unwrap();
}
