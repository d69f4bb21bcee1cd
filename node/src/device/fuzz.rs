//! What a fuzzer may do to this room: any answers to a read, any page, any IPP answer, any header.

use std::net::IpAddr;

use quire_proto::convert;
use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Via};

use super::ews::{Draft, READERS, Sheet};
use super::script::Recording;
use super::walk::Walk;
use super::{
    MAX_REQUESTS, MAX_ROUTER_REQUESTS, Miss, Place, Read, RouterRead, answers::Answers, device_json, ipp,
    judge, merge, probe_oids,
};
use crate::dice::Dice;
use crate::snmp::{Request, Response, Value, VarBind};

pub(crate) use super::http::fuzz::{gate, headers};
pub(crate) use super::script::fuzz::{documents, path, script};

/// Bounds that every reading keeps, whatever a device said.
fn check(reading: &Reading) {
    let stored = convert::encode(reading);
    assert_eq!(convert::decode(&stored).ok().as_ref(), Some(reading), "it is not stored as it is");
    for supply in &reading.supplies {
        assert!(supply.percent.is_none_or(|percent| percent <= 100), "{supply:?}");
    }
    for source in reading.sources.values() {
        assert!(!source.is_empty(), "a value without a source");
    }
    let json = device_json(&Place::default(), reading);
    assert!(json.is_object());
    merge(reading.clone(), reading.clone(), Reading::default());
}

fn via(octet: u8) -> Via {
    [Via::SnmpV1, Via::SnmpV2c, Via::SnmpV3][usize::from(octet % 3)]
}

/// Reads a device twice, the second time with what the first taught, and as if it were a router.
fn read(via: Via, mut answer: impl FnMut(&Request) -> Result<Response, Miss>) {
    let mut plan = None;
    for _ in 0..2 {
        let mut read = Read::new(via, plan.take());
        let mut asked = 0;
        while let Some(request) = read.poll_request() {
            asked += 1;
            assert!(asked <= MAX_REQUESTS);
            read.handle(answer(&request));
        }
        let finished = read.finish();
        finished.reading.iter().for_each(check);
        plan = Some(finished.plan);
    }
    let mut router = RouterRead::new(via != Via::SnmpV1);
    let mut asked = 0;
    while let Some(request) = router.poll_request() {
        asked += 1;
        assert!(asked <= MAX_ROUTER_REQUESTS);
        router.handle(answer(&request));
    }
    router.finish();
}

/// The lines of a recording, after one octet of manners: read as a printer and as a router.
pub(crate) fn recording(data: &[u8]) {
    let mut dice = Dice::new(data);
    let manner = dice.octet();
    let recording = Recording::parse(&String::from_utf8_lossy(dice.rest()));
    judge(&probe_oids().iter().map(|oid| recording.get(oid)).collect::<Vec<_>>());
    read(via(manner), |request| {
        let mut response = recording.answer(request);
        match (manner >> 4, request) {
            (1, Request::GetBulk { .. }) => response.varbinds.clear(),
            (2, _) => response.varbinds.truncate(3),
            (3, _) if response.varbinds.len() > 8 => {
                response = Response { varbinds: Vec::new(), error_status: 1, error_index: 0 };
            }
            _ => {}
        }
        Ok(response)
    });
}

/// Answers that have no device behind them: names in no order, of no table, with any values.
pub(crate) fn answers(data: &[u8]) {
    let mut dice = Dice::new(data);
    let via = via(dice.octet());
    read(via, |request| answer(&mut dice, request));
    let (once, many) = ([oid(&mut dice, None)], [oid(&mut dice, None), oid(&mut dice, None)]);
    let mut walk = Walk::new(&once, &many, 64, dice.octet(), via != Via::SnmpV1);
    let mut heard = Answers::default();
    let mut asked = 0;
    while let Some(request) = walk.request() {
        asked += 1;
        // A row or an end a question, and each narrowing once.
        assert!(asked < 3 * 64 + 16, "the walk does not end");
        if let Ok(response) = answer(&mut dice, &request) {
            walk.handle(&response, &mut heard);
        } else {
            break;
        }
    }
}

fn answer(dice: &mut Dice<'_>, request: &Request) -> Result<Response, Miss> {
    let (Request::Get(asked) | Request::GetNext(asked) | Request::GetBulk { oids: asked, .. }) = request;
    match dice.octet() {
        0 => return Err(Miss::Silent),
        1 => return Err(Miss::Refused),
        _ => {}
    }
    let count = dice.below(40);
    let varbinds = (0..count).map(|n| {
        let near = asked.get(n % asked.len().max(1));
        VarBind { oid: oid(dice, near), value: value(dice) }
    });
    let varbinds = varbinds.collect();
    let error_status = if dice.octet() < 230 { 0 } else { dice.word() & 0x1f };
    Ok(Response { varbinds, error_status, error_index: u32::from(dice.octet()) })
}

fn oid(dice: &mut Dice<'_>, near: Option<&Oid>) -> Oid {
    let arcs = |dice: &mut Dice<'_>| -> Vec<u32> {
        let count = dice.below(6);
        (0..count)
            .map(|_| if dice.octet() & 1 == 0 { u32::from(dice.octet()) } else { dice.word() })
            .collect()
    };
    match (near, dice.octet() % 4) {
        (Some(near), 0 | 1) => near.child(&arcs(dice)),
        (Some(near), 2) => near.clone(),
        _ => Oid::new(&[&[1, 3, 6, 1], arcs(dice).as_slice()].concat()),
    }
}

fn value(dice: &mut Dice<'_>) -> Value {
    match dice.octet() % 12 {
        0 => Value::Integer(i64::from(dice.word().cast_signed())),
        1 => Value::Integer(-i64::from(dice.octet() % 4)),
        2 => Value::Counter32(dice.word()),
        3 => Value::Gauge32(dice.word()),
        4 => Value::Counter64(u64::from(dice.word()) << 32 | u64::from(dice.word())),
        5 => Value::ObjectId(oid(dice, None)),
        6 => Value::IpAddress(dice.word().into()),
        7 => Value::TimeTicks(dice.word()),
        8 => Value::EndOfMibView,
        9 => Value::NoSuchInstance,
        _ => {
            let length = dice.below(64);
            Value::OctetString(dice.take(length).to_vec().into())
        }
    }
}

/// One text as every page of every family.
pub(crate) fn pages(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for reader in READERS {
        let sheet = |ask: usize| {
            let path = reader.asks[ask].paths.first().copied().unwrap_or("/");
            Sheet { ask, path: path.to_owned(), text: text.to_string() }
        };
        let sheets: Vec<Sheet> = (0..reader.asks.len()).map(sheet).collect();
        let mut draft = Draft::default();
        (reader.read)(&sheets, &mut draft);
        check(&draft.reading);
    }
}

/// Any octets as an answer to Get-Printer-Attributes.
pub(crate) fn attributes(data: &[u8]) {
    if let Some(reading) = ipp::read(data, "ipp:/ipp/print") {
        check(&reading);
    }
}

/// Where devices of the targets are.
pub(super) const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));
