//! Supplies and receptacles from prtMarkerSuppliesTable (RFC 3805 section 6), typed at the door.
//!
//! The sentinels -1, -2 and -3 end here. A percentage exists only where level and capacity do, or where the unit is
//! percent. Colours come from the name first and from prtMarkerColorantTable second: rows of that table are known to
//! be in another order than the supplies.

use std::collections::BTreeSet;

use quire_proto::oid::Oid;
use quire_proto::reading::{Supply, SupplyKind, SupplyState, percent};
use quire_proto::shared::Text;

use super::answers::{Answers, number, octets};
use super::{mib, text};

/// At or below this percentage a supply is low: about a week of an office printer's toner, and what most makers' own
/// panels use. 0 is empty.
const LOW_PERCENT: u8 = 10;

/// prtMarkerSuppliesClass receptacleThatIsFilled.
const RECEPTACLE: i64 = 4;
/// prtMarkerSuppliesSupplyUnit percent.
const PERCENT: i64 = 19;

/// One supply with the OIDs of its level and name, for `sources`.
pub(crate) struct Found {
    pub(crate) supply: Supply,
    pub(crate) level_from: Option<String>,
    pub(crate) name_from: String,
}

/// Every row of the table, in order.
pub(crate) fn read(answers: &Answers, charset: Option<i64>) -> Vec<Found> {
    rows(answers).iter().map(|row| read_row(answers, charset, row)).collect()
}

/// The indices of the rows, in order.
pub(crate) fn rows(answers: &Answers) -> Vec<Vec<u32>> {
    let rows: BTreeSet<Vec<u32>> = [mib::SUPPLY_DESCR, mib::SUPPLY_LEVEL, mib::SUPPLY_MAX]
        .iter()
        .flat_map(|root| answers.rows(root).map(|(index, _, _)| index.to_vec()))
        .collect();
    rows.into_iter().collect()
}

/// The columns of the table that are read of every row; they follow each other.
pub(crate) const COLUMNS: [&[u32]; 5] =
    [mib::SUPPLY_TYPE, mib::SUPPLY_DESCR, mib::SUPPLY_UNIT, mib::SUPPLY_MAX, mib::SUPPLY_LEVEL];

/// How many cells of these columns are still to come, once the first of them is whole and so the number of rows known.
pub(crate) fn cells_left(answers: &Answers) -> Option<usize> {
    let counts = COLUMNS.map(|root| answers.rows(root).count());
    let first = counts.iter().position(|count| *count > 0)?;
    counts[first + 1..].iter().any(|count| *count > 0).then_some(())?;
    Some((counts[first] * (COLUMNS.len() - first)).saturating_sub(counts.iter().sum()))
}

/// The rows whose names leave their colour open, and whose kind may have one: only there prtMarkerColorantTable and
/// prtMarkerSuppliesClass can tell more.
pub(crate) fn unclear(answers: &Answers, charset: Option<i64>) -> Vec<Vec<u32>> {
    /// Receptacles, fusers, belts, staples and the like.
    const COLORLESS: [i64; 23] =
        [4, 8, 11, 14, 15, 16, 17, 18, 19, 20, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34];
    let cell = |root: &[u32], row: &[u32]| answers.get(&mib::oid(root).child(row));
    let open = |row: &Vec<u32>| {
        let name =
            cell(mib::SUPPLY_DESCR, row).and_then(octets).and_then(|octets| text::clean(octets, charset));
        let kind = cell(mib::SUPPLY_TYPE, row).and_then(number);
        name.as_deref().and_then(color_word).is_none() && kind.is_none_or(|kind| !COLORLESS.contains(&kind))
    };
    rows(answers).into_iter().filter(open).collect()
}

/// The colorants that these rows name, and that are not known by name yet.
pub(crate) fn colorants(answers: &Answers) -> Vec<Oid> {
    let named = answers.rows(mib::SUPPLY_COLORANT).filter_map(|(row, _, value)| {
        let index = u32::try_from(number(value)?).ok().filter(|index| *index > 0)?;
        let (_, device) = row.split_last()?;
        Some(mib::oid(mib::COLORANT_VALUE).child(device).child(&[index]))
    });
    let oids: BTreeSet<Oid> = named.filter(|oid| answers.get(oid).is_none()).collect();
    oids.into_iter().collect()
}

/// Takes in another level of the same supply, as it came; gives the source of the level where that is another.
pub(crate) fn refill(supply: &mut Supply, raw: i64, level_from: &Oid) -> Option<String> {
    let (before, known) = (supply.level, u64::try_from(raw).ok());
    supply.percent = percent_of(known, supply.max, supply.unit.as_deref() == unit_word(PERCENT));
    supply.level = known;
    supply.state = state(Some(raw), supply.percent);
    if before.is_some() == known.is_some() {
        return None;
    }
    let row = level_from.arcs().strip_prefix(mib::SUPPLY_LEVEL)?;
    let name_from = || mib::oid(mib::SUPPLY_DESCR).child(row);
    Some(if known.is_some() { level_from.to_string() } else { name_from().to_string() })
}

fn percent_of(level: Option<u64>, max: Option<u64>, of_hundred: bool) -> Option<u8> {
    match (level, max) {
        (Some(level), Some(max)) => percent(level, max),
        (Some(level), None) if of_hundred => u8::try_from(level).ok().filter(|p| *p <= 100),
        (Some(_), None) | (None, _) => None,
    }
}

fn read_row(answers: &Answers, charset: Option<i64>, row: &[u32]) -> Found {
    let cell = |root: &[u32]| answers.get(&mib::oid(root).child(row));
    let integer = |root: &[u32]| cell(root).and_then(number);
    let name_oid = mib::oid(mib::SUPPLY_DESCR).child(row);
    let name =
        cell(mib::SUPPLY_DESCR).and_then(octets).and_then(|o| text::clean(o, charset)).unwrap_or_default();
    let class = integer(mib::SUPPLY_CLASS);
    let unit = integer(mib::SUPPLY_UNIT);
    let level = integer(mib::SUPPLY_LEVEL);
    let max = integer(mib::SUPPLY_MAX).and_then(|n| u64::try_from(n).ok()).filter(|max| *max > 0);
    let known = level.and_then(|n| u64::try_from(n).ok());
    let percent = percent_of(known, max, unit == Some(PERCENT));
    let colorant = integer(mib::SUPPLY_COLORANT).and_then(|n| colorant(answers, row, n));
    let color = color_word(&name).map(Text::from).or(colorant.map(Text::from));
    let supply = Supply {
        index: row.last().copied().unwrap_or(0),
        kind: kind(integer(mib::SUPPLY_TYPE), class, unit, &name),
        color,
        level: known,
        max,
        unit: unit.and_then(unit_word).map(Text::from),
        percent,
        state: state(level, percent),
        name: name.into(),
    };
    let level_from = known.map(|_| mib::oid(mib::SUPPLY_LEVEL).child(row).to_string());
    Found { supply, level_from, name_from: name_oid.to_string() }
}

/// The state that a level says (RFC 3805 prtMarkerSuppliesLevel).
fn state(level: Option<i64>, percent: Option<u8>) -> SupplyState {
    match level {
        Some(-1) => SupplyState::Unlimited,
        Some(-3) => SupplyState::Some,
        // Not in the standard: one maker's devices say so of an empty cartridge.
        Some(-100) => SupplyState::Empty,
        Some(0) => SupplyState::Empty,
        Some(1..) => percent.map_or(SupplyState::Ok, state_of_percent),
        Some(_) | None => SupplyState::Unknown,
    }
}

/// The state of a known percentage.
pub(crate) fn state_of_percent(percent: u8) -> SupplyState {
    match percent {
        0 => SupplyState::Empty,
        1..=LOW_PERCENT => SupplyState::Low,
        _ => SupplyState::Ok,
    }
}

/// prtMarkerColorantValue, joined by colorant index under the same hrDeviceIndex; 0 is none.
fn colorant(answers: &Answers, row: &[u32], index: i64) -> Option<String> {
    let index = u32::try_from(index).ok().filter(|index| *index > 0)?;
    let mut key = row.to_vec();
    *key.last_mut()? = index;
    let value = answers.get(&mib::oid(mib::COLORANT_VALUE).child(&key))?;
    let name = text::clean(octets(value)?, None)?.to_lowercase();
    let nothing = ["none", "unknown", "other", "n/a", "no color", "not applicable"];
    match color_word(&name) {
        Some(word) => Some(word.to_owned()),
        None => (!nothing.contains(&name.as_str())).then_some(name),
    }
}

/// Colour words of the languages that printers are set to, by the colour.
const COLORS: [(&str, &[&str]); 9] = [
    ("light cyan", &["light cyan", "photo cyan"]),
    ("light magenta", &["light magenta", "photo magenta"]),
    (
        "black",
        &[
            "black", "schwarz", "noir", "noire", "nero", "negro", "preto", "zwart", "svart", "sort", "musta",
            "czarny",
        ],
    ),
    ("cyan", &["cyan", "ciano", "cian", "cyaan"]),
    ("magenta", &["magenta"]),
    ("yellow", &["yellow", "gelb", "jaune", "giallo", "amarillo", "amarelo", "geel", "gul", "keltainen"]),
    ("gray", &["gray", "grey", "grau", "gris"]),
    ("red", &["red", "rouge", "rosso"]),
    ("blue", &["blue", "blau", "bleu"]),
];

/// The one colour that a name contains as a word; two colours (`Tri-color`, `Cyan/Magenta`) are none.
pub(crate) fn color_word(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).collect();
    for (color, phrases) in &COLORS[..2] {
        if phrases.iter().any(|phrase| lower.contains(phrase)) {
            return Some(color);
        }
    }
    let mut found = COLORS[2..].iter().filter(|(_, names)| words.iter().any(|word| names.contains(word)));
    let (color, _) = found.next()?;
    found.next().is_none().then_some(*color)
}

/// prtMarkerSuppliesType folded to what operators order; where it says nothing, the name tells.
fn kind(code: Option<i64>, class: Option<i64>, unit: Option<i64>, name: &str) -> SupplyKind {
    match code {
        Some(3 | 21) if class == Some(RECEPTACLE) => SupplyKind::WasteToner,
        Some(3 | 21) => SupplyKind::Toner,
        Some(4 | 8 | 14) => SupplyKind::WasteToner,
        Some(5 | 6) if class == Some(RECEPTACLE) => SupplyKind::WasteToner,
        Some(5 | 6 | 7 | 12 | 13) => SupplyKind::Ink,
        Some(9) => SupplyKind::Drum,
        Some(11 | 15 | 17 | 19 | 22) => SupplyKind::Fuser,
        Some(20) => SupplyKind::Transfer,
        Some(29 | 32) => SupplyKind::Staples,
        Some(10 | 16 | 18 | 23..=28 | 30 | 31 | 33..) => SupplyKind::Other,
        Some(_) | None => kind_of_name(class, unit, &name.to_lowercase()),
    }
}

pub(crate) fn kind_of_name(class: Option<i64>, unit: Option<i64>, name: &str) -> SupplyKind {
    // prtMarkerSuppliesSupplyUnit: impressions and grams are toner's, millilitres are ink's.
    const IMPRESSIONS: Option<i64> = Some(7);
    const TENTHS_OF_GRAMS: Option<i64> = Some(13);
    const TENTHS_OF_MILLILITERS: Option<i64> = Some(15);
    let has = |words: &[&str]| words.iter().any(|word| name.contains(word));
    let has_word =
        |words: &[&str]| name.split(|c: char| !c.is_alphabetic()).any(|word| words.contains(&word));
    let coloured = color_word(name).is_some();
    if class == Some(RECEPTACLE) || has(&["waste", "maintenance box", "maintenance tank", "resttoner"]) {
        SupplyKind::WasteToner
    } else if has(&["maintenance kit", "wartungskit"]) {
        SupplyKind::MaintenanceKit
    } else if has(&["staple", "heftklammer"]) {
        SupplyKind::Staples
    } else if has(&["fuser", "fusing", "fixier", "fusore"]) {
        SupplyKind::Fuser
    } else if has(&["transfer", "belt unit", "image belt"]) {
        SupplyKind::Transfer
    } else if has(&["developer"]) {
        SupplyKind::Other
    } else if has(&["drum", "imaging", "image unit", "photoconduct", "trommel"]) {
        SupplyKind::Drum
    } else if has(&["toner"]) {
        SupplyKind::Toner
    } else if has_word(&["ink", "tinte", "encre"]) || coloured && unit == TENTHS_OF_MILLILITERS {
        SupplyKind::Ink
    } else if coloured && (unit == IMPRESSIONS || unit == TENTHS_OF_GRAMS) {
        SupplyKind::Toner
    } else {
        SupplyKind::Other
    }
}

/// prtMarkerSuppliesSupplyUnit and prtMarkerCounterUnit as words.
pub(crate) fn unit_word(unit: i64) -> Option<&'static str> {
    Some(match unit {
        3 => "inches/10000",
        4 => "micrometers",
        7 => "impressions",
        8 => "sheets",
        11 => "hours",
        12 => "ounces/1000",
        13 => "grams/10",
        14 => "fluid-ounces/100",
        15 => "milliliters/10",
        16 => "feet",
        17 => "meters",
        18 => "items",
        PERCENT => "percent",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snmp::{Value, VarBind};

    fn row(level: i64, max: i64, unit: i64) -> Supply {
        let mut answers = Answers::default();
        for (root, n) in [(mib::SUPPLY_LEVEL, level), (mib::SUPPLY_MAX, max), (mib::SUPPLY_UNIT, unit)] {
            answers.insert(&VarBind { oid: mib::oid(root).child(&[1, 1]), value: Value::Integer(n) });
        }
        read(&answers, None).remove(0).supply
    }

    #[test]
    fn sentinels_are_states_and_never_levels() {
        for (level, state) in [
            (-1, SupplyState::Unlimited),
            (-2, SupplyState::Unknown),
            (-3, SupplyState::Some),
            (-100, SupplyState::Empty),
            (-7, SupplyState::Unknown),
        ] {
            let supply = row(level, 100, 7);
            assert_eq!((supply.level, supply.percent, supply.state), (None, None, state), "{level}");
        }
        assert_eq!(row(50, -2, 7).max, None);
    }

    #[test]
    fn percent_needs_level_and_max_or_the_unit() {
        assert_eq!(row(4800, 15000, 7).percent, Some(32));
        assert_eq!(row(55, -2, 19).percent, Some(55));
        assert_eq!(row(55, -2, 7).percent, None);
        assert_eq!(row(55, 0, 7).percent, None);
        assert_eq!(row(150, 100, 19).percent, Some(100));
    }

    #[test]
    fn low_and_empty_have_their_bounds() {
        assert_eq!(row(0, 100, 19).state, SupplyState::Empty);
        assert_eq!(row(0, -2, 13).state, SupplyState::Empty);
        assert_eq!(row(1, 100, 19).state, SupplyState::Low);
        assert_eq!(row(10, 100, 19).state, SupplyState::Low);
        assert_eq!(row(11, 100, 19).state, SupplyState::Ok);
        assert_eq!(row(8000, -2, 13).state, SupplyState::Ok);
    }

    #[test]
    fn colours_are_words_and_never_guesses() {
        assert_eq!(color_word("Matte Black Ink Tank"), Some("black"));
        assert_eq!(color_word("Cartuccia toner giallo, Phaser"), Some("yellow"));
        assert_eq!(color_word("Light Cyan Ink"), Some("light cyan"));
        assert_eq!(color_word("Blackbox"), None);
        assert_eq!(color_word("Cyan/Magenta/Yellow"), None);
    }

    #[test]
    fn a_name_tells_where_the_type_does_not() {
        assert_eq!(kind(None, None, None, "Waste Toner Box"), SupplyKind::WasteToner);
        assert_eq!(kind(Some(1), None, None, "Belt Unit"), SupplyKind::Transfer);
        assert_eq!(kind(Some(3), Some(3), None, "TK-8527C"), SupplyKind::Toner);
        assert_eq!(kind(None, None, Some(7), "Cyan Cartridge"), SupplyKind::Toner);
        assert_eq!(kind(None, None, None, "Cyan Cartridge"), SupplyKind::Other);
        assert_eq!(kind(None, None, None, "Linkage"), SupplyKind::Other);
    }
}
