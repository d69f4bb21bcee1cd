//! Certificates: whose, and until when.

use quire_coordinator::{rotation, rows};
use quire_proto::id::{Millis, NodeId};
use quire_proto::store::{Member, RotationRow};

use super::Finding;
use crate::clock;
use crate::cluster::Cluster;
use crate::tls;

const CHECK: &str = "certificates";
/// So long before its end a human should act: a node renews its own with 30 days left, and tries for as long.
pub(crate) const SOON_MS: u64 = 14 * 86_400_000;

/// What helps when one runs out: a node's, the cluster's CA, the Web Admin's CA, a node's at the Web Admin.
const NODE_FIX: &str = "start the node where it is off: it renews its own before anything else; where it runs, its log says why it does not";
const ROTATE_FIX: &str = "`quire rotate ca`";
const ENROL_FIX: &str = "enrol the site anew at a Web Admin with another CA";
const SIGN_FIX: &str =
    "connect the leader to the Web Admin, which signs it anew: `quire status` shows the link";

/// Those of the cluster's CA, of this node towards others, and of every member towards the Web Admin.
pub(super) fn of_node(cluster: &Cluster) -> Vec<Finding> {
    let view = cluster.view();
    let Ok(meta) = rows::meta(&view) else { return Vec::new() };
    let mut known = vec![
        ("the cluster's CA".to_owned(), meta.ca_certificate_der.to_vec(), ROTATE_FIX),
        ("this node".to_owned(), cluster.certificate(), NODE_FIX),
    ];
    let members = rows::members(&view).unwrap_or_default();
    let others = members.iter().filter(|member| member.id != cluster.me().id.0);
    known.extend(
        others
            .filter(|member| !member.certificate_der.is_empty())
            .map(|member| (member.name.clone(), member.certificate_der.to_vec(), NODE_FIX)),
    );
    if let Some(upstream) = &meta.upstream {
        known.push(("the Web Admin's CA".to_owned(), upstream.ca_certificate_der.to_vec(), ENROL_FIX));
        let enrolled = members.iter().filter(|member| !member.upstream_certificate_der.is_empty());
        known.extend(enrolled.map(|member| {
            let whose = format!("{} at the Web Admin", member.name);
            (whose, member.upstream_certificate_der.to_vec(), SIGN_FIX)
        }));
    }
    let mut found = judge(&known, clock::now());
    let alive = |member: &Member| cluster.is_alive(&meta, NodeId(member.id));
    found.extend(rotation::row(&view).map_or_else(|_| Vec::new(), |row| changes(&row, &members, alive)));
    found
}

/// What of the CA and the cluster key is being changed, and whom that waits for.
fn changes(row: &RotationRow, members: &[Member], alive: impl Fn(&Member) -> bool) -> Vec<Finding> {
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
    // Who is off fetches the key when it comes back.
    let mut keyless = rotation::lacking_key(row, members);
    keyless.retain(|member| alive(member));
    let key = row.key.as_ref().map(|key| note("cluster key", key.asked_at_ms, keyless));
    let ca = row.ca.as_ref().map(|ca| note("CA", ca.asked_at_ms, rotation::lacking_ca(row, members)));
    key.into_iter().chain(ca).collect()
}

/// A certificate of a data directory, by its name there, with what helps when it runs out.
pub(super) fn on_disk((name, der): (&str, Vec<u8>)) -> (String, Vec<u8>, &'static str) {
    let fix = if name.starts_with("ca") { ROTATE_FIX } else { NODE_FIX };
    (name.to_owned(), der, fix)
}

/// Problems one by one, or one finding when all is well.
pub(super) fn judge(known: &[(String, Vec<u8>, &str)], now: Millis) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut first = u64::MAX;
    for (whose, der, fix) in known {
        let Some((said, _)) = tls::said_of(der) else {
            let fix = "remove this node from the cluster, and join anew with an empty directory";
            found.push(Finding::problem(CHECK, "it is not readable", fix).about(whose));
            continue;
        };
        first = first.min(said.until.0);
        if now < said.from {
            let what =
                format!("it is valid from {} on, and here it is {}", said.from.rfc3339(), now.rfc3339());
            found.push(Finding::problem(CHECK, what, "set the clock").about(whose));
        } else if said.until.0.saturating_sub(now.0) < SOON_MS {
            let word = if said.until <= now { "ran out at" } else { "runs out at" };
            let what = format!("it {word} {}", said.until.rfc3339());
            found.push(Finding::problem(CHECK, what, *fix).about(whose));
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
            let found = judge(&[("n1".to_owned(), der.clone(), NODE_FIX)], now);
            (found.len(), found[0].state, found[0].what.clone())
        };
        assert_eq!(at("2026-11-22T00:00:00Z").1, State::Ok);
        let (_, state, what) = at("2119-12-20T00:00:00Z");
        assert!(state == State::Problem && what.contains("runs out at 2120-01-01"), "{what}");
        assert!(at("2121-01-01T00:00:00Z").2.contains("ran out"));
        assert!(at("2019-01-01T00:00:00Z").2.contains("valid from"));
        assert_eq!(judge(&[("n1".to_owned(), vec![1, 2], NODE_FIX)], Millis(0))[0].state, State::Problem);
    }

    #[test]
    fn a_change_that_waits_names_whom_it_waits_for() {
        use quire_proto::store::{CaChange, KeyChange};
        assert!(changes(&RotationRow::default(), &[], |_| true).is_empty());
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
        let found = changes(&row, &[member("n1", 2), member("n2", 9)], |_| true);
        assert!(
            found[0].what.starts_with("the cluster key is being changed") && !found[0].what.contains("n2")
        );
        assert!(found[1].what.ends_with("waits for n2"), "{found:?}");
    }
}
