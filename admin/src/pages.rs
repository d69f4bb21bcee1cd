//! The console's pages: sites, the devices of one, one device. Made on the server from `templates/`.
//!
//! Everything that a device or a site says about itself reaches a page through a template, which escapes it.

use askama::Template;
use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Html;
use axum::routing::get;
use quire_proto::reading::{Counters, Status, Supply, SupplyState};
use serde::Deserialize;

use crate::alerts::AlertLine;
use crate::console::{Console, PageError};
use crate::listing::{DeviceLine, DeviceOrder, DeviceQuery, LinkLine, ReadingLine, SiteLine};

/// Devices or alerts on one page.
const DEVICES_PER_PAGE: u32 = 100;
/// Readings in a device's history: a month of hours would not be read by anybody.
const HISTORY: u32 = 100;
/// The drawing of the history, in units of its own.
const CHART: (f64, f64) = (600.0, 120.0);

type Page = Result<Html<String>, PageError>;

pub(crate) fn routes() -> Router<Console> {
    Router::new()
        .route("/", get(overview))
        .route("/alerts", get(alerts))
        .route("/sites/{site}", get(devices))
        .route("/sites/{site}/devices/{device}", get(device))
}

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    open: bool,
    sites: Vec<SiteOnPage>,
    connected: usize,
    enrolled: usize,
    devices: u64,
    readings: u64,
    pending: u64,
    alerts: u64,
    conflicts: u64,
}

struct SiteOnPage {
    line: SiteLine,
    link: Option<LinkLine>,
    href: String,
}

async fn overview(State(console): State<Console>) -> Page {
    let mut links = console.store.links(None).await?;
    let mut sites = Vec::new();
    for line in console.store.sites().await?.into_iter().filter(|site| site.state != "revoked") {
        let link = links.iter().position(|link| link.site == line.name).map(|at| links.swap_remove(at));
        sites.push(SiteOnPage { href: format!("/sites/{}", segment(&line.name)), line, link });
    }
    let page = Overview {
        open: console.open,
        connected: sites.iter().filter(|site| site.link.is_some()).count(),
        enrolled: sites.iter().filter(|site| site.line.state == "enrolled").count(),
        devices: sites.iter().map(|site| site.line.devices).sum(),
        readings: sites.iter().map(|site| site.line.readings).sum(),
        pending: sites.iter().filter_map(|site| site.line.pending).sum(),
        alerts: console.store.count_open_alerts().await?,
        conflicts: console.store.count_conflicts().await?,
        sites,
    };
    Ok(Html(page.render()?))
}

#[derive(Debug, Default, Deserialize)]
struct AlertQuery {
    site: Option<String>,
    #[serde(default)]
    page: u32,
}

#[derive(Template)]
#[template(path = "alerts.html")]
struct Alerts {
    open: bool,
    site: Option<String>,
    count: u64,
    alerts: Vec<AlertOnPage>,
    earlier: Option<String>,
    later: Option<String>,
}

struct AlertOnPage {
    line: AlertLine,
    /// The site's name as a query holds it.
    site_query: String,
    /// Of the device's page.
    href: Option<String>,
}

async fn alerts(State(console): State<Console>, Query(query): Query<AlertQuery>) -> Page {
    let page = query.page.min(100_000);
    // One more than is shown says whether there is a next page.
    let (limit, offset) = (i64::from(DEVICES_PER_PAGE) + 1, page * DEVICES_PER_PAGE);
    let mut lines = console.store.alerts(query.site.as_deref(), limit, offset).await?;
    let more = lines.len() > DEVICES_PER_PAGE as usize;
    lines.truncate(DEVICES_PER_PAGE as usize);
    let narrowed = query.site.as_deref().map(|site| format!("site={}&", segment(site))).unwrap_or_default();
    let href = |page: u32| format!("?{narrowed}page={page}");
    let on_page = |line: AlertLine| AlertOnPage {
        site_query: segment(&line.site),
        href: (!line.device.is_empty())
            .then(|| format!("/sites/{}/devices/{}", segment(&line.site), segment(&line.device))),
        line,
    };
    let page = Alerts {
        open: console.open,
        count: console.store.count_open_alerts().await?,
        alerts: lines.into_iter().map(on_page).collect(),
        earlier: page.checked_sub(1).map(href),
        later: more.then(|| href(page + 1)),
        site: query.site,
    };
    Ok(Html(page.render()?))
}

#[derive(Debug, Default, Deserialize)]
struct ListQuery {
    #[serde(default)]
    q: String,
    #[serde(default)]
    sort: String,
    #[serde(default)]
    desc: bool,
    #[serde(default)]
    page: u32,
}

#[derive(Template)]
#[template(path = "devices.html")]
struct Devices {
    open: bool,
    site: SiteLine,
    link: Option<LinkLine>,
    query: ListQuery,
    heads: Vec<Head>,
    devices: Vec<DeviceOnPage>,
    total: u64,
    from: u64,
    to: u64,
    earlier: Option<String>,
    later: Option<String>,
}

/// The head of a column: where a click leads, and how the list is ordered now.
struct Head {
    text: &'static str,
    href: String,
    sorted: &'static str,
    number: bool,
}

struct DeviceOnPage {
    line: DeviceLine,
    href: String,
}

const HEADS: [(&str, &str, bool); 8] = [
    ("model", "Model", false),
    ("address", "Address", false),
    ("serial", "Serial", false),
    ("location", "Location", false),
    ("status", "Status", false),
    ("supplies", "Supplies", false),
    ("total", "Total", true),
    ("metered", "Metered", false),
];

async fn devices(
    State(console): State<Console>,
    Path(site): Path<String>,
    Query(query): Query<ListQuery>,
) -> Page {
    let site = find_site(&console, &site).await?;
    let order = DeviceOrder::ALL.iter().find(|(word, _)| *word == query.sort);
    let page = query.page.min(100_000);
    let narrowed = DeviceQuery {
        site: Some(site.name.clone()),
        text: Some(query.q.trim().to_owned()).filter(|text| !text.is_empty()),
        order: order.map_or(DeviceOrder::Model, |(_, order)| *order),
        descending: query.desc,
        limit: DEVICES_PER_PAGE,
        offset: page * DEVICES_PER_PAGE,
        ..DeviceQuery::default()
    };
    let total = console.store.count_devices(&narrowed).await?;
    let lines = console.store.devices(&narrowed).await?;
    let from = u64::from(narrowed.offset);
    let to = from + lines.len() as u64;
    let list = |sort: &str, desc: bool, page: u32| {
        format!("?q={}&sort={sort}&desc={desc}&page={page}", segment(&query.q))
    };
    let sort = order.map_or("model", |(word, _)| *word);
    let heads = HEADS.iter().map(|(word, text, number)| {
        let is_sorted = *word == sort;
        let sorted = if !is_sorted {
            "none"
        } else if query.desc {
            "descending"
        } else {
            "ascending"
        };
        Head { text, href: list(word, is_sorted && !query.desc, 0), sorted, number: *number }
    });
    let page = Devices {
        open: console.open,
        link: console.store.links(Some(&site.name)).await?.pop(),
        heads: heads.collect(),
        earlier: page.checked_sub(1).map(|page| list(sort, query.desc, page)),
        later: (to < total).then(|| list(sort, query.desc, page + 1)),
        devices: lines.into_iter().map(|line| DeviceOnPage { href: device_href(&line), line }).collect(),
        total,
        from: if to > from { from + 1 } else { from },
        to,
        site,
        query,
    };
    Ok(Html(page.render()?))
}

#[derive(Template)]
#[template(path = "device.html")]
struct Device {
    open: bool,
    device: DeviceLine,
    site_href: String,
    facts: Vec<(&'static str, String)>,
    counters: Vec<(&'static str, u64)>,
    history: Vec<ReadingLine>,
    chart: Option<Chart>,
}

/// The total over time as points of a line.
struct Chart {
    points: String,
    lowest: u64,
    highest: u64,
    from: String,
    to: String,
}

async fn device(State(console): State<Console>, Path((site, id)): Path<(String, String)>) -> Page {
    let site = find_site(&console, &site).await?;
    let query =
        DeviceQuery { site: Some(site.name.clone()), id: Some(id), limit: 1, ..DeviceQuery::default() };
    let device = console.store.devices(&query).await?.pop().ok_or(PageError::NotFound)?;
    let history = console.store.history(&site.name, &device.id, HISTORY).await?;
    let page = Device {
        open: console.open,
        site_href: format!("/sites/{}", segment(&site.name)),
        facts: facts(&device),
        counters: counters(&device.counters),
        chart: chart(&history),
        history,
        device,
    };
    Ok(Html(page.render()?))
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    open: bool,
    refused: bool,
}

pub(crate) async fn login() -> Page {
    Ok(Html(LoginPage { open: true, refused: false }.render()?))
}

/// The login form again.
pub(crate) fn refused_login() -> Html<String> {
    Html(LoginPage { open: true, refused: true }.render().unwrap_or_default())
}

#[derive(Template)]
#[template(path = "failure.html")]
struct Failure<'a> {
    open: bool,
    code: u16,
    text: &'a str,
}

/// What is shown instead of a page.
pub(crate) fn failure(status: StatusCode, text: &str) -> Html<String> {
    Html(Failure { open: true, code: status.as_u16(), text }.render().unwrap_or_default())
}

async fn find_site(console: &Console, name: &str) -> Result<SiteLine, PageError> {
    // Revoked sites come last, so that the living one of two with the same name is found.
    let sites = console.store.sites().await?;
    sites.into_iter().find(|site| site.name == name).ok_or(PageError::NotFound)
}

fn device_href(device: &DeviceLine) -> String {
    format!("/sites/{}/devices/{}", segment(&device.site), segment(&device.id))
}

fn facts(device: &DeviceLine) -> Vec<(&'static str, String)> {
    let known = [
        ("Address", Some(device.addresses.join(", "))),
        ("Serial", device.serial.clone()),
        ("MAC", device.mac.clone()),
        ("Name", device.name.clone()),
        ("Location", device.location.clone()),
        ("Vendor", device.vendor.clone()),
        ("Firmware", device.firmware.clone()),
        ("Asset", device.asset.clone()),
        ("Panel", device.display.clone()),
        ("Zone", Some(device.zone.clone())),
        ("Read by", Some(device.node.clone())),
        ("Read with", Some(device.via.iter().map(|via| via.word()).collect::<Vec<_>>().join(", "))),
    ];
    known
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)))
        .collect()
}

fn counters(counters: &Counters) -> Vec<(&'static str, u64)> {
    let known = [
        ("Total", counters.total),
        ("Monochrome", counters.mono),
        ("Colour", counters.color),
        ("Prints", counters.prints),
        ("Copies", counters.copies),
        ("Faxes", counters.faxes),
        ("Scans", counters.scans),
        ("Duplex", counters.duplex),
        ("Large format", counters.large),
    ];
    known.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}

/// From the newest-first history; `None` where two totals at different times are not known.
fn chart(history: &[ReadingLine]) -> Option<Chart> {
    let mut totals: Vec<(f64, u64, &str)> = history
        .iter()
        .filter_map(|reading| {
            let at: quire_proto::id::Millis = reading.at.parse().ok()?;
            Some((at.0 as f64, reading.counters.total?, reading.at.as_str()))
        })
        .collect();
    totals.reverse();
    let (first, last) = (totals.first()?, totals.last()?);
    let (lowest, highest) =
        totals.iter().fold((u64::MAX, 0), |(low, high), (_, n, _)| (low.min(*n), high.max(*n)));
    let (width, height) = CHART;
    let (span, rise) = (last.0 - first.0, (highest - lowest) as f64);
    if span <= 0.0 {
        return None;
    }
    let point = |(at, total, _): &(f64, u64, &str)| {
        let x = (at - first.0) / span * width;
        let y = if rise > 0.0 { height - (total - lowest) as f64 / rise * height } else { height / 2.0 };
        format!("{x:.1},{y:.1}")
    };
    Some(Chart {
        points: totals.iter().map(point).collect::<Vec<_>>().join(" "),
        lowest,
        highest,
        from: first.2.to_owned(),
        to: last.2.to_owned(),
    })
}

/// One segment of a path or one value of a query, percent-encoded (RFC 3986).
fn segment(text: &str) -> String {
    let mut out = String::new();
    for octet in text.bytes() {
        if octet.is_ascii_alphanumeric() || b"-._~".contains(&octet) {
            out.push(char::from(octet));
        } else {
            out.push_str(&format!("%{octet:02X}"));
        }
    }
    out
}

/// 1234567 as `1 234 567`, with spaces that do not break.
fn grouped(number: &u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

/// `2023-11-14 22:13` of an RFC 3339 time; the page's script makes it relative.
fn short(at: &str) -> String {
    at.get(..16).unwrap_or(at).replace('T', " ")
}

fn status_word(status: Option<&Status>) -> &'static str {
    status.map_or("not known", |status| status.word())
}

/// The class that colours a status.
fn status_class(status: Option<&Status>) -> &'static str {
    match status {
        Some(Status::Idle | Status::Printing | Status::Warmup) => "good",
        Some(Status::Stopped) => "bad",
        Some(Status::Offline) => "off",
        Some(Status::Unknown) | None => "none",
    }
}

/// The class that colours a level: by the colorant where it is one of the four, unless it runs out.
fn supply_class(supply: &Supply) -> &'static str {
    match supply.color.as_deref() {
        Some("cyan") => "cyan",
        Some("magenta") => "magenta",
        Some("yellow") => "yellow",
        Some("black") => "black",
        Some(_) | None => "plain",
    }
}

/// What of 100 is not filled.
fn room(percent: &u8) -> u8 {
    100_u8.saturating_sub(*percent)
}

fn state_class(supply: &Supply) -> &'static str {
    match supply.state {
        SupplyState::Ok | SupplyState::Unlimited | SupplyState::Some => "good",
        SupplyState::Low => "warn",
        SupplyState::Empty => "bad",
        SupplyState::Unknown => "none",
    }
}

/// `870 of 1000`, as far as it is known.
fn level_text(supply: &Supply) -> String {
    match (supply.level, supply.max) {
        (Some(level), Some(max)) => format!("{} of {}", grouped(&level), grouped(&max)),
        (Some(level), None) => grouped(&level),
        (None, Some(_) | None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_paths_encoded() {
        assert_eq!(grouped(&1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(grouped(&7), "7");
        assert_eq!(segment("a b/ü"), "a%20b%2F%C3%BC");
    }
}
