//! The picture of landscapes: a column for each network.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::measure::{Landscapes, Measured};
use crate::experiments::hessian::densities;
use crate::io::plot::{Area, COLORS, DrawResult, INK, legend, level_lines, line_key, png, style};

/// Draws surfaces, contours, the loss along the gradient and the spectrum as a PNG.
///
/// # Errors
/// If the file cannot be written.
pub fn draw(found: &Landscapes, title: &str, path: &Path) -> Result<()> {
    png(path, (1200, 1500), |area| {
        area.draw_text(
            title,
            &("sans-serif", 40).into_font().color(&INK).pos(Pos::new(HPos::Center, VPos::Top)),
            (1200, 36),
        )?;
        let body = area.margin(110, 20, 20, 20);
        let (top, rest) = body.split_vertically(1000);
        let (middle, bottom) = rest.split_vertically(1000);
        let heights = Heights::of(found);
        let columns = found.networks.len().max(1);
        for (area, network) in top.split_evenly((1, columns)).iter().zip(&found.networks) {
            surface(area, network, &heights)?;
        }
        for (area, network) in middle.split_evenly((1, columns)).iter().zip(&found.networks) {
            contours(area, found, network, &heights)?;
        }
        let charts = bottom.split_evenly((1, 2));
        ascents(&charts[0], found)?;
        let spectra: Vec<_> = found.networks.iter().map(|network| (&*network.name, &network.spectrum)).collect();
        densities(&charts[1], "", &spectra, 28)
    })
}

/// Losses as heights from 0 to 1, logarithmically, the same for all networks.
struct Heights {
    low: f64,
    high: f64,
}

impl Heights {
    fn of(found: &Landscapes) -> Self {
        let all = || found.networks.iter().flat_map(|network| network.plane.iter().flatten().flatten().copied());
        let low = all().fold(f64::INFINITY, f64::min).max(1e-6);
        let high = all().fold(0.0, f64::max).max(2.0 * low);
        Self { low: low.ln(), high: high.ln() }
    }

    fn at(&self, loss: Option<f64>) -> f64 {
        loss.map_or(1.0, |loss| ((loss.max(1e-6).ln() - self.low) / (self.high - self.low)).clamp(0.0, 1.0))
    }
}

/// From dark blue over green to yellow.
fn shade(height: f64, light: f64) -> RGBColor {
    const STOPS: [[f64; 3]; 5] =
        [[68.0, 1.0, 84.0], [59.0, 82.0, 139.0], [33.0, 145.0, 140.0], [94.0, 201.0, 98.0], [253.0, 231.0, 37.0]];
    let place = height.clamp(0.0, 1.0) * 4.0;
    let index = [1.0, 2.0, 3.0].iter().filter(|stop| place >= **stop).count();
    let share = place - index as f64;
    let [r, g, b] = std::array::from_fn(|i| {
        let color = STOPS[index][i] + (STOPS[index + 1][i] - STOPS[index][i]) * share;
        u8::try_from((color * light) as i32).unwrap_or(u8::MAX)
    });
    RGBColor(r, g, b)
}

/// Seen from the side, the far squares first.
fn surface(area: &Area<'_>, network: &Measured, heights: &Heights) -> DrawResult {
    let (turn, tilt) = (0.7f64, 0.55f64);
    let (width, height) = area.dim_in_pixel();
    let (width, height) = (f64::from(width), f64::from(height));
    let size = width.min(height) * 0.62;
    let last = (network.plane.len().max(2) - 1) as f64;
    let at = |i: usize, j: usize| heights.at(network.plane[j][i]);
    let place = |i: usize, j: usize| {
        let (a, b, z) = (i as f64 / last - 0.5, j as f64 / last - 0.5, at(i, j) - 0.35);
        let (u, v) = (a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos());
        let (x, y) = (width / 2.0 + u * size, height / 2.0 + (v * tilt.sin() - z * 0.7 * tilt.cos()) * size);
        ((x as i32, y as i32), v)
    };
    let mut squares = Vec::new();
    for j in 0..network.plane.len() - 1 {
        for i in 0..network.plane.len() - 1 {
            let corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)];
            let depth: f64 = corners.iter().map(|(i, j)| place(*i, *j).1).sum();
            let mean = corners.iter().map(|(i, j)| at(*i, *j)).sum::<f64>() / 4.0;
            let slope = at(i + 1, j) + at(i + 1, j + 1) - at(i, j) - at(i, j + 1);
            squares.push((
                depth,
                corners.map(|(i, j)| place(i, j).0),
                shade(mean, (1.0 - 1.5 * slope).clamp(0.75, 1.15)),
            ));
        }
    }
    squares.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (_, corners, color) in squares {
        area.draw(&Polygon::new(corners, color.filled()))?;
        let mut outline = corners.to_vec();
        outline.push(corners[0]);
        area.draw(&PathElement::new(outline, color.stroke_width(1)))?;
    }
    let font = ("sans-serif", 36).into_font().color(&INK).pos(Pos::new(HPos::Center, VPos::Top));
    area.draw_text(&network.name, &font, ((width / 2.0) as i32, 8))?;
    Ok(())
}

/// From above, with a line every tenth of the height.
fn contours(area: &Area<'_>, found: &Landscapes, network: &Measured, heights: &Heights) -> DrawResult {
    let (low, high) = (found.x.first().copied().unwrap_or(-1.0), found.x.last().copied().unwrap_or(1.0));
    let mut chart = ChartBuilder::on(area)
        .margin(24)
        .x_label_area_size(56)
        .y_label_area_size(84)
        .build_cartesian_2d(low..high, low..high)?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, 28);
    mesh.disable_mesh().x_labels(5).y_labels(5).draw()?;
    let at = |i: usize, j: usize| heights.at(network.plane[j][i]);
    let cells: Vec<(usize, usize)> =
        (0..found.x.len() - 1).flat_map(|j| (0..found.x.len() - 1).map(move |i| (i, j))).collect();
    chart.draw_series(cells.iter().map(|&(i, j)| {
        let mean = (at(i, j) + at(i + 1, j) + at(i, j + 1) + at(i + 1, j + 1)) / 4.0;
        Rectangle::new([(found.x[i], found.x[j]), (found.x[i + 1], found.x[j + 1])], shade(mean, 1.0).filled())
    }))?;
    for level in (0..10).map(|level| 0.05 + 0.1 * f64::from(level)) {
        for line in level_lines(found.x.len() - 1, |i, j| (found.x[i], found.x[j]), at, level) {
            chart.draw_series([PathElement::new(line, WHITE.mix(0.7).stroke_width(2))])?;
        }
    }
    Ok(())
}

/// The loss along the gradient, where it is finite.
fn ascents(area: &Area<'_>, found: &Landscapes) -> DrawResult {
    let points = |network: &Measured| network.ascent.iter().filter_map(|(t, loss)| Some((*t, (*loss)?))).collect();
    let all: Vec<Vec<(f64, f64)>> = found.networks.iter().map(points).collect();
    let ends = |pick: fn(&(f64, f64)) -> f64| {
        let values = || all.iter().flatten().map(pick);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    };
    let ((left, right), (low, high)) = (ends(|point| point.0), ends(|point| point.1));
    if left >= right {
        return Ok(());
    }
    let mut chart = ChartBuilder::on(area)
        .margin(24)
        .x_label_area_size(90)
        .y_label_area_size(130)
        .build_cartesian_2d(left..right, low.min(0.0)..high * 1.05 + 1e-9)?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, 28);
    mesh.x_desc("along the gradient, in units of ρ").y_desc("training loss").draw()?;
    for ((network, line), color) in found.networks.iter().zip(all).zip(COLORS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(line, color.stroke_width(5)))?
            .label(network.name.clone())
            .legend(move |at| EmptyElement::at(at) + line_key(color.stroke_width(6)));
    }
    legend(&mut chart, SeriesLabelPosition::UpperMiddle)
}
