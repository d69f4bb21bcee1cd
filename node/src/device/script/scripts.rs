//! The profiles in force on this node: those that are built in, and those that the cluster committed over them.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};

use tokio::sync::Semaphore;

use super::{Profile, Subject};
use crate::device::family::Family;

/// Sources that ship with the program. A test holds that each is a profile and that no file is left out.
pub(super) const BUILT_IN: &[&str] = &[
    include_str!("../../../profiles/brother.rhai"),
    include_str!("../../../profiles/canon.rhai"),
    include_str!("../../../profiles/dell.rhai"),
    include_str!("../../../profiles/epson.rhai"),
    include_str!("../../../profiles/honeywell.rhai"),
    include_str!("../../../profiles/hp.rhai"),
    include_str!("../../../profiles/konica.rhai"),
    include_str!("../../../profiles/kyocera.rhai"),
    include_str!("../../../profiles/lexmark.rhai"),
    include_str!("../../../profiles/oki.rhai"),
    include_str!("../../../profiles/panasonic.rhai"),
    include_str!("../../../profiles/pantum.rhai"),
    include_str!("../../../profiles/ricoh.rhai"),
    include_str!("../../../profiles/samsung.rhai"),
    include_str!("../../../profiles/sharp.rhai"),
    include_str!("../../../profiles/toshiba.rhai"),
    include_str!("../../../profiles/tsc.rhai"),
    include_str!("../../../profiles/xerox.rhai"),
    include_str!("../../../profiles/zebra.rhai"),
];

static PARSED: LazyLock<Vec<Arc<Profile>>> = LazyLock::new(|| {
    BUILT_IN.iter().filter_map(|source| Profile::parse(source).ok()).map(Arc::new).collect()
});

static SHIPPED: LazyLock<Profiles> = LazyLock::new(|| Profiles::of(PARSED.clone()));

/// Profiles in their order: of several that match, the later has the last word. Cheap to clone.
#[derive(Clone)]
pub struct Profiles(Arc<Vec<Arc<Profile>>>);

impl Default for Profiles {
    /// Those that ship.
    fn default() -> Self {
        SHIPPED.clone()
    }
}

/// The same set, not an equal one.
impl PartialEq for Profiles {
    fn eq(&self, other: &Profiles) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Profiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} profiles", self.0.len())
    }
}

impl Profiles {
    pub(super) fn of(mut profiles: Vec<Arc<Profile>>) -> Profiles {
        profiles.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
        Profiles(Arc::new(profiles))
    }

    /// What every header names.
    pub(crate) fn families(&self) -> impl Iterator<Item = &Family> {
        self.0.iter().map(|profile| &*profile.family)
    }

    /// What the headers name that are for this device, the best word first: the highest priority, then the family of
    /// the device's own number before that of the brand on its front.
    pub(crate) fn families_of(&self, subject: &Subject) -> Vec<Arc<Family>> {
        let mut matching: Vec<&Arc<Profile>> =
            self.0.iter().filter(|profile| profile.matches(subject)).collect();
        matching.sort_by_key(|profile| (Reverse(profile.priority), profile.place(subject)));
        matching.into_iter().map(|profile| Arc::clone(&profile.family)).collect()
    }
}

/// Scripts that run at the same time on a node: each holds one blocking thread, of which tokio has 512.
const RUNNING: usize = 32;

/// Cheap to clone; every clone sees the same profiles.
#[derive(Clone)]
pub struct Scripts(Arc<Inner>);

/// A profile's name and hash, and the family of the device that it failed on.
type Failing = (String, [u8; 32], String);

/// A profile's name and hash.
type Version = (String, [u8; 32]);

struct Inner {
    active: RwLock<Profiles>,
    /// How often each version failed in each device family. At most profiles by families, both bounded.
    failures: Mutex<BTreeMap<Failing, u64>>,
    running: Arc<Semaphore>,
    /// Runs and failures by name and hash, since somebody asked last.
    runs: Mutex<BTreeMap<Version, (u64, u64)>>,
    /// Where this node holds recordings to try new versions on.
    recordings: Option<PathBuf>,
}

/// How one version went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runs {
    /// Of the profile.
    pub name: String,
    /// Of its source.
    pub sha256: [u8; 32],
    /// All.
    pub runs: u64,
    /// Of these, the failed ones.
    pub failures: u64,
}

/// The built-in profiles with `profiles` in the place of those of the same names.
pub(super) fn over_shipped(profiles: impl IntoIterator<Item = Profile>) -> Vec<Arc<Profile>> {
    let shipped = PARSED.iter().map(|profile| (profile.name.clone(), Arc::clone(profile)));
    let put = profiles.into_iter().map(|profile| (profile.name.clone(), Arc::new(profile)));
    shipped.chain(put).collect::<BTreeMap<String, Arc<Profile>>>().into_values().collect()
}

impl Scripts {
    /// The built-in profiles.
    pub fn built_in() -> Scripts {
        Scripts::new(None)
    }

    /// The built-in profiles, on a node that may hold recordings in this folder.
    pub fn with_recordings(folder: PathBuf) -> Scripts {
        Scripts::new(Some(folder))
    }

    fn new(recordings: Option<PathBuf>) -> Scripts {
        let inner = Inner {
            active: RwLock::new(Profiles::default()),
            failures: Mutex::default(),
            running: Arc::new(Semaphore::new(RUNNING)),
            runs: Mutex::default(),
            recordings,
        };
        Scripts(Arc::new(inner))
    }

    /// Names of the profiles that ship with the program, and what they are.
    pub fn shipped() -> &'static [Arc<Profile>] {
        &PARSED
    }

    /// Puts `profiles` over the built-in ones of the same names.
    pub fn put_over(&self, profiles: Vec<Profile>) {
        let active = Profiles::of(over_shipped(profiles));
        *self.0.active.write().unwrap_or_else(PoisonError::into_inner) = active;
    }

    /// All in force.
    pub fn active(&self) -> Vec<Arc<Profile>> {
        self.profiles().0.to_vec()
    }

    /// All in force, for reads.
    pub fn profiles(&self) -> Profiles {
        self.0.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those for this device, the one with the last word last.
    pub fn matching(&self, subject: &Subject) -> Vec<Arc<Profile>> {
        self.active().into_iter().filter(|profile| profile.matches(subject)).collect()
    }

    /// Counts one run.
    pub(super) fn count_run(&self, profile: &Profile, failed: bool) {
        let mut runs = self.0.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = runs.entry((profile.name.clone(), profile.sha256)).or_default();
        entry.0 += 1;
        entry.1 += u64::from(failed);
    }

    /// How versions went since this was asked last.
    pub fn take_runs(&self) -> Vec<Runs> {
        let runs = std::mem::take(&mut *self.0.runs.lock().unwrap_or_else(PoisonError::into_inner));
        let one = |((name, sha256), (runs, failures))| Runs { name, sha256, runs, failures };
        runs.into_iter().map(one).collect()
    }

    /// The folder of recordings.
    pub(super) fn recordings(&self) -> Option<PathBuf> {
        self.0.recordings.clone()
    }

    /// Counts a failure; true when it is the first of this version in this family.
    pub(super) fn count_failure(&self, profile: &Profile, family: &str) -> bool {
        let mut failures = self.0.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let active = self.active();
        failures.retain(|(_, sha256, _), _| active.iter().any(|profile| profile.sha256 == *sha256));
        let count = failures.entry((profile.name.clone(), profile.sha256, family.to_owned())).or_insert(0);
        *count += 1;
        *count == 1
    }

    /// How often the version of this name that is in force has failed on this node.
    pub fn failures(&self, profile: &Profile) -> u64 {
        let failures = self.0.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().filter(|((_, sha256, _), _)| *sha256 == profile.sha256).map(|(_, n)| n).sum()
    }

    pub(super) fn running(&self) -> Arc<Semaphore> {
        Arc::clone(&self.0.running)
    }
}
