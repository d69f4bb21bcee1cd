//! The requests in flight and the numbers that they are known by.
//!
//! A request-id (and msgID) is `base << 4 | transmission`: the base is drawn at random, unique among all that are
//! in flight, and the low bits count transmissions. So one lookup finds the request, an answer says which
//! transmission it answers (round trips are exact even after a retry), every retransmission has its own msgID
//! as RFC 3412 section 6.2 wants, and an answer that comes from another address of the same device is still known.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::net::SocketAddr;

use super::ber::SMALLEST_ID;
use super::exchange::Exchange;
use super::pace::Random;

/// Transmissions that one base can count.
pub(crate) const MOST_SENDS: u8 = 16;

/// Retries at most: the first transmission and a patient request's last need their numbers, too.
pub(crate) const MOST_RETRIES: u8 = MOST_SENDS - 2;

/// One request, being sent or waiting for its turn.
pub(crate) struct Slot {
    pub(crate) peer: SocketAddr,
    pub(crate) work: Work,
    /// When the first and the last transmission went out, microseconds.
    pub(crate) first_sent: u64,
    pub(crate) last_sent: u64,
    pub(crate) deadline: u64,
    base: u32,
    /// Transmissions so far under this base.
    pub(crate) sends: u8,
    /// Of these, sent at a rate that proved too high: they count for nothing (`aimd`).
    pub(crate) void: u8,
}

/// What a slot is for.
pub(crate) enum Work {
    /// Nothing: the slot is free.
    Vacant,
    /// A sweep's prebuilt question.
    Probe {
        /// Which sweep.
        sweep: u32,
        /// Which of its stages.
        stage: u16,
    },
    /// Everything else.
    Exchange(Box<Exchange>),
}

/// Bases are random already, and chosen by us, so they need no hashing.
#[derive(Default)]
pub(crate) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, octets: &[u8]) {
        for octet in octets {
            self.0 = self.0 << 8 | u64::from(*octet);
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        // The map takes its bucket from the low bits and its tag from the high ones.
        self.0 = value.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// Hashes addresses by folded multiplication under keys of this process: a tenth of what SipHash takes. Whoever chooses
/// addresses does not know the keys, so he cannot choose where they fall.
#[derive(Clone, Debug)]
pub(crate) struct Keyed(u64, u64);

impl Default for Keyed {
    fn default() -> Self {
        let key = || RandomState::new().build_hasher().finish();
        Keyed(key(), key() | 1)
    }
}

impl BuildHasher for Keyed {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded { state: self.0, key: self.1 }
    }
}

/// One address being hashed.
pub(crate) struct Folded {
    state: u64,
    key: u64,
}

impl Hasher for Folded {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, octets: &[u8]) {
        for part in octets.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_ne_bytes(word));
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u64(value.into());
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        let product = u128::from(self.state ^ value) * u128::from(self.key);
        self.state = (product >> 64) as u64 ^ product as u64;
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
}

/// Bound: the engine opens no more slots than `Options::window` for sweeps and as many for requests.
#[derive(Default)]
pub(crate) struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_base: HashMap<u32, u32, BuildHasherDefault<AsIs>>,
}

impl Table {
    /// Opens a slot.
    pub(crate) fn open(&mut self, peer: SocketAddr, work: Work, random: &mut Random) -> u32 {
        let slot = Slot { peer, work, first_sent: 0, last_sent: 0, deadline: 0, base: 0, sends: 0, void: 0 };
        let index = match self.free.pop() {
            Some(index) => {
                self.slots[index as usize] = slot;
                index
            }
            None => {
                self.slots.push(slot);
                self.slots.len() as u32 - 1
            }
        };
        self.renumber(index, random);
        index
    }

    /// Gives the slot a fresh base: a new question, to which no earlier answer may fit.
    pub(crate) fn renumber(&mut self, index: u32, random: &mut Random) {
        let slot = &mut self.slots[index as usize];
        self.by_base.remove(&slot.base);
        let span = u64::from((i32::MAX as u32 >> 4) - (SMALLEST_ID >> 4));
        slot.base = loop {
            let base = (SMALLEST_ID >> 4) + random.below(span) as u32;
            if !self.by_base.contains_key(&base) {
                break base;
            }
        };
        (slot.sends, slot.void) = (0, 0);
        self.by_base.insert(slot.base, index);
    }

    /// Frees the slot and gives what it was for.
    pub(crate) fn close(&mut self, index: u32) -> Work {
        let slot = &mut self.slots[index as usize];
        self.by_base.remove(&slot.base);
        slot.base = 0;
        self.free.push(index);
        std::mem::replace(&mut slot.work, Work::Vacant)
    }

    /// The slot that `id` belongs to, and which transmission it was.
    pub(crate) fn find(&self, id: i64) -> Option<(u32, u8)> {
        let id = u32::try_from(id).ok()?;
        let index = *self.by_base.get(&(id >> 4))?;
        let transmission = (id & 0xf) as u8;
        (transmission < self.slots[index as usize].sends).then_some((index, transmission))
    }

    pub(crate) fn slot(&mut self, index: u32) -> &mut Slot {
        &mut self.slots[index as usize]
    }

    /// True while the slot still is what it was when `id` was given to it or sent.
    pub(crate) fn is_current(&self, index: u32, id: u32) -> bool {
        self.slots[index as usize].base == id >> 4
    }

    /// Slots in use.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

impl Slot {
    /// The id of the next transmission.
    pub(crate) fn next_id(&self) -> u32 {
        self.base << 4 | u32::from(self.sends.min(MOST_SENDS - 1))
    }

    /// The id of the last transmission.
    pub(crate) fn last_id(&self) -> u32 {
        self.base << 4 | u32::from(self.sends.clamp(1, MOST_SENDS) - 1)
    }

    /// How long the answer to this transmission took, where that is known.
    pub(crate) fn round_trip(&self, transmission: u8, now: u64) -> Option<u64> {
        if transmission + 1 == self.sends {
            Some(now.saturating_sub(self.last_sent))
        } else {
            (transmission == 0).then(|| now.saturating_sub(self.first_sent))
        }
    }
}
