//! A device's supplies through replacements: a level that goes up and stays up, or another serial.
//!
//! Sensors jitter, devices that start answer 0, and a door that was opened makes a cartridge absent for a
//! reading. So a jump of a level counts only when the next reading confirms it, and a level that falls in
//! one reading and is back in the next has not changed. Two readings far below confirm a fall, however far it went on
//! between them: whoever is read once a day may use so much.

use quire_proto::reading::{Supply, SupplyState, percent};
use quire_proto::store::{EventRow, Part};

use crate::upgrade;

/// Points of a hundred between two readings that are a jump; toner gauges of the recordings go up and down
/// by at most 10 as they are shaken.
const JUMP: u32 = 20;

/// Supplies that are followed: the fullest device in the recordings has 30.
const MOST: usize = 64;

/// Brings the parts of a device to a later reading of it, by the rules of a cluster `version`; answers what happened,
/// without device and node.
pub(crate) fn follow(parts: &mut Vec<Part>, supplies: &[Supply], at_ms: u64, version: u32) -> Vec<EventRow> {
    let mut events = Vec::new();
    for supply in supplies {
        let level = level(supply);
        let state = SupplyState::ALL.iter().position(|state| *state == supply.state).unwrap_or(0) as u32;
        let seen =
            Part { index: supply.index, name: supply.name.to_string(), level, state, ..Part::default() };
        let room = parts.len() < MOST;
        match parts.iter_mut().find(|part| part.index == supply.index) {
            Some(part) => events.extend(step(part, seen, at_ms, version)),
            None if room => parts.push(seen),
            None => {}
        }
    }
    events
}

fn level(supply: &Supply) -> Option<u32> {
    let own = supply.percent.or_else(|| percent(supply.level?, supply.max?));
    own.map(u32::from)
}

fn step(part: &mut Part, seen: Part, at_ms: u64, version: u32) -> Option<EventRow> {
    let new_serial = serial_in(&part.name).zip(serial_in(&seen.name)).is_some_and(|(old, new)| old != new);
    let before = part.level;
    let jumped = match (part.level, seen.level) {
        (Some(known), Some(now)) => known.abs_diff(now) >= JUMP,
        (None, None) => emptied(part.state) != emptied(seen.state),
        _ => false,
    };
    if new_serial {
        take(part, seen);
        return replaced(part, before, at_ms);
    }
    part.name.clone_from(&seen.name);
    if !jumped {
        (part.seen_level, part.seen_at_ms) = (None, 0);
        part.state = seen.state;
        // A gauge that creeps up by jitter stays at its lowest, or jumps could hide behind it.
        part.level =
            part.level.zip(seen.level).map(|(known, now)| known.min(now)).or(seen.level).or(part.level);
        return None;
    }
    let up = match (part.level, seen.level) {
        (Some(known), Some(now)) => now > known,
        _ => emptied(part.state),
    };
    let confirmed = part.seen_at_ms > 0
        && match (part.seen_level, seen.level) {
            (Some(first), Some(now)) => {
                let fell = |level: u32| part.level.is_some_and(|known| level + JUMP <= known);
                let falls = version >= upgrade::SUPPLY_FALLS && fell(first) && fell(now);
                first.abs_diff(now) < JUMP || (falls && now < first)
            }
            (None, None) => true,
            _ => false,
        };
    if !confirmed {
        (part.seen_level, part.seen_at_ms) = (seen.level, at_ms);
        return None;
    }
    let since = part.seen_at_ms;
    take(part, seen);
    if up { replaced(part, before, since) } else { None }
}

fn emptied(state: u32) -> bool {
    let state = SupplyState::ALL.get(state as usize);
    matches!(state, Some(SupplyState::Empty | SupplyState::Low))
}

fn take(part: &mut Part, seen: Part) {
    *part = Part { replaced_at_ms: part.replaced_at_ms, ..seen };
}

fn replaced(part: &mut Part, before: Option<u32>, at_ms: u64) -> Option<EventRow> {
    part.replaced_at_ms = at_ms;
    Some(EventRow {
        at_ms,
        kind: "supply-replaced".to_owned(),
        field: format!("supplies.{}", part.index),
        before: before.map(u64::from),
        after: part.level.map(u64::from),
        what: format!("{} was replaced", part.name),
        ..EventRow::default()
    })
}

/// The serial number that some makers write into a supply's description: `Black Toner, S/N:CRUM-120308112`.
fn serial_in(name: &str) -> Option<&str> {
    let (_, behind) = ["S/N:", "S/N ", "SN:", ";SN"].iter().find_map(|mark| name.split_once(mark))?;
    let serial = behind.split([',', ';', ' ']).find(|word| !word.is_empty())?;
    (serial.len() >= 4).then_some(serial)
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::reading::SupplyKind;

    fn toner(name: &str, percent: Option<u8>, state: SupplyState) -> Supply {
        Supply {
            index: 1,
            name: name.into(),
            kind: SupplyKind::Toner,
            color: None,
            level: None,
            max: None,
            unit: None,
            percent,
            state,
        }
    }

    /// Follows percentages, one an hour; answers when the supply was replaced, in hours.
    fn follow_levels(levels: &[u8]) -> Vec<u64> {
        follow_by(upgrade::SUPPLY_FALLS, levels)
    }

    fn follow_by(version: u32, levels: &[u8]) -> Vec<u64> {
        let mut parts = Vec::new();
        let mut at = 0;
        let mut replaced = Vec::new();
        for level in levels {
            at += 1;
            let supply = toner("Black", Some(*level), SupplyState::Ok);
            let events = follow(&mut parts, &[supply], at, version);
            replaced.extend(events.into_iter().map(|event| event.at_ms));
        }
        replaced
    }

    #[test]
    fn a_level_that_goes_up_and_stays_is_a_replacement() {
        assert_eq!(follow_levels(&[12, 8, 100, 99]), [3], "when it was first seen");
        assert_eq!(follow_levels(&[12, 8, 100]), [0; 0], "one reading is no proof");
    }

    #[test]
    fn flapping_is_none() {
        assert_eq!(follow_levels(&[80, 0, 80, 79, 0, 79]), [0; 0], "a device that starts");
        assert_eq!(follow_levels(&[10, 100, 10, 100, 10]), [0; 0]);
        assert_eq!(follow_levels(&[40, 48, 41, 50, 42, 58, 43]), [0; 0], "a gauge that jitters");
        assert_eq!(
            follow_levels(&[80, 50, 49, 30, 29, 100, 100]),
            [6],
            "it falls fast, and is then replaced"
        );
    }

    #[test]
    fn a_level_that_falls_far_with_every_reading_is_followed() {
        assert_eq!(follow_levels(&[90, 65, 40, 15, 100, 100]), [5]);
        assert_eq!(follow_levels(&[80, 0, 40, 80, 80]), [0; 0], "what rises again was no fall");
        assert_eq!(
            follow_by(upgrade::SUPPLY_FALLS - 1, &[90, 65, 40, 15, 100, 100]),
            [0; 0],
            "in older releases"
        );
    }

    #[test]
    fn another_serial_is_a_replacement_at_once() {
        let mut parts = Vec::new();
        follow(&mut parts, &[toner("Toner S/N:CRUM-1203", Some(60), SupplyState::Ok)], 1, 3);
        let events = follow(&mut parts, &[toner("Toner S/N:CRUM-9999", Some(65), SupplyState::Ok)], 2, 3);
        assert_eq!((events.len(), parts[0].replaced_at_ms), (1, 2));
    }

    #[test]
    fn states_alone_tell_too() {
        let mut parts = Vec::new();
        let mut kinds = Vec::new();
        let states =
            [SupplyState::Ok, SupplyState::Empty, SupplyState::Empty, SupplyState::Ok, SupplyState::Ok];
        for (at, state) in (1..).zip(states) {
            let events = follow(&mut parts, &[toner("Black", None, state)], at, upgrade::SUPPLY_FALLS);
            kinds.extend(events.into_iter().map(|event| event.at_ms));
        }
        assert_eq!(kinds, [4]);
    }
}
