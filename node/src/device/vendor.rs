//! Vendor knowledge as data: reads `vendors.toml` and applies it to what a device answered.
//!
//! This file knows how such a table works and no vendor by name. Adding a printer means adding lines to the table.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use quire_proto::oid::Oid;
use quire_proto::reading::Counters;
use serde::Deserialize;

use super::answers::{Answers, number, octets, total};
use super::{mib, text};

/// The whole table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) common: Common,
    pub(crate) family: Vec<Family>,
    pub(crate) brand: Vec<Brand>,
    pub(crate) judge: Rules,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Common {
    pub(crate) device_id: Vec<Private>,
    /// Parts of a sysDescr that describes a network card or a product line, not a model.
    pub(crate) cards: Vec<String>,
    /// Marks in a sysDescr that a model stands between.
    pub(crate) model_marks: Vec<(String, String)>,
}

/// An OID of the table, which is written without `1.3.6.1.4.1`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub(crate) struct Private(pub(crate) Oid);

impl From<String> for Private {
    fn from(text: String) -> Self {
        let arcs: Vec<u32> = text.split('.').filter_map(|arc| arc.parse().ok()).collect();
        Private(mib::oid(mib::ENTERPRISES).child(&arcs))
    }
}

/// One alternative of a field: an OID, or several whose values are added; `true` marks one that may be absent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(from = "String")]
pub(crate) struct Sum(Vec<(Oid, bool)>);

impl From<String> for Sum {
    fn from(text: String) -> Self {
        let term = |term: &str| (Private::from(term.trim_end_matches('?').to_owned()).0, term.ends_with('?'));
        Sum(text.split('+').map(term).collect())
    }
}

/// What tells printers from other gear.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rules {
    pub(crate) others: Vec<Private>,
    pub(crate) systems: Vec<Private>,
    pub(crate) other_words: Vec<String>,
    pub(crate) printer_words: Vec<String>,
}

/// A name on the front of a device, and the family of MIBs inside.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Brand {
    pub(crate) name: String,
    pub(crate) words: Vec<String>,
    pub(crate) family: Option<String>,
    #[serde(default)]
    pub(crate) default: bool,
    /// sysObjectIDs below these are this brand's alone.
    #[serde(default)]
    pub(crate) object_ids: Vec<Private>,
    #[serde(default)]
    pub(crate) descr: Vec<String>,
}

/// Private objects that several brands share.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Family {
    pub(crate) id: String,
    pub(crate) enterprises: Vec<u32>,
    pub(crate) printers: Vec<Private>,
    pub(crate) device_id: Vec<Private>,
    pub(crate) model: Vec<Private>,
    pub(crate) serial: Vec<Private>,
    pub(crate) firmware: Vec<Private>,
    pub(crate) name: Vec<Private>,
    pub(crate) asset: Vec<Private>,
    pub(crate) display: Vec<Private>,
    pub(crate) total: Vec<Sum>,
    pub(crate) mono: Vec<Sum>,
    pub(crate) color: Vec<Sum>,
    pub(crate) prints: Vec<Sum>,
    pub(crate) copies: Vec<Sum>,
    pub(crate) faxes: Vec<Sum>,
    pub(crate) scans: Vec<Sum>,
    pub(crate) duplex: Vec<Sum>,
    pub(crate) zero_is_no_total: bool,
    pub(crate) hex_serial: bool,
    pub(crate) object_id_name: Option<Private>,
    pub(crate) object_id_cards: Vec<String>,
    pub(crate) rebrand: Vec<Rebrand>,
    pub(crate) named: Option<Named>,
}

/// A brand that only the model's first letters give away.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rebrand {
    pub(crate) model: String,
    pub(crate) brand: String,
}

/// Counters in a table whose rows say what they count.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Named {
    names: Private,
    values: Private,
    types: Option<Private>,
    total: Vec<String>,
    mono: Vec<String>,
    color: Vec<String>,
    copies: Vec<String>,
    prints: Vec<String>,
    faxes: Vec<String>,
    scans: Vec<String>,
    duplex: Vec<String>,
    by_type: BTreeMap<String, Vec<i64>>,
}

/// The table that is built in; a unit test holds that it parses.
pub(crate) static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("vendors.toml")).unwrap_or_default());

/// True when `candidate` lies below one of the table's `roots`.
pub(crate) fn below(candidate: &Oid, roots: &[Private]) -> bool {
    roots.iter().any(|root| candidate.starts_with(&root.0))
}

impl Table {
    /// The family of this enterprise number.
    pub(crate) fn family_of(&self, enterprise: u32) -> Option<&Family> {
        self.family.iter().find(|family| family.enterprises.contains(&enterprise))
    }

    /// The family of this name.
    pub(crate) fn family(&self, id: &str) -> Option<&Family> {
        self.family.iter().find(|family| family.id == id)
    }

    /// The brand that a text begins with; the longest word wins.
    pub(crate) fn brand_at(&self, text: &str) -> Option<&Brand> {
        let longest = |brand: &&Brand| {
            let words = brand.words.iter().filter(|word| text::begins_with_word(text, word));
            words.map(String::len).max().unwrap_or(0)
        };
        self.brand.iter().filter(|brand| longest(brand) > 0).max_by_key(longest)
    }

    /// The brand whose sysObjectIDs include this one.
    pub(crate) fn brand_of(&self, object_id: &Oid) -> Option<&Brand> {
        self.brand.iter().find(|brand| below(object_id, &brand.object_ids))
    }

    /// The brand that a family has when nothing else names one.
    pub(crate) fn default_brand(&self, family: &Family) -> Option<&Brand> {
        self.brand.iter().find(|brand| brand.default && brand.family.as_deref() == Some(family.id.as_str()))
    }
}

impl Family {
    /// Every single instance that a read of this family asks for.
    pub(crate) fn instances(&self) -> Vec<Oid> {
        let texts = [
            &self.device_id,
            &self.model,
            &self.serial,
            &self.firmware,
            &self.name,
            &self.asset,
            &self.display,
        ];
        let sums =
            self.counters().into_iter().flat_map(|(_, sums)| sums).flat_map(|sum| &sum.0).map(|(oid, _)| oid);
        let oids = texts.into_iter().flatten().map(|entry| &entry.0).chain(sums);
        let mut seen = BTreeSet::new();
        oids.filter(|oid| seen.insert(*oid)).cloned().collect()
    }

    fn counters(&self) -> [(&'static str, &[Sum]); 8] {
        [
            ("total", &self.total),
            ("mono", &self.mono),
            ("color", &self.color),
            ("prints", &self.prints),
            ("copies", &self.copies),
            ("faxes", &self.faxes),
            ("scans", &self.scans),
            ("duplex", &self.duplex),
        ]
    }

    /// The columns that must be walked because their rows differ by model.
    pub(crate) fn columns(&self) -> Vec<Oid> {
        let Some(named) = &self.named else { return Vec::new() };
        [Some(&named.names), Some(&named.values), named.types.as_ref()]
            .into_iter()
            .flatten()
            .map(|c| c.0.clone())
            .collect()
    }

    /// The names and types of the rows whose `values` are among these.
    pub(crate) fn labels(&self, values: &BTreeSet<Oid>) -> Vec<Oid> {
        let Some(named) = &self.named else { return Vec::new() };
        let rows = values.iter().filter_map(|value| value.suffix(&named.values.0));
        let columns = [Some(&named.names), named.types.as_ref()];
        rows.flat_map(|row| columns.iter().flatten().map(move |column| column.0.child(row))).collect()
    }
}

/// A value with the OIDs that it came from, joined by `+`.
pub(crate) type Sourced<T> = (T, String);

/// The first alternative of a field that the device answered, as text.
pub(crate) fn field_text(
    answers: &Answers,
    field: &[Private],
    charset: Option<i64>,
) -> Option<Sourced<String>> {
    field.iter().find_map(|Private(oid)| {
        let text = text::clean(octets(answers.get(oid)?)?, charset)?;
        Some((text, oid.to_string()))
    })
}

fn field_total(answers: &Answers, field: &[Sum]) -> Option<Sourced<u64>> {
    field.iter().find_map(|sum| {
        let mut value = 0u64;
        let mut sources = Vec::new();
        for (oid, optional) in &sum.0 {
            match answers.get(oid).and_then(total) {
                Some(part) => {
                    value = value.checked_add(part)?;
                    sources.push(oid.to_string());
                }
                None if *optional => {}
                None => return None,
            }
        }
        (!sources.is_empty()).then(|| (value, sources.join("+")))
    })
}

/// The counters that a family's objects give, with their sources by field name.
pub(crate) fn counters(family: &Family, answers: &Answers) -> (Counters, BTreeMap<String, String>) {
    let mut counters = Counters::default();
    let mut sources = BTreeMap::new();
    let mut take = |field: &str, found: Option<Sourced<u64>>| {
        if let Some((value, source)) = found
            && set(&mut counters, field, value)
        {
            sources.insert(format!("counters.{field}"), source);
        }
    };
    for (field, entries) in family.counters() {
        take(field, field_total(answers, entries));
    }
    if let Some(named) = &family.named {
        for field in ["total", "mono", "color", "prints", "copies", "faxes", "scans", "duplex"] {
            take(field, named.find(field, answers));
        }
    }
    (counters, sources)
}

/// Sets a field that is not known yet; false when it was.
fn set(counters: &mut Counters, field: &str, value: u64) -> bool {
    let slot = match field {
        "total" => &mut counters.total,
        "mono" => &mut counters.mono,
        "color" => &mut counters.color,
        "prints" => &mut counters.prints,
        "copies" => &mut counters.copies,
        "faxes" => &mut counters.faxes,
        "scans" => &mut counters.scans,
        "duplex" => &mut counters.duplex,
        _ => return false,
    };
    let free = slot.is_none();
    if free {
        *slot = Some(value);
    }
    free
}

impl Named {
    fn find(&self, field: &str, answers: &Answers) -> Option<Sourced<u64>> {
        let names = match field {
            "total" => &self.total,
            "mono" => &self.mono,
            "color" => &self.color,
            "copies" => &self.copies,
            "prints" => &self.prints,
            "faxes" => &self.faxes,
            "scans" => &self.scans,
            "duplex" => &self.duplex,
            _ => return None,
        };
        let row = self.row_by_type(field, answers).or_else(|| self.row_by_name(names, answers))?;
        let source = self.values.0.child(&row);
        Some((total(answers.get(&source)?)?, source.to_string()))
    }

    fn row_by_type(&self, field: &str, answers: &Answers) -> Option<Vec<u32>> {
        let Private(types) = self.types.as_ref()?;
        let wanted = self.by_type.get(field)?;
        let mut rows = answers.rows(types.arcs());
        rows.find(|(_, _, value)| number(value).is_some_and(|n| wanted.contains(&n)))
            .map(|(row, _, _)| row.to_vec())
    }

    fn row_by_name(&self, names: &[String], answers: &Answers) -> Option<Vec<u32>> {
        names.iter().find_map(|name| {
            let matches =
                |bytes: &[u8]| text::clean(bytes, None).is_some_and(|text| text.eq_ignore_ascii_case(name));
            let mut rows = answers.rows(self.names.0.arcs());
            rows.find(|(_, _, value)| octets(value).is_some_and(matches)).map(|(row, _, _)| row.to_vec())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_parses_and_is_consistent() {
        let table: Table = toml::from_str(include_str!("vendors.toml")).unwrap();
        for brand in &table.brand {
            if let Some(family) = &brand.family {
                assert!(table.family(family).is_some(), "{}: no family {family}", brand.name);
            }
        }
        for family in &table.family {
            for oid in family.instances().iter().chain(&family.columns()) {
                assert!(oid.arcs().len() > 8, "{}: {oid} is too short", family.id);
            }
            let default =
                table.brand.iter().filter(|b| b.default && b.family.as_ref() == Some(&family.id)).count();
            assert!(default <= 1, "{}", family.id);
        }
    }

    #[test]
    fn the_longest_brand_wins() {
        let brand = |text: &str| TABLE.brand_at(text).map(|brand| brand.name.as_str());
        assert_eq!(brand("FUJI XEROX DocuPrint"), Some("Fuji Xerox"));
        assert_eq!(brand("TA_UTAX Printing System"), Some("UTAX"));
        assert_eq!(brand("HPE Switch"), None);
        assert_eq!(brand("Okidoki"), None);
    }
}
