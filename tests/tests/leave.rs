//! Nodes that go on purpose: the leader hands over before it is drained or stopped.

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
