//! Recorded routers, routers as RFCs describe them, and routers that answer nonsense.

use super::super::recordings;
use super::super::responder::{Manner, Responder};
use super::*;
use crate::snmp::VarBind;
use proptest::prelude::*;

fn read(responder: &Responder) -> (RouterView, usize) {
    let mut read = RouterRead::new(responder.manner != Manner::V1);
    let mut asked = 0;
    while let Some(request) = read.poll_request() {
        read.handle(Ok(responder.answer(&request)));
        asked += 1;
    }
    (read.finish().unwrap(), asked)
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

const NEW: &str = "\
1.3.6.1.2.1.4.1.0|2|1
1.3.6.1.2.1.4.20.1.3.10.1.0.1|64|255.255.255.0
1.3.6.1.2.1.4.24.7.1.8.1.4.0.0.0.0.0.3.0.0.2.1.4.10.9.0.1|2|4
1.3.6.1.2.1.4.24.7.1.8.1.4.10.2.0.0.16.2.0.0.1.4.10.1.0.9|2|4
1.3.6.1.2.1.4.24.7.1.8.1.4.10.1.0.0.24.2.0.0.1.4.0.0.0.0|2|3
1.3.6.1.2.1.4.24.7.1.8.1.4.10.66.0.0.24.2.0.0.1.4.0.0.0.0|2|5
1.3.6.1.2.1.4.24.7.1.8.2.16.253.0.0.2.0.0.0.0.0.0.0.0.0.0.0.0.64.2.0.0.2.16.253.0.0.1.0.0.0.0.0.0.0.0.0.0.0.9|2|4
1.3.6.1.2.1.4.34.1.5.1.4.10.1.0.1|6|1.3.6.1.2.1.4.32.1.5.3.1.4.10.1.0.0.24
1.3.6.1.2.1.4.34.1.5.2.16.253.0.0.1.0.0.0.0.0.0.0.0.0.0.0.1|6|1.3.6.1.2.1.4.32.1.5.3.2.16.253.0.0.1.0.0.0.0.0.0.0.0.0.0.0.0.64
1.3.6.1.2.1.4.35.1.4.3.1.4.10.1.0.7|4x|001ba90ba752
1.3.6.1.2.1.4.35.1.4.3.1.4.10.1.0.255|4x|ffffffffffff
1.3.6.1.2.1.4.35.1.4.3.2.16.253.0.0.1.0.0.0.0.0.0.0.0.0.0.0.7|4x|001ba90ba753
";

/// A router that also carries containers, with neighbours by LLDP (one with the address's length in the index, one
/// without, a switch, a phone that says nothing) and by CDP (a router over IPv4 and one over IPv6, a switch).
const BESIDE: &str = "\
1.0.8802.1.1.2.1.4.1.1.12.0.1.1|4x|2800
1.0.8802.1.1.2.1.4.1.1.12.0.2.2|4x|0800
1.0.8802.1.1.2.1.4.1.1.12.0.3.3|4x|2000
1.0.8802.1.1.2.1.4.2.1.3.0.1.1.1.4.10.1.0.33|2|2
1.0.8802.1.1.2.1.4.2.1.3.0.2.2.1.10.1.0.34|2|2
1.0.8802.1.1.2.1.4.2.1.3.0.3.3.1.4.10.1.0.35|2|2
1.0.8802.1.1.2.1.4.2.1.3.0.4.4.1.4.10.1.0.36|2|2
1.3.6.1.2.1.2.2.1.2.1|4|eth0
1.3.6.1.2.1.2.2.1.2.2|4|docker0
1.3.6.1.2.1.4.1.0|2|1
1.3.6.1.2.1.4.20.1.2.10.1.0.1|2|1
1.3.6.1.2.1.4.20.1.2.172.17.0.1|2|2
1.3.6.1.2.1.4.20.1.3.10.1.0.1|64|255.255.255.0
1.3.6.1.2.1.4.20.1.3.172.17.0.1|64|255.255.0.0
1.3.6.1.2.1.4.24.7.1.8.1.4.172.17.0.0.16.2.0.0.1.4.0.0.0.0|2|3
1.3.6.1.4.1.9.9.23.1.2.1.1.3.1.1|2|1
1.3.6.1.4.1.9.9.23.1.2.1.1.3.1.2|2|1
1.3.6.1.4.1.9.9.23.1.2.1.1.3.2.1|2|20
1.3.6.1.4.1.9.9.23.1.2.1.1.4.1.1|4x|0a010037
1.3.6.1.4.1.9.9.23.1.2.1.1.4.1.2|4x|0a010038
1.3.6.1.4.1.9.9.23.1.2.1.1.4.2.1|4x|fd000001000000000000000000000037
1.3.6.1.4.1.9.9.23.1.2.1.1.9.1.1|4x|00000029
1.3.6.1.4.1.9.9.23.1.2.1.1.9.1.2|4x|00000028
1.3.6.1.4.1.9.9.23.1.2.1.1.9.2.1|4x|00000001
";

#[test]
fn routers_beside_it_are_known_and_its_containers_are_not() {
    for manner in [Manner::Good, Manner::V1, Manner::NoBulk, Manner::Small(4)] {
        let mut responder = Responder::of(BESIDE);
        responder.manner = manner;
        let (view, _) = read(&responder);
        let expected = ["10.1.0.33", "10.1.0.34", "10.1.0.55", "fd00:1::37"].map(ip);
        assert_eq!(view.adjacent, expected.into(), "{manner:?}");
        assert_eq!(view.attached, [net("10.1.0.0/24")].into(), "{manner:?}");
        assert!(view.addresses.contains(&ip("172.17.0.1")), "{manner:?}");
    }
}

const OLD: &str = "\
1.3.6.1.2.1.4.1.0|2|2
1.3.6.1.2.1.4.20.1.3.10.1.0.1|64|255.255.255.0
1.3.6.1.2.1.4.21.1.7.0.0.0.0|64|10.1.0.254
1.3.6.1.2.1.4.21.1.7.10.5.0.0|64|0.0.0.0
1.3.6.1.2.1.4.21.1.8.0.0.0.0|2|4
1.3.6.1.2.1.4.21.1.8.10.5.0.0|2|3
1.3.6.1.2.1.4.21.1.11.0.0.0.0|64|0.0.0.0
1.3.6.1.2.1.4.21.1.11.10.5.0.0|64|255.255.0.0
1.3.6.1.2.1.4.22.1.2.3.10.1.0.7|4x|001ba90ba752
1.3.6.1.2.1.4.22.1.2.3.10.1.0.8|4x|000000000000
";

#[test]
fn a_router_of_rfc_4292() {
    let (view, asked) = read(&Responder::of(NEW));
    assert_eq!(view.forwarding, Some(true));
    assert_eq!(view.addresses, [ip("10.1.0.1"), ip("fd00:1::1")].into());
    assert_eq!(view.attached, [net("10.1.0.0/24"), net("fd00:1::/64")].into());
    assert_eq!(
        view.routes,
        [
            (net("0.0.0.0/0"), ip("10.9.0.1")),
            (net("10.2.0.0/16"), ip("10.1.0.9")),
            (net("fd00:2::/64"), ip("fd00:1::9")),
        ]
        .into()
    );
    assert_eq!(view.neighbours, [ip("10.1.0.7"), ip("fd00:1::7")].into());
    assert!(asked <= 6, "{asked} questions");
}

#[test]
fn a_router_of_rfc_1213_over_every_manner() {
    for manner in [Manner::Good, Manner::V1, Manner::NoBulk, Manner::Small(4)] {
        let mut responder = Responder::of(OLD);
        responder.manner = manner;
        let (view, _) = read(&responder);
        assert_eq!(view.forwarding, Some(false));
        assert_eq!(view.attached, [net("10.1.0.0/24"), net("10.5.0.0/16")].into());
        assert_eq!(view.next_hops(), [ip("10.1.0.254")].into());
        assert_eq!(view.neighbours, [ip("10.1.0.7")].into());
    }
}

#[test]
fn silence_is_no_view() {
    let mut read = RouterRead::new(true);
    let mut asked = 0;
    while read.poll_request().is_some() {
        asked += 1;
        read.handle(Err(Miss::Silent));
    }
    assert_eq!(asked, 2, "once by GETBULK, once by GETNEXT");
    assert_eq!(read.finish(), None);
}

/// What a recording says, by its lines: own addresses with masks, and live neighbours.
fn by_lines(text: &str) -> (BTreeSet<IpNet>, BTreeSet<IpAddr>) {
    let mut attached = BTreeSet::new();
    let mut neighbours = BTreeSet::new();
    let mut own = BTreeSet::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.splitn(3, '|').collect();
        if let Some(address) = parts[0].strip_prefix("1.3.6.1.2.1.4.20.1.3.") {
            let (address, mask): (IpAddr, IpAddr) = (ip(address), ip(parts[2]));
            own.insert(address);
            attached.extend(IpNet::with_netmask(address, mask).map(|net| net.trunc()));
        }
        let arcs: Vec<&str> = parts[0].split('.').collect();
        let live = parts.len() == 3 && parts[2].parse::<quire_proto::address::Mac>().is_ok();
        let media = parts[0].starts_with("1.3.6.1.2.1.4.22.1.2.");
        let physical = parts[0].starts_with("1.3.6.1.2.1.4.35.1.4.") && arcs.len() == 17;
        if live && (media || physical) {
            neighbours.insert(ip(&arcs[arcs.len() - 4..].join(".")));
        }
    }
    neighbours.retain(|ip| !own.contains(ip));
    (attached, neighbours)
}

#[test]
fn recorded_routers_are_read_whole() {
    let Some(devices) = recordings::devices() else { return };
    let files = recordings::files(&devices.join("routers"));
    assert!(!files.is_empty());
    let mut next_hops = 0;
    for file in files {
        let (view, asked) = read(&Responder::load(&file));
        let text = String::from_utf8_lossy(&std::fs::read(&file).unwrap()).into_owned();
        let (attached, neighbours) = by_lines(&text);
        let name = file.display();
        assert!(attached.is_subset(&view.attached) && !attached.is_empty(), "{name}: {view:?}");
        assert_eq!(view.neighbours, neighbours, "{name}");
        assert!(asked < MAX_ROUTER_REQUESTS, "{name}: {asked} questions");
        next_hops += view.next_hops().len();
    }
    assert!(next_hops > 0, "no recorded router has a next hop");
}

/// A value of any type, with the sizes that an index makes.
fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        any::<u32>().prop_map(|n| Value::IpAddress(n.into())),
        prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| Value::OctetString(bytes.into())),
        prop::collection::vec(any::<u32>(), 0..30)
            .prop_map(|arcs| Value::ObjectId(mib::oid(IP_ADDRESS_PREFIX_ORIGIN).child(&arcs))),
        Just(Value::Null),
        Just(Value::EndOfMibView),
    ]
}

fn name() -> impl Strategy<Value = Oid> {
    let root = prop::sample::select(vec![
        IP_FORWARDING,
        IP_AD_ENT_IF_INDEX,
        IP_AD_ENT_NET_MASK,
        IF_DESCR,
        beside::LLDP[0],
        beside::LLDP[1],
        beside::CDP[0],
        beside::CDP[1],
        beside::CDP[2],
        IP_ADDRESS_PREFIX,
        IP_ROUTE_NEXT_HOP,
        IP_ROUTE_TYPE,
        IP_ROUTE_MASK,
        IP_CIDR_ROUTE_TYPE,
        INET_CIDR_ROUTE_TYPE,
        IP_NET_TO_MEDIA,
        IP_NET_TO_PHYSICAL,
    ]);
    let arc = prop_oneof![0u32..5, Just(16), 0u32..300, any::<u32>()];
    (root, prop::collection::vec(arc, 0..45)).prop_map(|(root, index)| mib::oid(root).child(&index))
}

proptest! {
    #[test]
    fn hostile_answers_end_and_never_panic(
        answers in prop::collection::vec(
            (prop::collection::vec((name(), value()), 0..12), 0u32..6, 0u32..20), 1..40),
        bulk: bool,
        silent in prop::collection::vec(any::<bool>(), 7),
    ) {
        let mut read = RouterRead::new(bulk);
        let mut asked = 0;
        while read.poll_request().is_some() {
            let (varbinds, error_status, error_index) = answers[asked % answers.len()].clone();
            let varbinds = varbinds.into_iter().map(|(oid, value)| VarBind { oid, value }).collect();
            let lost = silent[asked % silent.len()] && asked % 5 == 4;
            let error_status = if error_status < 4 { 0 } else { error_status };
            read.handle(if lost { Err(Miss::Silent) } else { Ok(Response { varbinds, error_status, error_index }) });
            asked += 1;
            prop_assert!(asked <= MAX_ROUTER_REQUESTS);
        }
        if let Some(view) = read.finish() {
            prop_assert!(view.attached.iter().all(|net| *net == net.trunc()));
            prop_assert!(view.routes.iter().all(|(_, next)| !next.is_unspecified()));
        }
    }

    #[test]
    fn an_endless_table_ends_at_the_bound(step in 1u32..1000) {
        let mut read = RouterRead::new(true);
        let mut asked = 0u32;
        while let Some(request) = read.poll_request() {
            let (Request::Get(oids) | Request::GetNext(oids) | Request::GetBulk { oids, .. }) = &request;
            let varbinds = oids.iter().map(|oid| VarBind {
                oid: oid.child(&[step]),
                value: Value::Integer(i64::from(step)),
            });
            read.handle(Ok(Response { varbinds: varbinds.collect(), error_status: 0, error_index: 0 }));
            asked += 1;
        }
        prop_assert!(asked as usize <= MAX_ROUTER_REQUESTS);
    }
}
