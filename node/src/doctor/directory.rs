//! The data directory and the disk below it.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;

use super::Finding;
use crate::cluster::SECRET_FILES;

/// Free space below which a human should act: the write-ahead log (256 MiB) and a compaction of as much.
const LEAST: u64 = 512 << 20;
/// Free inodes: RocksDB makes and removes files all the time.
const INODES: u64 = 1_000;

/// Everything that can be seen of a data directory from outside.
pub(super) fn look(dir: &Path) -> Vec<Finding> {
    if let Err(error) = fs::metadata(dir) {
        return vec![unreadable("data-directory", dir, &error)];
    }
    let mut found = vec![owner(dir, Uid::effective().as_raw())];
    found.extend(secrets(dir));
    found.push(space(dir));
    found.push(match fs::read_to_string("/proc/self/mountinfo") {
        Ok(mounts) => file_system(&mounts, &dir.canonicalize().unwrap_or_else(|_| dir.to_owned())),
        Err(error) => Finding::note("file-system", format!("/proc/self/mountinfo: {error}"), ""),
    });
    found
}

/// Whose it is, and who else may look.
fn owner(dir: &Path, me: u32) -> Finding {
    const CHECK: &str = "data-directory";
    let shown = dir.display();
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(error) => return unreadable(CHECK, dir, &error),
    };
    let mode = meta.permissions().mode() & 0o777;
    if meta.uid() != me && me != 0 {
        let what = format!("{shown} belongs to user {}, and this is user {me}", meta.uid());
        return Finding::problem(
            CHECK,
            what,
            format!("run as user {}, or `chown -R {me} {shown}`", meta.uid()),
        );
    }
    if mode & 0o077 != 0 {
        let what = format!("{shown} has mode {mode:03o}: other users of this machine may look into it");
        return Finding::problem(CHECK, what, format!("`chmod 700 {shown}`"));
    }
    Finding::ok(CHECK, format!("{shown}, mode {mode:03o}, of user {}", meta.uid()))
}

fn unreadable(check: &'static str, path: &Path, error: &io::Error) -> Finding {
    let what = format!("{}: {error}", path.display());
    let fix = match error.kind() {
        io::ErrorKind::NotFound => "name the node's data directory with --data-dir",
        io::ErrorKind::PermissionDenied => "run this as the user that the node runs as, or as root",
        _ => "look at the disk",
    };
    Finding::problem(check, what, fix)
}

/// Files that only the node's user may read.
fn secrets(dir: &Path) -> Vec<Finding> {
    const CHECK: &str = "secret-files";
    let mut found = Vec::new();
    for name in SECRET_FILES {
        let path = dir.join(name);
        match fs::metadata(&path) {
            Ok(meta) => {
                let mode = meta.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    let what = format!("{} has mode {mode:03o}: other users may read it", path.display());
                    let fix = format!("`chmod 600 {}`; whoever read it can be this node", path.display());
                    found.push(Finding::problem(CHECK, what, fix).about(name));
                }
            }
            Err(error) => found.push(unreadable(CHECK, &path, &error).about(name)),
        }
    }
    if found.is_empty() {
        found.push(Finding::ok(CHECK, "readable to the node's user alone"));
    }
    found
}

fn space(dir: &Path) -> Finding {
    match statvfs(dir) {
        Ok(disk) => {
            let block = disk.fragment_size();
            let free = disk.blocks_available().saturating_mul(block);
            // Some file systems make inodes as they need them, and count none.
            let inodes = (disk.files() > 0).then_some(disk.files_available());
            judge_space(free, inodes, size(&dir.join("db")))
        }
        Err(error) => unreadable("space", dir, &error.into()),
    }
}

/// `free` octets, `inodes` where they are counted, beside a database of `database` octets.
fn judge_space(free: u64, inodes: Option<u64>, database: u64) -> Finding {
    const CHECK: &str = "space";
    let mega = |octets: u64| octets >> 20;
    let what = format!("{} MiB free, the database has {} MiB", mega(free), mega(database));
    if free < LEAST {
        let fix = format!("free at least {} MiB, or move the data directory to a larger disk", mega(LEAST));
        return Finding::problem(CHECK, what, fix);
    }
    if let Some(inodes) = inodes.filter(|inodes| *inodes < INODES) {
        return Finding::problem(
            CHECK,
            format!("{inodes} inodes are free"),
            "remove files from this file system",
        );
    }
    if free < database {
        let fix =
            "a node that lagged far behind receives the tables anew, beside the old ones: keep as much free";
        return Finding::note(CHECK, what, fix);
    }
    Finding::ok(CHECK, what)
}

/// Octets of the files in a directory; 0 where it cannot be read.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).sum()
}

/// What holds the directory, by /proc/self/mountinfo (proc(5)).
fn file_system(mounts: &str, dir: &Path) -> Finding {
    const CHECK: &str = "file-system";
    let mount = mounts.lines().filter_map(Mount::parse).filter(|mount| dir.starts_with(&mount.at));
    // Of mounts on the same place the last one is seen.
    let Some(mount) = mount.max_by_key(|mount| mount.at.as_os_str().len()) else {
        return Finding::note(CHECK, "not known", "");
    };
    let what = format!("{} on {}", mount.kind, mount.at.display());
    let local = "put the data directory on a local disk (ext4, xfs, btrfs, zfs)";
    if mount.read_only {
        return Finding::problem(CHECK, format!("{what} is mounted read-only"), "mount it for writing");
    }
    match mount.kind.as_str() {
        "tmpfs" | "ramfs" => {
            Finding::problem(CHECK, format!("{what} is memory: everything is lost with a reboot"), local)
        }
        "nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "virtiofs" | "ceph" | "glusterfs" => Finding::problem(
            CHECK,
            format!("{what} is a network's: locks and fsync are not to be relied on"),
            local,
        ),
        kind if kind.starts_with("fuse") => {
            Finding::problem(CHECK, format!("{what}: locks and fsync of FUSE are not to be relied on"), local)
        }
        "overlay" | "aufs" => Finding::note(
            CHECK,
            format!("{what} is a container's own layer: the node is lost with its container"),
            "give the container a volume for the data directory",
        ),
        _ => Finding::ok(CHECK, what),
    }
}

struct Mount {
    at: std::path::PathBuf,
    kind: String,
    read_only: bool,
}

impl Mount {
    /// `36 35 98:0 / /var rw,noatime shared:1 - ext4 /dev/sda1 rw`.
    fn parse(line: &str) -> Option<Mount> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(4);
        let (at, options) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let kind = right.next()?.to_owned();
        let whole = right.nth(1).unwrap_or_default();
        let read_only = [options, whole].iter().any(|options| options.split(',').any(|word| word == "ro"));
        // Blanks in names are written in octal.
        Some(Mount { at: at.replace("\\040", " ").into(), kind, read_only })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::State;

    #[test]
    fn little_space_is_a_problem_and_less_than_the_database_a_note() {
        let state = |free: u64, inodes, database: u64| judge_space(free << 20, inodes, database << 20).state;
        assert_eq!(state(100, None, 1), State::Problem);
        assert_eq!(state(9_000, Some(3), 1), State::Problem);
        assert_eq!(state(600, Some(9_999), 700), State::Note);
        assert_eq!(state(9_000, None, 700), State::Ok);
        assert!(judge_space(1 << 20, None, 0).fix.contains("512 MiB"));
    }

    #[test]
    fn the_file_system_below_a_directory_is_told() {
        let mounts = "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                      30 21 0:26 / /var/lib rw shared:2 - nfs4 host:/x rw\n\
                      31 21 0:27 / /run rw - tmpfs tmpfs rw\n32 21 0:28 / /ro rw - xfs /dev/sdb ro\n\
                      33 21 0:29 / /with\\040blank rw - fuse.sshfs x rw\nbroken\n";
        let state = |dir: &str| {
            let found = file_system(mounts, Path::new(dir));
            (found.state, found.what)
        };
        assert_eq!(state("/srv/quire"), (State::Ok, "ext4 on /".to_owned()));
        assert_eq!(state("/var/library").0, State::Ok);
        for bad in ["/var/lib/quire", "/run/quire", "/ro/quire", "/with blank/quire"] {
            assert_eq!(state(bad).0, State::Problem, "{bad}");
        }
        assert_eq!(file_system("", Path::new("/x")).state, State::Note);
    }

    #[test]
    fn what_others_may_read_is_named_with_the_command_that_closes_it() {
        let dir = tempfile::TempDir::new().unwrap();
        let me = Uid::effective().as_raw();
        let set = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        set(dir.path(), 0o755);
        assert!(owner(dir.path(), me).fix.contains("chmod 700"));
        set(dir.path(), 0o700);
        assert_eq!(owner(dir.path(), me).state, State::Ok);
        assert_eq!(secrets(dir.path()).len(), 3, "all are missing");
        for name in SECRET_FILES {
            fs::write(dir.path().join(name), "x").unwrap();
            set(&dir.path().join(name), 0o600);
        }
        assert_eq!(secrets(dir.path())[0].state, State::Ok);
        set(&dir.path().join(SECRET_FILES[1]), 0o640);
        let found = secrets(dir.path());
        assert_eq!((found.len(), found[0].about.as_str()), (1, SECRET_FILES[1]));
        assert_eq!(owner(Path::new("/nonexistent"), me).state, State::Problem);
        if me != 0 {
            assert_eq!(owner(Path::new("/"), me).state, State::Problem, "of root");
        }
    }
}
