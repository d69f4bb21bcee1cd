//! How Quire understands a device over SNMP, without a socket or a clock.
//!
//! The door: [`probe_oids`] and [`judge`] for a sweep, [`Read`] for a known device,
//! [`RouterRead`] for a router's tables, [`script`] for profiles, [`device_json`] for listings.
//! The standard reader (`read`, `standard`, `supply`) knows RFC 3805, RFC 2790 and RFC 1213 only; what vendors add
//! stands in the headers of profiles and is applied by `family`; who is who stands in `vendors.toml`. Nothing here may send, sleep or ask for the time.
//!
//! What SNMP leaves open, a device's own pages (`ews`) and IPP (`ipp`) may say; both are sans-IO, too. `http` is the
//! only file that connects, to one device at a time, and `web` drives it; `browser` shows pages that need JavaScript and
//! gets all that they load through `http`.
//!
//! Architecture Invariant: a [`Read`] asks at most [`MAX_REQUESTS`] questions, whatever the device answers.

mod alert;
mod answers;
mod brand;
pub mod browser;
mod drive;
mod ews;
mod family;
mod fetch;
mod fresh;
pub(crate) mod fuzz;
pub mod http;
mod ipp;
mod json;
mod judge;
mod learn;
pub mod local;
mod merge;
mod mib;
mod news;
mod plan;
mod read;
mod router;
pub mod script;
mod shape;
mod standard;
mod supply;
mod text;
mod vendor;
mod walk;
pub mod web;

#[cfg(test)]
mod hardship;
#[cfg(test)]
mod recordings;
#[cfg(test)]
mod repeated;
#[cfg(test)]
mod responder;
#[cfg(test)]
mod sources;

pub use drive::{Leave, RouterAnswer, read, read_router, via};
pub use json::{Place, device_json};
pub use judge::{Verdict, glance, judge, probe_oids};
pub use merge::{lacks, merge};
pub use read::{Finished, MAX_REQUESTS, Miss, Read, ReadPlan};
pub use router::{MAX_ROUTER_REQUESTS, RouterRead};
