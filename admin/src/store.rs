//! The SQLite store: opening it, sites, registrations, and the fence that every message of a link passes.
//!
//! Architecture Invariant: an acknowledged outbox number is on disk (`synchronous = FULL`), and the mark
//! moves in the same transaction as the readings that it covers. Writers are one connection a process,
//! readers never block it (WAL). Nothing here knows of TLS, gRPC or HTTP.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quire_proto::id::Millis;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{Sqlite, Transaction};
use tokio::sync::watch;

use crate::secret;

/// How long a one-time code of `site add` may be used.
pub(crate) const CODE_TTL_MS: u64 = 24 * 60 * 60 * 1000;
/// Another process (the command line) may hold the write lock for the length of one transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);
/// A batch of 5,000 readings takes about a second.
const READY_TIMEOUT: Duration = Duration::from_secs(3);
/// Console pages and listings that read at the same time.
const READERS_MAX: u32 = 4;

/// What goes wrong with the store itself; nothing that a caller can do about it but try later.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite, the disk or a damaged file.
    #[error("the database failed: {0}")]
    Database(#[from] sqlx::Error),
    /// A newer version wrote it, or a migration failed.
    #[error("the database cannot be brought to this version: {0}")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// A number of the wire that SQLite cannot hold.
    #[error("a number is out of range: {0}")]
    Range(u64),
    /// The operating system gives no randomness.
    #[error("{0}")]
    Random(String),
}

/// Why a site cannot be added.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Names are unique among sites that are not revoked.
    #[error("a site named `{0}` exists already: `site revoke {0}` frees the name")]
    Taken(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a registration is refused.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Also what an expired code of long ago gets.
    #[error("the code is wrong")]
    Wrong,
    /// It was right once.
    #[error("the code has expired: `quire-admin site revoke` and `site add` make a new one")]
    Expired,
    /// By another cluster, or by this one with other keys.
    #[error("the code has been used already")]
    Used,
    /// One cluster is one site.
    #[error("this cluster already belongs to the site `{0}`")]
    Enrolled(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a link or one of its messages is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A higher epoch was accepted before.
    #[error("epoch: lower than {highest}, which was accepted before")]
    Epoch {
        /// The highest that was ever accepted for the cluster.
        highest: u64,
    },
    /// A newer stream of the site took this one's place.
    #[error("replaced: another stream of the site is newer")]
    Replaced {
        /// The highest that was ever accepted for the cluster.
        highest: u64,
    },
    /// A batch does not continue where the last one ended.
    #[error("gap: expected {expected}, got {got}")]
    Gap {
        /// The number after the mark.
        expected: u64,
        /// The batch's first.
        got: u64,
    },
    /// The site's certificate in the hands of another cluster.
    #[error("cluster: the site is enrolled by another cluster")]
    Cluster,
    /// A node speaks with another node's certificate.
    #[error("node: the certificate is another node's")]
    Node,
    /// Its cluster has no such member any more.
    #[error("removed: the node was removed from its cluster")]
    Removed,
    /// `site revoke`, or a site that this server does not know.
    #[error("revoked: the site is no longer welcome")]
    Revoked,
    /// The site speaks a newer language.
    #[error("version: this server speaks wire version {}", quire_proto::WIRE_VERSION)]
    Version,
    /// What no honest site sends.
    #[error("malformed: {0}")]
    Malformed(String),
}

impl Refusal {
    /// The epoch that stands against the caller's; 0 where epochs are not the matter.
    pub(crate) fn highest(&self) -> u64 {
        if let Refusal::Epoch { highest } | Refusal::Replaced { highest } = self { *highest } else { 0 }
    }

    /// The word before the colon, for metrics.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Refusal::Epoch { .. } => "epoch",
            Refusal::Replaced { .. } => "replaced",
            Refusal::Gap { .. } => "gap",
            Refusal::Cluster => "cluster",
            Refusal::Node => "node",
            Refusal::Removed => "removed",
            Refusal::Revoked => "revoked",
            Refusal::Version => "version",
            Refusal::Malformed(_) => "malformed",
        }
    }
}

/// Either the store failed, or the caller is refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Not the caller's fault: it may come again.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The caller's fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl From<sqlx::Error> for LinkError {
    fn from(error: sqlx::Error) -> Self {
        LinkError::Store(error.into())
    }
}

impl From<sqlx::Error> for RegisterError {
    fn from(error: sqlx::Error) -> Self {
        RegisterError::Store(error.into())
    }
}

/// A site that a certificate may speak for.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) key: i64,
    pub(crate) name: String,
    pub(crate) cluster_id: Vec<u8>,
}

/// A registration as the wire brings it, already measured.
#[derive(Debug)]
pub(crate) struct Registration<'a> {
    pub(crate) code: &'a str,
    pub(crate) cluster_id: &'a [u8],
    pub(crate) cluster_name: &'a str,
    /// Of the encoded certificate requests.
    pub(crate) request_sha256: &'a [u8],
    pub(crate) nodes: &'a [(u64, String)],
}

/// Of one data directory; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) write: SqlitePool,
    pub(crate) read: SqlitePool,
    /// Where support bundles are.
    pub(crate) bundles: PathBuf,
    changes: watch::Sender<u64>,
}

/// What SQLite can hold.
pub(crate) fn int(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| StoreError::Range(number))
}

/// What [`int`] stored.
pub(crate) fn uint(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl Store {
    /// Opens `admin.db` in a data directory, makes it where it is missing, and brings it to this version.
    ///
    /// # Errors
    /// [`StoreError`] when the file cannot be opened, is damaged or was written by a newer version.
    pub async fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join("admin.db");
        // SQLite makes its side files with the mode of the database itself.
        let made = std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&path);
        made.map_err(sqlx::Error::Io)?;
        let options = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // What was blanked is not left in free pages.
            .pragma("secure_delete", "ON")
            .busy_timeout(BUSY_TIMEOUT);
        let write = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options.pragma("query_only", "1"))
            .await?;
        Ok(Store { write, read, bundles: dir.join("bundles"), changes: watch::Sender::new(0) })
    }

    /// Closes the files after what runs has ended.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    /// Rises whenever a list may look different.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells everybody who waits on [`Store::changes`].
    pub(crate) fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// A write transaction: takes the lock at once, because a read lock that upgrades can fail.
    pub(crate) async fn begin(&self) -> Result<Transaction<'_, Sqlite>, sqlx::Error> {
        self.write.begin_with("BEGIN IMMEDIATE").await
    }

    /// True when a writer gets its turn in time, which also needs a disk that takes the lock.
    pub(crate) async fn is_ready(&self) -> bool {
        let turn = async { self.begin().await?.rollback().await };
        matches!(tokio::time::timeout(READY_TIMEOUT, turn).await, Ok(Ok(())))
    }

    /// Adds a site and gives its one-time code, which is kept only as a hash.
    ///
    /// # Errors
    /// [`AddError::Taken`] for a name in use.
    pub async fn add_site(&self, name: &str, now: Millis) -> Result<String, AddError> {
        let random = |octets| secret::random_word(octets).map_err(|e| StoreError::Random(format!("{e:#}")));
        // 120 bits: not to be guessed within a day, whatever the rate.
        let (id, code) = (random(10)?, random(15)?);
        let added = sqlx::query(
            "INSERT INTO sites (id, name, created_at_ms, code_sha256, code_expires_ms) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(name)
        .bind(int(now.0)?)
        .bind(secret::sha256(code.as_bytes()))
        .bind(int(now.0.saturating_add(CODE_TTL_MS))?)
        .execute(&self.write)
        .await;
        match added {
            Ok(_) => Ok(secret::grouped(&code)),
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => {
                Err(AddError::Taken(name.to_owned()))
            }
            Err(error) => Err(StoreError::from(error).into()),
        }
    }

    /// Revokes a site by name; its stream is cut within a second. False when there is no such site.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn revoke_site(&self, name: &str, now: Millis) -> Result<bool, StoreError> {
        let mut tx = self.begin().await?;
        // What was never handed over is not kept: settings can carry passwords.
        sqlx::query(
            "UPDATE jobs SET state = 'failed', argument = '', detail = 'the site was revoked', closed_at_ms = ?
             WHERE closed_at_ms IS NULL
                 AND site = (SELECT key FROM sites WHERE name = ? AND revoked_at_ms IS NULL)",
        )
        .bind(int(now.0)?)
        .bind(name)
        .execute(&mut *tx)
        .await?;
        let done = sqlx::query("UPDATE sites SET revoked_at_ms = ? WHERE name = ? AND revoked_at_ms IS NULL")
            .bind(int(now.0)?)
            .bind(name)
            .execute(&mut *tx)
            .await?;
        tx.commit().await?;
        self.changed();
        Ok(done.rows_affected() > 0)
    }

    /// The key of a site that is not revoked.
    pub(crate) async fn site_key(&self, name: &str) -> Result<Option<i64>, StoreError> {
        let key = sqlx::query_scalar("SELECT key FROM sites WHERE name = ? AND revoked_at_ms IS NULL");
        Ok(key.bind(name).fetch_optional(&self.read).await?)
    }

    /// Binds the site of a code to a cluster. Gives the site's id and name.
    pub(crate) async fn register(
        &self,
        registration: &Registration<'_>,
        now: Millis,
    ) -> Result<(String, String), RegisterError> {
        let mut tx = self.begin().await?;
        let site = find_code(&mut tx, registration.code).await?.ok_or(RegisterError::Wrong)?;
        match &site.request_sha256 {
            // The reply got lost and the same keys ask again.
            Some(used) if secret::same(used, registration.request_sha256) => return Ok((site.id, site.name)),
            Some(_) => return Err(RegisterError::Used),
            None if uint(site.code_expires_ms) < now.0 => return Err(RegisterError::Expired),
            None => {}
        }
        let other =
            sqlx::query_scalar("SELECT name FROM sites WHERE cluster_id = ? AND revoked_at_ms IS NULL");
        if let Some(name) = other.bind(registration.cluster_id).fetch_optional(&mut *tx).await? {
            return Err(RegisterError::Enrolled(name));
        }
        sqlx::query(
            "UPDATE sites SET cluster_id = ?, cluster_name = ?, request_sha256 = ?, enrolled_at_ms = ? WHERE key = ?",
        )
        .bind(registration.cluster_id)
        .bind(registration.cluster_name)
        .bind(registration.request_sha256)
        .bind(int(now.0)?)
        .bind(site.key)
        .execute(&mut *tx)
        .await?;
        // With a new code come new certificates, which whoever spoke before does not have: its epoch counts no longer. So
        // a node that claimed the highest of all numbers is got rid of; and so is a mark that the site does not believe,
        // because this database is a backup or a node lied. What is sent again is known by its reading's id.
        sqlx::query(
            "INSERT INTO clusters (cluster_id) VALUES (?)
             ON CONFLICT DO UPDATE SET epoch = 0, epoch_node = 0, through = NULL",
        )
        .bind(registration.cluster_id)
        .execute(&mut *tx)
        .await?;
        for (node, name) in registration.nodes {
            put_node(&mut tx, site.key, *node, name).await?;
        }
        tx.commit().await?;
        self.changed();
        Ok((site.id, site.name))
    }

    /// The enrolled, unrevoked site that a certificate names.
    pub(crate) async fn welcome_site(&self, id: &str) -> Result<Option<Site>, StoreError> {
        let row: Option<(i64, String, Vec<u8>)> = sqlx::query_as(
            "SELECT key, name, cluster_id FROM sites
             WHERE id = ? AND revoked_at_ms IS NULL AND cluster_id IS NOT NULL",
        )
        .bind(id)
        .fetch_optional(&self.read)
        .await?;
        Ok(row.map(|(key, name, cluster_id)| Site { key, name, cluster_id }))
    }

    /// Remembers what nodes are called.
    pub(crate) async fn put_nodes(&self, site: i64, nodes: &[(u64, String)]) -> Result<(), StoreError> {
        let mut tx = self.begin().await?;
        for (node, name) in nodes {
            put_node(&mut tx, site, *node, name).await?;
        }
        Ok(tx.commit().await?)
    }
}

#[derive(sqlx::FromRow)]
struct CodeRow {
    key: i64,
    id: String,
    name: String,
    code_sha256: Vec<u8>,
    code_expires_ms: i64,
    request_sha256: Option<Vec<u8>>,
}

/// Compares with every code in the same time, so that a caller learns nothing from how long it took.
async fn find_code(tx: &mut Transaction<'_, Sqlite>, code: &str) -> Result<Option<CodeRow>, sqlx::Error> {
    let hash = secret::sha256(secret::ungrouped(code).as_bytes());
    let rows: Vec<CodeRow> = sqlx::query_as(
        "SELECT key, id, name, code_sha256, code_expires_ms, request_sha256 FROM sites WHERE revoked_at_ms IS NULL",
    )
    .fetch_all(&mut **tx)
    .await?;
    Ok(rows
        .into_iter()
        .fold(None, |found, row| if secret::same(&row.code_sha256, &hash) { Some(row) } else { found }))
}

async fn put_node(
    tx: &mut Transaction<'_, Sqlite>,
    site: i64,
    node: u64,
    name: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO nodes (site, node, name) VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET name = excluded.name",
    )
    .bind(site)
    .bind(int(node)?)
    .bind(name)
    .execute(&mut **tx)
    .await?;
    Ok(())
}
