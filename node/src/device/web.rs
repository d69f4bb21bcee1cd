//! Reads a device's own pages and its IPP attributes over the wire, through the confined client.
//!
//! The door: [`complete`], which asks only for what a reading lacks. One connection at a time, families that the
//! brand is known to have only, [`BUDGET`] for the whole of it.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use quire_proto::reading::{Reading, Via};

use super::browser::{Browser, Shown};
use super::ews::{self, Ask, Draft, READERS, Reader, Sheet};
use super::http::{Access, Fetched, Fingerprint, Login, Visit, WebError};
use super::{ipp, lacks, merge};

mod pages;

pub(crate) use pages::Pages;
pub use pages::RenderMiss;

/// How long pages and IPP of one device may take together.
pub const BUDGET: Duration = Duration::from_secs(30);

/// RFC 8010 section 3: the port of IPP.
const IPP: u16 = 631;
/// Where printers have it, most common first.
const IPP_PATHS: [&str; 4] = ["/ipp/print", "/ipp/printer", "/ipp", "/"];

/// How a device may be asked.
#[derive(Clone, Debug, Default)]
pub struct Asking {
    /// Ports of its web server, in order; none asks for no pages.
    pub ports: Vec<u16>,
    /// Whether IPP is asked.
    pub ipp: bool,
    /// Try every family where no brand is known.
    pub unknown: bool,
    /// The login that is configured for it.
    pub login: Option<Arc<Login>>,
    /// The certificate that it had before.
    pub pin: Option<Fingerprint>,
    /// What shows pages that need JavaScript to scripts.
    pub browser: Option<Browser>,
    /// Who shows them where this machine cannot.
    pub elsewhere: Option<Arc<dyn Elsewhere>>,
}

/// Another machine with a browser. It makes its own visit to the device, under the same settings.
pub trait Elsewhere: fmt::Debug + Send + Sync {
    /// The page at a path of the device, at most `most` octets of it; `None` where nobody else shows pages now.
    fn show(
        &self,
        ip: IpAddr,
        path: String,
        most: usize,
        pin: Option<Fingerprint>,
    ) -> BoxFuture<'static, Option<Handed>>;
}

/// What came of a page that was handed over.
#[derive(Debug)]
pub struct Handed {
    /// The page, or why there is none.
    pub page: Result<(Fetched, Shown), RenderMiss>,
    /// What the visit taught.
    pub learnt: Learnt,
}

/// What asking taught beside the reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learnt {
    /// The certificate that the device showed.
    pub fingerprint: Option<Fingerprint>,
    /// The login was refused: it must not be offered again.
    pub login_refused: bool,
    /// Pages or attributes were found.
    pub found: bool,
}

impl Learnt {
    /// Takes in what another visit to the same device learnt.
    pub fn add(&mut self, other: &Learnt) {
        self.fingerprint = other.fingerprint.or(self.fingerprint);
        self.login_refused |= other.login_refused;
        self.found |= other.found;
    }
}

/// `standard` with what pages and IPP add, where it lacks something.
pub async fn complete(standard: Reading, ip: IpAddr, asking: &Asking) -> (Reading, Learnt) {
    let mut learnt = Learnt::default();
    if !lacks(&standard) {
        return (standard, learnt);
    }
    let mut web = Reading::default();
    let mut attributes = Reading::default();
    let asked = tokio::time::timeout(BUDGET, async {
        let mut port = None;
        if let Some((reading, on)) = read_pages(&standard, ip, asking, &mut learnt).await {
            (web, port) = (reading, Some(on));
        }
        if asking.ipp && lacks(&merge(standard.clone(), web.clone(), Reading::default())) {
            attributes = read_attributes(ip, asking, port, &mut learnt).await.unwrap_or_default();
        }
    });
    if asked.await.is_err() {
        tracing::debug!(%ip, "pages took longer than they may");
    }
    learnt.found = !web.via.is_empty() || !attributes.via.is_empty();
    (merge(standard, web, attributes), learnt)
}

fn visit(ip: IpAddr, asking: &Asking, ports: &[u16], port: u16) -> Result<Visit, WebError> {
    let access = Access { ip, ports: ports.to_vec(), login: asking.login.clone(), pin: asking.pin };
    Visit::new(access, port)
}

fn note(visit: &Visit, learnt: &mut Learnt) {
    learnt.fingerprint = visit.fingerprint().or(learnt.fingerprint);
    learnt.login_refused |= visit.login_refused();
}

/// The first family whose pages say anything, and the port where they are.
async fn read_pages(
    standard: &Reading,
    ip: IpAddr,
    asking: &Asking,
    learnt: &mut Learnt,
) -> Option<(Reading, u16)> {
    let readers: Vec<&'static Reader> = match &standard.facts.vendor {
        Some(brand) => ews::readers_of(brand).collect(),
        None if asking.unknown => READERS.to_vec(),
        None => Vec::new(),
    };
    if readers.is_empty() {
        return None;
    }
    for port in &asking.ports {
        let Ok(mut visit) = visit(ip, asking, &asking.ports, *port) else { continue };
        for reader in &readers {
            let sheets = fetch(&mut visit, reader).await;
            note(&visit, learnt);
            let Ok(sheets) = sheets else { break };
            let mut draft = Draft::default();
            (reader.read)(&sheets, &mut draft);
            if says_something(&draft.reading) {
                tracing::debug!(%ip, port, family = reader.id, "read the device's pages");
                let via = if visit.secure() { Via::Https } else { Via::Http };
                draft.reading.via = vec![via];
                return Some((draft.reading, *port));
            }
        }
        // A refused login is refused on every port.
        if learnt.login_refused {
            return None;
        }
    }
    None
}

fn says_something(reading: &Reading) -> bool {
    let facts = &reading.facts;
    let named = facts.model.is_some() || facts.serial.is_some();
    named || !reading.counters.is_empty() || !reading.supplies.is_empty()
}

/// The pages of a family that are there. An error says that no other family needs to be tried here.
async fn fetch(visit: &mut Visit, reader: &Reader) -> Result<Vec<Sheet>, WebError> {
    let mut sheets = Vec::new();
    for (n, ask) in reader.asks.iter().enumerate() {
        for path in ask.paths {
            match get(visit, ask, path).await {
                Ok(text) => {
                    sheets.push(Sheet {
                        ask: n,
                        path: path.split('?').next().unwrap_or(path).to_owned(),
                        text,
                    });
                    break;
                }
                Err(WebError::Status(_) | WebError::WantsLogin | WebError::Elsewhere) => {}
                Err(error) if sheets.is_empty() => return Err(error),
                // What came is good; the rest is for the next read.
                Err(_) => return Ok(sheets),
            }
        }
    }
    Ok(sheets)
}

async fn get(visit: &mut Visit, ask: &Ask, path: &str) -> Result<String, WebError> {
    for (name, value) in ask.cookies {
        visit.set_cookie(name, value);
    }
    let before = visit.cookies();
    let page = visit.get(path, ask.referer).await?;
    if ask.again && visit.cookies() > before {
        return Ok(visit.get(path, ask.referer).await?.text);
    }
    Ok(page.text)
}

/// IPP on its own port, else on the port of the pages: some devices have it there.
async fn read_attributes(
    ip: IpAddr,
    asking: &Asking,
    web: Option<u16>,
    learnt: &mut Learnt,
) -> Option<Reading> {
    for port in [Some(IPP), web].into_iter().flatten() {
        let Ok(mut visit) = visit(ip, asking, &[port], port) else { continue };
        for path in IPP_PATHS {
            let answer = visit.get_printer_attributes(path).await;
            note(&visit, learnt);
            match answer {
                Ok(octets) => {
                    let scheme = if visit.secure() { "ipps" } else { "ipp" };
                    if let Some(reading) = ipp::read(&octets, &format!("{scheme}:{path}")) {
                        return Some(reading);
                    }
                }
                Err(WebError::Status(_)) => {}
                Err(_) => break,
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
