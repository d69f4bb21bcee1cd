//! The engine's sockets: one for IPv4, one for IPv6, for all peers. The only file of this room that touches the
//! network; it looks into no datagram and keeps no packet that was sent.
//!
//! Packets go out by `sendmmsg`, [`BATCH`] a call: 4.8 us of CPU a packet against 5.5 us one by one, measured with
//! `examples/sweep_rate.rs` over loopback, where nearly all of it is the kernel's. `sendmmsg` is
//! rustix's, because nix's reads uninitialised addresses when the number of packets sent is counted. ICMP errors
//! come from the sockets' error queues (IP_RECVERR), where the kernel says whom they are about.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, RawFd};

use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, recvmsg, setsockopt, sockopt,
};
use rustix::net::sockopt::{Ipv4PathMtuDiscovery, set_ip_mtu_discover};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::engine::Icmp;

/// Packets a system call, and datagrams that one socket may deliver before the others have their turn.
pub(super) const BATCH: usize = 64;
/// Times that one packet is tried while the kernel answers with ICMP errors that earlier ones caused.
const SEND_TRIES: usize = 8;
/// What to ask of the kernel for sending, octets: a small packet counts for about 1 KB until its interface has it.
const SEND_BUFFER: usize = 4 << 20;
/// The largest UDP payload.
const LARGEST: usize = 65_535;

pub(super) struct Sockets {
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    buffer: Vec<u8>,
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

impl Sockets {
    /// Opens both on ports of the kernel's choice; a host without IPv6 has only the one.
    pub(super) fn open(receive_buffer: usize) -> io::Result<Sockets> {
        Ok(Sockets {
            v4: open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), receive_buffer)?,
            v6: open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), receive_buffer).ok(),
            buffer: vec![0; LARGEST],
        })
    }

    fn of(&self, peer: SocketAddr) -> Option<&UdpSocket> {
        if peer.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() }
    }

    /// Hands over what has come; false when there was nothing.
    pub(super) fn receive(&mut self, mut take: impl FnMut(SocketAddr, &[u8])) -> bool {
        let mut any = false;
        for socket in std::iter::once(&self.v4).chain(&self.v6) {
            for _ in 0..BATCH {
                match socket.try_recv_from(&mut self.buffer) {
                    Ok((len, from)) => take(from, &self.buffer[..len]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error, that the error queue tells in full.
                    Err(_) => {}
                }
                any = true;
            }
        }
        any
    }

    /// Hands over whom ICMP errors were about; false when there were none.
    pub(super) fn receive_errors(&self, mut take: impl FnMut(SocketAddr, Icmp)) -> bool {
        let mut any = false;
        for socket in std::iter::once(&self.v4).chain(&self.v6) {
            for _ in 0..BATCH {
                let fd = socket.as_raw_fd();
                let v4 = std::ptr::eq(socket, &self.v4);
                let taken = socket.try_io(Interest::ERROR, || match v4 {
                    true => take_error::<SockaddrIn>(fd)
                        .map(|about| about.map(|(at, icmp)| (SocketAddr::V4(at.into()), icmp))),
                    false => take_error::<SockaddrIn6>(fd)
                        .map(|about| about.map(|(at, icmp)| (SocketAddr::V6(at.into()), icmp))),
                });
                let Ok(about) = taken else { break };
                any = true;
                if let Some((peer, icmp)) = about {
                    take(peer, icmp);
                }
            }
        }
        any
    }

    /// Sends the rest of the batch. What cannot be sent is given to `refused`, with whether it is only that some queue is
    /// full; what the kernel has no room for now stays in the batch.
    pub(super) fn send(&self, batch: &mut Batch, refused: impl FnMut(SocketAddr, bool)) {
        let by_socket = |peer: SocketAddr, packets: &[(SocketAddr, Vec<u8>)]| match self.of(peer) {
            Some(socket) => socket.try_io(Interest::WRITABLE, || send_some(socket, packets)),
            None => Err(io::ErrorKind::AddrNotAvailable.into()),
        };
        batch.send_by(by_socket, refused);
    }

    /// The same sockets once more, for a thread of its own.
    pub(super) fn duplicate(&self) -> io::Result<(Socket, Option<Socket>)> {
        let v6 = self.v6.as_ref().map(|socket| SockRef::from(socket).try_clone()).transpose()?;
        Ok((SockRef::from(&self.v4).try_clone()?, v6))
    }

    /// Waits until something can be read, or an error, or the rest of `batch` can be sent.
    pub(super) async fn ready(&self, batch: &Batch) {
        let blocked = batch.packets[..batch.filled].get(batch.sent).map(|(peer, _)| peer.is_ipv4());
        let v6 = async {
            match &self.v6 {
                Some(socket) => drop(socket.ready(interest(blocked == Some(false))).await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.v4.ready(interest(blocked == Some(true))) => {}
            () = v6 => {}
        }
    }
}

fn open(address: SocketAddr, receive_buffer: usize) -> io::Result<UdpSocket> {
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
    // The kernel gives what it may; a smaller buffer loses answers to a fast sweep, nothing else.
    let _ = socket.set_recv_buffer_size(receive_buffer);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// What to wake for.
fn interest(blocked: bool) -> Interest {
    let hear = Interest::READABLE | Interest::ERROR;
    if blocked { hear | Interest::WRITABLE } else { hear }
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
