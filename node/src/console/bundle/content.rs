//! The files of a bundle, in their order. What a bundle holds is listed here and nowhere else.

use std::fs;
use std::io::{self, Write};

use bytes::Bytes;
use quire_coordinator::rows;
use quire_coordinator::script;
use quire_coordinator::tables::{Fault, Read, Table, after};
use quire_proto::id::Millis;
use quire_proto::store::{DeviceRow, EventRow, Member, Meta, ReviewRow, UnitRow};
use serde_json::{Value, json};

use super::Known;
use super::archive::Archive;
use super::mask::{self, Scrubber};
use crate::cluster::View;
use crate::console::facts::{self, Names};
use crate::console::{devices, segments};
use crate::{clock, cluster};

/// Rows of one listing: at 1 KB a row 20 MB before compression. What is more is left out, and said to be.
const MOST: usize = 20_000;
/// Rows fetched at a time.
const PAGE: usize = 256;

/// Writes all of it.
pub(super) fn write<W: Write>(known: &Known, meta: &Meta, scrubber: &Scrubber, out: W) -> io::Result<()> {
    let now = clock::now();
    let mut bundle = Bundle { known, scrubber, out: Archive::new(out, now.0)?, left_out: Vec::new() };
    bundle.object("version.json", "program, kernel and machine", version())?;
    let doctor = known.doctor.iter().map(|finding| json!(finding));
    bundle.lines("doctor.jsonl", "what `quire doctor` says", doctor.collect())?;
    if let Some(status) = &known.status {
        bundle.object("status.json", "`quire status` on this node", status.clone())?;
    }
    if let Some(metrics) = &known.metrics {
        bundle.text("metrics.txt", "the counters of /metrics", metrics)?;
    }
    bundle.text("log.txt", "the last lines of this process' log", &(known.log.join("\n") + "\n"))?;
    let settings = mask::settings(&meta.settings_toml);
    bundle.text("settings.toml", "the settings, without comments and secrets", &settings)?;
    if let Some(view) = &known.view {
        bundle.tables(view, meta)?;
    }
    let head = json!({
        "bundle": 1, "made_at": now.rfc3339(), "node": known.node, "cluster": meta.cluster_name,
        "version": env!("CARGO_PKG_VERSION"), "with_devices": known.wanted.with_devices,
        "left_out": bundle.left_out,
    });
    bundle.out.finish(head)
}

struct Bundle<'a, W: Write> {
    known: &'a Known,
    scrubber: &'a Scrubber,
    out: Archive<W>,
    /// What there was too much of, in words.
    left_out: Vec<String>,
}

/// One row as JSON, or `None` to leave it out.
type Render<'a> = &'a dyn Fn(&[u8], &Bytes) -> Result<Option<Value>, Fault>;

impl<W: Write> Bundle<'_, W> {
    fn text(&mut self, name: &str, what: &str, text: &str) -> io::Result<()> {
        self.out.add(name, what, self.scrubber.text(text).as_bytes())
    }

    fn object(&mut self, name: &str, what: &str, mut value: Value) -> io::Result<()> {
        self.scrubber.value(&mut value);
        self.out.add(name, what, &serde_json::to_vec_pretty(&value)?)
    }

    fn lines(&mut self, name: &str, what: &str, rows: Vec<Value>) -> io::Result<()> {
        let mut text = Vec::new();
        for mut row in rows {
            self.scrubber.value(&mut row);
            serde_json::to_writer(&mut text, &row)?;
            text.push(b'\n');
        }
        self.out.add(name, what, &text)
    }

    /// A listing of a table: of too many rows the last ones, by key.
    fn table(
        &mut self,
        view: &View,
        (name, what): (&str, &str),
        table: Table,
        render: Render<'_>,
    ) -> io::Result<()> {
        let fault = |fault: Fault| io::Error::other(fault.to_string());
        let count = count(view, table).map_err(fault)?;
        let mut skip = count.saturating_sub(MOST);
        if skip > 0 {
            self.left_out.push(format!("{name}: {skip} of {count} rows"));
        }
        let (mut lines, mut from) = (Vec::new(), Vec::new());
        loop {
            let page = view.range(table, &from, PAGE).map_err(fault)?;
            let last = page.len() < PAGE;
            for (key, stored) in page {
                if skip > 0 {
                    skip -= 1;
                } else {
                    lines.extend(render(&key, &stored).map_err(fault)?);
                }
                from = after(&key);
            }
            if last {
                return self.lines(name, what, lines);
            }
        }
    }

    fn tables(&mut self, view: &View, meta: &Meta) -> io::Result<()> {
        let fault = |fault: Fault| io::Error::other(fault.to_string());
        let names = facts::names(view).map_err(fault)?;
        let members = rows::members(view).map_err(fault)?;
        self.lines("members.jsonl", "the nodes", members.iter().map(member).collect())?;
        let (known, scrubber) = (self.known, self.scrubber);
        let unit = |key: &[u8], row: &Bytes| self::unit(key, row, &names, scrubber, known);
        self.table(
            view,
            ("units.jsonl", "the plan: units, whose they are, how far their sweeps are"),
            Table::Units,
            &unit,
        )?;
        let reach = facts::reachability(view).map_err(fault)?;
        self.lines("reachability.jsonl", "which node reaches which segment", reach)?;
        let settings = known.keys.as_ref().and_then(|keys| cluster::open_settings(keys, &meta.settings_toml));
        let found = segments::list(view, settings.as_ref()).map_err(fault)?;
        self.lines("segments.jsonl", "segments that nodes and routers made known", found)?;
        let audit = |key: &[u8], row: &Bytes| audit(key, row, &names, known);
        self.table(view, ("audit.jsonl", "what operators and the Web Admin did"), Table::Audit, &audit)?;
        let event = |_: &[u8], row: &Bytes| event(view, row, &names, scrubber, known);
        self.table(view, ("events.jsonl", "what happened to devices"), Table::Events, &event)?;
        let review = |_: &[u8], row: &Bytes| review(row, known);
        self.table(view, ("review.jsonl", "what is doubtful about who is who"), Table::Review, &review)?;
        self.scripts(view)?;
        let device = |key: &[u8], row: &Bytes| device(key, row, &names, scrubber, known);
        let what =
            if known.wanted.with_devices { "devices" } else { "devices, without what identifies them" };
        self.table(view, ("devices.jsonl", what), Table::Devices, &device)?;
        self.object("counts.json", "rows of every table, and where the numbers stand", counts(view, meta)?)
    }

    fn scripts(&mut self, view: &View) -> io::Result<()> {
        let rows = rows::scripts(view).map_err(|fault| io::Error::other(fault.to_string()))?;
        let lines = rows.iter().flat_map(|row| {
            script::listing(row).into_iter().map(|listed| {
                json!({ "name": row.name, "version": listed.version.version, "state": listed.state,
                    "runs": listed.tally.runs, "failures": listed.tally.failures, "why": listed.why,
                    "sha256": data_encoding::HEXLOWER.encode(&listed.version.sha256) })
            })
        });
        self.lines(
            "scripts.jsonl",
            "profiles that were put: versions and hashes, no sources",
            lines.collect(),
        )
    }
}

fn decode<M: prost::Message + Default>(table: Table, stored: &Bytes) -> Result<M, Fault> {
    M::decode(stored.clone()).map_err(|reason| Fault::Damaged { table, reason })
}

fn count(view: &View, table: Table) -> Result<usize, Fault> {
    let (mut count, mut from) = (0, Vec::new());
    loop {
        let page = view.range(table, &from, PAGE)?;
        count += page.len();
        match page.last() {
            Some((key, _)) if page.len() == PAGE => from = after(key),
            _ => return Ok(count),
        }
    }
}

fn member(member: &Member) -> Value {
    json!({ "id": member.id, "name": member.name, "zone": member.zone, "address": member.address,
        "version": member.version, "witness": member.witness, "draining": member.draining,
        "capabilities": member.capabilities, "enrolled": !member.upstream_certificate_der.is_empty() })
}

/// Upstream a unit that is hidden as a whole is left out.
fn unit(
    key: &[u8],
    stored: &Bytes,
    names: &Names,
    scrubber: &Scrubber,
    known: &Known,
) -> Result<Option<Value>, Fault> {
    let row: UnitRow = decode(Table::Units, stored)?;
    let hidden = known.wanted.upstream && scrubber.hides_prefix(&row.prefix);
    if hidden { Ok(None) } else { facts::unit(key, stored, names) }
}

/// Hidden when it was read last, or by the settings since.
fn is_hidden(device: &DeviceRow, scrubber: &Scrubber) -> bool {
    device.hidden || scrubber.hides(&device.address)
}

fn device(
    key: &[u8],
    stored: &Bytes,
    names: &Names,
    scrubber: &Scrubber,
    known: &Known,
) -> Result<Option<Value>, Fault> {
    let row: DeviceRow = decode(Table::Devices, stored)?;
    if known.wanted.upstream && is_hidden(&row, scrubber) {
        return Ok(None);
    }
    let shown = facts::any_device(key, stored, names)?;
    Ok(if known.wanted.with_devices { shown } else { shown.map(mask::device) })
}

fn event(
    view: &View,
    stored: &Bytes,
    names: &Names,
    scrubber: &Scrubber,
    known: &Known,
) -> Result<Option<Value>, Fault> {
    let row: EventRow = decode(Table::Events, stored)?;
    if known.wanted.upstream {
        let device: Option<DeviceRow> =
            quire_coordinator::tables::ReadExt::row(view, Table::Devices, row.device.as_bytes())?;
        if device.is_none_or(|device| is_hidden(&device, scrubber)) {
            return Ok(None);
        }
    }
    let shown = devices::event(&row, names);
    let plain = ["at", "device", "kind", "field", "before", "after", "node"];
    Ok(Some(if known.wanted.with_devices { shown } else { mask::only(shown, &plain) }))
}

/// The key and the words of a case name serial numbers and addresses.
fn review(stored: &Bytes, known: &Known) -> Result<Option<Value>, Fault> {
    let row: ReviewRow = decode(Table::Review, stored)?;
    if known.wanted.upstream {
        return Ok(None);
    }
    if known.wanted.with_devices {
        return Ok(Some(json!({ "id": row.id, "what": row.what, "why": row.why, "devices": row.devices,
            "evidence": row.evidence, "since": Millis(row.since_ms).rfc3339() })));
    }
    let kind = row.id.split(':').next().unwrap_or_default();
    Ok(Some(json!({ "kind": kind, "devices": row.devices, "since": Millis(row.since_ms).rfc3339() })))
}

fn audit(key: &[u8], stored: &Bytes, names: &Names, known: &Known) -> Result<Option<Value>, Fault> {
    let mut shown = facts::audit(key, stored, names)?;
    if !known.wanted.with_devices
        && let Some(Value::String(what)) = shown.as_mut().and_then(|row| row.get_mut("what"))
    {
        *what = mask::without_quoted(what);
    }
    Ok(shown)
}

fn counts(view: &View, meta: &Meta) -> io::Result<Value> {
    let mut counts = serde_json::Map::new();
    for table in Table::ALL {
        let rows = count(view, table).map_err(|fault| io::Error::other(fault.to_string()))?;
        counts.insert(format!("{table:?}"), json!(rows));
    }
    Ok(json!({
        "rows": counts, "devices": meta.devices, "expired": meta.expired, "plan_epoch": meta.plan_epoch,
        "claim_epoch": meta.claim_epoch, "claim_node": meta.claim_node, "outbox_next": meta.outbox_next,
        "outbox_acked": meta.outbox_acked, "outbox_base": meta.outbox_base, "settings_index": meta.settings_index,
        "detailed_readings": meta.detailed_readings, "daily_readings": meta.daily_readings,
        "served_ms": meta.served_ms,
    }))
}

/// Program, kernel and machine.
fn version() -> Value {
    let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
    let line = |file: &str, key: &str| {
        let text = read(file);
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim().trim_matches('"').to_owned()
    };
    let own = |key: &str| line("/proc/self/status", key);
    json!({
        "quire": env!("CARGO_PKG_VERSION"), "wire": quire_proto::WIRE_VERSION,
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "system": line("/etc/os-release", "PRETTY_NAME="),
        "processors": std::thread::available_parallelism().map_or(0, usize::from),
        "memory": line("/proc/meminfo", "MemTotal:"), "memory_available": line("/proc/meminfo", "MemAvailable:"),
        "load": read("/proc/loadavg").trim(),
        "process": { "memory": own("VmRSS:"), "threads": own("Threads:"), "seccomp": own("Seccomp:"),
            "files": fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) },
    })
}
