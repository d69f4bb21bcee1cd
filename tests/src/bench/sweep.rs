//! The sweep of a /16 beside those who do nothing else.

use super::peers::{self, Swept};
use super::{Row, discover, goal, grouped, median, number};
use crate::lab::{Far, Lab};
use crate::responder::Spec;
use anyhow::{Result, ensure};
use std::net::Ipv4Addr;

const WHAT: &str = "sweep of a /16";
/// Answering devices of the /16.
const RESPONDERS: u32 = 1_024;
/// Milliseconds from question to answer.
const DELAY: u64 = 20;
/// Of 1,000 packets so many are lost, each way.
const LOSS: u32 = 20;
/// What one credential costs: the version is known, as in every cluster that has swept before.
const ONE: [&str; 5] = ["--rate", "0", "--no-read", "--v2c", "--timeout"];
/// The longest that the last question waits: 25 round trips. The others cannot be told less than a second.
const WAIT: &str = "500ms";

/// A network with some devices, delay and loss.
#[must_use]
pub fn sparse(addresses: u32, delay: u64, loss: u32) -> Spec {
    Spec {
        port: 0,
        first: Ipv4Addr::UNSPECIFIED,
        addresses,
        every: 64,
        devices: addresses / 64,
        delay,
        loss,
        answers: 0,
        supplies: 0,
        record: false,
        seed: 1,
    }
}

/// One sweep: addresses a second over the whole run, found, CPU seconds, packets.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Addresses a second, program start and end included.
    pub rate: f64,
    /// Percent of the devices.
    pub found: f64,
    /// User and system seconds.
    pub cpu: f64,
    /// Packets an address; not known of peers on loopback.
    pub packets: f64,
    /// Peak memory, KiB.
    pub peak: f64,
}

impl Pace {
    fn say(&self) -> String {
        let packets = if self.packets.is_nan() {
            String::new()
        } else {
            format!(", {:.2} packets an address", self.packets)
        };
        format!(
            "{} addresses/s, {:.2} % found, {:.2} CPU s{packets}",
            grouped(self.rate),
            self.found,
            self.cpu
        )
    }
}

/// `quire discover` with these options over addresses behind the first.
///
/// # Errors
/// When it fails.
pub fn quire(lab: &Lab, far: &Far, prefix: u8, more: &[&str]) -> Result<Pace> {
    let target = format!("{}/{prefix}", lab.first());
    let (cost, summary) = discover(lab, far, &target, more)?;
    let addresses = number(&summary, "addresses")?;
    Ok(Pace {
        rate: addresses / cost.seconds,
        found: number(&summary, "responders")? / f64::from(far.spec.devices) * 100.0,
        cpu: cost.cpu,
        packets: number(&summary, "packets_sent")? / addresses,
        peak: cost.peak as f64,
    })
}

/// The middle of several runs, number by number.
fn middle(paces: &[Pace]) -> Pace {
    let of = |take: fn(&Pace) -> f64| median(paces.iter().map(take).collect());
    Pace {
        rate: of(|pace| pace.rate),
        found: of(|pace| pace.found),
        cpu: of(|pace| pace.cpu),
        packets: of(|pace| pace.packets),
        peak: of(|pace| pace.peak),
    }
}

fn several(runs: usize, mut once: impl FnMut() -> Result<Option<Pace>>) -> Result<Option<Pace>> {
    let paces: Option<Vec<Pace>> = (0..runs).map(|_| once()).collect::<Result<_>>()?;
    Ok(paces.map(|paces| middle(&paces)))
}

/// Quire and its peers over the same /16.
///
/// # Errors
/// When Quire fails, or a peer that is there.
pub fn rows(lab: &Lab, runs: usize) -> Result<Vec<Row>> {
    let addresses = 1 << 16;
    let far = lab.respond(sparse(addresses, DELAY, LOSS))?;
    let on = format!(
        "{RESPONDERS} responders, {DELAY} ms, {} % loss each way, no rate limit; median of {runs} whole runs",
        LOSS / 10
    );
    let ours = several(runs, || quire(lab, &far, 16, &[&ONE[..], &[WAIT]].concat()).map(Some))?;
    let Some(ours) = ours else { return Ok(Vec::new()) };
    ensure!(ours.found > 50.0, "hardly anything was found: {ours:?}");
    let wide = several(runs, || quire(lab, &far, 16, &["--rate", "0", "--no-read"]).map(Some))?;
    let mut rows = vec![
        Row::new(WHAT, "quire, one community", ours.say(), &format!("{on}; --v2c --timeout {WAIT}"))
            .against(goal(ours.found, true, 99.9, " % found")),
    ];
    if let Some(wide) = wide {
        rows.push(Row::new(
            WHAT,
            "quire, defaults",
            wide.say(),
            &format!("{on}; v2c, v1, SNMPv3 engines; 2 s"),
        ));
    }
    let target = format!("{}/16", lab.first());
    let peer = |name: &str, who: &str, sweep: &dyn Fn() -> Result<Option<Swept>>| {
        let measured = several(runs, || beside(lab, &far, sweep))?;
        Ok::<_, anyhow::Error>(match measured {
            None => (Row::absent(WHAT, who, peers::absence(lab, name)), None),
            Some(theirs) => (Row::new(WHAT, who, theirs.say(), &on), Some(theirs)),
        })
    };
    let two = peer("zmap", "zmap, 2 probes", &|| peers::zmap(lab, &far, &target, 2))?;
    let one = peer("zmap", "zmap, 1 probe", &|| peers::zmap(lab, &far, &target, 1))?;
    let old = peer("onesixtyone", "onesixtyone", &|| peers::onesixtyone(lab, &far, lab.first(), addresses))?;
    let mass = peer("masscan", "masscan", &|| peers::masscan(lab, &far, &target))?;
    for (n, (row, theirs)) in [two, one, old, mass].into_iter().enumerate() {
        let Some(theirs) = theirs else {
            rows.push(row);
            continue;
        };
        let (faster, cpu) = (ours.rate / theirs.rate, ours.cpu / theirs.cpu);
        let goals = match n {
            0 => format!("; {}; CPU {}", goal(faster, true, 3.0, " times"), goal(cpu, false, 0.75, " times")),
            _ => String::new(),
        };
        rows.push(row.against(format!("{faster:.2} times as fast, {cpu:.2} times the CPU{goals}")));
    }
    Ok(rows)
}

/// One run of a peer.
fn beside(lab: &Lab, far: &Far, sweep: &dyn Fn() -> Result<Option<Swept>>) -> Result<Option<Pace>> {
    let before = lab.sent()?;
    let Some(Swept { cost, found }) = sweep()? else { return Ok(None) };
    let sent = lab.sent()?.zip(before).map(|(after, before)| (after - before) as f64);
    let devices = (0..far.spec.devices).filter(|n| found.contains(&far.spec.address(*n))).count();
    let addresses = f64::from(far.spec.addresses);
    Ok(Some(Pace {
        rate: addresses / cost.seconds,
        found: devices as f64 / f64::from(far.spec.devices) * 100.0,
        cpu: cost.cpu,
        packets: sent.map_or(f64::NAN, |sent| sent / addresses),
        peak: cost.peak as f64,
    }))
}
