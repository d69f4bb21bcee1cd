//! Two ends of a cable: whoever measures is near, a [`crate::responder`] is far. In network namespaces of our own
//! with no way out where that is possible (root and `ip netns`), else on loopback, and it says so in one line.
//!
//! ```text
//! near 10.78.0.1/30 ---- 10.78.0.2/30 far, which answers for 10.76.0.0/15
//! ```
//!
//! API: [`Lab::start`], [`Lab::near`], [`Lab::respond`], [`Lab::first`]; [`ip`], [`within`], [`inside`] for others' namespaces.

use crate::cluster::Programs;
use crate::process::{Process, complain, free_udp_port, run, wait};
use crate::responder::{Seen, Spec};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(30);

/// Namespaces, or loopback.
#[derive(Debug)]
pub struct Lab {
    /// Names of both namespaces.
    names: Option<(String, String)>,
    dir: tempfile::TempDir,
    responders: AtomicU32,
}

/// A program and its arguments.
#[derive(Debug, Clone)]
pub struct Line {
    /// What to start.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

pub(crate) fn ip_program() -> PathBuf {
    let usual = Path::new("/usr/sbin/ip");
    if usual.exists() { usual.to_owned() } else { PathBuf::from("/sbin/ip") }
}

/// Runs `ip` to its end; gives what it prints.
///
/// # Errors
/// When it fails.
pub fn ip(args: &str) -> Result<String> {
    let args: Vec<&str> = args.split(' ').collect();
    run(&ip_program(), &args, PATIENCE)?.ok()
}

/// The line that runs a program in a network namespace, or where we are.
#[must_use]
pub fn within<S: AsRef<str>>(namespace: Option<&str>, program: &Path, args: &[S]) -> Line {
    let args = args.iter().map(|arg| arg.as_ref().to_owned());
    match namespace {
        None => Line { program: program.to_owned(), args: args.collect() },
        Some(name) => {
            let own = ["netns", "exec", name, &program.display().to_string()].map(str::to_owned);
            Line { program: ip_program(), args: own.into_iter().chain(args).collect() }
        }
    }
}

/// Makes this thread, and no other, one of a network namespace.
///
/// # Errors
/// When there is no such namespace, or the kernel refuses.
pub fn enter(namespace: &str) -> Result<()> {
    let file = Path::new("/run/netns").join(namespace);
    let file = std::fs::File::open(&file).with_context(|| format!("open {}", file.display()))?;
    nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).context("enter a network namespace")
}

/// Does something in a network namespace, on a thread of its own.
///
/// # Errors
/// When there is no such namespace.
pub fn inside<T: Send>(namespace: Option<&str>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let Some(namespace) = namespace else { return Ok(work()) };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| enter(namespace).map(|()| work()));
        worker.join().map_err(|_| anyhow::anyhow!("a thread in {namespace} panicked"))?
    })
}

impl Lab {
    /// Makes the namespaces; on loopback, with one line that says why, where that cannot be.
    ///
    /// # Errors
    /// When the second step fails where the first did not.
    pub fn start() -> Result<Lab> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::Builder::new().prefix("quire-lab-").tempdir().context("make a directory")?;
        let loopback = |why: &str, dir| {
            complain(&format!("on loopback instead of network namespaces: {why}"));
            Ok(Lab { names: None, dir, responders: AtomicU32::new(0) })
        };
        if !nix::unistd::geteuid().is_root() {
            return loopback("not root", dir);
        }
        if !ip_program().exists() {
            return loopback("`ip` is not installed", dir);
        }
        let label = format!("quire-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let names = (format!("{label}-near"), format!("{label}-far"));
        if let Err(error) = ip(&format!("netns add {}", names.0)) {
            return loopback(&format!("{error:#}"), dir);
        }
        // From here on dropping it removes what was made.
        let lab = Lab { names: Some(names), dir, responders: AtomicU32::new(0) };
        lab.wire()?;
        Ok(lab)
    }

    /// On loopback, whatever could be had.
    ///
    /// # Errors
    /// When there is no room for a directory.
    pub fn loopback() -> Result<Lab> {
        let dir = tempfile::Builder::new().prefix("quire-lab-").tempdir().context("make a directory")?;
        Ok(Lab { names: None, dir, responders: AtomicU32::new(0) })
    }

    fn wire(&self) -> Result<()> {
        let Some((near, far)) = &self.names else { return Ok(()) };
        ip(&format!("netns add {far}"))?;
        ip(&format!("link add lan0 netns {near} type veth peer name lan0 netns {far}"))?;
        for (name, address) in [(near, "10.78.0.1/30"), (far, "10.78.0.2/30")] {
            ip(&format!("-n {name} link set lo up"))?;
            ip(&format!("-n {name} addr add {address} dev lan0"))?;
            ip(&format!("-n {name} link set lan0 up"))?;
        }
        // One neighbour for all: a /16 on the link itself would measure the neighbour table.
        ip(&format!("-n {near} route add 10.76.0.0/15 via 10.78.0.2"))?;
        ip(&format!("-n {far} route add local 10.76.0.0/15 dev lo")).map(drop)
    }

    /// Whether these are namespaces.
    #[must_use]
    pub fn is_apart(&self) -> bool {
        self.names.is_some()
    }

    /// The first of the 131,072 addresses that a responder may answer for.
    #[must_use]
    pub fn first(&self) -> Ipv4Addr {
        if self.is_apart() { Ipv4Addr::new(10, 76, 0, 0) } else { Ipv4Addr::new(127, 64, 0, 0) }
    }

    /// A file in the lab's own directory.
    #[must_use]
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The line that runs a program at the near end.
    #[must_use]
    pub fn near<S: AsRef<str>>(&self, program: &Path, args: &[S]) -> Line {
        within(self.names.as_ref().map(|names| names.0.as_str()), program, args)
    }

    /// The hardware address that leads to the far end, for programs that write their own frames.
    ///
    /// # Errors
    /// On loopback, where there is none.
    pub fn gateway(&self) -> Result<String> {
        let (_, far) = self.names.as_ref().context("there is no gateway on loopback")?;
        let said = ip(&format!("-n {far} -o link show lan0"))?;
        let mut words = said.split_whitespace().skip_while(|word| *word != "link/ether").skip(1);
        words.next().map(str::to_owned).context("`ip link` shows no hardware address")
    }

    /// Packets that have left the near end so far; not known on loopback.
    ///
    /// # Errors
    /// When `ip` does not say.
    pub fn sent(&self) -> Result<Option<u64>> {
        let Some((near, _)) = &self.names else { return Ok(None) };
        let said = ip(&format!("-n {near} -j -s link show lan0"))?;
        let said: serde_json::Value = serde_json::from_str(&said).context("read what `ip` counts")?;
        let sent = said[0]["stats64"]["tx"]["packets"].as_u64().context("`ip` counts no packets")?;
        Ok(Some(sent))
    }

    /// Starts a responder at the far end; `spec`'s first address and port are chosen here.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn respond(&self, spec: Spec) -> Result<Far> {
        let port = if self.is_apart() { 161 } else { free_udp_port(Ipv4Addr::UNSPECIFIED.into())? };
        let spec = Spec { port, first: self.first(), ..spec };
        let n = self.responders.fetch_add(1, Ordering::Relaxed);
        let seen = self.scratch(&format!("seen-{n}.json"));
        let mut args = Vec::new();
        for (name, value) in [
            ("port", spec.port.to_string()),
            ("first", spec.first.to_string()),
            ("addresses", spec.addresses.to_string()),
            ("every", spec.every.to_string()),
            ("devices", spec.devices.to_string()),
            ("delay", spec.delay.to_string()),
            ("loss", spec.loss.to_string()),
            ("answers", spec.answers.to_string()),
            ("supplies", spec.supplies.to_string()),
            ("seed", spec.seed.to_string()),
            ("seen", seen.display().to_string()),
        ] {
            args.extend([format!("--{name}"), value]);
        }
        if spec.record {
            args.push("--record".to_owned());
        }
        let program = Programs::find()?.path("quire-responder");
        let line = within(self.names.as_ref().map(|names| names.1.as_str()), &program, &args);
        let log = self.scratch(&format!("responder-{n}.log"));
        let mut process = Process::start("responder", &line.program, &line.args, &log)?;
        wait("the responder to be ready", PATIENCE, || {
            process.must_run()?;
            ensure!(process.log().contains("ready"), "it said {:?}", process.log());
            Ok(())
        })?;
        Ok(Far { spec, process, seen })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some((near, far)) = &self.names else { return };
        for name in [near, far] {
            if let Err(error) = ip(&format!("netns del {name}")) {
                complain(&format!("{error:#}"));
            }
        }
    }
}

/// A running responder; dropping it ends it.
#[derive(Debug)]
pub struct Far {
    /// What it is made of.
    pub spec: Spec,
    process: Process,
    seen: PathBuf,
}

impl Far {
    /// What it has seen so far.
    ///
    /// # Errors
    /// When it does not say.
    pub fn seen(&self) -> Result<Seen> {
        let _ = std::fs::remove_file(&self.seen);
        self.process.signal(Signal::SIGUSR1);
        wait("the responder's counts", PATIENCE, || {
            let text = std::fs::read(&self.seen).context("it has written nothing")?;
            serde_json::from_slice(&text).context("read the responder's counts")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_leaves_no_namespace_behind() {
        let lab = Lab::start().unwrap();
        let Some((near, _)) = lab.names.clone() else { return };
        assert!(Path::new("/run/netns").join(&near).exists());
        assert!(lab.gateway().unwrap().contains(':'));
        drop(lab);
        assert!(!Path::new("/run/netns").join(&near).exists());
    }
}
