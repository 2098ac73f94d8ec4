//! What the tests stand on: databases to fill and throw away, a mail server, the official Stripe
//! SDK, and a whole daemon with its surroundings.

#[macro_use]
pub mod postgres;
pub mod sdk;
pub mod smtp_sink;
pub mod sql;
pub mod webhooks;
pub mod world;
