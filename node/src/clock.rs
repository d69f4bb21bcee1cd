//! The only place that asks what time it is; everything else is told.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quire_proto::id::Millis;

/// The calendar time, UTC.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The steady time, for deadlines and intervals; it stands still while the machine is suspended.
pub(crate) fn steady() -> Instant {
    Instant::now()
}

/// The steady time as milliseconds since the first call: for cores that count deadlines in [`Millis`] and
/// must not be fooled when somebody sets the calendar.
pub(crate) fn ticks() -> Millis {
    static START: OnceLock<Instant> = OnceLock::new();
    let since = START.get_or_init(Instant::now).elapsed();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
