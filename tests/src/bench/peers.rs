//! Programs of others that do the same, as the distribution packages them: where they are, how they are asked to do
//! it as fast as they can, and what they found.

use super::measure::{Cost, measure};
use super::{PATIENCE, number};
use crate::ber::{self, V2C, pdu};
use crate::cluster::Programs;
use crate::lab::{Far, Lab};
use crate::process::{Process, run, wait};
use crate::responder::Usual;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The near end's own address.
const NEAR: &str = "10.78.0.1";
/// sysDescr.0, what the others ask.
const SYS_DESCR: [u32; 9] = [1, 3, 6, 1, 2, 1, 1, 1, 0];

/// A program of the distribution, by name.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];
    places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file())
}

/// What a sweep by a peer took, and whom it found.
#[derive(Debug)]
pub struct Swept {
    /// What it took.
    pub cost: Cost,
    /// Addresses that answered.
    pub found: BTreeSet<Ipv4Addr>,
}

fn swept(lab: &Lab, program: &Path, args: &[String], output: &Path) -> Result<Swept> {
    let cost = measure(&lab.near(program, args), PATIENCE)?.ok();
    let cost = cost.with_context(|| format!("{} {}", program.display(), args.join(" ")))?;
    let text = std::fs::read_to_string(output).unwrap_or_default();
    // Each has a format of its own; an address of the network is one in all of them.
    let words = text.split_whitespace().filter_map(|word| word.parse::<Ipv4Addr>().ok());
    Ok(Swept { cost, found: words.collect() })
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// zmap with its udp module and so many probes an address, as fast as it can, with its shortest wait at the end.
///
/// # Errors
/// When it is there and fails.
pub fn zmap(lab: &Lab, far: &Far, target: &str, probes: u32) -> Result<Option<Swept>> {
    let (Some(program), true) = (find("zmap"), lab.is_apart()) else { return Ok(None) };
    let question = ber::write_request(V2C, "public", pdu::GET, 1, (0, 0), &[&SYS_DESCR]);
    let hex: String = question.iter().map(|octet| format!("{octet:02x}")).collect();
    let output = lab.scratch("zmap.csv");
    let (port, gateway) = (far.spec.port, lab.gateway()?);
    let mut args = words(&format!(
        "-p {port} -M udp --probe-args=hex:{hex} -P {probes} -i lan0 -G {gateway} -S {NEAR} -b /dev/null -c 1 -r 0 \
         --disable-syslog -q -v 2 -O csv -f saddr -o {}",
        output.display()
    ));
    args.extend(["--output-filter=success = 1 && repeat = 0".to_owned(), target.to_owned()]);
    swept(lab, &program, &args, &output).map(Some)
}

/// onesixtyone with one community and no pause between packets.
///
/// # Errors
/// When it is there and fails.
pub fn onesixtyone(lab: &Lab, far: &Far, first: Ipv4Addr, addresses: u32) -> Result<Option<Swept>> {
    let Some(program) = find("onesixtyone") else { return Ok(None) };
    let (hosts, communities) = (lab.scratch("hosts"), lab.scratch("communities"));
    let address = |n| Ipv4Addr::from(u32::from(first) + n).to_string();
    let list: Vec<String> = (0..addresses).map(address).collect();
    std::fs::write(&hosts, list.join("\n") + "\n").context("write a list of hosts")?;
    std::fs::write(&communities, "public\n").context("write a list of communities")?;
    let output = lab.scratch("onesixtyone.txt");
    let args = words(&format!(
        "-c {} -i {} -o {} -p {} -w 0 -q",
        communities.display(),
        hosts.display(),
        output.display(),
        far.spec.port
    ));
    swept(lab, &program, &args, &output).map(Some)
}

/// masscan with its own SNMP question, at the rate with which it is done first: asked for 1 or 10 million packets a second
/// it took 1.7 and 3.2 times as long.
///
/// # Errors
/// When it is there and fails.
pub fn masscan(lab: &Lab, far: &Far, target: &str) -> Result<Option<Swept>> {
    let (Some(program), true) = (find("masscan"), lab.is_apart()) else { return Ok(None) };
    let output = lab.scratch("masscan.txt");
    let args = words(&format!(
        "{target} -pU:{} --rate 100000 --wait 1 --adapter lan0 --router-mac {} --adapter-ip {NEAR} -oL {}",
        far.spec.port,
        lab.gateway()?,
        output.display()
    ));
    swept(lab, &program, &args, &output).map(Some)
}

/// Why a peer has no number.
#[must_use]
pub fn absence(lab: &Lab, name: &str) -> &'static str {
    match find(name) {
        None => "not installed",
        Some(_) if !lab.is_apart() => "needs a raw socket: not on loopback",
        Some(_) => "not measured",
    }
}

/// Asks a reader for the objects of devices; gives its report.
fn report(lab: &Lab, program: &Path, args: &[String]) -> Result<Value> {
    let cost = measure(&lab.near(program, args), PATIENCE)?.ok()?;
    serde_json::from_str(&cost.stdout).with_context(|| format!("{}: {}", program.display(), cost.stdout))
}

/// `quire-reader` with these arguments.
///
/// # Errors
/// When it fails.
pub fn reader(lab: &Lab, far: &Far, devices: u32, more: &[String]) -> Result<Value> {
    let program = Programs::find()?.path("quire-reader");
    let (first, port) = (far.spec.address(0), far.spec.port);
    let mut args = words(&format!("--first {first} --devices {devices} --port {port}"));
    args.extend_from_slice(more);
    report(lab, &program, &args)
}

/// The small C program against net-snmp's library; `None` where there is no compiler or library.
///
/// # Errors
/// When it is there and fails.
pub fn libsnmp(lab: &Lab) -> Result<Option<PathBuf>> {
    let Some(compiler) = find("cc") else { return Ok(None) };
    if !Path::new("/usr/include/net-snmp/net-snmp-config.h").exists() {
        return Ok(None);
    }
    let source = lab.scratch("netsnmp.c");
    std::fs::write(&source, include_str!("../../bench/netsnmp.c")).context("write the C program")?;
    let program = lab.scratch("netsnmp");
    let args = words(&format!("-O2 -o {} {} -lnetsnmp", program.display(), source.display()));
    run(&compiler, &args, PATIENCE)?.ok().context("compile the C program")?;
    Ok(Some(program))
}

/// How a peer asks for the same objects.
#[derive(Debug, Clone)]
pub struct Ask {
    /// How many objects the answer brings.
    pub objects: usize,
    /// The names in the question.
    pub names: Vec<String>,
    /// non-repeaters and max-repetitions of a GETBULK; `None` for a GET.
    pub repeats: Option<(i64, i64)>,
}

impl Ask {
    /// As peers do: one GET of the very objects that Quire's usual question brings.
    #[must_use]
    pub fn get(usual: &Usual) -> Ask {
        Ask { objects: usual.brought.len(), names: usual.brought.clone(), repeats: None }
    }

    /// Quire's own question.
    #[must_use]
    pub fn same(usual: &Usual) -> Ask {
        let (objects, names) = (usual.brought.len(), usual.names.clone());
        Ask { objects, names, repeats: usual.bulk.then_some(usual.repeats) }
    }

    /// For the table.
    #[must_use]
    pub fn word(&self) -> &'static str {
        if self.repeats.is_some() { "quire's own GETBULK" } else { "GET" }
    }
}

/// Reads with it, `sync` or `async`.
///
/// # Errors
/// When it fails.
pub fn libsnmp_reads(
    lab: &Lab,
    program: &Path,
    far: &Far,
    (how, devices, rounds): (&str, u32, u32),
    ask: &Ask,
) -> Result<Value> {
    let (once, most) = ask.repeats.unwrap_or_default();
    let (first, port, objects) = (far.spec.address(0), far.spec.port, ask.objects);
    let mut args = words(&format!("{how} {first} {devices} {port} {rounds} {objects} {once} {most}"));
    args.extend_from_slice(&ask.names);
    let value = report(lab, program, &args)?;
    ensure!(number(&value, "reads")? > 0.0, "nothing was read: {value}");
    Ok(value)
}

/// A running Prometheus exporter.
#[derive(Debug)]
pub struct Exporter {
    process: Process,
    address: SocketAddr,
}

impl Exporter {
    /// Starts it with two modules: `bench` gets these objects, `printer` walks what its own example does for
    /// printers (uptime, status, names, alerts, covers, supplies) and the total.
    ///
    /// # Errors
    /// When it is there and does not start.
    pub fn start(lab: &Lab, oids: &[String]) -> Result<Option<Exporter>> {
        let Some(program) = find("prometheus-snmp-exporter") else { return Ok(None) };
        let config = lab.scratch("snmp.yml");
        std::fs::write(&config, exporter_config(oids)).context("write the exporter's configuration")?;
        let port = crate::process::free_tcp_port(Ipv4Addr::LOCALHOST.into())?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let args = [
            format!("--config.file={}", config.display()),
            format!("--web.listen-address={address}"),
            "--log.level=info".to_owned(),
        ];
        let line = lab.near(&program, &args);
        let mut process =
            Process::start("exporter", &line.program, &line.args, &lab.scratch("exporter.log"))?;
        wait("the exporter to listen", Duration::from_secs(30), || {
            process.must_run()?;
            ensure!(process.log().contains("istening on"), "{}", process.log());
            Ok(())
        })?;
        Ok(Some(Exporter { process, address }))
    }

    /// Lets it read each device once with a module: its CPU seconds, and how many it read.
    ///
    /// # Errors
    /// When it reads none.
    pub fn read(&self, lab: &Lab, far: &Far, devices: u32, module: &str) -> Result<(f64, f64)> {
        let before = super::measure::cpu_of(self.process.id())?;
        let more = words(&format!("--with exporter --exporter {} --module {module}", self.address));
        let value = reader(lab, far, devices, &more)?;
        let reads = number(&value, "reads")?;
        ensure!(reads > 0.0, "the exporter read nothing: {value}");
        Ok((super::measure::cpu_of(self.process.id())? - before, reads))
    }
}

fn exporter_config(oids: &[String]) -> String {
    /// Columns, and how many numbers tell their rows apart.
    const WALK: [(&str, usize); 13] = [
        ("1.3.6.1.2.1.25.3.5.1.1", 1),
        ("1.3.6.1.2.1.43.5.1.1.3", 1),
        ("1.3.6.1.2.1.43.5.1.1.13", 1),
        ("1.3.6.1.2.1.43.5.1.1.16", 1),
        ("1.3.6.1.2.1.43.5.1.1.17", 1),
        ("1.3.6.1.2.1.43.5.1.1.18", 1),
        ("1.3.6.1.2.1.43.5.1.1.19", 1),
        ("1.3.6.1.2.1.43.6.1.1.3", 2),
        ("1.3.6.1.2.1.43.10.2.1.4", 2),
        ("1.3.6.1.2.1.43.11.1.1.5", 2),
        ("1.3.6.1.2.1.43.11.1.1.6", 2),
        ("1.3.6.1.2.1.43.11.1.1.8", 2),
        ("1.3.6.1.2.1.43.11.1.1.9", 2),
    ];
    let list =
        |oids: &mut dyn Iterator<Item = &str>| oids.map(|oid| format!("    - {oid}\n")).collect::<String>();
    let metric = |n: usize, oid: &str, index: &str| {
        format!("    - name: m{n}\n      oid: {oid}\n      type: DisplayString\n      help: m{n}\n{index}")
    };
    let scalars: String = oids.iter().enumerate().map(|(n, oid)| metric(n, oid, "")).collect();
    let label = |n: usize| format!("      - labelname: i{n}\n        type: gauge\n");
    let index = |most: usize| format!("      indexes:\n{}", (0..most).map(label).collect::<String>());
    let columns: String =
        WALK.iter().enumerate().map(|(n, (oid, most))| metric(n, oid, &index(*most))).collect();
    format!(
        "bench:\n  get:\n{}  metrics:\n{scalars}  version: 2\nprinter:\n  walk:\n{}  get:\n    - 1.3.6.1.2.1.1.3.0\n  \
         metrics:\n{columns}  version: 2\n  max_repetitions: 25\n",
        list(&mut oids.iter().map(String::as_str)),
        list(&mut WALK.iter().map(|(oid, _)| *oid)),
    )
}
