//! A zstd-compressed tar whose last file names all others with their sizes and hashes.

use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;

use data_encoding::HEXLOWER;
use ring::digest::{Context, SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The directory that everything in the archive is in.
const ROOT: &str = "quire-bundle";
/// The last file.
const MANIFEST: &str = "manifest.json";
/// zstd's default.
const LEVEL: i32 = 3;
/// Of a manifest: one line for each file.
const LARGEST_MANIFEST: u64 = 16 << 20;

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Below the archive's directory.
    pub(crate) name: String,
    pub(crate) octets: u64,
    pub(crate) sha256: String,
    /// What is in it.
    pub(crate) what: String,
}

/// An archive that is being written.
pub(super) struct Archive<W: Write> {
    tar: tar::Builder<zstd::Encoder<'static, W>>,
    entries: Vec<Entry>,
    /// Seconds since the epoch, of every file.
    at: u64,
}

impl<W: Write> Archive<W> {
    pub(super) fn new(out: W, at_ms: u64) -> io::Result<Self> {
        let mut packed = zstd::Encoder::new(out, LEVEL)?;
        packed.include_checksum(true)?;
        Ok(Archive { tar: tar::Builder::new(packed), entries: Vec::new(), at: at_ms / 1_000 })
    }

    /// Adds a file.
    pub(super) fn add(&mut self, name: &str, what: &str, octets: &[u8]) -> io::Result<()> {
        self.put(name, octets)?;
        let sha256 = HEXLOWER.encode(digest(&SHA256, octets).as_ref());
        let (name, what) = (name.to_owned(), what.to_owned());
        self.entries.push(Entry { name, octets: octets.len() as u64, sha256, what });
        Ok(())
    }

    fn put(&mut self, name: &str, octets: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(octets.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(self.at);
        self.tar.append_data(&mut header, format!("{ROOT}/{name}"), octets)
    }

    /// Adds the manifest, with `head` above the list, and ends the archive.
    pub(super) fn finish(mut self, mut head: Value) -> io::Result<()> {
        head["files"] = json!(self.entries);
        self.put(MANIFEST, &serde_json::to_vec_pretty(&head)?)?;
        self.tar.into_inner()?.finish()?.flush()
    }
}

/// Reads an archive to its end and gives what its manifest lists.
///
/// # Errors
/// When it breaks off, or a file is not what the manifest says.
pub(crate) fn check(path: &Path) -> io::Result<Vec<Entry>> {
    let bad = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut tar = tar::Archive::new(zstd::Decoder::new(File::open(path)?)?);
    let mut seen = std::collections::BTreeMap::new();
    let mut listed = None;
    for entry in tar.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.strip_prefix(ROOT).unwrap_or(&entry.path()?).display().to_string();
        if name == MANIFEST {
            let mut octets = Vec::new();
            entry.take(LARGEST_MANIFEST).read_to_end(&mut octets)?;
            let manifest: Value = serde_json::from_slice(&octets)?;
            listed = Some(serde_json::from_value::<Vec<Entry>>(manifest["files"].clone())?);
            continue;
        }
        let mut hash = Hash(Context::new(&SHA256));
        io::copy(&mut entry, &mut hash)?;
        seen.insert(name, HEXLOWER.encode(hash.0.finish().as_ref()));
    }
    // The archive ends before its compression does, whose checksum stands last.
    io::copy(&mut tar.into_inner(), &mut io::sink())?;
    let listed = listed.ok_or_else(|| bad("it ends before its manifest".to_owned()))?;
    for entry in &listed {
        if seen.remove(&entry.name).as_ref() != Some(&entry.sha256) {
            return Err(bad(format!("{} is not what the manifest says", entry.name)));
        }
    }
    match seen.into_keys().next() {
        Some(name) => Err(bad(format!("{name} is not in the manifest"))),
        None => Ok(listed),
    }
}

/// Takes in what is written to it, however large.
struct Hash(Context);

impl Write for Hash {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.0.update(octets);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_its_manifest_says_or_it_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("b.tar.zst");
        let mut archive = Archive::new(File::create(&path).unwrap(), 1_700_000_000_000).unwrap();
        archive.add("version.json", "the version", b"{}").unwrap();
        archive.add("devices/0001.jsonl", "devices", b"{}\n{}\n").unwrap();
        archive.finish(json!({"node": "n1"})).unwrap();
        let listed = check(&path).unwrap();
        let names: Vec<_> = listed.iter().map(|entry| (entry.name.as_str(), entry.octets)).collect();
        assert_eq!(names, [("version.json", 2), ("devices/0001.jsonl", 6)]);
        let whole = std::fs::read(&path).unwrap();
        for cut in [whole.len() - 1, whole.len() / 2, 3] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            assert!(check(&path).is_err(), "cut off at {cut}");
        }
    }
}
