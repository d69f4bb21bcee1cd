//! Which segments this node reaches, and over how many routers.
//!
//! A segment on one of the node's own links is 0 hops away; one that no route leads to is unreachable.
//! All other IPv4 segments are measured, one after another, with a few datagrams each once an hour; where that
//! tells nothing the distance is not known, and nothing is guessed. Excluded addresses are never sent anything.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use quire_coordinator::explore::Verdict;
use quire_coordinator::found::{self, State};
use quire_coordinator::rows;
use quire_coordinator::settings::Settings;
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_coordinator::topology::{self, ReachMap};
use quire_proto::id::ANY_ZONE;
use quire_proto::store::command::Kind;
use quire_proto::store::{Reach, ReachRow, ReportReach};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::Cluster;
use crate::routes::{self, distance};

/// Links and routes change rarely, and asking the kernel is cheap.
const LOOK: Duration = Duration::from_secs(5);

/// How long a report may take; the next look repeats it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a measured distance counts. One segment is measured a [`LOOK`] at the most, so 1,000 segments take an hour
/// and a half, at under three datagrams a second.
const REMEASURE_MS: u64 = 3_600_000;

/// Addresses of one segment that are measured.
const ADDRESSES: usize = 2;

/// Measured distances by segment, with when.
type Distances = BTreeMap<IpNet, (Option<u32>, u64)>;

/// Reports what changed in this node's ways.
pub(crate) struct Reachability {
    cluster: Cluster,
    distances: Distances,
    /// At most one: the segment being measured.
    measuring: JoinSet<(IpNet, Option<u32>)>,
}

impl Reachability {
    /// Of the node behind `cluster`.
    pub(crate) fn new(cluster: Cluster) -> Self {
        Reachability { cluster, distances: Distances::new(), measuring: JoinSet::new() }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut standing = self.cluster.watch();
        let mut settings_index = 0;
        let mut look = tokio::time::interval(LOOK);
        loop {
            let now = tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = look.tick() => true,
                changed = standing.changed() => {
                    changed?;
                    false
                }
                Some(measured) = self.measuring.join_next(), if !self.measuring.is_empty() => {
                    let (segment, hops) = measured.context("measure a distance")?;
                    self.distances.insert(segment, (hops, clock::now().0));
                    true
                }
            };
            let latest = rows::meta(&self.cluster.view())?.settings_index;
            if latest > 0 && (now || std::mem::replace(&mut settings_index, latest) != latest) {
                self.report().await?;
                self.measure_next()?;
            }
        }
    }

    /// Starts to measure the distance of the next segment that needs it.
    fn measure_next(&mut self) -> anyhow::Result<()> {
        let Ok(Some(settings)) = self.cluster.settings() else { return Ok(()) };
        let links = routes::links();
        let ways = Ways::of(&self.cluster, &settings)?;
        let segments = ways.measure;
        self.distances.retain(|segment, _| segments.contains(segment));
        let old = clock::now().0.saturating_sub(REMEASURE_MS);
        let next = segments.into_iter().find(|segment| {
            let fresh = self.distances.get(segment).is_some_and(|(_, at)| *at > old);
            !fresh && may_be_measured(&links, *segment) && routed(segment.addr())
        });
        if let Some(segment) = next.filter(|_| self.measuring.is_empty()) {
            let addresses = self.addresses(segment, &settings.discovery.exclude)?;
            self.measuring.spawn_blocking(move || {
                let hops = distance::measure(&addresses).unwrap_or_else(|error| {
                    tracing::debug!(%segment, %error, "distance not measured");
                    None
                });
                (segment, hops)
            });
        }
        Ok(())
    }

    /// Whom to send datagrams to: known devices, else addresses in the middle, where routers rarely are.
    fn addresses(&self, segment: IpNet, exclude: &[IpNet]) -> anyhow::Result<Vec<Ipv4Addr>> {
        let IpNet::V4(net) = segment else { return Ok(Vec::new()) };
        let allowed = |ip: &Ipv4Addr| !exclude.iter().any(|prefix| prefix.contains(&IpAddr::V4(*ip)));
        let mut addresses = Vec::new();
        let view = self.cluster.view();
        // The same prefix in another zone is another network.
        for zone in [&self.cluster.me().zone, ANY_ZONE] {
            rows::devices_in(&view, zone, segment, |row| {
                if let Ok(SocketAddr::V4(peer)) = row.address.parse::<SocketAddr>()
                    && allowed(peer.ip())
                    && addresses.len() < ADDRESSES
                {
                    addresses.push(*peer.ip());
                }
                addresses.len() < ADDRESSES
            })?;
        }
        if addresses.is_empty() {
            addresses = distance::candidates(net, exclude);
        }
        Ok(addresses)
    }

    async fn report(&self) -> anyhow::Result<()> {
        // Settings that this version cannot read leave the ways as they were reported last.
        let Ok(Some(settings)) = self.cluster.settings() else { return Ok(()) };
        let me = self.cluster.me();
        let own: Vec<ReachRow> = self.cluster.view().all(Table::Reach, &rows::number_key(me.id.0))?;
        let known: Vec<Reach> = own.into_iter().filter_map(|row| row.reach).collect();
        let same =
            |a: &Reach, b: &Reach| (&a.segment, a.hops, a.reachable) == (&b.segment, b.hops, b.reachable);
        let reaches: Vec<Reach> = reaches(&Ways::of(&self.cluster, &settings)?, &self.distances)
            .into_iter()
            .filter(|reach| !known.iter().any(|before| same(before, reach)))
            .collect();
        if reaches.is_empty() {
            return Ok(());
        }
        let command = Kind::ReportReach(ReportReach { node: me.id.0, reaches });
        if let Err(error) = self.cluster.propose(command, PATIENCE).await {
            tracing::debug!(%error, "ways not reported yet");
        }
        Ok(())
    }
}

/// The segments that this node has to know its way to.
struct Ways {
    /// Each with its hops where routers told them.
    told: BTreeMap<IpNet, Option<u32>>,
    /// Those whose distance is to be measured.
    measure: Vec<IpNet>,
}

impl Ways {
    /// The settings' segments, and what nodes of this zone found: of those the routers' tables know the distance, or
    /// it is measured as the others are.
    fn of(cluster: &Cluster, settings: &Settings) -> anyhow::Result<Ways> {
        let mut measure: Vec<IpNet> =
            settings.discovery.segments.iter().map(|segment| segment.prefix).collect();
        let mut told: BTreeMap<IpNet, Option<u32>> = measure.iter().map(|prefix| (*prefix, None)).collect();
        // Nothing of IPv6 is measured, so what lies inside a found segment counts as far as the whole.
        let six: Vec<IpNet> = measure.iter().filter(|prefix| prefix.addr().is_ipv6()).copied().collect();
        let me = cluster.me();
        for row in rows::segments(&cluster.view())?.into_iter().filter(|row| row.zone == me.zone) {
            let Some(judged) = found::judge(&row, &settings.discovery, &ReachMap::new()) else { continue };
            let own = row.ways.iter().filter(|way| way.node == me.id.0).find_map(|way| way.found.as_ref());
            let hops = own.filter(|found| !found.at_least).map(|found| found.hops);
            for inside in six.iter().filter(|prefix| judged.prefix.contains(*prefix)) {
                told.entry(*inside).and_modify(|far| *far = far.or(hops));
            }
            let wanted = judged.state != State::Proposed || judged.verdict == Verdict::DistanceUnknown;
            if wanted && !told.contains_key(&judged.prefix) {
                told.insert(judged.prefix, hops);
                measure.extend(hops.is_none().then_some(judged.prefix));
            }
        }
        Ok(Ways { told, measure })
    }
}

fn reaches(ways: &Ways, distances: &Distances) -> Vec<Reach> {
    let links = routes::links();
    let measured_at_ms = clock::now().0;
    let reach = |(segment, told): (&IpNet, &Option<u32>)| {
        let measured = || distances.get(segment).and_then(|(hops, _)| *hops);
        let hops = topology::hops_from_links(&links, *segment).or_else(measured).or(*told);
        let reachable = hops.is_some() || routed(segment.addr());
        Reach { segment: segment.to_string(), hops, reachable, measured_at_ms }
    };
    ways.told.iter().map(reach).collect()
}

/// Own links are 0 hops away already, and what lies partly on one is not one distance.
fn may_be_measured(links: &[IpNet], segment: IpNet) -> bool {
    let overlaps = |link: &IpNet| link.contains(&segment) || segment.contains(link);
    matches!(segment, IpNet::V4(net) if !net.addr().is_loopback()) && !links.iter().any(overlaps)
}

/// True when the kernel has a route: connecting a datagram socket asks for one and sends nothing.
fn routed(ip: IpAddr) -> bool {
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    /// The port of SNMP; any would do.
    const PORT: u16 = 161;
    UdpSocket::bind(SocketAddr::new(any, 0))
        .and_then(|socket| socket.connect(SocketAddr::new(ip, PORT)))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_knows_its_own_link() {
        let links = routes::links();
        assert_eq!(topology::hops_from_links(&links, "127.2.0.0/16".parse().unwrap()), Some(0), "{links:?}");
        assert!(routed("127.2.0.1".parse().unwrap()));
    }
}
