//! A device's counters through resets: lifetime totals as the device tells them, and what was used in all.
//!
//! A counter that goes down starts a new epoch and is an event; use is counted within epochs alone, so it
//! is never negative. What a Counter32 loses when it wraps at 2^32 is told from a reset by how much the
//! device can have printed meanwhile. A reset that the next reading takes back was a wrong reading.

use std::collections::BTreeMap;

use quire_proto::reading::Counters;
use quire_proto::store::{EventRow, Meter};

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

/// Brings the meters of a device to a later reading of it; answers what happened, without device and node.
pub(crate) fn follow(
    meters: &mut Vec<Meter>,
    counters: &Counters,
    sources: &BTreeMap<String, String>,
    at_ms: u64,
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
        {
            // Nearly always: it counts on.
            (meter.value, meter.at_ms) = (value, at_ms);
            continue;
        }
        let (source, unit) = (source.to_owned(), unit.to_owned());
        let seen = Meter { field: field.to_owned(), value, at_ms, source, unit, ..Meter::default() };
        match meters.iter_mut().find(|meter| meter.field == field) {
            Some(meter) => events.extend(step(meter, seen)),
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

fn step(meter: &mut Meter, seen: Meter) -> Option<EventRow> {
    let before = meter.value;
    let told = |kind: &str, what: String| {
        Some(EventRow {
            at_ms: seen.at_ms,
            kind: kind.to_owned(),
            field: format!("counters.{}", seen.field),
            before: Some(before),
            after: Some(seen.value),
            what,
            ..EventRow::default()
        })
    };
    let now = |meter: &mut Meter| (meter.value, meter.at_ms) = (seen.value, seen.at_ms);
    if meter.unit != seen.unit || (meter.source != seen.source && seen.value < before) {
        next_epoch(meter, &seen);
        let what =
            format!("{} is counted elsewhere or otherwise now: {before}, then {}", seen.field, seen.value);
        return told("counter-source", what);
    }
    if meter.source != seen.source {
        // Two counts that need not agree: what lies between them is nobody's use.
        meter.used_before = used(meter);
        (meter.start, meter.wraps, meter.before) = (seen.value, 0, None);
        meter.source.clone_from(&seen.source);
        now(meter);
        return None;
    }
    let elapsed = seen.at_ms.saturating_sub(meter.at_ms);
    if seen.value < before {
        let wrapped = before < WRAP && WRAP - before + seen.value <= plausible(elapsed);
        if wrapped {
            meter.wraps = meter.wraps.saturating_add(1);
            now(meter);
            return told("counter-wrap", format!("{} went past 2^32 and starts over", seen.field));
        }
        let old = Meter { before: None, ..meter.clone() };
        next_epoch(meter, &seen);
        meter.before = Some(Box::new(old));
        return told("counter-reset", format!("{} went down from {before} to {}", seen.field, seen.value));
    }
    if let Some(old) = meter.before.take() {
        let since = seen.at_ms.saturating_sub(old.at_ms);
        if seen.value >= old.value && seen.value - old.value <= plausible(since) {
            *meter = *old;
            now(meter);
            return told(
                "counter-back",
                format!("{} is back at {}: the reset was a wrong reading", seen.field, seen.value),
            );
        }
    }
    now(meter);
    None
}

fn next_epoch(meter: &mut Meter, seen: &Meter) {
    *meter = Meter {
        epoch: meter.epoch.saturating_add(1),
        since_ms: seen.at_ms,
        start: seen.value,
        used_before: used(meter),
        ..seen.clone()
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Follows totals, one an hour; answers the meter and the kinds of events.
    fn follow_totals(totals: &[u64]) -> (Meter, Vec<String>) {
        let (mut meters, mut kinds) = (Vec::new(), Vec::new());
        for (n, total) in totals.iter().enumerate() {
            let counters = Counters { total: Some(*total), ..Counters::default() };
            let events = follow(&mut meters, &counters, &BTreeMap::new(), 3_600_000 * (n as u64 + 1));
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
    fn another_source_or_unit_is_another_count() {
        let mut meters = Vec::new();
        let mut read = |total, source: &str, unit: Option<&str>, at| {
            let counters =
                Counters { total: Some(total), unit: unit.map(str::to_owned), ..Counters::default() };
            let sources = [("counters.total".to_owned(), source.to_owned())].into();
            let events = follow(&mut meters, &counters, &sources, at);
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
