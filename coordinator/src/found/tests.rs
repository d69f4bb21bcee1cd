//! Found segments in the tables: reported, decided on, forgotten; and what the settings make of them.

use quire_proto::CLUSTER_VERSION;
use quire_proto::id::{Millis, NodeId};
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{
    AuditRow, Bootstrap, Command, DecideSegment, Join, Member, RemoveMember, ReportExploration, RouterReport,
    RouterTrial, TokenRow,
};

use super::*;
use crate::settings::Settings;
use crate::state;
use crate::tables::{MemoryTables, Overlay, ReadExt as _, Table};
use crate::topology::Reach;

struct World {
    tables: MemoryTables,
    index: u64,
}

impl World {
    /// Two nodes, 2 and 3, in the zones hq and plant.
    fn new() -> World {
        let mut world = World { tables: MemoryTables::default(), index: 0 };
        let cluster_version = CLUSTER_VERSION;
        world.apply(Kind::Bootstrap(Bootstrap {
            cluster_id: vec![7; 16].into(),
            first: Some(Member {
                id: 1,
                name: "n1".into(),
                zone: "hq".into(),
                cluster_version,
                ..Member::default()
            }),
            ..Bootstrap::default()
        }));
        for (name, zone) in [("n2", "hq"), ("n3", "plant")] {
            let token = TokenRow { id: name.into(), expires_at_ms: u64::MAX, ..TokenRow::default() };
            let mut overlay = Overlay::new(&world.tables);
            overlay.put(Table::Tokens, name.as_bytes(), &token);
            let writes: Vec<_> = overlay.into_writes().collect();
            world.tables.commit(writes.into_iter());
            let (name, zone) = (name.to_owned(), zone.to_owned());
            let address = name.clone();
            let member = Member { address, name: name.clone(), zone, cluster_version, ..Member::default() };
            let join = Join { token_id: name, member: Some(member), ..Join::default() };
            assert_eq!(world.apply(Kind::Join(join)), Answer::Node(world.index));
        }
        world
    }

    fn apply(&mut self, kind: Kind) -> Answer {
        self.index += 1;
        let mut overlay = Overlay::new(&self.tables);
        let command = Command { at_ms: 1_000 * self.index, kind: Some(kind), ..Command::default() };
        let outcome = state::apply(&mut overlay, self.index, &command).unwrap();
        let writes: Vec<_> = overlay.into_writes().collect();
        self.tables.commit(writes.into_iter());
        outcome.result.unwrap()
    }

    fn report(&mut self, node: u64, segments: &[FoundSegment]) {
        let report = ReportExploration { node, segments: segments.to_vec(), ..ReportExploration::default() };
        assert_eq!(self.apply(Kind::ReportExploration(report)), Answer::Done(true));
    }

    fn decide(&mut self, prefix: &str, zone: &str, decision: &str) -> Answer {
        self.apply(Kind::DecideSegment(DecideSegment {
            prefix: prefix.into(),
            zone: zone.into(),
            decision: decision.into(),
            by: "operator".into(),
            confirm_large: false,
        }))
    }

    /// Zone, prefix and state of each.
    fn states(&self, discovery: &Discovery) -> Vec<(String, String, State)> {
        let rows = rows::segments(&self.tables).unwrap();
        let state = |row: &SegmentRow| judge(row, discovery, &ReachMap::new()).unwrap().state;
        rows.iter().map(|row| (row.zone.clone(), row.prefix.clone(), state(row))).collect()
    }
}

fn found(prefix: &str, hops: u32) -> FoundSegment {
    let chain = (0..hops).map(|n| format!("10.0.0.{n}")).collect();
    FoundSegment { prefix: prefix.into(), hops, chain, seen_at_ms: 5, ..FoundSegment::default() }
}

fn discovery(text: &str) -> Discovery {
    Settings::parse(&format!("[discovery]\n{text}")).unwrap().discovery
}

fn rejected(answer: Answer) -> String {
    match answer {
        Answer::Rejected(why) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn the_operators_word_stands_above_the_settings() {
    let mut world = World::new();
    world.report(2, &[found("10.1.0.0/24", 1), found("8.8.0.0/24", 1), found("10.9.0.0/24", 3)]);
    world.report(3, &[found("10.1.0.0/24", 0)]);
    let private = discovery("hops = 2");
    let all = |states: &[(&str, &str, State)]| {
        states
            .iter()
            .map(|(zone, prefix, state)| ((*zone).into(), (*prefix).into(), *state))
            .collect::<Vec<_>>()
    };
    let (p, a) = (State::Proposed, State::Automatic);
    assert_eq!(
        world.states(&private),
        all(&[
            ("hq", "10.1.0.0/24", a),
            ("hq", "10.9.0.0/24", p),
            ("hq", "8.8.0.0/24", p),
            ("plant", "10.1.0.0/24", a),
        ])
    );
    assert!(world.states(&discovery("hops = 2\naccept = \"ask\"")).iter().all(|(.., state)| *state == p));
    assert!(world.states(&discovery("rate = 1")).iter().all(|(.., state)| *state == p), "no hops");
    assert_eq!(world.states(&discovery("hops = 3\naccept = \"all\"")).iter().filter(|s| s.2 == a).count(), 4);

    assert_eq!(
        world.decide("8.8.0.0/24", "", ACCEPTED),
        Answer::Changes("accepted segment 8.8.0.0/24 in zone hq".into())
    );
    world.decide("10.1.0.0/24", "plant", REFUSED);
    let rows = rows::segments(&world.tables).unwrap();
    let wanted = wanted(&rows, &private, &ReachMap::new());
    let names = |segments: &[Segment]| {
        segments.iter().map(|s| format!("{}:{}", s.zone, s.prefix)).collect::<Vec<_>>()
    };
    assert_eq!(names(&wanted.search), ["hq:10.1.0.0/24", "hq:8.8.0.0/24"]);
    assert_eq!(names(&wanted.leave), ["plant:10.1.0.0/24"]);
    // A later report changes no word; taking it back does.
    world.report(3, &[found("10.1.0.0/24", 1)]);
    assert_eq!(world.states(&private)[3].2, State::Refused);
    world.decide("10.1.0.0/24", "", "");
    assert_eq!(world.states(&private)[3].2, a);
    let audit: Vec<AuditRow> = world.tables.all(Table::Audit, &[]).unwrap();
    assert!(audit.iter().any(|row| row.what == "refused segment 10.1.0.0/24 in zone plant"), "{audit:?}");
}

#[test]
fn what_nobody_found_cannot_be_decided_on() {
    let mut world = World::new();
    world.report(2, &[found("10.0.0.0/8", 1)]);
    assert!(rejected(world.decide("10.7.0.0/24", "", ACCEPTED)).contains("no node found 10.7.0.0/24"));
    assert!(rejected(world.decide("10.0.0.0/8", "plant", REFUSED)).contains("in zone plant"));
    assert!(rejected(world.decide("10.0.0.0/8", "", ACCEPTED)).contains("--confirm-large"));
    assert!(rejected(world.decide("10.0.0.0/8", "", "maybe")).contains("maybe"));
    assert!(rejected(world.decide("x", "", ACCEPTED)).contains("not a prefix"));
}

#[test]
fn a_segment_behind_silence_counts_when_its_distance_was_measured() {
    let mut world = World::new();
    let silent = FoundSegment { at_least: true, ..found("10.3.0.0/24", 1) };
    world.report(2, &[silent]);
    let row = &rows::segments(&world.tables).unwrap()[0];
    let of = |reach: &ReachMap| judge(row, &discovery("hops = 2"), reach).unwrap();
    assert_eq!(
        (of(&ReachMap::new()).state, of(&ReachMap::new()).verdict),
        (State::Proposed, Verdict::DistanceUnknown)
    );
    let measured = |hops| {
        let way = Reach { hops: Some(hops), reachable: true };
        ReachMap::from([("10.3.0.0/24".parse().unwrap(), [(NodeId(2), way)].into())])
    };
    assert_eq!((of(&measured(2)).state, of(&measured(2)).hops), (State::Automatic, Some(2)));
    assert_eq!(of(&measured(3)).state, State::Proposed);
}

#[test]
fn what_nobody_sees_any_more_is_forgotten() {
    let mut world = World::new();
    world.report(2, &[found("10.1.0.0/24", 1), found("10.2.0.0/24", 1), found("10.3.0.0/24", 1)]);
    world.report(1, &[found("10.2.0.0/24", 2)]);
    world.decide("10.3.0.0/24", "", REFUSED);
    let again = FoundSegment { seen_at_ms: 99, ..found("10.1.0.0/24", 1) };
    let report = ReportExploration {
        node: 2,
        segments: vec![again],
        forget_before_ms: 50,
        ..ReportExploration::default()
    };
    world.apply(Kind::ReportExploration(report));
    let left = |world: &World| {
        let rows = rows::segments(&world.tables).unwrap();
        rows.into_iter().map(|row| (row.prefix, row.ways.len())).collect::<Vec<_>>()
    };
    let rows = |rows: &[(&str, usize)]| rows.iter().map(|(p, n)| ((*p).to_owned(), *n)).collect::<Vec<_>>();
    assert_eq!(left(&world), rows(&[("10.1.0.0/24", 1), ("10.2.0.0/24", 1), ("10.3.0.0/24", 0)]));
    world.apply(Kind::RemoveMember(RemoveMember { id: 2, by: "operator".into() }));
    assert_eq!(
        left(&world),
        rows(&[("10.2.0.0/24", 1), ("10.3.0.0/24", 0)]),
        "a refusal outlives its finder"
    );
}

#[test]
fn a_zone_holds_so_many_routers_and_no_more() {
    let mut world = World::new();
    let router = |n: u32| RouterReport {
        address: std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string(),
        asked_at_ms: 7,
        ..RouterReport::default()
    };
    let routers: Vec<RouterReport> = (0..300).map(router).collect();
    for node in [2, 3] {
        let report = ReportExploration { node, routers: routers.clone(), ..ReportExploration::default() };
        world.apply(Kind::ReportExploration(report));
    }
    let rows = rows::routers(&world.tables).unwrap();
    assert_eq!(rows.iter().filter(|row| row.zone == "hq").count(), crate::explore::MAX_ROUTERS);
    assert_eq!(rows.iter().filter(|row| row.zone == "plant").count(), crate::explore::MAX_ROUTERS);
}

#[test]
fn views_survive_the_tables_and_a_silent_day() {
    let view = RouterView {
        forwarding: Some(true),
        addresses: ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).into(),
        attached: ["10.0.0.0/24".parse().unwrap(), "fd00::/64".parse().unwrap()].into(),
        routes: [
            ("0.0.0.0/0".parse().unwrap(), "10.0.0.254".parse().unwrap()),
            ("10.5.0.0/16".parse().unwrap(), "10.0.0.254".parse().unwrap()),
        ]
        .into(),
        adjacent: ["10.0.0.9".parse().unwrap()].into(),
        neighbours: ["10.0.0.77", "fd00::77"].map(|ip| ip.parse().unwrap()).into(),
    };
    assert_eq!(to_view(&from_view(&view)), view);
    let mut world = World::new();
    let answered =
        RouterReport { address: "10.0.0.1".into(), view: Some(from_view(&view)), ..RouterReport::default() };
    let silent = RouterReport { view: None, refusal: "user x: unknown user".into(), ..answered.clone() };
    for report in [answered, silent] {
        let report = ReportExploration { node: 2, routers: vec![report], ..ReportExploration::default() };
        world.apply(Kind::ReportExploration(report));
    }
    let prefix = "10.0.0.0/24".parse().unwrap();
    let live_in = |zone| live(&world.tables, zone, prefix).unwrap();
    assert_eq!(live_in("hq"), ["10.0.0.77".parse().unwrap()].into());
    assert!(live_in("plant").is_empty(), "another network");
    let rows = rows::routers(&world.tables).unwrap();
    let routers: BTreeSet<IpAddr> = routers_of(&rows, "hq").collect();
    assert_eq!(routers, ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).into());
    assert_eq!(Millis(rows[0].answered_at_ms), Millis(4_000), "the answer, not the silence");
}

#[test]
fn users_are_tried_at_a_router_by_one_node_of_the_zone_in_a_round() {
    let mut world = World::new();
    let trial = |node, round_ms, settings_index| {
        let address = "10.0.0.1".to_owned();
        Kind::RouterTrial(RouterTrial { node, address, round_ms, settings_index })
    };
    assert_eq!(world.apply(trial(1, 50, 0)), Answer::Done(true));
    let again = world.apply(trial(2, 50, 0));
    assert!(matches!(&again, Answer::Rejected(why) if why.contains("in this round")), "{again:?}");
    assert_eq!(world.apply(trial(3, 50, 0)), Answer::Done(true), "in another zone it is another router");
    assert!(
        matches!(world.apply(trial(2, 60, 9)), Answer::Rejected(_)),
        "under settings that are not in force"
    );
    let heard = RouterReport { address: "10.0.0.1".into(), asked_at_ms: 55, ..RouterReport::default() };
    let report = ReportExploration { node: 1, routers: vec![heard], ..ReportExploration::default() };
    assert_eq!(world.apply(Kind::ReportExploration(report)), Answer::Done(true));
    assert!(matches!(world.apply(trial(2, 50, 0)), Answer::Rejected(_)), "its answer does not change that");
    assert_eq!(world.apply(trial(2, 60, 0)), Answer::Done(true), "in the next round");
    assert!(matches!(world.apply(trial(9, 70, 0)), Answer::Rejected(_)), "who is no member tries nobody");
    assert_eq!(world.apply(trial(1, u64::MAX, 0)), Answer::Done(true));
    assert_eq!(
        world.apply(trial(2, u64::MAX, 0)),
        Answer::Done(true),
        "a calendar that is ahead holds up nobody"
    );
}
