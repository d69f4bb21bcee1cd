//! Another cluster key and another CA under a cluster of real processes that goes on working: with a leader that is
//! killed in between, a node that is away, one that was removed, and one that joins afterwards.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{Output, free_udp_port, wait};
use serde_json::Value;
use std::net::Ipv4Addr;

const PRINTERS: usize = 3;
const ALL: [&str; 3] = ["n1", "n2", "n3"];

fn fleet(third: u8) -> Result<(Fleet, String)> {
    let base = Ipv4Addr::new(127, 92, third, 1);
    let port = free_udp_port(base.into())?;
    let spec = Spec { base, port, printers: PRINTERS, others: 0, per_net: 20, ..Spec::default() };
    Ok((Fleet::start(&spec)?, settings(&[&format!("127.92.{third}.0/28")], port, 1000)))
}

fn three_voters(cluster: &Cluster) -> Result<()> {
    wait("three voters", TRANSITION, || {
        let status = cluster.status()?;
        let voters = status.members.iter().filter(|member| member.role == "voter").count();
        ensure!(voters == 3, "{status:?}");
        Ok(())
    })
}

/// What `quire certificates` says on a node.
fn certificates(cluster: &Cluster, node: &str) -> Result<Value> {
    let said = cluster.quire(node, &["certificates", "--format", "json"])?.json()?;
    said.into_iter().next().context("`certificates` printed nothing")
}

fn nodes(said: &Value) -> Vec<Value> {
    said["nodes"].as_array().cloned().unwrap_or_default()
}

/// Waits until these nodes say the same: that nothing is being changed, and that all nodes have and show the same.
fn settled(cluster: &Cluster, names: &[&str]) -> Result<Value> {
    wait("every node to have what is in force", TRANSITION, || {
        let said = names.iter().map(|name| certificates(cluster, name)).collect::<Result<Vec<_>>>()?;
        let first = said.first().cloned().context("no node is named")?;
        for other in &said {
            let same = |part: &str| other[part] == first[part] && other[part].get("changing").is_none();
            ensure!(same("cluster_key") && same("ca"), "{said:?}");
            ensure!(nodes(other).len() == nodes(&first).len(), "{said:?}");
        }
        let key = &first["cluster_key"]["generation"];
        let same =
            |node: &Value| node["cluster_key"] == *key && node["ca"] == "in force" && node["state"] == "good";
        ensure!(nodes(&first).iter().all(same), "{first}");
        Ok(first)
    })
}

/// Asks `at` for a rotation, and kills `victim` as soon as the change is begun.
fn rotate_and_kill(cluster: &mut Cluster, at: &str, what: &str, victim: &str) -> Result<Output> {
    let (programs, data) = (cluster.programs().clone(), cluster.node(at)?.data.display().to_string());
    let asked = what.to_owned();
    let asking = std::thread::spawn(move || programs.quire(&["--data-dir", &data, "rotate", &asked]));
    let part = if what == "key" { "cluster_key" } else { "ca" };
    let before = certificates(cluster, at)?[part].clone();
    wait("the change to begin", TRANSITION, || {
        let now = certificates(cluster, at)?[part].clone();
        ensure!(now.get("changing").is_some() || now["since"] != before["since"], "{now}");
        Ok(())
    })?;
    cluster.kill(victim)?;
    asking.join().map_err(|_| anyhow::anyhow!("the command's thread panicked"))?
}

fn follower(cluster: &Cluster, leader: &str) -> Result<String> {
    let node = cluster.nodes().iter().find(|node| node.name != leader).context("one node")?;
    Ok(node.name.clone())
}

fn devices(cluster: &Cluster) -> Result<()> {
    wait("every printer", TRANSITION, || {
        let devices = cluster.list(&["devices"])?;
        ensure!(devices.len() == PRINTERS, "{} devices", devices.len());
        Ok(())
    })
}

fn with_a_killed_leader() -> Result<()> {
    let (_fleet, settings) = fleet(1)?;
    let mut cluster = Cluster::start(&ALL)?;
    three_voters(&cluster)?;
    let first = settled(&cluster, &ALL)?;
    ensure!(first["cluster_key"]["generation"] == 1 && first["cluster_key"]["since"].is_null(), "{first}");
    let old_token = cluster.token()?;

    let victim = cluster.leader()?;
    let other = follower(&cluster, &victim)?;
    rotate_and_kill(&mut cluster, &other, "key", &victim)?;
    wait("another key", TRANSITION, || {
        let said = certificates(&cluster, &other)?;
        let key = &said["cluster_key"];
        ensure!(key["generation"].as_u64() > Some(1) && key.get("changing").is_none(), "{said}");
        Ok(())
    })?;
    // Settings that the dead one cannot open, until it has fetched the key.
    cluster.apply(&settings)?;
    cluster.restart(&victim)?;
    cluster.await_whole()?;
    settled(&cluster, &ALL)?;
    devices(&cluster)?;

    let victim = cluster.leader()?;
    let other = follower(&cluster, &victim)?;
    let said = rotate_and_kill(&mut cluster, &other, "ca", &victim)?.ok()?;
    let now = certificates(&cluster, &other)?;
    if now["ca"].get("changing").is_some() {
        // It went before it had a certificate of the new CA, and must not be locked out.
        ensure!(said.contains(&format!("waits for {victim}")), "{said}");
    }
    cluster.restart(&victim)?;
    cluster.await_whole()?;
    let last = settled(&cluster, &ALL)?;
    ensure!(last["ca"]["sha256"] != first["ca"]["sha256"], "{last}");
    for name in ["n1", "n2", "n3"] {
        let doctor = cluster.quire(name, &["doctor", "--format", "json"])?.stdout;
        let check = |word: &str| doctor.lines().filter(|line| line.contains(word)).collect::<Vec<_>>();
        ensure!(check("\"check\":\"certificates\"").iter().all(|line| line.contains("\"ok\"")), "{doctor}");
        ensure!(check("\"check\":\"settings\"").iter().all(|line| !line.contains("problem")), "{doctor}");
    }
    joins(&mut cluster, &old_token)?;
    cluster.finish()
}

/// A token of before the change leads nowhere, and says so; one of afterwards does.
fn joins(cluster: &mut Cluster, old_token: &str) -> Result<()> {
    let nowhere = cluster.scratch("nowhere").display().to_string();
    let door = cluster.node("n1")?.listen.to_string();
    let file = cluster.scratch("old.token");
    std::fs::write(&file, old_token).context("write a token")?;
    let token = format!("@{}", file.display());
    let listen = format!("{}:0", cluster.node("n1")?.listen.ip());
    let start = ["node", "--data-dir", &nowhere, "--listen", &listen, "--join", &door, "--token", &token];
    let refused = cluster.programs().quire(&start)?;
    ensure!(refused.code == 1 && refused.stderr.contains("its CA was changed since"), "{}", refused.stderr);
    cluster.join("n4")?;
    cluster.await_whole()?;
    settled(cluster, &["n1", "n2", "n3", "n4"])?;
    cluster.apply(&std::fs::read_to_string(cluster.scratch("settings.toml"))?)?;
    devices(cluster)
}

#[test]
fn key_and_ca_change_under_a_cluster_whose_leader_is_killed() {
    with_a_killed_leader().unwrap();
}

fn with_a_node_away() -> Result<()> {
    let (_fleet, settings) = fleet(2)?;
    let mut cluster = Cluster::start(&["n1", "n2", "n3", "n4"])?;
    three_voters(&cluster)?;
    cluster.apply(&settings)?;
    settled(&cluster, &ALL)?;
    let backup = cluster.scratch("before.backup").display().to_string();
    cluster.quire("n1", &["backup", &backup])?.ok()?;
    // Neither asks nor answers n1 while the others are asked: n4 is away, and n3 is removed with its disk.
    cluster.stop("n4")?;
    cluster.stop("n3")?;
    let said = cluster.quire("n1", &["remove", "n3"])?.ok()?;
    ensure!(said.contains("quire rotate key") && said.contains("quire rotate ca"), "{said}");
    let said = cluster.quire("n1", &["rotate", "key"])?.ok()?;
    ensure!(said.contains("cluster key 2 is in force"), "{said}");
    let said = cluster.quire("n1", &["rotate", "ca"])?.ok()?;
    ensure!(said.contains("waits for n4") && said.contains("quire remove"), "{said}");
    ensure!(cluster.quire("n2", &["rotate", "ca"])?.stderr.contains("being changed already"), "twice");
    let doctor = cluster.quire("n2", &["doctor"])?.stdout;
    ensure!(doctor.contains("the CA is being changed") && doctor.contains("n4"), "{doctor}");

    cluster.restart("n4")?;
    let said = settled(&cluster, &["n1", "n2", "n4"])?;
    ensure!(nodes(&said).len() == 3, "{said}");
    let sealed = std::fs::read(cluster.node("n4")?.data.join("cluster.key"))?;
    let lacking = std::fs::read(cluster.node("n3")?.data.join("cluster.key"))?;
    ensure!(sealed.len() == 80 && lacking.len() == 32, "{} and {} octets", sealed.len(), lacking.len());

    // Whoever has the removed node's disk is not spoken to, and is told why.
    let old = std::fs::read(cluster.node("n3")?.data.join("ca.crt"))?;
    wait("the old CA to count nowhere", TRANSITION, || {
        for name in ["n1", "n2", "n4"] {
            let trusted = std::fs::read(cluster.node(name)?.data.join("ca.crt"))?;
            ensure!(!trusted.windows(old.len()).any(|part| part == old), "it does on {name}");
        }
        Ok(())
    })?;
    cluster.restart("n3")?;
    wait("n3 to say what is wrong", TRANSITION, || {
        let log = std::fs::read_to_string(cluster.log_of("n3"))?;
        ensure!(log.contains("join anew with an empty directory"), "not yet");
        ensure!(!cluster.status_of("n3")?.quorum, "it is let in");
        Ok(())
    })?;
    cluster.kill("n3")?;

    // A backup of before is as good as it was.
    for name in ["n1", "n2", "n4"] {
        cluster.stop(name)?;
    }
    cluster.restore("r1", &backup, &[])?;
    let said = certificates(&cluster, "r1")?;
    ensure!(said["cluster_key"]["generation"] == 1, "{said}");
    // What would change is told only where the settings in force can be opened.
    let file = cluster.scratch("settings.toml").display().to_string();
    cluster.quire("r1", &["settings", "validate", &file])?.ok()?;
    cluster.finish()
}

#[test]
fn a_node_that_was_away_comes_back_and_a_removed_one_does_not() {
    with_a_node_away().unwrap();
}
