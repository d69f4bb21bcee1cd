//! Brother's maintenance information, and the toner bars of its status page; Fuji Xerox DocuPrint M115/P115 and some
//! Dells have the same.

use quire_proto::reading::SupplyKind;
use scraper::Html;

use super::super::supply::{color_word, kind_of_name};
use super::{Ask, Draft, Part, Reader, Sheet, TOTAL, html, number};

pub(super) static MAINTENANCE: Reader = Reader {
    id: "brother",
    brands: &["Brother", "Fuji Xerox", "Dell"],
    asks: &[Ask::plain(&["/etc/mnt_info.csv"]), Ask::plain(&["/general/status.html"])],
    read,
};

fn read(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        draft.turn_to(&sheet.path);
        match sheet.ask {
            0 => read_csv(&sheet.text, draft),
            _ => read_bars(&sheet.text, draft),
        }
    }
}

/// A line of headers and a line of values, both with a comma too many at the end.
fn read_csv(text: &str, draft: &mut Draft) {
    let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(text.as_bytes());
    let Ok(headers) = reader.headers().cloned() else { return };
    let Some(Ok(values)) = reader.records().next() else { return };
    let columns: Vec<(&str, &str)> =
        headers.iter().zip(values.iter()).map(|(header, value)| (header.trim(), value.trim())).collect();
    let value = |name: &str| columns.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
    let model = value("Model Name");
    if model.is_empty() {
        return;
    }
    draft.model(model);
    if ["HL-", "MFC-", "DCP-"].iter().any(|line| model.starts_with(line)) {
        draft.vendor("Brother");
    }
    draft.serial(value("Serial No."));
    draft.name(value("Node Name"));
    draft.location(value("Location"));
    draft.firmware(value("Main Firmware Version"));
    draft.count(TOTAL, number(value("Page Counter")));
    for (header, value) in &columns {
        // `% of Life Remaining(Drum Unit)`: 61.00 here, 40 there.
        let part = header.strip_prefix("% of Life Remaining(").and_then(|rest| rest.strip_suffix(')'));
        let percent = value.split('.').next().and_then(|whole| whole.parse().ok());
        if let (Some(name), Some(percent)) = (part, percent) {
            let kind = kind_of_name(None, None, &name.to_lowercase());
            // A device with one toner is a black one.
            let color = color_word(name).or((name == "Toner").then_some("black"));
            draft.supply(Part { name, kind, color, percent: Some(percent), state: None });
        }
    }
}

/// Bars of toner: colour models draw 11 pixels for a full one, some 56; one bar of black 100.
fn read_bars(text: &str, draft: &mut Draft) {
    let document = Html::parse_document(text);
    if let Some(model) = html::first(&document, "#modelName h1, div#modelName") {
        draft.model(&model);
    }
    // What the CSV said is finer.
    if !draft.reading.supplies.is_empty() {
        return;
    }
    let bars = |table: &str| {
        let images = html::all(&document, &format!("{table} img.tonerremain"));
        let bars = images.iter().filter_map(|image| {
            let color = color_word(image.value().attr("alt")?);
            Some((color, image.value().attr("height")?.trim_end_matches("px").parse::<u32>().ok()?))
        });
        bars.collect::<Vec<(Option<&str>, u32)>>()
    };
    let mono = bars("#inkLevelMono");
    let (bars, full) = match mono.is_empty() {
        false => (mono, 100),
        true => {
            let bars = bars("#inkLevel");
            let tallest = bars.iter().map(|(_, height)| *height).max().unwrap_or(0);
            (bars, if tallest <= 11 { 11 } else { 56 })
        }
    };
    for (color, height) in bars.into_iter().filter(|(_, height)| *height <= full) {
        let percent = u8::try_from(height * 100 / full).ok();
        let color = color.or((full == 100).then_some("black"));
        let name = format!("{} toner", color.unwrap_or("unnamed"));
        draft.supply(Part { name: &name, kind: SupplyKind::Toner, color, percent, state: None });
    }
}
