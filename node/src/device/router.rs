//! One read of one router's tables: where its links are, whom it sends things through, whom it has spoken with. Sans-IO.
//!
//! Addresses first (ipAddrTable and ipAddressTable: the attached prefixes), then the interfaces' names (which tell links
//! from bridges to containers), one route table (the newest that it has: inetCidrRouteTable, ipCidrRouteTable,
//! ipRouteTable), one neighbour table, and the routers beside it by LLDP (`router/beside.rs`) and CDP. Every table is
//! read up to a bound: a router of the internet's core has a million routes, and the first ones are as good as the last.
//!
//! Architecture Invariant: a [`RouterRead`] asks at most [`MAX_ROUTER_REQUESTS`] questions, whatever is answered.

mod beside;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use quire_coordinator::explore::{RouterView, is_inside};
use quire_proto::oid::Oid;

use super::Miss;
use super::answers::{Answers, number};
use super::mib;
use super::walk::Walk;
use crate::snmp::{Request, Response, Value};

/// The most questions to one router. By GETBULK: 256 addresses of three columns at 10 are 26, 256 interfaces at 20
/// another 13, 512 routes at 20 another 26 (ipRouteTable has three columns at 10: 52), 1,024 neighbours at 20 another 52,
/// 128 neighbours each by LLDP and CDP at 10 another 26, and some to find empty tables. By GETNEXT a row is a question; at
/// the bound the view is what is known.
pub const MAX_ROUTER_REQUESTS: usize = 200;

const ADDRESS_ROWS: u16 = 256;
const ADDRESS_REPETITIONS: u8 = 10;
const INTERFACE_ROWS: u16 = 256;
const INTERFACE_REPETITIONS: u8 = 20;
const ROUTE_ROWS: u16 = 512;
const ROUTE_REPETITIONS: u8 = 20;
/// Three columns at a time.
const OLD_ROUTE_REPETITIONS: u8 = 10;
const NEIGHBOUR_ROWS: u16 = 1_024;
const NEIGHBOUR_REPETITIONS: u8 = 20;
const BESIDE_ROWS: u16 = 128;
const BESIDE_REPETITIONS: u8 = 10;

/// ipForwarding (RFC 4293): forwarding(1), notForwarding(2).
const IP_FORWARDING: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 1];
/// ipAdEntIfIndex, by address.
const IP_AD_ENT_IF_INDEX: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 20, 1, 2];
/// ipAdEntNetMask, by address.
const IP_AD_ENT_NET_MASK: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 20, 1, 3];
/// ipAddressPrefix, by type, length and address; points into ipAddressPrefixTable.
const IP_ADDRESS_PREFIX: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 34, 1, 5];
/// ipAddressPrefixOrigin, the column that ipAddressPrefix points at: by ifIndex, type, length, prefix, prefix length.
const IP_ADDRESS_PREFIX_ORIGIN: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 32, 1, 5];
/// ifDescr, by ifIndex.
const IF_DESCR: &[u32] = &[1, 3, 6, 1, 2, 1, 2, 2, 1, 2];
/// ipRouteNextHop (RFC 1213), by destination.
const IP_ROUTE_NEXT_HOP: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 21, 1, 7];
/// ipRouteType: direct(3), indirect(4).
const IP_ROUTE_TYPE: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 21, 1, 8];
/// ipRouteMask.
const IP_ROUTE_MASK: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 21, 1, 11];
/// ipCidrRouteType (RFC 2096), by destination, mask, TOS and next hop: local(3), remote(4).
const IP_CIDR_ROUTE_TYPE: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 24, 4, 1, 6];
/// inetCidrRouteType (RFC 4292), by destination, prefix length, policy and next hop: local(3), remote(4).
const INET_CIDR_ROUTE_TYPE: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 24, 7, 1, 8];
/// ipNetToMediaPhysAddress, by ifIndex and address.
const IP_NET_TO_MEDIA: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 22, 1, 2];
/// ipNetToPhysicalPhysAddress, by ifIndex, type, length and address.
const IP_NET_TO_PHYSICAL: &[u32] = &[1, 3, 6, 1, 2, 1, 4, 35, 1, 4];

/// The types of a route in all three tables.
const LOCAL: i64 = 3;
const REMOTE: i64 = 4;

/// The steps, in order. A later table of a kind is asked only where the earlier one was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Addresses,
    Interfaces,
    InetCidrRoutes,
    IpCidrRoutes,
    IpRoutes,
    NetToPhysical,
    NetToMedia,
    Lldp,
    Cdp,
    Done,
}

/// One read of a router in progress.
#[derive(Debug)]
pub struct RouterRead {
    answers: Answers,
    step: Step,
    walk: Walk,
    bulk: bool,
    asked: usize,
    heard: bool,
    forgiven: bool,
}

impl RouterRead {
    /// `bulk` where the protocol has GETBULK (not SNMPv1).
    pub fn new(bulk: bool) -> RouterRead {
        let walk = walk(Step::Addresses, bulk);
        RouterRead {
            answers: Answers::default(),
            step: Step::Addresses,
            walk,
            bulk,
            asked: 0,
            heard: false,
            forgiven: false,
        }
    }

    /// The next question; `None` when the read has finished.
    pub fn poll_request(&mut self) -> Option<Request> {
        while self.step != Step::Done && self.asked < MAX_ROUTER_REQUESTS {
            if let Some(request) = self.walk.request() {
                self.asked += 1;
                return Some(request);
            }
            self.step = self.next();
            self.walk = walk(self.step, self.bulk);
        }
        None
    }

    /// Takes the answer to the last question, or that there is none.
    pub fn handle(&mut self, answer: Result<Response, Miss>) {
        match answer {
            Ok(response) => {
                self.heard = true;
                self.walk.handle(&response, &mut self.answers);
                self.bulk &= self.walk.bulk();
            }
            // A large GETBULK alone may choke it: one second chance with GETNEXT.
            Err(Miss::Silent) if self.bulk && !self.forgiven => {
                self.forgiven = true;
                self.bulk = false;
                self.walk.without_bulk();
            }
            Err(Miss::Silent | Miss::Refused) => self.step = Step::Done,
        }
    }

    /// What is known now; `None` when nothing was heard.
    pub fn finish(self) -> Option<RouterView> {
        if !self.heard {
            return None;
        }
        let mut view = RouterView {
            forwarding: self.answers.get(&mib::scalar(IP_FORWARDING)).and_then(number).map(|n| n == 1),
            ..RouterView::default()
        };
        let inside = take_addresses(&self.answers, &mut view);
        take_routes(&self.answers, &mut view);
        view.attached.retain(|prefix| !inside.contains(prefix));
        take_neighbours(&self.answers, &mut view.neighbours);
        view.adjacent = beside::routers(&self.answers);
        view.adjacent.retain(|ip| !view.addresses.contains(ip));
        view.neighbours.retain(|ip| !view.addresses.contains(ip));
        view.routes.retain(|(_, next)| !next.is_unspecified() && !view.addresses.contains(next));
        Some(view)
    }

    fn next(&self) -> Step {
        let has = |root: &'static [u32]| self.answers.first(root).is_some();
        match self.step {
            Step::Addresses => Step::Interfaces,
            Step::Interfaces => Step::InetCidrRoutes,
            Step::InetCidrRoutes if has(INET_CIDR_ROUTE_TYPE) => Step::NetToPhysical,
            Step::InetCidrRoutes => Step::IpCidrRoutes,
            Step::IpCidrRoutes if has(IP_CIDR_ROUTE_TYPE) => Step::NetToPhysical,
            Step::IpCidrRoutes => Step::IpRoutes,
            Step::IpRoutes => Step::NetToPhysical,
            Step::NetToPhysical if has(IP_NET_TO_PHYSICAL) => Step::Lldp,
            Step::NetToPhysical => Step::NetToMedia,
            Step::NetToMedia => Step::Lldp,
            Step::Lldp => Step::Cdp,
            Step::Cdp | Step::Done => Step::Done,
        }
    }
}

fn walk(step: Step, bulk: bool) -> Walk {
    let oids = |roots: &[&[u32]]| roots.iter().map(|root| mib::oid(root)).collect::<Vec<Oid>>();
    let columns = |roots: &[&[u32]], rows, repetitions| Walk::new(&[], &oids(roots), rows, repetitions, bulk);
    match step {
        Step::Addresses => {
            let many = oids(&[IP_AD_ENT_IF_INDEX, IP_AD_ENT_NET_MASK, IP_ADDRESS_PREFIX]);
            Walk::new(&oids(&[IP_FORWARDING]), &many, ADDRESS_ROWS, ADDRESS_REPETITIONS, bulk)
        }
        Step::Interfaces => columns(&[IF_DESCR], INTERFACE_ROWS, INTERFACE_REPETITIONS),
        Step::InetCidrRoutes => columns(&[INET_CIDR_ROUTE_TYPE], ROUTE_ROWS, ROUTE_REPETITIONS),
        Step::IpCidrRoutes => columns(&[IP_CIDR_ROUTE_TYPE], ROUTE_ROWS, ROUTE_REPETITIONS),
        Step::IpRoutes => {
            columns(&[IP_ROUTE_NEXT_HOP, IP_ROUTE_TYPE, IP_ROUTE_MASK], ROUTE_ROWS, OLD_ROUTE_REPETITIONS)
        }
        Step::NetToPhysical => columns(&[IP_NET_TO_PHYSICAL], NEIGHBOUR_ROWS, NEIGHBOUR_REPETITIONS),
        Step::NetToMedia => columns(&[IP_NET_TO_MEDIA], NEIGHBOUR_ROWS, NEIGHBOUR_REPETITIONS),
        Step::Lldp => columns(&beside::LLDP, BESIDE_ROWS, BESIDE_REPETITIONS),
        Step::Cdp => columns(&beside::CDP, BESIDE_ROWS, BESIDE_REPETITIONS),
        Step::Done => columns(&[], 0, 1),
    }
}

/// Own addresses and the prefixes of links; gives the prefixes that lead inside the router's own machine.
fn take_addresses(answers: &Answers, view: &mut RouterView) -> BTreeSet<IpNet> {
    let leads_inside = |interface: Option<u32>| {
        let name = interface.and_then(|n| answers.get(&mib::oid(IF_DESCR).child(&[n])));
        matches!(name, Some(Value::OctetString(name)) if is_inside(&String::from_utf8_lossy(name)))
    };
    let mut inside = BTreeSet::new();
    let mut keep = |net: Option<IpNet>, interface: Option<u32>| {
        let Some(net) = net.map(|net| net.trunc()) else { return };
        if leads_inside(interface) {
            inside.insert(net)
        } else {
            view.attached.insert(net)
        };
    };
    for (index, _, mask) in answers.rows(IP_AD_ENT_NET_MASK) {
        let Some((ip, [])) = v4(index) else { continue };
        view.addresses.insert(ip.into());
        let interface = answers.get(&mib::oid(IP_AD_ENT_IF_INDEX).child(index)).and_then(number);
        let net = address(mask).and_then(|mask| IpNet::with_netmask(ip.into(), mask.into()).ok());
        keep(net, interface.and_then(|n| u32::try_from(n).ok()));
    }
    for (index, _, row) in answers.rows(IP_ADDRESS_PREFIX) {
        let Some((ip, _)) = inet(index) else { continue };
        view.addresses.insert(ip);
        let Value::ObjectId(row) = row else { continue };
        let Some([interface, prefix @ ..]) = row.arcs().strip_prefix(IP_ADDRESS_PREFIX_ORIGIN) else {
            continue;
        };
        if let Some((_, [length])) = inet(prefix) {
            keep(net(ip, *length), Some(*interface));
        }
    }
    inside
}

fn take_routes(answers: &Answers, view: &mut RouterView) {
    for (index, _, kind) in answers.rows(INET_CIDR_ROUTE_TYPE) {
        take_route(inet_cidr(index), kind, view);
    }
    for (index, _, kind) in answers.rows(IP_CIDR_ROUTE_TYPE) {
        take_route(ip_cidr(index), kind, view);
    }
    for (index, _, next) in answers.rows(IP_ROUTE_NEXT_HOP) {
        let beside = |column: &[u32]| answers.get(&mib::oid(column).child(index));
        let (Some(kind), Some(mask)) = (beside(IP_ROUTE_TYPE), beside(IP_ROUTE_MASK)) else { continue };
        let (Some((to, [])), Some(mask), Some(next)) = (v4(index), address(mask), address(next)) else {
            continue;
        };
        take_route(IpNet::with_netmask(to.into(), mask.into()).ok().map(|to| (to, next.into())), kind, view);
    }
}

fn take_route(route: Option<(IpNet, IpAddr)>, kind: &Value, view: &mut RouterView) {
    match (route, number(kind)) {
        (Some((to, _)), Some(LOCAL)) => drop(view.attached.insert(to.trunc())),
        (Some((to, next)), Some(REMOTE)) => drop(view.routes.insert((to.trunc(), next))),
        (_, _) => {}
    }
}

fn take_neighbours(answers: &Answers, neighbours: &mut BTreeSet<IpAddr>) {
    let physical =
        answers.rows(IP_NET_TO_PHYSICAL).map(|(index, _, mac)| (index.get(1..).and_then(inet), mac));
    let media = answers
        .rows(IP_NET_TO_MEDIA)
        .map(|(index, _, mac)| (index.get(1..).and_then(v4).map(|(ip, rest)| (IpAddr::V4(ip), rest)), mac));
    for (ip, mac) in physical.chain(media) {
        // An entry without a hardware address is one that never answered; all ones is the broadcast address.
        let spoken = matches!(mac, Value::OctetString(mac) if quire_proto::address::Mac::new(mac).is_some());
        if let Some((ip, [])) = ip
            && spoken
        {
            neighbours.insert(ip);
        }
    }
}

/// Index of inetCidrRouteTable: destination, prefix length, policy, next hop.
fn inet_cidr(index: &[u32]) -> Option<(IpNet, IpAddr)> {
    let (to, rest) = inet(index)?;
    let (length, rest) = rest.split_first()?;
    let (policy, rest) = rest.split_first()?;
    let (next, _) = inet(rest.get(usize::try_from(*policy).ok()?..)?)?;
    Some((net(to, *length)?, next))
}

/// Index of ipCidrRouteTable: destination, mask, TOS, next hop.
fn ip_cidr(index: &[u32]) -> Option<(IpNet, IpAddr)> {
    let (to, rest) = v4(index)?;
    let (mask, rest) = v4(rest)?;
    let (next, _) = v4(rest.get(1..)?)?;
    Some((IpNet::with_netmask(to.into(), mask.into()).ok()?, next.into()))
}

fn net(ip: IpAddr, length: u32) -> Option<IpNet> {
    IpNet::new(ip, u8::try_from(length).ok()?).ok()
}

/// The value of an IpAddress.
fn address(value: &Value) -> Option<Ipv4Addr> {
    match value {
        Value::IpAddress(ip) => Some(*ip),
        _ => None,
    }
}

/// Four arcs as an address, and the arcs behind them.
fn v4(arcs: &[u32]) -> Option<(Ipv4Addr, &[u32])> {
    let (octets, rest) = octets::<4>(arcs)?;
    Some((octets.into(), rest))
}

/// InetAddressType, length and InetAddress (RFC 4001) as an index has them; of a zoned address the address alone.
fn inet(arcs: &[u32]) -> Option<(IpAddr, &[u32])> {
    let [kind, length, body @ ..] = arcs else { return None };
    let rest = body.get(usize::try_from(*length).ok()?..)?;
    match (kind, length) {
        (1, 4) | (3, 8) => Some((v4(body)?.0.into(), rest)),
        (2, 16) | (4, 20) => Some((Ipv6Addr::from(octets::<16>(body)?.0).into(), rest)),
        (_, _) => None,
    }
}

fn octets<const N: usize>(arcs: &[u32]) -> Option<([u8; N], &[u32])> {
    let (head, rest) = arcs.split_first_chunk::<N>()?;
    let mut octets = [0; N];
    for (octet, arc) in octets.iter_mut().zip(head) {
        *octet = u8::try_from(*arc).ok()?;
    }
    Some((octets, rest))
}

#[cfg(test)]
#[path = "router_tests.rs"]
mod tests;
