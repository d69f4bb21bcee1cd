//! Xerox AltaLink and VersaLink: the usage counters, whose labels follow the panel's language and whose indents do not.

use scraper::Html;

use super::{Ask, COLOR, COPIES, Draft, FAXES, MONO, PRINTS, Reader, Sheet, TOTAL, html, number};

pub(super) static USAGE: Reader =
    Reader { id: "xerox", brands: &["Xerox"], asks: &[Ask::plain(&["/counters/usage.php"])], read };

/// Blanks that one level of the table is indented by.
const INDENT: usize = 3;

const BLACK: [&str; 8] = ["black", "negro", "noir", "schwarz", "nero", "preto", "zwart", "svart"];
const COLOURED: [&str; 7] = ["color", "colour", "couleur", "farb", "colore", "kleur", "färg"];
const COPIED: [&str; 2] = ["copi", "kopi"];

/// A row: how deep, what, how many.
struct Row {
    depth: usize,
    label: String,
    value: u64,
}

fn says(label: &str, words: &[&str]) -> bool {
    words.iter().any(|word| label.contains(word))
}

/// The first block of the table, which counts impressions: blocks of sheets and images follow after a blank row.
fn impressions(document: &Html) -> Vec<Row> {
    let mut rows = Vec::new();
    for row in html::all(document, "table.tableDiv tbody tr") {
        let cells = html::below(row, "td");
        let [label, value] = cells.as_slice() else { break };
        let raw: String = label.text().collect();
        let Some(value) = number(&html::text(*value)) else { break };
        let depth = raw.chars().take_while(|c| c.is_whitespace()).count() / INDENT;
        rows.push(Row { depth, label: raw.trim().to_lowercase(), value });
    }
    rows
}

fn read(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        draft.turn_to(&sheet.path);
        let document = Html::parse_document(&sheet.text);
        let name = html::first(&document, "#productName").unwrap_or_default();
        draft.model(&name.replace(['®', '™'], ""));
        if says(&name, &["VersaLink", "AltaLink", "WorkCentre", "Phaser"]) {
            draft.vendor("Xerox");
        }
        count(&impressions(&document), draft);
    }
}

fn count(rows: &[Row], draft: &mut Draft) {
    let Some((whole, parts)) = rows.split_first().filter(|(whole, _)| whole.depth == 0) else { return };
    // A row that is larger than the whole, or that stands beside it: this is another table.
    if parts.iter().any(|row| row.depth == 0 || row.value > whole.value) {
        return;
    }
    draft.count(TOTAL, Some(whole.value));
    // A group: its own row and those below it.
    let group = |words: &[&str]| {
        let at = parts.iter().position(|row| row.depth == 1 && says(&row.label, words))?;
        let below = parts[at + 1..].iter().take_while(|row| row.depth > 1).collect::<Vec<_>>();
        Some((parts[at].value, below))
    };
    let mut groups = Vec::new();
    for (counter, words) in [(MONO, &BLACK[..]), (COLOR, &COLOURED)] {
        if let Some((value, below)) = group(words) {
            draft.count(counter, Some(value));
            groups.push((value, below));
        }
    }
    if let Some((faxes, _)) = group(&["fax"]) {
        draft.count(FAXES, Some(faxes));
    }
    // Copied and printed, of every colour: only where both stand there and no third.
    let split: Option<Vec<(u64, u64)>> = groups
        .iter()
        .map(|(_, below)| {
            let [one, other] = below.as_slice() else { return None };
            match (says(&one.label, &COPIED), says(&other.label, &COPIED)) {
                (true, false) => Some((one.value, other.value)),
                (false, true) => Some((other.value, one.value)),
                _ => None,
            }
        })
        .collect();
    if let Some(split) = split.filter(|split| !split.is_empty()) {
        draft.count(COPIES, Some(split.iter().map(|(copies, _)| copies).sum()));
        draft.count(PRINTS, Some(split.iter().map(|(_, prints)| prints).sum()));
    }
}
