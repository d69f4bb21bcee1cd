//! How fast one sweep goes below the engine's ceiling: additive increase, multiplicative decrease, and how many
//! transmissions an address needs at the loss there is. Pure; times are microseconds since the engine began.
//!
//! Only known responders tell of loss: an answer to the second transmission of a question says that the first one
//! came to nothing. What was sent before the last slowing down says nothing of the present rate, so it counts no more,
//! neither as a sign of loss nor as a transmission that an address has had.
//!
//! A sweep is slow because of its loss, of administrative prohibitions (a firewall that minds), of host-unreachable
//! storms (a router that answers for thousands of absent hosts a second) and of full queues on this machine. Closed
//! ports are no reason: a host that says so is well.

/// The least rate, packets a second: a /24 still takes less than a minute.
pub(crate) const FLOOR: u32 = 20;
/// Of 1000 transmissions to responders, so many may be lost without a change of pace: a radio link loses 50 without
/// being full, and slowing down would not help it.
const TOLERATED: u32 = 150;
/// Responders that must have been heard since the last change before loss is judged.
const EVIDENCE: u32 = 16;
/// Responders heard that make an estimate of loss good enough to send less because of it.
const ESTIMATE: u32 = 256;
/// Of a million responders, so many may be missed for loss; the goal is 1000 at the most.
const MISSED: f64 = 800e-6;
/// Between raises, microseconds.
const EPOCH: u64 = 100_000;
/// Raises until a rate that was halved is reached again.
const STEPS: u32 = 16;
/// Complaints (ICMP or full queues) within an epoch that slow a sweep down, beside a quarter of its packets.
const COMPLAINTS: u32 = 16;
/// Host-unreachable errors an epoch that are a storm: 1000 a second; routers limit themselves to about as many. Below
/// that they are what any network with absent hosts sends.
const STORM: u32 = 100;
/// Storms slow a sweep no further than this, packets a second: most addresses of most networks are absent.
const STORM_FLOOR: u32 = 500;

/// A sign that something between us and the peers minds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Complaint {
    /// A queue of this machine is full.
    Full,
    /// ICMP: communication is administratively prohibited.
    Prohibited,
    /// ICMP: no such host or network.
    NoHost,
}

/// The pace of one sweep.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    /// Packets a second; 0: nothing asked for slowness yet.
    rate: u32,
    /// What a raise adds.
    step: u32,
    /// When the next packet is due, nanoseconds.
    due: u64,
    /// When the rate last fell.
    fell_at: u64,
    /// When the present epoch began, and what was sent and complained of in it.
    epoch_at: u64,
    sent: u32,
    complaints: u32,
    no_hosts: u32,
    /// Packets since the rate last fell.
    sent_since: u64,
    /// Transmissions to responders since the rate last fell: answered and lost, of all and of those repeated in time.
    won: u32,
    lost: u32,
    timely_won: u32,
    timely_lost: u32,
    /// Transmissions that an address needs; 0 while too little is known.
    needed: u8,
}

impl Pace {
    /// When the next packet may go, microseconds.
    pub(crate) fn open_at(&self) -> u64 {
        if self.rate == 0 { 0 } else { self.due.saturating_sub(BURST).div_ceil(1000) }
    }

    pub(crate) fn is_open(&self, now: u64) -> bool {
        self.rate == 0 || self.open_at() <= now
    }

    /// The present limit, packets a second; 0 is none.
    #[cfg(test)]
    pub(crate) fn rate(&self) -> u32 {
        self.rate
    }

    /// True once the sweep had to slow down.
    pub(crate) fn has_fallen(&self) -> bool {
        self.rate > 0
    }

    /// True when a transmission of that time belongs to a rate that was too high.
    pub(crate) fn is_void(&self, sent_at: u64) -> bool {
        sent_at < self.fell_at
    }

    /// Notes a packet.
    pub(crate) fn sent(&mut self, now: u64) {
        if now >= self.epoch_at + EPOCH {
            self.turn(now);
        }
        self.sent += 1;
        self.sent_since += 1;
        if self.rate > 0 {
            self.due = self.due.max(now * 1000) + 1_000_000_000 / u64::from(self.rate);
        }
    }

    /// Notes an answer to a question whose first `lost` transmissions came to nothing. `timely`: this address is
    /// repeated as soon as its time has come, not after new ones, so its loss is no older than its luck.
    pub(crate) fn heard(&mut self, first_sent: u64, lost: u8, timely: bool, now: u64) {
        if self.is_void(first_sent) {
            return;
        }
        self.won += 1;
        self.lost += u32::from(lost);
        if timely {
            self.timely_won += 1;
            self.timely_lost += u32::from(lost);
        }
        self.estimate();
        let all = self.timely_won + self.timely_lost;
        if self.timely_won >= EVIDENCE && self.timely_lost * 1000 > all * TOLERATED {
            // What got through, squared: those that no transmission reached are not seen, so loss is more than it seems.
            let through = 1000 - self.timely_lost * 1000 / all;
            self.fall((through * through / 1000).clamp(200, 800), FLOOR, now);
        }
    }

    /// Notes a complaint.
    pub(crate) fn complain(&mut self, complaint: Complaint, now: u64) {
        match complaint {
            Complaint::NoHost => self.no_hosts += 1,
            Complaint::Full | Complaint::Prohibited => self.complaints += 1,
        }
        if self.complaints >= COMPLAINTS.max(self.sent / 4) {
            self.fall(500, FLOOR, now);
        } else if self.no_hosts >= STORM && now < self.epoch_at + EPOCH {
            self.fall(700, STORM_FLOOR, now);
        }
    }

    /// Transmissions that an address needs at the loss there is, where that is known well.
    pub(crate) fn needed(&self) -> Option<u8> {
        (self.needed > 0).then_some(self.needed)
    }

    fn estimate(&mut self) {
        // Where there was loss a rough estimate is better than none: it can only ask for more.
        if self.won < if self.has_fallen() { EVIDENCE } else { ESTIMATE } {
            return;
        }
        // One more on either side: an estimate of none is not certainty.
        let loss = f64::from(self.lost + 1) / f64::from(self.won + self.lost + 2);
        self.needed = (MISSED.ln() / loss.ln()).ceil().clamp(2.0, 15.0) as u8;
    }

    fn turn(&mut self, now: u64) {
        let epochs = u32::try_from((now - self.epoch_at) / EPOCH).unwrap_or(u32::MAX);
        if self.rate > 0 {
            self.rate = self.rate.saturating_add(self.step.saturating_mul(epochs.min(STEPS)));
        }
        (self.epoch_at, self.sent, self.complaints, self.no_hosts) = (now, 0, 0, 0);
    }

    fn fall(&mut self, kept_per_mille: u32, floor: u32, now: u64) {
        // Less than an epoch tells no rate.
        let span = now.saturating_sub(self.fell_at).max(EPOCH / 4);
        let measured = self.sent_since.saturating_mul(1_000_000) / span;
        let measured = u32::try_from(measured).unwrap_or(u32::MAX);
        let now_at = if self.rate == 0 { measured } else { self.rate.min(measured.max(FLOOR)) };
        let next = (u64::from(now_at) * u64::from(kept_per_mille) / 1000) as u32;
        if next < floor && floor > FLOOR {
            return;
        }
        let rate = next.max(FLOOR);
        *self = Pace {
            rate,
            step: (rate / STEPS).max(1),
            due: now * 1000,
            // What is sent within this very microsecond still belongs to the old rate.
            fell_at: now + 1,
            epoch_at: now,
            ..Pace::default()
        };
    }
}

/// How far the even pace may be run ahead of, nanoseconds, as the engine's ceiling.
const BURST: u64 = 4_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// A sweep that sends for `seconds`, as fast as it may and at most `ceiling`, through a bottleneck; gives its rate.
    fn drive(pace: &mut Pace, ceiling: u64, bottleneck: u64, seconds: u64) -> u64 {
        let (mut sent, mut seen, mut credit) = (0, 0u64, 0u64);
        let gap = SECOND / ceiling;
        for now in (0..seconds * SECOND).step_by(gap as usize) {
            credit = (credit + bottleneck * gap).min(SECOND * 20);
            if !pace.is_open(now) {
                continue;
            }
            pace.sent(now);
            sent += 1;
            // Every fourth address is a responder.
            if sent % 4 == 0 {
                let through = credit >= SECOND;
                pace.heard(now, u8::from(!through), true, now);
                seen += 1;
            }
            credit = credit.saturating_sub(SECOND);
        }
        assert!(seen > 0);
        u64::from(pace.rate())
    }

    #[test]
    fn without_loss_nothing_is_limited_and_without_knowledge_nothing_is_spared() {
        let mut pace = Pace::default();
        assert_eq!((pace.rate(), pace.needed()), (0, None));
        for now in 0..1000 {
            pace.sent(now);
            pace.heard(now, u8::from(now % 50 == 0), true, now);
        }
        assert_eq!(pace.rate(), 0, "two percent is weather");
        assert_eq!(pace.needed(), Some(2));
    }

    #[test]
    fn more_loss_needs_more_transmissions() {
        for (lost_of_1000, needed) in [(0, 2), (20, 2), (40, 3), (80, 3), (140, 4)] {
            let mut pace = Pace::default();
            for n in 0..1000 {
                pace.heard(0, u8::from(n % 1000 < lost_of_1000), false, 0);
            }
            assert_eq!(pace.needed(), Some(needed), "{lost_of_1000} of 1000");
        }
    }

    #[test]
    fn loss_halves_and_quiet_raises_again_by_equal_steps() {
        let mut pace = Pace::default();
        for n in 0..10_000 {
            pace.sent(n * 100);
        }
        for _ in 0..EVIDENCE {
            pace.heard(0, 1, true, SECOND);
        }
        let fallen = pace.rate();
        assert!((2_400..=2_500).contains(&fallen), "{fallen}");
        // Answers to what was sent before do not make it fall again.
        for _ in 0..EVIDENCE {
            pace.heard(SECOND, 1, true, SECOND + 5);
        }
        assert_eq!(pace.rate(), fallen);
        let mut rates = Vec::new();
        for epoch in 1..=4 {
            pace.sent(SECOND + epoch * EPOCH + 1);
            rates.push(pace.rate());
        }
        assert!(rates.windows(2).all(|pair| pair[1] - pair[0] == fallen / STEPS), "{rates:?}");
    }

    #[test]
    fn it_never_falls_below_the_floor() {
        let mut pace = Pace::default();
        for now in (0..3000 * SECOND).step_by(10_000) {
            if pace.is_open(now) {
                pace.sent(now);
                pace.heard(now, 3, true, now);
            }
        }
        assert!(pace.rate() >= FLOOR && pace.rate() < 2 * FLOOR, "{}", pace.rate());
    }

    #[test]
    fn prohibitions_slow_down_and_closed_or_absent_hosts_hardly() {
        let sweep = |complaint: Complaint| {
            let mut pace = Pace::default();
            for now in (0..SECOND).step_by(100) {
                if pace.is_open(now) {
                    pace.sent(now);
                    pace.complain(complaint, now);
                }
            }
            pace.rate()
        };
        assert!((FLOOR..200).contains(&sweep(Complaint::Prohibited)), "{}", sweep(Complaint::Prohibited));
        assert!(sweep(Complaint::Full) > 0);
        assert!((STORM_FLOOR..5000).contains(&sweep(Complaint::NoHost)), "{}", sweep(Complaint::NoHost));
        // At the default ceiling absent hosts are no storm.
        let mut pace = Pace::default();
        for now in (0..10 * SECOND).step_by(2000) {
            pace.sent(now);
            pace.complain(Complaint::NoHost, now);
        }
        assert_eq!(pace.rate(), 0);
    }

    #[test]
    fn it_stays_near_what_a_bottleneck_takes() {
        for bottleneck in [300, 2_000, 8_000] {
            let rate = drive(&mut Pace::default(), 20_000, bottleneck, 30);
            assert!(rate > bottleneck / 3 && rate < bottleneck * 2, "{rate} for {bottleneck}");
        }
    }
}
