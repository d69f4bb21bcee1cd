//! What was seen of a run from outside, in the order in which it was seen: by asking every node all along, from the
//! Web Admin's own log and listing, from the cables and from the devices. The checks know nothing else.
//!
//! API: [`Recorder::start`], [`Recorder::note`], [`Recorder::end`] for the [`History`].

use super::switch::Asked;
use crate::cluster::ask;
use crate::responder::Seen;
use anyhow::Result;
use quire_node::sim::Left;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between two looks at a node.
const LOOK: Duration = Duration::from_millis(150);
/// Between two looks at its readings; and so many times as long as a look took, because they become many.
const LOOK_AT_READINGS: Duration = Duration::from_secs(2);
const REST: u32 = 20;

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A node said how far it is.
    Status {
        /// Index of the last entry in its tables.
        applied: u64,
        /// Epoch of the claim in its tables.
        claim: u64,
        /// Whose claim that is.
        holder: String,
    },
    /// A node's tables say who has a unit; told when it is another than that node said before.
    Unit {
        /// The unit.
        unit: String,
        /// Its owner; empty for none.
        owner: String,
        /// Epoch of the grant.
        epoch: u64,
    },
    /// A reading is in a node's tables for the first time.
    Reading {
        /// Its id.
        id: String,
    },
    /// A process was started.
    Started,
    /// Something broke, or was put right.
    Happened {
        /// What.
        what: String,
        /// Whether it still lasts.
        lasts: bool,
    },
}

/// One thing that was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Since the beginning.
    pub at: Duration,
    /// Of which node; empty where that is not the matter.
    pub node: String,
    /// What.
    pub what: What,
}

/// A reading as the Web Admin lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its id.
    pub id: String,
    /// Its number in the outbox.
    pub seq: u64,
    /// Whose.
    pub device: String,
    /// When it was made, since 1970.
    pub at: Duration,
}

/// A stream that the Web Admin accepted, by its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whose.
    pub node: u64,
    /// Under which claim.
    pub epoch: u64,
}

/// All of a run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// What was seen of the nodes, and what happened to them.
    pub events: Vec<Event>,
    /// The Web Admin's readings in the order of their arrival.
    pub upstream: Vec<Stored>,
    /// The streams that it accepted, in order.
    pub links: Vec<Link>,
    /// Lines of its log about readings that it had under another number.
    pub repeated: Vec<String>,
    /// What went to devices.
    pub asked: Vec<Asked>,
    /// What devices answered.
    pub answered: Vec<Asked>,
    /// What the devices saw.
    pub devices: Seen,
    /// What each node's database held at the end, and at each of its deaths.
    pub left: Vec<(String, Left)>,
    /// What must not be asked, from when on.
    pub excluded: Option<(Duration, Vec<Ipv4Addr>)>,
    /// Packets a second that the settings allow.
    pub rate: u64,
}

#[derive(Debug, Default)]
struct Shared {
    events: Mutex<Vec<Event>>,
    stop: AtomicBool,
}

/// Watches all nodes.
#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    shared: Arc<Shared>,
    watchers: Vec<JoinHandle<()>>,
}

impl Recorder {
    /// Looks at the nodes in these data directories from now on.
    #[must_use]
    pub fn start(began: Instant, nodes: &[(String, PathBuf)]) -> Recorder {
        let shared = Arc::new(Shared::default());
        let watch = |(name, data): &(String, PathBuf)| {
            let watcher = Watcher {
                began,
                shared: Arc::clone(&shared),
                node: name.clone(),
                data: data.clone(),
                units: BTreeMap::new(),
                readings: BTreeSet::new(),
            };
            std::thread::spawn(move || watcher.run())
        };
        let watchers = nodes.iter().map(watch).collect();
        Recorder { began, shared, watchers }
    }

    /// Adds what the test itself did.
    pub fn note(&self, node: &str, what: What) {
        let at = self.began.elapsed();
        self.shared.add(Event { at, node: node.to_owned(), what });
    }

    /// All events so far.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.shared.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for watcher in self.watchers.drain(..) {
            let _ = watcher.join();
        }
    }

    /// Looks no more; gives what was seen.
    #[must_use]
    pub fn end(mut self) -> Vec<Event> {
        self.stop();
        self.events()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn add(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

struct Watcher {
    began: Instant,
    shared: Arc<Shared>,
    node: String,
    data: PathBuf,
    /// What the node said of each unit last.
    units: BTreeMap<String, (String, u64)>,
    readings: BTreeSet<String>,
}

impl Watcher {
    fn run(mut self) {
        let mut again = Instant::now();
        // A node that is dead, frozen or starting says nothing; that is no news.
        while !self.shared.stop.load(Ordering::Relaxed) {
            let _ = self.look();
            let before = Instant::now();
            if before >= again {
                let _ = self.look_at_readings();
                again = Instant::now() + LOOK_AT_READINGS.max(before.elapsed() * REST);
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.look_at_readings();
    }

    fn add(&self, what: What) {
        self.shared.add(Event { at: self.began.elapsed(), node: self.node.clone(), what });
    }

    fn look(&mut self) -> Result<()> {
        for row in ask(&self.data, "status")? {
            let upstream = &row["upstream"];
            self.add(What::Status {
                applied: row["applied"].as_u64().unwrap_or(0),
                claim: upstream["epoch"].as_u64().unwrap_or(0),
                holder: text(upstream, "holder"),
            });
        }
        for row in ask(&self.data, "units")? {
            let (unit, owner) = (text(&row, "unit"), text(&row, "node"));
            let told = (owner.clone(), row["epoch"].as_u64().unwrap_or(0));
            if self.units.get(&unit) != Some(&told) {
                let epoch = told.1;
                self.units.insert(unit.clone(), told);
                self.add(What::Unit { unit, owner, epoch });
            }
        }
        Ok(())
    }

    fn look_at_readings(&mut self) -> Result<()> {
        for row in ask(&self.data, "readings")? {
            let id = text(&row, "id");
            if self.readings.insert(id.clone()) {
                self.add(What::Reading { id });
            }
        }
        Ok(())
    }
}

fn text(row: &Value, key: &str) -> String {
    row[key].as_str().unwrap_or_default().to_owned()
}

/// The streams that the Web Admin's log says it accepted, and the lines about readings that it had already.
#[must_use]
pub fn links(log: &str) -> (Vec<Link>, Vec<String>) {
    let number = |line: &str, name: &str| {
        let rest = line.split_once(name)?.1;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    };
    let opened = log.lines().filter(|line| line.contains("link opened"));
    let links = opened
        .filter_map(|line| Some(Link { node: number(line, "node=")?, epoch: number(line, "epoch=")? }))
        .collect();
    let known = log.lines().filter(|line| line.contains("readings above the mark are known"));
    (links, known.map(str::to_owned).collect())
}

/// The Web Admin's readings, from its listing.
#[must_use]
pub fn stored(rows: &[Value]) -> Vec<Stored> {
    let stored = |row: &Value| Stored {
        id: text(row, "id"),
        seq: row["seq"].as_u64().unwrap_or(0),
        device: text(row, "device"),
        at: text(row, "at").parse().map_or(Duration::ZERO, |at: jiff::Timestamp| {
            Duration::from_millis(u64::try_from(at.as_millisecond()).unwrap_or(0))
        }),
    };
    rows.iter().map(stored).collect()
}

/// Writes the events to a file, a line each, for whoever looks for the cause of a violation.
///
/// # Errors
/// When it cannot be written.
pub fn write(events: &[Event], file: &Path) -> Result<()> {
    let line = |event: &Event| format!("{:9.3} {:4} {:?}\n", event.at.as_secs_f64(), event.node, event.what);
    Ok(std::fs::write(file, events.iter().map(line).collect::<String>())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_web_admins_log_tells_of_its_streams() {
        let log = "2026-11-22T21:00:00Z  INFO quire_admin::link: link opened site=\"a\" node=17 epoch=88 through=3 mode=\"service\"\n\
                   2026-11-22T21:00:01Z  INFO quire_admin::link: something else node=1 epoch=1\n\
                   2026-11-22T21:00:02Z  WARN quire_admin::link: readings above the mark are known site=\"a\" duplicates=1 conflicts=0\n";
        let (links, repeated) = links(log);
        assert_eq!(links, [Link { node: 17, epoch: 88 }]);
        assert_eq!(repeated.len(), 1);
    }
}
