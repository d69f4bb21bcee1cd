//! Support bundles over the link: one whole file a job, whatever a site sends.

#![allow(clippy::unwrap_used, reason = "a test may stop at what it did not expect")]

mod site;

use quire_admin::jobs::JobKind;
use quire_proto::upstream::{BundlePart, JobResult, from_site, job, to_site};
use ring::digest::{SHA256, digest};
use site::{Admin, Cluster, Link, entries, received};

const EPOCH: u64 = 5;

async fn linked() -> (tempfile::TempDir, Admin, Cluster, Link) {
    let dir = tempfile::tempdir().unwrap();
    let admin = Admin::start(dir.path()).await;
    let code = admin.add_site("acme").await;
    let mut cluster = Cluster::new(7, 2);
    cluster.enroll(&admin, &code).await;
    let (link, _) = cluster.welcomed(admin.listen, 1, EPOCH).await;
    (dir, admin, cluster, link)
}

async fn wanted(admin: &Admin, link: &mut Link) -> String {
    let id = admin.store.add_job(1, &JobKind::Bundle, site::now()).await.unwrap();
    next_job(link, &id).await;
    id
}

async fn next_job(link: &mut Link, id: &str) {
    match link.next().await {
        Some(to_site::What::Job(job)) => {
            assert_eq!((job.id.as_str(), job.what), (id, Some(job::What::Bundle(true))))
        }
        other => panic!("no job but {other:?}"),
    }
}

/// One that was stored before counts no part behind it, so that all parts before it were handled.
async fn handled(link: &mut Link, seq: u64, epoch: u64) {
    assert_eq!(received(link.batch(epoch, seq, entries(seq, seq)).await), seq);
}

fn part(job: &str, offset: u64, data: &[u8], sha256: &[u8]) -> from_site::What {
    let (data, sha256) = (data.to_vec().into(), sha256.to_vec().into());
    from_site::What::Bundle(BundlePart { job: job.to_owned(), offset, data, sha256 })
}

fn files(dir: &tempfile::TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(dir.path().join("bundles")).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

async fn state(admin: &Admin, id: &str) -> (String, String) {
    let job = admin.store.jobs(None).await.unwrap().into_iter().find(|job| job.id == id).unwrap();
    (job.state, job.detail.unwrap_or_default())
}

#[tokio::test]
async fn a_bundle_arrives_once_whatever_breaks() {
    let (dir, admin, cluster, mut link) = linked().await;
    let id = wanted(&admin, &mut link).await;
    link.send(EPOCH, part(&id, 0, b"of a leader that dies", b"")).await;
    handled(&mut link, 1, EPOCH).await;
    // Another leader is asked again, and makes it anew.
    let (mut link, _) = cluster.welcomed(admin.listen, 2, EPOCH + 1).await;
    next_job(&mut link, &id).await;
    let whole = b"what the bundle holds";
    let sha256 = digest(&SHA256, whole);
    link.send(EPOCH + 1, part(&id, 0, &whole[..7], b"")).await;
    link.send(EPOCH + 1, part(&id, 7, &whole[7..], b"")).await;
    let end = part(&id, whole.len() as u64, b"", sha256.as_ref());
    link.send(EPOCH + 1, end.clone()).await;
    // Again, and from the start again: the job is closed.
    link.send(EPOCH + 1, end).await;
    link.send(EPOCH + 1, part(&id, 0, b"late", b"")).await;
    handled(&mut link, 2, EPOCH + 1).await;
    assert_eq!(files(&dir), [format!("{id}.tar.zst")]);
    let listed = admin.store.bundles(Some("acme")).await.unwrap();
    assert_eq!((listed.len(), listed[0].octets), (1, whole.len() as u64));
    assert_eq!(listed[0].sha256, data_encoding::HEXLOWER.encode(sha256.as_ref()));
    let (state, detail) = state(&admin, &id).await;
    assert!(state == "done" && detail.contains(&listed[0].sha256), "{state}: {detail}");

    let to = dir.path().join("fetched");
    assert_eq!(admin.store.get_bundle(&id, &to, false).await.unwrap(), whole.len() as u64);
    assert_eq!(std::fs::read(&to).unwrap(), whole);
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&to).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(admin.store.get_bundle(&id, &to, false).await.unwrap_err().to_string().contains("--force"));
    std::fs::write(dir.path().join("bundles").join(&listed[0].name), b"other").unwrap();
    assert!(admin.store.get_bundle(&id, &to, true).await.unwrap_err().to_string().contains("damaged"));
    assert_eq!(std::fs::read(&to).unwrap(), whole, "the good copy stays");
    admin.stop().await;
}

#[tokio::test]
async fn what_is_no_bundle_fails_its_job_and_leaves_no_file() {
    let (dir, admin, _cluster, mut link) = linked().await;
    let wrong_hash = wanted(&admin, &mut link).await;
    link.send(EPOCH, part(&wrong_hash, 0, b"x", digest(&SHA256, b"y").as_ref())).await;
    let gap = wanted(&admin, &mut link).await;
    link.send(EPOCH, part(&gap, 0, b"abc", b"")).await;
    link.send(EPOCH, part(&gap, 9, b"x", b"")).await;
    let mere_word = wanted(&admin, &mut link).await;
    let result = JobResult { id: mere_word.clone(), ok: true, detail: "it is on its way".to_owned() };
    link.send(EPOCH, from_site::What::JobResult(result)).await;
    // Nobody asked for these.
    let sweep = admin.store.add_job(1, &JobKind::Sweep(String::new()), site::now()).await.unwrap();
    assert!(matches!(link.next().await, Some(to_site::What::Job(_))));
    for foreign in [sweep.as_str(), "../../serve", "no-such-job"] {
        link.send(EPOCH, part(foreign, 0, b"x", digest(&SHA256, b"x").as_ref())).await;
    }
    handled(&mut link, 1, EPOCH).await;
    for id in [&wrong_hash, &gap, &mere_word] {
        assert_eq!(state(&admin, id).await.0, "failed");
    }
    assert_eq!(state(&admin, &sweep).await.0, "sent");
    assert!(
        files(&dir).is_empty() && admin.store.bundles(None).await.unwrap().is_empty(),
        "{:?}",
        files(&dir)
    );
    // Larger than a part may be: no honest site sends it.
    let id = wanted(&admin, &mut link).await;
    link.send(EPOCH, part(&id, 0, &vec![0; (1 << 20) + 1], b"")).await;
    assert!(link.refused().await.0.starts_with("malformed: a part of a bundle"));
    admin.stop().await;
}
