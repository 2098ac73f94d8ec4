//! The report for a terminal.

use std::fmt::Write as _;

use super::tables::{Table, Tables, counted, day, notes};
use crate::domain::answer::thousands;
use crate::domain::margin::Report;

/// How many customers a piece of advice names; the JSON has all of them.
const NAMED: usize = 10;

/// The whole report in aligned tables.
pub fn render(report: &Report) -> String {
    let mut out = format!(
        "{}, {} to {} ({}): {}, {} in all\n\n",
        report.feature_name,
        day(report.from),
        day(report.to),
        counted(report.months, "month", "months"),
        counted(report.all.customers, "customer", "customers"),
        thousands(report.all.units),
    );
    for note in notes(report) {
        let _ = writeln!(out, "- {note}");
    }
    for table in Tables::of(report).in_order() {
        let _ = write!(out, "\n{}\n{}\n", table.title.to_uppercase(), table.note);
        out.push_str(&aligned(table));
    }
    out.push_str("\nADVICE\n");
    for advice in &report.advice {
        let _ = writeln!(out, "- {}\n    {}", advice.advice, advice.arithmetic);
        if !advice.customers.is_empty() {
            let named: Vec<_> = advice.customers.iter().take(NAMED).map(String::as_str).collect();
            let more = if advice.customers.len() > NAMED { ", …" } else { "" };
            let _ = writeln!(out, "    {}{more}", named.join(", "));
        }
    }
    out
}

/// The first column to the left, numbers to the right, two spaces between.
fn aligned(table: &Table) -> String {
    if table.rows.is_empty() {
        return String::new();
    }
    let lines = || std::iter::once(&table.header).chain(&table.rows);
    let width =
        |column: usize| lines().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<_> = (0..table.header.len()).map(width).collect();
    let mut out = String::new();
    for (index, line) in lines().enumerate() {
        let mut text = String::from("  ");
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:<width$}"),
                _ => write!(text, "  {cell:>width$}"),
            };
        }
        let _ = writeln!(out, "{}", text.trim_end());
        if index == 0 {
            let rule: usize = widths.iter().sum::<usize>() + 2 * (widths.len() - 1);
            let _ = writeln!(out, "  {}", "─".repeat(rule));
        }
    }
    out
}
