//! What makes a node: its card, its keys, its certificates; in memory, and to and from the data directory.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use bytes::Bytes;
use data_encoding::HEXLOWER;

use super::authorities::Authorities;
use super::directory::{
    CA_CERTIFICATE, CLUSTER_KEY, Card, Directory, NODE_CERTIFICATE, NODE_KEY, UPSTREAM_KEY, octets16,
};
use super::keys::{self, Keys};
use super::place::Place;
use super::{Me, OpenError};
use crate::tls::Key;

/// What a node needs to run.
pub(crate) struct Parts {
    pub(crate) card: Card,
    pub(crate) keys: Keys,
    pub(crate) node_key: Key,
    pub(crate) upstream_key: Key,
    pub(crate) certificate: Vec<u8>,
    pub(crate) authorities: Authorities,
}

/// What a new node is called, and its own secrets: the same for the first and for one that joins.
pub(crate) struct Newborn {
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) witness: bool,
    pub(crate) node_key: Key,
    pub(crate) upstream_key: Key,
    pub(crate) incarnation: Bytes,
}

impl Newborn {
    /// Draws keys and incarnation.
    pub(crate) fn new((name, zone): (String, String), witness: bool) -> Result<Self, OpenError> {
        let key = || Key::generate().map_err(OpenError::during("generate a key"));
        Ok(Newborn { name, zone, witness, node_key: key()?, upstream_key: key()?, incarnation: random16()? })
    }

    /// The request for a certificate of `key`.
    pub(crate) fn request(&self, key: &Key) -> Result<Vec<u8>, OpenError> {
        key.request(&self.name).map_err(OpenError::during("write a certificate request"))
    }

    /// `node.json` of the node that this becomes.
    pub(crate) fn card(&self, id: u64, cluster: (&[u8], &str), place: &Place) -> Card {
        Card {
            format: 0,
            id,
            name: self.name.clone(),
            zone: self.zone.clone(),
            listen: place.listen.to_string(),
            advertise: place.advertise.clone(),
            witness: self.witness,
            cluster_id: HEXLOWER.encode(cluster.0),
            cluster_name: cluster.1.to_owned(),
            incarnation: HEXLOWER.encode(&self.incarnation),
            files: BTreeMap::new(),
        }
    }
}

/// 16 random octets: of a cluster, a directory, a process.
pub(crate) fn random16() -> Result<Bytes, OpenError> {
    let octets = keys::random::<16>().map_err(OpenError::during("draw random octets"))?;
    Ok(Bytes::copy_from_slice(octets.as_slice()))
}

impl Parts {
    /// Who this node is when it listens at `listen`.
    pub(crate) fn me(&self, listen: SocketAddr) -> Result<Me, OpenError> {
        let octets = |hex: &str| {
            octets16(hex)
                .map(|octets| Bytes::copy_from_slice(&octets))
                .ok_or_else(|| OpenError::Address("node.json holds a malformed id".into()))
        };
        Ok(Me {
            id: quire_proto::id::NodeId(self.card.id),
            name: self.card.name.clone(),
            zone: self.card.zone.clone(),
            address: self.card.advertise.clone(),
            listen,
            witness: self.card.witness,
            cluster_id: octets(&self.card.cluster_id)?,
            cluster_name: self.card.cluster_name.clone(),
            incarnation: octets(&self.card.incarnation)?,
        })
    }

    /// Writes everything to the directory; from here on it holds a node.
    pub(crate) fn settle(&mut self, directory: &Directory) -> Result<(), OpenError> {
        let (node_key, upstream_key) = (self.node_key.to_pkcs8(), self.upstream_key.to_pkcs8());
        let (authorities, keys) = (self.authorities.octets(), self.keys.octets());
        let files: [(&str, &[u8]); 5] = [
            (NODE_KEY, &node_key),
            (NODE_CERTIFICATE, &self.certificate),
            (CA_CERTIFICATE, &authorities),
            (CLUSTER_KEY, &keys),
            (UPSTREAM_KEY, &upstream_key),
        ];
        directory
            .settle(&mut self.card, &files)
            .map_err(|reason| OpenError::Directory { path: directory.path().to_owned(), reason })
    }

    /// Reads everything from the directory.
    pub(crate) fn load(directory: &Directory) -> Result<Self, OpenError> {
        let card = directory.card()?;
        let damaged =
            |name: &str, reason: String| OpenError::Damaged { file: directory.path().join(name), reason };
        let key = |name: &str| -> Result<Key, OpenError> {
            Key::from_pkcs8(&directory.file(&card, name)?).map_err(|error| damaged(name, error.to_string()))
        };
        let keys = Keys::from_octets(&directory.file(&card, CLUSTER_KEY)?)
            .ok_or_else(|| damaged(CLUSTER_KEY, "it holds no key".into()))?;
        let authorities = Authorities::parse(&directory.file(&card, CA_CERTIFICATE)?)
            .ok_or_else(|| damaged(CA_CERTIFICATE, "it holds no CA certificate".into()))?;
        Ok(Parts {
            keys,
            node_key: key(NODE_KEY)?,
            upstream_key: key(UPSTREAM_KEY)?,
            certificate: directory.file(&card, NODE_CERTIFICATE)?.to_vec(),
            authorities,
            card,
        })
    }
}
