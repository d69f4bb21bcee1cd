//! How sweep and read grow with addresses and devices.

use super::reads::{Cost, dense, quire as read};
use super::sweep::{quire as sweep, sparse};
use super::{Row, grouped, number};
use crate::lab::Lab;
use anyhow::Result;

/// Prefixes of about 1, 10 and 100 thousand addresses.
const PREFIXES: [u8; 3] = [22, 19, 15];
/// Devices that are read.
const DEVICES: [u32; 3] = [1_000, 10_000, 100_000];

/// One row a size.
///
/// # Errors
/// When Quire fails.
pub fn rows(lab: &Lab) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for prefix in PREFIXES {
        let addresses = 1u32 << (32 - prefix);
        let far = lab.respond(sparse(addresses, 20, 20))?;
        let pace = sweep(lab, &far, prefix, &["--rate", "0", "--no-read", "--v2c", "--timeout", "500ms"])?;
        let each = pace.cpu / f64::from(addresses) * 1e6;
        rows.push(Row::new(
            &format!("growth: sweep of {} addresses", grouped(addresses.into())),
            "quire, one community",
            format!(
                "{} addresses/s, {:.2} % found, {each:.1} CPU us an address, peak {:.0} MB",
                grouped(pace.rate),
                pace.found,
                pace.peak / 1024.0
            ),
            "one device in 64, 20 ms, 2 % loss each way",
        ));
    }
    for devices in DEVICES {
        let far = lab.respond(dense(devices, 5))?;
        let report = read(lab, &far, devices, 3)?;
        let (first, again) = (Cost::of(&report["first"])?, Cost::of(&report["repeat"])?);
        let octets = number(&report["repeat"], "bytes")? / again.reads;
        let size = number(&report["repeat"], "memory_peak")? / 1024.0;
        rows.push(Row::new(
            &format!("growth: read of {} devices", grouped(devices.into())),
            "quire, into readings",
            format!(
                "first {:.0}, again {:.1} CPU us a read, {octets:.0} bytes, {:.0} failed, peak {size:.0} MB",
                first.micros,
                again.micros,
                first.failed + again.failed
            ),
            "no delay, all in flight, at most 50,000, once and 3 times again",
        ));
    }
    Ok(rows)
}
