//! Secrets inside settings: the type that hides them, and the transformations of the TOML that seal
//! them before they enter a command, open them on a node, and blank them for people.
//!
//! The transformations work on the text itself, so comments and layout survive. Never logs, prints or
//! quotes what it handles.

use std::fmt;

use toml::de::{DeTable, DeValue};
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::form::{Problem, line_of};
use super::{BadSettings, broken_toml};

/// What `settings show` prints instead of a secret, and what no secret may be.
pub(super) const BLANK: &str = "…";
/// What sealed secrets start with.
pub(super) const SEALED: &str = "sealed:";

/// A text that must not be seen: wiped on drop, blank in Debug output.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the one who sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// True for what [`seal_secrets`] made: settings must be opened before this is of use.
    pub fn is_sealed(&self) -> bool {
        self.0.starts_with(SEALED)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(BLANK)
    }
}

/// The keys whose values are secrets, by section.
const SECRETS: [(&str, &[&str]); 4] = [
    ("snmp", &["community", "auth_pass", "priv_pass"]),
    ("http_login", &["password"]),
    ("mail", &["password"]),
    ("alert", &["notify"]),
];

/// What a webhook's address begins with; what follows its host is the secret.
const WEBHOOK: &str = "webhook:";

/// Replaces every secret that is not sealed yet by what `seal` makes of it, which must start with `sealed:`.
///
/// `seal` gets the secret's path (`snmp[1].community`), which it may bind to, and the clear text.
///
/// # Errors
/// When the text is not TOML.
pub fn seal_secrets(text: &str, seal: &mut dyn FnMut(&str, &str) -> String) -> Result<String, BadSettings> {
    replace(text, &mut |path, value| match value.starts_with(SEALED) {
        true => Ok(None),
        false => Ok(Some(seal(path, value))),
    })
}

/// Replaces every sealed secret by what `open` makes of it; `None` says that the key does not fit.
///
/// # Errors
/// When the text is not TOML or a secret cannot be opened.
pub fn open_secrets(
    text: &str,
    open: &mut dyn FnMut(&str, &str) -> Option<String>,
) -> Result<String, BadSettings> {
    replace(text, &mut |path, value| match value.starts_with(SEALED) {
        false => Ok(None),
        true => match open(path, value) {
            Some(clear) => Ok(Some(clear)),
            None => Err("was sealed with another cluster's key: write the secret anew".to_owned()),
        },
    })
}

/// For people: every secret, sealed or not, becomes `…`. A text that is not TOML becomes one comment.
pub fn redact(text: &str) -> String {
    replace(text, &mut |_, _| Ok(Some(BLANK.to_owned())))
        .unwrap_or_else(|_| "# these settings are not readable as TOML\n".to_owned())
}

/// Decides about one secret by path and value: the new value, or `None` to leave it alone.
type Change<'c> = dyn FnMut(&str, &str) -> Result<Option<String>, String> + 'c;

fn replace(text: &str, change: &mut Change<'_>) -> Result<String, BadSettings> {
    let root = DeTable::parse(text).map_err(|error| broken_toml(text, &error))?;
    let mut edits = Vec::new();
    let mut problems = Vec::new();
    for Found { path, span, open, value } in secrets(root.get_ref()) {
        match change(&path, value) {
            Ok(Some(new)) => edits.push((span, quoted(&format!("{open}{new}")))),
            Ok(None) => {}
            Err(reason) => problems.push(Problem { line: line_of(text, span.start), key: path, reason }),
        }
    }
    if !problems.is_empty() {
        return Err(BadSettings { problems });
    }
    edits.sort_by_key(|(span, _)| span.start);
    let mut out = String::with_capacity(text.len() + 64 * edits.len());
    let mut done = 0;
    for (span, new) in edits {
        out.push_str(&text[done..span.start]);
        out.push_str(&new);
        done = span.end;
    }
    out.push_str(&text[done..]);
    Ok(out)
}

/// One secret of a text.
struct Found<'a> {
    path: String,
    /// Of the whole value.
    span: std::ops::Range<usize>,
    /// The part before the secret, which everybody may see.
    open: &'a str,
    value: &'a str,
}

fn secrets<'a>(root: &'a DeTable<'a>) -> Vec<Found<'a>> {
    let mut found = Vec::new();
    for (section, keys) in SECRETS {
        let entries: Vec<&DeValue<'_>> = match root.get(section).map(|value| value.get_ref()) {
            Some(DeValue::Array(entries)) => entries.iter().map(|entry| entry.get_ref()).collect(),
            // Not what the settings want ([[snmp]] is a list), but still nothing to show.
            Some(table @ DeValue::Table(_)) => vec![table],
            _ => Vec::new(),
        };
        for (n, entry) in entries.into_iter().enumerate() {
            for key in keys {
                let Some(value) = entry.as_table().and_then(|table| table.get(*key)) else { continue };
                let path = format!("{section}[{}].{key}", n + 1);
                match value.get_ref() {
                    DeValue::String(clear) => {
                        found.push(Found { path, span: value.span(), open: "", value: clear.as_ref() });
                    }
                    DeValue::Array(targets) => {
                        found.extend(
                            targets.iter().enumerate().filter_map(|(n, target)| webhook(&path, n, target)),
                        );
                    }
                    _ => {}
                }
            }
        }
    }
    found
}

/// The part of a webhook's address that is a secret, if the target is one.
fn webhook<'a>(path: &str, n: usize, target: &'a toml::Spanned<DeValue<'a>>) -> Option<Found<'a>> {
    let DeValue::String(text) = target.get_ref() else { return None };
    let address = text.strip_prefix(WEBHOOK)?;
    let scheme = address.find("://").map_or(0, |at| at + 3);
    let host = address[scheme..].find(['/', '?', '#']).map(|at| scheme + at)?;
    // The slash stays with the host.
    let at = WEBHOOK.len() + host + usize::from(address[host..].starts_with('/'));
    let (open, value) = text.split_at(at);
    let path = format!("{path}[{}]", n + 1);
    (!value.is_empty()).then(|| Found { path, span: target.span(), open, value })
}

/// A TOML basic string.
fn quoted(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use proptest::prelude::*;

    const TEXT: &str = "# ours\n[[snmp]]\nversion = \"2c\" # old\ncommunity = 'pub\\lic'\n[[snmp]]\nversion = \"3\"\n\
        user = \"meter\"\nauth = \"sha256\"\nauth_pass = \"correct horse\"\npermission = \"CISO\"\n\
        [[http_login]]\nsegment = \"10.1.0.0/16\"\nuser = \"viewer\"\npassword = \"\"\"top \"secret\"\\n\"\"\"\n";

    /// No cipher: the tests only need something that can be undone.
    fn seal(path: &str, clear: &str) -> String {
        format!("sealed:{path}:{}", clear.chars().rev().collect::<String>())
    }

    fn open(path: &str, sealed: &str) -> Option<String> {
        let clear = sealed.strip_prefix(&format!("sealed:{path}:"))?;
        Some(clear.chars().rev().collect())
    }

    #[test]
    fn sealing_hides_every_secret_and_keeps_the_rest() {
        let sealed = seal_secrets(TEXT, &mut seal).unwrap();
        assert!(sealed.contains("# ours") && sealed.contains("# old") && sealed.contains("sha256"));
        for secret in ["pub\\lic", "correct horse", "top "] {
            assert!(!sealed.contains(secret), "{sealed}");
        }
        assert_eq!(seal_secrets(&sealed, &mut seal).unwrap(), sealed, "sealing twice changes nothing");
        let opened = open_secrets(&sealed, &mut open).unwrap();
        assert_eq!(Settings::parse(&opened).unwrap(), Settings::parse(TEXT).unwrap());
        assert!(Settings::parse(&sealed).unwrap().snmp[0].community().is_some_and(Secret::is_sealed));
    }

    #[test]
    fn people_see_no_secret_and_cannot_apply_what_they_see() {
        for text in [TEXT.to_owned(), seal_secrets(TEXT, &mut seal).unwrap()] {
            let shown = redact(&text);
            assert_eq!(shown.matches("\"…\"").count(), 3, "{shown}");
            assert!(!shown.contains("sealed:") && !shown.contains("horse"));
            let refused = Settings::parse(&shown).unwrap_err().to_string();
            assert!(refused.starts_with("line 4: snmp[1].community: "), "{refused}");
        }
        assert!(!format!("{:?}", Settings::parse(TEXT).unwrap()).contains("horse"));
        assert!(!redact("[[snmp]\ncommunity='x'").contains("community"));
    }

    #[test]
    fn a_foreign_seal_names_the_line() {
        let text = "\n[[snmp]]\nversion = \"2c\"\ncommunity = \"sealed:elsewhere\"\n";
        let refused = open_secrets(text, &mut open).unwrap_err().to_string();
        assert!(refused.starts_with("line 4: snmp[1].community: "), "{refused}");
        assert!(!refused.contains("elsewhere"));
    }

    proptest! {
        #[test]
        fn any_secret_comes_back(clear in "\\PC{1,30}|[\\x00-\\x7f]{1,30}") {
            let text = format!("[[snmp]]\nversion = \"2c\"\ncommunity = {}\n", quoted(&clear));
            let sealed = seal_secrets(&text, &mut seal).unwrap();
            let opened = open_secrets(&sealed, &mut open).unwrap();
            prop_assert_eq!(opened, text);
        }
    }
}
