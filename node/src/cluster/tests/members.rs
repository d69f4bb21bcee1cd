//! Several nodes.

use super::*;
use crate::cluster::admission::Admission;

pub(super) async fn join(dir: &TempDir, name: &str, through: &Cluster) -> Cluster {
    let token = through.create_token(Duration::from_secs(60), "test").await.unwrap();
    Cluster::join(start(dir.path(), name), &through.me().address, &token).await.unwrap()
}

pub(super) fn row(cluster: &Cluster, of: &Cluster) -> Member {
    members(cluster).into_iter().find(|member| member.id == of.me().id.0).unwrap()
}

fn ids(nodes: &[&Cluster]) -> BTreeSet<NodeId> {
    nodes.iter().map(|node| node.me().id).collect()
}

/// One voter becomes three: both others first receive the log, then vote.
pub(super) async fn three(dir: &TempDir) -> [Cluster; 3] {
    let one = init(dir, "n1").await;
    let (two, three) = (join(dir, "n2", &one).await, join(dir, "n3", &one).await);
    until(&one, "lead", |now| now.role == Role::Leader).await;
    for node in [&two, &three] {
        one.add_learner(&row(&one, node)).await.unwrap();
        until(node, "hear of the leader", |now| now.leader == Some(NodeId(1)) && now.quorum).await;
    }
    one.change_voters(ids(&[&one, &two, &three])).await.unwrap();
    for node in [&one, &two, &three] {
        until(node, "know three voters", |now| now.voters.len() == 3 && !now.changing).await;
    }
    [one, two, three]
}

pub(super) async fn caught_up(node: &Cluster, index: u64) {
    until(node, "catch up", |now| now.applied >= index).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_survive_their_leader() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    assert_eq!(members(&two).len(), 3);
    assert!(one.heard().keys().all(|id| ids(&[&two, &three]).contains(id)));
    let outcome = three.propose(mode("service"), PATIENCE).await.unwrap();
    caught_up(&two, outcome.index).await;
    assert_eq!(meta(&two).upstream_mode, "service");
    one.shutdown().await;

    let outcome = two.propose(mode("normal"), PATIENCE).await.unwrap();
    caught_up(&three, outcome.index).await;
    let leader = until(&two, "know the new leader", |now| now.leader.is_some_and(|id| id != NodeId(1))).await;
    assert!(ids(&[&two, &three]).contains(&leader.leader.unwrap()));

    let one = Cluster::open(again(dir.path(), "n1")).await.unwrap();
    told(&[&one, &two, &three]).await;
    let outcome = one.propose(mode("service"), PATIENCE).await.unwrap();
    for node in [&one, &two, &three] {
        caught_up(node, outcome.index).await;
    }
    assert_eq!(rows(&one), rows(&two));
    assert_eq!(rows(&one), rows(&three));

    three.shutdown().await;
    two.shutdown().await;
    until(&one, "notice the lost quorum", |now| !now.quorum).await;
    let refused = one.propose(mode("normal"), Duration::from_secs(1)).await;
    assert!(matches!(refused, Err(ProposeError::NoQuorum | ProposeError::Timeout)), "{refused:?}");
    one.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_on_request_and_a_removed_node_is_shut_out() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    one.transfer_leader(two.me().id).await.unwrap();
    until(&two, "lead", |now| now.role == Role::Leader && now.quorum).await;
    assert!(matches!(two.transfer_leader(NodeId(999)).await, Err(ChangeError::Refused(_))));

    let gone = quire_proto::store::RemoveMember { id: three.me().id.0, by: "test".into() };
    two.remove(three.me().id).await.unwrap();
    let outcome = two.propose(command::Kind::RemoveMember(gone), PATIENCE).await.unwrap();
    caught_up(&one, outcome.index).await;
    until(&one, "know two voters", |now| now.voters == ids(&[&one, &two])).await;
    let refused = three.propose(mode("service"), Duration::from_secs(1)).await;
    assert!(refused.is_err(), "{refused:?}");
    assert_ne!(meta(&two).upstream_mode, "service");
    for node in [one, two, three] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_for_its_own_cluster() {
    let dir = TempDir::new().unwrap();
    let one = init(&dir, "n1").await;
    let other = init(&dir, "other").await;
    let token = one.create_token(Duration::from_secs(60), "test").await.unwrap();
    let (at, elsewhere) = (one.me().address.clone(), other.me().address.clone());
    let wrong = Cluster::join(start(dir.path(), "n2"), &elsewhere, &token).await;
    assert!(matches!(wrong, Err(OpenError::WrongAuthority { .. })), "{wrong:?}");
    let cut = Cluster::join(start(dir.path(), "n2"), &at, &token[..token.len() - 3]).await;
    assert!(matches!(cut, Err(OpenError::Token(BadToken::Damaged))), "{cut:?}");
    let two = Cluster::join(start(dir.path(), "n2"), &at, &token).await.unwrap();
    assert!(two.me().id > one.me().id);
    assert_eq!(two.keys().open(&one.keys().seal(1, b"x", b"p").unwrap(), b"p").unwrap().as_slice(), b"x");
    let twice = Cluster::join(start(dir.path(), "n3"), &at, &token).await;
    assert!(matches!(&twice, Err(OpenError::Refused(why)) if why.contains("used")), "{twice:?}");
    let late = one.create_token(Duration::ZERO, "test").await.unwrap();
    let late = Cluster::join(start(dir.path(), "n3"), &at, &late).await;
    assert!(matches!(&late, Err(OpenError::Refused(why)) if why.contains("expired")), "{late:?}");
    let nobody = Cluster::join(start(dir.path(), "n3"), "127.0.0.1:1", &token).await;
    assert!(matches!(nobody, Err(OpenError::NoMember { .. })), "{nobody:?}");
    for node in [one, two, other] {
        node.shutdown().await;
    }
}

/// What the node at `to` says to a message with this envelope from who holds this identity.
pub(super) async fn says(
    to: &Cluster,
    identity: Option<Arc<crate::tls::Identity>>,
    envelope: quire_proto::cluster::Envelope,
) -> tonic::Status {
    // Without a vote, so that whoever is admitted still changes nothing.
    let request = quire_proto::cluster::TransferRequest { envelope: Some(envelope), ..Default::default() };
    speak(to, identity).transfer_leader(request).await.unwrap_err()
}

/// A client of the node at `to` for who holds this identity.
pub(super) fn speak(
    to: &Cluster,
    identity: Option<Arc<crate::tls::Identity>>,
) -> quire_proto::cluster::raft_client::RaftClient<tonic::transport::Channel> {
    let connector = crate::tls::Connector::new(identity, to.inner.vault.trust()).unwrap();
    let (address, name) = (to.me().address.clone(), network::server_name(to.me().id.0));
    let channel = network::endpoint().connect_with_connector_lazy(tower::service_fn(move |_| {
        let (address, name, connector) = (address.clone(), name.clone(), connector.clone());
        async move { network::dial(&address, &connector, &name).await }
    }));
    quire_proto::cluster::raft_client::RaftClient::new(channel)
}

#[tokio::test(flavor = "multi_thread")]
async fn only_members_reach_raft_and_only_in_this_incarnation() {
    use crate::tls::{Authority, Identity, Key};
    use tonic::Code;
    let dir = TempDir::new().unwrap();
    let one = init(&dir, "n1").await;
    let two = join(&dir, "n2", &one).await;
    let meta = meta(&one);
    let sealed = &meta.ca_private_key_sealed;
    let ca_key = one.keys().open(sealed, &membership::ca_purpose(&meta.cluster_id)).unwrap();
    let ours = Authority::restore(&meta.ca_certificate_der, &ca_key).unwrap();
    let holder = |authority: &Authority, node: u64| {
        let key = Key::generate().unwrap();
        let names = membership::names(&meta.cluster_id, node);
        let until = keeper::until(&meta, keeper::LIFE);
        let leaf = authority.sign(&key.request("x").unwrap(), &names, until).unwrap();
        Some(Identity::new(&[&leaf, authority.certificate()], &key).unwrap())
    };
    let second = two.me().id.0;
    let good = quire_proto::cluster::Envelope {
        cluster_id: meta.cluster_id.clone(),
        from: second,
        to: 1,
        incarnation: one.me().incarnation.clone(),
        wire_version: quire_proto::WIRE_VERSION,
    };
    let admitted = says(&one, holder(&ours, second), good.clone()).await;
    assert_eq!(admitted.code(), Code::InvalidArgument, "{admitted}");
    let clone = quire_proto::cluster::Envelope { incarnation: two.me().incarnation.clone(), ..good.clone() };
    let other = quire_proto::cluster::Envelope { cluster_id: vec![7; 16].into(), ..good.clone() };
    let astray = quire_proto::cluster::Envelope { to: second, ..good.clone() };
    for envelope in [clone, other, astray] {
        let refused = says(&one, holder(&ours, second), envelope).await;
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    }
    let impostor = says(&one, holder(&ours, 1), good.clone()).await;
    assert_eq!(impostor.code(), Code::PermissionDenied, "{impostor}");
    let nobody = says(&one, None, good.clone()).await;
    assert_eq!(nobody.code(), Code::Unauthenticated, "{nobody}");
    let theirs = Authority::generate("another").unwrap();
    let foreign = says(&one, holder(&theirs, second), good.clone()).await;
    assert!(!matches!(foreign.code(), Code::InvalidArgument | Code::Unauthenticated), "{foreign}");

    let gone = quire_proto::store::RemoveMember { id: second, by: "test".into() };
    one.propose(command::Kind::RemoveMember(gone), PATIENCE).await.unwrap();
    let removed = says(&one, holder(&ours, second), good).await;
    assert_eq!(removed.code(), Code::PermissionDenied, "{removed}");
    for node in [one, two] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_moved_is_found_again() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    let before = three.me().address.clone();
    three.shutdown().await;
    let elsewhere = Start { listen: Some(SocketAddr::from(([127, 0, 0, 1], 0))), ..again(dir.path(), "n3") };
    let three = Cluster::open(elsewhere).await.unwrap();
    assert_ne!(three.me().address, before);
    let index = one.propose(mode("service"), PATIENCE).await.unwrap().index;
    caught_up(&three, index).await;
    for node in [one, two, three] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fresh_learner_gets_a_snapshot_when_the_log_is_gone() {
    let dir = TempDir::new().unwrap();
    let tuning = Tuning { snapshot_entries: 20, keep_entries: 0, ..Tuning::default() };
    let one = Cluster::of(start::init(start(dir.path(), "n1"), "site", tuning).await.unwrap());
    let mut last = 0;
    for n in 0..120_u64 {
        let reaches =
            vec![quire_proto::store::Reach { segment: format!("10.0.{n}.0/24"), ..Default::default() }];
        let report = command::Kind::ReportReach(ReportReach { node: 1, reaches });
        last = one.propose(report, PATIENCE).await.unwrap().index;
    }
    let two = join(&dir, "n2", &one).await;
    one.add_learner(&row(&one, &two)).await.unwrap();
    caught_up(&two, last).await;
    told(&[&one, &two]).await;
    let index = one.propose(mode("service"), PATIENCE).await.unwrap().index;
    caught_up(&two, index).await;
    assert_eq!(rows(&one), rows(&two));
    assert!(two.view().range(Table::Reach, &[], 1000).unwrap().len() >= 120);
    let first = two.inner.proposer.store.meta(store::key::ACTIVE).unwrap();
    assert_eq!(first.as_deref(), Some([1].as_slice()), "the tables came as a snapshot");

    two.shutdown().await;
    let two = Cluster::open(again(dir.path(), "n2")).await.unwrap();
    let index = one.propose(mode("normal"), PATIENCE).await.unwrap().index;
    caught_up(&two, index).await;
    assert_eq!(rows(&one), rows(&two));
    for node in [one, two] {
        node.shutdown().await;
    }
}

/// Raft's own timers would take longer than `until` waits.
fn slow() -> Tuning {
    Tuning { election_min_ms: 120_000, election_max_ms: 240_000, ..Tuning::default() }
}

/// Three voters whose timers never fire.
async fn patient(dir: &TempDir) -> [Cluster; 3] {
    let one = Cluster::of(start::init(start(dir.path(), "n1"), "site", slow()).await.unwrap());
    let mut others = Vec::new();
    for name in ["n2", "n3"] {
        let token = one.create_token(Duration::from_secs(60), "test").await.unwrap();
        let joined = start::join(start(dir.path(), name), &one.me().address, &token, slow()).await;
        others.push(Cluster::of(joined.unwrap()));
    }
    let (three, two) = (others.pop().unwrap(), others.pop().unwrap());
    for node in [&two, &three] {
        one.add_learner(&row(&one, node)).await.unwrap();
    }
    one.change_voters(ids(&[&one, &two, &three])).await.unwrap();
    for node in [&one, &two, &three] {
        until(node, "know three voters", |now| now.voters.len() == 3 && !now.changing).await;
    }
    [one, two, three]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_process_is_gone_is_replaced_before_any_timer() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = patient(&dir).await;
    one.shutdown().await;
    let gone = until(&two, "miss the leader", |now| now.gone.contains(&NodeId(1))).await;
    assert!(!gone.gone.contains(&three.me().id), "{gone:?}");
    let now = until(&two, "know a new leader", |now| now.leader.is_some_and(|id| id != NodeId(1))).await;
    assert!(ids(&[&two, &three]).contains(&now.leader.unwrap()));
    let index = three.propose(mode("service"), PATIENCE).await.unwrap().index;
    caught_up(&two, index).await;

    let one = Cluster::of(start::open(again(dir.path(), "n1"), slow()).await.unwrap());
    until(&two, "see it again", |now| now.gone.is_empty()).await;
    caught_up(&one, index).await;
    for node in [one, two, three] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_goes_hands_over_first() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = patient(&dir).await;
    until(&one, "lead", |now| now.role == Role::Leader && now.quorum).await;
    assert!(two.hand_over(PATIENCE).await, "whoever does not lead has nothing to hand over");
    assert!(one.hand_over(PATIENCE).await);
    let now = until(&one, "follow", |now| now.leader.is_some_and(|id| id != NodeId(1))).await;
    let (leader, other) = if now.leader == Some(two.me().id) { (&two, &three) } else { (&three, &two) };
    until(leader, "lead", |now| now.role == Role::Leader && now.quorum).await;
    let drain =
        quire_proto::store::UpdateMember { id: other.me().id.0, draining: Some(true), ..Default::default() };
    let index = one.propose(command::Kind::UpdateMember(drain), PATIENCE).await.unwrap().index;
    caught_up(leader, index).await;
    // The other one is being drained, so only the first can take it back.
    assert!(leader.hand_over(PATIENCE).await);
    until(&one, "lead again", |now| now.role == Role::Leader && now.quorum).await;
    for node in [two, three] {
        node.shutdown().await;
    }
    until(&one, "miss both", |now| now.gone.len() == 2).await;
    assert!(!one.hand_over(PATIENCE).await, "nobody is left to lead");
    one.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_version_rises_when_all_know_it_and_then_shuts_out_older_programs() {
    let knows = |cluster_version| Tuning { cluster_version, ..Tuning::default() };
    let raise = |version| command::Kind::Upgrade(quire_proto::store::Upgrade { version });
    let dir = TempDir::new().unwrap();
    let one = Cluster::of(start::init(start(dir.path(), "n1"), "site", knows(1)).await.unwrap());
    let token = one.create_token(Duration::from_secs(60), "test").await.unwrap();
    let two = start::join(start(dir.path(), "n2"), &one.me().address, &token, knows(2)).await.unwrap();
    let two = Cluster::of(two);
    assert_eq!(meta(&one).cluster_version, 1);
    let refused = one.propose(raise(2), PATIENCE).await.unwrap_err().to_string();
    assert!(refused.contains("node `n1` does not know cluster version 2"), "{refused}");
    one.shutdown().await;

    let one = Cluster::of(start::open(again(dir.path(), "n1"), knows(2)).await.unwrap());
    // Its row says so as soon as there is a quorum, and then the version may rise.
    let (mut changes, both) = (one.changes(), [2, 2]);
    let told = async {
        while members(&one).iter().map(|member| member.cluster_version).ne(both) {
            changes.changed().await;
            let _ = changes.take();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), told).await.expect("n1 says what it knows");
    one.propose(raise(2), PATIENCE).await.unwrap();
    assert_eq!(meta(&one).cluster_version, 2);
    let token = one.create_token(Duration::from_secs(60), "test").await.unwrap();
    let late = start::join(start(dir.path(), "n3"), &one.me().address, &token, knows(1)).await;
    let late = late.err().expect("an older program joined").to_string();
    assert!(late.contains("install a later release"), "{late}");
    one.shutdown().await;
    two.shutdown().await;
    let older = start::open(again(dir.path(), "n1"), knows(1)).await;
    let older = older.err().expect("an older program started").to_string();
    assert!(older.contains("up to 1, and the cluster is at 2"), "{older}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_stops_before_it_applies_a_version_that_it_does_not_know() {
    let knows = |cluster_version| Tuning { cluster_version, ..Tuning::default() };
    let dir = TempDir::new().unwrap();
    let one = Cluster::of(start::init(start(dir.path(), "n1"), "site", knows(1)).await.unwrap());
    // As when a later program ran here, and its tables are behind its log.
    let later = quire_proto::store::UpdateMember { id: 1, cluster_version: Some(2), ..Default::default() };
    one.propose(command::Kind::UpdateMember(later), PATIENCE).await.unwrap();
    let (applied, before) = (one.view().meta(store::key::APPLIED).unwrap(), rows(&one));
    let raise = command::Kind::Upgrade(quire_proto::store::Upgrade { version: 2 });
    one.propose(raise, PATIENCE).await.unwrap_err();
    let standing = until(&one, "stop", |now| now.failed.is_some()).await;
    let why = standing.failed.unwrap_or_default();
    assert!(why.contains("up to 1, and the cluster is at 2: install a later release"), "{why}");
    assert_eq!((one.view().meta(store::key::APPLIED).unwrap(), rows(&one)), (applied, before));
    one.shutdown().await;
    // The later program goes on from there.
    let one = Cluster::of(start::open(again(dir.path(), "n1"), knows(2)).await.unwrap());
    let mut changes = one.changes();
    let raised = async {
        while meta(&one).cluster_version < 2 {
            changes.changed().await;
            let _ = changes.take();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), raised).await.expect("the entry is applied");
    one.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_admitted_proposes_nothing_and_a_leader_says_what_it_acknowledged() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    let (gate, admission) = watch::channel(Admission::Waiting);
    let copy = Proposer { admission: Some(admission), ..two.proposer().clone() };
    let refused = copy.propose(mode("service"), Duration::from_millis(300)).await;
    assert!(matches!(refused, Err(ProposeError::NoQuorum)), "{refused:?}");
    gate.send_replace(Admission::Open);
    let index = copy.propose(mode("service"), PATIENCE).await.unwrap().index;
    let nodes = [&one, &two, &three];
    for node in nodes {
        caught_up(node, index).await;
    }
    // What others remember of a leader is what it says of itself.
    let leads = |node: &&&Cluster| node.watch().borrow().role == Role::Leader;
    let leader = nodes.iter().find(leads).unwrap();
    assert!(leader.acked().get(&leader.me().id).is_some_and(|acked| *acked >= index), "{:?}", leader.acked());
    for node in [one, two, three] {
        node.shutdown().await;
    }
}
