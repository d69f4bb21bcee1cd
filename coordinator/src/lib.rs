//! Decides: identity, planning, scheduling, replicated state and outbox.
//!
//! Architecture Invariant: this crate does no I/O, reads no clock, draws no random numbers and spawns
//! nothing; its manifest and `.clippy.toml` keep it so. Time is an argument.

pub mod identity;
mod record;
pub mod rows;
pub mod state;
pub mod tables;
