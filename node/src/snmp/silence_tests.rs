//! Sweeps under loss and through bottlenecks, in simulated time.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::snmp::engine::Icmp;
use crate::snmp::sim::{Device, Speaks, Weather, World};
use crate::snmp::{Credential, Options, Sweep, SweepCounts, SweepEvent};

fn peer(n: u32) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::from(0x7f02_0000 + n), 1161))
}

/// Sweeps `addresses`, every `every`th a responder, and gives the counts.
fn sweep(world: &mut World, addresses: u32, every: u32) -> SweepCounts {
    for n in (0..addresses).step_by(every as usize) {
        world.devices.insert(peer(n), Device::new(Speaks::V2c));
    }
    let sweep = world.core.sweep(Sweep {
        peers: Box::new((0..addresses).map(peer)),
        credentials: vec![Arc::new(Credential::v2c("public").unwrap())],
        oids: vec!["1.3.6.1.2.1.1.1.0".parse().unwrap()],
    });
    match world.sweep_events(sweep).pop() {
        Some(SweepEvent::Done(counts)) => counts,
        other => panic!("{other:?}"),
    }
}

fn options(seed: u64, rate: u32) -> Options {
    Options { rate, seed, find_engines: false, ..Options::default() }
}

#[test]
fn in_haste_small_loss_spares_the_third_transmission_and_larger_does_not() {
    for (lost, least, most) in [(0, 2.0, 2.01), (10, 2.0, 2.05), (45, 2.9, 3.01)] {
        let weather = Weather { lost, delay: (10_000, 10_000), ..Weather::default() };
        let mut world = World::new(options(7, 0), weather);
        let counts = sweep(&mut world, 16_384, 16);
        let silent = f64::from(16_384 - 1024);
        let each = (world.sent.len() as f64 - 1024.0) / silent;
        assert!(each >= least && each <= most + 0.1, "{lost}: {each}");
        assert!(counts.answered >= 1020, "{lost}: {counts:?}");
    }
}

#[test]
fn under_a_ceiling_nothing_is_spared() {
    let mut world = World::new(options(7, 5000), Weather { delay: (10_000, 10_000), ..Weather::default() });
    let counts = sweep(&mut world, 4096, 8);
    assert_eq!(world.sent.len(), 512 + 3 * (4096 - 512));
    assert_eq!(counts.answered, 512);
}

#[test]
fn a_bottleneck_is_found_and_most_responders_behind_it() {
    for bottleneck in [1_000u64, 5_000] {
        for rate in [0, 20_000] {
            let weather = Weather { delay: (10_000, 10_000), bottleneck, ..Weather::default() };
            let mut world = World::new(options(3, rate), weather);
            let counts = sweep(&mut world, 8192, 4);
            let seconds = world.sent.last().unwrap().0.as_secs_f64();
            // The last second of sending, or what there is.
            let from = (seconds - 1.0).max(seconds / 2.0);
            let late = world.sent.iter().filter(|(at, _)| at.as_secs_f64() >= from).count();
            let pace = late as f64 / (seconds - from);
            // The worst there is, a burst of everything into a thousandth of what this machine sends, still loses some.
            assert!(counts.answered >= 1740, "{bottleneck} under {rate}: {counts:?} in {seconds} s");
            assert!(
                pace < 3.0 * bottleneck as f64,
                "{bottleneck} under {rate}: {pace} packets a second at last"
            );
            assert!(seconds < 20.0 * 8192.0 / bottleneck as f64, "{bottleneck} under {rate}: {seconds} s");
        }
    }
}

#[test]
fn a_firewall_that_minds_is_heard() {
    let mut world = World::new(options(1, 0), Weather::default());
    let id = world.core.sweep(Sweep {
        peers: Box::new((0..20_000).map(peer)),
        credentials: vec![Arc::new(Credential::v2c("public").unwrap())],
        oids: Vec::new(),
    });
    world.core.options.window = 500;
    world.step(Duration::from_millis(1));
    for n in 0..200 {
        world.core.handle_icmp(peer(n), Icmp::Prohibited, world.instant());
    }
    let before = world.sent.len();
    world.step(Duration::from_millis(2));
    world.step(Duration::from_millis(100));
    assert!(world.sent.len() - before < 200, "{} more", world.sent.len() - before);
    let rate = world.core.sweeps[&id].pace.rate();
    assert!(rate > 0, "no limit");
}

#[test]
fn what_this_machine_had_no_room_for_is_sent_once_more() {
    let mut world = World::new(options(1, 0), Weather::default());
    world.core.sweep(Sweep {
        peers: Box::new(std::iter::once(peer(1))),
        credentials: vec![Arc::new(Credential::v2c("public").unwrap())],
        oids: Vec::new(),
    });
    world.step(Duration::from_millis(1));
    world.core.handle_full(peer(1), world.instant());
    while world.step(Duration::from_secs(20)) {}
    assert_eq!(world.sent.len(), 1 + 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever a bottleneck takes: the sweep ends, in a time that the bottleneck explains, and finds nearly all. Without
    /// a ceiling the first burst is as large as this machine makes it, and what it costs is only partly made good.
    #[test]
    fn any_bottleneck_is_lived_with(seed in 1u64..u64::MAX, bottleneck in 300u64..20_000, lost in 0u64..30, rate in prop::sample::select(vec![0u32, 2_000, 50_000])) {
        let weather = Weather { lost, bottleneck, delay: (2_000, 12_000), ..Weather::default() };
        let mut world = World::new(options(seed, rate), weather);
        let counts = sweep(&mut world, 4096, 4);
        prop_assert_eq!(counts.addresses, 4096);
        let most = if rate == 0 { 970 } else { 995 };
        prop_assert!(counts.answered >= most, "{:?}", counts);
        let seconds = world.now.as_secs_f64();
        prop_assert!(seconds < 10.0 + 20.0 * 4096.0 / bottleneck as f64, "{} s", seconds);
    }
}
