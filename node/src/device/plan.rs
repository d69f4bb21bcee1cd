//! What one read teaches for the next ones: which instances to ask, how to ask for them in the fewest octets, and what
//! each answer changes in the reading. So a repeated read decodes only what may have changed.
//!
//! Every read asks for the counters, the levels, the state and one mark of identity. Every [`THOROUGH`]th, and one that
//! finds a level risen or another state, asks for the rest as well: names, texts, capacities. Whatever cannot be told by
//! patching the last reading (another serial number, another cartridge, an instance gone) is no plan's business: the
//! device is read anew.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;

use quire_proto::oid::Oid;
use quire_proto::reading::{Counters, Reading, Supply, SupplyState};

use super::alert::Alerts;
use super::answers::Answers;
use super::learn::Draft;
use super::news::{News, digest_marks, is_replaced};
use super::script::{Profiles, Subject};
use super::shape::{Later, Learnt, Shape, shared};
use super::{mib, standard};
use crate::snmp::{Expected, Prepared, Request, Seen, VarBind};

/// Reads that a plan serves before everything is asked anew, so that a new finisher is seen within a day of hourly
/// reads.
const USES: u8 = 24;
/// Of these, so many ask for the changing values alone before one asks for all.
const THOROUGH: u8 = 6;
/// An alert table without a row is looked at anew every so many reads, and whenever the printer's state says that
/// something is wrong: the look costs about 40 octets in the same packet.
const GLANCE: u8 = 3;
/// Names of single instances in a GETBULK; beyond, exact GETs are cheaper to get right than to save octets on.
const MOST_SINGLES: usize = 40;
/// Instances that a plan takes over from profiles: two packets.
const PROFILE_OIDS: usize = 64;
/// What was learnt of a device, so that the next read of it takes one packet. Cheap to clone; opaque. Behind one pointer,
/// because very many reads carry one about.
#[derive(Clone, Debug, Default)]
pub struct ReadPlan(Box<Known>);

impl Deref for ReadPlan {
    type Target = Known;

    fn deref(&self) -> &Known {
        &self.0
    }
}

impl DerefMut for ReadPlan {
    fn deref_mut(&mut self) -> &mut Known {
        &mut self.0
    }
}

/// What a plan holds.
#[derive(Clone, Debug, Default)]
pub struct Known {
    learnt: Option<Arc<Learnt>>,
    /// As the last read found them, in the order of the supplies.
    levels: Box<[i64]>,
    /// hrPrinterStatus and hrPrinterDetectedErrorState of the last read, digested.
    state: u64,
    /// The panel's text and where it came from.
    display: Option<Arc<(String, String)>>,
    uses: u8,
    /// The rows of prtAlertTable, where it has any.
    alerts: Option<Arc<Alerts>>,
    /// The printer's hrDeviceIndex, where one responder speaks for several.
    pub(super) own: Option<u32>,
    /// What profiles asked beside.
    beside: Option<Arc<Beside>>,
    /// The question of every read, without and with a look at the alerts, where it is not that of all devices of the kind.
    asking: [Option<Arc<Prepared>>; 2],
    /// What a probe has brought, for the first read.
    seen: Answers,
    /// The printer is behind the context of its JetDirect card.
    pub(super) jetdirect: bool,
    /// GETBULK brought nothing.
    pub(super) no_bulk: bool,
    /// GETBULK brought something else than was expected: exact GETs from now on.
    pub(super) exact: bool,
    /// Asked for its alerts it said nothing: left alone until the device is read anew.
    pub(super) mute_alerts: bool,
}

/// What the scripts of profiles ask a device beside its reading.
#[derive(Clone, Debug, Default)]
struct Beside {
    /// Asked with the rest from now on.
    there: Vec<Oid>,
    /// What the device does not have.
    absent: BTreeSet<Oid>,
}

static NOTHING: Beside = Beside { there: Vec::new(), absent: BTreeSet::new() };

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ask {
    pub(super) oid: Oid,
    pub(super) feed: Feed,
}

impl Ask {
    /// The supply whose level it asks for.
    fn level(&self) -> Option<u16> {
        match self.feed {
            Feed::Level(at) => Some(at),
            Feed::Mark | Feed::Number | Feed::PrinterStatus | Feed::DeviceStatus => None,
            Feed::Errors | Feed::Display => None,
        }
    }
}

/// Supplies without what every read brings, so that devices of one kind have the same; whether there was a level decides
/// where it is said to come from.
fn emptied(mut supplies: Vec<Supply>, levels: &BTreeSet<u16>) -> Vec<Supply> {
    for at in levels {
        if let Some(supply) = supplies.get_mut(usize::from(*at)) {
            (supply.level, supply.percent) = (supply.level.map(|_| 0), None);
            supply.state = SupplyState::Unknown;
        }
    }
    supplies
}

/// What an asked instance is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Feed {
    /// A change means another device or another part.
    Mark,
    /// A part of a counter.
    Number,
    /// The level of the supply at this position.
    Level(u16),
    PrinterStatus,
    DeviceStatus,
    Errors,
    /// A line of the panel, and its only one where a vendor has an object for it.
    Display,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Field {
    Total,
    Mono,
    Color,
    Prints,
    Copies,
    Faxes,
    Scans,
    Duplex,
    Large,
}

impl Field {
    pub(super) const ALL: [(Field, &str); 9] = [
        (Field::Total, "counters.total"),
        (Field::Mono, "counters.mono"),
        (Field::Color, "counters.color"),
        (Field::Prints, "counters.prints"),
        (Field::Copies, "counters.copies"),
        (Field::Faxes, "counters.faxes"),
        (Field::Scans, "counters.scans"),
        (Field::Duplex, "counters.duplex"),
        (Field::Large, "counters.large"),
    ];

    pub(super) fn of(self, counters: &mut Counters) -> &mut Option<u64> {
        match self {
            Field::Total => &mut counters.total,
            Field::Mono => &mut counters.mono,
            Field::Color => &mut counters.color,
            Field::Prints => &mut counters.prints,
            Field::Copies => &mut counters.copies,
            Field::Faxes => &mut counters.faxes,
            Field::Scans => &mut counters.scans,
            Field::Duplex => &mut counters.duplex,
            Field::Large => &mut counters.large,
        }
    }
}

/// What came of patching.
pub(super) enum Patched {
    /// The reading.
    Reading(Box<Reading>),
    /// What is asked now and then must be asked now.
    Thorough,
    /// The device is not what the plan was made for.
    Anew,
}

impl ReadPlan {
    /// For the first read of a device that has just answered a probe: what it said need not be asked again.
    pub fn glimpsed(varbinds: &[VarBind]) -> ReadPlan {
        let mut seen = Answers::default();
        varbinds.iter().for_each(|varbind| seen.insert(varbind));
        ReadPlan(Box::new(Known { seen, ..Known::default() }))
    }

    pub(super) fn take_seen(&mut self) -> Answers {
        std::mem::take(&mut self.seen)
    }

    /// True when there is nothing to go by, or it has served long enough.
    pub(super) fn is_spent(&self) -> bool {
        self.learnt.is_none() || self.uses >= USES
    }

    /// True when nothing was ever learnt of the device.
    pub(super) fn is_empty(&self) -> bool {
        self.learnt.is_none()
    }

    /// What was learnt with other profiles than these counts no more; how to ask the device does.
    pub(super) fn understand_with(&mut self, profiles: &Profiles) {
        if self.learnt.as_ref().is_some_and(|learnt| learnt.profiles != *profiles) {
            (self.learnt, self.beside, self.exact) = (None, None, false);
            self.asking = [None, None];
        }
    }

    fn beside(&self) -> &Beside {
        self.beside.as_deref().unwrap_or(&NOTHING)
    }

    /// Takes what profiles asked beside, and whether it was there: what was is asked with the rest from now on, what
    /// was not is not asked again before the plan wears out.
    pub(crate) fn also_ask(&mut self, asked: impl IntoIterator<Item = (Oid, bool)>) {
        for (oid, there) in asked {
            let beside = self.beside();
            let (known, room) = match there {
                true => (self.often().any(|known| *known == oid), beside.there.len() < PROFILE_OIDS),
                false => (beside.absent.contains(&oid), beside.absent.len() < PROFILE_OIDS),
            };
            if known || !room {
                continue;
            }
            let beside = Arc::make_mut(self.beside.get_or_insert_default());
            if there {
                beside.there.push(oid);
                self.asking = [None, None];
            } else {
                beside.absent.insert(oid);
            }
        }
    }

    /// What need not be asked for a profile, because it is not there.
    pub(crate) fn absent(&self) -> &BTreeSet<Oid> {
        &self.beside().absent
    }

    /// The instances of every read, in the order of [`ReadPlan::bulk`]: what profiles ask stands before the run.
    pub(super) fn often(&self) -> impl Iterator<Item = &Oid> {
        let shape = self.learnt.as_ref().map(|learnt| &*learnt.shape);
        let (singles, run) = shape
            .map_or((&[][..], &[][..]), |shape| shape.asks[..shape.often].split_at(shape.often - shape.run));
        singles.iter().map(|ask| &ask.oid).chain(&self.beside().there).chain(run.iter().map(|ask| &ask.oid))
    }

    /// The instances that are asked now and then.
    pub(super) fn rest(&self) -> Vec<Oid> {
        let asks = self.learnt.iter().flat_map(|learnt| &learnt.shape.asks[learnt.shape.often..]);
        asks.map(|ask| ask.oid.clone()).collect()
    }

    /// True where one GETBULK serves every read; else exact GETs do better.
    pub(super) fn has_bulk(&self) -> bool {
        let run = self.learnt.as_ref().map(|learnt| learnt.shape.run);
        run.is_some_and(|run| run <= usize::from(u8::MAX))
            && !(self.exact || self.no_bulk || self.singles() > MOST_SINGLES)
    }

    /// The GETBULK of every read, encoded, and what its answer should bring.
    pub(super) fn prepared(&mut self) -> Option<Arc<Prepared>> {
        if !self.has_bulk() {
            return None;
        }
        let at = usize::from(self.is_watching());
        let learnt = self.learnt.as_ref()?;
        let of_all = self.beside().there.is_empty() && (at == 0 || self.alerts.is_none());
        let known = if of_all { learnt.shape.asking[at].0.get() } else { self.asking[at].as_ref() };
        if known.is_some() {
            return known.cloned();
        }
        let names = self.often().cloned().map(Some).collect::<Vec<_>>();
        let (before, run) = names.split_at(self.singles());
        let any = std::iter::repeat_n(None, self.watched_count());
        let names = before.iter().cloned().chain(any).chain(run.iter().cloned());
        let made = Arc::new(Prepared::new(&self.bulk()?, names));
        if of_all {
            return Some(learnt.shape.asking[at].0.get_or_init(|| made).clone());
        }
        self.asking[at] = Some(made.clone());
        Some(made)
    }

    /// The `n`-th GET of the instances that are asked now and then, encoded, and what its answer should bring.
    pub(super) fn rest_question(&self, n: usize, width: usize) -> Option<Arc<Prepared>> {
        self.learnt.as_ref()?.shape.rest_question(n, width)
    }

    /// One GETBULK for the instances of every read: their predecessors once, and the column of the run. That takes one
    /// name for all rows of it. `None` where exact GETs do better.
    pub(super) fn bulk(&self) -> Option<Request> {
        let shape = &self.learnt.as_ref()?.shape;
        let singles = self.singles();
        if !self.has_bulk() {
            return None;
        }
        let (watched, mut often) = (self.watched(), self.often().map(mib::predecessor));
        Some(Request::GetBulk {
            non_repeaters: u8::try_from(singles + watched.len()).ok()?,
            max_repetitions: u8::try_from(shape.run).ok()?,
            oids: often
                .by_ref()
                .take(singles)
                .collect::<Vec<_>>()
                .into_iter()
                .chain(watched)
                .chain(often.next())
                .collect(),
        })
    }

    /// How many of the instances of every read stand before the run.
    fn singles(&self) -> usize {
        let shape = self.learnt.as_ref().map_or(0, |learnt| learnt.shape.often - learnt.shape.run);
        shape + self.beside().there.len()
    }

    /// True when this read looks at prtAlertTable, too: known rows are watched every time.
    pub(super) fn is_watching(&self) -> bool {
        !self.mute_alerts && (self.alerts.is_some() || (self.uses + 1).is_multiple_of(GLANCE))
    }

    /// The names in the GETBULK of every read whose successors show whether there are other alerts than before.
    fn watched(&self) -> Vec<Oid> {
        self.known_alerts().watch().take(self.watched_count()).collect()
    }

    fn watched_count(&self) -> usize {
        let count = if self.is_watching() { self.known_alerts().watched() } else { 0 };
        if self.singles() + count > MOST_SINGLES { 0 } else { count }
    }

    fn known_alerts(&self) -> &Alerts {
        self.alerts.as_deref().unwrap_or(Alerts::none())
    }

    /// Where the successors of what is watched stand in an answer.
    pub(super) fn watched_places(&self) -> Range<usize> {
        self.singles()..self.singles() + self.watched_count()
    }

    /// Takes the successors of what is watched out of an answer; tells whether the alerts are those that are known, and
    /// `None` where nothing was watched.
    pub(super) fn take_watched(&self, varbinds: &mut Vec<VarBind>) -> Option<bool> {
        let places = self.watched_places();
        if places.is_empty() || varbinds.len() < places.end {
            return None;
        }
        let came: Vec<VarBind> = varbinds.drain(places).collect();
        Some(self.known_alerts().are(&came))
    }

    /// The same of an answer that is as expected.
    pub(super) fn see_watched(&self, answer: &Expected) -> Option<bool> {
        let places = self.watched_places();
        (!places.is_empty()).then(|| self.known_alerts().are(&answer.decode_some(places)))
    }

    /// Takes what prtAlertTable says now.
    pub(super) fn learn_alerts(&mut self, answers: &Answers, supplies: &[Supply]) {
        let alerts = Alerts::of(answers, supplies, self.own);
        self.alerts = (!alerts.is_empty()).then(|| Arc::new(alerts));
        self.asking[1] = None;
    }

    /// Adds the conditions that the alerts say to a reading.
    pub(super) fn alert(&self, reading: &mut Reading) {
        if let Some(alerts) = self.alerts.as_ref().filter(|_| !self.mute_alerts) {
            alerts.join(reading);
        }
    }

    pub(super) fn subject(&self) -> Arc<Subject> {
        self.learnt.as_ref().map(|learnt| learnt.subject.clone()).unwrap_or_default()
    }

    /// What the values of this read make of the last reading; `thorough`: all were asked for.
    pub(super) fn patch(&mut self, values: &Answers, thorough: bool) -> Patched {
        let Some(learnt) = &self.learnt else { return Patched::Anew };
        let asks = &learnt.shape.asks[..if thorough { learnt.shape.asks.len() } else { learnt.shape.often }];
        let found = asks.iter().map(|ask| values.get(&ask.oid).map(Seen::from));
        match found.collect::<Option<Vec<Seen<'_>>>>() {
            Some(found) => self.patch_with(&found, thorough),
            None => Patched::Anew,
        }
    }

    /// The same of answers that are as expected: to the question of every read, and to those of the rest, if they were asked.
    pub(super) fn patch_expected(&mut self, often: &Expected, rest: &[Expected]) -> Patched {
        let Some(learnt) = &self.learnt else { return Patched::Anew };
        // What profiles ask and the alerts stand between the singles and the run.
        let own = learnt.shape.often - learnt.shape.run;
        let between = own..self.watched_places().end;
        let thorough = !rest.is_empty();
        let asked = if thorough { learnt.shape.asks.len() } else { learnt.shape.often };
        let mut found = Vec::with_capacity(asked);
        found
            .extend(often.values().enumerate().filter(|(at, _)| !between.contains(at)).map(|(_, seen)| seen));
        found.extend(rest.iter().flat_map(Expected::values));
        if found.len() != asked {
            return Patched::Anew;
        }
        self.patch_with(&found, thorough)
    }

    fn patch_with(&mut self, found: &[Seen<'_>], thorough: bool) -> Patched {
        let Some(learnt) = self.learnt.clone() else { return Patched::Anew };
        let shape = &*learnt.shape;
        let marks = if thorough { learnt.all_marks } else { learnt.often_marks };
        if digest_marks(&shape.asks, found) != marks {
            return Patched::Anew;
        }
        let next = News::of(&shape.asks, found);
        let old_and_new = self.levels.iter().zip(&next.levels);
        let replaced =
            old_and_new.zip(shape.refilled()).any(|((old, new), max)| is_replaced(*old, *new, max));
        if !thorough && (replaced || next.state != self.state || (self.uses + 1).is_multiple_of(THOROUGH)) {
            return Patched::Thorough;
        }
        let status = standard::status(next.printer, next.device);
        if thorough && status != standard::status(next.printer, None) && !shape.asks_often(Feed::DeviceStatus)
        {
            // From now on hrDeviceStatus is asked for every time.
            return Patched::Anew;
        }
        if thorough {
            self.display = learnt.display(&next).map(Arc::new);
        }
        let Some(reading) = learnt.reading(found, &next, self.display.as_deref()) else {
            return Patched::Anew;
        };
        match self.levels.len() == next.levels.len() {
            true => self.levels.copy_from_slice(&next.levels),
            false => self.levels = next.levels.into(),
        }
        self.state = next.state;
        self.uses = self.uses.saturating_add(1);
        Patched::Reading(Box::new(reading))
    }

    /// Learns from a reading that is complete.
    pub(super) fn learn(answers: &Answers, reading: &Reading, subject: Arc<Subject>) -> ReadPlan {
        let mut draft = Draft::new(answers, reading);
        draft.counters();
        draft.others();
        draft.levels();
        draft.state();
        draft.display();
        draft.marks();
        let (asks, often, run, positions) = draft.order();
        if often == 0 {
            return ReadPlan::default();
        }
        let found: Vec<Seen<'_>> =
            asks.iter().filter_map(|ask| answers.get(&ask.oid)).map(Seen::from).collect();
        let (sums, others) = (draft.sums(&positions), draft.outranked(&positions));
        let News { levels, state, .. } = News::of(&asks, &found);
        let mut template = reading.clone();
        // They are made anew every time.
        template.conditions.clear();
        template.sources.remove("conditions");
        let (often_marks, all_marks) = (digest_marks(&asks, &found[..often]), digest_marks(&asks, &found));
        let asks_of_levels: BTreeSet<u16> = asks.iter().filter_map(Ask::level).collect();
        let shape = Shape {
            asks,
            often,
            run,
            sums,
            others,
            supplies: emptied(std::mem::take(&mut template.supplies), &asks_of_levels),
            sources: std::mem::take(&mut template.sources),
            ailing: Later::default(),
            asking: Default::default(),
            asking_rest: Later::default(),
        };
        let display = template.display.take().zip(reading.sources.get("display").cloned()).map(Arc::new);
        let charset = standard::charset(answers);
        let profiles = answers.profiles().clone();
        let learnt =
            Learnt { shape: shared(shape), template, subject, profiles, charset, often_marks, all_marks };
        let known = Known {
            learnt: Some(Arc::new(learnt)),
            levels: levels.into(),
            state,
            display,
            ..Known::default()
        };
        let mut plan = ReadPlan(Box::new(known));
        plan.learn_alerts(answers, &reading.supplies);
        plan
    }
}
