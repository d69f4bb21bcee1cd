//! Jobs: what the Web Admin asks of a site. Kept until the site reports how each ended.
//!
//! A job is sent at most once a stream and again on the next stream until it is closed; its id lets the
//! site do it once. Says what to do, never how.

use quire_proto::id::Millis;
use quire_proto::upstream::{Job, job};
use serde::Serialize;

use crate::secret;
use crate::store::{Store, StoreError, int, uint};

/// Sent in one go after a Welcome; what is above waits for the next look.
const OPEN_MAX: i64 = 100;

/// What a site can be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobKind {
    /// Sweep one segment, or all of them when it is empty.
    Sweep(String),
    /// Read one device.
    Read(String),
    /// Apply settings (TOML).
    Settings(String),
    /// Put a script (its source), which the site tries before it is in force.
    Script(String),
    /// Send a support bundle (see [`crate::bundles`]).
    Bundle,
    /// Stay connected for remote service, or go back to check-ins.
    ServiceMode(bool),
}

impl JobKind {
    fn word(&self) -> &'static str {
        match self {
            JobKind::Sweep(_) => "sweep",
            JobKind::Read(_) => "read",
            JobKind::Settings(_) => "settings",
            JobKind::Script(_) => "script",
            JobKind::Bundle => "bundle",
            JobKind::ServiceMode(_) => "service-mode",
        }
    }

    fn argument(&self) -> &str {
        match self {
            JobKind::Sweep(text) | JobKind::Read(text) | JobKind::Settings(text) | JobKind::Script(text) => {
                text
            }
            JobKind::Bundle => "",
            JobKind::ServiceMode(true) => "on",
            JobKind::ServiceMode(false) => "off",
        }
    }

    fn from_row(kind: &str, argument: String) -> Option<Self> {
        match kind {
            "sweep" => Some(JobKind::Sweep(argument)),
            "read" => Some(JobKind::Read(argument)),
            "settings" => Some(JobKind::Settings(argument)),
            "script" => Some(JobKind::Script(argument)),
            "bundle" => Some(JobKind::Bundle),
            "service-mode" => Some(JobKind::ServiceMode(argument == "on")),
            _ => None,
        }
    }

    fn into_wire(self, id: String) -> Job {
        let what = match self {
            JobKind::Sweep(segment) => job::What::SweepSegment(segment),
            JobKind::Read(device) => job::What::ReadDevice(device),
            JobKind::Settings(toml) => job::What::SettingsToml(toml),
            JobKind::Script(source) => job::What::ScriptSource(source),
            JobKind::Bundle => job::What::Bundle(true),
            JobKind::ServiceMode(on) => job::What::ServiceMode(on),
        };
        Job { id, what: Some(what) }
    }
}

/// A job as listings show it.
#[derive(Clone, Debug, Serialize)]
pub struct JobLine {
    /// For ever unique.
    pub id: String,
    /// The site's name.
    pub site: String,
    /// `sweep`, `read`, `settings`, `script`, `bundle` or `service-mode`.
    pub kind: String,
    /// Left out of settings, which can be long and secret, and of scripts.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub argument: String,
    /// `pending`, `sent`, `done` or `failed`.
    pub state: String,
    /// RFC 3339.
    pub created_at: String,
    /// When it was last handed to the site.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sent_at: Option<String>,
    /// When the site reported how it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<String>,
    /// The site's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

type JobRow = (String, String, String, String, String, i64, Option<i64>, Option<i64>, Option<String>);

impl Store {
    /// Adds a job for a site (by key) and gives its id.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn add_job(&self, site: i64, kind: &JobKind, now: Millis) -> Result<String, StoreError> {
        let id = secret::random_word(10).map_err(|error| StoreError::Random(format!("{error:#}")))?;
        sqlx::query(
            "INSERT INTO jobs (id, site, kind, argument, state, created_at_ms) VALUES (?, ?, ?, ?, 'pending', ?)",
        )
        .bind(&id)
        .bind(site)
        .bind(kind.word())
        .bind(kind.argument())
        .bind(int(now.0)?)
        .execute(&self.write)
        .await?;
        self.changed();
        Ok(id)
    }

    /// After a Welcome every open job is to be sent: what a stream before took may have been lost with it.
    pub(crate) async fn reopen_jobs(&self, site: i64) -> Result<(), StoreError> {
        sqlx::query("UPDATE jobs SET state = 'pending' WHERE site = ? AND state = 'sent'")
            .bind(site)
            .execute(&self.write)
            .await?;
        Ok(())
    }

    /// Takes the jobs of a site that were not sent yet and marks them sent.
    pub(crate) async fn take_jobs(&self, site: i64, now: Millis) -> Result<Vec<Job>, StoreError> {
        let rows: Vec<(i64, String, String, String)> = sqlx::query_as(
            "SELECT key, id, kind, argument FROM jobs
             WHERE site = ? AND state = 'pending' ORDER BY key LIMIT ?",
        )
        .bind(site)
        .bind(OPEN_MAX)
        .fetch_all(&self.read)
        .await?;
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let mut jobs = Vec::with_capacity(rows.len());
        let mut tx = self.begin().await?;
        for (key, id, kind, argument) in rows {
            sqlx::query(
                "UPDATE jobs SET state = 'sent', sent_at_ms = ? WHERE key = ? AND closed_at_ms IS NULL",
            )
            .bind(int(now.0)?)
            .bind(key)
            .execute(&mut *tx)
            .await?;
            jobs.extend(JobKind::from_row(&kind, argument).map(|kind| kind.into_wire(id)));
        }
        tx.commit().await?;
        self.changed();
        Ok(jobs)
    }

    /// Every job, oldest first.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn jobs(&self, site: Option<&str>) -> Result<Vec<JobLine>, StoreError> {
        let rows: Vec<JobRow> = sqlx::query_as(
            "SELECT j.id, s.name, j.kind, CASE WHEN j.kind IN ('settings', 'script') THEN '' ELSE j.argument END, j.state,
                    j.created_at_ms, j.sent_at_ms, j.closed_at_ms, j.detail
             FROM jobs j JOIN sites s ON s.key = j.site WHERE ?1 IS NULL OR s.name = ?1 ORDER BY j.key",
        )
        .bind(site)
        .fetch_all(&self.read)
        .await?;
        let time = |at: i64| Millis(uint(at)).rfc3339();
        Ok(rows
            .into_iter()
            .map(|(id, site, kind, argument, state, created, sent, closed, detail)| JobLine {
                id,
                site,
                kind,
                argument,
                state,
                created_at: time(created),
                sent_at: sent.map(time),
                closed_at: closed.map(time),
                detail,
            })
            .collect())
    }
}
