//! Text as devices write it: character sets, padding, IEEE 1284 ids, and serial numbers that are none.
//!
//! Decoding never fails; what cannot be text is left out by the callers, never replaced by a guess.

/// MIBenum numbers (IANA character sets) of prtLocalizationCharacterSet that change how octets are read.
const LATIN_2: i64 = 5;
const SHIFT_JIS: [i64; 2] = [17, 2024];
const ROMAN_8: i64 = 2004;

/// Octets that are read of one text: four times the longest DisplayString (RFC 2579). Whatever a device says goes into rows,
/// names and alerts.
const LONGEST: usize = 1020;

/// Octets as text, cut at [`LONGEST`], trimmed of blanks, NULs and control characters; `None` when nothing is left.
///
/// UTF-8 wins when it is valid: devices declare other sets and send UTF-8 (Brother says ISO 8859-2 and sends UTF-8).
pub(crate) fn clean(octets: &[u8], charset: Option<i64>) -> Option<String> {
    let end = octets.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    let whole = &octets[..end];
    let octets = &whole[..end.min(LONGEST)];
    let text = match std::str::from_utf8(octets) {
        Ok(text) => text.to_owned(),
        // A character that the cut went through.
        Err(error) if error.error_len().is_none() && octets.len() < whole.len() => {
            String::from_utf8_lossy(&octets[..error.valid_up_to()]).into_owned()
        }
        Err(_) => decode(octets, charset),
    };
    let text: String = text.chars().map(|c| if c.is_control() { '\u{1}' } else { c }).collect();
    let text = text
        .trim_matches(|c: char| c.is_whitespace() || c == '\u{1}' || c == '\u{feff}')
        .replace('\u{1}', " ");
    (!text.is_empty()).then_some(text)
}

fn decode(octets: &[u8], charset: Option<i64>) -> String {
    match charset {
        Some(LATIN_2) => octets.iter().map(|b| latin_2(*b)).collect(),
        Some(ROMAN_8) => {
            // Some devices declare roman8 and send Latin-1: take what looks like words.
            let roman: String = octets.iter().map(|b| roman_8(*b)).collect();
            let latin: String = octets.iter().map(|b| char::from(*b)).collect();
            if oddness(&roman) < oddness(&latin) { roman } else { latin }
        }
        // No table of kanji is carried; the octets that are ASCII or half-width katakana are readable.
        Some(other) if SHIFT_JIS.contains(&other) => shift_jis(octets),
        _ => octets.iter().map(|b| char::from(*b)).collect(),
    }
}

/// How little a text looks like words: control characters, symbols, capitals inside words of small letters.
fn oddness(text: &str) -> usize {
    let controls = text.chars().filter(|c| ('\u{80}'..'\u{a0}').contains(c)).count();
    let symbols = text.chars().filter(|c| !c.is_ascii() && !c.is_alphabetic()).count();
    let capitals: usize = text
        .split(|c: char| !c.is_alphabetic())
        .filter(|word| word.chars().any(char::is_lowercase))
        .map(|word| word.chars().skip(1).filter(|c| !c.is_ascii() && c.is_uppercase()).count())
        .sum();
    controls + symbols + capitals
}

/// HP roman-8, the letters of its upper half.
fn roman_8(octet: u8) -> char {
    const UPPER: &str = "\
        \u{a0}ÀÂÈÊËÎÏ´ˋˆ¨˜ÙÛ₤¯Ýý°ÇçÑñ¡¿¤£¥§ƒ¢âêôûáéóúàèòùäëöüÅîØÆåíøæÄìÖÜÉïßÔÁÃãÐðÍÌÓÒÕõŠšÚŸÿÞþ·µ¶¾\u{2014}¼½ªº«■»±";
    match octet {
        0xa0..=0xfe => UPPER.chars().nth(usize::from(octet - 0xa0)).unwrap_or('\u{fffd}'),
        _ => char::from(octet),
    }
}

/// ISO 8859-2, its upper half.
fn latin_2(octet: u8) -> char {
    const UPPER: &str = "\
        \u{a0}Ą˘Ł¤ĽŚ§¨ŠŞŤŹ\u{ad}ŽŻ°ą˛ł´ľśˇ¸šşťź˝žżŔÁÂĂÄĹĆÇČÉĘËĚÍÎĎĐŃŇÓÔŐÖ×ŘŮÚŰÜÝŢßŕáâăäĺćçčéęëěíîďđńňóôőö÷řůúűüýţ˙";
    match octet {
        0xa0..=0xff => UPPER.chars().nth(usize::from(octet - 0xa0)).unwrap_or('\u{fffd}'),
        _ => char::from(octet),
    }
}

/// Half-width katakana and ASCII of Shift-JIS; each two-octet character becomes one replacement character.
fn shift_jis(octets: &[u8]) -> String {
    let mut text = String::new();
    let mut rest = octets.iter().copied();
    while let Some(octet) = rest.next() {
        match octet {
            0xa1..=0xdf => text.extend(char::from_u32(0xff61 + u32::from(octet - 0xa1))),
            0x81..=0x9f | 0xe0..=0xfc => {
                let _second = rest.next();
                text.push('\u{fffd}');
            }
            _ => text.push(char::from(octet)),
        }
    }
    text
}

/// A value of an IEEE 1284 device id (`MFG:HP;MDL:LaserJet 4;...`), by its short or long key.
pub(crate) fn device_id<'a>(id: &'a str, keys: &[&str]) -> Option<&'a str> {
    id.split(';').find_map(|pair| {
        let (key, value) = pair.split_once(':')?;
        let value = value.trim();
        (keys.iter().any(|wanted| key.trim().eq_ignore_ascii_case(wanted)) && !value.is_empty())
            .then_some(value)
    })
}

/// The letters and digits that hexadecimal text spells; `None` where it spells anything else.
pub(crate) fn unhex(text: &str) -> Option<String> {
    let octets = data_encoding::HEXUPPER_PERMISSIVE.decode(text.as_bytes()).ok()?;
    octets.iter().all(u8::is_ascii_alphanumeric).then(|| octets.iter().map(|b| char::from(*b)).collect())
}

/// A serial number that can tell two devices apart; placeholders are none.
pub(crate) fn serial(text: &str) -> Option<String> {
    let text = text.trim();
    let letters: Vec<char> = text.chars().filter(|c| c.is_alphanumeric()).collect();
    let one_letter = letters.iter().all(|c| *c == letters[0]);
    if letters.len() < 3
        || text.len() > 64
        || one_letter
        || text.chars().any(|c| !c.is_ascii_graphic() && c != ' ')
    {
        return None;
    }
    const JUNK: [&str; 14] = [
        "n/a",
        "na",
        "none",
        "null",
        "nil",
        "unknown",
        "undefined",
        "default",
        "not available",
        "not specified",
        "notavailable",
        "serial number",
        "serialnumber",
        "to be filled by o.e.m.",
    ];
    const RUNS: [&str; 3] = ["1234567890", "0123456789", "123456789"];
    let lower = text.to_ascii_lowercase();
    (!JUNK.contains(&lower.as_str()) && !RUNS.contains(&lower.as_str())).then(|| text.to_owned())
}

/// True when `word` stands at the start of `text`, in any case, and ends there.
pub(crate) fn begins_with_word(text: &str, word: &str) -> bool {
    let Some(head) = text.get(..word.len()) else { return false };
    let ends = text[word.len()..].chars().next().is_none_or(|c| !c.is_alphanumeric());
    head.eq_ignore_ascii_case(word) && (ends || !word.ends_with(char::is_alphanumeric))
}

/// The place of `part` in `text`, in any case of ASCII letters.
pub(crate) fn find_ascii(text: &str, part: &str) -> Option<usize> {
    text.to_ascii_lowercase().find(&part.to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn padding_and_control_characters_go() {
        assert_eq!(clean(b"Black Cartridge HP CF360A\0\0", None).unwrap(), "Black Cartridge HP CF360A");
        assert_eq!(clean(b"\x01\x15VNCRC48198", None).unwrap(), "VNCRC48198");
        assert_eq!(clean(b"   \0", None), None);
        assert_eq!(clean(b"", None), None);
    }

    #[test]
    fn a_device_that_talks_without_end_is_cut_short() {
        assert_eq!(clean("x".repeat(60_000).as_bytes(), None).unwrap().len(), LONGEST);
        let cut = clean(format!("x{}", "ü".repeat(30_000)).as_bytes(), None).unwrap();
        assert!(cut.len() < LONGEST && cut.chars().skip(1).all(|c| c == 'ü'), "{cut}");
        assert_eq!(clean(&[0xe9; 60_000], None).unwrap().chars().count(), LONGEST);
    }

    #[test]
    fn charsets_are_believed_where_the_words_agree() {
        assert_eq!(clean("UŚPIENIA".as_bytes(), Some(5)).unwrap(), "UŚPIENIA");
        assert_eq!(clean(b"U\xa6PIENIA", Some(5)).unwrap(), "UŚPIENIA");
        assert_eq!(clean(b"kopie\xebn", Some(2004)).unwrap(), "kopieën");
        assert_eq!(clean(b"T\xcfr \xcfffnen", Some(2004)).unwrap(), "Tür üffnen");
        assert_eq!(clean(b"Unit\xe0", None).unwrap(), "Unità");
        assert_eq!(clean(b"\xc4\xc5\xb0", Some(17)).unwrap(), "ﾄﾅｰ");
    }

    #[test]
    fn placeholders_are_no_serials() {
        for junk in
            ["N/A", "", "0000000000", "XXXXXXXXXX", "   ", "unknown", "--", "1234567890", "12", "none"]
        {
            assert_eq!(serial(junk), None, "{junk}");
        }
        assert_eq!(serial(" VNB3J12345 ").unwrap(), "VNB3J12345");
        assert_eq!(serial("7XQ1R92-132-13").unwrap(), "7XQ1R92-132-13");
    }

    #[test]
    fn device_ids_have_short_and_long_keys() {
        let id = "MANUFACTURER:Zebra;COMMAND SET:ZPL;MODEL:ZTC TLP 2824 Plus;CLASS:PRINTER;";
        assert_eq!(device_id(id, &["MDL", "MODEL"]), Some("ZTC TLP 2824 Plus"));
        assert_eq!(device_id(id, &["SN"]), None);
    }

    #[test]
    fn hexadecimal_serials_are_spelled_out() {
        assert_eq!(unhex("565A52503332363264").unwrap(), "VZRP3262d");
        assert_eq!(unhex("X3B8022793"), None);
        assert_eq!(unhex("12345678"), None);
    }

    #[test]
    fn words_end_where_they_end() {
        assert!(begins_with_word("HP LaserJet", "hp"));
        assert!(!begins_with_word("HPE Switch", "hp"));
        assert!(!begins_with_word("ä", "hp"));
    }
}
