//! prtAlertTable (RFC 3805 section 2.2.13 and its textual conventions): what a printer itself calls wrong, as
//! conditions beside the bits of hrPrinterDetectedErrorState.
//!
//! A row counts by its code alone, or by its code and its group; descriptions are for people and never interpreted. What
//! a code does not clearly say is no condition.

use quire_proto::oid::Oid;
use quire_proto::reading::{Condition, Reading, Supply, SupplyKind};

use super::answers::{Answers, has_value, number};
use super::mib;
use crate::snmp::{Value, VarBind};

/// Most rows that are read. The most in our captures are 4; a copier with everything open and empty has about a dozen.
pub(super) const ROWS: u16 = 16;
/// Rows that one question watches beside a device's counters, at about 40 octets each; more are read anew each time.
pub(super) const WATCHED: usize = 12;

/// The columns that are read of every row, in their order.
pub(super) const COLUMNS: [&[u32]; 4] =
    [mib::ALERT_SEVERITY, mib::ALERT_GROUP, mib::ALERT_GROUP_INDEX, mib::ALERT_CODE];

/// What the table said when it was last read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Alerts {
    /// prtAlertCode of every row. An index is not used again (RFC 3805 prtAlertIndex), so where these are the same, the
    /// table is.
    codes: Vec<(Oid, Value)>,
    /// What they mean, each condition once, with the row that said it first.
    conditions: Vec<(Condition, Oid)>,
}

impl Alerts {
    /// What the rows mean; `supplies`: those of the same device, of which an alert may speak by index; `own`: its
    /// hrDeviceIndex where there are several.
    pub(super) fn of(answers: &Answers, supplies: &[Supply], own: Option<u32>) -> Alerts {
        let rows = answers.rows(mib::ALERT_CODE);
        let rows: Vec<Row> = rows
            .filter(|(index, _, _)| own.is_none_or(|own| index.first() == Some(&own)))
            .take(usize::from(ROWS))
            .filter_map(|(index, oid, code)| Row::of(answers, index, oid, code))
            .collect();
        let codes = rows.iter().map(|row| (row.oid.clone(), Value::Integer(row.code))).collect();
        let mut conditions: Vec<(Condition, Oid)> = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let over = rows[at + 1..].iter().any(|later| later.ends(row));
            for condition in row.conditions(supplies).into_iter().filter(|_| !over) {
                if !conditions.iter().any(|(known, _)| *known == condition) {
                    conditions.push((condition, row.oid.clone()));
                }
            }
        }
        Alerts { codes, conditions }
    }

    /// Of a table without a row.
    pub(super) fn none() -> &'static Alerts {
        static NONE: Alerts = Alerts { codes: Vec::new(), conditions: Vec::new() };
        &NONE
    }

    /// True when the table had no row.
    pub(super) fn is_empty(&self) -> bool {
        self.codes.is_empty()
    }

    /// The names whose successors tell whether the table is still the same; none where they are too many.
    pub(super) fn watch(&self) -> impl Iterator<Item = Oid> {
        let rows = self.codes.iter().map(|(oid, _)| oid.clone());
        std::iter::once(mib::oid(mib::ALERT_CODE)).chain(rows).take(self.watched())
    }

    /// How many names that are.
    pub(super) fn watched(&self) -> usize {
        if self.codes.len() <= WATCHED { self.codes.len() + 1 } else { 0 }
    }

    /// True when the successors of [`Alerts::watch`] are the rows that are known, and then something behind them.
    pub(super) fn are(&self, successors: &[VarBind]) -> bool {
        let same = |(known, came): (&(Oid, Value), &VarBind)| {
            known.0 == came.oid && number(&known.1) == number(&came.value)
        };
        let behind = successors.get(self.codes.len());
        successors.len() == self.codes.len() + 1
            && self.codes.iter().zip(successors).all(same)
            && behind
                .is_some_and(|last| !(has_value(&last.value) && last.oid.arcs().starts_with(mib::ALERT_CODE)))
    }

    /// Adds what the bits of hrPrinterDetectedErrorState did not say already.
    pub(super) fn join(&self, reading: &mut Reading) {
        let mut sources: Vec<String> = reading.sources.get("conditions").cloned().into_iter().collect();
        for (condition, oid) in &self.conditions {
            if reading.conditions.contains(condition) {
                continue;
            }
            reading.conditions.push(*condition);
            let source = oid.to_string();
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        reading.conditions.sort_unstable();
        // Touched, the sources would be this reading's own, and copied for it.
        if self.conditions.is_empty() || sources.is_empty() {
            return;
        }
        reading.sources.insert("conditions".to_owned(), sources.join("+"));
    }
}

/// One row of the table.
struct Row {
    oid: Oid,
    severity: Option<i64>,
    group: Option<i64>,
    /// The row of that group's table.
    part: Option<i64>,
    code: i64,
}

/// PrtAlertSeverityLevelTC critical: printing has stopped for it.
const CRITICAL: i64 = 3;

/// PrtAlertGroupTC.
const GENERAL_PRINTER: i64 = 5;
const COVER: i64 = 6;
const INPUT: i64 = 8;
const OUTPUT: i64 = 9;
const MARKER: i64 = 10;
const MARKER_SUPPLIES: i64 = 11;
const MEDIA_PATH: i64 = 13;

impl Row {
    fn of(answers: &Answers, index: &[u32], oid: &Oid, code: &Value) -> Option<Row> {
        let cell = |root: &[u32]| answers.get(&mib::oid(root).child(index)).and_then(number);
        Some(Row {
            oid: oid.clone(),
            severity: cell(mib::ALERT_SEVERITY),
            group: cell(mib::ALERT_GROUP),
            part: cell(mib::ALERT_GROUP_INDEX),
            code: number(code)?,
        })
    }

    /// True when this row says that an earlier one's cover is closed again: devices that do not remove a warning when
    /// its cause is gone (RFC 3805 section 2.2.13.4, unary alerts) add such a row.
    fn ends(&self, earlier: &Row) -> bool {
        let closed = matches!((earlier.code, self.code), (3, 4) | (5, 6) | (18, 19) | (501, 502));
        closed && (self.group, self.part) == (earlier.group, earlier.part)
    }

    /// PrtAlertCodeTC as conditions.
    fn conditions(&self, supplies: &[Supply]) -> Vec<Condition> {
        let critical = self.severity == Some(CRITICAL);
        let empty_input = || match critical {
            true => vec![Condition::NoPaper, Condition::InputTrayEmpty],
            false => vec![Condition::InputTrayEmpty],
        };
        let one = match self.code {
            3 | 5 | 501 => Condition::DoorOpen,
            8 => Condition::Jammed,
            9..=18 => return self.of_subunit(supplies, &empty_input),
            22 if self.group == Some(GENERAL_PRINTER) => Condition::Offline,
            // The unit has failed: unrecoverable, its motor, its timing, its thermistor; the fuser's, too.
            30 | 33 | 37 | 38 | 1003 | 1004 if critical => Condition::ServiceRequested,
            801 => Condition::InputTrayMissing,
            807 => Condition::LowPaper,
            808 => return empty_input(),
            901 => Condition::OutputTrayMissing,
            902 => Condition::OutputNearFull,
            903 => Condition::OutputFull,
            1101..=1103 => Condition::NoToner,
            1104..=1106 => Condition::LowToner,
            1107 | 1108 => Condition::WasteNearFull,
            1109 | 1110 => Condition::WasteFull,
            1111 => Condition::DrumNearEnd,
            1112 => Condition::DrumEnd,
            1115 => Condition::MarkerSupplyMissing,
            _ => return Vec::new(),
        };
        vec![one]
    }

    /// The codes that all groups share: missing, near its end, at its end, almost empty, empty, almost full, full, at a
    /// limit, opened.
    fn of_subunit(&self, supplies: &[Supply], empty_input: &dyn Fn() -> Vec<Condition>) -> Vec<Condition> {
        let one = match (self.group, self.code) {
            (Some(INPUT), 9) => Condition::InputTrayMissing,
            (Some(INPUT), 12) => Condition::LowPaper,
            (Some(INPUT), 13) => return empty_input(),
            (Some(OUTPUT), 9) => Condition::OutputTrayMissing,
            (Some(OUTPUT), 14) => Condition::OutputNearFull,
            (Some(OUTPUT), 15) => Condition::OutputFull,
            (Some(MARKER_SUPPLIES), 9) => Condition::MarkerSupplyMissing,
            (Some(MARKER_SUPPLIES), code) => return self.of_supply(supplies, code),
            (Some(GENERAL_PRINTER | COVER | MARKER | MEDIA_PATH), 18) => Condition::DoorOpen,
            (_, _) => return Vec::new(),
        };
        vec![one]
    }

    /// What is said of a supply depends on what it is; of one that the device does not list nobody knows.
    fn of_supply(&self, supplies: &[Supply], code: i64) -> Vec<Condition> {
        let part = self.part.and_then(|part| u32::try_from(part).ok());
        let Some(supply) = supplies.iter().find(|supply| Some(supply.index) == part) else {
            return Vec::new();
        };
        let one = match (supply.kind, code) {
            (SupplyKind::Toner | SupplyKind::Ink, 10 | 12) => Condition::LowToner,
            (SupplyKind::Toner | SupplyKind::Ink, 11 | 13) => Condition::NoToner,
            (SupplyKind::Drum, 10) => Condition::DrumNearEnd,
            (SupplyKind::Drum, 11) => Condition::DrumEnd,
            (SupplyKind::WasteToner, 14) => Condition::WasteNearFull,
            (SupplyKind::WasteToner, 15) => Condition::WasteFull,
            (_, _) => return Vec::new(),
        };
        vec![one]
    }
}

#[cfg(test)]
mod tests {
    use super::super::responder::Responder;
    use quire_proto::reading::Via;

    const PRINTER: &str = "\
1.3.6.1.2.1.1.1.0|4|Test Printer
1.3.6.1.2.1.25.3.5.1.1.1|2|3
1.3.6.1.2.1.25.3.5.1.2.1|4x|20
1.3.6.1.2.1.43.10.2.1.4.1.1|65|1000
1.3.6.1.2.1.43.11.1.1.5.1.1|2|3
1.3.6.1.2.1.43.11.1.1.5.1.2|2|4
1.3.6.1.2.1.43.11.1.1.5.1.3|2|9
1.3.6.1.2.1.43.11.1.1.6.1.1|4|Black Toner
1.3.6.1.2.1.43.11.1.1.6.1.2|4|Waste Toner
1.3.6.1.2.1.43.11.1.1.6.1.3|4|Drum
";

    /// A printer with these rows of (index, severity, group, group index, code).
    fn with(rows: &[(u32, i64, i64, i64, i64)]) -> String {
        let mut text = PRINTER.to_owned();
        for column in [2, 4, 5, 7] {
            for (index, severity, group, part, code) in rows {
                let value = [*severity, 0, *group, *part, 0, *code][column - 2];
                text += &format!("1.3.6.1.2.1.43.18.1.1.{column}.1.{index}|2|{value}\n");
            }
        }
        text
    }

    fn words(rows: &[(u32, i64, i64, i64, i64)]) -> Vec<&'static str> {
        let reading = Responder::of(&with(rows)).read(Via::SnmpV2c, None).0.reading.unwrap();
        reading.conditions.iter().map(|condition| condition.word()).collect()
    }

    #[test]
    fn alerts_join_the_bits_once_each() {
        assert_eq!(words(&[]), ["low-toner"]);
        assert_eq!(words(&[(7, 4, 11, 1, 1104)]), ["low-toner"]);
        assert_eq!(
            words(&[(7, 3, 6, 1, 3), (9, 3, 13, 1, 8), (12, 4, 6, 2, 501)]),
            ["low-toner", "door-open", "jammed"]
        );
        let reading = Responder::of(&with(&[(7, 4, 11, 1, 1104), (8, 3, 13, 1, 8), (9, 3, 13, 2, 8)]));
        let reading = reading.read(Via::SnmpV2c, None).0.reading.unwrap();
        assert_eq!(
            reading.sources["conditions"], "1.3.6.1.2.1.25.3.5.1.2.1+1.3.6.1.2.1.43.18.1.1.7.1.8",
            "a row that adds nothing is no source"
        );
    }

    #[test]
    fn an_empty_tray_stops_the_printer_or_does_not() {
        assert_eq!(words(&[(1, 4, 8, 2, 808)]), ["low-toner", "input-tray-empty"]);
        assert_eq!(words(&[(1, 3, 8, 2, 808)]), ["no-paper", "low-toner", "input-tray-empty"]);
        assert_eq!(words(&[(1, 5, 8, 2, 12)]), ["low-paper", "low-toner"]);
    }

    #[test]
    fn a_code_that_all_groups_share_counts_by_its_group_and_part() {
        assert_eq!(words(&[(1, 5, 8, 1, 9)]), ["low-toner", "input-tray-missing"]);
        assert_eq!(words(&[(1, 5, 9, 1, 15)]), ["low-toner", "output-full"]);
        assert_eq!(words(&[(1, 5, 11, 1, 13)]), ["low-toner", "no-toner"]);
        assert_eq!(words(&[(1, 5, 11, 2, 15)]), ["low-toner", "waste-full"]);
        assert_eq!(words(&[(1, 5, 11, 3, 10)]), ["low-toner", "drum-near-end"]);
        // An empty drum, a part that is not listed, a full tray of paper, a warm-up: nothing that we have a word for.
        let nothing = [(1, 5, 11, 3, 13), (2, 5, 11, 9, 13), (3, 5, 8, 1, 15), (4, 5, 10, 1, 24)];
        assert_eq!(words(&nothing), ["low-toner"]);
        assert_eq!(words(&[(1, 1, 1, -1, 1), (2, 4, 5, 1, 503), (3, 0, 0, 0, 0)]), ["low-toner"]);
    }

    #[test]
    fn what_has_failed_wants_service_only_where_it_stops_the_printer() {
        assert_eq!(words(&[(1, 3, 10, 1, 1004)]), ["low-toner", "service-requested"]);
        assert_eq!(words(&[(1, 4, 10, 1, 1004)]), ["low-toner"]);
    }

    #[test]
    fn a_cover_that_was_closed_again_is_not_open() {
        assert_eq!(words(&[(1, 4, 6, 1, 3), (2, 4, 6, 1, 4)]), ["low-toner"]);
        assert_eq!(words(&[(1, 4, 6, 1, 3), (2, 4, 6, 2, 4)]), ["low-toner", "door-open"]);
        assert_eq!(words(&[(1, 4, 6, 1, 4), (2, 4, 6, 1, 3)]), ["low-toner", "door-open"]);
    }

    #[test]
    fn a_table_without_end_is_read_in_part() {
        let rows: Vec<(u32, i64, i64, i64, i64)> = (1..200).map(|n| (n, 3, 13, 1, 8)).collect();
        let (finished, cost) = Responder::of(&with(&rows)).read(Via::SnmpV2c, None);
        assert!(finished.complete && cost.packets < 12, "{} packets", cost.packets);
        assert_eq!(words(&rows), ["low-toner", "jammed"]);
    }
}
