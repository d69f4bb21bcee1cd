//! Listings, read from the tables page by page while they are sent: a table of a million rows takes no more memory than
//! one of ten, and each page comes from a view of its own, so that a slow reader holds back nothing.

use std::io;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use quire_coordinator::tables::{Fault, Read as _, Table, after};
use serde_json::Value;

use super::facts::{self, Names};
use crate::cluster::Cluster;

/// Rows of a page: at some 2 KB of JSON half a megabyte.
const PAGE: usize = 256;

/// One row as JSON; `None` leaves it out.
pub(super) type Render = fn(&[u8], &Bytes, &Names) -> Result<Option<Value>, Fault>;

/// What a listing is read from.
pub(super) struct Listing {
    pub(super) cluster: Cluster,
    pub(super) table: Table,
    /// The key to begin with.
    pub(super) from: Vec<u8>,
    pub(super) render: Render,
    /// One object a line instead of one array.
    pub(super) lines: bool,
}

impl Listing {
    /// The answer, which is read while it is sent.
    pub(super) fn respond(self) -> Response {
        let kind = if self.lines { "application/x-ndjson" } else { "application/json" };
        let started = Some(Rest { listing: self, opened: false });
        let stream = futures::stream::unfold(started, |rest| async move {
            let rest = rest?;
            match rest.page() {
                Ok((text, rest)) => Some((Ok(text), rest)),
                // The reader sees that the answer broke off.
                Err(fault) => Some((Err(io::Error::other(fault.to_string())), None)),
            }
        });
        ([(header::CONTENT_TYPE, kind)], Body::from_stream(stream)).into_response()
    }
}

/// What is still to be sent.
struct Rest {
    listing: Listing,
    /// A row was sent.
    opened: bool,
}

impl Rest {
    /// The next piece of text, and what comes behind it.
    fn page(mut self) -> Result<(String, Option<Rest>), Fault> {
        let view = self.listing.cluster.view();
        let names = facts::names(&view)?;
        let rows = view.range(self.listing.table, &self.listing.from, PAGE)?;
        let last = rows.len() < PAGE;
        let lines = self.listing.lines;
        let mut text = String::new();
        for (key, stored) in rows {
            if let Some(value) = (self.listing.render)(&key, &stored, &names)? {
                if !lines {
                    text.push(if self.opened { ',' } else { '[' });
                }
                self.opened = true;
                text.push_str(&value.to_string());
                if lines {
                    text.push('\n');
                }
            }
            self.listing.from = after(&key);
        }
        if last && !lines {
            text.push_str(if self.opened { "]" } else { "[]" });
        }
        Ok((text, (!last).then_some(self)))
    }
}

#[cfg(test)]
mod tests {
    use quire_proto::store::CreateApiToken;
    use quire_proto::store::command::Kind;

    use super::*;
    use crate::cluster::Start;

    /// The audit of a node, which commands lengthen.
    async fn read(cluster: &Cluster, lines: bool) -> String {
        let from = Vec::new();
        let listing =
            Listing { cluster: cluster.clone(), table: Table::Audit, from, render: facts::audit, lines };
        let body = axum::body::to_bytes(listing.respond().into_body(), usize::MAX).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_listing_is_whole_however_many_pages_it_has() {
        let dir = tempfile::TempDir::new().unwrap();
        let listen = Some(std::net::SocketAddr::from(([127, 0, 0, 1], 0)));
        let start =
            Start { data_dir: dir.path().join("n1"), name: Some("n1".into()), listen, ..Start::default() };
        let cluster = Cluster::init(start, "site").await.unwrap();
        assert_eq!(
            (read(&cluster, false).await, read(&cluster, true).await),
            ("[]".to_owned(), String::new())
        );
        for n in 0..PAGE + 1 {
            let token =
                CreateApiToken { id: n.to_string(), role: "viewer".into(), ..CreateApiToken::default() };
            cluster.propose(Kind::CreateApiToken(token), std::time::Duration::from_secs(20)).await.unwrap();
            if n + 2 > PAGE {
                let array: Vec<Value> = serde_json::from_str(&read(&cluster, false).await).unwrap();
                let lines = read(&cluster, true).await;
                let lines: Vec<Value> =
                    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
                assert_eq!((array.len(), &array), (n + 1, &lines));
            }
        }
        cluster.shutdown().await;
    }
}
