//! `quire discover`: from flags to a pass, from findings to a listing.

use std::io::IsTerminal as _;
use std::sync::Arc;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use tokio::sync::mpsc;

use super::args::{Discover, Usage};
use super::output::{self, Format};
use super::remote::DEVICES;
use crate::discovery::{self, Explanation, Finding, Options};
use crate::snmp::{AuthProtocol, Credential, KeyExtension, PrivProtocol, V3};

/// Findings on their way to the terminal: enough for a burst, small enough to hold the pass back when
/// the terminal is slower.
const FINDINGS: usize = 256;

/// The ports of devices' own pages that are asked where none is named.
const HTTP_PORTS: [u16; 3] = [80, 443, 8080];

pub(super) async fn run(discover: Discover, format: Format) -> anyhow::Result<()> {
    let explain = discover.explain;
    let summary_file = discover.summary.clone();
    let options = options(discover)?;
    if explain {
        return print_explanation(&discovery::explain(&options), &options, format);
    }
    let addresses = discovery::explain(&options).addresses;
    let bar = progress(addresses);
    let (tell, mut findings) = mpsc::channel(FINDINGS);
    let pass = tokio::spawn(discovery::run(options, tell));
    let mut devices = Vec::new();
    while let Some(finding) = findings.recv().await {
        match finding {
            Finding::Progress(done) => bar.set_position(done),
            Finding::Addresses(all) => bar.set_length(all),
            Finding::Remark(text) => bar.suspend(|| output::warn(&text)),
            Finding::Device(device) if format == Format::Json => {
                bar.suspend(|| output::list(format, DEVICES, std::slice::from_ref(&device)))?;
            }
            Finding::Device(device) => devices.push(device),
        }
    }
    bar.finish_and_clear();
    let summary = pass.await.context("run the pass")??;
    if format != Format::Json {
        devices.sort_by_key(address);
        output::list(format, DEVICES, &devices)?;
    }
    if let Some(path) = summary_file {
        let text = serde_json::to_string(&summary).context("write the summary")?;
        std::fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

fn address(device: &Value) -> Option<std::net::IpAddr> {
    device.get("address").and_then(Value::as_str).and_then(|address| address.parse().ok())
}

fn progress(addresses: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} addresses, {eta} left")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(addresses).with_style(style)
}

fn print_explanation(explanation: &Explanation, options: &Options, format: Format) -> anyhow::Result<()> {
    let value = serde_json::to_value(explanation).context("write the explanation")?;
    let seconds = explanation.seconds_at_most.ceil();
    let time = match options.rate {
        0 => format!("{seconds} seconds at most, with no limit on the rate"),
        rate => format!("{seconds} seconds at most, at {rate} packets a second"),
    };
    let first = explanation.explore.as_ref().map(|plan| format!("{plan}\n")).unwrap_or_default();
    let pages = match (options.http.as_slice(), options.http_named) {
        ([], _) => String::new(),
        (ports, true) => format!(
            "pages: every address without SNMP, and devices that leave something open, on TCP {ports:?}\n"
        ),
        (ports, false) => {
            format!("pages: devices that leave their serial, total or supplies open, on TCP {ports:?}\n")
        }
    };
    let ipp = if options.ipp { "IPP: the same devices, on TCP 631\n" } else { "" };
    let local = match options.local {
        true => "this machine's own printers: asked of CUPS, ipp-usb and the kernel here\n",
        false => "",
    };
    let text = format!(
        "{first}{local}{} addresses ({} excluded)\n{} to {} packets to find responders; reading a device takes a few more\n{pages}{ipp}{time}\nnothing was sent",
        explanation.addresses,
        explanation.excluded,
        explanation.packets_at_least,
        explanation.packets_at_most,
    );
    Ok(output::object(format, &value, &text)?)
}

fn options(discover: Discover) -> anyhow::Result<Options> {
    let credentials = credentials(&discover)?;
    Ok(Options {
        targets: discover.targets,
        port: discover.port,
        credentials,
        exclude: discover.exclude.into_iter().flat_map(|exclusion| exclusion.0).collect(),
        rate: discover.rate,
        timeout: discover.timeout,
        retries: discover.retries,
        // Who names a version wants no other on the wire.
        find_engines: !discover.v1 && !discover.v2c,
        read: !discover.no_read,
        http: match (discover.no_http, discover.http_port.is_empty()) {
            (true, _) => Vec::new(),
            (false, true) => HTTP_PORTS.to_vec(),
            (false, false) => discover.http_port.clone(),
        },
        http_named: !discover.http_port.is_empty(),
        ipp: !discover.no_ipp,
        hops: discover.hops,
        local: discover.local,
    })
}

/// In the order in which they are tried: v2c, then v1 for those that stay silent, then v3.
fn credentials(discover: &Discover) -> anyhow::Result<Vec<Arc<Credential>>> {
    let wrong = |error: crate::snmp::BadCredential| Usage(error.to_string());
    let mut credentials = Vec::new();
    // A v3 user replaces the default community, not one that was named.
    let default_only = discover.community.len() == 1
        && discover.community[0].expose() == "public"
        && !discover.v1
        && !discover.v2c;
    if discover.v3_user.is_none() || !default_only {
        if !discover.v1 {
            for community in &discover.community {
                credentials.push(Arc::new(Credential::v2c(community.expose()).map_err(wrong)?));
            }
        }
        if !discover.v2c {
            for community in &discover.community {
                credentials.push(Arc::new(Credential::v1(community.expose()).map_err(wrong)?));
            }
        }
    }
    if let Some(user) = &discover.v3_user {
        let auth = match (&discover.v3_auth, &discover.v3_auth_pass) {
            (Some(protocol), Some(pass)) => Some((auth(protocol)?, pass.expose())),
            _ => None,
        };
        let privacy = match (&discover.v3_priv, &discover.v3_priv_pass) {
            (Some(protocol), Some(pass)) => Some((privacy(protocol)?, pass.expose())),
            _ => None,
        };
        let v3 = V3 { user, auth, privacy, extension: KeyExtension::default(), context: "" };
        credentials.push(Arc::new(Credential::v3(v3).map_err(wrong)?));
    }
    Ok(credentials)
}

fn auth(word: &str) -> Result<AuthProtocol, Usage> {
    word.parse().map_err(|_| Usage(format!("`{word}` is no authentication protocol")))
}

fn privacy(word: &str) -> Result<PrivProtocol, Usage> {
    word.parse().map_err(|_| Usage(format!("`{word}` is no privacy protocol")))
}
