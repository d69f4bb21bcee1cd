//! One-time codes and tokens: made, hashed and compared. Never stores or prints one by itself.

use anyhow::Context as _;
use data_encoding::{Encoding, Specification};
use ring::digest::{SHA256, digest};

/// SHA-256, the only form in which a secret is kept.
pub(crate) fn sha256(octets: &[u8]) -> Vec<u8> {
    digest(&SHA256, octets).as_ref().to_vec()
}

/// `octets` of the operating system's randomness, in lower-case base32 without `0`, `1`, `i` and `o`.
///
/// # Errors
/// When the operating system has no randomness to give.
pub(crate) fn random_word(octets: usize) -> anyhow::Result<String> {
    let mut bytes = vec![0; octets];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("{error}"))
        .context("draw a random number")?;
    Ok(alphabet()?.encode(&bytes))
}

fn alphabet() -> anyhow::Result<Encoding> {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghjklmnpqrstuvwxyz23456789");
    specification.encoding().context("build the alphabet of codes")
}

/// `abcde-fghjk-…`, for people who have to type it.
pub(crate) fn grouped(word: &str) -> String {
    let characters: Vec<char> = word.chars().collect();
    characters.chunks(5).map(|group| group.iter().collect::<String>()).collect::<Vec<_>>().join("-")
}

/// What people type back: without spaces and hyphens, lower case.
pub(crate) fn ungrouped(code: &str) -> String {
    code.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

/// Takes the same time whatever the difference is.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0, |all, (x, y)| std::hint::black_box(all | (x ^ y)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_survive_being_typed() {
        let word = random_word(15).unwrap();
        assert_eq!(word.len(), 24);
        assert_eq!(ungrouped(&format!(" {} ", grouped(&word).to_uppercase())), word);
        assert_ne!(word, random_word(15).unwrap());
    }

    #[test]
    fn comparison_sees_every_difference() {
        assert!(same(b"abc", b"abc"));
        assert!(!same(b"abc", b"abd"));
        assert!(!same(b"abc", b"ab"));
        assert!(!same(b"", b"a"));
    }
}
