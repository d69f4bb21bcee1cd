//! From a description in [`crate::models`] to a sorted table of objects, as a device would serve it.
//!
//! One table serves every device of a model: what differs between devices (serial, address, counters,
//! levels) is a [`Cell`] that the device fills in when it answers. Nothing here knows a socket.

use crate::ber;
use crate::models::{Gauge, Other, Own, Printer, Supply};

/// What stands behind a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    /// INTEGER.
    Int(i64),
    /// OCTET STRING.
    Octets(Vec<u8>),
    /// OCTET STRING in which `{serial}` and `{mac}` are replaced.
    Template(String),
    /// OBJECT IDENTIFIER, content octets.
    Oid(Vec<u8>),
    /// Gauge32.
    Gauge(u32),
    /// sysUpTime.
    UpTime,
    /// Pages of all kinds, Counter32.
    Total,
    /// Colour pages, Counter32.
    Color,
    /// Monochrome pages, Counter32.
    Mono,
    /// Octets through an interface, Counter32.
    Traffic32,
    /// Octets through an interface, Counter64.
    Traffic64,
    /// What is left of the n-th supply, of `max`.
    Level(usize, i64),
    /// What is left of the n-th supply, in percent.
    Percent(usize),
    /// MAC address of the n-th interface.
    Mac(u32),
    /// sysName.
    Name,
    /// sysLocation.
    Location,
    /// Serial number.
    Serial,
}

/// One object instance.
#[derive(Debug)]
pub struct Row {
    /// Its name.
    pub arcs: Box<[u32]>,
    /// Its name as content octets, encoded once.
    pub name: Box<[u8]>,
    /// Its value.
    pub cell: Cell,
}

/// Object instances in the order of their names.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// The instance of exactly this name.
    #[must_use]
    pub fn get(&self, name: &[u32]) -> Option<&Row> {
        self.rows.binary_search_by(|row| (*row.arcs).cmp(name)).ok().map(|at| &self.rows[at])
    }

    /// Where the first instance behind `name` stands.
    #[must_use]
    pub fn after(&self, name: &[u32]) -> usize {
        self.rows.partition_point(|row| &*row.arcs <= name)
    }

    /// The instance at a place that [`Table::after`] gave, or one counted on from it.
    #[must_use]
    pub fn row(&self, at: usize) -> Option<&Row> {
        self.rows.get(at)
    }

    /// Whether some instance of the same object type exists (RFC 3416 §4.2.1: noSuchInstance, not noSuchObject).
    #[must_use]
    pub fn has_object(&self, name: &[u32]) -> bool {
        let object = name.get(..name.len().saturating_sub(1)).unwrap_or(name);
        self.row(self.after(object)).is_some_and(|row| row.arcs.starts_with(object))
    }

    /// How many instances there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether nothing is served.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table of a printer; `low` adds what it says about a first supply that is nearly empty.
    #[must_use]
    pub fn printer(model: &Printer, low: bool) -> Table {
        let mut build = Build::default();
        build.system(model.object_id, model.descr);
        build.interfaces(1);
        build.host_resources(model, low);
        build.general(model);
        build.marker(model);
        for (n, supply) in model.supplies.iter().enumerate() {
            build.supply(n, supply);
        }
        build.console(model);
        if low {
            build.alert();
        }
        for (name, own) in model.own {
            build.put(name, own_cell(own));
        }
        build.finish()
    }

    /// The table of something else.
    #[must_use]
    pub fn other(model: &Other) -> Table {
        let mut build = Build::default();
        build.system(model.object_id, model.descr);
        build.interfaces(model.ports);
        if model.host {
            build.host();
        }
        build.finish()
    }
}

fn own_cell(own: &Own) -> Cell {
    match *own {
        Own::Text(text) => text_cell(text),
        Own::Int(n) => Cell::Int(n),
        Own::Total => Cell::Total,
        Own::Color => Cell::Color,
        Own::Mono => Cell::Mono,
        Own::Percent(n) => Cell::Percent(n),
    }
}

fn text_cell(text: &str) -> Cell {
    if text == "{serial}" {
        Cell::Serial
    } else if text.contains('{') {
        Cell::Template(text.to_owned())
    } else {
        Cell::Octets(text.as_bytes().to_vec())
    }
}

fn octets(text: &str) -> Cell {
    Cell::Octets(text.as_bytes().to_vec())
}

fn parse(name: &str) -> Vec<u32> {
    name.split('.').filter_map(|arc| arc.parse().ok()).collect()
}

#[derive(Default)]
struct Build {
    rows: Vec<Row>,
}

impl Build {
    fn put(&mut self, name: &str, cell: Cell) {
        let arcs = parse(name);
        self.rows.push(Row { name: ber::encode_oid(&arcs).into(), arcs: arcs.into(), cell });
    }

    /// A column of a MIB-2 table: `1.3.6.1.2.1.` + `column` + `.` + `index`.
    fn mib2(&mut self, column: &str, index: &str, cell: Cell) {
        self.put(&format!("1.3.6.1.2.1.{column}.{index}"), cell);
    }

    fn finish(mut self) -> Table {
        self.rows.sort_by(|a, b| a.arcs.cmp(&b.arcs));
        self.rows.dedup_by(|a, b| a.arcs == b.arcs);
        Table { rows: self.rows }
    }

    fn system(&mut self, object_id: &str, descr: &str) {
        self.mib2("1.1", "0", text_cell(descr));
        self.mib2("1.2", "0", Cell::Oid(ber::encode_oid(&parse(object_id))));
        self.mib2("1.3", "0", Cell::UpTime);
        self.mib2("1.4", "0", octets(""));
        self.mib2("1.5", "0", Cell::Name);
        self.mib2("1.6", "0", Cell::Location);
        self.mib2("1.7", "0", Cell::Int(72));
    }

    /// ifTable and ifXTable; a loopback row stands behind the ports, as on real devices.
    fn interfaces(&mut self, ports: u32) {
        self.mib2("2.1", "0", Cell::Int(i64::from(ports) + 1));
        for port in 1..=ports + 1 {
            let index = port.to_string();
            let loopback = port > ports;
            self.mib2("2.2.1.1", &index, Cell::Int(port.into()));
            self.mib2("2.2.1.2", &index, octets(if loopback { "lo0" } else { "Ethernet" }));
            self.mib2("2.2.1.3", &index, Cell::Int(if loopback { 24 } else { 6 }));
            self.mib2("2.2.1.5", &index, Cell::Gauge(1_000_000_000));
            self.mib2("2.2.1.6", &index, if loopback { octets("") } else { Cell::Mac(port - 1) });
            self.mib2("2.2.1.7", &index, Cell::Int(1));
            self.mib2("2.2.1.8", &index, Cell::Int(1));
            self.mib2("2.2.1.10", &index, Cell::Traffic32);
            self.mib2("2.2.1.16", &index, Cell::Traffic32);
            self.mib2("31.1.1.1.6", &index, Cell::Traffic64);
        }
    }

    /// hrDeviceTable and hrPrinterTable of a printer (RFC 2790).
    fn host_resources(&mut self, model: &Printer, low: bool) {
        self.mib2("25.3.2.1.1", "1", Cell::Int(1));
        self.mib2("25.3.2.1.2", "1", Cell::Oid(ber::encode_oid(&parse("1.3.6.1.2.1.25.3.1.5"))));
        self.mib2("25.3.2.1.3", "1", text_cell(model.device));
        self.mib2("25.3.2.1.4", "1", Cell::Oid(ber::encode_oid(&[0, 0])));
        self.mib2("25.3.2.1.5", "1", Cell::Int(if low { 3 } else { 2 }));
        self.mib2("25.3.2.1.6", "1", Cell::Int(0));
        self.mib2("25.3.5.1.1", "1", Cell::Int(3));
        // hrPrinterDetectedErrorState: bit 2 is lowToner.
        self.mib2("25.3.5.1.2", "1", Cell::Octets(vec![if low { 0x20 } else { 0 }, 0]));
    }

    /// Processor, network and disk: a host that is no printer.
    fn host(&mut self) {
        self.mib2("25.1.1", "0", Cell::UpTime);
        self.mib2("25.1.6", "0", Cell::Gauge(211));
        for (index, kind, descr) in [
            (196_608, 3, "GenuineIntel: Xeon"),
            (262_145, 4, "network interface eth0"),
            (393_232, 6, "SCSI disk"),
        ] {
            let index = index.to_string();
            self.mib2("25.3.2.1.1", &index, Cell::Int(index.parse().unwrap_or_default()));
            self.mib2(
                "25.3.2.1.2",
                &index,
                Cell::Oid(ber::encode_oid(&parse(&format!("1.3.6.1.2.1.25.3.1.{kind}")))),
            );
            self.mib2("25.3.2.1.3", &index, octets(descr));
            self.mib2("25.3.2.1.5", &index, Cell::Int(2));
        }
    }

    /// prtGeneralTable, one cover, one input tray (RFC 3805).
    fn general(&mut self, model: &Printer) {
        self.mib2("43.5.1.1.1", "1", Cell::Int(7));
        self.mib2("43.5.1.1.2", "1", Cell::Int(1));
        if model.rfc3805 {
            self.mib2("43.5.1.1.16", "1", octets(model.device.split(" {").next().unwrap_or_default()));
            self.mib2("43.5.1.1.17", "1", Cell::Serial);
        }
        self.mib2("43.6.1.1.2", "1.1", octets("Front Cover"));
        self.mib2("43.6.1.1.3", "1.1", Cell::Int(4));
        self.mib2("43.7.1.1.4", "1.1", Cell::Int(106));
        for (tray, level, name) in [("1.1", -3, "Tray 1"), ("1.2", 250, "Tray 2")] {
            self.mib2("43.8.2.1.2", tray, Cell::Int(3));
            self.mib2("43.8.2.1.8", tray, Cell::Int(8));
            self.mib2("43.8.2.1.9", tray, Cell::Int(500));
            self.mib2("43.8.2.1.10", tray, Cell::Int(level));
            self.mib2("43.8.2.1.12", tray, octets("iso_a4_210x297mm"));
            self.mib2("43.8.2.1.13", tray, octets(name));
            self.mib2("43.8.2.1.18", tray, octets(name));
        }
    }

    fn marker(&mut self, model: &Printer) {
        self.mib2("43.10.2.1.2", "1.1", Cell::Int(if model.vendor == "Epson" { 12 } else { 4 }));
        self.mib2("43.10.2.1.3", "1.1", Cell::Int(7));
        self.mib2("43.10.2.1.4", "1.1", Cell::Total);
        self.mib2("43.10.2.1.5", "1.1", Cell::Total);
        self.mib2("43.10.2.1.6", "1.1", Cell::Int(if model.color { 4 } else { 1 }));
        self.mib2("43.10.2.1.15", "1.1", Cell::Int(0));
    }

    /// prtMarkerSuppliesTable and the colorant it points at.
    fn supply(&mut self, n: usize, supply: &Supply) {
        let index = format!("1.{}", n + 1);
        let colorant = if supply.color.is_empty() { 0 } else { n as i64 + 1 };
        let receptacle = matches!(supply.kind, 4 | 8 | 14 | 24);
        self.mib2("43.11.1.1.2", &index, Cell::Int(1));
        self.mib2("43.11.1.1.3", &index, Cell::Int(colorant));
        self.mib2("43.11.1.1.4", &index, Cell::Int(if receptacle { 4 } else { 3 }));
        self.mib2("43.11.1.1.5", &index, Cell::Int(supply.kind.into()));
        self.mib2("43.11.1.1.6", &index, octets(supply.name));
        self.mib2("43.11.1.1.7", &index, Cell::Int(supply.unit.into()));
        self.mib2("43.11.1.1.8", &index, Cell::Int(supply.max));
        let level = match supply.gauge {
            Gauge::Measured => Cell::Level(n, supply.max),
            Gauge::Some => Cell::Int(-3),
            Gauge::Unknown => Cell::Int(-2),
            Gauge::Unlimited => Cell::Int(-1),
        };
        self.mib2("43.11.1.1.9", &index, level);
        if colorant != 0 {
            self.mib2("43.12.1.1.2", &index, Cell::Int(1));
            self.mib2("43.12.1.1.3", &index, Cell::Int(3));
            self.mib2("43.12.1.1.4", &index, octets(supply.color));
            self.mib2("43.12.1.1.5", &index, Cell::Int(256));
        }
    }

    fn console(&mut self, model: &Printer) {
        if !model.display.is_empty() {
            self.mib2("43.16.5.1.2", "1.1", octets(model.display));
        }
    }

    /// One row of prtAlertTable: the first supply is nearly empty.
    fn alert(&mut self) {
        self.mib2("43.18.1.1.2", "1.1", Cell::Int(4));
        self.mib2("43.18.1.1.3", "1.1", Cell::Int(3));
        self.mib2("43.18.1.1.4", "1.1", Cell::Int(11));
        self.mib2("43.18.1.1.5", "1.1", Cell::Int(1));
        self.mib2("43.18.1.1.6", "1.1", Cell::Int(1));
        self.mib2("43.18.1.1.7", "1.1", Cell::Int(1104));
        self.mib2("43.18.1.1.8", "1.1", octets("Toner low"));
        self.mib2("43.18.1.1.9", "1.1", Cell::UpTime);
    }
}
