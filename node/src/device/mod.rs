//! How Quire understands a device over SNMP, without a socket or a clock.
//!
//! The door: [`probe_oids`] and [`judge`] for a sweep, [`Read`] for a known device, [`device_json`] for listings.
//! [`script`] runs
//! what profiles know beyond that. The standard reader (`read`, `standard`, `supply`) knows RFC 3805, RFC 2790 and RFC 1213 only; what vendors add
//! stands in `vendors.toml` and is applied by `vendor`. Nothing here may send, sleep or ask for the time.
//!
//! Architecture Invariant: a [`Read`] asks at most [`MAX_REQUESTS`] questions, whatever the device answers.

mod answers;
mod brand;
mod drive;
mod json;
mod judge;
mod mib;
mod read;
pub mod script;
mod standard;
mod supply;
mod text;
mod vendor;
mod walk;

#[cfg(test)]
mod hardship;
#[cfg(test)]
mod recordings;
#[cfg(test)]
mod responder;

pub use drive::{read, via};
pub use json::{Place, device_json};
pub use judge::{Verdict, glance, judge, probe_oids};
pub use read::{Finished, MAX_REQUESTS, Miss, Read, ReadPlan};
