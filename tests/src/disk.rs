//! Small disks, and somebody else who fills them.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system of its own; it goes with this.
#[derive(Debug)]
pub struct Disk(PathBuf);

impl Disk {
    /// `None` where none can be mounted.
    ///
    /// # Errors
    /// When there is no room for a directory.
    pub fn mount(at: &Path, megabytes: u64) -> Result<Option<Disk>> {
        std::fs::create_dir(at).context("make a place for a disk")?;
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m,mode=0700"), "quire-test"])
            .arg(at)
            .output()
            .context("run mount")?;
        Ok(mounted.status.success().then(|| Disk(at.to_owned())))
    }

    /// Leaves so many MB.
    ///
    /// # Errors
    /// When it cannot be looked at or written.
    pub fn fill(&self, left: u64) -> Result<()> {
        let stat =
            Command::new("df").args(["--output=avail", "-B1M"]).arg(&self.0).output().context("run df")?;
        let free =
            String::from_utf8_lossy(&stat.stdout).lines().nth(1).unwrap_or_default().trim().parse::<u64>()?;
        let some = vec![1; usize::try_from(free.saturating_sub(left))? << 20];
        std::fs::write(self.0.join("somebody-else"), some).context("fill the disk")
    }

    /// Takes away what filled it.
    ///
    /// # Errors
    /// When nothing did.
    pub fn clear(&self) -> Result<()> {
        std::fs::remove_file(self.0.join("somebody-else")).context("make room")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
