//! Vendor knowledge as data: who is who (`vendors.toml`), and the objects that the headers of profiles name.
//!
//! This file knows how such lists work and no vendor by name. A new family is a profile (`profiles/*.rhai`); a new
//! name on a front is a line of the table.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use quire_proto::oid::Oid;
use serde::Deserialize;

use super::answers::{Answers, octets};
use super::{mib, text};

/// The whole table.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Table {
    pub(crate) common: Common,
    /// Families by the enterprise numbers whose objects are theirs.
    pub(crate) enterprises: BTreeMap<String, Vec<u32>>,
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

/// The table that is built in; a unit test holds that it parses.
pub(crate) static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("vendors.toml")).unwrap_or_default());

/// True when `candidate` lies below one of the table's `roots`.
pub(crate) fn below(candidate: &Oid, roots: &[Private]) -> bool {
    roots.iter().any(|root| candidate.starts_with(&root.0))
}

impl Table {
    /// The family of this enterprise number.
    pub(crate) fn family_of(&self, enterprise: u32) -> Option<&str> {
        let mut families = self.enterprises.iter();
        families.find(|(_, numbers)| numbers.contains(&enterprise)).map(|(id, _)| id.as_str())
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
    pub(crate) fn default_brand(&self, family: &str) -> Option<&Brand> {
        self.brand.iter().find(|brand| brand.default && brand.family.as_deref() == Some(family))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_parses_and_is_consistent() {
        let table: Table = toml::from_str(include_str!("vendors.toml")).unwrap();
        for brand in &table.brand {
            if let Some(family) = &brand.family {
                assert!(table.enterprises.contains_key(family), "{}: no family {family}", brand.name);
            }
        }
        for family in table.enterprises.keys() {
            let named = |brand: &&Brand| brand.default && brand.family.as_ref() == Some(family);
            assert!(table.brand.iter().filter(named).count() <= 1, "{family}");
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
