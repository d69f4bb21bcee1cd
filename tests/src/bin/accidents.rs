//! `quire-accidents`, behind `make accidents`: a cluster of real processes in network namespaces, broken by a seeded
//! schedule for as long as it is told, and what must hold of it.

use anyhow::{Context, Result, bail};
use clap::Parser;
use quire_tests::accidents::{Options, run};
use quire_tests::process::complain;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

/// Breaks a real cluster on purpose: kill -9, SIGSTOP, partitions, loss and delay, clocks, disks. Needs root.
#[derive(Debug, Parser)]
#[command(name = "quire-accidents", version)]
struct Arguments {
    /// Decides what happens when, and which frames are lost.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of accidents go on for so long; a round takes about a minute and a half and is never cut short.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// Nodes of the cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(3..=5))]
    nodes: u8,
}

fn main() -> ExitCode {
    match accidents(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("quire-accidents: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn accidents(arguments: &Arguments) -> Result<()> {
    let Arguments { seed, minutes, nodes } = *arguments;
    let options = Options { seed, lasts: Duration::from_secs(minutes * 60), nodes: nodes.into() };
    let Some(report) = run(&options)? else { bail!("network namespaces are needed: run it as root") };
    let mut out = std::io::stdout();
    for (what, many) in &report.counts {
        writeln!(out, "{many:>12} {what}").context("print")?;
    }
    match report.idle() {
        None => writeln!(out, "seed {seed}: everything held").context("print"),
        Some(idle) => bail!("seed {seed}: {idle}"),
    }
}
