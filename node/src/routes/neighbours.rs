//! Whom this machine has spoken with lately on its own links: the kernel's ARP and ND tables, by netlink
//! (rtnetlink(7), RTM_GETNEIGH), because /proc has the one for IPv4 alone. Sends nothing to anybody.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use quire_proto::address::Mac;

/// Of linux/netlink.h and linux/rtnetlink.h.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
/// Of linux/neighbour.h: an address, its hardware address, and states in which somebody answered once.
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const ANSWERED: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;

/// Octets before the body of a message: length, type, flags, sequence number, port.
const HEADER: usize = 16;
/// Family, padding, interface, state, flags, type.
const NEIGHBOUR: usize = 12;

/// A dump comes in pages of at most 32 KB.
const PAGE: usize = 1 << 16;
/// Far more pages than the kernel's largest default table (1,024 entries for each family) fills.
const PAGES: usize = 1_024;
/// The kernel answers at once, or something is very wrong.
const PATIENCE_MS: i64 = 500;

/// Addresses that answered ARP or ND; empty where the kernel does not tell.
pub(crate) fn neighbours() -> BTreeSet<IpAddr> {
    dump().unwrap_or_else(|error| {
        tracing::debug!(%error, "the kernel's neighbours are not known");
        BTreeSet::new()
    })
}

fn dump() -> nix::Result<BTreeSet<IpAddr>> {
    let kernel = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::NetlinkRoute),
    )?;
    setsockopt(&kernel, sockopt::ReceiveTimeout, &TimeVal::milliseconds(PATIENCE_MS))?;
    sendto(kernel.as_raw_fd(), &request(), &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut found = BTreeSet::new();
    let mut page = vec![0; PAGE];
    for _ in 0..PAGES {
        let length = recv(kernel.as_raw_fd(), &mut page, MsgFlags::empty())?;
        if take(&page[..length], &mut found) {
            break;
        }
    }
    Ok(found)
}

/// All families, all interfaces.
fn request() -> Vec<u8> {
    let length = u32::try_from(HEADER + NEIGHBOUR).unwrap_or(0);
    let mut message = Vec::with_capacity(HEADER + NEIGHBOUR);
    message.extend(length.to_ne_bytes());
    message.extend(RTM_GETNEIGH.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.resize(HEADER + NEIGHBOUR, 0);
    message
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Takes the messages of a page; true at the end of the dump.
fn take(mut page: &[u8], found: &mut BTreeSet<IpAddr>) -> bool {
    while let Some(length) = page.get(..4).and_then(|octets| octets.try_into().ok()).map(u32::from_ne_bytes) {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(message) = page.get(..length).filter(|message| message.len() >= HEADER) else { return true };
        match u16_at(message, 4) {
            Some(NLMSG_DONE | NLMSG_ERROR) | None => return true,
            Some(RTM_NEWNEIGH) => found.extend(neighbour(&message[HEADER..])),
            Some(_) => {}
        }
        // Messages begin at multiples of four.
        page = page.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    false
}

fn neighbour(body: &[u8]) -> Option<IpAddr> {
    let state = u16_at(body, 8)?;
    let (mut address, mut answered) = (None, false);
    let mut rest = body.get(NEIGHBOUR..)?;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let value = rest.get(4..length)?;
        match kind {
            NDA_DST => address = ip(value),
            NDA_LLADDR => answered = Mac::new(value).is_some(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    address.filter(|_| answered && state & ANSWERED != 0)
}

fn ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut octets = Vec::new();
        octets.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
        octets.extend(kind.to_ne_bytes());
        octets.extend(value);
        octets.resize(octets.len().next_multiple_of(4), 0);
        octets
    }

    fn message(kind: u16, state: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
        let mut body = vec![0; NEIGHBOUR];
        body[8..10].copy_from_slice(&state.to_ne_bytes());
        body.extend(attributes.concat());
        let mut octets = u32::try_from(HEADER + body.len()).unwrap().to_ne_bytes().to_vec();
        octets.extend(kind.to_ne_bytes());
        octets.resize(HEADER, 0);
        octets.extend(body);
        octets
    }

    #[test]
    fn those_that_answered_are_found() {
        let mac = [0, 0x1b, 0xa9, 1, 2, 3];
        let entry = |address: &[u8], state, mac: &[u8]| {
            message(RTM_NEWNEIGH, state, &[attribute(NDA_DST, address), attribute(NDA_LLADDR, mac)])
        };
        let v6 = "fd00::7".parse::<Ipv6Addr>().unwrap();
        let page = [
            entry(&[10, 0, 0, 7], 0x04, &mac),
            entry(&[10, 0, 0, 8], 0x20, &mac),
            entry(&[10, 0, 0, 9], 0x02, &[0; 6]),
            message(RTM_NEWNEIGH, 0x01, &[attribute(NDA_DST, &[10, 0, 0, 10])]),
            entry(&v6.octets(), 0x02, &mac),
        ]
        .concat();
        let mut found = BTreeSet::new();
        assert!(!take(&page, &mut found));
        assert_eq!(found, [IpAddr::from([10, 0, 0, 7]), v6.into()].into());
        assert!(take(&message(NLMSG_DONE, 0, &[]), &mut found));
    }

    #[test]
    fn the_kernel_answers() {
        assert!(dump().is_ok());
    }

    proptest! {
        #[test]
        fn nonsense_ends(octets in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut found = BTreeSet::new();
            take(&octets, &mut found);
            let _ = neighbour(&octets);
            prop_assert!(found.len() <= octets.len());
        }
    }
}
