//! What openraft is told about us: its types, its timing, and the log in RocksDB.
//!
//! Terms can have more than one leader (openraft's default leader ids), so a fencing number is always
//! a log index, never a term.

use std::fmt::{self, Debug};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{Config, LogState, OptionalSend, RaftLogReader, SnapshotPolicy};
use prost::Message;
use quire_coordinator::timing::{ELECTION_BEATS, UNKNOWN_MS};
use quire_proto::{cluster as wire_proto, store};
use rocksdb::WriteBatch;

use super::machine::Machine;
use super::pace::Paced;
use super::store::{LOG, META, Store, StoreError, key};
use super::volume::Volume;
use super::wire;
use super::writer::Writer;

openraft::declare_raft_types!(
    /// Our instance of openraft's types.
    pub(crate) Types:
        D = Proposal,
        R = Answer,
        Node = Peer,
        AsyncRuntime = Paced,
);

pub(crate) type Raft = openraft::Raft<Types, Machine>;
pub(crate) type Id = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type Membership = openraft::Membership<u64, Peer>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;

/// An encoded `store::Command`. Shown as its size, because it may carry sealed secrets.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposal({} octets)", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Debug::fmt(self, f)
    }
}

/// What `state::apply` answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answer(pub(crate) store::Outcome);

/// What the membership says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Peer {
    /// `host:port`, where it was first reachable; its row in the members table may know better.
    pub(crate) address: String,
    /// 16 random octets of its data directory.
    pub(crate) incarnation: Bytes,
}

/// Timing and sizes; tests make them other. Times are Raft's own: [`super::pace`] says how long they last.
#[derive(Clone, Debug)]
pub(crate) struct Tuning {
    pub(crate) heartbeat_ms: u64,
    pub(crate) election_min_ms: u64,
    pub(crate) election_max_ms: u64,
    /// A snapshot costs nothing here (it is a view), so it follows the log closely.
    pub(crate) snapshot_entries: u64,
    /// Of a few hundred octets, as most are; where they are larger, [`super::volume`] bounds the log.
    pub(crate) keep_entries: u64,
    /// The latest cluster version that this program knows.
    pub(crate) cluster_version: u32,
    /// How long nodes' certificates are good for.
    pub(crate) certificate_life: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        // The unit of Raft's clock, and what holds as long as nothing is measured. They decide only how long a silent
        // host is waited for; a process that is gone is seen by `presence`.
        Tuning {
            heartbeat_ms: UNKNOWN_MS,
            election_min_ms: ELECTION_BEATS.0 * UNKNOWN_MS,
            election_max_ms: ELECTION_BEATS.1 * UNKNOWN_MS,
            snapshot_entries: 2000,
            keep_entries: 50_000,
            cluster_version: quire_proto::CLUSTER_VERSION,
            certificate_life: super::keeper::LIFE,
        }
    }
}

impl Tuning {
    pub(crate) fn config(&self, cluster_name: &str) -> Config {
        Config {
            cluster_name: cluster_name.to_owned(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            enable_pre_vote: Some(true),
            // Check-quorum: a leader cut off falls silent, so its minority notices too.
            quorum_loss_probe_interval: Some(2 * self.election_max_ms + self.election_min_ms),
            // A restarted leader asks for votes, which brings its tables up to date first.
            enable_leader_restore: Some(false),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_entries),
            max_in_snapshot_log_to_keep: self.keep_entries,
            replication_lag_threshold: self.snapshot_entries + self.keep_entries,
            install_snapshot_timeout: 600_000,
            max_payload_entries: 512,
            // Waiting proposals are bounded by their proposers' patience; 4096 of 256 KiB is 1 GiB at worst.
            api_channel_size: Some(4096),
            backoff: "50ms 100ms 200ms ..1s".to_owned(),
            ..Config::default()
        }
    }
}

/// The log in RocksDB.
pub(crate) struct Log {
    store: Store,
    writer: Writer,
    volume: Volume,
}

/// Reads the log; any number may.
#[derive(Clone)]
pub(crate) struct Reader {
    store: Store,
}

/// What one replication message carries at most, so that a slow link still acknowledges in time.
const READ_OCTETS: usize = 1 << 20;

impl Log {
    /// Tells `volume` of what is appended.
    pub(crate) fn new(store: Store, writer: Writer, volume: Volume) -> Self {
        Log { store, writer, volume }
    }
}

/// The last entry of the log in `store`, or the last one purged from it.
pub(crate) fn last_entry(store: &Store) -> io::Result<Option<LogId>> {
    let mut walk = store.db().raw_iterator_cf(store.family(LOG)?);
    walk.seek_to_last();
    let last = walk.value().map(wire::stored_entry).transpose()?.map(|entry| entry.log_id);
    walk.status().map_err(|reason| StoreError::new("read the end of the log", reason))?;
    match (last, store.meta(key::PURGED)?) {
        (None, Some(purged)) => Ok(Some(wire::to_log_id(&wire::decode("the purge mark", &purged)?))),
        (last, _) => Ok(last),
    }
}

/// Index of [`last_entry`], 0 before the first.
pub(crate) fn last_index(store: &Store) -> io::Result<u64> {
    Ok(last_entry(store)?.map_or(0, |id| id.index))
}

pub(crate) fn index_key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

/// Runs what may wait for the disk away from the runtime's threads.
pub(crate) async fn away<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl Reader {
    fn entries(&self, from: u64, end: Option<u64>, octets: usize) -> io::Result<Vec<Entry>> {
        let family = self.store.family(LOG)?;
        let mut options = rocksdb::ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(index_key(end).to_vec());
        }
        let mut walk = self.store.db().raw_iterator_cf_opt(family, options);
        walk.seek(index_key(from));
        let (mut entries, mut gathered): (Vec<Entry>, usize) = (Vec::new(), 0);
        while let Some((_, value)) = walk.item() {
            if !entries.is_empty() && gathered + value.len() > octets {
                break;
            }
            gathered = gathered.saturating_add(value.len());
            let entry = wire::stored_entry(value)?;
            if entries.last().is_some_and(|before| before.log_id.index + 1 != entry.log_id.index) {
                return Err(wire::damaged("the log", format!("a hole before {}", entry.log_id)));
            }
            entries.push(entry);
            walk.next();
        }
        walk.status().map_err(|reason| StoreError::new("read the log", reason))?;
        Ok(entries)
    }
}

impl RaftLogReader<Types> for Reader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(index) => index.checked_add(1),
            Bound::Excluded(index) => Some(*index),
            Bound::Unbounded => None,
        };
        let reader = self.clone();
        away(move || reader.entries(from, end, usize::MAX)).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let reader = self.clone();
        away(move || reader.entries(start, Some(end), READ_OCTETS)).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let Some(stored) = self.store.meta(key::VOTE)? else { return Ok(None) };
        let vote: wire_proto::RaftVote = wire::decode("the vote", &stored)?;
        Ok(Some(wire::to_vote(&vote)))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let purged = match self.store.meta(key::PURGED)? {
            Some(stored) => Some(wire::to_log_id(&wire::decode("the purge mark", &stored)?)),
            None => None,
        };
        Ok(LogState { last_purged_log_id: purged, last_log_id: last_entry(&self.store)? })
    }

    async fn get_log_reader(&mut self) -> Reader {
        Reader { store: self.store.clone() }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.store.family(META)?, key::VOTE, wire::vote(vote).encode_to_vec());
        self.writer.write_synced(batch).await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batch = WriteBatch::default();
        let family = self.store.family(LOG)?;
        for entry in entries {
            let stored = wire::entry(&entry).encode_to_vec();
            self.volume.appended(entry.log_id.index, stored.len() as u64);
            batch.put_cf(family, index_key(entry.log_id.index), stored);
        }
        let flushed = Box::new(move |result| callback.io_completed(result));
        self.writer.write(batch, Some(flushed)).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let from = last.map_or(0, |id| id.index + 1);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(self.store.family(LOG)?, index_key(from), index_key(u64::MAX));
        self.writer.write(batch, None).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.store.family(META)?, key::PURGED, wire::log_id(&upto).encode_to_vec());
        batch.delete_range_cf(self.store.family(LOG)?, index_key(0), index_key(upto.index + 1));
        self.writer.write(batch, None).await
    }
}
