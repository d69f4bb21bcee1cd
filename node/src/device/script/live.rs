//! Profiles on a live device: bridges the sandbox, which blocks, to the SNMP engine and HTTP, which do not.
//!
//! The only file of this room that reaches a network, and it reaches the one address it was given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quire_proto::reading::{Reading, Via};
use reqwest::{Client, Url};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::sandbox::{self, Failed, Limits};
use super::{Device, Page, Scripts, WebMiss, WebPath};
use crate::device::{Finished, Miss, drive};
use crate::snmp::{Credential, Patience, Request, Response, Snmp};

/// How long one page may take; a waking device takes 5 s.
const PAGE: Duration = Duration::from_secs(10);
/// Redirects on the device itself.
const REDIRECTS: usize = 4;

/// Where the pages of devices are: the ports of the settings, in their order.
#[derive(Clone, Debug, Default)]
pub struct Web {
    /// No port, no pages.
    pub ports: Vec<u16>,
}

/// Runs the profiles that match over a complete reading, each on what the one before left. One that fails is counted
/// and logged once per version and device family; the reading stays as it was before it.
pub async fn improve(
    scripts: &Scripts,
    snmp: &Snmp,
    peer: SocketAddr,
    credential: &Arc<Credential>,
    web: &Web,
    finished: &mut Finished,
) {
    // Half a reading is no reading: nothing is built on it.
    let Some(mut reading) = finished.reading.take_if(|_| finished.complete) else { return };
    for profile in scripts.matching(&finished.subject) {
        let Ok(_running) = scripts.running().acquire_owned().await else { break };
        let stop = CancellationToken::new();
        // Whoever waited for the reading may go away: the script then ends, too.
        let _ends = stop.clone().drop_guard();
        let device = Live::new(snmp, peer, credential, web, &stop);
        let limits = Limits::default();
        let (work, before, fresh, token) =
            (Arc::clone(&profile), reading.clone(), finished.fresh.clone(), stop.clone());
        let run = tokio::task::spawn_blocking(move || {
            sandbox::run(&work, &before, &fresh, Box::new(device), limits, &token)
        });
        let result = with_deadline(run, limits, &stop).await;
        match result {
            Ok(better) => reading = better,
            Err(why) => complain(scripts, &profile, finished.subject.family(), peer, &why),
        }
    }
    finished.reading = Some(reading);
}

async fn with_deadline(
    run: tokio::task::JoinHandle<sandbox::Run>,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<Reading, Failed> {
    let mut run = run;
    let seconds = Duration::from_secs(u64::from(limits.seconds));
    let ended = match tokio::time::timeout(seconds, &mut run).await {
        Ok(ended) => ended,
        Err(_) => {
            stop.cancel();
            run.await
        }
    };
    match ended {
        Ok(run) => run.result,
        Err(_) => Err(Failed::Script("the script's thread broke off".to_owned())),
    }
}

fn complain(scripts: &Scripts, profile: &super::Profile, family: &str, peer: SocketAddr, why: &Failed) {
    metrics::counter!("quire_script_failures_total", "profile" => profile.name.clone()).increment(1);
    if scripts.count_failure(profile, family) {
        let (name, version) = (&profile.name, &profile.version);
        tracing::warn!(profile = %name, version = %version, family, device = %peer, %why,
            "a profile failed; the standard reading stands; further failures are only counted");
    }
}

/// One device over the wire.
struct Live {
    snmp: Snmp,
    peer: SocketAddr,
    credential: Arc<Credential>,
    handle: Handle,
    stop: CancellationToken,
    /// Where pages may be; the one that answered alone, once known.
    bases: Vec<Url>,
    client: Option<Client>,
}

impl Live {
    fn new(
        snmp: &Snmp,
        peer: SocketAddr,
        credential: &Arc<Credential>,
        web: &Web,
        stop: &CancellationToken,
    ) -> Live {
        Live {
            snmp: snmp.clone(),
            peer,
            credential: Arc::clone(credential),
            handle: Handle::current(),
            stop: stop.clone(),
            bases: web.ports.iter().filter_map(|port| base(peer, *port)).collect(),
            client: None,
        }
    }

    fn client(&mut self) -> Result<Client, WebMiss> {
        if let Some(client) = &self.client {
            return Ok(client.clone());
        }
        // Printers sign their own certificates; nothing secret is sent to them here. No proxy, no cookies, no
        // redirects but those that `fetch` follows itself.
        let client = Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .danger_accept_invalid_certs(true)
            .timeout(PAGE)
            .build()
            .map_err(|_| WebMiss::Silent)?;
        self.client = Some(client.clone());
        Ok(client)
    }
}

/// The device's own address at a port: the only place that a page may come from.
fn base(peer: SocketAddr, port: u16) -> Option<Url> {
    let scheme = if matches!(port, 443 | 8443) { "https" } else { "http" };
    Url::parse(&format!("{scheme}://{}/", SocketAddr::new(peer.ip(), port))).ok()
}

fn same_device(one: &Url, other: &Url) -> bool {
    one.host() == other.host() && matches!(other.scheme(), "http" | "https") && other.username().is_empty()
}

impl Device for Live {
    fn ask(&mut self, request: &Request) -> Result<Response, Miss> {
        let (snmp, stop) = (self.snmp.clone(), self.stop.clone());
        let (peer, credential, request) = (self.peer, Arc::clone(&self.credential), request.clone());
        self.handle.block_on(async move {
            tokio::select! {
                () = stop.cancelled() => Err(Miss::Silent),
                answer = snmp.ask(peer, &credential, request, Patience::Normal) => {
                    answer.map(|answer| answer.response).map_err(drive::miss)
                }
            }
        })
    }

    fn fetch(&mut self, path: &WebPath, most: usize) -> Result<Page, WebMiss> {
        let client = self.client()?;
        let (handle, stop) = (self.handle.clone(), self.stop.clone());
        for base in self.bases.clone() {
            let got = handle.block_on(async {
                tokio::select! {
                    () = stop.cancelled() => Err(WebMiss::Silent),
                    page = fetch(&client, &base, path, most) => page,
                }
            });
            match got {
                Err(WebMiss::Silent) if !self.stop.is_cancelled() => {}
                other => {
                    self.bases = vec![base];
                    return other;
                }
            }
        }
        self.bases.clear();
        Err(WebMiss::Silent)
    }

    fn via(&self) -> Via {
        drive::via(&self.credential)
    }
}

async fn fetch(client: &Client, base: &Url, path: &WebPath, most: usize) -> Result<Page, WebMiss> {
    let mut url = base.join(path.as_str()).map_err(|_| WebMiss::Elsewhere)?;
    for _ in 0..=REDIRECTS {
        if !same_device(base, &url) {
            return Err(WebMiss::Elsewhere);
        }
        let answer = client.get(url.clone()).send().await.map_err(|_| WebMiss::Silent)?;
        let to = answer.headers().get("location").and_then(|to| to.to_str().ok());
        if let Some(to) = to.filter(|_| answer.status().is_redirection()) {
            url = url.join(to).map_err(|_| WebMiss::Elsewhere)?;
            continue;
        }
        return page(answer, url, most).await;
    }
    Err(WebMiss::Elsewhere)
}

async fn page(mut answer: reqwest::Response, url: Url, most: usize) -> Result<Page, WebMiss> {
    let status = answer.status().as_u16();
    let mut body = Vec::new();
    while let Some(part) = answer.chunk().await.map_err(|_| WebMiss::Silent)? {
        if body.len() + part.len() > most {
            return Err(WebMiss::TooLong);
        }
        body.extend_from_slice(&part);
    }
    let via = if url.scheme() == "https" { Via::Https } else { Via::Http };
    Ok(Page { url: url.into(), status, body: String::from_utf8_lossy(&body).into_owned(), via })
}
