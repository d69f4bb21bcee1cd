//! `quire-demo` as a person meets it: it finds its printers, ends cleanly however it is ended, and says which
//! port is in its way.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use quire_tests::cluster::Programs;
use quire_tests::process::{Process, free_udp_port, run, wait};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

const HOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const PATIENCE: Duration = Duration::from_secs(120);

/// A first port with all 14 free a moment ago, in a range of the test's own. Above 32767 the kernel gives ports
/// to others.
fn first_port(net: u8) -> Result<u16> {
    let from = 10_000 + u16::from(net) * 200 + (std::process::id() % 100) as u16 * 20;
    let free = |port: u16| TcpListener::bind((HOST, port)).is_ok();
    let found = (from..32_000).step_by(20).find(|first| (*first..first + 14).all(free));
    found.context("no free ports")
}

/// A small demo, with the third octets of its devices' addresses to itself.
fn arguments(net: u8) -> Result<Vec<String>> {
    let base = Ipv4Addr::new(127, 28, net, 1);
    let (port, first) = (free_udp_port(base.into())?, first_port(net)?);
    let line = format!("--base {base} --port {port} --first-port {first} --printers 20 --others 5");
    Ok(line.split(' ').map(str::to_owned).collect())
}

/// The directory that it made, by what it printed.
fn directory(said: &str) -> Result<PathBuf> {
    let data =
        said.lines().find_map(|line| line.split_once(" data ")).context("no data directory was printed")?;
    Ok(Path::new(data.1).parent().context("a directory without a parent")?.to_owned())
}

/// Command lines of running processes that name `dir`.
fn users_of(dir: &Path) -> Vec<String> {
    let name = dir.display().to_string();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    processes
        .filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(&name))
        .collect()
}

/// Starts a demo and waits until it has found every printer.
fn found_everything(log: &Path, arguments: &[String]) -> Result<Process> {
    let mut demo = Process::start("demo", &Programs::find()?.path("quire-demo"), arguments, log)?;
    wait("the demo to find its printers", PATIENCE, || {
        demo.must_run()?;
        ensure!(demo.log().contains("20 of 20 devices"), "it said\n{}", demo.tail());
        Ok(())
    })?;
    Ok(demo)
}

#[test]
fn a_demo_ends_without_a_trace_and_starts_again() {
    fn scenario() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let arguments = arguments(0)?;
        for (n, signal) in [Signal::SIGINT, Signal::SIGTERM].into_iter().enumerate() {
            let mut demo = found_everything(&dir.path().join(n.to_string()), &arguments)?;
            let place = directory(&demo.log())?;
            ensure!(users_of(&place).len() >= 4, "three nodes and a Web Admin: {:?}", users_of(&place));
            demo.signal(signal);
            let status = wait("the demo to end", PATIENCE, || demo.ended().context("it runs"))?;
            ensure!(status.success(), "{signal} gave {status}\n{}", demo.tail());
            ensure!(!place.exists(), "{} is still there", place.display());
            ensure!(users_of(&place).is_empty(), "left behind: {:?}", users_of(&place));
        }
        Ok(())
    }
    scenario().unwrap();
}

#[test]
fn a_demo_that_is_killed_takes_its_processes_with_it() {
    fn scenario() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let demo = found_everything(&dir.path().join("log"), &arguments(16)?)?;
        let place = directory(&demo.log())?;
        demo.signal(Signal::SIGKILL);
        wait("its processes to end", PATIENCE, || {
            ensure!(users_of(&place).is_empty(), "{:?} run", users_of(&place));
            Ok(())
        })?;
        // Nothing can clean up after a process that was killed.
        std::fs::remove_dir_all(&place).context("remove its directory")
    }
    scenario().unwrap();
}

#[test]
fn a_taken_port_is_named() {
    fn scenario() -> Result<()> {
        let mut arguments = arguments(32)?;
        let at = arguments.iter().position(|arg| arg == "--first-port").context("no first port")? + 1;
        let first: u16 = arguments[at].parse()?;
        let taken = TcpListener::bind((HOST, first + 12))?;
        let port = taken.local_addr()?.port();
        arguments.extend(["--for".to_owned(), "5".to_owned()]);
        let output = run(&Programs::find()?.path("quire-demo"), &arguments, PATIENCE)?;
        ensure!(output.code == 1 && output.stderr.contains(&port.to_string()), "{output:?}");
        ensure!(output.stderr.trim().lines().count() == 1, "{output:?}");
        Ok(())
    }
    scenario().unwrap();
}
