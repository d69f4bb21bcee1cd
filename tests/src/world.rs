//! Foreign peers: net-snmp's `snmpd` and snmpsim with the recordings of real devices. Neither knows anything
//! of this project, so what the node understands of them it understands of the world.
//!
//! API: [`Snmpd::start`], [`Recordings::find`] and [`Recordings::serve`].

use crate::ber::{self, pdu};
use crate::process::{Process, free_udp_port, wait};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// snmpsim indexes about five recordings a second when the machine is busy.
const START: Duration = Duration::from_secs(120);

/// A running `snmpd`: v1 and v2c by community, v3 by user.
#[derive(Debug)]
pub struct Snmpd {
    process: Process,
    /// Where it answers.
    pub address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Snmpd {
    /// Community of the read-only view.
    pub const COMMUNITY: &str = "public";
    /// A user with SHA-256 and AES-128 who must use both.
    pub const USER: &str = "meter";
    /// Its authentication password.
    pub const AUTH: &str = "authpass123";
    /// Its privacy password.
    pub const PRIV: &str = "privpass123";

    /// Where the program is, if installed.
    #[must_use]
    pub fn program() -> Option<PathBuf> {
        ["/usr/sbin/snmpd", "/usr/local/sbin/snmpd"].iter().map(PathBuf::from).find(|path| path.is_file())
    }

    /// Starts it on a loopback address, as whatever user we are, with all its files in a fresh directory.
    pub fn start(host: Ipv4Addr) -> Result<Snmpd> {
        let program = Snmpd::program().context("snmpd is not installed")?;
        let dir = tempfile::Builder::new().prefix("quire-snmpd-").tempdir()?;
        let address = SocketAddr::new(host.into(), free_udp_port(host.into())?);
        let config = dir.path().join("snmpd.conf");
        let text = format!(
            "agentAddress udp:{address}\nrocommunity {community}\nsysLocation bench\nsysContact nobody\n\
             createUser {user} SHA-256 {auth} AES {privacy}\nrouser {user} authpriv\n",
            community = Snmpd::COMMUNITY,
            user = Snmpd::USER,
            auth = Snmpd::AUTH,
            privacy = Snmpd::PRIV
        );
        std::fs::write(&config, text).context("write snmpd.conf")?;
        let (config, pid) = (config.display().to_string(), dir.path().join("pid").display().to_string());
        let args = ["-f", "-C", "-c", &config, "-p", &pid, "-Lo", "-r", "-I", "-smux,-sctpTable"];
        let persistent = [("SNMP_PERSISTENT_DIR", dir.path())];
        let process = Process::start_with("snmpd", &program, &args, &dir.path().join("log"), &persistent)?;
        let mut snmpd = Snmpd { process, address, _dir: dir };
        wait("snmpd to answer", START, || {
            snmpd.process.must_run()?;
            answers(address)
        })?;
        Ok(snmpd)
    }

    /// usmStatsWrongDigests.0 (RFC 3414): messages that it refused for their authentication password.
    pub fn wrong_digests(&self) -> Result<u64> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        let name: &[u32] = &[1, 3, 6, 1, 6, 3, 15, 1, 1, 5, 0];
        let question = ber::write_request(ber::V2C, Snmpd::COMMUNITY, pdu::GET, 1, (0, 0), &[name]);
        socket.send_to(&question, self.address)?;
        let mut buffer = [0; 2048];
        let (length, _) = socket.recv_from(&mut buffer).context("snmpd is silent")?;
        let (_, _, varbinds) = ber::read_response(&buffer[..length]).context("snmpd answers nonsense")?;
        let (_, tag, content) = varbinds.first().context("snmpd answers nothing")?;
        ensure!(*tag == ber::tag::COUNTER32, "snmpd has no such counter: tag {tag:#x}");
        Ok(content.iter().fold(0, |number, octet| number << 8 | u64::from(*octet)))
    }
}

/// Whether something answers a v1 GETNEXT with community `public` there.
fn answers(address: SocketAddr) -> Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    let question = ber::write_request(ber::V1, "public", pdu::GETNEXT, 1, (0, 0), &[&[1, 3, 6, 1]]);
    socket.send_to(&question, address)?;
    let mut buffer = [0; 2048];
    let (length, _) = socket.recv_from(&mut buffer).with_context(|| format!("{address} is silent"))?;
    ensure!(ber::read_response(&buffer[..length]).is_some(), "{address} answers nonsense");
    Ok(())
}

/// The recordings of `shared/devices` and what a reader should find in them.
#[derive(Debug)]
pub struct Recordings {
    dir: PathBuf,
    /// Rows of `expected.json` by file name.
    pub expected: BTreeMap<String, Value>,
}

/// A recording on its address.
#[derive(Debug, Clone)]
pub struct Served {
    /// File name.
    pub file: String,
    /// Where it answers.
    pub address: Ipv4Addr,
    /// Whether it is a printer's.
    pub printer: bool,
}

/// snmpsim with one recording an address.
#[derive(Debug)]
pub struct Simulation {
    /// UDP port of all.
    pub port: u16,
    /// What is served where.
    pub served: Vec<Served>,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Recordings {
    /// By `QUIRE_DEVICES`, else `../shared/devices` beside the workspace; `None` where there are none.
    #[must_use]
    pub fn find() -> Option<Recordings> {
        let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/devices");
        let dir = std::env::var_os("QUIRE_DEVICES").map_or(beside, PathBuf::from);
        let expected = std::fs::read(dir.join("expected.json")).ok()?;
        Some(Recordings { expected: serde_json::from_slice(&expected).ok()?, dir })
    }

    /// The responder in its Python environment, made by `tests/snmpsim-setup.sh`.
    #[must_use]
    pub fn responder() -> Option<PathBuf> {
        let program = "bin/snmpsim-command-responder";
        let venv = std::env::var_os("QUIRE_SNMPSIM").map(PathBuf::from);
        let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/snmpsim-venv");
        venv.into_iter().chain([target]).map(|dir| dir.join(program)).find(|path| path.is_file())
    }

    /// Serves every printer's recording and every other one, each on its own address from `base` on, with
    /// community `public`, and waits until the last answers.
    pub fn serve(&self, base: Ipv4Addr) -> Result<Simulation> {
        let responder = Recordings::responder().context("snmpsim is not installed")?;
        let dir = tempfile::Builder::new().prefix("quire-snmpsim-").tempdir()?;
        let port = free_udp_port(IpAddr::V4(base))?;
        let mut args = vec![format!("--cache-dir={}", dir.path().join("cache").display())];
        if nix::unistd::geteuid().is_root() {
            args.extend(["--process-user=root".to_owned(), "--process-group=root".to_owned()]);
        }
        args.push("--logging-method=stderr".to_owned());
        args.push("--log-level=error".to_owned());
        let served = self.place(base)?;
        for (n, device) in served.iter().enumerate() {
            let data = dir.path().join(n.to_string());
            self.copy(device, &data)?;
            args.push("--v3-engine-id=auto".to_owned());
            args.push(format!("--data-dir={}", data.display()));
            args.push(format!("--agent-udpv4-endpoint={}:{port}", device.address));
        }
        let mut process = Process::start("snmpsim", &responder, &args, &dir.path().join("log"))?;
        let last = served.last().context("there are no recordings")?.address;
        wait("snmpsim to answer", START, || {
            process.must_run()?;
            answers(SocketAddr::new(last.into(), port))
        })?;
        Ok(Simulation { port, served, _process: process, _dir: dir })
    }

    /// Printers by `expected.json`, then what is no printer. Context halves (`…@…`) have no address of their own.
    fn place(&self, base: Ipv4Addr) -> Result<Vec<Served>> {
        let mut files: Vec<(String, bool)> = self.expected.keys().map(|file| (file.clone(), true)).collect();
        let others = std::fs::read_dir(self.dir.join("not-printers")).context("list not-printers")?;
        for entry in others {
            files.push((entry?.file_name().to_string_lossy().into_owned(), false));
        }
        files.retain(|(file, _)| file.ends_with(".snmprec") && !file.contains('@'));
        files.sort_by_key(|(file, printer)| (!printer, file.clone()));
        let first = u32::from(base);
        let at = |n: usize| Ipv4Addr::from(first + n as u32);
        ensure!(files.len() < 250, "{} recordings do not fit into one /24", files.len());
        Ok(files
            .into_iter()
            .enumerate()
            .map(|(n, (file, printer))| Served { file, address: at(n), printer })
            .collect())
    }

    /// `public.snmprec` answers the community, `self.snmprec` SNMPv3 without a context name.
    fn copy(&self, device: &Served, data: &Path) -> Result<()> {
        let folder = if device.printer { "recordings" } else { "not-printers" };
        let source = self.dir.join(folder).join(&device.file);
        std::fs::create_dir(data).context("make a directory")?;
        for name in ["public.snmprec", "self.snmprec"] {
            std::fs::copy(&source, data.join(name)).with_context(|| format!("copy {}", source.display()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snmpd_answers_and_ends_with_its_handle() {
        if Snmpd::program().is_none() {
            return;
        }
        let snmpd = Snmpd::start(Ipv4Addr::new(127, 26, 0, 1)).unwrap();
        let id = snmpd.process.id();
        assert!(crate::process::lives(id));
        drop(snmpd);
        assert!(!crate::process::lives(id));
    }

    #[test]
    fn every_recording_is_served() {
        let (Some(recordings), Some(_)) = (Recordings::find(), Recordings::responder()) else { return };
        let simulation = recordings.serve(Ipv4Addr::new(127, 27, 0, 1)).unwrap();
        for served in &simulation.served {
            answers(SocketAddr::new(served.address.into(), simulation.port)).unwrap();
        }
        assert!(simulation.served.iter().filter(|served| served.printer).count() >= 60);
    }
}
