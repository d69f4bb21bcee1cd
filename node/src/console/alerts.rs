//! Alerts as JSON: for the listing, the API and the page. Open ones stand first, because their keys do.

use bytes::Bytes;
use prost::Message as _;
use quire_coordinator::tables::{Fault, Read, Table};
use quire_proto::id::Millis;
use quire_proto::store::{AlertDelivery, AlertRow};
use serde_json::{Value, json};

use super::facts::Names;

/// A row of `alerts`.
pub(super) fn alert(_: &[u8], stored: &Bytes, _: &Names) -> Result<Option<Value>, Fault> {
    let row =
        AlertRow::decode(stored.clone()).map_err(|reason| Fault::Damaged { table: Table::Alerts, reason })?;
    Ok(Some(one(&row)))
}

/// Alerts as a page shows them: those from a key on, and the key of the next page.
pub(super) fn page(
    tables: &impl Read,
    from: &[u8],
    most: usize,
) -> Result<(Vec<Value>, Option<Vec<u8>>), Fault> {
    let mut rows = tables.range(Table::Alerts, from, most + 1)?;
    let next = rows.get(most).map(|(key, _)| key.to_vec());
    rows.truncate(most);
    let mut alerts = Vec::with_capacity(rows.len());
    for (key, stored) in &rows {
        alerts.extend(alert(key, stored, &Names::new())?);
    }
    Ok((alerts, next))
}

fn one(row: &AlertRow) -> Value {
    let time = |at_ms: u64| json!(Millis(at_ms).rfc3339());
    let mut object = json!({
        "id": row.id,
        "name": row.rule,
        "state": state(row.open),
        "subject": row.subject,
        "what": row.what,
        "raised_at": time(row.raised_at_ms),
        "raises": row.raises,
    });
    if !row.device.is_empty() {
        object["device"] = json!(row.device);
    }
    if !row.open {
        object["cleared_at"] = time(row.cleared_at_ms);
        object["why"] = json!(row.why);
    }
    if row.hidden {
        object["hidden"] = json!(true);
    }
    let told: Vec<Value> = row.deliveries.iter().filter(|delivery| delivery.serial > 0).map(told).collect();
    if !told.is_empty() {
        object["notified"] = json!(told);
    }
    object
}

fn state(open: bool) -> &'static str {
    if open { "open" } else { "cleared" }
}

fn told(delivery: &AlertDelivery) -> Value {
    let mut object = json!({
        "target": delivery.target,
        "state": state(delivery.raised),
        "at": Millis(delivery.at_ms).rfc3339(),
    });
    if !delivery.failed.is_empty() {
        object["failed"] = json!(delivery.failed);
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alert_says_what_it_is_and_who_was_told() {
        let told = AlertDelivery {
            target: "webhook:h#1".into(),
            serial: 7,
            raised: true,
            ..AlertDelivery::default()
        };
        let owed = AlertDelivery { target: "mailto:it@example.org".into(), ..AlertDelivery::default() };
        let row = AlertRow {
            id: "07070707-7-1".into(),
            rule: "low toner".into(),
            open: true,
            deliveries: vec![told, owed],
            ..AlertRow::default()
        };
        let shown = one(&row);
        assert_eq!((&shown["state"], &shown["name"]), (&json!("open"), &json!("low toner")));
        assert_eq!(shown["notified"].as_array().unwrap().len(), 1);
        assert!(
            ["device", "cleared_at", "why", "hidden"].iter().all(|key| shown.get(key).is_none()),
            "{shown}"
        );
        let cleared =
            one(&AlertRow { open: false, cleared_at_ms: 1, why: "full again".into(), hidden: true, ..row });
        assert_eq!((&cleared["why"], &cleared["hidden"]), (&json!("full again"), &json!(true)));
    }
}
