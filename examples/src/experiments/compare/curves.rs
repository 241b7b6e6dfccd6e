//! The learning curves of a comparison as a chart.

use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::report::{curve, seeds};
use super::run::{Epoch, TrainMode};
use crate::io::plot::{Area, COLORS, DrawResult, INK, SIZE, legend, png, style};
use crate::metrics::Mean;

/// Draws the learning curves as a PNG: test errors as lines with their 95 % intervals as bands, training errors dashed,
/// and marked in the legend if their labels are noisy.
///
/// # Errors
/// If the file cannot be written; nothing is left behind then.
pub fn draw(log: &[Epoch], modes: &[TrainMode], title: &str, is_noisy: bool, path: &Path) -> Result<()> {
    png(path, SIZE, |area| chart(area, log, modes, title, is_noisy))
}

fn chart(area: &Area<'_>, log: &[Epoch], modes: &[TrainMode], title: &str, is_noisy: bool) -> DrawResult {
    let color = |mode| match mode {
        TrainMode::Sam => COLORS[0],
        TrainMode::Sgd => COLORS[1],
    };
    let epochs = log.iter().map(|epoch| epoch.epoch).max().unwrap_or(1);
    let highest = log.iter().flat_map(|epoch| [epoch.test_error, epoch.train_error]).fold(0.0, f64::max);
    // Room below 0, so that a line there does not lie on the axis.
    let top = ((100.0 * highest / 10.0).ceil() * 10.0).max(10.0);

    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 52).into_font().color(&INK))
        .margin(48)
        .margin_right(80)
        .x_label_area_size(112)
        .y_label_area_size(144)
        .build_cartesian_2d(0.98..(epochs.max(2) as f64), (-0.03 * top)..top)?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, 36);
    mesh.disable_x_mesh()
        .x_desc("epoch; bands are 95 % intervals of the mean over the seeds")
        .y_desc("error, %")
        .x_labels(epochs.clamp(2, 12))
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .draw()?;
    let at_epoch = |i: usize| (i + 1) as f64;
    let dash = |from: i32, to: i32, style: ShapeStyle| PathElement::new([(from, 0), (to, 0)], style);
    for &mode in modes {
        let seeds = seeds(log, mode);
        let test = curve(&seeds, |epoch| 100.0 * epoch.test_error);
        let train = curve(&seeds, |epoch| 100.0 * epoch.train_error);
        let edge = |sign: f64| {
            let edge = test.iter().enumerate();
            edge.map(move |(i, y)| (at_epoch(i), (y.mean + sign * y.interval.unwrap_or(0.0)).max(0.0)))
        };
        let band: Vec<_> = edge(1.0).chain(edge(-1.0).collect::<Vec<_>>().into_iter().rev()).collect();
        chart.draw_series([Polygon::new(band, color(mode).mix(0.18))])?;
        let line = |curve: &[Mean]| curve.iter().enumerate().map(|(i, y)| (at_epoch(i), y.mean)).collect::<Vec<_>>();
        let strong = color(mode).stroke_width(6);
        chart
            .draw_series(LineSeries::new(line(&test), strong))?
            .label(format!("{}, test", mode.name()))
            .legend(move |at| EmptyElement::at(at) + dash(0, 56, strong));
        let dashed = color(mode).mix(0.8).stroke_width(4);
        chart
            .draw_series(DashedLineSeries::new(line(&train), 12, 10, dashed))?
            .label(format!("{}, training{}", mode.name(), if is_noisy { " (noisy labels)" } else { "" }))
            .legend(move |at| EmptyElement::at(at) + dash(0, 12, dashed) + dash(22, 34, dashed) + dash(44, 56, dashed));
        // A line through one point cannot be seen.
        if epochs == 1 {
            chart.draw_series(line(&test).into_iter().map(|at| Circle::new(at, 12, color(mode).filled())))?;
            chart.draw_series(line(&train).into_iter().map(|at| Circle::new(at, 12, dashed)))?;
        }
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::log;
    use super::*;

    #[test]
    fn files_are_whole_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let png = folder.path().join("curves.png");
        draw(&log(), &[TrainMode::Sgd, TrainMode::Sam], "a test", true, &png).unwrap();
        assert_eq!(image::image_dimensions(&png).unwrap(), (1200, 750));
        let nowhere = folder.path().join("missing/curves.png");
        let error = draw(&log(), &[TrainMode::Sgd], "a test", true, &nowhere).unwrap_err();
        assert!(format!("{error:#}").contains("missing/curves.png"));
    }

    /// Lines at 0 % and a single epoch can be seen: the chart has their colors.
    #[test]
    fn lines_at_0_and_single_epochs_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.png");
        let pixels = |log: &[Epoch]| {
            draw(log, &[TrainMode::Sam], "a test", false, &path).unwrap();
            let picture = image::open(&path).unwrap().to_rgb8();
            let RGBColor(r, g, b) = COLORS[0];
            // Without the legend, in the upper right.
            let is_ours = |(x, y, pixel): &(u32, u32, &image::Rgb<u8>)| (*x < 700 || *y > 400) && pixel.0 == [r, g, b];
            picture.enumerate_pixels().filter(is_ours).count()
        };
        let flat: Vec<_> =
            log().into_iter().map(|epoch| Epoch { test_error: 0.0, train_error: 0.0, ..epoch }).collect();
        assert!(pixels(&flat) > 500, "{}", pixels(&flat));
        let one: Vec<_> = log().into_iter().filter(|epoch| epoch.epoch == 1).collect();
        assert!(pixels(&one) > 50, "{}", pixels(&one));
    }
}
