//! Transposed convolution of images.

use candle_core::{Result, Tensor};
use candle_nn::{ConvTranspose2dConfig, Module, VarBuilder};

use super::convolve::Window;
use super::transpose::transpose;
use crate::kernels::has_fused_kernels;

/// `candle_nn::ConvTranspose2d`, several times as fast on the CPU.
///
/// Its forward pass is the gradient of a convolution's input, its gradients are that convolution and the gradient of its weight, by
/// the same kernels. On devices other than the CPU and CUDA this is candle's own operation.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: ConvTranspose2dConfig,
}

/// A transposed convolution with its variables from `vb`: `weight` of
/// `(in_channels, out_channels, kernel_size, kernel_size)` and `bias` of `(out_channels)`, as in `candle_nn`.
///
/// # Errors
/// If `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use sam_runtime::nn::{self, ConvTranspose2dConfig};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let config = ConvTranspose2dConfig { stride: 2, padding: 1, ..Default::default() };
/// let up = nn::conv_transpose2d(16, 8, 4, config, vb)?;
/// let x = Tensor::randn(0f32, 1., (8, 16, 7, 7), &Device::Cpu)?;
/// assert_eq!(up.forward(&x)?.dims(), [8, 8, 14, 14]);
/// # Ok(())
/// # }
/// ```
pub fn conv_transpose2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose2dConfig,
    vb: VarBuilder<'_>,
) -> Result<ConvTranspose2d> {
    candle_nn::conv_transpose2d(in_channels, out_channels, kernel_size, cfg, vb).map(ConvTranspose2d::from)
}

/// [`conv_transpose2d`] without a bias.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn conv_transpose2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: ConvTranspose2dConfig,
    vb: VarBuilder<'_>,
) -> Result<ConvTranspose2d> {
    candle_nn::conv_transpose2d_no_bias(in_channels, out_channels, kernel_size, cfg, vb).map(ConvTranspose2d::from)
}

impl ConvTranspose2d {
    /// With `weight` of `(in_channels, out_channels, height, width)` and `bias` of `(out_channels)`.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: ConvTranspose2dConfig) -> Self {
        Self { weight, bias, config }
    }

    /// Stride, padding, output padding, dilation.
    #[must_use]
    pub fn config(&self) -> &ConvTranspose2dConfig {
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

impl From<candle_nn::ConvTranspose2d> for ConvTranspose2d {
    fn from(stock: candle_nn::ConvTranspose2d) -> Self {
        Self::new(stock.weight().clone(), stock.bias().cloned(), *stock.config())
    }
}

impl Module for ConvTranspose2d {
    /// From `(images, in_channels, height, width)` to `(images, out_channels, height, width)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !has_fused_kernels(x.device()) {
            return candle_nn::ConvTranspose2d::new(self.weight.clone(), self.bias.clone(), self.config).forward(x);
        }
        if x.rank() != 4 || self.weight.rank() != 4 {
            candle_core::bail!(
                "expected images and a weight of four dimensions, found {:?} and {:?}",
                x.dims(),
                self.weight.dims()
            )
        }
        let ConvTranspose2dConfig { padding, output_padding, stride, dilation } = self.config;
        let window = Window { padding, stride, dilation, groups: 1 };
        transpose(window, output_padding, x, &self.weight, self.bias.as_ref())
    }
}
