//! What a fuzzer may do to the client: headers, and places that a device sends it to.

use reqwest::header::{HeaderMap, HeaderValue, SET_COOKIE, WWW_AUTHENTICATE};

use super::{Access, charset, check, cookies_of, digest, permitted, redirected};
use crate::device::fuzz::HERE;
use crate::dice::Dice;

fn access() -> Access {
    Access { ip: HERE, ports: vec![80, 443, 8080, 9100, 515], login: None, pin: None }
}

/// A challenge and cookies, and a page in some charset.
pub(crate) fn headers(data: &[u8]) {
    let mut dice = Dice::new(data);
    let mut headers = HeaderMap::new();
    for _ in 0..dice.below(4) {
        if let Ok(value) = HeaderValue::from_bytes(dice.piece()) {
            headers.append(WWW_AUTHENTICATE, value.clone());
            headers.append(SET_COOKIE, value);
        }
    }
    for (name, value) in cookies_of(&headers) {
        assert!(!name.contains(';') && !value.contains(';'), "{name}={value}");
    }
    if let Some(mut challenge) = digest::challenge(&headers) {
        let answer = challenge.answer("viewer", "top secret", "GET", "/a?b=c").unwrap_or_default();
        assert!(!answer.contains("top secret"));
        // What the device put into its challenge must not become a header of its own.
        assert!(HeaderValue::from_str(&answer).is_ok(), "{answer:?}");
    }
    let kind = String::from_utf8_lossy(dice.piece()).into_owned();
    charset::decode(dice.rest(), Some(kind.as_str()).filter(|kind| !kind.is_empty()));
}

/// Wherever a device sends the client, it stays there, and on ports that do not print.
pub(crate) fn gate(data: &[u8]) {
    let access = access();
    let text = String::from_utf8_lossy(data);
    let Ok(from) = reqwest::Url::parse("http://192.0.2.7:8080/a/b?c") else { return };
    let there = redirected(&access, &from, &text);
    let direct = reqwest::Url::parse(&text).map_err(|_| super::WebError::Elsewhere);
    for url in [there, direct.and_then(|url| check(&access, url))].into_iter().flatten() {
        assert_eq!(url.host_str(), Some("192.0.2.7"), "{url}");
        let port = url.port_or_known_default().unwrap_or(0);
        assert!(permitted(&access, port) && matches!(port, 80 | 443 | 8080), "{url}");
        assert!(url.username().is_empty() && url.password().is_none(), "{url}");
    }
}
