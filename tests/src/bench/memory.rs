//! Memory: of a question that waits, and of a node that knows very many devices.

use super::measure::memory_of;
use super::reads::dense;
use super::sweep::{quire, sparse};
use super::{Row, goal, grouped};
use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::process::wait;
use crate::responder::Spec;
use anyhow::{Context, Result, ensure};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// Longest that a node may take to learn its devices.
const LEARN: Duration = Duration::from_secs(300);
/// Packets a second while it learns.
const RATE: u32 = 20_000;

/// A probe: the peak of a sweep of 65,534 silent addresses above that of 254, all of them asked before the first is
/// given up.
///
/// # Errors
/// When the sweep fails.
pub fn probes(lab: &Lab) -> Result<Row> {
    let far = lab.respond(Spec { devices: 0, ..sparse(1 << 16, 0, 0) })?;
    let options = ["--rate", "0", "--no-read", "--v2c", "--retries", "0", "--timeout", "5s"];
    let small = measure_silent(lab, &far, 24, &options)?;
    let large = measure_silent(lab, &far, 16, &options)?;
    let each = (large - small) * 1024.0 / 65_280.0;
    let on = "65,534 silent addresses outstanding against 254, peak memory, one question each";
    Ok(Row::new("memory a probe", "quire", format!("{} bytes", grouped(each)), on)
        .against(goal(each, false, 1024.0, " bytes")))
}

fn measure_silent(lab: &Lab, far: &crate::lab::Far, prefix: u8, options: &[&str]) -> Result<f64> {
    Ok(quire(lab, far, prefix, options)?.peak)
}

/// A node that learns up to `devices` devices, its memory at each power of ten on the way.
///
/// # Errors
/// When it learns fewer than a tenth of them in time.
pub fn known(devices: u32) -> Result<Vec<Row>> {
    let lab = Lab::loopback()?;
    // A device on every address: what is measured is what a node keeps, and silent addresses cost it only time.
    let far = lab.respond(dense((1 << 17) - 1, 5))?;
    let mut cluster = Cluster::start(&["n1"])?;
    let id = *cluster.process_ids().first().context("no node runs")?;
    let size = |name: &str| memory_of(id, name).map(|size| size as f64 / 1024.0).context("the node is gone");
    let idle = size("VmRSS")?;
    cluster.apply(&format!(
        "[discovery]\nsegments = {:?}\nrate = {RATE}\nport = {}\n\n[metering]\nevery = \"1h\"\n\n[[snmp]]\n\
         version = \"2c\"\ncommunity = \"public\"\n\n[http]\nchromium = false\n",
        segments(lab.first(), devices),
        far.spec.port
    ))?;
    let began = Instant::now();
    let mut rows = Vec::new();
    let mut steps = [1_000, 10_000, 100_000].into_iter().filter(|step| *step <= devices).peekable();
    let mut count = 0;
    // One look a second is no load, and a step may be some thousand devices late: the row says how many there were.
    while let Some(step) = steps.peek().copied()
        && began.elapsed() < LEARN
    {
        count = wait("more devices", LEARN.saturating_sub(began.elapsed()), || {
            let status = cluster.status()?;
            ensure!(
                status.devices >= u64::from(step),
                "{} devices after {:?}",
                status.devices,
                began.elapsed()
            );
            Ok(status.devices)
        })
        .or_else(|_| cluster.status().map(|status| status.devices))?;
        steps.next();
        rows.push(row(count, size("VmRSS")?, idle, began.elapsed(), size("VmHWM")?));
    }
    ensure!(count * 10 >= u64::from(devices), "only {count} devices were learnt in {:?}", began.elapsed());
    if let Some(last) = rows.last_mut() {
        let above = size("VmRSS")? - idle;
        let full = count >= u64::from(devices);
        let said = if full {
            goal(above, false, 64.0, " MB")
        } else {
            format!("goal is for {devices}: not reached in time")
        };
        last.ratio = format!("{}; {said}", last.ratio);
    }
    cluster.stop_all()?;
    Ok(rows)
}

/// Prefixes that have so many hosts, 254 in each /24, the largest first.
fn segments(first: Ipv4Addr, hosts: u32) -> Vec<String> {
    let (mut at, mut left) = (u32::from(first), hosts.div_ceil(254));
    let mut found = Vec::new();
    while left > 0 {
        let log = left.ilog2().min(8);
        found.push(format!("{}/{}", Ipv4Addr::from(at), 24 - log));
        at += 256 << log;
        left -= 1 << log;
    }
    found
}

fn row(devices: u64, size: f64, idle: f64, took: Duration, peak: f64) -> Row {
    let above = size - idle;
    let on = format!(
        "one node, found and read in {:.0} s, idle {idle:.0} MB, peak {peak:.0} MB; resident, RocksDB and log included",
        took.as_secs_f64()
    );
    let value = format!("{above:.0} MB above idle");
    Row::new(&format!("memory, {} devices known", grouped(devices as f64)), "quire node", value, &on)
        .against(format!("{} bytes a device", grouped(above * 1024.0 * 1024.0 / devices as f64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_hold_as_many_hosts_as_wanted() {
        let first = Ipv4Addr::new(127, 64, 0, 0);
        assert_eq!(segments(first, 254), ["127.64.0.0/24"]);
        assert_eq!(segments(first, 1_000), ["127.64.0.0/22"]);
        let many = segments(first, 100_000);
        assert_eq!(many, ["127.64.0.0/16", "127.65.0.0/17", "127.65.128.0/21", "127.65.136.0/23"]);
    }
}
