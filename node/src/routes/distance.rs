//! How many routers lie before an IPv4 address, measured where no router tells its tables: datagrams whose time to
//! live grows by one, to ports where nobody listens, until ICMP says that they arrived instead of "time exceeded".
//!
//! Needs no privilege: the kernel hands the ICMP messages over by IP_RECVERR. [`Search`] decides and is sans-IO;
//! [`measure`] blocks and belongs on a thread that may. At most [`MOST_PACKETS`] an address, 20 a second.
//! Never guesses: a loop, a firewall or a translated answer end in "not known".

use std::collections::BTreeSet;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, setsockopt, sockopt::Ipv4RecvErr,
};

/// Datagrams to one address: 12 routers and two tries for some.
pub(crate) const MOST_PACKETS: u32 = 24;
/// Distances with two silent tries in a row that end the search; an address that is not there costs six packets more
/// than the routers before it.
const SILENT: u32 = 3;
const TRIES: u32 = 2;
/// As the settings' largest `hops`.
const MOST_HOPS: u32 = 32;
/// Six of these are longer than the three seconds after which a router gives up on ARP and says "host unreachable".
const WAIT: Duration = Duration::from_millis(700);
/// At most 20 datagrams a second.
const PAUSE: Duration = Duration::from_millis(50);
/// Traceroute's ports since 1987: nobody listens there, and the port tells which datagram an ICMP message is about.
const FIRST_PORT: u16 = 33_434;

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// ICMP time exceeded about the datagram of this time to live.
    Exceeded { ttl: u32, from: IpAddr },
    /// Port unreachable, or a datagram, from the address itself.
    Arrived { ttl: u32 },
    /// Host unreachable.
    NoHost { from: IpAddr },
    /// Any other ICMP: prohibited, no network, or a port unreachable from somebody else.
    Refused,
    /// Nothing came.
    Silence,
}

/// One address being measured.
#[derive(Debug)]
struct Search {
    ttl: u32,
    tries: u32,
    silent: u32,
    sent: u32,
    last: Option<(u32, IpAddr)>,
    seen: BTreeSet<IpAddr>,
    end: Option<Option<u32>>,
}

impl Search {
    fn new() -> Self {
        Search { ttl: 1, tries: 0, silent: 0, sent: 0, last: None, seen: BTreeSet::new(), end: None }
    }

    /// The time to live of the next datagram; `None` at the end.
    fn poll(&mut self) -> Option<u32> {
        let more = self.end.is_none() && self.sent < MOST_PACKETS && self.ttl <= MOST_HOPS + 1;
        self.sent += u32::from(more);
        more.then_some(self.ttl)
    }

    fn handle(&mut self, heard: Heard) {
        match heard {
            Heard::Exceeded { ttl, from } if ttl == self.ttl => {
                self.last = Some((ttl, from));
                if self.seen.insert(from) {
                    self.further();
                    self.silent = 0;
                } else {
                    // The same router again: the route goes in circles.
                    self.end = Some(None);
                }
            }
            Heard::Arrived { ttl } => self.end = Some(Some(ttl - 1)),
            // Only the router on the address's own link can know that it is not there.
            Heard::NoHost { from } => {
                self.end = Some(self.last.filter(|(_, last)| *last == from).map(|(ttl, _)| ttl));
            }
            Heard::Refused => self.end = Some(None),
            // A late answer about an earlier datagram says nothing new.
            Heard::Exceeded { .. } | Heard::Silence => self.miss(),
        }
    }

    fn further(&mut self) {
        self.ttl += 1;
        self.tries = 0;
    }

    fn miss(&mut self) {
        self.tries += 1;
        if self.tries >= TRIES {
            self.further();
            self.silent += 1;
            if self.silent >= SILENT {
                self.end = Some(None);
            }
        }
    }

    fn finish(self) -> Option<u32> {
        self.end.flatten()
    }
}

/// Whom to send datagrams to where no device is known: addresses in the middle, where routers rarely are.
pub(crate) fn candidates(net: Ipv4Net, exclude: &[IpNet]) -> Vec<Ipv4Addr> {
    /// Addresses of one segment that are measured.
    const MOST: usize = 2;
    let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
    let middle = first + (last - first) / 2;
    let hosts = (middle..=last).take(64).map(Ipv4Addr::from);
    // Network and broadcast addresses are no hosts, but of two addresses both are.
    let is_host = |ip: &Ipv4Addr| net.prefix_len() >= 31 || (*ip != net.network() && *ip != net.broadcast());
    let allowed = |ip: &Ipv4Addr| !exclude.iter().any(|prefix| prefix.contains(&IpAddr::V4(*ip)));
    hosts.filter(is_host).filter(allowed).take(MOST).collect()
}

/// Routers before the furthest of some addresses of one segment; `None` where none of them could be measured. The
/// furthest, because one of them may be the last router itself, which is nearer by one.
///
/// # Errors
/// When the socket fails; unreachable networks are no errors.
pub(crate) fn measure(addresses: &[Ipv4Addr]) -> io::Result<Option<u32>> {
    let mut furthest = None;
    for address in addresses {
        furthest = furthest.max(measure_one(*address)?);
    }
    Ok(furthest)
}

fn measure_one(to: Ipv4Addr) -> io::Result<Option<u32>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    setsockopt(&socket, Ipv4RecvErr, &true)?;
    socket.set_read_timeout(Some(WAIT))?;
    let mut search = Search::new();
    while let Some(ttl) = search.poll() {
        socket.set_ttl(ttl)?;
        let port = FIRST_PORT + u16::try_from(ttl).unwrap_or(0);
        // An ICMP message about an earlier datagram may surface here; it is in the queue, too.
        if let Err(error) = socket.send_to(&[0; 8], SocketAddrV4::new(to, port)) {
            tracing::trace!(%to, %error, "an earlier error surfaced");
        }
        search.handle(listen(&socket, to)?);
        std::thread::sleep(PAUSE);
    }
    Ok(search.finish())
}

fn listen(socket: &UdpSocket, to: Ipv4Addr) -> io::Result<Heard> {
    // Wakes for a datagram, for an ICMP message (as the socket's error), or at the timeout.
    if let Ok((_, from)) = socket.recv_from(&mut [0; 64])
        && from.ip() == IpAddr::V4(to)
    {
        return Ok(Heard::Arrived { ttl: u32::from(from.port().saturating_sub(FIRST_PORT)).max(1) });
    }
    let mut octets = [0; 64];
    let mut parts = [IoSliceMut::new(&mut octets)];
    let mut space = nix::cmsg_space!(nix::libc::sock_extended_err, nix::libc::sockaddr_in);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let message = match recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
        Ok(message) => message,
        Err(nix::errno::Errno::EAGAIN) => return Ok(Heard::Silence),
        Err(error) => return Err(error.into()),
    };
    let ttl = message.address.map_or(0, |asked| u32::from(asked.port().saturating_sub(FIRST_PORT)));
    let icmp = message.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4RecvErr(error, Some(from)) => {
            Some((error.ee_origin, error.ee_type, error.ee_code, SockaddrIn::from(from).ip()))
        }
        _ => None,
    });
    /// SO_EE_ORIGIN_ICMP of linux/errqueue.h.
    const ICMP: u8 = 2;
    Ok(match icmp {
        // RFC 792: time exceeded in transit; port and host unreachable.
        Some((ICMP, 11, 0, from)) => Heard::Exceeded { ttl, from: from.into() },
        Some((ICMP, 3, 3, from)) if from == to && ttl > 0 => Heard::Arrived { ttl },
        Some((ICMP, 3, 1, from)) => Heard::NoHost { from: from.into() },
        Some(_) => Heard::Refused,
        None => Heard::Silence,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What stands where on the way.
    #[derive(Clone, Copy, Debug)]
    enum Stop {
        Router(u8),
        Silent,
    }

    fn ip(n: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, n).into()
    }

    fn run(way: &[Stop], at_the_end: Heard) -> Option<u32> {
        let mut search = Search::new();
        while let Some(ttl) = search.poll() {
            search.handle(match way.get(ttl as usize - 1) {
                Some(Stop::Router(n)) => Heard::Exceeded { ttl, from: ip(*n) },
                Some(Stop::Silent) => Heard::Silence,
                None => match at_the_end {
                    Heard::Arrived { .. } => Heard::Arrived { ttl },
                    other => other,
                },
            });
        }
        search.finish()
    }

    #[test]
    fn known_ways() {
        let chain = [Stop::Router(1), Stop::Router(2)];
        let arrived = Heard::Arrived { ttl: 0 };
        assert_eq!(run(&chain, arrived), Some(2));
        assert_eq!(run(&[Stop::Router(1), Stop::Silent, Stop::Router(3)], arrived), Some(3));
        assert_eq!(run(&chain, Heard::NoHost { from: ip(2) }), Some(2), "the last router has no such host");
        assert_eq!(run(&chain, Heard::NoHost { from: ip(1) }), None, "a router before it cannot know");
        assert_eq!(run(&chain, Heard::Silence), None);
        assert_eq!(run(&chain, Heard::Refused), None);
        assert_eq!(run(&[Stop::Router(1), Stop::Router(2), Stop::Router(1)], arrived), None, "a loop");
        assert_eq!(run(&[], arrived), Some(0));
    }

    #[test]
    fn candidates_are_hosts_in_the_middle() {
        let of = |net: &str, exclude: &[IpNet]| candidates(net.parse().unwrap(), exclude);
        let at = |n: u8| Ipv4Addr::new(10, 0, 0, n);
        assert_eq!(of("10.0.0.0/24", &[]), [at(127), at(128)]);
        assert_eq!(of("10.0.0.0/24", &["10.0.0.127/32".parse().unwrap()]), [at(128), at(129)]);
        assert_eq!(of("10.0.0.0/30", &[]), [at(1), at(2)]);
        assert_eq!(of("10.0.0.0/31", &[]), [at(0), at(1)]);
        assert!(of("10.0.0.0/24", &["10.0.0.0/8".parse().unwrap()]).is_empty());
    }

    #[test]
    fn loopback_is_no_router_away() {
        assert_eq!(measure(&[Ipv4Addr::new(127, 0, 0, 1)]).unwrap(), Some(0));
    }

    proptest! {
        #[test]
        fn every_search_ends_in_time(
            heard in prop::collection::vec((0u8..5, 0u32..40, any::<u8>()), 1..60),
        ) {
            let mut search = Search::new();
            let mut sent = 0;
            while let Some(ttl) = search.poll() {
                let (kind, other, from) = heard[sent as usize % heard.len()];
                search.handle(match kind {
                    0 => Heard::Exceeded { ttl, from: ip(from) },
                    1 => Heard::Exceeded { ttl: other, from: ip(from) },
                    2 => Heard::Silence,
                    3 => Heard::NoHost { from: ip(from) },
                    _ => Heard::Arrived { ttl },
                });
                sent += 1;
                prop_assert!(sent <= MOST_PACKETS);
            }
            prop_assert!(search.finish().is_none_or(|hops| hops <= MOST_HOPS));
        }
    }
}
