//! The rules, pure: no I/O, no async, no clock. Everything here is a function of its arguments.

pub mod ids;
pub mod money;
pub mod period;
pub mod plan;
pub mod subscription;
pub mod usage;
pub mod decision;
pub mod notice;
