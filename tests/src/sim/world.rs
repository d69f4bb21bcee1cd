//! The world around the processes: machines, their disks, what starts and ends on them, and the printers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quire_proto::reading::{Counters, Facts, Reading, Via};
use rand::RngExt as _;

use super::checks::Checks;
use super::disk::{Disk, Image};
use super::net::Net;
use super::node::{Birth, Node};
use super::plan::Plan;
use super::presence;
use super::runtime::{Process, dice, elapsed, lock, pick, sleep_ms, spawn_in};
use super::site::Admin;

/// All of it; clones share it.
#[derive(Clone)]
pub struct World {
    /// What sees everything.
    pub checks: Checks,
    /// The network.
    pub net: Net,
    /// What the run is made of.
    pub plan: Arc<Plan>,
    /// The Web Admin.
    pub admin: Admin,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    machines: BTreeMap<usize, Machine>,
    serial: u64,
    /// When anything was broken or mended last.
    disturbed: Duration,
    /// No new readings and sweeps: the run is being closed.
    quiet: bool,
}

struct Machine {
    birth: Birth,
    process: Option<Arc<Process>>,
    node: Option<Arc<Node>>,
    calendar_ms: i64,
    /// Out of use: removed, or refused by the others for good.
    over: bool,
    broken_disk: bool,
    /// There is or was a copy of it.
    doubted: bool,
}

impl World {
    /// An empty world.
    #[must_use]
    pub fn new(checks: Checks, plan: Plan) -> World {
        let net = Net::new(checks.clone());
        World { admin: Admin::new(checks.clone()), checks, net, plan: Arc::new(plan), inner: Arc::default() }
    }

    /// Something was broken or mended.
    pub fn disturb(&self) {
        lock(&self.inner).disturbed = elapsed();
    }

    /// How long nothing was broken or mended.
    #[must_use]
    pub fn undisturbed(&self) -> Duration {
        elapsed().saturating_sub(lock(&self.inner).disturbed)
    }

    /// No more traffic.
    pub fn set_quiet(&self) {
        lock(&self.inner).quiet = true;
    }

    /// Whether the run is being closed.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        lock(&self.inner).quiet
    }

    /// A machine with a data directory, switched off.
    pub fn install(&self, birth: Birth) {
        let machine = Machine {
            birth: birth.clone(),
            process: None,
            node: None,
            calendar_ms: 0,
            over: false,
            broken_disk: false,
            doubted: false,
        };
        lock(&self.inner).machines.insert(birth.machine, machine);
    }

    /// A number that no machine has.
    #[must_use]
    pub fn next_machine(&self) -> usize {
        lock(&self.inner).machines.keys().next_back().map_or(1, |last| last + 1)
    }

    /// Starts the process of a machine, unless one runs or it is out of use.
    pub fn start(&self, machine: usize) {
        self.disturb();
        let started = {
            let mut inner = lock(&self.inner);
            inner.serial += 1;
            let serial = inner.serial;
            let Some(here) = inner.machines.get_mut(&machine).filter(|m| m.process.is_none() && !m.over)
            else {
                return;
            };
            let process = Process::new(serial, here.calendar_ms);
            here.process = Some(Arc::clone(&process));
            (here.birth.clone(), process)
        };
        let (birth, process) = started;
        self.checks.count("processes started");
        self.checks.tell(|| format!("machine {machine} starts node {}", birth.me));
        let world = self.clone();
        spawn_in(Some(Arc::clone(&process)), async move {
            match Node::start(world.clone(), birth.clone(), process).await {
                Ok(node) => {
                    if let Some(here) = lock(&world.inner).machines.get_mut(&machine) {
                        here.node = Some(Arc::clone(&node));
                        here.birth.founds = false;
                        here.birth.newborn = false;
                    }
                    let known = birth.founds || birth.newborn || presence::introduced(&node).await;
                    if birth.founds {
                        let _ = node.propose(node.bootstrap(), Duration::from_secs(30)).await;
                    }
                    if known {
                        node.work();
                    }
                }
                Err(why) => {
                    world.checks.tell(|| format!("machine {machine} cannot start: {why}"));
                    world.stop(machine, false);
                    world.start_later(machine);
                }
            }
        });
    }

    /// What supervises processes starts another.
    pub fn start_later(&self, machine: usize) {
        let world = self.clone();
        spawn_in(None, async move {
            sleep_ms(pick(1_000..5_000)).await;
            world.start(machine);
        });
    }

    /// A process ends by itself: for good when others know why, else to be started again.
    pub fn ended(&self, node: &Node, why: Option<String>) {
        let machine = node.birth.machine;
        if let Some(why) = why {
            self.checks.tell(|| format!("machine {machine} is shut out: {why}"));
            self.checks.count("processes shut out");
            let removed = why.contains("was removed");
            let doubted = lock(&self.inner).machines.get(&machine).is_some_and(|here| here.doubted);
            if node.birth.rightful && !removed && !doubted {
                self.checks
                    .violated(format!("machine {machine} has the newest directory and is shut out: {why}"));
            }
            if let Some(here) = lock(&self.inner).machines.get_mut(&machine) {
                here.over = true;
            }
        } else {
            self.start_later(machine);
        }
        self.stop(machine, false);
    }

    /// Ends the process of a machine; with `power`, so that what was not synced may be lost.
    pub fn stop(&self, machine: usize, power: bool) {
        self.disturb();
        let (process, node, disk) = {
            let mut inner = lock(&self.inner);
            let Some(here) = inner.machines.get_mut(&machine) else { return };
            (here.process.take(), here.node.take(), here.birth.disk.clone())
        };
        let Some(process) = process else { return };
        process.kill();
        self.net.gone(machine, power);
        drop(node);
        if power {
            let lost = disk.lose_power(|pending| dice().random_range(0..=pending));
            self.checks.count_many("batches lost with power", lost as u64);
        } else {
            disk.outlive_process();
        }
    }

    /// A machine is out of use for good.
    pub fn retire(&self, machine: usize) {
        if let Some(here) = lock(&self.inner).machines.get_mut(&machine) {
            here.over = true;
        }
        self.stop(machine, false);
    }

    /// The process stands still, or goes on.
    pub fn freeze(&self, machine: usize, still: bool, clocks: bool) {
        self.disturb();
        let process = lock(&self.inner).machines.get(&machine).and_then(|here| here.process.clone());
        if let Some(process) = process {
            if still { process.stand_still(clocks) } else { process.go_on() }
        }
        self.net.nudge();
    }

    /// The calendar of a machine jumps.
    pub fn set_calendar(&self, machine: usize, ahead_ms: i64) {
        self.disturb();
        if let Some(here) = lock(&self.inner).machines.get_mut(&machine) {
            here.calendar_ms = ahead_ms;
            here.process.iter().for_each(|process| process.set_calendar(ahead_ms));
        }
    }

    /// The disk of a machine is full, slow, or well again.
    pub fn set_disk(&self, machine: usize, full: bool, slow: Option<(u64, u64)>) {
        self.disturb();
        if let Some(here) = lock(&self.inner).machines.get_mut(&machine) {
            here.birth.disk.set_full(full);
            here.birth.disk.set_slow(slow);
            here.broken_disk = full || slow.is_some();
        }
    }

    /// A copy of what a machine's disk holds.
    #[must_use]
    pub fn image(&self, machine: usize) -> Option<Image> {
        lock(&self.inner).machines.get(&machine).map(|here| here.birth.disk.look(Image::clone))
    }

    /// Puts an older copy in place of what a machine's disk holds: its process must be down.
    pub fn roll_back(&self, machine: usize, image: Image) {
        if let Some(here) = lock(&self.inner).machines.get_mut(&machine) {
            here.birth.disk = Disk::new(image);
            here.birth.rightful = false;
        }
    }

    /// There is a copy of what a machine has: its process may be taken for that.
    pub fn doubt(&self, machine: usize) {
        let mut inner = lock(&self.inner);
        if let Some(here) = inner.machines.get_mut(&machine) {
            here.doubted = true;
        }
    }

    /// What a machine was installed with.
    #[must_use]
    pub fn birth(&self, machine: usize) -> Option<Birth> {
        lock(&self.inner).machines.get(&machine).map(|here| here.birth.clone())
    }

    /// Machines in use, running or not.
    #[must_use]
    pub fn in_use(&self) -> Vec<usize> {
        let inner = lock(&self.inner);
        inner.machines.iter().filter(|(_, here)| !here.over).map(|(machine, _)| *machine).collect()
    }

    /// Processes that run and take part.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        lock(&self.inner).machines.values().filter_map(|here| here.node.clone()).collect()
    }

    /// As [`World::nodes`], but only those that nothing is wrong with.
    #[must_use]
    pub fn healthy(&self) -> Vec<Arc<Node>> {
        let inner = lock(&self.inner);
        let well = inner.machines.values().filter(|here| !here.broken_disk && here.calendar_ms == 0);
        let nodes = well.filter_map(|here| here.node.clone());
        nodes.filter(|node| !node.process.is_still() && !node.process.is_dead()).collect()
    }

    /// Whether a machine is ill without being down: its disk or its calendar is wrong.
    #[must_use]
    pub fn is_ill(&self) -> bool {
        lock(&self.inner)
            .machines
            .values()
            .any(|here| !here.over && (here.broken_disk || here.calendar_ms != 0))
    }

    /// The machine that a process runs on.
    #[must_use]
    pub fn machine_of(&self, process: &Arc<Process>) -> usize {
        let inner = lock(&self.inner);
        let runs = |here: &Machine| here.process.as_ref().is_some_and(|other| Arc::ptr_eq(other, process));
        inner.machines.iter().find(|(_, here)| runs(here)).map_or(0, |(machine, _)| *machine)
    }

    /// The process of a machine.
    #[must_use]
    pub fn process_on(&self, machine: usize) -> Option<Arc<Process>> {
        lock(&self.inner).machines.get(&machine).and_then(|here| here.process.clone())
    }

    /// Ends everything, so that nothing holds anything.
    pub fn close(&self) {
        let machines: BTreeSet<usize> = lock(&self.inner).machines.keys().copied().collect();
        machines.iter().for_each(|machine| self.stop(*machine, false));
        lock(&self.inner).machines.clear();
    }
}

/// A simulated printer: what it is does not change, what it has printed does.
#[derive(Clone, Debug)]
pub struct Printer {
    /// Its serial number.
    pub serial: String,
    /// The number of the only user that it lets in; `None`: it answers to the community.
    pub user: Option<u32>,
}

/// The printer at an address, if one is there: on three of every sixteen addresses.
#[must_use]
pub fn printer(address: std::net::IpAddr) -> Option<Printer> {
    let std::net::IpAddr::V4(ip) = address else { return None };
    let [_, net, _, host] = ip.octets();
    let user = match host % 16 {
        3 | 7 => None,
        11 => Some(u32::from(net) % 2),
        _ => return None,
    };
    Some(Printer { serial: format!("SIM{net:03}{host:03}"), user })
}

/// What a printer says now.
#[must_use]
pub fn reading(printer: &Printer) -> Reading {
    let via = if printer.user.is_some() { Via::SnmpV3 } else { Via::SnmpV2c };
    let mut reading = Reading { via: vec![via], ..Reading::default() };
    *reading.facts = Facts {
        vendor: Some("Simulated".to_owned()),
        serial: Some(printer.serial.clone()),
        ..Facts::default()
    };
    reading.counters = Counters { total: Some(1_000 + elapsed().as_secs() / 7), ..Counters::default() };
    reading.sources.insert("serial".to_owned(), "1.3.6.1.2.1.43.5.1.1.17.1".to_owned());
    reading
}
