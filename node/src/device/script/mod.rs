//! Profiles that run: Rhai scripts that know a device family better than the standard, each in a sandbox of its own.
//!
//! The door: [`Profile::parse`] (a source with its header), [`Scripts`] (those in force on this node), [`improve`]
//! (after a read, over the wire), [`rehearse`] (on a recording, without a node). The sandbox (`sandbox`, `host`) has
//! neither clock nor socket: it sees one [`Device`] and is stopped from outside.
//!
//! Architecture Invariant: a script holds a budget, never a socket. What it may ask goes to the one device it was
//! started for, can only read, and is counted; what it says is checked as if the device had said it. A script that
//! fails, in whatever way, leaves the standard reading as it was.

mod host;
mod live;
mod pages;
mod profile;
mod recording;
mod sandbox;
mod scripts;

#[cfg(test)]
mod escape_tests;
#[cfg(test)]
mod tests;

use quire_proto::reading::Via;

use super::Miss;
use crate::snmp::{Request, Response};

pub use live::{Web, improve};
pub use profile::{BadProfile, Profile, Subject};
pub use recording::{Ran, Recording, Rehearsal, rehearse};
pub use sandbox::{Budget, Cost, Failed, Limits};
pub use scripts::Scripts;

/// Runs a profile with nobody to stop it but its own limits.
#[cfg(test)]
pub(crate) fn run(
    profile: &Profile,
    reading: &quire_proto::reading::Reading,
    fresh: &super::answers::Answers,
    device: Box<dyn Device>,
) -> sandbox::Run {
    let stop = tokio_util::sync::CancellationToken::new();
    sandbox::run(profile, reading, fresh, device, Limits::default(), &stop)
}

/// The one device that a script may ask. Calls block; each ends by itself within the script's seconds.
pub(crate) trait Device: Send {
    /// One SNMP question.
    fn ask(&mut self, request: &Request) -> Result<Response, Miss>;

    /// The device's own page at `path`, at most `most` octets of it.
    fn fetch(&mut self, path: &WebPath, most: usize) -> Result<Page, WebMiss>;

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
