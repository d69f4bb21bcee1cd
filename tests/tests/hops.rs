//! Hop discovery in a lab of network namespaces with real kernels and net-snmp on the routers. No way leads out of it.
//!
//! ```text
//! n ---- h0 (printers, 10.77.0.0/24)
//! |
//! r1 --- h1 (printers, 10.77.1.0/24)
//! |
//! r2 --- h2 (printers, 10.77.2.0/24)
//! |
//! r3 --- h3 (printers, 10.77.3.0/24)
//! ```
//!
//! Each router's default route points to its neighbour and that one's back: what nobody knows goes in circles.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::Programs;
use quire_tests::process::{Output, Process, complain, run, wait};
use quire_tests::world::Snmpd;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Printers in each segment.
const PRINTERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `ip` to its end.
fn ip(args: &str) -> Result<()> {
    let args: Vec<&str> = args.split(' ').collect();
    let program = Path::new("/usr/sbin/ip");
    let program = if program.exists() { program } else { Path::new("/sbin/ip") };
    run(program, &args, PATIENCE)?.ok().map(drop)
}

/// Namespaces named after this process, gone when dropped; the kernel takes their links with them.
struct Lab {
    prefix: String,
    made: Vec<&'static str>,
    processes: Vec<Process>,
    dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.processes.clear();
        for name in &self.made {
            if let Err(error) = ip(&format!("netns del {}{name}", self.prefix)) {
                complain(&format!("{error:#}"));
            }
        }
    }
}

impl Lab {
    /// `None`, with one line, where namespaces cannot be had.
    fn start(label: &str) -> Result<Option<Lab>> {
        let left_out = |why: &str| complain(&format!("left out: hops in network namespaces ({why})"));
        if !nix::unistd::geteuid().is_root() {
            left_out("not root");
            return Ok(None);
        }
        if Snmpd::program().is_none() {
            left_out("snmpd is not installed");
            return Ok(None);
        }
        let prefix = format!("quire-{}-{label}-", std::process::id());
        let dir = tempfile::Builder::new().prefix("quire-hops-").tempdir()?;
        let mut lab = Lab { prefix, made: Vec::new(), processes: Vec::new(), dir };
        for name in ["n", "r1", "r2", "r3", "h0", "h1", "h2", "h3"] {
            match ip(&format!("netns add {}{name}", lab.prefix)) {
                Ok(()) => lab.made.push(name),
                Err(error) if lab.made.is_empty() => {
                    left_out(&format!("{error:#}"));
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
            lab.ip(name, "link set lo up")?;
        }
        lab.wire()?;
        Ok(Some(lab))
    }

    fn ip(&self, namespace: &str, args: &str) -> Result<()> {
        ip(&format!("-n {}{namespace} {args}", self.prefix))
    }

    /// A cable between two namespaces, with an address at each end.
    fn link(&self, left: (&str, &str, &str), right: (&str, &str, &str)) -> Result<()> {
        let p = &self.prefix;
        let peer = format!("peer name {} netns {p}{}", right.1, right.0);
        ip(&format!("link add {} netns {p}{} type veth {peer}", left.1, left.0))?;
        for (namespace, interface, address) in [left, right] {
            self.ip(namespace, &format!("addr add {address} dev {interface}"))?;
            self.ip(namespace, &format!("link set {interface} up"))?;
        }
        Ok(())
    }

    fn wire(&self) -> Result<()> {
        self.link(("n", "lan0", "10.77.0.1/24"), ("h0", "lan0", "10.77.0.2/24"))?;
        self.link(("n", "up0", "10.77.100.2/30"), ("r1", "down0", "10.77.100.1/30"))?;
        self.link(("r1", "up0", "10.77.101.1/30"), ("r2", "down0", "10.77.101.2/30"))?;
        self.link(("r2", "up0", "10.77.102.1/30"), ("r3", "down0", "10.77.102.2/30"))?;
        for n in 1..=3 {
            let (router, host) = (format!("r{n}"), format!("h{n}"));
            let (near, far) = (format!("10.77.{n}.1/24"), format!("10.77.{n}.2/24"));
            self.link((&router, "lan0", &near), (&host, "lan0", &far))?;
            self.ip(&host, &format!("route add default via 10.77.{n}.1"))?;
            self.exec(&router, &["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"])?.ok()?;
        }
        self.ip("h0", "route add default via 10.77.0.1")?;
        self.ip("n", "route add default via 10.77.100.1")?;
        self.ip("r1", "route add 10.77.0.0/24 via 10.77.100.2")?;
        self.ip("r1", "route add default via 10.77.101.2")?;
        self.ip("r2", "route add 10.77.3.0/24 via 10.77.102.2")?;
        self.ip("r2", "route add default via 10.77.101.1")?;
        self.ip("r3", "route add default via 10.77.102.1")
    }

    fn exec(&self, namespace: &str, command: &[&str]) -> Result<Output> {
        let name = format!("{}{namespace}", self.prefix);
        let args = [&["netns", "exec", &name][..], command].concat();
        run(Path::new("/usr/sbin/ip"), &args, PATIENCE)
    }

    fn spawn(&mut self, namespace: &str, command: &[&str]) -> Result<()> {
        let name = format!("{}{namespace}", self.prefix);
        let args = [&["netns", "exec", &name][..], command].concat();
        let log = self.dir.path().join(format!("{namespace}.log"));
        let state = self.dir.path().join(format!("{namespace}.state"));
        std::fs::create_dir(&state).context("make a directory")?;
        let own_files = [("SNMP_PERSISTENT_DIR", state.as_path())];
        let process = Process::start_with(namespace, Path::new("/usr/sbin/ip"), &args, &log, &own_files)?;
        self.processes.push(process);
        Ok(())
    }

    /// Printers in every segment and snmpd on the routers; waits until all answer.
    fn serve(&mut self, silent_router: Option<&str>) -> Result<()> {
        let fleet = Programs::find()?.path("quire-fleet").display().to_string();
        for n in 0..=3 {
            let host = format!("h{n}");
            for printer in 0..PRINTERS {
                self.ip(&host, &format!("addr add 10.77.{n}.{}/24 dev lan0", 10 + printer))?;
            }
            let (base, count, seed) = (format!("10.77.{n}.10"), PRINTERS.to_string(), (100 + n).to_string());
            let args =
                [fleet.as_str(), "--any-address", "--base", &base, "--port", "161", "--printers", &count];
            self.spawn(&host, &[&args[..], &["--others", "0", "--seed", &seed]].concat())?;
        }
        let snmpd = Snmpd::program().context("snmpd is not installed")?.display().to_string();
        let config = self.dir.path().join("snmpd.conf");
        std::fs::write(&config, "agentAddress udp:161\nrocommunity public\n").context("write snmpd.conf")?;
        let config = config.display().to_string();
        let routers: Vec<&str> =
            ["r1", "r2", "r3"].into_iter().filter(|r| Some(*r) != silent_router).collect();
        for router in &routers {
            let pid = self.dir.path().join(format!("{router}.pid")).display().to_string();
            let args = [snmpd.as_str(), "-f", "-C", "-c", &config, "-p", &pid, "-Lo", "-r"];
            self.spawn(router, &args)?;
        }
        let addresses = [("r1", "10.77.100.1"), ("r2", "10.77.101.2"), ("r3", "10.77.102.2")];
        for (router, address) in addresses.into_iter().filter(|(router, _)| routers.contains(router)) {
            wait(&format!("{router} to answer"), PATIENCE, || self.answers(address))?;
        }
        for n in 0..=3 {
            wait("the printers to answer", PATIENCE, || self.answers(&format!("10.77.{n}.10")))?;
        }
        Ok(())
    }

    fn answers(&self, address: &str) -> Result<()> {
        let quire = Programs::find()?.path("quire").display().to_string();
        let summary = self.dir.path().join("answers.json");
        let file = summary.display().to_string();
        let once = ["--timeout", "300ms", "--retries", "0", "--no-read", "--summary", &file];
        self.exec("n", &[&[quire.as_str(), "discover", address][..], &once].concat())?.ok()?;
        let summary: Value = serde_json::from_slice(&std::fs::read(summary)?)?;
        ensure!(summary["responders"] == 1, "{address} is silent");
        Ok(())
    }

    /// `quire discover` on the node; gives hops by address, what was remarked, and the summary.
    fn discover(&self, args: &[&str]) -> Result<(BTreeMap<String, u64>, String, Value)> {
        let quire = Programs::find()?.path("quire").display().to_string();
        let file = self.dir.path().join("summary.json").display().to_string();
        let fixed = ["--format", "json", "--timeout", "500ms", "--retries", "1", "--rate", "2000"];
        let command = [&[quire.as_str(), "discover"][..], args, &fixed, &["--summary", &file]].concat();
        let output = self.exec("n", &command)?;
        let said = output.stderr.clone();
        let found = output.json()?.into_iter().map(|device| {
            let hops = device["hops"].as_u64().with_context(|| format!("no hops in {device}"))?;
            Ok((device["address"].as_str().unwrap_or_default().to_owned(), hops))
        });
        let summary = serde_json::from_slice(&std::fs::read(&file).context("read the summary")?)?;
        Ok((found.collect::<Result<_>>()?, said, summary))
    }
}

/// The printers of the segments up to a distance.
fn printers(most: u64) -> BTreeMap<String, u64> {
    (0..=most).flat_map(|n| (0..PRINTERS).map(move |p| (format!("10.77.{n}.{}", 10 + p), n))).collect()
}

#[test]
fn printers_are_found_as_far_as_hops_and_no_further() {
    fn scenario() -> Result<()> {
        let Some(mut lab) = Lab::start("a")? else { return Ok(()) };
        lab.serve(None)?;
        for most in [0, 2, 3] {
            let (found, said, summary) = lab.discover(&["--hops", &most.to_string()])?;
            ensure!(found == printers(most), "--hops {most}: {found:?}\n{said}");
            ensure!(!said.contains("does not tell its tables"), "{said}");
            complain(&format!("--hops {most}: {} packets sent, {summary}", summary["packets_sent"]));
        }
        // An excluded router is not asked, so nothing behind it is known.
        let (found, said, _) = lab.discover(&["--hops", "3", "--exclude", "10.77.101.0/30"])?;
        ensure!(found == printers(1), "{found:?}\n{said}");
        let quire = Programs::find()?.path("quire").display().to_string();
        let output = lab.exec("n", &[quire.as_str(), "discover", "--hops", "2", "--explain"])?;
        let said = output.ok()?;
        ensure!(said.contains("10.77.100.1") && said.contains("nothing was sent"), "{said}");
        Ok(())
    }
    scenario().unwrap();
}

#[test]
fn behind_a_silent_router_segments_are_proposed_and_not_swept() {
    fn scenario() -> Result<()> {
        let Some(mut lab) = Lab::start("b")? else { return Ok(()) };
        lab.serve(Some("r3"))?;
        let (found, said, _) = lab.discover(&["--hops", "5"])?;
        ensure!(found == printers(2), "{found:?}\n{said}");
        ensure!(said.contains("10.77.102.2 does not tell its tables"), "{said}");
        ensure!(said.contains("segment 10.77.3.0/24: 3 hops or more"), "{said}");
        Ok(())
    }
    scenario().unwrap();
}
