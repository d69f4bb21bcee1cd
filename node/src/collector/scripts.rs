//! Keeps a node's profiles as the cluster committed them, and reports how they go: the trial of a new version is
//! decided from what is reported here.

use std::time::Duration;

use quire_coordinator::{rows, script};
use quire_proto::store::command::Kind;
use quire_proto::store::{ReportScripts, ScriptRuns};
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::{Cluster, View};
use crate::device::script::{Profile, Scripts};

/// How often the tables are looked at, while something changes.
const LOOK: Duration = Duration::from_millis(500);

/// Between two reports while a version is on trial somewhere, and while none is: an entry of 100 octets each.
const REPORT_TRIAL: Duration = Duration::from_secs(2);
const REPORT: Duration = Duration::from_secs(60);

/// How long a commit may take before the report is offered again; sent twice it still counts once.
const PATIENCE: Duration = Duration::from_secs(5);

/// The task that follows the committed scripts.
pub(crate) struct ScriptKeeper {
    cluster: Cluster,
    scripts: Scripts,
    /// Name and hash of what this node runs of them.
    following: Vec<(String, bytes::Bytes)>,
    /// A report that is not known to be committed.
    unsent: Option<ReportScripts>,
    serial: u64,
    reported: std::time::Instant,
}

impl ScriptKeeper {
    /// For the profiles of this node.
    pub(crate) fn new(cluster: Cluster, scripts: Scripts) -> Self {
        ScriptKeeper {
            cluster,
            scripts,
            following: Vec::new(),
            unsent: None,
            serial: 0,
            reported: clock::steady(),
        }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut standing = self.cluster.watch();
        let mut seen = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                _ = look.tick() => {}
            }
            let applied = standing.borrow_and_update().applied;
            if seen.replace(applied) != Some(applied) {
                let tables = self.cluster.view();
                self.follow(&tables)?;
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                reported = self.report() => reported?,
            }
        }
    }

    /// Compiles what changed. A source that this version cannot compile, because a newer one put it, is left out.
    fn follow(&mut self, tables: &View) -> anyhow::Result<()> {
        let me = self.cluster.me().id;
        let mine: Vec<_> = rows::scripts(tables)?
            .into_iter()
            .filter_map(|row| Some((script::for_node(&row, me)?, row.name)))
            .collect();
        let now: Vec<_> = mine.iter().map(|(version, name)| (name.clone(), version.sha256.clone())).collect();
        if now == self.following {
            return Ok(());
        }
        self.following = now;
        let compiled = mine.iter().filter_map(|(row, name)| match Profile::parse(&row.source) {
            Ok(profile) => Some(profile),
            Err(error) => {
                let version = &row.version;
                tracing::warn!(profile = %name, version = %version, %error, "a script does not compile here");
                None
            }
        });
        self.scripts.put_over(compiled.collect());
        Ok(())
    }

    /// Tells how those that were put went here, now and then.
    async fn report(&mut self) -> anyhow::Result<()> {
        let every = if rows::meta(&self.cluster.view())?.trials > 0 { REPORT_TRIAL } else { REPORT };
        if clock::steady().duration_since(self.reported) < every {
            return Ok(());
        }
        self.reported = clock::steady();
        if self.unsent.is_none() {
            self.unsent = self.next_report();
        }
        let Some(report) = &self.unsent else { return Ok(()) };
        match self.cluster.propose(Kind::ReportScripts(report.clone()), PATIENCE).await {
            Ok(_) => self.unsent = None,
            // Without quorum this is the expected answer; the counts wait.
            Err(error) => tracing::debug!(%error, "how scripts went is not committed yet"),
        }
        Ok(())
    }

    fn next_report(&mut self) -> Option<ReportScripts> {
        let runs: Vec<ScriptRuns> = self
            .scripts
            .take_runs()
            .into_iter()
            .filter(|run| self.following.iter().any(|(_, sha256)| sha256.as_ref() == run.sha256))
            .map(|run| ScriptRuns {
                name: run.name,
                sha256: run.sha256.to_vec().into(),
                runs: run.runs,
                failures: run.failures,
            })
            .collect();
        if runs.is_empty() {
            return None;
        }
        // The clock makes it rise over restarts, the count within one.
        self.serial = clock::now().0.max(self.serial + 1);
        Some(ReportScripts { node: self.cluster.me().id.0, serial: self.serial, runs })
    }
}
