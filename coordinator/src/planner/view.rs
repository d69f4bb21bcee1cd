//! What a plan depends on, read from the tables; and the command that puts a plan in force.

use quire_proto::id::{Epoch, Millis, NodeId, UnitId};
use quire_proto::store::{Grant, Member, Plan, ReachRow, SegmentRow, UnitRow};

use super::{Change, CurrentUnit, NodeView, Placement, PlanView, units_with};
use crate::settings::{self, Settings};
use crate::tables::{Fault, Read};
use crate::topology::{Reach, ReachMap};
use crate::{found, rows, upgrade};

impl PlanView {
    /// The view at `now`, with what the caller knows of the nodes.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    pub fn read(
        tables: &impl Read,
        settings: &Settings,
        nodes: Vec<NodeView>,
        now: Millis,
    ) -> Result<PlanView, Fault> {
        let segments = rows::segments(tables)?;
        let reach = reach_map(&rows::reaches(tables)?, &segments);
        let found = found::wanted(&segments, &settings.discovery, &reach);
        Ok(PlanView {
            current: rows::units(tables)?.into_iter().filter_map(current_unit).collect(),
            wanted: units_with(settings, &found),
            nodes,
            placements: placements(settings, &rows::members(tables)?),
            reach,
            now,
        })
    }
}

impl NodeView {
    /// A member as the plan sees it: `alive`, or not, since then.
    pub fn of(member: &Member, alive: bool, since: Millis) -> NodeView {
        NodeView {
            id: NodeId(member.id),
            zone: member.zone.clone(),
            alive,
            since,
            draining: member.draining,
            witness: member.witness,
            can_collect: member.trouble.is_empty(),
        }
    }
}

/// The command that makes changes, under a claim and in a cluster of that version.
pub fn command(claim: Epoch, changes: &[Change], cluster_version: u32) -> Plan {
    let mut plan = Plan { claim: claim.0, ..Plan::default() };
    for change in changes {
        match change {
            Change::Grant { unit, node, spec, cost, hops, hand_over } => plan.grants.push(Grant {
                unit: unit.to_string(),
                node: node.0,
                zone: spec.zone.clone(),
                prefix: spec.prefix.to_string(),
                segment: spec.segment.to_string(),
                cost: *cost,
                hops: *hops,
                hand_over: *hand_over && cluster_version >= upgrade::HAND_OVER,
            }),
            Change::Drop { unit } => plan.drop_units.push(unit.to_string()),
        }
    }
    plan
}

fn current_unit(row: UnitRow) -> Option<(UnitId, CurrentUnit)> {
    let id: UnitId = row.unit.parse().ok()?;
    let segment = row.segment.parse().ok()?;
    let current = CurrentUnit {
        owner: NodeId(row.node),
        cost: row.cost,
        granted_at: Millis(row.granted_at_ms),
        segment,
    };
    Some((id, current))
}

/// Reported ways, and below them the distances at which nodes found segments: a fresh segment then begins with the
/// nearest node instead of moving there later.
fn reach_map(rows: &[ReachRow], found: &[SegmentRow]) -> ReachMap {
    let mut map = ReachMap::new();
    for row in rows {
        let Some(reach) = &row.reach else { continue };
        let Ok(segment) = reach.segment.parse() else { continue };
        let way = Reach { hops: reach.hops, reachable: reach.reachable };
        map.entry(segment).or_default().insert(NodeId(row.node), way);
    }
    for row in found {
        let Ok(segment) = row.prefix.parse() else { continue };
        for way in &row.ways {
            let Some(found) = way.found.as_ref().filter(|found| !found.at_least) else { continue };
            let told = Reach { hops: Some(found.hops), reachable: true };
            map.entry(segment).or_default().entry(NodeId(way.node)).or_insert(told);
        }
    }
    map
}

/// The operator's placements with ids for names; nodes that are no members are left out.
fn placements(settings: &Settings, members: &[Member]) -> Vec<Placement> {
    let id = |name: &String| members.iter().find(|member| member.name == *name).map(|m| NodeId(m.id));
    let placement = |wish: &settings::Placement| Placement {
        segment: wish.segment,
        zone: wish.zone.clone(),
        pin: wish.pin.as_ref().and_then(id),
        forbid: wish.forbid.iter().filter_map(id).collect(),
    };
    settings.placements.iter().map(placement).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::store::{FoundSegment, Reach as Reported, SegmentWay};

    fn row(node: u64, segment: &str, hops: Option<u32>) -> ReachRow {
        let reach = Reported { segment: segment.to_owned(), hops, reachable: true, measured_at_ms: 1 };
        ReachRow { node, reach: Some(reach) }
    }

    fn found(prefix: &str, node: u64, hops: u32) -> SegmentRow {
        let found = FoundSegment { prefix: prefix.to_owned(), hops, ..FoundSegment::default() };
        SegmentRow {
            prefix: prefix.to_owned(),
            ways: vec![SegmentWay { node, found: Some(found) }],
            ..SegmentRow::default()
        }
    }

    #[test]
    fn what_was_measured_stands_above_what_was_told() {
        let found = [found("10.2.0.0/24", 1, 2), found("10.3.0.0/24", 2, 3)];
        let map = reach_map(&[row(1, "10.2.0.0/24", Some(4))], &found);
        assert_eq!(map[&"10.2.0.0/24".parse().unwrap()][&NodeId(1)].hops, Some(4));
        assert_eq!(map[&"10.3.0.0/24".parse().unwrap()][&NodeId(2)].hops, Some(3));
    }

    #[test]
    fn a_placement_names_nodes_that_may_not_be_there() {
        let text = "[[placement]]\nsegment = \"10.1.0.0/16\"\npin = \"n1\"\nforbid = [\"n2\", \"gone\"]";
        let settings = Settings::parse(text).unwrap();
        let member = |id: u64, name: &str| Member { id, name: name.into(), ..Member::default() };
        let found = placements(&settings, &[member(7, "n1"), member(8, "n2")]);
        assert_eq!((found[0].pin, found[0].forbid.as_slice()), (Some(NodeId(7)), &[NodeId(8)][..]));
        assert_eq!(placements(&settings, &[])[0].pin, None);
    }
}
