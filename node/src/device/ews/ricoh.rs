//! Ricoh's Web Image Monitor (Savin, Lanier, Gestetner, NRG). Without cookies every page is an error with status 200.
//! The error page was captured; the counters' rows are known from public software: blank, label, colon, value.

use scraper::{Html, Node};

use super::super::vendor::TABLE;
use super::{Ask, COLOR, COPIES, Draft, FAXES, MONO, PRINTS, Reader, Sheet, TOTAL, html, number};

const COOKIES: &[(&str, &str)] = &[("cookieOnOffChecker", "on")];

pub(super) static WEB_IMAGE_MONITOR: Reader = Reader {
    id: "ricoh",
    brands: &["Ricoh", "Savin", "Lanier", "Gestetner", "NRG"],
    asks: &[
        Ask {
            paths: &[
                "/web/guest/en/websys/status/getUnificationCounter.cgi",
                "/web/guest/fr/websys/status/getUnificationCounter.cgi",
                "/web/guest/es/websys/status/getUnificationCounter.cgi",
                "/web/guest/de/websys/status/getUnificationCounter.cgi",
            ],
            referer: None,
            cookies: COOKIES,
            again: true,
        },
        Ask {
            paths: &["/web/guest/en/websys/status/configuration.cgi"],
            referer: None,
            cookies: COOKIES,
            again: false,
        },
    ],
    read,
};

/// What a row counts, by the heading above it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    Machine,
    Copier,
    Printer,
    Fax,
    /// Sending, scanning, sizes: not on paper, or counted already.
    Other,
}

const OTHER: [&str; 14] = [
    "send",
    "tx",
    "transmi",
    "envío",
    "envio",
    "enviar",
    "envoi",
    "sende",
    "scan",
    "escáner",
    "numéris",
    "other function",
    "otra func",
    "autre",
];
const COPIER: [&str; 6] = ["copier", "copiadora", "copieur", "kopierer", "copiatrice", "kopieer"];
const PRINTER: [&str; 6] = ["printer", "impresora", "imprimante", "drucker", "stampante", "impressora"];
const FAX: [&str; 3] = ["fax", "facsimile", "télécopieur"];
const BLACK: [&str; 6] = ["black", "b & w", "negro", "noir", "schwarz", "preto"];
const TOTALS: [&str; 3] = ["total", "gesamt", "totaal"];

fn section(heading: &str) -> Option<Section> {
    let heading = heading.to_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| heading.contains(word));
    // `Fax transmission` is sending, so what is sent is looked for first.
    [
        (&OTHER[..], Section::Other),
        (&COPIER, Section::Copier),
        (&PRINTER, Section::Printer),
        (&FAX, Section::Fax),
    ]
    .into_iter()
    .find_map(|(words, section)| says(words).then_some(section))
}

/// Rows that count something: section, label, value.
fn rows(document: &Html) -> Vec<(Section, String, String)> {
    let mut rows = Vec::new();
    let mut current = Section::Machine;
    let mut inside = None;
    for node in document.tree.nodes() {
        match node.value() {
            Node::Element(element)
                if element.name() == "tr" && element.classes().any(|c| c == "staticProp") =>
            {
                let Some(row) = scraper::ElementRef::wrap(node) else { continue };
                let cells: Vec<String> = html::below(row, "td").into_iter().map(html::text).collect();
                let colon = cells.iter().position(|cell| cell == ":").filter(|at| *at > 0);
                if let Some((label, value)) = colon.and_then(|at| Some((&cells[at - 1], cells.get(at + 1)?)))
                {
                    rows.push((current, label.clone(), value.clone()));
                    inside = Some(node.id());
                }
            }
            Node::Text(text) if !node.ancestors().any(|above| Some(above.id()) == inside) => {
                current = section(text).unwrap_or(current);
            }
            _ => {}
        }
    }
    rows
}

fn read(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        draft.turn_to(&sheet.path);
        let document = Html::parse_document(&sheet.text);
        draft.model(&html::first(&document, "h2#modelName").unwrap_or_default());
        let logo = html::all(&document, "#logo img[alt]");
        let brand = logo.first().and_then(|logo| TABLE.brand_at(logo.value().attr("alt")?));
        if let Some(brand) = brand {
            draft.vendor(&brand.name);
        }
        let rows = rows(&document);
        match sheet.ask {
            0 => count(&rows, draft),
            _ => describe(&rows, draft),
        }
    }
}

fn describe(rows: &[(Section, String, String)], draft: &mut Draft) {
    for (_, label, value) in rows {
        match label.as_str() {
            "Machine ID" | "Serial Number" | "Serial No." => draft.serial(value),
            "System" | "System Version" => draft.firmware(value),
            _ => {}
        }
    }
}

fn count(rows: &[(Section, String, String)], draft: &mut Draft) {
    let first = rows.first().filter(|(section, label, _)| {
        let label = label.to_lowercase();
        *section == Section::Machine && TOTALS.iter().any(|word| label.starts_with(word))
    });
    let Some(total) = first.and_then(|(_, _, value)| number(value)) else { return };
    draft.count(TOTAL, Some(total));
    let sum = |wanted: &[Section], black: bool| {
        let of = rows.iter().filter(|(section, label, _)| {
            let label = label.to_lowercase();
            wanted.contains(section) && (!black || BLACK.iter().any(|word| label.contains(word)))
        });
        let values: Option<Vec<u64>> = of.map(|(_, _, value)| number(value)).collect();
        values.filter(|values| !values.is_empty()).map(|values| values.iter().sum::<u64>())
    };
    let parts = [Section::Copier, Section::Printer, Section::Fax];
    // Headings in an unknown language would put rows under the wrong one: only parts that make the whole count.
    if sum(&parts, false) == Some(total) {
        draft.count(COPIES, sum(&[Section::Copier], false));
        draft.count(PRINTS, sum(&[Section::Printer], false));
        draft.count(FAXES, sum(&[Section::Fax], false));
        if let Some(mono) = sum(&parts, true) {
            draft.count(MONO, Some(mono));
            draft.count(COLOR, Some(total - mono).filter(|color| *color > 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: &str) -> Draft {
        let text = format!(
            "<div id=logo><h1><img alt=RICOH></h1><h2 id=modelName>MP C300</h2></div><table>{rows}</table>"
        );
        let mut draft = Draft::default();
        read(&[Sheet { ask: 0, path: "/c".into(), text }], &mut draft);
        draft
    }

    fn row(label: &str, value: u32) -> String {
        format!("<tr class=staticProp><td></td><td>{label}</td><td>:</td><td>{value}</td><td></td></tr>")
    }

    #[test]
    fn sections_that_make_the_whole_are_counted() {
        let rows = [
            row("Total", 150),
            "<tr><td>Copier</td></tr>".into(),
            row("Black &amp; White", 20),
            row("Full Color", 30),
            "<tr><td>Printer</td></tr>".into(),
            row("Black &amp; White", 60),
            row("Full Color", 35),
            "<tr><td>Fax</td></tr>".into(),
            row("Black &amp; White", 5),
            "<tr><td>Send/TX Total</td></tr>".into(),
            row("Black &amp; White", 900),
        ];
        let reading = page(&rows.concat()).reading;
        let counters = reading.counters;
        assert_eq!((counters.total, counters.mono, counters.color), (Some(150), Some(85), Some(65)));
        assert_eq!((counters.copies, counters.prints, counters.faxes), (Some(50), Some(95), Some(5)));
        assert_eq!(
            (reading.facts.vendor.as_deref(), reading.facts.model.as_deref()),
            (Some("Ricoh"), Some("MP C300"))
        );
    }

    #[test]
    fn parts_that_do_not_make_the_whole_are_left() {
        let rows = [row("Total", 150), "<tr><td>Copier</td></tr>".into(), row("Black", 20)];
        let counters = page(&rows.concat()).reading.counters;
        assert_eq!((counters.total, counters.copies, counters.mono), (Some(150), None, None));
    }
}
