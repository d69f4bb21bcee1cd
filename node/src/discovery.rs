//! `quire discover`: one pass over some targets with no cluster, and what the devices say.
//!
//! Never writes to a device, never asks an excluded address, never prints: whoever calls gets the
//! findings one by one.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use ipnet::IpNet;
use quire_coordinator::identity;
use quire_proto::address::Target;
use quire_proto::reading::Reading;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::clock;
use crate::device::script::{self, Scripts, Web};
use crate::device::{self, Finished, Place, Verdict, device_json};
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
    pub(crate) read: bool,
}

/// What comes out, one by one.
pub(crate) enum Finding {
    /// A device in the contract's JSON.
    Device(Value),
    /// Something a human should know, once.
    Remark(String),
    /// How many addresses are done.
    Progress(u64),
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
    /// Packets if nobody answers, the worst case.
    pub(crate) packets_at_most: u64,
    /// Packets if everybody answers the first question.
    pub(crate) packets_at_least: u64,
    /// Seconds that the rate alone asks for in the worst case; absent when it is unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seconds_at_most: Option<f64>,
    /// Addresses of the targets that are excluded.
    pub(crate) excluded: u64,
}

/// Addresses to ask, in order, each once.
fn peers(options: &Options) -> impl Iterator<Item = SocketAddr> + Send + use<> {
    let exclude = options.exclude.clone();
    let port = options.port;
    let single = options.targets.len() == 1;
    // One target cannot name an address twice; several can, and then what was asked is remembered.
    let mut asked = BTreeSet::new();
    options
        .targets
        .clone()
        .into_iter()
        .flat_map(move |target| {
            let port = target.port().unwrap_or(port);
            target.hosts().map(move |ip| SocketAddr::new(ip, port))
        })
        .filter(move |peer| !excluded(&exclude, peer.ip()))
        .filter(move |peer| single || asked.insert(*peer))
}

fn excluded(exclude: &[IpNet], ip: IpAddr) -> bool {
    exclude.iter().any(|prefix| prefix.contains(&ip))
}

/// What [`run`] would send.
pub(crate) fn explain(options: &Options) -> Explanation {
    let addresses = u64::try_from(peers(options).count()).unwrap_or(u64::MAX);
    let named: u64 = options.targets.iter().map(Target::count).sum();
    let tries = 1 + u64::from(options.retries);
    let credentials = u64::try_from(options.credentials.len()).unwrap_or(1).max(1);
    let packets_at_most = addresses.saturating_mul(tries).saturating_mul(credentials);
    Explanation {
        addresses,
        packets_at_most,
        packets_at_least: addresses,
        seconds_at_most: (options.rate > 0).then(|| packets_at_most as f64 / f64::from(options.rate)),
        excluded: named.saturating_sub(addresses),
    }
}

/// Devices being read at the same time: each has one request in flight, so this bounds memory and
/// sockets at some megabytes while a slow device holds up nobody.
const READS: usize = 1_000;

/// Runs the pass; findings go to `tell`.
///
/// # Errors
/// When no socket can be had.
pub(crate) async fn run(options: Options, tell: mpsc::Sender<Finding>) -> anyhow::Result<Summary> {
    let started = clock::steady();
    let snmp = Snmp::bind(snmp::Options {
        rate: options.rate,
        timeout: options.timeout,
        retries: options.retries,
        ..snmp::Options::default()
    })
    .await
    .context("open the SNMP sockets")?;
    let mut events = snmp.sweep(Sweep {
        peers: Box::new(peers(&options)),
        credentials: options.credentials.clone(),
        oids: device::probe_oids(),
    });
    let scripts = Scripts::built_in();
    let mut pass = Pass { tell, summary: Summary::default(), read: options.read, scripts };
    let mut reads = JoinSet::new();
    let mut sweeping = true;
    loop {
        tokio::select! {
            event = events.recv(), if sweeping && reads.len() < READS => match event {
                Some(event) => pass.handle(&snmp, event, &mut reads).await,
                None => sweeping = false,
            },
            Some(done) = reads.join_next(), if !reads.is_empty() => {
                let (peer, finished) = done.context("read a device")?;
                pass.found(peer, finished.reading).await;
            }
            else => break,
        }
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

/// One pass in the making.
struct Pass {
    tell: mpsc::Sender<Finding>,
    summary: Summary,
    read: bool,
    scripts: Scripts,
}

type Reads = JoinSet<(SocketAddr, Finished)>;

impl Pass {
    async fn handle(&mut self, snmp: &Snmp, event: SweepEvent, reads: &mut Reads) {
        match event {
            SweepEvent::Answered { peer, credential, answer } => {
                self.summary.responders += 1;
                if device::judge(&answer.response.varbinds) == Verdict::NotPrinter {
                    return;
                }
                if !self.read {
                    let via = device::via(&credential);
                    return self.found(peer, device::glance(via, &answer.response.varbinds)).await;
                }
                let snmp = snmp.clone();
                let scripts = self.scripts.clone();
                reads.spawn(async move {
                    let mut finished = device::read(&snmp, peer, &credential, None, Patience::Normal).await;
                    // Over SNMP alone: one-shot discovery opens no page.
                    let no_web = Web::default();
                    script::improve(&scripts, &snmp, peer, &credential, &no_web, &mut finished).await;
                    (peer, finished)
                });
            }
            SweepEvent::Progress { done } => self.tell(Finding::Progress(done)).await,
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

    async fn found(&mut self, peer: SocketAddr, reading: Option<Reading>) {
        let Some(reading) = reading else { return };
        self.summary.devices += 1;
        let at = clock::now().rfc3339();
        let id = identity::standalone_id(&reading.facts, &peer.to_string());
        let place = Place {
            id: Some(id.as_str()),
            address: Some(peer.ip()),
            addresses: &[peer.ip()],
            first_seen: Some(&at),
            last_seen: Some(&at),
            metered_at: self.read.then_some(at.as_str()),
            ..Place::default()
        };
        self.tell(Finding::Device(device_json(&place, &reading))).await;
    }

    async fn tell(&self, finding: Finding) {
        // The caller has gone: the pass goes on to its end, which is near.
        drop(self.tell.send(finding).await);
    }
}
