//! Batch normalization on tensors.

use candle_core::{DType, Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::batch_norm::{self, Running};
use super::launch::channels::Channels;
use super::launch::dtype_code;
use super::launch::shared::STATISTICS;
use crate::core::image_layout::ImageLayout;
use crate::kernels::shapes::BatchNormShape;

/// The inputs of a batch normalization: x, γ, β, and a residual.
#[derive(Clone, Copy)]
pub(crate) struct BatchNormInput<'a> {
    pub(crate) norm: &'a BatchNormShape,
    pub(crate) x: &'a Tensor,
    pub(crate) weight: Option<&'a Tensor>,
    pub(crate) bias: Option<&'a Tensor>,
    pub(crate) residual: Option<&'a Tensor>,
}

/// Which statistics normalize.
#[derive(Clone, Copy)]
pub(crate) enum StatisticsSource<'a> {
    /// These: mean and variance.
    Fixed([&'a Tensor; 2]),
    /// Those of the batch. Running ones, if given, move towards them by this momentum.
    Batch(Option<([&'a Tensor; 2], f64)>),
}

impl BatchNormInput<'_> {
    /// The launch arguments; the statistics are stored at this address.
    fn sizes(&self, statistics: u64) -> Result<batch_norm::BatchNorm> {
        let BatchNormShape { channels, plane, eps, centered, relu } = *self.norm;
        let images = self.x.elem_count() / (channels * plane).max(1);
        let affine = self.weight.or(self.bias).map_or(Ok(0), |affine| dtype_code(affine.dtype()))?;
        Ok(batch_norm::BatchNorm {
            sizes: Channels { images, channels, plane, format: ImageLayout::of(self.x) },
            eps,
            centered,
            relu,
            dtype: dtype_code(self.x.dtype())?,
            affine_dtype: affine,
            weight: optional(self.weight)?,
            bias: optional(self.bias)?,
            statistics,
        })
    }
}

fn optional(tensor: Option<&Tensor>) -> Result<u64> {
    tensor.map_or(Ok(0), |tensor| Ok(device_ptr(tensor)?.address))
}

fn running([mean, var]: [&Tensor; 2]) -> Result<Running> {
    let (mean, var) = (device_ptr(mean)?, device_ptr(var)?);
    Ok(Running { dtype: mean.dtype, mean: mean.address, var: var.address })
}

/// y, and the statistics that the backward pass needs.
pub(crate) fn batch_norm(this: BatchNormInput<'_>, from: StatisticsSource<'_>) -> Result<(Output, Tensor)> {
    let device = device(this.x)?;
    let (y, statistics) =
        (UninitTensor::like(this.x)?, UninitTensor::new(device, DType::F64, STATISTICS * this.norm.channels)?);
    let norm = this.sizes(statistics.address()?)?;
    let addresses = [device_ptr(this.x)?.address, optional(this.residual)?, y.address()?];
    with_context(device, |context| {
        match from {
            StatisticsSource::Fixed(statistics) => norm.use_running(context, running(statistics)?)?,
            StatisticsSource::Batch(None) => norm.batch_statistics(context, addresses[0], None)?,
            StatisticsSource::Batch(Some((statistics, momentum))) => {
                norm.batch_statistics(context, addresses[0], Some((running(statistics)?, momentum)))?;
            }
        }
        norm.forward(context, addresses)
    })?;
    Ok((y.output(), statistics.tensor()?))
}

/// The gradients of x, γ, β and the residual.
pub(crate) fn batch_norm_back(
    this: BatchNormInput<'_>,
    statistics: &Tensor,
    fixed: bool,
    y: &Tensor,
    dy: &Tensor,
) -> Result<[Option<Tensor>; 4]> {
    let device = device(this.x)?;
    let dx = UninitTensor::like(this.x)?;
    let masked = this.norm.relu && this.residual.is_some();
    let residual = masked.then(|| UninitTensor::like(this.x)).transpose()?;
    let [weight, bias] = [this.weight, this.bias].map(|affine| affine.map(UninitTensor::like).transpose());
    let (weight, bias) = (weight?, bias?);
    let coefficients = UninitTensor::new(device, DType::F64, 2 * this.norm.channels)?;
    let address = |tensor: &Option<UninitTensor>| tensor.as_ref().map_or(Ok(0), UninitTensor::address);
    // Without a residual the kernel recomputes the sign of y from x.
    let y = if masked { device_ptr(y)?.address } else { 0 };
    let values = [device_ptr(this.x)?.address, y, device_ptr(dy)?.address];
    let gradients = [dx.address()?, address(&residual)?, address(&weight)?, address(&bias)?];
    let norm = this.sizes(device_ptr(statistics)?.address)?;
    with_context(device, |context| norm.backward(context, values, fixed, coefficients.address()?, gradients))?;
    let [dx, weight, bias, residual] =
        [Some(dx), weight, bias, residual].map(|gradient| gradient.map(UninitTensor::tensor).transpose());
    // Without a ReLU the gradient of the residual is dy.
    let residual = residual?.or_else(|| this.residual.map(|_| dy.clone()));
    Ok([dx?, weight?, bias?, residual])
}
