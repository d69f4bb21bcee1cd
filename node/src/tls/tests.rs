use super::*;

/// Long after these tests.
const LATE: Millis = Millis(4_000_000_000_000);

fn trust(authority: &[u8]) -> Arc<Trust> {
    Trust::new(&[authority]).unwrap()
}

struct End {
    ca: Vec<u8>,
    identity: Arc<Identity>,
    leaf: Vec<u8>,
}

fn end(authority: &Authority, node: u64) -> End {
    let key = Key::generate().unwrap();
    let names = Names {
        common_name: "ignored".into(),
        dns: format!("node-{node}.quire"),
        uri: format!("quire://00/node/{node}"),
    };
    let leaf = authority.sign(&key.request("whatever it says").unwrap(), &names, LATE).unwrap();
    let ca = authority.certificate().to_vec();
    End { identity: Identity::new(&[&leaf, &ca], &key).unwrap(), ca, leaf }
}

/// True when both ends agreed and the client presented a certificate.
async fn shake(acceptor: Acceptor, connector: Connector, name: &str) -> Result<bool, TlsError> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (server, client) = tokio::join!(acceptor.accept(near), connector.connect(name, far));
    let server = server?;
    client?;
    Ok(server.get_ref().1.peer_certificates().is_some())
}

#[tokio::test]
async fn both_ends_know_each_other_by_the_same_authority() {
    let authority = Authority::generate("site").unwrap();
    let (one, two) = (end(&authority, 1), end(&authority, 2));
    let acceptor = Acceptor::new(one.identity.clone(), trust(&one.ca)).unwrap();
    let connector = Connector::new(Some(two.identity.clone()), trust(&two.ca)).unwrap();
    assert!(shake(acceptor.clone(), connector.clone(), "node-1.quire").await.unwrap());
    assert!(shake(acceptor, connector, "node-3.quire").await.is_err());
    assert_eq!(uri_of(&two.leaf).as_deref(), Some("quire://00/node/2"));
}

#[tokio::test]
async fn another_authoritys_certificate_is_refused() {
    let (ours, theirs) = (Authority::generate("a").unwrap(), Authority::generate("b").unwrap());
    let (one, foreign) = (end(&ours, 1), end(&theirs, 2));
    let acceptor = Acceptor::new(one.identity.clone(), trust(&one.ca)).unwrap();
    let connector = Connector::new(Some(foreign.identity), trust(&one.ca)).unwrap();
    assert!(shake(acceptor, connector, "node-1.quire").await.is_err());
}

#[tokio::test]
async fn a_pin_accepts_its_own_authority_alone() {
    let (ours, theirs) = (Authority::generate("a").unwrap(), Authority::generate("b").unwrap());
    let one = end(&ours, 1);
    let acceptor = Acceptor::new(one.identity.clone(), trust(&one.ca)).unwrap();
    let right = Connector::pinned(pin(ours.certificate())).unwrap();
    assert!(!shake(acceptor.clone(), right, "any.quire").await.unwrap());
    let wrong = Connector::pinned(pin(theirs.certificate())).unwrap();
    assert!(shake(acceptor, wrong, "any.quire").await.is_err());
}

#[tokio::test]
async fn a_chain_that_only_shows_the_pinned_authority_is_refused() {
    // The impostor appends the real CA to a leaf of its own.
    let (ours, theirs) = (Authority::generate("a").unwrap(), Authority::generate("b").unwrap());
    let key = Key::generate().unwrap();
    let names =
        Names { common_name: "x".into(), dns: "node-1.quire".into(), uri: "quire://00/node/1".into() };
    let leaf = theirs.sign(&key.request("x").unwrap(), &names, LATE).unwrap();
    let identity = Identity::new(&[&leaf, ours.certificate()], &key).unwrap();
    let acceptor = Acceptor::new(identity, trust(ours.certificate())).unwrap();
    let connector = Connector::pinned(pin(ours.certificate())).unwrap();
    assert!(shake(acceptor, connector, "node-1.quire").await.is_err());
}

#[tokio::test]
async fn a_replaced_identity_is_presented_from_then_on() {
    let (old, new) = (Authority::generate("a").unwrap(), Authority::generate("b").unwrap());
    let one = end(&old, 1);
    let acceptor = Acceptor::new(one.identity.clone(), trust(&one.ca)).unwrap();
    let connector = Connector::new(None, trust(new.certificate())).unwrap();
    assert!(shake(acceptor.clone(), connector.clone(), "node-1.quire").await.is_err());
    let key = Key::generate().unwrap();
    let names =
        Names { common_name: "x".into(), dns: "node-1.quire".into(), uri: "quire://00/node/1".into() };
    let leaf = new.sign(&key.request("x").unwrap(), &names, LATE).unwrap();
    one.identity.replace(&[&leaf, new.certificate()], &key).unwrap();
    assert!(shake(acceptor, connector, "node-1.quire").await.is_ok());
}

#[test]
fn a_leaf_counts_until_its_end_also_on_connections_that_stand() {
    let authority = Authority::generate("a").unwrap();
    let key = Key::generate().unwrap();
    let names = Names { common_name: "x".into(), dns: "x.quire".into(), uri: "quire://00/node/1".into() };
    let now = crate::clock::now();
    let end = Millis(now.0 / 1_000 * 1_000 + 60_000);
    let chain = [CertificateDer::from(authority.sign(&key.request("x").unwrap(), &names, end).unwrap())];
    let trust = trust(authority.certificate());
    assert!(trust.vouches(&chain, now) && trust.vouches(&chain, end));
    assert!(!trust.vouches(&chain, Millis(end.0 + 1_000)));
}

#[test]
fn a_key_that_is_not_the_certificates_is_refused() {
    let authority = Authority::generate("a").unwrap();
    let key = Key::generate().unwrap();
    let names = Names { common_name: "x".into(), dns: "x.quire".into(), uri: "quire://00/node/1".into() };
    let leaf = authority.sign(&key.request("x").unwrap(), &names, LATE).unwrap();
    assert!(Identity::new(&[&leaf], &Key::generate().unwrap()).is_err());
}

#[test]
fn an_authority_survives_being_stored() {
    let authority = Authority::generate("a").unwrap();
    let restored = Authority::restore(authority.certificate(), &authority.private_key()).unwrap();
    let names = Names { common_name: "x".into(), dns: "x.quire".into(), uri: "quire://00/node/9".into() };
    let leaf = restored.sign(&Key::generate().unwrap().request("x").unwrap(), &names, LATE).unwrap();
    assert_eq!(uri_of(&leaf).as_deref(), Some("quire://00/node/9"));
    assert!(restored.sign(b"no request", &names, LATE).is_err());
}
