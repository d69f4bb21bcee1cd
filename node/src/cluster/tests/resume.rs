//! A snapshot over a connection that breaks.

use std::sync::atomic::{AtomicU64, Ordering};

use quire_proto::store::{Reach, ReportReach};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::members::{caught_up, row};
use super::*;

/// Octets of the rows, which carry their segment in key and value, and after how many the connection breaks. What is
/// under way then (the stream's window of 4 MiB, four batches, the kernel's buffers) is less than half of that, so a
/// stream that began again is seen.
const ROWS: u64 = 400 * 2 * 60_000;
const BREAKS_AFTER: u64 = 30 << 20;

/// Forwards connections; the first that carried [`BREAKS_AFTER`] octets to the node ends there.
struct Relay {
    to: watch::Sender<Option<SocketAddr>>,
    there: AtomicU64,
    breaks: AtomicU64,
}

impl Relay {
    async fn start() -> (SocketAddr, Arc<Relay>) {
        let listener = TcpListener::bind(SocketAddr::from((own_host(), 0))).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (there, breaks) = (AtomicU64::new(0), AtomicU64::new(0));
        let relay = Arc::new(Relay { to: watch::Sender::new(None), there, breaks });
        let accepting = Arc::clone(&relay);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(Arc::clone(&accepting).forward(stream));
            }
        });
        (address, relay)
    }

    async fn forward(self: Arc<Self>, stream: TcpStream) {
        let mut known = self.to.subscribe();
        let Ok(to) = known.wait_for(Option::is_some).await.map(|to| to.unwrap()) else { return };
        let Ok(node) = TcpStream::connect(to).await else { return };
        let ((mut from, mut back), (mut answers, mut there)) = (stream.into_split(), node.into_split());
        let answering = tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
        let (mut octets, mut carried) = (vec![0; 64 << 10], 0);
        while let Ok(many @ 1..) = from.read(&mut octets).await {
            if there.write_all(&octets[..many]).await.is_err() {
                break;
            }
            carried += many as u64;
            self.there.fetch_add(many as u64, Ordering::Relaxed);
            let once = carried > BREAKS_AFTER
                && self.breaks.compare_exchange(0, 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
            if once {
                break;
            }
        }
        answering.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_connection_broke_brings_only_the_rest() {
    let dir = TempDir::new().unwrap();
    let tuning = Tuning { snapshot_entries: 20, keep_entries: 0, ..Tuning::default() };
    let one = Cluster::of(start::init(start(dir.path(), "n1"), "site", tuning).await.unwrap());
    let mut last = 0;
    for n in 0..400_u64 {
        let reaches = vec![Reach { segment: format!("{n:060000}"), ..Reach::default() }];
        let report = command::Kind::ReportReach(ReportReach { node: 1, reaches });
        last = one.propose(report, PATIENCE).await.unwrap().index;
    }
    let (address, relay) = Relay::start().await;
    let token = one.create_token(Duration::from_secs(60), "test").await.unwrap();
    let behind = Start { advertise: Some(address.to_string()), ..start(dir.path(), "n2") };
    let two = Cluster::join(behind, &one.me().address, &token).await.unwrap();
    relay.to.send_replace(Some(two.me().listen));
    one.add_learner(&row(&one, &two)).await.unwrap();
    caught_up(&two, last).await;
    let index = one.propose(mode("service"), PATIENCE).await.unwrap().index;
    caught_up(&two, index).await;
    assert_eq!(super::rows(&one), super::rows(&two));
    assert_eq!(relay.breaks.load(Ordering::Relaxed), 1);
    let carried = relay.there.load(Ordering::Relaxed);
    assert!(carried < ROWS + BREAKS_AFTER / 2, "{carried} octets went there: it was sent again whole");
    for node in [one, two] {
        node.shutdown().await;
    }
}
