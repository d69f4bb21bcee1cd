//! One sweep: what to ask, whom next, what was found. No future and no task for an address.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use zeroize::Zeroizing;

use super::aimd::Pace;
use super::ber::{Pdu, SMALLEST_ID};
use super::credential::Credential;
use super::message;
use super::pace::Rtt;
use super::table::MOST_RETRIES;
use super::value::Request;
use super::wheel::Alarm;
use super::{Options, Sweep, SweepCounts, SweepEvent};

/// Events that may wait to be taken before no new address is asked. Those in flight may add theirs, so at most
/// this plus `Options::window` wait.
const BACKLOG: usize = 1024;

/// Microseconds between progress events.
const PROGRESS: u64 = 100_000;

/// Round trips that must be known before they say anything of the addresses not heard yet.
const SAMPLES: u32 = 16;

/// A running sweep.
pub(crate) struct Run {
    peers: Box<dyn Iterator<Item = SocketAddr> + Send>,
    /// The iterator ended.
    exhausted: bool,
    pub(crate) stages: Vec<Stage>,
    /// SNMPv3 users, in order.
    pub(crate) users: Vec<Arc<Credential>>,
    /// The question, for the users.
    pub(crate) pdu: Arc<Pdu>,
    /// Slots to be sent now, with the id that they had: first probes of an address, and what should not wait behind
    /// those; then everything else. At most `Options::window` of both.
    pub(crate) fresh: VecDeque<Alarm>,
    pub(crate) again: VecDeque<Alarm>,
    pub(crate) pace: Pace,
    /// Round trips of everyone who answered, and how many those were.
    rtt: Rtt,
    samples: u32,
    pub(crate) counts: SweepCounts,
    /// Addresses begun and not finished.
    outstanding: usize,
    events: VecDeque<SweepEvent>,
    /// Finished since the last progress event: as many as end in [`PROGRESS`], or as are in flight.
    finished: Vec<SocketAddr>,
    progress_at: u64,
    over: bool,
}

/// One way of asking; the next one is for those whom this one did not move.
pub(crate) struct Stage {
    pub(crate) ask: Ask,
    /// Transmissions.
    pub(crate) tries: u8,
}

/// What a stage sends.
pub(crate) enum Ask {
    /// A whole message, but for its request-id at `id_at`.
    Community {
        /// Whose community.
        credential: Arc<Credential>,
        /// Holds the community, so it is wiped.
        message: Zeroizing<Box<[u8]>>,
        /// Where the request-id is.
        id_at: usize,
    },
    /// SNMPv3 engine discovery.
    Discover,
}

impl Run {
    pub(crate) fn new(sweep: Sweep, options: &Options) -> Run {
        let request = Request::Get(sweep.oids);
        let first = options.retries.min(MOST_RETRIES) + 1;
        let later = 1 + options.retries.min(1);
        let mut stages = Vec::new();
        for wanted_v1 in [false, true] {
            for credential in &sweep.credentials {
                let community = match (&**credential, wanted_v1) {
                    (Credential::V1(community), true) | (Credential::V2c(community), false) => community,
                    _ => continue,
                };
                let mut out = Vec::new();
                let pdu = Pdu::new(&request, wanted_v1);
                let id_at =
                    message::write_community(&mut out, wanted_v1, community.octets(), &pdu, SMALLEST_ID);
                let message = Zeroizing::new(out.into_boxed_slice());
                let tries = if stages.is_empty() { first } else { later };
                stages.push(Stage {
                    ask: Ask::Community { credential: credential.clone(), message, id_at },
                    tries,
                });
            }
        }
        let users: Vec<_> =
            sweep.credentials.iter().filter(|c| matches!(***c, Credential::V3(_))).cloned().collect();
        let tries = match (stages.is_empty(), users.is_empty()) {
            (true, _) => first,
            (false, false) => later,
            (false, true) => u8::from(options.find_engines),
        };
        if tries > 0 {
            stages.push(Stage { ask: Ask::Discover, tries });
        }
        Run {
            peers: sweep.peers,
            exhausted: false,
            stages,
            users,
            pdu: Arc::new(Pdu::new(&request, false)),
            fresh: VecDeque::new(),
            again: VecDeque::new(),
            pace: Pace::default(),
            rtt: Rtt::default(),
            samples: 0,
            counts: SweepCounts::default(),
            outstanding: 0,
            events: VecDeque::new(),
            finished: Vec::new(),
            progress_at: 0,
            over: false,
        }
    }

    /// The next address to ask, unless too many events wait to be taken.
    pub(crate) fn pull(&mut self) -> Option<SocketAddr> {
        if self.exhausted || self.events.len() >= BACKLOG {
            return None;
        }
        let Some(peer) = self.peers.next() else {
            self.exhausted = true;
            self.end();
            return None;
        };
        self.counts.addresses += 1;
        self.outstanding += 1;
        Some(peer)
    }

    /// True when a call of `pull` may give an address.
    pub(crate) fn has_more(&self) -> bool {
        !self.exhausted && self.events.len() < BACKLOG
    }

    /// The next slot to be sent. In haste (without a ceiling) new addresses go before repetitions: the sooner the last
    /// one was asked, the sooner all waits are over; `None` asks for a new one then. Under a ceiling a repetition goes
    /// first, or it would come after all the addresses that the window takes. Once slowed down, what was begun at the
    /// present rate goes first, so that its loss shows soon, then what went out too fast, and new addresses at last.
    pub(crate) fn next_queued(&mut self, haste: bool, window_open: bool) -> Option<Alarm> {
        if self.pace.has_fallen() {
            return self.fresh.pop_front().or_else(|| self.again.pop_front());
        }
        match haste {
            true => self.fresh.pop_front().or_else(|| {
                let new_first = window_open && self.has_more();
                if new_first { None } else { self.again.pop_front() }
            }),
            false => self.again.pop_front().or_else(|| self.fresh.pop_front()),
        }
    }

    /// True when there is something to send, were it not for the rate.
    pub(crate) fn wants_to_send(&self, window_open: bool) -> bool {
        !self.fresh.is_empty() || !self.again.is_empty() || window_open && self.has_more()
    }

    /// Takes in a round trip.
    pub(crate) fn measure(&mut self, micros: u64) {
        self.rtt.sample(micros);
        self.samples = self.samples.saturating_add(1);
    }

    /// How long an answer takes at most here, microseconds, once enough have come to tell.
    pub(crate) fn patience(&self) -> Option<u64> {
        self.rtt.timeout().filter(|_| self.samples >= SAMPLES)
    }

    pub(crate) fn tell(&mut self, event: SweepEvent) {
        self.events.push_back(event);
    }

    /// An address is done with.
    pub(crate) fn finish_one(&mut self, peer: SocketAddr, now: u64) {
        self.outstanding -= 1;
        self.finished.push(peer);
        if now >= self.progress_at {
            self.progress_at = now + PROGRESS;
            self.tell_progress();
        }
        self.end();
    }

    fn tell_progress(&mut self) {
        let finished = std::mem::take(&mut self.finished);
        self.tell(SweepEvent::Progress { done: self.done(), finished });
    }

    fn done(&self) -> u64 {
        self.counts.addresses - self.outstanding as u64
    }

    fn end(&mut self) {
        if self.exhausted && self.outstanding == 0 && !self.over {
            self.over = true;
            self.tell_progress();
            self.tell(SweepEvent::Done(self.counts));
        }
    }

    pub(crate) fn next_event(&mut self) -> Option<SweepEvent> {
        self.events.pop_front()
    }

    pub(crate) fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// True when the sweep is over and all of its events are taken.
    pub(crate) fn is_over(&self) -> bool {
        self.over && self.events.is_empty()
    }
}

impl Sweep {
    /// How many packets an address costs that never answers: what `--explain` multiplies.
    pub fn packets_when_silent(credentials: &[Arc<Credential>], options: &Options) -> u32 {
        let sweep = Sweep {
            peers: Box::new(std::iter::empty()),
            credentials: credentials.to_vec(),
            oids: Vec::new(),
        };
        Run::new(sweep, options).stages.iter().map(|stage| u32::from(stage.tries)).sum()
    }
}
