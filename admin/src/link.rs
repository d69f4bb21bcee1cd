//! The link: one stream a site, from the leader that holds the highest claim.
//!
//! Who speaks is what the certificate says; whether it may is what the store says, at every message. A
//! refusal is a message with its reason and the end of the stream; hostile octets end the stream. Nothing
//! that a site sends can stop the server or another site's stream.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::bytes::Bytes;
use quire_proto::WIRE_VERSION;
use quire_proto::upstream::{
    Batch, FromSite, Hello, IssuedCertificate, JobResult, Received, Refused, SignRequest, Signed, ToSite,
    Welcome, from_site, link_server, to_site,
};
use tokio::sync::{Mutex, Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::clock;
use crate::enroll::{REQUESTS_MAX, names};
use crate::intake::Holder;
use crate::store::{LinkError, Refusal, Site, Store, StoreError};
use crate::tls::{self, Authority, Identity};

/// One message of a link: a batch of 5,000 readings of about 1 KiB, with room.
pub(crate) const MESSAGE_OCTETS_MAX: usize = 16 << 20;
/// Answers that the site has not read yet, a few octets each but for jobs; when it is full the stream reads
/// no further message, which is what slows a site down.
const ANSWERS_MAX: usize = 32;
/// A leader says Hello with its first packet.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Of names and words in a Hello.
const WORD_MAX: usize = 256;

/// What all streams share.
#[derive(Debug)]
pub(crate) struct Links {
    authority: Arc<Authority>,
    store: Store,
    stop: CancellationToken,
    /// By site key. Held while a stream is admitted, so that the store and this map change in one order.
    live: Mutex<HashMap<i64, Live>>,
}

#[derive(Debug)]
struct Live {
    connection: i64,
    end: CancellationToken,
    wake: Arc<Notify>,
}

impl Links {
    pub(crate) fn new(authority: Arc<Authority>, store: Store, stop: CancellationToken) -> Self {
        Links { authority, store, stop, live: Mutex::default() }
    }

    /// Lets every stream look for jobs and revocation: another process may have written to the database.
    pub(crate) async fn wake_all(&self) {
        for live in self.live.lock().await.values() {
            live.wake.notify_one();
        }
    }

    async fn leave(&self, holder: Holder) {
        let mut live = self.live.lock().await;
        if live.get(&holder.site).is_some_and(|live| live.connection == holder.connection) {
            live.remove(&holder.site);
            metrics::gauge!("quire_admin_links").set(live.len() as f64);
        }
        if let Err(error) = self.store.leave(holder).await {
            tracing::error!(%error, "note the end of a link");
        }
    }
}

/// The service that answers `Stream`.
#[derive(Debug)]
pub(crate) struct LinkService(pub(crate) Arc<Links>);

#[tonic::async_trait]
impl link_server::Link for LinkService {
    type StreamStream = ReceiverStream<Result<ToSite, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<FromSite>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let certificates = request.peer_certs();
        let identity = certificates
            .as_ref()
            .and_then(|certificates| certificates.first())
            .and_then(tls::identity)
            .ok_or_else(|| Status::unauthenticated("the link needs a site's certificate: enrol first"))?;
        let site = match self.0.store.welcome_site(&identity.site).await {
            Ok(Some(site)) => site,
            Ok(None) => return Err(Status::permission_denied(Refusal::Revoked.to_string())),
            Err(error) => {
                tracing::error!(%error, "look up a site");
                return Err(Status::unavailable("the database failed"));
            }
        };
        let peer = request.remote_addr().map_or_else(String::new, |address| address.to_string());
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let session = Session {
            links: Arc::clone(&self.0),
            site,
            identity,
            peer,
            input: request.into_inner(),
            answers,
        };
        tokio::spawn(session.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// How a stream ends.
enum End {
    /// The site left or its connection broke.
    Gone(String),
    /// The server stops.
    Stopping,
    Refused(Refusal),
    Failed(StoreError),
}

impl From<LinkError> for End {
    fn from(error: LinkError) -> Self {
        match error {
            LinkError::Store(StoreError::Range(number)) => {
                End::Refused(Refusal::Malformed(format!("{number} is out of range")))
            }
            LinkError::Store(error) => End::Failed(error),
            LinkError::Refused(refusal) => End::Refused(refusal),
        }
    }
}

impl From<StoreError> for End {
    fn from(error: StoreError) -> Self {
        End::Failed(error)
    }
}

/// One stream, from its first message to its end.
struct Session {
    links: Arc<Links>,
    site: Site,
    identity: Identity,
    peer: String,
    input: Streaming<FromSite>,
    answers: mpsc::Sender<Result<ToSite, Status>>,
}

impl Session {
    async fn run(mut self) {
        let end = match self.admit().await {
            Ok((holder, end, wake)) => {
                let ended = self.serve(holder, &end, &wake).await;
                self.links.leave(holder).await;
                ended
            }
            Err(end) => end,
        };
        self.part(end).await;
    }

    /// Waits for the Hello and takes the site's place.
    async fn admit(&mut self) -> Result<(Holder, CancellationToken, Arc<Notify>), End> {
        let stop = self.links.stop.clone();
        let first = tokio::select! {
            () = stop.cancelled() => return Err(End::Stopping),
            first = tokio::time::timeout(HELLO_TIMEOUT, self.input.message()) => first,
        };
        let first = match first {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None)) => return Err(End::Gone("left without a Hello".to_owned())),
            Ok(Err(status)) => return Err(End::Gone(status.message().to_owned())),
            Err(_) => return Err(End::Refused(Refusal::Malformed("no Hello".to_owned()))),
        };
        let Some(from_site::What::Hello(hello)) = first.what else {
            return Err(End::Refused(Refusal::Malformed("the first message is no Hello".to_owned())));
        };
        self.check_hello(&hello).map_err(End::Refused)?;
        let (end, wake) = (CancellationToken::new(), Arc::new(Notify::new()));
        let mut live = self.links.live.lock().await;
        let (holder, through) =
            self.links.store.admit(&self.site, &hello, first.epoch, &self.peer, clock::now()).await?;
        let this = Live { connection: holder.connection, end: end.clone(), wake: Arc::clone(&wake) };
        if let Some(older) = live.insert(holder.site, this) {
            older.end.cancel();
        }
        metrics::gauge!("quire_admin_links").set(live.len() as f64);
        drop(live);
        let (site, epoch) = (&self.site.name, holder.epoch);
        tracing::info!(site, node = hello.node, epoch, through, mode = hello.mode, "link opened");
        let welcome = Welcome { through, site: self.site.name.clone() };
        // The channel is empty: this cannot wait.
        let _ = self.answers.send(Ok(answer(to_site::What::Welcome(welcome)))).await;
        Ok((holder, end, wake))
    }

    fn check_hello(&self, hello: &Hello) -> Result<(), Refusal> {
        if hello.wire_version > WIRE_VERSION {
            return Err(Refusal::Version);
        }
        if hello.cluster_id != self.site.cluster_id {
            return Err(Refusal::Cluster);
        }
        if hello.node != self.identity.node {
            return Err(Refusal::Node);
        }
        if [&hello.node_name, &hello.mode, &hello.version].iter().any(|word| word.len() > WORD_MAX) {
            return Err(Refusal::Malformed("a name in the Hello is too long".to_owned()));
        }
        Ok(())
    }

    async fn serve(&mut self, holder: Holder, end: &CancellationToken, wake: &Notify) -> End {
        let stop = self.links.stop.clone();
        let work = async {
            if let Err(error) = self.links.store.reopen_jobs(holder.site).await {
                return error.into();
            }
            if let Err(end) = self.send_jobs(holder).await {
                return end;
            }
            loop {
                let step = tokio::select! {
                    () = wake.notified() => self.look_around(holder).await,
                    message = self.input.message() => match message {
                        Ok(Some(message)) => self.handle(holder, message).await,
                        Ok(None) => Err(End::Gone("the site closed the stream".to_owned())),
                        Err(status) => Err(End::Gone(status.message().to_owned())),
                    },
                };
                if let Err(end) = step {
                    return end;
                }
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => End::Stopping,
            () = end.cancelled() => End::Refused(Refusal::Replaced { highest: holder.epoch }),
            end = work => end,
        }
    }

    async fn handle(&mut self, holder: Holder, message: FromSite) -> Result<(), End> {
        if message.epoch != holder.epoch {
            return Err(End::Refused(Refusal::Epoch { highest: holder.epoch }));
        }
        let what = message.what.ok_or_else(|| malformed("a message without content"))?;
        match what {
            from_site::What::Hello(_) => Err(malformed("a second Hello")),
            from_site::What::Batch(batch) => self.take(holder, &batch).await,
            from_site::What::CheckIn(check_in) => {
                Ok(self.links.store.check_in(holder, &check_in, clock::now()).await?)
            }
            from_site::What::Sign(request) => self.sign(holder, &request).await,
            from_site::What::Bundle(part) => {
                Ok(self.links.store.take_bundle_part(holder, part, clock::now()).await?)
            }
            from_site::What::JobResult(result) => self.close_job(holder, &result).await,
            from_site::What::Goodbye(_) => Err(End::Gone("goodbye".to_owned())),
        }
    }

    async fn take(&mut self, holder: Holder, batch: &Batch) -> Result<(), End> {
        let taken = self.links.store.take(holder, batch.first_seq, &batch.entries, clock::now()).await?;
        metrics::counter!("quire_admin_readings_stored_total").increment(taken.stored);
        metrics::counter!("quire_admin_readings_skipped_total").increment(taken.skipped);
        metrics::counter!("quire_admin_readings_duplicate_total").increment(taken.duplicates);
        metrics::counter!("quire_admin_readings_conflict_total").increment(taken.conflicts);
        if taken.duplicates + taken.conflicts > 0 {
            let (duplicates, conflicts) = (taken.duplicates, taken.conflicts);
            tracing::warn!(site = self.site.name, duplicates, conflicts, "readings above the mark are known");
        }
        self.answer(to_site::What::Received(Received { through: taken.through })).await
    }

    /// Signs for nodes of the site itself; one bad request does not cost the others their certificates.
    async fn sign(&mut self, holder: Holder, request: &SignRequest) -> Result<(), End> {
        self.links.store.check(holder).await?;
        if request.requests.len() > REQUESTS_MAX {
            return Err(malformed("too many certificate requests"));
        }
        let mut certificates = Vec::new();
        let mut signed = Vec::new();
        for csr in &request.requests {
            let certificate = match self.links.authority.check(csr.node, &csr.csr_der) {
                Ok(_) if csr.name.len() > WORD_MAX || i64::try_from(csr.node).is_err() => {
                    Err("name too long or number out of range".to_owned())
                }
                Ok(checked) => self
                    .links
                    .authority
                    .sign(&checked, &self.identity.site, clock::now())
                    .map_err(|error| format!("{error:#}")),
                Err(error) => Err(error.to_string()),
            };
            match certificate {
                Ok(der) => {
                    certificates
                        .push(IssuedCertificate { node: csr.node, certificate_der: Bytes::from(der) });
                    signed.push(csr.clone());
                }
                Err(reason) => {
                    tracing::warn!(
                        site = self.site.name,
                        node = csr.node,
                        reason,
                        "certificate request refused"
                    );
                }
            }
        }
        self.links.store.put_nodes(holder.site, &names(&signed)).await?;
        self.answer(to_site::What::Signed(Signed { certificates })).await
    }

    async fn close_job(&mut self, holder: Holder, result: &JobResult) -> Result<(), End> {
        let JobResult { id, ok, detail } = result;
        let known = self.links.store.close_job(holder, id, *ok, detail, clock::now()).await?;
        if !known {
            tracing::warn!(site = self.site.name, "the result of a job that is not open");
        }
        Ok(())
    }

    async fn look_around(&mut self, holder: Holder) -> Result<(), End> {
        self.links.store.check(holder).await?;
        self.send_jobs(holder).await
    }

    async fn send_jobs(&mut self, holder: Holder) -> Result<(), End> {
        for job in self.links.store.take_jobs(holder.site, clock::now()).await? {
            tracing::info!(site = self.site.name, job = job.id, "job sent");
            self.answer(to_site::What::Job(job)).await?;
        }
        Ok(())
    }

    async fn answer(&self, what: to_site::What) -> Result<(), End> {
        let sent = self.answers.send(Ok(answer(what))).await;
        sent.map_err(|_| End::Gone("the connection is closed".to_owned()))
    }

    /// The last word, without waiting for a site that no longer reads.
    async fn part(self, end: End) {
        let site = &self.site.name;
        let last = match end {
            End::Gone(why) => {
                tracing::info!(site, why, "link closed");
                return;
            }
            End::Stopping => Err(Status::unavailable("the server stops")),
            End::Refused(refusal) => {
                tracing::warn!(site, node = self.identity.node, %refusal, "link refused");
                metrics::counter!("quire_admin_refused_total", "reason" => refusal.word()).increment(1);
                let (reason, epoch) = (refusal.to_string(), refusal.highest());
                Ok(answer(to_site::What::Refused(Refused { reason, epoch })))
            }
            End::Failed(error) => {
                tracing::error!(site, %error, "link failed");
                Err(Status::unavailable("the database failed"))
            }
        };
        let _ = self.answers.try_send(last);
    }
}

fn malformed(what: &str) -> End {
    End::Refused(Refusal::Malformed(what.to_owned()))
}

fn answer(what: to_site::What) -> ToSite {
    ToSite { what: Some(what) }
}
