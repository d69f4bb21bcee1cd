//! What is remembered of those who answered: round trips, SNMPv3 engines, localized keys.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use super::credential::{Credential, User};
use super::pace::Rtt;
use super::table::Keyed;
use super::usm::{Keys, TIME_WINDOW};

/// The most peers remembered. At about 120 octets each, 450 with an SNMPv3 engine and keys, that is 15 to 60 MB
/// when full. At the bound the half that was not used longest is forgotten, which costs a peer its round-trip
/// estimate and, with SNMPv3, two packets.
const MOST: usize = 131_072;

/// One peer.
#[derive(Default)]
pub(crate) struct Known {
    pub(crate) rtt: Rtt,
    pub(crate) engine: Option<Box<Engine>>,
}

/// An authoritative engine (RFC 3414 section 2.3).
pub(crate) struct Engine {
    pub(crate) id: Bytes,
    clock: Option<EngineClock>,
    keys: Option<(Weak<Credential>, Arc<Keys>)>,
    /// The user of `keys` has sent us a message with the right digest.
    vouched: bool,
}

/// Boots and time as an authenticated message gave them.
#[derive(Clone, Copy, Debug)]
struct EngineClock {
    boots: u32,
    time: u32,
    /// Our time when that message came, microseconds.
    at: u64,
}

/// snmpEngineTime and snmpEngineBoots end here (RFC 3414 section 2.2.2).
const LATCHED: u32 = i32::MAX as u32;

impl Engine {
    pub(crate) fn new(id: &[u8]) -> Engine {
        Engine { id: Bytes::copy_from_slice(id), clock: None, keys: None, vouched: false }
    }

    /// True when boots and time are known from an authenticated message.
    pub(crate) fn synchronised(&self) -> bool {
        self.clock.is_some()
    }

    /// Boots and time as they should be there now; zeroes while unknown.
    pub(crate) fn now(&self, now: u64) -> (u32, u32) {
        let Some(clock) = self.clock else { return (0, 0) };
        let time = u64::from(clock.time) + now.saturating_sub(clock.at) / 1_000_000;
        if time < u64::from(LATCHED) {
            return (clock.boots, time as u32);
        }
        // RFC 3414 §2.2.2: time rolls over and counts a boot.
        ((clock.boots + 1).min(LATCHED), (time % u64::from(LATCHED)) as u32)
    }

    /// Takes in boots and time of a message whose digest was right (RFC 3414 section 3.2 step 7b); `false` when
    /// the message is outside the time window.
    pub(crate) fn hear(&mut self, boots: u32, time: u32, now: u64) -> bool {
        if self.clock.is_none() {
            self.clock = Some(EngineClock { boots, time, at: now });
            return true;
        }
        let (own_boots, own_time) = self.now(now);
        if boots > own_boots || boots == own_boots && time > own_time {
            self.clock = Some(EngineClock { boots, time, at: now });
        }
        boots != LATCHED && boots >= own_boots && (boots > own_boots || time + TIME_WINDOW >= own_time)
    }

    /// Takes boots and time from an authenticated notInTimeWindow Report to our own, fresh msgID. Unlike an
    /// ordinary message it may also set them back: a device that lost its memory counts boots from the start.
    pub(crate) fn resynchronise(&mut self, boots: u32, time: u32, now: u64) {
        self.clock = Some(EngineClock { boots, time, at: now });
    }

    /// The keys of a user here, derived at the first call.
    pub(crate) fn keys(&mut self, credential: &Arc<Credential>, user: &User) -> Arc<Keys> {
        // The Weak keeps the address from being used again, so equal addresses mean the same credential.
        if let Some((owner, keys)) = &self.keys
            && owner.as_ptr() == Arc::as_ptr(credential)
        {
            return keys.clone();
        }
        let keys = Arc::new(Keys::localized(user, &self.id));
        self.keys = Some((Arc::downgrade(credential), keys.clone()));
        self.vouched = false;
        keys
    }

    /// Notes that the present keys proved right.
    pub(crate) fn vouch(&mut self) {
        self.vouched = true;
    }

    /// True when boots and time are known and this credential's password has proven right here.
    pub(crate) fn vouches_for(&self, credential: &Arc<Credential>) -> bool {
        let own = |(owner, _): &(Weak<Credential>, _)| owner.as_ptr() == Arc::as_ptr(credential);
        self.synchronised() && self.vouched && self.keys.as_ref().is_some_and(own)
    }
}

/// The peers, in two generations: what is used moves to the young one; when that has grown to half of the bound
/// it becomes the old one, and the old one is forgotten.
#[derive(Default)]
pub(crate) struct Peers {
    young: HashMap<SocketAddr, Known, Keyed>,
    old: HashMap<SocketAddr, Known, Keyed>,
}

impl Peers {
    /// What is known of a peer.
    pub(crate) fn get(&mut self, peer: SocketAddr) -> Option<&mut Known> {
        if let Some(known) = self.old.remove(&peer) {
            self.insert(peer, known);
        }
        self.young.get_mut(&peer)
    }

    /// What is known of a peer, beginning now if nothing is.
    pub(crate) fn meet(&mut self, peer: SocketAddr) -> &mut Known {
        if !self.young.contains_key(&peer) {
            let known = self.old.remove(&peer).unwrap_or_default();
            self.insert(peer, known);
        }
        self.young.entry(peer).or_default()
    }

    fn insert(&mut self, peer: SocketAddr, known: Known) {
        if self.young.len() >= MOST / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(peer, known);
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn engine_time_goes_on_while_nobody_asks() {
        let mut engine = Engine::new(b"engine");
        assert_eq!(engine.now(5 * SECOND), (0, 0));
        assert!(engine.hear(3, 1000, 10 * SECOND));
        // snmp2 would still say 1000 here, and be outside the window.
        assert_eq!(engine.now(170 * SECOND), (3, 1160));
    }

    #[test]
    fn messages_outside_the_window_are_refused() {
        let mut engine = Engine::new(b"engine");
        assert!(engine.hear(3, 1000, 0));
        assert!(engine.hear(3, 900, 0), "100 seconds late is late, not outside");
        assert!(!engine.hear(3, 849, 0));
        assert!(!engine.hear(2, 5000, 0), "a boot ago");
        assert!(engine.hear(4, 0, 0), "rebooted");
        assert_eq!(engine.now(0), (4, 0));
        assert!(!engine.hear(LATCHED, 1, 0), "latched");
    }

    #[test]
    fn a_device_that_counts_boots_anew_is_followed() {
        let mut engine = Engine::new(b"engine");
        assert!(engine.hear(300, 1000, 0));
        engine.resynchronise(1, 20, 0);
        assert_eq!(engine.now(SECOND), (1, 21));
    }

    #[test]
    fn boots_of_zero_are_a_value_like_others() {
        let mut engine = Engine::new(b"engine");
        assert!(engine.hear(0, 7, 0));
        assert!(engine.synchronised());
        assert_eq!(engine.now(SECOND), (0, 8));
    }

    #[test]
    fn engine_time_rolls_over_into_boots() {
        let mut engine = Engine::new(b"engine");
        assert!(engine.hear(3, LATCHED - 1, 0));
        assert_eq!(engine.now(SECOND).0, 4);
        assert!(engine.now(SECOND).1 <= 1);
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let mut peers = Peers::default();
        let favourite: SocketAddr = "127.0.0.1:161".parse().unwrap();
        peers.meet(favourite).rtt.sample(5);
        for n in 0..300_000u32 {
            peers.meet(SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 161)));
            if n % 1000 == 0 {
                assert!(peers.get(favourite).is_some());
            }
        }
        assert!(peers.len() <= MOST + 1);
        assert!(peers.get(favourite).unwrap().rtt.timeout().is_some());
    }
}
