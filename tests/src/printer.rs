//! One simulated SNMP device: an SNMPv1 and v2c responder over a table of objects, with the faults that
//! real devices have. It is sans-IO: a packet and a time in, perhaps a packet and a delay out.
//!
//! It must never take anything from the node's own codec: it stands for foreign firmware.
//!
//! API: [`Device::printer`], [`Device::other`], [`Device::answer`], [`Device::truth`], [`Device::levels`], [`Behaviour`].

use crate::ber::{self, Request, V1, Value, pdu, tag};
use crate::mib::{Cell, Row, Table};
use crate::models::{Other, Printer};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

/// Error statuses of RFC 3416.
mod status {
    pub(super) const TOO_BIG: i64 = 1;
    pub(super) const NO_SUCH_NAME: i64 = 2;
    pub(super) const NOT_WRITABLE: i64 = 17;
}

/// Repetitions that a device is willing to give at once, whatever was asked.
const MAX_REPETITIONS: i64 = 100;

/// How a device differs from one that answers at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Behaviour {
    /// Between a request and its response.
    pub latency: Duration,
    /// Percent of requests that vanish.
    pub loss_percent: u8,
    /// Asleep after this much quiet, and at the start; the packet that wakes it and those of the next
    /// [`Behaviour::waking`] are lost.
    pub sleeps_after: Option<Duration>,
    /// How long waking takes; 2 to 5 s on office printers.
    pub waking: Duration,
    /// Never answers GETBULK.
    pub bulk_broken: bool,
    /// Never answers SNMPv2c.
    pub v1_only: bool,
    /// Never answers at all.
    pub silent: bool,
    /// Longest message, in octets, that it sends; more is tooBig (RFC 3416 §4.2.1).
    pub longest: usize,
}

impl Default for Behaviour {
    fn default() -> Self {
        Behaviour {
            latency: Duration::ZERO,
            loss_percent: 0,
            sleeps_after: None,
            waking: Duration::from_secs(3),
            bulk_broken: false,
            v1_only: false,
            silent: false,
            longest: 1472,
        }
    }
}

/// What a test may compare a discovery with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Truth {
    /// Where it answers.
    pub address: Ipv4Addr,
    /// Whether it is a printer.
    pub printer: bool,
    /// Maker.
    pub vendor: String,
    /// Model.
    pub model: String,
    /// Serial number; absent for what is no printer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// MAC address, lower case with colons.
    pub mac: String,
    /// prtMarkerLifeCount at the start; it grows from there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Rows of prtMarkerSuppliesTable.
    pub supplies: usize,
    /// Whether its first supply is nearly empty.
    pub low: bool,
    /// Whether it is expected to answer at all.
    pub silent: bool,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// Nothing is sent.
    Silence,
    /// `out` is to be sent after this long.
    After(Duration),
}

/// Why a packet was not answered, or how it was; for the counts of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// A well-formed request with the right community.
    Request,
    /// Undecodable, of another version, or with another community.
    Foreign,
    /// A SET: nobody may send one.
    Set,
}

/// What is left of each supply, in percent; whoever holds a clone may change it while the device answers.
pub type Levels = Arc<[AtomicU8; 8]>;

/// A simulated device.
#[derive(Debug)]
pub struct Device {
    truth: Truth,
    table: Arc<Table>,
    community: Vec<u8>,
    behaviour: Behaviour,
    name: String,
    location: String,
    mac: [u8; 6],
    pages: u64,
    pages_per_minute: u64,
    color_percent: u64,
    levels: Levels,
    rng: StdRng,
    awake_since: Option<Duration>,
    heard_at: Duration,
}

/// What all devices of a fleet have in common.
#[derive(Debug, Clone)]
pub struct Manner<'a> {
    /// Read community.
    pub community: &'a str,
    /// How fast the counters grow.
    pub pages_per_minute: u64,
    /// Decides serials, addresses, counters and levels.
    pub seed: u64,
}

impl Device {
    /// A printer at `address`. `tables` are the model's, calm and low.
    #[must_use]
    pub fn printer(
        address: Ipv4Addr,
        model: &Printer,
        tables: &(Arc<Table>, Arc<Table>),
        behaviour: Behaviour,
        manner: &Manner<'_>,
    ) -> Device {
        let mut device = Device::bare(address, model.oui, &tables.0, behaviour, manner);
        let low = device.rng.random_range(0..8) == 0;
        if low {
            device.levels[0].store(4, Ordering::Relaxed);
            device.table = Arc::clone(&tables.1);
        }
        device.pages = device.rng.random_range(100..900_000);
        device.pages_per_minute = manner.pages_per_minute;
        device.color_percent = if model.color { device.rng.random_range(5..60) } else { 0 };
        device.truth.printer = true;
        device.truth.vendor = model.vendor.to_owned();
        device.truth.model = model.model.to_owned();
        device.truth.serial = Some(invent(model.serial, u32::from(address), &mut device.rng));
        device.truth.total = Some(device.pages);
        device.truth.supplies = model.supplies.len();
        device.truth.low = low;
        device
    }

    /// Something else at `address`.
    #[must_use]
    pub fn other(
        address: Ipv4Addr,
        model: &Other,
        table: &Arc<Table>,
        behaviour: Behaviour,
        manner: &Manner<'_>,
    ) -> Device {
        let mut device = Device::bare(address, model.oui, table, behaviour, manner);
        device.truth.vendor = model.vendor.to_owned();
        device.truth.model = model.model.to_owned();
        device
    }

    fn bare(
        address: Ipv4Addr,
        oui: [u8; 3],
        table: &Arc<Table>,
        behaviour: Behaviour,
        manner: &Manner<'_>,
    ) -> Device {
        let key = u64::from(u32::from(address));
        let mut rng = StdRng::seed_from_u64(manner.seed ^ key.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // Distinct by address: 24 bits of it stand behind the maker's three octets.
        let [_, a, b, c] = address.octets();
        let mac = [oui[0], oui[1], oui[2], a ^ manner.seed as u8, b, c];
        let levels = Arc::new(std::array::from_fn(|_| AtomicU8::new(rng.random_range(12..=100))));
        Device {
            truth: Truth {
                address,
                printer: false,
                vendor: String::new(),
                model: String::new(),
                serial: None,
                mac: mac.map(|octet| format!("{octet:02x}")).join(":"),
                total: None,
                supplies: 0,
                low: false,
                silent: behaviour.silent,
            },
            table: Arc::clone(table),
            community: manner.community.as_bytes().to_vec(),
            behaviour,
            name: format!("dev{:02x}{:02x}{:02x}", mac[3], mac[4], mac[5]),
            location: format!("Building {}, floor {}", ['A', 'B', 'C'][usize::from(c % 3)], b % 5),
            mac,
            pages: 0,
            pages_per_minute: 0,
            color_percent: 0,
            levels,
            rng,
            awake_since: None,
            heard_at: Duration::ZERO,
        }
    }

    /// What it is.
    #[must_use]
    pub fn truth(&self) -> &Truth {
        &self.truth
    }

    /// The levels of its supplies, to be changed by a test.
    #[must_use]
    pub fn levels(&self) -> Levels {
        Arc::clone(&self.levels)
    }

    /// Hears one packet at `now` (since the fleet's start) and writes the response, if any, to `out`.
    /// `request` is scratch space.
    pub fn answer(
        &mut self,
        packet: &[u8],
        now: Duration,
        request: &mut Request,
        out: &mut Vec<u8>,
    ) -> (Heard, Reply) {
        if request.read(packet).is_none() || request.community != self.community {
            return (Heard::Foreign, Reply::Silence);
        }
        let heard = if request.kind == pdu::SET { Heard::Set } else { Heard::Request };
        if self.is_mute(request, now) {
            return (heard, Reply::Silence);
        }
        let answered = match request.kind {
            pdu::GET => self.get(request, now, out),
            pdu::GETNEXT => self.get_next(request, now, out),
            pdu::GETBULK if request.version != V1 => self.get_bulk(request, now, out),
            pdu::SET => self.refuse_set(request, out),
            _ => false,
        };
        (heard, if answered { Reply::After(self.behaviour.latency) } else { Reply::Silence })
    }

    fn is_mute(&mut self, request: &Request, now: Duration) -> bool {
        let asleep = self.is_asleep(now);
        let behaviour = &self.behaviour;
        asleep
            || behaviour.silent
            || (behaviour.v1_only && request.version != V1)
            || (behaviour.bulk_broken && request.kind == pdu::GETBULK)
            || (behaviour.loss_percent > 0 && self.rng.random_range(0..100) < behaviour.loss_percent)
    }

    fn is_asleep(&mut self, now: Duration) -> bool {
        let Some(after) = self.behaviour.sleeps_after else { return false };
        let quiet = now.saturating_sub(self.heard_at);
        self.heard_at = now;
        if quiet > after {
            self.awake_since = None;
        }
        let since = *self.awake_since.get_or_insert(now + self.behaviour.waking);
        now < since
    }

    /// RFC 1157 §4.1.2, RFC 3416 §4.2.1.
    fn get(&self, request: &Request, now: Duration, out: &mut Vec<u8>) -> bool {
        let mut varbinds = Vec::with_capacity(512);
        for n in 0..request.len() {
            let name = request.name(n);
            match self.table.get(name).filter(|row| fits_version(row, request.version)) {
                Some(row) => self.push(&mut varbinds, row, now),
                None if request.version == V1 => return fail(out, request, status::NO_SUCH_NAME, n + 1),
                None => {
                    let known = self.table.has_object(name);
                    let exception = if known { tag::NO_SUCH_INSTANCE } else { tag::NO_SUCH_OBJECT };
                    ber::push_varbind(&mut varbinds, &ber::encode_oid(name), Value::Empty(exception));
                }
            }
        }
        self.finish(request, &varbinds, out)
    }

    /// RFC 1157 §4.1.3, RFC 3416 §4.2.2.
    fn get_next(&self, request: &Request, now: Duration, out: &mut Vec<u8>) -> bool {
        let mut varbinds = Vec::with_capacity(512);
        for n in 0..request.len() {
            let name = request.name(n);
            match self.next(self.table.after(name), request.version) {
                Some((_, row)) => self.push(&mut varbinds, row, now),
                None if request.version == V1 => return fail(out, request, status::NO_SUCH_NAME, n + 1),
                None => {
                    ber::push_varbind(
                        &mut varbinds,
                        &ber::encode_oid(name),
                        Value::Empty(tag::END_OF_MIB_VIEW),
                    );
                }
            }
        }
        self.finish(request, &varbinds, out)
    }

    /// RFC 3416 §4.2.3: as many varbinds as fit, which is never an error.
    fn get_bulk(&self, request: &Request, now: Duration, out: &mut Vec<u8>) -> bool {
        let room = self.room(request);
        let mut varbinds = Vec::with_capacity(room);
        let once = usize::try_from(request.non_repeaters).unwrap_or(0).min(request.len());
        let repetitions = request.max_repetitions.clamp(0, MAX_REPETITIONS);
        let mut places: Vec<usize> = (0..request.len()).map(|n| self.table.after(request.name(n))).collect();
        let rounds = i64::from(once > 0).max(repetitions);
        'rounds: for round in 0..rounds {
            let mut ended = true;
            let columns = if round == 0 { 0..places.len() } else { once..places.len() };
            for n in columns {
                if n >= once && repetitions == 0 {
                    continue;
                }
                let before = varbinds.len();
                match self.table.row(places[n]) {
                    Some(row) => {
                        self.push(&mut varbinds, row, now);
                        places[n] += 1;
                        ended = false;
                    }
                    None => {
                        let last = places[n].checked_sub(1).and_then(|at| self.table.row(at));
                        let name = match last {
                            Some(row) if round > 0 => row.name.to_vec(),
                            _ => ber::encode_oid(request.name(n)),
                        };
                        ber::push_varbind(&mut varbinds, &name, Value::Empty(tag::END_OF_MIB_VIEW));
                    }
                }
                if varbinds.len() > room {
                    varbinds.truncate(before);
                    break 'rounds;
                }
            }
            if ended {
                break;
            }
        }
        self.finish(request, &varbinds, out)
    }

    fn refuse_set(&self, request: &Request, out: &mut Vec<u8>) -> bool {
        fail(out, request, if request.version == V1 { status::NO_SUCH_NAME } else { status::NOT_WRITABLE }, 1)
    }

    /// The first row at or behind `at` that the version can carry: SNMPv1 has no Counter64 (RFC 3584 §4.2.2.1).
    fn next(&self, at: usize, version: u8) -> Option<(usize, &Row)> {
        (at..)
            .map_while(|at| self.table.row(at).map(|row| (at, row)))
            .find(|(_, row)| fits_version(row, version))
    }

    /// Octets for varbinds: the header takes 40 and the community.
    fn room(&self, request: &Request) -> usize {
        self.behaviour.longest.saturating_sub(40 + request.community.len())
    }

    fn finish(&self, request: &Request, varbinds: &[u8], out: &mut Vec<u8>) -> bool {
        if varbinds.len() > self.room(request) {
            return fail(out, request, status::TOO_BIG, 0);
        }
        ber::write_response(out, request, (0, 0), varbinds);
        true
    }

    fn total(&self, now: Duration) -> u64 {
        self.pages + now.as_secs() * self.pages_per_minute / 60
    }

    fn push(&self, out: &mut Vec<u8>, row: &Row, now: Duration) {
        let filled;
        let mac;
        let total = self.total(now);
        let color = total * self.color_percent / 100;
        let octets = 1_000_000_007 + now.as_secs() * 12_345;
        let level = |n: usize| i64::from(self.levels[n % self.levels.len()].load(Ordering::Relaxed));
        let value = match &row.cell {
            Cell::Int(n) => Value::Int(*n),
            Cell::Octets(octets) => Value::Octets(octets),
            Cell::Template(text) => {
                filled = self.fill(text);
                Value::Octets(filled.as_bytes())
            }
            Cell::Oid(octets) => Value::Oid(octets),
            Cell::Gauge(n) => Value::Unsigned(tag::GAUGE32, (*n).into()),
            Cell::UpTime => Value::Unsigned(tag::TICKS, 8_640_000 + now.as_millis() as u64 / 10),
            Cell::Total => Value::Unsigned(tag::COUNTER32, total),
            Cell::Color => Value::Unsigned(tag::COUNTER32, color),
            Cell::Mono => Value::Unsigned(tag::COUNTER32, total - color),
            Cell::Traffic32 => Value::Unsigned(tag::COUNTER32, octets),
            Cell::Traffic64 => Value::Unsigned(tag::COUNTER64, octets),
            Cell::Level(n, max) => Value::Int(level(*n) * max / 100),
            Cell::Percent(n) => Value::Int(level(*n)),
            Cell::Mac(port) => {
                mac = self.port(*port);
                Value::Octets(&mac)
            }
            Cell::Name => Value::Octets(self.name.as_bytes()),
            Cell::Location => Value::Octets(self.location.as_bytes()),
            Cell::Serial => Value::Octets(self.truth.serial.as_deref().unwrap_or_default().as_bytes()),
        };
        ber::push_varbind(out, &row.name, value);
    }

    fn fill(&self, text: &str) -> String {
        text.replace("{serial}", self.truth.serial.as_deref().unwrap_or_default())
            .replace("{mac}", &self.truth.mac)
    }

    /// Ports behind the first have locally administered addresses.
    fn port(&self, n: u32) -> [u8; 6] {
        let mut mac = self.mac;
        if n > 0 {
            mac[0] |= 2;
            mac[2] ^= n as u8;
        }
        mac
    }
}

fn fits_version(row: &Row, version: u8) -> bool {
    version != V1 || row.cell != Cell::Traffic64
}

/// An error response: SNMPv1 and most errors echo the request's varbinds, tooBig of v2c has none (RFC 3416 §4.2.1).
fn fail(out: &mut Vec<u8>, request: &Request, error: i64, index: usize) -> bool {
    let echo = error != status::TOO_BIG || request.version == V1;
    ber::write_response(out, request, (error, index as i64), if echo { &request.raw_varbinds } else { &[] });
    true
}

/// Fills a pattern of serials. The last three digits and letters come from the address, so that no two
/// devices of a fleet of 1,000 share one; the rest is drawn.
fn invent(pattern: &str, key: u32, rng: &mut StdRng) -> String {
    let mut key = u64::from(key);
    let mut out: Vec<char> = pattern
        .chars()
        .rev()
        .map(|c| match c {
            '#' => {
                let digit = if key > 0 { (key % 10) as u8 } else { rng.random_range(0..10) };
                key /= 10;
                char::from(b'0' + digit)
            }
            '@' => char::from(b'A' + rng.random_range(0..26u8)),
            other => other,
        })
        .collect();
    out.reverse();
    out.into_iter().collect()
}

#[cfg(test)]
#[path = "printer_tests.rs"]
mod tests;
