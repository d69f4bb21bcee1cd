//! A device's counters through resets: lifetime totals as the device tells them, and what was used in all.
//!
//! A counter that goes down starts a new epoch and is an event; use is counted within epochs alone, so it
//! is never negative. What a Counter32 loses when it wraps at 2^32 is told from a reset by how much the
//! device can have printed meanwhile. A reset that the next reading takes back was a wrong reading; a jump up beyond what
//! a device can have printed counts when the next reading confirms it.

use std::collections::BTreeMap;

use quire_proto::reading::Counters;
use quire_proto::store::{EventRow, Meter};

use crate::upgrade;

/// Where a Counter32 starts over (RFC 2578 section 7.1.6).
const WRAP: u64 = 1 << 32;

/// The fastest presses make a thousand impressions a minute.
const FASTEST_A_MINUTE: u64 = 1_000;
/// What any device may have made between two readings, however close.
const ANYHOW: u64 = 10_000;

/// What a device can have counted in so many milliseconds.
fn plausible(elapsed_ms: u64) -> u64 {
    ANYHOW.saturating_add((elapsed_ms / 60_000).saturating_mul(FASTEST_A_MINUTE))
}

/// What the counter counted since it is known, all epochs together.
pub fn used(meter: &Meter) -> u64 {
    let now = u64::from(meter.wraps).saturating_mul(WRAP).saturating_add(meter.value);
    meter.used_before.saturating_add(now.saturating_sub(meter.start))
}

/// The counters by the names that JSON gives them.
pub fn fields(counters: &Counters) -> [(&'static str, Option<u64>); 9] {
    let Counters { total, mono, color, prints, copies, faxes, scans, duplex, large, unit: _ } = counters;
    [
        ("total", *total),
        ("mono", *mono),
        ("color", *color),
        ("prints", *prints),
        ("copies", *copies),
        ("faxes", *faxes),
        ("scans", *scans),
        ("duplex", *duplex),
        ("large", *large),
    ]
}

/// What [`fields`] are called among a reading's sources.
const FULL: [&str; 9] = [
    "counters.total",
    "counters.mono",
    "counters.color",
    "counters.prints",
    "counters.copies",
    "counters.faxes",
    "counters.scans",
    "counters.duplex",
    "counters.large",
];

/// Brings the meters of a device to a later reading of it, by the rules of a cluster `version`; answers what happened,
/// without device and node.
pub(crate) fn follow(
    meters: &mut Vec<Meter>,
    counters: &Counters,
    sources: &BTreeMap<String, String>,
    at_ms: u64,
    version: u32,
) -> Vec<EventRow> {
    let mut events = Vec::new();
    for ((field, value), full) in fields(counters).into_iter().zip(FULL) {
        let Some(value) = value else { continue };
        let source = sources.get(full).map(|source| place_of(source)).unwrap_or_default();
        let unit = if field == "total" { counters.unit.as_deref().unwrap_or_default() } else { "" };
        let known = meters.iter_mut().find(|meter| meter.field == field);
        if let Some(meter) = known
            && meter.source == source
            && meter.unit == unit
            && meter.before.is_none()
            && value >= meter.value
            && (version < upgrade::METERS || counts_on(meter, value, at_ms))
        {
            // Nearly always: it counts on.
            (meter.value, meter.at_ms) = (value, at_ms);
            continue;
        }
        let (source, unit) = (source.to_owned(), unit.to_owned());
        let seen = Meter { field: field.to_owned(), value, at_ms, source, unit, ..Meter::default() };
        match meters.iter_mut().find(|meter| meter.field == field) {
            Some(meter) => events.extend(step(meter, seen, version)),
            None => meters.push(Meter { epoch: 1, since_ms: at_ms, start: value, ..seen }),
        }
    }
    events
}

/// An OID or attribute as it is; of an address of a page what stands behind the host, which moves.
fn place_of(source: &str) -> &str {
    match source.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => source,
    }
}

fn step(meter: &mut Meter, seen: Meter, version: u32) -> Option<EventRow> {
    if !same_count(meter, &seen) {
        return counted_elsewhere(meter, &seen, version);
    }
    if let Some(old) = meter.before.clone() {
        if old.value < meter.value {
            return after_jump(meter, *old, seen, version);
        }
        if counts_on(&old, seen.value, seen.at_ms) {
            return Some(back(meter, *old, &seen, "reset"));
        }
    }
    if seen.value < meter.value {
        return went_down(meter, &seen);
    }
    if version >= upgrade::METERS && !counts_on(meter, seen.value, seen.at_ms) {
        let old = Meter { before: None, ..meter.clone() };
        rebase(meter, &seen);
        meter.before = Some(Box::new(old));
        return None;
    }
    meter.before = None;
    now(meter, &seen);
    None
}

fn same_count(one: &Meter, other: &Meter) -> bool {
    one.source == other.source && one.unit == other.unit
}

/// Whether the device can have counted up to this value since.
fn counts_on(meter: &Meter, value: u64, at_ms: u64) -> bool {
    let more = value.checked_sub(meter.value);
    more.is_some_and(|more| more <= plausible(at_ms.saturating_sub(meter.at_ms)))
}

/// The reading behind a jump: one that is no lower confirms it, else the jump was none.
fn after_jump(meter: &mut Meter, old: Meter, seen: Meter, version: u32) -> Option<EventRow> {
    if seen.value >= meter.value {
        *meter = old;
        now(meter, &seen);
        return None;
    }
    if counts_on(&old, seen.value, seen.at_ms) {
        return Some(back(meter, old, &seen, "jump"));
    }
    *meter = old;
    step(meter, seen, version)
}

fn went_down(meter: &mut Meter, seen: &Meter) -> Option<EventRow> {
    let (before, elapsed) = (meter.value, seen.at_ms.saturating_sub(meter.at_ms));
    if before < WRAP && WRAP - before + seen.value <= plausible(elapsed) {
        meter.wraps = meter.wraps.saturating_add(1);
        now(meter, seen);
        let what = format!("{} went past 2^32 and starts over", seen.field);
        return Some(told("counter-wrap", before, seen, what));
    }
    let old = Meter { before: None, ..meter.clone() };
    next_epoch(meter, seen);
    meter.before = Some(Box::new(old));
    let what = format!("{} went down from {before} to {}", seen.field, seen.value);
    Some(told("counter-reset", before, seen, what))
}

/// Two counts that need not agree: what lies between them is nobody's use. A source that tells again, as one of a script
/// that failed for a while, goes on where it was; use never goes down by that.
fn counted_elsewhere(meter: &mut Meter, seen: &Meter, version: u32) -> Option<EventRow> {
    let mut left = None;
    if version >= upgrade::METERS {
        if let Some(old) = meter.before.take() {
            *meter = *old;
        }
        let former = meter.elsewhere.take();
        left = Some(Box::new(meter.clone()));
        if let Some(former) = former
            && same_count(&former, seen)
            && counts_on(&former, seen.value, seen.at_ms)
            && used(&former).saturating_add(seen.value - former.value) >= used(meter)
        {
            let (before, epoch) = (meter.value, meter.epoch);
            *meter = Meter { elsewhere: left, ..*former };
            now(meter, seen);
            let what = format!("{} is counted as before again: {before}, then {}", seen.field, seen.value);
            return (meter.epoch != epoch).then(|| told("counter-back", before, seen, what));
        }
    }
    let before = meter.value;
    let other = meter.unit != seen.unit || seen.value < before;
    if other {
        next_epoch(meter, seen);
    } else {
        rebase(meter, seen);
    }
    meter.elsewhere = left;
    let what = format!("{} is counted elsewhere or otherwise now: {before}, then {}", seen.field, seen.value);
    other.then(|| told("counter-source", before, seen, what))
}

/// The meter as it was, up to this reading.
fn back(meter: &mut Meter, old: Meter, seen: &Meter, what: &str) -> EventRow {
    let before = meter.value;
    *meter = old;
    now(meter, seen);
    let what = format!("{} is back at {}: the {what} was a wrong reading", seen.field, seen.value);
    told("counter-back", before, seen, what)
}

fn now(meter: &mut Meter, seen: &Meter) {
    (meter.value, meter.at_ms) = (seen.value, seen.at_ms);
}

fn told(kind: &str, before: u64, seen: &Meter, what: String) -> EventRow {
    EventRow {
        at_ms: seen.at_ms,
        kind: kind.to_owned(),
        field: format!("counters.{}", seen.field),
        before: Some(before),
        after: Some(seen.value),
        what,
        ..EventRow::default()
    }
}

/// Counts on from another value in the same epoch.
fn rebase(meter: &mut Meter, seen: &Meter) {
    meter.used_before = used(meter);
    (meter.start, meter.wraps, meter.before) = (seen.value, 0, None);
    meter.source.clone_from(&seen.source);
    now(meter, seen);
}

fn next_epoch(meter: &mut Meter, seen: &Meter) {
    *meter = Meter {
        epoch: meter.epoch.saturating_add(1),
        since_ms: seen.at_ms,
        start: seen.value,
        used_before: used(meter),
        elsewhere: meter.elsewhere.take(),
        ..seen.clone()
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;

    /// Follows totals, one an hour; answers the meter and the kinds of events.
    fn follow_totals(totals: &[u64]) -> (Meter, Vec<String>) {
        follow_by(upgrade::METERS, totals)
    }

    fn follow_by(version: u32, totals: &[u64]) -> (Meter, Vec<String>) {
        let (mut meters, mut kinds) = (Vec::new(), Vec::new());
        for (n, total) in totals.iter().enumerate() {
            let counters = Counters { total: Some(*total), ..Counters::default() };
            let events = follow(&mut meters, &counters, &BTreeMap::new(), HOUR * (n as u64 + 1), version);
            kinds.extend(events.into_iter().map(|event| event.kind));
        }
        (meters.remove(0), kinds)
    }

    #[test]
    fn a_counter_that_goes_down_starts_an_epoch() {
        let (meter, kinds) = follow_totals(&[1_000, 1_100, 40, 50]);
        assert_eq!((meter.epoch, used(&meter), meter.value), (2, 110, 50));
        assert_eq!(kinds, ["counter-reset"]);
    }

    #[test]
    fn a_reset_that_is_taken_back_was_none() {
        let (meter, kinds) = follow_totals(&[1_000, 0, 1_020, 1_030]);
        assert_eq!((meter.epoch, used(&meter)), (1, 30));
        assert_eq!(kinds, ["counter-reset", "counter-back"]);
    }

    #[test]
    fn a_wrap_is_no_reset() {
        let (meter, kinds) = follow_totals(&[(1 << 32) - 100, 50]);
        assert_eq!((meter.epoch, meter.wraps, used(&meter)), (1, 1, 150));
        assert_eq!(kinds, ["counter-wrap"]);
        let (meter, kinds) = follow_totals(&[3_000_000_000, 50]);
        assert_eq!((meter.epoch, used(&meter)), (2, 0), "nobody prints a billion pages in an hour");
        assert_eq!(kinds, ["counter-reset"]);
        let (meter, _) = follow_totals(&[(1 << 33) - 100, 50]);
        assert_eq!(meter.epoch, 2, "not a Counter32");
    }

    #[test]
    fn a_jump_counts_when_it_is_confirmed() {
        let (meter, kinds) = follow_totals(&[1_000, 3_000_000_000]);
        assert_eq!((used(&meter), meter.value, kinds.len()), (0, 3_000_000_000, 0), "not yet");
        let (meter, kinds) = follow_totals(&[1_000, 3_000_000_000, 1_001, 1_002]);
        assert_eq!((meter.epoch, used(&meter)), (1, 2));
        assert_eq!(kinds, ["counter-back"]);
        let (meter, kinds) = follow_totals(&[1_000, 500_000, 500_010, 500_020]);
        assert_eq!((meter.epoch, used(&meter), kinds.len()), (1, 499_020, 0));
        let (meter, kinds) = follow_totals(&[1_000, 3_000_000_000, 5, 1_001]);
        assert_eq!((meter.epoch, used(&meter)), (1, 1), "wrong twice, up and down");
        assert_eq!(kinds, ["counter-reset", "counter-back"]);
        let (meter, _) = follow_totals(&[1_000, 3_000_000_000, 5, 6]);
        assert_eq!((meter.epoch, used(&meter)), (2, 1), "a reset behind it");
        let (meter, kinds) = follow_by(upgrade::METERS - 1, &[1_000, 3_000_000_000, 1_001, 1_002]);
        assert_eq!((meter.epoch, used(&meter)), (2, 2_999_999_001), "as older releases have it");
        assert_eq!(kinds, ["counter-reset"]);
    }

    /// Follows totals with their sources and units, one an hour; answers epoch, use and number of events after each.
    fn follow_sources(version: u32, totals: &[(u64, &str, Option<&str>)]) -> Vec<(u32, u64, usize)> {
        let mut meters = Vec::new();
        let mut at = 0;
        let each = totals.iter().map(|(total, source, unit)| {
            at += HOUR;
            let unit = unit.map(str::to_owned);
            let counters = Counters { total: Some(*total), unit, ..Counters::default() };
            let sources = [("counters.total".to_owned(), (*source).to_owned())].into();
            let events = follow(&mut meters, &counters, &sources, at, version);
            (meters[0].epoch, used(&meters[0]), events.len())
        });
        each.collect()
    }

    #[test]
    fn a_source_that_tells_again_counts_on() {
        let after =
            |totals: &[(u64, &str, Option<&str>)]| *follow_sources(upgrade::METERS, totals).last().unwrap();
        let higher = [(5_000, "a", None), (5_005, "b", None), (5_010, "a", None)];
        assert_eq!(after(&higher), (1, 10, 0));
        assert_eq!(follow_sources(upgrade::METERS - 1, &higher)[2], (1, 0, 0), "as older releases have it");
        let lower = [(5_000, "a", None), (2_500, "b", Some("sheets")), (5_010, "a", None)];
        assert_eq!(after(&lower), (1, 10, 1), "the epoch is taken back, too, and that is told");
        assert_eq!(
            after(&[&lower[..], &[(2_503, "b", Some("sheets")), (5_020, "a", None)]].concat()),
            (1, 20, 1)
        );
        let more = [(5_000, "a", None), (6_000, "b", None), (6_090, "b", None), (5_010, "a", None)];
        assert_eq!(after(&more), (2, 90, 1), "use never goes down");
        let reset = [(5_000, "a", None), (6_000, "b", None), (7, "a", None)];
        assert_eq!(after(&reset), (2, 0, 1));
        let wrong = [(5_000, "a", None), (3_000_000_000, "a", None), (5_005, "b", None), (5_010, "a", None)];
        assert_eq!(after(&wrong), (1, 10, 0), "what nobody confirmed is no use");
    }

    #[test]
    fn another_source_or_unit_is_another_count() {
        let mut meters = Vec::new();
        let mut read = |total, source: &str, unit: Option<&str>, at| {
            let counters =
                Counters { total: Some(total), unit: unit.map(str::to_owned), ..Counters::default() };
            let sources = [("counters.total".to_owned(), source.to_owned())].into();
            let events = follow(&mut meters, &counters, &sources, at, upgrade::METERS);
            (meters[0].epoch, used(&meters[0]), events.len())
        };
        assert_eq!(read(100, "1.3.6", None, 1), (1, 0, 0));
        assert_eq!(read(110, "1.3.6", None, 2), (1, 10, 0));
        assert_eq!(read(5_000, "1.3.7", None, 3), (1, 10, 0), "4,890 pages that nobody printed");
        assert_eq!(read(5_001, "1.3.7", None, 4), (1, 11, 0));
        assert_eq!(read(100, "1.3.6", None, 5), (2, 11, 1));
        assert_eq!(read(900, "1.3.6", Some("feet"), 6), (3, 11, 1));
    }

    #[test]
    fn a_page_is_the_same_source_at_a_new_address() {
        assert_eq!(place_of("http://10.0.0.5/usage.html#x"), place_of("https://10.0.0.9:8443/usage.html#x"));
    }

    #[test]
    fn sources_are_named_as_the_fields() {
        let named = fields(&Counters::default()).map(|(field, _)| format!("counters.{field}"));
        assert_eq!(named, FULL);
    }

    proptest! {
        /// Whatever sources tell in turn, and however wrong some of it is: what was used stays used.
        #[test]
        fn use_never_goes_down(
            told in proptest::collection::vec((prop_oneof![0u64..100, 5_000u64..5_100, 2_000_000u64..2_000_100], 0u8..3), 1..40),
        ) {
            let sources = ["a", "b", "c"];
            let told: Vec<_> = told.into_iter().map(|(total, of)| (total, sources[of as usize], None)).collect();
            let used: Vec<u64> =
                follow_sources(upgrade::METERS, &told).into_iter().map(|(_, used, _)| used).collect();
            prop_assert!(used.is_sorted(), "{used:?}");
        }

        /// Use never goes down but by what a reading that was taken back had added, and never exceeds what
        /// the counter ever went up by.
        #[test]
        fn use_is_never_negative(totals in proptest::collection::vec(0u64..1 << 34, 1..30)) {
            let (meter, _) = follow_totals(&totals);
            let up: u64 = totals.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).sum();
            let wraps = u64::from(meter.wraps);
            prop_assert!(used(&meter) <= up + totals.len() as u64 * WRAP);
            prop_assert!(wraps <= totals.len() as u64);
        }
    }
}
