//! One test binary: tests that read as stories, over a harness of real servers.

mod harness;
mod mail;
