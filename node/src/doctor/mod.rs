//! What is wrong with a node and its machine, and what to do about it.
//!
//! The door: [`Patient::examine`] for a node that runs, [`stopped`] for a data directory alone. Both answer
//! [`Finding`]s: each says what was looked at, and where something is wrong, what a human should do.
//!
//! Architecture Invariant: looking changes nothing. No packet goes to a device, nothing is locked or written in the data
//! directory of a stopped node, and no finding holds a secret.

mod certificate;
mod cluster;
mod directory;
mod machine;
mod settings;
mod stopped;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::Serialize;

use crate::cluster::Cluster;
use crate::device::browser::Browser;

pub(crate) use certificate::SOON_MS;
pub(crate) use stopped::stopped;

/// How it stands with what was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    /// A human has to do something.
    Problem,
    /// Worth knowing; nothing has to be done.
    Note,
    /// As it should be.
    Ok,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// A word for it that stays the same.
    pub(crate) check: &'static str,
    /// The node, file or segment, where there are several.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) about: String,
    pub(crate) state: State,
    /// What was found.
    pub(crate) what: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) fix: String,
}

impl Finding {
    fn of(check: &'static str, state: State, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding { check, about: String::new(), state, what: what.into(), fix: fix.into() }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::of(check, State::Ok, what, "")
    }

    fn note(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding::of(check, State::Note, what, fix)
    }

    fn problem(check: &'static str, what: impl Into<String>, fix: impl Into<String>) -> Finding {
        Finding::of(check, State::Problem, what, fix)
    }

    fn about(mut self, about: impl Into<String>) -> Finding {
        self.about = about.into();
        self
    }
}

/// A node that runs, in its own process: what it may do there is what counts.
pub(crate) struct Patient {
    /// Its part of the cluster.
    pub(crate) cluster: Cluster,
    /// Its browser.
    pub(crate) browser: Browser,
    /// Its data directory.
    pub(crate) data_dir: PathBuf,
    /// Where its console listens.
    pub(crate) console: SocketAddr,
}

impl Patient {
    /// Looks at everything; worst first. Takes as long as the slowest peer, or a start of Chromium.
    pub(crate) async fn examine(&self) -> Vec<Finding> {
        let settings = self.cluster.settings();
        let known = settings.as_ref().ok().cloned().flatten();
        let (members, chromium) =
            tokio::join!(cluster::members(&self.cluster), machine::chromium(&self.browser, known.as_deref()));
        let mut found = members;
        found.extend(chromium);
        found.extend(cluster::standing(&self.cluster));
        found.extend(certificate::of_node(&self.cluster));
        found.extend(settings::judge(&self.cluster, &settings));
        found.extend(machine::console(self.console));
        found.extend(machine::log());
        let (place, rate, local) = (
            self.data_dir.clone(),
            known.as_ref().map(|settings| settings.discovery.rate),
            known.as_ref().is_none_or(|settings| settings.discovery.local),
        );
        let rest = tokio::task::spawn_blocking(move || {
            let mut found = directory::look(&place);
            found.extend(machine::look(rate, local));
            found
        });
        found.extend(rest.await.unwrap_or_default());
        in_order(found)
    }
}

/// Worst first, otherwise as they came.
fn in_order(mut found: Vec<Finding>) -> Vec<Finding> {
    found.sort_by_key(|finding| finding.state);
    found
}
