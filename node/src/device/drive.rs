//! Drives a [`Read`] or a [`RouterRead`] over the wire: the only async functions of this room.

use std::net::SocketAddr;
use std::sync::Arc;

use quire_coordinator::explore::RouterView;
use quire_proto::reading::Via;

use super::script::Profiles;
use super::{Finished, Miss, Read, ReadPlan, RouterRead, brand, mib};
use crate::snmp::{Credential, Failure, Patience, Snmp, Sweep, SweepEvent};

/// Which protocol a credential speaks.
pub fn via(credential: &Credential) -> Via {
    match credential {
        Credential::V1(_) => Via::SnmpV1,
        Credential::V2c(_) => Via::SnmpV2c,
        Credential::V3(_) => Via::SnmpV3,
    }
}

/// Reads one device with the profiles in force, and with what an earlier read of it taught where there is one. A
/// JetDirect card that shows no printer to an SNMPv3 user is asked once more in its own context, and from then on there.
pub async fn read(
    snmp: &Snmp,
    peer: SocketAddr,
    credential: &Arc<Credential>,
    plan: Option<ReadPlan>,
    patience: Patience,
    profiles: Profiles,
) -> Finished {
    let behind = plan.as_ref().is_some_and(|plan| plan.jetdirect);
    let there = behind.then(|| credential.in_jetdirect()).flatten();
    let finished = read_as(snmp, peer, there.as_ref().unwrap_or(credential), plan, patience, &profiles).await;
    if behind || via(credential) != Via::SnmpV3 || !hides_a_printer(&finished) {
        return finished;
    }
    let Some(there) = credential.in_jetdirect() else { return finished };
    let mut again = read_as(snmp, peer, &there, None, patience, &profiles).await;
    let fuller = again.reading.as_ref().is_some_and(|reading| reading.counters.total.is_some());
    if !again.complete || !fuller {
        return finished;
    }
    again.plan.jetdirect = true;
    again
}

/// True of a JetDirect card that answered and told no counter.
fn hides_a_printer(finished: &Finished) -> bool {
    let counts = finished.reading.as_ref().is_some_and(|reading| reading.counters.total.is_some());
    finished.complete && !counts && brand::is_jetdirect(&finished.fresh)
}

async fn read_as(
    snmp: &Snmp,
    peer: SocketAddr,
    credential: &Arc<Credential>,
    plan: Option<ReadPlan>,
    patience: Patience,
    profiles: &Profiles,
) -> Finished {
    let mut read = Read::with(via(credential), plan, profiles.clone());
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

#[cfg(test)]
mod tests {
    use super::super::responder::Responder;
    use super::*;

    #[test]
    fn a_jetdirect_without_counters_hides_a_printer_and_others_do_not() {
        const CARD: &str = "1.3.6.1.2.1.1.1.0|4|HP ETHERNET MULTI-ENVIRONMENT,JETDIRECT,JD128\n";
        let card = format!("{CARD}1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.11.2.3.9.1\n");
        let printer = format!("{card}1.3.6.1.2.1.43.10.2.1.4.1.1|65|1000\n");
        let other = "1.3.6.1.2.1.1.1.0|4|Other printer\n1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.99999.1\n";
        for (text, hides) in [(card.as_str(), true), (&printer, false), (other, false)] {
            assert_eq!(hides_a_printer(&Responder::of(text).read(Via::SnmpV3, None).0), hides, "{text}");
        }
    }
}
