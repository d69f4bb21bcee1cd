//! What a device wants to hear before it answers: communities and USM users.
//!
//! Secrets live here only, wiped when dropped. Nothing in this file prints one: not `Debug`, not an error.

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use zeroize::Zeroizing;

use super::usm::{self, Master};

/// What one request is authorised by. Make one per configured entry and share it as an `Arc`: the slow half of
/// the key derivation (RFC 3414 section 2.6) is done when it is made, and the engine remembers localized keys
/// by the `Arc`.
#[derive(Debug)]
pub enum Credential {
    /// SNMPv1 with a community.
    V1(Community),
    /// SNMPv2c with a community.
    V2c(Community),
    /// SNMPv3 with a user of the user-based security model.
    V3(Box<User>),
}

/// A community name. It is a password in all but name.
pub struct Community(Zeroizing<Vec<u8>>);

/// A USM user (RFC 3414), its passwords already hashed to master keys.
pub struct User {
    name: Box<str>,
    context: Box<str>,
    auth: Option<(AuthProtocol, Master)>,
    privacy: Option<(PrivProtocol, KeyExtension, Master)>,
    /// The same user in context [`JETDIRECT`], once anybody asked for it.
    jetdirect: OnceLock<Arc<Credential>>,
}

/// The contextName that some HP JetDirect cards keep the printer behind; the default context is the card's own.
pub const JETDIRECT: &str = "Jetdirect";

/// The parts of a USM user as configured.
#[derive(Clone, Copy, Default)]
pub struct V3<'a> {
    /// msgUserName, 1 to 32 octets.
    pub user: &'a str,
    /// Authentication protocol and password; `None` is noAuthNoPriv.
    pub auth: Option<(AuthProtocol, &'a str)>,
    /// Privacy protocol and password; needs `auth`.
    pub privacy: Option<(PrivProtocol, &'a str)>,
    /// How a key too short for AES-192 or AES-256 is lengthened.
    pub extension: KeyExtension,
    /// contextName; some HP JetDirects keep the printer behind `Jetdirect`.
    pub context: &'a str,
}

/// usmHMAC...AuthProtocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthProtocol {
    /// HMAC-MD5-96 (RFC 3414 section 6).
    Md5,
    /// HMAC-SHA-96 (RFC 3414 section 7).
    Sha1,
    /// HMAC-128-SHA-224 (RFC 7860).
    Sha224,
    /// HMAC-192-SHA-256 (RFC 7860).
    Sha256,
    /// HMAC-256-SHA-384 (RFC 7860).
    Sha384,
    /// HMAC-384-SHA-512 (RFC 7860).
    Sha512,
}

/// usm...PrivProtocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrivProtocol {
    /// CBC-DES (RFC 3414 section 8).
    Des,
    /// CFB128-AES-128 (RFC 3826).
    Aes128,
    /// CFB128-AES-192 (draft-blumenthal-aes-usm-04).
    Aes192,
    /// CFB128-AES-256 (draft-blumenthal-aes-usm-04).
    Aes256,
}

/// How a localized key that is too short for the cipher is lengthened; no RFC settled it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeyExtension {
    /// draft-blumenthal-aes-usm-04 section 3.1.2.1, as net-snmp does.
    #[default]
    Blumenthal,
    /// draft-reeder-snmpv3-usm-3desede-00 section 2.1, as Cisco and many printers do.
    Reeder,
}

/// Why a credential cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCredential {
    /// The community is empty or longer than 255 octets.
    #[error("a community needs 1 to 255 octets")]
    Community,
    /// The user name is empty or longer than 32 octets (RFC 3414 section 2.4).
    #[error("a user name needs 1 to 32 octets")]
    UserName,
    /// RFC 3414 section 11.2.
    #[error("an authentication password needs at least 8 octets")]
    AuthPassword,
    /// RFC 3414 section 11.2.
    #[error("a privacy password needs at least 8 octets")]
    PrivPassword,
    /// There is no noAuthPriv (RFC 3411 section 3.4.3).
    #[error("privacy needs authentication")]
    PrivWithoutAuth,
    /// contextName is at most 255 octets here.
    #[error("a context name has at most 255 octets")]
    Context,
}

/// The shortest password (RFC 3414 section 11.2).
const SHORTEST_PASSWORD: usize = 8;

impl Credential {
    /// An SNMPv1 credential.
    pub fn v1(community: impl AsRef<[u8]>) -> Result<Credential, BadCredential> {
        Community::new(community.as_ref()).map(Credential::V1)
    }

    /// An SNMPv2c credential.
    pub fn v2c(community: impl AsRef<[u8]>) -> Result<Credential, BadCredential> {
        Community::new(community.as_ref()).map(Credential::V2c)
    }

    /// An SNMPv3 credential. Hashes a megabyte per password: 2 to 30 milliseconds, so not on a hot path.
    pub fn v3(parts: V3<'_>) -> Result<Credential, BadCredential> {
        if parts.user.is_empty() || parts.user.len() > 32 {
            return Err(BadCredential::UserName);
        }
        if parts.context.len() > 255 {
            return Err(BadCredential::Context);
        }
        let auth = match parts.auth {
            None if parts.privacy.is_some() => return Err(BadCredential::PrivWithoutAuth),
            None => None,
            Some((_, password)) if password.len() < SHORTEST_PASSWORD => {
                return Err(BadCredential::AuthPassword);
            }
            Some((protocol, password)) => Some((protocol, usm::master(protocol, password.as_bytes()))),
        };
        let privacy = match (parts.privacy, &auth) {
            (Some((_, password)), _) if password.len() < SHORTEST_PASSWORD => {
                return Err(BadCredential::PrivPassword);
            }
            (Some((cipher, password)), Some((protocol, _))) => {
                Some((cipher, parts.extension, usm::master(*protocol, password.as_bytes())))
            }
            _ => None,
        };
        Ok(Credential::V3(Box::new(User {
            name: parts.user.into(),
            context: parts.context.into(),
            auth,
            privacy,
            jetdirect: OnceLock::new(),
        })))
    }

    /// The same user in context [`JETDIRECT`]; `None` for communities and for users with a context of their own.
    pub fn in_jetdirect(&self) -> Option<Arc<Credential>> {
        let Credential::V3(user) = self else { return None };
        let there = || {
            Arc::new(Credential::V3(Box::new(User {
                name: user.name.clone(),
                context: JETDIRECT.into(),
                auth: user.auth.clone(),
                privacy: user.privacy.clone(),
                jetdirect: OnceLock::new(),
            })))
        };
        user.context.is_empty().then(|| user.jetdirect.get_or_init(there).clone())
    }

    /// `1`, `2c` or `3`, as in settings.
    pub fn version(&self) -> &'static str {
        match self {
            Credential::V1(_) => "1",
            Credential::V2c(_) => "2c",
            Credential::V3(_) => "3",
        }
    }

    /// The user's name; communities have none, they are secret.
    pub fn user(&self) -> Option<&str> {
        match self {
            Credential::V1(_) | Credential::V2c(_) => None,
            Credential::V3(user) => Some(&user.name),
        }
    }
}

impl Community {
    fn new(octets: &[u8]) -> Result<Community, BadCredential> {
        if octets.is_empty() || octets.len() > 255 {
            return Err(BadCredential::Community);
        }
        Ok(Community(Zeroizing::new(octets.to_vec())))
    }

    pub(crate) fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl User {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn context(&self) -> &str {
        &self.context
    }

    pub(crate) fn auth(&self) -> Option<&(AuthProtocol, Master)> {
        self.auth.as_ref()
    }

    pub(crate) fn privacy(&self) -> Option<&(PrivProtocol, KeyExtension, Master)> {
        self.privacy.as_ref()
    }
}

impl fmt::Debug for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Community(secret)")
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("context", &self.context)
            .field("auth", &self.auth.as_ref().map(|(protocol, _)| protocol))
            .field("privacy", &self.privacy.as_ref().map(|(protocol, extension, _)| (protocol, extension)))
            .finish()
    }
}

impl fmt::Debug for V3<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("V3")
            .field("user", &self.user)
            .field("auth", &self.auth.map(|(protocol, _)| protocol))
            .field("privacy", &self.privacy.map(|(protocol, _)| protocol))
            .finish_non_exhaustive()
    }
}

/// The name of a protocol that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not one of {expected}")]
pub struct UnknownProtocol {
    given: String,
    expected: &'static str,
}

impl FromStr for AuthProtocol {
    type Err = UnknownProtocol;

    /// `md5`, `sha`, `sha224`, `sha256`, `sha384` or `sha512`; case and dashes do not matter.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match plain(text).as_str() {
            "md5" => AuthProtocol::Md5,
            "sha" | "sha1" => AuthProtocol::Sha1,
            "sha224" => AuthProtocol::Sha224,
            "sha256" => AuthProtocol::Sha256,
            "sha384" => AuthProtocol::Sha384,
            "sha512" => AuthProtocol::Sha512,
            _ => {
                let expected = "md5, sha, sha224, sha256, sha384, sha512";
                return Err(UnknownProtocol { given: text.to_owned(), expected });
            }
        })
    }
}

impl FromStr for PrivProtocol {
    type Err = UnknownProtocol;

    /// `des`, `aes`, `aes192` or `aes256`; case and dashes do not matter.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match plain(text).as_str() {
            "des" => PrivProtocol::Des,
            "aes" | "aes128" => PrivProtocol::Aes128,
            "aes192" => PrivProtocol::Aes192,
            "aes256" => PrivProtocol::Aes256,
            _ => {
                return Err(UnknownProtocol { given: text.to_owned(), expected: "des, aes, aes192, aes256" });
            }
        })
    }
}

impl FromStr for KeyExtension {
    type Err = UnknownProtocol;

    /// `blumenthal` or `reeder`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match plain(text).as_str() {
            "blumenthal" => Ok(KeyExtension::Blumenthal),
            "reeder" => Ok(KeyExtension::Reeder),
            _ => Err(UnknownProtocol { given: text.to_owned(), expected: "blumenthal, reeder" }),
        }
    }
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: V3<'static> = V3 {
        user: "meter",
        auth: Some((AuthProtocol::Sha256, "auth-secret")),
        privacy: Some((PrivProtocol::Aes128, "priv-secret")),
        extension: KeyExtension::Blumenthal,
        context: "",
    };

    #[test]
    fn the_context_of_a_jetdirect_is_another_of_the_same_user_and_made_once() {
        let parts = V3 { user: "meter", auth: Some((AuthProtocol::Md5, "password")), ..V3::default() };
        let user = Credential::v3(parts).unwrap();
        let there = user.in_jetdirect().unwrap();
        let Credential::V3(same) = &*there else { unreachable!() };
        assert_eq!((same.name(), same.context()), ("meter", JETDIRECT));
        assert!(Arc::ptr_eq(&there, &user.in_jetdirect().unwrap()), "the engine keeps keys by the Arc");
        assert!(there.in_jetdirect().is_none());
        assert!(Credential::v2c("public").unwrap().in_jetdirect().is_none());
    }

    #[test]
    fn short_passwords_are_refused() {
        let with = |auth, privacy| {
            Credential::v3(V3 {
                auth: Some((AuthProtocol::Md5, auth)),
                privacy: Some((PrivProtocol::Des, privacy)),
                ..GOOD
            })
        };
        // An empty password panics in snmp2's key derivation (index out of bounds).
        assert_eq!(with("", "long enough").unwrap_err(), BadCredential::AuthPassword);
        assert_eq!(with("seven77", "long enough").unwrap_err(), BadCredential::AuthPassword);
        assert_eq!(with("long enough", "").unwrap_err(), BadCredential::PrivPassword);
        assert!(with("eight888", "eight888").is_ok());
    }

    #[test]
    fn impossible_users_are_refused() {
        assert_eq!(Credential::v3(V3 { user: "", ..GOOD }).unwrap_err(), BadCredential::UserName);
        assert_eq!(Credential::v3(V3 { auth: None, ..GOOD }).unwrap_err(), BadCredential::PrivWithoutAuth);
        assert_eq!(Credential::v2c("").unwrap_err(), BadCredential::Community);
        assert_eq!(Credential::v1([b'x'; 256]).unwrap_err(), BadCredential::Community);
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown =
            format!("{:?} {:?}", Credential::v3(GOOD).unwrap(), Credential::v2c("topsecret").unwrap());
        assert!(shown.contains("meter") && shown.contains("Sha256"), "{shown}");
        assert!(
            !shown.contains("secret)secret") && !shown.contains("-secret") && !shown.contains("topsecret"),
            "{shown}"
        );
        assert!(!format!("{GOOD:?}").contains("secret"));
    }

    #[test]
    fn protocols_have_the_names_of_the_command_line() {
        assert_eq!("SHA-256".parse(), Ok(AuthProtocol::Sha256));
        assert_eq!("sha".parse(), Ok(AuthProtocol::Sha1));
        assert_eq!("aes".parse(), Ok(PrivProtocol::Aes128));
        assert!("3des".parse::<PrivProtocol>().unwrap_err().to_string().contains("aes256"));
    }
}
