//! What a link does to the store: admission by epoch, batches by the high-water mark, check-ins, results.
//!
//! Every function takes the [`Holder`] of the stream and asks, in its own transaction, whether that stream
//! is still the one: an older leader's last batch loses against a newer leader's Hello, never the other way.

use prost::Message as _;
use quire_proto::id::Millis;
use quire_proto::store::{AlertNews, DeviceNews, OutboxEntry, ReadingRow};
use quire_proto::upstream::{CheckIn, Hello};
use quire_proto::{convert, reading};
use sqlx::{Sqlite, Transaction};

use crate::enroll::REQUESTS_MAX;
use crate::store::{LinkError, Refusal, Site, Store, StoreError, int, uint};
use crate::{alerts, identity};

/// 5,000 entries of about 1 KiB are 5 MiB, within the message bound of the link.
pub(crate) const BATCH_MAX: usize = 5000;
/// Of any name, id or address that a site sends.
const TEXT_MAX: usize = 256;

/// A stream that was admitted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    pub(crate) site: i64,
    pub(crate) connection: i64,
    pub(crate) epoch: u64,
}

/// What a batch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Taken {
    pub(crate) through: u64,
    pub(crate) stored: u64,
    /// At or below the mark: sent again after a lost acknowledgement.
    pub(crate) skipped: u64,
    /// Above the mark, and yet stored before under the same id with the same octets.
    pub(crate) duplicates: u64,
    /// Above the mark, with the id of something else: kept aside.
    pub(crate) conflicts: u64,
}

#[derive(sqlx::FromRow)]
pub(crate) struct Fence {
    revoked_at_ms: Option<i64>,
    connection: Option<i64>,
    epoch: i64,
    epoch_node: i64,
    through: Option<i64>,
}

impl Store {
    /// Admits a stream when no higher epoch was ever accepted, and makes it the site's only one.
    pub(crate) async fn admit(
        &self,
        site: &Site,
        hello: &Hello,
        epoch: u64,
        peer: &str,
        now: Millis,
    ) -> Result<(Holder, u64), LinkError> {
        let mut tx = self.begin().await?;
        let fence = fence(&mut tx, site.key).await?;
        let removed: Option<bool> =
            sqlx::query_scalar("SELECT removed_at_ms IS NOT NULL FROM nodes WHERE site = ? AND node = ?")
                .bind(site.key)
                .bind(int(hello.node)?)
                .fetch_optional(&mut *tx)
                .await?;
        if removed == Some(true) {
            return Err(Refusal::Removed.into());
        }
        let (highest, by) = (uint(fence.epoch), uint(fence.epoch_node));
        if epoch < highest || (epoch == highest && by != hello.node) || epoch == 0 {
            return Err(Refusal::Epoch { highest }.into());
        }
        // After a recovery the cluster numbers from there; what it sends again is known by its reading's id.
        let through = fence.through.map(|through| uint(through).max(hello.outbox_base.saturating_sub(1)));
        sqlx::query("UPDATE clusters SET epoch = ?, epoch_node = ?, through = ? WHERE cluster_id = ?")
            .bind(int(epoch)?)
            .bind(int(hello.node)?)
            .bind(through.map(int).transpose()?)
            .bind(&site.cluster_id)
            .execute(&mut *tx)
            .await?;
        let connection = fence.connection.unwrap_or(0).wrapping_add(1).max(int(now.0)?);
        sqlx::query(
            "INSERT OR REPLACE INTO links (site, connection, node, epoch, mode, peer, since_ms, last_message_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)",
        )
        .bind(site.key)
        .bind(connection)
        .bind(int(hello.node)?)
        .bind(int(epoch)?)
        .bind(&hello.mode)
        .bind(peer)
        .bind(int(now.0)?)
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE sites SET version = ?, last_message_ms = ? WHERE key = ?")
            .bind(&hello.version)
            .bind(int(now.0)?)
            .bind(site.key)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.put_nodes(site.key, &[(hello.node, hello.node_name.clone())]).await?;
        self.changed();
        Ok((Holder { site: site.key, connection, epoch }, through.unwrap_or(0)))
    }

    /// Stores what of a batch is new, and moves the mark, in one transaction.
    pub(crate) async fn take(
        &self,
        holder: Holder,
        first_seq: u64,
        entries: &[bytes::Bytes],
        now: Millis,
    ) -> Result<Taken, LinkError> {
        if entries.len() > BATCH_MAX {
            return Err(malformed(format!("a batch of {} entries", entries.len())));
        }
        let entries = decode_batch(first_seq, entries)?;
        let mut tx = self.begin().await?;
        let fence = still_held(&mut tx, holder).await?;
        let mut taken = Taken { through: uint(fence.through.unwrap_or(0)), ..Taken::default() };
        // A cluster that this server never heard of starts where its outbox starts.
        let expected = fence.through.map_or(first_seq, |through| uint(through).saturating_add(1));
        if first_seq > expected {
            return Err(Refusal::Gap { expected, got: first_seq }.into());
        }
        let mut devices = 0;
        for entry in &entries {
            if entry.through < expected {
                taken.skipped += 1;
                continue;
            }
            match &entry.what {
                What::Reading(fact) => match put_reading(&mut tx, holder.site, entry, fact, now).await? {
                    Put::New { device } => {
                        taken.stored += 1;
                        devices += i64::from(device);
                    }
                    Put::Duplicate => taken.duplicates += 1,
                    Put::Conflict => taken.conflicts += 1,
                },
                What::News(news) => devices += identity::put_news(&mut tx, holder.site, news, now).await?,
                What::Alert(alert) => alerts::put(&mut tx, holder.site, alert, now).await?,
                What::Superseded(_) => {}
            }
            taken.through = entry.through;
        }
        if !entries.is_empty() {
            sqlx::query(
                "UPDATE clusters SET through = ?
                 WHERE cluster_id = (SELECT cluster_id FROM sites WHERE key = ?)",
            )
            .bind(int(taken.through)?)
            .bind(holder.site)
            .execute(&mut *tx)
            .await?;
        }
        sqlx::query(
            "UPDATE sites SET device_count = device_count + ?, reading_count = reading_count + ? WHERE key = ?",
        )
        .bind(devices)
        .bind(int(taken.stored)?)
        .bind(holder.site)
        .execute(&mut *tx)
        .await?;
        touch(&mut tx, holder, now).await?;
        tx.commit().await?;
        self.changed();
        Ok(taken)
    }

    /// Notes that the site is alive and what it counts.
    pub(crate) async fn check_in(
        &self,
        holder: Holder,
        check_in: &CheckIn,
        now: Millis,
    ) -> Result<(), LinkError> {
        let mut tx = self.begin().await?;
        still_held(&mut tx, holder).await?;
        sqlx::query(
            "UPDATE sites SET members = ?, alive = ?, devices = ?, units = ?, pending = ? WHERE key = ?",
        )
        .bind(i64::from(check_in.members))
        .bind(i64::from(check_in.alive))
        .bind(int(check_in.devices)?)
        .bind(int(check_in.units)?)
        .bind(int(check_in.pending)?)
        .bind(holder.site)
        .execute(&mut *tx)
        .await?;
        forget_others(&mut tx, holder.site, &check_in.nodes, now).await?;
        touch(&mut tx, holder, now).await?;
        tx.commit().await?;
        self.changed();
        Ok(())
    }

    /// Asks whether a stream may go on, without a message of it.
    pub(crate) async fn check(&self, holder: Holder) -> Result<(), LinkError> {
        let mut tx = self.read.begin().await?;
        still_held(&mut tx, holder).await.map(|_| ())
    }

    /// Closes a job; false when the site has no such open job.
    pub(crate) async fn close_job(
        &self,
        holder: Holder,
        id: &str,
        ok: bool,
        detail: &str,
        now: Millis,
    ) -> Result<bool, LinkError> {
        let mut tx = self.begin().await?;
        still_held(&mut tx, holder).await?;
        let detail: String = detail.chars().take(1000).collect();
        // Settings can carry passwords: not kept longer than the site needs them.
        // A bundle is done when its file is there, whatever the site says.
        let done = sqlx::query(
            "UPDATE jobs SET state = CASE kind WHEN 'bundle' THEN 'failed' ELSE ? END, detail = ?, closed_at_ms = ?,
                    argument = CASE kind WHEN 'settings' THEN '' ELSE argument END
             WHERE id = ? AND site = ? AND state IN ('pending', 'sent')",
        )
        .bind(if ok { "done" } else { "failed" })
        .bind(detail)
        .bind(int(now.0)?)
        .bind(id)
        .bind(holder.site)
        .execute(&mut *tx)
        .await?;
        touch(&mut tx, holder, now).await?;
        tx.commit().await?;
        self.changed();
        Ok(done.rows_affected() > 0)
    }

    /// Forgets a stream that ended, unless a newer one took its place.
    pub(crate) async fn leave(&self, holder: Holder) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM links WHERE site = ? AND connection = ?")
            .bind(holder.site)
            .bind(holder.connection)
            .execute(&self.write)
            .await?;
        self.changed();
        Ok(())
    }

    /// Forgets the streams of a server that did not end well.
    pub(crate) async fn clear_links(&self) -> Result<(), StoreError> {
        sqlx::query("DELETE FROM links").execute(&self.write).await?;
        Ok(())
    }
}

/// Nodes that are known here and are not among a cluster's members were removed from it.
async fn forget_others(
    tx: &mut Transaction<'_, Sqlite>,
    site: i64,
    members: &[u64],
    now: Millis,
) -> Result<(), LinkError> {
    // Older versions say none.
    if members.is_empty() {
        return Ok(());
    }
    if members.len() > REQUESTS_MAX {
        return Err(malformed(format!("a cluster of {} members", members.len())));
    }
    let known: Vec<i64> =
        sqlx::query_scalar("SELECT node FROM nodes WHERE site = ? AND removed_at_ms IS NULL")
            .bind(site)
            .fetch_all(&mut **tx)
            .await?;
    for node in known.into_iter().filter(|node| !members.contains(&uint(*node))) {
        sqlx::query("UPDATE nodes SET removed_at_ms = ? WHERE site = ? AND node = ?")
            .bind(int(now.0)?)
            .bind(site)
            .bind(node)
            .execute(&mut **tx)
            .await?;
    }
    Ok(())
}

pub(crate) fn malformed(what: impl Into<String>) -> LinkError {
    Refusal::Malformed(what.into()).into()
}

async fn fence(tx: &mut Transaction<'_, Sqlite>, site: i64) -> Result<Fence, LinkError> {
    let fence: Option<Fence> = sqlx::query_as(
        "SELECT s.revoked_at_ms, l.connection, c.epoch, c.epoch_node, c.through
         FROM sites s JOIN clusters c ON c.cluster_id = s.cluster_id LEFT JOIN links l ON l.site = s.key
         WHERE s.key = ?",
    )
    .bind(site)
    .fetch_optional(&mut **tx)
    .await?;
    match fence {
        Some(fence) if fence.revoked_at_ms.is_none() => Ok(fence),
        _ => Err(Refusal::Revoked.into()),
    }
}

pub(crate) async fn still_held(tx: &mut Transaction<'_, Sqlite>, holder: Holder) -> Result<Fence, LinkError> {
    let fence = fence(tx, holder.site).await?;
    let highest = uint(fence.epoch);
    if highest != holder.epoch || fence.connection != Some(holder.connection) {
        return Err(Refusal::Replaced { highest }.into());
    }
    Ok(fence)
}

pub(crate) async fn touch(
    tx: &mut Transaction<'_, Sqlite>,
    holder: Holder,
    now: Millis,
) -> Result<(), LinkError> {
    for sql in [
        "UPDATE links SET last_message_ms = ? WHERE site = ?",
        "UPDATE sites SET last_message_ms = ? WHERE key = ?",
    ] {
        sqlx::query(sql).bind(int(now.0)?).bind(holder.site).execute(&mut **tx).await?;
    }
    Ok(())
}

/// An entry that was understood.
struct Entry {
    seq: u64,
    /// The last number that it stands for: its own, or that of a run of which later readings are left alone.
    through: u64,
    what: What,
    octets: bytes::Bytes,
}

/// What an entry brings. One with a row is a reading, whatever else stands in it.
enum What {
    Reading(Box<Fact>),
    News(DeviceNews),
    Alert(AlertNews),
    /// Later readings stand for the numbers through this one.
    Superseded(u64),
}

/// A reading, and what is told of its device beside it.
pub(crate) struct Fact {
    pub(crate) row: ReadingRow,
    pub(crate) zone: String,
    /// 0 where the reading is the first.
    pub(crate) first_seen_ms: u64,
    pub(crate) reading: reading::Reading,
}

/// Everything is understood before anything is stored.
fn decode_batch(first_seq: u64, entries: &[bytes::Bytes]) -> Result<Vec<Entry>, LinkError> {
    let mut all = Vec::with_capacity(entries.len());
    let mut next = Some(first_seq);
    for octets in entries {
        let seq = next.ok_or_else(|| malformed("the numbers of a batch end before its entries"))?;
        let wire = OutboxEntry::decode(octets.clone())
            .map_err(|error| malformed(format!("entry {seq} cannot be decoded: {error}")))?;
        if wire.seq != seq {
            return Err(malformed(format!("entry {} stands at {seq}", wire.seq)));
        }
        let what = understand(wire)?;
        let through = if let What::Superseded(through) = what { through } else { seq };
        if i64::try_from(through).is_err() {
            return Err(malformed(format!("entry {seq} has a number out of range")));
        }
        next = through.checked_add(1);
        all.push(Entry { seq, through, what, octets: octets.clone() });
    }
    Ok(all)
}

fn understand(wire: OutboxEntry) -> Result<What, LinkError> {
    let seq = wire.seq;
    let row = match (wire.row, wire.news, wire.alert) {
        (Some(row), _, _) => row,
        (None, Some(news), _) => {
            identity::check(seq, &news)?;
            return Ok(What::News(news));
        }
        (None, None, Some(alert)) => {
            alerts::check(seq, &alert)?;
            return Ok(What::Alert(alert));
        }
        (None, None, None) if wire.superseded_through >= seq => {
            return Ok(What::Superseded(wire.superseded_through));
        }
        (None, None, None) => return Err(malformed(format!("entry {seq} holds no reading"))),
    };
    let texts = [&row.id, &row.device, &row.unit, &row.address, &wire.zone];
    if texts.iter().any(|text| text.len() > TEXT_MAX) || row.id.is_empty() || row.device.is_empty() {
        return Err(malformed(format!("entry {seq} has a name that is empty or too long")));
    }
    let numbers = [row.at_ms, row.node, row.epoch, wire.first_seen_ms];
    if numbers.iter().any(|number| i64::try_from(*number).is_err()) {
        return Err(malformed(format!("entry {seq} has a number out of range")));
    }
    let reading = convert::decode(&row.reading)
        .map_err(|error| malformed(format!("the reading of entry {seq} cannot be decoded: {error}")))?;
    let (zone, first_seen_ms) = (wire.zone, wire.first_seen_ms);
    Ok(What::Reading(Box::new(Fact { row, zone, first_seen_ms, reading })))
}

enum Put {
    /// `device` is true for the first reading of a device.
    New {
        device: bool,
    },
    Duplicate,
    Conflict,
}

async fn put_reading(
    tx: &mut Transaction<'_, Sqlite>,
    site: i64,
    entry: &Entry,
    fact: &Fact,
    now: Millis,
) -> Result<Put, LinkError> {
    let row = &fact.row;
    let added = sqlx::query(
        "INSERT INTO readings
             (cluster_id, id, site, seq, device, unit, address, at_ms, node, epoch, late, reading, received_at_ms, face)
         SELECT cluster_id, ?, key, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ? FROM sites WHERE key = ?
         ON CONFLICT (cluster_id, id) DO NOTHING",
    )
    .bind(&row.id)
    .bind(int(entry.seq)?)
    .bind(&row.device)
    .bind(&row.unit)
    .bind(&row.address)
    .bind(int(row.at_ms)?)
    .bind(int(row.node)?)
    .bind(int(row.epoch)?)
    .bind(row.late)
    .bind(row.reading.as_ref())
    .bind(int(now.0)?)
    .bind(&row.face)
    .bind(site)
    .execute(&mut **tx)
    .await?;
    if added.rows_affected() > 0 {
        let device = put_device(tx, site, fact, now).await?;
        return Ok(Put::New { device });
    }
    let (device, stored): (String, (String, i64, Vec<u8>)) = sqlx::query_as(
        "SELECT device, face, at_ms, reading FROM readings
             WHERE cluster_id = (SELECT cluster_id FROM sites WHERE key = ?) AND id = ?",
    )
    .bind(site)
    .bind(&row.id)
    .fetch_one(&mut **tx)
    .await
    .map(|(device, face, at_ms, reading)| (device, (face, at_ms, reading)))?;
    // The device of a face may be another one since.
    let same_device = device == row.device || !row.face.is_empty();
    if same_device && stored == (row.face.clone(), int(row.at_ms)?, row.reading.to_vec()) {
        return Ok(Put::Duplicate);
    }
    sqlx::query("INSERT INTO conflicts (site, seq, id, entry, received_at_ms) VALUES (?, ?, ?, ?, ?)")
        .bind(site)
        .bind(int(entry.seq)?)
        .bind(&row.id)
        .bind(entry.octets.as_ref())
        .bind(int(now.0)?)
        .execute(&mut **tx)
        .await?;
    Ok(Put::Conflict)
}

/// A site's calendar may be so far ahead of ours, milliseconds; beyond, its time was wrong.
const AHEAD_MS: u64 = 60_000;

/// The latest reading wins; one that arrives late is history alone. Of a time that has not come none is the latest: a site
/// whose calendar was ahead must not stand still here until then. True when the device is new.
pub(crate) async fn put_device(
    tx: &mut Transaction<'_, Sqlite>,
    site: i64,
    fact: &Fact,
    now: Millis,
) -> Result<bool, LinkError> {
    let (row, reading) = (&fact.row, &fact.reading);
    let known: Option<i64> =
        sqlx::query_scalar("SELECT metered_at_ms FROM devices WHERE site = ? AND id = ?")
            .bind(site)
            .bind(&row.device)
            .fetch_optional(&mut **tx)
            .await?;
    let later = |at_ms: u64| at_ms > row.at_ms && at_ms <= now.0.saturating_add(AHEAD_MS);
    if known.is_some_and(|metered_at_ms| later(uint(metered_at_ms))) {
        return Ok(false);
    }
    let total = reading.counters.total.and_then(|total| i64::try_from(total).ok());
    sqlx::query(
        "INSERT INTO devices (site, id, zone, unit, address, node, vendor, model, serial, name, location,
                              status, total, lowest, first_seen_ms, metered_at_ms, reading)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (site, id) DO UPDATE SET
             zone = excluded.zone, unit = excluded.unit, address = excluded.address, node = excluded.node,
             vendor = excluded.vendor, model = excluded.model, serial = excluded.serial, name = excluded.name,
             location = excluded.location, status = excluded.status, total = excluded.total,
             lowest = excluded.lowest, metered_at_ms = excluded.metered_at_ms, reading = excluded.reading,
             expired_at_ms = 0",
    )
    .bind(site)
    .bind(&row.device)
    .bind(&fact.zone)
    .bind(&row.unit)
    .bind(&row.address)
    .bind(int(row.node)?)
    .bind(&reading.facts.vendor)
    .bind(&reading.facts.model)
    .bind(&reading.facts.serial)
    .bind(&reading.facts.name)
    .bind(&reading.facts.location)
    .bind(reading.status.map(reading::Status::word))
    .bind(total)
    .bind(reading.supplies.iter().filter_map(|supply| supply.percent).min().map(i64::from))
    .bind(int(if fact.first_seen_ms == 0 { row.at_ms } else { fact.first_seen_ms })?)
    .bind(int(row.at_ms)?)
    .bind(row.reading.as_ref())
    .execute(&mut **tx)
    .await?;
    Ok(known.is_none())
}
