//! What devices see of Quire as it is out of the box: at most 500 packets a second of a zone, three nodes together, and
//! never more than one question in flight to a device. By the devices' own count and the kernel's times of arrival.

use anyhow::{Result, ensure};
use quire_tests::bench::gentle::{self, BURST, CEILING};
use quire_tests::lab::Lab;
use quire_tests::responder::Seen;

fn is_gentle(seen: &Seen, nodes: u64) -> Result<()> {
    ensure!(seen.sets == 0, "a device was sent a SET: {seen:?}");
    ensure!(seen.in_flight_max == 1 && seen.crowded == 0, "a device was asked twice at once: {seen:?}");
    // Over the whole time there is nothing that a busy machine could shift.
    let budget = CEILING * seen.millis / 1000 + nodes * BURST;
    ensure!(seen.packets_in <= budget, "{} packets, {budget} are allowed: {seen:?}", seen.packets_in);
    // In the worst second the kernel may hand over what it queued before: a fiftieth.
    let second = CEILING + CEILING / 50 + nodes * BURST;
    ensure!(seen.second_max <= second, "{} packets in one second: {seen:?}", seen.second_max);
    Ok(())
}

#[test]
fn discover_keeps_to_its_rate_and_asks_a_device_one_thing_at_a_time() {
    fn scenario() -> Result<()> {
        let (seen, found) = gentle::alone(&Lab::start()?)?;
        ensure!(found == 128 && seen.devices == 128, "{found} found: {seen:?}");
        is_gentle(&seen, 1)
    }
    scenario().unwrap();
}

#[test]
fn three_nodes_of_a_zone_share_one_rate() {
    fn scenario() -> Result<()> {
        let (seen, devices) = gentle::cluster(2)?;
        ensure!(seen.devices == u64::from(devices), "{seen:?}");
        is_gentle(&seen, 3)
    }
    scenario().unwrap();
}
