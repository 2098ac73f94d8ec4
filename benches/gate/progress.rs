//! What is going on, on standard error: one changing line on a terminal, plain lines elsewhere.

use std::io::{IsTerminal, Write};
use std::time::Instant;

pub struct Progress {
    began: Instant,
    terminal: bool,
}

impl Progress {
    pub fn begin() -> Self {
        Self { began: Instant::now(), terminal: std::io::stderr().is_terminal() }
    }

    pub fn step(&self, what: &str) {
        let mut out = std::io::stderr();
        let seconds = self.seconds();
        // Nothing is lost when it cannot be shown.
        let _ = if self.terminal {
            write!(out, "\r\x1b[K{seconds:>4.0} s  {what}").and_then(|()| out.flush())
        } else {
            writeln!(out, "{seconds:>4.0} s  {what}")
        };
    }

    /// Clears the line for what comes.
    pub fn end(&self) {
        if self.terminal {
            eprint!("\r\x1b[K");
        }
    }

    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}
