//! What readers of HTML share: text of an element, rows of a table, pairs of a definition list.

use scraper::{ElementRef, Html, Selector};

/// All text below an element, runs of blanks as one.
pub(super) fn text(element: ElementRef<'_>) -> String {
    super::clean(&element.text().collect::<String>()).unwrap_or_default()
}

/// The elements that match; none where the selector is no selector.
pub(super) fn all<'a>(document: &'a Html, selector: &str) -> Vec<ElementRef<'a>> {
    Selector::parse(selector).map(|selector| document.select(&selector).collect()).unwrap_or_default()
}

/// The matches below an element.
pub(super) fn below<'a>(element: ElementRef<'a>, selector: &str) -> Vec<ElementRef<'a>> {
    Selector::parse(selector).map(|selector| element.select(&selector).collect()).unwrap_or_default()
}

/// The text of the first match.
pub(super) fn first(document: &Html, selector: &str) -> Option<String> {
    all(document, selector).first().map(|element| text(*element)).filter(|text| !text.is_empty())
}

/// Labels and values of `dt`/`dd` lists, the colon behind a label taken off.
pub(super) fn pairs(document: &Html) -> Vec<(String, String)> {
    let mut pairs = Vec::new();
    let mut label = None;
    for element in all(document, "dt, dd") {
        match element.value().name() {
            "dt" => label = Some(unlabel(&text(element))),
            _ => pairs.extend(label.take().map(|label| (label, text(element)))),
        }
    }
    pairs
}

/// A label without its colon and without a second layer of escapes.
pub(super) fn unlabel(label: &str) -> String {
    label.trim_end_matches([':', ' ', '\u{a0}']).replace("&amp;", "&").trim().to_owned()
}
