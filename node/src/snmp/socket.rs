//! The engine's shell: the only file of this room that touches the network or asks for the time. It decides
//! nothing; it carries datagrams, deadlines and results between the core, the kernel and those who asked.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};

use super::engine::Core;
use super::stats::Counters;
use super::{Answer, Credential, Failure, Options, Patience, Request, Stats, Sweep, SweepEvent};

/// Commands that may wait for the engine: it takes them all at every turn, so a turn's worth. Beyond, `ask` waits.
const COMMANDS: usize = 1024;
/// Events of a sweep that may wait in its channel; then the core holds `sweep::BACKLOG` more and pulls no address.
const EVENTS: usize = 1024;
/// Datagrams to take in, and to send, before the other has its turn.
const TURN: usize = 64;
/// How long until a full sweep channel is looked at again.
const RECHECK: Duration = Duration::from_millis(5);
/// The largest UDP payload.
const LARGEST: usize = 65_535;

/// The engine's door: cheap to clone; the engine ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct Snmp {
    commands: mpsc::Sender<Command>,
    counters: Arc<Counters>,
}

enum Command {
    Ask {
        peer: SocketAddr,
        credential: Arc<Credential>,
        request: Request,
        patience: Patience,
        reply: oneshot::Sender<Result<Answer, Failure>>,
    },
    Sweep(Sweep, mpsc::Sender<SweepEvent>),
    Rate(u32),
}

impl Snmp {
    /// Opens the sockets, on ports of the kernel's choice, and starts the engine on the present tokio runtime.
    pub async fn bind(mut options: Options) -> io::Result<Snmp> {
        while options.seed == 0 {
            options.seed = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
        }
        let v4 = open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)), &options)?;
        // A host without IPv6 still has an engine.
        let v6 = open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)), &options).ok();
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let counters = Arc::new(Counters::default());
        let shell = Shell {
            core: Core::new(options, counters.clone(), Instant::now()),
            counters: counters.clone(),
            v4,
            v6,
            commands: receiver,
            asked: HashMap::new(),
            tickets: 0,
            sweeps: Vec::new(),
            unsent: None,
            buffer: vec![0; LARGEST],
        };
        tokio::spawn(shell.run());
        Ok(Snmp { commands, counters })
    }

    /// Asks one peer one thing.
    pub async fn ask(
        &self,
        peer: SocketAddr,
        credential: &Arc<Credential>,
        request: Request,
        patience: Patience,
    ) -> Result<Answer, Failure> {
        let (reply, result) = oneshot::channel();
        let command = Command::Ask { peer, credential: credential.clone(), request, patience, reply };
        self.commands.send(command).await.map_err(|_| Failure::Closed)?;
        result.await.map_err(|_| Failure::Closed)?
    }

    /// Asks very many addresses the same. Dropping the receiver ends the sweep; not reading it holds it up.
    pub fn sweep(&self, sweep: Sweep) -> mpsc::Receiver<SweepEvent> {
        let (events, receiver) = mpsc::channel(EVENTS);
        self.command(Command::Sweep(sweep, events));
        receiver
    }

    /// Changes the ceiling of packets a second; 0 is none.
    pub fn set_rate(&self, pps: u32) {
        self.command(Command::Rate(pps));
    }

    /// What was counted so far.
    pub fn stats(&self) -> Stats {
        self.counters.read()
    }

    /// Hands over a command without waiting; behind a full queue it waits in a task of its own.
    fn command(&self, command: Command) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(command) {
            let commands = self.commands.clone();
            tokio::spawn(async move {
                let _ = commands.send(command).await;
            });
        }
    }
}

fn open(address: SocketAddr, options: &Options) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel gives what it may; a smaller buffer loses answers to a fast sweep, nothing else.
    let _ = socket.set_recv_buffer_size(options.receive_buffer);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

struct Shell {
    core: Core,
    counters: Arc<Counters>,
    v4: UdpSocket,
    v6: Option<UdpSocket>,
    commands: mpsc::Receiver<Command>,
    /// Who waits for which ticket: as many as the core has slots for requests.
    asked: HashMap<u64, oneshot::Sender<Result<Answer, Failure>>>,
    tickets: u64,
    sweeps: Vec<(u32, mpsc::Sender<SweepEvent>)>,
    /// A packet that the kernel had no room for yet.
    unsent: Option<(SocketAddr, Vec<u8>)>,
    buffer: Vec<u8>,
}

impl Shell {
    async fn run(mut self) {
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(command) => self.take(command),
                    Err(mpsc::error::TryRecvError::Empty) => break,
                    Err(mpsc::error::TryRecvError::Disconnected) => return,
                }
            }
            let mut busy = self.receive();
            self.core.handle_timeout(Instant::now());
            busy |= self.transmit();
            let held_up = self.deliver();
            if busy {
                tokio::task::yield_now().await;
                continue;
            }
            let mut wake = self.core.poll_timeout();
            if held_up {
                let recheck = Instant::now() + RECHECK;
                wake = Some(wake.map_or(recheck, |at| at.min(recheck)));
            }
            if self.unsent.is_some() {
                // Only the socket can help now, not the ceiling's clock.
                wake = None;
            }
            if let Some(command) = self.wait(wake).await {
                match command {
                    Some(command) => self.take(command),
                    None => return,
                }
            }
        }
    }

    /// Waits until there is something to do; gives a command if that is what came, `Some(None)` at the end.
    async fn wait(&mut self, wake: Option<Instant>) -> Option<Option<Command>> {
        let blocked = self.unsent.as_ref().map(|(peer, _)| peer.is_ipv6());
        let v6 = async {
            match &self.v6 {
                Some(socket) if blocked == Some(true) => {
                    let _ = socket.ready(tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE).await;
                }
                Some(socket) => {
                    let _ = socket.readable().await;
                }
                None => std::future::pending().await,
            }
        };
        let v4 = async {
            if blocked == Some(false) {
                let _ = self.v4.ready(tokio::io::Interest::READABLE | tokio::io::Interest::WRITABLE).await;
            } else {
                let _ = self.v4.readable().await;
            }
        };
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv() => Some(command),
            () = v4 => None,
            () = v6 => None,
            () = sleep => None,
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Ask { peer, credential, request, patience, reply } => {
                self.tickets += 1;
                self.asked.insert(self.tickets, reply);
                self.core.ask(self.tickets, peer, credential, &request, patience);
            }
            Command::Sweep(sweep, events) => {
                let id = self.core.sweep(sweep);
                self.sweeps.push((id, events));
            }
            Command::Rate(rate) => self.core.set_rate(rate),
        }
    }

    fn receive(&mut self) -> bool {
        let mut any = false;
        for socket in std::iter::once(&self.v4).chain(&self.v6) {
            for _ in 0..TURN {
                match socket.try_recv_from(&mut self.buffer) {
                    Ok((len, from)) => {
                        any = true;
                        self.core.handle_datagram(from, &self.buffer[..len], Instant::now());
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // An ICMP error about someone; the next call goes on.
                    Err(_) => self.counters.unreachable.add(1),
                }
            }
        }
        any
    }

    fn transmit(&mut self) -> bool {
        let mut any = false;
        let (mut packet, mut next) = match self.unsent.take() {
            Some((peer, packet)) => (packet, Some(peer)),
            None => (Vec::new(), None),
        };
        for _ in 0..TURN {
            let Some(peer) = next.take().or_else(|| self.core.poll_transmit(Instant::now(), &mut packet))
            else {
                break;
            };
            any = true;
            let socket = if peer.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
            match socket.map(|socket| socket.try_send_to(&packet, peer)) {
                Some(Ok(_)) => {}
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.unsent = Some((peer, packet));
                    return false;
                }
                Some(Err(_)) | None => {
                    self.counters.send_errors.add(1);
                    self.core.handle_unreachable(peer, Instant::now());
                }
            }
        }
        any
    }

    /// Hands out results; true when a sweep's channel is full.
    fn deliver(&mut self) -> bool {
        while let Some((ticket, result)) = self.core.poll_event() {
            if let Some(reply) = self.asked.remove(&ticket) {
                // Whoever asked may have gone.
                let _ = reply.send(result);
            }
        }
        let core = &mut self.core;
        let mut held_up = false;
        self.sweeps.retain(|(id, events)| {
            if events.is_closed() {
                core.end_sweep(*id);
                return false;
            }
            while core.has_sweep_event(*id) {
                let Ok(permit) = events.try_reserve() else {
                    held_up = true;
                    return true;
                };
                if let Some(event) = core.poll_sweep_event(*id) {
                    let last = matches!(event, SweepEvent::Done(_));
                    permit.send(event);
                    if last {
                        return false;
                    }
                }
            }
            true
        });
        held_up
    }
}
