//! What operators want, as they write it: the TOML of the contract, checked at the door.
//!
//! [`Settings::parse`] is all or nothing: it answers settings without a doubtful value in them, or
//! every problem with its line. Never quotes a secret.
//!
//! Decisions that the text does not show:
//! - A prefix with host bits set (`10.1.0.5/16`) is refused: in `exclude` it could mean one or 65,536 addresses.
//! - The same prefix twice in one zone is refused; prefixes that overlap are not: [`crate::planner::units`]
//!   gives each address once.
//! - A prefix shorter than /12 needs `{ prefix = "10.0.0.0/8", confirm_large = true }`. IPv6 prefixes
//!   shorter than /116 are always refused, because nobody can sweep them.
//! - Without `[[snmp]]` the community is `public`, by v2c, then v1.
//! - Without `hops` only the segments are searched, not the nodes' own links.
//! - `accept` (ours): `private` searches found private segments without asking, `ask` none, `all` public ones, too.

use std::collections::BTreeMap;
use std::fmt;

use ipnet::IpNet;
use quire_proto::id::ANY_ZONE;
use toml::de::DeTable;

mod alerts;
mod changes;
mod credentials;
mod form;
mod placement;
mod secrets;

use crate::explore::{Accept, LARGEST_V4_PREFIX};
use crate::schedule::Schedule;
pub use alerts::{AlertRule, Mail, MailTls, Notify};
pub use credentials::{AuthProtocol, HttpLogin, PrivProtocol, SnmpCredential, V3User};
pub use form::Problem;
use form::{Field, Form, Problems};
pub use placement::Placement;
pub use secrets::{Secret, open_secrets, redact, seal_secrets};

/// Everything that an operator sets, with defaults for what the text left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where, when and how fast to look.
    pub discovery: Discovery,
    /// How often to read.
    pub metering: Metering,
    /// Credentials, in the order in which they are tried.
    pub snmp: Vec<SnmpCredential>,
    /// Web pages and IPP.
    pub http: Http,
    /// Who to be on devices' pages.
    pub http_logins: Vec<HttpLogin>,
    /// What to tell people about.
    pub alerts: Vec<AlertRule>,
    /// Who shall work where; the first that fits a unit counts.
    pub placements: Vec<Placement>,
    /// How mail leaves the site; without it nobody gets any.
    pub mail: Option<Mail>,
    /// How the leader talks to the Web Admin.
    pub upstream: Upstream,
}

/// Section `[discovery]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovery {
    /// Prefixes to sweep, no two alike.
    pub segments: Vec<Segment>,
    /// How many routers away from each node's own links to look; `None`: segments only.
    pub hops: Option<u32>,
    /// Which found segments are searched without an operator's word.
    pub accept: Accept,
    /// Addresses that are never contacted.
    pub exclude: Vec<IpNet>,
    /// Addresses that are collected but never reported upstream.
    pub hide: Vec<IpNet>,
    /// When sweeps begin.
    pub schedule: Schedule,
    /// Packets a second, whole cluster, per zone; 0 is unlimited.
    pub rate: u32,
    /// Whether each node looks for printers that hang on itself.
    pub local: bool,
    /// UDP port of the SNMP agents (ours, not in every file: fleets behind port mappings).
    pub port: u16,
}

/// One prefix to search.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Segment {
    /// Without host bits.
    pub prefix: IpNet,
    /// Whose network it is; [`ANY_ZONE`] where the text names none.
    pub zone: String,
}

/// Section `[metering]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metering {
    /// Between two reads of a device, in milliseconds; 10 s at the least.
    pub every_ms: u64,
    /// Silence after which a device is given up, in milliseconds.
    pub expire_after_ms: u64,
}

/// Section `[http]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    /// TCP ports that may be asked, in this order; never 9100 or 515.
    pub ports: Vec<u16>,
    /// Whether pages that need JavaScript are opened in Chromium.
    pub chromium: bool,
}

/// Section `[upstream]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// Always connected, or now and then.
    pub mode: UpstreamMode,
    /// Between two check-ins in normal mode, in milliseconds.
    pub check_in_ms: u64,
}

/// How long the upstream link stays open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UpstreamMode {
    /// All the time.
    #[default]
    Service,
    /// Only to check in.
    Normal,
}

impl UpstreamMode {
    /// As settings and status write it.
    pub fn as_str(self) -> &'static str {
        match self {
            UpstreamMode::Service => "service",
            UpstreamMode::Normal => "normal",
        }
    }
}

/// Every problem of a refused text, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct BadSettings {
    /// Never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for BadSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            write!(f, "{}{problem}", if n == 0 { "" } else { "\n" })?;
        }
        Ok(())
    }
}

/// A settings text larger than this is a mistake; the whole of it goes through the log.
pub const MAX_SETTINGS_OCTETS: usize = 1 << 20;
/// Further away than this nobody looks for printers (and no TTL of a LAN device returns).
pub const MAX_HOPS: u32 = 32;
/// Faster than this is not politeness any more but a typing error.
const MAX_RATE: u32 = 1_000_000;
const SECOND_MS: u64 = 1_000;
const DAY_MS: u64 = 86_400 * SECOND_MS;
/// The contract's floor of `metering.every`.
const MIN_EVERY_MS: u64 = 10 * SECOND_MS;
/// JetDirect and LPD print whatever arrives; nothing may ever open them.
const PRINTING_PORTS: [u32; 2] = [9100, 515];
/// The same limit as `quire_proto::address::Target`.
const MIN_V6_PREFIX: u8 = 116;

impl Settings {
    /// Reads the TOML of the contract. Secrets may be clear or sealed.
    ///
    /// # Errors
    /// Names every line with a problem, the key, and what to write instead.
    pub fn parse(text: &str) -> Result<Settings, BadSettings> {
        if text.len() > MAX_SETTINGS_OCTETS {
            let reason = format!("settings of {} octets: {MAX_SETTINGS_OCTETS} at the most", text.len());
            return Err(BadSettings { problems: vec![Problem { line: 1, key: String::new(), reason }] });
        }
        let root = DeTable::parse(text).map_err(|error| broken_toml(text, &error))?;
        let problems = Problems::of(text);
        let settings = settings(Form::new("", 0, root.get_ref(), &problems), &problems);
        let problems = problems.into_sorted();
        if problems.is_empty() { Ok(settings) } else { Err(BadSettings { problems }) }
    }
}

/// What a cluster does before anybody applied settings: it has no segments, so nothing.
impl Default for Settings {
    fn default() -> Self {
        let every_ms = 3_600 * SECOND_MS;
        Settings {
            discovery: Discovery {
                segments: Vec::new(),
                hops: None,
                accept: Accept::default(),
                exclude: Vec::new(),
                hide: Vec::new(),
                schedule: Schedule::default(),
                rate: 500,
                local: true,
                port: 161,
            },
            metering: Metering { every_ms, expire_after_ms: 42 * DAY_MS },
            snmp: credentials::by_default(),
            http: Http { ports: vec![80, 443, 8080], chromium: true },
            http_logins: Vec::new(),
            alerts: Vec::new(),
            placements: Vec::new(),
            mail: None,
            upstream: Upstream { mode: UpstreamMode::default(), check_in_ms: 300 * SECOND_MS },
        }
    }
}

fn broken_toml(text: &str, error: &toml::de::Error) -> BadSettings {
    let line = form::line_of(text, error.span().map_or(0, |span| span.start));
    // Only the message: the error's Display quotes the line, which may hold a secret.
    let reason = format!("this is not TOML: {}", error.message());
    BadSettings { problems: vec![Problem { line, key: String::new(), reason }] }
}

fn settings<'a>(mut root: Form<'a>, problems: &Problems<'_>) -> Settings {
    let mut settings = Settings::default();
    if let Some(form) = root.section("discovery") {
        discovery(form, &mut settings.discovery, problems);
    }
    if let Some(form) = root.section("metering") {
        metering(form, &mut settings.metering, problems);
    }
    if let Some(entries) = root.take("snmp") {
        let wanted = "a list of tables: write [[snmp]] with two brackets";
        settings.snmp = entries.list(wanted).iter().filter_map(credentials::snmp).collect();
    }
    if let Some(form) = root.section("http") {
        http(form, &mut settings.http);
    }
    if let Some(entries) = root.take("http_login") {
        let wanted = "a list of tables: write [[http_login]] with two brackets";
        settings.http_logins = entries.list(wanted).iter().filter_map(credentials::http_login).collect();
    }
    if let Some(entries) = root.take("alert") {
        settings.alerts = alerts::rules(&entries);
    }
    if let Some(form) = root.section("mail") {
        settings.mail = alerts::mail(form);
    }
    if let Some(entries) = root.take("placement") {
        settings.placements = placement::placements(&entries);
    }
    if let Some(form) = root.section("upstream") {
        upstream(form, &mut settings.upstream);
    }
    root.finish(&[
        "[discovery]",
        "[metering]",
        "[[snmp]]",
        "[http]",
        "[[http_login]]",
        "[[alert]]",
        "[[placement]]",
        "[mail]",
        "[upstream]",
    ]);
    settings
}

/// Puts a value in its place when the key is there and right; a wrong one is already noted.
fn put<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn discovery(mut form: Form<'_>, into: &mut Discovery, problems: &Problems<'_>) {
    if let Some(list) = form.take("segments") {
        into.segments = segments(&list, problems);
    }
    into.hops = form.take("hops").and_then(|field| field.number(0..=MAX_HOPS));
    put(&mut into.accept, form.take("accept").and_then(|field| field.parsed("\"private\"", accept)));
    let prefixes = |field: Field<'_>| -> Vec<IpNet> {
        let items = field.list("a list of prefixes and addresses");
        items.iter().filter_map(|item| item.parsed("\"10.1.0.5\"", prefix)).collect()
    };
    put(&mut into.exclude, form.take("exclude").map(prefixes));
    put(&mut into.hide, form.take("hide").map(prefixes));
    put(
        &mut into.schedule,
        form.take("schedule").and_then(|f| f.parsed("\"Mon,Thu 02:00\"", Schedule::parse)),
    );
    put(&mut into.rate, form.take("rate").and_then(|field| field.number(0..=MAX_RATE)));
    put(&mut into.local, form.take("local").and_then(|field| field.boolean()));
    let port = form.take("port").and_then(|field| field.number(1..=65535));
    put(&mut into.port, port.and_then(|port| u16::try_from(port).ok()));
    form.finish(&["segments", "hops", "accept", "exclude", "hide", "schedule", "rate", "local", "port"]);
}

fn accept(text: &str) -> Result<Accept, String> {
    let all = [Accept::Ask, Accept::Private, Accept::All];
    let wrong = || format!("`{text}` is not a choice: write \"private\", \"ask\" or \"all\"");
    all.into_iter().find(|accept| accept.as_str() == text).ok_or_else(wrong)
}

fn segments(list: &Field<'_>, problems: &Problems<'_>) -> Vec<Segment> {
    let mut first_seen = BTreeMap::new();
    let mut segments = Vec::new();
    for item in list.list("a list of prefixes") {
        let Some(segment) = segment(&item) else { continue };
        match first_seen.get(&segment) {
            Some(at) => {
                let line = problems.line_of(*at);
                item.bad(format_args!(
                    "{} was already named in line {line}: remove one of them",
                    segment.prefix
                ));
            }
            None => {
                first_seen.insert(segment.clone(), item.at);
                segments.push(segment);
            }
        }
    }
    segments
}

fn segment(item: &Field<'_>) -> Option<Segment> {
    let example = "\"10.1.0.0/16\"";
    if !item.is_table() {
        let prefix = item.parsed(example, prefix)?;
        size_is_fine(item, prefix, false).then_some(())?;
        return Some(Segment { prefix, zone: ANY_ZONE.to_owned() });
    }
    let mut form = item.form()?;
    let named = form.need("prefix", "write prefix = \"10.1.0.0/16\"").and_then(|f| f.parsed(example, prefix));
    let zone = form.take("zone").map(|field| field.parsed("\"hq\"", zone));
    let confirmed = form.take("confirm_large").and_then(|field| field.boolean()).unwrap_or(false);
    form.finish(&["prefix", "zone", "confirm_large"]);
    let prefix = named.filter(|prefix| size_is_fine(item, *prefix, confirmed))?;
    Some(Segment { prefix, zone: zone.unwrap_or_else(|| Some(ANY_ZONE.to_owned()))? })
}

fn size_is_fine(item: &Field<'_>, prefix: IpNet, confirmed: bool) -> bool {
    match prefix {
        IpNet::V4(net) if net.prefix_len() < LARGEST_V4_PREFIX && !confirmed => {
            item.bad(format_args!(
                "{prefix} holds {} addresses: write {{ prefix = \"{prefix}\", confirm_large = true }} if you mean it",
                1u64 << (32 - net.prefix_len()),
            ));
            false
        }
        IpNet::V6(net) if net.prefix_len() < MIN_V6_PREFIX => {
            item.bad(format_args!(
                "{prefix} holds too many addresses to sweep: name prefixes of /{MIN_V6_PREFIX} or longer"
            ));
            false
        }
        _ => true,
    }
}

/// A CIDR prefix without host bits, or one address.
fn prefix(text: &str) -> Result<IpNet, String> {
    let bad =
        || format!("`{text}` is not a prefix: write one such as 10.1.0.0/16, or an address such as 10.1.0.5");
    let net: IpNet = match text.parse::<std::net::IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => text.parse().map_err(|_| bad())?,
    };
    if net != net.trunc() {
        return Err(format!("`{text}` has bits behind its prefix: write {} or {}", net.trunc(), net.addr()));
    }
    Ok(net)
}

/// A zone's label: it becomes part of unit ids, so colons and blanks may not be in it.
fn zone(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    match (1..=64).contains(&text.len()) && text.chars().all(fine) {
        true => Ok(text.to_owned()),
        false => Err(format!("`{text}` is not a zone: use 1 to 64 letters, digits, - _ and .")),
    }
}

/// A duration within bounds.
fn within(min_ms: u64, max_ms: u64) -> impl FnOnce(&str) -> Result<u64, String> {
    move |text| match duration_ms(text)? {
        ms if ms < min_ms => Err(format!("`{text}` is too short: {} at the least", in_words(min_ms))),
        ms if ms > max_ms => Err(format!("`{text}` is too long: {} at the most", in_words(max_ms))),
        ms => Ok(ms),
    }
}

fn metering(mut form: Form<'_>, into: &mut Metering, problems: &Problems<'_>) {
    let every =
        form.take("every").and_then(|field| field.parsed("\"1h\"", within(MIN_EVERY_MS, 28 * DAY_MS)));
    put(&mut into.every_ms, every);
    let expire = form.take("expire_after");
    let at = expire.as_ref().map_or(form.at, |field| field.at);
    let bounds = within(60 * SECOND_MS, 3_650 * DAY_MS);
    put(&mut into.expire_after_ms, expire.and_then(|field| field.parsed("\"42d\"", bounds)));
    if into.expire_after_ms < into.every_ms {
        problems.add(
            at,
            "metering.expire_after",
            "is shorter than metering.every: no device would live that long",
        );
    }
    form.finish(&["every", "expire_after"]);
}

fn http(mut form: Form<'_>, into: &mut Http) {
    if let Some(list) = form.take("ports") {
        into.ports.clear();
        for item in list.list("a list of ports such as [80, 443]") {
            let Some(port) = item.number(1..=65535) else { continue };
            if PRINTING_PORTS.contains(&port) {
                item.bad(format_args!("port {port} prints whatever it is sent: remove it"));
            } else if let Some(port) = u16::try_from(port).ok().filter(|port| !into.ports.contains(port)) {
                into.ports.push(port);
            }
        }
    }
    put(&mut into.chromium, form.take("chromium").and_then(|field| field.boolean()));
    form.finish(&["ports", "chromium"]);
}

fn upstream(mut form: Form<'_>, into: &mut Upstream) {
    let mode = |text: &str| match text {
        "service" => Ok(UpstreamMode::Service),
        "normal" => Ok(UpstreamMode::Normal),
        _ => Err(format!("`{text}` is not a mode: write \"normal\" or \"service\"")),
    };
    put(&mut into.mode, form.take("mode").and_then(|field| field.parsed("\"normal\"", mode)));
    let check_in = form.take("check_in").and_then(|f| f.parsed("\"5m\"", within(MIN_EVERY_MS, 7 * DAY_MS)));
    put(&mut into.check_in_ms, check_in);
    form.finish(&["mode", "check_in"]);
}

/// Units of durations, in milliseconds, longest first.
const UNITS: [(&str, u64); 5] = [
    ("d", DAY_MS),
    ("h", 3_600 * SECOND_MS),
    ("m", 60 * SECOND_MS),
    ("s", SECOND_MS),
    // Behind "m" and "s", which it must not be mistaken for.
    ("ms", 1),
];

/// `10s`, `5m`, `1h30m`, `42d`, `250ms`: whole numbers with units.
///
/// # Errors
/// In words, with an example.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    let bad = || format!("`{text}` is not a duration: write one such as 10s, 5m, 1h or 42d");
    let mut rest = text.trim();
    let mut total = 0u64;
    if rest.is_empty() {
        return Err(bad());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let (number, behind) = rest.split_at(digits);
        let letters = behind.find(|c: char| c.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at(letters);
        let (_, unit_ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(bad)?;
        let number: u64 = number.parse().map_err(|_| bad())?;
        total = number.checked_mul(*unit_ms).and_then(|ms| total.checked_add(ms)).ok_or_else(bad)?;
        rest = next;
    }
    Ok(total)
}

/// The shortest way to write a duration: `1h30m`.
pub fn in_words(mut ms: u64) -> String {
    let mut out = String::new();
    for (name, unit_ms) in UNITS {
        if ms >= unit_ms {
            out.push_str(&format!("{}{name}", ms / unit_ms));
            ms %= unit_ms;
        }
    }
    if out.is_empty() { "0s".to_owned() } else { out }
}

#[cfg(test)]
mod tests;
