//! A responder in memory over the lines of an `.snmprec` file: GET, GETNEXT and GETBULK as RFC 3416 has them, and the
//! manners of devices that have them otherwise. For tests only.

use std::path::Path;

use quire_proto::oid::Oid;
use quire_proto::reading::Via;

use super::answers::has_value;
use super::script::{self, Device, Known, Page, Recording, Scripts, WebMiss, WebPath};
use super::{Finished, Miss, Read, ReadPlan};
use crate::snmp::{Request, Response, Value, VarBind};

/// How a responder behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Manner {
    Good,
    /// Speaks SNMPv1: errors instead of exceptions.
    V1,
    /// GETBULK brings an empty answer.
    NoBulk,
    /// At most this many variable bindings, else tooBig.
    Small(usize),
}

#[derive(Clone)]
pub(crate) struct Responder {
    recording: Recording,
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
        Responder { recording: Recording::parse(text), manner: Manner::Good }
    }

    pub(crate) fn get(&self, oid: &Oid) -> VarBind {
        self.recording.get(oid)
    }

    pub(crate) fn answer(&self, request: &Request) -> Response {
        let varbinds = match request {
            Request::GetBulk { .. } if self.manner == Manner::NoBulk => Vec::new(),
            Request::GetBulk { .. } => {
                assert!(self.manner != Manner::V1, "GETBULK does not exist in SNMPv1");
                self.recording.answer(request).varbinds
            }
            Request::Get(_) | Request::GetNext(_) => self.recording.answer(request).varbinds,
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

    /// A read as a node does it: the standard, then the profiles that ship with the program.
    pub(crate) fn read(&self, via: Via, plan: Option<ReadPlan>) -> (Finished, Cost) {
        let mut read = Read::new(via, plan);
        let mut cost = Cost::default();
        while let Some(request) = read.poll_request() {
            let response = self.answer(&request);
            cost.packets += 1;
            cost.octets += octets_of(&request) + message(response.varbinds.iter().map(size).sum());
            read.handle(Ok(response));
        }
        let mut finished = read.finish();
        let Some(mut reading) = finished.reading.take() else { return (finished, cost) };
        for profile in Scripts::built_in().matching(&finished.subject) {
            let device = Spoken { responder: self.clone(), via };
            let run = script::run(&profile, &reading, Known::of(&finished), Box::new(device));
            finished.plan.also_ask(run.asked);
            cost.packets += run.cost.requests as usize;
            cost.octets += run.cost.bytes;
            reading = run.result.unwrap_or_else(|error| panic!("{}: {error}", profile.name));
        }
        finished.reading = Some(reading);
        (finished, cost)
    }
}

/// A responder asked in one version.
struct Spoken {
    responder: Responder,
    via: Via,
}

impl Device for Spoken {
    fn ask(&mut self, request: &Request) -> Result<Response, Miss> {
        Ok(self.responder.answer(request))
    }

    fn fetch(&mut self, _: &WebPath, _: usize) -> Result<Page, WebMiss> {
        Err(WebMiss::Silent)
    }

    fn via(&self) -> Via {
        self.via
    }
}

/// Octets of a length (X.690 section 8.1.3) and what has it.
fn element(contents: usize) -> usize {
    let length = match contents {
        0..128 => 1,
        128..256 => 2,
        _ => 3,
    };
    1 + length + contents
}

fn name(arcs: &[u32]) -> usize {
    let groups = |arc: &u32| (32 - arc.leading_zeros()).div_ceil(7).max(1) as usize;
    element(1 + arcs[2.min(arcs.len())..].iter().map(groups).sum::<usize>())
}

/// An SNMPv2c message with community `public` around these variable bindings, UDP payload.
fn message(varbinds: usize) -> usize {
    element(3 + element(6) + element(6 + 3 + 3 + element(varbinds)))
}

/// What BER makes of a variable binding.
fn size(varbind: &VarBind) -> usize {
    let integer = |n: i64| (1..8).find(|octets| n >> (8 * octets - 1) == n >> 63).unwrap_or(8);
    let value = match &varbind.value {
        Value::OctetString(bytes) | Value::Opaque(bytes) => element(bytes.len()),
        Value::ObjectId(oid) => name(oid.arcs()),
        Value::Integer(n) => 2 + integer(*n),
        Value::Counter32(n) | Value::Gauge32(n) | Value::TimeTicks(n) => 2 + integer(i64::from(*n)),
        Value::Counter64(n) => 2 + integer(i64::try_from(*n).unwrap_or(i64::MAX)),
        Value::IpAddress(_) => 6,
        Value::Null | Value::NoSuchObject | Value::NoSuchInstance | Value::EndOfMibView => 2,
    };
    element(name(varbind.oid.arcs()) + value)
}

fn octets_of(request: &Request) -> usize {
    let (Request::Get(oids) | Request::GetNext(oids) | Request::GetBulk { oids, .. }) = request;
    message(oids.iter().map(|oid| element(name(oid.arcs()) + 2)).sum())
}
