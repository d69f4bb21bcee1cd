//! A responder in memory over the lines of an `.snmprec` file: GET, GETNEXT and GETBULK as RFC 3416 has them, and the
//! manners of devices that have them otherwise. For tests only.

use std::path::Path;

use quire_proto::oid::Oid;
use quire_proto::reading::Via;

use super::answers::has_value;
use super::script::{self, Device, Page, Recording, Scripts, WebMiss, WebPath};
use super::{Finished, Miss, Read, ReadPlan};
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
            cost.octets += octets_of(&request) + 50 + response.varbinds.iter().map(size).sum::<usize>();
            read.handle(Ok(response));
        }
        let mut finished = read.finish();
        let Some(mut reading) = finished.reading.take() else { return (finished, cost) };
        for profile in Scripts::built_in().matching(&finished.subject) {
            let device = Spoken { responder: self.clone(), via };
            let run = script::run(&profile, &reading, &finished.fresh, Box::new(device));
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
