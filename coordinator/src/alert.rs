//! Alerts: of what the rules of the settings hold, what is raised and cleared because of that, and who is still to be
//! told. The leader judges ([`Judge`], [`Watch`]) and proposes; `apply` alone writes.
//!
//! - A rule with a value that nobody knows neither raises nor clears: silence clears nothing.
//! - What is open follows from the last readings, not from who led when: a change names the row that it was judged by,
//!   and counts only if that is still the row, under the claim and the settings in force.
//! - Whom the leader told is committed, so that the next one tells nobody twice of what was acknowledged.
//! - Alerts that come and go are one episode with one id, and are told of ever more rarely ([`owed`]).

mod apply;
mod condition;
mod field;
mod judge;
mod lexer;
mod subject;

use quire_proto::id::Millis;
use quire_proto::store::AlertRow;

#[cfg(test)]
pub(crate) use apply::MOST;
pub(crate) use apply::{apply, tell_all, told};
pub use condition::{Condition, Mistake};
pub use field::{Field, Scope, Value};
pub use judge::{Judge, Verdict, Watch};

use crate::tables::{Fault, Read, ReadExt as _, Table};

/// Raised again so soon after it was cleared, an alert goes on under its id.
const SAME_EPISODE_MS: u64 = 3_600_000;

/// So many times it may be raised and cleared, each within [`SAME_EPISODE_MS`] of the one before, and everybody is told
/// at once: raised, cleared, and raised again.
const FREE_CHANGES: u32 = 3;
/// Behind that, between two notifications: doubled with every change.
const FIRST_PAUSE_MS: u64 = 60_000;
const LONGEST_PAUSE_MS: u64 = 3_600_000;

/// Key of an alert in [`Table::Alerts`].
fn key(open: bool, subject: &str, rule: &str) -> Vec<u8> {
    [if open { OPEN } else { CLEARED }, subject.as_bytes(), &[0], rule.as_bytes()].concat()
}

/// What keys of open and of cleared alerts begin with: listings have the open ones first.
const OPEN: &[u8] = b"0";
const CLEARED: &[u8] = b"1";

/// An alert, open or not.
///
/// # Errors
/// When the store fails or the row is damaged.
pub fn row(tables: &(impl Read + ?Sized), subject: &str, rule: &str) -> Result<Option<AlertRow>, Fault> {
    match tables.row(Table::Alerts, &key(true, subject, rule))? {
        Some(row) => Ok(Some(row)),
        None => tables.row(Table::Alerts, &key(false, subject, rule)),
    }
}

/// From when on a target may be told how the alert is now; `None` while it is owed nothing.
///
/// Told is who was told of the last change, whatever the state before was: of an earlier one nobody knows whether it
/// arrived. A target that the rule did not name when the alert was raised is told of open ones only.
pub fn owed(row: &AlertRow, target: &str) -> Option<Millis> {
    let Some(told) = row.deliveries.iter().find(|delivery| delivery.target == target) else {
        return row.open.then_some(Millis(row.changed_at_ms));
    };
    if told.serial == 0 {
        return Some(Millis(row.changed_at_ms));
    }
    (told.serial < row.serial).then(|| Millis(told.at_ms.saturating_add(pause_ms(row.changes))))
}

fn pause_ms(changes: u32) -> u64 {
    match changes.checked_sub(FREE_CHANGES + 1) {
        None => 0,
        Some(more) => FIRST_PAUSE_MS.saturating_mul(1 << more.min(16)).min(LONGEST_PAUSE_MS),
    }
}

/// By what a receiver knows a notification again: of one state of one alert, whoever sends it and however often.
pub fn notification_id(row: &AlertRow) -> String {
    format!("{}-{}", row.id, row.serial)
}
