//! What a fuzzer may do to this room: join tokens, what other members send, rows and observations on the disk.

use std::sync::{LazyLock, Mutex, PoisonError};

use prost::Message as _;
use quire_coordinator::rows;
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_proto::cluster as proto;
use quire_proto::id::NodeId;
use quire_proto::store as row;
use rocksdb::WriteBatch;

use super::Keys;
use super::authorities::Authorities;
use super::snapshot::{Gate, Staging};
use super::spool::Spool;
use super::store::{META, SPOOL, STATE, Store, View, key};
use super::token::Token;
use super::wire;
use crate::dice::Dice;

/// A database for all rounds of this process, in a directory for temporary files.
static STORE: LazyLock<Option<Mutex<Store>>> = LazyLock::new(|| {
    let place = std::env::temp_dir().join(format!("quire-fuzz-{}", std::process::id()));
    Store::open(&place).ok().map(Mutex::new)
});

fn with_store(work: impl FnOnce(&Store)) {
    let Some(store) = &*STORE else { panic!("no room for a database among the temporary files") };
    work(&store.lock().unwrap_or_else(PoisonError::into_inner));
}

/// A join token; what is one survives being copied.
pub(crate) fn token(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(token) = Token::parse(&text) {
        assert_eq!(*token.text(), text.trim());
    }
}

/// A token as it is printed, as a seed.
pub(crate) fn any_token() -> Vec<u8> {
    Token::generate([7; 32]).map_or(Vec::new(), |token| token.text().as_bytes().to_vec())
}

/// What other members send and what the log holds.
pub(crate) fn messages(data: &[u8]) {
    if let Ok(entry) = wire::stored_entry(data) {
        let again = wire::stored_entry(&wire::entry(&entry).encode_to_vec());
        assert_eq!(again.ok().as_ref().map(|entry| entry.log_id), Some(entry.log_id));
    }
    if let Ok(append) = proto::AppendRequest::decode(data) {
        for entry in append.entries {
            drop(wire::to_entry(entry));
        }
    }
    if let Ok(stored) = proto::StoredMembership::decode(data)
        && let Ok(stored) = wire::to_stored_membership(stored)
    {
        wire::stored_membership(&stored);
    }
    // Of a join's answer, and of the files in a data directory.
    if let Some(authorities) = Authorities::parse(data) {
        assert_eq!(authorities.octets(), data);
    }
    if let Some(keys) = Keys::from_octets(data) {
        assert_eq!(Keys::from_octets(&keys.octets()).map(|again| again.held()), Some(keys.held()));
    }
    drop(proto::ClusterKeyRequest::decode(data));
    drop(proto::VoteRequest::decode(data));
    drop(proto::AttendRequest::decode(data));
    drop(proto::ProposeRequest::decode(data));
    drop(proto::TransferRequest::decode(data));
    drop(proto::SnapshotPart::decode(data));
}

/// A snapshot whose parts are any: staged whole or refused; its rows are then read as a node reads them.
pub(crate) fn snapshot(data: &[u8]) {
    with_store(|store| {
        let Ok(mut staging) = Staging::begin(store, &Gate::default(), "") else {
            panic!("no room for a snapshot")
        };
        let mut dice = Dice::new(data);
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        let mut count = 0;
        while !dice.is_empty() {
            let Ok(part) = proto::SnapshotPart::decode(dice.piece()) else { continue };
            if let Some(proto::snapshot_part::Part::Rows(rows)) = part.part {
                count += rows.rows.len() as u64;
                digest.update(&rows.encode_to_vec());
                if staging.add(&rows).is_err() {
                    return;
                }
            }
        }
        let end = proto::SnapshotEnd { rows: count, sha256: digest.finish().as_ref().to_vec().into() };
        let Ok(staged) = staging.finish(&end) else { panic!("a whole snapshot was refused") };
        let mut batch = WriteBatch::default();
        let Ok(meta) = store.family(META) else { return };
        batch.put_cf(meta, key::ACTIVE, [staged.family_number()]);
        if store.write(batch).is_ok()
            && let Ok(view) = store.view()
        {
            read_all(&view);
        }
    });
}

/// A snapshot of these rows, as a seed.
pub(crate) fn parts(rows: Vec<(Table, Vec<u8>, Vec<u8>)>) -> Vec<u8> {
    let rows = rows.into_iter().map(|(table, key, value)| proto::StateRow {
        key: super::store::state_key(table, &key).into(),
        value: value.into(),
    });
    let part = proto::snapshot_part::Part::Rows(proto::SnapshotRows { rows: rows.collect() });
    crate::dice::pieces([proto::SnapshotPart { part: Some(part) }.encode_to_vec().as_slice()])
}

/// Every row of every table: damaged ones are faults, never more.
fn read_all(view: &View) {
    drop(rows::meta(view));
    drop(rows::members(view));
    drop(rows::units(view));
    drop(rows::reaches(view));
    drop(rows::scripts(view));
    drop(rows::recorded_through(view, NodeId(1)));
    drop(view.all::<row::DeviceRow>(Table::Devices, &[]));
    drop(view.all::<row::ReadingRow>(Table::Readings, &[]));
    drop(view.all::<row::OutboxEntry>(Table::Outbox, &[]));
    drop(view.all::<row::TokenRow>(Table::Tokens, &[]));
    drop(view.all::<row::ApiTokenRow>(Table::ApiTokens, &[]));
    drop(view.all::<row::AuditRow>(Table::Audit, &[]));
}

/// A spool as a disk may bring it back, with any keys and values; it goes on above whatever it finds.
pub(crate) fn spool(data: &[u8]) {
    with_store(|store| {
        let (Ok(spool), Ok(meta), Ok(state)) =
            (store.family(SPOOL), store.family(META), store.family(STATE[0]))
        else {
            return;
        };
        let mut dice = Dice::new(data);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(spool, b"".as_slice(), [0xff; 16].as_slice());
        batch.delete_range_cf(state, b"".as_slice(), [0xff; 16].as_slice());
        batch.put_cf(meta, key::ACTIVE, [0]);
        match dice.octet() & 1 {
            0 => batch.delete_cf(meta, key::SPOOL_RESERVED),
            _ => batch.put_cf(meta, key::SPOOL_RESERVED, dice.take(8)),
        }
        let committed = super::store::state_key(Table::Recorded, &1u64.to_be_bytes());
        batch.put_cf(state, committed, dice.piece());
        for _ in 0..dice.below(16) {
            let key = match dice.octet() & 3 {
                0 => dice.piece().to_vec(),
                1 => (u64::MAX - u64::from(dice.octet())).to_be_bytes().to_vec(),
                _ => u64::from(dice.octet()).to_be_bytes().to_vec(),
            };
            batch.put_cf(spool, key, dice.piece());
        }
        if store.write(batch).is_err() {
            return;
        }
        use_spool(store, &mut dice);
    });
}

fn use_spool(store: &Store, dice: &mut Dice<'_>) {
    let Ok(spool) = Spool::open(store, NodeId(1), 8) else { return };
    let mut last = 0;
    for _ in 0..dice.below(16) {
        match dice.octet() % 3 {
            0 => {
                let count = 1 + dice.below(4);
                let observations =
                    vec![row::Observation { unit: "u".to_owned(), ..row::Observation::default() }; count];
                if let Ok(number) = spool.append_all(observations) {
                    assert!(number > last, "{number} after {last}");
                    last = number;
                }
            }
            1 => drop(spool.page(dice.below(8))),
            _ => drop(spool.trim(u64::from(dice.octet()))),
        }
    }
}
