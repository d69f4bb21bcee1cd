//! Alerts of a site: each there once, as it was said last, whoever says it how often.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod site;

use prost::Message as _;
use quire_proto::store::{AlertNews, OutboxEntry};
use quire_proto::upstream::to_site::What;
use site::{Admin, enrolled, entry, received};

fn alert(id: &str, serial: u64, open: bool) -> AlertNews {
    AlertNews {
        id: id.to_owned(),
        rule: "low toner".to_owned(),
        subject: "device/d1/supply/1".to_owned(),
        device: "d1".to_owned(),
        open,
        raised_at_ms: 1_700_000_000_000,
        cleared_at_ms: if open { 0 } else { 1_700_000_900_000 },
        what: "Black of M605: supply.percent 4".to_owned(),
        serial,
        raises: 1,
        why: if open { String::new() } else { "Black of M605: supply.percent 100".to_owned() },
    }
}

fn told(seq: u64, alert: AlertNews) -> Vec<u8> {
    OutboxEntry { seq, alert: Some(alert), ..OutboxEntry::default() }.encode_to_vec()
}

async fn states(admin: &Admin) -> Vec<(String, &'static str)> {
    let alerts = admin.store.alerts(Some("acme-berlin"), -1, 0).await.unwrap();
    alerts.into_iter().map(|alert| (alert.id, alert.state)).collect()
}

#[tokio::test]
async fn an_alert_is_there_once_as_it_was_said_last() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let batch = vec![entry(1), told(2, alert("a", 9, true)), told(3, alert("b", 10, true)), entry(4)];
    assert_eq!(received(link.batch(5, 1, batch.clone()).await), 4);
    // The answer got lost, and a new leader says all of it again, and what happened since.
    let (mut link, through) = cluster.welcomed(admin.listen, 2, 6).await;
    assert_eq!(through, 4);
    assert_eq!(received(link.batch(6, 1, batch).await), 4);
    assert_eq!(received(link.batch(6, 5, vec![told(5, alert("a", 12, false))]).await), 5);
    assert_eq!(states(&admin).await, [("b".to_owned(), "open"), ("a".to_owned(), "cleared")]);
    assert_eq!(admin.store.count_open_alerts().await.unwrap(), 1);
    // What is older than what is known changes nothing.
    assert_eq!(received(link.batch(6, 6, vec![told(6, alert("a", 9, true))]).await), 6);
    assert_eq!(states(&admin).await.len(), 2);
    assert_eq!(admin.store.count_open_alerts().await.unwrap(), 1);
    let cleared = admin.store.alerts(None, 10, 1).await.unwrap().remove(0);
    assert_eq!(
        (cleared.site.as_str(), cleared.why.as_str()),
        ("acme-berlin", "Black of M605: supply.percent 100")
    );
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 2);
    admin.stop().await;
}

/// A device may say of itself what it likes, and whoever refuses that gets it again for ever.
#[tokio::test]
async fn texts_that_are_too_long_are_cut_and_hold_nothing_up() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let long = AlertNews { what: "ü".repeat(20_001), subject: "s".repeat(5_000), ..alert("a", 9, true) };
    assert_eq!(received(link.batch(5, 1, vec![told(1, long), entry(2)]).await), 2);
    let kept = admin.store.alerts(None, 10, 0).await.unwrap().remove(0);
    assert!(kept.what.len() <= 16 * 1024 && kept.what.ends_with('ü'), "{}", kept.what.len());
    admin.stop().await;
}

#[tokio::test]
async fn an_alert_that_no_site_sends_is_refused_and_stores_nothing() {
    let (_dir, admin, cluster) = enrolled().await;
    for bad in [
        AlertNews { id: String::new(), ..alert("a", 9, true) },
        AlertNews { id: "x".repeat(20_000), ..alert("a", 9, true) },
        AlertNews { serial: u64::MAX, ..alert("a", 9, true) },
    ] {
        let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
        let answer = link.batch(5, 1, vec![told(1, bad)]).await;
        assert!(matches!(answer, Some(What::Refused(_))), "{answer:?}");
        assert!(states(&admin).await.is_empty());
    }
    admin.stop().await;
}
