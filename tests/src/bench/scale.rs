//! The planner and the state machine beyond this machine: 100 nodes, 100,000 segments, a million devices. In one process
//! and in memory: what the decisions cost, without disk and network.

use super::{Row, goal, grouped, measure::memory_of};
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use ipnet::{IpNet, Ipv4Net};
use prost::Message as _;
use quire_coordinator::planner::{self, Change, CurrentUnit, NodeView, PlanView};
use quire_coordinator::settings::Segment;
use quire_coordinator::state;
use quire_coordinator::tables::{MemoryTables, Overlay};
use quire_coordinator::topology::Reach;
use quire_proto::convert;
use quire_proto::id::{Millis, NodeId};
use quire_proto::reading::{Counters, Facts, Reading, Via};
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Ack, Bootstrap, Claim, Command, Enroll, Grant, Member, Observation, Plan, Record};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Instant;

/// How large.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// In ten zones.
    pub nodes: u64,
    /// Each a /25 of 126 hosts, in one of the zones.
    pub segments: u32,
    /// Known to the state machine.
    pub devices: u32,
}

/// What is measured.
pub const LARGE: Size = Size { nodes: 100, segments: 100_000, devices: 1_000_000 };

const ZONES: u64 = 10;
/// Observations in one entry, as nodes send them.
const RECORD: u32 = 500;
const NOW: u64 = 1_800_000_000_000;

/// All rows.
///
/// # Errors
/// When what was decided is not what must be.
pub fn rows(size: Size) -> Result<Vec<Row>> {
    let mut rows = plans(size)?;
    rows.extend(applies(size)?);
    Ok(rows)
}

fn zone(number: u64) -> String {
    format!("zone{}", number % ZONES)
}

fn prefix(number: u32) -> IpNet {
    let first = u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (number << 7);
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::from(first), 25))
}

fn view(size: Size) -> PlanView {
    let segment = |n| Segment { prefix: prefix(n), zone: zone(u64::from(n)) };
    let segments: Vec<Segment> = (0..size.segments).map(segment).collect();
    let node = |id| NodeView {
        id: NodeId(id),
        zone: zone(id),
        alive: true,
        since: Millis(0),
        draining: false,
        witness: false,
        can_collect: true,
    };
    let ways = |segment: &Segment| {
        let near = (1..=size.nodes).filter(|id| zone(*id) == segment.zone);
        near.map(|id| (NodeId(id), Reach { hops: Some(1), reachable: true })).collect()
    };
    PlanView {
        current: BTreeMap::new(),
        wanted: planner::units_of(&segments, &[]),
        nodes: (1..=size.nodes).map(node).collect(),
        reach: segments.iter().map(|segment| (segment.prefix, ways(segment))).collect(),
        placements: Vec::new(),
        now: Millis(NOW),
    }
}

fn plans(size: Size) -> Result<Vec<Row>> {
    let mut view = view(size);
    let on = format!(
        "{} nodes in {ZONES} zones, {} segments of 126 hosts, {} ways",
        size.nodes,
        grouped(f64::from(size.segments)),
        grouped(view.reach.values().map(|ways| ways.len() as f64).sum())
    );
    let (changes, first) = timed(|| planner::plan(&view));
    ensure!(
        changes.len() == view.wanted.len(),
        "{} of {} units were placed",
        changes.len(),
        view.wanted.len()
    );
    for change in changes {
        if let Change::Grant { unit, node, spec, cost, .. } = change {
            let row = CurrentUnit { owner: node, cost, granted_at: Millis(NOW), segment: spec.segment };
            view.current.insert(unit, row);
        }
    }
    let spread = spread(&view);
    view.now.0 += 60_000;
    let (idle, look) = timed(|| planner::plan(&view));
    ensure!(idle.is_empty(), "a plan that stands is changed in {} places", idle.len());
    let dead = view.nodes.first().map(|node| node.id).context("there is no node")?;
    let lost = view.current.values().filter(|unit| unit.owner == dead).count();
    if let Some(node) = view.nodes.first_mut() {
        (node.alive, node.since) = (false, view.now);
    }
    let (moves, died) = timed(|| planner::plan(&view));
    ensure!(moves.len() == lost, "{} units move, {lost} were the dead node's", moves.len());
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let row = |what: &str, value: String, ratio: String| Row::new(what, "planner", value, &on).against(ratio);
    Ok(vec![
        row("scale: first plan", ms(first), goal(first, false, 1.0, " s")),
        row("scale: cost spread within a zone", format!("{spread:.2} %"), goal(spread, false, 5.0, " %")),
        row("scale: a look at a plan that stands", ms(look), String::new()),
        row(
            "scale: one node dies",
            format!("{}, {lost} units move", ms(died)),
            goal(died * 1e3, false, 50.0, " ms"),
        ),
    ])
}

/// By how much the node with the most carries more than the one with the least, of the mean, in the worst zone.
fn spread(view: &PlanView) -> f64 {
    let mut loads: BTreeMap<String, BTreeMap<NodeId, u64>> = BTreeMap::new();
    for node in &view.nodes {
        loads.entry(node.zone.clone()).or_default().insert(node.id, 0);
    }
    for (id, unit) in &view.current {
        if let Some(load) = loads.get_mut(id.zone()).and_then(|zone| zone.get_mut(&unit.owner)) {
            *load += unit.cost;
        }
    }
    let of = |zone: &BTreeMap<NodeId, u64>| {
        let (least, most) = (zone.values().min().copied(), zone.values().max().copied());
        let mean = zone.values().sum::<u64>() as f64 / zone.len().max(1) as f64;
        (most.unwrap_or(0) - least.unwrap_or(0)) as f64 / mean.max(1.0) * 100.0
    };
    loads.values().map(of).fold(0.0, f64::max)
}

/// Tables in memory and the entries that they have seen.
struct Machine {
    tables: MemoryTables,
    index: u64,
}

impl Machine {
    fn apply(&mut self, kind: Kind) -> Result<Answer> {
        self.index += 1;
        let command = Command { at_ms: NOW, led_at_ms: NOW, kind: Some(kind), ..Command::default() };
        let mut overlay = Overlay::new(&self.tables);
        let outcome = state::apply(&mut overlay, self.index, &command)?;
        let writes: Vec<_> = overlay.into_writes().collect();
        self.tables.commit(writes.into_iter());
        outcome.result.context("an entry without an outcome")
    }
}

fn applies(size: Size) -> Result<Vec<Row>> {
    let mut machine = Machine { tables: MemoryTables::default(), index: 0 };
    let before = memory();
    machine.apply(Kind::Bootstrap(Bootstrap {
        cluster_id: Bytes::from_static(b"sixteen octets!!"),
        first: Some(Member {
            id: 1,
            name: "n1".into(),
            zone: zone(0),
            cluster_version: quire_proto::CLUSTER_VERSION,
            ..Member::default()
        }),
        ..Bootstrap::default()
    }))?;
    machine.apply(Kind::Enroll(Enroll { site: "bench".into(), ..Enroll::default() }))?;
    let Answer::Epoch(claim) = machine.apply(Kind::Claim(Claim { node: 1, ..Claim::default() }))? else {
        anyhow::bail!("no claim");
    };
    let (granted, grants) = timed(|| grant(&mut machine, claim, size.segments));
    let epochs = granted?;
    let learnt = timed(|| record(&mut machine, claim, size, &epochs, 0));
    learnt.0?;
    let above = memory() - before;
    let again = timed(|| record(&mut machine, claim, size, &epochs, size.devices));
    again.0?;
    let rate = |seconds: f64| f64::from(size.devices) / seconds;
    let on = format!(
        "entries of {RECORD} readings, one thread, tables in memory, no disk, each entry acknowledged upstream at once"
    );
    let row =
        |what: &str, value: String, ratio: String| Row::new(what, "state machine", value, &on).against(ratio);
    let devices = grouped(f64::from(size.devices));
    let pace = |what: &str, seconds: f64| {
        let value = format!("{} devices/s", grouped(rate(seconds)));
        row(what, value, goal(rate(seconds), true, 50_000.0, "/s"))
    };
    Ok(vec![
        row(
            "scale: grants",
            format!("{} units/s", grouped(f64::from(size.segments) / grants)),
            String::new(),
        ),
        pace(&format!("scale: {devices} devices learnt"), learnt.1),
        pace(&format!("scale: {devices} devices read again"), again.1),
        row(&format!("scale: {devices} devices in memory"), format!("{above:.0} MB"), String::new()),
    ])
}

fn memory() -> f64 {
    memory_of(std::process::id(), "VmRSS").map_or(0.0, |kilobytes| kilobytes as f64 / 1024.0)
}

/// Grants all units to node 1, as entries of a plan; answers the epoch of each.
fn grant(machine: &mut Machine, claim: u64, segments: u32) -> Result<Vec<u64>> {
    let mut epochs = Vec::new();
    let numbers: Vec<u32> = (0..segments).collect();
    for some in numbers.chunks(500) {
        let grant = |n: &u32| Grant {
            unit: format!("{}:{}", zone(u64::from(*n)), prefix(*n)),
            node: 1,
            zone: zone(u64::from(*n)),
            prefix: prefix(*n).to_string(),
            segment: prefix(*n).to_string(),
            cost: 128,
            hops: Some(1),
            hand_over: false,
        };
        let plan = Plan { claim, grants: some.iter().map(grant).collect(), drop_units: Vec::new() };
        let Answer::Epoch(epoch) = machine.apply(Kind::Plan(plan))? else {
            anyhow::bail!("the plan was refused")
        };
        epochs.extend(some.iter().map(|_| epoch));
    }
    Ok(epochs)
}

/// A reading of every device, numbered behind `done`.
fn record(machine: &mut Machine, claim: u64, size: Size, epochs: &[u64], done: u32) -> Result<()> {
    for from in (0..size.devices).step_by(RECORD as usize) {
        let through = size.devices.min(from + RECORD);
        let observations = (from..through).map(|n| observation(n, done, size.segments, epochs)).collect();
        let answer = machine.apply(Kind::Record(Record { node: 1, observations }))?;
        let last = u64::from(done + through);
        ensure!(answer == Answer::RecordedThrough(last), "recorded {answer:?}, not {last}");
        machine.apply(Kind::Ack(Ack { claim, through: u64::MAX }))?;
    }
    Ok(())
}

fn observation(device: u32, done: u32, segments: u32, epochs: &[u64]) -> Bytes {
    let number = device % segments;
    let IpNet::V4(net) = prefix(number) else { return Bytes::new() };
    let address = Ipv4Addr::from(u32::from(net.network()) + 1 + device / segments);
    let mut reading = Reading { via: vec![Via::SnmpV2c], ..Reading::default() };
    *reading.facts = Facts {
        vendor: Some("HP".to_owned()),
        model: Some("HP LaserJet M605".to_owned()),
        serial: Some(format!("SCALE{device:07}")),
        ..Facts::default()
    };
    reading.counters = Counters { total: Some(u64::from(device + done)), ..Counters::default() };
    for (field, source) in
        [("serial", "1.3.6.1.2.1.43.5.1.1.17.1"), ("counters.total", "1.3.6.1.2.1.43.10.2.1.4.1.1")]
    {
        reading.sources.insert(field.to_owned(), source.to_owned());
    }
    let observation = Observation {
        seq: u64::from(done + device + 1),
        unit: format!("{}:{}", zone(u64::from(number)), net),
        epoch: epochs.get(number as usize).copied().unwrap_or(0),
        address: format!("{address}:161"),
        at_ms: NOW + u64::from(done),
        hops: Some(1),
        what: Some(What::Reading(convert::encode(&reading))),
        ..Observation::default()
    };
    observation.encode_to_vec().into()
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let began = Instant::now();
    let result = work();
    (result, began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_scale_says_the_same_things() {
        let rows = rows(Size { nodes: 20, segments: 400, devices: 2_000 }).unwrap();
        assert_eq!(rows.len(), 8);
        assert!(
            rows.iter().any(|row| row.what.ends_with("one node dies") && row.value.contains("20 units move"))
        );
    }
}
