//! Receives: the Web Admin, where the clusters of all sites report to.
//!
//! [`Server::start`] is what tests and the `serve` command use; [`cli`] is the command line. The modules, from
//! the bottom: `clock` and `secret` know nothing; `tls` and `listener` are the door; `store`, `intake`,
//! `listing`, `jobs`, `bundles` and `users` are the database; `enroll` and `link` answer clusters; `api` and `pages`
//! answer people. Only `store`, `intake`, `jobs`, `bundles` and `users` write to the database.
//!
//! Architecture Invariant: what a site is told to be received is on disk; a site has one stream, that of the
//! highest epoch ever accepted.

pub mod alerts;
mod api;
pub mod bundles;
pub mod cli;
mod clock;
mod console;
mod enroll;
mod identity;
mod intake;
pub mod jobs;
mod link;
mod listener;
pub mod listing;
mod pages;
mod print;
mod secret;
pub mod store;
pub mod tls;
pub mod users;

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use quire_proto::upstream::enrollment_server::EnrollmentServer;
use quire_proto::upstream::link_server::LinkServer;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::codec::CompressionEncoding;

use crate::enroll::EnrollmentService;
use crate::link::{LinkService, Links, MESSAGE_OCTETS_MAX};
use crate::store::Store;
use crate::tls::Authority;

/// A link whose other end vanished (a suspended VM) is gone after 15 seconds.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a revocation or a job of the command line reaches a live stream. Looking costs one `PRAGMA`.
const WATCH_EVERY: Duration = Duration::from_millis(250);
/// One link and a few calls of enrolment a connection.
const STREAMS_PER_CONNECTION: u32 = 16;
/// How long streams may take to end after a signal.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// A command line holds the lock for microseconds; a server for as long as it runs.
const LOCK_ATTEMPTS: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the database and the keys are.
    pub data_dir: PathBuf,
    /// For clusters.
    pub listen: SocketAddr,
    /// For people.
    pub console: SocketAddr,
}

/// A running Web Admin.
#[derive(Debug)]
pub struct Server {
    listen: SocketAddr,
    console: SocketAddr,
    pin: String,
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    store: Store,
    stop: CancellationToken,
    _lock: File,
}

impl Server {
    /// Binds, starts every long-lived task by name, and returns.
    ///
    /// # Errors
    /// When the data directory is in use or damaged, or an address cannot be bound.
    pub async fn start(options: &Options, stop: CancellationToken) -> anyhow::Result<Self> {
        let dir = &options.data_dir;
        let authority = Arc::new(Authority::open(dir, clock::now())?);
        let lock = lock(dir).await?;
        let store =
            Store::open(dir).await.with_context(|| format!("open the database in {}", dir.display()))?;
        store.clear_links().await.context("forget old links")?;
        store.clear_bundle_parts();
        let config = authority.server_config(dir, clock::now())?;
        let listener = bind(options.listen).await?;
        let links = Arc::new(Links::new(Arc::clone(&authority), store.clone(), stop.clone()));
        let console_listener = bind(options.console).await?;
        let (listen, console) = (listener.local_addr()?, console_listener.local_addr()?);
        // Before the first counter counts.
        if console::recorder().is_none() {
            tracing::warn!("another recorder of metrics is installed: /metrics stays empty");
        }
        let mut tasks = JoinSet::new();
        let incoming = listener::incoming(listener, config, stop.clone());
        let enrollment = EnrollmentService {
            authority: Arc::clone(&authority),
            store: store.clone(),
            wrong: Default::default(),
        };
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE_TIMEOUT))
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            .add_service(
                EnrollmentServer::new(enrollment).max_decoding_message_size(enroll::MESSAGE_OCTETS_MAX),
            )
            .add_service(
                LinkServer::new(LinkService(Arc::clone(&links)))
                    .accept_compressed(CompressionEncoding::Zstd)
                    .max_decoding_message_size(MESSAGE_OCTETS_MAX),
            )
            .serve_with_incoming_shutdown(incoming, stop.clone().cancelled_owned());
        tasks.spawn(async move { ("link", serving.await.context("serve the link")) });
        let pages = console::serve(console_listener, store.clone(), stop.clone());
        tasks.spawn(async move { ("console", pages.await) });
        tasks.spawn(watch(store.clone(), links, stop.clone()));
        Ok(Server { listen, console, pin: authority.pin(), tasks, store, stop, _lock: lock })
    }

    /// Where clusters reach it.
    pub fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Where people reach it.
    pub fn console(&self) -> SocketAddr {
        self.console
    }

    /// `sha256:<hex>` of the CA certificate.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// The database, for tests that look into it.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Runs until the stop token is cancelled or a task fails; then ends the others.
    ///
    /// # Errors
    /// Of the first task that failed.
    pub async fn wait(mut self) -> anyhow::Result<()> {
        let mut outcome = Ok(());
        if let Some(ended) = self.tasks.join_next().await {
            outcome = flatten(ended);
        }
        self.stop.cancel();
        let rest = async {
            while let Some(ended) = self.tasks.join_next().await {
                if let Err(error) = flatten(ended) {
                    tracing::debug!(error = format!("{error:#}"), "while stopping");
                }
            }
        };
        if tokio::time::timeout(STOP_TIMEOUT, rest).await.is_err() {
            tracing::warn!("not every connection ended in time");
        }
        self.store.close().await;
        outcome
    }
}

/// Serves until `stop`.
///
/// # Errors
/// As [`Server::start`] and [`Server::wait`].
pub async fn run(options: &Options, stop: CancellationToken) -> anyhow::Result<()> {
    let server = Server::start(options, stop).await?;
    tracing::info!(listen = %server.listen(), console = %server.console(), pin = server.pin(), "serving");
    server.wait().await
}

fn flatten(ended: Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>) -> anyhow::Result<()> {
    let (name, result) = ended.context("run a task")?;
    result.with_context(|| format!("task {name}"))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

/// One server a data directory; the operating system lets go of the lock when the process ends.
async fn lock(dir: &Path) -> anyhow::Result<File> {
    let file = lock_file(dir)?;
    for _ in 0..LOCK_ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            // The command line looks for a server by holding the lock for a moment.
            Err(std::fs::TryLockError::WouldBlock) => tokio::time::sleep(LOCK_PAUSE).await,
            Err(std::fs::TryLockError::Error(error)) => return Err(error).context("lock the data directory"),
        }
    }
    anyhow::bail!("another quire-admin serves {} already", dir.display())
}

fn lock_file(dir: &Path) -> anyhow::Result<File> {
    tls::open_private(&dir.join("serve.lock"))
}

/// True while a server runs on the data directory.
pub(crate) fn is_served(dir: &Path) -> bool {
    lock_file(dir).is_ok_and(|file| matches!(file.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock)))
}

/// Notices what other processes (the command line) write, and lets streams and pages look again.
async fn watch(
    store: Store,
    links: Arc<Links>,
    stop: CancellationToken,
) -> (&'static str, anyhow::Result<()>) {
    let watching = async {
        // `data_version` is a connection's own: it must always be asked of the same one.
        let mut connection = store.read.acquire().await.context("open a connection")?;
        let mut seen: i64 = 0;
        loop {
            let version = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut *connection).await;
            let version: i64 = version.context("look at the database")?;
            if version != seen {
                seen = version;
                links.wake_all().await;
                store.changed();
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    };
    ("watch", stop.run_until_cancelled(watching).await.unwrap_or(Ok(())))
}
