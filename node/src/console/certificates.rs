//! Certificates, the CA and the cluster key over the control socket: what there is, until when, and changing it.

use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Json, Router, extract::State};
use data_encoding::HEXLOWER;
use quire_coordinator::rotation;
use quire_coordinator::rows::{self, DAY_MS};
use quire_proto::id::{Millis, NodeId};
use quire_proto::store::command::Kind;
use quire_proto::store::rotate::What;
use quire_proto::store::{Member, Meta, Rotate, RotationRow};
use serde::Deserialize;
use serde_json::{Value, json};

use super::Site;
use super::control::{BY, Done, Trouble, bad};
use super::scripts::change;
use crate::clock;
use crate::doctor::SOON_MS;
use crate::tls;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new().route("/control/certificates", get(list)).route("/control/rotate", post(rotate))
}

#[derive(Deserialize)]
struct RotateOptions {
    what: String,
}

async fn rotate(State(site): State<Arc<Site>>, Json(options): Json<RotateOptions>) -> Done {
    let what = match options.what.as_str() {
        "key" => What::ClusterKey,
        "ca" => What::Authority,
        other => return Err(bad(format!("`{other}` cannot be rotated: there are `key` and `ca`"))),
    };
    change(&site, Kind::Rotate(Rotate { what: what.into(), by: BY.to_owned() })).await
}

async fn list(State(site): State<Arc<Site>>) -> Result<Json<Value>, Trouble> {
    let tables = site.cluster.view();
    let (meta, row, members) = (rows::meta(&tables)?, rotation::row(&tables)?, rows::members(&tables)?);
    let alive = |id: u64| site.cluster.is_alive(&meta, NodeId(id));
    Ok(Json(describe((&meta, &row), &members, alive, clock::now())))
}

fn hex(octets: &[u8]) -> String {
    format!("sha256:{}", HEXLOWER.encode(octets))
}

fn time(at_ms: u64) -> Value {
    if at_ms == 0 { Value::Null } else { json!(Millis(at_ms).rfc3339()) }
}

fn describe(
    (meta, row): (&Meta, &RotationRow),
    members: &[Member],
    alive: impl Fn(u64) -> bool,
    now: Millis,
) -> Value {
    let names = |members: Vec<&Member>| -> Vec<String> {
        members.into_iter().map(|member| member.name.clone()).collect()
    };
    let ca = tls::pin(&meta.ca_certificate_der);
    let mut key = json!({ "generation": rotation::in_force(row), "since": time(row.key_at_ms) });
    if let Some(change) = &row.key {
        // Who is off fetches it when it comes back.
        let mut lacking = rotation::lacking_key(row, members);
        lacking.retain(|member| alive(member.id));
        key["changing"] = json!({ "by": change.by, "asked_at": time(change.asked_at_ms),
            "waits_for": names(lacking) });
    }
    let mut authority = json!({ "sha256": hex(&ca), "since": time(row.ca_at_ms) });
    if let Some(change) = &row.ca {
        authority["changing"] = json!({ "by": change.by, "asked_at": time(change.asked_at_ms),
            "waits_for": names(rotation::lacking_ca(row, members)) });
        if let Some(next) = rotation::next_ca(row) {
            authority["changing"]["sha256"] = json!(hex(&next.certificate_sha256));
        }
    }
    let node = |member: &Member| node(member, (&ca, row), alive(member.id), now);
    let nodes: Vec<Value> = members.iter().map(node).collect();
    json!({ "cluster_key": key, "ca": authority, "nodes": nodes })
}

fn node(member: &Member, (ca, row): (&[u8], &RotationRow), alive: bool, now: Millis) -> Value {
    let said = tls::said_of(&member.certificate_der).map(|(said, _)| said);
    let next = rotation::next_ca(row).is_some_and(|next| next.certificate_sha256 == member.ca_sha256);
    let of = match () {
        () if member.ca_sha256.is_empty() => Value::Null,
        () if next => json!("new"),
        () if member.ca_sha256 == ca && rotation::next_ca(row).is_some() => json!("old"),
        () if member.ca_sha256 == ca => json!("in force"),
        () => json!("another"),
    };
    let left = said.as_ref().map(|said| said.until.0.saturating_sub(now.0));
    let state = match left {
        None => "not told yet",
        Some(0) => "ran out",
        Some(left) if left < SOON_MS => "runs out soon",
        Some(_) => "good",
    };
    let mut line = json!({ "name": member.name, "id": member.id, "ca": of, "state": state,
        "alive": alive });
    if let Some(said) = said {
        line["until"] = json!(said.until.rfc3339());
        line["days_left"] = json!(left.unwrap_or(0) / DAY_MS);
    }
    if member.key_generation > 0 {
        line["cluster_key"] = json!(member.key_generation);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::{Authority, Key, Names};
    use quire_proto::store::{CaChange, KeyChange};

    #[test]
    fn a_listing_says_whom_a_change_waits_for() {
        let (old, new) = (Authority::generate("old").unwrap(), Authority::generate("new").unwrap());
        let names = Names { common_name: "n".into(), dns: "n.quire".into(), uri: "quire://n".into() };
        let request = Key::generate().unwrap().request("n").unwrap();
        let member = |name: &str, of: &Authority, key_generation| Member {
            name: name.into(),
            certificate_der: of.sign(&request, &names, Millis(40 * DAY_MS)).unwrap().into(),
            ca_sha256: tls::pin(of.certificate()).to_vec().into(),
            key_generation,
            ..Member::default()
        };
        let meta = Meta { ca_certificate_der: old.certificate().to_vec().into(), ..Meta::default() };
        let ca = CaChange {
            certificate_der: new.certificate().to_vec().into(),
            certificate_sha256: tls::pin(new.certificate()).to_vec().into(),
            asked_at_ms: 5,
            ..CaChange::default()
        };
        let key = KeyChange { generation: 2, ..KeyChange::default() };
        let row = RotationRow { ca: Some(ca), key: Some(key), ..RotationRow::default() };
        let silent = Member { id: 3, name: "n3".into(), ..Member::default() };
        let members = [member("n1", &new, 2), member("n2", &old, 1), silent];
        let said = describe((&meta, &row), &members, |id| id != 3, Millis(30 * DAY_MS));
        assert_eq!(said["ca"]["changing"]["waits_for"], json!(["n2", "n3"]));
        assert_eq!(
            said["cluster_key"]["changing"]["waits_for"],
            json!(["n2"]),
            "n3 is off, and fetches it later"
        );
        assert_eq!(said["cluster_key"]["generation"], 1);
        let column = |name: &str| -> Vec<Value> {
            said["nodes"].as_array().unwrap().iter().map(|node| node[name].clone()).collect()
        };
        assert_eq!(column("ca"), [json!("new"), json!("old"), Value::Null]);
        assert_eq!(column("state"), ["runs out soon", "runs out soon", "not told yet"]);
        assert_eq!(column("days_left"), [json!(10), json!(10), Value::Null]);
        let after = describe((&meta, &RotationRow::default()), &members, |_| true, Millis(40 * DAY_MS));
        assert_eq!(
            (&after["nodes"][1]["ca"], &after["nodes"][1]["state"]),
            (&json!("in force"), &json!("ran out"))
        );
        assert!(after["ca"].get("changing").is_none());
    }
}
