//! openraft's own suite against our log and state machine.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use crate::cluster::machine::Machine;
use crate::cluster::raft::{Log, Types};
use crate::cluster::store::Store;
use crate::cluster::writer::{Joiner, Writer};

struct Builder;

/// Ends the threads before the directory goes.
struct Guard {
    joiner: Option<Joiner>,
    _dir: TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        // The suite drops log and machine before or after the guard, so joining happens elsewhere.
        if let Some(joiner) = self.joiner.take() {
            std::thread::spawn(move || joiner.join());
        }
    }
}

impl StoreBuilder<Types, Log, Machine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, Log, Machine), StorageError<Types>> {
        let dir = TempDir::new().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let writer = Writer::start(&store).unwrap();
        let guard = Guard { joiner: Some(writer.joiner()), _dir: dir };
        let machine = Machine::open(store.clone()).unwrap();
        Ok((guard, Log::new(store, writer), machine))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openrafts_own_suite_passes() {
    Suite::<Types, Log, Machine, Builder, Guard>::test_all(Builder).await.unwrap();
}
