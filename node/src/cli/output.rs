//! How results look: a table, JSON lines or CSV on stdout; complaints on stderr.

use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::presets;
use comfy_table::{ColumnConstraint, ContentArrangement, Table, Width};
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
pub(crate) fn list(format: Format, columns: &'static [Column], rows: &[Value]) -> io::Result<()> {
    let mut listing = Listing::new(format, columns)?;
    rows.iter().try_for_each(|row| listing.row(row))?;
    listing.end()
}

/// A listing that is printed while it comes in, however long it is.
pub(crate) struct Listing(Shape);

enum Shape {
    Lines(io::BufWriter<io::Stdout>),
    Csv(Box<csv::Writer<io::Stdout>>, &'static [Column]),
    Table(Blocks),
}

/// A table in blocks: columns are as wide as in the blocks before, or wider.
struct Blocks {
    columns: &'static [Column],
    rows: Vec<Vec<String>>,
    widths: Vec<u16>,
    headed: bool,
}

/// Rows of a table that are laid out together: some 300 KB.
const BLOCK: usize = 1_000;

impl Listing {
    pub(crate) fn new(format: Format, columns: &'static [Column]) -> io::Result<Listing> {
        Ok(Listing(match format {
            Format::Json => Shape::Lines(io::BufWriter::new(io::stdout())),
            Format::Csv => {
                let mut out = csv::Writer::from_writer(io::stdout());
                out.write_record(columns.iter().map(|(heading, _)| heading.to_lowercase()))?;
                Shape::Csv(Box::new(out), columns)
            }
            Format::Table => {
                let (rows, widths) = (Vec::new(), Vec::new());
                Shape::Table(Blocks { columns, rows, widths, headed: false })
            }
        }))
    }

    /// Takes a row as the node wrote it: one object, no line break in it.
    ///
    /// # Errors
    /// When it is none, or stdout is closed.
    pub(crate) fn line(&mut self, line: &[u8]) -> io::Result<()> {
        match &mut self.0 {
            Shape::Lines(out) => {
                out.write_all(line)?;
                out.write_all(b"\n")
            }
            Shape::Csv(..) | Shape::Table(_) => self.row(&serde_json::from_slice(line)?),
        }
    }

    /// Takes a row.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn row(&mut self, row: &Value) -> io::Result<()> {
        match &mut self.0 {
            Shape::Lines(out) => {
                serde_json::to_writer(&mut *out, row)?;
                out.write_all(b"\n")
            }
            Shape::Csv(out, columns) => {
                Ok(out.write_record(columns.iter().map(|(_, path)| cell(row, path)))?)
            }
            Shape::Table(blocks) => blocks.row(row),
        }
    }

    /// Prints what is left.
    ///
    /// # Errors
    /// When stdout is closed.
    pub(crate) fn end(self) -> io::Result<()> {
        match self.0 {
            Shape::Lines(mut out) => out.flush(),
            Shape::Csv(mut out, _) => out.flush(),
            Shape::Table(blocks) if blocks.rows.is_empty() && blocks.headed => Ok(()),
            Shape::Table(mut blocks) => blocks.print(),
        }
    }
}

impl Blocks {
    fn row(&mut self, row: &Value) -> io::Result<()> {
        self.rows.push(self.columns.iter().map(|(_, path)| cell(row, path)).collect());
        if self.rows.len() < BLOCK { Ok(()) } else { self.print() }
    }

    fn print(&mut self) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{}", self.layout())
    }

    fn layout(&mut self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        if !std::mem::replace(&mut self.headed, true) {
            table.set_header(self.columns.iter().map(|(heading, _)| *heading));
        }
        if io::stdout().is_terminal() {
            table.set_content_arrangement(ContentArrangement::Dynamic);
        }
        for row in self.rows.drain(..) {
            table.add_row(row);
        }
        let least = self.widths.iter().map(|width| ColumnConstraint::LowerBoundary(Width::Fixed(*width)));
        table.set_constraints(least.collect::<Vec<_>>());
        // A constraint counts the blanks beside the content.
        let widths = table.column_max_content_widths().into_iter().map(|width| width + 2);
        let before = std::mem::take(&mut self.widths).into_iter().chain(std::iter::repeat(0));
        self.widths = widths.zip(before).map(|(now, before)| now.max(before)).collect();
        table.trim_fmt()
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

/// Prints one object: as it is, as `text`, or as rows of name and value.
///
/// # Errors
/// When stdout is closed.
pub(crate) fn object(format: Format, value: &Value, text: &str) -> io::Result<()> {
    match format {
        Format::Json => lines(std::slice::from_ref(value)),
        Format::Csv => {
            let mut out = csv::Writer::from_writer(io::stdout());
            out.write_record(["name", "value"])?;
            let mut fields = Vec::new();
            flatten("", value, &mut fields);
            fields.iter().try_for_each(|field| out.write_record(field))?;
            out.flush()
        }
        Format::Table => line(text),
    }
}

/// Every value of an object with the path that [`cell`] finds it by, and the place in lists as a step of it.
fn flatten(path: &str, value: &Value, into: &mut Vec<[String; 2]>) {
    let step = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    match value {
        Value::Object(object) => object.iter().for_each(|(name, value)| flatten(&step(name), value, into)),
        Value::Array(items) => {
            (0..).zip(items).for_each(|(at, value): (u32, _)| flatten(&step(&at.to_string()), value, into));
        }
        Value::String(text) => into.push([path.to_owned(), printable(text)]),
        Value::Null => {}
        Value::Bool(_) | Value::Number(_) => into.push([path.to_owned(), value.to_string()]),
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

/// Prints a line beside the result, on stderr.
pub(crate) fn say(text: &str) {
    drop(writeln!(io::stderr().lock(), "{text}"));
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
    fn the_blocks_of_a_table_stand_below_each_other() {
        const COLUMNS: &[Column] = &[("NAME", "name"), ("TOTAL", "total")];
        let mut blocks = Blocks { columns: COLUMNS, rows: Vec::new(), widths: Vec::new(), headed: false };
        let row = |name: &str, total: u64| serde_json::json!({"name": name, "total": total});
        blocks.row(&row("a long name of a device", 1)).unwrap();
        let first = blocks.layout();
        blocks.row(&row("b", 2)).unwrap();
        let second = blocks.layout();
        let column = |text: &str, what: &str| text.lines().last().and_then(|line| line.find(what));
        assert_eq!(column(&first, "1"), column(&second, "2"), "{first}\n{second}");
        assert!(first.contains("NAME") && !second.contains("NAME"));
    }

    #[test]
    fn an_object_is_flattened_to_names_and_values() {
        let value = serde_json::json!({"a": {"b": 1, "c": null}, "list": [{"d": "x\ty"}, true]});
        let mut fields = Vec::new();
        flatten("", &value, &mut fields);
        let shown: Vec<String> = fields.iter().map(|field| field.join("=")).collect();
        assert_eq!(shown, ["a.b=1", "list.0.d=x y", "list.1=true"]);
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
