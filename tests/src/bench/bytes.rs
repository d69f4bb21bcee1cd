//! Octets a device, UDP payload both ways, by the device's own count.

use super::measure::measure;
use super::peers::{self, Exporter};
use super::reads::{dense, quire};
use super::{PATIENCE, Row, discover, goal, grouped, number};
use crate::lab::{Far, Lab};
use anyhow::{Result, ensure};

/// Devices that are read; each has 8 supplies.
const DEVICES: u32 = 64;
/// Repeated reads: as many as a plan serves, thorough ones included, and the full one that follows it.
const LIFE: u32 = 25;

/// What `read` moves, octets and packets a device.
fn moved(far: &Far, devices: u32, read: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let before = far.seen()?;
    read()?;
    let after = far.seen()?;
    let octets = (after.bytes_in + after.bytes_out) - (before.bytes_in + before.bytes_out);
    let packets = (after.packets_in + after.packets_out) - (before.packets_in + before.packets_out);
    Ok((octets as f64 / f64::from(devices), packets as f64 / f64::from(devices)))
}

fn say((octets, packets): (f64, f64)) -> String {
    format!("{} bytes in {packets:.1} packets", grouped(octets))
}

/// Bytes of the first and of a repeated read, of a pass of `discover`, and of peers.
///
/// # Errors
/// When Quire fails, or a peer that is there.
pub fn rows(lab: &Lab) -> Result<Vec<Row>> {
    let far = lab.respond(dense(DEVICES, 8))?;
    let on = "a device of 8 supplies, UDP payload both ways";
    let report = quire(lab, &far, DEVICES, LIFE)?;
    let of = |phase: &str| {
        let packets = number(&report[phase], "packets_sent")? + number(&report[phase], "packets_received")?;
        let reads = number(&report[phase], "reads")?;
        ensure!(reads > 0.0 && number(&report[phase], "failed")? == 0.0, "not all was read: {report}");
        Ok((number(&report[phase], "bytes")? / reads, packets / reads))
    };
    let (first, again) = (of("first")?, of("repeat")?);
    let mut rows = vec![
        Row::new("bytes, first read", "quire", say(first), on).against(goal(first.0, false, 800.0, " bytes")),
        Row::new("bytes, repeated read", "quire", say(again), on)
            .against(goal(again.0, false, 400.0, " bytes")),
    ];
    let (from, last) = (far.spec.address(0), far.spec.address(DEVICES - 1));
    let target = format!("{from}-{}", last.octets()[3]);
    let pass = moved(&far, DEVICES, || {
        discover(lab, &far, &target, &["--rate", "0", "--v2c", "--no-http", "--no-ipp"]).map(drop)
    })?;
    rows.push(Row::new("bytes, found and read", "quire discover", say(pass), on));
    rows.push(match peers::find("snmpbulkwalk") {
        None => Row::absent("bytes, first read", "snmpbulkwalk", "not installed"),
        Some(program) => {
            let peer = format!("{from}:{}", far.spec.port);
            let args = ["-v2c", "-c", "public", "-On", "-Oq", &peer, "1.3.6.1.2.1.43"];
            let line = lab.near(&program, &args);
            let walk = moved(&far, 1, || measure(&line, PATIENCE)?.ok().map(drop))?;
            Row::new("bytes, first read", "snmpbulkwalk of the Printer-MIB", say(walk), on)
                .against(format!("{:.2} times the bytes", first.0 / walk.0))
        }
    });
    rows.push(match Exporter::start(lab, &far.seen()?.usual.brought)? {
        None => Row::absent("bytes, repeated read", "prometheus-snmp-exporter", "not installed"),
        Some(exporter) => {
            let scrape = moved(&far, DEVICES, || exporter.read(lab, &far, DEVICES, "printer").map(drop))?;
            Row::new("bytes, repeated read", "prometheus-snmp-exporter", say(scrape), on)
                .against(format!("{:.2} times the bytes", again.0 / scrape.0))
        }
    });
    Ok(rows)
}
