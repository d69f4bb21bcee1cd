//! SNMP: one engine for a whole node.

mod value;

pub use value::{Request, Response, Value, VarBind};
