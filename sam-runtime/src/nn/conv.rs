//! Convolution of images.

#[cfg(feature = "cuda")]
use std::sync::OnceLock;

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, Result, Shape, Tensor};
use candle_nn::{Module, VarBuilder};

use super::batch_norm::BatchNorm;
pub use candle_nn::conv::*;

use crate::autograd::fused_op::{FusedOp, Saved};
use crate::autograd::tape::apply;
use crate::kernels::cpu::conv::{self, Conv, Side};
use crate::kernels::cpu::float::{View, for_float, like, output, view};
#[cfg(feature = "cuda")]
use crate::kernels::cuda;
use crate::kernels::has_fused_kernels;
use crate::kernels::prepare::{to_compute_dtype, weight_for};

/// `candle_nn::Conv2d`, except that on the CPU it is several times as fast, and more so backward.
///
/// Both run at the pace of a matrix product there, and bf16 and f16 are computed in f32. On CUDA cuDNN computes all three
/// (feature `cudnn`), by the fastest of its plans for each size, or else cuBLAS; TF32 is used where
/// `candle_core::cuda::set_gemm_reduced_precision_f32` allows it. Images that are [channels last](super::channels_last)
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
        let layer = Convolve::new(sizes(x.dims(), self.weight.dims(), &self.config)?);
        let (wide, weight) = (to_compute_dtype(x)?, weight_for(x, &self.weight)?);
        let y = match &self.bias {
            None => apply(layer, &[&wide, &weight])?,
            Some(bias) if bias.dims() == [layer.sizes.filters] => {
                apply(layer, &[&wide, &weight, &weight_for(x, bias)?])?
            }
            Some(bias) => {
                candle_core::bail!("expected a bias of {} channels, found {:?}", layer.sizes.filters, bias.dims())
            }
        };
        y.to_dtype(x.dtype())
    }
}

/// Sizes that fit together.
fn sizes(x: &[usize], weight: &[usize], config: &Conv2dConfig) -> Result<Conv> {
    let (&[images, channels, height, width], &[filters, in_group, kernel_height, kernel_width]) = (x, weight) else {
        candle_core::bail!("expected images and a weight of four dimensions, found {x:?} and {weight:?}")
    };
    let Conv2dConfig { padding, stride, dilation, groups, .. } = *config;
    if stride == 0 || dilation == 0 || groups == 0 || kernel_height == 0 || kernel_width == 0 {
        candle_core::bail!(
            "expected a stride, dilation, groups and kernel of at least 1, found {stride}, {dilation}, {groups} and \
             {kernel_height}x{kernel_width}"
        )
    }
    if channels * height * width * filters == 0 {
        candle_core::bail!("expected at least one channel, row, column and filter, found {x:?} and {weight:?}")
    }
    if channels != in_group * groups || filters % groups != 0 {
        candle_core::bail!(
            "expected images of {} channels and filters in {groups} equal groups, found {channels} channels and \
             {filters} filters",
            in_group * groups
        )
    }
    let side = |input: usize, kernel: usize| {
        let (room, span) = (input + 2 * padding, dilation * (kernel - 1) + 1);
        if room < span {
            candle_core::bail!("expected images of at least {span} with their padding, found {room}")
        }
        Ok(Side { input, kernel, output: (room - span) / stride + 1, stride, padding, dilation })
    };
    let (height, width) = (side(height, kernel_height)?, side(width, kernel_width)?);
    Ok(Conv { images, channels, filters, groups, height, width })
}

/// Of x and w, and a bias if there is one.
struct Convolve {
    sizes: Conv,
    /// The weight in the type and format of the images.
    #[cfg(feature = "cuda")]
    kept: OnceLock<Tensor>,
}

impl Convolve {
    fn new(sizes: Conv) -> Self {
        Self {
            sizes,
            #[cfg(feature = "cuda")]
            kept: OnceLock::new(),
        }
    }
}

impl FusedOp for Convolve {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn saved(&self) -> Saved {
        Saved::ARGS
    }

    fn forward(&self, args: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (x, w, bias) = (view(&args[0]), view(&args[1]), args.get(2).map(view));
        let Conv { images, filters, height, width, .. } = self.sizes;
        for_float!(args[0].dtype(), self.name(), |T| {
            if images == 0 {
                return Ok(output(Vec::<T>::new(), (images, filters, height.output, width.output)));
            }
            let bias = bias.as_ref().map(View::elements::<T>).transpose()?;
            let y = conv::forward(&self.sizes, x.elements::<T>()?, w.elements()?, bias);
            Ok(output(y, (images, filters, height.output, width.output)))
        })
    }

    fn backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        if self.sizes.images == 0 {
            return Ok(vec![None; args.len()]);
        }
        let (x, w, dy) = (view(&args[0]), view(&args[1]), view(dy));
        for_float!(args[0].dtype(), self.name(), |T| {
            let (x, w, dy) = (x.elements::<T>()?, w.elements::<T>()?, dy.elements::<T>()?);
            let gradient = |(i, arg): (usize, &Tensor)| {
                let values = match i {
                    _ if !wanted[i] => return Ok(None),
                    0 => conv::input_gradient(&self.sizes, dy, w),
                    1 => conv::weight_gradient(&self.sizes, x, dy),
                    _ => conv::bias_gradient(&self.sizes, dy),
                };
                like(values, arg).map(Some)
            };
            args.iter().enumerate().map(gradient).collect()
        })
    }

    #[cfg(feature = "cuda")]
    fn cuda_forward(&self, args: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        cuda::conv(&self.sizes, args, &self.kept)
    }

    #[cfg(feature = "cuda")]
    fn cuda_backward(&self, args: &[Tensor], wanted: &[bool], _: &Tensor, dy: &Tensor) -> Result<Vec<Option<Tensor>>> {
        cuda::conv_back(&self.sizes, args, self.kept.get(), wanted, dy)
    }
}
