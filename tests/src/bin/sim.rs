//! `quire-sim`, behind `make sim`: whole clusters under virtual time, seed after seed, until something does not hold.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use quire_tests::process::complain;
use quire_tests::sim::{Report, run};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Simulates clusters: real consensus and decisions, and everything that can break, from seeds.
#[derive(Debug, Parser)]
#[command(name = "quire-sim", version)]
struct Options {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// Minutes of faults in each, of the cluster's time.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Seeds at a time [default: as many as there are cores]
    #[arg(long)]
    jobs: Option<usize>,
    /// Prints what happened, line by line.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    match all(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("quire-sim: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn all(options: &Options) -> Result<()> {
    let (next, began) = (AtomicU64::new(options.from), Instant::now());
    let end = options.from.saturating_add(options.seeds);
    let (totals, bad) = (Mutex::new(BTreeMap::<&str, u64>::new()), Mutex::new(Vec::new()));
    let jobs = options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = run(seed, options.minutes * 60, options.trace);
                    let wrong = tell(&report, options);
                    if let (Some(wrong), Ok(mut bad)) = (wrong, bad.lock()) {
                        bad.push(wrong);
                    }
                    if let Ok(mut totals) = totals.lock() {
                        report
                            .counts
                            .iter()
                            .for_each(|(what, many)| *totals.entry(what).or_default() += many);
                    }
                }
            });
        }
    });
    let mut out = std::io::stdout();
    for (what, many) in totals.into_inner().unwrap_or_default() {
        writeln!(out, "{many:>12} {what}").context("print")?;
    }
    let took = began.elapsed().as_secs_f64();
    writeln!(out, "{} seeds of {} simulated minutes in {took:.0} s", options.seeds, options.minutes)
        .context("print")?;
    let bad = bad.into_inner().unwrap_or_default();
    ensure!(bad.is_empty(), "{} of {} seeds failed:\n{}", bad.len(), options.seeds, bad.join("\n"));
    Ok(())
}

/// Prints a seed's trace, and answers what was wrong with it.
fn tell(report: &Report, options: &Options) -> Option<String> {
    if options.trace {
        report.lines.iter().for_each(|line| complain(line));
    }
    let wrong = report.violation.clone().or_else(|| report.idle());
    let line = match &wrong {
        None => format!("seed {}: fine, trace {:016x}", report.seed, report.trace),
        Some(wrong) => format!("seed {}: {wrong}", report.seed),
    };
    complain(&line);
    wrong.map(|wrong| {
        format!(
            "seed {}: {wrong}\n  again: quire-sim --from {} --seeds 1 --minutes {} --trace",
            report.seed, report.seed, options.minutes
        )
    })
}
