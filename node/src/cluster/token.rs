//! Join tokens: `quire1.` and base64url of the CA's SHA-256, the token's id, a secret and a check.
//!
//! The cluster commits only the hash of the secret; the text exists once, on the operator's screen.

use std::fmt;

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use zeroize::Zeroizing;

use super::keys::{self, KeyError};

const PREFIX: &str = "quire1.";
const PIN: usize = 32;
const ID: usize = 8;
/// 192 bits: nobody guesses it within any time to live.
const SECRET: usize = 24;
/// Enough to tell a mistyped or cut-off token from a wrong one.
const CHECK: usize = 4;
const BODY: usize = PIN + ID + SECRET;

/// What is wrong with the text of a token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadToken {
    /// Not this kind of text at all.
    #[error("the token does not start with `{PREFIX}`: copy it whole from `quire token create`")]
    Prefix,
    /// Cut off, or with a character that does not belong.
    #[error("the token is cut off or mistyped: copy it whole from `quire token create`")]
    Damaged,
}

/// A parsed token. Its `Debug` shows the id alone.
pub(crate) struct Token {
    /// SHA-256 of the CA certificate.
    pub(crate) ca_pin: [u8; PIN],
    /// The token's public name, in hex.
    pub(crate) id: String,
    /// What proves that its holder may join.
    pub(crate) secret: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

impl Token {
    /// A new token for the cluster with this CA.
    pub(crate) fn generate(ca_pin: [u8; PIN]) -> Result<Self, KeyError> {
        let id = HEXLOWER.encode(keys::random::<ID>()?.as_slice());
        let secret = Zeroizing::new(keys::random::<SECRET>()?.to_vec());
        Ok(Token { ca_pin, id, secret })
    }

    /// What is committed instead of the secret.
    pub(crate) fn secret_sha256(&self) -> [u8; 32] {
        crate::tls::pin(&self.secret)
    }

    /// What the operator copies.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        let mut body = Zeroizing::new(Vec::with_capacity(BODY + CHECK));
        body.extend_from_slice(&self.ca_pin);
        body.extend_from_slice(&HEXLOWER.decode(self.id.as_bytes()).unwrap_or_default());
        body.extend_from_slice(&self.secret);
        let check = crate::tls::pin(&body);
        body.extend_from_slice(&check[..CHECK]);
        Zeroizing::new(format!("{PREFIX}{}", BASE64URL_NOPAD.encode(&body)))
    }

    /// Reads what the operator pasted; surrounding blanks are forgiven.
    pub(crate) fn parse(text: &str) -> Result<Self, BadToken> {
        let body = text.trim().strip_prefix(PREFIX).ok_or(BadToken::Prefix)?;
        let body = BASE64URL_NOPAD.decode(body.as_bytes()).map_err(|_| BadToken::Damaged)?;
        let body = Zeroizing::new(body);
        if body.len() != BODY + CHECK {
            return Err(BadToken::Damaged);
        }
        let (body, check) = body.split_at(BODY);
        if crate::tls::pin(body)[..CHECK] != *check {
            return Err(BadToken::Damaged);
        }
        let mut ca_pin = [0; PIN];
        ca_pin.copy_from_slice(&body[..PIN]);
        Ok(Token {
            ca_pin,
            id: HEXLOWER.encode(&body[PIN..PIN + ID]),
            secret: Zeroizing::new(body[PIN + ID..].to_vec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_survives_being_copied() {
        let token = Token::generate([7; 32]).unwrap();
        let copied = Token::parse(&format!("  {}\n", *token.text())).unwrap();
        assert_eq!((copied.ca_pin, &copied.id, &copied.secret), (token.ca_pin, &token.id, &token.secret));
        assert!(!format!("{copied:?}").contains(&*token.text()));
    }

    proptest! {
        #[test]
        fn a_damaged_token_is_named_as_such(at in any::<prop::sample::Index>(), text in ".{0,120}") {
            let whole = Token::generate([7; 32]).unwrap().text();
            let cut = at.index(whole.len());
            prop_assert!(Token::parse(&whole[..cut]).is_err());
            let mut typo = whole.as_bytes().to_vec();
            typo[cut] = if typo[cut] == b'A' { b'B' } else { b'A' };
            prop_assert!(Token::parse(&String::from_utf8(typo).unwrap()).is_err());
            prop_assert!(Token::parse(&text).is_err());
        }
    }
}
