//! What names a printer on a cable: IEEE 1284 ids and USB strings in the kernel's files, ipp-usb's list of ports, and
//! the device URIs of print queues. Reads files, asks nobody.

use std::path::Path;

use quire_proto::reading::{Reading, Via};

use super::super::vendor::TABLE;
use super::super::{ipp, text};

/// Entries of one directory, and octets of one file: a bus has some dozen devices, an id at most 1,024 octets.
const ENTRIES: usize = 1024;
const OCTETS: usize = 4096;

/// USB class code of printers.
const PRINTER: &str = "07";

/// Who a printer is, as far as its cable tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) maker: Option<String>,
    pub(super) model: Option<String>,
    pub(super) serial: Option<String>,
    /// Where that stands, for `sources`.
    pub(super) from: String,
}

impl Id {
    /// An IEEE 1284 id.
    fn of_1284(id: &str, from: String) -> Id {
        let word = |keys: &[&str]| text::device_id(id, keys).map(str::to_owned);
        Id {
            maker: word(&["MFG", "MANUFACTURER"]),
            model: word(&["MDL", "MODEL"]),
            serial: ipp::serial_in(id),
            from,
        }
    }

    /// What may be said of the printer.
    pub(super) fn reading(&self) -> Reading {
        let mut reading = Reading { via: vec![Via::Usb], ..Reading::default() };
        let maker = self.maker.as_deref();
        let brand = maker.or(self.model.as_deref()).and_then(|text| TABLE.brand_at(text));
        let facts = &mut reading.facts;
        facts.vendor = brand.map(|brand| brand.name.clone()).or_else(|| self.maker.clone());
        facts.model.clone_from(&self.model);
        facts.serial = self.serial.as_deref().and_then(text::serial);
        let told = [
            ("vendor", facts.vendor.is_some()),
            ("model", facts.model.is_some()),
            ("serial", facts.serial.is_some()),
        ];
        for (field, _) in told.into_iter().filter(|(_, known)| *known) {
            reading.sources.insert(field.to_owned(), self.from.clone());
        }
        reading
    }
}

/// The text of a small file; `None` where there is none or nothing in it.
fn file(path: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut octets = Vec::new();
    std::fs::File::open(path).ok()?.take(OCTETS as u64).read_to_end(&mut octets).ok()?;
    text::clean(&octets, None)
}

/// Names in a directory, in order.
fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<String> =
        entries.take(ENTRIES).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Printers on USB and parallel ports as the kernel lists them below `root`.
pub(super) fn of_kernel(root: &Path) -> Vec<Id> {
    let bus = root.join("sys/bus/usb/devices");
    let mut ids: Vec<Id> = names(&bus).iter().filter_map(|name| of_interface(&bus, name)).collect();
    // A device of several printer interfaces (plain, and IPP over USB) is one printer.
    ids.dedup_by(|next, before| next.from.split(':').nth(1) == before.from.split(':').nth(1));
    let ports = root.join("proc/sys/dev/parport");
    for port in names(&ports) {
        // Lines of KEY:VALUE; where something answered.
        let Some(probed) = file(&ports.join(&port).join("autoprobe")) else { continue };
        let id = Id::of_1284(&probed, format!("parport:{port}"));
        let printer = text::device_id(&probed, &["CLASS", "CLS"]);
        if printer.is_some_and(|class| class.eq_ignore_ascii_case("printer")) && id.model.is_some() {
            ids.push(id);
        }
    }
    ids
}

/// `1-2:1.0`, where its class is printer: the id that usblp has read, else the strings of its device.
fn of_interface(bus: &Path, name: &str) -> Option<Id> {
    let (device, _) = name.split_once(':')?;
    let class = file(&bus.join(name).join("bInterfaceClass"))?;
    (class == PRINTER).then_some(())?;
    let string = |what: &str| file(&bus.join(device).join(what));
    let from = format!("usb:{device}");
    let told = file(&bus.join(name).join("ieee1284_id")).map(|id| Id::of_1284(&id, from.clone()));
    let told = told.unwrap_or(Id { from, ..Id::default() });
    let id = Id {
        maker: told.maker.or_else(|| string("manufacturer")),
        model: told.model.or_else(|| string("product")),
        serial: told.serial.or_else(|| string("serial")),
        from: told.from,
    };
    id.model.is_some().then_some(id)
}

/// Device and port of each printer that ipp-usb serves or served.
pub(super) fn ipp_usb(folder: &Path) -> Vec<(String, u16)> {
    let port = |name: &String| {
        let text = std::fs::read_to_string(folder.join(name)).ok()?;
        let pairs = text.lines().filter_map(|line| line.split_once('='));
        let mut ports = pairs.filter(|(key, _)| key.trim() == "http-port").map(|(_, value)| value);
        ports.next()?.trim().parse::<u16>().ok().filter(|port| *port >= 1024)
    };
    let states = names(folder).into_iter().filter(|name| name.ends_with(".state"));
    states.filter_map(|name| Some((name.clone(), port(&name)?))).collect()
}

/// The printer of a queue's device URI; `None` where the queue prints over a network, to a file or to a program.
///
/// `usb://HP/LaserJet%20P2015?serial=S`, `hp:/usb/HP_LaserJet_P2015?serial=S`, `parallel:/dev/lp0`.
pub(super) fn of_device_uri(uri: &str) -> Option<Id> {
    let (scheme, rest) = uri.split_once(':')?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let from = format!("{scheme}:{path}");
    let words: Vec<String> = path.split('/').filter(|word| !word.is_empty()).map(decoded).collect();
    let serial = query.split('&').find_map(|pair| pair.strip_prefix("serial=")).map(decoded);
    let id = |maker: Option<&String>, model: Option<String>| {
        Some(Id { maker: maker.cloned(), model, serial: serial.clone(), from: from.clone() })
    };
    match (scheme, words.as_slice()) {
        // `usb:/dev/usb/lp0` names a port, not a printer.
        ("parallel", _) => id(None, None),
        ("usb", [first, ..]) if first == "dev" => id(None, None),
        ("usb", [maker, model]) => id(Some(maker), Some(model.clone())),
        // HPLIP writes blanks as underscores.
        ("hp", [port, model, ..]) if matches!(port.as_str(), "usb" | "par") => {
            id(Some(&"HP".to_owned()), Some(model.replace('_', " ")))
        }
        _ => None,
    }
}

/// Percent-encoding undone (RFC 3986 section 2.1).
fn decoded(text: &str) -> String {
    let mut octets = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|_| *first == b'%').and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(octet) => {
                octets.push(octet);
                rest = &after[2..];
            }
            None => {
                octets.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_uris_of_cables_are_told_from_networks() {
        let id = |uri: &str| of_device_uri(uri).map(|id| (id.maker, id.model, id.serial));
        let some = |text: &str| Some(text.to_owned());
        let laserjet = id("usb://HP/LaserJet%20P2015%20Series?serial=00CNCJP12345&interface=1");
        assert_eq!(laserjet, Some((some("HP"), some("LaserJet P2015 Series"), some("00CNCJP12345"))));
        let hplip = id("hp:/usb/HP_LaserJet_P2015_Series?serial=00CNCJP12345");
        assert_eq!(hplip, Some((some("HP"), some("HP LaserJet P2015 Series"), some("00CNCJP12345"))));
        assert_eq!(id("parallel:/dev/lp0"), Some((None, None, None)));
        for other in [
            "socket://10.0.0.1:9100",
            "ipp://printer.local/ipp/print",
            "hp:/net/HP_LaserJet?ip=10.0.0.1",
            "file:///dev/null",
            "dnssd://x",
        ] {
            assert_eq!(id(other), None, "{other}");
        }
        assert_eq!(decoded("a%20b%2"), "a b%2");
    }
}
