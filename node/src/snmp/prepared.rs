//! A question that is asked again and again. Its PDU is encoded once, and the names that its answer should bring, too, as they
//! will come: so asking costs a copy of its octets, and whether an answer brings what is expected is told by comparing
//! octets, before anything is decoded.
//!
//! Whatever is not exactly as expected is no concern of this file: it is decoded in full, as any answer.

use std::hash::{Hash, Hasher};
use std::ops::Range;

use bytes::Bytes;
use quire_proto::oid::Oid;
use snmp2::AsnReader;

use super::ber::{self, Pdu};
use super::message;
use super::value::{Request, Response, Value, VarBind};

/// A question with the names of its answer. Made once and shared as an `Arc`.
#[derive(Debug)]
pub struct Prepared {
    pub(super) pdu: Pdu,
    /// The object identifiers of the answer in their order, as elements of BER; an empty one stands for any name.
    names: Box<[u8]>,
}

impl Prepared {
    /// `names`: of the variable bindings that the answer should have, in their order; `None` for any.
    pub fn new(request: &Request, names: impl Iterator<Item = Option<Oid>>) -> Prepared {
        let mut octets = Vec::new();
        for name in names {
            match name {
                Some(name) => ber::object_identifier(&mut octets, &name),
                None => octets.extend_from_slice(&[ber::OBJECT_IDENTIFIER, 0]),
            }
        }
        Prepared { pdu: Pdu::new(request, false), names: octets.into_boxed_slice() }
    }

    /// True when it asks for this and nothing else.
    #[cfg(test)]
    pub(crate) fn asks(&self, request: &Request) -> bool {
        let written = |pdu: &Pdu| {
            let mut out = Vec::new();
            pdu.write(&mut out, ber::SMALLEST_ID);
            out
        };
        written(&self.pdu) == written(&Pdu::new(request, false))
    }

    /// True when these are the expected names in their order, none more, each with a value that decodes; where any name
    /// may come, an exception may, too.
    pub(super) fn is_answered_by(&self, varbinds: &[u8]) -> bool {
        let (mut names, mut rest) = (&*self.names, varbinds);
        while let Some((_, name, more)) = element(names) {
            let Some((ber::SEQUENCE, pair, behind)) = element(rest) else { return false };
            let Some((ber::OBJECT_IDENTIFIER, came, value)) = element(pair) else { return false };
            let fits = match name.is_empty() {
                true => ber::oid(came).is_some() && is_sound(value, true),
                false => came == name && is_sound(value, false),
            };
            if !fits {
                return false;
            }
            (names, rest) = (more, behind);
        }
        rest.is_empty()
    }
}

/// An answer that is as expected, undecoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected(Bytes);

impl Expected {
    /// Of the contents of a VarBindList that [`Prepared::is_answered_by`] has found right.
    pub(super) fn of(varbinds: &[u8]) -> Expected {
        Expected(Bytes::copy_from_slice(varbinds))
    }

    /// For simulated devices: what this answer is to that question, where it is as expected.
    #[cfg(test)]
    pub(crate) fn to(question: &Prepared, response: &Response) -> Option<Expected> {
        let varbinds = encode(&response.varbinds);
        (response.error_status == 0 && question.is_answered_by(&varbinds)).then(|| Expected::of(&varbinds))
    }

    /// The values in their order.
    pub fn values(&self) -> impl Iterator<Item = Seen<'_>> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (_, pair, behind) = element(rest)?;
            let (_, _, value) = element(pair)?;
            rest = behind;
            Some(Seen::read(value))
        })
    }

    /// The same as any answer is decoded.
    pub fn decode(&self) -> Response {
        Response { varbinds: decode(&self.0), error_status: 0, error_index: 0 }
    }

    /// Of these, some alone.
    pub fn decode_some(&self, places: Range<usize>) -> Vec<VarBind> {
        let mut rest = &*self.0;
        let mut skip = |count: usize| {
            for _ in 0..count {
                rest = element(rest).map_or(&[], |(_, _, behind)| behind);
            }
            rest
        };
        let from = skip(places.start);
        let behind = skip(places.len());
        decode(&from[..from.len() - behind.len()])
    }
}

/// The names and values were found sound, so nothing is left out.
fn decode(contents: &[u8]) -> Vec<VarBind> {
    message::varbinds(contents).map(|(varbinds, _)| varbinds).unwrap_or_default()
}

/// A value where it lies: of what a repeated read asks for, numbers and short texts, nothing is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen<'a> {
    /// INTEGER, Counter32, Gauge32 and Counter64 up to 2^63-1: what counts as a number.
    Number(i64),
    /// A Counter64 beyond.
    Huge(u64),
    /// OCTET STRING.
    Octets(&'a [u8]),
    /// Opaque.
    Opaque(&'a [u8]),
    /// Contents octets of an OBJECT IDENTIFIER.
    Name(&'a [u8]),
    /// Its arcs.
    Arcs(&'a [u32]),
    /// What is neither: an address, a time, an exception.
    Other(Plain),
}

/// A value that is neither number nor text nor name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plain {
    /// IpAddress.
    Address([u8; 4]),
    /// TimeTicks.
    Ticks(u32),
    /// NULL and the exceptions.
    Nothing,
}

impl<'a> Seen<'a> {
    /// Of a value element that is sound.
    fn read(element: &'a [u8]) -> Seen<'a> {
        use snmp2::Value as V;
        match AsnReader::from_bytes(element).next() {
            Some(V::Integer(n)) => Seen::Number(n),
            Some(V::Counter32(n) | V::Unsigned32(n)) => Seen::Number(i64::from(n)),
            Some(V::Counter64(n)) => Seen::of_counter(n),
            Some(V::OctetString(octets)) => Seen::Octets(octets),
            Some(V::Opaque(octets)) => Seen::Opaque(octets),
            // Its contents stand behind tag and length, as `element` reads them.
            Some(V::ObjectIdentifier(_)) => {
                Seen::Name(self::element(element).map_or(&[], |(_, name, _)| name))
            }
            Some(V::IpAddress(octets)) => Seen::Other(Plain::Address(octets)),
            Some(V::Timeticks(n)) => Seen::Other(Plain::Ticks(n)),
            Some(_) | None => Seen::Other(Plain::Nothing),
        }
    }

    /// An integer of any type; text is none.
    pub fn number(self) -> Option<i64> {
        match self {
            Seen::Number(n) => Some(n),
            Seen::Huge(_) | Seen::Octets(_) | Seen::Opaque(_) => None,
            Seen::Name(_) | Seen::Arcs(_) | Seen::Other(_) => None,
        }
    }

    /// The octets of a text.
    pub fn octets(self) -> Option<&'a [u8]> {
        match self {
            Seen::Octets(octets) | Seen::Opaque(octets) => Some(octets),
            Seen::Number(_) | Seen::Huge(_) => None,
            Seen::Name(_) | Seen::Arcs(_) | Seen::Other(_) => None,
        }
    }

    fn of_counter(n: u64) -> Seen<'a> {
        i64::try_from(n).map_or(Seen::Huge(n), Seen::Number)
    }
}

/// The same for the same value, however it lies.
impl Hash for Seen<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Seen::Number(n) => n.hash(state),
            Seen::Huge(n) => n.hash(state),
            Seen::Octets(octets) | Seen::Opaque(octets) => octets.hash(state),
            Seen::Name(contents) => ber::oid(contents).unwrap_or_default().hash(state),
            Seen::Arcs(arcs) => arcs.hash(state),
            Seen::Other(other) => other.hash(state),
        }
    }
}

impl<'a> From<&'a Value> for Seen<'a> {
    fn from(value: &'a Value) -> Self {
        match value {
            Value::Integer(n) => Seen::Number(*n),
            Value::Counter32(n) | Value::Gauge32(n) => Seen::Number(i64::from(*n)),
            Value::Counter64(n) => Seen::of_counter(*n),
            Value::OctetString(octets) => Seen::Octets(octets),
            Value::Opaque(octets) => Seen::Opaque(octets),
            Value::ObjectId(oid) => Seen::Arcs(oid.arcs()),
            Value::IpAddress(address) => Seen::Other(Plain::Address(address.octets())),
            Value::TimeTicks(n) => Seen::Other(Plain::Ticks(*n)),
            Value::Null | Value::NoSuchObject | Value::NoSuchInstance | Value::EndOfMibView => {
                Seen::Other(Plain::Nothing)
            }
        }
    }
}

/// Tag, contents and what follows of the first element, in the forms that devices send; the rest is for the general decoder.
fn element(octets: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (length, from) = match octets {
        [_, length @ 0..=0x7f, ..] => (usize::from(*length), 2),
        [_, 0x81, length, ..] => (usize::from(*length), 3),
        [_, 0x82, high, low, ..] => (usize::from(*high) << 8 | usize::from(*low), 4),
        _ => return None,
    };
    let contents = octets.get(from..from + length)?;
    Some((octets[0], contents, &octets[from + length..]))
}

/// True of one whole element of a type that decodes to a value, or, if `exceptions` may be, to none.
fn is_sound(value: &[u8], exceptions: bool) -> bool {
    let Some((tag, contents, [])) = element(value) else { return false };
    match tag {
        // INTEGER, Counter32, Gauge32, TimeTicks, Counter64.
        ber::INTEGER | 0x41 | 0x42 | 0x43 | 0x46 => (1..=8).contains(&contents.len()),
        ber::OCTET_STRING | 0x44 => true,
        ber::OBJECT_IDENTIFIER => ber::oid(contents).is_some(),
        0x40 => contents.len() == 4,
        // noSuchObject, noSuchInstance, endOfMibView.
        0x80..=0x82 => exceptions && contents.is_empty(),
        _ => false,
    }
}

/// What a device would send.
#[cfg(test)]
fn encode(varbinds: &[VarBind]) -> Vec<u8> {
    let tagged = varbinds.iter().map(|varbind| {
        let (tag, contents) = match &varbind.value {
            Value::Integer(n) => (ber::INTEGER, n.to_be_bytes().to_vec()),
            Value::OctetString(octets) => (ber::OCTET_STRING, octets.to_vec()),
            Value::Null => (5, Vec::new()),
            Value::ObjectId(oid) => {
                let mut whole = Vec::new();
                ber::object_identifier(&mut whole, oid);
                (
                    ber::OBJECT_IDENTIFIER,
                    element(&whole).map(|(_, name, _)| name.to_vec()).unwrap_or_default(),
                )
            }
            Value::IpAddress(address) => (0x40, address.octets().to_vec()),
            Value::Counter32(n) => (0x41, [&[0][..], &n.to_be_bytes()].concat()),
            Value::Gauge32(n) => (0x42, [&[0][..], &n.to_be_bytes()].concat()),
            Value::TimeTicks(n) => (0x43, [&[0][..], &n.to_be_bytes()].concat()),
            Value::Opaque(octets) => (0x44, octets.to_vec()),
            Value::Counter64(n) => (0x46, n.to_be_bytes().to_vec()),
            Value::NoSuchObject => (0x80, Vec::new()),
            Value::NoSuchInstance => (0x81, Vec::new()),
            Value::EndOfMibView => (0x82, Vec::new()),
        };
        (varbind.oid.clone(), tag, contents)
    });
    super::fuzz::bindings(&tagged.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn oid(text: &str) -> Oid {
        text.parse().unwrap()
    }

    fn question() -> Prepared {
        let oids = vec![oid("1.3.6.1.2.1.1"), oid("1.3.6.1.2.1.2")];
        let names = [Some(oid("1.3.6.1.2.1.1.5.0")), None];
        Prepared::new(&Request::GetNext(oids), names.into_iter())
    }

    fn answer(first: (&str, Value), second: (&str, Value)) -> Response {
        let varbinds = [first, second].map(|(name, value)| VarBind { oid: oid(name), value }).into();
        Response { varbinds, error_status: 0, error_index: 0 }
    }

    #[test]
    fn only_what_is_expected_is_taken_undecoded() {
        let name = "1.3.6.1.2.1.1.5.0";
        let one = || Value::Integer(1);
        for (response, expected) in [
            (answer((name, one()), ("1.3.6.1.4.1.9", Value::EndOfMibView)), true),
            (answer((name, one()), (name, Value::OctetString(vec![7; 300].into()))), true),
            (answer(("1.3.6.1.2.1.1.6.0", one()), (name, one())), false),
            (answer((name, Value::NoSuchInstance), (name, one())), false),
            (answer((name, Value::Null), (name, one())), false),
        ] {
            let heard = Expected::to(&question(), &response);
            assert_eq!(heard.is_some(), expected, "{response:?}");
            assert!(heard.is_none_or(|heard| heard.decode() == response));
        }
        let mut longer = answer((name, one()), (name, one()));
        longer.varbinds.push(longer.varbinds[0].clone());
        assert_eq!(Expected::to(&question(), &longer), None, "more than was asked for");
        longer.varbinds.truncate(1);
        assert_eq!(Expected::to(&question(), &longer), None, "less");
    }

    proptest! {
        /// What passes is decoded alike by both, whatever octets it is made of.
        #[test]
        fn what_is_taken_undecoded_decodes_alike(
            octets in prop::collection::vec(any::<u8>(), 0..40),
            tag in prop::sample::select(vec![2u8, 4, 5, 6, 0x40, 0x41, 0x42, 0x43, 0x44, 0x46, 0x80, 0x81, 0x82, 0x30]),
            cut in 0usize..3,
        ) {
            let names = [oid("1.3.6.1.2.1.1.5.0"), oid("1.3.6.1.2.1.1.6.0")];
            let question = Prepared::new(&Request::Get(names.to_vec()), names.iter().cloned().map(Some));
            let pairs = [(names[0].clone(), tag, octets.clone()), (names[1].clone(), ber::INTEGER, vec![1])];
            let mut varbinds = super::super::fuzz::bindings(&pairs);
            varbinds.truncate(varbinds.len() - cut);
            let general = message::varbinds(&varbinds);
            if question.is_answered_by(&varbinds) {
                let (general, undecodable) = general.unwrap();
                prop_assert_eq!(undecodable, 0);
                let seen: Vec<Seen<'_>> = general.iter().map(|varbind| Seen::from(&varbind.value)).collect();
                let heard = Expected::of(&varbinds);
                for (quick, slow) in heard.values().zip(seen) {
                    match (quick, slow) {
                        (Seen::Name(name), Seen::Arcs(arcs)) => {
                            prop_assert_eq!(ber::oid(name).unwrap().arcs().to_vec(), arcs.to_vec());
                        }
                        (quick, slow) => prop_assert_eq!(quick, slow),
                    }
                }
                prop_assert_eq!(heard.values().count(), 2);
            }
        }
    }
}
