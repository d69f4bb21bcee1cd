//! What every node does for its own units: sweep them, read their devices, report what it learnt.
//!
//! Without quorum a node goes on reading the devices it owned and spools; it never sweeps then.
//!
//! Architecture Invariant: nothing here decides who owns what; it follows the committed plan.

mod credentials;
mod reach;
mod report;
mod sweep;
mod web;

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::FutureExt as _;
use ipnet::IpNet;
use quire_coordinator::roster::{DeviceDue, OwnUnit, Progress, Roster, Task};
use quire_coordinator::rows;
use quire_coordinator::settings::Settings;
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_coordinator::topology;
use quire_proto::convert;
use quire_proto::id::{DeviceId, Epoch, Millis, UnitId};
use quire_proto::store::observation::What;
use quire_proto::store::{DeviceRow, Silence, UnitRow};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::Cluster;
use crate::device::script::{self, Profile, Scripts, Web};
use crate::device::{self, Finished, ReadPlan};
use crate::snmp::{Credential, Patience, Snmp};

pub(crate) use reach::Reachability;
pub(crate) use report::Reporter;

/// How often the tables are looked through for changed units and devices, while something changes.
const REFRESH: Duration = Duration::from_millis(500);

/// Devices read at the same time. Each has one request in flight; a task takes some 10 KB.
const READS: usize = 256;

/// How a device was reached last, so that a repeat read needs no trying: forgotten with the process.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) credential: Arc<Credential>,
    pub(super) plan: ReadPlan,
}

/// Ways by address; a bound is the number of devices that a node owns.
#[derive(Clone, Default)]
pub(super) struct Ways(Arc<Mutex<HashMap<SocketAddr, Way>>>);

impl Ways {
    pub(super) fn get(&self, peer: SocketAddr) -> Option<Way> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&peer).cloned()
    }

    pub(super) fn put(&self, peer: SocketAddr, way: Way) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(peer, way);
    }

    fn forget(&self, peer: SocketAddr) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&peer);
    }

    fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It did what it was for, even if that was to learn that a device is silent.
    Done,
    /// It broke off.
    Failed,
}

/// What a task shares.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) snmp: Snmp,
    pub(super) reporter: Reporter,
    pub(super) ways: Ways,
    pub(super) web: Arc<web::Web>,
    pub(super) settings: Arc<Settings>,
    pub(super) credentials: Arc<Vec<Arc<Credential>>>,
    pub(super) scripts: Scripts,
}

impl Tools {
    /// Reads a device: the standard first, then the profiles that know it better.
    pub(super) async fn read(
        &self,
        peer: SocketAddr,
        credential: &Arc<Credential>,
        plan: Option<ReadPlan>,
        patience: Patience,
    ) -> Finished {
        let mut finished = device::read(&self.snmp, peer, credential, plan, patience).await;
        let web = Web { ports: self.settings.http.ports.clone() };
        script::improve(&self.scripts, &self.snmp, peer, credential, &web, &mut finished).await;
        finished
    }
}

/// The collector of one node.
pub(crate) struct Collector {
    cluster: Cluster,
    tools: Tools,
    settings_index: u64,
    /// Of the scripts in force: name and hash, as the table has them.
    scripts: Vec<(String, bytes::Bytes)>,
    roster: Roster,
    units: BTreeMap<UnitId, UnitRow>,
    devices: BTreeMap<DeviceId, DeviceRow>,
    tasks: JoinSet<(Task, Ended)>,
}

impl Collector {
    /// The collector of the node behind `cluster`.
    pub(crate) fn new(cluster: Cluster, snmp: Snmp, reporter: Reporter, scripts: Scripts) -> Self {
        let settings = Arc::new(Settings::default());
        let roster = Roster::new(settings.discovery.schedule.clone(), settings.metering.every_ms, READS);
        let tools = Tools {
            snmp,
            reporter,
            ways: Ways::default(),
            web: Arc::default(),
            settings,
            credentials: Arc::default(),
            scripts,
        };
        Collector {
            cluster,
            tools,
            settings_index: 0,
            scripts: Vec::new(),
            roster,
            units: BTreeMap::new(),
            devices: BTreeMap::new(),
            tasks: JoinSet::new(),
        }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut standing = self.cluster.watch();
        let mut refresh = tokio::time::interval(REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = 0;
        loop {
            self.start_due();
            let pause = self.until_next();
            tokio::select! {
                () = stop.cancelled() => break,
                _ = refresh.tick() => {
                    let applied = standing.borrow_and_update().applied;
                    if std::mem::replace(&mut seen, applied) != applied {
                        self.refresh()?;
                    }
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    let (task, ended) = done.context("collect from a device")?;
                    match ended {
                        Ended::Done => self.roster.handle_done(&task, clock::now()),
                        Ended::Failed => self.roster.handle_failed(&task, clock::now()),
                    }
                }
                () = tokio::time::sleep(pause) => {}
            }
        }
        // Dropped tasks end at their next await; what they learnt is in the spool.
        self.tasks.shutdown().await;
        Ok(())
    }

    fn until_next(&self) -> Duration {
        let now = clock::now();
        let due = self.roster.poll_timeout().map(|at| Duration::from_millis(at.0.saturating_sub(now.0)));
        due.unwrap_or(REFRESH).clamp(Duration::from_millis(5), REFRESH)
    }

    /// Follows settings, plan and devices as the tables have them now.
    fn refresh(&mut self) -> anyhow::Result<()> {
        let tables = self.cluster.view();
        let meta = rows::meta(&tables)?;
        if meta.settings_index != self.settings_index {
            self.settings_index = meta.settings_index;
            self.follow_settings();
        }
        self.follow_scripts(&tables)?;
        let me = self.cluster.me();
        let zone_mates = rows::members(&tables)?
            .iter()
            .filter(|member| member.zone == me.zone && !member.witness)
            .filter(|member| member.id == me.id.0 || meta.heard.iter().any(|heard| heard.node == member.id))
            .count();
        let share = topology::share(self.tools.settings.discovery.rate, zone_mates);
        // A share below one packet a second still sends one, else a large zone would send none.
        self.tools.snmp.set_rate(share.map_or(0, |pps| (pps as u32).max(1)));
        self.units = rows::units(&tables)?
            .into_iter()
            .filter(|unit| unit.node == me.id.0)
            .filter_map(|unit| unit.unit.parse().ok().map(|id| (id, unit)))
            .collect();
        let own: Vec<OwnUnit> = self.units.iter().map(|(id, row)| own_unit(id, row)).collect();
        self.roster.set_units(&own);
        self.follow_devices(&tables)
    }

    /// Settings that this version does not understand (a later one applied them) must not stop the node,
    /// or they would stop every node: what was in force stays.
    fn follow_settings(&mut self) {
        let settings = match self.cluster.settings() {
            Ok(Some(settings)) => settings,
            Ok(None) => return,
            Err(error) => return tracing::error!(%error, "the settings cannot be read: the old ones stay"),
        };
        self.tools.credentials = Arc::new(credentials::of(&settings));
        self.tools.ways.clear();
        self.tools.web.clear();
        self.roster.set_settings(settings.discovery.schedule.clone(), settings.metering.every_ms);
        self.tools.settings = settings;
    }

    /// Compiles what changed. A source that this version cannot compile, because a newer one put it, is left out.
    fn follow_scripts(&mut self, tables: &crate::cluster::View) -> anyhow::Result<()> {
        let rows = rows::scripts(tables)?;
        let now: Vec<_> = rows.iter().map(|row| (row.name.clone(), row.sha256.clone())).collect();
        if now == self.scripts {
            return Ok(());
        }
        self.scripts = now;
        let compiled = rows.iter().filter_map(|row| match Profile::parse(&row.source) {
            Ok(profile) => Some(profile),
            Err(error) => {
                let (name, version) = (&row.name, &row.version);
                tracing::warn!(profile = %name, version = %version, %error, "a script does not compile here");
                None
            }
        });
        self.tools.scripts.put_over(compiled.collect());
        Ok(())
    }

    fn follow_devices(&mut self, tables: &crate::cluster::View) -> anyhow::Result<()> {
        let mut devices = BTreeMap::new();
        tables.each::<DeviceRow>(Table::Devices, &[], |_, row| {
            let own = row.unit.parse::<UnitId>().is_ok_and(|unit| self.units.contains_key(&unit));
            if own && may_contact(&row.address, &self.tools.settings.discovery.exclude) {
                devices.insert(DeviceId::from(row.id.clone()), row);
            }
            true
        })?;
        for id in self.devices.keys().filter(|id| !devices.contains_key(id)) {
            self.roster.remove_device(id);
        }
        for (id, row) in &devices {
            if self.devices.get(id).is_none_or(|before| before != row) {
                self.roster.set_device(&device_due(id, row), clock::now());
            }
        }
        self.devices = devices;
        Ok(())
    }

    fn start_due(&mut self) {
        let quorum = self.cluster.watch().borrow().quorum;
        self.roster.set_sweeping(quorum);
        while let Some(task) = self.roster.poll(clock::now()) {
            match &task {
                Task::Sweep { unit, epoch, started_at } => {
                    self.start_sweep(&task, unit, *epoch, *started_at);
                }
                Task::Read { device } => self.start_read(&task, device),
            }
        }
    }

    fn start_sweep(&mut self, task: &Task, unit: &UnitId, epoch: Epoch, started_at: Millis) {
        // A device that was read within its period needs no second read because a sweep met it.
        let fresh = clock::now().0.saturating_sub(self.tools.settings.metering.every_ms);
        let known = self
            .devices
            .values()
            .filter(|device| device.unit == unit.as_str() && device.metered_at_ms > fresh)
            .filter_map(|device| device.address.parse().ok())
            .collect();
        let hops = self.units.get(unit).and_then(|row| row.hops);
        let sweep = sweep::UnitSweep { unit: unit.clone(), epoch, started_at, hops, known };
        let (tools, task) = (self.tools.clone(), task.clone());
        self.tasks.spawn(async move { (task, contained(sweep.run(&tools)).await) });
    }

    fn start_read(&mut self, task: &Task, id: &DeviceId) {
        let Some(device) = self.devices.get(id).cloned() else {
            return self.roster.handle_done(task, clock::now());
        };
        let (tools, task) = (self.tools.clone(), task.clone());
        let epoch =
            device.unit.parse().ok().and_then(|unit: UnitId| self.units.get(&unit)).map_or(0, |u| u.epoch);
        self.tasks.spawn(async move { (task, contained(read(&tools, &device, Epoch(epoch))).await) });
    }
}

/// False for the addresses that the operator excluded, however well their devices are known, and for a
/// device that lives nowhere.
fn may_contact(address: &str, exclude: &[IpNet]) -> bool {
    let peer = address.parse::<SocketAddr>();
    peer.is_ok_and(|peer| !exclude.iter().any(|excluded| excluded.contains(&peer.ip())))
}

/// A task that panics has failed; it must not take the node down, and with it whichever node takes over
/// the device that did it.
async fn contained(task: impl Future<Output = Ended>) -> Ended {
    // Nothing outlives the task but what it reported, so nothing is left half done.
    AssertUnwindSafe(task).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a task of the collector panicked");
        Ended::Failed
    })
}

fn own_unit(id: &UnitId, row: &UnitRow) -> OwnUnit {
    OwnUnit {
        unit: id.clone(),
        epoch: Epoch(row.epoch),
        swept_at: Millis(row.swept_at_ms),
        sweep: row
            .sweep
            .map(|sweep| Progress { started_at: Millis(sweep.started_at_ms), finished: sweep.finished }),
        asked_at: Millis(row.asked_at_ms),
    }
}

fn device_due(id: &DeviceId, row: &DeviceRow) -> DeviceDue {
    let unit = row.unit.parse().unwrap_or_else(|_| UnitId::new("", IpNet::default()));
    DeviceDue {
        id: id.clone(),
        unit,
        metered_at: Millis(row.metered_at_ms),
        misses: row.misses,
        asked_at: Millis(row.asked_at_ms),
    }
}

/// Reads a known device: the way that worked last, else the others of its protocol.
async fn read(tools: &Tools, device: &DeviceRow, epoch: Epoch) -> Ended {
    let Ok(peer) = device.address.parse::<SocketAddr>() else { return Ended::Done };
    let observe = |what| tools.reporter.observation(&device.unit, epoch, peer, device.hops, what);
    for way in ways_to(tools, device, peer) {
        let finished = tools.read(peer, &way.credential, Some(way.plan.clone()), Patience::Patient).await;
        match finished.reading {
            Some(reading) if finished.complete => {
                tools.ways.put(peer, Way { credential: way.credential, plan: finished.plan });
                let reading = tools.web.complete(&tools.settings, reading, peer.ip(), web::Lane::Read).await;
                tools.reporter.report(observe(What::Reading(convert::encode(&reading)))).await;
                return Ended::Done;
            }
            // Lost in the middle: half a reading is no reading; the next try asks again.
            Some(_) => return Ended::Failed,
            None => tools.ways.forget(peer),
        }
    }
    tools.reporter.report(observe(What::Silence(Silence { device: device.id.clone() }))).await;
    Ended::Done
}

fn ways_to(tools: &Tools, device: &DeviceRow, peer: SocketAddr) -> Vec<Way> {
    if let Some(way) = tools.ways.get(peer) {
        return vec![way];
    }
    let via = convert::decode(&device.reading).map(|reading| reading.via).unwrap_or_default();
    suitable(&tools.credentials, |credential| via.contains(&device::via(credential)))
        .into_iter()
        .map(|credential| Way { credential, plan: ReadPlan::default() })
        .collect()
}

/// The credentials that speak as the device did last; all of them where the settings no longer hold such
/// a one, else a site that moves from communities to SNMPv3 would fall silent until its next sweep.
fn suitable(credentials: &[Arc<Credential>], spoken: impl Fn(&Credential) -> bool) -> Vec<Arc<Credential>> {
    let fitting: Vec<_> = credentials.iter().filter(|credential| spoken(credential)).cloned().collect();
    if fitting.is_empty() { credentials.to_vec() } else { fitting }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_addresses_are_never_contacted_not_even_for_known_devices() {
        let exclude = ["10.1.0.5/32".parse().unwrap(), "10.1.9.0/24".parse().unwrap()];
        assert!(may_contact("10.1.0.6:161", &exclude));
        for address in ["10.1.0.5:161", "10.1.9.77:1161", ""] {
            assert!(!may_contact(address, &exclude), "{address}");
        }
    }

    #[test]
    fn a_device_whose_protocol_left_the_settings_is_tried_with_what_there_is() {
        let (v1, v2c) = (Credential::v1("a").unwrap(), Credential::v2c("b").unwrap());
        let all = [Arc::new(v1), Arc::new(v2c)];
        let is_v1 = |credential: &Credential| matches!(credential, Credential::V1(_));
        assert_eq!(suitable(&all, is_v1).len(), 1);
        assert_eq!(suitable(&all[1..], is_v1).len(), 1, "the other one");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_of_one_task() {
        assert_eq!(contained(async { Ended::Done }).await, Ended::Done);
        assert_eq!(contained(async { panic!("a hostile answer") }).await, Ended::Failed);
    }
}
