//! `quire script`: tried on a recording without a node, put on one node, in force on the other, and gone again.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, wait};
use serde_json::Value;

/// Any device that has a standard total: says one more, and where it has it from.
const ONE_MORE: &str = r#"//! name: one-more
//! version: VERSION
//! match: object-id 1.3.6.1
let from = reading.sources["counters.total"];
if from != () { meter("total", reading.counters.total + 1000000000, from); }
"#;

const RECORDING: &str = "\
1.3.6.1.2.1.1.1.0|4|Brother NC-8700w, Firmware Ver.1.02
1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.2435.2.3.9.1
1.3.6.1.2.1.25.3.2.1.2.1|6|1.3.6.1.2.1.25.3.1.5
1.3.6.1.2.1.25.3.2.1.3.1|4|Brother HL-L2350DW series
1.3.6.1.2.1.43.10.2.1.4.1.1|65|900
";

/// For a sweep of a /29 and a second read of what it found, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn scripts(cluster: &Cluster, node: &str) -> Result<Vec<Value>> {
    cluster.quire(node, &["script", "list", "--format", "json"])?.json()
}

/// The version and hash of the script as a node has it.
fn version(cluster: &Cluster, node: &str) -> Result<Option<(String, String)>> {
    let rows = scripts(cluster, node)?;
    let row = rows.iter().find(|row| row["name"] == "one-more");
    Ok(row.map(|row| (row["version"].to_string(), row["sha256"].to_string())))
}

#[test]
fn a_script_is_tried_put_replaced_and_removed() {
    scenario().unwrap();
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 46, 0, 1);
    let port = free_udp_port(base.into())?;
    let fleet = Fleet::start(&Spec { base, port, printers: 3, others: 1, per_net: 4, ..Spec::default() })?;
    let cluster = Cluster::start(&["n1", "n2"])?;
    let file = cluster.scratch("one-more.rhai");
    let recording = cluster.scratch("brother.snmprec");
    std::fs::write(&recording, RECORDING).context("write the recording")?;
    std::fs::write(&file, ONE_MORE.replace("VERSION", "1")).context("write the script")?;
    let path = file.to_str().context("a path")?;

    // Tried: no node is asked.
    let args =
        ["script", "test", path, "--recording", recording.to_str().context("a path")?, "--format", "json"];
    let tried = cluster.programs().quire(&args)?.json()?;
    ensure!(tried[0]["reading"]["counters"]["total"] == 1_000_000_900, "it is {}", tried[0]);
    ensure!(tried[0]["changes"][0]["before"] == 900, "it is {}", tried[0]);

    // Put: the same version on both nodes, and what they read says so.
    let built_in = scripts(&cluster, "n2")?.len();
    ensure!(built_in > 0, "no built-in scripts");
    cluster.quire("n1", &["script", "put", path])?.ok()?;
    wait("the script on the other node", PATIENCE, || {
        let versions = (version(&cluster, "n1")?, version(&cluster, "n2")?);
        ensure!(versions.0.is_some() && versions.0 == versions.1, "they are {versions:?}");
        Ok(())
    })?;
    cluster.apply(&settings(&["127.46.0.0/29"], port, 500))?;
    wait("readings with the script", PATIENCE, || {
        let devices = cluster.list(&["devices"])?;
        ensure!(devices.len() == fleet.printers().count(), "{} devices", devices.len());
        let more =
            |device: &Value| device["counters"]["total"].as_u64().is_none_or(|total| total >= 1_000_000_000);
        ensure!(devices.iter().all(more), "{devices:?}");
        Ok(())
    })?;

    // Replaced by a broken one: refused, the old one stays. Then by a newer one.
    let broken = cluster.scratch("broken.rhai");
    std::fs::write(&broken, "//! name: one-more\n//! version: 2\n//! match: family x\nlet = 1;")
        .context("write it")?;
    ensure!(cluster.quire("n1", &["script", "put", broken.to_str().context("a path")?])?.ok().is_err());
    std::fs::write(&file, ONE_MORE.replace("VERSION", "3")).context("write the script")?;
    cluster.quire("n2", &["script", "put", path])?.ok()?;
    wait("the new version", PATIENCE, || {
        let seen = version(&cluster, "n1")?.context("it is gone")?;
        ensure!(seen.0.contains('3'), "it is {seen:?}");
        Ok(())
    })?;

    cluster.quire("n1", &["script", "remove", "one-more"])?.ok()?;
    wait("the script to go", PATIENCE, || {
        ensure!(version(&cluster, "n2")?.is_none() && scripts(&cluster, "n2")?.len() == built_in);
        Ok(())
    })?;
    ensure!(cluster.quire("n1", &["script", "remove", "one-more"])?.ok().is_err(), "removed twice");
    ensure!(
        cluster.quire("n1", &["script", "remove", "brother"])?.ok().is_err(),
        "a built-in one was removed"
    );
    let audit = cluster.list(&["audit"])?;
    let put =
        audit.iter().filter(|row| row["what"].as_str().is_some_and(|what| what.contains("script"))).count();
    ensure!(put == 3, "{put} changes of scripts in the audit");
    cluster.finish()
}
