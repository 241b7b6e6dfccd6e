//! Charts as PNG files: size, colors, fonts, legend.

use std::io;
use std::path::Path;
use std::sync::Once;

use anyhow::{Context as _, Result};
use image::RgbImage;
use plotters::chart::MeshStyle;
use plotters::coord::ranged1d::ValueFormatter;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use plotters::style::{FontStyle, register_font};

use super::atomic::write_atomic;

/// The default size of a chart in pixels: width and height.
pub const SIZE: (u32, u32) = (1200, 750);

/// An area to draw on.
pub type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;

/// The result of drawing.
pub type DrawResult = std::result::Result<(), Box<dyn std::error::Error>>;

/// Draws a PNG of this width and height, on an area of twice the size that is then scaled down: plotters draws without
/// anti-aliasing.
///
/// # Errors
/// If the file cannot be written; nothing is left behind then.
pub fn png(path: &Path, size: (u32, u32), draw: impl FnOnce(&Area<'_>) -> DrawResult) -> Result<()> {
    static FONT: Once = Once::new();
    FONT.call_once(|| {
        // Fails only for bytes that are not a font.
        let _ = register_font("sans-serif", FontStyle::Normal, dejavu::sans::regular());
        let _ = register_font("sans-serif", FontStyle::Bold, dejavu::sans::bold());
    });
    let (width, height) = (2 * size.0, 2 * size.1);
    let mut pixels = vec![0; (width * height * 3) as usize];
    let area = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    let drawn = area.fill(&PAPER).map_err(Into::into).and_then(|()| draw(&area)).and_then(|()| Ok(area.present()?));
    drawn.map_err(|error| anyhow::anyhow!("cannot draw {}: {error}", path.display()))?;
    drop(area);
    let large = RgbImage::from_raw(width, height, pixels).context("the picture has another size than its buffer")?;
    let small = image::imageops::thumbnail(&large, size.0, size.1);
    let mut png = io::Cursor::new(Vec::new());
    small.write_to(&mut png, image::ImageFormat::Png).with_context(|| format!("cannot encode {}", path.display()))?;
    write_atomic(path, png.get_ref())
}

/// The color of text.
pub const INK: RGBColor = RGBColor(51, 51, 51);
/// The background.
pub const PAPER: RGBColor = RGBColor(255, 255, 255);
/// A palette for all kinds of color vision (Okabe and Ito). SAM has the first color, SGD the second.
pub const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(110, 110, 110),
];

/// Gives a mesh the lines of all charts, and labels of this size.
pub fn style<X, Y>(mesh: &mut MeshStyle<'_, '_, X, Y, BitMapBackend<'_>>, label_size: u32)
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    mesh.light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.5))
        .label_style(("sans-serif", label_size).into_font().color(&INK));
}

/// Draws the legend of a chart into one of its corners.
///
/// # Errors
/// If it cannot be drawn.
pub fn legend<'a, 'b: 'a, C: CoordTranslate>(
    chart: &mut ChartContext<'a, BitMapBackend<'b>, C>,
    corner: SeriesLabelPosition,
) -> DrawResult {
    chart
        .configure_series_labels()
        .position(corner)
        .margin(24)
        .legend_area_size(80)
        .background_style(PAPER.mix(0.85))
        .border_style(INK.mix(0.2))
        .label_font(("sans-serif", 36).into_font().color(&INK))
        .draw()?;
    Ok(())
}

/// A line of this style, which stands for a series in a legend.
pub fn line_key(style: impl Into<ShapeStyle>) -> PathElement<(i32, i32)> {
    PathElement::new([(0, 0), (56, 0)], style)
}

/// Where a function passes a level on a grid of `squares` by `squares`: a line or two for each square that it goes through. The
/// point (i, j) of the grid is at `place(i, j)`, with the value `value(i, j)`.
pub fn level_lines(
    squares: usize,
    place: impl Fn(usize, usize) -> (f64, f64),
    value: impl Fn(usize, usize) -> f64,
    level: f64,
) -> Vec<Vec<(f64, f64)>> {
    let mut lines = Vec::new();
    for (i, j) in (0..squares).flat_map(|j| (0..squares).map(move |i| (i, j))) {
        let corners = [(i, j), (i + 1, j), (i + 1, j + 1), (i, j + 1)];
        let mut cuts = Vec::new();
        for (k, &(i, j)) in corners.iter().enumerate() {
            let (m, n) = corners[(k + 1) % 4];
            let (here, there) = (value(i, j), value(m, n));
            if (here < level) != (there < level) {
                let (share, from, to) = ((level - here) / (there - here), place(i, j), place(m, n));
                cuts.push((from.0 + share * (to.0 - from.0), from.1 + share * (to.1 - from.1)));
            }
        }
        lines.extend(cuts.chunks_exact(2).map(<[_]>::to_vec));
    }
    lines
}
