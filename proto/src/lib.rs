//! Says: the wire and stored schema of Quire, and the validated types that everything else speaks in.
//!
//! The `.proto` files in `schema/` are what crosses a wire or reaches a disk. The modules beside this
//! file are what the programs think in; [`convert`] is the only door between the two, and it is where
//! a sentinel, an impossible number or a malformed address stops being representable.
//!
//! Architecture Invariant: this crate knows no I/O and no policy.

pub mod address;
pub mod convert;
pub mod id;
pub mod oid;
pub mod reading;
pub mod shared;

/// The stored form of a reading (`schema/reading.proto`).
#[allow(missing_docs, clippy::all)]
pub mod reading_wire {
    include!(concat!(env!("OUT_DIR"), "/quire.reading.v1.rs"));
}

/// Commands, outcomes and rows (`schema/store.proto`).
#[allow(missing_docs, clippy::all)]
pub mod store {
    include!(concat!(env!("OUT_DIR"), "/quire.store.v1.rs"));
}

/// Between nodes (`schema/cluster.proto`).
#[allow(missing_docs, clippy::all)]
pub mod cluster {
    include!(concat!(env!("OUT_DIR"), "/quire.cluster.v1.rs"));
}

/// Between a site and the Web Admin (`schema/upstream.proto`).
#[allow(missing_docs, clippy::all)]
pub mod upstream {
    include!(concat!(env!("OUT_DIR"), "/quire.upstream.v1.rs"));
}

/// The version of everything that crosses a wire between Quire programs.
pub const WIRE_VERSION: u32 = 1;

/// The latest cluster version that this program knows: it rises with every release that adds commands, fields of the log
/// or rules of `apply`. A cluster goes to it when all members know it (`quire_coordinator::upgrade`).
pub const CLUSTER_VERSION: u32 = 3;
