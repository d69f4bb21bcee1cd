//! A responder in memory over the lines of an `.snmprec` file: GET, GETNEXT and GETBULK as RFC 3416 has them, and the
//! manners of devices that have them otherwise. For tests only.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use quire_proto::oid::Oid;
use quire_proto::reading::Via;

use super::answers::has_value;
use super::{Finished, Read, ReadPlan};
use crate::snmp::{Request, Response, Value, VarBind};

/// How a responder behaves.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Manner {
    Good,
    /// Speaks SNMPv1: errors instead of exceptions.
    V1,
    /// GETBULK brings an empty answer.
    NoBulk,
    /// At most this many variable bindings, else tooBig.
    Small(usize),
}

pub(crate) struct Responder {
    objects: BTreeMap<Oid, Value>,
    pub(crate) manner: Manner,
}

#[derive(Default)]
pub(crate) struct Cost {
    pub(crate) packets: usize,
    pub(crate) octets: usize,
}

impl Responder {
    pub(crate) fn load(path: &Path) -> Responder {
        Responder::of(&String::from_utf8_lossy(&std::fs::read(path).unwrap()))
    }

    /// Of the lines of an `.snmprec` file.
    pub(crate) fn of(text: &str) -> Responder {
        Responder { objects: text.lines().filter_map(parse_line).collect(), manner: Manner::Good }
    }

    fn next(&self, oid: &Oid) -> VarBind {
        let mut after = self.objects.range((Bound::Excluded(oid.clone()), Bound::Unbounded));
        match after.next() {
            Some((oid, value)) => VarBind { oid: oid.clone(), value: value.clone() },
            None => VarBind { oid: oid.clone(), value: Value::EndOfMibView },
        }
    }

    pub(crate) fn get(&self, oid: &Oid) -> VarBind {
        VarBind { oid: oid.clone(), value: self.objects.get(oid).cloned().unwrap_or(Value::NoSuchInstance) }
    }

    pub(crate) fn answer(&self, request: &Request) -> Response {
        let varbinds: Vec<VarBind> = match request {
            Request::Get(oids) => oids.iter().map(|oid| self.get(oid)).collect(),
            Request::GetNext(oids) => oids.iter().map(|oid| self.next(oid)).collect(),
            Request::GetBulk { .. } if self.manner == Manner::NoBulk => Vec::new(),
            Request::GetBulk { non_repeaters, max_repetitions, oids } => {
                assert!(self.manner != Manner::V1, "GETBULK does not exist in SNMPv1");
                self.bulk(usize::from(*non_repeaters), usize::from(*max_repetitions), oids)
            }
        };
        let failed = |error_status, error_index| Response { varbinds: Vec::new(), error_status, error_index };
        match self.manner {
            Manner::Small(most) if varbinds.len() > most => failed(1, 0),
            Manner::V1 => match varbinds.iter().position(|v| !has_value(&v.value)) {
                Some(at) => failed(2, u32::try_from(at + 1).unwrap()),
                None => Response { varbinds, error_status: 0, error_index: 0 },
            },
            Manner::Good | Manner::NoBulk | Manner::Small(_) => {
                Response { varbinds, error_status: 0, error_index: 0 }
            }
        }
    }

    fn bulk(&self, non_repeaters: usize, repetitions: usize, oids: &[Oid]) -> Vec<VarBind> {
        let (once, many) = oids.split_at(non_repeaters);
        let mut varbinds: Vec<VarBind> = once.iter().map(|oid| self.next(oid)).collect();
        let mut cursors = many.to_vec();
        for _ in 0..repetitions {
            for cursor in &mut cursors {
                let varbind = self.next(cursor);
                *cursor = varbind.oid.clone();
                varbinds.push(varbind);
            }
        }
        varbinds
    }

    pub(crate) fn read(&self, via: Via, plan: Option<ReadPlan>) -> (Finished, Cost) {
        let mut read = Read::new(via, plan);
        let mut cost = Cost::default();
        while let Some(request) = read.poll_request() {
            let response = self.answer(&request);
            cost.packets += 1;
            cost.octets += octets_of(&request) + 50 + response.varbinds.iter().map(size).sum::<usize>();
            read.handle(Ok(response));
        }
        (read.finish(), cost)
    }
}

/// Roughly what BER makes of a variable binding.
fn size(varbind: &VarBind) -> usize {
    let value = match &varbind.value {
        Value::OctetString(bytes) | Value::Opaque(bytes) => bytes.len(),
        Value::ObjectId(oid) => oid.arcs().len(),
        Value::Counter64(_) => 8,
        _ => 4,
    };
    varbind.oid.arcs().iter().map(|arc| if *arc < 128 { 1 } else { 2 }).sum::<usize>() + value + 6
}

fn octets_of(request: &Request) -> usize {
    let (Request::Get(oids) | Request::GetNext(oids) | Request::GetBulk { oids, .. }) = request;
    50 + oids.iter().map(|oid| oid.arcs().len() + 6).sum::<usize>()
}

fn parse_line(line: &str) -> Option<(Oid, Value)> {
    let mut parts = line.splitn(3, '|');
    let oid: Oid = parts.next()?.parse().ok()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    let bytes = match tag.strip_suffix('x') {
        Some(_) => {
            (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
        }
        None => text.as_bytes().to_vec(),
    };
    let value = match tag.trim_end_matches('x') {
        "2" => Value::Integer(text.parse().ok()?),
        "4" => Value::OctetString(bytes.into()),
        "5" => Value::Null,
        "6" => Value::ObjectId(text.parse().ok()?),
        "64" => Value::IpAddress(match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(octets) if tag.ends_with('x') => octets.into(),
            _ => text.parse().ok()?,
        }),
        "65" => Value::Counter32(text.parse::<u64>().ok()? as u32),
        "66" => Value::Gauge32(text.parse::<u64>().ok()? as u32),
        "67" => Value::TimeTicks(text.parse::<u64>().ok()? as u32),
        "70" => Value::Counter64(text.parse().ok()?),
        _ => Value::Opaque(bytes.into()),
    };
    Some((oid, value))
}
