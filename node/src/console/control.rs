//! The control socket: what the command line may do to the node that runs on a data directory.
//!
//! The socket belongs to the node's user alone (mode 0600); whoever can open it is an administrator.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::BoxFuture;
use quire_coordinator::rows;
use quire_coordinator::settings;
use quire_proto::id::NodeId;
use quire_proto::store::ask::What as AskWhat;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Ask, RemoveMember, UnitRow, UpdateMember};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixListener;

use super::api::problem;
use super::{Site, bundle, certificates, devices, explain, facts, rescue, scripts, segments, tokens};
use crate::cluster::{ProposeError, PutError};

/// The socket's name in the data directory.
pub(crate) const SOCKET: &str = "control.sock";

/// How long a change may take before its caller is told that it did not happen.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Who the audit says it was.
pub(super) const BY: &str = "operator";

/// What `quire remove` says in the end.
const AFTER_REMOVAL: &str = "Where somebody else may have its disk: look at `quire token list`, then `quire rotate key`, \
    then `quire rotate ca`, then other credentials on the devices and in the settings.";

/// Registers the cluster at a Web Admin by address, code and pin, and answers the site's name. Done by
/// `upstream`, which this room does not know.
pub(crate) type Enroll =
    Box<dyn Fn(String, String, String) -> BoxFuture<'static, anyhow::Result<String>> + Send + Sync>;

/// Listens on the socket, replacing what a dead process left.
pub(super) fn bind(path: &FilePath) -> anyhow::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove the old {}", path.display())),
    }
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("restrict {}", path.display()))?;
    Ok(listener)
}

pub(super) fn routes() -> Router<Arc<Site>> {
    Router::new()
        .route("/control/settings", get(show_settings).post(apply_settings))
        .route("/control/settings/validate", post(validate_settings))
        .route("/control/members/{name}/{verb}", post(member_verb))
        .route("/control/enroll", post(enroll))
        .route("/control/sweep", post(sweep).get(sweep_progress))
        .route("/control/read", post(read))
        .route("/control/segments", post(segments::decide))
        .route("/control/explore", post(segments::explore))
        .route("/control/explain/{address}", get(explain::explain))
        .route("/control/recover", post(rescue::recover))
        .route("/control/backup", post(rescue::backup))
        .route("/control/doctor", get(doctor))
        .route("/control/bundle", post(bundle::serve))
        .route("/control/scripts", get(scripts::list).post(scripts::put))
        .route("/control/scripts/{name}/remove", post(scripts::remove))
        .merge(devices::changes())
        .merge(tokens::routes())
        .merge(certificates::routes())
}

/// What a handler could not do: the status and the reason.
pub(super) struct Trouble(StatusCode, String);

impl IntoResponse for Trouble {
    fn into_response(self) -> Response {
        problem(self.0, self.1)
    }
}

impl From<ProposeError> for Trouble {
    fn from(error: ProposeError) -> Self {
        let status = match error {
            ProposeError::Rejected(_) => StatusCode::CONFLICT,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        Trouble(status, error.to_string())
    }
}

impl Trouble {
    pub(super) fn text(&self) -> &str {
        &self.1
    }
}

impl From<quire_coordinator::tables::Fault> for Trouble {
    fn from(fault: quire_coordinator::tables::Fault) -> Self {
        Trouble(StatusCode::INTERNAL_SERVER_ERROR, fault.to_string())
    }
}

pub(super) fn bad(why: impl Into<String>) -> Trouble {
    Trouble(StatusCode::BAD_REQUEST, why.into())
}

pub(super) type Done = Result<Json<Value>, Trouble>;

async fn show_settings(State(site): State<Arc<Site>>) -> Result<String, Trouble> {
    let meta = rows::meta(&site.cluster.view())?;
    Ok(settings::redact(&meta.settings_toml))
}

async fn validate_settings(State(site): State<Arc<Site>>, body: String) -> Done {
    let (_, changes) = site.cluster.seal_settings(&body, BY).map_err(|error| bad(error.to_string()))?;
    Ok(Json(json!({ "changes": changes })))
}

async fn apply_settings(State(site): State<Arc<Site>>, body: String) -> Done {
    let changes = site.cluster.put_settings(&body, BY, "", PATIENCE).await.map_err(|error| match error {
        PutError::Settings(error) => bad(error.to_string()),
        PutError::Propose(error) => error.into(),
    })?;
    Ok(Json(json!({ "changes": changes })))
}

async fn member_verb(State(site): State<Arc<Site>>, Path((name, verb)): Path<(String, String)>) -> Done {
    let members = rows::members(&site.cluster.view())?;
    let known: Vec<_> = members.iter().map(|member| member.name.clone()).collect();
    let Some(member) = members.into_iter().find(|member| member.name == name) else {
        return Err(bad(format!("no node `{name}`: there are {}", known.join(", "))));
    };
    let id = NodeId(member.id);
    match verb.as_str() {
        "drain" => draining(&site, id, true).await?,
        "resume" => draining(&site, id, false).await?,
        "remove" if known.len() == 1 => return Err(bad("the last node cannot be removed")),
        "remove" => {
            let voters = site.cluster.watch().borrow().voters.clone();
            let alive =
                rows::meta(&site.cluster.view())?.heard.iter().map(|heard| NodeId(heard.node)).collect();
            if !majority_without(id, &voters, &alive) {
                let why = format!(
                    "without {name} no majority of the voters would be left, for ever: first bring others back, or join new ones"
                );
                return Err(bad(why));
            }
            let command = RemoveMember { id: id.0, by: BY.to_owned() };
            site.cluster.propose(Kind::RemoveMember(command), PATIENCE).await?;
            return Ok(Json(json!({ "changes": format!("remove {name}. {AFTER_REMOVAL}") })));
        }
        "lead" => {
            let leader = site.cluster.watch().borrow().leader;
            let me = site.cluster.me().id;
            if leader == Some(id) {
                return Ok(Json(json!({ "changes": format!("{name} leads already") })));
            }
            if let Some(other) = leader.filter(|leader| *leader != me) {
                let names = facts::names(&site.cluster.view())?;
                let other = names.get(&other.0).map_or("another node", String::as_str);
                return Err(bad(format!("{other} leads: run this on {other}")));
            }
            site.cluster.transfer_leader(id).await.map_err(|error| bad(error.to_string()))?;
        }
        other => return Err(bad(format!("`{other}` cannot be done to a node"))),
    }
    Ok(Json(json!({ "changes": format!("{verb} {name}") })))
}

/// Whether the voters that live are still a majority once `gone` is shut out. A node that does not vote
/// can always go.
fn majority_without(gone: NodeId, voters: &BTreeSet<NodeId>, alive: &BTreeSet<NodeId>) -> bool {
    let left = voters.intersection(alive).filter(|voter| **voter != gone).count();
    !voters.contains(&gone) || left * 2 > voters.len()
}

async fn draining(site: &Site, id: NodeId, draining: bool) -> Result<(), Trouble> {
    let update = UpdateMember { id: id.0, draining: Some(draining), ..UpdateMember::default() };
    site.cluster.propose(Kind::UpdateMember(update), PATIENCE).await?;
    Ok(())
}

/// What is wrong here; as many seconds as the slowest of what is looked at.
async fn doctor(State(site): State<Arc<Site>>) -> Json<Value> {
    Json(json!(site.patient.examine().await))
}

#[derive(Deserialize)]
struct EnrollOptions {
    upstream: String,
    code: String,
    pin: String,
}

async fn enroll(State(site): State<Arc<Site>>, Json(options): Json<EnrollOptions>) -> Done {
    let registered = (site.enroll)(options.upstream, options.code, options.pin).await;
    let name = registered.map_err(|error| bad(format!("{error:#}")))?;
    Ok(Json(json!({ "site": name })))
}

#[derive(Deserialize)]
struct SweepOptions {
    segment: Option<String>,
}

async fn sweep(State(site): State<Arc<Site>>, Json(options): Json<SweepOptions>) -> Done {
    ask(&site, AskWhat::SweepSegment(options.segment.unwrap_or_default())).await
}

/// How far the sweep is that was asked for last: of its units those that were not swept since.
async fn sweep_progress(State(site): State<Arc<Site>>, Query(options): Query<SweepOptions>) -> Done {
    let segment = options.segment.unwrap_or_default();
    let mut units = rows::units(&site.cluster.view())?;
    units.retain(|unit| segment.is_empty() || unit.segment == segment || unit.unit == segment);
    let finished = |unit: &UnitRow| {
        let sweep = unit.sweep.clone().unwrap_or_default();
        sweep.finished && sweep.started_at_ms >= unit.asked_at_ms
    };
    let all = units.len();
    units.retain(|unit| !finished(unit));
    let mut progress = facts::sweeps(&units);
    progress["swept"] = json!(all - units.len());
    Ok(Json(progress))
}

#[derive(Deserialize)]
struct ReadOptions {
    device: String,
}

async fn read(State(site): State<Arc<Site>>, Json(options): Json<ReadOptions>) -> Done {
    ask(&site, AskWhat::ReadDevice(options.device)).await
}

pub(super) async fn ask(site: &Site, what: AskWhat) -> Done {
    let command = Ask { by: BY.to_owned(), what: Some(what) };
    let outcome = site.cluster.propose(Kind::Ask(command), PATIENCE).await?;
    let changes = match outcome.result {
        Some(Answer::Changes(changes)) => changes,
        _ => String::new(),
    };
    Ok(Json(json!({ "changes": changes })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_removal_may_cost_the_quorum() {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect::<BTreeSet<_>>();
        let three = ids(&[1, 2, 3]);
        assert!(majority_without(NodeId(2), &three, &three));
        assert!(majority_without(NodeId(3), &three, &ids(&[1, 2])), "a dead one");
        assert!(!majority_without(NodeId(2), &three, &ids(&[1, 2])), "a living one while another is dead");
        assert!(!majority_without(NodeId(1), &ids(&[1]), &ids(&[1, 2])), "the only voter");
        assert!(majority_without(NodeId(2), &ids(&[1]), &ids(&[1, 2])), "a learner");
    }
}
