//! The contract's example is read as it stands; every mistake is answered with its line.

use super::*;
use proptest::prelude::*;

const CONTRACT: &str = r#"[discovery]
segments = ["10.1.0.0/16", { prefix = "10.1.0.0/16", zone = "hq" }]
hops = 2
exclude = ["10.1.0.5"]
hide = ["10.1.9.0/24"]
schedule = "Mon,Thu 02:00"
rate = 500
[metering]
every = "1h"
expire_after = "42d"
[[snmp]]
version = "2c"
community = "public"
[[snmp]]
version = "3"
user = "meter"
auth = "sha256"
auth_pass = "correct horse"
priv = "aes"
priv_pass = "battery staple"
permission = "granted by the CISO"
[http]
ports = [80, 443, 8080]
chromium = true
[[http_login]]
segment = "10.1.0.0/16"
user = "viewer"
password = "secret"
[[alert]]
name = "low toner"
when = 'supply.kind == "toner" && supply.percent < 15'
notify = ["upstream", "webhook:https://hooks.example/x", "mailto:it@example.org"]
[upstream]
mode = "service"
check_in = "5m"
"#;

fn refusal(text: &str) -> String {
    Settings::parse(text).expect_err(text).to_string()
}

#[test]
fn the_contract_is_understood() {
    let settings = Settings::parse(CONTRACT).unwrap();
    let discovery = &settings.discovery;
    assert_eq!(discovery.segments[1], Segment { prefix: "10.1.0.0/16".parse().unwrap(), zone: "hq".into() });
    assert_eq!((discovery.hops, discovery.rate, discovery.port), (Some(2), 500, 161));
    assert_eq!(discovery.exclude, ["10.1.0.5/32".parse().unwrap()]);
    assert_eq!(settings.metering, Metering { every_ms: 3_600_000, expire_after_ms: 42 * DAY_MS });
    let [SnmpCredential::V2c(public), SnmpCredential::V3(meter)] = &settings.snmp[..] else { panic!() };
    assert_eq!(public.expose(), "public");
    assert_eq!(meter.auth, Some((AuthProtocol::Sha256, Secret::new("correct horse"))));
    assert_eq!(meter.privacy, Some((PrivProtocol::Aes128, Secret::new("battery staple"))));
    assert_eq!(settings.http_logins[0].password.expose(), "secret");
    assert_eq!(settings.alerts[0].notify.len(), 3);
    assert_eq!(settings.upstream, Upstream { mode: UpstreamMode::Service, check_in_ms: 300_000 });
}

#[test]
fn nothing_written_means_the_defaults() {
    let settings = Settings::parse("").unwrap();
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.snmp.len(), 2);
    assert!(settings.discovery.segments.is_empty());
    assert_eq!(settings.discovery.schedule.to_string(), "Mon,Thu 02:00");
}

#[test]
fn every_mistake_names_its_line_key_and_fix() {
    for (text, wanted) in [
        ("[discovery]\nsegment = []", "line 2: discovery.segment: is unknown here: use segments, hops"),
        ("[discover]\n", "line 1: discover: is unknown here: use [discovery]"),
        ("\n[metering]\nevery = \"9s\"", "line 3: metering.every: `9s` is too short: 10s at the least"),
        (
            "[metering]\nexpire_after = \"59s\"",
            "line 2: metering.expire_after: `59s` is too short: 1m at the least",
        ),
        (
            "[metering]\nevery = 3600",
            "line 2: metering.every: expected a text in quotes such as \"1h\", found a whole",
        ),
        ("[metering]\nevery = \"1 hour\"", "line 2: metering.every: `1 hour` is not a duration"),
        (
            "[metering]\nevery = \"2h\"\nexpire_after = \"1h\"",
            "line 3: metering.expire_after: is shorter than",
        ),
        (
            "[discovery]\nsegments = [\n\"10.1.0.0/16\",\n\"10.1.0.0/33\"]",
            "line 4: discovery.segments[2]: `10.1.0.0/33` is",
        ),
        (
            "[discovery]\nsegments = [\"10.1.0.5/16\"]",
            "line 2: discovery.segments[1]: `10.1.0.5/16` has bits behind",
        ),
        (
            "[discovery]\nsegments = [\n\"10.1.0.0/16\",\n\"10.1.0.0/16\"]",
            "line 4: discovery.segments[2]: 10.1.0.0/16 was already named in line 3",
        ),
        (
            "[discovery]\nsegments = [\"10.0.0.0/8\"]",
            "line 2: discovery.segments[1]: 10.0.0.0/8 holds 16777216 addresses",
        ),
        (
            "[discovery]\nsegments = [\"fd00::/64\"]",
            "line 2: discovery.segments[1]: fd00::/64 holds too many",
        ),
        ("[discovery]\nsegments = [{ zone = \"hq\" }]", "line 2: discovery.segments[1].prefix: is missing"),
        (
            "[discovery]\nsegments = [{ prefix = \"10.1.0.0/16\", zone = \"h:q\" }]",
            "line 2: discovery.segments[1].zone: `h:q`",
        ),
        ("[discovery]\nsegments = \"10.1.0.0/16\"", "line 2: discovery.segments: expected a list"),
        ("[discovery]\nhops = 33", "line 2: discovery.hops: expected a whole number from 0 to 32, found 33"),
        ("[discovery]\nhops = -1", "line 2: discovery.hops: expected a whole number from 0 to 32, found -1"),
        (
            "[discovery]\nrate = 1.5",
            "line 2: discovery.rate: expected a whole number from 0 to 1000000, found a fraction",
        ),
        ("[discovery]\nschedule = \"weekly\"", "line 2: discovery.schedule: `weekly` is not a schedule"),
        ("[discovery]\nexclude = [\"printer\"]", "line 2: discovery.exclude[1]: `printer` is not a prefix"),
        (
            "[snmp]\nversion = \"2c\"",
            "line 1: snmp: expected a list of tables: write [[snmp]] with two brackets",
        ),
        ("[[snmp]]\nversion = 3", "line 2: snmp[1].version: expected a text in quotes"),
        ("[[snmp]]\nversion = \"4\"", "line 2: snmp[1].version: `4` is not a version"),
        ("[[snmp]]\nversion = \"2c\"", "line 1: snmp[1].community: is missing"),
        (
            "[[snmp]]\nversion = \"2c\"\ncommunity = \"x\"\nuser = \"y\"",
            "line 4: snmp[1].user: is unknown here",
        ),
        ("[[snmp]]\nversion = \"3\"\nuser = \"m\"", "line 1: snmp[1].permission: is missing"),
        (
            "[[snmp]]\nversion = \"3\"\nuser = \"m\"\npermission = \" \"",
            "line 4: snmp[1].permission: is empty",
        ),
        ("[http]\nports = [0]", "line 2: http.ports[1]: expected a whole number from 1 to 65535"),
        ("[http]\nports = [80, 9100]", "line 2: http.ports[2]: port 9100 prints"),
        (
            "[[http_login]]\nsegment = \"10.0.0.0/8\"\nuser = \"u\"",
            "line 1: http_login[1].password: is missing",
        ),
        (
            "[[alert]]\nname = \"a\"\nwhen = \"node.alive\"\nnotify = [\"fax:1\"]",
            "line 4: alert[1].notify[1]: nobody to notify",
        ),
        ("[upstream]\nmode = \"fast\"", "line 2: upstream.mode: `fast` is not a mode"),
        ("[upstream]\ncheck_in = \"1s\"", "line 2: upstream.check_in: `1s` is too short"),
        ("[discovery]\nrate = 1\nrate = 2", "line 3: this is not TOML: "),
        ("x = ", "line 1: this is not TOML: "),
    ] {
        let said = refusal(text);
        assert!(said.starts_with(wanted), "{text}\n  wanted {wanted}\n  got    {said}");
    }
}

#[test]
fn v3_entries_are_whole_or_refused() {
    let v3 = |more: &str| format!("[[snmp]]\nversion = \"3\"\nuser = \"m\"\npermission = \"p\"\n{more}");
    assert!(Settings::parse(&v3("")).is_ok(), "noAuthNoPriv is a level of RFC 3414");
    for (more, wanted) in [
        ("auth = \"sha256\"", "line 5: snmp[1].auth: has no pass phrase"),
        ("auth_pass = \"12345678\"", "line 5: snmp[1].auth_pass: has no protocol"),
        (
            "auth = \"sha256\"\nauth_pass = \"1234567\"",
            "line 6: snmp[1].auth_pass: is shorter than 8 characters",
        ),
        (
            "auth = \"sha3\"\nauth_pass = \"12345678\"",
            "line 5: snmp[1].auth: `sha3` is unknown: write one of md5, sha,",
        ),
        ("priv = \"aes\"\npriv_pass = \"12345678\"", "line 5: snmp[1].priv: privacy needs authentication"),
    ] {
        let said = refusal(&v3(more));
        assert!(said.starts_with(wanted), "{said}");
        assert!(!said.contains("1234567"), "a secret was quoted: {said}");
    }
    let privacy = "auth = \"md5\"\nauth_pass = \"12345678\"\npriv = \"3des\"\npriv_pass = \"1234567\"";
    let said = refusal(&v3(privacy));
    assert_eq!(said.lines().count(), 2, "all problems are said at once: {said}");
}

#[test]
fn large_prefixes_are_possible_when_confirmed() {
    let text =
        "[discovery]\nsegments = [{ prefix = \"10.0.0.0/8\", confirm_large = true }, \"10.16.0.0/12\"]";
    assert_eq!(Settings::parse(text).unwrap().discovery.segments.len(), 2);
}

#[test]
fn changes_are_said_in_words() {
    let old = Settings::parse(CONTRACT).unwrap();
    assert!(old.changes(&old).is_empty());
    let text = CONTRACT
        .replace("every = \"1h\"", "every = \"90m\"")
        .replace("[\"10.1.0.0/16\", ", "[\"10.2.0.0/16\", ")
        .replace("battery staple", "another phrase")
        .replace("percent < 15", "percent < 10");
    assert_eq!(
        old.changes(&Settings::parse(&text).unwrap()),
        [
            "segment added: 10.2.0.0/16",
            "segment removed: 10.1.0.0/16",
            "metering.every: 1h -> 1h30m",
            "snmp[2]: secret or permission of the v3 user meter (sha256, aes) changed",
            "alert changed: low toner",
        ]
    );
}

proptest! {
    #[test]
    fn durations_come_back(ms in 0u64..10_000_000_000) {
        prop_assert_eq!(duration_ms(&in_words(ms)), Ok(ms));
    }

    /// Any one line of the example may be lost, doubled or spoilt: an answer comes, never a panic, and a
    /// refusal always names a line of the text.
    #[test]
    fn spoilt_settings_are_answered(line in 0usize..34, how in 0..4, junk in "\\PC{0,12}") {
        let mut lines: Vec<String> = CONTRACT.lines().map(str::to_owned).collect();
        match how {
            0 => { lines.remove(line); }
            1 => lines.insert(line, lines[line].clone()),
            2 => lines[line] = junk,
            _ => lines[line].push_str(&junk),
        }
        let text = lines.join("\n");
        if let Err(refused) = Settings::parse(&text) {
            prop_assert!(!refused.problems.is_empty());
            prop_assert!(refused.problems.iter().all(|p| (1..=lines.len()).contains(&p.line)), "{}", refused);
        }
        let _ = seal_secrets(&text, &mut |_, _| "sealed:x".to_owned());
    }
}

#[test]
fn what_is_accepted_of_found_segments_is_a_choice_of_three() {
    let accept =
        |text: &str| Settings::parse(&format!("[discovery]\nhops = 1\n{text}")).unwrap().discovery.accept;
    assert_eq!(accept(""), Accept::Private);
    assert_eq!(accept("accept = \"ask\""), Accept::Ask);
    assert_eq!(accept("accept = \"all\""), Accept::All);
    assert!(
        refusal("[discovery]\naccept = \"yes\"").contains("line 2: discovery.accept: `yes` is not a choice")
    );
    let mut asks = Settings::default();
    asks.discovery.accept = Accept::Ask;
    assert_eq!(Settings::default().changes(&asks), ["discovery.accept: private -> ask"]);
}

#[test]
fn what_a_sweep_could_not_find_before_is_looked_for_again() {
    let settings = |discovery: &str, community: &str| {
        let text =
            format!("[discovery]\n{discovery}\n[[snmp]]\nversion = \"2c\"\ncommunity = \"{community}\"\n");
        Settings::parse(&text).unwrap()
    };
    let old = settings("exclude = [\"10.1.0.0/24\"]", "a");
    assert!(!old.finds_more(&old));
    assert!(!old.finds_more(&settings("exclude = [\"10.1.0.0/16\"]\nrate = 7", "a")), "less is not more");
    assert!(old.finds_more(&settings("", "a")));
    assert!(old.finds_more(&settings("exclude = [\"10.1.0.0/25\"]", "a")));
    assert!(old.finds_more(&settings("exclude = [\"10.1.0.0/24\"]\nport = 1161", "a")));
    assert!(old.finds_more(&settings("exclude = [\"10.1.0.0/24\"]", "b")));
}

#[test]
fn placements_name_what_is_wrong() {
    for (text, key, reason) in [
        ("pin = \"n1\"", "placement[1].segment", "is missing"),
        ("segment = \"10.1.0.0/16\"", "placement[1]", "says nothing"),
        (
            "segment = \"10.1.0.0/16\"\npin = \"a\"\nforbid = [\"a\"]",
            "placement[1]",
            "pins and forbids the same",
        ),
        ("segment = \"10.1.0.5/16\"\npin = \"a\"", "placement[1].segment", "has bits behind its prefix"),
        ("segment = \"10.1.0.0/16\"\npin = \"\"", "placement[1].pin", "is empty"),
    ] {
        let refused = Settings::parse(&format!("[[placement]]\n{text}\n")).unwrap_err();
        let problem = &refused.problems[0];
        assert!(problem.key == key && problem.reason.contains(reason), "{text}: {refused}");
    }
}
