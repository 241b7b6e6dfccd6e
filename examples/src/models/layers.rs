//! The layers that a model is built from: those of `sam_runtime::nn`, or those of `candle_nn` alone, for comparison.

use candle_core::{D, Result, Tensor};
use candle_nn::{Conv2dConfig, Module, ModuleT, VarBuilder};
use sam_runtime::nn;
use sam_runtime::nn::attention::{AttnMask, self_attention};

/// A set of layers. Both sets have the same variables under the same names.
pub trait LayerSet {
    /// A convolution without bias.
    type Conv: Module;
    /// A batch normalization.
    type Norm: ModuleT;
    /// A linear layer.
    type Linear: Module;
    /// A layer normalization.
    type LayerNorm: Module;
    /// A table of vectors by number.
    type Embedding: Module;

    /// A convolution with square kernels of `size`, padded so that stride 1 keeps the image's size.
    ///
    /// # Errors
    /// If its variable cannot be created.
    fn conv(from: usize, to: usize, size: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self::Conv>;

    /// A convolution without bias of each channel by itself, padded as [`conv`](Self::conv).
    ///
    /// # Errors
    /// If its variable cannot be created.
    fn depthwise(channels: usize, size: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self::Conv>;

    /// A batch normalization.
    ///
    /// # Errors
    /// If its variables cannot be created.
    fn norm(channels: usize, vb: VarBuilder<'_>) -> Result<Self::Norm> {
        Self::norm_with(channels, 1e-5, vb)
    }

    /// A batch normalization with this ε.
    ///
    /// # Errors
    /// If its variables cannot be created.
    fn norm_with(channels: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self::Norm>;

    /// A linear layer.
    ///
    /// # Errors
    /// If its variables cannot be created.
    fn linear(from: usize, to: usize, vb: VarBuilder<'_>) -> Result<Self::Linear>;

    /// A linear layer with this weight (outputs, inputs), of which it has no copy.
    fn linear_of(weight: Tensor, bias: Option<Tensor>) -> Self::Linear;

    /// A layer normalization over the last dimension.
    ///
    /// # Errors
    /// If its variables cannot be created.
    fn layer_norm(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self::LayerNorm>;

    /// A table of `count` vectors.
    ///
    /// # Errors
    /// If its variable cannot be created.
    fn embedding(count: usize, width: usize, vb: VarBuilder<'_>) -> Result<Self::Embedding>;

    /// x Φ(x), with the distribution function Φ of a standard normal variable.
    ///
    /// # Errors
    /// Those of candle.
    fn gelu(x: &Tensor) -> Result<Tensor>;

    /// Self-attention with as many heads, scaled by 1/√(channels of a head): from queries, keys and values side by side
    /// (n, tokens, 3 width) to (n, tokens, width). If `causal`, a token sees itself and those before.
    ///
    /// # Errors
    /// If the width is not a multiple of the heads.
    fn attention(qkv: &Tensor, heads: usize, causal: bool) -> Result<Tensor>;

    /// max(x, 0).
    ///
    /// # Errors
    /// Those of candle.
    fn relu(x: &Tensor) -> Result<Tensor>;

    /// A batch normalization, and the ReLU after it.
    ///
    /// # Errors
    /// If x has other channels than the layer.
    fn norm_relu(norm: &Self::Norm, x: &Tensor, train: bool) -> Result<Tensor>;

    /// A batch normalization, the sum with `y`, and the ReLU after it.
    ///
    /// # Errors
    /// If x has other channels than the layer, or another shape than y.
    fn norm_add_relu(norm: &Self::Norm, x: &Tensor, y: &Tensor, train: bool) -> Result<Tensor>;

    /// A batch normalization, and min(max(x, 0), 6) after it.
    ///
    /// # Errors
    /// If x has other channels than the layer.
    fn norm_relu6(norm: &Self::Norm, x: &Tensor, train: bool) -> Result<Tensor>;

    /// x + y.
    ///
    /// # Errors
    /// If the shapes differ.
    fn add(x: &Tensor, y: &Tensor) -> Result<Tensor>;

    /// The mean of each channel, from (n, channels, height, width) to (n, channels).
    ///
    /// # Errors
    /// If x has other than four dimensions.
    fn mean(x: &Tensor) -> Result<Tensor>;

    /// The mean of each window of `size` by `size`, which do not overlap.
    ///
    /// # Errors
    /// If x has other than four dimensions, or is smaller than a window.
    fn avg_pool(x: &Tensor, size: usize) -> Result<Tensor>;

    /// The largest of each window of 3x3, every second row and column, with padding that is never the largest.
    ///
    /// # Errors
    /// If x has other than four dimensions; candle's has no backward pass.
    fn max_pool(x: &Tensor) -> Result<Tensor>;

    /// The mean cross-entropy of logits (n, classes) and labels (n).
    ///
    /// # Errors
    /// If the shapes do not fit.
    fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor>;
}

/// The layers of `sam_runtime::nn`.
#[derive(Clone, Copy, Debug)]
pub struct SamRuntime;

/// The layers of `candle_nn`.
#[derive(Clone, Copy, Debug)]
pub struct CandleNn;

fn config(size: usize, stride: usize) -> Conv2dConfig {
    Conv2dConfig { padding: size / 2, stride, ..Default::default() }
}

/// candle's layer normalization in operations that have a backward pass; its fused one has none.
#[derive(Clone, Debug)]
pub struct SlowLayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl SlowLayerNorm {
    fn new(width: usize, eps: f64, vb: &VarBuilder<'_>) -> Result<Self> {
        let weight = vb.get_with_hints(width, "weight", candle_nn::Init::Const(1.0))?;
        let bias = vb.get_with_hints(width, "bias", candle_nn::Init::Const(0.0))?;
        Ok(Self { weight, bias, eps: eps as f32 })
    }
}

impl Module for SlowLayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        candle_nn::ops::layer_norm_slow(x, &self.weight, &self.bias, self.eps)
    }
}

/// Attention in candle's operations.
fn slow_attention(qkv: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    let (n, tokens, wide) = qkv.dims3()?;
    let size = wide / 3 / heads;
    let parts = qkv.reshape((n, tokens, 3, heads, size))?.permute((2, 0, 3, 1, 4))?.contiguous()?;
    let (q, k, v) = (parts.get(0)?, parts.get(1)?, parts.get(2)?);
    let mut scores = (q.matmul(&k.t()?)? * (size as f64).sqrt().recip())?;
    if causal {
        let hidden = |(i, j)| if j > i { f32::NEG_INFINITY } else { 0.0 };
        let mask: Vec<f32> = (0..tokens).flat_map(|i| (0..tokens).map(move |j| (i, j))).map(hidden).collect();
        let mask = Tensor::from_vec(mask, (tokens, tokens), qkv.device())?.to_dtype(qkv.dtype())?;
        scores = scores.broadcast_add(&mask)?;
    }
    let mixed = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&v)?;
    mixed.transpose(1, 2)?.reshape((n, tokens, heads * size))
}

impl LayerSet for CandleNn {
    type Conv = candle_nn::Conv2d;
    type Norm = candle_nn::BatchNorm;
    type Linear = candle_nn::Linear;
    type LayerNorm = SlowLayerNorm;
    type Embedding = candle_nn::Embedding;

    fn conv(from: usize, to: usize, size: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self::Conv> {
        candle_nn::conv2d_no_bias(from, to, size, config(size, stride), vb)
    }

    fn depthwise(channels: usize, size: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self::Conv> {
        let config = Conv2dConfig { groups: channels, ..config(size, stride) };
        candle_nn::conv2d_no_bias(channels, channels, size, config, vb)
    }

    fn norm_with(channels: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self::Norm> {
        candle_nn::batch_norm(channels, eps, vb)
    }

    fn linear(from: usize, to: usize, vb: VarBuilder<'_>) -> Result<Self::Linear> {
        candle_nn::linear(from, to, vb)
    }

    fn linear_of(weight: Tensor, bias: Option<Tensor>) -> Self::Linear {
        candle_nn::Linear::new(weight, bias)
    }

    fn layer_norm(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self::LayerNorm> {
        SlowLayerNorm::new(width, eps, &vb)
    }

    fn embedding(count: usize, width: usize, vb: VarBuilder<'_>) -> Result<Self::Embedding> {
        candle_nn::embedding(count, width, vb)
    }

    fn gelu(x: &Tensor) -> Result<Tensor> {
        x.gelu_erf()
    }

    fn attention(qkv: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
        slow_attention(qkv, heads, causal)
    }

    fn relu(x: &Tensor) -> Result<Tensor> {
        x.relu()
    }

    fn norm_relu(norm: &Self::Norm, x: &Tensor, train: bool) -> Result<Tensor> {
        norm.forward_t(x, train)?.relu()
    }

    fn norm_add_relu(norm: &Self::Norm, x: &Tensor, y: &Tensor, train: bool) -> Result<Tensor> {
        (norm.forward_t(x, train)? + y)?.relu()
    }

    fn norm_relu6(norm: &Self::Norm, x: &Tensor, train: bool) -> Result<Tensor> {
        norm.forward_t(x, train)?.clamp(0f32, 6f32)
    }

    fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
        x + y
    }

    fn mean(x: &Tensor) -> Result<Tensor> {
        x.mean((2, 3))
    }

    fn avg_pool(x: &Tensor, size: usize) -> Result<Tensor> {
        x.avg_pool2d(size)
    }

    fn max_pool(x: &Tensor) -> Result<Tensor> {
        let pad = |x: &Tensor, dim: usize| {
            let edge = (x.narrow(dim, 0, 1)?.zeros_like()? + f64::NEG_INFINITY)?;
            Tensor::cat(&[&edge, x, &edge], dim)
        };
        pad(&pad(x, 2)?, 3)?.max_pool2d_with_stride(3, 2)
    }

    fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        candle_nn::loss::cross_entropy(logits, labels)
    }
}

impl LayerSet for SamRuntime {
    type Conv = nn::Conv2d;
    type Norm = nn::BatchNorm;
    type Linear = nn::Linear;
    type LayerNorm = nn::LayerNorm;
    type Embedding = nn::Embedding;

    fn conv(from: usize, to: usize, size: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self::Conv> {
        nn::conv2d_no_bias(from, to, size, config(size, stride), vb)
    }

    fn depthwise(channels: usize, size: usize, stride: usize, vb: VarBuilder<'_>) -> Result<Self::Conv> {
        let config = Conv2dConfig { groups: channels, ..config(size, stride) };
        nn::conv2d_no_bias(channels, channels, size, config, vb)
    }

    fn norm_with(channels: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self::Norm> {
        nn::batch_norm(channels, eps, vb)
    }

    fn linear(from: usize, to: usize, vb: VarBuilder<'_>) -> Result<Self::Linear> {
        nn::linear(from, to, vb)
    }

    fn linear_of(weight: Tensor, bias: Option<Tensor>) -> Self::Linear {
        nn::Linear::new(weight, bias)
    }

    fn layer_norm(width: usize, eps: f64, vb: VarBuilder<'_>) -> Result<Self::LayerNorm> {
        nn::layer_norm(width, eps, vb)
    }

    fn embedding(count: usize, width: usize, vb: VarBuilder<'_>) -> Result<Self::Embedding> {
        nn::embedding(count, width, vb)
    }

    fn gelu(x: &Tensor) -> Result<Tensor> {
        nn::ops::gelu_erf(x)
    }

    fn attention(qkv: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
        let mask = if causal { AttnMask::causal() } else { AttnMask::None };
        self_attention(qkv, heads, &mask, None, None)
    }

    fn relu(x: &Tensor) -> Result<Tensor> {
        nn::relu(x)
    }

    fn norm_relu(norm: &Self::Norm, x: &Tensor, train: bool) -> Result<Tensor> {
        norm.forward_relu(x, train)
    }

    fn norm_add_relu(norm: &Self::Norm, x: &Tensor, y: &Tensor, train: bool) -> Result<Tensor> {
        norm.forward_add_relu(x, y, train)
    }

    fn norm_relu6(norm: &Self::Norm, x: &Tensor, train: bool) -> Result<Tensor> {
        nn::ops::relu6(&norm.forward_t(x, train)?)
    }

    fn add(x: &Tensor, y: &Tensor) -> Result<Tensor> {
        nn::add(x, y)
    }

    fn mean(x: &Tensor) -> Result<Tensor> {
        nn::global_avg_pool2d(x)
    }

    fn avg_pool(x: &Tensor, size: usize) -> Result<Tensor> {
        nn::avg_pool2d(x, size, size, 0)
    }

    fn max_pool(x: &Tensor) -> Result<Tensor> {
        nn::max_pool2d(x, 3, 2, 1)
    }

    fn cross_entropy(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
        nn::cross_entropy(logits, labels)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    /// Zeros around negative numbers would be the largest.
    #[test]
    fn padding_is_never_the_largest() {
        let values: Vec<f32> = (0..2 * 36).map(|i| -1.0 - (i * 29 % 72) as f32).collect();
        let x = Tensor::from_vec(values.clone(), (1, 2, 6, 6), &Device::Cpu).unwrap();
        let largest = |channel: usize, row: usize, column: usize| {
            let near = |at: usize| (2 * at).saturating_sub(1)..(2 * at + 2).min(6);
            let window = near(row).flat_map(|y| near(column).map(move |x| (y, x)));
            window.map(|(y, x)| values[36 * channel + 6 * y + x]).fold(f32::NEG_INFINITY, f32::max)
        };
        let expected: Vec<f32> = (0..18).map(|i| largest(i / 9, i / 3 % 3, i % 3)).collect();
        for found in [SamRuntime::max_pool(&x).unwrap(), CandleNn::max_pool(&x).unwrap()] {
            assert_eq!(found.dims(), [1, 2, 3, 3]);
            assert_eq!(found.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
        }
    }
}
