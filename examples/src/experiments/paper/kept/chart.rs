//! The picture of Figure 3: a spectrum for each epoch, and below it sharpness and λ₁ against the generalization gap.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::hessians::{AtWeights, Place};
use crate::experiments::hessian::densities;
use crate::experiments::paper::chart::write_foot;
use crate::io::plot::{Area, COLORS, DrawResult, INK, legend, png, style};

/// Draws the places as a PNG.
pub(super) fn draw(path: &Path, places: &[Place], foot: &[String]) -> Result<()> {
    let columns = places.iter().map(|place| place.index + 1).max().unwrap_or(1);
    png(path, (480 * columns.max(2) as u32, 900), |area| {
        let (body, _) = area.split_vertically(area.dim_in_pixel().1.cast_signed() - 100);
        let (top, bottom) = body.split_vertically(body.dim_in_pixel().1.cast_signed() / 2);
        for (index, area) in top.split_evenly((1, columns)).iter().enumerate() {
            let here = || places.iter().filter(move |place| place.index == index);
            let curves: Vec<_> =
                here().filter_map(|place| Some((&*place.cell, &place.found.first()?.spectrum))).collect();
            let epoch = here().next().map_or(0.0, |place| place.epoch);
            densities(area, &format!("epoch {epoch}"), &curves, 28)?;
        }
        let charts = bottom.split_evenly((1, 2));
        against_gap(&charts[0], places, "L(w + ε̂) - L(w)", |found| found.sharpness)?;
        against_gap(&charts[1], places, "λ₁", |found| found.spectrum.values.first().copied().unwrap_or_default())?;
        write_foot(area, foot)
    })
}

/// One point for each network: later epochs are larger.
fn against_gap(area: &Area<'_>, places: &[Place], name: &str, of: fn(&AtWeights) -> f64) -> DrawResult {
    let point = |found: &AtWeights| (of(found), found.gap());
    let all: Vec<(f64, f64)> = places.iter().flat_map(|place| place.found.iter().map(point)).collect();
    let right = all.iter().map(|point| point.0).fold(0.0, f64::max);
    let gaps = || all.iter().map(|point| point.1);
    let (low, high) = (gaps().fold(f64::INFINITY, f64::min), gaps().fold(f64::NEG_INFINITY, f64::max));
    let room = 0.1 * (high - low).max(1.0);
    let mut chart = ChartBuilder::on(area)
        .margin(28)
        .x_label_area_size(84)
        .y_label_area_size(120)
        .build_cartesian_2d(0.0..1.1 * right.max(1e-9), low - room..high + room)?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, 28);
    mesh.x_desc(name).y_desc("generalization gap in %").draw()?;
    let mut cells: Vec<&str> = places.iter().map(|place| &*place.cell).collect();
    cells.dedup();
    for (cell, color) in cells.iter().zip(COLORS.iter().cycle()) {
        let size = |place: &Place| 8 + 5 * i32::try_from(place.index).unwrap_or(0);
        let points = places.iter().filter(|place| place.cell == *cell).flat_map(|place| {
            let style = color.mix(0.7).filled();
            place.found.iter().map(move |found| Circle::new(point(found), size(place), style))
        });
        chart
            .draw_series(points)?
            .label((*cell).to_owned())
            .legend(move |at| EmptyElement::at(at) + Circle::new((36, 0), 10, color.filled()));
    }
    let font = ("sans-serif", 26).into_font().color(&INK);
    area.draw(&Text::new("larger points are later epochs", (150, 8), font))?;
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}
