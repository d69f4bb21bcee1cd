//! Placing and moving units: orphans at once, the rest lazily and no more than needed.
//!
//! Architecture Invariant: an item is moved at most once in a plan, and every loop here ends because
//! each step moves one.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use super::{IMBALANCE_FACTOR, IMBALANCE_MS, IMBALANCE_UNITS, Item, Place, Tiers};

/// What each node carries: cost and number of units.
pub(super) struct Loads(Vec<(u64, usize)>);

impl Loads {
    pub(super) fn of(nodes: usize, items: &[Item<'_>]) -> Self {
        let mut loads = Loads(vec![(0, 0); nodes]);
        for item in items {
            item.owner.into_iter().for_each(|owner| loads.add(owner, item.cost));
        }
        loads
    }

    fn add(&mut self, place: Place, cost: u64) {
        let load = &mut self.0[usize::from(place)];
        *load = (load.0.saturating_add(cost), load.1 + 1);
    }

    fn take(&mut self, place: Place, cost: u64) {
        let load = &mut self.0[usize::from(place)];
        *load = (load.0.saturating_sub(cost), load.1.saturating_sub(1));
    }

    fn cost(&self, place: Place) -> u64 {
        self.0[usize::from(place)].0
    }

    /// The one that carries least; the lowest id among equals.
    fn least(&self, places: impl Iterator<Item = Place>) -> Option<Place> {
        places.min_by_key(|place| (self.0[usize::from(*place)], *place))
    }

    /// Whether `giver` carries so much more than `taker` that moving is worth the disturbance.
    fn imbalanced(&self, giver: Place, taker: Place) -> bool {
        let ((more, units), (less, fewer)) = (self.0[usize::from(giver)], self.0[usize::from(taker)]);
        let idle = fewer == 0 && units >= 2;
        let much = units >= fewer + IMBALANCE_UNITS || more.saturating_sub(less) >= IMBALANCE_MS;
        idle || (more >= less.saturating_mul(IMBALANCE_FACTOR) && much)
    }

    fn shift(&mut self, item: &mut Item<'_>, to: Place) {
        item.owner.into_iter().for_each(|from| self.take(from, item.cost));
        self.add(to, item.cost);
        item.owner = Some(to);
        item.movable = false;
    }
}

/// Gives every unit without a possible owner to the least loaded of its nearest nodes, costly ones first.
pub(super) fn place_orphans(items: &mut [Item<'_>], tiers: &Tiers<'_>, loads: &mut Loads) {
    let mut orphans: Vec<usize> = (0..items.len()).filter(|n| items[*n].owner.is_none()).collect();
    // Items are in the order of their ids, and this sort keeps it among equals.
    orphans.sort_by_key(|n| Reverse(items[*n].cost));
    for n in orphans {
        if let Some(to) = loads.least(tiers.lists[items[n].tier].iter().copied()) {
            loads.shift(&mut items[n], to);
        }
    }
}

/// Moves units whose owner is farther away than need be.
pub(super) fn move_nearer(items: &mut [Item<'_>], tiers: &Tiers<'_>, settled: &[bool], loads: &mut Loads) {
    for item in items.iter_mut().filter(|item| item.movable) {
        let nearest = &tiers.lists[item.tier];
        if item.owner.is_none_or(|owner| nearest.binary_search(&owner).is_ok()) {
            continue;
        }
        if let Some(to) = loads.least(nearest.iter().copied().filter(|place| settled[usize::from(*place)])) {
            loads.shift(item, to);
        }
    }
}

/// Evens out the cost, once somebody carries far more than another who could help.
pub(super) fn rebalance(items: &mut [Item<'_>], tiers: &Tiers<'_>, settled: &[bool], loads: &mut Loads) {
    // Takers by tier: only nodes that have been there for a while.
    let takers: Vec<Vec<Place>> = tiers
        .lists
        .iter()
        .map(|list| list.iter().copied().filter(|place| settled[usize::from(*place)]).collect())
        .collect();
    let pairs: BTreeSet<(Place, usize)> =
        items.iter().filter(|i| i.movable).filter_map(|i| Some((i.owner?, i.tier))).collect();
    let worth_it = |(giver, tier): &(Place, usize)| {
        takers[*tier].iter().any(|taker| taker != giver && loads.imbalanced(*giver, *taker))
    };
    if !pairs.iter().any(worth_it) {
        return;
    }
    while one_pass(items, &takers, loads) {}
}

/// Lets the most loaded node give its costliest unit that helps, again and again, until each has gone
/// through its units once; true when anything moved.
fn one_pass(items: &mut [Item<'_>], takers: &[Vec<Place>], loads: &mut Loads) -> bool {
    let mut queues: Vec<Vec<usize>> = vec![Vec::new(); loads.0.len()];
    for (n, item) in items.iter().enumerate().filter(|(_, item)| item.movable) {
        item.owner.into_iter().for_each(|owner| queues[usize::from(owner)].push(n));
    }
    for queue in &mut queues {
        // Popped from the end: costliest first, then by id.
        queue.sort_by_key(|n| (items[*n].cost, Reverse(*n)));
    }
    let mut moved = false;
    loop {
        let givers = (0..).zip(&queues).filter(|(_, queue)| !queue.is_empty());
        let Some(giver) = givers.map(|(place, _): (Place, _)| place).max_by_key(|place| {
            // The lowest id among equals.
            (loads.cost(*place), Reverse(*place))
        }) else {
            return moved;
        };
        while let Some(n) = queues[usize::from(giver)].pop() {
            let item = &mut items[n];
            let Some(taker) = loads.least(takers[item.tier].iter().copied()) else { continue };
            // Afterwards the giver must not carry less than the taker, else it would come back one day.
            let gap = loads.cost(giver).saturating_sub(loads.cost(taker));
            if taker != giver && gap >= item.cost.saturating_mul(2) {
                loads.shift(item, taker);
                moved = true;
                break;
            }
        }
    }
}
