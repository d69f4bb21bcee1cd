//! How long Raft waits: from what disks and the ways between nodes were measured to take.
//!
//! All waiting hangs on one number, the leader's heartbeat ("beat"); election timeout and lease are multiples of it, so
//! nodes that hear the same beat wait alike. The leader takes it from the slowest disk and the longest way among the
//! voters, its heartbeats carry it, and their answers bring the measurements. Openraft lets neither be changed while it
//! runs, so the shell stretches its clock instead (`node/src/cluster/pace.rs`).
//!
//! The arithmetic, with a quarter on top for what measuring rounds off:
//! - An answer to a heartbeat must be back before the next one, or openraft gives it up: a beat is as long as nine of ten
//!   answers take. One that waits for the follower's disk, or for a host that stood still, may be given up, for the lease is
//!   eight beats. (By 99 of 100 three pauses made a minute's beat of 0.5 s, and the next silence lasted 6 s.)
//! - A vote needs two round trips and two synced writes, `R` and `F` for 99 of 100; drawn timeouts lie four beats apart, so
//!   that candidates seldom tie: `4 beats >= 2 (R + F)`. Openraft waits three beats for a vote, which is one of each, and has
//!   it then. A tie costs a second election, so for votes the beat is made longer up to a bound only ([`VOTE_MS`]).
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
/// For the sake of votes, which wait for disks, the beat is never longer: 2.4 s of silence. Slower disks do not make
/// elections, they make them last longer, and `doctor` says so. (Where one heartbeat's answer in ten waits for a disk, that
/// counts as way.)
pub const VOTE_MS: u64 = 150;
/// Of ways on which an answer takes half a second: 8 s of silence.
pub const CEILING_MS: u64 = 500;
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

/// A peer that acknowledged nothing for so long is dead for planning, milliseconds: fifteen heartbeats, about as long as a
/// silent leader is waited for.
pub fn absent_ms(beat_ms: u64) -> u64 {
    15 * beat_ms
}

/// What the beat should be, where 99 of 100 synced writes take `fsync_us` and answers take `way`.
pub fn beat_ms(fsync_us: u64, way: Way) -> u64 {
    let with_margin = |us: u64| (us.saturating_mul(5) / 4).div_ceil(1_000);
    let vote = with_margin(fsync_us.saturating_add(way.p99_us) / 2).min(VOTE_MS);
    vote.max(with_margin(way.p90_us)).clamp(FLOOR_MS, CEILING_MS)
}

/// How long the answers of a peer take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Nine of ten take no longer, microseconds.
    pub p90_us: u64,
    /// 99 of 100 take no longer, microseconds.
    pub p99_us: u64,
}

impl Way {
    fn longest(self, other: Way) -> Way {
        Way { p90_us: self.p90_us.max(other.p90_us), p99_us: self.p99_us.max(other.p99_us) }
    }
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

    /// What `percent` of 100 did not exceed, microseconds, rounded up by a quarter at most; `None` where too few are known.
    pub fn percentile_us(&mut self, percent: u64, now: Millis) -> Option<u64> {
        self.turn(now);
        let counts =
            self.lately.iter().zip(&self.before).map(|(one, other)| u64::from(*one) + u64::from(*other));
        let all: u64 = counts.clone().sum();
        if all < u64::from(ENOUGH) {
            return None;
        }
        let mut above = all * (100 - percent.min(100)) / 100;
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
        Measured { fsync_us: self.fsync.percentile_us(99, now).unwrap_or(0), rtt_us: 0 }
    }

    /// Of a peer.
    pub fn of(&mut self, peer: NodeId, now: Millis) -> Measured {
        let rtt_us = self.way(peer, now).map_or(0, |way| way.p99_us);
        Measured { fsync_us: self.peers.get(&peer).map_or(0, |peer| peer.fsync_us), rtt_us }
    }

    fn way(&mut self, peer: NodeId, now: Millis) -> Option<Way> {
        let rtt = &mut self.peers.get_mut(&peer)?.rtt;
        Some(Way { p90_us: rtt.percentile_us(90, now)?, p99_us: rtt.percentile_us(99, now)? })
    }

    /// The beat for these peers and this node: the slowest disk and the longest way; peers that answer nobody don't
    /// count. `None` where nothing is known.
    pub fn wanted_ms(&mut self, peers: impl IntoIterator<Item = NodeId>, now: Millis) -> Option<u64> {
        let mut slowest = self.own(now).fsync_us;
        let mut longest: Option<Way> = None;
        for peer in peers {
            let Some(way) = self.way(peer, now) else { continue };
            longest = Some(way.longest(longest.unwrap_or_default()));
            slowest = slowest.max(self.of(peer, now).fsync_us);
        }
        (slowest > 0 || longest.is_some()).then(|| beat_ms(slowest, longest.unwrap_or_default()))
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
        let always = |us| Way { p90_us: us, p99_us: us };
        assert_eq!(beat_ms(8_000, always(2_000)), FLOOR_MS);
        assert!(silent_ms(FLOOR_MS) < 2_000 && silent_ms(VOTE_MS) < 2_500);
        assert_eq!((beat_ms(200_000, always(10_000)), beat_ms(10_000, always(200_000))), (132, 250));
        assert_eq!(
            (beat_ms(3_000_000, Way::default()), beat_ms(0, always(3_000_000))),
            (VOTE_MS, CEILING_MS)
        );
        assert_eq!((heard_ms(0), heard_ms(1), heard_ms(u64::MAX)), (UNKNOWN_MS, FLOOR_MS, CEILING_MS));
    }

    #[test]
    fn a_hundredth_may_be_slow_and_old_measurements_fade() {
        let mut latencies = Latencies::default();
        for n in 0..200 {
            latencies.handle(if n % 100 == 0 { ms(900) } else { ms(3) }, Millis(n));
        }
        let p99 = latencies.percentile_us(99, Millis(200)).unwrap();
        assert!((3_000..=3_750).contains(&p99), "{p99}");
        (0..8).for_each(|_| latencies.handle(ms(900), Millis(300)));
        assert!(latencies.percentile_us(99, Millis(400)).unwrap() >= 900_000);
        assert_eq!(latencies.percentile_us(99, Millis(400 + 2 * WINDOW_MS)), None);
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
        assert_eq!(measures.wanted_ms([NodeId(2), NodeId(3)], now), Some(VOTE_MS));
        assert_eq!(
            measures.wanted_ms([NodeId(2), NodeId(9)], now),
            Some(FLOOR_MS),
            "the dead slow nobody down"
        );
        measures.retain(|peer| peer == NodeId(2));
        assert_eq!(measures.of(NodeId(3), now), Measured::default());
    }

    /// A host that is stopped answers late to what waits for it then, and finds its own writes late when it goes on.
    #[test]
    fn hosts_that_stood_still_do_not_make_the_next_silence_longer_than_votes_may() {
        let (mut measures, now) = (Measures::default(), Millis(1));
        for n in 0..100 {
            let took = if n % 11 == 0 { ms(5_000) } else { ms(1) };
            measures.handle_fsync(took, now);
            measures.handle_answer(NodeId(2), took, now);
        }
        measures.handle_report(NodeId(2), 5_000_000);
        assert_eq!(measures.wanted_ms([NodeId(2)], now), Some(VOTE_MS));
        (0..20).for_each(|_| measures.handle_answer(NodeId(2), ms(200), now));
        assert!(measures.wanted_ms([NodeId(2)], now).unwrap() > VOTE_MS, "a way that is usually long");
    }

    #[test]
    fn the_beat_rises_in_steps_and_falls_after_calm() {
        let mut pacemaker = Pacemaker::new(0);
        for expected in [2 * FLOOR_MS, 4 * FLOOR_MS, CEILING_MS] {
            pacemaker.handle_wanted(Some(CEILING_MS), Millis(0));
            assert_eq!(pacemaker.beat_ms(), expected);
        }
        let mut now = 10;
        for expected in [CEILING_MS, CEILING_MS / 2, CEILING_MS / 4, FLOOR_MS] {
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
        fn more_waiting_is_never_a_shorter_beat(fsync in 0u64..5_000_000, usual in 0u64..5_000_000, more in 0u64..1_000_000) {
            let way = Way { p90_us: usual, p99_us: usual + more };
            let beat = beat_ms(fsync, way);
            prop_assert!((FLOOR_MS..=CEILING_MS).contains(&beat));
            let longer = |p90_us, p99_us| beat_ms(fsync, Way { p90_us, p99_us });
            prop_assert!(beat_ms(fsync + more, way) >= beat && longer(usual + more, usual + more) >= beat);
            prop_assert!(longer(usual, usual) <= beat);
            prop_assert!(beat == CEILING_MS || beat * 1_000 >= usual, "an answer fits into a beat");
            let vote = fsync + way.p99_us;
            prop_assert!(beat >= VOTE_MS || 3 * beat * 1_000 >= vote, "a vote fits into its patience");
            let spread = beat * (ELECTION_BEATS.1 - ELECTION_BEATS.0);
            prop_assert!(beat >= VOTE_MS || spread * 1_000 >= 2 * vote, "a vote fits between two draws");
        }

        #[test]
        fn what_is_told_is_what_was_put_in_rounded_up_by_a_quarter_at_most(us in 64u64..50_000_000) {
            let mut latencies = Latencies::default();
            (0..ENOUGH).for_each(|_| latencies.handle(Duration::from_micros(us), Millis(0)));
            let p99 = latencies.percentile_us(99, Millis(0)).unwrap();
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
