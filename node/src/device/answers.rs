//! Everything one device has answered so far, sorted as SNMP sorts it.
//!
//! Values are kept as they came; what they mean is decided by those who ask. Exceptions are never stored.

use quire_proto::oid::Oid;

use super::script::Profiles;
use crate::snmp::{Seen, Value, VarBind};

/// The values that a device gave, by object instance, in their order, and the profiles that know what its family's
/// mean.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answers(Vec<(Oid, Value)>, Profiles);

/// What a device said; who understands it is no part of it.
impl PartialEq for Answers {
    fn eq(&self, other: &Answers) -> bool {
        self.0 == other.0
    }
}

impl Answers {
    /// Nothing heard yet, to be understood with these profiles.
    pub(crate) fn with(profiles: Profiles) -> Answers {
        Answers(Vec::new(), profiles)
    }

    /// The same, with room for some.
    pub(crate) fn with_room(count: usize, profiles: Profiles) -> Answers {
        Answers(Vec::with_capacity(count), profiles)
    }

    /// The profiles in force.
    pub(crate) fn profiles(&self) -> &Profiles {
        &self.1
    }

    /// The same values, understood with others.
    pub(crate) fn understood_with(self, profiles: Profiles) -> Answers {
        Answers(self.0, profiles)
    }

    /// Makes room for so many more and for no others: there may be very many devices whose answers wait for the next.
    pub(crate) fn expect(&mut self, count: usize) {
        self.0.reserve_exact(count);
    }

    /// Keeps a value; exceptions (RFC 3416 section 3) and NULL hold none.
    pub(crate) fn insert(&mut self, varbind: &VarBind) {
        if has_value(&varbind.value) {
            self.put(varbind.clone());
        }
    }

    /// Keeps a value that is one.
    pub(crate) fn put(&mut self, varbind: VarBind) {
        let pair = (varbind.oid, varbind.value);
        // Devices answer in order, mostly.
        if self.0.last().is_none_or(|(last, _)| *last < pair.0) {
            return self.0.push(pair);
        }
        match self.place(pair.0.arcs()) {
            Ok(at) => self.0[at] = pair,
            Err(at) => self.0.insert(at, pair),
        }
    }

    /// Keeps what is wanted alone.
    pub(crate) fn keep(&mut self, wanted: impl Fn(&Oid) -> bool) {
        self.0.retain(|(oid, _)| wanted(oid));
    }

    fn place(&self, arcs: &[u32]) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.arcs().cmp(arcs))
    }

    fn from(&self, arcs: &[u32]) -> &[(Oid, Value)] {
        &self.0[self.place(arcs).unwrap_or_else(|at| at)..]
    }

    /// The value of one instance.
    pub(crate) fn get(&self, oid: &Oid) -> Option<&Value> {
        self.place(oid.arcs()).ok().map(|at| &self.0[at].1)
    }

    /// Instances below `root` with their index, in order.
    pub(crate) fn rows<'a>(
        &'a self,
        root: &'a [u32],
    ) -> impl Iterator<Item = (&'a [u32], &'a Oid, &'a Value)> {
        self.from(root)
            .iter()
            .map_while(move |(oid, value)| oid.arcs().strip_prefix(root).map(|index| (index, oid, value)))
            .filter(|(index, _, _)| !index.is_empty())
    }

    /// The first instance below `root`.
    pub(crate) fn first(&self, root: &[u32]) -> Option<(Oid, &Value)> {
        let (oid, value) = self.from(root).first()?;
        oid.arcs().starts_with(root).then(|| (oid.clone(), value))
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
pub(crate) fn total<'a>(value: impl Into<Seen<'a>>) -> Option<u64> {
    let value = value.into();
    if let Seen::Octets(octets) = value {
        let digits = octets.iter().take_while(|octet| octet.is_ascii_digit()).count();
        return std::str::from_utf8(&octets[..digits]).ok()?.parse().ok();
    }
    value.number().and_then(|n| u64::try_from(n).ok())
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
