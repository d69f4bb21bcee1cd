//! The log's two threads: one writes in order, one syncs the write-ahead log for whoever waits.
//!
//! While a sync runs, further writes gather behind it and share the next one: group commit. Both
//! threads are joined before the database is dropped.

use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rocksdb::WriteBatch;
use tokio::sync::oneshot;

use super::store::Store;
use super::timing::Timing;
use crate::clock;

/// Raft waits for each write before it makes the next, so a handful is normal; a disk that hangs fills
/// the queue of at most 1024 callbacks (64 octets each), and then Raft waits: back-pressure, no loss.
const QUEUE: usize = 1024;

/// Told when the write is on disk, or why it is not.
type Flushed = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Job {
    batch: WriteBatch,
    written: oneshot::Sender<io::Result<()>>,
    flushed: Option<Flushed>,
}

/// The door to the two threads; clones share them.
#[derive(Clone)]
pub(crate) struct Writer {
    jobs: SyncSender<Job>,
    timing: Timing,
    threads: Arc<Threads>,
}

struct Threads(Mutex<Vec<JoinHandle<()>>>);

impl Writer {
    /// Starts the threads over `store`; `timing` learns how long synced writes take.
    pub(crate) fn start(store: &Store, timing: Timing) -> io::Result<Self> {
        let (jobs, todo) = sync_channel::<Job>(QUEUE);
        let (waiters, waiting) = sync_channel::<Flushed>(QUEUE);
        let (for_writer, for_syncer) = (store.clone(), store.clone());
        let writer = std::thread::Builder::new()
            .name("quire-log-write".into())
            .spawn(move || write(&for_writer, &todo, &waiters))?;
        let syncer = std::thread::Builder::new()
            .name("quire-log-sync".into())
            .spawn(move || sync(&for_syncer, &waiting))?;
        Ok(Writer { jobs, timing, threads: Arc::new(Threads(Mutex::new(vec![writer, syncer]))) })
    }

    /// Writes; returns when readers see it. `flushed` is told when it is on disk.
    pub(crate) async fn write(&self, batch: WriteBatch, flushed: Option<Flushed>) -> io::Result<()> {
        let (written, outcome) = oneshot::channel();
        let flushed = flushed.map(|flushed| self.timed(flushed));
        let mut job = Job { batch, written, flushed };
        // The queue is full only while the disk hangs; waiting must not block the runtime.
        loop {
            match self.jobs.try_send(job) {
                Ok(()) => break,
                Err(std::sync::mpsc::TrySendError::Full(again)) => {
                    job = again;
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                }
                Err(std::sync::mpsc::TrySendError::Disconnected(_)) => return Err(stopped()),
            }
        }
        outcome.await.map_err(|_| stopped())?
    }

    fn timed(&self, flushed: Flushed) -> Flushed {
        let (timing, begun) = (self.timing.clone(), clock::steady());
        Box::new(move |result| {
            if result.is_ok() {
                timing.synced(begun);
            }
            flushed(result);
        })
    }

    /// Writes and waits for the disk.
    pub(crate) async fn write_synced(&self, batch: WriteBatch) -> io::Result<()> {
        let (done, synced) = oneshot::channel();
        let flushed = Box::new(move |result| {
            let _ = done.send(result);
        });
        self.write(batch, Some(flushed)).await?;
        synced.await.map_err(|_| stopped())?
    }

    /// Handle for [`Joiner::join`], which waits for the threads once every writer is dropped.
    pub(crate) fn joiner(&self) -> Joiner {
        Joiner(self.threads.clone())
    }
}

/// Waits for the threads to end.
pub(crate) struct Joiner(Arc<Threads>);

impl Joiner {
    /// Blocks until both threads have ended; they end when the last [`Writer`] is dropped.
    pub(crate) fn join(self) {
        let threads = std::mem::take(&mut *self.0.0.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            let _ = thread.join();
        }
    }
}

fn stopped() -> io::Error {
    io::Error::other("the log's writer has stopped")
}

fn write(store: &Store, todo: &Receiver<Job>, waiters: &SyncSender<Flushed>) {
    while let Ok(job) = todo.recv() {
        let result = store.write(job.batch);
        let failure = result.as_ref().err().map(ToString::to_string);
        let _ = job.written.send(result.map_err(io::Error::from));
        match (job.flushed, failure) {
            (Some(flushed), Some(reason)) => flushed(Err(io::Error::other(reason))),
            (Some(flushed), None) => {
                if let Err(lost) = waiters.send(flushed) {
                    (lost.0)(Err(stopped()));
                }
            }
            (None, _) => {}
        }
    }
}

fn sync(store: &Store, waiting: &Receiver<Flushed>) {
    while let Ok(first) = waiting.recv() {
        let mut together = vec![first];
        together.extend(waiting.try_iter().take(QUEUE));
        let failure = store.sync().err().map(|error| error.to_string());
        for flushed in together {
            flushed(failure.as_ref().map_or(Ok(()), |reason| Err(io::Error::other(reason.clone()))));
        }
    }
}
