//! `certificates` and `rotate`: what nodes know each other and their secrets by, and changing it.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use super::args::RotateCommand;
use super::output::{self, Column, Format};
use super::remote::{Node, parse};

const NODES: &[Column] = &[
    ("NAME", "name"),
    ("UNTIL", "until"),
    ("DAYS LEFT", "days_left"),
    ("CA", "ca"),
    ("CLUSTER KEY", "cluster_key"),
    ("ALIVE", "alive"),
    ("STATE", "state"),
];

/// A change whose members all live takes some seconds; one that waits for a node may take as long as that is away.
const PATIENCE: Duration = Duration::from_secs(15);
const LOOK: Duration = Duration::from_millis(250);

async fn look(node: &Node) -> anyhow::Result<Value> {
    parse(&node.send(Method::GET, "control/certificates", None).await?)
}

pub(super) async fn list(node: &Node, format: Format) -> anyhow::Result<()> {
    let now = look(node).await?;
    let summary = format!("{}\n{}", line(&now["cluster_key"], "cluster key"), line(&now["ca"], "CA"));
    output::object(format, &now, &summary)?;
    if format == Format::Table {
        output::line("")?;
        output::list(format, NODES, now["nodes"].as_array().map_or(&[], Vec::as_slice))?;
    }
    Ok(())
}

fn line(of: &Value, what: &str) -> String {
    let name = match of["sha256"].as_str() {
        Some(pin) => pin.to_owned(),
        None => of["generation"].to_string(),
    };
    let since = of["since"]
        .as_str()
        .map_or_else(|| "since the cluster was made".to_owned(), |at| format!("since {at}"));
    let change = match of.get("changing") {
        None => String::new(),
        Some(change) => format!(
            "; another was asked for at {}: {}",
            change["asked_at"].as_str().unwrap_or_default(),
            waits(change)
        ),
    };
    format!("{what:<13}{name}, {since}{change}")
}

fn waits(change: &Value) -> String {
    let names: Vec<&str> =
        change["waits_for"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match names.as_slice() {
        [] => "on its way".to_owned(),
        names => format!("waits for {}", names.join(", ")),
    }
}

pub(super) async fn rotate(node: &Node, command: RotateCommand) -> anyhow::Result<()> {
    let (what, part) = match command {
        RotateCommand::Key => ("key", "cluster_key"),
        RotateCommand::Ca => ("ca", "ca"),
    };
    let before = look(node).await?;
    node.send(Method::POST, "control/rotate", Some(json!({ "what": what }).to_string())).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = look(node).await?;
        if is_done(&before[part], &now[part]) {
            return Ok(output::line(&done(&now[part]))?);
        }
        if tokio::time::Instant::now() > deadline {
            let change = &now[part]["changing"];
            let hint = "It goes on by itself. A node that is lost for good: `quire remove NAME`. `quire certificates` shows how far it is.";
            return Ok(output::line(&format!("asked for, and {}. {hint}", waits(change)))?);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A node that follows may not have heard yet of what was asked for through it.
fn is_done(before: &Value, now: &Value) -> bool {
    now.get("changing").is_none() && now["since"] != before["since"]
}

fn done(part: &Value) -> String {
    match part["sha256"].as_str() {
        Some(pin) => format!(
            "the CA is {pin}, and the one before counts no longer; join tokens that were not used are gone with it"
        ),
        None => format!(
            "cluster key {} is in force; make a backup, as it holds the key that opens it",
            part["generation"]
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_in_force_and_what_is_waited_for() {
        let key = json!({ "generation": 2, "since": "2026-11-22T10:00:00Z" });
        assert_eq!(line(&key, "cluster key"), "cluster key  2, since 2026-11-22T10:00:00Z");
        let change = json!({ "asked_at": "2026-11-22T11:00:00Z", "waits_for": ["n2", "n3"] });
        let ca = json!({ "sha256": "sha256:ab", "since": null, "changing": change });
        assert_eq!(
            line(&ca, "CA"),
            "CA           sha256:ab, since the cluster was made; another was asked for at 2026-11-22T11:00:00Z: waits for n2, n3"
        );
        assert_eq!(waits(&json!({ "waits_for": [] })), "on its way");
        let asked = json!({ "generation": 2, "since": key["since"], "changing": {} });
        let other = json!({ "generation": 3, "since": "2026-11-22T11:00:05Z" });
        assert!(!is_done(&key, &key), "nothing was heard of it yet");
        assert!(!is_done(&key, &asked) && is_done(&key, &other));
    }
}
