//! A large network over a bad line: 65,536 addresses, of which 1,024 answer, after 20 ms and with 2 % loss each way.

use anyhow::{Context, Result, ensure};
use quire_tests::bench::{discover, sweep::sparse};
use quire_tests::lab::Lab;
use std::collections::BTreeSet;

#[test]
fn all_devices_of_a_lossy_class_b_network_are_found() {
    fn scenario() -> Result<()> {
        let lab = Lab::start()?;
        let far = lab.respond(sparse(1 << 16, 20, 20))?;
        // As it comes, v2c and then v1 for those that stay silent, each three times: a device is missed once in 250
        // million. Only the ceiling of packets is lifted.
        let target = format!("{}/16", lab.first());
        let (cost, summary) = discover(&lab, &far, &target, &["--rate", "0", "--no-read"])?;
        let mut found = BTreeSet::new();
        for line in cost.stdout.lines() {
            let device: serde_json::Value = serde_json::from_str(line).context("read a device")?;
            let address = device["address"].as_str().with_context(|| format!("no address in {device}"))?;
            ensure!(found.insert(address.to_owned()), "{address} is there twice");
        }
        let expected: BTreeSet<String> = (0..1024).map(|n| far.spec.address(n).to_string()).collect();
        let missed: Vec<&String> = expected.difference(&found).collect();
        ensure!(found == expected, "{} found, missed {missed:?}: {summary}", found.len());
        ensure!(summary["responders"] == 1024, "{summary}");
        let seen = far.seen()?;
        ensure!(seen.lost > 0 && seen.sets == 0, "{seen:?}");
        Ok(())
    }
    scenario().unwrap();
}
