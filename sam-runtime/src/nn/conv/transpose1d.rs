//! Transposed convolution of sequences.

use candle_core::{Result, Tensor};
use candle_nn::{ConvTranspose1dConfig, Module, VarBuilder};

use super::convolve::Window;
use super::transpose::transpose;
use crate::kernels::has_fused_kernels;

/// `candle_nn::ConvTranspose1d`, which has no gradient in `candle_nn`.
///
/// Its forward pass is the gradient of a convolution's input, its gradients are that convolution and the gradient of its weight, by
/// the same kernels. On devices other than the CPU and CUDA this is candle's own operation.
#[derive(Clone, Debug)]
pub struct ConvTranspose1d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvTranspose1dConfig,
}

/// A transposed convolution with its variables from `vb`: `weight` of
/// `(in_channels, out_channels / groups, kernel_size)` and `bias` of `(out_channels)`, as in `candle_nn`.
///
/// # Errors
/// If `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use sam_runtime::nn::{self, ConvTranspose1dConfig};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let config = ConvTranspose1dConfig { stride: 2, padding: 1, ..Default::default() };
/// let up = nn::conv_transpose1d(16, 8, 4, config, vb)?;
/// let x = Tensor::randn(0f32, 1., (8, 16, 50), &Device::Cpu)?;
/// assert_eq!(up.forward(&x)?.dims(), [8, 8, 100]);
/// # Ok(())
/// # }
/// ```
pub fn conv_transpose1d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose1dConfig,
    vb: VarBuilder<'_>,
) -> Result<ConvTranspose1d> {
    candle_nn::conv_transpose1d(in_channels, out_channels, kernel_size, cfg, vb).map(ConvTranspose1d::from)
}

/// [`conv_transpose1d`] without a bias.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn conv_transpose1d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose1dConfig,
    vb: VarBuilder<'_>,
) -> Result<ConvTranspose1d> {
    candle_nn::conv_transpose1d_no_bias(in_channels, out_channels, kernel_size, cfg, vb).map(ConvTranspose1d::from)
}

impl ConvTranspose1d {
    /// With `weight` of `(in_channels, out_channels / groups, length)` and `bias` of `(out_channels)`.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: ConvTranspose1dConfig) -> Self {
        Self { weight, bias, config }
    }

    /// Stride, padding, output padding, dilation, groups.
    #[must_use]
    pub fn config(&self) -> &ConvTranspose1dConfig {
        &self.config
    }

    /// The kernels.
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to each channel.
    #[must_use]
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl From<candle_nn::ConvTranspose1d> for ConvTranspose1d {
    fn from(stock: candle_nn::ConvTranspose1d) -> Self {
        Self::new(stock.weight().clone(), stock.bias().cloned(), *stock.config())
    }
}

impl Module for ConvTranspose1d {
    /// From `(batch, in_channels, length)` to `(batch, out_channels, length)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !has_fused_kernels(x.device()) {
            return candle_nn::ConvTranspose1d::new(self.weight.clone(), self.bias.clone(), self.config).forward(x);
        }
        if x.rank() != 3 || self.weight.rank() != 3 {
            candle_core::bail!(
                "expected sequences and a weight of three dimensions, found {:?} and {:?}",
                x.dims(),
                self.weight.dims()
            )
        }
        let ConvTranspose1dConfig { padding, output_padding, stride, dilation, groups } = self.config;
        let window = Window { padding, stride, dilation, groups };
        transpose(window, output_padding, x, &self.weight, self.bias.as_ref())
    }
}
