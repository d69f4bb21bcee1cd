//! Decides: identity, planning, scheduling, replicated state and outbox.
//!
//! Architecture Invariant: this crate does no I/O, reads no clock, draws no random numbers and spawns
//! nothing; its manifest and `.clippy.toml` keep it so. Time is an argument.

pub mod backoff;
pub mod claim;
pub mod explore;
pub mod identity;
pub mod membership;
pub mod outbox;
pub mod planner;
mod record;
pub mod roster;
pub mod rows;
pub mod schedule;
pub mod script;
pub mod settings;
pub mod state;
pub mod tables;
pub mod topology;
