//! Alerts end to end: toner runs low on a simulated printer, the leader dies, the toner is replaced; people on site, a
//! webhook and the Web Admin each hear of one alert that is raised and cleared.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, http_get, wait};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// For a sweep of 16 addresses with its retries, on a busy machine.
const SWEEP: Duration = Duration::from_secs(120);

/// What a webhook was sent: idempotency key and body.
type Heard = Arc<Mutex<Vec<(String, Value)>>>;

/// Listens on loopback, and says yes to everything.
fn receiver() -> Result<(SocketAddr, Heard)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for webhooks")?;
    let (at, heard) = (listener.local_addr()?, Heard::default());
    let keep = Arc::clone(&heard);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Ok(request) = take(&stream) {
                keep.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                let _ = (&stream).write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
            }
        }
    });
    Ok((at, heard))
}

fn take(stream: &TcpStream) -> Result<(String, Value)> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let (mut reader, mut key, mut length) = (BufReader::new(stream), String::new(), 0);
    loop {
        let mut line = String::new();
        ensure!(reader.read_line(&mut line)? > 0, "the request broke off");
        match line.trim_end().to_lowercase().split_once(": ") {
            Some(("idempotency-key", value)) => value.clone_into(&mut key),
            Some(("content-length", value)) => length = value.parse()?,
            Some(_) => {}
            None if line.trim_end().is_empty() => break,
            None => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok((key, serde_json::from_slice(&body)?))
}

fn heard(all: &Heard, state: &str) -> Vec<(String, Value)> {
    let all = all.lock().unwrap_or_else(PoisonError::into_inner);
    all.iter().filter(|(_, body)| body["state"] == state).cloned().collect()
}

#[test]
fn an_alert_is_raised_and_cleared_once_although_the_leader_dies() {
    scenario().unwrap();
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 28, 0, 1);
    let port = free_udp_port(base.into())?;
    let fleet = Fleet::start(&Spec { base, port, printers: 1, others: 0, ..Spec::default() })?;
    fleet.set_level(base, 0, 50)?;
    let (hook, all) = receiver()?;
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    cluster.start_admin()?;
    cluster.enroll("demo site")?;
    let rule = |when: &str| {
        format!(
            "{}\n[[alert]]\nname = \"low toner\"\nwhen = '{when}'\nnotify = [\"upstream\", \"webhook:http://{hook}/T0ken\"]\n",
            settings(&["127.28.0.0/28"], port, 500)
        )
    };
    mistakes_are_named(&cluster, &rule("supply.precent < 15"))?;
    let changes = cluster.apply(&rule("supply.kind == \"toner\" && supply.percent < 15"))?;
    ensure!(changes.contains("alert added: low toner") && !changes.contains("no effect"), "{changes}");
    let shown = cluster.any(&["settings", "show"])?.ok()?;
    ensure!(!shown.contains("T0ken") && shown.contains(&format!("webhook:http://{hook}/…")), "{shown}");
    wait("the printer to be read", SWEEP, || {
        ensure!(
            cluster.list(&["readings"])?.iter().any(|row| row["supplies"][0]["percent"] == 50),
            "not yet"
        );
        Ok(())
    })?;
    ensure!(cluster.list(&["alerts"])?.is_empty(), "half full is not low");

    fleet.set_level(base, 0, 9)?;
    let raised = wait("the alert, and the webhook to have taken it", TRANSITION, || told(&cluster, "open"))?;
    let id = raised["id"].as_str().context("an alert without id")?.to_owned();
    ensure!(raised["what"].as_str().is_some_and(|what| what.contains("supply.percent 9")), "{raised}");
    wait("the Web Admin to have it", TRANSITION, || upstream(&cluster, &id, "open"))?;
    let metrics = http_get(cluster.node("n1")?.console, "/metrics")?.1;
    ensure!(metrics.lines().any(|line| line == "quire_alerts_open 1"), "{metrics}");

    let leader = cluster.leader()?;
    cluster.kill(&leader)?;
    fleet.set_level(base, 0, 100)?;
    let cleared = wait("the alert to clear under another leader", SWEEP, || told(&cluster, "cleared"))?;
    ensure!(cleared["id"] == id.as_str() && cleared["raises"] == 1, "{cleared}");
    wait("the Web Admin to know", TRANSITION, || upstream(&cluster, &id, "cleared"))?;

    let (open, gone) = (heard(&all, "open"), heard(&all, "cleared"));
    ensure!(open.len() == 1, "what was taken and committed is not sent by the next leader: {open:?}");
    let keys: BTreeSet<&String> = open.iter().chain(&gone).map(|(key, _)| key).collect();
    ensure!(keys.len() == 2 && open[0].1["alert"] == id.as_str(), "{open:?} {gone:?}");
    cluster.restart(&leader)?;
    cluster.await_whole()?;
    ensure!(fleet.counts().iter().all(|count| count.sets == 0), "a device was sent a SET");
    cluster.finish()
}

fn mistakes_are_named(cluster: &Cluster, text: &str) -> Result<()> {
    let file = cluster.scratch("wrong.toml");
    std::fs::write(&file, text)?;
    let refused = cluster.any(&["settings", "validate", &file.display().to_string()])?;
    let wanted = "alert[1].when: rule `low toner`, character 1: there is no field `supply.precent`: there are supply.index";
    ensure!(refused.code == 1 && refused.stderr.contains(wanted), "{}", refused.stderr);
    ensure!(!refused.stderr.contains("T0ken"), "{}", refused.stderr);
    Ok(())
}

/// The one alert, once it is in this state and its webhook was told so.
fn told(cluster: &Cluster, state: &str) -> Result<Value> {
    let mut alerts = cluster.list(&["alerts"])?;
    ensure!(alerts.len() == 1 && alerts[0]["state"] == state, "{alerts:?}");
    let alert = alerts.remove(0);
    ensure!(alert["notified"][0]["state"] == state, "{alert}");
    ensure!(!alert.to_string().contains("T0ken"), "{alert}");
    Ok(alert)
}

fn upstream(cluster: &Cluster, id: &str, state: &str) -> Result<()> {
    let alerts = cluster.admin_list("alerts")?;
    ensure!(alerts.len() == 1 && alerts[0]["id"] == id && alerts[0]["state"] == state, "{alerts:?}");
    ensure!(alerts[0]["name"] == "low toner" && alerts[0]["site"] == "demo site", "{alerts:?}");
    Ok(())
}
