//! What differs between two settings, in words for the operator and the audit log. Names no secret.

use std::collections::BTreeSet;
use std::fmt::Display;

use ipnet::IpNet;
use quire_proto::id::ANY_ZONE;

use super::{Mail, Placement, Segment, Settings, SnmpCredential, in_words};

impl Settings {
    /// True when a sweep under `new` may find, in the same segments, what one under these could not.
    pub fn finds_more(&self, new: &Settings) -> bool {
        let (old_d, new_d) = (&self.discovery, &new.discovery);
        let still = |old: &IpNet| new_d.exclude.iter().any(|exclusion| exclusion.contains(old));
        new.snmp.iter().any(|credential| !self.snmp.contains(credential))
            || old_d.port != new_d.port
            || !old_d.exclude.iter().all(still)
    }

    /// What applying `new` over these would change; empty when nothing.
    pub fn changes(&self, new: &Settings) -> Vec<String> {
        let mut said = Vec::new();
        let (old_d, new_d) = (&self.discovery, &new.discovery);
        sets("segment", &labels(&old_d.segments), &labels(&new_d.segments), &mut said);
        let hops = |hops: Option<u32>| hops.map_or_else(|| "unset".to_owned(), |hops| hops.to_string());
        value("discovery.hops", hops(old_d.hops), hops(new_d.hops), &mut said);
        value("discovery.accept", old_d.accept.as_str(), new_d.accept.as_str(), &mut said);
        sets("exclusion", &texts(&old_d.exclude), &texts(&new_d.exclude), &mut said);
        sets("hidden prefix", &texts(&old_d.hide), &texts(&new_d.hide), &mut said);
        value("discovery.schedule", &old_d.schedule, &new_d.schedule, &mut said);
        value("discovery.rate", old_d.rate, new_d.rate, &mut said);
        value("discovery.local", old_d.local, new_d.local, &mut said);
        value("discovery.port", old_d.port, new_d.port, &mut said);
        let (old_m, new_m) = (&self.metering, &new.metering);
        value("metering.every", in_words(old_m.every_ms), in_words(new_m.every_ms), &mut said);
        value(
            "metering.expire_after",
            in_words(old_m.expire_after_ms),
            in_words(new_m.expire_after_ms),
            &mut said,
        );
        credentials(&self.snmp, &new.snmp, &mut said);
        value("http.ports", format!("{:?}", self.http.ports), format!("{:?}", new.http.ports), &mut said);
        value("http.chromium", self.http.chromium, new.http.chromium, &mut said);
        logins(self, new, &mut said);
        alerts(self, new, &mut said);
        placements(self, new, &mut said);
        mail(self.mail.as_ref(), new.mail.as_ref(), &mut said);
        value("upstream.mode", self.upstream.mode.as_str(), new.upstream.mode.as_str(), &mut said);
        let (old_u, new_u) = (self.upstream.check_in_ms, new.upstream.check_in_ms);
        value("upstream.check_in", in_words(old_u), in_words(new_u), &mut said);
        said
    }
}

fn value(key: &str, old: impl Display, new: impl Display, said: &mut Vec<String>) {
    let (old, new) = (old.to_string(), new.to_string());
    if old != new {
        said.push(format!("{key}: {old} -> {new}"));
    }
}

fn texts(items: &[impl Display]) -> BTreeSet<String> {
    items.iter().map(ToString::to_string).collect()
}

fn labels(segments: &[Segment]) -> BTreeSet<String> {
    let label = |segment: &Segment| match segment.zone.as_str() {
        ANY_ZONE => segment.prefix.to_string(),
        zone => format!("{} in zone {zone}", segment.prefix),
    };
    segments.iter().map(label).collect()
}

fn sets(what: &str, old: &BTreeSet<String>, new: &BTreeSet<String>, said: &mut Vec<String>) {
    said.extend(new.difference(old).map(|item| format!("{what} added: {item}")));
    said.extend(old.difference(new).map(|item| format!("{what} removed: {item}")));
}

/// A credential without its secrets.
fn label(credential: &SnmpCredential) -> String {
    match credential {
        SnmpCredential::V1(_) => "v1 community".to_owned(),
        SnmpCredential::V2c(_) => "v2c community".to_owned(),
        SnmpCredential::V3(user) => {
            let auth = user.auth.as_ref().map_or("no authentication", |(kind, _)| kind.as_str());
            let privacy = user.privacy.as_ref().map_or("no privacy", |(kind, _)| kind.as_str());
            format!("v3 user {} ({auth}, {privacy})", user.user)
        }
    }
}

fn credentials(old: &[SnmpCredential], new: &[SnmpCredential], said: &mut Vec<String>) {
    for n in 0..old.len().max(new.len()) {
        let place = n + 1;
        match (old.get(n), new.get(n)) {
            (Some(old), None) => said.push(format!("snmp[{place}] removed: {}", label(old))),
            (None, Some(new)) => said.push(format!("snmp[{place}] added: {}", label(new))),
            (Some(old), Some(new)) if label(old) != label(new) => {
                said.push(format!("snmp[{place}]: {} -> {}", label(old), label(new)));
            }
            (Some(old), Some(new)) if old != new => {
                said.push(format!("snmp[{place}]: secret or permission of the {} changed", label(new)));
            }
            _ => {}
        }
    }
}

fn logins(old: &Settings, new: &Settings, said: &mut Vec<String>) {
    let names = |settings: &Settings| -> BTreeSet<String> {
        settings.http_logins.iter().map(|login| format!("{} on {}", login.user, login.segment)).collect()
    };
    let (before, after) = (names(old), names(new));
    sets("login", &before, &after, said);
    if before == after && old.http_logins != new.http_logins {
        said.push("http_login: a password or the order changed".to_owned());
    }
}

fn placements(old: &Settings, new: &Settings, said: &mut Vec<String>) {
    let labels = |settings: &Settings| settings.placements.iter().map(Placement::label).collect();
    let (before, after) = (labels(old), labels(new));
    sets("placement", &before, &after, said);
    if before == after && old.placements != new.placements {
        said.push("placement: the order changed".to_owned());
    }
}

fn alerts(old: &Settings, new: &Settings, said: &mut Vec<String>) {
    let names = |settings: &Settings| -> BTreeSet<String> {
        settings.alerts.iter().map(|rule| rule.name.clone()).collect()
    };
    let before = said.len();
    sets("alert", &names(old), &names(new), said);
    for rule in &new.alerts {
        let changed = old.alerts.iter().any(|before| before.name == rule.name && before != rule);
        said.extend(changed.then(|| format!("alert changed: {}", rule.name)));
    }
    if said.len() == before && old.alerts != new.alerts {
        said.push("alert: order changed".to_owned());
    }
}

fn mail(old: Option<&Mail>, new: Option<&Mail>, said: &mut Vec<String>) {
    let relay = |mail: Option<&Mail>| {
        mail.map_or_else(|| "none".to_owned(), |mail| format!("{}:{}", mail.host, mail.port))
    };
    let before = said.len();
    value("mail.relay", relay(old), relay(new), said);
    if said.len() == before && old != new {
        said.push("mail: sender, protection or login changed".to_owned());
    }
}
