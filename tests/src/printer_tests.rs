//! Tests of [`super`].

use super::*;
use crate::models::{OTHERS, PRINTERS};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 2, 0, 7);
const SYS_DESCR: &[u32] = &[1, 3, 6, 1, 2, 1, 1, 1, 0];
const SYS_OBJECT_ID: &[u32] = &[1, 3, 6, 1, 2, 1, 1, 2, 0];
const MANNER: Manner<'static> = Manner { community: "public", pages_per_minute: 60, seed: 7 };

fn device(model: &Printer, behaviour: Behaviour) -> Device {
    let tables = (Arc::new(Table::printer(model, false)), Arc::new(Table::printer(model, true)));
    Device::printer(ADDRESS, model, &tables, behaviour, &MANNER)
}

fn ask(device: &mut Device, packet: &[u8], now: Duration) -> Option<ber::Response> {
    let mut out = Vec::new();
    match device.answer(packet, now, &mut Request::default(), &mut out).1 {
        Reply::Silence => None,
        Reply::After(_) => ber::read_response(&out),
    }
}

fn get(device: &mut Device, version: u8, name: &[u32]) -> Option<ber::Response> {
    ask(device, &ber::write_request(version, "public", pdu::GET, 1, (0, 0), &[name]), Duration::ZERO)
}

/// Walks with `kind` until the end, as a manager would.
fn walk(device: &mut Device, version: u8, kind: u8) -> Vec<(Vec<u32>, u8, Vec<u8>)> {
    let mut found: Vec<(Vec<u32>, u8, Vec<u8>)> = Vec::new();
    let mut name = vec![1, 3];
    for _ in 0..10_000 {
        let packet = ber::write_request(version, "public", kind, 1, (0, 25), &[&name]);
        let (error, _, varbinds) = ask(device, &packet, Duration::ZERO).unwrap();
        let ended = error == status::NO_SUCH_NAME || varbinds.iter().any(|v| v.1 == tag::END_OF_MIB_VIEW);
        if error == 0 {
            found.extend(varbinds.into_iter().filter(|v| v.1 != tag::END_OF_MIB_VIEW));
        }
        if ended {
            return found;
        }
        name = found.last().unwrap().0.clone();
    }
    panic!("the walk does not end");
}

#[test]
fn every_model_walks_to_the_end_in_order() {
    for model in PRINTERS {
        let mut device = device(model, Behaviour::default());
        let rows = walk(&mut device, ber::V2C, pdu::GETBULK);
        assert!(rows.is_sorted_by(|a, b| a.0 < b.0), "{} is out of order", model.model);
        assert_eq!(rows, walk(&mut device, ber::V2C, pdu::GETNEXT), "{}", model.model);
        assert_eq!(rows.len(), device.table.len());
        let counter64s = rows.iter().filter(|row| row.1 == tag::COUNTER64).count();
        assert_eq!(walk(&mut device, V1, pdu::GETNEXT).len(), rows.len() - counter64s);
    }
}

#[test]
fn others_are_no_printers() {
    for model in OTHERS {
        let table = Arc::new(Table::other(model));
        let mut other = Device::other(ADDRESS, model, &table, Behaviour::default(), &MANNER);
        let rows = walk(&mut other, ber::V2C, pdu::GETBULK);
        assert!(rows.iter().all(|row| !row.0.starts_with(&[1, 3, 6, 1, 2, 1, 43])), "{}", model.model);
    }
}

#[test]
fn what_is_missing_has_its_own_answer() {
    let mut device = device(&PRINTERS[0], Behaviour::default());
    let no_instance = get(&mut device, ber::V2C, &[1, 3, 6, 1, 2, 1, 1, 1, 5]).unwrap();
    assert_eq!(no_instance.2[0].1, tag::NO_SUCH_INSTANCE);
    let no_object = get(&mut device, ber::V2C, &[1, 3, 6, 1, 2, 1, 99, 1, 0]).unwrap();
    assert_eq!(no_object.2[0].1, tag::NO_SUCH_OBJECT);
    let v1 = get(&mut device, V1, &[1, 3, 6, 1, 2, 1, 99, 1, 0]).unwrap();
    assert_eq!((v1.0, v1.1, v1.2.len()), (status::NO_SUCH_NAME, 1, 1));
}

#[test]
fn a_wrong_community_hears_nothing() {
    let mut device = device(&PRINTERS[0], Behaviour::default());
    let packet = ber::write_request(ber::V2C, "private", pdu::GET, 1, (0, 0), &[SYS_DESCR]);
    assert_eq!(ask(&mut device, &packet, Duration::ZERO), None);
    let mut out = Vec::new();
    let heard = device.answer(&packet, Duration::ZERO, &mut Request::default(), &mut out).0;
    assert_eq!(heard, Heard::Foreign);
}

#[test]
fn too_much_is_too_big_for_get_and_cut_for_getbulk() {
    let mut device = device(&PRINTERS[0], Behaviour { longest: 100, ..Behaviour::default() });
    let names = [SYS_DESCR; 4];
    let packet = ber::write_request(ber::V2C, "public", pdu::GET, 1, (0, 0), &names);
    let (error, _, varbinds) = ask(&mut device, &packet, Duration::ZERO).unwrap();
    assert_eq!((error, varbinds.len()), (status::TOO_BIG, 0));
    let packet = ber::write_request(ber::V2C, "public", pdu::GETBULK, 1, (0, 50), &[SYS_DESCR]);
    let (error, _, varbinds) = ask(&mut device, &packet, Duration::ZERO).unwrap();
    assert_eq!(error, 0);
    assert!((1..10).contains(&varbinds.len()), "{varbinds:?}");
}

#[test]
fn counters_grow_and_a_set_is_refused_and_counted() {
    let mut device = device(&PRINTERS[0], Behaviour::default());
    let name = [1, 3, 6, 1, 2, 1, 43, 10, 2, 1, 4, 1, 1];
    let packet = ber::write_request(ber::V2C, "public", pdu::GET, 1, (0, 0), &[&name]);
    let early = ask(&mut device, &packet, Duration::ZERO).unwrap();
    let late = ask(&mut device, &packet, Duration::from_secs(60)).unwrap();
    assert_ne!(early.2[0].2, late.2[0].2);
    let set = ber::write_request(ber::V2C, "public", pdu::SET, 1, (0, 0), &[SYS_DESCR]);
    let (heard, _) = device.answer(&set, Duration::ZERO, &mut Request::default(), &mut Vec::new());
    assert_eq!(heard, Heard::Set);
}

#[test]
fn faults_are_faults() {
    let mut v1_only = device(&PRINTERS[0], Behaviour { v1_only: true, ..Behaviour::default() });
    assert!(get(&mut v1_only, ber::V2C, SYS_DESCR).is_none());
    assert!(get(&mut v1_only, V1, SYS_DESCR).is_some());
    let mut broken = device(&PRINTERS[0], Behaviour { bulk_broken: true, ..Behaviour::default() });
    let bulk = ber::write_request(ber::V2C, "public", pdu::GETBULK, 1, (0, 5), &[SYS_DESCR]);
    assert!(ask(&mut broken, &bulk, Duration::ZERO).is_none());
    let sleepy = Behaviour { sleeps_after: Some(Duration::from_secs(60)), ..Behaviour::default() };
    let mut sleepy = device(&PRINTERS[0], sleepy);
    let packet = ber::write_request(ber::V2C, "public", pdu::GET, 1, (0, 0), &[SYS_OBJECT_ID]);
    let mut answers = |second| ask(&mut sleepy, &packet, Duration::from_secs(second)).is_some();
    assert!(!answers(0), "asleep at the start");
    assert!(!answers(2), "waking");
    assert!(answers(4) && answers(50), "awake");
    assert!(!answers(200), "asleep again");
    assert!(answers(204));
}

#[test]
fn the_same_seed_makes_the_same_device() {
    let one = device(&PRINTERS[3], Behaviour::default());
    let two = device(&PRINTERS[3], Behaviour::default());
    assert_eq!(one.truth(), two.truth());
}
