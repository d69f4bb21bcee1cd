//! Whole clusters under virtual time: what `make sim` runs by the thousand, in as many seeds as a minute of two cores
//! allows.

use quire_coordinator::timing::{CEILING_MS, FLOOR_MS};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use quire_tests::sim::{Report, paces, run};

/// Seeds of `make test`, and minutes of faults in each; two to five more pass before and after them. Of a busy core's
/// second a cluster has about 170: openraft's ticks, heartbeats and its own validation take it, so sixty seconds of two
/// cores are five hours. Many short lives meet more than five long ones, and half of them leave a busy machine its time.
const SEEDS: u64 = 12;
const MINUTES: u64 = 10;

/// Seeds that failed once, with minutes of faults, and what they found. A later change may lead a seed elsewhere; it is
/// kept all the same.
const FOUND: &[(u64, u64, &str)] = &[
    (
        101,
        4,
        "a leader's own directory was not known to be older: nobody remembered what it had acknowledged itself",
    ),
    (214, 4, "the same"),
    (7, 10, "a leader that was asked to hand over to itself took no more writes"),
    (2069, 10, "a rightful node was shut out by what was said of its predecessor before a partition"),
];

/// What must have happened in all seeds together, at the least.
const EACH_FAULT: [&str; 19] = [
    "kills",
    "power cuts",
    "batches lost with power",
    "pauses",
    "suspensions",
    "partitions",
    "one-way partitions",
    "lossy spells",
    "slow spells",
    "full disks",
    "slow disks",
    "clock jumps",
    "upstream away",
    "transfers",
    "drains",
    "replacements",
    "processes shut out",
    "paces slowed",
    "paces quickened",
];

/// Runs seeds on two threads.
fn all(seeds: impl Iterator<Item = (u64, u64)>) -> Vec<Report> {
    let seeds: Vec<(u64, u64)> = seeds.collect();
    let (next, reports) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some((seed, minutes)) = seeds.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let report = run(*seed, minutes * 60, false);
                    reports.lock().expect("no run panics").push(report);
                }
            });
        }
    });
    reports.into_inner().expect("no run panics")
}

fn assert_fine(reports: &[Report]) {
    let wrong = |report: &Report| {
        let wrong = report.violation.clone().or_else(|| report.idle())?;
        Some(format!(
            "seed {}: {wrong}; `make sim SIM=\"--seeds 1 --from {} --trace\"`",
            report.seed, report.seed
        ))
    };
    let wrong: Vec<String> = reports.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_same_seed_is_the_same_run() {
    let (one, other) = (run(4, 120, false), run(4, 120, false));
    assert_eq!(one, other);
    assert_ne!(one.trace, run(5, 120, false).trace, "the trace tells runs apart");
}

#[test]
fn slow_disks_cause_no_elections_and_quick_ones_a_quick_replacement() {
    for seed in 1..=3 {
        let seen = paces(seed);
        assert!((FLOOR_MS + 1..=CEILING_MS).contains(&seen.slow_ms), "seed {seed}: {seen:?}");
        assert_eq!(seen.elections, 0, "seed {seed}: {seen:?}");
        assert_eq!(seen.quick_ms, FLOOR_MS, "seed {seed}: {seen:?}");
        assert!((1..2_000).contains(&seen.replaced.as_millis()), "seed {seed}: {seen:?}");
    }
}

#[test]
fn clusters_survive_everything_that_breaks() {
    let reports = all((1..=SEEDS).map(|seed| (seed, MINUTES)));
    assert_eq!(reports.len() as u64, SEEDS);
    assert_fine(&reports);
    let mut counts = BTreeMap::<&str, u64>::new();
    for report in &reports {
        report.counts.iter().for_each(|(what, many)| *counts.entry(what).or_default() += many);
    }
    let missing: Vec<&str> = EACH_FAULT.into_iter().filter(|fault| !counts.contains_key(fault)).collect();
    assert!(missing.is_empty(), "never happened: {missing:?} in {counts:?}");
}

#[test]
fn what_was_found_once_stays_mended() {
    assert_fine(&all(FOUND.iter().map(|(seed, minutes, _)| (*seed, *minutes))));
}
