//! `doctor` and `bundle`: what is wrong here, and what somebody needs who helps from afar.
//!
//! Both ask the node that runs; where none answers they read its data directory, and change nothing in it.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use reqwest::Method;
use serde_json::{Value, json};

use super::output::{self, Column, Format};
use super::remote::{self, Node};
use crate::cluster::Inspection;
use crate::config;
use crate::console::bundle::{self, Entry, Known, Wanted};
use crate::doctor::{Finding, stopped};
use crate::telemetry;

/// A node that does not answer so long is one that does not answer: a first start of Chromium alone may take 30 s.
const PATIENCE: Duration = Duration::from_secs(90);

const FINDINGS: &[Column] =
    &[("STATE", "state"), ("CHECK", "check"), ("ABOUT", "about"), ("WHAT", "what"), ("FIX", "fix")];

/// Prints what is found; an error where a human is needed.
pub(super) async fn run(data_dir: &Path, format: Format) -> anyhow::Result<()> {
    let found = match of_running(data_dir).await? {
        Some(found) => found,
        None => of_stopped(data_dir).await.1.iter().map(|finding| json!(finding)).collect(),
    };
    output::list(format, FINDINGS, &found)?;
    match found.iter().filter(|finding| finding["state"] == "problem").count() {
        0 => Ok(()),
        1 => bail!("1 finding needs a human"),
        count => bail!("{count} findings need a human"),
    }
}

/// What the node that runs says of itself; `None` where none answers.
async fn of_running(data_dir: &Path) -> anyhow::Result<Option<Vec<Value>>> {
    let Ok(node) = Node::reach(data_dir) else { return Ok(None) };
    let asked = tokio::time::timeout(PATIENCE, node.send(Method::GET, "control/doctor", None)).await;
    match asked {
        Ok(Ok(answer)) => Ok(remote::parse(&answer)?.as_array().cloned()),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

async fn of_stopped(data_dir: &Path) -> (Inspection, Vec<Finding>) {
    let path = data_dir.to_owned();
    let looked = tokio::task::spawn_blocking(move || Inspection::of(&path)).await;
    let inspection = looked.unwrap_or_else(|_| Inspection::of(data_dir));
    let found = stopped(data_dir, &inspection, console_of(data_dir)).await;
    (inspection, found)
}

fn console_of(data_dir: &Path) -> Option<SocketAddr> {
    config::remembered_console(data_dir).ok().flatten()
}

/// Writes a bundle to `file`, and lists on stderr what went in.
pub(super) async fn bundle(
    data_dir: &Path,
    file: &Path,
    with_devices: bool,
    force: bool,
) -> anyhow::Result<()> {
    if !force && fs::symlink_metadata(file).is_ok() {
        bail!("{} is there already: name another file, or say --force", file.display());
    }
    let unfinished = PathBuf::from(format!("{}.unfinished", file.display()));
    let made = make(data_dir, &unfinished, Wanted { with_devices, upstream: false }).await;
    let kept = made.and_then(|listed| keep(&unfinished, file, force).map(|octets| (listed, octets)));
    let (listed, octets) = kept.inspect_err(|_| drop(fs::remove_file(&unfinished)))?;
    for entry in &listed {
        output::say(&format!("{:>9} octets  {:<20}  {}", entry.octets, entry.name, entry.what));
    }
    Ok(output::line(&format!("{}: {octets} octets", file.display()))?)
}

/// Writes and checks.
async fn make(data_dir: &Path, path: &Path, wanted: Wanted) -> anyhow::Result<Vec<Entry>> {
    let write = || format!("write {}", path.display());
    // Its mode counts for a new file alone.
    drop(fs::remove_file(path));
    let mut out =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).with_context(write)?;
    match answering(data_dir).await {
        Some(node) => {
            let body = json!({ "with_devices": wanted.with_devices });
            let mut answer = node.stream("control/bundle", body.to_string()).await?;
            while let Some(piece) = answer.chunk().await.context("the node broke off: see its log")? {
                out.write_all(&piece).with_context(write)?;
            }
        }
        None => {
            output::warn("no node answers: the bundle holds what its data directory tells");
            out = of_directory(data_dir, wanted, out).await.with_context(write)?;
        }
    }
    out.sync_all().with_context(write)?;
    bundle::check(path).with_context(|| format!("check {}", path.display()))
}

async fn answering(data_dir: &Path) -> Option<Node> {
    let node = Node::reach(data_dir).ok()?;
    let asked = tokio::time::timeout(PATIENCE, node.send(Method::GET, "api/v1/status", None)).await;
    asked.ok()?.ok().map(|_| node)
}

async fn of_directory(data_dir: &Path, wanted: Wanted, out: fs::File) -> io::Result<fs::File> {
    let (inspection, doctor) = of_stopped(data_dir).await;
    let known = Known {
        wanted,
        node: inspection.name().map_or("", |(name, _)| name).to_owned(),
        doctor,
        view: inspection.view(),
        keys: inspection.keys(),
        status: None,
        metrics: None,
        log: telemetry::last_lines(),
    };
    let written = tokio::task::spawn_blocking(move || bundle::write(&known, &out).map(|()| out));
    written.await.map_err(io::Error::other)?
}

/// Gives the finished file its name, and its size.
fn keep(unfinished: &Path, file: &Path, force: bool) -> anyhow::Result<u64> {
    let octets = fs::metadata(unfinished).context("look at the bundle")?.len();
    let renamed = match force {
        true => fs::rename(unfinished, file),
        // Somebody may have made the file meanwhile.
        false => renameat2(AT_FDCWD, unfinished, AT_FDCWD, file, RenameFlags::RENAME_NOREPLACE)
            .map_err(io::Error::from),
    };
    renamed.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            anyhow!("{} is there already: name another file, or say --force", file.display())
        }
        _ => anyhow!(error).context(format!("write {}", file.display())),
    })?;
    Ok(octets)
}
