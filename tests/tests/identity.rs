//! Data directories that were put back from a copy or run twice: each is refused by name, never votes, and
//! the others go on.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use quire_tests::cluster::{COMMAND, Cluster, TRANSITION};
use quire_tests::process::{Output, run, wait};
use std::path::{Path, PathBuf};

/// Three nodes, the third one's data directory, and where a copy of it may go.
fn three() -> Result<(Cluster, PathBuf, PathBuf)> {
    let cluster = Cluster::start(&["n1", "n2", "n3"])?;
    let (data, copied) = (cluster.node("n3")?.data.clone(), cluster.scratch("copy"));
    Ok((cluster, data, copied))
}

/// The third node's directory is `old` again: it is refused, and the others go on.
fn refused_when_put_back(cluster: Cluster, data: &Path, old: &Path) -> Result<()> {
    replace(data, old)?;
    refused(&node(&cluster, data, &[])?, "data directory is older than acknowledged")?;
    goes_on(&cluster)?;
    cluster.finish()
}

/// Copies a directory as `cp` does.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let (from, to) = (from.display().to_string(), to.display().to_string());
    run(Path::new("/bin/cp"), &["-a", "--", &from, &to], COMMAND)?.ok().map(drop)
}

fn replace(data: &Path, by: &Path) -> Result<()> {
    std::fs::remove_dir_all(data).context("remove the later state")?;
    copy(by, data)
}

/// Runs a node on a directory; it should end by itself.
fn node(cluster: &Cluster, data: &Path, more: &[&str]) -> Result<Output> {
    let data = data.display().to_string();
    run(&cluster.programs().path("quire"), &[&["node", "--data-dir", &data], more].concat(), COMMAND)
}

fn refused(output: &Output, why: &str) -> Result<()> {
    ensure!(output.code == 1, "exit status {}: {}", output.code, output.stderr);
    ensure!(output.stderr.contains(why), "it says: {}", output.stderr);
    Ok(())
}

/// Waits until the cluster has committed more than it had when this was called.
fn goes_on(cluster: &Cluster) -> Result<()> {
    let before = cluster.status()?;
    wait("the cluster to go on", TRANSITION, || {
        let now = cluster.status()?;
        ensure!(now.quorum && now.applied > before.applied + 2, "{now:?}");
        Ok(())
    })
}

#[test]
fn a_directory_put_back_from_before_its_last_start_is_refused() {
    let scenario = || -> Result<()> {
        let (mut cluster, data, old) = three()?;
        cluster.stop("n3")?;
        copy(&data, &old)?;
        cluster.restart("n3")?;
        cluster.await_whole()?;
        cluster.stop("n3")?;
        refused_when_put_back(cluster, &data, &old)
    };
    scenario().unwrap();
}

#[test]
fn a_machine_set_back_to_a_snapshot_of_its_disk_is_refused() {
    let scenario = || -> Result<()> {
        let (mut cluster, data, old) = three()?;
        // What a snapshot of a running machine's disk holds.
        cluster.signal("n3", Signal::SIGSTOP)?;
        copy(&data, &old)?;
        cluster.signal("n3", Signal::SIGCONT)?;
        cluster.await_whole()?;
        goes_on(&cluster)?;
        goes_on(&cluster)?;
        cluster.kill("n3")?;
        refused_when_put_back(cluster, &data, &old)
    };
    scenario().unwrap();
}

#[test]
fn a_copy_beside_the_original_is_refused() {
    let scenario = || -> Result<()> {
        let (mut cluster, data, copied) = three()?;
        cluster.stop("n3")?;
        copy(&data, &copied)?;
        cluster.restart("n3")?;
        cluster.await_whole()?;
        let host = cluster.node("n3")?.listen.ip();
        let (listen, console) = (format!("{host}:0"), format!("{host}:0"));
        // Once with the original's count of starts, once with a higher one.
        for _ in 0..2 {
            let ended = node(&cluster, &copied, &["--listen", &listen, "--console", &console])?;
            refused(&ended, "duplicate node id")?;
        }
        cluster.await_whole()?;
        goes_on(&cluster)?;
        cluster.finish()
    };
    scenario().unwrap();
}
