//! Why a unit is where it is: the planner's own word, for people.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use quire_coordinator::planner::{self, NodeView, PlanView};
use quire_coordinator::rows;
use quire_proto::id::{Millis, NodeId};
use quire_proto::store::Member;
use serde_json::json;

use super::control::{Done, Trouble, bad};
use super::{Site, facts};
use crate::clock;
use crate::cluster::Cluster;

/// The unit that holds an address, who has it, and what the planner thinks of every node.
pub(super) async fn explain(State(site): State<Arc<Site>>, Path(address): Path<IpAddr>) -> Done {
    let tables = site.cluster.view();
    let units = rows::units(&tables)?;
    let holds = |prefix: &str| prefix.parse::<ipnet::IpNet>().is_ok_and(|prefix| prefix.contains(&address));
    let Some(unit) = units.iter().find(|unit| holds(&unit.prefix)) else {
        return Err(bad(format!("{address} lies in no segment that is searched")));
    };
    let reaches = rows::reaches(&tables)?;
    let (names, members) = (facts::names(&tables)?, rows::members(&tables)?);
    let heard = rows::meta(&tables)?.heard;
    let why = verdicts(&site.cluster, &members, &unit.unit, address)?;
    let candidate = |member: &Member| {
        let reach = reaches
            .iter()
            .filter(|row| row.node == member.id)
            .find_map(|row| row.reach.as_ref().filter(|reach| reach.segment == unit.segment));
        json!({
            "node": member.name,
            "verdict": why.get(&NodeId(member.id)),
            "alive": heard.iter().any(|heard| heard.node == member.id),
            "draining": member.draining,
            "reachable": reach.map(|reach| reach.reachable),
            "hops": reach.and_then(|reach| reach.hops),
            "units": units.iter().filter(|unit| unit.node == member.id).count(),
        })
    };
    let candidates: Vec<serde_json::Value> = members.iter().map(candidate).collect();
    Ok(Json(json!({
        "address": address.to_string(),
        "unit": unit.unit,
        "node": names.get(&unit.node),
        "epoch": unit.epoch,
        "granted_at": Millis(unit.granted_at_ms).rfc3339(),
        "candidates": candidates,
    })))
}

/// What the planner thinks of every node for the unit, in words.
fn verdicts(
    cluster: &Cluster,
    members: &[Member],
    unit: &str,
    address: IpAddr,
) -> Result<BTreeMap<NodeId, String>, Trouble> {
    let settings = cluster.settings().map_err(|error| bad(error.to_string()))?.unwrap_or_default();
    let tables = cluster.view();
    let heard = rows::meta(&tables)?.heard;
    let node =
        |member: &Member| NodeView::of(member, heard.iter().any(|heard| heard.node == member.id), Millis(0));
    let view = PlanView::read(&tables, &settings, members.iter().map(node).collect(), clock::now())?;
    let explained =
        planner::explain(&view, address).units.into_iter().find(|known| known.unit.as_str() == unit);
    let candidates = explained.map(|known| known.candidates).unwrap_or_default();
    Ok(candidates.into_iter().map(|candidate| (candidate.node, candidate.verdict.to_string())).collect())
}
