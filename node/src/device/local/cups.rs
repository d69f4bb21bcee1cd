//! The print queues of CUPS on this machine whose printers hang on it: CUPS-Get-Printers, then Get-Printer-Attributes
//! of those.
//!
//! A queue knows its device URI, state and markers; its make and model are those of a driver, so they say nothing
//! here. Queues of printers on a network are left alone: those printers are found there.

use std::time::Duration;

use quire_proto::reading::{Reading, Via};
use reqwest::Client;
use reqwest::header::CONTENT_TYPE;

use super::super::ipp;
use super::ids;
use super::{Found, Places};

/// How long CUPS may take for one answer; it is on this machine.
const PATIENCE: Duration = Duration::from_secs(5);
/// Octets of an answer: a queue has about 100.
const LONGEST: usize = 1 << 20;

/// The queues of printers on this machine's cables.
pub(super) async fn queues(places: &Places) -> Vec<Found> {
    let Some((client, base)) = client(places) else { return Vec::new() };
    let Some(list) = ipp::queues_question() else { return Vec::new() };
    let Some(answer) = ask(&client, &format!("{base}/"), list).await else { return Vec::new() };
    let mut found = Vec::new();
    for (name, uri) in ipp::queues(&answer) {
        let Some(id) = ids::of_device_uri(&uri) else { continue };
        let path = format!("/printers/{name}");
        let told = match ipp::question(&format!("ipp://localhost{path}")) {
            Some(question) => ask(&client, &format!("{base}{path}"), question).await,
            None => None,
        };
        let queue = told.and_then(|octets| ipp::read_queue(&octets, &format!("cups:{name}")));
        found.push(Found {
            key: format!("cups:{uri}"),
            reading: of_queue(id.reading(), queue.unwrap_or_default()),
        });
    }
    found
}

/// Identity from the cable, the rest from the queue.
fn of_queue(mut cable: Reading, mut queue: Reading) -> Reading {
    queue.facts.vendor = None;
    queue.facts.model = None;
    queue.facts.serial = None;
    queue.sources.retain(|field, _| !matches!(field.as_str(), "vendor" | "model" | "serial"));
    queue.sources.append(&mut cable.sources);
    let facts = &mut queue.facts;
    let cable = cable.facts.into_inner();
    (facts.vendor, facts.model, facts.serial) = (cable.vendor, cable.model, cable.serial);
    queue.via = vec![Via::Ipp, Via::Usb];
    queue
}

fn client(places: &Places) -> Option<(Client, String)> {
    let builder = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).timeout(PATIENCE);
    if places.cups.exists() {
        return Some((builder.unix_socket(places.cups.clone()).build().ok()?, "http://localhost".to_owned()));
    }
    let port = places.cups_port?;
    Some((builder.build().ok()?, format!("http://127.0.0.1:{port}")))
}

async fn ask(client: &Client, url: &str, question: Vec<u8>) -> Option<Vec<u8>> {
    let sent = client.post(url).header(CONTENT_TYPE, "application/ipp").body(question).send().await;
    let mut answer = sent.ok().filter(|answer| answer.status().is_success())?;
    let mut octets = Vec::new();
    while let Some(chunk) = answer.chunk().await.ok()? {
        if octets.len() + chunk.len() > LONGEST {
            return None;
        }
        octets.extend_from_slice(&chunk);
    }
    Some(octets)
}
