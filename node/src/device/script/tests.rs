//! What profiles do, on recordings made up here.
