//! The support bundle: one archive of what somebody needs who helps and was not there.
//!
//! The door: [`stream`] for a node that runs, [`write`] for whoever has the facts. A bundle is a zstd-compressed tar;
//! its last file is a manifest with the size and SHA-256 of every other one.
//!
//! Architecture Invariant: a bundle holds no secret. No key, token or sealed text is ever read for it; settings go through
//! `mask`, and every text is searched for the secrets of the settings before it is written. What identifies devices is
//! in only when an operator on site asks for it, and what is hidden never travels upstream.

mod archive;
mod content;
mod mask;

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use quire_coordinator::rows;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::rescue::{PIECES, Pieces};
use super::{Site, facts};
use crate::cluster::{Keys, View};
use crate::doctor::Finding;
use crate::{clock, telemetry};

pub(crate) use archive::{Entry, check};
use mask::Scrubber;

/// What is wanted in a bundle.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct Wanted {
    /// What identifies devices: addresses, serial numbers, names.
    #[serde(default)]
    pub(crate) with_devices: bool,
    /// It leaves the site: what is hidden stays.
    #[serde(skip)]
    pub(crate) upstream: bool,
}

/// What a bundle is made of, gathered before the first octet is written.
pub(crate) struct Known {
    pub(crate) wanted: Wanted,
    /// The node's name.
    pub(crate) node: String,
    pub(crate) doctor: Vec<Finding>,
    /// The tables, where they can be read.
    pub(crate) view: Option<View>,
    /// Opens what the settings keep sealed, so that it can be kept out.
    pub(crate) keys: Option<Keys>,
    /// Of a node that runs.
    pub(crate) status: Option<Value>,
    pub(crate) metrics: Option<String>,
    pub(crate) log: Vec<String>,
}

/// Writes a bundle. Blocks on the disk, and on `out`.
pub(crate) fn write(known: &Known, out: impl io::Write) -> io::Result<()> {
    let meta = match &known.view {
        Some(view) => rows::meta(view).map_err(io::Error::other)?,
        None => quire_proto::store::Meta::default(),
    };
    let secrets = match &known.keys {
        Some(keys) => crate::cluster::secrets(keys, &meta.settings_toml),
        None => Vec::new(),
    };
    let hide: &[String] = if known.wanted.upstream { &meta.hide } else { &[] };
    let scrubber = Scrubber::new(&secrets, &meta.settings_toml, hide);
    content::write(known, &meta, &scrubber, out)
}

/// Looks at everything and streams a bundle; the receiver is told of a failure, and must not take less for a whole.
pub(crate) fn stream(site: &Arc<Site>, wanted: Wanted) -> mpsc::Receiver<io::Result<Bytes>> {
    let (pieces, taken) = mpsc::channel(PIECES);
    let site = Arc::clone(site);
    tokio::spawn(async move {
        let doctor = site.patient.examine().await;
        site.observe();
        let known = Known {
            wanted,
            node: site.cluster.me().name.clone(),
            doctor,
            view: Some(site.cluster.view()),
            keys: Some(site.cluster.keys().clone()),
            status: facts::status(&site.cluster).ok(),
            metrics: Some(site.metrics.render()),
            log: telemetry::last_lines(),
        };
        let mut out = Pieces::new(pieces.clone());
        let written = tokio::task::spawn_blocking(move || {
            write(&known, &mut out)?;
            io::Write::flush(&mut out)
        });
        let failed = match written.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(panicked) => io::Error::other(panicked.to_string()),
        };
        tracing::warn!(error = %failed, at_ms = clock::now().0, "make a bundle");
        // Nobody may be left to hear it.
        let _ = pieces.send(Err(failed)).await;
    });
    taken
}

/// Over the control socket.
pub(super) async fn serve(State(site): State<Arc<Site>>, Json(wanted): Json<Wanted>) -> Response {
    Body::from_stream(ReceiverStream::new(stream(&site, wanted))).into_response()
}
