//! Whether the engine is woken by each packet or looks for packets now and then. Pure.
//!
//! A packet that comes alone costs its waking, several times what is done with it. So where answers come by the thousand a
//! second to very many questions, the runtime is told not to watch the sockets, and the engine looks every [`TICK`]. That
//! delays an answer by 2 ms at most (the runtime's timers have a grain of 1 ms), and only in such a crowd: whoever asks
//! one device, or a few, is woken at once.

use std::time::{Duration, Instant};

/// Between two looks.
const TICK: Duration = Duration::from_micros(500);
/// Questions in flight below which every packet wakes.
const CROWD: usize = 64;
/// Wakings within [`SPAN`] from which on looking is cheaper: a look costs what two or three do. Not packets: those that
/// come many at a waking are as cheap already.
const MANY: usize = 4;
const SPAN: Duration = Duration::from_millis(1);
/// Looks in a row that found next to nothing, after which packets wake again.
const FEW: u32 = 8;

/// What is to be done about the sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rhythm {
    /// Every packet wakes; so often one did since then.
    Woken { since: Instant, times: usize },
    /// The next look, and how many in a row found next to nothing.
    Looking { next: Instant, idle: u32 },
}

impl Rhythm {
    pub(super) fn new(now: Instant) -> Rhythm {
        Rhythm::Woken { since: now, times: 0 }
    }

    /// The next look comes a moment after now.
    pub(super) fn looking(now: Instant) -> Rhythm {
        Rhythm::Looking { next: now + TICK, idle: 0 }
    }

    /// True when the sockets are to be looked at now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.next_look().is_none_or(|next| next <= now)
    }

    /// When to look next, where no packet wakes.
    pub(super) fn next_look(&self) -> Option<Instant> {
        match self {
            Rhythm::Woken { .. } => None,
            Rhythm::Looking { next, .. } => Some(*next),
        }
    }

    /// Takes in what a look brought, and how many questions are in flight.
    pub(super) fn heard(&mut self, count: usize, in_flight: usize, now: Instant) {
        *self = match *self {
            _ if in_flight < CROWD => Rhythm::new(now),
            Rhythm::Woken { since, times } if now.saturating_duration_since(since) < SPAN => {
                match times + usize::from(count > 0) {
                    times if times < MANY => Rhythm::Woken { since, times },
                    _ => Rhythm::looking(now),
                }
            }
            Rhythm::Woken { .. } => Rhythm::Woken { since: now, times: usize::from(count > 0) },
            Rhythm::Looking { idle, .. } => {
                let idle = if count * 2 < MANY { idle + 1 } else { 0 };
                match idle {
                    FEW.. => Rhythm::new(now),
                    _ => Rhythm::Looking { next: now + TICK, idle },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets at an even pace, each taken as the rhythm says: the rhythm after 50 ms, and by how much a packet waited at most.
    fn run(in_flight: usize, micros_between: u64) -> (Rhythm, Duration) {
        let began = Instant::now();
        let mut rhythm = Rhythm::new(began);
        let (mut waiting, mut latest) = (Vec::new(), Duration::ZERO);
        for micros in 0..50_000 {
            let now = began + Duration::from_micros(micros);
            let arrived = micros % micros_between == 0;
            waiting.extend(arrived.then_some(now));
            let woken = matches!(rhythm, Rhythm::Woken { .. }) && arrived;
            if woken || rhythm.next_look().is_some_and(|next| next <= now) {
                latest =
                    waiting.iter().map(|at| now.duration_since(*at)).max().unwrap_or_default().max(latest);
                rhythm.heard(waiting.drain(..).count(), in_flight, now);
            }
        }
        (rhythm, latest)
    }

    #[test]
    fn a_crowd_is_looked_at_and_a_few_wake() {
        for (in_flight, between, looking) in
            [(50_000, 20, true), (64, 100, true), (63, 20, false), (50_000, 1_000, false), (1, 10, false)]
        {
            let (rhythm, latest) = run(in_flight, between);
            assert_eq!(rhythm.next_look().is_some(), looking, "{in_flight} in flight, every {between} us");
            assert!(latest <= TICK && (looking || latest.is_zero()), "{latest:?}");
        }
    }

    #[test]
    fn it_is_woken_again_when_the_crowd_has_gone() {
        let began = Instant::now();
        let mut rhythm = Rhythm::new(began);
        let at = |ticks: u32| began + ticks * TICK;
        let crowd = |rhythm: &mut Rhythm, now| (0..MANY).for_each(|_| rhythm.heard(1, 1_000, now));
        crowd(&mut rhythm, began);
        assert!(!rhythm.is_due(began) && rhythm.is_due(at(1)));
        (1..FEW).for_each(|tick| rhythm.heard(0, 1_000, at(tick)));
        assert_eq!(rhythm.next_look(), Some(at(FEW)));
        rhythm.heard(10, 1_000, at(FEW));
        (1..=FEW).for_each(|tick| rhythm.heard(1, 1_000, at(FEW + tick)));
        assert_eq!(rhythm.next_look(), None, "one answer a look is next to nothing");
        crowd(&mut rhythm, at(17));
        assert!(rhythm.next_look().is_some());
        rhythm.heard(10, 63, at(18));
        assert_eq!(rhythm.next_look(), None, "few are in flight");
        rhythm.heard(64, 1_000, at(19));
        assert_eq!(rhythm.next_look(), None, "many at one waking");
    }
}
