//! One pass over one unit: probes to all its addresses, and a read of every new printer it meets.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use quire_proto::address::Target;
use quire_proto::convert;
use quire_proto::id::{Epoch, Millis, UnitId};
use quire_proto::store::observation::What;
use quire_proto::store::{Refusal, SweepMark};
use tokio::task::JoinSet;

use super::web::Lane;
use super::{Ended, Tools, Way};
use crate::device::{self, Finished, Verdict};
use crate::snmp::{Credential, Patience, Sweep, SweepEvent};

/// Progress is committed in steps of so many addresses, so a /24 costs the log four entries. It is for
/// people: addresses are not done in their order and reads lag behind, so a new owner starts over.
const STEP: u32 = 64;

/// Reads of new devices at the same time.
const READS: usize = 64;

/// A sweep to be done.
pub(super) struct UnitSweep {
    pub(super) unit: UnitId,
    pub(super) epoch: Epoch,
    /// When it began, even if an earlier owner did.
    pub(super) started_at: Millis,
    pub(super) hops: Option<u32>,
    /// Devices that were read lately.
    pub(super) known: BTreeSet<SocketAddr>,
}

type Reads = JoinSet<(SocketAddr, Arc<Credential>, Finished)>;

impl UnitSweep {
    pub(super) async fn run(self, tools: &Tools) -> Ended {
        let hosts = self.hosts(tools);
        let total = u32::try_from(hosts.len()).unwrap_or(u32::MAX);
        let mut mark = SweepMark { started_at_ms: self.started_at.0, total, ..SweepMark::default() };
        self.report_mark(tools, mark).await;
        let mut events = tools.snmp.sweep(Sweep {
            peers: Box::new(hosts.into_iter()),
            credentials: tools.credentials.to_vec(),
            oids: device::probe_oids(),
        });
        let mut reads = Reads::new();
        let (mut probing, mut complete) = (true, false);
        loop {
            tokio::select! {
                event = events.recv(), if probing && reads.len() < READS => match event {
                    Some(event) => {
                        complete |= matches!(event, SweepEvent::Done(_));
                        self.handle(tools, event, &mut mark, &mut reads).await;
                    }
                    None => probing = false,
                },
                Some(done) = reads.join_next(), if !reads.is_empty() => {
                    if let Ok((peer, credential, finished)) = done {
                        self.keep(tools, peer, credential, finished, &mut mark).await;
                    }
                }
                else => break,
            }
        }
        if !complete {
            // The engine went away under it: addresses that nobody asked are not swept.
            return Ended::Failed;
        }
        mark.done = total;
        mark.finished = true;
        self.report_mark(tools, mark).await;
        Ended::Done
    }

    /// The addresses to ask, exclusions taken out.
    fn hosts(&self, tools: &Tools) -> Vec<SocketAddr> {
        let discovery = &tools.settings.discovery;
        let Some(prefix) = self.unit.prefix() else { return Vec::new() };
        Target::Prefix(prefix, None)
            .hosts()
            .filter(|ip| !discovery.exclude.iter().any(|excluded| excluded.contains(ip)))
            .map(|ip| SocketAddr::new(ip, discovery.port))
            .collect()
    }

    async fn handle(&self, tools: &Tools, event: SweepEvent, mark: &mut SweepMark, reads: &mut Reads) {
        match event {
            SweepEvent::Answered { peer, credential, answer } => {
                mark.responders += 1;
                let printer = device::judge(&answer.response.varbinds) != Verdict::NotPrinter;
                if printer && !self.known.contains(&peer) {
                    let tools = tools.clone();
                    reads.spawn(async move {
                        let mut finished = tools.read(peer, &credential, None, Patience::Normal).await;
                        if let Some(reading) = finished.reading.take() {
                            let settings = &tools.settings;
                            let whole = tools.web.complete(settings, reading, peer.ip(), Lane::Sweep).await;
                            finished.reading = Some(whole);
                        }
                        (peer, credential, finished)
                    });
                }
            }
            SweepEvent::Progress { done } => {
                let step = u32::try_from(done).unwrap_or(u32::MAX).min(mark.total) / STEP * STEP;
                if step > mark.done {
                    mark.done = step;
                    self.report_mark(tools, *mark).await;
                }
            }
            SweepEvent::NeedsCredentials { peer, engine_id } => {
                mark.responders += 1;
                let reason = "needs credentials".to_owned();
                self.report(tools, peer, What::Refusal(Refusal { reason, engine_id })).await;
            }
            SweepEvent::Refused { peer, user, reason } => {
                tracing::warn!(%peer, %user, %reason, "credentials refused");
                let refusal = Refusal { reason: format!("user {user}: {reason}"), ..Refusal::default() };
                self.report(tools, peer, What::Refusal(refusal)).await;
            }
            SweepEvent::Done(_) => {}
        }
    }

    async fn keep(
        &self,
        tools: &Tools,
        peer: SocketAddr,
        credential: Arc<Credential>,
        finished: Finished,
        mark: &mut SweepMark,
    ) {
        let Some(reading) = finished.reading else { return };
        if !finished.complete {
            tracing::debug!(%peer, "read lost in the middle; the next sweep or read asks again");
        }
        mark.devices += 1;
        tools.ways.put(peer, Way { credential, plan: finished.plan });
        self.report(tools, peer, What::Reading(convert::encode(&reading))).await;
    }

    async fn report(&self, tools: &Tools, peer: SocketAddr, what: What) {
        let observation = tools.reporter.observation(self.unit.as_str(), self.epoch, peer, self.hops, what);
        tools.reporter.report(observation).await;
    }

    async fn report_mark(&self, tools: &Tools, mark: SweepMark) {
        let observation = tools.reporter.of_unit(self.unit.as_str(), self.epoch, What::Sweep(mark));
        tools.reporter.report(observation).await;
    }
}
