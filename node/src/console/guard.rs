//! Who may see what: API tokens, and pages without a login on a loopback console alone.

use std::net::SocketAddr;

use axum::http::{HeaderMap, HeaderValue, header};
use quire_coordinator::tables::{Read, ReadExt as _, Table};
use quire_proto::store::ApiTokenRow;
use ring::digest::{SHA256, digest};

/// What a caller may do; each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Role {
    /// Reads.
    Viewer,
    /// Asks for sweeps and reads.
    Operator,
    /// Everything.
    Admin,
}

impl Role {
    fn from_word(word: &str) -> Option<Role> {
        match word {
            "viewer" => Some(Role::Viewer),
            "operator" => Some(Role::Operator),
            "admin" => Some(Role::Admin),
            _ => None,
        }
    }
}

/// The cookie that a login leaves.
pub(crate) const COOKIE: &str = "quire_token";

/// The role of the token in the request, where there is a good one.
pub(crate) fn role(tables: &impl Read, headers: &HeaderMap) -> Option<Role> {
    let token = bearer(headers).or_else(|| cookie(headers))?;
    let (id, secret) = token.split_once('.')?;
    let row: ApiTokenRow = tables.row(Table::ApiTokens, id.as_bytes()).ok()??;
    // Digests are compared, so the time it takes tells nothing about the secret.
    let good = digest(&SHA256, secret.as_bytes()).as_ref() == row.secret_sha256.as_ref();
    good.then(|| Role::from_word(&row.role)).flatten()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    cookies.split("; ").find_map(|pair| pair.strip_prefix(COOKIE)?.strip_prefix('='))
}

/// True when the request names the console by a loopback address: a page elsewhere that points its own
/// name at 127.0.0.1 (DNS rebinding) does not.
pub(crate) fn local_host(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let bare = match host.parse::<SocketAddr>() {
        Ok(at) => return at.ip().is_loopback(),
        Err(_) => host.rsplit_once(':').map_or(host, |(bare, _)| bare),
    };
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// True when a form was sent by a page of this console: browsers name the page's origin with every form.
pub(crate) fn same_origin(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST)) else { return false };
    origin.split_once("://").is_some_and(|(_, from)| from == host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_other_sites_are_foreign() {
        let from = |origin: &'static str| {
            let host = HeaderValue::from_static("127.0.0.1:7480");
            HeaderMap::from_iter([(header::HOST, host), (header::ORIGIN, HeaderValue::from_static(origin))])
        };
        assert!(same_origin(&from("http://127.0.0.1:7480")));
        for bad in ["http://evil.example", "null", "http://127.0.0.1:9"] {
            assert!(!same_origin(&from(bad)), "{bad}");
        }
        assert!(!same_origin(&HeaderMap::new()));
    }

    #[test]
    fn names_that_merely_point_here_are_foreign() {
        let host =
            |text: &'static str| HeaderMap::from_iter([(header::HOST, HeaderValue::from_static(text))]);
        for good in ["127.0.0.1:7480", "localhost:7480", "127.0.0.1", "[::1]:7480"] {
            assert!(local_host(&host(good)), "{good}");
        }
        for bad in ["evil.example:7480", "127.0.0.1.evil.example", "10.0.0.1:7480"] {
            assert!(!local_host(&host(bad)), "{bad}");
        }
        assert!(!local_host(&HeaderMap::new()));
    }
}
