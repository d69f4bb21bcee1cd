//! The process of the browser: started confined, weighed, killed with all its children, its profile removed.
//!
//! Chromium is started by `setpriv --pdeathsig KILL`, so that the kernel kills it when this node ends in whatever way,
//! `kill -9` included; its children end when it is gone. The signal follows the thread that started it, so one thread
//! does nothing but start it and wait. A node that runs as root starts it as `nobody`: its own sandbox then works, and
//! what breaks out of it owns nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chromiumoxide::browser::Browser as Cdp;
use chromiumoxide::cdp::browser_protocol::browser::BrowserContextId;
use chromiumoxide::cdp::browser_protocol::target::CreateBrowserContextParams;
use chromiumoxide::handler::HandlerConfig;
use futures::StreamExt as _;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid, User};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::proxy::Proxy;
use super::{BrowserMiss, CLOSING, SECONDS, WEIGHING};

/// How long Chromium may take to say where it listens: 9 s were seen at the first start of a busy machine.
const STARTING: Duration = Duration::from_secs(30);
const LOOKING: Duration = Duration::from_millis(50);
/// The heap of a page's scripts, megabytes; a page that wants more loses its process.
const HEAP: u32 = 128;

/// Who may be asked past the proxy. Without this, loopback may.
const NOBODY: &str = "<-loopback>";

/// Flags that do not depend on anything. Chromium has neither a network nor a reason to look for one.
const FLAGS: &[&str] = &[
    "--headless",
    "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-sync",
    "--disable-extensions",
    "--disable-client-side-phishing-detection",
    "--disable-search-engine-choice-screen",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-pings",
    "--metrics-recording-only",
    "--disable-breakpad",
    "--block-new-web-contents",
    "--deny-permission-prompts",
    "--disable-notifications",
    "--disable-3d-apis",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--mute-audio",
    "--password-store=basic",
    "--use-mock-keychain",
    "--window-size=1280,1024",
    "--disable-features=MediaRouter,DialMediaRouteProvider,OptimizationHints,OptimizationGuideModelDownloading,\
     Translate,AutofillServerCommunication,CertificateTransparencyComponentUpdater,HttpsUpgrades,\
     HttpsFirstBalancedModeAutoEnable,LocalNetworkAccessChecks,WebRtcHideLocalIpsWithMdns",
];

/// Chromium and setpriv, where both are installed. Debian's `chromium` is a script that adds flags of its own, so the
/// program behind it goes first.
pub(super) fn programs() -> Option<(PathBuf, PathBuf)> {
    let anywhere = |name: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file())
    };
    let fixed = ["/usr/lib/chromium/chromium", "/usr/lib64/chromium-browser/chromium-browser"];
    let chromium = fixed.iter().map(PathBuf::from).find(|file| file.is_file());
    let chromium = chromium.or_else(|| {
        ["chromium", "chromium-browser", "google-chrome-stable"].iter().find_map(|name| anywhere(name))
    })?;
    Some((chromium, anywhere("setpriv")?))
}

/// A browser that runs.
pub(super) struct Running {
    pub(super) cdp: Cdp,
    process: Process,
    /// Of the browser itself; pages have proxies of their own.
    _proxy: Proxy,
    /// Carries messages until the connection breaks.
    handler: JoinHandle<()>,
}

impl Running {
    /// Starts one, with a profile of its own below `place`.
    pub(super) async fn start(place: &Path) -> Result<Running, BrowserMiss> {
        let (chromium, setpriv) = programs().ok_or(BrowserMiss::Missing)?;
        let broken =
            |what: &str, reason: &dyn std::fmt::Display| BrowserMiss::Broken(format!("{what}: {reason}"));
        let proxy = Proxy::open(None).await.map_err(|error| broken("open its proxy", &error))?;
        let profile = Profile::make(place).map_err(|error| broken("make a profile", &error))?;
        let mut command = Command::new(setpriv);
        command.arg("--pdeathsig").arg("KILL");
        if let Some((user, group)) = profile.owner {
            command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
        }
        command.arg("--").arg(chromium).args(FLAGS);
        command
            .arg(format!("--proxy-server=http://{}", proxy.address))
            .arg(format!("--proxy-bypass-list={NOBODY}"));
        command.arg(format!("--user-data-dir={}", profile.path.join("data").display()));
        command.arg(format!("--js-flags=--max-old-space-size={HEAP}")).arg("about:blank");
        // Nothing of this node's environment, which may hold secrets.
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LANG", "C.UTF-8");
        command.env("HOME", &profile.path).env("TMPDIR", &profile.path);
        let log = std::fs::File::create(profile.path.join("log"))
            .map_err(|error| broken("open its log", &error))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).current_dir("/");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let process = Process::start(command, profile).await.map_err(|error| broken("start it", &error))?;
        let address = process.address().await?;
        let config = HandlerConfig { viewport: None, request_timeout: SECONDS, ..HandlerConfig::default() };
        let (cdp, mut handler) =
            Cdp::connect_with_config(address, config).await.map_err(|error| broken("talk to it", &error))?;
        let handler = tokio::spawn(async move { while let Some(Ok(())) = handler.next().await {} });
        tracing::info!(pid = process.pid.as_raw(), "Chromium runs for pages that need JavaScript");
        Ok(Running { cdp, process, _proxy: proxy, handler })
    }

    pub(super) fn alive(&self) -> bool {
        !self.process.gone.is_cancelled() && !self.handler.is_finished()
    }

    /// Kills it and waits until it is gone.
    pub(super) async fn end(&self) {
        self.handler.abort();
        self.process.end().await;
    }

    /// Comes back when its processes hold more than so many octets.
    pub(super) async fn too_heavy(&self, most: u64) {
        let mut look = tokio::time::interval(WEIGHING);
        loop {
            look.tick().await;
            if self.process.weight() > most {
                return;
            }
        }
    }
}

#[cfg(test)]
impl Running {
    /// How many processes it has.
    pub(super) fn processes(&self) -> usize {
        self.process.members().count()
    }

    pub(super) fn group(&self) -> i32 {
        self.process.pid.as_raw()
    }

    pub(super) fn profile(&self) -> PathBuf {
        self.process.profile.path.clone()
    }
}

/// A context of one page: nothing of it is seen by another one. It goes away with its pages when this is dropped.
pub(super) struct Context {
    pub(super) running: Arc<Running>,
    pub(super) id: BrowserContextId,
    /// Where everything ends that its pages ask for past Fetch.
    pub(super) proxy: Proxy,
    open: bool,
}

impl Context {
    /// A context for the pages of one device, which is at `own` (host and port).
    pub(super) async fn open(running: &Arc<Running>, own: String) -> Result<Context, BrowserMiss> {
        let proxy = Proxy::open(Some(own))
            .await
            .map_err(|error| BrowserMiss::Broken(format!("open a proxy: {error}")))?;
        let params = CreateBrowserContextParams::builder()
            .dispose_on_detach(true)
            .proxy_server(format!("http://{}", proxy.address))
            .proxy_bypass_list(NOBODY)
            .build();
        let made = tokio::time::timeout(CLOSING, running.cdp.create_browser_context(params)).await;
        match made {
            Ok(Ok(id)) => Ok(Context { running: Arc::clone(running), id, proxy, open: true }),
            Ok(Err(error)) => Err(BrowserMiss::Broken(format!("open a context: {error}"))),
            Err(_) => Err(BrowserMiss::Broken("it does not answer".to_owned())),
        }
    }

    /// Ends its pages; true when the browser says that they are gone.
    pub(super) async fn close(mut self) -> bool {
        self.open = false;
        dispose(&self.running, self.id.clone()).await
    }
}

impl Drop for Context {
    /// Whoever waited for the page went away.
    fn drop(&mut self) {
        if self.open {
            let (running, id) = (Arc::clone(&self.running), self.id.clone());
            tokio::spawn(async move {
                if !dispose(&running, id).await {
                    running.end().await;
                }
            });
        }
    }
}

async fn dispose(running: &Running, id: BrowserContextId) -> bool {
    matches!(tokio::time::timeout(CLOSING, running.cdp.dispose_browser_context(id)).await, Ok(Ok(())))
}

/// Chromium's processes: a group of their own.
struct Process {
    pid: Pid,
    /// Cancelled when the first of them has ended.
    gone: CancellationToken,
    profile: Profile,
}

impl Process {
    async fn start(mut command: Command, profile: Profile) -> std::io::Result<Process> {
        let gone = CancellationToken::new();
        let (ended, (tell, told)) = (gone.clone(), oneshot::channel());
        std::thread::Builder::new().name("browser".to_owned()).spawn(move || {
            let started = command.spawn();
            let child = match started {
                Ok(child) => {
                    drop(tell.send(Ok(child.id())));
                    Some(child)
                }
                Err(error) => {
                    drop(tell.send(Err(error)));
                    None
                }
            };
            // This thread lives exactly as long as Chromium.
            drop(child.map(|mut child| child.wait()));
            ended.cancel();
        })?;
        let pid = told.await.map_err(|_| std::io::Error::other("the thread ended"))??;
        let pid = i32::try_from(pid).map_err(std::io::Error::other)?;
        Ok(Process { pid: Pid::from_raw(pid), gone, profile })
    }

    /// Where it listens, as it writes into its profile; or why it does not.
    async fn address(&self) -> Result<String, BrowserMiss> {
        let file = self.profile.path.join("data/DevToolsActivePort");
        let starting = async {
            loop {
                let text = tokio::fs::read_to_string(&file).await.unwrap_or_default();
                if let Some((port, path)) = text.trim_end().split_once('\n') {
                    return Some(format!("ws://127.0.0.1:{port}{path}"));
                }
                tokio::select! {
                    () = self.gone.cancelled() => return None,
                    () = tokio::time::sleep(LOOKING) => {}
                }
            }
        };
        match tokio::time::timeout(STARTING, starting).await {
            Ok(Some(address)) => Ok(address),
            Ok(None) => Err(BrowserMiss::Broken(format!("it ended: {}", self.last_words()))),
            Err(_) => Err(BrowserMiss::Broken(format!("it does not start: {}", self.last_words()))),
        }
    }

    fn last_words(&self) -> String {
        let log = std::fs::read(self.profile.path.join("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let line = log.lines().rev().find(|line| !line.trim().is_empty() && !line.contains("dbus"));
        line.unwrap_or("it said nothing").chars().take(300).collect()
    }

    fn kill(&self) {
        // A group whose first process was waited for may be somebody else's.
        if !self.gone.is_cancelled() {
            // What is gone already needs no signal.
            let _ = killpg(self.pid, Signal::SIGKILL);
        }
    }

    async fn end(&self) {
        self.kill();
        if tokio::time::timeout(CLOSING, self.gone.cancelled()).await.is_err() {
            tracing::warn!(pid = self.pid.as_raw(), "Chromium does not end");
        }
        let path = self.profile.path.clone();
        drop(tokio::task::spawn_blocking(move || remove(&path)).await);
    }

    /// The `stat` lines of its processes (proc(5)).
    fn members(&self) -> impl Iterator<Item = PathBuf> {
        let group = self.pid.as_raw().to_string();
        let all = std::fs::read_dir("/proc").into_iter().flatten().flatten().map(|entry| entry.path());
        all.filter(move |path| {
            let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
            // Behind the name, which may hold anything: state, parent, group.
            let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
            fields.next().is_some_and(|state| state != "Z") && fields.nth(1) == Some(group.as_str())
        })
    }

    /// What they hold together without what they share, octets.
    fn weight(&self) -> u64 {
        const PAGE: u64 = 4096;
        let own = |path: PathBuf| {
            let statm = std::fs::read_to_string(path.join("statm")).unwrap_or_default();
            let mut fields = statm.split_whitespace().skip(1).map(|field| field.parse::<u64>().unwrap_or(0));
            fields.next().unwrap_or(0).saturating_sub(fields.next().unwrap_or(0))
        };
        self.members().map(own).sum::<u64>() * PAGE
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        remove(&self.profile.path);
    }
}

/// The directory that a browser writes to, and who it runs as where that is somebody else.
struct Profile {
    path: PathBuf,
    owner: Option<(Uid, Gid)>,
}

const PREFIX: &str = "quire-browser-";

impl Profile {
    /// A new one; what nodes that were killed left there is removed.
    fn make(place: &Path) -> std::io::Result<Profile> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let owner = match Uid::effective().is_root() {
            true => User::from_name("nobody").map_err(std::io::Error::from)?.map(|user| (user.uid, user.gid)),
            false => None,
        };
        // The data directory is closed to everybody else.
        let place = if owner.is_some() { std::env::temp_dir() } else { place.to_owned() };
        std::fs::create_dir_all(&place)?;
        clear(&place);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = place.join(format!("{PREFIX}{}-{count}", std::process::id()));
        // Fails where it exists: nobody can have prepared it.
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&path)?;
        if let Some((user, group)) = owner {
            std::os::unix::fs::lchown(&path, Some(user.as_raw()), Some(group.as_raw()))?;
        }
        Ok(Profile { path, owner })
    }
}

/// Removes the profiles of processes that are gone.
fn clear(place: &Path) {
    for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&entry.path());
        }
    }
}

/// Chromium's last processes may still write while they die.
fn remove(path: &Path) {
    for _ in 0..20 {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => std::thread::sleep(LOOKING),
        }
    }
    tracing::warn!(path = %path.display(), "a profile of Chromium is left");
}
