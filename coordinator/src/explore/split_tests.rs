//! Several nodes explore random networks together: everything is found as if each were alone, and asked once.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;

const NODES: usize = 3;

/// Nodes (the first [`NODES`]) and routers by the segments that they stand on, and who knows whom over which of them.
#[derive(Debug, Clone)]
struct Network {
    on: Vec<BTreeSet<u8>>,
    mentions: Vec<(usize, usize, u8)>,
}

fn network() -> impl Strategy<Value = Network> {
    let on = prop::collection::vec(prop::collection::btree_set(0u8..10, 1..4), NODES + 2..NODES + 9);
    (on, prop::collection::vec((0usize..12, 0usize..12, 0u8..10), 0..70))
        .prop_map(|(on, mentions)| Network { on, mentions })
}

fn address(who: usize, segment: u8) -> IpAddr {
    Ipv4Addr::new(10, segment, 0, u8::try_from(who).unwrap() + 1).into()
}

impl Network {
    fn view(&self, who: usize) -> RouterView {
        let net = |segment: &u8| IpNet::new(Ipv4Addr::new(10, *segment, 0, 0).into(), 24).unwrap();
        let on = |who: usize, segment: u8| self.on.get(who).is_some_and(|on| on.contains(&segment));
        let known = self.mentions.iter().filter(|(a, b, segment)| {
            *a == who && a != b && *b >= NODES && on(*a, *segment) && on(*b, *segment)
        });
        let default: IpNet = "0.0.0.0/0".parse().unwrap();
        RouterView {
            forwarding: Some(true),
            addresses: self.on[who].iter().map(|segment| address(who, *segment)).collect(),
            attached: self.on[who].iter().map(net).collect(),
            routes: known.map(|(_, b, segment)| (default, address(*b, *segment))).collect(),
            ..RouterView::default()
        }
    }

    fn whose(&self, ip: IpAddr) -> usize {
        (0..self.on.len())
            .find(|who| self.on[*who].iter().any(|segment| address(*who, *segment) == ip))
            .unwrap()
    }

    fn origins(&self, alive: &[usize]) -> BTreeMap<NodeId, RouterView> {
        alive.iter().map(|who| (NodeId(*who as u64), self.view(*who))).collect()
    }

    /// All living nodes work until nothing is due; who asked what, in order.
    fn explore(
        &self,
        alive: &[usize],
        known: &mut BTreeMap<IpAddr, Known>,
        bounds: &Bounds,
    ) -> Vec<(usize, IpAddr)> {
        let origins = self.origins(alive);
        let mut asked = Vec::new();
        for _ in 0..100 {
            // All look at the same tables, then all answers arrive.
            let looks: Vec<(usize, Survey)> = alive
                .iter()
                .map(|who| (*who, survey(NodeId(*who as u64), &origins, known, bounds)))
                .collect();
            if looks.iter().all(|(_, look)| look.done) {
                return asked;
            }
            let before = asked.len();
            for (who, look) in looks {
                for router in look.ask {
                    asked.push((who, router));
                    let view = Some(self.view(self.whose(router)));
                    known.insert(router, Known { view, due: false });
                }
            }
            assert!(asked.len() > before, "something is due and nobody asks");
        }
        panic!("the exploration does not end: {asked:?}");
    }

    fn alone(&self, who: usize, bounds: &Bounds) -> Map {
        let mut exploration = Exploration::new(bounds.clone(), &self.view(who));
        while let Some(next) = exploration.poll_router() {
            exploration.handle_view(next, Some(&self.view(self.whose(next))));
        }
        exploration.finish()
    }
}

fn distances(map: &Map) -> BTreeMap<IpNet, u32> {
    map.segments.iter().map(|segment| (segment.prefix, segment.hops)).collect()
}

proptest! {
    #[test]
    fn together_they_find_what_each_would_find_alone(network in network(), hops in 0u32..5) {
        let bounds = Bounds { hops, ..Bounds::default() };
        let mut known = BTreeMap::new();
        let alive: Vec<usize> = (0..NODES).collect();
        let asked = network.explore(&alive, &mut known, &bounds);
        let once: BTreeSet<IpAddr> = asked.iter().map(|(_, router)| *router).collect();
        prop_assert_eq!(once.len(), asked.len(), "an address was asked twice");
        let origins = network.origins(&alive);
        for who in &alive {
            let survey = survey(NodeId(*who as u64), &origins, &known, &bounds);
            prop_assert!(survey.done && survey.ask.is_empty());
            prop_assert_eq!(distances(&survey.map), distances(&network.alone(*who, &bounds)));
        }

        // A new round: by now aliases are known, so each router is asked once, at one address, by one node; also when
        // a node has died.
        known.values_mut().for_each(|known| known.due = true);
        let again = network.explore(&alive[1..], &mut known, &bounds);
        let routers: BTreeSet<usize> = again.iter().map(|(_, router)| network.whose(*router)).collect();
        prop_assert_eq!(routers.len(), again.len(), "a router was asked twice: {:?}", again);
        prop_assert!(again.iter().all(|(who, _)| *who != 0));
    }
}

#[test]
fn routers_are_shared_among_equals_and_the_nearest_asks() {
    let view = |attached: &str, routes: Vec<IpAddr>| RouterView {
        attached: [attached.parse().unwrap()].into(),
        routes: routes.into_iter().map(|next| ("0.0.0.0/0".parse().unwrap(), next)).collect(),
        ..RouterView::default()
    };
    let gateways: Vec<IpAddr> = (1..=60).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    let mut origins: BTreeMap<NodeId, RouterView> =
        (1..=3).map(|id| (NodeId(id), view("10.0.0.0/24", gateways.clone()))).collect();
    let bounds = Bounds { hops: 2, ..Bounds::default() };
    let asks = |id: u64, origins: &BTreeMap<NodeId, RouterView>| {
        survey(NodeId(id), origins, &BTreeMap::new(), &bounds).ask
    };
    let all: Vec<Vec<IpAddr>> = (1..=3).map(|id| asks(id, &origins)).collect();
    assert_eq!(all.iter().map(Vec::len).sum::<usize>(), 60);
    assert!(all.iter().all(|mine| mine.len() >= 10), "{all:?}");
    // One whose own gateway it is goes before those that know it from that gateway.
    origins.insert(NodeId(9), view("10.0.0.0/24", vec![gateways[0]]));
    origins.retain(|id, _| id.0 == 9 || id.0 == 1);
    let near = gateways[1];
    let mut known = BTreeMap::new();
    let first = RouterView { forwarding: Some(true), ..view("10.0.0.0/24", vec![near]) };
    known.insert(gateways[0], Known { view: Some(first), due: false });
    let of = |id| survey(NodeId(id), &origins, &known, &bounds).ask;
    assert!(of(1).contains(&near) && !of(9).contains(&near));
}
