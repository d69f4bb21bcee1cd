//! What a fuzzer may do to this room: any datagram, and any conversation with the engine.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use quire_proto::oid::Oid;
use snmp2::AsnReader;

use super::ber;
use super::credential::{AuthProtocol, Credential, KeyExtension, PrivProtocol, V3};
use super::engine::{Core, Icmp};
use super::message::{self, Answered, Opened, Security};
use super::prepared::Prepared;
use super::stats::Counters;
use super::usm::Keys;
use super::value::{Question, Request, Value};
use super::{Options, Patience, Sweep, SweepEvent};
use crate::dice::Dice;

const ENGINE_ID: &[u8] = b"\x80\0\x1f\x88fuzz";
const RESPONSE: u8 = 0xa2;
const REPORT: u8 = 0xa8;
/// Steps of one conversation: more are more of the same.
const STEPS: usize = 200;
/// When the engine must have come to an end after the last step, simulated seconds: a sweep of 8 addresses through all
/// stages with all retries takes some 100.
const PATIENCE: u64 = 3600;

fn user(name: &str, auth: AuthProtocol, cipher: Option<PrivProtocol>) -> Option<Arc<Credential>> {
    let parts = V3 {
        user: name,
        auth: Some((auth, "maplesyrup")),
        privacy: cipher.map(|cipher| (cipher, "pancakes and more")),
        extension: KeyExtension::Blumenthal,
        context: "",
    };
    Credential::v3(parts).ok().map(Arc::new)
}

static USERS: LazyLock<Vec<Arc<Credential>>> = LazyLock::new(|| {
    let users = [
        user("clear", AuthProtocol::Md5, None),
        user("des", AuthProtocol::Md5, Some(PrivProtocol::Des)),
        user("aes", AuthProtocol::Sha256, Some(PrivProtocol::Aes128)),
        user("long", AuthProtocol::Sha512, Some(PrivProtocol::Aes256)),
    ];
    users.into_iter().flatten().collect()
});

static CREDENTIALS: LazyLock<Vec<Arc<Credential>>> = LazyLock::new(|| {
    let plain = [Credential::v1("public").ok(), Credential::v2c("public").ok()];
    plain.into_iter().flatten().map(Arc::new).chain(USERS.iter().cloned()).collect()
});

static KEYS: LazyLock<Vec<Keys>> = LazyLock::new(|| {
    let of = |credential: &Arc<Credential>| match &**credential {
        Credential::V3(user) => Some(Keys::localized(user, ENGINE_ID)),
        Credential::V1(_) | Credential::V2c(_) => None,
    };
    USERS.iter().filter_map(of).collect()
});

/// Any octets as a datagram: its BER, its SNMPv3 header, its digest, its ciphertext, its variable bindings.
pub(crate) fn message(data: &[u8]) {
    match message::open(data) {
        Err(message::Malformed) => {}
        Ok(Opened::Community { pdu, .. }) => look(&pdu),
        Ok(Opened::V3(sealed)) => {
            for keys in KEYS.iter() {
                keys.verify(sealed.message, sealed.digest_at, sealed.digest);
                let mut clear = sealed.data.to_vec();
                if keys.decrypt(sealed.boots, sealed.time, sealed.params, &mut clear)
                    && let Ok(pdu) = message::scoped_decrypted(&clear)
                {
                    look(&pdu);
                }
            }
            if let Ok(pdu) = message::scoped(sealed.data) {
                look(&pdu);
            }
        }
    }
    if let Some(oid) = ber::oid(data) {
        round(&oid);
    }
    secure(data);
}

fn look(pdu: &Answered<'_>) {
    pdu.first_oid();
    let Ok((response, undecodable)) = pdu.response() else { return };
    assert!(undecodable as usize <= response.varbinds.len());
    for varbind in &response.varbinds {
        round(&varbind.oid);
        if let Value::ObjectId(oid) = &varbind.value {
            round(oid);
        }
    }
}

/// What was decoded is what its text and its BER say.
fn round(oid: &Oid) {
    if oid.arcs().len() < 2 {
        return;
    }
    assert_eq!(oid.to_string().parse::<Oid>().ok().as_ref(), Some(oid));
    let mut out = Vec::new();
    ber::object_identifier(&mut out, oid);
    let contents = AsnReader::from_bytes(&out).read_raw(0x06).unwrap_or_default();
    assert_eq!(ber::oid(contents).as_ref(), Some(oid), "its BER is {contents:?}");
}

/// What we seal opens again and is what it was.
fn secure(data: &[u8]) {
    let mut dice = Dice::new(data);
    let (boots, time, salt) = (dice.word() >> 1, dice.word() >> 1, u64::from(dice.word()));
    let keys = &KEYS[dice.below(KEYS.len())];
    let encrypt = keys.has_privacy();
    let security = Security {
        user: "u",
        context: "",
        engine_id: ENGINE_ID,
        boots,
        time,
        keys: Some(keys),
        encrypt,
        salt,
    };
    let mut out = Vec::new();
    message::seal_response(&mut out, &security, ber::SMALLEST_ID, 65_507, dice.rest());
    let Ok(Opened::V3(sealed)) = message::open(&out) else { panic!("our own message does not open") };
    assert!(keys.verify(sealed.message, sealed.digest_at, sealed.digest));
    assert_eq!((sealed.boots, sealed.time), (boots, time));
}

/// A datagram that answers with these variable bindings, as a device would send it.
pub(crate) fn datagram(varbinds: &[(Oid, u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    ber::element(&mut out, ber::SEQUENCE, |out| {
        ber::unsigned(out, 1);
        ber::octet_string(out, b"public");
        out.extend(pdu(RESPONSE, ber::SMALLEST_ID, 0, &bindings(varbinds)));
    });
    out
}

pub(super) fn bindings(varbinds: &[(Oid, u8, Vec<u8>)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (oid, tag, contents) in varbinds {
        ber::element(&mut out, ber::SEQUENCE, |out| {
            ber::object_identifier(out, oid);
            ber::element(out, *tag, |out| out.extend_from_slice(contents));
        });
    }
    out
}

fn pdu(tag: u8, id: u32, error: u32, varbinds: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ber::element(&mut out, tag, |out| {
        ber::unsigned(out, id);
        ber::unsigned(out, error);
        ber::unsigned(out, 0);
        ber::element(out, ber::SEQUENCE, |out| out.extend_from_slice(varbinds));
    });
    out
}

/// An engine at which somebody throws what he likes, when he likes.
struct Table {
    core: Core,
    now: Instant,
    began: Instant,
    /// What went out last and was not answered: to whom, and what.
    sent: Vec<(SocketAddr, Vec<u8>)>,
    open: BTreeSet<u64>,
    tickets: u64,
    sweeps: Vec<u32>,
}

fn peer(n: usize) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(127, 2, 0, u8::try_from(n).unwrap_or(0)), 161))
}

fn oids(dice: &mut Dice<'_>) -> Vec<Oid> {
    let count = 1 + dice.below(4);
    (0..count).map(|_| Oid::new(&[1, 3, 6, 1, u32::from(dice.octet())])).collect()
}

/// A conversation: requests, sweeps, answers that are right, late, doubled, forged or noise, ICMP, and time. Whatever
/// comes, every request ends once and every sweep ends.
pub(crate) fn engine(data: &[u8]) {
    let mut dice = Dice::new(data);
    let options = Options {
        rate: [0, 0, 50][dice.below(3)],
        retries: dice.octet(),
        window: 8,
        seed: u64::from(dice.word()) + 1,
        find_engines: dice.octet() & 1 == 1,
        ..Options::default()
    };
    let began = Instant::now();
    let core = Core::new(options, Arc::new(Counters::default()), began);
    let mut table = Table {
        core,
        now: began,
        began,
        sent: Vec::new(),
        open: BTreeSet::new(),
        tickets: 0,
        sweeps: Vec::new(),
    };
    for _ in 0..STEPS {
        if dice.is_empty() {
            break;
        }
        table.step(&mut dice);
        table.collect();
    }
    table.end();
}

impl Table {
    fn step(&mut self, dice: &mut Dice<'_>) {
        match dice.octet() % 8 {
            0 => self.ask(dice),
            1 if self.sweeps.len() < 3 => self.sweep(dice),
            1 | 2 => {
                let (from, octets) = (peer(dice.below(8)), dice.piece());
                self.core.handle_datagram(from, octets, self.now);
            }
            3 => {
                self.now += Duration::from_millis(u64::from(dice.octet()) * 20);
                self.core.handle_timeout(self.now);
            }
            4 => {
                let icmp = [Icmp::ClosedPort, Icmp::NoHost, Icmp::Prohibited][dice.below(3)];
                self.core.handle_icmp(peer(dice.below(8)), icmp, self.now);
            }
            5 => self.echo(dice),
            _ => self.answer(dice),
        }
        self.transmit();
    }

    fn ask(&mut self, dice: &mut Dice<'_>) {
        let credential = CREDENTIALS[dice.below(CREDENTIALS.len())].clone();
        let patience = [Patience::Normal, Patience::Patient, Patience::Once][dice.below(3)];
        let request = match dice.octet() % 3 {
            0 => Request::Get(oids(dice)),
            1 => Request::GetNext(oids(dice)),
            _ => Request::GetBulk {
                non_repeaters: dice.octet(),
                max_repetitions: dice.octet(),
                oids: oids(dice),
            },
        };
        self.tickets += 1;
        self.open.insert(self.tickets);
        self.core.ask(self.tickets, peer(dice.below(8)), credential, &question(request, dice), patience);
    }

    fn sweep(&mut self, dice: &mut Dice<'_>) {
        let count = dice.below(9);
        let credentials = (0..dice.below(4)).map(|_| CREDENTIALS[dice.below(CREDENTIALS.len())].clone());
        let credentials = credentials.collect();
        let sweep = Sweep { peers: Box::new((0..count).map(peer)), credentials, oids: oids(dice) };
        self.sweeps.push(self.core.sweep(sweep));
    }

    fn transmit(&mut self) {
        let mut packet = Vec::new();
        // The window bounds what can go out at one moment.
        while let Some(to) = self.core.poll_transmit(self.now, &mut packet) {
            self.sent.push((to, packet.clone()));
        }
        let excess = self.sent.len().saturating_sub(32);
        self.sent.drain(..excess);
    }

    /// What was sent comes back, changed here and there.
    fn echo(&mut self, dice: &mut Dice<'_>) {
        let Some((to, mut packet)) = self.pick(dice) else { return };
        for _ in 0..dice.below(4) {
            let (at, with) = (dice.below(256), dice.octet());
            let at = at % packet.len().max(1);
            if let Some(octet) = packet.get_mut(at) {
                *octet ^= with;
            }
        }
        self.core.handle_datagram(to, &packet, self.now);
    }

    fn pick(&mut self, dice: &mut Dice<'_>) -> Option<(SocketAddr, Vec<u8>)> {
        let at = dice.below(self.sent.len().max(1));
        self.sent.get(at).cloned()
    }

    /// An answer with the right numbers, from a device that does what it likes.
    fn answer(&mut self, dice: &mut Dice<'_>) {
        let Some((to, packet)) = self.pick(dice) else { return };
        let Some((version, id)) = numbers(&packet) else { return };
        let from = if dice.octet() < 16 { peer(dice.below(8)) } else { to };
        let tag = if dice.octet() & 3 == 0 { REPORT } else { RESPONSE };
        let error = u32::from(dice.octet() & 7);
        let varbinds = match dice.octet() & 3 {
            0 => dice.piece().to_vec(),
            // usmStats: what a Report is about.
            1 => {
                let stats = Oid::new(&[1, 3, 6, 1, 6, 3, 15, 1, 1, 1 + dice.below(7) as u32, 0]);
                bindings(&[(stats, 0x41, vec![1])])
            }
            _ => bindings(&[(Oid::new(&[1, 3, 6, 1, 2, 1, 1, 1, 0]), 4, dice.piece().to_vec())]),
        };
        let pdu = pdu(tag, id, error, &varbinds);
        let mut out = Vec::new();
        if version == 3 {
            let keys = &KEYS[dice.below(KEYS.len())];
            let secured = dice.octet() & 1 == 1;
            let security = Security {
                user: ["", "clear", "des", "aes", "long"][dice.below(5)],
                context: "",
                engine_id: if dice.octet() < 240 { ENGINE_ID } else { dice.take(40) },
                boots: dice.word() >> 1,
                time: dice.word() >> 1,
                keys: secured.then_some(keys),
                encrypt: secured && keys.has_privacy() && dice.octet() & 1 == 1,
                salt: 7,
            };
            message::seal_response(&mut out, &security, id, 65_507, &pdu);
        } else {
            ber::element(&mut out, ber::SEQUENCE, |out| {
                ber::unsigned(out, version);
                ber::octet_string(out, b"public");
                out.extend(pdu);
            });
        }
        self.core.handle_datagram(from, &out, self.now);
    }

    fn collect(&mut self) {
        while let Some((ticket, _)) = self.core.poll_event() {
            assert!(self.open.remove(&ticket), "request {ticket} ended twice");
        }
        let core = &mut self.core;
        self.sweeps.retain(|sweep| {
            while let Some(event) = core.poll_sweep_event(*sweep) {
                if matches!(event, SweepEvent::Done(_)) {
                    return false;
                }
            }
            true
        });
    }

    /// Nobody says anything any more: all must come to its end.
    fn end(&mut self) {
        let limit = self.began + Duration::from_secs(PATIENCE) + self.now.duration_since(self.began);
        loop {
            self.transmit();
            self.collect();
            if self.open.is_empty() && self.sweeps.is_empty() {
                return;
            }
            let next =
                self.core.poll_timeout().unwrap_or_else(|| panic!("waits for nothing: {:?}", self.open));
            assert!(next < limit, "does not end");
            self.now = self.now.max(next) + Duration::from_millis(1);
            self.core.handle_timeout(self.now);
        }
    }
}

/// Version and request-id or msgID of something that we sent.
fn numbers(packet: &[u8]) -> Option<(u32, u32)> {
    let mut message = AsnReader::from_bytes(AsnReader::from_bytes(packet).read_raw(ber::SEQUENCE).ok()?);
    let version = u32::try_from(message.read_asn_integer().ok()?).ok()?;
    let id = if version == 3 {
        AsnReader::from_bytes(message.read_raw(ber::SEQUENCE).ok()?).read_asn_integer().ok()?
    } else {
        message.read_asn_octetstring().ok()?;
        let tag = message.peek_byte().ok()?;
        AsnReader::from_bytes(message.read_raw(tag).ok()?).read_asn_integer().ok()?
    };
    Some((version, u32::try_from(id).ok()?))
}

/// The request as it is, or prepared for its own names or any.
fn question(request: Request, dice: &mut Dice<'_>) -> Question {
    let (Request::Get(oids) | Request::GetNext(oids) | Request::GetBulk { oids, .. }) = &request;
    match dice.octet() % 3 {
        0 => Question::Plain(request),
        1 => {
            let names: Vec<_> = oids.iter().cloned().map(Some).collect();
            Question::Prepared(Arc::new(Prepared::new(&request, names.into_iter())))
        }
        _ => {
            let names: Vec<_> = oids.iter().map(|_| None).collect();
            Question::Prepared(Arc::new(Prepared::new(&request, names.into_iter())))
        }
    }
}
