//! The cluster key: seals what must not be readable in log, snapshot, backup or on a stolen disk.
//!
//! What it must never do: show its octets in `Debug`, errors or logs, or use a nonce twice.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use zeroize::Zeroizing;

/// First octet of everything sealed: a later cipher gets another number.
const FORMAT: u8 = 1;
/// XChaCha20's nonce is long enough to be drawn at random for ever.
const NONCE: usize = 24;
const TAG: usize = 16;

/// Why something sealed stays closed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KeyError {
    /// Not sealed by this key for this purpose, or damaged.
    #[error("cannot be opened with this cluster's key: damaged, or sealed by another cluster")]
    Closed,
    /// Sealed by a later version.
    #[error("sealed in format {0}, which this version does not know: upgrade this node")]
    Format(u8),
    /// The system gave no randomness.
    #[error("draw random octets: {0}")]
    Random(String),
}

/// The cluster's secret key; wiped when dropped.
pub struct Keys(Zeroizing<[u8; 32]>);

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

impl Keys {
    /// A new cluster's key.
    pub(crate) fn generate() -> Result<Self, KeyError> {
        random().map(Keys)
    }

    /// From 32 stored octets.
    pub(crate) fn from_octets(octets: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; 32]);
        if octets.len() != key.len() {
            return None;
        }
        key.copy_from_slice(octets);
        Some(Keys(key))
    }

    /// For the key's own file and for a join, nothing else.
    pub(crate) fn octets(&self) -> &[u8; 32] {
        &self.0
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new((&*self.0).into())
    }

    /// Encrypts for `purpose`; the same purpose must be named to open it.
    ///
    /// # Errors
    /// When the system has no randomness.
    pub fn seal(&self, plain: &[u8], purpose: &[u8]) -> Result<Vec<u8>, KeyError> {
        let nonce = random::<NONCE>()?;
        let payload = Payload { msg: plain, aad: purpose };
        let sealed = self.cipher().encrypt(&XNonce::from(*nonce), payload).map_err(|_| KeyError::Closed)?;
        let mut out = Vec::with_capacity(1 + NONCE + sealed.len());
        out.push(FORMAT);
        out.extend_from_slice(nonce.as_slice());
        out.extend_from_slice(&sealed);
        Ok(out)
    }

    /// Decrypts what [`Keys::seal`] made for the same `purpose`.
    ///
    /// # Errors
    /// When it is damaged, of another key or purpose, or of a later format.
    pub fn open(&self, sealed: &[u8], purpose: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let (format, rest) = sealed.split_first().ok_or(KeyError::Closed)?;
        if *format != FORMAT {
            return Err(KeyError::Format(*format));
        }
        if rest.len() < NONCE + TAG {
            return Err(KeyError::Closed);
        }
        let (nonce, body) = rest.split_at(NONCE);
        let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| KeyError::Closed)?;
        let payload = Payload { msg: body, aad: purpose };
        let plain = self.cipher().decrypt(&XNonce::from(nonce), payload).map_err(|_| KeyError::Closed)?;
        Ok(Zeroizing::new(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_its_purpose_alone(plain in any::<Vec<u8>>(), flip in any::<prop::sample::Index>()) {
            let keys = Keys::generate().unwrap();
            let sealed = keys.seal(&plain, b"community").unwrap();
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
}
