//! This room's part of [`crate::sim`].

pub use super::admission::{Admission, Answers};
pub use super::changes::Feed;
pub use super::register::judge;

/// Raft's timing and sizes as a node has them, but for how many entries lie between two snapshots and behind the last.
///
/// # Panics
/// When openraft refuses the node's own configuration.
pub fn raft_config(cluster_name: &str, snapshot_entries: u64, keep_entries: u64) -> openraft::Config {
    let tuning = super::raft::Tuning { snapshot_entries, keep_entries, ..super::raft::Tuning::default() };
    match tuning.config(cluster_name).validate() {
        Ok(config) => config,
        Err(error) => panic!("the node's configuration of Raft is refused: {error}"),
    }
}
