//! The data directory: who this node is, its keys, its lock.
//!
//! `node.json` is written last and renamed into place: a directory without it holds no node. It names
//! the SHA-256 of itself and of every other file, so damage is found and named before anything runs.
//! Files are 0600, the directory 0700.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::OpenError;

pub(crate) const NODE: &str = "node.json";
pub(crate) const NODE_KEY: &str = "node.key";
pub(crate) const NODE_CERTIFICATE: &str = "node.crt";
pub(crate) const CA_CERTIFICATE: &str = "ca.crt";
pub(crate) const CLUSTER_KEY: &str = "cluster.key";
pub(crate) const UPSTREAM_KEY: &str = "upstream.key";
pub(crate) const LOCK: &str = "lock";
pub(crate) const DB: &str = "db";
/// Present from the first write of `--init` or `--join` until `node.json` stands.
const UNFINISHED: &str = "unfinished";
const FORMAT: u32 = 1;

/// What `node.json` says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Card {
    pub(crate) format: u32,
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) zone: String,
    pub(crate) listen: String,
    pub(crate) advertise: String,
    pub(crate) witness: bool,
    pub(crate) cluster_id: String,
    pub(crate) cluster_name: String,
    pub(crate) incarnation: String,
    /// SHA-256 of the other files, in hex.
    pub(crate) files: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    node: Card,
    sha256: String,
}

/// A locked data directory.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

fn sha256(octets: &[u8]) -> String {
    HEXLOWER.encode(&crate::tls::pin(octets))
}

/// Takes from everybody else what an existing directory of a node lets them do: RocksDB makes its files as the process'
/// mask says, and the control socket is there for a moment before it is restricted. A directory that holds other things
/// is somebody else's to close.
fn close(path: &Path) {
    let Ok(meta) = fs::metadata(path) else { return };
    let mode = meta.permissions().mode();
    let ours =
        path.join(NODE).exists() || fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    let shared = mode & 0o1000 != 0;
    if mode & 0o077 == 0 || shared || !ours {
        return;
    }
    match fs::set_permissions(path, fs::Permissions::from_mode(0o700)) {
        Ok(()) => tracing::info!(path = %path.display(), "closed the data directory to other users"),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "close the data directory to other users")
        }
    }
}

impl Directory {
    /// Locks `path`, creating it when `create`.
    pub(crate) fn lock(path: &Path, create: bool) -> Result<Self, OpenError> {
        let failed = |reason: io::Error| OpenError::Directory { path: path.to_owned(), reason };
        if create {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        } else if !path.is_dir() {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        close(path);
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => Ok(Directory { path: path.to_owned(), _lock: lock }),
            Err(fs::TryLockError::WouldBlock) => Err(OpenError::InUse { path: path.to_owned() }),
            Err(fs::TryLockError::Error(reason)) => Err(failed(reason)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn db(&self) -> PathBuf {
        self.path.join(DB)
    }

    /// Refuses a directory that holds a node, clears what an unfinished first start left.
    pub(crate) fn claim(&self) -> Result<(), OpenError> {
        if self.path.join(NODE).exists() {
            return Err(OpenError::Occupied { path: self.path.clone() });
        }
        let (marker, db) = (self.path.join(UNFINISHED), self.db());
        if db.exists() && !marker.exists() {
            // Somebody's log without somebody's name: never ours to delete.
            return Err(OpenError::Damaged {
                file: self.path.join(NODE),
                reason: "it is missing beside a database; restore it, or use an empty directory".into(),
            });
        }
        let failed = |reason| OpenError::Directory { path: self.path.clone(), reason };
        if db.exists() {
            fs::remove_dir_all(&db).map_err(failed)?;
        }
        self.put(UNFINISHED, b"").map_err(failed)
    }

    /// Writes a file so that a crash leaves the old one or the new one.
    pub(crate) fn put(&self, name: &str, octets: &[u8]) -> io::Result<()> {
        self.put_aside(name, octets)?;
        self.put_in_place(name)
    }

    fn put_aside(&self, name: &str, octets: &[u8]) -> io::Result<()> {
        let aside = aside(&self.path, name);
        let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(aside)?;
        file.write_all(octets)?;
        file.sync_all()
    }

    fn put_in_place(&self, name: &str) -> io::Result<()> {
        fs::rename(aside(&self.path, name), self.path.join(name))?;
        File::open(&self.path)?.sync_all()
    }

    /// Writes the files and the card that names them, so that a crash leaves all of the old ones or all of the new ones:
    /// each is whole beside its place before the card is written, and a later start puts there what is named.
    pub(crate) fn settle(&self, card: &mut Card, files: &[(&str, &[u8])]) -> io::Result<()> {
        // The caller's card says what is on the disk, so it changes when that has.
        let mut next = card.clone();
        for (name, octets) in files {
            self.put_aside(name, octets)?;
            next.files.insert((*name).to_owned(), sha256(octets));
        }
        File::open(&self.path)?.sync_all()?;
        next.format = FORMAT;
        let text = serde_json::to_string(&next)?;
        let stored = Stored { node: next.clone(), sha256: sha256(text.as_bytes()) };
        self.put(NODE, &serde_json::to_vec_pretty(&stored)?)?;
        *card = next;
        for (name, _) in files {
            self.put_in_place(name)?;
        }
        match fs::remove_file(self.path.join(UNFINISHED)) {
            Err(reason) if reason.kind() != io::ErrorKind::NotFound => Err(reason),
            _ => Ok(()),
        }
    }

    /// Reads and checks the card.
    pub(crate) fn card(&self) -> Result<Card, OpenError> {
        card(&self.path)
    }

    /// Reads a file that the card names and checks it; puts it in its place where a crash left it beside.
    pub(crate) fn file(&self, card: &Card, name: &str) -> Result<Zeroizing<Vec<u8>>, OpenError> {
        let octets = file(&self.path, card, name)?;
        if fs::read(self.path.join(name)).ok().as_deref() != Some(octets.as_slice()) {
            let failed = |reason| OpenError::Directory { path: self.path.clone(), reason };
            self.put_in_place(name).map_err(failed)?;
        }
        Ok(octets)
    }
}

/// Where a file is until it is whole.
fn aside(path: &Path, name: &str) -> PathBuf {
    path.join(format!(".{name}.new"))
}

/// Reads and checks the card of a directory, locked or not.
pub(crate) fn card(path: &Path) -> Result<Card, OpenError> {
    let file = path.join(NODE);
    let damaged = |reason: String| OpenError::Damaged { file: file.clone(), reason };
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(reason) if reason.kind() == io::ErrorKind::NotFound && !path.join(DB).exists() => {
            return Err(OpenError::Empty { path: path.to_owned() });
        }
        Err(reason) => return Err(damaged(reason.to_string())),
    };
    let stored: Stored = serde_json::from_slice(&text).map_err(|reason| damaged(reason.to_string()))?;
    let again = serde_json::to_string(&stored.node).map_err(|reason| damaged(reason.to_string()))?;
    if sha256(again.as_bytes()) != stored.sha256 {
        return Err(damaged("its check does not match; restore the file, don't edit it".into()));
    }
    if stored.node.format > FORMAT {
        return Err(damaged(format!("format {} is of a later version", stored.node.format)));
    }
    Ok(stored.node)
}

/// Reads a file that the card names and checks it.
pub(crate) fn file(path: &Path, card: &Card, name: &str) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let damaged = |reason: String| OpenError::Damaged { file: path.join(name), reason };
    let expected = card.files.get(name);
    let named = |octets: &Zeroizing<Vec<u8>>| expected == Some(&sha256(octets));
    if let Some(octets) = fs::read(aside(path, name)).ok().map(Zeroizing::new).filter(named) {
        return Ok(octets);
    }
    let octets = Zeroizing::new(fs::read(path.join(name)).map_err(|why| damaged(why.to_string()))?);
    match expected {
        Some(_) if named(&octets) => Ok(octets),
        Some(_) => Err(damaged("its SHA-256 is not the one that node.json names".into())),
        None => Err(damaged("node.json does not name it".into())),
    }
}

/// 16 octets from hex.
pub(crate) fn octets16(text: &str) -> Option<[u8; 16]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_between_files_leaves_the_old_ones_or_the_new_ones() {
        let dir = tempfile::TempDir::new().unwrap();
        let directory = Directory::lock(dir.path(), true).unwrap();
        let mut card = Card {
            format: 0,
            id: 1,
            name: "n1".into(),
            zone: "hq".into(),
            listen: String::new(),
            advertise: String::new(),
            witness: false,
            cluster_id: String::new(),
            cluster_name: String::new(),
            incarnation: String::new(),
            files: BTreeMap::new(),
        };
        let place = |name: &str| dir.path().join(name);
        let both = |directory: &Directory| {
            let card = directory.card().unwrap();
            [NODE_KEY, NODE_CERTIFICATE].map(|name| directory.file(&card, name).unwrap().to_vec())
        };
        directory.settle(&mut card, &[(NODE_KEY, b"old"), (NODE_CERTIFICATE, b"of old")]).unwrap();
        let before = fs::read(place(NODE)).unwrap();
        directory.settle(&mut card, &[(NODE_KEY, b"new"), (NODE_CERTIFICATE, b"of new")]).unwrap();
        assert_eq!(both(&directory), [b"new".to_vec(), b"of new".to_vec()]);
        // The card was not written yet: what lies beside is nobody's.
        let after = fs::read(place(NODE)).unwrap();
        for (name, old) in [(NODE_KEY, "old"), (NODE_CERTIFICATE, "of old")] {
            fs::rename(place(name), aside(dir.path(), name)).unwrap();
            fs::write(place(name), old).unwrap();
        }
        fs::write(place(NODE), before).unwrap();
        assert_eq!(both(&directory), [b"old".to_vec(), b"of old".to_vec()]);
        // It was, and one of the files is in its place already.
        fs::write(place(NODE), after).unwrap();
        directory.put_in_place(NODE_KEY).unwrap();
        assert_eq!(both(&directory), [b"new".to_vec(), b"of new".to_vec()]);
        assert_eq!(fs::read(place(NODE_CERTIFICATE)).unwrap(), b"of new", "a start finishes what was begun");
        assert!(!aside(dir.path(), NODE_CERTIFICATE).exists());
    }

    #[test]
    fn a_loose_directory_is_closed_at_the_start() {
        let dir = tempfile::TempDir::new().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        let made = |name: &str, mode: u32| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        let empty = made("empty", 0o755);
        drop(Directory::lock(&empty, true).unwrap());
        assert_eq!(mode(&empty), 0o700);
        let node = made("node", 0o750);
        fs::write(node.join(NODE), "{}").unwrap();
        drop(Directory::lock(&node, false).unwrap());
        assert_eq!(mode(&node), 0o700);
        // Not ours alone.
        let (others, shared) = (made("others", 0o755), made("shared", 0o1777));
        fs::write(others.join("file"), "x").unwrap();
        drop((Directory::lock(&others, true).unwrap(), Directory::lock(&shared, true).unwrap()));
        assert_eq!((mode(&others), mode(&shared)), (0o755, 0o1777));
    }
}
