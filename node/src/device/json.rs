//! A device as the JSON of the contract: keys in its order, what is not known left out.

use std::net::IpAddr;

use quire_proto::reading::Reading;
use serde_json::{Map, Value, json};

/// What a listing knows about a device beside its reading. Times are RFC 3339.
#[derive(Clone, Debug, Default)]
pub struct Place<'a> {
    /// The opaque id; one-shot discovery has none.
    pub id: Option<&'a str>,
    /// The address that answered last.
    pub address: Option<IpAddr>,
    /// Every address it has now.
    pub addresses: &'a [IpAddr],
    /// The zone of the node.
    pub zone: Option<&'a str>,
    /// The node that read it.
    pub node: Option<&'a str>,
    /// Routers between node and device.
    pub hops: Option<u8>,
    /// First seen at.
    pub first_seen: Option<&'a str>,
    /// Last seen at.
    pub last_seen: Option<&'a str>,
    /// Counters read at.
    pub metered_at: Option<&'a str>,
}

/// The contract's device object.
pub fn device_json(place: &Place<'_>, reading: &Reading) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            object.insert(key.to_owned(), value);
        }
    };
    let facts = &reading.facts;
    let text = |value: &Option<String>| value.as_deref().map(|text| json!(text));
    put("id", place.id.map(|id| json!(id)));
    put("address", place.address.map(|address| json!(address)));
    put("addresses", (!place.addresses.is_empty()).then(|| json!(place.addresses)));
    put("zone", place.zone.map(|zone| json!(zone)));
    put("node", place.node.map(|node| json!(node)));
    put("hops", place.hops.map(|hops| json!(hops)));
    put("via", (!reading.via.is_empty()).then(|| json!(reading.via)));
    put("vendor", text(&facts.vendor));
    put("model", text(&facts.model));
    put("serial", text(&facts.serial));
    put("mac", facts.mac.map(|mac| json!(mac)));
    put("name", text(&facts.name));
    put("location", text(&facts.location));
    put("firmware", text(&facts.firmware));
    put("asset", text(&facts.asset));
    put("status", reading.status.map(|status| json!(status)));
    put("conditions", (!reading.conditions.is_empty()).then(|| json!(reading.conditions)));
    put("display", text(&reading.display));
    put("counters", (!reading.counters.is_empty()).then(|| json!(reading.counters)));
    put("supplies", (!reading.supplies.is_empty()).then(|| json!(reading.supplies)));
    put("sources", (!reading.sources.is_empty()).then(|| json!(reading.sources)));
    put("others", (!reading.others.is_empty()).then(|| json!(reading.others)));
    put("first_seen", place.first_seen.map(|at| json!(at)));
    put("last_seen", place.last_seen.map(|at| json!(at)));
    put("metered_at", place.metered_at.map(|at| json!(at)));
    Value::Object(object)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::reading::{Counters, Facts, Via};

    #[test]
    fn unknown_keys_are_left_out() {
        let reading = Reading {
            facts: Facts { serial: Some("S1".into()), ..Facts::default() }.into(),
            counters: Counters { total: Some(7), ..Counters::default() },
            via: vec![Via::SnmpV2c],
            ..Reading::default()
        };
        let place = Place { address: Some("127.2.0.7".parse().unwrap()), hops: Some(0), ..Place::default() };
        let wanted = json!({"address": "127.2.0.7", "hops": 0, "via": ["snmpv2c"], "serial": "S1", "counters": {"total": 7}});
        assert_eq!(device_json(&place, &reading), wanted);
    }

    #[test]
    fn keys_stand_in_the_order_of_the_contract() {
        let place = Place {
            id: Some("d1"),
            zone: Some("hq"),
            last_seen: Some("2026-01-01T00:00:00Z"),
            ..Place::default()
        };
        let text = serde_json::to_string(&device_json(&place, &Reading::default())).unwrap();
        assert_eq!(text, r#"{"id":"d1","zone":"hq","last_seen":"2026-01-01T00:00:00Z"}"#);
    }
}
