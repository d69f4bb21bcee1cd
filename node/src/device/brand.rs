//! Whose device this is and what it calls itself: brand, family of MIBs, model.
//!
//! The name on the front comes from what the device writes (sysDescr, IEEE 1284 id, hrDeviceDescr) before its
//! sysObjectID, because brands share the network cards and the MIBs of their makers. Nothing is guessed: a text that
//! describes only the network card names no model.

use std::sync::Arc;

use quire_proto::oid::Oid;

use super::answers::{Answers, object_id, octets};
use super::family::Family;
use super::script::Subject;
use super::vendor::{self, Brand, Sourced, TABLE};
use super::{mib, text};

/// sysDescr as text.
pub(crate) fn sys_descr(answers: &Answers) -> Option<Sourced<String>> {
    instance_text(answers, &mib::scalar(mib::SYS_DESCR))
}

/// sysObjectID.
pub(crate) fn sys_object_id(answers: &Answers) -> Option<Oid> {
    let oid = answers.get(&mib::scalar(mib::SYS_OBJECT_ID)).and_then(object_id)?;
    (oid.arcs().len() > 2).then_some(oid)
}

fn instance_text(answers: &Answers, oid: &Oid) -> Option<Sourced<String>> {
    let text = text::clean(octets(answers.get(oid)?)?, None)?;
    Some((text, oid.to_string()))
}

/// The hrDeviceIndex of the printer: the row of type hrDevicePrinter, else that of hrPrinterTable, else 1 where no row
/// names a type.
pub(crate) fn device_index(answers: &Answers) -> Option<u32> {
    let printer = mib::oid(mib::HR_DEVICE_PRINTER);
    let typed = answers
        .rows(mib::HR_DEVICE_TYPE)
        .find(|(_, _, value)| object_id(value).as_ref() == Some(&printer))
        .and_then(|(index, _, _)| index.first().copied());
    let first = |root| answers.rows(root).next().and_then(|(index, _, _)| index.first().copied());
    typed.or_else(|| first(mib::HR_PRINTER_STATUS)).or_else(|| first(mib::HR_PRINTER_ERRORS)).or_else(|| {
        let untyped = answers.rows(mib::HR_DEVICE_TYPE).next().is_none();
        (untyped && answers.rows(mib::HR_DEVICE_DESCR).next().is_some()).then_some(1)
    })
}

/// hrDeviceDescr of the printer.
pub(crate) fn device_descr(answers: &Answers) -> Option<Sourced<String>> {
    instance_text(answers, &mib::oid(mib::HR_DEVICE_DESCR).child(&[device_index(answers)?]))
}

/// Every IEEE 1284 id that the device answered, standard places first.
pub(crate) fn device_ids(answers: &Answers) -> Vec<Sourced<String>> {
    let mut ids: Vec<Sourced<String>> = Vec::new();
    ids.extend(answers.first(mib::PPM_DEVICE_ID).and_then(|(oid, _)| instance_text(answers, &oid)));
    let families = answers.profiles().families().flat_map(|family| &family.device_id);
    let private = families.chain(&TABLE.common.device_id);
    ids.extend(private.filter_map(|entry| instance_text(answers, &entry.0)));
    ids.extend(sys_descr(answers).filter(|(text, _)| text::device_id(text, &["MDL", "MODEL"]).is_some()));
    ids
}

/// The name on the front, where anything says it.
pub(crate) fn brand(answers: &Answers) -> Option<(&'static Brand, String)> {
    let descr = sys_descr(answers);
    let maker = device_ids(answers).into_iter().filter_map(|(id, source)| {
        let maker = text::device_id(&id, &["MFG", "MANUFACTURER", "MANUFACTURE"])?;
        Some((maker.to_owned(), source))
    });
    let written = descr.into_iter().chain(maker).chain(device_descr(answers));
    let by_text = written.into_iter().find_map(|(text, source)| Some((TABLE.brand_at(&text)?, source)));
    let by_number = || {
        let brand = TABLE.brand_of(&sys_object_id(answers)?)?;
        Some((brand, mib::scalar(mib::SYS_OBJECT_ID).to_string()))
    };
    by_text.or_else(by_number).or_else(|| {
        let (family, source) = family_by_number(answers)?;
        Some((TABLE.default_brand(family)?, source))
    })
}

fn family_by_number(answers: &Answers) -> Option<(&'static str, String)> {
    if let Some(oid) = sys_object_id(answers) {
        let family = TABLE.family_of(mib::enterprise(&oid)?)?;
        return Some((family, mib::scalar(mib::SYS_OBJECT_ID).to_string()));
    }
    // Without a system group the enterprise whose objects the device serves tells the maker.
    let (oid, _) = answers.first(mib::ENTERPRISES)?;
    let family = TABLE.family_of(mib::enterprise(&oid)?)?;
    Some((family, oid.to_string()))
}

/// The families whose objects a device may serve: by number, then by brand.
pub(crate) fn family_ids(answers: &Answers) -> Vec<&'static str> {
    let by_number = family_by_number(answers).map(|(family, _)| family);
    let by_brand = brand(answers).and_then(|(brand, _)| brand.family.as_deref());
    let mut families: Vec<&'static str> = by_number.into_iter().chain(by_brand).collect();
    families.dedup();
    families
}

/// What the profiles for this device name, the best word first.
pub(crate) fn families(answers: &Answers) -> Vec<Arc<Family>> {
    answers.profiles().families_of(&Subject::of(answers))
}

/// True when sysDescr names the brand, so that no other text is needed for it.
pub(crate) fn is_branded(answers: &Answers) -> bool {
    sys_descr(answers).is_some_and(|(text, _)| TABLE.brand_at(&text).is_some())
}

/// True of HP's network cards, which may keep their printer behind a context of their own.
pub(crate) fn is_jetdirect(answers: &Answers) -> bool {
    const CARDS: &[u32] = &[1, 3, 6, 1, 4, 1, 11, 2, 3, 9];
    sys_object_id(answers).is_some_and(|oid| oid.arcs().starts_with(CARDS))
}

/// True when a vendor's object names the model: there is none better.
pub(crate) fn has_private_model(answers: &Answers, families: &[Arc<Family>]) -> bool {
    families.iter().any(|family| vendor::field_text(answers, &family.model, None).is_some())
}

/// The model as the device writes it, best source first.
pub(crate) fn model(
    answers: &Answers,
    families: &[Arc<Family>],
    serial: Option<&str>,
) -> Option<Sourced<String>> {
    let private = families.iter().find_map(|family| vendor::field_text(answers, &family.model, None));
    private
        .or_else(|| from_device_id(answers))
        .or_else(|| from_kernel_descr(answers))
        .or_else(|| from_device_descr(answers, serial))
        .or_else(|| from_sys_descr(answers))
        .or_else(|| from_object_id(answers, families))
        .or_else(|| answers.first(mib::PRT_NAME).and_then(|(oid, _)| instance_text(answers, &oid)))
}

fn from_device_id(answers: &Answers) -> Option<Sourced<String>> {
    device_ids(answers).into_iter().find_map(|(id, source)| {
        let model = text::device_id(&id, &["MDL", "MODEL"])?;
        Some((model.to_owned(), source))
    })
}

/// `Lexmark T640 version NS.NP.N219 kernel 2.6.6`: cleaner than the same device's hrDeviceDescr, which adds the serial.
fn from_kernel_descr(answers: &Answers) -> Option<Sourced<String>> {
    let (descr, source) = sys_descr(answers)?;
    let (model, rest) = descr.split_once(" version ")?;
    (rest.contains(" kernel ") && TABLE.brand_at(model).is_some()).then(|| (model.trim().to_owned(), source))
}

/// hrDeviceDescr, cut before a serial number that some devices append.
fn from_device_descr(answers: &Answers, serial: Option<&str>) -> Option<Sourced<String>> {
    const SERIAL_HEAD: usize = 6;
    let (descr, source) = device_descr(answers)?;
    let head = serial.and_then(|serial| serial.get(..SERIAL_HEAD));
    let cut = head.and_then(|head| descr.find(head)).or_else(|| descr.find(" ---")).unwrap_or(descr.len());
    let model = descr[..cut].split(';').next().unwrap_or_default().trim();
    // `Generic 28C-1` is a driver class, not a model.
    let generic = text::begins_with_word(model, "generic");
    (!model.is_empty() && !generic).then(|| (model.to_owned(), source))
}

fn from_sys_descr(answers: &Answers) -> Option<Sourced<String>> {
    let (descr, source) = sys_descr(answers)?;
    for (mark, end) in &TABLE.common.model_marks {
        if let Some((_, rest)) = descr.split_once(mark.as_str()) {
            let model = rest.split(end.as_str()).next().unwrap_or_default().trim();
            return (!model.is_empty()).then(|| (model.to_owned(), source));
        }
    }
    if TABLE.common.cards.iter().any(|card| text::find_ascii(&descr, card).is_some()) {
        return None;
    }
    let (brand, _) = brand(answers)?;
    let word =
        brand.words.iter().filter(|word| text::begins_with_word(&descr, word)).max_by_key(|word| word.len());
    let rest = word.map_or(descr.as_str(), |word| &descr[word.len()..]);
    let ends = [";", " /P", " / ", " version ", " Version", ", Controller", " (Net", " - "];
    let cut = ends.iter().filter_map(|end| rest.find(end)).min().unwrap_or(rest.len());
    let mut model = rest[..cut].trim_matches(|c: char| c.is_whitespace() || c == ',');
    if rest[cut..].starts_with(" / ") {
        model = without_version(model);
    }
    (!model.is_empty()).then(|| (model.to_owned(), source))
}

/// `MP C3002 2.20` without its last word, where that is a version.
fn without_version(model: &str) -> &str {
    match model.rsplit_once(' ') {
        Some((head, tail)) if is_version(tail) => head.strip_suffix(" Ver").unwrap_or(head).trim(),
        _ => model,
    }
}

fn is_version(word: &str) -> bool {
    let word = word.trim_start_matches(['V', 'v', '.']);
    word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit())
}

/// The ASCII that some families spell at the end of sysObjectID: its length, then the letters.
fn from_object_id(answers: &Answers, families: &[Arc<Family>]) -> Option<Sourced<String>> {
    let oid = sys_object_id(answers)?;
    families.iter().find_map(|family| {
        let rest = oid.suffix(&family.object_id_name.as_ref()?.0)?;
        let (length, letters) = rest.split_first()?;
        let name: Option<String> = letters.iter().map(|arc| char::from_u32(*arc)).collect();
        let name =
            name.filter(|name| name.len() == *length as usize && name.bytes().all(|b| b.is_ascii_graphic()))?;
        let card = family.object_id_cards.iter().any(|card| name.starts_with(card.as_str()));
        (!card && !name.is_empty()).then(|| (name, mib::scalar(mib::SYS_OBJECT_ID).to_string()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snmp::{Value, VarBind};

    fn described(descr: &str) -> Answers {
        let mut answers = Answers::default();
        let value = Value::OctetString(bytes::Bytes::copy_from_slice(descr.as_bytes()));
        answers.insert(&VarBind { oid: mib::scalar(mib::SYS_DESCR), value });
        answers
    }

    fn brand_and_model(descr: &str) -> (Option<&'static str>, Option<String>) {
        let answers = described(descr);
        let model = model(&answers, &families(&answers), None).map(|(model, _)| model);
        (brand(&answers).map(|(brand, _)| brand.name.as_str()), model)
    }

    #[test]
    fn sys_descr_names_brand_and_model() {
        for (descr, brand, model) in [
            ("Canon iR-ADV C5235 /P", "Canon", "iR-ADV C5235"),
            ("RICOH IPSiO GX e3300 Ver 1.02 / RICOH Network Printer C model", "Ricoh", "IPSiO GX e3300"),
            ("NRG 6002/6005/6008 1.12.3 / NRG Network Printer C model", "NRG", "6002/6005/6008"),
            ("Xerox Phaser 8550DP;PS 3.11.0,Net 24", "Xerox", "Phaser 8550DP"),
            ("FUJI XEROX DocuPrint CM305 df; Net 16.41", "Fuji Xerox", "DocuPrint CM305 df"),
            ("Lexmark T640 version NS.NP.N219 kernel 2.6.6 All-N-1", "Lexmark", "Lexmark T640"),
            ("OKI OkiLAN 6400e Rev. Ethernet PrintServer: Attached to B6250 Rev.8.1: (C)", "OKI", "B6250"),
            ("TOSHIBA TEC B-EV4", "Toshiba", "B-EV4"),
        ] {
            assert_eq!(brand_and_model(descr), (Some(brand), Some(model.to_owned())), "{descr}");
        }
    }

    #[test]
    fn network_cards_name_no_model() {
        for descr in [
            "HP ETHERNET MULTI-ENVIRONMENT,ROM none,JETDIRECT,JD128",
            "Brother NC-8700w, Firmware Ver.Y  ,MID 84E-822",
            "EPSON Built-in 11b/g/n & 10/100 Print Server",
            "ZebraNet Wired PS",
            "KYOCERA MITA Printing System",
        ] {
            let (brand, model) = brand_and_model(descr);
            assert!(brand.is_some() && model.is_none(), "{descr}: {brand:?} {model:?}");
        }
    }
}
