//! An Ethernet switch of our own between network namespaces: it loses, delays and refuses frames, each way of each
//! pair by itself, and writes down who asked which device when. `tc netem` does less of this, and many kernels lack it
//! (that of our machines does); this works wherever there are veth and packet sockets, and a seed decides its losses.
//!
//! Order is kept: a frame never overtakes another one between the same two ports.
//!
//! API: [`Switch::start`], [`Switch::set`], [`Switch::counts`], [`Switch::asked`].

use crate::lab::enter;
use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, bind, recvmsg,
    send, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeSpec;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io::IoSliceMut;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Frames taken from one port before the others' turn.
const BURST: usize = 64;
/// Frames that may wait: a second of 200 ms delay at far more than a cluster sends. More are lost, as in a real queue.
const WAITING_MAX: usize = 20_000;
/// Longest time in which nobody looks whether to stop.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// Longest frame that is understood; veth gives longer ones only where segmentation is left to it.
const LONGEST: usize = 66_000;
/// Where SNMP engines listen.
const SNMP: u16 = 161;

/// What becomes of frames on one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fate {
    /// None arrives.
    pub cut: bool,
    /// Of 1,000 so many are lost.
    pub loss: u32,
    /// How long each takes.
    pub delay: Duration,
    /// And so much more at the most.
    pub jitter: Duration,
}

/// A question to a device, or its answer, as it came from the sender's cable, whatever became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// By the kernel's time of arrival, since the switch was started.
    pub at: Duration,
    /// The asker's port.
    pub port: usize,
    /// The device's address.
    pub to: Ipv4Addr,
}

/// What became of the frames.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent on.
    pub carried: u64,
    /// Of those, delayed.
    pub delayed: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Refused by a cut.
    pub cut: u64,
    /// Lost because the kernel took them no more, or too many waited. Those for a cable that is unplugged, too.
    pub dropped: u64,
}

#[derive(Debug)]
struct Shared {
    fates: Mutex<Vec<Vec<Fate>>>,
    counts: Mutex<Counts>,
    asked: Mutex<Vec<Asked>>,
    answered: Mutex<Vec<Asked>>,
    stop: AtomicBool,
}

/// A running switch; dropping it ends it.
#[derive(Debug)]
pub struct Switch {
    began: Instant,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Switch {
    /// Joins these interfaces of a namespace; ports are numbered in their order.
    ///
    /// # Errors
    /// When there is no such interface, or packet sockets cannot be had.
    pub fn start(namespace: &str, interfaces: &[String], seed: u64) -> Result<Switch> {
        let ports = interfaces.len();
        let shared = Arc::new(Shared {
            fates: Mutex::new(vec![vec![Fate::default(); ports]; ports]),
            counts: Mutex::default(),
            asked: Mutex::default(),
            answered: Mutex::default(),
            stop: AtomicBool::new(false),
        });
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let (namespace, interfaces, told) = (namespace.to_owned(), interfaces.to_vec(), Arc::clone(&shared));
        let (began, epoch) = (Instant::now(), SystemTime::now());
        let thread = std::thread::spawn(move || {
            let opened = enter(&namespace).and_then(|()| Relay::open(&interfaces, told, seed, epoch));
            match opened {
                Ok(relay) => {
                    let _ = ready.send(Ok(()));
                    relay.run()
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    Ok(())
                }
            }
        });
        is_ready.recv().context("the switch's thread ended")??;
        Ok(Switch { began, shared, thread: Some(thread) })
    }

    /// Changes the fate of what goes from one port to another.
    pub fn set(&self, from: usize, to: usize, change: impl FnOnce(&mut Fate)) {
        if let Some(fate) = lock(&self.shared.fates).get_mut(from).and_then(|row| row.get_mut(to)) {
            change(fate);
        }
    }

    /// When it was started: what [`Asked::at`] counts from.
    #[must_use]
    pub fn began(&self) -> Instant {
        self.began
    }

    /// What became of the frames so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        *lock(&self.shared.counts)
    }

    /// Who asked which device when, so far; in the order of each asker.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Which device answered whom when, so far.
    #[must_use]
    pub fn answered(&self) -> Vec<Asked> {
        lock(&self.shared.answered).clone()
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// Why it does not.
    pub fn must_run(&mut self) -> Result<()> {
        match self.thread.take() {
            Some(thread) if thread.is_finished() => match thread.join() {
                Ok(ended) => ended.and_then(|()| anyhow::bail!("the switch ended")),
                Err(_) => anyhow::bail!("the switch panicked"),
            },
            thread => {
                ensure!(thread.is_some(), "the switch has ended");
                self.thread = thread;
                Ok(())
            }
        }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    to: usize,
    frame: Vec<u8>,
}

struct Relay {
    ports: Vec<OwnedFd>,
    shared: Arc<Shared>,
    /// Which port a hardware address was last seen at.
    learnt: HashMap<[u8; 6], usize>,
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// When the last frame of each way is due.
    last: Vec<Vec<Instant>>,
    chance: StdRng,
    numbers: u64,
    epoch: SystemTime,
}

impl Relay {
    fn open(interfaces: &[String], shared: Arc<Shared>, seed: u64, epoch: SystemTime) -> Result<Relay> {
        let ports: Vec<OwnedFd> = interfaces.iter().map(|name| port(name)).collect::<Result<_>>()?;
        let last = vec![vec![Instant::now(); ports.len()]; ports.len()];
        Ok(Relay {
            ports,
            shared,
            learnt: HashMap::new(),
            waiting: BinaryHeap::new(),
            last,
            chance: StdRng::seed_from_u64(seed),
            numbers: 0,
            epoch,
        })
    }

    fn run(mut self) -> Result<()> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        for (n, port) in self.ports.iter().enumerate() {
            epoll
                .add(port.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, n as u64))
                .context("watch a port")?;
        }
        let mut events = vec![EpollEvent::empty(); self.ports.len()];
        let mut buffer = vec![0u8; LONGEST];
        while !self.shared.stop.load(Ordering::Relaxed) {
            let next = self.waiting.peek().map(|next| next.0.due.saturating_duration_since(Instant::now()));
            let wait = next.unwrap_or(STOP_CHECK).min(STOP_CHECK);
            let wait = EpollTimeout::from(u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX));
            let ready = match epoll.wait(&mut events, wait) {
                Ok(ready) => ready,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("wait for frames"),
            };
            for event in &events[..ready] {
                self.take(event.data() as usize, &mut buffer)?;
            }
            self.send_due();
        }
        Ok(())
    }

    /// Takes what has come to a port.
    fn take(&mut self, from: usize, buffer: &mut [u8]) -> Result<()> {
        for _ in 0..BURST {
            let mut space = nix::cmsg_space!(TimeSpec);
            let mut slices = [IoSliceMut::new(buffer)];
            let fd = self.ports[from].as_raw_fd();
            let got = recvmsg::<LinkAddr>(fd, &mut slices, Some(&mut space), MsgFlags::MSG_DONTWAIT);
            let (length, outgoing, at) = match got {
                Ok(got) => {
                    let at = got.cmsgs().ok().into_iter().flatten().find_map(|control| match control {
                        ControlMessageOwned::ScmTimestampns(time) => Some(UNIX_EPOCH + Duration::from(time)),
                        _ => None,
                    });
                    let outgoing = got.address.is_some_and(|from| from.pkttype() == libc::PACKET_OUTGOING);
                    (got.bytes, outgoing, at)
                }
                Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
                // The cable was unplugged.
                Err(Errno::ENETDOWN) => return Ok(()),
                Err(error) => return Err(error).context("receive a frame"),
            };
            // What we sent ourselves is heard, too.
            if !outgoing && length >= 14 {
                let at = at.unwrap_or_else(SystemTime::now);
                self.hear(from, at, &buffer[..length]);
            }
        }
        Ok(())
    }

    fn hear(&mut self, from: usize, at: SystemTime, frame: &[u8]) {
        let address = |at: usize| <[u8; 6]>::try_from(&frame[at..at + 6]).unwrap_or_default();
        let (to, source) = (address(0), address(6));
        self.learnt.insert(source, from);
        let at = at.duration_since(self.epoch).unwrap_or_default();
        if let Some(device) = asked(frame) {
            lock(&self.shared.asked).push(Asked { at, port: from, to: device });
        } else if let (Some(device), Some(asker)) = (answered(frame), self.learnt.get(&to)) {
            lock(&self.shared.answered).push(Asked { at, port: *asker, to: device });
        }
        let mut frame = frame.to_vec();
        complete(&mut frame);
        match self.learnt.get(&to).copied() {
            Some(port) if port == from => {}
            Some(port) => self.pass(from, port, frame),
            None => {
                for port in (0..self.ports.len()).filter(|port| *port != from) {
                    self.pass(from, port, frame.clone());
                }
            }
        }
    }

    fn pass(&mut self, from: usize, to: usize, frame: Vec<u8>) {
        let fate = lock(&self.shared.fates)[from][to];
        let mut counts = lock(&self.shared.counts);
        if fate.cut {
            counts.cut += 1;
            return;
        }
        if fate.loss > 0 && self.chance.random_range(0..1000) < fate.loss {
            counts.lost += 1;
            return;
        }
        let now = Instant::now();
        let jitter = match fate.jitter.as_micros() as u64 {
            0 => Duration::ZERO,
            most => Duration::from_micros(self.chance.random_range(0..=most)),
        };
        let due = (now + fate.delay + jitter).max(self.last[from][to]);
        self.last[from][to] = due;
        if due > now {
            counts.delayed += 1;
            if self.waiting.len() >= WAITING_MAX {
                counts.dropped += 1;
                return;
            }
            self.numbers += 1;
            self.waiting.push(Reverse(Waiting { due, number: self.numbers, to, frame }));
        } else {
            count(send_to(&self.ports[to], &frame), &mut counts);
        }
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        while self.waiting.peek().is_some_and(|next| next.0.due <= now) {
            let Some(Reverse(next)) = self.waiting.pop() else { return };
            count(send_to(&self.ports[next.to], &next.frame), &mut lock(&self.shared.counts));
        }
    }
}

fn count(sent: bool, counts: &mut Counts) {
    counts.carried += u64::from(sent);
    counts.dropped += u64::from(!sent);
}

fn send_to(port: &OwnedFd, frame: &[u8]) -> bool {
    send(port.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT).is_ok()
}

/// A socket for all frames of one interface.
fn port(interface: &str) -> Result<OwnedFd> {
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .context("make a packet socket")?;
    setsockopt(&fd, sockopt::ReceiveTimestampns, &true).context("ask for arrival times")?;
    setsockopt(&fd, sockopt::RcvBuf, &(4 << 20)).context("ask for a buffer")?;
    let found = getifaddrs().context("list the interfaces")?.find_map(|found| {
        let link = *found.address.as_ref()?.as_link_addr()?;
        (found.interface_name == interface).then_some(link)
    });
    let link = found.with_context(|| format!("there is no interface {interface}"))?;
    bind(fd.as_raw_fd(), &link).with_context(|| format!("listen on {interface}"))?;
    Ok(fd)
}

/// Where an IPv4 packet's payload begins, and its protocol; `None` for other frames and for fragments.
fn packet(frame: &[u8]) -> Option<(usize, u8)> {
    let header = frame.get(14..34)?;
    let plain = frame[12..14] == [0x08, 0x00] && header[0] >> 4 == 4;
    let whole = u16::from_be_bytes([header[6], header[7]]) & 0x3FFF == 0;
    (plain && whole).then(|| (14 + usize::from(header[0] & 15) * 4, header[9]))
}

/// The device that a frame asks.
fn asked(frame: &[u8]) -> Option<Ipv4Addr> {
    let (at, protocol) = packet(frame)?;
    let port = frame.get(at + 2..at + 4)?;
    let to: [u8; 4] = frame[30..34].try_into().ok()?;
    (protocol == 17 && port == SNMP.to_be_bytes()).then(|| to.into())
}

/// The device whose answer a frame is.
fn answered(frame: &[u8]) -> Option<Ipv4Addr> {
    let (at, protocol) = packet(frame)?;
    let from: [u8; 4] = frame[26..30].try_into().ok()?;
    (protocol == 17 && *frame.get(at..at + 2)? == SNMP.to_be_bytes()).then(|| from.into())
}

/// veth leaves checksums to a card that never comes, so whoever sends such a frame on has to finish them
/// (RFC 1071).
fn complete(frame: &mut [u8]) {
    let Some((at, protocol)) = packet(frame) else { return };
    let field = match protocol {
        6 => at + 16,
        17 => at + 6,
        _ => return,
    };
    let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
    if end > frame.len() || field + 2 > end || (protocol == 17 && frame[field..field + 2] == [0, 0]) {
        return;
    }
    frame[field..field + 2].fill(0);
    let sum = |octets: &[u8]| {
        let pair = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        octets.chunks(2).map(pair).sum::<u32>()
    };
    let mut total = sum(&frame[26..34]) + u32::from(protocol) + (end - at) as u32 + sum(&frame[at..end]);
    while total > 0xFFFF {
        total = (total & 0xFFFF) + (total >> 16);
    }
    let checksum = match !(total as u16) {
        0 => 0xFFFF,
        other => other,
    };
    frame[field..field + 2].copy_from_slice(&checksum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DNS question as it was on a cable, with a right checksum.
    fn frame() -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, 0, 31, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 79, 0, 1, 10, 76, 0, 17]);
        frame.extend([0x30, 0x39, 0, 161, 0, 11, 0xAB, 0xCD, b'a', b'b', b'c']);
        frame
    }

    #[test]
    fn a_question_to_a_device_is_seen() {
        assert_eq!(asked(&frame()), Some(Ipv4Addr::new(10, 76, 0, 17)));
        let mut other = frame();
        other[37] = 162;
        assert_eq!((asked(&other), answered(&other)), (None, None));
        other[34..38].copy_from_slice(&[0, 161, 0x30, 0x39]);
        assert_eq!((asked(&other), answered(&other)), (None, Some(Ipv4Addr::new(10, 79, 0, 1))));
        let mut fragment = frame();
        fragment[20] = 0x20;
        assert_eq!(asked(&fragment), None, "a fragment has no ports");
        assert_eq!(asked(&frame()[..30]), None);
    }

    #[test]
    fn a_finished_checksum_sums_up_to_nothing() {
        let mut whole = frame();
        complete(&mut whole);
        assert_ne!(whole[40..42], [0xAB, 0xCD]);
        // Over pseudo-header and packet, the checksum included, the sum is all ones (RFC 1071).
        let pseudo: Vec<u8> = [&whole[26..34], &[0, 17, 0, 11], &whole[34..], &[0]].concat();
        let mut sum: u32 = pseudo.chunks(2).map(|two| u32::from(two[0]) << 8 | u32::from(two[1])).sum();
        while sum > 0xFFFF {
            sum = (sum & 0xFFFF) + (sum >> 16);
        }
        assert_eq!(sum, 0xFFFF);
        let mut none = frame();
        none[40..42].fill(0);
        complete(&mut none);
        assert_eq!(none[40..42], [0, 0], "a datagram without a checksum stays so");
    }
}
