//! The link and enrolment, over real TLS and gRPC on 127.0.0.1.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod site;

use prost::Message as _;
use prost::bytes::Bytes;
use quire_admin::listing::DeviceQuery;
use quire_proto::store::OutboxEntry;
use quire_proto::upstream::enrollment_client::EnrollmentClient;
use quire_proto::upstream::{FromSite, Goodbye, SignRequest, from_site, to_site};
use site::{Admin, Cluster, Link, anonymous, csr, enrolled, entries, entry, received};
use tonic::Code;

#[tokio::test]
async fn a_code_makes_a_site_of_a_cluster() {
    let (_dir, admin, cluster) = enrolled().await;
    assert_eq!(cluster.site, "acme-berlin");
    let (mut link, through) = cluster.welcomed(admin.listen, 2, 5).await;
    assert_eq!(through, 0);
    assert_eq!(received(link.batch(5, 1, entries(1, 10)).await), 10);
    admin.stop().await;
}

#[tokio::test]
async fn wrong_codes_are_refused_and_slowed_down() {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::start(dir.path()).await;
    let code = admin.add_site("acme").await;
    let mut cluster = Cluster::new(7, 1);
    let mut codes = Vec::new();
    // Two windows of five, should the minute change meanwhile.
    for _ in 0..11 {
        codes.push(cluster.try_enroll(&admin, "abcde-fghjk").await.unwrap_err().code());
    }
    assert_eq!(codes[0], Code::PermissionDenied);
    assert!(codes.contains(&Code::ResourceExhausted));
    assert_ne!(codes[0], cluster.try_enroll(&admin, &code).await.map_or_else(|e| e.code(), |_| Code::Ok));
    admin.stop().await;
}

#[tokio::test]
async fn a_code_works_once_but_a_lost_reply_may_be_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::start(dir.path()).await;
    let code = admin.add_site("acme").await;
    let mut cluster = Cluster::new(7, 1);
    let channel = anonymous(admin.listen, &admin.pin).await.unwrap();
    let request = cluster.request(&code);
    let mut client = EnrollmentClient::new(channel);
    client.register(request.clone()).await.unwrap();
    client.register(request).await.unwrap();
    // Another cluster, and the same one with other keys.
    let other = Cluster::new(8, 1).try_enroll(&admin, &code).await.unwrap_err();
    assert_eq!((other.code(), other.message()), (Code::PermissionDenied, "the code has been used already"));
    assert_eq!(cluster.try_enroll(&admin, &code).await.unwrap_err().code(), Code::PermissionDenied);
    admin.stop().await;
}

#[tokio::test]
async fn a_cluster_belongs_to_one_site() {
    let (_dir, admin, _) = enrolled().await;
    let code = admin.add_site("acme-hamburg").await;
    let status = Cluster::new(7, 1).try_enroll(&admin, &code).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    assert!(status.message().contains("acme-berlin"), "{status}");
    admin.stop().await;
}

#[tokio::test]
async fn certificate_requests_are_checked_before_the_code_is_spent() {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::start(dir.path()).await;
    let code = admin.add_site("acme").await;
    let mut cluster = Cluster::new(7, 1);
    let mut client = EnrollmentClient::new(anonymous(admin.listen, &admin.pin).await.unwrap());
    let good = cluster.request(&code);
    let mut forged = good.requests[0].csr_der.to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [forged, vec![0x30; 100], vec![0; 10_000], Vec::new()] {
        let mut request = good.clone();
        request.requests[0].csr_der = bad.into();
        assert_eq!(client.register(request).await.unwrap_err().code(), Code::InvalidArgument);
    }
    cluster.enroll(&admin, &code).await;
    admin.stop().await;
}

#[tokio::test]
async fn a_server_with_another_pin_is_not_spoken_to() {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::start(dir.path()).await;
    let wrong = format!("sha256:{}", "0".repeat(64));
    assert!(anonymous(admin.listen, &wrong).await.is_err());
    assert!(anonymous(admin.listen, &admin.pin).await.is_ok());
    admin.stop().await;
}

#[tokio::test]
async fn a_stream_needs_a_certificate() {
    let (_dir, admin, _) = enrolled().await;
    let channel = anonymous(admin.listen, &admin.pin).await.unwrap();
    assert_eq!(Link::open(channel).await.err().unwrap().code(), Code::Unauthenticated);
    admin.stop().await;
}

#[tokio::test]
async fn a_stream_must_be_who_its_certificate_says() {
    let (_dir, admin, cluster) = enrolled().await;
    let mut link = cluster.link(admin.listen, 1).await;
    link.send(5, cluster.hello(2)).await;
    assert!(link.refused().await.0.starts_with("node:"));

    let mut link = cluster.link(admin.listen, 1).await;
    link.send(5, Cluster::new(8, 1).hello(1)).await;
    assert!(link.refused().await.0.starts_with("cluster:"));

    let mut link = cluster.link(admin.listen, 1).await;
    link.check_in(5).await;
    assert!(link.refused().await.0.starts_with("malformed:"));
    admin.stop().await;
}

#[tokio::test]
async fn lower_epochs_are_refused() {
    let (_dir, admin, cluster) = enrolled().await;
    let (link, _) = cluster.welcomed(admin.listen, 1, 9).await;
    drop(link);
    let mut older = cluster.link(admin.listen, 2).await;
    older.send(8, cluster.hello(2)).await;
    let (reason, epoch) = older.refused().await;
    assert!(reason.starts_with("epoch:"), "{reason}");
    assert_eq!(epoch, 9);
    // The same epoch is one node's alone, and that one may come again.
    let mut other = cluster.link(admin.listen, 2).await;
    other.send(9, cluster.hello(2)).await;
    assert!(other.refused().await.0.starts_with("epoch:"));
    cluster.welcomed(admin.listen, 1, 9).await;
    admin.stop().await;
}

#[tokio::test]
async fn a_newer_epoch_ends_the_older_stream() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut older, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(older.batch(5, 1, entries(1, 3)).await), 3);
    let (mut newer, through) = cluster.welcomed(admin.listen, 2, 6).await;
    assert_eq!(through, 3);
    let (reason, _) = older.refused().await;
    assert!(reason.starts_with("replaced:"), "{reason}");
    assert_eq!(received(newer.batch(6, 4, entries(4, 6)).await), 6);
    assert_eq!(admin.store.links(None).await.unwrap().len(), 1);
    assert_eq!(admin.store.links(None).await.unwrap()[0].node, "n2");
    admin.stop().await;
}

#[tokio::test]
async fn every_message_carries_the_epoch_of_its_stream() {
    let (_dir, admin, cluster) = enrolled().await;
    for wrong in [4, 6] {
        let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
        assert!(matches!(link.batch(wrong, 1, entries(1, 1)).await, Some(to_site::What::Refused(_))));
    }
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 0);
    admin.stop().await;
}

#[tokio::test]
async fn what_is_sent_again_is_stored_once() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 10)).await), 10);
    assert_eq!(received(link.batch(5, 1, entries(1, 10)).await), 10);
    assert_eq!(received(link.batch(5, 6, entries(6, 15)).await), 15);
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 15);
    let site = &admin.store.sites().await.unwrap()[0];
    assert_eq!((site.devices, site.readings, site.through), (3, 15, Some(15)));
    admin.stop().await;
}

#[tokio::test]
async fn a_late_reading_is_history_and_leaves_the_device_as_it_is() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 3)).await), 3);
    let mut late: quire_proto::store::OutboxEntry = prost::Message::decode(&entry(6)[..]).unwrap();
    late.seq = 4;
    let row = late.row.as_mut().unwrap();
    (row.late, row.at_ms) = (true, 1_699_999_999_000);
    assert_eq!(received(link.batch(5, 4, vec![prost::Message::encode_to_vec(&late)]).await), 4);
    let query = quire_admin::listing::DeviceQuery { limit: 10, ..Default::default() };
    let devices = admin.store.devices(&query).await.unwrap();
    assert_eq!(devices.len(), 3);
    assert_eq!((devices[0].id.as_str(), devices[0].counters.total), ("d0", Some(1003)));
    let history = admin.store.history("acme-berlin", "d0", 10).await.unwrap();
    assert_eq!(
        history.iter().map(|reading| reading.counters.total).collect::<Vec<_>>(),
        [Some(1003), Some(1006)]
    );
    admin.stop().await;
}

#[tokio::test]
async fn gaps_are_refused_and_store_nothing() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 10)).await), 10);
    let answer = link.batch(5, 12, entries(12, 14)).await;
    assert!(matches!(answer, Some(to_site::What::Refused(_))), "{answer:?}");
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 10);
    // An entry that lies about its number, within a batch.
    let (mut link, through) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(through, 10);
    let answer = link.batch(5, 11, vec![entry(11), entry(13)]).await;
    assert!(matches!(answer, Some(to_site::What::Refused(_))));
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 10);
    admin.stop().await;
}

#[tokio::test]
async fn a_taken_id_is_kept_aside_and_the_link_goes_on() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 2)).await), 2);
    // Number 3 under the id of number 2, as a cloned node would make it.
    let mut clash: quire_proto::store::OutboxEntry = prost::Message::decode(&entry(2)[..]).unwrap();
    clash.seq = 3;
    clash.row.as_mut().unwrap().device = "another".to_owned();
    assert_eq!(received(link.batch(5, 3, vec![prost::Message::encode_to_vec(&clash)]).await), 3);
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 2);
    assert_eq!(admin.store.count_conflicts().await.unwrap(), 1);
    admin.stop().await;
}

#[tokio::test]
async fn the_mark_and_the_epoch_outlive_the_server() {
    let (dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 10)).await), 10);
    let pin = admin.pin.clone();
    admin.stop().await;
    assert_eq!(link.answer().await, Err(Code::Unavailable));

    let admin = Admin::start(dir.path()).await;
    assert_eq!(admin.pin, pin);
    let mut older = cluster.link(admin.listen, 2).await;
    older.send(4, cluster.hello(2)).await;
    assert_eq!(older.refused().await.1, 5);
    let (mut link, through) = cluster.welcomed(admin.listen, 2, 6).await;
    assert_eq!(through, 10);
    assert_eq!(received(link.batch(6, 11, entries(11, 12)).await), 12);
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 12);
    admin.stop().await;
}

#[tokio::test]
async fn a_revoked_site_is_cut_off_by_another_process_and_at_once() {
    let (dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    // As the command line does: a store of its own on the same file.
    let other = quire_admin::store::Store::open(dir.path()).await.unwrap();
    assert!(other.revoke_site("acme-berlin", site::now()).await.unwrap());
    let (reason, _) = link.refused().await;
    assert!(reason.starts_with("revoked:"), "{reason}");
    let refused = Link::open(cluster.channel(admin.listen, 1).await).await.err().unwrap();
    assert_eq!(refused.code(), Code::PermissionDenied);
    // The name is free again, and the cluster may come back under it without sending anything twice.
    let code = admin.add_site("acme-berlin").await;
    let mut again = Cluster::new(7, 1);
    again.enroll(&admin, &code).await;
    again.welcomed(admin.listen, 1, 6).await;
    admin.stop().await;
}

#[tokio::test]
async fn the_link_signs_for_nodes_that_joined_later() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let key = rcgen::KeyPair::generate().unwrap();
    let bad = quire_proto::upstream::CertificateRequest { node: 5, name: "n5".into(), csr_der: Bytes::new() };
    let requests = vec![bad, csr(4, &key)];
    link.send(5, from_site::What::Sign(SignRequest { requests })).await;
    let Some(to_site::What::Signed(signed)) = link.next().await else { panic!("not signed") };
    assert_eq!(signed.certificates.iter().map(|one| one.node).collect::<Vec<_>>(), [4]);
    let certificate = rustls_pki_types::CertificateDer::from(signed.certificates[0].certificate_der.to_vec());
    assert_eq!(quire_admin::tls::identity(&certificate).unwrap().node, 4);
    admin.stop().await;
}

#[tokio::test]
async fn hostile_messages_end_their_stream_and_nothing_else() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut honest, _) = {
        let code = admin.add_site("other").await;
        let mut other = Cluster::new(9, 1);
        other.enroll(&admin, &code).await;
        other.welcomed(admin.listen, 1, 5).await
    };
    let hostile: Vec<(u64, Vec<Vec<u8>>)> = vec![
        (1, vec![vec![0xff; 50]]),
        (1, vec![Vec::new()]),
        (u64::MAX, vec![entry(u64::MAX), entry(1)]),
        (u64::MAX, vec![entry(u64::MAX)]),
        (1, vec![Vec::new(); 6000]),
        (
            1,
            vec![{
                let mut entry: quire_proto::store::OutboxEntry =
                    prost::Message::decode(&entry(1)[..]).unwrap();
                entry.row.as_mut().unwrap().reading = Bytes::from_static(&[0xff; 9]);
                prost::Message::encode_to_vec(&entry)
            }],
        ),
    ];
    for (first_seq, entries) in hostile {
        let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
        let answer = link.batch(5, first_seq, entries).await;
        assert!(matches!(answer, Some(to_site::What::Refused(_))), "{answer:?}");
    }
    let (link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    link.send(5, cluster.hello(1)).await;
    let (link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    link.send(u64::MAX, from_site::What::Goodbye(Goodbye {})).await;
    let mut link = cluster.link(admin.listen, 1).await;
    link.send(u64::MAX, cluster.hello(1)).await;
    assert!(link.next().await.is_none_or(|answer| matches!(answer, to_site::What::Refused(_))));
    let mut link = cluster.link(admin.listen, 1).await;
    link.send(0, cluster.hello(1)).await;
    assert!(matches!(link.next().await, Some(to_site::What::Refused(_))));
    let _ = FromSite::default();
    assert_eq!(received(honest.batch(5, 1, entries_of(9)).await), 1);
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 1);
    admin.stop().await;
}

fn entries_of(cluster: u8) -> Vec<Vec<u8>> {
    let mut first: quire_proto::store::OutboxEntry = prost::Message::decode(&entry(1)[..]).unwrap();
    first.row.as_mut().unwrap().id = format!("{cluster}-1-1");
    vec![prost::Message::encode_to_vec(&first)]
}

#[tokio::test]
async fn octets_that_are_no_tls_or_no_http_leave_the_server_standing() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let (_dir, admin, cluster) = enrolled().await;
    for octets in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0x16, 3, 1, 0xff, 0xff, 1][..], &[0; 4096][..]] {
        let mut tcp = tokio::net::TcpStream::connect(admin.listen).await.unwrap();
        tcp.write_all(octets).await.unwrap();
        let _ = tcp.shutdown().await;
        let mut rest = Vec::new();
        let _ = tcp.read_to_end(&mut rest).await;
    }
    cluster.welcomed(admin.listen, 1, 5).await;
    admin.stop().await;
}

#[tokio::test]
async fn a_data_directory_has_one_server() {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::start(dir.path()).await;
    let free = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let options = quire_admin::Options { data_dir: dir.path().to_owned(), listen: free, console: free };
    let second = quire_admin::Server::start(&options, tokio_util::sync::CancellationToken::new()).await;
    assert!(second.unwrap_err().to_string().contains("serves"));
    admin.stop().await;
    Admin::start(dir.path()).await.stop().await;
}

#[tokio::test]
async fn a_recovered_cluster_numbers_on_and_the_one_of_before_is_refused() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut before, _) = cluster.welcomed(admin.listen, 2, 5).await;
    assert_eq!(received(before.batch(5, 1, entries(1, 10)).await), 10);
    // Node 1 knew of eight entries, the last two of which it had not seen acknowledged.
    let base = 1 << 40;
    let mut link = cluster.link(admin.listen, 1).await;
    link.send(base + 3, cluster.recovered(1, base)).await;
    match link.next().await {
        Some(to_site::What::Welcome(welcome)) => assert_eq!(welcome.through, base - 1),
        other => panic!("no welcome but {other:?}"),
    }
    let renumbered = |seq, number| {
        let was: quire_proto::store::OutboxEntry = prost::Message::decode(&entry(seq)[..]).unwrap();
        prost::Message::encode_to_vec(&quire_proto::store::OutboxEntry { seq: number, ..was })
    };
    let again = vec![renumbered(7, base), renumbered(8, base + 1), renumbered(11, base + 2)];
    assert_eq!(received(link.batch(base + 3, base, again).await), base + 2);
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 11, "two of them were there already");
    let mut old = cluster.link(admin.listen, 2).await;
    old.send(90, cluster.hello(2)).await;
    assert!(matches!(old.next().await, Some(to_site::What::Refused(refused)) if refused.epoch == base + 3));
    admin.stop().await;
}

#[tokio::test]
async fn numbers_that_later_readings_stand_for_are_passed_over() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let gap = |seq, superseded_through| {
        let entry = OutboxEntry { seq, superseded_through, ..OutboxEntry::default() };
        prost::Message::encode_to_vec(&entry)
    };
    let batch = vec![entry(1), gap(2, 900), entry(901), gap(902, 902), entry(903)];
    assert_eq!(received(link.batch(5, 1, batch).await), 903);
    // Sent again by the next leader, which had thinned out more by then.
    let (mut link, through) = cluster.welcomed(admin.listen, 2, 6).await;
    assert_eq!(through, 903);
    let batch = vec![gap(500, 903), entry(904)];
    assert_eq!(received(link.batch(6, 500, batch).await), 904);
    let stored = admin.store.readings(Some("acme-berlin"), 0, 100).await.unwrap();
    assert_eq!(stored.len(), 4);
    // Nothing that goes backwards, and no hole that nobody accounts for.
    assert!(matches!(link.batch(6, 905, vec![gap(905, 904)]).await, Some(to_site::What::Refused(_))));
    admin.stop().await;
}

#[tokio::test]
async fn a_revoked_site_enrols_again_with_a_new_code_and_goes_on() {
    let (_dir, admin, mut cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 10)).await), 10);
    assert!(admin.store.revoke_site("acme-berlin", site::now()).await.unwrap());
    let code = admin.add_site("acme-berlin").await;
    cluster.enroll(&admin, &code).await;
    // It goes on wherever the site does: what it sends again is known by its id.
    let (mut link, through) = cluster.welcomed(admin.listen, 1, 6).await;
    assert_eq!(through, 0);
    assert_eq!(received(link.batch(6, 9, entries(9, 12)).await), 12);
    assert_eq!(admin.store.count_readings(None).await.unwrap(), 12);
    // What both registrations know is listed once, as the later one says it.
    for query in [None, Some("acme-berlin".to_owned())] {
        let query = DeviceQuery { site: query, limit: 10, ..DeviceQuery::default() };
        let devices = admin.store.devices(&query).await.unwrap();
        let totals: Vec<_> = devices.iter().map(|device| device.counters.total).collect();
        assert_eq!(totals, [Some(1012), Some(1011)], "{devices:?}");
        assert_eq!(admin.store.count_devices(&query).await.unwrap(), 2);
    }
    admin.stop().await;
}

/// Of a Web Admin that is a backup, or that was told of numbers that nobody can reach.
#[tokio::test]
async fn a_new_code_is_the_way_back_from_a_mark_that_the_site_does_not_believe() {
    let (_dir, admin, mut cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let run = OutboxEntry { seq: 1, superseded_through: i64::MAX as u64 - 1, ..OutboxEntry::default() };
    assert_eq!(received(link.batch(5, 1, vec![run.encode_to_vec()]).await), i64::MAX as u64 - 1);
    assert!(admin.store.revoke_site("acme-berlin", site::now()).await.unwrap());
    let code = admin.add_site("acme-berlin").await;
    cluster.enroll(&admin, &code).await;
    let (mut link, through) = cluster.welcomed(admin.listen, 1, 6).await;
    assert_eq!(through, 0);
    assert_eq!(received(link.batch(6, 2_001, entries(2_001, 2_002)).await), 2_002);
    admin.stop().await;
}

#[tokio::test]
async fn a_reading_id_is_its_clusters_own() {
    let (_dir, admin, cluster) = enrolled().await;
    let code = admin.add_site("other").await;
    let mut other = Cluster::new(8, 3);
    other.enroll(&admin, &code).await;
    let (mut link, _) = other.welcomed(admin.listen, 1, 5).await;
    let first = |at_ms| {
        let mut entry = OutboxEntry::decode(&entry(1)[..]).unwrap();
        entry.row.as_mut().unwrap().at_ms = at_ms;
        vec![entry.encode_to_vec()]
    };
    assert_eq!(received(link.batch(5, 1, first(1_600_000_000_000)).await), 1);
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    assert_eq!(received(link.batch(5, 1, first(1_700_000_000_000)).await), 1);
    assert_eq!(admin.store.count_conflicts().await.unwrap(), 0);
    assert_eq!(admin.store.count_readings(Some("acme-berlin")).await.unwrap(), 1);
    admin.stop().await;
}

#[tokio::test]
async fn a_removed_node_is_refused_for_ever_and_the_others_go_on() {
    let (_dir, admin, cluster) = enrolled().await;
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    link.check_in_of(5, vec![1, 3]).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 1)).await), 1);
    let mut removed = cluster.link(admin.listen, 2).await;
    removed.send(9, cluster.hello(2)).await;
    assert!(removed.refused().await.0.starts_with("removed:"));
    // Nor when a list names it again: an id is never used a second time.
    link.check_in_of(5, vec![1, 2, 3]).await;
    assert_eq!(received(link.batch(5, 2, entries(2, 2)).await), 2);
    let mut removed = cluster.link(admin.listen, 2).await;
    removed.send(9, cluster.hello(2)).await;
    assert!(removed.refused().await.0.starts_with("removed:"));
    let (mut link, through) = cluster.welcomed(admin.listen, 3, 6).await;
    assert_eq!(through, 2);
    // A version that says none removes none.
    link.check_in(6).await;
    assert_eq!(received(link.batch(6, 3, entries(3, 3)).await), 3);
    cluster.welcomed(admin.listen, 1, 7).await;
    admin.stop().await;
}

#[tokio::test]
async fn a_new_code_is_the_way_back_from_an_epoch_that_nobody_can_beat() {
    let (_dir, admin, mut cluster) = enrolled().await;
    let highest = i64::MAX as u64;
    let (hostile, _) = cluster.welcomed(admin.listen, 2, highest).await;
    let mut honest = cluster.link(admin.listen, 1).await;
    honest.send(6, cluster.hello(1)).await;
    assert!(honest.refused().await.0.starts_with("epoch:"));
    assert!(admin.store.revoke_site("acme-berlin", site::now()).await.unwrap());
    let code = admin.add_site("acme-berlin").await;
    let before = cluster.channel(admin.listen, 2).await;
    cluster.enroll(&admin, &code).await;
    drop(hostile);
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 6).await;
    assert_eq!(received(link.batch(6, 1, entries(1, 1)).await), 1);
    // Its certificate is of the site that was revoked.
    assert_eq!(Link::open(before).await.err().unwrap().code(), Code::PermissionDenied);
    admin.stop().await;
}
