//! `quire-failover`: how long a cluster of real processes is without a leader, a link and owners when one of its
//! nodes dies, falls silent or is asked to go. Prints min, half and 99 of 100 for each step, and how many elections
//! there were that nobody asked for. Numbers of a debug build or a busy machine are marked so.

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use nix::sys::signal::Signal;
use quire_tests::cluster::{Cluster, Node, Status, TRANSITION, settings};
use quire_tests::process::{free_udp_port, wait};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Between two looks at the survivors.
const LOOK: Duration = Duration::from_millis(10);

/// What happens to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum How {
    /// The leader gets SIGKILL.
    Kill,
    /// The leader gets SIGSTOP: its connections stay open and it says nothing.
    Silence,
    /// The leader gets SIGTERM.
    Term,
    /// A node that does not lead gets SIGKILL.
    Other,
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
}

/// One step of the times.
type Step = fn(&Times) -> f64;

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
            command.args(["/bin/sh", "-c", "while :; do :; done"]).spawn().context("start a burner")
        };
        Ok(Burners((0..count).map(|_| burn()).collect::<Result<_>>()?))
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let base = Ipv4Addr::new(127, 70, 0, 0);
    let mut cluster = Cluster::start(&["n1", "n2", "n3"])?;
    cluster.start_admin()?;
    cluster.enroll("failover")?;
    // Nobody answers there: the units matter, not the devices.
    cluster.apply(&settings(&["127.70.0.0/20"], free_udp_port(base.into())?, 200))?;
    settled(&cluster)?;
    let _burners = Burners::start(options.burners, options.nice)?;
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
        let took = once(&mut cluster, options.how).with_context(|| format!("run {run}"))?;
        let Times { leader, claim, link, owned } = took;
        writeln!(out, "{run}: leader {leader:.3} claim {claim:.3} link {link:.3} owned {owned:.3}")?;
        times.push(took);
        settled(&cluster)?;
    }
    cluster.stop_all()?;
    writeln!(out, "{:28} {:>7} {:>7} {:>7} {:>7}", "seconds from the fault", "min", "p50", "p99", "max")?;
    let rows: [(&str, Step); 5] = [
        ("a survivor leads", |times| times.leader),
        ("its claim is committed", |times| times.claim),
        ("its link is accepted", |times| times.link),
        ("no unit is the lost node's", |times| times.owned),
        ("everything", |times| times.all()),
    ];
    for (what, of) in rows {
        let mut some: Vec<f64> = times.iter().map(of).collect();
        some.sort_by(f64::total_cmp);
        let at = |part: f64| some.get(((some.len() as f64 * part) as usize).min(some.len() - 1));
        let [min, half, most, max] =
            [at(0.0), at(0.5), at(0.99), at(1.0)].map(|at| at.copied().unwrap_or(0.0));
        writeln!(out, "{what:28} {min:7.3} {half:7.3} {most:7.3} {max:7.3}")?;
    }
    writeln!(out, "{} runs, {:?}, {}", options.runs, options.how, machine(&options))?;
    Ok(())
}

/// Waits until all three nodes live and own units, and the link stands.
fn settled(cluster: &Cluster) -> Result<()> {
    cluster.await_whole()?;
    cluster.await_upstream()?;
    wait("every node to own units", TRANSITION, || {
        let status = cluster.status()?;
        let busy = status.members.iter().filter(|member| member.units > 0).count();
        ensure!(status.units >= 16 && status.unassigned == 0 && busy == 3, "{status:?}");
        Ok(())
    })
}

/// One fault, measured; afterwards the node is back.
fn once(cluster: &mut Cluster, how: How) -> Result<Times> {
    let before = cluster.await_upstream()?;
    let leader = cluster.leader()?;
    let lost = match how {
        How::Other => cluster.nodes().iter().map(|node| node.name.clone()).find(|name| *name != leader),
        _ => Some(leader),
    };
    let lost = lost.context("no other node")?;
    let log = cluster.log_of("admin");
    let read = std::fs::metadata(&log).context("look at the Web Admin's log")?.len();
    let fault = Instant::now();
    match how {
        How::Silence => cluster.signal(&lost, Signal::SIGSTOP)?,
        How::Term => cluster.signal(&lost, Signal::SIGTERM)?,
        _ => cluster.kill(&lost)?,
    }
    let watch =
        Watch { lost: &lost, epoch: before.upstream.epoch, log: &log, read, moves: how != How::Other, fault };
    let took = watch.until_whole(cluster);
    match how {
        How::Silence => cluster.signal(&lost, Signal::SIGCONT)?,
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
}

impl Watch<'_> {
    fn until_whole(&self, cluster: &Cluster) -> Result<Times> {
        let survivors: Vec<&Node> = cluster.nodes().iter().filter(|node| node.name != self.lost).collect();
        let (mut leader, mut claim, mut link, mut owned) = (None, None, None, None);
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
                }
            }
            if link.is_none() && self.opened()? {
                link = Some(self.fault.elapsed().as_secs_f64());
            }
            if let (Some(leader), Some(claim), Some(link), Some(owned)) = (leader, claim, link, owned) {
                return Ok(Times { leader, claim, link, owned });
            }
            std::thread::sleep(LOOK);
        }
        bail!("after {TRANSITION:?}: leader {leader:?} claim {claim:?} link {link:?} owned {owned:?}")
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

/// Straight from the control socket: a process for each look would be most of the load.
fn status_of(node: &Node) -> Result<Status> {
    let mut stream = UnixStream::connect(node.data.join("control.sock"))?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    stream.write_all(b"GET /api/v1/status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let from = answer.find('{').context("no JSON")?;
    let upto = answer.rfind('}').context("no JSON")?;
    serde_json::from_str(&answer[from..=upto]).context("read the status")
}

fn machine(options: &Options) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    let build = if cfg!(debug_assertions) { ", DEBUG BUILD" } else { "" };
    format!(
        "{cores} cores, {} burners at nice {}, load {load} at the end{build}",
        options.burners, options.nice
    )
}
