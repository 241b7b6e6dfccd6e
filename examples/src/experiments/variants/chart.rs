//! A line for each variant: its test error after the last epoch, as a point with its 95 % interval.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::list::Variant;
use super::run::Run;
use crate::io::plot::{Area, COLORS, DrawResult, INK, SIZE, png, style};
use crate::metrics::Mean;

/// Draws the chart as a PNG.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(variants: &[Variant], runs: &[Run], title: &str, path: &Path) -> Result<()> {
    let mut lines: Vec<(&str, Mean, f64)> = variants
        .iter()
        .map(|variant| {
            let runs: Vec<_> = runs.iter().filter(|run| run.variant == variant.name).collect();
            let last: Vec<_> = runs.iter().map(|run| 100.0 * run.last()).collect();
            (variant.name, Mean::of(&last), runs.iter().map(|run| run.passes).sum::<f64>() / runs.len() as f64)
        })
        .collect();
    lines.sort_by(|a, b| b.1.mean.total_cmp(&a.1.mean));
    png(path, SIZE, |area| chart(area, &lines, title))
}

fn chart(area: &Area<'_>, lines: &[(&str, Mean, f64)], title: &str) -> DrawResult {
    const SAM: RGBColor = COLORS[0];
    const OTHER: RGBColor = RGBColor(90, 90, 90);
    let ends = |sign: f64| lines.iter().map(move |(_, mean, _)| mean.mean + sign * mean.interval.unwrap_or(0.0));
    let (low, high) = (ends(-1.0).fold(f64::MAX, f64::min).floor(), ends(1.0).fold(0.0, f64::max).ceil());
    let (step, size) = (lines.len() as f64, 28);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 44).into_font().color(&INK))
        .margin(40)
        .margin_right(80)
        .x_label_area_size(100)
        .y_label_area_size(620)
        .build_cartesian_2d(low..high, 0.0..step)?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, 32);
    mesh.disable_y_mesh()
        .disable_y_axis()
        .x_desc("test error after the last epoch, %; in brackets the passes of a step")
        .draw()?;
    let sam = lines.iter().find(|(name, ..)| *name == "SAM").map_or(low, |(_, mean, _)| mean.mean);
    chart.draw_series([PathElement::new([(sam, 0.0), (sam, step)], SAM.mix(0.4).stroke_width(3))])?;
    let text = ("sans-serif", size).into_font().color(&INK).pos(Pos::new(HPos::Right, VPos::Center));
    for (row, (name, mean, passes)) in lines.iter().enumerate() {
        let y = row as f64 + 0.5;
        let color = if *name == "SAM" { SAM } else { OTHER };
        let interval = mean.interval.unwrap_or(0.0);
        chart.draw_series([PathElement::new(
            [(mean.mean - interval, y), (mean.mean + interval, y)],
            color.stroke_width(5),
        )])?;
        chart.draw_series([Circle::new((mean.mean, y), 9, color.filled())])?;
        let (x, y) = chart.backend_coord(&(low, y));
        area.draw_text(&format!("{name} ({passes:.1})"), &text, (x - 24, y))?;
    }
    Ok(())
}
