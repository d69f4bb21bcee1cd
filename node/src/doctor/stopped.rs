//! A node that does not run, or does not answer: what its data directory alone tells.

use std::net::TcpListener;
use std::path::Path;

use quire_coordinator::rows;
use quire_proto::id::Millis;

use super::{Finding, certificate, directory, in_order, machine};
use crate::clock;
use crate::cluster::{Inspection, last_heard};
use crate::device::browser::Browser;

/// Looks at the node on `dir`, which `inspection` was made of. `console` is where its console listened.
pub(crate) async fn stopped(
    dir: &Path,
    inspection: &Inspection,
    console: Option<std::net::SocketAddr>,
) -> Vec<Finding> {
    let mut found = directory::look(dir);
    if !dir.is_dir() {
        return found;
    }
    found.push(process(dir, inspection));
    found.extend(database(dir, inspection));
    let known: Vec<_> = inspection.certificates().into_iter().map(certificate::on_disk).collect();
    if !known.is_empty() {
        found.extend(certificate::judge(&known, clock::now()));
    }
    if inspection.held != Some(true) {
        let listen = inspection.listen().and_then(|text| text.parse().ok());
        found.extend(listen.map(|address| port("listen", address)));
        found.extend(console.map(|address| port("console", address)));
    }
    found.extend(machine::look(None, true));
    // Its profile must not be made in the data directory.
    let place = std::env::temp_dir().join(format!("quire-doctor-{}", std::process::id()));
    let browser = Browser::new(&place);
    found.extend(machine::chromium(&browser, None).await);
    browser.close().await;
    // Not there where no browser was started.
    drop(std::fs::remove_dir_all(&place));
    in_order(found)
}

fn process(dir: &Path, inspection: &Inspection) -> Finding {
    const CHECK: &str = "node";
    let name = inspection.name().map_or("", |(name, _)| name).to_owned();
    let shown = dir.display();
    let found = match inspection.held {
        Some(true) => Finding::problem(
            CHECK,
            "a process runs on the data directory and does not answer",
            "read its log; if it stays so, end that process and start the node again",
        ),
        Some(false) => Finding::problem(
            CHECK,
            format!("no node runs on {shown}"),
            format!("start it: `quire node --data-dir {shown}`, or `systemctl start quire`"),
        ),
        None => Finding::problem(CHECK, format!("no node answers on {shown}"), "see whether it runs"),
    };
    found.about(name)
}

fn database(dir: &Path, inspection: &Inspection) -> Vec<Finding> {
    const CHECK: &str = "database";
    let mut found: Vec<Finding> = inspection
        .damage
        .iter()
        .map(|why| {
            Finding::problem(
                CHECK,
                why.clone(),
                "as said; `doctor` of another node shows whether the cluster is well",
            )
        })
        .collect();
    let Some(view) = inspection.view() else {
        if found.is_empty() {
            let what = "a process holds it, so it was not opened";
            found.push(Finding::note(CHECK, what, ""));
        }
        return found;
    };
    match rows::meta(&view) {
        Ok(meta) => {
            let starts = inspection.starts().unwrap_or(0);
            let what = format!(
                "{} opens: {} devices, started {starts} times",
                dir.join("db").display(),
                meta.devices
            );
            found.push(Finding::ok(CHECK, what));
        }
        Err(fault) => {
            let fix = "remove this node from the cluster, and join anew with an empty directory";
            found.push(Finding::problem(CHECK, fault.to_string(), fix));
        }
    }
    found.extend(last_heard(&view).map(|at| heard(at, clock::now())));
    found
}

/// A clock that stands before what was committed here is wrong.
fn heard(at: Millis, now: Millis) -> Finding {
    const CHECK: &str = "last-heard";
    let what = format!("the cluster was last heard at {}", at.rfc3339());
    if now.0.saturating_add(60_000) < at.0 {
        return Finding::problem(CHECK, format!("{what}, and here it is {}", now.rfc3339()), "set the clock");
    }
    Finding::ok(CHECK, what)
}

/// Whether the node could listen there now.
fn port(what: &'static str, address: std::net::SocketAddr) -> Finding {
    match TcpListener::bind(address) {
        Ok(_) => Finding::ok("ports", format!("{what} {address} is free")),
        Err(error) => Finding::problem(
            "ports",
            format!("{what} {address}: {error}"),
            format!("end what listens there (`ss -ltnp`), or start the node with another --{what}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Cluster, Start};
    use crate::doctor::State;

    /// Names, sizes and times of all files.
    fn footprint(dir: &Path) -> Vec<(std::path::PathBuf, u64, std::time::SystemTime)> {
        let mut seen = Vec::new();
        let mut open = vec![dir.to_owned()];
        while let Some(dir) = open.pop() {
            for entry in std::fs::read_dir(dir).unwrap().flatten() {
                let meta = entry.metadata().unwrap();
                if meta.is_dir() {
                    open.push(entry.path());
                }
                seen.push((entry.path(), meta.len(), meta.modified().unwrap()));
            }
        }
        seen.sort();
        seen
    }

    fn check<'a>(found: &'a [Finding], check: &str) -> &'a Finding {
        found
            .iter()
            .find(|finding| finding.check == check)
            .unwrap_or_else(|| panic!("no {check} in {found:?}"))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_stopped_node_is_looked_at_and_left_as_it_is() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("n1");
        let listen = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let start = Start { data_dir: path.clone(), name: Some("n1".into()), listen, ..Start::default() };
        let cluster = Cluster::init(start, "site").await.unwrap();
        let running = Inspection::of(&path);
        assert_eq!((running.held, running.view().is_none()), (Some(true), true), "a node holds it");
        assert!(process(&path, &running).what.contains("does not answer"));
        cluster.shutdown().await;

        let before = footprint(&path);
        let inspection = Inspection::of(&path);
        let found = stopped(&path, &inspection, None).await;
        assert_eq!(check(&found, "node").what, format!("no node runs on {}", path.display()));
        for well in ["database", "data-directory", "secret-files", "certificates", "ports"] {
            assert_eq!(check(&found, well).state, State::Ok, "{found:?}");
        }
        drop(inspection);
        assert_eq!(footprint(&path), before, "looking changed the directory");
        let again = Cluster::open(Start { data_dir: path, ..Start::default() }).await.unwrap();
        again.shutdown().await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn damage_is_named_by_its_file() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("n1");
        let listen = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let start = Start { data_dir: path.clone(), name: Some("n1".into()), listen, ..Start::default() };
        Cluster::init(start, "site").await.unwrap().shutdown().await;
        let key = path.join("node.key");
        let mut octets = std::fs::read(&key).unwrap();
        octets[9] ^= 1;
        std::fs::write(&key, octets).unwrap();
        std::fs::remove_file(path.join("db").join("CURRENT")).unwrap();
        let found = stopped(&path, &Inspection::of(&path), None).await;
        let damage: Vec<&Finding> = found.iter().filter(|finding| finding.check == "database").collect();
        assert!(damage.iter().any(|finding| finding.what.contains("node.key")), "{damage:?}");
        assert!(damage.iter().any(|finding| finding.what.contains("missing or was wiped")), "{damage:?}");
        let nowhere = dir.path().join("nowhere");
        let found = stopped(&nowhere, &Inspection::of(&nowhere), None).await;
        assert_eq!((check(&found, "data-directory").state, found.len()), (State::Problem, 1));
        assert!(!nowhere.exists());
    }

    #[test]
    fn a_clock_behind_the_clusters_word_is_wrong() {
        assert_eq!(heard(Millis(200_000), Millis(100_000)).state, State::Problem);
        assert_eq!(heard(Millis(200_000), Millis(190_000)).state, State::Ok);
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap();
        assert_eq!(port("listen", address).state, State::Problem);
        assert_eq!(port("listen", std::net::SocketAddr::from(([127, 0, 0, 1], 0))).state, State::Ok);
    }
}
