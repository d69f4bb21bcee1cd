//! Looking without touching: a data directory that no process runs on, and a member at its address.
//!
//! Never: locks, creates or writes anything, or shows what a secret file holds.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quire_proto::id::Millis;
use quire_proto::store::Member;

use super::authorities::Authorities;
use super::directory::{
    self, CA_CERTIFICATE, CLUSTER_KEY, Card, DB, LOCK, NODE, NODE_CERTIFICATE, NODE_KEY, UPSTREAM_KEY,
};
use super::keys::Keys;
use super::network::Net;
use super::start::owner;
use super::store::{Store, View, key};
use crate::clock;

/// Files that whoever reads them can be this node, or read its cluster's secrets.
pub(crate) const SECRET_FILES: [&str; 3] = [NODE_KEY, CLUSTER_KEY, UPSTREAM_KEY];

/// A member that answered under its address.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    /// From the question to the answer, handshake not counted.
    pub(crate) took: Duration,
    /// Its clock less this node's; `None` where its version does not tell.
    pub(crate) ahead_ms: Option<i64>,
    /// Of its program; empty where it does not tell.
    pub(crate) version: String,
}

pub(super) async fn look(net: &Net, member: &Member) -> io::Result<Look> {
    let connection = net.reach(member).await?;
    let (asked, started) = (clock::now().0, clock::steady());
    let reply = net.look(connection, member).await?;
    let took = clock::steady().saturating_duration_since(started);
    // Half of the way there, half back.
    let here = asked + u64::try_from(took.as_millis() / 2).unwrap_or(0);
    let ahead_ms = i64::try_from(i128::from(reply.at_ms) - i128::from(here)).unwrap_or(i64::MAX);
    Ok(Look { took, ahead_ms: (reply.at_ms > 0).then_some(ahead_ms), version: reply.version })
}

/// What a data directory holds.
pub(crate) struct Inspection {
    path: PathBuf,
    card: Option<Card>,
    /// What is wrong with its files, in the words of a start.
    pub(crate) damage: Vec<String>,
    /// Whether a process holds its lock; `None` where the kernel does not tell.
    pub(crate) held: Option<bool>,
    store: Option<Store>,
}

impl Inspection {
    /// Looks at `path`. Opens the database where no process holds it. Blocks.
    pub(crate) fn of(path: &Path) -> Inspection {
        let mut damage = Vec::new();
        let card = directory::card(path).map_err(|error| damage.push(error.to_string())).ok();
        if let Some(card) = &card {
            let files = [NODE_KEY, NODE_CERTIFICATE, CA_CERTIFICATE, CLUSTER_KEY, UPSTREAM_KEY];
            let wrong = files.iter().filter_map(|name| directory::file(path, card, name).err());
            damage.extend(wrong.map(|error| error.to_string()));
        }
        let held = held(&path.join(LOCK));
        let mut found = Inspection { path: path.to_owned(), card, damage, held, store: None };
        if held != Some(true) && path.join(NODE).exists() {
            match found.database() {
                Ok(store) => found.store = Some(store),
                Err(why) => found.damage.push(why),
            }
        }
        found
    }

    fn database(&self) -> Result<Store, String> {
        let db = self.path.join(DB);
        let said = |why: String| {
            format!(
                "{} is damaged: {why}. Remove this node from the cluster, and join anew with an empty directory",
                db.display()
            )
        };
        if !db.join("CURRENT").exists() {
            return Err(said("the database is missing or was wiped".to_owned()));
        }
        let store = Store::open_to_read(&db).map_err(|error| said(error.to_string()))?;
        let found = store.meta(key::OWNER).map_err(|error| said(error.to_string()))?.unwrap_or_default();
        match &self.card {
            Some(card) if owner(card).as_bytes() != found => Err(format!(
                "{} is not of the node that node.json names (it is of {}): put back the files that belong together",
                db.display(),
                String::from_utf8_lossy(&found)
            )),
            _ => Ok(store),
        }
    }

    /// The node's name and zone, where its card can be read.
    pub(crate) fn name(&self) -> Option<(&str, &str)> {
        self.card.as_ref().map(|card| (card.name.as_str(), card.zone.as_str()))
    }

    /// Where it listens for other nodes.
    pub(crate) fn listen(&self) -> Option<&str> {
        self.card.as_ref().map(|card| card.listen.as_str())
    }

    /// Its certificate and those of the CAs, as far as they are whole.
    pub(crate) fn certificates(&self) -> Vec<(&'static str, Vec<u8>)> {
        let Some(card) = &self.card else { return Vec::new() };
        let read = |name: &'static str| Some((name, directory::file(&self.path, card, name).ok()?.to_vec()));
        let authorities =
            read(CA_CERTIFICATE).and_then(|(name, octets)| Some((name, Authorities::parse(&octets)?)));
        let roots = authorities.iter().flat_map(|(name, all)| {
            all.roots().into_iter().map(|root| (*name, root.to_vec())).collect::<Vec<_>>()
        });
        read(NODE_CERTIFICATE).into_iter().chain(roots).collect()
    }

    /// The cluster's key, to open the settings: so that their secrets can be kept out of what is shown.
    pub(crate) fn keys(&self) -> Option<Keys> {
        Keys::from_octets(&directory::file(&self.path, self.card.as_ref()?, CLUSTER_KEY).ok()?)
    }

    /// The tables as the node left them.
    pub(crate) fn view(&self) -> Option<View> {
        self.store.as_ref()?.view().ok()
    }

    /// How often the node was started.
    pub(crate) fn starts(&self) -> Option<u64> {
        let view = self.view()?;
        view.meta(key::BOOT).ok()??.try_into().ok().map(u64::from_be_bytes)
    }
}

/// Whether somebody has a lock on `file`, by the kernel's list of locks (proc(5)): asking for the lock itself could
/// keep a node from starting in that moment.
fn held(file: &Path) -> Option<bool> {
    let Ok(meta) = fs::metadata(file) else { return Some(false) };
    let locks = fs::read_to_string("/proc/locks").ok()?;
    Some(locks.lines().any(|line| is_lock_on(line, meta.ino())))
}

/// `1: FLOCK  ADVISORY  WRITE 4711 fe:01:123456 0 EOF`: the device's number is that of the file system, which an overlay
/// hides, so the inode has to do.
fn is_lock_on(line: &str, inode: u64) -> bool {
    let mut fields = line.split_whitespace().skip_while(|field| *field != "FLOCK");
    let place = fields.nth(4).unwrap_or_default();
    place.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode)
}

/// When the tables were last known to be current: the leader's last renewal.
pub(crate) fn last_heard(view: &View) -> Option<Millis> {
    let meta = quire_coordinator::rows::meta(view).ok()?;
    (meta.claim_renewed_at_ms > 0).then_some(Millis(meta.claim_renewed_at_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_locks_is_understood() {
        let line = "2: FLOCK  ADVISORY  WRITE 4711 fe:01:123456 0 EOF";
        assert!(is_lock_on(line, 123_456) && !is_lock_on(line, 23_456));
        assert!(is_lock_on("2: -> FLOCK  ADVISORY  WRITE 4711 fe:01:123456 0 EOF", 123_456));
        assert!(!is_lock_on("3: POSIX  ADVISORY  WRITE 4711 fe:01:123456 0 EOF", 123_456));
        assert!(!is_lock_on("FLOCK", 1) && !is_lock_on("", 0));
    }

    #[test]
    fn a_lock_is_seen_without_being_taken() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("lock");
        assert_eq!(held(&path), Some(false));
        let file = fs::File::create(&path).unwrap();
        assert_eq!(held(&path), Some(false));
        file.lock().unwrap();
        assert_eq!(held(&path), Some(true));
    }
}
