//! How far a sweep of one unit has come, so that whoever owns the unit next goes on and misses nobody.
//!
//! Addresses are done in any order, and a printer is done only when its reading is reported; so this is one bit an
//! address, set when nothing of that address is left to do. It travels in the unit's [`SweepMark`], behind the readings
//! in the same spool, so it is never committed before them. SNMPv3 users are counted apart and ahead: see [`trial`].

use std::net::IpAddr;

use ipnet::IpNet;
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{SweepMark, Trial, Tried, UnitRow};

use crate::state::refuse;
use crate::tables::{Fault, Overlay, ReadExt as _, Table};

/// A mark is due after so many addresses, so a /24 costs the log some six entries, and a take-over asks at most so
/// many addresses again that were done, besides those that were being asked.
pub const STEP: u32 = 64;

/// A unit holds at most 256 addresses; what holds more than this is not remembered and starts over.
const MOST_BITS: u8 = 12;

/// Which addresses of a unit are done with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Coverage {
    prefix: IpNet,
    covered: Vec<u8>,
    /// Set since the last mark.
    unsaid: u32,
}

impl Coverage {
    /// Nothing done yet.
    pub fn new(prefix: IpNet) -> Self {
        let bits = prefix.max_prefix_len() - prefix.prefix_len();
        let octets = if bits > MOST_BITS { 0 } else { (1usize << bits).div_ceil(8) };
        Coverage { prefix, covered: vec![0; octets], unsaid: 0 }
    }

    /// What a mark says of the same sweep under the same settings; nothing where it is another's.
    pub fn resume(prefix: IpNet, mark: &SweepMark, started_at_ms: u64, settings_index: u64) -> Self {
        let mut coverage = Coverage::new(prefix);
        let same = mark.started_at_ms == started_at_ms && mark.settings_index == settings_index;
        if same && !mark.finished && mark.covered.len() == coverage.covered.len() {
            coverage.covered.copy_from_slice(&mark.covered);
        }
        coverage
    }

    /// The address's place in the unit; `None` outside. In a prefix too large for places a mixture of its octets: of
    /// two that mix alike one may be taken for the other, and then only a trial of a user is left out.
    pub fn place(&self, ip: IpAddr) -> Option<u32> {
        let number = |ip: IpAddr| match ip {
            IpAddr::V4(ip) => u128::from(u32::from(ip)),
            IpAddr::V6(ip) => u128::from(ip),
        };
        let offset = number(ip).checked_sub(number(self.prefix.network()))?;
        let mixed = (0..4)
            .fold(0u32, |mixed, part| mixed.wrapping_mul(0x0100_0193) ^ (offset >> (96 - 32 * part)) as u32);
        self.prefix.contains(&ip).then(|| u32::try_from(offset).unwrap_or(mixed))
    }

    /// True when nothing was covered yet.
    pub fn is_empty(&self) -> bool {
        self.covered.iter().all(|octet| *octet == 0)
    }

    /// True when nothing of this address is left to do.
    pub fn has(&self, ip: IpAddr) -> bool {
        let Some(place) = self.place(ip) else { return false };
        self.covered.get(place as usize / 8).is_some_and(|octet| octet >> (place % 8) & 1 == 1)
    }

    /// Nothing of this address is left to do: its reading, if it has one, is reported.
    pub fn cover(&mut self, ip: IpAddr) {
        if self.has(ip) {
            return;
        }
        let Some(place) = self.place(ip) else { return };
        if let Some(octet) = self.covered.get_mut(place as usize / 8) {
            *octet |= 1 << (place % 8);
            self.unsaid += 1;
        }
    }

    /// True when a mark should be reported.
    pub fn is_mark_due(&self) -> bool {
        self.unsaid >= STEP
    }

    /// What a mark carries; it is taken for reported.
    pub fn say(&mut self) -> Vec<u8> {
        self.unsaid = 0;
        self.covered.clone()
    }

    /// Takes over what another says of the same sweep.
    pub fn join(&mut self, other: &Coverage) {
        if self.prefix == other.prefix {
            self.covered.iter_mut().zip(&other.covered).for_each(|(own, other)| *own |= other);
        }
    }
}

/// How many users of the settings were tried at an address in the sweep that began at `started_at_ms` under these
/// settings, by whichever node. The last of them may have been cut short; it is not tried again all the same.
pub fn users_tried(row: &UnitRow, started_at_ms: u64, settings_index: u64, place: u32) -> u32 {
    if (row.tried_at_ms, row.tried_under) != (started_at_ms, settings_index) {
        return 0;
    }
    row.tried.iter().find(|tried| tried.address == place).map_or(0, |tried| tried.users)
}

/// Notes SNMPv3 trials before they are made: only whoever has this committed may make them, so a user is tried at most
/// once at a device in a sweep, however often the unit moves. Refused where the unit is another's by now.
pub(crate) fn trial(tables: &mut Overlay<'_>, trial: &Trial) -> Result<Answer, Fault> {
    let Some(mut unit) = tables.row::<UnitRow>(Table::Units, trial.unit.as_bytes())? else {
        return Ok(refuse(format!("no unit `{}`", trial.unit)));
    };
    if unit.node != trial.node || unit.epoch != trial.epoch {
        return Ok(refuse(format!("unit {} is not node {}'s any more", trial.unit, trial.node)));
    }
    if crate::rows::meta(tables)?.settings_index != trial.settings_index {
        return Ok(refuse("the settings are others by now"));
    }
    let sweep = (trial.started_at_ms, trial.settings_index);
    if (unit.tried_at_ms, unit.tried_under) != sweep {
        (unit.tried_at_ms, unit.tried_under) = sweep;
        unit.tried.clear();
    }
    for tried in &trial.tried {
        match unit.tried.iter_mut().find(|known| known.address == tried.address) {
            // Proposed again because its fate was not known: whoever asks has not tried yet, but another might.
            Some(known) if known.users >= tried.users => {
                return Ok(refuse(format!("address {} of {} was tried already", tried.address, trial.unit)));
            }
            Some(known) => known.users = tried.users,
            None => unit.tried.push(Tried { address: tried.address, users: tried.users }),
        }
    }
    tables.put(Table::Units, trial.unit.as_bytes(), &unit);
    Ok(Answer::Done(true))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use proptest::prelude::*;
    use quire_proto::address::Target;

    fn mark(coverage: &mut Coverage) -> SweepMark {
        SweepMark {
            started_at_ms: 7,
            settings_index: 3,
            covered: coverage.say().into(),
            ..SweepMark::default()
        }
    }

    #[test]
    fn a_mark_counts_for_its_own_sweep_and_settings_alone() {
        let prefix: IpNet = "10.0.0.0/24".parse().unwrap();
        let ip: IpAddr = "10.0.0.255".parse().unwrap();
        let mut coverage = Coverage::new(prefix);
        coverage.cover(ip);
        let said = mark(&mut coverage);
        assert_eq!(said.covered.len(), 32);
        assert!(Coverage::resume(prefix, &said, 7, 3).has(ip));
        assert!(!Coverage::resume(prefix, &said, 8, 3).has(ip), "another sweep");
        assert!(!Coverage::resume(prefix, &said, 7, 4).has(ip), "other settings");
        let finished = SweepMark { finished: true, ..said.clone() };
        assert!(!Coverage::resume(prefix, &finished, 7, 3).has(ip));
        let cut = SweepMark { covered: said.covered.slice(..5), ..said };
        assert!(!Coverage::resume(prefix, &cut, 7, 3).has(ip), "damaged");
        assert_eq!(coverage.place("10.0.1.0".parse().unwrap()), None);
        let v6 = Coverage::new("2001:db8::/120".parse().unwrap());
        assert_eq!(v6.place("2001:db8::ff".parse().unwrap()), Some(255));
        let mut wide = Coverage::new("2001:db8::/64".parse().unwrap());
        let places: BTreeSet<_> = (0..1_000u128)
            .map(|n| wide.place(std::net::Ipv6Addr::from(0x2001_0db8u128 << 96 | n << 30).into()))
            .collect();
        assert!(places.len() > 990 && !places.contains(&None), "{}", places.len());
        wide.cover("2001:db8::1".parse().unwrap());
        assert!(
            !wide.has("2001:db8::1".parse().unwrap()) && !wide.is_mark_due(),
            "nothing is remembered of it"
        );
    }

    /// What can happen to a sweep.
    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// The engine is done with the n-th of those being asked.
        Finish(usize),
        /// The n-th reading that is under way is reported.
        Report(usize),
        /// The first n observations in the spool are committed.
        Commit(usize),
        /// The owner dies: another goes on from what is committed.
        Die,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            20 => any::<usize>().prop_map(Step::Finish),
            8 => any::<usize>().prop_map(Step::Report),
            2 => (1usize..40).prop_map(Step::Commit),
            1 => Just(Step::Die),
        ];
        proptest::collection::vec(step, 0..400)
    }

    #[derive(Clone)]
    enum Said {
        Reading(IpAddr),
        Mark(SweepMark),
    }

    proptest! {
        /// However addresses finish, readings lag and owners die: in the end every address was done, every printer's
        /// reading is committed, and an owner's death costs no more than what was not said yet.
        #[test]
        fn every_address_is_visited_and_few_twice(steps in steps(), printers in proptest::collection::btree_set(1u8..255, 0..40)) {
            let prefix: IpNet = "10.0.0.0/24".parse().unwrap();
            let hosts: Vec<IpAddr> = Target::Prefix(prefix, None).hosts().collect();
            let printer = |ip: IpAddr| matches!(ip, IpAddr::V4(ip) if printers.contains(&ip.octets()[3]));
            let (mut committed, mut readings) = (SweepMark::default(), BTreeSet::new());
            let mut finished: BTreeMap<IpAddr, u32> = BTreeMap::new();
            let mut deaths = 0;
            let mut steps = steps.into_iter();
            loop {
                let mut coverage = Coverage::resume(prefix, &committed, 7, 3);
                let mut asking: Vec<IpAddr> = hosts.iter().copied().filter(|ip| !coverage.has(*ip)).collect();
                let (mut reading, mut spool): (Vec<IpAddr>, Vec<Said>) = (Vec::new(), Vec::new());
                let mut lost = 0;
                let died = loop {
                    let over = asking.is_empty() && reading.is_empty() && spool.is_empty();
                    let step = match steps.next() {
                        Some(step) => step,
                        // Left in peace it comes to its end.
                        None if !asking.is_empty() => Step::Finish(0),
                        None if !reading.is_empty() => Step::Report(0),
                        None => Step::Commit(usize::MAX),
                    };
                    let mut done = None;
                    match step {
                        Step::Finish(n) if !asking.is_empty() => {
                            let ip = asking.swap_remove(n % asking.len());
                            *finished.entry(ip).or_default() += 1;
                            if printer(ip) { reading.push(ip) } else { done = Some(ip) }
                        }
                        Step::Report(n) if !reading.is_empty() => {
                            let ip = reading.swap_remove(n % reading.len());
                            spool.push(Said::Reading(ip));
                            done = Some(ip);
                        }
                        Step::Commit(n) => for said in spool.drain(..n.min(spool.len())) {
                            match said {
                                Said::Reading(ip) => { readings.insert(ip); }
                                Said::Mark(mark) => committed = mark,
                            }
                        },
                        Step::Die => {
                            let kept = Coverage::resume(prefix, &committed, 7, 3);
                            lost = hosts.iter().filter(|ip| coverage.has(**ip) && !kept.has(**ip)).count();
                            let said = spool.iter().filter(|said| matches!(said, Said::Mark(_))).count();
                            prop_assert!(lost < (said + 1) * STEP as usize + 1, "{lost} with {said} marks in the spool");
                            break true;
                        }
                        Step::Finish(_) | Step::Report(_) => {}
                    }
                    if let Some(ip) = done {
                        coverage.cover(ip);
                        let whole = asking.is_empty() && reading.is_empty();
                        if coverage.is_mark_due() || whole {
                            spool.push(Said::Mark(mark(&mut coverage)));
                        }
                    }
                    if over && steps.len() == 0 {
                        break false;
                    }
                };
                deaths += u32::from(died);
                // Committed means done: a covered printer's reading is there.
                let kept = Coverage::resume(prefix, &committed, 7, 3);
                prop_assert!(hosts.iter().filter(|ip| kept.has(**ip) && printer(**ip)).all(|ip| readings.contains(ip)));
                let _ = lost;
                if !died {
                    break;
                }
            }
            prop_assert!(hosts.iter().all(|ip| finished.contains_key(ip)));
            prop_assert!(hosts.iter().filter(|ip| printer(**ip)).all(|ip| readings.contains(ip)));
            prop_assert!(finished.values().all(|times| *times <= 1 + deaths));
        }
    }
}
