//! What devices see of Quire as it is out of the box, by the devices' word: packets a second of a zone, and questions
//! at once. The same is asserted by `tests/politeness.rs`.

use super::{Row, discover};
use crate::cluster::Cluster;
use crate::lab::Lab;
use crate::process::wait;
use crate::responder::{Seen, Spec};
use anyhow::{Context, Result, ensure};
use std::time::Duration;

/// Packets a second that a zone may get by default.
pub const CEILING: u64 = 500;
/// Packets that may run ahead of the even pace, by each node (`node/src/snmp/pace.rs`: 4 ms).
pub const BURST: u64 = 4;
/// Answers come this late, so that a second question would be seen.
const DELAY: u64 = 150;

/// Devices, evenly among silent addresses, that count every packet.
fn counting(addresses: u32, devices: u32) -> Spec {
    Spec { record: true, every: addresses / devices, devices, ..super::sweep::sparse(addresses, DELAY, 0) }
}

/// `quire discover` with no options over a network; what it saw, and how many devices were found.
///
/// # Errors
/// When it fails.
pub fn alone(lab: &Lab) -> Result<(Seen, u64)> {
    let far = lab.respond(counting(512, 128))?;
    let target = format!("{}/23", lab.first());
    // Pages and IPP are TCP, which the responder does not have.
    let (_, summary) = discover(lab, &far, &target, &["--no-http", "--no-ipp"])?;
    Ok((far.seen()?, summary["devices"].as_u64().context("no devices in the summary")?))
}

/// A cluster of three nodes in one zone with default settings, from an empty list to `rounds` readings of each
/// device; what the network saw.
///
/// # Errors
/// When the cluster does not find all devices.
pub fn cluster(rounds: usize) -> Result<(Seen, u32)> {
    let lab = Lab::loopback()?;
    // Four units, so that every node sweeps.
    let far = lab.respond(counting(1024, 256))?;
    let cluster = Cluster::start(&["n1", "n2", "n3"])?;
    cluster.apply(&format!(
        "[discovery]\nsegments = [\"{}/22\"]\nport = {}\n\n[metering]\nevery = \"10s\"\n\n[[snmp]]\nversion = \"2c\"\n\
         community = \"public\"\n\n[http]\nports = []\nchromium = false\n",
        lab.first(),
        far.spec.port
    ))?;
    let devices = far.spec.devices;
    wait("every device to be read", Duration::from_secs(240), || {
        let status = cluster.status()?;
        ensure!(status.devices == u64::from(devices), "{} of {devices} devices", status.devices);
        let readings = cluster.list(&["readings"])?.len();
        ensure!(readings >= rounds * devices as usize, "{readings} readings of {devices} devices");
        let busy = status.members.iter().filter(|member| member.units > 0).count();
        ensure!(busy == 3, "only {busy} nodes have units");
        Ok(())
    })?;
    let seen = far.seen()?;
    cluster.finish()?;
    Ok((seen, devices))
}

fn say(seen: &Seen) -> String {
    let seconds = seen.millis as f64 / 1000.0;
    format!(
        "{} packets in the busiest second, {} in flight a device, {} SETs ({} packets in {seconds:.1} s, {} repeated, {} \
         crowded)",
        seen.second_max, seen.in_flight_max, seen.sets, seen.packets_in, seen.repeated, seen.crowded
    )
}

fn verdict(seen: &Seen, nodes: u64) -> String {
    let met = seen.second_max <= CEILING + nodes * BURST && seen.in_flight_max <= 1 && seen.sets == 0;
    let word = if met { "met" } else { "MISSED" };
    format!("goal at most {CEILING} a second (and {BURST} ahead of the pace a node), 1 in flight: {word}")
}

/// What was seen, alone and in a cluster.
///
/// # Errors
/// When Quire fails.
pub fn rows(lab: &Lab) -> Result<Vec<Row>> {
    let (seen, _) = alone(lab)?;
    let mut rows = vec![
        Row::new(
            "gentleness, defaults",
            "quire discover",
            say(&seen),
            "a /23 with 128 devices, answers after 150 ms",
        )
        .against(verdict(&seen, 1)),
    ];
    let (seen, _) = cluster(2)?;
    rows.push(
        Row::new(
            "gentleness, defaults",
            "three nodes, one zone",
            say(&seen),
            "a /22 with 256 devices, sweep and reads",
        )
        .against(verdict(&seen, 3)),
    );
    Ok(rows)
}
