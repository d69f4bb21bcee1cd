//! Drives a [`Read`] or a [`RouterRead`] over the wire: the only async functions of this room.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::Either;
use quire_coordinator::explore::RouterView;
use quire_proto::reading::Via;
use tokio::sync::mpsc;

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
///
/// There may be very many reads at a time: what one takes while it waits is a [`Read`] and little more.
pub fn read<'a>(
    snmp: &'a Snmp,
    peer: SocketAddr,
    credential: &'a Arc<Credential>,
    plan: Option<ReadPlan>,
    patience: Patience,
    profiles: Profiles,
) -> impl Future<Output = Finished> + Send + use<'a> {
    let behind = plan.as_ref().is_some_and(|plan| plan.jetdirect);
    let there = behind.then(|| credential.in_jetdirect()).flatten();
    let may_hide = !behind && via(credential) == Via::SnmpV3;
    let again = may_hide.then(|| profiles.clone());
    let mut read = Read::with(via(credential), plan, profiles);
    let first = async move {
        let engine_id = drive(snmp, peer, there.as_ref().unwrap_or(credential), &mut read, patience).await;
        finish(read, engine_id)
    };
    let Some(profiles) = again else { return Either::Left(first) };
    Either::Right(Box::pin(async move {
        let finished = first.await;
        match hides_a_printer(&finished) {
            true => look_behind(snmp, peer, credential, finished, patience, profiles).await,
            false => finished,
        }
    }))
}

/// Reads what is behind the context of a JetDirect card, where that tells more.
async fn look_behind(
    snmp: &Snmp,
    peer: SocketAddr,
    credential: &Arc<Credential>,
    finished: Finished,
    patience: Patience,
    profiles: Profiles,
) -> Finished {
    let Some(there) = credential.in_jetdirect() else { return finished };
    let mut read = Read::with(via(credential), None, profiles);
    let engine_id = drive(snmp, peer, &there, &mut read, patience).await;
    let mut again = finish(read, engine_id);
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
    finished.complete && !counts && brand::is_jetdirect(&finished.fresh.answers())
}

/// Asks until the read has finished; gives snmpEngineID where there is one.
async fn drive(
    snmp: &Snmp,
    peer: SocketAddr,
    credential: &Arc<Credential>,
    read: &mut Read,
    patience: Patience,
) -> Option<Vec<u8>> {
    let mut engine_id = None;
    while let Some(question) = read.poll_question() {
        match snmp.ask(peer, credential, question, patience).await {
            Err(failure) => read.handle(Err(miss(failure))),
            Ok(answer) => {
                engine_id = answer.engine_id.map(|id| id.to_vec()).or(engine_id);
                match answer.expected {
                    Some(expected) => read.handle_expected(expected),
                    None => read.handle(Ok(answer.response)),
                }
            }
        }
    }
    engine_id
}

fn finish(read: Read, engine_id: Option<Vec<u8>>) -> Finished {
    let mut finished = read.finish();
    // Touched, the facts would be this reading's own, and copied for it.
    if let Some(reading) = finished.reading.as_mut().filter(|reading| reading.facts.engine_id != engine_id) {
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
    /// It is there, and wants an SNMPv3 user that was not tried for this reason.
    Left(Leave),
}

/// Whether SNMPv3 users may be tried now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Yes.
    Try,
    /// They were, by another node.
    Tried,
    /// Nobody can say at the moment.
    Later,
}

/// Who a router lets in.
#[derive(Default)]
struct Let {
    right: Option<Arc<Credential>>,
    refused: Option<(String, Failure)>,
    /// It has an SNMPv3 engine.
    engine: bool,
}

impl Let {
    async fn of(mut events: mpsc::Receiver<SweepEvent>) -> Let {
        let mut found = Let::default();
        while let Some(event) = events.recv().await {
            match event {
                SweepEvent::Answered { credential, .. } => found.right = Some(credential),
                SweepEvent::Refused { user, reason, .. } => found.refused = Some((user, reason)),
                SweepEvent::NeedsCredentials { .. } => found.engine = true,
                SweepEvent::Progress { .. } | SweepEvent::Done(_) => {}
            }
        }
        found
    }
}

/// Reads a router's tables with the first credential that it answers to. Each SNMPv3 user is tried once, and only after
/// `leave` has said yes: routers lock users, too.
pub async fn read_router(
    snmp: &Snmp,
    peer: SocketAddr,
    credentials: &[Arc<Credential>],
    leave: impl Future<Output = Leave>,
) -> RouterAnswer {
    let ask = |credentials: Vec<Arc<Credential>>| Sweep {
        peers: Box::new(std::iter::once(peer)),
        credentials,
        oids: vec![mib::scalar(mib::SYS_OBJECT_ID)],
    };
    let mut found = Let::of(snmp.survey(ask(credentials.to_vec()))).await;
    let users = credentials.iter().filter(|credential| matches!(***credential, Credential::V3(_)));
    let users: Vec<_> = users.cloned().collect();
    if found.right.is_none() && found.engine && !users.is_empty() {
        match leave.await {
            Leave::Try => found = Let::of(snmp.sweep(ask(users))).await,
            why @ (Leave::Tried | Leave::Later) => return RouterAnswer::Left(why),
        }
    }
    let credential = match found {
        Let { right: Some(credential), .. } => credential,
        Let { refused: Some((user, reason)), .. } => return RouterAnswer::Refused(user, reason),
        Let { .. } => return RouterAnswer::Silent,
    };
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
    use crate::snmp::Options;

    /// 50,000 of them may wait at a time (docs/benchmarks.md).
    #[tokio::test]
    async fn a_read_that_waits_is_small() {
        let snmp = Snmp::bind(Options::default()).await.unwrap();
        let community = Arc::new(Credential::v2c("public").unwrap());
        let peer = SocketAddr::from(([127, 0, 0, 1], 161));
        let read = read(&snmp, peer, &community, None, Patience::Once, Profiles::default());
        assert!(size_of_val(&read) <= 640, "{} octets", size_of_val(&read));
    }

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
