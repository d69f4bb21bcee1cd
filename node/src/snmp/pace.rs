//! How fast, how long: round-trip estimates, the packet ceiling, and the one source of chance.
//! Times are microseconds since the engine began.

/// What RFC 6298 section 2.3 has as the clock's granularity, microseconds: a device that gives 25 answers a second holds one
/// back for 40 ms behind another, and this machine may be busy for as long. Without it the timeout of a steady line is its
/// round trip, and nearly every answer that is a little late is asked for twice.
const LEAST_MARGIN: u64 = 100_000;

/// Round-trip estimate of one peer or one sweep (RFC 6298), in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rtt {
    smoothed: u32,
    variation: u32,
}

impl Rtt {
    /// Takes in a measurement that surely belongs to one transmission.
    pub(crate) fn sample(&mut self, micros: u64) {
        let sample = u32::try_from(micros.max(1)).unwrap_or(u32::MAX / 8).min(u32::MAX / 8);
        if self.smoothed == 0 {
            // RFC 6298 §2.2
            (self.smoothed, self.variation) = (sample, sample / 2);
        } else {
            // RFC 6298 §2.3: beta 1/4, alpha 1/8.
            self.variation = self.variation - self.variation / 4 + self.smoothed.abs_diff(sample) / 4;
            self.smoothed = self.smoothed - self.smoothed / 8 + sample / 8;
        }
    }

    /// How long a request waits that has the device to itself: beyond the smoothed round trip never less than
    /// [`LEAST_MARGIN`].
    pub(crate) fn patience(&self) -> Option<u64> {
        let margin = (4 * u64::from(self.variation)).max(LEAST_MARGIN);
        (self.smoothed > 0).then(|| u64::from(self.smoothed) + margin)
    }

    /// The retransmission timeout, once anything has been measured.
    pub(crate) fn timeout(&self) -> Option<u64> {
        (self.smoothed > 0).then(|| u64::from(self.smoothed) + 4 * u64::from(self.variation))
    }
}

/// A ceiling of packets a second, hard but for a burst of [`BURST`].
#[derive(Debug)]
pub(crate) struct Ceiling {
    /// Nanoseconds between packets; 0 is no ceiling.
    interval: u64,
    /// When the next packet would be due at an even pace, nanoseconds.
    due: u64,
}

/// How far the even pace may be run ahead of, nanoseconds: at 500 packets a second that is 2 packets. Less, and
/// a timer that wakes late (1 ms is tokio's grain) would cost rate.
const BURST: u64 = 4_000_000;

impl Ceiling {
    pub(crate) fn new(rate: u32) -> Ceiling {
        Ceiling { interval: interval(rate), due: 0 }
    }

    pub(crate) fn set(&mut self, rate: u32) {
        self.interval = interval(rate);
    }

    pub(crate) fn is_none(&self) -> bool {
        self.interval == 0
    }

    /// Takes leave to send one packet.
    pub(crate) fn take(&mut self, now: u64) -> bool {
        let now = now * 1000;
        if self.interval == 0 {
            return true;
        }
        if self.due > now + BURST {
            return false;
        }
        self.due = self.due.max(now) + self.interval;
        true
    }

    /// When leave will be given, microseconds.
    pub(crate) fn open_at(&self) -> u64 {
        if self.interval == 0 { 0 } else { self.due.saturating_sub(BURST).div_ceil(1000) }
    }
}

fn interval(rate: u32) -> u64 {
    if rate == 0 { 0 } else { 1_000_000_000 / u64::from(rate) }
}

/// SplitMix64: the same seed, the same run. Not for keys.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Evenly from `0..bound`; `bound` must not be 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn estimate_follows_rfc_6298() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.timeout(), None);
        rtt.sample(100_000);
        assert_eq!(rtt.timeout(), Some(300_000));
        for _ in 0..100 {
            rtt.sample(100_000);
        }
        assert!(rtt.timeout().unwrap() < 110_000);
    }

    #[test]
    fn an_answer_that_is_held_back_behind_another_is_not_asked_for_twice() {
        let mut rtt = Rtt::default();
        assert_eq!(rtt.patience(), None);
        (0..100).for_each(|_| rtt.sample(200_000));
        let (timeout, patience) = (rtt.timeout().unwrap(), rtt.patience().unwrap());
        assert!(timeout < 210_000, "a steady line: {timeout}");
        assert!((300_000..310_000).contains(&patience), "{patience}");
        rtt.sample(2_000_000);
        assert!(rtt.patience() > Some(1_000_000), "one that is not");
    }

    #[test]
    fn no_second_has_more_than_the_ceiling_and_its_burst() {
        let mut ceiling = Ceiling::new(500);
        let sent: Vec<u64> = (0..3_000_000).step_by(100).filter(|now| ceiling.take(*now)).collect();
        for window in sent.windows(504) {
            assert!(
                window[503] - window[0] >= 1_000_000,
                "504 packets within {} us",
                window[503] - window[0]
            );
        }
        assert!(sent.len() >= 1500);
        assert!(Ceiling::new(0).take(0));
    }
}
