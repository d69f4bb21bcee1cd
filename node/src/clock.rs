//! The only place that asks what time it is; everything else is told.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use quire_proto::id::Millis;

/// The calendar time, UTC.
pub fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// The steady time, for deadlines and intervals; it stands still while the machine is suspended.
pub fn steady() -> Instant {
    Instant::now()
}
