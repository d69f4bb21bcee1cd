//! When sweeps begin: `Mon,Thu 02:00`, `daily 02:00` or `every 6h`, always in UTC.
//!
//! A schedule names moments ("slots"); it never waits and never asks what time it is. Days are UTC so
//! that nodes in different time zones, and a node whose zone changes, agree on every slot.

use std::fmt;
use std::str::FromStr;

use quire_proto::id::Millis;

use crate::settings::{duration_ms, in_words};

const MINUTE_MS: u64 = 60_000;
const DAY_MS: u64 = 24 * 60 * MINUTE_MS;
/// 1 January 1970 was a Thursday, and weeks start on Monday here.
const EPOCH_WEEKDAY: u64 = 3;
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
/// Sweeping more often than this is polling; the smallest period that `every` takes.
const MIN_EVERY_MS: u64 = MINUTE_MS;

/// The moments at which every unit becomes due for a sweep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// Weekdays (Monday first) at minutes after midnight.
    Weekly { days: [bool; 7], minute: u64 },
    /// Multiples of a period since the Unix epoch.
    Every { period_ms: u64 },
}

/// What is wrong with the text of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a schedule: expected \"Mon,Thu 02:00\", \"daily 02:00\" (UTC) or \"every 6h\" (1m to 28d)"
)]
pub struct BadSchedule(String);

impl Schedule {
    /// Parses the three forms; see [`BadSchedule`] for them.
    ///
    /// # Errors
    /// When the text is none of them.
    pub fn parse(text: &str) -> Result<Schedule, BadSchedule> {
        let bad = || BadSchedule(text.to_owned());
        let (days, at) = text.trim().split_once(char::is_whitespace).ok_or_else(bad)?;
        let at = at.trim();
        if days.eq_ignore_ascii_case("every") {
            let period_ms = duration_ms(at).ok().filter(|ms| (MIN_EVERY_MS..=28 * DAY_MS).contains(ms));
            return period_ms.map(|period_ms| Schedule(Kind::Every { period_ms })).ok_or_else(bad);
        }
        let days = weekdays(days).ok_or_else(bad)?;
        let minute = minute_of_day(at).ok_or_else(bad)?;
        Ok(Schedule(Kind::Weekly { days, minute }))
    }

    /// How many slots a day has in the mean.
    pub fn a_day(&self) -> f64 {
        match &self.0 {
            Kind::Weekly { days, .. } => days.iter().filter(|day| **day).count() as f64 / 7.0,
            Kind::Every { period_ms } => DAY_MS as f64 / *period_ms as f64,
        }
    }

    /// The latest slot at or before `now`; `None` when there was none since 1970.
    pub fn last_slot(&self, now: Millis) -> Option<Millis> {
        match &self.0 {
            Kind::Every { period_ms } => Some(Millis(now.0 - now.0 % period_ms)),
            Kind::Weekly { days, minute } => {
                let today = now.0 / DAY_MS;
                (0..=7)
                    .filter_map(|back| today.checked_sub(back))
                    .filter(|day| days[weekday(*day)])
                    .map(|day| day * DAY_MS + minute * MINUTE_MS)
                    .find(|slot| *slot <= now.0)
                    .map(Millis)
            }
        }
    }

    /// The first slot after `now`.
    pub fn next_slot(&self, now: Millis) -> Millis {
        match &self.0 {
            Kind::Every { period_ms } => Millis((now.0 - now.0 % period_ms).saturating_add(*period_ms)),
            Kind::Weekly { days, minute } => {
                let today = now.0 / DAY_MS;
                let slot = (today..=today + 7)
                    .filter(|day| days[weekday(*day)])
                    .map(|day| day.saturating_mul(DAY_MS).saturating_add(minute * MINUTE_MS))
                    .find(|slot| *slot > now.0);
                Millis(slot.unwrap_or(u64::MAX))
            }
        }
    }
}

/// Twice a week, at night.
impl Default for Schedule {
    fn default() -> Self {
        let mut days = [false; 7];
        days[0] = true;
        days[3] = true;
        Schedule(Kind::Weekly { days, minute: 120 })
    }
}

impl FromStr for Schedule {
    type Err = BadSchedule;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Schedule::parse(text)
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Every { period_ms } => write!(f, "every {}", in_words(*period_ms)),
            Kind::Weekly { days, minute } => {
                let named: Vec<&str> =
                    DAYS.iter().zip(days).filter(|(_, on)| **on).map(|(name, _)| *name).collect();
                let named = if named.len() == 7 { "daily".to_owned() } else { named.join(",") };
                write!(f, "{named} {:02}:{:02}", minute / 60, minute % 60)
            }
        }
    }
}

fn weekday(day: u64) -> usize {
    usize::try_from((day + EPOCH_WEEKDAY) % 7).unwrap_or(0)
}

/// `daily`, or days by their first three letters, joined by commas.
fn weekdays(text: &str) -> Option<[bool; 7]> {
    if text.eq_ignore_ascii_case("daily") {
        return Some([true; 7]);
    }
    let mut days = [false; 7];
    for name in text.split(',') {
        let day = DAYS.iter().position(|day| day.eq_ignore_ascii_case(name.trim()))?;
        days[day] = true;
    }
    Some(days)
}

/// `HH:MM`, 24 hours, both with two digits.
fn minute_of_day(text: &str) -> Option<u64> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |digits: &str| {
        (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_digit()))
            .then(|| digits.parse::<u64>().ok())?
    };
    let (hours, minutes) = (two(hours)?, two(minutes)?);
    (hours < 24 && minutes < 60).then_some(hours * 60 + minutes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Millis {
        text.parse().unwrap()
    }

    #[test]
    fn twice_a_week_by_default() {
        let twice = Schedule::parse("Mon,Thu 02:00").unwrap();
        assert_eq!(twice, Schedule::default());
        // 22 November 2026 is a Sunday.
        let now = at("2026-11-22T11:00:00Z");
        assert_eq!((twice.a_day() * 7.0).round(), 2.0);
        assert_eq!(Schedule::parse("every 6h").unwrap().a_day(), 4.0);
        assert_eq!(twice.last_slot(now), Some(at("2026-11-19T02:00:00Z")));
        assert_eq!(twice.next_slot(now), at("2026-11-23T02:00:00Z"));
        assert_eq!(twice.last_slot(at("2026-11-23T02:00:00Z")), Some(at("2026-11-23T02:00:00Z")));
        assert_eq!(twice.last_slot(at("2026-11-23T01:59:59Z")), Some(at("2026-11-19T02:00:00Z")));
    }

    #[test]
    fn daily_and_every() {
        let daily = Schedule::parse("daily 23:30").unwrap();
        assert_eq!(daily.last_slot(at("2026-11-22T11:00:00Z")), Some(at("2026-11-21T23:30:00Z")));
        let every = Schedule::parse("every 6h").unwrap();
        assert_eq!(every.last_slot(at("2026-11-22T11:00:00Z")), Some(at("2026-11-22T06:00:00Z")));
        assert_eq!(every.next_slot(at("2026-11-22T12:00:00Z")), at("2026-11-22T18:00:00Z"));
    }

    #[test]
    fn what_is_no_schedule() {
        for bad in [
            "",
            "Mon",
            "Mon 2:00",
            "Mon 24:00",
            "Mon 02:60",
            "Mond 02:00",
            "every 6",
            "every 1s",
            "every 0h",
            "Mon, 02:00",
        ] {
            assert!(Schedule::parse(bad).is_err(), "{bad}");
        }
    }

    prop_compose! {
        fn schedules()(pick in 0..3, days in 1u8..128, minute in 0u64..1440, period in 1u64..40_000) -> String {
            let named: Vec<&str> = (0..7).filter(|day| days >> day & 1 == 1).map(|day| DAYS[day]).collect();
            match pick {
                0 => format!("{} {:02}:{:02}", named.join(","), minute / 60, minute % 60),
                1 => format!("daily {:02}:{:02}", minute / 60, minute % 60),
                _ => format!("every {period}m"),
            }
        }
    }

    proptest! {
        #[test]
        fn slots_surround_every_moment(text in schedules(), now in 8 * DAY_MS..4_000_000_000_000) {
            let schedule = Schedule::parse(&text).unwrap();
            let (now, last, next) = (Millis(now), schedule.last_slot(Millis(now)).unwrap(), schedule.next_slot(Millis(now)));
            prop_assert!(last <= now && now < next);
            prop_assert_eq!(schedule.last_slot(next), Some(next));
            prop_assert_eq!(schedule.next_slot(last), next, "nothing lies between two neighbours");
            prop_assert_eq!(Schedule::parse(&schedule.to_string()).unwrap(), schedule);
        }

        #[test]
        fn parsing_never_panics(text in "\\PC{0,20}", now in any::<u64>()) {
            let schedule = Schedule::parse(&text).unwrap_or_default();
            let _ = (schedule.last_slot(Millis(now)), schedule.next_slot(Millis(now)));
        }
    }
}
