//! What devices write on their pages, as values that a script can look through: JSON, XML, HTML.
//!
//! Pure. Every list has a bound; recursion ends at the parsers' own depth limits.

use std::sync::Arc;

use rhai::{Array, Dynamic, Map};
use scraper::{Html as Tree, Selector};
use serde_json::Value as Json;

/// Elements that one question gives: a page of counters has some hundred cells.
const MOST: usize = 1000;
/// Characters of the text of one element.
const TEXT: usize = 4096;

/// JSON as Rhai values.
pub(super) fn json(text: &str) -> Result<Dynamic, String> {
    let json: Json = serde_json::from_str(text).map_err(|error| format!("this is no JSON: {error}"))?;
    Ok(from_json(&json))
}

/// The same value in Rhai's types; numbers that are no integers become floats. serde_json stops at 128 levels.
pub(super) fn from_json(json: &Json) -> Dynamic {
    match json {
        Json::Null => Dynamic::UNIT,
        Json::Bool(yes) => Dynamic::from_bool(*yes),
        Json::Number(n) => match n.as_i64() {
            Some(n) => Dynamic::from_int(n),
            None => Dynamic::from_float(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => text.clone().into(),
        Json::Array(items) => Dynamic::from_array(items.iter().map(from_json).collect()),
        Json::Object(entries) => Dynamic::from_map(
            entries.iter().map(|(key, value)| (key.as_str().into(), from_json(value))).collect(),
        ),
    }
}

fn squeeze(text: impl Iterator<Item = char>) -> String {
    let text: String = text.take(TEXT).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The text of a whole page.
pub(super) fn text_of(page: &str) -> String {
    let tree = Tree::parse_document(page);
    let shown = tree.tree.nodes().filter(|node| {
        let hidden = |name: &str| matches!(name, "script" | "style" | "template" | "title");
        let above = node.parent().and_then(|above| above.value().as_element().map(|e| e.name().to_owned()));
        !above.is_some_and(|name| hidden(&name))
    });
    let texts = shown.filter_map(|node| node.value().as_text().map(|text| text.text.to_string()));
    texts.collect::<Vec<_>>().join(" ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn element<'a>(name: &str, text: String, attributes: impl Iterator<Item = (&'a str, &'a str)>) -> Dynamic {
    let attributes: Map = attributes.take(64).map(|(key, value)| (key.into(), value.into())).collect();
    let cells: [(&str, Dynamic); 3] =
        [("name", name.into()), ("text", text.into()), ("attributes", Dynamic::from_map(attributes))];
    Dynamic::from_map(cells.into_iter().map(|(key, value)| (key.into(), value)).collect())
}

/// An XML document, kept as text: parsed at every question, so that nothing borrowed lives in a script.
#[derive(Clone)]
pub(super) struct Xml(Arc<str>);

impl Xml {
    pub(super) fn parse(text: &str) -> Result<Xml, String> {
        let document = roxmltree::Document::parse(text.trim_start_matches('\u{feff}').trim_start());
        document.map(|_| Xml(text.into())).map_err(|error| format!("this is no XML: {error}"))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Elements by local name, or by the last names of their path (`Usage/Total`), in document order.
    pub(super) fn find(&self, path: &str) -> Array {
        let text = self.0.trim_start_matches('\u{feff}').trim_start();
        let Ok(document) = roxmltree::Document::parse(text) else { return Array::new() };
        let steps: Vec<&str> = path.split('/').filter(|step| !step.is_empty()).collect();
        let is_there = |node: &roxmltree::Node<'_, '_>| {
            let mut above = node.ancestors().filter(roxmltree::Node::is_element);
            !steps.is_empty()
                && steps
                    .iter()
                    .rev()
                    .all(|step| above.next().is_some_and(|node| node.tag_name().name() == *step))
        };
        let found = document.descendants().filter(roxmltree::Node::is_element).filter(is_there).take(MOST);
        found
            .map(|node| {
                let texts =
                    node.descendants().filter(roxmltree::Node::is_text).filter_map(|text| text.text());
                let attributes = node.attributes().map(|attribute| (attribute.name(), attribute.value()));
                element(node.tag_name().name(), squeeze(texts.flat_map(str::chars)), attributes)
            })
            .collect()
    }
}

/// An HTML page, kept as text; whatever a browser could read can be read.
#[derive(Clone)]
pub(super) struct Html(Arc<str>);

impl Html {
    pub(super) fn new(text: &str) -> Html {
        Html(text.into())
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Elements by CSS selector, in document order.
    pub(super) fn select(&self, selector: &str) -> Result<Array, String> {
        let selector = Selector::parse(selector).map_err(|_| format!("`{selector}` is no CSS selector"))?;
        let tree = Tree::parse_document(&self.0);
        let found = tree.select(&selector).take(MOST);
        Ok(found
            .map(|node| {
                let text = node.text().flat_map(|part| part.chars().chain([' ']));
                element(node.value().name(), squeeze(text), node.value().attrs())
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(found: Array) -> Vec<String> {
        let text = |item: Dynamic| item.cast::<Map>().remove("text").unwrap().into_string().unwrap();
        found.into_iter().map(text).collect()
    }

    #[test]
    fn html_is_read_by_css_selectors() {
        let page =
            Html::new("<table><tr><td class=n>Total <b>pages</b><td class=v>1 234</table><td class=v>5");
        assert_eq!(texts(page.select("td.n").unwrap()), ["Total pages"]);
        assert_eq!(texts(page.select("td.v").unwrap())[0], "1 234");
        assert!(page.select("td[").is_err());
    }

    #[test]
    fn xml_is_read_by_paths_without_prefixes() {
        let page =
            Xml::parse("<?xml version='1.0'?><a xmlns:p='u'><p:b id='7'><c>1</c></p:b><c>2</c></a>").unwrap();
        assert_eq!(texts(page.find("c")), ["1", "2"]);
        assert_eq!(texts(page.find("b/c")), ["1"]);
        assert!(Xml::parse("<a>").is_err());
        assert!(page.find("").is_empty());
    }

    #[test]
    fn entities_do_not_explode() {
        let bomb =
            "<!DOCTYPE a [<!ENTITY x 'xxxxxxxxxx'><!ENTITY y '&x;&x;&x;&x;&x;&x;&x;&x;&x;'>]><a>&y;</a>";
        assert!(Xml::parse(bomb).is_err(), "documents with their own entities are refused");
    }

    #[test]
    fn a_page_of_many_levels_does_no_harm() {
        let deep = "<div>".repeat(20_000);
        assert_eq!(Html::new(&deep).select("p").unwrap().len(), 0);
        assert!(Xml::parse(&"<a>".repeat(20_000)).is_err());
        assert!(json(&"[".repeat(20_000)).is_err());
    }
}
