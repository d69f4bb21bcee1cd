//! How long Raft waits: from what disks and the ways between nodes were measured to take.
//!
//! All waiting hangs on one number, the leader's heartbeat ("beat"); election timeout and lease are multiples of it, so
//! nodes that hear the same beat wait alike. The leader takes it from the slowest disk and the longest way among the
//! voters, its heartbeats carry it, and their answers bring the measurements. Openraft lets neither be changed while it
//! runs, so the shell stretches its clock instead (`node/src/cluster/pace.rs`).
//!
//! The arithmetic, with `R` and `F` for what 99 of 100 answers and 99 of 100 synced writes take, and a quarter on top for
//! what measuring rounds off:
//! - An answer to a heartbeat must be back before the next one, or openraft gives it up: `beat >= R`. One that waits for
//!   the follower's disk may be given up, for the lease is eight beats.
//! - A vote needs two round trips and two synced writes; drawn timeouts lie four beats apart, so that candidates seldom
//!   tie: `4 beats >= 2 (R + F)`. Openraft waits three beats for a vote, which is one of each, and has it then.
//! - A follower elects after lease and timeout, 12 to 16 beats of silence: eleven heartbeats in a row must be lost. A leader
//!   whose answers are all late for eight beats stops by itself.
//!
//! Never: asks a clock, or follows a single slow write.

use std::collections::BTreeMap;
use std::time::Duration;

use quire_proto::id::{Millis, NodeId};

/// Of a healthy LAN with disks that sync in less than 160 ms: a silent host is given up after 1.2 to 1.6 s. Openraft drops
/// answers that take longer than a beat, and a leader that had none for eight beats falls silent itself; six busy loops
/// beside three nodes on two cores did not upset this, and take some 100 ms away from a process at once.
pub const FLOOR_MS: u64 = 100;
/// At most 2.4 s of silence. A host that was stopped for a while measures its own pause as a slow disk and a long way: with
/// a ceiling of 500 ms the next silence was waited for 6 s (measured). With worse disks elections may be needless, and
/// `doctor` says so.
pub const CEILING_MS: u64 = 150;
/// As long as nothing is measured.
pub const UNKNOWN_MS: u64 = FLOOR_MS;

/// Timeouts in beats: the shortest and the longest that is drawn; a lease is as long as the latter.
pub const ELECTION_BEATS: (u64, u64) = (4, 8);

/// What is measured counts for one to two of these, milliseconds: enough for 150 renewals of a claim.
const WINDOW_MS: u64 = 150_000;
/// Fewer tell nothing of the slowest hundredth.
const ENOUGH: u32 = 100;
/// So long must a shorter beat have been enough, milliseconds, before it is shortened.
const CALM_MS: u64 = 60_000;

/// The longest silence of a dead host, milliseconds, before its followers ask for votes.
pub fn silent_ms(beat_ms: u64) -> u64 {
    beat_ms * 2 * ELECTION_BEATS.1
}

/// One candidate's turn, milliseconds: a round trip and a synced write of each vote, at the beat that these ask for.
pub fn turn_ms(beat_ms: u64) -> u64 {
    beat_ms * 6 / 5
}

/// How lately who takes the leadership over must have been heard, milliseconds: five heartbeats. Taking it over takes as
/// long at most, its election included; then another is tried.
pub fn succession_ms(beat_ms: u64) -> u64 {
    5 * beat_ms
}

/// A peer that acknowledged nothing for so long is dead for planning, milliseconds: ten heartbeats of the slowest pace.
pub const SILENT_MS: u64 = 10 * CEILING_MS;

/// What the beat should be.
pub fn beat_ms(fsync_us: u64, rtt_us: u64) -> u64 {
    let vote = fsync_us.saturating_add(rtt_us) / 2;
    let least = vote.max(rtt_us);
    (least.saturating_mul(5) / 4).div_ceil(1_000).clamp(FLOOR_MS, CEILING_MS)
}

/// A beat that somebody said, within bounds; 0 (of an older release) is [`UNKNOWN_MS`].
pub fn heard_ms(beat_ms: u64) -> u64 {
    if beat_ms == 0 { UNKNOWN_MS } else { beat_ms.clamp(FLOOR_MS, CEILING_MS) }
}

/// Buckets of a histogram: four an octave from 64 us on, the last from 57 s.
const BUCKETS: usize = 80;

/// A histogram of how long something took, of the last two to five minutes: 640 octets.
#[derive(Clone, Debug)]
pub struct Latencies {
    lately: [u32; BUCKETS],
    before: [u32; BUCKETS],
    since: Millis,
}

impl Default for Latencies {
    fn default() -> Self {
        Latencies { lately: [0; BUCKETS], before: [0; BUCKETS], since: Millis(0) }
    }
}

/// Four an octave, by the two bits below the highest.
fn bucket(us: u64) -> usize {
    let us = us.max(64);
    let octave = 63 - us.leading_zeros() as usize;
    let quarter = ((us >> (octave - 2)) & 3) as usize;
    ((octave - 6) * 4 + quarter).min(BUCKETS - 1)
}

/// The end of a bucket, microseconds.
fn end_of(bucket: usize) -> u64 {
    (5 + bucket as u64 % 4) << (bucket / 4 + 4)
}

impl Latencies {
    /// It took so long.
    pub fn handle(&mut self, took: Duration, now: Millis) {
        self.turn(now);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.lately.get_mut(bucket(us)) {
            *count = count.saturating_add(1);
        }
    }

    fn turn(&mut self, now: Millis) {
        let age = now.0.saturating_sub(self.since.0);
        if age < WINDOW_MS {
            return;
        }
        let lately = std::mem::replace(&mut self.lately, [0; BUCKETS]);
        self.before = if age < 2 * WINDOW_MS { lately } else { [0; BUCKETS] };
        self.since = now;
    }

    /// What 99 of 100 did not exceed, microseconds, rounded up by a quarter at most; `None` where too few are known.
    pub fn p99_us(&mut self, now: Millis) -> Option<u64> {
        self.turn(now);
        let counts =
            self.lately.iter().zip(&self.before).map(|(one, other)| u64::from(*one) + u64::from(*other));
        let all: u64 = counts.clone().sum();
        if all < u64::from(ENOUGH) {
            return None;
        }
        let mut above = all / 100;
        let slowest = counts.enumerate().collect::<Vec<_>>().into_iter().rev().find(|(_, count)| {
            let found = *count > above;
            above = above.saturating_sub(*count);
            found
        });
        slowest.map(|(bucket, _)| end_of(bucket))
    }
}

/// What one node measured, and what others told it of themselves.
#[derive(Clone, Debug, Default)]
pub struct Measures {
    fsync: Latencies,
    peers: BTreeMap<NodeId, Peer>,
}

#[derive(Clone, Debug, Default)]
struct Peer {
    rtt: Latencies,
    fsync_us: u64,
}

/// Of one node; 0 is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// 99 of 100 synced writes took no longer.
    pub fsync_us: u64,
    /// 99 of 100 answers took no longer; of this node itself never known.
    pub rtt_us: u64,
}

impl Measures {
    /// A write here was on disk after so long.
    pub fn handle_fsync(&mut self, took: Duration, now: Millis) {
        self.fsync.handle(took, now);
    }

    /// A peer answered after so long.
    pub fn handle_answer(&mut self, peer: NodeId, took: Duration, now: Millis) {
        self.peers.entry(peer).or_default().rtt.handle(took, now);
    }

    /// A peer says how long its own writes take; 0 is not known.
    pub fn handle_report(&mut self, peer: NodeId, fsync_us: u64) {
        self.peers.entry(peer).or_default().fsync_us = fsync_us;
    }

    /// Forgets those who are no members.
    pub fn retain(&mut self, member: impl Fn(NodeId) -> bool) {
        self.peers.retain(|peer, _| member(*peer));
    }

    /// This node's own.
    pub fn own(&mut self, now: Millis) -> Measured {
        Measured { fsync_us: self.fsync.p99_us(now).unwrap_or(0), rtt_us: 0 }
    }

    /// Of a peer.
    pub fn of(&mut self, peer: NodeId, now: Millis) -> Measured {
        let Some(peer) = self.peers.get_mut(&peer) else { return Measured::default() };
        Measured { fsync_us: peer.fsync_us, rtt_us: peer.rtt.p99_us(now).unwrap_or(0) }
    }

    /// The beat for these peers and this node: the slowest disk and the longest way; peers that answer nobody don't
    /// count. `None` where nothing is known.
    pub fn wanted_ms(&mut self, peers: impl IntoIterator<Item = NodeId>, now: Millis) -> Option<u64> {
        let own = self.own(now);
        let mut heard: Vec<Measured> = peers.into_iter().map(|peer| self.of(peer, now)).collect();
        heard.retain(|peer| peer.rtt_us > 0);
        if own.fsync_us == 0 && heard.is_empty() {
            return None;
        }
        heard.push(own);
        let slowest = heard.iter().map(|node| node.fsync_us).max().unwrap_or(0);
        let longest = heard.iter().map(|node| node.rtt_us).max().unwrap_or(0);
        Some(beat_ms(slowest, longest))
    }
}

/// The beat in force on one node: at once longer, but not more than twice at a time, so that followers hear of it before
/// they miss a heartbeat; shorter only after a while in which that was enough.
#[derive(Clone, Copy, Debug)]
pub struct Pacemaker {
    beat_ms: u64,
    calm_since: Option<Millis>,
}

impl Pacemaker {
    /// From what was in force before.
    pub fn new(beat_ms: u64) -> Self {
        Pacemaker { beat_ms: heard_ms(beat_ms), calm_since: None }
    }

    /// What is in force.
    pub fn beat_ms(&self) -> u64 {
        self.beat_ms
    }

    /// The leader said so.
    pub fn handle_leader(&mut self, beat_ms: u64) {
        *self = Pacemaker::new(beat_ms);
    }

    /// This node leads, and measured that it should be so; asked about once a second.
    pub fn handle_wanted(&mut self, wanted: Option<u64>, now: Millis) {
        let Some(wanted) = wanted else { return };
        if wanted > self.beat_ms {
            *self = Pacemaker { beat_ms: wanted.min(2 * self.beat_ms), calm_since: None };
        } else if wanted == self.beat_ms || (wanted * 4 > self.beat_ms * 3 && wanted > FLOOR_MS) {
            // A little less is left alone, but for the floor.
            self.calm_since = None;
        } else if now.0.saturating_sub(self.calm_since.get_or_insert(now).0) >= CALM_MS {
            *self = Pacemaker { beat_ms: wanted.max(self.beat_ms / 2), calm_since: None };
        }
    }

    /// Nobody leads, as far as this node knows: it waits longer where its own measurements say so, and never less.
    pub fn handle_alone(&mut self, wanted: Option<u64>) {
        let longer = wanted.unwrap_or(0).min(2 * self.beat_ms).max(self.beat_ms);
        *self = Pacemaker { beat_ms: longer, calm_since: None };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_healthy_lan_gives_a_silent_host_up_soon_and_a_slow_disk_gets_its_time() {
        assert_eq!(beat_ms(8_000, 2_000), FLOOR_MS);
        assert!(silent_ms(FLOOR_MS) < 2_000);
        assert_eq!((beat_ms(200_000, 10_000), beat_ms(10_000, 200_000)), (132, CEILING_MS));
        assert_eq!(beat_ms(3_000_000, 0), CEILING_MS);
        assert_eq!((heard_ms(0), heard_ms(1), heard_ms(u64::MAX)), (UNKNOWN_MS, FLOOR_MS, CEILING_MS));
    }

    #[test]
    fn a_hundredth_may_be_slow_and_old_measurements_fade() {
        let mut latencies = Latencies::default();
        for n in 0..200 {
            latencies.handle(if n % 100 == 0 { ms(900) } else { ms(3) }, Millis(n));
        }
        let p99 = latencies.p99_us(Millis(200)).unwrap();
        assert!((3_000..=3_750).contains(&p99), "{p99}");
        (0..8).for_each(|_| latencies.handle(ms(900), Millis(300)));
        assert!(latencies.p99_us(Millis(400)).unwrap() >= 900_000);
        assert_eq!(latencies.p99_us(Millis(400 + 2 * WINDOW_MS)), None);
    }

    #[test]
    fn the_slowest_voter_counts_and_those_who_say_nothing_of_themselves_keep_the_old_beat() {
        let (mut measures, now) = (Measures::default(), Millis(1));
        assert_eq!(measures.wanted_ms([NodeId(2)], now), None);
        for _ in 0..100 {
            measures.handle_fsync(ms(2), now);
            measures.handle_answer(NodeId(2), ms(1), now);
            measures.handle_answer(NodeId(3), ms(1), now);
        }
        assert_eq!(measures.wanted_ms([NodeId(2)], now), Some(UNKNOWN_MS), "a release that does not measure");
        measures.handle_report(NodeId(2), 2_000);
        assert_eq!(measures.wanted_ms([NodeId(2)], now), Some(FLOOR_MS));
        measures.handle_report(NodeId(3), 400_000);
        assert!(measures.wanted_ms([NodeId(2), NodeId(3)], now).unwrap() == CEILING_MS);
        assert_eq!(
            measures.wanted_ms([NodeId(2), NodeId(9)], now),
            Some(FLOOR_MS),
            "the dead slow nobody down"
        );
        measures.retain(|peer| peer == NodeId(2));
        assert_eq!(measures.of(NodeId(3), now), Measured::default());
    }

    #[test]
    fn the_beat_rises_in_steps_and_falls_after_calm() {
        let mut pacemaker = Pacemaker::new(0);
        pacemaker.handle_wanted(Some(CEILING_MS), Millis(0));
        assert_eq!(pacemaker.beat_ms(), CEILING_MS);
        let mut now = 10;
        for expected in [CEILING_MS, FLOOR_MS, FLOOR_MS] {
            pacemaker.handle_wanted(Some(FLOOR_MS), Millis(now));
            assert_eq!(pacemaker.beat_ms(), expected, "at {now}");
            now += CALM_MS;
            pacemaker.handle_wanted(Some(FLOOR_MS), Millis(now));
        }
        pacemaker.handle_alone(Some(140));
        assert_eq!(pacemaker.beat_ms(), 140);
        pacemaker.handle_alone(None);
        pacemaker.handle_leader(120);
        assert_eq!(pacemaker.beat_ms(), 120);
    }

    proptest! {
        #[test]
        fn more_waiting_is_never_a_shorter_beat(fsync in 0u64..5_000_000, rtt in 0u64..5_000_000, more in 0u64..1_000_000) {
            let beat = beat_ms(fsync, rtt);
            prop_assert!((FLOOR_MS..=CEILING_MS).contains(&beat));
            prop_assert!(beat_ms(fsync + more, rtt) >= beat && beat_ms(fsync, rtt + more) >= beat);
            prop_assert!(beat == CEILING_MS || beat * 1_000 >= rtt, "an answer fits into a beat");
            prop_assert!(beat == CEILING_MS || 3 * beat * 1_000 >= fsync + rtt, "a vote fits into its patience");
            let spread = beat * (ELECTION_BEATS.1 - ELECTION_BEATS.0);
            prop_assert!(beat == CEILING_MS || spread * 1_000 >= 2 * (fsync + rtt), "a vote fits between two draws");
        }

        #[test]
        fn what_is_told_is_what_was_put_in_rounded_up_by_a_quarter_at_most(us in 64u64..50_000_000) {
            let mut latencies = Latencies::default();
            (0..ENOUGH).for_each(|_| latencies.handle(Duration::from_micros(us), Millis(0)));
            let p99 = latencies.p99_us(Millis(0)).unwrap();
            prop_assert!(p99 >= us && p99 <= us + us / 4 + 1, "{us} became {p99}");
        }

        /// Under any measurements, no step more than doubles or halves it, it keeps to the bounds, and a constant
        /// wish is met and then left alone.
        #[test]
        fn the_beat_settles(wishes in prop::collection::vec((prop::option::of(40u64..2_000), any::<bool>()), 1..60), end in FLOOR_MS..=CEILING_MS) {
            let (mut pacemaker, mut now) = (Pacemaker::new(0), 0);
            for (wanted, leads) in wishes {
                let before = pacemaker.beat_ms();
                let wanted = wanted.map(|wanted| wanted.clamp(FLOOR_MS, CEILING_MS));
                now += 20_000;
                if leads { pacemaker.handle_wanted(wanted, Millis(now)) } else { pacemaker.handle_alone(wanted) }
                let after = pacemaker.beat_ms();
                prop_assert!(after <= 2 * before && 2 * after >= before && (FLOOR_MS..=CEILING_MS).contains(&after));
                prop_assert!(leads || after >= before);
            }
            for _ in 0..600 {
                now += 1_000;
                pacemaker.handle_wanted(Some(end), Millis(now));
            }
            let settled = pacemaker.beat_ms();
            prop_assert!(settled >= end && settled * 3 <= end * 4 + 3, "{settled} where {end} was wanted");
            pacemaker.handle_wanted(Some(end), Millis(now + 10 * CALM_MS));
            prop_assert_eq!(pacemaker.beat_ms(), settled);
        }
    }
}
