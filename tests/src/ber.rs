//! BER of SNMPv1 and v2c messages (RFC 1157, RFC 3416 section 3), as the simulator speaks it.
//!
//! Written apart from the node's codec on purpose: a simulated device must be an independent peer, so this
//! file must never import from `quire_node`. It decodes requests and encodes responses, nothing more.

/// `version` of SNMPv1.
pub const V1: u8 = 0;
/// `version` of SNMPv2c.
pub const V2C: u8 = 1;

/// PDU tags (RFC 3416 section 3).
pub mod pdu {
    /// GetRequest.
    pub const GET: u8 = 0xA0;
    /// GetNextRequest.
    pub const GETNEXT: u8 = 0xA1;
    /// Response.
    pub const RESPONSE: u8 = 0xA2;
    /// SetRequest.
    pub const SET: u8 = 0xA3;
    /// GetBulkRequest.
    pub const GETBULK: u8 = 0xA5;
}

/// Value tags (RFC 2578 section 7.1) and the three exceptions of RFC 3416.
pub mod tag {
    /// INTEGER, Integer32.
    pub const INTEGER: u8 = 0x02;
    /// OCTET STRING.
    pub const OCTETS: u8 = 0x04;
    /// NULL.
    pub const NULL: u8 = 0x05;
    /// OBJECT IDENTIFIER.
    pub const OID: u8 = 0x06;
    /// Counter32.
    pub const COUNTER32: u8 = 0x41;
    /// Gauge32.
    pub const GAUGE32: u8 = 0x42;
    /// TimeTicks.
    pub const TICKS: u8 = 0x43;
    /// Counter64.
    pub const COUNTER64: u8 = 0x46;
    /// noSuchObject.
    pub const NO_SUCH_OBJECT: u8 = 0x80;
    /// noSuchInstance.
    pub const NO_SUCH_INSTANCE: u8 = 0x81;
    /// endOfMibView.
    pub const END_OF_MIB_VIEW: u8 = 0x82;
    pub(super) const SEQUENCE: u8 = 0x30;
}

/// A decoded request. One is reused for every packet, so that answering allocates nothing.
#[derive(Debug, Default)]
pub struct Request {
    /// [`V1`] or [`V2C`].
    pub version: u8,
    /// The community as sent.
    pub community: Vec<u8>,
    /// A tag of [`pdu`].
    pub kind: u8,
    /// request-id.
    pub id: i64,
    /// GETBULK: non-repeaters.
    pub non_repeaters: i64,
    /// GETBULK: max-repetitions.
    pub max_repetitions: i64,
    /// The content of the varbind list as received: what an error response of SNMPv1 echoes.
    pub raw_varbinds: Vec<u8>,
    arcs: Vec<u32>,
    ends: Vec<usize>,
}

impl Request {
    /// How many varbinds were asked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether no varbind was asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The arcs of the n-th name; empty where there is none.
    #[must_use]
    pub fn name(&self, n: usize) -> &[u32] {
        let from = if n == 0 { 0 } else { self.ends.get(n - 1).copied().unwrap_or(0) };
        let to = self.ends.get(n).copied().unwrap_or(from);
        self.arcs.get(from..to).unwrap_or(&[])
    }

    /// Decodes `packet` into `self`; `None` for anything that is no request of v1 or v2c.
    pub fn read(&mut self, packet: &[u8]) -> Option<()> {
        let mut message = Reader { rest: packet }.enter(tag::SEQUENCE)?;
        self.version = u8::try_from(message.integer()?).ok().filter(|v| *v <= V2C)?;
        self.community.clear();
        self.community.extend_from_slice(message.take(tag::OCTETS)?);
        let (kind, body) = message.any()?;
        self.kind = kind;
        let mut body = Reader { rest: body };
        self.id = body.integer()?;
        self.non_repeaters = body.integer()?;
        self.max_repetitions = body.integer()?;
        let mut varbinds = body.enter(tag::SEQUENCE)?;
        self.raw_varbinds.clear();
        self.raw_varbinds.extend_from_slice(varbinds.rest);
        self.arcs.clear();
        self.ends.clear();
        while !varbinds.rest.is_empty() {
            let mut bind = varbinds.enter(tag::SEQUENCE)?;
            decode_oid(bind.take(tag::OID)?, &mut self.arcs)?;
            bind.any()?;
            self.ends.push(self.arcs.len());
        }
        Some(())
    }
}

/// True for a message of SNMPv3 (RFC 3412 section 6): what a sweep asks those for that are silent to communities.
#[must_use]
pub fn is_v3(packet: &[u8]) -> bool {
    let message = Reader { rest: packet }.enter(tag::SEQUENCE);
    message.and_then(|mut message| message.integer()) == Some(3)
}

/// Walks over the TLVs of one level.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.rest.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let mut length = usize::from(first);
        if first & 0x80 != 0 {
            let octets = usize::from(first & 0x7F);
            if octets == 0 || octets > 3 || octets > rest.len() {
                return None;
            }
            let (long, after) = rest.split_at(octets);
            length = long.iter().fold(0, |n, b| n << 8 | usize::from(*b));
            rest = after;
        }
        if length > rest.len() {
            return None;
        }
        let (value, after) = rest.split_at(length);
        self.rest = after;
        Some((tag, value))
    }

    fn take(&mut self, wanted: u8) -> Option<&'a [u8]> {
        self.any().filter(|(tag, _)| *tag == wanted).map(|(_, value)| value)
    }

    fn enter(&mut self, wanted: u8) -> Option<Reader<'a>> {
        self.take(wanted).map(|rest| Reader { rest })
    }

    fn integer(&mut self) -> Option<i64> {
        let octets = self.take(tag::INTEGER)?;
        if octets.is_empty() || octets.len() > 5 {
            return None;
        }
        let sign = if octets[0] & 0x80 != 0 { -1i64 } else { 0 };
        Some(octets.iter().fold(sign, |n, b| n << 8 | i64::from(*b)))
    }
}

fn decode_oid(octets: &[u8], arcs: &mut Vec<u32>) -> Option<()> {
    let mut first = true;
    let mut arc: u64 = 0;
    for octet in octets {
        arc = arc << 7 | u64::from(octet & 0x7F);
        if arc > u64::from(u32::MAX) + 80 {
            return None;
        }
        if octet & 0x80 != 0 {
            continue;
        }
        if first {
            let root = (arc / 40).min(2);
            arcs.push(root as u32);
            arc -= root * 40;
            first = false;
        }
        arcs.push(u32::try_from(arc).ok()?);
        arc = 0;
    }
    octets.last().is_some_and(|last| last & 0x80 == 0).then_some(())
}

/// The content octets of an OBJECT IDENTIFIER of at least two arcs.
#[must_use]
pub fn encode_oid(arcs: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(arcs.len() + 4);
    let [first, second, rest @ ..] = arcs else { return out };
    push_arc(&mut out, u64::from(*first) * 40 + u64::from(*second));
    for arc in rest {
        push_arc(&mut out, u64::from(*arc));
    }
    out
}

fn push_arc(out: &mut Vec<u8>, arc: u64) {
    let groups = (64 - (arc | 1).leading_zeros()).div_ceil(7);
    for group in (0..groups).rev() {
        let bits = (arc >> (7 * group)) as u8 & 0x7F;
        out.push(if group == 0 { bits } else { bits | 0x80 });
    }
}

fn push_length(out: &mut Vec<u8>, length: usize) {
    match length {
        0..=0x7F => out.push(length as u8),
        0x80..=0xFF => out.extend_from_slice(&[0x81, length as u8]),
        _ => out.extend_from_slice(&[0x82, (length >> 8) as u8, length as u8]),
    }
}

const fn header(length: usize) -> usize {
    match length {
        0..=0x7F => 2,
        0x80..=0xFF => 3,
        _ => 4,
    }
}

/// A value on its way out, borrowed from the table or computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// INTEGER.
    Int(i64),
    /// OCTET STRING.
    Octets(&'a [u8]),
    /// OBJECT IDENTIFIER, as content octets.
    Oid(&'a [u8]),
    /// Counter32, Gauge32, TimeTicks or Counter64, by tag.
    Unsigned(u8, u64),
    /// NULL or one of the exceptions, by tag.
    Empty(u8),
}

/// Appends the TLV of an INTEGER or of an unsigned type.
fn push_integer(out: &mut Vec<u8>, tag: u8, value: i128) {
    let mut octets = 1;
    while octets < 9 && !(-(1i128 << (8 * octets - 1))..1i128 << (8 * octets - 1)).contains(&value) {
        octets += 1;
    }
    out.extend_from_slice(&[tag, octets as u8]);
    out.extend((0..octets).rev().map(|n| (value >> (8 * n)) as u8));
}

/// Appends one varbind: `name` is the content octets of the OID.
pub fn push_varbind(out: &mut Vec<u8>, name: &[u8], value: Value<'_>) {
    let mut small = Vec::new();
    let (tag, body): (u8, &[u8]) = match value {
        Value::Octets(octets) => (tag::OCTETS, octets),
        Value::Oid(octets) => (tag::OID, octets),
        Value::Empty(tag) => (tag, &[]),
        Value::Int(_) | Value::Unsigned(..) => (0, &[]),
    };
    match value {
        Value::Int(n) => push_integer(&mut small, tag::INTEGER, i128::from(n)),
        Value::Unsigned(tag, n) => push_integer(&mut small, tag, i128::from(n)),
        Value::Octets(_) | Value::Oid(_) | Value::Empty(_) => {}
    }
    let value_length = if small.is_empty() { header(body.len()) + body.len() } else { small.len() };
    out.push(tag::SEQUENCE);
    push_length(out, header(name.len()) + name.len() + value_length);
    out.push(tag::OID);
    push_length(out, name.len());
    out.extend_from_slice(name);
    if small.is_empty() {
        out.push(tag);
        push_length(out, body.len());
        out.extend_from_slice(body);
    } else {
        out.extend_from_slice(&small);
    }
}

/// Writes a whole Response into `out`, replacing what was there. `varbinds` is the list's content.
pub fn write_response(out: &mut Vec<u8>, request: &Request, error: (i64, i64), varbinds: &[u8]) {
    write_message(out, request, pdu::RESPONSE, error, varbinds);
}

/// `more`: error-status and error-index, or GETBULK's non-repeaters and max-repetitions.
fn write_message(out: &mut Vec<u8>, request: &Request, kind: u8, more: (i64, i64), varbinds: &[u8]) {
    let mut head = Vec::with_capacity(24);
    push_integer(&mut head, tag::INTEGER, i128::from(request.id));
    push_integer(&mut head, tag::INTEGER, i128::from(more.0));
    push_integer(&mut head, tag::INTEGER, i128::from(more.1));
    let body = head.len() + header(varbinds.len()) + varbinds.len();
    out.clear();
    out.push(tag::SEQUENCE);
    push_length(out, 3 + header(request.community.len()) + request.community.len() + header(body) + body);
    out.extend_from_slice(&[tag::INTEGER, 1, request.version, tag::OCTETS]);
    push_length(out, request.community.len());
    out.extend_from_slice(&request.community);
    out.push(kind);
    push_length(out, body);
    out.extend_from_slice(&head);
    out.push(tag::SEQUENCE);
    push_length(out, varbinds.len());
    out.extend_from_slice(varbinds);
}

/// Writes a request with NULL values, for tests and load generators that ask simulated devices.
#[must_use]
pub fn write_request(
    version: u8,
    community: &str,
    kind: u8,
    id: i64,
    more: (i64, i64),
    names: &[&[u32]],
) -> Vec<u8> {
    let mut varbinds = Vec::new();
    for name in names {
        push_varbind(&mut varbinds, &encode_oid(name), Value::Empty(tag::NULL));
    }
    let request = Request { version, community: community.as_bytes().to_vec(), id, ..Request::default() };
    let mut out = Vec::new();
    write_message(&mut out, &request, kind, more, &varbinds);
    out
}

/// The parts of a response: (error-status, error-index, varbinds as (name, tag, content)).
pub type Response = (i64, i64, Vec<(Vec<u32>, u8, Vec<u8>)>);

/// Decodes a response; the other half of [`write_request`].
#[must_use]
pub fn read_response(packet: &[u8]) -> Option<Response> {
    let mut message = Reader { rest: packet }.enter(tag::SEQUENCE)?;
    message.integer()?;
    message.take(tag::OCTETS)?;
    let mut body = message.enter(pdu::RESPONSE)?;
    body.integer()?;
    let error = (body.integer()?, body.integer()?);
    let mut list = body.enter(tag::SEQUENCE)?;
    let mut varbinds = Vec::new();
    while !list.rest.is_empty() {
        let mut bind = list.enter(tag::SEQUENCE)?;
        let mut name = Vec::new();
        decode_oid(bind.take(tag::OID)?, &mut name)?;
        let (tag, content) = bind.any()?;
        varbinds.push((name, tag, content.to_vec()));
    }
    Some((error.0, error.1, varbinds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn request_of_net_snmp_is_understood() {
        // snmpget -v2c -c public … 1.3.6.1.2.1.1.1.0, captured
        let packet = [
            0x30, 0x29, 0x02, 0x01, 0x01, 0x04, 0x06, b'p', b'u', b'b', b'l', b'i', b'c', 0xA0, 0x1C, 0x02,
            0x04, 0x1F, 0x2E, 0x3D, 0x4C, 0x02, 0x01, 0x00, 0x02, 0x01, 0x00, 0x30, 0x0E, 0x30, 0x0C, 0x06,
            0x08, 0x2B, 0x06, 0x01, 0x02, 0x01, 0x01, 0x01, 0x00, 0x05, 0x00,
        ];
        let mut request = Request::default();
        request.read(&packet).unwrap();
        assert_eq!((request.version, request.kind, request.id), (V2C, pdu::GET, 0x1F2E_3D4C));
        assert_eq!(request.community, b"public");
        assert_eq!(request.name(0), [1, 3, 6, 1, 2, 1, 1, 1, 0]);
    }

    #[test]
    fn integers_have_their_shortest_form() {
        for (value, expected) in [(0, vec![2, 1, 0]), (-3, vec![2, 1, 0xFD]), (128, vec![2, 2, 0, 128])] {
            let mut out = Vec::new();
            push_integer(&mut out, tag::INTEGER, value);
            assert_eq!(out, expected);
        }
        let mut out = Vec::new();
        push_integer(&mut out, tag::COUNTER64, i128::from(u64::MAX));
        assert_eq!(out, [0x46, 9, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(id in any::<i32>(), arcs in prop::collection::vec(any::<u32>(), 0..60), community in "[a-z]{0,200}") {
            let name: Vec<u32> = [1, 3].into_iter().chain(arcs).collect();
            let packet = write_request(V2C, &community, pdu::GETBULK, id.into(), (0, 10), &[&name, &[1, 3]]);
            let mut request = Request::default();
            request.read(&packet).unwrap();
            prop_assert_eq!(request.id, i64::from(id));
            prop_assert_eq!(request.kind, pdu::GETBULK);
            prop_assert_eq!((request.len(), request.max_repetitions), (2, 10));
            prop_assert_eq!(request.name(0), &name[..]);
            prop_assert_eq!(request.name(1), &[1, 3]);
        }

        #[test]
        fn any_octets_are_survived(packet in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut request = Request::default();
            let _ = request.read(&packet);
            let _ = read_response(&packet);
        }
    }
}
