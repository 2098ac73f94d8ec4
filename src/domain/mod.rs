//! The rules, pure: no I/O, no async, no clock. Everything here is a function of its arguments.

pub mod ids;
pub mod money;
pub mod run;
pub mod plan;
pub mod provision;
pub mod period;
pub mod usage;
pub mod recount;
pub mod proof;
pub mod credit;
pub mod quota;
pub mod cost;
pub mod margin;
pub mod decision;
pub mod subscription;
pub mod customer;
pub mod tier;
pub mod upgrade;
pub mod notice;
pub mod link;
pub mod returning;
pub mod answer;
