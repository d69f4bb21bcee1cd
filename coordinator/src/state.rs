//! The replicated state machine: what each entry of the log does to the tables.
//!
//! Architecture Invariants: nothing but [`apply`] writes tables; it is a function of the tables, the
//! index and the command alone (the time comes in the command); a refusal is an outcome, an error
//! means that the store below is broken.

use std::collections::BTreeMap;

use quire_proto::id::NodeId;
use quire_proto::store::ask::What as AskWhat;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{
    Ack, ApiTokenRow, Ask, AuditRow, Bootstrap, Claim, Command, CreateApiToken, CreateToken, DeviceRow,
    Enroll, Join, Member, Outcome, Plan, PutSettings, PutUpstreamIdentities, ReachRow, RemoveMember,
    ReportReach, SetUpstreamMode, TokenRow, UnitRow,
};

use crate::record;
use crate::rows::{self, number_key};
use crate::script;
use crate::tables::{Fault, Overlay, ReadExt, Table};

/// Applies the log entry at `index`.
///
/// # Errors
/// Only when the store below fails; the node must then stop.
pub fn apply(tables: &mut Overlay<'_>, index: u64, command: &Command) -> Result<Outcome, Fault> {
    let at_ms = command.at_ms;
    let answer = match &command.kind {
        Some(Kind::Bootstrap(bootstrap)) => self::bootstrap(tables, bootstrap)?,
        Some(Kind::Record(record)) => Answer::RecordedThrough(record::apply(tables, index, at_ms, record)?),
        Some(Kind::Plan(plan)) => self::plan(tables, index, at_ms, plan)?,
        Some(Kind::Claim(claim)) => self::claim(tables, index, at_ms, claim)?,
        Some(Kind::PutSettings(settings)) => put_settings(tables, index, at_ms, settings)?,
        Some(Kind::CreateToken(token)) => create_token(tables, index, at_ms, token),
        Some(Kind::Join(join)) => self::join(tables, index, at_ms, join)?,
        Some(Kind::UpdateMember(update)) => update_member(tables, update.member.as_ref())?,
        Some(Kind::RemoveMember(remove)) => remove_member(tables, index, at_ms, remove)?,
        Some(Kind::Ack(ack)) => self::ack(tables, ack)?,
        Some(Kind::Enroll(enroll)) => self::enroll(tables, index, at_ms, enroll)?,
        Some(Kind::PutUpstreamIdentities(identities)) => put_upstream_identities(tables, identities)?,
        Some(Kind::ReportReach(report)) => report_reach(tables, report)?,
        Some(Kind::Ask(ask)) => self::ask(tables, index, at_ms, ask)?,
        Some(Kind::CreateApiToken(token)) => create_api_token(tables, index, at_ms, token),
        Some(Kind::SetUpstreamMode(mode)) => set_upstream_mode(tables, index, at_ms, mode)?,
        Some(Kind::PutScript(script)) => script::put(tables, index, at_ms, script)?,
        Some(Kind::RemoveScript(script)) => script::remove(tables, index, at_ms, script)?,
        // Written by a newer version: features wait until every node has them, so this cannot matter.
        None => refuse("this version does not know the command"),
    };
    Ok(Outcome { index, result: Some(answer) })
}

pub(crate) fn refuse(why: impl Into<String>) -> Answer {
    Answer::Rejected(why.into())
}

pub(crate) fn audit(tables: &mut Overlay<'_>, index: u64, at_ms: u64, by: &str, what: String) {
    tables.put(Table::Audit, &number_key(index), &AuditRow { at_ms, by: by.to_owned(), what });
}

fn bootstrap(tables: &mut Overlay<'_>, bootstrap: &Bootstrap) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    if !meta.cluster_id.is_empty() {
        return Ok(refuse("the cluster exists already"));
    }
    meta.cluster_name.clone_from(&bootstrap.cluster_name);
    meta.cluster_id.clone_from(&bootstrap.cluster_id);
    meta.ca_certificate_der.clone_from(&bootstrap.ca_certificate_der);
    meta.ca_private_key_sealed.clone_from(&bootstrap.ca_private_key_sealed);
    rows::put_meta(tables, &meta);
    if let Some(first) = &bootstrap.first {
        tables.put(Table::Members, &number_key(first.id), first);
    }
    Ok(Answer::Done(true))
}

fn plan(tables: &mut Overlay<'_>, index: u64, at_ms: u64, plan: &Plan) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    if plan.claim != meta.claim_epoch {
        return Ok(refuse(format!("the plan's claim {} is not in force", plan.claim)));
    }
    let mut fresh: BTreeMap<&str, u32> = BTreeMap::new();
    for grant in &plan.grants {
        let before: Option<UnitRow> = tables.row(Table::Units, grant.unit.as_bytes())?;
        if before.is_none() && meta.devices > 0 {
            fresh.insert(&grant.unit, 0);
        }
        let row = UnitRow {
            unit: grant.unit.clone(),
            zone: grant.zone.clone(),
            prefix: grant.prefix.clone(),
            segment: grant.segment.clone(),
            node: grant.node,
            epoch: index,
            cost: grant.cost,
            hops: grant.hops,
            granted_at_ms: at_ms,
            ..before.unwrap_or_default()
        };
        tables.put(Table::Units, grant.unit.as_bytes(), &row);
    }
    for unit in &plan.drop_units {
        tables.delete(Table::Units, unit.as_bytes());
    }
    count_devices(tables, fresh)?;
    meta.plan_epoch = index;
    rows::put_meta(tables, &meta);
    Ok(Answer::Epoch(index))
}

/// A segment that left the settings and came back finds its devices where they were. One walk over the
/// devices for all new units of a plan; none where no unit is new.
fn count_devices(tables: &mut Overlay<'_>, mut fresh: BTreeMap<&str, u32>) -> Result<(), Fault> {
    if fresh.is_empty() {
        return Ok(());
    }
    tables.each::<DeviceRow>(Table::Devices, &[], |_, device| {
        if let Some(count) = fresh.get_mut(device.unit.as_str()) {
            *count += 1;
        }
        true
    })?;
    for (unit, devices) in fresh.into_iter().filter(|(_, devices)| *devices > 0) {
        if let Some(row) = tables.row::<UnitRow>(Table::Units, unit.as_bytes())? {
            tables.put(Table::Units, unit.as_bytes(), &UnitRow { devices, ..row });
        }
    }
    Ok(())
}

fn claim(tables: &mut Overlay<'_>, index: u64, at_ms: u64, claim: &Claim) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    if claim.renews == 0 {
        meta.claim_epoch = index;
        meta.claim_node = claim.node;
    } else if claim.renews != meta.claim_epoch || claim.node != meta.claim_node {
        return Ok(refuse(format!("claim {} is no longer in force: {} is", claim.renews, meta.claim_epoch)));
    }
    meta.claim_renewed_at_ms = at_ms;
    meta.heard.clone_from(&claim.heard);
    meta.link.clone_from(&claim.link);
    rows::put_meta(tables, &meta);
    Ok(Answer::Epoch(meta.claim_epoch))
}

fn put_settings(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    settings: &PutSettings,
) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    meta.settings_index = index;
    meta.settings_toml.clone_from(&settings.toml);
    meta.hide.clone_from(&settings.hide);
    rows::put_meta(tables, &meta);
    audit(tables, index, at_ms, &settings.by, "applied settings".to_owned());
    Ok(Answer::Done(true))
}

fn create_token(tables: &mut Overlay<'_>, index: u64, at_ms: u64, token: &CreateToken) -> Answer {
    let row = TokenRow {
        id: token.id.clone(),
        secret_sha256: token.secret_sha256.clone(),
        expires_at_ms: token.expires_at_ms,
        used_by: 0,
    };
    tables.put(Table::Tokens, token.id.as_bytes(), &row);
    audit(tables, index, at_ms, &token.by, format!("created join token {}", token.id));
    Answer::Done(true)
}

fn join(tables: &mut Overlay<'_>, index: u64, at_ms: u64, join: &Join) -> Result<Answer, Fault> {
    let Some(mut token) = tables.row::<TokenRow>(Table::Tokens, join.token_id.as_bytes())? else {
        return Ok(refuse("the token is not known here: make a new one with `quire token create`"));
    };
    let Some(member) = &join.member else { return Ok(refuse("the join names no member")) };
    if token.secret_sha256 != join.token_secret_sha256 {
        return Ok(refuse("the token is not known here: make a new one with `quire token create`"));
    }
    if token.used_by != 0 {
        return Ok(refuse("the token was used before: make a new one with `quire token create`"));
    }
    if at_ms >= token.expires_at_ms {
        return Ok(refuse("the token has expired: make a new one with `quire token create`"));
    }
    for other in rows::members(tables)? {
        if other.name == member.name {
            return Ok(refuse(format!(
                "a node named `{}` is a member already: choose another --name",
                member.name
            )));
        }
        if other.address == member.address {
            return Ok(refuse(format!(
                "node `{}` has the address {} already: choose another --advertise",
                other.name, member.address
            )));
        }
    }
    token.used_by = index;
    tables.put(Table::Tokens, token.id.as_bytes(), &token);
    tables.put(Table::Members, &number_key(index), &Member { id: index, ..member.clone() });
    audit(tables, index, at_ms, &member.name, format!("node `{}` joined", member.name));
    Ok(Answer::Node(index))
}

fn update_member(tables: &mut Overlay<'_>, member: Option<&Member>) -> Result<Answer, Fault> {
    let Some(member) = member else { return Ok(refuse("the update names no member")) };
    match rows::member(tables, NodeId(member.id))? {
        Some(_) => {
            tables.put(Table::Members, &number_key(member.id), member);
            Ok(Answer::Done(true))
        }
        None => Ok(refuse(format!("node {} is not a member", member.id))),
    }
}

fn remove_member(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    remove: &RemoveMember,
) -> Result<Answer, Fault> {
    let Some(member) = rows::member(tables, NodeId(remove.id))? else {
        return Ok(refuse(format!("node {} is not a member", remove.id)));
    };
    tables.delete(Table::Members, &number_key(remove.id));
    let ways: Vec<ReachRow> = tables.all(Table::Reach, &number_key(remove.id))?;
    for way in ways.iter().filter_map(|row| row.reach.as_ref()) {
        tables.delete(Table::Reach, &rows::reach_key(NodeId(remove.id), &way.segment));
    }
    audit(tables, index, at_ms, &remove.by, format!("removed node `{}`", member.name));
    Ok(Answer::Done(true))
}

fn ack(tables: &mut Overlay<'_>, ack: &Ack) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    if ack.claim != meta.claim_epoch {
        return Ok(refuse(format!("the acknowledgement's claim {} is not in force", ack.claim)));
    }
    let through = ack.through.min(meta.outbox_next.saturating_sub(1));
    for seq in meta.outbox_acked + 1..=through {
        tables.delete(Table::Outbox, &number_key(seq));
    }
    meta.outbox_acked = meta.outbox_acked.max(through);
    rows::put_meta(tables, &meta);
    Ok(Answer::Done(true))
}

fn enroll(tables: &mut Overlay<'_>, index: u64, at_ms: u64, enroll: &Enroll) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    meta.upstream = Some(enroll.clone());
    rows::put_meta(tables, &meta);
    audit(tables, index, at_ms, &enroll.by, format!("enrolled at {} as site {}", enroll.url, enroll.site));
    Ok(Answer::Done(true))
}

fn put_upstream_identities(
    tables: &mut Overlay<'_>,
    identities: &PutUpstreamIdentities,
) -> Result<Answer, Fault> {
    for identity in &identities.identities {
        if let Some(mut member) = rows::member(tables, NodeId(identity.node))? {
            member.upstream_certificate_der.clone_from(&identity.certificate_der);
            tables.put(Table::Members, &number_key(member.id), &member);
        }
    }
    Ok(Answer::Done(true))
}

fn report_reach(tables: &mut Overlay<'_>, report: &ReportReach) -> Result<Answer, Fault> {
    if rows::member(tables, NodeId(report.node))?.is_none() {
        return Ok(refuse(format!("node {} is not a member", report.node)));
    }
    for reach in &report.reaches {
        let row = ReachRow { node: report.node, reach: Some(reach.clone()) };
        tables.put(Table::Reach, &rows::reach_key(NodeId(report.node), &reach.segment), &row);
    }
    // A row says how far its owner is, as measured last, not as it was when the unit was granted.
    for mut unit in rows::units(tables)?.into_iter().filter(|unit| unit.node == report.node) {
        let measured = report.reaches.iter().find(|reach| reach.segment == unit.segment);
        if let Some(reach) = measured.filter(|reach| reach.hops != unit.hops) {
            unit.hops = reach.hops;
            tables.put(Table::Units, unit.unit.as_bytes(), &unit);
        }
    }
    Ok(Answer::Done(true))
}

fn ask(tables: &mut Overlay<'_>, index: u64, at_ms: u64, ask: &Ask) -> Result<Answer, Fault> {
    let what = match &ask.what {
        Some(AskWhat::SweepSegment(segment)) => {
            let mut asked = 0;
            for mut unit in rows::units(tables)? {
                if segment.is_empty() || unit.segment == *segment || unit.unit == *segment {
                    unit.asked_at_ms = at_ms;
                    tables.put(Table::Units, unit.unit.as_bytes(), &unit);
                    asked += 1;
                }
            }
            if asked == 0 {
                return Ok(refuse(format!("no segment `{segment}` in the settings")));
            }
            format!("asked for a sweep of {asked} units")
        }
        Some(AskWhat::ReadDevice(id)) => {
            let Some(mut device) = tables.row::<DeviceRow>(Table::Devices, id.as_bytes())? else {
                return Ok(refuse(format!("no device `{id}`")));
            };
            device.asked_at_ms = at_ms;
            tables.put(Table::Devices, id.as_bytes(), &device);
            format!("asked for a read of device {id}")
        }
        None => return Ok(refuse("this version does not know the request")),
    };
    audit(tables, index, at_ms, &ask.by, what.clone());
    Ok(Answer::Changes(what))
}

fn create_api_token(tables: &mut Overlay<'_>, index: u64, at_ms: u64, token: &CreateApiToken) -> Answer {
    let row = ApiTokenRow {
        id: token.id.clone(),
        secret_sha256: token.secret_sha256.clone(),
        role: token.role.clone(),
    };
    tables.put(Table::ApiTokens, token.id.as_bytes(), &row);
    audit(tables, index, at_ms, &token.by, format!("created API token {} ({})", token.id, token.role));
    Answer::Done(true)
}

fn set_upstream_mode(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    mode: &SetUpstreamMode,
) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    meta.upstream_mode.clone_from(&mode.mode);
    rows::put_meta(tables, &meta);
    audit(tables, index, at_ms, &mode.by, format!("set the upstream mode to `{}`", mode.mode));
    Ok(Answer::Done(true))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
