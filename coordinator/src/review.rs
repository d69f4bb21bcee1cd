//! Operators' word on identity: merges, splits and settled cases, each kept as a decision that can be
//! taken back by its number. The devices follow from faces and decisions, so an undo brings back exactly
//! what the decision had changed.

use quire_proto::store::decide_identity::What;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{DecideIdentity, DecisionRow, DeviceRow, FaceRow, Merge, ReviewRow, Split};

use crate::faces;
use crate::news::Clerk;
use crate::rows::{self, number_key};
use crate::state::{audit, refuse};
use crate::tables::{Fault, Overlay, ReadExt, Table};

/// Decisions that a cluster keeps. They are looked through whenever a new face shows up, and a site where
/// people had to decide a thousand times has another trouble.
const MOST: usize = 1_000;

/// What a decision is, and the faces around which devices change.
type Plan = (DecisionRow, Vec<String>);

pub(crate) fn decide(
    tables: &mut Overlay<'_>,
    index: u64,
    at_ms: u64,
    decide: &DecideIdentity,
) -> Result<Answer, Fault> {
    let planned = match &decide.what {
        Some(What::Undo(number)) => return undo(tables, index, at_ms, *number, &decide.by),
        Some(What::Merge(it)) => merge(tables, it)?,
        Some(What::Split(it)) => split(tables, it)?,
        Some(What::Settle(case)) => settle(tables, case)?,
        None => Err("this version does not know the decision".to_owned()),
    };
    let (mut row, around) = match planned {
        Ok(planned) => planned,
        Err(why) => return Ok(refuse(why)),
    };
    if tables.all::<DecisionRow>(Table::Decisions, &[])?.len() >= MOST {
        return Ok(refuse(format!("{MOST} decisions are in force already: undo some first")));
    }
    (row.index, row.at_ms) = (index, at_ms);
    row.by.clone_from(&decide.by);
    let what = format!("{} (`quire undo {index}` takes it back)", row.what);
    tables.put(Table::Decisions, &number_key(index), &row);
    work_out(tables, index, at_ms, &around)?;
    audit(tables, index, at_ms, &decide.by, row.what);
    Ok(Answer::Changes(what))
}

fn work_out(tables: &mut Overlay<'_>, index: u64, at_ms: u64, around: &[String]) -> Result<(), Fault> {
    let mut meta = rows::meta(tables)?;
    faces::work_out(tables, &mut meta, &mut Clerk::new(index, at_ms), around)?;
    rows::put_meta(tables, &meta);
    Ok(())
}

fn device(tables: &Overlay<'_>, id: &str) -> Result<Result<DeviceRow, String>, Fault> {
    let row: Option<DeviceRow> = tables.row(Table::Devices, id.as_bytes())?;
    Ok(row.ok_or_else(|| format!("no device `{id}`: `quire devices --all` lists them")))
}

fn merge(tables: &Overlay<'_>, merge: &Merge) -> Result<Result<Plan, String>, Fault> {
    let (into, from) = match (device(tables, &merge.into)?, device(tables, &merge.from)?) {
        (Ok(into), Ok(from)) => (into, from),
        (Err(why), _) | (_, Err(why)) => return Ok(Err(why)),
    };
    if into.id == from.id {
        return Ok(Err("that is one device already".to_owned()));
    }
    let (Some(one), Some(other)) = (into.faces.first(), from.faces.first()) else {
        return Ok(Err("a device that was never read cannot be merged".to_owned()));
    };
    let row = DecisionRow {
        what: format!("merged devices {} and {}", into.id, from.id),
        one: one.clone(),
        other: other.clone(),
        ..DecisionRow::default()
    };
    Ok(Ok((row, vec![one.clone(), other.clone()])))
}

fn split(tables: &Overlay<'_>, split: &Split) -> Result<Result<Plan, String>, Fault> {
    let row = match device(tables, &split.device)? {
        Ok(row) => row,
        Err(why) => return Ok(Err(why)),
    };
    let mut group: Vec<FaceRow> = Vec::new();
    for face in &row.faces {
        group.extend(tables.row::<FaceRow>(Table::Faces, face.as_bytes())?);
    }
    let mut apart = Vec::new();
    for named in &split.evidence {
        match keys_of(&group).into_iter().find(|key| means(key, named)) {
            Some(key) => apart.push(key),
            None => {
                let known = keys_of(&group).join(", ");
                return Ok(Err(format!("device {} has no evidence `{named}`: it has {known}", row.id)));
            }
        }
    }
    let shows = |face: &FaceRow| keys_of(std::slice::from_ref(face)).iter().any(|key| apart.contains(key));
    let parted = group.iter().filter(|face| shows(face)).count();
    if parted == 0 || parted == group.len() {
        return Ok(Err(format!(
            "every reading of device {} shows that evidence: name what only one of the two devices shows",
            row.id
        )));
    }
    let what = format!("split {} from device {}", apart.join(", "), row.id);
    let one = row.faces.first().cloned().unwrap_or_default();
    Ok(Ok((DecisionRow { what, one, apart, ..DecisionRow::default() }, row.faces)))
}

/// Everything by which a split can name some faces: their evidence, and faces that have none by themselves.
fn keys_of(group: &[FaceRow]) -> Vec<String> {
    let mut keys = Vec::new();
    for face in group {
        let strong = [&face.serial, &face.mac, &face.engine];
        keys.extend(strong.into_iter().flatten().cloned());
        keys.push(face.key.clone());
    }
    let mut unique: Vec<String> = Vec::new();
    for key in keys {
        if !unique.contains(&key) {
            unique.push(key);
        }
    }
    unique
}

/// People may leave out what kind of evidence it is.
fn means(key: &str, named: &str) -> bool {
    let value = key.split_once(':').map_or(key, |(_, value)| value);
    key == named || value.eq_ignore_ascii_case(named)
}

fn settle(tables: &Overlay<'_>, case: &str) -> Result<Result<Plan, String>, Fault> {
    let Some(row) = tables.row::<ReviewRow>(Table::Review, case.as_bytes())? else {
        return Ok(Err(format!("no case `{case}` on the review list")));
    };
    let mut around = Vec::new();
    for id in &row.devices {
        around.extend(tables.row::<DeviceRow>(Table::Devices, id.as_bytes())?.unwrap_or_default().faces);
    }
    let what = format!("settled {case} as it stands");
    Ok(Ok((DecisionRow { what, settled: case.to_owned(), ..DecisionRow::default() }, around)))
}

fn undo(tables: &mut Overlay<'_>, index: u64, at_ms: u64, number: u64, by: &str) -> Result<Answer, Fault> {
    let Some(row) = tables.row::<DecisionRow>(Table::Decisions, &number_key(number))? else {
        return Ok(refuse(format!("no decision {number} is in force: `quire decisions` lists them")));
    };
    tables.delete(Table::Decisions, &number_key(number));
    let mut around = vec![row.one.clone(), row.other.clone()];
    for key in row.apart.iter().map(String::as_str).chain(row.settled.split_once('/').map(|(_, key)| key)) {
        let shown: quire_proto::store::KeyRow = tables.row(Table::Keys, key.as_bytes())?.unwrap_or_default();
        around.extend(shown.faces);
        // A split may name a face itself.
        around.push(key.to_owned());
    }
    around.retain(|face| !face.is_empty());
    work_out(tables, index, at_ms, &around)?;
    let what = format!("took back {number}: {}", row.what);
    audit(tables, index, at_ms, by, what.clone());
    Ok(Answer::Changes(what))
}
