//! The replicated state machine: what each entry of the log does to the tables.
//!
//! Architecture Invariants: nothing but [`apply`] writes tables; it is a function of the tables, the
//! index and the command alone (the time comes in the command); a refusal is an outcome, an error
//! means that the store below is broken.

use quire_proto::store::{Command, Outcome};

use crate::tables::{Fault, Overlay};

/// Applies the log entry at `index`.
///
/// # Errors
/// Only when the store below fails; the node must then stop.
pub fn apply(tables: &mut Overlay<'_>, index: u64, command: &Command) -> Result<Outcome, Fault> {
    let _ = (tables, command);
    Ok(Outcome { index, result: None })
}
