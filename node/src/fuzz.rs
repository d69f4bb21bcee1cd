//! The decoders, as functions of octets that somebody else chose: what `make fuzz` runs under libFuzzer, and
//! `tests/fuzz.rs` with a mutator of its own. No part of a node's work; a door for tests.
//!
//! A target must neither panic, nor hang, nor take memory without bound, whatever it is given, and it asserts what
//! must hold of what it made. Seeds come from recordings where there are any, and from a few lines here.

use std::path::{Path, PathBuf};

use prost::Message as _;
use quire_coordinator::outbox::Window;
use quire_coordinator::schedule::Schedule;
use quire_coordinator::settings::Settings;
use quire_coordinator::state;
use quire_coordinator::tables::{MemoryTables, Overlay, Table};
use quire_proto::address::{Mac, Target as Address};
use quire_proto::id::{Millis, UnitId};
use quire_proto::oid::Oid;
use quire_proto::reading::{Counters, Reading, Via};
use quire_proto::store::{self as row, command::Kind, observation::What};
use quire_proto::upstream::{FromSite, RegisterReply, ToSite, from_site, to_site};
use quire_proto::{convert, reading_wire};

use crate::cluster::fuzz as cluster;
use crate::device::fuzz as device;
use crate::dice::{Dice, pieces};
use crate::snmp::fuzz as snmp;

/// One decoder, or a room full of them.
pub struct Target {
    /// What the command line calls it.
    pub name: &'static str,
    /// One round.
    pub run: fn(&[u8]),
    /// What it begins with: `None` where there are no recordings on this machine.
    pub seeds: fn(Option<&Path>) -> Vec<Vec<u8>>,
    /// Rounds of the bounded run in the tests, so that each target takes a few seconds unoptimised.
    pub rounds: u32,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "message", run: snmp::message, seeds: message_seeds, rounds: 20_000 },
    Target { name: "engine", run: snmp::engine, seeds: engine_seeds, rounds: 6_000 },
    Target { name: "recording", run: device::recording, seeds: recording_seeds, rounds: 400 },
    Target { name: "answers", run: device::answers, seeds: noise, rounds: 3_000 },
    Target { name: "pages", run: device::pages, seeds: page_seeds, rounds: 200 },
    Target { name: "attributes", run: device::attributes, seeds: attribute_seeds, rounds: 5_000 },
    Target { name: "headers", run: device::headers, seeds: header_seeds, rounds: 10_000 },
    Target { name: "gate", run: device::gate, seeds: gate_seeds, rounds: 20_000 },
    Target { name: "path", run: device::path, seeds: gate_seeds, rounds: 20_000 },
    Target { name: "documents", run: device::documents, seeds: document_seeds, rounds: 600 },
    Target { name: "script", run: device::script, seeds: script_seeds, rounds: 500 },
    Target { name: "rows", run: rows, seeds: row_seeds, rounds: 40_000 },
    Target { name: "commands", run: commands, seeds: command_seeds, rounds: 10_000 },
    Target { name: "settings", run: settings, seeds: settings_seeds, rounds: 15_000 },
    Target { name: "names", run: names, seeds: name_seeds, rounds: 20_000 },
    Target { name: "token", run: cluster::token, seeds: token_seeds, rounds: 20_000 },
    Target { name: "upstream", run: upstream, seeds: upstream_seeds, rounds: 40_000 },
    Target { name: "cluster", run: cluster::messages, seeds: cluster_seeds, rounds: 40_000 },
    Target { name: "snapshot", run: cluster::snapshot, seeds: snapshot_seeds, rounds: 1_000 },
    Target { name: "spool", run: cluster::spool, seeds: spool_seeds, rounds: 300 },
];

/// Files below a directory of the recordings, those with one of these endings; sorted, so that a seed replays.
fn files(devices: Option<&Path>, below: &str, endings: &[&str]) -> Vec<Vec<u8>> {
    let mut folders: Vec<PathBuf> = devices.map(|devices| devices.join(below)).into_iter().collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let fits = endings.is_empty()
                || path.extension().is_some_and(|end| endings.iter().any(|wanted| end == *wanted));
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(path),
                Ok(kind) if kind.is_file() && fits => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Octets of every kind, the same each time.
fn noise(_: Option<&Path>) -> Vec<Vec<u8>> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    [40, 400, 4000].map(|length| (0..length).map(|_| next()).collect()).to_vec()
}

fn message_seeds(devices: Option<&Path>) -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    for file in files(devices, "recordings", &["snmprec"]) {
        let text = String::from_utf8_lossy(&file);
        let line = |line: &str| {
            let mut parts = line.splitn(3, '|');
            let oid: Oid = parts.next()?.parse().ok()?;
            let (tag, text) = (parts.next()?, parts.next()?);
            let octets = match tag.ends_with('x') {
                true => data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok()?,
                false => text.as_bytes().to_vec(),
            };
            Some((oid, tag.trim_end_matches('x').parse().ok()?, octets))
        };
        let varbinds: Vec<(Oid, u8, Vec<u8>)> = text.lines().filter_map(line).take(24).collect();
        seeds.push(snmp::datagram(&varbinds));
    }
    let one = [("1.3.6.1.2.1.1.1.0".parse().unwrap_or_else(|_| Oid::new(&[1, 3])), 4, b"sim".to_vec())];
    seeds.push(snmp::datagram(&one));
    seeds.extend(noise(None));
    seeds
}

fn engine_seeds(devices: Option<&Path>) -> Vec<Vec<u8>> {
    let mut seeds = noise(None);
    for message in message_seeds(devices).iter().take(8) {
        let ask = [0u8, 2, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0, 1, 2, 0];
        seeds.push([&ask[..], &pieces([message.as_slice()]), &[6, 0, 255, 1, 0, 2, 0, 3, 1, 2, 3]].concat());
    }
    seeds
}

fn recording_seeds(devices: Option<&Path>) -> Vec<Vec<u8>> {
    let own = "1.3.6.1.2.1.1.1.0|4|Brother NC-8700w\n1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.2435.2.3.9.1\n\
        1.3.6.1.2.1.25.3.2.1.2.1|6|1.3.6.1.2.1.25.3.1.5\n1.3.6.1.2.1.43.10.2.1.4.1.1|65|900\n\
        1.3.6.1.2.1.43.11.1.1.6.1.1|4|Black\n1.3.6.1.2.1.43.11.1.1.8.1.1|2|100\n1.3.6.1.2.1.43.11.1.1.9.1.1|2|-3\n";
    let mut all = texts(&[own]);
    for below in ["recordings", "routers", "not-printers"] {
        // Longer ones are rows of the same tables again.
        all.extend(files(devices, below, &["snmprec"]).into_iter().filter(|file| file.len() < 200_000));
    }
    all.into_iter().enumerate().map(|(n, file)| [&[(n % 64) as u8][..], &file].concat()).collect()
}

fn page_seeds(devices: Option<&Path>) -> Vec<Vec<u8>> {
    let mut seeds = texts(&[
        "<ProductUsageDyn><PrinterSubunit><TotalImpressions>7</TotalImpressions></PrinterSubunit></ProductUsageDyn>",
        "<table><tr><td>Total</td><td>1,234</td></tr></table><dl><dt>Model</dt><dd>X</dd></dl>",
        "{ status: { hrDeviceStatus: 2 }, toner_black: { opt: 1, remaining: 80 } }",
    ]);
    seeds.extend(files(devices, "web", &["html", "htm", "xml", "json", "js", "asp", "cgi", "txt"]));
    seeds
}

fn attribute_seeds(devices: Option<&Path>) -> Vec<Vec<u8>> {
    let mut seeds = files(devices, "ipp", &[]);
    seeds.extend(noise(None));
    seeds
}

fn header_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    let digest =
        b"Digest realm=\"a, b\", nonce=\"n\", qop=\"auth,auth-int\", algorithm=SHA-256, opaque=\"o\""
            .as_slice();
    let both =
        b"Basic realm=\"x\", Digest realm=\"\\\"\", nonce=n, stale=TRUE, algorithm=MD5-sess".as_slice();
    let cookie = b"id=7; Path=/; HttpOnly".as_slice();
    let page = b"<?xml version='1.0' encoding='ISO-8859-2'?>\xb1".as_slice();
    let all = pieces([digest, both, cookie, b"text/html; charset=Shift_JIS".as_slice()]);
    vec![
        [&[3][..], all.as_slice(), page].concat(),
        [&[1][..], pieces([both, b"".as_slice()]).as_slice(), page].concat(),
    ]
}

fn gate_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    texts(&[
        "/general/status.html?page=1&x=%20",
        "http://192.0.2.7:8080/x",
        "https://192.0.2.7/",
        "//192.0.2.8/x",
        "http://192.0.2.7:9100/",
        "http://user:word@192.0.2.7/",
        "http://192.0.2.7.example/",
        "http:\\\\192.0.2.8\\x",
        "/..//x/%2e%2e/%2F",
        "http://3221225991/",
        "http://[::ffff:192.0.2.7]/",
        "\thttp://192.0.2.8",
    ])
}

fn document_seeds(devices: Option<&Path>) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (n, page) in page_seeds(devices).iter().enumerate() {
        let selector = ["td.n", "table tr:nth-child(2) > td", "a/b", "[id=\"x\"] + *", "*:not(p)"][n % 5];
        seeds.push([pieces([selector.as_bytes()]).as_slice(), page].concat());
    }
    seeds
}

fn script_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    let shipped = crate::device::script::Scripts::shipped();
    let mut seeds: Vec<Vec<u8>> = shipped.iter().map(|profile| profile.source.as_bytes().to_vec()).collect();
    seeds.extend(texts(&[
        "let x = get(`1.3.6.1.4.1.1.2`); meter(`total`, x, `1.3.6.1.4.1.1.2`);",
        "fn f(n) { if n < 9 { f(n + 1) } } let m = #{}; for i in 0..99 { m[`k${i}`] = [i, \"x\"]; } f(0);",
        "let s = \"abc\"; s.pad(9000, 'x'); s.replace(`x`, `yy`); s.split(`y`).sort(); throw s.sub_string(3, 9);",
        "let p = http_get(`/a`); html(p.body).select(`td`); json(`{\"a\":[1,2.5,null]}`); xml(`<a><b/></a>`).find(`b`);",
        "let b = blob(64, 0x42); b.parse_le_int(0, 8); b.splice(3..9, b); (1..99).step_by(7).map(|x| x ** 3);",
    ]));
    seeds
}

/// Everything that lies on a disk as a message: readings and rows.
fn rows(data: &[u8]) {
    if let Ok(reading) = convert::decode(data) {
        assert_eq!(convert::decode(&convert::encode(&reading)).ok().as_ref(), Some(&reading));
    }
    drop(reading_wire::Reading::decode(data));
    drop(row::Member::decode(data));
    drop(row::UnitRow::decode(data));
    drop(row::DeviceRow::decode(data));
    drop(row::ReadingRow::decode(data));
    drop(row::OutboxEntry::decode(data));
    drop(row::Observation::decode(data));
    drop(row::Command::decode(data));
    drop(row::Outcome::decode(data));
    drop(row::Meta::decode(data));
}

fn reading() -> Reading {
    let counters = Counters { total: Some(7), unit: Some("sheets".to_owned()), ..Counters::default() };
    let mut reading = Reading { counters, via: vec![Via::SnmpV2c], ..Reading::default() };
    reading.facts.serial = Some("CND8F5PF0F".to_owned());
    reading.facts.mac = "00:11:22:33:44:55".parse().ok();
    reading.sources.insert("serial".to_owned(), "1.3.6.1.2.1.43.5.1.1.17.1".to_owned());
    reading
}

fn row_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    let reading = convert::encode(&reading());
    let device = row::DeviceRow {
        id: "d-1".to_owned(),
        unit: "u".to_owned(),
        address: "127.0.0.1:161".to_owned(),
        reading: reading.clone(),
        ..row::DeviceRow::default()
    };
    let mut seeds = command_messages();
    seeds.extend([reading.to_vec(), device.encode_to_vec()]);
    seeds
}

fn command_messages() -> Vec<Vec<u8>> {
    let observation = |seq: u64, what: What| row::Observation {
        seq,
        unit: "hq/10.1.0.0/24".to_owned(),
        epoch: 2,
        at_ms: 1_000 * seq,
        address: "10.1.0.7:161".to_owned(),
        what: Some(what),
        ..row::Observation::default()
    };
    let sweep = row::SweepMark { started_at_ms: 5, done: 64, total: 254, ..row::SweepMark::default() };
    let observations = [
        observation(1, What::Reading(convert::encode(&reading()))),
        observation(2, What::Silence(row::Silence { device: "d-1".to_owned() })),
        observation(3, What::Sweep(sweep)),
    ];
    let observations = observations.map(|observation| observation.encode_to_vec().into()).to_vec();
    let grant = row::Grant { unit: "hq/10.1.0.0/24".to_owned(), node: 1, ..row::Grant::default() };
    let member = row::Member { id: 1, name: "n1".to_owned(), ..row::Member::default() };
    let kinds = [
        Kind::Bootstrap(row::Bootstrap {
            cluster_name: "c".to_owned(),
            cluster_id: vec![1; 16].into(),
            first: Some(member),
            ..row::Bootstrap::default()
        }),
        Kind::Claim(row::Claim { node: 1, ..row::Claim::default() }),
        Kind::Plan(row::Plan { claim: 0, grants: vec![grant], ..row::Plan::default() }),
        Kind::Record(row::Record { node: 1, observations }),
        Kind::Ack(row::Ack { claim: 0, through: 1 }),
        Kind::RemoveMember(row::RemoveMember { id: 1, by: "x".to_owned() }),
    ];
    kinds
        .map(|kind| {
            row::Command { at_ms: 9_000, kind: Some(kind), ..row::Command::default() }.encode_to_vec()
        })
        .to_vec()
}

/// Entries of the log, one after another: none of them may break the tables, and none may panic.
fn commands(data: &[u8]) {
    let mut dice = Dice::new(data);
    let mut tables = MemoryTables::default();
    for index in 1..64 {
        if dice.is_empty() {
            break;
        }
        let Ok(command) = row::Command::decode(dice.piece()) else { continue };
        let mut overlay = Overlay::new(&tables);
        if let Err(fault) = state::apply(&mut overlay, index, &command) {
            panic!("entry {index} breaks the tables: {fault}");
        }
        let writes: Vec<_> = overlay.into_writes().collect();
        tables.commit(writes.into_iter());
    }
}

fn command_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    let all = command_messages();
    vec![pieces(all.iter().map(Vec::as_slice)), pieces(all.iter().chain(&all).rev().map(Vec::as_slice))]
}

/// Settings and what is in them; what is accepted is accepted again, and nothing changes between the two.
fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    drop(Schedule::parse(text));
    let Ok(settings) = Settings::parse(text) else { return };
    assert!(settings.changes(&settings).is_empty());
    Settings::default().changes(&settings);
    let sealed = quire_coordinator::settings::seal_secrets(text, &mut |_, _| "sealed:QUJD".to_owned());
    assert!(sealed.is_ok(), "good settings do not seal: {sealed:?}");
}

fn settings_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    texts(&[
        "[discovery]\nsegments = [\"10.1.0.0/16\", { prefix = \"10.2.0.0/16\", zone = \"hq\" }]\nhops = 2\n\
         exclude = [\"10.1.0.5\"]\nhide = [\"10.1.9.0/24\"]\nschedule = \"Mon,Thu 02:00\"\nrate = 500\n\
         [metering]\nevery = \"1h\"\nexpire_after = \"42d\"\n[[snmp]]\nversion = \"2c\"\ncommunity = \"public\"\n",
        "[[snmp]]\nversion = \"3\"\nuser = \"meter\"\nauth = \"sha256\"\nauth_pass = \"long enough\"\npriv = \"aes\"\n\
         priv_pass = \"long enough\"\npermission = \"granted\"\n[http]\nports = [80, 443]\nchromium = true\n\
         [[http_login]]\nsegment = \"10.1.0.0/16\"\nuser = \"viewer\"\npassword = \"x\"\n",
        "[[alert]]\nname = \"low toner\"\nwhen = 'supply.kind == \"toner\" && supply.percent < 15'\n\
         notify = [\"upstream\", \"webhook:https://x.example/\"]\n[upstream]\nmode = \"service\"\ncheck_in = \"5m\"\n",
        "Mon,Thu 02:00",
        "every 12h",
    ])
}

/// Names that people and rows bring: addresses, ranges, OIDs, units, hardware addresses.
fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(target) = text.parse::<Address>() {
        assert!(target.count() > 0);
        // The first ones stand for all: a range may have 2^32.
        assert!(target.hosts().take(300).count() <= 300);
    }
    if let Ok(oid) = text.parse::<Oid>() {
        assert_eq!(oid.to_string().parse::<Oid>().ok().as_ref(), Some(&oid));
    }
    if let Ok(unit) = text.parse::<UnitId>() {
        assert_eq!(unit.as_str(), text);
        unit.prefix();
    }
    if let Ok(mac) = text.parse::<Mac>() {
        assert_eq!(mac.to_string().parse::<Mac>().ok(), Some(mac));
    }
}

fn name_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    texts(&[
        "10.1.0.0/16",
        "10.1.0.1-20:1161",
        "10.1.0.250-10.1.1.5",
        "2001:db8::1",
        "[2001:db8::1]:161",
        "1.3.6.1.4.1.2435.2.3.9.1",
        "hq/10.1.0.0/24",
        "00:1b:a9:0b:a7:52",
        "001ba90ba752",
        "0.0.0.0/0",
    ])
}

fn token_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    vec![cluster::any_token(), b"quire1.AAAA".to_vec()]
}

/// A mark of this many committed observations, and observations under these numbers.
fn spool_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    let spool = |committed: u64, numbers: &[u64]| {
        let count = u8::try_from(numbers.len()).unwrap_or(15);
        let mut octets = vec![0];
        octets.extend(pieces([committed.to_be_bytes().as_slice()]));
        octets.push(count);
        for number in numbers {
            octets.push(0);
            octets.extend(pieces([number.to_be_bytes().as_slice(), b"\x08\x01"]));
        }
        octets.extend([12, 0, 3, 1, 7, 2, 9, 0, 3, 0, 3, 0, 3, 1, 1, 2, 200, 0, 0]);
        octets
    };
    vec![
        spool(0, &[]),
        spool(7, &[8, 9, 10, 12]),
        spool(u64::MAX, &[1]),
        spool(3, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, u64::MAX]),
        spool(u64::MAX - 1, &[u64::MAX - 2, u64::MAX - 1, u64::MAX]),
    ]
}

/// Both directions of the link, and the window that a server's numbers move.
fn upstream(data: &[u8]) {
    let mut dice = Dice::new(data);
    let mut window = Window::new(u64::from(dice.octet()));
    window.handle_appended(u64::from(dice.octet()) * 8);
    while !dice.is_empty() {
        let piece = dice.piece();
        drop(RegisterReply::decode(piece));
        if let Ok(FromSite { what: Some(from_site::What::Batch(batch)), .. }) = FromSite::decode(piece) {
            for entry in &batch.entries {
                let row = row::OutboxEntry::decode(entry.clone()).ok().and_then(|entry| entry.row);
                drop(row.map(|row| convert::decode(&row.reading)));
            }
        }
        let Ok(ToSite { what: Some(what) }) = ToSite::decode(piece) else { continue };
        let pending = window.pending();
        match what {
            to_site::What::Welcome(welcome) => drop(window.handle_welcome(welcome.through)),
            to_site::What::Received(received) => {
                if window.handle_received(received.through).is_ok() {
                    assert!(window.pending() <= pending);
                }
            }
            to_site::What::Signed(_) | to_site::What::Job(_) | to_site::What::Refused(_) => {}
        }
        if let Some(want) = window.wants() {
            assert!(want.from <= want.through);
            window.handle_sent(want.from, Millis(1));
        }
        window.take_ack();
    }
}

fn upstream_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    let down = |what| ToSite { what: Some(what) }.encode_to_vec();
    let welcome =
        down(to_site::What::Welcome(quire_proto::upstream::Welcome { through: 3, site: "s".to_owned() }));
    let received = |through| down(to_site::What::Received(quire_proto::upstream::Received { through }));
    let entry = row::OutboxEntry { seq: 4, ..row::OutboxEntry::default() }.encode_to_vec();
    let batch = quire_proto::upstream::Batch { first_seq: 4, entries: vec![entry.into()] };
    let up = FromSite { epoch: 1, what: Some(from_site::What::Batch(batch)) }.encode_to_vec();
    let all = [welcome, received(4), received(5), up];
    vec![[&[4, 9][..], pieces(all.iter().map(Vec::as_slice)).as_slice()].concat()]
}

fn cluster_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    use quire_proto::cluster as proto;
    let id = proto::LogId { term: 2, node: 1, index: 3 };
    let change = proto::MembershipEntry {
        configs: vec![proto::NodeSet { ids: vec![1, 2] }],
        nodes: vec![proto::RaftNode { id: 1, ..proto::RaftNode::default() }],
    };
    let entry = |payload| proto::Entry { id: Some(id), payload: Some(payload) };
    let blank = entry(proto::entry::Payload::Blank(true));
    let member = entry(proto::entry::Payload::Membership(change.clone()));
    let command = entry(proto::entry::Payload::Command(b"\x08\x01".to_vec().into()));
    let stored = proto::StoredMembership { id: Some(id), membership: Some(change) };
    let append = proto::AppendRequest {
        entries: vec![blank.clone(), member.clone(), command.clone()],
        ..proto::AppendRequest::default()
    };
    vec![
        blank.encode_to_vec(),
        member.encode_to_vec(),
        command.encode_to_vec(),
        stored.encode_to_vec(),
        append.encode_to_vec(),
    ]
}

fn snapshot_seeds(_: Option<&Path>) -> Vec<Vec<u8>> {
    let meta = row::Meta { cluster_name: "c".to_owned(), ..row::Meta::default() }.encode_to_vec();
    let unit = row::UnitRow { unit: "hq/10.1.0.0/24".to_owned(), ..row::UnitRow::default() }.encode_to_vec();
    vec![cluster::parts(vec![
        (Table::Meta, b"meta".to_vec(), meta),
        (Table::Units, b"hq/10.1.0.0/24".to_vec(), unit),
        (Table::Recorded, 1u64.to_be_bytes().to_vec(), 9u64.to_be_bytes().to_vec()),
    ])]
}
