//! The settings: what is valid and yet hardly meant. Quotes no secret.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use quire_coordinator::rows;
use quire_coordinator::settings::{AuthProtocol, PrivProtocol, Settings, SnmpCredential};
use quire_proto::id::ANY_ZONE;
use quire_proto::store::Member;

use super::Finding;
use crate::cluster::{Cluster, SettingsError};

const CHECK: &str = "settings";

/// Of the cluster's settings, as far as this node can open them.
pub(super) fn judge(
    cluster: &Cluster,
    settings: &Result<Option<Arc<Settings>>, SettingsError>,
) -> Vec<Finding> {
    match settings {
        Err(error) => vec![Finding::problem(
            CHECK,
            format!("this node cannot use them: {error}"),
            "apply them anew, or upgrade this node",
        )],
        Ok(None) => vec![Finding::note(
            CHECK,
            "none were applied: nothing is searched",
            "`quire settings apply FILE`",
        )],
        Ok(Some(settings)) => {
            let members = rows::members(&cluster.view()).unwrap_or_default();
            of(settings, &Site::of(&members))
        }
    }
}

/// What the settings may name.
struct Site {
    /// Where a node collects.
    zones: BTreeSet<String>,
    nodes: BTreeSet<String>,
}

impl Site {
    fn of(members: &[Member]) -> Site {
        let collect = members.iter().filter(|member| !member.witness);
        Site {
            zones: collect.map(|member| member.zone.clone()).collect(),
            nodes: members.iter().map(|member| member.name.clone()).collect(),
        }
    }
}

fn of(settings: &Settings, site: &Site) -> Vec<Finding> {
    let mut found = Vec::new();
    let discovery = &settings.discovery;
    if discovery.segments.is_empty() && discovery.hops.is_none() {
        found.push(Finding::note(
            CHECK,
            "neither segments nor hops: nothing is searched",
            "name [discovery] segments",
        ));
    }
    for segment in &discovery.segments {
        let prefix = segment.prefix;
        if discovery.exclude.iter().any(|exclude| exclude.contains(&prefix)) {
            let fix = "take it out of [discovery] segments or exclude";
            found.push(Finding::note(CHECK, "all of it is excluded", fix).about(prefix.to_string()));
        }
        if segment.zone != ANY_ZONE && !site.zones.contains(&segment.zone) {
            let what = format!("no node stands in its zone {}", segment.zone);
            let fix = "start one with --zone, or correct the zone in [discovery] segments";
            found.push(Finding::problem(CHECK, what, fix).about(prefix.to_string()));
        }
    }
    if discovery.rate == 0 {
        let fix = "write a number, unless the networks are known to bear it";
        found.push(Finding::note(CHECK, "discovery.rate = 0: sweeps have no ceiling", fix));
    }
    for (n, credential) in settings.snmp.iter().enumerate() {
        found.extend(weak(credential).map(|why| {
            let fix = "use sha256 and aes where the devices know them";
            Finding::note(CHECK, why, fix).about(format!("snmp[{}]", n + 1))
        }));
    }
    for (n, login) in settings.http_logins.iter().enumerate() {
        if !searched(settings, &login.segment) {
            let what = format!("no segment that is searched lies in {}", login.segment);
            found.push(
                Finding::note(CHECK, what, "correct its segment").about(format!("http_login[{}]", n + 1)),
            );
        }
    }
    for (n, place) in settings.placements.iter().enumerate() {
        for name in place.pin.iter().chain(&place.forbid).filter(|name| !site.nodes.contains(*name)) {
            let what = format!("there is no node {name}: that part of it has no effect");
            let fix = "correct the name; `quire members` lists them";
            found.push(Finding::note(CHECK, what, fix).about(format!("placement[{}]", n + 1)));
        }
    }
    if found.is_empty() {
        let what = format!("{} segments, {} SNMP credentials", discovery.segments.len(), settings.snmp.len());
        found.push(Finding::ok(CHECK, what));
    }
    found
}

fn searched(settings: &Settings, prefix: &IpNet) -> bool {
    let touches = |other: &IpNet| other.contains(prefix) || prefix.contains(other);
    settings.discovery.hops.is_some()
        || settings.discovery.segments.iter().any(|segment| touches(&segment.prefix))
}

fn weak(credential: &SnmpCredential) -> Option<String> {
    let SnmpCredential::V3(user) = credential else { return None };
    let auth = match user.auth.as_ref().map(|(kind, _)| *kind) {
        None => Some("no authentication"),
        Some(AuthProtocol::Md5) => Some("md5"),
        Some(
            AuthProtocol::Sha1
            | AuthProtocol::Sha224
            | AuthProtocol::Sha256
            | AuthProtocol::Sha384
            | AuthProtocol::Sha512,
        ) => None,
    };
    let privacy = match user.privacy.as_ref().map(|(kind, _)| *kind) {
        None => None,
        Some(PrivProtocol::Des) => Some("des"),
        Some(PrivProtocol::Aes128 | PrivProtocol::Aes192 | PrivProtocol::Aes256) => None,
    };
    let words: Vec<&str> = auth.into_iter().chain(privacy).collect();
    (!words.is_empty()).then(|| format!("its v3 user is protected by {}", words.join(" and ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    fn found(text: &str) -> Vec<Finding> {
        let member = Member { name: "n1".into(), zone: "hq".into(), ..Member::default() };
        of(&Settings::parse(text).unwrap(), &Site::of(&[member]))
    }

    #[test]
    fn settings_that_are_hardly_meant_are_told_and_no_secret_is() {
        let good = found(
            "[discovery]\nsegments = [\"10.1.0.0/16\"]\n[[http_login]]\nsegment = \"10.1.2.0/24\"\nuser = \"u\"\npassword = \"hidden-1\"\n",
        );
        assert_eq!((good.len(), good[0].state), (1, State::Ok), "{good:?}");
        let bad = found(
            "[discovery]\nsegments = [\"10.1.0.0/24\", { prefix = \"10.2.0.0/24\", zone = \"gone\" }]\nexclude = [\"10.1.0.0/16\"]\nrate = 0\n\
             [[snmp]]\nversion = \"3\"\nuser = \"u\"\nauth = \"md5\"\nauth_pass = \"hidden-22\"\npriv = \"des\"\npriv_pass = \"hidden-33\"\npermission = \"p\"\n\
             [[http_login]]\nsegment = \"10.9.0.0/24\"\nuser = \"u\"\npassword = \"hidden-1\"\n\
             [[placement]]\nsegment = \"10.1.0.0/24\"\npin = \"n1\"\nforbid = [\"n7\"]\n",
        );
        let about: Vec<&str> = bad.iter().map(|finding| finding.about.as_str()).collect();
        assert_eq!(about, ["10.1.0.0/24", "10.2.0.0/24", "", "snmp[1]", "http_login[1]", "placement[1]"]);
        assert_eq!(bad.iter().filter(|finding| finding.state == State::Problem).count(), 1, "{bad:?}");
        assert!(bad[3].what.contains("md5 and des"));
        assert!(!format!("{bad:?}").contains("hidden"));
        assert_eq!(found("")[0].state, State::Note);
    }
}
