//! Nodes that go on purpose: the leader hands over before it is drained or stopped, a removed node stops by itself.

use anyhow::{Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION};
use quire_tests::process::wait;

fn another_leads(cluster: &Cluster, not: &str) -> Result<String> {
    wait("another leader", TRANSITION, || {
        let status = cluster.status()?;
        let leader = status.leader.clone().unwrap_or_default();
        ensure!(status.quorum && !leader.is_empty() && leader != not, "{status:?}");
        Ok(leader)
    })
}

fn scenario() -> Result<()> {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    wait("three voters", TRANSITION, || {
        let status = cluster.status()?;
        let voters = status.members.iter().filter(|member| member.role == "voter").count();
        ensure!(voters == 3, "{status:?}");
        Ok(())
    })?;
    let drained = cluster.leader()?;
    cluster.any(&["drain", &drained])?.ok()?;
    let second = another_leads(&cluster, &drained)?;
    cluster.any(&["resume", &drained])?.ok()?;

    cluster.stop(&second)?;
    let log = std::fs::read_to_string(cluster.log_of(&second))?;
    ensure!(log.contains("hand the leadership over"), "{second} went without a word:\n{log}");
    another_leads(&cluster, &second)?;
    cluster.restart(&second)?;
    cluster.await_whole()?;
    cluster.finish()
}

#[test]
fn a_leader_hands_over_before_it_is_drained_or_stopped() {
    scenario().unwrap();
}

/// A node that was removed while it ran ends, and so does every later start of it; the others go on.
fn removal() -> Result<()> {
    let mut cluster = Cluster::start(&["n1", "n2", "n3", "n4"])?;
    cluster.await_whole()?;
    let leader = cluster.leader()?;
    let removed = ["n2", "n3", "n4"].into_iter().find(|name| *name != leader).unwrap_or("n2");
    cluster.quire(&leader, &["remove", removed])?.ok()?;
    let why = "this node was removed from the cluster";
    let (code, log) = cluster.await_end(removed)?;
    ensure!(code == Some(1) && log.contains(why), "{removed} ended with {code:?}:\n{log}");
    cluster.announce(why);

    let data = cluster.node(removed)?.data.display().to_string();
    let again = cluster.programs().quire(&["node", "--data-dir", &data])?;
    ensure!(again.code == 1 && again.stderr.contains(why), "a later start says: {}", again.stderr);
    let status = cluster.status_of(&leader)?;
    ensure!(status.quorum && status.members.len() == 3, "{status:?}");
    cluster.finish()
}

#[test]
fn a_removed_node_stops_by_itself() {
    removal().unwrap();
}
