//! The documentation's table of which value comes from where, made from the code, so that it stays true.
//!
//! `QUIRE_WRITE_DOCS=1` writes `docs/devices.md` anew; without it the test compares.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::ews::READERS;
use super::family::COUNTERS;
use super::recordings::devices;
use super::script::{Profile, Scripts};
use super::vendor::TABLE;

const FACTS: [&str; 6] = ["model", "serial", "firmware", "name", "asset", "display"];

/// What stands above the generated part.
const HEAD: &str = "\
# Devices: which value comes from where

Every value of a reading names its source (`sources` in the JSON of a device): OIDs joined by `+`, the URL of a page, or
an IPP attribute. This page says which sources there are. It is made from the code, and a test holds it to that.

## Every device

| field | from, best first |
|---|---|
| vendor | the first word of sysDescr, MFG of an IEEE 1284 id, hrDeviceDescr; else sysObjectID |
| model | the vendor's object, MDL of an IEEE 1284 id, hrDeviceDescr, sysDescr, prtGeneralPrinterName |
| serial | prtGeneralSerialNumber, the vendor's object, SN of an IEEE 1284 id; fillers (`N/A`, zeros) are none |
| mac | ifPhysAddress of the first interface that is up and is neither loopback nor tunnel |
| name, location | sysName (else the vendor's object), sysLocation |
| firmware | the vendor's object, else the version that sysDescr spells out |
| total | prtMarkerLifeCount of the first marker, with prtMarkerCounterUnit where it is not impressions; else the vendor's |
| other counters | the vendor's objects only |
| supplies | prtMarkerSuppliesTable with prtMarkerColorantTable; -1, -2 and -3 become `unlimited`, `unknown`, `some` |
| status | hrPrinterStatus with hrDeviceStatus |
| conditions | hrPrinterDetectedErrorState, and the codes of prtAlertTable |
| display | prtConsoleDisplayBufferText, else the vendor's object |

Of prtAlertTable the code counts, where all groups share it with its group and part, and whether it stops the printer;
texts are not interpreted. Beside the words of hrPrinterDetectedErrorState there are `waste-near-full`, `waste-full`,
`drum-near-end` and `drum-end`. The table is asked for with every full read, whenever the state says that something is
wrong, and every third time otherwise; rows that are known are watched by every read, in its one packet. Where one
responder speaks for several printers (by hrDeviceIndex), the first of them is read, and nothing of the others is mixed in.

What SNMP leaves open is filled from the device's own pages, then from IPP's Get-Printer-Attributes
(printer-make-and-model, printer-device-id, printer-state and -reasons, marker-*, printer-supply), which no captured
device answers with a counter. Printers that hang on a node: CUPS' queues with a `usb:`, `hp:/usb` or `parallel:` URI,
ipp-usb's ports, and the kernel's IEEE 1284 ids and USB strings.

";

fn header(profile: &Profile) -> Vec<(&str, &str)> {
    let lines = profile.source.lines().map_while(|line| line.strip_prefix("//!"));
    lines.filter_map(|line| line.split_once(':')).map(|(key, value)| (key.trim(), value.trim())).collect()
}

/// The brands whose devices a profile is for.
fn brands(profile: &Profile) -> Vec<&'static str> {
    let family = |key: &str, value: &str| key == "match" && value == format!("family {}", profile.name);
    let matched = header(profile).iter().any(|(key, value)| family(key, value));
    let of =
        |brand: &&super::vendor::Brand| matched && brand.family.as_deref() == Some(profile.name.as_str());
    TABLE.brand.iter().filter(of).map(|brand| brand.name.as_str()).collect()
}

/// Source texts of the page readers, by their brand: what they keep is what they name.
const PAGES: [(&str, &str); 7] = [
    ("brother", include_str!("ews/brother.rs")),
    ("epson", include_str!("ews/epson.rs")),
    ("hp", include_str!("ews/hp.rs")),
    ("kyocera", include_str!("ews/kyocera.rs")),
    ("ricoh", include_str!("ews/ricoh.rs")),
    ("samsung", include_str!("ews/samsung.rs")),
    ("xerox", include_str!("ews/xerox.rs")),
];

fn on_pages(profile: &Profile, field: &str) -> bool {
    let text = PAGES.iter().find(|(family, _)| *family == profile.name).map_or("", |(_, text)| *text);
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    if COUNTERS.contains(&field) {
        return code.split(|c: char| !c.is_alphanumeric()).any(|word| word == field.to_uppercase());
    }
    if field == "supplies" {
        return code.contains("suppl");
    }
    code.contains(&format!("\"{field}\""))
        || code.contains(&format!("facts.{field}"))
        || code.contains(&format!(".{field}("))
}

/// `V` where the header names objects, `R` where the script says it, `W` where its pages do.
fn cell(profile: &Profile, field: &str) -> String {
    let key = if field == "name" { "name-from" } else { field };
    // An IEEE 1284 id holds both.
    let in_id = |known: &str| known == "device-id" && matches!(field, "model" | "serial");
    let named = header(profile).iter().any(|(known, _)| {
        *known == key
            || in_id(known)
            || known.split_once(' ').is_some_and(|(kind, of)| kind != "match" && of == key)
    });
    let code: String = profile.source.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let ruled = match field {
        "supplies" => code.contains("supply("),
        counter if COUNTERS.contains(&counter) => {
            code.contains("meter(") && code.contains(&format!("\"{counter}\""))
        }
        fact => code.contains(&format!("fact(\"{fact}\"")),
    };
    let marks = [("V", named), ("R", ruled), ("W", on_pages(profile, field))];
    marks.iter().filter(|(_, holds)| *holds).map(|(mark, _)| *mark).collect::<Vec<_>>().join(" ")
}

fn matrix(out: &mut String) {
    let fields: Vec<&str> = FACTS.into_iter().chain(COUNTERS).chain(["supplies"]).collect();
    *out += "## Vendor by field\n\nBeside the standard: `V` objects in the header of the vendor's profile \
             (`node/profiles/`), `R` a rule of its script,\n`W` the device's own pages. An empty cell has the \
             standard's source or none.\n\n| profile | names on the front |";
    fields.iter().for_each(|field| *out += &format!(" {field} |"));
    *out += "\n|---|---|";
    fields.iter().for_each(|_| *out += "---|");
    for profile in Scripts::shipped() {
        write!(out, "\n| {} | {} |", profile.name, brands(profile).join(", ")).unwrap();
        fields.iter().for_each(|field| *out += &format!(" {} |", cell(profile, field)));
    }
    *out += "\n\n";
}

fn objects(out: &mut String) {
    *out += "## Objects of the vendors\n\n`E.` is 1.3.6.1.4.1; alternatives are divided by `;`, best first; `+` adds, \
             `?` marks a part that may be absent.\n\n| profile | field | objects |\n|---|---|---|\n";
    for profile in Scripts::shipped() {
        let skipped = ["name", "version", "match", "about", "priority"];
        for (key, value) in header(profile).into_iter().filter(|(key, _)| !skipped.contains(key)) {
            let value = value.replace(" | ", " ; ");
            writeln!(out, "| {} | {key} | {value} |", profile.name).unwrap();
        }
    }
    *out += "\n## Pages\n\n| family | brands | asked for |\n|---|---|---|\n";
    for reader in READERS {
        let paths: Vec<String> = reader
            .asks
            .iter()
            .map(|ask| ask.paths.iter().map(|path| format!("`{path}`")).collect::<Vec<_>>().join(" or "))
            .collect();
        writeln!(out, "| {} | {} | {} |", reader.id, reader.brands.join(", "), paths.join(", ")).unwrap();
    }
}

/// What stands on this machine to test with: a number per brand.
fn tested(folder: &Path) -> String {
    let expected: Json =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let mut counts: BTreeMap<String, [usize; 5]> = BTreeMap::new();
    for row in expected.as_object().unwrap().values() {
        let entry = counts.entry(row["vendor"].as_str().unwrap_or("-").to_owned()).or_default();
        entry[usize::from(row["identification_only"] == true)] += 1;
    }
    let mut rows = csv::Reader::from_path(folder.join("fingerprints.csv")).unwrap();
    for row in rows.records().map(|row| row.unwrap()).filter(|row| &row[5] == "true") {
        if let Some(brand) = TABLE.brand_at(&row[2]) {
            counts.entry(brand.name.clone()).or_default()[2] += 1;
        }
    }
    for (at, what) in [(3, "web"), (4, "ipp")] {
        for entry in std::fs::read_dir(folder.join(what)).unwrap().map(|entry| entry.unwrap()) {
            let name = entry.file_name().to_string_lossy().replace(['-', '_'], " ");
            if let Some(brand) = TABLE.brand_at(&name) {
                counts.entry(brand.name.clone()).or_default()[at] += 1;
            }
        }
    }
    let mut out = String::from(
        "\n## Tested on\n\nRecordings of real devices, which stand outside this repository: read over SNMP, of them such \
         that hold only who\nthe device is, texts that classify, captured pages, captured IPP answers. Vendors without a \
         row were tested on\nnothing but made-up devices; `tests/` simulates printers of most of the families.\n\n\
         | vendor | recordings | identity only | texts | pages | IPP |\n|---|---|---|---|---|---|\n",
    );
    for (vendor, [whole, identity, texts, pages, ipp]) in counts {
        writeln!(out, "| {vendor} | {whole} | {identity} | {texts} | {pages} | {ipp} |").unwrap();
    }
    out
}

#[test]
fn the_documentation_says_what_the_code_does() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/devices.md");
    let mut wanted = HEAD.to_owned();
    matrix(&mut wanted);
    objects(&mut wanted);
    let recorded = devices().map(|folder| tested(&folder));
    if std::env::var_os("QUIRE_WRITE_DOCS").is_some() {
        let all = wanted.clone() + recorded.as_deref().unwrap_or_default();
        std::fs::write(&path, all).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap();
    let how = "docs/devices.md is behind the code: run this test with QUIRE_WRITE_DOCS=1";
    assert!(written.starts_with(&wanted), "{how}");
    if let Some(recorded) = recorded {
        assert_eq!(written[wanted.len()..], recorded, "{how}");
    }
}
