//! What the tests stand on.

pub mod smtp_sink;
