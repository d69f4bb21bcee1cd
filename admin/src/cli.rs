//! The command line of `quire-admin`. Results go to stdout, everything else to stderr; 0 done, 1 failed, 2 wrong
//! usage. Commands on a data directory use its database directly, whether a server runs on it or not.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::jobs::JobKind;
use crate::print::{Column, Format, Printer, is_broken_pipe};
use crate::store::Store;
use crate::tls::Authority;
use crate::users::Role;
use crate::{Options, clock};

/// Settings of the largest customer are a few KiB.
const SETTINGS_OCTETS_MAX: u64 = 1 << 20;
/// Of a site's name.
const NAME_MAX: usize = 64;

#[derive(Debug, Parser)]
#[command(name = "quire-admin", version, about = "The Web Admin: where the clusters of all sites report to")]
struct Cli {
    /// Where the database and the keys are
    #[arg(long, global = true, env = "QUIRE_DATA_DIR", value_name = "D")]
    data_dir: Option<PathBuf>,
    /// How logs are written to stderr
    #[arg(long, global = true, env = "QUIRE_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Receive the sites' clusters, and serve the console
    Serve(Serve),
    /// Add, list and revoke sites
    Site {
        #[command(subcommand)]
        command: SiteCommand,
    },
    /// List devices with their latest reading
    Devices(List),
    /// List readings, each once, in the order of their arrival
    Readings(List),
    /// List alerts that sites report, open ones first
    Alerts(List),
    /// List the live streams, one a site
    Links(List),
    /// List jobs
    Jobs(List),
    /// List the support bundles that sites sent, or fetch one
    #[command(args_conflicts_with_subcommands = true)]
    Bundles {
        #[command(flatten)]
        list: List,
        #[command(subcommand)]
        command: Option<BundleCommand>,
    },
    /// Ask a site to do something
    Job {
        /// The site's name
        site: String,
        #[command(subcommand)]
        command: JobCommand,
    },
    /// Make tokens for the console and its API
    ApiToken {
        #[command(subcommand)]
        command: TokenCommand,
    },
}

#[derive(Args, Debug)]
struct Serve {
    /// Where clusters reach it
    #[arg(long, env = "QUIRE_LISTEN", value_name = "ADDR:PORT", default_value = "0.0.0.0:443")]
    listen: SocketAddr,
    /// Where people reach it; a loopback address needs no token to read
    #[arg(long, env = "QUIRE_CONSOLE", value_name = "ADDR:PORT", default_value = "127.0.0.1:8480")]
    console: SocketAddr,
    /// Another database than the one in the data directory (not supported by this version)
    #[arg(long, env = "QUIRE_DATABASE", value_name = "URL", hide_env_values = true)]
    database: Option<String>,
}

#[derive(Debug, Subcommand)]
enum SiteCommand {
    /// Print the one-time code and the pin for `quire enroll`
    Add {
        /// Unique among sites that are not revoked
        name: String,
    },
    /// List sites
    List {
        /// How to print
        #[arg(long, env = "QUIRE_FORMAT", value_enum, default_value_t)]
        format: Format,
    },
    /// End a site's right to report; its stream is cut at once
    Revoke {
        /// The site's name, which is free again afterwards
        name: String,
    },
}

#[derive(Args, Debug)]
struct List {
    /// Of this site alone
    #[arg(long, env = "QUIRE_SITE", value_name = "NAME")]
    site: Option<String>,
    /// How to print
    #[arg(long, env = "QUIRE_FORMAT", value_enum, default_value_t)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// Sweep a segment, or all of them
    Sweep {
        /// CIDR
        segment: Option<String>,
    },
    /// Read one device now
    Read {
        /// Its id
        device: String,
    },
    /// Apply settings
    Settings {
        /// TOML
        file: PathBuf,
    },
    /// Put a script on the site, which tries it before it is in force
    Script {
        /// Rhai
        file: PathBuf,
    },
    /// Have the site send a support bundle: no credentials, and nothing that identifies devices; `bundles` lists it
    Bundle,
    /// Keep the stream open for remote service, or go back to check-ins
    ServiceMode {
        /// Which
        mode: Switch,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Switch {
    On,
    Off,
}

#[derive(Debug, Subcommand)]
enum BundleCommand {
    /// Copy a bundle to a file, readable to its owner alone
    Get {
        /// As `bundles` prints it
        id: String,
        /// A .tar.zst
        file: PathBuf,
        /// Take the place of a file that is there
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Print a new token, which is shown only now
    Create {
        /// What it allows
        #[arg(long, env = "QUIRE_ROLE", value_enum)]
        role: Role,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_format);
    // Fails only when somebody else installed one, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let Some(dir) = &cli.data_dir else {
        let missing = "the option --data-dir D (or QUIRE_DATA_DIR) is required";
        Cli::command().error(ErrorKind::MissingRequiredArgument, missing).exit();
    };
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")
        .and_then(|runtime| runtime.block_on(run(&cli.command, dir)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            say(io::stderr(), &format!("quire-admin: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn start_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(io::IsTerminal::is_terminal(&io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
}

/// To a stream whose reader may be gone.
fn say(mut stream: impl io::Write, text: &str) {
    let _ = writeln!(stream, "{text}");
}

async fn run(command: &Command, dir: &Path) -> anyhow::Result<()> {
    match command {
        Command::Serve(options) => serve(dir, options).await,
        Command::Site { command: SiteCommand::Add { name } } => add_site(dir, name).await,
        Command::Site { command: SiteCommand::Revoke { name } } => revoke_site(&open(dir).await?, name).await,
        Command::Site { command: SiteCommand::List { format } } => list_sites(dir, *format).await,
        Command::Devices(list) => list_devices(&open(dir).await?, list).await,
        Command::Readings(list) => list_readings(&open(dir).await?, list).await,
        Command::Links(list) => list_links(dir, list).await,
        Command::Jobs(list) => {
            let store = open(dir).await?;
            check_site(&store, list).await?;
            let jobs = store.jobs(list.site.as_deref()).await?;
            print(list.format, JOBS, &jobs)
        }
        Command::Alerts(list) => {
            let store = open(dir).await?;
            check_site(&store, list).await?;
            print(list.format, ALERTS, &store.alerts(list.site.as_deref(), -1, 0).await?)
        }
        Command::Bundles { list, command: None } => {
            let store = open(dir).await?;
            check_site(&store, list).await?;
            print(list.format, BUNDLES, &store.bundles(list.site.as_deref()).await?)
        }
        Command::Bundles { command: Some(BundleCommand::Get { id, file, force }), .. } => {
            let octets = open(dir).await?.get_bundle(id, file, *force).await?;
            say(io::stdout(), &format!("{}: {octets} octets", file.display()));
            Ok(())
        }
        Command::Job { site, command } => add_job(dir, site, command).await,
        Command::ApiToken { command: TokenCommand::Create { role } } => {
            let token = open(dir).await?.create_api_token(*role, clock::now()).await?;
            say(io::stdout(), &token);
            Ok(())
        }
    }
}

async fn serve(dir: &Path, options: &Serve) -> anyhow::Result<()> {
    if options.database.is_some() {
        bail!("--database is not supported by this version: the database is admin.db in the data directory");
    }
    let stop = CancellationToken::new();
    let signalled = stop.clone();
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("listen for SIGTERM")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        tracing::info!("stopping");
        signalled.cancel();
    });
    let options = Options { data_dir: dir.to_owned(), listen: options.listen, console: options.console };
    crate::run(&options, stop).await
}

/// The database of a directory that has one: a mistyped directory must not become a new Web Admin.
async fn open(dir: &Path) -> anyhow::Result<Store> {
    if !dir.join("admin.db").exists() {
        bail!("{} is not a Web Admin's data directory: `serve` or `site add` makes one", dir.display());
    }
    Store::open(dir).await.with_context(|| format!("open the database in {}", dir.display()))
}

async fn add_site(dir: &Path, name: &str) -> anyhow::Result<()> {
    let plain = |c: char| !c.is_control() && !matches!(c, '/' | '?' | '#' | '\\');
    if name.trim() != name || name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
        bail!("a site's name has 1 to {NAME_MAX} octets, without / ? # \\ and without space at its ends");
    }
    let authority = Authority::open(dir, clock::now())?;
    let store = Store::open(dir).await.with_context(|| format!("open the database in {}", dir.display()))?;
    let code = store.add_site(name, clock::now()).await?;
    say(io::stdout(), &format!("code: {code}\npin: {}", authority.pin()));
    Ok(())
}

async fn revoke_site(store: &Store, name: &str) -> anyhow::Result<()> {
    if !store.revoke_site(name, clock::now()).await? {
        bail!("no site named `{name}` that is not revoked");
    }
    say(io::stderr(), &format!("revoked {name}"));
    Ok(())
}

async fn check_site(store: &Store, list: &List) -> anyhow::Result<()> {
    let Some(name) = &list.site else { return Ok(()) };
    let known = store.sites().await?.iter().any(|site| site.name.eq_ignore_ascii_case(name));
    if known { Ok(()) } else { bail!("no site named `{name}`") }
}

async fn list_sites(dir: &Path, format: Format) -> anyhow::Result<()> {
    let mut sites = open(dir).await?.sites().await?;
    let served = crate::is_served(dir);
    for site in &mut sites {
        site.connected &= served;
    }
    print(format, SITES, &sites)
}

async fn list_links(dir: &Path, list: &List) -> anyhow::Result<()> {
    let store = open(dir).await?;
    check_site(&store, list).await?;
    let mut links = store.links(list.site.as_deref()).await?;
    // Rows that a killed server left behind are not live.
    links.retain(|_| crate::is_served(dir));
    print(list.format, LINKS, &links)
}

async fn list_devices(store: &Store, list: &List) -> anyhow::Result<()> {
    check_site(store, list).await?;
    let mut printer = Printer::new(list.format, DEVICES, buffered())?;
    store.each_device(list.site.as_deref(), |device| printer.line(device)).await?;
    printer.finish()
}

async fn list_readings(store: &Store, list: &List) -> anyhow::Result<()> {
    check_site(store, list).await?;
    let mut printer = Printer::new(list.format, READINGS, buffered())?;
    store.each_reading(list.site.as_deref(), |reading| printer.line(reading)).await?;
    printer.finish()
}

async fn add_job(dir: &Path, site: &str, command: &JobCommand) -> anyhow::Result<()> {
    let kind = match command {
        JobCommand::Sweep { segment } => JobKind::Sweep(segment.clone().unwrap_or_default()),
        JobCommand::Read { device } => JobKind::Read(device.clone()),
        JobCommand::Settings { file } => JobKind::Settings(read_settings(file)?),
        JobCommand::ServiceMode { mode } => JobKind::ServiceMode(matches!(mode, Switch::On)),
        JobCommand::Script { file } => JobKind::Script(read_script(file)?),
        JobCommand::Bundle => JobKind::Bundle,
    };
    let store = open(dir).await?;
    let Some(key) = store.site_key(site).await? else { bail!("no site named `{site}`") };
    say(io::stdout(), &store.add_job(key, &kind, clock::now()).await?);
    Ok(())
}

fn read_script(file: &Path) -> anyhow::Result<String> {
    /// What a site takes; anything near it is a mistake.
    const LONGEST: usize = 64 * 1024;
    let source = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    if source.len() > LONGEST {
        bail!("{} has {} octets: a script has {LONGEST} at most", file.display(), source.len());
    }
    Ok(source)
}

fn read_settings(file: &Path) -> anyhow::Result<String> {
    let size = std::fs::metadata(file).with_context(|| format!("read {}", file.display()))?.len();
    if size > SETTINGS_OCTETS_MAX {
        bail!("{} is longer than {SETTINGS_OCTETS_MAX} octets", file.display());
    }
    std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))
}

fn buffered() -> io::BufWriter<io::Stdout> {
    io::BufWriter::new(io::stdout())
}

fn print<T: serde::Serialize>(format: Format, columns: &'static [Column], lines: &[T]) -> anyhow::Result<()> {
    let mut printer = Printer::new(format, columns, buffered())?;
    for line in lines {
        printer.line(line)?;
    }
    printer.finish()
}

const SITES: &[Column] = &[
    ("SITE", "/site"),
    ("STATE", "/state"),
    ("CONNECTED", "/connected"),
    ("CLUSTER", "/cluster"),
    ("EPOCH", "/epoch"),
    ("THROUGH", "/through"),
    ("DEVICES", "/devices"),
    ("READINGS", "/readings"),
    ("LAST MESSAGE", "/last_message"),
];
const LINKS: &[Column] = &[
    ("SITE", "/site"),
    ("NODE", "/node"),
    ("EPOCH", "/epoch"),
    ("MODE", "/mode"),
    ("SINCE", "/since"),
    ("LAST MESSAGE", "/last_message"),
];
const DEVICES: &[Column] = &[
    ("SITE", "/site"),
    ("ID", "/id"),
    ("ADDRESS", "/address"),
    ("MODEL", "/model"),
    ("SERIAL", "/serial"),
    ("STATUS", "/status"),
    ("TOTAL", "/counters/total"),
    ("METERED", "/metered_at"),
];
const READINGS: &[Column] = &[
    ("SITE", "/site"),
    ("ID", "/id"),
    ("DEVICE", "/device"),
    ("AT", "/at"),
    ("NODE", "/node"),
    ("EPOCH", "/epoch"),
    ("STATUS", "/status"),
    ("TOTAL", "/counters/total"),
    ("MONO", "/counters/mono"),
    ("COLOR", "/counters/color"),
];
const JOBS: &[Column] = &[
    ("SITE", "/site"),
    ("ID", "/id"),
    ("KIND", "/kind"),
    ("ARGUMENT", "/argument"),
    ("STATE", "/state"),
    ("CREATED", "/created_at"),
    ("CLOSED", "/closed_at"),
    ("DETAIL", "/detail"),
];
const ALERTS: &[Column] = &[
    ("SITE", "/site"),
    ("DEVICE", "/device"),
    ("NAME", "/name"),
    ("STATE", "/state"),
    ("RAISED", "/raised_at"),
    ("CLEARED", "/cleared_at"),
    ("WHAT", "/what"),
    ("ID", "/id"),
];
const BUNDLES: &[Column] = &[
    ("SITE", "/site"),
    ("ID", "/id"),
    ("OCTETS", "/octets"),
    ("SHA256", "/sha256"),
    ("RECEIVED", "/received_at"),
];
