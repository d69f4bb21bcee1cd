//! Whole clusters of real processes in network namespaces, broken on purpose by a seeded schedule, and what must hold
//! of them. What the simulation ([`crate::sim`]) cannot run is run here: kernels, RocksDB, TLS, gRPC, the real Web Admin.
//!
//! A seed repeats the schedule and the switch's losses, not the scheduling of the machine: a run is never the same twice.
//!
//! API: [`run`] with [`Options`] gives a [`Report`]; [`upgrade::run`] for an upgrade under load.

pub mod checks;
pub mod history;
pub mod schedule;
pub mod site;
pub mod switch;
pub mod upgrade;
pub mod wires;

use crate::process::complain;
use anyhow::{Context, Result, ensure};
use history::{History, Recorder};
use site::{Lasting, Site};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How much is broken.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Of the schedule, and of the switch's losses.
    pub seed: u64,
    /// Rounds go on until so much time has passed; at least one.
    pub lasts: Duration,
    /// Nodes of the cluster.
    pub nodes: usize,
}

/// What was seen of a run that went well.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How often what was seen or done.
    pub counts: BTreeMap<String, u64>,
    /// Kinds of accidents that this machine cannot have.
    pub left_out: Vec<&'static str>,
}

impl Report {
    /// Why so little happened that the run proves nothing.
    #[must_use]
    pub fn idle(&self) -> Option<String> {
        let least = [
            ("claims", 4),
            ("grants", 12),
            ("looks at nodes", 300),
            ("links accepted", 3),
            ("readings upstream", 400),
            ("readings that nodes showed", 800),
            ("tables compared", 4),
            ("packets to devices", 2_000),
            ("frames refused by a cut", 50),
            ("frames lost", 10),
            ("frames delayed", 100),
        ];
        let kinds = schedule::kinds().into_iter().filter(|kind| !self.left_out.contains(kind));
        let wanted = least.into_iter().chain(kinds.map(|kind| (kind, 1)));
        let few = wanted.filter(|(what, least)| self.counts.get(*what).is_none_or(|count| count < least));
        let few: Vec<String> = few
            .map(|(what, least)| {
                format!("{what}: {}, not {least}", self.counts.get(what).copied().unwrap_or(0))
            })
            .collect();
        (!few.is_empty()).then(|| format!("not run: {}", few.join("; ")))
    }
}

/// Breaks a cluster until the time is over, and checks what was seen. `None`, with one line, where network namespaces
/// cannot be had.
///
/// # Errors
/// What did not hold; the history is in a file that the error names.
pub fn run(options: &Options) -> Result<Option<Report>> {
    ensure!(options.nodes >= 3, "fewer than three nodes have no majority to lose");
    let Some(mut site) = Site::start(options.nodes, options.seed)? else { return Ok(None) };
    let began = site.wires.switch()?.began();
    let recorder = Recorder::start(began, &site.directories()?);
    let mut report = Report { left_out: site.left_out(), ..Report::default() };
    let mut history = History { rate: u64::from(site::RATE), ..History::default() };
    let run = broken(&mut site, &recorder, options, &mut report, &mut history);
    // Before the last look at the Web Admin: what was seen by then has to be there.
    history.events = recorder.end();
    let run = run.and_then(|()| look_back(&mut site, &mut history));
    let checked = run.and_then(|()| checks::all(&history));
    match checked {
        Ok(counts) => report.counts.extend(counts.into_iter().map(|(what, many)| (what.to_owned(), many))),
        Err(error) => {
            let file = std::env::temp_dir().join(format!("quire-accidents-{}.history", options.seed));
            history::write(&history.events, &file)?;
            return Err(error.context(format!("seed {}; the history is {}", options.seed, file.display())));
        }
    }
    count_frames(&site, &history, &mut report)?;
    site.cluster.finish()?;
    Ok(Some(report))
}

/// Rounds of accidents, each of which ends with everything in order.
fn broken(
    site: &mut Site,
    recorder: &Recorder,
    options: &Options,
    report: &mut Report,
    history: &mut History,
) -> Result<()> {
    let began = site.wires.switch()?.began();
    let excluded = site.exclude()?;
    history.excluded = Some((began.elapsed(), excluded));
    let (start, mut round) = (Instant::now(), 0);
    loop {
        // A sweep is under way while things break.
        site.cluster.any(&["sweep"])?.ok()?;
        one_round(site, recorder, options, round, report).with_context(|| format!("round {round}"))?;
        let healed = Instant::now();
        site.converge().with_context(|| format!("after round {round}"))?;
        complain(&format!(
            "round {round}: in order {:.1} s after the last accident, {:.0} s in all",
            healed.elapsed().as_secs_f64(),
            start.elapsed().as_secs_f64()
        ));
        round += 1;
        if start.elapsed() >= options.lasts {
            return Ok(());
        }
    }
}

fn one_round(
    site: &mut Site,
    recorder: &Recorder,
    options: &Options,
    round: u64,
    report: &mut Report,
) -> Result<()> {
    let start = Instant::now();
    let mut planned = schedule::deal(options.seed, round, options.nodes).into_iter().peekable();
    let mut lasting: Vec<Lasting> = Vec::new();
    while planned.peek().is_some() || !lasting.is_empty() {
        let now = start.elapsed();
        while let Some(next) = planned.next_if(|next| next.at <= now) {
            if let Some(began) = site.begin(&next, recorder).with_context(|| format!("{next:?}"))? {
                *report.counts.entry(next.what.kind().to_owned()).or_default() += 1;
                lasting.push(began);
            }
        }
        let (over, still) = lasting.into_iter().partition::<Vec<_>, _>(|accident| accident.until <= now);
        lasting = still;
        for accident in over {
            site.end(&accident, recorder).with_context(|| format!("the end of {accident:?}"))?;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Kills all nodes at once and looks at what they left, and at what others saw of them.
fn look_back(site: &mut Site, history: &mut History) -> Result<()> {
    history.devices = site.devices_saw()?;
    site.all_upstream()?;
    for name in site.nodes.clone() {
        site.cluster.kill(&name)?;
    }
    for name in site.nodes.clone() {
        site.look_at(&name)?;
    }
    history.left = std::mem::take(&mut site.left).into();
    history.upstream = history::stored(&site.cluster.admin_list("readings")?);
    let log = std::fs::read_to_string(site.cluster.log_of("admin")).context("read the Web Admin's log")?;
    (history.links, history.repeated) = history::links(&log);
    let switch = site.wires.switch()?;
    (history.asked, history.answered) = (switch.asked(), switch.answered());
    Ok(())
}

fn count_frames(site: &Site, history: &History, report: &mut Report) -> Result<()> {
    let counts = site.wires.switch()?.counts();
    for (what, many) in [
        ("frames carried", counts.carried),
        ("frames delayed", counts.delayed),
        ("frames lost", counts.lost),
        ("frames refused by a cut", counts.cut),
        ("frames dropped", counts.dropped),
        ("questions that met another node's", history.devices.crowded),
    ] {
        report.counts.insert(what.to_owned(), many);
    }
    Ok(())
}
