//! What the tests stand on: databases to fill and throw away, a mail server, the official Stripe
//! SDK, a real browser, a whole daemon with its surroundings, and the built program as a process of
//! its own.

pub mod browser;
pub mod judge;
pub mod load;
#[macro_use]
pub mod postgres;
pub mod process;
pub mod schemathesis;
pub mod sdk;
pub mod shop;
pub mod smtp_sink;
pub mod sql;
pub mod stripe;
pub mod webhooks;
pub mod world;
