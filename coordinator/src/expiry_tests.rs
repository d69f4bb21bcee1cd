//! Only time in which a node could have read a device counts towards its expiry.

use proptest::prelude::*;
use prost::Message as _;
use quire_proto::convert;
use quire_proto::reading::{Facts, Reading};
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::{
    Bootstrap, Claim, Command, Grant, Member, Observation, Plan, PutSettings, Reach, Record, ReportReach,
};

use super::*;
use crate::state;
use crate::tables::MemoryTables;

const UNIT: &str = "hq:10.0.0.0/24";
const LIMIT: u64 = 60_000;

struct World {
    tables: MemoryTables,
    index: u64,
    at_ms: u64,
    claim: u64,
    seq: u64,
    /// Where the device is read.
    unit: &'static str,
}

impl World {
    fn new() -> Self {
        let mut world = World {
            tables: MemoryTables::default(),
            index: 0,
            at_ms: 1_000_000,
            claim: 0,
            seq: 0,
            unit: UNIT,
        };
        let cluster_version = quire_proto::CLUSTER_VERSION;
        let first = Some(Member { id: 1, name: "n1".into(), cluster_version, ..Member::default() });
        world.apply(Kind::Bootstrap(Bootstrap { first, ..Bootstrap::default() }));
        world.apply(Kind::PutSettings(PutSettings { expire_after_ms: LIMIT, ..PutSettings::default() }));
        world.claim = world.index + 1;
        world.renew(0, 0, true);
        world
    }

    fn apply(&mut self, kind: Kind) {
        self.index += 1;
        let mut overlay = Overlay::new(&self.tables);
        let command = Command { at_ms: self.at_ms, kind: Some(kind), ..Command::default() };
        state::apply(&mut overlay, self.index, &command).unwrap();
        let writes: Vec<_> = overlay.into_writes().collect();
        self.tables.commit(writes.into_iter());
    }

    /// The claim after `later_ms`, from a leader that hears node 1 or not.
    fn renew(&mut self, renews: u64, later_ms: u64, heard: bool) {
        self.at_ms += later_ms;
        let heard = heard.then(|| Heard { node: 1, ..Heard::default() }).into_iter().collect();
        self.apply(Kind::Claim(Claim { node: 1, renews, heard, link: None }));
    }

    fn grant(&mut self, node: u64) {
        self.grant_unit(node, "10.0.0.0/24");
    }

    fn grant_unit(&mut self, node: u64, prefix: &str) {
        let grant = Grant {
            unit: format!("hq:{prefix}"),
            node,
            zone: "hq".into(),
            prefix: prefix.into(),
            segment: prefix.into(),
            ..Grant::default()
        };
        self.apply(Kind::Plan(Plan { claim: self.claim, grants: vec![grant], drop_units: vec![] }));
    }

    fn reach(&mut self, reachable: bool) {
        self.reach_to("10.0.0.0/24", reachable);
    }

    fn reach_to(&mut self, segment: &str, reachable: bool) {
        let reach = Reach { segment: segment.into(), hops: None, reachable, measured_at_ms: 1 };
        self.apply(Kind::ReportReach(ReportReach { node: 1, reaches: vec![reach] }));
    }

    fn read(&mut self) {
        self.seq += 1;
        let facts = Facts { serial: Some("CNB1001".into()), ..Facts::default() }.into();
        let observation = Observation {
            seq: self.seq,
            unit: self.unit.into(),
            address: "10.0.0.5:161".into(),
            at_ms: self.at_ms,
            what: Some(What::Reading(convert::encode(&Reading { facts, ..Reading::default() }))),
            ..Observation::default()
        };
        self.apply(Kind::Record(Record { node: 1, observations: vec![observation.encode_to_vec().into()] }));
    }

    fn device(&self) -> DeviceRow {
        self.tables.all(Table::Devices, &[]).unwrap().remove(0)
    }

    fn is_expired(&self) -> bool {
        self.device().expired_at_ms > 0
    }
}

fn ready() -> World {
    let mut world = World::new();
    world.grant(1);
    world.reach(true);
    world.read();
    world
}

#[test]
fn a_device_leaves_after_its_time_and_comes_back_with_its_id() {
    let mut world = ready();
    let id = world.device().id;
    for _ in 0..LIMIT / 1_000 {
        world.renew(world.claim, 1_000, true);
        assert!(!world.is_expired());
    }
    world.renew(world.claim, 1_000, true);
    assert!(world.is_expired());
    assert_eq!(rows::meta(&world.tables).unwrap().expired, 1);
    world.read();
    assert_eq!((world.device().id, world.device().expired_at_ms), (id, 0));
    assert_eq!(rows::meta(&world.tables).unwrap().expired, 0);
    let events: Vec<EventRow> = world.tables.all(Table::Events, &[]).unwrap();
    assert_eq!(events.iter().map(|event| event.kind.as_str()).collect::<Vec<_>>(), ["expired", "came-back"]);
}

#[test]
fn an_outage_of_the_collectors_counts_for_nothing() {
    let mut world = ready();
    // No majority for a year.
    world.renew(world.claim, 365 * 24 * 3_600_000, true);
    // The owner is away, then it does not reach the segment, then nobody has the unit.
    for _ in 0..100 {
        world.renew(world.claim, 1_000, false);
    }
    world.reach(false);
    for _ in 0..100 {
        world.renew(world.claim, 1_000, true);
    }
    world.reach(true);
    world.grant(0);
    for _ in 0..100 {
        world.renew(world.claim, 1_000, true);
    }
    assert!(!world.is_expired());
}

#[test]
fn a_printer_on_a_nodes_own_cable_leaves_after_its_time_too() {
    let mut world = World::new();
    world.unit = "hq:10.0.0.9/32";
    for _ in 0..30 {
        world.renew(world.claim, 1_000, true);
    }
    world.read();
    // As it was read by an older release.
    let old = DeviceRow { served_mark_ms: 0, ..world.device() };
    let mut overlay = Overlay::new(&world.tables);
    overlay.put(Table::Devices, old.id.as_bytes(), &old);
    let writes: Vec<_> = overlay.into_writes().collect();
    world.tables.commit(writes.into_iter());
    assert_eq!(idle_ms(&world.tables, &rows::meta(&world.tables).unwrap(), &old).unwrap(), 0);
    world.renew(world.claim, 1_000, true);
    for _ in 0..LIMIT / 1_000 {
        world.renew(world.claim, 1_000, true);
        assert!(!world.is_expired(), "it begins when it is looked at first");
    }
    world.renew(world.claim, 1_000, true);
    assert!(world.is_expired());
    world.read();
    assert!(!world.is_expired());
    for _ in 0..=LIMIT / 1_000 {
        assert!(!world.is_expired());
        world.renew(world.claim, 1_000, true);
    }
    assert!(world.is_expired());
    // Once a plan has it, the unit's time counts.
    world.read();
    world.grant_unit(1, "10.0.0.9/32");
    for _ in 0..=LIMIT / 1_000 {
        world.renew(world.claim, 1_000, true);
    }
    assert!(!world.is_expired(), "nobody reached it");
    world.reach_to("10.0.0.9/32", true);
    for _ in 0..=LIMIT / 1_000 {
        assert!(!world.is_expired());
        world.renew(world.claim, 1_000, true);
    }
    assert!(world.is_expired());
}

#[derive(Clone, Debug)]
enum Step {
    Pass { ms: u64, heard: bool },
    Reach(bool),
    Grant(bool),
    Read,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (prop_oneof![500u64..10_000, 10_001u64..1_000_000_000], prop::bool::weighted(0.8))
            .prop_map(|(ms, heard)| Step::Pass { ms, heard }),
        1 => any::<bool>().prop_map(Step::Reach),
        1 => any::<bool>().prop_map(Step::Grant),
        1 => Just(Step::Read),
    ]
}

proptest! {
    /// Through outages of every kind: the device is expired exactly when it could have been read for longer
    /// than the limit and was not.
    #[test]
    fn only_time_in_which_it_could_be_read_counts(steps in proptest::collection::vec(step(), 0..120)) {
        let mut world = ready();
        let (mut heard, mut reach, mut granted, mut idle) = (true, true, true, 0);
        for step in steps {
            match step {
                Step::Pass { ms, heard: now } => {
                    // What passed, passed under those that were heard when it began.
                    if ms <= CLOSE_MS && heard && reach && granted {
                        idle += ms;
                    }
                    world.renew(world.claim, ms, now);
                    heard = now;
                }
                Step::Reach(now) => {
                    world.reach(now);
                    reach = now;
                }
                Step::Grant(now) => {
                    world.grant(u64::from(now));
                    granted = now;
                }
                Step::Read => {
                    world.read();
                    idle = 0;
                }
            }
            let meta = rows::meta(&world.tables).unwrap();
            prop_assert_eq!(idle_ms(&world.tables, &meta, &world.device()).unwrap(), idle);
            prop_assert_eq!(world.is_expired(), idle > LIMIT);
        }
    }
}
