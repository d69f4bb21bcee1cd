//! A script that the Web Admin sends to a site: committed on every node, tried, in force, and its outcome read at the Web
//! Admin; one that is wrong is refused with a word why.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, wait};
use serde_json::Value;
use std::net::Ipv4Addr;
use std::time::Duration;

const SITE: &str = "demo site";

/// Any device that has a standard total: says one more, and where it has it from.
const ONE_MORE: &str = r#"//! name: from-above
//! version: 1
//! match: object-id 1.3.6.1
let from = reading.sources["counters.total"];
if from != () { meter("total", reading.counters.total + 1000000000, from); }
"#;

/// For a sweep of a /29, and for the ten reads and the half minute of a trial, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

#[test]
fn a_script_of_the_web_admin_comes_into_force_on_every_node() {
    scenario().unwrap();
}

/// Adds a script job; gives its id.
fn send(cluster: &Cluster, source: &str) -> Result<String> {
    let file = cluster.scratch("job.rhai");
    std::fs::write(&file, source).context("write the script")?;
    let said = cluster.quire_admin(&["job", SITE, "script", file.to_str().context("a path")?])?.ok()?;
    Ok(said.trim().to_owned())
}

/// Waits until the site has said how a job ended; gives its line.
fn outcome(cluster: &Cluster, id: &str) -> Result<Value> {
    wait("the job to be closed", TRANSITION, || {
        let jobs = cluster.admin_list("jobs")?;
        let job = jobs.into_iter().find(|job| job["id"] == id).context("the job is gone")?;
        ensure!(job["closed_at"].is_string(), "it is {job}");
        Ok(job)
    })
}

/// Waits until both nodes have the script in this state.
fn both_have(cluster: &Cluster, state: &str) -> Result<()> {
    wait(&format!("the script to be {state} on both nodes"), PATIENCE, || {
        for node in ["n1", "n2"] {
            let rows = cluster.quire(node, &["script", "list", "--format", "json"])?.json()?;
            let row = rows.iter().find(|row| row["name"] == "from-above").context("it is not there")?;
            ensure!(row["state"] == state && row["version"] == "1", "{node} has {row}");
        }
        Ok(())
    })
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 49, 0, 1);
    let port = free_udp_port(base.into())?;
    let _fleet = Fleet::start(&Spec { base, port, printers: 3, others: 0, per_net: 4, ..Spec::default() })?;
    let mut cluster = Cluster::start(&["n1", "n2"])?;
    cluster.start_admin()?;
    cluster.enroll(SITE)?;

    let id = send(&cluster, ONE_MORE)?;
    let job = outcome(&cluster, &id)?;
    ensure!(job["kind"] == "script" && job["state"] == "done", "{job}");
    both_have(&cluster, "trial")?;
    let audit = cluster.list(&["audit"])?;
    let told =
        audit.iter().any(|row| row["by"] == "web admin" && row["what"].to_string().contains("from-above"));
    ensure!(told, "who put it is not in the audit: {audit:?}");

    // The reads of the trial bring it into force; what it says arrives where it came from.
    cluster.apply(&settings(&["127.49.0.0/29"], port, 500))?;
    both_have(&cluster, "active")?;
    wait("the script's word at the Web Admin", PATIENCE, || {
        let devices = cluster.admin_list("devices")?;
        ensure!(devices.len() == 3, "{} devices", devices.len());
        let more =
            |device: &Value| device["counters"]["total"].as_u64().is_none_or(|total| total >= 1_000_000_000);
        ensure!(devices.iter().all(more), "{devices:?}");
        ensure!(devices.iter().any(|device| device["counters"]["total"].is_u64()), "no total: {devices:?}");
        Ok(())
    })?;

    // What does not compile is refused on site, with a word why, and changes nothing.
    let id = send(&cluster, "//! name: from-above\n//! version: 2\n//! match: family x\nlet = 1;")?;
    let job = outcome(&cluster, &id)?;
    ensure!(job["state"] == "failed", "{job}");
    ensure!(job["detail"].as_str().is_some_and(|why| !why.is_empty()), "nobody says why: {job}");
    both_have(&cluster, "active")?;
    cluster.finish()
}
