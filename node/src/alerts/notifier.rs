//! Tells webhooks and mailboxes what they are owed, and commits what they have taken.
//!
//! At least once: what was taken and not yet committed when the leader dies is told again, under the same id. Bounds: one
//! request at a time to a target, [`BATCH`] before the next commit, [`TOGETHER`] targets; a target that fails waits, twice
//! as long each time, what it refused stands behind the rest, and what it did not take within [`GIVE_UP_MS`] is given up
//! and listed as failed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use quire_coordinator::alert::{notification_id, owed};
use quire_coordinator::backoff::Backoff;
use quire_coordinator::settings::{Mail, Notify, Secret, Settings};
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_proto::id::{Epoch, Millis};
use quire_proto::store::command::Kind;
use quire_proto::store::{AlertDelivery, AlertRow, AlertTold, AlertsTold};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::mail::{self, Letter};
use super::targets::Targets;
use super::webhook::{Failed, Webhooks};
use super::{PATIENCE, PAUSE, while_held};
use crate::clock;
use crate::cluster::{Cluster, Seen};

/// Notifications to one target before what it took is committed: what a crash may repeat.
const BATCH: usize = 10;
/// Alerts in one mail; more go into the next.
const LINES: usize = 100;
/// Targets that are told at the same time.
const TOGETHER: usize = 8;
/// How often it looks although nothing was applied: pauses end.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure, first and at the longest.
const RETRY_MS: (u64, u64) = (1_000, 600_000);
/// A mailbox gets one mail a minute at the most.
const MAIL_PAUSE_MS: u64 = 60_000;
/// What a target did not take for so long is given up.
const GIVE_UP_MS: u64 = 24 * 3_600_000;

/// Between two rounds of which the first could not be committed; by then another node leads, mostly.
const UNCOMMITTED: Duration = Duration::from_secs(2);

/// Refusals remembered, some 100 octets each; at the bound all are forgotten, and tried in their order again.
const REFUSED: usize = 1_000;

/// The task that tells; idle while another node leads.
pub(crate) struct Notifier {
    cluster: Cluster,
    held: watch::Receiver<Option<Epoch>>,
}

impl Notifier {
    /// Tells while `held` names a claim.
    pub(crate) fn new(cluster: Cluster, held: watch::Receiver<Option<Epoch>>) -> Self {
        Notifier { cluster, held }
    }

    /// Works until told to stop.
    pub(crate) async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        while_held(self.held, &stop, |epoch| Teller::new(self.cluster.clone(), epoch).run()).await
    }
}

/// How a target is doing.
struct Standing {
    backoff: Backoff,
    /// Not before.
    next: Millis,
}

/// What telling needs under one claim.
struct Teller {
    cluster: Cluster,
    claim: Epoch,
    settings: Option<Arc<Settings>>,
    targets: Targets,
    hooks: Result<Webhooks, String>,
    standing: BTreeMap<String, Standing>,
    /// Target and id of notifications that were refused.
    refused: BTreeSet<(String, String)>,
    /// Keys of alerts of which somebody may be owed something.
    open_debts: BTreeSet<Vec<u8>>,
}

/// What one target is owed, oldest first.
type Debts = BTreeMap<String, Vec<AlertRow>>;

impl Teller {
    fn new(cluster: Cluster, claim: Epoch) -> Self {
        Teller {
            cluster,
            claim,
            settings: None,
            targets: Targets::default(),
            hooks: Webhooks::new(),
            standing: BTreeMap::new(),
            refused: BTreeSet::new(),
            open_debts: BTreeSet::new(),
        }
    }

    async fn run(mut self) -> anyhow::Result<()> {
        let mut changes = self.cluster.changes();
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let seen = changes.take();
            let due = self.look(&seen)?;
            if due.is_empty() {
                tokio::time::sleep(PAUSE).await;
                tokio::select! {
                    () = changes.changed() => {}
                    _ = tick.tick() => {}
                }
                continue;
            }
            self.tell(due).await;
        }
    }

    /// Whom to tell what now.
    fn look(&mut self, seen: &Seen) -> anyhow::Result<Debts> {
        let all = self.follow_settings() || seen.everything;
        let tables = self.cluster.view();
        if all {
            self.open_debts.clear();
            tables.each::<AlertRow>(Table::Alerts, &[], |key, row| {
                if self.targets_of(&row).any(|target| owed(&row, target).is_some()) {
                    self.open_debts.insert(key.to_vec());
                }
                true
            })?;
        }
        let touched = seen.rows.iter().filter(|(table, _)| *table == Table::Alerts);
        self.open_debts.extend(touched.map(|(_, key)| key.to_vec()));
        let (now, mut due) = (clock::now(), Debts::new());
        let mut settled = BTreeSet::new();
        for key in &self.open_debts {
            let row: Option<AlertRow> = tables.row(Table::Alerts, key)?;
            let owed_of = |row: &AlertRow| -> Vec<(String, Millis)> {
                let owed =
                    self.targets_of(row).filter_map(|target| Some((target.to_owned(), owed(row, target)?)));
                owed.collect()
            };
            let debts = row.as_ref().map(owed_of).unwrap_or_default();
            if debts.is_empty() {
                settled.insert(key.clone());
            }
            for (target, from) in debts {
                let waits = self.standing.get(&target).is_some_and(|standing| standing.next > now);
                if from > now || waits {
                    continue;
                }
                due.entry(target).or_default().extend(row.clone());
            }
        }
        self.open_debts.retain(|key| !settled.contains(key));
        for (target, rows) in &mut due {
            let refused = |row: &AlertRow| self.refused.contains(&(target.clone(), notification_id(row)));
            rows.sort_by_key(|row| (refused(row), row.serial));
            // As many as one round can tell; the others have theirs.
            rows.truncate(LINES);
        }
        Ok(due)
    }

    /// Those of its rule that can be told: without a relay nobody gets mail.
    fn targets_of(&self, row: &AlertRow) -> impl Iterator<Item = &str> {
        let mail = self.settings.as_ref().is_some_and(|settings| settings.mail.is_some());
        let told = move |name: &&String| mail || !matches!(self.targets.get(name), Some(Notify::Mail(_)));
        self.targets.of_rule(&row.rule).iter().filter(told).map(String::as_str)
    }

    /// True where other settings are in force now.
    fn follow_settings(&mut self) -> bool {
        // What cannot be read was said by those who judge.
        let Ok(now) = self.cluster.settings() else { return false };
        let same = match (&self.settings, &now) {
            (Some(before), Some(now)) => Arc::ptr_eq(before, now),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if same {
            return false;
        }
        let rules = now.as_ref().map(|settings| settings.alerts.as_slice()).unwrap_or_default();
        self.targets = Targets::of(rules);
        self.standing.retain(|name, _| self.targets.get(name).is_some());
        self.settings = now;
        true
    }

    /// Tells all that are due, each target in its own order; commits what each took as soon as it did.
    async fn tell(&mut self, due: Debts) {
        let cluster = self.cluster.me().cluster_name.clone();
        let mail = self.settings.as_ref().and_then(|settings| settings.mail.clone());
        let known =
            due.into_iter().filter_map(|(name, rows)| Some((self.targets.get(&name)?.clone(), name, rows)));
        let known: Vec<(Notify, String, Vec<AlertRow>)> = known.collect();
        let hooks = &self.hooks;
        let telling = futures::stream::iter(known).map(|(notify, name, rows)| {
            let (cluster, mail) = (cluster.as_str(), mail.as_ref());
            async move {
                let told = match &notify {
                    Notify::Webhook { url, .. } => post(hooks, cluster, url, rows).await,
                    Notify::Mail(to) => write(mail, cluster, to, rows).await,
                    Notify::Upstream => Told::default(),
                };
                (name, told)
            }
        });
        let mut telling = Box::pin(telling.buffer_unordered(TOGETHER));
        let (mut ended, mut committed) = (Vec::new(), true);
        while let Some((name, told)) = telling.next().await {
            committed &= commit(&self.cluster, self.claim, &name, &told).await;
            ended.push((name, told));
        }
        drop(telling);
        for (name, told) in ended {
            self.note(name, &told);
        }
        if !committed {
            // The same would be told again at once.
            tokio::time::sleep(UNCOMMITTED).await;
        }
    }

    fn note(&mut self, name: String, told: &Told) {
        let (now, mail) = (clock::now().0, name.starts_with("mailto:"));
        let fresh = || Standing { backoff: Backoff::new(RETRY_MS.0, RETRY_MS.1), next: Millis::default() };
        let standing = self.standing.entry(name.clone()).or_insert_with(fresh);
        if !told.taken.is_empty() {
            standing.backoff.reset();
        }
        if self.refused.len() + told.failed.len() > REFUSED {
            self.refused.clear();
        }
        self.refused.extend(told.failed.iter().map(|(row, _)| (name.clone(), notification_id(row))));
        match told.failed.first() {
            Some((_, why)) => {
                standing.next = Millis(now + standing.backoff.next_ms(rand::random()));
                if standing.backoff.failures() == 1 {
                    tracing::warn!(to = %name, %why, "an alert is not told yet");
                }
            }
            None => standing.next = Millis(if mail { now + MAIL_PAUSE_MS } else { 0 }),
        }
    }
}

/// What became of a batch to one target.
#[derive(Default)]
struct Told {
    taken: Vec<AlertRow>,
    /// Those that were not, and why.
    failed: Vec<(AlertRow, String)>,
}

async fn post(hooks: &Result<Webhooks, String>, cluster: &str, url: &Secret, rows: Vec<AlertRow>) -> Told {
    let mut told = Told::default();
    for row in rows.into_iter().take(BATCH) {
        let posted = match hooks {
            Ok(hooks) => hooks.post(url, &notification_id(&row), &body(cluster, &row)).await,
            Err(why) => Err(Failed::Silent(why.clone())),
        };
        match posted {
            Ok(()) => told.taken.push(row),
            Err(Failed::Refused(why)) => told.failed.push((row, why)),
            Err(Failed::Silent(why)) => {
                told.failed.push((row, why));
                break;
            }
        }
    }
    told
}

async fn write(mail: Option<&Mail>, cluster: &str, to: &str, mut rows: Vec<AlertRow>) -> Told {
    rows.truncate(LINES);
    let (Some(mail), Some(first)) = (mail, rows.first()) else { return Told::default() };
    let subject = match rows.len() {
        1 => format!("[Quire {cluster}] {}: {}", state(first), first.rule),
        more => format!("[Quire {cluster}] {more} alerts"),
    };
    let text: Vec<String> = rows.iter().map(paragraph).collect();
    let letter = Letter { to: to.to_owned(), id: letter_id(to, &rows), subject, text: text.join("\n") };
    match mail::send(mail, letter).await {
        Ok(()) => Told { taken: rows, failed: Vec::new() },
        Err(why) => {
            Told { taken: Vec::new(), failed: rows.into_iter().map(|row| (row, why.clone())).collect() }
        }
    }
}

/// The same whenever the same is said again to the same mailbox, and of no other mail: receivers drop what they know.
fn letter_id(to: &str, rows: &[AlertRow]) -> String {
    let said: Vec<String> = rows.iter().map(notification_id).collect();
    let digest = crate::tls::pin(format!("{to}\n{}", said.join("\n")).as_bytes());
    data_encoding::HEXLOWER.encode(&digest[..16])
}

fn state(row: &AlertRow) -> &'static str {
    if row.open { "open" } else { "cleared" }
}

/// What a webhook gets. Holds what the listing of alerts holds, and nothing of other targets.
fn body(cluster: &str, row: &AlertRow) -> Value {
    let mut body = json!({
        "id": notification_id(row),
        "alert": row.id,
        "sequence": row.serial,
        "cluster": cluster,
        "name": row.rule,
        "state": state(row),
        "subject": row.subject,
        "what": row.what,
        "raised_at": Millis(row.raised_at_ms).rfc3339(),
    });
    if !row.device.is_empty() {
        body["device"] = json!(row.device);
    }
    if !row.open {
        body["cleared_at"] = json!(Millis(row.cleared_at_ms).rfc3339());
        body["why"] = json!(row.why);
    }
    body
}

/// What a mail says of an alert.
fn paragraph(row: &AlertRow) -> String {
    let mut text = format!(
        "{}: {}\n  {}\n  raised {}\n",
        state(row),
        row.rule,
        row.what,
        Millis(row.raised_at_ms).rfc3339()
    );
    if !row.open {
        text.push_str(&format!("  cleared {}: {}\n", Millis(row.cleared_at_ms).rfc3339(), row.why));
    }
    text.push_str(&format!("  alert {}\n", row.id));
    text
}

/// True when nothing of it is left to commit.
async fn commit(cluster: &Cluster, claim: Epoch, target: &str, told: &Told) -> bool {
    let now = clock::now().0;
    let kind = if target.starts_with("mailto:") { "mail" } else { "webhook" };
    let one = |row: &AlertRow, failed: &str| {
        let delivery = AlertDelivery {
            target: target.to_owned(),
            serial: row.serial,
            raised: row.open,
            at_ms: now,
            failed: failed.to_owned(),
        };
        AlertTold { rule: row.rule.clone(), subject: row.subject.clone(), delivery: Some(delivery) }
    };
    let count = |outcome: &'static str, n: usize| {
        metrics::counter!("quire_alert_notifications_total", "target" => kind, "outcome" => outcome)
            .increment(n as u64);
    };
    count("told", told.taken.len());
    let mut all: Vec<AlertTold> = told.taken.iter().map(|row| one(row, "")).collect();
    for (row, why) in &told.failed {
        count("failed", 1);
        if now.saturating_sub(row.changed_at_ms) > GIVE_UP_MS {
            tracing::warn!(to = %target, alert = %row.id, %why, "an alert could not be told and is given up");
            count("given_up", 1);
            all.push(one(row, why));
        }
    }
    if all.is_empty() {
        return true;
    }
    let command = Kind::AlertsTold(AlertsTold { claim: claim.0, told: all });
    let committed = cluster.propose_here(command, PATIENCE).await;
    if let Err(error) = &committed {
        // Told again, under the same id.
        tracing::debug!(%error, "what was told is not committed");
    }
    committed.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mail_has_the_id_of_what_it_says_and_to_whom() {
        let row = |id: &str| AlertRow { id: id.to_owned(), serial: 5, ..AlertRow::default() };
        let id = |to: &str, ids: &[&str]| letter_id(to, &ids.iter().map(|id| row(id)).collect::<Vec<_>>());
        assert_eq!(id("it@x", &["a"]), id("it@x", &["a"]));
        assert_ne!(id("it@x", &["a"]), id("it@x", &["a", "b"]));
        assert_ne!(id("it@x", &["a"]), id("oncall@x", &["a"]));
    }
}
