//! Kyocera Command Center RX: pages that are JavaScript assignments, served only to those who come from its own start
//! page and carry its cookies. The start page was captured; the others are known from public software.

use quire_proto::reading::SupplyKind;

use super::{Ask, COPIES, Draft, FAXES, PRINTS, Part, Reader, Sheet, TOTAL, number};

const FROM: Option<&str> = Some("/startwlm/Start_Wlm.htm");
const COOKIES: &[(&str, &str)] = &[("rtl", "0"), ("css", "0")];

const fn ask(paths: &'static [&'static str]) -> Ask {
    Ask { paths, referer: FROM, cookies: COOKIES, again: false }
}

pub(super) static COMMAND_CENTER: Reader = Reader {
    id: "kyocera",
    brands: &["Kyocera", "Copystar", "UTAX", "Olivetti"],
    asks: &[
        ask(&[
            "/js/jssrc/model/startwlm/Start_Wlm.model.htm?arg1=&arg2=&arg3=&arg4=&arg5=&arg6=&arg8=&arg9=&arg10=0&arg11=",
        ]),
        ask(&["/js/jssrc/model/dvcinfo/dvcconfig/DvcConfig_Config.model.htm?arg1=0"]),
        ask(&["/js/jssrc/model/dvcinfo/dvccounter/DvcInfo_Counter_PrnCounter.model.htm"]),
        ask(&["/js/jssrc/model/startwlm/Hme_Toner.model.htm"]),
    ],
    read,
};

/// `_pp.name = 'value';`, `_pp.name = ('12').toString();`, `_pp.name.push(parseInt('61',10));`: the name and the
/// first text in quotes.
fn assignments(text: &str) -> Vec<(&str, &str)> {
    let statements = text.split("_pp.").skip(1);
    let found = statements.filter_map(|statement| {
        let end = statement.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
        let (name, rest) = statement.split_at(end);
        let set = rest.trim_start();
        if !set.starts_with('=') && !set.starts_with(".push(") {
            return None;
        }
        let quote = set.find(['\'', '"'])?;
        // A statement that ends before a quote assigns no text.
        if set[..quote].contains(';') {
            return None;
        }
        let mark = set[quote..].chars().next()?;
        let value = &set[quote + 1..];
        Some((name, &value[..value.find(mark)?]))
    });
    found.collect()
}

fn read(sheets: &[Sheet], draft: &mut Draft) {
    for sheet in sheets {
        draft.turn_to(&sheet.path);
        let found = assignments(&sheet.text);
        let value =
            |name: &str| found.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| *value);
        let model = value("f_getPrinterModel");
        draft.model(model);
        if ["ECOSYS", "TASKalfa", "FS-"].iter().any(|line| model.starts_with(line)) {
            draft.vendor("Kyocera");
        }
        draft.name(value("f_getHostName"));
        draft.location(value("f_getSNMPSysLocation"));
        draft.name(value("hostName"));
        draft.serial(value("serialNumber"));
        draft.mac(value("macAddress"));
        let count = |name: &str| number(value(name));
        if let Some(prints) = count("printertotal") {
            let (copies, faxes) = (count("copytotal"), count("faxtotal").or(count("faxBlackWhite")));
            draft.count(PRINTS, Some(prints));
            draft.count(COPIES, copies);
            draft.count(FAXES, faxes);
            draft.count(TOTAL, Some(prints + copies.unwrap_or(0) + faxes.unwrap_or(0)));
        }
        let toners: Vec<Option<u8>> = found
            .iter()
            .filter(|(name, _)| *name == "Renaming")
            .map(|(_, value)| value.parse().ok())
            .collect();
        for (n, percent) in toners.iter().enumerate() {
            // The order of four is not known: their colours are not said.
            let color = (toners.len() == 1).then_some("black");
            let name = format!("Toner {}", n + 1);
            draft.supply(Part {
                name: &name,
                kind: SupplyKind::Toner,
                color,
                percent: *percent,
                state: None,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_toner_as_public_software_knows_them() {
        let sheet = |ask, text: &str| Sheet { ask, path: format!("/{ask}"), text: text.to_owned() };
        let counters = "_pp.printertotal = ('1234').toString();_pp.copytotal = ('12').toString();_pp.n = 7;";
        let toner = "_pp.Renaming = new Array();_pp.Renaming.push(parseInt('61',10));";
        let mut draft = Draft::default();
        read(&[sheet(2, counters), sheet(3, toner)], &mut draft);
        let counters = &draft.reading.counters;
        assert_eq!((counters.total, counters.prints, counters.copies), (Some(1246), Some(1234), Some(12)));
        assert_eq!(counters.faxes, None);
        let [toner] = draft.reading.supplies.as_slice() else { panic!("{:?}", draft.reading.supplies) };
        assert_eq!((toner.percent, toner.color.as_deref()), (Some(61), Some("black")));
        assert_eq!(draft.reading.sources["counters.total"], "/2");
    }
}
