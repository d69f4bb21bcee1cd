//! Who is who: the review list and what operators decide about it, values that they type, and what happened to devices.

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::args::{DeviceCommand, Usage};
use super::output::{self, Column, Format};
use super::remote::{Node, parse};

pub(super) const REVIEW: &[Column] =
    &[("ID", "id"), ("WHAT", "what"), ("DEVICES", "devices"), ("SINCE", "since"), ("WHY", "why")];
pub(super) const DECISIONS: &[Column] = &[("ID", "id"), ("AT", "at"), ("BY", "by"), ("WHAT", "what")];
pub(super) const EVENTS: &[Column] = &[
    ("AT", "at"),
    ("DEVICE", "device"),
    ("KIND", "kind"),
    ("FIELD", "field"),
    ("WHAT", "what"),
    ("NODE", "node"),
];

pub(super) async fn merge(node: &Node, into: String, from: String) -> anyhow::Result<()> {
    node.post("control/identity/merge", json!({ "into": into, "from": from }).to_string()).await
}

pub(super) async fn split(node: &Node, device: String, evidence: Vec<String>) -> anyhow::Result<()> {
    node.post("control/identity/split", json!({ "device": device, "evidence": evidence }).to_string()).await
}

pub(super) async fn settle(node: &Node, case: String) -> anyhow::Result<()> {
    node.post("control/identity/settle", json!({ "case": case }).to_string()).await
}

pub(super) async fn undo(node: &Node, decision: u64) -> anyhow::Result<()> {
    node.post("control/identity/undo", json!({ "decision": decision }).to_string()).await
}

pub(super) async fn device(node: &Node, command: DeviceCommand, format: Format) -> anyhow::Result<()> {
    match command {
        DeviceCommand::Set { device, values } => {
            let values = values.iter().map(|value| pair(value)).collect::<anyhow::Result<Map<_, _>>>()?;
            node.post(&format!("control/device/{device}"), Value::Object(values).to_string()).await
        }
        DeviceCommand::Show { device } => {
            let shown = parse(&node.send(Method::GET, &format!("api/v1/device/{device}"), None).await?)?;
            let text = serde_json::to_string_pretty(&shown).context("print a device")?;
            Ok(output::object(format, &shown, &text)?)
        }
    }
}

/// `location=Room 7`; an empty value clears.
fn pair(text: &str) -> anyhow::Result<(String, Value)> {
    match text.split_once('=') {
        Some((field, value)) => Ok((field.trim().to_owned(), json!(value.trim()))),
        None => Err(Usage(format!("`{text}` is no value: write location=\"Room 7\"")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_pairs_and_may_be_empty() {
        assert_eq!(pair("location=Room 7 = left").unwrap(), ("location".to_owned(), json!("Room 7 = left")));
        assert_eq!(pair("asset=").unwrap().1, json!(""));
        assert!(pair("location").unwrap_err().is::<Usage>());
    }
}
