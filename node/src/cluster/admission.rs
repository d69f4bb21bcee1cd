//! Whether this process may take part: only when other members have seen that its directory is the newest.
//!
//! Until then it neither votes nor takes entries, and a refusal is for good: a rolled-back or cloned
//! directory would break promises that this node made. A majority of the voters, itself included, has to
//! know it; without them it could not elect anybody either, so waiting costs nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use quire_proto::cluster::attend_reply::Verdict;

/// Those who don't answer are not waited for longer.
const ANSWER: Duration = Duration::from_secs(1);
/// A process that is said to be there twice may be its own predecessor, whose connections a dead host left
/// open: those are closed after 6 s ([`super::network::endpoint`]).
const PREDECESSOR: Duration = Duration::from_secs(8);

/// What this process may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Nothing yet.
    Waiting,
    /// Take part.
    Open,
    /// Nothing ever again, and why.
    Shut(String),
}

/// What others said of this process.
#[derive(Default)]
pub struct Answers {
    welcome: BTreeSet<u64>,
    unreachable: BTreeSet<u64>,
    /// When each first and last said so, without another word between.
    duplicate: BTreeMap<u64, (Instant, Instant)>,
    older: Option<u64>,
    removed: Option<u64>,
}

impl Answers {
    /// A node's word.
    pub fn handle(&mut self, node: u64, verdict: Verdict, now: Instant) {
        self.unreachable.remove(&node);
        match verdict {
            Verdict::Welcome => {
                self.duplicate.remove(&node);
                self.welcome.insert(node);
            }
            Verdict::Older => {
                self.duplicate.remove(&node);
                self.older = Some(node);
            }
            Verdict::Duplicate => {
                self.duplicate.entry(node).or_insert((now, now)).1 = now;
            }
            Verdict::Removed => self.removed = Some(node),
            Verdict::Leaving => self.handle_unreachable(node),
        }
    }

    /// A node that can't be asked now.
    pub fn handle_unreachable(&mut self, node: u64) {
        self.unreachable.insert(node);
        // Whoever is gone has no other process of ours in sight either.
        self.duplicate.remove(&node);
    }

    /// Whether somebody sees this process twice.
    pub fn doubted(&self) -> bool {
        !self.duplicate.is_empty()
    }

    /// What follows, for a process that has waited since `since` for `others`; `voters` includes `me` if it
    /// votes.
    pub fn admission(
        &self,
        me: u64,
        voters: &BTreeSet<u64>,
        others: &BTreeSet<u64>,
        since: Instant,
        now: Instant,
    ) -> Admission {
        if let Some(node) = self.removed {
            return Admission::Shut(format!(
                "node {node} knows that this node was removed from the cluster: what this directory holds is out of \
                 use. Let this machine join anew with an empty directory and a new token"
            ));
        }
        let asked = |node: &u64| {
            let refused = self.older == Some(*node) || self.duplicate.contains_key(node);
            refused || self.welcome.contains(node) || self.unreachable.contains(node)
        };
        let waited = now.saturating_duration_since(since) >= ANSWER;
        let patient = !waited && (self.doubted() || !others.iter().all(asked));
        let twin = self.duplicate.iter().find(|(_, (first, last))| {
            // Old to one, and to another twice there for long: no predecessor is both. Who said so at first and was not
            // heard since may have seen the predecessor alone.
            (self.older.is_some() && waited) || last.saturating_duration_since(*first) >= PREDECESSOR
        });
        match (self.older, twin) {
            (_, Some((node, _))) => Admission::Shut(format!(
                "duplicate node id: node {node} is in touch with another process of node {me}. This directory is a \
                 copy of one that is in use: stop one of the two, and let it join anew with an empty directory"
            )),
            (Some(node), None) if !patient => Admission::Shut(format!(
                "data directory is older than acknowledged: node {node} knows a later state of it than it holds. It \
                 was restored from a copy or a snapshot, and would break promises that this node made. Remove this \
                 node from the cluster, and join anew with an empty directory"
            )),
            (None, None) if !patient && !self.doubted() && self.suffice(me, voters) => Admission::Open,
            _ => Admission::Waiting,
        }
    }

    /// Whether those who know this process, itself included, are a majority of the voters.
    fn suffice(&self, me: u64, voters: &BTreeSet<u64>) -> bool {
        let known = voters.iter().filter(|node| **node == me || self.welcome.contains(node)).count();
        match (voters.is_empty(), voters.contains(&me)) {
            (true, _) => true,
            (false, true) => known * 2 > voters.len(),
            (false, false) => known > 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> BTreeSet<u64> {
        BTreeSet::from([1, 2, 3])
    }

    #[test]
    fn a_majority_that_knows_the_process_opens_the_gate() {
        let (start, others) = (Instant::now(), BTreeSet::from([2, 3]));
        let mut answers = Answers::default();
        let gate = |answers: &Answers, ms| {
            answers.admission(1, &three(), &others, start, start + Duration::from_millis(ms))
        };
        assert_eq!(gate(&answers, 0), Admission::Waiting);
        answers.handle(2, Verdict::Welcome, start);
        assert_eq!(gate(&answers, 10), Admission::Waiting, "node 3 may know better");
        assert_eq!(gate(&answers, 1_000), Admission::Open, "but not for ever");
        answers.handle_unreachable(3);
        assert_eq!(gate(&answers, 10), Admission::Open);
        answers.handle(3, Verdict::Older, start);
        assert!(
            matches!(gate(&answers, 10), Admission::Shut(why) if why.contains("older than acknowledged"))
        );
    }

    #[test]
    fn a_removed_node_is_shut_whatever_else_is_said() {
        let start = Instant::now();
        let mut answers = Answers::default();
        answers.handle(2, Verdict::Welcome, start);
        answers.handle(3, Verdict::Removed, start);
        answers.handle(3, Verdict::Leaving, start);
        let admission = answers.admission(1, &three(), &BTreeSet::from([2, 3]), start, start);
        assert!(matches!(admission, Admission::Shut(why) if why.contains("was removed from the cluster")));
    }

    #[test]
    fn alone_among_the_dead_it_waits_and_a_lone_voter_does_not() {
        let start = Instant::now();
        let mut answers = Answers::default();
        answers.handle_unreachable(2);
        answers.handle_unreachable(3);
        let late = start + Duration::from_secs(60);
        assert_eq!(answers.admission(1, &three(), &BTreeSet::from([2, 3]), start, late), Admission::Waiting);
        let sole = BTreeSet::from([1]);
        assert_eq!(answers.admission(1, &sole, &BTreeSet::from([2, 3]), start, start), Admission::Open);
        assert_eq!(
            answers.admission(4, &sole, &BTreeSet::from([1]), start, late),
            Admission::Waiting,
            "a learner"
        );
        assert_eq!(
            answers.admission(4, &BTreeSet::new(), &BTreeSet::new(), start, start),
            Admission::Open,
            "a new one"
        );
    }

    #[test]
    fn a_predecessor_is_waited_out_and_a_twin_is_not() {
        let (start, others) = (Instant::now(), BTreeSet::from([2, 3]));
        let mut answers = Answers::default();
        let gate = |answers: &Answers, s| {
            answers.admission(1, &three(), &others, start, start + Duration::from_secs(s))
        };
        answers.handle(2, Verdict::Duplicate, start);
        answers.handle(3, Verdict::Welcome, start);
        assert_eq!(gate(&answers, 7), Admission::Waiting);
        assert_eq!(gate(&answers, 60), Admission::Waiting, "what was said of the predecessor counts no more");
        answers.handle(2, Verdict::Duplicate, start + Duration::from_secs(8));
        assert!(matches!(gate(&answers, 8), Admission::Shut(why) if why.contains("duplicate node id")));
        answers.handle(2, Verdict::Welcome, start);
        assert_eq!(gate(&answers, 8), Admission::Open);
        answers.handle(2, Verdict::Duplicate, start);
        answers.handle(3, Verdict::Older, start);
        assert_eq!(gate(&answers, 0), Admission::Waiting, "its predecessor may be going");
        assert!(matches!(gate(&answers, 1), Admission::Shut(why) if why.contains("duplicate node id")));
    }
}
