//! IPv6 without a network of it: a simulated printer behind `::1`, named as people name it.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, Programs, TRANSITION};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{complain, free_udp_port, wait};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Carries datagrams from `::1` to a device over IPv4 and its answers back, one at a time; ends with its handle.
struct Relay {
    address: SocketAddr,
    carried: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// `None` where the machine has no IPv6.
    fn start(device: SocketAddr) -> Result<Option<Relay>> {
        let Ok(socket) = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)) else {
            complain("left out: IPv6 on ::1 (this machine has none)");
            return Ok(None);
        };
        let behind = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("bind a socket")?;
        for socket in [&socket, &behind] {
            socket.set_read_timeout(Some(Duration::from_millis(200))).context("set a timeout")?;
        }
        let address = socket.local_addr().context("ask for the address")?;
        let (carried, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, stopped) = (Arc::clone(&carried), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 65_535];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                if behind.send_to(&buffer[..length], device).is_err() {
                    continue;
                }
                // A device that stays silent was asked with credentials that it does not know.
                if let Ok((length, _)) = behind.recv_from(&mut buffer) {
                    let _ = socket.send_to(&buffer[..length], from);
                }
            }
        });
        Ok(Some(Relay { address, carried, stop, thread: Some(thread) }))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            complain("the relay panicked");
        }
    }
}

#[test]
fn a_printer_on_an_ipv6_address_is_found_read_and_excluded() {
    fn scenario() -> Result<()> {
        let base = Ipv4Addr::new(127, 28, 0, 1);
        let port = free_udp_port(base.into())?;
        let fleet = Fleet::start(&Spec { base, port, printers: 1, others: 0, ..Spec::default() })?;
        let Some(relay) = Relay::start(SocketAddr::new(base.into(), port))? else { return Ok(()) };
        let serial =
            fleet.printers().next().and_then(|printer| printer.serial.clone()).context("no serial")?;
        let port = relay.address.port().to_string();
        let programs = Programs::find()?;
        for target in
            [format!("[::1]:{port}"), "::1".to_owned(), "::1/128".to_owned(), format!("[::1/128]:{port}")]
        {
            let args = ["discover", &target, "--port", &port, "--format", "json", "--no-http", "--no-ipp"];
            let found = programs.quire(&args)?.json()?;
            let [device] = &found[..] else { anyhow::bail!("{target}: {found:?}") };
            ensure!(device["address"] == "::1" && device["serial"] == serial.as_str(), "{target}: {device}");
        }
        let before = relay.carried.load(Ordering::Relaxed);
        let args = ["discover", "::1", "--port", &port, "--exclude", "::1/128", "--format", "json"];
        ensure!(programs.quire(&args)?.json()?.is_empty(), "an excluded address was found");
        ensure!(relay.carried.load(Ordering::Relaxed) == before, "an excluded address was asked");

        let cluster = Cluster::start(&["n1"])?;
        let settings = format!("[discovery]\nsegments = [\"::1\"]\nport = {port}\n[http]\nports = []\n");
        cluster.apply(&settings)?;
        wait("the printer in the cluster", TRANSITION, || {
            let devices = cluster.list(&["devices"])?;
            ensure!(devices.len() == 1 && devices[0]["address"] == "::1", "{devices:?}");
            ensure!(devices[0]["serial"] == serial.as_str() && devices[0]["hops"] == 0, "{devices:?}");
            let units = cluster.list(&["units"])?;
            ensure!(units.iter().any(|unit| unit["segment"] == "::1/128"), "{units:?}");
            Ok(())
        })?;
        cluster.finish().map(drop)
    }
    scenario().unwrap();
}

#[test]
fn the_whole_internet_is_explained_at_once() {
    let args =
        ["discover", "0.0.0.0/0", "10.0.0.0/8", "--exclude", "10.0.0.0/8", "--explain", "--format", "json"];
    let said = Programs::find().unwrap().quire(&args).unwrap().json().unwrap();
    assert_eq!(said[0]["addresses"], (1u64 << 32) - 2 - (1 << 24));
    assert_eq!(said[0]["excluded"], 1 << 24);
}

#[test]
fn silence_is_counted_before_it_is_met() {
    let args = "discover 127.3.0.1-20 --exclude 127.3.0.11-20 --v2c --retries 1 --timeout 3s --explain --format json";
    let said = Programs::find().unwrap().quire(&args.split(' ').collect::<Vec<_>>()).unwrap().json().unwrap();
    assert_eq!(said[0]["packets_at_most"], 20, "ten addresses, two transmissions each");
    let seconds = said[0]["seconds_at_most"].as_f64().unwrap();
    assert!((6.0..6.1).contains(&seconds), "two timeouts, and 20 packets at 500 a second: {seconds}");
}
