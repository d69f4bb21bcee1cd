//! What conditions say, what they refuse, and that unknown values decide nothing.

use proptest::prelude::*;

use super::*;
use crate::alert::field::{NodeField, SupplyField};

fn mistake(text: &str) -> String {
    Condition::parse(text).expect_err(text).to_string()
}

/// A black cartridge with 4 percent, on a device of which nothing else is known but that it jammed.
fn cartridge(field: Field) -> Value<'static> {
    match field {
        Field::Supply(SupplyField::Kind) => Value::Word("toner", true),
        Field::Supply(SupplyField::Percent) => Value::Number(4),
        Field::Supply(SupplyField::State) => Value::Word("unknown", false),
        Field::Supply(SupplyField::Name) => Value::Text("Black Cartridge".into()),
        Field::Device(DeviceField::SilentFor) => Value::Number(7_200_500),
        Field::Device(DeviceField::Conditions) => Value::Words(vec!["low-toner", "jammed"]),
        Field::Node(NodeField::Alive) => Value::Truth(false),
        _ => Value::Unknown,
    }
}

fn holds(text: &str) -> Option<bool> {
    Condition::parse(text).expect(text).holds(&cartridge)
}

#[test]
fn the_contracts_condition_holds() {
    let condition = Condition::parse(r#"supply.kind == "toner" && supply.percent < 15"#).unwrap();
    assert_eq!((condition.scope(), condition.ages()), (Scope::Supply, false));
    assert_eq!(condition.holds(&cartridge), Some(true));
    assert_eq!(condition.values(&cartridge), "supply.kind toner, supply.percent 4");
}

#[test]
fn every_operator_says_what_it_means() {
    for (text, wanted) in [
        ("supply.percent < 4", Some(false)),
        ("supply.percent <= 4", Some(true)),
        ("supply.percent >= 5", Some(false)),
        ("5 > supply.percent", Some(true)),
        ("4 <= supply.percent", Some(true)),
        ("supply.percent == 4", Some(true)),
        ("supply.percent != 4", Some(false)),
        ("!(supply.percent < 4)", Some(true)),
        ("supply.kind != 'ink'", Some(true)),
        ("supply.name contains 'CARTRIDGE'", Some(true)),
        ("supply.name == 'black cartridge'", Some(false)),
        ("conditions contains \"jammed\"", Some(true)),
        ("\"door-open\" in conditions", Some(false)),
        ("device.silent_for > 2h", Some(true)),
        ("device.silent_for > 1h90m", Some(false)),
        ("!node.alive", Some(true)),
        ("node.alive == false", Some(true)),
        ("supply.percent < 4 || supply.kind == 'toner' && supply.percent < 15", Some(true)),
        ("(supply.percent < 4 || supply.kind == 'toner') && supply.percent > 15", Some(false)),
    ] {
        assert_eq!(holds(text), wanted, "{text}");
    }
}

#[test]
fn what_is_not_known_decides_nothing() {
    for (text, wanted) in [
        ("device.model == 'M605'", None),
        ("device.model != 'M605'", None),
        ("!(counters.total > 5)", None),
        ("counters.total > counters.mono", None),
        ("counters.total > 5 && supply.percent > 50", Some(false)),
        ("counters.total > 5 && supply.percent < 50", None),
        ("counters.total > 5 || supply.percent < 50", Some(true)),
        ("counters.total > 5 || supply.percent > 50", None),
        // The device says that it does not know.
        ("supply.state == 'low'", None),
        ("supply.state != 'low'", None),
        ("supply.state == 'unknown'", Some(true)),
    ] {
        assert_eq!(holds(text), wanted, "{text}");
    }
}

#[test]
fn every_mistake_names_its_place_and_the_fix() {
    for (text, wanted) in [
        ("", "character 1: ends too early: expected a field"),
        (
            "supply.precent < 15",
            "character 1: there is no field `supply.precent`: there are supply.index, supply.name, ",
        ),
        ("supply.percent < 15 && toner", "character 24: there is no field `toner`: there are device.id, "),
        ("supply.percent = 15", "character 16: write == to compare"),
        ("supply.percent < \"15\"", "character 18: `supply.percent` is a number: write one without quotes"),
        ("supply.percent < 15%", "character 18: write 15 for 15 percent"),
        ("supply.percent < 12.5", "character 18: fractions are not known here"),
        ("supply.percent < -1", "character 18: numbers below zero"),
        ("supply.percent < 99999999999999999999", "character 18: `99999999999999999999` is too large"),
        (
            "supply.kind == \"tonner\"",
            "character 16: `supply.kind` is never \"tonner\": it is one of toner, ink, ",
        ),
        ("supply.kind < \"toner\"", "character 13: `supply.kind` has no order: compare it by == or !="),
        ("supply.kind contains \"toner\"", "character 13: `supply.kind` contains nothing: compare it by =="),
        (
            "conditions == \"jammed\"",
            "character 12: `conditions` is a list of words: write one in quotes behind `contains`",
        ),
        (
            "conditions contains \"jam\"",
            "character 21: `conditions` is never \"jam\": it is one of low-paper, ",
        ),
        (
            "device.silent_for > 3",
            "character 21: `device.silent_for` is a time: write one such as 30m, 2h or 3d",
        ),
        ("device.silent_for > 3 days", "character 21: `device.silent_for` is a time"),
        ("device.silent_for > 3x", "character 21: `3x` is not a duration"),
        ("supply.percent", "character 1: `supply.percent` is compared with nothing: it is a number"),
        ("15", "character 1: a value says nothing alone"),
        ("1 < 2", "character 1: two values are always the same"),
        ("true", "character 1: a value says nothing alone"),
        ("(supply.percent < 15", "character 21: the parenthesis is not closed"),
        ("supply.percent < 15)", "character 20: `)` is not expected here"),
        (
            "supply.percent < 15 and status == 'idle'",
            "character 21: `and` is not expected here: join conditions by &&",
        ),
        ("supply.percent < 15 & status == 'idle'", "character 21: write && for and"),
        ("not node.alive", "character 1: write ! for not"),
        ("supply.name == \"Black", "character 16: the text is not closed: write \" behind it"),
        ("supply.percent < 15; true", "character 20: `;` has no meaning here"),
        ("é", "character 1: `é` has no meaning here"),
        (
            "!node.alive && supply.percent < 3",
            "character 16: `node.alive` is told of nodes, `supply.percent` of supplies: write two rules",
        ),
    ] {
        let said = mistake(text);
        assert!(said.starts_with(wanted), "{text}\n  wanted {wanted}\n  got    {said}");
    }
    assert!(mistake(&"(".repeat(100)).contains("more than 32 parentheses"));
    assert!(mistake(&"supply.percent < 1 && ".repeat(99)).contains("1000 characters at most"));
}

#[test]
fn a_chain_of_any_length_is_flat() {
    let text = ["supply.percent<9"; 52].join("||");
    assert_eq!(holds(&text), Some(true));
}

#[test]
fn every_field_has_words_exactly_where_its_kind_says_so() {
    for field in Field::ALL {
        assert_eq!(
            field.words().is_some(),
            matches!(field.kind(), Kind::Word | Kind::Words),
            "{}",
            field.name()
        );
        assert_eq!(Field::by_name(field.name()), Some(*field));
    }
}

proptest! {
    /// Whatever is written, an answer comes, and a mistake names a place of the text.
    #[test]
    fn any_text_is_answered(text in "[a-z.!<>=&|() \"'0-9µ]{0,60}|\\PC{0,60}") {
        match Condition::parse(&text) {
            Ok(condition) => drop(condition.holds(&cartridge)),
            Err(mistake) => prop_assert!((1..=text.chars().count() + 1).contains(&mistake.at), "{}", mistake),
        }
    }

    /// Learning more never turns true into false or back.
    #[test]
    fn knowledge_only_decides_what_was_open(known in proptest::collection::vec(any::<bool>(), 4), which in 0usize..6) {
        let texts = [
            "supply.percent < 15 && supply.kind == 'toner'",
            "supply.percent < 15 || supply.level > 3",
            "!(supply.percent < 15 && supply.level > 3)",
            "(supply.max > supply.level || supply.kind != 'ink') && supply.percent != 4",
            "supply.level < supply.max && !(supply.percent > 90)",
            "supply.kind == 'ink' || !(supply.kind != 'toner')",
        ];
        let all = |field: Field| match field {
            Field::Supply(SupplyField::Percent) => Value::Number(4),
            Field::Supply(SupplyField::Level) => Value::Number(40),
            Field::Supply(SupplyField::Max) => Value::Number(1_000),
            Field::Supply(SupplyField::Kind) => Value::Word("toner", true),
            _ => Value::Unknown,
        };
        let order = [Field::Supply(SupplyField::Percent), Field::Supply(SupplyField::Level), Field::Supply(SupplyField::Max), Field::Supply(SupplyField::Kind)];
        let some = |field: Field| match order.iter().position(|known| *known == field) {
            Some(at) if known[at] => all(field),
            _ => Value::Unknown,
        };
        let condition = Condition::parse(texts[which]).unwrap();
        let (less, more) = (condition.holds(&some), condition.holds(&all));
        prop_assert!(less.is_none() || less == more, "{:?} then {:?}", less, more);
    }
}
