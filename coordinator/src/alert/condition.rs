//! Conditions of alerts: read once, checked against the fields that there are, and judged in three values.
//!
//! A condition knows true, false and unknown (`None`), by Kleene's rules: what depends on a value that nobody knows is
//! unknown, unless the rest decides. There are no loops, calls or arithmetic, so judging costs no more than its length.

use super::field::{DeviceField, Field, Kind, Scope, Value};
use super::lexer::{Token, tokens};
use crate::settings::in_words;

pub use super::lexer::Mistake;

/// Longest condition, in characters; those that people write have about 60.
const LONGEST: usize = 1_000;
/// Parentheses and `!` within each other.
const DEEPEST: usize = 32;

/// What must hold for an alert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    expr: Expr,
    scope: Scope,
    /// Each once, in the order of the text.
    fields: Vec<Field>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    All(Vec<Expr>),
    Any(Vec<Expr>),
    Not(Box<Expr>),
    Is(Field),
    Compare(Field, Op, Operand),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Equal,
    Unequal,
    Less,
    AtMost,
    More,
    AtLeast,
    Contains,
}

impl Op {
    /// The same with both sides changed over.
    fn flipped(self) -> Op {
        match self {
            Op::Less => Op::More,
            Op::AtMost => Op::AtLeast,
            Op::More => Op::Less,
            Op::AtLeast => Op::AtMost,
            Op::Equal => Op::Equal,
            Op::Unequal => Op::Unequal,
            Op::Contains => Op::Contains,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operand {
    Field(Field),
    Truth(bool),
    Number(u64),
    Span(u64),
    Text(String),
}

impl Operand {
    fn kind(&self) -> Kind {
        match self {
            Operand::Field(field) => field.kind(),
            Operand::Truth(_) => Kind::Truth,
            Operand::Number(_) => Kind::Number,
            Operand::Span(_) => Kind::Span,
            Operand::Text(_) => Kind::Text,
        }
    }
}

impl Condition {
    /// Reads a condition such as `supply.kind == "toner" && supply.percent < 15`.
    ///
    /// # Errors
    /// Names the place, what is wrong there, and what to write.
    pub fn parse(text: &str) -> Result<Condition, Mistake> {
        if text.chars().count() > LONGEST {
            return Err(Mistake {
                at: LONGEST,
                what: format!("a condition has {LONGEST} characters at most"),
            });
        }
        let mut parser = Parser { tokens: tokens(text)?, next: 0, end: text.chars().count() + 1, depth: 0 };
        let mut found = Vec::new();
        let expr = parser.any(&mut found)?;
        if let Some((at, token)) = parser.tokens.get(parser.next) {
            return Err(Mistake {
                at: *at,
                what: format!("{token} is not expected here: join conditions by && or ||"),
            });
        }
        let (mut scope, mut fields): (Option<(Scope, Field)>, Vec<Field>) = (None, Vec::new());
        for (at, field) in found {
            scope = match scope {
                None => Some((field.scope(), field)),
                Some((before, first)) => match before.join(field.scope()) {
                    Some(joined) => Some((joined, first)),
                    None => return Err(two_scopes(at, first, field)),
                },
            };
            if !fields.contains(&field) {
                fields.push(field);
            }
        }
        let Some((scope, _)) = scope else {
            return Err(Mistake { at: 1, what: format!("names no field: there are {}", names(None)) });
        };
        Ok(Condition { expr, scope, fields })
    }

    /// What it looks at, one by one.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// True where the passing of time alone may change it.
    pub fn ages(&self) -> bool {
        self.fields.contains(&Field::Device(DeviceField::SilentFor))
    }

    /// Whether it holds; `None` where that is not known.
    pub fn holds<'v>(&self, value: &dyn Fn(Field) -> Value<'v>) -> Option<bool> {
        judge(&self.expr, value)
    }

    /// The values that decide, for people: `supply.kind toner, supply.percent 4`.
    pub fn values<'v>(&self, value: &dyn Fn(Field) -> Value<'v>) -> String {
        let told = self.fields.iter().map(|field| match (field.kind(), value(*field)) {
            (Kind::Span, Value::Number(ms)) => format!("{} {}", field.name(), in_words(ms / 1_000 * 1_000)),
            (_, value) => format!("{} {value}", field.name()),
        });
        told.collect::<Vec<_>>().join(", ")
    }
}

fn two_scopes(at: usize, first: Field, other: Field) -> Mistake {
    let what = format!(
        "`{}` is told of {}, `{}` of {}: write two rules",
        first.name(),
        first.scope().word(),
        other.name(),
        other.scope().word()
    );
    Mistake { at, what }
}

/// Those with the same first word as `near`, else all.
fn names(near: Option<&str>) -> String {
    let group = |name: &str| name.split('.').next().unwrap_or_default().to_owned();
    let all = || Field::ALL.iter().map(|field| field.name());
    let alike: Vec<&str> = all().filter(|name| near.is_some_and(|near| group(near) == group(name))).collect();
    if alike.is_empty() { all().collect::<Vec<_>>().join(", ") } else { alike.join(", ") }
}

struct Parser {
    tokens: Vec<(usize, Token)>,
    next: usize,
    /// Where the text ends.
    end: usize,
    depth: usize,
}

/// Fields with their places, as they come.
type Found = Vec<(usize, Field)>;

impl Parser {
    fn sign(&mut self, sign: &str) -> bool {
        let is = matches!(self.tokens.get(self.next), Some((_, Token::Sign(found))) if *found == sign);
        self.next += usize::from(is);
        is
    }

    fn at(&self) -> usize {
        self.tokens.get(self.next).map_or(self.end, |(at, _)| *at)
    }

    fn any(&mut self, found: &mut Found) -> Result<Expr, Mistake> {
        let mut parts = vec![self.all(found)?];
        while self.sign("||") {
            parts.push(self.all(found)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::Any(parts) })
    }

    fn all(&mut self, found: &mut Found) -> Result<Expr, Mistake> {
        let mut parts = vec![self.one(found)?];
        while self.sign("&&") {
            parts.push(self.one(found)?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { Expr::All(parts) })
    }

    fn one(&mut self, found: &mut Found) -> Result<Expr, Mistake> {
        let at = self.at();
        if self.depth >= DEEPEST {
            return Err(Mistake {
                at,
                what: format!("more than {DEEPEST} parentheses and `!` within each other"),
            });
        }
        self.depth += 1;
        let expr = if self.sign("!") {
            Expr::Not(Box::new(self.one(found)?))
        } else if self.sign("(") {
            let inner = self.any(found)?;
            if !self.sign(")") {
                return Err(Mistake {
                    at: self.at(),
                    what: "the parenthesis is not closed: write )".to_owned(),
                });
            }
            inner
        } else {
            self.comparison(found)?
        };
        self.depth -= 1;
        Ok(expr)
    }

    fn comparison(&mut self, found: &mut Found) -> Result<Expr, Mistake> {
        let (left_at, left) = self.operand(found)?;
        let at = self.at();
        let op = match self.tokens.get(self.next) {
            Some((_, Token::Sign(sign))) => match *sign {
                "==" => Op::Equal,
                "!=" => Op::Unequal,
                "<" => Op::Less,
                "<=" => Op::AtMost,
                ">" => Op::More,
                ">=" => Op::AtLeast,
                _ => return alone(left_at, left),
            },
            Some((_, Token::Name(name))) if name == "contains" || name == "in" => Op::Contains,
            Some(_) | None => return alone(left_at, left),
        };
        let turned = matches!(self.tokens.get(self.next), Some((_, Token::Name(name))) if name == "in");
        self.next += 1;
        let (right_at, right) = self.operand(found)?;
        match turned {
            true => checked(at, (right_at, right), op, (left_at, left)),
            false => checked(at, (left_at, left), op, (right_at, right)),
        }
    }

    fn operand(&mut self, found: &mut Found) -> Result<(usize, Operand), Mistake> {
        let wanted = "expected a field such as supply.percent, or a value";
        let Some((at, token)) = self.tokens.get(self.next).cloned() else {
            return Err(Mistake { at: self.end, what: format!("ends too early: {wanted}") });
        };
        self.next += 1;
        let operand = match token {
            Token::Text(text) => Operand::Text(text),
            Token::Number(number) => Operand::Number(number),
            Token::Span(ms) => Operand::Span(ms),
            Token::Sign(sign) => return Err(Mistake { at, what: format!("found `{sign}`: {wanted}") }),
            Token::Name(name) => match name.as_str() {
                "true" => Operand::Truth(true),
                "false" => Operand::Truth(false),
                "and" => return Err(Mistake { at, what: "write && for and".to_owned() }),
                "or" => return Err(Mistake { at, what: "write || for or".to_owned() }),
                "not" => return Err(Mistake { at, what: "write ! for not".to_owned() }),
                name => match Field::by_name(name) {
                    Some(field) => {
                        found.push((at, field));
                        Operand::Field(field)
                    }
                    None => {
                        let what = format!("there is no field `{name}`: there are {}", names(Some(name)));
                        return Err(Mistake { at, what });
                    }
                },
            },
        };
        Ok((at, operand))
    }
}

/// A field that stands alone must be true or false.
fn alone(at: usize, operand: Operand) -> Result<Expr, Mistake> {
    match operand {
        Operand::Field(field) if field.kind() == Kind::Truth => Ok(Expr::Is(field)),
        Operand::Field(field) => {
            let what =
                format!("`{}` is compared with nothing: it is {}", field.name(), field.kind().described());
            Err(Mistake { at, what })
        }
        Operand::Truth(_) | Operand::Number(_) | Operand::Span(_) | Operand::Text(_) => {
            Err(Mistake { at, what: "a value says nothing alone: compare a field with it".to_owned() })
        }
    }
}

/// Puts the field to the left and checks that both sides and the operator fit.
fn checked(
    at: usize,
    (left_at, left): (usize, Operand),
    op: Op,
    (right_at, right): (usize, Operand),
) -> Result<Expr, Mistake> {
    let (field, op, (with_at, with)) = match (left, right) {
        (Operand::Field(field), with) => (field, op, (right_at, with)),
        (with, Operand::Field(field)) if op != Op::Contains => (field, op.flipped(), (left_at, with)),
        _ => {
            let what = "two values are always the same: compare a field with a value".to_owned();
            return Err(Mistake { at: left_at, what });
        }
    };
    let (name, kind, other) = (field.name(), field.kind(), with.kind());
    let textual = |kind| matches!(kind, Kind::Text | Kind::Word);
    let wrong = match op {
        Op::Contains if matches!(kind, Kind::Text | Kind::Words) => None,
        Op::Contains => Some(format!("contains nothing: compare it by ==, it is {}", kind.described())),
        Op::Equal | Op::Unequal if kind == Kind::Words => Some(format!("is {}", kind.described())),
        Op::Equal | Op::Unequal => None,
        Op::Less | Op::AtMost | Op::More | Op::AtLeast if matches!(kind, Kind::Number | Kind::Span) => None,
        Op::Less | Op::AtMost | Op::More | Op::AtLeast => {
            Some("has no order: compare it by == or !=".to_owned())
        }
    };
    if let Some(why) = wrong {
        return Err(Mistake { at, what: format!("`{name}` {why}") });
    }
    let fits = match op {
        Op::Contains => textual(other),
        Op::Equal | Op::Unequal | Op::Less | Op::AtMost | Op::More | Op::AtLeast => {
            kind == other || (textual(kind) && textual(other))
        }
    };
    if !fits {
        return Err(Mistake { at: with_at, what: format!("`{name}` is {}", kind.described()) });
    }
    if let (Operand::Text(word), Some(words)) = (&with, field.words())
        && !words.contains(&word.as_str())
    {
        let what = format!("`{name}` is never \"{word}\": it is one of {}", words.join(", "));
        return Err(Mistake { at: with_at, what });
    }
    Ok(Expr::Compare(field, op, with))
}

fn judge<'v>(expr: &Expr, value: &dyn Fn(Field) -> Value<'v>) -> Option<bool> {
    match expr {
        Expr::All(parts) => decided(parts, value, false),
        Expr::Any(parts) => decided(parts, value, true),
        Expr::Not(inner) => judge(inner, value).map(|truth| !truth),
        Expr::Is(field) => {
            if let Value::Truth(truth) = value(*field) {
                Some(truth)
            } else {
                None
            }
        }
        Expr::Compare(field, op, with) => {
            let with = match with {
                Operand::Field(other) => value(*other),
                Operand::Truth(truth) => Value::Truth(*truth),
                Operand::Number(number) | Operand::Span(number) => Value::Number(*number),
                Operand::Text(text) => Value::Text(text.as_str().into()),
            };
            compare(&value(*field), *op, &with)
        }
    }
}

/// One part that is `by` decides; else one that is unknown leaves it open.
fn decided<'v>(parts: &[Expr], value: &dyn Fn(Field) -> Value<'v>, by: bool) -> Option<bool> {
    let mut sure = true;
    for part in parts {
        match judge(part, value) {
            Some(truth) if truth == by => return Some(by),
            Some(_) => {}
            None => sure = false,
        }
    }
    sure.then_some(!by)
}

fn compare(value: &Value<'_>, op: Op, with: &Value<'_>) -> Option<bool> {
    match (value, with) {
        (Value::Number(a), Value::Number(b)) => Some(match op {
            Op::Equal => a == b,
            Op::Unequal => a != b,
            Op::Less => a < b,
            Op::AtMost => a <= b,
            Op::More => a > b,
            Op::AtLeast => a >= b,
            Op::Contains => return None,
        }),
        (Value::Truth(a), Value::Truth(b)) => equal(Some(a == b), op),
        (Value::Words(all), Value::Text(one)) => Some(all.contains(&one.as_ref())),
        (Value::Text(a), Value::Text(b)) if op == Op::Contains => {
            Some(a.to_lowercase().contains(&b.to_lowercase()))
        }
        (Value::Text(a), Value::Text(b)) => equal(Some(a == b), op),
        (Value::Word(word, telling), Value::Text(text)) | (Value::Text(text), Value::Word(word, telling)) => {
            // A word that tells nothing rules out no other.
            equal(if *word == text.as_ref() { Some(true) } else { telling.then_some(false) }, op)
        }
        (Value::Word(a, _), Value::Word(b, _)) => equal(Some(a == b), op),
        _ => None,
    }
}

fn equal(same: Option<bool>, op: Op) -> Option<bool> {
    same.map(|same| if op == Op::Unequal { !same } else { same })
}

#[cfg(test)]
#[path = "condition_tests.rs"]
mod tests;
