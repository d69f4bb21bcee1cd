//! Lists: what the store knows, as the lines that the command line, the API and the pages show.
//!
//! The keys are the contract's. Reads only; a value that is not known is left out, never guessed or zero.

use std::collections::BTreeMap;

use anyhow::Context as _;
use futures::TryStreamExt as _;
use quire_proto::convert;
use quire_proto::id::Millis;
use quire_proto::reading::{Condition, Counters, Reading, Status, Supply, Via};
use serde::Serialize;

use crate::store::{Store, StoreError, uint};

/// A site.
#[derive(Clone, Debug, Serialize)]
pub struct SiteLine {
    /// In certificates.
    pub id: String,
    /// For people.
    #[serde(rename = "site")]
    pub name: String,
    /// `waiting` for its cluster to use the code, `enrolled` or `revoked`.
    pub state: &'static str,
    /// What the cluster calls itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// True while its one stream is open.
    pub connected: bool,
    /// RFC 3339.
    pub created_at: String,
    /// Until when the code may be used, while it may.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code_expires_at: Option<String>,
    /// When its cluster used the code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrolled_at: Option<String>,
    /// Of whatever stream.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_message: Option<String>,
    /// Of the node that spoke last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Highest epoch ever accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// The high-water mark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub through: Option<u64>,
    /// Cluster members at the last check-in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub members: Option<u64>,
    /// Of these alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alive: Option<u64>,
    /// Readings that waited on site at the last check-in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<u64>,
    /// Devices that reported here.
    pub devices: u64,
    /// Readings stored here.
    pub readings: u64,
}

/// A live stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LinkLine {
    /// The site's name.
    pub site: String,
    /// The name of the node that holds it.
    pub node: String,
    /// Of the claim.
    pub epoch: u64,
    /// `normal` or `service`.
    pub mode: String,
    /// RFC 3339.
    pub since: String,
    /// RFC 3339.
    pub last_message: String,
}

/// A device with its latest reading.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the keys are the contract's")]
pub struct DeviceLine {
    pub id: String,
    pub address: String,
    pub addresses: Vec<String>,
    pub zone: String,
    pub node: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub via: Vec<Via>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vendor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub location: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asset: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    pub conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub display: Option<String>,
    pub counters: Counters,
    pub supplies: Vec<Supply>,
    pub sources: BTreeMap<String, String>,
    pub first_seen: String,
    pub last_seen: String,
    pub metered_at: String,
    pub site: String,
}

/// One reading.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the keys are the contract's")]
pub struct ReadingLine {
    pub id: String,
    pub device: String,
    pub unit: String,
    pub at: String,
    pub node: String,
    pub epoch: u64,
    /// Its number in the site's outbox: each once, later ones are higher.
    pub seq: u64,
    pub counters: Counters,
    pub supplies: Vec<Supply>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
    pub site: String,
    /// Where it stands in the table: the next page starts behind it.
    #[serde(skip)]
    pub key: i64,
}

/// What a list of devices is narrowed to and how it is ordered.
#[derive(Clone, Debug, Default)]
pub struct DeviceQuery {
    /// A site's name.
    pub site: Option<String>,
    /// One device.
    pub id: Option<String>,
    /// Somewhere in address, names, model, serial, location or status, in any case.
    pub text: Option<String>,
    /// By what.
    pub order: DeviceOrder,
    /// The other way round.
    pub descending: bool,
    /// How many at most.
    pub limit: u32,
    /// How many to leave out first.
    pub offset: u32,
}

/// By what a list of devices is ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum DeviceOrder {
    #[default]
    Id,
    Model,
    Address,
    Serial,
    Location,
    Status,
    Total,
    Supplies,
    Metered,
}

impl DeviceOrder {
    /// With the word that addresses of pages use.
    pub const ALL: [(&'static str, DeviceOrder); 9] = [
        ("id", DeviceOrder::Id),
        ("model", DeviceOrder::Model),
        ("address", DeviceOrder::Address),
        ("serial", DeviceOrder::Serial),
        ("location", DeviceOrder::Location),
        ("status", DeviceOrder::Status),
        ("total", DeviceOrder::Total),
        ("supplies", DeviceOrder::Supplies),
        ("metered", DeviceOrder::Metered),
    ];

    fn column(self) -> &'static str {
        match self {
            DeviceOrder::Id => "d.id",
            DeviceOrder::Model => "d.model COLLATE NOCASE",
            DeviceOrder::Address => "d.address",
            DeviceOrder::Serial => "d.serial",
            DeviceOrder::Location => "coalesce(t.location, d.location) COLLATE NOCASE",
            DeviceOrder::Status => "d.status",
            DeviceOrder::Total => "d.total",
            DeviceOrder::Supplies => "d.lowest",
            DeviceOrder::Metered => "d.metered_at_ms",
        }
    }
}

#[derive(sqlx::FromRow)]
struct SiteRow {
    id: String,
    name: String,
    created_at_ms: i64,
    code_expires_ms: i64,
    cluster_name: Option<String>,
    enrolled_at_ms: Option<i64>,
    revoked_at_ms: Option<i64>,
    last_message_ms: Option<i64>,
    version: Option<String>,
    members: Option<i64>,
    alive: Option<i64>,
    pending: Option<i64>,
    epoch: Option<i64>,
    through: Option<i64>,
    connected: bool,
    device_count: i64,
    reading_count: i64,
}

#[derive(sqlx::FromRow)]
struct DeviceRow {
    site: String,
    id: String,
    zone: String,
    address: String,
    node: String,
    first_seen_ms: i64,
    metered_at_ms: i64,
    reading: Vec<u8>,
    typed_name: Option<String>,
    typed_location: Option<String>,
    typed_asset: Option<String>,
}

#[derive(sqlx::FromRow)]
struct ReadingRow {
    key: i64,
    site: String,
    id: String,
    device: String,
    unit: String,
    at_ms: i64,
    node: String,
    epoch: i64,
    seq: i64,
    reading: Vec<u8>,
}

fn time(at_ms: i64) -> String {
    Millis(uint(at_ms)).rfc3339()
}

/// Of registrations `s` that one of the same name or cluster has followed, what stands is not said twice: the later one says
/// it anew.
pub(crate) const CURRENT: &str = "s.key NOT IN (SELECT old.key FROM sites old JOIN sites later
    ON later.key > old.key AND later.cluster_id IS NOT NULL
    AND (later.name = old.name OR later.cluster_id = old.cluster_id))";

/// What is known of devices, and where a human on site typed something else.
const DEVICES: &str =
    "SELECT s.name AS site, d.id, d.zone, d.address, coalesce(n.name, d.node) AS node, d.first_seen_ms,
    d.metered_at_ms, d.reading, t.name AS typed_name, t.location AS typed_location, t.asset AS typed_asset";

/// Where they are.
const DEVICES_FROM: &str = "FROM devices d JOIN sites s ON s.key = d.site
    LEFT JOIN nodes n ON n.site = d.site AND n.node = d.node
    LEFT JOIN typed t ON t.site = d.site AND t.device = d.id";

/// What a [`DeviceQuery`] asks for; `?1` site, `?2` id, `?3` pattern.
const DEVICE_FILTER: &str = "(?1 IS NULL OR s.name = ?1) AND (?2 IS NULL OR d.id = ?2) AND (d.expired_at_ms = 0 OR ?2 IS NOT NULL)
      AND (?3 IS NULL OR coalesce(d.address, '') || ' ' || coalesce(d.vendor, '') || ' ' || coalesce(d.model, '')
          || ' ' || coalesce(d.serial, '') || ' ' || coalesce(t.name, d.name, '')
          || ' ' || coalesce(t.location, d.location, '') || ' ' || coalesce(d.status, '') || ' ' || d.id LIKE ?3 ESCAPE '\\')";

/// `?1` site, `?2` the key behind which to start, `?3` how many, -1 for all.
const READINGS: &str =
    "SELECT r.key, s.name AS site, r.id, r.device, r.unit, r.at_ms, coalesce(n.name, r.node) AS node,
            r.epoch, r.seq, r.reading
     FROM readings r JOIN sites s ON s.key = r.site
     LEFT JOIN nodes n ON n.site = r.site AND n.node = r.node
     WHERE r.key > ?2 AND (?1 IS NULL OR s.name = ?1) ORDER BY r.key LIMIT ?3";

impl Store {
    /// Every site, revoked ones last.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn sites(&self) -> Result<Vec<SiteLine>, StoreError> {
        let rows: Vec<SiteRow> = sqlx::query_as(
            "SELECT s.id, s.name, s.created_at_ms, s.code_expires_ms, s.cluster_name, s.enrolled_at_ms,
                    s.revoked_at_ms, s.last_message_ms, s.version, s.members, s.alive, s.pending,
                    c.epoch, c.through, l.site IS NOT NULL AS connected,
                    s.device_count, s.reading_count
             FROM sites s LEFT JOIN clusters c ON c.cluster_id = s.cluster_id
             LEFT JOIN links l ON l.site = s.key
             ORDER BY s.revoked_at_ms IS NOT NULL, s.name COLLATE NOCASE, s.key",
        )
        .fetch_all(&self.read)
        .await?;
        Ok(rows.into_iter().map(site_line).collect())
    }

    /// The live streams, as the server last wrote them.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn links(&self, site: Option<&str>) -> Result<Vec<LinkLine>, StoreError> {
        let rows: Vec<(String, String, i64, String, i64, i64)> = sqlx::query_as(
            "SELECT s.name, coalesce(n.name, l.node), l.epoch, l.mode, l.since_ms, l.last_message_ms
             FROM links l JOIN sites s ON s.key = l.site
             LEFT JOIN nodes n ON n.site = l.site AND n.node = l.node
             WHERE ?1 IS NULL OR s.name = ?1 ORDER BY s.name COLLATE NOCASE",
        )
        .bind(site)
        .fetch_all(&self.read)
        .await?;
        let line = |(site, node, epoch, mode, since, last)| LinkLine {
            site,
            node,
            epoch: uint(epoch),
            mode,
            since: time(since),
            last_message: time(last),
        };
        Ok(rows.into_iter().map(line).collect())
    }

    /// Devices with their latest reading.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn devices(&self, query: &DeviceQuery) -> Result<Vec<DeviceLine>, StoreError> {
        let direction = if query.descending { "DESC" } else { "ASC" };
        let column = query.order.column();
        // Made of literals alone: the filter's values are bound.
        let sql = format!(
            "{DEVICES} {DEVICES_FROM} WHERE {CURRENT} AND {DEVICE_FILTER}
             ORDER BY {column} {direction} NULLS LAST, s.key, d.id LIMIT ?4 OFFSET ?5"
        );
        let rows: Vec<DeviceRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(&query.site)
            .bind(&query.id)
            .bind(query.text.as_deref().map(pattern))
            .bind(query.limit)
            .bind(query.offset)
            .fetch_all(&self.read)
            .await?;
        Ok(rows.into_iter().map(device_line).collect())
    }

    /// How many devices a query matches, without its limit.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn count_devices(&self, query: &DeviceQuery) -> Result<u64, StoreError> {
        let sql = format!("SELECT count(*) {DEVICES_FROM} WHERE {CURRENT} AND {DEVICE_FILTER}");
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .bind(&query.site)
            .bind(&query.id)
            .bind(query.text.as_deref().map(pattern))
            .fetch_one(&self.read)
            .await?;
        Ok(uint(count))
    }

    /// Readings in the order in which they were stored, those behind `after`.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn readings(
        &self,
        site: Option<&str>,
        after: i64,
        limit: u32,
    ) -> Result<Vec<ReadingLine>, StoreError> {
        let rows: Vec<ReadingRow> =
            sqlx::query_as(READINGS).bind(site).bind(after).bind(limit).fetch_all(&self.read).await?;
        Ok(rows.into_iter().map(reading_line).collect())
    }

    /// The latest readings of one device, newest first.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn history(
        &self,
        site: &str,
        device: &str,
        limit: u32,
    ) -> Result<Vec<ReadingLine>, StoreError> {
        let rows: Vec<ReadingRow> = sqlx::query_as(
            "SELECT r.key, s.name AS site, r.id, r.device, r.unit, r.at_ms, coalesce(n.name, r.node) AS node,
                    r.epoch, r.seq, r.reading
             FROM readings r JOIN sites s ON s.key = r.site
             LEFT JOIN nodes n ON n.site = r.site AND n.node = r.node
             WHERE s.name = ? AND r.device = ? ORDER BY r.at_ms DESC, r.key DESC LIMIT ?",
        )
        .bind(site)
        .bind(device)
        .bind(limit)
        .fetch_all(&self.read)
        .await?;
        Ok(rows.into_iter().map(reading_line).collect())
    }

    /// How many readings are stored.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn count_readings(&self, site: Option<&str>) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM readings r JOIN sites s ON s.key = r.site WHERE ?1 IS NULL OR s.name = ?1",
        )
        .bind(site)
        .fetch_one(&self.read)
        .await?;
        Ok(uint(count))
    }

    /// How many entries are kept aside because their reading's id was taken. More than 0 wants a human.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn count_conflicts(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM conflicts").fetch_one(&self.read).await?;
        Ok(uint(count))
    }

    /// Hands every device to `each`, by site and id, from one snapshot and without holding them all.
    pub(crate) async fn each_device(
        &self,
        site: Option<&str>,
        mut each: impl FnMut(&DeviceLine) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let sql = format!(
            "{DEVICES} {DEVICES_FROM}
             WHERE {CURRENT} AND (?1 IS NULL OR s.name = ?1) AND d.expired_at_ms = 0 ORDER BY d.site, d.id"
        );
        let mut rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(site).fetch(&self.read);
        while let Some(row) = rows.try_next().await.context("read devices")? {
            each(&device_line(row))?;
        }
        Ok(())
    }

    /// Hands every reading to `each`, in the order of arrival, from one snapshot and without holding them all.
    pub(crate) async fn each_reading(
        &self,
        site: Option<&str>,
        mut each: impl FnMut(&ReadingLine) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut rows = sqlx::query_as(READINGS).bind(site).bind(0_i64).bind(-1_i64).fetch(&self.read);
        while let Some(row) = rows.try_next().await.context("read readings")? {
            each(&reading_line(row))?;
        }
        Ok(())
    }
}

/// What people type, anywhere in the text.
fn pattern(text: &str) -> String {
    let mut pattern = String::from("%");
    for character in text.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

fn site_line(row: SiteRow) -> SiteLine {
    let state = match (row.revoked_at_ms, row.enrolled_at_ms) {
        (Some(_), _) => "revoked",
        (None, Some(_)) => "enrolled",
        (None, None) => "waiting",
    };
    SiteLine {
        id: row.id,
        name: row.name,
        state,
        cluster: row.cluster_name,
        connected: row.connected,
        created_at: time(row.created_at_ms),
        code_expires_at: (state == "waiting").then(|| time(row.code_expires_ms)),
        enrolled_at: row.enrolled_at_ms.map(time),
        last_message: row.last_message_ms.map(time),
        version: row.version,
        epoch: row.epoch.map(uint).filter(|epoch| *epoch > 0),
        through: row.through.map(uint),
        members: row.members.map(uint),
        alive: row.alive.map(uint),
        pending: row.pending.map(uint),
        devices: uint(row.device_count),
        readings: uint(row.reading_count),
    }
}

/// Stored readings were decoded before they were stored; should the disk have changed one, it shows as empty.
fn decode(octets: &[u8]) -> Reading {
    convert::decode(octets).unwrap_or_default()
}

/// Sites say where they asked, port included; a device's address is the host alone.
fn host(address: String) -> String {
    address.parse::<std::net::SocketAddr>().map_or(address, |at| at.ip().to_string())
}

fn device_line(row: DeviceRow) -> DeviceLine {
    let mut reading = decode(&row.reading);
    let facts = &mut *reading.facts;
    let typed = [
        ("name", row.typed_name, &mut facts.name),
        ("location", row.typed_location, &mut facts.location),
        ("asset", row.typed_asset, &mut facts.asset),
    ];
    for (field, value, place) in typed {
        if value.is_some() {
            *place = value;
            reading.sources.insert(field.to_owned(), "operator".to_owned());
        }
    }
    let facts = reading.facts.into_inner();
    let address = host(row.address);
    DeviceLine {
        id: row.id,
        addresses: vec![address.clone()],
        address,
        zone: row.zone,
        node: row.node,
        via: reading.via,
        vendor: facts.vendor,
        model: facts.model,
        serial: facts.serial,
        mac: facts.mac.map(|mac| mac.to_string()),
        name: facts.name,
        location: facts.location,
        firmware: facts.firmware,
        asset: facts.asset,
        status: reading.status,
        conditions: reading.conditions,
        display: reading.display,
        counters: reading.counters,
        supplies: reading.supplies,
        sources: reading.sources.into_inner(),
        first_seen: time(row.first_seen_ms),
        last_seen: time(row.metered_at_ms),
        metered_at: time(row.metered_at_ms),
        site: row.site,
    }
}

fn reading_line(row: ReadingRow) -> ReadingLine {
    let reading = decode(&row.reading);
    ReadingLine {
        id: row.id,
        device: row.device,
        unit: row.unit,
        at: time(row.at_ms),
        node: row.node,
        epoch: uint(row.epoch),
        seq: uint(row.seq),
        counters: reading.counters,
        supplies: reading.supplies,
        status: reading.status,
        site: row.site,
        key: row.key,
    }
}
