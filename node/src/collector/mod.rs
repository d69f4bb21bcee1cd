//! What every node does for its own units: sweep them, read their devices, report what it learnt.
//!
//! Without quorum a node goes on reading the devices it owned and spools; it never sweeps then.
//!
//! Architecture Invariant: nothing here decides who owns what; it follows the committed plan. What a task is based on
//! (its grant, the settings) stays in force while it runs, or it is stopped.

mod capability;
mod credentials;
mod explore;
mod follow;
mod handover;
mod lend;
mod local;
mod reach;
mod read;
mod report;
mod scripts;
mod sweep;
mod trials;
mod web;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures::FutureExt as _;
use ipnet::IpNet;
use quire_coordinator::cost::{Costs, Pace};
use quire_coordinator::coverage::Coverage;
use quire_coordinator::roster::{Limits, Roster, Task};
use quire_coordinator::rows;
use quire_coordinator::settings::Settings;
use quire_coordinator::upgrade;
use quire_proto::id::{DeviceId, Epoch, Millis, UnitId};
use quire_proto::store::command::Kind;
use quire_proto::store::{ReportCosts, UnitRow};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::{Changes, Cluster, Space, Wanted};
use crate::device::browser::Browser;
use crate::device::script::{self, Scripts};
use crate::device::{self, Finished, ReadPlan};
use crate::snmp::{Credential, Patience, Snmp};

pub(crate) use explore::Explorer;
use handover::Handover;
pub(crate) use local::LocalPrinters;
pub(crate) use reach::Reachability;
use read::Ways;
pub(crate) use report::Reporter;
pub(crate) use scripts::ScriptKeeper;

const DAY_MS: f64 = 86_400_000.0;

/// The least between two looks at what changed: a busy node applies hundreds of entries a second.
const LOOK: Duration = Duration::from_millis(50);

/// How often what units cost is compared with what the plan says.
const TELL_COSTS: Duration = Duration::from_secs(10);

/// How long a report of costs may take; the next one says the same.
const COSTS_PATIENCE: Duration = Duration::from_secs(5);

/// How long nothing is waited for at the most.
const IDLE: Duration = Duration::from_millis(500);

/// Devices read at the same time. Each has one request in flight; a task takes some 10 KB.
const READS: usize = 256;

/// Units swept at the same time, under the node's one ceiling of packets: while the last addresses of one wait for
/// their answers, the others go on. 8 x 256 addresses of some 250 octets are half a megabyte in the engine.
const SWEEPS: usize = 8;

/// Reads of new devices at the same time, of all sweeps together.
const SWEEP_READS: usize = 64;

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It did what it was for, even if that was to learn that a device is silent.
    Done,
    /// It broke off.
    Failed,
    /// It was told to stop.
    Stopped,
}

/// What a task shares.
#[derive(Clone)]
pub(super) struct Tools {
    pub(super) cluster: Cluster,
    pub(super) snmp: Snmp,
    pub(super) reporter: Reporter,
    pub(super) ways: Ways,
    pub(super) web: Arc<web::Web>,
    pub(super) settings: Arc<Settings>,
    /// Log index of the settings.
    pub(super) settings_index: u64,
    pub(super) credentials: Arc<Vec<Arc<Credential>>>,
    pub(super) scripts: Scripts,
    /// Places of [`SWEEP_READS`].
    pub(super) sweep_reads: Arc<Semaphore>,
}

impl Tools {
    /// Reads a device: the standard first, then the profiles that know it better.
    async fn read(
        &self,
        peer: SocketAddr,
        credential: &Arc<Credential>,
        plan: Option<ReadPlan>,
        patience: Patience,
        pin: &mut web::Pin,
    ) -> Finished {
        let profiles = self.scripts.profiles();
        let mut finished = device::read(&self.snmp, peer, credential, plan, patience, profiles).await;
        let mut asking = self.web.asking(&self.settings, peer.ip(), pin);
        asking.elsewhere = Some(Arc::new(lend::Others(self.cluster.clone())));
        let learnt =
            script::improve(&self.scripts, &self.snmp, peer, credential, &asking, &mut finished).await;
        self.web.learn(peer.ip(), &learnt, pin);
        finished
    }
}

/// A task that runs.
struct Running {
    stop: CancellationToken,
    /// Of the grant that it works under.
    epoch: Epoch,
    /// Whom it speaks with, if it is one device, and where that lives.
    peer: Option<SocketAddr>,
    unit: Option<UnitId>,
    since: Instant,
    /// A sweep of all of its unit, and not of what an earlier one had left.
    whole: bool,
}

/// The collector of one node.
pub(crate) struct Collector {
    cluster: Cluster,
    changes: Changes,
    tools: Tools,
    roster: Roster,
    /// Its own units alone.
    units: BTreeMap<UnitId, UnitRow>,
    handover: Handover,
    tasks: JoinSet<(Task, Ended)>,
    sweeps: BTreeMap<UnitId, Running>,
    reads: BTreeMap<DeviceId, Running>,
    /// Pages that other nodes want shown, and those that are being shown.
    wanted: Option<mpsc::Receiver<Wanted>>,
    showing: JoinSet<()>,
    looked: Instant,
    costs: Costs,
    costs_told: Instant,
    /// The ceiling that was set last.
    rate: Option<u32>,
}

impl Collector {
    /// The collector of the node behind `cluster`.
    pub(crate) fn new(
        cluster: Cluster,
        snmp: Snmp,
        reporter: Reporter,
        scripts: Scripts,
        browser: Browser,
    ) -> Self {
        let settings = Arc::new(Settings::default());
        let limits = Limits { sweeps: SWEEPS, reads: READS };
        let roster = Roster::new(settings.discovery.schedule.clone(), settings.metering.every_ms, limits);
        let tools = Tools {
            cluster: cluster.clone(),
            snmp,
            reporter,
            ways: Ways::default(),
            web: Arc::new(web::Web::new(browser)),
            settings,
            settings_index: 0,
            credentials: Arc::default(),
            scripts,
            sweep_reads: Arc::new(Semaphore::new(SWEEP_READS)),
        };
        Collector {
            changes: cluster.changes(),
            wanted: cluster.pages(),
            showing: JoinSet::new(),
            cluster,
            tools,
            roster,
            units: BTreeMap::new(),
            handover: Handover::default(),
            tasks: JoinSet::new(),
            sweeps: BTreeMap::new(),
            reads: BTreeMap::new(),
            looked: clock::steady(),
            costs: Costs::default(),
            costs_told: clock::steady(),
            rate: None,
        }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::spawn(capability::keep(self.cluster.clone(), stop.clone()));
        self.follow()?;
        loop {
            if self.handover.is_pending() {
                self.follow_overdue()?;
                self.let_go();
            }
            self.start_due();
            self.tell_costs();
            let pause = self.until_next();
            let look_at = tokio::time::Instant::from_std(self.looked + LOOK);
            tokio::select! {
                () = stop.cancelled() => break,
                () = async { self.changes.changed().await; tokio::time::sleep_until(look_at).await } => {
                    self.follow()?;
                }
                Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => {
                    let (task, ended) = done.context("collect from a device")?;
                    self.end(&task, ended);
                }
                Some(wanted) = next(&mut self.wanted), if self.showing.len() < lend::SHOWING => {
                    let tools = self.tools.clone();
                    self.showing.spawn(lend::show(tools, wanted));
                }
                Some(shown) = self.showing.join_next(), if !self.showing.is_empty() => {
                    // Given up where exclusions changed: whoever wanted it hears so.
                    if shown.is_err_and(|error| error.is_panic()) {
                        tracing::error!("a page that was shown for another node made a panic");
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
        if *self.cluster.space().borrow() == Space::Short {
            // What is due waits for room, and nothing here brings any.
            return IDLE;
        }
        let now = clock::now();
        let due = self.roster.poll_timeout().map(|at| Duration::from_millis(at.0.saturating_sub(now.0)));
        due.unwrap_or(IDLE).clamp(Duration::from_millis(5), IDLE)
    }

    fn end(&mut self, task: &Task, ended: Ended) {
        let took = |running: &Running| clock::steady().duration_since(running.since).as_millis() as u64;
        match task {
            Task::Sweep { unit, .. } => {
                let running = self.sweeps.remove(unit);
                if let Some(running) = running.filter(|running| running.whole && ended == Ended::Done) {
                    self.costs.sweep_took(unit, took(&running));
                }
            }
            Task::Read { device } => {
                let running = self.reads.remove(device).filter(|_| ended != Ended::Stopped);
                if let Some((running, unit)) = running.as_ref().and_then(|r| Some((r, r.unit.as_ref()?))) {
                    self.costs.read_took(unit, took(running));
                }
            }
        }
        match ended {
            Ended::Done => self.roster.handle_done(task, clock::now()),
            Ended::Failed => self.roster.handle_failed(task, clock::now()),
            Ended::Stopped => self.roster.handle_stopped(task),
        }
    }

    /// Tells the cluster what this node's units cost, where the plan says something else.
    fn tell_costs(&mut self) {
        let now = clock::steady();
        if now.duration_since(self.costs_told) < TELL_COSTS {
            return;
        }
        self.costs_told = now;
        // Older members would not know the command.
        if rows::meta(&self.cluster.view()).map_or(0, |meta| meta.cluster_version) < upgrade::MEASURED_COST {
            return;
        }
        let discovery = &self.tools.settings.discovery;
        let every_ms = self.tools.settings.metering.every_ms.max(1);
        let pace = Pace { reads_a_day: DAY_MS / every_ms as f64, sweeps_a_day: discovery.schedule.a_day() };
        let (units, devices) = (&self.units, self.roster.devices_by_unit());
        let owned = |unit: &UnitId| Some((units.get(unit)?, devices.get(unit).copied().unwrap_or(0)));
        let costs = self.costs.news(owned, pace);
        if costs.is_empty() {
            return;
        }
        let report = Kind::ReportCosts(ReportCosts { node: self.cluster.me().id.0, costs });
        let cluster = self.cluster.clone();
        // Not waited for: what is not committed is told again.
        tokio::spawn(async move {
            if let Err(error) = cluster.propose(report, COSTS_PATIENCE).await {
                tracing::debug!(%error, "costs not reported yet");
            }
        });
    }

    fn start_due(&mut self) {
        let quorum = self.cluster.watch().borrow().quorum;
        self.roster.set_sweeping(quorum);
        if *self.cluster.space().borrow() == Space::Short {
            // What runs ends; a disk that fills up further would take more than readings.
            return;
        }
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
        let (Some(row), Some(prefix)) = (self.units.get(unit).cloned(), unit.prefix()) else {
            return self.roster.handle_failed(task, clock::now());
        };
        let mark = row.sweep.clone().unwrap_or_default();
        let index = self.tools.settings_index;
        let coverage = Coverage::resume(prefix, &mark, started_at.0, index);
        let whole = coverage.is_empty();
        let sweep = match sweep::UnitSweep::new(&self.tools, row, epoch, started_at, coverage) {
            Ok(sweep) => sweep,
            Err(fault) => {
                tracing::error!(%unit, %fault, "the devices of a unit cannot be read");
                return self.roster.handle_failed(task, clock::now());
            }
        };
        let stop = CancellationToken::new();
        let running =
            Running { stop: stop.clone(), epoch, peer: None, unit: None, since: clock::steady(), whole };
        self.sweeps.insert(unit.clone(), running);
        let (tools, task) = (self.tools.clone(), task.clone());
        self.tasks.spawn(async move { (task, contained(sweep.run(&tools, &stop)).await) });
    }

    fn start_read(&mut self, task: &Task, id: &DeviceId) {
        let device = match rows::device(&self.cluster.view(), id) {
            Ok(device) => device,
            Err(fault) => {
                tracing::error!(device = %id, %fault, "a device cannot be read from the tables");
                return self.roster.handle_failed(task, clock::now());
            }
        };
        let own =
            device.filter(|device| may_contact(&device.address, &self.tools.settings.discovery.exclude));
        let Some(device) = own else { return self.roster.handle_done(task, clock::now()) };
        let unit: Option<UnitId> = device.unit.parse().ok();
        let epoch = unit.as_ref().and_then(|unit| self.units.get(unit));
        let epoch = Epoch(epoch.map_or(0, |unit| unit.epoch));
        let stop = CancellationToken::new();
        let peer = device.address.parse().ok();
        let running = Running { stop: stop.clone(), epoch, peer, unit, since: clock::steady(), whole: false };
        self.reads.insert(id.clone(), running);
        let (tools, task) = (self.tools.clone(), task.clone());
        self.tasks.spawn(async move {
            let ended = tokio::select! {
                biased;
                () = stop.cancelled() => Ended::Stopped,
                ended = contained(read::known(&tools, &device, epoch)) => ended,
            };
            (task, ended)
        });
    }
}

async fn next(wanted: &mut Option<mpsc::Receiver<Wanted>>) -> Option<Wanted> {
    match wanted {
        Some(wanted) => wanted.recv().await,
        None => None,
    }
}

/// False for the addresses that the operator excluded, however well their devices are known, and for a
/// device that lives nowhere.
fn may_contact(address: &str, exclude: &[IpNet]) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|peer| !excluded(peer, exclude))
}

fn excluded(peer: SocketAddr, exclude: &[IpNet]) -> bool {
    exclude.iter().any(|prefix| prefix.contains(&peer.ip()))
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

#[cfg(test)]
#[path = "tests.rs"]
mod loopback;

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

    #[tokio::test]
    async fn a_panic_is_a_failure_of_one_task() {
        assert_eq!(contained(async { Ended::Done }).await, Ended::Done);
        assert_eq!(contained(async { panic!("a hostile answer") }).await, Ended::Failed);
    }
}
