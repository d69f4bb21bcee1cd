//! What an operator does when things went wrong: a backup, and going on alone.

use std::io;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use zeroize::Zeroizing;

use super::Site;
use super::control::{Done, bad};

/// Pieces of a backup that wait to be taken: four of at most [`PIECE`].
pub(super) const PIECES: usize = 4;
/// Octets of a piece.
const PIECE: usize = 1 << 20;

/// Tells this node to start again as the only member of its cluster.
pub(super) async fn recover(State(site): State<Arc<Site>>) -> Done {
    let standing = site.cluster.watch().borrow().clone();
    if standing.quorum {
        return Err(bad("this node has quorum: there is nothing to recover"));
    }
    tracing::warn!("told to go on alone: starting again");
    site.recover.cancel();
    Ok(Json(json!({ "changes": "starting again" })))
}

#[derive(Deserialize)]
pub(super) struct BackupOptions {
    passphrase: Option<Zeroizing<String>>,
}

/// Streams a backup of the tables of this moment.
pub(super) async fn backup(State(site): State<Arc<Site>>, Json(options): Json<BackupOptions>) -> Response {
    let (pieces, taken) = mpsc::channel(PIECES);
    tokio::task::spawn_blocking(move || {
        let mut out = Pieces::new(pieces);
        let passphrase = options.passphrase.as_ref().map(|text| text.as_str());
        if let Err(error) = site.cluster.backup(passphrase, &mut out) {
            tracing::warn!(%error, "write a backup");
            // Whoever takes it must not think that this was all.
            let _ = out.pieces.blocking_send(Err(error));
        }
    });
    Body::from_stream(ReceiverStream::new(taken)).into_response()
}

/// Gathers what is written into pieces for a stream.
pub(super) struct Pieces {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    filling: Vec<u8>,
}

impl Pieces {
    pub(super) fn new(pieces: mpsc::Sender<io::Result<Bytes>>) -> Pieces {
        Pieces { pieces, filling: Vec::with_capacity(PIECE) }
    }
}

impl io::Write for Pieces {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.filling.extend_from_slice(octets);
        if self.filling.len() >= PIECE {
            self.flush()?;
        }
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let piece = Bytes::from(std::mem::take(&mut self.filling));
        if piece.is_empty() {
            return Ok(());
        }
        self.pieces.blocking_send(Ok(piece)).map_err(|_| io::Error::other("nobody takes it any more"))
    }
}
