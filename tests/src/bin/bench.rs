//! `quire-bench`, behind `make bench`: what the programs do, measured from outside on simulated devices beside peers of
//! the distribution, in one table. Numbers of a debug build or a busy machine are marked so.

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use quire_tests::bench::{
    Row, bytes, failover, gentle, growth, load, machine, memory, reads, scale, show, store, sweep,
};
use quire_tests::lab::Lab;
use quire_tests::process::complain;
use std::io::Write;
use std::process::ExitCode;

/// A part of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// A /16, beside zmap, onesixtyone and masscan.
    Sweep,
    /// Reads, beside net-snmp's library, snmp2 and the Prometheus exporter.
    Reads,
    /// Octets a device.
    Bytes,
    /// Of probes in flight.
    Memory,
    /// Of a node that knows very many devices.
    Known,
    /// Packets a second, questions at once.
    Gentleness,
    /// 1, 10 and 100 thousand.
    Growth,
    /// Nodes are killed, silent, cut off, upgraded; elections under load.
    Failover,
    /// Planner and state machine with 100 nodes, 100,000 segments, a million devices; takes some gigabytes.
    Scale,
    /// A million devices in a node's own store, and three replicas; takes gigabytes of disk in $TMPDIR.
    Store,
}

/// Measures with the real programs.
#[derive(Debug, Parser)]
#[command(name = "quire-bench", version)]
struct Options {
    /// Parts to measure; repeatable [default: all]
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Runs of each sweep, of which the middle counts.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Devices that a node gets to know.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1_000..=130_000))]
    devices: u32,
    #[command(flatten)]
    failover: failover::Amounts,
    /// Devices in a node's store.
    #[arg(long, default_value_t = store::MANY, value_parser = clap::value_parser!(u32).range(1_000..=2_000_000))]
    stored: u32,
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("quire-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<()> {
    let load_before = load();
    let lab = Lab::start()?;
    let mut rows: Vec<Row> = Vec::new();
    let mut failed = Vec::new();
    for part in Part::value_variants() {
        if !options.part.is_empty() && !options.part.contains(part) {
            continue;
        }
        complain(&format!("measuring: {part:?}"));
        // One part that fails must not take the others' numbers with it.
        match measure(*part, options, &lab) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                complain(&format!("{part:?} failed: {error:#}"));
                failed.push(format!("{part:?}"));
            }
        }
    }
    show(&rows)?;
    writeln!(std::io::stdout(), "\n{}", machine(&lab, &load_before)).context("print")?;
    anyhow::ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

fn measure(part: Part, options: &Options, lab: &Lab) -> Result<Vec<Row>> {
    match part {
        Part::Sweep => sweep::rows(lab, options.runs.max(1)),
        Part::Reads => reads::rows(lab),
        Part::Bytes => bytes::rows(lab),
        Part::Memory => memory::probes(lab).map(|row| vec![row]),
        Part::Known => memory::known(options.devices),
        Part::Gentleness => gentle::rows(lab),
        Part::Growth => growth::rows(lab),
        Part::Failover => failover::rows(&options.failover),
        Part::Scale => scale::rows(scale::LARGE),
        Part::Store => store::rows(options.stored, options.stored.min(store::REPLICATED)),
    }
}
