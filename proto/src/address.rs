//! Hardware addresses, and the targets that people type.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ipnet::{IpNet, Ipv4Subnets};
use serde::{Serialize, Serializer};

/// An EUI-48 hardware address that can tell devices apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Six octets as ifPhysAddress gives them; `None` for all zeros, all ones and group addresses,
    /// which identify nothing.
    pub fn new(octets: &[u8]) -> Option<Mac> {
        let octets: [u8; 6] = octets.try_into().ok()?;
        let group = octets[0] & 1 == 1;
        (!group && octets != [0; 6]).then_some(Mac(octets))
    }

    /// The six octets.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is wrong with the text of a hardware address.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a hardware address: expected six octets in hexadecimal")]
pub struct BadMac(String);

impl FromStr for Mac {
    type Err = BadMac;

    /// Colons, dashes, dots, blanks or nothing between the digits.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits: String = text.chars().filter(|c| !matches!(c, ':' | '-' | '.' | ' ')).collect();
        let octets: Option<Vec<u8>> = (digits.len() == 12 && digits.is_ascii())
            .then(|| (0..12).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).ok()).collect())
            .flatten();
        octets.and_then(|octets| Mac::new(&octets)).ok_or_else(|| BadMac(text.to_owned()))
    }
}

/// What a person names as a place to look: a prefix, a range or one address, with an optional port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `10.1.0.0/16`; network and broadcast addresses of IPv4 prefixes up to /30 are not hosts.
    Prefix(IpNet, Option<u16>),
    /// `10.1.0.5-10.1.0.90` or `10.1.0.5-90`, both ends included.
    Range(Ipv4Addr, Ipv4Addr, Option<u16>),
    /// One address.
    Host(IpAddr, Option<u16>),
}

/// Addresses that are never contacted, in any of a target's forms but without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exclusion(pub Vec<IpNet>);

impl FromStr for Exclusion {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // A whole IPv6 prefix may be left out, though none can be swept.
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Exclusion(vec![net.trunc()]));
        }
        let target: Target = text.parse()?;
        if target.port().is_some() {
            return Err(BadTarget::Port(text.to_owned()));
        }
        Ok(Exclusion(match target {
            Target::Prefix(net, _) => vec![net],
            Target::Range(first, last, _) => Ipv4Subnets::new(first, last, 0).map(IpNet::V4).collect(),
            Target::Host(host, _) => vec![host.into()],
        }))
    }
}

/// What is wrong with a target.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadTarget {
    /// Not one of the three forms.
    #[error("`{0}` is not a target: expected 10.1.0.0/24, 10.1.0.5-90, 10.1.0.5 or one of them with :PORT")]
    Form(String),
    /// An exclusion of one port.
    #[error("`{0}` names a port: what is excluded is excluded on all of them; leave the port out")]
    Port(String),
    /// The end of a range lies before its start.
    #[error("`{0}` is an empty range: the end lies before the start")]
    EmptyRange(String),
    /// IPv6 prefixes that nobody can sweep.
    #[error(
        "`{0}` holds too many addresses to sweep: name IPv6 hosts one by one, or a prefix of /116 or longer"
    )]
    TooLarge(String),
}

/// The largest IPv6 prefix that is swept address by address.
const MIN_V6_PREFIX: u8 = 116;

impl Target {
    /// Addresses that are hosts, in order.
    pub fn hosts(&self) -> Box<dyn Iterator<Item = IpAddr> + Send> {
        match *self {
            Target::Prefix(net, _) => Box::new(net.hosts()),
            Target::Range(first, last, _) => {
                Box::new((u32::from(first)..=u32::from(last)).map(|n| IpAddr::V4(Ipv4Addr::from(n))))
            }
            Target::Host(host, _) => Box::new(std::iter::once(host)),
        }
    }

    /// How many addresses [`Target::hosts`] yields.
    pub fn count(&self) -> u64 {
        match *self {
            Target::Prefix(IpNet::V4(net), _) => {
                let all = 1u64 << (32 - net.prefix_len());
                if net.prefix_len() >= 31 { all } else { all - 2 }
            }
            Target::Prefix(IpNet::V6(net), _) => 1u64 << (128 - net.prefix_len()).min(63),
            Target::Range(first, last, _) => u64::from(u32::from(last) - u32::from(first)) + 1,
            Target::Host(..) => 1,
        }
    }

    /// The port named with it.
    pub fn port(&self) -> Option<u16> {
        match *self {
            Target::Prefix(_, port) | Target::Range(_, _, port) | Target::Host(_, port) => port,
        }
    }
}

impl FromStr for Target {
    type Err = BadTarget;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || BadTarget::Form(text.to_owned());
        if let Ok(at) = text.parse::<SocketAddr>() {
            return Ok(Target::Host(at.ip(), Some(at.port())));
        }
        if let Ok(host) = text.parse::<IpAddr>() {
            return Ok(Target::Host(host, None));
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return prefix(net, None, text);
        }
        let (body, port) = match text.rsplit_once(':') {
            Some((body, port)) => (body, Some(port.parse::<u16>().map_err(|_| bad())?)),
            None => (text, None),
        };
        if let Ok(net) = body.trim_start_matches('[').trim_end_matches(']').parse::<IpNet>() {
            return prefix(net, port, text);
        }
        let (first, last) = body.split_once('-').ok_or_else(bad)?;
        let first: Ipv4Addr = first.parse().map_err(|_| bad())?;
        let last: Ipv4Addr = match last.parse::<u8>() {
            Ok(octet) => {
                let [a, b, c, _] = first.octets();
                Ipv4Addr::new(a, b, c, octet)
            }
            Err(_) => last.parse().map_err(|_| bad())?,
        };
        if last < first {
            return Err(BadTarget::EmptyRange(text.to_owned()));
        }
        Ok(Target::Range(first, last, port))
    }
}

fn prefix(net: IpNet, port: Option<u16>, text: &str) -> Result<Target, BadTarget> {
    match net {
        IpNet::V6(v6) if v6.prefix_len() < MIN_V6_PREFIX => Err(BadTarget::TooLarge(text.to_owned())),
        _ => Ok(Target::Prefix(net.trunc(), port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn targets_in_every_form() {
        let count = |text: &str| text.parse::<Target>().unwrap().count();
        assert_eq!(count("127.2.0.0/24"), 254);
        assert_eq!(count("127.2.0.0/24:1161"), 254);
        assert_eq!(count("127.2.0.0/31"), 2);
        assert_eq!(count("127.2.0.7"), 1);
        assert_eq!(count("127.2.0.7-9"), 3);
        assert_eq!(count("127.2.0.250-127.2.1.5:161"), 12);
        assert_eq!("127.2.0.7:1161".parse::<Target>().unwrap().port(), Some(1161));
        assert_eq!("[fd00::7]:1161".parse::<Target>().unwrap().port(), Some(1161));
        for bad in ["", "x", "10.0.0.0/33", "10.0.0.9-3", "10.0.0.1:99999", "fd00::/64", "10.0.0.1-x"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn exclusions_take_every_form_but_a_port() {
        let nets = |text: &str| {
            let Exclusion(nets) = text.parse().unwrap();
            nets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(nets("127.2.0.9/24"), ["127.2.0.0/24"]);
        assert_eq!(nets("127.2.0.7"), ["127.2.0.7/32"]);
        assert_eq!(nets("127.2.0.7-10"), ["127.2.0.7/32", "127.2.0.8/31", "127.2.0.10/32"]);
        assert_eq!(nets("fd00::/64"), ["fd00::/64"], "no sweep, so no bound");
        assert_eq!("127.2.0.7:161".parse::<Exclusion>(), Err(BadTarget::Port("127.2.0.7:161".to_owned())));
        assert!("x".parse::<Exclusion>().is_err());
    }

    #[test]
    fn macs_that_identify_nothing_are_refused() {
        assert_eq!("00-20-6B-4A-F3-25".parse::<Mac>().unwrap().to_string(), "00:20:6b:4a:f3:25");
        assert!(Mac::new(&[0; 6]).is_none());
        assert!(Mac::new(&[0xff; 6]).is_none());
        assert!("00:20:6b:4a:f3".parse::<Mac>().is_err());
        assert!("äöüäöü".parse::<Mac>().is_err());
    }

    proptest! {
        #[test]
        fn parsing_never_panics(text in "\\PC{0,40}") {
            let _ = text.parse::<Target>();
            let _ = text.parse::<Mac>();
        }

        #[test]
        fn count_agrees_with_hosts(a in any::<u32>(), len in 20u8..=32) {
            let net = ipnet::Ipv4Net::new(Ipv4Addr::from(a), len).unwrap();
            let target = Target::Prefix(IpNet::V4(net.trunc()), None);
            prop_assert_eq!(target.count(), target.hosts().count() as u64);
        }
    }
}
