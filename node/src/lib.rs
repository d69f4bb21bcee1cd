//! Acts: SNMP, Raft runtime, RocksDB, gRPC, console and command line of a Quire node.
//!
//! Floors, lowest first: `clock dice tls telemetry` < `snmp cluster routes` < `device` < `doctor` < `collector leader
//! upstream discovery console alerts` < `config cli fuzz sim lib main`. A module imports from lower floors only; a test
//! holds it so.

mod alerts;
pub mod cli;
mod clock;
pub mod cluster;
mod collector;
mod config;
mod console;
pub mod device;
mod dice;
mod discovery;
mod doctor;
#[doc(hidden)]
pub mod fuzz;
mod leader;
mod routes;
#[doc(hidden)]
pub mod sim;
pub mod snmp;
mod telemetry;
pub mod tls;
mod upstream;

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use metrics_exporter_prometheus::PrometheusBuilder;
use quire_proto::store::Link;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use alerts::{Alerter, Notifier};
use cluster::{Cluster, Standing, Start};
use collector::{Collector, Explorer, LocalPrinters, Reachability, Reporter, ScriptKeeper};
use config::NodeOptions;
use console::Site;
use console::bundle::Wanted;
use device::browser::Browser;
use device::script::Scripts;
use doctor::Patient;
use leader::Leader;
use snmp::Snmp;
use upstream::Upstream;

/// What is to happen once a node has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing: it was told to end.
    End,
    /// It starts again, as the only member of its cluster.
    Recover,
}

/// Runs a node until it is told to stop; every long-lived task is spawned here, by name.
///
/// # Errors
/// When it cannot start, or a task ends that should not.
pub(crate) async fn run(options: NodeOptions) -> anyhow::Result<After> {
    let console_address = options.console;
    let data_dir = options.data_dir.clone();
    let witness = options.witness;
    let cluster = open(options).await?;
    let console_address = config::console(&data_dir, console_address)?;
    let me = cluster.me();
    tracing::info!(node = %me.name, id = %me.id, cluster = %me.cluster_name, "started");
    let snmp = Snmp::bind(snmp::Options::default()).await.context("open the SNMP sockets")?;
    let stop = CancellationToken::new();
    let (collect, recover) = (stop.child_token(), CancellationToken::new());
    let (held, claim) = watch::channel(None);
    let (tell_link, link) = watch::channel(Link::default());
    let (reporter, proposer) = Reporter::new(cluster.clone());
    let scripts = Scripts::with_recordings(data_dir.join("recordings"));
    let browser = Browser::new(&data_dir);
    let site = Arc::new(Site {
        cluster: cluster.clone(),
        scripts: scripts.clone(),
        snmp: snmp.clone(),
        metrics: PrometheusBuilder::new().install_recorder().context("start the metrics")?,
        enroll: enroll_with(cluster.clone()),
        patient: Patient {
            cluster: cluster.clone(),
            browser: browser.clone(),
            data_dir: data_dir.clone(),
            console: console_address,
        },
        open: console_address.ip().is_loopback(),
        stop: stop.clone(),
        recover: recover.clone(),
    });
    let leader = Leader::new(cluster.clone(), held, link);
    let alerter = Alerter::new(cluster.clone(), claim.clone());
    let notifier = Notifier::new(cluster.clone(), claim.clone());
    let upstream = Upstream::new(cluster.clone(), scripts.clone(), claim, tell_link, bundle_of(&site));

    let mut tasks = Tasks::default();
    tasks.spawn("leader", leader.run(stop.clone()));
    tasks.spawn("identity", fence(cluster.clone(), stop.clone()));
    tasks.spawn("upstream", upstream.run(stop.clone()));
    tasks.spawn("alerts", alerter.run(stop.clone()));
    tasks.spawn("notifications", notifier.run(stop.clone()));
    tasks.spawn("proposer", proposer.run(stop.clone()));
    tasks.spawn("console", console::serve(Arc::clone(&site), console_address));
    tasks.spawn("control", console::serve_control(site, data_dir));
    if !witness {
        tasks.spawn("explorer", Explorer::new(cluster.clone(), snmp.clone()).run(stop.clone()));
        tasks.spawn(
            "collector",
            Collector::new(cluster.clone(), snmp, reporter.clone(), scripts.clone(), browser.clone())
                .run(collect.clone()),
        );
        tasks.spawn("local", LocalPrinters::new(cluster.clone(), reporter).run(stop.clone()));
        tasks.spawn("scripts", ScriptKeeper::new(cluster.clone(), scripts).run(stop.clone()));
        tasks.spawn("reachability", Reachability::new(cluster.clone()).run(stop.clone()));
    }
    let first = tokio::select! {
        told = tasks.until_told() => told?,
        () = recover.cancelled() => None,
    };
    if first.is_none() && !recover.is_cancelled() {
        collect.cancel();
        take_leave(&cluster).await;
    }
    let ended = tasks.stop(first, &stop).await;
    browser.close().await;
    cluster.shutdown().await;
    ended.map(|()| if recover.is_cancelled() { After::Recover } else { After::End })
}

/// Ends the process whose directory other members know to be an old one or a copy, and the one whose Raft has stopped:
/// what supervises it starts another, which goes on as soon as the disk lets it.
async fn fence(cluster: Cluster, stop: CancellationToken) -> anyhow::Result<()> {
    tokio::select! {
        why = cluster.fenced() => Err(anyhow!(why)),
        why = failed(cluster.watch()) => Err(anyhow!("Raft has stopped: {why}")),
        () = stop.cancelled() => Ok(()),
    }
}

/// Waits until Raft has stopped for good, and answers why.
async fn failed(mut standing: watch::Receiver<Standing>) -> String {
    loop {
        if let Some(why) = &standing.borrow_and_update().failed {
            return why.clone();
        }
        if standing.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// What the console does when told to enrol.
fn enroll_with(cluster: Cluster) -> console::Enroll {
    Box::new(move |url, code, pin| Box::pin(upstream::enroll(cluster.clone(), url, code, pin)))
}

/// How upstream gets a bundle: without what identifies devices, and without what is hidden.
fn bundle_of(site: &Arc<Site>) -> upstream::Bundler {
    let site = Arc::clone(site);
    Box::new(move || console::bundle::stream(&site, Wanted { with_devices: false, upstream: true }))
}

async fn open(options: NodeOptions) -> anyhow::Result<Cluster> {
    let start = Start {
        data_dir: options.data_dir,
        name: options.name,
        zone: options.zone,
        listen: options.listen,
        advertise: options.advertise,
        witness: options.witness,
    };
    match (options.init, options.join) {
        (Some(name), _) => Ok(Cluster::init(start, &name).await?),
        (None, Some((seed, token))) => Ok(Cluster::join(start, &seed, &token).await?),
        (None, None) => Ok(Cluster::open(start).await?),
    }
}

/// The long-lived tasks; the end of any of them is the end of all.
#[derive(Default)]
struct Tasks(JoinSet<(&'static str, anyhow::Result<()>)>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = anyhow::Result<()>> + Send + 'static) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// Waits for a signal or the first task that ends.
    async fn until_told(&mut self) -> anyhow::Result<Option<Ended>> {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        Ok(tokio::select! {
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
            ended = self.0.join_next() => ended,
        })
    }

    /// Stops all others, and says what `first` means.
    async fn stop(mut self, first: Option<Ended>, stop: &CancellationToken) -> anyhow::Result<()> {
        stop.cancel();
        let drained = tokio::time::timeout(STOPPING, async { while self.0.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!("some tasks did not stop in time");
        }
        match first {
            None => Ok(()),
            Some(Ok((name, Ok(())))) => Err(anyhow!("the {name} task ended")),
            Some(Ok((name, Err(error)))) => Err(error.context(format!("the {name} task failed"))),
            Some(Err(error)) => Err(anyhow!(error).context("a task panicked")),
        }
    }
}

/// What a task came to.
type Ended = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

/// Before a polite end: another node leads, and what this one learnt is committed. Nobody waits long for
/// it: without quorum neither can be.
async fn take_leave(cluster: &Cluster) {
    let patience = tokio::time::Instant::now() + LEAVING;
    cluster.hand_over(LEAVING).await;
    let spool = cluster.spool();
    while !spool.is_empty() && cluster.watch().borrow().quorum && tokio::time::Instant::now() < patience {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// How long a leave may take.
const LEAVING: std::time::Duration = std::time::Duration::from_secs(2);

/// How long tasks may take to stop.
const STOPPING: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_node_whose_raft_has_stopped_does_not_live_on() {
        let (tell, standing) = watch::channel(Standing::default());
        let ending = failed(standing);
        tokio::pin!(ending);
        assert!(futures::poll!(ending.as_mut()).is_pending());
        tell.send_modify(|now| now.failed = Some("no space left on device".to_owned()));
        assert_eq!(ending.await, "no space left on device");
    }
}
