//! A cluster of real processes, by the contract and nothing else: `quire node`, `quire …`, `quire-admin`.
//!
//! API: [`Cluster::start`] (nodes that have formed a cluster), [`Cluster::start_admin`] and
//! [`Cluster::enroll`], [`Cluster::apply`], [`Cluster::status`], [`Cluster::list`], [`Cluster::admin_list`],
//! [`Cluster::kill`], [`Cluster::restart`], [`Cluster::finish`]. Everything waits by asking the programs
//! themselves; nothing sleeps for luck. Each cluster has a loopback address of its own, so that tests that
//! run beside each other share no port. Dropping it leaves no process behind.

use crate::lab::{inside, within};
use crate::process::{Output, Process, complain, free_tcp_port, http_get, interrupted, run, wait};
pub use crate::status::{Member, Status, Upstream, ask};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// For one command.
pub const COMMAND: Duration = Duration::from_secs(30);
/// For a node to start, join or take over on a busy machine.
pub const TRANSITION: Duration = Duration::from_secs(60);
/// For a node to end after SIGTERM.
const GOODBYE: Duration = Duration::from_secs(20);

/// Where the programs under test are.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// `QUIRE_BIN_DIR`, else the directory of the running program, or that above it for a test
    /// (`target/debug/deps/…`).
    pub fn find() -> Result<Programs> {
        if let Some(dir) = std::env::var_os("QUIRE_BIN_DIR") {
            return Ok(Programs { dir: dir.into() });
        }
        let this = std::env::current_exe().context("find this program")?;
        let dir = this.ancestors().skip(1).find(|dir| dir.join("quire").is_file());
        let dir = dir.context("find `quire` beside this program: run `cargo build --bins` first")?;
        Ok(Programs { dir: dir.to_owned() })
    }

    /// A program by name.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Runs `quire` with these arguments.
    pub fn quire(&self, args: &[&str]) -> Result<Output> {
        run(&self.path("quire"), args, COMMAND)
    }
}

/// One node: its place and, while it runs, its process.
#[derive(Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Data directory.
    pub data: PathBuf,
    /// Where the others reach it.
    pub listen: SocketAddr,
    /// Where people reach it.
    pub console: SocketAddr,
    process: Option<Process>,
}

/// The Web Admin.
#[derive(Debug)]
pub struct Admin {
    /// Data directory.
    pub data: PathBuf,
    /// Where sites connect.
    pub listen: SocketAddr,
    /// Where people reach it.
    pub console: SocketAddr,
    process: Process,
}

/// Real processes that form one cluster.
#[derive(Debug)]
pub struct Cluster {
    dir: tempfile::TempDir,
    host: IpAddr,
    programs: Programs,
    nodes: Vec<Node>,
    admin: Option<Admin>,
    announced: Vec<String>,
    errors: Vec<String>,
    finished: bool,
    ports: Ports,
    /// Nodes that find no other program of this machine.
    deprived: Vec<String>,
    places: BTreeMap<String, Place>,
}

/// Where a program runs that does not run on the cluster's own address.
#[derive(Debug, Clone)]
pub struct Place {
    /// Its address.
    pub host: IpAddr,
    /// Its network namespace; none: that of the test.
    pub namespace: Option<String>,
    /// Environment variables.
    pub environment: Vec<(String, PathBuf)>,
}

/// Which ports nodes and Web Admin get.
#[derive(Debug, Clone, Copy)]
pub enum Ports {
    /// Any that are free.
    Free,
    /// From this one on: the Web Admin's console, the nodes' consoles, then, 10 higher, the Web Admin and
    /// the nodes themselves in the same order.
    From(u16),
}

impl Ports {
    /// (listen, console) of the n-th program; the Web Admin is the 0th.
    fn of(self, host: IpAddr, n: u16) -> Result<(SocketAddr, SocketAddr)> {
        let (listen, console) = match self {
            Ports::Free => (free_tcp_port(host)?, free_tcp_port(host)?),
            Ports::From(first) => (first + 10 + n, first + n),
        };
        Ok((SocketAddr::new(host, listen), SocketAddr::new(host, console)))
    }
}

impl Cluster {
    /// Starts the first of `names` with `--init demo`, joins the others and waits until every node sees all
    /// of them alive and a leader.
    pub fn start(names: &[&str]) -> Result<Cluster> {
        let mut cluster = Cluster::empty(own_host(), Ports::Free)?;
        cluster.form(names)?;
        Ok(cluster)
    }

    /// The same in a place that was made before.
    pub fn form(&mut self, names: &[&str]) -> Result<()> {
        let (first, others) = names.split_first().context("name at least one node")?;
        self.init(first)?;
        for name in others {
            self.join(name)?;
        }
        self.await_whole()
    }

    /// A place for a cluster on `host`, with no process yet.
    pub fn empty(host: IpAddr, ports: Ports) -> Result<Cluster> {
        let dir = tempfile::Builder::new().prefix("quire-").tempdir().context("make a directory")?;
        let programs = Programs::find()?;
        Ok(Cluster {
            dir,
            host,
            programs,
            nodes: Vec::new(),
            admin: None,
            announced: Vec::new(),
            errors: Vec::new(),
            finished: false,
            ports,
            deprived: Vec::new(),
            places: BTreeMap::new(),
        })
    }

    /// From its next start on this node finds no other program: no `setpriv`, and so no Chromium.
    pub fn deprive(&mut self, name: &str) {
        self.deprived.push(name.to_owned());
    }

    /// From its next start on this node, or `admin`, runs there.
    pub fn place(&mut self, name: &str, place: Place) {
        self.places.insert(name.to_owned(), place);
    }

    fn host_of(&self, name: &str) -> IpAddr {
        self.places.get(name).map_or(self.host, |place| place.host)
    }

    fn namespace_of(&self, name: &str) -> Option<&str> {
        self.places.get(name)?.namespace.as_deref()
    }

    /// Starts the first node of a new cluster and waits until it leads.
    pub fn init(&mut self, name: &str) -> Result<()> {
        self.add(name)?;
        self.spawn(name, &["--init", "demo"])?;
        wait("the first node to lead", TRANSITION, || {
            self.must_run(name)?;
            let status = self.status_of(name)?;
            ensure!(status.quorum && status.leader.as_deref() == Some(name), "it says {status:?}");
            Ok(())
        })
    }

    /// Joins one more node with a fresh token and waits until it answers.
    pub fn join(&mut self, name: &str) -> Result<()> {
        let door = self.nodes.first().context("join: no first node")?.listen.to_string();
        let token = self.token()?;
        let file = self.dir.path().join(format!("{name}.token"));
        std::fs::write(&file, token).context("write a token")?;
        self.add(name)?;
        self.spawn(name, &["--join", &door, "--token", &format!("@{}", file.display())])?;
        wait(&format!("{name} to join"), TRANSITION, || {
            self.must_run(name)?;
            ensure!(self.status_of(name)?.quorum, "{name} has no quorum");
            Ok(())
        })
    }

    /// Makes a node from a backup, with `more` options, and starts it.
    pub fn restore(&mut self, name: &str, backup: &str, more: &[&str]) -> Result<()> {
        self.add(name)?;
        let node = self.node(name)?;
        let (data, listen) = (node.data.display().to_string(), node.listen.to_string());
        let plain = ["--data-dir", &data, "restore", backup, "--name", name, "--listen", &listen];
        self.programs.quire(&[&plain, more].concat())?.ok()?;
        let console = self.node(name)?.console.to_string();
        self.spawn_with(name, &["--console", &console])?;
        wait(&format!("{name} to lead what was restored"), TRANSITION, || {
            self.must_run(name)?;
            ensure!(self.status_of(name)?.quorum, "{name} has no quorum");
            Ok(())
        })
    }

    /// A fresh join token.
    pub fn token(&self) -> Result<String> {
        let said = self.any(&["token", "create"])?.ok()?;
        Ok(said.lines().last().context("`token create` printed nothing")?.trim().to_owned())
    }

    /// Waits until every running node sees every node alive, and the same leader.
    pub fn await_whole(&self) -> Result<()> {
        wait("every node to see all others", TRANSITION, || {
            for node in self.nodes.iter().filter(|node| node.process.is_some()) {
                let status = self.status_of(&node.name)?;
                let alive = status.members.iter().filter(|member| member.alive).count();
                ensure!(
                    status.quorum && status.leader.is_some(),
                    "{} knows no leader: {status:?}",
                    node.name
                );
                ensure!(alive == self.nodes.len(), "{} sees {alive} nodes: {status:?}", node.name);
            }
            Ok(())
        })
    }

    fn add(&mut self, name: &str) -> Result<()> {
        let data = self.dir.path().join(name);
        let (listen, console) = self.ports.of(self.host_of(name), self.nodes.len() as u16 + 1)?;
        self.nodes.push(Node { name: name.to_owned(), data, listen, console, process: None });
        Ok(())
    }

    fn spawn(&mut self, name: &str, first_start: &[&str]) -> Result<()> {
        let node = self.node(name)?;
        let (listen, console) = (node.listen.to_string(), node.console.to_string());
        let told = ["--name", name, "--listen", &listen, "--console", &console];
        match first_start.is_empty() {
            true => self.spawn_with(name, &[]),
            false => self.spawn_with(name, &[&told, first_start].concat()),
        }
    }

    fn spawn_with(&mut self, name: &str, options: &[&str]) -> Result<()> {
        let log = self.log_of(name);
        let program = self.programs.path("quire");
        let nowhere = self.dir.path().join("no-programs");
        let bare = self.deprived.iter().any(|deprived| deprived == name);
        let mut environment = if bare { vec![("PATH", nowhere.as_path())] } else { Vec::new() };
        let own = self.places.get(name).map(|place| place.environment.clone()).unwrap_or_default();
        environment.extend(own.iter().map(|(name, value)| (name.as_str(), value.as_path())));
        let data = self.node(name)?.data.display().to_string();
        let args = [&["node", "--data-dir", &data], options].concat();
        let line = within(self.namespace_of(name), &program, &args);
        let process = Process::start_with(name, &line.program, &line.args, &log, &environment)?;
        let node = self.nodes.iter_mut().find(|node| node.name == name).context("no such node")?;
        node.process = Some(process);
        Ok(())
    }

    /// Where a node's log goes, over all its starts.
    #[must_use]
    pub fn log_of(&self, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}.log"))
    }

    /// A file in the cluster's temporary directory.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the programs are.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.programs
    }

    /// All nodes, running or not.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node by name.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| format!("no node {name}"))
    }

    /// The Web Admin, once started.
    #[must_use]
    pub fn admin(&self) -> Option<&Admin> {
        self.admin.as_ref()
    }

    /// Runs `quire --data-dir D ARGS` against one node.
    pub fn quire(&self, name: &str, args: &[&str]) -> Result<Output> {
        let data = self.node(name)?.data.display().to_string();
        self.programs.quire(&[&["--data-dir", &data], args].concat())
    }

    /// The same against the first running node.
    pub fn any(&self, args: &[&str]) -> Result<Output> {
        let node = self.nodes.iter().find(|node| node.process.is_some()).context("no node runs")?;
        self.quire(&node.name, args)
    }

    /// A listing as JSON from the first running node: `["devices"]`, `["units"]`, `["readings"]`.
    pub fn list(&self, what: &[&str]) -> Result<Vec<Value>> {
        self.any(&[what, &["--format", "json"]].concat())?.json()
    }

    /// One node's status.
    pub fn status_of(&self, name: &str) -> Result<Status> {
        let rows = self.quire(name, &["status", "--format", "json"])?.json()?;
        let row = rows.into_iter().next().context("`status` printed nothing")?;
        serde_json::from_value(row).context("read `status`")
    }

    /// The status by the first running node.
    pub fn status(&self) -> Result<Status> {
        let node = self.nodes.iter().find(|node| node.process.is_some()).context("no node runs")?;
        self.status_of(&node.name)
    }

    /// The status by the first node that answers, for when a process may have been killed from outside.
    pub fn first_status(&self) -> Result<Status> {
        let running = self.nodes.iter().filter(|node| node.process.is_some());
        running.map(|node| self.status_of(&node.name)).find(Result::is_ok).context("no node answers")?
    }

    /// Applies settings, all or nothing.
    pub fn apply(&self, settings: &str) -> Result<String> {
        let file = self.scratch("settings.toml");
        std::fs::write(&file, settings).context("write the settings")?;
        self.any(&["settings", "apply", &file.display().to_string()])?.ok()
    }

    /// Starts the Web Admin, anew where it ran before, and waits for its console.
    pub fn start_admin(&mut self) -> Result<()> {
        let data = self.dir.path().join("admin");
        let (listen, console) = match &self.admin {
            Some(before) => (before.listen, before.console),
            None => self.ports.of(self.host_of("admin"), 0)?,
        };
        let (path, on, people) = (data.display().to_string(), listen.to_string(), console.to_string());
        let args = ["serve", "--data-dir", &path, "--listen", &on, "--console", &people];
        let line = within(self.namespace_of("admin"), &self.programs.path("quire-admin"), &args);
        let mut process = Process::start("admin", &line.program, &line.args, &self.log_of("admin"))?;
        wait("the Web Admin to answer", TRANSITION, || {
            process.must_run()?;
            let (status, _) = inside(self.namespace_of("admin"), || http_get(console, "/readyz"))??;
            ensure!(status == 200, "/readyz says {status}");
            Ok(())
        })?;
        self.admin = Some(Admin { data, listen, console, process });
        Ok(())
    }

    /// `kill -9` for the Web Admin.
    pub fn kill_admin(&mut self) -> Result<()> {
        self.admin.as_mut().context("no Web Admin runs")?.process.kill();
        Ok(())
    }

    /// Runs `quire-admin --data-dir D ARGS`.
    pub fn quire_admin(&self, args: &[&str]) -> Result<Output> {
        let admin = self.admin.as_ref().context("no Web Admin runs")?;
        let data = admin.data.display().to_string();
        run(&self.programs.path("quire-admin"), &[&["--data-dir", &data], args].concat(), COMMAND)
    }

    /// A listing of the Web Admin as JSON: `devices`, `readings`, `links`.
    pub fn admin_list(&self, what: &str) -> Result<Vec<Value>> {
        self.quire_admin(&[what, "--format", "json"])?.json()
    }

    /// Adds a site, enrols the cluster and waits until the link is up.
    pub fn enroll(&self, site: &str) -> Result<()> {
        let admin = self.admin.as_ref().context("no Web Admin runs")?;
        let said = self.quire_admin(&["site", "add", site])?.ok()?;
        let field = |name: &str| {
            let line = said.lines().find_map(|line| line.trim().strip_prefix(name)).map(str::trim);
            line.with_context(|| format!("`site add` printed no `{name}`: {said}"))
        };
        let code = self.scratch("enrolment.code");
        std::fs::write(&code, field("code:")?).context("write the code")?;
        let (url, code) = (format!("https://{}", admin.listen), format!("@{}", code.display()));
        self.any(&["enroll", "--upstream", &url, "--code", &code, "--pin", field("pin:")?])?.ok()?;
        self.await_upstream().map(drop)
    }

    /// Waits until some node holds the upstream link; gives the status that says so.
    pub fn await_upstream(&self) -> Result<Status> {
        wait("the upstream link", TRANSITION, || {
            let status = self.status()?;
            ensure!(status.upstream.state == "connected", "it is {:?}", status.upstream);
            Ok(status)
        })
    }

    /// Whoever leads by the first running node's word.
    pub fn leader(&self) -> Result<String> {
        wait("a leader", TRANSITION, || {
            let status = self.status()?;
            let leader = status.leader.filter(|_| status.quorum).context("nobody leads")?;
            let runs = self.nodes.iter().any(|node| node.name == leader && node.process.is_some());
            ensure!(runs, "{leader} does not run");
            Ok(leader)
        })
    }

    /// `kill -9`.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        let node = self.nodes.iter_mut().find(|node| node.name == name).context("no such node")?;
        let mut process = node.process.take().with_context(|| format!("{name} does not run"))?;
        process.kill();
        self.errors.extend(process.errors());
        Ok(())
    }

    /// Sends a signal to a running node.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let process = self.node(name)?.process.as_ref();
        process.with_context(|| format!("{name} does not run"))?.signal(signal);
        Ok(())
    }

    /// Ends a node politely.
    pub fn stop(&mut self, name: &str) -> Result<()> {
        let node = self.nodes.iter_mut().find(|node| node.name == name).context("no such node")?;
        let mut process = node.process.take().with_context(|| format!("{name} does not run"))?;
        let ended = process.terminate(GOODBYE);
        self.errors.extend(process.errors());
        ended.map(drop)
    }

    /// Waits until a node has ended by itself; gives its exit status and its log.
    pub fn await_end(&mut self, name: &str) -> Result<(Option<i32>, String)> {
        let node = self.nodes.iter_mut().find(|node| node.name == name).context("no such node")?;
        let process = node.process.as_mut().with_context(|| format!("{name} does not run"))?;
        let ended = wait(&format!("{name} to end"), TRANSITION, || process.ended().context("it still runs"))?;
        self.errors.extend(process.errors());
        let log = process.log();
        node.process = None;
        Ok((ended.code(), log))
    }

    /// Starts a node again, with nothing but its data directory.
    pub fn restart(&mut self, name: &str) -> Result<()> {
        self.spawn(name, &[])
    }

    /// An error once a node has ended that was started.
    pub fn must_run(&mut self, name: &str) -> Result<()> {
        let node = self.nodes.iter_mut().find(|node| node.name == name).context("no such node")?;
        let process = node.process.as_mut().with_context(|| format!("{name} does not run"))?;
        process.must_run()
    }

    /// Process ids of everything that runs.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        let nodes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        nodes.chain(self.admin.as_ref().map(|admin| &admin.process)).map(Process::id).collect()
    }

    /// Lines of level ERROR that contain `text` are expected from now on.
    pub fn announce(&mut self, text: &str) {
        self.announced.push(text.to_owned());
    }

    /// Ends everything politely and fails on any ERROR line that was not announced.
    pub fn finish(mut self) -> Result<()> {
        let ended = self.stop_all();
        self.finished = false;
        for (name, status) in ended? {
            ensure!(status.success(), "{name} ended with {status}\n{}", self.tail_of(&name));
        }
        let mut errors = std::mem::take(&mut self.errors);
        errors.retain(|line| !self.announced.iter().any(|known| line.contains(known)));
        ensure!(errors.is_empty(), "ERROR lines that nobody announced:\n{}", errors.join("\n"));
        self.finished = true;
        Ok(())
    }

    /// Ends everything politely, whatever state it is in, and says how each ended.
    pub fn stop_all(&mut self) -> Result<Vec<(String, ExitStatus)>> {
        let nodes: Vec<Process> = self.nodes.iter_mut().filter_map(|node| node.process.take()).collect();
        let admin = self.admin.take().map(|admin| admin.process);
        // All at once: the last one would otherwise wait for a quorum that is gone. The Web Admin after
        // them, so that no node loses its link before it is asked to end.
        nodes.iter().for_each(|process| process.signal(Signal::SIGTERM));
        let mut ends = Vec::new();
        for mut process in nodes.into_iter().chain(admin) {
            let ended = process.terminate(GOODBYE);
            self.errors.extend(process.errors());
            ends.push((process.name().to_owned(), ended?));
        }
        self.finished = true;
        Ok(ends)
    }

    fn tail_of(&self, name: &str) -> String {
        let log = std::fs::read_to_string(self.log_of(name)).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// Without [`Cluster::finish`] something failed: say all that is known.
impl Drop for Cluster {
    fn drop(&mut self) {
        if self.finished || interrupted() {
            return;
        }
        complain(&format!("status at the end: {:?}", self.status()));
        let processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        for process in processes.chain(self.admin.as_ref().map(|admin| &admin.process)) {
            complain(&format!("{}{}", process.tail(), process.errors().join("\n")));
        }
    }
}

/// An address of 127.0.0.0/8 for one cluster: by process, and counted within it. 127.128.0.0/9 is left to
/// clusters; simulated devices are below.
#[must_use]
pub fn own_host() -> IpAddr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    IpAddr::V4(Ipv4Addr::new(127, 128 | (n & 0x7F), high, low.clamp(1, 254)))
}

/// Settings that search `segments` for SNMP devices on `port` and read them every 10 s.
#[must_use]
pub fn settings(segments: &[&str], port: u16, rate: u32) -> String {
    format!(
        "[discovery]\nsegments = {segments:?}\nlocal = false\nrate = {rate}\nport = {port}\n\n[metering]\nevery = \"10s\"\n\n\
         [[snmp]]\nversion = \"2c\"\ncommunity = \"public\"\n\n[http]\nchromium = false\n"
    )
}
