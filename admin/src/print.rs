//! Prints lists: a table for people, one JSON object a line for programs, CSV for spreadsheets.

use std::io::{self, Write};

use anyhow::Context as _;
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use serde_json::Value;

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Table,
    /// One object a line.
    Json,
    /// With a head line.
    Csv,
}

/// The head of a column and where its value stands in the object (RFC 6901).
pub(crate) type Column = (&'static str, &'static str);

/// A list that is being printed; tables wait for the end, the others go out as they come.
pub(crate) struct Printer<W: Write> {
    columns: &'static [Column],
    out: Out<W>,
}

enum Out<W: Write> {
    Table(Table, W),
    Json(W),
    Csv(csv::Writer<W>),
}

impl<W: Write> Printer<W> {
    pub(crate) fn new(format: Format, columns: &'static [Column], mut out: W) -> anyhow::Result<Self> {
        let heads = columns.iter().map(|(head, _)| *head);
        let out = match format {
            Format::Table => {
                let mut table = Table::new();
                table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
                table.set_header(heads);
                Out::Table(table, out)
            }
            Format::Json => {
                out.flush()?;
                Out::Json(out)
            }
            Format::Csv => {
                let mut writer = csv::Writer::from_writer(out);
                writer.write_record(heads)?;
                Out::Csv(writer)
            }
        };
        Ok(Printer { columns, out })
    }

    pub(crate) fn line(&mut self, line: &impl Serialize) -> anyhow::Result<()> {
        if let Out::Json(out) = &mut self.out {
            serde_json::to_writer(&mut *out, line)?;
            return Ok(out.write_all(b"\n")?);
        }
        let value = serde_json::to_value(line).context("write a line")?;
        let cells =
            self.columns.iter().map(|(_, pointer)| value.pointer(pointer).map_or_else(String::new, cell));
        match &mut self.out {
            Out::Table(table, _) => {
                table.add_row(cells.map(|text| shown(&text)));
            }
            Out::Csv(writer) => writer.write_record(cells)?,
            Out::Json(_) => {}
        }
        Ok(())
    }

    pub(crate) fn finish(self) -> anyhow::Result<()> {
        match self.out {
            Out::Table(table, mut out) => {
                for line in table.lines() {
                    writeln!(out, "{}", line.trim_end())?;
                }
                out.flush()?;
            }
            Out::Json(mut out) => out.flush()?,
            Out::Csv(mut writer) => writer.flush()?,
        }
        Ok(())
    }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(values) if values.iter().all(Value::is_string) => {
            values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" ")
        }
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

/// What a device says about itself must not steer a terminal.
fn shown(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// True when the reader of stdout went away, as `head` does: no failure of ours.
pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>();
        let json = cause.downcast_ref::<serde_json::Error>().and_then(serde_json::Error::io_error_kind);
        let csv = cause.downcast_ref::<csv::Error>().map(csv::Error::kind);
        io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
            || json == Some(io::ErrorKind::BrokenPipe)
            || matches!(csv, Some(csv::ErrorKind::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[("NAME", "/name"), ("TOTAL", "/counters/total"), ("SUPPLIES", "/supplies")];

    fn printed(format: Format) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(format, COLUMNS, &mut out).unwrap();
        let line =
            serde_json::json!({"name": "a,\u{1b}[31m", "counters": {"total": 7}, "supplies": [{"x": 1}]});
        printer.line(&line).unwrap();
        printer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_format_shows_the_line() {
        assert!(printed(Format::Json).contains(r#""total":7"#));
        assert_eq!(printed(Format::Csv).lines().nth(1).unwrap(), "\"a,\u{1b}[31m\",7,\"[{\"\"x\"\":1}]\"");
        assert!(printed(Format::Table).contains('7'));
    }

    #[test]
    fn tables_hold_no_escape_sequences() {
        assert!(!printed(Format::Table).contains('\u{1b}'));
    }
}
