//! What SNMP carries, decoded: values, variable bindings and the three requests that only read.
//!
//! Architecture Invariant: there is no way to say SET in these types.

use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::Bytes;
use quire_proto::oid::Oid;

use super::prepared::Prepared;

/// A value (RFC 3416 section 3), the three exceptions of v2c included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// INTEGER / Integer32; wider than 32 bits where a broken device sends so.
    Integer(i64),
    /// OCTET STRING.
    OctetString(Bytes),
    /// NULL.
    Null,
    /// OBJECT IDENTIFIER.
    ObjectId(Oid),
    /// IpAddress.
    IpAddress(Ipv4Addr),
    /// Counter32.
    Counter32(u32),
    /// Gauge32 and Unsigned32.
    Gauge32(u32),
    /// TimeTicks, hundredths of a second.
    TimeTicks(u32),
    /// Opaque.
    Opaque(Bytes),
    /// Counter64.
    Counter64(u64),
    /// noSuchObject.
    NoSuchObject,
    /// noSuchInstance.
    NoSuchInstance,
    /// endOfMibView.
    EndOfMibView,
}

/// A name with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VarBind {
    /// Which object instance.
    pub oid: Oid,
    /// What it holds.
    pub value: Value,
}

/// A question. Nothing here writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// GetRequest-PDU.
    Get(Vec<Oid>),
    /// GetNextRequest-PDU.
    GetNext(Vec<Oid>),
    /// GetBulkRequest-PDU (RFC 3416 section 4.2.3); under SNMPv1 the engine asks GetNext instead.
    GetBulk {
        /// How many of the first `oids` are asked once only.
        non_repeaters: u8,
        /// How often the others are repeated.
        max_repetitions: u8,
        /// The names to go on from.
        oids: Vec<Oid>,
    },
}

/// A question in either of its forms.
#[derive(Clone, Debug)]
pub enum Question {
    /// To be encoded.
    Plain(Request),
    /// Encoded already; never for SNMPv1, where it ends as [`Failure::Malformed`](super::Failure), because that has no GETBULK.
    Prepared(Arc<Prepared>),
}

impl From<Request> for Question {
    fn from(request: Request) -> Self {
        Question::Plain(request)
    }
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// In the order of the request; may be fewer than asked.
    pub varbinds: Vec<VarBind>,
    /// error-status (RFC 3416 section 3): 0 noError, 1 tooBig, 2 noSuchName, 5 genErr...
    pub error_status: u32,
    /// error-index: the offending variable binding, counted from 1.
    pub error_index: u32,
}
