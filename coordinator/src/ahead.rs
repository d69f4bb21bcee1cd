//! Which rows some observations will ask for, known before any of them is applied: asked for together and in key order,
//! they cost a store a fraction of what they cost one by one.
//!
//! Architecture Invariant: nothing depends on it but time. What is left out is asked for when it is needed, and what is
//! fetched in vain is forgotten.

use bytes::Bytes;
use prost::Message as _;
use quire_proto::convert;
use quire_proto::id::UnitId;
use quire_proto::reading::Reading;
use quire_proto::store::Observation;
use quire_proto::store::observation::What;

use crate::backlog::day_key;
use crate::evidence::Evidence;
use crate::glimpse::Faced;
use crate::tables::{Fault, Key, Overlay, Read as _, Table};

/// Observations whose rows are fetched together: some 3,000 rows and 1 MB of them, however long the entry.
pub(crate) const TOGETHER: usize = 512;

/// An observation as far as it can be understood without the tables.
pub(crate) struct Sighting {
    pub(crate) observation: Observation,
    pub(crate) unit: Option<UnitId>,
    /// Of a reading that can be read, with what it says of who was seen.
    pub(crate) seen: Option<Seen>,
}

pub(crate) struct Seen {
    pub(crate) reading: Reading,
    pub(crate) evidence: Evidence,
    pub(crate) face: Option<String>,
}

impl Sighting {
    pub(crate) fn of(observation: Observation) -> Self {
        let unit = observation.unit.parse::<UnitId>().ok();
        let reading = match &observation.what {
            Some(What::Reading(stored)) => convert::decode(stored).ok(),
            Some(What::Silence(_) | What::Sweep(_) | What::Refusal(_)) | None => None,
        };
        let seen = reading.map(|reading| {
            let zone = unit.as_ref().map_or("", UnitId::zone);
            let evidence = Evidence::new(&reading.facts, zone, &observation.address);
            let face = evidence.face();
            Seen { reading, evidence, face }
        });
        Sighting { observation, unit, seen }
    }
}

/// Fetches what `sightings` will ask for.
pub(crate) fn fetch(tables: &Overlay<'_>, sightings: &[Sighting]) -> Result<(), Fault> {
    let key = |table, key: &str| (table, Bytes::copy_from_slice(key.as_bytes()));
    let mut first: Vec<Key> = Vec::new();
    for sighting in sightings {
        first.extend(sighting.unit.as_ref().map(|unit| key(Table::Units, unit.as_str())));
        let Some(seen) = &sighting.seen else { continue };
        first.push(key(Table::Evidence, &seen.evidence.address));
        first.extend(seen.face.as_ref().map(|face| key(Table::Faces, face)));
        first.extend(seen.evidence.strong().map(|evidence| key(Table::Keys, evidence)));
    }
    tables.fetch(first)?;
    let mut then: Vec<Key> = Vec::new();
    for sighting in sightings {
        let Some(seen) = &sighting.seen else { continue };
        let device = match &seen.face {
            Some(face) => match tables.get(Table::Faces, face.as_bytes())? {
                Some(stored) => Faced::decode(stored).map(|face| Bytes::from(face.device)).ok(),
                None => {
                    // Nobody knows it: what a new device asks besides.
                    then.push(key(Table::Keys, &crate::faces::became(face)));
                    then.push(key(Table::Keys, &seen.evidence.address));
                    None
                }
            },
            None => tables.get(Table::Evidence, seen.evidence.address.as_bytes())?,
        };
        if let Some(device) = device.filter(|device| !device.is_empty()) {
            let day = day_key(&device, sighting.observation.at_ms);
            then.extend([(Table::OutboxDays, Bytes::from(day)), (Table::Devices, device)]);
        }
    }
    tables.fetch(then)
}
