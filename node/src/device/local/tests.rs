//! Printers on cables: the kernel's files made up in a directory, and a real CUPS on a socket of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quire_proto::reading::Status;

use super::*;

/// Nothing to find anywhere.
fn nowhere(folder: &Path) -> Places {
    Places {
        cups: folder.join("no.sock"),
        cups_port: None,
        ipp_usb: folder.join("no-ipp-usb"),
        root: folder.join("no-root"),
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn the_kernels_printers_are_found_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    let usb = root.join("sys/bus/usb/devices");
    // One that usblp has asked, with two interfaces; one that only has its strings; a keyboard.
    for interface in ["1-2:1.0", "1-2:1.1"] {
        write(&usb.join(interface).join("bInterfaceClass"), "07\n");
    }
    write(
        &usb.join("1-2:1.0/ieee1284_id"),
        "MFG:EPSON;CMD:ESCPL2;MDL:ET-2750 Series;CLS:PRINTER;SN:583456593031323334;",
    );
    write(&usb.join("1-2/product"), "EPSON ET-2750 Series\n");
    write(&usb.join("1-2/serial"), "X4VY01234\n");
    write(&usb.join("2-1:1.0/bInterfaceClass"), "07\n");
    write(&usb.join("2-1/manufacturer"), "Brother\n");
    write(&usb.join("2-1/product"), "QL-700\n");
    write(&usb.join("2-1/serial"), "000A1Z234567\n");
    write(&usb.join("3-1:1.0/bInterfaceClass"), "03\n");
    write(&usb.join("3-1/product"), "Keyboard\n");
    let port = root.join("proc/sys/dev/parport/parport0/autoprobe");
    write(&port, "CLASS:PRINTER;\nMODEL:HP LaserJet 4;\nMANUFACTURER:Hewlett-Packard;\nDESCRIPTION:;\n");
    write(&root.join("proc/sys/dev/parport/parport1/autoprobe"), "CLASS:;\nMODEL:;\nMANUFACTURER:;\n");

    let found = find(&Places { root, ..nowhere(folder.path()) }).await;
    let facts: Vec<_> = found
        .iter()
        .map(|found| {
            let facts = &found.reading.facts;
            (facts.vendor.as_deref().unwrap(), facts.model.as_deref().unwrap(), facts.serial.as_deref())
        })
        .collect();
    let wanted = [
        ("Epson", "ET-2750 Series", Some("X4VY01234")),
        ("Brother", "QL-700", Some("000A1Z234567")),
        ("HP", "HP LaserJet 4", None),
    ];
    assert_eq!(facts, wanted);
    assert_eq!(found[0].key, "serial:X4VY01234");
    assert_eq!(found[0].reading.sources["serial"], "usb:1-2");
    assert!(found.iter().all(|found| found.reading.via == [Via::Usb] && found.reading.counters.is_empty()));
    assert!(find(&nowhere(folder.path())).await.is_empty());
}

/// What ipp-usb carries is the printer's own web server: here one that answers IPP as a captured printer would.
#[tokio::test]
async fn printers_of_ipp_usb_are_asked_on_their_port_and_joined_with_the_kernels() {
    let answer = printer_answer();
    let router = axum::Router::new().route(
        "/ipp/print",
        axum::routing::post(move || {
            let answer = answer.clone();
            async move { answer }
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("ipp-usb/03f0-0c2a-VCF9192281.state");
    write(&state, &format!("[device]\nhttp-port       = {port}\ndns-sd-name     = \"HP OfficeJet\"\n"));
    write(&folder.path().join("ipp-usb/broken.state"), "http-port = none\n");
    let usb = folder.path().join("root/sys/bus/usb/devices");
    write(&usb.join("1-2:1.0/bInterfaceClass"), "07\n");
    write(&usb.join("1-2/manufacturer"), "HP\n");
    write(&usb.join("1-2/product"), "OfficeJet Pro 8730\n");
    write(&usb.join("1-2/serial"), "VCF9192281\n");
    let places = Places {
        ipp_usb: folder.path().join("ipp-usb"),
        root: folder.path().join("root"),
        ..nowhere(folder.path())
    };
    let found = find(&places).await;
    server.abort();
    assert_eq!(found.len(), 1, "{found:?}");
    let reading = &found[0].reading;
    assert_eq!(reading.facts.serial.as_deref(), Some("VCF9192281"));
    assert_eq!((reading.status, reading.via.as_slice()), (Some(Status::Idle), &[Via::Ipp, Via::Usb][..]));
    assert_eq!(reading.supplies[0].percent, Some(40));
}

/// Get-Printer-Attributes of a printer with one cartridge, encoded as RFC 8010 has it.
fn printer_answer() -> Vec<u8> {
    let mut octets = vec![1, 1, 0, 0, 0, 0, 0, 1, 0x01];
    let mut put = |tag: u8, name: &str, value: &[u8]| {
        octets.push(tag);
        for part in [name.as_bytes(), value] {
            octets.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            octets.extend_from_slice(part);
        }
    };
    put(0x47, "attributes-charset", b"utf-8");
    put(0x48, "attributes-natural-language", b"en");
    octets.push(0x04);
    let mut put = |tag: u8, name: &str, value: &[u8]| {
        octets.push(tag);
        for part in [name.as_bytes(), value] {
            octets.extend(u16::try_from(part.len()).unwrap().to_be_bytes());
            octets.extend_from_slice(part);
        }
    };
    put(0x41, "printer-make-and-model", b"HP OfficeJet Pro 8730");
    put(0x41, "printer-device-id", b"MFG:HP;MDL:OfficeJet Pro 8730;SN:VCF9192281;");
    put(0x23, "printer-state", &3i32.to_be_bytes());
    put(0x42, "marker-names", b"black cartridge");
    put(0x44, "marker-types", b"ink-cartridge");
    put(0x42, "marker-colors", b"#000000");
    put(0x21, "marker-levels", &40i32.to_be_bytes());
    octets.push(0x03);
    octets
}

/// A cupsd with its own directory, socket and backends, so that nothing of the machine's is touched. It ends with the
/// test.
struct Cupsd {
    child: Child,
    folder: tempfile::TempDir,
}

impl Cupsd {
    /// `None` where CUPS is not installed.
    fn start() -> Option<Cupsd> {
        let program =
            ["/usr/sbin/cupsd", "/usr/bin/cupsd"].into_iter().find(|path| Path::new(path).exists())?;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
        let user = user.trim();
        for name in ["root/ppd", "spool/tmp", "cache", "state", "bin/backend", "data"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        // CUPS takes device URIs only of schemes that it has a program for; these never run.
        for scheme in ["usb", "hp", "socket"] {
            std::os::unix::fs::symlink("/bin/true", folder.path().join("bin/backend").join(scheme)).unwrap();
        }
        let files = format!(
            "ServerRoot {}\nRequestRoot {}\nTempDir {}\nCacheDir {}\nStateDir {}\nServerBin {}\nDataDir {}\n\
             AccessLog stderr\nErrorLog stderr\nPageLog stderr\nFileDevice Yes\nSystemGroup root\n{}",
            at("root"),
            at("spool"),
            at("spool/tmp"),
            at("cache"),
            at("state"),
            at("bin"),
            at("data"),
            // As root it wants another user for its children, of which there are none.
            if user == "root" { String::new() } else { format!("User {user}\n") },
        );
        std::fs::write(folder.path().join("files.conf"), files).unwrap();
        let settings = format!(
            "Listen {}\nBrowsing Off\nDefaultAuthType None\nWebInterface No\nLogLevel warn\n\
             <Location />\nOrder allow,deny\nAllow all\n</Location>\n\
             <Policy default>\n<Limit All>\nOrder allow,deny\nAllow all\n</Limit>\n</Policy>\n",
            at("cups.sock")
        );
        std::fs::write(folder.path().join("cupsd.conf"), settings).unwrap();
        let child = Command::new(program)
            .args(["-f", "-c", &at("cupsd.conf"), "-s", &at("files.conf")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.path().join("cupsd.log")).unwrap())
            .spawn()
            .unwrap();
        let cups = Cupsd { child, folder };
        let end = Instant::now() + Duration::from_secs(20);
        while std::os::unix::net::UnixStream::connect(cups.socket()).is_err() {
            assert!(Instant::now() < end, "cupsd does not listen: {}", cups.log());
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Some(cups)
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("cups.sock")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("cupsd.log")).unwrap_or_default()
    }

    fn add(&self, name: &str, uri: &str) {
        let done = Command::new("lpadmin")
            .env("CUPS_SERVER", self.socket())
            .args(["-p", name, "-E", "-v", uri, "-L", "Room 7"])
            .output()
            .unwrap();
        assert!(done.status.success(), "{}: {}\n{}", name, String::from_utf8_lossy(&done.stderr), self.log());
    }
}

impl Drop for Cupsd {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
#[expect(clippy::print_stderr, reason = "a visible line where there is no CUPS")]
async fn a_real_cups_tells_its_local_queues_only() {
    drop(rustls::crypto::ring::default_provider().install_default());
    let Some(cups) = Cupsd::start() else { return eprintln!("no cupsd here: left out") };
    cups.add("front", "usb://HP/LaserJet%20P2015%20Series?serial=00CNCJP12345");
    cups.add("back", "hp:/usb/DeskJet_3700_series?serial=TH87A4N0ZZ");
    cups.add("far", "socket://192.0.2.1");
    cups.add("paper", "file:///dev/null");
    let folder = tempfile::tempdir().unwrap();
    let found = find(&Places { cups: cups.socket(), ..nowhere(folder.path()) }).await;
    let mut facts: Vec<_> = found
        .iter()
        .map(|found| {
            let facts = &found.reading.facts;
            (
                facts.name.as_deref().unwrap(),
                facts.vendor.as_deref().unwrap(),
                facts.model.as_deref().unwrap(),
                facts.serial.as_deref().unwrap(),
            )
        })
        .collect();
    facts.sort_unstable();
    let wanted = [
        ("back", "HP", "DeskJet 3700 series", "TH87A4N0ZZ"),
        ("front", "HP", "LaserJet P2015 Series", "00CNCJP12345"),
    ];
    assert_eq!(facts, wanted, "{}", cups.log());
    for found in &found {
        assert_eq!(found.reading.status, Some(Status::Idle));
        assert_eq!(found.reading.facts.location.as_deref(), Some("Room 7"));
        assert_eq!(found.reading.via, [Via::Ipp, Via::Usb]);
    }
}
