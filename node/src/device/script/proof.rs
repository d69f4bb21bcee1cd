//! The first trial of a new version: on the recordings that a node holds, before it is committed.
//!
//! The only file of this room that reads a disk, and it reads one folder. A version that fails where the one in force
//! does not never reaches the log.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quire_coordinator::script::in_force;
use quire_proto::store::{PutScript, ScriptRow};
use tokio_util::sync::CancellationToken;

use super::scripts::over_shipped;
use super::{BadProfile, Limits, Profile, Recording, Scripts, rehearse};

/// Recordings that are tried, and the octets of each: a walk of a large copier has 2 MB.
const MOST: usize = 100;
const LONGEST: u64 = 8 << 20;

/// For all of them; one takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a script is not put.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// No profile at all.
    #[error(transparent)]
    Bad(#[from] BadProfile),
    /// It fails where the one in force does not.
    #[error("it fails on {failed} of {tried} recordings of this node, first on {first}: {why}")]
    Fails {
        /// How many.
        failed: usize,
        /// Of how many.
        tried: usize,
        /// The first file's name.
        first: String,
        /// What happened there.
        why: String,
    },
    /// It took too long, or its thread broke off.
    #[error("the recordings of this node took too long: {0:?} are allowed")]
    Late(Duration),
}

/// Compiles a source and tries it on the recordings of this node, beside those of `committed` that are in force, which
/// this node may run already or not; answers the command that puts it, and how many
/// recordings were of its devices.
///
/// # Errors
/// When it must not be put.
pub async fn accept(
    scripts: &Scripts,
    committed: &[ScriptRow],
    source: String,
    by: &str,
    now: bool,
) -> Result<(PutScript, usize), Refused> {
    let profile = Arc::new(Profile::parse(&source)?);
    let command = PutScript {
        name: profile.name.clone(),
        version: profile.version.clone(),
        source,
        sha256: profile.sha256.to_vec().into(),
        by: by.to_owned(),
        now,
    };
    let Some(folder) = scripts.recordings() else { return Ok((command, 0)) };
    let sources: Vec<String> = committed.iter().filter_map(in_force).map(|version| version.source).collect();
    let stop = CancellationToken::new();
    let token = stop.clone();
    let mut work = tokio::task::spawn_blocking(move || {
        // A source that this version cannot compile does not run here either.
        let active = over_shipped(sources.iter().filter_map(|source| Profile::parse(source).ok()));
        prove(&folder, &profile, &active, &token)
    });
    let done = match tokio::time::timeout(PATIENCE, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            stop.cancel();
            // It ends at the next step of a script.
            drop(work.await);
            return Err(Refused::Late(PATIENCE));
        }
    };
    Ok((command, done.map_err(|_| Refused::Late(PATIENCE))??))
}

/// Runs the new version, and those in force without it, on every recording of the folder.
fn prove(
    folder: &Path,
    profile: &Arc<Profile>,
    active: &[Arc<Profile>],
    stop: &CancellationToken,
) -> Result<usize, Refused> {
    let others = active.iter().filter(|other| other.name != profile.name);
    let with: Vec<Arc<Profile>> = others.chain([profile]).cloned().collect();
    let (mut tried, mut failures) = (0, Vec::new());
    for (name, recording) in held(folder) {
        let fails = |profiles: &[Arc<Profile>]| {
            let done = rehearse(&recording, profiles, Limits::default(), stop);
            done.runs.into_iter().find(|(name, ..)| *name == profile.name).map(|(_, ended, ..)| ended.err())
        };
        let Some(after) = fails(&with) else { continue };
        tried += 1;
        let before = fails(active).flatten();
        if let (Some(why), None) = (after, before) {
            failures.push((name, why.to_string()));
        }
    }
    match failures.first() {
        None => Ok(tried),
        Some((first, why)) => {
            let (first, why) = (first.clone(), why.clone());
            Err(Refused::Fails { failed: failures.len(), tried, first, why })
        }
    }
}

/// The recordings of a folder by name, in order; none where there is no folder.
fn held(folder: &Path) -> Vec<(String, Recording)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "snmprec"));
    paths.retain(|path| path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= LONGEST));
    paths.sort();
    paths.truncate(MOST);
    let read = |path: std::path::PathBuf| {
        let octets = std::fs::read(&path).ok()?;
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some((name, Recording::parse(&String::from_utf8_lossy(&octets))))
    };
    paths.into_iter().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRINTER: &str = "1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.99999.1\n1.3.6.1.2.1.43.10.2.1.4.1.1|65|900\n";

    fn source(version: u32, body: &str) -> String {
        format!("//! name: acme\n//! version: {version}\n//! match: object-id E.99999\n{body}")
    }

    #[tokio::test]
    async fn what_fails_on_a_recording_is_not_put() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("one.snmprec"), PRINTER).unwrap();
        std::fs::write(folder.path().join("other.snmprec"), "1.3.6.1.2.1.1.2.0|6|1.3.6.1.4.1.9.1\n").unwrap();
        let scripts = Scripts::with_recordings(folder.path().to_owned());
        let (command, tried) = accept(&scripts, &[], source(1, "log(`fine`);"), "me", false).await.unwrap();
        assert_eq!((command.name.as_str(), command.version.as_str(), tried), ("acme", "1", 1));
        let refused = accept(&scripts, &[], source(2, "throw `no`;"), "me", false).await.unwrap_err();
        assert!(matches!(refused, Refused::Fails { failed: 1, tried: 1, .. }), "{refused}");
        // One that fails no more than the one in force may go on.
        let row = |source: String| ScriptRow {
            name: "acme".to_owned(),
            sha256: vec![2; 32].into(),
            source,
            ..ScriptRow::default()
        };
        let bad = [row(source(2, "throw `no`;"))];
        assert_eq!(accept(&scripts, &bad, source(3, "throw `no`;"), "me", false).await.unwrap().1, 1);
        // What is committed counts, not what this node happens to run still.
        scripts.put_over(vec![Profile::parse(&source(2, "throw `no`;")).unwrap()]);
        let good = [row(source(1, "log(`fine`);"))];
        let refused = accept(&scripts, &good, source(3, "throw `no`;"), "me", false).await.unwrap_err();
        assert!(matches!(refused, Refused::Fails { failed: 1, tried: 1, .. }), "{refused}");
        assert!(matches!(accept(&scripts, &[], "let".to_owned(), "me", false).await, Err(Refused::Bad(_))));
    }

    #[tokio::test]
    async fn without_recordings_nothing_is_tried() {
        let accepted = accept(&Scripts::built_in(), &[], source(1, ""), "me", true).await.unwrap();
        assert_eq!((accepted.0.now, accepted.1), (true, 0));
    }
}
