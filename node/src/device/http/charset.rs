//! From a page's octets to its text.

use encoding_rs::Encoding;

/// Octets as text: the charset of the header, of the page itself, UTF-8 where it is valid, else Windows-1252,
/// which is what browsers take Latin-1 for.
pub(super) fn decode(octets: &[u8], content_type: Option<&str>) -> String {
    let named = content_type.and_then(charset).or_else(|| {
        const HEAD: usize = 1024;
        let head: String = octets.iter().take(HEAD).map(|b| char::from(*b)).collect();
        charset(&head).or_else(|| Encoding::for_label(quoted(&head, "encoding=")?.as_bytes()))
    });
    match (named, std::str::from_utf8(octets)) {
        (Some(encoding), _) if encoding != encoding_rs::UTF_8 => encoding.decode(octets).0.into_owned(),
        (_, Ok(text)) => text.trim_start_matches('\u{feff}').to_owned(),
        (_, Err(_)) => encoding_rs::WINDOWS_1252.decode(octets).0.into_owned(),
    }
}

fn charset(text: &str) -> Option<&'static Encoding> {
    Encoding::for_label(quoted(text, "charset=")?.as_bytes())
}

/// The word behind `mark`, quotes taken off.
fn quoted<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    let at = text.to_ascii_lowercase().find(mark)? + mark.len();
    let rest = text.get(at..)?.trim_start_matches(['"', '\'']);
    rest.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | ':')).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charsets_come_from_the_header_the_page_or_the_octets() {
        assert_eq!(decode(b"Z\xfcrich", Some("text/html; charset=ISO-8859-1")), "Zürich");
        assert_eq!(decode(b"<meta charset='windows-1250'>\xb9", None), "<meta charset='windows-1250'>ą");
        assert_eq!(
            decode(b"<?xml version='1.0' encoding='ISO-8859-2'?>\xb1", None).chars().last(),
            Some('ą')
        );
        assert_eq!(decode("\u{feff}ü".as_bytes(), None), "ü");
        assert_eq!(decode(b"\xfc", None), "ü");
        assert_eq!(decode(b"\xfc", Some("text/html; charset=nonsense")), "ü");
    }
}
