//! How fast a sweep goes on this machine: `cargo run --release --example sweep_rate -- [PREFIX] [RESPONDERS] [DELAY_MS] [LOSS_PERMILLE] [RETRIES]`.
//!
//! The addresses are a part of 127.0.0.0/8, all answered for by one thread of this program, which listens on
//! all of them: it answers as RESPONDERS of them, evenly spread, after a delay and with losses, and is
//! silent for the rest. So nothing leaves the machine and no privilege is needed.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_node::snmp::{Credential, Options, Snmp, Sweep, SweepEvent};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u32>().unwrap());
    let prefix = arguments.next().unwrap_or(16);
    let responders = arguments.next().unwrap_or(1024);
    let delay = Duration::from_millis(u64::from(arguments.next().unwrap_or(20)));
    let loss = arguments.next().unwrap_or(20);
    let retries = arguments.next().unwrap_or(2) as u8;
    let addresses = 1u32 << (32 - prefix);
    let port = respond(addresses, addresses / responders, delay, loss);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let snmp = Snmp::bind(Options { rate: 0, find_engines: false, retries, ..Options::default() }).await.unwrap();
        let peers = Box::new((0..addresses).map(move |n| SocketAddr::from((address(n), port))));
        let oids = ["1.3.6.1.2.1.1.1.0", "1.3.6.1.2.1.1.2.0"].map(|oid| oid.parse().unwrap()).to_vec();
        let credentials = vec![Arc::new(Credential::v2c("public").unwrap())];
        let memory = peak_memory();
        let (began, cpu) = (Instant::now(), thread_cpu());
        let mut events = snmp.sweep(Sweep { peers, credentials, oids });
        let mut first = None;
        while let Some(event) = events.recv().await {
            match event {
                SweepEvent::Progress { .. } if first.is_none() => first = Some(began.elapsed()),
                SweepEvent::Done(counts) => {
                    let (seconds, cpu) = (began.elapsed().as_secs_f64(), thread_cpu() - cpu);
                    let stats = snmp.stats();
                    println!("{addresses} addresses, {responders} responders, {delay:?} delay, {loss} permille lost");
                    println!("{seconds:.2} s, {:.0} addresses/s, {cpu:.2} s CPU", f64::from(addresses) / seconds);
                    println!("{} KiB more than before, at the most", peak_memory() - memory);
                    println!("{counts:?}");
                    println!("{stats:?}");
                }
                _ => {}
            }
        }
    });
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 64, 0, 0)) + n)
}

/// VmHWM of this process, KiB.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU seconds of this thread, user and system.
fn thread_cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

/// Starts the responder; every `every`th address answers.
fn respond(addresses: u32, every: u32, delay: Duration, loss: u32) -> u16 {
    // Where a datagram was sent to matters, so each answering address has a socket of its own. The others share one
    // that is bound to all and never read: when it is full, the kernel drops what comes, as a silent network would.
    let silent = open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), 0);
    let port = silent.local_addr().unwrap().port();
    std::mem::forget(silent);
    let sockets: Vec<_> = (0..addresses)
        .step_by(every as usize)
        .map(|n| open(SocketAddr::from((address(n), port)), 1 << 16))
        .collect();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            for (n, socket) in (0..).zip(sockets) {
                socket.set_nonblocking(true).unwrap();
                tokio::spawn(answer(tokio::net::UdpSocket::from_std(socket).unwrap(), delay, loss, n));
            }
            std::future::pending::<()>().await;
        });
    });
    port
}

fn open(at: SocketAddr, receive: usize) -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    let _ = socket.set_recv_buffer_size(receive);
    socket.bind(&at.into()).unwrap();
    socket.into()
}

/// Turns requests into responses in place; losses are drawn per packet, there and back.
async fn answer(socket: tokio::net::UdpSocket, delay: Duration, loss: u32, seed: u32) {
    let mut chance = u64::from(seed) + 1;
    let mut lost = move || {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % 1000 < u64::from(loss)
    };
    let mut waiting: VecDeque<(tokio::time::Instant, SocketAddr, Vec<u8>)> = VecDeque::new();
    let mut buffer = [0; 2048];
    loop {
        let due = waiting.front().map(|(due, ..)| *due);
        tokio::select! {
            Ok((len, from)) = socket.recv_from(&mut buffer) => {
                if !lost() && !lost() {
                    // GetRequest-PDU becomes Response-PDU; the values stay NULL.
                    let at = buffer[..len].iter().position(|octet| *octet == 0xa0).unwrap();
                    buffer[at] = 0xa2;
                    waiting.push_back((tokio::time::Instant::now() + delay, from, buffer[..len].to_vec()));
                }
            }
            () = async { tokio::time::sleep_until(due.unwrap_or_else(tokio::time::Instant::now)).await }, if due.is_some() => {
                if let Some((_, to, packet)) = waiting.pop_front() {
                    let _ = socket.send_to(&packet, to).await;
                }
            }
        }
    }
}
