//! One reading of what several protocols said: SNMP's word stands, pages and IPP fill what it leaves open.

use quire_proto::reading::{Counters, Facts, Other, Reading, Supply, SupplyState};

/// What a reading without which a device is not understood lacks: its serial, its total, or the level of any supply.
pub fn lacks(reading: &Reading) -> bool {
    let level = |supply: &Supply| supply.percent.is_some() || supply.state == SupplyState::Unlimited;
    reading.facts.serial.is_none() || reading.counters.total.is_none() || !reading.supplies.iter().any(level)
}

/// `standard` filled from `web`, then from `ipp`; each value keeps its source, and who contributed stands in `via`.
pub fn merge(standard: Reading, web: Reading, ipp: Reading) -> Reading {
    fill(fill(standard, web), ipp)
}

fn fill(mut into: Reading, from: Reading) -> Reading {
    if are_two(&into, &from) {
        return into;
    }
    let mut filler = Filler { into: &mut into, from: &from, used: false };
    filler.facts();
    filler.counters();
    filler.supplies();
    filler.status();
    if filler.used {
        into.via.extend(from.via.iter().copied());
        into.via.sort_unstable();
        into.via.dedup();
    }
    into
}

/// True when the two tell serial numbers of two machines: several share the address, as behind a print server. Zeros in
/// front, and a prefix that one of the two leaves out, are the same number.
fn are_two(one: &Reading, other: &Reading) -> bool {
    let plain = |reading: &Reading| {
        let serial = reading.facts.serial.as_deref()?.trim().trim_start_matches('0').to_ascii_lowercase();
        (!serial.is_empty()).then_some(serial)
    };
    let (Some(one), Some(other)) = (plain(one), plain(other)) else { return false };
    !one.ends_with(&other) && !other.ends_with(&one)
}

struct Filler<'a> {
    into: &'a mut Reading,
    from: &'a Reading,
    used: bool,
}

impl Filler<'_> {
    fn take<T: Clone>(&mut self, field: &str, place: fn(&mut Reading) -> &mut Option<T>, value: &Option<T>) {
        let place = place(self.into);
        if place.is_none() && value.is_some() {
            place.clone_from(value);
            self.cite(field, field);
        }
    }

    /// Takes over where a value came from.
    fn cite(&mut self, field: &str, its: &str) {
        self.used = true;
        if let Some(source) = self.from.sources.get(its) {
            self.into.sources.insert(field.to_owned(), source.clone());
        }
    }

    fn facts(&mut self) {
        let Facts { vendor, model, serial, mac, name, location, firmware, asset, .. } = &*self.from.facts;
        self.take("vendor", |reading| &mut reading.facts.vendor, vendor);
        self.take("model", |reading| &mut reading.facts.model, model);
        self.take("serial", |reading| &mut reading.facts.serial, serial);
        self.take("mac", |reading| &mut reading.facts.mac, mac);
        self.take("name", |reading| &mut reading.facts.name, name);
        self.take("location", |reading| &mut reading.facts.location, location);
        self.take("firmware", |reading| &mut reading.facts.firmware, firmware);
        self.take("asset", |reading| &mut reading.facts.asset, asset);
    }

    /// A part is taken only where it can be a part of the total that stands.
    fn counters(&mut self) {
        let from = &self.from.counters;
        let sheets = self.into.counters.unit.is_some();
        self.disagree();
        self.take("counters.total", |reading| &mut reading.counters.total, &from.total);
        let total = self.into.counters.total;
        let part =
            |value: Option<u64>| value.filter(|value| !sheets && total.is_none_or(|total| *value <= total));
        let Counters { mono, color, prints, copies, faxes, scans, .. } = from;
        self.take("counters.mono", |reading| &mut reading.counters.mono, &part(*mono));
        self.take("counters.color", |reading| &mut reading.counters.color, &part(*color));
        self.take("counters.prints", |reading| &mut reading.counters.prints, &part(*prints));
        self.take("counters.copies", |reading| &mut reading.counters.copies, &part(*copies));
        self.take("counters.faxes", |reading| &mut reading.counters.faxes, &part(*faxes));
        self.take("counters.scans", |reading| &mut reading.counters.scans, scans);
    }

    /// A total that another protocol tells otherwise is kept beside the one that stands.
    fn disagree(&mut self) {
        let (Some(ours), Some(theirs)) = (self.into.counters.total, self.from.counters.total) else { return };
        let Some(source) = self.from.sources.get("counters.total").filter(|_| ours != theirs) else { return };
        let (field, source) = ("counters.total".to_owned(), source.clone());
        let why =
            "SNMP's total stands: a page or a job's attributes may round, or count jobs alone".to_owned();
        self.into.others.push(Other { field, value: theirs, source, why });
    }

    /// All supplies where none were known; else the levels of those that only one of them can be.
    fn supplies(&mut self) {
        if self.into.supplies.is_empty() {
            self.into.supplies.clone_from(&self.from.supplies);
            for (field, source) in
                self.from.sources.iter().filter(|(field, _)| field.starts_with("supplies."))
            {
                self.into.sources.insert(field.clone(), source.clone());
            }
            self.used |= !self.from.supplies.is_empty();
            return;
        }
        let alike = |one: &Supply, other: &Supply| one.kind == other.kind && one.color == other.color;
        for n in 0..self.into.supplies.len() {
            let known = &self.into.supplies[n];
            let twins = self.into.supplies.iter().filter(|other| alike(known, other)).count();
            let mut same = self.from.supplies.iter().filter(|other| alike(known, other));
            let (Some(found), None) = (same.next(), same.next()) else { continue };
            let vague =
                matches!(known.state, SupplyState::Unknown | SupplyState::Some) && known.percent.is_none();
            if twins > 1 || !vague || found.percent.is_none() {
                continue;
            }
            let (index, its) = (known.index, found.index);
            let supply = &mut self.into.supplies[n];
            (supply.percent, supply.state) = (found.percent, found.state);
            self.cite(&format!("supplies.{index}.percent"), &format!("supplies.{its}.percent"));
        }
    }

    fn status(&mut self) {
        self.take("status", |reading| &mut reading.status, &self.from.status);
        self.take("display", |reading| &mut reading.display, &self.from.display);
        if self.into.conditions.is_empty() && !self.from.conditions.is_empty() {
            self.into.conditions.clone_from(&self.from.conditions);
            self.cite("conditions", "conditions");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_proto::reading::{SupplyKind, Via};

    fn toner(color: &str, percent: Option<u8>, state: SupplyState) -> Supply {
        Supply {
            index: 4,
            name: color.into(),
            kind: SupplyKind::Toner,
            color: Some(color.into()),
            level: None,
            max: None,
            unit: None,
            percent,
            state,
        }
    }

    fn reading(via: Via, serial: Option<&str>, total: Option<u64>) -> Reading {
        let mut reading = Reading { via: vec![via], ..Reading::default() };
        reading.facts.serial = serial.map(str::to_owned);
        reading.counters.total = total;
        for field in ["serial", "counters.total", "supplies.4.percent"] {
            reading.sources.insert(field.to_owned(), format!("{via:?}"));
        }
        reading
    }

    #[test]
    fn snmps_word_stands_and_the_rest_is_filled() {
        let mut standard = reading(Via::SnmpV2c, None, Some(7));
        standard.sources.remove("serial");
        let merged =
            merge(standard, reading(Via::Http, Some("W"), Some(9)), reading(Via::Ipp, Some("I"), None));
        assert_eq!((merged.facts.serial.as_deref(), merged.counters.total), (Some("W"), Some(7)));
        assert_eq!(merged.via, [Via::SnmpV2c, Via::Http], "IPP added nothing");
        let others: Vec<(u64, &str)> = merged.others.iter().map(|o| (o.value, o.source.as_str())).collect();
        assert_eq!(others, [(9, "Http")], "nothing that a device says of its counters is lost");
        assert_eq!(
            (merged.sources["serial"].as_str(), merged.sources["counters.total"].as_str()),
            ("Http", "SnmpV2c")
        );
    }

    #[test]
    fn a_level_is_filled_where_one_supply_is_meant() {
        let mut standard = reading(Via::SnmpV2c, Some("S"), Some(7));
        standard.supplies =
            vec![toner("black", None, SupplyState::Some), toner("cyan", Some(5), SupplyState::Low)];
        let mut web = reading(Via::Http, None, None);
        web.supplies =
            vec![toner("black", Some(40), SupplyState::Ok), toner("cyan", Some(90), SupplyState::Ok)];
        let merged = merge(standard, web, Reading::default());
        let percents: Vec<Option<u8>> = merged.supplies.iter().map(|supply| supply.percent).collect();
        assert_eq!(percents, [Some(40), Some(5)]);
        assert_eq!(merged.via, [Via::SnmpV2c, Via::Http]);
    }

    #[test]
    fn another_machines_page_adds_nothing() {
        let standard = || reading(Via::SnmpV2c, Some("CND8F5PF0F"), None);
        let page = |serial: &str| reading(Via::Http, Some(serial), Some(9));
        let merged = merge(standard(), page("JPBCC1234X"), Reading::default());
        assert_eq!((merged.counters.total, merged.via), (None, vec![Via::SnmpV2c]));
        for same in ["CND8F5PF0F", "00CND8F5PF0F", "8F5PF0F", "cnd8f5pf0f"] {
            let merged = merge(standard(), page(same), Reading::default());
            assert_eq!(merged.counters.total, Some(9), "{same}");
        }
    }

    #[test]
    fn parts_larger_than_the_total_are_another_machines() {
        let mut web = reading(Via::Http, None, None);
        web.counters.mono = Some(8);
        let merged = merge(reading(Via::SnmpV2c, None, Some(7)), web, Reading::default());
        assert_eq!(merged.counters.mono, None);
    }
}
