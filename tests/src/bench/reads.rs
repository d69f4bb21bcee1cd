//! Reading the same objects of many devices: CPU seconds a read, beside a C program with net-snmp's library, the
//! sessions of the crate snmp2 and a Prometheus exporter. What is asked is what Quire's own repeated read asks, by the
//! devices' word.

use super::peers::{self, Exporter};
use super::{Row, goal, grouped, number};
use crate::lab::{Far, Lab};
use crate::responder::Spec;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

const WHAT: &str = "read again";
/// Devices of the comparison, each read [`ROUNDS`] times.
const DEVICES: u32 = 1_000;
const ROUNDS: u32 = 20;
/// Supplies that make the repeated read about 25 objects.
const SUPPLIES: usize = 14;
/// In flight at once, over a bad line.
const FLIGHT: u32 = 50_000;

/// A network of devices of one kind, one on each address.
#[must_use]
pub fn dense(devices: u32, supplies: usize) -> Spec {
    Spec { every: 1, devices, supplies, ..super::sweep::sparse(1 << 17, 0, 0) }
}

/// What one engine took for its reads.
#[derive(Debug, Clone)]
pub struct Cost {
    /// Microseconds of CPU a read.
    pub micros: f64,
    /// Reads that brought everything.
    pub reads: f64,
    /// Reads that did not.
    pub failed: f64,
    /// Wall time.
    pub seconds: f64,
}

impl Cost {
    /// Of a reader's report.
    ///
    /// # Errors
    /// When a number is missing.
    pub fn of(report: &Value) -> Result<Cost> {
        let reads = number(report, "reads")?;
        Ok(Cost {
            micros: number(report, "cpu")? / reads * 1e6,
            reads,
            failed: number(report, "failed")?,
            seconds: number(report, "seconds")?,
        })
    }

    /// For the table.
    #[must_use]
    pub fn say(&self) -> String {
        let failed = if self.failed > 0.0 { format!(", {:.0} failed", self.failed) } else { String::new() };
        format!(
            "{:.1} CPU us a read ({} a core second), {} reads/s{failed}",
            self.micros,
            grouped(1e6 / self.micros),
            grouped(self.reads / self.seconds)
        )
    }
}

fn rounds(rounds: u32) -> Vec<String> {
    vec!["--rounds".to_owned(), rounds.to_string()]
}

/// Quire's first and repeated reads of all devices at once.
///
/// # Errors
/// When nothing was read.
pub fn quire(lab: &Lab, far: &Far, devices: u32, again: u32) -> Result<Value> {
    let report = peers::reader(lab, far, devices, &rounds(again))?;
    for phase in ["first", "repeat"] {
        ensure!(number(&report[phase], "reads")? > 0.0, "{phase}: nothing was read: {report}");
    }
    Ok(report)
}

/// The comparison, and the same over a bad line.
///
/// # Errors
/// When Quire fails, or a peer that is there.
pub fn rows(lab: &Lab) -> Result<Vec<Row>> {
    let far = lab.respond(dense(DEVICES, SUPPLIES))?;
    let report = quire(lab, &far, DEVICES, ROUNDS)?;
    let ours = Cost::of(&report["repeat"])?;
    let oids = far.seen()?.widest;
    let on = format!("{} objects of {DEVICES} devices {ROUNDS} times, no delay", oids.len());
    let core = goal(1e6 / ours.micros, true, 60_000.0, " a core second");
    let first = Cost::of(&report["first"])?;
    let mut rows = vec![
        Row::new(WHAT, "quire, into readings", ours.say(), &format!("{on}, all in flight")).against(core),
        Row::new(
            "first read",
            "quire, into readings",
            first.say(),
            &format!("{DEVICES} devices, no delay, all in flight"),
        ),
    ];
    rows.extend(library(lab, &far, &oids, &ours, &on)?);
    let more = |oid: &String| ["--oid".to_owned(), oid.clone()];
    let mut args = [rounds(ROUNDS), vec!["--with".to_owned(), "snmp2".to_owned()]].concat();
    args.extend(oids.iter().flat_map(more));
    let theirs = Cost::of(&peers::reader(lab, &far, DEVICES, &args)?)?;
    let ratio = ours.micros / theirs.micros;
    rows.push(
        Row::new(WHAT, "snmp2, a session a device", theirs.say(), &format!("{on}, one after another"))
            .against(format!("{ratio:.2} times the CPU; {}", goal(ratio, false, 0.333, " times"))),
    );
    rows.push(exporter(lab, &far, &oids, &ours, &on)?);
    drop(far);
    rows.extend(over_a_bad_line(lab, &ours)?);
    Ok(rows)
}

fn library(lab: &Lab, far: &Far, oids: &[String], ours: &Cost, on: &str) -> Result<Vec<Row>> {
    let who = |how: &str| format!("net-snmp's library, {how}");
    let Some(program) = peers::libsnmp(lab)? else {
        return Ok(vec![Row::absent(WHAT, &who("C"), "not installed (libsnmp-dev, cc)")]);
    };
    let mut rows = Vec::new();
    for (how, manner) in [("sync", "one after another"), ("async", "all in flight")] {
        let theirs = Cost::of(&peers::libsnmp_reads(lab, &program, far, (how, DEVICES, ROUNDS), oids)?)?;
        let ratio = ours.micros / theirs.micros;
        rows.push((ratio, Row::new(WHAT, &who(how), theirs.say(), &format!("{on}, {manner}"))));
    }
    // The goal is against the cheaper of the two ways.
    let cheaper = rows.iter().map(|(ratio, _)| *ratio).fold(0.0, f64::max);
    let said = |(ratio, row): (f64, Row)| {
        let goal =
            if ratio == cheaper { format!("; {}", goal(ratio, false, 0.5, " times")) } else { String::new() };
        row.against(format!("{ratio:.2} times the CPU{goal}"))
    };
    Ok(rows.into_iter().map(said).collect())
}

fn exporter(lab: &Lab, far: &Far, oids: &[String], ours: &Cost, on: &str) -> Result<Row> {
    let who = "prometheus-snmp-exporter";
    let Some(exporter) = Exporter::start(lab, oids)? else {
        return Ok(Row::absent(WHAT, who, "not installed"));
    };
    let (cpu, reads) = exporter.read(lab, far, DEVICES, "bench")?;
    let micros = cpu / reads * 1e6;
    let row = Row::new(
        WHAT,
        who,
        format!("{micros:.0} CPU us a read"),
        &format!("{on}, once, 4 scrapes at a time"),
    );
    Ok(row.against(format!("{:.3} times the CPU", ours.micros / micros)))
}

/// 200 ms, 5 % loss each way, devices that give 25 answers a second, 50,000 reads in flight from one process.
fn over_a_bad_line(lab: &Lab, near: &Cost) -> Result<Vec<Row>> {
    let far = lab.respond(Spec { delay: 200, loss: 50, answers: 25, ..dense(FLIGHT, SUPPLIES) })?;
    let report = quire(lab, &far, FLIGHT, 3)?;
    let cost = Cost::of(&report["repeat"])?;
    let ratio = cost.micros / near.micros;
    let on = "200 ms, 5 % loss each way, 25 answers/s a device, 50,000 reads in flight, 3 times";
    let seen = far.seen()?;
    ensure!(seen.sets == 0, "a device was sent a SET: {seen:?}");
    let phase = |name: &str, key: &str| number(&report[name], key).context("a reader's report");
    let size =
        (phase("repeat", "memory_peak")? - phase("repeat", "memory_before")?) / f64::from(FLIGHT) * 1024.0;
    let first =
        (phase("first", "memory_peak")? - phase("first", "memory_before")?) / f64::from(FLIGHT) * 1024.0;
    Ok(vec![
        Row::new("read again, bad line", "quire, into readings", cost.say(), on).against(format!(
            "{ratio:.2} times the CPU without delay; {}",
            goal(ratio, false, 1.3, " times")
        )),
        Row::new("1 in flight a device", "quire", format!("{} at most", seen.in_flight_max), on),
        Row::new(
            "memory a read in flight",
            "quire",
            format!("{} bytes", grouped(first)),
            "peak of 50,000 first reads at a time; what is kept for the next read is in it",
        )
        .against(goal(first, false, 1024.0, " bytes")),
        Row::new(
            "memory a repeated read",
            "quire",
            format!("{} bytes more", grouped(size)),
            "beyond what the first reads had taken, and had freed before",
        ),
    ])
}
