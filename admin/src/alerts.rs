//! What sites say about their alerts: kept one row an alert, each as it was said last, and listed.
//!
//! Architecture Invariant: an entry holds the whole of its alert, so hearing it twice does no harm; sites tell nothing of
//! what they hide.

use quire_proto::id::Millis;
use quire_proto::store::AlertNews;
use serde::Serialize;
use sqlx::{Sqlite, Transaction};

use crate::intake::malformed;
use crate::listing::CURRENT;
use crate::store::{LinkError, Store, StoreError, int, uint};

/// Of names and ids.
const NAME_MAX: usize = 512;
/// Of texts for people: a label and the values of a condition of 1,000 characters.
const TEXT_MAX: usize = 16 * 1024;

/// One alert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlertLine {
    /// The site's name.
    pub site: String,
    /// Unique for ever.
    pub id: String,
    /// The device's id, where it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub device: String,
    /// Of its rule.
    pub name: String,
    /// `open` or `cleared`.
    pub state: &'static str,
    /// What exactly it is about, as the site names it.
    pub subject: String,
    /// For people.
    pub what: String,
    /// RFC 3339.
    pub raised_at: String,
    /// How often it came back within the same episode.
    pub raises: u64,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cleared_at: Option<String>,
    /// What cleared it, for people.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

#[derive(sqlx::FromRow)]
struct Row {
    site: String,
    id: String,
    name: String,
    device: String,
    subject: String,
    what: String,
    why: String,
    open: bool,
    raises: i64,
    raised_at_ms: i64,
    cleared_at_ms: i64,
}

/// Refuses what no honest site sends. Texts may hold what a device says of itself, as long as it likes: those are cut, for
/// whoever refused them would get the same entry again for ever.
pub(crate) fn check(seq: u64, alert: &AlertNews) -> Result<(), LinkError> {
    if alert.id.is_empty() || alert.id.len() > NAME_MAX || alert.rule.is_empty() {
        return Err(malformed(format!("entry {seq} holds an alert with a name that is empty or too long")));
    }
    if [alert.raised_at_ms, alert.cleared_at_ms, alert.serial].iter().any(|n| i64::try_from(*n).is_err()) {
        return Err(malformed(format!("entry {seq} has a number out of range")));
    }
    Ok(())
}

fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Keeps an alert as it is now, unless something later is known of it.
pub(crate) async fn put(
    tx: &mut Transaction<'_, Sqlite>,
    site: i64,
    alert: &AlertNews,
    now: Millis,
) -> Result<(), LinkError> {
    sqlx::query(
        "INSERT INTO alerts (site, id, name, device, subject, what, why, open, raises, raised_at_ms,
                             cleared_at_ms, serial, received_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         ON CONFLICT (site, id) DO UPDATE SET
             what = excluded.what, why = excluded.why, open = excluded.open, raises = excluded.raises,
             raised_at_ms = excluded.raised_at_ms, cleared_at_ms = excluded.cleared_at_ms,
             serial = excluded.serial, received_at_ms = excluded.received_at_ms
         WHERE excluded.serial > alerts.serial",
    )
    .bind(site)
    .bind(&alert.id)
    .bind(cut(&alert.rule, NAME_MAX))
    .bind(cut(&alert.device, NAME_MAX))
    .bind(cut(&alert.subject, NAME_MAX))
    .bind(cut(&alert.what, TEXT_MAX))
    .bind(cut(&alert.why, TEXT_MAX))
    .bind(alert.open)
    .bind(i64::from(alert.raises))
    .bind(int(alert.raised_at_ms)?)
    .bind(int(alert.cleared_at_ms)?)
    .bind(int(alert.serial)?)
    .bind(int(now.0)?)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

impl Store {
    /// Alerts, open ones first, of each the latest first; `limit` at most, -1 for all.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn alerts(
        &self,
        site: Option<&str>,
        limit: i64,
        offset: u32,
    ) -> Result<Vec<AlertLine>, StoreError> {
        // Made of literals alone.
        let sql = format!(
            "SELECT s.name AS site, a.id, a.name, a.device, a.subject, a.what, a.why, a.open, a.raises,
                    a.raised_at_ms, a.cleared_at_ms
             FROM alerts a JOIN sites s ON s.key = a.site
             WHERE (?1 IS NULL OR s.name = ?1) AND {CURRENT}
             ORDER BY a.open DESC, a.raised_at_ms DESC, a.site, a.id LIMIT ?2 OFFSET ?3",
        );
        let rows: Vec<Row> = sqlx::query_as(sqlx::AssertSqlSafe(sql))
            .bind(site)
            .bind(limit)
            .bind(offset)
            .fetch_all(&self.read)
            .await?;
        Ok(rows.into_iter().map(line).collect())
    }

    /// How many alerts are open, of sites that are not revoked.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn count_open_alerts(&self) -> Result<u64, StoreError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM alerts a JOIN sites s ON s.key = a.site WHERE a.open AND s.revoked_at_ms IS NULL",
        )
        .fetch_one(&self.read)
        .await?;
        Ok(uint(count))
    }
}

fn line(row: Row) -> AlertLine {
    let time = |at_ms: i64| Millis(uint(at_ms)).rfc3339();
    AlertLine {
        site: row.site,
        id: row.id,
        device: row.device,
        name: row.name,
        state: if row.open { "open" } else { "cleared" },
        subject: row.subject,
        what: row.what,
        raised_at: time(row.raised_at_ms),
        raises: uint(row.raises),
        cleared_at: (!row.open).then(|| time(row.cleared_at_ms)),
        why: row.why,
    }
}
