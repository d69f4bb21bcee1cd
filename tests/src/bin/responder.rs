//! `quire-responder`: a network of simulated devices behind one socket, for benchmarks and for evidence of
//! politeness. Answers until SIGTERM or SIGINT; writes what it saw to `--seen FILE` then and on SIGUSR1.

use anyhow::{Context, Result};
use clap::Parser;
use quire_tests::responder::{Responder, Seen, Spec};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::signal::unix::{SignalKind, signal};

/// A network of simulated devices behind one socket.
#[derive(Debug, Parser)]
#[command(name = "quire-responder", version)]
struct Options {
    #[command(flatten)]
    spec: Spec,
    /// Where to write what came and went, as JSON.
    #[arg(long)]
    seen: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "quire-responder: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<()> {
    let mut usr1 = signal(SignalKind::user_defined1()).context("wait for SIGUSR1")?;
    let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let responder = Responder::bind(&options.spec)?;
    let seen = responder.seen();
    let stop = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&stop);
    let mut served = tokio::task::spawn_blocking(move || responder.serve(&told));
    let mut stdout = std::io::stdout();
    stdout.write_all(b"ready\n").and_then(|()| stdout.flush()).context("say that it is ready")?;
    loop {
        tokio::select! {
            ended = &mut served => return ended.context("serve")?,
            _ = usr1.recv() => write(&seen, options.seen.as_deref())?,
            _ = term.recv() => break,
            interrupted = tokio::signal::ctrl_c() => { interrupted.context("wait for SIGINT")?; break }
        }
    }
    stop.store(true, Ordering::Relaxed);
    served.await.context("serve")??;
    write(&seen, options.seen.as_deref())
}

/// Written beside and renamed, so that a reader never sees half a file.
fn write(seen: &Mutex<Seen>, file: Option<&Path>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let beside = file.with_extension("new");
    let text = serde_json::to_vec(&seen).context("write down what was seen")?;
    std::fs::write(&beside, text).with_context(|| format!("write {}", beside.display()))?;
    std::fs::rename(&beside, file).with_context(|| format!("write {}", file.display()))
}
