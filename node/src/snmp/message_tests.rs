//! Guards of the decoder.
