//! What must hold of a recorded history, whatever broke. Each invariant is a function that says what it means; the
//! simulation holds the same ones ([`crate::sim::checks`]), and sees more.

use super::history::{History, What};
use anyhow::{Result, bail, ensure};
use prost::Message as _;
use quire_coordinator::state;
use quire_coordinator::tables::{MemoryTables, Overlay, Read as _, Table};
use quire_node::sim::Left;
use quire_proto::store::Command;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

/// Packets that a node may be ahead of its even pace (docs/benchmarks.md).
const AHEAD: u64 = 4;
/// The least time after which the engine takes an answer for overdue (`node/src/snmp/silence.rs`), less a little for the
/// kernel's own way to the cable.
const OVERDUE: Duration = Duration::from_millis(190);
/// After an accident ended it takes so long until all nodes know who lives: their parts of the rate follow from that.
const SETTLED: Duration = Duration::from_secs(5);
/// A node heeds the settings that it has; it may get them so much later.
const HEEDED: Duration = Duration::from_secs(1);

/// All of them.
///
/// # Errors
/// What does not hold.
pub fn all(history: &History) -> Result<BTreeMap<&'static str, u64>> {
    let mut counts = BTreeMap::new();
    counts.insert("claims", one_holder_of_a_claim(history)?);
    counts.insert("grants", one_owner_of_a_unit_under_an_epoch(history)?);
    counts.insert("looks at nodes", tables_never_go_back(history)?);
    counts.insert("links accepted", epochs_upstream_never_fall(history)?);
    counts.insert("readings upstream", each_reading_is_upstream_once(history)?);
    numbers_only_rise_upstream(history)?;
    counts.insert("readings that nodes showed", no_reading_is_lost(history)?);
    nothing_upstream_was_never_committed(history)?;
    counts.insert("tables compared", identical_tables_at_identical_index(&history.left)?);
    counts.insert("packets to devices", no_excluded_address_is_asked(history)?);
    the_rate_is_kept(history)?;
    counts.insert("answers of devices", one_question_at_a_time(history)?);
    devices_are_treated_politely(history)?;
    Ok(counts)
}

/// A claim has one holder: nobody plans or sends under another's epoch.
pub fn one_holder_of_a_claim(history: &History) -> Result<u64> {
    let mut holders: BTreeMap<u64, &str> = BTreeMap::new();
    for event in &history.events {
        let What::Status { claim, holder, .. } = &event.what else { continue };
        if *claim > 0 {
            let first = *holders.entry(*claim).or_insert(holder);
            ensure!(
                first == holder,
                "claim {claim} is {first}'s, and {holder}'s by the word of {}",
                event.node
            );
        }
    }
    Ok(holders.len() as u64)
}

/// Two grants of one unit never share their fencing number.
pub fn one_owner_of_a_unit_under_an_epoch(history: &History) -> Result<u64> {
    let mut owners: BTreeMap<(&str, u64), &str> = BTreeMap::new();
    for event in &history.events {
        let What::Unit { unit, owner, epoch } = &event.what else { continue };
        let first = *owners.entry((unit, *epoch)).or_insert(owner);
        ensure!(
            first == owner,
            "unit {unit} is {first}'s under epoch {epoch}, and {owner}'s by the word of {}",
            event.node
        );
    }
    Ok(owners.len() as u64)
}

/// What a node once had in its tables it has for ever, over its own death, too: neither the entry that it has come to
/// nor the epoch of any unit falls.
pub fn tables_never_go_back(history: &History) -> Result<u64> {
    let mut looks = 0;
    let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
    let mut epochs: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for event in &history.events {
        let (now, before) = match &event.what {
            What::Status { applied, .. } => (*applied, reached.entry(&event.node).or_default()),
            What::Unit { unit, epoch, .. } => (*epoch, epochs.entry((&event.node, unit)).or_default()),
            What::Reading { .. } | What::Started | What::Happened { .. } => continue,
        };
        looks += 1;
        ensure!(now >= *before, "{} goes back from {before} to {now}: {:?}", event.node, event.what);
        *before = now;
    }
    Ok(looks)
}

/// The Web Admin accepts no stream under a lower epoch than before, and one epoch is one node's.
pub fn epochs_upstream_never_fall(history: &History) -> Result<u64> {
    for pair in history.links.windows(2) {
        let [before, now] = pair else { continue };
        let fine = now.epoch > before.epoch || (now.epoch == before.epoch && now.node == before.node);
        ensure!(fine, "the Web Admin accepts {now:?} after {before:?}");
    }
    Ok(history.links.len() as u64)
}

/// No reading is upstream twice, neither under its id nor under another number.
pub fn each_reading_is_upstream_once(history: &History) -> Result<u64> {
    let mut ids = BTreeSet::new();
    for stored in &history.upstream {
        ensure!(!stored.id.is_empty(), "a reading without an id is upstream");
        ensure!(ids.insert(&stored.id), "reading {} is upstream twice", stored.id);
    }
    ensure!(history.repeated.is_empty(), "{:?}", history.repeated);
    Ok(ids.len() as u64)
}

/// Readings arrive in the order of their numbers, whoever sent them.
pub fn numbers_only_rise_upstream(history: &History) -> Result<()> {
    for pair in history.upstream.windows(2) {
        let [before, now] = pair else { continue };
        ensure!(now.seq > before.seq, "reading {now:?} arrived after {before:?}");
    }
    Ok(())
}

/// What any node ever showed as recorded is upstream in the end.
pub fn no_reading_is_lost(history: &History) -> Result<u64> {
    let upstream: BTreeSet<&str> = history.upstream.iter().map(|stored| stored.id.as_str()).collect();
    let mut shown = 0;
    for event in &history.events {
        let What::Reading { id } = &event.what else { continue };
        shown += 1;
        ensure!(
            upstream.contains(id.as_str()),
            "{} showed reading {id} after {:.3} s, and it is not upstream",
            event.node,
            event.at.as_secs_f64()
        );
    }
    Ok(shown)
}

/// What arrives upstream is in the tables, or was: a reading that only its maker knew never gets there.
pub fn nothing_upstream_was_never_committed(history: &History) -> Result<()> {
    let shown = history.events.iter().filter_map(|event| match &event.what {
        What::Reading { id } => Some(id.as_str()),
        What::Status { .. } | What::Unit { .. } | What::Started | What::Happened { .. } => None,
    });
    let mut known: BTreeSet<String> = shown.map(str::to_owned).collect();
    for (_, left) in &history.left {
        // A reading's key is 8 octets of time and its id.
        let keys = left.tables.range(Table::Readings, &[], usize::MAX)?.into_iter();
        known.extend(keys.filter_map(|(key, _)| Some(String::from_utf8_lossy(key.get(8..)?).into_owned())));
    }
    for stored in &history.upstream {
        ensure!(known.contains(&stored.id), "no node ever showed {stored:?}, which is upstream");
    }
    Ok(())
}

/// Tables are a function of the log alone: whatever a node left, at its death or at the end, becomes what the others
/// have when the entries that it lacks are applied to it. So is every entry that two of them hold.
pub fn identical_tables_at_identical_index(left: &[(String, Left)]) -> Result<u64> {
    let mut log = BTreeMap::new();
    let end = left.iter().map(|(_, left)| left.applied).max().unwrap_or(0);
    for (node, left) in left {
        // Behind what it has applied a log may hold what was never committed.
        for (index, command) in left.log.range(..=left.applied) {
            let first = log.entry(*index).or_insert(command);
            ensure!(*first == command, "{node} has another entry at {index} than others");
        }
    }
    let mut compared: Option<(&str, MemoryTables)> = None;
    let mut count = 0;
    for (node, left) in left {
        let Some(tables) = brought_to(left, end, &log)? else { continue };
        count += 1;
        match &compared {
            None => compared = Some((node, tables)),
            Some((other, before)) => {
                ensure!(
                    *before == tables,
                    "{node}, of {}, has other tables at {end} than {other}",
                    left.applied
                );
            }
        }
    }
    Ok(count)
}

/// The tables with the entries up to `end`; `None` where the log no longer has them.
fn brought_to(
    left: &Left,
    end: u64,
    log: &BTreeMap<u64, &Option<bytes::Bytes>>,
) -> Result<Option<MemoryTables>> {
    let mut tables = left.tables.clone();
    for index in left.applied + 1..=end {
        let Some(command) = log.get(&index) else { return Ok(None) };
        let Some(command) = command else { continue };
        // As the node does (`cluster/machine.rs`): what nobody can decode changes nothing.
        let Ok(command) = Command::decode(command.clone()) else { continue };
        let mut overlay = Overlay::new(&tables);
        state::apply(&mut overlay, index, &command)?;
        let writes: Vec<_> = overlay.into_writes().collect();
        tables.commit(writes.into_iter());
    }
    Ok(Some(tables))
}

/// No packet goes to an excluded address once the settings that exclude it are in force.
pub fn no_excluded_address_is_asked(history: &History) -> Result<u64> {
    let Some((from, excluded)) = &history.excluded else { bail!("nothing was excluded") };
    let excluded: BTreeSet<_> = excluded.iter().collect();
    for asked in history.asked.iter().filter(|asked| asked.at >= *from + HEEDED) {
        ensure!(!excluded.contains(&asked.to), "{asked:?}, which is excluded");
    }
    Ok(history.asked.len() as u64)
}

/// Most packets in any second.
fn busiest(mut times: Vec<Duration>) -> (u64, Duration) {
    times.sort();
    let (mut first, mut most) = (0, (0, Duration::ZERO));
    for (n, at) in times.iter().enumerate() {
        while *at - times[first] >= Duration::from_secs(1) {
            first += 1;
        }
        most = most.max(((n - first + 1) as u64, *at));
    }
    most
}

/// No node alone ever asks at more than the zone's rate; all together do not either while nothing is broken, and never
/// at more than twice that: a minority that is cut off keeps its part (`coordinator/src/topology.rs`).
pub fn the_rate_is_kept(history: &History) -> Result<()> {
    let rate = history.rate;
    let ports: BTreeSet<usize> = history.asked.iter().map(|asked| asked.port).collect();
    let ahead = AHEAD * ports.len() as u64;
    for port in &ports {
        let of = history.asked.iter().filter(|asked| asked.port == *port).map(|asked| asked.at).collect();
        let (most, at) = busiest(of);
        ensure!(
            most <= rate + AHEAD,
            "port {port} asks {most} times in the second before {at:?}; {rate} is all"
        );
    }
    let (most, at) = busiest(history.asked.iter().map(|asked| asked.at).collect());
    ensure!(
        most <= 2 * rate + ahead,
        "{most} questions in the second before {at:?}, which is more than 2 * {rate}"
    );
    let calm = calm(history);
    let inside = |at: &Duration| calm.iter().any(|(from, upto)| from <= at && at <= upto);
    let (most, at) = busiest(history.asked.iter().map(|asked| asked.at).filter(inside).collect());
    ensure!(
        most <= rate + ahead,
        "{most} questions in the second before {at:?}, with nothing broken; {rate} is all"
    );
    Ok(())
}

/// The times in which nothing was broken, nor had been shortly before.
fn calm(history: &History) -> Vec<(Duration, Duration)> {
    let (mut broken, mut since, mut calm) = (0i64, Some(Duration::ZERO), Vec::new());
    for event in &history.events {
        let What::Happened { lasts, .. } = &event.what else { continue };
        broken += if *lasts { 1 } else { -1 };
        if let Some(from) = since.take() {
            calm.push((from, event.at));
        }
        since = (broken == 0).then_some(event.at + SETTLED);
    }
    calm.extend(since.map(|from| (from, Duration::MAX)));
    calm.retain(|(from, upto)| from < upto);
    calm
}

/// A node asks a device one question at a time: the next one follows its answer, or comes when that is overdue. By the
/// times at the senders' own cables, because what lies between may hold frames up.
pub fn one_question_at_a_time(history: &History) -> Result<u64> {
    let asked = history.asked.iter().map(|asked| (asked.at, asked, false));
    let mut all: Vec<_> = asked.chain(history.answered.iter().map(|asked| (asked.at, asked, true))).collect();
    all.sort_by_key(|(at, _, _)| *at);
    let mut open: BTreeMap<(usize, Ipv4Addr), Duration> = BTreeMap::new();
    for (at, asked, answer) in all {
        let before = match answer {
            true => open.remove(&(asked.port, asked.to)).and(None),
            false => open.insert((asked.port, asked.to), at),
        };
        let waited = before.map(|before| at - before);
        ensure!(
            waited.is_none_or(|waited| waited >= OVERDUE),
            "{asked:?}, {waited:?} after a question without answer"
        );
    }
    Ok(history.answered.len() as u64)
}

/// Devices hear nothing but questions, and never one to change anything.
pub fn devices_are_treated_politely(history: &History) -> Result<()> {
    let seen = &history.devices;
    ensure!(seen.sets == 0, "{} SET requests", seen.sets);
    ensure!(
        seen.foreign == 0,
        "{} packets were neither questions to these devices nor to an SNMPv3 engine",
        seen.foreign
    );
    Ok(())
}

#[cfg(test)]
#[path = "checks_tests.rs"]
mod tests;
