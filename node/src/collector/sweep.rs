//! One pass over one unit: probes to all its addresses, and a read of every new printer it meets.
//!
//! What is done is told in marks that travel behind the readings, so another owner, or this one after a stop, goes on
//! where the last committed mark says (`coordinator::coverage`).
//!
//! Architecture Invariant: an address is covered only when nothing of it is left to do; no SNMPv3 user is tried at a
//! device before that is committed (`trials`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use quire_coordinator::coverage::Coverage;
use quire_coordinator::rows;
use quire_coordinator::tables::Fault;
use quire_coordinator::{extent, planner};
use quire_proto::convert;
use quire_proto::id::{ANY_ZONE, Epoch, Millis, UnitId};
use quire_proto::reading::{Reading, Via};
use quire_proto::store::observation::What;
use quire_proto::store::{Observation, Refusal, SweepMark, UnitRow};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::explore;
use super::read::Way;
use super::trials::{Granted, Trials};
use super::web::{Lane, Pin};
use super::{Ended, Tools, excluded};
use crate::clock;
use crate::device::{self, Finished, ReadPlan, Verdict};
use crate::snmp::{Credential, Patience, Sweep, SweepEvent};

/// Reads of new devices at the same time in one unit; all sweeps together have [`super::SWEEP_READS`].
const READS: usize = 64;

/// Times that a read that broke off is begun anew, before the sweep goes on without it.
const READ_TRIES: u32 = 3;

/// A sweep to be done.
pub(super) struct UnitSweep {
    row: UnitRow,
    unit: UnitId,
    epoch: Epoch,
    coverage: Coverage,
    mark: SweepMark,
    /// Where devices live.
    known: BTreeMap<SocketAddr, Resident>,
    /// Addresses with something left to do besides the probe.
    busy: BTreeSet<SocketAddr>,
    trials: Trials,
    work: JoinSet<Step>,
}

/// What is known of the device at an address.
#[derive(Clone, Debug)]
struct Resident {
    /// It was read lately.
    fresh: bool,
    /// The SNMPv3 user that read it; empty for communities.
    user: String,
    pin: Pin,
}

impl Resident {
    /// A device that was read within its period needs no second read because a sweep met it, unless it is met by a
    /// user that does not read it yet: its next read goes by its last one.
    fn needs_no_read(&self, credential: &Credential) -> bool {
        self.fresh && self.user == credential.user().unwrap_or_default()
    }
}

/// What a part of the sweep came to.
pub(super) enum Step {
    /// A printer was read; the number counts its reads.
    Read(SocketAddr, Arc<Credential>, Box<(Finished, Pin)>, u32),
    /// The read of a printer panicked.
    Broken(SocketAddr),
    /// Users may be tried now, or not at all any more.
    Granted(Option<Vec<Granted>>),
    /// A user was tried at a device.
    Tried(Granted, Result<crate::snmp::Answer, crate::snmp::Failure>),
}

impl UnitSweep {
    /// A sweep of a unit that began at `started_at`, under whichever owner, and of which `coverage` is done already.
    pub(super) fn new(
        tools: &Tools,
        row: UnitRow,
        epoch: Epoch,
        started_at: Millis,
        coverage: Coverage,
    ) -> Result<Self, Fault> {
        let unit: UnitId = row.unit.parse().unwrap_or_else(|_| UnitId::new("", ipnet::IpNet::default()));
        let fresh = clock::now().0.saturating_sub(tools.settings.metering.every_ms);
        let mut known = BTreeMap::new();
        if let Some(prefix) = unit.prefix() {
            rows::devices_in(&tools.cluster.view(), unit.zone(), prefix, |device| {
                let at = device.address.parse();
                let (fresh, pin) = (device.metered_at_ms > fresh, Pin::of(&device.certificate));
                known.extend(at.ok().map(|at| (at, Resident { fresh, user: device.user, pin })));
                true
            })?;
        }
        let mark = SweepMark {
            started_at_ms: started_at.0,
            settings_index: tools.settings_index,
            ..SweepMark::default()
        };
        let trials = Trials::new(tools, &row, started_at);
        let (busy, work) = (BTreeSet::new(), JoinSet::new());
        Ok(UnitSweep { row, unit, epoch, coverage, mark, known, busy, trials, work })
    }

    /// Sweeps until all is done, or until told to stop: then it stops at once.
    pub(super) async fn run(mut self, tools: &Tools, stop: &CancellationToken) -> Ended {
        tokio::select! {
            biased;
            () = stop.cancelled() => Ended::Stopped,
            ended = self.all(tools) => ended,
        }
    }

    async fn all(&mut self, tools: &Tools) -> Ended {
        let hosts = self.hosts(tools);
        self.mark.total = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
        let left: Vec<SocketAddr> =
            hosts.iter().copied().filter(|host| !self.coverage.has(host.ip())).collect();
        if let Some(before) = self.row.sweep.as_ref().filter(|_| left.len() < hosts.len()) {
            (self.mark.responders, self.mark.devices) = (before.responders, before.devices);
        }
        self.report_mark(tools, &hosts).await;
        let mut events = tools.snmp.survey(Sweep {
            peers: Box::new(left.into_iter()),
            credentials: tools.credentials.to_vec(),
            oids: device::probe_oids(),
        });
        if !self.drain(tools, &mut events, &hosts).await {
            // The engine or the quorum went away under it: what is not covered is not swept, and what is need not be
            // asked again.
            self.report_mark(tools, &hosts).await;
            return Ended::Failed;
        }
        self.mark.finished = true;
        self.report_mark(tools, &hosts).await;
        Ended::Done
    }

    /// True when everything is done.
    async fn drain(
        &mut self,
        tools: &Tools,
        events: &mut mpsc::Receiver<SweepEvent>,
        hosts: &[SocketAddr],
    ) -> bool {
        let (mut probing, mut complete) = (true, false);
        loop {
            tokio::select! {
                event = events.recv(), if probing && self.work.len() < READS => match event {
                    Some(event) => {
                        complete |= matches!(event, SweepEvent::Done(_));
                        self.handle(tools, event).await;
                    }
                    None => probing = false,
                },
                Some(done) = self.work.join_next(), if !self.work.is_empty() => match done {
                    Ok(step) => if !self.advance(tools, step).await { return false },
                    Err(_) => return false,
                },
                () = self.trials.gathered(), if self.trials.waits() => {
                    let commit = self.trials.commit(tools, self.epoch);
                    self.work.spawn(async move { Step::Granted(commit.await) });
                }
                else => return complete && self.busy.is_empty(),
            }
            if self.coverage.is_mark_due() {
                self.report_mark(tools, hosts).await;
            }
        }
    }

    /// The addresses of the unit, those first that are known to live; exclusions and routers taken out.
    fn hosts(&self, tools: &Tools) -> Vec<SocketAddr> {
        let discovery = &tools.settings.discovery;
        let Some(prefix) = self.unit.prefix() else { return Vec::new() };
        let guide = explore::guide(&tools.cluster.view(), &tools.cluster.me().zone, prefix);
        let has_unit = |ip: &IpAddr| {
            let here = |zone: &str| zone == ANY_ZONE || zone == self.unit.zone();
            discovery.segments.iter().any(|named| here(&named.zone) && named.prefix.contains(ip))
        };
        let hosts = match planner::is_known_only(prefix) {
            true => guide.live.iter().copied().filter(|ip| !has_unit(ip)).collect(),
            false => extent::live_first(extent::unit_hosts(prefix, &self.row.segment).collect(), &guide.live),
        };
        hosts
            .into_iter()
            .filter(|ip| !guide.leave.contains(ip))
            .map(|ip| SocketAddr::new(ip, discovery.port))
            .filter(|peer| !excluded(*peer, &discovery.exclude))
            .collect()
    }

    async fn handle(&mut self, tools: &Tools, event: SweepEvent) {
        match event {
            SweepEvent::Answered { peer, credential, answer } => {
                self.meet(tools, peer, credential, &answer.response.varbinds);
            }
            SweepEvent::Progress { finished, .. } => {
                let done = finished.into_iter().filter(|peer| !self.busy.contains(peer));
                done.for_each(|peer| self.coverage.cover(peer.ip()));
            }
            SweepEvent::NeedsCredentials { peer, engine_id } => {
                self.mark.responders += 1;
                if self.trials.offer(&self.coverage, peer) {
                    self.busy.insert(peer);
                } else if !self.trials.has_users() {
                    let reason = "needs credentials".to_owned();
                    self.report(tools, peer, What::Refusal(Refusal { reason, engine_id })).await;
                }
            }
            SweepEvent::Refused { peer, user, reason } => self.refuse(tools, peer, &user, &reason).await,
            SweepEvent::Done(_) => {}
        }
    }

    /// Somebody answered: a printer that is not known yet, or was not read lately, is read.
    fn meet(
        &mut self,
        tools: &Tools,
        peer: SocketAddr,
        credential: Arc<Credential>,
        varbinds: &[crate::snmp::VarBind],
    ) {
        if !matches!(*credential, Credential::V3(_)) {
            self.mark.responders += 1;
        }
        let printer = device::judge(varbinds) != Verdict::NotPrinter;
        let known = self.known.get(&peer).is_some_and(|resident| resident.needs_no_read(&credential));
        if printer && !known {
            self.read(tools, peer, credential, Some(ReadPlan::glimpsed(varbinds)), 1);
        } else {
            self.close(peer);
        }
    }

    /// `plan` has what a probe brought just now, where there was one.
    fn read(
        &mut self,
        tools: &Tools,
        peer: SocketAddr,
        credential: Arc<Credential>,
        plan: Option<ReadPlan>,
        tries: u32,
    ) {
        self.busy.insert(peer);
        let tools = tools.clone();
        let mut pin = self.known.get(&peer).map(|resident| resident.pin).unwrap_or_default();
        let read = async move {
            // Never closed: the tools hold it.
            let _room = tools.sweep_reads.acquire().await;
            let mut finished = tools.read(peer, &credential, plan, Patience::Normal, &mut pin).await;
            if finished.complete
                && let Some(reading) = finished.reading.take()
            {
                let (web, lane) = (&tools.web, Lane::Sweep);
                finished.reading =
                    Some(web.complete(&tools.settings, reading, peer.ip(), lane, &mut pin).await);
            }
            Step::Read(peer, credential, Box::new((finished, pin)), tries)
        };
        self.work.spawn(unbroken(peer, read));
    }

    /// Nothing of this address is left to do.
    fn close(&mut self, peer: SocketAddr) {
        self.busy.remove(&peer);
        self.coverage.cover(peer.ip());
    }

    /// Takes in what came of a part; false when the sweep cannot go on.
    async fn advance(&mut self, tools: &Tools, step: Step) -> bool {
        match step {
            Step::Read(peer, credential, read, tries) => {
                let (finished, pin) = *read;
                if !finished.complete && tries < READ_TRIES {
                    self.read(tools, peer, credential, None, tries + 1);
                } else {
                    self.keep(tools, peer, credential, finished, pin.news()).await;
                    self.close(peer);
                }
            }
            Step::Broken(peer) => self.close(peer),
            Step::Granted(None) => return false,
            Step::Granted(Some(granted)) => {
                for granted in granted {
                    let snmp = tools.snmp.clone();
                    self.work.spawn(async move {
                        let result = granted.make(&snmp).await;
                        Step::Tried(granted, result)
                    });
                }
            }
            Step::Tried(granted, Ok(answer)) => {
                self.meet(tools, granted.peer, granted.credential, &answer.response.varbinds);
            }
            Step::Tried(granted, Err(reason)) => {
                let user = granted.credential.user().unwrap_or_default().to_owned();
                self.refuse(tools, granted.peer, &user, &reason).await;
                if !self.trials.offer_next(&granted) {
                    self.close(granted.peer);
                }
            }
        }
        true
    }

    /// Half a reading is no reading: it says at most who lives where nobody was known.
    async fn keep(
        &mut self,
        tools: &Tools,
        peer: SocketAddr,
        credential: Arc<Credential>,
        finished: Finished,
        certificate: Bytes,
    ) {
        let Some(reading) = finished.reading else { return };
        let user = credential.user().unwrap_or_default().to_owned();
        if finished.complete {
            self.mark.devices += 1;
            tools.ways.put(peer, Way { credential, plan: finished.plan, proven: true });
            let observation = self.observation(tools, peer, What::Reading(convert::encode(&reading)));
            return tools.reporter.report(Observation { user, certificate, ..observation }).await;
        }
        tracing::debug!(%peer, "reads were lost in the middle");
        if self.known.contains_key(&peer) {
            return;
        }
        self.mark.devices += 1;
        let what = What::Reading(convert::encode(&facts(reading)));
        let observation = self.observation(tools, peer, what);
        tools.reporter.report(Observation { facts_only: true, user, ..observation }).await;
    }

    async fn refuse(&mut self, tools: &Tools, peer: SocketAddr, user: &str, reason: &crate::snmp::Failure) {
        tracing::warn!(%peer, %user, %reason, "credentials refused");
        let refusal = Refusal { reason: format!("user {user}: {reason}"), ..Refusal::default() };
        self.report(tools, peer, What::Refusal(refusal)).await;
    }

    fn observation(&self, tools: &Tools, peer: SocketAddr, what: What) -> Observation {
        tools.reporter.observation(self.unit.as_str(), self.epoch, peer, self.row.hops, what)
    }

    async fn report(&self, tools: &Tools, peer: SocketAddr, what: What) {
        tools.reporter.report(self.observation(tools, peer, what)).await;
    }

    async fn report_mark(&mut self, tools: &Tools, hosts: &[SocketAddr]) {
        let done = hosts.iter().filter(|host| self.coverage.has(host.ip())).count();
        self.mark.done =
            if self.mark.finished { self.mark.total } else { u32::try_from(done).unwrap_or(u32::MAX) };
        self.mark.covered = self.coverage.say().into();
        let what = What::Sweep(self.mark.clone());
        tools.reporter.report(tools.reporter.of_unit(self.unit.as_str(), self.epoch, what)).await;
    }
}

/// A read that panics has failed for that address alone: the rest of the unit must not wait for what one device does.
async fn unbroken(peer: SocketAddr, read: impl Future<Output = Step>) -> Step {
    // Nothing outlives the read but what it answers, so nothing is left half done.
    AssertUnwindSafe(read).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(%peer, "the read of a device panicked: the sweep goes on without it");
        Step::Broken(peer)
    })
}

/// Who it is, without anything that was counted or may have been cut short.
fn facts(reading: Reading) -> Reading {
    const IDENTITY: [&str; 8] = ["vendor", "model", "serial", "mac", "name", "location", "firmware", "asset"];
    let mut sources = reading.sources;
    sources.retain(|field, _| IDENTITY.contains(&field.as_str()));
    let via: Vec<Via> = reading.via;
    Reading { facts: reading.facts, sources, via, ..Reading::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::reading::Counters;

    #[tokio::test]
    async fn a_read_that_panics_is_done_with() {
        let peer: SocketAddr = "10.0.0.5:161".parse().unwrap();
        let broken = unbroken(peer, async { panic!("a hostile answer") }).await;
        assert!(matches!(broken, Step::Broken(at) if at == peer));
        assert!(matches!(unbroken(peer, async { Step::Granted(None) }).await, Step::Granted(None)));
    }

    #[test]
    fn a_device_met_by_a_user_that_does_not_read_it_yet_is_read() {
        let user = Credential::v3(crate::snmp::V3 { user: "meter", ..Default::default() }).unwrap();
        let public = Credential::v2c("public").unwrap();
        let by = |user: &str| Resident { fresh: true, user: user.into(), pin: Pin::default() };
        assert!(by("meter").needs_no_read(&user) && by("").needs_no_read(&public));
        assert!(!by("").needs_no_read(&user) && !by("meter").needs_no_read(&public));
        assert!(!Resident { fresh: false, ..by("meter") }.needs_no_read(&user));
    }

    #[test]
    fn of_half_a_reading_nothing_but_the_identity_is_kept() {
        let mut half = Reading { via: vec![Via::SnmpV2c], ..Reading::default() };
        half.facts.serial = Some("S1".into());
        half.counters = Counters { total: Some(7), ..Counters::default() };
        half.display = Some("Ready".into());
        for field in ["serial", "counters.total", "supplies.1.percent", "display"] {
            half.sources.insert(field.into(), "1.3".into());
        }
        let kept = facts(half);
        assert!(kept.counters.is_empty() && kept.supplies.is_empty() && kept.display.is_none());
        assert_eq!((kept.facts.serial.as_deref(), kept.sources.len(), kept.via.len()), (Some("S1"), 1, 1));
    }
}
