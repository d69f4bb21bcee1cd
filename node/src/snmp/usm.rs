//! The user-based security model (RFC 3414; AES: RFC 3826; SHA-2: RFC 7860): keys, digests, ciphers.
//! Pure functions of their arguments: no clock, no randomness, and no key leaves in `Debug`.
//!
//! Why not `snmp2::v3`: it takes engine boots and time from messages before their digest is checked, and from
//! messages without one (a single forged datagram silences an engine for good), zeroes the digest through a
//! pointer made from a shared slice, refuses msgMaxSize above 65,507 and engineBoots 0, sends the engine time
//! that it heard instead of the present one (fails once after 150 s of idling), hides which Report came, hashes
//! a megabyte per password and engine, and prints passwords in `Debug`. None of that can be guarded from outside.
//! The primitives are the same crates that it uses.

use aes::{Aes128, Aes192, Aes256};
use cbc::cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, generic_array::GenericArray};
use cfb_mode::cipher::AsyncStreamCipher;
use des::Des;
use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use sha1::Sha1;
use sha2::{Sha224, Sha256, Sha384, Sha512};
use zeroize::Zeroizing;

use super::credential::{AuthProtocol, KeyExtension, PrivProtocol, User};

/// A user's master key Ku (RFC 3414 section 2.6): a password hashed, not yet bound to an engine.
#[derive(Clone)]
pub(crate) struct Master(Zeroizing<Vec<u8>>);

/// How much of a repeated password is hashed (RFC 3414 appendix A.2).
const HASHED: usize = 1 << 20;

/// msgAuthoritativeEngineID is 5 to 32 octets (RFC 3411 section 5), but some devices send others.
pub(crate) const LONGEST_ENGINE_ID: usize = 64;

/// Seconds that a message may be older than the engine's time (RFC 3414 section 2.2.3).
pub(crate) const TIME_WINDOW: u32 = 150;

/// Runs `$body` with `$hash` naming the digest of `$protocol`.
macro_rules! with_hash {
    ($protocol:expr, $hash:ident => $body:expr) => {
        match $protocol {
            AuthProtocol::Md5 => {
                type $hash = Md5;
                $body
            }
            AuthProtocol::Sha1 => {
                type $hash = Sha1;
                $body
            }
            AuthProtocol::Sha224 => {
                type $hash = Sha224;
                $body
            }
            AuthProtocol::Sha256 => {
                type $hash = Sha256;
                $body
            }
            AuthProtocol::Sha384 => {
                type $hash = Sha384;
                $body
            }
            AuthProtocol::Sha512 => {
                type $hash = Sha512;
                $body
            }
        }
    };
}

impl AuthProtocol {
    /// Octets of msgAuthenticationParameters (RFC 3414 sections 6.1 and 7.1, RFC 7860 section 4).
    pub(crate) fn digest_len(self) -> usize {
        match self {
            AuthProtocol::Md5 | AuthProtocol::Sha1 => 12,
            AuthProtocol::Sha224 => 16,
            AuthProtocol::Sha256 => 24,
            AuthProtocol::Sha384 => 32,
            AuthProtocol::Sha512 => 48,
        }
    }
}

impl PrivProtocol {
    /// Octets of the localized key that are used; DES takes 8 for the key and 8 for the pre-IV.
    fn key_len(self) -> usize {
        match self {
            PrivProtocol::Des | PrivProtocol::Aes128 => 16,
            PrivProtocol::Aes192 => 24,
            PrivProtocol::Aes256 => 32,
        }
    }
}

/// Ku of a password (RFC 3414 appendix A.2.1). An empty one, which `Credential` refuses, hashes nothing.
pub(crate) fn master(protocol: AuthProtocol, password: &[u8]) -> Master {
    // A buffer that holds whole repetitions, so that the digest is fed in large pieces.
    let repeated = Zeroizing::new(password.repeat(4096_usize.div_ceil(password.len().max(1))));
    Master(Zeroizing::new(with_hash!(protocol, H => {
        let mut hash = H::new();
        let mut left = if repeated.is_empty() { 0 } else { HASHED };
        while left > 0 {
            let piece = left.min(repeated.len());
            hash.update(&repeated[..piece]);
            left -= piece;
        }
        hash.finalize().to_vec()
    })))
}

/// Kul = H(Ku, engineID, Ku) (RFC 3414 section 2.6).
fn localize(protocol: AuthProtocol, master: &[u8], engine_id: &[u8]) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(with_hash!(protocol, H => {
        H::new().chain_update(master).chain_update(engine_id).chain_update(master).finalize().to_vec()
    }))
}

/// Lengthens a localized privacy key to what the cipher takes.
fn extend(
    key: &mut Zeroizing<Vec<u8>>,
    wanted: usize,
    protocol: AuthProtocol,
    extension: KeyExtension,
    engine_id: &[u8],
) {
    let mut last = key.clone();
    while key.len() < wanted {
        last = match extension {
            KeyExtension::Blumenthal => {
                Zeroizing::new(with_hash!(protocol, H => H::digest(key.as_slice()).to_vec()))
            }
            KeyExtension::Reeder => localize(protocol, &master(protocol, &last).0, engine_id),
        };
        key.extend_from_slice(&last);
    }
    key.truncate(wanted);
}

/// A user's keys for one engine.
pub(crate) struct Keys {
    auth: Option<(AuthProtocol, Zeroizing<Vec<u8>>)>,
    privacy: Option<(PrivProtocol, Zeroizing<Vec<u8>>)>,
}

impl Keys {
    /// Binds the user's master keys to an engine: microseconds, but for the Reeder extension milliseconds.
    pub(crate) fn localized(user: &User, engine_id: &[u8]) -> Keys {
        let auth =
            user.auth().map(|(protocol, master)| (*protocol, localize(*protocol, &master.0, engine_id)));
        let privacy = match (user.privacy(), user.auth()) {
            (Some((cipher, extension, master)), Some((protocol, _))) => {
                let mut key = localize(*protocol, &master.0, engine_id);
                extend(&mut key, cipher.key_len(), *protocol, *extension, engine_id);
                Some((*cipher, key))
            }
            _ => None,
        };
        Keys { auth, privacy }
    }

    /// Octets that msgAuthenticationParameters will have; 0 without authentication.
    pub(crate) fn digest_len(&self) -> usize {
        self.auth.as_ref().map_or(0, |(protocol, _)| protocol.digest_len())
    }

    /// Fills in the digest of a whole message whose digest, at `at`, is still zeroes.
    pub(crate) fn sign(&self, message: &mut [u8], at: usize) {
        if let Some((protocol, key)) = &self.auth {
            let len = protocol.digest_len();
            let mac = hmac(*protocol, key, &[message]);
            message[at..at + len].copy_from_slice(&mac[..len]);
        }
    }

    /// True when the digest at `at` is that of the message (RFC 3414 section 6.3.2). Copies nothing and leaves
    /// the message alone: the digest is taken as if it were zeroes.
    pub(crate) fn verify(&self, message: &[u8], at: usize, digest: &[u8]) -> bool {
        let Some((protocol, key)) = &self.auth else { return false };
        let len = protocol.digest_len();
        if digest.len() != len || at + len > message.len() {
            return false;
        }
        let zeroes = [0; 48];
        let mac = hmac(*protocol, key, &[&message[..at], &zeroes[..len], &message[at + len..]]);
        // Every octet is looked at, so that time does not tell how many are right.
        mac[..len].iter().zip(digest).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }

    /// True when requests are to be encrypted.
    pub(crate) fn has_privacy(&self) -> bool {
        self.privacy.is_some()
    }

    /// Encrypts a scopedPDU in place (DES pads it); gives msgPrivacyParameters. `salt` must not repeat.
    pub(crate) fn encrypt(&self, boots: u32, time: u32, salt: u64, data: &mut Vec<u8>) -> [u8; 8] {
        let Some((cipher, key)) = &self.privacy else { return [0; 8] };
        let params = match cipher {
            // RFC 3414 §8.1.1.1: boots, then a local integer.
            PrivProtocol::Des => (u64::from(boots) << 32 | salt & 0xffff_ffff).to_be_bytes(),
            PrivProtocol::Aes128 | PrivProtocol::Aes192 | PrivProtocol::Aes256 => salt.to_be_bytes(),
        };
        match cipher {
            PrivProtocol::Des => {
                data.resize(data.len().next_multiple_of(8), 0);
                let mut cbc =
                    cbc::Encryptor::<Des>::new(GenericArray::from_slice(&key[..8]), &des_iv(key, params));
                for block in data.chunks_exact_mut(8) {
                    cbc.encrypt_block_mut(GenericArray::from_mut_slice(block));
                }
            }
            PrivProtocol::Aes128 => aes_encrypt::<Aes128>(key, &aes_iv(boots, time, params), data),
            PrivProtocol::Aes192 => aes_encrypt::<Aes192>(key, &aes_iv(boots, time, params), data),
            PrivProtocol::Aes256 => aes_encrypt::<Aes256>(key, &aes_iv(boots, time, params), data),
        }
        params
    }

    /// Decrypts an encryptedPDU in place; `false` when its shape is impossible. Whether the key was right shows
    /// only in what comes out.
    pub(crate) fn decrypt(&self, boots: u32, time: u32, params: &[u8], data: &mut [u8]) -> bool {
        let (Some((cipher, key)), Ok(params)) = (&self.privacy, <[u8; 8]>::try_from(params)) else {
            return false;
        };
        match cipher {
            PrivProtocol::Des => {
                if data.is_empty() || !data.len().is_multiple_of(8) {
                    return false;
                }
                let mut cbc =
                    cbc::Decryptor::<Des>::new(GenericArray::from_slice(&key[..8]), &des_iv(key, params));
                for block in data.chunks_exact_mut(8) {
                    cbc.decrypt_block_mut(GenericArray::from_mut_slice(block));
                }
            }
            PrivProtocol::Aes128 => aes_decrypt::<Aes128>(key, &aes_iv(boots, time, params), data),
            PrivProtocol::Aes192 => aes_decrypt::<Aes192>(key, &aes_iv(boots, time, params), data),
            PrivProtocol::Aes256 => aes_decrypt::<Aes256>(key, &aes_iv(boots, time, params), data),
        }
        true
    }
}

/// The full HMAC, in the first octets of the result.
fn hmac(protocol: AuthProtocol, key: &[u8], pieces: &[&[u8]]) -> [u8; 64] {
    let mut out = [0; 64];
    with_hash!(protocol, H => {
        // A key of any length is taken, so this never fails.
        if let Ok(mut mac) = <Hmac<H> as Mac>::new_from_slice(key) {
            for piece in pieces {
                mac.update(piece);
            }
            let mac = mac.finalize().into_bytes();
            out[..mac.len()].copy_from_slice(&mac);
        }
    });
    out
}

/// RFC 3414 section 8.1.1.1: the last 8 octets of the key, exclusive or the salt.
fn des_iv(key: &[u8], salt: [u8; 8]) -> GenericArray<u8, cbc::cipher::consts::U8> {
    let mut iv = salt;
    for (octet, pre) in iv.iter_mut().zip(&key[8..16]) {
        *octet ^= pre;
    }
    iv.into()
}

/// RFC 3826 section 3.1.2.1: boots, time, salt.
fn aes_iv(boots: u32, time: u32, salt: [u8; 8]) -> [u8; 16] {
    let mut iv = [0; 16];
    iv[..4].copy_from_slice(&boots.to_be_bytes());
    iv[4..8].copy_from_slice(&time.to_be_bytes());
    iv[8..].copy_from_slice(&salt);
    iv
}

fn aes_encrypt<C>(key: &[u8], iv: &[u8; 16], data: &mut [u8])
where
    cfb_mode::Encryptor<C>: KeyIvInit + AsyncStreamCipher,
    C: cfb_mode::cipher::BlockEncryptMut + cfb_mode::cipher::BlockCipher,
{
    if let Ok(cfb) = cfb_mode::Encryptor::<C>::new_from_slices(key, iv) {
        cfb.encrypt(data);
    }
}

fn aes_decrypt<C>(key: &[u8], iv: &[u8; 16], data: &mut [u8])
where
    cfb_mode::Decryptor<C>: KeyIvInit + AsyncStreamCipher,
    C: cfb_mode::cipher::BlockEncryptMut + cfb_mode::cipher::BlockCipher,
{
    if let Ok(cfb) = cfb_mode::Decryptor::<C>::new_from_slices(key, iv) {
        cfb.decrypt(data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snmp::credential::{Credential, V3};

    fn hex(text: &str) -> Vec<u8> {
        data_encoding::HEXLOWER_PERMISSIVE.decode(text.replace(' ', "").as_bytes()).unwrap()
    }

    /// The engineID of RFC 3414 appendix A.3.
    const ENGINE: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

    #[test]
    fn password_to_key_of_rfc_3414_a_3() {
        for (protocol, ku, kul) in [
            (AuthProtocol::Md5, "9faf3283884e92834ebc9847d8edd963", "526f5eed9fcce26f8964c2930787d82b"),
            (
                AuthProtocol::Sha1,
                "9fb5cc0381497b3793528939ff788d5d79145211",
                "6695febc9288e36282235fc7151f128497b38f3f",
            ),
        ] {
            let master = master(protocol, b"maplesyrup");
            assert_eq!(*master.0, hex(ku));
            assert_eq!(*localize(protocol, &master.0, &ENGINE), hex(kul));
        }
    }

    #[test]
    fn reeder_extension_of_its_draft() {
        // draft-reeder-snmpv3-usm-3desede-00 appendix B: MD5 and SHA-1, "maplesyrup", the same engine.
        for (protocol, extended) in [
            (AuthProtocol::Md5, "526f5eed9fcce26f8964c2930787d82b 79eff44a90650ee0a3a40abfac5acc12"),
            (AuthProtocol::Sha1, "6695febc9288e36282235fc7151f128497b38f3f 9b8b6d78936ba6e7d19dfd9c"),
        ] {
            let mut key = localize(protocol, &master(protocol, b"maplesyrup").0, &ENGINE);
            extend(&mut key, 32, protocol, KeyExtension::Reeder, &ENGINE);
            assert_eq!(*key, hex(extended));
        }
    }

    #[test]
    fn hmac_of_rfc_4231() {
        // Test case 2, that RFC 7860 rests on: key "Jefe", data "what do ya want for nothing?".
        for (protocol, mac) in [
            (AuthProtocol::Md5, "750c783e6ab0b503eaa86e310a5db738"),
            (AuthProtocol::Sha1, "effcdf6ae5eb2fa2d27416d5f184df9c259a7c79"),
            (AuthProtocol::Sha224, "a30e01098bc6dbbf45690f3a7e9e6d0f8bbea2a39e6148008fd05e44"),
            (AuthProtocol::Sha256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                AuthProtocol::Sha384,
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
            ),
            (
                AuthProtocol::Sha512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fd\
                 caeab1a34d4a6b4b636e070a38bce737",
            ),
        ] {
            let expected = hex(mac);
            let got = hmac(protocol, b"Jefe", &[b"what do ya want ", b"for nothing?"]);
            assert_eq!(&got[..expected.len()], &expected[..], "{protocol:?}");
        }
    }

    #[test]
    fn aes_cfb_of_nist_sp_800_38a() {
        // F.3.13, F.3.15 and F.3.17: CFB128 under 128, 192 and 256 bits, one IV, one first block.
        let iv: [u8; 16] = hex("000102030405060708090a0b0c0d0e0f").try_into().unwrap();
        let plain = hex("6bc1bee22e409f96e93d7e117393172a");
        let check = |key: &str, cipher: &str, run: fn(&[u8], &[u8; 16], &mut [u8])| {
            let mut data = plain.clone();
            run(&hex(key), &iv, &mut data);
            assert_eq!(data, hex(cipher));
        };
        check("2b7e151628aed2a6abf7158809cf4f3c", "3b3fd92eb72dad20333449f8e83cfb4a", aes_encrypt::<Aes128>);
        let key = "8e73b0f7da0e6452c810f32b809079e562f8ead2522c6b7b";
        check(key, "cdc80d6fddf18cab34c25909c99a4174", aes_encrypt::<Aes192>);
        let key = "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4";
        check(key, "dc7e84bfda79164b7ecd8486985d3860", aes_encrypt::<Aes256>);
    }

    fn keys(auth: AuthProtocol, cipher: PrivProtocol, extension: KeyExtension) -> Keys {
        let parts = V3 {
            user: "u",
            auth: Some((auth, "maplesyrup")),
            privacy: Some((cipher, "pancakes and more")),
            extension,
            context: "",
        };
        let Credential::V3(user) = Credential::v3(parts).unwrap() else { unreachable!() };
        Keys::localized(&user, &ENGINE)
    }

    #[test]
    fn every_pair_signs_and_encrypts_back() {
        use {AuthProtocol as A, KeyExtension as E, PrivProtocol as P};
        for auth in [A::Md5, A::Sha1, A::Sha224, A::Sha256, A::Sha384, A::Sha512] {
            for cipher in [P::Des, P::Aes128, P::Aes192, P::Aes256] {
                for extension in [E::Blumenthal, E::Reeder] {
                    let keys = keys(auth, cipher, extension);
                    let plain = b"a scoped PDU of odd length".to_vec();
                    let mut data = plain.clone();
                    let params = keys.encrypt(7, 1000, 0x0123_4567_89ab_cdef, &mut data);
                    assert_ne!(data[..plain.len()], plain);
                    assert!(keys.decrypt(7, 1000, &params, &mut data));
                    assert_eq!(data[..plain.len()], plain, "{auth:?} {cipher:?} {extension:?}");

                    let mut message = vec![1; 100];
                    message[20..20 + auth.digest_len()].fill(0);
                    keys.sign(&mut message, 20);
                    let digest = message[20..20 + auth.digest_len()].to_vec();
                    assert!(keys.verify(&message, 20, &digest));
                    message[99] ^= 1;
                    assert!(!keys.verify(&message, 20, &digest), "{auth:?}");
                    assert!(!keys.verify(&message, 20, &digest[1..]));
                    assert!(!keys.verify(&message, 90, &digest), "beyond the end");
                }
            }
        }
    }

    #[test]
    fn impossible_ciphertexts_are_refused() {
        let keys = keys(AuthProtocol::Md5, PrivProtocol::Des, KeyExtension::Blumenthal);
        assert!(!keys.decrypt(1, 1, &[0; 8], &mut [0; 7]));
        assert!(!keys.decrypt(1, 1, &[0; 7], &mut [0; 8]));
        assert!(!keys.decrypt(1, 1, &[0; 8], &mut []));
    }
}
