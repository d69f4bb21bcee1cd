//! How results look: a table, JSON lines or CSV on stdout; complaints on stderr.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::presets;
use comfy_table::{ContentArrangement, Table};
use serde_json::Value;

/// How listings are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One object a line.
    Json,
    /// Comma-separated with a header.
    Csv,
}

/// A column of a table: its heading and the path of the value in the JSON object.
pub(crate) type Column = (&'static str, &'static str);

/// Prints a listing.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn list(format: Format, columns: &[Column], rows: &[Value]) -> io::Result<()> {
    match format {
        Format::Json => lines(rows),
        Format::Csv => csv(columns, rows),
        Format::Table => table(columns, rows),
    }
}

fn lines(rows: &[Value]) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for row in rows {
        serde_json::to_writer(&mut out, row)?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

fn csv(columns: &[Column], rows: &[Value]) -> io::Result<()> {
    let mut out = csv::Writer::from_writer(io::stdout().lock());
    out.write_record(columns.iter().map(|(heading, _)| heading.to_lowercase()))?;
    for row in rows {
        out.write_record(columns.iter().map(|(_, path)| cell(row, path)))?;
    }
    out.flush()
}

fn table(columns: &[Column], rows: &[Value]) -> io::Result<()> {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(columns.iter().map(|(heading, _)| *heading));
    if io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    for row in rows {
        table.add_row(columns.iter().map(|(_, path)| cell(row, path)));
    }
    writeln!(io::stdout().lock(), "{}", table.trim_fmt())
}

/// The text of the value at `path`, whose steps are joined by dots; empty where it is not known.
fn cell(row: &Value, path: &str) -> String {
    let value = path.split('.').try_fold(row, |value, step| value.get(step));
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => printable(text),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| item.as_str().map_or_else(|| item.to_string(), printable))
            .collect::<Vec<_>>()
            .join(" "),
        Some(other) => other.to_string(),
    }
}

/// What a device says may hold terminal escapes; they are not for the operator's terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Prints one object: as it is, or as lines of name and value.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn object(format: Format, value: &Value, text: &str) -> io::Result<()> {
    match format {
        Format::Json => lines(std::slice::from_ref(value)),
        Format::Table | Format::Csv => line(text),
    }
}

/// Prints a line of text.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// True when the only trouble is that whoever read stdout has gone.
pub(crate) fn reader_left(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
    kind == Some(io::ErrorKind::BrokenPipe)
}

/// Says on stderr what went wrong, the causes behind it included.
pub(crate) fn complain(error: &anyhow::Error) {
    // Nothing is left to tell when the terminal is gone.
    drop(writeln!(io::stderr().lock(), "quire: {error:#}"));
}

/// Warns on stderr.
pub(crate) fn warn(text: &str) {
    drop(writeln!(io::stderr().lock(), "quire: warning: {text}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_that_was_closed_is_no_failure_and_a_full_disk_is() {
        let trouble = |kind: io::ErrorKind| anyhow::Error::from(io::Error::from(kind));
        assert!(reader_left(&trouble(io::ErrorKind::BrokenPipe)));
        assert!(!reader_left(&trouble(io::ErrorKind::StorageFull)));
        assert!(!reader_left(&anyhow::anyhow!("something else")));
    }

    #[test]
    fn cells_follow_paths_and_leave_the_unknown_empty() {
        let row =
            serde_json::json!({"counters": {"total": 7}, "via": ["snmpv2c", "http"], "name": "a\u{1b}[2J"});
        assert_eq!(cell(&row, "counters.total"), "7");
        assert_eq!(cell(&row, "counters.mono"), "");
        assert_eq!(cell(&row, "via"), "snmpv2c http");
        assert_eq!(cell(&row, "name"), "a [2J");
    }
}
