//! What rules come to: the same open alerts whoever led and whatever got lost, and nobody told twice.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use quire_proto::convert;
use quire_proto::id::Millis;
use quire_proto::reading::{Facts, Reading, Supply, SupplyKind, SupplyState};
use quire_proto::store::observation::What;
use quire_proto::store::{
    Alert, AlertChange, AlertDelivery, AlertRow, AlertTold, AlertsTold, EventRow, Observation, OutboxEntry,
    Silence,
};

use super::tests::{UNIT, World};
use super::*;
use crate::alert::{self, Judge, Watch};
use crate::settings::{AlertRule, Notify, Settings};
use crate::tables::MemoryTables;

const HOOK: &str = "webhook:hooks.example#1";

fn rules(text: &str) -> Vec<AlertRule> {
    Settings::parse(text).unwrap().alerts
}

fn low_toner() -> Vec<AlertRule> {
    rules(
        "[[alert]]\nname = \"low toner\"\nwhen = 'supply.kind == \"toner\" && supply.percent < 15'\n\
         notify = [\"upstream\", \"webhook:https://hooks.example/x\"]",
    )
}

/// A device whose black and cyan cartridges are so full; `None`: it does not say.
fn read(seq: u64, host: u8, levels: &[Option<u8>]) -> Observation {
    let supply = |(n, percent): (usize, &Option<u8>)| Supply {
        index: n as u32 + 1,
        name: ["Black", "Cyan"][n].into(),
        kind: SupplyKind::Toner,
        color: None,
        level: None,
        max: None,
        unit: None,
        percent: *percent,
        state: SupplyState::Some,
    };
    let reading = Reading {
        facts: Facts {
            model: Some("M605".into()),
            serial: Some(format!("CNB100{host}")),
            ..Facts::default()
        }
        .into(),
        supplies: levels.iter().enumerate().map(supply).collect(),
        ..Reading::default()
    };
    Observation {
        seq,
        unit: UNIT.into(),
        epoch: 3,
        address: format!("10.0.0.{host}:161"),
        at_ms: 10_000 + seq,
        what: Some(What::Reading(convert::encode(&reading))),
        ..Observation::default()
    }
}

/// What a leader would propose from these tables.
fn look(tables: &MemoryTables, rules: &[AlertRule], watch: &mut Watch, now: u64) -> Vec<AlertChange> {
    let judge = Judge::new(rules, tables).unwrap();
    let devices: Vec<DeviceRow> = tables.all(Table::Devices, &[]).unwrap();
    let mut subjects: BTreeSet<String> = devices.iter().map(|row| format!("device/{}", row.id)).collect();
    subjects.insert(format!("unit/{UNIT}"));
    subjects.insert("cluster".to_owned());
    subjects.extend(judge.open_subjects(&[], 1_000).unwrap().0);
    let mut changes: Vec<AlertChange> = Vec::new();
    for subject in subjects {
        for verdict in judge.subject(&subject).unwrap() {
            changes.extend(watch.settle(verdict, Millis(now)));
        }
    }
    changes.dedup();
    changes.into_iter().map(|change| AlertChange { targets: vec![HOOK.to_owned()], ..change }).collect()
}

impl World {
    fn alerts(&self) -> Vec<AlertRow> {
        self.tables.all(Table::Alerts, &[]).unwrap()
    }

    fn propose(&mut self, at_ms: u64, changes: Vec<AlertChange>) -> Answer {
        let settings_index = rows::meta(&self.tables).unwrap().settings_index;
        self.apply_at(at_ms, Kind::Alert(Alert { claim: self.claim, settings_index, changes }))
    }

    /// Looks and applies what that came to.
    fn judge(&mut self, at_ms: u64, rules: &[AlertRule]) {
        let changes = look(&self.tables, rules, &mut Watch::default(), at_ms);
        self.propose(at_ms, changes);
    }

    fn news(&self) -> Vec<(u64, bool)> {
        let alerts =
            self.outbox().into_iter().filter_map(|entry: OutboxEntry| Some((entry.seq, entry.alert?.open)));
        alerts.collect()
    }

    fn tell(&mut self, at_ms: u64, row: &AlertRow, failed: &str) {
        self.tell_to(HOOK, at_ms, row, failed);
    }

    fn tell_to(&mut self, target: &str, at_ms: u64, row: &AlertRow, failed: &str) {
        let delivery = AlertDelivery {
            target: target.to_owned(),
            serial: row.serial,
            raised: row.open,
            failed: failed.to_owned(),
            ..AlertDelivery::default()
        };
        let told =
            AlertTold { rule: row.rule.clone(), subject: row.subject.clone(), delivery: Some(delivery) };
        let told = Kind::AlertsTold(AlertsTold { claim: self.claim, told: vec![told] });
        assert!(!matches!(self.apply_at(at_ms, told), Answer::Rejected(_)));
    }
}

#[test]
fn an_alert_is_raised_once_and_cleared_by_a_reading() {
    let (mut world, rules) = (World::new(), low_toner());
    world.record(1, &[read(1, 5, &[Some(14), Some(80)])]);
    world.judge(20_000, &rules);
    world.judge(20_001, &rules);
    let [row] = &world.alerts()[..] else { panic!("{:?}", world.alerts()) };
    assert!(row.open && row.subject.ends_with("/supply/1") && row.raises == 1, "{row:?}");
    assert_eq!(row.what, "Black of M605 at 10.0.0.5: supply.kind toner, supply.percent 14");
    assert_eq!(alert::owed(row, HOOK), Some(Millis(20_000)));
    assert_eq!(rows::meta(&world.tables).unwrap().alerts_open, 1);
    assert_eq!(world.news(), [(2, true)]);

    world.record(1, &[read(2, 5, &[Some(100), Some(80)])]);
    world.judge(30_000, &rules);
    let [cleared] = &world.alerts()[..] else { panic!() };
    assert_eq!((cleared.open, cleared.id == row.id, cleared.cleared_at_ms), (false, true, 30_000));
    assert_eq!(cleared.why, "Black of M605 at 10.0.0.5: supply.kind toner, supply.percent 100");
    // What the Web Admin was not told yet is told as it is now; it hears of one alert, not of two.
    assert_eq!(world.news(), [(4, false)]);
    let events: Vec<EventRow> = world.tables.all(Table::Events, &[]).unwrap();
    let kinds: Vec<&str> = events.iter().map(|event| event.kind.as_str()).collect();
    assert_eq!(kinds, ["alert-raised", "alert-cleared"]);
    assert_eq!(rows::meta(&world.tables).unwrap().alerts_open, 0);
}

#[test]
fn silence_and_the_unknown_neither_raise_nor_clear() {
    let (mut world, rules) = (World::new(), low_toner());
    world.record(1, &[read(1, 5, &[None])]);
    world.judge(20_000, &rules);
    assert!(world.alerts().is_empty());
    world.record(1, &[read(2, 5, &[Some(3)])]);
    world.judge(20_001, &rules);
    let device = world.devices()[0].id.clone();
    let silent = |seq| Observation {
        what: Some(What::Silence(Silence { device: device.clone() })),
        ..read(seq, 5, &[])
    };
    world.record(1, &[silent(3), silent(4), silent(5)]);
    world.judge(20_002, &rules);
    world.record(1, &[read(6, 5, &[None])]);
    world.judge(20_003, &rules);
    // A reading without any supplies says nothing of them, either.
    world.record(1, &[read(7, 5, &[])]);
    world.judge(20_004, &rules);
    assert!(world.alerts()[0].open);
    world.record(1, &[read(8, 5, &[None, Some(50)])]);
    world.judge(20_005, &rules);
    assert!(world.alerts()[0].open, "it is there, and says nothing");
}

#[test]
fn an_offline_device_is_offline_and_rules_out_no_other_state() {
    let mut world = World::new();
    let rules = rules(
        "[[alert]]\nname = \"away\"\nwhen = 'status == \"offline\"'\nnotify = []\n\
         [[alert]]\nname = \"busy\"\nwhen = 'status != \"idle\"'\nnotify = []",
    );
    world.record(1, &[read(1, 5, &[])]);
    let device = world.devices()[0].id.clone();
    let silent = |seq| Observation {
        what: Some(What::Silence(Silence { device: device.clone() })),
        ..read(seq, 5, &[])
    };
    world.record(1, &[silent(2)]);
    world.judge(20_000, &rules);
    assert!(world.alerts().is_empty(), "one miss is never offline");
    world.record(1, &[silent(3)]);
    world.judge(20_001, &rules);
    let open: Vec<String> = world.alerts().into_iter().map(|row| row.rule).collect();
    assert_eq!(open, ["away"]);
}

#[test]
fn what_is_hidden_is_alerted_on_site_alone() {
    let (mut world, rules) = (World::new(), low_toner());
    world.done(Kind::PutSettings(PutSettings { hide: vec!["10.0.0.0/25".into()], ..PutSettings::default() }));
    world.record(1, &[read(1, 5, &[Some(3)]), read(2, 200, &[Some(3)])]);
    world.judge(20_000, &rules);
    let hidden: Vec<bool> = world.alerts().iter().map(|row| row.hidden).collect();
    assert_eq!(hidden.iter().filter(|hidden| **hidden).count(), 1);
    assert_eq!(world.news().len(), 1);
    assert!(
        world.alerts().iter().all(|row| alert::owed(row, HOOK).is_some()),
        "people on site are told of both"
    );
    world.done(Kind::Enroll(Enroll::default()));
    assert_eq!(world.news().len(), 1, "who enrols anew is told of what is open and not hidden, once");
}

#[test]
fn changes_judged_by_what_has_passed_count_for_nothing() {
    let (mut world, rules) = (World::new(), low_toner());
    world.record(1, &[read(1, 5, &[Some(3)])]);
    let stale = look(&world.tables, &rules, &mut Watch::default(), 0);
    world.record(1, &[read(2, 5, &[Some(90)])]);
    world.propose(20_000, stale.clone());
    assert!(world.alerts().is_empty(), "the toner was replaced meanwhile");
    world.record(1, &[read(3, 5, &[Some(3)])]);
    let fresh = look(&world.tables, &rules, &mut Watch::default(), 0);
    let before = world.claim;
    world.claim += 1;
    assert!(matches!(world.propose(20_001, fresh.clone()), Answer::Rejected(_)), "another leads");
    world.claim = before;
    world.done(Kind::PutSettings(PutSettings::default()));
    let old = Kind::Alert(Alert { claim: world.claim, settings_index: 0, changes: fresh.clone() });
    assert!(world.refused(old).contains("other settings"));
    world.propose(20_002, fresh);
    assert_eq!(world.alerts().len(), 1);
}

#[test]
fn alerts_end_with_their_rule_their_device_and_their_supply() {
    let (mut world, rules) = (World::new(), low_toner());
    let low = |seq| [read(seq, 5, &[Some(3), Some(4)]), read(seq + 1, 6, &[Some(3), Some(90)])];
    world.record(1, &low(1));
    world.judge(20_000, &rules);
    assert_eq!(world.alerts().iter().filter(|row| row.open).count(), 3);
    world.record(1, &[read(3, 5, &[Some(3)])]);
    world.judge(20_001, &rules);
    assert_eq!(world.alerts().iter().filter(|row| row.open).count(), 2, "the cyan cartridge is gone");
    let mut gone = world.devices().remove(0);
    gone.expired_at_ms = 1;
    let key = gone.id.clone().into_bytes();
    world.tables.commit(
        [(Table::Devices, key.into(), Some(prost::Message::encode_to_vec(&gone).into()))].into_iter(),
    );
    world.judge(20_002, &rules);
    assert_eq!(world.alerts().iter().filter(|row| row.open).count(), 1);
    world.judge(20_003, &[]);
    assert!(world.alerts().iter().all(|row| !row.open && !row.why.is_empty()));
}

#[test]
fn nodes_units_and_the_cluster_have_alerts_too() {
    let mut world = World::new();
    let rules = rules(
        "[[alert]]\nname = \"node down\"\nwhen = '!node.alive'\nnotify = []\n\
         [[alert]]\nname = \"unowned\"\nwhen = '!unit.owned'\nfor = \"5m\"\nnotify = []\n\
         [[alert]]\nname = \"backlog\"\nwhen = 'cluster.upstream == \"disabled\"'\nnotify = []",
    );
    let heard = |node| quire_proto::store::Heard { node, ..quire_proto::store::Heard::default() };
    let claim = |world: &World, heard| Claim { node: 1, renews: world.claim, heard, ..Claim::default() };
    let said = claim(&world, vec![heard(2)]);
    world.done(Kind::Claim(said));
    world.grant(0);
    let mut watch = Watch::default();
    let named =
        |changes: &[AlertChange]| changes.iter().map(|c| (c.rule.clone(), c.raised)).collect::<Vec<_>>();
    let changes = look(&world.tables, &rules, &mut watch, 20_000);
    assert_eq!(named(&changes), [("node down".to_owned(), true), ("backlog".to_owned(), true)]);
    world.propose(20_000, changes);
    assert!(watch.ripe(Millis(319_999)).is_empty());
    assert_eq!(watch.ripe(Millis(320_000)), [format!("unit/{UNIT}")]);
    let changes = look(&world.tables, &rules, &mut watch, 320_000);
    assert_eq!(named(&changes), [("unowned".to_owned(), true)]);
    assert!(watch.ripe(Millis(u64::MAX)).is_empty(), "what was raised waits no longer");
    world.propose(320_000, changes);
    let said = claim(&world, vec![heard(1)]);
    world.done(Kind::Claim(said));
    world.grant(1);
    let changes = look(&world.tables, &rules, &mut watch, 330_000);
    assert_eq!(named(&changes), [("node down".to_owned(), false), ("unowned".to_owned(), false)]);
}

#[test]
fn what_comes_and_goes_is_one_episode_told_ever_more_rarely() {
    let (mut world, rules) = (World::new(), low_toner());
    let mut told = Vec::new();
    // A reading every ten seconds, each the other way round than the one before, for an hour.
    for n in 0..360 {
        let now = 1_000_000 + n * 10_000;
        world.record(1, &[read(n + 1, 5, &[Some(if n % 2 == 0 { 3 } else { 90 })])]);
        world.judge(now, &rules);
        let row = world.alerts().remove(0);
        if alert::owed(&row, HOOK).is_some_and(|from| from.0 <= now) {
            told.push((now - 1_000_000, row.open));
            world.tell(now, &row, "");
        }
        assert_eq!(world.news().len(), 1, "one entry waits, however often it changed");
    }
    assert_eq!(told[..3], [(0, true), (10_000, false), (20_000, true)], "the first ones are told at once");
    assert!((3..=10).contains(&told.len()), "{told:?}");
    let row = world.alerts().remove(0);
    assert_eq!((row.raises, world.alerts().len()), (180, 1));
    // Calm for longer than an hour: another episode.
    let later = 1_000_000 + 3 * 3_600_000;
    world.record(1, &[read(1_000, 5, &[Some(90)])]);
    world.judge(later, &rules);
    world.record(1, &[read(1_001, 5, &[Some(3)])]);
    world.judge(later + 3_600_001, &rules);
    let again = world.alerts().remove(0);
    assert_ne!(again.id, row.id);
    assert_eq!(
        (again.raises, again.changes, alert::owed(&again, HOOK)),
        (1, 1, Some(Millis(again.changed_at_ms)))
    );
}

#[test]
fn targets_are_owed_what_they_were_not_told() {
    let (mut world, rules) = (World::new(), low_toner());
    world.record(1, &[read(1, 5, &[Some(3)])]);
    world.judge(20_000, &rules);
    let raised = world.alerts().remove(0);
    assert_eq!(
        alert::owed(&raised, "mailto:new@example.org"),
        Some(Millis(20_000)),
        "who is named later, of open ones"
    );
    world.tell(20_010, &raised, "");
    assert_eq!(alert::owed(&world.alerts()[0], HOOK), None);
    world.record(1, &[read(2, 5, &[Some(90)])]);
    world.judge(30_000, &rules);
    let cleared = world.alerts().remove(0);
    assert!(alert::owed(&cleared, HOOK).is_some());
    assert_eq!(alert::owed(&cleared, "mailto:new@example.org"), None);
    assert_ne!(alert::notification_id(&cleared), alert::notification_id(&raised));
    // What an old leader says late takes nothing back.
    world.tell(30_010, &cleared, "");
    world.tell(30_020, &raised, "");
    assert_eq!(alert::owed(&world.alerts()[0], HOOK), None);
    world.tell(30_030, &cleared, "404 Not Found");
    assert_eq!(world.alerts()[0].deliveries[0].failed, "404 Not Found");
}

#[test]
fn targets_that_come_and_go_are_bounded_and_told_once() {
    let mut world = World::new();
    let raise = |raised, targets: &[String]| AlertChange {
        rule: "r".into(),
        subject: "node/1".into(),
        raised,
        targets: targets.to_vec(),
        ..AlertChange::default()
    };
    let some = |from: usize| (from..from + 8).map(|n| format!("mailto:{n}@example.org")).collect::<Vec<_>>();
    world.propose(20_000, vec![raise(true, &some(0))]);
    // The settings change while it is open: whoever is named then is told, too.
    let row = |world: &World| world.alerts().remove(0);
    for (n, target) in (0..16).map(|n| format!("mailto:{n}@example.org")).enumerate() {
        let open = row(&world);
        world.tell_to(&target, 20_000 + n as u64, &open, "");
    }
    assert_eq!(row(&world).deliveries.len(), 16);
    let open = row(&world);
    // By a calendar that was corrected meanwhile.
    for (target, at_ms) in [("mailto:x@example.org", 10_000), ("mailto:y@example.org", 10_001)] {
        assert!(alert::owed(&open, target).is_some());
        world.tell_to(target, at_ms, &open, "");
    }
    for target in ["mailto:x@example.org", "mailto:y@example.org", "mailto:15@example.org"] {
        assert_eq!(alert::owed(&row(&world), target), None, "{target}");
    }
    assert_eq!(row(&world).deliveries.len(), 16);
    // Raised again and again, each time for others.
    for n in 1..10 {
        let at_ms = 30_000 + n as u64 * 10;
        world.propose(at_ms, vec![raise(false, &[])]);
        world.propose(at_ms + 5, vec![raise(true, &some(n * 100))]);
        let row = row(&world);
        assert!(row.deliveries.len() <= 16, "{row:?}");
        assert!(some(n * 100).iter().all(|target| alert::owed(&row, target) == Some(Millis(at_ms + 5))));
    }
}

#[test]
fn the_table_has_a_bound_and_goes_on() {
    let mut world = World::new();
    let raise = |n: u64| AlertChange {
        rule: "r".into(),
        subject: format!("node/{n}"),
        raised: true,
        ..AlertChange::default()
    };
    for some in (0..alert::MOST).collect::<Vec<_>>().chunks(1_000) {
        assert_eq!(world.propose(20_000, some.iter().map(|n| raise(*n)).collect()), Answer::Done(true));
    }
    let full = world.propose(20_001, vec![raise(alert::MOST)]);
    assert!(matches!(&full, Answer::Changes(why) if why.contains("no room for 1")), "{full:?}");
    let clear = |n: u64| AlertChange { raised: false, ..raise(n) };
    world.propose(20_002, (0..10).map(clear).collect());
    assert_eq!(rows::meta(&world.tables).unwrap().alerts_open, alert::MOST - 10);
    let later = 20_002 + 2 * 3_600_000;
    assert_eq!(world.propose(later, vec![raise(alert::MOST)]), Answer::Done(true), "cleared ones make room");
    let meta = rows::meta(&world.tables).unwrap();
    assert_eq!((meta.alerts, meta.alerts_open), (alert::MOST - 9, alert::MOST - 9));
    assert_eq!(world.alerts().len() as u64, meta.alerts);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u8, u8),
    /// A leader looks; its command is applied at once, gets lost, or arrives after the next steps.
    Look(u8),
    Claim,
    /// Whoever leads tells all that is owed; the receiver's answer may get lost on its way into the log.
    Tell(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..3, 0u8..30).prop_map(|(device, percent)| Step::Read(device, percent)),
        4 => (0u8..3).prop_map(Step::Look),
        1 => Just(Step::Claim),
        2 => any::<bool>().prop_map(Step::Tell),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn open_alerts_follow_from_the_last_readings_and_nobody_is_told_twice(
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let (mut world, rules) = (World::new(), low_toner());
        let (mut now, mut seq, mut last) = (1_000_000u64, 0, BTreeMap::new());
        let mut late: Vec<Kind> = Vec::new();
        // What the receiver did, by the id of the notification: a second one of the same id does nothing.
        let mut received: BTreeMap<String, (String, u64, bool)> = BTreeMap::new();
        let mut send = |world: &mut World, now: u64, heard: bool| {
            for row in world.alerts() {
                if alert::owed(&row, HOOK).is_some_and(|from| from.0 <= now) {
                    let known = received.insert(alert::notification_id(&row), (row.id.clone(), row.serial, row.open));
                    assert!(known.is_none_or(|known| known == (row.id.clone(), row.serial, row.open)));
                    if heard {
                        world.tell(now, &row, "");
                    }
                }
            }
            received.clone()
        };
        for step in steps {
            now += 5_000;
            match step {
                Step::Read(device, percent) => {
                    seq += 1;
                    last.insert(device, percent);
                    world.record(1, &[read(seq, device + 5, &[Some(percent)])]);
                }
                Step::Look(fate) => {
                    let changes = look(&world.tables, &rules, &mut Watch::default(), now);
                    let command = Kind::Alert(Alert { claim: world.claim, settings_index: 0, changes });
                    match fate {
                        0 => drop(world.apply_at(now, command)),
                        1 => late.push(command),
                        _ => {}
                    }
                }
                Step::Claim => {
                    let claim = Claim { node: 1, renews: 0, ..Claim::default() };
                    if let Answer::Epoch(epoch) = world.apply_at(now, Kind::Claim(claim)) {
                        world.claim = epoch;
                    }
                    // What the leader before had under way arrives behind the new claim.
                    for command in late.drain(..) {
                        world.apply_at(now, command);
                    }
                }
                Step::Tell(heard) => drop(send(&mut world, now, heard)),
            }
            if late.len() > 2 {
                let command = late.remove(0);
                world.apply_at(now, command);
            }
        }
        now += 10 * 3_600_000;
        world.judge(now, &rules);
        let wanted = last.values().filter(|percent| **percent < 15).count();
        let open: Vec<AlertRow> = world.alerts().into_iter().filter(|row| row.open).collect();
        prop_assert_eq!(open.len(), wanted);
        prop_assert_eq!(rows::meta(&world.tables).unwrap().alerts_open, wanted as u64);
        let received = send(&mut world, now, true);
        for row in world.alerts() {
            prop_assert_eq!(alert::owed(&row, HOOK), None);
            let latest = received.values().filter(|(id, ..)| *id == row.id).max_by_key(|(_, serial, _)| *serial);
            prop_assert_eq!(latest.map(|(_, _, open)| *open), Some(row.open), "the receiver knows how it is");
        }
        // Everything is settled: another leader finds nothing to do and nobody to tell.
        let before = world.tables.clone();
        prop_assert!(look(&world.tables, &rules, &mut Watch::default(), now).is_empty());
        prop_assert_eq!(send(&mut world, now, true), received);
        prop_assert_eq!(world.tables, before);
        prop_assert!(rules[0].notify.contains(&Notify::Upstream));
    }
}
