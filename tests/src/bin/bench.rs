//! `quire-bench`, behind `make bench`: what the programs do, measured from outside on simulated devices, in one
//! table. Each row says what it was measured on; numbers of a debug build or a busy machine are marked so.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use comfy_table::{Table, presets};
use quire_tests::cluster::{Cluster, Programs, TRANSITION, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, run, wait};
use serde_json::Value;
use std::io::Write;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(600);

/// Measures sweep, read and fail-over with the real programs.
#[derive(Debug, Parser)]
#[command(name = "quire-bench", version)]
struct Options {
    /// Printers to read.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u16).range(1..=16000))]
    printers: u16,
    /// Prefix length of the network to sweep, which holds the printers.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(10..=24))]
    prefix: u8,
    /// How often the leader is killed.
    #[arg(long, default_value_t = 5)]
    kills: usize,
    /// Leave out the cluster.
    #[arg(long)]
    no_cluster: bool,
}

/// One line of the table.
struct Row {
    what: &'static str,
    value: String,
    on: String,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let base = Ipv4Addr::new(127, 64, 0, 1);
    let spec = Spec {
        base,
        port: free_udp_port(base.into())?,
        printers: options.printers.into(),
        others: usize::from(options.printers) / 4,
        pages_per_minute: 0,
        ..Spec::default()
    };
    let fleet = Fleet::start(&spec)?;
    let mut rows = vec![sweep(&spec, options.prefix, &fleet)?];
    rows.extend(read(&spec, &fleet)?);
    drop(fleet);
    if !options.no_cluster {
        rows.push(fail_over(options.kills)?);
    }
    show(&rows)
}

/// Runs `quire discover` and gives its summary.
fn discover(spec: &Spec, target: &str, more: &[&str]) -> Result<Value> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("summary.json");
    let (port, summary) = (spec.port.to_string(), file.display().to_string());
    let plain =
        ["discover", target, "--port", &port, "--rate", "0", "--format", "json", "--summary", &summary];
    run(&Programs::find()?.path("quire"), &[&plain, more].concat(), PATIENCE)?.ok()?;
    serde_json::from_slice(&std::fs::read(&file).context("read the summary")?).context("read the summary")
}

fn number(summary: &Value, key: &str) -> Result<f64> {
    summary[key].as_f64().with_context(|| format!("the summary has no {key}: {summary}"))
}

/// Probing alone: most addresses are silent, as on a real network.
fn sweep(spec: &Spec, prefix: u8, fleet: &Fleet) -> Result<Row> {
    let net = u32::from(spec.base) & u32::MAX << (32 - prefix);
    let target = format!("{}/{prefix}", Ipv4Addr::from(net));
    let summary = discover(spec, &target, &["--no-read", "--retries", "1", "--timeout", "1s"])?;
    let (addresses, seconds) = (number(&summary, "addresses")?, number(&summary, "seconds")?);
    let responders = number(&summary, "responders")?;
    ensure!(
        responders >= fleet.truth().len() as f64 * 0.99,
        "only {responders} of {} answered",
        fleet.truth().len()
    );
    let packets = number(&summary, "packets_sent")? / addresses;
    Ok(Row {
        what: "sweep",
        value: format!("{:.0} addresses/s", addresses / seconds),
        on: format!(
            "{addresses} addresses, {responders} responders, no rate limit, 1 retry, {seconds:.1} s, {packets:.2} packets an address"
        ),
    })
}

/// Finding and reading printers that all answer at once.
fn read(spec: &Spec, fleet: &Fleet) -> Result<Vec<Row>> {
    let (first, last) = (fleet.truth().first(), fleet.truth().last());
    let (first, last) = first.zip(last).context("no device")?;
    let target = format!("{}-{}", first.address, last.address);
    let summary = discover(spec, &target, &[])?;
    let (devices, seconds) = (number(&summary, "devices")?, number(&summary, "seconds")?);
    ensure!(devices >= fleet.printers().count() as f64 * 0.99, "only {devices} printers were found");
    let octets = number(&summary, "bytes_sent")? + number(&summary, "bytes_received")?;
    let packets = number(&summary, "packets_sent")?;
    let on = format!("{devices} printers and {} others found and read in {seconds:.1} s", spec.others);
    Ok(vec![
        Row { what: "read", value: format!("{:.0} devices/s", devices / seconds), on: on.clone() },
        Row { what: "traffic", value: format!("{:.0} bytes a device", octets / devices), on: on.clone() },
        Row { what: "questions", value: format!("{:.1} packets a device", packets / devices), on },
    ])
}

/// From `kill -9` of the leader to another node's link to the Web Admin.
fn fail_over(kills: usize) -> Result<Row> {
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    cluster.start_admin()?;
    cluster.enroll("bench")?;
    cluster.apply(&settings(&["127.65.0.0/24"], 1161, 100))?;
    let mut times = Vec::new();
    for _ in 0..kills {
        let old = cluster.await_upstream()?.upstream;
        let leader = cluster.leader()?;
        let killed = Instant::now();
        cluster.kill(&leader)?;
        let took = wait("another node's link", TRANSITION, || {
            // By the Web Admin's own word: the stream that it serves.
            let links = cluster.admin_list("links")?;
            let moved = links.iter().any(|link| link["epoch"].as_u64() > Some(old.epoch));
            ensure!(moved, "it has {links:?}");
            Ok(killed.elapsed())
        })?;
        times.push(took.as_secs_f64());
        cluster.restart(&leader)?;
        cluster.await_whole()?;
    }
    cluster.stop_all()?;
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().context("no kill was measured")?;
    let worst = times.last().copied().unwrap_or(median);
    Ok(Row {
        what: "fail-over",
        value: format!("{median:.2} s median, {worst:.2} s worst"),
        on: format!(
            "{kills} kills of 3 nodes on this machine, seen from the Web Admin, looked at every 0.1 s"
        ),
    })
}

fn show(rows: &[Row]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["what", "value", "measured on"]);
    for row in rows {
        table.add_row([row.what, &row.value, &row.on]);
    }
    let mut out = std::io::stdout();
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    writeln!(out, "\n{}", machine())?;
    out.flush().context("print")
}

/// What the numbers stand for.
fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        cpu.lines()
            .find_map(|line| line.strip_prefix(name)?.split_once(": ").map(|(_, value)| value.to_owned()))
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let build = if cfg!(debug_assertions) { ", DEBUG BUILD: not comparable" } else { "" };
    format!(
        "on {cores} cores of {}, load {load} at the end{build}; loopback only",
        field("model name").unwrap_or_default()
    )
}
