//! Certificates: whose, and until when.

use quire_coordinator::{rotation, rows};
use quire_proto::id::Millis;
use quire_proto::store::{Member, RotationRow};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Finding;
use crate::clock;
use crate::cluster::Cluster;

const CHECK: &str = "certificates";
/// So long before its end a human should act: a node renews its own with 30 days left, and tries for as long.
pub(crate) const SOON_MS: u64 = 14 * 86_400_000;

/// Those of the cluster's CA, of this node towards others, and of every member towards the Web Admin.
pub(super) fn of_node(cluster: &Cluster) -> Vec<Finding> {
    let view = cluster.view();
    let Ok(meta) = rows::meta(&view) else { return Vec::new() };
    let mut known = vec![
        ("the cluster's CA".to_owned(), meta.ca_certificate_der.to_vec()),
        ("this node".to_owned(), cluster.certificate()),
    ];
    let members = rows::members(&view).unwrap_or_default();
    let others = members.iter().filter(|member| member.id != cluster.me().id.0);
    known.extend(
        others
            .filter(|member| !member.certificate_der.is_empty())
            .map(|member| (member.name.clone(), member.certificate_der.to_vec())),
    );
    if let Some(upstream) = &meta.upstream {
        known.push(("the Web Admin's CA".to_owned(), upstream.ca_certificate_der.to_vec()));
        known.extend(members.iter().filter(|member| !member.upstream_certificate_der.is_empty()).map(
            |member| (format!("{} at the Web Admin", member.name), member.upstream_certificate_der.to_vec()),
        ));
    }
    let mut found = judge(&known, clock::now());
    found.extend(rotation::row(&view).map_or_else(|_| Vec::new(), |row| changes(&row, &members)));
    found
}

/// What of the CA and the cluster key is being changed, and whom that waits for.
fn changes(row: &RotationRow, members: &[Member]) -> Vec<Finding> {
    let note = |what: &str, since: u64, lacking: Vec<&Member>| {
        let names: Vec<&str> = lacking.iter().map(|member| member.name.as_str()).collect();
        let since = Millis(since).rfc3339();
        let what = match names.as_slice() {
            [] => format!("the {what} is being changed since {since}"),
            names => format!("the {what} is being changed since {since}, and waits for {}", names.join(", ")),
        };
        let fix = "start those nodes; `quire remove` those that are lost for good; `quire certificates` shows how far it is";
        Finding::note("rotation", what, fix)
    };
    let key =
        row.key.as_ref().map(|key| note("cluster key", key.asked_at_ms, rotation::lacking_key(row, members)));
    let ca = row.ca.as_ref().map(|ca| note("CA", ca.asked_at_ms, rotation::lacking_ca(row, members)));
    key.into_iter().chain(ca).collect()
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
            let fix = "start the node where it is off: it renews its own before anything else; where it runs, its log says why it does not";
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

    #[test]
    fn a_change_that_waits_names_whom_it_waits_for() {
        use quire_proto::store::{CaChange, KeyChange};
        assert!(changes(&RotationRow::default(), &[]).is_empty());
        let ca = CaChange {
            certificate_der: vec![1].into(),
            certificate_sha256: vec![2].into(),
            ..CaChange::default()
        };
        let row = RotationRow { ca: Some(ca), key: Some(KeyChange::default()), ..RotationRow::default() };
        let member = |name: &str, ca: u8| Member {
            name: name.into(),
            ca_sha256: vec![ca].into(),
            ..Member::default()
        };
        let found = changes(&row, &[member("n1", 2), member("n2", 9)]);
        assert!(
            found[0].what.starts_with("the cluster key is being changed") && !found[0].what.contains("n2")
        );
        assert!(found[1].what.ends_with("waits for n2"), "{found:?}");
    }
}
