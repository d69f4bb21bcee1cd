//! What others know a node by and what it opens secrets with, while it runs: in memory, in the ends of TLS, and in the
//! data directory, which always has it first.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zeroize::Zeroizing;

use super::OpenError;
use super::authorities::Authorities;
use super::directory::{CA_CERTIFICATE, CLUSTER_KEY, Card, Directory, NODE_CERTIFICATE, NODE_KEY};
use super::keys::{Keys, Octets};
use super::parts::Parts;
use crate::tls::{Acceptor, Connector, Identity, Key, TlsError, Trust, pin};

/// A running node's own certificate and keys; holds the directory's lock.
pub(crate) struct Vault {
    directory: Directory,
    keys: Keys,
    identity: Arc<Identity>,
    trust: Arc<Trust>,
    held: Mutex<Held>,
}

struct Held {
    card: Card,
    /// PKCS#8.
    key: Zeroizing<Vec<u8>>,
    certificate: Vec<u8>,
    authorities: Authorities,
}

fn unusable(reason: TlsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

impl Vault {
    pub(crate) fn new(parts: &Parts, directory: Directory) -> Result<Self, OpenError> {
        let during = || OpenError::during("prepare TLS");
        let chain = parts.authorities.chain(&parts.certificate);
        let identity = Identity::new(&chain, &parts.node_key).map_err(during())?;
        let trust = Trust::new(&parts.authorities.roots()).map_err(during())?;
        let held = Held {
            card: parts.card.clone(),
            key: parts.node_key.to_pkcs8(),
            certificate: parts.certificate.clone(),
            authorities: parts.authorities.clone(),
        };
        Ok(Vault { directory, keys: parts.keys.clone(), identity, trust, held: Mutex::new(held) })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Both ends of the connections between nodes; they follow what changes here.
    pub(crate) fn tls(&self) -> Result<(Acceptor, Connector), OpenError> {
        let during = || OpenError::during("prepare TLS");
        let acceptor = Acceptor::new(self.identity.clone(), self.trust.clone()).map_err(during())?;
        let connector = Connector::new(Some(self.identity.clone()), self.trust.clone()).map_err(during())?;
        Ok((acceptor, connector))
    }

    pub(crate) fn path(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn trust(&self) -> Arc<Trust> {
        self.trust.clone()
    }

    /// What this node shows.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        self.held().certificate.clone()
    }

    pub(crate) fn authorities(&self) -> Authorities {
        self.held().authorities.clone()
    }

    /// SHA-256 of the CA that signed what this node shows: by it, and by no later one, it can be reached.
    pub(crate) fn ca_pin(&self) -> [u8; 32] {
        let held = self.held();
        pin(held.authorities.signer_of(&held.certificate).unwrap_or_default())
    }

    /// The key behind what this node shows.
    pub(crate) fn key(&self) -> Result<Key, TlsError> {
        Key::from_pkcs8(&self.held().key)
    }

    /// Trusts these CAs alone from now on. Blocks on the disk.
    pub(crate) fn trust_in(&self, authorities: Authorities) -> io::Result<()> {
        let mut held = self.held();
        let key = Key::from_pkcs8(&held.key).map_err(unusable)?;
        self.directory.settle(&mut held.card, &[(CA_CERTIFICATE, &authorities.octets())])?;
        self.trust.replace(&authorities.roots()).map_err(unusable)?;
        self.identity.replace(&authorities.chain(&held.certificate), &key).map_err(unusable)?;
        held.authorities = authorities;
        Ok(())
    }

    /// Shows another certificate from the next connection on. Blocks on the disk.
    pub(crate) fn show(&self, certificate: Vec<u8>, key: &Key) -> io::Result<()> {
        let mut held = self.held();
        let octets = key.to_pkcs8();
        self.directory.settle(&mut held.card, &[(NODE_KEY, &octets), (NODE_CERTIFICATE, &certificate)])?;
        self.identity.replace(&held.authorities.chain(&certificate), key).map_err(unusable)?;
        (held.key, held.certificate) = (octets, certificate);
        Ok(())
    }

    /// Keeps another generation of the cluster key. Blocks on the disk.
    pub(crate) fn keep(&self, generation: u64, key: Octets) -> io::Result<()> {
        self.change_keys(|keys| keys.add(generation, key))
    }

    /// Forgets the generations before one that is here. Blocks on the disk.
    pub(crate) fn forget_before(&self, generation: u64) -> io::Result<()> {
        self.change_keys(|keys| keys.forget_before(generation))
    }

    fn change_keys(&self, change: impl FnOnce(&Keys)) -> io::Result<()> {
        let mut held = self.held();
        let next = self.keys.copy();
        change(&next);
        self.directory.settle(&mut held.card, &[(CLUSTER_KEY, &next.octets())])?;
        self.keys.become_as(&next);
        Ok(())
    }
}
