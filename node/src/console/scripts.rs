//! Profiles over the control socket: which are in force, and changing that for the whole cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Query, State};
use data_encoding::HEXLOWER;
use quire_coordinator::rows;
use quire_coordinator::script::{self, Listed};
use quire_proto::id::Millis;
use quire_proto::store::RemoveScript;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::control::{BY, Done, PATIENCE, Trouble, bad};
use crate::device::script::{self as script_runs, Profile, Scripts};

/// One object a version: those that were put, with their source, and the built-in ones that are in force.
pub(super) async fn list(State(site): State<Arc<Site>>) -> Result<Json<Vec<Value>>, Trouble> {
    let tables = site.cluster.view();
    let names: BTreeMap<u64, String> =
        rows::members(&tables)?.into_iter().map(|member| (member.id, member.name)).collect();
    let mut listed = Vec::new();
    let rows = rows::scripts(&tables)?;
    let replaced = |name: &str| rows.iter().any(|row| row.name == name && script::in_force(row).is_some());
    for profile in Scripts::shipped().iter().filter(|profile| !replaced(&profile.name)) {
        listed.push(json!({ "name": profile.name, "version": profile.version, "state": "active",
            "origin": "built-in", "priority": profile.priority, "failures": site.scripts.failures(profile),
            "sha256": HEXLOWER.encode(&profile.sha256), "source": &*profile.source }));
    }
    for row in &rows {
        listed.extend(script::listing(row).iter().map(|version| put_object(&row.name, version, &names)));
    }
    listed.sort_by_key(|object| object["name"].to_string());
    Ok(Json(listed))
}

fn put_object(name: &str, listed: &Listed, nodes: &BTreeMap<u64, String>) -> Value {
    let version = &listed.version;
    let mut object = json!({ "name": name, "version": version.version, "state": listed.state, "origin": "put",
        "runs": listed.tally.runs, "failures": listed.tally.failures,
        "put_at": Millis(version.put_at_ms).rfc3339(), "sha256": HEXLOWER.encode(&version.sha256) });
    let mut add = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            object[key] = value;
        }
    };
    add(
        "node",
        listed.node.map(|node| json!(nodes.get(&node.0).cloned().unwrap_or_else(|| node.to_string()))),
    );
    add("why", listed.why.as_ref().map(|why| json!(why)));
    if !version.source.is_empty() {
        add("by", Some(json!(version.by)));
        add("source", Some(json!(version.source)));
        // A source that this node cannot compile has no priority here.
        add("priority", Profile::parse(&version.source).ok().map(|profile| json!(profile.priority)));
    }
    object
}

#[derive(Deserialize)]
pub(super) struct PutOptions {
    /// Without a trial.
    #[serde(default)]
    now: bool,
}

/// Compiles the source and tries it on this node's recordings, so that what fails never reaches the log; then commits.
pub(super) async fn put(
    State(site): State<Arc<Site>>,
    Query(options): Query<PutOptions>,
    source: String,
) -> Done {
    let committed = rows::scripts(&site.cluster.view())?;
    let accepted = script_runs::accept(&site.scripts, &committed, source, BY, options.now).await;
    let (command, tried) = accepted.map_err(|refused| bad(refused.to_string()))?;
    let Json(mut done) = change(&site, Kind::PutScript(command)).await?;
    if tried > 0 {
        let changes = done["changes"].as_str().unwrap_or_default();
        done["changes"] = json!(format!("{changes}; tried on {tried} recordings of this node before"));
    }
    Ok(Json(done))
}

pub(super) async fn remove(State(site): State<Arc<Site>>, Path(name): Path<String>) -> Done {
    let put = rows::scripts(&site.cluster.view())?.iter().any(|row| row.name == name);
    if !put && Scripts::shipped().iter().any(|profile| profile.name == name) {
        return Err(bad(format!("`{name}` is built in: put another of its name instead")));
    }
    change(&site, Kind::RemoveScript(RemoveScript { name, by: BY.to_owned() })).await
}

pub(super) async fn change(site: &Site, kind: Kind) -> Done {
    let outcome = site.cluster.propose(kind, PATIENCE).await?;
    let changes = match outcome.result {
        Some(Answer::Changes(changes)) => changes,
        _ => String::new(),
    };
    Ok(Json(json!({ "changes": changes })))
}
