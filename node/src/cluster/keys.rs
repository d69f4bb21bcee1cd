//! The cluster key: seals what must not be readable in log, snapshot, backup or on a stolen disk.
//!
//! It has generations: what is sealed names its own, and a node keeps those before the one in force as long as its log
//! reaches back to their time.
//!
//! What it must never do: show its octets in `Debug`, errors or logs, or use a nonce twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// First octet of what the first generation sealed; a nonce and the ciphertext follow.
const FORMAT: u8 = 1;
/// First octet of what a later one sealed; its number comes before the nonce. A later cipher gets another number.
const NUMBERED: u8 = 2;
/// XChaCha20's nonce is long enough to be drawn at random for ever.
const NONCE: usize = 24;
const TAG: usize = 16;
const NUMBER: usize = 8;
const KEY: usize = 32;

/// The generation that a cluster begins with.
pub(crate) const FIRST: u64 = 1;

/// One generation's octets.
pub(crate) type Octets = Zeroizing<[u8; KEY]>;

/// Why something sealed stays closed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Not sealed by this key for this purpose, or damaged.
    #[error("cannot be opened with this cluster's key: damaged, or sealed by another cluster")]
    Closed,
    /// Sealed with a generation of the key that is not here, or not yet.
    #[error(
        "sealed with cluster key {0}, which this node does not have (yet): it is fetched from another member as soon as one is reached"
    )]
    Missing(u64),
    /// Sealed by a later version.
    #[error("sealed in format {0}, which this version does not know: upgrade this node")]
    Format(u8),
    /// The system gave no randomness.
    #[error("draw random octets: {0}")]
    Random(String),
}

/// The generations of the cluster's secret key that are here; clones share them. Wiped when dropped.
#[derive(Clone)]
pub struct Keys(Arc<RwLock<BTreeMap<u64, Octets>>>);

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys(..)")
    }
}

/// Octets from the system's randomness.
pub(crate) fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, KeyError> {
    let mut octets = Zeroizing::new([0; N]);
    getrandom::fill(octets.as_mut_slice()).map_err(|reason| KeyError::Random(reason.to_string()))?;
    Ok(octets)
}

/// What the log says of a key, by which a fetched one is known to be the right one.
pub(crate) fn check(generation: u64, key: &Octets) -> [u8; 32] {
    let mut said = Zeroizing::new(b"quire cluster key ".to_vec());
    said.extend_from_slice(&generation.to_be_bytes());
    said.extend_from_slice(key.as_slice());
    crate::tls::pin(&said)
}

fn cipher(key: &Octets) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new((&**key).into())
}

fn octets(from: &[u8]) -> Option<Octets> {
    let mut key = Zeroizing::new([0; KEY]);
    (from.len() == key.len()).then(|| key.copy_from_slice(from))?;
    Some(key)
}

impl Keys {
    /// A new cluster's key.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        Ok(Keys::of(BTreeMap::from([(FIRST, random()?)])))
    }

    fn of(keys: BTreeMap<u64, Octets>) -> Self {
        Keys(Arc::new(RwLock::new(keys)))
    }

    /// From what [`Keys::octets`] gave.
    pub(crate) fn from_octets(stored: &[u8]) -> Option<Self> {
        if stored.len() == KEY {
            return Some(Keys::of(BTreeMap::from([(FIRST, octets(stored)?)])));
        }
        let mut keys = BTreeMap::new();
        for entry in stored.chunks(NUMBER + KEY) {
            let (number, key) = entry.split_at_checked(NUMBER)?;
            keys.insert(u64::from_be_bytes(number.try_into().ok()?), octets(key)?);
        }
        (!keys.is_empty()).then(|| Keys::of(keys))
    }

    /// For the keys' own file, a join and a backup, nothing else: 32 octets of the first generation alone, else 8 octets
    /// of number and 32 of key for each.
    pub(crate) fn octets(&self) -> Zeroizing<Vec<u8>> {
        let keys = self.here();
        let mut out = Zeroizing::new(Vec::with_capacity(keys.len() * (NUMBER + KEY)));
        let numbered = keys.keys().any(|generation| *generation != FIRST);
        for (generation, key) in keys.iter() {
            if numbered {
                out.extend_from_slice(&generation.to_be_bytes());
            }
            out.extend_from_slice(key.as_slice());
        }
        out
    }

    fn here(&self) -> RwLockReadGuard<'_, BTreeMap<u64, Octets>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy that changes for itself.
    pub(crate) fn copy(&self) -> Self {
        Keys::of(self.here().clone())
    }

    /// Takes over what a copy has become.
    pub(crate) fn become_as(&self, other: &Keys) {
        let other = other.here().clone();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = other;
    }

    /// The generations that are here.
    pub(crate) fn held(&self) -> BTreeSet<u64> {
        self.here().keys().copied().collect()
    }

    /// One generation, for another member.
    pub(crate) fn key(&self, generation: u64) -> Option<Octets> {
        self.here().get(&generation).cloned()
    }

    /// Keeps a generation.
    pub(crate) fn add(&self, generation: u64, key: Octets) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(generation, key);
    }

    /// Forgets those before one that is here.
    pub(crate) fn forget_before(&self, generation: u64) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if keys.contains_key(&generation) {
            keys.retain(|number, _| *number >= generation);
        }
    }

    /// Whether this generation is here, and is the one that `hash` is of; an empty hash, of the first, is not compared.
    pub(crate) fn has(&self, generation: u64, hash: &[u8]) -> bool {
        let key = self.key(generation);
        key.is_some_and(|key| hash.is_empty() || check(generation, &key)[..] == *hash)
    }

    /// Encrypts with a generation for `purpose`; the same purpose must be named to open it.
    ///
    /// # Errors
    /// When the generation is not here, or the system has no randomness.
    pub fn seal(&self, generation: u64, plain: &[u8], purpose: &[u8]) -> Result<Vec<u8>, KeyError> {
        let key = self.key(generation).ok_or(KeyError::Missing(generation))?;
        let nonce = random::<NONCE>()?;
        let payload = Payload { msg: plain, aad: purpose };
        let sealed = cipher(&key).encrypt(&XNonce::from(*nonce), payload).map_err(|_| KeyError::Closed)?;
        let mut out = Vec::with_capacity(1 + NUMBER + NONCE + sealed.len());
        // As every release reads it, as long as there was never another key.
        match generation {
            FIRST => out.push(FORMAT),
            _ => {
                out.push(NUMBERED);
                out.extend_from_slice(&generation.to_be_bytes());
            }
        }
        out.extend_from_slice(nonce.as_slice());
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Decrypts what [`Keys::seal`] made for the same `purpose`.
    ///
    /// # Errors
    /// When it is damaged, of another key or purpose, of a generation that is not here, or of a later format.
    pub fn open(&self, sealed: &[u8], purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let (format, rest) = sealed.split_first().ok_or(KeyError::Closed)?;
        let (generation, rest) = match *format {
            FORMAT => (FIRST, rest),
            NUMBERED => {
                let (number, rest) = rest.split_at_checked(NUMBER).ok_or(KeyError::Closed)?;
                (u64::from_be_bytes(number.try_into().map_err(|_| KeyError::Closed)?), rest)
            }
            later => return Err(KeyError::Format(later)),
        };
        if rest.len() < NONCE + TAG {
            return Err(KeyError::Closed);
        }
        let (nonce, body) = rest.split_at(NONCE);
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| KeyError::Closed)?;
        let key = self.key(generation).ok_or(KeyError::Missing(generation))?;
        let payload = Payload { msg: body, aad: purpose };
        let plain = cipher(&key).decrypt(&XNonce::from(nonce), payload).map_err(|_| KeyError::Closed)?;
        Ok(Zeroizing::new(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_its_purpose_alone(
            plain in any::<Vec<u8>>(),
            flip in any::<prop::sample::Index>(),
            later in any::<bool>(),
        ) {
            let keys = Keys::generate().unwrap();
            keys.add(7, random().unwrap());
            let sealed = keys.seal(if later { 7 } else { FIRST }, &plain, b"community").unwrap();
            prop_assert_eq!(keys.open(&sealed, b"community").unwrap().to_vec(), plain);
            prop_assert!(keys.open(&sealed, b"password").is_err());
            prop_assert!(Keys::generate().unwrap().open(&sealed, b"community").is_err());
            let mut damaged = sealed.clone();
            damaged[flip.index(sealed.len())] ^= 1;
            prop_assert!(keys.open(&damaged, b"community").is_err());
            prop_assert!(keys.open(&sealed[..flip.index(sealed.len())], b"community").is_err());
        }
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", Keys::generate().unwrap()), "Keys(..)");
    }

    #[test]
    fn generations_are_kept_named_and_forgotten() {
        let keys = Keys::generate().unwrap();
        assert_eq!(keys.octets().len(), KEY, "as every release reads it");
        let old = keys.seal(FIRST, b"x", b"p").unwrap();
        assert_eq!(keys.seal(2, b"x", b"p"), Err(KeyError::Missing(2)));
        let key: Octets = random().unwrap();
        keys.add(2, key.clone());
        let new = keys.seal(2, b"x", b"p").unwrap();
        let stored = Keys::from_octets(&keys.octets()).unwrap();
        assert_eq!(stored.held(), BTreeSet::from([1, 2]));
        assert!(stored.open(&old, b"p").is_ok() && stored.open(&new, b"p").is_ok());
        assert!(stored.has(2, &check(2, &key)) && !stored.has(2, &check(3, &key)) && !stored.has(3, b""));
        stored.forget_before(3);
        assert_eq!(stored.held().len(), 2, "nothing goes before what is to come is here");
        stored.forget_before(2);
        assert_eq!(stored.open(&old, b"p"), Err(KeyError::Missing(1)));
        assert!(Keys::from_octets(&stored.octets()).unwrap().open(&new, b"p").is_ok());
        for cut in [0, 31, 33, 39, 41, 72] {
            assert!(Keys::from_octets(&vec![1; cut]).is_none(), "{cut}");
        }
    }
}
