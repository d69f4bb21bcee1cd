//! One notification as JSON to one webhook. No redirects: the address that the operator wrote is the only host.

use std::time::Duration;

use quire_coordinator::settings::Secret;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use serde_json::Value;

use crate::telemetry::root_cause;

/// How long a receiver may take to connect and to answer.
const CONNECTING: Duration = Duration::from_secs(5);
const ANSWERING: Duration = Duration::from_secs(10);

/// The clients of webhooks: to this machine without, to others through the proxy that the environment names.
pub(super) struct Webhooks {
    here: Client,
    elsewhere: Client,
}

impl Webhooks {
    /// # Errors
    /// When this machine has no certificates to check others by.
    pub(super) fn new() -> Result<Webhooks, String> {
        let client = || {
            Client::builder()
                .redirect(Policy::none())
                .connect_timeout(CONNECTING)
                .timeout(ANSWERING)
                .user_agent(concat!("quire/", env!("CARGO_PKG_VERSION")))
        };
        let build = |client: reqwest::ClientBuilder| client.build().map_err(|error| root_cause(&error));
        Ok(Webhooks { here: build(client().no_proxy())?, elsewhere: build(client())? })
    }

    /// Posts, and answers once the receiver has said yes. `id` is the same whenever the same is said again.
    ///
    /// # Errors
    /// Says why in words without the address.
    pub(super) async fn post(&self, url: &Secret, id: &str, body: &Value) -> Result<(), Failed> {
        let url: Url =
            url.expose().parse().map_err(|_| Failed::Silent("the address is no URL".to_owned()))?;
        let client = if url.scheme() == "http" { &self.here } else { &self.elsewhere };
        let request = client.post(url).header("idempotency-key", id).json(body);
        let answer =
            request.send().await.map_err(|error| Failed::Silent(root_cause(&error.without_url())))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
            status if status.is_redirection() => {
                Err(Failed::Refused(format!("{status}: redirects are not followed")))
            }
            status => Err(Failed::Refused(status.to_string())),
        }
    }
}

/// Why a receiver did not take a notification, in words without its address.
#[derive(Clone, Debug)]
pub(super) enum Failed {
    /// It said no to this one; it may take others.
    Refused(String),
    /// Nobody answers: others need not be tried now.
    Silent(String),
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::{HeaderMap, StatusCode};
    use axum::routing::post;
    use serde_json::json;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn a_webhook_hears_the_id_and_only_a_yes_counts() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let heard: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let keep = Arc::clone(&heard);
        let take = move |headers: HeaderMap, body: String| async move {
            let key = headers.get("idempotency-key").unwrap().to_str().unwrap().to_owned();
            keep.lock().unwrap().push((key, body));
            StatusCode::NO_CONTENT
        };
        let moved = || async { (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")]) };
        let router = Router::new()
            .route("/secret", post(take))
            .route("/moved", post(moved))
            .route("/full", post(|| async { StatusCode::SERVICE_UNAVAILABLE }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let hooks = Webhooks::new().unwrap();
        let url = |path: &str| Secret::new(format!("http://{at}{path}"));
        hooks.post(&url("/secret"), "a-7", &json!({"name": "low toner"})).await.unwrap();
        let heard = heard.lock().unwrap().clone();
        assert_eq!(heard, [("a-7".to_owned(), "{\"name\":\"low toner\"}".to_owned())]);
        for (path, wanted) in [("/moved", "302 Found: redirects"), ("/full", "503"), ("/gone", "404")] {
            let why = hooks.post(&url(path), "a-7", &json!({})).await.unwrap_err();
            assert!(matches!(&why, Failed::Refused(why) if why.starts_with(wanted)), "{why:?}");
        }
        server.abort();
        let _ = server.await;
        let why = hooks.post(&url("/secret"), "a-7", &json!({})).await.unwrap_err();
        let Failed::Silent(why) = why else { panic!("{why:?}") };
        assert!(!why.contains("secret") && !why.contains("http"), "{why}");
    }

    #[tokio::test]
    async fn nobody_is_told_who_cannot_prove_who_it_is() {
        let (at, heard) = crate::alerts::tests::impostor().await;
        let url = Secret::new(format!("https://{at}/secret"));
        let why = Webhooks::new().unwrap().post(&url, "a-7", &json!({})).await.unwrap_err();
        let (Failed::Refused(why) | Failed::Silent(why)) = why;
        assert!(why.to_lowercase().contains("certificate") && !why.contains("secret"), "{why}");
        assert!(!heard.await.unwrap());
    }
}
