//! The Hessian of a training loss (section 4.2 and Figure 3 of the paper), by `sam_runtime::sharpness`.
//!
//! Products are exact in a process with [`KEEP_GRAPH`] in its environment, for networks of candle's own layers; otherwise they are
//! differences of gradients.

use anyhow::{Result, ensure};
use candle_core::Error;
use sam_runtime::sharpness::{Hessian, HessianMethod, Landscape, Spectrum};

use crate::data::{ImageSet, TEST_BATCH};
use crate::models::Model;
use crate::models::layers::LayerSet;
use crate::models::params::trained_vars;

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
#[must_use]
pub fn method(hessian: &Hessian<'_, '_>) -> String {
    let how = match hessian.method() {
        HessianMethod::Exact => "exact products".to_owned(),
        HessianMethod::Differences { step } => format!("products by differences of gradients {:.1e} apart", 2.0 * step),
        _ => "products".to_owned(),
    };
    format!("{how}, relative error {:.0e}", hessian.error())
}

/// The spectrum of the loss of a set of images. `tell` is called after each product. Also says how products were computed.
///
/// # Errors
/// Those of the model.
pub fn of_loss<K: LayerSet + 'static>(
    model: &Model<K>,
    images: &ImageSet,
    order: usize,
    seed: u64,
    mut tell: impl FnMut(),
) -> Result<(Spectrum, String)> {
    let mut landscape = landscape(model, images)?;
    let hessian = landscape.hessian()?;
    let how = method(&hessian);
    let mut hessian = hessian.after_each(|| {
        tell();
        Ok(())
    });
    Ok((hessian.spectrum(order, seed)?, how))
}
