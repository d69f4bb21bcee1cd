//! Writes the seeds of the fuzz targets, a directory each, for `make fuzz`: `fuzz_seeds DIR` writes them and prints the
//! targets' names.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::path::PathBuf;

use quire_node::fuzz::TARGETS;

fn main() {
    let into = PathBuf::from(std::env::args().nth(1).expect("a directory"));
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/devices");
    let devices = std::env::var_os("QUIRE_DEVICES").map_or(beside, PathBuf::from);
    let devices = devices.is_dir().then_some(devices);
    for target in TARGETS {
        let folder = into.join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        for (n, seed) in (target.seeds)(devices.as_deref()).iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{n:04}")), seed).unwrap();
        }
        println!("{}", target.name);
    }
}
