//! The Hessian of a training loss (section 4.2 and Figure 3 of the paper), by `sam_runtime::sharpness`.
//!
//! Products are exact in a process with [`KEEP_GRAPH`] in its environment, for networks of candle's own layers; otherwise they are
//! differences of gradients.

use anyhow::{Result, ensure};
use candle_core::Error;
use plotters::prelude::*;
use sam_runtime::sharpness::{Hessian, HessianMethod, Landscape, Spectrum};
use serde::{Deserialize, Serialize};

use crate::data::{ImageSet, TEST_BATCH};
use crate::io::plot::{Area, COLORS, DrawResult, INK, legend, line_key, style};
use crate::models::Model;
use crate::models::layers::LayerSet;
use crate::models::params::trained_vars;
use crate::util::numbers::spaced;

/// candle's switch for gradients that can be differentiated, to be set to 1 before a process starts.
pub const KEEP_GRAPH: &str = "CANDLE_GRAD_DO_NOT_DETACH";

/// Whether this process keeps the graph.
#[must_use]
pub fn keeps_graph() -> bool {
    std::env::var_os(KEEP_GRAPH).is_some_and(|value| value == "1")
}

/// The mean cross-entropy of a set of images as a function of the trained weights, of the network as it is tested: batch
/// normalizations use their running statistics.
///
/// # Errors
/// If there are no images.
pub fn landscape<'a, K: LayerSet + 'static>(model: &'a Model<K>, images: &ImageSet) -> Result<Landscape<'a>> {
    ensure!(!images.is_empty(), "there are no images to compute a loss of");
    let parts: Vec<ImageSet> =
        images.indices().chunks(TEST_BATCH).map(|indices| images.part(indices.to_vec())).collect();
    let sizes: Vec<usize> = parts.iter().map(ImageSet::len).collect();
    Ok(Landscape::over_batches(trained_vars(model.vars()), sizes, move |i| {
        let batch = parts[i].in_order(TEST_BATCH).next();
        let (x, y) = batch.ok_or_else(|| Error::Msg("a batch of images is empty".to_owned()))?.map_err(Error::msg)?;
        K::cross_entropy(&model.forward(&x, false)?, &y)
    }))
}

/// How products with a Hessian are computed, in words.
fn method(hessian: &Hessian<'_, '_>) -> String {
    let how = match hessian.method() {
        HessianMethod::Exact => "exact products".to_owned(),
        HessianMethod::Differences { step } => format!("products by differences of gradients {:.1e} apart", 2.0 * step),
        _ => "products".to_owned(),
    };
    format!("{how}, relative error {:.0e}", hessian.error())
}

/// The spectrum of the loss of a set of images. `tell` is called after each product.
///
/// # Errors
/// Those of the model.
pub fn of_loss<K: LayerSet + 'static>(
    model: &Model<K>,
    images: &ImageSet,
    order: usize,
    seed: u64,
    mut tell: impl FnMut(),
) -> Result<(Spectrum, Eigenvalues)> {
    let mut landscape = landscape(model, images)?;
    let hessian = landscape.hessian()?;
    let mut hessian = hessian.after_each(|| {
        tell();
        Ok(())
    });
    let (eigenvalues, spectrum) = Eigenvalues::of(&mut hessian, order, seed)?;
    Ok((spectrum, eigenvalues))
}

/// The values of a [`Spectrum`], its density at some points, and how products were computed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Eigenvalues {
    /// The highest first.
    pub values: Vec<f64>,
    /// Pairs of an eigenvalue and the density there.
    pub density: Vec<(f64, f64)>,
    /// In words.
    pub method: String,
    /// The relative error of a product, as it was found.
    pub error: f64,
}

/// The lowest density that is shown.
const LEAST: f64 = 1e-6;

impl Eigenvalues {
    /// Those of a Hessian, and its spectrum: `order` products from a random direction.
    ///
    /// # Errors
    /// Those of the loss.
    pub fn of(hessian: &mut Hessian<'_, '_>, order: usize, seed: u64) -> Result<(Self, Spectrum)> {
        let spectrum = hessian.spectrum(order, seed)?;
        let values = spectrum.values().to_vec();
        let (high, low) = (values.first().copied().unwrap_or(0.0), values.last().copied().unwrap_or(0.0).min(0.0));
        let width = 0.01 * (high - low).max(1e-9);
        let density = spaced(1.0, 400).into_iter().map(|t| {
            let x = low - 4.0 * width + (high - low + 8.0 * width) * (t + 1.0) / 2.0;
            (x, spectrum.density(x, width).max(LEAST))
        });
        let density = density.collect();
        Ok((Self { density, values, method: method(hessian), error: hessian.error() }, spectrum))
    }

    /// λ₁ / λ₅, if there are five.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        Some(self.values.first()? / self.values.get(4)?)
    }

    /// The largest eigenvalue and its ratio to the fifth, in words.
    #[must_use]
    pub fn summary(&self) -> String {
        let ratio = self.ratio().map_or_else(String::new, |ratio| format!(", λ₁ / λ₅ = {ratio:.1}"));
        format!("λ₁ = {:.1}{ratio}", self.values.first().copied().unwrap_or_default())
    }
}

/// Draws the densities of named networks, on a logarithmic scale: few eigenvalues are large. The size is that of labels.
///
/// # Errors
/// Those of plotters.
pub fn densities(area: &Area<'_>, caption: &str, found: &[(&str, &Eigenvalues)], size: u32) -> DrawResult {
    let all = || found.iter().flat_map(|(_, eigenvalues)| eigenvalues.density.iter().copied());
    let (left, right) = all().fold((0f64, 0f64), |(low, high), (x, _)| (low.min(x), high.max(x)));
    let top = all().fold(10.0 * LEAST, |top, (_, density)| top.max(density));
    if left >= right {
        return Ok(());
    }
    let mut builder = ChartBuilder::on(area);
    if !caption.is_empty() {
        builder.caption(caption, ("sans-serif", size + 4).into_font().color(&INK));
    }
    let mut chart = builder
        .margin(size)
        .x_label_area_size(3 * size)
        .y_label_area_size(9 * size / 2)
        .build_cartesian_2d(left..right, (LEAST..2.0 * top).log_scale())?;
    let mut mesh = chart.configure_mesh();
    style(&mut mesh, size);
    mesh.x_desc("eigenvalue of the Hessian").y_desc("density").y_label_formatter(&|y| format!("{y:.0e}")).draw()?;
    for ((name, eigenvalues), color) in found.iter().zip(COLORS.iter().cycle()) {
        chart
            .draw_series(LineSeries::new(eigenvalues.density.iter().copied(), color.stroke_width(5)))?
            .label(format!("{name}: {}", eigenvalues.summary()))
            .legend(move |at| EmptyElement::at(at) + line_key(color.stroke_width(6)));
    }
    legend(&mut chart, SeriesLabelPosition::UpperRight)
}
