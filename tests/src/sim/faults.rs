//! Everything that breaks, and what operators do meanwhile. A fault mends itself after a while, unless mending is what
//! somebody has to do.

use std::sync::Arc;
use std::time::Duration;

use quire_proto::store::ask::What as AskWhat;
use quire_proto::store::command::Kind;
use quire_proto::store::{Ask, RemoveMember, UpdateMember};
use rand::RngExt as _;
use rand::rngs::SmallRng;

use super::disk::Image;
use super::net::ADMIN;
use super::node::{Birth, members};
use super::plan;
use super::runtime::{elapsed, sleep_ms, spawn_in};
use super::scenario::{anyone, apply_settings, command, join, leader};
use super::world::World;

/// What happens next.
pub async fn one(world: &World, dice: &mut SmallRng) {
    let machines = world.in_use();
    if machines.is_empty() {
        return;
    }
    let machine = machines[dice.random_range(0..machines.len())];
    let ms = dice.random_range(200..25_000);
    let kind = dice.random_range(0..100);
    world.checks.trace(&(kind, machine, ms));
    match kind {
        0..12 => kill(world, machine, dice, false),
        12..22 => kill(world, machine, dice, true),
        22..28 => freeze(world, machine, ms, false),
        28..34 => freeze(world, machine, ms, true),
        34..42 => partition(world, &machines, dice, ms),
        42..48 => one_way(world, &machines, dice, ms),
        48..52 => lossy(world, dice, ms),
        52..55 => slow(world, dice, ms),
        55..59 => disk(world, machine, dice, ms),
        59..63 => calendar(world, machine, dice, ms),
        63..69 => upstream(world, machine, dice, ms),
        69..72 => kill_leader(world, dice),
        72..75 => transfer(world, dice).await,
        75..79 => drain(world, machine, dice).await,
        79..82 => replace(world, machine).await,
        82..84 => rollback(world, machine, dice).await,
        84..86 => clone(world, machine, dice).await,
        _ => operate(world, dice).await,
    }
}

fn told(world: &World, fault: &'static str, what: String) {
    world.disturb();
    world.checks.count("faults");
    world.checks.count(fault);
    world.checks.tell(|| what);
}

/// Does something later, in the world's time.
fn later(world: &World, ms: u64, mend: impl FnOnce(&World) + Send + 'static) {
    let world = world.clone();
    spawn_in(None, async move {
        sleep_ms(ms).await;
        world.disturb();
        mend(&world);
    });
}

fn kill(world: &World, machine: usize, dice: &mut SmallRng, power: bool) {
    let away = dice.random_range(50..20_000);
    told(
        world,
        if power { "power cuts" } else { "kills" },
        format!("machine {machine} dies for {away} ms, power {power}"),
    );
    world.stop(machine, power);
    later(world, away, move |world| world.start(machine));
}

fn kill_leader(world: &World, dice: &mut SmallRng) {
    if let Some(leader) = leader(world) {
        kill(world, leader.birth.machine, dice, false);
    }
}

fn freeze(world: &World, machine: usize, ms: u64, clocks: bool) {
    told(
        world,
        if clocks { "suspensions" } else { "pauses" },
        format!("machine {machine} stands still for {ms} ms, clocks {clocks}"),
    );
    world.freeze(machine, true, clocks);
    later(world, ms, move |world| world.freeze(machine, false, clocks));
}

fn partition(world: &World, machines: &[usize], dice: &mut SmallRng, ms: u64) {
    let side: Vec<bool> = machines.iter().map(|_| dice.random_range(0..2) == 0).collect();
    let mut pairs = Vec::new();
    for (one, left) in machines.iter().zip(&side) {
        for (other, right) in machines.iter().zip(&side) {
            if left != right {
                pairs.push((*one, *other));
            }
        }
    }
    told(world, "partitions", format!("a partition for {ms} ms: {side:?} of {machines:?}"));
    pairs.iter().for_each(|(from, to)| world.net.cut(*from, *to, true));
    later(world, ms, move |world| pairs.iter().for_each(|(from, to)| world.net.cut(*from, *to, false)));
}

fn one_way(world: &World, machines: &[usize], dice: &mut SmallRng, ms: u64) {
    let from = machines[dice.random_range(0..machines.len())];
    let alone = dice.random_range(0..2) == 0;
    let to = machines[dice.random_range(0..machines.len())];
    let pairs: Vec<(usize, usize)> = machines
        .iter()
        .filter(|other| **other != from && (alone || **other == to))
        .map(|to| (from, *to))
        .collect();
    told(world, "one-way partitions", format!("nothing from {from} to {pairs:?} for {ms} ms"));
    pairs.iter().for_each(|(from, to)| world.net.cut(*from, *to, true));
    later(world, ms, move |world| pairs.iter().for_each(|(from, to)| world.net.cut(*from, *to, false)));
}

fn lossy(world: &World, dice: &mut SmallRng, ms: u64) {
    let parts = dice.random_range(20..250);
    told(world, "lossy spells", format!("{parts} of 1000 messages are lost or late for {ms} ms"));
    world.net.set_loss(parts);
    later(world, ms, |world| world.net.set_loss(0));
}

fn slow(world: &World, dice: &mut SmallRng, ms: u64) {
    let by = dice.random_range(5..150);
    told(world, "slow spells", format!("messages take {by} ms longer for {ms} ms"));
    world.net.set_slow(by);
    later(world, ms, |world| world.net.set_slow(0));
}

fn disk(world: &World, machine: usize, dice: &mut SmallRng, ms: u64) {
    let full = dice.random_range(0..2) == 0;
    told(
        world,
        if full { "full disks" } else { "slow disks" },
        format!("the disk of machine {machine} is full {full} or slow for {ms} ms"),
    );
    world.set_disk(machine, full, (!full).then_some((50, 1_500)));
    later(world, ms, move |world| world.set_disk(machine, false, None));
}

fn calendar(world: &World, machine: usize, dice: &mut SmallRng, ms: u64) {
    let ahead = [-3_600_000, -30_000, 5_000, 59_000, 90_000, 86_400_000][dice.random_range(0..6)];
    told(world, "clock jumps", format!("the calendar of machine {machine} is {ahead} ms ahead for {ms} ms"));
    world.set_calendar(machine, ahead);
    later(world, ms, move |world| world.set_calendar(machine, 0));
}

fn upstream(world: &World, machine: usize, dice: &mut SmallRng, ms: u64) {
    let (there, back) = [(true, true), (false, true), (true, false)][dice.random_range(0..3)];
    let all = dice.random_range(0..2) == 0;
    let machines = if all { world.in_use() } else { vec![machine] };
    told(
        world,
        "upstream away",
        format!("the Web Admin is cut off from {machines:?} for {ms} ms, {there} {back}"),
    );
    for machine in &machines {
        world.net.cut(*machine, ADMIN, there);
        world.net.cut(ADMIN, *machine, back);
    }
    later(world, ms, move |world| {
        for machine in machines {
            world.net.cut(machine, ADMIN, false);
            world.net.cut(ADMIN, machine, false);
        }
    });
}

async fn transfer(world: &World, dice: &mut SmallRng) {
    let (Some(leader), Some(to)) = (leader(world), anyone(world, dice)) else { return };
    // As `Cluster::transfer_leader` has it: to another voter alone.
    if to.birth.me == leader.birth.me || !leader.standing().voters.contains(&to.birth.me) {
        return;
    }
    told(world, "transfers", format!("node {} is to lead instead of {}", to.birth.me, leader.birth.me));
    let (raft, to) = (leader.raft.clone(), to.birth.me);
    let asked = spawn_in(Some(Arc::clone(&leader.process)), async move {
        let _ = raft.trigger().transfer_leader(to).await;
    });
    let _ = asked.await;
}

async fn drain(world: &World, machine: usize, dice: &mut SmallRng) {
    let (Some(birth), Some(node)) = (world.birth(machine), anyone(world, dice)) else { return };
    let drains = members(&node.birth.disk).iter().any(|member| member.draining);
    told(world, "drains", format!("node {} drains: {}", birth.me, !drains));
    if drains {
        resume_all(world).await;
    } else {
        let update = UpdateMember { id: birth.me, draining: Some(true), ..UpdateMember::default() };
        let _ = command(&node, Kind::UpdateMember(update)).await;
    }
    world.disturb();
}

async fn resume_all(world: &World) {
    let Some(node) = leader(world).or_else(|| world.healthy().first().cloned()) else { return };
    for member in members(&node.birth.disk).iter().filter(|member| member.draining) {
        let update = UpdateMember { id: member.id, draining: Some(false), ..UpdateMember::default() };
        let _ = command(&node, Kind::UpdateMember(update)).await;
    }
}

/// A machine is gone for good: an operator removes its node, and another one joins.
async fn replace(world: &World, machine: usize) {
    if world.in_use().len() < 3 || world.in_use().len() > 7 {
        return;
    }
    let Some(birth) = world.birth(machine) else { return };
    told(world, "replacements", format!("machine {machine} is lost with node {}", birth.me));
    world.retire(machine);
    if join(world).await {
        sleep_ms(2_000).await;
    }
    remove(world, birth.me).await;
}

async fn remove(world: &World, node: u64) {
    for _ in 0..20 {
        let seat = world.healthy().into_iter().find(|other| other.birth.me != node);
        if let Some(seat) = seat {
            let _ = command(&seat, Kind::RemoveMember(RemoveMember { id: node, by: "operator".to_owned() }))
                .await;
            if !members(&seat.birth.disk).iter().any(|member| member.id == node) {
                world.checks.count("removals");
                return;
            }
        }
        sleep_ms(5_000).await;
    }
}

/// An older copy of a machine's disk, in which the log has gone on by enough since for others to know better.
async fn older(world: &World, machine: usize, dice: &mut SmallRng) -> Option<(Birth, Image)> {
    let whole = world.net.is_whole() && world.healthy().len() == world.in_use().len();
    if !whole || world.in_use().len() < 3 {
        return None;
    }
    let image = world.image(machine)?;
    let before = image.last()?.index;
    sleep_ms(dice.random_range(8_000..20_000)).await;
    let node = world.healthy().into_iter().find(|node| node.birth.machine == machine)?;
    let ahead = node.birth.disk.look(|image| image.last().map_or(0, |id| id.index)) > before + 5;
    let whole = world.net.is_whole() && world.healthy().len() == world.in_use().len();
    // As the machine would start it now, not as its process was born.
    let birth = world.birth(machine)?;
    (ahead && whole).then_some((birth, image))
}

/// A virtual machine is put back to an older snapshot of itself.
async fn rollback(world: &World, machine: usize, dice: &mut SmallRng) {
    let Some((birth, image)) = older(world, machine, dice).await else { return };
    told(world, "rollbacks", format!("machine {machine} is rolled back to {:?}", image.last()));
    world.stop(machine, true);
    world.roll_back(machine, image);
    sleep_ms(1_000).await;
    world.start(machine);
    fence_off(world, machine, &birth).await;
}

/// A copy of a virtual machine is started beside it.
async fn clone(world: &World, machine: usize, dice: &mut SmallRng) {
    let Some((birth, image)) = older(world, machine, dice).await else { return };
    let image = if dice.random_range(0..2) == 0 { world.image(machine).unwrap_or(image) } else { image };
    let copy = world.next_machine();
    told(world, "clones", format!("machine {copy} is a copy of machine {machine}"));
    // Nobody can tell which of two is the copy: one of them is to be shut out, whichever others were in touch with.
    world.doubt(machine);
    world.install(Birth {
        machine: copy,
        disk: super::disk::Disk::new(image),
        rightful: false,
        ..birth.clone()
    });
    world.start(copy);
    let until = elapsed() + Duration::from_secs(60);
    let both = || world.process_on(copy).is_some() && world.process_on(machine).is_some();
    while elapsed() < until && both() {
        sleep_ms(500).await;
    }
    if both() {
        return world.checks.violated(format!("machines {machine} and {copy} are one node, and both run"));
    }
    if world.process_on(copy).is_none() {
        return world.retire(copy);
    }
    world.checks.count("originals shut out");
    fence_off(world, machine, &birth).await;
    world.retire(copy);
}

/// A directory that others know to be old must be refused; its node is removed then, and another one joins.
async fn fence_off(world: &World, machine: usize, birth: &Birth) {
    let until = elapsed() + Duration::from_secs(60);
    while elapsed() < until && world.process_on(machine).is_some() {
        sleep_ms(500).await;
    }
    if world.process_on(machine).is_some() {
        world.checks.violated(format!("machine {machine} was rolled back, and is not shut out"));
    }
    world.retire(machine);
    join(world).await;
    remove(world, birth.me).await;
}

/// What people do all day.
async fn operate(world: &World, dice: &mut SmallRng) {
    world.checks.count("operations");
    // What follows from it has its time, too.
    world.disturb();
    match dice.random_range(0..4) {
        0 => apply_settings(world, plan::settings(dice)).await,
        1 => {
            let job = format!("{}", elapsed().as_millis());
            world.checks.count("jobs");
            world.admin.order(job);
        }
        2 => {
            if let Some(node) = anyone(world, dice) {
                let ask = Ask { by: "operator".to_owned(), what: Some(AskWhat::SweepSegment(String::new())) };
                let _ = command(&node, Kind::Ask(ask)).await;
            }
        }
        _ => {
            if world.in_use().len() < 6 {
                join(world).await;
            }
        }
    }
}

/// Takes everything back that is broken.
pub async fn mend_all(world: &World) {
    // What mends itself has done so by then.
    sleep_ms(26_000).await;
    world.net.mend();
    for machine in world.in_use() {
        world.freeze(machine, false, false);
        world.set_calendar(machine, 0);
        world.set_disk(machine, false, None);
        world.start(machine);
    }
    sleep_ms(15_000).await;
    resume_all(world).await;
}
