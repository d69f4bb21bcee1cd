//! What the log does to the tables of routers and found segments.

use quire_proto::id::NodeId;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{
    DecideSegment, FoundSegment, Member, ReportExploration, RouterReport, RouterRow, RouterTrial, SegmentRow,
    SegmentWay, Surroundings,
};

use super::{ACCEPTED, REFUSED};
use crate::explore::{LARGEST_V4_PREFIX, MAX_ROUTERS, MAX_SEGMENTS};
use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, Read as _, ReadExt as _, Table};
use crate::{rows, upgrade};

/// Keeps what a node learnt. Of a zone at most [`MAX_ROUTERS`] routers and [`MAX_SEGMENTS`] segments are kept; further
/// ones are dropped.
pub(crate) fn report(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    report: &ReportExploration,
) -> Result<Answer, Fault> {
    let Some(member) = rows::member(tables, NodeId(report.node))? else {
        return Ok(refuse(format!("node {} is not a member", report.node)));
    };
    if let Some(own) = &report.own {
        put_own(tables, at_ms, &member, own);
    }
    for router in &report.routers {
        put_router(tables, at_ms, &member, router)?;
    }
    for found in &report.segments {
        put_segment(tables, at_ms, &member, found)?;
    }
    if report.forget_before_ms > 0 {
        let (member, zone) = (member.id, member.zone.clone());
        let old = |way: &SegmentWay| {
            way.node == member
                && way.found.as_ref().is_none_or(|found| found.seen_at_ms < report.forget_before_ms)
        };
        forget(tables, old)?;
        for row in rows::routers(tables)? {
            let heard = row.asked_at_ms.max(row.answered_at_ms);
            let here = row.zone == zone && !row.address.is_empty();
            if here && heard < report.forget_before_ms {
                tables.delete(Table::Routers, &rows::router_key(&row.zone, &row.address));
            }
        }
    }
    changed(tables, index)?;
    Ok(Answer::Done(true))
}

/// An operator's word on a segment.
pub(crate) fn decide(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    decide: &DecideSegment,
) -> Result<Answer, Fault> {
    let Ok(prefix) = decide.prefix.parse::<ipnet::IpNet>() else {
        return Ok(refuse(format!("`{}` is not a prefix: write one such as 10.1.0.0/16", decide.prefix)));
    };
    let verb = match decide.decision.as_str() {
        ACCEPTED => "accepted",
        REFUSED => "refused",
        "" => "took back the decision on",
        other => return Ok(refuse(format!("`{other}` cannot be decided"))),
    };
    let large = prefix.max_prefix_len() == 32 && prefix.prefix_len() < LARGEST_V4_PREFIX;
    if decide.decision == ACCEPTED && large && !decide.confirm_large {
        let count = 1u64 << (32 - prefix.prefix_len());
        return Ok(refuse(format!("{prefix} holds {count} addresses: add --confirm-large if you mean it")));
    }
    let mut rows = rows::segments(tables)?;
    rows.retain(|row| {
        row.prefix == prefix.trunc().to_string() && (decide.zone.is_empty() || row.zone == decide.zone)
    });
    if rows.is_empty() {
        let zone = if decide.zone.is_empty() { String::new() } else { format!(" in zone {}", decide.zone) };
        let why = format!(
            "no node found {prefix}{zone}: `quire segments` lists what was found; other prefixes are named in the settings"
        );
        return Ok(refuse(why));
    }
    let zones: Vec<String> = rows.iter().map(|row| row.zone.clone()).collect();
    for mut row in rows {
        row.decision.clone_from(&decide.decision);
        row.decided_by.clone_from(&decide.by);
        row.decided_at_ms = at_ms;
        put(tables, &row);
    }
    let what = format!("{verb} segment {prefix} in zone {}", zones.join(", "));
    audit(tables, index, at_ms, &decide.by, what.clone());
    changed(tables, index)?;
    Ok(Answer::Changes(what))
}

/// A node that was removed sees nothing any more.
pub(crate) fn forget_node(tables: &mut Overlay<'_>, index: u64, node: NodeId) -> Result<(), Fault> {
    tables.delete(Table::Routers, &rows::surroundings_key(node));
    forget(tables, |way| way.node == node.0)?;
    changed(tables, index)
}

/// Links and routers are due anew.
pub(crate) fn explore_again(tables: &mut Overlay<'_>, index: u64, at_ms: u64) -> Result<(), Fault> {
    let mut meta = rows::meta(tables)?;
    meta.explore_asked_at_ms = at_ms;
    meta.explored_index = index;
    rows::put_meta(tables, &meta);
    Ok(())
}

fn changed(tables: &mut Overlay<'_>, index: u64) -> Result<(), Fault> {
    let mut meta = rows::meta(tables)?;
    meta.explored_index = index;
    rows::put_meta(tables, &meta);
    Ok(())
}

fn put_own(tables: &mut Overlay<'_>, at_ms: u64, member: &Member, own: &Surroundings) {
    let row = RouterRow {
        zone: member.zone.clone(),
        node: member.id,
        asked_at_ms: at_ms,
        answered_at_ms: at_ms,
        view: Some(own.clone()),
        ..RouterRow::default()
    };
    tables.put(Table::Routers, &rows::surroundings_key(NodeId(member.id)), &row);
}

fn put_router(
    tables: &mut Overlay<'_>,
    at_ms: u64,
    member: &Member,
    report: &RouterReport,
) -> Result<(), Fault> {
    let key = rows::router_key(&member.zone, &report.address);
    let before: Option<RouterRow> = tables.row(Table::Routers, &key)?;
    if before.is_none() && is_full(tables, &member.zone)? {
        return Ok(());
    }
    let before = before.unwrap_or_default();
    let row = RouterRow {
        zone: member.zone.clone(),
        address: report.address.clone(),
        node: member.id,
        asked_at_ms: report.asked_at_ms,
        answered_at_ms: if report.view.is_some() { at_ms } else { before.answered_at_ms },
        settings_index: report.settings_index,
        // A router that is silent today still stands where it stood.
        view: report.view.clone().or(before.view),
        refusal: report.refusal.clone(),
        tried_round_ms: before.tried_round_ms,
        tried_under: before.tried_under,
    };
    tables.put(Table::Routers, &key, &row);
    Ok(())
}

/// Notes that SNMPv3 users are about to be tried at a router: only whoever has this committed may try them, so each is
/// tried once in a round, whichever nodes die meanwhile.
pub(crate) fn trial(tables: &mut Overlay<'_>, led_at_ms: u64, trial: &RouterTrial) -> Result<Answer, Fault> {
    let Some(member) = rows::member(tables, NodeId(trial.node))? else {
        return Ok(refuse(format!("node {} is not a member", trial.node)));
    };
    if rows::meta(tables)?.settings_index != trial.settings_index {
        return Ok(refuse("the settings are others by now"));
    }
    let key = rows::router_key(&member.zone, &trial.address);
    let before: Option<RouterRow> = tables.row(Table::Routers, &key)?;
    if before.is_none() && is_full(tables, &member.zone)? {
        return Ok(refuse(format!("zone {} has {MAX_ROUTERS} routers already", member.zone)));
    }
    let new = RouterRow { zone: member.zone, address: trial.address.clone(), ..RouterRow::default() };
    let row = before.unwrap_or(new);
    // A round of a calendar that is ahead must not stand for all until then.
    let bounded = rows::meta(tables)?.cluster_version >= upgrade::LED_ASKS;
    let round_ms = if bounded { trial.round_ms.min(led_at_ms) } else { trial.round_ms };
    if row.tried_round_ms >= round_ms && row.tried_under == trial.settings_index {
        return Ok(refuse(format!("the users were tried at router {} in this round", trial.address)));
    }
    let row = RouterRow { tried_round_ms: round_ms, tried_under: trial.settings_index, ..row };
    tables.put(Table::Routers, &key, &row);
    Ok(Answer::Done(true))
}

fn is_full(tables: &Overlay<'_>, zone: &str) -> Result<bool, Fault> {
    Ok(count(tables, Table::Routers, &rows::router_key(zone, ""))? >= MAX_ROUTERS)
}

fn put_segment(
    tables: &mut Overlay<'_>,
    at_ms: u64,
    member: &Member,
    found: &FoundSegment,
) -> Result<(), Fault> {
    let key = rows::segment_key(&member.zone, &found.prefix);
    let before: Option<SegmentRow> = tables.row(Table::Segments, &key)?;
    let full =
        || count(tables, Table::Segments, &rows::segment_key(&member.zone, "")).map(|n| n >= MAX_SEGMENTS);
    if before.is_none() && full()? {
        return Ok(());
    }
    let mut row = before.unwrap_or_else(|| SegmentRow {
        zone: member.zone.clone(),
        prefix: found.prefix.clone(),
        first_seen_ms: at_ms,
        ..SegmentRow::default()
    });
    row.ways.retain(|way| way.node != member.id);
    row.ways.push(SegmentWay { node: member.id, found: Some(found.clone()) });
    row.ways.sort_by_key(|way| way.node);
    put(tables, &row);
    Ok(())
}

fn put(tables: &mut Overlay<'_>, row: &SegmentRow) {
    tables.put(Table::Segments, &rows::segment_key(&row.zone, &row.prefix), row);
}

/// Takes ways away; a segment that nobody sees and nobody has decided on goes with its last way.
fn forget(tables: &mut Overlay<'_>, gone: impl Fn(&SegmentWay) -> bool) -> Result<(), Fault> {
    for mut row in rows::segments(tables)? {
        let before = row.ways.len();
        row.ways.retain(|way| !gone(way));
        if row.ways.len() == before {
            continue;
        }
        match row.ways.is_empty() && row.decision.is_empty() {
            true => tables.delete(Table::Segments, &rows::segment_key(&row.zone, &row.prefix)),
            false => put(tables, &row),
        }
    }
    Ok(())
}

/// Rows whose keys start with `prefix`.
fn count(tables: &Overlay<'_>, table: Table, prefix: &[u8]) -> Result<usize, Fault> {
    /// More than either table holds of a zone.
    const ENOUGH: usize = MAX_SEGMENTS + 1;
    let page = tables.range(table, prefix, ENOUGH)?;
    Ok(page.iter().take_while(|(key, _)| key.starts_with(prefix)).count())
}
