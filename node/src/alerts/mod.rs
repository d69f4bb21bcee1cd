//! Alerts, on the node that leads: rules are judged as readings come in, what is raised and cleared is proposed, and
//! webhooks and mailboxes are told.
//!
//! Decided elsewhere: what holds and who is owed what by `quire_coordinator::alert`, what counts by `apply`. This room
//! follows the change feed, sends, and commits whom it has told. The Web Admin is told by the outbox, not from here.
//!
//! Architecture Invariant: without a claim nothing is judged and nobody is told; no secret of an address leaves this
//! room but to its host.

mod mail;
mod notifier;
mod targets;
mod webhook;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use quire_coordinator::alert::{Judge, Scope, Watch};
use quire_coordinator::rows;
use quire_coordinator::settings::AlertRule;
use quire_coordinator::tables::{Read as _, Table, after};
use quire_proto::id::Epoch;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Alert, AlertChange};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::cluster::{Cluster, Seen, SettingsError, View};

pub(crate) use notifier::Notifier;
use targets::Targets;

/// How often it looks although nothing was applied: for what must hold for a while, and for what ages.
const LOOK: Duration = Duration::from_secs(1);
/// Between two looks, so that a busy log is judged in batches.
const PAUSE: Duration = Duration::from_millis(100);
/// Devices looked at together, some 10 ms of work: a million after a change of leader or settings take minutes, while
/// those that are read meanwhile are judged at once.
const PAGE: usize = 256;
/// Changes in one command: at 500 octets each, 100 KB.
const CHANGES: usize = 200;
/// How long one commit may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The task that judges; idle while another node leads.
pub(crate) struct Alerter {
    cluster: Cluster,
    held: watch::Receiver<Option<Epoch>>,
}

impl Alerter {
    /// Judges while `held` names a claim.
    pub(crate) fn new(cluster: Cluster, held: watch::Receiver<Option<Epoch>>) -> Self {
        Alerter { cluster, held }
    }

    /// Works until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while_held(self.held, &stop, |epoch| Looker::new(self.cluster.clone(), epoch).run()).await
    }
}

/// Does `work` under each claim that this node holds, until told to stop. A lost claim drops what was being done: the
/// next leader does it anew.
async fn while_held<F: Future<Output = anyhow::Result<()>>>(
    mut held: watch::Receiver<Option<Epoch>>,
    stop: &CancellationToken,
    work: impl Fn(Epoch) -> F,
) -> anyhow::Result<()> {
    loop {
        let claim = *held.borrow_and_update();
        let leading = async {
            match claim {
                Some(epoch) => work(epoch).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = held.changed() => changed.context("follow the claim")?,
            ended = leading => ended?,
        }
    }
}

/// How far a look at everything is.
enum Pass {
    Devices(Vec<u8>),
    /// For those whose subject or rule is gone.
    Open(Vec<u8>),
}

/// What judging needs under one claim. All of it is in memory: another leader looks at everything anew.
struct Looker {
    cluster: Cluster,
    claim: Epoch,
    settings_index: u64,
    /// `None`: this version cannot read them, so nothing is judged.
    rules: Option<Vec<AlertRule>>,
    targets: Targets,
    watch: Watch,
    pass: Option<Pass>,
    /// The device behind which the search for aged ones goes on, and when it went on last.
    aged: (Vec<u8>, std::time::Instant),
    full: bool,
}

impl Looker {
    fn new(cluster: Cluster, claim: Epoch) -> Self {
        Looker {
            cluster,
            claim,
            settings_index: 0,
            rules: Some(Vec::new()),
            targets: Targets::default(),
            watch: Watch::default(),
            pass: None,
            aged: (Vec::new(), clock::steady()),
            full: false,
        }
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut changes = self.cluster.changes();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let seen = changes.take();
            let found = self.look(&seen)?;
            if !self.propose(found).await {
                self.start_over();
            }
            tokio::time::sleep(PAUSE).await;
            if self.pass.is_none() {
                tokio::select! {
                    () = changes.changed() => {}
                    _ = tick.tick() => {}
                }
            }
        }
    }

    fn start_over(&mut self) {
        self.pass = Some(Pass::Devices(Vec::new()));
    }

    /// What was touched, what is due, and a page of everything where that is wanted.
    fn look(&mut self, seen: &Seen) -> anyhow::Result<Vec<AlertChange>> {
        let tables = self.cluster.view();
        let meta = rows::meta(&tables)?;
        if meta.settings_index != self.settings_index {
            self.follow_settings(meta.settings_index);
        }
        let rules = match self.rules.clone() {
            Some(rules) if !rules.is_empty() || meta.alerts_open > 0 => rules,
            Some(_) | None => {
                self.pass = None;
                return Ok(Vec::new());
            }
        };
        if seen.everything {
            self.start_over();
        }
        let now = clock::now();
        let judge = Judge::new(&rules, &tables)?;
        let mut subjects: BTreeSet<String> = BTreeSet::from(["cluster".to_owned()]);
        for (table, key) in &seen.rows {
            let name = String::from_utf8_lossy(key);
            match table {
                Table::Devices => subjects.insert(format!("device/{name}")),
                Table::Units => subjects.insert(format!("unit/{name}")),
                _ => false,
            };
        }
        subjects.extend(self.watch.ripe(now));
        self.pass = match self.pass.take() {
            None => None,
            Some(Pass::Devices(from)) => {
                if from.is_empty() && self.looks_at(Scope::Unit) {
                    subjects
                        .extend(rows::units(&tables)?.into_iter().map(|unit| format!("unit/{}", unit.unit)));
                }
                match self.devices(&tables, &from, &mut subjects)? {
                    Some(next) => Some(Pass::Devices(next)),
                    None => Some(Pass::Open(Vec::new())),
                }
            }
            Some(Pass::Open(from)) => {
                let (open, next) = judge.open_subjects(&from, PAGE)?;
                subjects.extend(open);
                next.map(Pass::Open)
            }
        };
        if rules.iter().any(|rule| rule.condition.ages())
            && clock::steady().duration_since(self.aged.1) >= LOOK
        {
            let next = self.devices(&tables, &self.aged.0, &mut subjects)?;
            self.aged = (next.unwrap_or_default(), clock::steady());
        }
        let mut changes = Vec::new();
        for subject in whole(subjects) {
            for verdict in judge.subject(&subject)? {
                changes.extend(self.watch.settle(verdict, now));
            }
        }
        self.watch.forget_ripe(now);
        for change in &mut changes {
            change.targets = self.targets.of_rule(&change.rule).to_vec();
        }
        Ok(changes)
    }

    fn looks_at(&self, scope: Scope) -> bool {
        self.rules.iter().flat_map(|rules| rules.iter()).any(|rule| rule.condition.scope() == scope)
    }

    /// The next devices, where rules look at any; answers where to go on.
    fn devices(
        &self,
        tables: &View,
        from: &[u8],
        into: &mut BTreeSet<String>,
    ) -> anyhow::Result<Option<Vec<u8>>> {
        if !self.looks_at(Scope::Device) && !self.looks_at(Scope::Supply) {
            return Ok(None);
        }
        let page = tables.range(Table::Devices, from, PAGE)?;
        let next = page.last().filter(|_| page.len() == PAGE).map(|(key, _)| after(key));
        into.extend(page.iter().map(|(key, _)| format!("device/{}", String::from_utf8_lossy(key))));
        Ok(next)
    }

    /// Takes the rules in force over, and looks at everything by them.
    fn follow_settings(&mut self, index: u64) {
        let settings = self.cluster.settings();
        if settings.as_ref().is_err_and(SettingsError::passes) {
            return;
        }
        self.settings_index = index;
        self.watch = Watch::default();
        self.rules = match settings {
            Ok(settings) => Some(settings.map(|settings| settings.alerts.clone()).unwrap_or_default()),
            Err(error) => {
                tracing::error!(%error, "the settings cannot be read: no alert is raised or cleared");
                None
            }
        };
        self.targets = Targets::of(self.rules.as_deref().unwrap_or_default());
        self.start_over();
    }

    /// True when all of it was committed; what was not is judged again.
    async fn propose(&mut self, changes: Vec<AlertChange>) -> bool {
        for some in changes.chunks(CHANGES) {
            let alert =
                Alert { claim: self.claim.0, settings_index: self.settings_index, changes: some.to_vec() };
            match self.cluster.propose_here(Kind::Alert(alert), PATIENCE).await {
                Ok(outcome) => match outcome.result {
                    Some(Answer::Changes(why)) if !std::mem::replace(&mut self.full, true) => {
                        tracing::warn!(%why, "alerts are left out: narrow the conditions of [[alert]]");
                    }
                    _ => {}
                },
                Err(error) => {
                    tracing::debug!(%error, "alerts not committed yet");
                    return false;
                }
            }
        }
        true
    }
}

/// Each device once, whichever of its supplies were named.
fn whole(subjects: BTreeSet<String>) -> BTreeSet<String> {
    let device = |name: String| match name.split_once("/supply/") {
        Some((device, _)) if device.starts_with("device/") => device.to_owned(),
        _ => name,
    };
    let nodes = |name: String| if name.starts_with("node/") { "cluster".to_owned() } else { name };
    subjects.into_iter().map(device).map(nodes).collect()
}

#[cfg(test)]
mod tests;
