//! What the planner promises, as scenes and as properties.

use std::collections::BTreeSet;

use super::*;
use crate::topology::Reach;
use proptest::prelude::*;

const NOW: Millis = Millis(10_000_000);
const N1: NodeId = NodeId(1);
const N2: NodeId = NodeId(2);
const N3: NodeId = NodeId(3);

fn node(id: u64, zone: &str) -> NodeView {
    NodeView {
        id: NodeId(id),
        zone: zone.to_owned(),
        alive: true,
        since: Millis(0),
        draining: false,
        witness: false,
        can_collect: true,
    }
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// `count` units of 256 addresses, all cut from 10.0.0.0/8.
fn wanted(zone: &str, count: u8) -> BTreeMap<UnitId, UnitSpec> {
    let spec = |n| UnitSpec {
        zone: zone.into(),
        prefix: net(&format!("10.0.{n}.0/24")),
        segment: net("10.0.0.0/8"),
    };
    (0..count).map(spec).map(|spec| (UnitId::new(zone, spec.prefix), spec)).collect()
}

fn view(units: u8, nodes: u64) -> PlanView {
    PlanView {
        wanted: wanted(ANY_ZONE, units),
        nodes: (1..=nodes).map(|id| node(id, "hq")).collect(),
        now: NOW,
        ..PlanView::default()
    }
}

/// What the state machine makes of changes.
fn apply(view: &mut PlanView, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Drop { unit } => {
                view.current.remove(unit);
            }
            Change::Grant { unit, node, spec, cost, .. } => {
                let row =
                    CurrentUnit { owner: *node, cost: *cost, granted_at: view.now, segment: spec.segment };
                view.current.insert(unit.clone(), row);
            }
        }
    }
}

fn settle(view: &mut PlanView) -> usize {
    let changes = plan(view);
    apply(view, &changes);
    changes.len()
}

/// Applies one plan, then lets the damping time pass.
fn settle_and_wait(view: &mut PlanView) -> usize {
    let changes = settle(view);
    view.now.0 += REBALANCE_AFTER_MS;
    changes
}

fn owned(view: &PlanView) -> Vec<usize> {
    view.nodes.iter().map(|n| view.current.values().filter(|row| row.owner == n.id).count()).collect()
}

#[test]
fn a_first_plan_is_even() {
    let mut view = view(64, 3);
    assert_eq!(settle(&mut view), 64);
    assert_eq!(owned(&view), [22, 21, 21]);
    assert_eq!(plan(&view), []);
}

#[test]
fn a_death_moves_the_dead_nodes_units_alone_and_at_once() {
    let mut view = view(60, 3);
    settle(&mut view);
    let before = view.current.clone();
    view.nodes[1].alive = false;
    view.now.0 += 1;
    assert_eq!(settle(&mut view), 20);
    assert_eq!(owned(&view), [30, 0, 30]);
    let kept = |unit: &UnitId| before[unit].owner == N2 || before[unit] == view.current[unit];
    assert!(view.current.keys().all(kept));
}

#[test]
fn a_node_that_comes_back_gets_its_part_after_a_while_and_no_more_moves_than_needed() {
    let mut view = view(61, 3);
    settle(&mut view);
    view.nodes[1].alive = false;
    settle_and_wait(&mut view);
    view.nodes[1].alive = true;
    view.nodes[1].since = view.now;
    assert_eq!(settle(&mut view), 0, "it may be gone again in a second");
    view.now.0 += REBALANCE_AFTER_MS;
    assert_eq!(settle(&mut view), 20);
    assert_eq!(owned(&view), [20, 20, 21], "a gap of one unit is no reason to move it");
    view.now.0 += REBALANCE_AFTER_MS;
    assert_eq!(plan(&view), []);
}

#[test]
fn small_differences_are_left_alone_but_idle_nodes_are_not() {
    let mut view = view(20, 2);
    settle_and_wait(&mut view);
    for row in view.current.values_mut().filter(|row| row.owner == N2).take(4) {
        row.owner = N1;
    }
    assert_eq!(owned(&view), [14, 6]);
    assert_eq!(plan(&view), [], "14 against 6 is more than twice, but not ten more");
    view.current.values_mut().for_each(|row| row.owner = N1);
    view.wanted = wanted(ANY_ZONE, 4);
    assert_eq!(plan(&view).iter().filter(|c| matches!(c, Change::Grant { .. })).count(), 2);
}

#[test]
fn cost_counts_not_numbers() {
    let mut view = view(10, 2);
    let heavy = view.wanted.keys().next().unwrap().clone();
    let row = CurrentUnit {
        owner: N3,
        cost: 9 * cost(net("10.0.0.0/24")),
        granted_at: Millis(0),
        segment: net("10.0.0.0/8"),
    };
    view.current.insert(heavy, row);
    settle(&mut view);
    assert_eq!(owned(&view), [1, 9]);
}

#[test]
fn a_node_whose_few_units_turn_out_to_be_hard_work_is_relieved() {
    let mut view = view(6, 2);
    settle_and_wait(&mut view);
    assert_eq!(owned(&view), [3, 3]);
    view.current.values_mut().filter(|row| row.owner == N1).for_each(|row| row.cost = IMBALANCE_MS);
    assert_eq!(
        settle_and_wait(&mut view),
        1,
        "as many units, but three minutes against seven seconds of work"
    );
    assert_eq!(owned(&view), [2, 4]);
    assert_eq!(plan(&view), []);
}

#[test]
fn drained_dead_unable_and_witness_nodes_own_nothing() {
    let mut view = view(8, 5);
    settle(&mut view);
    view.nodes[0].draining = true;
    view.nodes[1].witness = true;
    view.nodes[2].can_collect = false;
    view.nodes[3].alive = false;
    settle(&mut view);
    assert_eq!(owned(&view), [0, 0, 0, 0, 8]);
    view.nodes.clear();
    assert_eq!(settle(&mut view), 8, "what nobody can have is shown as unassigned");
    assert!(view.current.values().all(|row| row.owner == NodeId::NOBODY));
    assert_eq!(plan(&view), []);
}

#[test]
fn zones_hold() {
    let mut view = view(0, 2);
    view.nodes[1].zone = "plant".into();
    view.wanted = wanted("plant", 4);
    view.wanted.extend(wanted("hq", 4));
    view.wanted.extend(wanted("nowhere", 1));
    settle(&mut view);
    assert_eq!(owned(&view), [4, 4]);
    assert!(view.current.iter().all(|(unit, row)| match row.owner {
        N1 => unit.zone() == "hq",
        N2 => unit.zone() == "plant",
        _ => unit.zone() == "nowhere",
    }));
}

#[test]
fn fewest_hops_first_and_never_where_nothing_comes_back() {
    let mut view = view(6, 3);
    let way = |hops, reachable| Reach { hops, reachable };
    view.reach.insert(net("10.0.0.0/8"), [(N1, way(Some(2), true)), (N2, way(Some(1), true))].into());
    settle(&mut view);
    assert_eq!(owned(&view), [0, 6, 0], "unknown hops are the last choice");
    view.reach.insert(net("10.0.0.0/8"), [(N1, way(Some(2), true)), (N2, way(Some(1), false))].into());
    settle(&mut view);
    assert_eq!(owned(&view), [6, 0, 0], "at once");
    let all = [(N1, way(Some(2), true)), (N2, way(Some(1), true)), (N3, way(Some(1), true))];
    view.reach.insert(net("10.0.0.0/8"), all.into());
    assert_eq!(plan(&view), [], "a better way can wait");
    view.now.0 += REBALANCE_AFTER_MS;
    settle(&mut view);
    assert_eq!(owned(&view), [0, 3, 3]);
    view.reach.insert(net("10.0.0.0/8"), [N1, N2, N3].map(|n| (n, way(None, false))).into());
    settle(&mut view);
    assert_eq!(owned(&view), [0, 0, 0]);
}

#[test]
fn units_come_and_go_with_the_settings() {
    let mut view = view(4, 1);
    settle(&mut view);
    view.wanted = wanted(ANY_ZONE, 2);
    let changes = plan(&view);
    assert_eq!(changes.len(), 2);
    assert!(changes.iter().all(|change| matches!(change, Change::Drop { .. })));
}

#[test]
fn an_explanation_names_everybody() {
    let mut view = view(2, 3);
    view.reach.insert(net("10.0.0.0/8"), [(N1, Reach { hops: Some(1), reachable: true })].into());
    view.nodes[2].witness = true;
    settle(&mut view);
    let said = explain(&view, "10.0.1.77".parse().unwrap());
    assert_eq!(said.units.len(), 1);
    let unit = &said.units[0];
    assert_eq!((unit.owner, unit.granted_at, unit.unit.as_str()), (N1, Some(NOW), "any:10.0.1.0/24"));
    let verdicts: Vec<Verdict> = unit.candidates.iter().map(|candidate| candidate.verdict).collect();
    assert_eq!(verdicts, [Verdict::Nearest(Some(1)), Verdict::Farther(None), Verdict::Witness]);
    assert_eq!(verdicts[0].to_string(), "nearest, 1 hop");
    assert!(explain(&view, "192.0.2.1".parse().unwrap()).units.is_empty());
}

#[test]
fn the_operators_word_stands_above_hops_and_balance() {
    let mut view = view(4, 3);
    let wish = |segment: &str, pin, forbid: &[u64]| Placement {
        segment: net(segment),
        zone: ANY_ZONE.into(),
        pin,
        forbid: forbid.iter().copied().map(NodeId).collect(),
    };
    view.placements = vec![wish("10.0.2.0/24", None, &[1, 3]), wish("10.0.0.0/16", Some(NodeId(3)), &[])];
    let first = plan(&view);
    apply(&mut view, &first);
    let owner =
        |view: &PlanView, n: u8| view.current[&UnitId::new(ANY_ZONE, net(&format!("10.0.{n}.0/24")))].owner;
    assert_eq!([0, 1, 2, 3].map(|n| owner(&view, n)), [3, 3, 2, 3].map(NodeId), "the first that fits counts");
    let address = "10.0.2.7".parse().unwrap();
    let verdicts: Vec<Verdict> =
        explain(&view, address).units[0].candidates.iter().map(|candidate| candidate.verdict).collect();
    assert_eq!(verdicts, [Verdict::Forbidden, Verdict::Nearest(None), Verdict::Forbidden]);
    assert_eq!(explain(&view, "10.0.1.7".parse().unwrap()).units[0].candidates[2].verdict, Verdict::Pinned);

    // Who is pinned and gone is stood in for; who is forbidden is not taken even then.
    for id in [2, 3] {
        let node = view.nodes.iter_mut().find(|node| node.id == NodeId(id)).unwrap();
        (node.alive, node.since) = (false, view.now);
    }
    let changes = plan(&view);
    apply(&mut view, &changes);
    assert_eq!([0, 2].map(|n| owner(&view, n)), [NodeId(1), NodeId::NOBODY]);
}

prop_compose! {
    fn nodes()(id in 1u64..6, zone in 0..2usize, alive in prop::bool::weighted(0.8), draining in prop::bool::weighted(0.1),
               witness in prop::bool::weighted(0.1), since in 0u64..40_000) -> NodeView {
        NodeView { alive, draining, witness, since: Millis(since), ..node(id, ["a", "b"][zone]) }
    }
}

prop_compose! {
    /// Any rows, sensible or not: planners also meet what older planners left.
    fn views()(
        nodes in prop::collection::vec(nodes(), 0..6),
        units in prop::collection::vec((0u8..64, 0..3usize, 0..3u8), 0..64),
        rows in prop::collection::vec((0u8..64, 0..3usize, 0u64..7, 0u64..2000, 0u64..40_000), 0..64),
        ways in prop::collection::vec((0..3u8, 1u64..6, prop::option::of(0u32..3), prop::bool::weighted(0.8)), 0..12),
        wishes in prop::collection::vec((0u8..64, 16u8..25, 0..3usize, prop::option::of(1u64..6), 0u64..6), 0..4),
    ) -> PlanView {
        let zones = [ANY_ZONE, "a", "b"];
        let segment = |n: u8| net(["10.0.0.0/8", "10.0.0.0/9", "10.0.0.0/10"][usize::from(n)]);
        let prefix = |n: u8| net(&format!("10.0.{n}.0/24"));
        let mut view = PlanView { now: Millis(40_000), ..PlanView::default() };
        for (n, zone, from) in units {
            let spec = UnitSpec { zone: zones[zone].into(), prefix: prefix(n), segment: segment(from) };
            view.wanted.insert(UnitId::new(zones[zone], prefix(n)), spec);
        }
        for (n, zone, owner, cost, granted) in rows {
            let row = CurrentUnit { owner: NodeId(owner), cost, granted_at: Millis(granted), segment: segment(0) };
            view.current.insert(UnitId::new(zones[zone], prefix(n)), row);
        }
        for (n, id, hops, reachable) in ways {
            view.reach.entry(segment(n)).or_default().insert(NodeId(id), Reach { hops, reachable });
        }
        for (n, len, zone, pin, forbid) in wishes {
            let segment = net(&format!("10.0.{n}.0/{len}")).trunc();
            let (zone, forbid) = (zones[zone].to_owned(), vec![NodeId(forbid)]);
            view.placements.push(Placement { segment, zone, pin: pin.map(NodeId), forbid });
        }
        let mut ids = BTreeSet::new();
        view.nodes = nodes.into_iter().filter(|node| ids.insert(node.id)).collect();
        view
    }
}

proptest! {
    #[test]
    fn an_applied_plan_leaves_nothing_to_plan(mut view in views()) {
        apply_and_check(&mut view)?;
        prop_assert_eq!(plan(&view), vec![]);
        // The same holds when time passes: one more plan at the most, then silence for ever.
        for _ in 0..3 {
            view.now.0 += REBALANCE_AFTER_MS;
            apply_and_check(&mut view)?;
        }
        view.now.0 += REBALANCE_AFTER_MS;
        prop_assert_eq!(plan(&view), vec![]);
    }

    #[test]
    fn rules_hold_whatever_the_rows_were(mut view in views()) {
        apply_and_check(&mut view)?;
        let possible = |spec: &UnitSpec| view.nodes.iter().any(|n| n.is_eligible() && rank(&view, n, spec).is_some());
        prop_assert_eq!(view.current.keys().collect::<Vec<_>>(), view.wanted.keys().collect::<Vec<_>>());
        for (unit, spec) in &view.wanted {
            let owner = view.current[unit].owner;
            match view.nodes.iter().find(|node| node.id == owner) {
                None => prop_assert!(owner == NodeId::NOBODY && !possible(spec), "{} is left to {}", unit, owner),
                Some(node) => prop_assert!(node.is_eligible() && rank(&view, node, spec).is_some()),
            }
        }
    }

    #[test]
    fn a_death_in_a_settled_cluster_moves_nothing_else(mut view in views(), dead in 0usize..5) {
        for _ in 0..4 {
            view.now.0 += REBALANCE_AFTER_MS;
            apply_and_check(&mut view)?;
        }
        if let Some(node) = view.nodes.get_mut(dead) {
            let (id, was_alive) = (node.id, node.is_eligible());
            (node.alive, node.since) = (false, view.now);
            for change in plan(&view) {
                let Change::Grant { unit, .. } = change else { panic!("nothing to drop") };
                prop_assert!(was_alive && view.current[&unit].owner == id, "{} moved", unit);
            }
        }
    }
}

fn apply_and_check(view: &mut PlanView) -> Result<(), TestCaseError> {
    let changes = plan(view);
    prop_assert_eq!(&changes, &plan(view), "two leaders would plan differently");
    apply(view, &changes);
    Ok(())
}

/// Not a test of speed but its record: `cargo test --release -p quire-coordinator planner::tests::large -- --nocapture`.
#[test]
#[allow(clippy::print_stdout, clippy::disallowed_methods)]
fn large_plans_are_even_and_small_changes_small() {
    let (nodes, segments) = if cfg!(debug_assertions) { (20, 2_000) } else { (100, 100_000) };
    let mut view = PlanView { now: NOW, ..PlanView::default() };
    view.nodes = (1..=nodes).map(|id| node(id, "hq")).collect();
    for n in 0..segments {
        let address = std::net::Ipv4Addr::from(0x0a00_0000 + (n << 8));
        let prefix = IpNet::V4(ipnet::Ipv4Net::new(address, 24).unwrap());
        view.wanted.insert(
            UnitId::new(ANY_ZONE, prefix),
            UnitSpec { zone: ANY_ZONE.into(), prefix, segment: prefix },
        );
        // Every node measured every segment: the worst case for the planner.
        let ways = (1..=nodes).map(|id| (NodeId(id), Reach { hops: Some(1), reachable: true }));
        view.reach.insert(prefix, ways.collect());
    }
    let start = std::time::Instant::now();
    let first = plan(&view);
    let planned = start.elapsed();
    apply(&mut view, &first);
    (view.nodes[0].alive, view.nodes[0].since) = (false, view.now);
    let start = std::time::Instant::now();
    let second = plan(&view);
    let taken_over = start.elapsed();
    let mut owners: Vec<usize> = owned(&view);
    owners.sort_unstable();
    println!("{nodes} nodes, {segments} segments: first plan {planned:?}, a death {taken_over:?}");
    assert_eq!(first.len(), segments as usize);
    assert!(owners.last().unwrap() - owners[0] <= 1);
    assert!(second.len() <= *owners.last().unwrap());
}
