//! The link to the Web Admin on one process, as the node's `upstream` holds it, with the real window; and a Web Admin that
//! admits and stores by the rules of the real one (`admin/src/intake.rs`), whose database cannot run here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use quire_coordinator::backoff::Backoff;
use quire_coordinator::outbox::Window;
use quire_coordinator::rows;
use quire_node::sim::entries;
use quire_proto::id::{Epoch, Millis};
use quire_proto::store::ask::What as AskWhat;
use quire_proto::store::command::Kind;
use quire_proto::store::{Ack, Ask, Link, Meta, OutboxEntry, PutUpstreamIdentities, UpstreamIdentity};
use tokio::sync::{mpsc, watch};

use super::checks::Checks;
use super::net::{ADMIN, Net};
use super::node::{Node, members};
use super::raft::digest;
use super::runtime::{lock, sleep, sleep_ms, spawn_in, steady, timeout};

const LOOK: Duration = Duration::from_millis(200);
const PATIENCE: Duration = Duration::from_secs(5);
const WELCOME: Duration = Duration::from_secs(10);
/// Keep-alives of the link, and their patience.
const DEAF_MS: u64 = 10_000;

/// What a site sends.
enum Up {
    Hello {
        node: u64,
        base: u64,
    },
    Batch {
        first: u64,
        entries: Vec<Bytes>,
    },
    /// All is well; is there something to do?
    CheckIn,
    Done {
        job: String,
        ok: bool,
    },
}

/// What the Web Admin answers.
enum Down {
    Welcome(u64),
    Received(u64),
    Job(String),
    Nothing,
    Refused,
}

/// The Web Admin; clones share it.
#[derive(Clone)]
pub struct Admin {
    state: Arc<Mutex<State>>,
    checks: Checks,
}

#[derive(Default)]
struct State {
    epoch: u64,
    node: u64,
    through: Option<u64>,
    connection: u64,
    stored: BTreeMap<String, u64>,
    /// Open and closed jobs: whether the site said that it did them.
    jobs: BTreeMap<String, Option<bool>>,
}

impl Admin {
    /// It knows of no cluster.
    #[must_use]
    pub fn new(checks: Checks) -> Admin {
        Admin { state: Arc::default(), checks }
    }

    /// Wants something done.
    pub fn order(&self, job: String) {
        lock(&self.state).jobs.insert(job, None);
    }

    /// Jobs, and whether the site said that it did them.
    #[must_use]
    pub fn jobs(&self) -> BTreeMap<String, Option<bool>> {
        lock(&self.state).jobs.clone()
    }

    /// How many readings it has.
    #[must_use]
    pub fn stored(&self) -> usize {
        lock(&self.state).stored.len()
    }

    /// As `intake::admit`.
    fn admit(&self, node: u64, base: u64, epoch: u64) -> Option<(u64, u64)> {
        let mut state = lock(&self.state);
        if epoch < state.epoch || (epoch == state.epoch && state.node != node) || epoch == 0 {
            self.checks.count("links refused");
            return None;
        }
        self.checks.one_accepted_writer(epoch, node);
        (state.epoch, state.node) = (epoch, node);
        state.through = state.through.map(|through| through.max(base.saturating_sub(1)));
        state.connection += 1;
        self.checks.count("links accepted");
        Some((state.connection, state.through.unwrap_or(0)))
    }

    /// As `intake::take`: what is new is stored together with the mark that it reaches.
    fn take(&self, connection: u64, epoch: u64, first: u64, batch: &[Bytes]) -> Option<u64> {
        let mut state = lock(&self.state);
        if state.connection != connection || state.epoch != epoch {
            self.checks.count("batches of replaced links refused");
            return None;
        }
        let expected = state.through.map_or(first, |through| through + 1);
        if first > expected {
            self.checks.violated(format!("a batch begins at {first}, and {expected} was expected"));
            return None;
        }
        let mut through = state.through.unwrap_or(0);
        for octets in batch {
            let Ok(entry) = OutboxEntry::decode(octets.clone()) else { return None };
            let last = entry.seq.max(entry.superseded_through);
            if last < expected {
                self.checks.count("entries sent again");
                continue;
            }
            through = last;
            if let Some(row) = &entry.row {
                self.checks.stored_once_upstream(&row.id, entry.seq);
                state.stored.insert(row.id.clone(), entry.seq);
            }
        }
        if !batch.is_empty() {
            state.through = Some(through);
        }
        Some(through)
    }

    /// One stream's messages, in their order.
    fn handle(&self, connection: &mut u64, epoch: u64, message: Up) -> Down {
        match message {
            Up::Hello { node, base } => match self.admit(node, base, epoch) {
                Some((own, through)) => {
                    *connection = own;
                    Down::Welcome(through)
                }
                None => Down::Refused,
            },
            Up::Batch { first, entries } => {
                self.take(*connection, epoch, first, &entries).map_or(Down::Refused, Down::Received)
            }
            Up::CheckIn => {
                let state = lock(&self.state);
                if state.connection != *connection {
                    return Down::Refused;
                }
                let open = state.jobs.iter().find(|(_, done)| done.is_none());
                open.map_or(Down::Nothing, |(job, _)| Down::Job(job.clone()))
            }
            Up::Done { job, ok } => {
                let mut state = lock(&self.state);
                if state.connection != *connection {
                    return Down::Refused;
                }
                state.jobs.insert(job, Some(ok));
                Down::Nothing
            }
        }
    }
}

/// Carries one stream between a machine and the Web Admin.
async fn carry(
    net: Net,
    machine: usize,
    admin: Admin,
    epoch: u64,
    mut up: mpsc::Receiver<Up>,
    down: mpsc::Sender<Down>,
) {
    let mut connection = 0;
    while let Some(message) = up.recv().await {
        net.travel().await;
        if !net.passes(machine, ADMIN) {
            return sleep_ms(DEAF_MS).await;
        }
        let answer = admin.handle(&mut connection, epoch, message);
        admin.checks.trace(&(machine, epoch, connection));
        net.travel().await;
        if !net.passes(ADMIN, machine) {
            admin.checks.count("answers of the Web Admin lost");
            return sleep_ms(DEAF_MS).await;
        }
        let refused = matches!(answer, Down::Refused);
        if down.send(answer).await.is_err() || refused {
            return;
        }
    }
}

/// Holds the link while this process holds the claim.
pub async fn link(node: Arc<Node>) {
    let mut held = node.held.subscribe();
    let mut backoff = Backoff::new(250, 30_000);
    loop {
        let epoch = *held.borrow_and_update();
        let pause = tokio::select! {
            biased;
            changed = held.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            pause = hold(&node, epoch, &mut backoff) => pause,
        };
        tokio::select! {
            biased;
            changed = held.changed() => if changed.is_err() { return },
            () = sleep(pause) => {}
        }
    }
}

fn tell(link: &watch::Sender<Link>, state: &str) {
    link.send_if_modified(|before| {
        let changed = before.state != state;
        *before = Link { state: state.to_owned(), ..Link::default() };
        changed
    });
}

fn meta(node: &Node) -> Meta {
    node.birth.disk.look(|image| rows::meta(&image.tables)).unwrap_or_default()
}

async fn hold(node: &Arc<Node>, epoch: Option<Epoch>, backoff: &mut Backoff) -> Duration {
    let Some(epoch) = epoch else { return std::future::pending().await };
    let own = members(&node.birth.disk).into_iter().find(|member| member.id == node.birth.me);
    let certified = own.is_some_and(|member| !member.upstream_certificate_der.is_empty());
    if meta(node).upstream.is_none() || !certified {
        return Duration::from_secs(1);
    }
    let (up, outward) = mpsc::channel(16);
    let (answers, down) = mpsc::channel(16);
    let (net, machine, admin) = (node.net.clone(), node.birth.machine, node.world.admin.clone());
    spawn_in(None, carry(net, machine, admin, epoch.0, outward, answers));
    let mut session = Session { node, epoch, up, down, window: Window::new(1) };
    session.run().await;
    tell(&node.link, "connecting");
    let draw = digest(&(epoch.0, steady())) as f64 / u64::MAX as f64;
    backoff.reset();
    let _ = draw;
    Duration::from_millis(backoff.next_ms(draw))
}

struct Session<'a> {
    node: &'a Arc<Node>,
    epoch: Epoch,
    up: mpsc::Sender<Up>,
    down: mpsc::Receiver<Down>,
    window: Window,
}

fn ticks() -> Millis {
    Millis(u64::try_from(steady().as_millis()).unwrap_or(0))
}

impl Session<'_> {
    /// Until the link ends, however.
    async fn run(&mut self) -> Option<()> {
        let hello = Up::Hello { node: self.node.birth.me, base: meta(self.node).outbox_base };
        self.up.send(hello).await.ok()?;
        let Ok(Some(Down::Welcome(through))) = timeout(WELCOME, self.down.recv()).await else { return None };
        let meta = meta(self.node);
        self.window = Window::new(meta.outbox_acked + 1);
        self.window.handle_appended(meta.outbox_next.saturating_sub(1));
        let through = if through == 0 { meta.outbox_acked } else { through };
        if let Err(bad) = self.window.handle_welcome(through) {
            self.node.checks.count("servers that cannot be right");
            self.node.checks.tell(|| format!("node {}: {bad}", self.node.birth.me));
            return None;
        }
        tell(&self.node.link, "connected");
        let mut checked_in = steady();
        loop {
            self.commit_ack().await;
            self.send_batches().await?;
            match timeout(LOOK, self.down.recv()).await {
                Ok(None | Some(Down::Refused)) => return None,
                Ok(Some(Down::Received(through))) => self.window.handle_received(through).ok()?,
                Ok(Some(Down::Job(job))) => {
                    let ok = self.work(&job).await;
                    self.up.send(Up::Done { job, ok }).await.ok()?;
                }
                Ok(Some(Down::Welcome(_) | Down::Nothing)) => {}
                Err(_) if self.window.is_stalled(ticks()) => return None,
                Err(_) => {}
            }
            if steady().saturating_sub(checked_in) >= Duration::from_secs(1) {
                checked_in = steady();
                self.up.send(Up::CheckIn).await.ok()?;
                self.sign().await;
            }
        }
    }

    async fn commit_ack(&mut self) {
        let Some(through) = self.window.take_ack() else { return };
        let command = Kind::Ack(Ack { claim: self.epoch.0, through });
        if self.node.propose_here("", command, PATIENCE).await.is_err() {
            self.window.handle_ack_failed(meta(self.node).outbox_acked);
        }
    }

    async fn send_batches(&mut self) -> Option<()> {
        self.window.handle_appended(meta(self.node).outbox_next.saturating_sub(1));
        while let Some(want) = self.window.wants() {
            let found = self.node.birth.disk.look(|image| entries(&image.tables, want));
            let (entries, through) = found.ok()?;
            self.up.send(Up::Batch { first: want.from, entries }).await.ok()?;
            self.window.handle_sent(through, ticks());
        }
        Some(())
    }

    /// A job is done once, however often it is proposed.
    async fn work(&self, job: &str) -> bool {
        let what = Some(AskWhat::SweepSegment(String::new()));
        let command = Kind::Ask(Ask { by: format!("job {job}"), what });
        self.node.propose_here(job, command, PATIENCE).await.is_ok()
    }

    /// Members without a certificate get one.
    async fn sign(&self) {
        let without = members(&self.node.birth.disk);
        let without = without.into_iter().filter(|member| member.upstream_certificate_der.is_empty());
        let identities: Vec<UpstreamIdentity> = without.map(|member| identity(member.id)).collect();
        if !identities.is_empty() {
            let command = Kind::PutUpstreamIdentities(PutUpstreamIdentities { identities });
            let _ = self.node.propose_here("", command, PATIENCE).await;
        }
    }
}

/// A node's certificate for the Web Admin.
#[must_use]
pub fn identity(node: u64) -> UpstreamIdentity {
    UpstreamIdentity { node, certificate_der: Bytes::from_static(b"certificate") }
}
