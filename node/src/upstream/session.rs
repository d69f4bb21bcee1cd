//! One stream to the Web Admin, from hello to its end.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use prost::Message as _;
use quire_coordinator::outbox::{Fetch, MAX_BATCH_ENTRIES, MAX_BATCH_OCTETS, Window};
use quire_coordinator::rows::{self, number_key};
use quire_coordinator::settings::{Settings, UpstreamMode};
use quire_coordinator::tables::{Read, Table};
use quire_proto::WIRE_VERSION;
use quire_proto::id::{Epoch, Millis};
use quire_proto::store::ask::What as AskWhat;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Ack, Ask, OutboxEntry, PutUpstreamIdentities, SetUpstreamMode, UpstreamIdentity};
use quire_proto::upstream::from_site::What as Up;
use quire_proto::upstream::job::What as JobWhat;
use quire_proto::upstream::link_client::LinkClient;
use quire_proto::upstream::to_site::What as Down;
use quire_proto::upstream::{
    Batch, CertificateRequest, CheckIn, FromSite, Goodbye, Hello, Job, JobResult, SignRequest, ToSite,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

use super::bundle::Bundles;
use super::{Tools, wire};
use crate::cluster::{Cluster, ProposeError, PutError};
use crate::device::script;
use crate::{clock, tls};

/// Messages on their way out: the window of four batches, and as many small ones.
const OUTWARD: usize = 16;

/// Between two looks at the outbox while nothing else happens.
const LOOK: Duration = Duration::from_millis(200);

/// How often members without a certificate are looked for: a node that joins should be able to lead at
/// once.
const SIGN_LOOK: Duration = Duration::from_millis(500);

/// The same members are asked for again after so long.
const SIGN_AGAIN: Duration = Duration::from_secs(5);

/// How often a live stream says that all is well, though nothing changed.
const ALIVE_EVERY: Duration = Duration::from_secs(30);

/// How often it looks whether something did.
const ALIVE_LOOK: Duration = Duration::from_secs(1);

/// In Normal mode the stream stays so long after the last message, for jobs to arrive.
const LINGER: Duration = Duration::from_secs(2);

/// How long the server may take to welcome.
const WELCOME: Duration = Duration::from_secs(10);

/// How long a commit on behalf of the link may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// How a session ended.
pub(super) enum Ended {
    /// Normal mode: everything is sent; the next check-in is due later.
    CheckedIn {
        /// When.
        next: Duration,
    },
    /// Another mode was committed.
    ModeChanged,
    /// The server does not want this cluster, node or epoch.
    Refused(String),
    /// The connection broke.
    Lost,
}

/// The mode in force: what the Web Admin asked for last, else what the settings say.
pub(super) fn mode(cluster: &Cluster) -> UpstreamMode {
    let asked = rows::meta(&cluster.view()).map(|meta| meta.upstream_mode).unwrap_or_default();
    match asked.as_str() {
        "normal" => UpstreamMode::Normal,
        "service" => UpstreamMode::Service,
        _ => cluster.settings().ok().flatten().map_or(Settings::default().upstream.mode, |s| s.upstream.mode),
    }
}

/// One stream.
pub(super) struct Session {
    cluster: Cluster,
    tools: Tools,
    epoch: Epoch,
    mode: UpstreamMode,
}

/// A stream that was welcomed.
struct Welcomed {
    session: Session,
    up: mpsc::Sender<FromSite>,
    window: Window,
    quiet_since: std::time::Instant,
    /// The last check-in, and when it was sent.
    said: Option<(CheckIn, std::time::Instant)>,
    /// Members whose certificates were asked for last, and when.
    signing: Option<(Vec<u64>, std::time::Instant)>,
    /// Support bundles that jobs want.
    bundles: Bundles,
}

impl Session {
    pub(super) fn new(tools: Tools, epoch: Epoch, mode: UpstreamMode) -> Self {
        Session { cluster: tools.cluster.clone(), tools, epoch, mode }
    }

    /// Runs the stream until it ends; `connected` is called when the server has welcomed it.
    pub(super) async fn run(self, channel: Channel, mut connected: impl FnMut()) -> anyhow::Result<Ended> {
        let (up, outward) = mpsc::channel(OUTWARD);
        let me = self.cluster.me();
        let hello = Up::Hello(Hello {
            cluster_id: me.cluster_id.to_vec().into(),
            node: me.id.0,
            node_name: me.name.clone(),
            mode: self.mode.as_str().to_owned(),
            wire_version: WIRE_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            outbox_base: rows::meta(&self.cluster.view())?.outbox_base,
        });
        up.send(FromSite { epoch: wire(self.epoch), what: Some(hello) }).await.context("say hello")?;
        let mut client = LinkClient::new(channel);
        let open = client.stream(ReceiverStream::new(outward));
        let mut down = match tokio::time::timeout(WELCOME, open).await {
            Err(_) => anyhow::bail!("the Web Admin does not welcome the stream"),
            Ok(Err(status)) => return Ok(Ended::Refused(status.message().to_owned())),
            Ok(Ok(answer)) => answer.into_inner(),
        };
        let first = tokio::time::timeout(WELCOME, down.message()).await;
        let through = match first.context("wait for the welcome")? {
            Ok(Some(ToSite { what: Some(Down::Welcome(welcome)) })) => welcome.through,
            Ok(Some(ToSite { what: Some(Down::Refused(refused)) })) => {
                return Ok(Ended::Refused(refused.reason));
            }
            Ok(_) => return Ok(Ended::Lost),
            Err(status) => return Ok(Ended::Refused(status.message().to_owned())),
        };
        let meta = rows::meta(&self.cluster.view())?;
        let mut window = Window::new(meta.outbox_acked + 1);
        window.handle_appended(meta.outbox_next.saturating_sub(1));
        // A Web Admin that has nothing of this cluster takes it from wherever its outbox begins.
        let through = if through == 0 { meta.outbox_acked } else { through };
        if let Err(error) = window.handle_welcome(through) {
            return Ok(Ended::Refused(error.to_string()));
        }
        tracing::info!(epoch = %self.epoch, through, "upstream link");
        connected();
        let bundles = Bundles::new(Arc::clone(&self.tools.bundler));
        let quiet_since = clock::steady();
        Welcomed { session: self, up, window, quiet_since, said: None, signing: None, bundles }
            .talk(&mut down)
            .await
    }
}

impl Welcomed {
    async fn talk(mut self, down: &mut Streaming<ToSite>) -> anyhow::Result<Ended> {
        let mut look = tokio::time::interval(LOOK);
        let mut sign = tokio::time::interval(SIGN_LOOK);
        let mut alive = tokio::time::interval(ALIVE_LOOK);
        loop {
            self.commit_ack().await;
            self.send_batches().await?;
            if let Some(ended) = self.finished().await? {
                return Ok(ended);
            }
            tokio::select! {
                message = down.message() => match message {
                    Ok(Some(ToSite { what })) => {
                        if let Some(ended) = self.handle(what).await? {
                            return Ok(ended);
                        }
                    }
                    Ok(None) | Err(_) => return Ok(Ended::Lost),
                },
                _ = look.tick() => if self.window.is_stalled(clock::ticks()) {
                    // The connection lives and the server behind it does not.
                    return Ok(Ended::Lost);
                },
                step = self.bundles.next() => {
                    self.quiet_since = clock::steady();
                    self.send(step).await?;
                }
                _ = sign.tick() => self.ask_for_certificates().await?,
                _ = alive.tick() => self.check_in().await?,
            }
        }
    }

    async fn send(&self, what: Up) -> anyhow::Result<()> {
        let message = FromSite { epoch: wire(self.session.epoch), what: Some(what) };
        self.up.send(message).await.context("send to the Web Admin")
    }

    /// Commits what the server stored, so that another leader does not send it again.
    async fn commit_ack(&mut self) {
        let Some(through) = self.window.take_ack() else { return };
        let command = Kind::Ack(Ack { claim: wire(self.session.epoch), through });
        if let Err(error) = self.session.cluster.propose_here(command, PATIENCE).await {
            // The server's high-water mark makes up for it: what is sent again is skipped there.
            tracing::debug!(%error, through, "acknowledgement not committed");
            let acked = rows::meta(&self.session.cluster.view()).map_or(0, |meta| meta.outbox_acked);
            self.window.handle_ack_failed(acked);
        }
    }

    async fn send_batches(&mut self) -> anyhow::Result<()> {
        let tables = self.session.cluster.view();
        self.window.handle_appended(rows::meta(&tables)?.outbox_next.saturating_sub(1));
        while let Some(want) = self.window.wants() {
            let (entries, through) = entries(&tables, want)?;
            self.send(Up::Batch(Batch { first_seq: want.from, entries })).await?;
            self.window.handle_sent(through, clock::ticks());
            self.quiet_since = clock::steady();
        }
        Ok(())
    }

    /// Ends the stream where the mode says so.
    async fn finished(&mut self) -> anyhow::Result<Option<Ended>> {
        let now = mode(&self.session.cluster);
        if now != self.session.mode {
            self.send(Up::Goodbye(Goodbye {})).await?;
            return Ok(Some(Ended::ModeChanged));
        }
        let quiet = clock::steady().duration_since(self.quiet_since) > LINGER && self.bundles.is_idle();
        if now == UpstreamMode::Normal && quiet && self.window.pending() == 0 {
            self.send(Up::Goodbye(Goodbye {})).await?;
            let every = self
                .session
                .cluster
                .settings()?
                .map_or(Settings::default().upstream.check_in_ms, |s| s.upstream.check_in_ms);
            return Ok(Some(Ended::CheckedIn { next: Duration::from_millis(every) }));
        }
        Ok(None)
    }

    async fn handle(&mut self, what: Option<Down>) -> anyhow::Result<Option<Ended>> {
        match what {
            Some(Down::Received(received)) => {
                self.quiet_since = clock::steady();
                if let Err(error) = self.window.handle_received(received.through) {
                    return Ok(Some(Ended::Refused(error.to_string())));
                }
            }
            Some(Down::Signed(signed)) => {
                let identities = signed
                    .certificates
                    .into_iter()
                    .map(|issued| UpstreamIdentity {
                        node: issued.node,
                        certificate_der: issued.certificate_der,
                    })
                    .collect();
                let command = Kind::PutUpstreamIdentities(PutUpstreamIdentities { identities });
                if let Err(error) = self.session.cluster.propose_here(command, PATIENCE).await {
                    tracing::debug!(%error, "certificates not committed; they are asked for again");
                }
            }
            Some(Down::Job(job)) => {
                self.quiet_since = clock::steady();
                let (id, wants_bundle) = (job.id.clone(), matches!(job.what, Some(JobWhat::Bundle(_))));
                let Some(result) = self.session.work(job).await else { return Ok(Some(Ended::Lost)) };
                // Then the bundle is the answer.
                if !(wants_bundle && result.ok) {
                    self.send(Up::JobResult(result)).await?;
                } else if let Err(result) = self.bundles.add(id) {
                    self.send(Up::JobResult(result)).await?;
                }
            }
            Some(Down::Refused(refused)) => return Ok(Some(Ended::Refused(refused.reason))),
            // A second welcome, or a message of a newer version.
            Some(Down::Welcome(_)) | None => {}
        }
        Ok(None)
    }

    async fn ask_for_certificates(&mut self) -> anyhow::Result<()> {
        let now = clock::now();
        let requests: Vec<CertificateRequest> = rows::members(&self.session.cluster.view())?
            .into_iter()
            .filter(|member| !member.upstream_csr_der.is_empty())
            .filter(|member| is_due(&member.upstream_certificate_der, now))
            .map(|member| CertificateRequest {
                node: member.id,
                name: member.name,
                csr_der: member.upstream_csr_der,
            })
            .collect();
        let nodes: Vec<u64> = requests.iter().map(|request| request.node).collect();
        let asked = self
            .signing
            .as_ref()
            .is_some_and(|(before, at)| *before == nodes && clock::steady().duration_since(*at) < SIGN_AGAIN);
        if !nodes.is_empty() && !asked {
            self.send(Up::Sign(SignRequest { requests })).await?;
            self.signing = Some((nodes, clock::steady()));
        }
        Ok(())
    }

    /// Says how the cluster is, when that changed or was said long ago.
    async fn check_in(&mut self) -> anyhow::Result<()> {
        let tables = self.session.cluster.view();
        let meta = rows::meta(&tables)?;
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let nodes: Vec<u64> = rows::members(&tables)?.into_iter().map(|member| member.id).collect();
        let now = CheckIn {
            at_ms: clock::now().0,
            members: count(nodes.len()),
            alive: count(meta.heard.len()),
            devices: meta.devices,
            units: rows::units(&tables)?.len() as u64,
            pending: meta.outbox_next.saturating_sub(1).saturating_sub(meta.outbox_acked),
            nodes,
        };
        let told = |said: &CheckIn| (said.nodes.clone(), said.alive, said.devices, said.units);
        let news = self.said.as_ref().is_none_or(|(said, at)| {
            told(said) != told(&now) || clock::steady().duration_since(*at) >= ALIVE_EVERY
        });
        if news {
            self.send(Up::CheckIn(now.clone())).await?;
            self.said = Some((now, clock::steady()));
        }
        Ok(())
    }
}

/// Entries as stored from the first wanted number on, as many as a batch may hold but always one, and the number that
/// they reach. Numbers that no entry has are superseded: one small entry says so of a whole run of them.
///
/// # Errors
/// When the store fails.
pub fn entries(tables: &impl Read, want: Fetch) -> anyhow::Result<(Vec<Bytes>, u64)> {
    let mut entries: Vec<Bytes> = Vec::new();
    let (mut next, mut octets) = (want.from, 0);
    let gap = |from: u64, through: u64| {
        let entry = OutboxEntry { seq: from, superseded_through: through, ..OutboxEntry::default() };
        Bytes::from(entry.encode_to_vec())
    };
    let most = usize::try_from(MAX_BATCH_ENTRIES).unwrap_or(usize::MAX);
    for (key, entry) in tables.range(Table::Outbox, &number_key(want.from), most)? {
        let seq = key.as_ref().try_into().map(u64::from_be_bytes).context("understand an outbox number")?;
        octets += entry.len();
        if octets > MAX_BATCH_OCTETS && !entries.is_empty() {
            return Ok((entries, next - 1));
        }
        if seq > next {
            entries.push(gap(next, seq - 1));
        }
        entries.push(entry);
        next = seq + 1;
    }
    if entries.is_empty() {
        entries.push(gap(want.from, want.through));
        next = want.through + 1;
    }
    Ok((entries, next - 1))
}

/// Octets of a job's id, of a segment and of a device: what is refused is remembered under it on every node.
const NAMED: usize = 256;

/// Why a job was not done.
#[derive(Debug)]
enum Undone {
    /// For good.
    Refused(String),
    /// Who leads changed meanwhile, or the answer is not there in time: it may still take effect.
    Unknown(String),
}

impl From<ProposeError> for Undone {
    fn from(error: ProposeError) -> Self {
        let why = error.to_string();
        match error {
            ProposeError::Rejected(_) | ProposeError::TooLong(_) => Undone::Refused(why),
            ProposeError::NoQuorum | ProposeError::Timeout | ProposeError::Stopped(_) => Undone::Unknown(why),
        }
    }
}

impl Session {
    /// Does what the Web Admin asks for. `None` where nobody can say what came of it: it asks again on another stream, and
    /// what was done is not done twice.
    async fn work(&self, job: Job) -> Option<JobResult> {
        let (ok, detail) = match self.attempt(&job.id, job.what).await {
            Ok(detail) => (true, detail),
            Err(Undone::Refused(why)) => (false, why),
            Err(Undone::Unknown(why)) => {
                tracing::info!(job = job.id, why, "a job is left for the next stream");
                return None;
            }
        };
        Some(JobResult { id: job.id, ok, detail })
    }

    /// What came of it, in words.
    async fn attempt(&self, id: &str, what: Option<JobWhat>) -> Result<String, Undone> {
        fn said(error: impl ToString) -> Undone {
            Undone::Refused(error.to_string())
        }
        if let Some(JobWhat::SweepSegment(name) | JobWhat::ReadDevice(name)) = &what
            && name.len() > NAMED
        {
            return Err(said("no segment and no device has such a long name"));
        }
        if id.len() > NAMED {
            return Err(said("the job's id is too long"));
        }
        let by = "web admin".to_owned();
        let command = match what {
            Some(JobWhat::SweepSegment(segment)) => {
                Kind::Ask(Ask { by, what: Some(AskWhat::SweepSegment(segment)) })
            }
            Some(JobWhat::ReadDevice(device)) => {
                Kind::Ask(Ask { by, what: Some(AskWhat::ReadDevice(device)) })
            }
            Some(JobWhat::Bundle(_)) => Kind::Ask(Ask { by, what: Some(AskWhat::Bundle(true)) }),
            Some(JobWhat::ServiceMode(on)) => {
                let mode = if on { UpstreamMode::Service } else { UpstreamMode::Normal };
                Kind::SetUpstreamMode(SetUpstreamMode { mode: mode.as_str().to_owned(), by })
            }
            Some(JobWhat::SettingsToml(text)) => {
                let put = self.cluster.put_settings(&text, &by, id, PATIENCE).await;
                return put.map(|changes| changes.join("\n")).map_err(|error| match error {
                    PutError::Settings(error) => said(error),
                    PutError::Propose(error) => error.into(),
                });
            }
            Some(JobWhat::ScriptSource(source)) => {
                let committed = rows::scripts(&self.cluster.view()).map_err(said)?;
                let accepted = script::accept(&self.tools.scripts, &committed, source, &by, false).await;
                Kind::PutScript(accepted.map_err(said)?.0)
            }
            None => return Err(said("this version does not know the job")),
        };
        let outcome = self.cluster.propose_job(id, command, PATIENCE).await?;
        Ok(match outcome.result {
            Some(Answer::Changes(changes)) => changes,
            _ => String::new(),
        })
    }
}

/// Whether a member has no certificate, or less than a third of its certificate's life is left: the Web Admin signs another
/// one for the same key.
fn is_due(certificate: &[u8], now: Millis) -> bool {
    let said = tls::said_of(certificate).map(|(said, _)| said);
    said.is_none_or(|said| said.until.0.saturating_sub(now.0) < said.until.0.saturating_sub(said.from.0) / 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_coordinator::tables::MemoryTables;

    #[test]
    fn a_certificate_is_asked_for_again_before_it_ends() {
        let authority = tls::Authority::generate("web admin").unwrap();
        let names = tls::Names { common_name: "n".into(), dns: "n.quire".into(), uri: "quire://n".into() };
        let request = tls::Key::generate().unwrap().request("n").unwrap();
        let (from, until): (Millis, Millis) =
            ("2020-01-01T00:00:00Z".parse().unwrap(), "2050-01-01T00:00:00Z".parse().unwrap());
        let certificate = authority.sign(&request, &names, until).unwrap();
        assert!(is_due(&[], from) && !is_due(&certificate, from));
        assert!(!is_due(&certificate, "2039-12-01T00:00:00Z".parse().unwrap()));
        assert!(is_due(&certificate, "2040-02-01T00:00:00Z".parse().unwrap()));
        assert!(is_due(&certificate, "2051-01-01T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn a_job_is_answered_only_where_it_is_known_what_came_of_it() {
        let answered = |error: ProposeError| matches!(Undone::from(error), Undone::Refused(_));
        assert!(answered(ProposeError::Rejected("no such segment".to_owned())));
        assert!(answered(ProposeError::TooLong(5_000_000)));
        assert!(!answered(ProposeError::NoQuorum) && !answered(ProposeError::Timeout));
    }

    #[test]
    fn numbers_without_an_entry_are_said_to_be_superseded() {
        let mut tables = MemoryTables::default();
        let put = |seq: u64| {
            let entry = OutboxEntry { seq, zone: "hq".into(), ..OutboxEntry::default() };
            (Table::Outbox, Bytes::copy_from_slice(&number_key(seq)), Some(entry.encode_to_vec().into()))
        };
        tables.commit([3, 4, 900, 901].map(put).into_iter());
        let (found, through) = entries(&tables, Fetch { from: 1, through: 500 }).unwrap();
        let found: Vec<_> = found.into_iter().map(|entry| OutboxEntry::decode(entry).unwrap()).collect();
        let numbers: Vec<_> = found.iter().map(|entry| (entry.seq, entry.superseded_through)).collect();
        assert_eq!(numbers, [(1, 2), (3, 0), (4, 0), (5, 899), (900, 0), (901, 0)]);
        assert_eq!(through, 901);
        let (found, through) = entries(&tables, Fetch { from: 902, through: 950 }).unwrap();
        assert_eq!((found.len(), through), (1, 950), "nothing is left behind the last entry");
    }
}
