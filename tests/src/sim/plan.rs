//! What a run is made of, drawn from its seed before anything happens.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Segments that there are; settings name some of them. A /28 is a unit of 14 addresses, of which three are printers.
const SEGMENTS: u64 = 10;
/// Zones that machines stand in.
pub const ZONES: [&str; 2] = ["hq", "branch"];

/// A run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Draws it, and everything that happens.
    pub seed: u64,
    /// For how long things break, seconds of the world; mending follows.
    pub seconds: u64,
    /// Machines at the beginning.
    pub machines: usize,
    /// Entries between two snapshots, and behind the last.
    pub snapshot_entries: u64,
    /// Most seconds between two faults.
    pub pace: u64,
}

impl Plan {
    /// The run of a seed.
    #[must_use]
    pub fn new(seed: u64, seconds: u64) -> Plan {
        let mut dice = SmallRng::seed_from_u64(seed ^ 0x51_0a_71_e5);
        Plan {
            seed,
            seconds,
            machines: dice.random_range(3..=5),
            // Small ones, so that followers that were away need snapshots.
            snapshot_entries: [40, 150, 2_000][dice.random_range(0..3)],
            pace: dice.random_range(6..30),
        }
    }
}

/// Settings that an operator may apply.
#[must_use]
pub fn settings(dice: &mut SmallRng) -> String {
    let mut segments = Vec::new();
    for n in 1..=SEGMENTS {
        if dice.random_range(0..10) < 7 {
            // A segment has always the same zone: two zones of one prefix would be two networks.
            let zone = match n % 4 {
                0 => ", zone = \"hq\"",
                1 => ", zone = \"branch\"",
                _ => "",
            };
            segments.push(format!("{{ prefix = \"10.{n}.0.0/28\"{zone} }}"));
        }
    }
    let exclude = dice.random_range(1..=SEGMENTS);
    format!(
        "[discovery]\nsegments = [{}]\nexclude = [\"10.{exclude}.0.{}\"]\nrate = {}\n\n[metering]\nevery = \"{}s\"\n\n\
         [[snmp]]\nversion = \"2c\"\ncommunity = \"public\"\n\n{}{}\n[upstream]\nmode = \"service\"\n",
        segments.join(", "),
        [3, 7, 11][dice.random_range(0..3)],
        dice.random_range(20..200),
        dice.random_range(20..90),
        user(0),
        user(1),
    )
}

fn user(number: u32) -> String {
    format!(
        "[[snmp]]\nversion = \"3\"\nuser = \"user{number}\"\nauth = \"sha256\"\nauth_pass = \"correct horse\"\n\
         priv = \"aes\"\npriv_pass = \"battery staple\"\npermission = \"granted by the simulation\"\n\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_coordinator::settings::Settings;

    #[test]
    fn what_operators_apply_is_understood() {
        for seed in 0..50 {
            let text = settings(&mut SmallRng::seed_from_u64(seed));
            Settings::parse(&text).unwrap_or_else(|bad| panic!("{bad}\n{text}"));
        }
    }
}
