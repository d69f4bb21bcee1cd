//! The console's door: who gets in, what every answer carries, probes, metrics and the stream of changes.
//!
//! Only reads; what people want from sites goes through the command line. On a loopback address pages are
//! open to whoever can log in to the machine, elsewhere everything but the probes wants a token.

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{DefaultBodyLimit, Form, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use futures::Stream;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::pages;
use crate::store::{Store, StoreError};
use crate::users::Role;
use crate::{api, clock};

/// Pages that watch at the same time; each costs a connection. Above it, pages stand still until reloaded.
const WATCHERS_MAX: usize = 128;
/// How often a page hears of changes at most: a page costs some milliseconds to make.
const CHANGES_EVERY: Duration = Duration::from_secs(1);
/// A login form.
const BODY_OCTETS_MAX: usize = 4096;
const COOKIE: &str = "quire_admin";
/// Everything that a page may load is in this program; nothing inline runs.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// What every handler of the console shares.
#[derive(Clone)]
pub(crate) struct Console {
    pub(crate) store: Store,
    /// True on a loopback address.
    pub(crate) open: bool,
    watchers: Arc<Semaphore>,
    stop: CancellationToken,
}

impl Console {
    fn new(store: Store, open: bool, stop: CancellationToken) -> Self {
        Console { store, open, watchers: Arc::new(Semaphore::new(WATCHERS_MAX)), stop }
    }
}

/// Why a handler has nothing to show.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PageError {
    #[error("there is no such page")]
    NotFound,
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("the database failed")]
    Store(#[from] StoreError),
    #[error("the page could not be made")]
    Template(#[from] askama::Error),
}

impl axum::response::IntoResponse for PageError {
    fn into_response(self) -> Response {
        let status = match &self {
            PageError::NotFound => StatusCode::NOT_FOUND,
            PageError::BadRequest(_) => StatusCode::BAD_REQUEST,
            PageError::Store(error) => {
                tracing::error!(%error, "answer a page");
                StatusCode::SERVICE_UNAVAILABLE
            }
            PageError::Template(error) => {
                tracing::error!(%error, "make a page");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        (status, pages::failure(status, &self.to_string())).into_response()
    }
}

/// Serves until `stop`.
pub(crate) async fn serve(
    listener: TcpListener,
    store: Store,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let open = listener.local_addr().context("read the console's address")?.ip().is_loopback();
    let console = Console::new(store, open, stop.clone());
    let serving = axum::serve(listener, router(console)).with_graceful_shutdown(stop.cancelled_owned());
    serving.await.context("serve the console")
}

fn router(console: Console) -> Router {
    let guarded = Router::new()
        .merge(pages::routes())
        .merge(api::routes())
        .route("/events", get(events))
        .route("/metrics", get(metrics_text))
        .route_layer(from_fn_with_state(console.clone(), guard));
    Router::new()
        .merge(guarded)
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/login", get(pages::login).post(log_in))
        .route("/logout", axum::routing::post(log_out))
        .route("/assets/app.js", get(|| asset("text/javascript", include_str!("../assets/app.js"))))
        .route("/assets/style.css", get(|| asset("text/css", include_str!("../assets/style.css"))))
        .fallback(unknown)
        .layer(DefaultBodyLimit::max(BODY_OCTETS_MAX))
        .layer(from_fn_with_state(console.clone(), check_host))
        .with_state(console)
}

async fn unknown(uri: Uri) -> Response {
    if !uri.path().starts_with("/api/") {
        return PageError::NotFound.into_response();
    }
    (StatusCode::NOT_FOUND, Json(json!({ "error": format!("{} is not served", uri.path()) }))).into_response()
}

/// On a loopback address the name in the URL must be the machine itself: a foreign name that resolves to it
/// is a page of somebody else's trying to read ours (DNS rebinding).
async fn check_host(State(console): State<Console>, request: Request, next: Next) -> Response {
    let uri_host = request.uri().host().map(str::to_owned);
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).map(str::to_owned);
    let mut response = if console.open && !uri_host.or(host).is_some_and(|host| is_this_machine(&host)) {
        (StatusCode::MISDIRECTED_REQUEST, "this address is for the machine itself\n").into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Lets in who holds a token, or whoever is on the machine itself.
async fn guard(State(console): State<Console>, request: Request, next: Next) -> Response {
    if console.open {
        return next.run(request).await;
    }
    let role = match token(request.headers()) {
        Some(token) => console.store.role(token).await,
        None => Ok(None),
    };
    match role {
        // Every role may read, and reading is all there is.
        Ok(Some(Role::Viewer | Role::Operator | Role::Admin)) => next.run(request).await,
        Ok(None) if wants_page(&request) => Redirect::to("/login").into_response(),
        Ok(None) => {
            let challenge = [(header::WWW_AUTHENTICATE, "Bearer")];
            (StatusCode::UNAUTHORIZED, challenge, "{\"error\":\"a token is needed\"}\n").into_response()
        }
        Err(error) => PageError::Store(error).into_response(),
    }
}

fn wants_page(request: &Request) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html")) && !request.uri().path().starts_with("/api/")
}

/// From `Authorization: Bearer` or the cookie of the login form.
fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.strip_prefix("Bearer "));
    let cookie = || {
        let cookies = headers.get(header::COOKIE).and_then(|value| value.to_str().ok())?;
        cookies
            .split(';')
            .filter_map(|cookie| cookie.trim().split_once('='))
            .find_map(|(name, value)| (name == COOKIE).then_some(value))
    };
    bearer.map(str::trim).or_else(cookie)
}

#[derive(Deserialize)]
struct Login {
    token: String,
}

async fn log_in(State(console): State<Console>, headers: HeaderMap, Form(login): Form<Login>) -> Response {
    let token = login.token.trim();
    if is_foreign(&headers) {
        return PageError::BadRequest("a form of another site").into_response();
    }
    match console.store.role(token).await {
        // What passed as a token has only letters, digits and underscores.
        Ok(Some(_)) => {
            with_cookie(&format!("{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age=604800"))
        }
        Ok(None) => (StatusCode::FORBIDDEN, pages::refused_login()).into_response(),
        Err(error) => PageError::Store(error).into_response(),
    }
}

async fn log_out(headers: HeaderMap) -> Response {
    if is_foreign(&headers) {
        return PageError::BadRequest("a form of another site").into_response();
    }
    with_cookie(&format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"))
}

fn is_foreign(headers: &HeaderMap) -> bool {
    headers.get("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none")
}

fn with_cookie(cookie: &str) -> Response {
    let mut response = Redirect::to("/").into_response();
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

async fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "max-age=300")];
    (headers, text).into_response()
}

async fn readyz(State(console): State<Console>) -> Response {
    if console.store.is_ready().await {
        "ok\n".into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "the database does not answer\n").into_response()
    }
}

/// One recorder a process, whatever the number of servers in it (tests start several).
pub(crate) fn recorder() -> Option<&'static PrometheusHandle> {
    static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    RECORDER.get_or_init(|| PrometheusBuilder::new().install_recorder().ok()).as_ref()
}

async fn metrics_text(State(console): State<Console>) -> Result<Response, PageError> {
    metrics::gauge!("quire_admin_conflicts").set(console.store.count_conflicts().await? as f64);
    metrics::gauge!("quire_admin_alerts_open").set(console.store.count_open_alerts().await? as f64);
    metrics::gauge!("quire_admin_time_seconds").set(clock::now().0 as f64 / 1000.0);
    let text = recorder().map(PrometheusHandle::render).unwrap_or_default();
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

/// Says `change` when lists may look different, until the server stops.
async fn events(State(console): State<Console>) -> Response {
    let Ok(place) = Arc::clone(&console.watchers).try_acquire_owned() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many pages watch\n").into_response();
    };
    let changes = console.store.changes();
    Sse::new(stream(changes, console.stop, place)).keep_alive(KeepAlive::default()).into_response()
}

fn stream(
    changes: watch::Receiver<u64>,
    stop: CancellationToken,
    place: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    futures::stream::unfold((changes, stop, place), |(mut changes, stop, place)| async move {
        let next = async {
            changes.changed().await.ok()?;
            tokio::time::sleep(CHANGES_EVERY).await;
            changes.mark_unchanged();
            Some(Event::default().event("change").data("1"))
        };
        let event = stop.run_until_cancelled(next).await.flatten()?;
        Some((Ok(event), (changes, stop, place)))
    })
}

#[cfg(test)]
mod tests {
    use quire_proto::id::Millis;

    use super::*;

    async fn console(open: bool) -> (tempfile::TempDir, Store, Router) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).await.unwrap();
        let console = Console::new(store.clone(), open, CancellationToken::new());
        (dir, store, router(console))
    }

    async fn ask(router: &Router, path: &str, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
        let mut request = axum::http::Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(axum::body::Body::empty()).unwrap();
        let response = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test]
    async fn a_loopback_console_is_open_but_not_to_foreign_names() {
        let (_dir, store, router) = console(true).await;
        store.add_site("<b>acme</b>", Millis(1_700_000_000_000)).await.unwrap();
        let here = [("host", "127.0.0.1:8480")];
        let (status, headers, page) = ask(&router, "/", &here).await;
        assert_eq!(status, StatusCode::OK);
        assert!(page.contains("&#60;b&#62;acme") && !page.contains("<b>acme"), "{page}");
        assert!(!headers[header::CONTENT_SECURITY_POLICY].to_str().unwrap().contains("unsafe"));
        assert_eq!(ask(&router, "/", &[("host", "evil.example")]).await.0, StatusCode::MISDIRECTED_REQUEST);
        assert_eq!(ask(&router, "/", &[]).await.0, StatusCode::MISDIRECTED_REQUEST);
        assert_eq!(ask(&router, "/sites/%3Cb%3Eacme%3C%2Fb%3E", &here).await.0, StatusCode::OK);
        assert_eq!(ask(&router, "/sites/nobody", &here).await.0, StatusCode::NOT_FOUND);
        assert_eq!(ask(&router, "/sites/x/devices/%00", &here).await.0, StatusCode::NOT_FOUND);
        assert_eq!(ask(&router, "/api/v1/readings?limit=many", &here).await.0, StatusCode::BAD_REQUEST);
        for probe in ["/livez", "/readyz", "/metrics", "/assets/app.js", "/assets/style.css"] {
            assert_eq!(ask(&router, probe, &here).await.0, StatusCode::OK, "{probe}");
        }
    }

    #[tokio::test]
    async fn elsewhere_a_token_is_needed() {
        let (_dir, store, router) = console(false).await;
        let token = store.create_api_token(Role::Viewer, Millis(1)).await.unwrap();
        for path in ["/", "/sites/x", "/events", "/metrics", "/api/v1/sites", "/api/v1/readings"] {
            assert_eq!(ask(&router, path, &[]).await.0, StatusCode::UNAUTHORIZED, "{path}");
            let other = if token.ends_with('x') { 'y' } else { 'x' };
            let wrong = format!("Bearer {}{other}", &token[..token.len() - 1]);
            assert_eq!(
                ask(&router, path, &[("authorization", &wrong)]).await.0,
                StatusCode::UNAUTHORIZED,
                "{path}"
            );
        }
        let (status, headers, _) = ask(&router, "/", &[("accept", "text/html")]).await;
        assert_eq!(
            (status, &headers[header::LOCATION]),
            (StatusCode::SEE_OTHER, &HeaderValue::from_static("/login"))
        );
        for probe in ["/livez", "/readyz", "/login"] {
            assert_eq!(ask(&router, probe, &[]).await.0, StatusCode::OK, "{probe}");
        }
        let bearer = format!("Bearer {token}");
        assert_eq!(ask(&router, "/api/v1/sites", &[("authorization", &bearer)]).await.0, StatusCode::OK);
        let cookie = format!("{COOKIE}={token}");
        assert_eq!(ask(&router, "/", &[("cookie", &cookie)]).await.0, StatusCode::OK);
    }

    #[tokio::test]
    async fn the_login_form_gives_a_cookie_to_a_token_alone() {
        let (_dir, store, router) = console(false).await;
        let token = store.create_api_token(Role::Viewer, Millis(1)).await.unwrap();
        let log_in = async |token: &str, site: &str| {
            let request = axum::http::Request::post("/login")
                .header("content-type", "application/x-www-form-urlencoded")
                .header("sec-fetch-site", site)
                .body(axum::body::Body::from(format!("token={token}")))
                .unwrap();
            tower::ServiceExt::oneshot(router.clone(), request).await.unwrap()
        };
        let welcome = log_in(&token, "same-origin").await;
        let cookie = welcome.headers()[header::SET_COOKIE].to_str().unwrap();
        assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
        let refused = log_in("qa_no_such", "same-origin").await;
        assert_eq!(refused.status(), StatusCode::FORBIDDEN);
        assert!(!refused.headers().contains_key(header::SET_COOKIE));
        assert_eq!(log_in(&token, "cross-site").await.status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn only_names_of_the_machine_itself_pass() {
        for host in ["localhost:80", "127.0.0.1:8480", "127.9.9.9", "[::1]:8480", "LOCALHOST"] {
            assert!(is_this_machine(host), "{host}");
        }
        for host in
            ["", "evil.example", "127.0.0.1.evil.example:80", "10.0.0.1", "[::2]:1", "localhost.evil:1"]
        {
            assert!(!is_this_machine(host), "{host}");
        }
    }

    #[test]
    fn tokens_come_from_header_or_cookie() {
        let mut headers = HeaderMap::new();
        assert_eq!(token(&headers), None);
        headers.insert(header::COOKIE, HeaderValue::from_static("a=b; quire_admin=qa_1_2"));
        assert_eq!(token(&headers), Some("qa_1_2"));
        headers.insert(header::AUTHORIZATION, HeaderValue::from_static("Bearer qa_3_4"));
        assert_eq!(token(&headers), Some("qa_3_4"));
    }
}
