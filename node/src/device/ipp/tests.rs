//! The codec's edges; captured answers are read over the wire in `web`'s tests.

use proptest::prelude::*;

use super::*;

/// An answer with these attributes of a printer: tag, name, value.
fn answer(status: u16, attributes: &[(u8, &str, &[u8])]) -> Vec<u8> {
    let mut octets = vec![1, 1];
    octets.extend(status.to_be_bytes());
    octets.extend([0, 0, 0, 1, PRINTER]);
    for (tag, name, value) in attributes {
        octets.push(*tag);
        for part in [name.as_bytes(), value] {
            octets.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            octets.extend(part);
        }
    }
    octets.push(END);
    octets
}

const TEXT: u8 = 0x41;
const NAME: u8 = 0x42;
const KEYWORD: u8 = 0x44;
const INTEGER: u8 = 0x21;
const ENUM: u8 = 0x23;
const MODEL: (u8, &str, &[u8]) = (TEXT, "printer-make-and-model", b"HP LaserJet M605");

#[test]
fn the_question_is_get_printer_attributes() {
    let octets = question("ipp://127.0.0.1:631/ipp/print").unwrap();
    // Version 1.1, operation 0x000b (RFC 8011 section 5.4.15).
    assert_eq!(octets[..4], [1, 1, 0, 0x0b]);
    assert!(question("not a uri").is_none());
}

#[test]
fn state_reasons_and_levels_become_words() {
    let octets = answer(
        0x0001,
        &[
            MODEL,
            (TEXT, "printer-device-id", b"MFG:HP;MDL:HP LaserJet M605;SN:CNDCJ9P3Q1;"),
            (ENUM, "printer-state", &[0, 0, 0, 5]),
            (KEYWORD, "printer-state-reasons", b"media-jam-error"),
            (KEYWORD, "", b"toner-low-warning"),
            (KEYWORD, "", b"marker-waste-almost-full-warning"),
            (NAME, "marker-names", b"Black Cartridge"),
            (NAME, "", b"Waste"),
            (KEYWORD, "marker-types", b"toner"),
            (KEYWORD, "", b"waste-toner"),
            (INTEGER, "marker-levels", &[0, 0, 0, 12]),
            (INTEGER, "", &[0, 0, 0, 97]),
            (INTEGER, "marker-low-levels", &[0, 0, 0, 15]),
            (INTEGER, "", &[0, 0, 0, 0]),
            (INTEGER, "marker-high-levels", &[0, 0, 0, 100]),
            (INTEGER, "", &[0, 0, 0, 95]),
        ],
    );
    let reading = read(&octets, "ipp:/x").unwrap();
    assert_eq!(reading.status, Some(Status::Stopped));
    assert_eq!(reading.conditions, [Condition::LowToner, Condition::Jammed, Condition::WasteNearFull]);
    assert_eq!(reading.facts.serial.as_deref(), Some("CNDCJ9P3Q1"));
    assert_eq!(reading.sources["serial"], "ipp:/x#printer-device-id");
    let [black, waste] = reading.supplies.as_slice() else { panic!("{:?}", reading.supplies) };
    assert_eq!(
        (black.percent, black.state, black.color.as_deref()),
        (Some(12), SupplyState::Low, Some("black"))
    );
    assert_eq!((waste.kind, waste.percent, waste.state), (SupplyKind::WasteToner, None, SupplyState::Low));
}

#[test]
fn errors_queues_and_lists_of_printers_are_no_device() {
    assert!(read(&answer(0x0503, &[MODEL]), "").is_none());
    assert!(read(&answer(0, &[MODEL, (ENUM, "printer-type", &[0, 0, 0, 4])]), "").is_none());
    let mut two = answer(0, &[MODEL]);
    two.pop();
    two.extend_from_slice(&answer(0, &[MODEL])[8..]);
    assert!(read(&two, "").is_none());
    assert!(read(b"", "").is_none() && read(&[1, 1, 0, 0, 0, 0, 0, 1], "").is_none());
}

#[test]
fn values_that_the_codec_chokes_on_cost_themselves_only() {
    let long = vec![b'x'; 5_000];
    let octets = answer(
        0,
        &[
            MODEL,
            (0x36, "printer-name", &[0, 2, b'e', b'n', 0, 2, b'P', b'1']),
            // A language of 255 octets in a value of three.
            (0x35, "printer-location", &[0, 255, b'e']),
            (TEXT, "printer-state-message", &long),
            (ENUM, "printer-state", &[3]),
            (0x34, "media-col-ready", b"x"),
        ],
    );
    let reading = read(&octets, "").unwrap();
    assert_eq!(reading.facts.model.as_deref(), Some("HP LaserJet M605"));
    assert_eq!(reading.facts.name.as_deref(), Some("P1"));
    assert_eq!((reading.status, &reading.facts.location, reading.display), (None, &None, None));
}

#[test]
fn lists_of_different_lengths_are_nobodys() {
    let octets = answer(
        0,
        &[MODEL, (NAME, "marker-names", b"A"), (NAME, "", b"B"), (INTEGER, "marker-levels", &[0, 0, 0, 9])],
    );
    assert!(read(&octets, "").unwrap().supplies.is_empty());
}

proptest! {
    #[test]
    fn noise_is_survived(octets in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _reading = read(&octets, "");
    }

    #[test]
    fn broken_answers_are_survived(at in 0_usize..200, octet in any::<u8>(), cut in 0_usize..250) {
        let mut octets = answer(0, &[
            MODEL,
            (TEXT, "printer-device-id", b"MFG:EPSON;SN:565A52503332363264;"),
            (0x30, "printer-supply", b"type=toner;maxcapacity=100;level=70;colorantname=black;"),
            (NAME, "marker-names", b"Black"),
            (INTEGER, "marker-levels", &[0, 0, 0, 9]),
        ]);
        let at = at % octets.len();
        octets[at] = octet;
        octets.truncate(cut.max(8));
        let _reading = read(&octets, "");
    }
}
