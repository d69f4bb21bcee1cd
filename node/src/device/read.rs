//! One read of one device: which questions to ask, in which order, and when to stop. Sans-IO.
//!
//! Phases: who is it and what does it count (one GETBULK), its supplies (one or two), the vendor's own objects (one or
//! two GETs). What was learnt becomes a [`ReadPlan`]; the next read then GETs exactly the instances that may change,
//! and starts over in full when one of them is gone or the device turns out to be another.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Via};

use super::answers::{Answers, has_value};
use super::judge::{Verdict, has_printer_mib, judge_answers};
use super::script::Subject;
use super::vendor::TABLE;
use super::walk::Walk;
use super::{brand, mib, standard};
use crate::snmp::{Request, Response, VarBind};

/// The most questions of one read: 4 to 6 are usual, GETNEXT over 14 supplies takes about 30. At the bound the read
/// ends with what is known and is not complete.
pub const MAX_REQUESTS: usize = 64;

/// Instances in one GET: at about 30 octets each on the wire 40 stay below an Ethernet frame of 1,500.
const GET_WIDTH: usize = 40;
/// A vendor's instances in one GET: names of private objects are longer, and their text too.
const VENDOR_GET_WIDTH: usize = 24;
/// Rows at a time of interfaces and devices: most printers have two of each at most.
const WHO_REPETITIONS: u8 = 2;
/// Rows at a time of supplies: four toners and a waste box; nine columns of five rows are about 1,300 octets.
const SUPPLY_REPETITIONS: u8 = 5;
/// Most rows of interfaces, and of devices, that are looked at.
const WHO_ROWS: u16 = 8;
/// Most supplies of one device.
const SUPPLY_ROWS: u16 = 64;
/// Most rows of a vendor's table of named counters.
const NAMED_ROWS: u16 = 120;
const NAMED_REPETITIONS: u8 = 20;
/// Reads that a plan serves before everything is asked anew, so that a new finisher or name is seen within a day of
/// hourly reads.
const PLAN_USES: u8 = 24;

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Nothing came, retries included.
    Silent,
    /// The device or the network refused: wrong credential, ICMP unreachable.
    Refused,
}

/// What was learnt of a device, so that the next read of it takes one or two packets. Opaque.
#[derive(Clone, Debug, Default)]
pub struct ReadPlan {
    /// Values that do not change from read to read, and the last ones of those that tell a replaced part.
    known: Answers,
    /// Instances to ask.
    refresh: Vec<Oid>,
    /// Those of `refresh` whose change means another device or another supply.
    marks: BTreeSet<Oid>,
    uses: u8,
    /// GETBULK brought nothing.
    no_bulk: bool,
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
    pub(crate) subject: Subject,
    /// What was heard in this read, for the profiles that go on from it.
    pub(crate) fresh: Answers,
}

#[derive(Debug)]
enum Phase {
    Refresh(Fetch),
    Who(Walk),
    Supplies(Walk),
    Private(Fetch),
    Named(Walk),
    Done,
}

/// One read in progress.
#[derive(Debug)]
pub struct Read {
    via: Via,
    plan: ReadPlan,
    answers: Answers,
    phase: Phase,
    asked: usize,
    heard: bool,
    forgiven: bool,
    no_bulk: bool,
    /// GETBULK was answered, with nothing: worth remembering, other than silence.
    bulk_is_empty: bool,
    complete: bool,
    refreshed: bool,
}

impl Read {
    /// A read over `via`, with what an earlier one learnt.
    pub fn new(via: Via, hint: Option<ReadPlan>) -> Read {
        let plan = hint.unwrap_or_default();
        let no_bulk = plan.no_bulk || via == Via::SnmpV1;
        let mut read = Read {
            via,
            plan,
            answers: Answers::default(),
            phase: Phase::Done,
            asked: 0,
            heard: false,
            forgiven: false,
            no_bulk,
            bulk_is_empty: no_bulk,
            complete: true,
            refreshed: false,
        };
        if read.plan.refresh.is_empty() || read.plan.uses >= PLAN_USES {
            read.start_over();
        } else {
            read.phase = Phase::Refresh(Fetch::new(read.plan.refresh.clone(), GET_WIDTH, false));
        }
        read
    }

    /// The next question; `None` when the read has finished.
    pub fn poll_request(&mut self) -> Option<Request> {
        loop {
            let request = match &mut self.phase {
                Phase::Refresh(fetch) | Phase::Private(fetch) => fetch.request(),
                Phase::Who(walk) | Phase::Supplies(walk) | Phase::Named(walk) => walk.request(),
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
        match answer {
            Ok(response) => self.handle_response(&response),
            Err(Miss::Refused) => self.give_up(),
            Err(Miss::Silent) => self.handle_silence(),
        }
    }

    /// What is known now.
    pub fn finish(mut self) -> Finished {
        if !matches!(self.phase, Phase::Done) {
            self.complete = false;
        }
        let reading = standard::reading(&self.answers, self.via);
        let mut plan = match &reading {
            Some(reading) if self.complete && !self.refreshed => learn(&self.answers, reading),
            Some(_) | None => self.plan,
        };
        if self.refreshed && self.complete {
            plan.uses = plan.uses.saturating_add(1);
        }
        plan.no_bulk = self.bulk_is_empty && self.via != Via::SnmpV1;
        let subject = Subject::of(&self.answers);
        if self.refreshed {
            self.answers.retain(|oid| plan.refresh.contains(oid));
        }
        Finished { reading, plan, complete: self.complete, subject, fresh: self.answers }
    }

    fn start_over(&mut self) {
        let once: Vec<Oid> = WHO_ONCE.iter().map(|root| mib::oid(root)).chain(common_ids()).collect();
        let many: Vec<Oid> = WHO_MANY.iter().map(|root| mib::oid(root)).collect();
        self.answers = Answers::default();
        self.refreshed = false;
        self.phase = Phase::Who(Walk::new(&once, &many, WHO_ROWS, WHO_REPETITIONS, !self.no_bulk));
    }

    fn handle_response(&mut self, response: &Response) {
        self.heard = true;
        match &mut self.phase {
            Phase::Refresh(fetch) => {
                fetch.handle(response, &mut self.answers);
                if fetch.missing || self.is_another_device() {
                    self.start_over();
                }
            }
            Phase::Who(walk) => {
                walk.handle(response, &mut self.answers);
                if walk.scalars_are_done() && judge_answers(&self.answers) != Verdict::Printer {
                    WHO_MANY.iter().for_each(|root| walk.stop(root));
                }
                if standard::device_row_is_known(&self.answers) {
                    walk.stop(HR_DEVICE_ENTRY);
                }
                if standard::mac_is_known(&self.answers) {
                    walk.stop(IF_ENTRY);
                }
                self.bulk_is_empty |= !self.no_bulk && !walk.bulk();
                self.no_bulk = !walk.bulk();
            }
            Phase::Supplies(walk) | Phase::Named(walk) => {
                walk.handle(response, &mut self.answers);
                self.bulk_is_empty |= !self.no_bulk && !walk.bulk();
                self.no_bulk = !walk.bulk();
            }
            Phase::Private(fetch) => fetch.handle(response, &mut self.answers),
            Phase::Done => {}
        }
    }

    fn is_another_device(&self) -> bool {
        let changed =
            |oid: &Oid| self.answers.get(oid).is_some_and(|value| self.plan.known.get(oid) != Some(value));
        self.plan.marks.iter().any(changed)
    }

    /// A device that was just heard of may choke on GETBULK alone (some never answer a large one): one second chance
    /// with GETNEXT. A device with a plan that stays silent from the start is off or asleep.
    fn handle_silence(&mut self) {
        let retry = !self.forgiven && !self.no_bulk && (self.heard || self.plan.refresh.is_empty());
        match &mut self.phase {
            Phase::Who(walk) | Phase::Supplies(walk) | Phase::Named(walk) if retry => {
                walk.without_bulk();
                self.no_bulk = true;
                self.forgiven = true;
            }
            Phase::Who(_) | Phase::Supplies(_) | Phase::Named(_) | Phase::Refresh(_) | Phase::Private(_) => {
                self.give_up();
            }
            Phase::Done => {}
        }
    }

    fn give_up(&mut self) {
        self.complete = false;
        if matches!(self.phase, Phase::Refresh(_)) && self.heard {
            self.restore_known();
        }
        self.phase = Phase::Done;
    }

    /// Puts what never changes beside what was asked; values that were asked and not heard stay absent.
    fn restore_known(&mut self) {
        self.refreshed = true;
        let asked: BTreeSet<&Oid> = self.plan.refresh.iter().collect();
        for oid in self.plan.known.oids().filter(|oid| !asked.contains(oid)) {
            if let Some(value) = self.plan.known.get(oid) {
                self.answers.insert(&VarBind { oid: oid.clone(), value: value.clone() });
            }
        }
    }

    fn advance(&mut self) {
        self.phase = match std::mem::replace(&mut self.phase, Phase::Done) {
            Phase::Refresh(_) => {
                self.restore_known();
                Phase::Done
            }
            Phase::Who(_) if judge_answers(&self.answers) != Verdict::Printer => Phase::Done,
            Phase::Who(_) if has_printer_mib(&self.answers) => {
                let many: Vec<Oid> = SUPPLIES.iter().map(|root| mib::oid(root)).collect();
                Phase::Supplies(Walk::new(&[], &many, SUPPLY_ROWS, SUPPLY_REPETITIONS, !self.no_bulk))
            }
            Phase::Who(_) | Phase::Supplies(_) => {
                let families = brand::families(&self.answers);
                let oids = families.iter().flat_map(|family| family.instances());
                let oids = oids.filter(|oid| self.answers.get(oid).is_none()).collect();
                Phase::Private(Fetch::new(oids, VENDOR_GET_WIDTH, self.via == Via::SnmpV1))
            }
            Phase::Private(_) => {
                let families = brand::families(&self.answers);
                let columns: Vec<Oid> = families.iter().flat_map(|family| family.columns()).collect();
                Phase::Named(Walk::new(&[], &columns, NAMED_ROWS, NAMED_REPETITIONS, !self.no_bulk))
            }
            Phase::Named(_) | Phase::Done => Phase::Done,
        };
    }
}

const HR_DEVICE_ENTRY: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1];
const IF_ENTRY: &[u32] = &[1, 3, 6, 1, 2, 1, 2, 2, 1];

/// Asked for the first instance: scalars, the first row of tables with one, and two whole subtrees whose first object
/// tells that there is a Printer MIB at all, and whose enterprise serves private objects.
const WHO_ONCE: [&[u32]; 14] = [
    mib::SYS_DESCR,
    mib::SYS_OBJECT_ID,
    mib::SYS_NAME,
    mib::SYS_LOCATION,
    mib::HR_PRINTER_STATUS,
    mib::HR_PRINTER_ERRORS,
    mib::PRINT_MIB,
    mib::PRT_NAME,
    mib::PRT_SERIAL,
    mib::PRT_CHARSET,
    mib::PRT_COUNTER_UNIT,
    mib::PRT_LIFE_COUNT,
    mib::PPM_DEVICE_ID,
    mib::ENTERPRISES,
];

const WHO_MANY: [&[u32]; 6] = [
    mib::HR_DEVICE_TYPE,
    mib::HR_DEVICE_DESCR,
    mib::HR_DEVICE_STATUS,
    mib::IF_TYPE,
    mib::IF_PHYS_ADDRESS,
    mib::IF_OPER_STATUS,
];

const SUPPLIES: [&[u32]; 9] = [
    mib::SUPPLY_COLORANT,
    mib::SUPPLY_CLASS,
    mib::SUPPLY_TYPE,
    mib::SUPPLY_DESCR,
    mib::SUPPLY_UNIT,
    mib::SUPPLY_MAX,
    mib::SUPPLY_LEVEL,
    mib::COLORANT_VALUE,
    mib::CONSOLE_TEXT,
];

/// IEEE 1284 ids that any vendor may serve, as names to go on from.
fn common_ids() -> impl Iterator<Item = Oid> {
    TABLE
        .common
        .device_id
        .iter()
        .map(|entry| mib::oid(entry.0.arcs().split_last().map_or(&[][..], |(_, rest)| rest)))
}

/// What the next read needs: the instances that this reading used and that may change.
fn learn(answers: &Answers, reading: &Reading) -> ReadPlan {
    const STATIC: [&str; 3] = ["vendor", "model", "mac"];
    let oids =
        |source: &str| source.split('+').filter_map(|oid| oid.parse::<Oid>().ok()).collect::<Vec<Oid>>();
    let used: BTreeMap<&str, Vec<Oid>> = reading.sources.iter().map(|(f, s)| (f.as_str(), oids(s))).collect();
    let changing =
        used.iter().filter(|(field, _)| !STATIC.contains(field)).flat_map(|(_, oids)| oids.clone());
    let mut refresh: BTreeSet<Oid> = changing.collect();
    let mut marks: BTreeSet<Oid> = used.get("serial").cloned().unwrap_or_default().into_iter().collect();
    marks.insert(mib::scalar(mib::SYS_OBJECT_ID));
    for root in [mib::SUPPLY_DESCR, mib::SUPPLY_MAX, mib::SUPPLY_LEVEL, mib::CONSOLE_TEXT] {
        refresh.extend(answers.rows(root).map(|(_, oid, _)| oid.clone()));
    }
    for root in [mib::HR_PRINTER_STATUS, mib::HR_PRINTER_ERRORS] {
        refresh.extend(answers.first(root).map(|(oid, _)| oid));
    }
    marks.extend(answers.rows(mib::SUPPLY_DESCR).map(|(_, oid, _)| oid.clone()));
    refresh.extend(marks.iter().cloned());
    refresh.retain(|oid| answers.get(oid).is_some());
    let mut known = answers.clone();
    let tables =
        [mib::SUPPLY_COLORANT, mib::SUPPLY_CLASS, mib::SUPPLY_TYPE, mib::SUPPLY_UNIT, mib::COLORANT_VALUE];
    let facts: BTreeSet<Oid> = used.into_values().flatten().collect();
    let labels: BTreeSet<Oid> =
        brand::families(answers).iter().flat_map(|family| family.labels(&refresh)).collect();
    let single: Vec<&[u32]> = WHO_ONCE.iter().chain(&tables).chain(&WHO_MANY).copied().collect();
    let wide = [mib::PRINT_MIB, mib::ENTERPRISES];
    known.retain(|oid| {
        let standard = single.iter().any(|root| !wide.contains(root) && oid.arcs().starts_with(root));
        facts.contains(oid) || marks.contains(oid) || labels.contains(oid) || standard || is_device_id(oid)
    });
    ReadPlan { known, refresh: refresh.into_iter().collect(), marks, uses: 0, no_bulk: false }
}

fn is_device_id(oid: &Oid) -> bool {
    let private = TABLE.family.iter().flat_map(|family| &family.device_id).chain(&TABLE.common.device_id);
    private.into_iter().any(|entry| entry.0 == *oid)
}

/// GETs of exact instances, some at a time.
#[derive(Debug)]
struct Fetch {
    pending: VecDeque<Oid>,
    asked: usize,
    width: usize,
    /// GETNEXT of what lies before each: an SNMPv1 GET fails as a whole when one instance is missing
    /// (RFC 1157 section 4.1.2), GETNEXT does not.
    by_next: bool,
    missing: bool,
}

impl Fetch {
    fn new(oids: Vec<Oid>, width: usize, by_next: bool) -> Fetch {
        Fetch { pending: oids.into(), asked: 0, width, by_next, missing: false }
    }

    fn request(&mut self) -> Option<Request> {
        self.asked = self.pending.len().min(self.width);
        if self.asked == 0 {
            return None;
        }
        let oids = self.pending.iter().take(self.asked);
        Some(if self.by_next {
            Request::GetNext(oids.map(predecessor).collect())
        } else {
            Request::Get(oids.cloned().collect())
        })
    }

    fn handle(&mut self, response: &Response, answers: &mut Answers) {
        const TOO_BIG: u32 = 1;
        if response.error_status != 0 {
            let offender = (response.error_index as usize).checked_sub(1).filter(|at| *at < self.asked);
            match offender {
                Some(at) if response.error_status != TOO_BIG => {
                    self.missing = true;
                    let _dropped = self.pending.remove(at);
                }
                Some(_) | None if self.asked > 1 => self.width = self.asked / 2,
                Some(_) | None => {
                    self.missing = true;
                    let _dropped = self.pending.pop_front();
                }
            }
            return;
        }
        let wanted: Vec<Oid> = self.pending.drain(..self.asked.min(self.pending.len())).collect();
        for oid in &wanted {
            match response.varbinds.iter().find(|varbind| varbind.oid == *oid && has_value(&varbind.value)) {
                Some(varbind) => answers.insert(varbind),
                None => self.missing = true,
            }
        }
    }
}

/// A name whose successor is `oid` where that exists: for `.0` the object, else the instance before.
fn predecessor(oid: &Oid) -> Oid {
    match oid.arcs().split_last() {
        Some((0, rest)) => mib::oid(rest),
        Some((last, rest)) => mib::oid(rest).child(&[last - 1]),
        None => oid.clone(),
    }
}
