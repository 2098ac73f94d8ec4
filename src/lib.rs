//! Tollgate: usage-gated tiers between an AI product and its Stripe account.
//!
//! The modules in reading order; each uses only those above it (`tests/it/tidy.rs` holds that).

pub mod clock;
pub mod entropy;
pub mod domain;
pub mod stripe;
pub mod mail;
pub mod config;
pub mod sim;
