//! Headless Chromium for pages that are nothing without JavaScript: one browser a node, one context a page.
//!
//! The door: [`Browser`], which every clone shares; [`Browser::show`] turns a page that a [`Visit`] fetched into what a
//! reader would see. The browser starts with the first page and ends when none was wanted for a while.
//!
//! Architecture Invariant: the browser has no network. Its proxy refuses everything, its resolver knows no name, and
//! each request of a page is answered here, from the one confined client (`http`): GET, one address, its ports, its
//! certificate, its login, its budgets. What is for anybody else is refused and counted. A page that takes too long or
//! too much memory is ended, with its process.

mod page;
mod process;
mod proxy;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Url;
use tokio::sync::{Mutex, Semaphore};

use super::http::{Fetched, Visit};
use process::{Context, Running};

/// Pages at the same time. A page was measured at some 70 MB beside the 250 MB of the browser itself.
const PAGES: usize = 2;
/// How long a page may take, from the first request to the last of its scripts.
const SECONDS: Duration = Duration::from_secs(15);
/// What all processes of the browser may hold together, octets: twice what two large pages were seen to take.
const MEMORY: u64 = 1 << 30;
/// How often that is looked at.
const WEIGHING: Duration = Duration::from_millis(250);
/// How long a page that is done with may take to go away; then the browser goes, too.
const CLOSING: Duration = Duration::from_secs(2);
/// How long the browser waits for another page before it ends.
const IDLE: Duration = Duration::from_secs(60);

/// What a page came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The document as the page's scripts left it, its frames behind it.
    pub html: String,
    /// What a reader sees of it.
    pub text: String,
    /// Requests of the page that were refused, because they were for somebody else or would have written.
    pub refused: u32,
}

/// Why a page was not shown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrowserMiss {
    /// `[http] chromium = false`, or no node that runs.
    #[error("pages that need JavaScript are switched off ([http] chromium)")]
    Off,
    /// Not installed.
    #[error("Chromium is not installed on this node (Debian: apt install chromium), or setpriv is not")]
    Missing,
    /// It does not start or does not talk.
    #[error("Chromium does not work here: {0}")]
    Broken(String),
    /// Longer than a page may take.
    #[error("the page took longer than {} s", SECONDS.as_secs())]
    TooSlow,
    /// Its scripts or its document are larger than a page's may be.
    #[error("the page is too big")]
    TooBig,
    /// It does not stay on the device.
    #[error("the page leads off the device")]
    Elsewhere,
    /// The browser's processes hold more than they may.
    #[error("the page took too much memory")]
    TooHeavy,
}

/// The browser of a node; cheap to clone.
#[derive(Clone)]
pub struct Browser(Option<Arc<Inner>>);

struct Inner {
    /// Where profiles are made and removed.
    place: PathBuf,
    pages: Semaphore,
    running: Mutex<Option<Arc<Running>>>,
    /// Pages so far: tells an idle browser from one in use.
    shown: AtomicU64,
    bounds: Bounds,
}

/// What tests make smaller.
#[derive(Clone, Copy)]
struct Bounds {
    memory: u64,
    page: Duration,
    idle: Duration,
}

impl fmt::Debug for Browser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Browser" } else { "Browser(off)" })
    }
}

impl Browser {
    /// None, where nobody may start one.
    pub fn off() -> Browser {
        Browser(None)
    }

    /// The browser of the node with this data directory. It does not start before the first page.
    pub fn new(data_dir: &Path) -> Browser {
        Browser::with(data_dir, Bounds { memory: MEMORY, page: SECONDS, idle: IDLE })
    }

    fn with(data_dir: &Path, bounds: Bounds) -> Browser {
        Browser(Some(Arc::new(Inner {
            place: data_dir.join("browser"),
            pages: Semaphore::new(PAGES),
            running: Mutex::default(),
            shown: AtomicU64::new(0),
            bounds,
        })))
    }

    /// Whether this machine has what is needed.
    pub fn found() -> bool {
        process::programs().is_some()
    }

    /// What a browser makes of a page that `visit` fetched; the rest of the page is fetched by the same visit. At most
    /// `most` octets of HTML.
    ///
    /// # Errors
    /// See [`BrowserMiss`].
    pub async fn show(&self, visit: &mut Visit, page: &Fetched, most: usize) -> Result<Shown, BrowserMiss> {
        let inner = self.0.as_ref().ok_or(BrowserMiss::Off)?;
        // Never closed.
        let _place = inner.pages.acquire().await.map_err(|_| BrowserMiss::Off)?;
        let running = inner.running().await?;
        let before = inner.shown.fetch_add(1, Ordering::Relaxed);
        let context = match Context::open(&running, authority(&page.url)).await {
            Ok(context) => context,
            Err(miss) => {
                inner.end(&running).await;
                return Err(miss);
            }
        };
        let outcome = tokio::select! {
            shown = tokio::time::timeout(inner.bounds.page, page::show(&context, visit, page, most)) => {
                shown.unwrap_or(Err(BrowserMiss::TooSlow))
            }
            () = running.too_heavy(inner.bounds.memory) => Err(BrowserMiss::TooHeavy),
        };
        let closed = context.close().await;
        if !closed || matches!(outcome, Err(BrowserMiss::TooHeavy | BrowserMiss::Broken(_))) {
            inner.end(&running).await;
        }
        if let Err(miss) = &outcome {
            metrics::counter!("quire_browser_failures_total").increment(1);
            tracing::debug!(url = %page.url, %miss, "a page was not shown");
        }
        Self::end_when_idle(Arc::clone(inner), before + 1);
        outcome
    }

    /// Starts the browser, unless it runs, and answers its version. No page is opened.
    ///
    /// # Errors
    /// See [`BrowserMiss`].
    pub async fn probe(&self) -> Result<String, BrowserMiss> {
        let inner = self.0.as_ref().ok_or(BrowserMiss::Off)?;
        // Never closed.
        let _place = inner.pages.acquire().await.map_err(|_| BrowserMiss::Off)?;
        let running = inner.running().await?;
        let before = inner.shown.fetch_add(1, Ordering::Relaxed);
        Self::end_when_idle(Arc::clone(inner), before + 1);
        match tokio::time::timeout(CLOSING, running.cdp.version()).await {
            Ok(Ok(version)) => Ok(version.product),
            Ok(Err(error)) => Err(BrowserMiss::Broken(format!("ask for its version: {error}"))),
            Err(_) => Err(BrowserMiss::Broken("it does not answer".to_owned())),
        }
    }

    /// Ends the browser, if it runs.
    pub async fn close(&self) {
        let Some(inner) = &self.0 else { return };
        if let Some(running) = inner.running.lock().await.take() {
            running.end().await;
        }
    }

    /// Ends the browser after a while in which nobody wanted a page.
    fn end_when_idle(inner: Arc<Inner>, seen: u64) {
        tokio::spawn(async move {
            tokio::time::sleep(inner.bounds.idle).await;
            let mut slot = inner.running.lock().await;
            let unused =
                inner.shown.load(Ordering::Relaxed) == seen && inner.pages.available_permits() == PAGES;
            if unused && let Some(running) = slot.take() {
                running.end().await;
            }
        });
    }
}

/// Host and port as a request to a proxy names them: a default port is not named but in CONNECT.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = if url.scheme() == "https" { url.port_or_known_default() } else { url.port() };
    port.map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

impl Inner {
    /// The browser that runs, started where there is none.
    async fn running(&self) -> Result<Arc<Running>, BrowserMiss> {
        let mut slot = self.running.lock().await;
        if let Some(running) = slot.as_ref().filter(|running| running.alive()) {
            return Ok(Arc::clone(running));
        }
        if let Some(dead) = slot.take() {
            dead.end().await;
        }
        let running = Arc::new(Running::start(&self.place).await?);
        *slot = Some(Arc::clone(&running));
        Ok(running)
    }

    /// Ends this browser, so that the next page gets a fresh one.
    async fn end(&self, running: &Arc<Running>) {
        let mut slot = self.running.lock().await;
        slot.take_if(|current| Arc::ptr_eq(current, running));
        running.end().await;
    }
}
