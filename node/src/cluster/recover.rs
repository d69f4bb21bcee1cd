//! The way back when Raft has none: quorum is lost for good, and one node goes on alone with what it holds.
//!
//! Its whole log counts as committed, the others are no members any more, and every number goes on far above what
//! they may have used (`quire_coordinator::recover`). So the Web Admin takes this node for the newer one by its epoch,
//! and the others, should they come back, are told that they were removed.
//!
//! Never: runs while another process has the directory, or where quorum is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;

use openraft::EntryPayload;
use prost::Message;
use quire_coordinator::{recover, rows};
use quire_proto::cluster as wire_proto;
use quire_proto::store::{Member, Recover, command};
use rocksdb::WriteBatch;

use super::directory::Directory;
use super::launch::alone;
use super::parts::Parts;
use super::raft::{Entry, Id, LogId, Membership, Peer, Tuning, Vote, away, index_key, last_entry};
use super::start::database;
use super::store::{LOG, META, Store, StoreError, key};
use super::wire;
use super::{Me, OpenError};

const WHAT: &str = "recover the cluster";

/// Makes the node on `data_dir`, which does not run, its cluster's only member; answers its name.
pub(crate) async fn recover(data_dir: &Path, tuning: &Tuning) -> Result<String, OpenError> {
    let directory = Directory::lock(data_dir, false)?;
    let parts = Parts::load(&directory)?;
    let listen = parts.card.listen.parse().map_err(OpenError::during("read the node's address"))?;
    let me = parts.me(listen)?;
    let store = database(&directory.db(), &parts.card, false).await?;
    let (crowned, who) = (store.clone(), me.clone());
    away(move || crown(&crowned, &who)).await.map_err(OpenError::during(WHAT))?;
    let numbered = numbered(&store).map_err(OpenError::during(WHAT))?;
    let base = recover::base(numbered);
    let keep = member(&store, &me).map_err(OpenError::during(WHAT))?;
    let command = Recover { base, keep: Some(keep), by: "operator".into() };
    alone(&me, &parts.authorities, &store, command::Kind::Recover(command), None, tuning).await?;
    away(move || go_on_behind(&store, base)).await.map_err(OpenError::during(WHAT))?;
    Ok(me.name)
}

/// This node's row; a log that ends before its own admission gives a new one.
fn member(store: &Store, me: &Me) -> io::Result<Member> {
    let row = rows::member(&store.view()?, me.id).map_err(io::Error::other)?;
    Ok(row.unwrap_or_else(|| Member {
        id: me.id.0,
        name: me.name.clone(),
        zone: me.zone.clone(),
        address: me.address.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_version: quire_proto::CLUSTER_VERSION,
        witness: me.witness,
        incarnation: me.incarnation.clone(),
        ..Member::default()
    }))
}

/// The highest number that log and tables of `store` know: of an entry, and of the outbox.
pub(crate) fn numbered(store: &Store) -> io::Result<u64> {
    let meta = rows::meta(&store.view()?).map_err(io::Error::other)?;
    let last = last_entry(store)?.map_or(0, |id| id.index);
    Ok(last.max(meta.outbox_next).max(applied(store)?.map_or(0, |id| id.index)))
}

pub(crate) fn applied(store: &Store) -> io::Result<Option<LogId>> {
    let stored = store.meta(key::APPLIED)?;
    stored.map(|stored| Ok(wire::to_log_id(&wire::decode("the applied mark", &stored)?))).transpose()
}

fn vote(store: &Store) -> io::Result<Option<Vote>> {
    let stored = store.meta(key::VOTE)?;
    stored.map(|stored| Ok(wire::to_vote(&wire::decode("the vote", &stored)?))).transpose()
}

/// Only `me`, as a membership.
pub(crate) fn only(me: &Me) -> io::Result<Membership> {
    let peer = Peer { address: me.address.clone(), incarnation: me.incarnation.clone() };
    Membership::new(vec![BTreeSet::from([me.id.0])], BTreeMap::from([(me.id.0, peer)]))
        .map_err(io::Error::other)
}

/// Appends, behind all that the log holds, the membership of this node alone, as the leader of a new term would.
fn crown(store: &Store, me: &Me) -> io::Result<()> {
    let last = last_entry(store)?.max(applied(store)?);
    let voted = vote(store)?.map_or(0, |vote| vote.leader_id.term);
    let (term, index) = last.map_or((0, 0), |id| (id.leader_id.term, id.index));
    let leader_id = Id { term: voted.max(term) + 1, node_id: me.id.0 };
    let log_id = LogId { leader_id, index: index + 1 };
    let entry = Entry { log_id, payload: EntryPayload::Membership(only(me)?) };
    let vote = Vote { leader_id, committed: false };
    let mut batch = WriteBatch::default();
    batch.put_cf(store.family(LOG)?, index_key(log_id.index), wire::entry(&entry).encode_to_vec());
    batch.put_cf(store.family(META)?, key::VOTE, wire::vote(&vote).encode_to_vec());
    Ok(store.write_synced(batch)?)
}

/// Lets the log go on behind `base`, as if a snapshot through it had been received.
fn go_on_behind(store: &Store, base: u64) -> io::Result<()> {
    let last = applied(store)?.ok_or_else(|| StoreError::new(WHAT, "nothing is applied"))?;
    let mark: wire_proto::LogId = wire::log_id(&LogId { index: base, ..last });
    let mut batch = WriteBatch::default();
    let family = store.family(META)?;
    batch.put_cf(family, key::APPLIED, mark.encode_to_vec());
    batch.put_cf(family, key::PURGED, mark.encode_to_vec());
    batch.delete_range_cf(store.family(LOG)?, index_key(0), index_key(u64::MAX));
    Ok(store.write_synced(batch)?)
}
