//! Sets of addresses as ranges: how many there are, and whether one is among them, without walking through them.
//!
//! Memory: a range takes some 50 octets, whatever it holds; ranges that touch become one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use quire_proto::address::Target;

/// A set of addresses. IPv4 and IPv6 are apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// First and last address by family, ranges that neither overlap nor touch.
    ranges: [BTreeMap<u128, u128>; 2],
}

fn place(ip: IpAddr) -> (usize, u128) {
    match ip {
        IpAddr::V4(v4) => (0, u128::from(u32::from(v4))),
        IpAddr::V6(v6) => (1, u128::from(v6)),
    }
}

/// The hosts of a target, first and last.
fn hosts(target: &Target) -> (IpAddr, IpAddr) {
    match *target {
        // As `Ipv4Net::hosts`: network and broadcast addresses are none, but with two addresses both are hosts.
        Target::Prefix(IpNet::V4(net), _) if net.prefix_len() < 31 => {
            let inner = |n: u32| IpAddr::V4(Ipv4Addr::from(n));
            (inner(u32::from(net.network()) + 1), inner(u32::from(net.broadcast()) - 1))
        }
        Target::Prefix(net, _) => (net.network(), net.broadcast()),
        Target::Range(first, last, _) => (first.into(), last.into()),
        Target::Host(host, _) => (host, host),
    }
}

/// The hosts of a unit, first and last. Network and broadcast address are those of the segment that it was cut from:
/// the first and last address of a piece in its middle are hosts like any other. `None` where none is left.
fn unit(prefix: IpNet, segment: &str) -> Option<(IpAddr, IpAddr)> {
    let segment = segment.parse().ok().filter(|segment: &IpNet| segment.contains(&prefix)).unwrap_or(prefix);
    let (first, last) = hosts(&Target::Prefix(segment, None));
    let (first, last) = (first.max(prefix.network()), last.min(prefix.broadcast()));
    (first <= last).then_some((first, last))
}

/// The hosts of a unit that was cut from a segment, in order.
pub fn unit_hosts(prefix: IpNet, segment: &str) -> Box<dyn Iterator<Item = IpAddr> + Send> {
    match unit(prefix, segment) {
        None => Box::new(std::iter::empty()),
        Some((first, last)) => {
            let ((family, first), (_, last)) = (place(first), place(last));
            Box::new((first..=last).map(move |at| match family {
                0 => IpAddr::V4(Ipv4Addr::from(u32::try_from(at).unwrap_or(u32::MAX))),
                _ => IpAddr::V6(Ipv6Addr::from(at)),
            }))
        }
    }
}

/// How many [`unit_hosts`] are.
pub fn unit_count(prefix: IpNet, segment: &str) -> u64 {
    unit(prefix, segment).map_or(0, |(first, last)| add(0, place(first).1, place(last).1))
}

impl Extent {
    /// All addresses of some prefixes.
    pub fn of(prefixes: &[IpNet]) -> Extent {
        let mut extent = Extent::default();
        prefixes.iter().for_each(|prefix| extent.insert(prefix.network(), prefix.broadcast()));
        extent
    }

    /// Adds the hosts of a target.
    pub fn insert_hosts(&mut self, target: &Target) {
        let (first, last) = hosts(target);
        self.insert(first, last);
    }

    /// Adds all addresses from `first` to `last`; nothing where they are of two families or in the wrong order.
    pub fn insert(&mut self, first: IpAddr, last: IpAddr) {
        let ((family, mut from), (other, mut to)) = (place(first), place(last));
        if family != other || to < from {
            return;
        }
        let ranges = &mut self.ranges[family];
        // Whatever overlaps or touches melts into the new one.
        while let Some((start, end)) =
            ranges.range(..=to.saturating_add(1)).next_back().map(|(s, e)| (*s, *e))
            && end.saturating_add(1) >= from
        {
            ranges.remove(&start);
            (from, to) = (from.min(start), to.max(end));
        }
        ranges.insert(from, to);
    }

    /// True when the address is in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (family, at) = place(ip);
        self.ranges[family].range(..=at).next_back().is_some_and(|(_, end)| *end >= at)
    }

    /// How many addresses it holds; at the bound of the type for much of IPv6.
    pub fn count(&self) -> u64 {
        self.ranges.iter().flatten().fold(0, |all, (first, last)| add(all, *first, *last))
    }

    /// How many of its addresses lie in `other`, too.
    pub fn common(&self, other: &Extent) -> u64 {
        let mut all = 0;
        for (mine, theirs) in self.ranges.iter().zip(&other.ranges) {
            for (first, last) in mine {
                let before = theirs.range(..*first).next_back().filter(|(_, end)| **end >= *first);
                for (from, to) in before.into_iter().chain(theirs.range(*first..=*last)) {
                    all = add(all, *from.max(first), *to.min(last));
                }
            }
        }
        all
    }
}

fn add(all: u64, first: u128, last: u128) -> u64 {
    all.saturating_add(u64::try_from(last - first).unwrap_or(u64::MAX).saturating_add(1))
}

/// How many sockets targets name (an address at two ports counts twice), and how many of them are excluded.
pub fn count(targets: &[Target], port: u16, exclude: &[IpNet]) -> (u64, u64) {
    let mut by_port: BTreeMap<u16, Extent> = BTreeMap::new();
    for target in targets {
        by_port.entry(target.port().unwrap_or(port)).or_default().insert_hosts(target);
    }
    let exclude = Extent::of(exclude);
    by_port.values().fold((0, 0), |(named, excluded), extent| {
        (u64::saturating_add(named, extent.count()), u64::saturating_add(excluded, extent.common(&exclude)))
    })
}

/// The addresses of a sweep with those first that are known to live; both halves keep their order.
///
/// Devices are then found in the first seconds of a sweep, and what is asked is the same.
pub fn live_first(hosts: Vec<IpAddr>, live: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    let (mut first, rest): (Vec<_>, Vec<_>) = hosts.into_iter().partition(|ip| live.contains(ip));
    first.extend(rest);
    first
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_whole_internet_is_counted_at_once() {
        let targets = ["0.0.0.0/0".parse().unwrap(), "10.0.0.5".parse().unwrap()];
        let exclude = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        assert_eq!(count(&targets, 161, &exclude), ((1 << 32) - 2, 1 << 24));
        let ports = ["10.0.0.5".parse().unwrap(), "10.0.0.5:1161".parse().unwrap()];
        assert_eq!(count(&ports, 161, &[]), (2, 0));
        let six = ["fd00::/116".parse().unwrap(), "[::1]:1161".parse().unwrap()];
        assert_eq!(count(&six, 161, &["fd00::/120".parse().unwrap()]), (4_097, 256));
    }

    #[test]
    fn live_addresses_come_first_and_none_is_lost() {
        let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
        let live = [ip(3), ip(9), ip(77)].into();
        assert_eq!(live_first((1..5).map(ip).collect(), &live), [ip(3), ip(1), ip(2), ip(4)]);
    }

    #[test]
    fn network_and_broadcast_addresses_are_those_of_the_segment() {
        let hosts = |unit: &str, segment: &str| {
            let unit: IpNet = unit.parse().unwrap();
            let all: Vec<IpAddr> = unit_hosts(unit, segment).collect();
            assert_eq!(all.len() as u64, unit_count(unit, segment), "{unit} of {segment}");
            all.first().zip(all.last()).map(|(first, last)| format!("{first}-{last}"))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(hosts("10.1.0.0/24", "10.1.0.0/22"), some("10.1.0.1-10.1.0.255"));
        assert_eq!(hosts("10.1.1.0/24", "10.1.0.0/22"), some("10.1.1.0-10.1.1.255"));
        assert_eq!(hosts("10.1.3.0/24", "10.1.0.0/22"), some("10.1.3.0-10.1.3.254"));
        assert_eq!(hosts("10.1.0.0/24", "10.1.0.0/24"), some("10.1.0.1-10.1.0.254"));
        // A piece beside one that was carved out, the network address alone, and one address that was named.
        assert_eq!(hosts("10.1.0.6/32", "10.1.0.0/24"), some("10.1.0.6-10.1.0.6"));
        assert_eq!(hosts("10.1.0.0/32", "10.1.0.0/24"), None);
        assert_eq!(hosts("10.1.0.0/32", "10.1.0.0/32"), some("10.1.0.0-10.1.0.0"));
        assert_eq!(hosts("10.1.0.0/31", "10.1.0.0/31"), some("10.1.0.0-10.1.0.1"));
        assert_eq!(hosts("fd00::100/120", "fd00::/119"), some("fd00::100-fd00::1ff"));
        assert_eq!(hosts("fd00::/127", "fd00::/127"), some("fd00::-fd00::1"));
        // A row that names no segment, or another one, as no planner writes it.
        assert_eq!(hosts("10.1.0.0/24", ""), some("10.1.0.1-10.1.0.254"));
        assert_eq!(hosts("10.1.0.0/24", "10.2.0.0/24"), some("10.1.0.1-10.1.0.254"));
        assert_eq!(unit_count("fd00::/64".parse().unwrap(), "fd00::/64"), u64::MAX);
    }

    fn target() -> impl Strategy<Value = Target> {
        let net = |(low, len)| {
            let net = ipnet::Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | low), len).unwrap();
            Target::Prefix(IpNet::V4(net.trunc()), None)
        };
        let range = |(a, b): (u32, u32)| {
            let at = |n: u32| Ipv4Addr::from(0x0a00_0000 | n);
            Target::Range(at(a.min(b)), at(a.max(b)), None)
        };
        prop_oneof![(0u32..1024, 22u8..=32).prop_map(net), (0u32..1024, 0u32..1024).prop_map(range)]
    }

    proptest! {
        #[test]
        fn ranges_hold_what_sets_hold(
            targets in prop::collection::vec(target(), 0..8),
            exclude in prop::collection::vec((0u32..1024, 23u8..=32), 0..4),
        ) {
            let exclude: Vec<IpNet> = exclude
                .into_iter()
                .map(|(low, len)| IpNet::new(Ipv4Addr::from(0x0a00_0000 | low).into(), len).unwrap().trunc())
                .collect();
            let named: BTreeSet<IpAddr> = targets.iter().flat_map(Target::hosts).collect();
            let excluded = named.iter().filter(|ip| exclude.iter().any(|net| net.contains(*ip))).count();
            prop_assert_eq!(count(&targets, 161, &exclude), (named.len() as u64, excluded as u64));
            let mut extent = Extent::default();
            targets.iter().for_each(|target| extent.insert_hosts(target));
            for low in 0..1100u32 {
                let ip = IpAddr::from(Ipv4Addr::from(0x0a00_0000 | low));
                prop_assert_eq!(extent.contains(ip), named.contains(&ip));
            }
        }
    }
}
