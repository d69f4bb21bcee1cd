//! From the settings' credentials to those that the SNMP engine speaks with.

use std::sync::Arc;

use quire_coordinator::settings::{AuthProtocol, PrivProtocol, Settings, SnmpCredential, V3User};

use crate::snmp::{self, Credential, KeyExtension, V3};

/// In the order in which they are tried: all v2c, then v1, then v3.
pub(super) fn of(settings: &Settings) -> Vec<Arc<Credential>> {
    let rank = |credential: &SnmpCredential| match credential {
        SnmpCredential::V2c(_) => 0,
        SnmpCredential::V1(_) => 1,
        SnmpCredential::V3(_) => 2,
    };
    let mut configured: Vec<&SnmpCredential> = settings.snmp.iter().collect();
    configured.sort_by_key(|credential| rank(credential));
    configured
        .into_iter()
        .filter_map(|credential| match convert(credential) {
            Ok(credential) => Some(Arc::new(credential)),
            Err(error) => {
                // Settings are checked before they are committed, so a newer version wrote these.
                tracing::warn!(%error, "a credential of the settings is left out");
                None
            }
        })
        .collect()
}

fn convert(credential: &SnmpCredential) -> Result<Credential, snmp::BadCredential> {
    match credential {
        SnmpCredential::V1(community) => Credential::v1(community.expose()),
        SnmpCredential::V2c(community) => Credential::v2c(community.expose()),
        SnmpCredential::V3(user) => v3(user),
    }
}

fn v3(user: &V3User) -> Result<Credential, snmp::BadCredential> {
    Credential::v3(V3 {
        user: &user.user,
        auth: user.auth.as_ref().map(|(protocol, pass)| (auth(*protocol), pass.expose())),
        privacy: user.privacy.as_ref().map(|(protocol, pass)| (privacy(*protocol), pass.expose())),
        extension: KeyExtension::default(),
        context: "",
    })
}

fn auth(protocol: AuthProtocol) -> snmp::AuthProtocol {
    match protocol {
        AuthProtocol::Md5 => snmp::AuthProtocol::Md5,
        AuthProtocol::Sha1 => snmp::AuthProtocol::Sha1,
        AuthProtocol::Sha224 => snmp::AuthProtocol::Sha224,
        AuthProtocol::Sha256 => snmp::AuthProtocol::Sha256,
        AuthProtocol::Sha384 => snmp::AuthProtocol::Sha384,
        AuthProtocol::Sha512 => snmp::AuthProtocol::Sha512,
    }
}

fn privacy(protocol: PrivProtocol) -> snmp::PrivProtocol {
    match protocol {
        PrivProtocol::Des => snmp::PrivProtocol::Des,
        PrivProtocol::Aes128 => snmp::PrivProtocol::Aes128,
        PrivProtocol::Aes192 => snmp::PrivProtocol::Aes192,
        PrivProtocol::Aes256 => snmp::PrivProtocol::Aes256,
    }
}
