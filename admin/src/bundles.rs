//! Support bundles of sites: pieces of a link become one file a job, named by its hash in the database.
//!
//! A file has its name only when it is whole; until then it is `ID.part`, which the first part of a new attempt
//! replaces. File names come from ids that this server drew, never from a site.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use data_encoding::HEXLOWER;
use quire_proto::id::Millis;
use quire_proto::upstream::BundlePart;
use ring::digest::{Context, SHA256};
use serde::Serialize;

use crate::intake::{Holder, malformed, still_held, touch};
use crate::store::{LinkError, Store, StoreError, int, uint};

/// Of one bundle: some ten times what a site of 20,000 devices sends.
const OCTETS_MAX: u64 = 256 << 20;
/// Of one part; sites send 256 KiB.
const PART_MAX: usize = 1 << 20;

/// A bundle as listings show it.
#[derive(Clone, Debug, Serialize)]
pub struct BundleLine {
    /// The site's name.
    pub site: String,
    /// Its job's id.
    pub id: String,
    /// What the file is called.
    pub name: String,
    /// How large it is.
    pub octets: u64,
    /// Of the file.
    pub sha256: String,
    /// RFC 3339.
    pub received_at: String,
}

/// What a part came to, where the job does not simply go on.
enum Step {
    More,
    Whole { octets: u64, sha256: Vec<u8> },
    Useless(String),
}

impl Store {
    /// Takes a part of a bundle. Parts of jobs that are closed, or were never asked for, are dropped.
    pub(crate) async fn take_bundle_part(
        &self,
        holder: Holder,
        part: BundlePart,
        now: Millis,
    ) -> Result<(), LinkError> {
        if part.data.len() > PART_MAX {
            return Err(malformed(format!("a part of a bundle of {} octets", part.data.len())));
        }
        self.check(holder).await?;
        let known: Option<String> = sqlx::query_scalar(
            "SELECT id FROM jobs WHERE id = ? AND site = ? AND kind = 'bundle' AND closed_at_ms IS NULL",
        )
        .bind(&part.job)
        .bind(holder.site)
        .fetch_optional(&self.read)
        .await?;
        let Some(id) = known else { return Ok(()) };
        let dir = self.bundles.clone();
        let name = id.clone();
        let written = tokio::task::spawn_blocking(move || write(&dir, &name, &part)).await;
        let written = written.map_err(io::Error::other).and_then(|written| written);
        match written {
            Ok(Step::More) => Ok(()),
            Ok(Step::Whole { octets, sha256 }) => self.keep_bundle(holder, &id, octets, sha256, now).await,
            Ok(Step::Useless(why)) => self.give_up_bundle(holder, &id, &why, now).await,
            Err(error) => {
                tracing::error!(%error, job = id, "store a part of a bundle");
                let why = format!("the Web Admin could not store the bundle: {error}");
                self.give_up_bundle(holder, &id, &why, now).await
            }
        }
    }

    async fn keep_bundle(
        &self,
        holder: Holder,
        id: &str,
        octets: u64,
        sha256: Vec<u8>,
        now: Millis,
    ) -> Result<(), LinkError> {
        let detail = format!("{octets} octets, sha256:{}", HEXLOWER.encode(&sha256));
        let mut tx = self.begin().await?;
        still_held(&mut tx, holder).await?;
        sqlx::query(
            "INSERT OR REPLACE INTO bundles (id, site, octets, sha256, received_at_ms) VALUES (?, ?, ?, ?, ?)",
        )
        .bind(id)
        .bind(holder.site)
        .bind(int(octets)?)
        .bind(sha256)
        .bind(int(now.0)?)
        .execute(&mut *tx)
        .await?;
        sqlx::query("UPDATE jobs SET state = 'done', detail = ?, closed_at_ms = ? WHERE id = ? AND site = ?")
            .bind(detail)
            .bind(int(now.0)?)
            .bind(id)
            .bind(holder.site)
            .execute(&mut *tx)
            .await?;
        touch(&mut tx, holder, now).await?;
        tx.commit().await?;
        self.changed();
        Ok(())
    }

    async fn give_up_bundle(
        &self,
        holder: Holder,
        id: &str,
        why: &str,
        now: Millis,
    ) -> Result<(), LinkError> {
        // Not there where nothing came.
        drop(fs::remove_file(unfinished(&self.bundles, id)));
        self.close_job(holder, id, false, why, now).await.map(drop)
    }

    /// Every bundle, oldest first.
    ///
    /// # Errors
    /// [`StoreError`] when the store fails.
    pub async fn bundles(&self, site: Option<&str>) -> Result<Vec<BundleLine>, StoreError> {
        let rows: Vec<(String, String, i64, Vec<u8>, i64)> = sqlx::query_as(
            "SELECT s.name, b.id, b.octets, b.sha256, b.received_at_ms FROM bundles b
             JOIN sites s ON s.key = b.site WHERE ?1 IS NULL OR s.name = ?1 ORDER BY b.key",
        )
        .bind(site)
        .fetch_all(&self.read)
        .await?;
        let line =
            |(site, id, octets, sha256, received_at): (String, String, i64, Vec<u8>, i64)| BundleLine {
                site,
                name: file_name(&id),
                id,
                octets: uint(octets),
                sha256: HEXLOWER.encode(&sha256),
                received_at: Millis(uint(received_at)).rfc3339(),
            };
        Ok(rows.into_iter().map(line).collect())
    }

    /// Copies a bundle to `to`, readable to its owner alone, and checks that it is what came.
    ///
    /// # Errors
    /// When there is none of this id, `to` is there already without `force`, or the copy is not what came.
    pub async fn get_bundle(&self, id: &str, to: &Path, force: bool) -> anyhow::Result<u64> {
        let all = self.bundles(None).await?;
        let Some(bundle) = all.into_iter().find(|bundle| bundle.id == id) else {
            bail!("no bundle `{id}`: `quire-admin bundles` lists them");
        };
        if !force && fs::symlink_metadata(to).is_ok() {
            bail!("{} is there already: name another file, or say --force", to.display());
        }
        let from = self.bundles.join(&bundle.name);
        let draft = PathBuf::from(format!("{}.unfinished", to.display()));
        let copied =
            copy(&from, &draft).with_context(|| format!("copy {} to {}", from.display(), draft.display()));
        let whole = copied.and_then(|sha256| match HEXLOWER.encode(&sha256) == bundle.sha256 {
            true => fs::rename(&draft, to).with_context(|| format!("write {}", to.display())),
            false => bail!("{} is damaged: it is not what the site sent", from.display()),
        });
        whole.inspect_err(|_| drop(fs::remove_file(&draft)))?;
        Ok(bundle.octets)
    }

    /// Removes what broken streams left.
    pub(crate) fn clear_bundle_parts(&self) {
        for entry in fs::read_dir(&self.bundles).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|end| end == "part") {
                drop(fs::remove_file(entry.path()));
            }
        }
    }
}

fn file_name(id: &str) -> String {
    format!("{id}.tar.zst")
}

fn unfinished(dir: &Path, id: &str) -> PathBuf {
    dir.join(format!("{id}.part"))
}

/// Adds a part to its file. A part that does not follow what is there makes the bundle useless, as does a wrong hash.
fn write(dir: &Path, id: &str, part: &BundlePart) -> io::Result<Step> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let path = unfinished(dir, id);
    let first = part.offset == 0 && !part.data.is_empty();
    let mut file =
        OpenOptions::new().create(first).truncate(first).write(true).mode(0o600).open(&path).or_else(
            |error| {
                // Its beginning went with a server that was restarted; an empty one is nothing to keep.
                if error.kind() == io::ErrorKind::NotFound { File::create_new(&path) } else { Err(error) }
            },
        )?;
    let there = file.metadata()?.len();
    if part.offset != there {
        return Ok(Step::Useless(format!("a part at {} came behind {there} octets", part.offset)));
    }
    if there + part.data.len() as u64 > OCTETS_MAX {
        return Ok(Step::Useless(format!("the bundle is larger than {OCTETS_MAX} octets")));
    }
    io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
    file.write_all(&part.data)?;
    if part.sha256.is_empty() {
        return Ok(Step::More);
    }
    file.sync_all()?;
    let sha256 = digest(&path, io::sink())?;
    if sha256 != part.sha256 {
        return Ok(Step::Useless("the bundle is not what the site hashed".to_owned()));
    }
    fs::rename(&path, dir.join(file_name(id)))?;
    File::open(dir)?.sync_all()?;
    Ok(Step::Whole { octets: there + part.data.len() as u64, sha256 })
}

/// SHA-256 of a file that is copied meanwhile.
fn digest(path: &Path, mut to: impl io::Write) -> io::Result<Vec<u8>> {
    let (mut file, mut digest, mut piece) = (File::open(path)?, Context::new(&SHA256), vec![0; 1 << 16]);
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(digest.finish().as_ref().to_vec()),
            length => {
                digest.update(&piece[..length]);
                to.write_all(&piece[..length])?;
            }
        }
    }
}

fn copy(from: &Path, to: &Path) -> io::Result<Vec<u8>> {
    // The mode counts for a new file alone.
    drop(fs::remove_file(to));
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let sha256 = digest(from, &mut out)?;
    out.sync_all()?;
    Ok(sha256)
}
