//! Who to be when asking devices: SNMP communities and users, and logins of web pages.

use ipnet::IpNet;

use super::form::{Field, Form};
use super::prefix;
use super::secrets::{BLANK, SEALED, Secret};

/// One `[[snmp]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnmpCredential {
    /// SNMPv1 with a community (RFC 1157).
    V1(Secret),
    /// SNMPv2c with a community (RFC 1901).
    V2c(Secret),
    /// SNMPv3 with a user of the User-based Security Model (RFC 3414).
    V3(V3User),
}

impl SnmpCredential {
    /// The community of v1 and v2c.
    pub fn community(&self) -> Option<&Secret> {
        match self {
            SnmpCredential::V1(community) | SnmpCredential::V2c(community) => Some(community),
            SnmpCredential::V3(_) => None,
        }
    }
}

/// A user of the User-based Security Model. Privacy never comes without authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V3User {
    /// Security name, at most 32 octets.
    pub user: String,
    /// Digest and pass phrase; `None` is noAuthNoPriv.
    pub auth: Option<(AuthProtocol, Secret)>,
    /// Cipher and pass phrase; `None` is authNoPriv.
    pub privacy: Option<(PrivProtocol, Secret)>,
    /// Who allowed it: v3 users lock when they fail.
    pub permission: String,
}

/// Digests of RFC 3414 and RFC 7860.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum AuthProtocol {
    Md5,
    Sha1,
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

impl AuthProtocol {
    const NAMES: [(&str, AuthProtocol); 6] = [
        ("md5", AuthProtocol::Md5),
        ("sha", AuthProtocol::Sha1),
        ("sha224", AuthProtocol::Sha224),
        ("sha256", AuthProtocol::Sha256),
        ("sha384", AuthProtocol::Sha384),
        ("sha512", AuthProtocol::Sha512),
    ];

    /// As settings and options write it.
    pub fn as_str(self) -> &'static str {
        name_of(&Self::NAMES, self)
    }
}

impl std::str::FromStr for AuthProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(&Self::NAMES, text)
    }
}

/// Ciphers of RFC 3414, RFC 3826 and its customary extension to longer keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum PrivProtocol {
    Des,
    Aes128,
    Aes192,
    Aes256,
}

impl PrivProtocol {
    const NAMES: [(&str, PrivProtocol); 4] = [
        ("des", PrivProtocol::Des),
        ("aes", PrivProtocol::Aes128),
        ("aes192", PrivProtocol::Aes192),
        ("aes256", PrivProtocol::Aes256),
    ];

    /// As settings and options write it.
    pub fn as_str(self) -> &'static str {
        name_of(&Self::NAMES, self)
    }
}

impl std::str::FromStr for PrivProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        by_name(&Self::NAMES, text)
    }
}

fn name_of<T: Copy + PartialEq>(names: &[(&'static str, T)], wanted: T) -> &'static str {
    names.iter().find(|(_, value)| *value == wanted).map_or("", |(name, _)| *name)
}

fn by_name<T: Copy>(names: &[(&'static str, T)], text: &str) -> Result<T, String> {
    let found = names.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    found.ok_or_else(|| {
        let names: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        format!("`{text}` is unknown: write one of {}", names.join(", "))
    })
}

/// One `[[http_login]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpLogin {
    /// The devices it is for.
    pub segment: IpNet,
    /// Name on the device's page.
    pub user: String,
    /// Its password.
    pub password: Secret,
}

/// What is tried where the settings say nothing.
pub(super) fn by_default() -> Vec<SnmpCredential> {
    let public = || Secret::new("public");
    vec![SnmpCredential::V2c(public()), SnmpCredential::V1(public())]
}

/// RFC 3414 section 11.2: pass phrases have at least eight characters.
const MIN_PASS_PHRASE: usize = 8;
/// RFC 3414 section 5: SnmpAdminString (SIZE(1..32)).
const MAX_USER_OCTETS: usize = 32;

/// A secret of at least `min` characters; problems never quote it.
fn secret(field: &Field<'_>, min: usize) -> Option<Secret> {
    let text = field.text("\"…\"")?;
    if text == BLANK {
        field.bad("is what `settings show` prints instead of a secret: write the secret itself");
        return None;
    }
    if !text.starts_with(SEALED) && text.chars().count() < min {
        field.bad(format_args!("is shorter than {min} character{}", if min == 1 { "" } else { "s" }));
        return None;
    }
    Some(Secret::new(text))
}

pub(super) fn snmp(item: &Field<'_>) -> Option<SnmpCredential> {
    let mut form = item.form()?;
    let version = form.need("version", "write version = \"2c\"")?;
    match version.text("\"2c\"") {
        Some(text @ ("1" | "2c")) => {
            let community = form.need("community", "write community = \"public\"");
            form.finish(&["version", "community"]);
            let community = secret(&community?, 1)?;
            Some(if text == "1" { SnmpCredential::V1(community) } else { SnmpCredential::V2c(community) })
        }
        Some("3") => v3(form).map(SnmpCredential::V3),
        Some(other) => {
            version.bad(format_args!("`{other}` is not a version: write \"1\", \"2c\" or \"3\""));
            None
        }
        None => None,
    }
}

fn v3(mut form: Form<'_>) -> Option<V3User> {
    let user = form.need("user", "write user = \"NAME\"").and_then(|field| {
        field.parsed("\"meter\"", |text| match text.len() {
            1..=MAX_USER_OCTETS => Ok(text.to_owned()),
            _ => Err(format!("has {} octets: 1 to {MAX_USER_OCTETS} are possible", text.len())),
        })
    });
    let permission = form.need("permission", "say who allowed it, because v3 users lock when they fail");
    let permission = permission.and_then(|field| {
        field.parsed("\"granted by NAME\"", |text| match text.trim() {
            "" => Err("is empty: say who allowed it"),
            text => Ok(text.to_owned()),
        })
    });
    let auth = pair(&mut form, "auth", "auth_pass", "\"sha256\"");
    let auth_missing = matches!(auth, Pair::Absent);
    let privacy_field = pair(&mut form, "priv", "priv_pass", "\"aes\"");
    if let (Pair::Given(kind, _) | Pair::Half(kind), true) = (&privacy_field, auth_missing) {
        kind.bad("privacy needs authentication: add auth and auth_pass (RFC 3414)");
    }
    form.finish(&["version", "user", "auth", "auth_pass", "priv", "priv_pass", "permission"]);
    let (auth, privacy) = (auth.read("\"sha256\""), privacy_field.read("\"aes\""));
    Some(V3User { user: user?, auth: auth?, privacy: privacy?, permission: permission? })
}

/// A protocol with its pass phrase: both or none.
enum Pair<'a> {
    Absent,
    Given(Field<'a>, Field<'a>),
    Half(Field<'a>),
}

impl Pair<'_> {
    /// `None` where something is wrong, which was then said.
    fn read<T: std::str::FromStr<Err = String>>(&self, example: &str) -> Option<Option<(T, Secret)>> {
        match self {
            Pair::Absent => Some(None),
            Pair::Half(_) => None,
            Pair::Given(kind, pass) => {
                let (kind, pass) = (kind.parsed(example, str::parse), secret(pass, MIN_PASS_PHRASE));
                Some(Some((kind?, pass?)))
            }
        }
    }
}

fn pair<'a>(form: &mut Form<'a>, kind: &str, pass: &str, example: &str) -> Pair<'a> {
    match (form.take(kind), form.take(pass)) {
        (None, None) => Pair::Absent,
        (Some(kind), Some(pass)) => Pair::Given(kind, pass),
        (Some(given), None) => {
            given.bad(format_args!("has no pass phrase: add {pass}"));
            Pair::Half(given)
        }
        (None, Some(given)) => {
            given.bad(format_args!("has no protocol: add {kind} = {example}"));
            Pair::Half(given)
        }
    }
}

pub(super) fn http_login(item: &Field<'_>) -> Option<HttpLogin> {
    let mut form = item.form()?;
    let segment = form.need("segment", "write segment = \"10.1.0.0/16\"");
    let segment = segment.and_then(|field| field.parsed("\"10.1.0.0/16\"", prefix));
    let user = form.need("user", "write user = \"NAME\"").and_then(|field| field.text("\"viewer\""));
    let password = form.need("password", "write password = \"…\"").and_then(|field| secret(&field, 1));
    form.finish(&["segment", "user", "password"]);
    Some(HttpLogin { segment: segment?, user: user?.to_owned(), password: password? })
}
