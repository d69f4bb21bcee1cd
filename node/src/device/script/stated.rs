//! What a script states about a supply, checked: a map of words and numbers becomes a [`Supply`] or is refused.
//!
//! A sentinel ends here as it does where the standard's table is read.

use quire_proto::reading::{Supply, SupplyKind, SupplyState, percent};
use quire_proto::shared::Text;
use rhai::Map;

use super::host::{LONGEST, Said, fault};
use crate::device::{supply, text};

pub(super) fn string(said: &Map, key: &str) -> Said<Option<String>> {
    let Some(value) = said.get(key).filter(|value| !value.is_unit()) else { return Ok(None) };
    let text = value.clone().into_string().map_err(|_| fault(&format!("`{key}` is a text")))?;
    Ok(text::clean(text.as_bytes(), None).filter(|text| text.chars().count() <= LONGEST))
}

pub(super) fn integer(said: &Map, key: &str) -> Said<Option<i64>> {
    let Some(value) = said.get(key).filter(|value| !value.is_unit()) else { return Ok(None) };
    value.as_int().map(Some).map_err(|_| fault(&format!("`{key}` is an integer")))
}

/// A supply as a script describes it, over the row that it replaces. A level of -1, -2 or -3 becomes its word
/// (RFC 3805 prtMarkerSuppliesLevel); any other negative number is refused.
pub(super) fn supply_of(said: &Map, index: u32, before: Option<&Supply>) -> Said<Supply> {
    const KNOWN: [&str; 10] =
        ["index", "name", "kind", "color", "level", "max", "percent", "unit", "state", "source"];
    if let Some(key) = said.keys().find(|key| !KNOWN.contains(&key.as_str())) {
        return Err(fault(&format!("supply: `{key}` is unknown")));
    }
    let name = string(said, "name")?.map(Text::from).or_else(|| before.map(|supply| supply.name.clone()));
    let kind = match string(said, "kind")? {
        Some(word) => {
            let unknown = || fault(&format!("supply: `{word}` is no kind"));
            Some(SupplyKind::from_word(&word).ok_or_else(unknown)?)
        }
        None => before.map(|supply| supply.kind),
    };
    let color =
        string(said, "color")?.map(Text::from).or_else(|| before.and_then(|supply| supply.color.clone()));
    let mut supply = Supply {
        index,
        name: name.ok_or_else(|| fault("supply: a `name` is missing"))?,
        kind: kind.ok_or_else(|| fault("supply: a `kind` is missing"))?,
        color,
        level: before.and_then(|supply| supply.level),
        max: before.and_then(|supply| supply.max),
        unit: string(said, "unit")?.map(Text::from).or_else(|| before.and_then(|supply| supply.unit.clone())),
        percent: before.and_then(|supply| supply.percent),
        state: before.map_or(SupplyState::Unknown, |supply| supply.state),
    };
    level_of(said, &mut supply)?;
    if let Some(word) = string(said, "state")? {
        supply.state = SupplyState::from_word(&word).ok_or_else(|| fault("supply: no such `state`"))?;
    }
    Ok(supply)
}

fn level_of(said: &Map, supply: &mut Supply) -> Said<()> {
    let size =
        |n: i64, what: &str| u64::try_from(n).map_err(|_| fault(&format!("supply: {what} {n} is no amount")));
    if let Some(max) = integer(said, "max")? {
        supply.max = Some(size(max, "max")?);
    }
    if let Some(level) = integer(said, "level")? {
        (supply.level, supply.percent) = (None, None);
        supply.state = match level {
            -1 => SupplyState::Unlimited,
            -2 => SupplyState::Unknown,
            -3 => SupplyState::Some,
            level => {
                let level = size(level, "level")?;
                supply.level = Some(level);
                supply.percent = supply.max.and_then(|max| percent(level, max));
                supply.percent.map_or(SupplyState::Unknown, supply::state_of_percent)
            }
        };
    }
    if let Some(share) = integer(said, "percent")? {
        let share = u8::try_from(share).ok().filter(|share| *share <= 100);
        let share = share.ok_or_else(|| fault("supply: `percent` is 0 to 100"))?;
        supply.percent = Some(share);
        supply.state = supply::state_of_percent(share);
    }
    Ok(())
}
