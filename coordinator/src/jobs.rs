//! The Web Admin's jobs that were done: a job that is sent again is answered again, not done again.

use quire_proto::store::JobRow;
use quire_proto::store::outcome::Result as Answer;

use crate::tables::{Fault, Overlay, ReadExt as _, Table};

/// Jobs remembered. The Web Admin sends a job again only until it has heard how it ended, at most 100 at a time.
const REMEMBERED: usize = 1_000;

/// What became of a job; `None` for what is none, or was not done yet.
pub(crate) fn done(tables: &Overlay<'_>, id: &str) -> Result<Option<Answer>, Fault> {
    if id.is_empty() {
        return Ok(None);
    }
    let row: Option<JobRow> = tables.row(Table::Jobs, id.as_bytes())?;
    Ok(row.map(|row| match row.rejected.as_str() {
        "" => Answer::Done(true),
        _ => Answer::Rejected(row.rejected),
    }))
}

/// Remembers how a job ended, and forgets the oldest.
pub(crate) fn note(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    id: &str,
    answer: &Answer,
) -> Result<(), Fault> {
    if id.is_empty() {
        return Ok(());
    }
    let rejected = if let Answer::Rejected(why) = answer { why.clone() } else { String::new() };
    let row = JobRow { id: id.to_owned(), index, at_ms, rejected };
    tables.put(Table::Jobs, id.as_bytes(), &row);
    let all: Vec<JobRow> = tables.all(Table::Jobs, &[])?;
    if all.len() > REMEMBERED
        && let Some(oldest) = all.iter().min_by_key(|row| row.index)
    {
        tables.delete(Table::Jobs, oldest.id.as_bytes());
    }
    Ok(())
}
