//! Certificates that end, another cluster key, another CA: with real nodes in this process, whose leader is driven here.

use std::collections::BTreeSet;

use quire_coordinator::rotation;
use quire_proto::id::Epoch;
use quire_proto::store::rotate::What;
use quire_proto::store::{Claim, PutSettings, RemoveMember, Rotate, RotationRow, outcome};

use super::members::{caught_up, join, says, speak, three};
use super::*;
use crate::cluster::token::Token;
use crate::tls::{Authority, Identity, Key, pin, said_of};

const POLL: Duration = Duration::from_millis(50);

/// Polls until `look` says so; only a hang can make it fail.
async fn wait(what: &str, mut look: impl FnMut() -> bool) {
    let waited = async {
        while !look() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waited)
        .await
        .unwrap_or_else(|_| panic!("waited for: {what}"));
}

fn row(cluster: &Cluster) -> RotationRow {
    rotation::row(&cluster.view()).unwrap()
}

async fn ask(cluster: &Cluster, what: What) {
    let rotate = Rotate { what: what.into(), by: "test".into() };
    cluster.propose(command::Kind::Rotate(rotate), PATIENCE).await.unwrap();
}

/// Does what a leader does until `done` says so of its tables.
async fn drive(nodes: &[&Cluster], what: &str, done: impl Fn(&Cluster) -> bool) {
    let alive: BTreeSet<NodeId> = nodes.iter().map(|node| node.me().id).collect();
    let driven = async {
        let mut led = None;
        loop {
            let leads = |node: &&&Cluster| node.watch().borrow().role == Role::Leader;
            let Some(leader) = nodes.iter().find(leads) else {
                tokio::time::sleep(POLL).await;
                continue;
            };
            if done(leader) {
                return;
            }
            if led.map(|(node, _)| node) != Some(leader.me().id) {
                let claim = Claim { node: leader.me().id.0, ..Claim::default() };
                let claimed = leader.propose_here(command::Kind::Claim(claim), PATIENCE).await;
                if let Ok(Outcome { result: Some(outcome::Result::Epoch(epoch)), .. }) = claimed {
                    led = Some((leader.me().id, Epoch(epoch)));
                }
            }
            if let Some((_, epoch)) = led {
                leader.rotate(epoch, &alive).await.unwrap();
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), driven)
        .await
        .unwrap_or_else(|_| panic!("waited for: {what}"));
}

fn community(cluster: &Cluster) -> Option<String> {
    let settings = cluster.settings().ok()??;
    Some(settings.snmp[0].community()?.expose().to_owned())
}

fn secret(word: &str) -> String {
    format!("[[snmp]]\nversion = \"2c\"\ncommunity = \"{word}\"\n")
}

fn in_force(cluster: &Cluster) -> u64 {
    rotation::in_force(&row(cluster))
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_is_in_force_everywhere_and_never_in_log_or_tables() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    let nodes = [&one, &two, &three];
    one.put_settings(&secret("first"), "test", "", PATIENCE).await.unwrap();
    ask(&two, What::ClusterKey).await;
    drive(&nodes, "the second key", |leader| in_force(leader) == 2).await;
    let key = one.keys().key(2).unwrap();
    for node in nodes {
        wait("the second key's entry", || in_force(node) == 2).await;
        assert_eq!(node.keys().key(2).unwrap(), key, "each has it before it is in force");
        assert_eq!(community(node).as_deref(), Some("first"));
        let sealed = meta(node).settings_toml;
        assert!(super::super::secrets(&one.keys().copy(), &sealed).len() == 1 && !sealed.contains("first"));
        let found = |octets: &[u8]| octets.windows(32).any(|window| window == key.as_slice());
        assert!(rows(node).iter().all(|(_, _, value)| !found(value)), "it is in the tables");
    }
    // The first one opens none of it any more.
    let first = Keys::from_octets(one.keys().key(1).unwrap().as_slice()).unwrap();
    assert_eq!(super::super::secrets(&first, &meta(&one).settings_toml).len(), 0);
    let purpose = membership::ca_purpose(&meta(&one).cluster_id);
    assert_eq!(first.open(&meta(&one).ca_private_key_sealed, &purpose), Err(KeyError::Missing(2)));

    // Settings that were sealed a moment before are refused, and sealed again.
    let (stale, _) = one.seal_settings(&secret("second"), "test").unwrap();
    let stale = PutSettings { key_generation: 1, ..stale };
    let refused = one.propose(command::Kind::PutSettings(stale), PATIENCE).await.unwrap_err();
    assert_eq!(refused.to_string(), rotation::SEALED_OTHERWISE);
    three.put_settings(&secret("second"), "test", "", PATIENCE).await.unwrap();
    let fourth = join(&dir, "n4", &two).await;
    one.add_learner(&members(&one).into_iter().find(|m| m.id == fourth.me().id.0).unwrap()).await.unwrap();
    for node in [&one, &two, &three, &fourth] {
        wait("the later settings", || community(node).as_deref() == Some("second")).await;
    }
    for node in [one, two, three, fourth] {
        node.shutdown().await;
    }
}

/// The CA in force with its key, as a thief has it who has the cluster key and the tables.
fn stolen(from: &Cluster) -> Authority {
    let meta = meta(from);
    let key =
        from.keys().open(&meta.ca_private_key_sealed, &membership::ca_purpose(&meta.cluster_id)).unwrap();
    Authority::restore(&meta.ca_certificate_der, &key).unwrap()
}

/// A certificate that names `node`, for a key of one's own.
fn forged(authority: &Authority, from: &Cluster, node: u64) -> Option<Arc<Identity>> {
    let key = Key::generate().unwrap();
    let names = membership::names(&meta(from).cluster_id, node);
    let leaf =
        authority.sign(&key.request("x").unwrap(), &names, keeper::until(&meta(from), keeper::LIFE)).unwrap();
    Some(Identity::new(&[&leaf, authority.certificate()], &key).unwrap())
}

fn envelope(from: u64, to: &Cluster) -> quire_proto::cluster::Envelope {
    quire_proto::cluster::Envelope {
        cluster_id: to.me().cluster_id.clone(),
        from,
        to: to.me().id.0,
        incarnation: to.me().incarnation.clone(),
        wire_version: quire_proto::WIRE_VERSION,
    }
}

/// What the node at `to` answers who wants a cluster key.
async fn wants_key(
    to: &Cluster,
    identity: Option<Arc<Identity>>,
    from: u64,
    generation: u64,
) -> Result<Bytes, tonic::Status> {
    let request = quire_proto::cluster::ClusterKeyRequest { envelope: Some(envelope(from, to)), generation };
    Ok(speak(to, identity).cluster_key(request).await?.into_inner().key)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cas_key_alone_opens_no_door_to_the_cluster_key() {
    use tonic::Code;
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    let third = three.me().id.0;
    told(&[&one, &two, &three]).await;
    let thief = stolen(&three);
    let own = (three.inner.vault.certificate(), three.inner.vault.key().unwrap());
    let own = Identity::new(&[&own.0, thief.certificate()], &own.1).unwrap();
    assert!(wants_key(&one, Some(own.clone()), third, 1).await.is_ok(), "a member is given it");
    for node in [1, two.me().id.0, third] {
        let refused = wants_key(&two, forged(&thief, &two, node), node, 1).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    assert_eq!(wants_key(&one, None, third, 1).await.unwrap_err().code(), Code::Unauthenticated);
    for to in [&one, &two] {
        let refused = attends(to, forged(&thief, &two, third), third).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "it would shut the member out: {refused}");
    }
    let later = wants_key(&one, Some(own.clone()), third, 2).await.unwrap_err();
    assert_eq!(later.code(), Code::Unavailable, "nobody wants that one: {later}");

    let gone = RemoveMember { id: third, by: "test".into() };
    one.remove(three.me().id).await.unwrap();
    let removed = one.propose(command::Kind::RemoveMember(gone), PATIENCE).await.unwrap();
    caught_up(&two, removed.index).await;
    ask(&one, What::ClusterKey).await;
    drive(&[&one, &two], "the second key", |leader| in_force(leader) == 2).await;
    for node in [&one, &two] {
        let refused = wants_key(node, Some(own.clone()), third, 2).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    }
    assert!(three.keys().key(2).is_none());
    for node in [one, two, three] {
        node.shutdown().await;
    }
}

/// What the node at `to` answers who says that `from` has been started more often than it knows of.
async fn attends(to: &Cluster, identity: Option<Arc<Identity>>, from: u64) -> Result<(), tonic::Status> {
    use quire_proto::cluster::AttendRequest;
    let envelope = Some(envelope(from, to));
    let request = AttendRequest { envelope, session: vec![9; 16].into(), boot: 1_000, last: 1_000 };
    speak(to, identity).attend(request).await.map(|_| ())
}

/// A node is known by its key from the entry on that made it a member, before it has said or done anything.
#[tokio::test(flavor = "multi_thread")]
async fn who_has_just_joined_is_nobody_else() {
    use tonic::Code;
    let dir = TempDir::new().unwrap();
    let one = init(&dir, "n1").await;
    let first = members(&one).remove(0).certificate_der;
    assert_eq!(said_of(&first).unwrap().0.public_key, said_of(&one.certificate()).unwrap().0.public_key);
    let token = one.create_token(Duration::from_secs(60), "test").await.unwrap();
    let (key, other) = (Key::generate().unwrap(), Key::generate().unwrap());
    let request = |key: &Key| quire_proto::cluster::JoinRequest {
        token_id: Token::parse(&token).unwrap().id,
        token_secret: Bytes::copy_from_slice(&Token::parse(&token).unwrap().secret),
        csr_der: key.request("x").unwrap().into(),
        name: "n2".into(),
        zone: "hq".into(),
        address: "127.0.0.1:1".into(),
        incarnation: vec![2; 16].into(),
        wire_version: quire_proto::WIRE_VERSION,
        cluster_version: quire_proto::CLUSTER_VERSION,
        ..quire_proto::cluster::JoinRequest::default()
    };
    let (address, parsed) = (one.me().address.clone(), Token::parse(&token).unwrap());
    let reply = membership::ask(&address, &parsed, request(&key)).await.unwrap();
    let again = membership::ask(&address, &parsed, request(&key)).await.unwrap();
    assert_eq!(again.node, reply.node, "the same join, whose answer was lost");
    let stolen_token = membership::ask(&address, &parsed, request(&other)).await;
    assert!(matches!(stolen_token, Err(OpenError::Refused(_))), "{stolen_token:?}");
    let thief = stolen(&one);
    let refused = wants_key(&one, forged(&thief, &one, reply.node), reply.node, 1).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let own = Identity::new(&[&reply.certificate_der, thief.certificate()], &key).unwrap();
    assert!(wants_key(&one, Some(own), reply.node, 1).await.is_ok());
    one.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_ca_takes_over_and_what_the_old_one_signed_is_refused() {
    use tonic::Code;
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    let nodes = [&one, &two, &three];
    let (old, unused) = (stolen(&one), one.create_token(Duration::from_secs(600), "test").await.unwrap());
    let second = two.me().id.0;
    ask(&three, What::Authority).await;
    drive(&nodes, "the new CA alone", |leader| row(leader).ca_index > 0).await;
    let ca = meta(&one).ca_certificate_der;
    assert_ne!(pin(&ca), pin(old.certificate()));
    for node in nodes {
        wait("the new CA to be trusted alone", || node.inner.vault.authorities().roots() == [&ca[..]]).await;
        assert_eq!(node.inner.vault.ca_pin(), pin(&ca));
    }
    // As a stranger: the old CA is not even spoken to. The new one's key is sealed, and no thief has it.
    for node in nodes {
        let refused = says(node, forged(&old, node, second), envelope(second, node)).await;
        assert!(!matches!(refused.code(), Code::InvalidArgument), "{refused}");
    }
    let late = Cluster::join(start(dir.path(), "n4"), &one.me().address, &unused).await;
    let late = late.expect_err("an old token").to_string();
    assert!(late.contains("its CA was changed since") && late.contains("quire token create"), "{late}");
    let index = three.propose(mode("service"), PATIENCE).await.unwrap().index;
    for node in nodes {
        caught_up(node, index).await;
    }
    let fourth = join(&dir, "n4", &three).await;
    assert_eq!(fourth.inner.vault.ca_pin(), pin(&ca));
    one.shutdown().await;
    let index = two.propose(mode("normal"), PATIENCE).await.unwrap().index;
    caught_up(&three, index).await;
    let one = Cluster::open(again(dir.path(), "n1")).await.unwrap();
    caught_up(&one, index).await;
    for node in [one, two, three, fourth] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_away_comes_back_to_another_key_and_another_ca() {
    let dir = TempDir::new().unwrap();
    let [one, two, three] = three(&dir).await;
    let before = one.create_token(Duration::from_secs(600), "test").await.unwrap();
    three.shutdown().await;
    let left = [&one, &two];
    ask(&one, What::Authority).await;
    ask(&one, What::ClusterKey).await;
    one.put_settings(&secret("meanwhile"), "test", "", PATIENCE).await.unwrap();
    drive(&left, "both that live to move", |leader| {
        let lacking = rotation::lacking_ca(&row(leader), &members(leader)).len();
        in_force(leader) == 2 && rotation::next_ca(&row(leader)).is_some() && lacking == 1
    })
    .await;
    one.put_settings(&secret("later"), "test", "", PATIENCE).await.unwrap();
    assert_eq!(row(&one).ca_index, 0, "the old one counts as long as a member knows no other");
    // Whoever comes with a token of before still finds the CA that it names.
    let fourth = Cluster::join(start(dir.path(), "n4"), &two.me().address, &before).await.unwrap();
    assert_eq!(fourth.inner.vault.authorities().roots().len(), 2);
    one.add_learner(&members(&one).into_iter().find(|m| m.id == fourth.me().id.0).unwrap()).await.unwrap();

    let three = Cluster::open(again(dir.path(), "n3")).await.unwrap();
    wait("the settings of meanwhile", || community(&three).as_deref() == Some("later")).await;
    let nodes = [&one, &two, &three, &fourth];
    drive(&nodes, "the new CA alone", |leader| row(leader).ca_index > 0).await;
    let index = three.propose(mode("service"), PATIENCE).await.unwrap().index;
    for node in [&one, &two] {
        caught_up(node, index).await;
    }
    for node in [one, two, three, fourth] {
        node.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_renewed_before_they_end_and_by_who_was_off_meanwhile() {
    let dir = TempDir::new().unwrap();
    let short = || Tuning { certificate_life: Duration::from_secs(6), ..Tuning::default() };
    let one = Cluster::of(start::init(start(dir.path(), "n1"), "site", short()).await.unwrap());
    let token = one.create_token(Duration::from_secs(60), "test").await.unwrap();
    let two = start::join(start(dir.path(), "n2"), &one.me().address, &token, short()).await.unwrap();
    let two = Cluster::of(two);
    one.add_learner(&members(&one).into_iter().find(|m| m.id == two.me().id.0).unwrap()).await.unwrap();
    let shown = |node: &Cluster| said_of(&node.certificate()).unwrap().0;
    let first = [shown(&one), shown(&two)];
    for (node, first) in [&one, &two].into_iter().zip(&first) {
        wait("a new certificate", || shown(node).until > first.until).await;
        let own = || members(&one).into_iter().find(|m| m.id == node.me().id.0).unwrap();
        wait("it to be told", || own().certificate_der == node.certificate()).await;
        assert_ne!(shown(node).public_key, first.public_key, "a new key, too");
    }
    let index = two.propose(mode("service"), PATIENCE).await.unwrap().index;
    caught_up(&two, index).await;

    two.shutdown().await;
    let path = dir.path().join("n2").join("node.crt");
    let on_disk = || said_of(&std::fs::read(&path).unwrap()).unwrap().0;
    let ended = on_disk();
    wait("its end", || crate::clock::now() > ended.until).await;
    let two = Cluster::of(start::open(again(dir.path(), "n2"), short()).await.unwrap());
    assert!(on_disk().until > ended.until);
    let index = two.propose(mode("normal"), PATIENCE).await.unwrap().index;
    caught_up(&two, index).await;
    for node in [one, two] {
        node.shutdown().await;
    }
}
