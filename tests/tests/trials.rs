//! SNMPv3 users at a real peer, net-snmp's `snmpd`: in a sweep each is tried once, whoever dies meanwhile. The peer itself
//! counts the wrong passwords.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::Cluster;
use quire_tests::process::{complain, wait};
use quire_tests::world::Snmpd;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;

/// A sweep that its owner gave up, because nothing could be committed, is tried again after a minute.
const SWEEP: Duration = Duration::from_secs(180);

/// Sweeps in which the owner is killed.
const ROUNDS: u64 = 2;

#[test]
fn a_wrong_password_is_tried_once_a_sweep_whoever_dies() {
    if Snmpd::program().is_none() {
        complain("left out: SNMPv3 users at net-snmp (snmpd is not installed)");
        return;
    }
    scenario().unwrap();
}

fn settings(snmpd: &Snmpd) -> String {
    let user = |auth: &str| {
        format!(
            "[[snmp]]\nversion = \"3\"\nuser = \"{}\"\nauth = \"sha256\"\nauth_pass = \"{auth}\"\npriv = \"aes\"\n\
             priv_pass = \"{}\"\npermission = \"granted by this test\"\n",
            Snmpd::USER,
            Snmpd::PRIV
        )
    };
    format!(
        "[discovery]\nsegments = [\"{}/32\"]\nport = {}\n[http]\nchromium = false\n{}{}",
        snmpd.address.ip(),
        snmpd.address.port(),
        user("not the password"),
        user(Snmpd::AUTH)
    )
}

fn scenario() -> Result<()> {
    let snmpd = Snmpd::start(Ipv4Addr::new(127, 23, 0, 1))?;
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    ensure!(snmpd.wrong_digests()? == 0, "somebody was there before");
    cluster.apply(&settings(&snmpd))?;
    let mut swept = await_sweep(&cluster, "")?;
    ensure!(snmpd.wrong_digests()? == 1, "{} wrong passwords in one sweep", snmpd.wrong_digests()?);
    for round in 1..=ROUNDS {
        let owner = text(&unit(&cluster)?, "node")?;
        cluster.any(&["sweep"])?.ok()?;
        cluster.kill(&owner)?;
        swept = await_sweep(&cluster, &swept)?;
        // The asked-for sweep may have ended before its owner did; it never tries more than once.
        let wrong = snmpd.wrong_digests()?;
        ensure!(wrong <= 1 + round, "{wrong} wrong passwords in {} sweeps", 1 + round);
        cluster.restart(&owner)?;
        cluster.await_whole()?;
    }
    // A quiet one: it is tried again in a new sweep, and the right password is found behind the wrong one.
    let before = snmpd.wrong_digests()?;
    cluster.any(&["sweep"])?.ok()?;
    await_sweep(&cluster, &swept)?;
    wait("the right password to be found behind the wrong one", SWEEP, || {
        let unit = unit(&cluster)?;
        ensure!(text(&unit, "state")? == "swept" && unit["responders"] == 1, "{unit}");
        let wrong = snmpd.wrong_digests()?;
        ensure!(wrong > before, "a new sweep has not tried again");
        Ok(())
    })?;
    let wrong = snmpd.wrong_digests()?;
    ensure!(wrong <= 2 + ROUNDS, "{wrong} wrong passwords in {} sweeps", 2 + ROUNDS);
    ensure!(cluster.list(&["devices"])?.is_empty(), "a server is no device");
    cluster.finish()
}

fn unit(cluster: &Cluster) -> Result<Value> {
    cluster.list(&["units"])?.into_iter().next().context("no unit")
}

fn text(row: &Value, key: &str) -> Result<String> {
    row.get(key).and_then(Value::as_str).map(str::to_owned).with_context(|| format!("no {key} in {row}"))
}

/// Waits until the unit was swept at another time than `before`; answers when.
fn await_sweep(cluster: &Cluster, before: &str) -> Result<String> {
    wait("the unit to be swept", SWEEP, || {
        let unit = unit(cluster)?;
        let at = text(&unit, "swept_at")?;
        ensure!(at != before && text(&unit, "state")? == "swept", "{unit}");
        Ok(at)
    })
}
