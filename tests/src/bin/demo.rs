//! `quire-demo`, behind `make demo`: a whole cluster on this machine's loopback addresses. Simulated printers,
//! three nodes, a Web Admin; enrolled, searching, and gone without a trace on Ctrl-C.
//!
//! It must need no root, touch nothing outside 127.0.0.0/8 and its own temporary directory, and leave no
//! process behind however it ends.

use anyhow::{Context, Result, bail};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use quire_tests::cluster::{Cluster, Ports, Programs, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{interrupt, interrupted};
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use tokio::signal::unix::{SignalKind, signal};

/// Between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(500);
/// Between two lines where no bar can be drawn.
const LINE: Duration = Duration::from_secs(5);
const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const NAMES: [&str; 3] = ["n1", "n2", "n3"];

/// A whole cluster on this machine: simulated printers, three nodes, a Web Admin. Ctrl-C ends it.
#[derive(Debug, Parser)]
#[command(name = "quire-demo", version)]
struct Options {
    /// Address of the first simulated device, in 127.0.0.0/8.
    #[arg(long, default_value = "127.2.0.1")]
    base: Ipv4Addr,
    /// Simulated printers.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..=4000))]
    printers: u16,
    /// Simulated devices that are no printers.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(0..=4000))]
    others: u16,
    /// UDP port of the simulated devices.
    #[arg(long, default_value_t = 1161)]
    port: u16,
    /// First of 14 TCP ports on 127.0.0.1: the Web Admin's console, the nodes' consoles, and 10 higher what they listen on.
    #[arg(long, default_value_t = 8400, value_parser = clap::value_parser!(u16).range(1..=65000))]
    first_port: u16,
    /// End by itself after this many seconds.
    #[arg(long = "for", value_name = "SECONDS")]
    seconds: Option<u64>,
}

/// One printer in eight is nearly out of toner or ink.
const RULES: &str = "\n[[alert]]\nname = \"low toner or ink\"\n\
    when = '(supply.kind == \"toner\" || supply.kind == \"ink\") && supply.percent < 10'\nnotify = [\"upstream\"]\n";

fn main() -> ExitCode {
    let options = Options::parse();
    // A thread of its own for the work: the children die with the thread that started them, and this one
    // only listens for signals.
    let work = std::thread::Builder::new().name("demo".to_owned()).spawn(move || demo(&options));
    let result = work.context("start").and_then(|work| {
        listen_for_signals(|| work.is_finished())?;
        work.join().unwrap_or_else(|_| bail!("the demo broke"))
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) if interrupted() => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns once `done`. The first signal asks everything to end; a second ends this process, and the kernel
/// the children with it.
fn listen_for_signals(done: impl Fn() -> bool) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(async {
        let mut interrupts = signal(SignalKind::interrupt()).context("wait for Ctrl-C")?;
        let mut terminates = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
        let mut hangups = signal(SignalKind::hangup()).context("wait for SIGHUP")?;
        while !done() {
            let signalled = tokio::select! {
                _ = interrupts.recv() => true,
                _ = terminates.recv() => true,
                _ = hangups.recv() => true,
                () = tokio::time::sleep(Duration::from_millis(50)) => false,
            };
            if signalled && interrupted() {
                bail!("ended in a hurry");
            }
            if signalled {
                let _ = writeln!(std::io::stderr(), "\nstopping (once more to hurry)");
                interrupt();
            }
        }
        Ok(())
    })
}

fn demo(options: &Options) -> Result<()> {
    let started = Instant::now();
    Programs::find()?;
    refuse_taken_ports(options.first_port)?;
    let spec = Spec {
        base: options.base,
        port: options.port,
        printers: options.printers.into(),
        others: options.others.into(),
        per_net: 16,
        ..Spec::default()
    };
    let fleet = Fleet::start(&spec).context("start the simulated devices (is another demo running?)")?;
    let first = Ports::From(options.first_port);
    let mut cluster = Cluster::empty(HOST, first)?;
    say(&format!(
        "devices    {} printers, {} others from {} on, UDP port {}",
        spec.printers, spec.others, spec.base, spec.port
    ))?;
    let result = run(&mut cluster, &fleet, &spec, options, started);
    // Whatever happened, everything ends politely first.
    match (result, interrupted()) {
        (Ok(()), _) | (Err(_), true) => cluster.stop_all().map(drop),
        (Err(error), false) => Err(error),
    }
}

fn run(cluster: &mut Cluster, fleet: &Fleet, spec: &Spec, options: &Options, started: Instant) -> Result<()> {
    let (first, others) = NAMES.split_first().context("no node")?;
    cluster.init(first)?;
    for name in others {
        cluster.join(name)?;
    }
    cluster.start_admin()?;
    cluster.enroll("demo")?;
    cluster.apply(&(settings(&[&segment(fleet)?], spec.port, 2000) + RULES))?;
    for node in cluster.nodes() {
        say(&format!("node {}    console http://{}  data {}", node.name, node.console, node.data.display()))?;
    }
    if let Some(admin) = cluster.admin() {
        say(&format!("Web Admin  console http://{}  data {}", admin.console, admin.data.display()))?;
    }
    say(&format!("ready after {:.1} s; Ctrl-C ends it", started.elapsed().as_secs_f64()))?;
    watch(cluster, fleet.printers().count() as u64, options.seconds)
}

/// The smallest prefix that holds every simulated device.
fn segment(fleet: &Fleet) -> Result<String> {
    let addresses = || fleet.truth().iter().map(|truth| u32::from(truth.address));
    let (low, high) = (addresses().min().context("no device")?, addresses().max().context("no device")?);
    let length = (low ^ high).leading_zeros().min(24);
    let net = u32::MAX.checked_shl(32 - length).unwrap_or(0) & low;
    Ok(format!("{}/{length}", Ipv4Addr::from(net)))
}

fn refuse_taken_ports(first: u16) -> Result<()> {
    for port in (first..first + 4).chain(first + 10..first + 14) {
        if let Err(error) = TcpListener::bind((HOST, port)) {
            bail!(
                "port {port} of {HOST} cannot be used ({error}): end what uses it, or choose others with --first-port"
            );
        }
    }
    Ok(())
}

/// Shows devices as they are found, until told to end.
fn watch(cluster: &Cluster, expected: u64, seconds: Option<u64>) -> Result<()> {
    let began = Instant::now();
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(expected) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} devices  {elapsed}  {msg}");
    bar.set_style(style.context("draw a bar")?);
    let mut said = (u64::MAX, Instant::now());
    while !interrupted() && seconds.is_none_or(|limit| began.elapsed() < Duration::from_secs(limit)) {
        // A node that is killed by hand, to see what happens, is no reason to end.
        if let Ok(status) = cluster.first_status() {
            let leader = status.leader.as_deref().unwrap_or("nobody");
            let upstream = &status.upstream;
            let message = format!(
                "{leader} leads, {} units, upstream {} ({} sent)",
                status.units, upstream.state, upstream.acked
            );
            bar.set_position(status.devices.min(expected));
            bar.set_message(message.clone());
            if !terminal
                && said.0 != status.devices
                && (said.0 == u64::MAX || said.1.elapsed() > LINE || status.devices == expected)
            {
                say(&format!("{} of {expected} devices; {message}", status.devices))?;
                said = (status.devices, Instant::now());
            }
        }
        std::thread::sleep(LOOK);
    }
    bar.abandon();
    Ok(())
}

fn say(line: &str) -> Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("print")
}
