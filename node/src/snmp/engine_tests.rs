//! The core under simulated time.
