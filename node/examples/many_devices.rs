//! Makes a data directory of a node that knows very many devices, to see what they cost: memory of the node that is
//! started on it, disk, time of a start.
//!
//! `cargo run --release --example many_devices -- DIR 100000`, then `quire node --data-dir DIR`. The devices live on
//! loopback addresses, in units that the node owns, and were read just now.

#![allow(clippy::print_stdout, reason = "an example says what it found")]

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use prost::Message as _;
use quire_node::cluster::{Cluster, Start};
use quire_proto::convert;
use quire_proto::reading::{Counters, Facts, Reading, Supply, SupplyKind, SupplyState, Via};
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Claim, Grant, Observation, Plan, Record, SweepMark};

const PATIENCE: Duration = Duration::from_secs(60);
/// Devices in a unit.
const EACH: u32 = 200;

fn reading(n: u32) -> Reading {
    let supply = |index: u32, color: &str| Supply {
        index,
        name: format!("{color} Cartridge CF{n}").into(),
        kind: SupplyKind::Toner,
        color: Some(color.into()),
        level: Some(u64::from(n % 1000)),
        max: Some(1000),
        unit: Some("impressions".into()),
        percent: Some(50),
        state: SupplyState::Ok,
    };
    let facts = Facts {
        vendor: Some("HP".into()),
        model: Some("HP Color LaserJet MFP M577".into()),
        serial: Some(format!("JPBC{n:06}")),
        mac: format!("00:11:22:{:02x}:{:02x}:{:02x}", n >> 16 & 255, n >> 8 & 255, n & 255).parse().ok(),
        name: Some(format!("NPI{n:06X}")),
        ..Facts::default()
    };
    let counters =
        Counters { total: Some(u64::from(n)), mono: Some(7), color: Some(9), ..Counters::default() };
    let sources = ["serial", "counters.total", "counters.mono", "counters.color"];
    Reading {
        facts: facts.into(),
        counters,
        supplies: ["black", "cyan", "magenta", "yellow"].iter().zip(1..).map(|(c, n)| supply(n, c)).collect(),
        sources: sources
            .map(|field| (field.to_owned(), "1.3.6.1.2.1.43.10.2.1.4.1.1".to_owned()))
            .into_iter()
            .collect(),
        via: vec![Via::SnmpV2c],
        ..Reading::default()
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, count] = &args[..] else { bail!("give a directory and a number of devices") };
    let count: u32 = count.parse().context("a number of devices")?;
    let listen = Some("127.0.0.1:0".parse()?);
    let cluster = Cluster::init(Start { data_dir: dir.into(), listen, ..Start::default() }, "many").await?;
    let propose = |kind| cluster.propose(kind, PATIENCE);
    let units = count.div_ceil(EACH);
    let net = |unit: u32| format!("127.{}.{}.0/24", 100 + unit / 256, unit % 256);
    let segments: Vec<String> = (0..units).map(|unit| format!("\"{}\"", net(unit))).collect();
    let settings = format!(
        "[discovery]\nsegments = [{}]\n[[snmp]]\nversion = \"2c\"\ncommunity = \"public\"\n",
        segments.join(", ")
    );
    let (settings, _) = cluster.seal_settings(&settings, "example")?;
    let settings_index = propose(Kind::PutSettings(settings)).await?.index;
    let Some(Answer::Epoch(claim)) =
        propose(Kind::Claim(Claim { node: 1, ..Claim::default() })).await?.result
    else {
        bail!("no claim")
    };
    let grants = (0..units).map(|unit| {
        let (prefix, segment) = (net(unit), net(unit));
        Grant {
            unit: format!("any:{prefix}"),
            node: 1,
            zone: "any".into(),
            prefix,
            segment,
            ..Grant::default()
        }
    });
    let epoch =
        propose(Kind::Plan(Plan { claim, grants: grants.collect(), drop_units: vec![] })).await?.index;
    let now = u64::try_from(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_millis())?;
    let began = Instant::now();
    let mut seq = 0;
    for unit in 0..units {
        let mut observations = Vec::new();
        let name = format!("any:{}", net(unit));
        for host in 0..EACH.min(count - unit * EACH) {
            let address = format!("127.{}.{}.{}:161", 100 + unit / 256, unit % 256, host + 1);
            let what = Some(What::Reading(convert::encode(&reading(unit * EACH + host))));
            observations.push(Observation { address, what, ..Observation::default() });
        }
        let mark = SweepMark { started_at_ms: now, finished: true, settings_index, ..SweepMark::default() };
        observations.push(Observation { what: Some(What::Sweep(mark)), ..Observation::default() });
        let observations = observations.into_iter().map(|observation| {
            seq += 1;
            let unit = name.clone();
            Bytes::from(Observation { seq, unit, epoch, at_ms: now, ..observation }.encode_to_vec())
        });
        propose(Kind::Record(Record { node: 1, observations: observations.collect() })).await?;
    }
    println!("{count} devices in {units} units, recorded in {:.1} s", began.elapsed().as_secs_f64());
    cluster.shutdown().await;
    Ok(())
}
