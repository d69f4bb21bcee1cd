//! Logs to stderr, the last of them in memory for a support bundle, and the counters behind `/metrics`.
//!
//! What it must never do: be given a secret. What is logged is kept, and may travel in a bundle.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, PoisonError};

use clap::ValueEnum;
use tracing::{Level, Metadata};
use tracing_subscriber::fmt::{Layer as Lines, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Lines that are remembered, and their octets together: half an hour of a busy node.
const LINES: usize = 2_000;
const OCTETS: usize = 1 << 20;
/// Of one line; what is longer is cut.
const LINE: usize = 4 << 10;

const NOTHING: Kept = Kept { lines: VecDeque::new(), octets: 0, errors: 0, last_error: None };

static LAST: Ring = Ring(Mutex::new(NOTHING));

/// Starts logging; `RUST_LOG` overrides `default`.
pub(crate) fn init(format: LogFormat, default: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let shown = Lines::new().with_writer(io::stderr);
    let shown = match format {
        LogFormat::Text => shown.with_ansi(false).boxed(),
        LogFormat::Json => shown.json().boxed(),
    };
    let kept = Lines::new().with_ansi(false).with_writer(Keeper(&LAST));
    // A second start in one process (tests) keeps the first.
    drop(tracing_subscriber::registry().with(filter).with(shown).with(kept).try_init());
}

/// The last lines of this process' log, oldest first.
pub(crate) fn last_lines() -> Vec<String> {
    LAST.kept().lines.iter().cloned().collect()
}

/// How many ERROR lines this process has logged, and the last of them.
pub(crate) fn errors() -> (u64, Option<String>) {
    let kept = LAST.kept();
    (kept.errors, kept.last_error.clone())
}

/// The last lines; the oldest go when there are too many.
struct Ring(Mutex<Kept>);

struct Kept {
    lines: VecDeque<String>,
    octets: usize,
    errors: u64,
    last_error: Option<String>,
}

impl Ring {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add(&mut self, line: &str, error: bool) {
        let line: String = line.trim_end().chars().take(LINE).collect();
        if error {
            self.errors += 1;
            self.last_error = Some(line.clone());
        }
        self.octets += line.len();
        self.lines.push_back(line);
        while self.lines.len() > LINES || self.octets > OCTETS {
            self.octets -= self.lines.pop_front().map_or(0, |line| line.len());
        }
    }
}

/// The ring as a place that log lines go to.
struct Keeper(&'static Ring);

/// One line on its way into the ring.
struct Line {
    ring: &'static Ring,
    error: bool,
}

impl MakeWriter<'_> for Keeper {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line { ring: self.0, error: false }
    }

    fn make_writer_for(&self, meta: &Metadata<'_>) -> Line {
        Line { ring: self.0, error: *meta.level() == Level::ERROR }
    }
}

impl io::Write for Line {
    /// A whole line: that is how the layer writes.
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.ring.kept().add(&String::from_utf8_lossy(octets), self.error);
        Ok(octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The innermost reason of an error, which says more than the layers around it.
pub(crate) fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_and_no_more() {
        let ring: &'static Ring = Box::leak(Box::new(Ring(Mutex::new(NOTHING))));
        let subscriber =
            tracing_subscriber::registry().with(Lines::new().with_ansi(false).with_writer(Keeper(ring)));
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..LINES + 3 {
                tracing::info!(n, "a line");
            }
            tracing::error!("trouble\nof two lines");
        });
        let kept = ring.kept();
        assert_eq!((kept.lines.len(), kept.errors), (LINES, 1));
        assert!(kept.lines[0].contains("n=4"), "{}", kept.lines[0]);
        assert!(kept.last_error.as_ref().is_some_and(|line| line.contains("trouble")));
        assert_eq!(kept.octets, kept.lines.iter().map(String::len).sum::<usize>());
    }

    #[test]
    fn long_lines_are_cut_and_push_out_old_ones() {
        let mut kept = NOTHING;
        for _ in 0..1_000 {
            kept.add(&"x".repeat(3 * LINE), false);
        }
        assert!(kept.octets <= OCTETS && kept.lines.len() == OCTETS / LINE);
    }
}
