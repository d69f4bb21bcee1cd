//! A backup: the tables of one moment in a file, and a new cluster of one node from it.
//!
//! ```text
//! "quire backup 1\n"  then, compressed with zstd, length-delimited `BackupPart`s: head, rows..., end
//! ```
//!
//! Secrets in the rows are sealed with the cluster key. That key is in the head: sealed by a passphrase, or in clear,
//! and then the file is as secret as a node's data directory.
//!
//! Never: leaves half a backup under the name of a whole one, or restores rows whose end it has not seen.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::num::NonZeroU32;
use std::path::Path;

use bytes::Bytes;
use prost::Message;
use quire_coordinator::{recover, rotation, rows};
use quire_proto::cluster::backup_part::Part;
use quire_proto::cluster::{BackupHead, BackupPart};
use quire_proto::store::{Member, Meta, Recover, command};
use ring::pbkdf2;
use rocksdb::WriteBatch;

use super::authorities::Authorities;
use super::directory::Directory;
use super::keeper::until;
use super::keys::{self, Keys};
use super::launch::alone;
use super::membership::names;
use super::parts::{Newborn, Parts};
use super::place::{Place, labels};
use super::raft::{Id, LogId, StoredMembership, Tuning, Vote, away};
use super::recover::only;
use super::snapshot::{Gate, Reading, Staging};
use super::start::database;
use super::store::{META, Store, View, key};
use super::wire;
use super::{Me, OpenError, Start};
use crate::tls::Authority;

const MAGIC: &[u8] = b"quire backup 1\n";
/// The largest part: a batch of rows is 1 MiB and one row, of at most a proposal's 4 MiB.
const PART_OCTETS: usize = 8 << 20;
/// zstd's default: rows shrink to a quarter at some 200 MB/s.
const LEVEL: i32 = 3;
/// OWASP's figure for PBKDF2-HMAC-SHA256 (2023): half a second a try.
const ROUNDS: NonZeroU32 = NonZeroU32::new(600_000).unwrap();

const WHAT: &str = "restore the backup";

fn bad(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn key_of(passphrase: &str, salt: &[u8]) -> io::Result<Keys> {
    let mut octets = zeroize::Zeroizing::new([0; 32]);
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, ROUNDS, salt, passphrase.as_bytes(), octets.as_mut_slice());
    Keys::from_octets(octets.as_slice()).ok_or_else(|| bad("a key has 32 octets"))
}

fn purpose(cluster_id: &[u8]) -> Vec<u8> {
    [b"quire backup ".as_slice(), cluster_id].concat()
}

fn head(view: &View, keys: &Keys, passphrase: Option<&str>) -> io::Result<BackupHead> {
    let meta = rows::meta(view).map_err(io::Error::other)?;
    let in_force = rotation::in_force(&rotation::row(view).map_err(io::Error::other)?);
    if keys.key(in_force).is_none() {
        return Err(bad("this node has not got the cluster key yet: back up on another one, or wait"));
    }
    let applied = view.meta(key::APPLIED)?.ok_or_else(|| bad("this node has nothing to back up yet"))?;
    let applied = wire::to_log_id(&wire::decode("the applied mark", &applied)?);
    let mut head = BackupHead {
        cluster_name: meta.cluster_name,
        numbered: applied.index.max(meta.outbox_next),
        term: applied.leader_id.term,
        at_ms: crate::clock::now().0,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..BackupHead::default()
    };
    match passphrase {
        None => head.cluster_key = Bytes::copy_from_slice(&keys.octets()),
        Some(passphrase) => {
            let salt = keys::random::<16>().map_err(io::Error::other)?;
            let purpose = purpose(&meta.cluster_id);
            let sealed = key_of(passphrase, salt.as_slice())?.seal(keys::FIRST, &keys.octets(), &purpose);
            head.cluster_key_sealed = sealed.map_err(io::Error::other)?.into();
            head.salt = Bytes::copy_from_slice(salt.as_slice());
        }
    }
    head.cluster_id = meta.cluster_id;
    Ok(head)
}

/// Writes the tables of `view` to `out`. Blocks on the disk, and on `out`.
pub(crate) fn write(
    view: View,
    keys: &Keys,
    passphrase: Option<&str>,
    mut out: impl Write,
) -> io::Result<()> {
    let head = head(&view, keys, passphrase)?;
    out.write_all(MAGIC)?;
    let mut out = zstd::Encoder::new(out, LEVEL)?;
    out.include_checksum(true)?;
    let mut put = |part| out.write_all(&BackupPart { part: Some(part) }.encode_length_delimited_to_vec());
    put(Part::Head(head))?;
    let mut reading = Reading::new(view);
    while let Some(rows) = reading.next()? {
        put(Part::Rows(rows))?;
    }
    put(Part::End(reading.end()))?;
    out.finish()?.flush()
}

/// A backup being read; its head was.
struct Backup {
    head: BackupHead,
    parts: BufReader<zstd::Decoder<'static, BufReader<File>>>,
}

impl Backup {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = BufReader::new(File::open(path)?);
        let mut magic = vec![0; MAGIC.len()];
        if file.read_exact(&mut magic).is_err() || magic != MAGIC {
            return Err(bad("it is no backup that this version of quire wrote"));
        }
        let mut parts = BufReader::new(zstd::Decoder::with_buffer(file)?);
        match next(&mut parts)? {
            Some(Part::Head(head)) => Ok(Backup { head, parts }),
            _ => Err(bad("it has no head")),
        }
    }

    fn keys(&self, passphrase: Option<&str>) -> io::Result<Keys> {
        let head = &self.head;
        let octets = match (passphrase, head.cluster_key_sealed.is_empty()) {
            (_, true) => zeroize::Zeroizing::new(head.cluster_key.to_vec()),
            (None, false) => return Err(bad("it is protected: give --passphrase @FILE")),
            (Some(passphrase), false) => key_of(passphrase, &head.salt)?
                .open(&head.cluster_key_sealed, &purpose(&head.cluster_id))
                .map_err(|_| bad("--passphrase is not the one it was written with"))?,
        };
        Keys::from_octets(&octets).ok_or_else(|| bad("it holds no cluster key"))
    }

    /// Brings all rows into the tables of `store`, which become those in force.
    fn fill(mut self, store: &Store, me: &Me, base: u64) -> io::Result<()> {
        let mut staging = Staging::begin(store, &Gate::default(), "")?;
        let staged = loop {
            match next(&mut self.parts)? {
                Some(Part::Rows(rows)) => staging.add(&rows)?,
                Some(Part::End(end)) => break staging.finish(&end)?,
                Some(Part::Head(_)) => return Err(bad("it has two heads")),
                None => return Err(bad("it ends before its end: it was not written whole")),
            }
        };
        let id = LogId { leader_id: Id { term: self.head.term + 1, node_id: me.id.0 }, index: base };
        let mark = wire::log_id(&id).encode_to_vec();
        let membership = StoredMembership::new(Some(id), only(me)?);
        let vote = Vote { leader_id: id.leader_id, committed: false };
        let family = store.family(META)?;
        let mut batch = WriteBatch::default();
        batch.put_cf(family, key::ACTIVE, [staged.family_number()]);
        batch.put_cf(family, key::APPLIED, &mark);
        batch.put_cf(family, key::PURGED, &mark);
        batch.put_cf(family, key::MEMBERSHIP, wire::stored_membership(&membership).encode_to_vec());
        batch.put_cf(family, key::VOTE, wire::vote(&vote).encode_to_vec());
        Ok(store.write_synced(batch)?)
    }
}

/// The next part; `None` at the end of the file.
fn next(from: &mut impl BufRead) -> io::Result<Option<Part>> {
    let (mut length, mut shift) = (0_usize, 0);
    loop {
        let mut octet = [0];
        match from.read(&mut octet)? {
            0 if shift == 0 => return Ok(None),
            0 => return Err(bad("it ends within a part")),
            _ => length |= usize::from(octet[0] & 0x7f) << shift,
        }
        if octet[0] < 0x80 {
            break;
        }
        shift += 7;
        if shift > 28 {
            return Err(bad("a part has no length"));
        }
    }
    if length > PART_OCTETS {
        return Err(bad(format!("a part of {length} octets")));
    }
    let mut octets = vec![0; length];
    from.read_exact(&mut octets)?;
    Ok(wire::decode::<BackupPart>("a part of it", &octets)?.part)
}

/// Makes `start.data_dir` the first node of the cluster in `file`: only member, everything numbered on far above
/// what the backup knows, so that the Web Admin takes it for the newer one. Answers the cluster's name.
pub(crate) async fn restore(
    start: Start,
    file: &Path,
    passphrase: Option<&str>,
    tuning: &Tuning,
) -> Result<String, OpenError> {
    let unusable = |reason: io::Error| OpenError::Backup { file: file.to_owned(), reason };
    let labels = labels(&start)?;
    let backup = Backup::open(file).map_err(unusable)?;
    let keys = backup.keys(passphrase).map_err(unusable)?;
    let directory = Directory::lock(&start.data_dir, true)?;
    directory.claim()?;
    let place = Place::take(start.listen, start.advertise).await?;
    let newborn = Newborn::new(labels, start.witness)?;
    let base = recover::base(backup.head.numbered);
    let (cluster_id, name) = (backup.head.cluster_id.clone(), backup.head.cluster_name.clone());
    let card = newborn.card(base, (&cluster_id, &name), &place);
    let store = database(&directory.db(), &card, true).await?;
    let request = newborn.request(&newborn.node_key)?;
    let keep = Member {
        id: base,
        name: newborn.name.clone(),
        zone: newborn.zone.clone(),
        address: place.advertise.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster_version: quire_proto::CLUSTER_VERSION,
        witness: newborn.witness,
        incarnation: newborn.incarnation.clone(),
        upstream_csr_der: newborn.request(&newborn.upstream_key)?.into(),
        ..Member::default()
    };
    let mut parts = Parts {
        card,
        keys,
        node_key: newborn.node_key,
        upstream_key: newborn.upstream_key,
        certificate: Vec::new(),
        authorities: Authorities::default(),
    };
    let me = parts.me(place.listen)?;
    let (filled, who) = (store.clone(), me.clone());
    away(move || backup.fill(&filled, &who, base)).await.map_err(unusable)?;
    let (authorities, authority) = authorities(&store, &parts.keys).map_err(unusable)?;
    parts.certificate = authority
        .sign(&request, &names(&cluster_id, base), until(&Meta::default(), tuning.certificate_life))
        .map_err(OpenError::during("sign the node's certificate"))?;
    parts.authorities = authorities;
    let command = Recover { base, keep: Some(keep), by: "operator".into() };
    let command = command::Kind::Recover(command);
    alone(&me, &parts.authorities, &store, command, None, tuning).await?;
    parts.settle(&directory)?;
    Ok(name)
}

/// The cluster's CAs and the one that signs, from its tables.
fn authorities(store: &Store, keys: &Keys) -> io::Result<(Authorities, Authority)> {
    let view = store.view()?;
    let (meta, row) =
        (rows::meta(&view).map_err(io::Error::other)?, rotation::row(&view).map_err(io::Error::other)?);
    let known = Authorities::of_tables(&meta, &row).ok_or_else(|| bad("it holds no CA"))?;
    let signs = super::keeper::authority(keys, &meta, &row);
    Ok((known, signs.map_err(|why| bad(format!("{WHAT}: {why}")))?))
}
