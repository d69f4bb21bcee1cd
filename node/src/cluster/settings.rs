//! The replicated settings, with their secrets opened in memory and sealed everywhere else.

use std::sync::{Arc, Mutex, PoisonError};

use data_encoding::BASE64_NOPAD;
use quire_coordinator::rows;
use quire_coordinator::settings::{self, BadSettings, Notify, Settings};
use quire_coordinator::tables::Fault;
use quire_proto::store::PutSettings;
use zeroize::Zeroizing;

use super::{Cluster, Keys};

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
    Key(#[from] super::KeyError),
}

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
        let keys = self.keys();
        let clear =
            settings::open_secrets(&meta.settings_toml, &mut |path, sealed| open(keys, path, sealed))?;
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
        let mut failed = None;
        let toml = settings::seal_secrets(text, &mut |path, clear| {
            seal(keys, path, clear).unwrap_or_else(|error| {
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
        Ok((PutSettings { toml, by: by.to_owned(), hide, expire_after_ms, sweep_again }, changes))
    }
}

/// Every secret of settings whose own are sealed: so that they can be kept out of what is shown. Those that do not open
/// are nobody's.
pub(crate) fn secrets(keys: &Keys, toml: &str) -> Vec<Zeroizing<String>> {
    let mut found = Vec::new();
    // Left as it is: only what passes by is of interest.
    let _ = settings::open_secrets(toml, &mut |path, sealed| {
        let clear = open(keys, path, sealed)?;
        found.push(Zeroizing::new(clear));
        Some(sealed.to_owned())
    });
    found
}

/// Settings as a node keeps them, opened; `None` where they cannot be.
pub(crate) fn open_settings(keys: &Keys, toml: &str) -> Option<Settings> {
    let clear = settings::open_secrets(toml, &mut |path, sealed| open(keys, path, sealed)).ok()?;
    Settings::parse(&clear).ok()
}

/// A secret is bound to its kind, not to its place: entries may move up and down in the file.
fn purpose(path: &str) -> Vec<u8> {
    let kind = path.rsplit('.').next().unwrap_or(path);
    let kind = kind.split('[').next().unwrap_or(kind);
    format!("settings {kind}").into_bytes()
}

fn seal(keys: &Keys, path: &str, clear: &str) -> Result<String, super::KeyError> {
    let sealed = keys.seal(clear.as_bytes(), &purpose(path))?;
    Ok(format!("{SEALED}{}", BASE64_NOPAD.encode(&sealed)))
}

fn open(keys: &Keys, path: &str, sealed: &str) -> Option<String> {
    let octets = BASE64_NOPAD.decode(sealed.strip_prefix(SEALED)?.as_bytes()).ok()?;
    let clear = keys.open(&octets, &purpose(path)).ok()?;
    String::from_utf8(clear.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_survive_sealing_and_open_with_the_right_key_alone() {
        let keys = Keys::generate().unwrap();
        let sealed = seal(&keys, "snmp[1].community", "hidden").unwrap();
        assert!(!sealed.contains("hidden"));
        assert_eq!(open(&keys, "snmp[0].community", &sealed).as_deref(), Some("hidden"));
        assert_eq!(open(&keys, "snmp[0].auth_pass", &sealed), None);
        assert_eq!(open(&Keys::generate().unwrap(), "snmp[0].community", &sealed), None);
    }
}
