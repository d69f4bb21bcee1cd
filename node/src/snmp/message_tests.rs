//! Guards of the decoder: every defect of snmp2 that would reach us, and broken devices.

use proptest::prelude::*;

use super::*;
use crate::snmp::sim::{community_message, pdu, varbind};

fn response(varbinds: &[u8]) -> Result<(Response, u32), Malformed> {
    let message = community_message(false, b"public", &pdu(false, 0x0123_4567, 0, varbinds));
    let Opened::Community { v1: false, community: b"public", pdu } = open(&message)? else {
        panic!("not v2c")
    };
    assert_eq!(pdu.id, 0x0123_4567);
    pdu.response()
}

#[test]
fn every_value_comes_through() {
    let oid = "1.3.6.1.2.1.1";
    let cases: &[(u8, &[u8], Value)] = &[
        (0x02, &[0xfd], Value::Integer(-3)),
        (0x02, &[0, 0x80, 0, 0, 0], Value::Integer(0x8000_0000)),
        (0x04, b"", Value::OctetString(Bytes::new())),
        (0x04, b"caf\xe9", Value::OctetString(Bytes::from_static(b"caf\xe9"))),
        (0x05, b"", Value::Null),
        (0x06, &[0x2b, 6, 1], Value::ObjectId("1.3.6.1".parse().unwrap())),
        (0x40, &[10, 1, 2, 3], Value::IpAddress(Ipv4Addr::new(10, 1, 2, 3))),
        (0x41, &[0, 0xff, 0xff, 0xff, 0xff], Value::Counter32(u32::MAX)),
        // Without the leading zero that BER wants: some devices do so, and mean the same.
        (0x41, &[0xff, 0xff, 0xff, 0xff], Value::Counter32(u32::MAX)),
        (0x42, &[7], Value::Gauge32(7)),
        (0x43, &[1, 0], Value::TimeTicks(256)),
        (0x44, b"opaque", Value::Opaque(Bytes::from_static(b"opaque"))),
        (0x46, &[0, 255, 255, 255, 255, 255, 255, 255, 255], Value::Counter64(u64::MAX)),
        (0x80, b"", Value::NoSuchObject),
        (0x81, b"", Value::NoSuchInstance),
        (0x82, b"", Value::EndOfMibView),
    ];
    let all: Vec<u8> = cases.iter().flat_map(|(tag, contents, _)| varbind(oid, *tag, contents)).collect();
    let (response, undecodable) = response(&all).unwrap();
    assert_eq!(undecodable, 0);
    let values: Vec<_> = response.varbinds.into_iter().map(|varbind| varbind.value).collect();
    assert_eq!(values, cases.iter().map(|(_, _, value)| value.clone()).collect::<Vec<_>>());
}

/// snmp2's iterator ends at the first binding that it cannot decode, so three bindings become one and no error.
#[test]
fn no_binding_is_dropped_in_silence() {
    for (tag, contents) in
        [(0x47, &b"x"[..]), (0x01, &[1]), (0x02, &[]), (0x40, &[1, 2]), (0x30, &[]), (0x80, &[1])]
    {
        let all = [
            varbind("1.3.6.1.1", 2, &[1]),
            varbind("1.3.6.1.2", tag, contents),
            varbind("1.3.6.1.3", 2, &[3]),
        ];
        let (response, undecodable) = response(&all.concat()).unwrap();
        assert_eq!((response.varbinds.len(), undecodable), (3, 1), "tag {tag:#x}");
        assert_eq!(response.varbinds[1].value, Value::Null);
        assert_eq!(response.varbinds[2].value, Value::Integer(3));
    }
    // Broken framing takes the whole answer.
    let all = [varbind("1.3.6.1.1", 2, &[1]), vec![0x30, 9, 6, 1, 0x2b]];
    assert_eq!(response(&all.concat()).unwrap_err(), Malformed);
    assert_eq!(response(&[0x30, 4, 6, 1, 0x2b, 4]).unwrap_err(), Malformed);
}

#[test]
fn padding_behind_a_message_is_left_alone() {
    let mut message = community_message(true, b"public", &pdu(false, 0x0123_4567, 2, b""));
    message.extend_from_slice(&[0; 20]);
    let Ok(Opened::Community { v1: true, pdu, .. }) = open(&message) else { panic!("not v1") };
    assert_eq!(pdu.response().unwrap().0.error_status, 2);
}

/// An SNMPv3 message with these engine boots and time, contents octets as given.
fn v3(max_size: &[u8], boots: &[u8], time: &[u8], flags: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    ber::element(&mut out, ber::SEQUENCE, |out| {
        ber::unsigned(out, 3);
        ber::element(out, ber::SEQUENCE, |out| {
            ber::unsigned(out, 0x0123_4567);
            ber::element(out, ber::INTEGER, |out| out.extend_from_slice(max_size));
            ber::octet_string(out, flags);
            ber::unsigned(out, USM);
        });
        ber::element(out, ber::OCTET_STRING, |out| {
            ber::element(out, ber::SEQUENCE, |out| {
                ber::octet_string(out, b"engine");
                ber::element(out, ber::INTEGER, |out| out.extend_from_slice(boots));
                ber::element(out, ber::INTEGER, |out| out.extend_from_slice(time));
                ber::octet_string(out, b"user");
                ber::octet_string(out, b"digest");
                ber::octet_string(out, b"");
            });
        });
        ber::element(out, ber::SEQUENCE, |out| {
            ber::octet_string(out, b"");
            ber::octet_string(out, b"");
            out.extend_from_slice(&pdu(true, 0x0123_4567, 0, b""));
        });
    });
    out
}

#[test]
fn v3_framing_takes_what_is_legal_and_only_that() {
    let good = v3(&[2, 0], &[0], &[5], &[1]);
    let Ok(Opened::V3(sealed)) = open(&good) else { panic!("not v3") };
    assert_eq!((sealed.boots, sealed.time, sealed.authenticated, sealed.encrypted), (0, 5, true, false));
    assert_eq!(&good[sealed.digest_at..sealed.digest_at + 6], b"digest");
    assert_eq!(sealed.message.len(), good.len());
    // msgMaxSize of 65,535 and 2^31-1 are common; snmp2 refuses both.
    assert!(open(&v3(&[0, 0xff, 0xff], &[1], &[1], &[0])).is_ok());
    assert!(open(&v3(&[0x7f, 0xff, 0xff, 0xff], &[1], &[1], &[0])).is_ok());
    // snmp2 panics at an engine time of i64::MIN where overflow is checked.
    let least = [0x80, 0, 0, 0, 0, 0, 0, 0];
    assert!(open(&v3(&[2, 0], &[1], &least, &[0])).is_err());
    assert!(open(&v3(&[2, 0], &least, &[1], &[0])).is_err());
    assert!(open(&v3(&[2, 0], &[0, 0x80, 0, 0, 0], &[1], &[0])).is_err(), "2^31 boots");
    assert!(open(&v3(&[2, 0], &[1], &[1], &[2])).is_err(), "encrypted but not authenticated");
    assert!(open(&v3(&[2, 0], &[1], &[1], &[])).is_err(), "no flags");
}

proptest! {
    /// Seeds are whole messages, so that a mutation gets past the first octets.
    #[test]
    fn mutated_messages_never_panic(
        which in 0usize..2,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let binding = [varbind("1.3.6.1.2.1.43.10.2.1.4.1.1", 0x41, &[1, 2]), varbind("1.3.6.1", 4, b"text")].concat();
        let mut message = match which {
            0 => community_message(false, b"public", &pdu(false, 0x0123_4567, 0, &binding)),
            _ => v3(&[2, 0], &[1], &[5], &[0]),
        };
        for (index, octet) in edits {
            *index.get_mut(&mut message) = octet;
        }
        message.truncate(message.len() - cut.index(message.len()) / 4);
        match open(&message) {
            Ok(Opened::Community { pdu, .. }) => {
                let _ = (pdu.response(), pdu.first_oid());
            }
            Ok(Opened::V3(sealed)) => {
                if let Ok(pdu) = scoped(sealed.data) {
                    let _ = (pdu.response(), pdu.first_oid());
                }
                let _ = scoped_decrypted(sealed.data);
            }
            Err(Malformed) => {}
        }
    }

    #[test]
    fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = open(&noise);
        let _ = scoped(&noise).map(|pdu| pdu.response());
        let _ = scoped_decrypted(&noise).map(|pdu| pdu.response());
    }
}
