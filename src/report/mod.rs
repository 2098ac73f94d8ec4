//! The pricing report's inputs and faces. What it computes is [`crate::domain::margin`].

pub mod charts;
pub mod csv;
pub mod example;
pub mod html;
pub mod recorded;

pub mod tables;
pub mod text;
