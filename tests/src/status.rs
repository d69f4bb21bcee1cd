//! What the programs say of themselves, as far as tests need it.
//!
//! API: [`Status`], and [`ask`] for those who look often.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a look waits for a node that says nothing.
const PATIENCE: Duration = Duration::from_millis(500);

/// `status --format json`, as far as tests need it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The cluster's name.
    pub cluster: String,
    /// Who answers.
    pub node: String,
    /// Its role.
    pub role: String,
    /// Who leads, where known.
    pub leader: Option<String>,
    /// Raft term.
    pub term: u64,
    /// Index of the last entry in the tables.
    pub applied: u64,
    /// Whether the answering node has quorum.
    pub quorum: bool,
    /// Every node.
    pub members: Vec<Member>,
    /// Units of the plan.
    pub units: u64,
    /// Units that nobody owns.
    pub unassigned: u64,
    /// Devices known.
    pub devices: u64,
    /// The link to the Web Admin.
    pub upstream: Upstream,
}

/// One row of `members`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its number in the cluster.
    pub id: u64,
    /// voter, learner or witness.
    pub role: String,
    /// Whether the others hear it.
    pub alive: bool,
    /// Units it owns.
    pub units: u64,
    /// Devices it reads.
    pub devices: u64,
}

/// `upstream` of the status.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Upstream {
    /// connected, connecting, disabled or refused.
    pub state: String,
    /// The node that holds the link.
    pub holder: Option<String>,
    /// Epoch of its claim.
    pub epoch: u64,
    /// Outbox number that the Web Admin has.
    pub acked: u64,
    /// Entries that wait.
    pub pending: u64,
}

/// A listing (`status`, `units`, `readings?since=…`) of the node that runs on `data`, straight from its control
/// socket: a process for each look would be most of the load.
///
/// # Errors
/// When nobody answers in half a second, or not with JSON.
pub fn ask(data: &Path, what: &str) -> Result<Vec<Value>> {
    let mut stream =
        UnixStream::connect(data.join("control.sock")).context("connect to the control socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0: the end of the stream is the end of the answer, without chunks.
    write!(
        stream,
        "GET /api/v1/{what} HTTP/1.0\r\nHost: localhost\r\nAccept: application/x-ndjson\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.split(' ').nth(1) == Some("200"), "{what}: {head}");
    body.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).with_context(|| format!("{what} is {line:?}")))
        .collect()
}
