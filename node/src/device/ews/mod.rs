//! What devices' own pages say: a list of paths per family, and a reader from pages to a [`Reading`].
//!
//! Sans-IO: a [`Reader`] names the pages it wants and reads those that came; fetching is `web`'s. One small file per
//! family of web servers. A value that does not stand on a page stays unknown, and every value names the path it
//! came from. Facts are from captured pages; where public software alone knows a page, the reader says so.

mod brother;
mod epson;
mod hp;
mod html;
mod kyocera;
mod ricoh;
mod samsung;
mod xerox;

#[cfg(test)]
mod tests;

use quire_proto::reading::{Counters, Reading, Supply, SupplyKind, SupplyState};
use quire_proto::shared::Text;

use super::vendor::TABLE;
use super::{supply, text};

/// A family of web servers.
pub(crate) struct Reader {
    /// What logs call it.
    pub(crate) id: &'static str,
    /// The brands that are known to have it.
    pub(crate) brands: &'static [&'static str],
    /// The pages, in the order in which they are asked for.
    pub(crate) asks: &'static [Ask],
    /// From the pages that came.
    pub(crate) read: fn(&[Sheet], &mut Draft),
}

/// One page to ask for.
pub(crate) struct Ask {
    /// The first of these that is there.
    pub(crate) paths: &'static [&'static str],
    /// The page that a browser would have come from.
    pub(crate) referer: Option<&'static str>,
    /// Cookies that the server's own scripts would have set.
    pub(crate) cookies: &'static [(&'static str, &'static str)],
    /// Ask again with the cookies that the first answer set.
    pub(crate) again: bool,
}

impl Ask {
    const fn plain(paths: &'static [&'static str]) -> Ask {
        Ask { paths, referer: None, cookies: &[], again: false }
    }
}

/// A page that came: which of the asks it answers, under which path, and its text.
pub(crate) struct Sheet {
    pub(crate) ask: usize,
    pub(crate) path: String,
    pub(crate) text: String,
}

/// Every family, most common first.
pub(crate) static READERS: [&Reader; 10] = [
    &hp::LEDM,
    &samsung::SYNCTHRU,
    &epson::PRESENTATION,
    &brother::MAINTENANCE,
    &kyocera::COMMAND_CENTER,
    &ricoh::WEB_IMAGE_MONITOR,
    &xerox::USAGE,
    &hp::PRODUCT_INFORMATION,
    &hp::FUTURE_SMART,
    &samsung::SYNCTHRU_OLD,
];

/// The families that a brand is known to have.
pub(crate) fn readers_of(brand: &str) -> impl Iterator<Item = &'static Reader> {
    READERS.iter().copied().filter(move |reader| reader.brands.contains(&brand))
}

/// A reading in the making, with the page that is being read.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    pub(crate) reading: Reading,
    path: String,
}

/// A counter's name, and its place.
type Counter = (&'static str, fn(&mut Counters) -> &mut Option<u64>);

const TOTAL: Counter = ("counters.total", |counters| &mut counters.total);
const MONO: Counter = ("counters.mono", |counters| &mut counters.mono);
const COLOR: Counter = ("counters.color", |counters| &mut counters.color);
const PRINTS: Counter = ("counters.prints", |counters| &mut counters.prints);
const COPIES: Counter = ("counters.copies", |counters| &mut counters.copies);
const FAXES: Counter = ("counters.faxes", |counters| &mut counters.faxes);
const SCANS: Counter = ("counters.scans", |counters| &mut counters.scans);

impl Draft {
    /// What is said next stands on this page.
    fn turn_to(&mut self, path: &str) {
        path.clone_into(&mut self.path);
    }

    /// Keeps the first value that a field gets.
    fn keep<T>(&mut self, field: &str, place: fn(&mut Reading) -> &mut Option<T>, value: Option<T>) {
        let place = place(&mut self.reading);
        if let (None, Some(value)) = (&place, value) {
            *place = Some(value);
            self.reading.sources.insert(field.to_owned(), self.path.clone());
        }
    }

    /// The model; where it begins with a brand, that too.
    fn model(&mut self, model: &str) {
        let Some(model) = clean(model) else { return };
        let brand = TABLE.brand_at(&model).map(|brand| brand.name.clone());
        self.keep("vendor", |reading| &mut reading.facts.vendor, brand);
        self.keep("model", |reading| &mut reading.facts.model, Some(model));
    }

    fn vendor(&mut self, brand: &str) {
        self.keep("vendor", |reading| &mut reading.facts.vendor, Some(brand.to_owned()));
    }

    fn serial(&mut self, serial: &str) {
        self.keep("serial", |reading| &mut reading.facts.serial, text::serial(serial));
    }

    fn mac(&mut self, mac: &str) {
        self.keep("mac", |reading| &mut reading.facts.mac, mac.trim().parse().ok());
    }

    fn name(&mut self, name: &str) {
        self.keep("name", |reading| &mut reading.facts.name, clean(name));
    }

    fn location(&mut self, location: &str) {
        self.keep("location", |reading| &mut reading.facts.location, clean(location));
    }

    fn firmware(&mut self, firmware: &str) {
        self.keep("firmware", |reading| &mut reading.facts.firmware, clean(firmware));
    }

    fn asset(&mut self, asset: &str) {
        self.keep("asset", |reading| &mut reading.facts.asset, clean(asset));
    }

    fn display(&mut self, display: &str) {
        self.keep("display", |reading| &mut reading.display, clean(display));
    }

    fn count(&mut self, (field, place): Counter, value: Option<u64>) {
        let place = place(&mut self.reading.counters);
        if let (None, Some(value)) = (&place, value) {
            *place = Some(value);
            self.reading.sources.insert(field.to_owned(), self.path.clone());
        }
    }

    /// A supply whose level is a percentage or unknown; `state` is the device's own word.
    fn supply(&mut self, part: Part<'_>) {
        let index = u32::try_from(self.reading.supplies.len() + 1).unwrap_or(u32::MAX);
        let percent = part.percent.filter(|percent| *percent <= 100);
        let state = part.state.or(percent.map(supply::state_of_percent)).unwrap_or(SupplyState::Unknown);
        let field = if percent.is_some() { "percent" } else { "name" };
        self.reading.sources.insert(format!("supplies.{index}.{field}"), self.path.clone());
        self.reading.supplies.push(Supply {
            index,
            name: clean(part.name).unwrap_or_default().into(),
            kind: part.kind,
            color: part.color.map(Text::from),
            level: None,
            max: None,
            unit: None,
            percent,
            state,
        });
    }
}

/// What a page says of a supply.
struct Part<'a> {
    name: &'a str,
    kind: SupplyKind,
    color: Option<&'a str>,
    percent: Option<u8>,
    state: Option<SupplyState>,
}

/// Text without padding, runs of blanks as one; `None` where nothing is left.
fn clean(text: &str) -> Option<String> {
    let words: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).collect();
    let text = words.iter().filter(|word| !word.is_empty()).copied().collect::<Vec<_>>().join(" ");
    (!text.is_empty()).then_some(text)
}

/// A whole number, with or without thousands separators; anything else is none.
fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let groups: Vec<&str> = text.split([',', '.', ' ', '\u{a0}', '\'']).collect();
    let grouped = groups.len() > 1;
    let sound = groups.iter().enumerate().all(|(n, group)| {
        let digits = !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit());
        digits && (!grouped || if n == 0 { group.len() <= 3 } else { group.len() == 3 })
    });
    sound.then(|| groups.concat().parse().ok()).flatten()
}

/// The letter codes that makers print on ink and toner.
pub(crate) fn color_of_code(code: &str) -> Option<&'static str> {
    Some(match code.trim().to_ascii_uppercase().as_str() {
        "K" | "BK" => "black",
        "C" => "cyan",
        "M" => "magenta",
        "Y" => "yellow",
        "PB" | "PBK" | "PK" => "photo black",
        "MB" | "MBK" | "MK" => "matte black",
        "LC" => "light cyan",
        "LM" => "light magenta",
        "GY" => "gray",
        "LG" | "LGY" => "light gray",
        "R" => "red",
        _ => return None,
    })
}
