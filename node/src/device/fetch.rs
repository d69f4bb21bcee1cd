//! Exact questions: GETs of known instances, narrowed where a device finds them too many, without those it lacks.

use std::collections::VecDeque;

use quire_proto::oid::Oid;

use super::answers::{Answers, has_value};
use super::mib;
use crate::snmp::{Request, Response, VarBind};

/// GETs of exact instances, some at a time.
#[derive(Debug)]
pub(super) struct Fetch {
    pending: VecDeque<Oid>,
    asked: usize,
    width: usize,
    /// GETNEXT of what lies before each: an SNMPv1 GET fails as a whole when one instance is missing
    /// (RFC 1157 section 4.1.2), GETNEXT does not.
    by_next: bool,
    /// Something that was asked for is not there.
    pub(super) missing: bool,
}

impl Fetch {
    /// For these instances, `width` at a time.
    pub(super) fn new(oids: Vec<Oid>, width: usize, by_next: bool) -> Fetch {
        Fetch { pending: oids.into(), asked: 0, width, by_next, missing: false }
    }

    /// The next question; `None` when nothing is left to ask.
    pub(super) fn request(&mut self) -> Option<Request> {
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

    /// Takes the answer to the last question.
    pub(super) fn handle(&mut self, response: &Response, answers: &mut Answers) {
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
        answers.expect(wanted.len());
        for (at, oid) in wanted.iter().enumerate() {
            let fits = |varbind: &&VarBind| varbind.oid == *oid && has_value(&varbind.value);
            // Where it should be, or else anywhere.
            let found =
                response.varbinds.get(at).filter(fits).or_else(|| response.varbinds.iter().find(fits));
            match found {
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
