//! SNMPv3 users at devices: each is tried at most once at a device in a sweep, in the whole cluster, because devices
//! lock users.
//!
//! A sweep only finds out that an SNMPv3 engine is there. Who is about to be tried is committed first, under the grant
//! in force; only then the user is tried, with one authenticated message until the password is proven right. If the
//! owner dies in between, the next one goes on with the user after that: a trial may be lost, none is made twice.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quire_coordinator::coverage::{self, Coverage};
use quire_proto::id::{Epoch, Millis};
use quire_proto::store::command::Kind;
use quire_proto::store::{Trial, Tried, UnitRow};

use super::Tools;
use crate::device;
use crate::snmp::{Answer, Credential, Failure, Patience, Request, Snmp};

/// A moment for others to come along, so that a unit's devices share a commit.
const GATHER: Duration = Duration::from_millis(100);

/// How long a commit may take. A trial whose commit is uncertain is not made.
const PATIENCE: Duration = Duration::from_secs(5);

/// A user that may be tried at a device.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    pub(super) peer: SocketAddr,
    pub(super) credential: Arc<Credential>,
    place: u32,
    /// Its number among the users.
    number: u32,
}

impl Granted {
    /// Tries it.
    pub(super) async fn make(&self, snmp: &Snmp) -> Result<Answer, Failure> {
        let question = Request::Get(device::probe_oids());
        snmp.ask(self.peer, &self.credential, question, Patience::Once).await
    }
}

/// The trials of one sweep.
pub(super) struct Trials {
    users: Vec<Arc<Credential>>,
    row: UnitRow,
    started_at: Millis,
    settings_index: u64,
    /// Those that are to be agreed upon next: as many as the unit has addresses at the most.
    waiting: Vec<Granted>,
    ready_at: tokio::time::Instant,
}

impl Trials {
    /// Of a sweep; `row` says what was tried in it before.
    pub(super) fn new(tools: &Tools, row: &UnitRow, started_at: Millis) -> Self {
        let v3 = tools.credentials.iter().filter(|credential| matches!(***credential, Credential::V3(_)));
        Trials {
            users: v3.cloned().collect(),
            row: row.clone(),
            started_at,
            settings_index: tools.settings_index,
            waiting: Vec::new(),
            ready_at: tokio::time::Instant::now(),
        }
    }

    pub(super) fn has_users(&self) -> bool {
        !self.users.is_empty()
    }

    /// An SNMPv3 engine is here. False when there is no user, or none that was not tried in this sweep.
    pub(super) fn offer(&mut self, coverage: &Coverage, peer: SocketAddr) -> bool {
        let Some(place) = coverage.place(peer.ip()) else { return false };
        let tried = coverage::users_tried(&self.row, self.started_at.0, self.settings_index, place);
        self.enter(peer, place, tried)
    }

    /// A user was refused: the next one's turn. False when there is none.
    pub(super) fn offer_next(&mut self, refused: &Granted) -> bool {
        self.enter(refused.peer, refused.place, refused.number + 1)
    }

    fn enter(&mut self, peer: SocketAddr, place: u32, number: u32) -> bool {
        let Some(credential) = self.users.get(number as usize).cloned() else { return false };
        if self.waiting.is_empty() {
            self.ready_at = tokio::time::Instant::now() + GATHER;
        }
        self.waiting.push(Granted { peer, credential, place, number });
        true
    }

    pub(super) fn waits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Waits until those that wait should be agreed upon.
    pub(super) fn gathered(&self) -> tokio::time::Sleep {
        tokio::time::sleep_until(self.ready_at)
    }

    /// Commits that those who wait are tried now. `None`: the unit or the settings are others by now, or there is no
    /// quorum; then nobody may be tried.
    pub(super) fn commit(
        &mut self,
        tools: &Tools,
        epoch: Epoch,
    ) -> impl Future<Output = Option<Vec<Granted>>> + Send + use<> {
        let granted = std::mem::take(&mut self.waiting);
        let tried = granted.iter().map(|granted| Tried { address: granted.place, users: granted.number + 1 });
        let command = Kind::Trial(Trial {
            node: tools.cluster.me().id.0,
            unit: self.row.unit.clone(),
            epoch: epoch.0,
            started_at_ms: self.started_at.0,
            settings_index: self.settings_index,
            tried: tried.collect(),
        });
        let cluster = tools.cluster.clone();
        async move {
            match cluster.propose(command, PATIENCE).await {
                Ok(_) => Some(granted),
                Err(error) => {
                    tracing::info!(%error, "no user is tried");
                    None
                }
            }
        }
    }
}
