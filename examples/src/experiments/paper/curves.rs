//! How quantities of a table change during training, from the logs of its runs: Figures 4, 5 and 7 of the paper.

use std::fs;
use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use serde_json::Value;

use super::chart::write_foot;
use super::runs::{Ended, Settings};
use crate::io::plot::{Area, COLORS, DrawResult, INK, legend, line_key, png, style};
use crate::metrics::Mean;
use crate::recipe::{Measure, Table};
use crate::util::numbers::count;

/// The largest number of points of a curve; each is a mean over as many steps.
const POINTS: usize = 60;

/// A number in the lines of a log.
#[derive(Clone, Copy)]
struct Quantity {
    key: &'static str,
    /// The label of its axis.
    name: &'static str,
    scale: f64,
}

const TEST_ERROR: Quantity = Quantity { key: "test error", name: "test error in %", scale: 100.0 };
const PERTURBED_ERROR: Quantity =
    Quantity { key: "perturbed error", name: "training error in % at w + ε̂", scale: 100.0 };
const COSINE: Quantity = Quantity { key: "cosine", name: "cosine of both gradients", scale: 1.0 };
const SHARPNESS: Quantity = Quantity { key: "sharpness", name: "L(w + ε̂) - L(w)", scale: 1.0 };

/// A quantity of the cells whose names begin alike.
struct Panel {
    group: String,
    quantity: Quantity,
    curves: Vec<Curve>,
}

/// The curve of a cell.
struct Curve {
    /// The rest of the cell's name.
    name: String,
    /// That of its place in the group.
    color: RGBColor,
    /// Epochs and values.
    points: Vec<(f64, Mean)>,
}

/// Draws the curves of the finished runs, if the table has any: both orders, where they are compared, and the sharpness, where
/// it is the second measure.
pub(super) fn draw(path: &Path, table: &Table, settings: &Settings, foot: &[String]) -> Result<()> {
    let compares = |cell| settings.recipe(cell).is_ok_and(|recipe| recipe.compare_orders);
    let mut quantities = Vec::new();
    if table.cells.iter().any(compares) {
        quantities.extend([TEST_ERROR, PERTURBED_ERROR, COSINE]);
    }
    if table.beside == Some(Measure::Sharpness) {
        quantities.push(SHARPNESS);
    }
    if quantities.is_empty() {
        return Ok(());
    }
    let mut logs = Vec::new();
    for cell in &table.cells {
        let runs = (0..settings.seeds).filter_map(|seed| settings.run(cell, seed).ok());
        let trained = runs.filter(|run| matches!(run.ended(), Ok(Some(Ended::Trained(_)))));
        let texts: Vec<_> = trained.filter_map(|run| fs::read_to_string(run.folder.join("log.jsonl")).ok()).collect();
        let name = cell.name.strip_prefix(&format!("{}/", table.name)).unwrap_or(&cell.name);
        logs.push((name, texts));
    }
    let panels = panels(&quantities, &logs);
    if panels.is_empty() {
        return Ok(());
    }
    let columns = panels.len().min(3);
    let rows = panels.len().div_ceil(columns);
    let size = [(800, 500), (600, 450), (480, 400)][columns - 1];
    png(path, (size.0 * columns as u32, size.1 * rows as u32 + 140), |area| {
        let (width, height) = area.dim_in_pixel();
        let title = ("sans-serif", 44).into_font().color(&INK).pos(Pos::new(HPos::Center, VPos::Top));
        let at = (width.cast_signed() / 2, 32);
        area.draw(&Text::new(format!("{}: during training", heading(&table.title)), at, title))?;
        let (_, below_title) = area.split_vertically(80);
        let (grid, _) = below_title.split_vertically(height.cast_signed() - 80 - 130);
        for (i, (panel, area)) in panels.iter().zip(grid.split_evenly((rows, columns))).enumerate() {
            panel.draw(&area, i == 0)?;
        }
        write_foot(area, foot)
    })
}

/// A title without the measure of the table at its end.
fn heading(title: &str) -> &str {
    title.rsplit_once(": ").map_or(title, |(heading, _)| heading)
}

/// The panels with at least one curve. Cells belong to one group if the first parts of their names are the same, unless no name
/// has a second part.
fn panels(quantities: &[Quantity], cells: &[(&str, Vec<String>)]) -> Vec<Panel> {
    let mut panels: Vec<Panel> = Vec::new();
    for quantity in quantities {
        let before = panels.len();
        for (cell, logs) in cells {
            let (group, name) = cell.split_once('/').unwrap_or(("", cell));
            let i = panels[before..].iter().position(|panel| panel.group == group).unwrap_or_else(|| {
                panels.push(Panel { group: group.to_owned(), quantity: *quantity, curves: Vec::new() });
                panels.len() - 1 - before
            });
            let panel = &mut panels[before + i];
            let color = COLORS[panel.curves.len() % COLORS.len()];
            panel.curves.push(Curve { name: name.to_owned(), color, points: curve(*quantity, logs) });
        }
    }
    for panel in &mut panels {
        panel.curves.retain(|curve| !curve.points.is_empty());
    }
    panels.retain(|panel| !panel.curves.is_empty());
    panels
}

/// The epochs and the means over the runs, each of which counts with its own mean over the steps of a point.
fn curve(quantity: Quantity, logs: &[String]) -> Vec<(f64, Mean)> {
    let seeds: Vec<Vec<(f64, f64)>> = logs.iter().map(|log| points(quantity, log)).collect();
    let end = seeds.iter().flatten().map(|(epoch, _)| *epoch).fold(1.0, f64::max).ceil();
    let bins = count(end).clamp(1, POINTS);
    let of_bin = |bin: usize| {
        let is_in = |(epoch, _): &&(f64, f64)| count((epoch / end * bins as f64).floor()).min(bins - 1) == bin;
        let means: Vec<(f64, f64)> = seeds
            .iter()
            .filter_map(|seed| {
                let (epochs, values): (Vec<f64>, Vec<f64>) = seed.iter().filter(is_in).copied().unzip();
                (!values.is_empty()).then(|| (Mean::of(&epochs).mean, Mean::of(&values).mean))
            })
            .collect();
        let (epochs, values): (Vec<f64>, Vec<f64>) = means.into_iter().unzip();
        (!values.is_empty()).then(|| (Mean::of(&epochs).mean, Mean::of(&values)))
    };
    (0..bins).filter_map(of_bin).collect()
}

/// The epoch and the value of each line of the last phase that has the quantity.
fn points(quantity: Quantity, log: &str) -> Vec<(f64, f64)> {
    let lines: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let last = lines.iter().filter_map(|line| line["stage"].as_u64()).max();
    let lines = lines.iter().filter(|line| line["stage"].as_u64() == last);
    // A test follows the last step of an epoch, or of the training.
    let per_epoch = lines.clone().filter_map(|line| Some(line["step"].as_f64()? / line["epoch"].as_f64()?));
    let per_epoch = per_epoch.fold(1.0, f64::max);
    lines
        .filter_map(|line| {
            let done = line["step"].as_f64()?;
            let step = if line["epoch"].is_null() { done } else { done - 1.0 };
            Some((step / per_epoch, quantity.scale * line[quantity.key].as_f64()?))
        })
        .collect()
}

impl Panel {
    /// Lines, with the 95 % intervals of the means as bands.
    fn draw(&self, area: &Area<'_>, with_legend: bool) -> DrawResult {
        let points = || self.curves.iter().flat_map(|curve| &curve.points);
        let end = points().map(|(epoch, _)| *epoch).fold(0.0, f64::max).ceil().max(1.0);
        let values = || points().map(|(_, mean)| mean.mean);
        let (low, high) = (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max));
        let room = 0.08 * (high - low).max(1e-3 * high.abs().max(1e-3));
        // The legend is above the curves.
        let above = if with_legend { 0.16 * self.curves.len() as f64 * (high - low) } else { 0.0 };
        let (low, high) = (low - room, high + room + above);
        let mut builder = ChartBuilder::on(area);
        if !self.group.is_empty() {
            builder.caption(&self.group, ("sans-serif", 36).into_font().color(&INK));
        }
        let mut chart =
            builder.margin(32).x_label_area_size(92).y_label_area_size(136).build_cartesian_2d(0.0..end, low..high)?;
        let digits = if high - low > 20.0 {
            0
        } else if high - low > 2.0 {
            1
        } else {
            3
        };
        let mut mesh = chart.configure_mesh();
        style(&mut mesh, 32);
        mesh.disable_x_mesh()
            .x_desc("epoch")
            .y_desc(self.quantity.name)
            .x_labels(6)
            .y_labels(7)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .y_label_formatter(&|y| format!("{y:.digits$}"))
            .draw()?;
        for Curve { name, color, points } in &self.curves {
            let edge = |sign: f64| {
                let at = move |(x, y): &(f64, Mean)| (*x, (y.mean + sign * y.interval.unwrap_or(0.0)).clamp(low, high));
                points.iter().map(at)
            };
            let band: Vec<_> = edge(1.0).chain(edge(-1.0).rev()).collect();
            chart.draw_series([Polygon::new(band, color.mix(0.15))])?;
            let line: Vec<_> = points.iter().map(|(x, y)| (*x, y.mean)).collect();
            let style = color.stroke_width(5);
            // A line through one point cannot be seen.
            if let [point] = line[..] {
                chart.draw_series([Circle::new(point, 9, color.filled())])?;
            }
            chart
                .draw_series(LineSeries::new(line, style))?
                .label(name.as_str())
                .legend(move |at| EmptyElement::at(at) + line_key(style));
        }
        if with_legend { legend(&mut chart, SeriesLabelPosition::UpperRight) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of two phases; the last has four epochs of ten steps.
    fn log(rise: f64) -> String {
        use std::fmt::Write as _;

        let mut log =
            "{\"recipe\":{},\"seed\":0}\n{\"stage\":0,\"step\":0,\"loss\":2.0,\"sharpness\":9.0}\n".to_owned();
        for step in 0..40 {
            if step % 5 == 0 {
                let sharpness = rise * f64::from(step / 10) + if step % 10 == 0 { 0.5 } else { 0.0 };
                writeln!(log, "{{\"stage\":1,\"step\":{step},\"loss\":1.0,\"sharpness\":{sharpness}}}").unwrap();
            }
            if step % 10 == 9 {
                let (epoch, done) = (step / 10 + 1, step + 1);
                writeln!(log, "{{\"stage\":1,\"step\":{done},\"epoch\":{epoch},\"test error\":0.{epoch}}}").unwrap();
            }
        }
        log + "{\"stage\":1,\"step\":4"
    }

    #[test]
    fn points_are_means_over_epochs_and_seeds() {
        let sharpness = curve(SHARPNESS, &[log(1.0), log(3.0)]);
        let means: Vec<_> = sharpness.iter().map(|(epoch, mean)| (*epoch, mean.mean)).collect();
        assert_eq!(means, [(0.25, 0.25), (1.25, 2.25), (2.25, 4.25), (3.25, 6.25)]);
        assert!(sharpness[1].1.interval.is_some());
        let errors = curve(TEST_ERROR, &[log(1.0)]);
        let means: Vec<_> = errors.iter().map(|(epoch, mean)| (*epoch, mean.mean.round())).collect();
        assert_eq!(means, [(0.9, 10.0), (1.9, 20.0), (2.9, 30.0), (3.9, 40.0)]);
        assert!(curve(COSINE, &[log(1.0)]).is_empty() && curve(COSINE, &[]).is_empty());
    }

    #[test]
    fn cells_of_one_group_share_a_panel() {
        let logs = || vec![log(1.0)];
        let names = |quantities: &[Quantity], cells: &[(&str, Vec<String>)]| -> Vec<_> {
            let name = |panel: &Panel| {
                let curves: Vec<_> = panel.curves.iter().map(|curve| curve.name.clone()).collect();
                format!("{}|{}|{}", panel.quantity.key, panel.group, curves.join(","))
            };
            panels(quantities, cells).iter().map(name).collect()
        };
        let cells = [("a/x", logs()), ("a/y", Vec::new()), ("b/x", logs()), ("b/y", logs()), ("c/x", Vec::new())];
        assert_eq!(names(&[SHARPNESS], &cells), ["sharpness|a|x", "sharpness|b|x,y"]);
        let cells = [("kept", logs()), ("dropped", logs())];
        assert_eq!(
            names(&[TEST_ERROR, COSINE, SHARPNESS], &cells),
            ["test error||kept,dropped", "sharpness||kept,dropped"]
        );
    }
}
