//! What profiles do, on recordings made up here.

use std::collections::BTreeMap;
use std::sync::Arc;

use quire_proto::reading::{SupplyKind, SupplyState, Via};
use tokio_util::sync::CancellationToken;

use super::scripts::BUILT_IN;
use super::{BadProfile, Failed, Limits, Profile, Recording, Rehearsal, Scripts, rehearse};

/// A printer of Brother's with a block of two counters, a broken record and a rest.
const PRINTER: &str = "\
1.3.6.1.2.1.1.1.0|4|Brother NC-8700w, Firmware Ver.1.02
1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.2435.2.3.9.1
1.3.6.1.2.1.25.3.2.1.2.1|6|1.3.6.1.2.1.25.3.1.5
1.3.6.1.2.1.25.3.2.1.3.1|4|Brother HL-L2350DW series
1.3.6.1.2.1.43.5.1.1.17.1|4|E78098M9N123456
1.3.6.1.2.1.43.10.2.1.4.1.1|65|900
1.3.6.1.4.1.2435.2.3.9.4.2.1.5.5.10.0|4x|0001040000012c01010400000064020109000000630601
1.3.6.1.4.1.2435.2.3.9.4.2.1.5.5.8.0|4x|6f010400001f404101040000251c";

fn rehearsed(profiles: &[Arc<Profile>]) -> Rehearsal {
    let page = ("/counter.html".to_owned(), "<table><tr><td id=total>1 234</table>".to_owned());
    let recording = Recording::parse(PRINTER).with_pages(BTreeMap::from([page]));
    rehearse(&recording, profiles, Limits::default(), &CancellationToken::new())
}

fn profile(name: &str, priority: i64, body: &str) -> Arc<Profile> {
    let head =
        format!("//! name: {name}\n//! version: 1\n//! priority: {priority}\n//! match: family brother\n");
    Arc::new(Profile::parse(&(head + body)).unwrap())
}

#[test]
fn what_ships_compiles_and_has_names_of_its_own() {
    assert_eq!(Scripts::shipped().len(), BUILT_IN.len());
    let names: std::collections::BTreeSet<_> =
        Scripts::shipped().iter().map(|profile| &profile.name).collect();
    assert_eq!(names.len(), BUILT_IN.len());
}

#[test]
fn brothers_blocks_are_read() {
    let done = rehearsed(Scripts::shipped());
    let reading = done.reading.unwrap();
    let counters = &reading.counters;
    // The record of code 2 has another length than a number's: no colour count comes of it.
    assert_eq!((counters.total, counters.mono, counters.color), (Some(300), Some(100), None));
    assert_eq!(reading.sources["counters.total"], "1.3.6.1.4.1.2435.2.3.9.4.2.1.5.5.10.0");
    let supplies: Vec<_> = reading.supplies.iter().map(|s| (s.index, &*s.name, s.percent, s.kind)).collect();
    let wanted = [(1, "Black Toner", Some(80), SupplyKind::Toner), (2, "Drum", Some(95), SupplyKind::Drum)];
    assert_eq!(supplies, wanted);
    assert_eq!((done.runs.len(), done.runs[0].2.requests), (1, 1));
}

#[test]
fn the_last_word_is_the_highest_priority() {
    let low = profile("low", 1, "get(`1.3.6.1.2.1.1.1.0`); meter(`total`, 1, `1.3.6.1.2.1.1.1.0`);");
    let high =
        profile("high", 2, "meter(`total`, reading.counters.total + 1, reading.sources[`counters.total`]);");
    let done = rehearsed(&[low, high]);
    assert_eq!(done.reading.unwrap().counters.total, Some(2));
}

#[test]
fn a_failing_profile_does_not_touch_the_next() {
    let bad = profile("bad", 1, "get(`1.3.6.1.2.1.1.1.0`); meter(`total`, 1, `1.3.6.1.2.1.1.1.0`); throw 1;");
    let good = profile("good", 2, "get(`1.3.6.1.2.1.1.1.0`); meter(`copies`, 5, `1.3.6.1.2.1.1.1.0`);");
    let done = rehearsed(&[bad, good]);
    assert!(matches!(done.runs[0].1, Err(Failed::Script(_))));
    let counters = done.reading.unwrap().counters;
    assert_eq!((counters.total, counters.copies), (Some(900), Some(5)));
}

#[test]
fn a_page_gives_a_meter_with_its_url() {
    let body = "let page = http_get(`/counter.html`); let cell = html(page.body).select(`#total`)[0].text; \
        cell.replace(` `, ``); meter(`total`, parse_int(cell), `/counter.html#total`);";
    let reading = rehearsed(&[profile("web", 0, body)]).reading.unwrap();
    assert_eq!(reading.counters.total, Some(1234));
    assert_eq!(reading.sources["counters.total"], "http://device/counter.html#total");
    assert_eq!(reading.via, [Via::SnmpV2c, Via::Http]);
}

#[test]
fn a_shown_page_is_counted_and_checked_as_any_other() {
    // On paper no script of the page runs.
    let body = "let page = page(`/counter.html`); if page.status != 200 || page.text != `1 234` { throw page.text; } \
        html(page.html).select(`#total`)[0].text; meter(`total`, 1234, `/counter.html`);";
    let done = rehearsed(&[profile("shown", 0, body)]);
    assert_eq!((done.runs[0].1.clone(), done.runs[0].2.requests), (Ok(()), 1));
    assert_eq!(done.reading.unwrap().sources["counters.total"], "http://device/counter.html");
    for path in ["http://10.0.0.9/", "//10.0.0.9/", "/../x", "file:///etc/passwd", "javascript:1", "/x y"] {
        let done = rehearsed(&[profile("away", 0, &format!("page(`{path}`);"))]);
        assert!(matches!(&done.runs[0].1, Err(Failed::Script(text)) if text.contains("no path")), "{path}");
    }
}

#[test]
fn walks_give_rows_and_several_columns_at_once() {
    let body = "walk([`1.3.6.1.2.1.25.3.2.1.2`, `1.3.6.1.2.1.25.3.2.1.3`]); \
        for row in walk(`1.3.6.1.2.1.25.3.2.1.3`) { fact(`model`, row.value + `/` + row.index, row.oid); }";
    let reading = rehearsed(&[profile("walk", 0, body)]).reading.unwrap();
    assert_eq!(reading.facts.model.as_deref(), Some("Brother HL-L2350DW series/1"));
}

#[test]
fn levels_of_the_standard_become_words() {
    for (level, state) in [(-1, SupplyState::Unlimited), (-2, SupplyState::Unknown), (-3, SupplyState::Some)]
    {
        let body = format!(
            "get(`1.3.6.1.2.1.1.1.0`); supply(#{{ name: `T`, kind: `toner`, max: 10, level: {level}, \
            source: `1.3.6.1.2.1.1.1.0` }});"
        );
        let supply = rehearsed(&[profile("level", 0, &body)]).reading.unwrap().supplies.remove(0);
        assert_eq!((supply.state, supply.level, supply.percent), (state, None, None));
    }
}

#[test]
fn headers_say_what_is_wrong_with_them() {
    let parse = |text: &str| Profile::parse(text).unwrap_err();
    assert!(matches!(parse("let x = 1;"), BadProfile::Missing("match")));
    assert!(matches!(parse("//! name: a\n//! match: family x\n"), BadProfile::Missing("version")));
    assert!(matches!(parse("//! version: 1\n//! match: family x\n"), BadProfile::Missing("name")));
    for bad in [
        "total: 1.x",
        "rows total: x",
        "name: A b",
        "match: colour red",
        "match: family",
        "match: object-id x",
        "priority: high",
        "nmae: x",
    ] {
        assert!(matches!(parse(&format!("//! {bad}\n")), BadProfile::Header { line: 1, .. }), "{bad}");
    }
    let syntax = "//! name: a\n//! version: 1\n//! match: family x\nlet = ;";
    assert!(matches!(parse(syntax), BadProfile::Syntax(_)));
    assert!(matches!(parse(&"x".repeat(70_000)), BadProfile::TooLong(70_000)));
}

#[test]
fn what_is_put_goes_over_what_ships() {
    let scripts = Scripts::built_in();
    let source = "//! name: brother\n//! version: 99\n//! match: family brother\n";
    scripts.put_over(vec![Profile::parse(source).unwrap()]);
    let mine = scripts.active().into_iter().find(|profile| profile.name == "brother").unwrap();
    assert_eq!((mine.version.as_str(), scripts.active().len()), ("99", BUILT_IN.len()));
    assert!(scripts.count_failure(&mine, "brother"), "the first is told");
    assert!(!scripts.count_failure(&mine, "brother"), "the second only counted");
    assert!(scripts.count_failure(&mine, "other"));
    assert_eq!(scripts.failures(&mine), 3);
    scripts.put_over(Vec::new());
    assert!(scripts.active().iter().all(|profile| profile.version != "99"));
}

/// What a responder that serves a profile's objects answers: each is `5`.
fn served(profile: &Profile, more: &str) -> Recording {
    let root = profile.family.printers.first().unwrap().0.to_string();
    let objects: String =
        profile.family.instances().iter().map(|oid| format!("{oid}|4|5\n")).collect::<Vec<_>>().concat();
    Recording::parse(&format!("1.3.6.1.2.1.1.2.0|6|{root}.1\n{objects}{more}"))
}

const MINE: &str = "1.3.6.1.4.1.99999.1.0|4|MINE0123\n1.3.6.1.4.1.99999.2.0|65|77\n";

/// An operator's word stands over every vendor's facts: under the vendor's own name, from a higher priority, and by a
/// script.
#[test]
fn what_an_operator_puts_overrides_every_vendors_facts() {
    let counters = crate::device::family::COUNTERS;
    let facts = ["model", "serial", "firmware", "asset", "display"];
    let lines: String = facts.map(|fact| format!("//! {fact}: E.99999.1.0\n")).concat()
        + counters.map(|counter| format!("//! {counter}: E.99999.2.0\n")).concat().as_str();
    let words: String = facts.map(|fact| format!("fact(`{fact}`, get(T), T);")).concat()
        + counters.map(|counter| format!("meter(`{counter}`, get(N), N);")).concat().as_str()
        + "fact(`vendor`, `Mine`, T);";
    for shipped in Scripts::shipped() {
        let root = &shipped.family.printers.first().unwrap().0;
        let put = |name: &str, priority: i64, rest: &str| {
            let head = format!("//! name: {name}\n//! version: 9\n//! priority: {priority}\n");
            Arc::new(Profile::parse(&format!("{head}//! match: object-id {root}\n{rest}")).unwrap())
        };
        let consts = "const T = `1.3.6.1.4.1.99999.1.0`; const N = `1.3.6.1.4.1.99999.2.0`;";
        let same_name = put(&shipped.name, 0, &format!("//! printers: {root}\n{lines}"));
        let higher = put("mine", 10, &lines);
        let script = put("mine", 10, &format!("{consts}{words}"));
        for (mine, how) in [(same_name, "name"), (higher, "priority"), (script, "script")] {
            let others = Scripts::shipped().iter().filter(|other| other.name != mine.name);
            let profiles: Vec<_> = others.cloned().chain([Arc::clone(&mine)]).collect();
            let stop = CancellationToken::new();
            let done = rehearse(&served(shipped, MINE), &profiles, Limits::default(), &stop);
            let told = format!("{} by {how}: {:?}", shipped.name, done.runs);
            assert!(done.runs.iter().all(|(_, ended, ..)| ended.is_ok()), "{told}");
            let reading = done.reading.unwrap_or_else(|| panic!("{told}"));
            let texts = [
                &reading.facts.model,
                &reading.facts.serial,
                &reading.facts.firmware,
                &reading.facts.asset,
                &reading.display,
            ];
            assert!(texts.iter().all(|text| text.as_deref() == Some("MINE0123")), "{told}: {texts:?}");
            let mut numbers = reading.counters.clone();
            for counter in counters {
                let value = crate::device::family::slot(&mut numbers, counter).copied().flatten();
                assert_eq!(value, Some(77), "{told}: {counter}");
            }
            assert_eq!(how == "script", reading.facts.vendor.as_deref() == Some("Mine"));
        }
    }
}

/// A maker that the program has never heard of, without a Printer MIB: its profile is all that is needed.
#[test]
fn a_new_family_needs_a_profile_and_nothing_else() {
    let source = "\
//! name: acme
//! version: 1
//! match: object-id E.99998
//! printers: E.99998.1
//! model: E.99998.2.1.0
//! total: E.99998.2.2.0
//! total-unit: labels
fact(`vendor`, `Acme`, `1.3.6.1.2.1.1.2.0`);
condition(`no-paper`, `1.3.6.1.4.1.99998.2.1.0`);
";
    let text = "1.3.6.1.2.1.1.1.0|4|Thing\n1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.99998.1.7\n\
        1.3.6.1.4.1.99998.2.1.0|4|Labeller 3\n1.3.6.1.4.1.99998.2.2.0|65|4711\n";
    let acme = Arc::new(Profile::parse(source).unwrap());
    let read = |profiles: &[Arc<Profile>]| {
        rehearse(&Recording::parse(text), profiles, Limits::default(), &CancellationToken::new())
    };
    assert_eq!(read(Scripts::shipped()).reading, None);
    let done = read(&[acme]);
    let reading = done.reading.unwrap();
    let facts = (reading.facts.vendor.as_deref(), reading.facts.model.as_deref());
    assert_eq!(facts, (Some("Acme"), Some("Labeller 3")));
    let counters = (reading.counters.total, reading.counters.unit.as_deref());
    assert_eq!(counters, (Some(4711), Some("labels")));
    assert_eq!(reading.conditions.iter().map(|c| c.word()).collect::<Vec<_>>(), ["no-paper"]);
    assert_eq!((done.read_requests, done.runs[0].2.requests), (2, 0), "asked with the rest");
}

#[test]
fn what_is_wrong_for_a_family_can_be_forgotten() {
    let body = "forget(`counters.total`); forget(`serial`); for s in reading.supplies { forget(`supplies.${s.index}`); }";
    let reading = rehearsed(&[profile("forget", 0, body)]).reading.unwrap();
    assert_eq!((reading.counters.total, &reading.facts.serial), (None, &None));
    assert!(!reading.sources.contains_key("serial") && !reading.sources.contains_key("counters.total"));
    let bad = rehearsed(&[profile("bad", 0, "forget(`pages`);")]);
    assert!(matches!(bad.runs[0].1, Err(Failed::Script(_))));
}

#[test]
fn every_file_of_the_folder_ships() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles");
    let mut files: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rhai").to_owned())
        .collect();
    files.sort();
    let mut names: Vec<&str> = Scripts::shipped().iter().map(|profile| profile.name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(files, names);
}

/// What a script asked in the first read comes with the second one's packets.
#[test]
fn a_second_read_asks_nothing_extra_for_a_script() {
    let responder = crate::device::responder::Responder::of(PRINTER);
    let (first, _) = responder.read(Via::SnmpV2c, None);
    let (second, cost) = responder.read(Via::SnmpV2c, Some(first.plan));
    assert_eq!(first.reading, second.reading);
    assert_eq!(cost.packets, 1, "{:?}", second.plan);
}
