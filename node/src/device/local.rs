//! Printers that hang on the node itself, by USB or a parallel port: from CUPS, from ipp-usb, and from what the kernel
//! says of them.
//!
//! The door: [`find`] with the [`Places`] to look at. It asks services of this machine only, reads files only, and
//! never opens a printer's own device file: what is written there comes out on paper, and reading it takes the
//! printer away from whoever prints.

mod cups;
mod ids;

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use quire_proto::reading::{Reading, Via};

use super::http::{Access, Visit};
use super::web::{self, Asking};
use super::{ipp, lacks, merge};

/// Printers of one node; a machine with more has a print server in front.
const MOST: usize = 64;

/// Where to look on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// CUPS' socket.
    pub cups: PathBuf,
    /// CUPS' port on 127.0.0.1 where there is no socket.
    pub cups_port: Option<u16>,
    /// Where ipp-usb keeps which printer has which port (ipp-usb(8), FILES).
    pub ipp_usb: PathBuf,
    /// What `/sys` and `/proc` stand in.
    pub root: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Places {
            // Where CUPS' own programs look for it (cups(1)); a host name there is somebody else's queues.
            cups: std::env::var_os("CUPS_SERVER")
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
                .unwrap_or_else(|| "/run/cups/cups.sock".into()),
            cups_port: Some(631),
            ipp_usb: "/var/ipp-usb/dev".into(),
            root: "/".into(),
        }
    }
}

/// One printer.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The same on every look: its serial number, else where it hangs.
    pub key: String,
    /// What was learnt.
    pub reading: Reading,
}

/// All that are found, each once.
pub async fn find(places: &Places) -> Vec<Found> {
    let mut found = Vec::new();
    for (name, port) in ids::ipp_usb(&places.ipp_usb).into_iter().take(MOST) {
        if let Some(reading) = over_ipp_usb(port).await {
            join(&mut found, Found { key: format!("ipp-usb:{name}"), reading });
        }
    }
    for queue in cups::queues(places).await.into_iter().take(MOST) {
        join(&mut found, queue);
    }
    for id in ids::of_kernel(&places.root).into_iter().take(MOST) {
        join(&mut found, Found { key: id.from.clone(), reading: id.reading() });
    }
    for printer in &mut found {
        if let Some(serial) = &printer.reading.facts.serial {
            printer.key = format!("serial:{serial}");
        }
    }
    found
}

/// The printer behind a port of ipp-usb: it is the printer's own web server, carried over USB.
async fn over_ipp_usb(port: u16) -> Option<Reading> {
    let ip = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let access = Access { ip, ports: vec![port], login: None, pin: None };
    let octets = Visit::new(access, port).ok()?.get_printer_attributes("/ipp/print").await.ok()?;
    let mut reading = ipp::read(&octets, &format!("ipp-usb:{port}/ipp/print"))?;
    reading.via = vec![Via::Ipp, Via::Usb];
    if lacks(&reading) {
        let asking = Asking { ports: vec![port], unknown: true, ..Asking::default() };
        reading = web::complete(reading, ip, &asking).await.0;
    }
    Some(reading)
}

/// Adds a printer, to the one that it is where another way has found it before.
fn join(found: &mut Vec<Found>, new: Found) {
    let room = found.len() < MOST;
    match found.iter_mut().find(|known| same(&known.reading, &new.reading)) {
        Some(known) => {
            known.reading = merge(std::mem::take(&mut known.reading), new.reading, Reading::default());
        }
        None if room => found.push(new),
        None => {}
    }
}

/// The same serial number; or the same model where one of the two does not tell its serial.
fn same(one: &Reading, other: &Reading) -> bool {
    let plain =
        |text: &Option<String>| text.as_deref().map(|text| text.trim_start_matches('0').to_lowercase());
    let model = |reading: &Reading| {
        let model = reading.facts.model.as_deref()?.to_lowercase();
        let vendor = reading.facts.vendor.as_deref().unwrap_or_default().to_lowercase();
        let bare = model.strip_prefix(&vendor).unwrap_or(&model).replace("series", "");
        Some(bare.chars().filter(|c| c.is_alphanumeric()).collect::<String>())
    };
    match (plain(&one.facts.serial), plain(&other.facts.serial)) {
        (Some(one), Some(other)) => one == other,
        _ => model(one).is_some_and(|text| Some(text) == model(other)),
    }
}

#[cfg(test)]
mod tests;
