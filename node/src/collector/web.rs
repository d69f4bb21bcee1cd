//! Devices' own pages and IPP in the collector: what SNMP leaves open, without ever holding up SNMP.
//!
//! A visit may take half a minute, so it needs a place in a lane that is narrower than the room for reads: at the
//! bound a device is reported as SNMP has it, with what its pages said of its identity before. It must never report
//! a counter that was not read just now.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quire_coordinator::settings::Settings;
use quire_proto::id::Millis;
use quire_proto::reading::{Counters, Reading};
use tokio::sync::Semaphore;

use crate::clock;
use crate::device::browser::Browser;
use crate::device::http::{Fingerprint, Login};
use crate::device::web::{self, Asking, Learnt};
use crate::device::{lacks, merge};

/// Visits at the same time, one connection each: as many sockets.
const ACTIVE: usize = 16;
/// Scheduled reads in or waiting for a visit: half the room for reads, so the other half is always SNMP's.
const READING: usize = super::READS / 2;
/// The same of reads during sweeps, of which there may be 64 a unit.
const SWEEPING: usize = 24;
/// How long a device whose pages said nothing is left alone.
const NOTHING_FOR_MS: u64 = 24 * 60 * 60 * 1_000;

/// Which reads a visit takes room from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Those of the schedule.
    Read,
    /// Those of new devices in a sweep.
    Sweep,
}

/// The certificate of one device through one read: the one that the cluster knows it by, else the first that it shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Pin {
    known: Option<Fingerprint>,
    new: Option<Fingerprint>,
}

impl Pin {
    /// As a device's row has it.
    pub(super) fn of(stored: &[u8]) -> Pin {
        Pin { known: stored.try_into().ok().map(Fingerprint), new: None }
    }

    fn get(&self) -> Option<Fingerprint> {
        self.known.or(self.new)
    }

    /// Takes note of what a visit met; the first one stays, and another one is given back.
    fn meet(&mut self, met: Option<Fingerprint>) -> Option<Fingerprint> {
        match (self.get(), met) {
            (Some(before), Some(now)) if before != now => return Some(now),
            (None, Some(now)) => self.new = Some(now),
            (Some(_), Some(_)) | (_, None) => {}
        }
        None
    }

    /// What the cluster should pin from now on; empty where that is nothing new.
    pub(super) fn news(&self) -> Bytes {
        self.new.map(|fingerprint| Bytes::copy_from_slice(&fingerprint.0)).unwrap_or_default()
    }
}

/// What is remembered of a device, until the process ends or the settings change.
#[derive(Clone, Default)]
struct Known {
    login_refused: bool,
    /// A certificate that is not the pinned one, which was warned of.
    strange: Option<Fingerprint>,
    nothing_until: Millis,
    /// What its pages said last, without counters and levels.
    identity: Reading,
}

impl Known {
    /// A refused login stays refused.
    fn learn(&mut self, ip: IpAddr, learnt: &Learnt) {
        if learnt.login_refused && !self.login_refused {
            tracing::warn!(%ip, "the device refused the configured login; it is not offered again");
        }
        self.login_refused |= learnt.login_refused;
    }

    /// Warns of another certificate, once for each.
    fn warn_of(&mut self, ip: IpAddr, strange: Option<Fingerprint>) {
        if let Some(met) = strange.filter(|_| strange != self.strange) {
            tracing::warn!(%ip, %met, "the device's certificate is not the pinned one: no login is offered");
            self.strange = strange;
        }
    }
}

/// The visits of one node.
pub(crate) struct Web {
    active: Semaphore,
    reading: Semaphore,
    sweeping: Semaphore,
    /// A bound is the number of devices that a node owns.
    known: Mutex<HashMap<IpAddr, Known>>,
    browser: Browser,
}

impl Web {
    /// The visits of a node with this browser.
    pub(super) fn new(browser: Browser) -> Web {
        Web {
            active: Semaphore::new(ACTIVE),
            reading: Semaphore::new(READING),
            sweeping: Semaphore::new(SWEEPING),
            known: Mutex::default(),
            browser,
        }
    }

    /// How scripts may ask a device's web server: as visits do, certificate and login included.
    pub(super) fn asking(&self, settings: &Settings, ip: IpAddr, pin: &Pin) -> Asking {
        let known = self.known().get(&ip).cloned().unwrap_or_default();
        if excluded(settings, ip) {
            return Asking::default();
        }
        let browser = settings.http.chromium.then(|| self.browser.clone());
        Asking { browser, ..asking(settings, ip, &known, pin) }
    }

    /// Remembers what somebody learnt of a device's web server.
    pub(super) fn learn(&self, ip: IpAddr, learnt: &Learnt, pin: &mut Pin) {
        let strange = pin.meet(learnt.fingerprint);
        if learnt.login_refused || strange.is_some() {
            let mut known = self.known();
            let known = known.entry(ip).or_default();
            known.warn_of(ip, strange);
            known.learn(ip, learnt);
        }
    }

    /// Forgets everything, so that changed logins are tried.
    pub(super) fn clear(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, HashMap<IpAddr, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `standard` with what pages and IPP add, where it lacks something and there is room.
    pub(super) async fn complete(
        &self,
        settings: &Settings,
        standard: Reading,
        ip: IpAddr,
        lane: Lane,
        pin: &mut Pin,
    ) -> Reading {
        if settings.http.ports.is_empty() || !lacks(&standard) {
            return standard;
        }
        let mut known = self.known().get(&ip).cloned().unwrap_or_default();
        let room = match lane {
            Lane::Read => &self.reading,
            Lane::Sweep => &self.sweeping,
        };
        if clock::now() < known.nothing_until || excluded(settings, ip) {
            return remember(standard, known.identity);
        }
        let Ok(_room) = room.try_acquire() else { return remember(standard, known.identity) };
        let Ok(_turn) = self.active.acquire().await else { return standard };
        let asking = asking(settings, ip, &known, pin);
        let (whole, learnt) = web::complete(standard, ip, &asking).await;
        known.warn_of(ip, pin.meet(learnt.fingerprint));
        known.learn(ip, &learnt);
        let whole = remember(whole, known.identity.clone());
        if learnt.found {
            known.identity = identity(&whole);
        } else {
            known.nothing_until = Millis(clock::now().0.saturating_add(NOTHING_FOR_MS));
        }
        self.known().insert(ip, known);
        whole
    }
}

/// `reading` with what the same device said of its identity before. An address is no identity: only a hardware
/// address that is the same says that this is the same device.
fn remember(reading: Reading, identity: Reading) -> Reading {
    let same = reading.facts.mac.is_some() && reading.facts.mac == identity.facts.mac;
    if same { merge(reading, identity, Reading::default()) } else { reading }
}

fn excluded(settings: &Settings, ip: IpAddr) -> bool {
    settings.discovery.exclude.iter().any(|prefix| prefix.contains(&ip))
}

fn asking(settings: &Settings, ip: IpAddr, known: &Known, pin: &Pin) -> Asking {
    let login = settings.http_logins.iter().find(|login| login.segment.contains(&ip));
    let login = login.filter(|_| !known.login_refused);
    Asking {
        ports: settings.http.ports.clone(),
        ipp: true,
        unknown: false,
        login: login.map(|login| Arc::new(Login::new(&login.user, login.password.expose()))),
        pin: pin.get(),
        browser: None,
        elsewhere: None,
    }
}

/// What does not change between two reads, with its sources.
fn identity(reading: &Reading) -> Reading {
    let mut sources = reading.sources.clone();
    sources.retain(|field, _| {
        !field.contains('.') && !matches!(field.as_str(), "status" | "conditions" | "display")
    });
    Reading {
        facts: reading.facts.clone(),
        counters: Counters::default(),
        sources,
        via: reading.via.clone(),
        ..Reading::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::reading::Via;

    fn settings(text: &str) -> Settings {
        Settings::parse(text).unwrap()
    }

    #[test]
    fn a_login_is_for_its_segment_and_never_after_a_refusal() {
        let settings = settings(
            "[[http_login]]\nsegment = \"10.1.0.0/16\"\nuser = \"viewer\"\npassword = \"top secret\"\n",
        );
        let mut known = Known::default();
        let none = Pin::default();
        let asked = asking(&settings, "10.1.2.3".parse().unwrap(), &known, &none);
        assert!(asked.login.is_some());
        assert!(!format!("{asked:?}").contains("top secret"));
        assert!(asking(&settings, "10.2.2.3".parse().unwrap(), &known, &none).login.is_none());
        known.login_refused = true;
        assert!(asking(&settings, "10.1.2.3".parse().unwrap(), &known, &none).login.is_none());
    }

    #[test]
    fn what_a_script_learns_holds_for_every_visit() {
        let settings = settings(
            "[discovery]\nexclude = [\"10.1.0.5\"]\n[[http_login]]\nsegment = \"10.1.0.0/16\"\n\
             user = \"viewer\"\npassword = \"top secret\"\n",
        );
        let (web, ip) = (Web::new(Browser::off()), "10.1.2.3".parse().unwrap());
        let (first, other) = (Fingerprint([1; 32]), Fingerprint([2; 32]));
        let mut pin = Pin::default();
        let before = web.asking(&settings, ip, &pin);
        assert!(before.login.is_some() && before.pin.is_none() && pin.news().is_empty());
        web.learn(ip, &Learnt { fingerprint: Some(first), ..Learnt::default() }, &mut pin);
        let met = Learnt { fingerprint: Some(other), login_refused: true, ..Learnt::default() };
        web.learn(ip, &met, &mut pin);
        let asked = web.asking(&settings, ip, &pin);
        assert_eq!((asked.pin, asked.login.is_none()), (Some(first), true));
        assert_eq!(
            web.known().get(&ip).and_then(|known| known.strange),
            Some(other),
            "it was warned of once"
        );
        // The next read, on whichever node, starts from what the cluster keeps, and has nothing new to say.
        let mut next = Pin::of(&pin.news());
        web.learn(ip, &met, &mut next);
        assert_eq!((next.get(), next.news().is_empty()), (Some(first), true));
        assert_eq!(Pin::of(b"no digest"), Pin::default());
        assert!(web.asking(&settings, "10.1.0.5".parse().unwrap(), &pin).ports.is_empty(), "excluded");
    }

    #[test]
    fn what_is_remembered_holds_no_counter() {
        let mut reading = Reading { via: vec![Via::SnmpV2c, Via::Http], ..Reading::default() };
        reading.facts.serial = Some("S1".into());
        reading.counters.total = Some(7);
        for field in ["serial", "counters.total", "supplies.1.percent", "status"] {
            reading.sources.insert(field.into(), "/x".into());
        }
        let kept = identity(&reading);
        assert!(kept.counters.is_empty() && kept.facts.serial.is_some());
        assert_eq!(kept.sources.keys().collect::<Vec<_>>(), ["serial"]);
    }

    #[test]
    fn another_device_at_the_address_gets_no_serial_of_the_one_before() {
        let with = |mac: &str, serial: Option<&str>| {
            let mut reading = Reading::default();
            reading.facts.mac = mac.parse().ok();
            reading.facts.serial = serial.map(str::to_owned);
            reading
        };
        let before = with("00:11:22:33:44:55", Some("S1"));
        let same = remember(with("00:11:22:33:44:55", None), before.clone());
        assert_eq!(same.facts.serial.as_deref(), Some("S1"));
        assert_eq!(remember(with("00:11:22:33:44:66", None), before.clone()).facts.serial, None);
        assert_eq!(remember(with("", None), before).facts.serial, None);
    }

    /// Pages fill the gap, what they said of the identity outlives them, what they counted does not.
    #[tokio::test]
    async fn a_counter_is_never_older_than_its_reading() {
        let page = "<ProductUsageDyn><PrinterSubunit><TotalImpressions>7</TotalImpressions></PrinterSubunit></ProductUsageDyn>";
        let config = "<ProductConfigDyn><ProductInformation><SerialNumber>CND8F5PF0F</SerialNumber></ProductInformation></ProductConfigDyn>";
        let router = axum::Router::new()
            .route("/DevMgmt/ProductUsageDyn.xml", axum::routing::get(move || async move { page }))
            .route("/DevMgmt/ProductConfigDyn.xml", axum::routing::get(move || async move { config }));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move { axum::serve(listener, router).await });
        let settings = settings(&format!("[http]\nports = [{port}]\n"));
        let ip: IpAddr = "127.0.0.1".parse().unwrap();
        let mut standard = Reading { via: vec![Via::SnmpV2c], ..Reading::default() };
        standard.facts.vendor = Some("HP".into());
        standard.facts.mac = "00:11:22:33:44:55".parse().ok();
        let (web, mut pin) = (Web::new(Browser::off()), Pin::default());
        let whole = web.complete(&settings, standard.clone(), ip, Lane::Read, &mut pin).await;
        assert_eq!((whole.facts.serial.as_deref(), whole.counters.total), (Some("CND8F5PF0F"), Some(7)));
        assert_eq!(whole.via, [Via::SnmpV2c, Via::Http]);
        // No room: as SNMP has it, with the identity.
        let _taken = web.sweeping.try_acquire_many(24).unwrap();
        let bare = web.complete(&settings, standard.clone(), ip, Lane::Sweep, &mut pin).await;
        assert_eq!((bare.facts.serial.as_deref(), bare.counters.total), (Some("CND8F5PF0F"), None));
        // Excluded: the same, and nobody is asked.
        server.abort();
        let settings =
            self::settings(&format!("[discovery]\nexclude = [\"127.0.0.1\"]\n[http]\nports = [{port}]\n"));
        let excluded = web.complete(&settings, standard, ip, Lane::Read, &mut pin).await;
        assert_eq!(excluded.counters.total, None);
    }

    #[tokio::test]
    async fn without_ports_nothing_is_asked() {
        let settings = settings("[http]\nports = []\n");
        let (web, mut pin) = (Web::new(Browser::off()), Pin::default());
        let ip = "127.0.0.1".parse().unwrap();
        let whole = web.complete(&settings, Reading::default(), ip, Lane::Read, &mut pin).await;
        assert_eq!(whole, Reading::default());
        assert!(web.known().is_empty());
    }
}
