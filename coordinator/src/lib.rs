//! Decides: identity, planning, scheduling, replicated state and outbox.
//!
//! Architecture Invariant: this crate does no I/O, reads no clock, draws no random numbers and spawns
//! nothing; its manifest and `.clippy.toml` keep it so. Time is an argument.

mod ahead;
pub mod alert;
mod backlog;
pub mod backoff;
pub mod claim;
pub mod cost;
pub mod coverage;
pub mod evidence;
pub mod expiry;
pub mod explore;
pub mod extent;
mod faces;
pub mod found;
mod glimpse;
pub mod history;
mod homes;
pub mod identity;
mod index;
mod jobs;
pub mod layer;
pub mod membership;
pub mod meters;
mod news;
pub mod outbox;
pub mod planner;
pub mod progress;
mod record;
pub mod recover;
mod review;
pub mod roster;
pub mod rotation;
pub mod rows;
pub mod schedule;
pub mod script;
pub mod settings;
pub mod state;
mod supplies;
pub mod tables;
pub mod timing;
mod tokens;
pub mod topology;
pub mod trial;
pub mod typed;
pub mod upgrade;
