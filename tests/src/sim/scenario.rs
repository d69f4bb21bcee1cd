//! One run: a cluster is made, works, is broken in every way there is, is mended, and must then be whole.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::watch::WatchReceiver as _;
use quire_coordinator::planner;
use quire_coordinator::rows;
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_node::sim::Admission;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{AuditRow, CreateToken, Enroll, Join, PutSettings, UnitRow};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

use super::disk::{Disk, Image};
use super::faults;
use super::node::{Birth, Node, member, members};
use super::plan::{self, ZONES};
use super::runtime::{calendar_ms, elapsed, sleep_ms, spawn_in};
use super::site::identity;
use super::world::World;

/// A cluster whose majority has been whole for so long owns all its units and has a leader with a claim.
const BOUND: Duration = Duration::from_secs(20);
/// After everything was mended, so long until nothing is left to do.
const CONVERGE: Duration = Duration::from_secs(180);
/// An operator's patience.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs it all; ends early at the first violation.
pub async fn run(world: World) {
    let mut dice = SmallRng::seed_from_u64(world.plan.seed);
    spawn_in(None, watch(world.clone()));
    if !found(&world).await {
        return world.checks.violated("the first node does not come up".to_owned());
    }
    while world.in_use().len() < world.plan.machines && world.checks.violation().is_none() {
        join(&world).await;
    }
    apply_settings(&world, plan::settings(&mut dice)).await;
    sleep_ms(20_000).await;
    let end = elapsed() + Duration::from_secs(world.plan.seconds);
    while elapsed() < end && world.checks.violation().is_none() {
        faults::one(&world, &mut dice).await;
        let pause = match dice.random_range(0..10) {
            // Now and then long enough for everything to settle.
            0..2 => dice.random_range(30_000..60_000),
            2..5 => dice.random_range(100..2_000),
            _ => dice.random_range(500..world.plan.pace * 1_000),
        };
        sleep_ms(pause).await;
    }
    heal(&world).await;
}

/// The first node; true when it leads.
pub async fn found(world: &World) -> bool {
    world.install(birth(world, 1, world.next_machine(), true));
    world.start(1);
    let Some(first) = eventually(60_000, || leader(world)).await else { return false };
    let enroll = Enroll {
        url: "https://admin:443".to_owned(),
        site: "simulated".to_owned(),
        by: "operator".to_owned(),
        identities: vec![identity(1)],
        ..Enroll::default()
    };
    command(&first, Kind::Enroll(enroll)).await.is_some()
}

fn birth(world: &World, me: u64, machine: usize, founds: bool) -> Birth {
    Birth {
        me,
        machine,
        name: format!("n{machine}"),
        zone: ZONES[machine % ZONES.len()].to_owned(),
        incarnation: world.plan.seed.rotate_left(7) ^ machine as u64,
        disk: Disk::new(Image::default()),
        founds,
        newborn: !founds,
        rightful: true,
    }
}

/// Runs a command of an operator on a node, as its console would.
pub async fn command(node: &Arc<Node>, kind: Kind) -> Option<Answer> {
    let here = Arc::clone(node);
    let task = async move { here.propose(kind, PATIENCE).await.ok().and_then(|outcome| outcome.result) };
    spawn_in(Some(Arc::clone(&node.process)), task).await.ok().flatten()
}

/// A node that an operator might sit at.
pub fn anyone(world: &World, dice: &mut SmallRng) -> Option<Arc<Node>> {
    let nodes = world.healthy();
    (!nodes.is_empty()).then(|| Arc::clone(&nodes[dice.random_range(0..nodes.len())]))
}

/// A new machine joins; true when it did.
pub async fn join(world: &World) -> bool {
    let Some(seed) = leader(world).or_else(|| world.healthy().first().cloned()) else {
        sleep_ms(1_000).await;
        return false;
    };
    let machine = world.next_machine();
    let born = birth(world, 0, machine, false);
    let token = format!("token-{machine}");
    let create = CreateToken {
        id: token.clone(),
        expires_at_ms: calendar_ms() + 86_400_000,
        by: "operator".to_owned(),
        ..CreateToken::default()
    };
    if command(&seed, Kind::CreateToken(create)).await.is_none() {
        return false;
    }
    let ask = Join { token_id: token, token_secret_sha256: Bytes::new(), member: Some(member(&born)) };
    // Asked again, as the command line does; an answer that was lost is found in the members table.
    for _ in 0..5 {
        let answer = command(&seed, Kind::Join(ask.clone())).await;
        let made = members(&seed.birth.disk).into_iter().find(|member| member.name == born.name);
        let node = match answer {
            Some(Answer::Node(node)) => Some(node),
            _ => made.map(|member| member.id),
        };
        if let Some(me) = node {
            world.checks.count("joins");
            world.install(Birth { me, ..born });
            world.start(machine);
            return true;
        }
    }
    false
}

/// An operator applies settings.
pub async fn apply_settings(world: &World, toml: String) {
    if let Some(node) = leader(world).or_else(|| world.healthy().first().cloned()) {
        let put = PutSettings {
            toml,
            by: "operator".to_owned(),
            hide: Vec::new(),
            expire_after_ms: 42 * 86_400_000,
            sweep_again: false,
            key_generation: 1,
        };
        let _ = command(&node, Kind::PutSettings(put)).await;
    }
}

/// The process that holds the claim.
pub fn leader(world: &World) -> Option<Arc<Node>> {
    world.healthy().into_iter().find(|node| node.held.borrow().is_some() && node.standing().leads)
}

/// What `look` finds within so long.
pub async fn eventually<T>(within_ms: u64, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    for _ in 0..within_ms / 200 {
        if let Some(found) = look() {
            return Some(found);
        }
        sleep_ms(200).await;
    }
    None
}

/// Looks at the whole, once a second.
async fn watch(world: World) {
    loop {
        sleep_ms(1_000).await;
        if world.undisturbed() < BOUND || world.is_quiet() || world.is_ill() || !world.net.is_calm() {
            continue;
        }
        if let Some(whole) = majority(&world) {
            world.checks.owned_within_a_bound(unowned(&world, &whole), BOUND);
        }
    }
}

/// Healthy processes that all reach each other, if they have a majority of the voters.
fn majority(world: &World) -> Option<Vec<Arc<Node>>> {
    let healthy: Vec<Arc<Node>> = world.healthy();
    let open: Vec<Arc<Node>> =
        healthy.into_iter().filter(|node| *node.admission.borrow() == Admission::Open).collect();
    let both = |one: &Node, other: &Node| {
        let (one, other) = (one.birth.machine, other.birth.machine);
        world.net.passes(one, other) && world.net.passes(other, one)
    };
    let newest = open.iter().max_by_key(|node| node.applied())?;
    let voters: BTreeSet<u64> =
        newest.raft.metrics().borrow_watched().membership_config.membership().voter_ids().collect();
    for centre in &open {
        let around: Vec<Arc<Node>> =
            open.iter().filter(|other| both(centre.as_ref(), other.as_ref())).cloned().collect();
        let clique = around.iter().all(|one| around.iter().all(|other| both(one, other)));
        let votes = around.iter().filter(|node| voters.contains(&node.birth.me)).count();
        if clique && votes * 2 > voters.len() && around.iter().any(|node| node.birth.me == newest.birth.me) {
            return Some(around);
        }
    }
    None
}

/// What is wrong with who owns what, among processes that could do everything.
fn unowned(world: &World, whole: &[Arc<Node>]) -> Option<String> {
    let names = || whole.iter().map(|node| node.birth.me).collect::<Vec<_>>();
    let Some(leader) = whole.iter().find(|node| node.held.borrow().is_some()) else {
        return Some(format!("none of {:?} holds the claim", names()));
    };
    let (index, settings) = leader.settings();
    if index == 0 {
        return None;
    }
    let (units, rows, reaches) = leader.birth.disk.look(|image| {
        let units: Vec<UnitRow> = rows::units(&image.tables).unwrap_or_default();
        (
            units,
            rows::members(&image.tables).unwrap_or_default(),
            rows::reaches(&image.tables).unwrap_or_default(),
        )
    });
    for (unit, spec) in planner::units(&settings) {
        let Some(row) = units.iter().find(|row| row.unit == unit.as_str()) else {
            return Some(format!("unit {unit} is in nobody's plan"));
        };
        let able = |node: &&Arc<Node>| {
            let member = rows.iter().find(|member| member.id == node.birth.me);
            let stays = member.is_some_and(|member| !member.draining && !member.witness);
            let near = spec.zone == quire_proto::id::ANY_ZONE || spec.zone == node.birth.zone;
            let cut = reaches.iter().any(|row| {
                let reach = row.reach.as_ref();
                row.node == node.birth.me
                    && reach
                        .is_some_and(|reach| reach.segment == spec.segment.to_string() && !reach.reachable)
            });
            stays && near && !cut
        };
        // Whoever runs and is in touch may own it, even with a slow disk or a wrong calendar.
        let in_touch = |node: &&Arc<Node>| {
            let (here, there) = (leader.birth.machine, node.birth.machine);
            !node.process.is_still() && world.net.passes(here, there) && world.net.passes(there, here)
        };
        let owner = world.nodes().iter().filter(able).filter(in_touch).any(|node| node.birth.me == row.node);
        if !owner && whole.iter().any(|node| able(&node)) {
            return Some(format!("unit {unit} is node {}'s, which is not among {:?}", row.node, names()));
        }
    }
    None
}

/// Mends everything and waits until nothing is left to do.
async fn heal(world: &World) {
    if world.checks.violation().is_some() {
        return;
    }
    world.checks.tell(|| "everything is mended".to_owned());
    faults::mend_all(world).await;
    let mut why = String::new();
    let until = elapsed() + CONVERGE;
    let mut quiet_at = None;
    while elapsed() < until && world.checks.violation().is_none() {
        sleep_ms(500).await;
        match unsettled(world, quiet_at.is_some()) {
            Some(reason) => why = reason,
            None if quiet_at.is_none() => {
                quiet_at = Some(elapsed());
                world.set_quiet();
                why = "traffic ends".to_owned();
            }
            // What was under way when it was quieted has reported by now.
            None if quiet_at.is_some_and(|at| elapsed() - at > Duration::from_secs(40)) => {
                return finish(world);
            }
            None => {}
        }
    }
    if world.checks.violation().is_none() {
        world
            .checks
            .violated(format!("not whole {} s after everything was mended: {why}", CONVERGE.as_secs()));
    }
}

/// What is left to do; with `empty`, nothing may wait anywhere.
fn unsettled(world: &World, empty: bool) -> Option<String> {
    let nodes = world.nodes();
    let machines = world.in_use();
    if nodes.len() < machines.len() {
        return Some(format!("{} of {} machines run", nodes.len(), machines.len()));
    }
    let Some(leader) = leader(world) else { return Some("nobody leads".to_owned()) };
    if let Some(shut) = nodes.iter().find(|node| *node.admission.borrow() != Admission::Open) {
        return Some(format!("node {} does not take part", shut.birth.me));
    }
    if let Some(problem) = unowned(world, &nodes) {
        return Some(problem);
    }
    if leader.link.borrow().state != "connected" {
        return Some("the leader has no link".to_owned());
    }
    let standing = leader.standing();
    let living: BTreeSet<u64> = nodes.iter().map(|node| node.birth.me).collect();
    if let Some(dead) = standing.voters.iter().find(|id| !living.contains(id)) {
        return Some(format!("node {dead} votes and is gone"));
    }
    let voters = standing.voters.len();
    let enough = match nodes.len() {
        0..3 => 1,
        3..5 => 3,
        _ => 5,
    };
    if voters < enough.min(nodes.len()) && drained(&leader) == 0 {
        return Some(format!("{voters} of {} nodes vote", nodes.len()));
    }
    let meta = leader.birth.disk.look(|image| rows::meta(&image.tables)).unwrap_or_default();
    if empty {
        let waits = nodes.iter().find(|node| node.spool.waiting() > 0);
        if let Some(node) = waits {
            return Some(format!(
                "node {} has {} observations in its spool",
                node.birth.me,
                node.spool.waiting()
            ));
        }
        let pending = meta.outbox_next.saturating_sub(1).saturating_sub(meta.outbox_acked);
        if pending > 0 {
            return Some(format!("{pending} entries wait in the outbox"));
        }
    }
    let late = nodes.iter().find(|node| node.applied() + 100 < leader.applied());
    late.map(|node| format!("node {} is at {} of {}", node.birth.me, node.applied(), leader.applied()))
}

fn drained(leader: &Node) -> usize {
    members(&leader.birth.disk).iter().filter(|member| member.draining).count()
}

/// What must hold at the very end.
fn finish(world: &World) {
    world.checks.count("runs that ended whole");
    world.checks.none_lost_on_the_way();
    jobs_done_once(world);
}

/// What the Web Admin wants done is done once, if the site said so, and at most once if it did not.
fn jobs_done_once(world: &World) {
    let Some(leader) = leader(world) else { return };
    let audit: Vec<AuditRow> =
        leader.birth.disk.look(|image| image.tables.all(Table::Audit, &[])).unwrap_or_default();
    for (job, said) in world.admin.jobs() {
        let by = format!("job {job}");
        let times = audit.iter().filter(|row| row.by == by).count();
        if times > 1 || (said == Some(true) && times != 1) {
            world.checks.violated(format!("job {job} was done {times} times, and the site says {said:?}"));
        }
    }
}
