//! `quire discover`: one pass over some targets with no cluster, and what the devices say.
//!
//! Never writes to a device, never asks an excluded address, never prints: whoever calls gets the
//! findings one by one.

mod hops;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use quire_coordinator::extent::{self, Extent};
use quire_coordinator::identity;
use quire_proto::address::Target;
use quire_proto::reading::Reading;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::clock;
use crate::device::local::{self, Places};
use crate::device::script::{self, Scripts};
use crate::device::web::{self, Asking};
use crate::device::{self, Place, ReadPlan, Verdict, device_json};
use crate::routes;
use crate::snmp::{self, Credential, Patience, Snmp, Sweep, SweepEvent};

/// What to do.
pub(crate) struct Options {
    pub(crate) targets: Vec<Target>,
    pub(crate) port: u16,
    pub(crate) credentials: Vec<Arc<Credential>>,
    pub(crate) exclude: Vec<IpNet>,
    pub(crate) rate: u32,
    pub(crate) timeout: Duration,
    pub(crate) retries: u8,
    /// Ask the silent for their SNMPv3 engine, too, with no credential for it: what wants one is reported.
    pub(crate) find_engines: bool,
    pub(crate) read: bool,
    /// Ports of the devices' own pages; none asks for no pages.
    pub(crate) http: Vec<u16>,
    /// The ports were named, so addresses that are silent to SNMP are asked, too.
    pub(crate) http_named: bool,
    pub(crate) ipp: bool,
    /// How many routers away from this machine's own links to look; `None`: at the targets only.
    pub(crate) hops: Option<u32>,
    /// List the printers that hang on this machine, too.
    pub(crate) local: bool,
}

impl Options {
    fn asking(&self) -> Asking {
        Asking { ports: self.http.clone(), ipp: self.ipp, unknown: self.http_named, ..Asking::default() }
    }

    fn engine(&self) -> snmp::Options {
        snmp::Options {
            rate: self.rate,
            timeout: self.timeout,
            retries: self.retries,
            find_engines: self.find_engines,
            ..snmp::Options::default()
        }
    }
}

/// Addresses that are asked on several ports: there is a device on each, and whose the one web server is nobody knows.
struct Shared(Vec<Extent>);

impl Shared {
    fn of(targets: &[Target], port: u16) -> Shared {
        let mut ports: BTreeMap<u16, Extent> = BTreeMap::new();
        targets
            .iter()
            .for_each(|target| ports.entry(target.port().unwrap_or(port)).or_default().insert_hosts(target));
        Shared(if ports.len() > 1 { ports.into_values().collect() } else { Vec::new() })
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.0.iter().filter(|hosts| hosts.contains(ip)).take(2).count() > 1
    }
}

/// What comes out, one by one.
pub(crate) enum Finding {
    /// A device in the contract's JSON.
    Device(Value),
    /// Something a human should know, once.
    Remark(String),
    /// How many addresses are done.
    Progress(u64),
    /// How many addresses there are, now that routers have been asked.
    Addresses(u64),
}

/// What was sent and received.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    pub(crate) addresses: u64,
    pub(crate) responders: u64,
    pub(crate) devices: u64,
    pub(crate) packets_sent: u64,
    pub(crate) packets_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) bytes_received: u64,
    pub(crate) seconds: f64,
}

/// What a pass would send, without sending it.
#[derive(Debug, Serialize)]
pub(crate) struct Explanation {
    /// Addresses that would be asked.
    pub(crate) addresses: u64,
    /// Packets if nobody answers and no network asks for a slower pace.
    pub(crate) packets_at_most: u64,
    /// Packets if everybody answers the first question.
    pub(crate) packets_at_least: u64,
    /// Seconds for these packets at the rate, and for waiting in vain; reading devices comes on top.
    pub(crate) seconds_at_most: f64,
    /// Addresses of the targets that are excluded.
    pub(crate) excluded: u64,
    /// TCP ports that devices which leave something open are asked on for their pages.
    pub(crate) http_ports: Vec<u16>,
    /// Whether they are asked over IPP.
    pub(crate) ipp: bool,
    /// What would be explored before, with `--hops`; its segments are not in the numbers above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) explore: Option<hops::Plan>,
}

/// Addresses to ask, each once: in order, but those first that this machine has spoken with lately.
fn peers(options: &Options) -> impl Iterator<Item = SocketAddr> + Send + use<> {
    let exclude = Extent::of(&options.exclude);
    let port = options.port;
    // Ports apart, what earlier targets named. Ranges, so that a /8 costs no more than an address.
    let mut asked: BTreeMap<u16, Extent> = BTreeMap::new();
    let mut targets = live(&options.targets);
    targets.extend(options.targets.iter().cloned());
    targets
        .into_iter()
        .flat_map(move |target| {
            let port = target.port().unwrap_or(port);
            let before = asked.entry(port).or_default();
            let earlier = before.clone();
            before.insert_hosts(&target);
            target.hosts().filter(move |ip| !earlier.contains(*ip)).map(move |ip| SocketAddr::new(ip, port))
        })
        .filter(move |peer| !exclude.contains(peer.ip()))
}

/// The addresses of prefixes and ranges that answered this machine's ARP or ND lately.
fn live(targets: &[Target]) -> Vec<Target> {
    let neighbours = routes::neighbours();
    let within = |target: &Target| {
        let mut hosts = Extent::default();
        hosts.insert_hosts(target);
        let port = target.port();
        neighbours
            .iter()
            .filter(move |ip| hosts.contains(**ip))
            .map(move |ip| Target::Host(*ip, port))
            .collect::<Vec<_>>()
    };
    targets.iter().filter(|target| target.count() > 1).flat_map(within).collect()
}

/// How many sockets would be asked, and how many are excluded; not by walking through them.
fn count(options: &Options) -> (u64, u64) {
    let (named, excluded) = extent::count(&options.targets, options.port, &options.exclude);
    (named - excluded, excluded)
}

/// What [`run`] would send.
pub(crate) fn explain(options: &Options) -> Explanation {
    let (addresses, excluded) = count(options);
    let engine = options.engine();
    let transmissions = Sweep::packets_when_silent(&options.credentials, &engine);
    let packets_at_most = addresses.saturating_mul(u64::from(transmissions));
    // The last address is waited for after its last packet; without a rate each windowful of addresses is.
    let patience = f64::from(transmissions) * options.timeout.as_secs_f64();
    let windows = addresses.div_ceil(engine.window as u64) as f64;
    let sending = if options.rate > 0 { packets_at_most as f64 / f64::from(options.rate) } else { 0.0 };
    Explanation {
        addresses,
        packets_at_most,
        packets_at_least: addresses,
        seconds_at_most: sending.max((windows - 1.0).max(0.0) * patience)
            + if addresses > 0 { patience } else { 0.0 },
        excluded,
        http_ports: options.http.clone(),
        ipp: options.ipp,
        explore: options.hops.map(|most| hops::plan(options, most)),
    }
}

/// Devices being read at the same time: each has one request in flight, so this bounds memory and
/// sockets at some megabytes while a slow device holds up nobody.
const READS: usize = 1_000;

/// Devices whose pages are read at the same time, one connection each: as many sockets, and page texts of a few
/// megabytes in the worst case.
const VISITS: usize = 64;

/// Runs the pass; findings go to `tell`.
///
/// # Errors
/// When no socket can be had.
pub(crate) async fn run(mut options: Options, tell: mpsc::Sender<Finding>) -> anyhow::Result<Summary> {
    let started = clock::steady();
    let snmp = Snmp::bind(options.engine()).await.context("open the SNMP sockets")?;
    let mut found = hops::Found::default();
    if let Some(most) = options.hops {
        found = hops::explore(&snmp, &options, most, &tell).await?;
        options.targets = found.targets(std::mem::take(&mut options.targets));
        // A router that answered is no printer, and one that refused a user must not be asked by it again.
        options.exclude.extend(found.routers.iter().copied().map(IpNet::from));
        drop(tell.send(Finding::Addresses(count(&options).0)).await);
    }
    let mut events = snmp.sweep(Sweep {
        peers: Box::new(peers(&options)),
        credentials: options.credentials.clone(),
        oids: device::probe_oids(),
    });
    let mut pass = Pass {
        tell,
        summary: Summary::default(),
        read: options.read,
        asking: Arc::new(options.asking()),
        shared: Shared::of(&options.targets, options.port),
        visits: Arc::new(Semaphore::new(VISITS)),
        answered: BTreeSet::new(),
        found,
        scripts: Scripts::built_in(),
    };
    if options.local {
        pass.look_around().await;
    }
    let mut reads = JoinSet::new();
    let mut sweeping = true;
    loop {
        tokio::select! {
            event = events.recv(), if sweeping && reads.len() < READS => match event {
                Some(event) => pass.handle(&snmp, event, &mut reads).await,
                None => sweeping = false,
            },
            Some(done) = reads.join_next(), if !reads.is_empty() => {
                let (peer, reading) = done.context("read a device")?;
                pass.found(peer, reading).await;
            }
            else => break,
        }
    }
    if options.read && options.http_named {
        pass.visit_silent(peers(&options), options.rate).await?;
    }
    let stats = snmp.stats();
    Ok(Summary {
        packets_sent: stats.packets_sent,
        packets_received: stats.packets_received,
        bytes_sent: stats.bytes_sent,
        bytes_received: stats.bytes_received,
        seconds: clock::steady().duration_since(started).as_secs_f64(),
        ..pass.summary
    })
}

/// What pages and IPP add to a reading, when it is this device's turn.
async fn visit(visits: &Semaphore, asking: &Asking, ip: IpAddr, reading: Reading) -> Reading {
    if !device::lacks(&reading) {
        return reading;
    }
    // The semaphore is never closed; were it, the device would be read all the same.
    let _turn = visits.acquire().await;
    web::complete(reading, ip, asking).await.0
}

/// One pass in the making.
struct Pass {
    tell: mpsc::Sender<Finding>,
    summary: Summary,
    read: bool,
    asking: Arc<Asking>,
    shared: Shared,
    visits: Arc<Semaphore>,
    /// Who spoke SNMP, printer or not.
    answered: BTreeSet<IpAddr>,
    found: hops::Found,
    scripts: Scripts,
}

type Reads = JoinSet<(SocketAddr, Option<Reading>)>;

impl Pass {
    async fn handle(&mut self, snmp: &Snmp, event: SweepEvent, reads: &mut Reads) {
        match event {
            SweepEvent::Answered { peer, credential, answer } => {
                self.summary.responders += 1;
                self.answered.insert(peer.ip());
                if device::judge(&answer.response.varbinds) == Verdict::NotPrinter {
                    return;
                }
                if !self.read {
                    let via = device::via(&credential);
                    return self.found(peer, device::glance(via, &answer.response.varbinds)).await;
                }
                let (snmp, visits) = (snmp.clone(), self.visits.clone());
                let asking = match self.shared.has(peer.ip()) {
                    true => Arc::default(),
                    false => self.asking.clone(),
                };
                let scripts = self.scripts.clone();
                reads.spawn(async move {
                    let glimpsed = Some(ReadPlan::glimpsed(&answer.response.varbinds));
                    let mut finished = device::read(
                        &snmp,
                        peer,
                        &credential,
                        glimpsed,
                        Patience::Normal,
                        scripts.profiles(),
                    )
                    .await;
                    // One pass and no pages' login: there is nothing to remember.
                    let _learnt =
                        script::improve(&scripts, &snmp, peer, &credential, &asking, &mut finished).await;
                    let Some(reading) = finished.reading else { return (peer, None) };
                    (peer, Some(visit(&visits, &asking, peer.ip(), reading).await))
                });
            }
            SweepEvent::Progress { done, .. } => self.tell(Finding::Progress(done)).await,
            SweepEvent::NeedsCredentials { peer, .. } => {
                self.summary.responders += 1;
                self.tell(Finding::Remark(format!("{}: needs credentials (SNMPv3)", peer.ip()))).await;
            }
            SweepEvent::Refused { peer, user, reason } => {
                self.tell(Finding::Remark(format!("{}: user {user}: {reason}", peer.ip()))).await;
            }
            SweepEvent::Done(counts) => self.summary.addresses = counts.addresses,
        }
    }

    /// Printers on this machine's own cables: they are where it is.
    async fn look_around(&mut self) {
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        for found in local::find(&Places::default()).await {
            self.show(here, Some(0), &found.key, &found.reading).await;
        }
    }

    async fn found(&mut self, peer: SocketAddr, reading: Option<Reading>) {
        let Some(reading) = reading else { return };
        let hops = self.found.hops_to(peer.ip());
        self.show(peer.ip(), hops, &peer.to_string(), &reading).await;
    }

    /// Tells of a device; `place` names it where nothing better does.
    async fn show(&mut self, ip: IpAddr, hops: Option<u8>, place: &str, reading: &Reading) {
        self.summary.devices += 1;
        let at = clock::now().rfc3339();
        let id = identity::standalone_id(&reading.facts, place);
        let place = Place {
            id: Some(id.as_str()),
            address: Some(ip),
            addresses: &[ip],
            hops,
            first_seen: Some(&at),
            last_seen: Some(&at),
            metered_at: self.read.then_some(at.as_str()),
            ..Place::default()
        };
        self.tell(Finding::Device(device_json(&place, reading))).await;
    }

    /// Pages and IPP of the addresses that SNMP heard nothing of, new ones no faster than packets may be sent.
    async fn visit_silent(
        &mut self,
        peers: impl Iterator<Item = SocketAddr>,
        rate: u32,
    ) -> anyhow::Result<()> {
        let mut reads = Reads::new();
        let mut peers = peers;
        let gap = Duration::from_secs(1).checked_div(rate).unwrap_or_default();
        loop {
            if reads.len() < VISITS
                && let Some(peer) = peers.next()
            {
                if self.answered.insert(peer.ip()) {
                    let (asking, visits) = (self.asking.clone(), self.visits.clone());
                    reads.spawn(async move {
                        let reading = visit(&visits, &asking, peer.ip(), Reading::default()).await;
                        (peer, (!reading.via.is_empty()).then_some(reading))
                    });
                    tokio::time::sleep(gap).await;
                }
                continue;
            }
            let Some(done) = reads.join_next().await else { return Ok(()) };
            let (peer, reading) = done.context("read a device's pages")?;
            self.summary.responders += u64::from(reading.is_some());
            self.found(peer, reading).await;
        }
    }

    async fn tell(&self, finding: Finding) {
        // The caller has gone: the pass goes on to its end, which is near.
        drop(self.tell.send(finding).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_devices_on_several_ports_has_no_pages_of_its_own() {
        let shared = |targets: &[&str]| {
            let targets: Vec<Target> = targets.iter().map(|target| target.parse().unwrap()).collect();
            let shared = Shared::of(&targets, 161);
            move |ip: &str| shared.has(ip.parse().unwrap())
        };
        let one = shared(&["10.0.0.0/24", "10.0.0.5", "10.0.0.5:161"]);
        assert!(!one("10.0.0.5"));
        let two = shared(&["10.0.0.0/24", "10.0.0.5:1161"]);
        assert!(two("10.0.0.5") && !two("10.0.0.6"));
    }
}
