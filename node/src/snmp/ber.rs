//! Writes BER (X.690), the little of it that an SNMP question needs, and helps `snmp2::AsnReader` to read it.
//!
//! Architecture Invariant: this file has no tag of a SetRequest-PDU, so no message that writes can be made.
//!
//! Reading is `snmp2::AsnReader`'s: bounded, no panic in 32 million mutated packets, and every value type of
//! RFC 3416. Its `Varbinds` iterator is not used, for it stops silently at the first value that it cannot
//! decode; its message parser for SNMPv3 is not used either (see `usm.rs`).

use quire_proto::oid::{MAX_ARCS, Oid};

use super::value::Request;

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
pub(crate) const OBJECT_IDENTIFIER: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;

/// GetRequest-PDU (RFC 3416 section 3).
const GET: u8 = 0xa0;
/// GetNextRequest-PDU.
const GET_NEXT: u8 = 0xa1;
/// GetBulkRequest-PDU.
const GET_BULK: u8 = 0xa5;

/// The smallest number that needs four octets: every request-id and msgID is at least this, so that it can be
/// patched into a finished message without moving anything.
pub(crate) const SMALLEST_ID: u32 = 0x0080_0000;

/// Appends one element; `contents` writes what is in it.
pub(crate) fn element(out: &mut Vec<u8>, tag: u8, contents: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let start = out.len();
    contents(out);
    let (length, octets) = length(out.len() - start);
    out.splice(start..start, length[..octets].iter().copied());
}

/// The length octets (X.690 section 8.1.3), shortest form.
fn length(len: usize) -> ([u8; 5], usize) {
    let be = u32::try_from(len).unwrap_or(u32::MAX).to_be_bytes();
    if len < 0x80 {
        return ([be[3], 0, 0, 0, 0], 1);
    }
    let skip = be.iter().take_while(|octet| **octet == 0).count();
    let octets = be.len() - skip;
    let mut out = [0; 5];
    out[0] = 0x80 | octets as u8;
    out[1..=octets].copy_from_slice(&be[skip..]);
    (out, octets + 1)
}

/// Appends an OCTET STRING.
pub(crate) fn octet_string(out: &mut Vec<u8>, octets: &[u8]) {
    element(out, OCTET_STRING, |out| out.extend_from_slice(octets));
}

/// Appends an INTEGER that is not negative, in its shortest form.
pub(crate) fn unsigned(out: &mut Vec<u8>, value: u32) {
    let be = [0, (value >> 24) as u8, (value >> 16) as u8, (value >> 8) as u8, value as u8];
    // X.690 §8.3.2: the first nine bits must not all be alike.
    let mut skip = 0;
    while skip < 4 && be[skip] == 0 && be[skip + 1] < 0x80 {
        skip += 1;
    }
    element(out, INTEGER, |out| out.extend_from_slice(&be[skip..]));
}

/// Appends an OBJECT IDENTIFIER.
pub(crate) fn object_identifier(out: &mut Vec<u8>, oid: &Oid) {
    element(out, OBJECT_IDENTIFIER, |out| {
        // X.690 §8.19.4: the first two arcs share a subidentifier; a lone arc stands for arc.0.
        let (first, rest) = match oid.arcs() {
            [] => (0, &[][..]),
            [one] => (u64::from(*one) * 40, &[][..]),
            [one, two, rest @ ..] => (u64::from(*one) * 40 + u64::from(*two), rest),
        };
        subidentifier(out, first);
        for arc in rest {
            subidentifier(out, u64::from(*arc));
        }
    });
}

fn subidentifier(out: &mut Vec<u8>, value: u64) {
    let mut shift = 63;
    while shift > 0 && value >> shift == 0 {
        shift -= 7;
    }
    while shift > 0 {
        out.push(0x80 | (value >> shift) as u8 & 0x7f);
        shift -= 7;
    }
    out.push(value as u8 & 0x7f);
}

/// The OID of these contents octets; `None` when an arc is cut off or wider than 32 bits, or there are too many.
pub(crate) fn oid(contents: &[u8]) -> Option<Oid> {
    let mut arcs = [0u32; MAX_ARCS];
    let mut count = 0;
    let mut value = 0u64;
    let mut open = false;
    for octet in contents {
        value = value << 7 | u64::from(octet & 0x7f);
        // One more bit than an arc has room for in the first subidentifier (2.x).
        if value > u64::from(u32::MAX) + 80 {
            return None;
        }
        open = octet & 0x80 != 0;
        if open {
            continue;
        }
        if count == 0 {
            let first = (value / 40).min(2);
            arcs[0] = first as u32;
            arcs[1] = u32::try_from(value - first * 40).ok()?;
            count = 2;
        } else {
            *arcs.get_mut(count)? = u32::try_from(value).ok()?;
            count += 1;
        }
        value = 0;
    }
    (!open).then(|| Oid::new(&arcs[..count]))
}

/// A finished PDU whose request-id may be patched.
#[derive(Clone, Debug)]
pub(crate) struct Pdu {
    octets: Box<[u8]>,
    /// Where the four octets of the request-id begin.
    id_at: usize,
}

impl Pdu {
    /// The PDU of `request`; `v1` turns GetBulk, which SNMPv1 does not know, into GetNext.
    pub(crate) fn new(request: &Request, v1: bool) -> Pdu {
        match request {
            Request::Get(oids) => Pdu::build(GET, 0, 0, oids),
            Request::GetNext(oids) => Pdu::build(GET_NEXT, 0, 0, oids),
            Request::GetBulk { oids, .. } if v1 => Pdu::build(GET_NEXT, 0, 0, oids),
            Request::GetBulk { non_repeaters, max_repetitions, oids } => {
                Pdu::build(GET_BULK, *non_repeaters, *max_repetitions, oids)
            }
        }
    }

    /// A GetRequest that asks for nothing: engine discovery and time synchronisation (RFC 3414 section 4).
    pub(crate) fn empty() -> Pdu {
        Pdu::build(GET, 0, 0, &[])
    }

    fn build(tag: u8, second: u8, third: u8, oids: &[Oid]) -> Pdu {
        let mut octets = Vec::with_capacity(32 + oids.len() * 24);
        element(&mut octets, tag, |out| {
            unsigned(out, SMALLEST_ID);
            unsigned(out, u32::from(second));
            unsigned(out, u32::from(third));
            element(out, SEQUENCE, |out| {
                for oid in oids {
                    element(out, SEQUENCE, |out| {
                        object_identifier(out, oid);
                        out.extend_from_slice(&[NULL, 0]);
                    });
                }
            });
        });
        let length_octets = if octets[1] < 0x80 { 1 } else { 1 + usize::from(octets[1] & 0x7f) };
        Pdu { octets: octets.into_boxed_slice(), id_at: 1 + length_octets + 2 }
    }

    /// Appends the PDU with this request-id.
    pub(crate) fn write(&self, out: &mut Vec<u8>, id: u32) {
        debug_assert!(id >= SMALLEST_ID && id <= i32::MAX as u32);
        let start = out.len();
        out.extend_from_slice(&self.octets);
        out[start + self.id_at..start + self.id_at + 4].copy_from_slice(&id.to_be_bytes());
    }

    /// How far before the end of a message, that ends with this PDU, its request-id begins.
    pub(crate) fn id_from_end(&self) -> usize {
        self.octets.len() - self.id_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use snmp2::AsnReader;

    #[test]
    fn lengths_are_shortest() {
        for (len, expected) in [
            (0, vec![0]),
            (127, vec![127]),
            (128, vec![0x81, 128]),
            (255, vec![0x81, 255]),
            (256, vec![0x82, 1, 0]),
            (65_535, vec![0x82, 255, 255]),
            (65_536, vec![0x83, 1, 0, 0]),
        ] {
            let (octets, count) = length(len);
            assert_eq!(&octets[..count], expected, "{len}");
        }
    }

    #[test]
    fn every_pdu_is_one_that_reads() {
        let oids = vec![Oid::new(&[1, 3, 6, 1]); 3];
        let bulk = Request::GetBulk { non_repeaters: 1, max_repetitions: 200, oids: oids.clone() };
        for (request, v1, tag) in [
            (Request::Get(oids.clone()), false, 0xa0),
            (Request::GetNext(oids), true, 0xa1),
            (bulk.clone(), false, 0xa5),
            (bulk, true, 0xa1),
        ] {
            let mut out = Vec::new();
            Pdu::new(&request, v1).write(&mut out, 0x1234_5678);
            assert_eq!(out[0], tag);
            let mut pdu = AsnReader::from_bytes(AsnReader::from_bytes(&out).read_raw(tag).unwrap());
            assert_eq!(pdu.read_asn_integer().unwrap(), 0x1234_5678);
        }
    }

    #[test]
    fn odd_oids_decode() {
        assert_eq!(oid(&[0x2b, 6, 1]).unwrap().arcs(), [1, 3, 6, 1]);
        assert_eq!(oid(&[]).unwrap().arcs(), [0u32; 0]);
        assert_eq!(oid(&[0x88, 0x37]).unwrap().arcs(), [2, 999]);
        assert!(oid(&[0x2b, 0x86]).is_none(), "cut off");
        assert!(oid(&[0x2b, 0x90, 0x80, 0x80, 0x80, 0]).is_none(), "33 bits");
        assert!(oid(&[1; 200]).is_none(), "too many");
    }

    proptest! {
        #[test]
        fn oids_round_trip(first in 0u32..3, second in 0u32..40, rest in prop::collection::vec(any::<u32>(), 0..126)) {
            let mut arcs = vec![first, second];
            arcs.extend(rest);
            let mut out = Vec::new();
            object_identifier(&mut out, &Oid::new(&arcs));
            let read = AsnReader::from_bytes(&out).read_asn_objectidentifier().unwrap();
            let decoded = oid(read.as_bytes()).unwrap();
            prop_assert_eq!(decoded.arcs(), &arcs[..]);
        }

        #[test]
        fn integers_round_trip(value in any::<u32>()) {
            let mut out = Vec::new();
            unsigned(&mut out, value);
            prop_assert_eq!(AsnReader::from_bytes(&out).read_asn_integer().unwrap(), i64::from(value));
            prop_assert!(out.len() <= 7);
        }

        #[test]
        fn ids_are_patched_in_place(id in SMALLEST_ID..=i32::MAX as u32, count in 0usize..40) {
            let pdu = Pdu::new(&Request::Get(vec![Oid::new(&[1, 3, 6, 1, 2, 1, 1, 1, 0]); count]), false);
            let mut out = vec![1, 2, 3];
            pdu.write(&mut out, id);
            let at = out.len() - pdu.id_from_end();
            prop_assert_eq!(&out[at..at + 4], &id.to_be_bytes()[..]);
        }
    }
}
