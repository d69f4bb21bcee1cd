//! The machine: limits, buffers, links, clock, Chromium, CUPS; and what this process has logged.
//!
//! Asks the kernel and services of this machine only; a socket is opened for its buffer alone and sends nothing.

use std::fs;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::unistd::Uid;
use quire_coordinator::settings::Settings;
use quire_proto::id::Millis;
use socket2::SockRef;

use super::Finding;
use crate::device::browser::{Browser, BrowserMiss};
use crate::device::local::Places;
use crate::routes;
use crate::{clock, telemetry};

/// Files of RocksDB (256), connections of others (256 handshakes), console and devices.
const FILES: u64 = 1_024;
/// What a small datagram costs in a socket's buffer, as the kernel counts it (its `truesize`).
const DATAGRAM: u64 = 2_304;
/// A busy machine was seen to leave a process waiting so long, milliseconds.
const STALL_MS: u64 = 250;
/// No clock of a machine that runs this is earlier: 1 January 2026.
const EARLIEST: Millis = Millis(1_767_225_600_000);

/// What needs no more than a glance. `rate` is that of the settings, where there are any.
pub(super) fn look(rate: Option<u32>, local: bool) -> Vec<Finding> {
    let mut found = vec![
        judge_files(&fs::read_to_string("/proc/self/limits").unwrap_or_default()),
        udp(rate.unwrap_or(500)),
        clock_sense(clock::now()),
        user(Uid::effective().is_root()),
    ];
    found.extend(links());
    found.extend(local.then(|| cups(&Places::default().cups)));
    found
}

fn judge_files(limits: &str) -> Finding {
    const CHECK: &str = "open-files";
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|line| line.split_whitespace().next());
    match soft {
        None => Finding::note(CHECK, "the limit is not known", ""),
        Some("unlimited") => Finding::ok(CHECK, "no limit"),
        Some(text) => match text.parse::<u64>() {
            Ok(limit) if limit < FILES => Finding::problem(
                CHECK,
                format!("at most {limit} files and connections; {FILES} are needed"),
                "raise it: LimitNOFILE=65536 in the unit, or `ulimit -n 65536`",
            ),
            _ => Finding::ok(CHECK, format!("at most {text} files and connections")),
        },
    }
}

/// What a socket is really given, and what the rate needs.
fn udp(rate: u32) -> Finding {
    let wanted = crate::snmp::Options::default().receive_buffer;
    let given = UdpSocket::bind("127.0.0.1:0").and_then(|socket| {
        let socket = SockRef::from(&socket);
        // The kernel gives what it may.
        let _ = socket.set_recv_buffer_size(wanted);
        socket.recv_buffer_size()
    });
    match given {
        Ok(given) => judge_udp(rate, given as u64, wanted as u64),
        Err(error) => Finding::problem(
            "udp-buffer",
            format!("no UDP socket: {error}"),
            "look at the limits of this process",
        ),
    }
}

/// `given` as the kernel counts it: twice what was asked for.
fn judge_udp(rate: u32, given: u64, wanted: u64) -> Finding {
    const CHECK: &str = "udp-buffer";
    let needed = match rate {
        0 => 2 * wanted,
        rate => u64::from(rate) * STALL_MS / 1_000 * DATAGRAM,
    };
    let needed = needed.min(2 * wanted);
    let kilo = |octets: u64| octets >> 10;
    if given < needed {
        let what = format!("sockets get {} KiB; discovery.rate needs {} KiB", kilo(given), kilo(needed));
        let fix = format!(
            "`sysctl -w net.core.rmem_max={wanted}` and the same in /etc/sysctl.d, then restart the node; or a lower rate"
        );
        return Finding::problem(CHECK, what, fix);
    }
    Finding::ok(CHECK, format!("{} KiB, and the rate needs {} KiB", kilo(given), kilo(needed)))
}

fn clock_sense(now: Millis) -> Finding {
    const CHECK: &str = "clock";
    if now < EARLIEST {
        return Finding::problem(
            CHECK,
            format!("it is {} on this machine", now.rfc3339()),
            "set the clock, and let NTP keep it (systemd-timesyncd, chrony)",
        );
    }
    Finding::ok(CHECK, now.rfc3339())
}

fn user(root: bool) -> Finding {
    const CHECK: &str = "user";
    if root {
        return Finding::note(
            CHECK,
            "runs as root, and needs no privilege",
            "give it a user of its own (deploy/quire.service does)",
        );
    }
    Finding::ok(CHECK, "not root")
}

fn links() -> Vec<Finding> {
    const CHECK: &str = "links";
    if routes::links().is_empty() {
        let what = "the kernel does not tell this process its links";
        return vec![Finding::problem(
            CHECK,
            what,
            "allow netlink: AF_NETLINK in RestrictAddressFamilies of the unit",
        )];
    }
    let own = routes::own_view();
    let listed = |items: &mut dyn Iterator<Item = String>| items.take(8).collect::<Vec<_>>().join(", ");
    let attached = listed(&mut own.attached.iter().map(ToString::to_string));
    if attached.is_empty() {
        let fix = "nothing, where segments are reached otherwise; else look at the machine's network";
        return vec![Finding::note(CHECK, "no link that could hold a printer is up", fix)];
    }
    let gateways = own.routes.iter().filter(|(to, _)| to.prefix_len() == 0);
    let gateways = listed(&mut gateways.map(|(_, next)| next.to_string()));
    let way = match gateways.as_str() {
        "" => Finding::note(
            "routes",
            "no default route",
            "nothing, where all segments have routes of their own",
        ),
        gateways => Finding::ok("routes", format!("{} routes, default by {gateways}", own.routes.len())),
    };
    vec![Finding::ok(CHECK, attached), way]
}

/// Only whether it lets us in; nothing is asked of it.
fn cups(socket: &Path) -> Finding {
    const CHECK: &str = "cups";
    match UnixStream::connect(socket) {
        Ok(_) => Finding::ok(CHECK, format!("{} answers", socket.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Finding::ok(
            CHECK,
            "none on this machine: printers on its own cables are known by their ids alone",
        ),
        Err(error) => Finding::problem(
            CHECK,
            format!("{}: {error}", socket.display()),
            "let the node's user reach CUPS, or set [discovery] local = false",
        ),
    }
}

/// Whether pages that need JavaScript can be shown here.
pub(super) async fn chromium(browser: &Browser, settings: Option<&Settings>) -> Vec<Finding> {
    if settings.is_some_and(|settings| !settings.http.chromium) {
        return vec![Finding::ok("chromium", "switched off ([http] chromium = false)")];
    }
    let started = browser.probe().await;
    let kernel = |file: &str| fs::read_to_string(file).map(|text| text.trim().to_owned()).unwrap_or_default();
    vec![judge_chromium(started, &kernel)]
}

fn judge_chromium(started: Result<String, BrowserMiss>, kernel: &dyn Fn(&str) -> String) -> Finding {
    const CHECK: &str = "chromium";
    let why = match started {
        Ok(version) => return Finding::ok(CHECK, format!("{version} starts in its sandbox")),
        Err(BrowserMiss::Missing) => {
            let fix = "`apt install chromium util-linux`, where profiles want pages that need JavaScript";
            return Finding::note(CHECK, "Chromium or setpriv is not installed", fix);
        }
        Err(why) => why,
    };
    let seccomp =
        kernel("/proc/self/status").lines().any(|line| line.split_whitespace().eq(["Seccomp:", "2"]));
    let fix = match () {
        () if kernel("/proc/sys/kernel/unprivileged_userns_clone") == "0" => {
            "`sysctl -w kernel.unprivileged_userns_clone=1`: its sandbox needs user namespaces"
        }
        () if kernel("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" => {
            "give Chromium an AppArmor profile with `userns`: its sandbox needs user namespaces"
        }
        () if seccomp => {
            "its sandbox needs user namespaces: RestrictNamespaces=no in an override of the unit (`systemctl edit quire`)"
        }
        () => "see that Chromium starts on this machine, or set [http] chromium = false",
    };
    Finding::problem(CHECK, why.to_string(), fix)
}

/// Whom the console lets in.
pub(super) fn console(address: SocketAddr) -> Vec<Finding> {
    const CHECK: &str = "console";
    if address.ip().is_loopback() {
        return vec![Finding::ok(CHECK, format!("{address}: this machine alone"))];
    }
    let what = format!("{address} is reached from elsewhere, by token, over plain HTTP");
    vec![Finding::note(CHECK, what, "put a proxy with TLS in front, or --console 127.0.0.1:7480")]
}

/// An ERROR line means that a human must look.
pub(super) fn log() -> Vec<Finding> {
    const CHECK: &str = "log";
    match telemetry::errors() {
        (0, _) => vec![Finding::ok(CHECK, "no error since the start")],
        (count, last) => vec![Finding::problem(
            CHECK,
            format!("{count} errors since the start, the last: {}", last.unwrap_or_default()),
            "read the node's log (`journalctl -u quire`)",
        )],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn too_few_files_are_a_problem() {
        let limits = |soft: &str| {
            format!("Limit  Soft Hard Units\nMax open files            {soft}    524288   files\n")
        };
        let state = |soft: &str| judge_files(&limits(soft)).state;
        assert_eq!(state("256"), State::Problem);
        assert_eq!((state("1024"), state("unlimited")), (State::Ok, State::Ok));
        assert_eq!(judge_files("").state, State::Note);
    }

    #[test]
    fn the_rate_says_what_a_socket_needs() {
        // Debian's net.core.rmem_max, doubled as the kernel does.
        let (debian, wanted) = (2 * 212_992, 8 << 20);
        assert_eq!(judge_udp(500, debian, wanted).state, State::Ok);
        let fast = judge_udp(5_000, debian, wanted);
        assert!(fast.state == State::Problem && fast.fix.contains("net.core.rmem_max=8388608"), "{fast:?}");
        assert_eq!(judge_udp(0, debian, wanted).state, State::Problem);
        assert_eq!(judge_udp(0, 2 * wanted, wanted).state, State::Ok);
        assert_eq!(judge_udp(u32::MAX, 2 * wanted, wanted).state, State::Ok);
    }

    #[test]
    fn a_browser_that_does_not_start_gets_the_fix_that_this_machine_needs() {
        let broken = || Err(BrowserMiss::Broken("No usable sandbox!".to_owned()));
        let fix = |file: &str, text: &str| {
            let kernel = |asked: &str| if asked == file { text.to_owned() } else { String::new() };
            judge_chromium(broken(), &kernel).fix
        };
        assert!(fix("/proc/sys/kernel/unprivileged_userns_clone", "0").contains("sysctl"));
        assert!(fix("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1").contains("AppArmor"));
        assert!(fix("/proc/self/status", "Name:\tquire\nSeccomp:\t2\n").contains("RestrictNamespaces=no"));
        assert!(fix("", "").contains("chromium = false"));
        let none = |_: &str| String::new();
        assert_eq!(judge_chromium(Err(BrowserMiss::Missing), &none).state, State::Note);
        assert_eq!(judge_chromium(Ok("Chromium/140".to_owned()), &none).state, State::Ok);
    }

    #[test]
    fn clocks_links_and_services_are_looked_at() {
        assert_eq!(clock_sense(Millis(0)).state, State::Problem);
        assert_eq!(clock_sense(clock::now()).state, State::Ok);
        assert!(!links().is_empty());
        assert_eq!(cups(Path::new("/nonexistent/cups.sock")).state, State::Ok);
        let dir = tempfile::TempDir::new().unwrap();
        let socket = dir.path().join("cups.sock");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert_eq!(cups(&socket).state, State::Problem, "nobody listens");
        assert_eq!(console(SocketAddr::from(([127, 0, 0, 1], 1)))[0].state, State::Ok);
        assert_eq!(console(SocketAddr::from(([0, 0, 0, 0], 1)))[0].state, State::Note);
    }
}
