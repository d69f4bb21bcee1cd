//! A profile that wants a page with JavaScript, on a device whose node has no Chromium: a node that has it shows the page,
//! and the reading stays its owner's.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, Ports, TRANSITION, own_host, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{complain, free_udp_port, wait};
use quire_tests::website::Website;
use serde_json::Value;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

/// For a sweep and a few reads, and Chromium's first start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);

/// Only a browser shows the number.
const PAGE: &str = "<!doctype html><p id=scans></p>\
    <script>document.getElementById('scans').textContent = 'Scans ' + (1200 + 34);</script>";

/// Goes on without the page: one that fails three times would be taken back.
const PROFILE: &str = r##"//! name: shown-elsewhere
//! version: 1
//! match: object-id 1.3.6.1
let shown = ();
try { shown = page("/status"); } catch (why) { log("no page: " + why); }
if shown != () {
    let cell = html(shown.html).select("#scans")[0].text;
    cell.replace("Scans ", "");
    meter("scans", parse_int(cell), "/status#scans");
}
"##;

#[test]
fn a_page_is_shown_by_the_node_that_has_a_browser() {
    let places = ["/usr/lib/chromium/chromium", "/usr/bin/chromium", "/usr/bin/google-chrome-stable"];
    let there =
        places.iter().any(|path| Path::new(path).is_file()) && Path::new("/usr/bin/setpriv").is_file();
    if !there {
        return complain(
            "left out: a page handed over to another node (Chromium or setpriv is not installed)",
        );
    }
    scenario().unwrap();
}

fn capabilities(cluster: &Cluster) -> Result<Vec<(String, Value)>> {
    let rows = cluster.list(&["members"])?;
    let name = |row: &Value| row["name"].as_str().unwrap_or_default().to_owned();
    Ok(rows.iter().map(|row| (name(row), row["capabilities"].clone())).collect())
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 50, 0, 1);
    let port = free_udp_port(base.into())?;
    let fleet = Fleet::start(&Spec { base, port, printers: 1, others: 0, ..Spec::default() })?;
    let device = fleet.printers().next().context("no printer")?.address;
    let site = Website::start(device, &[("/status", PAGE)])?;
    let mut cluster = Cluster::empty(own_host(), Ports::Free)?;
    cluster.deprive("n1");
    cluster.init("n1")?;
    let file = cluster.scratch("profile.rhai");
    std::fs::write(&file, PROFILE).context("write the profile")?;
    cluster.any(&["script", "put", file.to_str().context("a path")?, "--now"])?.ok()?;
    let web = format!("[http]\nports = [{}]\nchromium = true\n", site.port());
    cluster.apply(&settings(&["127.50.0.0/30"], port, 500).replace("[http]\nchromium = false\n", &web))?;

    // Alone it reads the device without the page.
    wait("the device", PATIENCE, || {
        let devices = cluster.list(&["devices"])?;
        ensure!(devices.len() == 1 && devices[0]["metered_at"].is_string(), "{devices:?}");
        Ok(())
    })?;
    ensure!(cluster.list(&["devices"])?[0]["counters"]["scans"] != 1234, "who showed it?");
    ensure!(site.asked() == 0, "nobody can show the page, and it was asked for");

    cluster.join("n2")?;
    wait("n2 to say that it has Chromium", TRANSITION, || {
        let said = capabilities(&cluster)?;
        let has =
            |name: &str| said.iter().any(|(node, had)| node == name && had.to_string().contains("chromium"));
        ensure!(has("n2") && !has("n1"), "{said:?}");
        Ok(())
    })?;
    wait("the page's counter", PATIENCE, || {
        let devices = cluster.list(&["devices"])?;
        ensure!(devices.len() == 1 && devices[0]["counters"]["scans"] == 1234, "{devices:?}");
        Ok(())
    })?;
    let read = &cluster.list(&["devices"])?[0];
    ensure!(read["node"] == "n1", "the reading is its owner's: {read}");
    let from = read["sources"]["counters.scans"].as_str().unwrap_or_default();
    ensure!(from.ends_with("/status#scans") && from.contains(&device.to_string()), "{read}");
    ensure!(site.most_at_once() == 1, "{} sessions at the same time", site.most_at_once());
    cluster.finish()
}
