//! What the header of a profile names: objects of a device family that are asked in the same packets as the standard
//! ones, and what they mean.
//!
//! Pure: parses header lines and applies them to answers. It knows no vendor; the lines stand in `profiles/*.rhai`
//! and in what operators put over them.

use std::collections::{BTreeMap, BTreeSet};

use quire_proto::oid::Oid;
use quire_proto::reading::Counters;

use super::answers::{Answers, number, octets, total};
use super::text;
use super::vendor::{Private, Sourced};

/// The counters of the contract, by the word that header, script and JSON have for them.
pub(crate) const COUNTERS: [&str; 9] =
    ["total", "mono", "color", "prints", "copies", "faxes", "scans", "duplex", "large"];

/// Alternatives in one list; the longest that ships has 6.
const MOST: usize = 32;

/// One alternative of a counter: an OID, or several whose values are added; `true` marks one that may be absent.
type Sum = Vec<(Oid, bool)>;

/// The objects of one family.
#[derive(Clone, Debug, Default)]
pub(crate) struct Family {
    /// sysObjectIDs below these are printers of the family, and nothing else.
    pub(crate) printers: Vec<Private>,
    pub(crate) device_id: Vec<Private>,
    pub(crate) model: Vec<Private>,
    pub(crate) serial: Vec<Private>,
    pub(crate) firmware: Vec<Private>,
    pub(crate) name: Vec<Private>,
    pub(crate) asset: Vec<Private>,
    pub(crate) display: Vec<Private>,
    counters: BTreeMap<&'static str, Vec<Sum>>,
    /// What the family's own total counts, where it is not impressions.
    pub(crate) total_unit: Option<String>,
    /// prtMarkerLifeCount of 0 is no count.
    pub(crate) zero_is_no_total: bool,
    /// The SN of an IEEE 1284 id is the hexadecimal of the serial number.
    pub(crate) hex_serial: bool,
    /// sysObjectID below this ends in the ASCII of the model...
    pub(crate) object_id_name: Option<Private>,
    /// ...unless it begins so: then it is the network card's.
    pub(crate) object_id_cards: Vec<String>,
    named: Option<Named>,
}

/// Counters in a table whose rows say what they count.
#[derive(Clone, Debug, Default)]
struct Named {
    names: Oid,
    values: Oid,
    types: Option<Oid>,
    by_name: BTreeMap<&'static str, Vec<String>>,
    by_type: BTreeMap<&'static str, Vec<i64>>,
}

/// `1.3.6.1.4.1.9` or `E.9`.
fn oid(word: &str) -> Result<Oid, String> {
    let bad = || format!("`{word}` is no object identifier: write 1.3.6.1... or E. for 1.3.6.1.4.1.");
    let full = word.strip_prefix("E.").map(|rest| format!("1.3.6.1.4.1.{rest}"));
    let oid: Oid = full.as_deref().unwrap_or(word).parse().map_err(|_| bad())?;
    if oid.arcs().len() > 2 { Ok(oid) } else { Err(bad()) }
}

fn alternatives<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let list: Vec<T> = text.split('|').map(|part| parse(part.trim())).collect::<Result<_, _>>()?;
    if list.len() > MOST { Err(format!("more than {MOST} alternatives")) } else { Ok(list) }
}

fn sum(text: &str) -> Result<Sum, String> {
    let term = |term: &str| {
        let (word, optional) = term.strip_suffix('?').map_or((term, false), |word| (word, true));
        Ok((oid(word.trim())?, optional))
    };
    text.split('+').map(|part| term(part.trim())).collect()
}

fn counter(word: &str) -> Result<&'static str, String> {
    let known = COUNTERS.iter().find(|known| **known == word);
    known.copied().ok_or_else(|| format!("`{word}` is no counter: there are {}", COUNTERS.join(", ")))
}

impl Family {
    /// Takes one header line; false when its key is none of a family's.
    ///
    /// # Errors
    /// What is wrong with the value, for its author.
    pub(crate) fn take(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let objects = || alternatives(value, |word| oid(word).map(Private));
        let list = match key {
            "printers" => &mut self.printers,
            "device-id" => &mut self.device_id,
            "model" => &mut self.model,
            "serial" => &mut self.serial,
            "firmware" => &mut self.firmware,
            "name-from" => &mut self.name,
            "asset" => &mut self.asset,
            "display" => &mut self.display,
            _ => return self.take_counters(key, value),
        };
        list.extend(objects()?);
        Ok(true)
    }

    fn take_counters(&mut self, key: &str, value: &str) -> Result<bool, String> {
        if let Ok(name) = counter(key) {
            self.counters.entry(name).or_default().extend(alternatives(value, sum)?);
            return Ok(true);
        }
        match key.split_once(' ').map_or((key, ""), |(key, of)| (key, of.trim())) {
            ("rows", of) => {
                let names = alternatives(value, |name| Ok(name.to_owned()))?;
                self.table()?.by_name.entry(counter(of)?).or_default().extend(names);
            }
            ("types", of) => {
                let parse = |n: &str| n.parse::<i64>().map_err(|_| format!("`{n}` is no number"));
                let types = value.split_whitespace().map(parse).collect::<Result<Vec<_>, _>>()?;
                self.table()?.by_type.entry(counter(of)?).or_default().extend(types);
            }
            ("table", "") => self.named = Some(Named::parse(value)?),
            ("total-unit", "") => self.total_unit = Some(value.to_owned()),
            ("quirk", "") => self.take_quirk(value)?,
            ("object-id-name", "") => {
                let (root, cards) = value.split_once(" not ").unwrap_or((value, ""));
                self.object_id_name = Some(Private(oid(root.trim())?));
                self.object_id_cards = cards.split_whitespace().map(str::to_owned).collect();
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn take_quirk(&mut self, value: &str) -> Result<(), String> {
        match value {
            "zero-is-no-total" => self.zero_is_no_total = true,
            "hex-serial" => self.hex_serial = true,
            _ => return Err(format!("`{value}` is no quirk: there are zero-is-no-total and hex-serial")),
        }
        Ok(())
    }

    fn table(&mut self) -> Result<&mut Named, String> {
        self.named.as_mut().ok_or_else(|| "a `table` line must come first".to_owned())
    }

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
        let texts = texts.into_iter().flatten().map(|entry| &entry.0);
        let sums = COUNTERS.iter().filter_map(|name| self.counters.get(name)).flatten().flatten();
        let mut seen = BTreeSet::new();
        texts.chain(sums.map(|(oid, _)| oid)).filter(|oid| seen.insert(*oid)).cloned().collect()
    }

    /// The columns that must be walked because their rows differ by model.
    pub(crate) fn columns(&self) -> Vec<Oid> {
        let Some(named) = &self.named else { return Vec::new() };
        [Some(&named.names), Some(&named.values), named.types.as_ref()]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// The counters that the objects give, with their sources by field name.
    pub(crate) fn read(&self, answers: &Answers) -> (Counters, BTreeMap<String, String>) {
        let mut counters = Counters::default();
        let mut sources = BTreeMap::new();
        for field in COUNTERS {
            let sums = self.counters.get(field).map_or(&[][..], Vec::as_slice);
            let found = sums.iter().find_map(|sum| added(answers, sum));
            let found = found.or_else(|| self.named.as_ref()?.find(field, answers));
            if let (Some((value, source)), Some(slot)) = (found, slot(&mut counters, field)) {
                *slot = Some(value);
                sources.insert(format!("counters.{field}"), source);
            }
        }
        if counters.total.is_some() {
            counters.unit.clone_from(&self.total_unit);
        }
        (counters, sources)
    }
}

/// Where a counter of this name is kept.
pub(crate) fn slot<'a>(counters: &'a mut Counters, name: &str) -> Option<&'a mut Option<u64>> {
    match name {
        "total" => Some(&mut counters.total),
        "mono" => Some(&mut counters.mono),
        "color" => Some(&mut counters.color),
        "prints" => Some(&mut counters.prints),
        "copies" => Some(&mut counters.copies),
        "faxes" => Some(&mut counters.faxes),
        "scans" => Some(&mut counters.scans),
        "duplex" => Some(&mut counters.duplex),
        "large" => Some(&mut counters.large),
        _ => None,
    }
}

/// The sum, where every part that must be there is.
fn added(answers: &Answers, sum: &Sum) -> Option<Sourced<u64>> {
    let mut value = 0u64;
    let mut sources = Vec::new();
    for (oid, optional) in sum {
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
}

impl Named {
    /// `names OID values OID [types OID]`.
    fn parse(text: &str) -> Result<Named, String> {
        let words: Vec<&str> = text.split_whitespace().collect();
        match words[..] {
            ["names", names, "values", values] => {
                Ok(Named { names: oid(names)?, values: oid(values)?, ..Named::default() })
            }
            ["names", names, "values", values, "types", types] => Ok(Named {
                names: oid(names)?,
                values: oid(values)?,
                types: Some(oid(types)?),
                ..Named::default()
            }),
            _ => Err("expected `names OID values OID`, and `types OID` where there is one".to_owned()),
        }
    }

    fn find(&self, field: &str, answers: &Answers) -> Option<Sourced<u64>> {
        let row = self.row_by_type(field, answers).or_else(|| self.row_by_name(field, answers))?;
        let source = self.values.child(&row);
        Some((total(answers.get(&source)?)?, source.to_string()))
    }

    fn row_by_type(&self, field: &str, answers: &Answers) -> Option<Vec<u32>> {
        let (types, wanted) = (self.types.as_ref()?, self.by_type.get(field)?);
        let mut rows = answers.rows(types.arcs());
        let row = rows.find(|(_, _, value)| number(value).is_some_and(|n| wanted.contains(&n)));
        row.map(|(row, _, _)| row.to_vec())
    }

    fn row_by_name(&self, field: &str, answers: &Answers) -> Option<Vec<u32>> {
        self.by_name.get(field)?.iter().find_map(|name| {
            let matches =
                |bytes: &[u8]| text::clean(bytes, None).is_some_and(|text| text.eq_ignore_ascii_case(name));
            let mut rows = answers.rows(self.names.arcs());
            rows.find(|(_, _, value)| octets(value).is_some_and(matches)).map(|(row, _, _)| row.to_vec())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snmp::{Value, VarBind};

    fn family(lines: &[(&str, &str)]) -> Family {
        let mut family = Family::default();
        for (key, value) in lines {
            assert_eq!(family.take(key, value), Ok(true), "{key}");
        }
        family
    }

    fn answered(values: &[(&str, u32)]) -> Answers {
        let mut answers = Answers::default();
        for (oid, value) in values {
            answers.insert(&VarBind { oid: oid.parse().unwrap(), value: Value::Counter32(*value) });
        }
        answers
    }

    #[test]
    fn the_first_whole_alternative_counts() {
        let family = family(&[("mono", "E.9.1.1 + E.9.1.2 | E.9.1.3 + E.9.1.4?"), ("total-unit", "labels")]);
        let read = |values: &[(&str, u32)]| family.read(&answered(values));
        let (counters, sources) = read(&[("1.3.6.1.4.1.9.1.1", 5), ("1.3.6.1.4.1.9.1.3", 7)]);
        assert_eq!((counters.mono, counters.unit), (Some(7), None));
        assert_eq!(sources["counters.mono"], "1.3.6.1.4.1.9.1.3");
        let (counters, _) = read(&[("1.3.6.1.4.1.9.1.1", 5), ("1.3.6.1.4.1.9.1.2", 1)]);
        assert_eq!(counters.mono, Some(6));
        assert!(read(&[("1.3.6.1.4.1.9.1.4", 5)]).0.is_empty(), "half a sum is none");
    }

    #[test]
    fn lines_say_what_is_wrong_with_them() {
        let mut family = Family::default();
        assert_eq!(family.take("colour", "red"), Ok(false));
        for (key, value) in [
            ("model", "E.x"),
            ("total", "1.3"),
            ("rows total", "Total 1"),
            ("table", "names E.1.2"),
            ("quirk", "odd"),
        ] {
            assert!(family.take(key, value).is_err(), "{key}: {value}");
        }
        family.take("table", "names E.1.2.3 values E.1.2.4").unwrap();
        assert!(family.take("rows pages", "x").is_err());
        assert_eq!(family.take("rows total", "Total 1 | All"), Ok(true));
        assert_eq!(family.columns().len(), 2);
    }
}
