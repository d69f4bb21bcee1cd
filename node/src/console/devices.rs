//! Who is who, over API and control socket: the review list, operators' decisions, typed values, events, and one device
//! with all that speaks for it.

use std::sync::Arc;

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use quire_coordinator::meters;
use quire_coordinator::tables::{Fault, Read, ReadExt as _, Table};
use quire_proto::id::Millis;
use quire_proto::reading::Reading;
use quire_proto::store::command::Kind;
use quire_proto::store::decide_identity::What;
use quire_proto::store::{
    DecideIdentity, DecisionRow, DeviceRow, EventRow, FaceRow, Merge, Meter, ReviewRow, SetDevice, Split,
    Typed,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::api::{answer, problem};
use super::control::{BY, Done};
use super::scripts::change;
use super::{Site, facts};

/// What `sources` says of a value that a human typed.
const TYPED: &str = "operator";

pub(super) fn listings() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/review", get(|site, headers| listed(site, headers, review)))
        .route("/api/v1/decisions", get(|site, headers| listed(site, headers, decisions)))
        .route("/api/v1/events", get(list_events))
        .route("/api/v1/device/{id}", get(show))
}

pub(super) fn changes() -> Router<Arc<Site>> {
    Router::new()
        .route("/control/identity/merge", post(merge))
        .route("/control/identity/split", post(split))
        .route("/control/identity/settle", post(settle))
        .route("/control/identity/undo", post(undo))
        .route("/control/device/{id}", post(set))
}

async fn listed(
    State(site): State<Arc<Site>>,
    headers: HeaderMap,
    of: fn(&crate::cluster::View) -> Result<Vec<Value>, Fault>,
) -> Response {
    answer(&headers, of(&site.cluster.view()))
}

fn time(at_ms: u64) -> Value {
    json!(Millis(at_ms).rfc3339())
}

/// Puts what a human typed over what was read.
pub(super) fn overlay_typed(row: &DeviceRow, reading: &mut Reading) {
    for typed in &row.typed {
        let place = match typed.field.as_str() {
            "name" => &mut reading.facts.name,
            "location" => &mut reading.facts.location,
            "asset" => &mut reading.facts.asset,
            _ => continue,
        };
        *place = Some(typed.value.clone());
        reading.sources.insert(typed.field.clone(), TYPED.to_owned());
    }
}

/// Adds what is known beyond the latest reading: replaced supplies, counters that started over, expiry.
pub(super) fn add_history(row: &DeviceRow, device: &mut Value) {
    let supplies = device.get_mut("supplies").and_then(Value::as_array_mut);
    for supply in supplies.into_iter().flatten() {
        let index = supply.get("index").and_then(Value::as_u64);
        let part =
            row.parts.iter().find(|part| Some(u64::from(part.index)) == index && part.replaced_at_ms > 0);
        if let Some(part) = part {
            supply["replaced_at"] = time(part.replaced_at_ms);
        }
    }
    let restarted = row.meters.iter().filter(|meter| meter.epoch > 1 || meter.wraps > 0);
    let restarted: Map<String, Value> =
        restarted.map(|meter| (meter.field.clone(), meter_json(meter))).collect();
    if !restarted.is_empty() {
        device["counter_epochs"] = Value::Object(restarted);
    }
    if row.expired_at_ms > 0 {
        device["expired_at"] = time(row.expired_at_ms);
    }
}

fn meter_json(meter: &Meter) -> Value {
    json!({ "epoch": meter.epoch, "since": time(meter.since_ms), "wraps": meter.wraps, "used": meters::used(meter) })
}

fn review(tables: &crate::cluster::View) -> Result<Vec<Value>, Fault> {
    let rows: Vec<ReviewRow> = tables.all(Table::Review, &[])?;
    let line = |row: ReviewRow| {
        json!({ "id": row.id, "what": row.what, "why": row.why, "devices": row.devices, "evidence": row.evidence,
            "since": time(row.since_ms) })
    };
    Ok(rows.into_iter().map(line).collect())
}

fn decisions(tables: &crate::cluster::View) -> Result<Vec<Value>, Fault> {
    let rows: Vec<DecisionRow> = tables.all(Table::Decisions, &[])?;
    let line =
        |row: DecisionRow| json!({ "id": row.index, "at": time(row.at_ms), "by": row.by, "what": row.what });
    Ok(rows.into_iter().map(line).collect())
}

pub(super) fn event(row: &EventRow, names: &facts::Names) -> Value {
    let mut line = json!({ "at": time(row.at_ms), "device": row.device, "kind": row.kind, "what": row.what });
    let known = [
        ("field", (!row.field.is_empty()).then(|| json!(row.field))),
        ("before", row.before.map(|n| json!(n))),
        ("after", row.after.map(|n| json!(n))),
        ("node", names.get(&row.node).map(|name| json!(name))),
    ];
    for (key, value) in known {
        if let Some(value) = value {
            line[key] = value;
        }
    }
    line
}

#[derive(Deserialize)]
struct OfDevice {
    device: Option<String>,
}

async fn list_events(
    State(site): State<Arc<Site>>,
    Query(of): Query<OfDevice>,
    headers: HeaderMap,
) -> Response {
    answer(&headers, events(&site.cluster.view(), of.device.as_deref()))
}

fn events(tables: &impl Read, of: Option<&str>) -> Result<Vec<Value>, Fault> {
    let names = facts::names(tables)?;
    let mut lines = Vec::new();
    tables.each::<EventRow>(Table::Events, &[], |_, row| {
        if of.is_none_or(|device| device == row.device) {
            lines.push(event(&row, &names));
        }
        true
    })?;
    Ok(lines)
}

async fn show(State(site): State<Arc<Site>>, Path(id): Path<String>) -> Response {
    match one(&site.cluster.view(), &id) {
        Ok(Some(device)) => axum::response::IntoResponse::into_response(Json(device)),
        Ok(None) => problem(StatusCode::NOT_FOUND, format!("no device `{id}`")),
        Err(fault) => problem(StatusCode::INTERNAL_SERVER_ERROR, fault.to_string()),
    }
}

/// The contract's device, with its evidence and where that came from, all its meters, and what happened to it.
fn one(tables: &impl Read, id: &str) -> Result<Option<Value>, Fault> {
    let Some(row) = tables.row::<DeviceRow>(Table::Devices, id.as_bytes())? else { return Ok(None) };
    let Some(mut device) = facts::one_device(tables, id)? else { return Ok(None) };
    let names = facts::names(tables)?;
    let mut evidence = Vec::new();
    for key in &row.faces {
        if let Some(face) = tables.row::<FaceRow>(Table::Faces, key.as_bytes())? {
            evidence.push(face_json(&face, &names));
        }
    }
    if !row.certificate.is_empty() {
        let digest: String = row.certificate.iter().map(|octet| format!("{octet:02x}")).collect();
        device["certificate"] = json!(format!("sha256:{digest}"));
    }
    device["evidence"] = json!(evidence);
    let all = row.meters.iter().map(|meter| (meter.field.clone(), meter_json(meter)));
    device["meters"] = Value::Object(all.collect());
    device["events"] = json!(events(tables, Some(id))?);
    Ok(Some(device))
}

fn face_json(face: &FaceRow, names: &facts::Names) -> Value {
    let strong = [&face.serial, &face.mac, &face.engine];
    let shown: Vec<&String> = strong.into_iter().flatten().collect();
    let from =
        |field: &str| face.provenance.iter().find(|known| known.field == field).map(|known| &known.from);
    let mut line = json!({ "face": face.key, "shows": shown, "address": face.address, "zone": face.zone,
        "first_seen": time(face.first_ms), "last_seen": time(face.last_ms) });
    let known = [
        ("serial_from", from("serial").map(|from| json!(from))),
        ("mac_from", from("mac").map(|from| json!(from))),
        ("node", names.get(&face.node).map(|name| json!(name))),
        ("name", (!face.name.is_empty()).then(|| json!(face.name))),
    ];
    for (key, value) in known {
        if let Some(value) = value {
            line[key] = value;
        }
    }
    line
}

async fn decide(site: &Site, what: What) -> Done {
    change(site, Kind::DecideIdentity(DecideIdentity { by: BY.to_owned(), what: Some(what) })).await
}

#[derive(Deserialize)]
struct MergeOptions {
    into: String,
    from: String,
}

async fn merge(State(site): State<Arc<Site>>, Json(it): Json<MergeOptions>) -> Done {
    decide(&site, What::Merge(Merge { into: it.into, from: it.from })).await
}

#[derive(Deserialize)]
struct SplitOptions {
    device: String,
    evidence: Vec<String>,
}

async fn split(State(site): State<Arc<Site>>, Json(it): Json<SplitOptions>) -> Done {
    decide(&site, What::Split(Split { device: it.device, evidence: it.evidence })).await
}

#[derive(Deserialize)]
struct SettleOptions {
    case: String,
}

async fn settle(State(site): State<Arc<Site>>, Json(it): Json<SettleOptions>) -> Done {
    decide(&site, What::Settle(it.case)).await
}

#[derive(Deserialize)]
struct UndoOptions {
    decision: u64,
}

async fn undo(State(site): State<Arc<Site>>, Json(it): Json<UndoOptions>) -> Done {
    decide(&site, What::Undo(it.decision)).await
}

async fn set(
    State(site): State<Arc<Site>>,
    Path(device): Path<String>,
    Json(values): Json<std::collections::BTreeMap<String, String>>,
) -> Done {
    let typed = |(field, value)| Typed { field, value, ..Typed::default() };
    let values = values.into_iter().map(typed).collect();
    change(&site, Kind::SetDevice(SetDevice { device, by: BY.to_owned(), values })).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::store::Part;

    #[test]
    fn what_was_typed_stands_over_what_was_read() {
        let typed = Typed { field: "location".into(), value: "Room 7".into(), ..Typed::default() };
        let row = DeviceRow { typed: vec![typed], ..DeviceRow::default() };
        let mut reading = Reading::default();
        reading.facts.location = Some("unset".into());
        reading.facts.name = Some("npi1".into());
        overlay_typed(&row, &mut reading);
        assert_eq!(reading.facts.location.as_deref(), Some("Room 7"));
        assert_eq!(reading.facts.name.as_deref(), Some("npi1"));
        assert_eq!(reading.sources["location"], "operator");
    }

    #[test]
    fn history_stands_beside_the_latest_reading() {
        let part = Part { index: 2, replaced_at_ms: 1_700_000_000_000, ..Part::default() };
        let meter = |field: &str, epoch| Meter { field: field.into(), epoch, ..Meter::default() };
        let meters = vec![meter("total", 2), meter("mono", 1)];
        let row = DeviceRow { parts: vec![part], meters, expired_at_ms: 1, ..DeviceRow::default() };
        let mut device = json!({"supplies": [{"index": 1}, {"index": 2}]});
        add_history(&row, &mut device);
        assert_eq!(device["supplies"][0].get("replaced_at"), None);
        assert_eq!(device["supplies"][1]["replaced_at"], "2023-11-14T22:13:20.000Z");
        assert_eq!(device["counter_epochs"]["total"]["epoch"], 2);
        assert_eq!(device["counter_epochs"].get("mono"), None);
        assert!(device.get("expired_at").is_some());
    }
}
