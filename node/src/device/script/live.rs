//! Profiles on a live device: bridges the sandbox, which blocks, to the SNMP engine and the device's pages, which do
//! not.
//!
//! It opens no socket of its own: questions go through the engine, pages through the one confined client (`http`) and
//! the browser that is fed by it, all to the one address that a run was started for.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Via};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::sandbox::{self, Failed, Limits};
use super::{Device, Known, Page, Rendered, Scripts, WebMiss, WebPath};
use crate::device::http::{Fetched, WebError};
use crate::device::web::{Asking, Learnt, Pages, RenderMiss};
use crate::device::{Finished, Miss, drive};
use crate::snmp::{Credential, Patience, Request, Response, Snmp};

/// Runs the profiles that match over a complete reading, each on what the one before left. One that fails is counted
/// and logged once per version and device family; the reading stays as it was before it. What was learnt of the
/// device's web server is the caller's to keep.
pub async fn improve(
    scripts: &Scripts,
    snmp: &Snmp,
    peer: SocketAddr,
    credential: &Arc<Credential>,
    asking: &Asking,
    finished: &mut Finished,
) -> Learnt {
    let learnt = Arc::new(Mutex::new(Learnt::default()));
    // Half a reading is no reading: nothing is built on it.
    let Some(mut reading) = finished.reading.take_if(|_| finished.complete) else { return Learnt::default() };
    for profile in scripts.matching(&finished.subject) {
        if !profile.acts {
            // What its header names was asked with the standard.
            scripts.count_run(&profile, false);
            continue;
        }
        let Ok(_running) = scripts.running().acquire_owned().await else { break };
        let stop = CancellationToken::new();
        // Whoever waited for the reading may go away: the script then ends, too.
        let _ends = stop.clone().drop_guard();
        let device = Live {
            snmp: snmp.clone(),
            peer,
            credential: Arc::clone(credential),
            handle: Handle::current(),
            stop: stop.clone(),
            pages: Pages::new(peer.ip(), asking),
            learnt: Arc::clone(&learnt),
        };
        let limits = Limits::default();
        let (work, before, known, token) =
            (Arc::clone(&profile), reading.clone(), Known::of(finished), stop.clone());
        let run = tokio::task::spawn_blocking(move || {
            sandbox::run(&work, &before, known, Box::new(device), limits, &token)
        });
        match with_deadline(run, limits, &stop).await {
            Ok((better, asked)) => {
                scripts.count_run(&profile, false);
                reading = better;
                finished.plan.also_ask(asked);
            }
            Err(why) => complain(scripts, &profile, finished.subject.family(), peer, &why),
        }
    }
    finished.reading = Some(reading);
    *learnt.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn with_deadline(
    run: tokio::task::JoinHandle<sandbox::Run>,
    limits: Limits,
    stop: &CancellationToken,
) -> Result<(Reading, Vec<(Oid, bool)>), Failed> {
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
        Ok(run) => run.result.map(|reading| (reading, run.asked)),
        Err(_) => Err(Failed::Script("the script's thread broke off".to_owned())),
    }
}

fn complain(scripts: &Scripts, profile: &super::Profile, family: &str, peer: SocketAddr, why: &Failed) {
    scripts.count_run(profile, true);
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
    pages: Pages,
    /// What all runs of this read learnt.
    learnt: Arc<Mutex<Learnt>>,
}

impl Live {
    /// Waits for the web, but no longer than the script may run.
    fn wait<T>(
        handle: &Handle,
        stop: &CancellationToken,
        work: impl Future<Output = Result<T, WebMiss>>,
    ) -> Result<T, WebMiss> {
        handle.block_on(async {
            tokio::select! {
                () = stop.cancelled() => Err(WebMiss::Silent),
                done = work => done,
            }
        })
    }

    fn note(&self) {
        self.learnt.lock().unwrap_or_else(PoisonError::into_inner).add(&self.pages.learnt());
    }
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
        let pages = &mut self.pages;
        let page = Self::wait(&self.handle, &self.stop, async {
            pages
                .fetch(path.as_str(), most)
                .await
                .map_or_else(|error| without(&error, path), |page| Ok(of(&page)))
        });
        self.note();
        page
    }

    fn render(&mut self, path: &WebPath, most: usize) -> Result<Rendered, WebMiss> {
        let pages = &mut self.pages;
        let page = Self::wait(&self.handle, &self.stop, async {
            match pages.render(path.as_str(), most).await {
                Ok((fetched, shown)) => {
                    Ok(Rendered { page: Page { body: shown.html, ..of(&fetched) }, text: shown.text })
                }
                Err(RenderMiss::Web(error)) => {
                    without(&error, path).map(|page| Rendered { page, text: String::new() })
                }
                Err(RenderMiss::Browser(miss)) => Err(WebMiss::Browser(miss.to_string())),
            }
        });
        self.note();
        page
    }

    fn via(&self) -> Via {
        drive::via(&self.credential)
    }
}

fn of(fetched: &Fetched) -> Page {
    let via = if fetched.url.scheme() == "https" { Via::Https } else { Via::Http };
    Page { url: fetched.url.to_string(), status: fetched.status, body: fetched.text(), via }
}

/// What a script is told where there is no page. A login that is missing or wrong is the operator's matter, not the
/// script's: it sees the status that a browser without one would.
fn without(error: &WebError, path: &WebPath) -> Result<Page, WebMiss> {
    match error {
        WebError::WantsLogin | WebError::LoginRefused => {
            Ok(Page { url: path.as_str().to_owned(), status: 401, body: String::new(), via: Via::Http })
        }
        WebError::TooMuch => Err(WebMiss::TooLong),
        WebError::Elsewhere => Err(WebMiss::Elsewhere),
        WebError::Silent | WebError::Garbled | WebError::Status(_) => Err(WebMiss::Silent),
    }
}
