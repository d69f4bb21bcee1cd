//! Found segments: what nodes learnt from links and routers, what the operator said of it, and which of it is searched.
//!
//! A row keeps facts (who sees the segment, over which routers, since when) and the operator's word. Whether a segment
//! without a word is searched follows from the settings in force whenever somebody asks, so that a changed setting
//! changes it at once. Refused stays refused; exclusions win over everything.

mod apply;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use quire_proto::store::{FoundSegment, RouteVia, RouterRow, SegmentRow, Surroundings};

use crate::explore::{Bounds, Evidence, MAX_NEIGHBOURS, RouterView, Verdict, verdict};
use crate::rows;
use crate::settings::{Discovery, Segment};
use crate::tables::{Fault, Read};
use crate::topology::ReachMap;

pub(crate) use apply::{decide, explore_again, forget_node, report, trial};

/// The word of [`SegmentRow::decision`] that searches a segment whatever the settings say.
pub const ACCEPTED: &str = "accepted";
/// The word that never searches it.
pub const REFUSED: &str = "refused";

/// What becomes of a found segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for an operator.
    Proposed,
    /// An operator wants it searched.
    Accepted,
    /// An operator wants it left alone.
    Refused,
    /// Searched, because the settings accept such ones.
    Automatic,
}

impl State {
    /// As listings print it.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Proposed => "proposed",
            State::Accepted => ACCEPTED,
            State::Refused => REFUSED,
            State::Automatic => "automatic",
        }
    }
}

/// A found segment as the settings see it.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The prefix.
    pub prefix: IpNet,
    /// What becomes of it.
    pub state: State,
    /// Why; for refused and accepted ones what the settings alone would say.
    pub verdict: Verdict,
    /// From the nearest node that found it.
    pub hops: Option<u32>,
}

/// What becomes of a found segment; `None` for a row that a newer version wrote.
pub fn judge(row: &SegmentRow, discovery: &Discovery, reach: &ReachMap) -> Option<Judged> {
    let prefix: IpNet = row.prefix.parse().ok()?;
    let most = discovery.hops.unwrap_or(0);
    let ways = || row.ways.iter().filter_map(|way| way.found.as_ref());
    let nearest = ways().min_by_key(|found| (found.hops, found.at_least));
    let measured = reach.get(&prefix).into_iter().flatten().filter_map(|(_, way)| way.hops).min();
    let bounds = Bounds { exclude: discovery.exclude.clone(), accept: discovery.accept, ..Bounds::default() };
    let evidence = Evidence {
        own_link: ways().any(|found| found.hops == 0),
        distance_known: ways().any(|found| !found.at_least) || measured.is_some_and(|hops| hops <= most),
    };
    let verdict = verdict(prefix, evidence, &bounds);
    let hops = match nearest {
        Some(found) if found.at_least => measured.or(Some(found.hops)),
        Some(found) => Some(found.hops),
        None => measured,
    };
    // Without `hops` nobody wants segments found; with fewer than before, the far ones are wanted no more.
    let within = discovery.hops.is_some() && hops.is_some_and(|hops| hops <= most);
    let state = match row.decision.as_str() {
        ACCEPTED => State::Accepted,
        REFUSED => State::Refused,
        _ if within && verdict.is_searched() => State::Automatic,
        _ => State::Proposed,
    };
    Some(Judged { prefix, state, verdict, hops })
}

/// Which found segments are searched, and which must not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Accepted by an operator or by the settings.
    pub search: Vec<Segment>,
    /// Refused by an operator.
    pub leave: Vec<Segment>,
}

/// Sorts all found segments.
pub fn wanted(rows: &[SegmentRow], discovery: &Discovery, reach: &ReachMap) -> Wanted {
    let mut wanted = Wanted::default();
    for row in rows {
        let Some(judged) = judge(row, discovery, reach) else { continue };
        let segment = Segment { prefix: judged.prefix, zone: row.zone.clone() };
        match judged.state {
            State::Accepted | State::Automatic => wanted.search.push(segment),
            State::Refused => wanted.leave.push(segment),
            State::Proposed => {}
        }
    }
    wanted
}

/// Live addresses of a prefix, as nodes and routers of the zone have seen them: what a sweep asks first, and all that
/// is asked of an IPv6 prefix. `zone` is that of the node that asks.
///
/// # Errors
/// When the store fails or a row is damaged.
pub fn live(tables: &(impl Read + ?Sized), zone: &str, prefix: IpNet) -> Result<BTreeSet<IpAddr>, Fault> {
    let mut live = BTreeSet::new();
    for row in rows::routers(tables)?.into_iter().filter(|row| row.zone == zone) {
        let neighbours = row.view.into_iter().flat_map(|view| view.neighbours);
        live.extend(neighbours.filter_map(|octets| address(&octets)).filter(|ip| prefix.contains(ip)));
    }
    while live.len() > MAX_NEIGHBOURS {
        live.pop_last();
    }
    Ok(live)
}

/// Addresses of the zone's routers that forward, or refused a credential: no printers, and not to be asked again by
/// the same user in the same sweep.
pub fn routers_of<'r>(rows: &'r [RouterRow], zone: &'r str) -> impl Iterator<Item = IpAddr> + 'r {
    rows.iter().filter(move |row| row.zone == zone && !row.address.is_empty()).flat_map(|row| {
        let forwards = row.view.as_ref().filter(|view| view.forwarding == Some(true));
        let own = forwards.into_iter().flat_map(|view| &view.addresses);
        let asked = Some(&row.address).filter(|_| forwards.is_some() || !row.refusal.is_empty());
        own.chain(asked).filter_map(|address| address.parse().ok())
    })
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A view as the tables keep it.
pub fn from_view(view: &RouterView) -> Surroundings {
    let texts = |addresses: &BTreeSet<IpAddr>| addresses.iter().map(ToString::to_string).collect();
    let mut routes: Vec<RouteVia> = Vec::new();
    for next in view.next_hops() {
        let through = view.routes.iter().filter(|(_, via)| *via == next);
        let prefixes = through.map(|(prefix, _)| prefix.to_string()).collect();
        routes.push(RouteVia { next_hop: next.to_string(), prefixes });
    }
    let octets = |ip: &IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    };
    Surroundings {
        forwarding: view.forwarding,
        addresses: texts(&view.addresses),
        attached: view.attached.iter().map(ToString::to_string).collect(),
        routes,
        adjacent: texts(&view.adjacent),
        neighbours: view.neighbours.iter().map(octets).collect(),
    }
}

/// A view from the tables; what does not parse is left out.
pub fn to_view(stored: &Surroundings) -> RouterView {
    let ips = |texts: &[String]| texts.iter().filter_map(|text| text.parse().ok()).collect();
    let routes = stored.routes.iter().flat_map(|route| {
        let next: Option<IpAddr> = route.next_hop.parse().ok();
        let prefixes = route.prefixes.iter().filter_map(|prefix| prefix.parse::<IpNet>().ok());
        prefixes.filter_map(move |prefix| next.map(|next| (prefix, next)))
    });
    RouterView {
        forwarding: stored.forwarding,
        addresses: ips(&stored.addresses),
        attached: stored.attached.iter().filter_map(|text| text.parse().ok()).collect(),
        routes: routes.collect(),
        adjacent: ips(&stored.adjacent),
        neighbours: stored.neighbours.iter().filter_map(|octets| address(octets)).collect(),
    }
}

/// The routers on the way to a found segment, nearest first.
pub fn chain(found: &FoundSegment) -> Vec<IpAddr> {
    found.chain.iter().filter_map(|router| router.parse().ok()).collect()
}

#[cfg(test)]
mod tests;
