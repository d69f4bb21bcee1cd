//! A few fields of rows that are long: decoding these alone makes no texts of the rest, which `apply` does for every
//! reading of a million devices. Read only; a row is written whole or not at all.

use prost::Message;

/// Of a `store::DeviceRow`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Home {
    #[prost(string, tag = "1")]
    pub(crate) id: String,
    #[prost(string, tag = "3")]
    pub(crate) zone: String,
    #[prost(string, tag = "4")]
    pub(crate) address: String,
}

/// Of a `store::UnitRow`.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct Granted {
    #[prost(uint64, tag = "5")]
    pub(crate) node: u64,
    #[prost(uint64, tag = "6")]
    pub(crate) epoch: u64,
    #[prost(uint32, optional, tag = "8")]
    pub(crate) hops: Option<u32>,
}

/// Of a `store::FaceRow`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Faced {
    #[prost(string, tag = "9")]
    pub(crate) device: String,
}

/// Of a `store::OutboxEntry`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Waiting {
    #[prost(uint64, tag = "1")]
    pub(crate) seq: u64,
    #[prost(message, optional, tag = "2")]
    pub(crate) row: Option<Dated>,
}

/// Of a `store::ReadingRow`.
#[derive(Clone, PartialEq, Eq, Message)]
pub(crate) struct Dated {
    #[prost(string, tag = "2")]
    pub(crate) device: String,
    #[prost(uint64, tag = "4")]
    pub(crate) at_ms: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::store::{DeviceRow, FaceRow, OutboxEntry, ReadingRow, UnitRow};

    #[test]
    fn a_glimpse_sees_what_the_row_says() {
        let device = DeviceRow {
            id: "d".into(),
            unit: "u".into(),
            zone: "hq".into(),
            address: "10.0.0.1:161".into(),
            addresses: vec!["10.0.0.2:161".into()],
            ..DeviceRow::default()
        };
        let home = Home::decode(&device.encode_to_vec()[..]).unwrap();
        assert_eq!((home.id, home.zone, home.address), (device.id, device.zone, device.address));
        let face = FaceRow { key: "f".into(), device: "d".into(), born: "b".into(), ..FaceRow::default() };
        assert_eq!(Faced::decode(&face.encode_to_vec()[..]).unwrap().device, face.device);
        let unit = UnitRow { node: 7, epoch: 8, hops: Some(0), cost: 9, ..UnitRow::default() };
        let granted = Granted { node: 7, epoch: 8, hops: Some(0) };
        assert_eq!(Granted::decode(&unit.encode_to_vec()[..]).unwrap(), granted);
        let row = ReadingRow {
            id: "r".into(),
            device: "d".into(),
            unit: "u".into(),
            at_ms: 5,
            ..ReadingRow::default()
        };
        let entry =
            OutboxEntry { seq: 3, row: Some(row.clone()), zone: "hq".into(), ..OutboxEntry::default() };
        let dated = Dated { device: "d".into(), at_ms: 5 };
        assert_eq!(Dated::decode(&row.encode_to_vec()[..]).unwrap(), dated);
        let waiting = Waiting { seq: 3, row: Some(dated) };
        assert_eq!(Waiting::decode(&entry.encode_to_vec()[..]).unwrap(), waiting);
        let without = Waiting::decode(&OutboxEntry { row: None, ..entry }.encode_to_vec()[..]).unwrap();
        assert_eq!(without.row, None);
    }
}
