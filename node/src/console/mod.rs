//! The console: pages, API and live events of one node over HTTP, and the control socket that the
//! command line speaks to.
//!
//! Architecture Invariant: nothing here writes tables or talks to devices; it proposes commands.

mod alerts;
mod api;
pub(crate) mod bundle;
mod certificates;
mod control;
mod devices;
mod explain;
pub(crate) mod facts;
mod guard;
mod listing;
mod pages;
mod rescue;
mod scripts;
mod segments;
mod tokens;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::device::script::Scripts;
use crate::doctor::Patient;
use crate::snmp::Snmp;

pub(crate) use control::{Enroll, SOCKET};

/// What the handlers share.
pub(crate) struct Site {
    pub(crate) cluster: Cluster,
    pub(crate) snmp: Snmp,
    pub(crate) scripts: Scripts,
    pub(crate) metrics: PrometheusHandle,
    pub(crate) enroll: Enroll,
    /// What `doctor` looks at.
    pub(crate) patient: Patient,
    /// True where the console listens on loopback only, so that pages need no login.
    pub(crate) open: bool,
    pub(crate) stop: CancellationToken,
    /// Cancelled when an operator wants this node to go on alone.
    pub(crate) recover: CancellationToken,
}

impl Site {
    /// Brings the gauges up to date.
    fn observe(&self) {
        let standing = self.cluster.watch().borrow().clone();
        let stats = self.snmp.stats();
        metrics::gauge!("quire_term").set(standing.term as f64);
        metrics::gauge!("quire_applied_index").set(standing.applied as f64);
        let timing = self.cluster.timing();
        metrics::gauge!("quire_heartbeat_seconds").set(timing.pace.beat_ms() as f64 / 1e3);
        metrics::gauge!("quire_fsync_p99_seconds").set(timing.own().fsync_us as f64 / 1e6);
        metrics::gauge!("quire_quorum").set(f64::from(u8::from(standing.quorum)));
        metrics::counter!("quire_snmp_packets_sent_total").absolute(stats.packets_sent);
        metrics::counter!("quire_snmp_packets_received_total").absolute(stats.packets_received);
        metrics::counter!("quire_snmp_timeouts_total").absolute(stats.timeouts);
        let ignored = [
            ("malformed", stats.malformed),
            ("unmatched", stats.unmatched),
            ("mismatched", stats.mismatched),
            ("wrong_digest", stats.wrong_digest),
            ("outside_window", stats.outside_window),
            ("lower_level", stats.lower_level),
        ];
        for (reason, count) in ignored {
            metrics::counter!("quire_snmp_ignored_total", "reason" => reason).absolute(count);
        }
        if let Ok(meta) = quire_coordinator::rows::meta(&self.cluster.view()) {
            metrics::gauge!("quire_devices").set(meta.devices as f64);
            metrics::gauge!("quire_alerts_open").set(meta.alerts_open as f64);
            let pending = meta.outbox_next.saturating_sub(1).saturating_sub(meta.outbox_acked);
            metrics::gauge!("quire_outbox_pending").set(pending as f64);
        }
    }
}

/// Serves console and API until told to stop.
///
/// # Errors
/// When the address cannot be listened on.
pub(crate) async fn serve(site: Arc<Site>, address: SocketAddr) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("listen on {address} for the console: choose another --console"))?;
    tracing::info!(%address, "console");
    let router = Router::new().merge(api::routes(&site)).merge(pages::routes(&site));
    let stop = site.stop.clone();
    axum::serve(listener, router.with_state(site))
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("serve the console")
}

/// Serves the control socket in the data directory until told to stop.
///
/// # Errors
/// When the socket cannot be made.
pub(crate) async fn serve_control(site: Arc<Site>, data_dir: std::path::PathBuf) -> anyhow::Result<()> {
    let listener = control::bind(&data_dir.join(SOCKET))?;
    let router = api::listings().merge(control::routes());
    let stop = site.stop.clone();
    axum::serve(listener, router.with_state(site))
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .await
        .context("serve the control socket")
}
