//! The contract's JSON, from the replicated tables: what the API, the pages and the command line show.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use quire_coordinator::rows;
use quire_coordinator::tables::{Fault, Read, ReadExt as _, Table};
use quire_proto::convert;
use quire_proto::id::{Millis, NodeId};
use quire_proto::reading::Status;
use quire_proto::store::{AuditRow, DeviceRow, Heard, Member, Meta, ReadingRow, UnitRow};
use serde_json::{Map, Value, json};

use crate::cluster::{Cluster, Role, Standing};
use crate::device::{Place, device_json};

/// Misses in a row before a device counts as offline; one miss never does.
const OFFLINE_AFTER: u32 = 2;

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
    let members: Vec<Value> = members.iter().map(|m| member(cluster, m, &meta, &standing, &units)).collect();
    put(&mut object, "members", json!(members));
    put(&mut object, "units", json!(units.len()));
    let unassigned = units.iter().filter(|unit| unit.node == 0).count();
    put(&mut object, "unassigned", json!(unassigned));
    put(&mut object, "devices", json!(meta.devices));
    put(&mut object, "plan_epoch", json!(meta.plan_epoch));
    put(&mut object, "upstream", upstream(&meta, &names, standing.quorum));
    Ok(Value::Object(object))
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
    let me = cluster.me().id == id;
    let own = units.iter().filter(|unit| unit.node == member.id);
    let role = match () {
        () if member.witness => "witness",
        () if standing.voters.contains(&id) => "voter",
        () => "learner",
    };
    json!({
        "name": member.name,
        "id": member.id,
        "address": member.address,
        "zone": member.zone,
        "role": role,
        // Without quorum nobody has renewed what was heard.
        "alive": me || (standing.quorum && heard.is_some()),
        "units": own.clone().count(),
        "devices": own.map(|unit| u64::from(unit.devices)).sum::<u64>(),
        "lag": heard.map_or(0, |heard| heard.lag),
        "version": member.version,
        "draining": member.draining,
    })
}

/// `units` and `plan`.
pub(crate) fn units(tables: &impl Read) -> Result<Vec<Value>, Fault> {
    let names = names(tables)?;
    Ok(rows::units(tables)?.iter().map(|row| unit(row, &names)).collect())
}

fn unit(row: &UnitRow, names: &Names) -> Value {
    let mut object = Map::new();
    put(&mut object, "unit", json!(row.unit));
    put(&mut object, "zone", json!(row.zone));
    put(&mut object, "segment", json!(row.prefix));
    put(&mut object, "hops", row.hops.map(|hops| json!(hops)));
    put(&mut object, "node", name(names, row.node));
    put(&mut object, "epoch", json!(row.epoch));
    put(&mut object, "cost", json!(row.cost));
    let sweep = row.sweep.unwrap_or_default();
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
    Value::Object(object)
}

/// `devices`; `keep` chooses before anything is decoded.
pub(crate) fn devices(tables: &impl Read, mut keep: impl FnMut(&Value) -> bool) -> Result<Vec<Value>, Fault> {
    let names = names(tables)?;
    let mut devices = Vec::new();
    tables.each::<DeviceRow>(Table::Devices, &[], |_, row| {
        let value = device(&row, &names);
        if keep(&value) {
            devices.push(value);
        }
        true
    })?;
    Ok(devices)
}

/// One device, where it is known.
pub(crate) fn one_device(tables: &impl Read, id: &str) -> Result<Option<Value>, Fault> {
    let names = names(tables)?;
    Ok(tables.row::<DeviceRow>(Table::Devices, id.as_bytes())?.map(|row| device(&row, &names)))
}

fn device(row: &DeviceRow, names: &Names) -> Value {
    let mut reading = convert::decode(&row.reading).unwrap_or_default();
    if row.misses >= OFFLINE_AFTER {
        reading.status = Some(Status::Offline);
    }
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
    device_json(&place, &reading)
}

fn ip(address: &str) -> Option<IpAddr> {
    address.parse::<SocketAddr>().ok().map(|at| at.ip())
}

/// `readings` at or after `since`, oldest first; at most `limit`, and the time to go on from.
pub(crate) fn readings(
    tables: &impl Read,
    since: Millis,
    device: Option<&str>,
    limit: usize,
) -> Result<Vec<Value>, Fault> {
    let names = names(tables)?;
    let mut readings = Vec::new();
    let mut from = since.0.to_be_bytes().to_vec();
    loop {
        let page = tables.range(Table::Readings, &from, 512)?;
        let last = page.len() < 512;
        for (key, stored) in page {
            let row = <ReadingRow as prost::Message>::decode(stored)
                .map_err(|reason| Fault::Damaged { table: Table::Readings, reason })?;
            if device.is_none_or(|device| device == row.device) {
                readings.push(reading(&row, &names));
            }
            from = quire_coordinator::tables::after(&key);
            if readings.len() >= limit {
                return Ok(readings);
            }
        }
        if last {
            return Ok(readings);
        }
    }
}

fn reading(row: &ReadingRow, names: &Names) -> Value {
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

/// `audit`, oldest first.
pub(crate) fn audit(tables: &impl Read) -> Result<Vec<Value>, Fault> {
    let mut rows = Vec::new();
    tables.each::<AuditRow>(Table::Audit, &[], |key, row| {
        let index = key.try_into().map_or(0, u64::from_be_bytes);
        rows.push(json!({"index": index, "at": Millis(row.at_ms).rfc3339(), "by": row.by, "what": row.what}));
        true
    })?;
    Ok(rows)
}
