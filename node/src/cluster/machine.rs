//! The state machine: committed entries through `state::apply` into one batch with `applied`.
//!
//! Architecture Invariant: this is the only writer of state rows, and it writes them only together
//! with the log id that they reach. A fault stops the node; it never guesses. Nothing is committed of a cluster version
//! that this program does not know: from the entry on that raises it, others apply what this one might not understand.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use futures::future::{Either, select};
use futures::{Stream, StreamExt};
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use prost::Message;
use quire_coordinator::layer::Layer;
use quire_coordinator::tables::{Overlay, Read, Table};
use quire_coordinator::{rows, state, upgrade};
use quire_proto::store::{Command, Outcome, outcome};
use rocksdb::WriteBatch;
use tokio::task::{JoinError, JoinHandle, spawn_blocking};

use super::changes::{Feed, Touched};
use super::parts::random16;
use super::raft::{Answer, Entry, LogId, SnapshotMeta, StoredMembership, Types, away};
use super::snapshot::{Copy, Outgoing, Shelf, Staging};
use super::store::{META, STATE, Store, Tables, View, key, state_key};
use super::wire;

/// Entries that share one batch, and octets of theirs at which it is full: an entry of 500 readings makes rows of six times
/// its octets, so a batch holds some 8 MB, and one is worked out while another is written.
const TOGETHER: usize = 64;
const TOGETHER_OCTETS: usize = 1 << 20;

type Snapshot = openraft::type_config::alias::SnapshotOf<Types, Copy>;

/// The replicated tables in RocksDB.
pub(crate) struct Machine {
    store: Store,
    feed: Feed,
    shelf: Shelf,
    marks: Marks,
    /// The latest cluster version that this program knows.
    knows: u32,
    /// openraft asks for a snapshot only once it has wanted one.
    wanted: bool,
}

/// How far the tables are.
#[derive(Clone, Debug, Default)]
struct Marks {
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl Machine {
    /// Reads how far the tables of `store` are; tells `feed` of every change; views to be sent stand on `shelf`.
    /// `knows` is the latest cluster version that is understood here.
    pub(crate) fn open(store: Store, feed: Feed, shelf: Shelf, knows: u32) -> io::Result<Self> {
        let marks = Marks::read(store.meta(key::APPLIED)?, store.meta(key::MEMBERSHIP)?)?;
        Ok(Machine { store, feed, shelf, marks, knows, wanted: false })
    }
}

impl Marks {
    fn read(applied: Option<Vec<u8>>, membership: Option<Vec<u8>>) -> io::Result<Self> {
        let applied = match applied {
            Some(stored) => Some(wire::to_log_id(&wire::decode("the applied mark", &stored)?)),
            None => None,
        };
        let membership = match membership {
            Some(stored) => wire::to_stored_membership(wire::decode("the membership", &stored)?)?,
            None => StoredMembership::default(),
        };
        Ok(Marks { applied, membership })
    }

    fn of(view: &View) -> io::Result<Self> {
        Marks::read(view.meta(key::APPLIED)?, view.meta(key::MEMBERSHIP)?)
    }

    fn write(&self, store: &Store, batch: &mut WriteBatch) -> io::Result<()> {
        let family = store.family(META)?;
        if let Some(applied) = &self.applied {
            batch.put_cf(family, key::APPLIED, wire::log_id(applied).encode_to_vec());
        }
        batch.put_cf(family, key::MEMBERSHIP, wire::stored_membership(&self.membership).encode_to_vec());
        Ok(())
    }

    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() }
    }
}

fn size(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// Entries that were applied, before the store has what they wrote.
struct Done {
    active: usize,
    layer: Arc<Layer>,
    marks: Marks,
    answers: Vec<Answer>,
}

/// An error where the tables are of a cluster version that this program does not know.
fn check(tables: &impl Read, knows: u32) -> io::Result<()> {
    let meta = rows::meta(tables).map_err(io::Error::other)?;
    upgrade::check(&meta, knows).map_err(io::Error::other)
}

/// Applies entries in order, over what the store may not have yet.
fn work_out(
    store: &Store,
    below: Option<&Layer>,
    (mut marks, knows): (Marks, u32),
    entries: Vec<Entry>,
) -> io::Result<Done> {
    let active = store.active()?;
    let tables = Tables { store, active };
    let layered = below.map(|below| below.over(&tables));
    let mut overlay = Overlay::new(match &layered {
        Some(layered) => layered,
        None => &tables,
    });
    let mut answers = Vec::with_capacity(entries.len());
    for entry in entries {
        let index = entry.log_id.index;
        let outcome = match entry.payload {
            EntryPayload::Blank => Outcome { index, result: None },
            EntryPayload::Membership(membership) => {
                marks.membership = StoredMembership::new(Some(entry.log_id), membership);
                Outcome { index, result: None }
            }
            EntryPayload::Normal(proposal) => match Command::decode(proposal.0) {
                Ok(command) => state::apply(&mut overlay, index, &command).map_err(io::Error::other)?,
                Err(reason) => Outcome {
                    index,
                    result: Some(outcome::Result::Rejected(format!("not a command: {reason}"))),
                },
            },
        };
        marks.applied = Some(entry.log_id);
        answers.push(Answer(outcome));
    }
    check(&overlay, knows)?;
    Ok(Done { active, layer: Arc::new(overlay.into_layer()), marks, answers })
}

/// Commits what entries wrote as one batch with the marks they reach; tells of it.
fn commit(store: &Store, feed: &Feed, active: usize, layer: &Layer, marks: &Marks) -> io::Result<()> {
    let family = store.family(STATE[active])?;
    let mut batch = WriteBatch::default();
    let mut touched: Vec<Touched> = Vec::new();
    let mut ways = false;
    for (table, key, value) in layer.rows() {
        ways |= table == Table::Reach;
        if Feed::wants(table) {
            touched.push((table, key.clone()));
        }
        match value {
            Some(value) => batch.put_cf(family, state_key(table, key), value),
            None => batch.delete_cf(family, state_key(table, key)),
        }
    }
    marks.write(store, &mut batch)?;
    store.write(batch)?;
    if ways {
        feed.tell_ways();
    }
    feed.tell(touched);
    Ok(())
}

/// A batch on its way into the store, and whom it concerns.
struct Writing {
    layer: Arc<Layer>,
    marks: Marks,
    written: JoinHandle<io::Result<()>>,
    answers: Vec<(Option<ApplyResponder<Types>>, Answer)>,
}

impl Machine {
    fn begin_to_write(&self, done: Done, responders: Vec<Option<ApplyResponder<Types>>>) -> Writing {
        let Done { active, layer, marks, answers } = done;
        let (store, feed) = (self.store.clone(), self.feed.clone());
        let (rows, reached) = (layer.clone(), marks.clone());
        let written = spawn_blocking(move || commit(&store, &feed, active, &rows, &reached));
        Writing { layer, marks, written, answers: responders.into_iter().zip(answers).collect() }
    }

    /// Waits for a batch.
    async fn finish(&mut self, writing: Option<Writing>) -> io::Result<()> {
        let Some(mut writing) = writing else { return Ok(()) };
        let written = (&mut writing.written).await;
        self.tell(writing, written)
    }

    /// A batch is written: only now are its outcomes told.
    fn tell(&mut self, writing: Writing, written: Result<io::Result<()>, JoinError>) -> io::Result<()> {
        written.map_err(io::Error::other)??;
        self.marks = writing.marks;
        self.shelf.clear();
        for (responder, answer) in writing.answers {
            if let Some(responder) = responder {
                responder.send(answer);
            }
        }
        Ok(())
    }
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Copy;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.marks.applied, self.marks.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(TOGETHER);
        let mut ready = VecDeque::new();
        // While one batch is written, the next is worked out over it; never more than that one is under way.
        let mut writing: Option<Writing> = None;
        loop {
            if ready.is_empty() {
                // Who waits for a batch need not wait for what comes next.
                let next = match writing.take() {
                    Some(mut batch) => match select(chunks.next(), &mut batch.written).await {
                        Either::Left((next, _)) => {
                            writing = Some(batch);
                            next
                        }
                        Either::Right((written, _)) => {
                            self.tell(batch, written)?;
                            continue;
                        }
                    },
                    None => chunks.next().await,
                };
                let Some(chunk) = next else { break };
                ready.extend(chunk);
            }
            let (mut entries, mut responders, mut octets) = (Vec::new(), Vec::new(), 0);
            while octets < TOGETHER_OCTETS
                && let Some(item) = ready.pop_front()
            {
                let (entry, responder) = item?;
                octets += size(&entry);
                entries.push(entry);
                responders.push(responder);
            }
            let (store, below) = (self.store.clone(), writing.as_ref().map(|batch| batch.layer.clone()));
            let marks = writing.as_ref().map_or(&self.marks, |batch| &batch.marks).clone();
            let knows = self.knows;
            let done = away(move || work_out(&store, below.as_deref(), (marks, knows), entries)).await;
            self.finish(writing.take()).await?;
            writing = Some(self.begin_to_write(done?, responders));
        }
        self.finish(writing).await
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Builder> {
        self.wanted = true;
        Some(Builder { store: self.store.clone() })
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        self.wanted = true;
        Builder { store: self.store.clone() }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, copy: Copy) -> Result<(), io::Error> {
        let marks = Marks { applied: meta.last_log_id, membership: meta.last_membership.clone() };
        let (store, written, knows) = (self.store.clone(), marks.clone(), self.knows);
        away(move || {
            let staged = match copy {
                Copy::Staged(staged) => staged,
                Copy::View(outgoing) => Staging::copy(&store, &outgoing.view)?,
            };
            let number = staged.family_number();
            check(&Tables { store: &store, active: usize::from(number) }, knows)?;
            let mut batch = WriteBatch::default();
            batch.put_cf(store.family(META)?, key::ACTIVE, [number]);
            written.write(&store, &mut batch)?;
            store.write_synced(batch)?;
            Ok(())
        })
        .await?;
        self.marks = marks;
        self.wanted = true;
        self.feed.tell_everything();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        if !self.wanted {
            return Ok(None);
        }
        // What is under way goes on; else a view of now covers everything that an older snapshot would.
        let id = || Ok(data_encoding::HEXLOWER.encode(&random16().map_err(io::Error::other)?));
        let (meta, outgoing) = self.shelf.take(id, || moment(&self.store))?;
        Ok(Some(Snapshot { meta, snapshot: Copy::View(outgoing) }))
    }
}

fn moment(store: &Store) -> io::Result<(SnapshotMeta, View)> {
    let view = store.view()?;
    Ok((Marks::of(&view)?.meta(), view))
}

/// Takes a view: that is all a snapshot is until someone needs it sent.
pub(crate) struct Builder {
    store: Store,
}

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = Copy;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        // Under no name: nobody goes on with it, for whoever sends asks for the current one.
        let (meta, view) = moment(&self.store)?;
        Ok(Snapshot { meta, snapshot: Copy::View(Outgoing { id: String::new(), view }) })
    }
}
