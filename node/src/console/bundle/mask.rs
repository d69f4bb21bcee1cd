//! What must not be in a bundle, and taking it out.
//!
//! Settings lose their comments, every secret, and of addresses that people are told at all but the host. All other text
//! is searched for the secrets of the settings, should one ever stand where none belongs; upstream also for addresses
//! that are hidden there.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use quire_coordinator::settings;
use serde_json::{Map, Value};
use toml::{Table, Value as Toml};
use zeroize::Zeroizing;

/// What stands instead.
pub(super) const BLANK: &str = "…";
/// In the name of a key: what it holds is nobody's business, whatever table it is in.
const PRIVATE: [&str; 7] = ["pass", "secret", "token", "community", "key", "credential", "authorization"];
/// From here on a secret is looked for inside of words, too.
const LONG: usize = 8;

/// The settings as an outsider may see them.
pub(super) fn settings(text: &str) -> String {
    let redacted = settings::redact(text);
    match redacted.parse::<Table>() {
        Ok(mut table) => {
            for (_, value) in table.iter_mut() {
                blank(value);
            }
            private(&mut table);
            toml::to_string_pretty(&table).unwrap_or_else(|_| format!("# {BLANK}\n"))
        }
        Err(_) => "# these settings are not readable as TOML\n".to_owned(),
    }
}

fn private(table: &mut Table) {
    for (key, value) in table.iter_mut() {
        let key = key.to_lowercase();
        if matches!(value, Toml::String(_)) && PRIVATE.iter().any(|word| key.contains(word)) {
            *value = Toml::String(BLANK.to_owned());
        }
    }
}

fn blank(value: &mut Toml) {
    match value {
        Toml::String(text) => *text = host_only(text),
        Toml::Array(items) => items.iter_mut().for_each(blank),
        Toml::Table(table) => {
            private(table);
            table.iter_mut().for_each(|(_, value)| blank(value));
        }
        Toml::Integer(_) | Toml::Float(_) | Toml::Boolean(_) | Toml::Datetime(_) => {}
    }
}

/// `webhook:https://user:pw@host/path?x` becomes `webhook:https://host/…`: such addresses are secrets in themselves.
fn host_only(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit('@').next().unwrap_or_default();
    match path {
        "" => format!("{scheme}://{host}"),
        _ => format!("{scheme}://{host}/{BLANK}"),
    }
}

/// Texts after a colon and two slashes anywhere in the settings: they are secrets, too.
fn addresses(value: &Toml, found: &mut Vec<String>) {
    match value {
        Toml::String(text) if text.contains("://") && host_only(text) != *text => {
            // As it is written, and as whoever calls it would log it.
            found.extend(
                text.split_once(':').map(|(_, url)| url.to_owned()).filter(|url| url.contains("://")),
            );
            found.push(text.clone());
        }
        Toml::Array(items) => items.iter().for_each(|item| addresses(item, found)),
        Toml::Table(table) => table.iter().for_each(|(_, value)| addresses(value, found)),
        Toml::String(_) | Toml::Integer(_) | Toml::Float(_) | Toml::Boolean(_) | Toml::Datetime(_) => {}
    }
}

/// Takes known secrets, and hidden addresses, out of text.
pub(super) struct Scrubber {
    /// The longest first, so that none is left in part.
    secrets: Vec<Zeroizing<String>>,
    hide: Vec<IpNet>,
}

impl Scrubber {
    /// Of these secrets, of the addresses in `toml`, and of addresses in `hide`.
    pub(super) fn new(secrets: &[Zeroizing<String>], toml: &str, hide: &[String]) -> Scrubber {
        let mut all: Vec<String> = secrets.iter().map(|secret| secret.to_string()).collect();
        if let Ok(table) = toml.parse::<Table>() {
            addresses(&Toml::Table(table), &mut all);
        }
        // What everybody knows is no secret, and a word that stands everywhere.
        all.retain(|secret| !matches!(secret.as_str(), "" | "public"));
        all.sort_by(|a, b| (b.len(), a).cmp(&(a.len(), b)));
        all.dedup();
        let secrets = all.into_iter().map(Zeroizing::new).collect();
        Scrubber { secrets, hide: hide.iter().filter_map(|prefix| prefix.parse().ok()).collect() }
    }

    /// `text` without them.
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.secrets {
            if text.contains(secret.as_str()) {
                text = without(&text, secret);
            }
        }
        if self.hide.is_empty() { text } else { self.without_hidden(&text) }
    }

    /// Every text in `value`, but not its keys.
    pub(super) fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(object) => object.iter_mut().for_each(|(_, item)| self.value(item)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Whether all of a prefix is hidden.
    pub(super) fn hides_prefix(&self, prefix: &str) -> bool {
        prefix.parse::<IpNet>().is_ok_and(|prefix| self.hide.iter().any(|hide| hide.contains(&prefix)))
    }

    /// Whether a device's `ip:port` is hidden now.
    pub(super) fn hides(&self, address: &str) -> bool {
        let at = address.parse::<SocketAddr>();
        at.is_ok_and(|at| self.hide.iter().any(|hide| hide.contains(&at.ip())))
    }

    fn without_hidden(&self, text: &str) -> String {
        let part = |c: char| c.is_ascii_hexdigit() || matches!(c, '.' | ':');
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(part) {
            let (before, from) = rest.split_at(start);
            out.push_str(before);
            let end = from.find(|c| !part(c)).unwrap_or(from.len());
            let (word, behind) = from.split_at(end);
            match self.hidden(word) {
                Some(address) => out.push_str(&word.replacen(address, BLANK, 1)),
                None => out.push_str(word),
            }
            rest = behind;
        }
        out.push_str(rest);
        out
    }

    /// The part of a word that is a hidden address, its port included.
    fn hidden<'a>(&self, word: &'a str) -> Option<&'a str> {
        let ip = |text: &str| {
            text.parse::<IpAddr>().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|at| at.ip()))
        };
        // `::1` begins with what stands beside an address elsewhere.
        let bare = word.trim_matches(|c| matches!(c, '.' | ':'));
        // Of `warehouse:10.1.9.7` the last letter of the zone is a hexadecimal digit.
        let behind = bare.match_indices(':').map(|(at, _)| &bare[at + 1..]);
        let found = [bare, word].into_iter().chain(behind).find_map(|text| ip(text).map(|ip| (text, ip)));
        found.filter(|(_, ip)| self.hide.iter().any(|prefix| prefix.contains(ip))).map(|(text, _)| text)
    }
}

/// Long secrets wherever they stand, short ones as words of their own.
fn without(text: &str, secret: &str) -> String {
    if secret.chars().count() >= LONG {
        return text.replace(secret, BLANK);
    }
    let inside = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric());
    let mut out = String::with_capacity(text.len());
    let mut done = 0;
    for (at, _) in text.match_indices(secret) {
        let end = at + secret.len();
        if at < done || inside(text[..at].chars().next_back()) || inside(text[end..].chars().next()) {
            continue;
        }
        out.push_str(&text[done..at]);
        out.push_str(BLANK);
        done = end;
    }
    out.push_str(&text[done..]);
    out
}

/// What of a device says nothing about whose it is.
const DEVICE: [&str; 16] = [
    "id",
    "zone",
    "node",
    "hops",
    "via",
    "vendor",
    "model",
    "firmware",
    "status",
    "conditions",
    "counters",
    "supplies",
    "first_seen",
    "last_seen",
    "metered_at",
    "expired_at",
];

/// A device's row without what identifies it.
pub(super) fn device(row: Value) -> Value {
    let mut kept = only(row, &DEVICE);
    // A supply's serial number, should a device put it into the name, is told by no other field.
    let supplies = kept.get_mut("supplies").and_then(Value::as_array_mut);
    for supply in supplies.into_iter().flatten() {
        if let Some(supply) = supply.as_object_mut() {
            supply.remove("name");
        }
    }
    kept
}

/// These keys of an object, in their order.
pub(super) fn only(row: Value, keys: &[&str]) -> Value {
    let Value::Object(row) = row else { return Value::Null };
    Value::Object(row.into_iter().filter(|(key, _)| keys.contains(&key.as_str())).collect::<Map<_, _>>())
}

/// What operators typed stands between these in the audit.
pub(super) fn without_quoted(text: &str) -> String {
    let mut out = String::new();
    for (n, part) in text.split('`').enumerate() {
        out.push_str(if n % 2 == 1 { BLANK } else { part });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn settings_keep_their_sense_and_lose_their_secrets() {
        let text = "# old community: comment-secret\n[discovery]\nsegments = [\"10.1.0.0/16\"]\n\
            [[snmp]]\nversion = \"2c\"\ncommunity = \"hidden-1\" # hidden-2\n\
            [[alert]]\nname = \"low\"\nwhen = 'x < 1'\nnotify = [\"webhook:https://u:hidden-3@hooks.example/hidden-4?t=hidden-5\", \"mailto:it@example.org\"]\n\
            [mail]\nserver = \"smtp.example\"\npassword = \"hidden-6\"\n[other]\napi_key = \"hidden-7\"\n";
        let shown = settings(text);
        assert!(!shown.contains("hidden") && !shown.contains("comment-secret"), "{shown}");
        for kept in ["10.1.0.0/16", "hooks.example", "mailto:it@example.org", "x < 1", "smtp.example"] {
            assert!(shown.contains(kept), "{kept} is gone:\n{shown}");
        }
        assert!(shown.parse::<Table>().is_ok());
        assert!(!settings("[[snmp]\ncommunity = 'hidden'").contains("hidden"));
        assert_eq!(host_only("mailto:it@example.org"), "mailto:it@example.org");
        assert_eq!(host_only("webhook:https://h.example"), "webhook:https://h.example");
    }

    #[test]
    fn secrets_are_found_in_any_text() {
        let secrets =
            ["hunter22", "abc", "public", "hunter22-and-more"].map(|text| Zeroizing::new(text.to_owned()));
        let toml = "[[alert]]\nnotify = [\"webhook:https://hooks.example/T0K3N\"]\n";
        let scrubber = Scrubber::new(&secrets, toml, &[]);
        let clean = |text: &str| scrubber.text(text);
        assert_eq!(clean("pw=hunter22xx, abc; abcd public"), "pw=…xx, …; abcd public");
        assert_eq!(clean("hunter22-and-more"), BLANK, "none is left in part");
        assert_eq!(clean("POST https://hooks.example/T0K3N failed"), "POST … failed");
        let mut value = json!({"abc": ["x abc", {"k": "hunter22"}], "n": 3});
        scrubber.value(&mut value);
        assert_eq!(value, json!({"abc": ["x …", {"k": "…"}], "n": 3}));
    }

    #[test]
    fn hidden_addresses_do_not_travel() {
        let scrubber = Scrubber::new(&[], "", &["10.1.9.0/24".to_owned(), "fd00:9::/64".to_owned()]);
        let clean = |text: &str| scrubber.text(text);
        assert_eq!(clean("10.1.9.7:161: no answer; 10.1.8.7:161"), "…: no answer; 10.1.8.7:161");
        assert_eq!(clean("unit any:10.1.9.0/24 of 10.1.9.255."), "unit any:…/24 of ….");
        assert_eq!(clean("warehouse:10.1.9.7, e:10.1.9.8:161"), "warehouse:…, e:…");
        assert_eq!(clean("[fd00:9::5]:161 fd00:8::5 at 12:30:10"), "[…]:161 fd00:8::5 at 12:30:10");
    }

    #[test]
    fn what_identifies_a_device_is_left_out() {
        let row = json!({"id": "d1", "address": "10.0.0.1", "addresses": ["10.0.0.1"], "serial": "S1", "mac": "m",
            "name": "n", "location": "l", "asset": "a", "display": "Hello Bob", "model": "M", "sources": {"serial": "x"},
            "counters": {"total": 1}, "supplies": [{"index": 1, "name": "Black SN:1", "percent": 3}]});
        let expected = json!({"id": "d1", "model": "M", "counters": {"total": 1}, "supplies": [{"index": 1, "percent": 3}]});
        assert_eq!(device(row), expected);
        assert_eq!(
            without_quoted("set location to `Room 7`, cleared name"),
            "set location to …, cleared name"
        );
    }
}
