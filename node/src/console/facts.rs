//! The contract's JSON, from the replicated tables: what the API, the pages and the command line show.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use prost::Message;
use quire_coordinator::tables::{Fault, Read, ReadExt as _, Table, after};
use quire_coordinator::timing::{ELECTION_BEATS, Measured, silent_ms};
use quire_coordinator::{history, progress, rows};
use quire_proto::convert;
use quire_proto::id::{Millis, NodeId};
use quire_proto::reading::Status;
use quire_proto::store::{AuditRow, DeviceRow, Heard, Member, Meta, ReadingRow, UnitRow};
use serde_json::{Map, Value, json};

use crate::clock;
use crate::cluster::{Cluster, Role, Standing};
use crate::device::{Place, device_json};

/// Names by node id.
pub(crate) type Names = BTreeMap<u64, String>;

/// The names of all members.
pub(crate) fn names(tables: &impl Read) -> Result<Names, Fault> {
    Ok(rows::members(tables)?.into_iter().map(|member| (member.id, member.name)).collect())
}

fn name(names: &Names, id: u64) -> Value {
    match names.get(&id) {
        Some(name) => json!(name),
        None if id == 0 => Value::Null,
        None => json!(format!("({id})")),
    }
}

fn put(object: &mut Map<String, Value>, key: &str, value: impl Into<Option<Value>>) {
    if let Some(value) = value.into()
        && !value.is_null()
    {
        object.insert(key.to_owned(), value);
    }
}

fn time(at_ms: u64) -> Option<Value> {
    (at_ms > 0).then(|| json!(Millis(at_ms).rfc3339()))
}

/// `status`.
pub(crate) fn status(cluster: &Cluster) -> Result<Value, Fault> {
    let tables = cluster.view();
    let standing = cluster.watch().borrow().clone();
    let meta = rows::meta(&tables)?;
    let members = rows::members(&tables)?;
    let names: Names = members.iter().map(|member| (member.id, member.name.clone())).collect();
    let units = rows::units(&tables)?;
    let me = cluster.me();
    let witness = members.iter().any(|member| member.id == me.id.0 && member.witness);
    let mut object = Map::new();
    put(&mut object, "cluster", json!(meta.cluster_name));
    put(&mut object, "node", json!(me.name));
    put(&mut object, "role", json!(role_word(standing.role, witness)));
    // Raft names the last one that it heard, also long after that one died.
    let leader = standing.leader.filter(|_| standing.quorum);
    put(&mut object, "leader", leader.map(|leader| name(&names, leader.0)));
    put(&mut object, "term", json!(standing.term));
    put(&mut object, "applied", json!(standing.applied));
    put(&mut object, "quorum", json!(standing.quorum));
    put(&mut object, "timing", timing(cluster));
    let members: Vec<Value> = members.iter().map(|m| member(cluster, m, &meta, &standing, &units)).collect();
    put(&mut object, "members", json!(members));
    put(&mut object, "units", json!(units.len()));
    let unassigned = units.iter().filter(|unit| unit.node == 0).count();
    put(&mut object, "unassigned", json!(unassigned));
    put(&mut object, "devices", json!(meta.devices.saturating_sub(meta.expired)));
    put(&mut object, "alerts", json!(meta.alerts_open));
    put(&mut object, "plan_epoch", json!(meta.plan_epoch));
    put(&mut object, "cluster_version", json!(meta.cluster_version));
    let schedule = cluster.settings().ok().flatten().map(|settings| settings.discovery.schedule.clone());
    let (schedule, now) = (schedule.unwrap_or_default(), clock::now());
    let due = units.iter().filter(|unit| unit.node > 0 && progress::is_due(unit, &schedule, now));
    put(&mut object, "sweeps", sweeps(due));
    put(&mut object, "upstream", upstream(&meta, &names, standing.quorum));
    Ok(Value::Object(object))
}

/// How long Raft waits, and what was measured here.
fn timing(cluster: &Cluster) -> Value {
    let (beat, own) = (cluster.timing().pace.beat_ms(), cluster.timing().own());
    let mut object = Map::new();
    put(&mut object, "heartbeat_ms", json!(beat));
    put(&mut object, "election_ms", json!([beat * ELECTION_BEATS.0, beat * ELECTION_BEATS.1]));
    put(&mut object, "silence_ms", json!(silent_ms(beat)));
    put(&mut object, "fsync_p99_ms", milliseconds(own.fsync_us));
    Value::Object(object)
}

/// With a tenth; nothing where it is not known.
fn milliseconds(us: u64) -> Option<Value> {
    (us > 0).then(|| json!(us.div_ceil(100) as f64 / 10.0))
}

fn role_word(role: Role, witness: bool) -> &'static str {
    match role {
        Role::Leader => "leader",
        Role::Learner => "learner",
        Role::Follower | Role::Candidate if witness => "witness",
        Role::Follower | Role::Candidate => "follower",
    }
}

fn upstream(meta: &Meta, names: &Names, quorum: bool) -> Value {
    let mut link = meta.link.clone().unwrap_or_default();
    if !quorum {
        // What the last leader said is old news; nobody can hold a claim now, as far as this node sees.
        link.detail = "no quorum".to_owned();
        if link.state == "connected" {
            link.state = "connecting".to_owned();
        }
    }
    let mut object = Map::new();
    let state = match (&meta.upstream, link.state.as_str()) {
        (None, _) => "disabled",
        (Some(_), "") => "connecting",
        (Some(_), state) => state,
    };
    put(&mut object, "state", json!(state));
    put(&mut object, "mode", json!(if link.mode.is_empty() { "service" } else { &link.mode }));
    put(&mut object, "holder", name(names, meta.claim_node));
    put(&mut object, "epoch", json!(meta.claim_epoch));
    put(&mut object, "acked", json!(meta.outbox_acked));
    let pending = meta.outbox_next.saturating_sub(1).saturating_sub(meta.outbox_acked);
    put(&mut object, "pending", json!(pending));
    put(&mut object, "detail", (!link.detail.is_empty()).then(|| json!(link.detail)));
    Value::Object(object)
}

fn member(cluster: &Cluster, member: &Member, meta: &Meta, standing: &Standing, units: &[UnitRow]) -> Value {
    let id = NodeId(member.id);
    let heard: Option<&Heard> = meta.heard.iter().find(|heard| heard.node == member.id);
    let own = units.iter().filter(|unit| unit.node == member.id);
    let role = match () {
        () if member.witness => "witness",
        () if standing.voters.contains(&id) => "voter",
        () => "learner",
    };
    let trouble = Some(&member.trouble).filter(|trouble| !trouble.is_empty());
    let mut row = json!({
        "name": member.name,
        "id": member.id,
        "address": member.address,
        "zone": member.zone,
        "role": role,
        "alive": cluster.is_alive(meta, id),
        "units": own.clone().count(),
        "devices": own.map(|unit| u64::from(unit.devices)).sum::<u64>(),
        "lag": heard.map_or(0, |heard| heard.lag),
        "version": member.version,
        "draining": member.draining,
        "capabilities": member.capabilities,
    });
    if let Some(row) = row.as_object_mut() {
        put(row, "trouble", trouble.map(|trouble| json!(trouble)));
        // The leader tells the others with its claim; what a node measured itself, it knows.
        let told = heard.map_or_else(Measured::default, |heard| Measured {
            fsync_us: heard.fsync_us,
            rtt_us: heard.rtt_us,
        });
        let measured =
            if told == Measured::default() { cluster.timing().of(id, cluster.me().id) } else { told };
        put(row, "fsync_p99_ms", milliseconds(measured.fsync_us));
        put(row, "rtt_p99_ms", milliseconds(measured.rtt_us));
    }
    row
}

fn decode<M: Message + Default>(table: Table, stored: &Bytes) -> Result<M, Fault> {
    M::decode(stored.clone()).map_err(|reason| Fault::Damaged { table, reason })
}

/// A row of `units` and `plan`.
pub(crate) fn unit(_: &[u8], stored: &Bytes, names: &Names) -> Result<Option<Value>, Fault> {
    Ok(Some(unit_json(&decode(Table::Units, stored)?, names)))
}

fn unit_json(row: &UnitRow, names: &Names) -> Value {
    let mut object = Map::new();
    put(&mut object, "unit", json!(row.unit));
    put(&mut object, "zone", json!(row.zone));
    put(&mut object, "segment", json!(row.prefix));
    put(&mut object, "hops", row.hops.map(|hops| json!(hops)));
    put(&mut object, "node", name(names, row.node));
    put(&mut object, "epoch", json!(row.epoch));
    put(&mut object, "cost", json!(row.cost));
    let sweep = row.sweep.clone().unwrap_or_default();
    let state = match () {
        () if row.node == 0 => "unassigned",
        () if sweep.total > 0 && !sweep.finished => "sweeping",
        () if row.swept_at_ms > 0 => "swept",
        () => "waiting",
    };
    put(&mut object, "state", json!(state));
    put(&mut object, "swept_at", time(row.swept_at_ms));
    let coverage = if sweep.total == 0 { 0.0 } else { f64::from(sweep.done) / f64::from(sweep.total) };
    put(&mut object, "coverage", json!((coverage * 1000.0).round() / 1000.0));
    put(&mut object, "devices", json!(row.devices));
    put(&mut object, "responders", json!(sweep.responders));
    put(&mut object, "seconds_left", progress::seconds_left(row, clock::now()).map(|left| json!(left)));
    Value::Object(object)
}

/// Units as a page shows them: those from a key on, and the key of the next page.
pub(crate) fn units_page(
    tables: &impl Read,
    from: &[u8],
    most: usize,
) -> Result<(Vec<Value>, Option<Vec<u8>>), Fault> {
    let names = names(tables)?;
    let mut rows = tables.range(Table::Units, from, most + 1)?;
    let next = rows.get(most).map(|(key, _)| key.to_vec());
    rows.truncate(most);
    let units = rows.iter().map(|(_, row)| Ok(unit_json(&decode(Table::Units, row)?, &names)));
    Ok((units.collect::<Result<_, Fault>>()?, next))
}

/// A row of `devices`: of those that are in the reports.
pub(crate) fn device(_: &[u8], stored: &Bytes, names: &Names) -> Result<Option<Value>, Fault> {
    let row: DeviceRow = decode(Table::Devices, stored)?;
    Ok((row.expired_at_ms == 0).then(|| device_row(&row, names)))
}

/// A row of `devices --all`.
pub(crate) fn any_device(_: &[u8], stored: &Bytes, names: &Names) -> Result<Option<Value>, Fault> {
    Ok(Some(device_row(&decode(Table::Devices, stored)?, names)))
}

/// Devices as a page shows them, by zone and address: those from a place on that `keep` chooses, and the place of the
/// next page.
pub(crate) fn devices_page(
    tables: &impl Read,
    from: &[u8],
    most: usize,
    mut keep: impl FnMut(&Value) -> bool,
) -> Result<(Vec<Value>, Option<Vec<u8>>), Fault> {
    /// Devices looked at for one page, so that a rare word holds up nobody: some 200 ms.
    const LOOKED_AT: usize = 20_000;
    /// Places fetched at a time.
    const FETCH: usize = 256;
    let names = names(tables)?;
    let (mut devices, mut from, mut looked) = (Vec::new(), from.to_vec(), 0);
    loop {
        let places = tables.range(Table::Places, &from, FETCH)?;
        let last = places.len() < FETCH;
        for (place, id) in places {
            if devices.len() >= most || looked >= LOOKED_AT {
                return Ok((devices, Some(place.to_vec())));
            }
            looked += 1;
            let row = tables.row::<DeviceRow>(Table::Devices, &id)?;
            if let Some(row) = row.filter(|row| row.expired_at_ms == 0) {
                devices.extend(Some(device_row(&row, &names)).filter(|device| keep(device)));
            }
            from = after(&place);
        }
        if last {
            return Ok((devices, None));
        }
    }
}

/// One device, where it is known.
pub(crate) fn one_device(tables: &impl Read, id: &str) -> Result<Option<Value>, Fault> {
    let names = names(tables)?;
    Ok(tables.row::<DeviceRow>(Table::Devices, id.as_bytes())?.map(|row| device_row(&row, &names)))
}

fn device_row(row: &DeviceRow, names: &Names) -> Value {
    let mut reading = convert::decode(&row.reading).unwrap_or_default();
    if row.misses >= rows::OFFLINE_AFTER {
        reading.status = Some(Status::Offline);
    }
    super::devices::overlay_typed(row, &mut reading);
    let first_seen = Millis(row.first_seen_ms).rfc3339();
    let last_seen = Millis(row.last_seen_ms).rfc3339();
    let metered_at = (row.metered_at_ms > 0).then(|| Millis(row.metered_at_ms).rfc3339());
    let addresses: Vec<IpAddr> = row.addresses.iter().filter_map(|address| ip(address)).collect();
    let place = Place {
        id: Some(&row.id),
        address: ip(&row.address),
        addresses: &addresses,
        zone: Some(&row.zone),
        node: names.get(&row.node).map(String::as_str),
        hops: row.hops.and_then(|hops| u8::try_from(hops).ok()),
        first_seen: Some(&first_seen),
        last_seen: Some(&last_seen),
        metered_at: metered_at.as_deref(),
    };
    let mut device = device_json(&place, &reading);
    super::devices::add_history(row, &mut device);
    device
}

fn ip(address: &str) -> Option<IpAddr> {
    address.parse::<SocketAddr>().ok().map(|at| at.ip())
}

/// A row of `readings`.
pub(crate) fn reading(_: &[u8], stored: &Bytes, names: &Names) -> Result<Option<Value>, Fault> {
    Ok(Some(reading_json(&decode(Table::Readings, stored)?, names)))
}

/// The readings of one device, latest first; at most `limit`.
pub(crate) fn readings_of(tables: &impl Read, device: &str, limit: usize) -> Result<Vec<Value>, Fault> {
    let names = names(tables)?;
    Ok(history::of_device(tables, device, limit)?.iter().map(|row| reading_json(row, &names)).collect())
}

fn reading_json(row: &ReadingRow, names: &Names) -> Value {
    let reading = convert::decode(&row.reading).unwrap_or_default();
    let mut object = Map::new();
    put(&mut object, "id", json!(row.id));
    put(&mut object, "device", json!(row.device));
    put(&mut object, "unit", json!(row.unit));
    put(&mut object, "at", json!(Millis(row.at_ms).rfc3339()));
    put(&mut object, "node", name(names, row.node));
    put(&mut object, "epoch", json!(row.epoch));
    put(&mut object, "counters", json!(reading.counters));
    put(&mut object, "supplies", json!(reading.supplies));
    put(&mut object, "status", reading.status.map(|status| json!(status.word())));
    put(&mut object, "late", row.late.then(|| json!(true)));
    Value::Object(object)
}

/// `reachability`: node by segment.
pub(crate) fn reachability(tables: &impl Read) -> Result<Vec<Value>, Fault> {
    let names = names(tables)?;
    let rows = rows::reaches(tables)?;
    Ok(rows
        .into_iter()
        .filter_map(|row| row.reach.map(|reach| (row.node, reach)))
        .map(|(node, reach)| {
            let mut object = Map::new();
            put(&mut object, "node", name(&names, node));
            put(&mut object, "segment", json!(reach.segment));
            put(&mut object, "reachable", json!(reach.reachable));
            put(&mut object, "hops", reach.hops.map(|hops| json!(hops)));
            put(&mut object, "measured_at", time(reach.measured_at_ms));
            Value::Object(object)
        })
        .collect())
}

/// A row of `audit`.
pub(crate) fn audit(key: &[u8], stored: &Bytes, _: &Names) -> Result<Option<Value>, Fault> {
    let row: AuditRow = decode(Table::Audit, stored)?;
    let index = key.try_into().map_or(0, u64::from_be_bytes);
    let at = Millis(row.at_ms).rfc3339();
    Ok(Some(json!({"index": index, "at": at, "by": row.by, "what": row.what})))
}

/// How far the sweeps of these units are.
pub(crate) fn sweeps<'a>(due: impl IntoIterator<Item = &'a UnitRow>) -> Value {
    let progress = progress::of(due);
    let mut object = Map::new();
    put(&mut object, "units", json!(progress.units));
    put(&mut object, "addresses", json!(progress.addresses));
    put(&mut object, "done", json!(progress.done));
    put(&mut object, "seconds_left", progress.seconds_left.map(|left| json!(left)));
    Value::Object(object)
}
