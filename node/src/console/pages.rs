//! The pages: cluster, units, devices, one device; rendered here, refreshed when something is applied.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::Router;
use axum::extract::{Form, Path, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::get;
use data_encoding::BASE64URL_NOPAD;
use futures::Stream;
use quire_coordinator::rows;
use quire_coordinator::tables::{Fault, Table};
use serde::Deserialize;
use serde_json::Value;

use super::{Site, alerts, facts, guard, segments};
use crate::cluster::Seen;

/// Rows on one page: about a screenful of scrolling, and a bound on what one request renders.
const PAGE: usize = 200;

/// Events a second at most, however much is applied.
const EVENT_PAUSE: Duration = Duration::from_secs(1);

/// Nothing on a page may come from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

pub(super) fn routes(site: &Arc<Site>) -> Router<Arc<Site>> {
    let guarded = Router::new()
        .route("/", get(cluster))
        .route("/units", get(units))
        .route("/segments", get(found).post(segments::decide_on_page))
        .route("/alerts", get(list_alerts))
        .route("/devices", get(devices))
        .route("/devices/{id}", get(device))
        .route("/events", get(events))
        .layer(middleware::from_fn_with_state(Arc::clone(site), admit));
    Router::new()
        .route("/login", get(login_page).post(login))
        .route("/assets/style.css", get(style))
        .route("/assets/live.js", get(script))
        .merge(guarded)
        .layer(middleware::map_response(harden))
}

async fn harden(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, header::HeaderValue::from_static(POLICY));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    headers.insert(header::REFERRER_POLICY, header::HeaderValue::from_static("same-origin"));
    response
}

async fn admit(State(site): State<Arc<Site>>, request: Request, next: Next) -> Response {
    if site.open {
        if guard::local_host(request.headers()) {
            return next.run(request).await;
        }
        return (StatusCode::FORBIDDEN, "this console answers to its loopback address only\n")
            .into_response();
    }
    match guard::role(&site.cluster.view(), request.headers()) {
        Some(_) => next.run(request).await,
        None => Redirect::to("/login").into_response(),
    }
}

async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css")], include_str!("../../assets/style.css"))
}

async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript")], include_str!("../../assets/live.js"))
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    failed: bool,
}

async fn login_page() -> Response {
    page(&LoginPage { failed: false })
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

async fn login(State(site): State<Arc<Site>>, Form(form): Form<Login>) -> Response {
    let mut headers = HeaderMap::new();
    if let Ok(value) = format!("Bearer {}", form.token.trim()).parse() {
        headers.insert(header::AUTHORIZATION, value);
    }
    if guard::role(&site.cluster.view(), &headers).is_none() {
        return page(&LoginPage { failed: true });
    }
    let cookie = format!("{}={}; Path=/; HttpOnly; SameSite=Strict", guard::COOKIE, form.token.trim());
    ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
}

fn page(template: &impl Template) -> Response {
    match template.render() {
        Ok(html) => Html(html).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

fn broken(fault: &Fault) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, fault.to_string()).into_response()
}

/// A JSON object that templates ask by path; what is not known is an empty string.
struct Row(Value);

impl Row {
    fn text(&self, path: &str) -> String {
        match path.split('.').try_fold(&self.0, |value, step| value.get(step)) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(items)) => {
                items.iter().map(|item| item.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" ")
            }
            Some(other) => other.to_string(),
        }
    }

    fn is(&self, path: &str) -> bool {
        self.0.get(path).and_then(Value::as_bool).unwrap_or(false)
    }

    fn list(&self, key: &str) -> Vec<Row> {
        self.0.get(key).and_then(Value::as_array).into_iter().flatten().cloned().map(Row).collect()
    }

    fn known(&self, path: &str) -> bool {
        !self.text(path).is_empty()
    }

    /// Brand and model; many models carry the brand already.
    fn title(&self) -> String {
        let (vendor, model) = (self.text("vendor"), self.text("model"));
        match model.to_lowercase().starts_with(&vendor.to_lowercase()) {
            true => model,
            false => format!("{vendor} {model}"),
        }
    }

    /// The counters as name and value, in the contract's order.
    fn counters(&self) -> Vec<(String, String)> {
        let counters = self.0.get("counters").and_then(Value::as_object);
        counters.into_iter().flatten().map(|(name, value)| (name.clone(), value.to_string())).collect()
    }
}

#[derive(Template)]
#[template(path = "cluster.html")]
struct ClusterPage {
    status: Row,
}

async fn cluster(State(site): State<Arc<Site>>) -> Response {
    match facts::status(&site.cluster) {
        Ok(status) => page(&ClusterPage { status: Row(status) }),
        Err(fault) => broken(&fault),
    }
}

#[derive(Template)]
#[template(path = "units.html")]
struct UnitsPage {
    cluster: String,
    units: Vec<Row>,
    /// Where the next page begins, and whether this is not the first.
    next: String,
    later: bool,
}

async fn units(State(site): State<Arc<Site>>, Query(search): Query<Search>) -> Response {
    let from = search.from();
    match facts::units_page(&site.cluster.view(), &from, PAGE) {
        Ok((units, next)) => page(&UnitsPage {
            cluster: cluster_name(&site),
            units: units.into_iter().map(Row).collect(),
            next: cursor(next),
            later: !from.is_empty(),
        }),
        Err(fault) => broken(&fault),
    }
}

#[derive(Template)]
#[template(path = "segments.html")]
struct SegmentsPage {
    cluster: String,
    segments: Vec<Row>,
    exploring: bool,
}

async fn found(State(site): State<Arc<Site>>) -> Response {
    let settings = site.cluster.settings().ok().flatten();
    let exploring = settings.as_ref().is_some_and(|settings| settings.discovery.hops.is_some());
    match segments::list(&site.cluster.view(), settings.as_deref()) {
        Ok(rows) => {
            let segments = rows.into_iter().map(Row).collect();
            page(&SegmentsPage { cluster: cluster_name(&site), segments, exploring })
        }
        Err(fault) => broken(&fault),
    }
}

#[derive(Template)]
#[template(path = "alerts.html")]
struct AlertsPage {
    cluster: String,
    alerts: Vec<Row>,
    open: u64,
    rules: usize,
    next: String,
    later: bool,
}

async fn list_alerts(State(site): State<Arc<Site>>, Query(search): Query<Search>) -> Response {
    let (tables, from) = (site.cluster.view(), search.from());
    let rules = site.cluster.settings().ok().flatten().map_or(0, |settings| settings.alerts.len());
    let shown = alerts::page(&tables, &from, PAGE).and_then(|shown| Ok((shown, rows::meta(&tables)?)));
    match shown {
        Ok(((alerts, next), meta)) => page(&AlertsPage {
            cluster: cluster_name(&site),
            alerts: alerts.into_iter().map(Row).collect(),
            open: meta.alerts_open,
            rules,
            next: cursor(next),
            later: !from.is_empty(),
        }),
        Err(fault) => broken(&fault),
    }
}

/// A key as an address can carry it.
fn cursor(key: Option<Vec<u8>>) -> String {
    key.map(|key| BASE64URL_NOPAD.encode(&key)).unwrap_or_default()
}

fn cluster_name(site: &Site) -> String {
    site.cluster.me().cluster_name.clone()
}

#[derive(Deserialize)]
struct Search {
    #[serde(default)]
    q: String,
    /// The key that the page begins with.
    #[serde(default)]
    from: String,
}

impl Search {
    fn from(&self) -> Vec<u8> {
        BASE64URL_NOPAD.decode(self.from.as_bytes()).unwrap_or_default()
    }
}

#[derive(Template)]
#[template(path = "devices.html")]
struct DevicesPage {
    cluster: String,
    devices: Vec<Row>,
    query: String,
    all: u64,
    next: String,
    later: bool,
}

async fn devices(State(site): State<Arc<Site>>, Query(search): Query<Search>) -> Response {
    let needle = search.q.trim().to_lowercase();
    let matches = |device: &Value| needle.is_empty() || device_text(device).contains(&needle);
    let (tables, from) = (site.cluster.view(), search.from());
    let shown = facts::devices_page(&tables, &from, PAGE, matches);
    let reported = || rows::meta(&tables).map(|meta| meta.devices.saturating_sub(meta.expired));
    match shown.and_then(|shown| Ok((shown, reported()?))) {
        Ok(((devices, next), all)) => page(&DevicesPage {
            cluster: cluster_name(&site),
            devices: devices.into_iter().map(Row).collect(),
            query: search.q,
            all,
            next: cursor(next),
            later: !from.is_empty(),
        }),
        Err(fault) => broken(&fault),
    }
}

/// What a search looks through.
fn device_text(device: &Value) -> String {
    ["address", "vendor", "model", "serial", "mac", "name", "location", "status", "id"]
        .iter()
        .filter_map(|key| device.get(key).and_then(Value::as_str))
        .collect::<Vec<_>>()
        .join(" ")
        .to_lowercase()
}

#[derive(Template)]
#[template(path = "device.html")]
struct DevicePage {
    cluster: String,
    device: Row,
    readings: Vec<Row>,
}

async fn device(State(site): State<Arc<Site>>, Path(id): Path<String>) -> Response {
    /// Readings shown below a device.
    const RECENT: usize = 20;
    let tables = site.cluster.view();
    let device = match facts::one_device(&tables, &id) {
        Ok(Some(device)) => device,
        Ok(None) => return (StatusCode::NOT_FOUND, "no such device\n").into_response(),
        Err(fault) => return broken(&fault),
    };
    match facts::readings_of(&tables, &id, RECENT) {
        Ok(readings) => {
            let readings = readings.into_iter().map(Row).collect();
            page(&DevicePage { cluster: cluster_name(&site), device: Row(device), readings })
        }
        Err(fault) => broken(&fault),
    }
}

#[derive(Deserialize)]
struct Of {
    /// The path of the page that waits.
    #[serde(default)]
    of: String,
}

/// True when what was applied may change the page at this path.
fn concerns(path: &str, seen: &Seen) -> bool {
    let touched = |table: Table| seen.everything || seen.rows.iter().any(|(other, _)| *other == table);
    match path {
        "/units" => touched(Table::Units),
        "/devices" => touched(Table::Devices),
        "/alerts" => touched(Table::Alerts),
        _ => match path.strip_prefix("/devices/") {
            Some(id) => {
                seen.everything || seen.rows.contains(&(Table::Devices, id.as_bytes().to_vec().into()))
            }
            None => true,
        },
    }
}

/// An event whenever something was applied that the page shows, at most one a second.
async fn events(
    State(site): State<Arc<Site>>,
    Query(query): Query<Of>,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let mut changes = site.cluster.changes();
    let _ = changes.take();
    let stop = site.stop.clone();
    let stream = futures::stream::unfold((changes, query.of, stop), |(mut changes, path, stop)| async move {
        loop {
            let next = async {
                changes.changed().await;
                tokio::time::sleep(EVENT_PAUSE).await;
            };
            tokio::select! {
                () = stop.cancelled() => return None,
                () = next => {}
            }
            if concerns(&path, &changes.take()) {
                return Some((Ok(Event::default().data("changed")), (changes, path, stop)));
            }
        }
    });
    Sse::new(stream).keep_alive(KeepAlive::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_told_of_what_it_shows() {
        let seen = |table, key: &'static str| Seen { everything: false, rows: vec![(table, key.into())] };
        let device = seen(Table::Devices, "d1");
        assert!(concerns("/devices/d1", &device) && !concerns("/devices/d2", &device));
        assert!(concerns("/devices", &device) && !concerns("/units", &device) && concerns("/", &device));
        assert!(concerns("/units", &seen(Table::Units, "any:10.0.0.0/24")));
        let everything = Seen { everything: true, rows: Vec::new() };
        assert!(concerns("/alerts", &seen(Table::Alerts, "0cluster")) && !concerns("/alerts", &device));
        assert!(
            ["/", "/units", "/alerts", "/devices", "/devices/d1"]
                .iter()
                .all(|path| concerns(path, &everything))
        );
    }
}
