//! Layer normalization, and RMS normalization.
//!
//! Those of `candle_nn` have no gradient on contiguous inputs: what is below them is not trained, silently. Here each is one
//! operation with its own backward pass, for any input.

use candle_core::{D, Result, Tensor};
pub use candle_nn::layer_norm::*;
use candle_nn::{Module, VarBuilder};

use super::normalize::normalize;
use crate::kernels::{has_fused_kernels, portable};

/// Layer normalization ([Ba et al. 2016](https://arxiv.org/abs/1607.06450)), as `candle_nn::LayerNorm` has it, with a gradient:
/// γ (x - mean) / √(var + ε) + β over the last dimension.
///
/// On the CPU statistics are taken in f64, and bf16 and f16 are computed in f32. Weight and bias may be of another float type than
/// the input. On devices other than the CPU and CUDA it is candle's.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    remove_mean: bool,
    eps: f64,
}

impl LayerNorm {
    /// With weight and bias of the size of the last dimension.
    #[must_use]
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias: Some(bias), remove_mean: true, eps }
    }

    /// Without a bias.
    #[must_use]
    pub fn new_no_bias(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, remove_mean: true, eps }
    }

    /// Without a bias, and without subtracting the mean: [`RmsNorm`].
    #[must_use]
    pub fn rms_norm(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, remove_mean: false, eps }
    }

    /// γ
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// β
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What is added to the variance.
    #[must_use]
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Whether the mean is subtracted.
    #[must_use]
    pub fn remove_mean(&self) -> bool {
        self.remove_mean
    }
}

impl From<candle_nn::LayerNorm> for LayerNorm {
    fn from(stock: candle_nn::LayerNorm) -> Self {
        Self {
            weight: stock.weight().clone(),
            bias: stock.bias().cloned(),
            remove_mean: stock.remove_mean(),
            eps: stock.eps(),
        }
    }
}

impl Module for LayerNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let size = x.dim(D::Minus1)?;
        // candle broadcasts weights of one element, or of more dimensions.
        let broadcast = |affine: &Tensor| affine.rank() != 1 || affine.dims() == [1] && size != 1;
        if !has_fused_kernels(x.device()) || broadcast(&self.weight) || self.bias.as_ref().is_some_and(broadcast) {
            return portable::layer_norm::normalize(x, &self.weight, self.bias.as_ref(), self.remove_mean, self.eps);
        }
        normalize(x, &self.weight, self.bias.as_ref(), self.remove_mean, self.eps)
    }
}

/// A layer normalization over the last dimension, of `size`, with its variables from `vb`: `weight` and, if `config.affine`,
/// `bias`; where `vb` has them as `gamma` and `beta`, these.
///
/// # Errors
/// If `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let layer = nn::layer_norm(4, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
/// let y = layer.forward(&Tensor::new(&[[1f32, 2., 3., 4.]], &Device::Cpu)?)?;
/// assert!((y.to_vec2::<f32>()?[0][0] + 1.3416).abs() < 1e-4);
/// # Ok(())
/// # }
/// ```
pub fn layer_norm<C: Into<LayerNormConfig>>(size: usize, config: C, vb: VarBuilder<'_>) -> Result<LayerNorm> {
    candle_nn::layer_norm(size, config, vb).map(LayerNorm::from)
}

/// [`layer_norm`] without a bias.
///
/// # Errors
/// As [`layer_norm`].
pub fn layer_norm_no_bias(size: usize, eps: f64, vb: VarBuilder<'_>) -> Result<LayerNorm> {
    candle_nn::layer_norm_no_bias(size, eps, vb).map(LayerNorm::from)
}

/// RMS normalization ([Zhang & Sennrich 2019](https://arxiv.org/abs/1910.07467)), as `candle_nn::RmsNorm` has it, with a gradient:
/// γ x / √(mean of x² + ε) over the last dimension. See [`LayerNorm`].
#[derive(Clone, Debug)]
pub struct RmsNorm(LayerNorm);

impl RmsNorm {
    /// With a weight of the size of the last dimension.
    #[must_use]
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self(LayerNorm::rms_norm(weight, eps))
    }

    /// The same as a layer normalization that does not subtract the mean.
    #[must_use]
    pub fn into_inner(self) -> LayerNorm {
        self.0
    }

    /// γ
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        self.0.weight()
    }

    /// What is added to the mean square.
    #[must_use]
    pub fn eps(&self) -> f64 {
        self.0.eps()
    }

    /// The same as `forward`, which has a gradient here.
    ///
    /// # Errors
    /// If the last dimension of `xs` is not that of the weight, or `xs` not of a float type.
    pub fn forward_diff(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

impl From<candle_nn::RmsNorm> for RmsNorm {
    fn from(stock: candle_nn::RmsNorm) -> Self {
        Self(stock.into_inner().into())
    }
}

impl Module for RmsNorm {
    fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// An RMS normalization over the last dimension, of `size`, with its variable from `vb`: `weight`, or `gamma`.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder<'_>) -> Result<RmsNorm> {
    candle_nn::rms_norm(size, eps, vb).map(RmsNorm::from)
}
