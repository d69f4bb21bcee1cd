//! What `quire-bench` measures: the real programs from outside, beside peers from the distribution's packages, in the
//! same [`crate::lab`] against the same simulated devices. Each row says what it was measured on; a peer that is not
//! installed has a row that says so.

pub mod bytes;
pub mod failover;
pub mod gentle;
pub mod growth;
pub mod measure;
pub mod memory;
pub mod peers;
pub mod reads;
pub mod scale;
pub mod store;
pub mod sweep;

use crate::cluster::Programs;
use crate::lab::{Far, Lab};
use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use measure::{Cost, measure};
use serde_json::Value;
use std::io::Write;
use std::time::Duration;

/// For one program that is measured.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// One line of the table.
#[derive(Debug, Clone, Default)]
pub struct Row {
    /// What is measured.
    pub what: String,
    /// Which program.
    pub who: String,
    /// What came out.
    pub value: String,
    /// How Quire compares, and what it is meant to reach.
    pub ratio: String,
    /// What it was measured on.
    pub on: String,
}

impl Row {
    /// A row without a comparison.
    #[must_use]
    pub fn new(what: &str, who: &str, value: String, on: &str) -> Row {
        let [what, who, on] = [what, who, on].map(str::to_owned);
        Row { what, who, value, ratio: String::new(), on }
    }

    /// The row of a peer that is not there.
    #[must_use]
    pub fn absent(what: &str, who: &str, why: &str) -> Row {
        Row::new(what, who, why.to_owned(), "")
    }

    /// With a comparison.
    #[must_use]
    pub fn against(mut self, ratio: String) -> Row {
        self.ratio = ratio;
        self
    }
}

/// Prints all rows as one table.
///
/// # Errors
/// When stdout is closed.
pub fn show(rows: &[Row]) -> Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["what", "who", "value", "quire beside it", "measured on"]);
    for row in rows {
        table.add_row([&row.what, &row.who, &row.value, &row.ratio, &row.on]);
    }
    let mut out = std::io::stdout();
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end()).context("print")?;
    }
    out.flush().context("print")
}

/// `quire discover` at the near end: what it took, and its summary.
///
/// # Errors
/// When it fails, or writes no summary.
pub fn discover(lab: &Lab, far: &Far, target: &str, more: &[&str]) -> Result<(Cost, Value)> {
    let file = lab.scratch("summary.json");
    let (port, summary) = (far.spec.port.to_string(), file.display().to_string());
    let plain = ["discover", target, "--port", &port, "--format", "json", "--summary", &summary];
    let line = lab.near(&Programs::find()?.path("quire"), &[&plain, more].concat());
    let cost = measure(&line, PATIENCE)?.ok()?;
    let text = std::fs::read(&file).context("read the summary")?;
    Ok((cost, serde_json::from_slice(&text).context("read the summary")?))
}

/// A number of a JSON object.
///
/// # Errors
/// When it is not there.
pub fn number(of: &Value, key: &str) -> Result<f64> {
    of[key].as_f64().with_context(|| format!("there is no number {key}: {of}"))
}

/// The middle one.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// 12345.6 as `12,346`.
#[must_use]
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) && !out.ends_with('-') {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A goal of "at least" or "at most", and whether it was met.
#[must_use]
pub fn goal(value: f64, least: bool, bound: f64, unit: &str) -> String {
    let met = if least { value >= bound } else { value <= bound };
    let word = if least { "at least" } else { "at most" };
    format!("goal {word} {bound}{unit}: {}", if met { "met" } else { "MISSED" })
}

/// What the numbers stand for.
#[must_use]
pub fn machine(lab: &Lab, load_before: &str) -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let build = if cfg!(debug_assertions) { ", DEBUG BUILD: not comparable" } else { "" };
    let place = if lab.is_apart() { "in network namespaces" } else { "on loopback" };
    format!(
        "{place}, {cores} cores of {}, load {load_before} before and {} after (this run itself included){build}; delay and \
         loss are made by the responder, seeded, loss each way",
        model.map_or("an unknown processor", |(_, name)| name),
        load()
    )
}

/// The load average of the last minute.
#[must_use]
pub fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    load.split(' ').next().unwrap_or("?").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let cases = [(0.4, "0"), (999.0, "999"), (1000.0, "1,000"), (1_234_567.0, "1,234,567")];
        for (value, text) in cases {
            assert_eq!(grouped(value), text);
        }
    }

    #[test]
    fn a_goal_says_whether_it_was_met() {
        assert_eq!(goal(3.1, true, 3.0, " times"), "goal at least 3 times: met");
        assert_eq!(goal(0.9, false, 0.75, " times"), "goal at most 0.75 times: MISSED");
        assert!(goal(f64::NAN, true, 1.0, "").ends_with("MISSED"), "what was not measured is not met");
    }
}
