//! The proxy that Chromium is given: it refuses everything and counts. Nothing that a page is meant to load comes this
//! way, so whoever asks here for somebody else is a page that tries to reach him, or Chromium itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

const REFUSAL: &[u8] = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
/// How long somebody who connects may take to say what he wants; connections are made in advance, too.
const WAITING: Duration = Duration::from_secs(2);
/// As much of a request as tells whom it is for.
const HEAD: usize = 512;

/// Refuses until it is dropped.
pub(super) struct Proxy {
    pub(super) address: SocketAddr,
    refused: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// One that does not count what is for `own`, host and port of the device itself: its icon, which nobody needs.
    pub(super) async fn open(own: Option<String>) -> std::io::Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let refused = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&refused);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // Each ends by itself; Chromium opens at most 32 connections to a proxy.
                tokio::spawn(refuse(stream, own.clone(), Arc::clone(&counted)));
            }
        });
        Ok(Proxy { address, refused, task })
    }

    /// Requests for somebody else so far.
    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn refuse(mut stream: TcpStream, own: Option<String>, refused: Arc<AtomicU64>) {
    let mut head = [0; HEAD];
    let Ok(Ok(length)) = tokio::time::timeout(WAITING, stream.read(&mut head)).await else { return };
    if length == 0 {
        return;
    }
    let line = String::from_utf8_lossy(&head[..length]);
    if !own.is_some_and(|own| is_for(&line, &own)) {
        refused.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("quire_browser_refused_total").increment(1);
    }
    // Whatever was asked, the answer is the same; one that nobody waits for is none.
    drop(stream.write_all(REFUSAL).await);
}

/// Whether a request is for this host and port (RFC 9112 section 3.2.2 and 3.2.3).
fn is_for(line: &str, own: &str) -> bool {
    let target = line.split(' ').nth(1).unwrap_or_default();
    let authority = target.split_once("://").map_or(target, |(_, rest)| rest);
    authority.split('/').next() == Some(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_whom_it_is_for() {
        assert!(is_for("GET http://127.0.0.1:80/favicon.ico HTTP/1.1", "127.0.0.1:80"));
        assert!(is_for("CONNECT 127.0.0.1:443 HTTP/1.1", "127.0.0.1:443"));
        for other in ["GET http://127.0.0.1:80.x/ HTTP/1.1", "GET http://127.0.0.1:8080/ HTTP/1.1", "GET", ""]
        {
            assert!(!is_for(other, "127.0.0.1:80"), "{other}");
        }
    }
}
