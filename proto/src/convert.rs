//! The one door between what is stored and what is thought: [`encode`] and [`decode`] of a reading.

use bytes::Bytes;
use prost::Message;

use crate::address::Mac;
use crate::reading::{
    Condition, Counters, Facts, Other, Reading, Status, Supply, SupplyKind, SupplyState, Via,
};
use crate::reading_wire as wire;
use crate::shared::{Shared, Text};

/// The stored octets of a reading; the same reading always gives the same octets.
pub fn encode(reading: &Reading) -> Bytes {
    let facts = &reading.facts;
    let counters = &reading.counters;
    wire::Reading {
        facts: Some(wire::Facts {
            vendor: facts.vendor.clone(),
            model: facts.model.clone(),
            serial: facts.serial.clone(),
            mac: facts.mac.map(|mac| Bytes::copy_from_slice(&mac.octets())),
            name: facts.name.clone(),
            location: facts.location.clone(),
            firmware: facts.firmware.clone(),
            asset: facts.asset.clone(),
            sys_object_id: facts.sys_object_id.as_ref().map(ToString::to_string),
            sys_descr: facts.sys_descr.clone(),
            engine_id: facts.engine_id.clone().map(Bytes::from),
        }),
        counters: Some(wire::Counters {
            total: counters.total,
            mono: counters.mono,
            color: counters.color,
            prints: counters.prints,
            copies: counters.copies,
            faxes: counters.faxes,
            scans: counters.scans,
            duplex: counters.duplex,
            large: counters.large,
            unit: counters.unit.clone(),
        }),
        supplies: reading.supplies.iter().map(encode_supply).collect(),
        status: reading.status.map_or(0, |status| number(Status::ALL, status) + 1),
        conditions: bits(Condition::ALL, &reading.conditions),
        display: reading.display.clone(),
        sources: reading
            .sources
            .iter()
            .map(|(field, from)| wire::Source { field: field.clone(), from: from.clone() })
            .collect(),
        via: u32::try_from(bits(Via::ALL, &reading.via)).unwrap_or(0),
        others: reading.others.iter().map(encode_other).collect(),
    }
    .encode_to_vec()
    .into()
}

/// Reads stored octets; what a later version added and this one does not know is skipped.
///
/// # Errors
/// When the octets are no reading at all.
pub fn decode(stored: &[u8]) -> Result<Reading, prost::DecodeError> {
    let reading = wire::Reading::decode(stored)?;
    let facts = reading.facts.unwrap_or_default();
    let counters = reading.counters.unwrap_or_default();
    Ok(Reading {
        facts: Shared::from(Facts {
            vendor: facts.vendor,
            model: facts.model,
            serial: facts.serial,
            mac: facts.mac.and_then(|octets| Mac::new(&octets)),
            name: facts.name,
            location: facts.location,
            firmware: facts.firmware,
            asset: facts.asset,
            sys_object_id: facts.sys_object_id.and_then(|oid| oid.parse().ok()),
            sys_descr: facts.sys_descr,
            engine_id: facts.engine_id.map(|octets| octets.to_vec()),
        }),
        counters: Counters {
            total: counters.total,
            mono: counters.mono,
            color: counters.color,
            prints: counters.prints,
            copies: counters.copies,
            faxes: counters.faxes,
            scans: counters.scans,
            duplex: counters.duplex,
            large: counters.large,
            unit: counters.unit,
        },
        supplies: reading.supplies.into_iter().map(decode_supply).collect(),
        status: reading.status.checked_sub(1).and_then(|n| value(Status::ALL, n)),
        conditions: unbits(Condition::ALL, reading.conditions),
        display: reading.display,
        sources: reading.sources.into_iter().map(|source| (source.field, source.from)).collect(),
        via: unbits(Via::ALL, u64::from(reading.via)),
        others: reading.others.into_iter().map(decode_other).collect(),
    })
}

fn encode_other(other: &Other) -> wire::Other {
    let Other { field, value, source, why } = other.clone();
    wire::Other { field, value, from: source, why }
}

fn decode_other(other: wire::Other) -> Other {
    Other { field: other.field, value: other.value, source: other.from, why: other.why }
}

fn encode_supply(supply: &Supply) -> wire::Supply {
    wire::Supply {
        index: supply.index,
        name: supply.name.to_string(),
        kind: number(SupplyKind::ALL, supply.kind),
        color: supply.color.clone().map(String::from),
        level: supply.level,
        max: supply.max,
        unit: supply.unit.clone().map(String::from),
        percent: supply.percent.map(u32::from),
        state: number(SupplyState::ALL, supply.state),
    }
}

fn decode_supply(supply: wire::Supply) -> Supply {
    Supply {
        index: supply.index,
        name: supply.name.into(),
        kind: value(SupplyKind::ALL, supply.kind).unwrap_or(SupplyKind::Other),
        color: supply.color.map(Text::from),
        level: supply.level,
        max: supply.max,
        unit: supply.unit.map(Text::from),
        percent: supply.percent.and_then(|percent| u8::try_from(percent).ok()),
        state: value(SupplyState::ALL, supply.state).unwrap_or(SupplyState::Unknown),
    }
}

fn number<T: Copy + PartialEq>(all: &[T], value: T) -> u32 {
    all.iter().position(|other| *other == value).and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}

fn value<T: Copy>(all: &[T], number: u32) -> Option<T> {
    usize::try_from(number).ok().and_then(|n| all.get(n).copied())
}

fn bits<T: Copy + PartialEq>(all: &[T], values: &[T]) -> u64 {
    values.iter().fold(0, |bits, value| bits | 1 << number(all, *value))
}

fn unbits<T: Copy>(all: &[T], bits: u64) -> Vec<T> {
    all.iter().enumerate().filter(|(n, _)| bits >> n & 1 == 1).map(|(_, value)| *value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reading() -> impl Strategy<Value = Reading> {
        let supply = (any::<u32>(), ".{0,20}", 0u32..9, any::<Option<u64>>(), 0u32..6).prop_map(
            |(index, name, kind, level, state)| Supply {
                index,
                name: name.into(),
                kind: value(SupplyKind::ALL, kind).unwrap(),
                color: Some("black".into()),
                level,
                max: level.map(|level| level / 2),
                unit: None,
                percent: Some(7),
                state: value(SupplyState::ALL, state).unwrap(),
            },
        );
        let facts = (any::<Option<String>>(), any::<[u8; 6]>(), any::<Option<Vec<u8>>>()).prop_map(
            |(text, mac, engine_id)| Facts {
                vendor: text.clone(),
                serial: text,
                mac: Mac::new(&mac),
                sys_object_id: Some("1.3.6.1.4.1.11".parse().unwrap()),
                engine_id,
                ..Facts::default()
            },
        );
        (
            facts,
            proptest::collection::vec(supply, 0..4),
            any::<Option<u64>>(),
            0u64..1 << Condition::ALL.len(),
            proptest::option::of(0u32..6),
        )
            .prop_map(|(facts, supplies, total, conditions, status)| Reading {
                facts: facts.into(),
                counters: Counters { total, ..Counters::default() },
                supplies,
                status: status.and_then(|n| value(Status::ALL, n)),
                conditions: unbits(Condition::ALL, conditions),
                display: None,
                sources: [("serial".to_owned(), "1.3".to_owned())].into_iter().collect(),
                via: vec![Via::SnmpV2c, Via::Http],
                others: vec![Other {
                    field: "counters.total".into(),
                    value: 7,
                    source: "1.3".into(),
                    why: "x".into(),
                }],
            })
    }

    proptest! {
        #[test]
        fn what_is_stored_is_what_was_read(reading in reading()) {
            prop_assert_eq!(decode(&encode(&reading)).unwrap(), reading);
        }

        #[test]
        fn hostile_octets_never_panic(octets in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&octets);
        }
    }
}
