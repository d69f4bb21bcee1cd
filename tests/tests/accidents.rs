//! Real processes in network namespaces: one round of every accident, and an upgrade under load. What must hold is
//! checked on the recorded history.

use quire_tests::accidents::{Options, run, upgrade};
use quire_tests::process::complain;
use std::time::Duration;

#[test]
fn real_processes_survive_one_round_of_every_accident() {
    let options = Options { seed: 1, lasts: Duration::ZERO, nodes: 3 };
    let Some(report) = run(&options).unwrap() else { return };
    complain(&format!("{:?}", report.counts));
    assert_eq!(report.idle(), None);
}

#[test]
fn an_upgrade_node_by_node_under_load_loses_no_reading() {
    let Some(upgrade) = upgrade::run(3, 1).unwrap() else { return };
    let shown = upgrade.counts.get("readings that nodes showed").copied().unwrap_or(0);
    assert!(upgrade.readings > 300 && shown > 300, "not run: {upgrade:?}");
    complain(&format!("{:?}, units unowned for {:?}", upgrade.counts, upgrade.unowned));
}
