//! Who is who, case by case.

use super::*;

/// A face seen from and to, with the totals that it showed.
fn face(serial: &str, mac: &str, engine: &str, seen: (u64, u64), total: Option<(u64, u64)>) -> Face {
    let key = |kind: &str, text: &str| (!text.is_empty()).then(|| format!("{kind}:{text}"));
    Face {
        key: format!("{serial}|{mac}|{engine}"),
        serial: key("serial", serial),
        vendor: Some("hp".to_owned()),
        mac: key("mac", mac),
        engine: key("engine", engine),
        model: "laserjet".to_owned(),
        seen,
        total,
        ..Face::default()
    }
}

fn who(faces: &[Face]) -> Vec<Vec<usize>> {
    resolve(faces, &[]).devices
}

const HOUR: u64 = 3_600_000;

#[test]
fn a_swapped_board_is_the_same_device() {
    let faces = [
        face("S", "A", "", (0, 5 * HOUR), Some((100, 200))),
        face("S", "B", "", (7 * HOUR, 9 * HOUR), Some((3, 9))),
    ];
    assert_eq!(resolve(&faces, &[]), Resolution { devices: vec![vec![0, 1]], doubts: vec![] });
}

#[test]
fn wired_and_wireless_are_one_device() {
    let faces = [
        face("S", "A", "", (0, 9 * HOUR), Some((100, 200))),
        face("S", "B", "", (HOUR, 8 * HOUR), Some((110, 190))),
    ];
    assert_eq!(resolve(&faces, &[]), Resolution { devices: vec![vec![0, 1]], doubts: vec![] });
}

#[test]
fn one_serial_on_machines_with_lives_of_their_own_is_junk() {
    let faces = [
        face("S", "A", "", (0, 9 * HOUR), Some((100, 200))),
        face("S", "B", "", (HOUR, 8 * HOUR), Some((90_000, 90_100))),
    ];
    let resolution = resolve(&faces, &[]);
    assert_eq!(resolution.devices, [vec![0], vec![1]]);
    assert_eq!(resolution.doubts[0].id, "shared/serial:S");
    // The first sweep, before the second reading of either.
    let faces = [
        face("S", "A", "", (1_000, 1_000), Some((100, 100))),
        face("S", "B", "", (2_000, 2_000), Some((90_000, 90_000))),
    ];
    assert_eq!(who(&faces), [vec![0], vec![1]]);
    // A whole fleet at once, whatever it counts.
    let fleet: Vec<Face> = ["A", "B", "C"].iter().map(|mac| face("S", mac, "", (0, HOUR), None)).collect();
    assert_eq!(who(&fleet).len(), 3);
}

#[test]
fn two_cards_without_counters_are_one_device_that_somebody_should_look_at() {
    let faces = [face("S", "A", "", (0, HOUR), None), face("S", "B", "", (0, HOUR), None)];
    let resolution = resolve(&faces, &[]);
    assert_eq!((resolution.devices.len(), resolution.doubts[0].id.as_str()), (1, "cards/serial:S"));
    let settled = resolve(&faces, &[Decision::Settled("cards/serial:S".to_owned())]);
    assert_eq!((settled.devices.len(), settled.doubts.len()), (1, 0));
    let parted = resolve(&faces, &[Decision::Apart(faces[0].key.clone(), vec!["mac:B".to_owned()])]);
    assert_eq!((parted.devices.len(), parted.doubts.len()), (2, 0));
}

#[test]
fn the_same_serial_of_two_makers_is_two_devices() {
    let mut faces = [face("S", "", "", (0, 1), None), face("S", "A", "", (0, 1), None)];
    faces[1].vendor = Some("lexmark".to_owned());
    assert_eq!(who(&faces).len(), 2);
    faces[1].vendor = None;
    assert_eq!(who(&faces).len(), 1, "who names no maker is of the one that is known");
}

#[test]
fn another_model_under_one_serial_is_another_device() {
    let mut faces = [face("S", "A", "", (0, 1), None), face("S", "B", "", (5 * HOUR, 6 * HOUR), None)];
    faces[1].model = "officejet".to_owned();
    assert_eq!(who(&faces).len(), 2);
}

#[test]
fn a_card_leads_to_the_one_serial_that_it_was_seen_with() {
    let mut faces = vec![face("S", "A", "", (0, 1), None), face("", "A", "", (0, 1), None)];
    assert_eq!(who(&faces), [vec![0, 1]]);
    faces.push(face("T", "A", "", (HOUR, HOUR), None));
    let resolution = resolve(&faces, &[]);
    assert_eq!(resolution.devices, [vec![0], vec![1], vec![2]], "a print server, or a card that moved");
    assert_eq!(resolution.doubts[0].id, "moved/mac:A");
    let merged = resolve(&faces, &[Decision::Same(faces[0].key.clone(), faces[2].key.clone())]);
    assert_eq!(merged.devices, [vec![0, 2], vec![1]]);
}

#[test]
fn an_engine_links_what_tells_nothing_better() {
    let mut faces = vec![face("S", "A", "E", (0, 1), None), face("", "", "E", (0, 1), None)];
    assert_eq!(who(&faces), [vec![0, 1]]);
    faces.push(face("T", "B", "E", (0, 1), None));
    assert_eq!(who(&faces), [vec![0], vec![1], vec![2]], "an engine's id that was copied");
    let faces = [face("", "A", "E", (0, 1), Some((5, 6))), face("", "B", "E", (0, 1), Some((5, 6)))];
    assert_eq!(who(&faces), [vec![0, 1]], "a wire and a radio of a device without a serial");
}

#[test]
fn two_serials_are_never_bridged_by_a_face_between_them() {
    let faces = [
        face("S", "A", "E", (0, 1), None),
        face("", "B", "E", (0, 1), None),
        face("T", "B", "F", (0, 1), None),
    ];
    assert_eq!(who(&faces), [vec![0], vec![1, 2]], "the card is nearer than the engine");
}

#[test]
fn common_keys_link_nothing() {
    let mut faces = [face("S", "", "", (0, 1), None), face("S", "A", "", (0, 1), None)];
    faces.iter_mut().for_each(|face| face.common = vec!["serial:S".to_owned()]);
    assert_eq!(who(&faces).len(), 2);
}

#[test]
fn later_decisions_see_what_earlier_ones_did() {
    let faces = [face("S", "A", "", (0, 1), None), face("T", "B", "", (0, 1), None)];
    let merge = Decision::Same(faces[0].key.clone(), faces[1].key.clone());
    let split = Decision::Apart(faces[0].key.clone(), vec!["mac:B".to_owned()]);
    assert_eq!(resolve(&faces, std::slice::from_ref(&merge)).devices.len(), 1);
    assert_eq!(resolve(&faces, &[merge.clone(), split.clone()]).devices.len(), 2);
    assert_eq!(resolve(&faces, &[split, merge]).devices.len(), 1);
}
