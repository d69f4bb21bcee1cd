//! What simulated devices saw of those who asked them: evidence of politeness, or of its absence.

use crate::printer::Heard;
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// Peers remembered by name for one device; a polite cluster needs one or two.
const PEERS_MAX: usize = 16;

/// What one device saw.
#[derive(Debug, Clone, Serialize)]
pub struct Count {
    /// The device's address.
    pub address: Ipv4Addr,
    /// Packets that came in.
    pub received: u64,
    /// Of them, undecodable ones, other versions and wrong communities.
    pub foreign: u64,
    /// Of them, SET requests: must stay 0.
    pub sets: u64,
    /// Octets that came in.
    pub bytes_in: u64,
    /// Packets that went out.
    pub answered: u64,
    /// Octets that went out.
    pub bytes_out: u64,
    /// Most packets in one second, by whole seconds since the start.
    pub per_second_max: u64,
    /// Most requests unanswered at once (with a device that has latency).
    pub in_flight_max: u64,
    /// Who asked, the first 16.
    pub peers: Vec<SocketAddr>,
    /// When the last packet came, in milliseconds since the start.
    pub last_ms: u64,
}

#[derive(Debug)]
struct Row {
    count: Count,
    second: u64,
    in_second: u64,
    in_flight: u64,
}

/// The counts of one worker's devices.
#[derive(Debug)]
pub struct Counts {
    rows: Vec<Row>,
}

impl Counts {
    /// All zero.
    pub(crate) fn new(addresses: impl Iterator<Item = Ipv4Addr>) -> Counts {
        let row = |address| Row {
            count: Count {
                address,
                received: 0,
                foreign: 0,
                sets: 0,
                bytes_in: 0,
                answered: 0,
                bytes_out: 0,
                per_second_max: 0,
                in_flight_max: 0,
                peers: Vec::new(),
                last_ms: 0,
            },
            second: 0,
            in_second: 0,
            in_flight: 0,
        };
        Counts { rows: addresses.map(row).collect() }
    }

    /// A packet came.
    pub(crate) fn received(
        &mut self,
        n: usize,
        heard: Heard,
        length: usize,
        peer: SocketAddr,
        now: Duration,
    ) {
        let Row { count, second, in_second, in_flight } = &mut self.rows[n];
        count.received += 1;
        count.bytes_in += length as u64;
        match heard {
            Heard::Request => {}
            Heard::Foreign => count.foreign += 1,
            Heard::Set => count.sets += 1,
        }
        if *second != now.as_secs() {
            (*second, *in_second) = (now.as_secs(), 0);
        }
        *in_second += 1;
        count.per_second_max = count.per_second_max.max(*in_second);
        count.in_flight_max = count.in_flight_max.max(*in_flight + 1);
        count.last_ms = now.as_millis() as u64;
        if count.peers.len() < PEERS_MAX && !count.peers.contains(&peer) {
            count.peers.push(peer);
        }
    }

    /// A response waits for its device's latency.
    pub(crate) fn waits(&mut self, n: usize) {
        self.rows[n].in_flight += 1;
    }

    /// It waits no more.
    pub(crate) fn waited(&mut self, n: usize) {
        self.rows[n].in_flight = self.rows[n].in_flight.saturating_sub(1);
    }

    /// A response went out.
    pub(crate) fn answered(&mut self, n: usize, length: usize) {
        self.rows[n].count.answered += 1;
        self.rows[n].count.bytes_out += length as u64;
    }

    /// A copy of what was counted so far.
    pub(crate) fn snapshot(&self) -> Vec<Count> {
        self.rows.iter().map(|row| row.count.clone()).collect()
    }
}
