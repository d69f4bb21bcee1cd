//! What rules are about: devices, their supplies, units, nodes and the cluster, and the values of their fields.

use std::borrow::Cow;
use std::net::SocketAddr;

use quire_proto::reading::{Reading, Status, Supply, SupplyState};
use quire_proto::store::{DeviceRow, Member, Meta, UnitRow};

use super::field::{ClusterField, DeviceField, Field, NodeField, SupplyField, UnitField, Value};
use crate::rows::OFFLINE_AFTER;

/// A device with what its latest reading says.
#[derive(Clone, Debug)]
pub(super) struct Device<'a> {
    pub(super) row: &'a DeviceRow,
    pub(super) reading: &'a Reading,
    /// The name of the node that read it.
    pub(super) node: Option<&'a str>,
    /// For how long it could have been read since it was.
    pub(super) silent_ms: u64,
}

/// One thing that a rule looks at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject<'a> {
    /// A device.
    Device(&'a Device<'a>),
    /// One of its supplies.
    Supply(&'a Device<'a>, &'a Supply),
    /// A unit of the plan.
    Unit(&'a UnitRow),
    /// A node, and what the last claim heard.
    Node(&'a Member, &'a Meta),
    /// The cluster.
    Cluster(&'a Meta),
}

/// The subject of every rule about the cluster.
pub(super) const CLUSTER: &str = "cluster";

pub(super) fn of_device(id: &str) -> String {
    format!("device/{id}")
}

pub(super) fn of_supply(id: &str, index: u32) -> String {
    format!("device/{id}/supply/{index}")
}

/// The index of a supply, from the subject's name.
pub(super) fn supply_index(subject: &str) -> Option<u32> {
    subject.rsplit_once("/supply/").and_then(|(_, index)| index.parse().ok())
}

impl<'a> Subject<'a> {
    /// By which alerts about it are known; never changes while it is there.
    pub(super) fn name(&self) -> String {
        match self {
            Subject::Device(device) => of_device(&device.row.id),
            Subject::Supply(device, supply) => of_supply(&device.row.id, supply.index),
            Subject::Unit(unit) => format!("unit/{}", unit.unit),
            Subject::Node(member, _) => format!("node/{}", member.id),
            Subject::Cluster(_) => CLUSTER.to_owned(),
        }
    }

    /// What people call it.
    pub(super) fn label(&self) -> String {
        match self {
            Subject::Device(device) => device.label(),
            Subject::Supply(device, supply) => format!("{} of {}", supply.name, device.label()),
            Subject::Unit(unit) => format!("unit {}", unit.unit),
            Subject::Node(member, _) => format!("node {}", member.name),
            Subject::Cluster(meta) => format!("cluster {}", meta.cluster_name),
        }
    }

    /// The value of a field; unknown where the subject is of another kind.
    pub(super) fn value(&self, field: Field) -> Value<'a> {
        match (self, field) {
            (Subject::Device(device) | Subject::Supply(device, _), Field::Device(field)) => {
                device.value(field)
            }
            (Subject::Supply(_, supply), Field::Supply(field)) => of_its_supply(supply, field),
            (Subject::Unit(unit), Field::Unit(field)) => of_unit(unit, field),
            (Subject::Node(member, meta), Field::Node(field)) => of_node(member, meta, field),
            (Subject::Cluster(meta), Field::Cluster(field)) => of_cluster(meta, field),
            // Conditions name fields of one scope, so nobody asks.
            _ => Value::Unknown,
        }
    }
}

impl<'a> Device<'a> {
    fn label(&self) -> String {
        let facts = &self.reading.facts;
        let address = self.address();
        match (&facts.model, &facts.vendor) {
            (Some(name), _) | (None, Some(name)) if address.is_empty() => name.clone(),
            (Some(name), _) | (None, Some(name)) => format!("{name} at {address}"),
            (None, None) if address.is_empty() => self.row.id.clone(),
            (None, None) => address,
        }
    }

    fn address(&self) -> String {
        self.row.address.parse::<SocketAddr>().map_or_else(|_| String::new(), |at| at.ip().to_string())
    }

    /// What a human typed, else what the device says; an empty text was cleared.
    fn typed(&self, field: &str, read: &'a Option<String>) -> Value<'a> {
        let typed = self.row.typed.iter().find(|typed| typed.field == field);
        Value::text(
            typed.map(|typed| typed.value.as_str()).or(read.as_deref()).filter(|text| !text.is_empty()),
        )
    }

    fn value(&self, field: DeviceField) -> Value<'a> {
        let (row, reading) = (self.row, self.reading);
        let (facts, counters) = (&reading.facts, &reading.counters);
        match field {
            DeviceField::Id => Value::text(Some(&row.id)),
            DeviceField::Address => match self.address() {
                address if address.is_empty() => Value::Unknown,
                address => Value::Text(Cow::Owned(address)),
            },
            DeviceField::Zone => Value::text(Some(row.zone.as_str()).filter(|zone| !zone.is_empty())),
            DeviceField::Node => Value::text(self.node),
            DeviceField::Hops => Value::number(row.hops),
            DeviceField::Vendor => Value::text(facts.vendor.as_deref()),
            DeviceField::Model => Value::text(facts.model.as_deref()),
            DeviceField::Serial => Value::text(facts.serial.as_deref()),
            DeviceField::Name => self.typed("name", &facts.name),
            DeviceField::Location => self.typed("location", &facts.location),
            DeviceField::Firmware => Value::text(facts.firmware.as_deref()),
            DeviceField::Asset => self.typed("asset", &facts.asset),
            DeviceField::SilentFor => Value::Number(self.silent_ms),
            DeviceField::Status => self.status(),
            // Some devices never say what ails them; that is not the same as nothing.
            DeviceField::Conditions
                if reading.conditions.is_empty() && !reading.sources.contains_key("conditions") =>
            {
                Value::Unknown
            }
            DeviceField::Conditions => {
                Value::Words(reading.conditions.iter().map(|word| word.word()).collect())
            }
            DeviceField::Display => Value::text(reading.display.as_deref()),
            DeviceField::Total => Value::number(counters.total),
            DeviceField::Mono => Value::number(counters.mono),
            DeviceField::Color => Value::number(counters.color),
            DeviceField::Prints => Value::number(counters.prints),
            DeviceField::Copies => Value::number(counters.copies),
            DeviceField::Faxes => Value::number(counters.faxes),
            DeviceField::Scans => Value::number(counters.scans),
            DeviceField::Duplex => Value::number(counters.duplex),
            DeviceField::Large => Value::number(counters.large),
        }
    }

    /// A device that is silent may be doing anything: `offline` rules out no other word.
    fn status(&self) -> Value<'a> {
        if self.row.misses >= OFFLINE_AFTER {
            return Value::Word(Status::Offline.word(), false);
        }
        match self.reading.status {
            Some(status) => Value::Word(status.word(), status != Status::Unknown),
            None => Value::Unknown,
        }
    }
}

fn of_its_supply<'a>(supply: &'a Supply, field: SupplyField) -> Value<'a> {
    match field {
        SupplyField::Index => Value::Number(supply.index.into()),
        SupplyField::Name => Value::text(Some(&supply.name)),
        SupplyField::Kind => Value::Word(supply.kind.word(), true),
        SupplyField::Color => Value::text(supply.color.as_deref()),
        SupplyField::Level => Value::number(supply.level),
        SupplyField::Max => Value::number(supply.max),
        SupplyField::Percent => Value::number(supply.percent),
        SupplyField::Unit => Value::text(supply.unit.as_deref()),
        SupplyField::State => Value::Word(supply.state.word(), supply.state != SupplyState::Unknown),
    }
}

fn of_unit(unit: &UnitRow, field: UnitField) -> Value<'_> {
    match field {
        UnitField::Id => Value::text(Some(&unit.unit)),
        UnitField::Zone => Value::text(Some(&unit.zone)),
        UnitField::Segment => Value::text(Some(&unit.prefix)),
        UnitField::Owned => Value::Truth(unit.node != 0),
    }
}

fn of_node<'a>(member: &'a Member, meta: &'a Meta, field: NodeField) -> Value<'a> {
    let heard = meta.heard.iter().find(|heard| heard.node == member.id);
    match field {
        NodeField::Name => Value::text(Some(&member.name)),
        NodeField::Zone => Value::text(Some(&member.zone)),
        // Before the first claim that says whom it hears, nobody knows.
        NodeField::Alive if meta.heard.is_empty() => Value::Unknown,
        NodeField::Alive => Value::Truth(heard.is_some()),
        NodeField::Lag => Value::number(heard.map(|heard| heard.lag)),
        NodeField::Draining => Value::Truth(member.draining),
        NodeField::Version => Value::text(Some(&member.version)),
    }
}

fn of_cluster(meta: &Meta, field: ClusterField) -> Value<'_> {
    match field {
        ClusterField::Devices => Value::Number(meta.devices.saturating_sub(meta.expired)),
        ClusterField::Pending => {
            Value::Number(meta.outbox_next.saturating_sub(1).saturating_sub(meta.outbox_acked))
        }
        ClusterField::Upstream => match (&meta.upstream, &meta.link) {
            (None, _) => Value::Word("disabled", true),
            (Some(_), Some(link)) if !link.state.is_empty() => Value::Word(&link.state, true),
            (Some(_), _) => Value::Unknown,
        },
    }
}
