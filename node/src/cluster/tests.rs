//! In process, on 127.0.0.1, with real TLS and RocksDB.
use super::*;
