//! The engine's sockets: one for IPv4, one for IPv6, for all peers. The only file of this room that touches the
//! network; it looks into no datagram and keeps no packet that was sent.
//!
//! Packets go out by `sendmmsg`, [`BATCH`] a call: 4.8 us of CPU a packet against 5.5 us one by one, measured with
//! `examples/sweep_rate.rs` over loopback, where nearly all of it is the kernel's. `sendmmsg` is
//! rustix's, because nix's reads uninitialised addresses when the number of packets sent is counted. ICMP errors
//! come from the sockets' error queues (IP_RECVERR), where the kernel says whom they are about.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};

use nix::libc;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrIn, SockaddrIn6, SockaddrLike, recvmsg, setsockopt, sockopt,
};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny, sendmmsg};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Packets a system call, and datagrams that one socket may deliver before the others have their turn.
pub(super) const BATCH: usize = 64;
/// Times that one packet is tried while the kernel answers with ICMP errors that earlier ones caused.
const SEND_TRIES: usize = 8;
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

    fn clear(&mut self) {
        (self.filled, self.sent) = (0, 0);
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
    pub(super) fn receive_errors(&self, mut take: impl FnMut(SocketAddr)) -> bool {
        let mut any = false;
        for socket in std::iter::once(&self.v4).chain(&self.v6) {
            for _ in 0..BATCH {
                let fd = socket.as_raw_fd();
                let v4 = std::ptr::eq(socket, &self.v4);
                let taken =
                    socket.try_io(Interest::ERROR, || match v4 {
                        true => take_error::<SockaddrIn>(fd)
                            .map(|about| about.map(|at| SocketAddr::V4(at.into()))),
                        false => take_error::<SockaddrIn6>(fd)
                            .map(|about| about.map(|at| SocketAddr::V6(at.into()))),
                    });
                let Ok(about) = taken else { break };
                any = true;
                if let Some(peer) = about {
                    take(peer);
                }
            }
        }
        any
    }

    /// Sends the rest of the batch. What cannot be sent is given to `refused`, unless it is only that some queue is
    /// full; what the kernel has no room for now stays in the batch.
    pub(super) fn send(&self, batch: &mut Batch, mut refused: impl FnMut(SocketAddr, bool)) {
        let mut tries = 0;
        while !batch.is_done() {
            let rest = &batch.packets[batch.sent..batch.filled];
            let peer = rest[0].0;
            let run = rest.iter().take_while(|(other, _)| other.is_ipv4() == peer.is_ipv4()).count();
            let result = match self.of(peer) {
                Some(socket) => socket.try_io(Interest::WRITABLE, || send(socket, &rest[..run])),
                None => Err(io::ErrorKind::AddrNotAvailable.into()),
            };
            match result {
                Ok(sent) => {
                    batch.sent += sent;
                    tries = 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_unreachable(error.raw_os_error()) && tries < SEND_TRIES => tries += 1,
                Err(error) => {
                    batch.sent += 1;
                    tries = 0;
                    refused(peer, error.raw_os_error() == Some(libc::ENOBUFS));
                }
            }
        }
        batch.clear();
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
fn send(socket: &UdpSocket, packets: &[(SocketAddr, Vec<u8>)]) -> io::Result<usize> {
    let peers: Vec<_> = packets.iter().map(|(peer, _)| SocketAddrAny::from(*peer)).collect();
    let slices: Vec<_> = packets.iter().map(|(_, packet)| [IoSlice::new(packet)]).collect();
    let mut controls: Vec<_> = packets.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut headers: Vec<_> = (peers.iter().zip(&slices).zip(&mut controls))
        .map(|((peer, slice), control)| MMsgHdr::new_with_addr(peer, slice, control))
        .collect();
    Ok(sendmmsg(socket, &mut headers, SendFlags::empty())?)
}

fn is_unreachable(errno: Option<i32>) -> bool {
    matches!(errno, Some(libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH))
}

/// Takes one ICMP error from the socket's error queue: whom it is about, where it says that nobody is there.
fn take_error<S: SockaddrLike + Copy>(fd: RawFd) -> io::Result<Option<S>> {
    let mut quoted = [0; 64];
    let mut buffers = [IoSliceMut::new(&mut quoted)];
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let message = recvmsg::<S>(fd, &mut buffers, Some(&mut control), MsgFlags::MSG_ERRQUEUE)?;
    let unreachable = message.cmsgs()?.any(|control| match control {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            is_unreachable(i32::try_from(error.ee_errno).ok())
        }
        _ => false,
    });
    Ok(message.address.filter(|_| unreachable))
}
