//! openraft's own suite against our log and state machine.

use std::sync::{Arc, Mutex};

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::cluster::changes::Feed;
use crate::cluster::machine::Machine;
use crate::cluster::raft::{Log, Types};
use crate::cluster::snapshot::Shelf;
use crate::cluster::store::Store;
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
