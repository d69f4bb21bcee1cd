//! Proves: the printer simulator, the cluster harness, foreign peers and what scenarios share.
//!
//! Nothing in this crate is part of the product. The simulator ([`printer`], [`fleet`]) speaks its own BER
//! ([`ber`]) so that the node is tested against an independent peer.

pub mod accidents;
pub mod bench;
pub mod ber;
pub mod cluster;
pub mod counts;
pub mod disk;
pub mod fleet;
pub mod lab;
pub mod mib;
pub mod models;
pub mod printer;
pub mod process;
pub mod responder;
pub mod routed;
pub mod sim;
pub mod status;
pub mod website;
pub mod world;
