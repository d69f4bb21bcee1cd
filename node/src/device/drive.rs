//! Drives a [`Read`] over the wire: the only async function of this room.

use std::net::SocketAddr;
use std::sync::Arc;

use quire_proto::reading::Via;

use super::{Finished, Miss, Read, ReadPlan};
use crate::snmp::{Credential, Failure, Patience, Snmp};

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
