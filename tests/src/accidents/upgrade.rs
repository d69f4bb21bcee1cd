//! A cluster that is upgraded node by node while it works, as the README says: a node is stopped, the new release is
//! started on its directory, and the next one follows once `members` shows it alive. The "new release" is the same
//! program: what a later one may not do to an older one is tested in `coordinator/src/upgrade.rs`.
//!
//! What must hold is asserted here; how long anything took is measured for the benchmark alone.

use super::checks;
use super::history::{Event, History, Recorder, What};
use super::site::{RATE, Site};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// How often a device is read (`cluster::settings`).
const EVERY: Duration = Duration::from_secs(10);

/// What an upgrade took.
#[derive(Debug, Clone, Default)]
pub struct Upgrade {
    /// Readings that reached the Web Admin.
    pub readings: u64,
    /// Longest time in which a unit was nobody's who ran, by any node's word; and that of each stop.
    pub unowned: Vec<Duration>,
    /// By how much each reading came later than its device's last one and the period.
    pub late: Vec<Duration>,
    /// From the signal to the end of each process.
    pub stopping: Vec<Duration>,
    /// What the checks counted.
    pub counts: BTreeMap<&'static str, u64>,
}

/// Upgrades all nodes of a working cluster in turn, `rounds` times, and checks what was seen. `None`, with one line,
/// where network namespaces cannot be had.
///
/// # Errors
/// What did not hold.
pub fn run(nodes: usize, rounds: usize) -> Result<Option<Upgrade>> {
    let Some(mut site) = Site::start(nodes, 1)? else { return Ok(None) };
    let began = site.wires.switch()?.began();
    let excluded = site.exclude()?;
    let mut history =
        History { rate: u64::from(RATE), excluded: Some((began.elapsed(), excluded)), ..History::default() };
    site.converge()?;
    let recorder = Recorder::start(began, &site.directories()?);
    let mut upgrade = Upgrade::default();
    let mut stops = Vec::new();
    for _ in 0..rounds {
        for name in site.nodes.clone() {
            recorder.note("", What::Happened { what: format!("upgrade of {name}"), lasts: true });
            let stop = Instant::now();
            site.cluster.stop(&name)?;
            upgrade.stopping.push(stop.elapsed());
            stops.push((name.clone(), began.elapsed()));
            site.cluster.restart(&name)?;
            recorder.note(&name, What::Started);
            site.cluster.await_whole().with_context(|| format!("after the upgrade of {name}"))?;
            recorder.note("", What::Happened { what: format!("upgrade of {name}"), lasts: false });
        }
    }
    site.converge()?;
    history.events = recorder.end();
    super::look_back(&mut site, &mut history)?;
    upgrade.counts = checks::all(&history)?;
    upgrade.readings = history.upstream.len() as u64;
    let moved = |(name, at): &(String, Duration)| unowned(&history.events, name, *at);
    upgrade.unowned = stops.iter().map(moved).collect::<Result<_>>()?;
    upgrade.late = late(&history);
    site.cluster.finish()?;
    Ok(Some(upgrade))
}

/// From the end of a node's process until any node's tables gave its last unit away, or it was started again; nothing
/// where all had been given away before.
fn unowned(events: &[Event], stopped: &str, at: Duration) -> Result<Duration> {
    let mut owners: BTreeMap<&str, (&str, u64)> = BTreeMap::new();
    let mut last = at;
    let started = |event: &&Event| event.node == stopped && event.what == What::Started && event.at > at;
    let back = events.iter().find(started).map_or(Duration::MAX, |event| event.at);
    let mut waited = BTreeSet::new();
    for event in events {
        let What::Unit { unit, owner, epoch } = &event.what else { continue };
        let known = owners.entry(unit).or_default();
        if *epoch <= known.1 {
            continue;
        }
        // It may get the unit back later, and lose it once more: that is another time.
        if known.0 == stopped && event.at > at && waited.insert(unit) {
            last = last.max(event.at.min(back));
        }
        *known = (owner, *epoch);
    }
    ensure!(!owners.is_empty(), "no unit was seen");
    Ok(last - at)
}

/// Of each device's readings in the order of their time: how much more than the period lies between two of them.
fn late(history: &History) -> Vec<Duration> {
    let mut times: BTreeMap<&str, Vec<Duration>> = BTreeMap::new();
    for stored in &history.upstream {
        times.entry(&stored.device).or_default().push(stored.at);
    }
    let mut late = Vec::new();
    for times in times.values_mut() {
        times.sort();
        late.extend(times.windows(2).map(|pair| (pair[1] - pair[0]).saturating_sub(EVERY)));
    }
    late.sort();
    late
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accidents::history::Stored;

    #[test]
    fn a_unit_is_unowned_until_the_first_later_grant() {
        let unit = |at: u64, owner: &str, epoch| Event {
            at: Duration::from_millis(at),
            node: "n3".to_owned(),
            what: What::Unit { unit: "u".to_owned(), owner: owner.to_owned(), epoch },
        };
        let events = [unit(10, "n1", 1), unit(1_400, "n2", 2), unit(3_000, "n1", 3)];
        let gap = |at| unowned(&events, "n1", Duration::from_millis(at)).unwrap();
        assert_eq!(gap(1_000), Duration::from_millis(400));
        assert_eq!(gap(1_500), Duration::ZERO, "it had been given away before");
        let gap = |events: &[Event]| unowned(events, "n1", Duration::from_millis(1_000)).unwrap();
        assert_eq!(gap(&[unit(10, "n1", 1), unit(60_000, "n2", 2)]), Duration::from_secs(59));
        let at = Duration::from_secs(3);
        let started = Event { at, node: "n1".to_owned(), what: What::Started };
        assert_eq!(gap(&[unit(10, "n1", 1), started, unit(60_000, "n2", 2)]), Duration::from_secs(2));
        assert!(unowned(&[], "n1", Duration::ZERO).is_err());
    }

    #[test]
    fn late_is_what_exceeds_the_period() {
        let stored = |seq: u64, at| Stored {
            id: seq.to_string(),
            seq,
            device: "d".to_owned(),
            at: Duration::from_secs(at),
        };
        let upstream = vec![stored(1, 100), stored(3, 123), stored(2, 110)];
        let history = History { upstream, ..History::default() };
        assert_eq!(late(&history), [Duration::ZERO, Duration::from_secs(3)]);
    }
}
