//! Taking back tokens: of joins that did not happen yet, and of the HTTP API.
//!
//! A token is known by its id alone; what it proves is kept as a hash, and goes with its row.

use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{RevokeToken, TokenRow};

use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, Read, ReadExt, Table};

pub(crate) fn revoke(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    revoke: &RevokeToken,
) -> Result<Answer, Fault> {
    let (id, key) = (&revoke.id, revoke.id.as_bytes());
    let what = if tables.get(Table::ApiTokens, key)?.is_some() {
        tables.delete(Table::ApiTokens, key);
        format!("took back API token {id}")
    } else if let Some(token) = tables.row::<TokenRow>(Table::Tokens, key)? {
        if token.used_by != 0 {
            let why = format!("node {} joined with it: `quire remove` shuts that node out", token.used_by);
            return Ok(refuse(why));
        }
        tables.delete(Table::Tokens, key);
        format!("took back join token {id}")
    } else {
        return Ok(refuse(format!(
            "no token `{id}`: `quire token list` and `quire api-token list` name them"
        )));
    };
    audit(tables, index, at_ms, &revoke.by, what.clone());
    Ok(Answer::Changes(what))
}

#[cfg(test)]
mod tests {
    use quire_proto::store::{ApiTokenRow, AuditRow};

    use super::*;
    use crate::tables::MemoryTables;

    #[test]
    fn a_token_that_was_taken_back_counts_no_longer() {
        let tables = MemoryTables::default();
        let mut world = Overlay::new(&tables);
        let join = |id: &str, used_by| TokenRow { id: id.into(), used_by, ..TokenRow::default() };
        world.put(Table::Tokens, b"open", &join("open", 0));
        world.put(Table::Tokens, b"used", &join("used", 3));
        world.put(Table::ApiTokens, b"api", &ApiTokenRow::default());
        let mut back = |id: &str| {
            let revoke = RevokeToken { id: id.into(), by: "operator".into() };
            super::revoke(&mut world, 9, 1_000, &revoke).unwrap()
        };
        assert_eq!(back("open"), Answer::Changes("took back join token open".into()));
        assert_eq!(back("api"), Answer::Changes("took back API token api".into()));
        for (id, why) in [("used", "node 3 joined"), ("open", "no token `open`"), ("api", "no token")] {
            assert!(matches!(back(id), Answer::Rejected(said) if said.contains(why)), "{id}");
        }
        assert!(world.get(Table::Tokens, b"open").unwrap().is_none());
        assert!(world.get(Table::Tokens, b"used").unwrap().is_some());
        assert!(world.row::<AuditRow>(Table::Audit, &9u64.to_be_bytes()).unwrap().is_some());
    }
}
