//! Brings a command to the leader and waits until it is applied, as the node's `propose` does: a command whose fate is
//! unknown is made again.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::errors::{ClientWriteError, RaftError};
use prost::Message as _;
use quire_node::sim::Admission;
use quire_proto::store::command::Kind;
use quire_proto::store::{Command, Outcome, outcome};

use super::net::{Ask, NoReply, Reply};
use super::node::{Node, members};
use super::raft::{Peer, Proposal};
use super::runtime::{calendar_ms, sleep_ms, timeout};
use super::transport::Links;

/// Between tries while nobody leads.
const PAUSE_MS: u64 = 50;

/// Why there is no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Nobody leads here.
    NoQuorum,
    /// It may still be applied.
    Unknown,
    /// Refused by the rules.
    Rejected(String),
}

enum Try {
    Done(Outcome),
    Elsewhere(Option<u64>),
    Unknown,
}

fn encode(kind: Kind, job: &str) -> Bytes {
    let command = Command { at_ms: calendar_ms(), led_at_ms: 0, job: job.to_owned(), kind: Some(kind) };
    command.encode_to_vec().into()
}

/// With the leader's time, which overwrites an earlier one.
fn led(command: &Bytes) -> Bytes {
    let stamp = Command { led_at_ms: calendar_ms(), ..Command::default() };
    let mut stamped = command.to_vec();
    stamped.extend(stamp.encode_to_vec());
    stamped.into()
}

impl Node {
    /// Brings a command to whoever leads.
    ///
    /// # Errors
    /// When `patience` ends without an outcome, or the rules refuse it.
    pub async fn propose(self: &Arc<Self>, kind: Kind, patience: Duration) -> Result<Outcome, Failed> {
        let command = encode(kind, "");
        match timeout(patience, self.until_done(&command)).await {
            Ok(outcome) => self.accepted(outcome, &command),
            Err(_) => Err(Failed::Unknown),
        }
    }

    /// Only if this node leads, and once.
    ///
    /// # Errors
    /// As [`Node::propose`].
    pub async fn propose_here(
        self: &Arc<Self>,
        job: &str,
        kind: Kind,
        patience: Duration,
    ) -> Result<Outcome, Failed> {
        let command = encode(kind, job);
        match timeout(patience, self.here(&command)).await {
            Ok(Try::Done(outcome)) => self.accepted(outcome, &command),
            Ok(Try::Elsewhere(_)) => Err(Failed::NoQuorum),
            Ok(Try::Unknown) | Err(_) => Err(Failed::Unknown),
        }
    }

    fn accepted(&self, outcome: Outcome, command: &Bytes) -> Result<Outcome, Failed> {
        self.checks.acknowledged(outcome.index, command);
        match outcome.result {
            Some(outcome::Result::Rejected(why)) => Err(Failed::Rejected(why)),
            _ => Ok(outcome),
        }
    }

    async fn until_done(self: &Arc<Self>, command: &Bytes) -> Outcome {
        let mut told = None;
        for round in 0_usize.. {
            if *self.admission.borrow() != Admission::Open {
                sleep_ms(PAUSE_MS).await;
                continue;
            }
            let target = told.take().or_else(|| self.leader()).or_else(|| self.anybody(round));
            let tried = match target {
                Some(node) if node == self.birth.me => self.here(command).await,
                Some(node) => self.there(node, command).await,
                None => Try::Elsewhere(None),
            };
            match tried {
                Try::Done(outcome) => return outcome,
                Try::Elsewhere(leader) => {
                    let news = leader.is_some() && leader != target;
                    told = leader;
                    if !news {
                        sleep_ms(PAUSE_MS).await;
                    }
                }
                Try::Unknown => sleep_ms(PAUSE_MS).await,
            }
        }
        std::future::pending().await
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().current_leader
    }

    fn anybody(&self, round: usize) -> Option<u64> {
        let others: Vec<u64> = members(&self.birth.disk).iter().map(|member| member.id).collect();
        let others: Vec<u64> = others.into_iter().filter(|id| *id != self.birth.me).collect();
        others.get(round.checked_rem(others.len())?).copied()
    }

    async fn here(&self, command: &Bytes) -> Try {
        match self.raft.client_write(Proposal(led(command))).await {
            Ok(written) => Try::Done(written.data.0),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Try::Elsewhere(to.leader_id.filter(|leader| *leader != self.birth.me))
            }
            Err(RaftError::APIError(_)) => Try::Unknown,
            // This process is ending.
            Err(RaftError::Fatal(_)) => std::future::pending().await,
        }
    }

    /// What another node brings: written here if this node leads.
    pub async fn proposed(&self, command: &Bytes) -> Reply {
        match self.raft.client_write(Proposal(led(command))).await {
            Ok(written) => Reply::Outcome(written.data.0),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
                Reply::Elsewhere(to.leader_id.filter(|leader| *leader != self.birth.me))
            }
            Err(RaftError::APIError(unknown)) => Reply::Refused(unknown.to_string()),
            Err(RaftError::Fatal(fatal)) => Reply::Refused(fatal.to_string()),
        }
    }

    /// How this node calls others.
    #[must_use]
    pub fn links(&self) -> Links {
        let birth = &self.birth;
        Links {
            machine: birth.machine,
            me: birth.me,
            net: self.net.clone(),
            disk: birth.disk.clone(),
            timing: self.timing.clone(),
        }
    }

    /// What Raft's membership says of a node.
    #[must_use]
    pub fn known_peer(&self, node: u64) -> Option<Peer> {
        self.raft.metrics().borrow_watched().membership_config.membership().get_node(&node).cloned()
    }

    async fn there(&self, node: u64, command: &Bytes) -> Try {
        match self.links().ask(node, self.known_peer(node), Ask::Propose(command.clone())).await {
            Ok(Reply::Outcome(outcome)) => Try::Done(outcome),
            Ok(Reply::Elsewhere(leader)) => Try::Elsewhere(leader),
            Err(NoReply::Refused) => Try::Elsewhere(None),
            Err(NoReply::Lost) | Ok(_) => Try::Unknown,
        }
    }
}
