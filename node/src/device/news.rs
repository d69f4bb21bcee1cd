//! What a planned read brought, sorted by what it is good for, and whether it is still the same device.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use quire_proto::oid::Oid;

use super::answers::{number, octets};
use super::plan::{Ask, Feed};
use crate::snmp::Value;

/// A level that rises by more than this part of its capacity is another cartridge.
const RISE: i64 = 20;

/// What one read brought, by what it is good for.
#[derive(Default)]
pub(super) struct News<'a> {
    /// Levels, as they came.
    pub(super) levels: Vec<i64>,
    /// hrPrinterStatus.
    pub(super) printer: Option<i64>,
    /// hrDeviceStatus.
    pub(super) device: Option<i64>,
    /// hrPrinterDetectedErrorState.
    pub(super) errors: Option<(&'a Oid, &'a [u8])>,
    /// The lines of the panel.
    pub(super) display: Vec<(&'a Oid, &'a [u8])>,
    /// hrPrinterStatus and hrPrinterDetectedErrorState, digested.
    pub(super) state: u64,
}

impl<'a> News<'a> {
    /// What these answers to these questions are.
    pub(super) fn of(asks: &'a [Ask], found: &[&'a Value]) -> News<'a> {
        let mut news = News::default();
        asks.iter().zip(found).for_each(|(ask, value)| news.take(ask, value));
        news
    }

    fn take(&mut self, ask: &'a Ask, value: &'a Value) {
        match ask.feed {
            Feed::Mark | Feed::Number => {}
            Feed::Level(_) => self.levels.push(number(value).unwrap_or(UNREADABLE)),
            Feed::PrinterStatus => self.printer = number(value),
            Feed::DeviceStatus => self.device = number(value),
            Feed::Errors => self.errors = octets(value).map(|bits| (&ask.oid, bits)),
            Feed::Display => self.display.extend(octets(value).map(|text| (&ask.oid, text))),
        }
        if matches!(ask.feed, Feed::PrinterStatus | Feed::Errors) {
            let mut hasher = DefaultHasher::new();
            (self.state, Digest(value)).hash(&mut hasher);
            self.state = hasher.finish();
        }
    }
}

/// A level that is no number: RFC 3805 has no such value, and it is as good as unknown.
const UNREADABLE: i64 = -2;

/// True when a level rose by so much that it is another cartridge's, or became another kind of level.
pub(super) fn is_replaced(old: i64, new: i64, max: Option<u64>) -> bool {
    let size = max.and_then(|max| i64::try_from(max).ok()).unwrap_or(100);
    (old < 0) != (new < 0) || new - old > size / RISE
}

/// A value for hashing.
struct Digest<'a>(&'a Value);

impl Hash for Digest<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self.0 {
            Value::Integer(n) => n.hash(state),
            Value::OctetString(octets) | Value::Opaque(octets) => octets.hash(state),
            Value::ObjectId(oid) => oid.hash(state),
            Value::IpAddress(address) => address.hash(state),
            Value::Counter32(n) | Value::Gauge32(n) | Value::TimeTicks(n) => n.hash(state),
            Value::Counter64(n) => n.hash(state),
            Value::Null | Value::NoSuchObject | Value::NoSuchInstance | Value::EndOfMibView => {}
        }
    }
}

/// What stands for all marks together.
pub(super) fn digest_marks(asks: &[Ask], found: &[&Value]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let marks = asks.iter().zip(found).filter(|(ask, _)| ask.feed == Feed::Mark);
    marks.for_each(|(_, value)| Digest(value).hash(&mut hasher));
    hasher.finish()
}
