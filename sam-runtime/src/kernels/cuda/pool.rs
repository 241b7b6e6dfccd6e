//! Pooling on tensors.

use candle_core::{Result, Tensor};

use super::buffers::{Output, UninitTensor, device, device_ptr};
use super::context::with_context;
use super::launch::pool::Mean;
use crate::core::image_layout::ImageLayout;
use crate::kernels::shapes::PoolShape;

/// The maximum or the mean of each window.
pub(crate) fn pool(sizes: &PoolShape, x: &Tensor) -> Result<Output> {
    let (n, channels, _, _) = x.dims4()?;
    let [rows, columns] = sizes.output;
    let (from, y) = (device_ptr(x)?, UninitTensor::like_with_shape(x, (n, channels, rows, columns))?);
    let addresses = [from.address, y.address()?];
    with_context(device(x)?, |context| sizes.forward(context, from.dtype, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn pool_back(sizes: &PoolShape, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (from, gradient, dx) = (device_ptr(x)?, device_ptr(dy)?, UninitTensor::like(x)?);
    let addresses = [from.address, gradient.address, dx.address()?];
    with_context(device(x)?, |context| sizes.backward(context, from.dtype, addresses))?;
    dx.tensor()
}

/// The mean of each plane of (n, channels, height, width).
pub(crate) fn mean(x: &Tensor) -> Result<Output> {
    let (n, channels, _, _) = x.dims4()?;
    let (from, y) = (device_ptr(x)?, UninitTensor::new(device(x)?, x.dtype(), (n, channels))?);
    let addresses = [from.address, y.address()?];
    let means = means(x)?;
    with_context(device(x)?, |context| means.forward(context, from.dtype, addresses))?;
    Ok(y.output())
}

/// The gradient of x.
pub(crate) fn mean_back(x: &Tensor, dy: &Tensor) -> Result<Tensor> {
    let (gradient, dx) = (device_ptr(dy)?, UninitTensor::like(x)?);
    let addresses = [gradient.address, dx.address()?];
    let means = means(x)?;
    with_context(device(x)?, |context| means.backward(context, gradient.dtype, addresses))?;
    dx.tensor()
}

fn means(x: &Tensor) -> Result<Mean> {
    let (n, channels, height, width) = x.dims4()?;
    Ok(Mean { planes: n * channels, plane: height * width, step: step(x)? })
}

/// The distance from one pixel to the next, in elements.
pub(crate) fn step(x: &Tensor) -> Result<usize> {
    Ok(match ImageLayout::of(x) {
        ImageLayout::Nchw => 1,
        ImageLayout::Nhwc => x.dim(1)?,
    })
}
