//! Fail-over, as `quire-failover` measures it: every 10 ms, step by step.

use super::Row;
use super::measure::measure;
use crate::cluster::Programs;
use crate::lab::Line;
use anyhow::{Context, Result};
use std::time::Duration;

/// The steps, as `quire-failover` prints them.
const STEPS: [&str; 4] =
    ["a survivor leads", "its link is accepted", "no unit is the lost node's", "everything"];

/// Kills the leader so many times.
///
/// # Errors
/// When `quire-failover` fails.
pub fn rows(kills: usize) -> Result<Vec<Row>> {
    let program = Programs::find()?.path("quire-failover");
    let args = ["--how", "kill", "--runs", &kills.to_string()].map(str::to_owned);
    let patience = Duration::from_secs(120 + 60 * kills as u64);
    let said = measure(&Line { program, args: args.to_vec() }, patience)?.ok()?.stdout;
    let on = format!("{kills} kills of the leader of 3 nodes on this machine, looked at every 10 ms");
    STEPS.iter().map(|step| row(&said, step, &on)).collect()
}

fn row(said: &str, step: &str, on: &str) -> Result<Row> {
    let line = said.lines().find(|line| line.starts_with(step));
    let line = line.with_context(|| format!("quire-failover does not say `{step}`:\n{said}"))?;
    let numbers: Vec<&str> = line[step.len()..].split_whitespace().collect();
    let [least, half, _, most] = numbers[..] else { anyhow::bail!("quire-failover says `{line}`") };
    let value = format!("{half} s median, {least} least, {most} most");
    Ok(Row::new(&format!("fail-over: {step}"), "quire", value, on))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_failover_is_understood() {
        let said = "0: leader 0.1\nseconds from the fault min p50 p99 max\na survivor leads   0.301   0.402   0.503   0.604\n";
        let row = row(said, "a survivor leads", "here").unwrap();
        assert_eq!(row.value, "0.402 s median, 0.301 least, 0.604 most");
        assert!(super::row(said, "everything", "here").is_err());
    }
}
