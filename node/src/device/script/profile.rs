//! What a profile is: a Rhai source whose first lines say its name, version and the devices it is for.
//!
//! ```text
//! //! name: brother-counters
//! //! version: 3
//! //! priority: 10
//! //! match: family brother
//! //! match: object-id 1.3.6.1.4.1.2435 and descr NC-8
//! //! serial: E.2435.2.3.9.4.2.1.5.5.1.0
//! ```
//! Each `match` line is an alternative; the terms of a line, joined by ` and `, must all hold. Lines that name a fact
//! or a counter list its objects (`device/family.rs`), which are asked with the standard ones. Compiled once, shared.

use std::sync::Arc;

use quire_coordinator::script::LONGEST_SOURCE;
use quire_proto::oid::Oid;
use rhai::AST;
use ring::digest::{SHA256, digest};

use super::sandbox;
use crate::device::answers::Answers;
use crate::device::brand;
use crate::device::family::Family;

/// Longest name, so that a listing stays readable.
const LONGEST_NAME: usize = 40;

/// Why a text is no profile.
#[derive(Debug, thiserror::Error)]
pub enum BadProfile {
    /// More than [`LONGEST_SOURCE`].
    #[error("the script has {0} octets, {LONGEST_SOURCE} are allowed")]
    TooLong(usize),
    /// A header line that says nothing known.
    #[error("line {line}: {reason}")]
    Header {
        /// From 1.
        line: usize,
        /// For a human.
        reason: String,
    },
    /// The header lacks something.
    #[error("the header has no `//! {0}: ...` line")]
    Missing(&'static str),
    /// It does not compile, or needs what the sandbox does not have.
    #[error("{0}")]
    Syntax(String),
}

/// What a match rule looks at: who the device is, as far as the standard reading knows.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    object_id: Option<Oid>,
    descr: String,
    device_descr: String,
    families: Vec<&'static str>,
}

impl Subject {
    pub(crate) fn of(answers: &Answers) -> Subject {
        let text = |found: Option<(String, String)>| found.map(|(text, _)| text).unwrap_or_default();
        Subject {
            object_id: brand::sys_object_id(answers),
            descr: text(brand::sys_descr(answers)).to_lowercase(),
            device_descr: text(brand::device_descr(answers)).to_lowercase(),
            families: brand::family_ids(answers),
        }
    }

    /// The device family, for counting what fails where.
    pub(crate) fn family(&self) -> &str {
        self.families.first().copied().unwrap_or("other")
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Term {
    ObjectId(Oid),
    Descr(String),
    DeviceDescr(String),
    Family(String),
}

impl Term {
    fn parse(text: &str) -> Result<Term, String> {
        let (key, value) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let value = value.trim();
        if value.is_empty() {
            return Err(format!("`{key}` has no value"));
        }
        match key {
            "object-id" => {
                let full = value.strip_prefix("E.").map(|rest| format!("1.3.6.1.4.1.{rest}"));
                let text = full.as_deref().unwrap_or(value);
                let oid = text.parse().map_err(|_| format!("`{value}` is no object identifier"))?;
                Ok(Term::ObjectId(oid))
            }
            "descr" => Ok(Term::Descr(value.to_lowercase())),
            "device-descr" => Ok(Term::DeviceDescr(value.to_lowercase())),
            "family" => Ok(Term::Family(value.to_owned())),
            _ => Err(format!("`{key}` is unknown: expected object-id, descr, device-descr or family")),
        }
    }

    fn holds(&self, subject: &Subject) -> bool {
        match self {
            Term::ObjectId(prefix) => subject.object_id.as_ref().is_some_and(|oid| oid.starts_with(prefix)),
            Term::Descr(part) => subject.descr.contains(part.as_str()),
            Term::DeviceDescr(part) => subject.device_descr.contains(part.as_str()),
            Term::Family(id) => subject.families.contains(&id.as_str()),
        }
    }
}

/// A script with what its header says.
#[derive(Clone, Debug)]
pub struct Profile {
    /// One of its kind: a profile that is put replaces the one of its name, built in or not.
    pub name: String,
    /// The author's own.
    pub version: String,
    /// Of several that match, the higher runs later and has the last word.
    pub priority: i64,
    /// As written.
    pub source: Arc<str>,
    /// SHA-256 of the source.
    pub sha256: [u8; 32],
    rules: Vec<Vec<Term>>,
    /// The objects that its header names.
    pub(crate) family: Arc<Family>,
    /// False when the header says all there is to say.
    pub(super) acts: bool,
    pub(super) program: Arc<AST>,
}

impl Profile {
    /// Reads the header and compiles the rest.
    ///
    /// # Errors
    /// When the header lacks something or the script does not compile.
    pub fn parse(source: &str) -> Result<Profile, BadProfile> {
        if source.len() > LONGEST_SOURCE {
            return Err(BadProfile::TooLong(source.len()));
        }
        let (mut name, mut version, mut priority, mut rules) = (None, None, 0, Vec::new());
        let mut family = Family::default();
        let header = source.lines().map_while(|line| line.strip_prefix("//!")).enumerate();
        for (at, text) in header {
            let wrong = |reason: String| BadProfile::Header { line: at + 1, reason };
            let Some((key, value)) = text.split_once(':').map(|(key, value)| (key.trim(), value.trim()))
            else {
                continue;
            };
            match key {
                "name" => name = Some(name_of(value).map_err(wrong)?),
                "version" if value.is_empty() || value.len() > LONGEST_NAME => {
                    return Err(wrong("a version has 1 to 40 characters".to_owned()));
                }
                "version" => version = Some(value.to_owned()),
                "priority" => {
                    priority = value.parse().map_err(|_| wrong(format!("`{value}` is no number")))?;
                }
                "match" => rules
                    .push(value.split(" and ").map(Term::parse).collect::<Result<_, _>>().map_err(wrong)?),
                "about" => {}
                _ if family.take(key, value).map_err(wrong)? => {}
                _ => {
                    let known = "expected name, version, priority, match, about, a fact or a counter";
                    return Err(wrong(format!("`{key}` is unknown: {known}")));
                }
            }
        }
        if rules.is_empty() {
            return Err(BadProfile::Missing("match"));
        }
        let program = sandbox::compile(source).map_err(BadProfile::Syntax)?;
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest(&SHA256, source.as_bytes()).as_ref());
        Ok(Profile {
            name: name.ok_or(BadProfile::Missing("name"))?,
            version: version.ok_or(BadProfile::Missing("version"))?,
            priority,
            source: source.into(),
            sha256,
            rules,
            family: Arc::new(family),
            acts: source.lines().any(is_code),
            program: Arc::new(program),
        })
    }

    /// True when the profile is for this device.
    pub fn matches(&self, subject: &Subject) -> bool {
        self.rules.iter().any(|terms| terms.iter().all(|term| term.holds(subject)))
    }

    /// Where in the line of a device's families this profile stands: the device's own number first.
    pub(super) fn place(&self, subject: &Subject) -> usize {
        let named = |id: &&'static str| {
            let term = Term::Family((*id).to_owned());
            self.rules.iter().any(|terms| terms.contains(&term))
        };
        subject.families.iter().position(named).unwrap_or(usize::MAX)
    }
}

fn is_code(line: &str) -> bool {
    let line = line.trim();
    !line.is_empty() && !line.starts_with("//")
}

fn name_of(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > LONGEST_NAME || !text.chars().all(plain) {
        return Err(format!("`{text}` is no name: 1 to {LONGEST_NAME} of a-z, 0-9 and -"));
    }
    Ok(text.to_owned())
}
