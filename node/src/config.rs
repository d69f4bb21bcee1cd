//! How a node is started: flags, the optional file below them, and what the data directory remembers.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

/// Everything that `quire node` was told.
pub(crate) struct NodeOptions {
    /// Where the node keeps everything.
    pub data_dir: PathBuf,
    /// Its name; `None` keeps what it was, at first the host's name.
    pub name: Option<String>,
    /// Its zone; `None` keeps what it was, at first `default`.
    pub zone: Option<String>,
    /// Where other nodes reach it.
    pub listen: Option<SocketAddr>,
    /// What it tells others, where that differs.
    pub advertise: Option<String>,
    /// Console and API.
    pub console: Option<SocketAddr>,
    /// Make a cluster of this name.
    pub init: Option<String>,
    /// Join the cluster of this member with this token.
    pub join: Option<(String, Zeroizing<String>)>,
    /// Vote and keep the log, collect nothing.
    pub witness: bool,
    /// First make this node the only member of its cluster.
    pub recover: bool,
}

/// The file of `--config`, and the one in the data directory that remembers the console.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) zone: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) listen: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) advertise: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) console: Option<SocketAddr>,
}

/// Where the console listens unless told otherwise: this machine only.
pub(crate) const DEFAULT_CONSOLE: &str = "127.0.0.1:7480";

/// What later starts find in the data directory.
const REMEMBERED: &str = "console.toml";

impl ConfigFile {
    /// Reads and checks a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<ConfigFile> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("understand {}", path.display()))
    }
}

/// The console's address of the last start, as the data directory remembers it.
pub(crate) fn remembered_console(data_dir: &Path) -> anyhow::Result<Option<SocketAddr>> {
    let path = data_dir.join(REMEMBERED);
    if path.exists() { Ok(ConfigFile::read(&path)?.console) } else { Ok(None) }
}

/// The console's address: as told, else as last time, else the default; remembered for the next start.
pub(crate) fn console(data_dir: &Path, told: Option<SocketAddr>) -> anyhow::Result<SocketAddr> {
    let path = data_dir.join(REMEMBERED);
    let before = remembered_console(data_dir)?;
    let address = match told.or(before) {
        Some(address) => address,
        None => DEFAULT_CONSOLE.parse().context("understand the default console")?,
    };
    if before != Some(address) {
        let file = ConfigFile { console: Some(address), ..ConfigFile::default() };
        let text = toml::to_string(&file).context("write the console's address")?;
        std::fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(address)
}
