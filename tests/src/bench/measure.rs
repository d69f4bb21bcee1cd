//! Runs a program to its end and says what it took: wall time, CPU of it and its children, peak memory.

use crate::lab::Line;
use crate::process::dying_with_parent;
use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use std::io::{Read, Seek};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// Between two looks whether it has ended; wall times are right to this.
const LOOK: Duration = Duration::from_millis(2);
/// Looks between two looks at its memory.
const LOOKS_A_SIZE: u32 = 5;

/// What a program took, and said.
#[derive(Debug, Clone)]
pub struct Cost {
    /// From its start to its end.
    pub seconds: f64,
    /// User and system time of it and of its children.
    pub cpu: f64,
    /// The most memory it had (VmHWM), KiB; what it took in its last 10 ms may be missing.
    pub peak: u64,
    /// Exit status; -1 when a signal ended it.
    pub code: i32,
    /// Its stdout.
    pub stdout: String,
    /// Its stderr.
    pub stderr: String,
}

impl Cost {
    /// An error that shows what it said unless it exited with 0.
    ///
    /// # Errors
    /// See above.
    pub fn ok(self) -> Result<Cost> {
        if self.code != 0 {
            bail!("it exited with {}\n{:.2000}{:.2000}", self.code, self.stdout, self.stderr);
        }
        Ok(self)
    }
}

/// Ends what it holds, whatever happens.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `line`, which must end within `patience`. Nothing else may be started or waited for meanwhile: the CPU
/// time is that of all children that ended.
///
/// # Errors
/// When it cannot be started or does not end.
pub fn measure(line: &Line, patience: Duration) -> Result<Cost> {
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut command = dying_with_parent(&line.program);
    command.args(&line.args).stdin(Stdio::null());
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let before = children()?;
    let began = Instant::now();
    let child = command.spawn().with_context(|| format!("start {}", line.program.display()))?;
    let mut child = Guard(child);
    let (mut peak, mut looks) = (0, 0u32);
    let status = loop {
        if let Some(status) = child.0.try_wait().context("wait for a program")? {
            break status;
        }
        if began.elapsed() > patience {
            bail!("{} {:?} did not end within {patience:?}", line.program.display(), line.args);
        }
        if looks.is_multiple_of(LOOKS_A_SIZE) {
            peak = memory_of(child.0.id(), "VmHWM").unwrap_or(peak);
        }
        looks = looks.wrapping_add(1);
        std::thread::sleep(LOOK);
    };
    Ok(Cost {
        seconds: began.elapsed().as_secs_f64(),
        cpu: children()? - before,
        peak,
        code: status.code().unwrap_or(-1),
        stdout: text(stdout)?,
        stderr: text(stderr)?,
    })
}

fn text(mut file: std::fs::File) -> Result<String> {
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// CPU seconds of all children that have ended.
fn children() -> Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("ask for the CPU time")?;
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// CPU seconds of a running process, in steps of 10 ms (proc(5), stat).
///
/// # Errors
/// When there is none of that id.
pub fn cpu_of(id: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).context("read a process's times")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok());
    Ok((ticks(11).context("no user time")? + ticks(12).context("no system time")?) / 100.0)
}

/// A line of a process's status, in KiB: `VmRSS` or `VmHWM`.
#[must_use]
pub fn memory_of(id: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_burns_is_seen_to_burn() {
        let script = "n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done; echo done";
        let line = Line { program: "/bin/sh".into(), args: vec!["-c".to_owned(), script.to_owned()] };
        let cost = measure(&line, Duration::from_secs(60)).unwrap().ok().unwrap();
        assert_eq!(cost.stdout, "done\n");
        assert!(cost.cpu > 0.01 && cost.seconds > 0.01 && cost.peak > 100, "{cost:?}");
    }

    #[test]
    fn one_that_hangs_is_ended() {
        let line = Line { program: "/bin/sleep".into(), args: vec!["60".to_owned()] };
        let error = measure(&line, Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"));
    }
}
