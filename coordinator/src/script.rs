//! What the log does to the table of profiles: the same source, by hash, on every node.
//!
//! Whether a source compiles is for its proposer to find out; nothing here knows the language.

use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{PutScript, RemoveScript, ScriptRow};

use crate::rows;
use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, ReadExt as _, Table};

/// Profiles that a cluster keeps: with 64 KB each at most 16 MB, in practice some hundred KB.
pub const MOST: usize = 256;
/// Longest source, octets; a profile of a family has 2 to 5 KB.
pub const LONGEST_SOURCE: usize = 64 * 1024;

pub(crate) fn put(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    put: &PutScript,
) -> Result<Answer, Fault> {
    if put.name.is_empty() || put.sha256.len() != 32 {
        return Ok(refuse("a script needs a name and the SHA-256 of its source"));
    }
    if put.source.len() > LONGEST_SOURCE {
        return Ok(refuse(format!("a script has at most {LONGEST_SOURCE} octets")));
    }
    let before: Option<ScriptRow> = tables.row(Table::Scripts, put.name.as_bytes())?;
    if before.as_ref().is_some_and(|row| row.sha256 == put.sha256) {
        return Ok(Answer::Changes(format!("script `{}` is in force already", put.name)));
    }
    if before.is_none() && rows::scripts(tables)?.len() >= MOST {
        return Ok(refuse(format!("there are {MOST} scripts already: remove one first")));
    }
    let row = ScriptRow {
        name: put.name.clone(),
        version: put.version.clone(),
        source: put.source.clone(),
        sha256: put.sha256.clone(),
        put_at_ms: at_ms,
        by: put.by.clone(),
        index,
    };
    tables.put(Table::Scripts, put.name.as_bytes(), &row);
    let replaced = before.map(|row| format!(" over {}", row.version)).unwrap_or_default();
    let what = format!("put script `{}` version {}{replaced}", put.name, put.version);
    audit(tables, index, at_ms, &put.by, what.clone());
    Ok(Answer::Changes(what))
}

pub(crate) fn remove(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    remove: &RemoveScript,
) -> Result<Answer, Fault> {
    if tables.row::<ScriptRow>(Table::Scripts, remove.name.as_bytes())?.is_none() {
        return Ok(refuse(format!("no script `{}` was put", remove.name)));
    }
    tables.delete(Table::Scripts, remove.name.as_bytes());
    let what = format!("removed script `{}`", remove.name);
    audit(tables, index, at_ms, &remove.by, what.clone());
    Ok(Answer::Changes(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::MemoryTables;

    fn script(name: &str, version: &str) -> PutScript {
        PutScript {
            name: name.to_owned(),
            version: version.to_owned(),
            source: format!("// {version}"),
            sha256: vec![version.len() as u8; 32].into(),
            by: "operator".to_owned(),
        }
    }

    fn with(tables: &mut MemoryTables, change: impl FnOnce(&mut Overlay<'_>) -> Answer) -> Answer {
        let mut overlay = Overlay::new(tables);
        let answer = change(&mut overlay);
        let writes: Vec<_> = overlay.into_writes().collect();
        tables.commit(writes.into_iter());
        answer
    }

    #[test]
    fn a_script_is_put_replaced_and_removed() {
        let mut tables = MemoryTables::default();
        let done = |answer: Answer| match answer {
            Answer::Changes(what) => what,
            other => panic!("{other:?}"),
        };
        let mut apply = |at: u64, put_it: &PutScript| {
            done(with(&mut tables, |overlay| put(overlay, at, at, put_it).unwrap()))
        };
        assert_eq!(apply(1, &script("a", "1")), "put script `a` version 1");
        assert_eq!(apply(2, &script("a", "1")), "script `a` is in force already");
        assert_eq!(apply(3, &script("a", "10")), "put script `a` version 10 over 1");
        let rows = rows::scripts(&tables).unwrap();
        assert_eq!((rows.len(), rows[0].version.as_str(), rows[0].index), (1, "10", 3));
        let gone = RemoveScript { name: "a".to_owned(), by: "operator".to_owned() };
        assert_eq!(done(with(&mut tables, |o| remove(o, 4, 4, &gone).unwrap())), "removed script `a`");
        assert!(matches!(with(&mut tables, |o| remove(o, 5, 5, &gone).unwrap()), Answer::Rejected(_)));
        assert!(rows::scripts(&tables).unwrap().is_empty());
    }

    #[test]
    fn bounds_are_kept() {
        let mut tables = MemoryTables::default();
        let long = PutScript { source: "x".repeat(LONGEST_SOURCE + 1), ..script("a", "1") };
        let no_hash = PutScript { sha256: Vec::new().into(), ..script("a", "1") };
        for bad in [long, no_hash, script("", "1")] {
            let answer = with(&mut tables, |overlay| put(overlay, 1, 1, &bad).unwrap());
            assert!(matches!(answer, Answer::Rejected(_)));
        }
        for n in 0..MOST {
            with(&mut tables, |overlay| put(overlay, 1, 1, &script(&n.to_string(), "1")).unwrap());
        }
        let one_more = with(&mut tables, |overlay| put(overlay, 1, 1, &script("more", "1")).unwrap());
        assert!(matches!(one_more, Answer::Rejected(_)));
        let replaced = with(&mut tables, |overlay| put(overlay, 1, 1, &script("7", "22")).unwrap());
        assert!(matches!(replaced, Answer::Changes(_)));
    }
}
