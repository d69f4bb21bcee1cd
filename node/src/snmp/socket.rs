//! The engine's sockets: one for IPv4, one for IPv6, for all peers. The only file of this room that touches the
//! network; it looks into no datagram and keeps no packet that was sent.
//!
//! Packets go out by `sendmmsg`, [`BATCH`] a call: 4.8 us of CPU a packet against 5.5 us one by one, measured with
//! `examples/sweep_rate.rs` over loopback, where nearly all of it is the kernel's. `sendmmsg` is
//! rustix's, because nix's reads uninitialised addresses when the number of packets sent is counted. ICMP errors
//! come from the sockets' error queues (IP_RECVERR), where the kernel says whom they are about.
//!
//! Packets are taken by `recvmmsg`, as many a call. The runtime is told of arrivals only while somebody wants to be woken by
//! each: where very many answers are due, being woken costs more than all else ([`super::rhythm`]).

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, MultiHeaders, SockaddrIn, SockaddrIn6, SockaddrLike, recvmmsg, recvmsg,
    setsockopt, sockopt,
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::engine::Icmp;

/// Packets a system call, and datagrams that one socket may deliver before the others have their turn.
pub(super) const BATCH: usize = 64;
/// Datagrams a system call where packets wake.
const WOKEN: usize = 16;
/// Times that one packet is tried while the kernel answers with ICMP errors that earlier ones caused.
const SEND_TRIES: usize = 8;
/// What to ask of the kernel for sending, octets: a small packet counts for about 1 KB until its interface has it.
const SEND_BUFFER: usize = 4 << 20;
/// The largest UDP payload.
const LARGEST: usize = 65_535;

pub(super) struct Sockets {
    v4: Port,
    v6: Option<Port>,
    /// Room for [`BATCH`] datagrams of [`LARGEST`]; what was never written to takes no memory.
    room: Vec<u8>,
}

/// One socket, and the runtime's eye on it.
struct Port {
    socket: Socket,
    /// The same socket under another descriptor, so that it can be closed alone.
    watch: Option<UdpSocket>,
}

/// What was received.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    /// Datagrams and errors.
    pub(super) count: usize,
    /// There was nothing more at that moment.
    pub(super) all: bool,
}

/// Packets on their way into the kernel; at most [`BATCH`], their buffers used again and again.
#[derive(Default)]
pub(super) struct Batch {
    packets: Vec<(SocketAddr, Vec<u8>)>,
    filled: usize,
    sent: usize,
}

impl Batch {
    /// Lets `write` fill the next packet; false when it had none or the batch is full.
    pub(super) fn add(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Option<SocketAddr>) -> bool {
        if self.filled >= BATCH {
            return false;
        }
        if self.filled == self.packets.len() {
            self.packets.push((SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), Vec::new()));
        }
        let (peer, packet) = &mut self.packets[self.filled];
        let Some(to) = write(packet) else { return false };
        *peer = to;
        self.filled += 1;
        true
    }

    /// True when all of it was taken by the kernel or given up.
    pub(super) fn is_done(&self) -> bool {
        self.sent == self.filled
    }

    /// True when nothing of it was sent yet and nothing more fits.
    pub(super) fn is_full(&self) -> bool {
        self.sent == 0 && self.filled == BATCH
    }

    /// Sends the rest by `send`, that takes packets of one address family and tells how many it took. What cannot be
    /// sent is given to `refused`. Gives whom the first packet is for that there was no room for.
    pub(super) fn send_by(
        &mut self,
        send: impl Fn(SocketAddr, &[(SocketAddr, Vec<u8>)]) -> io::Result<usize>,
        mut refused: impl FnMut(SocketAddr, bool),
    ) -> Option<SocketAddr> {
        let mut tries = 0;
        while !self.is_done() {
            let rest = &self.packets[self.sent..self.filled];
            let peer = rest[0].0;
            let run = rest.iter().take_while(|(other, _)| other.is_ipv4() == peer.is_ipv4()).count();
            match send(peer, &rest[..run]) {
                Ok(sent) => {
                    self.sent += sent;
                    tries = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Some(peer),
                Err(error) if is_unreachable(error.raw_os_error()) && tries < SEND_TRIES => tries += 1,
                Err(error) => {
                    self.sent += 1;
                    tries = 0;
                    refused(peer, error.raw_os_error() == Some(libc::ENOBUFS));
                }
            }
        }
        (self.filled, self.sent) = (0, 0);
        None
    }
}

impl Port {
    fn open(address: SocketAddr, receive_buffer: usize) -> io::Result<Port> {
        let mut port = Port { socket: open(address, receive_buffer)?, watch: None };
        port.watch()?;
        Ok(port)
    }

    fn watch(&mut self) -> io::Result<()> {
        if self.watch.is_none() {
            self.watch = Some(UdpSocket::from_std(self.socket.try_clone()?.into())?);
        }
        Ok(())
    }

    /// Does what does not wait; while the runtime watches, only where it has seen a reason to.
    fn attempt<T>(&self, reason: Interest, work: impl FnOnce(&Socket) -> io::Result<T>) -> io::Result<T> {
        match &self.watch {
            Some(watch) => watch.try_io(reason, || work(&self.socket)),
            None => work(&self.socket),
        }
    }

    /// Hands over at most [`BATCH`] datagrams.
    fn receive<S: SockaddrLike + Copy>(
        &self,
        unasked: bool,
        room: &mut [u8],
        mut take: impl FnMut(S, &[u8]),
    ) -> Heard {
        let mut heard = Heard { count: 0, all: true };
        let mut work = |socket: &Socket| {
            // Whoever is woken by each packet finds few at a time.
            let most = if self.watch.is_some() { WOKEN } else { BATCH };
            let parts = room.chunks_mut(LARGEST).take(most).map(|part| [IoSliceMut::new(part)]);
            let mut parts = parts.collect::<Vec<_>>();
            let mut headers = MultiHeaders::<S>::preallocate(parts.len(), None);
            let came =
                recvmmsg(socket.as_raw_fd(), &mut headers, parts.iter_mut(), MsgFlags::MSG_DONTWAIT, None);
            match came {
                Ok(came) => {
                    for message in came {
                        heard.count += 1;
                        if let (Some(from), Some(datagram)) = (message.address, message.iovs().next()) {
                            take(from, datagram);
                        }
                    }
                    heard.all = heard.count < most;
                }
                Err(Errno::EAGAIN) => {}
                // An ICMP error, that the error queue tells in full.
                Err(_) => (heard.count, heard.all) = (1, false),
            }
            // Fewer than there was room for: the next call would find nothing, and the runtime should know.
            if heard.all { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        };
        let _: io::Result<()> =
            if unasked { work(&self.socket) } else { self.attempt(Interest::READABLE, work) };
        heard
    }

    /// Hands over whom ICMP errors were about.
    fn receive_errors<S: SockaddrLike + Copy>(&self, mut take: impl FnMut(S, Icmp)) -> Heard {
        let mut heard = Heard::default();
        while heard.count < BATCH {
            match self.attempt(Interest::ERROR, |socket| take_error::<S>(socket.as_raw_fd())) {
                Ok(about) => {
                    heard.count += 1;
                    if let Some((peer, icmp)) = about {
                        take(peer, icmp);
                    }
                }
                Err(_) => {
                    heard.all = true;
                    break;
                }
            }
        }
        heard
    }

    async fn ready(&self) {
        match &self.watch {
            Some(watch) => drop(watch.ready(Interest::READABLE | Interest::ERROR).await),
            None => std::future::pending().await,
        }
    }
}

impl Heard {
    fn and(self, other: Heard) -> Heard {
        Heard { count: self.count + other.count, all: self.all && other.all }
    }
}

impl Sockets {
    /// Opens both on ports of the kernel's choice; a host without IPv6 has only the one.
    pub(super) fn open(receive_buffer: usize) -> io::Result<Sockets> {
        Ok(Sockets {
            v4: Port::open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), receive_buffer)?,
            v6: Port::open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), receive_buffer).ok(),
            room: vec![0; BATCH * LARGEST],
        })
    }

    /// Whether the runtime is to be woken by what comes; else whoever wants to know looks. Gives what is so now.
    pub(super) fn watch(&mut self, wanted: bool) -> bool {
        let mut ports = std::iter::once(&mut self.v4).chain(&mut self.v6);
        if !wanted {
            ports.for_each(|port| port.watch = None);
            return false;
        }
        // Where the kernel has no room to watch them, looking goes on.
        ports.all(|port| port.watch().is_ok())
    }

    fn of(&self, peer: SocketAddr) -> Option<&Socket> {
        let port = if peer.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        port.map(|port| &port.socket)
    }

    /// Hands over what has come; `unasked`: even if the runtime has not seen anything come yet.
    pub(super) fn receive(&mut self, unasked: bool, mut take: impl FnMut(SocketAddr, &[u8])) -> Heard {
        let room = &mut self.room;
        let v4 = self
            .v4
            .receive(unasked, room, |from: SockaddrIn, datagram| take(SocketAddr::V4(from.into()), datagram));
        let Some(v6) = &self.v6 else { return v4 };
        v4.and(v6.receive(unasked, room, |from: SockaddrIn6, datagram| {
            take(SocketAddr::V6(from.into()), datagram)
        }))
    }

    /// Hands over whom ICMP errors were about.
    pub(super) fn receive_errors(&self, mut take: impl FnMut(SocketAddr, Icmp)) -> Heard {
        let v4 = self.v4.receive_errors(|at: SockaddrIn, icmp| take(SocketAddr::V4(at.into()), icmp));
        let Some(v6) = &self.v6 else { return v4 };
        v4.and(v6.receive_errors(|at: SockaddrIn6, icmp| take(SocketAddr::V6(at.into()), icmp)))
    }

    /// Sends the rest of the batch. What cannot be sent is given to `refused`, with whether it is only that some queue is
    /// full; what the kernel has no room for now stays in the batch.
    pub(super) fn send(&self, batch: &mut Batch, refused: impl FnMut(SocketAddr, bool)) {
        let by_socket = |peer: SocketAddr, packets: &[(SocketAddr, Vec<u8>)]| match self.of(peer) {
            Some(socket) => send_some(socket, packets),
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        batch.send_by(by_socket, refused);
    }

    /// The same sockets once more, for a thread of its own.
    pub(super) fn duplicate(&self) -> io::Result<(Socket, Option<Socket>)> {
        let v6 = self.v6.as_ref().map(|port| port.socket.try_clone()).transpose()?;
        Ok((self.v4.socket.try_clone()?, v6))
    }

    /// Waits until something can be read, or an error; for ever while nobody watches.
    pub(super) async fn ready(&self) {
        let v6 = async {
            match &self.v6 {
                Some(port) => port.ready().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.v4.ready() => {}
            () = v6 => {}
        }
    }
}

fn open(address: SocketAddr, receive_buffer: usize) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
        setsockopt(&socket, sockopt::Ipv6RecvErr, &true)?;
    } else {
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
    }
    // All of our questions are shorter than any link's packet. Saying so spares the kernel an identifier a packet,
    // which is a twentieth of what a packet costs.
    if address.is_ipv4() {
        let _ = set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE);
    }
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    // The kernel gives what it may, all of it to whoever may set up networks; a smaller buffer loses answers to a fast sweep
    // or to very many reads, nothing else.
    if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).is_err() {
        let _ = socket.set_recv_buffer_size(receive_buffer);
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Sends packets of one address family; gives how many the kernel took. An error is about the first of them, or an
/// ICMP error about an earlier packet, that the kernel reports on whichever call comes next.
pub(super) fn send_some(socket: impl AsFd, packets: &[(SocketAddr, Vec<u8>)]) -> io::Result<usize> {
    if let [(peer, packet)] = packets {
        return Ok(rustix::net::sendto(socket, packet, SendFlags::empty(), peer).map(|_| 1)?);
    }
    let peers: Vec<_> = packets.iter().map(|(peer, _)| SocketAddrAny::from(*peer)).collect();
    let slices: Vec<_> = packets.iter().map(|(_, packet)| [IoSlice::new(packet)]).collect();
    let mut controls: Vec<_> = packets.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut headers: Vec<_> = (peers.iter().zip(&slices).zip(&mut controls))
        .map(|((peer, slice), control)| MMsgHdr::new_with_addr(peer, slice, control))
        .collect();
    Ok(sendmmsg(socket, &mut headers, SendFlags::empty())?)
}

/// EACCES is what the kernel makes of some prohibitions.
fn is_unreachable(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EACCES))
}

/// Takes one ICMP error from the socket's error queue: whom it is about, where it says that nothing gets there.
fn take_error<S: SockaddrLike + Copy>(fd: RawFd) -> io::Result<Option<(S, Icmp)>> {
    let mut quoted = [0; 64];
    let mut buffers = [IoSliceMut::new(&mut quoted)];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let message = recvmsg::<S>(fd, &mut buffers, Some(&mut control), MsgFlags::MSG_ERRQUEUE)?;
    let icmp = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            icmp(&error)
        }
        _ => None,
    });
    Ok(message.address.zip(icmp))
}

/// What an ICMP error says; `None` where the packet may have arrived.
fn icmp(error: &libc::sock_extended_err) -> Option<Icmp> {
    const DESTINATION_UNREACHABLE: u8 = 3;
    const V6_DESTINATION_UNREACHABLE: u8 = 1;
    let errno = i32::try_from(error.ee_errno).ok();
    match (error.ee_origin, error.ee_type, error.ee_code) {
        // RFC 1812 section 5.2.7.1; RFC 4443 section 3.1: prohibited, and failed by a policy.
        (libc::SO_EE_ORIGIN_ICMP, DESTINATION_UNREACHABLE, 9 | 10 | 13) => Some(Icmp::Prohibited),
        (libc::SO_EE_ORIGIN_ICMP6, V6_DESTINATION_UNREACHABLE, 1 | 5) => Some(Icmp::Prohibited),
        _ if errno == Some(libc::ECONNREFUSED) => Some(Icmp::ClosedPort),
        _ => is_unreachable(errno).then_some(Icmp::NoHost),
    }
}
