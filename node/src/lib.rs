//! Acts: SNMP, web, scripts, Raft runtime, RocksDB, gRPC, console and command line of a Quire node.

pub mod clock;
pub mod cluster;
pub mod device;
pub mod snmp;
pub mod tls;
