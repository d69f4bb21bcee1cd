//! The HTTP API: the contract's JSON by token, the three probes, and the metrics.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use quire_coordinator::tables::{Fault, Table};
use quire_proto::id::Millis;
use serde::Deserialize;
use serde_json::{Value, json};

use super::listing::{Listing, Render};
use super::{Site, alerts, devices, facts, guard, segments};
use crate::cluster::Space;

/// Listings by token; the local control socket mounts [`listings`] without one.
pub(super) fn routes(site: &Arc<Site>) -> Router<Arc<Site>> {
    let guarded = listings().layer(middleware::from_fn_with_state(Arc::clone(site), by_token));
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/openapi.json", get(|| async { Json(openapi()) }))
        .route("/api/{*rest}", any(unknown))
        .merge(guarded)
}

/// Every listing, no questions asked.
pub(super) fn listings() -> Router<Arc<Site>> {
    Router::new()
        .route("/api/v1/status", get(status))
        .route("/api/v1/members", get(members))
        .route("/api/v1/units", get(units))
        .route("/api/v1/plan", get(units))
        .route("/api/v1/devices", get(list_devices))
        .route("/api/v1/readings", get(readings))
        .route("/api/v1/reachability", get(reachability))
        .route("/api/v1/segments", get(found))
        .route("/api/v1/alerts", get(list_alerts))
        .route("/api/v1/audit", get(audit))
        .merge(devices::listings())
}

async fn by_token(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    match guard::role(&site.cluster.view(), request.headers()) {
        Some(_) => next.run(request).await,
        None => problem(
            StatusCode::UNAUTHORIZED,
            "a token is needed: `quire api-token create --role viewer`, then `Authorization: Bearer TOKEN`",
        ),
    }
}

async fn unknown(uri: Uri) -> Response {
    problem(
        StatusCode::NOT_FOUND,
        format!("{} is not served: /api/v1/openapi.json lists what is", uri.path()),
    )
}

/// An error as JSON.
pub(super) fn problem(status: StatusCode, why: impl Into<String>) -> Response {
    (status, Json(json!({ "error": why.into() }))).into_response()
}

fn wants_lines(headers: &HeaderMap) -> bool {
    let wants = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    wants.contains("application/x-ndjson")
}

/// A listing that is small by nature.
pub(super) fn answer(headers: &HeaderMap, rows: Result<Vec<Value>, Fault>) -> Response {
    let rows = match rows {
        Ok(rows) => rows,
        Err(fault) => return problem(StatusCode::INTERNAL_SERVER_ERROR, fault.to_string()),
    };
    if !wants_lines(headers) {
        return Json(rows).into_response();
    }
    let mut lines = String::new();
    for row in rows {
        lines.push_str(&row.to_string());
        lines.push('\n');
    }
    ([(header::CONTENT_TYPE, "application/x-ndjson")], lines).into_response()
}

async fn readyz(State(site): State<Arc<Site>>) -> Response {
    let quorum = site.cluster.watch().borrow().quorum;
    let space = *site.cluster.space().borrow();
    match (quorum, space) {
        (true, Space::Enough) => "ok\n".into_response(),
        (false, _) => (StatusCode::SERVICE_UNAVAILABLE, "no quorum\n").into_response(),
        (true, Space::Short) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the disk is nearly full\n").into_response()
        }
    }
}

async fn metrics(State(site): State<Arc<Site>>) -> String {
    site.observe();
    site.metrics.render()
}

async fn status(State(site): State<Arc<Site>>) -> Response {
    match facts::status(&site.cluster) {
        Ok(status) => Json(status).into_response(),
        Err(fault) => problem(StatusCode::INTERNAL_SERVER_ERROR, fault.to_string()),
    }
}

async fn members(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    let members = facts::status(&site.cluster)
        .map(|status| status.get("members").and_then(Value::as_array).cloned().unwrap_or_default());
    answer(&headers, members)
}

/// A listing of a whole table, or of its rows from a key on.
fn list(site: &Site, headers: &HeaderMap, table: Table, from: Vec<u8>, render: Render) -> Response {
    Listing { cluster: site.cluster.clone(), table, from, render, lines: wants_lines(headers) }.respond()
}

async fn units(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    list(&site, &headers, Table::Units, Vec::new(), facts::unit)
}

#[derive(Deserialize)]
struct Which {
    /// Those too that left the reports.
    #[serde(default)]
    all: bool,
}

async fn list_devices(
    State(site): State<Arc<Site>>,
    Query(which): Query<Which>,
    headers: HeaderMap,
) -> Response {
    let render = if which.all { facts::any_device } else { facts::device };
    list(&site, &headers, Table::Devices, Vec::new(), render)
}

#[derive(Deserialize)]
struct Since {
    since: Option<String>,
    device: Option<String>,
}

async fn readings(State(site): State<Arc<Site>>, Query(query): Query<Since>, headers: HeaderMap) -> Response {
    let since = match query.since.as_deref().map(str::parse::<Millis>).transpose() {
        Ok(since) => since.unwrap_or_default(),
        Err(error) => {
            let why = format!("since: {error}: expected RFC 3339, for example 2026-11-22T00:00:00Z");
            return problem(StatusCode::BAD_REQUEST, why);
        }
    };
    let Some(device) = query.device else {
        return list(&site, &headers, Table::Readings, since.0.to_be_bytes().to_vec(), facts::reading);
    };
    // A device's own are few: all of two days and one a day before.
    let readings = facts::readings_of(&site.cluster.view(), &device, usize::MAX).map(|mut readings| {
        let at = |reading: &Value| reading.get("at").and_then(Value::as_str).and_then(|at| at.parse().ok());
        readings.retain(|reading| at(reading).is_none_or(|at: Millis| at >= since));
        readings.reverse();
        readings
    });
    answer(&headers, readings)
}

async fn reachability(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    answer(&headers, facts::reachability(&site.cluster.view()))
}

async fn found(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    // Settings that this version cannot read accept nothing.
    let settings = site.cluster.settings().ok().flatten();
    answer(&headers, segments::list(&site.cluster.view(), settings.as_deref()))
}

async fn list_alerts(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    list(&site, &headers, Table::Alerts, Vec::new(), alerts::alert)
}

async fn audit(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    list(&site, &headers, Table::Audit, Vec::new(), facts::audit)
}

fn openapi() -> Value {
    let answers = |summary: &str, what: &str| {
        json!({"get": {"summary": summary, "security": [{"token": []}], "responses": {
            "200": {"description": what}, "401": {"description": "No token, or one that is not known"}}}})
    };
    let list = |summary: &str| {
        answers(summary, "An array of objects; one object a line with Accept: application/x-ndjson")
    };
    json!({
        "openapi": "3.1.0",
        "info": {"title": "Quire node", "version": env!("CARGO_PKG_VERSION")},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/api/v1/status": answers("The cluster", "One object"),
            "/api/v1/members": list("The nodes"),
            "/api/v1/units": list("The units and how far their sweeps have come"),
            "/api/v1/plan": list("Which node has which unit"),
            "/api/v1/devices": list("The devices; ?all=true with those that left the reports"),
            "/api/v1/device/{id}": answers("A device with its evidence, decisions and events", "One object"),
            "/api/v1/events": list("What happened to devices, oldest first; ?device=ID"),
            "/api/v1/review": list("What is doubtful about who is who"),
            "/api/v1/decisions": list("What operators decided about it"),
            "/api/v1/readings": list("The readings, oldest first; ?since=TIME&device=ID"),
            "/api/v1/reachability": list("Which node reaches which segment"),
            "/api/v1/segments": list("The segments that nodes and routers made known"),
            "/api/v1/alerts": list("The alerts, open ones first, then those of the last week that are cleared"),
            "/api/v1/audit": list("What operators did"),
        }
    })
}
