//! Object identifiers (RFC 2578 section 7.1.3), small enough to live by the hundred thousand.

use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An object identifier: up to 128 arcs of 32 bits each (RFC 2578 section 3.5).
#[derive(Clone)]
pub struct Oid(Arcs);

/// Every object of the standard printer and host MIBs fits beside its length and tag in 64 octets, which is what a
/// vector of one would take on the heap; an answer of 25 objects then costs no allocation for its names.
const INLINE: usize = 15;

#[derive(Clone)]
enum Arcs {
    Inline(u8, [u32; INLINE]),
    Long(Box<[u32]>),
}

/// The longest OID that SMI allows.
pub const MAX_ARCS: usize = 128;

impl Oid {
    /// The OID of these arcs; longer than [`MAX_ARCS`] is cut off by the decoder before it gets here.
    pub fn new(arcs: &[u32]) -> Self {
        let mut inline = [0; INLINE];
        match inline.get_mut(..arcs.len()) {
            Some(room) => {
                room.copy_from_slice(arcs);
                Oid(Arcs::Inline(arcs.len() as u8, inline))
            }
            None => Oid(Arcs::Long(arcs.into())),
        }
    }

    /// The arcs, first to last.
    pub fn arcs(&self) -> &[u32] {
        match &self.0 {
            Arcs::Inline(len, arcs) => &arcs[..usize::from(*len)],
            Arcs::Long(arcs) => arcs,
        }
    }

    /// True when `self` lies in the subtree of `root`, the root itself included.
    pub fn starts_with(&self, root: &Oid) -> bool {
        self.arcs().starts_with(root.arcs())
    }

    /// The arcs behind `root`, where `self` lies in its subtree.
    pub fn suffix(&self, root: &Oid) -> Option<&[u32]> {
        self.arcs().strip_prefix(root.arcs())
    }

    /// `self` with further arcs behind it.
    pub fn child(&self, arcs: &[u32]) -> Oid {
        Oid::new(&[self.arcs(), arcs].concat())
    }
}

impl Default for Oid {
    fn default() -> Self {
        Oid::new(&[])
    }
}

impl PartialEq for Oid {
    fn eq(&self, other: &Self) -> bool {
        self.arcs() == other.arcs()
    }
}

impl Eq for Oid {}

impl PartialOrd for Oid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Oid {
    fn cmp(&self, other: &Self) -> Ordering {
        self.arcs().cmp(other.arcs())
    }
}

impl Hash for Oid {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.arcs().hash(state);
    }
}

impl fmt::Display for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, arc) in self.arcs().iter().enumerate() {
            if i > 0 {
                f.write_str(".")?;
            }
            write!(f, "{arc}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Oid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is wrong with the text of an OID.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is not an object identifier: expected numbers joined by dots")]
pub struct BadOid(String);

impl FromStr for Oid {
    type Err = BadOid;

    /// Accepts a leading dot, as some devices write one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let arcs: Result<Vec<u32>, _> = text.trim_start_matches('.').split('.').map(str::parse).collect();
        match arcs {
            Ok(arcs) if !arcs.is_empty() && arcs.len() <= MAX_ARCS => Ok(Oid::new(&arcs)),
            _ => Err(BadOid(text.to_owned())),
        }
    }
}

impl Serialize for Oid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Oid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_arcs_agree() {
        let oid: Oid = ".1.3.6.1.2.1.43.10.2.1.4.1.1".parse().unwrap();
        assert_eq!(oid.to_string(), "1.3.6.1.2.1.43.10.2.1.4.1.1");
        let column: Oid = "1.3.6.1.2.1.43.10.2.1.4".parse().unwrap();
        assert!(oid.starts_with(&column));
        assert_eq!(oid.suffix(&column), Some(&[1, 1][..]));
        assert!("1..3".parse::<Oid>().is_err());
        assert!("".parse::<Oid>().is_err());
        assert!("1.4294967296".parse::<Oid>().is_err());
    }

    #[test]
    fn long_and_short_are_alike() {
        for len in [0, 1, INLINE - 1, INLINE, INLINE + 1, MAX_ARCS] {
            let arcs: Vec<u32> = (0..len as u32).collect();
            let oid = Oid::new(&arcs);
            assert_eq!(oid.arcs(), arcs);
            let next = oid.child(&[7]);
            assert_eq!((next.suffix(&oid), next > oid, next == oid), (Some(&[7][..]), true, false));
        }
        assert_eq!(size_of::<Oid>(), 64);
    }
}
