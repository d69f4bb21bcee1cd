//! Support bundles, on site and by the Web Admin, and the other jobs of the Web Admin, end to end. Secrets are put
//! everywhere, and none of them may be in a bundle, in what the tables keep, or in a log.

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::{Cluster, TRANSITION};
use quire_tests::fleet::{Fleet, Spec};
use quire_tests::process::{free_udp_port, wait};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const PRINTERS: usize = 6;
const COMMUNITY: &str = "c0mmunity-hidden";
const TYPED: [&str; 6] = [
    COMMUNITY,
    "auth-pass-hidden",
    "priv-pass-hidden",
    "login-pass-hidden",
    "hook-path-hidden",
    "mail-pass-hidden",
];

/// What the tables keep with the settings as it was written: comments.
const KEPT: [&str; 1] = ["comment-hidden"];

/// Files of a bundle, and all of it unpacked.
fn unpack(file: &Path) -> Result<(BTreeMap<String, String>, Vec<u8>)> {
    let mut raw = Vec::new();
    zstd::Decoder::new(std::fs::File::open(file)?)?.read_to_end(&mut raw)?;
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(raw.as_slice()).entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text).with_context(|| format!("read {name}"))?;
        files.insert(name.strip_prefix("quire-bundle/").context("its root")?.to_owned(), text);
    }
    Ok((files, raw))
}

fn holds(octets: &[u8], what: &[u8]) -> bool {
    octets.windows(what.len()).any(|window| window == what)
}

/// A secret, as it is and as files and texts write octets.
fn must_lack(octets: &[u8], place: &str, secret: &[u8]) -> Result<()> {
    let forms = [
        secret.to_vec(),
        data_encoding::HEXLOWER.encode(secret).into_bytes(),
        data_encoding::HEXUPPER.encode(secret).into_bytes(),
        data_encoding::BASE64_NOPAD.encode(secret).into_bytes(),
        data_encoding::BASE64URL_NOPAD.encode(secret).into_bytes(),
    ];
    for form in forms {
        ensure!(!holds(octets, &form), "{place} holds {}", String::from_utf8_lossy(&form));
    }
    Ok(())
}

struct Site {
    cluster: Cluster,
    _fleet: Fleet,
    segment: String,
    /// Everything that must not be seen.
    secrets: Vec<Vec<u8>>,
}

fn settings(segment: &str, port: u16, hide: &str) -> String {
    format!(
        "# written by hand: comment-hidden\n[discovery]\nsegments = [\"{segment}\"]\nlocal = false\nport = {port}\nrate = 1000\n\
         hide = [\"{hide}\"]\n[metering]\nevery = \"10s\"\n[[snmp]]\nversion = \"2c\"\ncommunity = \"{COMMUNITY}\"\n\
         [[snmp]]\nversion = \"3\"\nuser = \"meter\"\nauth = \"sha256\"\nauth_pass = \"{}\"\npriv = \"aes\"\npriv_pass = \"{}\"\n\
         permission = \"granted by this test\"\n[[http_login]]\nsegment = \"{segment}\"\nuser = \"viewer\"\npassword = \"{}\"\n\
         [[alert]]\nname = \"low\"\nwhen = 'supply.percent < 1'\nnotify = [\"webhook:https://hooks.invalid/{}?q=1\"]\n\
         [mail]\nrelay = \"smtps://relay.invalid\"\nfrom = \"quire@example.org\"\nuser = \"quire\"\npassword = \"{}\"\n\
         [http]\nports = []\nchromium = false\n[upstream]\nmode = \"service\"\n",
        TYPED[1], TYPED[2], TYPED[3], TYPED[4], TYPED[5]
    )
}

fn site() -> Result<Site> {
    let base = Ipv4Addr::new(127, 29, 0, 1);
    let port = free_udp_port(base.into())?;
    let spec = Spec {
        base,
        port,
        printers: PRINTERS,
        others: 0,
        community: COMMUNITY.to_owned(),
        ..Spec::default()
    };
    let fleet = Fleet::start(&spec)?;
    let mut cluster = Cluster::start(&["n1"])?;
    cluster.start_admin()?;
    cluster.enroll("acme")?;
    let mut secrets: Vec<Vec<u8>> = TYPED.iter().map(|text| text.as_bytes().to_vec()).collect();
    secrets.push(b"comment-hidden".to_vec());
    let segment = "127.29.0.0/28".to_owned();
    // One printer is not the Web Admin's business.
    cluster.apply(&settings(&segment, port, "127.29.0.1/32"))?;
    let token = cluster.token()?;
    let api = cluster.any(&["api-token", "create", "--role", "admin"])?.ok()?;
    let api = api.lines().last().context("no token")?.trim().to_owned();
    let api_secret = api.split_once('.').context("a token")?.1.to_owned();
    secrets.extend([token.into_bytes(), api.into_bytes(), api_secret.into_bytes()]);
    let code = std::fs::read_to_string(cluster.scratch("enrolment.code"))?;
    secrets.push(code.trim().as_bytes().to_vec());
    wait("every printer to be read", TRANSITION, || {
        let devices = cluster.list(&["devices"])?;
        let read = devices.iter().filter(|device| device["metered_at"].is_string()).count();
        ensure!(read == PRINTERS, "{read} of {PRINTERS}");
        Ok(())
    })?;
    Ok(Site { cluster, _fleet: fleet, segment, secrets })
}

impl Site {
    /// What identifies the devices: serial numbers and hardware addresses.
    fn marks(&self) -> Result<Vec<String>> {
        let devices = self.cluster.list(&["devices"])?;
        let text = |device: &Value, key: &str| device[key].as_str().map(ToOwned::to_owned);
        let marks: Vec<String> = devices
            .iter()
            .flat_map(|device| ["serial", "mac"].map(|key| text(device, key)))
            .flatten()
            .collect();
        ensure!(marks.len() >= PRINTERS, "the fleet tells no serial numbers");
        Ok(marks)
    }

    fn keys(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let data = &self.cluster.node("n1")?.data;
        let read = |name: &str| {
            Ok((name.to_owned(), std::fs::read(data.join(name)).with_context(|| name.to_owned())?))
        };
        ["node.key", "cluster.key", "upstream.key"].into_iter().map(read).collect()
    }

    /// None of the secrets is in `octets`.
    fn must_be_clean(&self, octets: &[u8], place: &str) -> Result<()> {
        self.must_lack_all(octets, place, &[])
    }

    /// None of them but these.
    fn must_lack_all(&self, octets: &[u8], place: &str, but: &[&str]) -> Result<()> {
        for secret in self.secrets.iter().filter(|secret| !but.iter().any(|kept| kept.as_bytes() == *secret))
        {
            must_lack(octets, place, secret)?;
        }
        for (name, key) in self.keys()? {
            must_lack(octets, &format!("{place}: {name}"), &key)?;
            // RFC 5915: the private key is an octet string of 32 within PKCS#8; the public one behind it is no secret.
            if let Some(at) = key.windows(2).position(|mark| mark == [0x04, 0x20]) {
                let inner = key.get(at + 2..at + 34).context("a short key")?;
                must_lack(octets, &format!("{place}: the number in {name}"), inner)?;
            }
        }
        Ok(())
    }
}

fn on_site(site: &Site) -> Result<()> {
    let (cluster, marks) = (&site.cluster, site.marks()?);
    let file = cluster.scratch("support.tar.zst");
    let path = file.display().to_string();
    let said = cluster.any(&["bundle", &path])?;
    ensure!(said.code == 0 && said.stderr.contains("devices.jsonl"), "{said:?}");
    ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "others may read it");
    let (files, raw) = unpack(&file)?;
    site.must_be_clean(&raw, "the bundle")?;
    for mark in &marks {
        ensure!(!holds(&raw, mark.as_bytes()), "the bundle holds {mark}");
    }
    for name in [
        "version.json",
        "doctor.jsonl",
        "status.json",
        "metrics.txt",
        "log.txt",
        "settings.toml",
        "members.jsonl",
        "units.jsonl",
        "reachability.jsonl",
        "segments.jsonl",
        "audit.jsonl",
        "events.jsonl",
        "scripts.jsonl",
        "devices.jsonl",
        "counts.json",
        "manifest.json",
    ] {
        ensure!(
            // Nothing was found beyond the settings, put, or happened to a device.
            files.get(name).is_some_and(|text| {
                !text.is_empty() || ["segments.jsonl", "scripts.jsonl", "events.jsonl"].contains(&name)
            }),
            "{name} is not in it, or empty"
        );
    }
    ensure!(
        files["settings.toml"].contains(&site.segment) && files["settings.toml"].contains("hooks.invalid")
    );
    ensure!(files["log.txt"].contains("started"), "{}", files["log.txt"]);
    let devices: Vec<Value> =
        files["devices.jsonl"].lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(devices.len() == PRINTERS && devices.iter().all(|device| device["counters"].is_object()));
    ensure!(devices.iter().all(|device| device.get("address").is_none() && device.get("serial").is_none()));

    let again = cluster.any(&["bundle", &path])?;
    ensure!(again.code == 1 && again.stderr.contains("--force"), "{again:?}");
    cluster.any(&["bundle", &path, "--force", "--with-devices"])?.ok()?;
    let (files, raw) = unpack(&file)?;
    site.must_be_clean(&raw, "the bundle with devices")?;
    for mark in &marks {
        ensure!(files["devices.jsonl"].contains(mark), "{mark} is not in it");
    }
    ensure!(!cluster.scratch("support.tar.zst.unfinished").exists());
    // What the tables keep, as it lies on the disk: the write-ahead log is not compressed.
    for entry in std::fs::read_dir(cluster.node("n1")?.data.join("db"))? {
        let path = entry?.path();
        site.must_lack_all(&std::fs::read(&path)?, &path.display().to_string(), &KEPT)?;
    }
    let log = std::fs::read(cluster.log_of("n1"))?;
    site.must_be_clean(&log, "the log")
}

/// A job's end: its state and the site's words.
fn ended(cluster: &Cluster, id: &str) -> Result<(String, String)> {
    wait("a job to be closed", TRANSITION, || {
        let jobs = cluster.admin_list("jobs")?;
        let job = jobs.iter().find(|job| job["id"] == id).context("it is not listed")?;
        ensure!(job["closed_at"].is_string(), "{job}");
        let text = |key: &str| job[key].as_str().unwrap_or_default().to_owned();
        Ok((text("state"), text("detail")))
    })
}

fn job(cluster: &Cluster, args: &[&str]) -> Result<(String, String, String)> {
    let id = cluster.quire_admin(&[&["job", "acme"], args].concat())?.ok()?.trim().to_owned();
    let (state, detail) = ended(cluster, &id)?;
    Ok((id, state, detail))
}

fn done(cluster: &Cluster, args: &[&str]) -> Result<String> {
    let (_, state, detail) = job(cluster, args)?;
    ensure!(state == "done", "{args:?} ended {state}: {detail}");
    Ok(detail)
}

/// `sweep`, `read`, `settings` and `service-mode`, and what the site says where it refuses.
fn jobs(site: &Site) -> Result<()> {
    let cluster = &site.cluster;
    ensure!(done(cluster, &["sweep"])?.contains("asked for a sweep"));
    ensure!(done(cluster, &["sweep", &site.segment])?.contains("1 units"));
    let (_, state, why) = job(cluster, &["sweep", "10.99.0.0/24"])?;
    ensure!(state == "failed" && why.contains("10.99.0.0/24"), "{state}: {why}");
    let device = cluster.list(&["devices"])?[0]["id"].as_str().context("an id")?.to_owned();
    ensure!(done(cluster, &["read", &device])?.contains(&device));
    let (_, state, why) = job(cluster, &["read", "no-such-device"])?;
    ensure!(state == "failed" && why.contains("no-such-device"), "{state}: {why}");

    let text = cluster.any(&["settings", "show"])?.ok()?;
    let bad = cluster.scratch("bad.toml");
    std::fs::write(&bad, "[metering]\nevery = \"1s\"\n")?;
    let (_, state, why) = job(cluster, &["settings", &bad.display().to_string()])?;
    ensure!(state == "failed" && why.contains("line 2"), "{state}: {why}");
    ensure!(cluster.any(&["settings", "show"])?.ok()? == text, "bad settings changed something");
    let good = cluster.scratch("good.toml");
    let port = text.lines().find_map(|line| line.strip_prefix("port = ")).context("the port")?;
    std::fs::write(&good, settings(&site.segment, port.parse()?, "127.29.0.1/32").replace("10s", "11s"))?;
    done(cluster, &["settings", &good.display().to_string()])?;
    ensure!(cluster.any(&["settings", "show"])?.ok()?.contains("11s"));

    let mode = |wanted: &str| {
        wait(&format!("{wanted} mode"), TRANSITION, || {
            let rows = cluster.list(&["status"])?;
            ensure!(rows[0]["upstream"]["mode"] == wanted, "{}", rows[0]["upstream"]);
            Ok(())
        })
    };
    done(cluster, &["service-mode", "off"])?;
    mode("normal")?;
    // Back by the node's own settings: in normal mode the next check-in may be minutes away.
    std::fs::write(&good, std::fs::read_to_string(&good)?.replace("service", "service\"\ncheck_in = \"10s"))?;
    cluster.apply(&std::fs::read_to_string(&good)?)?;
    done(cluster, &["service-mode", "on"])?;
    mode("service")?;
    let audit = cluster.list(&["audit"])?;
    let by_admin = audit.iter().filter(|row| row["by"] == "web admin").count();
    ensure!(by_admin >= 6, "{by_admin} of the Web Admin's jobs are in the audit");
    Ok(())
}

fn from_afar(site: &Site) -> Result<()> {
    let cluster = &site.cluster;
    let (id, state, detail) = job(cluster, &["bundle"])?;
    ensure!(state == "done" && detail.contains("sha256:"), "{state}: {detail}");
    let listed = cluster.admin_list("bundles")?;
    ensure!(listed.len() == 1 && listed[0]["id"] == id.as_str() && listed[0]["site"] == "acme", "{listed:?}");
    let file = cluster.scratch("fetched.tar.zst");
    let path = file.display().to_string();
    cluster.quire_admin(&["bundles", "get", &id, &path])?.ok()?;
    ensure!(cluster.quire_admin(&["bundles", "get", &id, &path])?.code == 1, "it was overwritten");
    let (files, raw) = unpack(&file)?;
    site.must_be_clean(&raw, "the bundle from afar")?;
    for mark in site.marks()? {
        ensure!(!holds(&raw, mark.as_bytes()), "the bundle from afar holds {mark}");
    }
    // What is hidden stays on site.
    ensure!(
        !holds(&raw, b"127.29.0.1:") && !holds(&raw, b"\"127.29.0.1\""),
        "a hidden address left the site"
    );
    ensure!(files["devices.jsonl"].lines().count() == PRINTERS - 1, "a hidden device left the site");
    let digest = listed[0]["sha256"].as_str().context("a hash")?;
    ensure!(detail.contains(digest), "{detail} is not of {digest}");
    ensure!(cluster.list(&["audit"])?.iter().any(|row| row["what"] == "asked for a support bundle"));
    Ok(())
}

/// Without a running node a bundle holds what its directory tells.
fn of_a_stopped_node(mut site: Site) -> Result<()> {
    site.cluster.stop("n1")?;
    let file = site.cluster.scratch("stopped.tar.zst");
    let said = site.cluster.quire("n1", &["bundle", &file.display().to_string()])?;
    ensure!(said.code == 0 && said.stderr.contains("no node answers"), "{said:?}");
    let (files, raw) = unpack(&file)?;
    site.must_be_clean(&raw, "the bundle of a stopped node")?;
    ensure!(
        files["devices.jsonl"].lines().count() == PRINTERS
            && files["doctor.jsonl"].contains("no node runs on")
    );
    site.cluster.finish()
}

#[test]
fn bundles_help_and_hold_no_secret_and_jobs_are_done() {
    let site = site().unwrap();
    on_site(&site).unwrap();
    from_afar(&site).unwrap();
    jobs(&site).unwrap();
    of_a_stopped_node(site).unwrap();
}
