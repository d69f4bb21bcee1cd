//! Commands that speak to the node running on a data directory, through its control socket.

use std::io::IsTerminal as _;
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use reqwest::{Client, Method};
use serde_json::{Value, json};

use super::args::{ApiTokenCommand, Command, SettingsCommand, TokenCommand};
use super::output::{self, Column, Format};
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
        Command::Devices => node.list("devices", DEVICES, format).await,
        Command::Readings { since } => readings(&node, since, format).await,
        Command::Audit => node.list("audit", AUDIT, format).await,
        Command::Token { command: TokenCommand::Create { ttl } } => {
            let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            node.secret("control/token", &json!({ "ttl_ms": ttl_ms })).await
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
        Command::TransferLeader { node: name } => {
            node.change(&format!("control/members/{name}/lead"), json!({})).await
        }
        Command::Enroll(enroll) => {
            let body = json!({"upstream": enroll.upstream, "code": enroll.code.expose(), "pin": enroll.pin});
            let answer = node.send(Method::POST, "control/enroll", Some(body.to_string())).await?;
            let site = parse(&answer)?.get("site").and_then(Value::as_str).unwrap_or_default().to_owned();
            Ok(output::line(&format!("enrolled as site {site}"))?)
        }
        Command::Sweep { segment } => node.change("control/sweep", json!({ "segment": segment })).await,
        Command::Read { device } => node.change("control/read", json!({ "device": device })).await,
        // `dispatch` keeps these for itself.
        Command::Discover(_) | Command::Node(_) | Command::Script { .. } => Ok(()),
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
    ("VERSION", "version"),
];
const PLAN: &[Column] =
    &[("UNIT", "unit"), ("NODE", "node"), ("HOPS", "hops"), ("EPOCH", "epoch"), ("COST", "cost")];
const UNITS: &[Column] = &[
    ("UNIT", "unit"),
    ("NODE", "node"),
    ("HOPS", "hops"),
    ("STATE", "state"),
    ("COVERAGE", "coverage"),
    ("SWEPT", "swept_at"),
    ("RESPONDERS", "responders"),
    ("DEVICES", "devices"),
    ("EPOCH", "epoch"),
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
const AUDIT: &[Column] = &[("AT", "at"), ("BY", "by"), ("WHAT", "what")];

async fn status(node: &Node, format: Format) -> anyhow::Result<()> {
    let status = parse(&node.send(Method::GET, "api/v1/status", None).await?)?;
    let text = |path: &str| {
        path.split('.').try_fold(&status, |value, step| value.get(step)).map_or_else(
            || "-".to_owned(),
            |value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned),
        )
    };
    let summary = format!(
        "cluster   {} ({} devices, {} units, {} unassigned)\nnode      {} ({})\nleader    {} in term {}\nquorum    {}\nupstream  {} ({}), held by {}, {} readings acknowledged, {} pending",
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
    let summary = format!(
        "{} lies in unit {}, which node {} has had since {} (epoch {})",
        text("address"),
        text("unit"),
        text("node"),
        text("granted_at"),
        text("epoch")
    );
    output::object(format, &why, &summary)?;
    if format == Format::Table {
        let candidates = why.get("candidates").and_then(Value::as_array).cloned().unwrap_or_default();
        let columns: &[Column] = &[
            ("NODE", "node"),
            ("ALIVE", "alive"),
            ("REACHABLE", "reachable"),
            ("HOPS", "hops"),
            ("UNITS", "units"),
            ("DRAINING", "draining"),
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
        let answer = request.send().await.map_err(|_| anyhow!("the node does not answer: is it running?"))?;
        let good = answer.status().is_success();
        let text = answer.text().await.context("read the node's answer")?;
        if good {
            return Ok(text);
        }
        let why =
            parse(&text).ok().and_then(|v| v.get("error").and_then(Value::as_str).map(ToOwned::to_owned));
        Err(anyhow!(why.unwrap_or(text)))
    }

    async fn list(&self, what: &str, columns: &[Column], format: Format) -> anyhow::Result<()> {
        let rows = parse(&self.send(Method::GET, &format!("api/v1/{what}"), None).await?)?;
        Ok(output::list(format, columns, rows.as_array().map(Vec::as_slice).unwrap_or_default())?)
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
