//! SNMP messages: requests out, answers in. Parses at the door, so that nothing behind it sees BER.
//!
//! Decoding is done with `snmp2::AsnReader` and its `Value`s. Guards, each with a test below: the message
//! framing of v3 is read here (see `usm.rs` for why), variable bindings are walked one by one so that none is
//! dropped in silence, and nothing here writes into a received datagram.

use std::net::Ipv4Addr;

use bytes::Bytes;
use quire_proto::oid::Oid;
use snmp2::AsnReader;

use super::ber::{self, Pdu};
use super::credential::Credential;
use super::prepared::{Expected, Prepared};
use super::usm::{Keys, LONGEST_ENGINE_ID};
use super::value::{Response, Value, VarBind};

/// The datagram is not an answer: broken BER, or not what an engine sends back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<snmp2::Error> for Malformed {
    fn from(_: snmp2::Error) -> Self {
        Malformed
    }
}

/// The largest answer that this engine takes, said in every SNMPv3 message (msgMaxSize).
const MAX_SIZE: u32 = 65_507;

const FLAG_AUTH: u8 = 1;
const FLAG_PRIV: u8 = 2;
const FLAG_REPORTABLE: u8 = 4;
/// The user-based security model (RFC 3411 section 5).
const USM: u32 = 3;

const RESPONSE: u8 = 0xa2;
const REPORT: u8 = 0xa8;

/// Writes a whole SNMPv1 or v2c message; gives where its request-id is, for prebuilt probes.
pub(crate) fn write_community(out: &mut Vec<u8>, v1: bool, community: &[u8], pdu: &Pdu, id: u32) -> usize {
    out.clear();
    ber::element(out, ber::SEQUENCE, |out| {
        ber::unsigned(out, u32::from(!v1));
        ber::octet_string(out, community);
        pdu.write(out, id);
    });
    out.len() - pdu.id_from_end()
}

/// How one SNMPv3 request is to be secured.
pub(crate) struct Security<'a> {
    pub(crate) user: &'a str,
    pub(crate) context: &'a str,
    pub(crate) engine_id: &'a [u8],
    pub(crate) boots: u32,
    pub(crate) time: u32,
    /// `None` for noAuthNoPriv.
    pub(crate) keys: Option<&'a Keys>,
    /// False for an authenticated but clear message.
    pub(crate) encrypt: bool,
    /// Never the same twice for one key.
    pub(crate) salt: u64,
}

/// Writes engine discovery (RFC 3414 section 4): who are you?
pub(crate) fn write_discovery(out: &mut Vec<u8>, id: u32) {
    let nobody = Security {
        user: "",
        context: "",
        engine_id: &[],
        boots: 0,
        time: 0,
        keys: None,
        encrypt: false,
        salt: 0,
    };
    write_v3(out, &nobody, &Pdu::empty(), id);
}

/// Writes a whole SNMPv3 message (RFC 3412 section 6, RFC 3414 section 2.4).
pub(crate) fn write_v3(out: &mut Vec<u8>, security: &Security<'_>, pdu: &Pdu, id: u32) {
    seal(out, security, id, MAX_SIZE, |out| pdu.write(out, id));
}

/// Writes a message around whatever PDU `write_pdu` makes.
fn seal(
    out: &mut Vec<u8>,
    security: &Security<'_>,
    id: u32,
    max_size: u32,
    write_pdu: impl FnOnce(&mut Vec<u8>),
) {
    let keys = security.keys.filter(|keys| keys.digest_len() > 0);
    let encrypt = security.encrypt && keys.is_some_and(Keys::has_privacy);
    let mut data = Vec::with_capacity(256);
    ber::element(&mut data, ber::SEQUENCE, |out| {
        ber::octet_string(out, security.engine_id);
        ber::octet_string(out, security.context.as_bytes());
        write_pdu(out);
    });
    let mut params: &[u8] = &[];
    let salt;
    if let Some(keys) = keys.filter(|_| encrypt) {
        salt = keys.encrypt(security.boots, security.time, security.salt, &mut data);
        params = &salt;
        let cipher = std::mem::take(&mut data);
        ber::octet_string(&mut data, &cipher);
    }
    let digest_len = keys.map_or(0, Keys::digest_len);
    // Behind the digest come only the privacy parameters and the data.
    let digest_from_end = digest_len + 2 + params.len() + data.len();
    out.clear();
    ber::element(out, ber::SEQUENCE, |out| {
        ber::unsigned(out, 3);
        ber::element(out, ber::SEQUENCE, |out| {
            let flags = FLAG_REPORTABLE
                | if keys.is_some() { FLAG_AUTH } else { 0 }
                | if encrypt { FLAG_PRIV } else { 0 };
            ber::unsigned(out, id);
            ber::unsigned(out, max_size);
            ber::octet_string(out, &[flags]);
            ber::unsigned(out, USM);
        });
        ber::element(out, ber::OCTET_STRING, |out| {
            ber::element(out, ber::SEQUENCE, |out| {
                ber::octet_string(out, security.engine_id);
                ber::unsigned(out, security.boots);
                ber::unsigned(out, security.time);
                ber::octet_string(out, security.user.as_bytes());
                ber::octet_string(out, &[0; 48][..digest_len]);
                ber::octet_string(out, params);
            });
        });
        out.extend_from_slice(&data);
    });
    if let Some(keys) = keys {
        let at = out.len() - digest_from_end;
        keys.sign(out, at);
    }
}

/// A received message, opened as far as it can be without keys.
#[derive(Debug)]
pub(crate) enum Opened<'a> {
    /// SNMPv1 or v2c.
    Community { v1: bool, community: &'a [u8], pdu: Answered<'a> },
    /// SNMPv3.
    V3(Sealed<'a>),
}

/// An SNMPv3 message whose digest has not been checked and whose data may be encrypted.
#[derive(Debug)]
pub(crate) struct Sealed<'a> {
    /// The message alone, without what may follow it in the datagram.
    pub(crate) message: &'a [u8],
    pub(crate) id: i64,
    pub(crate) authenticated: bool,
    pub(crate) encrypted: bool,
    pub(crate) engine_id: &'a [u8],
    pub(crate) boots: u32,
    pub(crate) time: u32,
    pub(crate) user: &'a [u8],
    pub(crate) digest: &'a [u8],
    /// Where the digest begins in `message`.
    pub(crate) digest_at: usize,
    pub(crate) params: &'a [u8],
    /// The scopedPDU, or what it was encrypted to.
    pub(crate) data: &'a [u8],
}

/// An answering PDU, its variable bindings not decoded yet.
#[derive(Debug)]
pub(crate) struct Answered<'a> {
    /// A Report-PDU, else a Response-PDU.
    pub(crate) report: bool,
    pub(crate) id: i64,
    error_status: u32,
    error_index: u32,
    varbinds: &'a [u8],
}

/// Opens a datagram.
pub(crate) fn open(datagram: &[u8]) -> Result<Opened<'_>, Malformed> {
    let mut outer = AsnReader::from_bytes(datagram);
    let mut message = AsnReader::from_bytes(outer.read_raw(ber::SEQUENCE)?);
    let whole = &datagram[..datagram.len() - outer.bytes_left()];
    match message.read_asn_integer()? {
        version @ (0 | 1) => {
            let community = message.read_asn_octetstring()?;
            Ok(Opened::Community { v1: version == 0, community, pdu: answered(&mut message)? })
        }
        3 => open_v3(whole, message).map(Opened::V3),
        _ => Err(Malformed),
    }
}

fn open_v3<'a>(whole: &'a [u8], mut message: AsnReader<'a>) -> Result<Sealed<'a>, Malformed> {
    let mut header = AsnReader::from_bytes(message.read_raw(ber::SEQUENCE)?);
    let id = header.read_asn_integer()?;
    // RFC 3412 §6: 484 to 2^31-1; what the other side can take does not concern the one who asks.
    let _max_size = header.read_asn_integer()?;
    let flags = *header.read_asn_octetstring()?.first().ok_or(Malformed)?;
    if header.read_asn_integer()? != i64::from(USM) || flags & (FLAG_AUTH | FLAG_PRIV) == FLAG_PRIV {
        return Err(Malformed);
    }
    let mut outer = AsnReader::from_bytes(message.read_asn_octetstring()?);
    let mut params = AsnReader::from_bytes(outer.read_raw(ber::SEQUENCE)?);
    let engine_id = params.read_asn_octetstring()?;
    if engine_id.len() > LONGEST_ENGINE_ID {
        return Err(Malformed);
    }
    let boots = engine_counter(params.read_asn_integer()?)?;
    let time = engine_counter(params.read_asn_integer()?)?;
    let user = params.read_asn_octetstring()?;
    let digest = params.read_asn_octetstring()?;
    let encrypted = flags & FLAG_PRIV != 0;
    let sealed = Sealed {
        message: whole,
        id,
        authenticated: flags & FLAG_AUTH != 0,
        encrypted,
        engine_id,
        boots,
        time,
        user,
        digest,
        digest_at: (digest.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize),
        params: params.read_asn_octetstring()?,
        data: if encrypted { message.read_asn_octetstring()? } else { message.read_raw(ber::SEQUENCE)? },
    };
    Ok(sealed)
}

/// engineBoots and engineTime are 0 to 2^31-1 (RFC 3414 section 2.4).
fn engine_counter(value: i64) -> Result<u32, Malformed> {
    i32::try_from(value).ok().and_then(|value| u32::try_from(value).ok()).ok_or(Malformed)
}

/// The PDU in the contents of a scopedPDU.
pub(crate) fn scoped(contents: &[u8]) -> Result<Answered<'_>, Malformed> {
    let mut reader = AsnReader::from_bytes(contents);
    // contextEngineID and contextName: devices echo them carelessly, and the digest has vouched for the sender.
    reader.read_asn_octetstring()?;
    reader.read_asn_octetstring()?;
    answered(&mut reader)
}

/// The PDU in a decrypted scopedPDU; what follows it is padding (RFC 3414 section 8.1.1.3).
pub(crate) fn scoped_decrypted(data: &[u8]) -> Result<Answered<'_>, Malformed> {
    scoped(AsnReader::from_bytes(data).read_raw(ber::SEQUENCE)?)
}

fn answered<'a>(message: &mut AsnReader<'a>) -> Result<Answered<'a>, Malformed> {
    let tag = message.peek_byte()?;
    if tag != RESPONSE && tag != REPORT {
        return Err(Malformed);
    }
    let mut pdu = AsnReader::from_bytes(message.read_raw(tag)?);
    let id = pdu.read_asn_integer()?;
    let error_status = u32::try_from(pdu.read_asn_integer()?).map_err(|_| Malformed)?;
    // Some devices send -1 here; nothing rests on it.
    let error_index = u32::try_from(pdu.read_asn_integer()?).unwrap_or(0);
    Ok(Answered {
        report: tag == REPORT,
        id,
        error_status,
        error_index,
        varbinds: pdu.read_raw(ber::SEQUENCE)?,
    })
}

/// Decodes variable bindings, all or none; their strings share one copy. A value of a type that SNMP does not have, or that
/// is broken inside sound framing, becomes NULL and is counted in the second result; the others are still good.
pub(super) fn varbinds(contents: &[u8]) -> Result<(Vec<VarBind>, u32), Malformed> {
    let owner = &Bytes::copy_from_slice(contents);
    let mut reader = AsnReader::from_bytes(owner);
    let mut varbinds = Vec::with_capacity(count(reader.clone())?);
    let mut undecodable = 0;
    while reader.bytes_left() > 0 {
        let mut pair = AsnReader::from_bytes(reader.read_raw(ber::SEQUENCE)?);
        let oid = ber::oid(pair.read_asn_objectidentifier()?.as_bytes()).ok_or(Malformed)?;
        framed(pair.clone())?;
        let value = pair.next().and_then(|value| convert(value, owner)).unwrap_or_else(|| {
            undecodable += 1;
            Value::Null
        });
        varbinds.push(VarBind { oid, value });
    }
    Ok((varbinds, undecodable))
}

/// How many variable bindings there are.
fn count(mut reader: AsnReader<'_>) -> Result<usize, Malformed> {
    let mut count = 0;
    while reader.bytes_left() > 0 {
        reader.read_raw(ber::SEQUENCE)?;
        count += 1;
    }
    Ok(count)
}

impl Answered<'_> {
    /// Decodes the answer; the second result is that of [`varbinds`].
    pub(crate) fn response(&self) -> Result<(Response, u32), Malformed> {
        let (varbinds, undecodable) = varbinds(self.varbinds)?;
        let response = Response { varbinds, error_status: self.error_status, error_index: self.error_index };
        Ok((response, undecodable))
    }

    /// The answer, where it is exactly what a prepared question expects.
    pub(super) fn expected(&self, question: &Prepared) -> Option<Expected> {
        let as_expected = self.error_status == 0 && question.is_answered_by(self.varbinds);
        as_expected.then(|| Expected::of(self.varbinds))
    }

    /// The first OID of a Report: which usmStats counter was raised.
    pub(crate) fn first_oid(&self) -> Option<Oid> {
        let mut reader = AsnReader::from_bytes(self.varbinds);
        let mut pair = AsnReader::from_bytes(reader.read_raw(ber::SEQUENCE).ok()?);
        ber::oid(pair.read_asn_objectidentifier().ok()?.as_bytes())
    }
}

/// Checks that a value's length fits, whatever its type.
fn framed(mut pair: AsnReader<'_>) -> Result<(), Malformed> {
    let tag = pair.peek_byte()?;
    pair.read_raw(tag)?;
    Ok(())
}

/// Our value for snmp2's; `None` for what no variable binding may hold.
fn convert(value: snmp2::Value<'_>, owner: &Bytes) -> Option<Value> {
    use snmp2::Value as V;
    Some(match value {
        V::Integer(value) => Value::Integer(value),
        V::OctetString(octets) => Value::OctetString(owner.slice_ref(octets)),
        V::Null => Value::Null,
        V::ObjectIdentifier(oid) => Value::ObjectId(ber::oid(oid.as_bytes())?),
        V::IpAddress(octets) => Value::IpAddress(Ipv4Addr::from(octets)),
        V::Counter32(value) => Value::Counter32(value),
        V::Unsigned32(value) => Value::Gauge32(value),
        V::Timeticks(value) => Value::TimeTicks(value),
        V::Opaque(octets) => Value::Opaque(owner.slice_ref(octets)),
        V::Counter64(value) => Value::Counter64(value),
        V::NoSuchObject => Value::NoSuchObject,
        V::NoSuchInstance => Value::NoSuchInstance,
        V::EndOfMibView => Value::EndOfMibView,
        V::Boolean(_) | V::Sequence(_) | V::Set(_) | V::Constructed(..) => return None,
        V::GetRequest(_) | V::GetNextRequest(_) | V::GetBulkRequest(_) | V::Response(_) => return None,
        V::SetRequest(_) | V::InformRequest(_) | V::Trap(_) | V::Report(_) => return None,
    })
}

/// True when an answer of this version and community is one to a request under `credential`.
pub(crate) fn answers(credential: &Credential, v1: bool, community: &[u8]) -> bool {
    match credential {
        Credential::V1(own) => v1 && own.octets() == community,
        Credential::V2c(own) => !v1 && own.octets() == community,
        Credential::V3(_) => false,
    }
}

/// For simulated responders, of tests and of the fuzz targets.
pub(super) fn seal_response(out: &mut Vec<u8>, security: &Security<'_>, id: u32, max_size: u32, pdu: &[u8]) {
    seal(out, security, id, max_size, |out| out.extend_from_slice(pdu));
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
