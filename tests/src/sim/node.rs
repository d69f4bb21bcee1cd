//! One simulated process of a node: real Raft on its disk, the door to other nodes, and what its tasks share.
//!
//! It starts, introduces itself and is fenced as the node's `start`, `launch` and `server` have it; who may take part is
//! judged by the node's own code.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::FutureExt as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::AppendEntriesResponse;
use quire_coordinator::rows;
use quire_coordinator::settings::Settings;
use quire_node::sim::{Admission, Answers, Feed, judge, raft_config};
use quire_proto::cluster::AttendRequest;
use quire_proto::cluster::attend_reply::Verdict;
use quire_proto::id::{Epoch, NodeId};
use quire_proto::store::{Bootstrap, Link, Member, command::Kind};
use tokio::sync::{Notify, watch};

use super::checks::{CLUSTER_ID, Checks};
use super::disk::Disk;
use super::duties;
use super::machine::{Log, Machine};
use super::net::{Ask, Envelope, Net, Reply};
use super::presence;
use super::raft::{Peer, Raft};
use super::runtime::{Process, lock, spawn, spawn_in, steady};
use super::spool::Spool;
use super::timing::Timing;
use super::transport::Links;
use super::world::World;
use super::{collect, site, timing};

/// `std`'s instants have no constructor; differences from this one are all that counts.
static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A moment of the process's steady clock, for code that wants `std`'s.
pub fn instant(at: Duration) -> Instant {
    *ORIGIN + at
}

/// What a process is started with.
#[derive(Clone)]
pub struct Birth {
    /// Its node's id.
    pub me: u64,
    /// The machine that it runs on.
    pub machine: usize,
    /// Its label.
    pub name: String,
    /// Its zone.
    pub zone: String,
    /// Of its data directory.
    pub incarnation: u64,
    /// Its data directory.
    pub disk: Disk,
    /// It makes the cluster.
    pub founds: bool,
    /// It comes from a join, so nobody can know better who it is.
    pub newborn: bool,
    /// Its directory is neither old nor a copy.
    pub rightful: bool,
}

/// A running process; tasks share it.
pub struct Node {
    /// What it was started with.
    pub birth: Birth,
    /// Its tasks.
    pub process: Arc<Process>,
    /// The world around it.
    pub world: World,
    /// What sees everything.
    pub checks: Checks,
    /// The network.
    pub net: Net,
    /// Real Raft.
    pub raft: Raft,
    /// Tells of changes of the tables.
    pub feed: Feed,
    /// Its own observations.
    pub spool: Spool,
    /// Something new is in the spool.
    pub news: Notify,
    /// This process among those of its directory.
    pub session: Bytes,
    /// How often the directory was started.
    pub boot: u64,
    /// The claim in force.
    pub held: watch::Sender<Option<Epoch>>,
    /// The link to the Web Admin.
    pub link: watch::Sender<Link>,
    /// Whose process is known to be gone, and since when.
    pub gone: watch::Sender<BTreeMap<u64, Duration>>,
    /// Whether it may take part.
    pub admission: watch::Sender<Admission>,
    /// What others said of it.
    pub answers: Mutex<Answers>,
    /// Who voted when it started.
    pub voters: BTreeSet<u64>,
    /// All others that it knew when it started.
    pub others: BTreeSet<u64>,
    /// When it started.
    pub at: Duration,
    /// Processes in touch.
    pub present: Mutex<BTreeMap<u64, (Bytes, usize)>>,
    /// When its next packet may go out.
    pub next_turn: Mutex<Duration>,
    last_word: Mutex<Option<(Duration, u64)>>,
    /// What it measured.
    pub timing: Timing,
    /// What may not be contacted, as the collector told it last.
    pub exclude: Mutex<Vec<ipnet::IpNet>>,
    settings: Mutex<(u64, Arc<Settings>, Duration)>,
}

/// How a process ended before it ran.
pub type Stillborn = String;

impl Node {
    /// Starts a process; its tasks run until it is killed.
    ///
    /// # Errors
    /// When the disk is full, or the log cannot be opened.
    pub async fn start(world: World, birth: Birth, process: Arc<Process>) -> Result<Arc<Node>, Stillborn> {
        let (checks, net) = (world.checks.clone(), world.net.clone());
        spawn(birth.disk.clone().sync_for_ever());
        let boot = birth.disk.look(|image| image.boot) + 1;
        birth.disk.write_synced(|batch| batch.boot(boot)).map_err(|full| full.to_string())?;
        let open = birth.founds || birth.newborn;
        let mut config = raft_config("simulated", world.plan.snapshot_entries, world.plan.snapshot_entries);
        config.enable_elect = open;
        let feed = Feed::new();
        let machine = Machine::new(birth.disk.clone(), feed.clone(), checks.clone(), birth.me);
        let timing = Timing::default();
        let log = Log(birth.disk.clone(), timing.clone());
        let links = Links {
            machine: birth.machine,
            me: birth.me,
            net: net.clone(),
            disk: birth.disk.clone(),
            timing: timing.clone(),
        };
        let raft = Raft::new(birth.me, Arc::new(config), links, log, machine).await;
        let raft = raft.map_err(|fatal| fatal.to_string())?;
        if birth.founds {
            let peer = Peer { machine: birth.machine, incarnation: birth.incarnation };
            raft.initialize(BTreeMap::from([(birth.me, peer)])).await.map_err(|error| error.to_string())?;
        }
        let voters = raft.with_raft_state(|state| state.membership_state.effective().voter_ids().collect());
        let voters: BTreeSet<u64> = voters.await.map_err(|fatal| fatal.to_string())?;
        let mut others: BTreeSet<u64> = members(&birth.disk).iter().map(|member| member.id).collect();
        others.extend(&voters);
        others.remove(&birth.me);
        let gate = if open { Admission::Open } else { Admission::Waiting };
        let node = Arc::new(Node {
            spool: Spool::open(&birth.disk, birth.me),
            session: Bytes::copy_from_slice(&process.serial.to_be_bytes()),
            boot,
            news: Notify::new(),
            held: watch::Sender::new(None),
            link: watch::Sender::new(Link::default()),
            gone: watch::Sender::new(BTreeMap::new()),
            admission: watch::Sender::new(gate),
            answers: Mutex::default(),
            voters,
            others,
            at: steady(),
            present: Mutex::default(),
            next_turn: Mutex::default(),
            last_word: Mutex::default(),
            timing,
            exclude: Mutex::default(),
            settings: Mutex::new((0, Arc::new(Settings::default()), Duration::ZERO)),
            birth,
            process,
            world,
            checks,
            net,
            raft,
            feed,
        });
        node.serve();
        spawn(presence::run(Arc::clone(&node)));
        spawn(timing::keep(Arc::clone(&node)));
        spawn(Arc::clone(&node).end_with_raft());
        Ok(node)
    }

    /// The tasks that `run` of the node spawns, once others know the process.
    pub fn work(self: &Arc<Self>) {
        spawn(duties::lead(Arc::clone(self)));
        spawn(site::link(Arc::clone(self)));
        spawn(collect::report(Arc::clone(self)));
        spawn(collect::run(Arc::clone(self)));
        spawn(collect::reach(Arc::clone(self)));
    }

    /// A process whose Raft has stopped (its disk failed) ends, and whoever supervises it starts another.
    async fn end_with_raft(self: Arc<Self>) {
        let mut metrics = self.raft.metrics();
        loop {
            let failed = metrics.borrow_watched().running_state.as_ref().err().map(ToString::to_string);
            if let Some(why) = failed {
                self.checks.count("processes whose Raft failed");
                self.checks.tell(|| format!("machine {}: Raft failed: {why}", self.birth.machine));
                return self.world.ended(&self, None);
            }
            if metrics.changed().await.is_err() {
                return;
            }
        }
    }

    fn serve(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        let handler = Arc::new(move |envelope, ask| {
            let node = weak.upgrade();
            async move {
                match node {
                    Some(node) => node.answer(envelope, ask).await,
                    None => Reply::Refused("this process has ended".to_owned()),
                }
            }
            .boxed()
        });
        self.net.listen(self.birth.machine, Arc::clone(&self.process), handler);
    }

    /// As the node's `server`: who may speak, and then what Raft says.
    async fn answer(self: Arc<Self>, envelope: Envelope, ask: Ask) -> Reply {
        if envelope.to != self.birth.me || envelope.incarnation != self.birth.incarnation {
            return Reply::Refused("another node is meant".to_owned());
        }
        if let Ask::Attend(asks, caller) = ask {
            return Reply::Verdict(self.attended(envelope.from, &asks, caller));
        }
        if self.lacks(envelope.from) {
            return Reply::Refused("not a member any more".to_owned());
        }
        if *self.admission.borrow() != Admission::Open {
            return Reply::Refused("this process is not yet known to other members".to_owned());
        }
        let broken = |fatal: String| Reply::Refused(fatal);
        match ask {
            Ask::Append(rpc, beat_ms) => match self.raft.append_entries(rpc).await {
                Ok(reply) => {
                    if !matches!(reply, AppendEntriesResponse::HigherVote(_)) {
                        *lock(&self.last_word) = Some((steady(), envelope.from));
                        self.process.set_beat(beat_ms);
                    }
                    Reply::Append(reply, self.timing.fsync_us())
                }
                Err(fatal) => broken(fatal.to_string()),
            },
            Ask::Vote(rpc) => {
                self.raft.vote(rpc).await.map_or_else(|fatal| broken(fatal.to_string()), Reply::Vote)
            }
            Ask::PreVote(rpc) => {
                self.raft.pre_vote(rpc).await.map_or_else(|fatal| broken(fatal.to_string()), Reply::Vote)
            }
            Ask::Snapshot(vote, meta, copy) => {
                let snapshot = openraft::Snapshot { meta, snapshot: copy };
                let reply = self.raft.install_full_snapshot(vote, snapshot).await;
                reply.map_or_else(|fatal| broken(fatal.to_string()), |reply| Reply::Snapshot(reply.vote))
            }
            Ask::Transfer(rpc) => match self.raft.handle_transfer_leader(rpc).await {
                Ok(Ok(())) => Reply::Done,
                Ok(Err(refused)) => Reply::Refused(refused.to_string()),
                Err(fatal) => broken(fatal.to_string()),
            },
            Ask::Propose(command) => self.proposed(&command).await,
            Ask::Attend(..) => Reply::Done,
        }
    }

    fn lacks(&self, node: u64) -> bool {
        self.birth.disk.look(|image| {
            let applied = image.applied.map_or(0, |id| id.index);
            let known = rows::member(&image.tables, NodeId(node)).ok().flatten().is_some();
            let bootstrapped = rows::meta(&image.tables).is_ok_and(|meta| !meta.cluster_id.is_empty());
            !known && bootstrapped && applied >= node
        })
    }

    /// An introduction, judged by the node's own code; who is welcome is in touch until the connection breaks.
    fn attended(self: &Arc<Self>, node: u64, asks: &AttendRequest, caller: Arc<Process>) -> Verdict {
        if self.lacks(node) {
            return Verdict::Removed;
        }
        let mut present = lock(&self.present);
        let seen = self.birth.disk.look(|image| image.seen.get(&node).cloned()).unwrap_or_default();
        match judge(present.get(&node).map(|(session, _)| session), &seen, asks) {
            Err(verdict) => {
                self.checks.count("introductions refused");
                return verdict;
            }
            Ok(None) => {}
            // A full disk forgets; the process is welcome all the same, as it would be were nothing to be noted.
            Ok(Some(seen)) => drop(self.birth.disk.write(|batch| batch.seen(node, seen))),
        }
        present.entry(node).or_insert_with(|| (asks.session.clone(), 0)).1 += 1;
        drop(present);
        let (here, there) = (Arc::clone(self), self.world.machine_of(&caller));
        spawn_in(Some(Arc::clone(&self.process)), async move {
            here.net.broken(here.birth.machine, there, &caller).await;
            let mut present = lock(&here.present);
            if let Some((_, streams)) = present.get_mut(&node) {
                *streams = streams.saturating_sub(1);
                if *streams == 0 {
                    present.remove(&node);
                }
            }
        });
        Verdict::Welcome
    }

    /// When the leader spoke last, and who it was.
    pub fn last_word(&self) -> Option<(Duration, u64)> {
        *lock(&self.last_word)
    }

    /// The settings in force here, with their log index.
    pub fn settings(&self) -> (u64, Arc<Settings>) {
        let (index, toml) = self.birth.disk.look(|image| {
            let meta = rows::meta(&image.tables).unwrap_or_default();
            (meta.settings_index, meta.settings_toml)
        });
        let mut known = lock(&self.settings);
        if known.0 != index {
            match Settings::parse(&toml) {
                Ok(settings) => *known = (index, Arc::new(settings), steady()),
                Err(bad) => {
                    self.checks.violated(format!("settings that nobody can read are in force: {bad}"))
                }
            }
        }
        (known.0, Arc::clone(&known.1))
    }

    /// How long they have been in force here.
    pub fn settings_age(&self) -> Duration {
        steady().saturating_sub(lock(&self.settings).2)
    }

    /// How far the tables are here.
    pub fn applied(&self) -> u64 {
        self.birth.disk.look(|image| image.applied.map_or(0, |id| id.index))
    }

    /// What the first node commits first.
    pub fn bootstrap(&self) -> Kind {
        Kind::Bootstrap(Bootstrap {
            cluster_name: "simulated".to_owned(),
            cluster_id: Bytes::from_static(CLUSTER_ID),
            first: Some(Member { id: self.birth.me, ..member(&self.birth) }),
            ..Bootstrap::default()
        })
    }
}

/// The row of a node, as it asks to be let in.
pub fn member(birth: &Birth) -> Member {
    Member {
        name: birth.name.clone(),
        zone: birth.zone.clone(),
        address: format!("machine-{}:7440", birth.machine),
        version: "simulated".to_owned(),
        cluster_version: quire_proto::CLUSTER_VERSION,
        incarnation: Bytes::copy_from_slice(&birth.incarnation.to_be_bytes()),
        upstream_csr_der: Bytes::from_static(b"request"),
        ..Member::default()
    }
}

/// All members in the tables of a disk.
pub fn members(disk: &Disk) -> Vec<Member> {
    disk.look(|image| rows::members(&image.tables)).unwrap_or_default()
}

/// What a member's row says of where it is.
pub fn peer_of(member: &Member) -> Option<Peer> {
    let machine = member.address.strip_prefix("machine-")?.split(':').next()?.parse().ok()?;
    let incarnation = u64::from_be_bytes(member.incarnation.as_ref().try_into().ok()?);
    Some(Peer { machine, incarnation })
}
