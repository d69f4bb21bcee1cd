//! Why a node does not start, in words for whoever starts it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::token::BadToken;

/// Why a node does not start; each says where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The data directory cannot be used at all.
    #[error("data directory {}: {reason}", path.display())]
    Directory {
        /// Which.
        path: PathBuf,
        /// The system's words.
        reason: io::Error,
    },
    /// `--init` or `--join` where a node lives already.
    #[error("data directory {} holds a node already: start it without --init or --join, or name an empty directory", path.display())]
    Occupied {
        /// Which.
        path: PathBuf,
    },
    /// A later start where no node lives.
    #[error("data directory {} holds no node: give --init NAME for the first node, --join ADDR:PORT --token TOKEN for any other", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// Another process runs on it.
    #[error("data directory {} is in use by another process: stop it first", path.display())]
    InUse {
        /// Which.
        path: PathBuf,
    },
    /// A file that is not as it was written.
    #[error("{} is damaged: {reason}. This node will not run on it: remove it from the cluster, and join anew with an empty directory", file.display())]
    Damaged {
        /// Which.
        file: PathBuf,
        /// How one sees it.
        reason: String,
    },
    /// Parts of two nodes or clusters in one directory.
    #[error("{} is not of the node that node.json names (it is of {found}): put back the files that belong together", file.display())]
    Foreign {
        /// Which.
        file: PathBuf,
        /// Whose it is.
        found: String,
    },
    /// Other members know better who this node is; says how.
    #[error("{0}")]
    Fenced(String),
    /// A backup that nothing can be restored from.
    #[error("{}: {reason}", file.display())]
    Backup {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        reason: io::Error,
    },
    /// An address or name that cannot work.
    #[error("{0}")]
    Address(String),
    /// The port cannot be listened on.
    #[error("listen on {address}: {reason}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's words.
        reason: io::Error,
    },
    /// The token's text.
    #[error(transparent)]
    Token(#[from] BadToken),
    /// The cluster said no.
    #[error("the cluster refused the join: {0}")]
    Refused(String),
    /// The address answers, but is not of the cluster that made the token.
    #[error(
        "{seed} is not a node of the cluster that made this token, or its CA was changed since: check --join, and make a new token with `quire token create`"
    )]
    WrongAuthority {
        /// The address asked.
        seed: String,
    },
    /// Nobody answers there.
    #[error("no member answers at {seed}: {reason}")]
    NoMember {
        /// The address asked.
        seed: String,
        /// What was tried last.
        reason: String,
    },
    /// Something of this machine failed.
    #[error("{what}: {reason}")]
    Start {
        /// Which step.
        what: &'static str,
        /// In its own words.
        reason: String,
    },
}

impl OpenError {
    /// What failed while doing `what`.
    pub(super) fn during<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> OpenError {
        move |reason| OpenError::Start { what, reason: reason.to_string() }
    }
}
