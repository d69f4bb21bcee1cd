//! What units cost: milliseconds of reading and sweeping a day, measured by whoever does the work.
//!
//! A node notes how long each read and each whole sweep took, and tells what a unit's day comes to where the plan's row
//! says something clearly different. `apply` believes the owner alone, under the grant in force.
//!
//! Never: reads a clock, guesses what was not measured (a row keeps its first estimate until then).

use std::collections::BTreeMap;

use ipnet::IpNet;
use quire_proto::id::{NodeId, UnitId};
use quire_proto::store::outcome::Result as Answer;
use quire_proto::store::{ReportCosts, UnitCost, UnitRow};

use crate::planner;
use crate::rows;
use crate::state::refuse;
use crate::tables::{Fault, Overlay, Table};

const DAY_MS: f64 = 86_400_000.0;
/// Weight of the latest read in the mean, once there were so many.
const WEIGHT: f64 = 1.0 / 16.0;
/// Reads before a mean is told: a device's first one learns how to ask it, and takes ten times as long as the others.
const ENOUGH: u32 = 16;
/// A difference of more than this part of the larger one is told: a balance that asks for a factor of two does not
/// need to know better, and a row of the log is not for noise.
const DIFFERENCE: f64 = 0.25;
/// Units in one report: 30 KB in one entry of the log. The rest follows with the next one.
const MOST: usize = 500;

/// What one node measured of its own units. Some 100 octets a unit.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    units: BTreeMap<UnitId, Measured>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// Mean of the reads, milliseconds, and how many they were.
    read_ms: f64,
    reads: u32,
    /// The last whole sweep, milliseconds.
    sweep_ms: Option<f64>,
}

/// How often the settings ask for what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Reads of a device a day.
    pub reads_a_day: f64,
    /// Sweeps of a unit a day.
    pub sweeps_a_day: f64,
}

impl Costs {
    /// A read of one of the unit's devices took so long, however it ended.
    pub fn read_took(&mut self, unit: &UnitId, ms: u64) {
        let measured = self.units.entry(unit.clone()).or_default();
        measured.reads = measured.reads.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(measured.reads));
        measured.read_ms += (ms as f64 - measured.read_ms) * weight;
    }

    /// A sweep of all of the unit took so long.
    pub fn sweep_took(&mut self, unit: &UnitId, ms: u64) {
        self.units.entry(unit.clone()).or_default().sweep_ms = Some(ms as f64);
    }

    /// The rows whose cost is another one than was measured; `owned` are all of this node's, with the number of devices
    /// that it reads in each.
    pub fn news<'r>(
        &mut self,
        owned: impl Fn(&UnitId) -> Option<(&'r UnitRow, usize)>,
        pace: Pace,
    ) -> Vec<UnitCost> {
        self.units.retain(|unit, _| owned(unit).is_some());
        let news = self.units.iter().filter_map(|(unit, measured)| {
            let (row, devices) = owned(unit)?;
            let cost = measured.a_day(unit.prefix()?, devices, pace)?;
            let (less, more) = (cost.min(row.cost), cost.max(row.cost));
            let differs = (more - less) as f64 > more as f64 * DIFFERENCE;
            differs.then(|| UnitCost { unit: unit.to_string(), epoch: row.epoch, cost })
        });
        news.take(MOST).collect()
    }
}

impl Measured {
    /// Milliseconds; `None` while there are devices of which too few reads are known.
    fn a_day(&self, prefix: IpNet, devices: usize, pace: Pace) -> Option<u64> {
        if devices > 0 && self.reads < ENOUGH {
            return None;
        }
        let reads = self.read_ms * devices as f64 * pace.reads_a_day;
        let estimate = planner::cost(prefix) as f64;
        let sweeps = self.sweep_ms.map_or(estimate, |ms| ms * pace.sweeps_a_day);
        // At least 1: a row that costs nothing would be piled upon others for ever.
        Some((reads + sweeps).round().clamp(1.0, DAY_MS * 1e6) as u64)
    }
}

/// Takes what an owner measured of its units; what belongs to another one since is left out.
pub(crate) fn apply(tables: &mut Overlay<'_>, report: &ReportCosts) -> Result<Answer, Fault> {
    if rows::member(tables, NodeId(report.node))?.is_none() {
        return Ok(refuse(format!("node {} is not a member", report.node)));
    }
    for told in &report.costs {
        let Ok(id) = told.unit.parse() else { continue };
        let Some(unit) = rows::unit(tables, &id)? else { continue };
        if unit.node == report.node && unit.epoch == told.epoch && told.cost > 0 {
            tables.put(Table::Units, told.unit.as_bytes(), &UnitRow { cost: told.cost, ..unit });
        }
    }
    Ok(Answer::Done(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACE: Pace = Pace { reads_a_day: 24.0, sweeps_a_day: 0.5 };

    fn row(cost: u64) -> UnitRow {
        UnitRow { unit: "any:10.1.0.0/24".into(), node: 1, epoch: 7, cost, ..UnitRow::default() }
    }

    fn told(costs: &mut Costs, row: &UnitRow, devices: usize) -> Option<u64> {
        costs.news(|_| Some((row, devices)), PACE).first().map(|news| news.cost)
    }

    #[test]
    fn a_day_is_what_reads_and_sweeps_took() {
        let unit: UnitId = "any:10.1.0.0/24".parse().unwrap();
        let mut costs = Costs::default();
        costs.sweep_took(&unit, 10_000);
        assert_eq!(told(&mut costs, &row(1), 0), Some(5_000));
        assert_eq!(told(&mut costs, &row(1), 3), None, "nobody has read these yet");
        (1..ENOUGH).for_each(|_| costs.read_took(&unit, 500));
        assert_eq!(told(&mut costs, &row(1), 3), None, "too few to tell");
        costs.read_took(&unit, 500);
        assert_eq!(told(&mut costs, &row(1), 3), Some(5_000 + 3 * 24 * 500));
        for _ in 0..200 {
            costs.read_took(&unit, 100);
        }
        assert_eq!(told(&mut costs, &row(1), 3), Some(5_000 + 3 * 24 * 100), "the latest reads count");
        assert_eq!(told(&mut costs, &row(11_000), 3), None, "that is near enough");
        assert!(costs.news(|_| None, PACE).is_empty());
        assert!(costs.units.is_empty(), "what is another node's is forgotten");
    }

    #[test]
    fn the_measure_of_an_unswept_unit_is_its_estimate() {
        let unit: UnitId = "any:10.1.0.0/24".parse().unwrap();
        let mut costs = Costs::default();
        (0..ENOUGH).for_each(|_| costs.read_took(&unit, 100));
        let estimate = planner::cost(unit.prefix().unwrap());
        assert_eq!(told(&mut costs, &row(1), 2), Some(estimate + 2 * 24 * 100));
    }
}
