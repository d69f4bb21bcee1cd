//! Secrets on the command line: read from a file with `@FILE`, and a warning when given in clear.

use std::fmt;
use std::str::FromStr;

use clap::ArgMatches;
use clap::parser::ValueSource;
use zeroize::Zeroizing;

/// The value of a secret option.
#[derive(Clone)]
pub(crate) struct SecretText(Zeroizing<String>);

impl SecretText {
    /// The text itself.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }

    /// The text itself, for whoever keeps it on.
    pub(crate) fn into_inner(self) -> Zeroizing<String> {
        self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

impl FromStr for SecretText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let Some(path) = text.strip_prefix('@') else { return Ok(SecretText(text.to_owned().into())) };
        let mut content = std::fs::read_to_string(path).map_err(|error| format!("read {path}: {error}"))?;
        content.truncate(content.trim_end_matches(['\n', '\r']).len());
        Ok(SecretText(content.into()))
    }
}

/// Options whose value other users of the machine can see in the process list.
const SECRETS: [&str; 6] = ["community", "v3_auth_pass", "v3_priv_pass", "token", "code", "passphrase"];

/// Warns of each secret that was typed in clear; `public` is no secret.
pub(crate) fn warn_of_clear_text(matches: &ArgMatches) {
    let Some((_, matches)) = matches.subcommand() else { return };
    for id in SECRETS {
        let typed = matches.try_contains_id(id).unwrap_or(false)
            && matches.value_source(id) == Some(ValueSource::CommandLine);
        let clear = matches
            .try_get_raw(id)
            .ok()
            .flatten()
            .into_iter()
            .flatten()
            .any(|raw| !raw.as_encoded_bytes().starts_with(b"@") && raw != "public");
        if typed && clear {
            let option = id.replace('_', "-");
            super::output::warn(&format!(
                "--{option} in clear is visible in the process list: use --{option} @FILE or the environment"
            ));
        }
    }
}
