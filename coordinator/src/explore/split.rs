//! Which node of a zone asks which router, and what each node then knows: the exploration of one node, run over what
//! all nodes have been told.
//!
//! Every node walks the same tables and comes to the same answer, so nobody has to hand out work: a router that is due
//! is asked by the node that is nearest to it, and among equally near ones by lot. Tables that lag behind for a moment
//! cost a router a second question, never more.

use std::collections::BTreeMap;
use std::net::IpAddr;

use quire_proto::id::NodeId;

use super::{Bounds, Exploration, MAX_ROUTERS, Map, RouterView};

/// What the tables know of a router.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Of its last answer.
    pub view: Option<RouterView>,
    /// It is to be asked (again) in this round.
    pub due: bool,
}

/// What one node makes of the tables.
#[derive(Clone, Debug, Default)]
pub struct Survey {
    /// Routers that this node asks now, nearest first.
    pub ask: Vec<IpAddr>,
    /// What it knows, from its own place.
    pub map: Map,
    /// Nothing more is due, from its place.
    pub done: bool,
}

/// The survey of node `me` among the `origins` of its zone, each with its own links and gateways. Only nodes that are
/// alive may be among them: what a dead one would ask, the next nearest does. Beyond [`MAX_ROUTERS`] known ones no
/// further router is asked.
pub fn survey(
    me: NodeId,
    origins: &BTreeMap<NodeId, RouterView>,
    known: &BTreeMap<IpAddr, Known>,
    bounds: &Bounds,
) -> Survey {
    let aliases = aliases(known);
    let Some(own) = origins.get(&me) else { return Survey::default() };
    let (map, due) = walk(own, known, &aliases, bounds);
    let mut ask: Vec<(u32, IpAddr)> = due.iter().map(|(router, hops)| (*hops, *router)).collect();
    let done = ask.is_empty();
    if !done {
        let others = origins.iter().filter(|(id, _)| **id != me);
        for (id, own) in others {
            let (_, theirs) = walk(own, known, &aliases, bounds);
            ask.retain(|(hops, router)| {
                let nearer = |their: &u32| (*their, lot(*router, *id)) < (*hops, lot(*router, me));
                !theirs.get(router).is_some_and(nearer)
            });
        }
    }
    ask.sort_unstable();
    Survey { ask: ask.into_iter().map(|(_, router)| router).collect(), map, done }
}

/// From each address of a router that answered to the one that it was asked at.
fn aliases(known: &BTreeMap<IpAddr, Known>) -> BTreeMap<IpAddr, IpAddr> {
    let mut aliases = BTreeMap::new();
    for (asked, known) in known {
        let Some(view) = known.view.as_ref().filter(|view| view.forwarding != Some(false)) else { continue };
        for address in &view.addresses {
            aliases.entry(*address).or_insert(*asked);
        }
    }
    aliases
}

/// What an origin knows, and which routers are due with their distance from it.
fn walk(
    own: &RouterView,
    known: &BTreeMap<IpAddr, Known>,
    aliases: &BTreeMap<IpAddr, IpAddr>,
    bounds: &Bounds,
) -> (Map, BTreeMap<IpAddr, u32>) {
    let mut exploration = Exploration::new(bounds.clone(), own);
    let mut due = BTreeMap::new();
    while let Some(next) = exploration.poll_router() {
        let name = name_of(next, known, aliases);
        let hops = exploration.distance(next);
        let Some(row) = known.get(&name) else {
            if known.len() >= MAX_ROUTERS {
                exploration.handle_view(next, None);
                continue;
            }
            // Whatever lies behind has to wait for its answer.
            due.insert(name, hops);
            continue;
        };
        if row.due {
            due.entry(name).or_insert(hops);
        }
        exploration.handle_view(next, row.view.as_ref());
    }
    (exploration.finish(), due)
}

/// The address under which a router is asked. One that was asked at two, before anybody knew that they are one, is
/// asked at the lower from then on; two that claim an address both, with other addresses beside it, stay two.
fn name_of(next: IpAddr, known: &BTreeMap<IpAddr, Known>, aliases: &BTreeMap<IpAddr, IpAddr>) -> IpAddr {
    let addresses =
        |at: &IpAddr| known.get(at).and_then(|known| known.view.as_ref()).map(|view| &view.addresses);
    let Some(other) = aliases.get(&next) else { return next };
    let same = !known.contains_key(&next) || addresses(&next) == addresses(other);
    if same { *other } else { next }
}

/// Rendezvous hashing: each router has its own order of the nodes.
fn lot(router: IpAddr, node: NodeId) -> u64 {
    let octets = match router {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    // FNV-1a, 64 bits, finished as SplitMix64 does: the lowest octets of addresses differ in few bits.
    let hash = octets.iter().chain(&node.0.to_be_bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
        (hash ^ u64::from(*octet)).wrapping_mul(0x0100_0000_01b3)
    });
    let mixed = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}

#[cfg(test)]
#[path = "split_tests.rs"]
mod tests;
