//! How far the sweeps are, for people: what is due, what of it is done, and about how long the rest takes.

use quire_proto::id::{Millis, UnitId};
use quire_proto::store::{SweepMark, UnitRow};

use crate::schedule::Schedule;
use crate::{extent, planner};

/// Sweeps that are due or under way, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Units to sweep.
    pub units: u64,
    /// Addresses of these.
    pub addresses: u64,
    /// Of these, done.
    pub done: u64,
    /// Seconds until the rest is done, at the pace of the units that are being swept; `None` where none tells.
    pub seconds_left: Option<u64>,
}

/// True when a unit is being swept or should be: somebody asked, it never was, it was begun, or its slot has passed.
pub fn is_due(row: &UnitRow, schedule: &Schedule, now: Millis) -> bool {
    let sweep = row.sweep.clone().unwrap_or_default();
    let last = if sweep.finished { sweep.started_at_ms } else { row.swept_at_ms };
    let begun = sweep.started_at_ms > 0 && !sweep.finished;
    begun || last == 0 || row.asked_at_ms > last || schedule.next_slot(Millis(last)) <= now
}

/// Of units that are due, those with the request or slot that `is_due` saw.
pub fn of<'a>(due: impl IntoIterator<Item = &'a UnitRow>) -> Progress {
    let mut progress = Progress::default();
    // Addresses a second, in thousandths, of all that are under way.
    let mut pace = 0;
    for row in due {
        let sweep = under_way(row).unwrap_or_default();
        let total = if sweep.total > 0 { u64::from(sweep.total) } else { addresses(row) };
        progress.units += 1;
        progress.addresses += total;
        progress.done += u64::from(sweep.done).min(total);
        pace += speed(row, &sweep);
    }
    let left = progress.addresses - progress.done;
    progress.seconds_left = (pace > 0).then(|| (left * 1_000).div_ceil(pace));
    progress
}

/// Seconds until the sweep of one unit is done, as its last mark promised.
pub fn seconds_left(row: &UnitRow, now: Millis) -> Option<u64> {
    let sweep = under_way(row)?;
    let pace = speed(row, &sweep);
    let left = u64::from(sweep.total.saturating_sub(sweep.done)) * 1_000;
    let since = now.0.saturating_sub(row.marked_at_ms) / 1_000;
    (pace > 0).then(|| left.div_ceil(pace).saturating_sub(since))
}

fn under_way(row: &UnitRow) -> Option<SweepMark> {
    row.sweep.clone().filter(|sweep| !sweep.finished && sweep.started_at_ms >= row.asked_at_ms)
}

/// Addresses in 1,000 seconds.
fn speed(row: &UnitRow, sweep: &SweepMark) -> u64 {
    let took_ms = row.marked_at_ms.saturating_sub(sweep.started_at_ms);
    (u64::from(sweep.done) * 1_000_000).checked_div(took_ms).unwrap_or(0)
}

fn addresses(row: &UnitRow) -> u64 {
    let prefix = row.unit.parse().ok().and_then(|unit: UnitId| unit.prefix());
    // How many are known of a prefix that nobody can sweep, its owner says with the first mark.
    let prefix = prefix.filter(|prefix| !planner::is_known_only(*prefix));
    prefix.map_or(0, |prefix| extent::unit_count(prefix, &row.segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Millis = Millis(10_000_000);

    fn unit(n: u8, sweep: Option<(u64, u32, bool)>) -> UnitRow {
        let sweep = sweep.map(|(started_at_ms, done, finished)| SweepMark {
            started_at_ms,
            done,
            finished,
            total: 254,
            ..SweepMark::default()
        });
        let swept_at_ms = if sweep.as_ref().is_some_and(|sweep| sweep.finished) { 9_000_000 } else { 0 };
        UnitRow {
            unit: format!("any:10.0.{n}.0/24"),
            sweep,
            marked_at_ms: NOW.0 - 1_000,
            swept_at_ms,
            ..UnitRow::default()
        }
    }

    #[test]
    fn what_is_due_is_what_the_roster_would_do() {
        let daily = Schedule::parse("daily 02:00").unwrap();
        let never = unit(1, None);
        let begun = unit(2, Some((9_000_000, 64, false)));
        let swept = unit(3, Some((8_900_000, 254, true)));
        let asked = UnitRow { asked_at_ms: 9_500_000, ..swept.clone() };
        let due = |row| is_due(row, &daily, NOW);
        assert_eq!([&never, &begun, &swept, &asked].map(due), [true, true, false, true]);
        let tomorrow = daily.next_slot(Millis(8_900_000));
        assert!(is_due(&swept, &daily, tomorrow));
    }

    #[test]
    fn the_time_left_goes_by_the_pace_of_those_under_way() {
        // 127 addresses in 99 seconds.
        let half = unit(2, Some((NOW.0 - 100_000, 127, false)));
        let progress = of([&half, &unit(1, None)]);
        assert_eq!((progress.units, progress.addresses, progress.done), (2, 508, 127));
        assert_eq!(progress.seconds_left, Some(298));
        assert_eq!(seconds_left(&half, NOW), Some(99));
        assert_eq!(of([&unit(1, None)]).seconds_left, None, "nothing tells");
        // A sweep that was begun before the request says nothing of the one that was asked for.
        let asked = UnitRow { asked_at_ms: NOW.0, ..half };
        assert_eq!((of([&asked]).done, seconds_left(&asked, NOW)), (0, None));
        assert_eq!(of([]), Progress::default());
        let inner = UnitRow { segment: "10.0.0.0/22".into(), ..unit(1, None) };
        let known_only = UnitRow { unit: "hq:fd00::/64".into(), ..UnitRow::default() };
        assert_eq!(of([&inner, &known_only, &known_only]).addresses, 256);
    }
}
