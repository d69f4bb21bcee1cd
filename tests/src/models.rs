//! What the simulated fleet is made of: printers of eleven makers and the other things on a network that
//! speak SNMP. Data only; [`crate::mib`] turns a row of it into a table of objects.
//!
//! OIDs and the looks of sysDescr follow public MIBs and notes; every serial and address is invented
//! when a device is made, from a pattern and a seed.

/// How a supply tells its level (RFC 3805, prtMarkerSuppliesLevel).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gauge {
    /// A number between 0 and max.
    Measured,
    /// -3: some remains.
    Some,
    /// -2: unknown.
    Unknown,
    /// -1: no restriction.
    Unlimited,
}

/// A row of prtMarkerSuppliesTable.
#[derive(Debug, Clone, Copy)]
pub struct Supply {
    /// prtMarkerSuppliesDescription.
    pub name: &'static str,
    /// prtMarkerSuppliesType: 3 toner, 4 wasteToner, 5 ink, 9 opc, 15 fuser, 20 transferUnit, 21 tonerCartridge.
    pub kind: u8,
    /// prtMarkerSuppliesSupplyUnit: 7 impressions, 15 tenthsOfMilliliters, 19 percent.
    pub unit: u8,
    /// prtMarkerSuppliesMaxCapacity.
    pub max: i64,
    /// How the level is told.
    pub gauge: Gauge,
    /// prtMarkerColorantValue; empty where the row has no colorant.
    pub color: &'static str,
}

/// A value of a vendor's own object.
#[derive(Debug, Clone, Copy)]
pub enum Own {
    /// Text, in which `{serial}`, `{model}` and `{mac}` are replaced.
    Text(&'static str),
    /// An INTEGER.
    Int(i64),
    /// The device's total, as Counter32.
    Total,
    /// Colour pages.
    Color,
    /// Monochrome pages.
    Mono,
    /// Percent left of the n-th supply.
    Percent(usize),
}

/// A kind of printer.
#[derive(Debug)]
pub struct Printer {
    /// Maker, as a person says it.
    pub vendor: &'static str,
    /// Model without the maker's name.
    pub model: &'static str,
    /// sysObjectID.
    pub object_id: &'static str,
    /// sysDescr; `{serial}` and `{model}` are replaced.
    pub descr: &'static str,
    /// hrDeviceDescr.
    pub device: &'static str,
    /// Whether prtGeneralPrinterName and prtGeneralSerialNumber exist (RFC 3805, not RFC 1759).
    pub rfc3805: bool,
    /// Pattern of serials: `#` a digit, `@` a letter.
    pub serial: &'static str,
    /// First octets of the MAC address.
    pub oui: [u8; 3],
    /// Colour device.
    pub color: bool,
    /// prtConsoleDisplayBufferText when idle.
    pub display: &'static str,
    /// prtMarkerSuppliesTable.
    pub supplies: &'static [Supply],
    /// Enterprise objects.
    pub own: &'static [(&'static str, Own)],
}

/// Something on the network that is no printer.
#[derive(Debug)]
pub struct Other {
    /// Maker.
    pub vendor: &'static str,
    /// What it is.
    pub model: &'static str,
    /// sysObjectID.
    pub object_id: &'static str,
    /// sysDescr.
    pub descr: &'static str,
    /// First octets of the MAC address.
    pub oui: [u8; 3],
    /// Rows of ifTable.
    pub ports: u32,
    /// Whether it has Host-Resources with processors, disks and network rows, but no printer.
    pub host: bool,
}

const fn supply(name: &'static str, kind: u8, unit: u8, max: i64, color: &'static str) -> Supply {
    Supply { name, kind, unit, max, gauge: Gauge::Measured, color }
}

const fn some(name: &'static str, kind: u8, color: &'static str) -> Supply {
    Supply { name, kind, unit: 19, max: -2, gauge: Gauge::Some, color }
}

const fn vague(name: &'static str, kind: u8, gauge: Gauge) -> Supply {
    Supply { name, kind, unit: 19, max: -2, gauge, color: "" }
}

/// The printers; a fleet takes them in turn.
pub const PRINTERS: &[Printer] = &[
    Printer {
        vendor: "HP",
        model: "LaserJet M605",
        object_id: "1.3.6.1.4.1.11.2.3.9.1",
        descr: "HP ETHERNET MULTI-ENVIRONMENT,ROM none,JETDIRECT,JD153,EEPROM JSI24090012,CIDATE 08/17/2017",
        device: "HP LaserJet M605",
        rfc3805: true,
        serial: "CNB@######",
        oui: [0x3C, 0x52, 0x82],
        color: false,
        display: "Ready",
        supplies: &[
            supply("Black Cartridge HP CF281X", 3, 7, 25_000, "black"),
            supply("Maintenance Kit HP 110V-F2G76A", 15, 19, 100, ""),
        ],
        own: &[
            (
                "1.3.6.1.4.1.11.2.3.9.1.1.7.0",
                Own::Text(
                    "MFG:Hewlett-Packard;CMD:PJL,PML,PCLXL,POSTSCRIPT;MDL:HP LaserJet M605;CLS:PRINTER;DES:Hewlett-Packard LaserJet M605;SN:{serial};",
                ),
            ),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.1.3.2.0", Own::Text("HP LaserJet M605")),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.1.3.3.0", Own::Text("{serial}")),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.1.3.6.0", Own::Text("2309035_582100")),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.5.0", Own::Total),
        ],
    },
    Printer {
        vendor: "HP",
        model: "Color LaserJet MFP M577",
        object_id: "1.3.6.1.4.1.11.2.3.9.1",
        descr: "HP ETHERNET MULTI-ENVIRONMENT,SN:{serial},FN:3V00D67,SVCID:27059,PID:HP Color LaserJet MFP M577",
        device: "HP Color LaserJet MFP M577",
        rfc3805: true,
        serial: "JPBC@#####",
        oui: [0x9C, 0x7B, 0xEF],
        color: true,
        display: "Ready",
        supplies: &[
            supply("Black Cartridge HP CF360X", 3, 7, 12_500, "black"),
            supply("Cyan Cartridge HP CF361X", 3, 7, 9_500, "cyan"),
            supply("Magenta Cartridge HP CF363X", 3, 7, 9_500, "magenta"),
            supply("Yellow Cartridge HP CF362X", 3, 7, 9_500, "yellow"),
            vague("Toner Collection Unit HP B5L37A", 4, Gauge::Some),
        ],
        own: &[
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.1.3.3.0", Own::Text("{serial}")),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.5.0", Own::Total),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.6.0", Own::Mono),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.7.0", Own::Color),
        ],
    },
    Printer {
        vendor: "Brother",
        model: "HL-L5200DW series",
        object_id: "1.3.6.1.4.1.2435.2.3.9.1",
        descr: "Brother NC-8900h, Firmware Ver.1.27  (18.09.05),MID 8C5-D1D",
        device: "Brother HL-L5200DW series",
        rfc3805: true,
        serial: "E####@#J######",
        oui: [0x00, 0x80, 0x77],
        color: false,
        display: "Sleep",
        supplies: &[some("Black Toner Cartridge", 21, "black"), supply("Drum Unit", 9, 7, 30_000, "")],
        own: &[
            (
                "1.3.6.1.4.1.2435.2.3.9.1.1.7.0",
                Own::Text(
                    "MFG:Brother;CMD:PJL,PCL,PCLXL;MDL:HL-L5200DW series;CLS:PRINTER;CID:Brother Laser Type1;",
                ),
            ),
            ("1.3.6.1.4.1.2435.2.3.9.4.2.1.5.5.1.0", Own::Text("{serial}")),
            ("1.3.6.1.4.1.2435.2.3.9.4.2.1.5.5.17.0", Own::Text("1.27")),
        ],
    },
    Printer {
        vendor: "Canon",
        model: "iR-ADV C5535",
        object_id: "1.3.6.1.4.1.1602.4.7",
        descr: "Canon iR-ADV C5535 /P",
        device: "Canon iR-ADV C5535",
        rfc3805: true,
        serial: "XLL#####",
        oui: [0x60, 0x12, 0x8B],
        color: true,
        display: "",
        supplies: &[
            supply("Canon GPR-55 Black Toner", 3, 19, 100, "black"),
            supply("Canon GPR-55 Cyan Toner", 3, 19, 100, "cyan"),
            supply("Canon GPR-55 Magenta Toner", 3, 19, 100, "magenta"),
            supply("Canon GPR-55 Yellow Toner", 3, 19, 100, "yellow"),
            vague("Waste Toner", 4, Gauge::Some),
        ],
        own: &[
            ("1.3.6.1.4.1.1602.1.1.1.1.0", Own::Text("iR-ADV C5535")),
            ("1.3.6.1.4.1.1602.1.1.1.4.0", Own::Text("63.21")),
            ("1.3.6.1.4.1.1602.1.2.1.8.1.3.1.1", Own::Text("{serial}")),
        ],
    },
    Printer {
        vendor: "Ricoh",
        model: "MP C3004",
        object_id: "1.3.6.1.4.1.367.1.1",
        descr: "RICOH MP C3004 1.19 / RICOH Network Printer C model / RICOH Network Scanner C model",
        device: "RICOH MP C3004",
        rfc3805: true,
        serial: "C73#@######",
        oui: [0x00, 0x26, 0x73],
        color: true,
        display: "Ready",
        supplies: &[
            some("Black Toner", 3, "black"),
            some("Cyan Toner", 3, "cyan"),
            some("Magenta Toner", 3, "magenta"),
            some("Yellow Toner", 3, "yellow"),
            vague("Waste Toner", 4, Gauge::Unlimited),
        ],
        own: &[
            ("1.3.6.1.4.1.367.3.2.1.1.1.1.0", Own::Text("MP C3004")),
            ("1.3.6.1.4.1.367.3.2.1.1.1.2.0", Own::Text("1.19")),
            ("1.3.6.1.4.1.367.3.2.1.2.1.4.0", Own::Text("{serial}")),
            ("1.3.6.1.4.1.367.3.2.1.2.19.1.0", Own::Total),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.2.1", Own::Text("black")),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.2.2", Own::Text("cyan")),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.2.3", Own::Text("magenta")),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.2.4", Own::Text("yellow")),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.5.1", Own::Percent(0)),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.5.2", Own::Percent(1)),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.5.3", Own::Percent(2)),
            ("1.3.6.1.4.1.367.3.2.1.2.24.1.1.5.4", Own::Percent(3)),
        ],
    },
    Printer {
        vendor: "Kyocera",
        model: "TASKalfa 3253ci",
        object_id: "1.3.6.1.4.1.1347.41",
        descr: "KYOCERA Document Solutions Printing System",
        device: "TASKalfa 3253ci",
        rfc3805: true,
        serial: "R4B######",
        oui: [0x00, 0x17, 0xC8],
        color: true,
        display: "Ready to print.",
        supplies: &[
            supply("TK-8335C", 21, 7, 15_000, "cyan"),
            supply("TK-8335M", 21, 7, 15_000, "magenta"),
            supply("TK-8335Y", 21, 7, 15_000, "yellow"),
            supply("TK-8335K", 21, 7, 25_000, "black"),
            vague("Waste Toner Box", 4, Gauge::Some),
        ],
        own: &[
            ("1.3.6.1.4.1.1347.43.5.1.1.1.1", Own::Text("TASKalfa 3253ci")),
            ("1.3.6.1.4.1.1347.43.5.1.1.28.1", Own::Text("{serial}")),
            ("1.3.6.1.4.1.1347.43.10.1.1.12.1.1", Own::Total),
        ],
    },
    Printer {
        vendor: "Kyocera",
        model: "ECOSYS P3145dn",
        object_id: "1.3.6.1.4.1.1347.41",
        descr: "KYOCERA Document Solutions Printing System",
        device: "ECOSYS P3145dn",
        rfc3805: true,
        serial: "R4P#######",
        oui: [0x00, 0x17, 0xC8],
        color: false,
        display: "Sleeping...",
        supplies: &[supply("TK-3160", 21, 7, 12_500, "black"), vague("Waste Toner Box", 4, Gauge::Unknown)],
        own: &[
            ("1.3.6.1.4.1.1347.43.5.1.1.1.1", Own::Text("ECOSYS P3145dn")),
            ("1.3.6.1.4.1.1347.43.5.1.1.28.1", Own::Text("{serial}")),
            ("1.3.6.1.4.1.1347.43.10.1.1.12.1.1", Own::Total),
        ],
    },
    Printer {
        vendor: "Konica Minolta",
        model: "bizhub C308",
        object_id: "1.3.6.1.4.1.18334.1.1.1.2.1.117.2.2",
        descr: "KONICA MINOLTA bizhub C308",
        device: "KONICA MINOLTA bizhub C308",
        rfc3805: true,
        serial: "A7PY02#######",
        oui: [0x00, 0x20, 0x6B],
        color: true,
        display: "Ready",
        supplies: &[
            supply("Toner (Yellow)", 3, 19, 100, "yellow"),
            supply("Toner (Magenta)", 3, 19, 100, "magenta"),
            supply("Toner (Cyan)", 3, 19, 100, "cyan"),
            supply("Toner (Black)", 3, 19, 100, "black"),
            supply("Drum Cartridge (Black)", 9, 19, 100, ""),
            vague("Waste Toner Box", 4, Gauge::Some),
            supply("Fusing Unit", 15, 19, 100, ""),
            supply("Image Transfer Belt Unit", 20, 19, 100, ""),
        ],
        own: &[
            ("1.3.6.1.4.1.18334.1.1.1.1.6.2.1.0", Own::Text("bizhub C308")),
            ("1.3.6.1.4.1.18334.1.1.1.5.7.2.1.1.0", Own::Total),
        ],
    },
    Printer {
        vendor: "Sharp",
        model: "MX-3070N",
        object_id: "1.3.6.1.4.1.2385.3.1.112.1.2",
        descr: "SHARP MX-3070N",
        device: "SHARP MX-3070N",
        rfc3805: true,
        serial: "75######00",
        oui: [0x24, 0x26, 0x42],
        color: true,
        display: "",
        supplies: &[
            supply("Black Toner", 3, 19, 100, "black"),
            supply("Cyan Toner", 3, 19, 100, "cyan"),
            supply("Magenta Toner", 3, 19, 100, "magenta"),
            supply("Yellow Toner", 3, 19, 100, "yellow"),
            vague("Toner Collection Container", 4, Gauge::Some),
        ],
        own: &[
            ("1.3.6.1.4.1.2385.1.1.19.2.1.3.5.4.61", Own::Mono),
            ("1.3.6.1.4.1.2385.1.1.19.2.1.3.5.4.63", Own::Color),
        ],
    },
    Printer {
        vendor: "Xerox",
        model: "VersaLink C405",
        object_id: "1.3.6.1.4.1.253.8.62.1.35.2.3.1.1",
        descr: "Xerox VersaLink C405; System 68.45.31, Controller 1.67.9, IOT 4.10.0",
        device: "Xerox VersaLink C405; System 68.45.31",
        rfc3805: true,
        serial: "4YT######",
        oui: [0x9C, 0x93, 0x4E],
        color: true,
        display: "Ready",
        supplies: &[
            supply("Black Toner Cartridge, PN 106R03512", 21, 7, 5_000, "black"),
            supply("Cyan Toner Cartridge, PN 106R03514", 21, 7, 4_800, "cyan"),
            supply("Magenta Toner Cartridge, PN 106R03515", 21, 7, 4_800, "magenta"),
            supply("Yellow Toner Cartridge, PN 106R03513", 21, 7, 4_800, "yellow"),
            vague("Waste Cartridge, PN 108R01416", 4, Gauge::Some),
        ],
        own: &[
            (
                "1.3.6.1.4.1.253.8.51.1.2.1.20.1",
                Own::Text("MFG:Xerox;CMD:PCL 6,PostScript 3;MDL:VersaLink C405;CLS:PRINTER;SN:{serial};"),
            ),
            ("1.3.6.1.4.1.253.8.53.13.2.1.6.1.20.1", Own::Total),
            ("1.3.6.1.4.1.253.8.53.13.2.1.6.1.20.33", Own::Color),
            ("1.3.6.1.4.1.253.8.53.13.2.1.6.1.20.34", Own::Mono),
            ("1.3.6.1.4.1.253.8.53.13.2.1.8.1.20.1", Own::Text("Total Impressions")),
            ("1.3.6.1.4.1.253.8.53.13.2.1.8.1.20.33", Own::Text("Color Impressions")),
            ("1.3.6.1.4.1.253.8.53.13.2.1.8.1.20.34", Own::Text("Black Impressions")),
        ],
    },
    Printer {
        vendor: "Lexmark",
        model: "MX522adhe",
        object_id: "1.3.6.1.4.1.641.2.71107178",
        descr: "Lexmark MX522adhe version MXTGM.052.024 kernel 4.11.12-yocto-standard All-N-1",
        device: "Lexmark MX522adhe {serial} MXTGM.052.024",
        rfc3805: true,
        serial: "7017########@",
        oui: [0x78, 0x8C, 0x77],
        color: false,
        display: "Ready",
        supplies: &[
            supply("Black Cartridge", 21, 7, 20_000, "black"),
            supply("Imaging Unit", 9, 7, 60_000, ""),
            supply("Maintenance Kit", 15, 7, 200_000, ""),
        ],
        own: &[("1.3.6.1.4.1.641.2.1.2.1.2.1", Own::Text("MX522adhe"))],
    },
    Printer {
        vendor: "Epson",
        model: "WF-C5790 Series",
        object_id: "1.3.6.1.4.1.1248.1.1.2.1.3.5.69.69.80.83.50",
        descr: "EPSON Built-in 11b/g/n & 10/100 Print Server",
        device: "EPSON WF-C5790 Series",
        rfc3805: true,
        serial: "X3BC######",
        oui: [0x38, 0x1A, 0x52],
        color: true,
        display: "",
        supplies: &[
            supply("Black Ink", 5, 19, 100, "black"),
            supply("Cyan Ink", 5, 19, 100, "cyan"),
            supply("Magenta Ink", 5, 19, 100, "magenta"),
            supply("Yellow Ink", 5, 19, 100, "yellow"),
            supply("Maintenance Box", 8, 19, 100, ""),
        ],
        own: &[
            ("1.3.6.1.4.1.1248.1.2.2.1.1.1.2.1", Own::Text("WF-C5790 Series")),
            ("1.3.6.1.4.1.1248.1.2.2.1.1.1.5.1", Own::Text("{serial}")),
            ("1.3.6.1.4.1.1248.1.2.2.27.1.1.3.1.1", Own::Mono),
            ("1.3.6.1.4.1.1248.1.2.2.27.1.1.4.1.1", Own::Color),
        ],
    },
    Printer {
        vendor: "OKI",
        model: "C650",
        object_id: "1.3.6.1.4.1.2001.1.1.1.1",
        descr: "OKI OkiLAN 9850g Rev.01.10 10/100/1000BASE Ethernet PrintServer: Attached to C650 Rev.02.10 : Copyright (c) 2020 Oki Data Corporation",
        device: "C650",
        rfc3805: true,
        serial: "AK######",
        oui: [0x00, 0x80, 0x87],
        color: true,
        display: "Online",
        supplies: &[
            supply("Black Toner Cartridge", 21, 19, 100, "black"),
            supply("Cyan Toner Cartridge", 21, 19, 100, "cyan"),
            supply("Magenta Toner Cartridge", 21, 19, 100, "magenta"),
            supply("Yellow Toner Cartridge", 21, 19, 100, "yellow"),
            supply("Black Image Drum", 9, 19, 100, ""),
            supply("Belt Unit", 20, 19, 100, ""),
        ],
        own: &[
            ("1.3.6.1.4.1.2001.1.1.1.1.11.1.10.25.0", Own::Text("C650")),
            ("1.3.6.1.4.1.2001.1.1.1.1.11.1.10.45.0", Own::Text("{serial}")),
        ],
    },
    Printer {
        vendor: "Samsung",
        model: "M4020 Series",
        object_id: "1.3.6.1.4.1.236.11.5.1",
        descr: "Samsung M4020 Series; V4.00.02.28 MAY-18-2015;Engine V1.00.13;NIC V4.01.29;S/N {serial}",
        device: "Samsung M4020 Series",
        rfc3805: true,
        serial: "ZDFFB8K@#####@",
        oui: [0x30, 0xCD, 0xA7],
        color: false,
        display: "Sleeping...",
        supplies: &[supply("Black Toner S/N:CRUM-15042812345", 3, 7, 15_000, "black")],
        own: &[
            ("1.3.6.1.4.1.236.11.5.1.1.1.1.0", Own::Text("Samsung M4020 Series")),
            ("1.3.6.1.4.1.236.11.5.1.1.1.2.0", Own::Text("V4.00.02.28")),
            ("1.3.6.1.4.1.236.11.5.1.1.1.4.0", Own::Text("{serial}")),
        ],
    },
    Printer {
        vendor: "HP",
        model: "LaserJet 4250",
        object_id: "1.3.6.1.4.1.11.2.3.9.1",
        descr: "HP ETHERNET MULTI-ENVIRONMENT,ROM V.29.20,JETDIRECT,JD117,EEPROM V.29.29,CIDATE 08/09/2005",
        device: "hp LaserJet 4250",
        rfc3805: false,
        serial: "CNGXF#####",
        oui: [0x00, 0x17, 0x08],
        color: false,
        display: "Ready",
        supplies: &[
            supply("Black Print Cartridge HP Q5942X", 3, 7, 20_000, "black"),
            vague("Fuser Kit", 15, Gauge::Unknown),
        ],
        own: &[
            (
                "1.3.6.1.4.1.11.2.3.9.1.1.7.0",
                Own::Text(
                    "MFG:Hewlett-Packard;CMD:PJL,MLC,PCLXL,PCL,POSTSCRIPT;MDL:hp LaserJet 4250;CLS:PRINTER;DES:Hewlett-Packard LaserJet 4250;",
                ),
            ),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.1.3.3.0", Own::Text("{serial}")),
            ("1.3.6.1.4.1.11.2.3.9.4.2.1.4.1.2.5.0", Own::Total),
        ],
    },
];

const fn other(
    vendor: &'static str,
    model: &'static str,
    object_id: &'static str,
    descr: &'static str,
) -> Other {
    Other { vendor, model, object_id, descr, oui: [0x00, 0x1B, 0x21], ports: 1, host: false }
}

/// Everything that must not be taken for a printer; HP's switch and Epson's projector share an
/// enterprise number with printers.
pub const OTHERS: &[Other] = &[
    Other {
        oui: [0x00, 0x1A, 0xA1],
        ports: 24,
        ..other(
            "Cisco",
            "Catalyst 2960",
            "1.3.6.1.4.1.9.1.696",
            "Cisco IOS Software, C2960 Software (C2960-LANBASEK9-M), Version 12.2(55)SE7, RELEASE SOFTWARE (fc1)",
        )
    },
    Other {
        oui: [0x00, 0x24, 0xA8],
        ports: 24,
        ..other(
            "HP",
            "E2910al-24G switch",
            "1.3.6.1.4.1.11.2.3.7.11.84",
            "HP J9145A E2910al-24G Switch, revision W.15.14.0014, ROM W.14.06",
        )
    },
    Other {
        host: true,
        ..other(
            "Linux",
            "server",
            "1.3.6.1.4.1.8072.3.2.10",
            "Linux app7 6.1.0-28-amd64 #1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1 x86_64",
        )
    },
    Other {
        host: true,
        ..other(
            "Microsoft",
            "Windows Server",
            "1.3.6.1.4.1.311.1.1.3.1.3",
            "Hardware: Intel64 Family 6 Model 85 Stepping 7 AT/AT COMPATIBLE - Software: Windows Version 6.3 (Build 17763 Multiprocessor Free)",
        )
    },
    other(
        "APC",
        "Smart-UPS 1500",
        "1.3.6.1.4.1.318.1.3.27",
        "APC Web/SNMP Management Card (MB:v4.1.0 PF:v7.0.8 MN:AP9631 HR:08 MD:04/30/2018)",
    ),
    Other {
        oui: [0x00, 0x11, 0x32],
        host: true,
        ..other("Synology", "DS920+", "1.3.6.1.4.1.8072.3.2.10", "Linux nas3 4.4.302+ #72806 SMP x86_64")
    },
    Other {
        oui: [0xAC, 0xCC, 0x8E],
        ..other(
            "Axis",
            "P1455-LE",
            "1.3.6.1.4.1.368.1.1",
            "; AXIS P1455-LE; Network Camera; 11.10.61; Apr 18 2024 18:48; 951.2; 1",
        )
    },
    Other {
        oui: [0x00, 0x26, 0xAB],
        ..other("Epson", "projector", "1.3.6.1.4.1.1248.4.1", "EPSON Network Projector")
    },
    Other {
        oui: [0x24, 0x5A, 0x4C],
        ports: 2,
        ..other("Ubiquiti", "U6-Pro", "1.3.6.1.4.1.41112", "UAP-U6-Pro 6.6.55.15189")
    },
    Other {
        host: true,
        ..other(
            "VMware",
            "ESXi",
            "1.3.6.1.4.1.6876.4.1",
            "VMware ESXi 7.0.3 build-21930508 VMware, Inc. x86_64",
        )
    },
];
