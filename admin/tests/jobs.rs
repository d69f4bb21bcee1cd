//! Jobs for sites: handed over on whatever stream there is, and closed by the site.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod site;

use quire_proto::upstream::{JobResult, from_site, job, to_site};
use site::{enrolled, entries, received};

#[tokio::test]
async fn jobs_reach_the_site_and_are_closed_by_it() {
    let (dir, admin, cluster) = enrolled().await;
    let other = quire_admin::store::Store::open(dir.path()).await.unwrap();
    let key = 1;
    let kind = quire_admin::jobs::JobKind::Sweep("10.1.0.0/16".to_owned());
    let id = other.add_job(key, &kind, site::now()).await.unwrap();
    let (mut link, _) = cluster.welcomed(admin.listen, 1, 5).await;
    let job = |answer| match answer {
        Some(to_site::What::Job(job)) => job,
        other => panic!("no job but {other:?}"),
    };
    let first = job(link.next().await);
    assert_eq!(first.id, id);
    assert_eq!(first.what, Some(job::What::SweepSegment("10.1.0.0/16".to_owned())));
    // Live, while the first one is still open; and only the new one.
    let kind = quire_admin::jobs::JobKind::ServiceMode(true);
    let second_id = other.add_job(key, &kind, site::now()).await.unwrap();
    assert_eq!(job(link.next().await).id, second_id);
    let source = "//! name: acme\n".to_owned();
    let kind = quire_admin::jobs::JobKind::Script(source.clone());
    let script = other.add_job(key, &kind, site::now()).await.unwrap();
    let sent = job(link.next().await);
    assert_eq!((sent.id, sent.what), (script.clone(), Some(job::What::ScriptSource(source))));
    let tried = "put script `acme` version 1, on trial on node `n1`".to_owned();
    let result = JobResult { id: script, ok: true, detail: tried.clone() };
    link.send(5, from_site::What::JobResult(result)).await;
    let result = JobResult { id: id.clone(), ok: true, detail: "340 devices".to_owned() };
    link.send(5, from_site::What::JobResult(result)).await;
    assert_eq!(received(link.batch(5, 1, entries(1, 1)).await), 1);
    // What is still open is sent again on the next stream.
    let (mut link, _) = cluster.welcomed(admin.listen, 2, 6).await;
    assert_eq!(job(link.next().await).id, second_id);
    let jobs = admin.store.jobs(None).await.unwrap();
    assert_eq!((jobs[0].state.as_str(), jobs[1].state.as_str()), ("done", "sent"));
    let script = (jobs[2].kind.as_str(), jobs[2].argument.as_str(), jobs[2].detail.as_ref());
    assert_eq!(script, ("script", "", Some(&tried)));
    admin.stop().await;
}

/// More than are sent in one go, on a stream that breaks: the next one gets them all.
#[tokio::test]
async fn jobs_beyond_the_first_hundred_are_not_forgotten() {
    let (_dir, admin, cluster) = enrolled().await;
    let kind = quire_admin::jobs::JobKind::ServiceMode(true);
    for _ in 0..130 {
        admin.store.add_job(1, &kind, site::now()).await.unwrap();
    }
    for epoch in [5, 6] {
        let (mut link, _) = cluster.welcomed(admin.listen, 1, epoch).await;
        let mut ids = std::collections::BTreeSet::new();
        while ids.len() < 130 {
            match link.next().await {
                Some(to_site::What::Job(job)) => assert!(ids.insert(job.id), "twice on one stream"),
                other => panic!("no job but {other:?} after {}", ids.len()),
            }
        }
    }
    admin.stop().await;
}

#[tokio::test]
async fn what_a_revoked_site_never_fetched_is_not_kept() {
    let (dir, admin, _cluster) = enrolled().await;
    let secret = "correct-horse-battery-staple";
    let kind = quire_admin::jobs::JobKind::Settings(format!("# {secret}"));
    admin.store.add_job(1, &kind, site::now()).await.unwrap();
    assert!(admin.store.revoke_site("acme-berlin", site::now()).await.unwrap());
    let job = admin.store.jobs(None).await.unwrap().remove(0);
    assert_eq!((job.state.as_str(), job.detail.as_deref()), ("failed", Some("the site was revoked")));
    admin.stop().await;
    for file in std::fs::read_dir(dir.path()).unwrap() {
        let path = file.unwrap().path();
        let Ok(octets) = std::fs::read(&path) else { continue };
        let found = octets.windows(secret.len()).any(|window| window == secret.as_bytes());
        assert!(!found, "{}", path.display());
    }
}
