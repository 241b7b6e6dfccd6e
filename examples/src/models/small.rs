//! Perceptrons and a small convolutional network.

use candle_core::{Result, Tensor};
use candle_nn::{Module, VarBuilder};

use super::layers::LayerSet;
use super::net::Net;

/// Linear layers with a ReLU between; the last one is the model's head.
pub(super) struct Mlp<K: LayerSet>(Vec<K::Linear>);

impl<K: LayerSet> Mlp<K> {
    /// Of these widths, that of the input first.
    pub(super) fn new(widths: &[usize], vb: &VarBuilder<'_>) -> Result<Self> {
        let layers = widths.windows(2).enumerate();
        layers.map(|(i, pair)| K::linear(pair[0], pair[1], vb.pp(i))).collect::<Result<_>>().map(Self)
    }
}

impl<K: LayerSet> Net for Mlp<K> {
    fn features(&self, x: &Tensor, _: bool) -> Result<Tensor> {
        let mut x = x.flatten_from(1)?;
        for layer in &self.0 {
            x = K::relu(&layer.forward(&x)?)?;
        }
        Ok(x)
    }
}

/// A perceptron with a batch normalization.
pub(super) struct MlpNorm<K: LayerSet> {
    hidden: K::Linear,
    norm: K::Norm,
}

impl<K: LayerSet> MlpNorm<K> {
    pub(super) fn new(from: usize, width: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        Ok(Self { hidden: K::linear(from, width, vb.pp("hidden"))?, norm: K::norm(width, vb.pp("norm"))? })
    }
}

impl<K: LayerSet> Net for MlpNorm<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        K::norm_relu(&self.norm, &self.hidden.forward(&x.flatten_from(1)?)?, train)
    }
}

/// Convolutions, each with a batch normalization and a ReLU.
pub(super) struct Cnn<K: LayerSet>(Vec<(K::Conv, K::Norm)>);

impl<K: LayerSet> Cnn<K> {
    pub(super) fn new(mut channels: usize, width: usize, vb: &VarBuilder<'_>) -> Result<Self> {
        let mut blocks = Vec::new();
        for (i, (factor, stride)) in [(1, 1), (2, 2), (2, 1), (4, 2), (4, 1)].into_iter().enumerate() {
            let (vb, to) = (vb.pp(i), factor * width);
            blocks.push((K::conv(channels, to, 3, stride, vb.pp("conv"))?, K::norm(to, vb.pp("norm"))?));
            channels = to;
        }
        Ok(Self(blocks))
    }
}

impl<K: LayerSet> Net for Cnn<K> {
    fn features(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut x = x.clone();
        for (conv, norm) in &self.0 {
            x = K::norm_relu(norm, &conv.forward(&x)?, train)?;
        }
        K::mean(&x)
    }
}
