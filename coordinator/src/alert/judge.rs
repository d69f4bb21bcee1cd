//! Rules over the tables: what holds of what, and what therefore is to be raised or cleared. Writes nothing.

use std::collections::BTreeMap;

use quire_proto::convert;
use quire_proto::id::Millis;
use quire_proto::reading::Reading;
use quire_proto::store::{AlertChange, AlertRow, DeviceRow, Meta, UnitRow};

use super::field::Scope;
use super::subject::{CLUSTER, Device, Subject, of_device, supply_index};
use super::{OPEN, key};
use crate::settings::{AlertRule, Notify};
use crate::tables::{Fault, Read, ReadExt as _, Table, after};
use crate::{expiry, rows};

/// Alerts that wait for their `for`, at most: some 2 MB. Others wait for their next judgement.
const WAITING: usize = 10_000;

/// What a rule says of a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What to propose, once it is to be raised or cleared.
    change: AlertChange,
    holds: Option<bool>,
    open: bool,
    /// How long it must hold.
    for_ms: u64,
}

/// Judges by the tables of one moment.
pub struct Judge<'a, T: Read + ?Sized> {
    rules: &'a [AlertRule],
    tables: &'a T,
    meta: Meta,
    /// Of nodes.
    names: BTreeMap<u64, String>,
}

impl<'a, T: Read + ?Sized> Judge<'a, T> {
    /// Of these rules, by these tables.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    pub fn new(rules: &'a [AlertRule], tables: &'a T) -> Result<Self, Fault> {
        let names = rows::members(tables)?.into_iter().map(|member| (member.id, member.name)).collect();
        Ok(Judge { rules, tables, meta: rows::meta(tables)?, names })
    }

    /// All that the rules say of a device and its supplies. One that is gone, or left the reports, has no alerts.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    pub fn device(&self, id: &str) -> Result<Vec<Verdict>, Fault> {
        let row: Option<DeviceRow> = self.tables.row(Table::Devices, id.as_bytes())?;
        let row = row.filter(|row| row.expired_at_ms == 0);
        let mut open = self.open(&of_device(id))?;
        open.retain(|alert| alert.device == id);
        let Some(row) = row else {
            return Ok(open.iter().map(|alert| gone(alert, "the device left the reports")).collect());
        };
        let reading = convert::decode(&row.reading).unwrap_or_default();
        let silent_ms = expiry::idle_ms(self.tables, &self.meta, &row)?;
        let node = self.names.get(&row.node).map(String::as_str);
        let device = Device { row: &row, reading: &reading, node, silent_ms };
        let mut verdicts = Vec::new();
        for rule in self.rules {
            match rule.condition.scope() {
                Scope::Device => verdicts.push(self.verdict(rule, Subject::Device(&device), &open)),
                Scope::Supply => {
                    let supplies = reading.supplies.iter();
                    verdicts.extend(
                        supplies.map(|supply| self.verdict(rule, Subject::Supply(&device, supply), &open)),
                    );
                }
                Scope::Unit | Scope::Node | Scope::Cluster => {}
            }
        }
        for verdict in &mut verdicts {
            verdict.change.device = id.to_owned();
            (verdict.change.metered_at_ms, verdict.change.misses) = (row.metered_at_ms, row.misses);
        }
        self.leftovers(&mut verdicts, &open, |alert| still_there(alert, &reading));
        Ok(verdicts)
    }

    /// All that the rules say of a unit.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    pub fn unit(&self, id: &str) -> Result<Vec<Verdict>, Fault> {
        let row: Option<UnitRow> = self.tables.row(Table::Units, id.as_bytes())?;
        let open = self.open_of(&format!("unit/{id}"))?;
        let mut verdicts = Vec::new();
        if let Some(row) = &row {
            let rules = self.rules.iter().filter(|rule| rule.condition.scope() == Scope::Unit);
            verdicts.extend(rules.map(|rule| self.verdict(rule, Subject::Unit(row), &open)));
        }
        self.leftovers(&mut verdicts, &open, |_| false);
        Ok(verdicts)
    }

    /// All that the rules say of nodes and the cluster.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    pub fn cluster(&self) -> Result<Vec<Verdict>, Fault> {
        let mut open = self.open("node/")?;
        open.extend(self.open_of(CLUSTER)?);
        let mut verdicts = Vec::new();
        let members = match self.rules.iter().any(|rule| rule.condition.scope() == Scope::Node) {
            true => rows::members(self.tables)?,
            false => Vec::new(),
        };
        for rule in self.rules {
            match rule.condition.scope() {
                Scope::Node => verdicts.extend(
                    members.iter().map(|member| self.verdict(rule, Subject::Node(member, &self.meta), &open)),
                ),
                Scope::Cluster => verdicts.push(self.verdict(rule, Subject::Cluster(&self.meta), &open)),
                Scope::Device | Scope::Supply | Scope::Unit => {}
            }
        }
        self.leftovers(&mut verdicts, &open, |_| false);
        Ok(verdicts)
    }

    /// All that the rules say of the subject of this name, and of what belongs to it.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    pub fn subject(&self, name: &str) -> Result<Vec<Verdict>, Fault> {
        match name.split_once('/') {
            Some(("device", rest)) => self.device(rest.split_once("/supply/").map_or(rest, |(id, _)| id)),
            Some(("unit", id)) => self.unit(id),
            Some(_) | None => self.cluster(),
        }
    }

    /// The subjects of open alerts from a key on, and the key of the next page.
    ///
    /// # Errors
    /// When the store fails or a row is damaged.
    pub fn open_subjects(&self, from: &[u8], most: usize) -> Result<(Vec<String>, Option<Vec<u8>>), Fault> {
        let from = if from.is_empty() { OPEN } else { from };
        let page = self.tables.range(Table::Alerts, from, most)?;
        let next = page.last().filter(|_| page.len() == most).map(|(key, _)| after(key));
        let subject = |key: &[u8]| {
            let rest = key.strip_prefix(OPEN)?;
            let end = rest.iter().position(|octet| *octet == 0)?;
            Some(String::from_utf8_lossy(&rest[..end]).into_owned())
        };
        let mut subjects: Vec<String> = page.iter().filter_map(|(key, _)| subject(key)).collect();
        subjects.dedup();
        Ok((subjects, next))
    }

    /// Open alerts of subjects whose names begin so.
    fn open(&self, start: &str) -> Result<Vec<AlertRow>, Fault> {
        if self.meta.alerts_open == 0 {
            return Ok(Vec::new());
        }
        self.tables.all(Table::Alerts, &[OPEN, start.as_bytes()].concat())
    }

    fn open_of(&self, subject: &str) -> Result<Vec<AlertRow>, Fault> {
        let mut open = self.open(subject)?;
        open.retain(|alert| alert.subject == subject);
        Ok(open)
    }

    fn verdict(&self, rule: &AlertRule, subject: Subject<'_>, open: &[AlertRow]) -> Verdict {
        let value = |field| subject.value(field);
        let name = subject.name();
        let is = |alert: &&AlertRow| alert.rule == rule.name && alert.subject == name;
        let open = open.iter().any(|alert| is(&alert));
        let holds = rule.condition.holds(&value);
        // Nobody reads the text of what stays as it is.
        let what = match holds {
            Some(holds) if holds != open => format!("{}: {}", subject.label(), rule.condition.values(&value)),
            _ => String::new(),
        };
        let change = AlertChange {
            rule: rule.name.clone(),
            subject: name,
            what,
            upstream: rule.notify.contains(&Notify::Upstream),
            ..AlertChange::default()
        };
        Verdict { change, holds, open, for_ms: rule.for_ms }
    }

    /// Clears what is open and was not judged: its rule is gone, or its subject unless `stays` says otherwise.
    fn leftovers(&self, verdicts: &mut Vec<Verdict>, open: &[AlertRow], stays: impl Fn(&AlertRow) -> bool) {
        for alert in open {
            let judged = |verdict: &Verdict| {
                verdict.change.rule == alert.rule && verdict.change.subject == alert.subject
            };
            if verdicts.iter().any(judged) {
                continue;
            }
            if !self.rules.iter().any(|rule| rule.name == alert.rule) {
                verdicts.push(gone(alert, "the rule is gone"));
            } else if !stays(alert) {
                verdicts
                    .push(gone(alert, "what it was about is gone, or the rule is about something else now"));
            }
        }
    }
}

/// A reading without any supplies says nothing of them.
fn still_there(alert: &AlertRow, reading: &Reading) -> bool {
    supply_index(&alert.subject).is_some() && reading.supplies.is_empty()
}

fn gone(alert: &AlertRow, why: &str) -> Verdict {
    let change = AlertChange {
        rule: alert.rule.clone(),
        subject: alert.subject.clone(),
        what: why.to_owned(),
        ..AlertChange::default()
    };
    Verdict { change, holds: Some(false), open: true, for_ms: 0 }
}

/// Turns verdicts into changes; remembers what must hold for longer. In memory: another leader counts anew.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// When what holds will have held for long enough, by key.
    waiting: BTreeMap<Vec<u8>, (Millis, String)>,
}

impl Watch {
    /// What to propose after a verdict at `now`, if anything.
    pub fn settle(&mut self, verdict: Verdict, now: Millis) -> Option<AlertChange> {
        let Verdict { change, holds, open, for_ms } = verdict;
        let key = key(true, &change.subject, &change.rule);
        match (holds, open) {
            (Some(true), false) => {
                let held = self.waiting.get(&key).map(|(until, _)| *until);
                let until = held.unwrap_or(Millis(now.0.saturating_add(for_ms)));
                if until <= now {
                    self.waiting.remove(&key);
                    return Some(AlertChange { raised: true, ..change });
                }
                if held.is_none() && self.waiting.len() < WAITING {
                    self.waiting.insert(key, (until, change.subject));
                }
                None
            }
            (Some(false), _) => {
                self.waiting.remove(&key);
                open.then_some(AlertChange { raised: false, ..change })
            }
            (Some(true), true) => None,
            (None, _) => {
                // What is not known has not held; it begins anew, at the earliest now.
                if let Some((until, _)) = self.waiting.get_mut(&key) {
                    *until = Millis(now.0.saturating_add(for_ms));
                }
                None
            }
        }
    }

    /// Call after the ripe ones were judged: what is still ripe then is about something that is gone.
    pub fn forget_ripe(&mut self, now: Millis) {
        self.waiting.retain(|_, (until, _)| *until > now);
    }

    /// Subjects to judge again, because something of them may have held for long enough.
    pub fn ripe(&self, now: Millis) -> Vec<String> {
        let ripe = self.waiting.values().filter(|(until, _)| *until <= now);
        let mut subjects: Vec<String> = ripe.map(|(_, subject)| subject.clone()).collect();
        subjects.dedup();
        subjects
    }
}
