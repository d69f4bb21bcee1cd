//! One round of every accident with real processes in network namespaces, and what must hold of the recorded history.

use quire_tests::accidents::{Options, run};
use quire_tests::process::complain;
use std::time::Duration;

#[test]
fn real_processes_survive_one_round_of_every_accident() {
    let options = Options { seed: 1, lasts: Duration::ZERO, nodes: 3 };
    let Some(report) = run(&options).unwrap() else { return };
    complain(&format!("{:?}", report.counts));
    assert_eq!(report.idle(), None);
}
