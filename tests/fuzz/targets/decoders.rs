//! One round of the target that `QUIRE_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quire_node::fuzz::{TARGETS, Target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("QUIRE_FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    found.unwrap_or_else(|| panic!("QUIRE_FUZZ_TARGET names no target: `{name}`"))
});

fuzz_target!(|data: &[u8]| (TARGET.run)(data));
