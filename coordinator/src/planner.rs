//! Who owns which unit: the pure planner.
//!
//! `units(&Settings)` cuts segments into units; `plan(&PlanView)` says which grants and drops bring the
//! current rows where they should be; `explain(&PlanView, address)` says why. The caller proposes the
//! changes as one `Command::Plan` under its claim.
//!
//! Rules, in this order: nothing for a node that is dead, gone, draining, a witness or unable; zones and the operator's
//! forbids hold; never where a segment is known to be unreachable; who is pinned; fewest hops (unknown ones last); balanced by
//! cost; as few moves as possible. A death is answered at once and moves the dead node's units alone;
//! better hops and better balance wait for [`REBALANCE_AFTER_MS`].
//!
//! Never: reads a clock, draws lots, remembers anything between calls. `plan` of an applied plan is empty.

mod balance;
mod explain;
mod units;
mod view;

use std::collections::{BTreeMap, btree_map};

use ipnet::IpNet;
use quire_proto::id::{ANY_ZONE, Millis, NodeId, UnitId};

use crate::topology::{Reach, ReachMap};
use balance::Loads;
pub use explain::{Candidate, Explanation, UnitExplanation, Verdict, explain};
pub use units::{UnitSpec, is_known_only, units, units_of, units_with};
pub use view::command;

/// Milliseconds for which a unit stays where it was granted, and for which a node must have been alive
/// without a break, before anything moves for the sake of balance or fewer hops.
///
/// Zabbix waits for ten fail-over periods; ours lasts 1 to 2 s, so this is about the same.
pub const REBALANCE_AFTER_MS: u64 = 20_000;
/// A node is overloaded when it carries this many times the cost of one that could help (Zabbix: 2)...
pub const IMBALANCE_FACTOR: u64 = 2;
/// ...and this many units more (Zabbix: 10 hosts)...
pub const IMBALANCE_UNITS: usize = 10;
/// ...or works so much longer, milliseconds a day: a minute is what ten devices take that are read every hour in a
/// quarter of a second. A node with nothing to do is always one that could help.
pub const IMBALANCE_MS: u64 = 60_000;

/// What an address costs before anything was measured, milliseconds a day: at 500 packets a second and with six of
/// them a silent /24 takes 3 s and some waiting, twice a week.
const ADDRESS_COST: u64 = 9;
/// Addresses of an IPv6 prefix of which only known ones are asked: a guess, as many as a small office has.
const KNOWN_ONLY: u64 = 64;

/// The first estimate of a unit's cost, milliseconds of work a day; see [`crate::cost`] for what is measured.
pub fn cost(prefix: IpNet) -> u64 {
    if is_known_only(prefix) {
        return KNOWN_ONLY * ADDRESS_COST;
    }
    let host_bits = prefix.max_prefix_len() - prefix.prefix_len();
    (1u64 << host_bits.min(32)) * ADDRESS_COST
}

/// A row of the plan as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CurrentUnit {
    /// [`NodeId::NOBODY`] when unassigned.
    pub owner: NodeId,
    /// Measured or by [`cost`], milliseconds of work a day.
    pub cost: u64,
    /// When it came to its owner.
    pub granted_at: Millis,
    /// The segment in the row; a row whose segment changed is granted anew.
    pub segment: IpNet,
}

/// What the leader knows of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeView {
    /// Its id.
    pub id: NodeId,
    /// Its label.
    pub zone: String,
    /// Whether it answers.
    pub alive: bool,
    /// Since when `alive` has been what it is.
    pub since: Millis,
    /// An operator wants it free of work.
    pub draining: bool,
    /// Votes only.
    pub witness: bool,
    /// Its own word that it can read devices now (sockets, disk).
    pub can_collect: bool,
}

impl NodeView {
    /// Whether it may be given work on devices at all.
    pub fn is_eligible(&self) -> bool {
        self.alive && !self.draining && !self.witness && self.can_collect
    }

    fn settled(&self, now: Millis) -> bool {
        self.since.0.saturating_add(REBALANCE_AFTER_MS) <= now.0
    }
}

/// Everything that a plan depends on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanView {
    /// The rows as applied.
    pub current: BTreeMap<UnitId, CurrentUnit>,
    /// What [`units`] asks for.
    pub wanted: BTreeMap<UnitId, UnitSpec>,
    /// Members of the cluster; others own nothing.
    pub nodes: Vec<NodeView>,
    /// Ways from nodes to segments.
    pub reach: ReachMap,
    /// The operator's word, in the order in which it counts.
    pub placements: Vec<Placement>,
    /// The leader's time.
    pub now: Millis,
}

/// What an operator wants for the units within a segment; nodes that are no members are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Where.
    pub segment: IpNet,
    /// In which zone; [`ANY_ZONE`]: in all.
    pub zone: String,
    /// Who shall have the units whenever it can.
    pub pin: Option<NodeId>,
    /// Who shall not.
    pub forbid: Vec<NodeId>,
}

impl PlanView {
    /// The place of the first placement that a unit lies in.
    fn placement(&self, spec: &UnitSpec) -> Option<usize> {
        self.placements.iter().position(|place| {
            let zone = place.zone == ANY_ZONE || place.zone == spec.zone;
            zone && place.segment.contains(&spec.prefix)
        })
    }
}

/// One row to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The unit belongs to `node` from now on; [`NodeId::NOBODY`] where nobody can have it.
    Grant {
        /// Which unit.
        unit: UnitId,
        /// Who.
        node: NodeId,
        /// What it covers.
        spec: UnitSpec,
        /// The row's, or a first estimate.
        cost: u64,
        /// From the new owner to the segment.
        hops: Option<u32>,
        /// Another node has it, and is alive: it must let go first.
        hand_over: bool,
    },
    /// Nobody asked for this unit any more.
    Drop {
        /// Which unit.
        unit: UnitId,
    },
}

/// The changes that bring the rows where they should be: drops first, then grants, by unit.
pub fn plan(view: &PlanView) -> Vec<Change> {
    let nodes = Nodes::of(view);
    let mut tiers = Tiers::default();
    let (mut items, gone) = items(view, &nodes);
    // After a death only the dead node's units move: evening out waits until it is old news. Units that
    // can't move don't need to know who is nearest, which makes a take-over cheap.
    let quiet = view.nodes.iter().all(|node| node.is_eligible() || node.settled(view.now));
    for item in items.iter_mut().filter(|item| item.owner.is_none() || (quiet && item.movable)) {
        item.tier = tiers.of(view, &nodes, item.spec);
    }
    let mut loads = Loads::of(nodes.0.len(), &items);
    balance::place_orphans(&mut items, &tiers, &mut loads);
    if quiet {
        let settled: Vec<bool> = nodes.0.iter().map(|node| node.settled(view.now)).collect();
        balance::move_nearer(&mut items, &tiers, &settled, &mut loads);
        balance::rebalance(&mut items, &tiers, &settled, &mut loads);
    }

    let mut changes: Vec<Change> = gone.into_iter().map(|unit| Change::Drop { unit: unit.clone() }).collect();
    changes.extend(items.iter().filter_map(|item| item.change(view, &nodes)));
    changes
}

/// The nodes that may own anything, by id; a place in this list stands for the node below.
struct Nodes<'v>(Vec<&'v NodeView>);

/// A place in [`Nodes`]: small, because tiers hold many.
type Place = u16;

impl<'v> Nodes<'v> {
    fn of(view: &'v PlanView) -> Self {
        let mut nodes: Vec<&NodeView> = view.nodes.iter().filter(|node| node.is_eligible()).collect();
        nodes.sort_by_key(|node| node.id);
        nodes.dedup_by_key(|node| node.id);
        nodes.truncate(usize::from(Place::MAX));
        Nodes(nodes)
    }

    fn place(&self, id: NodeId) -> Option<Place> {
        self.0.binary_search_by_key(&id, |node| node.id).ok().and_then(|place| Place::try_from(place).ok())
    }
}

type NodeWays = BTreeMap<NodeId, Reach>;

/// How a node stands to a unit: `None` never, otherwise the lower the better.
fn rank(view: &PlanView, node: &NodeView, spec: &UnitSpec) -> Option<u32> {
    rank_by(view, view.reach.get(&spec.segment), node, spec)
}

/// The same, where the ways to the unit's segment are at hand.
fn rank_by(view: &PlanView, ways: Option<&NodeWays>, node: &NodeView, spec: &UnitSpec) -> Option<u32> {
    if spec.zone != ANY_ZONE && spec.zone != node.zone {
        return None;
    }
    let place = view.placement(spec).map(|at| &view.placements[at]);
    if place.is_some_and(|place| place.forbid.contains(&node.id)) {
        return None;
    }
    let pinned = place.is_some_and(|place| place.pin == Some(node.id));
    let hops = |hops: Option<u32>| match pinned {
        true => PINNED,
        false => hops.map_or(UNKNOWN, |hops| hops.saturating_add(1)),
    };
    match ways.and_then(|ways| ways.get(&node.id)) {
        None => Some(hops(None)),
        Some(way) => way.reachable.then_some(hops(way.hops)),
    }
}

/// The rank of who is pinned, and of unknown hops; known ones rank between, one higher than they are.
const PINNED: u32 = 0;
const UNKNOWN: u32 = u32::MAX;

/// The nodes that are nearest to a unit; equal lists are kept once, because most units share theirs.
struct Tiers<'v> {
    /// The first is empty.
    lists: Vec<Vec<Place>>,
    by_list: BTreeMap<Vec<Place>, usize>,
    /// Units that nothing tells apart: of one segment, zone and placement.
    by_segment: BTreeMap<(&'v str, IpNet, Option<usize>), usize>,
}

/// The list of a unit that does not move.
const NO_TIER: usize = 0;

impl Default for Tiers<'_> {
    fn default() -> Self {
        let none = Vec::new();
        Tiers { lists: vec![none.clone()], by_list: [(none, NO_TIER)].into(), by_segment: BTreeMap::new() }
    }
}

impl<'v> Tiers<'v> {
    fn of(&mut self, view: &PlanView, nodes: &Nodes<'_>, spec: &'v UnitSpec) -> usize {
        let key = (spec.zone.as_str(), spec.segment, view.placement(spec));
        if let Some(tier) = self.by_segment.get(&key) {
            return *tier;
        }
        let mut best = u32::MAX;
        let mut list = Vec::new();
        for (place, node) in (0..).zip(&nodes.0) {
            let Some(rank) = rank(view, node, spec) else { continue };
            if rank < best {
                best = rank;
                list.clear();
            }
            if rank == best {
                list.push(place);
            }
        }
        let tier = *self.by_list.entry(list.clone()).or_insert_with(|| {
            self.lists.push(list);
            self.lists.len() - 1
        });
        self.by_segment.insert(key, tier);
        tier
    }
}

/// A wanted unit on its way through the planner.
struct Item<'v> {
    unit: &'v UnitId,
    spec: &'v UnitSpec,
    row: Option<&'v CurrentUnit>,
    cost: u64,
    owner: Option<Place>,
    /// Who is nearest, for units that may move.
    tier: usize,
    /// Has been with its owner for long enough, and was not touched in this plan.
    movable: bool,
}

/// Every wanted unit with its row, and the units that nobody wants any more; both maps are in the same order, so one
/// walk finds them.
fn items<'v>(view: &'v PlanView, nodes: &Nodes<'_>) -> (Vec<Item<'v>>, Vec<&'v UnitId>) {
    let (mut rows, mut gone) = (view.current.iter().peekable(), Vec::new());
    let mut reach = Cursor::of(&view.reach);
    let mut items = Vec::with_capacity(view.wanted.len());
    for (unit, spec) in &view.wanted {
        while let Some((earlier, _)) = rows.next_if(|(earlier, _)| *earlier < unit) {
            gone.push(earlier);
        }
        let row = rows.next_if(|(same, _)| *same == unit).map(|(_, row)| row);
        items.push(Item::new(view, nodes, &mut reach, (unit, spec), row));
    }
    gone.extend(rows.map(|(unit, _)| unit));
    (items, gone)
}

/// Finds the ways to segments that are asked for in nearly their order: a few steps on instead of a search through
/// the whole map, which is most of a take-over's time with 100,000 segments.
struct Cursor<'v> {
    map: &'v ReachMap,
    at: std::iter::Peekable<btree_map::Range<'v, IpNet, NodeWays>>,
}

impl<'v> Cursor<'v> {
    /// Segments of several zones lie between each other: ten zones are ten steps.
    const STEPS: usize = 16;

    fn of(map: &'v ReachMap) -> Self {
        Cursor { map, at: map.range::<IpNet, _>(..).peekable() }
    }

    fn find(&mut self, segment: &IpNet) -> Option<&'v NodeWays> {
        for _ in 0..Self::STEPS {
            match self.at.peek() {
                Some((same, ways)) if *same == segment => return Some(ways),
                Some((earlier, _)) if *earlier < segment => drop(self.at.next()),
                Some(_) | None => break,
            }
        }
        self.at = self.map.range(segment..).peekable();
        self.at.peek().filter(|(same, _)| *same == segment).map(|(_, ways)| *ways)
    }
}

impl<'v> Item<'v> {
    fn new(
        view: &PlanView,
        nodes: &Nodes<'_>,
        reach: &mut Cursor<'_>,
        (unit, spec): (&'v UnitId, &'v UnitSpec),
        row: Option<&'v CurrentUnit>,
    ) -> Self {
        // A row costs something even where the caller measured nothing, else thousands would pile up.
        let cost = row.map_or_else(|| cost(spec.prefix), |row| row.cost).max(1);
        let owner = row.and_then(|row| nodes.place(row.owner)).filter(|place| {
            let node = nodes.0[usize::from(*place)];
            rank_by(view, reach.find(&spec.segment), node, spec).is_some()
        });
        let movable = row.is_some_and(|row| {
            row.segment == spec.segment && row.granted_at.0.saturating_add(REBALANCE_AFTER_MS) <= view.now.0
        });
        Item { unit, spec, row, cost, owner, tier: NO_TIER, movable }
    }

    fn change(&self, view: &PlanView, nodes: &Nodes<'_>) -> Option<Change> {
        let node = self.owner.map_or(NodeId::NOBODY, |place| nodes.0[usize::from(place)].id);
        if self.row.is_some_and(|row| row.owner == node && row.segment == self.spec.segment) {
            return None;
        }
        let way = view.reach.get(&self.spec.segment).and_then(|ways| ways.get(&node));
        let before = self.row.map(|row| row.owner).filter(|owner| *owner != node);
        let hand_over =
            before.is_some_and(|owner| view.nodes.iter().any(|node| node.id == owner && node.alive));
        Some(Change::Grant {
            unit: self.unit.clone(),
            node,
            spec: self.spec.clone(),
            cost: self.cost,
            hops: way.and_then(|way| way.hops),
            hand_over,
        })
    }
}

#[cfg(test)]
mod tests;
