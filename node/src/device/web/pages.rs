//! A device's pages for scripts, one conversation for a whole run of one: the ports of the settings in their order
//! until one answers, and that one alone from then on.

use std::net::IpAddr;

use super::{Asking, Handed, Learnt, note, visit};
use crate::device::browser::{Browser, BrowserMiss, Shown};
use crate::device::http::{Fetched, Visit, WebError};

/// What one script may ask of a web server, redirects and logins included. It has 64 requests of its own.
const REQUESTS: u32 = 96;
/// The same where a browser loads a page: the busiest captured one needs some 60.
const LOADS: u32 = 160;

/// Why there is no rendered page.
#[derive(Debug)]
pub enum RenderMiss {
    /// The device has none.
    Web(WebError),
    /// The device has one, and it was not shown.
    Browser(BrowserMiss),
}

/// One device's pages.
pub(crate) struct Pages {
    ip: IpAddr,
    asking: Asking,
    /// Ports that have not been tried.
    ports: Vec<u16>,
    visit: Option<Visit>,
    learnt: Learnt,
}

impl Pages {
    pub(crate) fn new(ip: IpAddr, asking: &Asking) -> Pages {
        let ports = asking.ports.iter().rev().copied().collect();
        Pages { ip, asking: asking.clone(), ports, visit: None, learnt: Learnt::default() }
    }

    /// What was learnt so far.
    pub(crate) fn learnt(&self) -> Learnt {
        self.learnt
    }

    /// The page at a path, at most so many octets of it.
    pub(crate) async fn fetch(&mut self, path: &str, most: usize) -> Result<Fetched, WebError> {
        if self.visit.is_some() {
            return self.again(path, most).await;
        }
        while let Some(port) = self.ports.pop() {
            let Ok(mut visit) = visit(self.ip, &self.asking, &self.asking.ports, port) else { continue };
            visit.allow_requests(REQUESTS);
            visit.limit_page(most);
            let fetched = visit.fetch(path).await;
            note(&visit, &mut self.learnt);
            if !matches!(fetched, Err(WebError::Silent | WebError::Garbled)) {
                self.visit = Some(visit);
                return fetched;
            }
        }
        Err(WebError::Silent)
    }

    async fn again(&mut self, path: &str, most: usize) -> Result<Fetched, WebError> {
        let visit = self.visit.as_mut().ok_or(WebError::Silent)?;
        visit.limit_page(most);
        let fetched = visit.fetch(path).await;
        note(visit, &mut self.learnt);
        fetched
    }

    /// The page at a path, and what a browser makes of it. A page that is none (404 and the like) is not shown.
    /// Where this machine has no browser that works, another one is asked.
    pub(crate) async fn render(&mut self, path: &str, most: usize) -> Result<(Fetched, Shown), RenderMiss> {
        let browser = self.asking.browser.clone().ok_or(RenderMiss::Browser(BrowserMiss::Off))?;
        if !Browser::found() {
            return self.hand_over(path, most, BrowserMiss::Missing).await;
        }
        match self.render_here(&browser, path, most).await {
            Err(RenderMiss::Browser(miss @ (BrowserMiss::Missing | BrowserMiss::Broken(_)))) => {
                self.hand_over(path, most, miss).await
            }
            rendered => rendered,
        }
    }

    /// The page as another machine shows it, which makes a visit of its own: this one ends before, so that the device
    /// has one session at a time.
    async fn hand_over(
        &mut self,
        path: &str,
        most: usize,
        miss: BrowserMiss,
    ) -> Result<(Fetched, Shown), RenderMiss> {
        let Some(elsewhere) = self.asking.elsewhere.clone() else { return Err(RenderMiss::Browser(miss)) };
        if self.visit.take().is_some() {
            self.ports = self.asking.ports.iter().rev().copied().collect();
        }
        let pin = self.asking.pin.or(self.learnt.fingerprint);
        let handed = elsewhere.show(self.ip, path.to_owned(), most, pin).await;
        let Some(Handed { page, learnt }) = handed else { return Err(RenderMiss::Browser(miss)) };
        self.learnt.add(&learnt);
        page
    }

    async fn render_here(
        &mut self,
        browser: &Browser,
        path: &str,
        most: usize,
    ) -> Result<(Fetched, Shown), RenderMiss> {
        let page = self.fetch(path, most).await.map_err(RenderMiss::Web)?;
        if !(200..300).contains(&page.status) {
            let shown = Shown { html: page.text(), ..Shown::default() };
            return Ok((page, shown));
        }
        let visit = self.visit.as_mut().ok_or(RenderMiss::Web(WebError::Silent))?;
        visit.allow_requests(LOADS);
        visit.limit_page(usize::MAX);
        let shown = browser.show(visit, &page, most).await;
        visit.allow_requests(REQUESTS);
        note(visit, &mut self.learnt);
        shown.map(|shown| (page, shown)).map_err(RenderMiss::Browser)
    }
}
