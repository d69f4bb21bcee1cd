//! Words of a condition: names, texts, numbers, times and signs, each with its place. Bounded by the text's length.

use std::fmt;

use crate::settings::duration_ms;

/// What is wrong with a condition, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("character {at}: {what}")]
pub struct Mistake {
    /// Counted from 1, in characters.
    pub at: usize,
    /// With what to write instead.
    pub what: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Name(String),
    Text(String),
    Number(u64),
    /// Milliseconds.
    Span(u64),
    Sign(&'static str),
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Name(name) => write!(f, "`{name}`"),
            Token::Text(text) => write!(f, "\"{text}\""),
            Token::Number(number) => write!(f, "`{number}`"),
            Token::Span(_) => f.write_str("a time"),
            Token::Sign(sign) => write!(f, "`{sign}`"),
        }
    }
}

/// Longer ones first.
const SIGNS: [&str; 11] = ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")"];

/// Takes a text apart.
pub(super) fn tokens(text: &str) -> Result<Vec<(usize, Token)>, Mistake> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut next = 0;
    while let Some(first) = chars.get(next).copied() {
        if first.is_whitespace() {
            next += 1;
            continue;
        }
        let (token, length) = match first {
            '"' | '\'' => quoted(&chars, next)?,
            '0'..='9' => number(&chars, next)?,
            first if first.is_ascii_alphabetic() || first == '_' => {
                let name = run(&chars, next, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.'));
                let length = name.len();
                (Token::Name(name), length)
            }
            other => sign(&chars, next, other)?,
        };
        tokens.push((next + 1, token));
        next += length;
    }
    Ok(tokens)
}

/// The characters from `from` on that are all `fit`.
fn run(chars: &[char], from: usize, fit: impl Fn(&char) -> bool) -> String {
    chars[from..].iter().take_while(|c| fit(c)).collect()
}

fn quoted(chars: &[char], from: usize) -> Result<(Token, usize), Mistake> {
    let text = run(chars, from + 1, |c| *c != chars[from]);
    let length = text.chars().count();
    match chars.get(from + 1 + length) {
        Some(_) => Ok((Token::Text(text), length + 2)),
        None => Err(Mistake {
            at: from + 1,
            what: format!("the text is not closed: write {} behind it", chars[from]),
        }),
    }
}

/// `15`, or a time: `90s`, `1h30m`.
fn number(chars: &[char], from: usize) -> Result<(Token, usize), Mistake> {
    let text = run(chars, from, char::is_ascii_alphanumeric);
    let (at, length) = (from + 1, text.len());
    let bad = |what: String| Err(Mistake { at, what });
    match chars.get(from + length) {
        Some('.') => return bad("fractions are not known here: write a whole number".to_owned()),
        Some('%') => return bad(format!("write {text} for {text} percent")),
        _ => {}
    }
    if text.chars().all(|c| c.is_ascii_digit()) {
        return match text.parse() {
            Ok(number) => Ok((Token::Number(number), length)),
            Err(_) => bad(format!("`{text}` is too large a number")),
        };
    }
    match duration_ms(&text) {
        Ok(ms) => Ok((Token::Span(ms), length)),
        Err(why) => bad(why),
    }
}

fn sign(chars: &[char], from: usize, first: char) -> Result<(Token, usize), Mistake> {
    let starts = |sign: &&&str| sign.chars().enumerate().all(|(n, c)| chars.get(from + n) == Some(&c));
    if let Some(sign) = SIGNS.iter().find(starts) {
        return Ok((Token::Sign(sign), sign.len()));
    }
    let what = match first {
        '=' => "write == to compare".to_owned(),
        '&' => "write && for and".to_owned(),
        '|' => "write || for or".to_owned(),
        '-' => "numbers below zero are not known here".to_owned(),
        other => format!("`{other}` has no meaning here"),
    };
    Err(Mistake { at: from + 1, what })
}
