//! `--hops`: asks routers for their tables, before the pass, and turns what they name into targets.
//!
//! What may be asked and swept is `explore`'s decision; here it is only carried out and told. Routers are asked at the
//! pass's port with the pass's credentials, within its rate.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use ipnet::IpNet;
use quire_coordinator::explore::{self, Bounds, Evidence, Exploration, MAX_ROUTERS, Map, Verdict};
use quire_proto::address::Target;
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::{Finding, Options};
use crate::device::{self, MAX_ROUTER_REQUESTS, RouterAnswer};
use crate::routes::{self, distance};
use crate::snmp::Snmp;

/// Routers being asked at the same time; each has one request in flight.
const AT_ONCE: usize = 16;

/// What would be explored.
#[derive(Debug, Serialize)]
pub(crate) struct Plan {
    /// Routers between this machine and the furthest segment.
    pub(crate) hops: u32,
    /// Own links.
    pub(crate) links: Vec<IpNet>,
    /// Gateways that would be asked first.
    pub(crate) routers: Vec<IpAddr>,
    pub(crate) routers_at_most: usize,
    pub(crate) requests_per_router_at_most: usize,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |parts: Vec<String>| {
            if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
        };
        let links = join(self.links.iter().map(IpNet::to_string).collect());
        let routers = join(self.routers.iter().map(IpAddr::to_string).collect());
        write!(
            f,
            "explored first, up to {} hops away: own links {links}; routers asked first: {routers}; \
             at most {} routers and {} requests to each; segments found come on top",
            self.hops, self.routers_at_most, self.requests_per_router_at_most
        )
    }
}

/// What [`explore`] would do; sends nothing.
pub(crate) fn plan(options: &Options, hops: u32) -> Plan {
    let own = routes::own_view();
    let exploration = Exploration::new(bounds(options, hops), &own);
    Plan {
        hops,
        routers: exploration.waiting().collect(),
        links: own.attached.into_iter().filter(|link| !is_link_local(link)).collect(),
        routers_at_most: if hops == 0 { 0 } else { MAX_ROUTERS },
        requests_per_router_at_most: MAX_ROUTER_REQUESTS,
    }
}

fn is_link_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr().is_link_local(),
        IpNet::V6(net) => net.addr().is_unicast_link_local(),
    }
}

fn bounds(options: &Options, hops: u32) -> Bounds {
    let given = options.targets.iter().filter_map(|target| match target {
        Target::Prefix(net, _) => Some(*net),
        Target::Host(host, _) => Some(IpNet::from(*host)),
        Target::Range(..) => None,
    });
    Bounds { hops, exclude: options.exclude.clone(), given: given.collect(), ..Bounds::default() }
}

/// What an exploration brought.
#[derive(Debug, Default)]
pub(super) struct Found {
    map: Map,
    /// Addresses of routers that answered or refused.
    pub(super) routers: BTreeSet<IpAddr>,
}

impl Found {
    /// The named targets, then addresses known to live, then all accepted segments.
    pub(super) fn targets(&self, named: Vec<Target>) -> Vec<Target> {
        let live = self.map.neighbours.keys().map(|ip| Target::Host(*ip, None));
        named
            .into_iter()
            .chain(live)
            .chain(self.accepted().map(|(net, _)| Target::Prefix(net, None)))
            .collect()
    }

    /// Routers between this machine and an address in an accepted segment.
    pub(super) fn hops_to(&self, ip: IpAddr) -> Option<u8> {
        let segment =
            self.accepted().filter(|(net, _)| net.contains(&ip)).max_by_key(|(net, _)| net.prefix_len());
        let hops = segment.map(|(_, hops)| hops).or_else(|| self.map.neighbours.get(&ip).copied());
        hops.and_then(|hops| u8::try_from(hops).ok())
    }

    fn accepted(&self) -> impl Iterator<Item = (IpNet, u32)> {
        let accepted = self.map.segments.iter().filter(|segment| segment.verdict == Verdict::Accepted);
        accepted.map(|segment| (segment.prefix, segment.hops))
    }
}

/// Asks routers until the bound is reached or nothing new is named; tells every proposed segment.
///
/// # Errors
/// When a task panicked.
pub(super) async fn explore(
    snmp: &Snmp,
    options: &Options,
    hops: u32,
    tell: &mpsc::Sender<Finding>,
) -> anyhow::Result<Found> {
    let mut exploration = Exploration::new(bounds(options, hops), &routes::own_view());
    let mut routers = BTreeSet::new();
    let mut reads = JoinSet::new();
    loop {
        while reads.len() < AT_ONCE
            && let Some(router) = exploration.poll_router()
        {
            let (snmp, credentials) = (snmp.clone(), options.credentials.clone());
            let peer = SocketAddr::new(router, options.port);
            reads.spawn(async move {
                (
                    router,
                    device::read_router(&snmp, peer, &credentials, std::future::ready(device::Leave::Try))
                        .await,
                )
            });
        }
        let Some(done) = reads.join_next().await else { break };
        let (router, answer) = done.context("ask a router")?;
        match answer {
            RouterAnswer::View(view) => {
                if view.forwarding == Some(true) {
                    routers.extend(view.addresses.iter().chain([&router]));
                }
                exploration.handle_view(router, Some(&view));
            }
            RouterAnswer::Refused(user, reason) => {
                routers.insert(router);
                remark(tell, format!("{router}: user {user}: {reason}")).await;
                exploration.handle_view(router, None);
            }
            RouterAnswer::Silent | RouterAnswer::Left(_) => {
                remark(tell, format!("router {router} does not tell its tables")).await;
                exploration.handle_view(router, None);
            }
        }
    }
    let mut map = exploration.finish();
    measure(&mut map, options, hops).await?;
    tell_map(&map, tell).await;
    Ok(Found { map, routers })
}

/// Measures how far those segments are whose last router tells nothing; one that is within the bound is as good as
/// any other.
async fn measure(map: &mut Map, options: &Options, hops: u32) -> anyhow::Result<()> {
    /// Segments behind silent routers that are measured; each takes up to half a minute where nobody answers.
    const MOST: usize = 16;
    // A measurement sends at most 20 packets a second.
    let at_once = if options.rate == 0 { MOST } else { (options.rate as usize / 20).clamp(1, MOST) };
    let room = Arc::new(Semaphore::new(at_once));
    let bounds = bounds(options, hops);
    let known = Evidence { own_link: false, distance_known: true };
    let would_be_swept = |prefix| explore::verdict(prefix, known, &bounds) == Verdict::Accepted;
    let mut measuring = JoinSet::new();
    for (n, segment) in map.segments.iter().enumerate() {
        let IpNet::V4(net) = segment.prefix else { continue };
        let silent = segment.verdict == Verdict::DistanceUnknown && would_be_swept(segment.prefix);
        if silent && measuring.len() < MOST {
            let addresses = distance::candidates(net, &options.exclude);
            let room = Arc::clone(&room);
            measuring.spawn(async move {
                // Never closed.
                let _turn = room.acquire().await;
                (n, tokio::task::spawn_blocking(move || distance::measure(&addresses)).await)
            });
        }
    }
    while let Some(done) = measuring.join_next().await {
        let (n, measured) = done.context("measure a distance")?;
        let measured = measured.context("measure a distance")?.unwrap_or_default();
        if let Some(measured) = measured.filter(|measured| *measured <= hops) {
            let segment = &mut map.segments[n];
            (segment.hops, segment.verdict) = (measured, Verdict::Accepted);
        }
    }
    Ok(())
}

async fn tell_map(map: &Map, tell: &mpsc::Sender<Finding>) {
    for segment in &map.segments {
        let more = if segment.verdict == Verdict::DistanceUnknown { " or more" } else { "" };
        let chain: Vec<String> = segment.chain.iter().map(IpAddr::to_string).collect();
        let way = if chain.is_empty() { "own link".to_owned() } else { format!("via {}", chain.join(", ")) };
        let text =
            format!("segment {}: {} hops{more}, {way}: {}", segment.prefix, segment.hops, segment.verdict);
        remark(tell, text).await;
    }
    if map.left_out > 0 {
        remark(tell, format!("{} routers or segments beyond the bounds were left out", map.left_out)).await;
    }
}

async fn remark(tell: &mpsc::Sender<Finding>, text: String) {
    // Nobody listens any more: the pass ends soon.
    drop(tell.send(Finding::Remark(text)).await);
}
