//! Fail-over, as `quire-failover` measures it: every 10 ms, step by step.

use super::Row;
use super::measure::measure;
use crate::cluster::Programs;
use crate::lab::Line;
use anyhow::{Context, Result};
use std::time::Duration;

/// The steps, as `quire-failover` prints them.
const STEPS: [&str; 5] = [
    "a survivor leads",
    "its claim is committed",
    "its link is accepted",
    "no unit is the lost node's",
    "everything",
];
/// Seconds until everything works again after a kill: half of the runs, and 99 of 100.
const KILLED: (f64, f64) = (0.5, 1.0);
/// The same for a leader that says nothing more; only the 99 have a goal.
const SILENT: f64 = 2.5;

/// How much is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Amounts {
    /// How often the leader is killed.
    #[arg(long, default_value_t = 20)]
    pub kills: usize,
    /// How often it falls silent, is cut off, another node is killed, and how often the cluster is upgraded.
    #[arg(long, default_value_t = 5)]
    pub faults: usize,
    /// Minutes for which elections under load are counted.
    #[arg(long, default_value_t = 3)]
    pub election_minutes: u64,
}

/// Kills, silences, cuts, upgrades and load.
///
/// # Errors
/// When `quire-failover` fails.
pub fn rows(amounts: &Amounts) -> Result<Vec<Row>> {
    let Amounts { kills, faults, election_minutes } = *amounts;
    let said = failover("kill", kills, &[])?;
    let on = format!("{kills} kills of the leader of 3 nodes on this machine, looked at every 10 ms");
    let mut rows: Vec<Row> =
        STEPS.iter().map(|step| row(&said, "killed", step, &on, Some(KILLED))).collect::<Result<_>>()?;
    let mut silences = vec![("silence", "silent (SIGSTOP)")];
    let root = nix::unistd::geteuid().is_root();
    if root {
        silences.push(("partition", "silent (cut off)"));
    } else {
        rows.push(Row::absent("leader silent (cut off), rolling upgrade", "quire", "needs root"));
    }
    for (how, name) in silences {
        let said = failover(how, faults, &[])?;
        let on = format!("{faults} times, 3 nodes on this machine");
        let goal = Some((f64::INFINITY, SILENT));
        for step in STEPS {
            rows.push(row(&said, name, step, &on, goal)?);
        }
    }
    let said = failover("other", faults, &[])?;
    let on = format!("{faults} kills of a node that does not lead");
    let mut owned = row(&said, "another killed", STEPS[3], &on, None)?;
    let moved = said.lines().find_map(|line| line.strip_suffix(" units of others moved"));
    owned.value += &format!("; {} units of others moved", moved.context("quire-failover counts no moves")?);
    rows.push(owned);
    if root {
        let said = failover("upgrade", faults, &[])?;
        let on = format!("3 nodes, 128 devices every 10 s, each node restarted {faults} times in turn");
        for step in ["units without an owner", "a reading is late"] {
            rows.push(row(&said, "rolling upgrade", step, &on, None)?);
        }
    }
    rows.push(elections(election_minutes)?);
    Ok(rows)
}

/// Elections that nobody asked for, while every core and the disk are busy.
fn elections(minutes: u64) -> Result<Row> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (seconds, burners) = ((minutes * 60).to_string(), (2 * cores).to_string());
    let said = failover("nothing", 1, &["--seconds", &seconds, "--burners", &burners, "--writers", "2"])?;
    let value =
        said.lines().find(|line| line.contains("elections in")).context("quire-failover counts none")?;
    let on =
        format!("3 nodes, {burners} processes that burn a core, 2 that write 16 MB and sync, over and over");
    Ok(Row::new("elections under load", "quire", value.to_owned(), &on))
}

fn failover(how: &str, runs: usize, more: &[&str]) -> Result<String> {
    let program = Programs::find()?.path("quire-failover");
    let runs_text = runs.to_string();
    let args = [&["--how", how, "--runs", &runs_text][..], more].concat();
    let args = args.into_iter().map(str::to_owned).collect();
    // An upgrade starts three nodes each time; elections are counted for as long as was told.
    let seconds = more.iter().filter_map(|word| word.parse::<u64>().ok()).max().unwrap_or(0);
    let patience = Duration::from_secs(300 + 120 * runs as u64 + seconds);
    Ok(measure(&Line { program, args }, patience)?.ok()?.stdout)
}

/// `goal`: seconds for half of the runs, and for 99 of 100.
fn row(said: &str, what: &str, step: &str, on: &str, goal: Option<(f64, f64)>) -> Result<Row> {
    let line = said.lines().find(|line| line.starts_with(step));
    let line = line.with_context(|| format!("quire-failover does not say `{step}`:\n{said}"))?;
    let numbers: Vec<f64> =
        line[step.len()..].split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [least, half, most, worst] = numbers[..] else { anyhow::bail!("quire-failover says `{line}`") };
    let value = format!("{half:.3} s median, {least:.3} least, {most:.3} for 99 of 100, {worst:.3} most");
    let row = Row::new(&format!("{what}: {step}"), "quire", value, on);
    Ok(match goal {
        Some((halves, most_of)) if step == "everything" => {
            let met = if half <= halves && most <= most_of { "met" } else { "MISSED" };
            let halves = if halves.is_finite() { format!("half within {halves} s, ") } else { String::new() };
            row.against(format!("goal {halves}99 of 100 within {most_of} s: {met}"))
        }
        _ => row,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_failover_is_understood() {
        let said = "0: leader 0.1\nseconds from the fault min p50 p99 max\na survivor leads   0.301   0.402   0.503   0.604\n\
                    everything 0.301 0.402 1.503 1.604\n";
        let row = |step, goal| super::row(said, "killed", step, "here", goal);
        let leads = row("a survivor leads", Some(KILLED)).unwrap();
        assert_eq!(leads.value, "0.402 s median, 0.301 least, 0.503 for 99 of 100, 0.604 most");
        assert!(leads.ratio.is_empty(), "the goal is that of everything");
        assert!(row("everything", Some(KILLED)).unwrap().ratio.ends_with("MISSED"));
        assert!(
            row("everything", Some((f64::INFINITY, SILENT))).unwrap().ratio.ends_with("within 2.5 s: met")
        );
        assert!(row("its link is accepted", None).is_err());
    }
}
