//! What time it is. The only file of this crate that asks; everything else takes it as an argument.

use std::time::{SystemTime, UNIX_EPOCH};

use quire_proto::id::Millis;

/// Now, in UTC.
pub(crate) fn now() -> Millis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
