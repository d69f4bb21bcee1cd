//! The cluster of `docker-compose.yml`, for real: images are built, three nodes on two routed networks form a cluster
//! and enrol, devices reach the Web Admin, and the leader's container is killed.
//!
//! Runs where a Docker engine answers and the programs were built; elsewhere it says in one line that it was left out.
//! It must leave nothing behind but the base image, must never fetch from an image registry, and never use a
//! network that leads out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// One at a time on a machine (see [`Stack::up`]), so one name is enough; what an ended run left is found by it.
const PROJECT: &str = "quire-containers-test";
const IMAGE: &str = "quire-containers-test";
/// Not the network of `docker-compose.yml` itself, which may be up beside the tests.
const NET: &str = "10.214";
/// Nodes' services, named as the nodes are.
const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// `start.sh` gives each of the two printers' containers this many.
const PRINTERS: usize = 60;

const FORMED: Duration = Duration::from_secs(90);
const COLLECTED: Duration = Duration::from_secs(90);
const FAILED_OVER: Duration = Duration::from_secs(60);

#[test]
fn a_cluster_in_containers_survives_its_leaders_container() -> Result<()> {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(reason) => {
            say(format_args!("left out: the cluster in containers ({reason})"));
            return Ok(());
        }
    };
    let stack = Stack::up(&programs)?;
    let outcome = scenario(&stack);
    if outcome.is_err() {
        say(format_args!("{}", stack.logs()));
    }
    outcome
}

fn scenario(stack: &Stack) -> Result<()> {
    let leader = eventually("three nodes form a cluster", FORMED, || {
        let status = stack.status("n1")?;
        let members = status["members"].as_array().context("read the members")?;
        ensure!(members.len() == NODES.len(), "{} members", members.len());
        ensure!(members.iter().all(|m| m["alive"] == true), "a member is not alive: {status}");
        leader_of(&status)
    })?;

    let before = eventually("every printer reaches the Web Admin", COLLECTED, || {
        let devices = stack.upstream_devices()?;
        ensure!(devices.len() == PRINTERS, "{} of {PRINTERS} devices", devices.len());
        Ok(devices)
    })?;

    stack.engine(&["kill", stack.container(&leader)?])?;
    let survivors: Vec<_> = NODES.into_iter().filter(|&node| node != leader).collect();
    let successor = eventually("another node leads and holds the upstream link", FAILED_OVER, || {
        let status = stack.status(survivors[0])?;
        let successor = leader_of(&status)?;
        ensure!(successor != leader, "{leader} still leads");
        ensure!(status["upstream"]["state"] == "connected", "upstream: {}", status["upstream"]);
        ensure!(status["upstream"]["holder"] == successor.as_str(), "upstream: {}", status["upstream"]);
        Ok(successor)
    })?;
    ensure!(survivors.contains(&successor.as_str()), "an unknown node leads: {successor}");

    let after = stack.upstream_devices()?;
    ensure!(after == before, "the Web Admin's devices changed with the leader: {before:?} then {after:?}");
    Ok(())
}

/// The leader that a status names, where it also has a quorum.
fn leader_of(status: &Value) -> Result<String> {
    ensure!(status["quorum"] == true, "no quorum: {status}");
    Ok(status["leader"].as_str().context("read the leader")?.to_owned())
}

/// Asks again until the answer is `Ok`, or fails with the last error after `limit`.
fn eventually<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() > end => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(250)),
        }
    }
}

/// Where everything is that the images are made of.
struct Programs {
    root: PathBuf,
    directory: PathBuf,
    compose: Vec<&'static str>,
}

impl Programs {
    /// What the test needs, or the reason why it is left out.
    fn find() -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no workspace")?.to_owned();
        let answers = |line: &[&str]| run(&root, 20, line, &[]).is_ok();
        if !answers(&["docker", "info"]) {
            return Err("no Docker engine answers".into());
        }
        let compose = [vec!["docker", "compose"], vec!["docker-compose"]]
            .into_iter()
            .find(|line| answers(&[line, &["version"][..]].concat()))
            .ok_or("no docker compose")?;
        let directory = Self::directories(&root)
            .into_iter()
            .find(|d| ["quire", "quire-admin", "quire-fleet"].iter().all(|program| d.join(program).is_file()))
            .ok_or("quire, quire-admin and quire-fleet are not built: make build")?;
        Ok(Self { root, directory, compose })
    }

    /// `QUIRE_BINARIES`, or where this very test was built, or the release programs.
    fn directories(root: &Path) -> Vec<PathBuf> {
        if let Some(named) = std::env::var_os("QUIRE_BINARIES") {
            return vec![root.join(named)];
        }
        let own = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.parent()?.to_owned()));
        own.into_iter().chain([root.join("target/release")]).collect()
    }

    /// Copies the programs, without their debug information, to where the image's build looks for them.
    fn stage(&self) -> Result<&'static str> {
        const STAGE: &str = "target/image/test";
        let stage = self.root.join(STAGE);
        fs::create_dir_all(&stage)?;
        for program in ["quire", "quire-admin", "quire-fleet"] {
            let (from, to) = (self.directory.join(program), stage.join(program));
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
            // A debug build is ten times the size with it; where `strip` is missing, it only takes longer.
            let _ = run(&self.root, 60, &["strip", "--strip-debug", &to.to_string_lossy()], &[]);
        }
        Ok(STAGE)
    }
}

/// The composed containers; dropped, they are gone with their networks, volumes and image.
struct Stack {
    root: PathBuf,
    compose: Vec<&'static str>,
    environment: Vec<(&'static str, &'static str)>,
    /// Container ids by service: asking compose takes half a second each time.
    containers: BTreeMap<&'static str, String>,
    /// Held locked, because one engine has room for one such stack.
    _lock: File,
}

impl Stack {
    fn up(programs: &Programs) -> Result<Self> {
        let lock =
            File::create(std::env::temp_dir().join("quire-containers-test.lock")).context("open the lock")?;
        lock.lock().context("wait for another run of this test")?;
        let environment = vec![
            ("QUIRE_BASE", "quire-base:12"),
            ("QUIRE_IMAGE", IMAGE),
            ("QUIRE_BINARIES", programs.stage()?),
            ("QUIRE_NET", NET),
            // An empty host port: the engine picks free ones.
            ("QUIRE_PORT_N1", "127.0.0.1:"),
            ("QUIRE_PORT_N2", "127.0.0.1:"),
            ("QUIRE_PORT_N3", "127.0.0.1:"),
            ("QUIRE_PORT_ADMIN", "127.0.0.1:"),
        ];
        let mut stack = Self {
            root: programs.root.clone(),
            compose: programs.compose.clone(),
            environment,
            containers: BTreeMap::new(),
            _lock: lock,
        };
        run(&stack.root, 180, &["deploy/base-image.sh"], &[]).context("make the base image")?;
        stack.down();
        stack.compose(120, &["build", "router"])?;
        stack.compose(60, &["up", "-d"])?;
        for service in NODES.into_iter().chain(["admin"]) {
            let id = stack.compose(20, &["ps", "-q", service])?.trim().to_owned();
            stack.containers.insert(service, id);
        }
        Ok(stack)
    }

    fn down(&self) {
        let line = ["down", "--volumes", "--remove-orphans", "--timeout", "2", "--rmi", "all"];
        if let Err(error) = self.compose(60, &line) {
            say(format_args!("{error:#}"));
        }
    }

    fn compose(&self, seconds: u32, line: &[&str]) -> Result<String> {
        run(&self.root, seconds, &[&self.compose, &["-p", PROJECT][..], line].concat(), &self.environment)
    }

    fn engine(&self, line: &[&str]) -> Result<String> {
        run(&self.root, 20, &[&["docker"], line].concat(), &[])
    }

    fn container(&self, service: &str) -> Result<&str> {
        let id = self.containers.get(service).with_context(|| format!("no service {service}"))?;
        Ok(id)
    }

    /// What `program` prints inside a service's container, as the user that the service runs as.
    fn inside(&self, service: &str, program: &str, line: &[&str]) -> Result<String> {
        let container = self.container(service)?;
        let head = ["exec", "-u", "quire", container, program, "--data-dir", "/var/lib/quire"];
        self.engine(&[&head, line].concat())
    }

    fn status(&self, node: &str) -> Result<Value> {
        let text = self.inside(node, "quire", &["status", "--format", "json"])?;
        serde_json::from_str(&text).with_context(|| format!("parse the status {text:?}"))
    }

    /// The devices that the Web Admin knows, by their ids.
    fn upstream_devices(&self) -> Result<BTreeSet<String>> {
        let text = self.inside("admin", "quire-admin", &["devices", "--format", "json"])?;
        text.lines()
            .map(|line| {
                let device: Value =
                    serde_json::from_str(line).with_context(|| format!("parse the device {line:?}"))?;
                Ok(device["id"].as_str().context("read a device's id")?.to_owned())
            })
            .collect()
    }

    fn logs(&self) -> String {
        self.compose(30, &["logs", "--no-color", "--tail", "40"]).unwrap_or_else(|error| format!("{error:#}"))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.down();
    }
}

/// To stderr itself: what `eprintln!` writes is hidden where a test passes.
fn say(line: std::fmt::Arguments<'_>) {
    // A test without stderr has nobody to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Runs a command for at most `seconds` (then it is ended, and five seconds later killed) and returns its stdout.
fn run(root: &Path, seconds: u32, line: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let Output { status, stdout, stderr } = Command::new("timeout")
        .args(["-k", "5", &seconds.to_string()])
        .args(line)
        .envs(environment.iter().copied())
        .current_dir(root)
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("run {}", line.join(" ")))?;
    if !status.success() {
        let stderr = String::from_utf8_lossy(&stderr);
        bail!("{}: {status}: {}", line.join(" "), stderr.trim_end());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}
