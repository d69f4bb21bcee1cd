//! Digest (RFC 7616, MD5 and SHA-256) and basic (RFC 7617) authentication: from a 401's challenge to the header that
//! answers it. It must never log or keep a password.

use md5::{Digest as _, Md5};
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use sha2::Sha256;

/// A challenge that can be answered.
#[derive(Clone, Debug)]
pub(super) enum Challenge {
    Basic,
    Digest(Digest),
}

/// A digest challenge, and how often it was answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Digest {
    realm: String,
    nonce: String,
    opaque: Option<String>,
    algorithm: Algorithm,
    session: bool,
    /// `qop=auth` was offered; without it the older form of RFC 2069 is answered.
    auth: bool,
    stale: bool,
    count: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Algorithm {
    #[default]
    Md5,
    Sha256,
}

impl Algorithm {
    fn name(self, session: bool) -> &'static str {
        match (self, session) {
            (Algorithm::Md5, false) => "MD5",
            (Algorithm::Md5, true) => "MD5-sess",
            (Algorithm::Sha256, false) => "SHA-256",
            (Algorithm::Sha256, true) => "SHA-256-sess",
        }
    }

    fn hash(self, text: &str) -> String {
        match self {
            Algorithm::Md5 => data_encoding::HEXLOWER.encode(&Md5::digest(text)),
            Algorithm::Sha256 => data_encoding::HEXLOWER.encode(&Sha256::digest(text)),
        }
    }
}

/// The strongest challenge of an answer that can be met.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let texts: Vec<&str> =
        headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok()).collect();
    let all: Vec<(String, Vec<(String, String)>)> = texts.iter().flat_map(|text| parse(text)).collect();
    let digests =
        all.iter().filter(|(scheme, _)| scheme == "digest").filter_map(|(_, fields)| digest(fields));
    let basic = all.iter().any(|(scheme, _)| scheme == "basic").then_some(Challenge::Basic);
    digests.max_by_key(|digest| digest.algorithm).map(Challenge::Digest).or(basic)
}

/// Schemes with their fields; several may share one header (RFC 9110 section 11.6.1).
fn parse(text: &str) -> Vec<(String, Vec<(String, String)>)> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    for part in parts(text) {
        let (head, value) = part.split_once('=').map_or((part, None), |(head, value)| (head, Some(value)));
        let mut words = head.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        let field = match (second, value) {
            // `Digest realm="x"` opens a scheme and gives its first field.
            (Some(field), Some(_)) => {
                found.push((first.to_ascii_lowercase(), Vec::new()));
                field
            }
            (None, Some(_)) => first,
            (_, None) => {
                found.push((first.to_ascii_lowercase(), Vec::new()));
                continue;
            }
        };
        let value = value.unwrap_or_default().trim().trim_matches('"').replace("\\\"", "\"");
        if let Some((_, fields)) = found.last_mut() {
            fields.push((field.to_ascii_lowercase(), value));
        }
    }
    found
}

/// Split at the commas that stand outside quotes.
fn parts(text: &str) -> Vec<&str> {
    let mut quoted = false;
    let split = text.split(move |c| {
        quoted ^= c == '"';
        c == ',' && !quoted
    });
    split.map(str::trim).filter(|part| !part.is_empty()).collect()
}

fn digest(fields: &[(String, String)]) -> Option<Digest> {
    let field = |name: &str| fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let named = field("algorithm").unwrap_or("MD5").to_ascii_lowercase();
    let (name, session) = named.strip_suffix("-sess").map_or((named.as_str(), false), |name| (name, true));
    let algorithm = match name {
        "md5" => Algorithm::Md5,
        "sha-256" => Algorithm::Sha256,
        _ => return None,
    };
    let qop = field("qop");
    let auth = qop.is_some_and(|qop| qop.split(',').any(|word| word.trim().eq_ignore_ascii_case("auth")));
    // Only auth-int on offer: it cannot be met.
    if qop.is_some() && !auth {
        return None;
    }
    Some(Digest {
        realm: field("realm")?.to_owned(),
        nonce: field("nonce")?.to_owned(),
        opaque: field("opaque").map(str::to_owned),
        algorithm,
        session,
        auth,
        stale: field("stale").is_some_and(|stale| stale.eq_ignore_ascii_case("true")),
        count: 0,
    })
}

impl Challenge {
    /// True when the login was right and only the nonce too old.
    pub(super) fn stale(&self) -> bool {
        matches!(self, Challenge::Digest(digest) if digest.stale)
    }

    /// The Authorization header of one request; `None` when the system has no randomness.
    pub(super) fn answer(&mut self, user: &str, password: &str, method: &str, uri: &str) -> Option<String> {
        match self {
            Challenge::Basic => {
                let pair = data_encoding::BASE64.encode(format!("{user}:{password}").as_bytes());
                Some(format!("Basic {pair}"))
            }
            Challenge::Digest(digest) => {
                let mut octets = [0; 16];
                getrandom::fill(&mut octets).ok()?;
                digest.count += 1;
                let cnonce = data_encoding::HEXLOWER.encode(&octets);
                Some(digest.answer(user, password, method, uri, &cnonce))
            }
        }
    }
}

impl Digest {
    /// RFC 7616 section 3.4.
    fn answer(&self, user: &str, password: &str, method: &str, uri: &str, cnonce: &str) -> String {
        let hash = |text: String| self.algorithm.hash(&text);
        let Digest { realm, nonce, .. } = self;
        let mut a1 = hash(format!("{user}:{realm}:{password}"));
        if self.session {
            a1 = hash(format!("{a1}:{nonce}:{cnonce}"));
        }
        let a2 = hash(format!("{method}:{uri}"));
        let count = format!("{:08x}", self.count);
        let response = match self.auth {
            true => hash(format!("{a1}:{nonce}:{count}:{cnonce}:auth:{a2}")),
            false => hash(format!("{a1}:{nonce}:{a2}")),
        };
        let quote = |text: &str| text.replace('"', "\\\"");
        let mut header = format!(
            "Digest username=\"{}\", realm=\"{}\", nonce=\"{nonce}\", uri=\"{uri}\", response=\"{response}\", algorithm={}",
            quote(user),
            quote(realm),
            self.algorithm.name(self.session),
        );
        if self.auth {
            header += &format!(", qop=auth, nc={count}, cnonce=\"{cnonce}\"");
        }
        if let Some(opaque) = &self.opaque {
            header += &format!(", opaque=\"{opaque}\"");
        }
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn headers(texts: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for text in texts {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_static(text));
        }
        headers
    }

    /// RFC 7616 section 3.9.1.
    #[test]
    fn the_standards_own_example() {
        let md5 = "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm=MD5, nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";
        let sha = "Digest realm=\"http-auth@example.org\", qop=\"auth, auth-int\", algorithm=SHA-256, nonce=\"7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v\", opaque=\"FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS\"";
        let cnonce = "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ";
        for (offer, response) in [
            (&[md5][..], "8ca523f5e9506fed4657c9700eebdbec"),
            (&[md5, sha][..], "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1"),
        ] {
            let Some(Challenge::Digest(mut digest)) = challenge(&headers(offer)) else { panic!("no digest") };
            digest.count = 1;
            let header = digest.answer("Mufasa", "Circle of Life", "GET", "/dir/index.html", cnonce);
            assert!(header.contains(&format!("response=\"{response}\"")), "{header}");
        }
    }

    #[test]
    fn the_strongest_challenge_is_taken_and_unknown_ones_are_not() {
        let both = headers(&["Basic realm=\"a, b\", Digest realm=\"c\", nonce=\"n\", stale=TRUE"]);
        let taken = challenge(&both).unwrap();
        assert!(matches!(&taken, Challenge::Digest(digest) if digest.realm == "c") && taken.stale());
        assert!(matches!(challenge(&headers(&["Basic realm=x"])), Some(Challenge::Basic)));
        assert!(challenge(&headers(&["Negotiate"])).is_none());
        assert!(challenge(&headers(&["Digest realm=\"x\", nonce=\"n\", qop=\"auth-int\""])).is_none());
    }
}
