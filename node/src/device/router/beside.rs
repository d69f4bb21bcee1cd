//! The routers that a router sees beside it: LLDP's remote table (IEEE 802.1AB, LLDP-MIB) and Cisco's CDP cache
//! (CISCO-CDP-MIB). Only those that say they route; switches, phones and printers speak both protocols, too.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::answers::{Answers, number};
use super::super::mib;
use super::octets;
use crate::snmp::Value;

/// lldpRemSysCapEnabled, by time mark, local port and remote index: BITS, router(4).
const LLDP_CAPABILITIES: &[u32] = &[1, 0, 8802, 1, 1, 2, 1, 4, 1, 1, 12];
/// lldpRemManAddrIfSubtype, by the same three, then subtype and octets of the address: any column would do.
const LLDP_ADDRESS: &[u32] = &[1, 0, 8802, 1, 1, 2, 1, 4, 2, 1, 3];
/// cdpCacheAddressType, by ifIndex and device index: ip(1), ipv6(20).
const CDP_ADDRESS_TYPE: &[u32] = &[1, 3, 6, 1, 4, 1, 9, 9, 23, 1, 2, 1, 1, 3];
/// cdpCacheAddress, in network order.
const CDP_ADDRESS: &[u32] = &[1, 3, 6, 1, 4, 1, 9, 9, 23, 1, 2, 1, 1, 4];
/// cdpCacheCapabilities: four octets, the lowest bit is "router".
const CDP_CAPABILITIES: &[u32] = &[1, 3, 6, 1, 4, 1, 9, 9, 23, 1, 2, 1, 1, 9];

/// The columns of LLDP.
pub(super) const LLDP: [&[u32]; 2] = [LLDP_CAPABILITIES, LLDP_ADDRESS];
/// The columns of CDP.
pub(super) const CDP: [&[u32]; 3] = [CDP_ADDRESS_TYPE, CDP_ADDRESS, CDP_CAPABILITIES];

/// Addresses at which neighbours that route may be asked.
pub(super) fn routers(answers: &Answers) -> BTreeSet<IpAddr> {
    lldp(answers).into_iter().chain(cdp(answers)).collect()
}

/// One address of each neighbour would do, but which of them answers is not known.
fn lldp(answers: &Answers) -> Vec<IpAddr> {
    let route: BTreeMap<&[u32], bool> = answers
        .rows(LLDP_CAPABILITIES)
        .map(|(index, _, value)| (index, matches!(value, Value::OctetString(bits) if has_bit(bits, 4))))
        .collect();
    let rows = answers.rows(LLDP_ADDRESS);
    let addresses = rows.filter_map(|(index, _, _)| {
        let (who, address) = index.split_at_checked(3)?;
        // Without a word on what it is, it is no router.
        route.get(who).copied().unwrap_or(false).then(|| address_of(address)).flatten()
    });
    addresses.collect()
}

/// AddressFamilyNumbers (ipV4(1), ipV6(2)) and the octets; their count stands before them, but not everywhere.
fn address_of(index: &[u32]) -> Option<IpAddr> {
    let (family, rest) = index.split_first()?;
    let body = match (family, rest) {
        (1, [4, body @ ..]) if body.len() == 4 => body,
        (2, [16, body @ ..]) if body.len() == 16 => body,
        (_, body) => body,
    };
    match (family, body.len()) {
        (1, 4) => Some(Ipv4Addr::from(octets::<4>(body)?.0).into()),
        (2, 16) => Some(Ipv6Addr::from(octets::<16>(body)?.0).into()),
        (_, _) => None,
    }
}

/// BITS of RFC 2578 section 7.1.4: bit 0 is the highest of the first octet.
fn has_bit(bits: &[u8], bit: usize) -> bool {
    bits.get(bit / 8).is_some_and(|octet| octet & (0x80 >> (bit % 8)) != 0)
}

fn cdp(answers: &Answers) -> Vec<IpAddr> {
    let rows = answers.rows(CDP_ADDRESS);
    let addresses = rows.filter_map(|(index, _, value)| {
        let beside = |column: &[u32]| answers.get(&mib::oid(column).child(index));
        let Value::OctetString(address) = value else { return None };
        let routes = matches!(beside(CDP_CAPABILITIES), Some(Value::OctetString(c)) if c.last()? & 1 == 1);
        match (routes, beside(CDP_ADDRESS_TYPE).and_then(number)) {
            (true, Some(1)) => <[u8; 4]>::try_from(&address[..]).ok().map(IpAddr::from),
            (true, Some(20)) => <[u8; 16]>::try_from(&address[..]).ok().map(IpAddr::from),
            (_, _) => None,
        }
    });
    addresses.collect()
}
