//! Consensus: the replicated log and tables, the members, and how a node becomes one.
//!
//! The rest of the node sees only [`Cluster`]: it proposes commands, reads [`View`]s and watches its
//! [`Standing`]; the leader's duties change the membership through it.
//!
//! ```text
//! Cluster::init | join | open (Start)     me() keys() spool() view() watch() heard() lag()
//! changes()                               propose_job(id, kind, patience)
//! propose(kind, patience)                 add_learner change_voters remove transfer_leader
//! gone() acked() successor()              hand_over(patience) fenced()
//! create_token(ttl, by)                   shutdown()
//! pages()                                 show(node, page)
//! ```
//!
//! Architecture Invariants: only `state::apply` writes tables, and only from the log; rows and
//! `applied` are one batch; a message reaches Raft only from a member that its certificate names and
//! for this incarnation; private keys never leave their node.

mod admission;
mod authorities;
mod backup;
mod changes;
mod directory;
pub(crate) mod fuzz;
mod inspect;
mod keeper;
mod keys;
mod launch;
mod lend;
mod machine;
mod membership;
mod network;
mod open_error;
mod pace;
mod parts;
mod place;
mod presence;
mod propose;
mod raft;
mod recover;
mod register;
mod rotation;
mod server;
mod settings;
pub(crate) mod sim;
mod snapshot;
mod space;
mod spool;
mod standing;
mod start;
mod store;
mod timing;
mod token;
mod vault;
mod volume;
mod wire;
mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::ChangeMembers;
use openraft::errors::{ClientWriteError, RaftError};
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_coordinator::{rows, upgrade};
use quire_proto::id::NodeId;
use quire_proto::store::{CreateToken, Member, Meta, Outcome, command};
use tokio::sync::{mpsc, watch};

pub use changes::{Changes, Seen, Touched};
pub(crate) use inspect::{Inspection, Look, SECRET_FILES, last_heard};
pub use keys::{KeyError, Keys};
pub(crate) use lend::Wanted;
pub use open_error::OpenError;
pub use propose::{PROPOSAL_OCTETS, ProposeError};
pub use settings::{PutError, SettingsError};
pub(crate) use settings::{open_settings, secrets};
pub use space::Space;
pub use spool::{SPOOL_LIMIT, Spool, SpoolError};
pub use standing::{Role, Standing};
pub use store::View;
pub use token::BadToken;

use propose::Proposer;
use raft::{Peer, Types};
use timing::Timing;
use token::Token;

/// What the command line says about a start. On later starts what is given replaces what was stored.
#[derive(Clone, Debug, Default)]
pub struct Start {
    /// Where everything of this node lives.
    pub data_dir: PathBuf,
    /// Default: the host's name.
    pub name: Option<String>,
    /// Default: `default`.
    pub zone: Option<String>,
    /// Where other nodes are listened for. Default: all addresses, port 7440.
    pub listen: Option<SocketAddr>,
    /// `host:port` that other nodes dial. Default: what is listened on.
    pub advertise: Option<String>,
    /// Votes and keeps the log, collects nothing.
    pub witness: bool,
}

/// Who this node is.
#[derive(Clone, Debug)]
pub struct Me {
    /// Log index of the entry that admitted it; 1 for the first.
    pub id: NodeId,
    /// Its label.
    pub name: String,
    /// The zone it stands in.
    pub zone: String,
    /// `host:port` that other nodes dial.
    pub address: String,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Votes and keeps the log, collects nothing.
    pub witness: bool,
    /// 16 octets, for ever the cluster's name to machines.
    pub cluster_id: Bytes,
    /// The cluster's name to humans.
    pub cluster_name: String,
    /// 16 octets of this data directory.
    pub incarnation: Bytes,
}

/// Why the membership did not change.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// Only the leader changes it.
    #[error("this node does not lead{}", .0.map(|id| format!(", node {id} does")).unwrap_or_default())]
    NotLeader(Option<NodeId>),
    /// Refused by the rules of Raft; try again later or ask for something else.
    #[error("{0}")]
    Refused(String),
    /// This node has stopped.
    #[error("this node has stopped: {0}")]
    Stopped(String),
}

/// This node's part of the cluster; clones share it.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<launch::Running>,
    settings: Arc<settings::Latest>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster(node {})", self.me().id)
    }
}

impl Cluster {
    /// Makes a new cluster with this node as its first and only voter.
    ///
    /// # Errors
    /// When the directory holds a node already, or something of this machine fails.
    pub async fn init(start: Start, cluster_name: &str) -> Result<Cluster, OpenError> {
        start::init(start, cluster_name, raft::Tuning::default()).await.map(Cluster::of)
    }

    /// Joins the cluster that `token` names through the member at `seed` (`host:port`). The leader adds
    /// this node to the membership afterwards.
    ///
    /// # Errors
    /// When the directory holds a node already, the token is bad, or nobody lets it in.
    pub async fn join(start: Start, seed: &str, token: &str) -> Result<Cluster, OpenError> {
        start::join(start, seed, token, raft::Tuning::default()).await.map(Cluster::of)
    }

    /// Starts the node that lives in the data directory.
    ///
    /// # Errors
    /// When there is none, it is in use, or its files are damaged.
    pub async fn open(start: Start) -> Result<Cluster, OpenError> {
        start::open(start, raft::Tuning::default()).await.map(Cluster::of)
    }

    /// Makes the node on `data_dir`, which must not run, the only member of its cluster, whose other nodes are lost for
    /// good; answers its name.
    ///
    /// # Errors
    /// When a process runs on it, there is no node, or its files are damaged.
    pub async fn recover(data_dir: &Path) -> Result<String, OpenError> {
        recover::recover(data_dir, &raft::Tuning::default()).await
    }

    /// Makes a node, the only member, of the cluster that was backed up to `file`; answers the cluster's name.
    ///
    /// # Errors
    /// When the directory holds a node already, or the backup is damaged or needs its passphrase.
    pub async fn restore(start: Start, file: &Path, passphrase: Option<&str>) -> Result<String, OpenError> {
        backup::restore(start, file, passphrase, &raft::Tuning::default()).await
    }

    /// Writes a backup of the tables as they are now. Blocks on the disk, and on `out`.
    ///
    /// # Errors
    /// When the tables cannot be read or `out` not be written.
    pub fn backup(&self, passphrase: Option<&str>, out: impl io::Write) -> io::Result<()> {
        backup::write(self.view(), self.keys(), passphrase, out)
    }

    fn of(running: launch::Running) -> Cluster {
        Cluster { inner: Arc::new(running), settings: Arc::default() }
    }

    /// Who this node is.
    pub fn me(&self) -> &Me {
        &self.inner.me
    }

    /// The cluster's secret key, in the generations that are here.
    pub fn keys(&self) -> &Keys {
        self.inner.vault.keys()
    }

    /// This node's own observations that are not committed yet.
    pub fn spool(&self) -> Spool {
        self.inner.spool.clone()
    }

    /// The certificate that other members know this node by.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.inner.vault.certificate()
    }

    /// The PKCS#8 private key for the upstream link; it never leaves this node.
    pub fn upstream_key(&self) -> &crate::tls::Key {
        &self.inner.upstream_key
    }

    fn proposer(&self) -> &Proposer {
        &self.inner.proposer
    }

    /// Brings a command to the leader and waits until it is applied there.
    ///
    /// # Errors
    /// When `patience` ends without it, or the rules refuse it.
    pub async fn propose(&self, kind: command::Kind, patience: Duration) -> Result<Outcome, ProposeError> {
        self.proposer().propose(kind, patience).await
    }

    /// As [`Cluster::propose`], but only if this node leads: for what another leader must not be talked
    /// into, such as this node's own claim.
    ///
    /// # Errors
    /// As [`Cluster::propose`]; [`ProposeError::NoQuorum`] too where this node does not lead.
    pub async fn propose_here(
        &self,
        kind: command::Kind,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        self.proposer().propose_here(kind, patience).await
    }

    /// As [`Cluster::propose_here`], on behalf of a job of the Web Admin: it is done once, however often it is proposed,
    /// and has the same outcome again.
    ///
    /// # Errors
    /// As [`Cluster::propose_here`].
    pub async fn propose_job(
        &self,
        id: &str,
        kind: command::Kind,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        self.proposer().propose_job(id, kind, patience).await
    }

    /// Whether a member is there, as far as this node knows: itself always, others by the leader's last renewal, which
    /// nobody makes without quorum.
    pub fn is_alive(&self, meta: &Meta, member: NodeId) -> bool {
        let heard = || meta.heard.iter().any(|heard| heard.node == member.0);
        member == self.me().id || (self.watch().borrow().quorum && heard())
    }

    /// The tables of this node at this moment.
    ///
    /// # Panics
    /// When this node's database is gone, which nothing survives.
    pub fn view(&self) -> View {
        match self.proposer().store.view() {
            Ok(view) => view,
            Err(error) => panic!("the node's database cannot be read: {error}"),
        }
    }

    /// Follows what applied entries change in the tables of this node.
    pub fn changes(&self) -> Changes {
        self.inner.feed.follow()
    }

    /// Another number whenever measured ways may be others; take a view afterwards.
    pub(crate) fn ways(&self) -> u64 {
        self.inner.feed.ways()
    }

    /// Where this node stands; marked changed whenever something of it changes.
    pub fn watch(&self) -> watch::Receiver<Standing> {
        self.inner.standing.clone()
    }

    /// How much room this node's disk has.
    pub fn space(&self) -> watch::Receiver<Space> {
        self.inner.space.clone()
    }

    /// How long ago each peer acknowledged, the former leader at least spoke; empty unless this node leads.
    pub fn heard(&self) -> BTreeMap<NodeId, Duration> {
        standing::heard(&self.proposer().raft, &self.inner.last_word)
    }

    /// How long ago each node's process was seen to be gone, of those that have not come back.
    pub fn gone(&self) -> BTreeMap<NodeId, Duration> {
        let now = crate::clock::steady();
        let gone = self.inner.gone.borrow();
        gone.iter().map(|(id, since)| (*id, now.saturating_duration_since(*since))).collect()
    }

    /// The last committed entry that each node acknowledged, this one included; empty unless this node leads.
    pub fn acked(&self) -> BTreeMap<NodeId, u64> {
        standing::acked(&self.proposer().raft)
    }

    /// How many log entries each peer lacks; empty unless this node leads.
    pub fn lag(&self) -> BTreeMap<NodeId, u64> {
        standing::lag(&self.proposer().raft)
    }

    /// The pages that other nodes want shown here; `None` where somebody takes them already.
    pub(crate) fn pages(&self) -> Option<mpsc::Receiver<Wanted>> {
        self.inner.counter.take()
    }

    /// Asks another member to show a device's page.
    ///
    /// # Errors
    /// When it does not answer, or says that it shows none now.
    pub(crate) async fn show(
        &self,
        node: NodeId,
        page: quire_proto::cluster::ShowRequest,
    ) -> Result<quire_proto::cluster::ShowReply, tonic::Status> {
        self.proposer().net.show(node.0, page).await
    }

    /// Lets a member receive the log. Returns when that is committed, not when it has caught up.
    ///
    /// # Errors
    /// When this node does not lead or a change is under way.
    pub async fn add_learner(&self, member: &Member) -> Result<(), ChangeError> {
        let peer = Peer { address: member.address.clone(), incarnation: member.incarnation.clone() };
        changed(self.proposer().raft.add_learner(member.id, peer, false).await)
    }

    /// Makes exactly these learners and voters the voters; who loses the vote stays as a learner.
    ///
    /// # Errors
    /// When this node does not lead, a change is under way, or one of them is not a learner yet.
    pub async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), ChangeError> {
        let voters: BTreeSet<u64> = voters.into_iter().map(|id| id.0).collect();
        changed(self.proposer().raft.change_membership(voters, true).await)
    }

    /// Takes a node out of Raft's membership, voter or learner. Its row in the members table is
    /// another matter (`RemoveMember`), and is what shuts it out.
    ///
    /// # Errors
    /// When this node does not lead or a change is under way.
    pub async fn remove(&self, node: NodeId) -> Result<(), ChangeError> {
        let voters = self.inner.standing.borrow().voters.clone();
        if voters.contains(&node) {
            let rest: BTreeSet<u64> = voters.iter().map(|id| id.0).filter(|id| *id != node.0).collect();
            return changed(self.proposer().raft.change_membership(rest, false).await);
        }
        let gone = ChangeMembers::RemoveNodes(BTreeSet::from([node.0]));
        changed(self.proposer().raft.change_membership(gone, false).await)
    }

    /// Asks `node`, a voter, to lead instead of this one. Returns before it does.
    ///
    /// # Errors
    /// When this node does not lead or the other is no voter.
    pub async fn transfer_leader(&self, node: NodeId) -> Result<(), ChangeError> {
        let standing = self.inner.standing.borrow().clone();
        if standing.role != Role::Leader {
            return Err(ChangeError::NotLeader(standing.leader));
        }
        if node == self.me().id {
            // Raft would wait for itself to take over, and refuse all writes meanwhile.
            return Ok(());
        }
        if !standing.voters.contains(&node) {
            return Err(ChangeError::Refused(format!("node {node} does not vote, so it cannot lead")));
        }
        let asked = self.proposer().raft.trigger().transfer_leader(node.0).await;
        asked.map_err(|fatal| ChangeError::Stopped(fatal.to_string()))
    }

    /// The pace of Raft here, and what is measured for it.
    pub(crate) fn timing(&self) -> &Timing {
        &self.inner.timing
    }

    /// The voter that should lead instead of this node: it lives, is fit to lead, and lacks least.
    pub fn successor(&self) -> Option<NodeId> {
        let standing = self.inner.standing.borrow().clone();
        let (heard, lags, view) = (self.heard(), self.lag(), self.view());
        let able = |id: &NodeId| {
            let row = view.row::<Member>(Table::Members, &id.0.to_be_bytes()).ok().flatten();
            let lately = heard.get(id).is_some_and(|ago| *ago < self.timing().succession());
            lately && !standing.gone.contains(id) && row.is_some_and(|member| is_fit(&member))
        };
        let others = standing.voters.iter().filter(|id| **id != self.me().id && able(id));
        others.min_by_key(|id| lags.get(id).copied().unwrap_or(u64::MAX)).copied()
    }

    /// Lets another voter lead, if this node leads and there is one; waits for it, but not longer than
    /// `patience`. True when this node does not lead any more.
    pub async fn hand_over(&self, patience: Duration) -> bool {
        let mut standing = self.watch();
        let moved = async {
            loop {
                if standing.borrow_and_update().role != Role::Leader {
                    return true;
                }
                let Some(successor) = self.successor() else { return false };
                tracing::info!(%successor, "hand the leadership over");
                if let Err(error) = self.transfer_leader(successor).await {
                    tracing::info!(%error, "hand the leadership over");
                }
                let moving = standing.wait_for(|now| now.role != Role::Leader);
                let _ = tokio::time::timeout(self.timing().succession(), moving).await;
            }
        };
        tokio::time::timeout(patience, moved).await.unwrap_or(false)
    }

    /// Asks a member, or this node itself, at the address that it tells others, whether it is there.
    ///
    /// # Errors
    /// When it does not answer there, or is somebody else.
    pub(crate) async fn look(&self, member: &Member) -> io::Result<Look> {
        inspect::look(&self.proposer().net, member).await
    }

    /// Waits until other members will never admit this process, and answers why.
    pub async fn fenced(&self) -> String {
        self.inner.start.fenced().await
    }

    /// Commits a join token that works once within `ttl` and returns its text, which nothing keeps.
    ///
    /// # Errors
    /// As [`Cluster::propose`].
    pub async fn create_token(&self, ttl: Duration, by: &str) -> Result<String, ProposeError> {
        // Of the CA that this node shows: while another one comes, the others show it, too, or soon.
        let token = Token::generate(self.inner.vault.ca_pin())
            .map_err(|error| ProposeError::Stopped(error.to_string()))?;
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        // Older members would keep another row.
        let known = rows::meta(&self.view()).is_ok_and(|meta| meta.cluster_version >= upgrade::ROTATION);
        let create = CreateToken {
            id: token.id.clone(),
            secret_sha256: Bytes::copy_from_slice(&token.secret_sha256()),
            expires_at_ms: crate::clock::now().0.saturating_add(ttl_ms),
            by: by.to_owned(),
            ca_sha256: if known { Bytes::copy_from_slice(&token.ca_pin) } else { Bytes::new() },
        };
        self.propose(command::Kind::CreateToken(create), Duration::from_secs(10)).await?;
        Ok(token.text().to_string())
    }

    /// Stops Raft and the listener and closes the database. Other clones are then of no use, and
    /// while any is alive the directory stays locked.
    pub async fn shutdown(self) {
        self.inner.stop().await;
        if let Some(running) = Arc::into_inner(self.inner) {
            running.close().await;
        }
    }
}

fn changed<T>(result: Result<T, RaftError<Types, ClientWriteError<Types>>>) -> Result<(), ChangeError> {
    match result {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            Err(ChangeError::NotLeader(to.leader_id.map(NodeId)))
        }
        Err(RaftError::APIError(refused)) => Err(ChangeError::Refused(refused.to_string())),
        Err(RaftError::Fatal(fatal)) => Err(ChangeError::Stopped(fatal.to_string())),
    }
}

/// Whether a member may be given the lead: who is draining, or short of disk, would only give it on.
pub(crate) fn is_fit(member: &Member) -> bool {
    !member.draining && member.trouble.is_empty()
}

#[cfg(test)]
mod tests;
