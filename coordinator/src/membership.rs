//! Who votes: brings Raft's configuration where the members table wants it, one change at a time.
//!
//! `decide(&MembersView)` answers the next change, or `None` when all is well or nothing may be done
//! now. The leader's shell calls it after every applied membership entry and every change of liveness,
//! and hands the answer to openraft.
//!
//! Rules: one voter, then three, then five; never two, because two survive less than one (the second
//! node stays a learner until a third is there and caught up). A witness votes like any other. A voter
//! that is dead for [`REPLACE_AFTER_MS`] gives way to a learner that lives and is caught up. Voters are
//! spread over zones. Whoever is not in the members table leaves Raft.
//!
//! Never: a configuration whose majority is dead, two voters, two changes at once, a change without a
//! living majority of the voters that must agree to it.

use std::collections::{BTreeMap, BTreeSet};

use quire_proto::id::{Millis, NodeId};

/// Milliseconds after which a dead voter is replaced. Longer than a reboot of a small VM: replacing it
/// costs a snapshot, waiting costs nothing while the others have quorum.
pub const REPLACE_AFTER_MS: u64 = 60_000;
/// Milliseconds for which a node must have been alive without a break before it may become a voter.
pub const PROMOTE_AFTER_MS: u64 = 1_000;

/// A row of the members table with what the leader knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// Its id.
    pub id: NodeId,
    /// Its label.
    pub zone: String,
    /// Whether it answers.
    pub alive: bool,
    /// Since when `alive` has been what it is.
    pub since: Millis,
    /// An operator wants it free of duties.
    pub draining: bool,
    /// Votes, collects nothing.
    pub witness: bool,
    /// Its log lags the leader's by no more than a heartbeat's worth of entries.
    pub caught_up: bool,
}

/// Everything that a decision depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MembersView {
    /// The node that asks: the leader.
    pub leader: NodeId,
    /// The members table.
    pub members: Vec<MemberView>,
    /// Raft's voters, from the newest configuration in the log.
    pub voters: BTreeSet<NodeId>,
    /// Raft's learners.
    pub learners: BTreeSet<NodeId>,
    /// A change is not committed yet, or the configuration is joint.
    pub changing: bool,
    /// The leader's time.
    pub now: Millis,
}

/// One change of Raft's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembershipChange {
    /// Start sending the log to a member.
    AddLearner(NodeId),
    /// These and no others vote; former voters stay as learners.
    SetVoters(BTreeSet<NodeId>),
    /// Stop sending the log to a learner that is no member.
    RemoveLearner(NodeId),
}

/// The next change, if one is due.
pub fn decide(view: &MembersView) -> Option<MembershipChange> {
    if view.changing || view.voters.is_empty() {
        return None;
    }
    let members: BTreeMap<NodeId, &MemberView> =
        view.members.iter().map(|member| (member.id, member)).collect();
    let gone = view.learners.difference(&view.voters).find(|id| !members.contains_key(id));
    if let Some(id) = gone {
        return Some(MembershipChange::RemoveLearner(*id));
    }
    let new = members.keys().find(|id| !view.voters.contains(id) && !view.learners.contains(id));
    if let Some(id) = new {
        return Some(MembershipChange::AddLearner(*id));
    }
    let wanted = voters(view, &members);
    let fine = wanted != view.voters
        && matches!(wanted.len(), 1 | 3 | 5)
        && majority_lives(&wanted, &members)
        && majority_lives(&view.voters, &members);
    fine.then_some(MembershipChange::SetVoters(wanted))
}

fn majority_lives(voters: &BTreeSet<NodeId>, members: &BTreeMap<NodeId, &MemberView>) -> bool {
    let alive = voters.iter().filter(|id| members.get(id).is_some_and(|member| member.alive)).count();
    alive * 2 > voters.len()
}

/// How well a member does as a voter, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fitness {
    /// Lives and has the log, or is a voter that was lost a moment ago and may be back soon.
    Good,
    /// A living voter that would rather not be one.
    Draining,
    /// A voter that is dead for long: still better than two voters.
    Dead,
}

/// `None` for who can't be a voter now.
fn fitness(view: &MembersView, member: &MemberView) -> Option<Fitness> {
    let for_ms = view.now.0.saturating_sub(member.since.0);
    let votes = view.voters.contains(&member.id);
    match (votes, member.alive, member.draining) {
        (true, true, true) => Some(Fitness::Draining),
        (true, true, false) => Some(Fitness::Good),
        (true, false, draining) if for_ms < REPLACE_AFTER_MS && !draining => Some(Fitness::Good),
        (true, false, _) => Some(Fitness::Dead),
        (false, true, false) => (member.caught_up && for_ms >= PROMOTE_AFTER_MS).then_some(Fitness::Good),
        (false, ..) => None,
    }
}

/// The voters that should be, which may be those that are.
fn voters(view: &MembersView, members: &BTreeMap<NodeId, &MemberView>) -> BTreeSet<NodeId> {
    let mut able: Vec<(Fitness, &MemberView)> =
        members.values().filter_map(|member| Some((fitness(view, member)?, *member))).collect();
    able.sort_by_key(|(fitness, member)| (*fitness, member.id));
    let good = able.iter().filter(|(fitness, _)| *fitness == Fitness::Good).count();
    let size = match (good, able.len(), view.voters.len()) {
        (5.., ..) => 5,
        (3.., ..) => 3,
        // Three voters of which some are dead or draining beat one voter, if quorum is still there.
        (_, 3.., 2..) => 3,
        _ => 1,
    };
    if size == 1 {
        return sole_voter(view, &able);
    }
    let mut chosen = BTreeSet::new();
    let mut by_zone: BTreeMap<&str, usize> = BTreeMap::new();
    for wanted in [Fitness::Good, Fitness::Draining, Fitness::Dead] {
        let mut left: Vec<&MemberView> = able.iter().filter(|(f, _)| *f == wanted).map(|(_, m)| *m).collect();
        while chosen.len() < size && !left.is_empty() {
            let next = next_voter(view, &left, &by_zone);
            let member = left.swap_remove(next);
            chosen.insert(member.id);
            *by_zone.entry(member.zone.as_str()).or_default() += 1;
        }
    }
    chosen
}

/// One voter stays who it is; when three shrink to one, it is the leader.
fn sole_voter(view: &MembersView, able: &[(Fitness, &MemberView)]) -> BTreeSet<NodeId> {
    let leader = able.iter().find(|(_, member)| member.id == view.leader && member.alive);
    let sole =
        leader.or_else(|| able.iter().find(|(_, member)| member.alive && view.voters.contains(&member.id)));
    sole.map_or_else(|| view.voters.clone(), |(_, member)| [member.id].into())
}

/// The place of the best next voter: the leader, then whoever is from a zone with few voters, then who
/// votes already (stability), lives, collects too, has the lowest id.
fn next_voter(view: &MembersView, left: &[&MemberView], by_zone: &BTreeMap<&str, usize>) -> usize {
    let key = |member: &MemberView| {
        (
            member.id != view.leader,
            by_zone.get(member.zone.as_str()).copied().unwrap_or(0),
            !view.voters.contains(&member.id),
            !member.alive,
            member.witness,
            member.id,
        )
    };
    (0..left.len()).min_by_key(|place| key(left[*place])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Millis = Millis(1_000_000);

    fn member(id: u64) -> MemberView {
        MemberView {
            id: NodeId(id),
            zone: "hq".into(),
            alive: true,
            since: Millis(0),
            draining: false,
            witness: false,
            caught_up: true,
        }
    }

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Members 1 to `count`, led by 1, with these voters and the rest learners.
    fn view(count: u64, voters: &[u64]) -> MembersView {
        let members: Vec<MemberView> = (1..=count).map(member).collect();
        let learners = members.iter().map(|m| m.id).filter(|id| !voters.contains(&id.0)).collect();
        MembersView { leader: NodeId(1), members, voters: ids(voters), learners, changing: false, now: NOW }
    }

    fn set(voters: &[u64]) -> Option<MembershipChange> {
        Some(MembershipChange::SetVoters(ids(voters)))
    }

    fn dead(view: &mut MembersView, id: usize, for_ms: u64) {
        view.members[id - 1].alive = false;
        view.members[id - 1].since = Millis(NOW.0 - for_ms);
    }

    #[test]
    fn a_cluster_grows_from_one_to_three_to_five() {
        assert_eq!(decide(&view(1, &[1])), None);
        assert_eq!(decide(&view(2, &[1])), None, "the second stays a learner");
        let mut joining = view(2, &[1]);
        joining.learners.clear();
        assert_eq!(decide(&joining), Some(MembershipChange::AddLearner(NodeId(2))));
        assert_eq!(decide(&view(3, &[1])), set(&[1, 2, 3]));
        assert_eq!(decide(&view(4, &[1, 2, 3])), None);
        assert_eq!(decide(&view(5, &[1, 2, 3])), set(&[1, 2, 3, 4, 5]));
        assert_eq!(decide(&view(9, &[1, 2, 3, 4, 5])), None);
    }

    #[test]
    fn promotion_waits_until_the_log_is_there() {
        let mut late = view(3, &[1]);
        late.members[2].caught_up = false;
        assert_eq!(decide(&late), None);
        late.members[2].caught_up = true;
        late.members[2].since = NOW;
        assert_eq!(decide(&late), None);
        late.changing = true;
        late.now.0 += PROMOTE_AFTER_MS;
        assert_eq!(decide(&late), None, "one change at a time");
        late.changing = false;
        assert_eq!(decide(&late), set(&[1, 2, 3]));
    }

    #[test]
    fn a_dead_voter_is_replaced_once_it_is_dead_for_long() {
        let mut view = view(4, &[1, 2, 3]);
        dead(&mut view, 2, REPLACE_AFTER_MS - 1);
        assert_eq!(decide(&view), None);
        view.now.0 += 1;
        assert_eq!(decide(&view), set(&[1, 3, 4]));
        view.members.truncate(3);
        view.learners.clear();
        assert_eq!(decide(&view), None, "two voters would be worse than three of which one is dead");
        dead(&mut view, 3, REPLACE_AFTER_MS);
        assert_eq!(decide(&view), None, "without quorum nothing can be agreed on");
    }

    #[test]
    fn five_with_two_dead_become_three_that_can_lose_another() {
        let mut view = view(5, &[1, 2, 3, 4, 5]);
        dead(&mut view, 2, REPLACE_AFTER_MS);
        dead(&mut view, 4, REPLACE_AFTER_MS);
        assert_eq!(decide(&view), set(&[1, 3, 5]));
    }

    #[test]
    fn who_was_removed_leaves_raft() {
        let mut view = view(4, &[1, 2, 3]);
        view.members.remove(1);
        assert_eq!(decide(&view), set(&[1, 3, 4]));
        view.voters = ids(&[1, 3, 4]);
        view.learners = ids(&[2]);
        assert_eq!(decide(&view), Some(MembershipChange::RemoveLearner(NodeId(2))));
        view.learners.clear();
        view.members.remove(1);
        assert_eq!(decide(&view), set(&[1]), "never two");
    }

    #[test]
    fn draining_voters_are_relieved_where_possible() {
        let mut view = view(4, &[1, 2, 3]);
        view.members[1].draining = true;
        assert_eq!(decide(&view), set(&[1, 3, 4]));
        view.members.pop();
        view.learners.clear();
        assert_eq!(decide(&view), None, "nobody could stand in");
    }

    #[test]
    fn a_witness_makes_the_third_voter() {
        let mut view = view(3, &[1]);
        view.members[2].witness = true;
        assert_eq!(decide(&view), set(&[1, 2, 3]));
        view.members.push(member(4));
        view.learners.insert(NodeId(4));
        assert_eq!(decide(&view), set(&[1, 2, 4]), "who collects too is preferred");
    }

    #[test]
    fn voters_are_spread_over_zones() {
        let mut view = view(5, &[1, 2, 3]);
        view.members.iter_mut().take(3).for_each(|member| member.zone = "cellar".into());
        view.members[4].alive = false;
        assert_eq!(decide(&view), set(&[1, 2, 4]));
    }

    prop_compose! {
        fn members()(alive in prop::bool::weighted(0.75), since in prop_oneof![Just(0u64), Just(999_900)],
                     draining in prop::bool::weighted(0.1), witness in prop::bool::weighted(0.2),
                     caught_up in prop::bool::weighted(0.8), zone in 0..3usize) -> MemberView {
            let zone = ["a", "b", "c"][zone].to_owned();
            MemberView { id: NodeId(0), zone, alive, since: Millis(since), draining, witness, caught_up }
        }
    }

    prop_compose! {
        /// Any members, of which the first one to five vote; some voters may have been removed.
        fn views()(members in prop::collection::vec(members(), 1..9), voters in prop::sample::select(vec![1usize, 3, 5]),
                   removed in prop::option::weighted(0.2, 1u64..9)) -> MembersView {
            let mut members = members;
            for (id, member) in (1..).zip(&mut members) {
                member.id = NodeId(id);
            }
            let voters = voters.min(if members.len() < 3 { 1 } else if members.len() < 5 { 3 } else { 5 });
            members[0].alive = true;
            let (voting, learning) = members.split_at(voters);
            let (voters, learners) = (voting.iter().map(|m| m.id).collect(), learning.iter().map(|m| m.id).collect());
            members.retain(|member| Some(member.id.0) != removed || member.id.0 == 1);
            MembersView { leader: NodeId(1), members, voters, learners, changing: false, now: NOW }
        }
    }

    fn apply(view: &mut MembersView, change: MembershipChange) {
        match change {
            MembershipChange::AddLearner(id) => drop(view.learners.insert(id)),
            MembershipChange::RemoveLearner(id) => drop(view.learners.remove(&id)),
            MembershipChange::SetVoters(voters) => {
                let all: BTreeSet<NodeId> = view.voters.union(&view.learners).copied().collect();
                view.learners = all.difference(&voters).copied().collect();
                view.voters = voters;
            }
        }
    }

    proptest! {
        #[test]
        fn changes_are_safe_and_end(mut view in views()) {
            let members: BTreeMap<NodeId, MemberView> = view.members.iter().map(|m| (m.id, m.clone())).collect();
            for step in 0.. {
                prop_assert!(step < 12, "no end: {:?}", view);
                let Some(change) = decide(&view) else { break };
                if let MembershipChange::SetVoters(voters) = &change {
                    prop_assert!(matches!(voters.len(), 1 | 3 | 5), "{:?}", voters);
                    let alive = |set: &BTreeSet<NodeId>| set.iter().filter(|id| members.get(id).is_some_and(|m| m.alive)).count();
                    prop_assert!(alive(voters) * 2 > voters.len(), "a quorum of the dead: {:?}", voters);
                    prop_assert!(alive(&view.voters) * 2 > view.voters.len(), "nobody could agree to {:?}", voters);
                    for id in voters.difference(&view.voters) {
                        let new = &members[id];
                        prop_assert!(new.alive && new.caught_up && !new.draining, "{:?} must not vote yet", new);
                    }
                }
                apply(&mut view, change);
            }
            // Whoever was removed has no vote any more, if anybody could decide that.
            let known = view.voters.iter().all(|id| members.contains_key(id));
            let alive = view.voters.iter().filter(|id| members.get(id).is_some_and(|m| m.alive)).count();
            prop_assert!(known || alive * 2 <= view.voters.len(), "{:?}", view);
        }
    }
}
