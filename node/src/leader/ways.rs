//! Which reported ways to segments are of no use any more.

use std::collections::{BTreeMap, BTreeSet};

use quire_coordinator::planner::UnitSpec;
use quire_coordinator::settings::Settings;
use quire_proto::id::UnitId;
use quire_proto::store::{ReachRow, SegmentRow};

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
    use quire_proto::store::Reach as Reported;

    fn row(node: u64, segment: &str, hops: Option<u32>) -> ReachRow {
        let reach = Reported { segment: segment.to_owned(), hops, reachable: true, measured_at_ms: 1 };
        ReachRow { node, reach: Some(reach) }
    }

    #[test]
    fn ways_to_removed_segments_are_unwanted() {
        let settings = Settings::parse("[discovery]\nsegments = [\"10.1.0.0/24\"]").unwrap();
        let rows = [row(1, "10.1.0.0/24", None), row(1, "10.2.0.0/24", None), row(2, "10.9.0.0/24", None)];
        let found = [SegmentRow { prefix: "10.2.0.0/24".to_owned(), ..SegmentRow::default() }];
        let wanted = quire_coordinator::planner::units(&settings);
        assert_eq!(unwanted(&rows, &settings, &found, &wanted), ["10.9.0.0/24"]);
    }
}
