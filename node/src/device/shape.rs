//! What a plan knows: of the device itself, and of all devices of its kind, which is most of it and kept once for all of them.
//! And how a reading is made of that and of what was heard now.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError, Weak};

use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Supply};
use quire_proto::shared::Sources;

use super::answers::total;
use super::news::News;
use super::plan::{Ask, Feed, Field};
use super::script::{Profiles, Subject};
use super::{standard, supply, text};
use crate::snmp::{Prepared, Request, Seen};

/// Shapes that are kept before those without a device are looked for.
const SHAPES: usize = 256;

/// What is the device's own.
#[derive(Debug)]
pub(super) struct Learnt {
    pub(super) shape: Arc<Shape>,
    /// Facts, and all else that does not change but by a new read in full; without supplies and sources.
    pub(super) template: Reading,
    pub(super) subject: Arc<Subject>,
    /// Those that the reading was understood with.
    pub(super) profiles: Profiles,
    pub(super) charset: Option<i64>,
    /// Digests of the marks that every read asks for, and of all.
    pub(super) often_marks: u64,
    pub(super) all_marks: u64,
}

/// What devices of one kind have in common.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Asked every time, singles before the run; then what is asked now and then.
    pub(super) asks: Vec<Ask>,
    pub(super) often: usize,
    /// Of those asked every time, the last so many are rows of one column, one after the other.
    pub(super) run: usize,
    /// The counters with the positions whose sum they are.
    pub(super) sums: Vec<(Field, Vec<u16>)>,
    /// The positions whose sums the outranked values are, in their order.
    pub(super) others: Vec<Vec<u16>>,
    pub(super) supplies: Vec<Supply>,
    pub(super) sources: Sources,
    /// The same with the source of the conditions that the printer's state tells.
    pub(super) ailing: Later<Sources>,
    /// The question of every read, without and with a look at an empty table of alerts.
    pub(super) asking: [Later<Arc<Prepared>>; 2],
    /// The GETs of what is asked now and then.
    pub(super) asking_rest: Later<Vec<Arc<Prepared>>>,
}

/// What follows from the rest, made when it is wanted first; so it makes no difference.
#[derive(Debug)]
pub(super) struct Later<T>(pub(super) OnceLock<T>);

impl<T> Default for Later<T> {
    fn default() -> Self {
        Later(OnceLock::new())
    }
}

impl<T> PartialEq for Later<T> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl<T> Eq for Later<T> {}

impl Learnt {
    /// What was learnt with what was heard now; `None` where the plan does not fit any more.
    pub(super) fn reading(
        &self,
        found: &[Seen<'_>],
        next: &News<'_>,
        display: Option<&(String, String)>,
    ) -> Option<Reading> {
        let shape = &*self.shape;
        let mut reading = self.template.clone();
        reading.sources.clone_from(&shape.sources);
        let sum = |parts: &[u16]| {
            parts.iter().try_fold(0u64, |sum, at| sum.checked_add(total(found[usize::from(*at)])?))
        };
        for (field, parts) in &shape.sums {
            let value = sum(parts)?;
            // A total of nothing is what some devices say that never count; and a counter may not be negative.
            if value == 0 && *field == Field::Total {
                return None;
            }
            *field.of(&mut reading.counters) = Some(value);
        }
        for (other, parts) in reading.others.iter_mut().zip(&shape.others).filter(|(_, p)| !p.is_empty()) {
            other.value = sum(parts)?;
        }
        // What says the same now is no other value.
        let counters = &mut reading.counters;
        reading.others.retain(|other| {
            let field = Field::ALL.iter().find(|(_, name)| *name == other.field);
            field.is_none_or(|(field, _)| *field.of(counters) != Some(other.value))
        });
        reading.supplies.clone_from(&shape.supplies);
        let levels = shape.asks.iter().filter(|ask| matches!(ask.feed, Feed::Level(_)));
        for (ask, raw) in levels.zip(&next.levels) {
            let Feed::Level(at) = ask.feed else { continue };
            let supply = reading.supplies.get_mut(usize::from(at))?;
            if let Some(source) = supply::refill(supply, *raw, &ask.oid) {
                reading.sources.insert(format!("supplies.{}.level", supply.index), source);
            }
        }
        reading.status = standard::status(next.printer, next.device);
        if let Some((oid, bits)) = next.errors {
            reading.conditions = standard::conditions(bits);
            if !reading.conditions.is_empty() {
                reading.sources = shape.ailing(reading.sources, oid);
            }
        }
        reading.display = display.map(|(text, _)| text.clone());
        set_source(&mut reading.sources, "display", display.map(|(_, source)| source));
        Some(reading)
    }

    /// The panel's lines and where they came from.
    pub(super) fn display(&self, next: &News<'_>) -> Option<(String, String)> {
        let lines =
            next.display.iter().filter_map(|(oid, text)| Some((text::clean(text, self.charset)?, oid)));
        let (texts, oids): (Vec<String>, Vec<String>) =
            lines.map(|(text, oid)| (text, oid.to_string())).unzip();
        (!texts.is_empty()).then(|| (texts.join(" "), oids.join("+")))
    }
}

impl Shape {
    /// The capacities of the supplies whose levels are asked for, in the order of the asks.
    pub(super) fn refilled(&self) -> impl Iterator<Item = Option<u64>> {
        self.asks.iter().filter_map(|ask| match ask.feed {
            Feed::Level(at) => Some(self.supplies.get(usize::from(at)).and_then(|supply| supply.max)),
            Feed::Mark | Feed::Number | Feed::PrinterStatus | Feed::DeviceStatus => None,
            Feed::Errors | Feed::Display => None,
        })
    }

    /// The `n`-th GET of what is asked now and then, `width` names in each.
    pub(super) fn rest_question(&self, n: usize, width: usize) -> Option<Arc<Prepared>> {
        let prepare = |asks: &[Ask]| {
            let names: Vec<Oid> = asks.iter().map(|ask| ask.oid.clone()).collect();
            Arc::new(Prepared::new(&Request::Get(names.clone()), names.into_iter().map(Some)))
        };
        let all =
            self.asking_rest.0.get_or_init(|| self.asks[self.often..].chunks(width).map(prepare).collect());
        all.get(n).cloned()
    }

    /// These sources, and where conditions come from; those that all devices of the kind have are made once.
    fn ailing(&self, sources: Sources, oid: &Oid) -> Sources {
        let told = |mut sources: Sources| {
            sources.insert("conditions".to_owned(), oid.to_string());
            sources
        };
        match sources == self.sources {
            true => self.ailing.0.get_or_init(|| told(sources)).clone(),
            false => told(sources),
        }
    }

    /// True when every read asks for it.
    pub(super) fn asks_often(&self, feed: Feed) -> bool {
        self.asks[..self.often].iter().any(|ask| ask.feed == feed)
    }
}

fn set_source(sources: &mut Sources, field: &str, source: Option<&String>) {
    if sources.get(field) == source {
        // Touched, they would be this reading's own, and copied for it.
        return;
    }
    match source {
        Some(source) => drop(sources.insert(field.to_owned(), source.clone())),
        None => drop(sources.remove(field)),
    }
}

/// The same shape as one that is in use, or this one.
pub(super) fn shared(shape: Shape) -> Arc<Shape> {
    static SHARED: LazyLock<Mutex<HashMap<u64, Weak<Shape>>>> = LazyLock::new(Mutex::default);
    let mut hasher = DefaultHasher::new();
    (&shape.asks, &shape.sums, &shape.sources, &shape.supplies).hash(&mut hasher);
    let mut shapes = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = shapes.get(&hasher.finish()).and_then(Weak::upgrade).filter(|same| **same == shape) {
        return same;
    }
    if shapes.len() >= SHAPES && shapes.len().is_power_of_two() {
        shapes.retain(|_, shape| shape.strong_count() > 0);
    }
    let shape = Arc::new(shape);
    shapes.insert(hasher.finish(), Arc::downgrade(&shape));
    shape
}
