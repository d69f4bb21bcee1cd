//! What the engine counts, for everyone to read at any time.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the engine began.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The same, while being counted. Relaxed: each is right, together they may be a moment apart.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Counter,)*
        }

        impl Counters {
            pub(crate) fn read(&self) -> Stats {
                Stats { $($name: self.$name.0.load(Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Packets sent.
    packets_sent,
    /// UDP payload sent, octets.
    bytes_sent,
    /// Packets received.
    packets_received,
    /// UDP payload received, octets.
    bytes_received,
    /// Transmissions after the first.
    retransmissions,
    /// Requests and probes that nothing answered.
    timeouts,
    /// Datagrams ignored: not SNMP, or not an answer.
    malformed,
    /// Datagrams ignored: no request in flight has that id; late, doubled or invented.
    unmatched,
    /// Datagrams ignored: the version, community, user or engine is not that of the request.
    mismatched,
    /// Datagrams ignored: the digest is wrong.
    wrong_digest,
    /// Datagrams ignored: authentic but outside the time window (RFC 3414 section 3.2 step 7b).
    outside_window,
    /// Datagrams ignored: less secured than was asked for.
    lower_level,
    /// Values that could not be decoded and were taken as NULL.
    undecodable,
    /// Packets that the kernel refused to send.
    send_errors,
    /// ICMP errors received.
    unreachable,
}

/// One of them.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Relaxed);
    }
}
