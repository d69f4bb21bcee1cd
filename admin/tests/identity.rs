//! Merges, splits and typed values of a site: devices follow, and every reading is there exactly once.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod site;

use prost::Message as _;
use quire_admin::listing::{DeviceLine, DeviceQuery};
use quire_proto::store::{DeviceNews, OutboxEntry, Typed};
use site::{Admin, enrolled, entry, received};

/// The reading of number `seq`, which is of the device and face `seq % 3`.
fn faced(seq: u64) -> Vec<u8> {
    let mut entry = OutboxEntry::decode(&entry(seq)[..]).unwrap();
    entry.row.as_mut().unwrap().face = format!("f{}", seq % 3);
    entry.encode_to_vec()
}

fn news(seq: u64, device: &str, faces: &[&str]) -> DeviceNews {
    let faces: Vec<String> = faces.iter().map(|face| (*face).to_owned()).collect();
    let gone = faces.is_empty();
    assert!(seq > 0);
    DeviceNews { device: device.to_owned(), faces, gone, ..DeviceNews::default() }
}

fn told(seq: u64, news: DeviceNews) -> Vec<u8> {
    OutboxEntry { seq, news: Some(news), ..OutboxEntry::default() }.encode_to_vec()
}

async fn devices(admin: &Admin) -> Vec<DeviceLine> {
    admin.store.devices(&DeviceQuery { limit: 10, ..DeviceQuery::default() }).await.unwrap()
}

async fn picture(admin: &Admin) -> Vec<(String, Option<u64>, usize)> {
    let mut picture = Vec::new();
    for device in devices(admin).await {
        let history = admin.store.history("acme-berlin", &device.id, 100).await.unwrap();
        picture.push((device.id, device.counters.total, history.len()));
    }
    picture
}

fn line(id: &str, total: u64, readings: usize) -> (String, Option<u64>, usize) {
    (id.to_owned(), Some(total), readings)
}

#[tokio::test]
async fn readings_follow_merges_and_splits_and_are_there_once() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, (1..=6).map(faced).collect()).await), 6);
    let before = [line("d0", 1006, 2), line("d1", 1004, 2), line("d2", 1005, 2)];
    assert_eq!(picture(&admin).await, before);
    // d2 is d1, as the site's operator said.
    let merge = vec![told(7, news(7, "d1", &["f1", "f2"])), told(8, news(8, "d2", &[]))];
    assert_eq!(received(link.batch(5, 7, merge.clone()).await), 8);
    let merged = [line("d0", 1006, 2), line("d1", 1005, 4)];
    assert_eq!(picture(&admin).await, merged);
    // The acknowledgement got lost, and a new leader sends all of it again.
    let (mut link, through) = cluster.welcomed(admin.listen, 1, 6).await;
    assert_eq!(through, 8);
    let again: Vec<Vec<u8>> = (1..=6).map(faced).chain(merge).collect();
    assert_eq!(received(link.batch(6, 1, again).await), 8);
    assert_eq!(picture(&admin).await, merged);
    // Taken back.
    assert_eq!(received(link.batch(6, 9, vec![told(9, news(9, "d2", &["f2"]))]).await), 9);
    assert_eq!(picture(&admin).await, before);
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 6);
    let site = admin.store.sites().await.unwrap().remove(0);
    assert_eq!((site.devices, site.readings), (3, 6));
    admin.stop().await;
}

#[tokio::test]
async fn typed_values_stand_and_devices_leave_and_come_back() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, (1..=3).map(faced).collect()).await), 3);
    let typed = Typed { field: "location".to_owned(), value: "Room 7".to_owned(), ..Typed::default() };
    let typed = DeviceNews { typed: vec![typed], ..news(4, "d1", &["f1"]) };
    assert_eq!(received(link.batch(5, 4, vec![told(4, typed.clone())]).await), 4);
    assert_eq!(received(link.batch(5, 5, vec![faced(5), faced(6), faced(7)]).await), 7);
    let found = DeviceQuery { text: Some("room 7".to_owned()), limit: 10, ..DeviceQuery::default() };
    let found = admin.store.devices(&found).await.unwrap();
    assert_eq!(found.len(), 1, "a later reading takes nothing from it");
    assert_eq!(
        (found[0].location.as_deref(), found[0].sources["location"].as_str()),
        (Some("Room 7"), "operator")
    );
    let expired = DeviceNews { expired_at_ms: 1_800_000_000_000, ..typed };
    assert_eq!(received(link.batch(5, 8, vec![told(8, expired)]).await), 8);
    assert_eq!(devices(&admin).await.len(), 2);
    assert_eq!(received(link.batch(5, 9, vec![faced(9), faced(10)]).await), 10);
    let back = devices(&admin).await;
    assert_eq!((back.len(), back[1].location.as_deref()), (3, Some("Room 7")));
    admin.stop().await;
}

#[tokio::test]
async fn what_is_typed_of_a_device_stands_before_its_first_reading() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let typed = Typed { field: "location".to_owned(), value: "Room 7".to_owned(), ..Typed::default() };
    let typed = DeviceNews { typed: vec![typed], ..news(1, "d2", &["f2"]) };
    assert_eq!(received(link.batch(5, 1, vec![told(1, typed), faced(2)]).await), 2);
    assert_eq!(devices(&admin).await.remove(0).location.as_deref(), Some("Room 7"));
    admin.stop().await;
}

#[tokio::test]
async fn a_site_whose_calendar_was_ahead_does_not_stand_still() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let at = |seq: u64, at_ms: u64| {
        let mut entry = OutboxEntry::decode(&entry(seq)[..]).unwrap();
        entry.row.as_mut().unwrap().at_ms = at_ms;
        entry.encode_to_vec()
    };
    let now = site::now().0;
    let batch = vec![at(3, now + 2 * 86_400_000), at(6, now), at(9, now - 60_000)];
    let batch = batch
        .into_iter()
        .zip(1..)
        .map(|(entry, seq)| OutboxEntry { seq, ..OutboxEntry::decode(&entry[..]).unwrap() }.encode_to_vec());
    assert_eq!(received(link.batch(5, 1, batch.collect()).await), 3);
    assert_eq!(picture(&admin).await, [line("d0", 1006, 3)], "and what came late is history");
    admin.stop().await;
}

#[tokio::test]
async fn news_that_no_site_sends_are_refused_and_store_nothing() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let long = DeviceNews { device: "x".repeat(5_000), ..news(1, "d1", &["f1"]) };
    let answer = link.batch(5, 1, vec![told(1, long)]).await;
    assert!(matches!(answer, Some(quire_proto::upstream::to_site::What::Refused(_))), "{answer:?}");
    assert_eq!(devices(&admin).await.len(), 0);
    admin.stop().await;
}
