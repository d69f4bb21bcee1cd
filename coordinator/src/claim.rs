//! The leader's claim: the right to plan and to use the upstream link.
//!
//! Raft's state flag says `Leader` long after quorum is gone, so it opens no link. A claim is an entry
//! committed in this leadership; its log index is the epoch that travels with everything done under it.
//! It is held for [`LEASE_MS`] counted from when its last committed renewal was *sent*, so whoever
//! stands cut off loses it by its own clock, and the Web Admin refuses its epoch once a later one spoke.
//!
//! The shell: `handle_leadership` on every change of Raft's metrics; propose what `poll` answers as
//! `Command::Claim{renews}` and hand the outcome back together with the same [`ProposeClaim`]; call
//! `poll` again at `poll_timeout`; ask `held(now)` before every single use. `now` must come from a
//! clock that never goes back; a clock that stood still is why the server checks epochs too.

use quire_proto::id::{Epoch, Millis};

/// Milliseconds for which a committed renewal holds, from when it was sent. Three renewals fit, so one
/// lost and one slow commit don't close the link; a leader that lost quorum stops within it.
pub const LEASE_MS: u64 = 3_000;
/// Milliseconds between two renewals.
pub const RENEW_EVERY_MS: u64 = 1_000;
/// Milliseconds after a refusal or failure before the next attempt.
pub const RETRY_AFTER_MS: u64 = 100;
/// Milliseconds after which an unanswered proposal is given up; a late answer still counts.
pub const ANSWER_WITHIN_MS: u64 = 1_000;

/// What to propose. Handed back with its outcome, so that late ones find their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposeClaim {
    /// 0 makes a new claim, otherwise the epoch of the claim to renew.
    pub renews: u64,
    /// When `poll` answered it.
    pub sent_at: Millis,
    /// Raft's term when it was made.
    pub term: u64,
}

/// The claim core of one node.
#[derive(Clone, Debug, Default)]
pub struct Claim {
    leadership: Option<Leadership>,
}

#[derive(Clone, Debug)]
struct Leadership {
    term: u64,
    /// The claim committed in this leadership and the end of its lease.
    held: Option<(Epoch, Millis)>,
    in_flight: Option<ProposeClaim>,
    next_at: Millis,
}

impl Claim {
    /// Not the leader, nothing held.
    pub fn new() -> Self {
        Claim::default()
    }

    /// Raft says whether this node leads, and in which term. A new term starts from nothing.
    pub fn handle_leadership(&mut self, term: Option<u64>, now: Millis) {
        match (term, &self.leadership) {
            (None, _) => self.leadership = None,
            (Some(term), Some(current)) if current.term == term => {}
            (Some(term), _) => {
                self.leadership = Some(Leadership { term, held: None, in_flight: None, next_at: now });
            }
        }
    }

    /// What to propose now, if anything. At most one proposal is in flight, besides given-up ones.
    pub fn poll(&mut self, now: Millis) -> Option<ProposeClaim> {
        let leadership = self.leadership.as_mut()?;
        if let Some(sent) = leadership.in_flight
            && now.0 < sent.sent_at.0.saturating_add(ANSWER_WITHIN_MS)
        {
            return None;
        }
        if now < leadership.next_at {
            return None;
        }
        let renews = leadership.held.map_or(0, |(epoch, _)| epoch.0);
        let proposal = ProposeClaim { renews, sent_at: now, term: leadership.term };
        leadership.in_flight = Some(proposal);
        Some(proposal)
    }

    /// The proposal was committed: as the claim `epoch` where it made one, else renewing it.
    pub fn handle_committed(&mut self, proposal: ProposeClaim, epoch: Epoch) {
        let Some(leadership) = self.leadership_of(proposal) else { return };
        let until = Millis(proposal.sent_at.0.saturating_add(LEASE_MS));
        match &mut leadership.held {
            Some((held, lease)) if *held == epoch => *lease = (*lease).max(until),
            // An answer that was given up, to a claim that is no longer ours to count on.
            Some((held, _)) if *held > epoch => return,
            held => *held = Some((epoch, until)),
        }
        leadership.next_at =
            leadership.next_at.max(Millis(proposal.sent_at.0.saturating_add(RENEW_EVERY_MS)));
    }

    /// The state machine refused the proposal: another claim came after the one it renews.
    pub fn handle_refused(&mut self, proposal: ProposeClaim, now: Millis) {
        let Some(leadership) = self.leadership_of(proposal) else { return };
        if leadership.held.is_some_and(|(epoch, _)| epoch.0 == proposal.renews) {
            leadership.held = None;
        }
        leadership.next_at = Millis(now.0.saturating_add(RETRY_AFTER_MS));
    }

    /// Nobody knows what became of the proposal (no quorum, no leader, a timeout).
    pub fn handle_failed(&mut self, proposal: ProposeClaim, now: Millis) {
        if let Some(leadership) = self.leadership_of(proposal) {
            leadership.next_at = Millis(now.0.saturating_add(RETRY_AFTER_MS));
        }
    }

    /// The leadership that made the proposal, if it lasts; the proposal is no longer in flight.
    fn leadership_of(&mut self, proposal: ProposeClaim) -> Option<&mut Leadership> {
        let leadership = self.leadership.as_mut().filter(|leadership| leadership.term == proposal.term)?;
        if leadership.in_flight == Some(proposal) {
            leadership.in_flight = None;
        }
        Some(leadership)
    }

    /// The epoch under which this node may plan and send at `now`; `None` is no.
    pub fn held(&self, now: Millis) -> Option<Epoch> {
        let (epoch, until) = self.leadership.as_ref()?.held?;
        (now < until).then_some(epoch)
    }

    /// When to `poll` or ask `held` again; `None` while not the leader.
    pub fn poll_timeout(&self) -> Option<Millis> {
        let leadership = self.leadership.as_ref()?;
        let answer = leadership.in_flight.map(|sent| Millis(sent.sent_at.0.saturating_add(ANSWER_WITHIN_MS)));
        Some(answer.unwrap_or(leadership.next_at).max(leadership.next_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn leader() -> Claim {
        let mut claim = Claim::new();
        claim.handle_leadership(Some(5), Millis(1_000));
        claim
    }

    #[test]
    fn leading_alone_gives_no_right() {
        let mut claim = leader();
        assert_eq!(claim.held(Millis(1_000)), None);
        let first = claim.poll(Millis(1_000)).unwrap();
        assert_eq!(first.renews, 0);
        assert_eq!(claim.poll(Millis(1_001)), None, "one at a time");
        claim.handle_committed(first, Epoch(88));
        assert_eq!(claim.held(Millis(1_400)), Some(Epoch(88)));
    }

    #[test]
    fn the_lease_counts_from_when_the_renewal_was_sent() {
        let mut claim = leader();
        let first = claim.poll(Millis(1_000)).unwrap();
        claim.handle_committed(first, Epoch(88));
        assert_eq!(claim.poll_timeout(), Some(Millis(1_000 + RENEW_EVERY_MS)));
        assert_eq!(claim.poll(Millis(1_999)), None);
        let renewal = claim.poll(Millis(2_000)).unwrap();
        assert_eq!(renewal.renews, 88);
        // The answer takes 900 ms; the lease doesn't grow by them.
        claim.handle_committed(renewal, Epoch(88));
        assert_eq!(claim.held(Millis(2_000 + LEASE_MS - 1)), Some(Epoch(88)));
        assert_eq!(claim.held(Millis(2_000 + LEASE_MS)), None);
    }

    #[test]
    fn without_answers_the_claim_lapses_and_comes_back_with_quorum() {
        let mut claim = leader();
        let first = claim.poll(Millis(1_000)).unwrap();
        claim.handle_committed(first, Epoch(88));
        let lost = claim.poll(Millis(2_000)).unwrap();
        assert_eq!(claim.poll_timeout(), Some(Millis(3_000)));
        let again = claim.poll(Millis(3_000)).unwrap();
        assert_eq!(claim.held(Millis(4_000)), None);
        claim.handle_committed(lost, Epoch(88));
        assert_eq!(claim.held(Millis(4_000)), Some(Epoch(88)), "late answers count from when they were sent");
        claim.handle_failed(again, Millis(4_000));
        assert_eq!(claim.poll_timeout(), Some(Millis(4_000 + RETRY_AFTER_MS)));
    }

    #[test]
    fn a_refused_renewal_ends_the_claim_and_a_lost_leadership_everything() {
        let mut claim = leader();
        let first = claim.poll(Millis(1_000)).unwrap();
        claim.handle_committed(first, Epoch(88));
        let renewal = claim.poll(Millis(2_000)).unwrap();
        claim.handle_refused(renewal, Millis(2_050));
        assert_eq!(claim.held(Millis(2_050)), None);
        let anew = claim.poll(Millis(2_150)).unwrap();
        assert_eq!(anew.renews, 0);
        claim.handle_leadership(None, Millis(2_200));
        claim.handle_committed(anew, Epoch(99));
        assert_eq!((claim.held(Millis(2_200)), claim.poll_timeout()), (None, None));
        claim.handle_leadership(Some(6), Millis(2_300));
        claim.handle_committed(anew, Epoch(99));
        assert_eq!(claim.held(Millis(2_300)), None, "a claim of an earlier leadership is not ours");
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(u64),
        Poll,
        Commit(usize),
        Refuse(usize),
        Fail(usize),
        Lead(Option<u64>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0u64..2_000).prop_map(Step::Pass),
            Just(Step::Poll),
            Just(Step::Poll),
            (0usize..3).prop_map(Step::Commit),
            (0usize..3).prop_map(Step::Refuse),
            (0usize..3).prop_map(Step::Fail),
            prop::option::weighted(0.8, 5u64..8).prop_map(Step::Lead),
        ];
        prop::collection::vec(step, 0..80)
    }

    proptest! {
        /// Whatever comes when: what is held was committed in the present term, from a proposal that was
        /// sent less than a lease ago.
        #[test]
        fn a_held_claim_has_a_fresh_committed_renewal(steps in steps()) {
            let (mut claim, mut now, mut term) = (Claim::new(), Millis(0), None);
            let (mut waiting, mut committed, mut log) = (Vec::new(), Vec::new(), 100);
            for step in steps {
                match step {
                    Step::Pass(ms) => now.0 += ms,
                    Step::Poll => waiting.extend(claim.poll(now)),
                    Step::Lead(next) => {
                        term = next;
                        claim.handle_leadership(next, now);
                    }
                    Step::Commit(n) if n < waiting.len() => {
                        let proposal: ProposeClaim = waiting.remove(n);
                        log += 1;
                        let epoch = Epoch(if proposal.renews == 0 { log } else { proposal.renews });
                        committed.push((epoch, proposal));
                        claim.handle_committed(proposal, epoch);
                    }
                    Step::Refuse(n) if n < waiting.len() => claim.handle_refused(waiting.remove(n), now),
                    Step::Fail(n) if n < waiting.len() => claim.handle_failed(waiting.remove(n), now),
                    Step::Commit(_) | Step::Refuse(_) | Step::Fail(_) => {}
                }
                if let Some(epoch) = claim.held(now) {
                    let fresh = committed.iter().any(|(of, proposal)| {
                        *of == epoch && Some(proposal.term) == term && now.0 < proposal.sent_at.0 + LEASE_MS
                    });
                    prop_assert!(fresh, "{} at {:?}", epoch, now);
                }
                prop_assert_eq!(claim.poll_timeout().is_some(), term.is_some());
            }
        }

        /// A leader that is answered holds its claim without a gap.
        #[test]
        fn answers_within_a_second_keep_the_claim(delays in prop::collection::vec(0u64..900, 1..50)) {
            let mut claim = leader();
            let mut now = Millis(1_000);
            for (n, delay) in delays.iter().enumerate() {
                let proposal = claim.poll(now).unwrap();
                now.0 += delay;
                prop_assert!(n == 0 || claim.held(now) == Some(Epoch(7)));
                claim.handle_committed(proposal, Epoch(7));
                now = claim.poll_timeout().unwrap().max(now);
            }
        }
    }
}
