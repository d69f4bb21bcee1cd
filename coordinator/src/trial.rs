//! When a new version of a script is kept and when it is taken back: numbers in, a verdict out.
//!
//! A version is tried on one node first. It is in force everywhere once it ran often enough without failing more than
//! the one before it; it is taken back, then or later, when it fails more.

/// How often something ran, and how often it failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// All of them.
    pub runs: u64,
    /// Of these, the failed ones.
    pub failures: u64,
}

/// Runs that say enough: three rounds of a handful of devices.
pub const RUNS: u64 = 10;
/// Failures that are no accident: one device that is switched off in the middle of a read makes one.
pub const FAILURES: u64 = 3;
/// A trial takes so long at the least, so that more than one read of the same second is seen.
pub const LEAST_MS: u64 = 30_000;
/// A trial ends after so long at the latest: two reads of every device at the default period. A node that has no such
/// device has nothing to say against it.
pub const LONGEST_MS: u64 = 2 * 3_600_000;
/// A share of failures that is not counted against a version: devices that answer badly now and then.
const MARGIN: u64 = 20;

/// What is to become of a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// In force everywhere.
    Keep,
    /// The one before it comes back.
    TakeBack,
}

impl Tally {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Tally) -> Tally {
        Tally {
            runs: self.runs.saturating_add(other.runs),
            failures: self.failures.saturating_add(other.failures),
        }
    }

    /// True when this failed in a larger share of its runs, by more than one in [`MARGIN`]. What never ran failed never.
    pub fn fails_more_than(self, other: Tally) -> bool {
        // mine/runs > other/runs' + 1/MARGIN, without fractions.
        let [mine, runs, theirs, their_runs, margin] =
            [self.failures, self.runs.max(1), other.failures, other.runs.max(1), MARGIN].map(u128::from);
        mine.saturating_mul(their_runs).saturating_mul(margin)
            > theirs
                .saturating_mul(runs)
                .saturating_mul(margin)
                .saturating_add(runs.saturating_mul(their_runs))
    }
}

/// What is to become of a version on trial, `age_ms` after it began.
pub fn of_trial(trial: Tally, before: Tally, age_ms: u64) -> Verdict {
    let worse = trial.fails_more_than(before);
    let over = age_ms >= LONGEST_MS;
    if worse && (over || trial.failures >= FAILURES) {
        return Verdict::TakeBack;
    }
    let enough = trial.runs >= RUNS && age_ms >= LEAST_MS;
    if !worse && (over || enough) { Verdict::Keep } else { Verdict::Wait }
}

/// What is to become of a version in force.
pub fn in_force(version: Tally, before: Tally) -> Verdict {
    if version.failures >= FAILURES && version.fails_more_than(before) {
        Verdict::TakeBack
    } else {
        Verdict::Wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tally(runs: u64, failures: u64) -> Tally {
        Tally { runs, failures }
    }

    #[test]
    fn trials_end_as_they_should() {
        let perfect = tally(1000, 0);
        assert_eq!(of_trial(tally(9, 0), perfect, LEAST_MS), Verdict::Wait, "too few runs");
        assert_eq!(of_trial(tally(10, 0), perfect, LEAST_MS - 1), Verdict::Wait, "too early");
        assert_eq!(of_trial(tally(10, 0), perfect, LEAST_MS), Verdict::Keep);
        assert_eq!(of_trial(tally(0, 0), perfect, LONGEST_MS), Verdict::Keep, "nobody to ask");
        assert_eq!(of_trial(tally(3, 3), perfect, 0), Verdict::TakeBack);
        assert_eq!(of_trial(tally(2, 2), perfect, LONGEST_MS - 1), Verdict::Wait);
        assert_eq!(of_trial(tally(2, 2), perfect, LONGEST_MS), Verdict::TakeBack);
        assert_eq!(of_trial(tally(10, 5), tally(10, 5), LEAST_MS), Verdict::Keep, "no worse than before");
        assert_eq!(in_force(tally(1_000, 3), perfect), Verdict::Wait, "three accidents in a thousand");
        assert_eq!(in_force(tally(1_000, 60), perfect), Verdict::TakeBack);
    }

    proptest! {
        #[test]
        fn what_fails_more_is_never_kept(
            runs in 0u64..10_000, failed in 0u64..10_000, before_runs in 0u64..10_000, before_failed in 0u64..10_000,
            age in 0u64..2 * LONGEST_MS,
        ) {
            let (new, old) = (tally(runs, failed.min(runs)), tally(before_runs, before_failed.min(before_runs)));
            let verdict = of_trial(new, old, age);
            prop_assert!(verdict != Verdict::Keep || !new.fails_more_than(old));
            prop_assert!(verdict != Verdict::TakeBack || new.fails_more_than(old));
            prop_assert!(age < LONGEST_MS || verdict != Verdict::Wait, "a trial ends");
            prop_assert!(!new.fails_more_than(new), "nothing is worse than itself");
            prop_assert!(!(new.fails_more_than(old) && old.fails_more_than(new)));
        }

        #[test]
        fn numbers_of_any_size_do_not_overflow(a: u64, b: u64, c: u64, d: u64, age: u64) {
            of_trial(tally(a, b), tally(c, d), age);
            in_force(tally(a, b), tally(c, d));
        }
    }
}
