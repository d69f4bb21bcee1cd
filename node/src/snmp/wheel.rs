//! A timer wheel: deadlines of tens of thousands of requests, set and forgotten at a constant price.
//! Nothing is ever removed; whoever is woken checks whether the deadline still stands.

/// Microseconds to the tick, as a shift: 2 ms, finer than tokio's timers can wake us twice.
const TICK: u32 = 11;
/// Ticks around the wheel: 8.4 s, more than the longest wait but that of a patient request, which goes round twice.
const TICKS: usize = 4096;

/// Who is to be woken: a slot, and the request-id that it sent when the deadline was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Alarm {
    pub(crate) slot: u32,
    pub(crate) id: u32,
}

/// An alarm and the next one of its tick.
#[derive(Clone, Copy)]
struct Link {
    alarm: Alarm,
    next: u32,
}

/// No link.
const END: u32 = u32::MAX;

/// Bound: one alarm a transmission, and no transmission without a slot; all gone within one round. A tick is a chain through
/// what all ticks share, so that a burst leaves no room behind in the tick that it fell into.
pub(crate) struct Wheel {
    heads: Box<[u32]>,
    links: Vec<Link>,
    /// The first of the links that are free.
    free: u32,
    /// One bit for each tick that has alarms.
    occupied: [u64; TICKS / 64],
    /// The next tick to be looked at.
    next: u64,
}

impl Wheel {
    pub(crate) fn new() -> Wheel {
        let heads = vec![END; TICKS].into_boxed_slice();
        Wheel { heads, links: Vec::new(), free: END, occupied: [0; TICKS / 64], next: 0 }
    }

    /// Wakes `alarm` at `at` microseconds or up to a tick later; a deadline beyond the horizon is woken early.
    pub(crate) fn set(&mut self, at: u64, alarm: Alarm) {
        let tick = at.div_ceil(1 << TICK).clamp(self.next, self.next + TICKS as u64 - 1);
        let place = tick as usize % TICKS;
        let link = Link { alarm, next: self.heads[place] };
        self.heads[place] = match self.free {
            END => {
                self.links.push(link);
                self.links.len() as u32 - 1
            }
            free => {
                let room = &mut self.links[free as usize];
                self.free = std::mem::replace(room, link).next;
                free
            }
        };
        self.occupied[place / 64] |= 1 << (place % 64);
    }

    /// Moves the alarms of the next tick that has some and is not later than `now` to `alarms`, in the order in which they
    /// were set; false where there is none.
    pub(crate) fn due(&mut self, now: u64, alarms: &mut Vec<Alarm>) -> bool {
        let last = now >> TICK;
        match self.first() {
            Some(tick) if tick <= last => {
                let place = tick as usize % TICKS;
                self.next = tick + 1;
                self.occupied[place / 64] &= !(1 << (place % 64));
                let mut at = std::mem::replace(&mut self.heads[place], END);
                let from = alarms.len();
                while let Some(link) = self.links.get_mut(at as usize) {
                    alarms.push(link.alarm);
                    let next = std::mem::replace(&mut link.next, self.free);
                    self.free = std::mem::replace(&mut at, next);
                }
                alarms[from..].reverse();
                true
            }
            _ => {
                self.next = self.next.max(last + 1);
                false
            }
        }
    }

    /// When the next alarm is due, microseconds.
    pub(crate) fn next(&self) -> Option<u64> {
        self.first().map(|tick| tick << TICK)
    }

    fn first(&self) -> Option<u64> {
        let start = self.next as usize % TICKS;
        // One word more than there are, to come back to the low bits of the first.
        for step in 0..=self.occupied.len() {
            let word = (start / 64 + step) % self.occupied.len();
            let mask = match step {
                0 => u64::MAX << (start % 64),
                _ if step == self.occupied.len() => !(u64::MAX << (start % 64)),
                _ => u64::MAX,
            };
            let bits = self.occupied[word] & mask;
            if bits != 0 {
                let place = word * 64 + bits.trailing_zeros() as usize;
                return Some(self.next + ((place + TICKS - start) % TICKS) as u64);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn beyond_the_horizon_wakes_early_and_can_be_set_again() {
        let mut wheel = Wheel::new();
        let alarm = Alarm { slot: 1, id: 2 };
        wheel.set(60_000_000, alarm);
        let at = wheel.next().unwrap();
        assert!(at < 60_000_000);
        let mut due = Vec::new();
        assert!(wheel.due(at, &mut due));
        assert_eq!(due, [alarm]);
        due.clear();
        assert!(!wheel.due(at, &mut due));
        wheel.set(60_000_000, alarm);
        assert!(wheel.next().unwrap() > at);
    }

    #[test]
    fn bursts_in_different_ticks_share_their_room() {
        let mut wheel = Wheel::new();
        let mut due = Vec::new();
        for round in 0..20 {
            let now = round * 50_000;
            (0..100).for_each(|slot| wheel.set(now + 10_000, Alarm { slot, id: round as u32 }));
            while wheel.due(now + 20_000, &mut due) {}
            assert!(due.drain(..).map(|alarm| alarm.slot).eq(0..100), "in the order in which they were set");
        }
        assert!(wheel.links.len() <= 100, "{}", wheel.links.len());
    }

    proptest! {
        /// Every alarm comes once, none before its deadline, none later than a tick and the step of time.
        #[test]
        fn alarms_come_in_time(deadlines in prop::collection::vec(0u64..8_000_000, 1..200), step in 1u64..100_000) {
            let mut wheel = Wheel::new();
            for (slot, at) in deadlines.iter().enumerate() {
                wheel.set(*at, Alarm { slot: slot as u32, id: 0 });
            }
            let mut woken = vec![None; deadlines.len()];
            let mut now = 0;
            while let Some(at) = wheel.next() {
                prop_assert!(now <= 8_200_000);
                let mut alarms = Vec::new();
                while wheel.due(now, &mut alarms) {
                    for alarm in alarms.drain(..) {
                        prop_assert_eq!(woken[alarm.slot as usize].replace(now), None);
                    }
                }
                now = now.max(at.min(now + step)).max(now + 1);
            }
            for (at, woken) in deadlines.iter().zip(woken) {
                let woken = woken.unwrap();
                prop_assert!(woken >= *at && woken <= at + (2 << TICK) + step, "{} {}", at, woken);
            }
        }
    }
}
