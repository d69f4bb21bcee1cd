//! What a sweep of many owners needs of the engine: who is done, engines without trials, nothing to the excluded.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::credential::{AuthProtocol, V3};
use super::sim::{Authority, Device, Speaks, Weather, World};
use super::{Credential, Failure, Options, Patience, Request, Sweep, SweepEvent};

const CALM: Weather = Weather { lost: 0, doubled: 0, delay: (20_000, 20_000), bottleneck: 0 };

fn peer(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x7f02_0000 + n), 1161))
}

fn public() -> Arc<Credential> {
    Arc::new(Credential::v2c("public").unwrap())
}

fn user() -> Arc<Credential> {
    let auth = Some((AuthProtocol::Sha256, "password"));
    Arc::new(Credential::v3(V3 { user: "meter", auth, ..V3::default() }).unwrap())
}

fn sweep_of(hosts: u32, credentials: Vec<Arc<Credential>>) -> Sweep {
    let oids = vec!["1.3.6.1.2.1.1.1.0".parse().unwrap()];
    Sweep { peers: Box::new((0..hosts).map(peer)), credentials, oids }
}

/// A world where some answer to v2c and some are SNMPv3 engines; it loses much.
fn world(seed: u64) -> World {
    let weather = Weather { lost: 100, ..CALM };
    let mut world = World::new(Options { rate: 0, seed, ..Options::default() }, weather);
    for n in (0..100).step_by(5) {
        world.devices.insert(peer(n), Device::new(Speaks::V2c));
        world.devices.insert(peer(n + 1), Device::new(Speaks::V3(Authority::new(&user()))));
    }
    world
}

#[test]
fn every_address_is_told_once_and_behind_what_was_found_of_it() {
    for seed in 1..20 {
        let mut world = world(seed);
        let sweep = world.core.sweep(sweep_of(100, vec![public(), user()]));
        let (mut found, mut finished) = (BTreeSet::new(), BTreeSet::new());
        'sweep: loop {
            while let Some(event) = world.core.poll_sweep_event(sweep) {
                match event {
                    SweepEvent::Answered { peer, .. } | SweepEvent::Refused { peer, .. } => {
                        assert!(!finished.contains(&peer), "seed {seed}: {peer} was finished before");
                        found.insert(peer);
                    }
                    SweepEvent::Progress { finished: some, .. } => {
                        some.into_iter()
                            .for_each(|peer| assert!(finished.insert(peer), "seed {seed}: {peer} twice"));
                    }
                    SweepEvent::NeedsCredentials { .. } => panic!("there is a user"),
                    SweepEvent::Done(_) => break 'sweep,
                }
            }
            world.step(Duration::from_secs(3_600));
        }
        assert_eq!(finished, (0..100).map(peer).collect::<BTreeSet<_>>(), "seed {seed}");
        assert!(found.len() >= 30, "seed {seed}: {}", found.len());
    }
}

#[test]
fn a_survey_finds_engines_and_tries_nobody() {
    let mut world = world(7);
    world.weather = CALM;
    let sweep = world.core.survey(sweep_of(100, vec![public(), user()]));
    let events = world.sweep_events(sweep);
    let engines = events.iter().filter(|event| matches!(event, SweepEvent::NeedsCredentials { .. })).count();
    assert_eq!(engines, 20);
    for device in world.devices.values() {
        if let Speaks::V3(authority) = &device.speaks {
            assert_eq!(authority.attempts, 0);
        }
    }
    // One who was agreed upon tries, once, and is let in.
    let question = Request::Get(vec!["1.3.6.1.2.1.1.1.0".parse().unwrap()]).into();
    world.core.ask(1, peer(1), user(), &question, Patience::Once);
    assert!(world.result().1.is_ok());
}

#[test]
fn nothing_is_sent_to_the_excluded_whatever_was_begun() {
    let mut world = world(3);
    let sweep = world.core.sweep(sweep_of(100, vec![public(), user()]));
    let question = Request::Get(vec!["1.3.6.1.2.1.1.1.0".parse().unwrap()]).into();
    // Nobody lives there: it would be asked again and again.
    world.core.ask(1, peer(150), public(), &question, Patience::Patient);
    world.step(Duration::from_millis(10));
    let before = world.sent.len();
    assert!(before > 50);
    world.core.exclude(vec!["127.2.0.0/26".parse().unwrap(), "127.2.0.150/32".parse().unwrap()]);
    let (ticket, result) = world.result();
    assert_eq!((ticket, result.unwrap_err()), (1, Failure::Unreachable));
    let events = world.sweep_events(sweep);
    assert!(matches!(events.last(), Some(SweepEvent::Done(counts)) if counts.addresses == 100));
    let excluded = |at: &SocketAddr| (0..64).chain([150]).any(|n| peer(n) == *at);
    let late: Vec<_> = world.sent[before..].iter().filter(|(_, at)| excluded(at)).collect();
    assert!(late.is_empty(), "{late:?}");
    assert!(world.sent[before..].iter().any(|(_, at)| !excluded(at)), "the others are asked");
    assert_eq!(world.core.table.len(), 0);
}
