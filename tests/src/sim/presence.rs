//! Who is there, as the node's `presence` finds out: one stream to every voter, from the leader to all; a stream that
//! breaks and a machine that refuses mean that a process is gone, and then its followers ask for votes in turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::raft::TransferLeaderRequest;
use quire_coordinator::rows;
use quire_node::sim::Admission;
use quire_proto::cluster::AttendRequest;
use quire_proto::cluster::attend_reply::Verdict;
use quire_proto::id::NodeId;

use super::net::{Ask, NoReply, Reply, within};
use super::node::{Node, instant, members};
use super::raft::Vote;
use super::runtime::{JoinHandle, lock, pick, sleep_ms, spawn, steady};
use super::timing::turn_ms;

const OFTEN_MS: u64 = 5;
const SELDOM_MS: u64 = 500;
const ROUNDS: u64 = 6;
const LOOK_MS: u64 = 200;
const DIAL: Duration = Duration::from_secs(2);

/// What `presence` and `observe` of the node do on one process.
pub async fn run(node: Arc<Node>) {
    let mut streams: BTreeMap<u64, JoinHandle<()>> = BTreeMap::new();
    let mut campaign: Option<(Vote, JoinHandle<()>)> = None;
    let mut gone = node.gone.subscribe();
    for look in 0_u64.. {
        judge(&node);
        attend_those(&node, &mut streams);
        campaign_where_due(&node, &mut campaign);
        if look % 5 == 0 {
            note(&node);
        }
        tokio::select! {
            biased;
            _ = gone.changed() => {}
            () = sleep_ms(LOOK_MS) => {}
        }
    }
}

/// Waits until others know this process, as `start::open` does; false when they refuse it.
pub async fn introduced(node: &Arc<Node>) -> bool {
    let until = steady() + Duration::from_secs(3);
    let doubtful = until + Duration::from_secs(10);
    loop {
        match &*node.admission.borrow() {
            Admission::Open => return true,
            Admission::Shut(_) => return false,
            Admission::Waiting => {}
        }
        let doubted = lock(&node.answers).doubted();
        if steady() >= doubtful || (steady() >= until && !doubted) {
            return true;
        }
        sleep_ms(50).await;
    }
}

fn judge(node: &Arc<Node>) {
    if matches!(*node.admission.borrow(), Admission::Shut(_)) {
        return;
    }
    let (me, now) = (node.birth.me, instant(steady()));
    let conclusion = lock(&node.answers).admission(me, &node.voters, &node.others, instant(node.at), now);
    let changed = node.admission.send_if_modified(|before| {
        let change = *before != conclusion && conclusion != Admission::Waiting;
        if change {
            *before = conclusion.clone();
        }
        change
    });
    if changed {
        node.raft.runtime_config().elect(conclusion == Admission::Open);
        if let Admission::Shut(why) = conclusion {
            node.world.ended(node, Some(why));
        }
    }
}

/// Remembers what others acknowledged.
fn note(node: &Node) {
    let meta = node.birth.disk.look(|image| rows::meta(&image.tables)).unwrap_or_default();
    let mut acked: BTreeMap<u64, u64> = meta.heard.iter().map(|heard| (heard.node, heard.acked)).collect();
    for (id, known) in node.acked() {
        let entry = acked.entry(id).or_default();
        *entry = (*entry).max(known);
    }
    let news: Vec<_> = node.birth.disk.look(|image| {
        let newer = acked.into_iter().filter(|(id, _)| *id != node.birth.me).filter_map(|(id, acked)| {
            let mut seen = image.seen.get(&id).cloned().unwrap_or_default();
            (seen.acked < acked).then(|| {
                seen.acked = acked;
                (id, seen)
            })
        });
        newer.collect()
    });
    if !news.is_empty() {
        let _ = node.birth.disk.write(|batch| news.into_iter().for_each(|(id, seen)| batch.seen(id, seen)));
    }
}

fn wanted(node: &Node) -> BTreeSet<u64> {
    let (mut wanted, leads) = {
        let metrics = node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        (voters, metrics.state == ServerState::Leader)
    };
    if leads {
        wanted.extend(members(&node.birth.disk).iter().map(|member| member.id));
    }
    if *node.admission.borrow() == Admission::Waiting {
        wanted.extend(&node.others);
    }
    wanted.remove(&node.birth.me);
    wanted
}

fn attend_those(node: &Arc<Node>, streams: &mut BTreeMap<u64, JoinHandle<()>>) {
    let wanted = wanted(node);
    streams.retain(|other, task| {
        let keep = wanted.contains(other);
        if !keep {
            task.abort();
            back(node, *other);
        }
        keep
    });
    for other in wanted {
        streams.entry(other).or_insert_with(|| spawn(attend(Arc::clone(node), other)));
    }
}

async fn attend(node: Arc<Node>, other: u64) {
    let mut pause = OFTEN_MS;
    loop {
        let waiting = *node.admission.borrow() == Admission::Waiting;
        let last = node.birth.disk.look(|image| image.last().map_or(0, |id| id.index));
        let asks = AttendRequest {
            session: node.session.clone(),
            boot: node.boot,
            last: if waiting { last } else { u64::MAX },
            ..AttendRequest::default()
        };
        let links = node.links();
        let peer = links.peer(other, node.known_peer(other));
        let ask = Ask::Attend(asks, Arc::clone(&node.process));
        match within(DIAL, links.ask(other, node.known_peer(other), ask)).await {
            Ok(Reply::Verdict(verdict)) => {
                let outdated =
                    verdict == Verdict::Older && waiting && *node.admission.borrow() != Admission::Waiting;
                if !outdated {
                    node.checks.tell(|| {
                        format!(
                            "machine {}, node {}: node {other} says {verdict:?}",
                            node.birth.machine, node.birth.me
                        )
                    });
                    lock(&node.answers).handle(other, verdict, instant(steady()));
                    judge(&node);
                }
                if verdict == Verdict::Welcome {
                    pause = OFTEN_MS;
                    back(&node, other);
                    // In touch until the connection breaks.
                    let there = peer.and_then(|peer| node.world.process_on(peer.machine));
                    if let (Some(there), Some(peer)) = (there, links.peer(other, None)) {
                        node.net.broken(node.birth.machine, peer.machine, &there).await;
                    }
                }
            }
            Err(NoReply::Refused) => leave(&node, other),
            Ok(_) | Err(NoReply::Lost) => {}
        }
        sleep_ms(pause).await;
        pause = (pause * 2).min(SELDOM_MS);
    }
}

fn leave(node: &Arc<Node>, other: u64) {
    lock(&node.answers).handle_unreachable(other);
    judge(node);
    node.gone.send_if_modified(|gone| {
        let new = !gone.contains_key(&other);
        if new {
            gone.insert(other, steady());
        }
        new
    });
}

fn back(node: &Node, other: u64) {
    node.gone.send_if_modified(|gone| gone.remove(&other).is_some());
}

fn vote(node: &Node) -> Vote {
    node.raft.metrics().borrow_watched().vote
}

fn campaign_where_due(node: &Arc<Node>, campaign: &mut Option<(Vote, JoinHandle<()>)>) {
    let (leader, voters, vote) = {
        let metrics = node.raft.metrics();
        let metrics = metrics.borrow_watched();
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        (metrics.current_leader, voters, metrics.vote)
    };
    let gone = node.gone.borrow().clone();
    let Some(since) = leader.and_then(|leader| gone.get(&leader).copied()) else { return };
    let open = *node.admission.borrow() == Admission::Open;
    if !open || !voters.contains(&node.birth.me) || leader == Some(node.birth.me) {
        return;
    }
    if campaign.as_ref().is_some_and(|(against, _)| *against == vote) {
        return;
    }
    let living: Vec<u64> = voters.iter().copied().filter(|id| !gone.contains_key(id)).collect();
    let rank = living.iter().position(|id| *id == node.birth.me).unwrap_or(0) as u64;
    node.checks.count("campaigns");
    let task = spawn(ask_for_votes(Arc::clone(node), vote, since, rank, living.len().max(1) as u64));
    if let Some((_, before)) = campaign.replace((vote, task)) {
        before.abort();
    }
}

async fn ask_for_votes(node: Arc<Node>, against: Vote, since: Duration, rank: u64, of: u64) {
    let release = TransferLeaderRequest::new(against, NodeId::NOBODY.0, None);
    if node.raft.handle_transfer_leader(release).await.is_err() {
        return;
    }
    for round in 0..ROUNDS {
        let turns = if round == 0 { rank } else { of << (round - 1) };
        sleep_ms(turns * turn_ms() + 10 + pick(0..10)).await;
        let spoke = node.last_word().is_some_and(|(at, _)| at > since);
        let now = vote(&node);
        if spoke || (now != against && now.committed) {
            return;
        }
        if node.raft.trigger().elect(true).await.is_err() {
            return;
        }
    }
}
