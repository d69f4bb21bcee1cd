//! Tokens over the control socket: making them, naming them, taking them back. What a token proves is shown once, when
//! it is made, and kept as a hash.

use std::sync::Arc;
use std::time::Duration;

use axum::routing::{get, post};
use axum::{Json, Router, extract::State};
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_proto::id::Millis;
use quire_proto::store::command::Kind;
use quire_proto::store::{ApiTokenRow, CreateApiToken, RevokeToken, TokenRow};
use ring::digest::{SHA256, digest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::control::{BY, Done, PATIENCE, Trouble, bad};
use super::scripts::change;
use super::{Site, facts};
use crate::clock;

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/control/token", get(list).post(create))
        .route("/control/token/revoke", post(revoke))
        .route("/control/api-token", get(list_api).post(create_api))
}

#[derive(Deserialize)]
struct TokenOptions {
    ttl_ms: u64,
}

async fn create(State(site): State<Arc<Site>>, Json(options): Json<TokenOptions>) -> Done {
    let token = site.cluster.create_token(Duration::from_millis(options.ttl_ms), BY).await?;
    Ok(Json(json!({ "token": token })))
}

#[derive(Deserialize)]
struct ApiTokenOptions {
    role: String,
}

async fn create_api(State(site): State<Arc<Site>>, Json(options): Json<ApiTokenOptions>) -> Done {
    let mut random = [0u8; 38];
    getrandom::fill(&mut random).map_err(|error| bad(format!("draw random numbers: {error}")))?;
    let id = data_encoding::BASE32_NOPAD.encode(&random[..6]).to_lowercase();
    let secret = data_encoding::BASE64URL_NOPAD.encode(&random[6..]);
    let command = CreateApiToken {
        id: id.clone(),
        secret_sha256: digest(&SHA256, secret.as_bytes()).as_ref().to_vec().into(),
        role: options.role,
        by: BY.to_owned(),
    };
    site.cluster.propose(Kind::CreateApiToken(command), PATIENCE).await?;
    Ok(Json(json!({ "token": format!("{id}.{secret}") })))
}

async fn list(State(site): State<Arc<Site>>) -> Result<Json<Vec<Value>>, Trouble> {
    let tables = site.cluster.view();
    let (names, now) = (facts::names(&tables)?, clock::now());
    let rows: Vec<TokenRow> = tables.all(Table::Tokens, &[])?;
    Ok(Json(rows.iter().map(|row| token(row, &names, now)).collect()))
}

fn token(row: &TokenRow, names: &facts::Names, now: Millis) -> Value {
    let state = match () {
        () if row.used_by > 0 => "used",
        () if row.expires_at_ms <= now.0 => "expired",
        () => "open",
    };
    let mut line = json!({ "id": row.id, "state": state, "expires_at": Millis(row.expires_at_ms).rfc3339() });
    if row.used_by > 0 {
        line["used_by"] =
            json!(names.get(&row.used_by).cloned().unwrap_or_else(|| format!("({})", row.used_by)));
    }
    line
}

async fn list_api(State(site): State<Arc<Site>>) -> Result<Json<Vec<Value>>, Trouble> {
    let rows: Vec<ApiTokenRow> = site.cluster.view().all(Table::ApiTokens, &[])?;
    Ok(Json(rows.iter().map(|row| json!({ "id": row.id, "role": row.role })).collect()))
}

#[derive(Deserialize)]
struct RevokeOptions {
    id: String,
}

async fn revoke(State(site): State<Arc<Site>>, Json(options): Json<RevokeOptions>) -> Done {
    change(&site, Kind::RevokeToken(RevokeToken { id: options.id, by: BY.to_owned() })).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_open_used_or_expired() {
        let names = facts::Names::from([(3, "n3".to_owned())]);
        let row = |used_by, expires_at_ms| TokenRow {
            id: "t".into(),
            used_by,
            expires_at_ms,
            ..TokenRow::default()
        };
        let line = |row: &TokenRow| token(row, &names, Millis(1_000));
        assert_eq!(line(&row(0, 2_000))["state"], "open");
        assert_eq!(line(&row(0, 1_000))["state"], "expired");
        let used = line(&row(3, 500));
        assert_eq!((used["state"].as_str(), used["used_by"].as_str()), (Some("used"), Some("n3")));
        assert_eq!(line(&row(9, 500))["used_by"], "(9)");
    }
}
