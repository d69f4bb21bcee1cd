//! The core under simulated time, loss, doubling and reordering. Every failure names the seed that replays it.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;
use crate::snmp::Request;
use crate::snmp::credential::{AuthProtocol, PrivProtocol, V3};
use crate::snmp::sim::{Authority, Device, Speaks, Weather, World, community_message, pdu, varbind};
use crate::snmp::{Oid, Value};

const CALM: Weather = Weather { lost: 0, doubled: 0, delay: (20_000, 20_000), bottleneck: 0 };

fn options() -> Options {
    Options { rate: 0, seed: 1, ..Options::default() }
}

fn peer(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x7f02_0000 + n), 1161))
}

fn oids() -> Vec<Oid> {
    vec!["1.3.6.1.2.1.1.1.0".parse().unwrap()]
}

fn get() -> Question {
    Request::Get(oids()).into()
}

fn public() -> Arc<Credential> {
    Arc::new(Credential::v2c("public").unwrap())
}

fn user(auth: &str, privacy: Option<&str>) -> Arc<Credential> {
    let parts = V3 {
        user: "meter",
        auth: Some((AuthProtocol::Sha256, auth)),
        privacy: privacy.map(|password| (PrivProtocol::Aes128, password)),
        ..V3::default()
    };
    Arc::new(Credential::v3(parts).unwrap())
}

fn world_with(device: Device) -> World {
    let mut world = World::new(options(), CALM);
    world.devices.insert(peer(1), device);
    world
}

fn ask(world: &mut World, credential: &Arc<Credential>, patience: Patience) -> Result<Answer, Failure> {
    world.core.ask(9, peer(1), credential.clone(), &get(), patience);
    let (ticket, result) = world.result();
    assert_eq!(ticket, 9);
    result.map(|answer| *answer)
}

#[test]
fn a_probe_is_small() {
    // Slot, its place among the free, the entry by id (u32 pair), its turn, alarm and place in the queue; the maps
    // at their emptiest, 7/16 full after growing.
    let maps = (8 + 1 + size_of::<(SocketAddr, u32)>() + 1) * 16 / 7;
    let probe = size_of::<crate::snmp::table::Slot>() + 4 + maps + 2 * size_of::<Alarm>();
    assert!(probe <= 256, "{probe} octets");
}

#[test]
fn an_answer_is_measured_from_the_transmission_that_it_answers() {
    let mut world = world_with(Device::new(Speaks::V2c));
    // The first transmission comes back after the second went out.
    world.weather.delay = (700_000, 700_000);
    let answer = ask(&mut world, &public(), Patience::Normal).unwrap();
    assert_eq!(answer.rtt, Duration::from_millis(1400));
    assert!(world.sent.len() >= 2);
    assert_eq!(answer.response.varbinds.len(), 1);
}

#[test]
fn silence_is_retried_and_reported() {
    let mut world = World::new(options(), CALM);
    assert_eq!(ask(&mut world, &public(), Patience::Normal).unwrap_err(), Failure::Timeout);
    assert_eq!(world.sent.len(), 3);
    assert_eq!(ask(&mut world, &public(), Patience::Once).unwrap_err(), Failure::Timeout);
    assert_eq!(world.sent.len(), 4);
    assert_eq!(world.core.table.len(), 0);
}

#[test]
fn a_sleeping_device_is_waited_for() {
    let asleep = || Device { awake_at: Duration::from_millis(5900), ..Device::new(Speaks::V2c) };
    let mut world = world_with(asleep());
    assert_eq!(ask(&mut world, &public(), Patience::Normal).unwrap_err(), Failure::Timeout);
    let mut world = world_with(asleep());
    assert!(ask(&mut world, &public(), Patience::Patient).is_ok());
    assert!(world.now < Duration::from_millis(6500), "{:?}", world.now);
    // A closed port is not believed of a device that is just waking; of others it is.
    world.core.ask(1, peer(2), public(), &get(), Patience::Patient);
    world.step(world.now + Duration::from_millis(1));
    world.core.handle_icmp(peer(2), Icmp::ClosedPort, world.instant());
    assert!(world.core.poll_event().is_none());
    world.core.ask(2, peer(3), public(), &get(), Patience::Normal);
    world.step(world.now + Duration::from_millis(1));
    world.core.handle_icmp(peer(3), Icmp::ClosedPort, world.instant());
    assert_eq!(world.core.poll_event().unwrap().1.unwrap_err(), Failure::Unreachable);
}

#[test]
fn another_address_of_the_same_device_may_answer() {
    let elsewhere: SocketAddr = "127.9.9.9:50000".parse().unwrap();
    for device in [Device::new(Speaks::V2c), Device::new(Speaks::V3(Authority::new(&user("password", None))))]
    {
        let mut world = world_with(Device { answers_from: Some(elsewhere), ..device });
        let v3 = user("password", None);
        let v2c = public();
        let found = [&v2c, &v3].map(|credential| ask(&mut world, credential, Patience::Normal));
        let answers: Vec<_> = found.into_iter().flatten().collect();
        assert_eq!(answers.len(), 1);
        assert_eq!(answers[0].from, elsewhere);
    }
}

#[test]
fn too_big_is_an_answer() {
    let mut world = world_with(Device { error_status: 1, ..Device::new(Speaks::V2c) });
    assert_eq!(ask(&mut world, &public(), Patience::Normal).unwrap().response.error_status, 1);
}

#[test]
fn what_does_not_fit_the_request_is_ignored_and_counted() {
    let mut world = World::new(options(), CALM);
    world.core.ask(1, peer(1), public(), &get(), Patience::Once);
    world.step(Duration::ZERO);
    let sent = world.last_datagram.clone();
    let at = sent.windows(2).position(|window| window == [2, 4]).unwrap() + 2;
    let id = i64::from(u32::from_be_bytes(sent[at..at + 4].try_into().unwrap()));
    let binding = varbind("1.3.6.1.2.1.1.1.0", 4, b"x");
    let now = world.instant();
    let core = &mut world.core;
    core.handle_datagram(
        peer(1),
        &community_message(false, b"public", &pdu(false, id ^ 0x100, 0, &binding)),
        now,
    );
    core.handle_datagram(
        peer(1),
        &community_message(false, b"public", &pdu(false, id + 1, 0, &binding)),
        now,
    );
    core.handle_datagram(peer(1), &community_message(false, b"other", &pdu(false, id, 0, &binding)), now);
    core.handle_datagram(peer(1), &community_message(true, b"public", &pdu(false, id, 0, &binding)), now);
    core.handle_datagram(peer(1), &community_message(false, b"public", &pdu(true, id, 0, &binding)), now);
    core.handle_datagram(peer(1), b"\x30\x03abc", now);
    // The request itself, sent back at us.
    core.handle_datagram(peer(1), &sent, now);
    assert!(core.poll_event().is_none());
    core.handle_datagram(peer(1), &community_message(false, b"public", &pdu(false, id, 0, &binding)), now);
    assert!(core.poll_event().unwrap().1.is_ok());
    core.handle_datagram(peer(1), &community_message(false, b"public", &pdu(false, id, 0, &binding)), now);
    let stats = world.stats();
    assert_eq!((stats.unmatched, stats.mismatched, stats.malformed), (3, 2, 3));
}

#[test]
fn one_peer_is_asked_one_thing_at_a_time_and_its_queue_is_bounded() {
    let mut world = world_with(Device::new(Speaks::V2c));
    for ticket in 0..40 {
        world.core.ask(ticket, peer(1), public(), &get(), Patience::Normal);
    }
    let results: Vec<_> = (0..40).map(|_| world.result()).collect();
    assert_eq!(results.iter().filter(|(_, result)| *result == Err(Failure::Busy)).count(), 40 - 1 - QUEUE);
    for pair in world.sent.windows(2) {
        assert!(pair[1].0 - pair[0].0 >= Duration::from_millis(40), "two in flight");
    }
}

impl PartialEq for Answer {
    fn eq(&self, other: &Answer) -> bool {
        self.response == other.response
    }
}

#[test]
fn a_user_costs_two_exchanges_once_and_one_afterwards_however_long_it_idled() {
    let user = user("password", Some("private password"));
    let mut world = world_with(Device::new(Speaks::V3(Authority::new(&user))));
    let answer = ask(&mut world, &user, Patience::Normal).unwrap();
    assert_eq!(answer.engine_id.as_deref(), Some(&b"\x80\0\x1f\x88sim"[..]));
    // Discovery, synchronisation (twice only where the hint of boots and time is wrong), question.
    assert_eq!(world.sent.len(), 3);
    // snmp2's session fails once whenever 150 seconds have passed.
    for idle in [160, 1000, 100_000] {
        world.step(world.now);
        world.now += Duration::from_secs(idle);
        let before = world.sent.len();
        assert!(ask(&mut world, &user, Patience::Once).is_ok());
        assert_eq!(world.sent.len(), before + 1, "after {idle} s");
    }
    // A reboot costs one Report.
    let Speaks::V3(authority) = &mut world.devices.get_mut(&peer(1)).unwrap().speaks else { unreachable!() };
    authority.boots = 1;
    let before = world.sent.len();
    assert!(ask(&mut world, &user, Patience::Once).is_ok());
    assert_eq!(world.sent.len(), before + 2);
}

#[test]
fn forged_boots_change_nothing() {
    let user = user("password", None);
    let mut world = world_with(Device::new(Speaks::V3(Authority::new(&user))));
    assert!(ask(&mut world, &user, Patience::Normal).is_ok());
    for authenticated in [true, false] {
        world.core.ask(2, peer(1), user.clone(), &get(), Patience::Normal);
        world.step(world.now);
        // Answers with the right msgID, boots of 2^31-1, and a digest that is wrong or missing.
        let forged = forge(&world.last_datagram, authenticated);
        world.core.handle_datagram(peer(1), &forged, world.instant());
        let (_, result) = world.result();
        assert!(result.is_ok(), "{result:?}");
        assert!(ask(&mut world, &user, Patience::Once).is_ok());
    }
    assert_eq!(world.stats().wrong_digest, 1);
    assert_eq!(world.stats().lower_level, 1);
}

/// An answer to `request` by someone who saw it but has not the password.
fn forge(request: &[u8], authenticated: bool) -> Vec<u8> {
    use crate::snmp::message::{Opened, Security, open, seal_response};
    use crate::snmp::usm::Keys;
    let Ok(Opened::V3(sealed)) = open(request) else { panic!("not SNMPv3") };
    let stranger = user("guessed password", None);
    let Credential::V3(stranger) = &*stranger else { unreachable!() };
    let keys = Keys::localized(stranger, sealed.engine_id);
    let security = Security {
        user: "meter",
        context: "",
        engine_id: sealed.engine_id,
        boots: i32::MAX as u32,
        time: i32::MAX as u32,
        keys: authenticated.then_some(&keys),
        encrypt: false,
        salt: 0,
    };
    let mut out = Vec::new();
    let answer = pdu(false, sealed.id, 0, &varbind("1.3.6.1.2.1.1.1.0", 4, b"forged"));
    seal_response(&mut out, &security, sealed.id as u32, 65_507, &answer);
    out
}

#[test]
fn devices_with_odd_engines_are_read() {
    let user = user("password", Some("private password"));
    for (boots, max_size) in [(0, 65_507), (1, 65_535), (1, i32::MAX as u32), (1, 484)] {
        let authority = Authority { boots, max_size, ..Authority::new(&user) };
        let mut world = world_with(Device::new(Speaks::V3(authority)));
        assert!(ask(&mut world, &user, Patience::Once).is_ok(), "boots {boots}, msgMaxSize {max_size}");
    }
}

#[test]
fn refusals_are_told_apart() {
    let right = user("password", Some("private password"));
    for (credential, failure) in [
        (user("wrong password", None), Failure::WrongDigest),
        (user("password", Some("wrong private password")), Failure::Decryption),
    ] {
        let mut world = world_with(Device::new(Speaks::V3(Authority::new(&right))));
        assert_eq!(ask(&mut world, &credential, Patience::Normal).unwrap_err(), failure);
        // And the right one is let in afterwards.
        assert!(ask(&mut world, &right, Patience::Normal).is_ok());
    }
}

#[test]
fn a_sweep_tries_each_user_once_at_each_device() {
    let right = user("password", None);
    let wrong = || user("wrong password", None);
    for seed in 1..50 {
        let weather = Weather { lost: 200, doubled: 0, ..CALM };
        let mut world = World::new(Options { seed, ..options() }, weather);
        for n in 0..20 {
            world.devices.insert(peer(n), Device::new(Speaks::V3(Authority::new(&right))));
        }
        let peers = Box::new((0..20).map(peer));
        let sweep = world.core.sweep(Sweep { peers, credentials: vec![wrong(), wrong()], oids: oids() });
        world.sweep_events(sweep);
        for device in world.devices.values() {
            let Speaks::V3(authority) = &device.speaks else { unreachable!() };
            assert!(authority.attempts <= 2, "seed {seed}: {} attempts with two users", authority.attempts);
        }
    }
}

#[test]
fn a_sweep_under_a_ceiling_stays_under_it_and_asks_nobody_twice_at_once() {
    let mut world = World::new(Options { rate: 500, ..options() }, CALM);
    let sweep = world.core.sweep(Sweep {
        peers: Box::new((0..1000).map(peer)),
        credentials: vec![public()],
        oids: oids(),
    });
    world.sweep_events(sweep);
    for window in world.sent.windows(504) {
        assert!(window[503].0 - window[0].0 >= Duration::from_secs(1));
    }
    assert_eq!(world.sent.len(), 1000 * 4, "three transmissions and one engine discovery");
    let silent = Sweep::packets_when_silent(&[public()], &options());
    assert_eq!(world.sent.len(), 1000 * silent as usize);
}

#[test]
fn a_sweep_that_nobody_reads_stops_pulling() {
    let mut world = World::new(options(), CALM);
    for n in 0..20_000 {
        world.devices.insert(peer(n), Device::new(Speaks::V2c));
    }
    world.core.options.window = 100;
    let sweep = Sweep { peers: Box::new((0..20_000).map(peer)), credentials: vec![public()], oids: oids() };
    let sweep = world.core.sweep(sweep);
    while world.step(Duration::from_secs(60)) {}
    assert!(world.sent.len() < 1300, "{}", world.sent.len());
    let events = world.sweep_events(sweep);
    assert_eq!(events.len(), 20_001);
    assert_eq!(world.core.table.len(), 0);
}

#[test]
fn a_dropped_sweep_leaves_nothing_behind() {
    let mut world = World::new(options(), CALM);
    let sweep = world.core.sweep(Sweep {
        peers: Box::new((0..500).map(peer)),
        credentials: vec![public()],
        oids: oids(),
    });
    world.step(Duration::from_millis(1));
    world.core.end_sweep(sweep);
    while world.step(Duration::from_secs(60)) {}
    assert_eq!(world.core.table.len(), 0);
    assert!(world.core.turns.is_empty() && world.core.waiting.is_empty());
}

#[test]
fn versions_are_tried_in_order() {
    let mut world = World::new(options(), CALM);
    world.devices.insert(peer(1), Device::new(Speaks::V1));
    world.devices.insert(peer(2), Device::new(Speaks::V2c));
    let right = user("password", None);
    world.devices.insert(peer(3), Device::new(Speaks::V3(Authority::new(&right))));
    let v1 = Arc::new(Credential::v1("public").unwrap());
    let credentials = vec![right, v1, public()];
    let sweep = world.core.sweep(Sweep { peers: Box::new((0..5).map(peer)), credentials, oids: oids() });
    let mut found = HashMap::new();
    for event in world.sweep_events(sweep) {
        match event {
            SweepEvent::Answered { peer, credential, answer } => {
                assert_eq!(answer.response.varbinds[0].value, Value::OctetString("sim".into()));
                found.insert(peer, credential.version());
            }
            SweepEvent::Done(counts) => assert_eq!((counts.addresses, counts.answered), (5, 3)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(found, HashMap::from([(peer(1), "1"), (peer(2), "2c"), (peer(3), "3")]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Every request has one result and every address of a sweep is finished once, whatever the wire does; and
    /// with the loss given, the chance that all three transmissions to one responder were in vain is known.
    #[test]
    fn nothing_is_lost_but_packets(
        seed in 1u64..u64::MAX, lost in 0u64..300, doubled in 0u64..300, most in 1_000u64..1_500_000, rate in prop::sample::select(vec![0u32, 400, 5000]),
    ) {
        let weather = Weather { lost, doubled, delay: (500, most), ..CALM };
        let mut world = World::new(Options { seed, rate, retries: 4, ..options() }, weather);
        for n in 0..300 {
            if n % 3 == 0 {
                world.devices.insert(peer(n), Device::new(Speaks::V2c));
            }
        }
        let peers = Box::new((0..300).map(peer));
        let sweep = world.core.sweep(Sweep { peers, credentials: vec![public()], oids: oids() });
        for ticket in 0..100 {
            world.core.ask(ticket, peer(ticket as u32 % 50), public(), &get(), Patience::Normal);
        }
        let mut answered = HashMap::new();
        let mut counts = None;
        for event in world.sweep_events(sweep) {
            match event {
                SweepEvent::Answered { peer, .. } => prop_assert!(answered.insert(peer, ()).is_none()),
                SweepEvent::Done(done) => counts = Some(done),
                other => prop_assert!(false, "{:?}", other),
            }
        }
        let counts = counts.unwrap();
        prop_assert_eq!(counts.addresses, 300);
        prop_assert_eq!(counts.answered as usize, answered.len());
        if lost == 0 && most < 900_000 && rate > 0 {
            prop_assert_eq!(answered.len(), 100);
        }
        let mut tickets: Vec<u64> = (0..100).map(|_| world.result().0).collect();
        tickets.sort_unstable();
        prop_assert_eq!(tickets, (0..100).collect::<Vec<_>>());
        while world.step(world.now + Duration::from_secs(30)) {}
        prop_assert!(world.core.poll_event().is_none());
        prop_assert_eq!(world.core.table.len(), 0);
        prop_assert!(world.core.turns.is_empty() && world.core.waiting.is_empty());
    }

    /// Whatever arrives while requests of every kind are in flight: no panic, no result but an honest one.
    #[test]
    fn hostile_datagrams_do_no_harm(seed in 1u64..u64::MAX, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8), cut in any::<prop::sample::Index>()) {
        let private = user("password", Some("private password"));
        let mut world = World::new(Options { seed, ..options() }, CALM);
        world.devices.insert(peer(1), Device::new(Speaks::V3(Authority::new(&private))));
        world.devices.insert(peer(2), Device::new(Speaks::V2c));
        world.core.ask(1, peer(1), private, &get(), Patience::Normal);
        world.core.ask(2, peer(2), public(), &get(), Patience::Normal);
        let mut results = 0;
        for _ in 0..40 {
            let until = world.now + Duration::from_secs(10);
            world.step(until);
            let mut mutated = world.last_datagram.clone();
            for (index, octet) in &edits {
                *index.get_mut(&mut mutated) = *octet;
            }
            let now = world.instant();
            world.core.handle_datagram(peer(1), &mutated, now);
            mutated.truncate(cut.index(mutated.len() + 1));
            world.core.handle_datagram(peer(2), &mutated, now);
            while world.core.poll_event().is_some() {
                results += 1;
            }
        }
        prop_assert!(results <= 2);
    }
}
