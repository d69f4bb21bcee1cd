//! A running node: Raft on its database, the listener, and the tasks that watch both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quire_proto::store::command;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::admission::Admission;
use super::authorities::Authorities;
use super::changes::Feed;
use super::directory::Directory;
use super::keeper::Keeper;
use super::lend::Counter;
use super::machine::Machine;
use super::membership::Doorkeeper;
use super::network::{Introduction, Net};
use super::parts::{Parts, random16};
use super::place::Place;
use super::presence::{Gone, Presence, Start};
use super::propose::Proposer;
use super::raft::{Log, Peer, Raft, Tuning, away};
use super::register::Register;
use super::server::{self, LastWord, Members, Roll};
use super::snapshot::{Gate, Shelf};
use super::space::{self, Space};
use super::spool::{SPOOL_LIMIT, Spool};
use super::standing::{self, Standing};
use super::store::Store;
use super::timing::Timing;
use super::vault::Vault;
use super::volume::Volume;
use super::writer::{Joiner, Writer};
use super::{Me, OpenError};
use crate::tls::{Acceptor, Connector, Key, Trust};

/// A lone voter elects itself within one election timeout; a slow disk gets longer.
const FIRST_ELECTION: Duration = Duration::from_secs(30);

/// A started node.
pub(crate) struct Running {
    pub(crate) me: Me,
    pub(crate) vault: Arc<Vault>,
    pub(crate) upstream_key: Key,
    pub(crate) spool: Spool,
    pub(crate) proposer: Proposer,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) feed: Feed,
    pub(crate) gone: watch::Receiver<Gone>,
    pub(crate) space: watch::Receiver<Space>,
    pub(crate) last_word: LastWord,
    pub(crate) start: Arc<Start>,
    pub(crate) counter: Counter,
    pub(crate) timing: Timing,
    tasks: Mutex<Tasks>,
    joiner: Joiner,
}

#[derive(Default)]
struct Tasks {
    leaving: Option<watch::Sender<bool>>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

/// Raft on a database, and the threads that write for it.
pub(crate) struct Engine {
    pub(crate) proposer: Proposer,
    feed: Feed,
    timing: Timing,
    volume: Volume,
    shelf: Shelf,
    joiner: Joiner,
}

impl Engine {
    /// Starts Raft where its log ends. With `elect` it may stand for election.
    pub(crate) async fn start(
        me: &Me,
        store: &Store,
        connector: Connector,
        introduction: Introduction,
        tuning: &Tuning,
        elect: bool,
    ) -> Result<Engine, OpenError> {
        let timing = Timing::open(store).map_err(OpenError::during("read the pace"))?;
        let writer =
            Writer::start(store, timing.clone()).map_err(OpenError::during("start the log's threads"))?;
        let joiner = writer.joiner();
        let (feed, shelf) = (Feed::new(), Shelf::default());
        let machine = Machine::open(store.clone(), feed.clone(), shelf.clone(), tuning.cluster_version)
            .map_err(OpenError::during("open the tables"))?;
        let (cluster_id, of_net) = (me.cluster_id.clone(), timing.clone());
        let of_store = (store.clone(), shelf.clone());
        let net = Net::new(me.id.0, cluster_id, connector, of_store, introduction, of_net);
        let mut config = tuning.config(&me.cluster_name);
        config.enable_elect = elect;
        let config = config.validate().map_err(OpenError::during("configure Raft"))?;
        let volume = Volume::default();
        let log = Log::new(store.clone(), writer, volume.clone());
        let raft = timing.pace.keep(Raft::new(me.id.0, Arc::new(config), net.clone(), log, machine)).await;
        let raft = raft.map_err(OpenError::during("open the log"))?;
        let proposer = Proposer { me: me.id.0, raft, net, store: store.clone(), admission: None };
        Ok(Engine { proposer, feed, timing, volume, shelf, joiner })
    }

    /// Stops Raft and waits for its threads.
    pub(crate) async fn stop(self) -> Result<(), OpenError> {
        let Engine { proposer, joiner, .. } = self;
        proposer.raft.shutdown().await.map_err(OpenError::during("stop Raft"))?;
        drop(proposer);
        let joined = away(move || {
            joiner.join();
            Ok(())
        });
        joined.await.map_err(OpenError::during("end the log's threads"))
    }
}

/// Runs Raft on this node alone, before anybody can hear of it, until `first` is committed; with `found` as the first
/// member of a new cluster, else as the only voter that log and tables name.
pub(crate) async fn alone(
    me: &Me,
    authorities: &Authorities,
    store: &Store,
    first: command::Kind,
    found: Option<Peer>,
    tuning: &Tuning,
) -> Result<(), OpenError> {
    let what = "commit the first entry";
    let trust = Trust::new(&authorities.roots()).map_err(OpenError::during(what))?;
    let connector = Connector::new(None, trust).map_err(OpenError::during(what))?;
    let engine = Engine::start(me, store, connector, Introduction::default(), tuning, true).await?;
    if let Some(peer) = found {
        let members = BTreeMap::from([(me.id.0, peer)]);
        engine.proposer.raft.initialize(members).await.map_err(OpenError::during(what))?;
    }
    let committed = engine.proposer.propose(first, FIRST_ELECTION).await;
    engine.stop().await?;
    committed.map(|_| ()).map_err(OpenError::during(what))
}

/// What the listener and presence share.
struct Shared {
    last_word: LastWord,
    leaving: watch::Sender<bool>,
    register: Register,
    start: Arc<Start>,
    counter: Counter,
    timing: Timing,
}

impl Shared {
    /// Starts answering other nodes; the sender ends it.
    fn serve(
        &self,
        me: &Me,
        proposer: &Proposer,
        (vault, life): (&Vault, Duration),
        place: Place,
        acceptor: Acceptor,
    ) -> (oneshot::Sender<()>, JoinHandle<()>) {
        let members = Members {
            me: me.id.0,
            cluster_id: me.cluster_id.clone(),
            incarnation: me.incarnation.clone(),
            store: proposer.store.clone(),
            roll: Roll(proposer.store.clone()),
            raft: proposer.raft.clone(),
            gate: Gate::default(),
            last_word: self.last_word.clone(),
            leaving: self.leaving.subscribe(),
            admission: self.start.admission.subscribe(),
            register: self.register.clone(),
            door: self.counter.door(),
            timing: self.timing.clone(),
            keys: vault.keys().clone(),
            trust: vault.trust(),
        };
        let doorkeeper = Doorkeeper::new(proposer.clone(), vault.keys().clone(), life);
        let (stop, stopped) = oneshot::channel();
        (stop, tokio::spawn(server::serve(place.listener, acceptor, members, doorkeeper, stopped)))
    }

    /// Starts attending other nodes.
    fn attend(
        &self,
        proposer: &Proposer,
        gone: &watch::Sender<Gone>,
        standing: watch::Receiver<Standing>,
    ) -> JoinHandle<()> {
        let presence = Presence {
            me: proposer.me,
            raft: proposer.raft.clone(),
            net: proposer.net.clone(),
            store: proposer.store.clone(),
            last_word: self.last_word.clone(),
            gone: gone.clone(),
            register: self.register.clone(),
            start: Arc::clone(&self.start),
            timing: self.timing.clone(),
        };
        tokio::spawn(presence.run(standing))
    }
}

/// Starts Raft and the listener.
pub(crate) async fn launch(
    parts: Parts,
    directory: Directory,
    place: Place,
    store: Store,
    tuning: &Tuning,
    gate: Admission,
) -> Result<Running, OpenError> {
    let me = parts.me(place.listen)?;
    let vault = Arc::new(Vault::new(&parts, directory)?);
    let (acceptor, connector) = vault.tls()?;
    let spool = Spool::open(&store, me.id, SPOOL_LIMIT).map_err(OpenError::during("open the spool"))?;
    let counted = store.clone();
    let boot =
        away(move || Ok(counted.count_start()?)).await.map_err(OpenError::during("count the start"))?;
    let introduction = Introduction { session: random16()?, boot };
    let elect = gate == Admission::Open;
    let engine = Engine::start(&me, &store, connector, introduction, tuning, elect).await?;
    let Engine { mut proposer, feed, timing, volume, shelf, joiner } = engine;
    let start = Start::new(&proposer.raft, &store, gate).await.map_err(OpenError::during("open the log"))?;
    proposer.admission = Some(start.admission.subscribe());
    let shared = Shared {
        last_word: LastWord::default(),
        leaving: watch::Sender::new(false),
        register: Register::new(store.clone()),
        start: Arc::new(start),
        counter: Counter::new(),
        timing: timing.clone(),
    };
    let life = tuning.certificate_life;
    let (stop, serving) = shared.serve(&me, &proposer, (&vault, life), place, acceptor);
    let (tell, standing) = watch::channel(Standing::default());
    let gone = watch::Sender::new(Gone::new());
    let attending = shared.attend(&proposer, &gone, standing.clone());
    let (raft, last_word) = (proposer.raft.clone(), shared.last_word.clone());
    let (tell_space, space) = watch::channel(Space::default());
    let watching = tokio::spawn(space::keep(vault.path().to_owned(), proposer.clone(), tell_space));
    let keeper = Keeper { proposer: proposer.clone(), vault: vault.clone(), life };
    let keeping = tokio::spawn(keeper.keep());
    let observing = tokio::spawn(standing::observe(raft, last_word, gone.subscribe(), timing.clone(), tell));
    let purging = tokio::spawn(volume.keep(proposer.raft.clone(), shelf));
    let pacing = tokio::spawn(timing.clone().keep(store, standing.clone()));
    Ok(Running {
        me,
        vault,
        upstream_key: parts.upstream_key,
        spool,
        proposer,
        standing,
        feed,
        gone: gone.subscribe(),
        space,
        last_word: shared.last_word,
        start: shared.start,
        counter: shared.counter,
        timing,
        tasks: Mutex::new(Tasks {
            leaving: Some(shared.leaving),
            stop: Some(stop),
            serving: Some(serving),
            others: vec![observing, attending, watching, keeping, pacing, purging],
        }),
        joiner,
    })
}

impl Running {
    /// Runs a task until the node stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).others.push(tokio::spawn(task));
    }

    /// Stops Raft, the listener and every task; waits for them, but not for ever.
    pub(crate) async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(leaving) = &tasks.leaving {
            leaving.send_replace(true);
        }
        // The listener first: a message for a Raft that has stopped is an error in somebody's log.
        if let Some(stop) = tasks.stop {
            let _ = stop.send(());
        }
        if let Some(mut serving) = tasks.serving {
            // Peers get a moment to end their calls; then connections are cut.
            if tokio::time::timeout(Duration::from_secs(1), &mut serving).await.is_err() {
                serving.abort();
                let _ = serving.await;
            }
        }
        if let Err(reason) = self.proposer.raft.shutdown().await {
            tracing::warn!(%reason, "stop Raft");
        }
        for task in tasks.others {
            task.abort();
            let _ = task.await;
        }
    }

    /// Waits until the database is closed: its threads first, then its handles.
    pub(crate) async fn close(self) {
        // The vault holds the directory's lock until all is closed.
        let Running { proposer, spool, joiner, vault: _locked, .. } = self;
        let store = proposer.store.clone();
        drop((proposer, spool));
        let _ = away(move || {
            joiner.join();
            // Connection tasks of the listener let go of their handles as they end.
            for _ in 0..500 {
                if store.holders() == 1 {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(store);
            Ok(())
        })
        .await;
    }
}
