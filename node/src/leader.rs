//! What the leader does besides replicating: claims, plans, and settles who votes.
//!
//! Architecture Invariant: "I am leader" is never taken from Raft's state alone. Plans are made, and the
//! upstream link is held, only under a claim that was committed in this leadership and is renewed by
//! commits; its deadline counts from when the renewal was sent.

mod ways;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use quire_coordinator::claim::Claim as ClaimCore;
use quire_coordinator::membership::{self, MemberView, MembersView, MembershipChange};
use quire_coordinator::planner::{self, Change, NodeView, PlanView};
use quire_coordinator::timing::{Measured, absent_ms};
use quire_coordinator::{rows, upgrade};
use quire_proto::id::{Epoch, Millis, NodeId};
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Claim, ForgetReaches, Heard, Link, Member, Upgrade};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::{Cluster, ProposeError, Role, is_fit};

/// How often the leader looks at its duties; a dead node is noticed at most this much later.
const TICK: Duration = Duration::from_millis(200);

/// Rows in one plan entry: about 100 KB, so that one entry holds up no heartbeat.
const PLAN_ROWS: usize = 500;

/// Lazy balancing looks so often, though nothing changed.
const LOOK_AGAIN_MS: u64 = 5_000;

/// A peer that lacks fewer entries than a busy second brings has caught up.
const CAUGHT_UP: u64 = 100;

/// How long one of the leader's own commits may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long to wait for a change of membership: with a renewal every second, short enough for the lease
/// of three.
const MEMBERSHIP_PATIENCE: Duration = Duration::from_secs(1);

/// The leader's duties on one node; idle while another leads.
pub(crate) struct Leader {
    cluster: Cluster,
    claim: ClaimCore,
    held: watch::Sender<Option<Epoch>>,
    link: watch::Receiver<Link>,
    /// Log index and settings of the last look at the plan.
    planned: Option<PlanInputs>,
    /// Since when this node leads, and in which term.
    leading: Option<(u64, Instant)>,
    /// Since when each member has been alive (true) or silent (false), in this leadership.
    seen: BTreeMap<NodeId, (bool, Millis)>,
}

/// What a plan depends on; while it stays the same there is nothing to plan.
#[derive(Clone, PartialEq)]
struct PlanInputs {
    settings_index: u64,
    plan_epoch: u64,
    /// Id, zone, draining, witness, alive.
    members: Vec<(u64, String, bool, bool, bool)>,
    /// See [`Cluster::ways`].
    ways: u64,
    /// Of routers and found segments.
    explored_index: u64,
    /// Lazy balancing depends on time too.
    turn: u64,
}

impl Leader {
    /// Duties of the node behind `cluster`; tells through `held` of its claim, by which the upstream
    /// link lives, and all nodes of `link`.
    pub(crate) fn new(
        cluster: Cluster,
        held: watch::Sender<Option<Epoch>>,
        link: watch::Receiver<Link>,
    ) -> Self {
        let (claim, seen) = (ClaimCore::new(), BTreeMap::new());
        Leader { cluster, claim, held, link, planned: None, leading: None, seen }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut standing = self.cluster.watch();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => {}
                changed = standing.changed() => changed.context("follow the cluster's standing")?,
            }
            let leads = {
                let now = standing.borrow_and_update();
                (now.role == Role::Leader && now.quorum).then_some(now.term)
            };
            self.claim.handle_leadership(leads, clock::ticks());
            if self.leading.map(|(term, _)| term) != leads {
                self.leading = leads.map(|term| (term, clock::steady()));
            }
            // A claim that has run out is given up before anything here waits for a commit.
            self.tell_held();
            self.keep_claim().await?;
            match self.tell_held() {
                Some(epoch) => self.duties(epoch).await?,
                None => {
                    self.planned = None;
                    self.seen.clear();
                }
            }
        }
        self.held.send_replace(None);
        Ok(())
    }

    /// Tells the upstream link whether it may live, and under which epoch.
    fn tell_held(&self) -> Option<Epoch> {
        let held = self.claim.held(clock::ticks());
        self.held.send_if_modified(|before| std::mem::replace(before, held) != held);
        held
    }

    async fn keep_claim(&mut self) -> anyhow::Result<()> {
        let Some(proposal) = self.claim.poll(clock::ticks()) else { return Ok(()) };
        let members = rows::members(&self.cluster.view())?;
        let command = Claim {
            node: self.cluster.me().id.0,
            renews: proposal.renews,
            heard: self.heard(&members),
            link: Some(self.link.borrow().clone()),
        };
        match self.cluster.propose_here(Kind::Claim(command), PATIENCE).await {
            Ok(outcome) => {
                if let Some(Answer::Epoch(epoch)) = outcome.result {
                    self.claim.handle_committed(proposal, Epoch(epoch));
                }
            }
            Err(ProposeError::Rejected(why)) => {
                tracing::info!(%why, "claim refused");
                self.claim.handle_refused(proposal, clock::ticks());
            }
            Err(error) => {
                tracing::debug!(%error, "claim not committed");
                self.claim.handle_failed(proposal, clock::ticks());
            }
        }
        Ok(())
    }

    async fn duties(&mut self, epoch: Epoch) -> anyhow::Result<()> {
        let members = rows::members(&self.cluster.view())?;
        self.look_at(&members);
        // The plan first: a lost node's units are looked after before its vote is.
        self.plan(epoch, &members).await?;
        self.settle_members(&members).await;
        self.upgrade(&members).await?;
        self.cluster.rotate(epoch, &self.alive(&members)).await?;
        self.make_way(&members).await;
        Ok(())
    }

    /// Every member knows a later cluster version: the cluster goes there.
    async fn upgrade(&self, members: &[Member]) -> anyhow::Result<()> {
        let Some(version) = upgrade::due(&rows::meta(&self.cluster.view())?, members) else { return Ok(()) };
        match self.cluster.propose_here(Kind::Upgrade(Upgrade { version }), PATIENCE).await {
            Ok(_) => tracing::info!(version, "every node knows this cluster version: it is in force"),
            Err(error) => {
                tracing::info!(%error, version, "cluster version not raised; the next look tries again")
            }
        }
        Ok(())
    }

    /// A node that is being drained or short of disk, or that cannot hold the upstream link, leads no longer than
    /// until another can.
    async fn make_way(&self, members: &[Member]) {
        let me = self.cluster.me().id;
        let unfit = members.iter().any(|member| member.id == me.0 && !is_fit(member));
        if unfit && self.cluster.successor().is_some() {
            self.cluster.hand_over(PATIENCE).await;
            return;
        }
        // A leader that the Web Admin has given no certificate can neither link nor ask for one.
        let enrolled = rows::meta(&self.cluster.view()).is_ok_and(|meta| meta.upstream.is_some());
        if !enrolled || members.iter().any(|member| member.id == me.0 && certified(member)) {
            return;
        }
        let voters = self.cluster.watch().borrow().voters.clone();
        let able = |member: &&Member| {
            certified(member) && is_fit(member) && voters.contains(&NodeId(member.id)) && self.seen(member).0
        };
        let other = members.iter().find(able);
        if let Some(other) = other {
            tracing::info!(to = %other.name, "this node has no certificate for the Web Admin: another leads");
            if let Err(error) = self.cluster.transfer_leader(NodeId(other.id)).await {
                tracing::info!(%error, "the leadership stays; the next look tries again");
            }
        }
    }

    /// Notes who is alive, and since when.
    fn look_at(&mut self, members: &[Member]) {
        let (alive, now) = (self.alive(members), clock::now());
        self.seen.retain(|id, _| members.iter().any(|member| member.id == id.0));
        for member in members {
            let id = NodeId(member.id);
            let lives = alive.contains(&id);
            let seen = self.seen.entry(id).or_insert((lives, now));
            if seen.0 != lives {
                *seen = (lives, now);
            }
        }
    }

    /// Who is not known to be gone and acknowledged lately, this node included. A new leader gives those
    /// it has not heard yet the time in which they would have been.
    fn alive(&self, members: &[Member]) -> BTreeSet<NodeId> {
        let (heard, gone) = (self.cluster.heard(), self.cluster.gone());
        let led = self.leading.map_or(Duration::ZERO, |(_, since)| clock::steady() - since);
        let patience = Duration::from_millis(absent_ms(self.cluster.timing().pace.beat_ms()));
        let lives = |id: &NodeId| {
            let silent = heard.get(id).copied();
            let back = |gone: &Duration| silent.is_some_and(|silent| silent < *gone);
            silent.unwrap_or(led) < patience && gone.get(id).is_none_or(back)
        };
        let me = self.cluster.me().id;
        members.iter().map(|member| NodeId(member.id)).filter(|id| *id == me || lives(id)).collect()
    }

    fn heard(&self, members: &[Member]) -> Vec<Heard> {
        let (lags, acked) = (self.cluster.lag(), self.cluster.acked());
        let of = |numbers: &BTreeMap<NodeId, u64>, id| numbers.get(&id).copied().unwrap_or(0);
        let alive = self.alive(members).into_iter();
        // Older releases would write the row of singletons without these.
        let told = rows::meta(&self.cluster.view()).is_ok_and(|meta| meta.cluster_version >= upgrade::TIMING);
        let heard = alive.map(|id| {
            let Measured { fsync_us, rtt_us } = match told {
                true => self.cluster.timing().of(id, self.cluster.me().id),
                false => Measured::default(),
            };
            Heard { node: id.0, lag: of(&lags, id), acked: of(&acked, id), fsync_us, rtt_us }
        });
        heard.collect()
    }

    fn seen(&self, member: &Member) -> (bool, Millis) {
        self.seen.get(&NodeId(member.id)).copied().unwrap_or_default()
    }

    async fn settle_members(&self, members: &[Member]) {
        let standing = self.cluster.watch().borrow().clone();
        let lags = self.cluster.lag();
        let view = MembersView {
            leader: self.cluster.me().id,
            members: members
                .iter()
                .map(|member| {
                    let (alive, since) = self.seen(member);
                    let id = NodeId(member.id);
                    let caught_up =
                        id == self.cluster.me().id || lags.get(&id).is_some_and(|lag| *lag <= CAUGHT_UP);
                    let (zone, draining, witness) = (member.zone.clone(), member.draining, member.witness);
                    MemberView { id, zone, alive, since, draining, witness, caught_up }
                })
                .collect(),
            voters: standing.voters,
            learners: standing.learners,
            changing: standing.changing,
            now: clock::now(),
        };
        let Some(change) = membership::decide(&view) else { return };
        tracing::info!(?change, "membership");
        let changing = async {
            match change {
                MembershipChange::AddLearner(id) => match members.iter().find(|member| member.id == id.0) {
                    Some(member) => self.cluster.add_learner(member).await,
                    None => Ok(()),
                },
                MembershipChange::SetVoters(voters) => self.cluster.change_voters(voters).await,
                MembershipChange::RemoveLearner(id) => self.cluster.remove(id).await,
            }
        };
        // Raft goes on with a change that nobody waits for; waiting longer would cost the claim.
        match tokio::time::timeout(MEMBERSHIP_PATIENCE, changing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::info!(%error, "membership not changed; the next look tries again"),
            Err(_) => tracing::info!("membership is still changing"),
        }
    }

    async fn plan(&mut self, claim: Epoch, members: &[Member]) -> anyhow::Result<()> {
        // Before the view, so that what comes between is looked at next time.
        let (now, ways) = (clock::now(), self.cluster.ways());
        let tables = self.cluster.view();
        let meta = rows::meta(&tables)?;
        let inputs = PlanInputs {
            settings_index: meta.settings_index,
            plan_epoch: meta.plan_epoch,
            members: members
                .iter()
                .map(|m| {
                    (m.id, m.zone.clone(), m.draining || !m.trouble.is_empty(), m.witness, self.seen(m).0)
                })
                .collect(),
            ways,
            explored_index: meta.explored_index,
            turn: now.0 / LOOK_AGAIN_MS,
        };
        if self.planned.as_ref() == Some(&inputs) {
            return Ok(());
        }
        let settings = match self.cluster.settings() {
            Ok(Some(settings)) => settings,
            Ok(None) => return Ok(()),
            Err(error) if error.passes() => return Ok(()),
            Err(error) => {
                // A later version applied them: the plan stays as it is, and this node goes on.
                tracing::error!(%error, "the settings cannot be read: the plan stays");
                self.planned = Some(inputs);
                return Ok(());
            }
        };
        let view = PlanView::read(&tables, &settings, self.node_views(members), now)?;
        let changes = planner::plan(&view);
        let unwanted =
            ways::unwanted(&rows::reaches(&tables)?, &settings, &rows::segments(&tables)?, &view.wanted);
        drop(tables);
        self.forget(claim, unwanted).await;
        // What was not committed is planned again at the next tick, not at the next change.
        self.planned = match self.commit(claim, changes).await? {
            true => {
                let plan_epoch = rows::meta(&self.cluster.view())?.plan_epoch;
                Some(PlanInputs { plan_epoch, ..inputs })
            }
            false => None,
        };
        Ok(())
    }

    fn node_views(&self, members: &[Member]) -> Vec<NodeView> {
        let view = |member: &Member| {
            let (alive, since) = self.seen(member);
            NodeView::of(member, alive, since)
        };
        members.iter().map(view).collect()
    }

    /// Ways to segments that nobody wants any more are no news; the next look tries again where this fails.
    async fn forget(&self, claim: Epoch, mut segments: Vec<String>) {
        segments.truncate(PLAN_ROWS);
        if segments.is_empty() {
            return;
        }
        let forget = Kind::ForgetReaches(ForgetReaches { claim: claim.0, segments });
        if let Err(error) = self.cluster.propose_here(forget, PATIENCE).await {
            tracing::debug!(%error, "old ways not forgotten yet");
        }
    }

    /// True when all of it was committed.
    async fn commit(&mut self, claim: Epoch, changes: Vec<Change>) -> anyhow::Result<bool> {
        let version = rows::meta(&self.cluster.view())?.cluster_version;
        for some in changes.chunks(PLAN_ROWS) {
            // A large plan takes many entries, and the claim must outlive them.
            self.keep_claim().await?;
            let plan = planner::command(claim, some, version);
            tracing::info!(grants = plan.grants.len(), drops = plan.drop_units.len(), "plan");
            if let Err(error) = self.cluster.propose_here(Kind::Plan(plan), PATIENCE).await {
                tracing::info!(%error, "plan not committed; the next look makes a new one");
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn certified(member: &Member) -> bool {
    !member.upstream_certificate_der.is_empty()
}
