//! Group normalization.

use candle_core::{Result, Tensor};
use candle_nn::{Init, Module, VarBuilder};

use super::normalize::normalize_groups;
use crate::kernels::has_fused_kernels;

/// Group normalization ([Wu & He 2018](https://arxiv.org/abs/1803.08494)), as `candle_nn::GroupNorm` has it, as one operation with
/// its own backward pass: γ (x - mean) / √(var + ε) + β, with the mean and variance of a group of channels of one image.
///
/// Computed as [`LayerNorm`](super::LayerNorm) is. On devices other than the CPU and CUDA it is candle's.
#[derive(Clone, Debug)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
    num_channels: usize,
    num_groups: usize,
}

impl GroupNorm {
    /// With weight and bias of `num_channels`.
    ///
    /// # Errors
    /// If `num_channels` is not a multiple of `num_groups`.
    pub fn new(weight: Tensor, bias: Tensor, num_channels: usize, num_groups: usize, eps: f64) -> Result<Self> {
        if !num_channels.is_multiple_of(num_groups) {
            candle_core::bail!(
                "expected a number of groups that divides the {num_channels} channels of a group normalization, found \
                 {num_groups}"
            )
        }
        Ok(Self { weight, bias, eps, num_channels, num_groups })
    }
}

impl Module for GroupNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let &[_, channels, _, ..] = x.dims() else {
            candle_core::bail!("expected images (n, channels, ..) of at least three dimensions, found {:?}", x.dims())
        };
        if channels != self.num_channels {
            candle_core::bail!("expected images of {} channels, found {:?}", self.num_channels, x.dims())
        }
        if has_fused_kernels(x.device()) {
            return normalize_groups(x, &self.weight, &self.bias, [channels, self.num_groups], self.eps);
        }
        let [weight, bias] = [&self.weight, &self.bias].map(|affine| affine.to_dtype(x.dtype()));
        candle_nn::GroupNorm::new(weight?, bias?, channels, self.num_groups, self.eps)?.forward(x)
    }
}

/// A group normalization of `num_channels` channels, dimension 1 of its input, with its variables from `vb`: `weight` and
/// `bias`, as in `candle_nn`.
///
/// # Errors
/// If `num_channels` is not a multiple of `num_groups`, or `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use sam_runtime::nn;
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let layer = nn::group_norm(2, 8, 1e-5, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
/// let x = Tensor::randn(3f32, 2., (4, 8, 6, 6), &Device::Cpu)?;
/// assert!(layer.forward(&x)?.mean_all()?.to_scalar::<f32>()?.abs() < 1e-5);
/// # Ok(())
/// # }
/// ```
#[expect(clippy::needless_pass_by_value, reason = "the signature is candle's")]
pub fn group_norm(num_groups: usize, num_channels: usize, eps: f64, vb: VarBuilder<'_>) -> Result<GroupNorm> {
    let weight = vb.get_with_hints(num_channels, "weight", Init::Const(1.))?;
    let bias = vb.get_with_hints(num_channels, "bias", Init::Const(0.))?;
    GroupNorm::new(weight, bias, num_channels, num_groups, eps)
}
