//! Printers that hang on this node: looked for once a period and when somebody asks to read one, as long as
//! `[discovery] local` says so.
//!
//! They belong to their node: nobody else can read them, so no grant is needed and no failover possible. Their
//! address is the node's own, with a port made of what names the printer: nothing is contacted there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use quire_coordinator::rows;
use quire_coordinator::settings::Settings;
use quire_coordinator::tables::{Fault, Read};
use quire_proto::convert;
use quire_proto::id::{Epoch, UnitId};
use quire_proto::store::Observation;
use quire_proto::store::observation::What;
use tokio_util::sync::CancellationToken;

use super::Reporter;
use crate::clock;
use crate::cluster::{Cluster, Me};
use crate::device::local::{self, Found, Places};

/// How often it is looked whether a look is due.
const TICK: Duration = Duration::from_secs(1);

/// The task that finds and reads them.
pub(crate) struct LocalPrinters {
    cluster: Cluster,
    reporter: Reporter,
    places: Places,
}

impl LocalPrinters {
    /// For the node behind `cluster`.
    pub(crate) fn new(cluster: Cluster, reporter: Reporter) -> Self {
        LocalPrinters { cluster, reporter, places: Places::default() }
    }

    /// Works until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut looked: Option<std::time::Instant> = None;
        let (standing, mut seen, mut answered) = (self.cluster.watch(), None, 0);
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = tick.tick() => {}
            }
            // Before anybody applied settings nobody wants anything; those of a newer version are not understood.
            let Ok(Some(settings)) = self.cluster.settings() else { continue };
            let applied = standing.borrow().applied;
            let asked = match seen.replace(applied) == Some(applied) {
                true => 0,
                false => asked(&self.cluster.view(), self.cluster.me())?,
            };
            if settings.discovery.local && (is_due(looked, &settings) || asked > answered) {
                looked = Some(clock::steady());
                // One look for every question, though the printer may be gone and its row never be newer.
                answered = answered.max(asked);
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = self.look() => {}
                }
            }
        }
    }

    async fn look(&self) {
        for found in local::find(&self.places).await {
            let observation = observation(&self.reporter, self.cluster.me(), &found);
            self.reporter.report(observation).await;
        }
    }
}

/// When somebody asked last for a read of one of them that was not done since; 0 where nobody did.
fn asked(tables: &(impl Read + ?Sized), me: &Me) -> Result<u64, Fault> {
    let (unit, _) = place(me, "");
    let mut last = 0;
    if let Some(prefix) = unit.prefix() {
        rows::devices_in(tables, unit.zone(), prefix, |device| {
            if device.asked_at_ms > device.metered_at_ms {
                last = last.max(device.asked_at_ms);
            }
            true
        })?;
    }
    Ok(last)
}

fn is_due(looked: Option<std::time::Instant>, settings: &Settings) -> bool {
    let every = Duration::from_millis(settings.metering.every_ms);
    looked.is_none_or(|at| clock::steady().duration_since(at) >= every)
}

fn observation(reporter: &Reporter, me: &Me, found: &Found) -> Observation {
    let (unit, at) = place(me, &found.key);
    let what = What::Reading(convert::encode(&found.reading));
    let seen = reporter.observation(unit.as_str(), Epoch(0), at, Some(0), what);
    Observation { local: true, ..seen }
}

/// The unit of a node's own printers (its address alone), and where one of them is said to be.
fn place(me: &Me, key: &str) -> (UnitId, SocketAddr) {
    let host = me.address.rsplit_once(':').map_or(me.address.as_str(), |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    // A node that is known by a host name has no address of its own to say.
    let ip: IpAddr = host.parse().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    // FNV-1a, folded to the ports above the well-known ones.
    let hash =
        key.bytes().fold(0x811c_9dc5_u32, |hash, octet| (hash ^ u32::from(octet)).wrapping_mul(0x0100_0193));
    let port = 1024 + u16::try_from(hash % 64_000).unwrap_or(0);
    (UnitId::new(&me.zone, IpNet::from(ip)), SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::id::NodeId;

    fn me(zone: &str, address: &str) -> Me {
        Me {
            id: NodeId(1),
            name: "n1".to_owned(),
            zone: zone.to_owned(),
            address: address.to_owned(),
            listen: "127.0.0.1:7440".parse().unwrap(),
            witness: false,
            cluster_id: bytes::Bytes::new(),
            cluster_name: String::new(),
            incarnation: bytes::Bytes::new(),
        }
    }

    #[test]
    fn a_printer_is_at_its_node_and_two_are_two() {
        let (unit, at) = place(&me("hq", "10.0.0.11:7440"), "serial:A");
        assert_eq!((unit.as_str(), at.ip().to_string()), ("hq:10.0.0.11/32", "10.0.0.11".to_owned()));
        assert_eq!(place(&me("hq", "10.0.0.11:7440"), "serial:A").1, at, "the same on every look");
        assert_ne!(place(&me("hq", "10.0.0.11:7440"), "serial:B").1, at);
        assert_eq!(place(&me("hq", "[fd00::1]:7440"), "x").0.as_str(), "hq:fd00::1/128");
        assert!(place(&me("hq", "vm1.example:7440"), "x").1.ip().is_loopback());
    }
}
