//! A million devices in a node's own store: real Raft, log, fsync, state machine and snapshots, without network to devices.
//! What the collector would propose is proposed, in batches of its size; what the Web Admin would acknowledge is
//! acknowledged. Everything is in this process, so its memory is that of all nodes in it, and of the making of readings.

use super::measure::memory_of;
use super::{Row, goal, grouped};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use ipnet::Ipv4Net;
use nix::sys::resource::{UsageWho, getrusage};
use prost::Message as _;
use quire_coordinator::rows;
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_node::cluster::{Cluster, Role, Standing, Start};
use quire_proto::address::Mac;
use quire_proto::convert;
use quire_proto::id::NodeId;
use quire_proto::reading::{
    Condition, Counters, Facts, Reading, Status, Supply, SupplyKind, SupplyState, Via,
};
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Ack, Claim, Enroll, Grant, Member, Observation, Plan, Record};
use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

/// Of one node's store.
pub const MANY: u32 = 1_000_000;
/// Of three replicas.
pub const REPLICATED: u32 = 200_000;

/// Observations in one entry, as the collector sends them.
const BATCH: u32 = 500;
/// Nodes that collect: each has one batch under way, as the collector's reporter has.
const COLLECTORS: u32 = 8;
/// Devices of a unit, a /24.
const OF_UNIT: u32 = 250;
const PATIENCE: Duration = Duration::from_secs(60);
/// For a snapshot, or for entries that were not purged, to arrive.
const COPY: Duration = Duration::from_secs(900);

/// All rows.
///
/// # Errors
/// When a node does not start, or the store does not hold what was recorded.
pub fn rows(devices: u32, replicated: u32) -> Result<Vec<Row>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start tokio")?;
    let mut rows = runtime.block_on(one(devices))?;
    rows.extend(runtime.block_on(three(replicated))?);
    Ok(rows)
}

fn memory(name: &str) -> f64 {
    memory_of(std::process::id(), name).map_or(0.0, |kilobytes| kilobytes as f64 / 1024.0)
}

/// Forgets the peak so far (`proc(5)`, clear_refs); where that is not allowed, the peak is that of the whole run.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// User and system time of this process, all threads, seconds.
fn cpu() -> f64 {
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    getrusage(UsageWho::RUSAGE_SELF)
        .map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}

fn size_of(dir: &Path) -> f64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0.0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => size_of(&entry.path()),
        Ok(meta) => meta.len() as f64 / 1e6,
        Err(_) => 0.0,
    };
    entries.flatten().map(size).sum()
}

fn start(dir: &Path, name: &str) -> Start {
    Start {
        data_dir: dir.join(name),
        name: Some(name.to_owned()),
        zone: Some("hq".to_owned()),
        listen: Some(([127, 88, 0, 1], 0).into()),
        ..Start::default()
    }
}

async fn until(cluster: &Cluster, what: &str, wanted: impl FnMut(&Standing) -> bool) -> Result<()> {
    let mut watch = cluster.watch();
    let waited = tokio::time::timeout(COPY, watch.wait_for(wanted)).await;
    waited.with_context(|| format!("it does not {what}"))?.context("the node has stopped")?;
    Ok(())
}

async fn propose(cluster: &Cluster, kind: Kind) -> Result<Answer> {
    let outcome = cluster.propose(kind, PATIENCE).await.context("propose")?;
    outcome.result.context("an entry without an outcome")
}

/// A cluster whose units are granted to the collectors.
struct Site {
    cluster: Cluster,
    claim: u64,
    epochs: Vec<u64>,
}

fn unit(number: u32) -> (String, Ipv4Net) {
    let net = Ipv4Net::new_assert(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 8)), 24);
    (format!("hq:{net}"), net)
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(0)
}

impl Site {
    async fn new(cluster: Cluster, devices: u32) -> Result<Site> {
        propose(&cluster, Kind::Enroll(Enroll { site: "bench".into(), ..Enroll::default() })).await?;
        let Answer::Epoch(claim) =
            propose(&cluster, Kind::Claim(Claim { node: 1, ..Claim::default() })).await?
        else {
            bail!("no claim");
        };
        let mut epochs = Vec::new();
        let units: Vec<u32> = (0..devices.div_ceil(OF_UNIT)).collect();
        for some in units.chunks(500) {
            let grant = |n: &u32| {
                let (unit, net) = unit(*n);
                let (prefix, segment) = (net.to_string(), net.to_string());
                let node = u64::from(collector_of(*n, devices)) + 1;
                let zone = "hq".to_owned();
                Grant { unit, node, zone, prefix, segment, cost: 256, hops: Some(1), ..Grant::default() }
            };
            let grants = some.iter().map(grant).collect();
            match propose(&cluster, Kind::Plan(Plan { claim, grants, drop_units: Vec::new() })).await? {
                Answer::Epoch(epoch) => epochs.extend(some.iter().map(|_| epoch)),
                other => bail!("the plan was refused: {other:?}"),
            }
        }
        Ok(Site { cluster, claim, epochs })
    }

    /// A reading of every device by its collector, `round` counted from 0; answers seconds, and seconds of CPU.
    async fn record(&self, devices: u32, round: u32) -> Result<(f64, f64)> {
        let (began, before) = (Instant::now(), cpu());
        let each = share(devices);
        let collect = |collector: u32| {
            let (cluster, claim, epochs) = (self.cluster.clone(), self.claim, self.epochs.clone());
            tokio::spawn(async move {
                let (first, end) = (collector * each, devices.min((collector + 1) * each));
                for from in (first..end).step_by(BATCH as usize) {
                    let through = end.min(from + BATCH);
                    let of = |n: u32| observation(n, u64::from(round * each + n - first), round, &epochs);
                    let observations: Vec<Bytes> = (from..through).map(of).collect();
                    let record = Record { node: u64::from(collector) + 1, observations };
                    let last = u64::from(round * each + through - first);
                    let answer = propose(&cluster, Kind::Record(record)).await?;
                    ensure!(answer == Answer::RecordedThrough(last), "recorded {answer:?}, not {last}");
                    propose(&cluster, Kind::Ack(Ack { claim, through: u64::MAX })).await?;
                }
                Ok(())
            })
        };
        for task in (0..COLLECTORS).map(collect).collect::<Vec<_>>() {
            task.await.context("a collector")??;
        }
        Ok((began.elapsed().as_secs_f64(), cpu() - before))
    }
}

/// Devices of one collector: whole units.
fn share(devices: u32) -> u32 {
    devices.div_ceil(OF_UNIT).div_ceil(COLLECTORS) * OF_UNIT
}

fn collector_of(unit: u32, devices: u32) -> u32 {
    unit * OF_UNIT / share(devices)
}

/// What a colour or a black and white printer of an office says, about 1 KB: four or eight supplies, six counters.
fn reading(device: u32, round: u32) -> Reading {
    let color = device % 2 == 1;
    let names = ["Black", "Cyan", "Magenta", "Yellow"];
    let supply = |index: u32| {
        let name = names[(index % 4) as usize];
        let (drum, level) = (index >= 4, u64::from(100 - (device + round * 3 + index * 7) % 100));
        Supply {
            index: index + 1,
            name: format!("{name} {} HP CF28{index}X", if drum { "Drum" } else { "Cartridge" }).into(),
            kind: if drum { SupplyKind::Drum } else { SupplyKind::Toner },
            color: Some(name.to_lowercase().into()),
            level: Some(level * 90),
            max: Some(9_000),
            unit: Some("impressions".into()),
            percent: u8::try_from(level).ok(),
            state: if level < 10 { SupplyState::Low } else { SupplyState::Ok },
        }
    };
    let base = u64::from(device % 90_000) + u64::from(round) * 40;
    let octets = device.to_be_bytes();
    let facts = Facts {
        vendor: Some("HP".to_owned()),
        model: Some(format!("HP Color LaserJet MFP M{}", 400 + device % 40)),
        serial: Some(format!("PHB{device:07}")),
        mac: Mac::new(&[0x00, 0x1b, 0x78, octets[1], octets[2], octets[3]]),
        name: Some(format!("printer-{device}")),
        location: Some(format!("Building {}, room {}", device % 50, device % 400)),
        firmware: Some("2409081_065013".to_owned()),
        ..Facts::default()
    };
    let counters = Counters {
        total: Some(base * 3),
        mono: Some(base * 2),
        color: color.then_some(base),
        prints: Some(base * 2),
        copies: Some(base),
        scans: Some(base / 2),
        ..Counters::default()
    };
    let sources = [
        ("serial", "1.3.6.1.2.1.43.5.1.1.17.1"),
        ("mac", "1.3.6.1.2.1.2.2.1.6.2"),
        ("model", "1.3.6.1.2.1.25.3.2.1.3.1"),
        ("counters.total", "1.3.6.1.2.1.43.10.2.1.4.1.1"),
        ("counters.mono", "1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.6.0"),
        ("counters.prints", "1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.5.0"),
        ("counters.copies", "1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.7.0"),
        ("counters.scans", "1.3.6.1.4.1.11.2.3.9.4.2.1.2.2.1.0"),
    ];
    Reading {
        facts: facts.into(),
        counters,
        supplies: (0..if color { 8 } else { 4 }).map(supply).collect(),
        status: Some(Status::Idle),
        conditions: if device.is_multiple_of(10) { vec![Condition::LowToner] } else { Vec::new() },
        display: Some("Ready".to_owned()),
        sources: sources.iter().map(|(field, from)| ((*field).to_owned(), (*from).to_owned())).collect(),
        via: vec![Via::SnmpV2c],
        others: Vec::new(),
    }
}

fn observation(device: u32, before: u64, round: u32, epochs: &[u64]) -> Bytes {
    let number = device / OF_UNIT;
    let (unit, net) = unit(number);
    let address = Ipv4Addr::from(u32::from(net.network()) + 1 + device % OF_UNIT);
    let observation = Observation {
        seq: before + 1,
        unit,
        epoch: epochs.get(number as usize).copied().unwrap_or(0),
        address: format!("{address}:161"),
        at_ms: now_ms(),
        hops: Some(1),
        what: Some(What::Reading(convert::encode(&reading(device, round)))),
        ..Observation::default()
    };
    observation.encode_to_vec().into()
}

fn known(cluster: &Cluster) -> Result<u64> {
    Ok(rows::meta(&cluster.view())?.devices)
}

fn pace(what: &str, devices: u32, (seconds, cpu): (f64, f64), on: &str) -> Row {
    let rate = f64::from(devices) / seconds;
    let each = cpu / f64::from(devices) * 1e6;
    Row::new(what, "quire", format!("{} devices/s, {each:.0} us of CPU each", grouped(rate)), on)
        .against(goal(rate, true, 50_000.0, "/s"))
}

/// One node's store, its restart, and its snapshot to a second node.
async fn one(devices: u32) -> Result<Vec<Row>> {
    let dir = TempDir::new().context("a directory")?;
    let idle = memory("VmRSS");
    let first = Cluster::init(start(dir.path(), "n1"), "bench").await?;
    let site = Site::new(first, devices).await?;
    let each = observation(0, 0, 0, &[1]).len().midpoint(observation(1, 0, 0, &[1]).len());
    let on = format!(
        "one node, its own Raft, log and fsync; entries of {BATCH} readings of {each} octets, {COLLECTORS} under way, each \
         acknowledged upstream at once; the node and the making of readings are one process"
    );
    let learnt = site.record(devices, 0).await?;
    let again = site.record(devices, 1).await?;
    ensure!(known(&site.cluster)? == u64::from(devices), "{} devices are known", known(&site.cluster)?);
    let (peak, after) = (memory("VmHWM") - idle, memory("VmRSS") - idle);
    let disk = size_of(dir.path());
    let Site { cluster, .. } = site;
    cluster.shutdown().await;
    let began = Instant::now();
    let cluster = Cluster::open(Start { data_dir: dir.path().join("n1"), ..Start::default() }).await?;
    until(&cluster, "lead again", |now| now.role == Role::Leader && now.quorum).await?;
    propose(&cluster, Kind::Claim(Claim { node: 1, ..Claim::default() })).await?;
    let restart = began.elapsed().as_secs_f64();
    let settled = size_of(dir.path());
    let many = grouped(f64::from(devices));
    let row = |what: &str, value: String, ratio: String| {
        Row::new(&format!("store: {many} devices, {what}"), "quire", value, &on).against(ratio)
    };
    let mut rows = vec![
        pace(&format!("store: {many} devices learnt"), devices, learnt, &on),
        pace(&format!("store: {many} devices read again"), devices, again, &on),
        row(
            "memory",
            format!("{peak:.0} MB at the peak, {after:.0} MB after"),
            goal(peak, false, 400.0, " MB"),
        ),
        row(
            "disk",
            format!("{disk:.0} MB, {settled:.0} MB after a restart"),
            goal(disk, false, 1_000.0, " MB"),
        ),
        row("restart", format!("{restart:.2} s until it leads and commits"), goal(restart, false, 5.0, " s")),
    ];
    rows.extend(snapshot(dir.path(), cluster, &many).await?);
    Ok(rows)
}

/// A second node joins and gets all of it.
async fn snapshot(dir: &Path, first: Cluster, many: &str) -> Result<Vec<Row>> {
    let second = joined(dir, "n2", &first).await?;
    let row = member(&first, &second)?;
    forget_peak();
    let (before, began) = (memory("VmRSS"), Instant::now());
    first.add_learner(&row).await?;
    let wanted = first.watch().borrow().applied;
    until(&second, "catch up", |now| now.applied >= wanted).await?;
    let (took, extra) = (began.elapsed().as_secs_f64(), memory("VmHWM") - before);
    ensure!(known(&first)? == known(&second)?, "the second node has {} devices", known(&second)?);
    let on = "both nodes in this process, TLS between them; memory above that before, of both; as log entries where the log \
              still reaches back to the first";
    let what = format!("store: {many} devices, a snapshot to a second node");
    let value = format!("{took:.1} s, {extra:.0} MB");
    let rows = vec![Row::new(&what, "quire", value, on).against(goal(extra, false, 64.0, " MB"))];
    second.shutdown().await;
    first.shutdown().await;
    Ok(rows)
}

async fn joined(dir: &Path, name: &str, first: &Cluster) -> Result<Cluster> {
    let token = first.create_token(PATIENCE, "bench").await?;
    Ok(Cluster::join(start(dir, name), &first.me().address, &token).await?)
}

fn member(first: &Cluster, joined: &Cluster) -> Result<Member> {
    let row = first.view().row(Table::Members, &rows::number_key(joined.me().id.0))?;
    row.context("who joined is no member")
}

/// Three replicas, each with its own disk of this machine.
async fn three(devices: u32) -> Result<Vec<Row>> {
    let dir = TempDir::new().context("a directory")?;
    let first = Cluster::init(start(dir.path(), "n1"), "bench").await?;
    let mut others = Vec::new();
    for name in ["n2", "n3"] {
        let node = joined(dir.path(), name, &first).await?;
        first.add_learner(&member(&first, &node)?).await?;
        others.push(node);
    }
    let voters: BTreeSet<NodeId> = others.iter().chain([&first]).map(|node| node.me().id).collect();
    first.change_voters(voters).await?;
    let site = Site::new(first, devices).await?;
    let on = format!(
        "three nodes in this process on one disk, Raft over TLS, fsync on, applied by all three; entries of {BATCH} readings, \
         {COLLECTORS} under way"
    );
    let learnt = site.record(devices, 0).await?;
    let again = site.record(devices, 1).await?;
    let wanted = site.cluster.watch().borrow().applied;
    for node in &others {
        until(node, "catch up", |now| now.applied >= wanted).await?;
        ensure!(known(node)? == u64::from(devices), "a replica has {} devices", known(node)?);
    }
    let rows = vec![
        pace("store: three replicas, devices learnt", devices, learnt, &on),
        pace("store: three replicas, devices read again", devices, again, &on),
    ];
    for node in others.into_iter().chain([site.cluster]) {
        node.shutdown().await;
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_store_says_the_same_things() {
        let rows = rows(3_000, 1_000).unwrap();
        assert_eq!(rows.len(), 8);
        assert!(rows.iter().any(|row| row.what.ends_with("a snapshot to a second node")));
    }
}
