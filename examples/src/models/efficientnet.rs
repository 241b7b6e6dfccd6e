//! EfficientNet-Lite0: the blocks of EfficientNet-B0 (Tan & Le 2019) with ReLU6, and without squeeze and excitation.

use candle_core::{Result, Tensor};
use candle_nn::{Module as _, ModuleT as _, VarBuilder};

use super::layers::LayerSet;
use super::net::Net;
use crate::util::numbers::count;

/// The kernel, stride, expansion, width and depth of each group of blocks, for a stem of 32 channels.
const GROUPS: [[usize; 5]; 7] = [
    [3, 1, 1, 16, 1],
    [3, 2, 6, 24, 2],
    [5, 2, 6, 40, 2],
    [3, 2, 6, 80, 3],
    [5, 1, 6, 112, 3],
    [5, 2, 6, 192, 4],
    [3, 1, 6, 320, 1],
];

const STEM: usize = 32;
const LAST: usize = 1280;

/// The network, for images of 224 pixels or smaller ones: it divides the side by 32.
pub(super) struct EfficientNetLite0<K: LayerSet> {
    stem: ConvNorm<K>,
    blocks: Vec<Inverted<K>>,
    last: ConvNorm<K>,
}

/// A convolution and its normalization.
struct ConvNorm<K: LayerSet> {
    conv: K::Conv,
    norm: K::Norm,
}

impl<K: LayerSet> ConvNorm<K> {
    fn new(conv: impl Fn(VarBuilder<'_>) -> Result<K::Conv>, to: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { conv: conv(vb.pp("conv"))?, norm: K::norm(to, vb.pp("norm"))? })
    }

    fn pointwise(from: usize, to: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Self::new(|vb| K::conv(from, to, 1, 1, vb), to, vb)
    }

    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        self.norm.forward_t(&self.conv.forward(x)?, train)
    }

    fn forward_relu6(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        K::norm_relu6(&self.norm, &self.conv.forward(x)?, train)
    }
}

/// A block that is wide inside: expansion, a convolution of each channel, projection.
struct Inverted<K: LayerSet> {
    expand: Option<ConvNorm<K>>,
    depthwise: ConvNorm<K>,
    project: ConvNorm<K>,
    has_skip: bool,
}

impl<K: LayerSet> EfficientNetLite0<K> {
    /// Channels of the features, for channels of the stem.
    pub(super) fn features(width: usize) -> usize {
        scaled(LAST, width)
    }

    pub(super) fn new(channels: usize, width: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let mut blocks = Vec::new();
        let mut from = width;
        for (group, [size, stride, expansion, to, depth]) in GROUPS.into_iter().enumerate() {
            let to = scaled(to, width);
            for i in 0..depth {
                let vb = vb.pp(format!("group{group}.block{i}"));
                let (stride, inner) = (if i == 0 { stride } else { 1 }, expansion * from);
                blocks.push(Inverted {
                    expand: (expansion > 1).then(|| ConvNorm::pointwise(from, inner, &vb.pp("expand"))).transpose()?,
                    depthwise: ConvNorm::new(|vb| K::depthwise(inner, size, stride, vb), inner, &vb.pp("depthwise"))?,
                    project: ConvNorm::pointwise(inner, to, &vb.pp("project"))?,
                    has_skip: stride == 1 && from == to,
                });
                from = to;
            }
        }
        Ok(Self {
            stem: ConvNorm::new(|vb| K::conv(channels, width, 3, 2, vb), width, &vb.pp("stem"))?,
            blocks,
            last: ConvNorm::pointwise(from, Self::features(width), &vb.pp("last"))?,
        })
    }
}

/// A number of channels, for a stem of `width`.
fn scaled(channels: usize, width: usize) -> usize {
    count((channels * width) as f64 / STEM as f64).max(1)
}

impl<K: LayerSet> Net for EfficientNetLite0<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = self.stem.forward_relu6(x, train)?;
        for block in &self.blocks {
            x = block.forward(&x, train)?;
        }
        K::mean(&self.last.forward_relu6(&x, train)?)
    }
}

impl<K: LayerSet> Inverted<K> {
    fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let wide = self.expand.as_ref().map_or_else(|| Ok(x.clone()), |expand| expand.forward_relu6(x, train))?;
        let y = self.project.forward(&self.depthwise.forward_relu6(&wide, train)?, train)?;
        if self.has_skip { K::add(&y, x) } else { Ok(y) }
    }
}
