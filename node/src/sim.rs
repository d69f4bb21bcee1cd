//! What the simulation of whole clusters (`tests/src/sim`) runs of a node: the parts that decide without a socket, a
//! disk or a clock of their own; and, for tests of real nodes, what one that does not run left. No part of a node's
//! work; a door for tests.

pub use crate::cluster::sim::{Admission, Answers, Feed, Left, judge, left, raft_config};
pub use crate::upstream::entries;
