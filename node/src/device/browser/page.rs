//! One page: what it asks for is answered from the device's visit, and when it has become quiet its document is taken.

use std::time::Duration;

use chromiumoxide::cdp::browser_protocol::fetch::{
    self, ContinueRequestParams, EventRequestPaused, FailRequestParams, FulfillRequestParams, HeaderEntry,
};
use chromiumoxide::cdp::browser_protocol::inspector::{self, EventTargetCrashed};
use chromiumoxide::cdp::browser_protocol::network::{ErrorReason, ResourceType};
use chromiumoxide::cdp::browser_protocol::page::{
    AddScriptToEvaluateOnNewDocumentParams, EventJavascriptDialogOpening, HandleJavaScriptDialogParams,
};
use chromiumoxide::cdp::browser_protocol::target::CreateTargetParams;
use chromiumoxide::error::CdpError;
use chromiumoxide::page::Page;
use data_encoding::BASE64;
use futures::StreamExt as _;
use tokio::time::Instant;

use super::process::Context;
use super::{BrowserMiss, Shown};
use crate::device::http::{Fetched, Visit, WebError};

/// A page is quiet when it has asked for nothing for so long.
const QUIET: Duration = Duration::from_millis(500);
/// A page that never becomes quiet is taken as it is so long after it was loaded.
const SETTLING: Duration = Duration::from_secs(5);
/// A page that never says that it is loaded (a frame of it waits for what is refused) is taken when it has asked for
/// nothing for so long.
const STALLED: Duration = Duration::from_secs(3);

/// What no page of a printer needs, and what would go past any proxy.
const BEFORE: &str = "for (const name of ['RTCPeerConnection', 'webkitRTCPeerConnection', 'WebTransport']) {
    try { delete window[name]; } catch (e) { }
}";

/// The document and its frames, cut off behind what may be taken, and what a reader sees of them.
const TAKE: &str = "(most => {
    const html = [], text = [];
    const walk = (view, depth) => {
        const page = view.document;
        if (!page || !page.documentElement) return;
        html.push(page.documentElement.outerHTML);
        text.push(page.body ? page.body.innerText : '');
        for (let n = 0; depth > 0 && n < view.frames.length && n < 16; n++) {
            try { walk(view.frames[n], depth - 1); } catch (e) { }
        }
    };
    walk(window, 3);
    return [window.location.href, html.join('\\n').slice(0, most), text.join('\\n').slice(0, most)];
})";

fn broken(error: CdpError) -> BrowserMiss {
    BrowserMiss::Broken(error.to_string())
}

/// Shows a page in a context of its own.
pub(super) async fn show(
    context: &Context,
    visit: &mut Visit,
    first: &Fetched,
    most: usize,
) -> Result<Shown, BrowserMiss> {
    let mut target = CreateTargetParams::new("about:blank");
    target.browser_context_id = Some(context.id.clone());
    let page = context.running.cdp.new_page(target).await.map_err(broken)?;
    let mut paused = page.event_listener::<EventRequestPaused>().await.map_err(broken)?;
    let mut dialogs = page.event_listener::<EventJavascriptDialogOpening>().await.map_err(broken)?;
    let mut crashes = page.event_listener::<EventTargetCrashed>().await.map_err(broken)?;
    page.execute(inspector::EnableParams::default()).await.map_err(broken)?;
    page.execute(fetch::EnableParams::default()).await.map_err(broken)?;
    page.execute(AddScriptToEvaluateOnNewDocumentParams::new(BEFORE)).await.map_err(broken)?;
    let mut feed = Feed { visit, first: Some(first), refused: 0 };
    let going = page.goto(first.url.as_str());
    tokio::pin!(going);
    let (mut loaded_at, mut last) = (None, Instant::now());
    loop {
        let settled = loaded_at.map_or(last + STALLED, |at: Instant| (last + QUIET).min(at + SETTLING));
        tokio::select! {
            biased;
            Some(_) = crashes.next() => return Err(BrowserMiss::TooBig),
            Some(event) = paused.next() => {
                feed.answer(&page, &event).await?;
                last = Instant::now();
            }
            Some(_) = dialogs.next() => {
                // One that is gone already needs no answer.
                drop(page.execute(HandleJavaScriptDialogParams::new(false)).await);
            }
            // Where it went, and whether that is a page, is looked at in the end.
            _ = &mut going, if loaded_at.is_none() => {
                last = Instant::now();
                loaded_at = Some(last);
            }
            () = tokio::time::sleep_until(settled) => break,
        }
    }
    let expression = format!("{TAKE}({})", most.saturating_add(1));
    let taken = page.evaluate_expression(expression).await.map_err(broken)?;
    let (url, html, text): (String, String, String) =
        taken.into_value().map_err(|error| BrowserMiss::Broken(format!("take the page: {error}")))?;
    // A page that leads somewhere else ends on a page of Chromium's own.
    feed.visit.permits(&url).map_err(|_| BrowserMiss::Elsewhere)?;
    if html.len() + text.len() > most {
        return Err(BrowserMiss::TooBig);
    }
    let elsewhere = u32::try_from(context.proxy.refused()).unwrap_or(u32::MAX);
    Ok(Shown { html, text, refused: feed.refused.saturating_add(elsewhere) })
}

/// Answers what the page asks for.
struct Feed<'a> {
    visit: &'a mut Visit,
    /// The page itself, which was fetched already.
    first: Option<&'a Fetched>,
    refused: u32,
}

impl Feed<'_> {
    async fn answer(&mut self, page: &Page, event: &EventRequestPaused) -> Result<(), BrowserMiss> {
        let id = event.request_id.clone();
        let url = event.request.url.as_str();
        // What the page carries in itself.
        if ["data:", "blob:", "about:"].iter().any(|scheme| url.starts_with(scheme)) {
            return said(page.execute(ContinueRequestParams::new(id)).await.map(drop));
        }
        let failed = |reason| FailRequestParams::new(id.clone(), reason);
        match self.fetch(event).await {
            Ok(Some(fetched)) => said(page.execute(fulfilled(event, &fetched)).await.map(drop)),
            Ok(None) => said(page.execute(failed(ErrorReason::Aborted)).await.map(drop)),
            Err(WebError::Elsewhere) => {
                self.refused += 1;
                metrics::counter!("quire_browser_refused_total").increment(1);
                said(page.execute(failed(ErrorReason::BlockedByClient)).await.map(drop))
            }
            Err(_) => said(page.execute(failed(ErrorReason::Failed)).await.map(drop)),
        }
    }

    /// What the device has there; `None` for what nobody reads.
    async fn fetch(&mut self, event: &EventRequestPaused) -> Result<Option<Fetched>, WebError> {
        let request = &event.request;
        if request.method != "GET" {
            return Err(WebError::Elsewhere);
        }
        if let Some(first) = self.first.take_if(|_| event.resource_type == ResourceType::Document) {
            return Ok(Some(first.clone()));
        }
        let header = |name: &str| {
            let headers = request.headers.inner().as_object();
            let found = headers.and_then(|all| all.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
            found.and_then(|(_, value)| value.as_str())
        };
        for cookie in header("cookie").unwrap_or_default().split(';') {
            if let Some((name, value)) = cookie.split_once('=') {
                self.visit.set_cookie(name.trim(), value.trim());
            }
        }
        let picture = [ResourceType::Image, ResourceType::Media, ResourceType::Font, ResourceType::TextTrack];
        if picture.contains(&event.resource_type) {
            return self.visit.permits(&request.url).map(|()| None);
        }
        self.visit.load(&request.url, header("referer")).await.map(Some)
    }
}

fn fulfilled(event: &EventRequestPaused, fetched: &Fetched) -> FulfillRequestParams {
    let mut params = FulfillRequestParams::new(event.request_id.clone(), i64::from(fetched.status));
    let kind = fetched.content_type.iter().map(|kind| HeaderEntry::new("Content-Type", kind.as_str()));
    let to = fetched.location.iter().map(|to| HeaderEntry::new("Location", to.as_str()));
    let cookies = fetched.cookies.iter().map(|cookie| HeaderEntry::new("Set-Cookie", cookie.as_str()));
    params.response_headers = Some(kind.chain(to).chain(cookies).collect());
    params.body = Some(BASE64.encode(&fetched.octets).into());
    params
}

/// A request that was withdrawn meanwhile needs no answer; a browser that is gone gives none.
fn said(outcome: Result<(), CdpError>) -> Result<(), BrowserMiss> {
    match outcome {
        Ok(()) | Err(CdpError::Chrome(_)) => Ok(()),
        Err(error) => Err(broken(error)),
    }
}
