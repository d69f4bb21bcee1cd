//! What the kernel knows of this machine's links and routes, read without a packet being sent.
//!
//! Changes nothing, and decides nothing: whether a link is worth a sweep is `explore`'s business, except that links
//! which can never hold a printer (loopback, bridges of containers and virtual machines) are left out of [`own_view`].

pub(crate) mod distance;
mod neighbours;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use quire_coordinator::explore::{self, MAX_NEIGHBOURS, RouterView};

pub(crate) use neighbours::neighbours;

/// Routes that are read of the kernel; a machine with more is a router of the internet.
const MOST_ROUTES: usize = 4_096;

/// The prefixes on this machine's own links, loopback included.
pub(crate) fn links() -> Vec<IpNet> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    interfaces.filter_map(|interface| network(&interface)).map(|net| net.trunc()).collect()
}

/// This machine as a router at distance 0: addresses and links that may hold printers, and its gateways.
pub(crate) fn own_view() -> RouterView {
    let interfaces = getifaddrs().into_iter().flatten().filter(|interface| {
        let up = interface.flags.contains(InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING);
        up && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK) && !is_inside(&interface.interface_name)
    });
    let own: Vec<IpNet> = interfaces.filter_map(|interface| network(&interface)).collect();
    let text = |path| std::fs::read_to_string(path).unwrap_or_default();
    let (v4, v6) = (text("/proc/net/route"), text("/proc/net/ipv6_route"));
    let routes = v4_routes(&v4).chain(v6_routes(&v6));
    RouterView {
        forwarding: None,
        addresses: own.iter().map(IpNet::addr).collect(),
        attached: own.iter().map(IpNet::trunc).collect(),
        routes: routes.take(MOST_ROUTES).collect(),
        adjacent: BTreeSet::new(),
        neighbours: neighbours().into_iter().take(MAX_NEIGHBOURS).collect(),
    }
}

/// On this machine every bridge of this kind of name is one of containers; on a router `br-lan` is the LAN.
fn is_inside(interface: &str) -> bool {
    explore::is_inside(interface) || interface.starts_with("br-")
}

/// Address and prefix length.
fn network(interface: &InterfaceAddress) -> Option<IpNet> {
    let address = ip(interface.address.as_ref()?)?;
    let mask = ip(interface.netmask.as_ref()?)?;
    match (address, mask) {
        (IpAddr::V4(address), IpAddr::V4(mask)) => Some(Ipv4Net::with_netmask(address, mask).ok()?.into()),
        (IpAddr::V6(address), IpAddr::V6(mask)) => Some(Ipv6Net::with_netmask(address, mask).ok()?.into()),
        _ => None,
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    address
        .as_sockaddr_in()
        .map(|v4| IpAddr::V4(v4.ip()))
        .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
}

/// Flags of both files (linux/route.h).
const RTF_UP: u32 = 1;
const RTF_GATEWAY: u32 = 2;
const RTF_REJECT: u32 = 0x200;

fn leads_on(flags: &str) -> bool {
    u32::from_str_radix(flags, 16)
        .is_ok_and(|flags| flags & (RTF_UP | RTF_GATEWAY | RTF_REJECT) == RTF_UP | RTF_GATEWAY)
}

/// `/proc/net/route`: Iface Destination Gateway Flags RefCnt Use Metric Mask ..., addresses in the machine's octet order.
fn v4_routes(text: &str) -> impl Iterator<Item = (IpNet, IpAddr)> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
    text.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, to, next, flags, _, _, _, mask, ..] = fields[..] else { return None };
        if !leads_on(flags) || is_inside(interface) {
            return None;
        }
        let to = Ipv4Net::with_netmask(address(to)?, address(mask)?).ok()?;
        Some((to.trunc().into(), address(next)?.into()))
    })
}

/// `/proc/net/ipv6_route`: destination, length, source, length, next hop, metric, counts, flags, interface; all in hex.
fn v6_routes(text: &str) -> impl Iterator<Item = (IpNet, IpAddr)> {
    let address = |hex: &str| u128::from_str_radix(hex, 16).ok().map(Ipv6Addr::from);
    text.lines().filter_map(move |line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [to, length, _, _, next, _, _, _, flags, interface] = fields[..] else { return None };
        if !leads_on(flags) || is_inside(interface) {
            return None;
        }
        let to = Ipv6Net::new(address(to)?, u8::from_str_radix(length, 16).ok()?).ok()?;
        Some((to.trunc().into(), address(next)?.into()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_understood() {
        let v4 = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                  eth0\t00000000\t01644D0A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                  eth0\t00644D0A\t00000000\t0001\t0\t0\t0\tFCFFFFFF\t0\t0\t0\n\
                  docker0\t0000120A\t01644D0A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
                  eth1\t0000020A\t02644D0A\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0\nbroken\n";
        let found: Vec<(String, String)> =
            v4_routes(v4).map(|(to, next)| (to.to_string(), next.to_string())).collect();
        if cfg!(target_endian = "little") {
            let expected = [("0.0.0.0/0", "10.77.100.1"), ("10.2.0.0/16", "10.77.100.2")];
            assert_eq!(found, expected.map(|(to, next)| (to.to_owned(), next.to_owned())));
        }
        let zero = "0".repeat(32);
        let v6 = format!(
            "fd000002{z} 40 {zero} 00 fd000001{y}9 00000100 00000001 00000000 00000003 eth0\n\
             fe80{x} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001 eth0\n\
             {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200 lo\nfd 40\n",
            z = "0".repeat(24),
            y = "0".repeat(23),
            x = "0".repeat(28),
        );
        let found: Vec<(IpNet, IpAddr)> = v6_routes(&v6).collect();
        assert_eq!(found, [("fd00:2::/64".parse().unwrap(), "fd00:1::9".parse().unwrap())]);
    }

    #[test]
    fn loopback_is_a_link_but_never_explored() {
        let loopback: IpNet = "127.0.0.0/8".parse().unwrap();
        assert!(links().contains(&loopback), "{:?}", links());
        assert!(!own_view().attached.contains(&loopback));
    }
}
