//! Which segments this node reaches, as far as the kernel knows without a packet being sent.
//!
//! A segment on one of the node's own links is 0 hops away; one that no route leads to is unreachable;
//! of all others the distance is not known, and nothing is guessed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;
use quire_coordinator::rows;
use quire_coordinator::settings::Settings;
use quire_coordinator::topology;
use quire_proto::store::command::Kind;
use quire_proto::store::{Reach, ReportReach};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::Cluster;

/// Links and routes change rarely, and asking the kernel is cheap.
const LOOK: Duration = Duration::from_secs(5);

/// How long a report may take; the next look repeats it.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reports what changed in this node's ways.
pub(crate) struct Reachability {
    cluster: Cluster,
}

impl Reachability {
    /// Of the node behind `cluster`.
    pub(crate) fn new(cluster: Cluster) -> Self {
        Reachability { cluster }
    }

    /// Works until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
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
            };
            let latest = rows::meta(&self.cluster.view())?.settings_index;
            if latest > 0 && (now || std::mem::replace(&mut settings_index, latest) != latest) {
                self.report().await?;
            }
        }
    }

    async fn report(&self) -> anyhow::Result<()> {
        // Settings that this version cannot read leave the ways as they were reported last.
        let Ok(Some(settings)) = self.cluster.settings() else { return Ok(()) };
        let me = self.cluster.me();
        let known: Vec<Reach> = rows::reaches(&self.cluster.view())?
            .into_iter()
            .filter(|row| row.node == me.id.0)
            .filter_map(|row| row.reach)
            .collect();
        let same =
            |a: &Reach, b: &Reach| (&a.segment, a.hops, a.reachable) == (&b.segment, b.hops, b.reachable);
        let reaches: Vec<Reach> = measure(&settings)
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

fn measure(settings: &Settings) -> Vec<Reach> {
    let links = links();
    let measured_at_ms = clock::now().0;
    settings
        .discovery
        .segments
        .iter()
        .map(|segment| {
            let hops = topology::hops_from_links(&links, segment.prefix);
            let reachable = hops.is_some() || routed(segment.prefix.addr());
            Reach { segment: segment.prefix.to_string(), hops, reachable, measured_at_ms }
        })
        .collect()
}

/// The prefixes on this node's own links.
fn links() -> Vec<IpNet> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    interfaces
        .filter_map(|interface| {
            let address = ip(interface.address.as_ref()?)?;
            let mask = ip(interface.netmask.as_ref()?)?;
            match (address, mask) {
                (IpAddr::V4(address), IpAddr::V4(mask)) => {
                    Some(IpNet::V4(Ipv4Net::with_netmask(address, mask).ok()?.trunc()))
                }
                (IpAddr::V6(address), IpAddr::V6(mask)) => {
                    Some(IpNet::V6(Ipv6Net::with_netmask(address, mask).ok()?.trunc()))
                }
                _ => None,
            }
        })
        .collect()
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| IpAddr::V4(v4.ip()))
        .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
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
        let links = links();
        assert_eq!(topology::hops_from_links(&links, "127.2.0.0/16".parse().unwrap()), Some(0), "{links:?}");
        assert!(routed("127.2.0.1".parse().unwrap()));
    }
}
