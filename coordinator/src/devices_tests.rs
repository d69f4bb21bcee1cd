//! What the state machine promises about devices: the same in whatever order they were seen, decisions that
//! can be taken back, values that stay as they were typed.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use quire_proto::convert;
use quire_proto::reading::{Counters, Facts, Reading, Supply, SupplyKind, SupplyState};
use quire_proto::store::decide_identity::What as Decide;
use quire_proto::store::observation::What;
use quire_proto::store::{
    DecideIdentity, DecisionRow, EventRow, FaceRow, Merge, Observation, ReviewRow, SetDevice, Split, Typed,
};

use super::tests::{UNIT, World};
use super::*;

/// One sighting; which node tells it follows from the time, and it is told late, so that its time counts.
#[derive(Clone, Debug)]
struct Sight {
    serial: Option<u8>,
    mac: Option<u8>,
    engine: Option<u8>,
    host: u8,
    total: Option<u64>,
    at_ms: u64,
}

fn reading(sight: &Sight) -> Reading {
    Reading {
        facts: Facts {
            vendor: Some("HP".into()),
            model: Some("LaserJet".into()),
            serial: sight.serial.map(|n| format!("CNB100{n}")),
            mac: sight.mac.and_then(|n| format!("00:20:6b:00:00:{n:02x}").parse().ok()),
            engine_id: sight.engine.map(|n| vec![0x80, 0, 0, 9, 4, b'p', b'r', b'n', b't', n]),
            ..Facts::default()
        }
        .into(),
        counters: Counters { total: sight.total, ..Counters::default() },
        ..Reading::default()
    }
}

fn observation(seq: u64, sight: &Sight) -> Observation {
    Observation {
        seq,
        unit: UNIT.into(),
        epoch: 1,
        address: format!("10.0.0.{}:161", sight.host),
        at_ms: sight.at_ms,
        what: Some(What::Reading(convert::encode(&reading(sight)))),
        ..Observation::default()
    }
}

fn told(sights: &[Sight]) -> World {
    let mut world = World::new();
    for (seq, sight) in (1..).zip(sights) {
        hand_in(&mut world, &[observation(seq, sight)]);
    }
    world
}

/// When everything is handed in: late, so that its own times count, and before history is thinned out.
const NOW: u64 = 1_000_000 + 47 * HOUR;

fn hand_in(world: &mut World, observations: &[Observation]) {
    let observations = observations.iter().map(|o| prost::Message::encode_to_vec(o).into()).collect();
    let answer = world.apply_at(NOW, Kind::Record(quire_proto::store::Record { node: 2, observations }));
    assert!(matches!(answer, Answer::RecordedThrough(_)), "{answer:?}");
}

/// What devices are beside their ids: their faces, where they live and what they said last.
fn picture(world: &World) -> BTreeSet<(Vec<String>, String, u64, Vec<u8>)> {
    let devices = world.devices().into_iter().map(|row| {
        let mut faces = row.faces;
        faces.sort();
        (faces, row.address, row.metered_at_ms, row.reading.to_vec())
    });
    devices.collect()
}

/// Devices, whose faces are, open cases, the unit, and who lives where.
type Everything = (Vec<DeviceRow>, Vec<(String, String)>, Vec<ReviewRow>, UnitRow, Vec<crate::tables::Row>);

/// What an operator sees, ids included.
fn everything(world: &World) -> Everything {
    let faces: Vec<FaceRow> = world.tables.all(Table::Faces, &[]).unwrap();
    let homes = crate::tables::Read::range(&world.tables, Table::Evidence, &[], 10_000).unwrap();
    let mut review: Vec<ReviewRow> = world.tables.all(Table::Review, &[]).unwrap();
    // A case that comes back stands on the list since then.
    review.iter_mut().for_each(|case| case.since_ms = 0);
    let owners = faces.into_iter().map(|face| (face.key, face.device)).collect();
    (world.devices(), owners, review, world.unit(), homes)
}

fn decide(what: Decide) -> Kind {
    Kind::DecideIdentity(DecideIdentity { by: "operator".into(), what: Some(what) })
}

fn sight() -> impl Strategy<Value = Sight> {
    let key = |most: u8| proptest::option::weighted(0.8, 0..most);
    let total = proptest::option::of(prop_oneof![0u64..50, 10_000u64..10_050]);
    (key(3), key(4), key(2), 0u8..4, total, 0u64..3)
        .prop_filter("something strong", |sight| sight.0.is_some() || sight.1.is_some() || sight.2.is_some())
        .prop_map(|(serial, mac, engine, host, total, at_ms)| Sight {
            serial,
            mac,
            engine,
            host,
            total,
            at_ms,
        })
}

/// Sightings some minutes or hours apart, no two at one time.
fn history() -> impl Strategy<Value = Vec<Sight>> {
    proptest::collection::vec((sight(), 1u64..200), 1..14).prop_map(|steps| {
        let mut at_ms = 1_000_000;
        let place = |(sight, minutes): (Sight, u64)| {
            at_ms += minutes * 60_000;
            Sight { at_ms, ..sight }
        };
        steps.into_iter().map(place).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any order of observations gives the same devices, living at the same addresses.
    #[test]
    fn any_order_gives_the_same_devices((sights, shuffled) in history().prop_flat_map(|sights| {
        (Just(sights.clone()), Just(sights).prop_shuffle())
    })) {
        let (one, other) = (told(&sights), told(&shuffled));
        prop_assert_eq!(picture(&one), picture(&other));
        let ids: BTreeSet<String> = other.devices().into_iter().map(|row| row.id).collect();
        prop_assert_eq!(ids.len(), other.devices().len());
        prop_assert_eq!(rows::meta(&other.tables).unwrap().devices, ids.len() as u64);
        let homes = other.devices().iter().filter(|row| !row.unit.is_empty()).count();
        prop_assert_eq!(other.unit().devices as usize, homes);
    }

    /// A merge, or a split, that is taken back leaves nothing behind.
    #[test]
    fn a_decision_and_its_undo_change_nothing(sights in history(), first in any::<u8>(), second in any::<u8>()) {
        let mut world = told(&sights);
        let before = everything(&world);
        let devices = world.devices();
        let of = |n: u8| &devices[usize::from(n) % devices.len()];
        let (one, other) = (of(first), of(second));
        let what = if one.id == other.id {
            let evidence = one.evidence.get(usize::from(second) % one.evidence.len()).cloned();
            Decide::Split(Split { device: one.id.clone(), evidence: evidence.into_iter().collect() })
        } else {
            Decide::Merge(Merge { into: one.id.clone(), from: other.id.clone() })
        };
        let merges = matches!(what, Decide::Merge(_));
        match world.apply(decide(what)) {
            Answer::Changes(_) => {
                let now = world.devices().len();
                prop_assert_eq!(now, if merges { devices.len() - 1 } else { devices.len() + 1 });
                let undo = world.index;
                world.done(decide(Decide::Undo(undo)));
            }
            Answer::Rejected(why) => prop_assert!(!merges, "{}", why),
            other => prop_assert!(false, "{other:?}"),
        }
        prop_assert_eq!(everything(&world), before);
    }

    /// Told twice, in one entry or in two, an observation counts once.
    #[test]
    fn replays_change_nothing(sights in history(), again in 0usize..14) {
        let mut world = told(&sights);
        let (before, outbox) = (everything(&world), world.outbox());
        let from = again.min(sights.len() - 1);
        let replay: Vec<Observation> =
            (1..).zip(&sights).skip(from).map(|(seq, sight)| observation(seq, sight)).collect();
        hand_in(&mut world, &replay);
        prop_assert_eq!(everything(&world), before);
        prop_assert_eq!(world.outbox(), outbox);
    }
}

const HOUR: u64 = 3_600_000;

fn at(hour: u64, serial: Option<u8>, mac: Option<u8>, host: u8, total: u64) -> Sight {
    Sight { serial, mac, engine: None, host, total: Some(total), at_ms: 1_000_000 + hour * HOUR }
}

fn events(world: &World) -> Vec<EventRow> {
    world.tables.all(Table::Events, &[]).unwrap()
}

#[test]
fn the_web_admin_learns_of_merges_and_splits_by_faces() {
    let mut world = told(&[at(1, Some(1), Some(1), 5, 7), at(2, Some(2), Some(2), 6, 9)]);
    let [one, other] = &world.devices()[..] else { panic!("two devices") };
    let (one, other) = (one.clone(), other.clone());
    let faces: BTreeMap<String, String> =
        world.readings().into_iter().map(|row| (row.face, row.device)).collect();
    assert_eq!(faces.len(), 2, "every reading names its face");
    let into = Merge { into: one.id.clone(), from: other.id.clone() };
    world.done(decide(Decide::Merge(into)));
    let news: Vec<_> = world.outbox().into_iter().filter_map(|entry| entry.news).collect();
    let [kept, gone] = &news[..] else { panic!("{news:?}") };
    assert_eq!((kept.faces.len(), kept.gone, gone.gone), (2, false, true));
    let oldest = if kept.device == one.id { &other } else { &one };
    assert_eq!(gone.device, oldest.id);
    let number = world.index;
    assert_eq!(world.tables.all::<DecisionRow>(Table::Decisions, &[]).unwrap().len(), 1);
    world.done(decide(Decide::Undo(number)));
    let news: Vec<_> = world.outbox().into_iter().filter_map(|entry| entry.news).collect();
    assert_eq!((news.len(), &news[2].device, news[2].faces.len()), (3, &oldest.id, 1));
    assert!(world.refused(decide(Decide::Undo(number))).contains("no decision"));
    let audit: Vec<AuditRow> = world.tables.all(Table::Audit, &[]).unwrap();
    let said: Vec<&str> =
        audit.iter().map(|row| row.what.as_str()).filter(|what| what.contains("merged")).collect();
    assert_eq!(said.len(), 2, "{audit:?}");
}

#[test]
fn a_reading_after_a_merge_belongs_to_the_merged_device() {
    let mut world = told(&[at(1, Some(1), Some(1), 5, 7), at(2, Some(2), Some(2), 6, 9)]);
    let ids: Vec<String> = world.devices().into_iter().map(|row| row.id).collect();
    world.done(decide(Decide::Merge(Merge { into: ids[0].clone(), from: ids[1].clone() })));
    hand_in(&mut world, &[observation(3, &at(3, Some(1), Some(1), 5, 8))]);
    let [device] = &world.devices()[..] else { panic!("{:?}", world.devices()) };
    assert_eq!((device.address.as_str(), device.faces.len()), ("10.0.0.5:161", 2));
    assert_eq!(world.readings().last().unwrap().device, device.id);
    assert_eq!(world.unit().devices, 1);
}

#[test]
fn a_split_parts_what_a_shared_serial_had_joined() {
    // Two cards without counters: one device, and a case for a human.
    let sight = |hour, mac, host| Sight { total: None, ..at(hour, Some(1), Some(mac), host, 0) };
    let mut world = told(&[sight(1, 1, 5), sight(2, 2, 6), sight(3, 1, 5), sight(4, 2, 6)]);
    let [device] = &world.devices()[..] else { panic!("{:?}", world.devices()) };
    let cases: Vec<ReviewRow> = world.tables.all(Table::Review, &[]).unwrap();
    assert_eq!((cases.len(), &cases[0].devices), (1, &vec![device.id.clone()]));
    let split =
        |evidence: &str| Decide::Split(Split { device: device.id.clone(), evidence: vec![evidence.into()] });
    assert!(world.refused(decide(split("CNB1001"))).contains("every reading"));
    assert!(world.refused(decide(split("nothing"))).contains("no evidence `nothing`"));
    world.done(decide(split("00:20:6b:00:00:02")));
    assert_eq!(world.devices().len(), 2);
    assert!(world.tables.all::<ReviewRow>(Table::Review, &[]).unwrap().is_empty());
    hand_in(&mut world, &[observation(5, &sight(5, 2, 9))]);
    assert_eq!(world.devices().len(), 2, "the decision holds for what comes later");
}

#[test]
fn a_case_that_is_settled_leaves_the_list_until_that_is_taken_back() {
    let sight = |hour, mac, host| Sight { total: None, ..at(hour, Some(1), Some(mac), host, 0) };
    let mut world = told(&[sight(1, 1, 5), sight(2, 2, 6), sight(3, 1, 5)]);
    let case = world.tables.all::<ReviewRow>(Table::Review, &[]).unwrap().remove(0);
    world.done(decide(Decide::Settle(case.id.clone())));
    let number = world.index;
    assert!(world.tables.all::<ReviewRow>(Table::Review, &[]).unwrap().is_empty());
    assert!(world.refused(decide(Decide::Settle(case.id))).contains("no case"));
    world.done(decide(Decide::Undo(number)));
    assert_eq!(world.tables.all::<ReviewRow>(Table::Review, &[]).unwrap().len(), 1);
}

#[test]
fn two_zones_with_one_prefix_hold_different_devices() {
    let mut world = World::new();
    let seen = |seq, zone: &str, serial: Option<u8>| Observation {
        unit: format!("{zone}:10.0.0.0/24"),
        ..observation(seq, &at(seq, serial, None, 5, 7))
    };
    hand_in(&mut world, &[seen(1, "hq", None), seen(2, "lab", None)]);
    assert_eq!(world.devices().len(), 2);
    hand_in(&mut world, &[seen(3, "hq", Some(1)), seen(4, "lab", Some(1))]);
    assert_eq!(
        world.devices().iter().filter(|row| row.evidence.contains(&"serial:CNB1001".into())).count(),
        1
    );
}

#[test]
fn who_begins_to_tell_its_serial_stays_the_same_device() {
    let mut world = told(&[at(1, None, None, 5, 7)]);
    let id = world.devices()[0].id.clone();
    hand_in(
        &mut world,
        &[observation(2, &at(2, Some(1), Some(1), 5, 8)), observation(3, &at(3, None, None, 5, 9))],
    );
    let [device] = &world.devices()[..] else { panic!("{:?}", world.devices()) };
    assert_eq!((&device.id, device.metered_at_ms), (&id, 1_000_000 + 3 * HOUR));
}

#[test]
fn devices_behind_one_print_server_stay_themselves() {
    let world = told(&[
        at(1, Some(1), Some(1), 5, 7),
        at(2, Some(2), Some(1), 5, 900),
        at(3, Some(1), Some(1), 5, 8),
    ]);
    let devices = world.devices();
    assert_eq!(devices.len(), 2);
    assert!(devices.iter().all(|row| row.addresses == ["10.0.0.5:161"]));
    assert_eq!(devices.iter().filter(|row| row.address == "10.0.0.5:161").count(), 1, "who answered last");
    let readings: Vec<String> = world.readings().into_iter().map(|row| row.device).collect();
    assert_eq!((readings.len(), readings[0] == readings[2], readings[0] == readings[1]), (3, true, false));
}

#[test]
fn a_serial_on_a_whole_fleet_is_none() {
    let fleet: Vec<Sight> = (0..40).map(|n| at(u64::from(n), Some(1), Some(n), n, 7)).collect();
    let world = told(&fleet);
    // One card after another could be boards; the seventeenth cannot.
    assert_eq!(world.devices().len(), 40);
    let again: Vec<Sight> =
        fleet.iter().map(|sight| Sight { at_ms: sight.at_ms + 1, ..sight.clone() }).collect();
    let both: Vec<Sight> = fleet.into_iter().zip(again).flat_map(|(one, other)| [one, other]).collect();
    assert_eq!(told(&both).devices().len(), 40);
}

/// One device that makes up an engine at each boot.
fn boots(hours: std::ops::Range<u8>) -> impl Iterator<Item = Sight> {
    hours.map(|n| Sight { engine: Some(n), ..at(u64::from(n), Some(1), Some(1), 5, u64::from(n)) })
}

#[test]
fn engines_that_are_made_up_at_each_boot_make_no_devices() {
    let mut world = told(&boots(1..2).collect::<Vec<_>>());
    let id = world.devices()[0].id.clone();
    for (seq, sight) in (2..).zip(boots(2..21)) {
        hand_in(&mut world, &[observation(seq, &sight)]);
        let [device] = &world.devices()[..] else { panic!("{:?}", world.devices()) };
        assert!(device.id == id && device.faces.len() <= 5, "{device:?}");
    }
    assert_eq!(world.devices()[0].metered_at_ms, 1_000_000 + 20 * HOUR);
    assert!(world.readings().iter().all(|row| row.device == id));
}

#[test]
fn what_fell_apart_by_its_engines_comes_together_at_the_new_version() {
    let mut world = World::new();
    let set_version = |world: &mut World, version| {
        let mut overlay = Overlay::new(&world.tables);
        let mut meta = rows::meta(&overlay).unwrap();
        meta.cluster_version = version;
        rows::put_meta(&mut overlay, &meta);
        let writes: Vec<_> = overlay.into_writes().collect();
        world.tables.commit(writes.into_iter());
    };
    set_version(&mut world, upgrade::ENGINES - 1);
    let sights: Vec<Sight> = boots(1..21).collect();
    for (seq, sight) in (1..).zip(&sights) {
        hand_in(&mut world, &[observation(seq, sight)]);
        if seq == 1 {
            assert_eq!(world.devices().len(), 1);
        }
    }
    let apart = world.devices();
    assert_eq!(apart.len(), 20, "as older releases have it");
    set_version(&mut world, upgrade::ENGINES);
    let first = world.readings()[0].device.clone();
    hand_in(&mut world, &[observation(21, &Sight { at_ms: 1_000_000 + 21 * HOUR, ..sights[1].clone() })]);
    let devices = world.devices();
    // Three faces beyond the seventeenth are under no key: they join when they are seen again.
    assert_eq!(devices.len(), 4);
    assert!(devices.iter().any(|row| row.id == first && row.address == "10.0.0.5:161"), "{devices:?}");
    hand_in(&mut world, &[observation(22, &Sight { at_ms: 1_000_000 + 22 * HOUR, ..sights[19].clone() })]);
    assert_eq!(world.devices().len(), 3);
}

fn set(device: &str, field: &str, value: &str) -> Kind {
    let values = vec![Typed { field: field.into(), value: value.into(), ..Typed::default() }];
    Kind::SetDevice(SetDevice { device: device.into(), by: "operator".into(), values })
}

#[test]
fn what_was_typed_stays_until_it_is_cleared_and_follows_merges() {
    let mut world = told(&[at(1, Some(1), Some(1), 5, 7), at(2, Some(2), Some(2), 6, 9)]);
    let ids: Vec<String> = world.devices().into_iter().map(|row| row.id).collect();
    assert!(world.refused(set(&ids[0], "serial", "X")).contains("cannot be typed"));
    assert!(world.refused(set("nobody", "name", "X")).contains("nobody"));
    assert!(world.refused(set(&ids[0], "name", "a\u{7}b")).contains("plain text"));
    world.done(set(&ids[0], "location", "Room 7"));
    world.done(set(&ids[1], "asset", "A-1"));
    hand_in(&mut world, &[observation(3, &at(3, Some(1), Some(1), 5, 8))]);
    let typed = |world: &World, id: &str| -> Vec<(String, String)> {
        let row: DeviceRow = world.tables.row(Table::Devices, id.as_bytes()).unwrap().unwrap();
        row.typed.into_iter().map(|value| (value.field, value.value)).collect()
    };
    let pair = |field: &str, value: &str| (field.to_owned(), value.to_owned());
    assert_eq!(typed(&world, &ids[0]), [pair("location", "Room 7")]);
    world.done(decide(Decide::Merge(Merge { into: ids[0].clone(), from: ids[1].clone() })));
    let undo = world.index;
    let merged = world.devices()[0].id.clone();
    assert_eq!(typed(&world, &merged), [pair("asset", "A-1"), pair("location", "Room 7")]);
    world.done(set(&merged, "asset", ""));
    assert_eq!(typed(&world, &merged), [pair("location", "Room 7")]);
    world.done(decide(Decide::Undo(undo)));
    let told: usize = ids.iter().map(|id| typed(&world, id).len()).sum();
    assert!(told >= 1, "what was typed for a device comes back with it");
    let news: Vec<_> = world.outbox().into_iter().filter_map(|entry| entry.news).collect();
    assert!(news.iter().any(|news| news.typed.iter().any(|value| value.value == "Room 7")), "{news:?}");
}

#[test]
fn a_new_web_admin_is_told_of_what_was_typed() {
    let sights =
        [at(1, Some(1), Some(1), 5, 7), at(2, Some(2), Some(2), 6, 9), at(3, Some(3), Some(3), 7, 9)];
    let mut world = told(&sights);
    let [first, second, third] = [5, 6, 7].map(|host| {
        let lives = |row: &DeviceRow| row.address == format!("10.0.0.{host}:161");
        world.devices().into_iter().find(lives).unwrap().id
    });
    // Typed for the younger of two that are merged then.
    world.done(set(&second, "asset", "A-4711"));
    world.done(set(&third, "name", "Reception"));
    world.done(decide(Decide::Merge(Merge { into: first.clone(), from: second })));
    // A site before has all of it.
    world.done(Kind::Enroll(Enroll { site: "a".into(), ..Enroll::default() }));
    let through = world.outbox().last().unwrap().seq;
    world.done(Kind::Ack(Ack { claim: world.claim, through }));
    assert!(world.outbox().is_empty());
    world.done(Kind::Enroll(Enroll { site: "b".into(), ..Enroll::default() }));
    let mut told = BTreeMap::new();
    let mut known = BTreeSet::new();
    for entry in world.outbox() {
        known.extend(entry.row.map(|row| row.device));
        if let Some(news) = entry.news {
            assert!(known.contains(&news.device), "it keeps nothing about devices that it does not know");
            let typed: Vec<String> = news.typed.into_iter().map(|typed| typed.value).collect();
            told.insert(news.device, typed);
        }
    }
    let all = [(first, vec!["A-4711".to_owned()]), (third, vec!["Reception".to_owned()])];
    assert_eq!(told, all.into());
}

#[test]
fn the_first_certificate_stays_wherever_the_device_lives_until_it_is_forgotten() {
    let mut world = World::new();
    let read = |hour: u64, host: u8, octet: u8, length: usize| Observation {
        certificate: vec![octet; length].into(),
        ..observation(hour, &at(hour, Some(1), Some(1), host, hour))
    };
    let pinned = |world: &World| world.devices()[0].certificate.to_vec();
    hand_in(&mut world, &[read(1, 5, 9, 7)]);
    assert!(pinned(&world).is_empty(), "no SHA-256");
    hand_in(&mut world, &[read(2, 5, 1, 32), read(3, 5, 2, 32), read(4, 6, 3, 32), read(5, 6, 0, 0)]);
    assert_eq!(pinned(&world), [1; 32]);
    let id = world.devices()[0].id.clone();
    assert!(world.refused(set(&id, "certificate", "sha256:00")).contains("forget"));
    world.done(set(&id, "location", "Room 7"));
    assert_eq!(pinned(&world), [1; 32]);
    world.done(set(&id, "certificate", ""));
    assert!(pinned(&world).is_empty());
    hand_in(&mut world, &[read(6, 6, 3, 32)]);
    assert_eq!(pinned(&world), [3; 32]);
    assert_eq!(world.devices()[0].typed.len(), 1, "nobody typed a certificate");
}

#[test]
fn a_reset_and_a_replacement_are_events_of_the_device() {
    let mut world = World::new();
    let read = |hour, total, percent| {
        let sight = at(hour, Some(1), Some(1), 5, total);
        let mut said = reading(&sight);
        said.supplies = vec![Supply {
            index: 1,
            name: "Black".into(),
            kind: SupplyKind::Toner,
            color: None,
            level: None,
            max: None,
            unit: None,
            percent: Some(percent),
            state: SupplyState::Ok,
        }];
        Observation { what: Some(What::Reading(convert::encode(&said))), ..observation(hour, &sight) }
    };
    hand_in(&mut world, &[read(1, 500, 9), read(2, 510, 100), read(3, 20, 99), read(4, 30, 98)]);
    let device = &world.devices()[0];
    let kinds: Vec<(String, u64)> =
        events(&world).into_iter().map(|event| (event.kind, event.at_ms)).collect();
    let when = |hour| 1_000_000 + hour * HOUR;
    assert_eq!(kinds, [("supply-replaced".to_owned(), when(2)), ("counter-reset".to_owned(), when(3))]);
    assert_eq!((device.meters[0].epoch, crate::meters::used(&device.meters[0])), (2, 20));
    assert_eq!(device.parts[0].replaced_at_ms, when(2));
    assert!(events(&world).iter().all(|event| event.device == device.id));
    // A late one moves neither.
    hand_in(&mut world, &[Observation { seq: 9, ..read(1, 1, 1) }]);
    assert_eq!(events(&world).len(), 2);
}
