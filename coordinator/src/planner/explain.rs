//! Why a unit is where it is: `quire plan --explain ADDRESS`.

use std::fmt;
use std::net::IpAddr;

use quire_proto::id::{ANY_ZONE, Millis, NodeId, UnitId};

use super::{NodeView, PINNED, PlanView, UNKNOWN, UnitSpec, rank};

/// The answer to "who looks after this address, and why".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What was asked.
    pub address: IpAddr,
    /// One for every zone that has the address; empty where no unit covers it.
    pub units: Vec<UnitExplanation>,
}

/// One unit that holds the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitExplanation {
    /// Which.
    pub unit: UnitId,
    /// What it covers.
    pub spec: UnitSpec,
    /// Who has it; [`NodeId::NOBODY`] when nobody.
    pub owner: NodeId,
    /// When it last moved; `None` where it has no row yet.
    pub granted_at: Option<Millis>,
    /// Every node, by id.
    pub candidates: Vec<Candidate>,
}

/// How one node stands to a unit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which node.
    pub node: NodeId,
    /// Units that it owns now, in cost.
    pub load: u64,
    /// Could it, and would it be as good?
    pub verdict: Verdict,
}

/// Why a node may or may not own a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The operator wants it here.
    Pinned,
    /// The operator does not want it here.
    Forbidden,
    /// As near as any; hops where known.
    Nearest(Option<u32>),
    /// Could, but others are nearer.
    Farther(Option<u32>),
    /// Does not answer.
    Dead,
    /// An operator wants it free of work.
    Draining,
    /// Votes only.
    Witness,
    /// Says that it cannot read devices now.
    Unable,
    /// The unit belongs to another zone.
    OtherZone,
    /// Measured: nothing comes back from the segment.
    Unreachable,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hops = |hops: &Option<u32>| match hops {
            None => "unknown hops".to_owned(),
            Some(1) => "1 hop".to_owned(),
            Some(hops) => format!("{hops} hops"),
        };
        match self {
            Verdict::Pinned => f.write_str("pinned by the settings"),
            Verdict::Forbidden => f.write_str("forbidden by the settings"),
            Verdict::Nearest(way) => write!(f, "nearest, {}", hops(way)),
            Verdict::Farther(way) => write!(f, "possible, but others come first, {}", hops(way)),
            Verdict::Dead => f.write_str("does not answer"),
            Verdict::Draining => f.write_str("is draining"),
            Verdict::Witness => f.write_str("is a witness and collects nothing"),
            Verdict::Unable => f.write_str("cannot collect now"),
            Verdict::OtherZone => f.write_str("is in another zone"),
            Verdict::Unreachable => f.write_str("gets no answer from the segment"),
        }
    }
}

/// Who owns the units that hold an address, who else could, and why the others could not.
pub fn explain(view: &PlanView, address: IpAddr) -> Explanation {
    let units = view.wanted.iter().filter(|(_, spec)| spec.prefix.contains(&address));
    Explanation { address, units: units.map(|(unit, spec)| explain_unit(view, unit, spec)).collect() }
}

fn explain_unit(view: &PlanView, unit: &UnitId, spec: &UnitSpec) -> UnitExplanation {
    let row = view.current.get(unit);
    let ranks = view.nodes.iter().filter(|node| node.is_eligible()).filter_map(|node| rank(view, node, spec));
    let best = ranks.min();
    let load = |node: &NodeView| {
        let owned = view.current.values().filter(|row| row.owner == node.id);
        owned.fold(0u64, |sum, row| sum.saturating_add(row.cost))
    };
    let mut candidates: Vec<Candidate> = view
        .nodes
        .iter()
        .map(|node| Candidate { node: node.id, load: load(node), verdict: verdict(view, node, spec, best) })
        .collect();
    candidates.sort_by_key(|candidate| candidate.node);
    UnitExplanation {
        unit: unit.clone(),
        spec: spec.clone(),
        owner: row.map_or(NodeId::NOBODY, |row| row.owner),
        granted_at: row.map(|row| row.granted_at),
        candidates,
    }
}

fn verdict(view: &PlanView, node: &NodeView, spec: &UnitSpec, best: Option<u32>) -> Verdict {
    if node.witness {
        return Verdict::Witness;
    }
    if spec.zone != ANY_ZONE && spec.zone != node.zone {
        return Verdict::OtherZone;
    }
    if !node.alive {
        return Verdict::Dead;
    }
    if node.draining {
        return Verdict::Draining;
    }
    if !node.can_collect {
        return Verdict::Unable;
    }
    let forbidden = view.placement(spec).is_some_and(|at| view.placements[at].forbid.contains(&node.id));
    let hops = |rank: u32| (rank != UNKNOWN).then(|| rank - 1);
    match rank(view, node, spec) {
        None if forbidden => Verdict::Forbidden,
        None => Verdict::Unreachable,
        Some(PINNED) => Verdict::Pinned,
        Some(rank) if Some(rank) == best => Verdict::Nearest(hops(rank)),
        Some(rank) => Verdict::Farther(hops(rank)),
    }
}
