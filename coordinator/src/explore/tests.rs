//! Random networks whose truth is computed another way, and the traps of real ones.

use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A router with these addresses (each with its prefix) and routes.
fn router(addresses: &[&str], routes: &[(&str, &str)]) -> RouterView {
    let nets: Vec<IpNet> = addresses.iter().map(|text| net(text)).collect();
    RouterView {
        forwarding: Some(true),
        addresses: nets.iter().map(IpNet::addr).collect(),
        attached: nets.iter().map(IpNet::trunc).collect(),
        routes: routes.iter().map(|(to, via)| (net(to), ip(via))).collect(),
        ..RouterView::default()
    }
}

/// Explores a network of routers known by their addresses; gives the map and who was asked, in order.
fn explore(bounds: Bounds, own: &RouterView, routers: &[RouterView], at_once: bool) -> (Map, Vec<IpAddr>) {
    let mut exploration = Exploration::new(bounds, own);
    let mut asked = Vec::new();
    while !exploration.is_done() {
        let mut round = Vec::new();
        while let Some(next) = exploration.poll_router() {
            round.push(next);
            if !at_once {
                break;
            }
        }
        if round.is_empty() {
            break;
        }
        asked.extend(&round);
        for address in round {
            exploration
                .handle_view(address, routers.iter().find(|router| router.addresses.contains(&address)));
        }
    }
    assert!(exploration.is_done());
    (exploration.finish(), asked)
}

fn hops(n: u32) -> Bounds {
    Bounds { hops: n, ..Bounds::default() }
}

/// n -- r1 -- r2 -- r3, a LAN behind each, and a default route of r1 back into r2: a loop.
fn chain() -> (RouterView, Vec<RouterView>) {
    let own = router(&["10.0.0.2/24"], &[("0.0.0.0/0", "10.0.0.1")]);
    let r1 = router(
        &["10.0.0.1/24", "10.0.12.1/30", "10.1.0.1/24"],
        &[("0.0.0.0/0", "10.0.12.2"), ("10.3.0.0/24", "10.0.12.2")],
    );
    let r2 = router(
        &["10.0.12.2/30", "10.0.23.1/30", "10.2.0.1/24"],
        &[("0.0.0.0/0", "10.0.12.1"), ("10.3.0.0/24", "10.0.23.2")],
    );
    let r3 = router(&["10.0.23.2/30", "10.3.0.1/24"], &[("0.0.0.0/0", "10.0.23.1")]);
    (own, vec![r1, r2, r3])
}

fn distances(map: &Map) -> BTreeMap<String, (u32, Verdict)> {
    map.segments.iter().map(|s| (s.prefix.to_string(), (s.hops, s.verdict))).collect()
}

#[test]
fn distances_grow_along_a_chain_and_end_at_the_bound() {
    let (own, routers) = chain();
    let (map, asked) = explore(hops(2), &own, &routers, true);
    let found = distances(&map);
    assert_eq!(found["10.0.0.0/24"], (0, Verdict::Accepted));
    assert_eq!(found["10.1.0.0/24"], (1, Verdict::Accepted));
    assert_eq!(found["10.2.0.0/24"], (2, Verdict::Accepted));
    assert!(!found.contains_key("10.3.0.0/24"), "{found:?}");
    assert_eq!(asked, [ip("10.0.0.1"), ip("10.0.12.2")]);
    let r2 = map.segments.iter().find(|s| s.prefix == net("10.2.0.0/24")).unwrap();
    assert_eq!(r2.chain, [ip("10.0.0.1"), ip("10.0.12.2")]);
    let none = explore(hops(0), &own, &routers, true);
    assert_eq!((none.0.segments.len(), none.1.len()), (1, 0));
}

#[test]
fn behind_a_silent_router_nothing_is_believed() {
    let (own, mut routers) = chain();
    routers[1].addresses.clear();
    let (map, asked) = explore(hops(5), &own, &routers, true);
    assert_eq!(distances(&map)["10.3.0.0/24"], (2, Verdict::DistanceUnknown));
    assert_eq!(map.silent, [ip("10.0.12.2")]);
    assert_eq!(asked.len(), 2);
}

#[test]
fn a_measured_distance_stands_for_a_silent_router() {
    let (own, mut routers) = chain();
    routers[1].addresses.clear();
    let bounds = Bounds { measured: [net("10.3.0.0/24")].into(), ..hops(5) };
    let (map, _) = explore(bounds, &own, &routers, true);
    assert_eq!(distances(&map)["10.3.0.0/24"], (2, Verdict::Accepted));
}

#[test]
fn routers_known_by_lldp_and_cdp_are_asked() {
    let own = router(&["10.0.0.2/24"], &[("0.0.0.0/0", "10.0.0.1")]);
    let mut r1 = router(&["10.0.0.1/24", "10.0.12.1/30"], &[]);
    r1.adjacent = ["10.0.12.2", "203.0.113.9", "10.0.0.1"].map(ip).into();
    let r2 = router(&["10.0.12.2/30", "10.2.0.1/24"], &[]);
    let (map, asked) = explore(hops(2), &own, &[r1.clone(), r2.clone()], true);
    assert_eq!(asked, [ip("10.0.0.1"), ip("10.0.12.2")]);
    assert_eq!(distances(&map)["10.2.0.0/24"], (2, Verdict::Accepted));
    let (map, asked) = explore(hops(1), &own, &[r1, r2], true);
    assert_eq!((asked.len(), map.segments.len()), (1, 2));
}

#[test]
fn a_host_with_two_links_is_no_router() {
    let (own, mut routers) = chain();
    routers[0].forwarding = Some(false);
    let (map, _) = explore(hops(5), &own, &routers, true);
    assert_eq!(map.segments.len(), 1, "{map:?}");
}

#[test]
fn nobody_outside_the_house_is_asked() {
    let own = router(
        &["10.0.0.2/24"],
        &[
            ("0.0.0.0/0", "10.0.0.1"),
            ("10.9.0.0/16", "10.0.0.9"),
            ("10.8.0.0/16", "203.0.113.1"),
            ("10.7.0.0/16", "169.254.0.1"),
            ("10.6.0.0/16", "100.64.0.1"),
            ("10.5.0.0/16", "127.0.0.1"),
        ],
    );
    let r1 = router(
        &["10.0.0.1/24", "198.51.100.2/30", "127.0.0.1/8", "172.16.0.1/15", "10.32.0.1/11", "10.66.0.1/24"],
        &[("0.0.0.0/0", "198.51.100.1")],
    );
    let bounds = Bounds { exclude: vec![net("10.0.0.9/32"), net("10.66.0.0/16")], ..hops(4) };
    let (map, asked) = explore(bounds.clone(), &own, std::slice::from_ref(&r1), true);
    assert_eq!(asked, [ip("10.0.0.1")]);
    let found = distances(&map);
    assert_eq!(found["198.51.100.0/30"].1, Verdict::NotPrivate);
    assert_eq!(found["10.32.0.0/11"].1, Verdict::TooLarge);
    assert_eq!(found["10.66.0.0/24"].1, Verdict::Excluded);
    assert!(!found.contains_key("127.0.0.0/8"), "{found:?}");
    // What the operator names is in the house.
    let given = Bounds { given: vec![net("198.51.100.0/24"), net("10.32.0.0/11")], ..bounds };
    let (map, asked) = explore(given, &own, &[r1], true);
    assert_eq!(asked, [ip("10.0.0.1"), ip("198.51.100.1")]);
    let found = distances(&map);
    assert_eq!((found["198.51.100.0/30"].1, found["10.32.0.0/11"].1), (Verdict::Accepted, Verdict::Accepted));
}

#[test]
fn ipv6_prefixes_are_not_swept_but_neighbours_are_known() {
    let own = router(&["10.0.0.2/24"], &[("0.0.0.0/0", "10.0.0.1")]);
    let mut r1 = router(&["10.0.0.1/24", "10.1.0.1/24", "fd00:1::1/64"], &[]);
    r1.neighbours = ["fd00:1::7", "fe80::7", "10.1.0.9", "10.66.0.9", "fd00:1::66"].map(ip).into();
    let bounds = Bounds { exclude: vec![net("fd00:1::66/128")], ..hops(1) };
    let (map, _) = explore(bounds, &own, &[r1], true);
    assert_eq!(distances(&map)["fd00:1::/64"], (1, Verdict::Ipv6));
    assert_eq!(map.neighbours, [(ip("10.1.0.9"), 1), (ip("fd00:1::7"), 1)].into());
}

#[test]
fn bounds_hold_against_a_router_that_claims_the_world() {
    let own = router(&["10.0.0.2/24"], &[("0.0.0.0/0", "10.0.0.1")]);
    let many = |n: u32| Ipv4Addr::from(0x0a40_0000 + (n << 8));
    let liar = RouterView {
        attached: (0..6_000).map(|n| IpNet::new(many(n).into(), 24).unwrap()).collect(),
        routes: (0..6_000)
            .map(|n| (net("0.0.0.0/0"), IpAddr::V4(Ipv4Addr::from(u32::from(many(n)) + 1))))
            .collect(),
        ..router(&["10.0.0.1/24"], &[])
    };
    let mut exploration = Exploration::new(hops(32), &own);
    let mut asked = 0;
    while let Some(next) = exploration.poll_router() {
        asked += 1;
        exploration.handle_view(next, Some(&liar));
    }
    let map = exploration.finish();
    assert_eq!(asked, MAX_ROUTERS);
    assert_eq!(map.segments.len(), MAX_SEGMENTS);
    assert!(map.left_out > 0);
}

/// A network: each router's segments, and for each router the links over which it knows others. Router 0 is the node.
#[derive(Debug, Clone)]
struct Network {
    routers: Vec<BTreeSet<u8>>,
    /// (who, whom, over which of the common segments), reduced to what is possible.
    mentions: Vec<(usize, usize, u8)>,
}

fn network() -> impl Strategy<Value = Network> {
    let routers = prop::collection::vec(prop::collection::btree_set(0u8..12, 1..5), 2..10);
    let mentions = prop::collection::vec((0usize..10, 0usize..10, 0u8..12), 0..60);
    (routers, mentions).prop_map(|(routers, mentions)| Network { routers, mentions })
}

impl Network {
    fn address(router: usize, segment: u8) -> IpAddr {
        Ipv4Addr::new(10, segment, 0, u8::try_from(router).unwrap() + 1).into()
    }

    /// Mentions that a kernel would accept: both are on the segment.
    fn possible(&self) -> impl Iterator<Item = (usize, usize, u8)> {
        let on = |router: usize, segment: &u8| self.routers.get(router).is_some_and(|s| s.contains(segment));
        self.mentions.iter().copied().filter(move |(a, b, s)| a != b && *b != 0 && on(*a, s) && on(*b, s))
    }

    fn views(&self) -> Vec<RouterView> {
        let view = |(n, segments): (usize, &BTreeSet<u8>)| {
            let addresses: Vec<String> =
                segments.iter().map(|s| format!("{}/24", Network::address(n, *s))).collect();
            let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
            let mut view = router(&addresses, &[]);
            let mentions = self.possible().filter(|(a, _, _)| *a == n);
            view.routes = mentions.map(|(_, b, s)| (net("0.0.0.0/0"), Network::address(b, s))).collect();
            view
        };
        self.routers.iter().enumerate().map(view).collect()
    }

    /// Distances of routers by relaxing until nothing changes.
    fn truth(&self) -> Vec<u32> {
        let mut distances = vec![u32::MAX; self.routers.len()];
        distances[0] = 0;
        for _ in 0..self.routers.len() {
            for (a, b, _) in self.possible() {
                distances[b] = distances[b].min(distances[a].saturating_add(1));
            }
        }
        distances
    }
}

proptest! {
    #[test]
    fn distances_are_shortest_and_every_exploration_ends(
        network in network(), most in 0u32..6, at_once: bool, excluded in 0u8..12,
    ) {
        let views = network.views();
        let truth = network.truth();
        let (map, asked) = explore(hops(most), &views[0], &views[1..], at_once);
        let mut expected: BTreeMap<IpNet, u32> = BTreeMap::new();
        for (view, distance) in views.iter().zip(&truth).filter(|(_, distance)| **distance <= most) {
            for prefix in &view.attached {
                let nearest = expected.entry(*prefix).or_insert(u32::MAX);
                *nearest = (*nearest).min(*distance);
            }
        }
        let found: BTreeMap<IpNet, u32> = map.segments.iter().map(|s| (s.prefix, s.hops)).collect();
        prop_assert_eq!(&found, &expected);
        for segment in &map.segments {
            prop_assert_eq!(segment.chain.len(), segment.hops as usize);
        }
        let of = |address: &IpAddr| views.iter().position(|view| view.addresses.contains(address)).unwrap();
        let order: Vec<u32> = asked.iter().map(|address| truth[of(address)]).collect();
        prop_assert!(order.is_sorted(), "{:?}", order);
        let once: BTreeSet<usize> = asked.iter().map(of).collect();
        if !at_once {
            prop_assert_eq!(once.len(), asked.len(), "a router was asked twice");
        }
        let exclude = vec![IpNet::new(Ipv4Addr::new(10, excluded, 0, 0).into(), 24).unwrap()];
        let bounds = Bounds { exclude: exclude.clone(), ..hops(most) };
        let (map, asked) = explore(bounds, &views[0], &views[1..], at_once);
        prop_assert!(asked.iter().all(|address| !exclude[0].contains(address)));
        prop_assert!(map.segments.iter().all(|s| (s.verdict == Verdict::Excluded) == (s.prefix == exclude[0])));
    }
}
