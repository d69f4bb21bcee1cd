//! What the state machine promises, command by command.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use quire_proto::convert;
use quire_proto::reading::{Counters, Facts, Reading};
use quire_proto::store::observation::What;
use quire_proto::store::{
    Grant, Observation, OutboxEntry, Reach, ReadingRow, Record, Recover, Release, ReportCosts, Silence,
    SweepMark, UnitCost,
};

use super::*;
use crate::tables::{MemoryTables, Read};

#[test]
fn only_the_owner_says_what_its_unit_costs_and_only_under_its_grant() {
    let mut world = World::new();
    let epoch = world.tables.row::<UnitRow>(Table::Units, UNIT.as_bytes()).unwrap().unwrap().epoch;
    let report = |node, unit: &str, epoch, cost| {
        let costs = vec![UnitCost { unit: unit.into(), epoch, cost }];
        Kind::ReportCosts(ReportCosts { node, costs })
    };
    let cost = |world: &World| {
        world.tables.row::<UnitRow>(Table::Units, UNIT.as_bytes()).unwrap().map(|unit| unit.cost)
    };
    world.done(report(1, UNIT, epoch, 7_000));
    assert_eq!(cost(&world), Some(7_000));
    world.done(report(1, UNIT, epoch - 1, 8_000));
    world.done(report(1, "hq:10.9.0.0/24", epoch, 8_000));
    world.done(report(1, "no unit", epoch, 8_000));
    world.done(report(1, UNIT, epoch, 0));
    assert_eq!(cost(&world), Some(7_000), "under an old grant, of no unit, of nothing");
    assert!(world.refused(report(9, UNIT, epoch, 8_000)).contains("not a member"));
}

#[path = "upkeep_tests.rs"]
mod upkeep;

/// A cluster of one node with one granted unit, and a way to go on.
pub(super) struct World {
    pub(super) tables: MemoryTables,
    pub(super) index: u64,
    pub(super) claim: u64,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = World { tables: MemoryTables::default(), index: 0, claim: 0 };
        let cluster_version = quire_proto::CLUSTER_VERSION;
        let first = Member { id: 1, name: "n1".into(), cluster_version, ..Member::default() };
        world.done(Kind::Bootstrap(Bootstrap {
            cluster_id: Bytes::from_static(&[7; 16]),
            first: Some(first),
            ..Bootstrap::default()
        }));
        world.claim = match world.apply(Kind::Claim(Claim { node: 1, renews: 0, ..Claim::default() })) {
            Answer::Epoch(epoch) => epoch,
            other => panic!("{other:?}"),
        };
        world.grant(1);
        world
    }

    pub(super) fn apply_at(&mut self, at_ms: u64, kind: Kind) -> Answer {
        self.obey(&Command { at_ms, kind: Some(kind), ..Command::default() })
    }

    pub(super) fn obey(&mut self, command: &Command) -> Answer {
        self.index += 1;
        let mut overlay = Overlay::new(&self.tables);
        let outcome = apply(&mut overlay, self.index, command).unwrap();
        let writes: Vec<_> = overlay.into_writes().collect();
        self.tables.commit(writes.into_iter());
        outcome.result.unwrap()
    }

    pub(super) fn apply(&mut self, kind: Kind) -> Answer {
        self.apply_at(1_000 + self.index, kind)
    }

    pub(super) fn done(&mut self, kind: Kind) {
        let answer = self.apply(kind);
        assert!(!matches!(answer, Answer::Rejected(_)), "{answer:?}");
    }

    pub(super) fn refused(&mut self, kind: Kind) -> String {
        match self.apply(kind) {
            Answer::Rejected(why) => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(super) fn grant(&mut self, node: u64) -> u64 {
        let grant = Grant {
            unit: UNIT.into(),
            node,
            zone: "hq".into(),
            prefix: "10.0.0.0/24".into(),
            segment: "10.0.0.0/24".into(),
            ..Grant::default()
        };
        match self.apply(Kind::Plan(Plan { claim: self.claim, grants: vec![grant], drop_units: vec![] })) {
            Answer::Epoch(epoch) => epoch,
            other => panic!("{other:?}"),
        }
    }

    /// A planned move from an owner who is alive.
    fn hand_over(&mut self, node: u64) -> u64 {
        let unit = self.tables.row::<UnitRow>(Table::Units, UNIT.as_bytes()).unwrap().unwrap();
        let (unit, zone, prefix, segment) = (unit.unit, unit.zone, unit.prefix, unit.segment);
        let grant = Grant { unit, zone, prefix, segment, node, hand_over: true, ..Grant::default() };
        match self.apply(Kind::Plan(Plan { claim: self.claim, grants: vec![grant], drop_units: vec![] })) {
            Answer::Epoch(epoch) => epoch,
            other => panic!("{other:?}"),
        }
    }

    fn release(&mut self, epoch: u64) {
        let release = Release { unit: UNIT.into(), epoch };
        self.done(Kind::Release(Releases { releases: vec![release] }));
    }

    /// Who has the unit, and who has yet to let go of it.
    fn owners(&self) -> (u64, u64) {
        let unit = self.tables.row::<UnitRow>(Table::Units, UNIT.as_bytes()).unwrap().unwrap();
        (unit.node, unit.from)
    }

    pub(super) fn record(&mut self, node: u64, observations: &[Observation]) -> u64 {
        let observations = observations.iter().map(|o| o.encode_to_vec().into()).collect();
        match self.apply(Kind::Record(Record { node, observations })) {
            Answer::RecordedThrough(through) => through,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn devices(&self) -> Vec<DeviceRow> {
        self.tables.all(Table::Devices, &[]).unwrap()
    }

    pub(super) fn readings(&self) -> Vec<ReadingRow> {
        self.tables.all(Table::Readings, &[]).unwrap()
    }

    pub(super) fn outbox(&self) -> Vec<OutboxEntry> {
        self.tables.all(Table::Outbox, &[]).unwrap()
    }

    pub(super) fn unit(&self) -> UnitRow {
        self.tables.row(Table::Units, UNIT.as_bytes()).unwrap().unwrap()
    }
}

pub(super) const UNIT: &str = "hq:10.0.0.0/24";

fn seen(seq: u64, address: &str, serial: &str, mac: &str, total: u64) -> Observation {
    let reading = Reading {
        facts: Facts {
            vendor: Some("HP".into()),
            model: Some("LaserJet".into()),
            serial: (!serial.is_empty()).then(|| serial.to_owned()),
            mac: mac.parse().ok(),
            ..Facts::default()
        }
        .into(),
        counters: Counters { total: Some(total), ..Counters::default() },
        ..Reading::default()
    };
    Observation {
        seq,
        unit: UNIT.into(),
        epoch: 3,
        address: format!("{address}:161"),
        at_ms: 10_000 + seq,
        hops: Some(0),
        what: Some(What::Reading(convert::encode(&reading))),
        ..Observation::default()
    }
}

const MAC_A: &str = "00:20:6b:00:00:0a";
const MAC_B: &str = "00:20:6b:00:00:0b";

/// A printer on a node's own cable needs no grant: it is never late.
#[test]
fn settings_under_which_more_may_be_found_ask_for_sweeps() {
    let mut world = World::new();
    let asked = |world: &World| {
        world.tables.row::<UnitRow>(Table::Units, UNIT.as_bytes()).unwrap().unwrap().asked_at_ms
    };
    world.done(Kind::PutSettings(PutSettings::default()));
    assert_eq!(asked(&world), 0);
    world.apply_at(5_000, Kind::PutSettings(PutSettings { sweep_again: true, ..PutSettings::default() }));
    assert_eq!(asked(&world), 5_000);
}

#[test]
fn a_planned_move_waits_until_the_former_owner_lets_go() {
    let mut world = World::new();
    let first = world.hand_over(2);
    assert_eq!(world.owners(), (2, 1));
    let second = world.hand_over(3);
    assert_eq!(world.owners(), (3, 1), "2 never began: it is 1 that works on it");
    world.release(first);
    assert_eq!(world.owners(), (3, 1), "the word for another grant is none for this one");
    world.release(second);
    assert_eq!(world.owners(), (3, 0));
    world.hand_over(2);
    world.hand_over(3);
    assert_eq!(world.owners(), (3, 0), "back with whom it never left");
    world.hand_over(1);
    world.grant(2);
    assert_eq!(world.owners(), (2, 0), "the dead are not waited for");
}

#[test]
fn what_hangs_on_a_node_is_in_force_without_a_grant() {
    let mut world = World::new();
    let unit = "hq:10.0.0.11/32".to_owned();
    let local = Observation { local: true, epoch: 0, unit, ..seen(1, "10.0.0.11", "S1", MAC_A, 5) };
    let far = Observation { local: false, seq: 2, ..local.clone() };
    world.record(1, &[local, far]);
    let late: Vec<bool> = world.readings().into_iter().map(|row| row.late).collect();
    assert_eq!(late, [false, true]);
}

#[test]
fn a_reading_becomes_device_history_and_outbox_entry_at_once() {
    let mut world = World::new();
    assert_eq!(world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7)]), 1);
    let [device] = &world.devices()[..] else { panic!() };
    assert_eq!((device.address.as_str(), device.unit.as_str(), device.node), ("10.0.0.5:161", UNIT, 1));
    assert_eq!(world.readings().len(), 1);
    let [entry] = &world.outbox()[..] else { panic!() };
    assert_eq!(entry.seq, 1);
    assert_eq!(entry.row.as_ref().unwrap().id, world.readings()[0].id);
    assert_eq!(world.unit().devices, 1);
}

#[test]
fn a_record_sent_twice_counts_once() {
    let mut world = World::new();
    let both = [seen(1, "10.0.0.5", "CNB1", MAC_A, 7), seen(2, "10.0.0.6", "CNB2", MAC_B, 9)];
    world.record(1, &both);
    assert_eq!(world.record(1, &both), 2);
    assert_eq!((world.devices().len(), world.readings().len(), world.outbox().len()), (2, 2, 2));
}

#[test]
fn a_device_keeps_its_id_through_a_new_address_and_a_new_card() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7)]);
    let id = world.devices()[0].id.clone();
    world.record(1, &[seen(2, "10.0.0.9", "CNB1", MAC_A, 8), seen(3, "10.0.0.9", "CNB1", MAC_B, 9)]);
    let [device] = &world.devices()[..] else { panic!("{:?}", world.devices()) };
    assert_eq!(device.id, id);
    assert_eq!(device.addresses, ["10.0.0.9:161", "10.0.0.5:161"]);
    assert_eq!(world.unit().devices, 1);
}

#[test]
fn devices_that_swap_addresses_stay_themselves() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7), seen(2, "10.0.0.6", "CNB2", MAC_B, 9)]);
    world.record(1, &[seen(3, "10.0.0.6", "CNB1", MAC_A, 8), seen(4, "10.0.0.5", "CNB2", MAC_B, 10)]);
    let mut devices = world.devices();
    devices.sort_by_key(|device| convert::decode(&device.reading).unwrap().facts.serial.clone());
    let addresses: Vec<_> = devices.iter().map(|device| device.address.as_str()).collect();
    assert_eq!(addresses, ["10.0.0.6:161", "10.0.0.5:161"]);
    assert_eq!(world.unit().devices, 2);
}

#[test]
fn another_device_at_an_old_address_is_another_device() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7)]);
    world.record(1, &[seen(2, "10.0.0.5", "CNB2", MAC_B, 100)]);
    let devices = world.devices();
    assert_eq!(devices.len(), 2);
    assert_eq!(devices.iter().filter(|device| device.address.is_empty()).count(), 1, "nobody reads it there");
    assert_eq!(world.unit().devices, 1);
}

#[test]
fn who_moves_in_where_a_device_was_is_not_that_device() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7), seen(2, "10.0.0.9", "CNB1", MAC_A, 8)]);
    // The same model, and it tells nothing else about itself.
    world.record(1, &[seen(3, "10.0.0.5", "", "", 100)]);
    let mut at: Vec<_> = world.devices().into_iter().map(|device| device.address).collect();
    at.sort();
    assert_eq!(at, ["10.0.0.5:161", "10.0.0.9:161"]);
    let evidence = world.devices().iter().map(|device| device.evidence.len()).max();
    assert_eq!(evidence, Some(3), "serial, card and one address, however often it moves");
}

#[test]
fn units_that_come_back_find_their_devices() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7), seen(2, "10.0.0.6", "CNB2", MAC_B, 9)]);
    let drop_units = vec![UNIT.to_owned()];
    world.done(Kind::Plan(Plan { claim: world.claim, grants: vec![], drop_units }));
    world.grant(1);
    assert_eq!(world.unit().devices, 2);
}

#[test]
fn junk_serials_do_not_merge_devices() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "0000000", "", 7), seen(2, "10.0.0.6", "0000000", "", 9)]);
    assert_eq!(world.devices().len(), 2);
}

#[test]
fn facts_outlive_their_grant_and_duties_do_not() {
    let mut world = World::new();
    let epoch = world.grant(2);
    let mark = SweepMark { finished: true, done: 254, total: 254, ..SweepMark::default() };
    let sweep =
        |seq, epoch| Observation { what: Some(What::Sweep(mark.clone())), epoch, ..seen(seq, "", "", "", 0) };
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7), sweep(2, 3)]);
    assert!(world.readings()[0].late);
    assert_eq!(world.devices().len(), 1, "a late fact is still a fact");
    assert_eq!(world.unit().swept_at_ms, 0, "node 1 no longer owns the unit");
    world.record(2, &[sweep(1, epoch)]);
    assert!(world.unit().swept_at_ms > 0);
}

#[test]
fn an_older_reading_does_not_turn_back_the_device() {
    let mut world = World::new();
    world.record(1, &[Observation { at_ms: 50_000, ..seen(1, "10.0.0.5", "CNB1", MAC_A, 70) }]);
    world.record(2, &[Observation { at_ms: 40_000, ..seen(1, "10.0.0.7", "CNB1", MAC_A, 60) }]);
    let device = &world.devices()[0];
    assert_eq!(convert::decode(&device.reading).unwrap().counters.total, Some(70));
    assert_eq!(device.address, "10.0.0.5:161");
    assert_eq!(world.readings().len(), 2);
}

#[test]
fn silence_counts_only_for_the_address_that_was_asked() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7)]);
    let id = world.devices()[0].id.clone();
    let silence = |seq, address| Observation {
        what: Some(What::Silence(Silence { device: id.clone() })),
        ..seen(seq, address, "", "", 0)
    };
    world.record(1, &[silence(2, "10.0.0.5"), silence(3, "10.0.0.8")]);
    assert_eq!(world.devices()[0].misses, 1);
    world.record(1, &[seen(4, "10.0.0.5", "CNB1", MAC_A, 7)]);
    assert_eq!(world.devices()[0].misses, 0);
}

#[test]
fn hidden_devices_never_go_upstream() {
    let mut world = World::new();
    world.done(Kind::PutSettings(PutSettings { hide: vec!["10.0.0.0/29".into()], ..PutSettings::default() }));
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7), seen(2, "10.0.0.60", "CNB2", MAC_B, 7)]);
    assert_eq!(world.outbox().len(), 1);
    assert_eq!(world.readings().len(), 2);
    // Read in the hidden network, handed in after it moved out of it.
    let late = |seq, address| Observation { at_ms: 20, ..seen(seq, address, "CNB2", MAC_B, 1) };
    world.record(1, &[late(3, "10.0.0.5"), late(4, "10.0.0.61")]);
    assert_eq!(world.outbox().len(), 2);
}

#[test]
fn plans_and_acknowledgements_need_the_claim_in_force() {
    let mut world = World::new();
    let old = world.claim;
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7), seen(2, "10.0.0.6", "CNB2", MAC_B, 7)]);
    world.done(Kind::Claim(Claim { node: 2, renews: 0, ..Claim::default() }));
    assert!(
        world
            .refused(Kind::Claim(Claim { node: 1, renews: old, ..Claim::default() }))
            .contains("no longer in force")
    );
    world.refused(Kind::Plan(Plan { claim: old, ..Plan::default() }));
    world.refused(Kind::Ack(Ack { claim: old, through: 2 }));
    let new = rows::meta(&world.tables).unwrap().claim_epoch;
    world.done(Kind::Ack(Ack { claim: new, through: 1 }));
    assert_eq!(world.outbox().iter().map(|entry| entry.seq).collect::<Vec<_>>(), [2]);
    world.done(Kind::Ack(Ack { claim: new, through: 99 }));
    assert_eq!(rows::meta(&world.tables).unwrap().outbox_acked, 2, "only what was ever sent");
}

#[test]
fn what_waits_for_an_enrolment_is_bounded_and_contiguous() {
    let mut world = World::new();
    let mut seq = 0;
    for _ in 0..51 {
        let batch: Vec<_> = (0..1_000)
            .map(|_| {
                seq += 1;
                seen(seq, "10.0.0.5", "CNB1", MAC_A, seq)
            })
            .collect();
        world.record(1, &batch);
    }
    let meta = rows::meta(&world.tables).unwrap();
    let numbers: Vec<u64> = world.outbox().iter().map(|entry| entry.seq).collect();
    assert_eq!(numbers.len(), 50_000);
    assert_eq!(numbers.first(), Some(&(meta.outbox_acked + 1)));
    assert_eq!(numbers.last(), Some(&(meta.outbox_next - 1)));
    world.done(Kind::Enroll(Enroll::default()));
    world.record(1, &[seen(seq + 1, "10.0.0.5", "CNB1", MAC_A, 7)]);
    let first = world.outbox()[0].seq;
    assert_eq!(
        (world.outbox().len(), first),
        (50_000, meta.outbox_acked + 2),
        "a later one of its day stands for it"
    );
    assert_eq!(rows::meta(&world.tables).unwrap().outbox_acked, meta.outbox_acked, "nothing was given up");
}

#[test]
fn a_units_hops_are_those_that_its_owner_measured_last() {
    let mut world = World::new();
    let row =
        |world: &World| rows::units(&world.tables).unwrap().into_iter().find(|u| u.unit == UNIT).unwrap();
    let report = |node, hops| {
        let segment = "10.0.0.0/24".to_owned();
        let reach = Reach { segment, hops, reachable: true, measured_at_ms: 1 };
        Kind::ReportReach(ReportReach { node, reaches: vec![reach] })
    };
    let epoch = row(&world).epoch;
    world.done(report(1, Some(2)));
    assert_eq!((row(&world).hops, row(&world).epoch), (Some(2), epoch));
    world.done(report(1, None));
    assert_eq!(row(&world).hops, None);
    world.grant(9);
    world.done(report(1, Some(7)));
    assert_eq!(row(&world).hops, None, "another node's distance is not the owner's");
}

#[test]
fn a_device_that_was_read_before_its_way_was_measured_learns_it() {
    let mut world = World::new();
    let unmeasured = |seq, address| Observation { hops: None, ..seen(seq, address, address, "", 7) };
    world.record(1, &[unmeasured(1, "10.0.0.5")]);
    assert_eq!(world.devices()[0].hops, None);
    let segment = "10.0.0.0/24".to_owned();
    let reach = Reach { segment, hops: Some(2), reachable: true, measured_at_ms: 1 };
    world.done(Kind::ReportReach(ReportReach { node: 1, reaches: vec![reach] }));
    world.record(1, &[unmeasured(2, "10.0.0.6")]);
    let hops: Vec<_> = world.devices().iter().map(|device| device.hops).collect();
    assert_eq!(hops, [Some(2), Some(2)], "those of before, and those whose node did not know it yet");
}

#[test]
fn tokens_admit_once_in_time_and_by_name() {
    let mut world = World::new();
    let token = |id: &str| CreateToken {
        id: id.into(),
        secret_sha256: Bytes::from_static(b"secret"),
        expires_at_ms: 1_000_000,
        by: "op".into(),
        ..CreateToken::default()
    };
    let join = |id: &str, secret: &'static [u8], name: &str| Join {
        token_id: id.into(),
        token_secret_sha256: Bytes::from_static(secret),
        member: Some(Member {
            name: name.into(),
            address: name.into(),
            cluster_version: quire_proto::CLUSTER_VERSION,
            ..Member::default()
        }),
    };
    world.done(Kind::CreateToken(token("a")));
    world.done(Kind::CreateToken(token("b")));
    assert!(world.refused(Kind::Join(join("x", b"secret", "n2"))).contains("not known"));
    assert!(world.refused(Kind::Join(join("a", b"guess", "n2"))).contains("not known"));
    assert!(world.refused(Kind::Join(join("a", b"secret", "n1"))).contains("named `n1`"));
    world.done(Kind::Join(join("a", b"secret", "n2")));
    let index = world.index;
    assert!(rows::member(&world.tables, NodeId(index)).unwrap().is_some(), "the id is the log index");
    assert!(world.refused(Kind::Join(join("a", b"secret", "n3"))).contains("used before"));
    let late = world.apply_at(1_000_000, Kind::Join(join("b", b"secret", "n3")));
    assert!(matches!(late, Answer::Rejected(why) if why.contains("expired")));
}

#[test]
fn a_recovered_cluster_has_one_member_and_numbers_that_nobody_used() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1", MAC_A, 7), seen(2, "10.0.0.6", "CNB2", MAC_B, 9)]);
    world.done(Kind::Ack(Ack { claim: world.claim, through: 1 }));
    let waiting: Vec<_> = world.outbox().into_iter().map(|entry| entry.row).collect();
    let base = crate::recover::base(world.index);
    let keep = Member { id: 9, name: "n9".into(), ..Member::default() };
    let recover = |base| Kind::Recover(Recover { base, keep: Some(keep.clone()), by: "op".into() });
    assert!(world.refused(recover(1)).contains("taken"));
    world.done(recover(base));
    assert_eq!(rows::members(&world.tables).unwrap(), std::slice::from_ref(&keep));
    let numbered: Vec<_> = world.outbox().into_iter().map(|entry| (entry.seq, entry.row)).collect();
    assert_eq!(numbered, [(base, waiting[0].clone())], "what was not acknowledged, and nothing else");
    let meta = rows::meta(&world.tables).unwrap();
    assert_eq!((meta.outbox_base, meta.outbox_acked, meta.outbox_next), (base, base - 1, base + 1));
    assert_eq!(world.devices().len(), 2, "what is known stays");
    assert!(world.refused(recover(base)).contains("taken"), "twice");
    assert!(crate::recover::base(base) > base && crate::recover::base(base - 1) == base);
}

#[test]
fn requests_name_what_they_mean() {
    let mut world = World::new();
    let ask = |what| Kind::Ask(Ask { by: "op".into(), what: Some(what) });
    assert!(world.refused(ask(AskWhat::SweepSegment("10.9.0.0/16".into()))).contains("10.9.0.0/16"));
    assert!(world.refused(ask(AskWhat::ReadDevice("nobody".into()))).contains("nobody"));
    world.done(ask(AskWhat::SweepSegment("10.0.0.0/24".into())));
    assert!(world.unit().asked_at_ms > 0);
}

/// One step of a random history: who speaks, which device is where.
fn step() -> impl Strategy<Value = (u64, u8, u8, bool)> {
    (1u64..3, 0u8..4, 0u8..4, any::<bool>())
}

proptest! {
    /// Whatever happens, upstream numbers are contiguous, every evidence key points to a device that
    /// lists it, and no two devices live at one address.
    #[test]
    fn the_tables_stay_consistent(steps in proptest::collection::vec(step(), 0..40)) {
        let mut world = World::new();
        let mut seqs = [0u64; 3];
        for (node, serial, host, with_mac) in steps {
            let seq = &mut seqs[usize::try_from(node).unwrap()];
            *seq += 1;
            let mac = if with_mac { format!("00:20:6b:00:00:0{serial}") } else { String::new() };
            let observation = seen(*seq, &format!("10.0.0.{host}"), &format!("SERIAL{serial}"), &mac, 7);
            world.record(node, &[observation]);
        }
        let numbers: Vec<u64> = world.outbox().iter().map(|entry| entry.seq).collect();
        prop_assert_eq!(&numbers, &(1..=numbers.len() as u64).collect::<Vec<_>>());
        let devices = world.devices();
        let mut addresses: Vec<_> = devices.iter().map(|d| &d.address).filter(|a| !a.is_empty()).collect();
        addresses.sort();
        let before = addresses.len();
        addresses.dedup();
        prop_assert_eq!(before, addresses.len());
        prop_assert_eq!(devices.len() as u64, rows::meta(&world.tables).unwrap().devices);
        prop_assert_eq!(u64::from(world.unit().devices), before as u64);
        for (key, id) in world.tables.range(Table::Evidence, &[], 1_000).unwrap() {
            let device: DeviceRow = world.tables.row(Table::Devices, &id).unwrap().unwrap();
            let key = String::from_utf8(key.to_vec()).unwrap();
            prop_assert!(device.evidence.contains(&key), "{key} points to a device that does not list it");
        }
        let place = |d: &DeviceRow| (rows::place_key(&d.zone, &d.address, &d.id), d.id.clone());
        let mut places: Vec<_> = devices.iter().map(place).collect();
        places.sort();
        let indexed = world.tables.range(Table::Places, &[], 1_000).unwrap().into_iter();
        let indexed: Vec<_> =
            indexed.map(|(key, id)| (key.to_vec(), String::from_utf8(id.to_vec()).unwrap())).collect();
        prop_assert_eq!(indexed, places);
    }
}

#[test]
fn ways_to_segments_that_nobody_wants_are_forgotten_under_the_claim() {
    let mut world = World::new();
    let reach = |segment: &str| Reach { segment: segment.into(), reachable: true, ..Reach::default() };
    let reaches = vec![reach("10.1.0.0/24"), reach("10.2.0.0/24")];
    world.done(Kind::ReportReach(ReportReach { node: 1, reaches }));
    let forget = |claim| Kind::ForgetReaches(ForgetReaches { claim, segments: vec!["10.1.0.0/24".into()] });
    assert!(world.refused(forget(world.claim + 1)).contains("not in force"));
    world.done(forget(world.claim));
    let left: Vec<ReachRow> = world.tables.all(Table::Reach, &[]).unwrap();
    let left: Vec<String> = left.into_iter().filter_map(|row| row.reach).map(|reach| reach.segment).collect();
    assert_eq!(left, ["10.2.0.0/24"]);
}
