//! The engine's shell: a task that carries datagrams, deadlines and results between the core, the sockets and those
//! who asked. It decides nothing, and is the only file of this room that asks for the time.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot};

use super::engine::{Core, Icmp};
use super::helper::Helper;
use super::socket::{Batch, Sockets};
use super::stats::Counters;
use super::table::AsIs;
use super::{Answer, Credential, Failure, Options, Patience, Question, Stats, Sweep, SweepEvent};

/// Commands that may wait for the engine: it takes them all at every turn, so a turn's worth. Beyond, `ask` waits.
const COMMANDS: usize = 1024;
/// Events of a sweep that may wait in its channel; then the core holds `sweep::BACKLOG` more and pulls no address.
const EVENTS: usize = 1024;
/// How long until a full sweep channel is looked at again.
const RECHECK: Duration = Duration::from_millis(5);

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
        question: Question,
        patience: Patience,
        reply: oneshot::Sender<Result<Answer, Failure>>,
    },
    Sweep(Sweep, Users, mpsc::Sender<SweepEvent>),
    Rate(u32),
    Exclude(Vec<IpNet>),
}

/// What a sweep does at SNMPv3 engines.
enum Users {
    Try,
    Leave,
}

impl Snmp {
    /// Opens the sockets, on ports of the kernel's choice, and starts the engine on the present tokio runtime.
    pub async fn bind(mut options: Options) -> io::Result<Snmp> {
        while options.seed == 0 {
            options.seed = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
        }
        let sockets = Sockets::open(options.receive_buffer)?;
        let (commands, receiver) = mpsc::channel(COMMANDS);
        let counters = Arc::new(Counters::default());
        let shell = Shell {
            core: Core::new(options, counters.clone(), Instant::now()),
            counters: counters.clone(),
            sockets,
            commands: receiver,
            asked: HashMap::default(),
            tickets: 0,
            sweeps: Vec::new(),
            batch: Batch::default(),
            helper: None,
        };
        tokio::spawn(shell.run());
        Ok(Snmp { commands, counters })
    }

    /// Asks one peer one thing; the question is handed over at once. What waits for the answer is small, because there may be
    /// very many that wait.
    pub fn ask<Q: Into<Question>>(
        &self,
        peer: SocketAddr,
        credential: &Arc<Credential>,
        question: Q,
        patience: Patience,
    ) -> impl Future<Output = Result<Answer, Failure>> + Send + use<Q> {
        let (reply, result) = oneshot::channel();
        let question = question.into();
        let command = Command::Ask { peer, credential: credential.clone(), question, patience, reply };
        let behind = match self.commands.try_send(command) {
            // A closed engine lets go of the question, and with it of the reply.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(command)) => {
                let commands = self.commands.clone();
                Some(Box::pin(async move { commands.send(command).await.is_ok() }))
            }
        };
        async move {
            if let Some(behind) = behind {
                behind.await;
            }
            result.await.map_err(|_| Failure::Closed)?
        }
    }

    /// Asks very many addresses the same. Dropping the receiver ends the sweep; not reading it holds it up.
    pub fn sweep(&self, sweep: Sweep) -> mpsc::Receiver<SweepEvent> {
        self.begin(sweep, Users::Try)
    }

    /// As [`Snmp::sweep`], but no SNMPv3 user is tried: engines are reported with [`SweepEvent::NeedsCredentials`], for
    /// those who must agree with others first on who tries.
    pub fn survey(&self, sweep: Sweep) -> mpsc::Receiver<SweepEvent> {
        self.begin(sweep, Users::Leave)
    }

    fn begin(&self, sweep: Sweep, users: Users) -> mpsc::Receiver<SweepEvent> {
        let (events, receiver) = mpsc::channel(EVENTS);
        self.command(Command::Sweep(sweep, users, events));
        receiver
    }

    /// Sends these prefixes nothing from now on. What is under way there ends as if nobody were there.
    pub fn exclude(&self, prefixes: Vec<IpNet>) {
        self.command(Command::Exclude(prefixes));
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

struct Shell {
    core: Core,
    counters: Arc<Counters>,
    sockets: Sockets,
    commands: mpsc::Receiver<Command>,
    /// Who waits for which ticket: as many as the core has slots for requests.
    asked: HashMap<u64, oneshot::Sender<Result<Answer, Failure>>, BuildHasherDefault<AsIs>>,
    tickets: u64,
    sweeps: Vec<(u32, mpsc::Sender<SweepEvent>)>,
    /// Packets that the core has given and the kernel not taken yet.
    batch: Batch,
    /// Sends beside us, once a batch was full and if there is a thread to be had.
    helper: Option<Option<Helper>>,
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
            if !self.batch.is_done() {
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
        let sleep = async {
            match wake {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            command = self.commands.recv() => Some(command),
            () = self.sockets.ready(&self.batch) => None,
            () = sleep => None,
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Ask { peer, credential, question, patience, reply } => {
                self.tickets += 1;
                self.asked.insert(self.tickets, reply);
                self.core.ask(self.tickets, peer, credential, &question, patience);
            }
            Command::Sweep(sweep, users, events) => {
                let id = match users {
                    Users::Try => self.core.sweep(sweep),
                    Users::Leave => self.core.survey(sweep),
                };
                self.sweeps.push((id, events));
            }
            Command::Exclude(prefixes) => self.core.exclude(prefixes),
            Command::Rate(rate) => self.core.set_rate(rate),
        }
    }

    fn receive(&mut self) -> bool {
        let core = &mut self.core;
        let now = Instant::now();
        let errors = self.sockets.receive_errors(|peer, icmp| core.handle_icmp(peer, icmp, now));
        let datagrams = self.sockets.receive(|from, datagram| core.handle_datagram(from, datagram, now));
        errors | datagrams
    }

    /// Sends a batch; true when it was sent and there may be more.
    fn transmit(&mut self) -> bool {
        let now = Instant::now();
        if self.batch.is_done() {
            while self.batch.add(|packet| self.core.poll_transmit(now, packet)) {}
            if self.batch.is_done() {
                return false;
            }
        }
        let in_haste = self.core.in_haste();
        let (core, counters) = (&mut self.core, &self.counters);
        let mut refused = |peer, full| {
            counters.send_errors.add(1);
            // Full queues pass; what has no route has none later either.
            match full {
                true => core.handle_full(peer, now),
                false => core.handle_icmp(peer, Icmp::ClosedPort, now),
            }
        };
        if self.batch.is_full() && in_haste {
            // Where no thread can be had, there is no second pair of hands.
            let started = || Helper::start(&self.sockets).ok();
            let helper = self.helper.get_or_insert_with(started);
            if let Some(helper) = helper {
                helper.collect(&mut refused);
                if helper.take_over(&mut self.batch) {
                    return true;
                }
            }
        }
        self.sockets.send(&mut self.batch, refused);
        self.batch.is_done()
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
