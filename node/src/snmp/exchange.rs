//! A request under way, and with SNMPv3 the conversation around it: who are you (discovery), is the password
//! right and what time is it there (synchronisation), and only then the question (RFC 3414 section 4).
//!
//! Synchronisation is an authenticated message that asks for nothing. It gives boots and time that are vouched
//! for, and it tells a wrong authentication password from a wrong privacy password, to which many devices
//! are merely silent.
//!
//! Architecture Invariant: nothing is learnt for longer than this request from a message whose digest was not
//! checked, but the engineID of an engine that was not known.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;

use super::ber::Pdu;
use super::credential::User;
use super::engine::Core;
use super::message::{self, Answered, Sealed, Security};
use super::peers::Engine;
use super::prepared::{Expected, Prepared};
use super::sweep::Ask;
use super::table::Work;
use super::usm::Keys;
use super::value::Question;
use super::{Credential, Failure, Patience, SweepEvent};

/// Times that a device may correct our notion of its time or engineID within one request.
const CORRECTIONS: u8 = 2;

/// A request, or a sweep's attempt with one user at one device.
pub(crate) struct Exchange {
    pub(crate) owner: Owner,
    pub(crate) credential: Arc<Credential>,
    question: Asked,
    pub(crate) patience: Patience,
    phase: Phase,
    corrections: u8,
    /// Boots and time that nobody vouched for: said once in synchronisation, never remembered.
    hint: (u32, u32),
    /// The authentication password was proven right within this exchange.
    synchronised: bool,
}

/// What is asked, encoded: a tenth of what the names take that it was made of, and very many may wait.
#[derive(Clone)]
pub(super) enum Asked {
    /// For this exchange, or for all of a sweep.
    Once(Arc<Pdu>),
    Prepared(Arc<Prepared>),
}

impl Asked {
    /// As it is to be sent under this credential; `None` for what its version of SNMP cannot say.
    pub(super) fn of(question: &Question, credential: &Credential) -> Option<Asked> {
        let v1 = matches!(credential, Credential::V1(_));
        match question {
            Question::Plain(request) => Some(Asked::Once(Arc::new(Pdu::new(request, v1)))),
            Question::Prepared(_) if v1 => None,
            Question::Prepared(prepared) => Some(Asked::Prepared(prepared.clone())),
        }
    }

    fn pdu(&self) -> &Pdu {
        match self {
            Asked::Once(pdu) => pdu,
            Asked::Prepared(prepared) => &prepared.pdu,
        }
    }
}

/// Who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A request.
    Ticket(u64),
    /// A sweep, with the number of the user to try after this one.
    Sweep {
        /// Which sweep.
        sweep: u32,
        /// Index of the next user.
        next: u16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Discover,
    Synchronise,
    Question,
}

/// The usmStats counters (RFC 3414 section 5) that a Report may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    UnsupportedLevel,
    NotInTimeWindow,
    UnknownUser,
    UnknownEngine,
    WrongDigest,
    Decryption,
    Other,
}

impl Report {
    fn of(pdu: &Answered<'_>) -> Report {
        const USM_STATS: [u32; 9] = [1, 3, 6, 1, 6, 3, 15, 1, 1];
        let oid = pdu.first_oid();
        let Some(rest) = oid.as_ref().and_then(|oid| oid.arcs().strip_prefix(&USM_STATS)) else {
            return Report::Other;
        };
        match rest.first() {
            Some(1) => Report::UnsupportedLevel,
            Some(2) => Report::NotInTimeWindow,
            Some(3) => Report::UnknownUser,
            Some(4) => Report::UnknownEngine,
            Some(5) => Report::WrongDigest,
            Some(6) => Report::Decryption,
            _ => Report::Other,
        }
    }
}

impl Exchange {
    /// The answer, where it is just what a prepared question expects.
    pub(super) fn expected(&self, pdu: &Answered<'_>) -> Option<Expected> {
        match &self.question {
            Asked::Once(_) => None,
            Asked::Prepared(prepared) => pdu.expected(prepared),
        }
    }

    pub(super) fn new(
        owner: Owner,
        credential: Arc<Credential>,
        question: Asked,
        patience: Patience,
    ) -> Exchange {
        Exchange {
            owner,
            credential,
            question,
            patience,
            phase: Phase::Question,
            corrections: 0,
            hint: (0, 0),
            synchronised: false,
        }
    }

    /// Transmissions of the present question.
    pub(crate) fn tries(&self, retries: u8) -> u8 {
        match (self.owner, self.patience) {
            // Devices lock users: in a sweep one attempt, until the password is proven right.
            (Owner::Sweep { .. }, _) if !self.synchronised => 1,
            (Owner::Sweep { .. }, _) => 1 + retries.min(1),
            (Owner::Ticket(_), Patience::Once) => 1,
            (Owner::Ticket(_), Patience::Normal) => 1 + retries,
            (Owner::Ticket(_), Patience::Patient) => 2 + retries,
        }
    }

    /// What silence means.
    pub(crate) fn when_silent(&self) -> Failure {
        let encrypts = self.user().is_some_and(|user| user.privacy().is_some());
        if self.synchronised && encrypts && self.phase == Phase::Question {
            // It answered authenticated messages a moment ago, and is silent to encrypted ones.
            return Failure::Decryption;
        }
        Failure::Timeout
    }

    fn user(&self) -> Option<&User> {
        match &*self.credential {
            Credential::V3(user) => Some(user),
            Credential::V1(_) | Credential::V2c(_) => None,
        }
    }
}

/// What to do about a message.
enum Verdict {
    /// Nothing; it was counted.
    Ignore,
    /// Ask again from this phase.
    Again(Phase),
    /// It answers the question.
    Conclude,
    Fail(Failure),
}

impl Core {
    /// Decides where the slot's conversation begins, by what is known of the peer.
    pub(super) fn choose_phase(&mut self, index: u32) {
        let slot = self.table.slot(index);
        let peer = slot.peer;
        let Work::Exchange(exchange) = &mut slot.work else { return };
        let Some(user) = exchange.user() else { return };
        let engine = self.peers.get(peer).and_then(|known| known.engine.as_deref());
        exchange.phase = match (engine, user.auth(), exchange.owner) {
            (None, _, _) => Phase::Discover,
            (Some(_), None, _) => Phase::Question,
            (Some(_), Some(_), Owner::Sweep { .. }) => Phase::Synchronise,
            (Some(engine), Some(_), Owner::Ticket(_)) => {
                if engine.vouches_for(&exchange.credential) {
                    Phase::Question
                } else {
                    Phase::Synchronise
                }
            }
        };
    }

    /// Writes the next transmission of the slot's exchange.
    pub(super) fn write_exchange(&mut self, index: u32, id: u32, now: u64, out: &mut Vec<u8>) {
        let slot = self.table.slot(index);
        let peer = slot.peer;
        let Work::Exchange(exchange) = &mut slot.work else { return };
        let user = match &*exchange.credential {
            Credential::V1(community) | Credential::V2c(community) => {
                let v1 = matches!(*exchange.credential, Credential::V1(_));
                message::write_community(out, v1, community.octets(), exchange.question.pdu(), id);
                return;
            }
            Credential::V3(user) => user,
        };
        let engine = self.peers.get(peer).and_then(|known| known.engine.as_deref_mut());
        let Some(engine) = engine.filter(|_| exchange.phase != Phase::Discover) else {
            // Forgotten in between (`peers::MOST`), or not known yet.
            exchange.phase = Phase::Discover;
            return message::write_discovery(out, id);
        };
        let (boots, time) = if engine.synchronised() { engine.now(now) } else { exchange.hint };
        let keys = user.auth().map(|_| engine.keys(&exchange.credential, user));
        self.salt = self.salt.wrapping_add(1);
        let question = exchange.phase == Phase::Question;
        let security = Security {
            user: user.name(),
            context: if question { user.context() } else { "" },
            engine_id: &engine.id,
            boots,
            time,
            keys: keys.as_deref(),
            encrypt: question,
            salt: self.salt,
        };
        if question {
            message::write_v3(out, &security, exchange.question.pdu(), id);
        } else {
            message::write_v3(out, &security, &Pdu::empty(), id);
        }
    }

    /// Takes in an SNMPv3 message.
    pub(super) fn hear_v3(&mut self, from: SocketAddr, sealed: &Sealed<'_>, now: u64) {
        let Some((index, transmission)) = self.table.find(sealed.id) else {
            return self.counters.unmatched.add(1);
        };
        let slot = self.table.slot(index);
        let discovering = match &slot.work {
            Work::Exchange(exchange) => match exchange.user() {
                Some(_) => exchange.phase == Phase::Discover,
                None => return self.counters.mismatched.add(1),
            },
            Work::Probe { sweep, stage } => {
                let stage = self.sweeps.get(sweep).map(|run| &run.stages[usize::from(*stage)].ask);
                if !matches!(stage, Some(Ask::Discover)) {
                    return self.counters.mismatched.add(1);
                }
                true
            }
            Work::Vacant => return,
        };
        if discovering {
            return self.hear_discovery(index, transmission, sealed, now);
        }
        match self.judge(index, sealed, now) {
            Verdict::Ignore => {}
            Verdict::Fail(failure) => self.fail(index, failure, now),
            Verdict::Again(phase) => {
                self.measure(index, transmission, now);
                if let Work::Exchange(exchange) = &mut self.table.slot(index).work {
                    exchange.phase = phase;
                }
                self.turn_page(index);
            }
            Verdict::Conclude => self.unseal(index, transmission, from, sealed, now),
        }
    }

    /// An answer to engine discovery: all that counts is the engineID. What it says of boots and time is a hint.
    fn hear_discovery(&mut self, index: u32, transmission: u8, sealed: &Sealed<'_>, now: u64) {
        if sealed.engine_id.is_empty() || sealed.encrypted {
            return self.counters.mismatched.add(1);
        }
        self.measure(index, transmission, now);
        let peer = self.table.slot(index).peer;
        let known = self.peers.meet(peer);
        if known.engine.as_ref().is_none_or(|engine| engine.id != sealed.engine_id) {
            known.engine = Some(Box::new(Engine::new(sealed.engine_id)));
        }
        let hint = (sealed.boots, sealed.time);
        if let Work::Probe { sweep, .. } = self.table.slot(index).work {
            return self.try_next_user(index, sweep, 0, hint, now);
        }
        if let Work::Exchange(exchange) = &mut self.table.slot(index).work {
            exchange.hint = hint;
        }
        self.choose_phase(index);
        self.turn_page(index);
    }

    /// Puts the next user of a sweep into the slot, or closes it when there is none.
    fn try_next_user(&mut self, index: u32, sweep: u32, next: u16, hint: (u32, u32), now: u64) {
        let slot = self.table.slot(index);
        let peer = slot.peer;
        let Some(run) = self.sweeps.get_mut(&sweep) else {
            self.leave(index);
            return;
        };
        if let Some(credential) = run.users.get(usize::from(next)) {
            let owner = Owner::Sweep { sweep, next: next + 1 };
            let mut exchange =
                Exchange::new(owner, credential.clone(), Asked::Once(run.pdu.clone()), Patience::Once);
            exchange.hint = hint;
            slot.work = Work::Exchange(Box::new(exchange));
            self.choose_phase(index);
            return self.turn_page(index);
        }
        run.counts.refused += 1;
        if run.users.is_empty() {
            let engine = self.peers.get(peer).and_then(|known| known.engine.as_ref());
            let engine_id = engine.map_or_else(Bytes::new, |engine| engine.id.clone());
            run.tell(SweepEvent::NeedsCredentials { peer, engine_id });
        }
        self.finish_probe(index, now);
    }

    /// Ends the slot's question without an answer.
    pub(super) fn fail(&mut self, index: u32, failure: Failure, now: u64) {
        let slot = self.table.slot(index);
        let peer = slot.peer;
        let Work::Exchange(exchange) = &slot.work else { return };
        match exchange.owner {
            Owner::Ticket(ticket) => {
                self.leave(index);
                self.answered(ticket, Err(failure));
            }
            Owner::Sweep { sweep, next } => {
                let user = exchange.credential.user().unwrap_or_default().to_owned();
                let hint = exchange.hint;
                if let Some(run) = self.sweeps.get_mut(&sweep) {
                    run.tell(SweepEvent::Refused { peer, user, reason: failure });
                }
                self.try_next_user(index, sweep, next, hint, now);
            }
        }
    }

    /// Checks a message against the exchange that it answers.
    fn judge(&mut self, index: u32, sealed: &Sealed<'_>, now: u64) -> Verdict {
        let slot = self.table.slot(index);
        let peer = slot.peer;
        let Work::Exchange(exchange) = &mut slot.work else { return Verdict::Ignore };
        let credential = exchange.credential.clone();
        let Credential::V3(user) = &*credential else { return Verdict::Ignore };
        let Some(engine) = self.peers.get(peer).and_then(|known| known.engine.as_deref_mut()) else {
            return Verdict::Again(Phase::Discover);
        };
        if !sealed.authenticated {
            return self.judge_unauthenticated(index, user, sealed);
        }
        if sealed.engine_id != engine.id || sealed.user != user.name().as_bytes() || user.auth().is_none() {
            self.counters.mismatched.add(1);
            return Verdict::Ignore;
        }
        let keys = engine.keys(&credential, user);
        if !keys.verify(sealed.message, sealed.digest_at, sealed.digest) {
            self.counters.wrong_digest.add(1);
            return Verdict::Ignore;
        }
        // From here on the message is the device's own, and, for its msgID, an answer to our own.
        engine.vouch();
        exchange.synchronised |= exchange.phase == Phase::Synchronise;
        let report = match opened(sealed, &keys, |pdu| pdu.report.then(|| Report::of(pdu))) {
            Ok(report) => report,
            Err(failure) => return Verdict::Fail(failure),
        };
        if report == Some(Report::NotInTimeWindow) {
            engine.resynchronise(sealed.boots, sealed.time, now);
            return exchange.corrected(Failure::NotInTimeWindow, Phase::Question);
        }
        if !engine.hear(sealed.boots, sealed.time, now) {
            self.counters.outside_window.add(1);
            return Verdict::Ignore;
        }
        if exchange.phase == Phase::Synchronise {
            return Verdict::Again(Phase::Question);
        }
        if let Some(report) = report {
            return Verdict::Fail(report.failure(user, sealed));
        }
        if user.privacy().is_some() && !sealed.encrypted {
            self.counters.lower_level.add(1);
            return Verdict::Ignore;
        }
        Verdict::Conclude
    }

    /// A message that nobody vouches for: a Report about our security, or an answer where none was wanted. It can
    /// end this request, whose random msgID it knows, but nothing of it is remembered.
    fn judge_unauthenticated(&mut self, index: u32, user: &User, sealed: &Sealed<'_>) -> Verdict {
        let Work::Exchange(exchange) = &mut self.table.slot(index).work else { return Verdict::Ignore };
        let Ok(pdu) = message::scoped(sealed.data) else {
            self.counters.malformed.add(1);
            return Verdict::Ignore;
        };
        if !pdu.report {
            if user.auth().is_none() && sealed.user == user.name().as_bytes() {
                return Verdict::Conclude;
            }
            self.counters.lower_level.add(1);
            return Verdict::Ignore;
        }
        match Report::of(&pdu) {
            Report::UnknownEngine => exchange.corrected(Failure::Timeout, Phase::Discover),
            Report::NotInTimeWindow => {
                exchange.hint = (sealed.boots, sealed.time);
                exchange.corrected(Failure::NotInTimeWindow, Phase::Synchronise)
            }
            Report::Other => {
                self.counters.mismatched.add(1);
                Verdict::Ignore
            }
            report => Verdict::Fail(report.failure(user, sealed)),
        }
    }

    /// Decrypts the answer to the question and closes the slot with it.
    fn unseal(&mut self, index: u32, transmission: u8, from: SocketAddr, sealed: &Sealed<'_>, now: u64) {
        let slot = self.table.slot(index);
        let peer = slot.peer;
        let Work::Exchange(exchange) = &slot.work else { return };
        let credential = exchange.credential.clone();
        let Credential::V3(user) = &*credential else { return };
        let Some(engine) = self.peers.get(peer).and_then(|known| known.engine.as_deref_mut()) else { return };
        let keys = engine.keys(&credential, user);
        let mut data = sealed.data.to_vec();
        let pdu = if sealed.encrypted {
            if !keys.decrypt(sealed.boots, sealed.time, sealed.params, &mut data) {
                return self.fail(index, Failure::Decryption, now);
            }
            message::scoped_decrypted(&data)
        } else {
            message::scoped(&data)
        };
        match pdu {
            Err(message::Malformed) => self.fail(index, Failure::Malformed, now),
            Ok(pdu) if pdu.id != sealed.id => self.counters.mismatched.add(1),
            Ok(pdu) => self.conclude(index, transmission, from, &credential, &pdu, now),
        }
    }
}

impl Exchange {
    /// Asks again from `phase`, unless the device has changed its mind too often.
    fn corrected(&mut self, failure: Failure, phase: Phase) -> Verdict {
        self.corrections += 1;
        if self.corrections > CORRECTIONS {
            return Verdict::Fail(failure);
        }
        Verdict::Again(phase)
    }
}

impl Report {
    fn failure(self, user: &User, sealed: &Sealed<'_>) -> Failure {
        match self {
            Report::UnknownUser => Failure::UnknownUser,
            Report::WrongDigest => Failure::WrongDigest,
            Report::Decryption => Failure::Decryption,
            Report::NotInTimeWindow => Failure::NotInTimeWindow,
            Report::UnsupportedLevel if user.auth().is_none() => {
                Failure::NeedsCredentials { engine_id: Bytes::copy_from_slice(sealed.engine_id) }
            }
            Report::UnsupportedLevel => Failure::UnsupportedLevel,
            Report::UnknownEngine | Report::Other => Failure::Malformed,
        }
    }
}

/// Looks into an authentic message, decrypting a copy where needed.
fn opened<T>(sealed: &Sealed<'_>, keys: &Keys, look: impl FnOnce(&Answered<'_>) -> T) -> Result<T, Failure> {
    if !sealed.encrypted {
        return message::scoped(sealed.data).map(|pdu| look(&pdu)).map_err(|_| Failure::Malformed);
    }
    let mut data = sealed.data.to_vec();
    if !keys.decrypt(sealed.boots, sealed.time, sealed.params, &mut data) {
        return Err(Failure::Decryption);
    }
    // Authentic, but not a PDU: it was encrypted with another key.
    message::scoped_decrypted(&data).map(|pdu| look(&pdu)).map_err(|_| Failure::Decryption)
}
