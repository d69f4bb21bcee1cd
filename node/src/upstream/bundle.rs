//! Support bundles on their way to the Web Admin: made while the stream goes on, sent in pieces between its messages.
//!
//! A job whose stream broke is sent again, to whoever leads then, and its bundle is made anew: the Web Admin puts the
//! newer one in the place of what it has.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use quire_proto::upstream::from_site::What as Up;
use quire_proto::upstream::{BundlePart, JobResult};
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc;

use super::Bundler;

/// Octets of a part: beside batches it holds up nothing.
const PART: usize = 256 << 10;
/// Jobs that wait while another one's bundle is made. A bundle of a minute ago serves as well as another.
const WAITING: usize = 8;

/// Those that are wanted.
pub(super) struct Bundles {
    bundler: Arc<Bundler>,
    sending: Option<Sending>,
    waiting: VecDeque<String>,
}

/// One that is being made and sent.
struct Sending {
    job: String,
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    /// Received and not sent yet.
    piece: Bytes,
    offset: u64,
    digest: Context,
}

impl Bundles {
    pub(super) fn new(bundler: Arc<Bundler>) -> Bundles {
        Bundles { bundler, sending: None, waiting: VecDeque::new() }
    }

    /// True when none is wanted.
    pub(super) fn is_idle(&self) -> bool {
        self.sending.is_none() && self.waiting.is_empty()
    }

    /// Wants one for `job`; once, however often it is told.
    ///
    /// # Errors
    /// How the job ends when too many wait.
    pub(super) fn add(&mut self, job: String) -> Result<(), JobResult> {
        let known = self.sending.as_ref().is_some_and(|sending| sending.job == job);
        if known || self.waiting.contains(&job) {
            return Ok(());
        }
        if self.waiting.len() >= WAITING {
            let detail = format!("{WAITING} bundles wait already: take one of those");
            return Err(JobResult { id: job, ok: false, detail });
        }
        self.waiting.push_back(job);
        Ok(())
    }

    /// The next message of a bundle; waits for ever when none is wanted. Nothing is lost when it is dropped.
    pub(super) async fn next(&mut self) -> Up {
        if self.sending.is_none() {
            let Some(job) = self.waiting.pop_front() else { return std::future::pending().await };
            let (pieces, digest) = ((self.bundler)(), Context::new(&SHA256));
            self.sending = Some(Sending { job, pieces, piece: Bytes::new(), offset: 0, digest });
        }
        let Some(sending) = &mut self.sending else { return std::future::pending().await };
        let (message, last) = sending.next().await;
        if last {
            self.sending = None;
        }
        message
    }
}

impl Sending {
    /// The next message, and whether it is the last.
    async fn next(&mut self) -> (Up, bool) {
        if self.piece.is_empty() {
            match self.pieces.recv().await {
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => {
                    let (id, detail) = (self.job.clone(), format!("the bundle could not be made: {error}"));
                    return (Up::JobResult(JobResult { id, ok: false, detail }), true);
                }
                None => {
                    let sha256 = self.digest.clone().finish().as_ref().to_vec();
                    return (self.part(Bytes::new(), sha256), true);
                }
            }
        }
        let data = self.piece.split_to(self.piece.len().min(PART));
        self.digest.update(&data);
        (self.part(data, Vec::new()), false)
    }

    fn part(&mut self, data: Bytes, sha256: Vec<u8>) -> Up {
        let offset = self.offset;
        self.offset += data.len() as u64;
        Up::Bundle(BundlePart { job: self.job.clone(), offset, data, sha256: sha256.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ring::digest::digest;

    fn bundles(pieces: Vec<io::Result<Bytes>>) -> Bundles {
        let pieces = std::sync::Mutex::new(Some(pieces));
        Bundles::new(Arc::new(Box::new(move || {
            let pieces = pieces.lock().unwrap().take().unwrap_or_default();
            let (to, from) = mpsc::channel(8);
            for piece in pieces {
                to.try_send(piece).unwrap();
            }
            from
        })))
    }

    #[tokio::test]
    async fn a_bundle_is_sent_in_order_in_bounded_parts_with_its_hash_behind() {
        let whole: Vec<u8> = (0..PART + 5_000).map(|n| (n % 251) as u8).collect();
        let pieces = whole.chunks(PART + 1_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        let mut bundles = bundles(pieces);
        bundles.add("j1".into()).unwrap();
        bundles.add("j1".into()).unwrap();
        let mut got = Vec::new();
        let last = loop {
            let Up::Bundle(part) = bundles.next().await else { panic!() };
            assert_eq!((part.job.as_str(), part.offset), ("j1", got.len() as u64));
            assert!(part.data.len() <= PART);
            got.extend_from_slice(&part.data);
            if !part.sha256.is_empty() {
                break part;
            }
        };
        assert_eq!(got, whole);
        assert_eq!(last.sha256.as_ref(), digest(&SHA256, &whole).as_ref());
        assert!(bundles.is_idle());
    }

    #[tokio::test]
    async fn one_that_breaks_off_is_told_as_failed() {
        let mut bundles = bundles(vec![Ok(Bytes::from_static(b"x")), Err(io::Error::other("disk"))]);
        bundles.add("j1".into()).unwrap();
        assert!(matches!(bundles.next().await, Up::Bundle(_)));
        let Up::JobResult(result) = bundles.next().await else { panic!() };
        assert!(!result.ok && result.detail.contains("disk"));
        assert!(bundles.is_idle());
    }

    #[test]
    fn no_more_wait_than_may() {
        let mut bundles = bundles(Vec::new());
        for n in 0..WAITING {
            bundles.add(n.to_string()).unwrap();
        }
        assert!(!bundles.add("one more".into()).unwrap_err().ok);
        assert!(bundles.add("0".into()).is_ok(), "known");
    }
}
