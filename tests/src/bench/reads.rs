//! Reading the same objects of many devices: CPU seconds a read, beside a C program with net-snmp's library, the
//! sessions of the crate snmp2 and a Prometheus exporter. The peers ask for the very objects that Quire's usual repeated
//! read brings, by the devices' word: once by GET, as they would, and once by Quire's own GETBULK.

use super::peers::{self, Ask, Exporter};
use super::{Row, goal, grouped, number};
use crate::lab::{Far, Lab};
use crate::responder::Spec;
use anyhow::{Result, ensure};
use serde_json::Value;

const WHAT: &str = "read again";
/// Devices of the comparison, each read again [`ROUNDS`] times: as often as a plan serves, thorough reads included.
const DEVICES: u32 = 1_000;
const ROUNDS: u32 = 24;
/// Supplies that make the repeated read 25 objects.
const SUPPLIES: usize = 21;
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
    let usual = far.seen()?.usual;
    let (asks, brought) = ([Ask::get(&usual), Ask::same(&usual)], usual.brought);
    let on = format!("{} objects of {DEVICES} devices {ROUNDS} times, no delay", brought.len());
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
    let life = (first.micros + f64::from(ROUNDS) * ours.micros) / f64::from(ROUNDS + 1);
    rows.push(Row::new(
        "read, a plan's life",
        "quire, into readings",
        format!("{life:.1} CPU us a read"),
        &format!("the mean of one in full and {ROUNDS} repeated"),
    ));
    for ask in &asks {
        rows.extend(library(lab, &far, ask, &ours, &on)?);
        rows.push(sessions(lab, &far, ask, &ours, &on)?);
    }
    rows.push(exporter(lab, &far, &brought, &ours, &on)?);
    drop(far);
    rows.extend(over_a_bad_line(lab, &ours)?);
    rows.extend(memory(lab)?);
    Ok(rows)
}

/// The crate snmp2's own sessions.
fn sessions(lab: &Lab, far: &Far, ask: &Ask, ours: &Cost, on: &str) -> Result<Row> {
    let (once, repetitions) = ask.repeats.unwrap_or_default();
    let numbers = [("--objects", ask.objects as i64), ("--once", once), ("--repetitions", repetitions)];
    let numbers = numbers.iter().flat_map(|(name, value)| [(*name).to_owned(), value.to_string()]);
    let names = ask.names.iter().flat_map(|oid| ["--oid".to_owned(), oid.clone()]);
    let with = ["--with", "snmp2"].map(str::to_owned);
    let args: Vec<String> = rounds(ROUNDS).into_iter().chain(with).chain(numbers).chain(names).collect();
    let theirs = Cost::of(&peers::reader(lab, far, DEVICES, &args)?)?;
    let ratio = ours.micros / theirs.micros;
    let manner = format!("{on}, by {}, one after another", ask.word());
    Ok(Row::new(WHAT, "snmp2, a session a device", theirs.say(), &manner)
        .against(format!("{ratio:.2} times the CPU; {}", goal(ratio, false, 0.333, " times"))))
}

fn library(lab: &Lab, far: &Far, ask: &Ask, ours: &Cost, on: &str) -> Result<Vec<Row>> {
    let who = |how: &str| format!("net-snmp's library, {how}");
    let Some(program) = peers::libsnmp(lab)? else {
        return Ok(vec![Row::absent(WHAT, &who("C"), "not installed (libsnmp-dev, cc)")]);
    };
    let mut rows = Vec::new();
    for (how, manner) in [("sync", "one after another"), ("async", "all in flight")] {
        let theirs = Cost::of(&peers::libsnmp_reads(lab, &program, far, (how, DEVICES, ROUNDS), ask)?)?;
        let ratio = ours.micros / theirs.micros;
        let on = format!("{on}, by {}, {manner}", ask.word());
        rows.push((ratio, Row::new(WHAT, &who(how), theirs.say(), &on)));
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
    let each = |key: &str| Ok::<f64, anyhow::Error>(number(&report["repeat"], key)? / cost.reads);
    let (sent, again) = (each("packets_sent")?, each("repeated")?);
    let waited =
        format!("{} at most; {again:.3} repetitions a read in {sent:.2} packets sent", seen.in_flight_max);
    Ok(vec![
        Row::new("read again, bad line", "quire, into readings", cost.say(), on).against(format!(
            "{ratio:.2} times the CPU without delay; {}",
            goal(ratio, false, 1.3, " times")
        )),
        Row::new("1 in flight a device", "quire", waited, on),
    ])
}

/// Devices whose reads are outstanding at once, and how many of the first reads are.
const OUTSTANDING: (u32, u32) = (10_000, 100);

/// What an outstanding read takes, and what is kept between two. The first reads are made few at a time, so that they leave
/// nothing behind in the allocator that the repeated ones could use unseen.
fn memory(lab: &Lab) -> Result<Vec<Row>> {
    let (devices, few) = OUTSTANDING;
    let far = lab.respond(Spec { delay: 50, ..dense(devices, SUPPLIES) })?;
    let run = |first: u32| {
        let more = ["--first-flight".to_owned(), first.to_string()];
        peers::reader(lab, &far, devices, &[rounds(1), more.to_vec()].concat())
    };
    let size = |report: &Value, phase: &str, key: &str| {
        number(&report[phase], key).map(|kib| kib * 1024.0 / f64::from(devices))
    };
    let calm = run(few)?;
    let kept = size(&calm, "repeat", "memory_before")? - size(&calm, "first", "memory_before")?;
    let again = size(&calm, "repeat", "memory_peak")? - size(&calm, "repeat", "memory_before")?;
    let full = run(devices)?;
    let first = size(&full, "first", "memory_peak")? - size(&full, "first", "memory_before")? - kept;
    let on = format!("{devices} at a time, 25 objects each, 50 ms, peak memory");
    let row = |what: &str, value: f64, on: &str| {
        Row::new(what, "quire", format!("{} bytes", grouped(value)), on)
            .against(goal(value, false, 1024.0, " bytes"))
    };
    Ok(vec![
        row("memory a repeated read in flight", again, &on),
        row("memory a first read in flight", first, &format!("{on}; without what is kept")),
        Row::new(
            "memory between two reads",
            "quire",
            format!("{} bytes", grouped(kept)),
            "what is kept of a device for its next read: the plan, round trips; a node keeps 2,048 plans",
        ),
    ])
}
