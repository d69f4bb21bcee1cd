//! Printers that answer IPP alone: a real CUPS whose queues hang on the node, and `ippeveprinter` on the network. Each
//! stands in a directory, on a socket or in a network of its own; nothing of the machine's is touched.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire_tests::cluster::Programs;
use quire_tests::process::{Process, complain, free_tcp_port, run, wait};
use serde_json::Value;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

fn program(name: &str) -> Option<PathBuf> {
    let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"].map(Path::new);
    places.iter().map(|place| place.join(name)).find(|path| path.exists())
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// A cupsd with its own directory, socket and backends.
struct Cupsd {
    _process: Process,
    folder: TempDir,
}

impl Cupsd {
    fn start() -> Result<Option<Cupsd>> {
        let (Some(program), Some(_)) = (program("cupsd"), program("lpadmin")) else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name).display().to_string();
        for name in ["root/ppd", "spool/tmp", "cache", "state", "bin/backend", "data"] {
            std::fs::create_dir_all(folder.path().join(name)).context("make CUPS' folders")?;
        }
        // CUPS takes device URIs only of schemes that it has a program for; these never run.
        for scheme in ["usb", "socket"] {
            let link = folder.path().join("bin/backend").join(scheme);
            std::os::unix::fs::symlink("/bin/true", link).context("make a backend")?;
        }
        let user = if is_root() { "" } else { "User nobody\n" };
        let files = format!(
            "ServerRoot {}\nRequestRoot {}\nTempDir {}\nCacheDir {}\nStateDir {}\nServerBin {}\nDataDir {}\n\
             AccessLog stderr\nErrorLog stderr\nPageLog stderr\n{user}",
            at("root"),
            at("spool"),
            at("spool/tmp"),
            at("cache"),
            at("state"),
            at("bin"),
            at("data"),
        );
        let settings = format!(
            "Listen {}\nBrowsing Off\nDefaultAuthType None\nWebInterface No\n\
             <Location />\nOrder allow,deny\nAllow all\n</Location>\n\
             <Policy default>\n<Limit All>\nOrder allow,deny\nAllow all\n</Limit>\n</Policy>\n",
            at("cups.sock")
        );
        std::fs::write(folder.path().join("files.conf"), files)?;
        std::fs::write(folder.path().join("cupsd.conf"), settings)?;
        let args = ["-f", "-c", &at("cupsd.conf"), "-s", &at("files.conf")];
        let process = Process::start("cupsd", &program, &args, &folder.path().join("cupsd.log"))?;
        let cups = Cupsd { _process: process, folder };
        wait("cupsd to listen", PATIENCE, || {
            Ok(std::os::unix::net::UnixStream::connect(cups.socket()).map(drop)?)
        })?;
        Ok(Some(cups))
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("cups.sock")
    }

    fn add(&self, name: &str, uri: &str) -> Result<()> {
        let socket = self.socket().display().to_string();
        let lpadmin = program("lpadmin").context("no lpadmin")?;
        run(&lpadmin, &["-h", &socket, "-p", name, "-E", "-v", uri, "-L", "Room 7"], PATIENCE)?.ok()?;
        Ok(())
    }
}

/// Queues of printers on cables become devices of the node; those of printers elsewhere do not.
#[test]
fn a_nodes_own_printers_are_its_devices() {
    let Some(cups) = Cupsd::start().unwrap() else {
        return complain("left out: printers that hang on a node (CUPS is not installed)");
    };
    of_a_node(&cups).unwrap();
}

fn of_a_node(cups: &Cupsd) -> Result<()> {
    cups.add("front", "usb://HP/LaserJet%20P2015%20Series?serial=00CNCJP12345")?;
    cups.add("far", "socket://192.0.2.1")?;
    let programs = Programs::find()?;
    let dir = tempfile::tempdir()?;
    let data = dir.path().join("n1").display().to_string();
    let listen = format!("127.0.0.1:{}", free_tcp_port("127.0.0.1".parse()?)?);
    let console = format!("127.0.0.1:{}", free_tcp_port("127.0.0.1".parse()?)?);
    let args = [
        "node",
        "--data-dir",
        &data,
        "--name",
        "n1",
        "--zone",
        "hq",
        "--listen",
        &listen,
        "--advertise",
        &listen,
        "--console",
        &console,
        "--init",
        "Local",
    ];
    let socket = cups.socket();
    let log = dir.path().join("n1.log");
    let _node = Process::start_with(
        "n1",
        &programs.path("quire"),
        &args,
        &log,
        &[("CUPS_SERVER", socket.as_path())],
    )?;
    let quire = |args: &[&str]| programs.quire(&[&["--data-dir", data.as_str()], args].concat());
    let file = dir.path().join("settings.toml");
    std::fs::write(&file, "[discovery]\nsegments = []\n[metering]\nevery = \"10s\"\n")?;
    wait("the node to take settings", PATIENCE, || {
        quire(&["settings", "apply", &file.display().to_string()])?.ok().map(drop)
    })?;
    let mut devices = Vec::new();
    wait("the local printer", PATIENCE, || {
        devices = quire(&["devices", "--format", "json"])?.json()?;
        ensure!(!devices.is_empty(), "no device yet");
        Ok(())
    })?;
    let [device] = devices.as_slice() else { anyhow::bail!("not one device: {devices:?}") };
    let wanted = serde_json::json!({
        "vendor": "HP", "model": "LaserJet P2015 Series", "serial": "00CNCJP12345", "name": "front",
        "location": "Room 7", "status": "idle", "hops": 0, "node": "n1", "zone": "hq", "address": "127.0.0.1",
        "via": ["ipp", "usb"],
    });
    for (key, value) in wanted.as_object().context("an object")? {
        ensure!(device[key] == *value, "{key}: {} in {device}", device[key]);
    }
    // Once, with no cluster: the same printer.
    let (program, environment) = (programs.path("quire"), [("CUPS_SERVER", socket.as_path())]);
    let log = dir.path().join("discover.log");
    let args = ["discover", "--local", "--format", "json"];
    let mut once = Process::start_with("discover", &program, &args, &log, &environment)?;
    let ended = wait("the pass to end", PATIENCE, || once.ended().context("it still runs"))?;
    ensure!(ended.success(), "{}", once.log());
    let said: Value = serde_json::from_str(once.log().trim()).context("not one device")?;
    for (key, value) in
        wanted.as_object().context("an object")?.iter().filter(|(key, _)| *key != "node" && *key != "zone")
    {
        ensure!(said[key] == *value, "{key}: {} in {said}", said[key]);
    }
    // Read on request, long before its period is over.
    std::fs::write(&file, "[discovery]\nsegments = []\n[metering]\nevery = \"28d\"\n")?;
    quire(&["settings", "apply", &file.display().to_string()])?.ok()?;
    let id = device["id"].as_str().context("no id")?;
    let metered = |devices: &[Value]| devices.first().map(|device| device["metered_at"].clone());
    let before = metered(&quire(&["devices", "--format", "json"])?.json()?);
    quire(&["read", id])?.ok()?;
    wait("the local printer to be read again", PATIENCE, || {
        let now = metered(&quire(&["devices", "--format", "json"])?.json()?);
        ensure!(now != before, "it was read at {now:?}");
        Ok(())
    })?;
    // Off: nothing more is read of it.
    std::fs::write(&file, "[discovery]\nsegments = []\nlocal = false\n[metering]\nevery = \"28d\"\n")?;
    let changed = quire(&["settings", "apply", &file.display().to_string()])?.ok()?;
    ensure!(changed.contains("discovery.local: true -> false"), "{changed}");
    Ok(())
}

/// In a network namespace of its own: a bus and a name service, which `ippeveprinter` insists on, the printer, and one
/// pass of `quire discover`. Whatever was started ends with the script.
const IN_A_NETWORK: &str = r#"
set -eu
cd "$1"
ip link set lo up
export DBUS_SYSTEM_BUS_ADDRESS="unix:path=$1/bus"
dbus-daemon --config-file=bus.conf --nofork --nopidfile 2>bus.log & started="$!"
trap 'kill $started 2>/dev/null; wait' EXIT
until [ -S bus ]; do kill -0 $!; done
avahi-daemon -f avahi.conf --no-drop-root --no-chroot --no-rlimits --no-proc-title >avahi.log 2>&1 & started="$started $!"
# Names are registered only once it runs: the printer ends where it does not.
try=0
until ipptool -t ipp://localhost:631/ipp/print get-printer-attributes.test >ipptool.log 2>&1; do
    if ! kill -0 "${printer:-0}" 2>/dev/null || [ -z "${printer:-}" ]; then
        try=$((try + 1))
        [ "$try" -le 200 ] || { cat eve.log avahi.log >&2; exit 9; }
        ippeveprinter -p 631 -n localhost -M PWG -m "Test Color Laser" -s 30,30 "Local Virtual Printer" >eve.log 2>&1 &
        printer="$!"; started="$started $!"
    fi
done
"$2" discover 127.0.0.1 --http-port 8099 --timeout 200ms --retries 0 --format json
"#;

#[test]
fn ippeveprinter_is_read_over_ipp() {
    let needs = ["unshare", "ip", "dbus-daemon", "avahi-daemon", "ippeveprinter", "ipptool"];
    let missing: Vec<&str> = needs.into_iter().filter(|name| program(name).is_none()).collect();
    if !missing.is_empty() || !is_root() {
        return complain(&format!("left out: ippeveprinter (not root, or missing: {missing:?})"));
    }
    over_ipp().unwrap();
}

fn over_ipp() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let at = dir.path().display().to_string();
    let bus = format!(
        "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN\" \
         \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n<busconfig><type>system</type>\
         <listen>unix:path={at}/bus</listen><auth>EXTERNAL</auth><policy context=\"default\">\
         <allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/><allow own=\"*\"/><allow user=\"*\"/></policy></busconfig>\n"
    );
    std::fs::write(dir.path().join("bus.conf"), bus)?;
    let avahi = "[server]\nuse-ipv4=yes\nuse-ipv6=yes\nallow-interfaces=lo\nenable-dbus=yes\n";
    std::fs::write(dir.path().join("avahi.conf"), avahi)?;
    let quire = Programs::find()?.path("quire").display().to_string();
    let unshare = program("unshare").context("no unshare")?;
    let args = ["-n", "--kill-child", "--fork", "-p", "--", "bash", "-c", IN_A_NETWORK, "eve", &at, &quire];
    let said = run(&unshare, &args, PATIENCE)?;
    let devices: Vec<Value> = said.clone().json()?;
    let [device] = devices.as_slice() else { anyhow::bail!("not one device: {said:?}") };
    ensure!(device["model"] == "PWG Test Color Laser" && device["status"] == "idle", "{device}");
    ensure!(device["via"] == serde_json::json!(["ipp"]), "{device}");
    ensure!(device["counters"].is_null(), "it counts nothing, and nothing is said: {device}");
    let supplies = device["supplies"].as_array().context("no supplies")?;
    let level =
        |color: &str| supplies.iter().find(|row| row["color"] == color).map(|row| row["percent"].clone());
    ensure!(level("black") == Some(75.into()) && level("cyan") == Some(50.into()), "{device}");
    ensure!(device["sources"]["model"].as_str().is_some_and(|from| from.contains("printer-make-and-model")));
    Ok(())
}
