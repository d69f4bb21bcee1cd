//! What a device says about itself, in types that cannot hold a sentinel.
//!
//! These serialise to the JSON of the contract: a value that is not known is left out.

use serde::Serialize;

use crate::address::Mac;
use crate::oid::Oid;
use crate::shared::{Shared, Sources, Text};

/// What one read of one device found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Who the device says it is.
    pub facts: Shared<Facts>,
    /// Lifetime totals.
    pub counters: Counters,
    /// Toner, drums, waste boxes and so on, by row.
    pub supplies: Vec<Supply>,
    /// What it is doing.
    pub status: Option<Status>,
    /// What ails it, in the order of [`Condition`].
    pub conditions: Vec<Condition>,
    /// The text on its panel.
    pub display: Option<String>,
    /// Where each value came from: field name to OIDs (joined by `+` for a sum), URL or attribute.
    pub sources: Sources,
    /// The protocols that contributed, in the order of [`Via`].
    pub via: Vec<Via>,
    /// Values that disagree with one that stands above.
    pub others: Vec<Other>,
}

/// A value that was told and not chosen: nothing that a device says of its counters is lost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Other {
    /// As in [`Reading::sources`].
    pub field: String,
    /// What it said.
    pub value: u64,
    /// Where it came from.
    pub source: String,
    /// Why the other one stands.
    pub why: String,
}

/// Identity and description.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Brand, in the maker's own spelling.
    pub vendor: Option<String>,
    /// Model, with or without the brand, as the device writes it.
    pub model: Option<String>,
    /// Serial number of the device (never of a print server's card).
    pub serial: Option<String>,
    /// Hardware address of the interface that was asked, else of the first real one.
    pub mac: Option<Mac>,
    /// sysName.
    pub name: Option<String>,
    /// sysLocation.
    pub location: Option<String>,
    /// Firmware version.
    pub firmware: Option<String>,
    /// Asset number that the owner gave it.
    pub asset: Option<String>,
    /// sysObjectID.
    pub sys_object_id: Option<Oid>,
    /// sysDescr.
    pub sys_descr: Option<String>,
    /// snmpEngineID (RFC 3411 section 5).
    pub engine_id: Option<Vec<u8>>,
}

/// Lifetime totals; never deltas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Everything the marker made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// Of these in black only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mono: Option<u64>,
    /// Of these in colour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<u64>,
    /// From print jobs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prints: Option<u64>,
    /// From the glass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copies: Option<u64>,
    /// Received faxes put on paper.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub faxes: Option<u64>,
    /// Scanned images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scans: Option<u64>,
    /// Two-sided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duplex: Option<u64>,
    /// Large format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub large: Option<u64>,
    /// What `total` counts where it is not impressions: `sheets`, `feet`, `meters`, `hours`...
    /// (prtMarkerCounterUnit, RFC 3805).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

impl Counters {
    /// True when nothing is known.
    pub fn is_empty(&self) -> bool {
        *self == Counters::default()
    }
}

/// One supply or receptacle.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Supply {
    /// prtMarkerSuppliesIndex, or the position where there is none.
    pub index: u32,
    /// prtMarkerSuppliesDescription.
    pub name: Text,
    /// What it is.
    pub kind: SupplyKind,
    /// `black`, `cyan`, `magenta`, `yellow`...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub color: Option<Text>,
    /// What is left, in `unit`; of a receptacle the room that is left (RFC 3805).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<u64>,
    /// When full, in `unit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// `percent`, `impressions`, `grams/10`...
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<Text>,
    /// From level and max, or as the device itself reports it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// In a word.
    pub state: SupplyState,
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum $name {
            $($(#[$doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// Every value, in the order of its stored number.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// The word that listings print.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }

            /// From the word that listings print.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|value| value.word() == word)
            }
        }
    };
}

words! {
    /// What a supply is (prtMarkerSuppliesType, RFC 3805, folded to what operators order).
    SupplyKind {
        /// Toner and toner cartridges.
        Toner = "toner",
        /// Ink, ink cartridges, ink ribbons and wax.
        Ink = "ink",
        /// Photoconductors.
        Drum = "drum",
        /// Receptacles for waste toner, ink or wax.
        WasteToner = "waste-toner",
        /// Fusers and what belongs to them.
        Fuser = "fuser",
        /// Transfer belts and rollers.
        Transfer = "transfer",
        /// Kits that are exchanged as a whole.
        MaintenanceKit = "maintenance-kit",
        /// Staples.
        Staples = "staples",
        /// Everything else.
        Other = "other",
    }
}

words! {
    /// How a supply is doing.
    SupplyState {
        /// There is enough.
        Ok = "ok",
        /// Time to order.
        Low = "low",
        /// Nothing left.
        Empty = "empty",
        /// Some remains, the device does not say how much (-3).
        Some = "some",
        /// The device does not know (-2).
        Unknown = "unknown",
        /// The device says there is no limit (-1).
        Unlimited = "unlimited",
    }
}

words! {
    /// What a device is doing (hrPrinterStatus, RFC 2790, and whether it answers at all).
    Status {
        /// hrPrinterStatus 3.
        Idle = "idle",
        /// hrPrinterStatus 4.
        Printing = "printing",
        /// hrPrinterStatus 5.
        Warmup = "warmup",
        /// hrDeviceStatus 5, or an error that stops printing.
        Stopped = "stopped",
        /// Did not answer, the patient last retry included.
        Offline = "offline",
        /// The device says that it does not know.
        Unknown = "unknown",
    }
}

words! {
    /// What ails a device: the bits of hrPrinterDetectedErrorState (RFC 2790) in their order, then what only
    /// prtAlertTable (RFC 3805) has a code for.
    Condition {
        /// Bit 0.
        LowPaper = "low-paper",
        /// Bit 1.
        NoPaper = "no-paper",
        /// Bit 2.
        LowToner = "low-toner",
        /// Bit 3.
        NoToner = "no-toner",
        /// Bit 4.
        DoorOpen = "door-open",
        /// Bit 5.
        Jammed = "jammed",
        /// Bit 6.
        Offline = "offline",
        /// Bit 7.
        ServiceRequested = "service-requested",
        /// Bit 8.
        InputTrayMissing = "input-tray-missing",
        /// Bit 9.
        OutputTrayMissing = "output-tray-missing",
        /// Bit 10.
        MarkerSupplyMissing = "marker-supply-missing",
        /// Bit 11.
        OutputNearFull = "output-near-full",
        /// Bit 12.
        OutputFull = "output-full",
        /// Bit 13.
        InputTrayEmpty = "input-tray-empty",
        /// Bit 14.
        OverduePreventMaintenance = "overdue-maintenance",
        /// markerWasteTonerReceptacleAlmostFull, and the same of ink.
        WasteNearFull = "waste-near-full",
        /// markerWasteTonerReceptacleFull, and the same of ink.
        WasteFull = "waste-full",
        /// markerOpcLifeAlmostOver.
        DrumNearEnd = "drum-near-end",
        /// markerOpcLifeOver.
        DrumEnd = "drum-end",
    }
}

words! {
    /// The protocols that a reading was made with.
    Via {
        /// SNMPv1.
        SnmpV1 = "snmpv1",
        /// SNMPv2c.
        SnmpV2c = "snmpv2c",
        /// SNMPv3.
        SnmpV3 = "snmpv3",
        /// The device's own pages.
        Http = "http",
        /// The same, encrypted.
        Https = "https",
        /// Internet Printing Protocol.
        Ipp = "ipp",
        /// Attached to the node itself.
        Usb = "usb",
    }
}

/// Percentage of `level` in `max`, rounded to nearest and clamped to 100.
///
/// `None` where `max` is 0: a device with a refilled cartridge reports that.
pub fn percent(level: u64, max: u64) -> Option<u8> {
    (max > 0).then(|| u8::try_from((level.saturating_mul(200) / max).div_ceil(2).min(100)).unwrap_or(100))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_round_to_nearest() {
        assert_eq!(percent(870, 1000), Some(87));
        assert_eq!(percent(1, 3), Some(33));
        assert_eq!(percent(2, 3), Some(67));
        assert_eq!(percent(0, 100), Some(0));
        assert_eq!(percent(150, 100), Some(100));
        assert_eq!(percent(5, 0), None);
    }

    #[test]
    fn words_round_trip() {
        for condition in Condition::ALL {
            assert_eq!(Condition::from_word(condition.word()), Some(*condition));
        }
    }

    #[test]
    fn unknown_values_are_left_out() {
        let counters = Counters { total: Some(0), ..Counters::default() };
        assert_eq!(serde_json::to_string(&counters).unwrap(), r#"{"total":0}"#);
    }
}
