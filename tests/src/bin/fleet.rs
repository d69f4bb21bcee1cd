//! `quire-fleet`: simulated printers and other SNMP devices on loopback addresses, for tests, demos and
//! benchmarks. Answers until SIGTERM or SIGINT; writes what the devices saw to `--count-file` then, and
//! on SIGUSR1.

use anyhow::{Context, Result};
use clap::Parser;
use quire_tests::fleet::{Faults, Fleet, Spec};
use quire_tests::printer::Device;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use tokio::signal::unix::{SignalKind, signal};

/// Simulated printers and other SNMP devices on loopback addresses.
#[derive(Debug, Parser)]
#[command(name = "quire-fleet", version)]
struct Options {
    /// Address of the first device.
    #[arg(long, default_value = "127.2.0.1")]
    base: Ipv4Addr,
    /// How many printers.
    #[arg(long, default_value_t = 200)]
    printers: usize,
    /// How many switches, servers, UPS and cameras.
    #[arg(long, default_value_t = 50)]
    others: usize,
    /// UDP port of all.
    #[arg(long, default_value_t = 1161)]
    port: u16,
    /// Devices in a /24 before the next is begun.
    #[arg(long, default_value_t = 254, value_parser = clap::value_parser!(u8).range(1..=254))]
    per_net: u8,
    /// Read community.
    #[arg(long, default_value = "public")]
    community: String,
    /// Decides models, serials, addresses, counters and levels.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How fast the counters grow.
    #[arg(long, default_value_t = 6)]
    pages_per_minute: u64,
    /// Worker threads.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Printers that sleep after 60 s and take 3 s to wake.
    #[arg(long, default_value_t = 0)]
    sleepy: usize,
    /// Printers that never answer.
    #[arg(long, default_value_t = 0)]
    silent: usize,
    /// Printers that speak SNMPv1 only.
    #[arg(long, default_value_t = 0)]
    v1_only: usize,
    /// Printers that do not answer GETBULK.
    #[arg(long, default_value_t = 0)]
    bulk_broken: usize,
    /// Printers that lose 20 % of requests.
    #[arg(long, default_value_t = 0)]
    lossy: usize,
    /// Printers that answer after 400 ms.
    #[arg(long, default_value_t = 0)]
    slow: usize,
    /// Print what would be simulated, one JSON object a line, and exit.
    #[arg(long)]
    list: bool,
    /// Write the same lines to a file, then serve.
    #[arg(long)]
    list_file: Option<PathBuf>,
    /// Where to write what each device saw.
    #[arg(long)]
    count_file: Option<PathBuf>,
}

impl Options {
    fn spec(&self) -> Spec {
        Spec {
            base: self.base,
            port: self.port,
            printers: self.printers,
            others: self.others,
            per_net: self.per_net,
            community: self.community.clone(),
            seed: self.seed,
            pages_per_minute: self.pages_per_minute,
            threads: self.threads,
            faults: Faults {
                sleepy: self.sleepy,
                silent: self.silent,
                v1_only: self.v1_only,
                bulk_broken: self.bulk_broken,
                lossy: self.lossy,
                slow: self.slow,
            },
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let options = Options::parse();
    let spec = options.spec();
    if options.list {
        let devices = spec.devices()?;
        return write_lines(std::io::stdout().lock(), devices.iter().map(Device::truth));
    }
    let mut usr1 = signal(SignalKind::user_defined1()).context("wait for SIGUSR1")?;
    let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let fleet = Fleet::start(&spec)?;
    if let Some(file) = &options.list_file {
        write_file(file, fleet.truth())?;
    }
    let ready =
        format!("ready: {} devices listen on port {} from {}\n", fleet.truth().len(), spec.port, spec.base);
    let mut stdout = std::io::stdout();
    stdout.write_all(ready.as_bytes()).and_then(|()| stdout.flush()).context("say that it is ready")?;
    loop {
        tokio::select! {
            _ = usr1.recv() => count(&fleet, options.count_file.as_deref())?,
            _ = term.recv() => break,
            interrupted = tokio::signal::ctrl_c() => { interrupted.context("wait for SIGINT")?; break }
        }
    }
    count(&fleet, options.count_file.as_deref())
}

fn count(fleet: &Fleet, file: Option<&Path>) -> Result<()> {
    file.map_or(Ok(()), |file| write_file(file, &fleet.counts()))
}

/// Written beside and renamed, so that a reader never sees half a file.
fn write_file<T: serde::Serialize>(file: &Path, rows: &[T]) -> Result<()> {
    let beside = file.with_extension("new");
    let handle = std::fs::File::create(&beside).with_context(|| format!("create {}", beside.display()))?;
    write_lines(std::io::BufWriter::new(handle), rows)?;
    std::fs::rename(&beside, file).with_context(|| format!("write {}", file.display()))
}

fn write_lines<T: serde::Serialize>(mut out: impl Write, rows: impl IntoIterator<Item = T>) -> Result<()> {
    for row in rows {
        serde_json::to_writer(&mut out, &row).context("write a line")?;
        out.write_all(b"\n").context("write a line")?;
    }
    out.flush().context("write the lines")
}
