//! Profiles over the control socket: which are in force, and changing that for the whole cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use data_encoding::HEXLOWER;
use quire_coordinator::rows;
use quire_proto::id::Millis;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{PutScript, RemoveScript};
use serde_json::{Value, json};

use super::Site;
use super::control::{BY, Done, PATIENCE, Trouble, bad};
use crate::device::script::{Profile, Scripts};

/// One object a profile: those that were put, with their source, and the built-in ones below them.
pub(super) async fn list(State(site): State<Arc<Site>>) -> Result<Json<Vec<Value>>, Trouble> {
    let tables = site.cluster.view();
    let mut listed: BTreeMap<String, Value> = BTreeMap::new();
    for profile in Scripts::shipped() {
        listed.insert(profile.name.clone(), json!({ "origin": "built-in", "source": &*profile.source }));
    }
    for row in rows::scripts(&tables)? {
        let put_at = Millis(row.put_at_ms).rfc3339();
        let object = json!({ "origin": "put", "by": row.by, "put_at": put_at, "version": row.version,
            "sha256": HEXLOWER.encode(&row.sha256), "source": row.source });
        listed.insert(row.name, object);
    }
    // What this node makes of them; a source that it cannot compile has no priority and no failures here.
    let active = site.scripts.active();
    let list = listed.into_iter().map(|(name, mut object)| {
        object["name"] = json!(name);
        if let Some(profile) = active.iter().find(|profile| profile.name == name) {
            object["version"] = json!(profile.version);
            object["priority"] = json!(profile.priority);
            object["sha256"] = json!(HEXLOWER.encode(&profile.sha256));
            object["failures"] = json!(site.scripts.failures(profile));
        }
        object
    });
    Ok(Json(list.collect()))
}

/// Compiles the source here, so that what does not compile never reaches the log, then commits it.
pub(super) async fn put(State(site): State<Arc<Site>>, source: String) -> Done {
    let profile = Profile::parse(&source).map_err(|error| bad(error.to_string()))?;
    let command = PutScript {
        name: profile.name,
        version: profile.version,
        source,
        sha256: profile.sha256.to_vec().into(),
        by: BY.to_owned(),
    };
    change(&site, Kind::PutScript(command)).await
}

pub(super) async fn remove(State(site): State<Arc<Site>>, Path(name): Path<String>) -> Done {
    let put = rows::scripts(&site.cluster.view())?.iter().any(|row| row.name == name);
    if !put && Scripts::shipped().iter().any(|profile| profile.name == name) {
        return Err(bad(format!("`{name}` is built in: put another of its name instead")));
    }
    change(&site, Kind::RemoveScript(RemoveScript { name, by: BY.to_owned() })).await
}

async fn change(site: &Site, kind: Kind) -> Done {
    let outcome = site.cluster.propose(kind, PATIENCE).await?;
    let changes = match outcome.result {
        Some(Answer::Changes(changes)) => changes,
        _ => String::new(),
    };
    Ok(Json(json!({ "changes": changes })))
}
