//! Scripts through trial, force and being taken back, on tables in memory.

use proptest::prelude::*;
use quire_proto::store::command::Kind;
use quire_proto::store::{Bootstrap, Claim, Command, Heard, Member, UnitRow, UpdateMember};

use super::*;
use crate::state;
use crate::tables::MemoryTables;
use crate::trial::{LEAST_MS, LONGEST_MS};

/// A cluster of nodes 1 to 3, and the clock and index of its log.
struct World {
    tables: MemoryTables,
    index: u64,
    at_ms: u64,
}

impl World {
    fn new() -> World {
        let mut world = World { tables: MemoryTables::default(), index: 0, at_ms: 1_000_000 };
        world.apply(Kind::Bootstrap(Bootstrap {
            cluster_id: vec![7; 16].into(),
            first: Some(member(1)),
            ..Bootstrap::default()
        }));
        let mut overlay = Overlay::new(&world.tables);
        for id in [2, 3] {
            overlay.put(Table::Members, &rows::number_key(id), &member(id));
        }
        let writes: Vec<_> = overlay.into_writes().collect();
        world.tables.commit(writes.into_iter());
        world
    }

    fn apply(&mut self, kind: Kind) -> Answer {
        self.index += 1;
        let mut overlay = Overlay::new(&self.tables);
        let command = Command { at_ms: self.at_ms, kind: Some(kind), ..Command::default() };
        let outcome = state::apply(&mut overlay, self.index, &command).unwrap();
        let writes: Vec<_> = overlay.into_writes().collect();
        self.tables.commit(writes.into_iter());
        outcome.result.unwrap()
    }

    fn put(&mut self, version: &str, now: bool) -> String {
        match self.apply(Kind::PutScript(PutScript { now, ..script("a", version) })) {
            Answer::Changes(what) => what,
            other => panic!("{other:?}"),
        }
    }

    fn report(&mut self, node: u64, serial: u64, version: &str, runs: u64, failures: u64) {
        let sha256 = script("a", version).sha256;
        let runs = vec![ScriptRuns { name: "a".to_owned(), sha256, runs, failures }];
        self.apply(Kind::ReportScripts(ReportScripts { node, serial, runs }));
    }

    /// A claim or its renewal by node 1, which hears these.
    fn claim(&mut self, heard: &[u64]) {
        let renews = rows::meta(&self.tables).unwrap().claim_epoch;
        let heard = heard.iter().map(|node| Heard { node: *node, ..Heard::default() }).collect();
        self.apply(Kind::Claim(Claim { node: 1, renews, heard, link: None }));
    }

    fn row(&self) -> ScriptRow {
        self.tables.row(Table::Scripts, b"a").unwrap().unwrap()
    }

    /// What each of the three nodes runs.
    fn running(&self) -> [String; 3] {
        [1, 2, 3].map(|id| for_node(&self.row(), NodeId(id)).map(|v| v.version).unwrap_or_default())
    }
}

fn member(id: u64) -> Member {
    Member { id, name: format!("n{id}"), address: format!("10.0.0.{id}:7440"), ..Member::default() }
}

fn script(name: &str, version: &str) -> PutScript {
    PutScript {
        name: name.to_owned(),
        version: version.to_owned(),
        source: format!("// {version}"),
        sha256: vec![version.bytes().fold(1, u8::wrapping_add); 32].into(),
        by: "operator".to_owned(),
        now: false,
    }
}

#[test]
fn a_version_is_tried_on_one_node_and_then_in_force_on_all() {
    let mut world = World::new();
    assert_eq!(world.put("1", true), "put script `a` version 1");
    assert_eq!(world.put("2", false), "put script `a` version 2 over 1, on trial on node `n1`");
    assert_eq!(world.put("2", false), "script `a` is on trial already");
    assert_eq!(world.running(), ["2", "1", "1"]);
    world.at_ms += LEAST_MS;
    world.report(1, 1, "2", 9, 0);
    assert_eq!(world.running(), ["2", "1", "1"]);
    // The same report again counts once.
    world.report(1, 1, "2", 9, 0);
    assert_eq!(world.running(), ["2", "1", "1"]);
    world.report(1, 2, "2", 1, 0);
    assert_eq!(world.running(), ["2", "2", "2"]);
    assert_eq!(rows::meta(&world.tables).unwrap().trials, 0);
    assert_eq!(world.put("2", false), "script `a` is in force already");
}

#[test]
fn a_version_that_fails_is_taken_back_from_its_trial() {
    let mut world = World::new();
    world.put("1", true);
    world.report(2, 1, "1", 100, 1);
    world.put("2", false);
    world.report(1, 1, "2", 4, 3);
    assert_eq!(world.running(), ["1", "1", "1"]);
    let refused = world.row().refused.unwrap();
    assert_eq!((refused.version.as_str(), refused.runs, refused.failures), ("2", 4, 3));
    assert_eq!(refused.why, "3 of 4 runs failed, of the one before 1 of 100");
    let states: Vec<_> = listing(&world.row()).into_iter().map(|listed| listed.state).collect();
    assert_eq!(states, ["active", "taken-back"]);
}

#[test]
fn a_version_that_fails_elsewhere_is_taken_back_from_everywhere() {
    let mut world = World::new();
    world.put("1", true);
    world.report(1, 1, "1", 50, 0);
    world.put("2", true);
    world.report(3, 1, "2", 10, 5);
    assert_eq!(world.running(), ["1", "1", "1"]);
    // Its counts are those from before: it does not start as a beginner.
    assert_eq!(tally(&world.row().counts), Tally { runs: 50, failures: 0 });
}

#[test]
fn the_first_version_goes_back_to_none() {
    let mut world = World::new();
    world.put("1", false);
    assert_eq!(world.running(), ["1", "", ""]);
    world.report(1, 1, "1", 3, 3);
    assert_eq!(world.running(), ["", "", ""]);
    assert_eq!(listing(&world.row()).len(), 1);
}

#[test]
fn a_trial_moves_from_a_node_that_is_gone_and_ends_without_devices() {
    let mut world = World::new();
    world.claim(&[1, 2, 3]);
    world.put("1", false);
    world.claim(&[2, 3]);
    assert_eq!(world.running(), ["", "1", ""]);
    world.apply(Kind::UpdateMember(UpdateMember {
        member: Some(Member { draining: true, ..member(2) }),
        ..UpdateMember::default()
    }));
    world.claim(&[2, 3]);
    assert_eq!(world.running(), ["", "", "1"]);
    world.at_ms += LONGEST_MS;
    world.claim(&[2, 3]);
    assert_eq!(world.running(), ["1", "1", "1"]);
}

#[test]
fn a_trial_goes_where_the_devices_are() {
    let mut world = World::new();
    world.claim(&[1, 2, 3]);
    world.put("1", false);
    assert_eq!(world.running(), ["1", "", ""], "nobody has devices: the oldest");
    let mut overlay = Overlay::new(&world.tables);
    overlay.put(
        Table::Units,
        b"u",
        &UnitRow { unit: "u".to_owned(), node: 3, devices: 5, ..UnitRow::default() },
    );
    let writes: Vec<_> = overlay.into_writes().collect();
    world.tables.commit(writes.into_iter());
    world.claim(&[1, 2, 3]);
    assert_eq!(world.running(), ["", "", "1"]);
    world.claim(&[1, 2, 3]);
    assert_eq!(world.running(), ["", "", "1"]);
}

#[test]
fn a_script_is_removed_with_its_trial() {
    let mut world = World::new();
    world.put("1", false);
    let gone = || Kind::RemoveScript(RemoveScript { name: "a".to_owned(), by: "operator".to_owned() });
    assert!(matches!(world.apply(gone()), Answer::Changes(_)));
    assert!(matches!(world.apply(gone()), Answer::Rejected(_)));
    assert_eq!(rows::meta(&world.tables).unwrap().trials, 0);
}

#[test]
fn bounds_are_kept() {
    let mut world = World::new();
    let long = PutScript { source: "x".repeat(LONGEST_SOURCE + 1), ..script("a", "1") };
    let no_hash = PutScript { sha256: Vec::new().into(), ..script("a", "1") };
    for bad in [long, no_hash, script("", "1")] {
        assert!(matches!(world.apply(Kind::PutScript(bad)), Answer::Rejected(_)));
    }
    for n in 0..MOST {
        world.apply(Kind::PutScript(script(&n.to_string(), "1")));
    }
    assert!(matches!(world.apply(Kind::PutScript(script("more", "1"))), Answer::Rejected(_)));
    assert!(matches!(world.apply(Kind::PutScript(script("7", "22"))), Answer::Changes(_)));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u8, bool),
    Report(u64, u8, u64, u64),
    Wait(u64),
    Claim(Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (1u8..6, any::<bool>()).prop_map(|(version, now)| Step::Put(version, now)),
        (1u64..4, 1u8..6, 0u64..15, 0u64..15).prop_map(|(n, v, r, f)| Step::Report(n, v, r, f)),
        (0u64..2 * LONGEST_MS).prop_map(Step::Wait),
        prop::collection::vec(1u64..4, 0..4).prop_map(Step::Claim),
    ]
}

proptest! {
    /// Whatever happens: at most one node runs something else than the others, what was taken back runs nowhere
    /// until it is put again, and the number of trials is right.
    #[test]
    fn any_story_keeps_the_rules(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let mut serial = 0;
        for step in steps {
            match step {
                Step::Put(version, now) => drop(world.put(&version.to_string(), now)),
                Step::Report(node, version, runs, failures) => {
                    serial += 1;
                    if world.tables.row::<ScriptRow>(Table::Scripts, b"a").unwrap().is_some() {
                        world.report(node, serial, &version.to_string(), runs, failures);
                    }
                }
                Step::Wait(ms) => world.at_ms += ms,
                Step::Claim(heard) => world.claim(&heard),
            }
            let Some(row) = world.tables.row::<ScriptRow>(Table::Scripts, b"a").unwrap() else { continue };
            let active = in_force(&row).map(|version| version.version).unwrap_or_default();
            let others = world.running().iter().filter(|version| **version != active).count();
            prop_assert!(others <= 1);
            prop_assert_eq!(rows::meta(&world.tables).unwrap().trials > 0, row.trial.is_some());
            if let Some(refused) = &row.refused {
                let again = row.trial.iter().filter_map(|t| t.version.as_ref()).any(|v| v.sha256 == refused.sha256);
                prop_assert!(!again && row.sha256 != refused.sha256);
            }
        }
    }
}
