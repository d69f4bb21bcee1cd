//! In process, on an address of 127.127.0.0/16, with real TLS and RocksDB.

use std::path::Path;
use std::sync::Once;

use quire_coordinator::tables::{Read, ReadExt, Table};
use quire_proto::store::{Meta, Observation, ReportReach, SetUpstreamMode};
use tempfile::TempDir;

use super::raft::Tuning;
use super::*;

mod members;
mod resume;
mod rotation;
mod storage;

const PATIENCE: Duration = Duration::from_secs(20);

/// Prints what the nodes say when `RUST_LOG` asks for it.
fn logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    });
}

/// An address of this process alone: a port of 127.0.0.1 that a stopped node will want again is anybody's meanwhile.
fn own_host() -> [u8; 4] {
    let [.., high, low] = std::process::id().to_be_bytes();
    [127, 127, high, low.clamp(1, 254)]
}

fn start(dir: &Path, name: &str) -> Start {
    logs();
    Start {
        data_dir: dir.join(name),
        name: Some(name.to_owned()),
        zone: Some("hq".to_owned()),
        listen: Some(SocketAddr::from((own_host(), 0))),
        advertise: None,
        witness: false,
    }
}

fn again(dir: &Path, name: &str) -> Start {
    Start { data_dir: dir.join(name), ..Start::default() }
}

async fn init(dir: &TempDir, name: &str) -> Cluster {
    Cluster::init(start(dir.path(), name), "site").await.unwrap()
}

/// A command that every version of `state::apply` accepts and that leaves a trace.
fn mode(text: &str) -> command::Kind {
    command::Kind::SetUpstreamMode(SetUpstreamMode { mode: text.to_owned(), by: "test".into() })
}

fn meta(cluster: &Cluster) -> Meta {
    cluster.view().row(Table::Meta, b"meta").unwrap().unwrap_or_default()
}

fn members(cluster: &Cluster) -> Vec<Member> {
    cluster.view().all(Table::Members, &[]).unwrap()
}

/// Waits until the node's standing is as wanted; only a hang can make it fail.
async fn until(cluster: &Cluster, what: &str, wanted: impl FnMut(&Standing) -> bool) -> Standing {
    let mut watch = cluster.watch();
    let waited = tokio::time::timeout(Duration::from_secs(60), watch.wait_for(wanted)).await;
    waited.unwrap_or_else(|_| panic!("{what}: still {:?}", cluster.watch().borrow().clone())).unwrap().clone()
}

/// Waits until every node knows what every member shows and has, so that nobody has anything to say of that any more.
async fn told(nodes: &[&Cluster]) {
    let known = |node: &&Cluster| {
        let members = members(node);
        members.iter().all(|member| !member.certificate_der.is_empty() && member.key_generation > 0)
    };
    let waited = async {
        while !nodes.iter().all(known) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited).await.expect("all say what they show");
}

/// All rows of all tables.
fn rows(cluster: &Cluster) -> Vec<(Table, Bytes, Bytes)> {
    let view = cluster.view();
    let all =
        |table| view.range(table, &[], usize::MAX).unwrap().into_iter().map(move |(k, v)| (table, k, v));
    Table::ALL.into_iter().flat_map(all).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_node_commits_and_comes_back() {
    let dir = TempDir::new().unwrap();
    let cluster = init(&dir, "n1").await;
    assert_eq!((cluster.me().id, cluster.me().cluster_name.as_str()), (NodeId(1), "site"));
    let outcome = cluster.propose(mode("service"), PATIENCE).await.unwrap();
    assert!(outcome.index > 0);
    assert_eq!(meta(&cluster).upstream_mode, "service");
    assert_eq!(members(&cluster).len(), 1);
    told(&[&cluster]).await;
    let (before, id) = (rows(&cluster), cluster.me().cluster_id.clone());
    cluster.shutdown().await;

    let cluster = Cluster::open(again(dir.path(), "n1")).await.unwrap();
    assert_eq!(cluster.me().cluster_id, id);
    assert_eq!(rows(&cluster), before);
    until(&cluster, "lead again", |now| now.role == Role::Leader && now.quorum).await;
    cluster.propose(mode("normal"), PATIENCE).await.unwrap();
    assert_eq!(meta(&cluster).upstream_mode, "normal");
    cluster.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_holds_a_node_is_not_taken_twice() {
    let dir = TempDir::new().unwrap();
    let cluster = init(&dir, "n1").await;
    let running = Cluster::init(start(dir.path(), "n1"), "other").await;
    assert!(matches!(running, Err(OpenError::InUse { .. })), "{running:?}");
    cluster.shutdown().await;
    let stopped = Cluster::init(start(dir.path(), "n1"), "other").await;
    assert!(matches!(stopped, Err(OpenError::Occupied { .. })), "{stopped:?}");
    let empty = Cluster::open(again(dir.path(), "n2")).await;
    assert!(matches!(empty, Err(OpenError::Empty { .. })), "{empty:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_and_foreign_files_are_named() {
    let dir = TempDir::new().unwrap();
    init(&dir, "n1").await.shutdown().await;
    init(&dir, "n2").await.shutdown().await;
    let place = |node: &str, file: &str| dir.path().join(node).join(file);
    for file in ["node.json", "node.key", "node.crt", "ca.crt", "cluster.key", "upstream.key"] {
        let whole = std::fs::read(place("n1", file)).unwrap();
        for broken in [whole[..whole.len() / 2].to_vec(), std::fs::read(place("n2", file)).unwrap()] {
            if file == "node.json" && broken.len() >= whole.len() - 8 {
                continue; // Another node's card is whole in itself; its files are not.
            }
            std::fs::write(place("n1", file), broken).unwrap();
            let opened = Cluster::open(again(dir.path(), "n1")).await;
            let Err(OpenError::Damaged { file: named, .. }) = &opened else { panic!("{file}: {opened:?}") };
            assert_eq!(*named, place("n1", file));
        }
        std::fs::write(place("n1", file), whole).unwrap();
    }
    std::fs::rename(place("n1", "db"), place("n1", "aside")).unwrap();
    let wiped = Cluster::open(again(dir.path(), "n1")).await;
    assert!(
        matches!(&wiped, Err(OpenError::Damaged { file, .. }) if *file == place("n1", "db")),
        "{wiped:?}"
    );
    std::fs::rename(place("n2", "db"), place("n1", "db")).unwrap();
    let foreign = Cluster::open(again(dir.path(), "n1")).await;
    assert!(matches!(foreign, Err(OpenError::Foreign { .. })), "{foreign:?}");
    std::fs::remove_dir_all(place("n1", "db")).unwrap();
    std::fs::rename(place("n1", "aside"), place("n1", "db")).unwrap();
    Cluster::open(again(dir.path(), "n1")).await.unwrap().shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_tail_is_dropped_and_a_torn_table_is_named() {
    let dir = TempDir::new().unwrap();
    let cluster = init(&dir, "n1").await;
    for n in 0..50 {
        cluster.propose(mode(if n % 2 == 0 { "service" } else { "normal" }), PATIENCE).await.unwrap();
    }
    cluster.shutdown().await;
    let db = dir.path().join("n1/db");
    let mut logs: Vec<_> = std::fs::read_dir(&db).unwrap().map(|entry| entry.unwrap().path()).collect();
    logs.retain(|path| path.extension().is_some_and(|kind| kind == "log"));
    logs.retain(|path| path.metadata().unwrap().len() > 64);
    logs.sort();
    let last = logs.last().expect("a write-ahead log");
    let file = std::fs::OpenOptions::new().write(true).open(last).unwrap();
    file.set_len(last.metadata().unwrap().len() - 7).unwrap();
    let cluster = Cluster::open(again(dir.path(), "n1")).await.unwrap();
    cluster.propose(mode("service"), PATIENCE).await.unwrap();
    cluster.shutdown().await;

    std::fs::write(db.join("CURRENT"), b"MANIFEST-999999\n").unwrap();
    let opened = Cluster::open(again(dir.path(), "n1")).await;
    assert!(matches!(&opened, Err(OpenError::Damaged { file, .. }) if *file == db), "{opened:?}");
}

#[tokio::test]
async fn an_address_nobody_could_dial_is_refused() {
    let dir = TempDir::new().unwrap();
    let any = Start { listen: Some(SocketAddr::from(([0, 0, 0, 0], 0))), ..start(dir.path(), "n1") };
    let error = Cluster::init(any, "site").await.unwrap_err();
    assert!(error.to_string().contains("--advertise"), "{error}");
    let bad = Start { advertise: Some("nowhere".into()), ..start(dir.path(), "n2") };
    assert!(matches!(Cluster::init(bad, "site").await, Err(OpenError::Address(_))));
    let bad = Start { name: Some("a b".into()), ..start(dir.path(), "n3") };
    assert!(matches!(Cluster::init(bad, "site").await, Err(OpenError::Address(_))));
}

fn seen(unit: &str) -> Observation {
    Observation { unit: unit.to_owned(), ..Observation::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_spool_survives_and_never_repeats_a_number() {
    use prost::Message;
    let dir = TempDir::new().unwrap();
    let cluster = init(&dir, "n1").await;
    let spool = cluster.spool();
    let first = spool.append(seen("a")).unwrap();
    let second = spool.append(seen("b")).unwrap();
    assert!(second > first && first > 0);
    spool.trim(first).unwrap();
    drop(spool);
    cluster.shutdown().await;

    let cluster = Cluster::open(again(dir.path(), "n1")).await.unwrap();
    let spool = cluster.spool();
    let kept: Vec<_> = spool.page(10).unwrap().into_iter().map(|o| Observation::decode(o).unwrap()).collect();
    assert_eq!(kept.iter().map(|o| (o.seq, o.unit.as_str())).collect::<Vec<_>>(), [(second, "b")]);
    let third = spool.append(seen("c")).unwrap();
    assert!(third > second);
    spool.trim(u64::MAX).unwrap();
    assert!(spool.is_empty() && spool.page(10).unwrap().is_empty());
    assert!(spool.append(seen("d")).unwrap() > third);
    drop(spool);
    cluster.shutdown().await;
}

#[test]
fn a_full_spool_gives_up_the_oldest() {
    use prost::Message;
    let dir = TempDir::new().unwrap();
    let store = store::Store::open(dir.path()).unwrap();
    let spool = Spool::open(&store, NodeId(1), 3).unwrap();
    let last = spool.append_all((0..5).map(|n| seen(&n.to_string())).collect()).unwrap();
    let kept: Vec<_> = spool.page(10).unwrap().into_iter().map(|o| Observation::decode(o).unwrap()).collect();
    assert_eq!(kept.iter().map(|o| o.unit.as_str()).collect::<Vec<_>>(), ["2", "3", "4"]);
    assert_eq!((spool.len(), spool.dropped(), kept[2].seq), (3, 2, last));
}
