//! Hop discovery's decisions: which router to ask next, and which segments that makes known at which distance.
//!
//! The node itself is the router at distance 0: its links are its attached prefixes, its routes name the gateways.
//! A router at distance d makes its attached prefixes known at d hops and the next hops of its routes as routers at
//! d + 1. Strictly breadth first, so the first distance of a router is its shortest one along the routes.
//!
//! Never asks an excluded address or one outside the private ranges and the operator's own targets (a credential
//! must not leave the house with a packet to a provider's router), never a router twice, never more than
//! [`MAX_ROUTERS`]. What a router says is evidence for a proposal, not a command.

mod rule;
mod split;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnet::IpNet;

pub use rule::{Accept, Evidence, LARGEST_V4_PREFIX, Verdict, is_inside, verdict};
use rule::{is_host, is_private, is_segment};
pub use split::{Known, Survey, survey};

/// Routers that one exploration asks: 256 of them at 200 requests are at most 51,200 requests, two minutes at the
/// default 500 packets a second. Further ones are counted in [`Map::left_out`].
pub const MAX_ROUTERS: usize = 256;
/// Segments that one exploration remembers: about 100 octets and a chain of at most 33 addresses each, so under
/// 4 MB. Further ones are counted in [`Map::left_out`].
pub const MAX_SEGMENTS: usize = 4_096;
/// Live addresses that one exploration remembers, 24 octets each. Further ones are dropped: they are hints.
pub const MAX_NEIGHBOURS: usize = 16_384;

/// What one router's tables say. The reader of the tables bounds each list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouterView {
    /// ipForwarding (RFC 4293); `None` where the router does not say. A host with several links forwards nothing.
    pub forwarding: Option<bool>,
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Prefixes on its own links, without host bits.
    pub attached: BTreeSet<IpNet>,
    /// Indirect routes: what lies behind which next hop.
    pub routes: BTreeSet<(IpNet, IpAddr)>,
    /// Routers beside it that it knows by LLDP or CDP.
    pub adjacent: BTreeSet<IpAddr>,
    /// Addresses in its ARP and ND tables.
    pub neighbours: BTreeSet<IpAddr>,
}

impl RouterView {
    /// The next hops of its routes, each once.
    pub fn next_hops(&self) -> BTreeSet<IpAddr> {
        self.routes.iter().map(|(_, next)| *next).collect()
    }
}

/// How far an exploration may go.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Routers between the node and the furthest segment.
    pub hops: u32,
    /// Never asked, never swept.
    pub exclude: Vec<IpNet>,
    /// Named by the operator: allowed although not private, or large.
    pub given: Vec<IpNet>,
    /// What may be swept without being named.
    pub accept: Accept,
    /// Segments whose distance was measured, and found to be within the bound.
    pub measured: BTreeSet<IpNet>,
}

/// A segment that exploration made known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposed {
    /// Without host bits.
    pub prefix: IpNet,
    /// Routers between the node and the segment; a lower bound with [`Verdict::DistanceUnknown`].
    pub hops: u32,
    /// The routers on the way, nearest first: the reason for the proposal.
    pub chain: Vec<IpAddr>,
    /// What becomes of it.
    pub verdict: Verdict,
}

/// What an exploration found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Map {
    /// By distance, then prefix.
    pub segments: Vec<Proposed>,
    /// Live addresses inside accepted segments, and IPv6 neighbours that may be asked, with their distance.
    pub neighbours: BTreeMap<IpAddr, u32>,
    /// Routers and segments beyond the bounds.
    pub left_out: u32,
    /// Routers that did not answer, or do not forward.
    pub silent: Vec<IpAddr>,
}

#[derive(Clone, Debug)]
struct Seen {
    hops: u32,
    chain: Vec<IpAddr>,
}

/// An exploration in progress.
#[derive(Debug)]
pub struct Exploration {
    bounds: Bounds,
    /// Routers to ask, by distance: the first in is the nearest.
    waiting: VecDeque<IpAddr>,
    /// Every address ever taken for a router's, with its shortest way; the chain ends with the address itself.
    routers: BTreeMap<IpAddr, Seen>,
    /// Being asked now.
    asked: BTreeSet<IpAddr>,
    /// Addresses that asked routers call their own.
    owned: BTreeSet<IpAddr>,
    segments: BTreeMap<IpNet, Seen>,
    own_links: Vec<IpNet>,
    /// Prefixes behind a next hop, as long as that router says nothing itself.
    behind: BTreeMap<IpAddr, BTreeSet<IpNet>>,
    neighbours: BTreeMap<IpAddr, u32>,
    silent: Vec<IpAddr>,
    started: usize,
    left_out: u32,
}

impl Exploration {
    /// From the node's own links and routes.
    pub fn new(bounds: Bounds, own: &RouterView) -> Self {
        let mut exploration = Exploration {
            bounds,
            waiting: VecDeque::new(),
            routers: BTreeMap::new(),
            asked: BTreeSet::new(),
            owned: BTreeSet::new(),
            segments: BTreeMap::new(),
            own_links: own.attached.iter().copied().collect(),
            behind: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            silent: Vec::new(),
            started: 0,
            left_out: 0,
        };
        exploration.learn(&Seen { hops: 0, chain: Vec::new() }, own);
        exploration
    }

    /// The next router to ask; `None` while nearer ones are still being asked, and at the end.
    pub fn poll_router(&mut self) -> Option<IpAddr> {
        loop {
            let next = *self.waiting.front()?;
            let distance = self.distance(next);
            if self.asked.iter().any(|asked| self.distance(*asked) < distance) {
                return None;
            }
            self.waiting.pop_front();
            // Meanwhile another router may have called this address its own.
            if self.owned.contains(&next) {
                self.behind.remove(&next);
                continue;
            }
            if self.started >= MAX_ROUTERS {
                self.left_out += 1;
                continue;
            }
            self.started += 1;
            self.asked.insert(next);
            return Some(next);
        }
    }

    /// Takes what the router at this address said; `None`: it did not answer. Addresses that were not polled are
    /// ignored.
    pub fn handle_view(&mut self, router: IpAddr, view: Option<&RouterView>) {
        if !self.asked.remove(&router) {
            return;
        }
        let Some(seen) = self.routers.get(&router).cloned() else { return };
        match view.filter(|view| view.forwarding != Some(false)) {
            Some(view) => {
                self.behind.remove(&router);
                self.owned.insert(router);
                self.learn(&seen, view);
            }
            None => self.silent.push(router),
        }
    }

    /// True when nothing is left to ask.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.asked.is_empty()
    }

    /// Routers that would be asked next: what `--explain` tells before anything is sent.
    pub fn waiting(&self) -> impl Iterator<Item = IpAddr> {
        self.waiting.iter().copied()
    }

    /// What is known now.
    pub fn finish(mut self) -> Map {
        self.add_what_lies_behind_silence();
        let mut segments: Vec<Proposed> = self
            .segments
            .iter()
            .map(|(prefix, seen)| Proposed {
                prefix: *prefix,
                hops: seen.hops,
                chain: seen.chain.clone(),
                verdict: self.verdict(prefix, seen),
            })
            .collect();
        segments.sort_by_key(|segment| (segment.hops, segment.prefix));
        let accepted: Vec<IpNet> = segments
            .iter()
            .filter(|segment| segment.verdict == Verdict::Accepted)
            .map(|segment| segment.prefix)
            .collect();
        let mut neighbours = std::mem::take(&mut self.neighbours);
        neighbours.retain(|ip, _| {
            self.may_ask(*ip) && (ip.is_ipv6() || accepted.iter().any(|prefix| prefix.contains(ip)))
        });
        Map { segments, neighbours, left_out: self.left_out, silent: self.silent }
    }

    /// A silent router's links are unknown, but others say what they send through it.
    fn add_what_lies_behind_silence(&mut self) {
        for (router, prefixes) in std::mem::take(&mut self.behind) {
            let Some(seen) = self.routers.get(&router).cloned() else { continue };
            for prefix in prefixes.iter().filter(|prefix| is_segment(prefix)) {
                if !self.segments.contains_key(prefix) {
                    self.keep(*prefix, &seen);
                }
            }
        }
    }

    fn keep(&mut self, prefix: IpNet, seen: &Seen) {
        if self.segments.len() < MAX_SEGMENTS || self.segments.contains_key(&prefix) {
            self.segments.insert(prefix, seen.clone());
        } else {
            self.left_out += 1;
        }
    }

    fn distance(&self, router: IpAddr) -> u32 {
        self.routers.get(&router).map_or(u32::MAX, |seen| seen.hops)
    }

    fn learn(&mut self, at: &Seen, view: &RouterView) {
        for prefix in view.attached.iter().filter(|prefix| is_segment(prefix)) {
            // A link on both sides of a router is as near as its nearer side.
            if self.segments.get(prefix).is_none_or(|seen| seen.hops > at.hops) {
                self.keep(*prefix, at);
            }
        }
        self.owned.extend(&view.addresses);
        for neighbour in &view.neighbours {
            if self.neighbours.len() < MAX_NEIGHBOURS {
                self.neighbours.entry(*neighbour).or_insert(at.hops);
            }
        }
        if at.hops < self.bounds.hops {
            self.follow(at, view);
        }
    }

    fn follow(&mut self, at: &Seen, view: &RouterView) {
        for (prefix, next) in &view.routes {
            if self.expect(at, *next) {
                self.behind.entry(*next).or_default().insert(*prefix);
            }
        }
        for next in &view.adjacent {
            self.expect(at, *next);
        }
    }

    /// Puts a router beside the one at `at` in line; false when it must not be asked, or was found to be that one.
    fn expect(&mut self, at: &Seen, next: IpAddr) -> bool {
        if self.owned.contains(&next) {
            return false;
        }
        if self.routers.contains_key(&next) {
            return true;
        }
        if !self.may_ask(next) {
            return false;
        }
        if self.routers.len() >= MAX_SEGMENTS {
            self.left_out += 1;
            return false;
        }
        let chain = at.chain.iter().copied().chain([next]).collect();
        self.routers.insert(next, Seen { hops: at.hops + 1, chain });
        self.waiting.push_back(next);
        true
    }

    /// Whether a packet may be sent there: no exclusion, and in the house.
    fn may_ask(&self, ip: IpAddr) -> bool {
        let within = |prefixes: &[IpNet]| prefixes.iter().any(|prefix| prefix.contains(&ip));
        is_host(ip)
            && !within(&self.bounds.exclude)
            && (is_private(ip) || within(&self.own_links) || within(&self.bounds.given))
    }

    fn verdict(&self, prefix: &IpNet, seen: &Seen) -> Verdict {
        let told = seen.chain.last().is_none_or(|last| self.owned.contains(last));
        let evidence = Evidence {
            own_link: seen.chain.is_empty(),
            distance_known: told || self.bounds.measured.contains(prefix),
        };
        verdict(*prefix, evidence, &self.bounds)
    }
}

#[cfg(test)]
mod tests;
