//! `/api/v1`: the listings of the command line over HTTP, one JSON object a line. Reads only.

use axum::Json;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};

use crate::console::{Console, PageError};
use crate::listing::{DeviceOrder, DeviceQuery};

/// Lines of an answer when nobody says otherwise, and at most: about 2 KiB each.
const LIMIT: u32 = 1000;
const LIMIT_MAX: u32 = 10_000;

#[derive(Debug, Deserialize)]
struct Page {
    site: Option<String>,
    limit: Option<u32>,
    /// Of devices and alerts: how many to leave out.
    #[serde(default)]
    offset: u32,
    /// Of readings: from the `Link` header of the page before.
    #[serde(default)]
    after: i64,
}

impl Page {
    fn limit(&self) -> u32 {
        self.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX)
    }
}

pub(crate) fn routes() -> Router<Console> {
    Router::new()
        .route("/api/v1/sites", get(sites))
        .route("/api/v1/links", get(links))
        .route("/api/v1/devices", get(devices))
        .route("/api/v1/readings", get(readings))
        .route("/api/v1/alerts", get(alerts))
        .route("/api/v1/jobs", get(jobs))
        .route("/api/v1/bundles", get(bundles))
}

async fn sites(State(console): State<Console>) -> Result<Response, PageError> {
    Ok(list(&console.store.sites().await?, None))
}

async fn links(State(console): State<Console>, Query(page): Query<Page>) -> Result<Response, PageError> {
    Ok(list(&console.store.links(page.site.as_deref()).await?, None))
}

async fn jobs(State(console): State<Console>, Query(page): Query<Page>) -> Result<Response, PageError> {
    Ok(list(&console.store.jobs(page.site.as_deref()).await?, None))
}

async fn bundles(State(console): State<Console>, Query(page): Query<Page>) -> Result<Response, PageError> {
    Ok(list(&console.store.bundles(page.site.as_deref()).await?, None))
}

async fn alerts(State(console): State<Console>, Query(page): Query<Page>) -> Result<Response, PageError> {
    let limit = page.limit();
    let alerts = console.store.alerts(page.site.as_deref(), limit.into(), page.offset).await?;
    let next =
        (alerts.len() >= limit as usize).then(|| format!("offset={}", page.offset.saturating_add(limit)));
    Ok(list(&alerts, next))
}

async fn devices(State(console): State<Console>, Query(page): Query<Page>) -> Result<Response, PageError> {
    let limit = page.limit();
    let query = DeviceQuery {
        site: page.site,
        order: DeviceOrder::Id,
        limit,
        offset: page.offset,
        ..DeviceQuery::default()
    };
    let devices = console.store.devices(&query).await?;
    let next =
        (devices.len() >= limit as usize).then(|| format!("offset={}", page.offset.saturating_add(limit)));
    Ok(list(&devices, next))
}

async fn readings(State(console): State<Console>, Query(page): Query<Page>) -> Result<Response, PageError> {
    let limit = page.limit();
    let readings = console.store.readings(page.site.as_deref(), page.after, limit).await?;
    let last = readings.last().filter(|_| readings.len() >= limit as usize);
    let next = last.map(|reading| format!("after={}", reading.key));
    Ok(list(&readings, next))
}

/// An array. Where there is more, `Link: <?…>; rel="next"` (RFC 8288) names the rest of the query.
fn list<T: Serialize>(items: &[T], next: Option<String>) -> Response {
    let mut response = Json(items).into_response();
    if let Some(value) = next.and_then(|next| format!("<?{next}>; rel=\"next\"").parse().ok()) {
        response.headers_mut().insert(header::LINK, value);
    }
    response
}
