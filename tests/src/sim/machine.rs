//! Raft's log and the state machine over a simulated [`Disk`], as the node has them over RocksDB: the same batches, the
//! same order, the same `state::apply`.

use std::fmt::Debug;
use std::io;
use std::ops::RangeBounds;
use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, IOFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{EntryPayload, LogState, OptionalSend, RaftLogReader, RaftSnapshotBuilder};
use prost::Message as _;
use quire_coordinator::state;
use quire_coordinator::tables::{MemoryTables, Overlay, Table};
use quire_node::sim::Feed;
use quire_proto::store::{Command, Outcome, outcome};

use super::checks::Checks;
use super::disk::Disk;
use super::raft::{Answer, Entry, LogId, SnapshotMeta, StoredMembership, Types, Vote};
use super::runtime::{chance, pick, sleep_ms, steady};
use super::timing::Timing;

/// Entries that share one batch, as in the node.
const TOGETHER: usize = 64;

/// The log.
pub struct Log(pub Disk, pub Timing);

/// Reads the log.
#[derive(Clone)]
pub struct Reader(Disk);

/// A disk takes its time now and then, so that tasks interleave.
async fn away() {
    if chance(100) {
        sleep_ms(pick(0..4)).await;
    }
}

impl RaftLogReader<Types> for Reader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        away().await;
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        Ok(self.0.look(|image| image.log.range(bounds).map(|(_, entry)| entry.clone()).collect()))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.0.look(|image| image.vote))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        Ok(self.0.look(|image| LogState { last_purged_log_id: image.purged, last_log_id: image.last() }))
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader(self.0.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = *vote;
        let number = self.0.write(|batch| batch.vote(vote))?;
        let (done, synced) = tokio::sync::oneshot::channel();
        let (timing, begun) = (self.1.clone(), steady());
        self.0.when_synced(
            number,
            Box::new(move |result| {
                timing.synced(begun);
                let _ = done.send(result);
            }),
        );
        synced.await.map_err(io::Error::other)?
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let (timing, begun) = (self.1.clone(), steady());
        away().await;
        match self.0.write(|batch| entries.into_iter().for_each(|entry| batch.append(entry))) {
            Ok(number) => {
                let flushed = move |result| {
                    timing.synced(begun);
                    callback.io_completed(result);
                };
                self.0.when_synced(number, Box::new(flushed));
                Ok(())
            }
            Err(full) => {
                callback.io_completed(Err(io::Error::new(full.kind(), full.to_string())));
                Err(full)
            }
        }
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index + 1);
        self.0.write(|batch| batch.remove(from..)).map(|_| ())
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.0
            .write(|batch| {
                batch.purged(upto);
                batch.remove(..=upto.index);
            })
            .map(|_| ())
    }
}

/// A whole state, to be sent.
#[derive(Clone)]
pub struct Copy {
    /// The tables.
    pub tables: Arc<MemoryTables>,
    /// Of their contents.
    pub digest: u64,
}

type Snapshot = openraft::type_config::alias::SnapshotOf<Types, Copy>;

/// The state machine of one process.
pub struct Machine {
    disk: Disk,
    feed: Feed,
    checks: Checks,
    /// For the checks: which node this is.
    node: u64,
    wanted: bool,
}

impl Machine {
    /// On a disk; tells `feed` what changes and `checks` what it does.
    #[must_use]
    pub fn new(disk: Disk, feed: Feed, checks: Checks, node: u64) -> Machine {
        Machine { disk, feed, checks, node, wanted: false }
    }

    /// As the node's `machine::commit`: applies entries in order and commits them with the marks they reach.
    fn commit(&self, entries: &[Entry]) -> io::Result<Vec<Answer>> {
        let (tables, applied, mut membership) = self.disk.look(|image| {
            // The overlay borrows its base for longer than the lock is held, so the entries are applied under it.
            let mut overlay = Overlay::new(&image.tables);
            let applied =
                entries.iter().map(|entry| obey(&mut overlay, entry)).collect::<io::Result<Vec<_>>>();
            let writes: Vec<(Table, Bytes, Option<Bytes>)> = overlay.into_writes().collect();
            (writes, applied, image.membership.clone())
        });
        let answers = applied?;
        for entry in entries {
            if let EntryPayload::Membership(change) = &entry.payload {
                membership = StoredMembership::new(Some(entry.log_id), change.clone());
            }
        }
        let touched = tables.iter().filter(|(table, ..)| Feed::wants(*table));
        let touched = touched.map(|(table, key, _)| (*table, key.clone())).collect();
        let last = entries.last().map(|entry| entry.log_id);
        self.disk.write(|batch| {
            batch.rows(tables.into_iter());
            batch.marks(last, membership);
        })?;
        self.feed.tell(touched);
        let digest = self.disk.look(|image| image.digest);
        self.checks.applied(self.node, entries, &answers, digest);
        Ok(answers)
    }
}

fn obey(overlay: &mut Overlay<'_>, entry: &Entry) -> io::Result<Answer> {
    let index = entry.log_id.index;
    let outcome = match &entry.payload {
        EntryPayload::Blank | EntryPayload::Membership(_) => Outcome { index, result: None },
        EntryPayload::Normal(proposal) => match Command::decode(proposal.0.clone()) {
            Ok(command) => state::apply(overlay, index, &command).map_err(io::Error::other)?,
            Err(reason) => {
                Outcome { index, result: Some(outcome::Result::Rejected(format!("not a command: {reason}"))) }
            }
        },
    };
    Ok(Answer(outcome))
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Copy;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok(self.disk.look(|image| (image.applied, image.membership.clone())))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        // Of any size, so that nodes cut the same entries differently and must come to the same state.
        let mut chunks =
            entries.ready_chunks(usize::try_from(pick(1..TOGETHER as u64 + 1)).unwrap_or(TOGETHER));
        while let Some(chunk) = chunks.next().await {
            let (mut entries, mut responders) = (Vec::new(), Vec::new());
            for item in chunk {
                let (entry, responder) = item?;
                entries.push(entry);
                responders.push(responder);
            }
            away().await;
            let answers = self.commit(&entries)?;
            for (responder, answer) in responders.into_iter().zip(answers) {
                if let Some(responder) = responder {
                    responder.send(answer);
                }
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.wanted = true;
        Builder { disk: self.disk.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, copy: Copy) -> Result<(), io::Error> {
        sleep_ms(pick(1..50)).await;
        self.disk.write_synced(|batch| {
            batch.tables(copy.tables.as_ref().clone(), copy.digest);
            batch.marks(meta.last_log_id, meta.last_membership.clone());
        })?;
        self.wanted = true;
        self.feed.tell_everything();
        self.checks.installed(self.node, meta.last_log_id.map_or(0, |id| id.index), copy.digest);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.wanted.then(|| snapshot(&self.disk)))
    }
}

fn snapshot(disk: &Disk) -> Snapshot {
    disk.look(|image| {
        let meta = SnapshotMeta { last_log_id: image.applied, last_membership: image.membership.clone() };
        Snapshot { meta, snapshot: Copy { tables: Arc::new(image.tables.clone()), digest: image.digest } }
    })
}

/// Takes a view.
pub struct Builder {
    disk: Disk,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Copy;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        Ok(snapshot(&self.disk))
    }
}
