//! Convolution of images.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor};
use candle_nn::{Conv2dConfig, Module, VarBuilder};

use super::widened;
use crate::kernels::conv::{self, Conv, Side};
use crate::kernels::float::{Float, elements, for_float, with_elements};

/// `candle_nn::Conv2d`, except that on the CPU it is several times as fast, and more so backward.
///
/// Both run at the pace of a matrix product there. The gradient of an input that needs none, as images do, is not
/// computed. bf16 and f16 are computed in f32. On other devices this is candle's own convolution.
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

/// [`conv2d`] without a bias, for layers that a normalisation follows.
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
        if !x.device().is_cpu() {
            return self.stock().forward(x);
        }
        let op = Convolve(sizes(x.dims(), self.weight.dims(), &self.config)?);
        let (wide, weight) = (widened(x)?.contiguous()?, widened(&self.weight)?.contiguous()?);
        let y = match &self.bias {
            None => wide.apply_op2(&weight, op),
            Some(bias) if bias.dims() == [op.0.filters] => wide.apply_op3(&weight, &widened(bias)?.contiguous()?, op),
            Some(bias) => candle_core::bail!("expected a bias of {} channels, found {:?}", op.0.filters, bias.dims()),
        };
        y?.to_dtype(x.dtype())
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
    if images * channels * height * width * filters == 0 {
        candle_core::bail!("expected at least one image, channel, row, column and filter, found {x:?} and {weight:?}")
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

struct Convolve(Conv);

impl Convolve {
    fn forward(
        &self,
        (x, x_layout): (&CpuStorage, &Layout),
        (w, w_layout): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let y = for_float!(x.dtype(), "conv2d", |T| {
            let bias = bias.map(|(bias, layout)| elements::<T>(bias, layout)).transpose()?;
            let y = conv::forward(&self.0, elements::<T>(x, x_layout)?, elements(w, w_layout)?, bias);
            Ok(<T as candle_core::WithDType>::to_cpu_storage_owned(y))
        })?;
        let Conv { images, filters, height, width, .. } = self.0;
        Ok((y, (images, filters, height.output, width.output).into()))
    }

    /// Those of x, w and b that are asked for.
    fn gradients(&self, x: &Tensor, w: &Tensor, dy: &Tensor, bias: bool) -> Result<[Option<Tensor>; 3]> {
        let dy = &dy.contiguous()?;
        for_float!(x.dtype(), "conv2d", |T| self.typed_gradients::<T>(x, w, dy, bias))
    }

    fn typed_gradients<T: Float>(
        &self,
        x: &Tensor,
        w: &Tensor,
        dy: &Tensor,
        bias: bool,
    ) -> Result<[Option<Tensor>; 3]> {
        let conv = &self.0;
        with_elements::<T, _>(dy, |dy| {
            let dx = || {
                let dx = with_elements(w, |w| Ok(conv::input_gradient(conv, dy, w)))?;
                Tensor::from_vec(dx, x.shape(), x.device())
            };
            let dw = || {
                let dw = with_elements(x, |x| Ok(conv::weight_gradient(conv, x, dy)))?;
                Tensor::from_vec(dw, w.shape(), w.device())
            };
            let db = || Tensor::from_vec(conv::bias_gradient(conv, dy), conv.filters, x.device());
            Ok([x.track_op().then(dx).transpose()?, w.track_op().then(dw).transpose()?, bias.then(db).transpose()?])
        })
    }
}

impl CustomOp2 for Convolve {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), None)
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, _] = self.gradients(x, w, dy, false)?;
        Ok((dx, dw))
    }
}

impl CustomOp3 for Convolve {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        bias: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), Some((bias, bl)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [dx, dw, db] = self.gradients(x, w, dy, bias.track_op())?;
        Ok((dx, dw, db))
    }
}
