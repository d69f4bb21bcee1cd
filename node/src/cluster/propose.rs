//! Brings a command to the leader, wherever it is, and waits until it is applied.
//!
//! A proposal whose fate is unknown (the leader changed under it) is made again: every command is
//! harmless twice, and a join is recognised by its incarnation.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use prost::Message;
use quire_coordinator::tables::{ReadExt, Table};
use quire_proto::cluster::propose_reply;
use quire_proto::store::{Command, Member, Outcome, command, outcome};
use tokio::sync::watch;
use tokio::time::Instant;

use super::admission::Admission;
use super::network::{Net, known_peer};
use super::raft::{Proposal, Raft};
use super::store::Store;
use crate::clock;

/// A command is at most this long: about 5,000 observations of 800 octets.
pub const PROPOSAL_OCTETS: usize = 4 << 20;
/// Between tries while nobody leads: a tenth of an election.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a proposal has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ProposeError {
    /// Nobody leads, or who leads cannot reach a majority. It was not accepted.
    #[error(
        "no quorum: a majority of the voters cannot be reached; check `quire status` and the links between nodes"
    )]
    NoQuorum,
    /// Sent, but unknown whether it was or will be applied.
    #[error("no answer from the leader in time; the change may still take effect")]
    Timeout,
    /// Refused by the rules; says why.
    #[error("{0}")]
    Rejected(String),
    /// Longer than [`PROPOSAL_OCTETS`].
    #[error("a command of {0} octets is too long: split it")]
    TooLong(usize),
    /// This node's store failed and it has stopped.
    #[error("this node has stopped: {0}")]
    Stopped(String),
}

/// Proposes on behalf of this node; clones share it.
#[derive(Clone)]
pub(crate) struct Proposer {
    pub(crate) me: u64,
    pub(crate) raft: Raft,
    pub(crate) net: Net,
    pub(crate) store: Store,
    /// Whether this process may take part; `None` where nobody else is there to say so.
    pub(crate) admission: Option<watch::Receiver<Admission>>,
}

impl fmt::Debug for Proposer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proposer(node {})", self.me)
    }
}

fn encode(kind: command::Kind, job: &str) -> Result<Bytes, ProposeError> {
    let command = Command { at_ms: clock::now().0, led_at_ms: 0, job: job.to_owned(), kind: Some(kind) };
    let command = Bytes::from(command.encode_to_vec());
    match command.len() {
        length if length > PROPOSAL_OCTETS => Err(ProposeError::TooLong(length)),
        _ => Ok(command),
    }
}

/// The command with the leader's time: a field that comes twice counts as it comes last, so what another who believed
/// to lead wrote is overwritten.
pub(crate) fn led(command: &Bytes) -> Bytes {
    let stamp = Command { led_at_ms: clock::now().0, ..Command::default() };
    let mut stamped = Vec::with_capacity(command.len() + 16);
    stamped.extend_from_slice(command);
    stamped.extend(stamp.encode_to_vec());
    stamped.into()
}

fn accepted(outcome: Outcome) -> Result<Outcome, ProposeError> {
    match outcome.result {
        Some(outcome::Result::Rejected(why)) => Err(ProposeError::Rejected(why)),
        _ => Ok(outcome),
    }
}

enum Try {
    Done(Outcome),
    /// Another node leads, or nobody knows who.
    Elsewhere(Option<u64>),
    /// It may or may not have been taken.
    Unknown,
}

impl Proposer {
    pub(crate) async fn propose(
        &self,
        kind: command::Kind,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        let command = encode(kind, "")?;
        let mut sent = false;
        let tried =
            tokio::time::timeout_at(Instant::now() + patience, self.until_done(&command, &mut sent)).await;
        let outcome = match tried {
            Ok(outcome) => outcome?,
            Err(_) if sent => return Err(ProposeError::Timeout),
            Err(_) => return Err(ProposeError::NoQuorum),
        };
        accepted(outcome)
    }

    /// As [`Proposer::propose`], but only if this node leads, and once: for what another leader must
    /// not be talked into.
    pub(crate) async fn propose_here(
        &self,
        kind: command::Kind,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        self.propose_job("", kind, patience).await
    }

    /// As [`Proposer::propose_here`], for a job of the Web Admin.
    pub(crate) async fn propose_job(
        &self,
        job: &str,
        kind: command::Kind,
        patience: Duration,
    ) -> Result<Outcome, ProposeError> {
        let command = encode(kind, job)?;
        match tokio::time::timeout(patience, self.here(&command)).await {
            Ok(Ok(Try::Done(outcome))) => accepted(outcome),
            Ok(Ok(Try::Elsewhere(_))) => Err(ProposeError::NoQuorum),
            Ok(Ok(Try::Unknown)) | Err(_) => Err(ProposeError::Timeout),
            Ok(Err(error)) => Err(error),
        }
    }

    async fn until_done(&self, command: &Bytes, sent: &mut bool) -> Result<Outcome, ProposeError> {
        let mut told = None;
        for round in 0_usize.. {
            if !self.takes_part() {
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            let target = told.take().or_else(|| self.leader()).or_else(|| self.anybody(round));
            let tried = match target {
                Some(node) if node == self.me => {
                    *sent = true;
                    self.here(command).await?
                }
                Some(node) => self.there(node, command, sent).await,
                None => Try::Elsewhere(None),
            };
            match tried {
                Try::Done(outcome) => return Ok(outcome),
                Try::Elsewhere(leader) => {
                    // Refused before it entered a log: as good as not sent.
                    *sent = false;
                    let news = leader.is_some() && leader != target;
                    told = leader;
                    if !news {
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Try::Unknown => tokio::time::sleep(PAUSE).await,
            }
        }
        Err(ProposeError::NoQuorum)
    }

    /// A process that is not admitted may be a copy of one that is: under that one's name, it would have the cluster take
    /// its observations for the other's, whose own are then dropped as known.
    fn takes_part(&self) -> bool {
        self.admission.as_ref().is_none_or(|admission| *admission.borrow() == Admission::Open)
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.current_leader
    }

    /// Another member to ask who leads: whoever moved to a new address hears from nobody.
    fn anybody(&self, round: usize) -> Option<u64> {
        let members: Vec<Member> = self.store.view().ok()?.all(Table::Members, &[]).ok()?;
        let others: Vec<u64> = members.iter().map(|member| member.id).filter(|id| *id != self.me).collect();
        others.get(round.checked_rem(others.len())?).copied()
    }

    async fn here(&self, command: &Bytes) -> Result<Try, ProposeError> {
        match self.raft.client_write(Proposal(led(command))).await {
            Ok(written) => Ok(Try::Done(written.data.0)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Ok(Try::Elsewhere(to.leader_id.filter(|leader| *leader != self.me)))
            }
            Err(RaftError::APIError(_)) => Ok(Try::Unknown),
            Err(RaftError::Fatal(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
        }
    }

    async fn there(&self, node: u64, command: &Bytes, sent: &mut bool) -> Try {
        *sent = true;
        match self.net.propose(node, known_peer(&self.raft, node), command.clone()).await {
            Ok(propose_reply::Result::Outcome(octets)) => {
                Outcome::decode(octets).map_or(Try::Unknown, Try::Done)
            }
            Ok(propose_reply::Result::Leader(0)) => Try::Elsewhere(None),
            Ok(propose_reply::Result::Leader(leader)) => Try::Elsewhere(Some(leader)),
            Err(status) => {
                tracing::debug!(node, %status, "forward a proposal");
                match status.code() {
                    tonic::Code::Unavailable
                    | tonic::Code::PermissionDenied
                    | tonic::Code::FailedPrecondition => Try::Elsewhere(None),
                    _ => Try::Unknown,
                }
            }
        }
    }
}
