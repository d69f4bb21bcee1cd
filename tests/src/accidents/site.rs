//! A whole site that can be broken: real nodes and a real Web Admin, each in its namespace, devices, one small disk,
//! calendars that jump. And how each accident is done and undone.

use super::history::{Recorder, What};
use super::schedule::{Accident, Planned, Victim};
use super::switch::Fate;
use super::wires::{ADMIN, DEVICES, PORTS, Way, Wires};
use crate::cluster::{Cluster, Place, Programs, TRANSITION, ask, own_host, settings};
use crate::disk::Disk;
use crate::lab::within;
use crate::process::{Process, complain, wait};
use crate::responder::{Seen, Spec};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use quire_node::sim::{Left, left};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What the devices' namespace answers for, and what is searched.
const SEGMENT: &str = "10.76.0.0/21";
/// Devices in it.
const SPEC: Spec = Spec {
    port: 161,
    first: Ipv4Addr::new(10, 76, 0, 0),
    addresses: 2_048,
    every: 16,
    devices: 128,
    delay: 5,
    loss: 0,
    answers: 0,
    supplies: 0,
    record: true,
    seed: 1,
};
/// Packets a second of the whole cluster.
pub const RATE: u32 = 1_000;
/// The small disk: a twentieth of it is less than the least room that counts as enough.
const DISK_MB: u64 = 600;
/// Of Debian's package libfaketime: the one for programs with threads.
const FAKETIME: &str = "faketime/libfaketimeMT.so.1";
/// For everybody to know what happened, once all is well: on a busy machine, in a debug build.
const CONVERGED: Duration = Duration::from_secs(120);
/// Databases that are kept for comparison: some MB each, and the log reaches no further back anyway.
const LEFT_MAX: usize = 16;

/// All that runs.
pub struct Site {
    /// Nodes and Web Admin.
    pub cluster: Cluster,
    devices: Process,
    seen: PathBuf,
    disk: Option<Disk>,
    /// The cables.
    pub wires: Wires,
    /// Names of the nodes.
    pub nodes: Vec<String>,
    /// What each node left at its deaths, the last of them.
    pub left: VecDeque<(String, Left)>,
    clocks: bool,
    down: BTreeSet<String>,
}

/// An accident that lasts.
#[derive(Debug, Clone)]
pub struct Lasting {
    /// When it ends, since the beginning of its round.
    pub until: Duration,
    what: Accident,
    victims: Vec<String>,
}

fn faketime() -> Option<PathBuf> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib"];
    places.iter().map(|place| Path::new(place).join(FAKETIME)).find(|path| path.is_file())
}

impl Site {
    /// Starts everything and waits until all devices are known and some addresses are excluded. `None`, with one
    /// line, where namespaces cannot be had.
    ///
    /// # Errors
    /// When something does not start.
    pub fn start(nodes: usize, seed: u64) -> Result<Option<Site>> {
        let names: Vec<String> = (1..=nodes).map(|n| format!("n{n}")).collect();
        let plain: Vec<&str> = names.iter().map(String::as_str).collect();
        let Some(wires) = Wires::start(&plain, seed)? else { return Ok(None) };
        let mut cluster = Cluster::empty(own_host(), PORTS)?;
        let library = faketime();
        if library.is_none() {
            complain("left out: clocks that jump (libfaketime is not installed)");
        }
        for name in &names {
            let mut environment = Vec::new();
            if let Some(library) = &library {
                let clock = cluster.scratch(&format!("{name}.clock"));
                set_clock(&clock, 0)?;
                environment = vec![
                    ("LD_PRELOAD".to_owned(), library.clone()),
                    ("FAKETIME_TIMESTAMP_FILE".to_owned(), clock),
                    // The calendar alone: a clock that is set moves no timer (clock_settime(2)).
                    ("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".into()),
                    ("FAKETIME_CACHE_DURATION".to_owned(), "1".into()),
                    ("FAKETIME_DISABLE_SHM".to_owned(), "1".into()),
                ];
            }
            cluster.place(name, Place { environment, ..wires.place(name)? });
        }
        cluster.place(ADMIN, wires.place(ADMIN)?);
        let seen = cluster.scratch("seen.json");
        let devices = respond(&wires, &seen, &cluster.scratch("devices.log"))?;
        let last = names.last().context("a cluster needs a node")?;
        let disk = Disk::mount(&cluster.scratch(last), DISK_MB)?;
        if disk.is_none() {
            complain("left out: a disk that fills up (no file system can be mounted here)");
        }
        let clocks = library.is_some();
        let (left, down) = (VecDeque::new(), BTreeSet::new());
        let mut site = Site { cluster, devices, seen, disk, wires, nodes: names, left, clocks, down };
        site.form()?;
        Ok(Some(site))
    }

    fn form(&mut self) -> Result<()> {
        let names: Vec<&str> = self.nodes.iter().map(String::as_str).collect();
        self.cluster.form(&names)?;
        self.cluster.start_admin()?;
        self.cluster.enroll("accidents")?;
        self.cluster.announce("MB are left on the disk");
        self.cluster.apply(&settings(&[SEGMENT], SPEC.port, RATE))?;
        wait("every device to be known", CONVERGED, || {
            let known = self.cluster.status()?.devices;
            ensure!(known == u64::from(SPEC.devices), "{known} are known");
            Ok(())
        })
    }

    /// Excludes some addresses from now on, with and without a device; gives them.
    ///
    /// # Errors
    /// When the settings are refused.
    pub fn exclude(&self) -> Result<Vec<Ipv4Addr>> {
        let devices = [3, 40, 127].map(|n| SPEC.address(n));
        let empty = [7, 900].map(|n| Ipv4Addr::from(u32::from(SPEC.first) + n));
        let all: Vec<Ipv4Addr> = devices.into_iter().chain(empty).collect();
        let listed: Vec<String> = all.iter().map(Ipv4Addr::to_string).collect();
        let text = settings(&[SEGMENT], SPEC.port, RATE);
        self.cluster
            .apply(&text.replace("local = false", &format!("local = false\nexclude = {listed:?}")))?;
        Ok(all)
    }

    /// The kinds of accidents that cannot happen here.
    #[must_use]
    pub fn left_out(&self) -> Vec<&'static str> {
        let clock = (!self.clocks).then(|| Accident::Clock(0).kind());
        let disk = self.disk.is_none().then(|| Accident::DiskFull(0).kind());
        clock.into_iter().chain(disk).collect()
    }

    /// Where the nodes' data directories are.
    ///
    /// # Errors
    /// When a node was never started.
    pub fn directories(&self) -> Result<Vec<(String, PathBuf)>> {
        self.nodes.iter().map(|name| Ok((name.clone(), self.cluster.node(name)?.data.clone()))).collect()
    }

    /// Nodes that run.
    fn up(&self) -> Vec<String> {
        self.nodes.iter().filter(|name| !self.down.contains(*name)).cloned().collect()
    }

    /// Who leads by the word of a node that runs.
    fn leader(&self) -> Option<String> {
        let says = |name: &String| {
            let rows = ask(&self.cluster.node(name).ok()?.data, "status").ok()?;
            rows.first()?["leader"].as_str().map(str::to_owned)
        };
        let up = self.up();
        up.iter().find_map(says).filter(|leader| up.contains(leader))
    }

    fn pick(&self, victim: Victim) -> Option<String> {
        let (up, leader) = (self.up(), self.leader());
        match victim {
            Victim::Leader => leader.or_else(|| up.first().cloned()),
            Victim::Other(n) => {
                let others: Vec<_> = up.iter().filter(|name| Some(*name) != leader.as_ref()).collect();
                others.get(n % others.len().max(1)).map(|name| (*name).clone())
            }
            Victim::Node(n) => self.nodes.get(n).filter(|name| !self.down.contains(*name)).cloned(),
        }
    }

    /// Lets an accident happen; `None` where it cannot happen now.
    ///
    /// # Errors
    /// When it could not be done.
    pub fn begin(&mut self, planned: &Planned, recorder: &Recorder) -> Result<Option<Lasting>> {
        if self.left_out().contains(&planned.what.kind()) {
            return Ok(None);
        }
        let victims = match planned.what {
            Accident::AllKilled => self.up(),
            Accident::Weather(_) => Vec::new(),
            Accident::AdminKilled | Accident::AdminCut => vec![ADMIN.to_owned()],
            Accident::Killed
            | Accident::Frozen
            | Accident::CutFromNodes(_)
            | Accident::CutFromAll(_)
            | Accident::Unplugged
            | Accident::Clock(_)
            | Accident::DiskFull(_) => match self.pick(planned.victim) {
                Some(victim) => vec![victim],
                None => return Ok(None),
            },
        };
        let what = format!("{:?} of {}", planned.what, victims.join(" "));
        recorder.note("", What::Happened { what, lasts: true });
        for victim in &victims {
            self.hit(planned.what, victim)?;
        }
        if let Accident::Weather(weather) = planned.what {
            self.wires.weather(weather)?;
        }
        Ok(Some(Lasting { until: planned.at + planned.lasts, what: planned.what, victims }))
    }

    fn hit(&mut self, what: Accident, victim: &str) -> Result<()> {
        match what {
            Accident::Killed | Accident::AllKilled => {
                self.still_runs(victim)?;
                self.cluster.kill(victim)?;
                self.down.insert(victim.to_owned());
                self.look_at(victim)
            }
            Accident::Frozen => self.cluster.signal(victim, Signal::SIGSTOP),
            Accident::CutFromNodes(way) => self.wires.cut(victim, &self.nodes, way, true),
            Accident::CutFromAll(way) => self.wires.cut(victim, self.wires.ends(), way, true),
            Accident::AdminCut => self.wires.cut(victim, self.wires.ends(), Way::Both, true),
            Accident::Unplugged => self.wires.plug(victim, false),
            Accident::Clock(seconds) => set_clock(&self.cluster.scratch(&format!("{victim}.clock")), seconds),
            Accident::DiskFull(left) => self.disk.as_ref().context("there is no small disk")?.fill(left),
            Accident::AdminKilled => self.cluster.kill_admin(),
            Accident::Weather(_) => Ok(()),
        }
    }

    /// Puts it right.
    ///
    /// # Errors
    /// When that could not be done, or a node has ended by itself.
    pub fn end(&mut self, lasting: &Lasting, recorder: &Recorder) -> Result<()> {
        for victim in &lasting.victims {
            self.help(lasting.what, victim, recorder)?;
        }
        if matches!(lasting.what, Accident::Weather(_)) {
            self.wires.weather(Fate::default())?;
        }
        recorder.note("", What::Happened { what: format!("{:?}", lasting.what), lasts: false });
        Ok(())
    }

    fn help(&mut self, what: Accident, victim: &str, recorder: &Recorder) -> Result<()> {
        match what {
            Accident::Killed | Accident::AllKilled => {
                self.down.remove(victim);
                recorder.note(victim, What::Started);
                self.cluster.restart(victim)
            }
            // Who was killed meanwhile needs no signal.
            Accident::Frozen if self.down.contains(victim) => Ok(()),
            Accident::Frozen => self.cluster.signal(victim, Signal::SIGCONT),
            Accident::CutFromNodes(way) => self.wires.cut(victim, &self.nodes, way, false),
            Accident::CutFromAll(way) => self.wires.cut(victim, self.wires.ends(), way, false),
            Accident::AdminCut => self.wires.cut(victim, self.wires.ends(), Way::Both, false),
            Accident::Unplugged => self.wires.plug(victim, true),
            Accident::Clock(_) => set_clock(&self.cluster.scratch(&format!("{victim}.clock")), 0),
            Accident::DiskFull(_) => self.disk.as_ref().context("there is no small disk")?.clear(),
            Accident::AdminKilled => self.cluster.start_admin(),
            Accident::Weather(_) => Ok(()),
        }
    }

    /// Reads what a dead node left.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn look_at(&mut self, dead: &str) -> Result<()> {
        let data = self.cluster.node(dead)?.data.clone();
        let found = left(&data).with_context(|| format!("read what {dead} left"))?;
        if self.left.len() >= LEFT_MAX {
            self.left.pop_front();
        }
        self.left.push_back((dead.to_owned(), found));
        Ok(())
    }

    /// Nobody ends unasked.
    fn still_runs(&mut self, name: &str) -> Result<()> {
        self.cluster.must_run(name).with_context(|| format!("{name} has ended unasked"))
    }

    /// Once nothing is broken any more: every node runs and sees all others, every unit has a living owner, the link
    /// stands, every device is read again, and what was recorded before is upstream.
    ///
    /// # Errors
    /// What of this did not come in time.
    pub fn converge(&mut self) -> Result<()> {
        self.wires.must_run()?;
        for name in self.nodes.clone() {
            self.still_runs(&name)?;
        }
        let nodes = self.nodes.len();
        wait("every node to see all others, and every unit to have an owner", CONVERGED, || {
            for name in &self.nodes {
                let status = self.cluster.status_of(name)?;
                let alive = status.members.iter().filter(|member| member.alive).count();
                let fine = status.quorum && status.leader.is_some() && alive == nodes;
                ensure!(fine && status.units > 0 && status.unassigned == 0, "{name} says {status:?}");
            }
            Ok(())
        })?;
        self.cluster.await_upstream()?;
        let before = self.readings()?;
        wait("every device to be read again", CONVERGED, || {
            let now = self.readings()?;
            let again = now.iter().filter(|(id, device)| !before.contains_key(*id) && !device.is_empty());
            let again: BTreeSet<&String> = again.map(|(_, device)| device).collect();
            // Three of them are excluded.
            ensure!(again.len() + 3 >= SPEC.devices as usize, "{} of {} were", again.len(), SPEC.devices);
            Ok(())
        })?;
        self.all_upstream()
    }

    /// Readings of the first node's tables with their devices.
    fn readings(&self) -> Result<BTreeMap<String, String>> {
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let rows = ask(&self.cluster.node(&self.nodes[0])?.data, "readings")?;
        Ok(rows.iter().map(|row| (text(row, "id"), text(row, "device"))).collect())
    }

    /// Waits until what is recorded now is upstream.
    ///
    /// # Errors
    /// What is missing.
    pub fn all_upstream(&self) -> Result<()> {
        let here = wait("the readings of a node", TRANSITION, || self.readings())?;
        wait("every recorded reading to be upstream", CONVERGED, || {
            let rows = self.cluster.admin_list("readings")?;
            let there: BTreeSet<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
            let missing: Vec<_> = here.keys().filter(|id| !there.contains(id.as_str())).take(3).collect();
            ensure!(
                missing.is_empty(),
                "{missing:?} are missing, of {} here and {} there",
                here.len(),
                there.len()
            );
            Ok(())
        })
    }

    /// What the devices saw so far.
    ///
    /// # Errors
    /// When they do not say.
    pub fn devices_saw(&self) -> Result<Seen> {
        let _ = std::fs::remove_file(&self.seen);
        self.devices.signal(Signal::SIGUSR1);
        wait("what the devices saw", TRANSITION, || {
            let text = std::fs::read(&self.seen).context("nothing is written yet")?;
            serde_json::from_slice(&text).context("read what the devices saw")
        })
    }
}

/// The offset that libfaketime reads, written beside and renamed.
fn set_clock(file: &Path, seconds: i64) -> Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, format!("{seconds:+}\n")).context("write a clock")?;
    std::fs::rename(&beside, file).context("set a clock")
}

fn respond(wires: &Wires, seen: &Path, log: &Path) -> Result<Process> {
    let words = [
        ("--port", SPEC.port.to_string()),
        ("--first", SPEC.first.to_string()),
        ("--addresses", SPEC.addresses.to_string()),
        ("--every", SPEC.every.to_string()),
        ("--devices", SPEC.devices.to_string()),
        ("--delay", SPEC.delay.to_string()),
        ("--seen", seen.display().to_string()),
    ];
    let mut args: Vec<String> =
        words.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    args.push("--record".to_owned());
    let program = Programs::find()?.path("quire-responder");
    let line = within(Some(&wires.namespace(DEVICES)), &program, &args);
    let mut process = Process::start(DEVICES, &line.program, &line.args, log)?;
    wait("the devices to be ready", TRANSITION, || {
        process.must_run()?;
        ensure!(process.log().contains("ready"), "they said {:?}", process.log());
        Ok(())
    })?;
    Ok(process)
}
