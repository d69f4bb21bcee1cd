//! The certificate of a device's web server: pinned when it is met first, kept through the death of its node, and
//! forgotten on the operator's word alone. The server is OpenSSL's.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{COMMAND, Cluster, settings};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{Process, complain, free_tcp_port, free_udp_port, run, wait};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For a sweep and a few reads, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

const OPENSSL: &str = "/usr/bin/openssl";

const PROFILE: &str = r#"//! name: asks-a-page
//! version: 1
//! match: object-id 1.3.6.1
let status = 0;
try { status = http_get("/").status; } catch { }
log("" + status);
"#;

#[test]
fn a_pinned_certificate_outlives_its_node() {
    if !Path::new(OPENSSL).is_file() {
        return complain("left out: pinned certificates (openssl is not installed)");
    }
    scenario().unwrap();
}

/// A key and a certificate below `name`, and the certificate's fingerprint as Quire writes it.
struct Identity {
    key: PathBuf,
    certificate: PathBuf,
    fingerprint: String,
}

impl Identity {
    fn make(cluster: &Cluster, name: &str) -> Result<Identity> {
        let (key, certificate) =
            (cluster.scratch(&format!("{name}.key")), cluster.scratch(&format!("{name}.crt")));
        let (into, out) = (key.display().to_string(), certificate.display().to_string());
        let new = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=printer"];
        run(Path::new(OPENSSL), &[&new[..], &["-keyout", &into, "-out", &out]].concat(), COMMAND)?.ok()?;
        let args = ["x509", "-in", &out, "-noout", "-fingerprint", "-sha256"];
        let said = run(Path::new(OPENSSL), &args, COMMAND)?.ok()?;
        let (_, digits) = said.trim().split_once('=').context("no fingerprint")?;
        let fingerprint = format!("sha256:{}", digits.replace(':', "").to_lowercase());
        Ok(Identity { key, certificate, fingerprint })
    }

    fn serve(&self, cluster: &Cluster, at: &str) -> Result<Process> {
        let (key, certificate) = (self.key.display().to_string(), self.certificate.display().to_string());
        let args = ["s_server", "-accept", at, "-key", &key, "-cert", &certificate, "-www", "-quiet"];
        Process::start("openssl", Path::new(OPENSSL), &args, &cluster.scratch("openssl.log"))
    }
}

fn pinned(cluster: &Cluster) -> Result<String> {
    let devices = cluster.list(&["devices"])?;
    let id = devices.first().and_then(|device| device["id"].as_str()).context("no device")?;
    let shown = cluster.list(&["device", "show", id])?;
    Ok(shown[0]["certificate"].as_str().unwrap_or_default().to_owned())
}

fn await_pin(cluster: &Cluster, wanted: &Identity) -> Result<()> {
    wait("the certificate to be pinned", PATIENCE, || {
        let found = pinned(cluster)?;
        ensure!(found == wanted.fingerprint, "it is {found:?}, not {}", wanted.fingerprint);
        Ok(())
    })
}

fn scenario() -> Result<()> {
    let base = Ipv4Addr::new(127, 52, 0, 1);
    let port = free_udp_port(base.into())?;
    let fleet = Fleet::start(&Spec { base, port, printers: 1, others: 0, ..Spec::default() })?;
    let device = fleet.printers().next().context("no printer")?.address;
    let web = free_tcp_port(IpAddr::V4(device))?;
    let mut cluster = Cluster::start(&["n1"])?;
    let (first, second) = (Identity::make(&cluster, "first")?, Identity::make(&cluster, "second")?);
    let at = format!("{device}:{web}");
    let mut server = first.serve(&cluster, &at)?;
    let file = cluster.scratch("profile.rhai");
    std::fs::write(&file, PROFILE).context("write the profile")?;
    cluster.any(&["script", "put", file.to_str().context("a path")?, "--now"])?.ok()?;
    let ports = format!("[http]\nports = [{web}]\n");
    cluster.apply(&settings(&["127.52.0.0/30"], port, 500).replace("[http]\n", &ports))?;
    await_pin(&cluster, &first)?;

    // Another certificate, and a node that has just started: the first one is what counts.
    server.kill();
    let _server = second.serve(&cluster, &at)?;
    cluster.kill("n1")?;
    cluster.restart("n1")?;
    let log = cluster.log_of("n1");
    wait("the node to meet the other certificate", PATIENCE, || {
        let text = std::fs::read_to_string(&log).context("read the log")?;
        ensure!(text.contains(&second.fingerprint), "it has not met {}", second.fingerprint);
        Ok(())
    })?;
    let kept = pinned(&cluster)?;
    ensure!(kept == first.fingerprint, "{kept} is pinned, not {}", first.fingerprint);

    // On the operator's word the next one counts.
    let devices = cluster.list(&["devices"])?;
    let id = devices[0]["id"].as_str().context("no id")?;
    cluster.any(&["device", "set", id, "certificate="])?.ok()?;
    await_pin(&cluster, &second)?;
    cluster.finish()
}
