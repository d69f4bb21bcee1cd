//! A cluster that goes on as one node: after its quorum was lost for good, or from a backup.
//!
//! What the lost majority committed since is not in these tables, and some of it may be with the Web Admin. So nothing
//! is numbered again as they may have numbered it: the shell lets the log go on behind [`base`], which lifts every
//! later epoch and node id above theirs, and here the outbox is numbered anew from there. Entries that the Web Admin
//! has already are known to it by their reading's id.

use quire_proto::id::NodeId;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Link, Member, Recover};

use crate::rows::{self, number_key};
use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, Table};
use crate::{backlog, rotation};

/// Numbers left out at each recovery: at 280 entries a second, a century of what was lost. There is room for 2^23
/// recoveries, and for 8,000 in the 53 bits that JSON readers keep.
const GAP_BITS: u32 = 40;

/// Where numbers go on after a recovery of tables that know of numbers through `numbered`.
pub fn base(numbered: u64) -> u64 {
    ((numbered >> GAP_BITS) + 1) << GAP_BITS
}

pub(crate) fn apply(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    recover: &Recover,
) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    let Some(keep) = &recover.keep else { return Ok(refuse("a recovery names no node")) };
    if recover.base < meta.outbox_next || recover.base <= meta.outbox_base {
        return Ok(refuse(format!("numbers through {} are taken", meta.outbox_next)));
    }
    for member in rows::members(tables)? {
        tables.delete(Table::Members, &number_key(member.id));
    }
    tables.put(Table::Members, &number_key(keep.id), keep);
    // Those who are left out may have the cluster key that was on its way.
    rotation::removed(tables)?;
    forget_reach(tables, keep)?;
    backlog::renumber(tables, &mut meta, recover.base)?;
    meta.outbox_base = recover.base;
    // The epoch stays: the next claim's is higher.
    meta.claim_node = 0;
    meta.heard.clear();
    meta.link = Some(Link::default());
    if keep.upstream_certificate_der.is_empty() {
        // Nobody is left whom the Web Admin would know.
        meta.upstream = None;
    }
    rows::put_meta(tables, &meta);
    let what = format!("recovered the cluster with {} as its only node", keep.name);
    audit(tables, index, at_ms, &recover.by, what);
    Ok(Answer::Done(true))
}

fn forget_reach(tables: &mut Overlay<'_>, keep: &Member) -> Result<(), Fault> {
    for row in rows::reaches(tables)?.iter().filter(|row| row.node != keep.id) {
        let segment = row.reach.as_ref().map_or("", |reach| reach.segment.as_str());
        tables.delete(Table::Reach, &rows::reach_key(NodeId(row.node), segment));
    }
    Ok(())
}
