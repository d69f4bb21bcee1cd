//! `quire script`: tried on a recording without a node, put, tried on one node, in force on both, taken back where it
//! fails, and gone again.

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

/// For a sweep of a /29, and for the ten reads and the half minute of a trial, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

fn scripts(cluster: &Cluster, node: &str) -> Result<Vec<Value>> {
    cluster.quire(node, &["script", "list", "--format", "json"])?.json()
}

/// The versions of the script as a node has them, each with its state.
fn versions(cluster: &Cluster, node: &str) -> Result<Vec<(String, String)>> {
    let rows = scripts(cluster, node)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mine = rows.iter().filter(|row| row["name"] == "one-more");
    Ok(mine.map(|row| (text(&row["version"]), text(&row["state"]))).collect())
}

fn wait_for(cluster: &Cluster, wanted: &[(&str, &str)]) -> Result<()> {
    wait("the versions of the script on both nodes", PATIENCE, || {
        for node in ["n1", "n2"] {
            let seen = versions(cluster, node)?;
            let same = seen.iter().map(|(v, s)| (v.as_str(), s.as_str())).eq(wanted.iter().copied());
            ensure!(same, "{node} has {seen:?}, not {wanted:?}");
        }
        Ok(())
    })
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

    // Put: tried where the devices are, then in force on both nodes.
    let built_in = scripts(&cluster, "n2")?.len();
    ensure!(built_in > 0, "no built-in scripts");
    cluster.quire("n1", &["script", "put", path])?.ok()?;
    wait_for(&cluster, &[("1", "trial")])?;
    cluster.apply(&settings(&["127.46.0.0/29"], port, 500))?;
    wait("readings with the script", PATIENCE, || {
        let devices = cluster.list(&["devices"])?;
        ensure!(devices.len() == fleet.printers().count(), "{} devices", devices.len());
        let more =
            |device: &Value| device["counters"]["total"].as_u64().is_none_or(|total| total >= 1_000_000_000);
        ensure!(devices.iter().all(more), "{devices:?}");
        Ok(())
    })?;
    wait_for(&cluster, &[("1", "active")])?;

    // Replaced by a broken one: refused, the old one stays. Then by a newer one, at once.
    let broken = cluster.scratch("broken.rhai");
    std::fs::write(&broken, "//! name: one-more\n//! version: 2\n//! match: family x\nlet = 1;")
        .context("write it")?;
    ensure!(cluster.quire("n1", &["script", "put", broken.to_str().context("a path")?])?.ok().is_err());
    std::fs::write(&file, ONE_MORE.replace("VERSION", "3")).context("write the script")?;
    cluster.quire("n2", &["script", "put", path, "--now"])?.ok()?;
    wait_for(&cluster, &[("3", "active")])?;

    // One that fails on every device comes back from its trial by itself.
    std::fs::write(&file, ONE_MORE.replace("VERSION", "4") + "throw \"no\";").context("write the script")?;
    cluster.quire("n1", &["script", "put", path])?.ok()?;
    wait_for(&cluster, &[("3", "active"), ("4", "taken-back")])?;

    // One that fails on a recording of the node is not even put.
    let held = cluster.node("n1")?.data.join("recordings");
    std::fs::create_dir_all(&held).context("make a folder of recordings")?;
    std::fs::copy(&recording, held.join("brother.snmprec")).context("keep a recording")?;
    std::fs::write(&file, ONE_MORE.replace("VERSION", "5") + "throw \"no\";").context("write the script")?;
    let refused = cluster.quire("n1", &["script", "put", path])?;
    ensure!(refused.ok().is_err(), "a script that fails on a recording was put");
    wait_for(&cluster, &[("3", "active"), ("4", "taken-back")])?;

    cluster.quire("n1", &["script", "remove", "one-more"])?.ok()?;
    wait("the script to go", PATIENCE, || {
        ensure!(versions(&cluster, "n2")?.is_empty() && scripts(&cluster, "n2")?.len() == built_in);
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
    // Put, in force, put, put, taken back, removed.
    ensure!(put >= 6, "{put} changes of scripts in the audit");
    cluster.finish()
}
