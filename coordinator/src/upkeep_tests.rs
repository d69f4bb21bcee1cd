//! What keeps the tables true over time: clocks, half readings, jobs, fields, places, trials.

use quire_proto::store::{Trial, Tried, UpstreamIdentity};

use super::*;

const DAY: u64 = rows::DAY_MS;

fn total(device: &DeviceRow) -> Option<u64> {
    convert::decode(&device.reading).unwrap().counters.total
}

fn record_at(world: &mut World, led_at_ms: u64, node: u64, observation: &Observation) {
    let record = Record { node, observations: vec![observation.encode_to_vec().into()] };
    // The proposer's own clock says what it likes.
    let at_ms = observation.at_ms;
    let answer =
        world.obey(&Command { at_ms, led_at_ms, kind: Some(Kind::Record(record)), ..Command::default() });
    assert!(matches!(answer, Answer::RecordedThrough(_)), "{answer:?}");
}

#[test]
fn a_clock_that_is_ahead_freezes_no_device() {
    let mut world = World::new();
    let now = 1_000 * DAY;
    let ahead = Observation { at_ms: now + 365 * DAY, ..seen(1, "10.0.0.5", "CNB1", MAC_A, 70) };
    record_at(&mut world, now, 1, &ahead);
    assert_eq!(world.devices()[0].metered_at_ms, now);
    let [row] = &world.readings()[..] else { panic!() };
    assert_eq!((row.at_ms, row.said_at_ms), (now, ahead.at_ms), "both are kept");
    assert_eq!(
        world.outbox()[0].row.as_ref().unwrap().at_ms,
        now,
        "it is billed on the day on which it came"
    );
    // The unit moves to a node whose clock is right, or even a minute behind.
    let epoch = world.grant(2);
    let honest = Observation { at_ms: now - 60_000, epoch, ..seen(1, "10.0.0.5", "CNB1", MAC_A, 71) };
    record_at(&mut world, now + 10, 2, &honest);
    assert_eq!(total(&world.devices()[0]), Some(71));
    assert_eq!(world.readings().len(), 2);
    assert_eq!(world.readings().iter().filter(|row| row.said_at_ms > 0).count(), 1);
}

#[test]
fn a_calendar_that_was_ahead_makes_nobody_homeless() {
    let mut world = World::new();
    let (now, hour) = (1_000 * DAY, DAY / 24);
    let read = |world: &mut World, led_at_ms: u64, seq, host: &str, serial: &str, mac: &str| {
        // It takes some seconds into the log.
        let observation = Observation { at_ms: led_at_ms - 5_000, ..seen(seq, host, serial, mac, 70) };
        record_at(world, led_at_ms, 1, &observation);
        let serial = format!("serial:{serial}");
        let device = world.devices().into_iter().find(|row| row.evidence.contains(&serial)).unwrap();
        (device.address, device.unit)
    };
    let lives = |host: &str| (format!("{host}:161"), UNIT.to_owned());
    read(&mut world, now + 2 * DAY, 1, "10.0.0.5", "CNB1001", MAC_A);
    assert_eq!(read(&mut world, now, 2, "10.0.0.6", "CNB1001", MAC_A), lives("10.0.0.6"));
    assert_eq!(read(&mut world, now + hour, 3, "10.0.0.5", "CNB1001", MAC_A), lives("10.0.0.5"));
    // Nor whoever comes to where somebody was seen in the future.
    read(&mut world, now + 2 * DAY, 4, "10.0.0.7", "CNB1001", MAC_A);
    assert_eq!(read(&mut world, now + 2 * hour, 5, "10.0.0.7", "CNB1002", MAC_B), lives("10.0.0.7"));
    assert_eq!(read(&mut world, now + 3 * hour, 6, "10.0.0.8", "CNB1001", MAC_A), lives("10.0.0.8"));
}

#[test]
fn a_clock_that_is_ahead_freezes_no_unit() {
    let mut world = World::new();
    let (now, future) = (1_000 * DAY, 1_365 * DAY);
    let mark = SweepMark {
        started_at_ms: future - 9,
        finished: true,
        total: 254,
        done: 254,
        ..SweepMark::default()
    };
    let what = Some(What::Sweep(mark));
    record_at(&mut world, now, 1, &Observation { at_ms: future, what, ..seen(1, "", "", "", 0) });
    let unit = world.unit();
    assert_eq!(
        (unit.swept_at_ms, unit.sweep.unwrap().started_at_ms),
        (now, now),
        "the next slot is not a year away"
    );
}

#[test]
fn a_clock_that_is_a_little_ahead_is_believed() {
    let mut world = World::new();
    let soon = Observation { at_ms: 1_000 * DAY + 59_000, ..seen(1, "10.0.0.5", "CNB1", MAC_A, 70) };
    record_at(&mut world, 1_000 * DAY, 1, &soon);
    assert_eq!((world.readings()[0].at_ms, world.readings()[0].said_at_ms), (soon.at_ms, 0));
}

#[test]
fn what_waited_in_the_spool_of_a_former_owner_turns_nothing_back() {
    let mut world = World::new();
    let epoch = world.grant(2);
    record_at(
        &mut world,
        DAY,
        2,
        &Observation { at_ms: DAY, epoch, ..seen(1, "10.0.0.5", "CNB1", MAC_A, 71) },
    );
    record_at(&mut world, DAY, 1, &Observation { at_ms: DAY - 9, ..seen(1, "10.0.0.5", "CNB1", MAC_A, 70) });
    assert_eq!(total(&world.devices()[0]), Some(71));
    assert!(world.readings()[0].late && !world.readings()[1].late);
}

#[test]
fn half_a_reading_is_no_reading_but_says_who_is_there() {
    let mut world = World::new();
    let half = |seq, address, serial| Observation { facts_only: true, ..seen(seq, address, serial, "", 0) };
    world.record(1, &[half(1, "10.0.0.5", "CNB1")]);
    let [device] = &world.devices()[..] else { panic!() };
    assert_eq!(
        (device.metered_at_ms, device.address.as_str()),
        (0, "10.0.0.5:161"),
        "to be read as soon as may be"
    );
    assert!(world.readings().is_empty() && world.outbox().is_empty());
    assert_eq!(world.unit().devices, 1);
    world.record(1, &[seen(2, "10.0.0.5", "CNB1", "", 7), half(3, "10.0.0.5", "CNB1")]);
    let [device] = &world.devices()[..] else { panic!() };
    assert_eq!((total(device), world.readings().len()), (Some(7), 1), "a whole reading is worth more");
    assert_eq!(device.metered_at_ms, 10_002);
}

#[test]
fn a_job_that_comes_again_is_answered_again_and_not_done_again() {
    let mut world = World::new();
    let job = |id: &str, segment: &str, at_ms| {
        let what = Some(AskWhat::SweepSegment(segment.into()));
        let kind = Some(Kind::Ask(Ask { by: "web admin".into(), what }));
        Command { at_ms, job: id.into(), kind, ..Command::default() }
    };
    assert!(matches!(world.obey(&job("j1", "10.0.0.0/24", 5_000)), Answer::Changes(_)));
    assert_eq!(world.obey(&job("j1", "10.0.0.0/24", 9_000)), Answer::Done(true));
    assert_eq!(world.unit().asked_at_ms, 5_000);
    let first = world.obey(&job("j2", "10.9.0.0/24", 5_000));
    assert!(matches!(&first, Answer::Rejected(why) if why.contains("10.9.0.0/24")));
    assert_eq!(world.obey(&job("j2", "10.9.0.0/24", 9_000)), first, "in the same words");
    assert!(matches!(world.obey(&job("j3", "10.0.0.0/24", 9_000)), Answer::Changes(_)));
    assert_eq!(world.unit().asked_at_ms, 9_000);
}

#[test]
fn what_is_asked_for_is_asked_for_at_the_leaders_time() {
    let mut world = World::new();
    world.record(1, &[seen(1, "10.0.0.5", "CNB1001", MAC_A, 70)]);
    let device = world.devices()[0].id.clone();
    let (now, hour) = (1_000 * DAY, DAY / 24);
    for (n, at_ms) in (1..).zip([now - hour, now + hour]) {
        let led_at_ms = now + n;
        let mut obey = |kind| {
            let command = Command { at_ms, led_at_ms, kind: Some(kind), ..Command::default() };
            assert!(!matches!(world.obey(&command), Answer::Rejected(_)));
            let explore_ms = rows::meta(&world.tables).unwrap().explore_asked_at_ms;
            [world.unit().asked_at_ms, world.devices()[0].asked_at_ms, explore_ms]
        };
        let ask = |what| Kind::Ask(Ask { by: "op".into(), what: Some(what) });
        obey(ask(AskWhat::SweepSegment(UNIT.into())));
        obey(ask(AskWhat::Explore(true)));
        assert_eq!(obey(ask(AskWhat::ReadDevice(device.clone()))), [led_at_ms; 3]);
        let again = PutSettings { sweep_again: true, ..PutSettings::default() };
        assert_eq!(obey(Kind::PutSettings(again))[0], led_at_ms);
    }
}

#[test]
fn remembered_jobs_are_bounded() {
    let mut world = World::new();
    for n in 0..1_003 {
        let kind = Some(Kind::SetUpstreamMode(SetUpstreamMode::default()));
        world.obey(&Command { job: format!("j{n}"), kind, ..Command::default() });
    }
    assert_eq!(world.tables.range(Table::Jobs, &[], 2_000).unwrap().len(), 1_000);
    assert!(world.tables.get(Table::Jobs, b"j2").unwrap().is_none());
    assert!(world.tables.get(Table::Jobs, b"j3").unwrap().is_some(), "the oldest go first");
}

#[test]
fn two_who_change_a_member_do_not_undo_each_other() {
    let mut world = World::new();
    let update = |update| Kind::UpdateMember(update);
    world.done(update(UpdateMember { id: 1, draining: Some(true), ..UpdateMember::default() }));
    let moved = UpdateMember { id: 1, address: Some("n1:7441".into()), ..UpdateMember::default() };
    world.done(update(moved));
    let capabilities = Some(quire_proto::store::Capabilities { names: vec!["chromium".into()] });
    world.done(update(UpdateMember { id: 1, capabilities, ..UpdateMember::default() }));
    let member = rows::member(&world.tables, NodeId(1)).unwrap().unwrap();
    assert_eq!(member.capabilities, ["chromium"]);
    assert_eq!((member.draining, member.address.as_str(), member.name.as_str()), (true, "n1:7441", "n1"));
    let whole = Member { id: 1, name: "old".into(), ..Member::default() };
    world.done(update(UpdateMember { member: Some(whole.clone()), ..UpdateMember::default() }));
    assert_eq!(rows::member(&world.tables, NodeId(1)).unwrap(), Some(whole), "as older versions meant it");
    world.refused(update(UpdateMember { id: 9, ..UpdateMember::default() }));
}

#[test]
fn enrolling_anew_leaves_no_certificate_of_the_site_before() {
    let mut world = World::new();
    let certificate =
        |node, text: &'static [u8]| UpstreamIdentity { node, certificate_der: Bytes::from_static(text) };
    let enroll =
        |site: &str, identities| Kind::Enroll(Enroll { site: site.into(), identities, ..Enroll::default() });
    let certificates = |world: &World| {
        rows::members(&world.tables)
            .unwrap()
            .into_iter()
            .map(|m| m.upstream_certificate_der)
            .collect::<Vec<_>>()
    };
    let token = CreateToken { id: "t".into(), expires_at_ms: u64::MAX, ..CreateToken::default() };
    world.done(Kind::CreateToken(token));
    let second = Member {
        name: "n2".into(),
        address: "n2".into(),
        cluster_version: quire_proto::CLUSTER_VERSION,
        ..Member::default()
    };
    world.done(Kind::Join(Join { token_id: "t".into(), member: Some(second), ..Join::default() }));
    let second = world.index;
    world.done(enroll("a", vec![certificate(1, b"1 at a"), certificate(second, b"2 at a")]));
    assert_eq!(certificates(&world), [&b"1 at a"[..], b"2 at a"]);
    world.done(enroll("b", vec![certificate(1, b"1 at b")]));
    assert_eq!(certificates(&world), [&b"1 at b"[..], b""]);
    assert!(rows::meta(&world.tables).unwrap().upstream.unwrap().identities.is_empty());
}

#[test]
fn devices_are_found_by_where_they_live() {
    let mut world = World::new();
    let at = |seq, address: &str, serial: &str| seen(seq, address, serial, "", 7);
    world.record(1, &[at(1, "10.0.0.20", "CNB1"), at(2, "10.0.0.3", "CNB2"), at(3, "10.0.0.100", "CNB3")]);
    let found = |prefix: &str| {
        let mut found = Vec::new();
        rows::devices_in(&world.tables, "hq", prefix.parse().unwrap(), |row| {
            found.push(row.address);
            true
        })
        .unwrap();
        found
    };
    assert_eq!(found("10.0.0.0/24"), ["10.0.0.3:161", "10.0.0.20:161", "10.0.0.100:161"]);
    assert_eq!(found("10.0.0.0/26"), ["10.0.0.3:161", "10.0.0.20:161"]);
    assert_eq!(found("10.0.0.100/32"), ["10.0.0.100:161"]);
    assert!(found("10.0.1.0/24").is_empty());
}

/// A user is tried once at a device in a sweep, by whoever says so first under the grant in force.
#[test]
fn trials_are_agreed_upon_before_they_are_made() {
    let mut world = World::new();
    let epoch = world.unit().epoch;
    let trial = |node, epoch, started_at_ms, users| {
        let tried = vec![Tried { address: 5, users }];
        let unit = UNIT.into();
        Kind::Trial(Trial { node, unit, epoch, started_at_ms, settings_index: 0, tried })
    };
    let tried = |world: &World, at| coverage::users_tried(&world.unit(), at, 0, 5);
    world.done(trial(1, epoch, 100, 1));
    assert_eq!((tried(&world, 100), tried(&world, 101)), (1, 0));
    let moved = world.grant(2);
    assert!(world.refused(trial(1, epoch, 100, 2)).contains("not node 1's"), "it was cut off and comes back");
    assert!(world.refused(trial(2, moved, 100, 1)).contains("tried already"));
    world.done(trial(2, moved, 100, 2));
    assert_eq!(tried(&world, 100), 2, "the new owner goes on with the next user");
    world.done(trial(2, moved, 200, 1));
    assert_eq!((tried(&world, 200), tried(&world, 100)), (1, 0), "another sweep, another try");
    world.done(Kind::PutSettings(PutSettings::default()));
    assert!(world.refused(trial(2, moved, 200, 2)).contains("settings"));
}
