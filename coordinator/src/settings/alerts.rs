//! `[[alert]]` and `[mail]`: what people want to be told of, whom to tell, and through which relay.
//!
//! Addresses of webhooks carry secrets behind the host: those are sealed, blanked, and never quoted.

use super::form::{Field, Form};
use super::secrets::{BLANK, Secret};
use super::within;
use crate::alert::Condition;

/// One `[[alert]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertRule {
    /// Unique among the rules.
    pub name: String,
    /// When to raise it.
    pub condition: Condition,
    /// How long the condition must hold first, in milliseconds.
    pub for_ms: u64,
    /// Whom to tell.
    pub notify: Vec<Notify>,
}

/// Whom an alert is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notify {
    /// The Web Admin.
    Upstream,
    /// Whoever listens there.
    Webhook {
        /// With the port where one is named; all that may be shown.
        host: String,
        /// The whole address.
        url: Secret,
    },
    /// A mailbox.
    Mail(String),
}

/// Section `[mail]`: how mail leaves the site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mail {
    /// The server that takes it.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is protected.
    pub tls: MailTls,
    /// Who it is from.
    pub from: String,
    /// User and password, where the relay wants them.
    pub login: Option<(String, Secret)>,
}

/// How the connection to the relay is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MailTls {
    /// From the first octet (RFC 8314).
    Implicit,
    /// After STARTTLS, without which nothing is sent (RFC 3207).
    Start,
    /// Not at all: the relay is on this very machine.
    Plain,
}

/// Rules at most: each is judged for every reading.
const RULES: usize = 100;
/// Targets of one rule at most.
const TARGETS: usize = 16;
/// Of a rule's name: it stands in keys, listings and subjects of mails.
const NAME: usize = 100;
/// `for` at the longest.
const WEEK_MS: u64 = 7 * 86_400_000;

pub(super) fn rules(entries: &Field<'_>) -> Vec<AlertRule> {
    let mut rules: Vec<AlertRule> = Vec::new();
    for item in entries.list("a list of tables: write [[alert]] with two brackets") {
        let Some(mut form) = item.form() else { continue };
        let field = form.need("name", "write name = \"low toner\"");
        let name = field.as_ref().and_then(|field| field.parsed("\"low toner\"", name));
        let called = name.clone().unwrap_or_default();
        let condition = |text: &str| match Condition::parse(text) {
            Ok(condition) => Ok(condition),
            Err(mistake) => Err(format!("rule `{called}`, {mistake}")),
        };
        let when = form.need("when", "write the condition, such as 'supply.percent < 15'");
        let when = when.and_then(|field| field.parsed("'supply.percent < 15'", condition));
        let held = form.take("for").map(|field| field.parsed("\"10m\"", within(0, WEEK_MS)));
        let notify = form.need("notify", "write notify = [\"upstream\"]").map(|field| targets(&field));
        form.finish(&["name", "when", "for", "notify"]);
        let (Some(field), Some(name), Some(condition), Some(notify)) = (field, name, when, notify) else {
            continue;
        };
        if rules.iter().any(|rule| rule.name == name) {
            field.bad("is the name of an earlier alert: choose another");
        }
        if rules.len() == RULES {
            field.bad(format_args!("is one rule too many: there may be {RULES}"));
        }
        let for_ms = held.flatten().unwrap_or(0);
        rules.push(AlertRule { name, condition, for_ms, notify });
    }
    rules
}

fn name(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("is empty: write a text".to_owned()),
        text if text.len() > NAME || text.chars().any(char::is_control) => {
            Err(format!("is longer than {NAME} octets, or not plain text"))
        }
        text => Ok(text.to_owned()),
    }
}

fn targets(field: &Field<'_>) -> Vec<Notify> {
    let items = field.list("a list such as [\"upstream\"]");
    if items.len() > TARGETS {
        field.bad(format_args!("names more than {TARGETS} targets"));
    }
    items.iter().filter_map(|target| target.parsed("\"upstream\"", notify)).collect()
}

/// Errors quote nothing: addresses of webhooks carry secrets.
fn notify(text: &str) -> Result<Notify, &'static str> {
    if text == "upstream" {
        return Ok(Notify::Upstream);
    }
    if let Some(address) = text.strip_prefix("mailto:") {
        return mailbox(address)
            .map(Notify::Mail)
            .map_err(|_| "is no mail address: write \"mailto:NAME@HOST\"");
    }
    let Some(url) = text.strip_prefix("webhook:") else {
        return Err(
            "nobody to notify: write \"upstream\", \"webhook:https://HOST/PATH\" or \"mailto:NAME@HOST\"",
        );
    };
    let (plain, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
        (Some(rest), _) => (false, rest),
        (None, Some(rest)) => (true, rest),
        (None, None) => return Err("is no webhook: write \"webhook:https://HOST/PATH\""),
    };
    let host = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '<' | '>' | '\\');
    if host.is_empty() || url.chars().any(odd) {
        return Err("is no webhook: write \"webhook:https://HOST/PATH\"");
    }
    if host.contains('@') {
        return Err("holds a user before the host: write secrets behind the host, where they are sealed");
    }
    if rest.ends_with(BLANK) {
        return Err("was blanked by `settings show`: write the whole address");
    }
    if plain && !is_loopback(host) {
        return Err("is not protected: write webhook:https:// (http only to this machine, 127.0.0.1)");
    }
    Ok(Notify::Webhook { host: host.to_owned(), url: Secret::new(url) })
}

/// Whether a host, perhaps with a port, is this machine by its number.
fn is_loopback(host: &str) -> bool {
    let at = host.parse::<std::net::SocketAddr>().map(|at| at.ip());
    let bare = || host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    at.or_else(|_| bare()).is_ok_and(|ip| ip.is_loopback())
}

fn mailbox(text: &str) -> Result<String, String> {
    let fine = |part: &str| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_graphic() && !"<>,;:\"@\\()[]".contains(c))
    };
    match text.split_once('@') {
        Some((user, host)) if text.len() <= 254 && fine(user) && fine(host) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is no mail address: write NAME@HOST")),
    }
}

pub(super) fn mail(mut form: Form<'_>) -> Option<Mail> {
    let relay = form.need("relay", "write relay = \"smtps://mail.example.org\"");
    let relay = relay.and_then(|field| field.parsed("\"smtps://mail.example.org\"", relay_of));
    let from = form.need("from", "write from = \"quire@example.org\"");
    let from = from.and_then(|field| field.parsed("\"quire@example.org\"", mailbox));
    let (user, password) = (form.take("user"), form.take("password"));
    let text = |text: &str| match text {
        "" => Err("is empty: write a text, or leave it out"),
        BLANK => Err("was blanked by `settings show`: write the secret itself"),
        text => Ok(text.to_owned()),
    };
    let login = match (user, password) {
        (None, None) => Some(None),
        (Some(user), Some(password)) => {
            let (user, password) = (user.parsed("\"quire\"", text), password.parsed("a password", text));
            user.zip(password.map(Secret::new)).map(Some)
        }
        (Some(only), None) | (None, Some(only)) => {
            only.bad("stands alone: write both user and password, or neither");
            None
        }
    };
    form.finish(&["relay", "from", "user", "password"]);
    let ((tls, host, port), from) = relay.zip(from)?;
    Some(Mail { host, port, tls, from, login: login? })
}

/// `smtps://HOST[:465]`, or `smtp://HOST[:587]` with STARTTLS; on this very machine `smtp://` is without.
fn relay_of(text: &str) -> Result<(MailTls, String, u16), String> {
    let bad = || {
        format!(
            "`{text}` is no relay: write smtps://HOST, or smtp://HOST for STARTTLS, each perhaps with :PORT"
        )
    };
    let (mut tls, rest, usual) = match (text.strip_prefix("smtps://"), text.strip_prefix("smtp://")) {
        (Some(rest), _) => (MailTls::Implicit, rest, 465),
        (None, Some(rest)) => (MailTls::Start, rest, 587),
        (None, None) => return Err(bad()),
    };
    let (host, port) = match rest.rsplit_once(':') {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
            (host, port.parse().map_err(|_| bad())?)
        }
        _ => (rest, usual),
    };
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '[' | ']' | ':');
    if host.is_empty() || port == 0 || !host.chars().all(fine) {
        return Err(bad());
    }
    if tls == MailTls::Start && is_loopback(host) {
        tls = MailTls::Plain;
    }
    Ok((tls, host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Settings, redact, seal_secrets};

    const TEXT: &str = "[[alert]]\nname = \"low\"\nwhen = 'supply.percent < 15'\nfor = \"10m\"\n\
        notify = [\"upstream\", \"webhook:https://hooks.example:8443/T0/secret?x=1\", \"mailto:it@example.org\"]\n\
        [mail]\nrelay = \"smtps://mail.example.org\"\nfrom = \"quire@example.org\"\nuser = \"quire\"\npassword = \"hush\"\n";

    fn refusal(text: &str) -> String {
        Settings::parse(text).expect_err(text).to_string()
    }

    #[test]
    fn rules_and_relay_are_understood() {
        let settings = Settings::parse(TEXT).unwrap();
        let rule = &settings.alerts[0];
        assert_eq!((rule.name.as_str(), rule.for_ms, rule.notify.len()), ("low", 600_000, 3));
        assert!(matches!(&rule.notify[1], Notify::Webhook { host, .. } if host == "hooks.example:8443"));
        let mail = settings.mail.as_ref().unwrap();
        assert_eq!((mail.host.as_str(), mail.port, mail.tls), ("mail.example.org", 465, MailTls::Implicit));
        assert!(!format!("{settings:?}").contains("hush") && !format!("{settings:?}").contains("secret?"));
        for (text, wanted) in [
            ("smtp://mail.example.org", (MailTls::Start, "mail.example.org", 587)),
            ("smtp://mail.example.org:25", (MailTls::Start, "mail.example.org", 25)),
            ("smtp://127.0.0.1:2525", (MailTls::Plain, "127.0.0.1", 2525)),
            ("smtps://[::1]:465", (MailTls::Implicit, "[::1]", 465)),
        ] {
            let (tls, host, port) = relay_of(text).unwrap();
            assert_eq!((tls, host.as_str(), port), wanted, "{text}");
        }
    }

    #[test]
    fn what_stands_behind_a_webhooks_host_is_a_secret() {
        let sealed = seal_secrets(TEXT, &mut |path, clear| format!("sealed:{path}:{}", clear.len())).unwrap();
        assert!(
            sealed.contains("\"webhook:https://hooks.example:8443/sealed:alert[1].notify[2]:13\""),
            "{sealed}"
        );
        assert!(!sealed.contains("T0") && !sealed.contains("hush"));
        assert_eq!(seal_secrets(&sealed, &mut |_, _| panic!("sealed already")).unwrap(), sealed);
        assert!(Settings::parse(&sealed).is_ok());
        let shown = redact(&sealed);
        assert!(
            shown.contains("\"webhook:https://hooks.example:8443/…\"") && shown.contains("mailto:it@"),
            "{shown}"
        );
        let refused = refusal(&shown);
        assert!(refused.contains("line 5: alert[1].notify[2]: was blanked by `settings show`"), "{refused}");
        assert!(refused.contains("line 10: mail.password: was blanked"), "{refused}");
        let opened =
            crate::settings::open_secrets(&sealed, &mut |_, _| Some("T0/secret?x=1".to_owned())).unwrap();
        assert!(opened.contains("webhook:https://hooks.example:8443/T0/secret?x=1"), "{opened}");
    }

    #[test]
    fn every_mistake_names_rule_place_and_fix() {
        let alert = |when: &str, more: &str| format!("[[alert]]\nname = \"low\"\nwhen = '{when}'\n{more}");
        let told = |target: &str| alert("supply.percent < 15", &format!("notify = [\"{target}\"]"));
        let mail = |more: &str| format!("[mail]\nrelay = \"smtps://h\"\nfrom = \"a@b\"\n{more}");
        for (text, wanted) in [
            (
                alert("supply.precent < 15", "notify = []"),
                "line 3: alert[1].when: rule `low`, character 1: there is no field `supply.precent`: there are supply.index",
            ),
            (
                alert("supply.percent < 15", "notify = []\nfor = \"8d\""),
                "line 5: alert[1].for: `8d` is too long: 7d",
            ),
            (told("fax:1"), "line 4: alert[1].notify[1]: nobody to notify"),
            (told("mailto:it"), "line 4: alert[1].notify[1]: is no mail address"),
            (told("mailto:a@b,c@d"), "line 4: alert[1].notify[1]: is no mail address"),
            (told("webhook:https://"), "line 4: alert[1].notify[1]: is no webhook"),
            (told("webhook:ftp://x/y"), "line 4: alert[1].notify[1]: is no webhook"),
            (told("webhook:https://u:p@x/y"), "line 4: alert[1].notify[1]: holds a user before the host"),
            (told("webhook:http://hooks.example/y"), "line 4: alert[1].notify[1]: is not protected"),
            (mail("user = \"u\""), "line 4: mail.user: stands alone"),
            (mail("user = \"u\"\npassword = \"\""), "line 5: mail.password: is empty"),
            ("[mail]\nfrom = \"a@b\"".to_owned(), "line 1: mail.relay: is missing"),
            ("[mail]\nrelay = \"h\"\nfrom = \"a@b\"".to_owned(), "line 2: mail.relay: `h` is no relay"),
            (
                "[mail]\nrelay = \"smtps://h\"\nfrom = \"a b\"".to_owned(),
                "line 3: mail.from: `a b` is no mail",
            ),
        ] {
            let said = refusal(&text);
            assert!(said.starts_with(wanted), "{text}\n  wanted {wanted}\n  got    {said}");
        }
        assert!(Settings::parse(&told("webhook:http://127.0.0.9:8080/y")).is_ok());
        assert!(Settings::parse(&told("webhook:http://[::1]:8080/y")).is_ok());
    }
}
