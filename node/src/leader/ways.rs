//! What the plan knows of ways to segments: measured ones, and those that routers told.

use std::collections::{BTreeMap, BTreeSet};

use quire_coordinator::planner::UnitSpec;
use quire_coordinator::settings::Settings;
use quire_coordinator::topology::{Reach, ReachMap};
use quire_proto::id::{NodeId, UnitId};
use quire_proto::store::{ReachRow, SegmentRow};

/// Reported ways, and below them the distances at which nodes found segments: a fresh segment then begins with the
/// nearest node instead of moving there later.
pub fn reach_map(rows: &[ReachRow], found: &[SegmentRow]) -> ReachMap {
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

/// Reported segments that are neither in the settings nor found nor in a unit.
pub(super) fn unwanted(
    rows: &[ReachRow],
    settings: &Settings,
    found: &[SegmentRow],
    wanted: &BTreeMap<UnitId, UnitSpec>,
) -> Vec<String> {
    let mut known: BTreeSet<String> = found.iter().map(|row| row.prefix.clone()).collect();
    known.extend(settings.discovery.segments.iter().map(|segment| segment.prefix.to_string()));
    let reported: BTreeSet<&str> =
        rows.iter().filter_map(|row| row.reach.as_ref()).map(|reach| reach.segment.as_str()).collect();
    let mut unknown: Vec<String> =
        reported.into_iter().filter(|segment| !known.contains(*segment)).map(ToOwned::to_owned).collect();
    if !unknown.is_empty() {
        let cut: BTreeSet<String> = wanted.values().map(|spec| spec.segment.to_string()).collect();
        unknown.retain(|segment| !cut.contains(segment));
    }
    unknown
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
    fn ways_to_removed_segments_are_unwanted() {
        let settings = Settings::parse("[discovery]\nsegments = [\"10.1.0.0/24\"]").unwrap();
        let rows = [row(1, "10.1.0.0/24", None), row(1, "10.2.0.0/24", None), row(2, "10.9.0.0/24", None)];
        let found = [found("10.2.0.0/24", 1, 2)];
        let wanted = quire_coordinator::planner::units(&settings);
        assert_eq!(unwanted(&rows, &settings, &found, &wanted), ["10.9.0.0/24"]);
    }
}
