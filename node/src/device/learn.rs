//! A plan in the making: which instances a reading was made of, and what each is good for.

use std::collections::BTreeMap;

use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Status};

use super::answers::{Answers, number, total};
use super::plan::{Ask, Feed, Field};
use super::{brand, mib, supply};

/// A plan in the making.
pub(super) struct Draft<'a> {
    answers: &'a Answers,
    reading: &'a Reading,
    /// What to ask, and whether every time.
    asks: BTreeMap<Oid, (Feed, bool)>,
    fields: Vec<(Field, Vec<Oid>)>,
    /// What the outranked values are sums of; nothing where they are more than that.
    others: Vec<Vec<Oid>>,
}

impl<'a> Draft<'a> {
    pub(super) fn new(answers: &'a Answers, reading: &'a Reading) -> Draft<'a> {
        Draft { answers, reading, asks: BTreeMap::new(), fields: Vec::new(), others: Vec::new() }
    }

    fn sources(&self, field: &str) -> Vec<Oid> {
        self.reading.sources.get(field).map(|source| oids(source)).unwrap_or_default()
    }

    fn ask(&mut self, oid: Oid, feed: Feed, often: bool) {
        if self.answers.get(&oid).is_some() {
            self.asks.entry(oid).or_insert((feed, often));
        }
    }

    pub(super) fn counters(&mut self) {
        let mut counters = self.reading.counters.clone();
        for (field, name) in Field::ALL {
            let Some(value) = *field.of(&mut counters) else { continue };
            let parts = self.sources(name);
            if self.ask_sum(&parts, value) {
                self.fields.push((field, parts));
            }
        }
    }

    /// A value that another one outranks is told beside it, every time.
    pub(super) fn others(&mut self) {
        for other in &self.reading.others {
            let parts = oids(&other.source);
            let plain = self.ask_sum(&parts, other.value);
            self.others.push(if plain { parts } else { Vec::new() });
        }
    }

    /// Asks for the parts every time; true when `value` is their sum. What is more than that can only be had by
    /// reading anew when it changes.
    fn ask_sum(&mut self, parts: &[Oid], value: u64) -> bool {
        let numbers = parts.iter().map(|oid| self.answers.get(oid).and_then(total));
        let sum = numbers.collect::<Option<Vec<u64>>>().map(|numbers| numbers.iter().sum::<u64>());
        let plain = sum == Some(value) && !parts.is_empty();
        let feed = if plain { Feed::Number } else { Feed::Mark };
        parts.iter().for_each(|oid| self.ask(oid.clone(), feed, true));
        plain
    }

    pub(super) fn levels(&mut self) {
        for (at, row) in supply::rows(self.answers).iter().enumerate() {
            let Ok(at) = u16::try_from(at) else { return };
            let cell = |root: &[u32]| mib::oid(root).child(row);
            self.ask(cell(mib::SUPPLY_LEVEL), Feed::Level(at), true);
            self.ask(cell(mib::SUPPLY_MAX), Feed::Mark, false);
            self.ask(cell(mib::SUPPLY_DESCR), Feed::Mark, false);
        }
    }

    pub(super) fn state(&mut self) {
        let first = |root| self.answers.first(root).map(|(oid, value)| (oid, number(value)));
        let printer = first(mib::HR_PRINTER_STATUS);
        let errors = first(mib::HR_PRINTER_ERRORS);
        let device =
            brand::device_index(self.answers).map(|index| mib::oid(mib::HR_DEVICE_STATUS).child(&[index]));
        // RFC 3805 appendix E: a printer that idles, prints or warms up is running; only for the others hrDeviceStatus
        // says more. It is asked for when hrPrinterStatus changes, too.
        let plain = matches!(self.reading.status, Some(Status::Idle | Status::Printing | Status::Warmup))
            && matches!(printer, Some((_, Some(3..=5))));
        if let Some((oid, _)) = printer {
            self.ask(oid, Feed::PrinterStatus, true);
        }
        if let Some((oid, _)) = errors {
            self.ask(oid, Feed::Errors, true);
        }
        if let Some(oid) = device {
            self.ask(oid, Feed::DeviceStatus, !plain);
        }
    }

    pub(super) fn display(&mut self) {
        let used = self.sources("display");
        let panel = used.iter().any(|oid| oid.arcs().starts_with(mib::CONSOLE_TEXT));
        let lines: Vec<Oid> = match panel {
            true => self.answers.rows(mib::CONSOLE_TEXT).map(|(_, oid, _)| oid.clone()).collect(),
            false => used,
        };
        lines.into_iter().for_each(|oid| self.ask(oid, Feed::Display, false));
    }

    /// All else that the reading was made of. One of them is asked every time: the serial number, else what comes
    /// nearest to one.
    pub(super) fn marks(&mut self) {
        // Conditions come from what state() asks and from rows that come and go.
        const STATIC: [&str; 4] = ["vendor", "model", "mac", "conditions"];
        let mut identity = self.sources("serial");
        if identity.is_empty() {
            identity = vec![mib::scalar(mib::SYS_OBJECT_ID), mib::scalar(mib::SYS_NAME)];
        }
        identity.into_iter().for_each(|oid| self.ask(oid, Feed::Mark, true));
        self.ask(mib::scalar(mib::SYS_OBJECT_ID), Feed::Mark, false);
        let fields = self.reading.sources.keys().filter(|field| !STATIC.contains(&field.as_str()));
        let oids: Vec<Oid> = fields.flat_map(|field| self.sources(field)).collect();
        oids.into_iter().for_each(|oid| self.ask(oid, Feed::Mark, false));
    }

    /// The asks in their order, how many of them are asked every time, how many of these are the run, and where each
    /// instance stands.
    pub(super) fn order(&self) -> (Vec<Ask>, usize, usize, BTreeMap<Oid, u16>) {
        let of = |wanted: bool| {
            let some = self.asks.iter().filter(move |(_, (_, often))| *often == wanted);
            some.map(|(oid, (feed, _))| Ask { oid: oid.clone(), feed: *feed })
        };
        let often: Vec<Ask> = of(true).collect();
        let (start, run) = longest_run(&often);
        let mut asks: Vec<Ask> = often[..start].iter().chain(&often[start + run..]).cloned().collect();
        asks.extend_from_slice(&often[start..start + run]);
        asks.extend(of(false));
        let place = |(at, ask): (usize, &Ask)| Some((ask.oid.clone(), u16::try_from(at).ok()?));
        let positions = asks.iter().enumerate().filter_map(place).collect();
        (asks, often.len(), run, positions)
    }

    pub(super) fn sums(&self, positions: &BTreeMap<Oid, u16>) -> Vec<(Field, Vec<u16>)> {
        self.fields.iter().filter_map(|(field, parts)| Some((*field, places(parts, positions)?))).collect()
    }

    pub(super) fn outranked(&self, positions: &BTreeMap<Oid, u16>) -> Vec<Vec<u16>> {
        self.others.iter().map(|parts| places(parts, positions).unwrap_or_default()).collect()
    }
}

fn oids(source: &str) -> Vec<Oid> {
    source.split('+').filter_map(|oid| oid.parse().ok()).collect()
}

fn places(parts: &[Oid], positions: &BTreeMap<Oid, u16>) -> Option<Vec<u16>> {
    parts.iter().map(|oid| positions.get(oid).copied()).collect()
}

/// Where the longest run of rows of one column begins, that follow each other, and how many they are.
fn longest_run(asks: &[Ask]) -> (usize, usize) {
    let follows = |a: &Ask, b: &Ask| match (a.oid.arcs().split_last(), b.oid.arcs().split_last()) {
        (Some((a, column)), Some((b, other))) => column == other && a.checked_add(1) == Some(*b),
        _ => false,
    };
    let (mut best, mut start) = ((0, asks.len().min(1)), 0);
    for at in 1..asks.len() {
        if !follows(&asks[at - 1], &asks[at]) {
            start = at;
        }
        if at + 1 - start > best.1 {
            best = (start, at + 1 - start);
        }
    }
    best
}
