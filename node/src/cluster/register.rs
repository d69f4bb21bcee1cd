//! Who each node was when last seen: what a directory that was rolled back or cloned cannot know.
//!
//! Every node keeps, for every other, how often its directory had been started, which process that was, and
//! up to where it had acknowledged the log; in its own database, so that it outlives both. A process is
//! admitted only if its directory is at least as new, and no other process of that node is there.
//!
//! Never: forgets a higher number for a lower one, or takes part in what the tables say.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use prost::Message;
use quire_proto::cluster::attend_reply::Verdict;
use quire_proto::cluster::{AttendRequest, Seen};
use rocksdb::WriteBatch;

use super::store::{META, Store, StoreError, key};
use super::wire;

/// Shared by the listener, which judges, and presence, which notes what was acknowledged.
#[derive(Clone)]
pub(crate) struct Register {
    store: Store,
    /// Processes with an open stream, and how many.
    present: Arc<Mutex<BTreeMap<u64, (Bytes, usize)>>>,
}

/// An admitted stream; while it is open no other process of that node is admitted.
pub(crate) struct Place {
    register: Register,
    node: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut present = self.register.present.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, streams)) = present.get_mut(&self.node) {
            *streams = streams.saturating_sub(1);
            if *streams == 0 {
                present.remove(&self.node);
            }
        }
    }
}

fn key_of(node: u64) -> Vec<u8> {
    [key::SEEN, node.to_be_bytes().as_slice()].concat()
}

/// What an introduction means to one who remembers `seen` of that node, and has `present` of its processes in touch:
/// refused, or welcome, with what is to be remembered from now on where that changed.
///
/// # Errors
/// The refusal.
pub fn judge(present: Option<&Bytes>, seen: &Seen, asks: &AttendRequest) -> Result<Option<Seen>, Verdict> {
    if present.is_some_and(|session| *session != asks.session) {
        return Err(Verdict::Duplicate);
    }
    if seen.session == asks.session {
        return Ok(None);
    }
    // The same count in another process: two histories of one directory.
    if asks.boot <= seen.boot || asks.last < seen.acked {
        return Err(Verdict::Older);
    }
    Ok(Some(Seen { boot: asks.boot, session: asks.session.clone(), acked: seen.acked }))
}

impl Register {
    pub(crate) fn new(store: Store) -> Self {
        Register { store, present: Arc::default() }
    }

    fn seen(&self, node: u64) -> std::io::Result<Seen> {
        match self.store.meta(&key_of(node))? {
            Some(stored) => wire::decode("who was seen", &stored),
            None => Ok(Seen::default()),
        }
    }

    fn put(&self, batch: &mut WriteBatch, node: u64, seen: &Seen) -> Result<(), StoreError> {
        batch.put_cf(self.store.family(META)?, key_of(node), seen.encode_to_vec());
        Ok(())
    }

    /// Judges an introduction; who is welcome has a place for as long as it keeps it.
    pub(crate) fn admit(&self, node: u64, asks: &AttendRequest) -> std::io::Result<Result<Place, Verdict>> {
        let mut present = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        match judge(present.get(&node).map(|(session, _)| session), &self.seen(node)?, asks) {
            Err(verdict) => return Ok(Err(verdict)),
            Ok(None) => {}
            Ok(Some(seen)) => {
                let mut batch = WriteBatch::default();
                self.put(&mut batch, node, &seen)?;
                self.store.write(batch)?;
            }
        }
        present.entry(node).or_insert_with(|| (asks.session.clone(), 0)).1 += 1;
        Ok(Ok(Place { register: self.clone(), node }))
    }

    /// Notes up to where nodes acknowledged committed entries.
    pub(crate) fn note(&self, acked: impl IntoIterator<Item = (u64, u64)>) -> std::io::Result<()> {
        let _one_writer = self.present.lock().unwrap_or_else(PoisonError::into_inner);
        let mut batch = WriteBatch::default();
        for (node, acked) in acked {
            let mut seen = self.seen(node)?;
            if seen.acked < acked {
                seen.acked = acked;
                self.put(&mut batch, node, &seen)?;
            }
        }
        if !batch.is_empty() {
            self.store.write(batch)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(session: u8, boot: u64, last: u64) -> AttendRequest {
        AttendRequest { session: vec![session; 16].into(), boot, last, ..AttendRequest::default() }
    }

    #[test]
    fn only_the_newest_history_of_a_node_is_admitted_and_only_once() {
        let dir = tempfile::TempDir::new().unwrap();
        let register = Register::new(Store::open(dir.path()).unwrap());
        let verdict = |asked: AttendRequest| register.admit(2, &asked).unwrap().err();
        let place = register.admit(2, &asks(1, 5, 100)).unwrap().unwrap_or_else(|_| panic!("refused"));
        let again = register.admit(2, &asks(1, 5, 100)).unwrap().unwrap_or_else(|_| panic!("refused"));
        register.note([(2, 180), (3, 7)]).unwrap();
        register.note([(2, 170)]).unwrap();
        drop(place);
        assert_eq!(verdict(asks(2, 6, 200)), Some(Verdict::Duplicate), "one stream is still open");
        drop(again);
        assert_eq!(verdict(asks(2, 6, 179)), Some(Verdict::Older), "it acknowledged 180");
        assert_eq!(verdict(asks(2, 5, 200)), Some(Verdict::Older), "another process had that start");
        assert_eq!(verdict(asks(2, 6, 180)), None);
        assert_eq!(verdict(asks(2, 6, 180)), None, "the same process once more");
        assert_eq!(verdict(asks(1, 5, 100)), Some(Verdict::Older), "the first came back after the second");
        assert!(register.admit(4, &asks(1, 1, 0)).unwrap().is_ok(), "an unknown node is new");
    }
}
