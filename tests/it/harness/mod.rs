//! What the tests share: databases to fill and throw away, and the official Stripe SDK.

#[macro_use]
pub mod postgres;
pub mod sdk;
