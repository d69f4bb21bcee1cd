//! Keeps a node's certificate, its CAs and its cluster keys as the tables want them. Every node does this for itself:
//! its private key never leaves it, and whoever has the cluster key and the tables can sign with the CA.
//!
//! Order matters. A CA is trusted before anybody shows a certificate of it. A new public key is committed before it is
//! shown, because members know each other by it. That a node shows a certificate of the new CA is committed last: the
//! old CA goes when all have said so.
//!
//! Never: follows tables that are behind what this node knows, or gives up a certificate before the next one is on the disk.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quire_coordinator::{rotation, rows, upgrade};
use quire_proto::id::{Millis, NodeId};
use quire_proto::store::{Member, Meta, RotationRow, UpdateMember, command};

use super::authorities::Authorities;
use super::keys::{KeyError, Keys, Octets};
use super::membership::{ca_purpose, names};
use super::propose::Proposer;
use super::raft::away;
use super::store::{View, key};
use super::vault::Vault;
use super::wire;
use crate::clock;
use crate::tls::{self, Authority, Key};

/// How long a certificate is good for. Membership is what lets a node in and what shuts it out, so this only bounds what
/// a `node.key` that leaked alone is good for. Renewed at two thirds, it leaves a month to a node that is in trouble.
pub(crate) const LIFE: Duration = Duration::from_secs(90 * 86_400);
/// A certificate that ends later than this was made before certificates were renewed.
const ENDLESS_MS: u64 = 10 * 365 * 86_400_000;

/// Between two looks: how late a node follows a change. Each reads three rows.
const LOOK: Duration = Duration::from_millis(500);
/// For one commit, and for one member's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The end of a certificate that is made now. The leader's last word bounds a clock that is behind: a certificate made
/// by it would have ended before it was shown.
pub(crate) fn until(meta: &Meta, life: Duration) -> Millis {
    /// 1 January 9000: dates in certificates end a thousand years later.
    const LATEST: u64 = 221_845_392_000_000;
    Millis(today(meta).0.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX)).min(LATEST))
}

fn today(meta: &Meta) -> Millis {
    Millis(clock::now().0.max(meta.claim_renewed_at_ms))
}

/// What a certificate's end asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Good,
    /// A third of its life is left: another one, with another key.
    Due,
    /// Half of that is left, and nobody took the new key: another one for the same key, which needs nobody.
    Urgent,
}

fn age(until: Millis, now: Millis, life: Duration) -> Age {
    let life = u64::try_from(life.as_millis()).unwrap_or(u64::MAX);
    match until.0.saturating_sub(now.0) {
        left if left < life / 6 => Age::Urgent,
        left if left < life / 3 || left > ENDLESS_MS.max(life.saturating_mul(2)) => Age::Due,
        _ => Age::Good,
    }
}

/// The CA that signs now, from the tables.
pub(crate) fn authority(keys: &Keys, meta: &Meta, row: &RotationRow) -> Result<Authority, String> {
    let (certificate, sealed) = match rotation::next_ca(row) {
        Some(next) => (&next.certificate_der, &next.private_key_sealed),
        None => (&meta.ca_certificate_der, &meta.ca_private_key_sealed),
    };
    let open = |error: KeyError| format!("open the CA key: {error}");
    let key = keys.open(sealed, &ca_purpose(&meta.cluster_id)).map_err(open)?;
    Authority::restore(certificate, &key).map_err(|error| error.to_string())
}

/// A certificate for a node's key, by the CA that signs now.
fn certify(
    keys: &Keys,
    (meta, row): (&Meta, &RotationRow),
    node: u64,
    key: &Key,
    life: Duration,
) -> Result<Vec<u8>, String> {
    let failed = |error: tls::TlsError| error.to_string();
    let names = names(&meta.cluster_id, node);
    let request = key.request(&names.common_name).map_err(failed)?;
    authority(keys, meta, row)?.sign(&request, &names, until(meta, life)).map_err(failed)
}

/// The certificate of a node that was off while it ended, for the same key: the way back that needs nobody. `None` where
/// it has not ended yet.
pub(crate) fn overdue(
    (keys, view): (&Keys, &View),
    node: u64,
    (key, certificate): (&Key, &[u8]),
    life: Duration,
) -> Result<Option<Vec<u8>>, String> {
    let fault = |fault: quire_coordinator::tables::Fault| fault.to_string();
    let (meta, row) = (rows::meta(view).map_err(fault)?, rotation::row(view).map_err(fault)?);
    let Some((said, _)) = tls::said_of(certificate) else { return Ok(None) };
    if meta.cluster_id.is_empty() || age(said.until, today(&meta), life) != Age::Urgent {
        return Ok(None);
    }
    certify(keys, (&meta, &row), node, key, life).map(Some)
}

/// The task.
pub(crate) struct Keeper {
    pub(crate) proposer: Proposer,
    pub(crate) vault: Arc<Vault>,
    pub(crate) life: Duration,
}

/// What the tables say that concerns this node.
struct Tables {
    meta: Meta,
    row: RotationRow,
    member: Member,
    /// Through this entry the log is gone.
    purged: u64,
}

impl Keeper {
    /// Looks again and again; what fails is told once, and tried again.
    pub(crate) async fn keep(self) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut before = None;
        loop {
            look.tick().await;
            let failed = self.turn().await.err();
            if failed != before
                && let Some(why) = &failed
            {
                tracing::info!(%why, "certificates and cluster keys are not as they should be yet");
            }
            before = failed;
        }
    }

    fn tables(&self) -> Result<Option<Tables>, String> {
        let view = self.proposer.store.view().map_err(|error| error.to_string())?;
        let index = |mark: &[u8]| -> Result<u64, String> {
            let stored = view.meta(mark).map_err(|error| error.to_string())?;
            let id = stored.map(|stored| wire::decode::<quire_proto::cluster::LogId>("a mark", &stored));
            Ok(id.transpose().map_err(|error| error.to_string())?.map_or(0, |id| id.index))
        };
        // Those of a node that has joined begin before it did.
        if index(key::APPLIED)? < self.proposer.me {
            return Ok(None);
        }
        let fault = |fault: quire_coordinator::tables::Fault| fault.to_string();
        let meta = rows::meta(&view).map_err(fault)?;
        let member = rows::member(&view, NodeId(self.proposer.me)).map_err(fault)?;
        let Some(member) = member.filter(|_| !meta.cluster_id.is_empty()) else { return Ok(None) };
        let row = rotation::row(&view).map_err(fault)?;
        Ok(Some(Tables { meta, row, member, purged: index(key::PURGED)? }))
    }

    async fn turn(&self) -> Result<(), String> {
        let Some(tables) = self.tables()? else { return Ok(()) };
        self.follow_authorities(&tables).await?;
        // The CA's key may be sealed with one that is on its way.
        let fetched = self.fetch(&tables).await;
        let renewed = self.renew(&tables).await;
        // Also where these failed: whom others do not know yet, they give no key.
        self.tell(&tables).await?;
        self.forget(&tables).await?;
        fetched.and(renewed)
    }

    async fn in_vault(
        &self,
        change: impl FnOnce(&Vault) -> std::io::Result<()> + Send + 'static,
    ) -> Result<(), String> {
        let vault = Arc::clone(&self.vault);
        away(move || change(&vault)).await.map_err(|error| error.to_string())
    }

    async fn follow_authorities(&self, tables: &Tables) -> Result<(), String> {
        let said = Authorities::of_tables(&tables.meta, &tables.row).ok_or("the tables hold no CA")?;
        let Some(next) = self.vault.authorities().after(said) else { return Ok(()) };
        let shown = self.vault.certificate();
        if next.signer_of(&shown).is_none() {
            return Err("this node's certificate is of a CA that counts no longer".to_owned());
        }
        let trusted = next.roots().len();
        self.in_vault(|vault| vault.trust_in(next)).await?;
        // Connections that the old CA vouched for are not used any more.
        self.proposer.net.reconnect();
        tracing::info!(trusted, "the cluster's CAs have changed");
        Ok(())
    }

    async fn fetch(&self, tables: &Tables) -> Result<(), String> {
        for (generation, hash) in rotation::wanted(&tables.row) {
            if self.vault.keys().has(generation, hash) {
                continue;
            }
            let hash = hash.clone();
            let key = self.ask_all(generation, &hash).await?;
            self.in_vault(move |vault| vault.keep(generation, key)).await?;
            tracing::info!(generation, "fetched a cluster key from another member");
        }
        Ok(())
    }

    async fn ask_all(&self, generation: u64, hash: &Bytes) -> Result<Octets, String> {
        let view = self.proposer.store.view().map_err(|error| error.to_string())?;
        let mut others = rows::members(&view).map_err(|fault| fault.to_string())?;
        drop(view);
        others.retain(|member| member.id != self.proposer.me);
        let leader = self.proposer.leader();
        others.sort_by_key(|member| (Some(member.id) != leader, member.key_generation < generation));
        let mut why = "there is nobody to ask".to_owned();
        for other in others {
            let asked = self.proposer.net.cluster_key(other.id, generation);
            match tokio::time::timeout(PATIENCE, asked).await {
                Ok(Ok(key)) if hash.is_empty() || super::keys::check(generation, &key)[..] == **hash => {
                    return Ok(key);
                }
                Ok(Ok(_)) => why = format!("{} has another one", other.name),
                Ok(Err(status)) => why = format!("{}: {}", other.name, status.message()),
                Err(_) => why = format!("{} does not answer", other.name),
            }
        }
        Err(format!("fetch cluster key {generation}: {why}"))
    }

    async fn renew(&self, tables: &Tables) -> Result<(), String> {
        let shown = self.vault.certificate();
        let (said, _) = tls::said_of(&shown).ok_or("this node's certificate is not readable")?;
        let authorities = self.vault.authorities();
        // Tables that are behind name a CA that signs no longer.
        let (signer, signs) = (authorities.signer_of(&shown), authorities.newest());
        let of_tables = Authorities::of_tables(&tables.meta, &tables.row);
        if of_tables.is_none_or(|tables| tables.newest() != signs) {
            return Ok(());
        }
        let age = age(said.until, today(&tables.meta), self.life);
        if age == Age::Good && signer == Some(signs) {
            return Ok(());
        }
        let fresh = Key::generate().map_err(|error| error.to_string())?;
        let certificate = self.certify(tables, &fresh)?;
        match self.announce(tables, &certificate, &shown).await {
            Ok(()) => self.show(certificate, fresh).await,
            Err(why) if age == Age::Urgent => {
                tracing::warn!(%why, "the certificate is renewed for the old key, as nobody takes note of another one");
                let key = self.vault.key().map_err(|error| error.to_string())?;
                let certificate = self.certify(tables, &key)?;
                self.show(certificate, key).await
            }
            Err(why) => Err(format!("renew this node's certificate: {why}")),
        }
    }

    fn certify(&self, tables: &Tables, key: &Key) -> Result<Vec<u8>, String> {
        let told = (&tables.meta, &tables.row);
        certify(self.vault.keys(), told, self.proposer.me, key, self.life)
    }

    async fn show(&self, certificate: Vec<u8>, key: Key) -> Result<(), String> {
        let until = tls::said_of(&certificate).map_or(Millis(0), |(said, _)| said.until);
        self.in_vault(move |vault| vault.show(certificate, &key)).await?;
        self.proposer.net.reconnect();
        tracing::info!(until = %until.rfc3339(), "this node has a new certificate");
        Ok(())
    }

    /// Lets the others know a new key before it is shown.
    async fn announce(&self, tables: &Tables, next: &[u8], shown: &[u8]) -> Result<(), String> {
        if tables.meta.cluster_version < upgrade::ROTATION {
            return Ok(());
        }
        self.commit(UpdateMember {
            id: self.proposer.me,
            certificate_der: Some(Bytes::copy_from_slice(next)),
            certificate_before_der: Some(Bytes::copy_from_slice(shown)),
            ..UpdateMember::default()
        })
        .await
    }

    async fn commit(&self, update: UpdateMember) -> Result<(), String> {
        let update = command::Kind::UpdateMember(update);
        self.proposer.propose(update, PATIENCE).await.map(|_| ()).map_err(|error| error.to_string())
    }

    /// Says what this node shows and has, where the tables have it otherwise.
    async fn tell(&self, tables: &Tables) -> Result<(), String> {
        let (certificate, ca) = (self.vault.certificate(), self.vault.ca_pin());
        let member = &tables.member;
        // The latest that is the right one: a key that its maker could not commit is nobody's.
        let known = rotation::wanted(&tables.row).into_iter();
        let has = known.filter(|(generation, hash)| self.vault.keys().has(*generation, hash));
        let key_generation = has.map(|(generation, _)| generation).max().unwrap_or_default();
        let same = member.certificate_der == certificate && member.certificate_before_der.is_empty();
        if tables.meta.cluster_version < upgrade::ROTATION
            || (same && member.ca_sha256 == ca[..] && member.key_generation == key_generation)
        {
            return Ok(());
        }
        self.commit(UpdateMember {
            id: self.proposer.me,
            certificate_der: Some(certificate.into()),
            certificate_before_der: Some(Bytes::new()),
            ca_sha256: Some(Bytes::copy_from_slice(&ca)),
            key_generation: Some(key_generation),
            ..UpdateMember::default()
        })
        .await
    }

    /// Old keys go when this node's log begins behind the entry that resealed everything.
    async fn forget(&self, tables: &Tables) -> Result<(), String> {
        let (row, in_force) = (&tables.row, rotation::in_force(&tables.row));
        let held = self.vault.keys().held();
        if row.key_index == 0 || tables.purged < row.key_index || held.first() >= Some(&in_force) {
            return Ok(());
        }
        self.in_vault(move |vault| vault.forget_before(in_force)).await?;
        tracing::info!(in_force, "forgot the cluster keys before the one in force");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let day = 86_400_000;
        let at = |left: u64| age(Millis(1_000 * day + left * day), Millis(1_000 * day), LIFE);
        assert_eq!([90, 31, 30].map(at), [Age::Good; 3]);
        assert_eq!([29, 16, 15].map(at), [Age::Due; 3]);
        assert_eq!([14, 1, 0].map(at), [Age::Urgent; 3]);
        assert_eq!(age(Millis(999 * day), Millis(1_000 * day), LIFE), Age::Urgent, "ended");
        assert_eq!(at(34_000), Age::Due, "from before there was an end");
    }

    #[test]
    fn a_clock_that_is_behind_makes_no_certificate_that_has_ended() {
        let ahead = clock::now().0 + 1_000 * 86_400_000;
        let meta = Meta { claim_renewed_at_ms: ahead, ..Meta::default() };
        assert_eq!(until(&meta, LIFE).0, ahead + 90 * 86_400_000);
        assert!(until(&Meta::default(), LIFE).0 >= clock::now().0 + 89 * 86_400_000);
    }
}
