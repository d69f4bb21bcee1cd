//! The leader's duties on one process, as the node's `leader` has them: the claim, the plan, the members. What is decided
//! is decided by the coordinator's own code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{ChangeMembers, ServerState};
use quire_coordinator::claim::Claim as ClaimCore;
use quire_coordinator::membership::{self, MemberView, MembersView, MembershipChange};
use quire_coordinator::planner::{self, Change, NodeView, PlanView};
use quire_coordinator::rows;
use quire_proto::id::{Epoch, Millis, NodeId};
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Claim, Heard, Member, Meta, ReachRow};

use super::node::{Node, members, peer_of};
use super::propose::Failed;
use super::runtime::{calendar_ms, sleep_ms, steady, timeout};
use super::timing::{patience, silence, succession};

const TICK_MS: u64 = 200;
const PLAN_ROWS: usize = 500;
const LOOK_AGAIN_MS: u64 = 5_000;
const CAUGHT_UP: u64 = 100;
const PATIENCE: Duration = Duration::from_secs(2);
const MEMBERSHIP_PATIENCE: Duration = Duration::from_secs(1);

/// What Raft says of this process and its peers, as the node's `standing` reads it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Leads, as far as it knows.
    pub leads: bool,
    /// Raft's term.
    pub term: u64,
    /// A majority acknowledged it lately, or the leader spoke lately.
    pub quorum: bool,
    /// Who votes.
    pub voters: BTreeSet<u64>,
    /// Who does not.
    pub learners: BTreeSet<u64>,
    /// A change is under way.
    pub changing: bool,
}

impl Node {
    /// Where this process stands.
    #[must_use]
    pub fn standing(&self) -> Standing {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let leads = metrics.state == ServerState::Leader;
        let alone = voters.len() == 1 && voters.contains(&self.birth.me);
        let acknowledged = metrics.last_quorum_acked.as_ref().is_some_and(|at| at.ago() < silence());
        let heard = self.last_word().is_some_and(|(at, _)| steady().saturating_sub(at) < silence());
        let quorum = match metrics.state {
            ServerState::Leader => alone || acknowledged,
            ServerState::Follower | ServerState::Learner => metrics.current_leader.is_some() && heard,
            ServerState::Candidate | ServerState::Shutdown => false,
        };
        let changing = membership.get_joint_config().len() > 1
            || metrics.membership_config != metrics.committed_membership_config;
        let learners = membership.learner_ids().collect();
        Standing { leads, term: metrics.current_term, quorum, voters, learners, changing }
    }

    fn heard_ago(&self) -> BTreeMap<u64, Duration> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(beats) = &metrics.heartbeat else { return BTreeMap::new() };
        let spoke = self.last_word();
        let peers = beats.iter().filter(|(id, _)| **id != self.birth.me);
        peers
            .filter_map(|(id, at)| {
                let acknowledged = at.as_ref().map(|at| at.ago());
                let spoke = spoke.filter(|(_, by)| by == id).map(|(at, _)| steady().saturating_sub(at));
                Some((*id, acknowledged.into_iter().chain(spoke).min()?))
            })
            .collect()
    }

    /// The last committed entry that each node acknowledged, this one included.
    #[must_use]
    pub fn acked(&self) -> BTreeMap<u64, u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(replication) = &metrics.replication else { return BTreeMap::new() };
        let committed = metrics.last_applied.map_or(0, |id| id.index);
        replication.iter().map(|(id, at)| (*id, at.map_or(0, |id| id.index).min(committed))).collect()
    }

    fn lag(&self) -> BTreeMap<u64, u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let Some(replication) = &metrics.replication else { return BTreeMap::new() };
        let last = metrics.last_log_index.unwrap_or(0);
        let peers = replication.iter().filter(|(id, _)| **id != self.birth.me);
        peers.map(|(id, at)| (*id, last.saturating_sub(at.map_or(0, |id| id.index)))).collect()
    }

    fn meta(&self) -> Meta {
        self.birth.disk.look(|image| rows::meta(&image.tables)).unwrap_or_default()
    }
}

#[derive(Clone, PartialEq)]
struct PlanInputs {
    settings_index: u64,
    plan_epoch: u64,
    members: Vec<(u64, bool, bool)>,
    reaches: Vec<ReachRow>,
    turn: u64,
}

struct Leader {
    node: Arc<Node>,
    claim: ClaimCore,
    planned: Option<PlanInputs>,
    leading: Option<(u64, Duration)>,
    seen: BTreeMap<u64, (bool, Millis)>,
}

fn ticks() -> Millis {
    Millis(u64::try_from(steady().as_millis()).unwrap_or(0))
}

fn now() -> Millis {
    Millis(calendar_ms())
}

/// Does the leader's duties while this process leads.
pub async fn lead(node: Arc<Node>) {
    let (claim, seen) = (ClaimCore::new(), BTreeMap::new());
    let mut leader = Leader { node, claim, planned: None, leading: None, seen };
    loop {
        sleep_ms(TICK_MS).await;
        let standing = leader.node.standing();
        let leads = (standing.leads && standing.quorum).then_some(standing.term);
        leader.claim.handle_leadership(leads, ticks());
        if leader.leading.map(|(term, _)| term) != leads {
            leader.leading = leads.map(|term| (term, steady()));
        }
        leader.tell_held();
        leader.keep_claim().await;
        match leader.tell_held() {
            Some(epoch) => leader.duties(epoch).await,
            None => {
                leader.planned = None;
                leader.seen.clear();
            }
        }
    }
}

impl Leader {
    fn tell_held(&self) -> Option<Epoch> {
        let held = self.claim.held(ticks());
        self.node.held.send_if_modified(|before| std::mem::replace(before, held) != held);
        held
    }

    async fn keep_claim(&mut self) {
        let Some(proposal) = self.claim.poll(ticks()) else { return };
        let members = members(&self.node.birth.disk);
        let (lags, acked) = (self.node.lag(), self.node.acked());
        let of = |numbers: &BTreeMap<u64, u64>, id: u64| numbers.get(&id).copied().unwrap_or(0);
        let heard = self.alive(&members).into_iter();
        let heard = heard
            .map(|id| Heard { node: id, lag: of(&lags, id), acked: of(&acked, id), ..Heard::default() })
            .collect();
        let link = Some(self.node.link.borrow().clone());
        let command = Claim { node: self.node.birth.me, renews: proposal.renews, heard, link };
        match self.node.propose_here("", Kind::Claim(command), PATIENCE).await {
            Ok(outcome) => {
                if let Some(Answer::Epoch(epoch)) = outcome.result {
                    self.claim.handle_committed(proposal, Epoch(epoch));
                }
            }
            Err(Failed::Rejected(_)) => self.claim.handle_refused(proposal, ticks()),
            Err(Failed::NoQuorum | Failed::Unknown) => self.claim.handle_failed(proposal, ticks()),
        }
    }

    async fn duties(&mut self, epoch: Epoch) {
        let members = members(&self.node.birth.disk);
        self.look_at(&members);
        self.plan(epoch, &members).await;
        self.settle_members(&members).await;
        self.make_way(&members).await;
    }

    fn alive(&self, members: &[Member]) -> BTreeSet<u64> {
        let (heard, gone) = (self.node.heard_ago(), self.node.gone.borrow().clone());
        let led = self.leading.map_or(Duration::ZERO, |(_, since)| steady().saturating_sub(since));
        let lives = |id: &u64| {
            let silent = heard.get(id).copied();
            let back =
                |since: &Duration| silent.is_some_and(|silent| silent < steady().saturating_sub(*since));
            silent.unwrap_or(led) < patience() && gone.get(id).is_none_or(back)
        };
        let me = self.node.birth.me;
        members.iter().map(|member| member.id).filter(|id| *id == me || lives(id)).collect()
    }

    fn look_at(&mut self, members: &[Member]) {
        let (alive, now) = (self.alive(members), now());
        self.seen.retain(|id, _| members.iter().any(|member| member.id == *id));
        for member in members {
            let lives = alive.contains(&member.id);
            let seen = self.seen.entry(member.id).or_insert((lives, now));
            if seen.0 != lives {
                *seen = (lives, now);
            }
        }
    }

    fn seen(&self, member: &Member) -> (bool, Millis) {
        self.seen.get(&member.id).copied().unwrap_or_default()
    }

    async fn plan(&mut self, claim: Epoch, members: &[Member]) {
        let now = now();
        let meta = self.node.meta();
        let reaches = self.node.birth.disk.look(|image| rows::reaches(&image.tables)).unwrap_or_default();
        let inputs = PlanInputs {
            settings_index: meta.settings_index,
            plan_epoch: meta.plan_epoch,
            members: members.iter().map(|m| (m.id, m.draining, self.seen(m).0)).collect(),
            reaches: reaches.clone(),
            turn: now.0 / LOOK_AGAIN_MS,
        };
        if self.planned.as_ref() == Some(&inputs) || meta.settings_index == 0 {
            return;
        }
        let (_, settings) = self.node.settings();
        let nodes = members.iter().map(|member| self.node_view(member)).collect();
        let read =
            |nodes| self.node.birth.disk.look(|image| PlanView::read(&image.tables, &settings, nodes, now));
        let Ok(view) = read(nodes) else { return };
        let changes = planner::plan(&view);
        let whole = self.commit(claim, &changes).await;
        self.planned = whole.then(|| PlanInputs { plan_epoch: self.node.meta().plan_epoch, ..inputs });
    }

    fn node_view(&self, member: &Member) -> NodeView {
        let (alive, since) = self.seen(member);
        NodeView::of(member, alive, since)
    }

    async fn commit(&mut self, claim: Epoch, changes: &[Change]) -> bool {
        for some in changes.chunks(PLAN_ROWS) {
            self.keep_claim().await;
            let plan = planner::command(claim, some, quire_proto::CLUSTER_VERSION);
            if self.node.propose_here("", Kind::Plan(plan), PATIENCE).await.is_err() {
                return false;
            }
        }
        true
    }

    async fn settle_members(&self, members: &[Member]) {
        let (standing, lags, me) = (self.node.standing(), self.node.lag(), self.node.birth.me);
        let row = |member: &Member| {
            let (alive, since) = self.seen(member);
            MemberView {
                id: NodeId(member.id),
                zone: member.zone.clone(),
                alive,
                since,
                draining: member.draining,
                witness: member.witness,
                caught_up: member.id == me || lags.get(&member.id).is_some_and(|lag| *lag <= CAUGHT_UP),
            }
        };
        let view = MembersView {
            leader: NodeId(me),
            members: members.iter().map(row).collect(),
            voters: standing.voters.iter().map(|id| NodeId(*id)).collect(),
            learners: standing.learners.iter().map(|id| NodeId(*id)).collect(),
            changing: standing.changing,
            now: now(),
        };
        let Some(change) = membership::decide(&view) else { return };
        self.node.checks.count("changes of membership");
        self.node.checks.tell(|| format!("node {me} changes the membership: {change:?}"));
        let raft = &self.node.raft;
        let changing = async {
            match change {
                MembershipChange::AddLearner(id) => {
                    let member = members.iter().find(|member| member.id == id.0).and_then(peer_of);
                    match member {
                        Some(peer) => raft.add_learner(id.0, peer, false).await.is_ok(),
                        None => false,
                    }
                }
                MembershipChange::SetVoters(voters) => {
                    let voters: BTreeSet<u64> = voters.into_iter().map(|id| id.0).collect();
                    raft.change_membership(voters, true).await.is_ok()
                }
                MembershipChange::RemoveLearner(id) => {
                    let gone = ChangeMembers::RemoveNodes(BTreeSet::from([id.0]));
                    raft.change_membership(gone, false).await.is_ok()
                }
            }
        };
        let _ = timeout(MEMBERSHIP_PATIENCE, changing).await;
    }

    /// A drained leader, or one without a certificate for the Web Admin, lets another lead.
    async fn make_way(&self, members: &[Member]) {
        let me = self.node.birth.me;
        let own = members.iter().find(|member| member.id == me);
        let draining = own.is_some_and(|member| member.draining);
        let enrolled = self.node.meta().upstream.is_some();
        let certified = |member: &Member| !member.upstream_certificate_der.is_empty();
        let unable = enrolled && !own.is_some_and(certified);
        if !draining && !unable {
            return;
        }
        let (heard, lags, voters) = (self.node.heard_ago(), self.node.lag(), self.node.standing().voters);
        let gone = self.node.gone.borrow().clone();
        let able = |member: &&Member| {
            let id = member.id;
            let there = heard.get(&id).is_some_and(|ago| *ago < succession()) && !gone.contains_key(&id);
            id != me && voters.contains(&id) && there && !member.draining && (!unable || certified(member))
        };
        let lag = |member: &&Member| lags.get(&member.id).copied().unwrap_or(u64::MAX);
        if let Some(next) = members.iter().filter(able).min_by_key(lag) {
            self.node.checks.count("leaderships handed over");
            let _ = self.node.raft.trigger().transfer_leader(next.id).await;
            sleep_ms(500).await;
        }
    }
}
