//! Another cluster key, another CA: what is asked for, how far it is, and what comes next.
//!
//! ```text
//! cluster key   asked -> begun (a generation and its hash) -> every living member has it -> resealed: in force
//! CA            asked -> begun (trusted beside the old) -> every member shows a certificate of it -> the only one
//! ```
//!
//! A step is an entry of the log, made by the leader under its claim; a new leader goes on from the tables. A key is
//! never in the log: a member fetches it from one that has it. The key comes first where both are asked for, so that
//! the new CA is sealed with the new key. A member that is away holds up the CA, whose old one it would be locked out
//! without, and not the key, which it fetches when it comes back.

use std::collections::BTreeSet;

use bytes::Bytes;
use quire_proto::id::{Millis, NodeId};
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::rotate::What;
use quire_proto::store::{
    BeginCa, BeginKey, CaChange, FinishCa, KeyChange, Member, PutSettings, Reseal, Rotate, RotationRow,
    TokenRow, UpdateMember,
};

use crate::rows;
use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, Read, ReadExt, Table};
use crate::upgrade;

const ROW: &[u8] = b"rotation";

/// So long a leader without the key looks for a member that has it before it makes another one, milliseconds: the
/// look itself takes a round trip.
pub const GIVE_UP_MS: u64 = 10_000;

/// What is in force and what is changing.
///
/// # Errors
/// When the store fails or the row is damaged.
pub fn row(tables: &(impl Read + ?Sized)) -> Result<RotationRow, Fault> {
    Ok(tables.row(Table::Rotation, ROW)?.unwrap_or_default())
}

/// The generation of the cluster key that secrets are sealed with, counted from 1.
pub fn in_force(row: &RotationRow) -> u64 {
    row.key_generation.max(1)
}

/// The generations that a member should have: that in force, and the next one once it is made; with their hashes.
pub fn wanted(row: &RotationRow) -> Vec<(u64, &Bytes)> {
    let next = row.key.as_ref().filter(|key| key.generation > 0);
    let mut wanted = vec![(in_force(row), &row.key_sha256)];
    wanted.extend(next.map(|key| (key.generation, &key.sha256)));
    wanted
}

/// The new CA, once it is made.
pub fn next_ca(row: &RotationRow) -> Option<&CaChange> {
    row.ca.as_ref().filter(|ca| !ca.certificate_der.is_empty())
}

/// What the leader sees.
#[derive(Clone, Debug)]
pub struct Scene<'a> {
    /// The tables'.
    pub row: &'a RotationRow,
    /// All of them.
    pub members: &'a [Member],
    /// Raft's.
    pub voters: &'a BTreeSet<NodeId>,
    /// Who answers, the leader included.
    pub alive: &'a BTreeSet<NodeId>,
    /// The leader.
    pub me: NodeId,
    /// Generations that the leader has.
    pub held: &'a BTreeSet<u64>,
    /// The leader's time.
    pub now: Millis,
}

/// What the leader does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the key of this generation, keeps it, and commits `BeginKey`.
    MakeKey(u64),
    /// Seals everything with this generation and commits `Reseal`.
    Reseal(u64),
    /// Makes a CA and commits `BeginCa`.
    MakeCa,
    /// Commits `FinishCa`.
    FinishCa,
}

/// The next step, or `None` while members are waited for or nothing is asked for.
pub fn next(scene: &Scene<'_>) -> Option<Step> {
    match (&scene.row.key, &scene.row.ca) {
        (Some(key), _) => next_of_key(scene, key),
        (None, Some(ca)) if ca.certificate_der.is_empty() => {
            scene.held.contains(&in_force(scene.row)).then_some(Step::MakeCa)
        }
        (None, Some(_)) => lacking_ca(scene.row, scene.members).is_empty().then_some(Step::FinishCa),
        (None, None) => None,
    }
}

fn next_of_key(scene: &Scene<'_>, key: &KeyChange) -> Option<Step> {
    // What is sealed must be opened before it is sealed anew.
    let opens = scene.held.contains(&in_force(scene.row));
    let fresh = in_force(scene.row).max(scene.row.key_begun) + 1;
    if key.generation == 0 {
        return opens.then_some(Step::MakeKey(fresh));
    }
    let has = |member: &&Member| match member.id == scene.me.0 {
        true => scene.held.contains(&key.generation),
        false => member.key_generation >= key.generation,
    };
    let holders: BTreeSet<NodeId> = scene.members.iter().filter(has).map(|m| NodeId(m.id)).collect();
    if !scene.held.contains(&key.generation) {
        // Whoever made it may be gone for good. Where a living member has it, it is about to be fetched.
        let late = scene.now.0 >= key.begun_at_ms.saturating_add(GIVE_UP_MS);
        return (opens && late && holders.is_disjoint(scene.alive)).then_some(Step::MakeKey(fresh));
    }
    let known = |id: &&NodeId| scene.members.iter().any(|member| member.id == id.0);
    let living = scene.alive.iter().filter(known).all(|id| holders.contains(id));
    let voters = scene.voters.intersection(&holders).count();
    (opens && living && voters * 2 > scene.voters.len()).then_some(Step::Reseal(key.generation))
}

/// The members without a certificate of the new CA; none where there is no new CA.
pub fn lacking_ca<'m>(row: &RotationRow, members: &'m [Member]) -> Vec<&'m Member> {
    let Some(ca) = next_ca(row) else { return Vec::new() };
    members.iter().filter(|member| member.ca_sha256 != ca.certificate_sha256).collect()
}

/// The members without the next cluster key; none where there is none.
pub fn lacking_key<'m>(row: &RotationRow, members: &'m [Member]) -> Vec<&'m Member> {
    let generation = row.key.as_ref().map_or(0, |key| key.generation);
    members.iter().filter(|member| member.key_generation < generation).collect()
}

/// Whether a certificate of a member is one by which the others know it: by its public key, as `same` compares them.
/// Members whose row has none, because an older program wrote it, are not judged.
pub fn is_known(member: &Member, mut same: impl FnMut(&[u8]) -> bool) -> bool {
    let known = [&member.certificate_der, &member.certificate_before_der];
    member.certificate_der.is_empty() || known.into_iter().any(|der| !der.is_empty() && same(der))
}

fn put(tables: &mut Overlay<'_>, row: &RotationRow) {
    tables.put(Table::Rotation, ROW, row);
}

/// Why settings cannot be put: sealed with another key than the one in force.
pub(crate) fn sealed_otherwise(tables: &Overlay<'_>, put: &PutSettings) -> Result<Option<String>, Fault> {
    let in_force = in_force(&row(tables)?);
    let same = put.key_generation.max(1) == in_force;
    Ok((!same).then(|| SEALED_OTHERWISE.to_owned()))
}

/// What those are told whose settings were sealed with a key that is not in force any more.
pub const SEALED_OTHERWISE: &str =
    "the cluster key was changed in this very moment: apply the settings again";

/// Whether a refusal is of the moment alone: a job that met it is tried again.
pub(crate) fn is_for_now(answer: &Answer) -> bool {
    matches!(answer, Answer::Rejected(why) if why == SEALED_OTHERWISE)
}

fn claims(tables: &Overlay<'_>, claim: u64) -> Result<Option<Answer>, Fault> {
    let in_force = rows::meta(tables)?.claim_epoch;
    Ok((claim != in_force).then(|| refuse(format!("the claim {claim} is not in force"))))
}

pub(crate) fn ask(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    rotate: &Rotate,
) -> Result<Answer, Fault> {
    if rows::meta(tables)?.cluster_version < upgrade::ROTATION {
        return Ok(refuse(
            "some nodes run a release that cannot do this: upgrade them first (`quire members` lists the versions)",
        ));
    }
    let mut row = row(tables)?;
    let (by, asked_at_ms) = (rotate.by.clone(), at_ms);
    let what = match rotate.what() {
        What::ClusterKey if row.key.is_some() => return Ok(refuse(under_way("cluster key"))),
        What::Authority if row.ca.is_some() => return Ok(refuse(under_way("CA"))),
        What::ClusterKey => {
            row.key = Some(KeyChange { by, asked_at_ms, ..KeyChange::default() });
            "asked for another cluster key"
        }
        What::Authority => {
            row.ca = Some(CaChange { by, asked_at_ms, ..CaChange::default() });
            "asked for another CA"
        }
    };
    put(tables, &row);
    audit(tables, index, at_ms, &rotate.by, what.to_owned());
    Ok(Answer::Changes(what.to_owned()))
}

fn under_way(what: &str) -> String {
    format!("the {what} is being changed already: `quire certificates` shows whom that waits for")
}

pub(crate) fn begin_key(tables: &mut Overlay<'_>, at_ms: u64, begin: &BeginKey) -> Result<Answer, Fault> {
    if let Some(refused) = claims(tables, begin.claim)? {
        return Ok(refused);
    }
    let mut row = row(tables)?;
    let fresh = begin.generation > in_force(&row).max(row.key_begun);
    let Some(key) = row.key.as_mut().filter(|_| fresh) else {
        return Ok(refuse("no such generation of the cluster key is wanted"));
    };
    key.generation = begin.generation;
    key.sha256.clone_from(&begin.sha256);
    key.begun_at_ms = at_ms;
    row.key_begun = begin.generation;
    put(tables, &row);
    Ok(Answer::Done(true))
}

pub(crate) fn reseal(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    reseal: &Reseal,
) -> Result<Answer, Fault> {
    if let Some(refused) = claims(tables, reseal.claim)? {
        return Ok(refused);
    }
    let (mut meta, mut row) = (rows::meta(tables)?, row(tables)?);
    let Some(key) = row.key.take().filter(|key| key.generation == reseal.generation) else {
        return Ok(refuse("no such generation of the cluster key is wanted"));
    };
    let next = next_ca(&row).map_or(Bytes::new(), |ca| ca.certificate_sha256.clone());
    let read = (reseal.settings_index, reseal.ca_index, &reseal.next_ca_sha256);
    if read != (meta.settings_index, row.ca_index, &next) {
        return Ok(refuse("settings or CA changed meanwhile: what is sealed is read again"));
    }
    meta.settings_toml.clone_from(&reseal.settings_toml);
    meta.ca_private_key_sealed.clone_from(&reseal.ca_private_key_sealed);
    if let Some(ca) = row.ca.as_mut().filter(|ca| !ca.certificate_der.is_empty()) {
        ca.private_key_sealed.clone_from(&reseal.next_ca_private_key_sealed);
    }
    rows::put_meta(tables, &meta);
    row.key_generation = key.generation;
    row.key_sha256 = key.sha256;
    (row.key_index, row.key_at_ms) = (index, at_ms);
    put(tables, &row);
    audit(tables, index, at_ms, &key.by, format!("cluster key {} is in force", row.key_generation));
    Ok(Answer::Done(true))
}

pub(crate) fn begin_ca(tables: &mut Overlay<'_>, begin: &BeginCa) -> Result<Answer, Fault> {
    if let Some(refused) = claims(tables, begin.claim)? {
        return Ok(refused);
    }
    let mut row = row(tables)?;
    if begin.key_generation != in_force(&row) {
        return Ok(refuse("the cluster key was changed meanwhile: the CA's key is sealed again"));
    }
    let Some(ca) = row.ca.as_mut().filter(|ca| ca.certificate_der.is_empty()) else {
        return Ok(refuse("no new CA is wanted"));
    };
    ca.certificate_der.clone_from(&begin.certificate_der);
    ca.private_key_sealed.clone_from(&begin.private_key_sealed);
    ca.cross_der.clone_from(&begin.cross_der);
    ca.certificate_sha256.clone_from(&begin.certificate_sha256);
    put(tables, &row);
    Ok(Answer::Done(true))
}

pub(crate) fn finish_ca(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    finish: &FinishCa,
) -> Result<Answer, Fault> {
    if let Some(refused) = claims(tables, finish.claim)? {
        return Ok(refused);
    }
    let mut row = row(tables)?;
    let members = rows::members(tables)?;
    if let Some(member) = lacking_ca(&row, &members).first() {
        return Ok(refuse(format!("node `{}` has no certificate of the new CA yet", member.name)));
    }
    let made = |ca: &CaChange| !ca.certificate_der.is_empty();
    let Some(ca) = row.ca.take().filter(|ca| made(ca) && ca.certificate_sha256 == finish.certificate_sha256)
    else {
        return Ok(refuse("no such CA is wanted"));
    };
    let mut meta = rows::meta(tables)?;
    meta.ca_certificate_der = ca.certificate_der;
    meta.ca_private_key_sealed = ca.private_key_sealed;
    rows::put_meta(tables, &meta);
    // Who comes with one of these would wait for a CA that nobody shows any more.
    let tokens: Vec<TokenRow> = tables.all(Table::Tokens, &[])?;
    for token in tokens.iter().filter(|token| token.used_by == 0 && token.ca_sha256 != ca.certificate_sha256)
    {
        tables.delete(Table::Tokens, token.id.as_bytes());
    }
    (row.ca_index, row.ca_at_ms) = (index, at_ms);
    put(tables, &row);
    audit(
        tables,
        index,
        at_ms,
        &ca.by,
        "the new CA is the only one; the old one counts no longer".to_owned(),
    );
    Ok(Answer::Done(true))
}

/// What a member says of its certificate and keys.
pub(crate) fn update(member: &mut Member, update: &UpdateMember) {
    let fields = [
        (&mut member.certificate_der, &update.certificate_der),
        (&mut member.certificate_before_der, &update.certificate_before_der),
        (&mut member.ca_sha256, &update.ca_sha256),
    ];
    for (field, value) in fields {
        if let Some(value) = value {
            field.clone_from(value);
        }
    }
    member.key_generation = update.key_generation.unwrap_or(member.key_generation);
}

/// A member was removed while a key was on its way: it may have that one, so another is made.
pub(crate) fn removed(tables: &mut Overlay<'_>) -> Result<(), Fault> {
    let mut row = row(tables)?;
    if let Some(key) = row.key.as_mut().filter(|key| key.generation > 0) {
        *key = KeyChange { by: key.by.clone(), asked_at_ms: key.asked_at_ms, ..KeyChange::default() };
        put(tables, &row);
    }
    Ok(())
}
