//! What every reader must survive, and the traps that the captured pages do not all hold. The captured pages
//! themselves are read over the wire in `web`'s tests.

use proptest::prelude::*;

use super::*;

fn read(reader: &Reader, ask: usize, page: &str) -> Reading {
    let mut draft = Draft::default();
    (reader.read)(&[Sheet { ask, path: "/page".into(), text: page.to_owned() }], &mut draft);
    draft.reading
}

#[test]
fn numbers_are_whole_or_none() {
    assert_eq!(number(" 1,234,567 "), Some(1_234_567));
    assert_eq!(number("1.234"), Some(1_234));
    assert_eq!(number("798"), Some(798));
    for text in ["", "-3", "12.5", "1,23", "12 pages", "1,,234", "99999999999999999999999"] {
        assert_eq!(number(text), None, "{text}");
    }
}

/// An error page, a login page and another device's page say nothing, whoever reads them.
#[test]
fn pages_of_others_say_nothing() {
    let pages = [
        "",
        "<html><body><h1>404 Not Found</h1></body></html>",
        "<html><title>Login</title><form><input name=password></form><table><tr><td>1</td><td>2</td></tr></table>",
        "{\"error\": 12}",
        "<?xml version='1.0'?><error><TotalImpressions>7</TotalImpressions></error>",
    ];
    for reader in READERS {
        for page in pages {
            for ask in 0..reader.asks.len() {
                let reading = read(reader, ask, page);
                assert!(reading.counters.is_empty() && reading.supplies.is_empty(), "{}: {page}", reader.id);
                assert_eq!(reading.facts.serial, None, "{}: {page}", reader.id);
            }
        }
    }
}

#[test]
fn entities_that_grow_are_refused() {
    let bomb = "<!DOCTYPE x [<!ENTITY a 'aaaaaaaaaa'><!ENTITY b '&a;&a;&a;&a;'>]><ProductConfigDyn>&b;</ProductConfigDyn>";
    assert_eq!(read(&hp::LEDM, 0, bomb), Reading::default());
}

#[test]
fn a_table_of_another_kind_is_no_usage() {
    let table = "<table class=tableDiv><tbody><tr><td>Since power-on</td><td>5</td></tr><tr><td>&nbsp;&nbsp;&nbsp;Black</td><td>798</td></tr></tbody></table>";
    assert!(read(&xerox::USAGE, 0, table).counters.is_empty());
}

#[test]
fn every_brand_of_a_reader_is_a_brand() {
    for reader in READERS {
        for brand in reader.brands {
            assert!(TABLE.brand.iter().any(|known| known.name == *brand), "{}: {brand}", reader.id);
        }
    }
}

proptest! {
    /// Noise made of the pages' own words.
    #[test]
    fn readers_survive_anything(parts in proptest::collection::vec(
        prop::sample::select(vec![
            "<li class='tank'>", "height='99'", "<img class='color' ", ">", "{", "}", "[", ":", "'", "\"", "opt", ",",
            "toner_black", "_pp.printertotal", "=", "('1", ");", "<tr class=staticProp>", "<td>", ":</td>", "é", "\u{0}",
            "var BlackTonerPer", "%", "style='linear-gradient(to top,", "<?xml", "<ProductUsageDyn", "/>", "1,,2\n",
            "\"Page Counter\"", "\"Model Name\"", "&nbsp;", "EPSON", "table class=tableDiv",
        ]), 0..60)) {
        let page = parts.concat();
        for reader in READERS {
            for ask in 0..reader.asks.len() {
                let _reading = read(reader, ask, &page);
            }
        }
    }
}
