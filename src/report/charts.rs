//! The page's charts, as SVG that takes its colours from the page.
//!
//! Coordinates are whole cents, units and percents, like everything they show.

use plotters::chart::ChartContext;
use plotters::coord::types::RangedCoordi64;
use plotters::prelude::*;

use crate::domain::answer::thousands;
use crate::domain::cost::Picodollars;
use crate::domain::margin::{PlanReport, Report, margin_basis_points};

/// What a chart could not be drawn for.
pub type DrawError = DrawingAreaErrorKind<std::io::Error>;

type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordi64, RangedCoordi64>>;

/// Stand-ins for the page's colours: each is replaced by the custom property of its place.
const COLORS: [(RGBColor, &str, &str); 8] = [
    (INK, "#010101", "var(--ink)"),
    (FAINT, "#020202", "var(--faint)"),
    (GRID, "#030303", "var(--grid)"),
    (ALARM, "#040404", "var(--alarm)"),
    (LINES[0], "#050505", "var(--line-1)"),
    (LINES[1], "#060606", "var(--line-2)"),
    (LINES[2], "#070707", "var(--line-3)"),
    (LINES[3], "#080808", "var(--line-4)"),
];
const INK: RGBColor = RGBColor(1, 1, 1);
const FAINT: RGBColor = RGBColor(2, 2, 2);
const GRID: RGBColor = RGBColor(3, 3, 3);
const ALARM: RGBColor = RGBColor(4, 4, 4);
const LINES: [RGBColor; 4] =
    [RGBColor(5, 5, 5), RGBColor(6, 6, 6), RGBColor(7, 7, 7), RGBColor(8, 8, 8)];

const FONT: &str = "inherit";
/// The library writes four fifths of it.
const FONT_SIZE: u32 = 16;
const SMALL: (u32, u32) = (560, 300);
const WIDE: (u32, u32) = (1160, 340);

/// The colour of a plan, by its place among the plans.
pub fn color(plan: usize) -> &'static str {
    COLORS[4 + plan % LINES.len()].2
}

/// Draws into a text and gives it the page's colours and a name for those who cannot see it.
fn svg(
    size: (u32, u32),
    name: &str,
    draw: impl FnOnce(&DrawingArea<SVGBackend<'_>, plotters::coord::Shift>) -> Result<(), DrawError>,
) -> Result<String, DrawError> {
    let mut text = String::new();
    {
        let area = SVGBackend::with_string(&mut text, size).into_drawing_area();
        draw(&area)?;
        area.present()?;
    }
    for (_, stand_in, property) in COLORS {
        text = text.replace(&format!("\"{stand_in}\""), &format!("\"{property}\""));
    }
    let name = name.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    Ok(text.replacen("<svg ", &format!("<svg role=\"img\" aria-label=\"{name}\" "), 1))
}

fn axes<'a, 'b>(
    area: &'a DrawingArea<SVGBackend<'b>, plotters::coord::Shift>,
    x: std::ops::Range<i64>,
    y: std::ops::Range<i64>,
) -> Result<Chart<'a, 'b>, DrawError> {
    ChartBuilder::on(area)
        .margin(8)
        .margin_top(22)
        .margin_right(28)
        .x_label_area_size(50)
        .y_label_area_size(66)
        .build_cartesian_2d(x, y)
}

fn mesh(
    chart: &mut Chart<'_, '_>,
    (x_name, y_name): (&str, &str),
    x_label: &dyn Fn(&i64) -> String,
    y_label: &dyn Fn(&i64) -> String,
) -> Result<(), DrawError> {
    let labels = (FONT, FONT_SIZE).into_font().color(&FAINT);
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(GRID)
        .axis_style(GRID)
        .x_labels(8)
        .y_labels(6)
        .label_style(labels.clone())
        .axis_desc_style(labels)
        .x_desc(x_name)
        .y_desc(y_name)
        .x_label_formatter(x_label)
        .y_label_formatter(y_label)
        .draw()
}

/// A dashed line with words at its end.
fn dashed(
    chart: &mut Chart<'_, '_>,
    ends: [(i64, i64); 2],
    color: RGBColor,
) -> Result<(), DrawError> {
    let style = color.stroke_width(2);
    chart.draw_series(DashedLineSeries::new(ends, 6, 4, style))?;
    Ok(())
}

fn words(
    chart: &mut Chart<'_, '_>,
    text: String,
    at: (i64, i64),
    color: RGBColor,
    pos: plotters::style::text_anchor::Pos,
    shift: (i32, i32),
) -> Result<(), DrawError> {
    let style = TextStyle::from((FONT, FONT_SIZE).into_font()).color(&color).pos(pos);
    let text = EmptyElement::at(at) + Text::new(text, shift, style);
    chart.draw_series(std::iter::once(text))?;
    Ok(())
}

fn pos(
    h: plotters::style::text_anchor::HPos,
    v: plotters::style::text_anchor::VPos,
) -> plotters::style::text_anchor::Pos {
    plotters::style::text_anchor::Pos::new(h, v)
}

use plotters::style::text_anchor::{HPos, VPos};

/// How many of a plan's customers used how much, with its cap.
///
/// # Errors
/// What the drawing library could not do.
pub fn distribution(report: &Report, plan: &PlanReport, index: usize) -> Result<String, DrawError> {
    let bars = &plan.distribution;
    let step = bars.units_per_bar;
    let right = step * bars.customers.len() as i64;
    let highest = bars.customers.iter().max().map_or(1, |most| *most as i64).max(1);
    let top = highest + (highest / 6).max(1);
    let name = format!("{}: customers by {}", plan.plan_name, report.feature_name);
    svg(SMALL, &name, |area| {
        let mut chart = axes(area, 0..right, 0..top)?;
        let x_name = format!("{} per customer", report.feature_name);
        mesh(&mut chart, (&x_name, "customers"), &|x| thousands(*x), &|y| thousands(*y))?;
        let bar = |(at, customers): (usize, &usize)| {
            let left = step * at as i64;
            let is_over = plan.granted.is_some_and(|granted| left >= granted);
            let color = match is_over {
                false => LINES[index % LINES.len()].to_rgba(),
                // Nobody is turned away at a soft limit.
                true if plan.is_hard => ALARM.to_rgba(),
                true => LINES[index % LINES.len()].mix(0.45),
            };
            let corners = [(left, *customers as i64), (left + step, 0)];
            let mut bar = Rectangle::new(corners, color.filled());
            bar.set_margin(0, 0, 1, 1);
            bar
        };
        let shown = bars.customers.iter().enumerate().filter(|(_, customers)| **customers > 0);
        chart.draw_series(shown.map(bar))?;
        if let Some(granted) = plan.granted.filter(|granted| *granted <= right) {
            dashed(&mut chart, [(granted, 0), (granted, top)], INK)?;
            let kind = if plan.is_hard { "cap" } else { "soft limit" };
            let text = format!("{kind} {}", thousands(granted));
            let (at, side) =
                if granted * 3 > right * 2 { (HPos::Right, -6) } else { (HPos::Left, 6) };
            words(&mut chart, text, (granted, top), INK, pos(at, VPos::Top), (side, 2))?;
        }
        if bars.beyond > 0 {
            let text = format!("{} more beyond →", thousands(bars.beyond as i64));
            let at = pos(HPos::Right, VPos::Bottom);
            words(&mut chart, text, (right, 0), ALARM, at, (0, -8))?;
        }
        Ok(())
    })
}

fn cents(amount: Picodollars) -> i64 {
    i64::try_from(amount.0 / Picodollars::CENT.0).unwrap_or(i64::MAX)
}

/// Whole dollars where the axis has room for no more.
fn dollars(cents: &i64) -> String {
    let whole = thousands(cents / 100);
    if cents % 100 == 0 { format!("${whole}") } else { format!("${whole}.{:02}", cents % 100) }
}

/// What a plan's customers cost, lightest to heaviest, against its price.
///
/// # Errors
/// What the drawing library could not do.
pub fn cost_against_price(plan: &PlanReport, index: usize) -> Result<String, DrawError> {
    let costs: Vec<_> = plan.loaded_cost_percentiles_usd.iter().map(|cost| cents(*cost)).collect();
    let price = cents(plan.price_usd);
    let p99 = costs.get(98).copied().unwrap_or(0);
    let top = (price.max(p99) * 23 / 20).max(100);
    let color = LINES[index % LINES.len()];
    let points = || (1..).zip(costs.iter().map(|cost| (*cost).min(top)));
    let name = format!("{}: loaded cost by customer against the price", plan.plan_name);
    svg(SMALL, &name, |area| {
        let mut chart = axes(area, 1..100, 0..top)?;
        let names = ("customers, lightest to heaviest", "loaded cost");
        mesh(&mut chart, names, &|x| format!("p{x}"), &dollars)?;
        chart.draw_series(AreaSeries::new(points(), 0, color.mix(0.18)))?;
        chart.draw_series(LineSeries::new(points(), color.stroke_width(2)))?;
        let loss = || points().filter(|(_, cost)| *cost > price);
        chart.draw_series(LineSeries::new(loss(), ALARM.stroke_width(3)))?;
        if price > 0 {
            dashed(&mut chart, [(1, price), (100, price)], INK)?;
            let text = format!("price {}", plan.price_usd);
            words(&mut chart, text, (1, price), INK, pos(HPos::Left, VPos::Bottom), (6, -4))?;
        }
        Ok(())
    })
}

/// The lowest margin drawn, in percent.
const LOWEST_MARGIN: i64 = -100;

/// The gross margin of each plan's customers, lightest to heaviest.
///
/// # Errors
/// What the drawing library could not do.
pub fn margin_by_percentile(report: &Report) -> Result<String, DrawError> {
    let lines: Vec<_> =
        report.plans.iter().enumerate().map(|plan| (plan.0, margins(plan.1))).collect();
    let all = || lines.iter().flat_map(|(_, line)| line);
    let lowest = all().map(|(_, margin)| *margin).min().unwrap_or(0);
    // Room below zero only if somebody is there.
    let bottom = if lowest < 0 { (lowest - 9) / 10 * 10 } else { 0 };
    svg(WIDE, "Gross margin by percentile of customers", |area| {
        let mut chart = axes(area, 1..100, bottom..100)?;
        let names = ("customers, lightest to heaviest", "gross margin");
        let floor = |y: &i64| if *y == LOWEST_MARGIN { "≤ " } else { "" };
        mesh(&mut chart, names, &|x| format!("p{x}"), &|y| format!("{}{y} %", floor(y)))?;
        if bottom < 0 {
            dashed(&mut chart, [(1, 0), (100, 0)], ALARM)?;
        }
        let target = i64::from(report.target_margin_percent);
        dashed(&mut chart, [(1, target), (100, target)], INK)?;
        let text = format!("target {target} %");
        words(&mut chart, text, (1, target), INK, pos(HPos::Left, VPos::Top), (6, 4))?;
        for (index, line) in &lines {
            let color = LINES[index % LINES.len()];
            chart.draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(3)))?;
        }
        Ok(())
    })
}

/// Percentile and whole percents of margin; none for a plan without customers or price.
fn margins(plan: &PlanReport) -> Vec<(i64, i64)> {
    let margin = |cost: &Picodollars| margin_basis_points(plan.price_usd, *cost);
    let costs = plan.loaded_cost_percentiles_usd.iter().filter_map(margin);
    (1..).zip(costs.map(|points| (points / 100).max(LOWEST_MARGIN))).collect()
}
