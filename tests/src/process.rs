//! Child processes that do not outlive a test: started with a log file, watched by polling their own
//! answers, killed when dropped, and by the kernel when their parent dies in any other way.

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Between two looks at what is waited for.
const POLL: Duration = Duration::from_millis(100);
/// Last lines of a log that a failure shows.
const TAIL: usize = 40;

/// Set when a person wants everything to end: [`wait`] and [`run`] give up at once.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Makes every wait of this process end with an error from now on.
pub fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// Whether [`interrupt`] was called.
#[must_use]
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A program ended that was to keep running: [`wait`] waits no longer.
#[derive(Debug)]
pub struct Ended(String);

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Ended {}

/// A running program and its log.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts `program` with stdout and stderr appended to `log`, in a process group of its own.
    pub fn start<S: AsRef<OsStr>>(name: &str, program: &Path, args: &[S], log: &Path) -> Result<Process> {
        Process::start_with(name, program, args, log, &[])
    }

    /// The same with environment variables.
    pub fn start_with<S: AsRef<OsStr>>(
        name: &str,
        program: &Path,
        args: &[S],
        log: &Path,
        environment: &[(&str, &Path)],
    ) -> Result<Process> {
        let output = OpenOptions::new().create(true).append(true).open(log);
        let output = output.with_context(|| format!("open the log {}", log.display()))?;
        let mut command = dying_with_parent(program);
        command.args(args).envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(output.try_clone().context("share the log")?).stderr(output);
        let child = command.process_group(0).spawn();
        let child = child.with_context(|| format!("start {} ({})", name, program.display()))?;
        Ok(Process { name: name.to_owned(), child, log: log.to_owned(), ended: None })
    }

    /// What it is called in messages.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// An error that ends every [`wait`] once it has ended.
    pub fn must_run(&mut self) -> Result<()> {
        match self.ended() {
            None => Ok(()),
            Some(status) => Err(Ended(format!("{} ended with {status}\n{}", self.name, self.tail())).into()),
        }
    }

    /// Ends it at once, as a power cut would (SIGKILL), and waits until it is gone.
    pub fn kill(&mut self) {
        if self.ended().is_none() {
            // The whole group: a program may have started others.
            self.signal(Signal::SIGKILL);
            self.ended = self.child.wait().ok();
        }
    }

    /// Asks it to end (SIGTERM); an error when it has not within `patience`, after which it is killed.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus> {
        if self.ended().is_none() {
            self.signal(Signal::SIGTERM);
        }
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return Ok(status);
            }
            if Instant::now() > deadline {
                self.kill();
                bail!("{} did not end within {patience:?} of SIGTERM\n{}", self.name, self.tail());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: Signal) {
        if let Ok(id) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(-id), signal);
        }
    }

    /// The whole log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The log's last lines, for a message.
    #[must_use]
    pub fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL)..];
        format!("--- {} ({} lines, the last {})\n{}\n", self.name, lines.len(), tail.len(), tail.join("\n"))
    }

    /// Lines of level ERROR, and panics: each means that a human must look.
    #[must_use]
    pub fn errors(&self) -> Vec<String> {
        self.log()
            .lines()
            .filter(|line| is_error(line))
            .map(|line| format!("{}: {line}", self.name))
            .collect()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            complain(&self.tail());
            complain(&self.errors().join("\n"));
        }
    }
}

fn is_error(line: &str) -> bool {
    let level =
        line.split_whitespace().take(3).any(|word| word == "ERROR") || line.contains("\"level\":\"ERROR\"");
    level || (line.starts_with("thread '") && line.contains("panicked at"))
}

/// Writes to stderr, which the test runner shows for a failed test.
pub fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `setpriv --pdeathsig` makes the kernel kill the child when the thread that started it ends, however it
/// ends; without it only [`Drop`] does. `QUIRE_…` of the caller must not reach a program under test: every
/// option can be given by such a variable.
pub fn dying_with_parent(program: &Path) -> Command {
    let setpriv = Path::new("/usr/bin/setpriv");
    let mut command = if setpriv.exists() {
        let mut command = Command::new(setpriv);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("QUIRE_")) {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit status; -1 when a signal ended it.
    pub code: i32,
    /// stdout.
    pub stdout: String,
    /// stderr.
    pub stderr: String,
}

impl Output {
    /// Its stdout; an error that shows everything unless it exited with 0.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("{} exited with {}\n{}{}", self.command, self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }

    /// stdout as one JSON value a line.
    pub fn json(self) -> Result<Vec<serde_json::Value>> {
        let command = self.command.clone();
        let parse =
            |line: &str| serde_json::from_str(line).with_context(|| format!("{command} printed {line:?}"));
        self.ok()?.lines().map(parse).collect()
    }
}

/// Runs a program to its end, which must come within `patience`. Its output goes through files, so that
/// much of it cannot block the program.
pub fn run<S: AsRef<OsStr>>(program: &Path, args: &[S], patience: Duration) -> Result<Output> {
    let words: Vec<_> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let line = format!("{name} {}", words.join(" "));
    let (stdout, stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut command = dying_with_parent(program);
    command.args(args).stdin(Stdio::null()).process_group(0);
    command.stdout(stdout.try_clone()?).stderr(stderr.try_clone()?);
    let child = command.spawn().with_context(|| format!("start {line}"))?;
    let mut process = Process { name: line.clone(), child, log: PathBuf::new(), ended: None };
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(2);
    let status = loop {
        if let Some(status) = process.ended() {
            break status;
        }
        if interrupted() {
            bail!("interrupted");
        }
        if Instant::now() > deadline {
            process.kill();
            bail!("{line} did not end within {patience:?}\n{}{}", text(stdout)?, text(stderr)?);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(POLL);
    };
    Ok(Output {
        command: line,
        code: status.code().unwrap_or(-1),
        stdout: text(stdout)?,
        stderr: text(stderr)?,
    })
}

fn text(mut file: File) -> Result<String> {
    use std::io::Seek;
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Polls `look` until it gives something, or [`Ended`]; the last reason why it did not stands in the error.
pub fn wait<T>(what: &str, patience: Duration, mut look: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(_) if interrupted() => bail!("interrupted"),
            Err(reason) if reason.is::<Ended>() => return Err(reason.context(format!("waited for {what}"))),
            Err(reason) if Instant::now() > deadline => {
                return Err(reason.context(format!("waited {patience:?} for {what}")));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

/// A TCP port of `host` that nothing listened on a moment ago.
pub fn free_tcp_port(host: IpAddr) -> Result<u16> {
    let listener = TcpListener::bind((host, 0)).with_context(|| format!("find a free port of {host}"))?;
    Ok(listener.local_addr()?.port())
}

/// A UDP port of `host` that nothing listened on a moment ago.
pub fn free_udp_port(host: IpAddr) -> Result<u16> {
    let socket = UdpSocket::bind((host, 0)).with_context(|| format!("find a free port of {host}"))?;
    Ok(socket.local_addr()?.port())
}

/// The status and body of a GET over plain HTTP/1.1, as a probe would ask.
pub fn http_get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))
        .with_context(|| format!("connect to {address}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).with_context(|| format!("read from {address}"))?;
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.with_context(|| format!("{address} does not speak HTTP: {answer:.80}"))?, body.to_owned()))
}

/// Whether a process exists.
#[must_use]
pub fn lives(id: u32) -> bool {
    Path::new(&format!("/proc/{id}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_lines_of_that_level_and_panics() {
        assert!(is_error("2026-11-22T11:00:00.0Z ERROR quire::leader: cannot write"));
        assert!(is_error(r#"{"timestamp":"…","level":"ERROR","fields":{}}"#));
        assert!(is_error("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(!is_error("2026-11-22T11:00:00.0Z  INFO quire: the word ERROR in a message"));
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let process =
            Process::start("sleep", Path::new("/bin/sleep"), &["60"], &dir.path().join("log")).unwrap();
        let id = process.id();
        assert!(lives(id));
        drop(process);
        assert!(!lives(id));
    }

    #[test]
    fn a_command_gives_status_and_both_outputs() {
        let args = ["-c", "echo out; echo err >&2; exit 3"];
        let output = run(Path::new("/bin/sh"), &args, Duration::from_secs(20)).unwrap();
        assert_eq!((output.code, output.stdout.as_str(), output.stderr.as_str()), (3, "out\n", "err\n"));
        assert!(output.ok().unwrap_err().to_string().contains("exited with 3"));
    }

    #[test]
    fn a_command_that_hangs_is_ended() {
        let error = run(Path::new("/bin/sleep"), &["60"], Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"));
    }
}
