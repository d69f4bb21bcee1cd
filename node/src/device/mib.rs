//! The object identifiers of the standard MIBs that the reader asks for, by their names.
//!
//! Scalars are named without their `.0`, columns without their index. Nothing of a vendor belongs here.

use quire_proto::oid::Oid;

/// sysDescr (RFC 3418).
pub(crate) const SYS_DESCR: &[u32] = &[1, 3, 6, 1, 2, 1, 1, 1];
/// sysObjectID (RFC 3418).
pub(crate) const SYS_OBJECT_ID: &[u32] = &[1, 3, 6, 1, 2, 1, 1, 2];
/// sysName (RFC 3418).
pub(crate) const SYS_NAME: &[u32] = &[1, 3, 6, 1, 2, 1, 1, 5];
/// sysLocation (RFC 3418).
pub(crate) const SYS_LOCATION: &[u32] = &[1, 3, 6, 1, 2, 1, 1, 6];

/// ifType (RFC 2863).
pub(crate) const IF_TYPE: &[u32] = &[1, 3, 6, 1, 2, 1, 2, 2, 1, 3];
/// ifPhysAddress (RFC 2863).
pub(crate) const IF_PHYS_ADDRESS: &[u32] = &[1, 3, 6, 1, 2, 1, 2, 2, 1, 6];
/// ifOperStatus (RFC 2863).
pub(crate) const IF_OPER_STATUS: &[u32] = &[1, 3, 6, 1, 2, 1, 2, 2, 1, 8];

/// hrDeviceType (RFC 2790).
pub(crate) const HR_DEVICE_TYPE: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 2];
/// hrDeviceDescr (RFC 2790).
pub(crate) const HR_DEVICE_DESCR: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 3];
/// hrDeviceStatus (RFC 2790).
pub(crate) const HR_DEVICE_STATUS: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 2, 1, 5];
/// hrDevicePrinter, the value of hrDeviceType (RFC 2790 section 5).
pub(crate) const HR_DEVICE_PRINTER: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 1, 5];
/// hrPrinterStatus (RFC 2790).
pub(crate) const HR_PRINTER_STATUS: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 5, 1, 1];
/// hrPrinterDetectedErrorState (RFC 2790).
pub(crate) const HR_PRINTER_ERRORS: &[u32] = &[1, 3, 6, 1, 2, 1, 25, 3, 5, 1, 2];

/// printmib (RFC 3805): anything below it is a printer's.
pub(crate) const PRINT_MIB: &[u32] = &[1, 3, 6, 1, 2, 1, 43];
/// prtGeneralPrinterName.
pub(crate) const PRT_NAME: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 5, 1, 1, 16];
/// prtGeneralSerialNumber.
pub(crate) const PRT_SERIAL: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 5, 1, 1, 17];
/// prtLocalizationCharacterSet.
pub(crate) const PRT_CHARSET: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 7, 1, 1, 4];
/// prtMarkerCounterUnit.
pub(crate) const PRT_COUNTER_UNIT: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 10, 2, 1, 3];
/// prtMarkerLifeCount.
pub(crate) const PRT_LIFE_COUNT: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 10, 2, 1, 4];
/// prtMarkerSuppliesEntry.
pub(crate) const SUPPLY_ENTRY: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1];
/// prtMarkerSuppliesColorantIndex.
pub(crate) const SUPPLY_COLORANT: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 3];
/// prtMarkerSuppliesClass.
pub(crate) const SUPPLY_CLASS: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 4];
/// prtMarkerSuppliesType.
pub(crate) const SUPPLY_TYPE: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 5];
/// prtMarkerSuppliesDescription.
pub(crate) const SUPPLY_DESCR: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 6];
/// prtMarkerSuppliesSupplyUnit.
pub(crate) const SUPPLY_UNIT: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 7];
/// prtMarkerSuppliesMaxCapacity.
pub(crate) const SUPPLY_MAX: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 8];
/// prtMarkerSuppliesLevel.
pub(crate) const SUPPLY_LEVEL: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 11, 1, 1, 9];
/// prtMarkerColorantValue.
pub(crate) const COLORANT_VALUE: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 12, 1, 1, 4];
/// prtConsoleDisplayBufferText.
pub(crate) const CONSOLE_TEXT: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 16, 5, 1, 2];

/// prtAlertSeverityLevel.
pub(crate) const ALERT_SEVERITY: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 18, 1, 1, 2];
/// prtAlertGroup.
pub(crate) const ALERT_GROUP: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 18, 1, 1, 4];
/// prtAlertGroupIndex.
pub(crate) const ALERT_GROUP_INDEX: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 18, 1, 1, 5];
/// prtAlertCode.
pub(crate) const ALERT_CODE: &[u32] = &[1, 3, 6, 1, 2, 1, 43, 18, 1, 1, 7];

/// ppmPrinterIEEE1284DeviceId (PWG 5107.1).
pub(crate) const PPM_DEVICE_ID: &[u32] = &[1, 3, 6, 1, 4, 1, 2699, 1, 2, 1, 2, 1, 1, 3];
/// enterprises (RFC 2578).
pub(crate) const ENTERPRISES: &[u32] = &[1, 3, 6, 1, 4, 1];

/// The OID of such a name.
pub(crate) fn oid(arcs: &[u32]) -> Oid {
    Oid::new(arcs)
}

/// The one instance of a scalar.
pub(crate) fn scalar(arcs: &[u32]) -> Oid {
    Oid::new(arcs).child(&[0])
}

/// A short name whose successor is `oid`, where that is the first instance of its object or follows the one before.
pub(crate) fn predecessor(oid: &Oid) -> Oid {
    match oid.arcs() {
        [head @ .., 0 | 1, 0 | 1] | [head @ .., 0 | 1] => Oid::new(head),
        [head @ .., last] => Oid::new(head).child(&[last - 1]),
        [] => oid.clone(),
    }
}

/// The enterprise number of an OID below [`ENTERPRISES`].
pub(crate) fn enterprise(oid: &Oid) -> Option<u32> {
    oid.arcs().strip_prefix(ENTERPRISES).and_then(|rest| rest.first().copied())
}
