//! SNMP: one engine for a whole node. v1, v2c and v3, reading only.
//!
//! ```ignore
//! let snmp = Snmp::bind(Options::default()).await?;
//! let community = Arc::new(Credential::v2c("public")?);
//! let answer = snmp.ask(peer, &community, Request::Get(oids), Patience::Normal).await?;   // one request
//! let mut events = snmp.sweep(Sweep { peers, credentials, oids });                        // very many
//! while let Some(event) = events.recv().await { /* Answered, Refused, ..., Done */ }
//! ```
//!
//! `engine` decides, `socket` sends, `shell` carries between them: all but these two take time and datagrams as arguments and ask the kernel
//! for nothing, so a test may replay a bad network from a seed.
//!
//! Architecture Invariant: this engine can only read; `ber` knows no SetRequest-PDU.

mod aimd;
mod ber;
mod credential;
mod engine;
mod exchange;
pub(crate) mod fuzz;
mod helper;
mod message;
mod pace;
mod peers;
mod prepared;
mod rhythm;
mod shell;
mod silence;
mod socket;
mod stats;
mod sweep;
mod table;
mod turns;
mod usm;
mod value;
mod wheel;

#[cfg(test)]
mod live_tests;
#[cfg(test)]
pub(crate) mod sim;
#[cfg(test)]
mod survey_tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quire_proto::oid::Oid;

pub use credential::{
    AuthProtocol, BadCredential, Community, Credential, JETDIRECT, KeyExtension, PrivProtocol,
    UnknownProtocol, User, V3,
};
pub use prepared::{Expected, Plain, Prepared, Seen};
pub use shell::Snmp;
pub use stats::Stats;
pub use value::{Question, Request, Response, Value, VarBind};

/// How an engine behaves.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ceiling of packets a second, all peers and sweeps together; 0 is none.
    pub rate: u32,
    /// How long the last transmission of a request waits for its answer; earlier ones wait as long as the peer's
    /// round trips say (RFC 6298), at most this.
    pub timeout: Duration,
    /// Transmissions after the first, at most 14. A sweep without a ceiling makes fewer once it has measured that loss
    /// is small, any sweep makes more where it had to slow down (`aimd`).
    pub retries: u8,
    /// All chance in the engine comes from this; 0 draws one from the system.
    pub seed: u64,
    /// The most probes outstanding at once, and the most requests waiting or in flight; beyond, a request is `Busy`. A probe is some 250 octets
    /// (`engine::tests::a_probe_is_small`); 65,536 of them were measured at 18 MB, allocator and all
    /// (`examples/sweep_rate.rs`).
    pub window: usize,
    /// Whether a sweep asks those that stayed silent for their SNMPv3 engine even without an SNMPv3 credential:
    /// one packet more an address, and a device that wants credentials is reported instead of missed.
    pub find_engines: bool,
    /// What to ask of the kernel for receiving, octets; it may give less (`net.core.rmem_max`).
    pub receive_buffer: usize,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            rate: 500,
            timeout: Duration::from_secs(2),
            retries: 2,
            seed: 0,
            window: 65_536,
            find_engines: true,
            receive_buffer: 8 << 20,
        }
    }
}

/// How long to keep trying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// The engine's retries.
    Normal,
    /// For a device known to be there that may sleep: waking takes 2 to 5 seconds and eats packets, so there is
    /// one more transmission, six seconds after the first, and a closed port is not believed.
    Patient,
    /// One transmission of the question.
    Once,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What it says. An `error_status` other than 0 (tooBig, noSuchName...) is an answer, too. Empty where `expected` is not.
    pub response: Response,
    /// What it says, undecoded, where the question was prepared and this is just what it expects.
    pub expected: Option<Expected>,
    /// From the transmission that it answers to its arrival.
    pub rtt: Duration,
    /// Where it came from; a device with several addresses may answer from another than it was asked at.
    pub from: SocketAddr,
    /// snmpEngineID, with SNMPv3.
    pub engine_id: Option<Bytes>,
}

/// Why there is no answer. The text has no secret in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nothing came in time. With a wrong community that is all that a device says.
    #[error("no answer")]
    Timeout,
    /// The kernel or the device's own ICMP says that nobody listens there.
    #[error("nothing listens there")]
    Unreachable,
    /// usmStatsUnknownUserNames.
    #[error("unknown user")]
    UnknownUser,
    /// usmStatsWrongDigests.
    #[error("wrong authentication password")]
    WrongDigest,
    /// usmStatsNotInTimeWindows, more than once in a row.
    #[error("the device does not accept its own engine time")]
    NotInTimeWindow,
    /// usmStatsDecryptionErrors, an answer that does not decrypt, or silence to encrypted requests alone.
    #[error("wrong privacy password")]
    Decryption,
    /// usmStatsUnsupportedSecLevels: the user exists but not with this protection.
    #[error("the device does not offer this security level to the user")]
    UnsupportedLevel,
    /// An SNMPv3 engine that refuses requests without authentication.
    #[error("needs credentials")]
    NeedsCredentials {
        /// snmpEngineID.
        engine_id: Bytes,
    },
    /// Too many requests wait already, for this peer or in all.
    #[error("too many requests wait already")]
    Busy,
    /// The request was answered, but not in SNMP.
    #[error("malformed answer")]
    Malformed,
    /// The engine was shut down.
    #[error("the engine was shut down")]
    Closed,
}

/// A question to very many addresses.
pub struct Sweep {
    /// Whom to ask, in this order; pulled as rate and window allow, so it may be long.
    pub peers: Box<dyn Iterator<Item = SocketAddr> + Send>,
    /// Tried one after another: all v2c, then v1 at those that stayed silent, then the SNMPv3 users, each at most
    /// once at a device, because devices lock users.
    pub credentials: Vec<Arc<Credential>>,
    /// What to ask for (GetRequest).
    pub oids: Vec<Oid>,
}

/// What a sweep finds.
#[derive(Clone, Debug)]
pub enum SweepEvent {
    /// A device answered.
    Answered {
        /// Who was asked.
        peer: SocketAddr,
        /// What it answered to.
        credential: Arc<Credential>,
        /// What it said.
        answer: Answer,
    },
    /// So many addresses are done.
    Progress {
        /// Addresses finished, found or silent.
        done: u64,
        /// Those finished since the last such event. What was found of them was told before.
        finished: Vec<SocketAddr>,
    },
    /// An SNMPv3 engine is there and there is no SNMPv3 credential to try.
    NeedsCredentials {
        /// Who was asked.
        peer: SocketAddr,
        /// snmpEngineID.
        engine_id: Bytes,
    },
    /// A device refused a user. Reported once; the user is not tried there again in this sweep.
    Refused {
        /// Who was asked.
        peer: SocketAddr,
        /// The user's name.
        user: String,
        /// Why.
        reason: Failure,
    },
    /// The sweep is over; always the last event.
    Done(SweepCounts),
}

/// How a sweep went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepCounts {
    /// Addresses asked.
    pub addresses: u64,
    /// Of those, answered.
    pub answered: u64,
    /// Of those, an SNMPv3 engine that let none of our users in, or that there was none for.
    pub refused: u64,
    /// Of those, said by ICMP to have nobody listening.
    pub unreachable: u64,
}
