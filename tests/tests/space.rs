//! A disk that fills up: the node on it steps back, the others do its work, and with room it is back by itself.

use anyhow::{Context as _, Result, ensure};
use quire_tests::cluster::{Cluster, Ports, TRANSITION, own_host, settings};
use quire_tests::disk::Disk;
use quire_tests::process::{complain, free_udp_port, http_get, wait};
use serde_json::Value;

fn row(cluster: &Cluster, name: &str) -> Result<Value> {
    let rows = cluster.quire("n1", &["members", "--format", "json"])?.json()?;
    rows.into_iter().find(|row| row["name"] == name).context("no such member")
}

fn scenario() -> Result<()> {
    let mut cluster = Cluster::empty(own_host(), Ports::Free)?;
    cluster.init("n1")?;
    let Some(disk) = Disk::mount(&cluster.scratch("n2"), 200)? else {
        complain("left out: a disk that fills up (no file system can be mounted here)");
        return cluster.finish();
    };
    cluster.join("n2")?;
    cluster.join("n3")?;
    cluster.await_whole()?;
    let port = free_udp_port(own_host())?;
    cluster.apply(&settings(&["127.88.0.0/21"], port, 5_000))?;
    wait("n2 to have work", TRANSITION, || {
        let n2 = row(&cluster, "n2")?;
        ensure!(
            n2["units"].as_u64() > Some(0) && n2["role"] == "voter" && n2.get("trouble").is_none(),
            "{n2}"
        );
        Ok(())
    })?;
    cluster.any(&["transfer-leader", "n2"])?.ok()?;
    wait("n2 to lead", TRANSITION, || {
        let leader = cluster.leader()?;
        ensure!(leader == "n2", "{leader} leads");
        Ok(())
    })?;

    cluster.announce("MB are left on the disk");
    disk.fill(20)?;
    wait("n2 to step back", TRANSITION, || {
        let (n2, leader) = (row(&cluster, "n2")?, cluster.leader()?);
        let stepped_back = n2["trouble"] == "the disk is nearly full" && n2["units"] == 0;
        ensure!(stepped_back && n2["alive"] == true && leader != "n2", "{leader} leads, {n2}");
        let (code, text) = http_get(cluster.node("n2")?.console, "/readyz")?;
        ensure!(code == 503 && text.contains("disk"), "{code} {text}");
        Ok(())
    })?;
    disk.clear()?;
    wait("n2 to be back", TRANSITION, || {
        let n2 = row(&cluster, "n2")?;
        ensure!(n2.get("trouble").is_none() && n2["units"].as_u64() > Some(0), "{n2}");
        Ok(())
    })?;
    cluster.stop("n2")?;
    drop(disk);
    cluster.finish()
}

#[test]
fn a_node_whose_disk_fills_up_steps_back_and_comes_back() {
    scenario().unwrap();
}
