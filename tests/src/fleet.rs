//! Many simulated devices, each on its own address and socket, served by one epoll loop a thread.
//!
//! API: [`Spec`] says what, [`Fleet::start`] binds and serves until dropped, [`Fleet::set_level`] changes a
//! supply, [`Fleet::truth`] is what a discovery should find and [`Fleet::counts`] is what the devices saw of it
//! (who asked, how often, how fast), for evidence of politeness. Linux answers for all of 127.0.0.0/8 without any setup.

use crate::ber::Request;
use crate::counts::{Count, Counts};
use crate::mib::Table;
use crate::models::{OTHERS, PRINTERS};
use crate::printer::{Behaviour, Device, Levels, Manner, Reply, Truth};
use anyhow::{Context, Result, bail};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longest time in which a worker does not look whether it should stop.
const STOP_CHECK: Duration = Duration::from_millis(50);
/// Delayed responses a worker holds: 1,024 devices of 10 requests in flight each. More are dropped, as by
/// a device whose queue is full.
const DELAYED_MAX: usize = 10_240;
/// Packets taken from one socket before the others get their turn.
const BURST: usize = 8;

/// What a fleet is made of.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Address of the first device.
    pub base: Ipv4Addr,
    /// UDP port of all.
    pub port: u16,
    /// Printers.
    pub printers: usize,
    /// Devices that are no printers.
    pub others: usize,
    /// Devices in one /24 before the next is begun; fewer where `base` leaves less room.
    pub per_net: u8,
    /// Read community.
    pub community: String,
    /// Decides everything that is drawn.
    pub seed: u64,
    /// How fast counters grow.
    pub pages_per_minute: u64,
    /// Worker threads.
    pub threads: usize,
    /// Whether addresses outside 127.0.0.0/8 may be used, as in containers on networks of their own.
    pub any_address: bool,
    /// Printers with faults.
    pub faults: Faults,
}

/// How many printers have which fault; the first ones drawn get them, one each.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Sleep after 60 s, take 3 s to wake.
    pub sleepy: usize,
    /// Never answer.
    pub silent: usize,
    /// Speak SNMPv1 only.
    pub v1_only: usize,
    /// Do not answer GETBULK.
    pub bulk_broken: usize,
    /// Lose 20 % of requests.
    pub lossy: usize,
    /// Answer after 400 ms.
    pub slow: usize,
}

impl Default for Spec {
    fn default() -> Self {
        Spec {
            base: Ipv4Addr::new(127, 2, 0, 1),
            port: 1161,
            printers: 200,
            others: 50,
            per_net: 254,
            community: "public".to_owned(),
            seed: 1,
            pages_per_minute: 6,
            threads: 1,
            any_address: false,
            faults: Faults::default(),
        }
    }
}

impl Faults {
    /// The behaviour of the n-th printer drawn.
    fn behaviour(&self, n: usize) -> Behaviour {
        let plain = Behaviour::default();
        let table: [(usize, Behaviour); 6] = [
            (self.sleepy, Behaviour { sleeps_after: Some(Duration::from_secs(60)), ..plain.clone() }),
            (self.silent, Behaviour { silent: true, ..plain.clone() }),
            (self.v1_only, Behaviour { v1_only: true, ..plain.clone() }),
            (self.bulk_broken, Behaviour { bulk_broken: true, ..plain.clone() }),
            (self.lossy, Behaviour { loss_percent: 20, ..plain.clone() }),
            (self.slow, Behaviour { latency: Duration::from_millis(400), ..plain.clone() }),
        ];
        let mut before = 0;
        for (count, behaviour) in table {
            if n < before + count {
                return behaviour;
            }
            before += count;
        }
        plain
    }
}

impl Spec {
    /// Makes the devices, in order of address, without binding anything.
    pub fn devices(&self) -> Result<Vec<Device>> {
        let tables: Vec<_> = PRINTERS
            .iter()
            .map(|model| (Arc::new(Table::printer(model, false)), Arc::new(Table::printer(model, true))))
            .collect();
        let other_tables: Vec<_> = OTHERS.iter().map(|model| Arc::new(Table::other(model))).collect();
        let manner =
            Manner { community: &self.community, pages_per_minute: self.pages_per_minute, seed: self.seed };
        let mut draw: Vec<(bool, usize)> = (0..self.printers).map(|n| (true, n)).collect();
        draw.extend((0..self.others).map(|n| (false, n)));
        draw.shuffle(&mut StdRng::seed_from_u64(self.seed));
        let addresses = self.addresses()?;
        Ok(draw
            .into_iter()
            .zip(addresses)
            .map(|((printer, n), address)| {
                if printer {
                    let kind = n % PRINTERS.len();
                    let behaviour = self.faults.behaviour(n);
                    Device::printer(address, &PRINTERS[kind], &tables[kind], behaviour, &manner)
                } else {
                    let kind = n % OTHERS.len();
                    Device::other(address, &OTHERS[kind], &other_tables[kind], Behaviour::default(), &manner)
                }
            })
            .collect())
    }

    /// One address a device: `per_net` of each /24, never its first or last address.
    fn addresses(&self) -> Result<Vec<Ipv4Addr>> {
        let [_, _, _, first] = self.base.octets();
        let local = |address: &Ipv4Addr| address.is_loopback() || self.any_address;
        if !local(&self.base) {
            bail!(
                "the base address {} is not in 127.0.0.0/8: simulated devices stay on this machine",
                self.base
            );
        }
        let start = u32::from(first).clamp(1, 254);
        let per_net = u32::from(self.per_net).clamp(1, 255 - start);
        let net = u32::from(self.base) & !0xFF;
        let count = u32::try_from(self.printers + self.others).context("count the devices")?;
        let all: Vec<Ipv4Addr> =
            (0..count).map(|n| Ipv4Addr::from(net + (n / per_net) * 256 + start + n % per_net)).collect();
        match all.last() {
            Some(last) if !local(last) => bail!("{count} devices do not fit behind {}", self.base),
            _ => Ok(all),
        }
    }
}

/// A running fleet; dropping it stops it.
#[derive(Debug)]
pub struct Fleet {
    stop: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    counts: Vec<Arc<Mutex<Counts>>>,
    truth: Vec<Truth>,
    levels: BTreeMap<Ipv4Addr, Levels>,
}

impl Fleet {
    /// Binds every address and begins to answer. Fails without a trace when one is taken.
    pub fn start(spec: &Spec) -> Result<Fleet> {
        let devices = spec.devices()?;
        raise_file_limit(devices.len() as u64 + 64);
        let truth: Vec<Truth> = devices.iter().map(|device| device.truth().clone()).collect();
        let levels = devices.iter().map(|device| (device.truth().address, device.levels())).collect();
        let threads = spec.threads.max(1);
        let mut shards: Vec<Vec<Endpoint>> = (0..threads).map(|_| Vec::new()).collect();
        for (n, device) in devices.into_iter().enumerate() {
            let address = SocketAddrV4::new(device.truth().address, spec.port);
            let socket = UdpSocket::bind(address).with_context(|| format!("listen on {address}"))?;
            socket.set_nonblocking(true).context("make a socket non-blocking")?;
            shards[n % threads].push(Endpoint { socket, device });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let started = Instant::now();
        let (workers, counts) = (Vec::new(), Vec::new());
        let mut fleet = Fleet { stop: Arc::clone(&stop), workers, counts, truth, levels };
        for endpoints in shards {
            let counts =
                Arc::new(Mutex::new(Counts::new(endpoints.iter().map(|e| e.device.truth().address))));
            fleet.counts.push(Arc::clone(&counts));
            let mut worker = Worker::new(endpoints, counts, started)?;
            let stop = Arc::clone(&stop);
            let thread = std::thread::Builder::new().name("fleet".to_owned());
            let thread = thread.spawn(move || worker.serve(&stop)).context("start a worker")?;
            fleet.workers.push(thread);
        }
        Ok(fleet)
    }

    /// What it simulates, in order of address.
    #[must_use]
    pub fn truth(&self) -> &[Truth] {
        &self.truth
    }

    /// The printers that answer.
    pub fn printers(&self) -> impl Iterator<Item = &Truth> {
        self.truth.iter().filter(|truth| truth.printer && !truth.silent)
    }

    /// From now on so much is left of a device's `n`-th supply, in percent.
    pub fn set_level(&self, address: Ipv4Addr, n: usize, percent: u8) -> Result<()> {
        let levels = self.levels.get(&address).with_context(|| format!("no device at {address}"))?;
        levels.get(n).context("no such supply")?.store(percent, Ordering::Relaxed);
        Ok(())
    }

    /// What each device has seen so far.
    #[must_use]
    pub fn counts(&self) -> Vec<Count> {
        let mut all: Vec<Count> = Vec::with_capacity(self.truth.len());
        for counts in &self.counts {
            all.extend(counts.lock().unwrap_or_else(PoisonError::into_inner).snapshot());
        }
        all.sort_by_key(|count| count.address);
        all
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

/// Each device has a socket; the soft limit of 1,024 files is too low for a large fleet.
fn raise_file_limit(wanted: u64) {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted + 1024
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, (wanted + 1024).min(hard), hard);
    }
}

#[derive(Debug)]
struct Endpoint {
    socket: UdpSocket,
    device: Device,
}

/// A response that waits for its device's latency; ordered so that the heap gives the earliest.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Delayed {
    due: std::cmp::Reverse<Duration>,
    endpoint: usize,
    peer: SocketAddr,
    packet: Vec<u8>,
}

struct Worker {
    endpoints: Vec<Endpoint>,
    counts: Arc<Mutex<Counts>>,
    epoll: Epoll,
    started: Instant,
    delayed: BinaryHeap<Delayed>,
}

impl Worker {
    fn new(endpoints: Vec<Endpoint>, counts: Arc<Mutex<Counts>>, started: Instant) -> Result<Worker> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("make an epoll")?;
        for (n, endpoint) in endpoints.iter().enumerate() {
            epoll
                .add(&endpoint.socket, EpollEvent::new(EpollFlags::EPOLLIN, n as u64))
                .context("watch a socket")?;
        }
        Ok(Worker { endpoints, counts, epoll, started, delayed: BinaryHeap::new() })
    }

    fn serve(&mut self, stop: &AtomicBool) {
        let mut events = vec![EpollEvent::empty(); 1024];
        let mut scratch = Scratch::default();
        while !stop.load(Ordering::Relaxed) {
            let now = self.started.elapsed();
            let wait =
                self.delayed.peek().map_or(STOP_CHECK, |next| next.due.0.saturating_sub(now)).min(STOP_CHECK);
            // Round up, else the last millisecond before a due response is spent spinning.
            let wait = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(wait)) {
                Ok(ready) => ready,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(_) => return,
            };
            let now = self.started.elapsed();
            let counts = Arc::clone(&self.counts);
            let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
            // With few ready sockets a burst saves calls to epoll; with many, every one gets its turn.
            let burst = if ready > 32 { 1 } else { BURST };
            for event in &events[..ready] {
                self.hear(event.data() as usize, burst, now, &mut scratch, &mut counts);
            }
            self.send_due(now, &mut counts);
        }
    }

    fn hear(&mut self, n: usize, burst: usize, now: Duration, scratch: &mut Scratch, counts: &mut Counts) {
        let endpoint = &mut self.endpoints[n];
        for _ in 0..burst {
            let Ok((length, peer)) = endpoint.socket.recv_from(&mut scratch.input) else { return };
            let packet = &scratch.input[..length];
            let (heard, reply) =
                endpoint.device.answer(packet, now, &mut scratch.request, &mut scratch.output);
            counts.received(n, heard, length, peer, now);
            match reply {
                Reply::Silence => {}
                Reply::After(Duration::ZERO) => {
                    if endpoint.socket.send_to(&scratch.output, peer).is_ok() {
                        counts.answered(n, scratch.output.len());
                    }
                }
                Reply::After(latency) if self.delayed.len() < DELAYED_MAX => {
                    counts.waits(n);
                    let due = std::cmp::Reverse(now + latency);
                    self.delayed.push(Delayed { due, endpoint: n, peer, packet: scratch.output.clone() });
                }
                Reply::After(_) => {}
            }
        }
    }

    fn send_due(&mut self, now: Duration, counts: &mut Counts) {
        while self.delayed.peek().is_some_and(|next| next.due.0 <= now) {
            let Some(next) = self.delayed.pop() else { return };
            counts.waited(next.endpoint);
            if self.endpoints[next.endpoint].socket.send_to(&next.packet, next.peer).is_ok() {
                counts.answered(next.endpoint, next.packet.len());
            }
        }
    }
}

struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
    request: Request,
}

impl Default for Scratch {
    fn default() -> Self {
        Scratch { input: vec![0; 65_536], output: Vec::with_capacity(1_500), request: Request::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ber;
    use std::collections::HashSet;

    #[test]
    fn addresses_avoid_the_ends_of_a_net_and_serials_and_macs_are_unique() {
        let spec = Spec { printers: 900, others: 100, per_net: 100, ..Spec::default() };
        let devices = spec.devices().unwrap();
        let truth: Vec<&Truth> = devices.iter().map(Device::truth).collect();
        assert!(truth.iter().all(|t| !matches!(t.address.octets()[3], 0 | 255)));
        let unique = |keys: Vec<String>| keys.iter().collect::<HashSet<_>>().len() == keys.len();
        assert!(unique(truth.iter().map(|t| t.mac.clone()).collect()));
        assert!(unique(truth.iter().filter_map(|t| t.serial.clone()).collect()));
        assert_eq!(truth.iter().filter(|t| t.printer).count(), 900);
    }

    #[test]
    fn an_address_off_this_machine_is_refused() {
        let spec = Spec { base: Ipv4Addr::new(10, 0, 0, 1), ..Spec::default() };
        assert!(spec.devices().unwrap_err().to_string().contains("127.0.0.0/8"));
        assert!(Spec { any_address: true, ..spec }.devices().is_ok());
    }

    #[test]
    fn devices_answer_over_udp_and_count_who_asked() {
        let spec = Spec {
            base: Ipv4Addr::new(127, 91, 0, 1),
            port: 21_161,
            printers: 3,
            others: 1,
            faults: Faults { slow: 1, ..Faults::default() },
            ..Spec::default()
        };
        let fleet = Fleet::start(&spec).unwrap();
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let packet =
            ber::write_request(ber::V2C, "public", ber::pdu::GET, 9, (0, 0), &[&[1, 3, 6, 1, 2, 1, 1, 1, 0]]);
        for truth in fleet.truth() {
            socket.send_to(&packet, (truth.address, spec.port)).unwrap();
        }
        let mut heard = HashSet::new();
        let mut buffer = [0; 2000];
        while heard.len() < 4 {
            let (length, from) = socket.recv_from(&mut buffer).unwrap();
            assert_eq!(ber::read_response(&buffer[..length]).unwrap().0, 0);
            heard.insert(from);
        }
        let counts = fleet.counts();
        assert!(
            counts.iter().all(|count| count.received == 1 && count.answered == 1 && count.peers.len() == 1)
        );
        assert!(Fleet::start(&spec).unwrap_err().to_string().contains("127.91.0.1:21161"));
    }
}
