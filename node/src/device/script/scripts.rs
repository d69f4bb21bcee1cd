//! The profiles in force on this node: those that are built in, and those that the cluster committed over them.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, RwLock};

use tokio::sync::Semaphore;

use super::{Profile, Subject};

/// Sources that ship with the program. A test holds that each is a profile.
pub(super) const BUILT_IN: &[&str] =
    &[include_str!("../../../profiles/brother.rhai"), include_str!("../../../profiles/kyocera.rhai")];

static PARSED: LazyLock<Vec<Arc<Profile>>> = LazyLock::new(|| {
    BUILT_IN.iter().filter_map(|source| Profile::parse(source).ok()).map(Arc::new).collect()
});

/// Scripts that run at the same time on a node: each holds one blocking thread, of which tokio has 512.
const RUNNING: usize = 32;

/// Cheap to clone; every clone sees the same profiles.
#[derive(Clone)]
pub struct Scripts(Arc<Inner>);

/// A profile's name and hash, and the family of the device that it failed on.
type Failing = (String, [u8; 32], String);

struct Inner {
    active: RwLock<Vec<Arc<Profile>>>,
    /// How often each version failed in each device family. At most profiles by families, both bounded.
    failures: Mutex<BTreeMap<Failing, u64>>,
    running: Arc<Semaphore>,
}

impl Scripts {
    /// The built-in profiles.
    pub fn built_in() -> Scripts {
        let inner = Inner {
            active: RwLock::new(ordered(PARSED.clone())),
            failures: Mutex::default(),
            running: Arc::new(Semaphore::new(RUNNING)),
        };
        Scripts(Arc::new(inner))
    }

    /// Names of the profiles that ship with the program, and what they are.
    pub fn shipped() -> &'static [Arc<Profile>] {
        &PARSED
    }

    /// Puts `profiles` over the built-in ones of the same names.
    pub fn put_over(&self, profiles: Vec<Profile>) {
        let mut by_name: BTreeMap<String, Arc<Profile>> =
            PARSED.iter().map(|profile| (profile.name.clone(), Arc::clone(profile))).collect();
        for profile in profiles {
            by_name.insert(profile.name.clone(), Arc::new(profile));
        }
        let active = ordered(by_name.into_values().collect());
        *self.0.active.write().unwrap_or_else(PoisonError::into_inner) = active;
    }

    /// All in force.
    pub fn active(&self) -> Vec<Arc<Profile>> {
        self.0.active.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Those for this device, the one with the last word last.
    pub fn matching(&self, subject: &Subject) -> Vec<Arc<Profile>> {
        self.active().into_iter().filter(|profile| profile.matches(subject)).collect()
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

fn ordered(mut profiles: Vec<Arc<Profile>>) -> Vec<Arc<Profile>> {
    profiles.sort_by(|a, b| (a.priority, &a.name).cmp(&(b.priority, &b.name)));
    profiles
}
