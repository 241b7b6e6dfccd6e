//! Convolution of sequences.

use candle_core::{Result, Tensor};
use candle_nn::{Conv1dConfig, Module, VarBuilder};

use super::convolve::{Window, convolve};
use crate::kernels::has_fused_kernels;

/// `candle_nn::Conv1d`, whose gradient of the weight is wrong in `candle_nn` on the CPU for more than one sequence.
///
/// A sequence is computed as an image of one row, so what [`Conv2d`](super::Conv2d) says holds here too. On devices other than the
/// CPU and CUDA this is candle's own convolution.
#[derive(Clone, Debug)]
pub struct Conv1d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv1dConfig,
}

/// A convolution of sequences with its variables from `vb`: `weight` of `(out_channels, in_channels / groups, kernel_size)` and
/// `bias` of `(out_channels)`, as in `candle_nn`.
///
/// # Errors
/// If `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use sam_runtime::nn::{self, Conv1dConfig};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let conv = nn::conv1d(80, 256, 3, Conv1dConfig { padding: 1, ..Default::default() }, vb)?;
/// let spectra = Tensor::randn(0f32, 1., (8, 80, 100), &Device::Cpu)?;
/// assert_eq!(conv.forward(&spectra)?.dims(), [8, 256, 100]);
/// # Ok(())
/// # }
/// ```
pub fn conv1d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: Conv1dConfig,
    vb: VarBuilder<'_>,
) -> Result<Conv1d> {
    candle_nn::conv1d(in_channels, out_channels, kernel_size, cfg, vb).map(Conv1d::from)
}

/// [`conv1d`] without a bias.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn conv1d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    cfg: Conv1dConfig,
    vb: VarBuilder<'_>,
) -> Result<Conv1d> {
    candle_nn::conv1d_no_bias(in_channels, out_channels, kernel_size, cfg, vb).map(Conv1d::from)
}

impl Conv1d {
    /// With `weight` of `(out_channels, in_channels / groups, length)` and `bias` of `(out_channels)`.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv1dConfig) -> Self {
        Self { weight, bias, config }
    }

    /// Stride, padding, dilation, groups.
    #[must_use]
    pub fn config(&self) -> &Conv1dConfig {
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

impl From<candle_nn::Conv1d> for Conv1d {
    fn from(stock: candle_nn::Conv1d) -> Self {
        Self::new(stock.weight().clone(), stock.bias().cloned(), *stock.config())
    }
}

impl Module for Conv1d {
    /// From `(batch, in_channels, length)` to `(batch, out_channels, length)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !has_fused_kernels(x.device()) {
            return candle_nn::Conv1d::new(self.weight.clone(), self.bias.clone(), self.config).forward(x);
        }
        let Conv1dConfig { padding, stride, dilation, groups, .. } = self.config;
        let window = Window { padding, stride, dilation, groups };
        convolve(window.of_sequences(x.dims(), self.weight.dims())?, x, &self.weight, self.bias.as_ref())
    }
}
