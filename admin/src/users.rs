//! API tokens and roles: who may see and do what at the console. Tokens are kept as hashes only.

use std::fmt;

use clap::ValueEnum;
use quire_proto::id::Millis;

use crate::secret;
use crate::store::{Store, StoreError, int};

/// What a token allows; each role may do what those before it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Role {
    /// Sees everything that is not secret.
    Viewer,
    /// Also asks sites to do things.
    Operator,
    /// Also decides who may ask.
    Admin,
}

impl Role {
    fn word(self) -> &'static str {
        match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Role::Viewer, Role::Operator, Role::Admin].into_iter().find(|role| role.word() == word)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Longer than any token: what is longer is not looked up.
const TOKEN_MAX: usize = 128;

impl Store {
    /// Makes a token: `qa_<id>_<secret>`, of which only a hash stays.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn create_api_token(&self, role: Role, now: Millis) -> Result<String, StoreError> {
        let random = |octets| secret::random_word(octets).map_err(|e| StoreError::Random(format!("{e:#}")));
        let (id, word) = (random(5)?, random(20)?);
        sqlx::query("INSERT INTO api_tokens (id, secret_sha256, role, created_at_ms) VALUES (?, ?, ?, ?)")
            .bind(&id)
            .bind(secret::sha256(word.as_bytes()))
            .bind(role.word())
            .bind(int(now.0)?)
            .execute(&self.write)
            .await?;
        Ok(format!("qa_{id}_{word}"))
    }

    /// The role of a token; `None` for one that does not exist.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn role(&self, token: &str) -> Result<Option<Role>, StoreError> {
        let parts = token.strip_prefix("qa_").and_then(|rest| rest.split_once('_'));
        let Some((id, word)) = parts.filter(|_| token.len() <= TOKEN_MAX) else { return Ok(None) };
        let row: Option<(Vec<u8>, String)> =
            sqlx::query_as("SELECT secret_sha256, role FROM api_tokens WHERE id = ?")
                .bind(id)
                .fetch_optional(&self.read)
                .await?;
        let hash = secret::sha256(word.as_bytes());
        Ok(row.filter(|(stored, _)| secret::same(stored, &hash)).and_then(|(_, role)| Role::from_word(&role)))
    }
}
