//! How long to wait before trying again. The caller draws the jitter; nothing here is random.

/// Delays that double from a first one up to a longest one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first_ms: u64,
    longest_ms: u64,
    failures: u32,
}

impl Backoff {
    /// Nothing failed yet. `first_ms` is at least 1, `longest_ms` at least `first_ms`.
    pub fn new(first_ms: u64, longest_ms: u64) -> Self {
        let first_ms = first_ms.max(1);
        Backoff { first_ms, longest_ms: longest_ms.max(first_ms), failures: 0 }
    }

    /// Milliseconds to wait after one more failure. `jitter` in [0, 1) spreads callers over the second
    /// half of the delay, so that they neither meet nor hurry; values outside are brought inside.
    pub fn next_ms(&mut self, jitter: f64) -> u64 {
        let doubled =
            self.first_ms.saturating_mul(1u64.checked_shl(self.failures.min(62)).unwrap_or(u64::MAX));
        self.failures = self.failures.saturating_add(1);
        let delay = doubled.min(self.longest_ms);
        let half = delay / 2;
        // As thousandths, because floating point loses the last digits of large delays.
        let thousandths = (jitter.clamp(0.0, 1.0) * 1_000.0) as u64;
        half + (u128::from(delay - half) * u128::from(thousandths) / 1_000) as u64
    }

    /// It worked: the next failure starts from the first delay.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delays_double_until_the_longest() {
        let mut backoff = Backoff::new(100, 1_000);
        let delays: Vec<u64> = (0..6).map(|_| backoff.next_ms(1.0)).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1_000, 1_000]);
        assert_eq!((backoff.failures(), backoff.next_ms(0.0)), (6, 500));
        backoff.reset();
        assert_eq!(backoff.next_ms(0.5), 75);
    }

    proptest! {
        #[test]
        fn delays_stay_within_bounds(first in 0u64.., longest in 0u64.., jitter in -1.0f64..2.0, failures in 0usize..100) {
            let mut backoff = Backoff::new(first, longest);
            let bound = longest.max(first).max(1);
            for _ in 0..failures {
                let delay = backoff.next_ms(jitter);
                prop_assert!(delay <= bound && delay >= first.min(bound) / 2);
            }
        }
    }
}
