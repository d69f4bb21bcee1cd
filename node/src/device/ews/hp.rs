//! HP: LEDM (`/DevMgmt/*.xml`, most since about 2009), the product information of those before, and FutureSmart's
//! internal pages.

use quire_proto::reading::{SupplyKind, SupplyState};
use roxmltree::{Document, Node};
use scraper::Html;

use super::{Ask, Draft, Part, Reader, Sheet, color_of_code, html, number};
use super::{COLOR, MONO, SCANS, TOTAL};

pub(super) static LEDM: Reader = Reader {
    id: "hp-ledm",
    brands: &["HP"],
    asks: &[
        Ask::plain(&["/DevMgmt/ProductConfigDyn.xml"]),
        Ask::plain(&["/DevMgmt/ProductUsageDyn.xml"]),
        Ask::plain(&["/DevMgmt/ConsumableConfigDyn.xml"]),
    ],
    read: read_ledm,
};

pub(super) static PRODUCT_INFORMATION: Reader = Reader {
    id: "hp-product-information",
    brands: &["HP"],
    asks: &[Ask::plain(&["/hp/device/product_information.xml"])],
    read: read_product_information,
};

/// Known from public software alone: values carry element ids.
pub(super) static FUTURE_SMART: Reader = Reader {
    id: "hp-futuresmart",
    brands: &["HP"],
    asks: &[Ask::plain(&["/hp/device/InternalPages/Index?id=UsagePage"])],
    read: read_future_smart,
};

/// Direct children of this local name: what lies deeper belongs to somebody else. A consumable has a
/// TotalImpressions of its own.
fn children<'a, 'd: 'a>(node: Node<'a, 'd>, name: &'a str) -> impl Iterator<Item = Node<'a, 'd>> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

fn child<'a, 'd: 'a>(node: Node<'a, 'd>, path: &[&'a str]) -> Option<Node<'a, 'd>> {
    path.iter().try_fold(node, |node, name| children(node, name).next())
}

fn words<'a, 'd: 'a>(node: Node<'a, 'd>, path: &[&'a str]) -> Option<&'a str> {
    child(node, path)?.text().map(str::trim).filter(|text| !text.is_empty())
}

fn read_ledm(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        // DTDs are refused by the parser, and with them entities that grow.
        let Ok(document) = Document::parse(&sheet.text) else { continue };
        let root = document.root_element();
        draft.turn_to(&sheet.path);
        match root.tag_name().name() {
            "ProductConfigDyn" => read_config(root, draft),
            "ProductUsageDyn" => read_usage(root, draft),
            "ConsumableConfigDyn" => {
                for info in children(root, "ConsumableInfo") {
                    read_consumable(info, draft);
                }
            }
            _ => {}
        }
    }
}

fn read_config(root: Node<'_, '_>, draft: &mut Draft) {
    let Some(product) = child(root, &["ProductInformation"]) else { return };
    let settings = child(root, &["ProductSettings"]);
    draft.model(words(product, &["MakeAndModel"]).unwrap_or_default());
    draft.serial(words(product, &["SerialNumber"]).unwrap_or_default());
    draft.firmware(words(product, &["Version", "Revision"]).unwrap_or_default());
    if let Some(settings) = settings {
        draft.asset(words(settings, &["AssetNumber"]).unwrap_or_default());
        draft.location(words(settings, &["DeviceInformation", "DeviceLocation"]).unwrap_or_default());
    }
}

fn read_usage(root: Node<'_, '_>, draft: &mut Draft) {
    if let Some(printer) = child(root, &["PrinterSubunit"]) {
        let count = |name| words(printer, &[name]).and_then(number);
        draft.count(TOTAL, count("TotalImpressions"));
        draft.count(MONO, count("MonochromeImpressions"));
        draft.count(COLOR, count("ColorImpressions"));
    }
    if let Some(scanner) = child(root, &["ScannerEngineSubunit"]) {
        let count = |name| words(scanner, &[name]).and_then(number);
        let parts = [count("AdfImages"), count("FlatbedImages")];
        let sum = parts.iter().any(Option::is_some).then(|| parts.iter().flatten().sum());
        draft.count(SCANS, count("ScanImages").or(sum));
    }
}

fn read_consumable(info: Node<'_, '_>, draft: &mut Draft) {
    let code = words(info, &["ConsumableLabelCode"]).unwrap_or_default();
    let kind = match words(info, &["ConsumableTypeEnum"]).unwrap_or_default() {
        "toner" | "tonerCartridge" => SupplyKind::Toner,
        "ink" | "inkCartridge" | "inkTank" => SupplyKind::Ink,
        "imageDrum" | "drum" => SupplyKind::Drum,
        "fuser" | "fuserKit" => SupplyKind::Fuser,
        "transferBelt" | "transferKit" | "transferUnit" => SupplyKind::Transfer,
        "maintenanceKit" => SupplyKind::MaintenanceKit,
        "wasteToner" | "tonerCollectionUnit" => SupplyKind::WasteToner,
        _ => SupplyKind::Other,
    };
    let state = match words(info, &["ConsumableLifeState", "ConsumableState"]).unwrap_or_default() {
        "ok" | "newGenuineHP" | "used" => Some(SupplyState::Ok),
        "low" | "veryLow" => Some(SupplyState::Low),
        "empty" | "out" | "outOfSupply" => Some(SupplyState::Empty),
        _ => None,
    };
    let percent = words(info, &["ConsumablePercentageLevelRemaining"]).and_then(|text| text.parse().ok());
    let color = color_of_code(code);
    let what = match (kind, color) {
        (SupplyKind::Toner, Some(color)) => format!("Toner {}", capital(color)),
        (SupplyKind::Ink, Some(color)) => format!("Ink {}", capital(color)),
        (SupplyKind::Drum, _) => "Imaging drum".to_owned(),
        _ => words(info, &["ConsumableFamilyName"]).unwrap_or(code).to_owned(),
    };
    let part = words(info, &["ProductNumber"]).unwrap_or_default();
    draft.supply(Part { name: &format!("{what} {part}"), kind, color, percent, state });
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map(|first| first.to_ascii_uppercase().to_string() + letters.as_str()).unwrap_or_default()
}

fn read_product_information(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        let Ok(document) = Document::parse(&sheet.text) else { continue };
        let root = document.root_element();
        if root.tag_name().name() != "ProductInformation" {
            continue;
        }
        draft.turn_to(&sheet.path);
        draft.model(words(root, &["ProductName"]).unwrap_or_default());
        draft.serial(words(root, &["ProductSerialNumber"]).unwrap_or_default());
        draft.firmware(words(root, &["FirmwareDatecode"]).unwrap_or_default());
        draft.mac(words(root, &["HardwareAddress"]).unwrap_or_default());
    }
}

fn read_future_smart(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        draft.turn_to(&sheet.path);
        let document = Html::parse_document(&sheet.text);
        let value = |id: &str| html::first(&document, &format!("[id='UsagePage.{id}']"));
        // `1,234.0`: the decimals are always zero.
        let count = |id: &str| {
            let text = value(id)?;
            number(text.strip_suffix(".0").unwrap_or(&text))
        };
        draft.model(&value("DeviceInformation.ProductName").unwrap_or_default());
        draft.serial(&value("DeviceInformation.DeviceSerialNumber").unwrap_or_default());
        // Of some models `Total.Total` does not include what was printed: then neither is the total.
        let total = count("EquivalentImpressionsTable.Total.Total");
        let print = count("EquivalentImpressionsTable.Print.Total").unwrap_or(0);
        draft.count(TOTAL, total.filter(|total| *total >= print));
    }
}
