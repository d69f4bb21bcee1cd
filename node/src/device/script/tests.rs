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
    let supplies: Vec<_> =
        reading.supplies.iter().map(|s| (s.index, s.name.as_str(), s.percent, s.kind)).collect();
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
    for bad in
        ["name: A b", "match: colour red", "match: family", "match: object-id x", "priority: high", "nmae: x"]
    {
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
