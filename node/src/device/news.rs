//! What a planned read brought, sorted by what it is good for, and whether it is still the same device.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use quire_proto::oid::Oid;

use super::plan::{Ask, Feed};
use crate::snmp::Seen;

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
    pub(super) fn of(asks: &'a [Ask], found: &[Seen<'a>]) -> News<'a> {
        let mut news = News { levels: Vec::with_capacity(found.len()), ..News::default() };
        asks.iter().zip(found).for_each(|(ask, value)| news.take(ask, *value));
        news
    }

    fn take(&mut self, ask: &'a Ask, value: Seen<'a>) {
        match ask.feed {
            Feed::Mark | Feed::Number => {}
            Feed::Level(_) => self.levels.push(value.number().unwrap_or(UNREADABLE)),
            Feed::PrinterStatus => self.printer = value.number(),
            Feed::DeviceStatus => self.device = value.number(),
            Feed::Errors => self.errors = value.octets().map(|bits| (&ask.oid, bits)),
            Feed::Display => self.display.extend(value.octets().map(|text| (&ask.oid, text))),
        }
        if matches!(ask.feed, Feed::PrinterStatus | Feed::Errors) {
            let mut hasher = DefaultHasher::new();
            (self.state, value).hash(&mut hasher);
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

/// What stands for all marks together.
pub(super) fn digest_marks(asks: &[Ask], found: &[Seen<'_>]) -> u64 {
    let mut hasher = DefaultHasher::new();
    let marks = asks.iter().zip(found).filter(|(ask, _)| ask.feed == Feed::Mark);
    marks.for_each(|(_, value)| value.hash(&mut hasher));
    hasher.finish()
}
