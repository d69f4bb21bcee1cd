//! How far segments lie from nodes, and what a node may send: arithmetic on what the shell measured.
//!
//! Measures nothing itself and believes no router: routes and tables are the shell's evidence.

use std::collections::BTreeMap;

use ipnet::IpNet;
use quire_proto::id::NodeId;

/// One node's way to one segment, as it last measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Routers in between; `None` where nobody could tell.
    pub hops: Option<u32>,
    /// False only where it is known that nothing comes back.
    pub reachable: bool,
}

/// What every node reported, by the operator's segment. Nodes that reported nothing are not in it.
pub type ReachMap = BTreeMap<IpNet, BTreeMap<NodeId, Reach>>;

/// 0 when the whole segment lies on one of the node's own links; otherwise own links say nothing.
pub fn hops_from_links(own: &[IpNet], segment: IpNet) -> Option<u32> {
    own.iter().any(|link| link.contains(&segment)).then_some(0)
}

/// One node's part of a zone's packets a second; `None` is unlimited.
///
/// The parts of all alive nodes of a zone sum to the rate exactly. Between a node's death and the
/// moment its unit's new owner hears of it the sum stays below the rate; a minority that is cut off
/// keeps its old part, so a zone split in two may see up to twice the rate, never more.
pub fn share(rate: u32, alive_in_zone: usize) -> Option<f64> {
    let nodes = u32::try_from(alive_in_zone.max(1)).unwrap_or(u32::MAX);
    (rate > 0).then(|| f64::from(rate) / f64::from(nodes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn own_links_are_zero_hops_away() {
        let own = ["10.1.0.0/16".parse().unwrap(), "fd00::/64".parse().unwrap()];
        assert_eq!(hops_from_links(&own, "10.1.4.0/24".parse().unwrap()), Some(0));
        assert_eq!(hops_from_links(&own, "10.1.0.0/16".parse().unwrap()), Some(0));
        assert_eq!(hops_from_links(&own, "fd00::7/128".parse().unwrap()), Some(0));
        assert_eq!(hops_from_links(&own, "10.0.0.0/12".parse().unwrap()), None, "most of it lies elsewhere");
        assert_eq!(hops_from_links(&own, "10.2.0.0/24".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn shares_never_exceed_the_rate(rate in 0u32..1_000_000, nodes in 0usize..200) {
            match share(rate, nodes) {
                None => prop_assert_eq!(rate, 0),
                Some(part) => {
                    let all = part * nodes.max(1) as f64;
                    prop_assert!(part > 0.0 && (all - f64::from(rate)).abs() < 1e-6 * f64::from(rate));
                }
            }
        }
    }
}
