//! What the log does to the table of profiles: the same source, by hash, on every node, after a trial on one.
//!
//! Whether a source compiles is for its proposer to find out; nothing here knows the language. When a trial ends, and
//! how, is decided by [`trial`] from counts that nodes reported.

use std::collections::BTreeMap;

use quire_proto::id::NodeId;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{
    Meta, PutScript, RemoveScript, ReportScripts, ScriptCount, ScriptRow, ScriptRuns, ScriptTrial,
    ScriptVerdict, ScriptVersion,
};

use crate::rows;
use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, ReadExt as _, Table};
use crate::trial::{self, Tally, Verdict};

/// Profiles that a cluster keeps: with 64 KB in each of three versions at most 48 MB, in practice some hundred KB.
pub const MOST: usize = 256;
/// Longest source, octets; a profile of a family has 2 to 5 KB.
pub const LONGEST_SOURCE: usize = 64 * 1024;

/// The version that a node is to run: the one on trial where it is the node of the trial, else the one in force.
pub fn for_node(row: &ScriptRow, node: NodeId) -> Option<ScriptVersion> {
    let on_trial = row.trial.as_ref().filter(|trial| trial.node == node.0);
    on_trial.and_then(|trial| trial.version.clone()).or_else(|| in_force(row))
}

/// The version in force; `None` while the first is on trial, or was taken back.
pub fn in_force(row: &ScriptRow) -> Option<ScriptVersion> {
    (!row.sha256.is_empty()).then(|| ScriptVersion {
        version: row.version.clone(),
        source: row.source.clone(),
        sha256: row.sha256.clone(),
        put_at_ms: row.put_at_ms,
        by: row.by.clone(),
        index: row.index,
        counts: row.counts.clone(),
    })
}

fn put_in_force(row: &mut ScriptRow, version: Option<ScriptVersion>) {
    let ScriptVersion { version, source, sha256, put_at_ms, by, index, counts } = version.unwrap_or_default();
    (row.version, row.source, row.sha256) = (version, source, sha256);
    (row.put_at_ms, row.by, row.index, row.counts) = (put_at_ms, by, index, counts);
}

/// All nodes' runs of a version.
pub fn tally(counts: &[ScriptCount]) -> Tally {
    let one = |count: &ScriptCount| Tally { runs: count.runs, failures: count.failures };
    counts.iter().map(one).fold(Tally::default(), Tally::plus)
}

pub(crate) fn put(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    put: &PutScript,
) -> Result<Answer, Fault> {
    if put.name.is_empty() || put.sha256.len() != 32 {
        return Ok(refuse("a script needs a name and the SHA-256 of its source"));
    }
    if put.source.len() > LONGEST_SOURCE {
        return Ok(refuse(format!("a script has at most {LONGEST_SOURCE} octets")));
    }
    let before: Option<ScriptRow> = tables.row(Table::Scripts, put.name.as_bytes())?;
    if before.is_none() && rows::scripts(tables)?.len() >= MOST {
        return Ok(refuse(format!("there are {MOST} scripts already: remove one first")));
    }
    let mut row = before.unwrap_or_else(|| ScriptRow { name: put.name.clone(), ..ScriptRow::default() });
    let same = |version: Option<&ScriptVersion>| version.is_some_and(|v| v.sha256 == put.sha256);
    let on_trial = row.trial.take();
    if row.sha256 == put.sha256 {
        save(tables, &row)?;
        return Ok(Answer::Changes(format!("script `{}` is in force already", put.name)));
    }
    if !put.now && same(on_trial.as_ref().and_then(|trial| trial.version.as_ref())) {
        return Ok(Answer::Changes(format!("script `{}` is on trial already", put.name)));
    }
    let version = ScriptVersion {
        version: put.version.clone(),
        source: put.source.clone(),
        sha256: put.sha256.clone(),
        put_at_ms: at_ms,
        by: put.by.clone(),
        index,
        counts: Vec::new(),
    };
    row.refused = None;
    let replaced = in_force(&row).map(|old| format!(" over {}", old.version)).unwrap_or_default();
    let mut what = format!("put script `{}` version {}{replaced}", put.name, put.version);
    match choose_node(tables, None)?.filter(|_| !put.now) {
        Some((node, name)) => {
            row.trial = Some(ScriptTrial { version: Some(version), node, since_ms: at_ms });
            what.push_str(&format!(", on trial on node `{name}`"));
        }
        None => succeed(&mut row, version),
    }
    save(tables, &row)?;
    audit(tables, index, at_ms, &put.by, what.clone());
    Ok(Answer::Changes(what))
}

pub(crate) fn remove(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    remove: &RemoveScript,
) -> Result<Answer, Fault> {
    if tables.row::<ScriptRow>(Table::Scripts, remove.name.as_bytes())?.is_none() {
        return Ok(refuse(format!("no script `{}` was put", remove.name)));
    }
    tables.delete(Table::Scripts, remove.name.as_bytes());
    count_trials(tables)?;
    let what = format!("removed script `{}`", remove.name);
    audit(tables, index, at_ms, &remove.by, what.clone());
    Ok(Answer::Changes(what))
}

/// Adds what a node reports to the versions that it ran, and looks whether that decides anything.
pub(crate) fn report(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    report: &ReportScripts,
) -> Result<Answer, Fault> {
    if rows::member(tables, NodeId(report.node))?.is_none() {
        return Ok(refuse(format!("node {} is not a member", report.node)));
    }
    let mut told = Vec::new();
    for runs in &report.runs {
        let Some(mut row) = tables.row::<ScriptRow>(Table::Scripts, runs.name.as_bytes())? else { continue };
        add(&mut row, report, runs);
        told.extend(settle(tables, &mut row, at_ms)?);
        save(tables, &row)?;
    }
    tell(tables, index, at_ms, &told);
    Ok(Answer::Done(true))
}

fn add(row: &mut ScriptRow, report: &ReportScripts, runs: &ScriptRuns) {
    let on_trial = row.trial.as_mut().and_then(|trial| trial.version.as_mut());
    let counts = match on_trial.filter(|version| version.sha256 == runs.sha256) {
        Some(version) => &mut version.counts,
        None if row.sha256 == runs.sha256 => &mut row.counts,
        // Of a version that is gone.
        None => return,
    };
    let at = counts.iter().position(|count| count.node == report.node).unwrap_or_else(|| {
        counts.push(ScriptCount { node: report.node, ..ScriptCount::default() });
        counts.len() - 1
    });
    let count = &mut counts[at];
    if report.serial > count.serial {
        count.serial = report.serial;
        count.runs = count.runs.saturating_add(runs.runs);
        count.failures = count.failures.saturating_add(runs.failures.min(runs.runs));
    }
}

/// Looks at every trial: time passes and nodes go without anybody reporting.
pub(crate) fn settle_all(tables: &mut Overlay<'_>, index: u64, at_ms: u64) -> Result<(), Fault> {
    let mut told = Vec::new();
    for mut row in rows::scripts(tables)?.into_iter().filter(|row| row.trial.is_some()) {
        let before = row.clone();
        told.extend(settle(tables, &mut row, at_ms)?);
        if row != before {
            save(tables, &row)?;
        }
    }
    tell(tables, index, at_ms, &told);
    Ok(())
}

/// Ends or moves a trial, or takes back what is in force, where that is due. Says what it did.
fn settle(tables: &Overlay<'_>, row: &mut ScriptRow, at_ms: u64) -> Result<Option<String>, Fault> {
    let Some(trial) = row.trial.clone() else { return Ok(watch(row, at_ms)) };
    let version = trial.version.unwrap_or_default();
    let (new, old) = (tally(&version.counts), tally(&row.counts));
    let (name, number) = (row.name.clone(), version.version.clone());
    match trial::of_trial(new, old, at_ms.saturating_sub(trial.since_ms)) {
        Verdict::Keep => {
            row.trial = None;
            succeed(row, version);
            let Tally { runs, failures } = new;
            Ok(Some(format!("script `{name}` version {number} is in force: {runs} runs, {failures} failed")))
        }
        Verdict::TakeBack => {
            row.trial = None;
            Ok(Some(refuse_version(row, &version, old, at_ms)))
        }
        Verdict::Wait => {
            let able = can_try(tables, trial.node)?;
            // A node that reads nothing learns nothing, as long as another does.
            if able && (new.runs > 0 || devices(tables)?.get(&trial.node).is_some_and(|has| *has > 0)) {
                return Ok(None);
            }
            let Some((node, on)) = choose_node(tables, (!able).then_some(trial.node))? else {
                return Ok(None);
            };
            if node == trial.node {
                return Ok(None);
            }
            row.trial = Some(ScriptTrial { version: Some(version), node, since_ms: at_ms });
            Ok(Some(format!("script `{name}` version {number} is on trial on node `{on}` now")))
        }
    }
}

/// Takes the version in force back where it fails more than the one before it.
fn watch(row: &mut ScriptRow, at_ms: u64) -> Option<String> {
    let version = in_force(row)?;
    let old = row.before.as_ref().map(|before| tally(&before.counts)).unwrap_or_default();
    match trial::in_force(tally(&version.counts), old) {
        Verdict::TakeBack => {
            let before = row.before.take();
            put_in_force(row, before);
            Some(refuse_version(row, &version, old, at_ms))
        }
        Verdict::Wait | Verdict::Keep => None,
    }
}

fn succeed(row: &mut ScriptRow, version: ScriptVersion) {
    row.before = in_force(row);
    put_in_force(row, Some(version));
}

fn refuse_version(row: &mut ScriptRow, version: &ScriptVersion, old: Tally, at_ms: u64) -> String {
    let Tally { runs, failures } = tally(&version.counts);
    let why = format!("{failures} of {runs} runs failed, of the one before {} of {}", old.failures, old.runs);
    let what = format!("took back script `{}` version {}: {why}", row.name, version.version);
    row.refused = Some(ScriptVerdict {
        version: version.version.clone(),
        sha256: version.sha256.clone(),
        why,
        at_ms,
        runs,
        failures,
    });
    what
}

/// True while a node reads devices and is heard.
fn can_try(tables: &Overlay<'_>, node: u64) -> Result<bool, Fault> {
    let meta = rows::meta(tables)?;
    let member = rows::member(tables, NodeId(node))?;
    Ok(member.is_some_and(|member| !member.witness && !member.draining && is_heard(&meta, node)))
}

/// The claims tell who is heard; before the first that did, everybody counts.
fn is_heard(meta: &Meta, node: u64) -> bool {
    meta.heard.is_empty() || meta.heard.iter().any(|heard| heard.node == node)
}

/// How many devices each node reads.
fn devices(tables: &Overlay<'_>) -> Result<BTreeMap<u64, u64>, Fault> {
    let mut devices = BTreeMap::new();
    for unit in rows::units(tables)? {
        *devices.entry(unit.node).or_default() += u64::from(unit.devices);
    }
    Ok(devices)
}

/// The node that has the most devices, of equals the oldest: that one learns most. Its id and name.
fn choose_node(tables: &Overlay<'_>, not: Option<u64>) -> Result<Option<(u64, String)>, Fault> {
    let devices = devices(tables)?;
    let meta = rows::meta(tables)?;
    let members = rows::members(tables)?;
    let fit = members.into_iter().filter(|member| {
        !member.witness && !member.draining && Some(member.id) != not && is_heard(&meta, member.id)
    });
    let best = fit.max_by_key(|member| {
        let has = devices.get(&member.id).copied().unwrap_or(0);
        (has, std::cmp::Reverse(member.id))
    });
    Ok(best.map(|member| (member.id, member.name)))
}

fn save(tables: &mut Overlay<'_>, row: &ScriptRow) -> Result<(), Fault> {
    tables.put(Table::Scripts, row.name.as_bytes(), row);
    count_trials(tables)
}

/// So that a claim's renewal need not look for trials while there are none.
fn count_trials(tables: &mut Overlay<'_>) -> Result<(), Fault> {
    let trials = rows::scripts(tables)?.iter().filter(|row| row.trial.is_some()).count();
    let (trials, mut meta) = (u32::try_from(trials).unwrap_or(u32::MAX), rows::meta(tables)?);
    if meta.trials != trials {
        meta.trials = trials;
        rows::put_meta(tables, &meta);
    }
    Ok(())
}

/// One line of the audit is one entry of the log.
fn tell(tables: &mut Overlay<'_>, index: u64, at_ms: u64, told: &[String]) {
    if !told.is_empty() {
        audit(tables, index, at_ms, "cluster", told.join("; "));
    }
}

/// What a listing says of a script: every version that there is of it, the one in force first.
pub fn listing(row: &ScriptRow) -> Vec<Listed> {
    let mut listed = Vec::new();
    let one = |state: &'static str, node, version: ScriptVersion| Listed {
        state,
        node,
        tally: tally(&version.counts),
        why: None,
        version,
    };
    listed.extend(in_force(row).map(|version| one("active", None, version)));
    if let Some(trial) = &row.trial {
        listed.extend(trial.version.clone().map(|version| one("trial", Some(NodeId(trial.node)), version)));
    }
    if let Some(refused) = &row.refused {
        let ScriptVerdict { version, sha256, why, at_ms, runs, failures } = refused.clone();
        let version = ScriptVersion { version, sha256, put_at_ms: at_ms, ..ScriptVersion::default() };
        let tally = Tally { runs, failures };
        listed.push(Listed { state: "taken-back", node: None, version, tally, why: Some(why) });
    }
    listed
}

/// One version of a script.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// `active`, `trial` or `taken-back`.
    pub state: &'static str,
    /// Where it is tried.
    pub node: Option<NodeId>,
    /// Without a source where it was taken back.
    pub version: ScriptVersion,
    /// On all nodes.
    pub tally: Tally,
    /// Why it was taken back.
    pub why: Option<String>,
}

#[cfg(test)]
#[path = "script_tests.rs"]
mod tests;
