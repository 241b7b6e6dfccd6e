//! What the networks have in common.

use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;
use sam_runtime::nn::RngStream;

/// A network without its last, linear layer.
pub(super) trait Net {
    /// The features (n, width) of images, or of all tokens of texts.
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor>;

    /// Sets the rates of dropout and of stochastic depth, in a network that has them.
    fn regularize(&mut self, _rates: [f64; 2], _draws: &RngStream) {}
}

/// Groups of residual blocks of growing width, each group after the first halving the image.
pub(super) fn groups<B>(
    mut from: usize,
    widths: &[usize],
    depths: &[usize],
    vb: &VarBuilder<'_>,
    block: impl Fn(usize, usize, usize, &VarBuilder<'_>) -> Result<B>,
) -> Result<Vec<B>> {
    let mut blocks = Vec::new();
    for (group, (&to, &depth)) in widths.iter().zip(depths).enumerate() {
        for i in 0..depth {
            let stride = if group > 0 && i == 0 { 2 } else { 1 };
            blocks.push(block(from, to, stride, &vb.pp(format!("group{group}.block{i}")))?);
            from = to;
        }
    }
    Ok(blocks)
}

/// Pads the channels of x with zeros.
pub(super) fn pad_channels(x: &Tensor, before: usize, after: usize) -> Result<Tensor> {
    if before + after == 0 { Ok(x.clone()) } else { x.pad_with_zeros(1, before, after)?.contiguous() }
}
