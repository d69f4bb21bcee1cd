//! Which accidents happen when, from one seed. Every round deals the whole deck, so each kind happens in each round.

use super::switch::Fate;
use super::wires::Way;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use std::time::Duration;

/// Whom it hits; who that is is decided when it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// Whoever leads then.
    Leader,
    /// The n-th of those who do not.
    Other(usize),
    /// The n-th node, whatever it does.
    Node(usize),
}

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accident {
    /// SIGKILL; then it is started again.
    Killed,
    /// SIGKILL for all nodes at once.
    AllKilled,
    /// SIGSTOP, as a machine that is suspended; then SIGCONT.
    Frozen,
    /// No frames between it and the other nodes; Web Admin and devices still hear it.
    CutFromNodes(Way),
    /// No frames at all.
    CutFromAll(Way),
    /// Its cable is pulled out.
    Unplugged,
    /// Loss and delay on every cable.
    Weather(Fate),
    /// The calendar of its machine is so many seconds off; time that passes, passes as before.
    Clock(i64),
    /// Somebody fills its disk up to so many MB.
    DiskFull(u64),
    /// SIGKILL for the Web Admin.
    AdminKilled,
    /// The Web Admin hears nobody, and nobody hears it.
    AdminCut,
}

impl Accident {
    /// Its name in the counts: one for each kind that must happen.
    #[must_use]
    pub fn kind(self) -> &'static str {
        match self {
            Accident::Killed => "killed",
            Accident::AllKilled => "all killed",
            Accident::Frozen => "frozen",
            Accident::CutFromNodes(Way::Both) => "cut from the nodes",
            Accident::CutFromNodes(_) => "cut from the nodes, one way",
            Accident::CutFromAll(Way::Both) => "cut from all",
            Accident::CutFromAll(_) => "cut from all, one way",
            Accident::Unplugged => "unplugged",
            Accident::Weather(_) => "loss and delay",
            Accident::Clock(_) => "clock jumped",
            Accident::DiskFull(_) => "disk full",
            Accident::AdminKilled => "Web Admin killed",
            Accident::AdminCut => "Web Admin cut off",
        }
    }
}

/// One accident of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Planned {
    /// From the round's beginning.
    pub at: Duration,
    /// How long it lasts.
    pub lasts: Duration,
    /// Whom it hits.
    pub victim: Victim,
    /// What happens.
    pub what: Accident,
}

/// Of how many accidents one begins while the one before still lasts.
const OVERLAP_ONE_IN: u32 = 4;

/// The accidents of a round among so many nodes, in the order of their beginnings.
#[must_use]
pub fn deal(seed: u64, round: u64, nodes: usize) -> Vec<Planned> {
    let mut chance = StdRng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(round));
    let mut deck = deck(&mut chance, nodes);
    deck.shuffle(&mut chance);
    let (mut planned, mut free) = (Vec::new(), Duration::ZERO);
    for (what, victim) in deck {
        let lasts = Duration::from_millis(chance.random_range(match what {
            Accident::Killed | Accident::AllKilled | Accident::AdminKilled => 500..3_000,
            // Longer than it takes until others do its work.
            Accident::DiskFull(_) | Accident::Clock(_) => 4_000..6_000,
            _ => 2_000..4_500,
        }));
        let pause = Duration::from_millis(chance.random_range(300..1_500));
        let overlaps = chance.random_range(0..OVERLAP_ONE_IN) == 0;
        let at = if overlaps { free.saturating_sub(lasts / 2) } else { free + pause };
        planned.push(Planned { at, lasts, victim, what });
        free = free.max(at + lasts);
    }
    planned.sort_by_key(|planned| planned.at);
    planned
}

fn deck(chance: &mut StdRng, nodes: usize) -> Vec<(Accident, Victim)> {
    let other = Victim::Other(chance.random_range(0..nodes.saturating_sub(1).max(1)));
    let any = Victim::Node(chance.random_range(0..nodes));
    let one_way = |chance: &mut StdRng| if chance.random_range(0..2) == 0 { Way::In } else { Way::Out };
    let jump = chance.random_range(90..7_200) * if chance.random_range(0..2) == 0 { 1 } else { -1 };
    let weather = Fate {
        cut: false,
        loss: chance.random_range(20..100),
        delay: Duration::from_millis(chance.random_range(5..60)),
        jitter: Duration::from_millis(chance.random_range(1..40)),
    };
    let leader_or = |chance: &mut StdRng| if chance.random_range(0..2) == 0 { Victim::Leader } else { any };
    vec![
        (Accident::Killed, Victim::Leader),
        (Accident::Killed, other),
        (Accident::AllKilled, any),
        (Accident::Frozen, Victim::Leader),
        (Accident::Frozen, other),
        (Accident::CutFromNodes(Way::Both), Victim::Leader),
        (Accident::CutFromNodes(one_way(chance)), leader_or(chance)),
        (Accident::CutFromAll(Way::Both), leader_or(chance)),
        (Accident::CutFromAll(one_way(chance)), Victim::Leader),
        (Accident::Unplugged, leader_or(chance)),
        (Accident::Weather(weather), any),
        (Accident::Clock(jump), leader_or(chance)),
        // The last node has the small disk.
        (Accident::DiskFull(20), Victim::Node(nodes.saturating_sub(1))),
        (Accident::AdminKilled, any),
        (Accident::AdminCut, any),
    ]
}

/// The kinds that every round has; clocks and disks where this machine can.
#[must_use]
pub fn kinds() -> Vec<&'static str> {
    let mut chance = StdRng::seed_from_u64(1);
    deck(&mut chance, 3).into_iter().map(|(what, _)| what.kind()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_deals_the_same_again_and_every_kind() {
        for seed in 0..50 {
            let round = deal(seed, 1, 3);
            assert_eq!(round, deal(seed, 1, 3));
            assert_ne!(round, deal(seed, 2, 3));
            let dealt: BTreeSet<_> = round.iter().map(|planned| planned.what.kind()).collect();
            assert_eq!(dealt, kinds().into_iter().collect());
            let end = round.iter().map(|planned| planned.at + planned.lasts).max();
            assert!(end.is_some_and(|end| end < Duration::from_secs(120)), "{end:?}");
        }
    }
}
