//! Certificates: whose, and until when.

use quire_coordinator::rows;
use quire_proto::id::Millis;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Finding;
use crate::clock;
use crate::cluster::Cluster;

const CHECK: &str = "certificates";
/// So long before its end a human should act.
const SOON_MS: u64 = 30 * 86_400_000;

/// Those of the cluster's CA, of this node towards others, and of every member towards the Web Admin.
pub(super) fn of_node(cluster: &Cluster) -> Vec<Finding> {
    let view = cluster.view();
    let Ok(meta) = rows::meta(&view) else { return Vec::new() };
    let mut known = vec![
        ("the cluster's CA".to_owned(), meta.ca_certificate_der.to_vec()),
        ("this node".to_owned(), cluster.certificate()),
    ];
    if let Some(upstream) = &meta.upstream {
        known.push(("the Web Admin's CA".to_owned(), upstream.ca_certificate_der.to_vec()));
        let members = rows::members(&view).unwrap_or_default().into_iter();
        known.extend(members.filter(|member| !member.upstream_certificate_der.is_empty()).map(|member| {
            (format!("{} at the Web Admin", member.name), member.upstream_certificate_der.to_vec())
        }));
    }
    judge(&known, clock::now())
}

/// Problems one by one, or one finding when all is well.
pub(super) fn judge(known: &[(String, Vec<u8>)], now: Millis) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut first = u64::MAX;
    for (whose, der) in known {
        let Ok((_, certificate)) = X509Certificate::from_der(der) else {
            let fix = "remove this node from the cluster, and join anew with an empty directory";
            found.push(Finding::problem(CHECK, "it is not readable", fix).about(whose));
            continue;
        };
        let milli = |seconds: i64| u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000);
        let validity = certificate.validity();
        let (from, until) = (milli(validity.not_before.timestamp()), milli(validity.not_after.timestamp()));
        first = first.min(until);
        if now.0 < from {
            let what =
                format!("it is valid from {} on, and here it is {}", Millis(from).rfc3339(), now.rfc3339());
            found.push(Finding::problem(CHECK, what, "set the clock").about(whose));
        } else if until.saturating_sub(now.0) < SOON_MS {
            let word = if until <= now.0 { "ran out at" } else { "runs out at" };
            let fix =
                "see that the node has a quorum and the Web Admin's link: certificates are renewed over them";
            let what = format!("it {word} {}", Millis(until).rfc3339());
            found.push(Finding::problem(CHECK, what, fix).about(whose));
        }
    }
    if found.is_empty() {
        found.push(Finding::ok(
            CHECK,
            format!("{}, the first runs out at {}", known.len(), Millis(first).rfc3339()),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;
    use crate::tls::Authority;

    #[test]
    fn the_end_of_a_certificate_is_told_in_time() {
        let der = Authority::generate("site").unwrap().certificate().to_vec();
        let at = |text: &str| {
            let now = text.parse().unwrap();
            let found = judge(&[("n1".to_owned(), der.clone())], now);
            (found.len(), found[0].state, found[0].what.clone())
        };
        assert_eq!(at("2026-11-22T00:00:00Z").1, State::Ok);
        let (_, state, what) = at("2119-12-20T00:00:00Z");
        assert!(state == State::Problem && what.contains("runs out at 2120-01-01"), "{what}");
        assert!(at("2121-01-01T00:00:00Z").2.contains("ran out"));
        assert!(at("2019-01-01T00:00:00Z").2.contains("valid from"));
        assert_eq!(judge(&[("n1".to_owned(), vec![1, 2])], Millis(0))[0].state, State::Problem);
    }
}
