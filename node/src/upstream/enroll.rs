//! Registering the cluster at a Web Admin with a one-time code and a pin.

use std::time::Duration;

use anyhow::{Context as _, bail};
use quire_coordinator::rows;
use quire_proto::store::command::Kind;
use quire_proto::store::{Enroll, UpstreamIdentity};
use quire_proto::upstream::enrollment_client::EnrollmentClient;
use quire_proto::upstream::{CertificateRequest, RegisterRequest};

use super::dial;
use crate::cluster::Cluster;
use crate::tls::{Connector, pin};

/// How long the commits behind an enrolment may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Registers all nodes at once, so that whichever leads next has a certificate, and commits
/// the result; answers the site's name.
///
/// # Errors
/// When the Web Admin cannot be trusted, refuses, or the result cannot be committed.
pub(crate) async fn enroll(
    cluster: Cluster,
    url: String,
    code: String,
    pin_text: String,
) -> anyhow::Result<String> {
    let expected = parse_pin(&pin_text)?;
    let (meta, members) = {
        let tables = cluster.view();
        (rows::meta(&tables)?, rows::members(&tables)?)
    };
    // A site that the Web Admin no longer wants may enrol again, there or elsewhere.
    let refused = meta.link.as_ref().is_some_and(|link| link.state == "refused");
    if let Some(before) = meta.upstream.as_ref().filter(|_| !refused) {
        bail!(
            "the cluster is enrolled already, at {} as site {}: revoke that site there first",
            before.url,
            before.site
        );
    }
    let channel = dial(&url, Connector::pinned(expected)?).await.with_context(|| {
        format!("the Web Admin at {url} cannot be trusted or reached: check --upstream and --pin")
    })?;
    let requests = members
        .iter()
        .filter(|member| !member.upstream_csr_der.is_empty())
        .map(|member| CertificateRequest {
            node: member.id,
            name: member.name.clone(),
            csr_der: member.upstream_csr_der.clone(),
        })
        .collect();
    let request = RegisterRequest {
        code,
        cluster_id: meta.cluster_id.clone(),
        cluster_name: meta.cluster_name.clone(),
        requests,
    };
    let reply = EnrollmentClient::new(channel)
        .register(request)
        .await
        .map_err(|status| anyhow::anyhow!("the Web Admin refuses: {}", status.message()))?
        .into_inner();
    if pin(&reply.ca_certificate_der) != expected {
        bail!("the Web Admin answered with another CA than the pinned one");
    }
    let identities = reply
        .certificates
        .iter()
        .map(|issued| UpstreamIdentity { node: issued.node, certificate_der: issued.certificate_der.clone() })
        .collect();
    let command = Enroll {
        identities,
        url,
        pin_sha256: expected.to_vec().into(),
        site: reply.site.clone(),
        ca_certificate_der: reply.ca_certificate_der,
        by: "operator".to_owned(),
    };
    cluster.propose(Kind::Enroll(command), PATIENCE).await?;
    Ok(reply.site)
}

fn parse_pin(text: &str) -> anyhow::Result<[u8; 32]> {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    data_encoding::HEXLOWER_PERMISSIVE
        .decode(hex.as_bytes())
        .ok()
        .and_then(|octets| octets.try_into().ok())
        .with_context(|| format!("`{text}` is not a pin: expected sha256: and 64 hexadecimal digits"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_parsed_at_the_door() {
        assert_eq!(parse_pin(&format!("sha256:{}", "0f".repeat(32))).unwrap(), [0x0f; 32]);
        for bad in ["", "0f0f", "sha256:", "sha256:zz", "md5:0f", &format!("sha256:{}", "0f".repeat(31))] {
            assert!(parse_pin(bad).is_err(), "{bad}");
        }
    }
}
