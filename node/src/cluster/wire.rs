//! Between openraft's types and the stored and sent messages: the one place where the two meet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message;
use quire_proto::cluster as wire;

use super::raft::{Entry, Id, LogId, Membership, Peer, Proposal, StoredMembership, Vote};

/// Octets that nobody of this version wrote.
pub(crate) fn damaged(what: &str, reason: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is damaged: {reason}"))
}

/// Decodes a stored message.
pub(crate) fn decode<M: Message + Default>(what: &str, octets: &[u8]) -> io::Result<M> {
    M::decode(octets).map_err(|reason| damaged(what, reason))
}

pub(crate) fn log_id(id: &LogId) -> wire::LogId {
    wire::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(crate) fn to_log_id(id: &wire::LogId) -> LogId {
    LogId { leader_id: Id { term: id.term, node_id: id.node }, index: id.index }
}

pub(crate) fn vote(vote: &Vote) -> wire::RaftVote {
    wire::RaftVote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(crate) fn to_vote(vote: &wire::RaftVote) -> Vote {
    Vote { leader_id: Id { term: vote.term, node_id: vote.node }, committed: vote.committed }
}

pub(crate) fn membership(membership: &Membership) -> wire::MembershipEntry {
    wire::MembershipEntry {
        configs: membership
            .get_joint_config()
            .iter()
            .map(|ids| wire::NodeSet { ids: ids.iter().copied().collect() })
            .collect(),
        nodes: membership
            .nodes()
            .map(|(id, peer)| wire::RaftNode {
                id: *id,
                address: peer.address.clone(),
                incarnation: peer.incarnation.clone(),
            })
            .collect(),
    }
}

pub(crate) fn to_membership(membership: wire::MembershipEntry) -> io::Result<Membership> {
    let configs: Vec<BTreeSet<u64>> =
        membership.configs.into_iter().map(|set| set.ids.into_iter().collect()).collect();
    let nodes: BTreeMap<u64, Peer> = membership
        .nodes
        .into_iter()
        .map(|node| (node.id, Peer { address: node.address, incarnation: node.incarnation }))
        .collect();
    if configs.is_empty() && nodes.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(configs, nodes).map_err(|reason| damaged("a membership", reason))
}

pub(crate) fn stored_membership(stored: &StoredMembership) -> wire::StoredMembership {
    wire::StoredMembership {
        id: stored.log_id().as_ref().map(log_id),
        membership: Some(membership(stored.membership())),
    }
}

pub(crate) fn to_stored_membership(stored: wire::StoredMembership) -> io::Result<StoredMembership> {
    let membership = to_membership(stored.membership.unwrap_or_default())?;
    Ok(StoredMembership::new(stored.id.as_ref().map(to_log_id), membership))
}

pub(crate) fn entry(entry: &Entry) -> wire::Entry {
    use wire::entry::Payload;
    let payload = match &entry.payload {
        EntryPayload::Blank => Payload::Blank(true),
        EntryPayload::Normal(proposal) => Payload::Command(proposal.0.clone()),
        EntryPayload::Membership(change) => Payload::Membership(membership(change)),
    };
    wire::Entry { id: Some(log_id(&entry.log_id)), payload: Some(payload) }
}

pub(crate) fn to_entry(entry: wire::Entry) -> io::Result<Entry> {
    use wire::entry::Payload;
    let id = entry.id.ok_or_else(|| damaged("a log entry", "it has no id"))?;
    let payload = match entry.payload {
        Some(Payload::Blank(_)) => EntryPayload::Blank,
        Some(Payload::Command(octets)) => EntryPayload::Normal(Proposal(octets)),
        Some(Payload::Membership(change)) => EntryPayload::Membership(to_membership(change)?),
        None => return Err(damaged("a log entry", "its payload is of no kind that this version knows")),
    };
    Ok(Entry { log_id: to_log_id(&id), payload })
}

/// Decodes a stored log entry.
pub(crate) fn stored_entry(octets: &[u8]) -> io::Result<Entry> {
    // From `Bytes`, so that commands share the buffer instead of being copied.
    let entry = wire::Entry::decode(Bytes::copy_from_slice(octets))
        .map_err(|reason| damaged("a log entry", reason))?;
    to_entry(entry)
}
