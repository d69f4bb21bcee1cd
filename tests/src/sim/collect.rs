//! What a node does for its own units, as the node's `collector` does it: it follows the tables by the real feed, does
//! what the real roster says is due, and spools what it learns. The printers are the world's.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use quire_coordinator::coverage::{self, Coverage};
use quire_coordinator::extent::unit_hosts;
use quire_coordinator::roster::{DeviceDue, Limits, OwnUnit, Progress, Roster, Task};
use quire_coordinator::rows;
use quire_coordinator::settings::Settings;
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_coordinator::topology;
use quire_proto::convert;
use quire_proto::id::{DeviceId, Epoch, Millis, UnitId};
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{
    DeviceRow, Observation, Reach, Record, ReportReach, Silence, SweepMark, Trial, Tried, UnitRow,
};
use tokio::sync::mpsc;

use super::node::{Node, members};
use super::raft::digest;
use super::runtime::{JoinHandle, calendar_ms, chance, pick, sleep, sleep_ms, spawn, steady, timeout};
use super::world::{printer, reading};

const LOOK_MS: u64 = 200;
const IDLE_MS: u64 = 500;
const BATCH: usize = 500;
const GATHER_MS: u64 = 50;
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE_MS: u64 = 500;
/// Users of the settings.
const USERS: u32 = 2;

/// Commits what the spool holds, oldest first.
pub async fn report(node: Arc<Node>) {
    loop {
        loop {
            let observations = node.spool.page(BATCH);
            if observations.is_empty() {
                break;
            }
            let record = Record { node: node.birth.me, observations };
            match node.propose(Kind::Record(record), PATIENCE).await.map(|outcome| outcome.result) {
                Ok(Some(Answer::RecordedThrough(through))) => {
                    node.spool.trim(through, node.birth.rightful.then_some(&node.checks));
                }
                Ok(other) => node.checks.violated(format!("a record has the answer {other:?}")),
                Err(_) => break,
            }
        }
        if timeout(Duration::from_millis(PAUSE_MS), node.news.notified()).await.is_ok() {
            sleep_ms(GATHER_MS).await;
        }
    }
}

/// Reports how far the segments are.
pub async fn reach(node: Arc<Node>) {
    let mut reported = 0;
    loop {
        let (index, settings) = node.settings();
        if index != reported && index > 0 {
            let reaches = settings.discovery.segments.iter().map(|segment| {
                let far = digest(&(node.birth.machine, segment.prefix.to_string())) % 8;
                Reach {
                    segment: segment.prefix.to_string(),
                    hops: (far < 6).then_some((far % 3) as u32),
                    reachable: far != 7,
                    measured_at_ms: calendar_ms(),
                }
            });
            let report = ReportReach { node: node.birth.me, reaches: reaches.collect() };
            if node.propose(Kind::ReportReach(report), PATIENCE).await.is_ok() {
                reported = index;
            }
        }
        sleep_ms(5_000).await;
    }
}

struct Running {
    handle: JoinHandle<()>,
    task: Task,
    epoch: u64,
    address: Option<IpAddr>,
}

struct Collector {
    node: Arc<Node>,
    roster: Roster,
    units: BTreeMap<UnitId, UnitRow>,
    settings: Arc<Settings>,
    settings_index: u64,
    running: BTreeMap<u64, Running>,
    number: u64,
    done: mpsc::Sender<(u64, bool)>,
}

/// What a task works with.
#[derive(Clone)]
struct Tools {
    node: Arc<Node>,
    settings: Arc<Settings>,
    settings_index: u64,
}

/// Collects while the process runs.
pub async fn run(node: Arc<Node>) {
    let settings = Arc::new(Settings::default());
    let limits = Limits { sweeps: 4, reads: 16 };
    let roster = Roster::new(settings.discovery.schedule.clone(), settings.metering.every_ms, limits);
    // As many as tasks may run at a time.
    let (done, mut ended) = mpsc::channel(64);
    let mut changes = node.feed.follow();
    let mut collector = Collector {
        node,
        roster,
        units: BTreeMap::new(),
        settings,
        settings_index: 0,
        running: BTreeMap::new(),
        number: 0,
        done,
    };
    let mut looked = steady();
    collector.follow(changes.take());
    loop {
        collector.start_due();
        let now = calendar_ms();
        let due = collector.roster.poll_timeout().map(|at| at.0.saturating_sub(now));
        let pause = due.unwrap_or(IDLE_MS).clamp(5, IDLE_MS);
        tokio::select! {
            biased;
            Some((number, fine)) = ended.recv() => collector.end(number, fine),
            () = async {
                changes.changed().await;
                sleep((looked + Duration::from_millis(LOOK_MS)).saturating_sub(steady())).await;
            } => {
                looked = steady();
                collector.follow(changes.take());
            }
            () = sleep_ms(pause) => {}
        }
    }
}

impl Collector {
    fn follow(&mut self, seen: quire_node::cluster::Seen) {
        let (index, settings) = self.node.settings();
        let changed = index != self.settings_index;
        if changed {
            self.roster.set_settings(settings.discovery.schedule.clone(), settings.metering.every_ms);
            (self.settings, self.settings_index) = (settings, index);
            let exclude = self.settings.discovery.exclude.clone();
            super::runtime::lock(&self.node.exclude).clone_from(&exclude);
            self.stop(|running| {
                matches!(running.task, Task::Sweep { .. })
                    || running.address.is_some_and(|ip| exclude.iter().any(|prefix| prefix.contains(&ip)))
            });
        }
        let before: Vec<UnitId> = self.units.keys().cloned().collect();
        let me = self.node.birth.me;
        let disk = self.node.birth.disk.clone();
        let touched = |table| seen.rows.iter().filter(move |(other, _)| *other == table).map(|(_, key)| key);
        if seen.everything {
            let rows = disk.look(|image| rows::units(&image.tables)).unwrap_or_default();
            let own = rows.into_iter().filter(|row| row.node == me);
            self.units = own.filter_map(|row| Some((row.unit.parse().ok()?, row))).collect();
        }
        for key in touched(Table::Units) {
            let Ok(id) = String::from_utf8_lossy(key).parse::<UnitId>() else { continue };
            let row = disk.look(|image| rows::unit(&image.tables, &id)).unwrap_or_default();
            match row.filter(|row| row.node == me) {
                Some(row) => drop(self.units.insert(id, row)),
                None => drop(self.units.remove(&id)),
            }
        }
        let own: Vec<OwnUnit> = self.units.iter().map(|(id, row)| own_unit(id, row)).collect();
        self.roster.set_units(&own);
        let moved = seen.everything || !self.units.keys().eq(&before);
        if moved {
            self.roster.forget_foreign();
        }
        let epochs: BTreeMap<UnitId, u64> =
            self.units.iter().map(|(id, row)| (id.clone(), row.epoch)).collect();
        self.stop(|running| match &running.task {
            Task::Sweep { unit, .. } => epochs.get(unit) != Some(&running.epoch),
            Task::Read { .. } => false,
        });
        if changed || moved {
            let units: Vec<UnitId> = self.units.keys().cloned().collect();
            let mut devices = Vec::new();
            disk.look(|image| {
                for unit in &units {
                    let Some(prefix) = unit.prefix() else { continue };
                    let _ = rows::devices_in(&image.tables, unit.zone(), prefix, |row| {
                        devices.push(row);
                        true
                    });
                }
            });
            let there: std::collections::BTreeSet<String> =
                devices.iter().map(|row| row.id.clone()).collect();
            devices.iter().for_each(|row| self.follow_device(row));
            self.roster.retain_devices(|id| there.contains(id.as_str()));
            return;
        }
        for key in touched(Table::Devices) {
            match disk.look(|image| image.tables.row::<DeviceRow>(Table::Devices, key)).unwrap_or_default() {
                Some(row) => self.follow_device(&row),
                None => self.roster.remove_device(&DeviceId::from(String::from_utf8_lossy(key).into_owned())),
            }
        }
    }

    fn follow_device(&mut self, row: &DeviceRow) {
        let unit = row.unit.parse::<UnitId>().ok().filter(|unit| self.units.contains_key(unit));
        match unit.filter(|_| !excluded(&self.settings, &row.address)) {
            Some(unit) => self.roster.set_device(
                &DeviceDue {
                    id: DeviceId::from(row.id.clone()),
                    unit,
                    metered_at: Millis(row.metered_at_ms),
                    misses: row.misses,
                    asked_at: Millis(row.asked_at_ms),
                },
                Millis(calendar_ms()),
            ),
            None => self.roster.remove_device(&DeviceId::from(row.id.clone())),
        }
    }

    fn stop(&mut self, which: impl Fn(&Running) -> bool) {
        let numbers: Vec<u64> =
            self.running.iter().filter(|(_, running)| which(running)).map(|(number, _)| *number).collect();
        for number in numbers {
            if let Some(running) = self.running.remove(&number) {
                running.handle.abort();
                self.roster.handle_stopped(&running.task);
            }
        }
    }

    fn end(&mut self, number: u64, fine: bool) {
        let Some(running) = self.running.remove(&number) else { return };
        match fine {
            true => self.roster.handle_done(&running.task, Millis(calendar_ms())),
            false => self.roster.handle_failed(&running.task, Millis(calendar_ms())),
        }
    }

    fn start_due(&mut self) {
        self.roster.set_sweeping(self.node.standing().quorum);
        if self.node.world.is_quiet() {
            return;
        }
        while let Some(task) = self.roster.poll(Millis(calendar_ms())) {
            let tools = Tools {
                node: Arc::clone(&self.node),
                settings: Arc::clone(&self.settings),
                settings_index: self.settings_index,
            };
            self.number += 1;
            let (number, done) = (self.number, self.done.clone());
            let (mut epoch, mut address) = (0, None);
            let handle = match &task {
                Task::Sweep { unit, epoch: under, started_at } => {
                    let Some(row) = self.units.get(unit).cloned() else {
                        self.roster.handle_failed(&task, Millis(calendar_ms()));
                        continue;
                    };
                    epoch = under.0;
                    self.node.checks.count("sweeps begun");
                    let sweep = Sweep::new(tools, row, *under, *started_at);
                    spawn(async move {
                        let fine = sweep.run().await;
                        let _ = done.send((number, fine)).await;
                    })
                }
                Task::Read { device } => {
                    let row = self.node.birth.disk.look(|image| rows::device(&image.tables, device));
                    let Some(row) =
                        row.unwrap_or_default().filter(|row| !excluded(&self.settings, &row.address))
                    else {
                        self.roster.handle_done(&task, Millis(calendar_ms()));
                        continue;
                    };
                    let unit = row.unit.parse().ok().and_then(|unit: UnitId| self.units.get(&unit));
                    let under = Epoch(unit.map_or(0, |unit| unit.epoch));
                    address = row.address.parse().ok().map(|at: SocketAddr| at.ip());
                    spawn(async move {
                        tools.read_known(&row, under).await;
                        let _ = done.send((number, true)).await;
                    })
                }
            };
            self.running.insert(number, Running { handle, task, epoch, address });
        }
    }
}

fn excluded(settings: &Settings, address: &str) -> bool {
    let Ok(at) = address.parse::<SocketAddr>() else { return true };
    settings.discovery.exclude.iter().any(|prefix| prefix.contains(&at.ip()))
}

fn own_unit(id: &UnitId, row: &UnitRow) -> OwnUnit {
    let progress =
        |sweep: &SweepMark| Progress { started_at: Millis(sweep.started_at_ms), finished: sweep.finished };
    OwnUnit {
        unit: id.clone(),
        epoch: Epoch(row.epoch),
        swept_at: Millis(row.swept_at_ms),
        sweep: row.sweep.as_ref().map(progress),
        asked_at: Millis(row.asked_at_ms),
    }
}

impl Tools {
    /// Waits for its turn and sends; false where the address is excluded by now.
    async fn send(&self, at: SocketAddr, packets: u64) -> bool {
        let share = self.node.share();
        self.node.turn(packets, share).await;
        // The engine refuses at the moment of sending, whatever was begun.
        if super::runtime::lock(&self.node.exclude).iter().any(|prefix| prefix.contains(&at.ip())) {
            return false;
        }
        let (_, known) = self.node.settings();
        let old = self.node.settings_age() > Duration::from_secs(1);
        let forbidden = old && excluded(&known, &at.to_string());
        self.node.checks.no_packet_to_the_excluded(self.node.birth.me, &at.to_string(), forbidden);
        self.node.checks.budget_kept(self.node.birth.me, packets, share);
        sleep_ms(pick(2..30)).await;
        true
    }

    fn observation(&self, unit: &str, epoch: Epoch, at: Option<SocketAddr>, what: What) -> Observation {
        Observation {
            unit: unit.to_owned(),
            epoch: epoch.0,
            address: at.map(|at| at.to_string()).unwrap_or_default(),
            at_ms: calendar_ms(),
            what: Some(what),
            ..Observation::default()
        }
    }

    fn report(&self, observation: Observation) {
        match self.node.spool.append(observation) {
            true => self.node.news.notify_one(),
            false => self.node.checks.count("observations lost to a full disk"),
        }
    }

    /// Reads a printer; false when it stays silent.
    async fn read(&self, unit: &str, epoch: Epoch, at: SocketAddr, user: &str) -> bool {
        let Some(found) = printer(at.ip()) else { return false };
        if !self.send(at, 3).await || chance(20) {
            return false;
        }
        let what = What::Reading(convert::encode(&reading(&found)));
        let observation = self.observation(unit, epoch, Some(at), what);
        self.report(Observation { user: user.to_owned(), ..observation });
        self.node.checks.count("readings made");
        true
    }

    async fn read_known(&self, row: &DeviceRow, epoch: Epoch) {
        let Ok(at) = row.address.parse::<SocketAddr>() else { return };
        if !self.read(&row.unit, epoch, at, &row.user).await {
            let silence = What::Silence(Silence { device: row.id.clone() });
            self.report(self.observation(&row.unit, epoch, Some(at), silence));
        }
    }
}

struct Sweep {
    tools: Tools,
    row: UnitRow,
    prefix: IpNet,
    epoch: Epoch,
    coverage: Coverage,
    mark: SweepMark,
}

impl Sweep {
    fn new(tools: Tools, row: UnitRow, epoch: Epoch, started_at: Millis) -> Sweep {
        let prefix = row.prefix.parse().unwrap_or_default();
        let before = row.sweep.clone().unwrap_or_default();
        let coverage = Coverage::resume(prefix, &before, started_at.0, tools.settings_index);
        let mark = SweepMark {
            started_at_ms: started_at.0,
            settings_index: tools.settings_index,
            ..SweepMark::default()
        };
        Sweep { tools, row, prefix, epoch, coverage, mark }
    }

    fn say(&mut self) {
        self.mark.covered = self.coverage.say().into();
        let what = What::Sweep(self.mark.clone());
        self.tools.report(self.tools.observation(&self.row.unit, self.epoch, None, what));
    }

    async fn run(mut self) -> bool {
        let port = self.tools.settings.discovery.port;
        let hosts: Vec<SocketAddr> =
            unit_hosts(self.prefix, &self.row.segment).map(|ip| SocketAddr::new(ip, port)).collect();
        self.mark.total = hosts.len() as u32;
        self.say();
        for (n, host) in hosts.iter().enumerate() {
            if self.coverage.has(host.ip()) || excluded(&self.tools.settings, &host.to_string()) {
                continue;
            }
            if !self.visit(*host).await {
                return false;
            }
            self.coverage.cover(host.ip());
            // More often than the node does, so that short runs see many marks.
            if n % 4 == 3 {
                self.say();
            }
        }
        self.mark.finished = true;
        self.say();
        self.tools.node.checks.count("sweeps finished");
        true
    }

    /// False when the sweep cannot go on.
    async fn visit(&mut self, host: SocketAddr) -> bool {
        if !self.tools.send(host, 1).await {
            return true;
        }
        let Some(found) = printer(host.ip()) else { return true };
        let Some(user) = found.user else {
            self.tools.read(&self.row.unit, self.epoch, host, "").await;
            return true;
        };
        let Some(place) = self.coverage.place(host.ip()) else { return true };
        let (started, under) = (self.mark.started_at_ms, self.tools.settings_index);
        let mut number = coverage::users_tried(&self.row, started, under, place);
        while number < USERS {
            let trial = Trial {
                node: self.tools.node.birth.me,
                unit: self.row.unit.clone(),
                epoch: self.epoch.0,
                started_at_ms: started,
                settings_index: under,
                tried: vec![Tried { address: place, users: number + 1 }],
            };
            if self.tools.node.propose(Kind::Trial(trial), PATIENCE).await.is_err() {
                return false;
            }
            let node = self.tools.node.birth.me;
            self.tools.node.checks.one_trial_a_sweep(&host.to_string(), (started, under), number, node);
            if !self.tools.send(host, 1).await {
                return true;
            }
            if number == user {
                self.tools.read(&self.row.unit, self.epoch, host, &format!("user{user}")).await;
                return true;
            }
            number += 1;
        }
        true
    }
}

impl Node {
    /// This node's part of the zone's packets a second.
    fn share(&self) -> u64 {
        let rate = self.settings().1.discovery.rate;
        let heard = self.birth.disk.look(|image| rows::meta(&image.tables)).unwrap_or_default().heard;
        let mates = members(&self.birth.disk).into_iter().filter(|member| {
            let there = member.id == self.birth.me || heard.iter().any(|heard| heard.node == member.id);
            member.zone == self.birth.zone && there
        });
        topology::share(rate, mates.count()).map_or(u64::MAX / 4, |share| (share as u64).max(1))
    }

    /// Waits until so many packets fit into this node's part.
    async fn turn(&self, packets: u64, share: u64) {
        let at = {
            let mut next = super::runtime::lock(&self.next_turn);
            let at = (*next).max(steady());
            *next = at + Duration::from_micros(1_000_000 * packets / share);
            at
        };
        sleep(at.saturating_sub(steady())).await;
    }
}
