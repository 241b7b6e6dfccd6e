//! PyramidNet of bottlenecks (Han et al. 2017), with and without ShakeDrop (Yamada et al. 2018).

use candle_core::{Result, Tensor};
use candle_nn::{ModuleT, VarBuilder};
use sam_runtime::nn::{RngStream, ShakeDrop};

use super::layers::LayerSet;
use super::net::{Net, pad_channels};
use super::resnet::ConvNorm;

/// Channels before the first block.
const STEM: usize = 16;

/// Of the output to the inner channels.
const EXPANSION: usize = 4;

/// The survival probability of the last block; it grows linearly towards the first.
const LAST_SURVIVAL: f64 = 0.5;

/// 9n + 2 layers, whose channels grow from block to block.
pub(super) struct Pyramid<K: LayerSet> {
    stem: ConvNorm<K>,
    blocks: Vec<Block<K>>,
    norm: K::Norm,
}

struct Block<K: LayerSet> {
    norm: K::Norm,
    first: ConvNorm<K>,
    second: ConvNorm<K>,
    third: ConvNorm<K>,
    drop: Option<ShakeDrop>,
    stride: usize,
    zeros: usize,
}

/// Inner channels of the blocks.
fn widths(depth: usize, alpha: usize) -> Vec<usize> {
    let blocks = (depth - 2) / 3;
    (1..=blocks).map(|k| STEM + (2 * k * alpha + blocks) / (2 * blocks)).collect()
}

impl<K: LayerSet> Pyramid<K> {
    /// Channels of the features.
    pub(super) fn features(alpha: usize) -> usize {
        EXPANSION * (STEM + alpha)
    }

    pub(super) fn new(
        channels: usize,
        depth: usize,
        alpha: usize,
        draws: Option<&RngStream>,
        vb: &VarBuilder<'_>,
    ) -> Result<Self> {
        let stem = ConvNorm::new(channels, STEM, 3, 1, &vb.pp("stem"))?;
        let widths = widths(depth, alpha);
        let (mut from, mut blocks) = (STEM, Vec::new());
        for (k, &width) in widths.iter().enumerate() {
            let group = 3 * k / widths.len();
            let stride = if group > 0 && (3 * k).is_multiple_of(widths.len()) { 2 } else { 1 };
            let vb = vb.pp(format!("block{k}"));
            let survival = 1.0 - (k + 1) as f64 / widths.len() as f64 * (1.0 - LAST_SURVIVAL);
            blocks.push(Block {
                norm: K::norm(from, vb.pp("norm"))?,
                first: ConvNorm::new(from, width, 1, 1, &vb.pp("first"))?,
                second: ConvNorm::new(width, width, 3, stride, &vb.pp("second"))?,
                third: ConvNorm::new(width, EXPANSION * width, 1, 1, &vb.pp("third"))?,
                drop: draws.map(|draws| ShakeDrop::new(survival as f32, draws.clone())),
                stride,
                zeros: EXPANSION * width - from,
            });
            from = EXPANSION * width;
        }
        Ok(Self { stem, blocks, norm: K::norm(from, vb.pp("norm"))? })
    }
}

impl<K: LayerSet> Net for Pyramid<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward(x, train)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        K::mean(&K::norm_relu(&self.norm, &x, train)?)
    }
}

impl<K: LayerSet> Block<K> {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let y = self.first.forward_relu(&self.norm.forward_t(x, train)?, train)?;
        let y = self.third.forward(&self.second.forward_relu(&y, train)?, train)?;
        let y = if let Some(drop) = &self.drop { drop.forward(&y, train)? } else { y };
        let past = if self.stride == 1 { x.clone() } else { K::avg_pool(x, self.stride)? };
        K::add(&y, &pad_channels(&past, 0, self.zeros)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_grow_from_block_to_block() {
        let widths = widths(272, 200);
        assert_eq!(widths[..6], [18, 20, 23, 25, 27, 29]);
        assert_eq!((widths[29], widths[59], widths[89], widths.len()), (83, 149, 216, 90));
    }
}
