//! Reads of known devices: the way that worked last, else the others of its protocol.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quire_proto::convert;
use quire_proto::id::Epoch;
use quire_proto::store::observation::What;
use quire_proto::store::{DeviceRow, Observation, Silence};

use super::{Ended, Tools, web};
use crate::device::{self, ReadPlan};
use crate::snmp::{Credential, Failure, Patience, Request};

/// Plans that are kept: one takes some 2.5 KB (docs/benchmarks.md), so 5 MB. Beyond, those that came first stay:
/// reads go round, so whichever was read longest ago would be needed next. The others are read in full every time.
const PLANS: usize = 2_048;

/// How a device was reached last, so that a repeat read needs no trying: forgotten with the process.
#[derive(Clone)]
pub(super) struct Way {
    pub(super) credential: Arc<Credential>,
    pub(super) plan: ReadPlan,
    /// The device has answered to it.
    pub(super) proven: bool,
}

/// Ways by address. Credentials are shared: some 60 octets a device that the node owns.
#[derive(Clone, Default)]
pub(crate) struct Ways(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    credentials: HashMap<SocketAddr, Arc<Credential>>,
    plans: HashMap<SocketAddr, ReadPlan>,
    /// SNMPv3 users that known devices refused, as few as there are users a device.
    refused: HashMap<SocketAddr, Vec<Arc<Credential>>>,
}

impl Ways {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, peer: SocketAddr) -> Option<Way> {
        let known = self.known();
        let credential = known.credentials.get(&peer)?.clone();
        Some(Way { credential, plan: known.plans.get(&peer).cloned().unwrap_or_default(), proven: true })
    }

    pub(super) fn put(&self, peer: SocketAddr, way: Way) {
        let mut known = self.known();
        known.credentials.insert(peer, way.credential);
        known.refused.remove(&peer);
        if known.plans.len() < PLANS || known.plans.contains_key(&peer) {
            known.plans.insert(peer, way.plan);
        }
    }

    fn forget(&self, peer: SocketAddr) {
        let mut known = self.known();
        known.credentials.remove(&peer);
        known.plans.remove(&peer);
    }

    fn refuse(&self, peer: SocketAddr, credential: &Arc<Credential>) {
        self.known().refused.entry(peer).or_default().push(credential.clone());
    }

    fn refuses(&self, peer: SocketAddr, credential: &Arc<Credential>) -> bool {
        let known = self.known();
        known
            .refused
            .get(&peer)
            .is_some_and(|refused| refused.iter().any(|other| Arc::ptr_eq(other, credential)))
    }

    /// Keeps those of these addresses alone.
    pub(super) fn retain(&self, keep: impl Fn(SocketAddr) -> bool) {
        let mut known = self.known();
        known.credentials.retain(|peer, _| keep(*peer));
        known.plans.retain(|peer, _| keep(*peer));
        known.refused.retain(|peer, _| keep(*peer));
    }
}

/// Reads a known device.
pub(super) async fn known(tools: &Tools, device: &DeviceRow, epoch: Epoch) -> Ended {
    let Ok(peer) = device.address.parse::<SocketAddr>() else { return Ended::Done };
    let observe = |what| tools.reporter.observation(&device.unit, epoch, peer, device.hops, what);
    for way in ways_to(tools, device, peer) {
        if !is_let_in(tools, peer, &way).await {
            continue;
        }
        let (plan, mut pin) = (Some(way.plan.clone()), web::Pin::of(&device.certificate));
        let finished = tools.read(peer, &way.credential, plan, Patience::Patient, &mut pin).await;
        match finished.reading {
            Some(reading) if finished.complete => {
                let user = way.credential.user().unwrap_or_default().to_owned();
                tools.ways.put(peer, Way { plan: finished.plan, ..way });
                let (web, lane) = (&tools.web, web::Lane::Read);
                let reading = web.complete(&tools.settings, reading, peer.ip(), lane, &mut pin).await;
                let observation = observe(What::Reading(convert::encode(&reading)));
                let certificate = pin.news();
                tools.reporter.report(Observation { user, certificate, ..observation }).await;
                return Ended::Done;
            }
            // Lost in the middle: half a reading is no reading; the next try asks again.
            Some(_) => return Ended::Failed,
            None => tools.ways.forget(peer),
        }
    }
    tools.reporter.report(observe(What::Silence(Silence { device: device.id.clone() }))).await;
    Ended::Done
}

/// Asks a device once whether it lets an SNMPv3 user in that is not known to be right here, because devices lock users;
/// one that it refuses is not offered again until the settings change or a sweep finds it let in. Silence says nothing
/// (it may sleep, or drop digests that are wrong), and is answered by asking no further.
async fn is_let_in(tools: &Tools, peer: SocketAddr, way: &Way) -> bool {
    if way.proven || !matches!(*way.credential, Credential::V3(_)) {
        return true;
    }
    let question = Request::Get(device::probe_oids());
    let refused = match tools.snmp.ask(peer, &way.credential, question, Patience::Once).await {
        Ok(_) => return true,
        Err(failure) => matches!(
            failure,
            Failure::UnknownUser
                | Failure::WrongDigest
                | Failure::Decryption
                | Failure::UnsupportedLevel
                | Failure::NotInTimeWindow
        ),
    };
    if refused {
        tracing::warn!(%peer, user = way.credential.user().unwrap_or_default(), "a known device refuses the user");
        tools.ways.refuse(peer, &way.credential);
    }
    false
}

fn ways_to(tools: &Tools, device: &DeviceRow, peer: SocketAddr) -> Vec<Way> {
    if let Some(way) = tools.ways.get(peer) {
        return vec![way];
    }
    let via = convert::decode(&device.reading).map(|reading| reading.via).unwrap_or_default();
    let spoken = |credential: &Credential| {
        let user = credential.user().unwrap_or_default();
        via.contains(&device::via(credential)) && (device.user.is_empty() || user == device.user)
    };
    suitable(&tools.credentials, spoken)
        .into_iter()
        .filter(|credential| !tools.ways.refuses(peer, credential))
        .map(|credential| Way { credential, plan: ReadPlan::default(), proven: false })
        .collect()
}

/// The credentials that speak as the device did last; all communities where the settings no longer hold such a one,
/// else a site that moves from one to another would fall silent until its next sweep. Not SNMPv3 users: a sweep brings
/// them, which agrees beforehand on who is tried where.
fn suitable(credentials: &[Arc<Credential>], spoken: impl Fn(&Credential) -> bool) -> Vec<Arc<Credential>> {
    let fitting: Vec<_> = credentials.iter().filter(|credential| spoken(credential)).cloned().collect();
    if !fitting.is_empty() {
        return fitting;
    }
    credentials.iter().filter(|credential| !matches!(***credential, Credential::V3(_))).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_bounded_and_credentials_are_kept() {
        let (ways, credential) = (Ways::default(), Arc::new(Credential::v2c("a").unwrap()));
        let peer = |n: u32| SocketAddr::from((std::net::Ipv4Addr::from(0x0a00_0000 + n), 161));
        let count = u32::try_from(PLANS).unwrap() + 10;
        for n in (0..count).chain(0..count) {
            ways.refuse(peer(n), &credential);
            assert!(ways.refuses(peer(n), &credential));
            let (credential, plan) = (credential.clone(), ReadPlan::default());
            ways.put(peer(n), Way { credential, plan, proven: true });
        }
        let sizes = |known: &Known| (known.plans.len(), known.refused.len());
        assert_eq!(sizes(&ways.known()), (PLANS, 0));
        assert!((0..count).all(|n| ways.get(peer(n)).is_some()));
        ways.retain(|at| at == peer(1));
        assert!(ways.get(peer(1)).is_some() && ways.get(peer(2)).is_none());
    }

    #[test]
    fn a_device_whose_protocol_left_the_settings_is_tried_with_what_there_is() {
        let (v1, v2c) = (Credential::v1("a").unwrap(), Credential::v2c("b").unwrap());
        let all = [Arc::new(v1), Arc::new(v2c)];
        let is_v1 = |credential: &Credential| matches!(credential, Credential::V1(_));
        assert_eq!(suitable(&all, is_v1).len(), 1);
        assert_eq!(suitable(&all[1..], is_v1).len(), 1, "the other one");
        let user = Credential::v3(crate::snmp::V3 { user: "meter", ..Default::default() }).unwrap();
        let moved = [all[1].clone(), Arc::new(user)];
        let left = suitable(&moved, is_v1);
        assert!(left.len() == 1 && Arc::ptr_eq(&left[0], &all[1]), "users are for sweeps to try");
    }
}
