//! The link to the Web Admin: held by the leader alone, under its claim.
//!
//! The claim's epoch travels in every message, the server refuses lower ones, and what it acknowledges
//! is committed, so that the next leader goes on where this one stopped. The private key of the link
//! never leaves its node.
//!
//! Architecture Invariant: without a claim in force there is no connection; when the claim goes, the
//! connection goes first.

mod bundle;
mod enroll;
mod session;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use hyper_util::rt::TokioIo;
use quire_coordinator::backoff::Backoff;
use quire_coordinator::rows;
use quire_proto::id::Epoch;
use quire_proto::store::{Enroll, Link, Meta};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::cluster::Cluster;
use crate::device::script::Scripts;
use crate::telemetry::root_cause;
use crate::tls::{Connector, Identity, Trust};

pub(crate) use enroll::enroll;
pub use session::entries;
use session::{Ended, Session};

/// The name in the Web Admin's certificate, wherever it is reached.
const SERVER_NAME: &str = "quire-admin";

/// How long dialling may take.
const DIAL: Duration = Duration::from_secs(5);

/// Between two looks for an enrolment that is not there yet.
const LOOK: Duration = Duration::from_secs(1);

/// Makes a support bundle, and gives it in pieces. Done by `console`, which this room does not know.
pub(crate) type Bundler = Box<dyn Fn() -> mpsc::Receiver<io::Result<Bytes>> + Send + Sync>;

/// The upstream task of one node; idle while another leads.
pub(crate) struct Upstream {
    cluster: Cluster,
    scripts: Scripts,
    held: watch::Receiver<Option<Epoch>>,
    link: watch::Sender<Link>,
    bundler: Arc<Bundler>,
    backoff: Backoff,
}

impl Upstream {
    /// Links while `held` says so; tells of the link through `link`.
    pub(crate) fn new(
        cluster: Cluster,
        scripts: Scripts,
        held: watch::Receiver<Option<Epoch>>,
        link: watch::Sender<Link>,
        bundler: Bundler,
    ) -> Self {
        let backoff = Backoff::new(250, 30_000);
        Upstream { cluster, scripts, held, link, bundler: Arc::new(bundler), backoff }
    }

    /// Works until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        let tools = Tools { cluster: self.cluster, scripts: self.scripts, bundler: self.bundler };
        loop {
            let held = *self.held.borrow_and_update();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                // A lost or renewed claim drops whatever was going on, the connection included.
                changed = self.held.changed() => changed.context("follow the claim")?,
                pause = hold(&tools, held, &self.link, &mut self.backoff) => {
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        changed = self.held.changed() => changed.context("follow the claim")?,
                        () = rest(&tools.cluster, pause) => {}
                    }
                }
            }
        }
    }
}

/// Waits until the next link is due: for so long, or until an operator wants it otherwise.
async fn rest(cluster: &Cluster, pause: Duration) {
    let wanted = || {
        let check_in = cluster.settings().ok().flatten().map(|settings| settings.upstream.check_in_ms);
        (session::mode(cluster), check_in)
    };
    let (before, until) = (wanted(), tokio::time::Instant::now() + pause);
    while tokio::time::Instant::now() < until && wanted() == before {
        tokio::time::sleep(LOOK.min(until.saturating_duration_since(tokio::time::Instant::now()))).await;
    }
}

/// What a stream works with; clones share it.
#[derive(Clone)]
struct Tools {
    cluster: Cluster,
    scripts: Scripts,
    bundler: Arc<Bundler>,
}

/// Holds the link under a claim until it ends; answers how long to wait before the next.
async fn hold(
    tools: &Tools,
    held: Option<Epoch>,
    link: &watch::Sender<Link>,
    backoff: &mut Backoff,
) -> Duration {
    let Some(epoch) = held else { return std::future::pending().await };
    let cluster = &tools.cluster;
    let tell = |state: &str, mode: &str, detail: String| {
        let now = Link { state: state.to_owned(), mode: mode.to_owned(), detail };
        link.send_if_modified(|before| {
            let changed = *before != now;
            *before = now;
            changed
        });
    };
    let (meta, identity) = match credentials(cluster) {
        Ok(Some(both)) => both,
        Ok(None) => return LOOK,
        Err(error) => {
            tell("refused", "", format!("{error:#}"));
            return LOOK;
        }
    };
    let Some(enroll) = meta.upstream else {
        tell("disabled", "", String::new());
        return LOOK;
    };
    let mode = session::mode(cluster);
    if link.borrow().state != "connected" {
        tell("connecting", mode.as_str(), String::new());
    }
    let connected = || tell("connected", mode.as_str(), String::new());
    let session = Session::new(tools.clone(), epoch, mode);
    match run_session(session, &enroll, identity, connected).await {
        Ok(Ended::CheckedIn { next }) => {
            backoff.reset();
            next
        }
        Ok(Ended::ModeChanged) => Duration::ZERO,
        Ok(Ended::Refused(why)) => {
            tracing::warn!(%why, "the Web Admin refuses the link");
            tell("refused", mode.as_str(), why);
            Duration::from_millis(backoff.next_ms(rand::random()))
        }
        Ok(Ended::Lost) => {
            tell("connecting", mode.as_str(), "the connection was lost".to_owned());
            backoff.reset();
            Duration::from_millis(backoff.next_ms(rand::random()))
        }
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "no link");
            tell("connecting", mode.as_str(), format!("{error:#}"));
            Duration::from_millis(backoff.next_ms(rand::random()))
        }
    }
}

/// The enrolment, and this node's identity under it once the Web Admin signed it.
fn credentials(cluster: &Cluster) -> anyhow::Result<Option<(Meta, Arc<Identity>)>> {
    let tables = cluster.view();
    let meta = rows::meta(&tables)?;
    let Some(enroll) = &meta.upstream else { return Ok(None) };
    let me = rows::member(&tables, cluster.me().id)?.unwrap_or_default();
    if me.upstream_certificate_der.is_empty() {
        return Ok(None);
    }
    let chain = [me.upstream_certificate_der.as_ref(), enroll.ca_certificate_der.as_ref()];
    let identity = Identity::new(&chain, cluster.upstream_key())?;
    Ok(Some((meta, identity)))
}

async fn run_session(
    session: Session,
    enroll: &Enroll,
    identity: Arc<Identity>,
    connected: impl FnMut(),
) -> anyhow::Result<Ended> {
    let connector = Connector::new(Some(identity), Trust::new(&[&enroll.ca_certificate_der])?)?;
    let channel = dial(&enroll.url, connector).await?;
    session.run(channel, connected).await
}

/// Opens a channel to the Web Admin.
async fn dial(url: &str, connector: Connector) -> anyhow::Result<Channel> {
    let uri: Uri = url.parse().with_context(|| format!("understand the address {url}"))?;
    let host = uri.host().with_context(|| format!("{url} names no host: expected https://HOST:PORT"))?;
    let authority = format!("{}:{}", host, uri.port_u16().unwrap_or(443));
    // TLS is ours, so that certificates rotate without a restart; to tonic it looks like plain text.
    let endpoint = Endpoint::from_shared(format!("http://{SERVER_NAME}"))
        .context("prepare the channel")?
        .connect_timeout(DIAL)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    let service = service_fn(move |_: Uri| {
        let (connector, authority) = (connector.clone(), authority.clone());
        async move {
            let stream = TcpStream::connect(&authority).await?;
            stream.set_nodelay(true)?;
            let stream = connector.connect(SERVER_NAME, stream).await.map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let dialled = tokio::time::timeout(DIAL, endpoint.connect_with_connector(service)).await;
    dialled
        .map_err(|_| anyhow::anyhow!("{url} does not answer"))?
        .map_err(|error| anyhow::anyhow!("reach {url}: {}", root_cause(&error)))
}

/// What epochs look like on the wire.
fn wire(epoch: Epoch) -> u64 {
    epoch.0
}
