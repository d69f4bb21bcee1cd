//! Is it a printer? One probe packet should be enough to tell most of them from everything else.
//!
//! Evidence in order: objects of the Printer MIB, hrDeviceType, sysObjectID, words of sysDescr. Taking a server or a
//! switch for a printer is the worse mistake, so general-purpose systems need the Printer MIB itself.

use quire_proto::oid::Oid;
use quire_proto::reading::{Reading, Via};

use super::answers::{Answers, object_id};
use super::vendor::{self, TABLE};
use super::{brand, mib, standard, text};
use crate::snmp::VarBind;

/// What an answer to the probe says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A printer: read it.
    Printer,
    /// Something else: leave it alone.
    NotPrinter,
    /// Not enough to tell: a [`Read`](super::Read) decides, at the price of one or two packets more.
    Perhaps,
}

/// The instances to GET in the one probe packet of a sweep.
///
/// An SNMPv1 device that lacks one of them answers noSuchName (RFC 1157 section 4.1.2) without any value: judge the
/// empty list then, which is [`Verdict::Perhaps`].
pub fn probe_oids() -> Vec<Oid> {
    vec![
        mib::scalar(mib::SYS_DESCR),
        mib::scalar(mib::SYS_OBJECT_ID),
        mib::scalar(mib::SYS_NAME),
        mib::oid(mib::HR_DEVICE_TYPE).child(&[1]),
        mib::oid(mib::PRT_LIFE_COUNT).child(&[1, 1]),
        mib::oid(mib::PRT_SERIAL).child(&[1]),
    ]
}

/// Judges the answer to a GET of [`probe_oids`], or any other answers of the device.
pub fn judge(varbinds: &[VarBind]) -> Verdict {
    let mut answers = Answers::default();
    for varbind in varbinds {
        answers.insert(varbind);
    }
    judge_answers(&answers)
}

/// What the probe's answer alone says of a printer, for a pass that reads nothing.
pub fn glance(via: Via, varbinds: &[VarBind]) -> Option<Reading> {
    let mut answers = Answers::default();
    for varbind in varbinds {
        answers.insert(varbind);
    }
    standard::reading(&answers, via)
}

pub(crate) fn judge_answers(answers: &Answers) -> Verdict {
    let object_id = brand::sys_object_id(answers);
    let descr = brand::sys_descr(answers).map(|(text, _)| text).unwrap_or_default();
    let below = |roots: &[vendor::Private]| object_id.as_ref().is_some_and(|oid| vendor::below(oid, roots));
    if has_printer_mib(answers) {
        return Verdict::Printer;
    }
    if answers.profiles().families().any(|family| below(&family.printers)) {
        return Verdict::Printer;
    }
    if below(&TABLE.judge.others) {
        return Verdict::NotPrinter;
    }
    let system = below(&TABLE.judge.systems);
    match (by_descr(&descr), has_printer_device(answers)) {
        (Verdict::NotPrinter, _) => Verdict::NotPrinter,
        (_, true) if system => Verdict::Perhaps,
        (Verdict::Printer, _) | (_, true) => Verdict::Printer,
        (Verdict::Perhaps, false) => by_device_id(answers),
    }
}

/// Any object of RFC 3805, or a row of hrPrinterTable (RFC 2790).
pub(crate) fn has_printer_mib(answers: &Answers) -> bool {
    [mib::PRINT_MIB, mib::HR_PRINTER_STATUS, mib::HR_PRINTER_ERRORS]
        .iter()
        .any(|root| answers.first(root).is_some())
}

fn has_printer_device(answers: &Answers) -> bool {
    let printer = mib::oid(mib::HR_DEVICE_PRINTER);
    answers.rows(mib::HR_DEVICE_TYPE).any(|(_, _, value)| object_id(value).as_ref() == Some(&printer))
}

fn by_device_id(answers: &Answers) -> Verdict {
    let printer = brand::device_ids(answers).iter().any(|(id, _)| {
        text::device_id(id, &["CLS", "CLASS"]).is_some_and(|class| class.eq_ignore_ascii_case("printer"))
    });
    if printer { Verdict::Printer } else { Verdict::Perhaps }
}

/// What sysDescr alone says.
fn by_descr(descr: &str) -> Verdict {
    let lower = descr.to_ascii_lowercase();
    let is_word = |word: &String| {
        lower.match_indices(word.as_str()).any(|(at, _)| {
            let before = lower[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric());
            let after = lower[at + word.len()..].chars().next().is_none_or(|c| !c.is_alphanumeric());
            before && after
        })
    };
    if TABLE.judge.other_words.iter().any(is_word) {
        return Verdict::NotPrinter;
    }
    // Only the beginning of a word must be free: `LaserJetPro` is a printer, `AlphaServer` is no `phaser`.
    let holds = |word: &String| {
        let mut places = lower.match_indices(word.as_str());
        places.any(|(at, _)| lower[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric()))
    };
    let begins =
        TABLE.brand.iter().flat_map(|brand| &brand.descr).any(|pattern| matches_start(&lower, pattern));
    if begins || TABLE.judge.printer_words.iter().any(holds) {
        return Verdict::Printer;
    }
    Verdict::Perhaps
}

/// A beginning in any case, with `#` for a digit and `$` for the end.
fn matches_start(lower: &str, pattern: &str) -> bool {
    let mut rest = lower.chars();
    for wanted in pattern.chars() {
        let matches = match (wanted, rest.next()) {
            ('$', None) => true,
            ('#', Some(c)) => c.is_ascii_digit(),
            (wanted, Some(c)) => wanted.to_lowercase().eq(c.to_lowercase()),
            (_, None) => false,
        };
        if !matches {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snmp::Value;

    fn probe(descr: &str, object_id: Option<&str>) -> Verdict {
        let mut varbinds = vec![VarBind {
            oid: mib::scalar(mib::SYS_DESCR),
            value: Value::OctetString(bytes::Bytes::copy_from_slice(descr.as_bytes())),
        }];
        varbinds.extend(object_id.map(|oid| VarBind {
            oid: mib::scalar(mib::SYS_OBJECT_ID),
            value: Value::ObjectId(oid.parse().unwrap()),
        }));
        judge(&varbinds)
    }

    #[test]
    fn printers_and_other_gear_of_the_same_maker() {
        assert_eq!(probe("HP ETHERNET MULTI-ENVIRONMENT", Some("1.3.6.1.4.1.11.2.3.9.1")), Verdict::Printer);
        assert_eq!(probe("HP J9146A Switch", Some("1.3.6.1.4.1.11.2.3.7.11.84")), Verdict::NotPrinter);
        assert_eq!(probe("EPSON Network Projector", Some("1.3.6.1.4.1.1248.4.1")), Verdict::NotPrinter);
        assert_eq!(probe("Dell UPS Tower 1000W HV", Some("1.3.6.1.4.1.674.10902.2")), Verdict::NotPrinter);
        assert_eq!(probe("Samsung CLX-3170 Series;V1", None), Verdict::Printer);
        assert_eq!(probe("", None), Verdict::Perhaps);
        assert_eq!(judge(&[]), Verdict::Perhaps);
    }

    #[test]
    fn a_server_that_shares_printers_is_none() {
        let printer = VarBind {
            oid: mib::oid(mib::HR_DEVICE_TYPE).child(&[1]),
            value: Value::ObjectId(mib::oid(mib::HR_DEVICE_PRINTER)),
        };
        let system = |oid: &str| VarBind {
            oid: mib::scalar(mib::SYS_OBJECT_ID),
            value: Value::ObjectId(oid.parse().unwrap()),
        };
        assert_eq!(judge(std::slice::from_ref(&printer)), Verdict::Printer);
        assert_eq!(judge(&[printer.clone(), system("1.3.6.1.4.1.311.1.1.3.1.2")]), Verdict::NotPrinter);
        assert_eq!(judge(&[printer, system("1.3.6.1.4.1.8072.3.2.10")]), Verdict::Perhaps);
    }
}
