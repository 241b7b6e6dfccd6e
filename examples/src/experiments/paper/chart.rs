//! The chart of a table: curves over the radius, if its cells differ in that last, otherwise a line for each cell.

use std::cmp::Ordering;
use std::path::Path;

use anyhow::Result;
use plotters::prelude::*;

use super::numbers::{Numbers, Row};
use crate::io::plot::{Area, COLORS, DrawResult, INK, legend, line_key, png, style};
use crate::recipe::{Measure, Table};
use crate::util::numbers::count;

/// Draws the cells that have a number, the paper's or ours.
pub(super) fn draw(path: &Path, table: &Table, rows: &[Row], foot: &[String]) -> Result<()> {
    let shown: Vec<&Row> =
        rows.iter().filter(|row| row.numbers.mean.is_some() || row.numbers.paper.is_some()).collect();
    if shown.is_empty() {
        return Ok(());
    }
    let (measure, range) = (table.measure.name(), range(&shown, table.measure));
    let curves = Curves::of(&shown);
    let height = if curves.is_some() { 800 } else { 190 + 30 * shown.len() as u32 };
    png(path, (1200, height), |area| {
        write_foot(area, foot)?;
        match &curves {
            Some(curves) => curves.draw(area, range, &table.title, measure),
            None => dots(area, &shown, range, &table.title, measure),
        }
    })
}

/// Lines of text at the bottom of a picture.
pub(super) fn write_foot(area: &Area<'_>, foot: &[String]) -> DrawResult {
    let mut line = area.dim_in_pixel().1.cast_signed() - 52;
    for text in foot.iter().rev().filter(|text| !text.is_empty()) {
        let font = ("sans-serif", 30).into_font().color(&INK);
        area.draw(&Text::new(text.clone(), (40, line), font))?;
        line -= 40;
    }
    Ok(())
}

/// From the lowest number to the highest, intervals and some room included.
fn range(rows: &[&Row], measure: Measure) -> (f64, f64) {
    let values = rows.iter().flat_map(|row| {
        let reach = |mean: f64, interval: Option<f64>| {
            let interval = interval.unwrap_or(0.0);
            [mean - interval, mean + interval]
        };
        let Numbers { paper, mean, interval, .. } = &row.numbers;
        let paper = paper.map(|paper| reach(paper.mean, paper.interval));
        paper.into_iter().chain(mean.map(|mean| reach(mean, *interval))).flatten()
    });
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(x), high.max(x)));
    let room = 0.05 * (high - low).max(1.0);
    // Shares of images are from 0 to 100 %, however wide an interval is.
    if measure == Measure::Sharpness {
        (low - room, high + room)
    } else {
        ((low - room).max(-2.0), (high + room).min(102.0))
    }
}

/// What a cell's name says before the radius, and its numbers by the place of the radius.
struct Curves<'a> {
    radii: Vec<&'a str>,
    curves: Vec<(&'a str, Vec<(usize, &'a Numbers)>)>,
}

impl<'a> Curves<'a> {
    /// None if there is a cell whose name does not end with a radius.
    fn of(rows: &[&'a Row]) -> Option<Self> {
        let value = |radius: &str| radius.parse::<f64>().ok();
        let radius = |row: &&'a Row| row.cell.rsplit('/').next()?.strip_prefix("rho-").filter(|it| value(it).is_some());
        let mut radii = rows.iter().map(radius).collect::<Option<Vec<_>>>()?;
        radii.sort_by(|a, b| value(a).partial_cmp(&value(b)).unwrap_or(Ordering::Equal));
        radii.dedup();
        let mut curves: Vec<(&str, Vec<_>)> = Vec::new();
        for row in rows {
            let (name, radius) = row.cell.rsplit_once('/').unwrap_or(("", &row.cell));
            let radius = radius.strip_prefix("rho-")?;
            let place = radii.iter().position(|known| *known == radius)?;
            let curve = curves.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
                curves.push((name, Vec::new()));
                curves.len() - 1
            });
            curves[curve].1.push((place, &row.numbers));
        }
        for (_, numbers) in &mut curves {
            numbers.sort_by_key(|(place, _)| *place);
        }
        Some(Self { radii, curves })
    }

    /// Our numbers with their intervals; the paper's dashed.
    fn draw(&self, area: &Area<'_>, (low, high): (f64, f64), title: &str, measure: &str) -> DrawResult {
        let last = self.radii.len() as f64 - 0.6;
        let mut chart = ChartBuilder::on(area)
            .caption(title, ("sans-serif", 44).into_font().color(&INK))
            .margin(48)
            .margin_bottom(108)
            .x_label_area_size(112)
            .y_label_area_size(144)
            .build_cartesian_2d(-0.4..last, low..high)?;
        let radius = |x: &f64| {
            let is_one = (x - x.round()).abs() < 1e-6 && *x > -0.1;
            let radius = is_one.then(|| self.radii.get(count(*x))).flatten();
            radius.map_or_else(String::new, |radius| (*radius).to_owned())
        };
        let mut mesh = chart.configure_mesh();
        style(&mut mesh, 36);
        mesh.disable_x_mesh()
            .x_desc("ρ")
            .y_desc(measure)
            .x_labels(self.radii.len() + 2)
            .x_label_formatter(&radius)
            .draw()?;
        for ((name, numbers), color) in self.curves.iter().zip(COLORS.iter().cycle()) {
            let paper: Vec<_> = numbers
                .iter()
                .filter_map(|(place, numbers)| numbers.paper.map(|paper| (*place as f64, paper.mean)))
                .collect();
            if !paper.is_empty() {
                let style = color.mix(0.6).stroke_width(4);
                chart.draw_series(DashedLineSeries::new(paper, 14, 10, style))?;
            }
            let ours: Vec<_> = numbers
                .iter()
                .filter_map(|(place, numbers)| Some((*place as f64, numbers.mean?, numbers.interval.unwrap_or(0.0))))
                .collect();
            let style = color.stroke_width(6);
            for &(x, y, interval) in &ours {
                let ends = [y - interval, y + interval].map(|end| (x, end.clamp(low, high)));
                chart.draw_series(LineSeries::new(ends, color.stroke_width(3)))?;
                chart.draw_series([Circle::new((x, y), 9, color.filled())])?;
            }
            chart
                .draw_series(LineSeries::new(ours.iter().map(|&(x, y, _)| (x, y)), style))?
                .label(*name)
                .legend(move |at| EmptyElement::at(at) + line_key(style));
        }
        if self.curves.iter().flat_map(|(_, numbers)| numbers).any(|(_, numbers)| numbers.paper.is_some()) {
            let style = INK.mix(0.6).stroke_width(4);
            let dash = move |from: i32, to: i32| PathElement::new([(from, 0), (to, 0)], style);
            chart
                .draw_series(LineSeries::new(std::iter::empty(), style))?
                .label("the paper")
                .legend(move |at| EmptyElement::at(at) + dash(0, 12) + dash(22, 34) + dash(44, 56));
        }
        legend(&mut chart, SeriesLabelPosition::UpperLeft)
    }
}

/// A line for each cell: the paper's number as a ring, ours as a dot with its interval.
fn dots(area: &Area<'_>, rows: &[&Row], (low, high): (f64, f64), title: &str, measure: &str) -> DrawResult {
    let [ours, theirs] = [COLORS[0], COLORS[1]];
    let last = rows.len() as f64 - 0.5;
    let longest = rows.iter().map(|row| row.cell.chars().count()).max().unwrap_or(0);
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 44).into_font().color(&INK))
        .margin(32)
        .margin_bottom(104)
        .x_label_area_size(100)
        .y_label_area_size(60 + 17 * longest as u32)
        .build_cartesian_2d(low..high, last..-0.5)?;
    let name = |y: &f64| {
        let at = y.round();
        let is_row = (y - at).abs() < 1e-6 && at >= 0.0;
        if is_row { rows.get(count(at)).map_or_else(String::new, |row| row.cell.clone()) } else { String::new() }
    };
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, 30);
    mesh.x_desc(format!("{measure}; ring: paper, dot: ours"))
        .y_labels(rows.len() + 2)
        .y_label_formatter(&name)
        .draw()?;
    for (i, row) in rows.iter().enumerate() {
        let y = i as f64;
        if let Some(paper) = row.numbers.paper {
            chart.draw_series([Circle::new((paper.mean, y), 12, theirs.stroke_width(5))])?;
        }
        if let Some(mean) = row.numbers.mean {
            let reach = row.numbers.interval.unwrap_or(0.0);
            let ends = [mean - reach, mean + reach].map(|end| (end.clamp(low, high), y));
            chart.draw_series(LineSeries::new(ends, ours.stroke_width(5)))?;
            chart.draw_series([Circle::new((mean, y), 10, ours.filled())])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(cell: &str) -> Row {
        let numbers = Numbers { paper: None, ours: vec![1.0], mean: Some(1.0), interval: None };
        let (without, data) = Default::default();
        Row { cell: cell.to_owned(), numbers, beside: None, without, data, seconds: 1.0 }
    }

    #[test]
    fn radii_stand_in_order() {
        let rows = ["40/rho-0.1", "40/rho-0", "80/rho-1e-6", "80/rho-0.1"].map(row);
        let curves = Curves::of(&rows.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(curves.radii, ["0", "1e-6", "0.1"]);
        let places: Vec<_> = curves
            .curves
            .iter()
            .map(|(name, numbers)| (*name, numbers.iter().map(|(place, _)| *place).collect::<Vec<_>>()))
            .collect();
        assert_eq!(places, [("40", vec![0, 2]), ("80", vec![1, 2])]);
        assert!(Curves::of(&[&row("40/rho-0.1"), &row("40/sgd")]).is_none());
    }
}
