//! Follows settings, plan and devices: by what changed, and by everything only at the start, after a snapshot and when
//! too much changed at once. When the own units change, the devices of those that came are looked up by where they
//! live.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use quire_coordinator::roster::{DeviceDue, OwnUnit, Progress};
use quire_coordinator::rows;
use quire_coordinator::tables::{ReadExt as _, Table};
use quire_coordinator::topology;
use quire_proto::id::{DeviceId, Epoch, Millis, UnitId};
use quire_proto::store::{DeviceRow, Meta, UnitRow};

use super::{Collector, credentials, excluded, may_contact};
use crate::clock;
use crate::cluster::{Seen, SettingsError, View};
use crate::device::browser::Browser;

impl Collector {
    /// Takes in what was applied since the last call.
    pub(super) fn follow(&mut self) -> anyhow::Result<()> {
        self.looked = clock::steady();
        let seen = self.changes.take();
        let tables = self.cluster.view();
        let meta = rows::meta(&tables)?;
        let settings = meta.settings_index != self.tools.settings_index && self.follow_settings(&meta);
        self.share_the_rate(&tables, &meta)?;
        self.follow_units(&tables, &seen)?;
        self.stop_what_moved();
        if settings || seen.everything {
            // Exclusions may have come or gone.
            return self.follow_all_devices(&tables);
        }
        for (_, id) in seen.rows.iter().filter(|(table, _)| *table == Table::Devices) {
            match tables.row::<DeviceRow>(Table::Devices, id)? {
                Some(row) => self.follow_device(&row),
                None => self.roster.remove_device(&DeviceId::from(String::from_utf8_lossy(id).into_owned())),
            }
        }
        Ok(())
    }

    fn share_the_rate(&mut self, tables: &View, meta: &Meta) -> anyhow::Result<()> {
        let me = self.cluster.me();
        let zone_mates = rows::members(tables)?
            .iter()
            .filter(|member| member.zone == me.zone && !member.witness)
            .filter(|member| member.id == me.id.0 || meta.heard.iter().any(|heard| heard.node == member.id))
            .count();
        let share = topology::share(self.tools.settings.discovery.rate, zone_mates);
        // A share below one packet a second still sends one, else a large zone would send none.
        let rate = share.map_or(0, |pps| (pps as u32).max(1));
        if self.rate.replace(rate) != Some(rate) {
            self.tools.snmp.set_rate(rate);
        }
        Ok(())
    }

    /// Settings that this version does not understand (a later one applied them) must not stop the node,
    /// or they would stop every node: what was in force stays. False where the next look tries again.
    fn follow_settings(&mut self, meta: &Meta) -> bool {
        let settings = self.cluster.settings();
        if settings.as_ref().is_err_and(SettingsError::passes) {
            return false;
        }
        self.tools.settings_index = meta.settings_index;
        let settings = match settings {
            Ok(Some(settings)) => settings,
            Ok(None) => return true,
            Err(error) => {
                tracing::error!(%error, "the settings cannot be read: the old ones stay");
                return true;
            }
        };
        // First of all: whatever is under way, no packet goes there any more.
        let exclude = &settings.discovery.exclude;
        self.tools.snmp.exclude(exclude.clone());
        for running in self.reads.values() {
            if running.peer.is_some_and(|peer| excluded(peer, exclude)) {
                running.stop.cancel();
            }
        }
        if *exclude != self.tools.settings.discovery.exclude {
            // Pages that are shown for others are not the engine's.
            self.showing.abort_all();
        }
        // Sweeps go on under the new settings, and from the start where these ask otherwise.
        self.sweeps.values().for_each(|running| running.stop.cancel());
        if settings.http.chromium && !Browser::found() {
            tracing::info!(
                "[http] chromium is on, and Chromium or setpriv is not installed here: pages that need \
                JavaScript are handed to a node of this cluster that has them, if there is one"
            );
        }
        self.tools.credentials = Arc::new(credentials::of(&settings));
        self.tools.ways.retain(|_| false);
        self.tools.web.clear();
        self.roster.set_settings(settings.discovery.schedule.clone(), settings.metering.every_ms);
        self.tools.settings = settings;
        true
    }

    /// The node's own units; when others come or go, so do their devices.
    fn follow_units(&mut self, tables: &View, seen: &Seen) -> anyhow::Result<()> {
        let before: BTreeSet<UnitId> = self.units.keys().cloned().collect();
        let me = self.cluster.me().id.0;
        let mut changed = Vec::new();
        let now = clock::steady();
        if seen.everything {
            self.units.clear();
            self.handover.forget_leaving();
            tables.each::<UnitRow>(Table::Units, &[], |_, row| {
                let id = row.unit.parse().ok();
                if let Some(id) = id.filter(|id| self.handover.is_ours(me, id, &row, now)) {
                    self.units.insert(id, row);
                }
                true
            })?;
        }
        let overdue = self.handover.overdue(now);
        let named = seen.rows.iter().filter(|(table, _)| *table == Table::Units);
        let named = named.filter_map(|(_, key)| std::str::from_utf8(key).ok()?.parse::<UnitId>().ok());
        for id in named.chain(overdue) {
            let row = tables.row::<UnitRow>(Table::Units, id.as_str().as_bytes())?;
            if row.is_none() {
                self.handover.forget(&id);
            }
            match row.filter(|row| self.handover.is_ours(me, &id, row, now)) {
                Some(row) => {
                    changed.push(own_unit(&id, &row));
                    self.units.insert(id, row);
                }
                None => drop(self.units.remove(&id)),
            }
        }
        if self.units.keys().eq(&before) && !seen.everything {
            changed.iter().for_each(|unit| self.roster.set_unit(unit));
            return Ok(());
        }
        let own: Vec<OwnUnit> = self.units.iter().map(|(id, row)| own_unit(id, row)).collect();
        self.roster.set_units(&own);
        self.roster.forget_foreign();
        let left = before.iter().filter(|id| !self.units.contains_key(*id));
        let mut left: Vec<IpNet> = left.filter_map(UnitId::prefix).collect();
        left.sort_by_key(IpNet::network);
        if !left.is_empty() {
            self.tools.ways.retain(|peer| !within(&left, peer.ip()));
        }
        if !seen.everything {
            let came: Vec<UnitId> = self.units.keys().filter(|id| !before.contains(*id)).cloned().collect();
            came.iter().try_for_each(|unit| self.devices_of(tables, unit).map(drop))?;
        }
        Ok(())
    }

    /// Takes the units whose former owner was waited for long enough.
    pub(super) fn follow_overdue(&mut self) -> anyhow::Result<()> {
        let overdue = self.handover.overdue(clock::steady());
        if overdue.iter().any(|id| !self.units.contains_key(id)) { self.follow() } else { Ok(()) }
    }

    /// Lets go of units that moved, once nothing of them runs here any more.
    pub(super) fn let_go(&mut self) {
        let (sweeps, reads) = (&self.sweeps, &self.reads);
        let runs = |id: &UnitId| {
            sweeps.contains_key(id) || reads.values().any(|read| read.unit.as_ref() == Some(id))
        };
        self.handover.let_go(&self.cluster, runs, clock::steady());
    }

    /// A task under a grant that is no longer in force, or was replaced, ends at once.
    fn stop_what_moved(&mut self) {
        for (unit, running) in &self.sweeps {
            if self.units.get(unit).is_none_or(|row| row.epoch != running.epoch.0) {
                running.stop.cancel();
            }
        }
    }

    fn follow_all_devices(&mut self, tables: &View) -> anyhow::Result<()> {
        let units: Vec<UnitId> = self.units.keys().cloned().collect();
        let mut there = HashSet::new();
        for unit in &units {
            there.extend(self.devices_of(tables, unit)?);
        }
        self.roster.retain_devices(|id| there.contains(id));
        Ok(())
    }

    /// Follows the devices of a unit, and answers which they are.
    fn devices_of(&mut self, tables: &View, unit: &UnitId) -> anyhow::Result<Vec<DeviceId>> {
        let mut there = Vec::new();
        let Some(prefix) = unit.prefix() else { return Ok(there) };
        rows::devices_in(tables, unit.zone(), prefix, |row| {
            if row.unit == unit.as_str() {
                self.follow_device(&row);
                there.push(DeviceId::from(row.id));
            }
            true
        })?;
        Ok(there)
    }

    fn follow_device(&mut self, row: &DeviceRow) {
        let own = row.unit.parse().ok().filter(|unit| self.units.contains_key(unit));
        match own.filter(|_| may_contact(&row.address, &self.tools.settings.discovery.exclude)) {
            Some(unit) => self.roster.set_device(&device_due(row, unit), clock::now()),
            None => self.roster.remove_device(&DeviceId::from(row.id.clone())),
        }
    }
}

/// True for an address in one of these prefixes, which are sorted and apart from each other.
fn within(prefixes: &[IpNet], ip: IpAddr) -> bool {
    let behind = prefixes.partition_point(|prefix| prefix.network() <= ip);
    behind > 0 && prefixes[behind - 1].contains(&ip)
}

fn own_unit(id: &UnitId, row: &UnitRow) -> OwnUnit {
    let progress = |sweep: &quire_proto::store::SweepMark| Progress {
        started_at: Millis(sweep.started_at_ms),
        finished: sweep.finished,
    };
    OwnUnit {
        unit: id.clone(),
        epoch: Epoch(row.epoch),
        swept_at: Millis(row.swept_at_ms),
        sweep: row.sweep.as_ref().map(progress),
        asked_at: Millis(row.asked_at_ms),
    }
}

fn device_due(row: &DeviceRow, unit: UnitId) -> DeviceDue {
    DeviceDue {
        id: DeviceId::from(row.id.clone()),
        unit,
        metered_at: Millis(row.metered_at_ms),
        misses: row.misses,
        asked_at: Millis(row.asked_at_ms),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_within_its_prefix_alone() {
        let prefixes: Vec<IpNet> =
            ["10.0.0.0/24", "10.0.2.0/25", "2001:db8::/120"].map(|prefix| prefix.parse().unwrap()).to_vec();
        for inside in ["10.0.0.0", "10.0.0.255", "10.0.2.127", "2001:db8::ff"] {
            assert!(within(&prefixes, inside.parse().unwrap()), "{inside}");
        }
        for outside in ["9.255.255.255", "10.0.1.0", "10.0.2.128", "2001:db8::100", "::"] {
            assert!(!within(&prefixes, outside.parse().unwrap()), "{outside}");
        }
    }
}
