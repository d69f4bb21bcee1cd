//! Samsung SyncThru, new and old; HP Laser and Xerox 3020/3025 are built on it.

use quire_proto::reading::SupplyKind;
use scraper::Html;

use super::{Ask, COPIES, Draft, FAXES, PRINTS, Part, Reader, SCANS, Sheet, TOTAL, html, number};

pub(super) static SYNCTHRU: Reader = Reader {
    id: "syncthru",
    brands: &["Samsung", "HP", "Xerox"],
    asks: &[
        Ask::plain(&["/sws/app/information/home/home.json"]),
        Ask::plain(&["/sws/app/information/counters/counters.json"]),
    ],
    read: read_syncthru,
};

pub(super) static SYNCTHRU_OLD: Reader = Reader {
    id: "syncthru-old",
    brands: &["Samsung"],
    asks: &[
        Ask::plain(&["/home.htm"]),
        Ask::plain(&["/Information/supplies_status.htm"]),
        Ask::plain(&["/Settings/Protocols/general_protocols.htm"]),
    ],
    read: read_old,
};

const COLORS: [&str; 4] = ["black", "cyan", "magenta", "yellow"];

/// Deepest nesting and most values of a file; captured ones have 3 and some 150.
const DEPTH: usize = 16;
const VALUES: usize = 5_000;

/// The leaves of a JavaScript object that is no JSON: keys without quotes, either kind of quotes, line breaks in
/// strings. Each leaf has its keys joined by dots.
fn leaves(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut path: Vec<String> = Vec::new();
    let mut word = String::new();
    let mut key: Option<String> = None;
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '"' | '\'' => word.extend(letters.by_ref().take_while(|c| *c != letter)),
            ':' => key = Some(std::mem::take(&mut word).trim().to_owned()),
            '{' | '[' if path.len() < DEPTH => {
                path.push(key.take().unwrap_or_default());
                word.clear();
            }
            '{' | '[' => return found,
            ',' | '}' | ']' => {
                let value = std::mem::take(&mut word).trim().to_owned();
                if let Some(key) = key.take() {
                    let inside = path.iter().chain([&key]).filter(|part| !part.is_empty());
                    found.push((inside.map(String::as_str).collect::<Vec<_>>().join("."), value));
                }
                if letter != ',' {
                    path.pop();
                }
                if found.len() >= VALUES {
                    return found;
                }
            }
            other => word.push(other),
        }
    }
    found
}

fn read_syncthru(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        let leaves = leaves(&sheet.text);
        let value =
            |key: &str| leaves.iter().find(|(known, _)| known == key).map_or("", |(_, value)| value.as_str());
        draft.turn_to(&sheet.path);
        let model = value("identity.model_name");
        draft.model(model);
        // Those that others sell under their own name say so in the model.
        let others = ["HP", "Xerox", "WorkCentre", "Phaser", "Dell", "Lexmark"];
        if !model.is_empty() && !others.iter().any(|other| model.contains(other)) {
            draft.vendor("Samsung");
        }
        draft.serial(value("identity.serial_num"));
        draft.serial(value("GXI_SYS_SERIAL_NUM"));
        draft.name(value("identity.host_name"));
        draft.location(value("identity.location"));
        draft.mac(value("identity.mac_addr"));
        let lines = ["status.status1", "status.status2", "status.status3", "status.status4"];
        draft.display(&lines.map(value).join(" "));
        for (part, kind) in [("toner", SupplyKind::Toner), ("drum", SupplyKind::Drum)] {
            for color in COLORS {
                // `opt: 1` is fitted; the others stand there with levels that mean nothing.
                if value(&format!("{part}_{color}.opt")) == "1" {
                    let percent = value(&format!("{part}_{color}.remaining")).parse().ok();
                    let name = format!("{color} {part}");
                    draft.supply(Part { name: &name, kind, color: Some(color), percent, state: None });
                }
            }
        }
        let count = |name: &str| number(value(name));
        draft.count(TOTAL, count("GXI_BILLING_TOTAL_IMP_CNT"));
        draft.count(PRINTS, count("GXI_BILLING_PRINT_TOTAL_IMP_CNT"));
        draft.count(COPIES, count("GXI_BILLING_COPY_TOTAL_IMP_CNT"));
        draft.count(FAXES, count("GXI_BILLING_FAX_TOTAL_IMP_CNT"));
        draft.count(SCANS, count("GXI_BILLING_SEND_TO_TOTAL_CNT"));
    }
}

fn read_old(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        draft.turn_to(&sheet.path);
        let document = Html::parse_document(&sheet.text);
        if let Some(model) = html::first(&document, "font.lcdFont") {
            draft.model(&model);
            draft.vendor("Samsung");
        }
        for color in COLORS {
            if let Some(percent) = script_number(&sheet.text, &format!("{color}TonerPer")) {
                let name = format!("{color} toner");
                let kind = SupplyKind::Toner;
                draft.supply(Part {
                    name: &name,
                    kind,
                    color: Some(color),
                    percent: Some(percent),
                    state: None,
                });
            }
        }
        let field = |name: &str| {
            let fields = html::all(&document, &format!("input[name='{name}']"));
            fields.first().and_then(|field| field.value().attr("value")).unwrap_or_default().to_owned()
        };
        draft.name(&field("GSI_PS_NAME"));
        draft.location(&field("GSI_PS_DESC"));
        for row in html::all(&document, "tr") {
            let cells = html::below(row, "td");
            if let [label, value] = cells.as_slice()
                && html::unlabel(&html::text(*label)) == "MAC Address"
            {
                draft.mac(&html::text(*value));
            }
        }
    }
}

/// `var BlackTonerPer = 66;`, in any case of its letters.
fn script_number(text: &str, name: &str) -> Option<u8> {
    let lower = text.to_ascii_lowercase();
    let name = name.to_ascii_lowercase();
    let found = lower.match_indices(&format!("var {name}")).next()?.0 + "var ".len() + name.len();
    let value = lower[found..].trim_start().strip_prefix('=')?;
    value.split(';').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_that_are_no_json_are_read() {
        let text = "{ a: 1, b: { 'c' : \"x,\n y:{\", d: '' }, e: [ [\"Bin\", 100, 0] ], f:{opt: 2} , g:7 }";
        let leaves = leaves(text);
        let value = |key: &str| leaves.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str());
        assert_eq!(value("a"), Some("1"));
        assert_eq!(value("b.c"), Some("x,\n y:{"));
        assert_eq!(value("b.d"), Some(""));
        assert_eq!(value("f.opt"), Some("2"));
        assert_eq!(value("g"), Some("7"));
    }

    #[test]
    fn nesting_without_end_ends() {
        assert!(leaves(&"{a:[".repeat(100_000)).is_empty());
    }
}
