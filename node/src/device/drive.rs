//! Drives a [`Read`] or a [`RouterRead`] over the wire: the only async functions of this room.

use std::net::SocketAddr;
use std::sync::Arc;

use quire_coordinator::explore::RouterView;
use quire_proto::reading::Via;

use super::{Finished, Miss, Read, ReadPlan, RouterRead, mib};
use crate::snmp::{Credential, Failure, Patience, Snmp, Sweep, SweepEvent};

/// Which protocol a credential speaks.
pub fn via(credential: &Credential) -> Via {
    match credential {
        Credential::V1(_) => Via::SnmpV1,
        Credential::V2c(_) => Via::SnmpV2c,
        Credential::V3(_) => Via::SnmpV3,
    }
}

/// Reads one device, with what an earlier read of it taught where there is one.
pub async fn read(
    snmp: &Snmp,
    peer: SocketAddr,
    credential: &Arc<Credential>,
    plan: Option<ReadPlan>,
    patience: Patience,
) -> Finished {
    let mut read = Read::new(via(credential), plan);
    let mut engine_id = None;
    while let Some(request) = read.poll_request() {
        let answer = snmp.ask(peer, credential, request, patience).await;
        if let Ok(answer) = &answer
            && let Some(id) = &answer.engine_id
        {
            engine_id = Some(id.to_vec());
        }
        read.handle(answer.map(|answer| answer.response).map_err(miss));
    }
    let mut finished = read.finish();
    if let Some(reading) = &mut finished.reading {
        reading.facts.engine_id = engine_id;
    }
    finished
}

/// What became of a router that was asked.
#[derive(Clone, Debug)]
pub enum RouterAnswer {
    /// Its tables.
    View(RouterView),
    /// It refused this user for this reason, and no other credential was right.
    Refused(String, Failure),
    /// Nothing was heard.
    Silent,
}

/// Reads a router's tables with the first credential that it answers to; each user is tried once.
pub async fn read_router(snmp: &Snmp, peer: SocketAddr, credentials: &[Arc<Credential>]) -> RouterAnswer {
    let mut events = snmp.sweep(Sweep {
        peers: Box::new(std::iter::once(peer)),
        credentials: credentials.to_vec(),
        oids: vec![mib::scalar(mib::SYS_OBJECT_ID)],
    });
    let mut refused = RouterAnswer::Silent;
    let mut right = None;
    while let Some(event) = events.recv().await {
        match event {
            SweepEvent::Answered { credential, .. } => right = Some(credential),
            SweepEvent::Refused { user, reason, .. } => refused = RouterAnswer::Refused(user, reason),
            SweepEvent::Progress { .. } | SweepEvent::NeedsCredentials { .. } | SweepEvent::Done(_) => {}
        }
    }
    let Some(credential) = right else { return refused };
    let mut read = RouterRead::new(via(&credential) != Via::SnmpV1);
    while let Some(request) = read.poll_request() {
        let answer = snmp.ask(peer, &credential, request, Patience::Normal).await;
        read.handle(answer.map(|answer| answer.response).map_err(miss));
    }
    read.finish().map_or(RouterAnswer::Silent, RouterAnswer::View)
}

pub(super) fn miss(failure: Failure) -> Miss {
    match failure {
        Failure::Timeout | Failure::Unreachable | Failure::Busy | Failure::Closed | Failure::Malformed => {
            Miss::Silent
        }
        Failure::UnknownUser
        | Failure::WrongDigest
        | Failure::NotInTimeWindow
        | Failure::Decryption
        | Failure::UnsupportedLevel
        | Failure::NeedsCredentials { .. } => Miss::Refused,
    }
}
