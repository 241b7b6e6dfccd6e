//! Convolution of images.

use candle_core::{Result, Tensor};
use candle_nn::{Conv2dConfig, Module, VarBuilder};

use super::convolve::{Window, convolve};
use crate::kernels::has_fused_kernels;
use crate::nn::batch_norm::BatchNorm;

/// `candle_nn::Conv2d`, except that on the CPU it is several times as fast, and more so backward.
///
/// Both run at the pace of a matrix product there, and bf16 and f16 are computed in f32. On CUDA cuDNN computes all three
/// (feature `cudnn`), by the fastest of its plans for each size, or else cuBLAS; TF32 is used where
/// `candle_core::cuda::set_gemm_reduced_precision_f32` allows it. Images that are [channels last](crate::nn::channels_last)
/// are multiplied so, and give such images; tensor cores like them best. The gradient of an input that needs none, as images do,
/// is not computed. On other devices this is candle's own convolution.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    config: Conv2dConfig,
}

/// A convolution with square kernels and its variables from `vb`: `weight` of
/// `(out_channels, in_channels / groups, kernel_size, kernel_size)` and `bias` of `(out_channels)`, as in `candle_nn`.
///
/// # Errors
/// If `vb` has variables of another shape.
///
/// ```
/// use candle_core::{DType, Device, Result, Tensor};
/// use candle_nn::{Module, VarBuilder, VarMap};
/// use sam_runtime::nn::{self, Conv2dConfig};
///
/// # fn main() -> Result<()> {
/// let vars = VarMap::new();
/// let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
/// let config = Conv2dConfig { padding: 1, stride: 2, ..Default::default() };
/// let conv = nn::conv2d(3, 16, 3, config, vb)?;
/// let images = Tensor::randn(0f32, 1., (8, 3, 32, 32), &Device::Cpu)?;
/// assert_eq!(conv.forward(&images)?.dims(), [8, 16, 16, 16]);
/// # Ok(())
/// # }
/// ```
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder<'_>,
) -> Result<Conv2d> {
    candle_nn::conv2d(in_channels, out_channels, kernel_size, config, vb).map(Conv2d::from)
}

/// [`conv2d`] without a bias, for layers that a normalization follows.
///
/// # Errors
/// If `vb` has a variable of another shape.
pub fn conv2d_no_bias(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder<'_>,
) -> Result<Conv2d> {
    candle_nn::conv2d_no_bias(in_channels, out_channels, kernel_size, config, vb).map(Conv2d::from)
}

impl Conv2d {
    /// With `weight` of `(out_channels, in_channels / groups, height, width)` and `bias` of `(out_channels)`.
    #[must_use]
    pub fn new(weight: Tensor, bias: Option<Tensor>, config: Conv2dConfig) -> Self {
        Self { weight, bias, config }
    }

    /// Stride, padding, dilation, groups.
    #[must_use]
    pub fn config(&self) -> &Conv2dConfig {
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

    /// The convolution and an evaluated batch normalization behind it, as one convolution.
    ///
    /// # Errors
    /// If the batch normalization has no γ and β, or has another number of channels.
    pub fn absorb_bn(&self, bn: &BatchNorm) -> Result<Self> {
        self.stock().absorb_bn(bn).map(Self::from)
    }

    fn stock(&self) -> candle_nn::Conv2d {
        candle_nn::Conv2d::new(self.weight.clone(), self.bias.clone(), self.config)
    }
}

impl From<candle_nn::Conv2d> for Conv2d {
    fn from(stock: candle_nn::Conv2d) -> Self {
        Self::new(stock.weight().clone(), stock.bias().cloned(), *stock.config())
    }
}

impl Module for Conv2d {
    /// From `(images, in_channels, height, width)` to `(images, out_channels, height, width)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        if !has_fused_kernels(x.device()) {
            return self.stock().forward(x);
        }
        let Conv2dConfig { padding, stride, dilation, groups, .. } = self.config;
        let window = Window { padding, stride, dilation, groups };
        convolve(window.of_images(x.dims(), self.weight.dims())?, x, &self.weight, self.bias.as_ref())
    }
}
