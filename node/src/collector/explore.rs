//! `[discovery] hops`: this node's links and routers, asked, and what they tell reported to the cluster.
//!
//! Which router is whose is decided by `explore::survey` from the replicated tables, where every answer lands as well;
//! here it is only carried out. Once in a round each: rounds begin with the schedule of the sweeps, and when somebody
//! asks. Without quorum nothing is asked. What is found is a fact for the tables; whether it is searched follows from
//! the settings and the operator's word (`quire_coordinator::found`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use quire_coordinator::explore::{self, Bounds, Known, Map, RouterView, Verdict};
use quire_coordinator::found;
use quire_coordinator::planner::NodeView;
use quire_coordinator::rows;
use quire_coordinator::schedule::Schedule;
use quire_coordinator::settings::Settings;
use quire_coordinator::upgrade;
use quire_proto::id::{ANY_ZONE, Millis, NodeId};
use quire_proto::store::command::Kind;
use quire_proto::store::{
    FoundSegment, Meta, ReportExploration, RouterReport, RouterRow, RouterTrial, SegmentRow,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::credentials;
use crate::clock;
use crate::cluster::{Cluster, ProposeError, View};
use crate::device::{self, Leave, RouterAnswer};
use crate::routes;
use crate::snmp::Snmp;

/// How often tables and kernel are looked at; the kernel's tables cost some 100 microseconds.
const LOOK: Duration = Duration::from_secs(1);

/// Routers that this node asks at the same time, each with one request in flight.
const AT_ONCE: usize = 8;

/// Live addresses of a node's own links that go into the tables, 18 octets each; a router's come in the same number.
const OWN_NEIGHBOURS: usize = 1_024;

/// Found segments in one entry of the log: with chains of 32 routers some 200 KB at the most.
const SEGMENTS: usize = 256;

/// An answer that the tables do not show after so long was refused: the zone has too many routers.
const FORGOTTEN_MS: u64 = 60_000;

/// How long a commit may take; the next look repeats it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks routers and reports.
pub(crate) struct Explorer {
    cluster: Cluster,
    snmp: Snmp,
    /// `None`: not asked, for want of a quorum.
    asking: JoinSet<(IpAddr, Option<RouterReport>)>,
    /// Routers that are being asked, or whose answers wait for their commit: at most [`AT_ONCE`].
    busy: BTreeSet<IpAddr>,
    /// When those were asked whose answers are committed, and which this node's tables may not show yet.
    committed: BTreeMap<IpAddr, u64>,
    answered: Vec<RouterReport>,
    /// What the last look that had nothing to do depended on.
    idle: Option<Inputs>,
}

/// What a look depends on.
#[derive(Clone, PartialEq)]
struct Inputs {
    explored_index: u64,
    settings_index: u64,
    round: Millis,
    origins: Vec<u64>,
    own: RouterView,
}

/// The tables as one look sees them.
struct Scene {
    settings: std::sync::Arc<Settings>,
    hops: u32,
    meta: Meta,
    zone: String,
    routers: Vec<RouterRow>,
    segments: Vec<SegmentRow>,
    /// Nodes of the zone that may ask, this one included.
    origins: BTreeMap<NodeId, RouterView>,
    round: Millis,
}

impl Explorer {
    /// Of the node behind `cluster`.
    pub(crate) fn new(cluster: Cluster, snmp: Snmp) -> Self {
        Explorer {
            cluster,
            snmp,
            asking: JoinSet::new(),
            busy: BTreeSet::new(),
            committed: BTreeMap::new(),
            answered: Vec::new(),
            idle: None,
        }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = look.tick() => {}
                Some(done) = self.asking.join_next(), if !self.asking.is_empty() => {
                    match done.context("ask a router")? {
                        (_, Some(report)) => self.answered.push(report),
                        (router, None) => drop(self.busy.remove(&router)),
                    }
                }
            }
            self.look().await?;
        }
    }

    async fn look(&mut self) -> anyhow::Result<()> {
        if !self.cluster.watch().borrow().quorum || !self.hand_in().await {
            return Ok(());
        }
        let me = self.cluster.me().id;
        let own = own_view();
        let Some(scene) = scene(&self.cluster, &own)? else { return Ok(()) };
        let inputs = scene.inputs(&own);
        if self.idle.as_ref() == Some(&inputs) {
            return Ok(());
        }
        if scene.own_is_news(me, &own) {
            self.report(ReportExploration {
                own: Some(found::from_view(&own)),
                ..ReportExploration::default()
            })
            .await;
            // The next look sees it in the tables.
            return Ok(());
        }
        let survey = explore::survey(me, &scene.origins, &scene.known(), &scene.bounds());
        self.ask(&scene, &survey.ask);
        let reported = self.report_segments(&scene, &survey.map, survey.done).await;
        self.idle = (reported && survey.ask.is_empty() && self.busy.is_empty()).then_some(inputs);
        Ok(())
    }

    fn ask(&mut self, scene: &Scene, routers: &[IpAddr]) {
        let credentials = credentials::of(&scene.settings);
        let settings_index = scene.meta.settings_index;
        let shown = |router: &IpAddr, at: u64| {
            scene.routers.iter().any(|row| row.asked_at_ms >= at && row.address == router.to_string())
        };
        let now = clock::now().0;
        self.committed.retain(|router, at| now < *at + FORGOTTEN_MS && !shown(router, *at));
        for router in routers {
            let waits = self.committed.contains_key(router);
            if waits || self.busy.len() >= AT_ONCE || !self.busy.insert(*router) {
                continue;
            }
            let (snmp, credentials, router) = (self.snmp.clone(), credentials.clone(), *router);
            let peer = SocketAddr::new(router, scene.settings.discovery.port);
            let asked_at_ms = clock::now().0;
            let (leave, before) = (self.leave(scene, router), scene.refusal(router));
            self.asking.spawn(async move {
                let answer = device::read_router(&snmp, peer, &credentials, leave).await;
                let mut report = RouterReport {
                    address: router.to_string(),
                    asked_at_ms,
                    settings_index,
                    ..RouterReport::default()
                };
                match answer {
                    RouterAnswer::View(view) => report.view = Some(found::from_view(&view)),
                    RouterAnswer::Refused(user, reason) => report.refusal = format!("user {user}: {reason}"),
                    // What the node found that tried them, so that no sweep offers them there again.
                    RouterAnswer::Left(Leave::Tried) => report.refusal = before,
                    RouterAnswer::Left(Leave::Try | Leave::Later) => return (router, None),
                    RouterAnswer::Silent => {}
                }
                (router, Some(report))
            });
        }
    }

    /// Whether this node is the one that tries SNMPv3 users at a router in this round: who has it committed.
    fn leave(&self, scene: &Scene, router: IpAddr) -> impl Future<Output = Leave> + Send + use<> {
        let trial = RouterTrial {
            node: self.cluster.me().id.0,
            address: router.to_string(),
            round_ms: scene.round.0,
            settings_index: scene.meta.settings_index,
        };
        let (cluster, version) = (self.cluster.clone(), scene.meta.cluster_version);
        async move {
            if version < upgrade::ROUTER_TRIAL {
                return Leave::Try;
            }
            match cluster.propose(Kind::RouterTrial(trial), PATIENCE).await {
                Ok(_) => Leave::Try,
                Err(ProposeError::Rejected(why)) => {
                    tracing::info!(%router, %why, "no user is tried at the router");
                    Leave::Tried
                }
                Err(error) => {
                    tracing::info!(%router, %error, "no user is tried at the router yet");
                    Leave::Later
                }
            }
        }
    }

    /// Commits what routers answered; false when that has to wait. They are not asked again meanwhile.
    async fn hand_in(&mut self) -> bool {
        while let Some(report) = self.answered.last() {
            if !report.refusal.is_empty() {
                tracing::warn!(router = %report.address, reason = %report.refusal, "credentials refused");
            }
            let routers = vec![report.clone()];
            if !self.report(ReportExploration { routers, ..ReportExploration::default() }).await {
                return false;
            }
            if let Some(report) = self.answered.pop()
                && let Ok(router) = report.address.parse()
            {
                self.busy.remove(&router);
                self.committed.insert(router, report.asked_at_ms);
            }
        }
        true
    }

    /// Reports this node's ways that changed, and forgets old ones; true when the tables have them all.
    async fn report_segments(&self, scene: &Scene, map: &Map, done: bool) -> bool {
        let me = self.cluster.me().id;
        let mut news = scene.news(me, map, done);
        let all = news.len();
        // As many as fit into one entry; the next look goes on.
        news.truncate(SEGMENTS);
        let forget_before_ms = if done { scene.forget_before(me) } else { 0 };
        if all == 0 && forget_before_ms == 0 {
            return done;
        }
        for segment in &news {
            tracing::info!(segment = %segment.prefix, hops = segment.hops, via = ?segment.chain, "segment found");
        }
        let report = ReportExploration { segments: news, forget_before_ms, ..ReportExploration::default() };
        self.report(report).await && all <= SEGMENTS && done
    }

    async fn report(&self, report: ReportExploration) -> bool {
        let report = ReportExploration { node: self.cluster.me().id.0, ..report };
        let committed = self.cluster.propose(Kind::ReportExploration(report), PATIENCE).await;
        if let Err(error) = &committed {
            tracing::debug!(%error, "exploration not reported yet");
        }
        committed.is_ok()
    }
}

/// This node's links, without what is of this machine alone, and the first of its neighbours.
fn own_view() -> RouterView {
    let mut own = routes::own_view();
    own.neighbours = own.neighbours.into_iter().take(OWN_NEIGHBOURS).collect();
    own
}

/// `None` where nothing is to be explored, by this node.
fn scene(cluster: &Cluster, own: &RouterView) -> anyhow::Result<Option<Scene>> {
    let settings = match cluster.settings() {
        Ok(Some(settings)) => settings,
        Ok(None) => return Ok(None),
        Err(error) => {
            tracing::debug!(%error, "the settings cannot be read: nothing is explored");
            return Ok(None);
        }
    };
    let Some(hops) = settings.discovery.hops else { return Ok(None) };
    let (tables, me) = (cluster.view(), cluster.me());
    let meta = rows::meta(&tables)?;
    let members = rows::members(&tables)?;
    let able = |id: u64| {
        let heard = id == me.id.0 || meta.heard.iter().any(|heard| heard.node == id);
        let member = members.iter().find(|member| member.id == id && member.zone == me.zone);
        member.is_some_and(|member| NodeView::of(member, heard, Millis(0)).is_eligible())
    };
    if !able(me.id.0) {
        return Ok(None);
    }
    let mut routers = rows::routers(&tables)?;
    routers.retain(|row| row.zone == me.zone);
    let mut origins: BTreeMap<NodeId, RouterView> = routers
        .iter()
        .filter(|row| row.address.is_empty() && able(row.node))
        .filter_map(|row| Some((NodeId(row.node), found::to_view(row.view.as_ref()?))))
        .collect();
    origins.insert(me.id, own.clone());
    let round = round(&settings.discovery.schedule, meta.explore_asked_at_ms, clock::now());
    let mut segments = rows::segments(&tables)?;
    segments.retain(|row| row.zone == me.zone);
    let zone = me.zone.clone();
    Ok(Some(Scene { settings, hops, meta, zone, routers, segments, origins, round }))
}

/// When the round began: a slot, or a request. One by a clock that is ahead waits until this node's has come to it:
/// nothing that is told before would count as told in that round, and so be told without end.
fn round(schedule: &Schedule, asked_at_ms: u64, now: Millis) -> Millis {
    let asked = Some(Millis(asked_at_ms)).filter(|asked| *asked <= now);
    schedule.last_slot(now).max(asked).unwrap_or_default()
}

impl Scene {
    fn inputs(&self, own: &RouterView) -> Inputs {
        Inputs {
            explored_index: self.meta.explored_index,
            settings_index: self.meta.settings_index,
            round: self.round,
            origins: self.origins.keys().map(|id| id.0).collect(),
            own: RouterView { neighbours: BTreeSet::new(), ..own.clone() },
        }
    }

    /// Neighbours come and go all day; the tables get them once a round.
    fn own_is_news(&self, me: NodeId, own: &RouterView) -> bool {
        let row = self.routers.iter().find(|row| row.address.is_empty() && row.node == me.0);
        let Some(row) = row else { return true };
        let mut stored = row.view.as_ref().map(found::to_view).unwrap_or_default();
        stored.neighbours.clone_from(&own.neighbours);
        stored != *own || row.answered_at_ms < self.round.0
    }

    fn known(&self) -> BTreeMap<IpAddr, Known> {
        let oldest = self.oldest();
        let known = |row: &RouterRow| {
            let silent = row.answered_at_ms < row.asked_at_ms;
            let other_credentials = silent && row.settings_index != self.meta.settings_index;
            let due = row.asked_at_ms < self.round.0 || other_credentials;
            let view = row.view.as_ref().filter(|_| row.answered_at_ms >= oldest).map(found::to_view);
            Some((row.address.parse().ok()?, Known { view, due }))
        };
        self.routers.iter().filter_map(known).collect()
    }

    /// What a router said of the users that were tried at it last; something in any case, or a sweep would try them.
    fn refusal(&self, router: IpAddr) -> String {
        let address = router.to_string();
        let row = self.routers.iter().find(|row| row.address == address && !row.refusal.is_empty());
        row.map_or_else(|| "its users were tried by another node".to_owned(), |row| row.refusal.clone())
    }

    /// What was heard last before this is forgotten.
    fn oldest(&self) -> u64 {
        clock::now().0.saturating_sub(self.settings.metering.expire_after_ms)
    }

    /// The operator's own segments are in the house, whatever their addresses look like.
    fn bounds(&self) -> Bounds {
        let discovery = &self.settings.discovery;
        let here = |zone: &str| zone == ANY_ZONE || zone == self.zone;
        let named =
            discovery.segments.iter().filter(|segment| here(&segment.zone)).map(|segment| segment.prefix);
        let accepted = self.segments.iter().filter(|row| row.decision == found::ACCEPTED);
        Bounds {
            hops: self.hops,
            exclude: discovery.exclude.clone(),
            given: named.chain(accepted.filter_map(|row| row.prefix.parse().ok())).collect(),
            accept: discovery.accept,
            ..Bounds::default()
        }
    }

    /// This node's ways as far as the tables have others. While routers are still to be asked, what lies behind them
    /// is not told yet: it may be nearer than it looks.
    fn news(&self, me: NodeId, map: &Map, done: bool) -> Vec<FoundSegment> {
        let mut news = Vec::new();
        for segment in &map.segments {
            let at_least = segment.verdict == Verdict::DistanceUnknown;
            if at_least && !done {
                continue;
            }
            let told_by = segment.chain.iter().rev().nth(usize::from(at_least));
            let found = FoundSegment {
                prefix: segment.prefix.to_string(),
                hops: segment.hops,
                at_least,
                chain: segment.chain.iter().map(IpAddr::to_string).collect(),
                seen_at_ms: self.heard_of(me, told_by.copied()),
            };
            let row = self.segments.iter().find(|row| row.prefix == found.prefix);
            let way = row.and_then(|row| row.ways.iter().find(|way| way.node == me.0));
            if way.and_then(|way| way.found.as_ref()) != Some(&found) {
                news.push(found);
            }
        }
        news
    }

    /// When a router, or this node's kernel, was heard last.
    fn heard_of(&self, me: NodeId, router: Option<IpAddr>) -> u64 {
        let text = router.map(|router| router.to_string()).unwrap_or_default();
        let is_it = |row: &&RouterRow| match router {
            None => row.address.is_empty() && row.node == me.0,
            Some(_) => {
                let own = row.view.iter().flat_map(|view| &view.addresses);
                !row.address.is_empty() && (row.address == text || own.into_iter().any(|ip| *ip == text))
            }
        };
        self.routers.iter().filter(is_it).map(|row| row.answered_at_ms).max().unwrap_or(0)
    }

    /// 0 while none of this node's ways is old.
    fn forget_before(&self, me: NodeId) -> u64 {
        let oldest = self.oldest();
        let mut mine = self.segments.iter().flat_map(|row| &row.ways).filter(|way| way.node == me.0);
        let old = mine.any(|way| way.found.as_ref().is_none_or(|found| found.seen_at_ms < oldest));
        if old { oldest } else { 0 }
    }
}

/// What a sweep of a unit knows beforehand.
#[derive(Clone, Debug, Default)]
pub(super) struct Guide {
    /// Addresses that somebody has spoken with lately: asked first, and of a large IPv6 prefix alone.
    pub(super) live: BTreeSet<IpAddr>,
    /// Routers that were asked already.
    pub(super) leave: BTreeSet<IpAddr>,
}

/// The guide to a prefix, for a node of this zone.
pub(super) fn guide(tables: &View, zone: &str, prefix: IpNet) -> Guide {
    let known = found::live(tables, zone, prefix).unwrap_or_default();
    let own = routes::neighbours().into_iter().filter(|ip| prefix.contains(ip));
    let rows = rows::routers(tables).unwrap_or_default();
    Guide { live: known.into_iter().chain(own).collect(), leave: found::routers_of(&rows, zone).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_by_a_clock_that_is_ahead_waits_for_its_time() {
        let schedule = Schedule::parse("every 1h").unwrap();
        let slot = 1_795_345_200_000;
        let round = |asked_at_ms, now| round(&schedule, asked_at_ms, Millis(now)).0;
        assert_eq!(round(0, slot + 5_000), slot);
        assert_eq!(round(slot + 2_000, slot + 5_000), slot + 2_000);
        assert_eq!(round(slot + 65_000, slot + 5_000), slot, "not told again every second until then");
        assert_eq!(round(slot + 65_000, slot + 65_000), slot + 65_000);
    }
}
