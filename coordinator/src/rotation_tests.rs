//! Changing the cluster key and the CA, step by step and in any order.

use std::collections::BTreeSet;

use proptest::prelude::*;
use quire_proto::id::Millis;
use quire_proto::store::rotate::What;
use quire_proto::store::{BeginCa, BeginKey, FinishCa, Reseal, Rotate};

use super::tests::World;
use super::*;
use crate::rotation::*;

const NEW: &[u8] = b"new ca";

/// Three members that know everything, the first of which leads.
fn world() -> World {
    let mut world = World::new();
    let mut meta = rows::meta(&world.tables).unwrap();
    meta.cluster_version = upgrade::ROTATION;
    meta.settings_toml = "sealed with 1".into();
    let mut overlay = Overlay::new(&world.tables);
    rows::put_meta(&mut overlay, &meta);
    for id in [1_u64, 2, 3] {
        let member = Member { id, name: format!("n{id}"), key_generation: 1, ..Member::default() };
        overlay.put(Table::Members, &id.to_be_bytes(), &member);
    }
    let writes: Vec<_> = overlay.into_writes().collect();
    world.tables.commit(writes.into_iter());
    world
}

fn rotate(what: What) -> Kind {
    Kind::Rotate(Rotate { what: what.into(), by: "operator".into() })
}

fn begin_key(world: &World, generation: u64) -> Kind {
    let sha256 = vec![u8::try_from(generation).unwrap(); 32].into();
    Kind::BeginKey(BeginKey { claim: world.claim, generation, sha256 })
}

/// Everything sealed anew, as far as `world` has it now.
fn resealed(world: &World, generation: u64) -> Reseal {
    let (meta, row) = (rows::meta(&world.tables).unwrap(), row(&world.tables).unwrap());
    let next = next_ca(&row);
    Reseal {
        claim: world.claim,
        generation,
        settings_index: meta.settings_index,
        ca_index: row.ca_index,
        next_ca_sha256: next.map_or(Bytes::new(), |ca| ca.certificate_sha256.clone()),
        settings_toml: format!("sealed with {generation}"),
        ca_private_key_sealed: format!("ca sealed with {generation}").into(),
        next_ca_private_key_sealed: next.map_or(Bytes::new(), |_| format!("next with {generation}").into()),
    }
}

fn begin_ca(world: &World, key_generation: u64) -> Kind {
    Kind::BeginCa(BeginCa {
        claim: world.claim,
        certificate_der: Bytes::from_static(b"certificate"),
        private_key_sealed: Bytes::from_static(b"sealed"),
        key_generation,
        cross_der: Bytes::from_static(b"cross"),
        certificate_sha256: Bytes::from_static(NEW),
    })
}

fn finish_ca(world: &World) -> Kind {
    Kind::FinishCa(FinishCa { claim: world.claim, certificate_sha256: Bytes::from_static(NEW) })
}

fn says(id: u64, key_generation: Option<u64>, ca: Option<&'static [u8]>) -> Kind {
    let ca_sha256 = ca.map(Bytes::from_static);
    Kind::UpdateMember(UpdateMember { id, key_generation, ca_sha256, ..UpdateMember::default() })
}

fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

/// What the first node does next, with these generations, while these live.
fn next_step(world: &World, held: &[u64], alive: &[u64], now: u64) -> Option<Step> {
    let (row, members) = (row(&world.tables).unwrap(), rows::members(&world.tables).unwrap());
    next(&Scene {
        row: &row,
        members: &members,
        voters: &ids(&[1, 2, 3]),
        alive: &ids(alive),
        me: NodeId(1),
        held: &held.iter().copied().collect(),
        now: Millis(now),
    })
}

#[test]
fn a_key_is_in_force_when_every_living_member_has_it() {
    let mut world = world();
    assert_eq!(next_step(&world, &[1], &[1, 2, 3], 0), None);
    world.done(rotate(What::ClusterKey));
    assert!(world.refused(rotate(What::ClusterKey)).contains("quire certificates"));
    assert_eq!(next_step(&world, &[], &[1, 2, 3], 0), None, "who opens nothing seals nothing anew");
    assert_eq!(next_step(&world, &[1], &[1, 2, 3], 0), Some(Step::MakeKey(2)));
    world.done(begin_key(&world, 2));
    assert!(world.refused(begin_key(&world, 2)).contains("no such generation"), "none is used twice");
    let begun = row(&world.tables).unwrap().key.unwrap().begun_at_ms;
    assert_eq!(next_step(&world, &[1, 2], &[1, 2, 3], begun), None, "nobody else has it");
    world.done(says(2, Some(2), None));
    assert_eq!(next_step(&world, &[1, 2], &[1, 2, 3], begun), None, "n3 lives and has it not");
    assert_eq!(next_step(&world, &[1, 2], &[1, 2], begun), Some(Step::Reseal(2)), "n3 is away");
    assert_eq!(lacking_key(&row(&world.tables).unwrap(), &rows::members(&world.tables).unwrap()).len(), 2);
    world.done(Kind::Reseal(resealed(&world, 2)));
    let (meta, row) = (rows::meta(&world.tables).unwrap(), row(&world.tables).unwrap());
    assert_eq!((in_force(&row), row.key.is_none()), (2, true));
    assert_eq!(meta.settings_toml, "sealed with 2");
    assert_eq!(&meta.ca_private_key_sealed[..], b"ca sealed with 2");
    assert_eq!(wanted(&row), [(2, &Bytes::from(vec![2; 32]))], "who was away fetches it");
    let audit: Vec<AuditRow> = world.tables.all(Table::Audit, &[]).unwrap();
    assert!(audit.iter().any(|line| line.what == "cluster key 2 is in force" && line.by == "operator"));
}

#[test]
fn a_key_is_not_in_force_without_most_voters() {
    let mut world = world();
    world.done(rotate(What::ClusterKey));
    world.done(begin_key(&world, 2));
    assert_eq!(next_step(&world, &[1, 2], &[1], 0), None, "lost with this node");
}

#[test]
fn a_key_whose_makers_are_gone_is_made_anew_under_another_number() {
    let mut world = world();
    world.done(rotate(What::ClusterKey));
    world.done(begin_key(&world, 2));
    let begun = row(&world.tables).unwrap().key.unwrap().begun_at_ms;
    assert_eq!(next_step(&world, &[1], &[1, 2], begun + GIVE_UP_MS - 1), None);
    assert_eq!(next_step(&world, &[1], &[1, 2], begun + GIVE_UP_MS), Some(Step::MakeKey(3)));
    world.done(says(2, Some(2), None));
    assert_eq!(next_step(&world, &[1], &[1, 2], begun + GIVE_UP_MS), None, "it is fetched from n2");
    world.done(begin_key(&world, 3));
    assert!(world.refused(Kind::Reseal(resealed(&world, 2))).contains("no such generation"));
    assert_eq!(in_force(&row(&world.tables).unwrap()), 1);
}

#[test]
fn who_is_removed_while_a_key_is_on_its_way_does_not_know_the_one_that_counts() {
    let mut world = world();
    world.done(rotate(What::ClusterKey));
    world.done(begin_key(&world, 2));
    world.done(says(3, Some(2), None));
    world.done(Kind::RemoveMember(RemoveMember { id: 3, by: "operator".into() }));
    assert!(world.refused(Kind::Reseal(resealed(&world, 2))).contains("no such generation"));
    assert_eq!(next_step(&world, &[1, 2], &[1, 2], 0), Some(Step::MakeKey(3)));
}

#[test]
fn settings_of_another_key_are_not_put_and_none_are_lost() {
    let mut world = world();
    let put = |key_generation| {
        let toml = format!("sealed with {key_generation}, later");
        Kind::PutSettings(PutSettings { toml, key_generation, ..PutSettings::default() })
    };
    world.done(put(0));
    world.done(rotate(What::ClusterKey));
    world.done(begin_key(&world, 2));
    for id in [1, 2, 3] {
        world.done(says(id, Some(2), None));
    }
    let read_before = resealed(&world, 2);
    world.done(put(1));
    assert!(world.refused(Kind::Reseal(read_before)).contains("read again"), "n1's settings would be lost");
    world.done(Kind::Reseal(resealed(&world, 2)));
    assert_eq!(world.refused(put(1)), SEALED_OTHERWISE);
    world.done(put(2));
    assert_eq!(rows::meta(&world.tables).unwrap().settings_toml, "sealed with 2, later");
    // A job is told so, and may try again under its number.
    let index = world.index + 1;
    for (generation, refused) in [(1, true), (2, false), (1, false)] {
        let command = quire_proto::store::Command {
            job: "job".into(),
            kind: Some(put(generation)),
            ..Default::default()
        };
        assert_eq!(matches!(world.obey(&command), Answer::Rejected(_)), refused, "{generation} at {index}");
    }
}

#[test]
fn the_old_ca_goes_when_all_have_moved_or_were_removed() {
    let mut world = world();
    let token = |id: &str, ca: &'static [u8]| {
        Kind::CreateToken(CreateToken {
            id: id.into(),
            expires_at_ms: u64::MAX,
            ca_sha256: Bytes::from_static(ca),
            ..CreateToken::default()
        })
    };
    for (id, ca) in [("before", b"old ca".as_slice()), ("older", b""), ("used", b"old ca"), ("after", NEW)] {
        world.done(token(id, ca));
    }
    let join = Join {
        token_id: "used".into(),
        member: Some(Member {
            name: "n4".into(),
            cluster_version: upgrade::ROTATION,
            address: "n4".into(),
            ..Member::default()
        }),
        ..Join::default()
    };
    let Answer::Node(fourth) = world.apply(Kind::Join(join)) else { panic!("no join") };
    world.done(rotate(What::Authority));
    assert_eq!(next_step(&world, &[], &[1, 2, 3], 0), None);
    assert_eq!(next_step(&world, &[1], &[1, 2, 3], 0), Some(Step::MakeCa));
    assert!(world.refused(begin_ca(&world, 2)).contains("changed meanwhile"));
    world.done(begin_ca(&world, 1));
    assert!(world.refused(begin_ca(&world, 1)).contains("no new CA"));
    for id in [1, 2, fourth] {
        world.done(says(id, None, Some(NEW)));
        assert_eq!(next_step(&world, &[1], &[1, 2], 0), None, "n3 is away, and would be locked out");
    }
    assert!(world.refused(finish_ca(&world)).contains("`n3`"));
    world.done(Kind::RemoveMember(RemoveMember { id: 3, by: "operator".into() }));
    assert_eq!(next_step(&world, &[1], &[1, 2], 0), Some(Step::FinishCa));
    world.done(finish_ca(&world));
    let meta = rows::meta(&world.tables).unwrap();
    assert_eq!(
        (&meta.ca_certificate_der[..], &meta.ca_private_key_sealed[..]),
        (&b"certificate"[..], &b"sealed"[..])
    );
    assert!(row(&world.tables).unwrap().ca.is_none());
    let left: Vec<TokenRow> = world.tables.all(Table::Tokens, &[]).unwrap();
    assert_eq!(left.iter().map(|token| token.id.as_str()).collect::<Vec<_>>(), ["after", "used"]);
}

#[test]
fn a_key_that_is_asked_for_comes_before_the_ca_and_reseals_both() {
    let mut world = world();
    world.done(rotate(What::Authority));
    world.done(begin_ca(&world, 1));
    world.done(rotate(What::ClusterKey));
    assert_eq!(next_step(&world, &[1], &[1, 2, 3], 0), Some(Step::MakeKey(2)));
    world.done(begin_key(&world, 2));
    for id in [1, 2, 3] {
        world.done(says(id, Some(2), Some(NEW)));
    }
    assert_eq!(next_step(&world, &[1, 2], &[1, 2, 3], 0), Some(Step::Reseal(2)));
    world.done(Kind::Reseal(resealed(&world, 2)));
    assert_eq!(&next_ca(&row(&world.tables).unwrap()).unwrap().private_key_sealed[..], b"next with 2");
    assert_eq!(next_step(&world, &[1, 2], &[1, 2, 3], 0), Some(Step::FinishCa));
}

#[test]
fn only_the_claim_in_force_goes_on_and_only_where_all_nodes_understand_it() {
    let mut world = world();
    let mut meta = rows::meta(&world.tables).unwrap();
    meta.cluster_version = upgrade::HAND_OVER;
    let mut overlay = Overlay::new(&world.tables);
    rows::put_meta(&mut overlay, &meta);
    let writes: Vec<_> = overlay.into_writes().collect();
    world.tables.commit(writes.into_iter());
    assert!(world.refused(rotate(What::ClusterKey)).contains("upgrade them first"));
    world.claim += 1;
    let all =
        [begin_key(&world, 2), Kind::Reseal(resealed(&world, 2)), begin_ca(&world, 1), finish_ca(&world)];
    for kind in all {
        assert!(world.refused(kind).contains("is not in force"));
    }
}

#[test]
fn a_member_is_known_by_its_key_or_the_one_before() {
    let member = Member {
        certificate_der: Bytes::from_static(b"now"),
        certificate_before_der: Bytes::from_static(b"before"),
        ..Member::default()
    };
    assert!(is_known(&member, |der| der == b"now") && is_known(&member, |der| der == b"before"));
    assert!(!is_known(&member, |_| false));
    let told_once = Member { certificate_before_der: Bytes::new(), ..member };
    assert!(!is_known(&told_once, |der| der.is_empty()));
    assert!(is_known(&Member::default(), |_| false), "written by an older program");
}

proptest! {
    /// Whatever happens in whatever order: what is in force is never sealed with a key that fewer than a majority was
    /// said to have, no number is used twice, and the CA in force is one that all members show.
    #[test]
    fn no_order_of_events_seals_with_a_key_that_others_lack(
        events in prop::collection::vec((0_u8..8, 1_u64..4, 1_u64..5), 1..60)
    ) {
        let mut world = world();
        let (mut begun, mut last) = (BTreeSet::new(), 1);
        for (event, id, generation) in events {
            let _ = match event {
                0 => world.apply(rotate(What::ClusterKey)),
                1 => world.apply(rotate(What::Authority)),
                2 => world.apply(says(id, Some(generation), None)),
                3 => world.apply(says(id, None, Some(NEW))),
                4 => {
                    let Some(key) = row(&world.tables).unwrap().key else { continue };
                    world.apply(says(id, Some(key.generation), None))
                }
                _ => {
                    let held: Vec<u64> = wanted(&row(&world.tables).unwrap()).iter().map(|(n, _)| *n).collect();
                    let Some(step) = next_step(&world, &held, &[1, 2, 3], 0) else { continue };
                    let kind = match step {
                        Step::MakeKey(n) => {
                            prop_assert!(begun.insert(n), "{n} was begun before");
                            begin_key(&world, n)
                        }
                        Step::Reseal(n) => {
                            let members = rows::members(&world.tables).unwrap();
                            prop_assert!(members.iter().all(|m| m.id == 1 || m.key_generation >= n));
                            Kind::Reseal(resealed(&world, n))
                        }
                        Step::MakeCa => begin_ca(&world, in_force(&row(&world.tables).unwrap())),
                        Step::FinishCa => {
                            let members = rows::members(&world.tables).unwrap();
                            prop_assert!(members.iter().all(|m| m.ca_sha256 == NEW));
                            finish_ca(&world)
                        }
                    };
                    let answer = world.apply(kind);
                    prop_assert!(!matches!(answer, Answer::Rejected(_)), "{step:?}: {answer:?}");
                    answer
                }
            };
            let now = in_force(&row(&world.tables).unwrap());
            prop_assert!(now >= last);
            let sealed = rows::meta(&world.tables).unwrap().settings_toml;
            prop_assert_eq!(sealed, ["sealed with ", &now.to_string()].concat());
            last = now;
        }
    }
}
