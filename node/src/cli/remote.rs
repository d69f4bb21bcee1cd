//! Commands that speak to the node running on a data directory, through its control socket.

use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::args::{ApiTokenCommand, Command, SegmentsCommand, SettingsCommand, TokenCommand};
use super::output::{self, Column, Format};
use super::{devices, rotate};
use crate::console::SOCKET;

/// Runs a command against the node on `data_dir`.
pub(super) async fn run(data_dir: &Path, command: Command, format: Format) -> anyhow::Result<()> {
    let node = Node::reach(data_dir)?;
    match command {
        Command::Status => status(&node, format).await,
        Command::Members => node.list("members", MEMBERS, format).await,
        Command::Plan { explain: Some(address) } => explain(&node, address, format).await,
        Command::Plan { explain: None } => node.list("plan", PLAN, format).await,
        Command::Units => node.list("units", UNITS, format).await,
        Command::Reachability => node.list("reachability", REACHABILITY, format).await,
        Command::Segments { command: None } => node.list("segments", SEGMENTS, format).await,
        Command::Segments { command: Some(command) } => decide(&node, command).await,
        Command::Devices { all: false } => node.list("devices", DEVICES, format).await,
        Command::Devices { all: true } => node.list("devices?all=true", DEVICES, format).await,
        Command::Device { command } => devices::device(&node, command, format).await,
        Command::Events { device: None } => node.list("events", devices::EVENTS, format).await,
        Command::Events { device: Some(id) } => {
            node.list(&format!("events?device={id}"), devices::EVENTS, format).await
        }
        Command::Review { settle: None } => node.list("review", devices::REVIEW, format).await,
        Command::Review { settle: Some(case) } => devices::settle(&node, case).await,
        Command::Decisions => node.list("decisions", devices::DECISIONS, format).await,
        Command::Merge { device, other } => devices::merge(&node, device, other).await,
        Command::Split { device, evidence } => devices::split(&node, device, evidence).await,
        Command::Undo { decision } => devices::undo(&node, decision).await,
        Command::Readings { since } => readings(&node, since, format).await,
        Command::Alerts => node.list("alerts", ALERTS, format).await,
        Command::Audit => node.list("audit", AUDIT, format).await,
        Command::Token { command: TokenCommand::Create { ttl } } => {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            node.secret("control/token", &json!({ "ttl_ms": ttl_ms })).await
        }
        Command::Token { command: TokenCommand::List } => {
            node.list_control("control/token", TOKENS, format).await
        }
        Command::ApiToken { command: ApiTokenCommand::List } => {
            node.list_control("control/api-token", API_TOKENS, format).await
        }
        Command::Token { command: TokenCommand::Revoke { id } }
        | Command::ApiToken { command: ApiTokenCommand::Revoke { id } } => {
            node.change("control/token/revoke", json!({ "id": id })).await
        }
        Command::ApiToken { command: ApiTokenCommand::Create { role } } => {
            node.secret("control/api-token", &json!({ "role": role })).await
        }
        Command::Settings { command } => settings(&node, command).await,
        Command::Drain { node: name } => {
            node.change(&format!("control/members/{name}/drain"), json!({})).await
        }
        Command::Resume { node: name } => {
            node.change(&format!("control/members/{name}/resume"), json!({})).await
        }
        Command::Remove { node: name } => {
            node.change(&format!("control/members/{name}/remove"), json!({})).await
        }
        Command::Certificates => rotate::list(&node, format).await,
        Command::Rotate { command } => rotate::rotate(&node, command).await,
        Command::TransferLeader { node: name } => {
            node.change(&format!("control/members/{name}/lead"), json!({})).await
        }
        Command::Enroll(enroll) => {
            let body = json!({"upstream": enroll.upstream, "code": enroll.code.expose(), "pin": enroll.pin});
            let answer = node.send(Method::POST, "control/enroll", Some(body.to_string())).await?;
            let site = parse(&answer)?.get("site").and_then(Value::as_str).unwrap_or_default().to_owned();
            Ok(output::line(&format!("enrolled as site {site}"))?)
        }
        Command::Sweep { segment } => node.sweep(segment).await,
        Command::Read { device } => node.change("control/read", json!({ "device": device })).await,
        // `dispatch` keeps these for itself.
        Command::Discover(_)
        | Command::Node(_)
        | Command::Script { .. }
        | Command::Doctor
        | Command::Bundle { .. }
        | Command::Recover { .. }
        | Command::Backup { .. }
        | Command::Restore(_) => Ok(()),
    }
}

const MEMBERS: &[Column] = &[
    ("NAME", "name"),
    ("ID", "id"),
    ("ADDRESS", "address"),
    ("ZONE", "zone"),
    ("ROLE", "role"),
    ("ALIVE", "alive"),
    ("UNITS", "units"),
    ("DEVICES", "devices"),
    ("LAG", "lag"),
    ("FSYNC MS", "fsync_p99_ms"),
    ("RTT MS", "rtt_p99_ms"),
    ("VERSION", "version"),
    ("DRAINING", "draining"),
    ("TROUBLE", "trouble"),
];
const PLAN: &[Column] =
    &[("UNIT", "unit"), ("NODE", "node"), ("HOPS", "hops"), ("EPOCH", "epoch"), ("COST", "cost")];
const UNITS: &[Column] = &[
    ("UNIT", "unit"),
    ("NODE", "node"),
    ("HOPS", "hops"),
    ("STATE", "state"),
    ("COVERAGE", "coverage"),
    ("SECONDS LEFT", "seconds_left"),
    ("SWEPT", "swept_at"),
    ("RESPONDERS", "responders"),
    ("DEVICES", "devices"),
    ("EPOCH", "epoch"),
];
const SEGMENTS: &[Column] = &[
    ("SEGMENT", "segment"),
    ("ZONE", "zone"),
    ("STATE", "state"),
    ("HOPS", "hops"),
    ("NODE", "node"),
    ("VIA", "via"),
    ("LAST SEEN", "last_seen"),
    ("WHY", "why"),
];
const REACHABILITY: &[Column] = &[
    ("NODE", "node"),
    ("SEGMENT", "segment"),
    ("REACHABLE", "reachable"),
    ("HOPS", "hops"),
    ("MEASURED", "measured_at"),
];
pub(super) const DEVICES: &[Column] = &[
    ("ADDRESS", "address"),
    ("VENDOR", "vendor"),
    ("MODEL", "model"),
    ("SERIAL", "serial"),
    ("MAC", "mac"),
    ("STATUS", "status"),
    ("CONDITIONS", "conditions"),
    ("TOTAL", "counters.total"),
    ("MONO", "counters.mono"),
    ("COLOR", "counters.color"),
    ("NODE", "node"),
    ("ID", "id"),
];
const READINGS: &[Column] = &[
    ("AT", "at"),
    ("DEVICE", "device"),
    ("TOTAL", "counters.total"),
    ("MONO", "counters.mono"),
    ("COLOR", "counters.color"),
    ("STATUS", "status"),
    ("NODE", "node"),
    ("ID", "id"),
];
const TOKENS: &[Column] =
    &[("ID", "id"), ("STATE", "state"), ("EXPIRES", "expires_at"), ("USED BY", "used_by")];
const API_TOKENS: &[Column] = &[("ID", "id"), ("ROLE", "role")];
const ALERTS: &[Column] = &[
    ("STATE", "state"),
    ("NAME", "name"),
    ("WHAT", "what"),
    ("RAISED", "raised_at"),
    ("CLEARED", "cleared_at"),
    ("DEVICE", "device"),
    ("ID", "id"),
];
const AUDIT: &[Column] = &[("AT", "at"), ("BY", "by"), ("WHAT", "what")];

async fn status(node: &Node, format: Format) -> anyhow::Result<()> {
    let status = parse(&node.send(Method::GET, "api/v1/status", None).await?)?;
    let text = |path: &str| {
        path.split('.').try_fold(&status, |value, step| value.get(step)).map_or_else(
            || "-".to_owned(),
            |value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned),
        )
    };
    let sweeps = match text("sweeps.units").as_str() {
        "0" | "-" => "none due".to_owned(),
        units => format!(
            "{units} units, {} of {} addresses done, {} seconds left",
            text("sweeps.done"),
            text("sweeps.addresses"),
            text("sweeps.seconds_left"),
        ),
    };
    let disk = match text("timing.fsync_p99_ms").as_str() {
        "-" => "this disk is not measured yet".to_owned(),
        took => format!("synced writes here take {took} ms (99 of 100)"),
    };
    let timing = format!(
        "a heartbeat every {} ms, a silent host is given up after {} ms at most; {disk}",
        text("timing.heartbeat_ms"),
        text("timing.silence_ms"),
    );
    let summary = format!(
        "cluster   {} ({} devices, {} units, {} unassigned)\nnode      {} ({})\nleader    {} in term {}\nquorum    {}\ntiming    {timing}\nsweeps    {sweeps}\nupstream  {} ({}), held by {}, {} outbox entries acknowledged, {} pending",
        text("cluster"),
        text("devices"),
        text("units"),
        text("unassigned"),
        text("node"),
        text("role"),
        text("leader"),
        text("term"),
        text("quorum"),
        text("upstream.state"),
        text("upstream.mode"),
        text("upstream.holder"),
        text("upstream.acked"),
        text("upstream.pending"),
    );
    output::object(format, &status, &summary)?;
    if format == Format::Table {
        let members = status.get("members").and_then(Value::as_array).cloned().unwrap_or_default();
        output::line("")?;
        output::list(format, MEMBERS, &members)?;
    }
    Ok(())
}

async fn explain(node: &Node, address: std::net::IpAddr, format: Format) -> anyhow::Result<()> {
    let why = parse(&node.send(Method::GET, &format!("control/explain/{address}"), None).await?)?;
    let text = |key: &str| {
        why.get(key).map_or("-".to_owned(), |v| v.as_str().map_or_else(|| v.to_string(), ToOwned::to_owned))
    };
    let owner = match why.get("node").and_then(Value::as_str) {
        Some(node) => format!("node {node} has had"),
        None => "no node has had".to_owned(),
    };
    let summary = format!(
        "{} lies in unit {}, which {owner} since {} (epoch {})",
        text("address"),
        text("unit"),
        text("granted_at"),
        text("epoch")
    );
    output::object(format, &why, &summary)?;
    if format == Format::Table {
        let candidates = why.get("candidates").and_then(Value::as_array).cloned().unwrap_or_default();
        let columns: &[Column] = &[
            ("NODE", "node"),
            ("VERDICT", "verdict"),
            ("REACHABLE", "reachable"),
            ("HOPS", "hops"),
            ("UNITS", "units"),
        ];
        output::line("")?;
        output::list(format, columns, &candidates)?;
    }
    Ok(())
}

async fn readings(node: &Node, since: Option<String>, format: Format) -> anyhow::Result<()> {
    let path = match since {
        // `+` in an offset would arrive as a blank.
        Some(since) => format!("readings?since={}", since.replace('+', "%2B")),
        None => "readings".to_owned(),
    };
    node.list(&path, READINGS, format).await
}

async fn decide(node: &Node, command: SegmentsCommand) -> anyhow::Result<()> {
    let (decision, prefix, zone, confirm_large) = match command {
        SegmentsCommand::Accept { prefix, zone, confirm_large } => ("accept", prefix, zone, confirm_large),
        SegmentsCommand::Refuse { prefix, zone } => ("refuse", prefix, zone, false),
        SegmentsCommand::Reset { prefix, zone } => ("reset", prefix, zone, false),
        SegmentsCommand::Explore => return node.change("control/explore", json!({})).await,
    };
    let body = json!({
        "decision": decision, "segment": prefix, "zone": zone.unwrap_or_default(), "confirm_large": confirm_large,
    });
    node.change("control/segments", body).await
}

async fn settings(node: &Node, command: SettingsCommand) -> anyhow::Result<()> {
    let (path, file) = match &command {
        SettingsCommand::Show => {
            let text = node.send(Method::GET, "control/settings", None).await?;
            return Ok(output::line(text.trim_end())?);
        }
        SettingsCommand::Apply { file } => ("control/settings", file),
        SettingsCommand::Validate { file } => ("control/settings/validate", file),
    };
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    let answer = node
        .send(Method::POST, path, Some(text))
        .await
        .with_context(|| format!("{} changes nothing", file.display()))?;
    let answer = parse(&answer)?;
    let changes = answer.get("changes").and_then(Value::as_array).cloned().unwrap_or_default();
    if changes.is_empty() {
        return Ok(output::line("no change")?);
    }
    for change in changes {
        output::line(change.as_str().unwrap_or_default())?;
    }
    Ok(())
}

pub(super) fn parse(text: &str) -> anyhow::Result<Value> {
    serde_json::from_str(text).context("understand the node's answer")
}

/// How often a sweep is looked at that somebody waits for.
const SWEEP_LOOK: Duration = Duration::from_millis(500);

fn silent() -> anyhow::Error {
    anyhow!("the node does not answer: is it running?")
}

/// The node's own words.
fn refused(text: String) -> anyhow::Error {
    let why = parse(&text).ok().and_then(|v| v.get("error").and_then(Value::as_str).map(ToOwned::to_owned));
    anyhow!(why.unwrap_or(text))
}

/// The node behind a data directory.
pub(super) struct Node(Client);

impl Node {
    pub(super) fn reach(data_dir: &Path) -> anyhow::Result<Node> {
        let socket = data_dir.join(SOCKET);
        if !socket.exists() {
            bail!("no node runs on {}: start it with `quire node --data-dir {0}`", data_dir.display());
        }
        let client = Client::builder().unix_socket(socket).build().context("prepare to reach the node")?;
        Ok(Node(client))
    }

    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<String>,
    ) -> anyhow::Result<String> {
        let json = body.as_deref().is_some_and(|body| body.starts_with('{'));
        let mut request = self.0.request(method, format!("http://node/{path}"));
        if let Some(body) = body {
            request = request.body(body);
        }
        if json {
            request = request.header("content-type", "application/json");
        }
        let answer = request.send().await.map_err(|_| silent())?;
        let good = answer.status().is_success();
        let text = answer.text().await.context("read the node's answer")?;
        if good {
            return Ok(text);
        }
        Err(refused(text))
    }

    /// Posts `body` and gives the answer as it comes.
    pub(super) async fn stream(&self, path: &str, body: String) -> anyhow::Result<reqwest::Response> {
        let request = self.0.post(format!("http://node/{path}")).header("content-type", "application/json");
        let answer = request.body(body).send().await.map_err(|_| silent())?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let text = answer.text().await.context("read the node's answer")?;
        Err(refused(text))
    }

    /// Prints a listing while it comes in.
    async fn list(&self, what: &str, columns: &'static [Column], format: Format) -> anyhow::Result<()> {
        let request =
            self.0.get(format!("http://node/api/v1/{what}")).header("accept", "application/x-ndjson");
        let mut answer = request.send().await.map_err(|_| silent())?;
        if !answer.status().is_success() {
            return Err(refused(answer.text().await.context("read the node's answer")?));
        }
        let mut listing = output::Listing::new(format, columns)?;
        let mut pending = Vec::new();
        while let Some(piece) = answer.chunk().await.context("read the node's answer: it broke off")? {
            pending.extend_from_slice(&piece);
            let Some(end) = pending.iter().rposition(|octet| *octet == b'\n') else { continue };
            let rest = pending.split_off(end + 1);
            for line in std::mem::replace(&mut pending, rest).split(|octet| *octet == b'\n') {
                if !line.is_empty() {
                    listing.line(line)?;
                }
            }
        }
        Ok(listing.end()?)
    }

    /// Prints a listing that is small by nature, and the operator's alone.
    async fn list_control(
        &self,
        path: &str,
        columns: &'static [Column],
        format: Format,
    ) -> anyhow::Result<()> {
        let rows = parse(&self.send(Method::GET, path, None).await?)?;
        Ok(output::list(format, columns, rows.as_array().map_or(&[], Vec::as_slice))?)
    }

    /// Asks for a sweep; on a terminal it is followed to its end.
    async fn sweep(&self, segment: Option<String>) -> anyhow::Result<()> {
        self.change("control/sweep", json!({ "segment": segment })).await?;
        if !std::io::stderr().is_terminal() {
            return Ok(());
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} addresses, {msg}");
        let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        let path = match &segment {
            Some(segment) => format!("control/sweep?segment={segment}"),
            None => "control/sweep".to_owned(),
        };
        loop {
            let now = parse(&self.send(Method::GET, &path, None).await?)?;
            let number = |key: &str| now.get(key).and_then(Value::as_u64);
            if number("units") == Some(0) {
                bar.finish_and_clear();
                return Ok(output::line(&format!("swept {} units", number("swept").unwrap_or(0)))?);
            }
            bar.set_length(number("addresses").unwrap_or(0));
            bar.set_position(number("done").unwrap_or(0));
            let left = number("seconds_left").map_or(String::new(), |left| format!(", {left} s left"));
            bar.set_message(format!("{} units{left}", number("units").unwrap_or(0)));
            tokio::time::sleep(SWEEP_LOOK).await;
        }
    }

    async fn change(&self, path: &str, body: Value) -> anyhow::Result<()> {
        self.post(path, body.to_string()).await
    }

    /// Posts and prints what changed.
    pub(super) async fn post(&self, path: &str, body: String) -> anyhow::Result<()> {
        let answer = parse(&self.send(Method::POST, path, Some(body)).await?)?;
        Ok(output::line(answer.get("changes").and_then(Value::as_str).unwrap_or("done"))?)
    }

    /// Prints a token alone on the last line, so that scripts can take it.
    async fn secret(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let answer = parse(&self.send(Method::POST, path, Some(body.to_string())).await?)?;
        if std::io::stdout().is_terminal() {
            output::line("Keep this to yourself; it is not shown again:")?;
        }
        Ok(output::line(answer.get("token").and_then(Value::as_str).unwrap_or_default())?)
    }
}
