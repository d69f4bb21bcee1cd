//! The rule that says which found segments are searched without anybody's word, and which addresses are asked at all.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Bounds;

/// Shorter IPv4 prefixes hold more than a million addresses: proposed, and never swept without being named.
pub const LARGEST_V4_PREFIX: u8 = 12;

/// How names of interfaces begin that lead to containers and virtual machines inside a machine. A default route into
/// such a bridge has made sweeps of other products last for hours. The `veth` ends of containers carry no prefix
/// themselves; one that does is a cable like any other.
const INSIDE: [&str; 8] = ["docker", "virbr", "cni", "podman", "lxcbr", "lxdbr", "flannel", "vmnet"];

/// True for the name of an interface that leads inside the machine that has it.
pub fn is_inside(interface: &str) -> bool {
    // Docker names its bridges by the network's id. `br-lan` is the LAN of half of all small routers.
    let id = interface.strip_prefix("br-").unwrap_or_default();
    let docker = id.len() == 12 && id.bytes().all(|octet| octet.is_ascii_hexdigit());
    docker || INSIDE.iter().any(|name| interface.starts_with(name))
}

/// Which found segments are searched without being asked about: `[discovery] accept` of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// None: the operator decides on each.
    Ask,
    /// Private prefixes (RFC 1918, RFC 4193), and own links that are not public.
    #[default]
    Private,
    /// Public ones as well.
    All,
}

impl Accept {
    /// As the settings write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Accept::Ask => "ask",
            Accept::Private => "private",
            Accept::All => "all",
        }
    }
}

/// What becomes of a found segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// May be swept without asking anybody.
    Accepted,
    /// IPv6 prefixes are not swept; the known addresses in them are asked.
    Ipv6,
    /// Larger than a /12.
    TooLarge,
    /// Neither in the private ranges nor named by the operator.
    NotPrivate,
    /// All of it is excluded.
    Excluded,
    /// Behind a router that does not answer, so the distance is only known to be this or more.
    DistanceUnknown,
    /// The operator decides on every segment.
    Asks,
}

impl Verdict {
    /// True where the segment is searched, in whichever way.
    pub fn is_searched(self) -> bool {
        matches!(self, Verdict::Accepted | Verdict::Ipv6)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::Accepted => "swept",
            Verdict::Ipv6 => "not swept: IPv6, only its known neighbours are asked",
            Verdict::TooLarge => "not swept: larger than a /12, name it to sweep it",
            Verdict::NotPrivate => "not swept: not a private prefix, name it to sweep it",
            Verdict::Excluded => "not swept: excluded",
            Verdict::DistanceUnknown => "not swept: its last router does not answer",
            Verdict::Asks => "not swept: waits for a decision",
        })
    }
}

/// What is known of a segment beside its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evidence {
    /// It lies on a link of the node's own.
    pub own_link: bool,
    /// Its distance is more than a lower bound.
    pub distance_known: bool,
}

/// What becomes of a segment.
pub fn verdict(prefix: IpNet, evidence: Evidence, bounds: &Bounds) -> Verdict {
    let within = |prefixes: &[IpNet]| prefixes.iter().any(|other| other.contains(&prefix));
    if within(&bounds.exclude) {
        return Verdict::Excluded;
    }
    if !evidence.distance_known {
        return Verdict::DistanceUnknown;
    }
    let named = within(&bounds.given);
    let at_home = is_private_net(prefix) || (evidence.own_link && !is_public(prefix));
    match (prefix, bounds.accept) {
        (IpNet::V4(_), _) if named => Verdict::Accepted,
        (IpNet::V4(v4), _) if v4.prefix_len() < LARGEST_V4_PREFIX => Verdict::TooLarge,
        (_, Accept::Ask) if !named => Verdict::Asks,
        (_, Accept::Private) if !named && !at_home => Verdict::NotPrivate,
        (IpNet::V4(_), _) => Verdict::Accepted,
        (IpNet::V6(_), _) => Verdict::Ipv6,
    }
}

fn v4(a: u8, b: u8, c: u8, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, 0), len)
}

/// RFC 1918 and RFC 4193. Shared space (RFC 6598) belongs to a provider.
fn is_private_net(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(net) => [v4(10, 0, 0, 8), v4(172, 16, 0, 12), v4(192, 168, 0, 16)]
            .iter()
            .any(|range| range.contains(&net)),
        IpNet::V6(net) => net.addr().is_unique_local() && net.prefix_len() >= 7,
    }
}

/// A prefix that the internet routes to somebody: neither private, shared, for tests nor for documents.
fn is_public(prefix: IpNet) -> bool {
    match prefix {
        IpNet::V4(net) => {
            let special = [
                v4(100, 64, 0, 10),
                v4(192, 0, 2, 24),
                v4(198, 18, 0, 15),
                v4(198, 51, 100, 24),
                v4(203, 0, 113, 24),
            ];
            !is_private_net(prefix) && !special.iter().any(|range| range.contains(&net))
        }
        IpNet::V6(net) => {
            let documents = Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32);
            !is_private_net(prefix) && !documents.contains(&net)
        }
    }
}

/// RFC 1918 and unique local IPv6 addresses (RFC 4193).
pub(super) fn is_private(ip: IpAddr) -> bool {
    is_private_net(IpNet::from(ip))
}

/// An address that one device may have; link-local ones mean another link from here.
pub(super) fn is_host(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => {
            !(v4.is_unspecified()
                || v4.is_loopback()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_unspecified() || v6.is_loopback() || v6.is_multicast() || v6.is_unicast_link_local())
        }
    }
}

/// A prefix that several devices may share: no loopback, no single address, no default route.
pub(super) fn is_segment(prefix: &IpNet) -> bool {
    prefix.prefix_len() > 0 && prefix.prefix_len() < prefix.max_prefix_len() && is_host(prefix.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(prefix: &str, own_link: bool, accept: Accept) -> Verdict {
        let evidence = Evidence { own_link, distance_known: true };
        verdict(prefix.parse().unwrap(), evidence, &Bounds { accept, ..Bounds::default() })
    }

    #[test]
    fn who_is_accepted_by_whom() {
        use Accept::{All, Ask, Private};
        for (prefix, own_link, accept, expected) in [
            ("10.1.0.0/16", false, Private, Verdict::Accepted),
            ("172.16.0.0/12", false, Private, Verdict::Accepted),
            ("10.0.0.0/11", true, All, Verdict::TooLarge),
            ("8.8.8.0/24", true, Private, Verdict::NotPrivate),
            ("8.8.8.0/24", false, All, Verdict::Accepted),
            ("100.64.3.0/24", true, Private, Verdict::Accepted),
            ("100.64.3.0/24", false, Private, Verdict::NotPrivate),
            ("10.1.0.0/16", true, Ask, Verdict::Asks),
            ("fd00:1::/64", false, Private, Verdict::Ipv6),
            ("2a00:1::/64", true, Private, Verdict::NotPrivate),
            ("2a00:1::/64", true, All, Verdict::Ipv6),
            ("2001:db8::/64", true, Private, Verdict::Ipv6),
        ] {
            assert_eq!(judge(prefix, own_link, accept), expected, "{prefix} {own_link} {accept:?}");
        }
    }

    #[test]
    fn bridges_into_the_machine_are_no_links() {
        assert!(["docker0", "br-0123456789ab", "virbr0", "cni0"].iter().all(|name| is_inside(name)));
        assert!(["eth0", "bridge1", "br-lan", "vlan10", "veth0", ""].iter().all(|name| !is_inside(name)));
    }
}
