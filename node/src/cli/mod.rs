//! The command line: what can be typed, and which room does it.
//!
//! Results go to stdout, everything else to stderr. Exit status 0 done, 1 failed, 2 wrong usage.

pub(crate) mod args;
mod devices;
mod discover;
mod doctor;
mod output;
mod remote;
mod rescue;
mod rotate;
mod script;
mod secret;

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{CommandFactory as _, FromArgMatches as _};

use args::{Arguments, Command};

/// Runs the program; the only function of `main`.
pub fn main() -> ExitCode {
    let matches = match args::with_environment(Arguments::command()).try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let status = u8::try_from(error.exit_code()).unwrap_or(2);
            // Nothing is left to tell when the terminal is gone.
            drop(error.print());
            return ExitCode::from(status);
        }
    };
    secret::warn_of_clear_text(&matches);
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // `quire devices | head`: who reads has enough, and that is no failure of ours.
        Err(error) if output::reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::from(if error.is::<args::Usage>() { 2 } else { 1 })
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    // A second installation in one process (tests) keeps the first.
    drop(rustls::crypto::ring::default_provider().install_default());
    let default = match arguments.command {
        // What openraft warns of, such as a heartbeat that took long, the cluster deals with by itself; and a heartbeat
        // that outlives its leadership by a moment calls that an error.
        Command::Node(_) => "info,openraft=error,openraft::core::heartbeat=off",
        _ => "warn",
    };
    crate::telemetry::init(arguments.log_format, default);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(dispatch(arguments))
}

async fn dispatch(arguments: Arguments) -> anyhow::Result<()> {
    let Arguments { data_dir, format, log_format, command } = arguments;
    match command {
        Command::Discover(discover) => discover::run(*discover, format).await,
        Command::Node(node) => rescue::node(args::start(data_dir, *node)?, log_format).await,
        Command::Script { command } => script::run(data_dir.as_deref(), command, format).await,
        command => {
            let data_dir = data_dir.ok_or_else(|| args::Usage("--data-dir is missing".to_owned()))?;
            let remote = match command {
                Command::Doctor => return doctor::run(&data_dir, format).await,
                Command::Bundle { file, with_devices, force } => {
                    return doctor::bundle(&data_dir, &file, with_devices, force).await;
                }
                Command::Recover { .. } => return rescue::recover(&data_dir).await,
                Command::Backup { file, passphrase } => {
                    return rescue::backup(&data_dir, &file, passphrase).await;
                }
                Command::Restore(restore) => return rescue::restore(data_dir, *restore).await,
                remote => remote,
            };
            remote::run(&data_dir, remote, format).await
        }
    }
}
