//! openraft's own suite against our log and state machine, and what it does not look at.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::StorageError;
use openraft::storage::RaftStateMachine as _;
use openraft::testing::log::{StoreBuilder, Suite};
use prost::Message as _;
use quire_coordinator::tables::{Key, Read as _, ReadExt as _, Table};
use quire_proto::store::{Bootstrap, Command, Member, UpdateMember, command::Kind};
use rocksdb::WriteBatch;
use tempfile::TempDir;

use crate::cluster::changes::Feed;
use crate::cluster::machine::Machine;
use crate::cluster::raft::{Entry, Id, Log, LogId, Proposal, Types};
use crate::cluster::snapshot::Shelf;
use crate::cluster::store::{STATE, Store, Tables, state_key};
use crate::cluster::writer::{Joiner, Writer};

/// Remembers every store's threads, so that none outlives the test.
#[derive(Clone, Default)]
struct Builder(Arc<Mutex<Vec<Joiner>>>);

impl StoreBuilder<Types, Log, Machine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<Types>> {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let writer = Writer::start(&store, crate::cluster::timing::Timing::open(&store).unwrap()).unwrap();
        self.0.lock().unwrap().push(writer.joiner());
        let machine = Machine::open(store.clone(), Feed::new(), Shelf::default(), 0).unwrap();
        Ok((dir, Log::new(store, writer, Default::default()), machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_own_suite_passes() {
    let builder = Builder::default();
    Suite::<Types, Log, Machine, Builder, TempDir>::test_all(builder.clone()).await.unwrap();
    let joiners = std::mem::take(&mut *builder.0.lock().unwrap());
    assert!(joiners.len() > 10);
    tokio::task::spawn_blocking(|| joiners.into_iter().for_each(Joiner::join)).await.unwrap();
}

/// In memtables and in files, overwritten, removed one by one and as a range, in either family.
#[test]
fn many_rows_at_once_are_what_they_are_one_by_one() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let number = |n: u32| n.to_be_bytes();
    for (active, family) in STATE.into_iter().enumerate() {
        let family = store.family(family).unwrap();
        for round in 0..4_u32 {
            let mut batch = WriteBatch::default();
            for n in (round..4_000).step_by(3) {
                let row = format!("{active} {round} {n}");
                batch.put_cf(family, state_key(Table::Devices, &number(n)), &row);
                batch.put_cf(family, state_key(Table::Faces, &number(n)), row);
            }
            (round..4_000)
                .step_by(7)
                .for_each(|n| batch.delete_cf(family, state_key(Table::Faces, &number(n))));
            let (from, to) = (900 * round, 900 * round + 200);
            let [from, to] = [from, to].map(|n| state_key(Table::Devices, &number(n)));
            batch.delete_range_cf(family, from, to);
            store.write(batch).unwrap();
            if round < 3 {
                store.db().flush_cf(family).unwrap();
            }
        }
    }
    let keys: Vec<Key> = [Table::Devices, Table::Faces]
        .into_iter()
        .flat_map(|table| (0..4_100).map(move |n| (table, Bytes::copy_from_slice(&number(n)))))
        .collect();
    for active in [0, 1] {
        let tables = Tables { store: &store, active };
        let one_by_one: Vec<_> = keys.iter().map(|(table, key)| tables.get(*table, key).unwrap()).collect();
        assert!(one_by_one.iter().flatten().count() > 3_000);
        assert_eq!(tables.get_many(&keys).unwrap(), one_by_one);
    }
}

/// Each entry changes what the one before it wrote, and a batch holds but a few of them.
#[tokio::test]
async fn entries_see_what_is_still_being_written() {
    const OCTETS: usize = 400 << 10;
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut machine = Machine::open(store.clone(), Feed::new(), Shelf::default(), 0).unwrap();
    let member = Member { id: 1, name: "n".into(), ..Member::default() };
    let first = Kind::Bootstrap(Bootstrap {
        cluster_id: Bytes::from_static(b"sixteen octets!!"),
        first: Some(member),
        ..Bootstrap::default()
    });
    let change = |n: u64| {
        let trouble = format!("{n}{}", "x".repeat(OCTETS));
        Kind::UpdateMember(UpdateMember { id: 1, trouble: Some(trouble), ..UpdateMember::default() })
    };
    let id = |index| LogId { leader_id: Id { term: 1, node_id: 1 }, index };
    let entries = std::iter::once(first).chain((2..=20).map(change)).zip(1..).map(|(kind, index)| {
        let command = Command { kind: Some(kind), ..Command::default() };
        let payload = EntryPayload::Normal(Proposal(command.encode_to_vec().into()));
        Ok((Entry { log_id: id(index), payload }, None))
    });
    machine.apply(futures::stream::iter(entries.collect::<Vec<_>>())).await.unwrap();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(id(20)));
    let again = Machine::open(store.clone(), Feed::new(), Shelf::default(), 0);
    assert_eq!(again.unwrap().applied_state().await.unwrap().0, Some(id(20)));
    let member: Member = store.view().unwrap().row(Table::Members, &1_u64.to_be_bytes()).unwrap().unwrap();
    assert!(member.trouble.starts_with("20x") && member.trouble.len() == OCTETS + 2);
}
