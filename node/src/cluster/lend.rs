//! What one node does for another beside Raft: showing a device's page in its browser (`Show`).
//!
//! This room only carries question and answer between members; who asks whom, and what may be shown, is decided above.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use quire_proto::cluster as proto;
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

/// Pages that wait for this node's browser; of those that come when there are so many, the asker is told at once.
const WAITING: usize = 8;

/// What a page takes at the most with its turn and the browser's start; scripts wait no longer than 20 s.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A page that another node wants shown.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// Which, as the other node says it.
    pub(crate) page: proto::ShowRequest,
    /// Closed when nobody waits for it any more.
    pub(crate) reply: oneshot::Sender<proto::ShowReply>,
}

/// Where questions of other nodes wait, and who takes them.
pub(crate) struct Counter {
    enter: mpsc::Sender<Wanted>,
    queue: Mutex<Option<mpsc::Receiver<Wanted>>>,
}

impl Counter {
    pub(super) fn new() -> Counter {
        let (enter, queue) = mpsc::channel(WAITING);
        Counter { enter, queue: Mutex::new(Some(queue)) }
    }

    /// For the one who serves them.
    pub(super) fn take(&self) -> Option<mpsc::Receiver<Wanted>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where another node's questions enter.
    pub(super) fn door(&self) -> Door {
        Door(self.enter.clone())
    }
}

/// Takes questions of other nodes.
#[derive(Clone)]
pub(crate) struct Door(mpsc::Sender<Wanted>);

impl Door {
    /// Waits for the page. Whoever drops this gives it up, and so does the browser.
    pub(super) async fn show(&self, page: proto::ShowRequest) -> Result<proto::ShowReply, Status> {
        let (reply, shown) = oneshot::channel();
        let busy = |_| Status::resource_exhausted("too many pages wait here, or none is shown here");
        self.0.try_send(Wanted { page, reply }).map_err(busy)?;
        shown.await.map_err(|_| Status::unavailable("this node shows no pages"))
    }
}
