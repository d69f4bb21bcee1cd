//! What must hold of a run, all along. Each invariant is a function here that says what it means.
//!
//! The ledger sees everything that every process does, which no process of a real cluster could; it decides nothing
//! for them. The first violation ends the run.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::EntryPayload;
use prost::Message as _;
use quire_proto::id::{NodeId, reading_id};
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::outcome::Result as Said;
use quire_proto::store::{Command, Observation, Plan, Record};

use super::raft::{Answer, Entry, digest, entry_digest};
use super::runtime::{elapsed, lock};

/// The cluster's name to machines, in every run.
pub const CLUSTER_ID: &[u8; 16] = b"simulated-quire!";

/// Everything that was seen; clones share it.
#[derive(Clone, Default)]
pub struct Checks(Arc<Mutex<Ledger>>);

#[derive(Default)]
struct Ledger {
    violations: Vec<String>,
    counts: BTreeMap<&'static str, u64>,
    trace: std::collections::hash_map::DefaultHasher,
    lines: Option<Vec<String>>,
    /// Committed entries by index.
    entries: BTreeMap<u64, u64>,
    /// What they command.
    commands: BTreeMap<u64, Bytes>,
    /// The state that each index comes to.
    states: BTreeMap<u64, u64>,
    grants: BTreeMap<(String, u64), u64>,
    recorded: BTreeMap<u64, u64>,
    /// Committed observations by node and number.
    observations: BTreeMap<(u64, u64), u64>,
    /// Committed readings by id, and how the Web Admin numbers them once it has them.
    readings: BTreeMap<String, Option<u64>>,
    /// Of the Web Admin: the highest epoch that was accepted, and whose it is.
    writer: (u64, u64),
    /// SNMPv3 users tried: by address, the sweep's start, settings and user.
    trials: BTreeMap<(String, u64, u64, u32), u64>,
    /// Packets in the present second, by node.
    packets: BTreeMap<u64, (u64, u64)>,
}

impl Checks {
    /// With the lines of a trace to be shown afterwards.
    #[must_use]
    pub fn told() -> Checks {
        let checks = Checks::default();
        lock(&checks.0).lines = Some(Vec::new());
        checks
    }

    /// Notes that something that must hold does not.
    pub fn violated(&self, what: String) {
        let mut ledger = lock(&self.0);
        let line = format!("{:.3} s: {what}", elapsed().as_secs_f64());
        ledger.violations.push(line);
    }

    /// The first violation.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        lock(&self.0).violations.first().cloned()
    }

    /// Counts something that happened.
    pub fn count(&self, what: &'static str) {
        self.count_many(what, 1);
    }

    /// Counts several at once.
    pub fn count_many(&self, what: &'static str, many: u64) {
        *lock(&self.0).counts.entry(what).or_default() += many;
    }

    /// How often something happened.
    #[must_use]
    pub fn counted(&self, what: &str) -> u64 {
        lock(&self.0).counts.get(what).copied().unwrap_or(0)
    }

    /// All counts.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        lock(&self.0).counts.clone()
    }

    /// Adds to the trace, by which two runs are told apart.
    pub fn trace(&self, of: &impl Hash) {
        let mut ledger = lock(&self.0);
        elapsed().hash(&mut ledger.trace);
        of.hash(&mut ledger.trace);
    }

    /// Adds to the trace, and to what a human may read of it.
    pub fn tell(&self, line: impl FnOnce() -> String) {
        let mut ledger = lock(&self.0);
        if let Some(lines) = &mut ledger.lines {
            lines.push(format!("{:9.3} {}", elapsed().as_secs_f64(), line()));
        }
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        lock(&self.0).lines.clone().unwrap_or_default()
    }

    /// The trace's hash.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        lock(&self.0).trace.finish()
    }

    /// The highest index that any node has applied.
    #[must_use]
    pub fn frontier(&self) -> u64 {
        lock(&self.0).entries.keys().next_back().copied().unwrap_or(0)
    }

    fn holds(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.violated(what());
        }
    }
}

impl Checks {
    /// A node applied entries, which brought its tables to `state`.
    pub fn applied(&self, node: u64, entries: &[Entry], answers: &[Answer], state: u64) {
        let frontier = self.frontier();
        for (entry, answer) in entries.iter().zip(answers) {
            self.committed_entries_never_change(node, entry);
            let index = entry.log_id.index;
            if index > frontier
                && let EntryPayload::Normal(proposal) = &entry.payload
            {
                lock(&self.0).commands.insert(index, proposal.0.clone());
                self.commanded(index, &proposal.0, answer);
            }
        }
        if let Some(last) = entries.last() {
            self.trace(&(node, last.log_id.index, state));
            self.identical_state_at_identical_index(node, last.log_id.index, state);
        }
        self.count_many("entries applied", entries.len() as u64);
    }

    /// A node took a snapshot in.
    pub fn installed(&self, node: u64, index: u64, state: u64) {
        self.count("snapshots installed");
        self.trace(&(node, index, state, "snapshot"));
        self.tell(|| format!("node {node} installs a snapshot of {index}"));
        self.identical_state_at_identical_index(node, index, state);
    }

    /// Whatever was applied at an index by one node is applied there by all, for ever.
    fn committed_entries_never_change(&self, node: u64, entry: &Entry) {
        let (index, said) = (entry.log_id.index, entry_digest(entry));
        let before = *lock(&self.0).entries.entry(index).or_insert(said);
        self.holds(before == said, || {
            format!("node {node} applies another entry at {index} than was applied there")
        });
    }

    /// Tables are a function of the log alone: who has applied the same entries has the same rows, however the entries
    /// were cut into batches, and whether they came as entries or as a snapshot, before or after a crash.
    fn identical_state_at_identical_index(&self, node: u64, index: u64, state: u64) {
        let before = *lock(&self.0).states.entry(index).or_insert(state);
        self.count("states compared");
        self.holds(before == state, || format!("node {node} has other tables at {index} than others had"));
    }

    /// The first application of a command anywhere: now it is committed.
    fn commanded(&self, index: u64, command: &Bytes, answer: &Answer) {
        let Ok(command) = Command::decode(command.clone()) else { return };
        let refused = matches!(answer.0.result, Some(Said::Rejected(_)));
        self.count(if refused { "commands refused" } else { "commands done" });
        match command.kind {
            Some(Kind::Plan(plan)) if !refused => self.planned(index, &plan),
            Some(Kind::Record(record)) => self.recorded(&record),
            Some(Kind::Claim(claim)) if !refused && claim.renews == 0 => self.count("claims"),
            Some(Kind::PutSettings(_)) => self.count("settings"),
            _ => {}
        }
    }

    fn planned(&self, index: u64, plan: &Plan) {
        self.count("plans");
        for grant in &plan.grants {
            self.count("grants");
            self.tell(|| format!("{index}: unit {} goes to node {}", grant.unit, grant.node));
            self.one_owner_of_a_grant(&grant.unit, index, grant.node);
        }
    }

    /// A unit has one owner under one epoch: two grants of the same unit never share their fencing number.
    fn one_owner_of_a_grant(&self, unit: &str, epoch: u64, node: u64) {
        let before = *lock(&self.0).grants.entry((unit.to_owned(), epoch)).or_insert(node);
        self.holds(before == node, || {
            format!("unit {unit} has two owners under {epoch}: {before} and {node}")
        });
    }

    fn recorded(&self, record: &Record) {
        for stored in &record.observations {
            let Ok(observation) = Observation::decode(stored.clone()) else { continue };
            let mut ledger = lock(&self.0);
            let through = ledger.recorded.entry(record.node).or_default();
            if observation.seq <= *through {
                continue;
            }
            *through = observation.seq;
            ledger.observations.insert((record.node, observation.seq), digest(stored));
            if let Some(lines) = &mut ledger.lines {
                lines.push(format!(
                    "{:9.3} node {} has recorded {}",
                    elapsed().as_secs_f64(),
                    record.node,
                    observation.seq
                ));
            }
            if matches!(observation.what, Some(What::Reading(_))) && !observation.facts_only {
                let id = reading_id(CLUSTER_ID, NodeId(record.node), observation.seq);
                ledger.readings.insert(id, None);
                *ledger.counts.entry("readings committed").or_default() += 1;
            }
        }
    }

    /// What a node forgets of its spool is committed, and as it was spooled: a number is never used for two
    /// observations of which one would be taken for the other's repetition.
    pub fn forgotten_is_committed(&self, node: u64, seq: u64, stored: &Bytes) {
        self.tell(|| format!("node {node} forgets {seq}"));
        let committed = lock(&self.0).observations.get(&(node, seq)).copied();
        self.holds(committed == Some(digest(stored)), || match committed {
            None => format!("node {node} forgets observation {seq}, which is not committed"),
            Some(_) => format!(
                "node {node} forgets observation {seq}, but another one was committed under that number"
            ),
        });
    }

    /// An answer that a proposer was given stands: the entry that it names holds the proposer's command.
    pub fn acknowledged(&self, index: u64, command: &[u8]) {
        self.count("proposals acknowledged");
        let fine = lock(&self.0).commands.get(&index).is_some_and(|kept| kept.starts_with(command));
        self.holds(fine, || {
            format!("a command was acknowledged as entry {index}, which holds another, or none")
        });
        self.trace(&(index, command.len()));
    }
}

impl Checks {
    /// One writer upstream: the epochs that the Web Admin accepts never fall, and one epoch is one node's.
    pub fn one_accepted_writer(&self, epoch: u64, node: u64) {
        let before = std::mem::replace(&mut lock(&self.0).writer, (epoch, node));
        let fine = epoch > before.0 || (epoch == before.0 && node == before.1);
        self.holds(fine, || format!("the Web Admin accepts epoch {epoch} of node {node} after {before:?}"));
    }

    /// What arrives upstream is committed here and arrives once.
    pub fn stored_once_upstream(&self, id: &str, seq: u64) {
        let known = lock(&self.0).readings.get_mut(id).map(|number| number.replace(seq));
        self.count("readings upstream");
        match known {
            None => self.violated(format!("the Web Admin has reading {id}, which is not committed")),
            Some(Some(before)) => {
                self.violated(format!("the Web Admin has reading {id} twice: as {before} and as {seq}"));
            }
            Some(None) => {}
        }
    }

    /// Every committed reading is upstream. At the end of a run, when the outbox is empty.
    pub fn none_lost_on_the_way(&self) {
        let lost: Vec<String> = lock(&self.0)
            .readings
            .iter()
            .filter(|(_, seq)| seq.is_none())
            .map(|(id, _)| id.clone())
            .collect();
        self.holds(lost.is_empty(), || {
            format!("{} committed readings are not upstream, the first is {}", lost.len(), lost[0])
        });
    }

    /// A user is tried at a device at most once in a sweep, whoever owns the unit: devices lock users.
    pub fn one_trial_a_sweep(&self, address: &str, sweep: (u64, u64), user: u32, node: u64) {
        self.count("trials");
        let trial = (address.to_owned(), sweep.0, sweep.1, user);
        let before = lock(&self.0).trials.insert(trial, node);
        self.holds(before.is_none(), || {
            format!(
                "node {node} tries user {user} at {address} again in the sweep of {}: node {before:?} did",
                sweep.0
            )
        });
    }

    /// No packet goes to an address that has been excluded by the sender's own tables for a second.
    pub fn no_packet_to_the_excluded(&self, node: u64, address: &str, excluded: bool) {
        self.holds(!excluded, || format!("node {node} sends to {address}, which is excluded"));
    }

    /// A node sends no more in a second than its part of the zone's rate, a burst of one question aside.
    pub fn budget_kept(&self, node: u64, packets: u64, share: u64) {
        let second = elapsed().as_secs();
        let mut ledger = lock(&self.0);
        *ledger.counts.entry("packets").or_default() += packets;
        let sent = ledger.packets.entry(node).or_default();
        if sent.0 != second {
            *sent = (second, 0);
        }
        sent.1 += packets;
        let sent = sent.1;
        drop(ledger);
        self.holds(sent <= 2 * share + BURST, || {
            format!("node {node} sends {sent} packets in a second; its part is {share}")
        });
    }

    /// Within a bound of quorum every unit has a living owner, and a leader holds the claim. `bound` says how long the
    /// cluster had been whole.
    pub fn owned_within_a_bound(&self, problem: Option<String>, bound: Duration) {
        self.count("ownership checked");
        if let Some(problem) = problem {
            self.violated(format!("after {} s of quorum: {problem}", bound.as_secs()));
        }
    }
}

/// A read's questions go out together.
const BURST: u64 = 4;
