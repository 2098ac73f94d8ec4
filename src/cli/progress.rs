//! What a long command shows while it is at work: on a terminal only, elsewhere nothing is drawn.

use indicatif::{ProgressBar, ProgressStyle};

/// Counts customers as they are done, of whom nobody knows how many there are.
pub(super) fn customers() -> ProgressBar {
    styled(ProgressBar::new_spinner(), "{spinner} {human_pos} customers, {per_sec}")
}

/// Counts the bytes that are read of `total`.
pub(super) fn bytes(total: u64) -> ProgressBar {
    let template =
        "{bar:30} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    styled(ProgressBar::new(total), template)
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
