//! Profiles that run: Rhai scripts that know a device family better than the standard, each in a sandbox of its own.
//!
//! The door: [`Profile::parse`] (a source with its header), [`Scripts`] (those in force on this node), [`improve`]
//! (after a read, over the wire), [`rehearse`] (on a recording, without a node). The sandbox (`sandbox`, `host`) has
//! neither clock nor socket: it sees one [`Device`] and is stopped from outside.
//!
//! Architecture Invariant: a script holds a budget, never a socket. What it may ask goes to the one device it was
//! started for, can only read, and is counted; what it says is checked as if the device had said it. A script that
//! fails, in whatever way, leaves the standard reading as it was.

pub(super) mod fuzz;
mod host;
mod live;
mod pages;
mod profile;
mod proof;
mod recording;
mod sandbox;
mod scripts;
mod stated;

#[cfg(test)]
mod escape_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use quire_proto::oid::Oid;
use quire_proto::reading::Via;

use super::answers::Answers;
use super::{Finished, Miss};
use crate::snmp::{Request, Response};

pub use live::improve;
pub use profile::{BadProfile, Profile, Subject};
pub use proof::{Refused, accept};
pub use recording::{Ran, Recording, Rehearsal, rehearse};
pub use sandbox::{Budget, Cost, Failed, Limits};
pub use scripts::{Profiles, Runs, Scripts};

/// Runs a profile with nobody to stop it but its own limits.
#[cfg(test)]
pub(crate) fn run(
    profile: &Profile,
    reading: &quire_proto::reading::Reading,
    known: Known,
    device: Box<dyn Device>,
) -> sandbox::Run {
    let stop = tokio_util::sync::CancellationToken::new();
    sandbox::run(profile, reading, known, device, Limits::default(), &stop)
}

/// What a read leaves for the profiles that go on from it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// What was heard just now.
    pub(crate) fresh: Answers,
    /// What is known not to be there.
    pub(crate) absent: BTreeSet<Oid>,
}

impl Known {
    pub(crate) fn of(finished: &Finished) -> Known {
        Known { fresh: finished.fresh.answers(), absent: finished.plan.absent().clone() }
    }
}

/// The one device that a script may ask. Calls block; each ends by itself within the script's seconds.
pub(crate) trait Device: Send {
    /// One SNMP question.
    fn ask(&mut self, request: &Request) -> Result<Response, Miss>;

    /// The device's own page at `path`, at most `most` octets of it.
    fn fetch(&mut self, path: &WebPath, most: usize) -> Result<Page, WebMiss>;

    /// The same page as a browser shows it once its own scripts have run.
    fn render(&mut self, path: &WebPath, most: usize) -> Result<Rendered, WebMiss> {
        let _ = (path, most);
        Err(WebMiss::Browser("there is no browser here".to_owned()))
    }

    /// The SNMP version it speaks: SNMPv1 has no GETBULK.
    fn via(&self) -> Via;
}

/// A page of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Page {
    /// Where it was in the end, for `sources`.
    pub(crate) url: String,
    /// HTTP status.
    pub(crate) status: u16,
    /// Its text.
    pub(crate) body: String,
    /// With or without encryption.
    pub(crate) via: Via,
}

/// A page that was shown: its body is the document that the page's scripts left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rendered {
    pub(crate) page: Page,
    /// What a reader would see of it.
    pub(crate) text: String,
}

/// Why there is no page.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WebMiss {
    /// No port answered.
    #[error("no answer over HTTP")]
    Silent,
    /// It is longer than what is left of the budget.
    #[error("the page is too long")]
    TooLong,
    /// It sent somewhere else than to itself.
    #[error("the device redirects to another host")]
    Elsewhere,
    /// The page is there, the browser is not, or not for this page.
    #[error("the page is not shown: {0}")]
    Browser(String),
}

/// A path on the device, with its query: nothing that could name another host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WebPath(String);

impl WebPath {
    /// Longest path; the longest in use by any known printer are about 200.
    const LONGEST: usize = 512;

    /// `/path?query` in plain ASCII. Everything else is refused: schemes, `//host`, `..`, backslashes, `@`, controls.
    pub(crate) fn new(text: &str) -> Option<WebPath> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-~!$&'()*+,;=:?%[]".contains(&b);
        let path = text.split('?').next().unwrap_or_default();
        let decoded = path.to_ascii_lowercase().replace("%2e", ".").replace("%2f", "/").replace("%5c", "\\");
        let good = text.starts_with('/')
            && text.len() <= Self::LONGEST
            && text.bytes().all(plain)
            && !decoded.contains("//")
            && !decoded.contains('\\')
            && !decoded.split('/').any(|step| step == "..");
        good.then(|| WebPath(text.to_owned()))
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}
