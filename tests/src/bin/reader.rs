//! `quire-reader`: reads many devices again and again and says what it cost, as one JSON object: with the node's own
//! engine and reader, with the sessions of the crate snmp2, or by asking a Prometheus exporter. For `quire-bench`,
//! which gives all of them the same devices and the same objects.

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use quire_node::device::script::Profiles;
use quire_node::device::{self, Finished, ReadPlan};
use quire_node::snmp::{Credential, Options as Engine, Patience, Snmp};
use quire_tests::process::http_get;
use serde_json::{Value as Json, json};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long one question of snmp2 waits.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Connections to the exporter at once.
const SCRAPES: u32 = 4;

/// Who reads.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum With {
    /// The node's engine and reader.
    Quire,
    /// Sessions of the crate snmp2, one a device, one question after another.
    Snmp2,
    /// A Prometheus exporter, over HTTP.
    Exporter,
}

/// Reads many devices and says what it cost.
#[derive(Debug, Parser)]
#[command(name = "quire-reader", version)]
struct Options {
    /// Who reads.
    #[arg(long, value_enum, default_value = "quire")]
    with: With,
    /// Address of the first device; the others follow it.
    #[arg(long)]
    first: Ipv4Addr,
    /// How many devices.
    #[arg(long, default_value_t = 1_000)]
    devices: u32,
    /// Their UDP port.
    #[arg(long, default_value_t = 161)]
    port: u16,
    /// How many of them are read at once, where one process can read several.
    #[arg(long, default_value_t = 50_000)]
    flight: usize,
    /// The same for the first reads [default: as many]
    #[arg(long)]
    first_flight: Option<usize>,
    /// How often each is read after the first time.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// What snmp2 asks; repeatable.
    #[arg(long)]
    oid: Vec<String>,
    /// snmp2 asks by GETBULK, with so many repetitions; 0: by GET.
    #[arg(long, default_value_t = 0)]
    repetitions: u32,
    /// Of a GETBULK, so many names that are asked once.
    #[arg(long, default_value_t = 0)]
    once: u32,
    /// How many objects an answer to snmp2 must bring.
    #[arg(long, default_value_t = 0)]
    objects: usize,
    /// Where the exporter listens.
    #[arg(long, default_value = "127.0.0.1:9116")]
    exporter: SocketAddr,
    /// The exporter's module.
    #[arg(long, default_value = "bench")]
    module: String,
}

impl Options {
    fn peers(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        let (first, port) = (u32::from(self.first), self.port);
        (0..self.devices).map(move |n| SocketAddr::from((Ipv4Addr::from(first + n), port)))
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let report = match options.with {
        With::Quire => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("start a runtime")?.block_on(quire(&options))?
        }
        With::Snmp2 => snmp2(&options)?,
        With::Exporter => exporter(&options)?,
    };
    let mut out = std::io::stdout();
    writeln!(out, "{report}").and_then(|()| out.flush()).context("print")
}

/// CPU seconds of this process so far, user and system.
fn cpu() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("ask for the CPU time")?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// A line of /proc/self/status, in KiB: `VmRSS` or `VmHWM`.
fn memory(line: &str) -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("read the own status")?;
    let value = status.lines().find_map(|other| other.strip_prefix(line)?.strip_prefix(':'));
    let number = value.and_then(|value| value.split_whitespace().next()).context("no such line")?;
    number.parse().context("read a size")
}

/// One pass over all devices.
struct Pass {
    read: u64,
    failed: u64,
    plans: Vec<Option<ReadPlan>>,
}

impl Pass {
    fn take(&mut self, (n, finished): (usize, Finished)) {
        if finished.complete && finished.reading.is_some_and(|reading| !reading.supplies.is_empty()) {
            self.read += 1;
        } else {
            self.failed += 1;
        }
        self.plans[n] = Some(finished.plan);
    }
}

async fn pass(options: &Options, flight: usize, snmp: &Snmp, plans: Vec<Option<ReadPlan>>) -> Result<Pass> {
    let community = Arc::new(Credential::v2c("public").context("make a credential")?);
    let mut reads = JoinSet::new();
    let mut done = Pass { read: 0, failed: 0, plans };
    for (n, peer) in options.peers().enumerate() {
        if reads.len() >= flight
            && let Some(ended) = reads.join_next().await
        {
            done.take(ended.context("read a device")?);
        }
        let (snmp, community, plan) = (snmp.clone(), community.clone(), done.plans[n].take());
        reads.spawn(async move {
            let finished =
                device::read(&snmp, peer, &community, plan, Patience::Normal, Profiles::default()).await;
            (n, finished)
        });
    }
    while let Some(ended) = reads.join_next().await {
        done.take(ended.context("read a device")?);
    }
    Ok(done)
}

async fn quire(options: &Options) -> Result<Json> {
    let engine = Engine { rate: 0, find_engines: false, ..Engine::default() };
    let snmp = Snmp::bind(engine).await.context("open the SNMP sockets")?;
    let mut plans = vec![None; options.devices as usize];
    let mut phases = Vec::new();
    let first_flight = options.first_flight.unwrap_or(options.flight);
    for (rounds, flight) in [(1, first_flight), (options.rounds, options.flight)] {
        // From here on VmHWM is the peak of this phase alone (proc(5), clear_refs).
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        let (memory_before, before, began) = (memory("VmRSS")?, snmp.stats(), Instant::now());
        let cpu_before = cpu()?;
        let (mut read, mut failed) = (0, 0);
        for _ in 0..rounds {
            let done = pass(options, flight, &snmp, plans).await?;
            (read, failed, plans) = (read + done.read, failed + done.failed, done.plans);
        }
        let after = snmp.stats();
        phases.push(json!({
            "reads": read, "failed": failed, "cpu": cpu()? - cpu_before, "seconds": began.elapsed().as_secs_f64(),
            "packets_sent": after.packets_sent - before.packets_sent,
            "packets_received": after.packets_received - before.packets_received,
            "bytes": after.bytes_sent - before.bytes_sent + after.bytes_received - before.bytes_received,
            "repeated": after.retransmissions - before.retransmissions,
            "memory_before": memory_before, "memory_peak": memory("VmHWM")?,
        }));
    }
    Ok(json!({ "first": phases[0], "repeat": phases[1] }))
}

/// Each session has a socket.
fn raise_file_limit(wanted: u64) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("ask for the limit of files")?;
    if soft < wanted {
        setrlimit(Resource::RLIMIT_NOFILE, wanted, hard.max(wanted)).context("raise the limit of files")?;
    }
    Ok(())
}

fn snmp2(options: &Options) -> Result<Json> {
    raise_file_limit(u64::from(options.devices) + 64)?;
    let arcs = |text: &String| text.split('.').map(str::parse).collect::<Result<Vec<u64>, _>>();
    let names: Vec<Vec<u64>> =
        options.oid.iter().map(arcs).collect::<Result<_, _>>().context("read --oid")?;
    let names: Vec<snmp2::Oid<'_>> = names
        .iter()
        .map(|arcs| snmp2::Oid::from(arcs).ok().context("not an object's name"))
        .collect::<Result<_>>()?;
    let wanted: Vec<&snmp2::Oid<'_>> = names.iter().collect();
    let mut sessions = Vec::new();
    for peer in options.peers() {
        let session = snmp2::SyncSession::new_v2c(peer, b"public", Some(TIMEOUT), 1);
        sessions.push(session.with_context(|| format!("open a session to {peer}"))?);
    }
    let (cpu_before, began) = (cpu()?, Instant::now());
    let (mut read, mut failed, mut sum) = (0u64, 0u64, 0u64);
    for _ in 0..options.rounds {
        for session in &mut sessions {
            let answer = match options.repetitions {
                0 => session.get_many(&wanted),
                repetitions => session.getbulk(&wanted, options.once, repetitions),
            };
            let got = answer.ok().map(|pdu| {
                pdu.varbinds.fold(0, |count, (_, value)| {
                    sum = sum.wrapping_add(weight(&value));
                    count + 1
                })
            });
            if got == Some(options.objects) {
                read += 1;
            } else {
                failed += 1;
            }
        }
    }
    Ok(json!({ "reads": read, "failed": failed, "objects": options.objects, "cpu": cpu()? - cpu_before,
        "seconds": began.elapsed().as_secs_f64(), "sum": sum }))
}

/// What is read is used, so that nothing can be left out.
fn weight(value: &snmp2::Value<'_>) -> u64 {
    match value {
        snmp2::Value::Integer(n) => *n as u64,
        snmp2::Value::OctetString(octets) => octets.first().copied().unwrap_or(0).into(),
        snmp2::Value::Counter32(n) | snmp2::Value::Unsigned32(n) | snmp2::Value::Timeticks(n) => (*n).into(),
        _ => 1,
    }
}

fn exporter(options: &Options) -> Result<Json> {
    let began = Instant::now();
    let ask = |peer: SocketAddr| {
        let path = format!("/snmp?target={peer}&module={}", options.module);
        let (status, body) = http_get(options.exporter, &path)?;
        ensure!(status == 200, "{path} gave {status}: {body:.200}");
        Ok(())
    };
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let thread = |of: u32| {
            let ask = &ask;
            scope.spawn(move || {
                let own = options.peers().enumerate().filter(|(n, _)| *n as u32 % SCRAPES == of);
                own.map(|(_, peer)| ask(peer)).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..SCRAPES).map(thread).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_default()).collect()
    });
    let read = results.iter().filter(|result| result.is_ok()).count();
    let why = results.iter().find_map(|result| result.as_ref().err().map(|error| format!("{error:#}")));
    Ok(json!({ "reads": read, "failed": results.len() - read, "why": why,
        "seconds": began.elapsed().as_secs_f64() }))
}
