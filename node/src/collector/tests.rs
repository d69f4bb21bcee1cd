//! The collector of a real node of one, on loopback addresses where nobody answers and every packet is counted.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use quire_coordinator::coverage::Coverage;
use quire_coordinator::rows;
use quire_proto::convert;
use quire_proto::id::Millis;
use quire_proto::reading::{Facts, Reading, Via};
use quire_proto::store::command::Kind;
use quire_proto::store::observation::What;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{Claim, Grant, Observation, Plan, Release, Releases, SweepMark, UnitRow};
use tempfile::TempDir;

use super::*;
use crate::cluster::Start;
use crate::snmp::sim::Mute;
use crate::snmp::{AuthProtocol, Options, V3};

const PATIENCE: Duration = Duration::from_secs(20);
/// Only a hang can make a test wait so long.
const HANG: Duration = Duration::from_secs(120);

/// The addresses of a /28, silent, with one port.
struct Silent {
    port: u16,
    sockets: BTreeMap<u8, UdpSocket>,
}

impl Silent {
    fn new(net: [u8; 3]) -> Silent {
        let at = |host, port| SocketAddr::from((Ipv4Addr::new(net[0], net[1], net[2], host), port));
        loop {
            let first = UdpSocket::bind(at(1, 0)).unwrap();
            let port = first.local_addr().unwrap().port();
            let others = (2..15).map(|host| UdpSocket::bind(at(host, port)).map(|socket| (host, socket)));
            // A port that another program has on one of them is no use.
            let Ok(mut sockets) = others.collect::<Result<BTreeMap<_, _>, _>>() else { continue };
            sockets.insert(1, first);
            sockets.values().for_each(|socket| socket.set_nonblocking(true).unwrap());
            return Silent { port, sockets };
        }
    }

    /// The addresses that were sent something since the last call.
    fn heard(&self) -> Vec<u8> {
        let mut octets = [0; 2048];
        let mut got = |socket: &UdpSocket| std::iter::from_fn(|| socket.recv(&mut octets).ok()).count();
        self.sockets.iter().filter(|(_, socket)| got(socket) > 0).map(|(host, _)| *host).collect()
    }
}

/// A node with one unit, and what it takes to collect.
struct World {
    _dir: TempDir,
    cluster: Cluster,
    unit: UnitId,
    stop: CancellationToken,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl World {
    async fn new(prefix: &str, settings: &str) -> World {
        let dir = TempDir::new().unwrap();
        let listen = Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let data_dir = dir.path().join("n1");
        let start = Start { data_dir, name: Some("n1".into()), listen, ..Start::default() };
        let cluster = Cluster::init(start, "site").await.unwrap();
        let unit = UnitId::new("any", prefix.parse().unwrap());
        let world = World { _dir: dir, cluster, unit, stop: CancellationToken::new(), tasks: JoinSet::new() };
        world.apply(settings).await;
        let claim = Kind::Claim(Claim { node: 1, ..Claim::default() });
        let Some(Answer::Epoch(claim)) = world.propose(claim).await else { panic!("no claim") };
        let unit = world.unit.to_string();
        let (prefix, segment) = (prefix.to_owned(), prefix.to_owned());
        let grant = Grant { unit, node: 1, zone: "any".into(), prefix, segment, ..Grant::default() };
        world.propose(Kind::Plan(Plan { claim, grants: vec![grant], drop_units: vec![] })).await;
        world
    }

    async fn propose(&self, kind: Kind) -> Option<Answer> {
        self.cluster.propose(kind, PATIENCE).await.unwrap().result
    }

    async fn apply(&self, settings: &str) {
        let (command, _) = self.cluster.seal_settings(settings, "test").unwrap();
        self.propose(Kind::PutSettings(command)).await;
    }

    fn row(&self) -> UnitRow {
        rows::unit(&self.cluster.view(), &self.unit).unwrap().unwrap()
    }

    fn settings_index(&self) -> u64 {
        rows::meta(&self.cluster.view()).unwrap().settings_index
    }

    /// Starts to commit what is reported; answers what the collector reports to.
    fn commit(&mut self) -> Reporter {
        let (reporter, proposer) = Reporter::new(self.cluster.clone());
        self.tasks.spawn(proposer.run(self.stop.clone()));
        reporter
    }

    async fn collect(&mut self, reporter: Reporter) {
        let collector = self.collector(reporter).await;
        self.tasks.spawn(collector.run(self.stop.clone()));
    }

    async fn collector(&self, reporter: Reporter) -> Collector {
        let snmp = Snmp::bind(Options { timeout: Duration::from_millis(500), ..Options::default() }).await;
        Collector::new(
            self.cluster.clone(),
            snmp.unwrap(),
            reporter,
            Scripts::built_in(),
            crate::device::browser::Browser::off(),
        )
    }

    /// Waits until the unit's row is as wanted.
    async fn until(&self, what: &str, wanted: impl Fn(&UnitRow) -> bool) {
        let mut changes = self.cluster.changes();
        let waiting = async {
            loop {
                let _ = changes.take();
                if wanted(&self.row()) {
                    return;
                }
                changes.changed().await;
            }
        };
        let waited = tokio::time::timeout(HANG, waiting).await;
        assert!(waited.is_ok(), "{what}: {:?}", self.row());
    }

    /// A plan that moves the unit; `hand_over` when who has it is alive.
    async fn grant(&self, node: u64, hand_over: bool) {
        let claim = rows::meta(&self.cluster.view()).unwrap().claim_epoch;
        let row = self.row();
        let (unit, zone, prefix, segment) = (row.unit, row.zone, row.prefix, row.segment);
        let grant = Grant { unit, node, zone, prefix, segment, hand_over, ..Grant::default() };
        self.propose(Kind::Plan(Plan { claim, grants: vec![grant], drop_units: vec![] })).await;
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap().unwrap();
        }
        self.cluster.shutdown().await;
    }
}

fn settings(net: &str, port: u16, more: &str) -> String {
    format!(
        "[discovery]\nsegments = [\"{net}\"]\nport = {port}\n{more}\n[[snmp]]\nversion = \"2c\"\ncommunity = \"public\"\n"
    )
}

/// A device of the unit that was read two hours ago, by this user, and the unit swept just now.
async fn known_device(world: &World, address: &str, user: &str) {
    let (unit, epoch, now) = (world.unit.to_string(), world.row().epoch, clock::now().0);
    let facts = Facts { serial: Some("A1".into()), ..Facts::default() };
    let via = vec![if user.is_empty() { Via::SnmpV2c } else { Via::SnmpV3 }];
    let reading = Reading { facts: facts.into(), via, ..Reading::default() };
    let read = Observation {
        address: address.into(),
        at_ms: now - 2 * 3_600_000,
        user: user.into(),
        what: Some(What::Reading(convert::encode(&reading))),
        ..Observation::default()
    };
    let mark = SweepMark { started_at_ms: now, finished: true, ..SweepMark::default() };
    let swept = Observation { at_ms: now, what: Some(What::Sweep(mark)), ..Observation::default() };
    for observation in [read, swept] {
        world.cluster.spool().append(Observation { unit: unit.clone(), epoch, ..observation }).unwrap();
    }
}

fn finished(row: &UnitRow) -> bool {
    row.sweep.as_ref().is_some_and(|sweep| sweep.finished)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sweep_goes_on_where_the_committed_mark_says() {
    let net = Silent::new([127, 77, 0]);
    let mut world = World::new("127.77.0.0/28", &settings("127.77.0.0/28", net.port, "")).await;
    let mut coverage = Coverage::new("127.77.0.0/28".parse().unwrap());
    (1..8).for_each(|host| coverage.cover(Ipv4Addr::new(127, 77, 0, host).into()));
    let started_at = clock::now().0 - 60_000;
    let mark = SweepMark {
        started_at_ms: started_at,
        total: 14,
        done: 7,
        responders: 5,
        covered: Bytes::from(coverage.say()),
        settings_index: world.settings_index(),
        ..SweepMark::default()
    };
    let (unit, epoch) = (world.unit.to_string(), world.row().epoch);
    let what = Some(What::Sweep(mark));
    let observation = Observation { unit, epoch, at_ms: clock::now().0, what, ..Observation::default() };
    world.cluster.spool().append(observation).unwrap();
    let reporter = world.commit();
    world.until("the mark to be committed", |row| row.sweep.is_some()).await;
    world.collect(reporter).await;
    world.until("swept", finished).await;
    assert_eq!(net.heard(), (8..15).collect::<Vec<_>>(), "those that were done are not asked again");
    let sweep = world.row().sweep.unwrap();
    assert_eq!((sweep.started_at_ms, sweep.done, sweep.responders), (started_at, 14, 5));
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusion_in_the_middle_of_a_sweep_is_honoured() {
    let net = Silent::new([127, 77, 1]);
    // Fifty-six packets take some six seconds.
    let slow = settings("127.77.1.0/28", net.port, "rate = 10");
    let mut world = World::new("127.77.1.0/28", &slow).await;
    let reporter = world.commit();
    world.collect(reporter).await;
    world.until("begun", |row| row.sweep.is_some()).await;
    world.apply(&settings("127.77.1.0/28", net.port, "rate = 10\nexclude = [\"127.77.1.8/29\"]")).await;
    let index = world.settings_index();
    let under = |row: &UnitRow| row.sweep.as_ref().is_some_and(|sweep| sweep.settings_index == index);
    world.until("begun anew", under).await;
    let _ = net.heard();
    world.until("swept", |row| under(row) && finished(row)).await;
    assert_eq!(net.heard(), (1..8).collect::<Vec<_>>());
    assert_eq!(world.row().sweep.unwrap().total, 7);
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exclusion_gives_up_what_is_shown_for_others() {
    let net = Silent::new([127, 77, 5]);
    let mut world = World::new("127.77.5.0/28", &settings("127.77.5.0/28", net.port, "")).await;
    let reporter = world.commit();
    let mut collector = world.collector(reporter).await;
    collector.showing.spawn(async { panic!("a hostile page") });
    let (shown, given_up) = tokio::sync::oneshot::channel::<()>();
    collector.showing.spawn(async move {
        std::future::pending::<()>().await;
        drop(shown);
    });
    world.tasks.spawn(collector.run(world.stop.clone()));
    world.until("begun", |row| row.sweep.is_some()).await;
    world.apply(&settings("127.77.5.0/28", net.port, "exclude = [\"127.77.5.8/29\"]")).await;
    assert!(tokio::time::timeout(HANG, given_up).await.unwrap().is_err());
    // And the collector goes on.
    let index = world.settings_index();
    let under = |row: &UnitRow| row.sweep.as_ref().is_some_and(|sweep| sweep.settings_index == index);
    world.until("swept", |row| under(row) && finished(row)).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unit_that_moves_away_is_left_alone_at_once() {
    let net = Silent::new([127, 77, 2]);
    let slow = settings("127.77.2.0/28", net.port, "rate = 10");
    let mut world = World::new("127.77.2.0/28", &slow).await;
    let reporter = world.commit();
    world.collect(reporter).await;
    world.until("begun", |row| row.sweep.is_some()).await;
    let row = world.row();
    world.grant(9, false).await;
    // It comes back at once: a sweep that still ran under the old grant would hold its place until it is over.
    world.grant(1, false).await;
    let epoch = world.row().epoch;
    let begun = row.sweep.unwrap().started_at_ms;
    world.until("goes on under the new grant", |row| row.marked_at_ms > begun && row.epoch == epoch).await;
    world.until("swept", finished).await;
    let sweep = world.row().sweep.unwrap();
    assert_eq!((sweep.started_at_ms, sweep.done), (begun, 14));
    assert!(Millis(world.row().swept_at_ms) > Millis(begun));
    assert_eq!(net.heard(), (1..15).collect::<Vec<_>>());
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_move_has_never_two_at_work() {
    let net = Silent::new([127, 77, 3]);
    let slow = settings("127.77.3.0/28", net.port, "rate = 10");
    let mut world = World::new("127.77.3.0/28", &slow).await;
    // It comes from a node that is alive and has not let go.
    world.grant(9, false).await;
    world.grant(1, true).await;
    assert_eq!((world.row().node, world.row().from), (1, 9));
    let reporter = world.commit();
    world.collect(reporter).await;
    // The collector has looked when it has taken what was applied after the grant.
    world.apply(&settings("127.77.3.0/28", net.port, "rate = 20")).await;
    assert!(world.row().sweep.is_none() && net.heard().is_empty());
    let (unit, epoch) = (world.unit.to_string(), world.row().epoch);
    world.propose(Kind::Release(Releases { releases: vec![Release { unit, epoch }] })).await;
    world.until("begun", |row| row.sweep.is_some()).await;
    // It goes on to another, who is told when this one has stopped.
    world.grant(9, true).await;
    world.until("let go of", |row| row.node == 9 && row.from == 0).await;
    let _ = net.heard();
    world.grant(1, false).await;
    world.until("swept", finished).await;
    world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_offers_a_user_that_is_not_known_to_be_right_once() {
    let right = V3 { user: "meter", auth: Some((AuthProtocol::Sha256, "right password")), ..V3::default() };
    let mut mute = Mute::new(&Arc::new(Credential::v3(right).unwrap()));
    let socket = tokio::net::UdpSocket::bind("127.77.4.1:0").await.unwrap();
    let at = socket.local_addr().unwrap();
    let settings = format!(
        "[discovery]\nsegments = [\"127.77.4.0/28\"]\nport = {}\n[[snmp]]\nversion = \"3\"\nuser = \"meter\"\n\
         auth = \"sha256\"\nauth_pass = \"wrong password\"\npermission = \"test\"\n",
        at.port()
    );
    let mut world = World::new("127.77.4.0/28", &settings).await;
    known_device(&world, &at.to_string(), "meter").await;
    let reporter = world.commit();
    world.until("known and swept", finished).await;
    world.collect(reporter).await;
    let device = || {
        let mut devices = Vec::new();
        let prefix = world.unit.prefix().unwrap();
        rows::devices_in(&world.cluster.view(), "any", prefix, |row| {
            devices.push(row);
            true
        })
        .unwrap();
        devices.pop().unwrap()
    };
    let answering = async {
        let mut datagram = [0; 2048];
        loop {
            let (length, from) = socket.recv_from(&mut datagram).await.unwrap();
            if let Some(answer) = mute.answer(&datagram[..length]) {
                socket.send_to(&answer, from).await.unwrap();
            }
        }
    };
    let mut changes = world.cluster.changes();
    let silent = async {
        while device().misses == 0 {
            changes.changed().await;
            let _ = changes.take();
        }
    };
    let read = async {
        tokio::select! { () = silent => (), () = answering => () }
    };
    assert!(tokio::time::timeout(HANG, read).await.is_ok(), "{:?}", device());
    assert_eq!((device().misses, mute.attempts()), (1, 1));
    world.end().await;
}
