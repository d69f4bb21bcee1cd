//! A simulated network for the core's tests: responders, loss, doubling and reordering, all from one seed.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use snmp2::AsnReader;

use super::ber;
use super::engine::{Core, Told};
use super::message::{self, Opened, Sealed, Security};
use super::pace::Random;
use super::stats::Counters;
use super::usm::Keys;
use super::{Credential, Options, Stats, SweepEvent};

/// A Response or Report PDU; `varbinds` are whole, encoded bindings.
pub(super) fn pdu(report: bool, id: i64, error_status: u32, varbinds: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ber::element(&mut out, if report { 0xa8 } else { 0xa2 }, |out| {
        ber::unsigned(out, u32::try_from(id).unwrap());
        ber::unsigned(out, error_status);
        ber::unsigned(out, 0);
        ber::element(out, ber::SEQUENCE, |out| out.extend_from_slice(varbinds));
    });
    out
}

/// One encoded binding: any OID text, any tag, any contents.
pub(super) fn varbind(oid: &str, tag: u8, contents: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ber::element(&mut out, ber::SEQUENCE, |out| {
        ber::object_identifier(out, &oid.parse().unwrap());
        ber::element(out, tag, |out| out.extend_from_slice(contents));
    });
    out
}

/// A whole SNMPv1 or v2c message around a PDU.
pub(super) fn community_message(v1: bool, community: &[u8], pdu: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ber::element(&mut out, ber::SEQUENCE, |out| {
        ber::unsigned(out, u32::from(!v1));
        ber::octet_string(out, community);
        out.extend_from_slice(pdu);
    });
    out
}

/// What a responder speaks.
pub(super) enum Speaks {
    V1,
    V2c,
    V3(Authority),
}

/// An authoritative engine with one user.
pub(super) struct Authority {
    pub(super) user: Arc<Credential>,
    pub(super) engine_id: Vec<u8>,
    pub(super) boots: u32,
    /// Engine time at the beginning of the world, seconds.
    pub(super) time: u32,
    pub(super) max_size: u32,
    /// Messages whose digest was checked.
    pub(super) attempts: u32,
    pub(super) refused: u32,
    /// Drops messages with a wrong digest, as many devices do, instead of saying so.
    pub(super) mute: bool,
}

impl Authority {
    pub(super) fn new(user: &Arc<Credential>) -> Authority {
        let engine_id = b"\x80\0\x1f\x88sim".to_vec();
        Authority {
            user: user.clone(),
            engine_id,
            boots: 5,
            time: 1000,
            max_size: 65_507,
            attempts: 0,
            refused: 0,
            mute: false,
        }
    }

    fn keys(&self) -> Keys {
        let Credential::V3(user) = &*self.user else { unreachable!() };
        Keys::localized(user, &self.engine_id)
    }

    fn reply(&self, sealed: &Sealed<'_>, now: Duration, auth: bool, encrypt: bool, pdu: &[u8]) -> Vec<u8> {
        let keys = self.keys();
        let security = Security {
            user: std::str::from_utf8(sealed.user).unwrap(),
            context: "",
            engine_id: &self.engine_id,
            boots: self.boots,
            time: self.time + now.as_secs() as u32,
            keys: auth.then_some(&keys),
            encrypt,
            salt: now.as_micros() as u64,
        };
        let mut out = Vec::new();
        message::seal_response(&mut out, &security, u32::try_from(sealed.id).unwrap(), self.max_size, pdu);
        out
    }

    fn report(&self, sealed: &Sealed<'_>, now: Duration, auth: bool, counter: u32) -> Option<Vec<u8>> {
        let stats = varbind(&format!("1.3.6.1.6.3.15.1.1.{counter}.0"), 0x41, &[1]);
        Some(self.reply(sealed, now, auth, false, &pdu(true, sealed.id, 0, &stats)))
    }

    /// RFC 3414 section 3.2.
    fn receive(&mut self, sealed: &Sealed<'_>, now: Duration) -> Option<Vec<u8>> {
        let Credential::V3(user) = &*self.user else { unreachable!() };
        if sealed.engine_id != self.engine_id {
            return self.report(sealed, now, false, 4);
        }
        if sealed.user != user.name().as_bytes() {
            return self.report(sealed, now, false, 3);
        }
        let keys = self.keys();
        if sealed.authenticated {
            self.attempts += 1;
            if !keys.verify(sealed.message, sealed.digest_at, sealed.digest) {
                self.refused += 1;
                if self.mute {
                    return None;
                }
                return self.report(sealed, now, false, 5);
            }
            let time = self.time + now.as_secs() as u32;
            if sealed.boots != self.boots || sealed.time.abs_diff(time) > 150 {
                return self.report(sealed, now, true, 2);
            }
        }
        let mut data = sealed.data.to_vec();
        if sealed.encrypted {
            if !keys.decrypt(sealed.boots, sealed.time, sealed.params, &mut data) {
                return self.report(sealed, now, false, 6);
            }
            data = AsnReader::from_bytes(&data).read_raw(ber::SEQUENCE).ok()?.to_vec();
        }
        let mut scoped = AsnReader::from_bytes(&data);
        scoped.read_asn_octetstring().ok()?;
        scoped.read_asn_octetstring().ok()?;
        let tag = scoped.peek_byte().ok()?;
        let id = AsnReader::from_bytes(scoped.read_raw(tag).ok()?).read_asn_integer().ok()?;
        let answer = pdu(false, id, 0, &varbind("1.3.6.1.2.1.1.1.0", 4, b"sim"));
        Some(self.reply(sealed, now, sealed.authenticated, sealed.encrypted, &answer))
    }
}

/// A responder.
pub(super) struct Device {
    pub(super) speaks: Speaks,
    /// Hears nothing before this.
    pub(super) awake_at: Duration,
    /// Answers come from there instead.
    pub(super) answers_from: Option<SocketAddr>,
    pub(super) error_status: u32,
}

impl Device {
    pub(super) fn new(speaks: Speaks) -> Device {
        Device { speaks, awake_at: Duration::ZERO, answers_from: None, error_status: 0 }
    }

    pub(super) fn receive(&mut self, datagram: &[u8], now: Duration) -> Option<Vec<u8>> {
        if now < self.awake_at {
            return None;
        }
        let mut message =
            AsnReader::from_bytes(AsnReader::from_bytes(datagram).read_raw(ber::SEQUENCE).unwrap());
        let version = message.read_asn_integer().unwrap();
        let v1 = match &mut self.speaks {
            Speaks::V3(authority) => {
                let Ok(Opened::V3(sealed)) = message::open(datagram) else { return None };
                return authority.receive(&sealed, now);
            }
            Speaks::V1 if version == 0 => true,
            Speaks::V2c if version == 1 => false,
            Speaks::V1 | Speaks::V2c => return None,
        };
        let community = message.read_asn_octetstring().unwrap();
        if community != b"public" {
            return None;
        }
        let tag = message.peek_byte().unwrap();
        let id = AsnReader::from_bytes(message.read_raw(tag).unwrap()).read_asn_integer().unwrap();
        let answer = pdu(false, id, self.error_status, &varbind("1.3.6.1.2.1.1.1.0", 4, b"sim"));
        Some(community_message(v1, community, &answer))
    }
}

/// A responder with one user for tests of other rooms, silent to digests that are wrong.
pub(crate) struct Mute(Device);

impl Mute {
    pub(crate) fn new(user: &Arc<Credential>) -> Mute {
        Mute(Device::new(Speaks::V3(Authority { mute: true, ..Authority::new(user) })))
    }

    pub(crate) fn answer(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        self.0.receive(datagram, Duration::ZERO)
    }

    /// Authenticated messages that came.
    pub(crate) fn attempts(&self) -> u32 {
        let Speaks::V3(authority) = &self.0.speaks else { unreachable!() };
        authority.attempts
    }
}

/// What the wire does.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Weather {
    /// Of 1000 packets each way.
    pub(super) lost: u64,
    pub(super) doubled: u64,
    /// One-way delay, evenly between these, microseconds.
    pub(super) delay: (u64, u64),
    /// Packets a second that the way to the devices takes, behind a queue of 50 ms; 0: any number.
    pub(super) bottleneck: u64,
}

/// From whom, to which device (`None`: to the core), and what.
type Datagram = (SocketAddr, Option<SocketAddr>, Vec<u8>);

/// The world: a core, its wire, the devices, and a clock that jumps from event to event.
pub(super) struct World {
    pub(super) core: Core,
    pub(super) counters: Arc<Counters>,
    pub(super) devices: HashMap<SocketAddr, Device>,
    pub(super) weather: Weather,
    pub(super) now: Duration,
    /// Every transmission: when and to whom.
    pub(super) sent: Vec<(Duration, SocketAddr)>,
    pub(super) last_datagram: Vec<u8>,
    began: Instant,
    random: Random,
    /// When the bottleneck will have passed on what waits before it.
    clear_at: Duration,
    /// By when it arrives.
    wire: BTreeMap<(Duration, u64), Datagram>,
    sequence: u64,
}

impl World {
    pub(super) fn new(options: Options, weather: Weather) -> World {
        let began = Instant::now();
        let counters = Arc::new(Counters::default());
        World {
            random: Random::new(options.seed ^ 0xdead_beef),
            core: Core::new(options, counters.clone(), began),
            counters,
            devices: HashMap::new(),
            weather,
            now: Duration::ZERO,
            sent: Vec::new(),
            last_datagram: Vec::new(),
            began,
            clear_at: Duration::ZERO,
            wire: BTreeMap::new(),
            sequence: 0,
        }
    }

    pub(super) fn instant(&self) -> Instant {
        self.began + self.now
    }

    pub(super) fn stats(&self) -> Stats {
        self.counters.read()
    }

    fn launch(&mut self, from: SocketAddr, to: Option<SocketAddr>, datagram: &[u8]) {
        let copies = if self.random.below(1000) < self.weather.doubled { 2 } else { 1 };
        for _ in 0..copies {
            let Some(queued) = self.queue(to.is_some()) else { continue };
            if self.random.below(1000) < self.weather.lost {
                continue;
            }
            let (least, most) = self.weather.delay;
            let delay = queued + Duration::from_micros(least + self.random.below(most - least + 1));
            self.sequence += 1;
            self.wire.insert((self.now + delay, self.sequence), (from, to, datagram.to_vec()));
        }
    }

    /// How long a packet waits before the bottleneck; `None` when its queue is full.
    fn queue(&mut self, outward: bool) -> Option<Duration> {
        const LONGEST: Duration = Duration::from_millis(50);
        if self.weather.bottleneck == 0 || !outward {
            return Some(Duration::ZERO);
        }
        let waits = self.clear_at.saturating_sub(self.now);
        if waits > LONGEST {
            return None;
        }
        self.clear_at = self.clear_at.max(self.now) + Duration::from_secs(1) / self.weather.bottleneck as u32;
        Some(waits)
    }

    /// Sends all that may be sent now.
    fn flush(&mut self) {
        let mut packet = Vec::new();
        while let Some(peer) = self.core.poll_transmit(self.instant(), &mut packet) {
            self.sent.push((self.now, peer));
            self.last_datagram.clone_from(&packet);
            self.launch(peer, Some(peer), &packet);
        }
    }

    /// Goes to the next moment at which something happens, but not beyond `until`; false when that is reached.
    pub(super) fn step(&mut self, until: Duration) -> bool {
        self.flush();
        let arrival = self.wire.keys().next().map(|(at, _)| *at);
        let timeout = self.core.poll_timeout().map(|at| at.saturating_duration_since(self.began));
        let Some(at) = arrival.into_iter().chain(timeout).min().filter(|at| *at <= until) else {
            self.now = until;
            return false;
        };
        self.now = self.now.max(at);
        while let Some(first) = self.wire.first_entry().filter(|first| first.key().0 <= self.now) {
            let (from, to, datagram) = first.remove();
            match to {
                None => self.core.handle_datagram(from, &datagram, self.instant()),
                Some(to) => {
                    let now = self.now;
                    let Some(device) = self.devices.get_mut(&to) else { continue };
                    let from = device.answers_from.unwrap_or(to);
                    if let Some(answer) = device.receive(&datagram, now) {
                        self.launch(from, None, &answer);
                    }
                }
            }
        }
        self.core.handle_timeout(self.instant());
        true
    }

    /// Runs until one request has its result.
    pub(super) fn result(&mut self) -> Told {
        let until = self.now + Duration::from_secs(600);
        loop {
            if let Some(told) = self.core.poll_event() {
                return told;
            }
            assert!(self.step(until), "no result within ten minutes");
        }
    }

    /// Runs a sweep to its end and gives all of its events but progress.
    pub(super) fn sweep_events(&mut self, sweep: u32) -> Vec<SweepEvent> {
        let until = self.now + Duration::from_secs(36_000);
        let mut events = Vec::new();
        loop {
            while let Some(event) = self.core.poll_sweep_event(sweep) {
                match event {
                    SweepEvent::Progress { .. } => {}
                    SweepEvent::Done(_) => {
                        events.push(event);
                        return events;
                    }
                    _ => events.push(event),
                }
            }
            assert!(self.step(until), "the sweep did not end");
        }
    }
}
