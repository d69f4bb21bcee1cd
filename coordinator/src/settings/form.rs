//! Reading TOML tables as forms: every key is asked for by name, what nobody asked for is a problem,
//! and every problem knows its line. Never quotes a value that may be a secret.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::RangeInclusive;

use toml::de::{DeTable, DeValue};

/// One thing that is wrong, and how to put it right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Counted from 1.
    pub line: usize,
    /// Dotted path, for example `snmp[2].auth_pass`; empty where the TOML itself is broken.
    pub key: String,
    /// What is wrong and what to write instead.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.key.as_str() {
            "" => write!(f, "line {}: {}", self.line, self.reason),
            key => write!(f, "line {}: {key}: {}", self.line, self.reason),
        }
    }
}

/// Collects the problems of one text.
pub(super) struct Problems<'t> {
    text: &'t str,
    found: RefCell<Vec<Problem>>,
}

impl<'t> Problems<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        Problems { text, found: RefCell::default() }
    }

    pub(super) fn add(&self, at: usize, key: &str, reason: impl fmt::Display) {
        let line = line_of(self.text, at);
        self.found.borrow_mut().push(Problem { line, key: key.to_owned(), reason: reason.to_string() });
    }

    /// In the order of the text.
    pub(super) fn into_sorted(self) -> Vec<Problem> {
        let mut found = self.found.into_inner();
        found.sort_by(|a, b| (a.line, &a.key).cmp(&(b.line, &b.key)));
        found
    }

    pub(super) fn line_of(&self, at: usize) -> usize {
        line_of(self.text, at)
    }
}

/// The line of an octet, counted from 1.
pub(super) fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|octet| *octet == b'\n').count() + 1
}

/// A table whose keys are taken out one by one.
pub(super) struct Form<'a> {
    pub(super) path: String,
    pub(super) at: usize,
    fields: BTreeMap<&'a str, Field<'a>>,
    problems: &'a Problems<'a>,
}

impl<'a> Form<'a> {
    pub(super) fn new(path: &str, at: usize, table: &'a DeTable<'a>, problems: &'a Problems<'a>) -> Self {
        let fields = table.iter().map(|(key, value)| {
            let name = key.get_ref().as_ref();
            let path = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            (
                name,
                Field {
                    path,
                    key_at: key.span().start,
                    at: value.span().start,
                    value: value.get_ref(),
                    problems,
                },
            )
        });
        Form { path: path.to_owned(), at, fields: fields.collect(), problems }
    }

    /// Takes a key out, if it is there.
    pub(super) fn take(&mut self, key: &str) -> Option<Field<'a>> {
        self.fields.remove(key)
    }

    /// Takes a key that must be there.
    pub(super) fn need(&mut self, key: &str, fix: &str) -> Option<Field<'a>> {
        let field = self.take(key);
        if field.is_none() {
            self.problems.add(self.at, &format!("{}.{key}", self.path), format_args!("is missing: {fix}"));
        }
        field
    }

    /// Takes a table that may be absent.
    pub(super) fn section(&mut self, key: &str) -> Option<Form<'a>> {
        self.take(key).and_then(|field| field.form())
    }

    /// Complains of everything that was not taken.
    pub(super) fn finish(self, known: &[&str]) {
        for field in self.fields.values() {
            self.problems.add(
                field.key_at,
                &field.path,
                format_args!("is unknown here: use {}", known.join(", ")),
            );
        }
    }
}

/// One value.
#[derive(Clone)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    key_at: usize,
    pub(super) at: usize,
    value: &'a DeValue<'a>,
    problems: &'a Problems<'a>,
}

impl<'a> Field<'a> {
    pub(super) fn bad(&self, reason: impl fmt::Display) {
        self.problems.add(self.at, &self.path, reason);
    }

    fn expected(&self, wanted: &str) {
        let found = match self.value {
            DeValue::String(_) => "a text",
            DeValue::Integer(_) => "a whole number",
            DeValue::Float(_) => "a fraction",
            DeValue::Boolean(_) => "true or false",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        self.bad(format_args!("expected {wanted}, found {found}"));
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    pub(super) fn text(&self, example: &str) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text.as_ref()),
            _ => {
                self.expected(&format!("a text in quotes such as {example}"));
                None
            }
        }
    }

    /// A text that `parse` understands; its error says what to write.
    pub(super) fn parsed<T, E: fmt::Display>(
        &self,
        example: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        parse(self.text(example)?).map_err(|reason| self.bad(reason)).ok()
    }

    pub(super) fn number(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let wanted = format!("a whole number from {} to {}", range.start(), range.end());
        let DeValue::Integer(number) = self.value else {
            self.expected(&wanted);
            return None;
        };
        let parsed = u32::from_str_radix(number.as_str(), number.radix()).ok().filter(|n| range.contains(n));
        if parsed.is_none() {
            self.bad(format_args!("expected {wanted}, found {number}"));
        }
        parsed
    }

    pub(super) fn boolean(&self) -> Option<bool> {
        match self.value {
            DeValue::Boolean(value) => Some(*value),
            _ => {
                self.expected("true or false");
                None
            }
        }
    }

    /// The items of a list, named `path[1]`, `path[2]` and so on.
    pub(super) fn list(&self, wanted: &str) -> Vec<Field<'a>> {
        let DeValue::Array(items) = self.value else {
            self.expected(wanted);
            return Vec::new();
        };
        let item = |(n, value): (usize, &'a toml::Spanned<DeValue<'a>>)| Field {
            path: format!("{}[{}]", self.path, n + 1),
            key_at: value.span().start,
            at: value.span().start,
            value: value.get_ref(),
            problems: self.problems,
        };
        items.iter().enumerate().map(item).collect()
    }

    pub(super) fn form(&self) -> Option<Form<'a>> {
        match self.value {
            DeValue::Table(table) => {
                Some(Form::new(&self.path, self.key_at.min(self.at), table, self.problems))
            }
            _ => {
                self.expected("a table");
                None
            }
        }
    }
}
