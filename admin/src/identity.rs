//! What a site says about who is who: readings follow their faces to the device that these belong to now.
//!
//! Architecture Invariant: no reading is added or removed here, only its device changes; news name the whole of a
//! device's identity, so hearing them twice does no harm.

use quire_proto::convert;
use quire_proto::id::Millis;
use quire_proto::store::{DeviceNews, ReadingRow};
use sqlx::{Sqlite, Transaction};

use crate::intake::{Fact, malformed, put_device};
use crate::store::{LinkError, int, uint};

/// Faces of one device: a site follows at most 512 together.
const FACES_MAX: usize = 512;
/// Of a device's id.
const ID_MAX: usize = 255;

/// Refuses news that no honest site sends. A face is as long as what the device says of itself.
pub(crate) fn check(seq: u64, news: &DeviceNews) -> Result<(), LinkError> {
    if news.device.is_empty() || news.device.len() > ID_MAX || news.faces.len() > FACES_MAX {
        return Err(malformed(format!("entry {seq} holds news with a name that is empty or too long")));
    }
    if i64::try_from(news.expired_at_ms).is_err() {
        return Err(malformed(format!("entry {seq} has a number out of range")));
    }
    Ok(())
}

/// Moves readings to the device of their face and brings the devices to what is theirs; answers by how many
/// devices there are more.
pub(crate) async fn put_news(
    tx: &mut Transaction<'_, Sqlite>,
    site: i64,
    news: &DeviceNews,
    now: Millis,
) -> Result<i64, LinkError> {
    let before = count(tx, site, &news.device).await?;
    if news.gone {
        sqlx::query("DELETE FROM typed WHERE site = ? AND device = ?")
            .bind(site)
            .bind(&news.device)
            .execute(&mut **tx)
            .await?;
        refresh(tx, site, &news.device, now).await?;
        return Ok(count(tx, site, &news.device).await? - before);
    }
    let mut more = 0;
    let mut moved = false;
    for face in &news.faces {
        let others: Vec<String> = sqlx::query_scalar(
            "SELECT DISTINCT device FROM readings WHERE site = ? AND face = ? AND device <> ?",
        )
        .bind(site)
        .bind(face)
        .bind(&news.device)
        .fetch_all(&mut **tx)
        .await?;
        if others.is_empty() {
            continue;
        }
        moved = true;
        sqlx::query("UPDATE readings SET device = ? WHERE site = ? AND face = ?")
            .bind(&news.device)
            .bind(site)
            .bind(face)
            .execute(&mut **tx)
            .await?;
        for other in others {
            let known = count(tx, site, &other).await?;
            refresh(tx, site, &other, now).await?;
            more += count(tx, site, &other).await? - known;
        }
    }
    if moved {
        refresh(tx, site, &news.device, now).await?;
    }
    let typed = |field: &str| news.typed.iter().find(|typed| typed.field == field).map(|typed| &typed.value);
    sqlx::query("INSERT OR REPLACE INTO typed (site, device, name, location, asset) VALUES (?, ?, ?, ?, ?)")
        .bind(site)
        .bind(&news.device)
        .bind(typed("name"))
        .bind(typed("location"))
        .bind(typed("asset"))
        .execute(&mut **tx)
        .await?;
    sqlx::query("UPDATE devices SET expired_at_ms = ? WHERE site = ? AND id = ?")
        .bind(int(news.expired_at_ms)?)
        .bind(site)
        .bind(&news.device)
        .execute(&mut **tx)
        .await?;
    Ok(more + count(tx, site, &news.device).await? - before)
}

async fn count(tx: &mut Transaction<'_, Sqlite>, site: i64, device: &str) -> Result<i64, LinkError> {
    let count = sqlx::query_scalar("SELECT count(*) FROM devices WHERE site = ? AND id = ?");
    Ok(count.bind(site).bind(device).fetch_one(&mut **tx).await?)
}

#[derive(sqlx::FromRow)]
struct Latest {
    id: String,
    unit: String,
    address: String,
    at_ms: i64,
    node: i64,
    epoch: i64,
    reading: Vec<u8>,
    first_ms: i64,
}

/// Makes a device's row anew from its latest reading; one without readings is none.
async fn refresh(
    tx: &mut Transaction<'_, Sqlite>,
    site: i64,
    device: &str,
    now: Millis,
) -> Result<(), LinkError> {
    let latest: Option<Latest> = sqlx::query_as(
        "SELECT id, unit, address, at_ms, node, epoch, reading,
                (SELECT min(at_ms) FROM readings WHERE site = ?1 AND device = ?2) AS first_ms
         FROM readings WHERE site = ?1 AND device = ?2 ORDER BY at_ms DESC, key DESC LIMIT 1",
    )
    .bind(site)
    .bind(device)
    .fetch_optional(&mut **tx)
    .await?;
    let expired: Option<i64> =
        sqlx::query_scalar("SELECT expired_at_ms FROM devices WHERE site = ? AND id = ?")
            .bind(site)
            .bind(device)
            .fetch_optional(&mut **tx)
            .await?;
    sqlx::query("DELETE FROM devices WHERE site = ? AND id = ?")
        .bind(site)
        .bind(device)
        .execute(&mut **tx)
        .await?;
    let Some(latest) = latest else { return Ok(()) };
    let zone = latest.unit.split_once(':').map_or("", |(zone, _)| zone).to_owned();
    let row = ReadingRow {
        id: latest.id,
        device: device.to_owned(),
        unit: latest.unit,
        at_ms: uint(latest.at_ms),
        node: uint(latest.node),
        epoch: uint(latest.epoch),
        reading: latest.reading.into(),
        address: latest.address,
        ..ReadingRow::default()
    };
    // What was stored was understood before it was stored.
    let reading = convert::decode(&row.reading).unwrap_or_default();
    let first_seen_ms = uint(latest.first_ms);
    put_device(tx, site, &Fact { row, zone, first_seen_ms, reading }, now).await?;
    sqlx::query("UPDATE devices SET expired_at_ms = ? WHERE site = ? AND id = ?")
        .bind(expired.unwrap_or(0))
        .bind(site)
        .bind(device)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
