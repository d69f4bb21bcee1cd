//! The replicated settings, with their secrets opened in memory and sealed everywhere else.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use data_encoding::BASE64_NOPAD;
use quire_coordinator::settings::{self, BadSettings, Notify, Settings};
use quire_coordinator::tables::Fault;
use quire_coordinator::{rotation, rows};
use quire_proto::store::{PutSettings, command};
use zeroize::Zeroizing;

use super::{Cluster, KeyError, Keys, ProposeError};

/// Marks a secret that is sealed with the cluster's key.
const SEALED: &str = "sealed:";

/// Why there are no settings to work with.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The text is not what settings look like.
    #[error(transparent)]
    Bad(#[from] BadSettings),
    /// The store below failed.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The key could not be used.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl SettingsError {
    /// Whether it is over as soon as this node has fetched the cluster key from another member.
    pub(crate) fn passes(&self) -> bool {
        matches!(self, SettingsError::Key(KeyError::Missing(_)))
    }
}

/// Why settings were not put in force.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// They cannot be.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The cluster did not take them.
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

/// How often settings are sealed again, and what lies between: a follower applies what is committed within a heartbeat.
const RESEALS: u32 = 20;
const AGAIN: Duration = Duration::from_millis(100);

/// The settings that were opened last, by the log index that made them.
#[derive(Default)]
pub(super) struct Latest(Mutex<Option<(u64, Arc<Settings>)>>);

impl Cluster {
    /// The settings in force; `None` before the first were applied.
    ///
    /// # Errors
    /// When they cannot be opened.
    pub fn settings(&self) -> Result<Option<Arc<Settings>>, SettingsError> {
        let meta = rows::meta(&self.view())?;
        if meta.settings_index == 0 {
            return Ok(None);
        }
        let mut latest = self.settings.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((index, settings)) = &*latest
            && *index == meta.settings_index
        {
            return Ok(Some(Arc::clone(settings)));
        }
        let (keys, mut missing) = (self.keys(), None);
        let clear =
            settings::open_secrets(&meta.settings_toml, &mut |path, sealed| match open(keys, path, sealed) {
                Ok(clear) => Some(clear),
                Err(error @ KeyError::Missing(_)) => {
                    missing = Some(error);
                    None
                }
                Err(_) => None,
            });
        if let Some(missing) = missing {
            return Err(missing.into());
        }
        let clear = clear?;
        let settings = Arc::new(Settings::parse(&clear)?);
        *latest = Some((meta.settings_index, Arc::clone(&settings)));
        Ok(Some(settings))
    }

    /// Checks a settings file and makes the command that puts it in force, secrets sealed; with what it
    /// would change, in words.
    ///
    /// # Errors
    /// When the file is bad; it names the line.
    pub fn seal_settings(&self, text: &str, by: &str) -> Result<(PutSettings, Vec<String>), SettingsError> {
        let new = Settings::parse(text)?;
        let known = self.settings()?;
        let first = known.is_none();
        let before = known.map_or_else(Settings::default, |settings| (*settings).clone());
        let keys = self.keys();
        let key_generation = rotation::in_force(&rotation::row(&self.view())?);
        let mut failed = None;
        let toml = settings::seal_secrets(text, &mut |path, clear| {
            seal(keys, key_generation, path, clear).unwrap_or_else(|error| {
                failed = Some(error);
                SEALED.to_owned()
            })
        })?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        let hide = new.discovery.hide.iter().map(ToString::to_string).collect();
        let mut changes = before.changes(&new);
        let mail = |notify: &Notify| matches!(notify, Notify::Mail(_));
        if new.mail.is_none() && new.alerts.iter().any(|rule| rule.notify.iter().any(mail)) {
            changes.push("note: nobody gets mail until [mail] names a relay and a sender".to_owned());
        }
        let expire_after_ms = new.metering.expire_after_ms;
        let sweep_again = !first && before.finds_more(&new);
        if sweep_again {
            changes.push("note: everything is swept again, as more may be found".to_owned());
        }
        let by = by.to_owned();
        Ok((PutSettings { toml, by, hide, expire_after_ms, sweep_again, key_generation }, changes))
    }

    /// Puts a settings file in force, also where the cluster key is being changed, once for each job of the Web Admin
    /// (empty: not a job); answers what it changes, in words.
    ///
    /// # Errors
    /// When the file is bad, or the change is not committed within `patience`.
    pub async fn put_settings(
        &self,
        text: &str,
        by: &str,
        job: &str,
        patience: Duration,
    ) -> Result<Vec<String>, PutError> {
        let mut tries = 0;
        loop {
            let (command, changes) = self.seal_settings(text, by)?;
            tries += 1;
            let command = command::Kind::PutSettings(command);
            let proposed = match job {
                "" => self.propose(command, patience).await,
                job => self.propose_job(job, command, patience).await,
            };
            match proposed {
                Ok(_) => return Ok(changes),
                // Sealed a moment before another key was put in force; this node's tables may be a moment behind.
                Err(ProposeError::Rejected(why)) if why == rotation::SEALED_OTHERWISE && tries < RESEALS => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Every secret of settings whose own are sealed: so that they can be kept out of what is shown. Those that do not open
/// are nobody's.
pub(crate) fn secrets(keys: &Keys, toml: &str) -> Vec<Zeroizing<String>> {
    let mut found = Vec::new();
    // Left as it is: only what passes by is of interest.
    let _ = settings::open_secrets(toml, &mut |path, sealed| {
        let clear = open(keys, path, sealed).ok()?;
        found.push(Zeroizing::new(clear));
        Some(sealed.to_owned())
    });
    found
}

/// Settings as a node keeps them, opened; `None` where they cannot be.
pub(crate) fn open_settings(keys: &Keys, toml: &str) -> Option<Settings> {
    let clear = settings::open_secrets(toml, &mut |path, sealed| open(keys, path, sealed).ok()).ok()?;
    Settings::parse(&clear).ok()
}

/// A secret is bound to its kind, not to its place: entries may move up and down in the file.
fn purpose(path: &str) -> Vec<u8> {
    let kind = path.rsplit('.').next().unwrap_or(path);
    let kind = kind.split('[').next().unwrap_or(kind);
    format!("settings {kind}").into_bytes()
}

/// The settings' secrets sealed with another generation. Those that nobody can open stay as they are.
pub(super) fn reseal(keys: &Keys, generation: u64, toml: &str) -> Result<String, SettingsError> {
    let mut failed = None;
    let resealed = settings::open_secrets(toml, &mut |path, sealed| {
        let Ok(clear) = open(keys, path, sealed).map(Zeroizing::new) else { return Some(sealed.to_owned()) };
        seal(keys, generation, path, &clear).map_err(|error| failed = Some(error)).ok()
    });
    match failed {
        Some(error) => Err(error.into()),
        None => Ok(resealed?),
    }
}

fn seal(keys: &Keys, generation: u64, path: &str, clear: &str) -> Result<String, KeyError> {
    let sealed = keys.seal(generation, clear.as_bytes(), &purpose(path))?;
    Ok(format!("{SEALED}{}", BASE64_NOPAD.encode(&sealed)))
}

fn open(keys: &Keys, path: &str, sealed: &str) -> Result<String, KeyError> {
    let octets = sealed.strip_prefix(SEALED).and_then(|text| BASE64_NOPAD.decode(text.as_bytes()).ok());
    let clear = keys.open(&octets.ok_or(KeyError::Closed)?, &purpose(path))?;
    String::from_utf8(clear.to_vec()).map_err(|_| KeyError::Closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_survive_sealing_and_open_with_the_right_key_alone() {
        let keys = Keys::generate().unwrap();
        let sealed = seal(&keys, 1, "snmp[1].community", "hidden").unwrap();
        assert!(!sealed.contains("hidden"));
        assert_eq!(open(&keys, "snmp[0].community", &sealed).as_deref(), Ok("hidden"));
        assert_eq!(open(&keys, "snmp[0].auth_pass", &sealed), Err(KeyError::Closed));
        assert_eq!(open(&Keys::generate().unwrap(), "snmp[0].community", &sealed), Err(KeyError::Closed));
    }

    #[test]
    fn resealed_settings_open_with_the_new_key_alone() {
        let keys = Keys::generate().unwrap();
        let foreign = seal(&Keys::generate().unwrap(), 1, "snmp[2].community", "theirs").unwrap();
        let ours = seal(&keys, 1, "snmp[1].community", "ours").unwrap();
        let toml = format!(
            "[[snmp]]\nversion = \"2c\"\ncommunity = \"{ours}\" # kept\n[[snmp]]\nversion = \"2c\"\ncommunity = \"{foreign}\"\n"
        );
        assert!(reseal(&keys, 2, &toml).is_err(), "without the key nothing is lost");
        keys.add(2, crate::cluster::keys::random().unwrap());
        let resealed = reseal(&keys, 2, &toml).unwrap();
        assert!(resealed.contains(&foreign) && !resealed.contains(&ours) && resealed.contains("# kept"));
        let old = Keys::from_octets(&keys.octets()).unwrap();
        keys.forget_before(2);
        assert_eq!(secrets(&keys, &resealed).iter().map(|text| text.as_str()).collect::<Vec<_>>(), ["ours"]);
        assert_eq!(secrets(&keys, &toml).len(), 0);
        assert_eq!(secrets(&old, &toml).len(), 1);
    }
}
