//! Names that machines give to things: nodes, devices, units, readings.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::shared::Text;

/// A cluster member: the log index of the entry that admitted it, therefore never reused. 0 is nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl NodeId {
    /// Nobody: the owner of an unassigned unit.
    pub const NOBODY: NodeId = NodeId(0);
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A fencing number: the log index of the grant or claim it belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Milliseconds since the Unix epoch, UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// RFC 3339 in UTC with milliseconds, as every listing prints it.
    pub fn rfc3339(self) -> String {
        let at = jiff::Timestamp::from_millisecond(i64::try_from(self.0).unwrap_or(i64::MAX))
            .unwrap_or(jiff::Timestamp::MAX);
        format!("{at:.3}")
    }
}

impl FromStr for Millis {
    type Err = jiff::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let at: jiff::Timestamp = text.parse()?;
        Ok(Millis(u64::try_from(at.as_millisecond()).unwrap_or(0)))
    }
}

/// The zone of a segment that names none: whichever zone reaches it best.
pub const ANY_ZONE: &str = "any";

/// One piece of work: `zone:prefix`, for example `hq:10.1.4.0/24`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnitId(String);

impl UnitId {
    /// The unit of a zone's prefix.
    pub fn new(zone: &str, prefix: IpNet) -> Self {
        UnitId(format!("{zone}:{prefix}"))
    }

    /// As listings print it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The zone before the colon.
    pub fn zone(&self) -> &str {
        self.0.split_once(':').map_or(ANY_ZONE, |(zone, _)| zone)
    }

    /// The prefix behind the colon.
    pub fn prefix(&self) -> Option<IpNet> {
        self.0.split_once(':').and_then(|(_, prefix)| prefix.parse().ok())
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with the text of an id.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not a unit: expected ZONE:PREFIX, for example hq:10.1.4.0/24")]
pub struct BadUnit(String);

impl FromStr for UnitId {
    type Err = BadUnit;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((zone, prefix)) if !zone.is_empty() && prefix.parse::<IpNet>().is_ok() => {
                Ok(UnitId(text.to_owned()))
            }
            _ => Err(BadUnit(text.to_owned())),
        }
    }
}

/// A device, whatever addresses and cards it has had: 13 characters, minted once.
///
/// Kept without an allocation, because a node has one in hand for every device that it knows, twice.
#[derive(Clone, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct DeviceId(Letters);

#[derive(Clone)]
enum Letters {
    Minted([u8; LETTERS]),
    /// What is no id of ours, as a person may type it.
    Other(Text),
}

/// Characters of an id.
const LETTERS: usize = 13;

impl DeviceId {
    /// The `ordinal`-th device minted by the log entry at `index`, in the cluster that `salt` names.
    ///
    /// The mixing is a bijection on 64 bits, so two different entries never mint the same id.
    pub fn mint(salt: u64, index: u64, ordinal: u16) -> Self {
        let mut x = (index << 16 | u64::from(ordinal)) ^ salt;
        // SplitMix64's finaliser.
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        DeviceId(Letters::Minted(base32(x)))
    }

    /// For a device outside any cluster (`quire discover`): the same evidence gives the same id.
    pub fn from_evidence(evidence: &str) -> Self {
        // FNV-1a, 64 bits.
        let hash = evidence.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, octet| {
            (hash ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3)
        });
        DeviceId(Letters::Minted(base32(hash)))
    }

    /// The 13 characters.
    pub fn as_str(&self) -> &str {
        match &self.0 {
            // They are ASCII: nothing else is put there.
            Letters::Minted(letters) => std::str::from_utf8(letters).unwrap_or_default(),
            Letters::Other(text) => text,
        }
    }
}

impl From<String> for DeviceId {
    fn from(text: String) -> Self {
        match <[u8; LETTERS]>::try_from(text.as_bytes()) {
            Ok(letters) if letters.is_ascii() => DeviceId(Letters::Minted(letters)),
            Ok(_) | Err(_) => DeviceId(Letters::Other(text.into())),
        }
    }
}

impl From<DeviceId> for String {
    fn from(id: DeviceId) -> Self {
        id.as_str().to_owned()
    }
}

impl PartialEq for DeviceId {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for DeviceId {}

impl PartialOrd for DeviceId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DeviceId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.as_str().cmp(other.as_str())
    }
}

impl Hash for DeviceId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_str().hash(state);
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("DeviceId").field(&self.as_str()).finish()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Crockford's alphabet without the letters that people misread.
fn base32(mut x: u64) -> [u8; LETTERS] {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut out = [0u8; LETTERS];
    for slot in out.iter_mut().rev() {
        *slot = ALPHABET[(x & 31) as usize];
        x >>= 5;
    }
    out
}

/// A reading's name for ever: the node that made it and that node's own number.
pub fn reading_id(cluster: &[u8], node: NodeId, seq: u64) -> String {
    let cluster: String = cluster.iter().take(4).map(|octet| format!("{octet:02x}")).collect();
    format!("{cluster}-{node}-{seq}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_ids_differ_and_are_stable() {
        let a = DeviceId::mint(7, 1043, 0);
        assert_eq!(a, DeviceId::mint(7, 1043, 0));
        assert_ne!(a, DeviceId::mint(7, 1043, 1));
        assert_ne!(a, DeviceId::mint(7, 1044, 0));
        assert_eq!(a.as_str().len(), LETTERS);
    }

    #[test]
    fn device_ids_are_their_text() {
        for text in ["", "0123456789abc", "0123456789abé", "something else"] {
            let id = DeviceId::from(text.to_owned());
            assert_eq!((id.as_str(), id.to_string()), (text, text.to_owned()));
            assert_eq!(serde_json::to_string(&id).unwrap(), format!("{text:?}"));
            assert_eq!(serde_json::from_str::<DeviceId>(&format!("{text:?}")).unwrap(), id);
        }
        let minted = DeviceId::mint(7, 1043, 0);
        assert_eq!(DeviceId::from(minted.to_string()), minted);
        assert_eq!(size_of::<DeviceId>(), 24);
    }

    #[test]
    fn units_are_parsed_at_the_door() {
        let unit: UnitId = "hq:10.1.4.0/24".parse().unwrap();
        assert_eq!(unit.zone(), "hq");
        assert_eq!(unit.prefix(), "10.1.4.0/24".parse().ok());
        assert!("10.1.4.0/24".parse::<UnitId>().is_err());
        assert!(":10.1.4.0/24".parse::<UnitId>().is_err());
    }

    #[test]
    fn times_print_in_utc() {
        assert_eq!(Millis(1_700_000_000_123).rfc3339(), "2023-11-14T22:13:20.123Z");
        assert_eq!("2023-11-14T22:13:20.123Z".parse::<Millis>().unwrap(), Millis(1_700_000_000_123));
    }
}
