//! Room on the disk: a node that runs out of it gives its work and its lead to others before it must, collects nothing
//! until there is room again, and then takes part as before, by itself.
//!
//! A reserve stands in the data directory while there is room. It goes when room runs out, so that whatever else fills
//! the disk, the node can still write what it takes to step back and to start again.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use quire_coordinator::rows;
use quire_proto::store::{UpdateMember, command};
use tokio::sync::watch;

use super::propose::Proposer;
use super::raft::away;

/// The reserve's name in the data directory.
const RESERVE: &str = "reserve";
/// The reserve: a full memtable and its file on their way, twice.
const RESERVE_OCTETS: u64 = 32 << 20;
/// A twentieth of the disk, but no less and no more than these, is where room counts as running out: the largest
/// compaction of a fleet of 10,000 rewrites some 200 MB.
const LOW_AT_LEAST: u64 = 48 << 20;
const LOW_AT_MOST: u64 = 512 << 20;
/// A disk fills by 100 MB a second at the most on a small VM; what counts is that the lead is given away in time.
const LOOK: Duration = Duration::from_secs(2);
/// How long a commit may take; the next look repeats it.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much room there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Space {
    /// Enough to work.
    #[default]
    Enough,
    /// Too little: nothing new is begun here.
    Short,
}

/// What a file system holds, octets.
#[derive(Clone, Copy, Debug)]
struct Room {
    free: u64,
    size: u64,
}

impl Room {
    fn of(path: &Path) -> io::Result<Room> {
        let stat = nix::sys::statvfs::statvfs(path)?;
        let block = stat.fragment_size();
        Ok(Room { free: stat.blocks_available() * block, size: stat.blocks() * block })
    }

    /// Below this room is short; at twice as much there is enough again.
    fn low(self) -> u64 {
        (self.size / 20).clamp(LOW_AT_LEAST, LOW_AT_MOST)
    }

    /// What follows from `before`; between the two bounds it stays.
    fn judge(self, before: Space) -> Space {
        match before {
            Space::Enough if self.free < self.low() => Space::Short,
            Space::Short if self.free >= 2 * self.low() => Space::Enough,
            same => same,
        }
    }
}

/// Lets go of the reserve, so that a node can start on a disk that was full.
pub(crate) fn give_up_reserve(dir: &Path) {
    // Where there is none, there is nothing to let go of.
    let _ = fs::remove_file(dir.join(RESERVE));
}

/// Puts the reserve there.
fn keep_reserve(dir: &Path) -> io::Result<()> {
    let path = dir.join(RESERVE);
    if fs::metadata(&path).is_ok_and(|known| known.len() == RESERVE_OCTETS) {
        return Ok(());
    }
    let file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    // Blocks without a write: nobody's fsync waits for them.
    let kept = nix::fcntl::posix_fallocate(&file, 0, RESERVE_OCTETS as i64);
    Ok(kept.inspect_err(|_| give_up_reserve(dir))?)
}

/// Looks after the room in `dir` until it is dropped: `tell` follows it, and the node's own row says so to the leader.
pub(super) async fn keep(dir: PathBuf, proposer: Proposer, tell: watch::Sender<Space>) {
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        look.tick().await;
        let (path, before) = (dir.clone(), *tell.borrow());
        let looked = away(move || settle(&path, before)).await;
        let (space, room) = match looked {
            Ok(looked) => looked,
            Err(error) => {
                tracing::warn!(%error, "the room on the disk is not known");
                continue;
            }
        };
        let trouble = match space {
            Space::Enough => String::new(),
            Space::Short => "the disk is nearly full".to_owned(),
        };
        if space != before {
            announce(&dir, space, room);
            tell.send_replace(space);
        }
        say(&proposer, trouble).await;
    }
}

/// Judges the room, and keeps the reserve or gives it up.
fn settle(dir: &Path, before: Space) -> io::Result<(Space, Room)> {
    let room = Room::of(dir)?;
    let space = room.judge(before);
    match space {
        Space::Short => give_up_reserve(dir),
        // Not so much that the reserve itself would make it short.
        Space::Enough if room.free >= 2 * room.low() + RESERVE_OCTETS => {
            if let Err(error) = keep_reserve(dir) {
                // The room is what counts; the next look tries again.
                tracing::debug!(%error, dir = %dir.display(), "no reserve on the disk");
            }
        }
        Space::Enough => {}
    }
    Ok((space, room))
}

fn announce(dir: &Path, space: Space, room: Room) {
    let (dir, free, needed) = (dir.display(), room.free >> 20, (2 * room.low()) >> 20);
    match space {
        Space::Short => tracing::error!(
            "{free} MB are left on the disk of {dir}: this node collects nothing and leads only where no other can, \
             until {needed} MB are free; make room there"
        ),
        Space::Enough => {
            tracing::info!("{free} MB are free on the disk of {dir} again: this node takes part as before")
        }
    }
}

/// Tells the cluster, where it does not know yet.
async fn say(proposer: &Proposer, trouble: String) {
    let row = proposer
        .store
        .view()
        .ok()
        .and_then(|view| rows::member(&view, quire_proto::id::NodeId(proposer.me)).ok());
    let Some(row) = row.flatten().filter(|row| row.trouble != trouble) else { return };
    let update = UpdateMember { id: row.id, trouble: Some(trouble), ..UpdateMember::default() };
    if let Err(error) = proposer.propose(command::Kind::UpdateMember(update), PATIENCE).await {
        tracing::debug!(%error, "the cluster does not know of this node's room yet; said again");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn room_runs_out_and_comes_back_with_a_distance_between() {
        let room = |free| Room { free, size: 20_000 * MIB };
        assert_eq!(room(0).low(), 512 * MIB);
        assert_eq!(room(511 * MIB).judge(Space::Enough), Space::Short);
        assert_eq!(room(600 * MIB).judge(Space::Short), Space::Short);
        assert_eq!(room(600 * MIB).judge(Space::Enough), Space::Enough);
        assert_eq!(room(1024 * MIB).judge(Space::Short), Space::Enough);
        assert_eq!(Room { free: 0, size: 100 * MIB }.low(), 48 * MIB, "a small disk");
    }

    #[test]
    fn the_reserve_is_there_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        keep_reserve(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join(RESERVE)).unwrap().len(), RESERVE_OCTETS);
        fs::write(dir.path().join(RESERVE), b"cut short").unwrap();
        keep_reserve(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path().join(RESERVE)).unwrap().len(), RESERVE_OCTETS);
        give_up_reserve(dir.path());
        give_up_reserve(dir.path());
        assert!(!dir.path().join(RESERVE).exists());
    }
}
