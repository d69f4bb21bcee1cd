//! Whom rules tell, by names that may be shown and kept: a webhook's is its host and a hash of its address.

use std::collections::BTreeMap;

use quire_coordinator::settings::{AlertRule, Notify};
use ring::digest::{SHA256, digest};

/// The targets of the rules in force; the Web Admin is none, the outbox tells it.
#[derive(Clone, Debug, Default)]
pub(super) struct Targets {
    by_rule: BTreeMap<String, Vec<String>>,
    by_name: BTreeMap<String, Notify>,
}

impl Targets {
    pub(super) fn of(rules: &[AlertRule]) -> Targets {
        let mut targets = Targets::default();
        for rule in rules {
            let named: Vec<(String, &Notify)> =
                rule.notify.iter().filter_map(|notify| Some((name(notify)?, notify))).collect();
            targets.by_name.extend(named.iter().map(|(name, notify)| (name.clone(), (*notify).clone())));
            targets.by_rule.insert(rule.name.clone(), named.into_iter().map(|(name, _)| name).collect());
        }
        targets
    }

    /// The names of those that a rule tells.
    pub(super) fn of_rule(&self, rule: &str) -> &[String] {
        self.by_rule.get(rule).map_or(&[], Vec::as_slice)
    }

    /// Who is behind a name.
    pub(super) fn get(&self, name: &str) -> Option<&Notify> {
        self.by_name.get(name)
    }
}

fn name(notify: &Notify) -> Option<String> {
    match notify {
        Notify::Upstream => None,
        Notify::Webhook { host, url } => {
            let hash = digest(&SHA256, url.expose().as_bytes());
            Some(format!("webhook:{host}#{}", data_encoding::HEXLOWER.encode(&hash.as_ref()[..4])))
        }
        Notify::Mail(address) => Some(format!("mailto:{address}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_coordinator::settings::Settings;

    #[test]
    fn names_tell_webhooks_apart_and_no_secret() {
        let rule = |name: &str, path: &str| {
            format!(
                "[[alert]]\nname = \"{name}\"\nwhen = 'supply.percent < 15'\n\
                 notify = [\"upstream\", \"webhook:https://hooks.example/{path}\", \"mailto:it@example.org\"]\n"
            )
        };
        let text = [rule("a", "secret1"), rule("b", "secret2"), rule("c", "secret1")].concat();
        let targets = Targets::of(&Settings::parse(&text).unwrap().alerts);
        let (a, b, c) = (targets.of_rule("a"), targets.of_rule("b"), targets.of_rule("c"));
        assert_eq!((a.len(), a), (2, c));
        assert!(a[0] != b[0] && a[1] == b[1] && a[0].starts_with("webhook:hooks.example#"), "{a:?} {b:?}");
        assert!(!format!("{targets:?}").contains("secret"), "{targets:?}");
        assert!(matches!(targets.get(&a[0]), Some(Notify::Webhook { .. })));
        assert!(targets.of_rule("d").is_empty() && targets.get("webhook:elsewhere#0").is_none());
    }
}
