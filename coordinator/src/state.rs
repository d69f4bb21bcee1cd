//! The replicated state machine: what each entry of the log does to the tables.
//!
//! Architecture Invariants: nothing but [`apply`] writes tables; it is a function of the tables, the
//! index and the command alone (the time comes in the command); a refusal is an outcome, an error
//! means that the store below is broken.

use std::collections::BTreeMap;

use bytes::Bytes;
use quire_proto::id::{NodeId, UnitId};
use quire_proto::store::ask::What as AskWhat;
use quire_proto::store::command::Kind;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{
    Ack, ApiTokenRow, Ask, AuditRow, Bootstrap, Claim, Command, CreateApiToken, CreateToken, DeviceRow,
    Enroll, ForgetReaches, Grant, Join, Member, Outcome, Plan, PutSettings, PutUpstreamIdentities, Reach,
    ReachRow, Releases, RemoveMember, ReportReach, SetUpstreamMode, TokenRow, UnitRow, UpdateMember,
};

use crate::news::Clerk;
use crate::rows::{self, number_key};
use crate::tables::{Fault, Overlay, ReadExt, Table};
use crate::{
    alert, backlog, cost, coverage, expiry, found, index as places, jobs, planner, record, recover, review,
    rotation, script, tokens, typed, upgrade,
};

/// Applies the log entry at `index`.
///
/// # Errors
/// Only when the store below fails; the node must then stop.
pub fn apply(tables: &mut Overlay<'_>, index: u64, command: &Command) -> Result<Outcome, Fault> {
    if let Some(before) = jobs::done(tables, &command.job)? {
        return Ok(Outcome { index, result: Some(before) });
    }
    let answer = obey(tables, index, command)?;
    if !rotation::is_for_now(&answer) {
        jobs::note(tables, index, command.at_ms, &command.job, &answer)?;
    }
    places::follow(tables)?;
    Ok(Outcome { index, result: Some(answer) })
}

fn obey(tables: &mut Overlay<'_>, index: u64, command: &Command) -> Result<Answer, Fault> {
    let at_ms = command.at_ms;
    // The proposer's calendar may be ahead; what others are bound by is the leader's time.
    let led_at_ms = if command.led_at_ms == 0 { at_ms } else { command.led_at_ms };
    Ok(match &command.kind {
        Some(Kind::Bootstrap(bootstrap)) => self::bootstrap(tables, bootstrap)?,
        Some(Kind::Record(record)) => {
            Answer::RecordedThrough(record::apply(tables, index, led_at_ms, record)?)
        }
        Some(Kind::Plan(plan)) => self::plan(tables, index, at_ms, plan)?,
        Some(Kind::Claim(claim)) => self::claim(tables, index, at_ms, claim)?,
        Some(Kind::PutSettings(settings)) => {
            let asked_ms = asked_ms(tables, (at_ms, led_at_ms))?;
            put_settings(tables, index, asked_ms, settings)?
        }
        Some(Kind::CreateToken(token)) => create_token(tables, index, at_ms, token),
        Some(Kind::Join(join)) => self::join(tables, index, at_ms, join)?,
        Some(Kind::UpdateMember(update)) => update_member(tables, update)?,
        Some(Kind::RemoveMember(remove)) => remove_member(tables, index, at_ms, remove)?,
        Some(Kind::Ack(ack)) => self::ack(tables, ack)?,
        Some(Kind::Enroll(enroll)) => self::enroll(tables, index, at_ms, enroll)?,
        Some(Kind::PutUpstreamIdentities(identities)) => put_upstream_identities(tables, identities)?,
        Some(Kind::ReportReach(report)) => report_reach(tables, report)?,
        Some(Kind::Ask(ask)) => {
            let asked_ms = asked_ms(tables, (at_ms, led_at_ms))?;
            self::ask(tables, index, asked_ms, ask)?
        }
        Some(Kind::CreateApiToken(token)) => create_api_token(tables, index, at_ms, token),
        Some(Kind::SetUpstreamMode(mode)) => set_upstream_mode(tables, index, at_ms, mode)?,
        Some(Kind::PutScript(script)) => script::put(tables, index, at_ms, script)?,
        Some(Kind::RemoveScript(script)) => script::remove(tables, index, at_ms, script)?,
        Some(Kind::ReportScripts(report)) => script::report(tables, index, at_ms, report)?,
        Some(Kind::ReportExploration(report)) => found::report(tables, index, at_ms, report)?,
        Some(Kind::DecideSegment(decide)) => found::decide(tables, index, at_ms, decide)?,
        Some(Kind::ForgetReaches(forget)) => forget_reaches(tables, forget)?,
        Some(Kind::Recover(recover)) => recover::apply(tables, index, at_ms, recover)?,
        Some(Kind::DecideIdentity(decide)) => review::decide(tables, index, at_ms, decide)?,
        Some(Kind::SetDevice(set)) => typed::set(tables, index, at_ms, set)?,
        Some(Kind::RevokeToken(revoke)) => tokens::revoke(tables, index, at_ms, revoke)?,
        Some(Kind::Trial(trial)) => coverage::trial(tables, trial)?,
        Some(Kind::Release(releases)) => release(tables, releases)?,
        Some(Kind::Upgrade(upgrade)) => upgrade::apply(tables, index, at_ms, upgrade)?,
        Some(Kind::Alert(alert)) => alert::apply(tables, index, at_ms, alert)?,
        Some(Kind::AlertsTold(told)) => alert::told(tables, at_ms, told)?,
        Some(Kind::ReportCosts(report)) => cost::apply(tables, report)?,
        Some(Kind::RouterTrial(trial)) => found::trial(tables, led_at_ms, trial)?,
        Some(Kind::Rotate(rotate)) => rotation::ask(tables, index, at_ms, rotate)?,
        Some(Kind::BeginKey(begin)) => rotation::begin_key(tables, at_ms, begin)?,
        Some(Kind::Reseal(reseal)) => rotation::reseal(tables, index, at_ms, reseal)?,
        Some(Kind::BeginCa(begin)) => rotation::begin_ca(tables, begin)?,
        Some(Kind::FinishCa(finish)) => rotation::finish_ca(tables, index, at_ms, finish)?,
        // Of a later version: a cluster goes there only when every node knows it (`upgrade`), so this cannot matter.
        None => refuse("this version does not know the command"),
    })
}

/// The time of what somebody asks for: nodes compare it with when they read and swept last.
fn asked_ms(tables: &Overlay<'_>, (at_ms, led_at_ms): (u64, u64)) -> Result<u64, Fault> {
    let by_leader = rows::meta(tables)?.cluster_version >= upgrade::LED_ASKS;
    Ok(if by_leader { led_at_ms } else { at_ms })
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
    if let Some(first) = &bootstrap.first {
        meta.cluster_version = first.cluster_version;
        tables.put(Table::Members, &number_key(first.id), first);
    }
    rows::put_meta(tables, &meta);
    Ok(Answer::Done(true))
}

fn plan(tables: &mut Overlay<'_>, index: u64, at_ms: u64, plan: &Plan) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    if plan.claim != meta.claim_epoch {
        return Ok(refuse(format!("the plan's claim {} is not in force", plan.claim)));
    }
    let mut fresh: Vec<&str> = Vec::new();
    for grant in &plan.grants {
        let before: Option<UnitRow> = tables.row(Table::Units, grant.unit.as_bytes())?;
        if before.is_none() && meta.devices > 0 {
            fresh.push(&grant.unit);
        }
        let from = former(before.as_ref(), grant);
        let row = UnitRow {
            from,
            unit: grant.unit.clone(),
            zone: grant.zone.clone(),
            prefix: grant.prefix.clone(),
            segment: grant.segment.clone(),
            node: grant.node,
            epoch: index,
            cost: grant.cost,
            hops: grant.hops.or(reached(tables, grant)?),
            granted_at_ms: at_ms,
            ..before.unwrap_or_default()
        };
        tables.put(Table::Units, grant.unit.as_bytes(), &row);
        expiry::follow_unit(tables, &meta, &row)?;
    }
    for unit in &plan.drop_units {
        tables.delete(Table::Units, unit.as_bytes());
        expiry::drop_unit(tables, &meta, unit)?;
    }
    count_devices(tables, &fresh)?;
    meta.plan_epoch = index;
    rows::put_meta(tables, &meta);
    Ok(Answer::Epoch(index))
}

/// Whom the new owner waits for: whoever works on the unit, which is not the last owner where that one waits itself.
fn former(before: Option<&UnitRow>, grant: &Grant) -> u64 {
    let Some(before) = before.filter(|_| grant.hand_over) else { return 0 };
    let works = if before.from == 0 { before.node } else { before.from };
    if works == grant.node { 0 } else { works }
}

fn release(tables: &mut Overlay<'_>, releases: &Releases) -> Result<Answer, Fault> {
    for release in &releases.releases {
        let row = tables.row::<UnitRow>(Table::Units, release.unit.as_bytes())?;
        if let Some(row) = row.filter(|row| row.epoch == release.epoch && row.from != 0) {
            tables.put(Table::Units, release.unit.as_bytes(), &UnitRow { from: 0, ..row });
        }
    }
    Ok(Answer::Done(true))
}

/// A segment that left the settings and came back finds its devices where they were.
fn count_devices(tables: &mut Overlay<'_>, fresh: &[&str]) -> Result<(), Fault> {
    for unit in fresh {
        let Ok(id) = unit.parse::<UnitId>() else { continue };
        let Some(prefix) = id.prefix() else { continue };
        let mut devices = 0;
        rows::devices_in(tables, id.zone(), prefix, |device| {
            devices += u32::from(device.unit == **unit);
            true
        })?;
        if let Some(row) = tables.row::<UnitRow>(Table::Units, unit.as_bytes())?.filter(|_| devices > 0) {
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
    expiry::renewed(tables, &mut meta, &mut Clerk::new(index, at_ms), &claim.heard)?;
    meta.claim_renewed_at_ms = at_ms;
    meta.heard.clone_from(&claim.heard);
    meta.link.clone_from(&claim.link);
    rows::put_meta(tables, &meta);
    if meta.trials > 0 {
        script::settle_all(tables, index, at_ms)?;
    }
    Ok(Answer::Epoch(meta.claim_epoch))
}

fn put_settings(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    settings: &PutSettings,
) -> Result<Answer, Fault> {
    if let Some(why) = rotation::sealed_otherwise(tables, settings)? {
        return Ok(refuse(why));
    }
    let mut meta = rows::meta(tables)?;
    meta.settings_index = index;
    meta.settings_toml.clone_from(&settings.toml);
    meta.hide.clone_from(&settings.hide);
    meta.expire_after_ms = settings.expire_after_ms;
    rows::put_meta(tables, &meta);
    for mut unit in rows::units(tables)? {
        // Where known addresses alone are asked, those that another segment names are left to that one.
        let known_only = unit.prefix.parse().is_ok_and(planner::is_known_only);
        if settings.sweep_again || known_only {
            unit.asked_at_ms = at_ms;
            tables.put(Table::Units, unit.unit.as_bytes(), &unit);
        }
    }
    audit(tables, index, at_ms, &settings.by, "applied settings".to_owned());
    Ok(Answer::Done(true))
}

fn create_token(tables: &mut Overlay<'_>, index: u64, at_ms: u64, token: &CreateToken) -> Answer {
    let row = TokenRow {
        id: token.id.clone(),
        secret_sha256: token.secret_sha256.clone(),
        expires_at_ms: token.expires_at_ms,
        used_by: 0,
        ca_sha256: token.ca_sha256.clone(),
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
    if let Err(too_old) = upgrade::check(&rows::meta(tables)?, member.cluster_version) {
        return Ok(refuse(too_old.to_string()));
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

/// Field by field, so that two who change a member at the same time do not undo each other.
fn update_member(tables: &mut Overlay<'_>, update: &UpdateMember) -> Result<Answer, Fault> {
    let id = update.member.as_ref().map_or(update.id, |member| member.id);
    let Some(mut member) = rows::member(tables, NodeId(id))? else {
        return Ok(refuse(format!("node {id} is not a member")));
    };
    if let Some(whole) = &update.member {
        member = whole.clone();
    }
    let texts = [
        (&mut member.name, &update.name),
        (&mut member.zone, &update.zone),
        (&mut member.address, &update.address),
        (&mut member.version, &update.version),
        (&mut member.trouble, &update.trouble),
    ];
    for (field, value) in texts {
        if let Some(value) = value {
            field.clone_from(value);
        }
    }
    member.cluster_version = update.cluster_version.unwrap_or(member.cluster_version);
    member.witness = update.witness.unwrap_or(member.witness);
    member.draining = update.draining.unwrap_or(member.draining);
    if let Some(capabilities) = &update.capabilities {
        member.capabilities.clone_from(&capabilities.names);
    }
    rotation::update(&mut member, update);
    tables.put(Table::Members, &number_key(id), &member);
    Ok(Answer::Done(true))
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
    found::forget_node(tables, index, NodeId(remove.id))?;
    rotation::removed(tables)?;
    audit(tables, index, at_ms, &remove.by, format!("removed node `{}`", member.name));
    Ok(Answer::Done(true))
}

fn ack(tables: &mut Overlay<'_>, ack: &Ack) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    if ack.claim != meta.claim_epoch {
        return Ok(refuse(format!("the acknowledgement's claim {} is not in force", ack.claim)));
    }
    let through = ack.through.min(meta.outbox_next.saturating_sub(1));
    backlog::trim(tables, &mut meta, through)?;
    rows::put_meta(tables, &meta);
    Ok(Answer::Done(true))
}

fn enroll(tables: &mut Overlay<'_>, index: u64, at_ms: u64, enroll: &Enroll) -> Result<Answer, Fault> {
    let mut meta = rows::meta(tables)?;
    meta.upstream = Some(Enroll { identities: Vec::new(), ..enroll.clone() });
    alert::tell_all(tables, &mut meta)?;
    typed::tell_all(tables, &mut meta)?;
    rows::put_meta(tables, &meta);
    // Certificates of the site before are worth nothing at this one.
    for mut member in rows::members(tables)? {
        let issued = enroll.identities.iter().find(|identity| identity.node == member.id);
        let before = std::mem::take(&mut member.upstream_certificate_der);
        member.upstream_certificate_der = match issued {
            Some(issued) => issued.certificate_der.clone(),
            // As older versions enrolled: the certificates came first, in an entry of their own.
            None if enroll.identities.is_empty() => before,
            None => Bytes::new(),
        };
        tables.put(Table::Members, &number_key(member.id), &member);
    }
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
    let meta = rows::meta(tables)?;
    let mut told: BTreeMap<&str, &Reach> = BTreeMap::new();
    for reach in &report.reaches {
        told.entry(&reach.segment).or_insert(reach);
    }
    let mut own: Vec<UnitRow> = Vec::new();
    tables.each(Table::Units, &[], |_, unit: UnitRow| {
        if unit.node == report.node {
            own.push(unit);
        }
        true
    })?;
    // A row says how far its owner is, as measured last, not as it was when the unit was granted.
    for mut unit in own {
        let measured = told.get(unit.segment.as_str());
        if let Some(reach) = measured.filter(|reach| reach.hops != unit.hops) {
            unit.hops = reach.hops;
            tables.put(Table::Units, unit.unit.as_bytes(), &unit);
            tell_devices(tables, &unit)?;
        }
        expiry::follow_unit(tables, &meta, &unit)?;
    }
    Ok(Answer::Done(true))
}

/// How far the owner measured the segment to be, where the plan was made before its report was applied.
fn reached(tables: &Overlay<'_>, grant: &Grant) -> Result<Option<u32>, Fault> {
    let key = rows::reach_key(NodeId(grant.node), &grant.segment);
    let row: Option<ReachRow> = tables.row(Table::Reach, &key)?;
    Ok(row.and_then(|row| row.reach).and_then(|reach| reach.hops))
}

/// Devices that were read before the way to their unit was measured are as far as the unit is.
fn tell_devices(tables: &mut Overlay<'_>, unit: &UnitRow) -> Result<(), Fault> {
    let Ok(prefix) = unit.prefix.parse() else { return Ok(()) };
    let mut devices = Vec::new();
    rows::devices_in(tables, &unit.zone, prefix, |row| {
        if row.unit == unit.unit && row.hops.is_none() {
            devices.push(DeviceRow { hops: unit.hops, ..row });
        }
        true
    })?;
    devices.iter().for_each(|row| tables.put(Table::Devices, row.id.as_bytes(), row));
    Ok(())
}

fn forget_reaches(tables: &mut Overlay<'_>, forget: &ForgetReaches) -> Result<Answer, Fault> {
    let meta = rows::meta(tables)?;
    if forget.claim != meta.claim_epoch {
        return Ok(refuse(format!("the claim {} is not in force", forget.claim)));
    }
    for row in rows::reaches(tables)? {
        let Some(reach) = row.reach.filter(|reach| forget.segments.contains(&reach.segment)) else {
            continue;
        };
        tables.delete(Table::Reach, &rows::reach_key(NodeId(row.node), &reach.segment));
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
                let why = match segment.is_empty() {
                    true => "no segment is searched yet: name some in [discovery]".to_owned(),
                    false => {
                        format!("no segment `{segment}` is searched: `quire units` lists those that are")
                    }
                };
                return Ok(refuse(why));
            }
            if segment.is_empty() {
                found::explore_again(tables, index, at_ms)?;
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
        Some(AskWhat::Explore(_)) => {
            found::explore_again(tables, index, at_ms)?;
            "asked for an exploration of links and routers".to_owned()
        }
        Some(AskWhat::Bundle(_)) => "asked for a support bundle".to_owned(),
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

#[cfg(test)]
#[path = "devices_tests.rs"]
mod devices_tests;

#[cfg(test)]
#[path = "alert/tests.rs"]
mod alert_tests;

#[cfg(test)]
#[path = "rotation_tests.rs"]
mod rotation_tests;
