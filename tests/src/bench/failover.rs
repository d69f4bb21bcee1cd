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

/// Seconds within which it should be.
#[derive(Debug, Clone, Copy)]
enum Goal {
    /// Half of the runs, and 99 of 100.
    Mostly(f64, f64),
    /// 99 of 100.
    Nearly(f64),
    /// All.
    Always(f64),
}

impl Goal {
    fn judge(self, half: f64, most: f64, worst: f64) -> String {
        let (goal, met) = match self {
            Goal::Mostly(halves, of) => {
                (format!("half within {halves} s, 99 of 100 within {of} s"), half <= halves && most <= of)
            }
            Goal::Nearly(of) => (format!("99 of 100 within {of} s"), most <= of),
            Goal::Always(all) => (format!("never more than {all} s"), worst <= all),
        };
        format!("goal {goal}: {}", if met { "met" } else { "MISSED" })
    }
}

/// Until everything works again after a kill; after the leader fell silent.
const KILLED: Goal = Goal::Mostly(0.5, 1.0);
const SILENT: Goal = Goal::Nearly(2.5);
/// Of a rolling upgrade: a unit without an owner, and how late a reading is.
const UNOWNED: Goal = Goal::Always(1.0);
const LATE: Goal = Goal::Always(2.0);

fn at_least_one() -> clap::builder::RangedU64ValueParser<usize> {
    clap::builder::RangedU64ValueParser::new().range(1..)
}

/// How much is measured.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Amounts {
    /// How often the leader is killed.
    #[arg(long, default_value_t = 20, value_parser = at_least_one())]
    pub kills: usize,
    /// How often it falls silent, is cut off, another node is killed, and how often the cluster is upgraded.
    #[arg(long, default_value_t = 5, value_parser = at_least_one())]
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
    let said = failover("kill", kills, 0, &[])?;
    let on = format!("{kills} kills of the leader of 3 nodes on this machine, looked at every 10 ms");
    let mut rows: Vec<Row> = STEPS
        .iter()
        .map(|step| row(&said, "killed", step, &on, of_all(step, KILLED)))
        .collect::<Result<_>>()?;
    let mut silences = vec![("silence", "silent (SIGSTOP)")];
    let root = nix::unistd::geteuid().is_root();
    if root {
        silences.push(("partition", "silent (cut off)"));
    } else {
        rows.push(Row::absent("leader silent (cut off), rolling upgrade", "quire", "needs root"));
    }
    for (how, name) in silences {
        let said = failover(how, faults, 0, &[])?;
        let on = format!("{faults} times, 3 nodes on this machine");
        for step in STEPS {
            rows.push(row(&said, name, step, &on, of_all(step, SILENT))?);
        }
    }
    let said = failover("other", faults, 0, &[])?;
    let on = format!("{faults} kills of a node that does not lead");
    let mut owned = row(&said, "another killed", STEPS[3], &on, None)?;
    let moved = said.lines().find_map(|line| line.strip_suffix(" units of others moved"));
    owned.value += &format!("; {} units of others moved", moved.context("quire-failover counts no moves")?);
    rows.push(owned);
    if root {
        let said = failover("upgrade", faults, 0, &[])?;
        let on = format!("3 nodes, 128 devices every 10 s, each node restarted {faults} times in turn");
        for (step, goal) in [("units without an owner", UNOWNED), ("a reading is late", LATE)] {
            rows.push(row(&said, "rolling upgrade", step, &on, Some(goal))?);
        }
    }
    rows.push(elections(election_minutes)?);
    Ok(rows)
}

/// Elections that nobody asked for, while every core and the disk are busy.
fn elections(minutes: u64) -> Result<Row> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (seconds, burners) = ((minutes * 60).to_string(), (2 * cores).to_string());
    let load = ["--seconds", &seconds, "--burners", &burners, "--writers", "2"];
    let said = failover("nothing", 1, minutes * 60, &load)?;
    let value =
        said.lines().find(|line| line.contains("elections in")).context("quire-failover counts none")?;
    let on =
        format!("3 nodes, {burners} processes that burn a core, 2 that write 16 MB and sync, over and over");
    Ok(Row::new("elections under load", "quire", value.to_owned(), &on))
}

/// `seconds`: how long elections are counted.
fn failover(how: &str, runs: usize, seconds: u64, more: &[&str]) -> Result<String> {
    let program = Programs::find()?.path("quire-failover");
    let runs_text = runs.to_string();
    let args = [&["--how", how, "--runs", &runs_text][..], more].concat();
    let args = args.into_iter().map(str::to_owned).collect();
    // An upgrade starts three nodes each time.
    let patience = Duration::from_secs(300 + 120 * runs as u64 + seconds);
    Ok(measure(&Line { program, args }, patience)?.ok()?.stdout)
}

/// Only all of it together has the goal.
fn of_all(step: &str, goal: Goal) -> Option<Goal> {
    (step == "everything").then_some(goal)
}

fn row(said: &str, what: &str, step: &str, on: &str, goal: Option<Goal>) -> Result<Row> {
    let line = said.lines().find(|line| line.starts_with(step));
    let line = line.with_context(|| format!("quire-failover does not say `{step}`:\n{said}"))?;
    let numbers: Vec<f64> =
        line[step.len()..].split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [least, half, most, worst] = numbers[..] else { anyhow::bail!("quire-failover says `{line}`") };
    let value = format!("{half:.3} s median, {least:.3} least, {most:.3} for 99 of 100, {worst:.3} most");
    let row = Row::new(&format!("{what}: {step}"), "quire", value, on);
    Ok(match goal {
        Some(goal) => row.against(goal.judge(half, most, worst)),
        None => row,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_failover_is_understood() {
        let said = "0: leader 0.1\nseconds from the fault min p50 p99 max\na survivor leads   0.301   0.402   0.503   0.604\n\
                    everything 0.301 0.402 1.503 1.604\n";
        let row = |step, goal| super::row(said, "killed", step, "here", of_all(step, goal));
        let leads = row("a survivor leads", KILLED).unwrap();
        assert_eq!(leads.value, "0.402 s median, 0.301 least, 0.503 for 99 of 100, 0.604 most");
        assert!(leads.ratio.is_empty(), "the goal is that of everything");
        let ratio = |goal| row("everything", goal).unwrap().ratio;
        assert!(ratio(KILLED).ends_with("MISSED") && ratio(SILENT).ends_with("within 2.5 s: met"));
        assert!(ratio(LATE).ends_with("2 s: met") && ratio(UNOWNED).ends_with("1 s: MISSED"));
        assert!(row("its link is accepted", KILLED).is_err());
    }
}
