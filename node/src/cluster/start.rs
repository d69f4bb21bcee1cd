//! The three ways to start: a new cluster, a join, and every later start.
//!
//! Order matters: `node.json` is written when everything else is in place, and nothing speaks to other
//! nodes before the database is known to belong to the node that `node.json` names.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use quire_coordinator::tables::{ReadExt, Table};
use quire_proto::cluster::JoinRequest;
use quire_proto::id::NodeId;
use quire_proto::store::{Bootstrap, Member, UpdateMember, command};
use rocksdb::WriteBatch;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::admission::Admission;
use super::directory::{
    CA_CERTIFICATE, CLUSTER_KEY, Card, Directory, NODE_CERTIFICATE, NODE_KEY, UPSTREAM_KEY, octets16,
};
use super::keys::{self, Keys};
use super::machine::Machine;
use super::membership::{self, Doorkeeper, ca_purpose, check_name, names};
use super::network::{Introduction, Net};
use super::place::{Place, labels};
use super::presence::{Gone, Presence, Start as Beginning};
use super::propose::Proposer;
use super::raft::{Log, Peer, Raft, Tuning, away};
use super::register::Register;
use super::server::{self, LastWord, Members};
use super::spool::{SPOOL_LIMIT, Spool};
use super::standing::{self, Standing};
use super::store::{META, Store, key};
use super::token::Token;
use super::writer::{Joiner, Writer};
use super::{Me, OpenError, Start};
use crate::tls::{Acceptor, Authority, Connector, Identity, Key};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A lone voter elects itself within one election timeout; a slow disk gets longer.
const FIRST_ELECTION: Duration = Duration::from_secs(30);

/// A started node.
pub(crate) struct Running {
    pub(crate) me: Me,
    pub(crate) keys: Keys,
    pub(crate) upstream_key: Key,
    pub(crate) ca_certificate: Vec<u8>,
    pub(crate) spool: Spool,
    pub(crate) proposer: Proposer,
    pub(crate) standing: watch::Receiver<Standing>,
    pub(crate) gone: watch::Receiver<Gone>,
    pub(crate) last_word: LastWord,
    pub(crate) start: Arc<Beginning>,
    tasks: Mutex<Tasks>,
    joiner: Joiner,
    _directory: Directory,
}

#[derive(Default)]
struct Tasks {
    leaving: Option<watch::Sender<bool>>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

/// What RocksDB says when the machine is in the way and the files are whole.
const ENVIRONMENT: [&str; 5] =
    ["LOCK:", "No space left", "Permission denied", "Too many open files", "Cannot allocate memory"];

fn failed(what: &'static str) -> impl FnOnce(String) -> OpenError {
    move |reason| OpenError::Start { what, reason }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn owner(card: &Card) -> String {
    format!("cluster {} node {} incarnation {}", card.cluster_id, card.id, card.incarnation)
}

/// Opens the database; a new one is marked as this node's, an old one must be.
async fn database(path: &Path, card: &Card, new: bool) -> Result<Store, OpenError> {
    let (path, owner) = (path.to_owned(), owner(card));
    let opened = away(move || {
        let damaged = |reason: String| OpenError::Damaged { file: path.clone(), reason };
        if !new && !path.join("CURRENT").exists() {
            return Ok(Err(damaged("the database is missing or was wiped".into())));
        }
        let store = match Store::open(&path) {
            Ok(store) => store,
            Err(error) if ENVIRONMENT.iter().any(|sign| error.reason.contains(sign)) => {
                return Ok(Err(failed("open the database")(error.reason)));
            }
            Err(error) => return Ok(Err(damaged(error.to_string()))),
        };
        if new {
            let mut batch = WriteBatch::default();
            batch.put_cf(store.family(META)?, key::OWNER, owner.as_bytes());
            store.write_synced(batch)?;
            return Ok(Ok(store));
        }
        let found = store.meta(key::OWNER)?.unwrap_or_default();
        if found != owner.as_bytes() {
            let found = String::from_utf8_lossy(&found).into_owned();
            return Ok(Err(OpenError::Foreign { file: path.clone(), found }));
        }
        Ok(Ok(store))
    });
    opened.await.map_err(text).map_err(failed("open the database"))?
}

/// What a node needs to run, in memory.
struct Parts {
    card: Card,
    keys: Keys,
    node_key: Key,
    upstream_key: Key,
    certificate: Vec<u8>,
    ca_certificate: Vec<u8>,
}

impl Parts {
    fn me(&self, listen: SocketAddr) -> Result<Me, OpenError> {
        let octets = |hex: &str| {
            octets16(hex)
                .map(|octets| Bytes::copy_from_slice(&octets))
                .ok_or_else(|| OpenError::Address("node.json holds a malformed id".into()))
        };
        Ok(Me {
            id: NodeId(self.card.id),
            name: self.card.name.clone(),
            zone: self.card.zone.clone(),
            address: self.card.advertise.clone(),
            listen,
            witness: self.card.witness,
            cluster_id: octets(&self.card.cluster_id)?,
            cluster_name: self.card.cluster_name.clone(),
            incarnation: octets(&self.card.incarnation)?,
        })
    }

    /// Writes everything to the directory; from here on it holds a node.
    fn settle(&mut self, directory: &Directory) -> Result<(), OpenError> {
        let (node_key, upstream_key) = (self.node_key.to_pkcs8(), self.upstream_key.to_pkcs8());
        let files: [(&str, &[u8]); 5] = [
            (NODE_KEY, &node_key),
            (NODE_CERTIFICATE, &self.certificate),
            (CA_CERTIFICATE, &self.ca_certificate),
            (CLUSTER_KEY, self.keys.octets()),
            (UPSTREAM_KEY, &upstream_key),
        ];
        directory
            .settle(&mut self.card, &files)
            .map_err(|reason| OpenError::Directory { path: directory.path().to_owned(), reason })
    }

    fn load(directory: &Directory) -> Result<Self, OpenError> {
        let card = directory.card()?;
        let damaged =
            |name: &str, reason: String| OpenError::Damaged { file: directory.path().join(name), reason };
        let key = |name: &str| -> Result<Key, OpenError> {
            Key::from_pkcs8(&directory.file(&card, name)?).map_err(|error| damaged(name, error.to_string()))
        };
        let keys = Keys::from_octets(&directory.file(&card, CLUSTER_KEY)?)
            .ok_or_else(|| damaged(CLUSTER_KEY, "it has not 32 octets".into()))?;
        Ok(Parts {
            keys,
            node_key: key(NODE_KEY)?,
            upstream_key: key(UPSTREAM_KEY)?,
            certificate: directory.file(&card, NODE_CERTIFICATE)?.to_vec(),
            ca_certificate: directory.file(&card, CA_CERTIFICATE)?.to_vec(),
            card,
        })
    }

    /// Starts Raft and the listener.
    async fn launch(
        self,
        directory: Directory,
        place: Place,
        store: Store,
        tuning: &Tuning,
        gate: Admission,
    ) -> Result<Running, OpenError> {
        let me = self.me(place.listen)?;
        let tls = |error: crate::tls::TlsError| failed("prepare TLS")(error.to_string());
        let chain: [&[u8]; 2] = [&self.certificate, &self.ca_certificate];
        let identity = Identity::new(&chain, &self.node_key).map_err(tls)?;
        let acceptor = Acceptor::new(identity.clone(), &self.ca_certificate).map_err(tls)?;
        let connector = Connector::new(Some(identity), &self.ca_certificate).map_err(tls)?;

        let stored = "open the log";
        let writer = Writer::start(&store).map_err(text).map_err(failed("start the log's threads"))?;
        let joiner = writer.joiner();
        let machine = Machine::open(store.clone()).map_err(text).map_err(failed(stored))?;
        let spool =
            Spool::open(&store, me.id, SPOOL_LIMIT).map_err(text).map_err(failed("open the spool"))?;
        let boot = {
            let store = store.clone();
            away(move || Ok(store.count_start()?)).await
        }
        .map_err(text)
        .map_err(failed(stored))?;
        let introduction = Introduction { session: random16()?, boot };
        let net = Net::new(me.id.0, me.cluster_id.clone(), connector, store.clone(), introduction);
        let mut config = tuning.config(&me.cluster_name);
        config.enable_elect = gate == Admission::Open;
        let config = config.validate().map_err(text).map_err(failed("configure Raft"))?;
        let log = Log::new(store.clone(), writer);
        let raft = Raft::new(me.id.0, Arc::new(config), net.clone(), log, machine).await;
        let raft = raft.map_err(text).map_err(failed(stored))?;

        let proposer = Proposer { me: me.id.0, raft: raft.clone(), net, store: store.clone() };
        let last_word = LastWord::default();
        let leaving = watch::Sender::new(false);
        let register = Register::new(store.clone());
        let start = Arc::new(Beginning::new(&raft, &store, gate).await.map_err(failed(stored))?);
        let members = Members {
            me: me.id.0,
            cluster_id: me.cluster_id.clone(),
            incarnation: me.incarnation.clone(),
            store: store.clone(),
            raft: raft.clone(),
            gate: super::snapshot::Gate::default(),
            last_word: last_word.clone(),
            leaving: leaving.subscribe(),
            admission: start.admission.subscribe(),
            register: register.clone(),
        };
        let keys = Keys::from_octets(self.keys.octets())
            .ok_or_else(|| failed("copy the cluster key")(String::new()))?;
        let doorkeeper = Doorkeeper::new(proposer.clone(), keys);
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(server::serve(place.listener, acceptor, members, doorkeeper, stopped));
        let (to, standing) = watch::channel(Standing::default());
        let lately = Duration::from_millis(2 * tuning.election_max_ms);
        let gone = watch::Sender::new(Gone::new());
        let presence = Presence {
            me: me.id.0,
            raft: raft.clone(),
            net: proposer.net.clone(),
            store,
            last_word: last_word.clone(),
            gone: gone.clone(),
            register,
            start: Arc::clone(&start),
        };
        let attending = tokio::spawn(presence.run(standing.clone()));
        let observing =
            tokio::spawn(standing::observe(raft, last_word.clone(), gone.subscribe(), lately, to));
        Ok(Running {
            me,
            keys: self.keys,
            upstream_key: self.upstream_key,
            ca_certificate: self.ca_certificate,
            spool,
            proposer,
            standing,
            gone: gone.subscribe(),
            last_word,
            start,
            tasks: Mutex::new(Tasks {
                leaving: Some(leaving),
                stop: Some(stop),
                serving: Some(serving),
                others: vec![observing, attending],
            }),
            joiner,
            _directory: directory,
        })
    }
}

impl Running {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
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
        let Running { proposer, spool, joiner, _directory, .. } = self;
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

fn random16() -> Result<Bytes, OpenError> {
    let octets = keys::random::<16>().map_err(text).map_err(failed("draw random octets"))?;
    Ok(Bytes::copy_from_slice(octets.as_slice()))
}

fn new_key() -> Result<Key, OpenError> {
    Key::generate().map_err(text).map_err(failed("generate a key"))
}

fn request(key: &Key, name: &str) -> Result<Vec<u8>, OpenError> {
    key.request(name).map_err(text).map_err(failed("write a certificate request"))
}

pub(crate) async fn init(start: Start, cluster_name: &str, tuning: Tuning) -> Result<Running, OpenError> {
    if cluster_name.is_empty() || cluster_name.len() > 100 || cluster_name.chars().any(char::is_control) {
        return Err(OpenError::Address("--init needs a name of 1 to 100 printable characters".into()));
    }
    let (name, zone) = labels(&start)?;
    let directory = Directory::lock(&start.data_dir, true)?;
    directory.claim()?;
    let place = Place::take(start.listen, start.advertise.clone()).await?;
    let (cluster_id, incarnation) = (random16()?, random16()?);
    let authority = Authority::generate(&format!("quire {cluster_name}"));
    let authority = authority.map_err(text).map_err(failed("make the cluster's CA"))?;
    let (node_key, upstream_key) = (new_key()?, new_key()?);
    let certificate = authority
        .sign(&request(&node_key, &name)?, &names(&cluster_id, 1))
        .map_err(text)
        .map_err(failed("sign the node's certificate"))?;
    let keys = Keys::generate().map_err(text).map_err(failed("generate the cluster key"))?;
    let sealed = keys
        .seal(&authority.private_key(), &ca_purpose(&cluster_id))
        .map_err(text)
        .map_err(failed("seal the CA key"))?;
    let first = Member {
        id: 1,
        name: name.clone(),
        zone: zone.clone(),
        address: place.advertise.clone(),
        version: VERSION.to_owned(),
        witness: start.witness,
        incarnation: incarnation.clone(),
        upstream_csr_der: request(&upstream_key, &name)?.into(),
        ..Member::default()
    };
    let bootstrap = Bootstrap {
        cluster_name: cluster_name.to_owned(),
        cluster_id: cluster_id.clone(),
        ca_certificate_der: authority.certificate().to_vec().into(),
        ca_private_key_sealed: sealed.into(),
        first: Some(first),
    };
    let card = Card {
        format: 0,
        id: 1,
        name,
        zone,
        listen: place.listen.to_string(),
        advertise: place.advertise.clone(),
        witness: start.witness,
        cluster_id: HEXLOWER.encode(&cluster_id),
        cluster_name: cluster_name.to_owned(),
        incarnation: HEXLOWER.encode(&incarnation),
        files: BTreeMap::new(),
    };
    let mut parts = Parts {
        card,
        keys,
        node_key,
        upstream_key,
        certificate,
        ca_certificate: authority.certificate().to_vec(),
    };
    let store = database(&directory.db(), &parts.card, true).await?;
    found(&mut parts, &store, bootstrap, &place, &tuning).await?;
    parts.settle(&directory)?;
    parts.launch(directory, place, store, &tuning, Admission::Open).await
}

/// Elects the first node and commits the first entry, before anybody can hear of the cluster.
async fn found(
    parts: &mut Parts,
    store: &Store,
    bootstrap: Bootstrap,
    place: &Place,
    tuning: &Tuning,
) -> Result<(), OpenError> {
    let me = parts.me(place.listen)?;
    let what = "found the cluster";
    let writer = Writer::start(store).map_err(text).map_err(failed(what))?;
    let joiner = writer.joiner();
    let machine = Machine::open(store.clone()).map_err(text).map_err(failed(what))?;
    let connector = Connector::new(None, &parts.ca_certificate).map_err(text).map_err(failed(what))?;
    let net = Net::new(1, me.cluster_id.clone(), connector, store.clone(), Introduction::default());
    let config = tuning.config(&me.cluster_name).validate().map_err(text).map_err(failed(what))?;
    let log = Log::new(store.clone(), writer);
    let raft = Raft::new(1, Arc::new(config), net.clone(), log, machine).await;
    let raft = raft.map_err(text).map_err(failed(what))?;
    let peer = Peer { address: me.address, incarnation: me.incarnation };
    raft.initialize(BTreeMap::from([(1, peer)])).await.map_err(text).map_err(failed(what))?;
    let proposer = Proposer { me: 1, raft: raft.clone(), net, store: store.clone() };
    let committed = proposer.propose(command::Kind::Bootstrap(bootstrap), FIRST_ELECTION).await;
    raft.shutdown().await.map_err(text).map_err(failed(what))?;
    drop((proposer, raft));
    let _ = away(move || {
        joiner.join();
        Ok(())
    })
    .await;
    committed.map(|_| ()).map_err(text).map_err(failed(what))
}

pub(crate) async fn join(
    start: Start,
    seed: &str,
    token: &str,
    tuning: Tuning,
) -> Result<Running, OpenError> {
    let token = Token::parse(token)?;
    let (name, zone) = labels(&start)?;
    let directory = Directory::lock(&start.data_dir, true)?;
    directory.claim()?;
    let place = Place::take(start.listen, start.advertise.clone()).await?;
    let (node_key, upstream_key) = (new_key()?, new_key()?);
    let incarnation = random16()?;
    let asked = JoinRequest {
        token_id: token.id.clone(),
        token_secret: Bytes::copy_from_slice(&token.secret),
        csr_der: request(&node_key, &name)?.into(),
        name: name.clone(),
        zone: zone.clone(),
        address: place.advertise.clone(),
        version: VERSION.to_owned(),
        witness: start.witness,
        incarnation: incarnation.clone(),
        upstream_csr_der: request(&upstream_key, &name)?.into(),
        wire_version: quire_proto::WIRE_VERSION,
    };
    let reply = membership::ask(seed, &token, asked).await?;
    membership::verify(&token, &reply)?;
    let keys = Keys::from_octets(&reply.cluster_key)
        .ok_or_else(|| OpenError::Refused("the answer to the join brings no cluster key".into()))?;
    let card = Card {
        format: 0,
        id: reply.node,
        name,
        zone,
        listen: place.listen.to_string(),
        advertise: place.advertise.clone(),
        witness: start.witness,
        cluster_id: HEXLOWER.encode(&reply.cluster_id),
        cluster_name: reply.cluster_name,
        incarnation: HEXLOWER.encode(&incarnation),
        files: BTreeMap::new(),
    };
    let mut parts = Parts {
        card,
        keys,
        node_key,
        upstream_key,
        certificate: reply.certificate_der.to_vec(),
        ca_certificate: reply.ca_certificate_der.to_vec(),
    };
    let store = database(&directory.db(), &parts.card, true).await?;
    parts.settle(&directory)?;
    parts.launch(directory, place, store, &tuning, Admission::Open).await
}

pub(crate) async fn open(start: Start, tuning: Tuning) -> Result<Running, OpenError> {
    let directory = Directory::lock(&start.data_dir, false)?;
    let mut parts = Parts::load(&directory)?;
    let before = parts.card.clone();
    let stored_listen = parts.card.listen.parse().ok();
    let advertise = match (&start.advertise, start.listen) {
        (Some(advertise), _) => Some(advertise.clone()),
        (None, Some(listen)) if Some(listen) != stored_listen => None,
        _ => Some(parts.card.advertise.clone()),
    };
    let place = Place::take(start.listen.or(stored_listen), advertise).await?;
    let card = &mut parts.card;
    card.name = start.name.clone().unwrap_or_else(|| card.name.clone());
    card.zone = start.zone.clone().unwrap_or_else(|| card.zone.clone());
    check_name("--name", &card.name).map_err(OpenError::Address)?;
    check_name("--zone", &card.zone).map_err(OpenError::Address)?;
    card.witness |= start.witness;
    card.listen = place.listen.to_string();
    card.advertise.clone_from(&place.advertise);
    let store = database(&directory.db(), card, false).await?;
    if *card != before {
        parts.settle(&directory)?;
    }
    let running = parts.launch(directory, place, store, &tuning, Admission::Waiting).await?;
    if let Err(why) = running.start.introduced().await {
        running.stop().await;
        running.close().await;
        return Err(OpenError::Fenced(why));
    }
    let mut gate = running.start.admission.subscribe();
    let (proposer, me) = (running.proposer.clone(), running.me.clone());
    running.spawn(async move {
        if gate.wait_for(|gate| *gate == Admission::Open).await.is_ok() {
            announce(proposer, me).await;
        }
    });
    Ok(running)
}

/// Commits what this start changed about the node, as soon as there is a quorum.
async fn announce(proposer: Proposer, me: Me) {
    /// A node that changed its address tells the cluster at once, and again until it is known.
    const AGAIN: Duration = Duration::from_secs(2);
    loop {
        let row = proposer
            .store
            .view()
            .ok()
            .and_then(|view| view.row::<Member>(Table::Members, &me.id.0.to_be_bytes()).ok().flatten());
        if let Some(row) = row {
            let now = Member {
                name: me.name.clone(),
                zone: me.zone.clone(),
                address: me.address.clone(),
                version: VERSION.to_owned(),
                witness: me.witness,
                ..row.clone()
            };
            if now == row {
                return;
            }
            let update = command::Kind::UpdateMember(UpdateMember { member: Some(now) });
            if let Err(reason) = proposer.propose(update, Duration::from_secs(10)).await {
                tracing::info!(%reason, "tell the cluster about this start");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
