//! What the leader does besides replicating: claims, plans, and settles who votes.
//!
//! Architecture Invariant: "I am leader" is never taken from Raft's state alone. Plans are made, and the
//! upstream link is held, only under a claim that was committed in this leadership and is renewed by
//! commits; its deadline counts from when the renewal was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use quire_coordinator::claim::{ClaimCore, ProposeClaim};
use quire_coordinator::membership::{self, MembersView, MembershipChange};
use quire_coordinator::planner::{self, Change, NodeView, PlanView};
use quire_coordinator::rows;
use quire_proto::id::{Epoch, Millis, NodeId};
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Claim, Grant, Heard, Link, Plan};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::{Cluster, ProposeError, Role};

/// How often the leader looks at its duties; a dead node is noticed at most this much later.
const TICK: Duration = Duration::from_millis(200);

/// A peer that has acknowledged nothing for so long is dead for planning.
const SILENT: Duration = Duration::from_millis(1_500);

/// Rows in one plan entry: about 100 KB, so that one entry holds up no heartbeat.
const PLAN_ROWS: usize = 500;

/// How long one of the leader's own commits may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The claim that this node holds, if any; the upstream link lives by it.
pub(crate) type Held = Option<Epoch>;

/// The leader's duties on one node; idle while another leads.
pub(crate) struct Leader {
    cluster: Cluster,
    claim: ClaimCore,
    held: watch::Sender<Held>,
    link: watch::Receiver<Link>,
    /// Log index and settings of the last look at the plan.
    planned: Option<PlanInputs>,
    dead_since: BTreeMap<NodeId, Millis>,
}

/// What a plan depends on; while it stays the same there is nothing to plan.
#[derive(Clone, PartialEq, Eq)]
struct PlanInputs {
    settings_index: u64,
    plan_epoch: u64,
    alive: BTreeSet<NodeId>,
    members: Vec<(u64, String, bool, bool)>,
    reaches: usize,
    /// Lazy balancing looks again from time to time.
    minute: u64,
}

impl Leader {
    /// Duties of the node behind `cluster`; tells of its claim through `held`, and all nodes of `link`.
    pub(crate) fn new(cluster: Cluster, held: watch::Sender<Held>, link: watch::Receiver<Link>) -> Self {
        let claim = ClaimCore::new(cluster.me().id);
        Leader { cluster, claim, held, link, planned: None, dead_since: BTreeMap::new() }
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
            self.claim.handle_leadership(leads, clock::now());
            self.keep_claim().await;
            let held = self.claim.held(clock::now());
            self.held.send_if_modified(|before| std::mem::replace(before, held) != held);
            match held {
                Some(epoch) => {
                    self.settle_members().await;
                    self.plan(epoch).await?;
                }
                None => self.planned = None,
            }
        }
        self.held.send_replace(None);
        Ok(())
    }

    async fn keep_claim(&mut self) {
        let sent_at = clock::now();
        let Some(ProposeClaim { renews }) = self.claim.poll(sent_at) else { return };
        let command = Claim {
            node: self.cluster.me().id.0,
            renews: renews.map_or(0, |epoch| epoch.0),
            heard: self.heard(),
            link: Some(self.link.borrow().clone()),
        };
        match self.cluster.propose_here(Kind::Claim(command), PATIENCE).await {
            Ok(outcome) => {
                if let Some(Answer::Epoch(epoch)) = outcome.result {
                    self.claim.handle_committed(Epoch(epoch), sent_at);
                }
            }
            Err(ProposeError::Rejected(why)) => {
                tracing::info!(%why, "claim refused");
                self.claim.handle_refused();
            }
            // The next tick asks again; the deadline of the claim goes on meanwhile.
            Err(error) => tracing::debug!(%error, "claim not committed"),
        }
    }

    /// Who acknowledged lately, this node included.
    fn alive(&self) -> BTreeSet<NodeId> {
        let heard = self.cluster.heard();
        let peers = heard.iter().filter(|(_, peer)| peer.since < SILENT).map(|(id, _)| *id);
        peers.chain([self.cluster.me().id]).collect()
    }

    fn heard(&self) -> Vec<Heard> {
        let lags = self.cluster.heard();
        self.alive()
            .into_iter()
            .map(|id| Heard { node: id.0, lag: lags.get(&id).map_or(0, |peer| peer.lag) })
            .collect()
    }

    async fn settle_members(&mut self) {
        let now = clock::now();
        let alive = self.alive();
        let Ok(members) = rows::members(&self.cluster.view()) else { return };
        self.dead_since.retain(|id, _| !alive.contains(id));
        for member in &members {
            let id = NodeId(member.id);
            if !alive.contains(&id) {
                self.dead_since.entry(id).or_insert(now);
            }
        }
        let standing = self.cluster.watch().borrow().clone();
        let lags = self.cluster.heard();
        let view = MembersView {
            members: &members,
            voters: &standing.voters,
            learners: &standing.learners,
            dead_since: &self.dead_since,
            lag: &lags.iter().map(|(id, peer)| (*id, peer.lag)).collect(),
            me: self.cluster.me().id,
            now,
        };
        let Some(change) = membership::decide(&view) else { return };
        tracing::info!(?change, "membership");
        let done = match change {
            MembershipChange::AddLearner(id) => match members.iter().find(|member| member.id == id.0) {
                Some(member) => self.cluster.add_learner(member).await,
                None => return,
            },
            MembershipChange::SetVoters(voters) => self.cluster.change_voters(voters).await,
            MembershipChange::Remove(id) => self.cluster.remove(id).await,
        };
        if let Err(error) = done {
            tracing::warn!(error = format!("{error:#}"), "membership not changed; will try again");
        }
    }

    async fn plan(&mut self, claim: Epoch) -> anyhow::Result<()> {
        let now = clock::now();
        let tables = self.cluster.view();
        let meta = rows::meta(&tables)?;
        let members = rows::members(&tables)?;
        let reaches = rows::reaches(&tables)?;
        let inputs = PlanInputs {
            settings_index: meta.settings_index,
            plan_epoch: meta.plan_epoch,
            alive: self.alive(),
            members: members
                .iter()
                .map(|member| (member.id, member.zone.clone(), member.draining, member.witness))
                .collect(),
            reaches: reaches.len(),
            minute: now.0 / 60_000,
        };
        if self.planned.as_ref() == Some(&inputs) {
            return Ok(());
        }
        let Some(settings) = self.cluster.settings()? else { return Ok(()) };
        let nodes = members
            .iter()
            .map(|member| NodeView {
                id: NodeId(member.id),
                zone: member.zone.clone(),
                alive: inputs.alive.contains(&NodeId(member.id)),
                draining: member.draining,
                witness: member.witness,
            })
            .collect();
        let changes =
            planner::plan(&PlanView::new(rows::units(&tables)?, planner::units(&settings), nodes, &reaches, now));
        drop(tables);
        self.commit(claim, changes).await;
        let plan_epoch = rows::meta(&self.cluster.view())?.plan_epoch;
        self.planned = Some(PlanInputs { plan_epoch, ..inputs });
        Ok(())
    }

    async fn commit(&self, claim: Epoch, changes: Vec<Change>) {
        for some in changes.chunks(PLAN_ROWS) {
            let mut plan = Plan { claim: claim.0, ..Plan::default() };
            for change in some {
                match change {
                    Change::Grant(grant) => plan.grants.push(Grant::from(grant)),
                    Change::Drop(unit) => plan.drop_units.push(unit.to_string()),
                }
            }
            tracing::info!(grants = plan.grants.len(), drops = plan.drop_units.len(), "plan");
            if let Err(error) = self.cluster.propose_here(Kind::Plan(plan), PATIENCE).await {
                tracing::warn!(%error, "plan not committed; the next look makes a new one");
                return;
            }
        }
    }
}
