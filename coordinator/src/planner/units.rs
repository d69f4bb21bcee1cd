//! Cutting segments into units.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use quire_proto::id::{ANY_ZONE, UnitId};

use crate::found::Wanted;
use crate::settings::{Segment, Settings};

/// What one unit covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnitSpec {
    /// Whose network; [`ANY_ZONE`] for whichever node is nearest.
    pub zone: String,
    /// At most 256 addresses.
    pub prefix: IpNet,
    /// The operator's segment that it was cut from; what reach is measured to.
    pub segment: IpNet,
}

/// The longest pieces: 256 addresses, a /24 or a /120.
const V4_UNIT: u8 = 24;
const V6_UNIT: u8 = 120;
/// The shortest IPv6 prefix that is swept address by address: 4,096 of them.
const V6_SWEPT: u8 = 116;

/// The units that the settings ask for.
pub fn units(settings: &Settings) -> BTreeMap<UnitId, UnitSpec> {
    units_of(&settings.discovery.segments, &settings.discovery.exclude)
}

/// The units of the settings, and those of found segments in what these leave: what the operator named is cut as if
/// nothing had been found, and what the operator refused is left alone.
pub fn units_with(settings: &Settings, found: &Wanted) -> BTreeMap<UnitId, UnitSpec> {
    let named = &settings.discovery.segments;
    let mut cutter = Cutter::new(&settings.discovery.exclude);
    cutter.cut(named);
    for segment in &found.search {
        // A segment of no zone is everybody's.
        let before = cutter.taken.entry(&segment.zone).or_default();
        named.iter().filter(|named| named.zone == ANY_ZONE).for_each(|named| before.insert(named.prefix));
    }
    for segment in &found.leave {
        cutter.taken.entry(&segment.zone).or_default().insert(segment.prefix);
    }
    cutter.cut(&found.search);
    cutter.units
}

/// The units of segments.
///
/// Each address is in one unit of a zone: where segments overlap, the longest prefix has it. A segment
/// without a zone leaves out what segments with one cover. What is excluded as a whole drops out; of
/// what is excluded in part, the owner of the unit leaves the excluded addresses alone.
pub fn units_of(segments: &[Segment], exclude: &[IpNet]) -> BTreeMap<UnitId, UnitSpec> {
    let mut cutter = Cutter::new(exclude);
    cutter.cut(segments);
    cutter.units
}

/// Segments being cut.
struct Cutter<'s> {
    excluded: PrefixSet,
    taken: BTreeMap<&'s str, PrefixSet>,
    units: BTreeMap<UnitId, UnitSpec>,
}

impl<'s> Cutter<'s> {
    fn new(exclude: &[IpNet]) -> Self {
        let mut excluded = PrefixSet::default();
        exclude.iter().for_each(|prefix| excluded.insert(*prefix));
        Cutter { excluded, taken: BTreeMap::new(), units: BTreeMap::new() }
    }

    /// Cuts what was not taken before.
    fn cut(&mut self, segments: &'s [Segment]) {
        let mut ordered: Vec<&Segment> = segments.iter().collect();
        // Named zones first, so that "any" sees all of them; in a zone the longest prefix first.
        ordered.sort_by_key(|s| (s.zone == ANY_ZONE, std::cmp::Reverse(s.prefix.prefix_len()), *s));
        for segment in ordered {
            let zone = segment.zone.as_str();
            let before = self.taken.entry(zone).or_default();
            for chunk in chunks(segment.prefix.trunc()) {
                let mut pieces = Vec::new();
                match is_known_only(chunk) {
                    // Only known addresses are asked of it; whoever asks leaves those to the units inside it.
                    true if before.covers(chunk) => {}
                    true => pieces.push(chunk),
                    false => before.carve(chunk, &mut pieces),
                }
                for prefix in pieces.into_iter().filter(|piece| !self.excluded.covers(*piece)) {
                    let spec = UnitSpec { zone: zone.to_owned(), prefix, segment: segment.prefix };
                    self.units.insert(UnitId::new(zone, prefix), spec);
                }
            }
            before.insert(segment.prefix);
            self.taken.entry(ANY_ZONE).or_default().insert(segment.prefix);
        }
    }
}

/// An IPv6 prefix that nobody can sweep is one unit: of it only the addresses are asked that routers and kernels know.
fn chunks(prefix: IpNet) -> Box<dyn Iterator<Item = IpNet>> {
    let unit = if prefix.max_prefix_len() == 32 { V4_UNIT } else { V6_UNIT };
    match prefix.subnets(unit) {
        Ok(pieces) if !is_known_only(prefix) => Box::new(pieces),
        // Already longer than a unit.
        Ok(_) | Err(_) => Box::new(std::iter::once(prefix)),
    }
}

/// True for prefixes of which only known addresses are asked: IPv6 shorter than a /116.
pub fn is_known_only(prefix: IpNet) -> bool {
    prefix.max_prefix_len() == 128 && prefix.prefix_len() < V6_SWEPT
}

/// Prefixes, ordered so that those inside another one stand together.
#[derive(Default)]
struct PrefixSet(BTreeSet<(bool, u128, u8)>);

fn bits(address: std::net::IpAddr) -> u128 {
    match address {
        std::net::IpAddr::V4(v4) => u128::from(u32::from(v4)),
        std::net::IpAddr::V6(v6) => u128::from(v6),
    }
}

fn key(prefix: IpNet) -> (bool, u128, u8) {
    (prefix.max_prefix_len() == 128, bits(prefix.network()), prefix.prefix_len())
}

impl PrefixSet {
    fn insert(&mut self, prefix: IpNet) {
        self.0.insert(key(prefix));
    }

    /// Adds to `left` what of `prefix` lies in none of the set, in the fewest prefixes.
    fn carve(&self, prefix: IpNet, left: &mut Vec<IpNet>) {
        let mut around = Some(prefix);
        while let Some(wider) = around {
            if self.0.contains(&key(wider)) {
                return;
            }
            around = wider.supernet();
        }
        self.carve_inside(prefix, left);
    }

    fn carve_inside(&self, prefix: IpNet, left: &mut Vec<IpNet>) {
        let from = key(prefix);
        let to = (from.0, bits(prefix.broadcast()), u8::MAX);
        match self.0.range(from..=to).next() {
            None => left.push(prefix),
            Some(found) if *found == from => {}
            // Something is strictly inside, so there are two halves.
            Some(_) => {
                for half in prefix.subnets(prefix.prefix_len() + 1).into_iter().flatten() {
                    self.carve_inside(half, left);
                }
            }
        }
    }

    fn covers(&self, prefix: IpNet) -> bool {
        let mut left = Vec::new();
        self.carve(prefix, &mut left);
        left.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn segment(zone: &str, prefix: &str) -> Segment {
        Segment { prefix: net(prefix), zone: zone.to_owned() }
    }

    fn names(segments: &[Segment], exclude: &[&str]) -> Vec<String> {
        let exclude: Vec<IpNet> = exclude.iter().map(|prefix| net(prefix)).collect();
        units_of(segments, &exclude).keys().map(ToString::to_string).collect()
    }

    #[test]
    fn a_segment_becomes_pieces_of_at_most_256_addresses() {
        let cut = names(&[segment("any", "10.1.0.0/22")], &[]);
        assert_eq!(cut, ["any:10.1.0.0/24", "any:10.1.1.0/24", "any:10.1.2.0/24", "any:10.1.3.0/24"]);
        assert_eq!(names(&[segment("hq", "10.1.0.64/26")], &[]), ["hq:10.1.0.64/26"]);
        assert_eq!(names(&[segment("hq", "fd00::/119")], &[]), ["hq:fd00::/120", "hq:fd00::100/120"]);
        assert_eq!(units_of(&[segment("any", "10.0.0.0/8")], &[]).len(), 65_536);
    }

    #[test]
    fn overlaps_are_searched_once_and_zones_are_different_networks() {
        let nested = names(&[segment("any", "10.1.0.0/24"), segment("any", "10.1.0.128/25")], &[]);
        assert_eq!(nested, ["any:10.1.0.0/25", "any:10.1.0.128/25"]);
        let zones = names(&[segment("a", "10.1.0.0/24"), segment("b", "10.1.0.0/24")], &[]);
        assert_eq!(zones, ["a:10.1.0.0/24", "b:10.1.0.0/24"]);
        let named = names(&[segment("any", "10.1.0.0/23"), segment("b", "10.1.0.0/24")], &[]);
        assert_eq!(named, ["any:10.1.1.0/24", "b:10.1.0.0/24"]);
    }

    #[test]
    fn units_leave_out_no_host_of_their_segments() {
        use crate::extent::unit_hosts;
        use quire_proto::address::Target;
        let whole: BTreeSet<_> = Target::Prefix(net("10.1.0.0/22"), None).hosts().collect();
        assert!(whole.len() == 1_022 && whole.contains(&"10.1.1.255".parse().unwrap()));
        let carved = ["10.1.0.7/32", "10.1.1.0/32", "10.1.2.255/32", "10.1.3.128/31"];
        for inner in carved
            .into_iter()
            .flat_map(|inner| [("any", inner), ("b", inner)])
            .chain([("any", "10.1.0.0/22")])
        {
            let units = units_of(&[segment("any", "10.1.0.0/22"), segment(inner.0, inner.1)], &[]);
            let hosts =
                |unit: &UnitSpec| unit_hosts(unit.prefix, &unit.segment.to_string()).collect::<Vec<_>>();
            let all: Vec<_> = units.values().flat_map(hosts).collect();
            assert_eq!(all.len(), whole.len(), "{inner:?}: each once");
            assert_eq!(all.into_iter().collect::<BTreeSet<_>>(), whole, "{inner:?}");
        }
    }

    #[test]
    fn what_is_excluded_as_a_whole_drops_out() {
        let segments = [segment("any", "10.1.0.0/23")];
        assert_eq!(names(&segments, &["10.1.0.0/16"]), Vec::<String>::new());
        assert_eq!(names(&segments, &["10.1.0.0/25", "10.1.0.128/25"]), ["any:10.1.1.0/24"]);
        assert_eq!(names(&segments, &["10.1.0.0/25"]).len(), 2, "half a unit stays a unit");
    }

    #[test]
    fn found_segments_take_what_the_settings_leave() {
        let text = "[discovery]\nsegments = [\"10.1.0.0/24\", { prefix = \"10.2.0.0/24\", zone = \"b\" }]\n\
                    exclude = [\"10.6.0.0/24\"]";
        let settings = Settings::parse(text).unwrap();
        let found = Wanted {
            search: vec![
                segment("a", "10.1.0.0/23"),
                segment("a", "10.2.0.0/24"),
                segment("b", "10.2.0.0/24"),
                segment("a", "10.6.0.0/24"),
                segment("a", "fd00:1::/64"),
                segment("a", "fd00:1::7/128"),
                segment("b", "10.1.0.128/25"),
            ],
            leave: vec![segment("a", "10.1.1.128/25"), segment("b", "10.9.0.0/24")],
        };
        let cut: Vec<String> = units_with(&settings, &found).keys().map(ToString::to_string).collect();
        assert_eq!(
            cut,
            [
                "a:10.1.1.0/25",
                "a:10.2.0.0/24",
                "a:fd00:1::/64",
                "a:fd00:1::7/128",
                "any:10.1.0.0/24",
                "b:10.2.0.0/24"
            ]
        );
        assert_eq!(units_with(&settings, &Wanted::default()), units(&settings));
    }

    prop_compose! {
        /// Prefixes of a /16, so that they overlap.
        fn prefixes()(low in 0u32..65_536, len in 18u8..=32) -> IpNet {
            IpNet::V4(ipnet::Ipv4Net::new(Ipv4Addr::from(0x0a01_0000 | low), len).unwrap().trunc())
        }
    }

    proptest! {
        #[test]
        fn every_address_is_covered_once(
            wanted in proptest::collection::vec((prefixes(), 0usize..3), 0..8),
            exclude in proptest::collection::vec(prefixes(), 0..3),
            asked in proptest::collection::vec(0u32..65_536, 32),
        ) {
            let zones: [&str; 3] = ["any", "a", "b"];
            let segments: Vec<Segment> = wanted
                .iter()
                .map(|(prefix, zone)| Segment { prefix: *prefix, zone: zones[*zone].to_owned() })
                .collect();
            let units = units_of(&segments, &exclude);
            let starts = segments.iter().map(|s| bits(s.prefix.network()) as u32 & 0xffff);
            for low in asked.into_iter().chain(starts) {
                let address = std::net::IpAddr::V4(Ipv4Addr::from(0x0a01_0000 | low));
                let excluded = exclude.iter().any(|prefix| prefix.contains(&address));
                let within = |zone: &str| segments.iter().any(|s| s.zone == zone && s.prefix.contains(&address));
                for zone in zones {
                    let found = units.values().filter(|u| u.zone == zone && u.prefix.contains(&address)).count();
                    let left_to_others = zone == "any" && (within("a") || within("b"));
                    let due = within(zone) && !left_to_others;
                    prop_assert!(found <= 1, "{} is in {} units of {}", address, found, zone);
                    prop_assert!(due || found == 0, "{} was not asked for in {}", address, zone);
                    prop_assert!(!due || excluded || found == 1, "{} is missing in {}", address, zone);
                }
            }
            for (id, unit) in &units {
                prop_assert!(unit.prefix.prefix_len() >= 24 && unit.segment.contains(&unit.prefix));
                prop_assert_eq!(id.prefix(), Some(unit.prefix));
                prop_assert!(!exclude.iter().any(|prefix| prefix.contains(&unit.prefix)));
            }
        }
    }
}
