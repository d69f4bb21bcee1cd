//! Everything one device has answered so far, sorted as SNMP sorts it.
//!
//! Values are kept as they came; what they mean is decided by those who ask. Exceptions are never stored.

use std::collections::BTreeMap;

use quire_proto::oid::Oid;

use crate::snmp::{Value, VarBind};

/// The values that a device gave, by object instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers(BTreeMap<Oid, Value>);

impl Answers {
    /// Keeps a value; exceptions (RFC 3416 section 3) and NULL hold none.
    pub(crate) fn insert(&mut self, varbind: &VarBind) {
        if has_value(&varbind.value) {
            self.0.insert(varbind.oid.clone(), varbind.value.clone());
        }
    }

    /// The value of one instance.
    pub(crate) fn get(&self, oid: &Oid) -> Option<&Value> {
        self.0.get(oid)
    }

    /// Instances below `root` with their index, in order.
    pub(crate) fn rows<'a>(
        &'a self,
        root: &'a [u32],
    ) -> impl Iterator<Item = (&'a [u32], &'a Oid, &'a Value)> {
        self.0
            .range(Oid::new(root)..)
            .map_while(move |(oid, value)| oid.arcs().strip_prefix(root).map(|index| (index, oid, value)))
            .filter(|(index, _, _)| !index.is_empty())
    }

    /// The first instance below `root`.
    pub(crate) fn first(&self, root: &[u32]) -> Option<(Oid, &Value)> {
        let (oid, value) = self.0.range(Oid::new(root)..).next()?;
        oid.arcs().starts_with(root).then(|| (oid.clone(), value))
    }

    /// All instances.
    pub(crate) fn oids(&self) -> impl Iterator<Item = &Oid> {
        self.0.keys()
    }

    /// Forgets what `keep` refuses.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Oid) -> bool) {
        self.0.retain(|oid, _| keep(oid));
    }
}

/// True when a variable binding carries something.
pub(crate) fn has_value(value: &Value) -> bool {
    !matches!(value, Value::Null | Value::NoSuchObject | Value::NoSuchInstance | Value::EndOfMibView)
}

/// An integer of any type; text is none.
pub(crate) fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(n) => Some(*n),
        Value::Counter32(n) | Value::Gauge32(n) => Some(i64::from(*n)),
        Value::Counter64(n) => i64::try_from(*n).ok(),
        Value::OctetString(_)
        | Value::Null
        | Value::ObjectId(_)
        | Value::IpAddress(_)
        | Value::TimeTicks(_)
        | Value::Opaque(_)
        | Value::NoSuchObject
        | Value::NoSuchInstance
        | Value::EndOfMibView => None,
    }
}

/// A lifetime total: an integer of 0 or more, or text that begins with one (Zebra: `1920 INCHES, ...`).
pub(crate) fn total(value: &Value) -> Option<u64> {
    if let Value::OctetString(bytes) = value {
        let digits: Vec<u8> = bytes.iter().copied().take_while(u8::is_ascii_digit).collect();
        return std::str::from_utf8(&digits).ok()?.parse().ok();
    }
    number(value).and_then(|n| u64::try_from(n).ok())
}

/// The octets of a text value.
pub(crate) fn octets(value: &Value) -> Option<&[u8]> {
    match value {
        Value::OctetString(bytes) | Value::Opaque(bytes) => Some(bytes),
        Value::Integer(_)
        | Value::Null
        | Value::ObjectId(_)
        | Value::IpAddress(_)
        | Value::Counter32(_)
        | Value::Gauge32(_)
        | Value::TimeTicks(_)
        | Value::Counter64(_)
        | Value::NoSuchObject
        | Value::NoSuchInstance
        | Value::EndOfMibView => None,
    }
}

/// An OID, also where a device sends its text.
pub(crate) fn object_id(value: &Value) -> Option<Oid> {
    match value {
        Value::ObjectId(oid) => Some(oid.clone()),
        other => std::str::from_utf8(octets(other)?).ok()?.trim().parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(s: &str) -> Value {
        Value::OctetString(bytes::Bytes::copy_from_slice(s.as_bytes()))
    }

    #[test]
    fn totals_are_never_negative() {
        assert_eq!(total(&Value::Integer(-2)), None);
        assert_eq!(total(&Value::Counter32(u32::MAX)), Some(4_294_967_295));
        assert_eq!(total(&text("555719 INCHES, 1411527 CENTIMETERS")), Some(555_719));
        assert_eq!(total(&text("n/a")), None);
    }

    #[test]
    fn an_oid_may_come_as_text() {
        assert_eq!(object_id(&text(".1.3.6.1")).unwrap().to_string(), "1.3.6.1");
        assert_eq!(object_id(&text("none")), None);
    }

    #[test]
    fn rows_end_with_their_subtree() {
        let mut answers = Answers::default();
        for oid in ["1.3.6.1", "1.3.6.1.5", "1.3.6.1.6.1", "1.3.6.2"] {
            answers.insert(&VarBind { oid: oid.parse().unwrap(), value: Value::Integer(1) });
        }
        let rows: Vec<Vec<u32>> = answers.rows(&[1, 3, 6, 1]).map(|(index, _, _)| index.to_vec()).collect();
        assert_eq!(rows, [vec![5], vec![6, 1]]);
    }
}
