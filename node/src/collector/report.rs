//! From what a node learnt to what the cluster keeps: into the spool at once, out of it when committed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quire_proto::id::Epoch;
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Observation, Record};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::Cluster;

/// Observations in one entry of the log: with 1 KB each an entry of half a megabyte, which a follower
/// fetches between two heartbeats.
const BATCH: usize = 500;

/// Octets in one entry of the log. A quarter of what a proposal may hold (`PROPOSAL_OCTETS`), so that
/// devices that say a lot cannot wedge the spool with a batch that is refused for ever.
const BATCH_OCTETS: usize = 1 << 20;

/// A moment for others to come along, so that a busy node commits hundreds at once.
const GATHER: Duration = Duration::from_millis(50);

/// How long a commit may take before the batch is offered again; sent twice it still counts once.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries while nothing can be committed.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes observations; cheap to clone.
#[derive(Clone)]
pub(crate) struct Reporter {
    cluster: Cluster,
    news: Arc<Notify>,
}

impl Reporter {
    /// A reporter and the task that commits what it takes.
    pub(crate) fn new(cluster: Cluster) -> (Reporter, Proposer) {
        let news = Arc::new(Notify::new());
        let proposer = Proposer { cluster: cluster.clone(), news: Arc::clone(&news) };
        (Reporter { cluster, news }, proposer)
    }

    /// What was seen at an address, now.
    pub(super) fn observation(
        &self,
        unit: &str,
        epoch: Epoch,
        peer: SocketAddr,
        hops: Option<u32>,
        what: What,
    ) -> Observation {
        Observation { address: peer.to_string(), hops, ..self.of_unit(unit, epoch, what) }
    }

    /// What concerns a unit as a whole, now.
    pub(super) fn of_unit(&self, unit: &str, epoch: Epoch, what: What) -> Observation {
        Observation {
            unit: unit.to_owned(),
            epoch: epoch.0,
            at_ms: clock::now().0,
            what: Some(what),
            ..Observation::default()
        }
    }

    /// Keeps an observation on this node's disk; it is committed soon.
    pub(super) async fn report(&self, observation: Observation) {
        match self.cluster.spool().append(observation) {
            Ok(_) => self.news.notify_one(),
            Err(error) => tracing::error!(%error, "an observation is lost: the spool takes nothing"),
        }
    }
}

/// Commits what the spool holds, oldest first, one batch at a time.
pub(crate) struct Proposer {
    cluster: Cluster,
    news: Arc<Notify>,
}

impl Proposer {
    /// Works until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.empty_the_spool() => {}
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = self.news.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(PAUSE) => {}
            }
        }
    }

    async fn empty_the_spool(&self) {
        let spool = self.cluster.spool();
        loop {
            let observations = match spool.page(BATCH) {
                Ok(page) if page.is_empty() => return,
                Ok(page) => one_entry(page),
                Err(error) => {
                    tracing::error!(%error, "the spool cannot be read");
                    return;
                }
            };
            let record = Record { node: self.cluster.me().id.0, observations };
            match self.cluster.propose(Kind::Record(record), PATIENCE).await.map(|outcome| outcome.result) {
                Ok(Some(Answer::RecordedThrough(through))) => {
                    if let Err(error) = spool.trim(through) {
                        tracing::error!(%error, "the spool cannot be trimmed");
                        return;
                    }
                }
                Ok(other) => {
                    tracing::error!(?other, "a record had an answer that is none");
                    return;
                }
                // Without quorum this is the expected answer: the spool keeps everything.
                Err(error) => {
                    tracing::debug!(%error, "observations wait in the spool");
                    return;
                }
            }
        }
    }
}

/// As many of the oldest observations as fit into one entry, but always one.
fn one_entry(mut page: Vec<Bytes>) -> Vec<Bytes> {
    let mut octets = 0;
    let fitting = page.iter().take_while(|observation| {
        octets += observation.len();
        octets <= BATCH_OCTETS
    });
    let fitting = fitting.count().max(1);
    page.truncate(fitting);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_holds_what_fits_and_always_one() {
        let page = |sizes: &[usize]| sizes.iter().map(|size| Bytes::from(vec![0; *size])).collect::<Vec<_>>();
        assert_eq!(one_entry(page(&[10; 500])).len(), 500);
        assert_eq!(one_entry(page(&[60_000; 500])).len(), BATCH_OCTETS / 60_000);
        assert_eq!(one_entry(page(&[BATCH_OCTETS + 1, 10])).len(), 1);
    }
}
