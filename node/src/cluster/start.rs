//! The three ways to start: a new cluster, a join, and every later start.
//!
//! Order matters: `node.json` is written when everything else is in place, and nothing speaks to other
//! nodes before the database is known to belong to the node that `node.json` names.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use quire_coordinator::tables::{ReadExt, Table};
use quire_coordinator::{rows, upgrade};
use quire_proto::cluster::JoinRequest;
use quire_proto::store::{Bootstrap, Member, Meta, UpdateMember, command};
use rocksdb::WriteBatch;

use super::admission::Admission;
use super::authorities::Authorities;
use super::directory::{Card, Directory};
use super::keeper::{overdue, until};
use super::keys::{self, Keys};
use super::launch::{Running, alone, launch};
use super::membership::{self, ca_purpose, check_name, names};
use super::parts::{Newborn, Parts, random16};
use super::place::{Place, labels};
use super::propose::Proposer;
use super::raft::{Peer, Tuning, away};
use super::space;
use super::store::{META, Store, View, key};
use super::token::Token;
use super::{Me, OpenError, Start};
use crate::tls::Authority;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What RocksDB says when the machine is in the way and the files are whole.
const ENVIRONMENT: [&str; 5] =
    ["LOCK:", "No space left", "Permission denied", "Too many open files", "Cannot allocate memory"];

/// How a database names the node that it is of.
pub(crate) fn owner(card: &Card) -> String {
    format!("cluster {} node {} incarnation {}", card.cluster_id, card.id, card.incarnation)
}

/// Opens the database; a new one is marked as this node's, an old one must be.
pub(crate) async fn database(path: &Path, card: &Card, new: bool) -> Result<Store, OpenError> {
    let (path, owner) = (path.to_owned(), owner(card));
    let opened = away(move || {
        let damaged = |reason: String| OpenError::Damaged { file: path.clone(), reason };
        if !new && !path.join("CURRENT").exists() {
            return Ok(Err(damaged("the database is missing or was wiped".into())));
        }
        let store = match Store::open(&path) {
            Ok(store) => store,
            Err(error) if ENVIRONMENT.iter().any(|sign| error.reason.contains(sign)) => {
                return Ok(Err(OpenError::during("open the database")(error.reason)));
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
    opened.await.map_err(OpenError::during("open the database"))?
}

pub(crate) async fn init(start: Start, cluster_name: &str, tuning: Tuning) -> Result<Running, OpenError> {
    if cluster_name.is_empty() || cluster_name.len() > 100 || cluster_name.chars().any(char::is_control) {
        return Err(OpenError::Address("--init needs a name of 1 to 100 printable characters".into()));
    }
    let labels = labels(&start)?;
    let directory = Directory::lock(&start.data_dir, true)?;
    directory.claim()?;
    let place = Place::take(start.listen, start.advertise).await?;
    let newborn = Newborn::new(labels, start.witness)?;
    let cluster_id = random16()?;
    let authority = Authority::generate(&format!("quire {cluster_name}"))
        .map_err(OpenError::during("make the cluster's CA"))?;
    let certificate = authority
        .sign(
            &newborn.request(&newborn.node_key)?,
            &names(&cluster_id, 1),
            until(&Meta::default(), tuning.certificate_life),
        )
        .map_err(OpenError::during("sign the node's certificate"))?;
    let keys = Keys::generate().map_err(OpenError::during("generate the cluster key"))?;
    let sealed = keys
        .seal(keys::FIRST, &authority.private_key(), &ca_purpose(&cluster_id))
        .map_err(OpenError::during("seal the CA key"))?;
    let rotates = tuning.cluster_version >= upgrade::ROTATION;
    let bootstrap = Bootstrap {
        cluster_name: cluster_name.to_owned(),
        cluster_id: cluster_id.clone(),
        ca_certificate_der: authority.certificate().to_vec().into(),
        ca_private_key_sealed: sealed.into(),
        first: Some(Member {
            id: 1,
            name: newborn.name.clone(),
            zone: newborn.zone.clone(),
            address: place.advertise.clone(),
            version: VERSION.to_owned(),
            cluster_version: tuning.cluster_version,
            witness: newborn.witness,
            incarnation: newborn.incarnation.clone(),
            upstream_csr_der: newborn.request(&newborn.upstream_key)?.into(),
            certificate_der: if rotates { certificate.clone().into() } else { Bytes::new() },
            ..Member::default()
        }),
    };
    let mut parts = Parts {
        card: newborn.card(1, (&cluster_id, cluster_name), &place),
        keys,
        node_key: newborn.node_key,
        upstream_key: newborn.upstream_key,
        certificate,
        authorities: Authorities::of(&[authority.certificate()]).unwrap_or_default(),
    };
    let store = database(&directory.db(), &parts.card, true).await?;
    let me = parts.me(place.listen)?;
    let first = command::Kind::Bootstrap(bootstrap);
    let peer = Peer { address: me.address.clone(), incarnation: me.incarnation.clone() };
    alone(&me, &parts.authorities, &store, first, Some(peer), &tuning).await?;
    parts.settle(&directory)?;
    launch(parts, directory, place, store, &tuning, Admission::Open).await
}

pub(crate) async fn join(
    start: Start,
    seed: &str,
    token: &str,
    tuning: Tuning,
) -> Result<Running, OpenError> {
    let token = Token::parse(token)?;
    let labels = labels(&start)?;
    let directory = Directory::lock(&start.data_dir, true)?;
    directory.claim()?;
    let place = Place::take(start.listen, start.advertise).await?;
    let newborn = Newborn::new(labels, start.witness)?;
    let asked = JoinRequest {
        token_id: token.id.clone(),
        token_secret: Bytes::copy_from_slice(&token.secret),
        csr_der: newborn.request(&newborn.node_key)?.into(),
        name: newborn.name.clone(),
        zone: newborn.zone.clone(),
        address: place.advertise.clone(),
        version: VERSION.to_owned(),
        witness: newborn.witness,
        incarnation: newborn.incarnation.clone(),
        upstream_csr_der: newborn.request(&newborn.upstream_key)?.into(),
        wire_version: quire_proto::WIRE_VERSION,
        cluster_version: tuning.cluster_version,
    };
    let reply = membership::ask(seed, &token, asked).await?;
    let authorities = membership::verify(&token, &reply)?;
    let keys = Keys::from_octets(&reply.cluster_key)
        .ok_or_else(|| OpenError::Refused("the answer to the join brings no cluster key".into()))?;
    let mut parts = Parts {
        card: newborn.card(reply.node, (&reply.cluster_id, &reply.cluster_name), &place),
        keys,
        node_key: newborn.node_key,
        upstream_key: newborn.upstream_key,
        certificate: reply.certificate_der.to_vec(),
        authorities,
    };
    let store = database(&directory.db(), &parts.card, true).await?;
    parts.settle(&directory)?;
    launch(parts, directory, place, store, &tuning, Admission::Open).await
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
    space::give_up_reserve(directory.path());
    let store = database(&directory.db(), card, false).await?;
    let view = store.view().map_err(OpenError::during("read the tables"))?;
    let meta = rows::meta(&view).map_err(OpenError::during("read the tables"))?;
    upgrade::check(&meta, tuning.cluster_version).map_err(|why| OpenError::Refused(why.to_string()))?;
    let renewed = renew(&mut parts, &view, tuning.certificate_life);
    drop(view);
    if renewed || parts.card != before {
        parts.settle(&directory)?;
    }
    let running = launch(parts, directory, place, store, &tuning, Admission::Waiting).await?;
    if let Err(why) = running.start.introduced().await {
        running.stop().await;
        running.close().await;
        return Err(OpenError::Fenced(why));
    }
    let mut gate = running.start.admission.subscribe();
    let (proposer, me) = (running.proposer.clone(), running.me.clone());
    running.spawn(async move {
        if gate.wait_for(|gate| *gate == Admission::Open).await.is_ok() {
            announce(proposer, me, tuning.cluster_version).await;
        }
    });
    Ok(running)
}

/// A certificate that ended while the node was off is renewed before anybody sees it.
fn renew(parts: &mut Parts, view: &View, life: Duration) -> bool {
    let shown = (&parts.node_key, parts.certificate.as_slice());
    match overdue((&parts.keys, view), parts.card.id, shown, life) {
        Ok(None) => false,
        Ok(Some(certificate)) => {
            tracing::info!("this node's certificate had ended, or nearly: it has a new one");
            parts.certificate = certificate;
            true
        }
        Err(why) => {
            tracing::warn!(%why, "this node's certificate has ended and cannot be renewed: others will refuse it");
            false
        }
    }
}

/// Commits what this start changed about the node, as soon as there is a quorum.
async fn announce(proposer: Proposer, me: Me, cluster_version: u32) {
    /// A node that changed its address tells the cluster at once, and again until it is known.
    const AGAIN: Duration = Duration::from_secs(2);
    loop {
        let row = proposer
            .store
            .view()
            .ok()
            .and_then(|view| view.row::<Member>(Table::Members, &me.id.0.to_be_bytes()).ok().flatten());
        if let Some(row) = row {
            let known = (&row.name, &row.zone, &row.address, row.version.as_str(), row.witness);
            let same = known == (&me.name, &me.zone, &me.address, VERSION, me.witness);
            if same && row.cluster_version == cluster_version {
                return;
            }
            let update = command::Kind::UpdateMember(UpdateMember {
                id: row.id,
                name: Some(me.name.clone()),
                zone: Some(me.zone.clone()),
                address: Some(me.address.clone()),
                version: Some(VERSION.to_owned()),
                cluster_version: Some(cluster_version),
                witness: Some(me.witness),
                ..UpdateMember::default()
            });
            if let Err(reason) = proposer.propose(update, Duration::from_secs(10)).await {
                tracing::info!(%reason, "tell the cluster about this start");
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
