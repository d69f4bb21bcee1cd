//! A device on paper: the lines of an `.snmprec` file and, where there is one, a directory of its pages.
//!
//! Pure over what it was given: answers GET, GETNEXT and GETBULK as RFC 3416 has them. `quire script test` and the
//! tests run profiles on it; nothing here opens a socket.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Via};
use tokio_util::sync::CancellationToken;

use super::sandbox::{self, Cost, Failed, Limits};
use super::{Device, Known, Page, Profile, Profiles, Rendered, WebMiss, WebPath};
use crate::device::{Miss, Read};
use crate::snmp::{Request, Response, Value, VarBind};

/// A device as it once answered.
#[derive(Clone, Debug, Default)]
pub struct Recording {
    objects: Arc<BTreeMap<Oid, Value>>,
    /// By path, the query included.
    pages: Arc<BTreeMap<String, String>>,
}

impl Recording {
    /// Of the lines of an `.snmprec` file (`OID|TAG|VALUE`); lines that are none are skipped.
    pub fn parse(text: &str) -> Recording {
        let objects = text.lines().filter_map(parse_line).collect();
        Recording { objects: Arc::new(objects), pages: Arc::default() }
    }

    /// With its pages by path (`/status.html`).
    pub fn with_pages(self, pages: BTreeMap<String, String>) -> Recording {
        Recording { pages: Arc::new(pages), ..self }
    }

    pub(crate) fn get(&self, oid: &Oid) -> VarBind {
        VarBind { oid: oid.clone(), value: self.objects.get(oid).cloned().unwrap_or(Value::NoSuchInstance) }
    }

    fn next(&self, oid: &Oid) -> VarBind {
        let mut after = self.objects.range((Bound::Excluded(oid.clone()), Bound::Unbounded));
        match after.next() {
            Some((oid, value)) => VarBind { oid: oid.clone(), value: value.clone() },
            None => VarBind { oid: oid.clone(), value: Value::EndOfMibView },
        }
    }

    /// What a device of good manners answers.
    pub(crate) fn answer(&self, request: &Request) -> Response {
        let varbinds = match request {
            Request::Get(oids) => oids.iter().map(|oid| self.get(oid)).collect(),
            Request::GetNext(oids) => oids.iter().map(|oid| self.next(oid)).collect(),
            Request::GetBulk { non_repeaters, max_repetitions, oids } => {
                self.bulk(usize::from(*non_repeaters), usize::from(*max_repetitions), oids)
            }
        };
        Response { varbinds, error_status: 0, error_index: 0 }
    }

    fn bulk(&self, non_repeaters: usize, repetitions: usize, oids: &[Oid]) -> Vec<VarBind> {
        let (once, many) = oids.split_at(non_repeaters.min(oids.len()));
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
}

impl Device for Recording {
    fn ask(&mut self, request: &Request) -> Result<Response, Miss> {
        Ok(self.answer(request))
    }

    fn fetch(&mut self, path: &WebPath, most: usize) -> Result<Page, WebMiss> {
        let body = self.pages.get(path.as_str());
        let (status, body) = body.map_or((404, String::new()), |body| (200, body.clone()));
        if body.len() > most {
            return Err(WebMiss::TooLong);
        }
        Ok(Page { url: format!("http://device{}", path.as_str()), status, body, via: Via::Http })
    }

    /// On paper no script of the page runs: the page is as it was recorded.
    fn render(&mut self, path: &WebPath, most: usize) -> Result<Rendered, WebMiss> {
        let page = self.fetch(path, most)?;
        let text = super::pages::text_of(&page.body);
        Ok(Rendered { page, text })
    }

    fn via(&self) -> Via {
        Via::SnmpV2c
    }
}

fn parse_line(line: &str) -> Option<(Oid, Value)> {
    let mut parts = line.splitn(3, '|');
    let oid: Oid = parts.next()?.parse().ok()?;
    let tag = parts.next()?;
    let text = parts.next()?;
    let bytes = match tag.strip_suffix('x') {
        Some(_) => data_encoding::HEXLOWER_PERMISSIVE.decode(text.get(..text.len() & !1)?.as_bytes()).ok()?,
        None => text.as_bytes().to_vec(),
    };
    let narrow = |text: &str| text.parse::<u64>().ok().map(|n| u32::try_from(n & 0xffff_ffff).unwrap_or(0));
    let value = match tag.trim_end_matches('x') {
        "2" => Value::Integer(text.parse().ok()?),
        "4" => Value::OctetString(bytes.into()),
        "64" => Value::IpAddress(match <[u8; 4]>::try_from(bytes.as_slice()) {
            Ok(octets) if tag.ends_with('x') => octets.into(),
            _ => text.parse().ok()?,
        }),
        "5" => Value::Null,
        "6" => Value::ObjectId(text.parse().ok()?),
        "65" => Value::Counter32(narrow(text)?),
        "66" => Value::Gauge32(narrow(text)?),
        "67" => Value::TimeTicks(narrow(text)?),
        "70" => Value::Counter64(text.parse().ok()?),
        _ => Value::Opaque(bytes.into()),
    };
    Some((oid, value))
}

/// One profile's name, its end, what it took and what it logged.
pub type Ran = (String, Result<(), Failed>, Cost, Vec<String>);

/// What some profiles make of a recording.
#[derive(Clone, Debug)]
pub struct Rehearsal {
    /// The reading in the end; `None` when this is no printer.
    pub reading: Option<Reading>,
    /// How each matching profile went, in order: its name, its end, what it took and logged.
    pub runs: Vec<Ran>,
    /// SNMP questions of the standard read.
    pub read_requests: usize,
}

/// Reads a recording with these profiles, in their order, as a node would. Blocks; `stop` ends the script that runs.
pub fn rehearse(
    recording: &Recording,
    profiles: &[Arc<Profile>],
    limits: Limits,
    stop: &CancellationToken,
) -> Rehearsal {
    let mut read = Read::with(Via::SnmpV2c, None, Profiles::of(profiles.to_vec()));
    let mut read_requests = 0;
    while let Some(request) = read.poll_request() {
        read_requests += 1;
        read.handle(Ok(recording.answer(&request)));
    }
    let finished = read.finish();
    let known = Known::of(&finished);
    let Some(mut reading) = finished.reading else {
        return Rehearsal { reading: None, runs: Vec::new(), read_requests };
    };
    let mut runs = Vec::new();
    for profile in profiles.iter().filter(|profile| profile.matches(&finished.subject)) {
        let device = Box::new(recording.clone());
        let run = sandbox::run(profile, &reading, known.clone(), device, limits, stop);
        let ended = run.result.map(|better| reading = better);
        runs.push((profile.name.clone(), ended, run.cost, run.log));
    }
    Rehearsal { reading: Some(reading), runs, read_requests }
}
