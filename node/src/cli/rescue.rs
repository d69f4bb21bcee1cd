//! When things went wrong: going on without a quorum, backups, and the start again that a recovery needs.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use reqwest::Method;
use serde_json::json;

use super::args::Restore;
use super::output;
use super::remote::{self, Node};
use super::secret::SecretText;
use crate::After;
use crate::cluster::{Cluster, Start};
use crate::config::NodeOptions;
use crate::telemetry::LogFormat;

/// A lone voter elects itself at once; its log may have to be applied first.
const RECOVERING: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// Runs a node; when it was told to recover, starts it again in this process, so that whoever supervises it sees none
/// of it.
pub(super) async fn node(options: NodeOptions, log_format: LogFormat) -> anyhow::Result<()> {
    let data_dir = options.data_dir.clone();
    if options.recover {
        let name = Cluster::recover(&data_dir).await?;
        tracing::warn!(node = %name, "recovered: the only member of its cluster now");
    }
    match crate::run(options).await? {
        After::End => Ok(()),
        After::Recover => {
            let program = std::env::current_exe().context("find this program")?;
            let format = log_format.to_possible_value();
            let format = format.as_ref().map_or("text", |value| value.get_name());
            let mut again = std::process::Command::new(program);
            again.arg("--data-dir").arg(data_dir).args(["--log-format", format, "node", "--recover"]);
            // What was said of the first start must not be said of this one.
            for option in ["INIT", "JOIN", "TOKEN"] {
                again.env_remove(format!("QUIRE_{option}"));
            }
            Err(again.exec()).context("start again to recover")
        }
    }
}

/// Makes the node on `data_dir` its cluster's only member, whether it runs or not.
pub(super) async fn recover(data_dir: &Path) -> anyhow::Result<()> {
    let Some(node) = running(data_dir).await else {
        return recovered(&Cluster::recover(data_dir).await?);
    };
    node.send(Method::POST, "control/recover", Some("{}".to_owned())).await?;
    let patience = tokio::time::Instant::now() + RECOVERING;
    loop {
        tokio::time::sleep(LOOK).await;
        let status = match running(data_dir).await {
            Some(node) => {
                remote::parse(&node.send(Method::GET, "api/v1/status", None).await.unwrap_or_default())
            }
            None => Ok(json!(null)),
        };
        if let Ok(status) = status
            && status["quorum"] == true
            && status["members"].as_array().is_some_and(|members| members.len() == 1)
        {
            return recovered(status["node"].as_str().unwrap_or_default());
        }
        if tokio::time::Instant::now() > patience {
            bail!("the node was told to recover and has no quorum yet: look at its log");
        }
    }
}

fn recovered(name: &str) -> anyhow::Result<()> {
    Ok(output::line(&format!(
        "{name} is now the only member of its cluster. Let others join it with new tokens and empty directories; the \
         nodes of before are refused."
    ))?)
}

/// The node that runs on `data_dir`, if one answers.
async fn running(data_dir: &Path) -> Option<Node> {
    let node = Node::reach(data_dir).ok()?;
    node.send(Method::GET, "api/v1/status", None).await.ok().map(|_| node)
}

/// Lets the running node write a backup, and keeps it whole or not at all.
pub(super) async fn backup(
    data_dir: &Path,
    file: &Path,
    passphrase: Option<SecretText>,
) -> anyhow::Result<()> {
    if passphrase.is_none() {
        output::warn(
            "without --passphrase the file holds the cluster's key: keep it as you keep a node's data directory",
        );
    }
    let node = Node::reach(data_dir)?;
    let body = json!({ "passphrase": passphrase.as_ref().map(SecretText::expose) });
    let mut answer = node.stream("control/backup", body.to_string()).await?;
    let unfinished = PathBuf::from(format!("{}.unfinished", file.display()));
    let mut out = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&unfinished)
        .with_context(|| format!("write {}", unfinished.display()))?;
    let mut written = 0;
    let copied: anyhow::Result<()> = async {
        while let Some(chunk) = answer.chunk().await.context("the node broke off: see its log")? {
            out.write_all(&chunk).with_context(|| format!("write {}", unfinished.display()))?;
            written += chunk.len();
        }
        out.sync_all().with_context(|| format!("write {}", unfinished.display()))
    }
    .await;
    if let Err(error) = copied {
        drop(fs::remove_file(&unfinished));
        return Err(error);
    }
    fs::rename(&unfinished, file).with_context(|| format!("write {}", file.display()))?;
    Ok(output::line(&format!("{}: {written} octets", file.display()))?)
}

/// Makes a first node from a backup.
pub(super) async fn restore(data_dir: PathBuf, restore: Restore) -> anyhow::Result<()> {
    let start = Start {
        data_dir: data_dir.clone(),
        name: restore.name,
        zone: restore.zone,
        listen: restore.listen,
        advertise: restore.advertise,
        witness: false,
    };
    let passphrase = restore.passphrase.as_ref().map(SecretText::expose);
    let name = Cluster::restore(start, &restore.file, passphrase).await?;
    Ok(output::line(&format!(
        "restored cluster {name}: start it with `quire node --data-dir {}`, let others join, enroll it anew",
        data_dir.display()
    ))?)
}
