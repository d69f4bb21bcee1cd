//! The words that a script has: what it may ask of its device and what it may say about it.
//!
//! Everything is checked at this door: a sentinel is typed or refused, a value names a source that was really asked,
//! a question is counted before it is sent. Effects go to a draft that counts only when the script ends well.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quire_proto::oid::Oid;
use quire_proto::reading::{Condition, Reading, Status, Via};
use rhai::{Array, Blob, Dynamic, Engine, EvalAltResult, Map, Position};
use tokio_util::sync::CancellationToken;

use super::pages::{self, Html, Xml};
use super::sandbox::{Budget, Cost, Limits};
use super::stated::{integer, string, supply_of};
use super::{Device, Known, Page, Rendered, WebMiss, WebPath};
use crate::device::answers::{Answers, has_value, number, octets};
use crate::device::family::{COUNTERS, slot};
use crate::device::mib;
use crate::device::walk::Walk;
use crate::device::{Place, device_json, text};
use crate::snmp::{Request, Response, Value};

/// Instances in one GET, columns in one walk.
const WIDTH: usize = 24;
/// Rows of one walk, and at a time.
const ROWS: u16 = 512;
const REPETITIONS: u8 = 20;
/// Supplies of one device.
const SUPPLIES: usize = 64;
/// Lines that a script may log, characters of each.
const LOG: (usize, usize) = (50, 200);
/// Longest name, source or other text that a script may set, characters.
pub(super) const LONGEST: usize = 400;

type Fault = Box<EvalAltResult>;
pub(super) type Said<T> = Result<T, Fault>;

/// What a run of a script holds.
pub(super) struct Host {
    draft: Reading,
    /// What the read and the script asked so far: asked once, answered for the rest of the run.
    answers: Answers,
    asked: BTreeSet<Oid>,
    /// Every instance that it wanted, known before or not.
    wanted: BTreeSet<Oid>,
    device: Box<dyn Device>,
    limits: Limits,
    stop: CancellationToken,
    requests: u32,
    bytes: usize,
    exhausted: Option<Budget>,
    /// URLs of pages by the path that was asked for.
    pages: Vec<(String, String)>,
    log: Vec<String>,
}

impl Host {
    pub(super) fn new(
        reading: &Reading,
        known: Known,
        device: Box<dyn Device>,
        limits: Limits,
        stop: CancellationToken,
    ) -> Host {
        Host {
            draft: reading.clone(),
            answers: known.fresh,
            asked: known.absent,
            wanted: BTreeSet::new(),
            device,
            limits,
            stop,
            requests: 0,
            bytes: 0,
            exhausted: None,
            pages: Vec::new(),
            log: Vec::new(),
        }
    }

    pub(super) fn exhausted(&self) -> Option<Budget> {
        self.exhausted
    }

    pub(super) fn take_draft(&mut self) -> Reading {
        self.draft.via.sort_unstable();
        self.draft.supplies.sort_by_key(|supply| supply.index);
        std::mem::take(&mut self.draft)
    }

    /// What it wanted by name, and whether it was there.
    pub(super) fn asked(&self) -> Vec<(Oid, bool)> {
        self.wanted.iter().map(|oid| (oid.clone(), self.answers.get(oid).is_some())).collect()
    }

    pub(super) fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }

    pub(super) fn cost(&self) -> Cost {
        Cost { operations: 0, requests: self.requests, bytes: self.bytes }
    }

    /// Ends the script, `try` or no `try`.
    fn over(&mut self, budget: Budget) -> Fault {
        self.exhausted = Some(budget);
        Box::new(EvalAltResult::ErrorTerminated(Dynamic::UNIT, Position::NONE))
    }

    fn charge_request(&mut self) -> Said<()> {
        if self.stop.is_cancelled() {
            return Err(self.over(Budget::Seconds));
        }
        if self.requests >= self.limits.requests {
            return Err(self.over(Budget::Requests));
        }
        self.requests += 1;
        Ok(())
    }

    fn charge_bytes(&mut self, octets: usize) -> Said<()> {
        self.bytes = self.bytes.saturating_add(octets);
        if self.bytes > self.limits.bytes { Err(self.over(Budget::Bytes)) } else { Ok(()) }
    }

    fn ask(&mut self, request: &Request) -> Said<Response> {
        self.charge_request()?;
        let answer = self.device.ask(request);
        if self.stop.is_cancelled() {
            return Err(self.over(Budget::Seconds));
        }
        let response = answer.map_err(|_| fault("the device does not answer"))?;
        self.charge_bytes(response.varbinds.iter().map(size).sum())?;
        Ok(response)
    }

    /// GETs those that are not known yet. SNMPv1 fails a whole GET for one missing name, so there they go alone.
    fn fetch(&mut self, oids: &[Oid]) -> Said<()> {
        let open = |oid: &&Oid| self.answers.get(oid).is_none() && !self.asked.contains(*oid);
        let missing: Vec<Oid> = oids.iter().filter(open).cloned().collect();
        self.wanted.extend(oids.iter().cloned());
        let width = if self.device.via() == Via::SnmpV1 { 1 } else { WIDTH };
        for part in missing.chunks(width) {
            let response = self.ask(&Request::Get(part.to_vec()))?;
            self.asked.extend(part.iter().cloned());
            if response.error_status == 0 {
                let wanted = |oid: &Oid| part.contains(oid);
                response.varbinds.iter().filter(|v| wanted(&v.oid)).for_each(|v| self.answers.insert(v));
            }
        }
        Ok(())
    }

    fn walk(&mut self, columns: &[Oid]) -> Said<()> {
        let bulk = self.device.via() != Via::SnmpV1;
        let mut walk = Walk::new(&[], columns, ROWS, REPETITIONS, bulk);
        while let Some(request) = walk.request() {
            let response = self.ask(&request)?;
            walk.handle(&response, &mut self.answers);
        }
        Ok(())
    }

    /// A source as it will be kept: OIDs that have an answer, pages that were read, or a source of the reading.
    fn source(&self, text: &str) -> Said<String> {
        if text.is_empty() || text.chars().count() > LONGEST {
            return Err(fault("a value needs a source: the OIDs joined by `+`, or the path of a page"));
        }
        if self.draft.sources.values().any(|known| known == text) {
            return Ok(text.to_owned());
        }
        let (path, mark) = text.split_once('#').map_or((text, String::new()), |(p, m)| (p, format!("#{m}")));
        if let Some((_, url)) = self.pages.iter().find(|(asked, _)| asked == path) {
            return Ok(format!("{url}{mark}"));
        }
        // Who it is was asked in the first read and is known ever since.
        let identity = [mib::scalar(mib::SYS_DESCR), mib::scalar(mib::SYS_OBJECT_ID)];
        let heard = |part: &str| {
            part.parse::<Oid>().is_ok_and(|oid| self.answers.get(&oid).is_some() || identity.contains(&oid))
        };
        if text.split('+').all(heard) {
            return Ok(text.trim_start_matches('.').to_owned());
        }
        Err(fault(&format!("`{text}` is no source: nothing was heard from there")))
    }

    fn meter(&mut self, name: &str, value: &Dynamic, source: &str) -> Said<()> {
        let count = value.as_int().ok().and_then(|n| u64::try_from(n).ok());
        // -1, -2 and -3 of RFC 3805 are words, not counts; so is a text.
        let count = count.ok_or_else(|| fault(&format!("meter {name}: `{value}` is no count")))?;
        let source = self.source(source)?;
        let slot = slot(&mut self.draft.counters, name)
            .ok_or_else(|| fault(&format!("`{name}` is no meter: there are {}", COUNTERS.join(", "))))?;
        *slot = Some(count);
        if name == "total" {
            self.draft.counters.unit = None;
        }
        self.draft.sources.insert(format!("counters.{name}"), source);
        Ok(())
    }

    fn supply(&mut self, said: &Map) -> Said<()> {
        let source = self.source(&string(said, "source")?.unwrap_or_default())?;
        let next = self.draft.supplies.iter().map(|supply| supply.index).max().unwrap_or(0) + 1;
        let index = match integer(said, "index")? {
            Some(n) => u32::try_from(n).map_err(|_| fault("supply: an index is 1 or more"))?,
            None => next,
        };
        let before = self.draft.supplies.iter().position(|supply| supply.index == index);
        let supply = supply_of(said, index, before.map(|at| &self.draft.supplies[at]))?;
        let by_level =
            supply.level.is_some() || self.draft.sources.contains_key(&format!("supplies.{index}.level"));
        let field = if by_level { "level" } else { "percent" };
        match before {
            Some(at) => self.draft.supplies[at] = supply,
            None if self.draft.supplies.len() >= SUPPLIES => return Err(fault("supply: too many of them")),
            None => self.draft.supplies.push(supply),
        }
        self.draft.sources.insert(format!("supplies.{index}.{field}"), source);
        Ok(())
    }

    fn status(&mut self, word: &str, source: &str) -> Said<()> {
        let status = Status::from_word(word).ok_or_else(|| fault(&format!("`{word}` is no status")))?;
        let source = self.source(source)?;
        self.draft.status = Some(status);
        self.draft.sources.insert("status".to_owned(), source);
        Ok(())
    }

    fn condition(&mut self, word: &str, source: &str) -> Said<()> {
        let known = Condition::from_word(word).ok_or_else(|| fault(&format!("`{word}` is no condition")))?;
        let source = self.source(source)?;
        if !self.draft.conditions.contains(&known) {
            self.draft.conditions.push(known);
            self.draft.conditions.sort_unstable();
        }
        self.draft.sources.entry("conditions".to_owned()).or_insert(source);
        Ok(())
    }

    /// Takes back what an earlier profile or the standard said, because this family means something else by it.
    fn forget(&mut self, field: &str) -> Said<()> {
        let draft = &mut self.draft;
        let counter = field.strip_prefix("counters.");
        let row = field.strip_prefix("supplies.").and_then(|row| row.parse::<u32>().ok());
        match field {
            "vendor" => draft.facts.vendor = None,
            "model" => draft.facts.model = None,
            "serial" => draft.facts.serial = None,
            "name" => draft.facts.name = None,
            "location" => draft.facts.location = None,
            "firmware" => draft.facts.firmware = None,
            "asset" => draft.facts.asset = None,
            "display" => draft.display = None,
            "status" => draft.status = None,
            "conditions" => draft.conditions.clear(),
            _ => match (counter.and_then(|name| slot(&mut draft.counters, name)), row) {
                (Some(slot), _) => *slot = None,
                (None, Some(row)) => draft.supplies.retain(|supply| supply.index != row),
                (None, None) => return Err(fault(&format!("`{field}` is no field that can be forgotten"))),
            },
        }
        if field == "counters.total" {
            draft.counters.unit = None;
        }
        let below = format!("{field}.");
        draft.sources.retain(|known, _| known != field && !known.starts_with(&below));
        Ok(())
    }

    fn fact(&mut self, name: &str, value: &str, source: &str) -> Said<()> {
        let clean = text::clean(value.as_bytes(), None).filter(|text| text.chars().count() <= LONGEST);
        let clean = if name == "serial" { clean.and_then(|s| text::serial(&s)) } else { clean };
        let value = clean.ok_or_else(|| fault(&format!("`{value}` is no {name}")))?;
        let source = self.source(source)?;
        let facts = &mut self.draft.facts;
        match name {
            "model" => facts.model = Some(value),
            "serial" => facts.serial = Some(value),
            "name" => facts.name = Some(value),
            "location" => facts.location = Some(value),
            "firmware" => facts.firmware = Some(value),
            "asset" => facts.asset = Some(value),
            "display" => self.draft.display = Some(value),
            "vendor" => facts.vendor = Some(value),
            _ => {
                let known = "vendor, model, serial, name, location, firmware, asset, display";
                return Err(fault(&format!("`{name}` is no fact: there are {known}")));
            }
        }
        self.draft.sources.insert(name.to_owned(), source);
        Ok(())
    }

    fn http_get(&mut self, path: &str) -> Said<Map> {
        let page = self.web(path, Device::fetch)?;
        self.charge_bytes(page.body.len())?;
        let status = ("status".into(), Dynamic::from_int(i64::from(page.status)));
        let body = ("body".into(), page.body.clone().into());
        self.heard(path, page);
        Ok([status, body].into_iter().collect())
    }

    fn page(&mut self, path: &str) -> Said<Map> {
        let Rendered { page, text } = self.web(path, Device::render)?;
        self.charge_bytes(page.body.len() + text.len())?;
        let status = ("status".into(), Dynamic::from_int(i64::from(page.status)));
        let html = ("html".into(), page.body.clone().into());
        self.heard(path, page);
        Ok([status, html, ("text".into(), text.into())].into_iter().collect())
    }

    /// One page by `how`, counted before it is asked for.
    fn web<T>(
        &mut self,
        path: &str,
        how: fn(&mut (dyn Device + 'static), &WebPath, usize) -> Result<T, WebMiss>,
    ) -> Said<T> {
        let Some(path) = WebPath::new(path) else {
            return Err(fault(&format!("`{path}` is no path on the device: write `/path?query`")));
        };
        self.charge_request()?;
        let left = self.limits.bytes.saturating_sub(self.bytes);
        let page = how(&mut *self.device, &path, left);
        if self.stop.is_cancelled() {
            return Err(self.over(Budget::Seconds));
        }
        match page {
            Err(WebMiss::TooLong) => Err(self.over(Budget::Bytes)),
            other => other.map_err(|miss| fault(&miss.to_string())),
        }
    }

    /// From now on the page may be named as a source.
    fn heard(&mut self, path: &str, page: Page) {
        if !self.draft.via.contains(&page.via) {
            self.draft.via.push(page.via);
        }
        self.pages.push((path.to_owned(), page.url));
    }

    fn note(&mut self, line: &str) {
        if self.log.len() < LOG.0 {
            self.log.push(line.chars().filter(|c| !c.is_control()).take(LOG.1).collect());
        }
    }
}

pub(super) fn fault(text: &str) -> Fault {
    text.into()
}

fn size(varbind: &crate::snmp::VarBind) -> usize {
    varbind.oid.arcs().len() + octets(&varbind.value).map_or(8, <[u8]>::len)
}

/// The reading so far as a script sees it: the object that listings print.
pub(super) fn reading_map(reading: &Reading) -> Dynamic {
    let mut json = device_json(&Place::default(), reading);
    if let Some(object) = json.as_object_mut() {
        let facts = &reading.facts;
        object.insert("object_id".to_owned(), facts.sys_object_id.as_ref().map(ToString::to_string).into());
        object.insert("descr".to_owned(), facts.sys_descr.clone().into());
        for key in ["counters", "sources"] {
            object.entry(key).or_insert_with(|| serde_json::json!({}));
        }
        for key in ["supplies", "conditions"] {
            object.entry(key).or_insert_with(|| serde_json::json!([]));
        }
    }
    pages::from_json(&json)
}

fn dynamic(value: &Value) -> Dynamic {
    if let Some(n) = number(value) {
        return Dynamic::from_int(n);
    }
    if let Some(octets) = octets(value) {
        return text::clean(octets, None).map_or_else(|| String::new().into(), Dynamic::from);
    }
    match value {
        Value::ObjectId(oid) => oid.to_string().into(),
        Value::TimeTicks(n) => Dynamic::from_int(i64::from(*n)),
        Value::IpAddress(address) => address.to_string().into(),
        _ => Dynamic::UNIT,
    }
}

fn oid(text: &str) -> Said<Oid> {
    let oid: Option<Oid> = text.parse().ok();
    oid.filter(|oid| oid.arcs().len() > 2).ok_or_else(|| fault(&format!("`{text}` is no object identifier")))
}

fn oids(list: &Array, most: usize) -> Said<Vec<Oid>> {
    if list.len() > most {
        return Err(fault(&format!("more than {most} object identifiers")));
    }
    list.iter().map(|item| oid(&item.clone().into_string().unwrap_or_default())).collect()
}

type Shared = Arc<Mutex<Host>>;

fn lock(host: &Shared) -> MutexGuard<'_, Host> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Teaches an engine the words. `ImmutableString` and `&str` are the same to Rhai.
pub(super) fn register(engine: &mut Engine, host: &Shared) {
    register_questions(engine, host);
    register_statements(engine, host);
    register_documents(engine, host);
}

fn register_questions(engine: &mut Engine, host: &Shared) {
    let h = Arc::clone(host);
    engine.register_fn("get", move |name: &str| -> Said<Dynamic> {
        let (mut host, oid) = (lock(&h), oid(name)?);
        host.fetch(std::slice::from_ref(&oid))?;
        Ok(host.answers.get(&oid).map_or(Dynamic::UNIT, dynamic))
    });
    let h = Arc::clone(host);
    engine.register_fn("get", move |names: Array| -> Said<Array> {
        let (mut host, oids) = (lock(&h), oids(&names, 256)?);
        host.fetch(&oids)?;
        Ok(oids.iter().map(|oid| host.answers.get(oid).map_or(Dynamic::UNIT, dynamic)).collect())
    });
    let h = Arc::clone(host);
    engine.register_fn("octets", move |name: &str| -> Said<Dynamic> {
        let (mut host, oid) = (lock(&h), oid(name)?);
        host.fetch(std::slice::from_ref(&oid))?;
        let found = host.answers.get(&oid).and_then(octets);
        Ok(found.map_or(Dynamic::UNIT, |octets| Dynamic::from_blob(Blob::from(octets.to_vec()))))
    });
    let h = Arc::clone(host);
    engine.register_fn("walk", move |name: &str| -> Said<Array> {
        let (mut host, root) = (lock(&h), oid(name)?);
        host.walk(std::slice::from_ref(&root))?;
        let row = |(index, oid, value): (&[u32], &Oid, &Value)| {
            let index = index.iter().map(u32::to_string).collect::<Vec<_>>().join(".");
            let cells: [(&str, Dynamic); 3] =
                [("index", index.into()), ("oid", oid.to_string().into()), ("value", dynamic(value))];
            Dynamic::from_map(cells.into_iter().map(|(key, value)| (key.into(), value)).collect())
        };
        Ok(host.answers.rows(root.arcs()).filter(|(_, _, v)| has_value(v)).map(row).collect())
    });
    // Several columns side by side cost as many packets as one; their cells are then had with `get` for nothing.
    let h = Arc::clone(host);
    engine.register_fn("walk", move |names: Array| -> Said<()> {
        let columns = oids(&names, WIDTH)?;
        lock(&h).walk(&columns)
    });
    let h = Arc::clone(host);
    engine.register_fn("http_get", move |path: &str| lock(&h).http_get(path));
    let h = Arc::clone(host);
    engine.register_fn("page", move |path: &str| lock(&h).page(path));
}

fn register_statements(engine: &mut Engine, host: &Shared) {
    let h = Arc::clone(host);
    engine.register_fn("meter", move |name: &str, value: Dynamic, source: &str| {
        lock(&h).meter(name, &value, source)
    });
    let h = Arc::clone(host);
    engine.register_fn("supply", move |said: Map| lock(&h).supply(&said));
    let h = Arc::clone(host);
    engine.register_fn("status", move |word: &str, source: &str| lock(&h).status(word, source));
    let h = Arc::clone(host);
    engine
        .register_fn("fact", move |name: &str, value: &str, source: &str| lock(&h).fact(name, value, source));
    let h = Arc::clone(host);
    engine.register_fn("condition", move |word: &str, source: &str| lock(&h).condition(word, source));
    let h = Arc::clone(host);
    engine.register_fn("forget", move |field: &str| lock(&h).forget(field));
    let h = Arc::clone(host);
    engine.register_fn("log", move |line: &str| lock(&h).note(line));
}

fn register_documents(engine: &mut Engine, host: &Shared) {
    let h = Arc::clone(host);
    engine.register_fn("json", move |text: &str| -> Said<Dynamic> {
        lock(&h).charge_bytes(text.len())?;
        pages::json(text).map_err(|error| fault(&error))
    });
    let h = Arc::clone(host);
    engine.register_fn("xml", move |text: &str| -> Said<Xml> {
        lock(&h).charge_bytes(text.len())?;
        Xml::parse(text).map_err(|error| fault(&error))
    });
    engine.register_fn("html", |text: &str| Html::new(text));
    let h = Arc::clone(host);
    engine.register_fn("find", move |page: &mut Xml, name: &str| -> Said<Array> {
        lock(&h).charge_bytes(page.len())?;
        Ok(page.find(name))
    });
    let h = Arc::clone(host);
    engine.register_fn("select", move |page: &mut Html, selector: &str| -> Said<Array> {
        lock(&h).charge_bytes(page.len())?;
        page.select(selector).map_err(|error| fault(&error))
    });
}
