//! Whether Raft's pace follows disks: no election while they are slow, and a silent leader is replaced within two
//! seconds once they are quick.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;

use super::plan;
use super::runtime::{elapsed, sleep_ms};
use super::scenario::{apply_settings, eventually, found, join, leader};
use super::world::World;

/// What was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paces {
    /// The longest heartbeat while all disks took 100 to 300 ms a sync.
    pub slow_ms: u64,
    /// Elections in ten minutes of that.
    pub elections: u64,
    /// The heartbeat after ten minutes of quick disks.
    pub quick_ms: u64,
    /// From when the leader fell silent until another led.
    pub replaced: Duration,
}

fn beats(world: &World) -> impl Iterator<Item = u64> {
    world.nodes().into_iter().map(|node| node.process.beat_ms())
}

fn term(world: &World) -> u64 {
    world.nodes().iter().map(|node| node.standing().term).max().unwrap_or(0)
}

/// Three machines, whose disks are slow and then quick again; then the leader falls silent.
pub async fn run(world: World) -> Paces {
    let mut seen = Paces::default();
    let mut dice = SmallRng::seed_from_u64(world.plan.seed);
    if !found(&world).await {
        return seen;
    }
    while world.in_use().len() < 3 {
        join(&world).await;
    }
    apply_settings(&world, plan::settings(&mut dice)).await;
    let voters = || leader(&world).filter(|node| node.standing().voters.len() == 3);
    if eventually(120_000, voters).await.is_none() {
        return seen;
    }
    for machine in world.in_use() {
        world.set_disk(machine, false, Some((100, 300)));
    }
    sleep_ms(120_000).await;
    let before = term(&world);
    for _ in 0..600 {
        sleep_ms(1_000).await;
        seen.slow_ms = beats(&world).max().unwrap_or(0).max(seen.slow_ms);
    }
    seen.elections = term(&world) - before;
    for machine in world.in_use() {
        world.set_disk(machine, false, None);
    }
    sleep_ms(600_000).await;
    seen.quick_ms = beats(&world).max().unwrap_or(0);
    let Some(first) = leader(&world) else { return seen };
    let began = elapsed();
    world.freeze(first.birth.machine, true, false);
    let other = || {
        let nodes = world.healthy().into_iter();
        nodes.filter(|node| node.birth.machine != first.birth.machine).find(|node| node.standing().leads)
    };
    for _ in 0..6_000 {
        if other().is_some() {
            seen.replaced = elapsed() - began;
            break;
        }
        sleep_ms(10).await;
    }
    seen
}
