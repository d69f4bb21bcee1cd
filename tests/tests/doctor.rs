//! `quire doctor` on real nodes: healthy, with a dead member, and stopped.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION, settings};
use quire_tests::process::{Output, wait};
use serde_json::Value;
use std::path::Path;

fn doctor(cluster: &Cluster, node: &str) -> Result<(i32, Vec<Value>)> {
    let said = cluster.quire(node, &["doctor", "--format", "json"])?;
    let found = rows(&said)?;
    ensure!(said.code == 0 || said.code == 1, "{said:?}");
    let problems = found.iter().filter(|finding| finding["state"] == "problem").count();
    ensure!((said.code == 1) == (problems > 0), "exit status {} with {problems} problems", said.code);
    for finding in &found {
        let known = finding["check"].is_string() && finding["what"].is_string();
        ensure!(known, "{finding}");
        ensure!(finding["state"] != "problem" || finding["fix"].is_string(), "no fix in {finding}");
    }
    Ok((said.code, found))
}

fn rows(said: &Output) -> Result<Vec<Value>> {
    let parse = |line: &str| serde_json::from_str(line).with_context(|| format!("doctor printed {line:?}"));
    said.stdout.lines().map(parse).collect()
}

/// The state of a check, about somebody.
fn state<'a>(found: &'a [Value], check: &str, about: &str) -> Result<&'a str> {
    let matches = |finding: &&Value| {
        finding["check"] == check && finding["about"].as_str().unwrap_or_default() == about
    };
    let finding = found.iter().find(matches).with_context(|| format!("no {check} {about} in {found:#?}"))?;
    finding["state"].as_str().context("no state")
}

/// Problems that are the cluster's, not this machine's.
fn of_cluster(found: &[Value]) -> Vec<&Value> {
    let machine = ["file-system", "space", "open-files", "udp-buffer", "cups", "links", "routes", "chromium"];
    let ours = |finding: &&Value| {
        finding["state"] == "problem" && !machine.iter().any(|check| finding["check"] == *check)
    };
    found.iter().filter(ours).collect()
}

fn scenario() -> Result<()> {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    cluster.apply(&settings(&["127.26.0.0/30"], 1161, 400))?;
    // A cluster of learners loses no quorum with them.
    wait("three voters", TRANSITION, || {
        let status = cluster.status()?;
        ensure!(status.members.iter().all(|member| member.role == "voter"), "{status:?}");
        Ok(())
    })?;
    wait("a healthy cluster", TRANSITION, || {
        let (_, found) = doctor(&cluster, "n1")?;
        ensure!(of_cluster(&found).is_empty(), "{:#?}", of_cluster(&found));
        for name in ["n1", "n2", "n3"] {
            ensure!(state(&found, "reach", name)? == "ok", "{name}");
        }
        ensure!(state(&found, "quorum", "")? == "ok" && state(&found, "certificates", "")? == "ok");
        ensure!(state(&found, "log", "")? == "ok" && state(&found, "segments", "")? == "ok");
        Ok(())
    })?;
    let table = cluster.quire("n2", &["doctor"])?;
    ensure!(table.stdout.trim_start().starts_with("STATE") && table.stdout.contains("quorum"), "{table:?}");

    cluster.kill("n3")?;
    wait("a member to be missed", TRANSITION, || {
        let (code, found) = doctor(&cluster, "n1")?;
        ensure!(code == 1, "all is well");
        ensure!(state(&found, "reach", "n3")? == "problem" && state(&found, "members", "n3")? == "problem");
        ensure!(state(&found, "reach", "n2")? == "ok" && state(&found, "quorum", "")? == "ok");
        Ok(())
    })?;
    of_a_stopped_one(&cluster)?;

    // Nobody left to decide.
    cluster.kill("n2")?;
    wait("a quorum to be missed", TRANSITION, || {
        let (_, found) = doctor(&cluster, "n1")?;
        ensure!(state(&found, "quorum", "")? == "problem");
        Ok(())
    })?;
    cluster.restart("n2")?;
    cluster.restart("n3")?;
    cluster.await_whole()?;
    cluster.finish()
}

/// Its directory is read and left as it is, and a damaged file is named.
fn of_a_stopped_one(cluster: &Cluster) -> Result<()> {
    let data = &cluster.node("n3")?.data;
    let before = footprint(data)?;
    let (code, found) = doctor(cluster, "n3")?;
    ensure!(code == 1 && state(&found, "node", "n3")? == "problem", "{found:#?}");
    for check in ["database", "data-directory", "secret-files", "certificates"] {
        ensure!(state(&found, check, "")? == "ok", "{check} in {found:#?}");
    }
    ensure!(footprint(data)? == before, "looking changed the directory");
    let (file, away) = (data.join("node.crt"), data.join("node.crt.away"));
    std::fs::rename(&file, &away)?;
    let (_, found) = doctor(cluster, "n3")?;
    let named =
        found.iter().any(|finding| finding["what"].as_str().is_some_and(|what| what.contains("node.crt")));
    ensure!(named, "{found:#?}");
    std::fs::rename(&away, &file)?;
    Ok(())
}

fn footprint(dir: &Path) -> Result<Vec<(std::path::PathBuf, u64, std::time::SystemTime)>> {
    let mut seen = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let (path, meta) = (entry.as_ref().ok().context("list")?.path(), entry?.metadata()?);
            if meta.is_dir() {
                open.push(path.clone());
            }
            seen.push((path, meta.len(), meta.modified()?));
        }
    }
    seen.sort();
    Ok(seen)
}

#[test]
fn doctor_tells_a_healthy_cluster_from_a_sick_one() {
    scenario().unwrap();
}
