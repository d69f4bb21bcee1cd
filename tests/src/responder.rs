//! A whole network behind one socket: very many simulated devices for little CPU, so that what is measured is the
//! asker and not this. One thread, one socket bound to all addresses of its namespace (`ip route add local …`) or
//! to loopback's, replies sent from the asked address (IP_PKTINFO). Addresses without a device are silent: the
//! kernel drops what they get by a socket filter, and no ICMP tells.
//!
//! Loss (seeded, each way), delay and a bound on a device's answers a second are made here and not by `tc netem`:
//! many kernels lack it, its queue of 1,000 packets drops more than it was told to, and a seed repeats a run.
//! With [`Spec::record`] every packet is counted, by the kernel's own time of arrival: evidence of politeness.
//!
//! API: [`Spec`], [`Responder::bind`], [`Responder::serve`], [`Seen`].

use crate::ber::{self, Request, pdu};
use crate::mib::Table;
use crate::models::{Gauge, Own, PRINTERS, Printer, Supply};
use crate::printer::{Behaviour, Device, Heard, Manner, Reply};
use anyhow::{Context, Result, ensure};
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmsg, setsockopt,
    sockopt,
};
use nix::sys::time::TimeSpec;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::io::{IoSlice, IoSliceMut};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Datagrams a system call.
const BATCH: usize = 128;
/// Longest request that is understood.
const LONGEST: usize = 2_048;
/// Answers that may wait: 100,000 devices with one each. More are dropped, as by a network that is full.
const WAITING_MAX: usize = 200_000;
/// Longest time in which nobody looks whether to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// What is asked of the kernel for receiving: a sweep of a /16 in one burst.
const RECEIVE_BUFFER: usize = 64 << 20;
/// Where the first device stands behind the first address, when not every address has one.
const FIRST_DEVICE: u32 = 17;

/// What a responder is made of.
#[derive(Debug, Clone, clap::Args)]
pub struct Spec {
    /// UDP port of all.
    #[arg(long, default_value_t = 161)]
    pub port: u16,
    /// First address of the network.
    #[arg(long, default_value = "127.64.0.0")]
    pub first: Ipv4Addr,
    /// Addresses of the network, with or without a device.
    #[arg(long, default_value_t = 65_536)]
    pub addresses: u32,
    /// Of so many addresses one has a device; a power of two.
    #[arg(long, default_value_t = 64)]
    pub every: u32,
    /// Most devices.
    #[arg(long, default_value_t = 1_024)]
    pub devices: u32,
    /// Milliseconds from question to answer.
    #[arg(long, default_value_t = 0)]
    pub delay: u64,
    /// Of 1,000 packets so many are lost, each way.
    #[arg(long, default_value_t = 0)]
    pub loss: u32,
    /// Answers a second of one device; 0 is no bound.
    #[arg(long, default_value_t = 0)]
    pub answers: u32,
    /// All devices are of one kind with so many supplies, at most 21; 0: the printers of all makers.
    #[arg(long, default_value_t = 0)]
    pub supplies: usize,
    /// Count every packet, those to silent addresses, too.
    #[arg(long)]
    pub record: bool,
    /// Decides losses, serials, counters and levels.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

impl Spec {
    /// How far behind the first address the first device stands.
    fn start(&self) -> u32 {
        if self.every == 1 { 1 } else { FIRST_DEVICE % self.every }
    }

    /// Where the n-th device answers.
    #[must_use]
    pub fn address(&self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.first) + self.start() + n * self.every)
    }

    /// Which device answers there.
    fn device(&self, address: Ipv4Addr) -> Option<u32> {
        let behind = u32::from(address).checked_sub(u32::from(self.first))?.checked_sub(self.start())?;
        let n = behind / self.every;
        (behind.is_multiple_of(self.every) && n < self.devices && behind < self.addresses).then_some(n)
    }

    fn contains(&self, address: Ipv4Addr) -> bool {
        let behind = u32::from(address).checked_sub(u32::from(self.first));
        behind.is_some_and(|behind| behind < self.addresses)
    }
}

/// What came and went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Datagrams that came; without [`Spec::record`] only those to devices.
    pub packets_in: u64,
    /// Their octets, UDP payload.
    pub bytes_in: u64,
    /// Datagrams that went out.
    pub packets_out: u64,
    /// Their octets, UDP payload.
    pub bytes_out: u64,
    /// Datagrams that were lost, both ways together.
    pub lost: u64,
    /// Datagrams to devices that were no request they take.
    pub foreign: u64,
    /// SNMPv3 messages, to which these devices are silent.
    pub engines: u64,
    /// SET requests: must stay 0.
    pub sets: u64,
    /// Devices that were asked.
    pub devices: u64,
    /// Most different questions at once that one device had yet to answer. The same question under another request-id is
    /// a repetition and no other one.
    pub in_flight_max: u64,
    /// Questions that came while the device had yet to answer another.
    pub crowded: u64,
    /// Questions that came again while the device had yet to answer them.
    pub repeated: u64,
    /// Most datagrams in any second (with [`Spec::record`]).
    pub second_max: u64,
    /// From the first to the last datagram, milliseconds (with [`Spec::record`]).
    pub millis: u64,
    /// The question that came most often, and what it brought.
    pub usual: Usual,
}

/// A question that came often.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usual {
    /// How often it came.
    pub times: u64,
    /// Whether it was a GETBULK; else a GET or GETNEXT.
    pub bulk: bool,
    /// non-repeaters and max-repetitions of a GETBULK.
    pub repeats: (i64, i64),
    /// The names that it asked with.
    pub names: Vec<String>,
    /// The names of its answer.
    pub brought: Vec<String>,
}

/// Most supplies of the one kind.
const SUPPLIES_MAX: usize = 21;

/// One kind with four toners and four drums, and beyond these what a large machine wears out, in the objects of a maker
/// that builds such.
fn of_one_kind(supplies: usize) -> Printer {
    const fn of(name: &'static str, kind: u8, color: &'static str) -> Supply {
        Supply { name, kind, unit: 19, max: 100, gauge: Gauge::Measured, color }
    }
    static ALL: [Supply; SUPPLIES_MAX] = [
        of("Black Toner Cartridge", 21, "black"),
        of("Cyan Toner Cartridge", 21, "cyan"),
        of("Magenta Toner Cartridge", 21, "magenta"),
        of("Yellow Toner Cartridge", 21, "yellow"),
        of("Black Image Drum", 9, ""),
        of("Cyan Image Drum", 9, ""),
        of("Magenta Image Drum", 9, ""),
        of("Yellow Image Drum", 9, ""),
        of("Black Developer", 10, ""),
        of("Cyan Developer", 10, ""),
        of("Magenta Developer", 10, ""),
        of("Yellow Developer", 10, ""),
        of("Waste Toner Box", 4, ""),
        of("Fuser Unit", 15, ""),
        of("Transfer Belt", 20, ""),
        of("Transfer Roller", 20, ""),
        of("Tray 1 Roller", 1, ""),
        of("Tray 2 Roller", 1, ""),
        of("Tray 3 Roller", 1, ""),
        of("Document Feeder Roller", 1, ""),
        of("Staple Cartridge", 32, ""),
    ];
    Printer {
        vendor: "OKI",
        model: "C844",
        object_id: "1.3.6.1.4.1.2001.1.1.1.1",
        descr: "OKI OkiLAN 8450e Rev.02.10 : Attached to C844 Rev.03.12",
        device: "C844",
        rfc3805: true,
        serial: "AK########",
        oui: [0x00, 0x80, 0x87],
        color: true,
        display: "Online",
        supplies: &ALL[..supplies.min(ALL.len())],
        own: &[("1.3.6.1.4.1.2001.1.1.1.1.11.1.10.45.0", Own::Text("{serial}"))],
    }
}

/// The models' tables, and the devices that were asked so far.
struct Devices {
    spec: Spec,
    /// The one kind that all are of; else those of [`PRINTERS`] in turn.
    one: Option<Printer>,
    tables: Vec<(Arc<Table>, Arc<Table>)>,
    slots: HashMap<u32, Slot>,
}

struct Slot {
    device: Device,
    /// The questions that wait for their answers, digested, as often as they came.
    waiting: Vec<u64>,
    /// When it may answer again.
    free_at: Duration,
}

impl Devices {
    fn new(spec: &Spec) -> Devices {
        let tables =
            |model: &Printer| (Arc::new(Table::printer(model, false)), Arc::new(Table::printer(model, true)));
        let one = (spec.supplies > 0).then(|| of_one_kind(spec.supplies));
        let tables = match &one {
            Some(kind) => vec![tables(kind)],
            None => PRINTERS.iter().map(tables).collect(),
        };
        Devices { spec: spec.clone(), one, tables, slots: HashMap::new() }
    }

    fn get(&mut self, n: u32) -> &mut Slot {
        let Devices { spec, one, tables, slots } = self;
        slots.entry(n).or_insert_with(|| {
            let at = n as usize % tables.len();
            let (kind, tables) = (one.as_ref().unwrap_or(&PRINTERS[at]), &tables[at]);
            let manner = Manner { community: "public", pages_per_minute: 6, seed: spec.seed };
            let device = Device::printer(spec.address(n), kind, tables, Behaviour::default(), &manner);
            Slot { device, waiting: Vec::new(), free_at: Duration::ZERO }
        })
    }
}

/// An answer that waits.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Answer {
    due: Duration,
    number: u64,
    device: u32,
    question: u64,
    to: (Ipv4Addr, u16),
    packet: Vec<u8>,
    lost: bool,
}

/// Packets of the last second, by the kernel's time of arrival.
#[derive(Default)]
struct Seconds {
    first: Option<Duration>,
    recent: VecDeque<Duration>,
}

impl Seconds {
    fn take(&mut self, at: Duration, seen: &mut Seen) {
        let first = *self.first.get_or_insert(at);
        while self.recent.front().is_some_and(|old| at.saturating_sub(*old) >= Duration::from_secs(1)) {
            self.recent.pop_front();
        }
        self.recent.push_back(at);
        seen.second_max = seen.second_max.max(self.recent.len() as u64);
        seen.millis = seen.millis.max(at.saturating_sub(first).as_millis() as u64);
    }
}

/// A bound responder.
pub struct Responder {
    socket: Socket,
    spec: Spec,
    devices: Devices,
    seen: Arc<Mutex<Seen>>,
    seconds: Seconds,
    waiting: BinaryHeap<Reverse<Answer>>,
    chance: StdRng,
    numbers: u64,
    request: Request,
    tally: Tally,
    started: Instant,
}

impl Responder {
    /// Takes the port on all addresses.
    ///
    /// # Errors
    /// When the port is taken, or the numbers make no sense.
    pub fn bind(spec: &Spec) -> Result<Responder> {
        ensure!(spec.every.is_power_of_two(), "--every {}: not a power of two", spec.every);
        ensure!(spec.supplies <= SUPPLIES_MAX, "--supplies {}: at most {SUPPLIES_MAX}", spec.supplies);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP)).context("make a socket")?;
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_err() {
            let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
        }
        let _ = socket.set_send_buffer_size(RECEIVE_BUFFER);
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).context("ask for destinations")?;
        if spec.record {
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true).context("ask for arrival times")?;
        } else {
            socket.attach_filter(&filter(spec)).context("attach the filter")?;
        }
        socket.set_nonblocking(true).context("make the socket non-blocking")?;
        let address = std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, spec.port));
        socket.bind(&address.into()).with_context(|| format!("listen on port {}", spec.port))?;
        Ok(Responder {
            socket,
            spec: spec.clone(),
            devices: Devices::new(spec),
            seen: Arc::default(),
            seconds: Seconds::default(),
            waiting: BinaryHeap::new(),
            chance: StdRng::seed_from_u64(spec.seed),
            numbers: 0,
            request: Request::default(),
            tally: Tally::default(),
            started: Instant::now(),
        })
    }

    /// What it sees, also while it serves.
    #[must_use]
    pub fn seen(&self) -> Arc<Mutex<Seen>> {
        Arc::clone(&self.seen)
    }

    /// Answers until `stop` is set.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn serve(mut self, stop: &AtomicBool) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        epoll
            .add(self.socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, 0))
            .context("watch the socket")?;
        let space = nix::cmsg_space!(libc::in_pktinfo, TimeSpec);
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(BATCH, Some(space));
        let mut buffers = vec![[0u8; LONGEST]; BATCH];
        let mut events = [EpollEvent::empty()];
        while !stop.load(Ordering::Relaxed) {
            let more = self.receive(&mut headers, &mut buffers)?;
            self.send_due();
            if more {
                continue;
            }
            let now = self.started.elapsed();
            let next = self.waiting.peek().map_or(STOP_CHECK, |next| next.0.due.saturating_sub(now));
            let wait = u16::try_from(next.min(STOP_CHECK).as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
            match epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error).context("wait for packets"),
            }
        }
        Ok(())
    }

    /// Takes a batch; whether there may be more.
    fn receive(
        &mut self,
        headers: &mut MultiHeaders<SockaddrIn>,
        buffers: &mut [[u8; LONGEST]],
    ) -> Result<bool> {
        let mut slices: Vec<[IoSliceMut<'_>; 1]> =
            buffers.iter_mut().map(|buffer| [IoSliceMut::new(buffer)]).collect();
        let fd = self.socket.as_raw_fd();
        let messages = match recvmmsg(fd, headers, slices.iter_mut(), MsgFlags::MSG_DONTWAIT, None) {
            Ok(messages) => messages,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => return Ok(false),
            // An ICMP error that an earlier answer brought: whoever asked has gone.
            Err(nix::errno::Errno::ECONNREFUSED) => return Ok(true),
            Err(error) => return Err(error).context("receive"),
        };
        let seen = Arc::clone(&self.seen);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.started.elapsed();
        let mut count = 0;
        for message in messages {
            count += 1;
            let (mut asked, mut at) = (None, None);
            for control in message.cmsgs().into_iter().flatten() {
                match control {
                    ControlMessageOwned::Ipv4PacketInfo(info) => {
                        asked = Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)));
                    }
                    ControlMessageOwned::ScmTimestampns(time) => at = Some(Duration::from(time)),
                    _ => {}
                }
            }
            let Some((asked, from)) = asked.zip(message.address) else { continue };
            let packet = message.iovs().next().unwrap_or_default();
            if self.spec.contains(asked) {
                self.hear(packet, asked, (from.ip(), from.port()), now, at, &mut seen);
            }
        }
        Ok(count == BATCH)
    }

    fn hear(
        &mut self,
        packet: &[u8],
        asked: Ipv4Addr,
        from: (Ipv4Addr, u16),
        now: Duration,
        at: Option<Duration>,
        seen: &mut Seen,
    ) {
        seen.packets_in += 1;
        seen.bytes_in += packet.len() as u64;
        if let Some(at) = at {
            self.seconds.take(at, seen);
        }
        let Some(n) = self.spec.device(asked) else { return };
        if self.is_lost() {
            seen.lost += 1;
            return;
        }
        if ber::is_v3(packet) {
            seen.engines += 1;
            return;
        }
        let lost = self.is_lost();
        seen.devices += u64::from(!self.devices.slots.contains_key(&n));
        let spec = &self.spec;
        let slot = self.devices.get(n);
        let mut answer = Vec::new();
        let (heard, reply) = slot.device.answer(packet, now, &mut self.request, &mut answer);
        match heard {
            Heard::Request => {}
            Heard::Foreign => seen.foreign += 1,
            Heard::Set => seen.sets += 1,
        }
        if reply == Reply::Silence {
            return;
        }
        let question = digest(&self.request);
        self.tally.take(question, &self.request, &answer, seen);
        let due = now.max(slot.free_at) + Duration::from_millis(spec.delay);
        if let Some(gap) = Duration::from_secs(1).checked_div(spec.answers) {
            slot.free_at = now.max(slot.free_at) + gap;
        }
        if due > now {
            count_waiting(slot, question, seen);
        }
        if self.waiting.len() < WAITING_MAX {
            self.numbers += 1;
            let number = self.numbers;
            let answer = Answer { due, number, device: n, question, to: from, packet: answer, lost };
            self.waiting.push(Reverse(answer));
        }
    }

    fn is_lost(&mut self) -> bool {
        self.spec.loss > 0 && self.chance.random_range(0..1000) < self.spec.loss
    }

    fn send_due(&mut self) {
        let now = self.started.elapsed();
        let seen = Arc::clone(&self.seen);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        while self.waiting.peek().is_some_and(|next| next.0.due <= now) {
            let Some(Reverse(answer)) = self.waiting.pop() else { return };
            let slot = self.devices.get(answer.device);
            if let Some(at) = slot.waiting.iter().position(|question| *question == answer.question) {
                slot.waiting.swap_remove(at);
            }
            if answer.lost {
                seen.lost += 1;
            } else if self.send(&answer) {
                seen.packets_out += 1;
                seen.bytes_out += answer.packet.len() as u64;
            }
        }
    }

    /// Sends from the address that was asked.
    fn send(&self, answer: &Answer) -> bool {
        let from = u32::from(self.spec.address(answer.device)).to_be();
        let info = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: from },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let [a, b, c, d] = answer.to.0.octets();
        let to = SockaddrIn::new(a, b, c, d, answer.to.1);
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        let slices = [IoSlice::new(&answer.packet)];
        let mut tries = 0;
        loop {
            match sendmsg(self.socket.as_raw_fd(), &slices, &control, MsgFlags::empty(), Some(&to)) {
                Ok(_) => return true,
                // ICMP errors that earlier answers brought, one a call.
                Err(nix::errno::Errno::ECONNREFUSED) if tries < 8 => tries += 1,
                Err(_) => return false,
            }
        }
    }
}

fn count_waiting(slot: &mut Slot, question: u64, seen: &mut Seen) {
    if slot.waiting.contains(&question) {
        seen.repeated += 1;
    } else {
        seen.crowded += u64::from(!slot.waiting.is_empty());
    }
    slot.waiting.push(question);
    let different: BTreeSet<&u64> = slot.waiting.iter().collect();
    seen.in_flight_max = seen.in_flight_max.max(different.len() as u64);
}

/// What a request asks, whatever its request-id, digested.
fn digest(request: &Request) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Request { kind, non_repeaters, max_repetitions, raw_varbinds, .. } = request;
    (kind, non_repeaters, max_repetitions, raw_varbinds).hash(&mut hasher);
    hasher.finish()
}

/// How often which question came; of the first [`TALLIED`] different ones, because what is usual comes early.
#[derive(Default)]
struct Tally {
    times: HashMap<u64, u64>,
    /// The question of [`Seen::usual`].
    usual: u64,
}

/// Different questions that are counted.
const TALLIED: usize = 4_096;

impl Tally {
    fn take(&mut self, question: u64, request: &Request, answer: &[u8], seen: &mut Seen) {
        if self.times.len() >= TALLIED && !self.times.contains_key(&question) {
            return;
        }
        let times = self.times.entry(question).or_default();
        *times += 1;
        if self.usual == question {
            seen.usual.times = *times;
        } else if *times > seen.usual.times {
            self.usual = question;
            let brought = ber::read_response(answer).map(|(_, _, varbinds)| varbinds).unwrap_or_default();
            seen.usual = Usual {
                times: *times,
                bulk: request.kind == pdu::GETBULK,
                repeats: (request.non_repeaters, request.max_repetitions),
                names: (0..request.len()).map(|n| dotted(request.name(n))).collect(),
                brought: brought.iter().map(|(name, _, _)| dotted(name)).collect(),
            };
        }
    }
}

fn dotted(arcs: &[u32]) -> String {
    arcs.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

/// Lets through what goes to a device: classic BPF over the destination address of the IP header.
fn filter(spec: &Spec) -> Vec<SockFilter> {
    // linux/filter.h: SKF_NET_OFF is where the network header begins; 16 octets on stands the destination.
    const DESTINATION: u32 = (-0x10_0000_i32 + 16) as u32;
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const SUBTRACT: u16 = (libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K) as u16;
    const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    // Addresses before the first device wrap around and are too large.
    let upto = spec.devices.saturating_mul(spec.every).min(spec.addresses - spec.start().min(spec.addresses));
    vec![
        SockFilter::new(LOAD, 0, 0, DESTINATION),
        SockFilter::new(SUBTRACT, 0, 0, u32::from(spec.first) + spec.start()),
        SockFilter::new(AT_LEAST, 3, 0, upto),
        SockFilter::new(AND, 0, 0, spec.every - 1),
        SockFilter::new(EQUAL, 0, 1, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
        SockFilter::new(RETURN, 0, 0, 0),
    ]
}

#[cfg(test)]
#[path = "responder_tests.rs"]
mod tests;
