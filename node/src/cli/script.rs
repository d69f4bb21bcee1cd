//! `quire script`: profiles of a running cluster, and a profile tried on a recording with no cluster at all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use data_encoding::HEXLOWER;
use quire_proto::reading::Reading;
use reqwest::Method;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::args::ScriptCommand;
use super::output::{self, Column, Format};
use super::remote::{Node, parse};
use crate::clock;
use crate::device::script::{Limits, Profile, Recording, Rehearsal, Scripts, rehearse};
use crate::device::{Place, device_json};

const COLUMNS: &[Column] = &[
    ("NAME", "name"),
    ("VERSION", "version"),
    ("STATE", "state"),
    ("NODE", "node"),
    ("PRIORITY", "priority"),
    ("ORIGIN", "origin"),
    ("RUNS", "runs"),
    ("FAILURES", "failures"),
    ("PUT", "put_at"),
    ("SHA256", "sha256"),
];

/// Pages of a recorded device that are looked at, and the octets of each: a bound for a wrong directory.
const PAGES: usize = 1000;
const PAGE: u64 = 1 << 20;

pub(super) async fn run(
    data_dir: Option<&Path>,
    command: ScriptCommand,
    format: Format,
) -> anyhow::Result<()> {
    let node = data_dir.map(Node::reach).transpose();
    let running = || -> anyhow::Result<Node> {
        Ok(node?.ok_or_else(|| super::args::Usage("--data-dir is missing".to_owned()))?)
    };
    match command {
        ScriptCommand::List => {
            let mut rows = listed(&running()?).await?;
            if format != Format::Json {
                rows.iter_mut().for_each(shorten);
            }
            Ok(output::list(format, COLUMNS, &rows)?)
        }
        ScriptCommand::Put { file, now } => {
            let source = read_text(&file)?;
            Profile::parse(&source).with_context(|| format!("{} changes nothing", file.display()))?;
            let query = if now { "?now=true" } else { "" };
            running()?.post(&format!("control/scripts{query}"), source).await
        }
        ScriptCommand::Remove { name } => {
            running()?.post(&format!("control/scripts/{name}/remove"), "{}".into()).await
        }
        ScriptCommand::Test { file, recording, web } => {
            let active = match data_dir {
                Some(_) => active_on(&running()?).await?,
                None => Scripts::shipped().to_vec(),
            };
            test(&file, &recording, web.as_deref(), active, format).await
        }
    }
}

fn shorten(row: &mut Value) {
    if let Some(hash) =
        row.get("sha256").and_then(Value::as_str).map(|hash| hash.chars().take(12).collect::<String>())
    {
        row["sha256"] = json!(hash);
    }
}

async fn listed(node: &Node) -> anyhow::Result<Vec<Value>> {
    let rows = parse(&node.send(Method::GET, "control/scripts", None).await?)?;
    rows.as_array().cloned().ok_or_else(|| anyhow!("the node's list of scripts is none"))
}

/// The profiles in force on a node, compiled here.
async fn active_on(node: &Node) -> anyhow::Result<Vec<Arc<Profile>>> {
    let mut profiles = Vec::new();
    for row in listed(node).await?.into_iter().filter(|row| row["state"] == "active") {
        let source = row.get("source").and_then(Value::as_str).unwrap_or_default();
        profiles.push(Arc::new(Profile::parse(source).context("compile a script of the node")?));
    }
    Ok(profiles)
}

fn read_text(file: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

async fn test(
    file: &Path,
    recording: &Path,
    web: Option<&Path>,
    active: Vec<Arc<Profile>>,
    format: Format,
) -> anyhow::Result<()> {
    let profile = Profile::parse(&read_text(file)?).with_context(|| file.display().to_string())?;
    let octets = std::fs::read(recording).with_context(|| format!("read {}", recording.display()))?;
    let mut recorded = Recording::parse(&String::from_utf8_lossy(&octets));
    if let Some(folder) = web {
        recorded = recorded.with_pages(pages(folder)?);
    }
    let profile = Arc::new(profile);
    let with = in_order(active.iter().filter(|other| other.name != profile.name), &profile);
    let before = timed(&recorded, active).await?.0;
    let (after, milliseconds) = timed(&recorded, with).await?;
    let reading = after.reading.clone().ok_or_else(|| anyhow!("{} is no printer", recording.display()))?;
    let Some((_, ended, cost, log)) = after.runs.iter().find(|(name, ..)| *name == profile.name) else {
        bail!("`{}` does not match this device: its match lines name others", profile.name);
    };
    let changes = changes(before.reading.as_ref(), &reading);
    let mut cost = json!(cost);
    cost["milliseconds"] = json!(milliseconds);
    let report = json!({
        "script": profile.name, "version": profile.version, "sha256": HEXLOWER.encode(&profile.sha256),
        "ok": ended.is_ok(), "error": ended.as_ref().err().map(ToString::to_string),
        "reading": device_json(&Place::default(), &reading), "changes": changes, "cost": cost, "log": log,
    });
    output::object(format, &report, &text(&report))?;
    match ended {
        Ok(()) => Ok(()),
        Err(why) => Err(anyhow!("the script failed: {why}; the reading stays without it")),
    }
}

fn in_order<'a>(others: impl Iterator<Item = &'a Arc<Profile>>, new: &'a Arc<Profile>) -> Vec<Arc<Profile>> {
    let mut all: Vec<Arc<Profile>> = others.chain([new]).cloned().collect();
    all.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
    all
}

/// As a node would: on a thread of its own, with its seconds counted. Milliseconds include the standard read.
async fn timed(recording: &Recording, profiles: Vec<Arc<Profile>>) -> anyhow::Result<(Rehearsal, u64)> {
    let (limits, stop, recording) = (Limits::default(), CancellationToken::new(), recording.clone());
    let token = stop.clone();
    let started = clock::ticks();
    let mut work = tokio::task::spawn_blocking(move || rehearse(&recording, &profiles, limits, &token));
    let patience = Duration::from_secs(u64::from(limits.seconds));
    let done = match tokio::time::timeout(patience, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            stop.cancel();
            work.await
        }
    };
    Ok((done.context("run the script")?, clock::ticks().0 - started.0))
}

/// The files of a directory by the path that a device would serve them at.
fn pages(folder: &Path) -> anyhow::Result<BTreeMap<String, String>> {
    let mut pages = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = std::fs::read_dir(&next).with_context(|| format!("list {}", next.display()))?;
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", next.display()))?;
            let kind = entry.file_type().with_context(|| format!("look at {}", entry.path().display()))?;
            if pages.len() + folders.len() > PAGES {
                bail!("{} holds more than {PAGES} files", folder.display());
            }
            if kind.is_dir() {
                folders.push(entry.path());
            } else if kind.is_file() && entry.metadata().is_ok_and(|meta| meta.len() <= PAGE) {
                let octets = std::fs::read(entry.path())
                    .with_context(|| format!("read {}", entry.path().display()))?;
                let path = entry.path();
                let inside = path.strip_prefix(folder).unwrap_or(&path).to_string_lossy().into_owned();
                pages.insert(format!("/{inside}"), String::from_utf8_lossy(&octets).into_owned());
            }
        }
    }
    Ok(pages)
}

/// Leaves of the device object that differ, by their path.
fn changes(before: Option<&Reading>, after: &Reading) -> Vec<Value> {
    let leaves = |reading: &Reading| {
        let mut leaves = BTreeMap::new();
        flatten("", &device_json(&Place::default(), reading), &mut leaves);
        leaves
    };
    let (before, after) = (before.map(leaves).unwrap_or_default(), leaves(after));
    let fields: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    fields
        .into_iter()
        .filter(|field| before.get(*field) != after.get(*field))
        .map(|field| {
            let mut change = Map::new();
            change.insert("field".to_owned(), json!(field));
            change.extend(before.get(field).map(|value| ("before".to_owned(), value.clone())));
            change.extend(after.get(field).map(|value| ("after".to_owned(), value.clone())));
            Value::Object(change)
        })
        .collect()
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    let step = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(entries) => entries.iter().for_each(|(key, value)| flatten(&step(key), value, into)),
        // A supply is known by its index, which is also what its sources are named by.
        Value::Array(items) if path == "supplies" => {
            for item in items {
                let index = item.get("index").map(ToString::to_string).unwrap_or_default();
                flatten(&step(&index), item, into);
            }
        }
        leaf => {
            into.insert(path.to_owned(), leaf.clone());
        }
    }
}

fn text(report: &Value) -> String {
    let word = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect(),
        Some(other) => other.to_string(),
    };
    let list = |key: &str| report.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let mut lines = vec![format!("{} version {}", word(report.get("script")), word(report.get("version")))];
    lines.push("reading".to_owned());
    let mut leaves = BTreeMap::new();
    flatten("", &report["reading"], &mut leaves);
    leaves.retain(|field, _| !field.starts_with("sources."));
    lines.extend(leaves.iter().map(|(field, value)| format!("  {field} = {}", word(Some(value)))));
    lines.push("changes".to_owned());
    lines.extend(list("changes").iter().map(|change| {
        let (field, before, after) = (change.get("field"), change.get("before"), change.get("after"));
        format!("  {}: {} -> {}", word(field), word(before), word(after))
    }));
    lines.extend(list("log").iter().map(|line| format!("log: {}", word(Some(line)))));
    let cost = &report["cost"];
    lines.push(format!(
        "cost: {} operations, {} requests, {} bytes, {} ms",
        cost["operations"], cost["requests"], cost["bytes"], cost["milliseconds"]
    ));
    lines.join("\n")
}
