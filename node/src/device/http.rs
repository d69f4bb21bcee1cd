//! The confined HTTP client: one device, a few of its ports, and nothing but reads.
//!
//! The door: [`Access`] says what is permitted, [`Visit`] is one read's conversation under it. A visit talks to the
//! one address of its access, on the ports of its access, one request at a time over one connection. It sends GET
//! and IPP's Get-Printer-Attributes, follows redirects on that address only, offers a login once, and knows no proxy.
//! What a page may weigh and how long it may take are bounded here; how long a whole visit may take is its
//! caller's business. It must never contact another host, send another method, or put a password into an error.

mod charset;
mod digest;
pub(super) mod fuzz;
mod tls;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode, Url};
use zeroize::Zeroizing;

pub use tls::Fingerprint;

use digest::Challenge;

/// The most octets of one page: the largest captured page has 120 KB.
const MAX_PAGE: usize = 1024 * 1024;
/// The most octets of one visit: eight of the largest pages.
const MAX_VISIT: usize = 8 * MAX_PAGE;
/// The most requests of one visit, redirects and logins included: the longest list of pages has 9.
const MAX_REQUESTS: u32 = 40;
/// The most redirects of one page.
const MAX_REDIRECTS: u32 = 5;
/// The most cookies of one visit, and octets of one; more are dropped.
const MAX_COOKIES: usize = 32;
const MAX_COOKIE: usize = 4096;
/// How long one answer may take. A sleeping LaserJet needs 2 to 5 seconds to wake.
const PATIENCE: Duration = Duration::from_secs(10);
const CONNECTING: Duration = Duration::from_secs(3);

/// A login for a device's own pages.
pub struct Login {
    user: String,
    password: Zeroizing<String>,
}

impl Login {
    /// User name and password as configured.
    pub fn new(user: &str, password: &str) -> Self {
        Login { user: user.to_owned(), password: Zeroizing::new(password.to_owned()) }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// What a visit may do.
#[derive(Debug)]
pub struct Access {
    /// The device, and the only host.
    pub ip: IpAddr,
    /// The only ports; those that print (9100, 515) are refused whatever stands here.
    pub ports: Vec<u16>,
    /// Offered once, where the device asks for one.
    pub login: Option<Arc<Login>>,
    /// The certificate that the device had before; with another one the login is withheld.
    pub pin: Option<Fingerprint>,
}

/// What the caller does next: nothing, try later, or tell a human.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum WebError {
    /// Nobody listens, or no answer came in time.
    #[error("no answer")]
    Silent,
    /// What came is not HTTP or ended in the middle.
    #[error("not an HTTP answer")]
    Garbled,
    /// Larger than a page may be, or the visit has used up what it may.
    #[error("more than a visit may take")]
    TooMuch,
    /// The device sends us to another host or port, or the path is none.
    #[error("leads off the device")]
    Elsewhere,
    /// A login is wanted and none is configured.
    #[error("wants a login")]
    WantsLogin,
    /// The configured login was refused; it is not offered again.
    #[error("refused the login")]
    LoginRefused,
    /// An HTTP status that is no page.
    #[error("HTTP status {0}")]
    Status(u16),
}

/// One page.
#[derive(Clone, Debug)]
pub struct Page {
    /// Path and query of the last redirect.
    pub path: String,
    /// The text, its charset decoded.
    pub text: String,
}

/// What a device answered to a GET, whatever the status.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// Where it stood in the end.
    pub url: Url,
    /// HTTP status.
    pub status: u16,
    /// What kind of document the device says it is.
    pub content_type: Option<String>,
    /// Where a redirect leads, unchecked.
    pub location: Option<String>,
    /// The cookies that this answer set, as they came.
    pub cookies: Vec<String>,
    /// The document.
    pub octets: Vec<u8>,
}

impl Fetched {
    fn of((status, url, headers, octets): Answer) -> Fetched {
        let text = |value: &HeaderValue| value.to_str().ok().map(str::to_owned);
        Fetched {
            status: status.as_u16(),
            content_type: headers.get(header::CONTENT_TYPE).and_then(text),
            location: headers.get(header::LOCATION).and_then(text),
            cookies: headers.get_all(header::SET_COOKIE).iter().filter_map(text).collect(),
            url,
            octets,
        }
    }

    /// The text, its charset decoded.
    pub fn text(&self) -> String {
        charset::decode(&self.octets, self.content_type.as_deref())
    }
}

type Answer = (StatusCode, Url, HeaderMap, Vec<u8>);

/// Where a device answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Origin {
    secure: bool,
    port: u16,
}

/// One read's conversation with one device.
pub struct Visit {
    access: Access,
    client: reqwest::Client,
    seen: tls::Seen,
    start: u16,
    origin: Option<Origin>,
    cookies: Vec<(String, String)>,
    login: Offer,
    requests_left: u32,
    octets_left: usize,
    /// The most octets of one page.
    page: usize,
}

/// Whether the login was offered already.
enum Offer {
    Untried,
    Accepted(Challenge),
    Refused,
}

/// One request without where it goes.
struct Request<'a> {
    method: Method,
    referer: Option<&'a str>,
    body: Option<Vec<u8>>,
}

impl Visit {
    /// A visit that starts at `port`, which must be one of the access.
    ///
    /// # Errors
    /// [`WebError::Elsewhere`] where the access does not permit the port.
    pub fn new(access: Access, port: u16) -> Result<Visit, WebError> {
        if !permitted(&access, port) {
            return Err(WebError::Elsewhere);
        }
        let seen = tls::Seen::default();
        let tls = tls::config(&seen).map_err(|_| WebError::Garbled)?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .pool_max_idle_per_host(1)
            .connect_timeout(CONNECTING)
            .timeout(PATIENCE)
            .user_agent("Mozilla/5.0 (compatible; Quire)")
            .build()
            .map_err(|_| WebError::Garbled)?;
        Ok(Visit {
            access,
            client,
            seen,
            start: port,
            origin: None,
            cookies: Vec::new(),
            login: Offer::Untried,
            requests_left: MAX_REQUESTS,
            octets_left: MAX_VISIT,
            page: MAX_PAGE,
        })
    }

    /// So many requests from now on, instead of what a visit usually may.
    pub fn allow_requests(&mut self, requests: u32) {
        self.requests_left = requests;
    }

    /// Pages of at most so many octets from now on, and never more than any page may have.
    pub fn limit_page(&mut self, octets: usize) {
        self.page = octets.min(MAX_PAGE);
    }

    /// The page at a path of the device. `referer` is a path, too.
    ///
    /// # Errors
    /// See [`WebError`]; a status other than 2xx is one.
    pub async fn get(&mut self, path: &str, referer: Option<&str>) -> Result<Page, WebError> {
        let request = Request { method: Method::GET, referer, body: None };
        let fetched = Fetched::of(sound(self.send(path, &request).await?)?);
        let url = &fetched.url;
        let path = url.query().map_or(url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        Ok(Page { path, text: fetched.text() })
    }

    /// What the device has at a path, redirects on the device followed, whatever the status is in the end.
    ///
    /// # Errors
    /// See [`WebError`].
    pub async fn fetch(&mut self, path: &str) -> Result<Fetched, WebError> {
        let request = Request { method: Method::GET, referer: None, body: None };
        self.send(path, &request).await.map(Fetched::of)
    }

    /// Whether a whole URL may be asked for.
    ///
    /// # Errors
    /// [`WebError::Elsewhere`] where not.
    pub fn permits(&self, url: &str) -> Result<(), WebError> {
        check(&self.access, Url::parse(url).map_err(|_| WebError::Elsewhere)?).map(drop)
    }

    /// What the device has at a whole URL, which must be on it; a redirect is given back, not followed.
    ///
    /// # Errors
    /// See [`WebError`].
    pub async fn load(&mut self, url: &str, referer: Option<&str>) -> Result<Fetched, WebError> {
        let url = check(&self.access, Url::parse(url).map_err(|_| WebError::Elsewhere)?)?;
        let request = Request { method: Method::GET, referer, body: None };
        let (status, headers, octets) = self.exchange(&url, &request).await?;
        Ok(Fetched::of((status, url, headers, octets)))
    }

    /// The device's answer to IPP's Get-Printer-Attributes at a path, undecoded (RFC 8011 section 4.2.5). The body
    /// is made here, so that no caller can ask for another operation.
    ///
    /// # Errors
    /// See [`WebError`].
    pub async fn get_printer_attributes(&mut self, path: &str) -> Result<Vec<u8>, WebError> {
        let host = SocketAddr::new(self.access.ip, self.start);
        let body = super::ipp::question(&format!("ipp://{host}{path}")).ok_or(WebError::Elsewhere)?;
        let request = Request { method: Method::POST, referer: None, body: Some(body) };
        let (_, _, _, octets) = sound(self.send(path, &request).await?)?;
        Ok(octets)
    }

    /// A cookie that the device's own scripts would have set.
    pub fn set_cookie(&mut self, name: &str, value: &str) {
        self.cookies.retain(|(known, _)| known != name);
        if self.cookies.len() < MAX_COOKIES && name.len() + value.len() <= MAX_COOKIE {
            self.cookies.push((name.to_owned(), value.to_owned()));
        }
    }

    /// How many cookies the visit has: a page that set some may have more to say when asked again.
    pub fn cookies(&self) -> usize {
        self.cookies.len()
    }

    /// The certificate that the device showed, to be pinned by the caller.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.seen.get()
    }

    /// True when the device answered over TLS.
    pub fn secure(&self) -> bool {
        self.origin.is_some_and(|origin| origin.secure)
    }

    /// True when the configured login was refused in this visit.
    pub fn login_refused(&self) -> bool {
        matches!(self.login, Offer::Refused)
    }

    /// Sends to where the device answered before; on the first request finds that out.
    async fn send(&mut self, path: &str, request: &Request<'_>) -> Result<Answer, WebError> {
        if let Some(origin) = self.origin {
            return self.follow(origin, path, request).await;
        }
        let mut ended = Err(WebError::Silent);
        for secure in schemes(self.start) {
            let origin = Origin { secure, port: self.start };
            match self.follow(origin, path, request).await {
                // Another scheme may be spoken here; whoever does not listen speaks none.
                Err(WebError::Garbled) => ended = Err(WebError::Garbled),
                // TLS is required (RFC 8010 section 3 lets a printer say so).
                Ok(answer) if answer.0 == StatusCode::UPGRADE_REQUIRED => ended = Ok(answer),
                Ok(answer) => {
                    self.origin.get_or_insert(origin);
                    return Ok(answer);
                }
                Err(error @ (WebError::Silent | WebError::Elsewhere | WebError::TooMuch)) => {
                    return Err(error);
                }
                Err(error) => {
                    self.origin.get_or_insert(origin);
                    return Err(error);
                }
            }
        }
        ended
    }

    /// One page with its redirects and, where it is asked for, the login.
    async fn follow(
        &mut self,
        origin: Origin,
        path: &str,
        request: &Request<'_>,
    ) -> Result<Answer, WebError> {
        let mut url = self.url(origin, path)?;
        for _ in 0..=MAX_REDIRECTS {
            let (status, headers, octets) = self.exchange(&url, request).await?;
            if status.is_success() {
                self.settle(&url);
            }
            if !status.is_redirection() {
                return Ok((status, url, headers, octets));
            }
            let to = headers.get(header::LOCATION).and_then(|to| to.to_str().ok());
            url = redirected(&self.access, &url, to.ok_or(WebError::Garbled)?)?;
        }
        Err(WebError::TooMuch)
    }

    /// One request, and a second one with the login where the first was refused for want of it.
    async fn exchange(
        &mut self,
        url: &Url,
        request: &Request<'_>,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>), WebError> {
        let authorization = self.authorize(url, request);
        let offered = authorization.is_some();
        let answer = self.ask(url, request, authorization).await?;
        if answer.0 != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        if matches!(self.login, Offer::Refused) {
            return Err(WebError::LoginRefused);
        }
        let known =
            self.access.pin.is_none() || !self.secure_now(url) || self.access.pin == self.fingerprint();
        let challenge = digest::challenge(&answer.1).filter(|_| self.access.login.is_some() && known);
        let Some(challenge) = challenge else { return Err(WebError::WantsLogin) };
        // RFC 7616 section 3.3: only `stale` says that the login was right and the nonce old.
        if offered && !challenge.stale() {
            self.login = Offer::Refused;
            return Err(WebError::LoginRefused);
        }
        self.login = Offer::Accepted(challenge);
        let authorization = self.authorize(url, request);
        let answer = self.ask(url, request, authorization).await?;
        if answer.0 == StatusCode::UNAUTHORIZED {
            self.login = Offer::Refused;
            return Err(WebError::LoginRefused);
        }
        Ok(answer)
    }

    fn authorize(&mut self, url: &Url, request: &Request<'_>) -> Option<String> {
        let (Offer::Accepted(challenge), Some(login)) = (&mut self.login, &self.access.login) else {
            return None;
        };
        let uri = url.query().map_or(url.path().to_owned(), |query| format!("{}?{query}", url.path()));
        challenge.answer(&login.user, &login.password, request.method.as_str(), &uri)
    }

    async fn ask(
        &mut self,
        url: &Url,
        request: &Request<'_>,
        authorization: Option<String>,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>), WebError> {
        self.requests_left = self.requests_left.checked_sub(1).ok_or(WebError::TooMuch)?;
        let mut sending = self.client.request(request.method.clone(), url.clone());
        if !self.cookies.is_empty() {
            let cookies: Vec<String> = self.cookies.iter().map(|(n, v)| format!("{n}={v}")).collect();
            sending = sending.header(header::COOKIE, cookies.join("; "));
        }
        if let Some(referer) = request.referer.and_then(|path| url.join(path).ok()) {
            sending = sending.header(header::REFERER, referer.as_str());
        }
        if let Some(authorization) = authorization {
            sending = sending.header(header::AUTHORIZATION, authorization);
        }
        sending = match &request.body {
            Some(body) => sending.header(header::CONTENT_TYPE, "application/ipp").body(body.clone()),
            None => sending.header(header::ACCEPT_LANGUAGE, "en"),
        };
        let mut response = sending.send().await.map_err(|error| failure(&error))?;
        let (status, headers) = (response.status(), response.headers().clone());
        self.keep_cookies(&headers);
        let mut octets = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| failure(&error))? {
            self.octets_left = self.octets_left.checked_sub(chunk.len()).ok_or(WebError::TooMuch)?;
            if octets.len() + chunk.len() > self.page {
                return Err(WebError::TooMuch);
            }
            octets.extend_from_slice(&chunk);
        }
        Ok((status, headers, octets))
    }

    fn keep_cookies(&mut self, headers: &HeaderMap) {
        for (name, value) in cookies_of(headers) {
            self.set_cookie(&name, &value);
        }
    }

    fn url(&self, origin: Origin, path: &str) -> Result<Url, WebError> {
        let scheme = if origin.secure { "https" } else { "http" };
        let host = SocketAddr::new(self.access.ip, origin.port);
        if !path.starts_with('/') {
            return Err(WebError::Elsewhere);
        }
        let url = Url::parse(&format!("{scheme}://{host}{path}")).map_err(|_| WebError::Elsewhere)?;
        check(&self.access, url)
    }

    /// The next pages are asked for where this one was found.
    fn settle(&mut self, url: &Url) {
        if let Some(port) = url.port_or_known_default() {
            self.origin = Some(Origin { secure: self.secure_now(url), port });
        }
    }

    fn secure_now(&self, url: &Url) -> bool {
        url.scheme() == "https"
    }
}

/// The answer where it is a page.
fn sound(answer: Answer) -> Result<Answer, WebError> {
    if answer.0.is_success() { Ok(answer) } else { Err(WebError::Status(answer.0.as_u16())) }
}

/// The one gate that every URL passes before it is asked for.
fn check(access: &Access, url: Url) -> Result<Url, WebError> {
    let host = url.host_str().map(|host| host.trim_start_matches('[').trim_end_matches(']'));
    let here = host.and_then(|host| host.parse::<IpAddr>().ok()) == Some(access.ip);
    let port = url.port_or_known_default().is_some_and(|port| permitted(access, port));
    let plain = url.username().is_empty() && url.password().is_none();
    let web = matches!(url.scheme(), "http" | "https");
    if here && port && plain && web { Ok(url) } else { Err(WebError::Elsewhere) }
}

fn redirected(access: &Access, from: &Url, to: &str) -> Result<Url, WebError> {
    check(access, from.join(to.trim()).map_err(|_| WebError::Elsewhere)?)
}

/// Names and values of the cookies that an answer sets.
fn cookies_of(headers: &HeaderMap) -> Vec<(String, String)> {
    let set = headers.get_all(header::SET_COOKIE).iter().filter_map(|value| value.to_str().ok());
    set.filter_map(|value| value.split(';').next()?.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

fn permitted(access: &Access, port: u16) -> bool {
    // What is written to these comes out on paper.
    const PRINTING: [u16; 4] = [515, 9100, 9101, 9102];
    access.ports.contains(&port) && !PRINTING.contains(&port)
}

/// The schemes worth trying on a port, TLS or not, in order.
fn schemes(port: u16) -> Vec<bool> {
    match port {
        443 | 8443 => vec![true],
        80 | 8080 => vec![false],
        _ => vec![false, true],
    }
}

fn failure(error: &reqwest::Error) -> WebError {
    if error.is_timeout() {
        return WebError::Silent;
    }
    // A handshake that fails is reported as a connection that fails, but somebody was there.
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(inner) = cause {
        if let Some(io) = inner.downcast_ref::<std::io::Error>() {
            use std::io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable, TimedOut};
            if matches!(io.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable | TimedOut) {
                return WebError::Silent;
            }
        }
        cause = inner.source();
    }
    WebError::Garbled
}

#[cfg(test)]
pub(super) mod tests;
