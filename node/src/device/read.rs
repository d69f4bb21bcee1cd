//! One read of one device: which questions to ask, in which order, and when to stop. Sans-IO.
//!
//! Phases: who is it, what does it count, and the first of its supplies (one GETBULK), the rest of its supplies (one
//! more, as long as their number is known to be by then), the vendor's own objects (one or two GETs), and what is left
//! open. Names take most of the octets, so the table of supplies is asked for by one name, and what a probe has brought
//! is not asked again. What was learnt becomes a [`ReadPlan`]; the next read then asks for the instances that may change alone,
//! and starts over in full when one of them is gone or the device turns out to be another.

use std::sync::Arc;

use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Status, Via};

use super::alert;
use super::answers::{Answers, has_value};
use super::family::Family;
use super::fetch::Fetch;
use super::fresh::{Fresh, Undecoded};
use super::judge::{Verdict, has_printer_mib, judge_answers};
use super::plan::Patched;
pub use super::plan::ReadPlan;
use super::script::{Profiles, Subject};
use super::vendor::{Private, TABLE};
use super::walk::Walk;
use super::{brand, mib, standard, supply};
use crate::snmp::{Expected, Question, Request, Response};

/// The most questions of one read: 4 to 6 are usual, GETNEXT over 14 supplies takes about 30. At the bound the read
/// ends with what is known and is not complete.
pub const MAX_REQUESTS: usize = 64;

/// Instances in one GET: at about 30 octets each on the wire 40 stay below an Ethernet frame of 1,500.
const GET_WIDTH: usize = 40;
/// A vendor's instances in one GET: names of private objects are longer, and their text too.
const VENDOR_GET_WIDTH: usize = 24;
/// Rows at a time of supplies where columns are asked side by side.
const SUPPLY_REPETITIONS: u8 = 5;
/// Cells of supplies in the first question, when nobody knows how many there are: the kinds of eleven, or the kinds of
/// five, their names, and two cells of the next column; none is asked in vain unless there are fewer than three.
const FIRST_CELLS: u8 = 12;
/// Cells of supplies in one answer: at about 24 octets they fill an Ethernet frame of 1,500.
const MOST_CELLS: u8 = 50;
/// Most rows of interfaces, and of devices, that are looked at.
const WHO_ROWS: u16 = 8;
/// Most lines of a panel.
const CONSOLE_ROWS: u16 = 64;
/// Most supplies of one device.
const SUPPLY_ROWS: u16 = 64;
/// Most rows of a vendor's table of named counters.
const NAMED_ROWS: u16 = 120;
const NAMED_REPETITIONS: u8 = 20;
/// Rows of prtAlertTable at a time: most devices have one or two.
const ALERT_REPETITIONS: u8 = 3;

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Nothing came, retries included.
    Silent,
    /// The device or the network refused: wrong credential, ICMP unreachable.
    Refused,
}

/// How a read ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// `None`: not a printer; or nothing heard at all, when not `complete`.
    pub reading: Option<Reading>,
    /// For the next read.
    pub plan: ReadPlan,
    /// False when a packet was lost or the bound reached: what is there is right, something may be missing.
    pub complete: bool,
    /// Who it is, for the match rules of profiles.
    pub(crate) subject: Arc<Subject>,
    /// What was heard in this read, for the profiles that go on from it.
    pub(crate) fresh: Fresh,
}

/// Whatever is large in it stands behind a pointer: very many reads wait in the first phase.
#[derive(Debug)]
enum Phase {
    /// What every read asks for, in one GETBULK; the same by exact GETs; what is asked now and then.
    Often,
    Exact(Box<Fetch>),
    Thorough(Box<Fetch>),
    /// The same by prepared questions, so many of which are answered.
    Rest(usize),
    Who(Box<Walk>),
    Supplies(Box<Walk>),
    Private(Box<Fetch>),
    Colors(Box<Fetch>),
    Named(Box<Walk>),
    Names(Box<Walk>),
    /// The rows of prtAlertTable, where there are any.
    Alerts(Box<Walk>),
    Done,
}

/// One read in progress.
#[derive(Debug)]
pub struct Read {
    via: Via,
    plan: ReadPlan,
    /// It goes by the plan, and has not started over.
    planned: bool,
    /// What the plan made of it.
    patched: Option<Box<Reading>>,
    answers: Answers,
    undecoded: Option<Box<Undecoded>>,
    phase: Phase,
    asked: usize,
    heard: bool,
    forgiven: bool,
    no_bulk: bool,
    /// GETBULK was answered, with nothing: worth remembering, other than silence.
    bulk_is_empty: bool,
    complete: bool,
    /// IEEE 1284 ids were asked for.
    named: bool,
    /// Whether the alerts are those that the plan knows, as far as this read has looked.
    same_alerts: Option<bool>,
}

impl Read {
    /// A read over `via`, with what an earlier one learnt, understood with the profiles that ship.
    pub fn new(via: Via, hint: Option<ReadPlan>) -> Read {
        Read::with(via, hint, Profiles::default())
    }

    /// The same with other profiles. What was learnt with others counts no more.
    pub fn with(via: Via, hint: Option<ReadPlan>, profiles: Profiles) -> Read {
        let mut plan = hint.unwrap_or_default();
        plan.understand_with(&profiles);
        let no_bulk = plan.no_bulk || via == Via::SnmpV1;
        let mut read = Read {
            via,
            planned: !plan.is_spent(),
            plan,
            patched: None,
            answers: Answers::with(profiles),
            undecoded: None,
            phase: Phase::Often,
            asked: 0,
            heard: false,
            forgiven: false,
            no_bulk,
            bulk_is_empty: no_bulk,
            complete: true,
            named: false,
            same_alerts: None,
        };
        if !read.planned {
            read.start_over();
        } else if no_bulk || !read.plan.has_bulk() {
            read.phase = read.exact();
        }
        read
    }

    fn alerts(&self) -> Phase {
        let columns = alert::COLUMNS.map(mib::oid);
        Phase::Alerts(Box::new(Walk::new(&[], &columns, alert::ROWS, ALERT_REPETITIONS, !self.no_bulk)))
    }

    fn exact(&self) -> Phase {
        Phase::Exact(Box::new(Fetch::new(self.plan.often().cloned().collect(), GET_WIDTH, false)))
    }

    /// The next question, prepared where it was asked before; `None` when the read has finished.
    pub fn poll_question(&mut self) -> Option<Question> {
        let prepared = if let Phase::Rest(answered) = self.phase {
            self.plan.rest_question(answered, GET_WIDTH)
        } else if matches!(self.phase, Phase::Often) {
            self.plan.prepared()
        } else {
            None
        };
        if let Some(prepared) = prepared.filter(|_| self.asked < MAX_REQUESTS) {
            self.asked += 1;
            return Some(Question::Prepared(prepared));
        }
        self.poll_request().map(Question::Plain)
    }

    /// The next question; `None` when the read has finished.
    pub fn poll_request(&mut self) -> Option<Request> {
        loop {
            let request = match &mut self.phase {
                Phase::Often => self.plan.bulk(),
                Phase::Exact(fetch) | Phase::Thorough(fetch) => fetch.request(),
                Phase::Rest(answered) => {
                    let rest = self.plan.rest().into_iter().skip(*answered * GET_WIDTH).take(GET_WIDTH);
                    Some(Request::Get(rest.collect()))
                }
                Phase::Private(fetch) | Phase::Colors(fetch) => fetch.request(),
                Phase::Who(walk) | Phase::Supplies(walk) => walk.request(),
                Phase::Named(walk) | Phase::Names(walk) | Phase::Alerts(walk) => walk.request(),
                Phase::Done => return None,
            };
            if request.is_some() && self.asked >= MAX_REQUESTS {
                self.complete = false;
                self.phase = Phase::Done;
                return None;
            }
            if request.is_some() {
                self.asked += 1;
                return request;
            }
            self.advance();
        }
    }

    /// Takes the answer to the last question, or that there is none.
    pub fn handle(&mut self, answer: Result<Response, Miss>) {
        if let (Ok(_), Phase::Rest(answered)) = (&answer, &self.phase) {
            // Not as expected: the general way goes on from here.
            let mut fetch = Fetch::new(self.plan.rest().split_off(*answered * GET_WIDTH), GET_WIDTH, false);
            fetch.request();
            self.phase = Phase::Thorough(Box::new(fetch));
            self.decode();
        }
        match answer {
            Ok(response) if matches!(self.phase, Phase::Often) => self.handle_often(response),
            Ok(response) => self.handle_response(&response),
            Err(Miss::Refused) => self.give_up(),
            Err(Miss::Silent) => self.handle_silence(),
        }
    }

    /// Takes the answer to the last question, which was prepared, where it is just what that expects.
    pub fn handle_expected(&mut self, answer: Expected) {
        let due = self.plan.is_watching();
        if matches!(self.phase, Phase::Often) {
            self.same_alerts = self.plan.see_watched(&answer);
            let watched = self.plan.watched_places();
            self.undecoded = Some(Box::new(Undecoded { often: answer, watched, rest: Vec::new() }));
        } else if let (Phase::Rest(answered), Some(heard)) = (&mut self.phase, &mut self.undecoded) {
            heard.rest.push(answer);
            *answered += 1;
            if self.plan.rest_question(*answered, GET_WIDTH).is_some() {
                return;
            }
        } else {
            return self.handle(Ok(answer.decode()));
        }
        self.heard = true;
        let Some(heard) = &self.undecoded else { return };
        let thorough = !heard.rest.is_empty();
        let patched = self.plan.patch_expected(&heard.often, &heard.rest);
        if matches!(patched, Patched::Thorough) && self.plan.rest_question(0, GET_WIDTH).is_some() {
            self.phase = Phase::Rest(0);
            return;
        }
        self.phase = self.settle(patched, due, thorough);
        if !matches!(self.phase, Phase::Done) {
            self.decode();
        }
    }

    /// Decodes what was heard, because more is to be asked beside it; what is read anew asks for all of it again.
    fn decode(&mut self) {
        if let Some(heard) = self.undecoded.take().filter(|_| self.planned) {
            heard.join(&mut self.answers);
        }
    }

    /// What is known now.
    pub fn finish(mut self) -> Finished {
        if !matches!(self.phase, Phase::Done) {
            self.complete = false;
        }
        if self.planned {
            let subject = self.plan.subject();
            let mut reading = self.patched.map(|reading| *reading);
            reading.iter_mut().for_each(|reading| self.plan.alert(reading));
            let fresh = Fresh::new(self.answers, self.undecoded);
            return Finished { reading, plan: self.plan, complete: self.complete, subject, fresh };
        }
        let own = standard::own_device(&self.answers);
        let subject = match own {
            Some(own) => {
                standard::keep_own(&mut self.answers, own);
                Arc::default()
            }
            None => Arc::new(Subject::of(&self.answers)),
        };
        let reading = standard::reading(&self.answers, self.via);
        let mut plan = match &reading {
            Some(reading) if self.complete => {
                let mut plan = ReadPlan::learn(&self.answers, reading, subject.clone());
                (plan.exact, plan.jetdirect) = (self.plan.exact, self.plan.jetdirect);
                (plan.mute_alerts, plan.own) = (self.plan.mute_alerts, own);
                plan
            }
            Some(_) | None => self.plan,
        };
        plan.no_bulk = self.bulk_is_empty && self.via != Via::SnmpV1;
        let fresh = Fresh::new(self.answers, None);
        Finished { reading, plan, complete: self.complete, subject, fresh }
    }

    fn start_over(&mut self) {
        self.planned = false;
        self.plan.mute_alerts = false;
        self.answers = self.plan.take_seen().understood_with(self.answers.profiles().clone());
        let seen = |root: &[u32]| self.answers.first(root).is_some();
        let mut once: Vec<Oid> =
            WHO_ONCE.iter().filter(|root| !seen(root)).map(|root| mib::oid(root)).collect();
        if !has_printer_mib(&self.answers) {
            once.push(mib::oid(mib::PRINT_MIB));
        }
        // Who names its brand in sysDescr needs its IEEE 1284 id later, if at all.
        let branded = brand::is_branded(&self.answers) && judge_answers(&self.answers) == Verdict::Printer;
        self.named = !branded;
        if self.named {
            once.extend(names());
        }
        let mut walk = Walk::new(&once, &[], 0, MOST_CELLS, !self.no_bulk);
        let typed = standard::printer_row(&self.answers) == Some(1);
        for root in WHO_MANY.iter().filter(|root| !(typed && **root == mib::HR_DEVICE_TYPE)) {
            walk.row_by_row(&mib::oid(root), WHO_ROWS);
        }
        // A second row of hrPrinterTable is another printer's.
        let second = mib::oid(mib::HR_PRINTER_STATUS).child(&[1]);
        walk.behind(&mib::oid(mib::HR_PRINTER_STATUS), &second);
        // One row tells whether there are any.
        walk.row_by_row(&mib::oid(mib::ALERT_CODE), 1);
        if !self.no_bulk {
            walk.row_by_row(&mib::oid(mib::CONSOLE_TEXT), CONSOLE_ROWS);
            walk.span(&mib::oid(mib::SUPPLY_ENTRY), &mib::oid(mib::SUPPLY_TYPE), SUPPLY_ROWS * 5);
            walk.want(FIRST_CELLS);
        }
        self.phase = Phase::Who(Box::new(walk));
    }

    fn handle_response(&mut self, response: &Response) {
        self.heard = true;
        match &mut self.phase {
            Phase::Exact(fetch) | Phase::Thorough(fetch) => {
                fetch.handle(response, &mut self.answers);
                if fetch.missing {
                    self.start_over();
                }
            }
            Phase::Who(walk) => {
                walk.handle(response, &mut self.answers);
                self.look_around();
            }
            Phase::Supplies(walk) | Phase::Named(walk) | Phase::Names(walk) | Phase::Alerts(walk) => {
                walk.handle(response, &mut self.answers);
                self.bulk_is_empty |= !self.no_bulk && !walk.bulk();
                self.no_bulk |= !walk.bulk();
            }
            Phase::Private(fetch) | Phase::Colors(fetch) => fetch.handle(response, &mut self.answers),
            Phase::Often | Phase::Rest(_) | Phase::Done => {}
        }
    }

    /// Ends what need not be asked further, as far as is known who it is.
    fn look_around(&mut self) {
        let Phase::Who(walk) = &mut self.phase else { return };
        if walk.scalars_are_done() && judge_answers(&self.answers) != Verdict::Printer {
            walk.stop(&[]);
        }
        if standard::device_row_is_known(&self.answers) && !walk.is_untouched(mib::HR_DEVICE_STATUS) {
            walk.stop(HR_DEVICE_ENTRY);
        }
        if standard::mac_is_known(&self.answers) {
            walk.stop(IF_ENTRY);
        }
        if !walk.is_untouched(mib::ALERT_CODE) {
            walk.stop(mib::ALERT_CODE);
        }
        self.bulk_is_empty |= !self.no_bulk && !walk.bulk();
        self.no_bulk |= !walk.bulk();
        if self.no_bulk {
            // Row by row is no way to read tables: they are read by columns then, side by side.
            walk.stop(mib::SUPPLY_ENTRY);
            walk.stop(mib::CONSOLE_TEXT);
            return;
        }
        match supply::cells_left(&self.answers) {
            Some(0) => walk.stop(mib::SUPPLY_ENTRY),
            Some(left) => walk.want(u8::try_from(left).unwrap_or(MOST_CELLS)),
            None => walk.want(FIRST_CELLS),
        }
    }

    /// Takes the one GETBULK of a planned read, where it brought exactly what was expected.
    fn handle_often(&mut self, response: Response) {
        self.heard = true;
        let mut response = response;
        self.same_alerts = self.plan.take_watched(&mut response.varbinds);
        let mut came = response.varbinds.iter();
        let expected =
            |oid: &Oid| came.next().is_some_and(|varbind| varbind.oid == *oid && has_value(&varbind.value));
        if response.error_status != 0 || !self.plan.often().all(expected) {
            (self.plan.exact, self.same_alerts) = (true, None);
            self.phase = self.exact();
            return;
        }
        let often = self.plan.often().count();
        self.answers = Answers::with_room(often, self.answers.profiles().clone());
        response.varbinds.into_iter().take(often).for_each(|varbind| self.answers.put(varbind));
        self.phase = self.patch(false);
    }

    /// Makes the reading of what a planned read brought; `thorough`: of all that it can ask for.
    fn patch(&mut self, thorough: bool) -> Phase {
        let due = self.plan.is_watching();
        let patched = self.plan.patch(&self.answers, thorough);
        self.settle(patched, due, thorough)
    }

    /// What is to be done after patching; `due`: the alerts were to be looked at.
    fn settle(&mut self, patched: Patched, due: bool, thorough: bool) -> Phase {
        match patched {
            Patched::Reading(reading) => {
                let ails = !reading.conditions.is_empty() || reading.status == Some(Status::Stopped);
                self.patched = Some(reading);
                // As far as they were watched; else when they are due, or something is wrong since the last read.
                let other = match self.same_alerts {
                    Some(same) => !same,
                    None => due || thorough && ails && !self.plan.mute_alerts,
                };
                if other { self.alerts() } else { Phase::Done }
            }
            Patched::Thorough => Phase::Thorough(Box::new(Fetch::new(self.plan.rest(), GET_WIDTH, false))),
            Patched::Anew => {
                self.start_over();
                std::mem::replace(&mut self.phase, Phase::Done)
            }
        }
    }

    /// A device that was just heard of may choke on GETBULK alone (some never answer a large one): one second chance
    /// with GETNEXT. A device with a plan that stays silent from the start is off or asleep.
    fn handle_silence(&mut self) {
        let retry = !self.forgiven && !self.no_bulk && (self.heard || self.plan.is_empty());
        match &mut self.phase {
            Phase::Who(walk) | Phase::Supplies(walk) | Phase::Named(walk) | Phase::Names(walk) if retry => {
                walk.without_bulk();
                self.no_bulk = true;
                self.forgiven = true;
                self.look_around();
            }
            Phase::Often | Phase::Exact(_) | Phase::Thorough(_) | Phase::Rest(_) => self.give_up(),
            Phase::Who(_) | Phase::Supplies(_) | Phase::Named(_) | Phase::Names(_) => self.give_up(),
            Phase::Private(_) | Phase::Colors(_) => self.give_up(),
            Phase::Alerts(walk) if walk.bulk() => walk.without_bulk(),
            Phase::Alerts(_) => {
                // All else is known: a table that silences the device costs its alerts, not its counters.
                self.plan.mute_alerts = true;
                self.phase = Phase::Done;
            }
            Phase::Done => {}
        }
    }

    fn give_up(&mut self) {
        self.complete = false;
        self.phase = Phase::Done;
    }

    fn advance(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Exact(_) => self.patch(false),
            Phase::Thorough(_) => self.patch(true),
            Phase::Who(_) if judge_answers(&self.answers) != Verdict::Printer => Phase::Done,
            Phase::Who(_) if self.no_bulk && has_printer_mib(&self.answers) => {
                let columns = supply::COLUMNS.iter().chain([&mib::CONSOLE_TEXT]);
                let many: Vec<Oid> = columns.map(|root| mib::oid(root)).collect();
                Phase::Supplies(Box::new(Walk::new(&[], &many, SUPPLY_ROWS, SUPPLY_REPETITIONS, false)))
            }
            Phase::Who(_) | Phase::Supplies(_) => Phase::Private(Box::new(Fetch::new(
                self.private(),
                VENDOR_GET_WIDTH,
                self.via == Via::SnmpV1,
            ))),
            Phase::Private(_) => {
                let by_next = self.via == Via::SnmpV1;
                Phase::Colors(Box::new(Fetch::new(supply::colorants(&self.answers), GET_WIDTH, by_next)))
            }
            Phase::Colors(_) => {
                let families = brand::families(&self.answers);
                let columns: Vec<Oid> = families.iter().flat_map(|family| family.columns()).collect();
                Phase::Named(Box::new(Walk::new(&[], &columns, NAMED_ROWS, NAMED_REPETITIONS, !self.no_bulk)))
            }
            Phase::Named(_) => {
                Phase::Names(Box::new(Walk::new(&self.last_names(), &[], 0, 1, !self.no_bulk)))
            }
            Phase::Names(_) if self.answers.first(mib::ALERT_CODE).is_some() => self.alerts(),
            Phase::Alerts(_) if self.planned => {
                let supplies = self.patched.as_ref().map_or(&[][..], |reading| &reading.supplies);
                self.plan.learn_alerts(&self.answers, supplies);
                Phase::Done
            }
            Phase::Often | Phase::Rest(_) | Phase::Names(_) | Phase::Alerts(_) | Phase::Done => Phase::Done,
        };
    }

    /// The vendor's objects that may tell more, and the cells of supplies that are unclear without.
    fn private(&self) -> Vec<Oid> {
        let answers = &self.answers;
        let families = brand::families(answers);
        let (serial, console) = (standard::has_standard_serial(answers), standard::has_console_text(answers));
        let name = answers.get(&mib::scalar(mib::SYS_NAME)).is_some();
        let known = |family: &Family, oid: &Oid| {
            let is = |list: &[Private]| list.iter().any(|entry| entry.0 == *oid);
            serial && is(&family.serial) || console && is(&family.display) || name && is(&family.name)
        };
        let vendor = families.iter().flat_map(|family| {
            family.instances().into_iter().filter(|oid| !known(family, oid)).collect::<Vec<Oid>>()
        });
        let unclear = supply::unclear(answers, None);
        let cells = unclear
            .iter()
            .flat_map(|row| [mib::SUPPLY_COLORANT, mib::SUPPLY_CLASS].map(|root| mib::oid(root).child(row)));
        vendor.chain(cells).filter(|oid| answers.get(oid).is_none()).collect()
    }

    /// What is asked for last, where it is still open: the character set of texts that need one, and the names of a
    /// device that has not given a better one.
    fn last_names(&self) -> Vec<Oid> {
        let families = brand::families(&self.answers);
        let mut last = Vec::new();
        if standard::needs_charset(&self.answers) {
            last.push(mib::oid(mib::PRT_CHARSET));
        }
        let named = self.named
            || brand::has_private_model(&self.answers, &families)
                && standard::has_serial(&self.answers, &families);
        if !named {
            last.extend(names());
        }
        if brand::model(&self.answers, &families, None).is_none() {
            last.push(mib::oid(mib::PRT_NAME));
        }
        last
    }
}

const HR_DEVICE_ENTRY: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1];
const IF_ENTRY: &[u32] = &[1, 3, 6, 1, 2, 1, 2, 2, 1];

/// Asked for the first instance: scalars, and the first row of tables with one.
const WHO_ONCE: [&[u32]; 9] = [
    mib::SYS_DESCR,
    mib::SYS_OBJECT_ID,
    mib::SYS_NAME,
    mib::SYS_LOCATION,
    mib::HR_PRINTER_STATUS,
    mib::HR_PRINTER_ERRORS,
    mib::PRT_SERIAL,
    mib::PRT_COUNTER_UNIT,
    mib::PRT_LIFE_COUNT,
];

const WHO_MANY: [&[u32]; 6] = [
    mib::HR_DEVICE_TYPE,
    mib::HR_DEVICE_DESCR,
    mib::HR_DEVICE_STATUS,
    mib::IF_TYPE,
    mib::IF_PHYS_ADDRESS,
    mib::IF_OPER_STATUS,
];

/// What says who it is where nothing better does: IEEE 1284 ids, and whose enterprise's objects it serves.
fn names() -> impl Iterator<Item = Oid> {
    [mib::oid(mib::PPM_DEVICE_ID), mib::oid(mib::ENTERPRISES)].into_iter().chain(common_ids())
}

/// IEEE 1284 ids that any vendor may serve, as names to go on from.
fn common_ids() -> impl Iterator<Item = Oid> {
    TABLE
        .common
        .device_id
        .iter()
        .map(|entry| mib::oid(entry.0.arcs().split_last().map_or(&[][..], |(_, rest)| rest)))
}
