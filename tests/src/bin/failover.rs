//! `quire-failover`: how long a cluster of real processes is without a leader, a link and owners when one of its
//! nodes dies, falls silent, is cut off or is asked to go, and what an upgrade node by node costs. Prints min, half and 99 of 100 for each step, and how many elections
//! there were that nobody asked for. Numbers of a debug build or a busy machine are marked so.

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quire_tests::accidents::upgrade;
use quire_tests::accidents::wires::{ADMIN, PORTS, Way, Wires};
use quire_tests::cluster::{Cluster, Node, Status, TRANSITION, ask, own_host, settings};
use quire_tests::process::{free_udp_port, wait};
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The cluster.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// Between two looks at the survivors.
const LOOK: Duration = Duration::from_millis(10);

/// What happens to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// The leader gets SIGKILL.
    Kill,
    /// The leader gets SIGSTOP: its connections stay open and it says nothing.
    Silence,
    /// No frame reaches the leader's network namespace, and none leaves it. As root.
    Partition,
    /// The leader gets SIGTERM.
    Term,
    /// A node that does not lead gets SIGKILL.
    Other,
    /// All nodes are stopped and started anew, one after the other, while they read 128 devices; `--runs` times. As root.
    Upgrade,
    /// Nothing: elections are counted while burners burn.
    Nothing,
}

/// Measures fail-over with the real programs.
#[derive(Debug, Parser)]
#[command(name = "quire-failover", version)]
struct Options {
    /// What happens to the node.
    #[arg(long, value_enum, default_value = "kill")]
    how: How,
    /// How often.
    #[arg(long, default_value_t = 20)]
    runs: usize,
    /// Processes that burn a core each meanwhile, at this node's own priority.
    #[arg(long, default_value_t = 0)]
    burners: usize,
    /// Processes that write 16 MB and wait for the disk, over and over, on the file system of the nodes.
    #[arg(long, default_value_t = 0)]
    writers: usize,
    /// What `nice` gives the burners; below 0 they come before the nodes.
    #[arg(long, default_value_t = 0, allow_hyphen_values = true)]
    nice: i32,
    /// With `nothing`: how long to look, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
}

/// Seconds from the fault to each step.
#[derive(Debug, Clone, Copy, Default)]
struct Times {
    leader: f64,
    claim: f64,
    link: f64,
    owned: f64,
    /// Units of others that had another owner by then.
    moved: usize,
}

impl Times {
    fn all(self) -> f64 {
        self.leader.max(self.claim).max(self.link).max(self.owned)
    }
}

/// Burners that end with this program.
struct Burners(Vec<Child>);

impl Burners {
    fn start(count: usize, nice: i32) -> Result<Burners> {
        let burn = || {
            let mut command = Command::new("/usr/bin/nice");
            command.args(["-n", &nice.to_string(), "/usr/bin/setpriv", "--pdeathsig", "KILL", "--"]);
            command
                .args(["/bin/sh", "-c", "while :; do :; done"])
                .process_group(0)
                .spawn()
                .context("start a burner")
        };
        Ok(Burners((0..count).map(|_| burn()).collect::<Result<_>>()?))
    }

    /// Writers instead, each with a file of its own in `dir`.
    fn writing(count: usize, dir: &Path) -> Result<Burners> {
        let write = |n: usize| {
            let file = dir.join(format!("writer-{n}")).display().to_string();
            let mut command = Command::new("/usr/bin/setpriv");
            command.args(["--pdeathsig", "KILL", "--", "/bin/sh", "-c"]);
            command
                .arg("while :; do dd if=/dev/zero of=\"$0\" bs=256k count=64 conv=fsync status=none; done");
            command.arg(file).process_group(0).spawn().context("start a writer")
        };
        Ok(Burners((0..count).map(write).collect::<Result<_>>()?))
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // A writer's `dd`, too.
            if let Ok(group) = i32::try_from(child.id()) {
                let _ = kill(Pid::from_raw(-group), Signal::SIGKILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    if options.how == How::Upgrade {
        return upgraded(&options);
    }
    let base = Ipv4Addr::new(127, 70, 0, 0);
    // The cables outlive the cluster.
    let wires = match options.how {
        How::Partition => {
            Some(Wires::start(&NODES, 1)?.context("partitions need network namespaces: run as root")?)
        }
        How::Kill | How::Silence | How::Term | How::Other | How::Upgrade | How::Nothing => None,
    };
    let mut cluster = match &wires {
        None => Cluster::start(&NODES)?,
        Some(wires) => {
            let mut cluster = Cluster::empty(own_host(), PORTS)?;
            for name in NODES.into_iter().chain([ADMIN]) {
                cluster.place(name, wires.place(name)?);
            }
            cluster.form(&NODES)?;
            cluster
        }
    };
    cluster.start_admin()?;
    cluster.enroll("failover")?;
    // Nobody answers there: the units matter, not the devices.
    cluster.apply(&settings(&["127.70.0.0/20"], free_udp_port(base.into())?, 200))?;
    settled(&cluster)?;
    let _burners = Burners::start(options.burners, options.nice)?;
    let scratch = cluster.scratch("");
    let _writers = Burners::writing(options.writers, &scratch)?;
    let mut out = std::io::stdout();
    if options.how == How::Nothing {
        let before = cluster.status()?.term;
        std::thread::sleep(Duration::from_secs(options.seconds));
        let elections = cluster.status()?.term - before;
        writeln!(out, "{elections} elections in {} s\n{}", options.seconds, machine(&options))?;
        cluster.stop_all()?;
        return Ok(());
    }
    let mut times = Vec::new();
    for run in 0..options.runs {
        let took = once(&mut cluster, wires.as_ref(), options.how).with_context(|| format!("run {run}"))?;
        let Times { leader, claim, link, owned, moved: _ } = took;
        writeln!(out, "{run}: leader {leader:.3} claim {claim:.3} link {link:.3} owned {owned:.3}")?;
        times.push(took);
        settled(&cluster)?;
    }
    cluster.stop_all()?;
    writeln!(out, "{:28} {:>7} {:>7} {:>7} {:>7}", "seconds from the fault", "min", "p50", "p99", "max")?;
    let rows: [Row; 5] = [
        ("a survivor leads", |times| times.leader),
        ("its claim is committed", |times| times.claim),
        ("its link is accepted", |times| times.link),
        ("no unit is the lost node's", |times| times.owned),
        ("everything", |times| times.all()),
    ];
    for (what, of) in rows {
        show(&mut out, what, times.iter().map(of).collect())?;
    }
    let moved: usize = times.iter().map(|times| times.moved).sum();
    writeln!(out, "{moved} units of others moved")?;
    writeln!(out, "{} runs, {:?}, {}", options.runs, options.how, machine(&options))?;
    Ok(())
}

/// Prints the gaps of an upgrade.
fn upgraded(options: &Options) -> Result<()> {
    let Some(upgrade) = upgrade::run(NODES.len(), options.runs)? else {
        bail!("network namespaces are needed")
    };
    let mut out = std::io::stdout();
    writeln!(out, "{:28} {:>7} {:>7} {:>7} {:>7}", "seconds", "min", "p50", "p99", "max")?;
    for (what, times) in [
        ("from SIGTERM to the end", upgrade.stopping),
        ("units without an owner", upgrade.unowned),
        ("a reading is late", upgrade.late),
    ] {
        show(&mut out, what, times.iter().map(Duration::as_secs_f64).collect())?;
    }
    let (readings, stops) = (upgrade.readings, options.runs * NODES.len());
    writeln!(out, "{readings} readings, none lost, none twice; {stops} restarts, {}", machine(options))?;
    Ok(())
}

fn show(out: &mut impl Write, what: &str, mut some: Vec<f64>) -> Result<()> {
    some.sort_by(f64::total_cmp);
    let at = |part: f64| some.get(((some.len() as f64 * part) as usize).min(some.len().saturating_sub(1)));
    let [min, half, most, max] = [0.0, 0.5, 0.99, 1.0].map(|part| at(part).copied().unwrap_or(f64::NAN));
    writeln!(out, "{what:28} {min:7.3} {half:7.3} {most:7.3} {max:7.3}").context("print")
}

/// A heading, and what stands under it.
type Row = (&'static str, fn(&Times) -> f64);

/// Waits until all three nodes live, own units and name the same leader, and the link stands.
fn settled(cluster: &Cluster) -> Result<()> {
    cluster.await_whole()?;
    cluster.await_upstream()?;
    wait("every node to own units", TRANSITION, || {
        let status = cluster.status()?;
        let busy = status.members.iter().filter(|member| member.units > 0).count();
        ensure!(status.units >= 16 && status.unassigned == 0 && busy == 3, "{status:?}");
        // Who was silent for a moment may not have heard yet that another one leads.
        for node in cluster.nodes() {
            let other = cluster.status_of(&node.name)?;
            let same = |status: &Status| (status.term, status.leader.clone(), status.upstream.epoch);
            ensure!(same(&other) == same(&status), "{} says {other:?}", node.name);
        }
        Ok(())
    })
}

/// One fault, measured; afterwards the node is back.
fn once(cluster: &mut Cluster, wires: Option<&Wires>, how: How) -> Result<Times> {
    let before = cluster.await_upstream()?;
    let leader = cluster.leader()?;
    let lost = match how {
        How::Other => cluster.nodes().iter().map(|node| node.name.clone()).find(|name| *name != leader),
        _ => Some(leader),
    };
    let lost = lost.context("no other node")?;
    let cut = |cut: bool| match wires {
        Some(wires) => wires.cut(&lost, wires.ends(), Way::Both, cut),
        None => bail!("there is no cable to cut"),
    };
    let owners = owners(cluster.node(&lost)?)?;
    let log = cluster.log_of("admin");
    let read = std::fs::metadata(&log).context("look at the Web Admin's log")?.len();
    let fault = Instant::now();
    match how {
        How::Silence => cluster.signal(&lost, Signal::SIGSTOP)?,
        How::Partition => cut(true)?,
        How::Term => cluster.signal(&lost, Signal::SIGTERM)?,
        _ => cluster.kill(&lost)?,
    }
    let (epoch, moves) = (before.upstream.epoch, how != How::Other);
    let watch = Watch { lost: &lost, epoch, log: &log, read, moves, fault, owners };
    let took = watch.until_whole(cluster);
    match how {
        How::Silence => cluster.signal(&lost, Signal::SIGCONT)?,
        How::Partition => cut(false)?,
        How::Term => {
            cluster.stop(&lost)?;
            cluster.restart(&lost)?;
        }
        _ => cluster.restart(&lost)?,
    }
    took
}

struct Watch<'a> {
    lost: &'a str,
    epoch: u64,
    log: &'a Path,
    read: u64,
    /// Whether the leadership has to move.
    moves: bool,
    fault: Instant,
    /// Of the units, before.
    owners: BTreeMap<String, String>,
}

impl Watch<'_> {
    fn until_whole(&self, cluster: &Cluster) -> Result<Times> {
        let survivors: Vec<&Node> = cluster.nodes().iter().filter(|node| node.name != self.lost).collect();
        let (mut leader, mut claim, mut link, mut owned) = (None, None, None, None);
        let mut moved = 0;
        if !self.moves {
            (leader, claim, link) = (Some(0.0), Some(0.0), Some(0.0));
        }
        while self.fault.elapsed() < TRANSITION {
            for node in &survivors {
                let Ok(status) = status_of(node) else { continue };
                let now = self.fault.elapsed().as_secs_f64();
                if leader.is_none() && status.role == "leader" && status.quorum {
                    leader = Some(now);
                }
                if claim.is_none() && status.upstream.epoch > self.epoch {
                    claim = Some(now);
                }
                let left = status.members.iter().any(|member| member.name == self.lost && member.units > 0);
                if owned.is_none() && !left && status.unassigned == 0 && status.units > 0 {
                    owned = Some(now);
                    moved = self.moved(node)?;
                }
            }
            if link.is_none() && self.opened()? {
                link = Some(self.fault.elapsed().as_secs_f64());
            }
            if let (Some(leader), Some(claim), Some(link), Some(owned)) = (leader, claim, link, owned) {
                return Ok(Times { leader, claim, link, owned, moved });
            }
            std::thread::sleep(LOOK);
        }
        bail!("after {TRANSITION:?}: leader {leader:?} claim {claim:?} link {link:?} owned {owned:?}")
    }

    /// How many units have another owner than before, though theirs was not lost.
    fn moved(&self, node: &Node) -> Result<usize> {
        let now = owners(node)?;
        let others = self.owners.iter().filter(|(_, owner)| *owner != self.lost);
        Ok(others.filter(|(unit, owner)| now.get(*unit) != Some(owner)).count())
    }

    /// Whether the Web Admin says that it opened a link of a later epoch.
    fn opened(&self) -> Result<bool> {
        let mut file = std::fs::File::open(self.log).context("open the Web Admin's log")?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let epochs = text.lines().filter(|line| line.contains("link opened")).filter_map(|line| {
            let rest = line.split_once("epoch=")?.1;
            rest.split(' ').next()?.parse::<u64>().ok()
        });
        Ok(epochs.max() > Some(self.epoch))
    }
}

fn status_of(node: &Node) -> Result<Status> {
    let row = ask(&node.data, "status")?.into_iter().next().context("no status")?;
    serde_json::from_value(row).context("read the status")
}

/// Who has which unit by a node's word.
fn owners(node: &Node) -> Result<BTreeMap<String, String>> {
    let text = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    Ok(ask(&node.data, "units")?.iter().map(|row| (text(row, "unit"), text(row, "node"))).collect())
}

fn machine(options: &Options) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let build = if cfg!(debug_assertions) { ", DEBUG BUILD" } else { "" };
    format!(
        "{cores} cores, {} burners at nice {}, {} writers, load {load} at the end{build}",
        options.burners, options.nice, options.writers
    )
}
