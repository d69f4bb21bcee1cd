//! A routed lab of network namespaces with real kernels, net-snmp or snmpsim on the routers and simulated printers
//! behind them. No way leads out of it.
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
//!
//! API: [`Lab::start`], [`Lab::serve`], [`Lab::simulate`], [`Lab::discover`], [`Lab::node`], [`Lab::quire`], and
//! [`Lab::ip`], [`Lab::exec`], [`Lab::link`] for what a test adds.

use crate::cluster::Programs;
use crate::lab::{ip, ip_program};
use crate::process::{Output, Process, complain, run, wait};
use crate::world::{Recordings, Snmpd};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// Printers in each segment.
pub const PRINTERS: usize = 3;
/// For whatever a lab does on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The community that reads what a guarded router counted, and nothing else.
const COUNTS: &str = "counts";

/// What a router tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Router<'r> {
    /// Its kernel's tables, by net-snmp.
    Snmpd,
    /// The same, for [`Snmpd::USER`] alone; community [`COUNTS`] reads what it counted.
    Guarded,
    /// These lines of a recording, by snmpsim.
    Recorded(&'r str),
    /// Nothing; it forwards all the same.
    Silent,
}

/// Namespaces named after this process, gone when dropped; the kernel takes their links with them.
#[derive(Debug)]
pub struct Lab {
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
    pub fn start(label: &str) -> Result<Option<Lab>> {
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
                Ok(_) => lab.made.push(name),
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

    /// `ip` in a namespace.
    pub fn ip(&self, namespace: &str, args: &str) -> Result<()> {
        ip(&format!("-n {}{namespace} {args}", self.prefix)).map(drop)
    }

    /// A cable between two namespaces, with an address at each end.
    pub fn link(&self, left: (&str, &str, &str), right: (&str, &str, &str)) -> Result<()> {
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
            self.sysctl(&router, "net.ipv4.ip_forward=1")?;
        }
        self.ip("h0", "route add default via 10.77.0.1")?;
        self.ip("n", "route add default via 10.77.100.1")?;
        self.ip("r1", "route add 10.77.0.0/24 via 10.77.100.2")?;
        self.ip("r1", "route add default via 10.77.101.2")?;
        self.ip("r2", "route add 10.77.3.0/24 via 10.77.102.2")?;
        self.ip("r2", "route add default via 10.77.101.1")?;
        self.ip("r3", "route add default via 10.77.102.1")
    }

    /// Sets a kernel parameter of a namespace.
    pub fn sysctl(&self, namespace: &str, setting: &str) -> Result<()> {
        self.exec(namespace, &["sysctl", "-q", "-w", setting])?.ok().map(drop)
    }

    /// Runs a command in a namespace to its end.
    pub fn exec(&self, namespace: &str, command: &[&str]) -> Result<Output> {
        let name = format!("{}{namespace}", self.prefix);
        let args = [&["netns", "exec", &name][..], command].concat();
        run(&ip_program(), &args, PATIENCE)
    }

    /// Starts a program that runs as long as the lab; `tag` names its log.
    fn spawn(&mut self, namespace: &str, tag: &str, command: &[&str]) -> Result<()> {
        let name = format!("{}{namespace}", self.prefix);
        let args = [&["netns", "exec", &name][..], command].concat();
        let log = self.dir.path().join(format!("{tag}.log"));
        let state = self.dir.path().join(format!("{tag}.state"));
        std::fs::create_dir(&state).context("make a directory")?;
        let own_files = [("SNMP_PERSISTENT_DIR", state.as_path())];
        let process = Process::start_with(tag, &ip_program(), &args, &log, &own_files)?;
        self.processes.push(process);
        Ok(())
    }

    /// A file of the lab.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Printers in every segment and r1, r2 and r3 as told; waits until all answer.
    pub fn serve(&mut self, routers: [Router<'_>; 3]) -> Result<()> {
        let fleet = Programs::find()?.path("quire-fleet").display().to_string();
        for n in 0..=3 {
            let host = format!("h{n}");
            for printer in 0..PRINTERS {
                self.ip(&host, &format!("addr add 10.77.{n}.{}/24 dev lan0", 10 + printer))?;
            }
            let (base, count, seed) = (format!("10.77.{n}.10"), PRINTERS.to_string(), (100 + n).to_string());
            let args =
                [fleet.as_str(), "--any-address", "--base", &base, "--port", "161", "--printers", &count];
            self.spawn(&host, &host, &[&args[..], &["--others", "0", "--seed", &seed]].concat())?;
        }
        let snmpd = Snmpd::program().context("snmpd is not installed")?.display().to_string();
        let config = self.path("snmpd.conf");
        std::fs::write(&config, "agentAddress udp:161\nrocommunity public\n").context("write snmpd.conf")?;
        let config = config.display().to_string();
        let guarded = self.path("guarded.conf");
        let (user, auth, privacy) = (Snmpd::USER, Snmpd::AUTH, Snmpd::PRIV);
        let text = format!(
            "agentAddress udp:161\nrocommunity {COUNTS} default .1.3.6.1.6.3.15\n\
             createUser {user} SHA-256 {auth} AES {privacy}\nrouser {user} priv\n"
        );
        std::fs::write(&guarded, text).context("write guarded.conf")?;
        let guarded = guarded.display().to_string();
        let addresses = ["10.77.100.1", "10.77.101.2", "10.77.102.2"];
        for (n, (router, address)) in routers.into_iter().zip(addresses).enumerate() {
            let name = format!("r{}", n + 1);
            match router {
                Router::Snmpd | Router::Guarded => {
                    let config = if router == Router::Guarded { &guarded } else { &config };
                    let pid = self.path(&format!("{name}.pid")).display().to_string();
                    let args = [snmpd.as_str(), "-f", "-C", "-c", config, "-p", &pid, "-Lo", "-r"];
                    self.spawn(&name, &name, &args)?;
                }
                Router::Recorded(lines) => self.simulate(&name, address, lines)?,
                Router::Silent => continue,
            }
            wait(&format!("{name} to answer"), PATIENCE, || match router {
                Router::Guarded => self.wrong_digests(address).map(drop),
                Router::Snmpd | Router::Recorded(_) | Router::Silent => self.answers(address),
            })?;
        }
        for n in 0..=3 {
            wait("the printers to answer", PATIENCE, || self.answers(&format!("10.77.{n}.10")))?;
        }
        Ok(())
    }

    /// snmpsim in a namespace with one recording at one address, community `public`.
    pub fn simulate(&mut self, namespace: &str, address: &str, lines: &str) -> Result<()> {
        let responder = Recordings::responder().context("snmpsim is not installed")?.display().to_string();
        let tag = format!("{namespace}-sim-{}", address.replace(':', "-"));
        let data = self.path(&format!("{tag}.data"));
        std::fs::create_dir(&data).context("make a directory")?;
        std::fs::write(data.join("public.snmprec"), lines).context("write a recording")?;
        let (data, cache) =
            (data.display().to_string(), self.path(&format!("{tag}.cache")).display().to_string());
        let endpoint = match address.contains(':') {
            true => format!("--agent-udpv6-endpoint=[{address}]:161"),
            false => format!("--agent-udpv4-endpoint={address}:161"),
        };
        let (data, cache) = (format!("--data-dir={data}"), format!("--cache-dir={cache}"));
        let fixed =
            ["--process-user=root", "--process-group=root", "--logging-method=stderr", "--log-level=error"];
        let own = [responder.as_str(), &cache, &data, &endpoint];
        self.spawn(namespace, &tag, &[&own[..], &fixed].concat())
    }

    /// How many wrong passwords a guarded router has met: usmStatsWrongDigests (RFC 3414).
    pub fn wrong_digests(&self, address: &str) -> Result<u64> {
        const WRONG_DIGESTS: &str = "1.3.6.1.6.3.15.1.1.5.0";
        let ask = ["snmpget", "-v2c", "-c", COUNTS, "-t1", "-r0", "-Oqv", address, WRONG_DIGESTS];
        self.exec("n", &ask)?.ok()?.trim().parse().context("no number")
    }

    /// Whether something answers SNMP there, asked from the node's place.
    pub fn answers(&self, address: &str) -> Result<()> {
        let quire = Programs::find()?.path("quire").display().to_string();
        let summary = self.path("answers.json");
        let file = summary.display().to_string();
        let once = ["--timeout", "300ms", "--retries", "0", "--no-read", "--summary", &file];
        self.exec("n", &[&[quire.as_str(), "discover", address][..], &once].concat())?.ok()?;
        let summary: Value = serde_json::from_slice(&std::fs::read(summary)?)?;
        ensure!(summary["responders"] == 1, "{address} is silent");
        Ok(())
    }

    /// `quire discover` on the node; gives hops by address, what was remarked, and the summary.
    pub fn discover(&self, args: &[&str]) -> Result<(BTreeMap<String, u64>, String, Value)> {
        let quire = Programs::find()?.path("quire").display().to_string();
        let file = self.path("summary.json").display().to_string();
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

    /// `quire discover` on the node: what it prints, for targets that have no hops.
    pub fn discover_rows(&self, args: &[&str]) -> Result<Vec<Value>> {
        let quire = Programs::find()?.path("quire").display().to_string();
        self.exec("n", &[&[quire.as_str(), "discover"][..], args, &["--format", "json"]].concat())?.json()
    }

    /// A node of a cluster in a namespace, its data directory called `name`; waits until it has quorum.
    pub fn node(&mut self, namespace: &str, name: &str, listen: &str, first_start: &[&str]) -> Result<()> {
        let quire = Programs::find()?.path("quire").display().to_string();
        let data = self.path(name).display().to_string();
        // Consoles are of no use here, but each needs an address of its own.
        let console = format!("127.0.0.1:{}", 17_480 + self.processes.len());
        let args = [quire.as_str(), "node", "--data-dir", &data, "--name", name, "--listen", listen];
        let args = [&args[..], &["--console", &console], first_start].concat();
        self.spawn(namespace, &format!("node-{name}"), &args)?;
        wait(&format!("{name} to have quorum"), PATIENCE, || {
            let status = self.list(name, &["status"])?;
            ensure!(status.first().is_some_and(|status| status["quorum"] == true), "{status:?}");
            Ok(())
        })
    }

    /// One more node, by a fresh token of `door`, which listens at `address`.
    pub fn join(&mut self, namespace: &str, name: &str, listen: &str, door: (&str, &str)) -> Result<()> {
        let said = self.quire(door.0, &["token", "create"])?.ok()?;
        let token = self.path(&format!("{name}.token"));
        std::fs::write(&token, said.lines().last().context("no token")?.trim()).context("write a token")?;
        let token = format!("@{}", token.display());
        self.node(namespace, name, listen, &["--join", door.1, "--token", &token])
    }

    /// `quire --data-dir D ARGS` of a node; its control socket needs no network.
    pub fn quire(&self, name: &str, args: &[&str]) -> Result<Output> {
        let data = self.path(name).display().to_string();
        Programs::find()?.quire(&[&["--data-dir", &data], args].concat())
    }

    /// A listing of a node, as JSON.
    pub fn list(&self, name: &str, args: &[&str]) -> Result<Vec<Value>> {
        self.quire(name, &[args, &["--format", "json"]].concat())?.json()
    }

    /// Puts settings in force; gives what was said.
    pub fn apply(&self, name: &str, settings: &str) -> Result<String> {
        let file = self.path("settings.toml");
        std::fs::write(&file, settings).context("write the settings")?;
        self.quire(name, &["settings", "apply", &file.display().to_string()])?.ok()
    }

    /// What a program of the lab wrote to its log.
    #[must_use]
    pub fn log(&self, tag: &str) -> String {
        std::fs::read_to_string(self.path(&format!("{tag}.log"))).unwrap_or_default()
    }
}

/// The printers of the segments up to a distance from the node, with their hops.
#[must_use]
pub fn printers(most: u64) -> BTreeMap<String, u64> {
    (0..=most).flat_map(|n| (0..PRINTERS).map(move |p| (format!("10.77.{n}.{}", 10 + p), n))).collect()
}
