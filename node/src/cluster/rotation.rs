//! The leader's part in changing the cluster key and the CA: it makes what the coordinator says is next, and commits it
//! under its claim. What fails is tried again at its next look, by whoever leads then.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use quire_coordinator::rotation::{self, Scene, Step};
use quire_coordinator::rows;
use quire_proto::id::{Epoch, Millis, NodeId};
use quire_proto::store::command::Kind;
use quire_proto::store::{BeginCa, BeginKey, FinishCa, Meta, Reseal, RotationRow};
use tracing::info;

use super::Cluster;
use super::keeper::authority;
use super::keys::{self, Octets};
use super::membership::ca_purpose;
use super::raft::away;
use super::settings::reseal;
use crate::clock;
use crate::tls::{Authority, pin};

/// How long one commit may take; the claim must outlive it.
const PATIENCE: Duration = Duration::from_secs(2);

impl Cluster {
    /// Does what is next of a change of the cluster key or of the CA, as the leader with this claim; `alive` are those
    /// that answer.
    pub(crate) async fn rotate(&self, claim: Epoch, alive: &BTreeSet<NodeId>) -> anyhow::Result<()> {
        let view = self.view();
        let row = rotation::row(&view)?;
        if row.key.is_none() && row.ca.is_none() {
            return Ok(());
        }
        let (meta, members) = (rows::meta(&view)?, rows::members(&view)?);
        drop(view);
        let voters = self.watch().borrow().voters.clone();
        let has = |(generation, hash): (u64, &Bytes)| self.keys().has(generation, hash).then_some(generation);
        let held = rotation::wanted(&row).into_iter().filter_map(has).collect();
        let me = self.me().id;
        let now = clock::now();
        let scene = Scene { row: &row, members: &members, voters: &voters, alive, me, held: &held, now };
        let Some(step) = rotation::next(&scene) else { return Ok(()) };
        let done = match step {
            Step::MakeKey(generation) => self.make_key(claim, generation).await,
            Step::Reseal(generation) => self.reseal(claim, generation, &meta, &row).await,
            Step::MakeCa => self.make_ca(claim, &meta, &row, now).await,
            Step::FinishCa => self.finish_ca(claim, &row).await,
        };
        match done {
            Ok(()) => info!(?step, "rotation"),
            Err(error) => info!(?step, error = %format!("{error:#}"), "rotation: the next look tries again"),
        }
        Ok(())
    }

    async fn commit(&self, kind: Kind) -> anyhow::Result<()> {
        Ok(self.propose_here(kind, PATIENCE).await.map(drop)?)
    }

    /// The key is on this node's disk before anybody hears of it.
    async fn make_key(&self, claim: Epoch, generation: u64) -> anyhow::Result<()> {
        // That of a try whose commit nobody heard of may be in the log.
        let made = self.keys().key(generation);
        let key: Octets = match made {
            Some(key) => key,
            None => {
                let (key, vault) = (keys::random()?, self.inner.vault.clone());
                let kept = Octets::clone(&key);
                away(move || vault.keep(generation, kept)).await?;
                key
            }
        };
        let sha256 = Bytes::copy_from_slice(&keys::check(generation, &key));
        self.commit(Kind::BeginKey(BeginKey { claim: claim.0, generation, sha256 })).await
    }

    async fn reseal(
        &self,
        claim: Epoch,
        generation: u64,
        meta: &Meta,
        row: &RotationRow,
    ) -> anyhow::Result<()> {
        let purpose = ca_purpose(&meta.cluster_id);
        let again = |sealed: &Bytes| -> anyhow::Result<Bytes> {
            Ok(self.keys().seal(generation, &self.keys().open(sealed, &purpose)?, &purpose)?.into())
        };
        let next = rotation::next_ca(row);
        self.commit(Kind::Reseal(Reseal {
            claim: claim.0,
            generation,
            settings_index: meta.settings_index,
            ca_index: row.ca_index,
            next_ca_sha256: next.map_or(Bytes::new(), |ca| ca.certificate_sha256.clone()),
            settings_toml: reseal(self.keys(), generation, &meta.settings_toml)?,
            ca_private_key_sealed: again(&meta.ca_private_key_sealed)?,
            next_ca_private_key_sealed: match next {
                Some(ca) => again(&ca.private_key_sealed)?,
                None => Bytes::new(),
            },
        }))
        .await
    }

    async fn make_ca(&self, claim: Epoch, meta: &Meta, row: &RotationRow, now: Millis) -> anyhow::Result<()> {
        let old = authority(self.keys(), meta, row).map_err(anyhow::Error::msg)?;
        // A name of its own: who signed what is told apart by it.
        let name = format!("quire {} {}", meta.cluster_name, now.0);
        let new = Authority::generate(&name)?;
        let key_generation = rotation::in_force(row);
        let sealed = self.keys().seal(key_generation, &new.private_key(), &ca_purpose(&meta.cluster_id))?;
        self.commit(Kind::BeginCa(BeginCa {
            claim: claim.0,
            certificate_der: Bytes::copy_from_slice(new.certificate()),
            private_key_sealed: sealed.into(),
            key_generation,
            cross_der: old.vouch_for(&new, &name)?.into(),
            certificate_sha256: Bytes::copy_from_slice(&pin(new.certificate())),
        }))
        .await
    }

    async fn finish_ca(&self, claim: Epoch, row: &RotationRow) -> anyhow::Result<()> {
        let sha256 = rotation::next_ca(row).map_or(Bytes::new(), |ca| ca.certificate_sha256.clone());
        self.commit(Kind::FinishCa(FinishCa { claim: claim.0, certificate_sha256: sha256 })).await
    }
}
