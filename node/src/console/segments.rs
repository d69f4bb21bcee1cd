//! Found segments: what nodes made known, what becomes of each, and the operator's word on them.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Form, http::StatusCode};
use quire_coordinator::found::{self, ACCEPTED, REFUSED};
use quire_coordinator::rows;
use quire_coordinator::settings::{Discovery, Settings};
use quire_coordinator::tables::{Fault, Read};
use quire_coordinator::topology::{Reach, ReachMap};
use quire_proto::id::{Millis, NodeId};
use quire_proto::store::ask::What as AskWhat;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{DecideSegment, SegmentRow};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::control::{BY, Done, PATIENCE, Trouble, ask, bad};
use super::facts::{self, Names};
use super::guard::{self, Role};

/// `segments`: found ones, by zone.
pub(super) fn list(tables: &impl Read, settings: Option<&Settings>) -> Result<Vec<Value>, Fault> {
    let default = Settings::default();
    let discovery = &settings.unwrap_or(&default).discovery;
    let names = facts::names(tables)?;
    let reach = measured(tables)?;
    let rows = rows::segments(tables)?;
    Ok(rows.iter().filter_map(|row| segment(row, discovery, &reach, &names)).collect())
}

fn measured(tables: &impl Read) -> Result<ReachMap, Fault> {
    let mut map = ReachMap::new();
    for row in rows::reaches(tables)? {
        let Some(reach) = row.reach else { continue };
        if let Ok(prefix) = reach.segment.parse() {
            let way = Reach { hops: reach.hops, reachable: reach.reachable };
            map.entry(prefix).or_default().insert(NodeId(row.node), way);
        }
    }
    Ok(map)
}

fn segment(row: &SegmentRow, discovery: &Discovery, reach: &ReachMap, names: &Names) -> Option<Value> {
    let judged = found::judge(row, discovery, reach)?;
    let nearest = row
        .ways
        .iter()
        .filter_map(|way| Some((way.node, way.found.as_ref()?)))
        .min_by_key(|(node, found)| (found.hops, found.at_least, *node));
    let last_seen = row.ways.iter().filter_map(|way| way.found.as_ref()).map(|found| found.seen_at_ms).max();
    let nodes: Vec<Value> = row
        .ways
        .iter()
        .filter_map(|way| Some((way.node, way.found.as_ref()?)))
        .map(|(node, found)| {
            json!({"node": names.get(&node), "hops": found.hops, "at_least": found.at_least, "via": found.chain})
        })
        .collect();
    let mut object = json!({
        "segment": row.prefix,
        "zone": row.zone,
        "state": judged.state.as_str(),
        "why": judged.verdict.to_string(),
        "first_seen": Millis(row.first_seen_ms).rfc3339(),
        "nodes": nodes,
    });
    let mut put = |key: &str, value: Value| {
        if !value.is_null() {
            object[key] = value;
        }
    };
    put("hops", json!(judged.hops));
    put("node", json!(nearest.and_then(|(node, _)| names.get(&node))));
    put("via", json!(nearest.map(|(_, found)| &found.chain)));
    put("last_seen", json!(last_seen.filter(|at| *at > 0).map(|at| Millis(at).rfc3339())));
    if !row.decision.is_empty() {
        put("why", json!(format!("decided by {}", row.decided_by)));
        put("decided_by", json!(row.decided_by));
        put("decided_at", json!(Millis(row.decided_at_ms).rfc3339()));
    }
    Some(object)
}

/// What an operator says of a segment: over the control socket as JSON, from the page as a form.
#[derive(Deserialize)]
pub(super) struct Decision {
    decision: String,
    segment: String,
    #[serde(default)]
    zone: String,
    #[serde(default)]
    confirm_large: bool,
}

pub(super) async fn decide(State(site): State<Arc<Site>>, Json(decision): Json<Decision>) -> Done {
    let changes = commit(&site, decision, BY).await?;
    Ok(Json(json!({ "changes": changes })))
}

pub(super) async fn explore(State(site): State<Arc<Site>>) -> Done {
    ask(&site, AskWhat::Explore(true)).await
}

/// The buttons of the page. Operators only, and only from a page of this console: another site's form would arrive
/// with its own origin.
pub(super) async fn decide_on_page(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    Form(decision): Form<Decision>,
) -> Response {
    let role = guard::role(&site.cluster.view(), &headers);
    if !guard::same_origin(&headers) || !(site.open || role.is_some_and(|role| role >= Role::Operator)) {
        return (StatusCode::FORBIDDEN, "this needs the token of an operator, and a page of this console\n")
            .into_response();
    }
    match commit(&site, decision, "console").await {
        Ok(_) => Redirect::to("/segments").into_response(),
        Err(trouble) => (StatusCode::CONFLICT, format!("{}\n", trouble.text())).into_response(),
    }
}

async fn commit(site: &Site, decision: Decision, by: &str) -> Result<String, Trouble> {
    let word = match decision.decision.as_str() {
        "accept" => ACCEPTED,
        "refuse" => REFUSED,
        "reset" => "",
        other => return Err(bad(format!("`{other}` cannot be decided: accept, refuse or reset"))),
    };
    let command = DecideSegment {
        prefix: decision.segment,
        zone: decision.zone,
        decision: word.to_owned(),
        by: by.to_owned(),
        confirm_large: decision.confirm_large,
    };
    let outcome = site.cluster.propose(Kind::DecideSegment(command), PATIENCE).await?;
    Ok(match outcome.result {
        Some(Answer::Changes(changes)) => changes,
        _ => String::new(),
    })
}
