//! What reads cost on this machine: `cargo run --release --example read_rate -- [DEVICES] [ROUNDS] [DELAY_MS] [LOSS_PERMILLE] [SUPPLIES]`.
//!
//! A thread of this program answers on all of 127.0.0.0/8 for DEVICES printers with SUPPLIES supplies each, after a
//! delay, losing packets both ways. Every device is read once in full, unmeasured; then ROUNDS times again, all devices
//! at the same time. A repeated read of 21 supplies asks for 25 objects. One JSON object comes out: `reads`, `failed`,
//! `seconds`, `cpu_seconds` (of all threads but the responder's), `in_flight_max`, `rss_kib` (peak, above what it was before
//! the first read), and what a read took in packets and octets of UDP payload, both ways.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_node::device::script::Profiles;
use quire_node::device::{self, ReadPlan};
use quire_node::snmp::{Credential, Options, Patience, Snmp};
use tokio::task::JoinSet;

fn main() {
    let arguments: Vec<u64> = std::env::args().skip(1).map(|argument| argument.parse().unwrap()).collect();
    let argument = |at: usize, usual: u64| arguments.get(at).copied().unwrap_or(usual);
    let (devices, rounds) = (argument(0, 1000) as u32, argument(1, 20));
    let (delay, loss) = (Duration::from_millis(argument(2, 0)), argument(3, 0));
    let port = respond(argument(4, 21) as u32, delay, loss);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = Options { rate: 0, timeout: Duration::from_secs(2) + 2 * delay, ..Options::default() };
        let snmp = Snmp::bind(options).await.unwrap();
        let peers: Vec<SocketAddr> = (0..devices).map(|n| SocketAddr::from((address(n), port))).collect();
        let before = memory("VmRSS");
        let mut plans: Vec<Option<ReadPlan>> = vec![None; peers.len()];
        round(&snmp, &peers, &mut plans).await;
        let known = memory("VmRSS");
        let (began, cpu, stats) = (Instant::now(), reading_cpu(), snmp.stats());
        let (mut failed, mut most) = (0, 0);
        for _ in 0..rounds {
            let (lost, in_flight) = round(&snmp, &peers, &mut plans).await;
            failed += lost;
            most = most.max(in_flight);
        }
        let (seconds, cpu, after) = (began.elapsed().as_secs_f64(), reading_cpu() - cpu, snmp.stats());
        let reads = u64::from(devices) * rounds;
        let each = |after: u64, before: u64| (after - before) as f64 / reads as f64;
        println!(
            "{{\"reads\":{reads},\"failed\":{failed},\"seconds\":{seconds:.3},\"cpu_seconds\":{cpu:.2},\"in_flight_max\":{most},\
             \"rss_kib\":{},\"rss_known_kib\":{},\"packets\":{:.2},\"bytes_sent\":{:.0},\"bytes_received\":{:.0}}}",
            memory("VmHWM").saturating_sub(before),
            known.saturating_sub(before),
            each(after.packets_sent, stats.packets_sent) + each(after.packets_received, stats.packets_received),
            each(after.bytes_sent, stats.bytes_sent),
            each(after.bytes_received, stats.bytes_received),
        );
    });
}

/// Reads all devices at the same time; gives how many failed and how many were under way together.
async fn round(snmp: &Snmp, peers: &[SocketAddr], plans: &mut [Option<ReadPlan>]) -> (u64, u64) {
    let community = Arc::new(Credential::v2c("public").unwrap());
    let mut reads = JoinSet::new();
    for (n, peer) in peers.iter().enumerate() {
        let (snmp, community, plan, peer) = (snmp.clone(), community.clone(), plans[n].take(), *peer);
        reads.spawn(async move {
            (n, device::read(&snmp, peer, &community, plan, Patience::Normal, Profiles::default()).await)
        });
    }
    let (mut failed, most) = (0, reads.len() as u64);
    while let Some(done) = reads.join_next().await {
        let (n, finished) = done.unwrap();
        failed += u64::from(
            !finished.complete || finished.reading.is_none_or(|reading| reading.supplies.is_empty()),
        );
        plans[n] = Some(finished.plan);
    }
    (failed, most)
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 64, 0, 0)) + n)
}

/// A line of /proc/self/status, KiB.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU seconds of all threads but the responder's, user and system.
fn reading_cpu() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let ticks = threads.map(|thread| {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let responder = stat.contains("(responder)") || fields.len() < 13;
        if responder { 0.0 } else { fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap() }
    });
    ticks.sum::<f64>() / 100.0
}

/// Starts the responder; it answers for every address of 127.0.0.0/8 from 127.0.0.1, which the engine, that goes by
/// request-ids, takes for a device with several addresses.
fn respond(supplies: u32, delay: Duration, loss: u64) -> u16 {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    let _ = socket.set_recv_buffer_size(64 << 20);
    socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)).into()).unwrap();
    let socket = UdpSocket::from(socket);
    let port = socket.local_addr().unwrap().port();
    let serve = move || serve(&socket, &table(supplies), delay, loss);
    std::thread::Builder::new().name("responder".to_owned()).spawn(serve).unwrap();
    port
}

fn serve(socket: &UdpSocket, table: &[(Vec<u32>, Vec<u8>)], delay: Duration, loss: u64) {
    let mut chance = 1u64;
    let mut lost = move || {
        chance = chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (chance >> 33) % 1000 < loss
    };
    // The same question has the same answer but for its request-id, so each is worked out once.
    let mut answers: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
    let mut waiting: VecDeque<(Instant, SocketAddr, Vec<u8>)> = VecDeque::new();
    let mut buffer = [0; 4096];
    loop {
        let until = waiting.front().map(|(due, ..)| due.saturating_duration_since(Instant::now()));
        if until.is_some_and(|until| until.is_zero()) {
            if let Some((_, to, packet)) = waiting.pop_front() {
                let _ = socket.send_to(&packet, to);
            }
            continue;
        }
        socket.set_read_timeout(until).unwrap();
        let Ok((len, from)) = socket.recv_from(&mut buffer) else { continue };
        if lost() || lost() {
            continue;
        }
        let Some((id, question)) = question(&buffer[..len]) else { continue };
        let known = answers.entry(question).or_insert_with_key(|question| answer(question, table));
        let mut pdu = vec![0x02, 4];
        pdu.extend_from_slice(&id);
        pdu.extend_from_slice(known);
        let packet = element(0x30, &[&[2, 1, 1, 4, 6][..], b"public", &element(0xa2, &pdu)].concat());
        if delay.is_zero() {
            let _ = socket.send_to(&packet, from);
        } else {
            waiting.push_back((Instant::now() + delay, from, packet));
        }
    }
}

/// Splits a request of ours into its request-id and the whole PDU with a request-id of zeroes.
fn question(packet: &[u8]) -> Option<([u8; 4], Vec<u8>)> {
    let at = packet.windows(8).position(|window| window == b"\x04\x06public")? + 8;
    let id = at + packet[at..].windows(2).position(|window| window == [2, 4])? + 2;
    let mut pdu = packet[at..].to_vec();
    let number = packet.get(id..id + 4)?.try_into().ok()?;
    pdu[id - at..id - at + 4].fill(0);
    Some((number, pdu))
}

/// error-status, error-index and variable bindings that answer a question.
fn answer(question: &[u8], table: &[(Vec<u32>, Vec<u8>)]) -> Vec<u8> {
    let (tag, body, _) = take(question);
    let (_, _, rest) = take(body);
    let (_, first, rest) = take(rest);
    let (_, second, rest) = take(rest);
    let (_, mut list, _) = take(rest);
    let mut names = Vec::new();
    while !list.is_empty() {
        let (_, pair, rest) = take(list);
        names.push(arcs(take(pair).1));
        list = rest;
    }
    let after = |name: &[u32]| table.partition_point(|(other, _)| other.as_slice() <= name);
    let mut out = Vec::new();
    let mut push = |name: &[u32], value: &[u8]| out.extend(element(0x30, &[&oid(name), value].concat()));
    const END: &[u8] = &[0x82, 0];
    let row = |at: usize, name: &[u32]| table.get(at).map_or((name.to_vec(), END.to_vec()), Clone::clone);
    match tag {
        0xa0 => {
            for name in &names {
                let found = table.binary_search_by(|(other, _)| other.as_slice().cmp(name));
                push(name, found.map_or(&[0x81, 0][..], |at| &table[at].1));
            }
        }
        0xa1 => names.iter().map(|name| row(after(name), name)).for_each(|(name, value)| push(&name, &value)),
        _ => {
            let once = usize::from(first[0]).min(names.len());
            names[..once]
                .iter()
                .map(|name| row(after(name), name))
                .for_each(|(name, value)| push(&name, &value));
            for repetition in 0..usize::from(*second.last().unwrap()) {
                for name in &names[once..] {
                    let (name, value) = row(after(name) + repetition, name);
                    push(&name, &value);
                }
            }
        }
    }
    [&[2, 1, 0, 2, 1, 0][..], &element(0x30, &out)].concat()
}

fn element(tag: u8, contents: &[u8]) -> Vec<u8> {
    let len = contents.len();
    let head = match len {
        0..128 => vec![tag, len as u8],
        128..256 => vec![tag, 0x81, len as u8],
        _ => vec![tag, 0x82, (len >> 8) as u8, len as u8],
    };
    [&head, contents].concat()
}

/// The first element: its tag, its contents, and what follows.
fn take(octets: &[u8]) -> (u8, &[u8], &[u8]) {
    let more = usize::from(octets[1].saturating_sub(0x80));
    let len = match more {
        0 => usize::from(octets[1]),
        _ => octets[2..2 + more].iter().fold(0, |len, octet| len << 8 | usize::from(*octet)),
    };
    let start = 2 + more;
    (octets[0], &octets[start..start + len], &octets[start + len..])
}

fn arcs(octets: &[u8]) -> Vec<u32> {
    let mut arcs = vec![u32::from(octets[0] / 40), u32::from(octets[0] % 40)];
    let mut value = 0;
    for octet in &octets[1..] {
        value = value << 7 | u32::from(octet & 0x7f);
        if octet & 0x80 == 0 {
            arcs.push(value);
            value = 0;
        }
    }
    arcs
}

fn oid(arcs: &[u32]) -> Vec<u8> {
    let mut octets = vec![(arcs[0] * 40 + arcs[1]) as u8];
    for arc in &arcs[2..] {
        let groups = (32 - arc.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            octets.push((arc >> (7 * group)) as u8 & 0x7f | if group > 0 { 0x80 } else { 0 });
        }
    }
    element(6, &octets)
}

/// What every device serves: a printer of no known maker, so that all its objects are the standard's.
fn table(supplies: u32) -> Vec<(Vec<u32>, Vec<u8>)> {
    let mut table = Vec::new();
    let mut put = |name: &str, index: &[u32], tag: u8, value: &[u8]| {
        let name: Vec<u32> =
            name.split('.').map(|arc| arc.parse().unwrap()).chain(index.iter().copied()).collect();
        table.push((name, element(tag, value)));
    };
    put("1.3.6.1.2.1.1.1", &[0], 4, b"Example 100 printer");
    put("1.3.6.1.2.1.1.2", &[0], 6, &oid(&[1, 3, 6, 1, 4, 1, 32_473, 1])[2..]);
    put("1.3.6.1.2.1.1.3", &[0], 0x43, &[1, 0, 0]);
    put("1.3.6.1.2.1.1.5", &[0], 4, b"printer-1");
    put("1.3.6.1.2.1.1.6", &[0], 4, b"Building A, floor 1");
    put("1.3.6.1.2.1.2.2.1.3", &[1], 2, &[6]);
    put("1.3.6.1.2.1.2.2.1.6", &[1], 4, &[0, 0x1b, 0xa9, 1, 2, 3]);
    put("1.3.6.1.2.1.2.2.1.8", &[1], 2, &[1]);
    put("1.3.6.1.2.1.25.3.2.1.2", &[1], 6, &oid(&[1, 3, 6, 1, 2, 1, 25, 3, 1, 5])[2..]);
    put("1.3.6.1.2.1.25.3.2.1.3", &[1], 4, b"Example 100");
    put("1.3.6.1.2.1.25.3.2.1.5", &[1], 2, &[2]);
    put("1.3.6.1.2.1.25.3.5.1.1", &[1], 2, &[3]);
    put("1.3.6.1.2.1.25.3.5.1.2", &[1], 4, &[0, 0]);
    put("1.3.6.1.2.1.43.5.1.1.17", &[1], 4, b"EX12345678");
    put("1.3.6.1.2.1.43.10.2.1.3", &[1, 1], 2, &[7]);
    put("1.3.6.1.2.1.43.10.2.1.4", &[1, 1], 0x41, &[0, 0xc3, 0x50]);
    for (column, tag, value) in
        [(3, 2, &[1u8][..]), (4, 2, &[3]), (5, 2, &[3]), (7, 2, &[19]), (8, 2, &[100]), (9, 2, &[57])]
    {
        (1..=supplies).for_each(|n| put(&format!("1.3.6.1.2.1.43.11.1.1.{column}"), &[1, n], tag, value));
    }
    let colors = ["Black", "Cyan", "Magenta", "Yellow"];
    for n in 1..=supplies {
        let name = format!("{} Toner Cartridge {n}", colors[n as usize % 4]);
        put("1.3.6.1.2.1.43.11.1.1.6", &[1, n], 4, name.as_bytes());
    }
    put("1.3.6.1.2.1.43.12.1.1.4", &[1, 1], 4, b"black");
    table.sort();
    table
}
