//! Epson's PRESENTATION pages.

use quire_proto::address::Mac;
use quire_proto::reading::SupplyKind;
use scraper::{ElementRef, Html};

use super::{Ask, COLOR, COPIES, Draft, FAXES, MONO, Part, Reader, SCANS, Sheet, TOTAL};
use super::{color_of_code, html, number};

pub(super) static PRESENTATION: Reader = Reader {
    id: "epson",
    brands: &["Epson"],
    asks: &[
        Ask::plain(&["/PRESENTATION/HTML/TOP/PRTINFO.HTML"]),
        Ask::plain(&["/PRESENTATION/ADVANCED/INFO_PRTINFO/TOP"]),
        Ask::plain(&["/PRESENTATION/ADVANCED/INFO_MENTINFO/TOP"]),
    ],
    read,
};

/// Height of a full ink tank, in pixels: every captured layout that draws levels as images has it.
const FULL: u64 = 50;

fn read(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        if !sheet.text.contains("EPSON") && !sheet.text.contains("tank") {
            continue;
        }
        draft.turn_to(&sheet.path);
        let document = Html::parse_document(&sheet.text);
        if sheet.text.contains("EPSON") {
            draft.vendor("Epson");
            if let Some(title) = html::first(&document, "title") {
                draft.model(&title);
            }
        }
        match sheet.ask {
            0 => read_status(&document, draft),
            _ => read_lists(&document, draft),
        }
    }
}

fn read_status(document: &Html, draft: &mut Draft) {
    draft.display(&html::first(document, "#PRT_STATUS li").unwrap_or_default());
    for row in html::all(document, "#info-network tr, #info-main tr") {
        let cells = html::below(row, "td");
        if let [label, value] = cells.as_slice() {
            read_pair(&html::unlabel(&html::text(*label)), &html::text(*value), draft);
        }
    }
    for tank in html::all(document, "li.tank") {
        read_tank(tank, draft);
    }
}

fn read_tank(tank: ElementRef<'_>, draft: &mut Draft) {
    if !html::below(tank, ".mbicn").is_empty() {
        // The bar of a maintenance box may mean what is used or what is left: it is no level.
        let kind = SupplyKind::WasteToner;
        draft.supply(Part { name: "Maintenance Box", kind, color: None, percent: None, state: None });
        return;
    }
    let Some(code) = html::below(tank, ".clrname").first().map(|name| html::text(*name)) else { return };
    let height = html::below(tank, "img.color")
        .first()
        .and_then(|bar| bar.value().attr("height"))
        .and_then(|height| height.trim_end_matches("px").parse::<u64>().ok())
        .filter(|height| *height <= FULL)
        .and_then(|height| u8::try_from(height * 100 / FULL).ok());
    let drawn = || {
        let styles = html::below(tank, "[style*='gradient']");
        styles.first().and_then(|bar| gradient(bar.value().attr("style")?))
    };
    let percent = height.or_else(drawn);
    let color = color_of_code(&code);
    draft.supply(Part { name: &code, kind: SupplyKind::Ink, color, percent, state: None });
}

/// `linear-gradient(to top, #000000 0%, #000000 34%, #FFFFFF 34%, #FFFFFF 100%)` is 34 %.
fn gradient(style: &str) -> Option<u8> {
    let inside = style.split_once("to top,")?.1.split_once(')')?.0;
    let stops: Vec<(&str, u8)> = inside
        .split(',')
        .filter_map(|stop| stop.trim().rsplit_once(' '))
        .filter_map(|(color, at)| Some((color, at.strip_suffix('%')?.parse().ok()?)))
        .collect();
    let [(ink, 0), (same, level), (paper, from), (_, 100)] = stops.as_slice() else { return None };
    (ink == same && ink != paper && level == from && *level <= 100).then_some(*level)
}

fn read_pair(label: &str, value: &str, draft: &mut Draft) {
    match label {
        "Device Name" | "Printer Name" | "Product Name" => draft.name(value),
        "Serial Number" | "Serial No." => draft.serial(value),
        "Firmware" | "Firmware Version" => draft.firmware(value),
        _ => {}
    }
    // The label follows the panel's language, the shape of a hardware address does not.
    let shaped = value.len() == 17 && value.bytes().filter(|b| matches!(b, b':' | b'-')).count() == 5;
    if shaped && value.parse::<Mac>().is_ok() {
        draft.mac(value);
    }
}

fn read_lists(document: &Html, draft: &mut Draft) {
    let pairs = html::pairs(document);
    for (label, value) in &pairs {
        read_pair(label, value, draft);
    }
    let count = |label: &str| {
        pairs.iter().find(|(known, _)| known.eq_ignore_ascii_case(label)).and_then(|(_, value)| number(value))
    };
    let either = |labels: &[&str]| labels.iter().find_map(|label| count(label));
    draft.count(TOTAL, count("Total Number of Pages"));
    draft.count(MONO, either(&["Total Number of B&W Pages", "Number of B&W Pages", "B&W Pages"]));
    draft.count(COLOR, either(&["Total Number of Color Pages", "Number of Color Pages", "Color Pages"]));
    // Half of a sum is no sum. What was printed is not summed at all: the page splits it in ways that do not
    // add up to the total.
    let both = |what: &str| Some(count(&format!("B&W {what}"))? + count(&format!("Color {what}"))?);
    draft.count(COPIES, both("Copy"));
    draft.count(FAXES, both("Fax"));
    draft.count(SCANS, both("Scan"));
}

#[cfg(test)]
mod tests {
    use super::gradient;

    #[test]
    fn gradients_of_two_colours_are_levels() {
        let drawn = "background:linear-gradient(to top, #000000 0%, #000000 34%, #FFFFFF 34%, #FFFFFF 100%);";
        assert_eq!(gradient(drawn), Some(34));
        assert_eq!(gradient("background:linear-gradient(to top, #000 0%, #FFF 100%)"), None);
        assert_eq!(gradient("to top,"), None);
    }
}
