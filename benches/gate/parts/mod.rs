//! What is measured: one file per part.

pub mod flat;
pub mod gate;
pub mod overload;
pub mod webhooks;
